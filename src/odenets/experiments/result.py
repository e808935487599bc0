"""What an experiment hands over: its answer, its tables and figures, and all that is needed to run it again.

An experiment builds one `Result`; `odenets.report` writes it as a page, figures and a JSON file. Nothing here
knows about files or HTML.
"""

import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell: TypeAlias = str | float | int | None

CPU_INFO = Path("/proc/cpuinfo")
# What the experiments are taken from: the documentation calls it "the document"; a report is read without that.
INTRODUCTION = "“Introduction to Neural Ordinary Differential Equation” by S. Della Bona and E. Dumez (2021)"


def versions() -> dict[str, Any]:
    """What the numbers were made with: odenets, Python, torch, platform, processor, torch's threads."""
    return {
        "odenets": version("odenets"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
    }


def made() -> dict[str, str]:
    """How and when a result was made: the command, the time, and the commit where the code is in a checkout."""
    program, *arguments = sys.argv
    name = Path(program).name or "python"  # an interactive session has no name
    name = "python -m odenets" if name == "__main__.py" else shlex.quote(name)
    found = {
        "command": f"{name} {shlex.join(arguments)}".rstrip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    commit = _commit(Path(__file__).parent)
    return found if commit is None else {**found, "commit": commit}


def _commit(folder: Path) -> str | None:
    """The commit of the checkout that `folder` belongs to, marked where a file was changed; None outside of one.

    An installed package may lie inside of somebody else's checkout: there, git does not know its files.
    """
    git = ["git", "-C", str(folder)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", "."], check=True, capture_output=True, timeout=10)
        describe = [*git, "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=, with changes"]
        return subprocess.run(describe, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    """The processor's name, or its architecture: `platform.processor` is empty on most Linux systems."""
    names = re.search(r"^model name\s*: (.+)$", CPU_INFO.read_text(), re.M) if CPU_INFO.exists() else None
    return names[1] if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Table:
    """Rows under named columns: the first names the row, each other is one quantity and gets equal digits.

    `None` is shown as a dash, `note` stands below the table. Give numbers as numbers, not as text: the report
    chooses the digits. Raises `ValueError` for a row of another length.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self):
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"`rows[{number}]` of table {self.title!r} has {len(row)} cells "
                    f"and `columns` has {len(self.columns)}: "
                    "give one cell for each column, `None` where there is no value"
                )


@dataclass(frozen=True)
class Picture:
    """A figure with its words. `name` is its file's stem, `caption` says what one sees, also to those who
    cannot see it.

    Raises `ValueError` for a name that is not made of lower-case letters, digits and hyphens.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(
                f"`name` of a picture is {self.name!r}: it becomes a file's name, "
                "so use lower-case letters, digits and single hyphens, such as 'learning-curves'"
            )


@dataclass(frozen=True)
class Explained:
    """What a section of the tour says besides: formulas (TeX), code and its output, a claim and what became of it.

    `verdict` says in a word or three whether the claim holds, `finding` in a sentence or more. `more` is the command
    of the experiment with the full numbers. Empty texts are left out.
    """

    formulas: tuple[str, ...] = ()
    code: str = ""
    output: str = ""
    claim: str = ""
    verdict: str = ""
    finding: str = ""
    more: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs of plain text (an empty line between two of them), then tables, then pictures."""

    title: str
    text: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    explained: Explained | None = None


@dataclass(frozen=True)
class Result:
    """Everything an experiment found.

    `lead` answers in one paragraph what was run and what came out. `config` is the configuration as a
    mapping. `source` is a sentence on where the data came from, and `synthetic` says that they are made up:
    then the report says so everywhere. `summary` holds the numbers worth keeping, either name → number or
    network → name → number. `made` (command, date, commit) and `versions` are filled in. Raises `ValueError` where two
    pictures have one name.
    """

    experiment: str
    title: str
    lead: str
    config: Mapping[str, Any]
    source: str
    synthetic: bool
    sections: tuple[Section, ...]
    summary: Mapping[str, Any]
    made: Mapping[str, str] = field(default_factory=made)
    versions: Mapping[str, Any] = field(default_factory=versions)

    def __post_init__(self):
        names = [picture.name for picture in self.pictures()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"`sections` have more than one picture named {twice}: give each picture its own `name`")

    def pictures(self) -> Iterator[Picture]:
        """All pictures of all sections, in order."""
        return (picture for section in self.sections for picture in section.pictures)
