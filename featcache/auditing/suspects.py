"""Rows to review: outliers, near duplicates across the split, and label issues.

These are rankings, not verdicts: a rare disease is an outlier, and a difficult case has a high loss. Memory does not
grow with the number of pairs of rows.
Letters: n rows, d features, c classes.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from featcache import metrics
from featcache.heads.inference import unit_rows
from featcache.threads import one_thread

Array = np.ndarray[Any, Any]

N_NEIGHBORS = 10
MAX_REFERENCE = 20_000  # rows
_BLOCK = 4096  # rows
_CANDIDATES = 5  # nearest rows per row; at least one of them nearly always has a different file
_MAX_SAMPLE = 2000  # rows in the sample of pairs
_AS_PROBABLE = 1e-6  # a difference of probabilities below the precision of the tables


def outliers(x: Array, k: int = N_NEIGHBORS, max_reference: int = MAX_REFERENCE, seed: int = 0) -> tuple[Array, Array]:
    """Outlier scores: the distance of each row to its k-th nearest row, for vectors scaled to length 1.

    The score is that of Ramaswamy, Rastogi and Shim, "Efficient algorithms for mining outliers from large data sets"
    (SIGMOD 2000); on normalised features that of Sun, Ming, Zhu and Li, "Out-of-distribution detection with deep
    nearest neighbors" (ICML 2022). Up to k copies of an outlying image are all detected. Neighbours are searched among
    at most `max_reference` rows, a random sample.

    Args:
        x: (n, d) floats, n at least 2.
        k: rank of the neighbour, at most the number of other rows.
        max_reference: size of the sample; 5,840 rows of 1,280 features take a second or two.
        seed: seed of the sample.

    Returns:
        (n,) distances from 0 to 2, and (n,) row numbers of the nearest other row.
    """
    n, unit = len(x), _unit(x)
    drawn = np.random.default_rng(seed).permutation(n)[:max_reference] if n > max_reference else np.arange(n)
    k = min(k, len(drawn) - 1)
    distance, place = _search(unit[drawn], unit, k + 1)  # (n, k + 1), itself among them where it was drawn
    near = drawn[place]
    is_drawn = np.isin(np.arange(n), drawn)
    kth = np.where(is_drawn, distance[:, k], distance[:, k - 1])
    nearest = np.where(near[:, 0] == np.arange(n), near[:, 1], near[:, 0])
    return kth, nearest


def nearest_across_splits(x: Array, subsets: Array, content: Array, most: int = 100) -> tuple[Array, Array]:
    """The most similar pairs of rows in different subsets of the split, the most similar first.

    Args:
        x: (n, d) floats.
        subsets: (n,) texts, empty for unknown.
        content: (n,) digests; identical files are not a pair.
        most: number of pairs to return.

    Returns:
        pairs: (m, 2) row numbers i < j.
        cosine: (m,).
    """
    unit, closest = _unit(x), np.empty((0, 2), dtype=np.int64)
    names, sizes = np.unique(subsets[subsets != ""], return_counts=True)
    by_size = [np.flatnonzero(subsets == names[i]) for i in np.argsort(sizes, kind="stable")]
    for i, few in enumerate(by_size):
        for many in by_size[i + 1 :]:
            _, place = _search(unit[many], unit[few], min(_CANDIDATES, len(many)))
            differs = content[many[place]] != content[few][:, None]  # (rows, candidates)
            rows = np.flatnonzero(differs.any(axis=1))
            nearest = many[place[rows, differs[rows].argmax(axis=1)]]
            closest = np.concatenate([closest, np.stack([few[rows], nearest], axis=1)])
    cosine = np.einsum("md,md->m", unit[closest[:, 0]], unit[closest[:, 1]], dtype=np.float64)
    order = np.argsort(-cosine, kind="stable")[:most]
    return np.sort(closest[order], axis=1), cosine[order]


def share_above(x: Array, content: Array, threshold: float, few: int, seed: int = 0) -> tuple[float, float | None]:
    """The proportion of pairs above a similarity threshold, estimated on at most 2,000 rows.

    Args:
        x: (n, d) floats.
        content: (n,) digests; identical files are not a pair.
        threshold: cosine similarity.
        few: desired number of pairs.
        seed: seed of the sample.

    Returns:
        The proportion of pairs that reach the threshold; and a higher threshold, to six digits, that about `few` of all
        pairs reach, or None if there is none below 1.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(len(x))[:_MAX_SAMPLE])
    unit, files = _unit(x[drawn]), np.unique(content[drawn], return_inverse=True)[1]
    one, other = np.triu_indices(len(drawn), k=1)
    cosine = (unit @ unit.T)[one, other][files[one] != files[other]]
    if not len(cosine):
        return 0.0, None
    all_pairs = len(x) * (len(x) - 1) / 2 * len(cosine) / len(one)
    k = min(max(1, round(few * len(cosine) / all_pairs)), len(cosine))
    low = math.ceil(float(np.partition(cosine, -k)[-k]) * 1e6) / 1e6
    return float(np.mean(cosine >= np.float32(threshold))), low if threshold < low < 1 else None


