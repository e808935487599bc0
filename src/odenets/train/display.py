"""What a person sees of a training that runs."""

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from odenets.train.checkpoint import Label
from odenets.train.history import EpochRecord

__all__ = ["Display"]


class Display:
    """What is shown of a run: a bar on a terminal, a line an epoch elsewhere, nothing unless `show`.

    No thread refreshes it: that would take the core of a training on one. `move` does, when it is called.
    """

    def __init__(self, show: bool, label: Label, epochs: int):
        self.label, self.epochs = label, epochs
        self.console = Console(stderr=True) if show else None
        self.bar = None
        if self.console is not None and self.console.is_terminal:
            self.bar = Progress(*_columns(), console=self.console, auto_refresh=False)

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def start(self, total: int, done: int) -> None:
        """Begin a bar of `total` steps, of which `done` are."""
        self.steps = total // self.epochs
        if self.bar is not None:
            self.task = self.bar.add_task(str(self.label), total=total, completed=done, status="")
            self.bar.start()

    def move(self, done: int, loss: float, nfe: float | None) -> None:
        """Show where the running epoch is."""
        self._show(done, done // self.steps + 1, loss, nfe)

    def epoch(self, record: EpochRecord, done: int) -> None:
        right = "" if record.test_accuracy is None else f", accuracy {record.test_accuracy:.4f}"
        self.say(
            f"{self.label} epoch {record.epoch}/{self.epochs}: train loss {record.train_loss:.4g}, "
            f"test loss {record.test_loss:.4g}{right}{_nfe_text(record.nfe, ', ')}, {record.seconds:.2f} s"
        )
        self._show(done, record.epoch, record.train_loss, record.nfe)

    def _show(self, done: int, epoch: int, loss: float, nfe: float | None) -> None:
        if self.bar is not None:
            status = f"epoch {epoch}/{self.epochs}  loss {loss:.4g}{_nfe_text(nfe, '  ')}"
            self.bar.update(self.task, completed=done, status=status, refresh=True)

    def say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, soft_wrap=True, markup=False, highlight=False)


def _nfe_text(nfe: float | None, before: str) -> str:
    return "" if nfe is None else f"{before}nfe {nfe:.1f}"


def _columns() -> tuple[ProgressColumn, ...]:
    name, status = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[status]}"))
    return name, BarColumn(), status, TimeRemainingColumn()
