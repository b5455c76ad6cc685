"""Predictions in, numbers out. scikit-learn does the arithmetic; this module fixes the conventions.

Two classes: precision, recall, specificity, F1, AUROC and AUPRC are those of the positive class. More classes: the
macro average, one class against the rest. A number that does not exist (AUROC of a single class) is None, never NaN.
Knows nothing of how the predictions were made.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn import metrics as sk

Array = np.ndarray[Any, Any]
Metrics = dict[str, Any]


def per_epoch(labels: Array, logits: Array, positive: int) -> dict[str, float]:
    """The five numbers of a training curve: loss, accuracy, precision, recall, F1.

    Args:
        labels: (n,) class indices.
        logits: (n, c) scores before the softmax.
        positive: the class that counts as positive when c = 2; ignored otherwise.

    Returns:
        `loss` is the mean cross entropy in nats, unweighted, whatever the weights of the training.
    """
    loss = -np.mean(log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels])
    predicted = logits.argmax(axis=1)
    precision, recall, f1 = _precision_recall_f1(labels, predicted, logits.shape[1], positive)
    accuracy = float(np.mean(predicted == labels))
    return {"loss": float(loss), "accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


def evaluate(labels: Array, logits: Array, positive: int) -> Metrics:
    """Everything said about one split: the five of `per_epoch` and what needs the whole ranking.

    Args:
        labels: (n,) class indices; n may not be 0.
        logits: (n, c).
        positive: as in `per_epoch`.

    Returns:
        n, support (rows per class), loss, accuracy, balanced_accuracy (mean recall of the classes present), precision,
        recall, specificity, f1, auroc, auprc (average precision), confusion ((c, c) nested lists, rows are the truth).
    """
    n_classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    confusion = sk.confusion_matrix(labels, predicted, labels=np.arange(n_classes))
    support = confusion.sum(axis=1)
    recalls = confusion.diagonal()[support > 0] / support[support > 0]
    return {
        "n": len(labels),
        "support": support.tolist(),
        **per_epoch(labels, logits, positive),
        "balanced_accuracy": float(recalls.mean()),
        "specificity": _specificity(confusion, positive),
        "auroc": _ranking(sk.roc_auc_score, labels, logits, positive),
        "auprc": _ranking(sk.average_precision_score, labels, logits, positive),
        "confusion": confusion.tolist(),
    }


def _precision_recall_f1(labels: Array, predicted: Array, n_classes: int, positive: int) -> tuple[float, float, float]:
    wanted = [positive] if n_classes == 2 else list(range(n_classes))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predicted, labels=wanted, average="macro", zero_division=0.0
    )
    return float(precision), float(recall), float(f1)


def _specificity(confusion: Array, positive: int) -> float | None:
    """True negatives over negatives, of the positive class or averaged over all. None where there is no negative."""
    classes = [positive] if len(confusion) == 2 else range(len(confusion))
    values = []
    for c in classes:
        negatives = confusion.sum() - confusion[c].sum()
        false_positives = confusion[:, c].sum() - confusion[c, c]
        if negatives:
            values.append(1.0 - false_positives / negatives)
    return float(np.mean(values)) if values else None


def _ranking(score: Callable[[Array, Array], float], labels: Array, logits: Array, positive: int) -> float | None:
    """A threshold-free score of the positive class, or the macro average over the classes for which it exists."""
    classes = [positive] if logits.shape[1] == 2 else range(logits.shape[1])
    exists = [c for c in classes if 0 < np.sum(labels == c) < len(labels)]
    return float(np.mean([score(labels == c, _against_the_rest(logits, c)) for c in exists])) if exists else None


def _against_the_rest(logits: Array, c: int) -> Array:
    """(n,) log odds of class c: ranks like its probability, without the ties that float gives near 0 and 1."""
    logits = logits.astype(np.float64)
    return np.asarray(logits[:, c] - logsumexp(np.delete(logits, c, axis=1), axis=1))