def _unit(x: Array) -> Array:
    """(n, d) float32 rows of length 1, computed in blocks because of float64 intermediates."""
    return np.concatenate([unit_rows(x[start : start + _BLOCK]) for start in range(0, len(x), _BLOCK)])


@one_thread()
def _search(reference: Array, x: Array, k: int) -> tuple[Array, Array]:
    """(n, k) distances and positions of the nearest rows."""
    from sklearn.neighbors import NearestNeighbors

    distance, place = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(reference).kneighbors(x)
    return distance, place


@dataclass(frozen=True)
class LabelIssues:
    """Out-of-fold predictions of n labels.

    Attributes:
        loss: (n,) cross entropy of the given label in nats; ranks the rows.
        suggested: (n,) predicted class; the given one if it is as probable.
        p_given, p_suggested: (n,) predicted probabilities of the given and of the suggested class.
        is_issue: (n,) whether confident learning counts the row as mislabelled.
    """

    loss: Array
    suggested: Array
    p_given: Array
    p_suggested: Array
    is_issue: Array


def find_label_issues(labels: Array, logits: Array) -> LabelIssues:
    """Labels that are probably wrong, by out-of-fold predictions.

    Confident learning (Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels",
    JAIR 70, 2021, section 3.1): t_j is the mean probability of class j among the rows labelled_rows j. A row counts in
    class j if its probability of j is at least t_j, in the most probable one if there are several; one that counts in
    another class than its label's is off the diagonal of the confident joint. Rows are ranked by the loss of the given
    label. A label that is as probable as the class in which the row counts is not an issue; otherwise the order of the
    classes would decide between two labels of equal vectors.

    Args:
        labels: (n,) class numbers.
        logits: (n, c) out-of-fold logits.
    """
    p = softmax(logits.astype(np.float64), axis=1)
    rows = np.arange(len(labels))
    present = np.unique(labels)
    thresholds = np.full(p.shape[1], np.inf)
    thresholds[present] = [p[labels == j, j].mean() for j in present]
    counted = np.where(p >= thresholds, p, -1.0)  # (n, c)
    counts_in, p_given = counted.argmax(axis=1), p[rows, labels]
    is_issue = (counted.max(axis=1) > 0) & (p[rows, counts_in] > p_given + _AS_PROBABLE)
    likeliest = np.where(p.max(axis=1) > p_given + _AS_PROBABLE, p.argmax(axis=1), labels)
    suggested = np.where(is_issue, counts_in, likeliest)
    loss = metrics.cross_entropies(labels, logits)
    return LabelIssues(loss, suggested, p_given, p[rows, suggested], is_issue)
