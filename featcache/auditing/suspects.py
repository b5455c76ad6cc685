"""Rows that deserve a look: unlike all others, like one across the split, or labelled against what their vectors say.

They are rankings, not verdicts: a rare disease is an outlier, a hard case is a loss, and two children may lie alike.
Nothing here needs memory for all pairs of rows.
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

NEIGHBOR = 10
MAX_REFERENCE = 20_000  # rows
_BLOCK = 4096  # rows
_CANDIDATES = 5  # of which one at least is hardly ever a copy
_MAX_SAMPLE = 2000  # rows whose pairs stand for all
_AS_PROBABLE = 1e-6  # a difference that no table shows


def outliers(x: Array, k: int = NEIGHBOR, max_reference: int = MAX_REFERENCE, seed: int = 0) -> tuple[Array, Array]:
    """How far each row is from the others: the distance to its k-th nearest, of vectors scaled to length 1.

    The distance to the k-th neighbour as a measure of outlying is that of Ramaswamy, Rastogi and Shim, "Efficient
    algorithms for mining outliers from large data sets" (SIGMOD 2000); on a network's vectors, scaled to length 1, that
    of Sun, Ming, Zhu and Li, "Out-of-distribution detection with deep nearest neighbors" (ICML 2022). Up to k copies
    of one strange image are still far from everything. Of more than `max_reference` rows so many are drawn at random,
    among which neighbours are looked for.

    Args:
        x: (n, d) floats, n at least 2.
        k: which neighbour; the last one where there are fewer.
        max_reference: see above; 5,840 rows of 1,280 take a second or two.
        seed: of the draw.

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


def closest_across(x: Array, sides: Array, content: Array, most: int = 100) -> tuple[Array, Array]:
    """Of each row on one side of a split the nearest on another, the nearest such pairs first, however far they are.

    Args:
        x: (n, d) floats.
        sides: (n,) texts, empty where unknown.
        content: (n,) texts; rows with the same are identical and no pair.
        most: pairs to return.

    Returns:
        pairs: (m, 2) row numbers i < j.
        cosine: (m,).
    """
    unit, closest = _unit(x), np.empty((0, 2), dtype=np.int64)
    names, sizes = np.unique(sides[sides != ""], return_counts=True)
    by_size = [np.flatnonzero(sides == names[i]) for i in np.argsort(sizes, kind="stable")]
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


def how_alike(x: Array, content: Array, threshold: float, few: int, seed: int = 0) -> tuple[float, float | None]:
    """What a threshold says of near copies, of all pairs of different files among at most 2,000 rows drawn at random.

    Args:
        x: (n, d) floats.
        content: (n,) texts; rows with the same are identical and no pair.
        threshold: a cosine.
        few: a number of pairs of all n rows.
        seed: of the draw.

    Returns:
        The share of the pairs that reach the threshold; and a higher one, which about `few` of all pairs reach, to six
        digits. None where there is none below 1, for the vectors are the same.
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
    """(n, d) float32 rows of length 1, in blocks: on the way they are float64."""
    return np.concatenate([unit_rows(x[start : start + _BLOCK]) for start in range(0, len(x), _BLOCK)])


@one_thread()
def _search(reference: Array, x: Array, k: int) -> tuple[Array, Array]:
    """(n, k) distances and places of the nearest."""
    from sklearn.neighbors import NearestNeighbors

    distance, place = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(reference).kneighbors(x)
    return distance, place


@dataclass(frozen=True)
class Doubts:
    """What out-of-fold predictions say of n labels.

    Attributes:
        loss: (n,) cross entropy in nats: what they are ranked by.
        suggested: (n,) the class they say; the given one where it is as probable.
        p_given, p_suggested: (n,) their probabilities of the given label and of that class.
        is_confident: (n,) whether the row counts as mislabelled by confident learning.
    """

    loss: Array
    suggested: Array
    p_given: Array
    p_suggested: Array
    is_confident: Array


def doubt(labels: Array, logits: Array) -> Doubts:
    """Which labels are probably wrong, by predictions of heads that have not seen them.

    Confident learning (Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels",
    JAIR 70, 2021, section 3.1): t_j is the mean probability of class j among the rows labelled j. A row counts in class
    j if its probability of j is at least t_j, in the most probable one if there are several; one that counts in another
    class than its label's is off the diagonal of the confident joint. They are ranked by the loss of the given label.
    A label that is as probable as the class the row counts in is in no doubt: of equal vectors with two labels neither
    is, where the order of the classes would accuse all of one.

    Args:
        labels: (n,) class numbers.
        logits: (n, c) out of fold.
    """
    p = softmax(logits.astype(np.float64), axis=1)
    rows = np.arange(len(labels))
    present = np.unique(labels)
    thresholds = np.full(p.shape[1], np.inf)
    thresholds[present] = [p[labels == j, j].mean() for j in present]
    counted = np.where(p >= thresholds, p, -1.0)  # (n, c)
    counts_in, p_given = counted.argmax(axis=1), p[rows, labels]
    is_confident = (counted.max(axis=1) > 0) & (p[rows, counts_in] > p_given + _AS_PROBABLE)
    likeliest = np.where(p.max(axis=1) > p_given + _AS_PROBABLE, p.argmax(axis=1), labels)
    suggested = np.where(is_confident, counts_in, likeliest)
    loss = metrics.cross_entropies(labels, logits)
    return Doubts(loss, suggested, p_given, p[rows, suggested], is_confident)
