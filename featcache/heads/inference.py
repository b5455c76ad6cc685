"""Inference of trained heads in numpy, without torch.

The tensors are those of `head.safetensors`; they apply to features as stored.
Letters: n rows, d features, c classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import erf, expit

from featcache.specs import NORM_EPSILON, HeadSpec
from featcache.threads import one_thread

Array = np.ndarray[Any, Any]

_BLOCK_VALUES = 1 << 25
_ACTIVATIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "sigmoid": expit,
    "tanh": np.tanh,
    "gelu": lambda z: 0.5 * z * (1 + erf(z / np.sqrt(2))),
}


def logits(spec: HeadSpec, tensors: Mapping[str, Array], x: Array, n_classes: int, positive: int) -> Array:
    """Features to (n, c) float32 logits: of a softmax over classes, or of a sigmoid per finding.

    Args:
        spec: the head's.
        tensors: its weights.
        x: (n, d) features as they are stored; or (n, v, d), v vectors of each row, over which `averaged` averages.
        n_classes: c.
        positive: which of two classes the single output of a sigmoid head is about.
    """
    return averaged(lambda vectors: _logits(spec, tensors, vectors, n_classes, positive), x)


def averaged(logits_of: Callable[[Array], Array], x: Array) -> Array:
    """(n, c) logits of (n, d) vectors, or of (n, v, d) the mean of each row's v logits.

    Test-time augmentation averages probabilities or logits. Logits are what is scaled by a temperature afterwards and
    what is averaged over repeated folds, too; the mean is the log of the geometric mean of the probabilities (of the
    odds, for findings), and for an affine head the logits of the mean vector.
    """
    if x.ndim == 2:
        return logits_of(x)
    n, v, d = x.shape
    z = logits_of(x.reshape(n * v, d))
    return np.asarray(z.reshape(n, v, z.shape[1]).mean(axis=1))


def _logits(spec: HeadSpec, tensors: Mapping[str, Array], x: Array, n_classes: int, positive: int) -> Array:
    """(n, d) to (n, c)."""
    if spec.kind == "knn":
        return _vote(spec, tensors, x, n_classes)
    n_rows = max(1, _BLOCK_VALUES // x.shape[1])
    blocks = [_forward(spec, tensors, x[start : start + n_rows]) for start in range(0, len(x), n_rows)]
    z = np.concatenate(blocks) if blocks else np.zeros((0, len(tensors["bias"])), dtype=np.float32)
    if z.shape[1] == n_classes:
        return z
    if z.shape[1] != 1 or n_classes != 2:
        raise ValueError(f"a head of {z.shape[1]} outputs is none of {n_classes} classes")
    pair = np.zeros((len(z), 2), dtype=np.float32)
    pair[:, positive] = z[:, 0]
    return pair


def hidden(spec: HeadSpec, tensors: Mapping[str, Array], x: Array) -> Array:
    """(n, d) features to the (n, h) activations that the last layer acts on; of a head without hidden layers x.

    In float64: in float32 the last digits of a row depend on how many others are multiplied along with it.
    """
    z = np.asarray(x, dtype=np.float64)
    for i in range(len(spec.hidden_sizes)):
        layer = {name.removeprefix(f"hidden.{i}."): t for name, t in tensors.items() if name.startswith(f"hidden.{i}.")}
        z = z @ layer["weight"].T + layer["bias"]
        if spec.norm == "batch":
            z = (z - layer["norm.running_mean"]) / np.sqrt(layer["norm.running_var"] + NORM_EPSILON)
            z = z * layer["norm.weight"] + layer["norm.bias"]
        z = _ACTIVATIONS[spec.activation](z)
    return z


def _forward(spec: HeadSpec, tensors: Mapping[str, Array], x: Array) -> Array:
    return np.asarray(hidden(spec, tensors, x) @ tensors["weight"].T + tensors["bias"], dtype=np.float32)


def unit_rows(x: Array) -> Array:
    """Each row divided by its length; a row of zeros stays."""
    x = np.asarray(x, dtype=np.float64)  # a square of 1e-30 is nothing in float32
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1), dtype=np.float32)


@one_thread()
def nearest(vectors: Array, x: Array, k: int) -> Array:
    """(n, k) row numbers of the k vectors (of unit length) with the largest cosine to each row of x, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(vectors))
    if not len(x):
        return np.zeros((0, k), dtype=np.int64)
    search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(vectors)
    return np.asarray(search.kneighbors(unit_rows(x), return_distance=False))


def vote(labels: Array, n_classes: int) -> Array:
    """(n, k) class numbers of neighbours to (n, c) log of (votes + 1/c) / (k + 1), so that no class is impossible; or
    (n, k, c) findings to log odds, unknown ones not voting."""
    if labels.ndim == 3:
        p = (np.nansum(labels, axis=1) + 0.5) / (np.isfinite(labels).sum(axis=1) + 1)
        return np.asarray(np.log(p / (1 - p)), dtype=np.float32)
    votes = np.stack([(labels == c).sum(axis=1) for c in range(n_classes)], axis=1)
    return np.asarray(np.log((votes + 1 / n_classes) / (labels.shape[1] + 1)), dtype=np.float32)


def _vote(spec: HeadSpec, tensors: Mapping[str, Array], x: Array, n_classes: int) -> Array:
    near = nearest(tensors["vectors"], x, spec.n_neighbors)
    return vote(tensors["labels"][near], n_classes)
