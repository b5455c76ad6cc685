"""How far each number of `scores.evaluate` may be from that of all rows of its kind: 95 % intervals.

Nothing is drawn at random: each number has a standard error and a scale (see `estimates`), so that the same rows have
the same interval, and 6,000 of them cost milliseconds. Rows that come in groups (images of one patient) are one
witness together.

Measured on binormal scores with areas of 0.7 to 0.98, 15 positives of 150, 30 of 600, 75 of 150, alone and in groups of
three with a correlation of 0.5: of 600 intervals of each kind 94 to 100 in 100 hold the truth, those of AUROC 95 to 98,
as often missing it on one side as on the other (`tests/trials/test_interval_coverage.py`). A percentile bootstrap held
it 89 times in 100 with few positives, missed nearly always on one side, and had no width where every row was right.

Their limits: the training is not repeated, so an interval is about the rows and not about the seed; and a precision, or
an F1, has the share of positives that these rows have.

Two heads are compared on the same rows by what each row says of both, so that rows which are hard for both count for
neither; on different rows by their two intervals.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featcache.metrics import estimates, scores
from featcache.metrics.estimates import Estimate

Array = np.ndarray[Any, Any]
Intervals = dict[str, tuple[float, float]]
Differences = dict[str, tuple[float, float, float]]  # the difference, and from where to where its interval goes
Estimates = dict[str, Estimate]

COMPARED = ("auroc", "accuracy", "balanced_accuracy", "recall", "specificity", "f1")
_OF_CLASS = ("precision", "recall", "specificity", "f1", "auroc", "auprc")
_SQUARES = 2.0  # the most that a Brier score of more than two classes can be


def evaluate(
    labels: Array, logits: Array, positive: int, *, threshold: float | None = None, groups: Array | None = None
) -> Intervals:
    """(low, high) of each of `scores.SCALARS` that `scores.evaluate` gives for these rows; it holds the number.

    Args:
        labels: (n,) class indices; n may not be 0.
        logits: (n, c).
        positive: as in `scores.evaluate`.
        threshold: as in `scores.evaluate`; it is held fixed.
        groups: (n,) group numbers; None makes each row its own.

    Returns:
        No key for a number that does not exist on these rows.

    Raises:
        ValueError: a threshold for more than two classes.
    """
    return _ends(_of_classes(labels, logits, positive, threshold, *_numbered(len(labels), groups)))


def evaluate_findings(
    labels: Array,
    logits: Array,
    *,
    thresholds: Sequence[float] | Array | None = None,
    groups: Array | None = None,
) -> Intervals:
    """`evaluate` for the summary of `scores.evaluate_findings`: a row is one witness with all its findings.

    Args:
        labels: (n, c) of 0.0, 1.0 and NaN for unknown.
        logits: (n, c) scores before independent sigmoids.
        thresholds: (c,) as in `scores.evaluate_findings`; they are held fixed.
        groups: as in `evaluate`.
    """
    return _ends(_of_findings(labels, logits, thresholds, *_numbered(len(labels), groups)))


def paired(
    labels: Array,
    before: Array,
    after: Array,
    positive: int,
    *,
    thresholds: tuple[float | None, float | None] = (None, None),
    groups: Array | None = None,
) -> Differences:
    """By how much the numbers of `after` are above those of `before`, on the same rows: see `estimates.difference`.

    Args:
        labels: (n,) class indices; n may not be 0.
        before: (n, c) logits of one head.
        after: (n, c) logits of the other.
        positive: as in `scores.evaluate`.
        thresholds: of the one and of the other, as in `scores.evaluate`; they are held fixed.
        groups: as in `evaluate`.

    Returns:
        (difference, low, high) of each of `COMPARED` that exists on these rows; all 0 where the two are the same.

    Raises:
        ValueError: a threshold for more than two classes.
    """
    of = _numbered(len(labels), groups)
    one, other = (_of_classes(labels, z, positive, at, *of) for z, at in zip((before, after), thresholds, strict=True))
    return _differences(one, other, np.array_equal(before, after) and thresholds[0] == thresholds[1])


def paired_findings(labels: Array, before: Array, after: Array, *, groups: Array | None = None) -> Differences:
    """`paired` for the summary of `scores.evaluate_findings`, each finding predicted at 0.5: (n, c) labels of 0.0, 1.0
    and NaN for unknown, and (n, c) scores before independent sigmoids."""
    of = _numbered(len(labels), groups)
    one, other = (_of_findings(labels, z, None, *of) for z in (before, after))
    return _differences(one, other, np.array_equal(before, after))


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
        (difference, low, high) of each of `scores.SCALARS` that both have with an interval.
    """
    differences = {}
    for name in scores.SCALARS:
        ends = [numbers.get("intervals", {}).get(name) for numbers in (before, after)]
        if None not in ends and before.get(name) is not None and after.get(name) is not None:
            a, b = float(before[name]), float(after[name])
            (a_low, a_high), (b_low, b_high) = ends
            low, high = math.hypot(b - b_low, a_high - a), math.hypot(b_high - b, a - a_low)
            differences[name] = (b - a, b - a - low, b - a + high)
    return differences


