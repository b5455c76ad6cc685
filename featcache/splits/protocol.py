"""Which rows are learnt from, which choose, and which report: drawn before anything is trained.

Rows of `test` are read at the very end. All others are dealt out into folds (a hold-out is one fold): a head learns
from a fold's training rows and its held rows choose between specs. Where something has to be watched while a head
trains, a tenth of its own training rows is kept aside for that. A group, identical images, and near-duplicates where
asked for, are never on two sides of anything.
Letters: n rows, m labelled rows that are not test.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache import durable
from featcache.errors import UsageError, in_our_words
from featcache.specs import SplitSpec
from featcache.splits import plan, unnamed_groups
from featcache.splits.near_duplicates import near_pairs, pair_keys
from featcache.splits.plan import Fold, Split
from featcache.splits.task import Task
from featcache.tables.missing import without_missing

Array = np.ndarray[Any, Any]

DEFAULT_VAL_FRACTION = 0.2
WATCH_FRACTION = 0.1
_NONE = np.array([], dtype=np.int64)


@dataclass(frozen=True)
class Outer:
    """A fold of a nested cross-validation: its own folds lie within its training rows."""

    fold: Fold
    inner: list[Fold]


@dataclass(frozen=True)
class Protocol:
    """A division of rows.

    Attributes:
        test: rows that are read at the very end; may be empty.
        folds: their held rows choose.
        outer: folds around folds, where asked for.
        groups: (n,) group numbers, nothing of which is on two sides.
        left_out: rows that take no part, by reason.
        near: pairs of near-duplicates, (p, 2), and their cosines (p,).
        seed: random seed of the order of batches.
        notes: how rows were kept together, where that is not what it seems.
    """

    test: Array
    folds: list[Fold]
    outer: list[Outer]
    groups: Array
    left_out: dict[str, int]
    near: tuple[Array, Array]
    seed: int
    notes: list[str] = field(default_factory=list)

    @property
    def rows(self) -> Array:
        """The m rows of the folds: everything that may be learnt from."""
        return np.unique(np.concatenate([rows for fold in self.folds for rows in (fold.train, fold.val)]))

    @property
    def is_hold_out(self) -> bool:
        """Whether the first fold's training rows are all that the final head learns from."""
        return len(self.folds) == 1

    def record(self, image_ids: list[str]) -> Any:
        """As `SplitSpec.file` takes it."""
        return plan.to_json(self.test, self.folds, image_ids)


def divide(task: Task, spec: SplitSpec, vectors: Any) -> Protocol:
    """Draws the rows of a task, or takes them as they were given.

    Args:
        task: labels, groups, contents, and the store's own split.
        spec: what is asked.
        vectors: a call that returns the (n, d) features, made only where near-duplicates are asked for.

    Raises:
        UsageError: an unknown group column, a group or identical image on two sides of a given split, too few groups,
            a side without a class; with counts.
    """
    near, kept = _near(spec, vectors), _kept_together(task, spec)
    near_keys = [pair_keys(len(task.image_ids), near[0])] if len(near[0]) else []
    groups = plan.merge_groups(*kept.values(), task.content, *near_keys)
    left_out, notes = dict(task.left_out), _about_groups(task, spec, kept)
    if spec.file is not None:
        test, folds = _from_file(task, spec.file, left_out)
    else:
        try:
            train, val, test = _from_store(task, groups, left_out)
            folds = _folds(task, spec, groups, train, val)
        except UsageError as error:
            if len(kept) == 1:
                raise
            why = f"{' and '.join(kept)} are kept together. {' '.join(notes)} Set group_by='group' to keep only those."
            raise UsageError(f"{error} The values of {why}") from error
    for fold in folds:
        plan.check_nothing_crosses(Split(fold.train, fold.val, test), groups, task.image_ids)
        task.check_learnable(fold.train, "the training rows")
    outer = _outer(task, spec, groups, folds) if spec.nested else []
    return Protocol(test, folds, outer, groups, left_out, near, spec.seed, notes)


def watch_rows(task: Task, groups: Array, train: Array, seed: int) -> tuple[Array, Array]:
    """(learnt from, watched): about a tenth of the training rows, for early stopping and the rate.

    Raises:
        UsageError: too few groups of a class to keep some aside.
    """
    strata = np.full(len(groups), "", dtype=object)
    strata[train] = task.strata(train, groups, 2)
    try:
        kept, watched = plan.carve(strata, groups, train, WATCH_FRACTION, seed)
    except UsageError as error:
        raise UsageError(f"early stopping and plateau keep a tenth of a head's training rows aside: {error}") from error
    task.check_learnable(kept, "the training rows left by early stopping")
    return kept, watched


def _kept_together(task: Task, spec: SplitSpec) -> dict[str, list[str]]:
    """The columns whose values are on one side each: that which is asked for, and the store's own groups."""
    group_column = spec.group_by
    if group_column is not None and group_column not in task.columns:
        raise UsageError(
            f"there is no column {group_column!r} to group by; there are {', '.join(task.columns) or 'none'}."
        )
    names = dict.fromkeys(name for name in (group_column, "group") if name in task.columns)
    kept = {name: without_missing(task.columns[name]) for name in names}
    return {name: values for name, values in kept.items() if any(values)} or {"group": [""] * len(task.image_ids)}


