"""What a score is worth: the same numbers of a guess, of labels that mean nothing, and of another backbone.

Some data sets are so easy that a network with random weights scores well on them; a reader must be able to see that.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.heads import features
from featcache.specs import HeadSpec
from featcache.splits import Fold
from featcache.splits.task import Task
from featcache.store import Store
from featcache.training.selection import Bench, check_finite, numbers, out_of_fold, spread

Array = np.ndarray[Any, Any]
Numbers = dict[str, Any]

_SAID = ("auroc", "accuracy", "balanced_accuracy", "f1")
_PERCENTILES = (2.5, 97.5)


def majority(task: Task, train: Array, rows: Array) -> Numbers:
    """Always saying how common each class is among the training rows."""
    n_known = np.isfinite(task.labels[train]).sum(axis=0) if task.has_findings else len(train)
    return by_frequency(task, task.counts(train), n_known, rows)


def by_frequency(task: Task, support: Array, n_known: Array | int, rows: Array) -> Numbers:
    """Always saying how common each class is.

    Args:
        task: labels.
        support: (c,) training rows of each class, or that have each finding.
        n_known: number of labelled training rows; (c,) for findings.
        rows: those that are scored.
    """
    if task.has_findings:
        share = (support / n_known).clip(1e-6, 1 - 1e-6)
        logits = np.log(share / (1 - share))
    else:
        logits = np.log(np.maximum(support, 1e-6) / n_known)
    return _summary(numbers(task, rows, np.tile(logits, (len(rows), 1))))


def permuted(bench: Bench, spec: HeadSpec, folds: Sequence[Fold], n_permutations: int) -> Numbers:
    """The same head on training labels that were shuffled, scored on true labels it has not seen: those of the held
    rows of all folds together.

    One shuffling says little: where the classes lie far apart any direction ranks them, well or the wrong way round. So
    it is the mean of many, and the interval holds 95 % of them.
    """
    shuffled = [bench.targets.values[0]]
    for i in range(n_permutations):
        for fold in folds:
            values = bench.targets.values[0].copy()
            values[fold.train] = values[np.random.default_rng(i).permutation(fold.train)]
            shuffled.append(values)
    bench = replace(bench, targets=replace(bench.targets, values=np.stack(shuffled)))
    fits = bench.fits([_unwatched(spec, i) for i in range(n_permutations)], folds)
    fitted = bench.run([replace(fit, labelling=i) for i, fit in enumerate(fits, start=1)], weights=False)
    check_finite(fitted)
    rounds = [fitted[start : start + len(folds)] for start in range(0, len(fitted), len(folds))]
    scores = [numbers(bench.task, *out_of_fold(len(bench.task.image_ids), round_)) for round_ in rounds]
    summary: Numbers = {"n_permutations": n_permutations, "intervals": {}}
    for name in _SAID:
        values = [score[name] for score in scores if score[name] is not None]
        if values:
            summary[name] = float(np.mean(values))
            summary["intervals"][name] = [float(v) for v in np.percentile(values, _PERCENTILES)]
    return summary


def _unwatched(spec: HeadSpec, i: int) -> HeadSpec:
    """The head without what needs watched rows, from initial weights of its own: after few epochs heads that began
    alike rank alike, whatever they learnt."""
    if not spec.is_trained:
        return spec
    schedule = "constant" if spec.schedule == "plateau" else spec.schedule
    return replace(spec, patience=0, schedule=schedule, seed=(spec.seed + i) % 2**32)


def identity_of(path: Path, task: Task, specs: Sequence[HeadSpec] = (), tta: bool = False) -> str:
    """The digest of another store's identity, where it has all rows of this one, and what the heads work on.

    Raises:
        UsageError: it lacks rows, a feature array or views; and whatever opening it raises.
    """
    with Store.open(path) as store:
        there = set(store.image_ids)
        if lacking := [name for name in task.image_ids if name not in there]:
            raise UsageError(
                f"{path} has not all images of this store: {len(lacking):,} lack, the first is {lacking[0]}."
            )
        features.check(store, specs, tta)
        return store.identity_sha256


def other_store(path: Path, bench: Bench, spec: HeadSpec, final: Fold, device: str) -> Numbers:
    """The same head on the same rows of another store, found by their names.

    Args:
        path: a store of the same images, for instance of a backbone with random weights.
        bench: that of this store.
        spec: the head.
        final: what the final head of this store learns from, and the rows it is scored on; no rows for out-of-fold
            scores of the protocol's folds.
        device: as everywhere.
    """
    task, protocol = bench.task, bench.protocol
    with Store.open(path) as store:
        row_of = {name: i for i, name in enumerate(store.image_ids)}
        order = [row_of[name] for name in task.image_ids]
        x = {tap: x[order] for tap, x in features.load(store, [spec], bench.tta, device).items()}
        about = {"store": path.name, "backbone": store.identity.get("backbone", {}), "weights": store.weights_source}
    bench = replace(bench, x=x)
    if len(final.val):
        fitted = bench.run(bench.fits([spec], [final]))
        rows, logits = final.val, fitted[0].logits
    else:
        fitted = bench.run(bench.fits([spec], protocol.folds))
        rows, logits = out_of_fold(len(task.image_ids), fitted)
    check_finite(fitted)
    return {**about, **_summary(numbers(task, rows, logits)), "intervals": spread(task, protocol, rows, logits)}


def _summary(scores: Numbers) -> Numbers:
    return {name: scores[name] for name in _SAID}
