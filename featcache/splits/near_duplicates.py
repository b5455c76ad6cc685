"""Near-duplicates: rows whose vectors point the same way. Vectors in, pairs of row numbers out.

Every row is compared with every other, block against block, so the work grows with n² and the memory does not. A
product in float32 only sifts: what passes is computed again in float64, which makes the answer the same for every block
size, BLAS and number of threads. Knows nothing of images, groups or files.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.threads import one_thread

Array = np.ndarray[Any, Any]

_LEFT_BLOCKS = 4  # multiplied with each block on the right, which has to be scaled to unit length again each time


@one_thread()
def near_pairs(x: Array, threshold: float, block_rows: int = 1024, max_pairs: int = 1_000_000) -> tuple[Array, Array]:
    """The pairs of rows whose cosine similarity is at least `threshold`.

    Both sides of that comparison are rounded to float32, so a threshold of 1 finds identical rows. A row of norm
    zero has no direction and pairs with nothing. Beyond `x` and the answer, memory holds some blocks of (block_rows, d)
    and (block_rows, block_rows) numbers: with the default block and d = 2048, 110 MiB, and 260 MiB where all is alike.

    Args:
        x: (n, d) floats.
        threshold: above 0, up to 1.
        block_rows: the rows multiplied at once; a matter of memory and speed, not of the answer.
        max_pairs: the most pairs to return.

    Returns:
        pairs: (m, 2) int64 row numbers i < j, in ascending order.
        cosine: (m,) float32.

    Raises:
        UsageError: a threshold out of range, rows that are not finite, more than `max_pairs` pairs; with the counts.
    """
    assert x.ndim == 2
    _check_arguments(threshold, block_rows)
    lengths = _lengths(x, block_rows)
    pairs, cosines, n_found = [np.empty((0, 2), dtype=np.int64)], [np.empty(0, dtype=np.float32)], 0
    for candidates in _candidates(x, lengths, threshold, block_rows):
        cosine = _cosine(x, lengths, candidates)
        near = cosine >= np.float32(threshold)
        pairs.append(candidates[near])
        cosines.append(cosine[near])
        n_found += int(near.sum())
        if n_found > max_pairs:
            raise UsageError(_too_many(n_found, max_pairs, threshold))
    joined, cosine = np.concatenate(pairs), np.concatenate(cosines)
    order = np.lexsort((joined[:, 1], joined[:, 0]))
    return joined[order], cosine[order]


def pair_keys(n: int, pairs: Array) -> list[str]:
    """A key per row for `splits.merge_groups`: the same for rows that pairs connect, chains included, else empty.

    Args:
        n: the number of rows.
        pairs: (m, 2) row numbers below n.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])
    _, component = connected_components(coo_array(edges, shape=(n, n)), directed=False)
    _, first, place, size = np.unique(component, return_index=True, return_inverse=True, return_counts=True)
    return [f"near row {first[c]}" if size[c] > 1 else "" for c in place]


def _check_arguments(threshold: float, block_rows: int) -> None:
    if not 0.0 < threshold <= 1.0:
        raise UsageError(f"the similarity threshold must be above 0 and at most 1, got {threshold}.")
    if block_rows < 1:
        raise UsageError(f"a block must have at least 1 row, got {block_rows}.")


def _lengths(x: Array, block_rows: int) -> Array:
    """(n,) Euclidean lengths in float64."""
    lengths = np.empty(len(x), dtype=np.float64)
    for start in range(0, len(x), block_rows):
        block = x[start : start + block_rows].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            lengths[start : start + block_rows] = np.sqrt(np.einsum("nd,nd->n", block, block))
    strange = np.flatnonzero(~np.isfinite(lengths))
    if len(strange):
        raise UsageError(
            f"{len(strange)} of {len(x)} vectors hold NaN, infinite or huge numbers, the first is row {strange[0]}. "
            f"Leave them out."
        )
    return lengths


def _candidates(x: Array, lengths: Array, threshold: float, block_rows: int) -> Iterator[Array]:
    """(m, 2) pairs i < j, at most `block_rows` at a time, among which are all with a cosine of `threshold`.

    The sieve is coarser than the threshold by (d + 8) units in the last place of float32. A dot product of d terms errs
    by at most d half units of the product of the lengths (Higham, Accuracy and Stability of Numerical Algorithms, 2nd
    ed., section 3.1), whatever the order of summation, and normalising and rounding add a few.
    """
    rows = np.flatnonzero(lengths > 0)
    coarse = threshold - (x.shape[1] + 8) * float(np.finfo(np.float32).eps)
    blocks = [rows[start : start + block_rows] for start in range(0, len(rows), block_rows)]
    for first in range(0, len(blocks), _LEFT_BLOCKS):
        lefts = blocks[first : first + _LEFT_BLOCKS]
        left, unit = (
            np.concatenate(lefts),
            np.concatenate([_unit(x, lengths, block).astype(np.float32) for block in lefts]),
        )
        for right in blocks[first:]:
            product = unit @ _unit(x, lengths, right).astype(np.float32).T  # (4 block_rows, block_rows)
            i, j = np.nonzero(product >= coarse)
            pairs = np.stack([left[i], right[j]], axis=1)
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            yield from (pairs[start : start + block_rows] for start in range(0, len(pairs), block_rows))


def _unit(x: Array, lengths: Array, rows: Array) -> Array:
    """(len(rows), d) float64 vectors of length 1."""
    return np.asarray(x[rows] / lengths[rows, None])


def _cosine(x: Array, lengths: Array, pairs: Array) -> Array:
    """(m,) float32, computed in float64."""
    left, right = (_unit(x, lengths, pairs[:, side]) for side in (0, 1))
    return np.asarray((left * right).sum(axis=1).astype(np.float32))


def _too_many(n_found: int, max_pairs: int, threshold: float) -> str:
    return (
        f"{n_found:,} pairs of rows are at least {threshold} similar so far, more than {max_pairs:,}. Raise the "
        f"threshold; if these vectors are alike throughout, similarity says nothing about duplicates."
    )
