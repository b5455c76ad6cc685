"""The numbers of a set for each value of a column: each site, each view, each sex.

They are those of the whole set, of fewer rows. An interval of a handful of patients would say more than they know:
below ten of them the numbers stand without one, and the reason beside them.
Letters: n rows of the set.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.runs import Table, rounded
from featcache.specs import TargetSpec
from featcache.splits.task import Rows, label_texts
from featcache.tables.table import read_table
from featcache.training.results import EXTERNAL, Scored

Array = np.ndarray[Any, Any]

FOLDER = "folder"  # of the name of an image: a column that every set has
MOST_VALUES = 1000  # of a column
MIN_UNITS = 10  # patients, or images where no patients are known
NUMBERS = (
    "auroc", "auprc", "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "loss", "brier",
    "ece",
)  # fmt: skip


@dataclass(frozen=True)
class Subgroup:
    """The numbers of the rows that have one value in a column.

    Attributes:
        value: the text; empty for rows that have none.
        n: rows.
        n_units: groups among them; images, where no groups are known.
        support: rows of each class, or with each finding.
        metrics: as those of the whole set, without intervals where there are fewer than `MIN_UNITS`.
        at_operating_point: the same at the Run's operating point; None without one.
        reasons: why numbers or intervals are absent, in full sentences.
    """

    value: str
    n: int
    n_units: int
    support: list[int]
    metrics: Mapping[str, Any]
    at_operating_point: Mapping[str, Any] | None
    reasons: list[str]


def subgroups(scored: Scored, values: Sequence[str]) -> list[Subgroup]:
    """The subgroups of a set, the largest first.

    Args:
        scored: the set, with its labels, groups and logits.
        values: a text for each row of its task.
    """
    rows, logits = scored.sides[EXTERNAL]
    texts = np.array([values[row] for row in rows.tolist()], dtype=object)
    counted = Counter(texts.tolist())
    order = sorted(counted, key=lambda text: (-counted[text], text))
    return [_subgroup(scored, text, rows[texts == text], logits[texts == text]) for text in order]


def _subgroup(scored: Scored, value: str, rows: Array, logits: Array) -> Subgroup:
    n_units = len(np.unique(scored.protocol.groups[rows]))
    part = replace(scored, sides={EXTERNAL: (rows, logits)}, has_intervals=n_units >= MIN_UNITS)
    point = part.at_operating_point("")[EXTERNAL] if scored.threshold is not None else None
    metrics = part.metrics([])[EXTERNAL]
    if not part.has_intervals:
        metrics, point = {**metrics, "intervals": {}}, {**point, "intervals": {}} if point else None
    support = scored.task.counts(rows).tolist()
    return Subgroup(
        value, len(rows), n_units, support, metrics, point, list(_reasons(scored, support, len(rows), n_units))
    )


def _reasons(scored: Scored, support: Sequence[int], n: int, n_units: int) -> Iterator[str]:
    classes = scored.task.classes
    if not scored.task.has_findings and max(support) == n:
        yield f"All images are {classes[int(np.argmax(support))]!r}: there is no AUROC."
    if n_units < MIN_UNITS:
        units = ("image" if n_units == n else "group") + "s" * (n_units != 1)
        yield f"{n_units} {units} {'is' if n_units == 1 else 'are'} too few for intervals, which need {MIN_UNITS}."


def values_of(rows: Rows, name: str, file: Any, on: str) -> list[str]:
    """One text per image: from a column of the set, from the CSV with the labels, or the folder in its name.

    Raises:
        UsageError: there is no such column, or it has too many values.
    """
    texts = _texts(rows, name, file, on)
    if (n := len(set(texts))) > MOST_VALUES:
        raise UsageError(
            f"{rows.path}: column {name!r} has {n:,} values, and subgroups are at most {MOST_VALUES:,}. Name a column "
            f"of sites, views or the like."
        )
    return texts


def _texts(rows: Rows, name: str, file: Any, on: str) -> list[str]:
    if name in rows.columns:
        return rows.columns[name]
    if name == FOLDER:
        return [image_id.rpartition("/")[0] for image_id in rows.image_ids]
    joined = list(read_table(file).columns) if file else []
    if name not in joined:
        there = sorted({*rows.columns, FOLDER, *joined} - {"", "path"})
        raise UsageError(f"{rows.path} has no column {name!r} to take subgroups by; it has {', '.join(there)}.")
    (texts,), _ = label_texts(rows, TargetSpec((name,), file, on))
    return texts


def table(by: Mapping[str, Sequence[Subgroup]], classes: Sequence[str]) -> Table:
    """The rows of `subgroups.csv`: one for each subgroup and number."""
    header = ["column", "value", "n", "groups", *(f"n_{name}" for name in classes), "called_from", "number", "estimate",
              "low", "high", "reason"]  # fmt: skip
    rows: list[list[object]] = []
    for column, members in by.items():
        for member in members:
            about = [column, member.value, member.n, member.n_units, *member.support]
            for at, numbers in (("0.5", member.metrics), ("operating point", member.at_operating_point)):
                reasons = " ".join(member.reasons)
                rows += [[*about, at, name, *_estimate(numbers, name), reasons] for name in NUMBERS if numbers]
    return header, rounded(rows)


def _estimate(numbers: Mapping[str, Any] | None, name: str) -> list[object]:
    numbers = numbers or {}
    low, high = numbers.get("intervals", {}).get(name) or ("", "")
    value = numbers.get(name)
    return ["" if value is None else value, low, high]
