"""Metrics of predictions. Rankings are computed by scikit-learn; this module defines the conventions.

Two classes: precision, recall, specificity, F1, AUROC and AUPRC refer to the positive class. More classes: macro
averages, one class against the rest. Multi-label: each label is a two-class problem on the rows where it is known, and
metrics are macro averages over the labels.

A class without true rows has no precision, recall and F1 and is excluded from the macro average, as from scikit-learn's
balanced accuracy. The precision of a class that has true rows but is never predicted is 0. A metric that does not exist
is None, never NaN.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax, logsumexp, softmax
from sklearn import metrics as sk

Array = np.ndarray[Any, Any]
Metrics = dict[str, Any]

SCALARS = (
    "loss", "accuracy", "precision", "recall", "f1", "balanced_accuracy", "specificity", "auroc", "auprc", "brier",
    "ece",
)  # fmt: skip
N_BINS = 15


def per_epoch(labels: Array, logits: Array, positive: int) -> dict[str, float]:
    """The five metrics of a learning curve: loss, accuracy, precision, recall, F1.

    Args:
        labels: (n,) class indices.
        logits: (n, c) scores before the softmax.
        positive: the class that counts as positive when c = 2; ignored otherwise.

    Returns:
        `loss` is the mean cross entropy in nats without class weights. The last three are those of `evaluate`, with 0
        for None.

    Example:
        >>> logits = np.array([[2.0, -2.0], [1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])
        >>> per_epoch(np.array([0, 0, 1, 1]), logits, positive=1)["recall"]
        0.5
    """
    loss = np.mean(cross_entropies(labels, logits))
    predicted = logits.argmax(axis=1)
    precision, recall, f1 = _precision_recall_f1(labels, predicted, logits.shape[1], positive)
    accuracy = float(np.mean(predicted == labels))
    return {"loss": float(loss), "accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


def per_epoch_findings(labels: Array, logits: Array) -> dict[str, float]:
    """The five metrics of a learning curve of a multi-label task, as in `evaluate_findings`, vectorised.

    Args:
        labels: (n, c) of 0.0, 1.0 and NaN for unknown.
        logits: (n, c) scores before independent sigmoids.

    Returns:
        loss, accuracy, precision, recall, f1. The last three are 0 if no label has a known positive row.

    Raises:
        ValueError: every entry is unknown.
    """
    is_known, present = ~np.isnan(labels), labels == 1
    if not is_known.any():
        raise ValueError("every entry of the labels is unknown (NaN): nothing to compare the predictions with")
    predicted = is_known & (expit(logits.astype(np.float64)) >= 0.5)
    n_known, n_present, n_predicted = is_known.sum(axis=0), present.sum(axis=0), predicted.sum(axis=0)  # (c,) each
    hits, right = (predicted & present).sum(axis=0), (is_known & (predicted == present)).sum(axis=0)
    occurs = n_present > 0
    return {
        "loss": float(np.mean(np.logaddexp(0.0, np.where(present, -logits, logits)[is_known].astype(np.float64)))),
        "accuracy": _mean_share(right, n_known, n_known > 0),
        "precision": _mean_share(hits, n_predicted, occurs),
        "recall": _mean_share(hits, n_present, occurs),
        "f1": _mean_share(2 * hits, n_predicted + n_present, occurs),
    }


def evaluate(labels: Array, logits: Array, positive: int, threshold: float | None = None) -> Metrics:
    """All metrics of the predictions of one subset.

    Args:
        labels: (n,) class indices; n may not be 0.
        logits: (n, c).
        positive: as in `per_epoch`.
        threshold: as in `decisions`; affects the metrics that are computed from decisions.

    Returns:
        n, support (rows per class), loss, accuracy, balanced_accuracy (mean recall of the classes present), precision,
        recall, specificity, f1, auroc, auprc (average precision), brier (see `squared_errors`), ece (see
        `reliability`), confusion ((c, c) nested lists, rows are the truth) and, where c > 2, per_class: c dicts of
        support, precision, recall, specificity, f1, auroc, auprc. The macro averages are their means over the classes
        that have the metric, so recall equals balanced_accuracy, and precision and f1 are those of scikit-learn with
        `labels` set to the classes with true rows.

    Raises:
        ValueError: a threshold for more than two classes.

    Example:
        >>> logits = np.array([[2.0, -2.0], [1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [-2.0, 2.0]])
        >>> scores = evaluate(np.array([0, 0, 0, 1, 1]), logits, positive=1)
        >>> scores["confusion"], scores["auroc"], scores["recall"]
        ([[2, 1], [1, 1]], 0.75, 0.5)
    """
    n_classes = logits.shape[1]
    predicted = decisions(logits, positive, threshold)
    per_class = [
        _one_against_rest(labels == c, predicted == c, log_odds(logits, c)) for c in counted(n_classes, positive)
    ]
    confusion = sk.confusion_matrix(labels, predicted, labels=np.arange(n_classes))
    support = confusion.sum(axis=1)
    recalls = confusion.diagonal()[support > 0] / support[support > 0]
    scores = {
        "n": len(labels),
        "support": support.tolist(),
        "loss": float(np.mean(cross_entropies(labels, logits))),
        "accuracy": float(np.mean(predicted == labels)),
        **{name: _macro(per_class, name) for name in ("precision", "recall", "f1")},
        "balanced_accuracy": float(recalls.mean()),
        **{name: _macro(per_class, name) for name in ("specificity", "auroc", "auprc")},
        "brier": float(np.mean(squared_errors(labels, logits, positive))),
        "ece": _expected_calibration_error(reliability(labels, logits, positive)),
        "confusion": confusion.tolist(),
    }
    return scores if n_classes == 2 else {**scores, "per_class": per_class}


def evaluate_findings(labels: Array, logits: Array, thresholds: Sequence[float] | Array | None = None) -> Metrics:
    """All metrics of the predictions of one subset in a multi-label task.

    Args:
        labels: (n, c) of 0.0, 1.0 and NaN for unknown; unknown entries are ignored.
        logits: (n, c) scores before independent sigmoids.
        thresholds: (c,) probabilities from which a label is predicted positive; None is 0.5 for all.

    Returns:
        n (rows), loss (mean binary cross entropy of the known entries, in nats); the other `SCALARS` as means over the
        labels that have them; per_class: c dicts of n (known rows), support (positive rows) and the `SCALARS` of one
        label. A label without positive rows has no precision, recall and F1 and does not lower their means.

    Example:
        >>> labels = np.array([[1.0, 0.0], [0.0, np.nan], [1.0, 1.0]])
        >>> logits = np.array([[2.0, -1.0], [-1.0, 3.0], [-0.5, 1.0]])
        >>> scores = evaluate_findings(labels, logits)
        >>> scores["recall"], scores["per_class"][1]["n"]
        (0.75, 2)
    """
    cuts = np.full(logits.shape[1], 0.5) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    per_class = [_label_metrics(y, z, float(cut)) for y, z, cut in zip(labels.T, logits.T, cuts, strict=True)]
    n_known = sum(scores["n"] for scores in per_class)
    total = sum(scores["n"] * scores["loss"] for scores in per_class if scores["n"])
    return {
        "n": len(labels),
        "loss": total / n_known if n_known else None,
        **{name: _macro(per_class, name) for name in SCALARS if name != "loss"},
        "per_class": per_class,
    }


def reliability(labels: Array, logits: Array, positive: int) -> list[Metrics]:
    """The points of a reliability diagram: mean predicted probability and observed frequency by bin.

    The expected calibration error is the mean of |frequency - confidence| weighted by n (Guo et al., "On Calibration of
    Modern Neural Networks", 2017, section 2). There are 15 bins of equal width; a bin includes its upper edge, the
    first one also 0.

    Returns:
        One dict per bin that is not empty, ascending: low and high (its edges), n, confidence and frequency (means of
        the two arrays of `confidences`).
    """
    confidence, right = confidences(labels, logits, positive)
    bins = bin_numbers(confidence)
    return [_bin(b, confidence[bins == b], right[bins == b]) for b in np.unique(bins).tolist()]


# --- metrics of single rows -------------------------------------------------------------------------------------------


def probabilities(logits: Array) -> Array:
    """(n, c) float64 softmax; for two columns (0, z) exactly the sigmoid of z."""
    logits = logits.astype(np.float64)
    if logits.shape[1] == 2:
        return np.asarray(expit(logits - logits[:, ::-1]))
    return np.asarray(softmax(logits, axis=1))


def two_columns(logits: Array) -> Array:
    """(n,) logits of a sigmoid as (n, 2) logits of a softmax with the same probabilities; class 1 is positive."""
    return np.stack([np.zeros_like(logits), logits], axis=1)


def decisions(logits: Array, positive: int, threshold: float | None = None) -> Array:
    """(n,) predicted classes.

    Args:
        logits: (n, c).
        positive: number of the positive class.
        threshold: probability from which a row is predicted positive, for c = 2 only. None is argmax.

    Raises:
        ValueError: a threshold for more than two classes.
    """
    if threshold is None:
        return np.asarray(logits.argmax(axis=1))
    if logits.shape[1] != 2:
        raise ValueError(f"a threshold needs two classes, got {logits.shape[1]}")
    return np.where(probabilities(logits)[:, positive] >= threshold, positive, 1 - positive)


def cross_entropies(labels: Array, logits: Array) -> Array:
    """(n,) minus log probability of the true class, in nats."""
    return np.asarray(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels])


def squared_errors(labels: Array, logits: Array, positive: int) -> Array:
    """(n,) the terms of the Brier score.

    Two classes: of the positive class's probability, between 0 and 1, as sklearn.metrics.brier_score_loss. More:
    summed over the classes, between 0 and 2, as in Brier, "Verification of Forecasts Expressed in Terms of
    Probability", 1950.
    """
    truth = labels[:, None] == np.arange(logits.shape[1])
    squared = (probabilities(logits) - truth) ** 2  # (n, c)
    return np.asarray(squared[:, positive] if logits.shape[1] == 2 else squared.sum(axis=1))


def confidences(labels: Array, logits: Array, positive: int) -> tuple[Array, Array]:
    """(n,) probabilities and (n,) outcomes for calibration.

    Two classes: the probability of the positive class, and whether the row is positive. More: the highest probability,
    and whether the prediction is correct.
    """
    p = probabilities(logits)
    if logits.shape[1] == 2:
        return p[:, positive], labels == positive
    return p.max(axis=1), logits.argmax(axis=1) == labels


def bin_numbers(confidence: Array) -> Array:
    """(n,) numbers from 0 to 14 of the bins of `reliability`."""
    return np.digitize(confidence, _edges()[1:-1], right=True)


def log_odds(logits: Array, c: int) -> Array:
    """(n,) log odds of class c: ranks like the probability, without the ties of floats near 0 and 1."""
    logits = logits.astype(np.float64)
    return np.asarray(logits[:, c] - logsumexp(np.delete(logits, c, axis=1), axis=1))


def counted(n_classes: int, positive: int) -> list[int]:
    """The classes of a macro average: the positive one of two, otherwise all."""
    return [positive] if n_classes == 2 else list(range(n_classes))


# --- parts ------------------------------------------------------------------------------------------------------------


def _precision_recall_f1(labels: Array, predicted: Array, n_classes: int, positive: int) -> tuple[float, float, float]:
    right = labels[predicted == labels]
    hits, n_predicted, n_present = (
        np.bincount(rows, minlength=n_classes)[counted(n_classes, positive)] for rows in (right, predicted, labels)
    )
    shares = ((hits, n_predicted), (hits, n_present), (2 * hits, n_predicted + n_present))
    precision, recall, f1 = (_mean_share(part, whole, n_present > 0) for part, whole in shares)
    return precision, recall, f1


def _one_against_rest(truth: Array, predicted: Array, scores: Array) -> Metrics:
    """The metrics of one class, from (n,) bools and (n,) ranking scores."""
    n_present, n_predicted, hits = int(truth.sum()), int(predicted.sum()), int(np.sum(truth & predicted))
    n_absent = len(truth) - n_present
    ranks = n_present > 0 and n_absent > 0
    return {
        "support": n_present,
        "precision": hits / max(n_predicted, 1) if n_present else None,
        "recall": hits / n_present if n_present else None,
        "specificity": 1.0 - (n_predicted - hits) / n_absent if n_absent else None,
        "f1": 2 * hits / (n_predicted + n_present) if n_present else None,
        "auroc": float(sk.roc_auc_score(truth, scores)) if ranks else None,
        "auprc": float(sk.average_precision_score(truth, scores)) if ranks else None,
    }


def _label_metrics(labels: Array, logits: Array, threshold: float) -> Metrics:
    """One column of `evaluate_findings`, from (n,) labels with NaN and (n,) logits."""
    is_known = ~np.isnan(labels)
    if not is_known.any():
        return {"n": 0, "support": 0, **dict.fromkeys(SCALARS)}
    scores = evaluate(labels[is_known].astype(np.int64), two_columns(logits[is_known]), 1, threshold)
    return {"n": scores["n"], "support": scores["support"][1], **{name: scores[name] for name in SCALARS}}


def _macro(per_class: Iterable[Metrics], name: str) -> float | None:
    values = [scores[name] for scores in per_class if scores[name] is not None]
    return float(np.mean(values)) if values else None


def _mean_share(part: Array, whole: Array, where: Array) -> float:
    """Mean of part / whole over the selected columns, with 0/0 = 0; 0 if none is selected."""
    shares = part[where] / np.maximum(whole[where], 1)
    return float(shares.mean()) if where.any() else 0.0


def _edges() -> Array:
    return np.linspace(0.0, 1.0, N_BINS + 1)


def _bin(number: int, confidence: Array, right: Array) -> Metrics:
    low, high = _edges()[number : number + 2].tolist()
    mean, frequency = float(confidence.mean()), float(right.mean())
    return {"low": low, "high": high, "n": len(right), "confidence": mean, "frequency": frequency}


def _expected_calibration_error(bins: list[Metrics]) -> float:
    gap = sum(bin_["n"] * abs(bin_["frequency"] - bin_["confidence"]) for bin_ in bins)
    return float(gap / sum(bin_["n"] for bin_ in bins))
