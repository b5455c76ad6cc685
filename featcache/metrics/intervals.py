"""How far each number of `metrics.evaluate` would move with other rows of the same kind: 95 % percentile bootstrap.

Rows are drawn with replacement as often as there are rows, the number is computed again, and the interval runs from
the 2.5th to the 97.5th percentile of 1,000 such numbers (Efron and Tibshirani, "An Introduction to the Bootstrap",
1993, chapter 13). Where rows come in groups (images of one patient) whole groups are drawn: rows that say the same
thing twice are no second witness.

A resample is a vector of row weights, so that all of them together are a few sums and one sort per class: 1,000 of
5,000 rows and two classes take 0.3 s, 12 s if the rows are repeated and evaluated one resample after the other. What a
row contributes is defined in `metrics`, once.

Its limits: the training is not repeated, so an interval is about the rows and not about the seed; a number at its end
(every row right) is the same in every resample, so shares of two classes have exact binomial bounds there, and other
numbers an interval of no width; and resampling adds noise of its own to the bins, by which `ece` mostly grows: for 300
rows of a well calibrated head, 39 of 100 intervals lay wholly above the number itself.

Two heads are compared on the same rows by the same resamples: the statistic is the difference of their numbers, so that
rows which are hard for both count for neither. DeLong's test is of AUROC alone and knows no groups: it is not used.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import binomtest

from featcache import metrics

Array = np.ndarray[Any, Any]
Intervals = dict[str, tuple[float, float]]
Numbers = dict[str, Array]  # (r,) each, one per resample, NaN where it does not exist
Differences = dict[str, tuple[float, float, float]]  # the difference, and from where to where its interval goes

COMPARED = ("auroc", "accuracy", "balanced_accuracy", "recall", "specificity", "f1")
BLOCK_BYTES = 64 * 2**20
_COPIES = 8  # arrays as large as the weights that are alive at once
_PERCENTILES = (2.5, 97.5)


def bootstrap(
    labels: Array,
    logits: Array,
    positive: int,
    *,
    threshold: float | None = None,
    groups: Array | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Intervals:
    """(low, high) of each of `metrics.SCALARS` that `metrics.evaluate` gives for these rows.

    Args:
        labels: (n,) class indices; n may not be 0.
        logits: (n, c).
        positive: as in `metrics.evaluate`.
        threshold: as in `metrics.evaluate`; it is held fixed.
        groups: (n,) group numbers; None draws single rows.
        n_resamples: how many.
        seed: the same seed gives the same intervals.

    Returns:
        No key for a number that does not exist on these rows. Resamples in which it does not exist are left out, and
        the percentiles are of the rest. Of two classes, accuracy, recall, specificity and precision that are 0 or 1,
        and so the same in every resample, have exact binomial bounds (Clopper and Pearson 1934), each group a trial.

    Raises:
        ValueError: a threshold for more than two classes.
    """
    rows = _Rows.of(labels, logits, positive, threshold)
    found = _percentiles([rows.numbers(w) for w in _resamples(len(labels), groups, n_resamples, seed)])
    if logits.shape[1] > 2:
        return found
    unit = np.arange(len(labels)) if groups is None else groups
    exact = _all_or_none(labels, metrics.decisions(logits, positive, threshold), positive, unit)
    return found | {name: bounds for name, bounds in exact.items() if name in found}


def _all_or_none(labels: Array, called: Array, positive: int, unit: Array) -> Intervals:
    """Exact bounds of the shares of rows of which all are called right, or none."""
    shares = {
        "accuracy": np.ones(len(labels), dtype=bool),
        "recall": labels == positive,
        "specificity": labels != positive,
        "precision": called == positive,
    }
    found = {}
    for name, rows in shares.items():
        right = (called == labels)[rows]
        if len(right) and right.all() == right.any():
            n = len(np.unique(unit[rows]))
            low, high = binomtest(n if right.all() else 0, n).proportion_ci(method="exact")
            found[name] = (float(low), float(high))
    return found


def bootstrap_findings(
    labels: Array,
    logits: Array,
    *,
    thresholds: Sequence[float] | Array | None = None,
    groups: Array | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Intervals:
    """`bootstrap` for the summary of `metrics.evaluate_findings`: a row is drawn with all its findings.

    Args:
        labels: (n, c) of 0.0, 1.0 and NaN for unknown.
        logits: (n, c) scores before independent sigmoids.
        thresholds: (c,) as in `metrics.evaluate_findings`; they are held fixed.
        groups: as in `bootstrap`, as are n_resamples and seed.
    """
    rows = _FindingRows.of(labels, logits, thresholds)
    return _percentiles([rows.numbers(w) for w in _resamples(len(labels), groups, n_resamples, seed)])


def paired(
    labels: Array,
    before: Array,
    after: Array,
    positive: int,
    *,
    thresholds: tuple[float | None, float | None] = (None, None),
    groups: Array | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Differences:
    """By how much the numbers of `after` are above those of `before`, on the same rows.

    The interval is that of `bootstrap` (Efron and Tibshirani 1993, chapter 13), of the difference: both are evaluated
    on each resample.

    Args:
        labels: (n,) class indices; n may not be 0.
        before: (n, c) logits of one head.
        after: (n, c) logits of the other.
        positive: as in `metrics.evaluate`.
        thresholds: of the one and of the other, as in `metrics.evaluate`; they are held fixed.
        groups: as in `bootstrap`, as are n_resamples and seed.

    Returns:
        (difference, low, high) of each of `COMPARED` that exists on these rows.

    Raises:
        ValueError: a threshold for more than two classes.
    """
    heads = [_Rows.of(labels, z, positive, at) for z, at in zip((before, after), thresholds, strict=True)]
    return _differences(heads, len(labels), _resamples(len(labels), groups, n_resamples, seed))


def paired_findings(
    labels: Array,
    before: Array,
    after: Array,
    *,
    groups: Array | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Differences:
    """`paired` for the summary of `metrics.evaluate_findings`, each finding called at 0.5: (n, c) labels of 0.0, 1.0
    and NaN for unknown, and (n, c) scores before independent sigmoids."""
    heads = [_FindingRows.of(labels, z, None) for z in (before, after)]
    return _differences(heads, len(labels), _resamples(len(labels), groups, n_resamples, seed))


def unpaired(before: Mapping[str, Any], after: Mapping[str, Any]) -> Differences:
    """By how much the numbers of `after` are above those of `before`, where the two are of different, independent rows.

    The interval of the difference is recovered from the two intervals (MOVER: Zou and Donner, "Construction of
    confidence limits about effect measures: A general approach", Statistics in Medicine 27, 2008, section 2; for two
    shares it is method 10 of Newcombe, Statistics in Medicine 17, 1998): with d = b - a, its lower end is d minus the
    root of (b - low of b)² + (high of a - a)², and its upper end mirrors that.

    Args:
        before: numbers of some rows by name, with `intervals` by name, as a Run keeps them for each subset.
        after: the same of other rows, of which none, and no group, is among the first.

    Returns:
        (difference, low, high) of each of `metrics.SCALARS` that both have with an interval.
    """
    differences = {}
    for name in metrics.SCALARS:
        ends = [numbers.get("intervals", {}).get(name) for numbers in (before, after)]
        if None not in ends and before.get(name) is not None and after.get(name) is not None:
            a, b = float(before[name]), float(after[name])
            (a_low, a_high), (b_low, b_high) = ends
            low, high = math.hypot(b - b_low, a_high - a), math.hypot(b_high - b, a - a_low)
            differences[name] = (b - a, b - a - low, b - a + high)
    return differences


def weighted(labels: Array, logits: Array, positive: int, weights: Array, threshold: float | None = None) -> Numbers:
    """`metrics.SCALARS` of rows that count several times.

    Args:
        labels: (n,) class indices.
        logits: (n, c).
        positive: as in `metrics.evaluate`, as is `threshold`.
        weights: (r, n) how often each row counts, whole numbers from 0.
        threshold: see `positive`.

    Returns:
        (r,) per number: what `metrics.evaluate` gives for the rows repeated that often; NaN for its None.
    """
    return _Rows.of(labels, logits, positive, threshold).numbers(weights.astype(np.float64))


def weighted_findings(
    labels: Array, logits: Array, weights: Array, thresholds: Sequence[float] | Array | None = None
) -> Numbers:
    """`weighted` for the summary of `metrics.evaluate_findings`: (n, c) labels and logits, (r, n) weights."""
    return _FindingRows.of(labels, logits, thresholds).numbers(weights.astype(np.float64))


# --- resamples --------------------------------------------------------------------------------------------------------


def _resamples(n: int, groups: Array | None, n_resamples: int, seed: int) -> Iterator[Array]:
    """Blocks of (r, n) row weights, small enough that everything made of a block fits in `BLOCK_BYTES`."""
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]  # (n,) what is drawn as one
    n_units = int(unit.max()) + 1
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_BYTES // (_COPIES * 8 * n))
    for start in range(0, n_resamples, block):
        r = min(block, n_resamples - start)
        drawn = rng.integers(n_units, size=(r, n_units)) + np.arange(r)[:, None] * n_units
        times = np.bincount(drawn.ravel(), minlength=r * n_units).reshape(r, n_units).astype(np.float64)
        yield times if groups is None else np.take(times, unit, axis=1)


def _differences(heads: Sequence["_Rows | _FindingRows"], n: int, resamples: Iterator[Array]) -> Differences:
    def less(weights: Array) -> Numbers:
        before, after = (head.numbers(weights) for head in heads)
        return {name: after[name] - before[name] for name in COMPARED}

    at, spread = less(np.ones((1, n))), _percentiles(list(map(less, resamples)), COMPARED)
    return {name: (float(at[name][0]), *ends) for name, ends in spread.items()}


def _percentiles(blocks: list[Numbers], names: Sequence[str] = metrics.SCALARS) -> Intervals:
    """A number that a resample has exists on all rows too, so no interval is without its number."""
    found = {}
    for name in names:
        values = np.concatenate([block[name] for block in blocks])
        values = values[np.isfinite(values)]
        if len(values):
            low, high = np.percentile(values, _PERCENTILES)
            found[name] = (float(low), float(high))
    return found


# --- the numbers of many weightings at once ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """What each of n rows adds to the sums from which the numbers are made."""

    n_classes: int
    counted: list[int]
    sums: csr_array  # (3 c + 2 + bins, n)
    rankings: list["_Ranking"]  # of the counted classes

    @classmethod
    def of(cls, labels: Array, logits: Array, positive: int, threshold: float | None) -> "_Rows":
        n, n_classes = logits.shape
        predicted = metrics.decisions(logits, positive, threshold)
        confidence, right = metrics.confidences(labels, logits, positive)
        hit = np.flatnonzero(predicted == labels)
        every = np.arange(n)
        first_bin = 3 * n_classes + 2
        entries = [  # (row of `sums`, row of the data, value)
            (labels[hit], hit, np.ones(len(hit))),
            (n_classes + predicted, every, np.ones(n)),
            (2 * n_classes + labels, every, np.ones(n)),
            (np.full(n, 3 * n_classes), every, metrics.cross_entropies(labels, logits)),
            (np.full(n, 3 * n_classes + 1), every, metrics.squared_errors(labels, logits, positive)),
            (first_bin + metrics.bin_numbers(confidence), every, right - confidence),
        ]
        where, row, value = (np.concatenate(column) for column in zip(*entries, strict=True))
        sums = csr_array((value, (where, row)), shape=(first_bin + metrics.N_BINS, n))
        counted = metrics.counted(n_classes, positive)
        rankings = [_Ranking.of(labels == c, metrics.log_odds(logits, c)) for c in counted]
        return cls(n_classes, counted, sums, rankings)

    def numbers(self, weights: Array) -> Numbers:
        """(r,) each of `metrics.SCALARS` from (r, n) weights."""
        sums = self.sums @ weights.T
        hits, called, present, rest = np.split(sums, np.arange(1, 4) * self.n_classes)  # (c, r) each
        total = present.sum(axis=0)
        areas = [ranking.areas(weights) for ranking in self.rankings]
        return {
            "loss": _ratio(rest[0], total),
            "accuracy": _ratio(hits.sum(axis=0), total),
            "balanced_accuracy": _mean_of_those_there(_ratio(hits, present)),
            **_from_counts(hits[self.counted], called[self.counted], present[self.counted], total),
            "auroc": _mean_of_those_there(np.stack([auroc for auroc, _ in areas])),
            "auprc": _mean_of_those_there(np.stack([auprc for _, auprc in areas])),
            "brier": _ratio(rest[1], total),
            "ece": _ratio(np.abs(rest[2:]).sum(axis=0), total),
        }


@dataclass(frozen=True)
class _FindingRows:
    """A `_Rows` per finding, over the rows where it is known."""

    known: list[Array]  # row numbers
    findings: list[_Rows]

    @classmethod
    def of(cls, labels: Array, logits: Array, thresholds: Sequence[float] | Array | None) -> "_FindingRows":
        cuts = np.full(logits.shape[1], 0.5) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
        known = [np.flatnonzero(~np.isnan(column)) for column in labels.T]
        truth = [column[rows].astype(np.int64) for column, rows in zip(labels.T, known, strict=True)]
        two = [metrics.two_columns(column[rows]) for column, rows in zip(logits.T, known, strict=True)]
        findings = [_Rows.of(y, z, 1, float(cut)) for y, z, cut in zip(truth, two, cuts, strict=True)]
        return cls(known, findings)

    def numbers(self, weights: Array) -> Numbers:
        """(r,) each of `metrics.SCALARS` from (r, n) weights."""
        totals, numbers = [], []
        for known, finding in zip(self.known, self.findings, strict=True):
            w = np.take(weights, known, axis=1)
            numbers.append(finding.numbers(w))
            totals.append(w.sum(axis=1))
        summary = {name: _mean_of_those_there(np.stack([f[name] for f in numbers])) for name in metrics.SCALARS}
        losses = np.nan_to_num(np.stack([f["loss"] for f in numbers]))  # of no known row: weighs nothing
        return {**summary, "loss": _ratio((losses * totals).sum(axis=0), np.sum(totals, axis=0))}


@dataclass(frozen=True)
class _Ranking:
    """Rows from the highest score to the lowest; rows of one score stand or fall together.

    Only the m scores that a positive row has are looked at: AUROC and average precision are both means over positives.
    """

    order: Array  # (n,) row numbers
    positives: Array  # (p,) row numbers, in that order
    firsts: Array  # (m,) places in `positives` where another score begins
    starts: Array  # (m,) the first and
    ends: Array  # (m,) the last place in `order` with each score

    @classmethod
    def of(cls, truth: Array, scores: Array) -> "_Ranking":
        order = np.argsort(-scores, kind="stable")
        positives = order[truth[order]]
        values, firsts = np.unique(-scores[positives], return_index=True)
        starts, ends = (np.searchsorted(-scores[order], values, side=side) for side in ("left", "right"))
        return cls(order, positives, firsts, starts, ends - 1)

    def areas(self, weights: Array) -> tuple[Array, Array]:
        """AUROC and average precision, (r,) each, from (r, n) weights.

        AUROC is the share of pairs of a positive and a negative row in which the positive one scores higher, a tie
        counting half (Hanley and McNeil, 1982). Average precision is the mean, over the positive rows, of the precision
        at their score, as sklearn.metrics.average_precision_score.
        """
        ranked = np.take(weights, self.order, axis=1)
        np.cumsum(ranked, axis=1, out=ranked)
        present = np.take(weights, self.positives, axis=1)
        n_present = present.sum(axis=1)
        n_absent = weights.sum(axis=1) - n_present
        if len(self.firsts) < len(self.positives):
            present = np.add.reduceat(present, self.firsts, axis=1)
        hits, called = np.cumsum(present, axis=1), np.take(ranked, self.ends, axis=1)  # (r, m) down to each score
        above = np.take(ranked, np.maximum(self.starts - 1, 0), axis=1) * (self.starts > 0)  # (r, m)
        alarms = (called + above + present) / 2 - hits  # negatives above each score, half of those at it
        pairs = np.einsum("rm,rm->r", present, n_absent[:, None] - alarms)
        shares = np.einsum("rm,rm->r", present, hits / np.maximum(called, 1.0))
        exists = (n_present > 0) & (n_absent > 0)
        return _ratio(pairs, exists * n_present * n_absent), _ratio(shares, exists * n_present)


def _from_counts(hits: Array, called: Array, present: Array, total: Array) -> Numbers:
    """Means over k classes, (r,) each, from (k, r) counts and the (r,) number of rows; of those that have a row."""
    absent = total - present
    precision = np.where(present > 0, _ratio(hits, np.maximum(called, 1.0)), np.nan)
    f1 = np.where(present > 0, _ratio(2 * hits, called + present), np.nan)
    return {
        "precision": _mean_of_those_there(precision),
        "recall": _mean_of_those_there(_ratio(hits, present)),
        "f1": _mean_of_those_there(f1),
        "specificity": _mean_of_those_there(_ratio(absent - (called - hits), absent)),
    }


def _ratio(part: Array, whole: Array) -> Array:
    """NaN for 0/0."""
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0))


def _mean_of_those_there(values: Array) -> Array:
    """(r,) means over the k of (k, r) that are not NaN; NaN where none is."""
    there = np.isfinite(values)
    return _ratio(np.where(there, values, 0.0).sum(axis=0), there.sum(axis=0))
