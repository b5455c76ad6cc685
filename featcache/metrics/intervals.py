"""95 % confidence intervals of the metrics of `scores.evaluate`, and of their differences.

The intervals are analytic: each metric has a standard error and a scale (see `estimates`), so the same rows give the
same interval, and 6,000 rows take milliseconds. Rows of one group (images of one patient) are not treated as
independent.

Coverage, measured with 600 simulations per setting (binormal scores with true AUROCs of 0.7 to 0.98; 15 positives of
150, 30 of 600, 75 of 150; independent rows and groups of three with a correlation of 0.5): 94 to 100 % for all metrics,
94 to 99.6 % for AUROC (`tests/trials/test_interval_coverage.py`). A percentile bootstrap covered 89 % with few
positives, with nearly all errors on one side, and had zero width if all predictions were correct.

Limits: the training is not repeated, so an interval describes the sampling of rows and not the variation between seeds;
precision and F1 refer to the prevalence among these rows.

Differences of two heads on the same rows are paired by row; differences between different rows combine two intervals.
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
    """Confidence intervals of the metrics of `scores.evaluate`; each contains its estimate.

    Args:
        labels: (n,) class indices; n may not be 0.
        logits: (n, c).
        positive: as in `scores.evaluate`.
        threshold: as in `scores.evaluate`; treated as fixed.
        groups: (n,) group numbers; None treats rows as independent.

    Returns:
        (low, high) by name of `scores.SCALARS`; metrics that do not exist on these rows are absent.

    Raises:
        ValueError: a threshold for more than two classes.

    Example:
        >>> labels = np.array([0, 0, 0, 1, 1, 1])
        >>> logits = np.array([[2.0, -2], [1, -1], [-1, 1], [1, -1], [-1, 1], [-2, 2]])
        >>> low, high = evaluate(labels, logits, positive=1)["recall"]
        >>> round(low, 3), round(high, 3)
        (0.094, 0.992)
    """
    return _ends(_of_classes(labels, logits, positive, threshold, *_numbered(len(labels), groups)))


def evaluate_findings(
    labels: Array,
    logits: Array,
    *,
    thresholds: Sequence[float] | Array | None = None,
    groups: Array | None = None,
) -> Intervals:
    """Confidence intervals of the metrics of `scores.evaluate_findings`; all labels of a row belong together.

    Args:
        labels: (n, c) of 0.0, 1.0 and NaN for unknown.
        logits: (n, c) scores before independent sigmoids.
        thresholds: (c,) as in `scores.evaluate_findings`; treated as fixed.
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
    """Differences `after` − `before` of two heads on the same rows, with intervals: see `estimates.difference`.

    Args:
        labels: (n,) class indices; n may not be 0.
        before: (n, c) logits of one head.
        after: (n, c) logits of the other.
        positive: as in `scores.evaluate`.
        thresholds: thresholds of `before` and of `after`, as in `scores.evaluate`; treated as fixed.
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
    """Differences `after` − `before` of metrics on different, independent rows, with intervals.

    The interval of the difference is recovered from the two intervals (MOVER: Zou and Donner, "Construction of
    confidence limits about effect measures: A general approach", Statistics in Medicine 27, 2008, section 2; for two
    shares it is method 10 of Newcombe, Statistics in Medicine 17, 1998): with d = b - a, its lower end is d minus the
    root of (b - low of b)² + (high of a - a)², and its upper end mirrors that.

    Args:
        before: metrics by name, with `intervals` by name, as a Run records them for a subset.
        after: the same for other rows, without a common row or group.

    Returns:
        (difference, low, high) of each of `scores.SCALARS` that has an interval in both.

    Example:
        >>> before = {"auroc": 0.80, "intervals": {"auroc": [0.75, 0.85]}}
        >>> after = {"auroc": 0.90, "intervals": {"auroc": [0.85, 0.93]}}
        >>> [round(value, 3) for value in unpaired(before, after)["auroc"]]
        [0.1, 0.029, 0.158]
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
    """Estimates of the metrics of `scores.evaluate`."""
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
    """Estimates of the metrics of `scores.evaluate_findings`: means over the labels; the loss is over known entries."""
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


def _one_against_rest(truth: Array, predicted: Array, scores: Array, group: Array, n_groups: int) -> Estimates:
    """The metrics of one class that exist, from (n,) bools and (n,) ranking scores."""
    of, has_rows, has_others = (group, n_groups), bool(truth.any()), not truth.all()
    numbers: Estimates = {}
    if has_rows:
        numbers["precision"] = _share_of(truth, predicted, *of)
        numbers["recall"] = _share_of(predicted, truth, *of)
        numbers["f1"] = estimates.f1(predicted, truth, *of)
    if has_others:
        numbers["specificity"] = _share_of(~predicted, ~truth, *of)
    if has_rows and has_others:
        numbers["auroc"] = estimates.auroc(truth, scores, *of)
        numbers["auprc"] = estimates.average_precision(truth, scores, *of)
    return numbers


def _share_of(right: Array, rows: Array, group: Array, n_groups: int) -> Estimate:
    return estimates.share(right[rows], group[rows], n_groups)


def _means(numbers: Sequence[Estimates], names: Sequence[str]) -> Estimates:
    """Means of each metric over the classes for which it exists."""
    having = {name: [resample[name] for resample in numbers if name in resample] for name in names}
    return {name: of[0] if len(of) == 1 else estimates.mean(of) for name, of in having.items() if of}


def _other_class(labels: Array, logits: Array) -> Array:
    """(n,) the most probable class other than the label."""
    other_logits = logits.astype(np.float64, copy=True)
    other_logits[np.arange(len(labels)), labels] = -np.inf
    return np.asarray(other_logits.argmax(axis=1))


def _numbered(n: int, groups: Array | None) -> tuple[Array, int]:
    """Group numbers from 0, and the number of groups."""
    if groups is None:
        return np.arange(n), n
    names, numbers = np.unique(groups, return_inverse=True)
    return numbers, len(names)


def _ends(numbers: Estimates) -> Intervals:
    return {name: (numbers[name].low, numbers[name].high) for name in scores.SCALARS if name in numbers}


def _differences(before: Estimates, after: Estimates, same: bool) -> Differences:
    shared = [name for name in COMPARED if name in before and name in after]
    return {name: (0.0, 0.0, 0.0) if same else estimates.difference(before[name], after[name]) for name in shared}
