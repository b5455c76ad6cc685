"""A Run row by row: which images, their labels, what the Run made of them, as its own files say. Computes no logits.

Probabilities are those of `predictions.csv`; their logarithms serve as logits, which give the same softmax, the same
order and the same numbers. Labels, groups and folds are those of `images.json` and `split.json`.
Letters: n rows of a side, c classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np

from featcache.errors import UsageError
from featcache.identity import Json
from featcache.names import printable
from featcache.reporting import checking
from featcache.runs import Run
from featcache.runs.evaluation import Evaluation
from featcache.runs.subsets import EXTERNAL, OUTER, SUBSETS, TEST, TRAIN, VAL, Subset, subsets_of
from featcache.splits.protocol import Protocol
from featcache.splits.task import Task

Array = np.ndarray[Any, Any]

SIDES = SUBSETS
CALLED = {TRAIN: "training", VAL: "validation", OUTER: "outer folds", TEST: "test", EXTERNAL: "external"}


@dataclass(frozen=True)
class RunView:
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
    sides: Mapping[str, Subset]

    @classmethod
    def of_evaluation(cls, evaluation: Evaluation, name: str, slug: str) -> Self:
        """Reads an evaluation, whose rows are those of a set from elsewhere.

        Raises:
            UsageError: a later featcache made it. CorruptStore: a file of it is damaged.
        """
        run = evaluation.folder
        checking.check_evaluation(run)
        task, protocol = run.task(), evaluation.protocol()
        return cls(run, printable(name), slug, task, protocol, subsets_of(run, task, protocol))

    @classmethod
    def of(cls, run: Run, name: str, slug: str) -> Self:
        """Reads a Run.

        Raises:
            UsageError: an earlier featcache made it. CorruptStore: a file of it is damaged.
        """
        checking.check(run)
        task, protocol = run.task(), run.protocol()
        sides = subsets_of(run, task, protocol)
        return cls(run, printable(name), slug, task, protocol, sides)

    @property
    def record(self) -> Json:
        return self.run.record

    @property
    def is_external(self) -> bool:
        """Whether it is an evaluation: rows of a set from elsewhere, of which nothing was learnt."""
        return EXTERNAL in self.sides

    @property
    def reported(self) -> str:
        """The side whose numbers are the result: rows that chose nothing where there are such."""
        return next(side for side in (EXTERNAL, TEST, OUTER, VAL) if side in self.sides)

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
    def printable_names(self) -> list[str]:
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
        subset, labels = self.sides[side], self.labels(side)
        if not self.task.has_findings:
            return np.asarray(subset.called != labels)
        return np.asarray(((subset.called != labels) & np.isfinite(labels)).any(axis=1))

    def heads(self, rows: Array) -> list[tuple[Array, Mapping[str, Array]]]:
        """The heads that scored n rows of the reported side, each with (n,) bool which of them. None where they were
        not kept: of outer folds, of `fine_tune` in folds, of a head that learnt from its validation rows in the end."""
        folds, is_refitted = self.protocol.folds, self.record["asked"].get("refit_all", False)
        if self.reported == TEST or (self.reported == VAL and self.protocol.is_hold_out and not is_refitted):
            return [(np.ones(len(rows), dtype=bool), self.run.weights())]
        if not (kept := self.run.fold_weights() if self.reported == VAL else []):
            return []
        held_by = np.array([next(i for i, fold in enumerate(folds) if row in fold.val) for row in rows.tolist()])
        return [(held_by == i, head) for i, head in enumerate(kept)]

    def training_rows(self, side: str, row: int) -> Array:
        """The rows that the head learnt from which scored a row of this side: those of its fold, where it has one."""
        if side in (VAL, OUTER):
            return next((fold.train for fold in self.protocol.folds if row in fold.val), self.sides[TRAIN].rows)
        rows = self.sides[TRAIN].rows
        return np.asarray(rows[rows != row])


def views_of(runs: Sequence[Run | Evaluation]) -> list[RunView]:
    """The Runs and evaluations, each with a name and a part of a file's name of its own.

    Raises:
        UsageError: none, one twice, or one of an earlier featcache. CorruptStore: a file is damaged.
    """
    places = [run.path.resolve() for run in runs]
    if not runs or len(set(places)) < len(places):
        raise UsageError("give the Runs to report, each once.")
    names = [place.name for place in places]
    views = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True), start=1):
        unique = name if names.count(name) == 1 else f"{name} ({i})"
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in name)[:60]
        slug = plain if len(runs) == 1 else f"{i}-{plain}"
        if isinstance(run, Evaluation):
            views.append(RunView.of_evaluation(run, unique, slug))
        else:
            views.append(RunView.of(run, unique, slug))
    return views
