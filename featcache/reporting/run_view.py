"""A Run row by row: images, labels, subsets and predictions, read from the Run's files. Computes no logits.

Probabilities are those of `predictions.csv`; their logarithms serve as logits, which give the same softmax, order and
metrics. Labels, groups and folds are those of `images.json` and `split.json`.
Letters: n rows of a subset, c classes.
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
from featcache.runs.subsets import EXTERNAL, OUTER, TEST, TRAIN, VAL, Subset, subsets_of
from featcache.splits.protocol import Protocol
from featcache.splits.task import Task

Array = np.ndarray[Any, Any]


SUBSET_NAMES = {TRAIN: "training", VAL: "validation", OUTER: "outer folds", TEST: "test", EXTERNAL: "external"}


@dataclass(frozen=True)
class RunView:
    """A Run, or an evaluation, in a report.

    Attributes:
        run: the folder.
        name: unique display name.
        slug: unique part of file names.
        task: labels of the rows.
        protocol: the split.
        subsets: predictions by subset.
    """

    run: Run
    name: str
    slug: str
    task: Task
    protocol: Protocol
    subsets: Mapping[str, Subset]

    @classmethod
    def of_evaluation(cls, evaluation: Evaluation, name: str, slug: str) -> Self:
        """Reads an evaluation on external images.

        Raises:
            UsageError: written by a later featcache. CorruptStore: a file is damaged.
        """
        run = evaluation.folder
        checking.check_evaluation(run)
        task, protocol = run.task(), evaluation.protocol()
        return cls(run, printable(name), slug, task, protocol, subsets_of(run, task, protocol))

    @classmethod
    def of(cls, run: Run, name: str, slug: str) -> Self:
        """Reads a Run.

        Raises:
            UsageError: written by an earlier featcache. CorruptStore: a file is damaged.
        """
        checking.check(run)
        task, protocol = run.task(), run.protocol()
        subsets = subsets_of(run, task, protocol)
        return cls(run, printable(name), slug, task, protocol, subsets)

    @property
    def record(self) -> Json:
        return self.run.record

    @property
    def is_external(self) -> bool:
        """Whether this is an evaluation on external images."""
        return EXTERNAL in self.subsets

    @property
    def reported(self) -> str:
        """The subset whose metrics are the result, preferably one that was not used for selection."""
        return next(subset for subset in (EXTERNAL, TEST, OUTER, VAL) if subset in self.subsets)

    @property
    def threshold(self) -> float | None:
        """The operating point; None for argmax, and for outer folds, whose rows have selected it."""
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
        """Printable class names."""
        return [printable(name) for name in self.task.classes]

    @cached_property
    def printable_names(self) -> list[str]:
        """Printable image_ids of all rows."""
        return [printable(name) for name in self.task.image_ids]

    def scores(self, subset: str, at_point: bool = False) -> Json:
        """The recorded metrics of a subset, at 0.5 or at the operating point; None if there are none."""
        if not at_point:
            return self.run.metrics(subset)
        point = self.record["operating_point"]
        return point.get(subset) if point else None

    def labels(self, subset: str) -> Array:
        """(n,) class numbers, or (n, c) labels of 0, 1 and NaN."""
        return self.task.labels[self.subsets[subset].rows]

    def label_of(self, row: int) -> str:
        """The true class of a row, or its positive labels."""
        label = self.task.labels[row]
        if not self.task.has_findings:
            return self.classes[int(label)]
        return ", ".join(name for name, value in zip(self.classes, label, strict=True) if value == 1) or "none"

    def is_error(self, subset: str) -> Array:
        """(n,) whether a prediction is wrong; multi-label: whether any known label is."""
        predictions, labels = self.subsets[subset], self.labels(subset)
        if not self.task.has_findings:
            return np.asarray(predictions.predicted != labels)
        return np.asarray(((predictions.predicted != labels) & np.isfinite(labels)).any(axis=1))

    def heads(self, rows: Array) -> list[tuple[Array, Mapping[str, Array]]]:
        """The heads that predicted n rows of the reported subset, each with an (n,) mask of its rows. Empty if they
        were not kept: for outer folds, `fine_tune` in folds, and heads refitted on their validation rows."""
        folds, is_refitted = self.protocol.folds, self.record["asked"].get("refit_all", False)
        if self.reported == TEST or (self.reported == VAL and self.protocol.is_hold_out and not is_refitted):
            return [(np.ones(len(rows), dtype=bool), self.run.weights())]
        if not (kept := self.run.fold_weights() if self.reported == VAL else []):
            return []
        fold_of = np.array([next(i for i, fold in enumerate(folds) if row in fold.val) for row in rows.tolist()])
        return [(fold_of == i, head) for i, head in enumerate(kept)]

    def training_rows(self, subset: str, row: int) -> Array:
        """The training rows of the head that predicted a row of this subset."""
        if subset in (VAL, OUTER):
            return next((fold.train for fold in self.protocol.folds if row in fold.val), self.subsets[TRAIN].rows)
        rows = self.subsets[TRAIN].rows
        return np.asarray(rows[rows != row])


def views_of(runs: Sequence[Run | Evaluation]) -> list[RunView]:
    """Reads Runs and evaluations, with unique names and slugs.

    Raises:
        UsageError: no Run, a Run twice, or one of an earlier featcache. CorruptStore: a file is damaged.
    """
    places = [run.path.resolve() for run in runs]
    if not runs or len(set(places)) < len(places):
        raise UsageError("`runs` must name at least one Run, and no Run twice.")
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
