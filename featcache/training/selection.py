"""Specs are tried on folds and ranked by what the held rows say. No row of `test` is in a fold.

A spec is scored by its mean over folds and seeds; ties go to the first. Letters: n rows, c classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from featcache import metrics
from featcache.errors import UsageError
from featcache.heads.features import clean, scored, tap_of
from featcache.heads.jobs import Fit, Fitted, Pool
from featcache.heads.mlp import feature_scale
from featcache.heads.optim import Targets
from featcache.heads.solvers import solve_all
from featcache.heads.training import fit_all
from featcache.metrics import intervals
from featcache.specs import HeadSpec
from featcache.splits import Fold
from featcache.splits.protocol import Protocol, watch_rows
from featcache.splits.task import Task

Array = np.ndarray[Any, Any]
Numbers = dict[str, Any]
Progress = Callable[[int, int], None]

SHOWN = ("auroc", "accuracy", "balanced_accuracy", "f1", "loss")
_NONE = np.array([], dtype=np.int64)


def numbers(task: Task, rows: Array, logits: Array, threshold: float | None = None) -> Numbers:
    """Everything said about some rows: `metrics.evaluate`, or `evaluate_findings` where there are several."""
    if task.has_findings:
        return metrics.evaluate_findings(task.labels[rows], logits)
    return metrics.evaluate(task.labels[rows], logits, task.positive, threshold)


def spread(
    task: Task, protocol: Protocol, rows: Array, logits: Array, threshold: float | None = None
) -> dict[str, list[float]]:
    """95 % intervals of `numbers`; rows of one group are one witness."""
    groups = protocol.groups[rows]
    if task.has_findings:
        scores = intervals.evaluate_findings(task.labels[rows], logits, groups=groups)
    else:
        scores = intervals.evaluate(task.labels[rows], logits, task.positive, threshold=threshold, groups=groups)
    return {name: [float(low), float(high)] for name, (low, high) in scores.items()}


def change(
    task: Task,
    protocol: Protocol,
    rows: Array,
    before: Array,
    after: Array,
    thresholds: tuple[float | None, float | None] = (None, None),
) -> dict[str, list[float]]:
    """What `after` has above `before` on the same rows: [difference, low, high] of each of `intervals.COMPARED`; rows
    of one group are one witness.

    Args:
        task: labels.
        protocol: groups.
        rows: n numbers of rows.
        before: (n, c) logits of one head.
        after: (n, c) logits of the other.
        thresholds: thresholds of the first and the second, for two classes.
    """
    labels, groups = task.labels[rows], protocol.groups[rows]
    if task.has_findings:
        changes = intervals.paired_findings(labels, before, after, groups=groups)
    else:
        changes = intervals.paired(labels, before, after, task.positive, thresholds=thresholds, groups=groups)
    return {name: list(numbers) for name, numbers in changes.items()}


@dataclass(frozen=True)
class Candidate:
    """A spec and what the held rows said of it.

    Attributes:
        spec: the spec with the first of its seeds.
        scores: the selection metric by seed, then by fold; larger is better; -inf where training diverged.
        means: means of the metrics in `SHOWN`.
    """

    spec: HeadSpec
    scores: list[float]
    means: dict[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))


@dataclass(frozen=True)
class Bench:
    """What heads are tried on: the features on their device, the labels, and the division of the rows.

    Attributes:
        task: names and labels.
        protocol: the rows.
        x: features by tap, as `vectors.load` gives them.
        targets: the task's labels, and further labellings where there are any.
        tta: a row is scored by the mean of the logits of its image as it is and of its views.
    """

    task: Task
    protocol: Protocol
    x: Mapping[str, torch.Tensor]
    targets: Targets
    tta: bool = False

    def fits(self, specs: Sequence[HeadSpec], folds: Sequence[Fold]) -> list[Fit]:
        """Every spec on every fold, folds changing fastest."""
        rows = np.unique(np.concatenate([fold.train for fold in folds]))
        pool = Pool(rows, float(np.mean([len(fold.train) for fold in folds])) / len(rows), self.protocol.seed)
        watched: dict[int, tuple[Array, Array]] = {}
        if any(spec.needs_watch for spec in specs):
            for i, fold in enumerate(folds):
                watched[i] = watch_rows(self.task, self.protocol.groups, fold.train, self.protocol.seed)
        fits = []
        for spec in specs:
            for i, fold in enumerate(folds):
                train, watch = watched[i] if spec.needs_watch else (fold.train, _NONE)
                fits.append(Fit(spec, pool, train, fold.val, watch))
        return fits

    def run(
        self,
        fits: Sequence[Fit],
        *,
        curves: bool = False,
        weights: bool = True,
        on_progress: Progress = lambda done, total: None,
    ) -> list[Fitted]:
        """Trains or solves, whatever the kinds; in the order of `fits`. Curves, weights and progress are for trained
        kinds, as in `fit_all`."""
        options: dict[str, Any] = {"tta": self.tta}
        results: dict[int, Fitted] = {}
        groups: dict[tuple[str, bool], list[int]] = {}
        for i, fit in enumerate(fits):
            groups.setdefault((tap_of(fit.spec), fit.spec.is_trained), []).append(i)
        for (tap, is_trained), members in groups.items():
            members_fits = [fits[i] for i in members]
            if is_trained:
                more: dict[str, Any] = {"curves": curves, "weights": weights, "on_progress": on_progress}
                trained = fit_all(members_fits, self.x[tap], self.targets, **options, **more)
            else:
                trained = solve_all(members_fits, self.x[tap], self.targets, **options)
            results.update(zip(members, trained, strict=True))
        return [results[i] for i in range(len(fits))]

    def scored(self, spec: HeadSpec, rows: Array) -> Array:
        """What a head scores some rows by: (r, d), or (r, 1 + K, d) of which the logits are averaged."""
        x = scored(self.x[tap_of(spec)], self.tta)
        return x[torch.from_numpy(rows).to(x.device)].cpu().numpy()

    def rms(self, fit: Fit) -> float:
        """The root mean square of the vectors that a head learns from, by which the scale "rms" divides; 1 where all
        are 0."""
        x = self.x[tap_of(fit.spec)]
        train = torch.from_numpy(fit.train).to(x.device)
        return float(feature_scale(x if fit.spec.augmentations else clean(x), [train], "rms").divisor)


def rank(
    bench: Bench,
    specs: Sequence[HeadSpec],
    groups: Sequence[Sequence[Fold]],
    select: str,
    on_progress: Progress = lambda done, total: None,
) -> list[list[Candidate]]:
    """For each group of folds the specs from best to worst, all trained together.

    Specs that differ in their seed alone are one candidate.
    """
    folds = [fold for group in groups for fold in group]
    fitted = bench.run(bench.fits(specs, folds), weights=False, on_progress=on_progress)
    of_spec = {spec: fitted[i * len(folds) : (i + 1) * len(folds)] for i, spec in enumerate(specs)}
    ranked, start = [], 0
    for group in groups:
        part = {spec: trained[start : start + len(group)] for spec, trained in of_spec.items()}
        ranked.append(_ranked(bench, part, select))
        start += len(group)
    return ranked


def _ranked(bench: Bench, fitted: Mapping[HeadSpec, Sequence[Fitted]], select: str) -> list[Candidate]:
    seeds: dict[HeadSpec, list[HeadSpec]] = {}
    for spec in fitted:
        seeds.setdefault(replace(spec, seed=0), []).append(spec)
    candidates = []
    for members in seeds.values():
        ranking = [_trial(bench, fit_result) for spec in members for fit_result in fitted[spec]]
        means = {name: _mean([trial.get(name) for trial in ranking]) for name in SHOWN}
        scores = [_score(trial, select) for trial in ranking]
        candidates.append(Candidate(members[0], scores, {k: v for k, v in means.items() if v is not None}))
    ranked = sorted(candidates, key=lambda candidate: -candidate.mean)
    if ranked[0].mean == -np.inf and any(candidate.means for candidate in ranked):
        raise UsageError(
            f"{select} does not exist on validation rows of one class, so it ranks nothing. Choose `select`=loss, or "
            f"other validation rows with `val_fraction` or `n_splits`."
        )
    return ranked


def _trial(bench: Bench, fitted: Fitted) -> Numbers:
    return {} if fitted.diverged else numbers(bench.task, fitted.fit.val, fitted.logits)


def _score(scores: Numbers, select: str) -> float:
    """Larger is better. A head that diverged, or rows on which the metric does not exist, are worth nothing."""
    value = scores.get(select)
    if value is None:
        return -np.inf
    return -float(value) if select == "loss" else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


def out_of_fold(n: int, fitted: Sequence[Fitted]) -> tuple[Array, Array]:
    """(rows, logits): each held row's logits by the heads that have not seen it, averaged over repeats.

    Args:
        n: rows of the store.
        fitted: one head on each fold.
    """
    return by_row(n, [(fit_result.fit.val, fit_result.logits) for fit_result in fitted])


def by_row(n: int, parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """(rows, logits) of several (rows, logits), ascending; where a row is in more than one, their mean."""
    total, times = np.zeros((n, parts[0][1].shape[1])), np.zeros(n, dtype=np.int64)
    for rows, logits in parts:
        total[rows] += logits
        times[rows] += 1
    rows = np.flatnonzero(times)
    return rows, (total[rows] / times[rows, None]).astype(np.float32)


def check_finite(fitted: Sequence[Fitted]) -> None:
    """Raises UsageError where a head has diverged."""
    if any(fit_result.diverged for fit_result in fitted):
        raise UsageError("the training diverged: its numbers are not finite. Lower `lr`.")