# --- the numbers as estimates -----------------------------------------------------------------------------------------


def _of_classes(
    labels: Array, logits: Array, positive: int, threshold: float | None, group: Array, n_groups: int
) -> Estimates:
    """Those of `scores.evaluate`."""
    of, n_classes = (group, n_groups), logits.shape[1]
    predicted = scores.decisions(logits, positive, threshold)
    confidence, came = scores.confidences(labels, logits, positive)
    other = _other_class(labels, logits)
    most = 1.0 if n_classes == 2 else _SQUARES
    cost, if_wrong = (scores.cross_entropies(truth, logits) for truth in (labels, other))
    square, square_if_wrong = (scores.squared_errors(truth, logits, positive) for truth in (labels, other))
    per_class = [
        _one_against_rest(labels == c, predicted == c, scores.log_odds(logits, c), *of)
        for c in scores.counted(n_classes, positive)
    ]
    recalls = [_share_of(predicted == c, labels == c, *of) for c in np.unique(labels)]
    return {
        "loss": estimates.mean_loss(cost, if_wrong, *of),
        "accuracy": estimates.share(predicted == labels, *of),
        "balanced_accuracy": estimates.mean(recalls),
        **_means(per_class, _OF_CLASS),
        "brier": estimates.mean_loss(square, square_if_wrong, *of, most),
        "ece": estimates.calibration_error(
            came - confidence, confidence * (1 - confidence), scores.bin_numbers(confidence), *of
        ),
    }


def _of_findings(
    labels: Array, logits: Array, thresholds: Sequence[float] | Array | None, group: Array, n_groups: int
) -> Estimates:
    """Those of `scores.evaluate_findings`: means over the findings, but for the loss, which is over known entries."""
    cuts = np.full(logits.shape[1], 0.5) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    known_labels = ~np.isnan(labels)
    if not known_labels.any():
        return {}
    findings = [
        _of_classes(y[is_known].astype(np.int64), scores.two_columns(z[is_known]), 1, cut, group[is_known], n_groups)
        for y, z, is_known, cut in zip(labels.T, logits.T, known_labels.T, cuts.tolist(), strict=True)
        if is_known.any()
    ]
    signed = np.where(labels == 1, -logits, logits)[known_labels].astype(np.float64)
    rows = np.broadcast_to(group[:, None], labels.shape)[known_labels]
    loss = estimates.mean_loss(np.logaddexp(0.0, signed), np.logaddexp(0.0, -signed), rows, n_groups)
    return {"loss": loss, **_means(findings, [name for name in scores.SCALARS if name != "loss"])}


def _one_against_rest(truth: Array, called: Array, scores: Array, group: Array, n_groups: int) -> Estimates:
    """Those numbers of one class that exist, from (n,) bools and (n,) scores that rank."""
    of, has_rows, has_others = (group, n_groups), bool(truth.any()), not truth.all()
    numbers: Estimates = {}
    if has_rows:
        numbers["precision"] = _share_of(truth, called, *of)
        numbers["recall"] = _share_of(called, truth, *of)
        numbers["f1"] = estimates.f1(called, truth, *of)
    if has_others:
        numbers["specificity"] = _share_of(~called, ~truth, *of)
    if has_rows and has_others:
        numbers["auroc"] = estimates.auroc(truth, scores, *of)
        numbers["auprc"] = estimates.average_precision(truth, scores, *of)
    return numbers


def _share_of(right: Array, rows: Array, group: Array, n_groups: int) -> Estimate:
    return estimates.share(right[rows], group[rows], n_groups)


def _means(numbers: Sequence[Estimates], names: Sequence[str]) -> Estimates:
    """Of each number that exists, the mean of those that have it."""
    having = {name: [resample[name] for resample in numbers if name in resample] for name in names}
    return {name: of[0] if len(of) == 1 else estimates.mean(of) for name, of in having.items() if of}


def _other_class(labels: Array, logits: Array) -> Array:
    """(n,) the likeliest class that is not the label."""
    other_logits = logits.astype(np.float64, copy=True)
    other_logits[np.arange(len(labels)), labels] = -np.inf
    return np.asarray(other_logits.argmax(axis=1))


def _numbered(n: int, groups: Array | None) -> tuple[Array, int]:
    """Group numbers from 0, and how many."""
    if groups is None:
        return np.arange(n), n
    names, numbers = np.unique(groups, return_inverse=True)
    return numbers, len(names)


def _ends(numbers: Estimates) -> Intervals:
    return {name: (numbers[name].low, numbers[name].high) for name in scores.SCALARS if name in numbers}


def _differences(before: Estimates, after: Estimates, same: bool) -> Differences:
    shared = [name for name in COMPARED if name in before and name in after]
    return {name: (0.0, 0.0, 0.0) if same else estimates.difference(before[name], after[name]) for name in shared}
