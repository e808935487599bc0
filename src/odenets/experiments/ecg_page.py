"""The page of the ECG experiment: what its numbers say, its sections and its pictures."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from odenets.data.ecg import CLASS_NAMES, CLASSES, ECGData
from odenets.experiments.differences import UNSETTLED
from odenets.experiments.driver import MEAN_AND_RANGE, Row, Trained, groups, histories, listed
from odenets.experiments.ecg_summary import COMPARISON, MATCHED, ODENET, RESNET, class_means, differences, summarise
from odenets.experiments.ecg_tables import ALWAYS, NEIGHBOUR, class_table, main_table, time_table
from odenets.experiments.result import INTRODUCTION, Picture, Section

FILE_NAMES = {RESNET: "resnet", ODENET: "odenet", MATCHED: "odenet-matched"}


def lead(rows: Sequence[Row], base: Sequence[Row], synthetic: bool) -> str:
    """What each split says, then what this is about and what the document reports."""
    kind = "synthetic heartbeats" if synthetic else "heartbeats of the MIT-BIH database"
    splits = dict.fromkeys(row["split"] for row in rows)
    parts = [_finding(*([row for row in group if row["split"] == split] for group in (rows, base))) for split in splits]
    about = (
        f"Networks that differ only in their middle classify {kind}, as in section 5 of {INTRODUCTION}, “the document” "
        "below."
    )
    if not synthetic and "random" in splits:
        about += (
            " It reports, for one run on a random split, a cross entropy of 0.10 (ResNet) and 0.09 (ODE-Net), "
            "and 97.5 % for both."
        )
    return "\n\n".join([*parts, about])


IN_WORDS = {ALWAYS: "calling every beat normal", NEIGHBOUR: "taking the class of the nearest training beat"}


def _finding(rows: Sequence[Row], base: Sequence[Row]) -> str:
    """What one split says: the best network beside the best trivial answer, then the networks beside each other."""
    found = summarise(rows, synthetic=True)
    best, rival = (max(group, key=lambda row: row["accuracy"]) for group in (found, base))
    right, theirs = f"{100 * best['accuracy']:.1f} %", f"{IN_WORDS[rival['network']]} ({100 * rival['accuracy']:.1f} %)"
    ahead = (
        f"the {best['network']} is right about {right} of the test beats, more than {theirs}"
        if best["accuracy"] > rival["accuracy"]
        else f"no network is right about more test beats than {theirs}; the best of them, the {best['network']}, "
        f"about {right}"
    )
    losses = ", ".join(f"{row['network']} {row['test_loss']:.3f}" for row in found)
    return f"{rows[0]['split'].capitalize()} split: {ahead}. Cross entropy: {losses}; {_settled(rows)}."


def _settled(rows: Sequence[Row]) -> str:
    """What the seeds can tell about the cross entropies of the networks."""
    seeds = len({row["seed"] for row in rows})
    if seeds == 1:
        return "one seed, which settles nothing between them"
    paired = [difference for difference in differences(rows) if difference["quantity"] == "test_loss"]
    settled = [d for d in paired if COMPARISON.verdict(d) != UNSETTLED]
    better = [f"{COMPARISON.verdict(d)} is better than {COMPARISON.other(d)}" for d in settled]
    return f"means of {seeds} seeds, by which {listed(better, 'no difference is settled')}"


CLASS_TEXT = f"The five classes of beats: {'; '.join(f'{c} {name}' for c, name in zip(CLASSES, CLASS_NAMES))}."
SPLIT_TEXTS = {
    "random": "Random split, as in the document: beats of one patient stand on both sides, so it mostly measures how "
    "well a network remembers patients; the class of the nearest training beat is already a strong answer.",
    "inter-patient": "Inter-patient split (de Chazal): no record stands on both sides, paced records are left out. It "
    "measures what a clinic would want to know, and is far harder; paced and unclassifiable beats (class Q) are nearly "
    "absent.",
}
COLLAPSED = (
    "A collapsed network calls every beat normal; seeds with one are also left out, since one such number hides all "
    "others."
)


def section(data: ECGData, config: Any, trained: Sequence[Trained], base: Sequence[Row]) -> Section:
    """What one split shows, of a config with `seeds`."""
    rows = [t.row for t in trained]
    found = summarise(rows, data.synthetic)
    tables = [main_table(found, base), class_table(class_means(rows, base), config.seeds), time_table(found)]
    paired = differences(rows)
    if config.seeds > 1:
        tables.insert(1, COMPARISON.table(paired, COLLAPSED))
    return Section(
        f"{data.split.capitalize()} split",
        f"{SPLIT_TEXTS[data.split]}\n\n{CLASS_TEXT}\n\n"
        f"{len(data.train.y):,} beats to learn from, {len(data.test.y):,} to test on. {data.source}",
        tuple(tables),
        tuple(_pictures(data, config.seeds > 1, trained, paired)),
    )


def _pictures(data: ECGData, several: bool, trained: Sequence[Trained], paired: Sequence[Row]) -> Iterator[Picture]:
    from odenets import figures  # noqa: PLC0415 — Matplotlib takes seconds to import

    prefix, records = data.split, histories(trained)
    by_network = groups([t.row for t in trained], ["network"])
    matrices = {name: np.sum([row["confusion"] for row in mine], axis=0) for (name,), mine in by_network.items()}
    yield Picture(
        f"{prefix}-learning-curves",
        "Cross entropy over the epochs (the document's figures 9 and 10)",
        "Training and test cross entropy of each network" + (f": the {MEAN_AND_RANGE}." if several else "."),
        figures.learning_curves(records, label="cross entropy"),
    )
    yield Picture(
        f"{prefix}-time",
        "Test cross entropy over training time",
        "Against seconds instead of epochs: when the ODE-Net reaches what the ResNet ends with.",
        figures.loss_over_time(records, label="test cross entropy"),
    )
    yield Picture(
        f"{prefix}-nfe",
        "Evaluations of f over training",
        "Mean number of evaluations of f in the forward pass of a batch.",
        figures.metric_over_epochs(records, "nfe", "evaluations of f a batch"),
    )
    yield Picture(
        f"{prefix}-seconds",
        "Time an epoch takes",
        "Seconds of training an epoch, without tests.",
        figures.seconds_per_epoch(records),
    )
    yield Picture(
        f"{prefix}-confusion",
        "Confusion matrices",
        f"Rows are the true class, with the share of the row and the count{', all seeds together' * several}. "
        f"{CLASS_TEXT}",
        figures.confusion(matrices, CLASSES),
    )
    for difference in paired:
        if difference["quantity"] == "test_loss" and difference["low"] is not None:
            yield Picture(
                f"{prefix}-difference-{FILE_NAMES[difference['network']]}",
                f"{difference['network']} minus ResNet, seed by seed",
                "Difference of the test cross entropy of equal seeds, with its mean and 95 % confidence interval.",
                figures.seed_differences(
                    difference["values"],
                    (difference["low"], difference["high"]),
                    f"test cross entropy, {difference['network']} − ResNet",
                    difference["seeds"],
                ),
            )
    yield Picture(
        f"{prefix}-beats",
        "What the networks see",
        "The first three training beats of every class, each scaled to 0–1 and filled up with zeros.",
        figures.beats(data.train.x, data.train.y, [f"{c}: {name}" for c, name in zip(CLASSES, CLASS_NAMES)]),
    )
