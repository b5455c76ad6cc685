"""A Run row by row: which images, their labels, what the Run made of them, as its own files say. Computes no logits.

Probabilities are those of `predictions.csv`; their logarithms serve as logits, which give the same softmax, the same
order and the same numbers. Labels, groups and folds are those of `images.json` and `split.json`.
Letters: n rows of a side, c classes.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from featcache import durable, metrics
from featcache.errors import CorruptStore, UsageError, in_our_words
from featcache.names import printable
from featcache.provenance import Json
from featcache.runs import Run
from featcache.runs.protocol import Protocol
from featcache.runs.task import Task
from featcache.training.summary import OUTER, TEST, TRAIN, VAL

Array = np.ndarray[Any, Any]

SIDES = (TRAIN, VAL, OUTER, TEST)
CALLED = {TRAIN: "training", VAL: "validation", OUTER: "outer folds", TEST: "test"}
_LEAST = 1e-300  # a probability of 0 was rounded to it
_RECORD: dict[str, type | tuple[type, ...]] = {
    "task": str, "asked": dict, "head": dict, "heads": list, "metrics": dict, "baselines": dict, "notes": list,
    "left_out": dict, "store": dict, "environment": dict, "identity_sha256": str, "content_sha256": str,
    "n_parameters": int, "seconds": (int, float), "temperature": (int, float, type(None)),
    "operating_point": (dict, type(None)),
}  # fmt: skip
_FIRST = ["image_id", "split", "fold", "label", "prediction"]
_AT = "at_operating_point"


@dataclass(frozen=True)
class Side:
    """Rows of one side, and what the Run made of them.

    Attributes:
        rows: (n,) numbers of rows of the task.
        logits: (n, c), of a softmax over classes or of a sigmoid per finding.
        p: (n, c) probabilities.
        called: (n,) classes they were called, at the operating point where there is one; (n, c) of 0 and 1 for
            findings.
    """

    rows: Array
    logits: Array
    p: Array
    called: Array

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Subject:
    """A Run that is reported.

    Attributes:
        run: the folder.
        name: what the page calls it, different for each.
        slug: the same, as a part of a file's name.
        task: labels of its rows.
        protocol: how they were divided.
        sides: what it made of them, by side.
    """

    run: Run
    name: str
    slug: str
    task: Task
    protocol: Protocol
    sides: Mapping[str, Side]

    @classmethod
    def of(cls, run: Run, name: str, slug: str) -> Self:
        """Reads a Run.

        Raises:
            UsageError: an earlier featcache made it. CorruptStore: a file of it is damaged.
        """
        task, protocol = run.task(), run.protocol()
        sides = _sides(run.path / "predictions.csv", task)
        _check(run, task, sides)
        return cls(run, printable(name), slug, task, protocol, sides)

    @property
    def record(self) -> Json:
        return self.run.record

    @property
    def reported(self) -> str:
        """The side whose numbers are the result: rows that chose nothing where there are such."""
        return next(side for side in (TEST, OUTER, VAL) if side in self.sides)

    @property
    def threshold(self) -> float | None:
        """The operating point; None where the likelier class is called."""
        point = self.record["operating_point"]
        return float(point["threshold"]) if point else None

    @property
    def is_binary(self) -> bool:
        return not self.task.has_findings and len(self.task.classes) == 2

    @property
    def positive(self) -> str:
        return self.classes[self.task.positive]

    @cached_property
    def classes(self) -> list[str]:
        """The classes as they are shown."""
        return [printable(name) for name in self.task.classes]

    @cached_property
    def shown(self) -> list[str]:
        """The names of all rows as they are shown."""
        return [printable(name) for name in self.task.image_ids]

    def scores(self, side: str, at_point: bool = False) -> Json:
        """What the record says of a side: at 0.5, or at the operating point; None where it says nothing."""
        if not at_point:
            return self.run.metrics(side)
        point = self.record["operating_point"]
        return point.get(side) if point else None

    def labels(self, side: str) -> Array:
        """(n,) class numbers, or (n, c) findings."""
        return self.task.labels[self.sides[side].rows]

    def label_of(self, row: int) -> str:
        """The true class of a row, or the findings it has."""
        label = self.task.labels[row]
        if not self.task.has_findings:
            return self.classes[int(label)]
        return ", ".join(name for name, value in zip(self.classes, label, strict=True) if value == 1) or "none"

    def is_error(self, side: str) -> Array:
        """(n,) whether a row was called something else than it is; of findings any that is known."""
        side_, labels = self.sides[side], self.labels(side)
        if not self.task.has_findings:
            return np.asarray(side_.called != labels)
        return np.asarray(((side_.called != labels) & np.isfinite(labels)).any(axis=1))

    def taught(self, side: str, row: int) -> Array:
        """The rows that the head learnt from which scored a row of this side: those of its fold, where it has one."""
        if side in (VAL, OUTER):
            return next((fold.train for fold in self.protocol.folds if row in fold.held), self.sides[TRAIN].rows)
        rows = self.sides[TRAIN].rows
        return np.asarray(rows[rows != row])


def _check(run: Run, task: Task, sides: Mapping[str, Side]) -> None:
    """That the record says what a page shows: of each side every number, as a number."""
    lacking = [name for name, kind in _RECORD.items() if not isinstance(run.record.get(name), kind)]
    for side in sides if not lacking else ():
        found = run.record["metrics"].get(side)
        if not isinstance(found, dict) or not all(_is_number(found.get(name, "")) for name in metrics.SCALARS):
            lacking.append(f"the numbers of {side}")
        elif not task.has_findings and np.shape(found.get("confusion", ())) != (len(task.classes),) * 2:
            lacking.append(f"the confusion of {side}")
    if lacking:
        raise CorruptStore(f"{run.path / 'run.json'} is damaged: it does not say {lacking[0]}. Make the Run again.")


def _is_number(value: Json) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _sides(path: Path, task: Task) -> dict[str, Side]:
    with in_our_words("reading", path):
        if not path.exists():
            raise CorruptStore(f"{path} is gone. Make the Run again.")
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            try:
                header, *lines = list(csv.reader(file))
            except (csv.Error, ValueError) as error:
                raise CorruptStore(f"{path} is damaged: {error}. Make the Run again.") from error
    try:
        return _parsed(header, lines, task)
    except (KeyError, ValueError, IndexError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise CorruptStore(f"{path} is damaged: {reason}. Make the Run again.") from error


def _parsed(header: Sequence[str], lines: Sequence[Sequence[str]], task: Task) -> dict[str, Side]:
    has_point = _AT in header
    expected = [*_FIRST, *([_AT] if has_point else []), *(durable.cell(f"p_{name}") for name in task.classes)]
    if list(header) != expected or any(len(line) != len(expected) for line in lines):
        raise ValueError("its columns are not those of such a Run")
    row_of = {durable.cell(name): i for i, name in enumerate(task.image_ids)}
    class_of = {durable.cell(name): i for i, name in enumerate(task.classes)}
    by_side: dict[str, list[Sequence[str]]] = {}
    for line in lines:
        by_side.setdefault(line[1], []).append(line)
    if set(by_side) - set(SIDES) or not {TRAIN, VAL} <= set(by_side):
        raise ValueError(f"its sides are {', '.join(sorted(by_side)) or 'none'}")
    n_first = len(expected) - len(task.classes)
    found = {}
    for side in (side for side in SIDES if side in by_side):
        p = np.array([line[n_first:] for line in by_side[side]], dtype=np.float64)  # (n, c)
        if not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
            raise ValueError("it holds what is no probability")
        rows = np.array([row_of[line[0]] for line in by_side[side]])
        at = n_first - 1
        if task.has_findings:
            called = (p >= 0.5).astype(np.int64)
        else:
            called = np.array([class_of[line[at]] for line in by_side[side]])
        found[side] = Side(rows, _logits(p, task.has_findings), p, called)
    return found


def _logits(p: Array, has_findings: bool) -> Array:
    logs = np.log(np.maximum(p, _LEAST))
    return logs - np.log(np.maximum(1 - p, _LEAST)) if has_findings else logs


def subjects(runs: Sequence[Run]) -> list[Subject]:
    """The Runs, each with a name and a part of a file's name of its own.

    Raises:
        UsageError: none, one twice, or one of an earlier featcache. CorruptStore: a file is damaged.
    """
    places = [run.path.resolve() for run in runs]
    if not runs or len(set(places)) < len(places):
        raise UsageError("give the Runs to report, each once.")
    names = [place.name for place in places]
    found = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True), start=1):
        unique = name if names.count(name) == 1 else f"{name} ({i})"
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)[:60]
        slug = plain if len(runs) == 1 else f"{i}-{plain}"
        found.append(Subject.of(run, unique, slug))
    return found
