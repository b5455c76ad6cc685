"""A Run row by row: which images, their labels, what the Run made of them, as its own files say. Computes no logits.

Probabilities are those of `predictions.csv`; their logarithms serve as logits, which give the same softmax, the same
order and the same numbers. Labels, groups and folds are those of `images.json` and `split.json`.
Letters: n rows of a side, c classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from featcache import durable
from featcache.errors import CorruptStore, UsageError
from featcache.names import printable
from featcache.provenance import Json
from featcache.report import checking
from featcache.runs import Run
from featcache.runs.protocol import Protocol
from featcache.runs.task import Task
from featcache.training.summary import OUTER, TEST, TRAIN, VAL

Array = np.ndarray[Any, Any]

SIDES = (TRAIN, VAL, OUTER, TEST)
CALLED = {TRAIN: "training", VAL: "validation", OUTER: "outer folds", TEST: "test"}
_LEAST = 1e-300  # a probability of 0 was rounded to it
_ROUNDED = 1e-6  # probabilities are kept with nine digits
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
        likely: the same without an operating point.
    """

    rows: Array
    logits: Array
    p: Array
    called: Array
    likely: Array

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
        checking.check(run)
        task, protocol = run.task(), run.protocol()
        sides = _sides(run, task, protocol)
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
        """The operating point; None where the likelier class is called. Of folds around folds it decides nothing: rows
        that they hold out have chosen it."""
        point = self.record["operating_point"]
        return float(point["threshold"]) if point and point.get(self.reported) else None

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

    def heads(self, rows: Array) -> list[tuple[Array, Mapping[str, Array]]]:
        """The heads that scored n rows of the reported side, each with (n,) bool which of them. None where they were
        not kept: of outer folds, of `fine_tune` in folds, of a head that learnt from its validation rows in the end."""
        folds, is_refitted = self.protocol.folds, self.record["asked"].get("refit_all", False)
        if self.reported == TEST or (self.reported == VAL and self.protocol.is_hold_out and not is_refitted):
            return [(np.ones(len(rows), dtype=bool), self.run.weights())]
        if not (kept := self.run.fold_weights() if self.reported == VAL else []):
            return []
        held_by = np.array([next(i for i, fold in enumerate(folds) if row in fold.held) for row in rows.tolist()])
        return [(held_by == i, head) for i, head in enumerate(kept)]

    def taught(self, side: str, row: int) -> Array:
        """The rows that the head learnt from which scored a row of this side: those of its fold, where it has one."""
        if side in (VAL, OUTER):
            return next((fold.train for fold in self.protocol.folds if row in fold.held), self.sides[TRAIN].rows)
        rows = self.sides[TRAIN].rows
        return np.asarray(rows[rows != row])


def _sides(run: Run, task: Task, protocol: Protocol) -> dict[str, Side]:
    """What `predictions.csv` says, once it is seen to be of these rows and of the numbers of the record."""
    path = run.path / "predictions.csv"
    found = run.table(path.name)
    if found is None:
        raise CorruptStore(f"{path} is gone. Make the Run again.")
    try:
        sides = _parsed(*found, task)
        _check_rows(sides, protocol)
        _check_counts(run, task, sides)
    except (KeyError, ValueError, IndexError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise CorruptStore(f"{path} is damaged: {reason}. Make the Run again.") from error
    is_decided = OUTER not in sides or TEST in sides  # at the operating point, where there is one
    return sides if is_decided else {name: replace(side, called=side.likely) for name, side in sides.items()}


def _parsed(header: Sequence[str], lines: Sequence[Sequence[str]], task: Task) -> dict[str, Side]:
    has_point = _AT in header
    expected = [*_FIRST, *([_AT] if has_point else []), *(durable.cell(f"p_{name}") for name in task.classes)]
    if list(header) != expected:
        raise ValueError("its columns are not those of such a Run")
    row_of = {durable.cell(name): i for i, name in enumerate(task.image_ids)}
    by_side: dict[str, list[Sequence[str]]] = {}
    for line in lines:
        by_side.setdefault(line[1], []).append(line)
    if set(by_side) - set(SIDES) or not {TRAIN, VAL} <= set(by_side):
        raise ValueError(f"its sides are {', '.join(sorted(by_side)) or 'none'}")
    n_first = len(expected) - len(task.classes)
    found = {}
    for side in (side for side in SIDES if side in by_side):
        rows = np.array([row_of[line[0]] for line in by_side[side]])
        p = _probabilities([line[n_first:] for line in by_side[side]], task.has_findings)
        likely, called = _calls(by_side[side], n_first, p, task)
        found[side] = Side(rows, _logits(p, task.has_findings), p, called, likely)
    return found


def _probabilities(cells: Sequence[Sequence[str]], has_findings: bool) -> Array:
    """(n, c) numbers of which those of classes sum to 1, as far as nine digits say."""
    p = np.array(cells, dtype=np.float64)
    if not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
        raise ValueError("it holds what is no probability")
    if not has_findings and np.abs(p.sum(axis=1) - 1).max() > _ROUNDED:
        raise ValueError("probabilities of an image do not sum to 1")
    return p


def _calls(lines: Sequence[Sequence[str]], n_first: int, p: Array, task: Task) -> tuple[Array, Array]:
    """(n,) classes as they are likeliest, and as they were called: the same, but at an operating point."""
    if task.has_findings:
        called = (p >= 0.5).astype(np.int64)
        return called, called
    class_of = {durable.cell(name): i for i, name in enumerate(task.classes)}
    likely, called = (np.array([class_of[line[at]] for line in lines]) for at in (len(_FIRST) - 1, n_first - 1))
    if (p.max(axis=1) - p[np.arange(len(p)), likely] > _ROUNDED).any():
        raise ValueError("an image is called what is not likeliest")
    return likely, called


def _check_rows(sides: Mapping[str, Side], protocol: Protocol) -> None:
    """Each row once on a side, and those of the split."""
    held = np.unique(np.concatenate([fold.held for fold in protocol.folds]))
    expected = {TRAIN: (protocol.folds[0].train, protocol.rows), VAL: (held,), OUTER: (held,), TEST: (protocol.test,)}
    for side, found in sides.items():
        rows = np.sort(found.rows)
        if not any(np.array_equal(rows, np.sort(each)) for each in expected[side]):
            raise ValueError(f"its {side} rows are not those of split.json")
    if (TEST in sides) != (len(protocol.test) > 0):
        raise ValueError("its test rows are not those of split.json")


def _check_counts(run: Run, task: Task, sides: Mapping[str, Side]) -> None:
    """That its decisions are those that the record has counted."""
    point = run.record["operating_point"] or {}
    for side, found in sides.items():
        told = run.record["metrics"].get(side)
        if told is None or told["n"] != len(found):
            raise ValueError(f"its {side} rows are not as many as run.json says")
        for scores, called in ((told, found.likely), (point.get(side), found.called)):
            if scores is None or task.has_findings:
                continue
            c = len(task.classes)
            counts = np.bincount(task.labels[found.rows] * c + called, minlength=c * c).reshape(c, c)
            if counts.tolist() != scores["confusion"]:
                raise ValueError(f"its {side} rows are called otherwise than run.json says")


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