def _about_groups(task: Task, spec: SplitSpec, kept: Mapping[str, Sequence[str]]) -> list[str]:
    """How many sets of rows stay together where two columns join them; or what may be a group where there is none."""
    if len(kept) < 2:
        return [] if spec.group_by or spec.file else unnamed_groups.notes(task.columns, task.image_ids)
    n_values = {name: len({values[row] for row in task.labelled} - {""}) for name, values in kept.items()}
    n_sets = len(np.unique(plan.merge_groups(*kept.values())[task.labelled]))
    if n_sets >= n_values[str(spec.group_by)]:
        return []
    values = " and ".join(f"{n:,} values of {name}" for name, n in n_values.items())
    why = f"some values of group have images of several values of {spec.group_by}, and neither may be in two subsets"
    return [f"{why}: {values} make {n_sets:,} sets of images that stay together."]


def _near(spec: SplitSpec, vectors: Any) -> tuple[Array, Array]:
    if spec.near_duplicates is None:
        return np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)
    return near_pairs(vectors(), spec.near_duplicates)


def _from_store(task: Task, groups: Array, left_out: dict[str, int]) -> tuple[Array, Array, Array]:
    """Labelled rows of the store's own train, val and test; all of them in train where it has no split."""
    known_rows, given_split = task.labelled, task.columns.get("split")
    if given_split is None or not any(given_split):
        return known_rows, _NONE, _NONE
    side = np.array(given_split, dtype=object)
    train, val, test = (known_rows[side[known_rows] == name] for name in (plan.TRAIN, plan.VAL, plan.TEST))
    if unassigned := len(known_rows) - len(train) - len(val) - len(test):
        left_out["no split"] = unassigned
    plan.check_nothing_crosses(Split(train, val, test), groups, task.image_ids)
    if not len(train) and not len(val):
        raise UsageError("the split column leaves no labelled image to train on.")
    return train, val, test


def _folds(task: Task, spec: SplitSpec, groups: Array, train: Array, val: Array) -> list[Fold]:
    pool = np.sort(np.concatenate([train, val]))
    if spec.n_splits is not None:
        strata = task.strata(pool, groups, spec.n_splits)
        return _in_rows(plan.k_folds(strata, groups[pool], spec.n_splits, spec.seed, spec.n_repeats), pool)
    if len(val) and spec.val_fraction is None:
        if not len(train):
            raise UsageError("the split column leaves no labelled image to train on.")
        if spec.n_repeats > 1:
            raise UsageError(
                "the store's own validation rows cannot be drawn again. Give `val_fraction` or `n_splits`."
            )
        return [Fold(train, val, 0, 0)]
    strata, fraction = task.strata(pool, groups, 2), spec.val_fraction
    fraction = DEFAULT_VAL_FRACTION if fraction is None else fraction
    drawn = [plan.hold_out(strata, groups[pool], fraction, (spec.seed + r) % 2**32) for r in range(spec.n_repeats)]
    return [Fold(pool[kept], pool[held_out], r, 0) for r, (kept, held_out) in enumerate(drawn)]


def _in_rows(folds: list[Fold], pool: Array) -> list[Fold]:
    return [Fold(pool[fold.train], pool[fold.val], fold.repeat, fold.number) for fold in folds]


def _outer(task: Task, spec: SplitSpec, groups: Array, folds: list[Fold]) -> list[Outer]:
    """The folds themselves are the outer ones; within the training rows of each, as many folds again."""
    assert spec.n_splits is not None
    outer_folds = []
    for fold in folds:
        strata = task.strata(fold.train, groups, spec.n_splits)
        inner = plan.k_folds(strata, groups[fold.train], spec.n_splits, spec.seed)
        outer_folds.append(Outer(fold, _in_rows(inner, fold.train)))
    return outer_folds


def _from_file(task: Task, path: Path, left_out: dict[str, int]) -> tuple[Array, list[Fold]]:
    if not path.exists():
        raise UsageError(f"{path}: no such file of a split. Every Run has one: split.json.")
    try:
        with in_our_words("reading", path):
            record = json.loads(durable.read_regular(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no saved split: {error}.") from error
    try:
        test, folds, missing = plan.from_json(record, task.image_ids)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if missing:
        left_out["no row in this store"] = missing
    named = np.zeros(len(task.image_ids), dtype=bool)
    for rows in (test, *(rows for fold in folds for rows in (fold.train, fold.val))):
        named[rows] = True
    is_known = np.zeros(len(task.image_ids), dtype=bool)
    is_known[task.labelled] = True
    if unassigned := int((is_known & ~named).sum()):
        left_out["no place in the split"] = unassigned
    kept = [Fold(f.train[is_known[f.train]], f.val[is_known[f.val]], f.repeat, f.number) for f in folds]
    if any(not len(f.train) or not len(f.val) for f in kept):
        raise UsageError(f"{path} leaves a subset without a labelled image.")
    return test[is_known[test]], kept
