"""Near-duplicates: the blocks change nothing, and pairs become groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import UsageError
from featcache.splits import merge_groups
from featcache.splits.near_duplicates import near_pairs, pair_keys


def brute_force(x: np.ndarray, threshold: float) -> dict[tuple[int, int], float]:
    """Every pair by itself, in float64."""
    x = x.astype(np.float64)
    norms = np.linalg.norm(x, axis=1)
    pairs = [(i, j) for i in range(len(x)) for j in range(i + 1, len(x)) if norms[i] and norms[j]]
    cosine = {(i, j): float(x[i] @ x[j] / (norms[i] * norms[j])) for i, j in pairs}
    return {pair: value for pair, value in cosine.items() if np.float32(value) >= np.float32(threshold)}


def clustered(seed: int, n: int, d: int, dtype: str = "float32") -> np.ndarray:
    """(n, d) vectors about a few directions, of lengths from 0.001 to 1000, some zero, some identical."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4, d))[rng.integers(0, 4, n)] + 0.3 * rng.standard_normal((n, d))
    x *= 10 ** rng.uniform(-3, 3, (n, 1))
    x[rng.random(n) < 0.1] = 0.0
    copied = rng.random(n) < 0.1
    x[copied] = x[0]
    return x.astype(dtype)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 40),
    st.integers(1, 40),
    st.floats(0.05, 1.0),
    st.integers(1, 50),
    st.sampled_from(["float16", "float32", "float64"]),
)
def test_pairs_are_those_of_brute_force(
    seed: int, n: int, d: int, threshold: float, block_rows: int, dtype: str
) -> None:
    x = clustered(seed, n, d, dtype) if n else np.empty((0, d), dtype=dtype)
    pairs, cosine = near_pairs(x, threshold, block_rows)
    expected = brute_force(x, threshold)
    assert (pairs.dtype, pairs.shape) == (np.int64, (len(cosine), 2))
    assert cosine.dtype == np.float32
    assert (cosine >= np.float32(threshold)).all()
    found = dict(zip(map(tuple, pairs.tolist()), cosine.tolist(), strict=True))
    at_the_threshold = set(found) ^ set(expected)
    assert all(abs(found.get(p, expected.get(p, 0.0)) - threshold) < 1e-6 for p in at_the_threshold)
    assert all(abs(found[p] - expected[p]) < 1e-6 for p in set(found) & set(expected))
    assert list(found) == sorted(found)
    assert all(i < j for i, j in found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 130), st.integers(3, 130))
def test_the_size_of_a_block_changes_no_bit(seed: int, one: int, other: int) -> None:
    x = clustered(seed, 120, 33)
    first, second = (near_pairs(x, 0.9, block_rows) for block_rows in (one, other))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_a_threshold_met_exactly_is_met_for_every_block_size() -> None:
    """The threshold is the cosine of a pair, where float32 products fall on either side of it."""
    x = clustered(1, 60, 257)
    pairs, cosine = near_pairs(x, 0.5)
    for k in range(0, len(pairs), 97):
        for block_rows in (1, 7, 60):
            assert pairs[k].tolist() in near_pairs(x, float(cosine[k]), block_rows)[0].tolist()


def test_a_threshold_of_one_finds_identical_directions_and_no_others() -> None:
    x = np.random.default_rng(0).standard_normal((30, 100)).astype(np.float32)
    x[20], x[25], x[26] = x[3], 4 * x[3], -x[3]
    pairs, cosine = near_pairs(x, 1.0, block_rows=8)
    assert pairs.tolist() == [[3, 20], [3, 25], [20, 25]]
    assert cosine.tolist() == [1.0, 1.0, 1.0]


def test_rows_of_zero_pair_with_nothing() -> None:
    assert len(near_pairs(np.zeros((5, 3), dtype=np.float32), 1e-9)[0]) == 0
    assert near_pairs(np.array([[0.0, 0], [1, 0], [0, 0], [2, 0]]), 0.5)[0].tolist() == [[1, 3]]


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_have_no_pairs(n: int) -> None:
    pairs, cosine = near_pairs(np.ones((n, 3), dtype=np.float32), 0.5)
    assert (pairs.shape, cosine.shape) == ((0, 2), (0,))


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e38])
def test_very_short_and_very_long_vectors_have_directions(scale: float) -> None:
    x = (np.array([[1.0, 1, 1], [2, 2, 2], [1, -1, 0]]) * scale).astype(np.float32)
    assert near_pairs(x, 0.99)[0].tolist() == [[0, 1]]


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.0001, float("nan")])
def test_an_impossible_threshold_is_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        near_pairs(np.ones((3, 2)), threshold)


def test_a_block_of_no_rows_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1 row, got 0"):
        near_pairs(np.ones((3, 2)), 0.5, block_rows=0)


@pytest.mark.parametrize("strange", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_vectors_without_a_direction_are_refused_with_the_first(strange: float) -> None:
    x = np.ones((10, 3))
    x[4, 1] = x[7, 0] = strange
    with pytest.raises(UsageError, match=r"2 of 10 vectors hold NaN.*the first is row 4"):
        near_pairs(x, 0.5, block_rows=3)


def test_more_pairs_than_allowed_are_refused_with_the_count_and_the_way_out() -> None:
    x = np.ones((50, 4), dtype=np.float32)
    with pytest.raises(UsageError, match=r"at least 0\.9 similar so far, more than 1,000\. Raise the threshold"):
        near_pairs(x, 0.9, block_rows=16, max_pairs=1000)
    assert len(near_pairs(x, 0.9, block_rows=16, max_pairs=50 * 49 // 2)[0]) == 50 * 49 // 2


def test_keys_follow_chains_and_leave_the_others_unknown() -> None:
    keys = pair_keys(7, np.array([[0, 4], [4, 5], [1, 2]]))
    assert keys[0] == keys[4] == keys[5] != ""
    assert keys[1] == keys[2] not in ("", keys[0])
    assert keys[3] == keys[6] == ""


@settings(deadline=None)
@given(st.integers(1, 30), st.data())
def test_keys_merge_the_rows_that_pairs_connect_and_no_others(n: int, data: st.DataObject) -> None:
    row = st.integers(0, n - 1)
    pairs = np.array(data.draw(st.lists(st.tuples(row, row), max_size=20)), dtype=np.int64).reshape(-1, 2)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    keys = pair_keys(n, pairs)
    assert {i for i, key in enumerate(keys) if key} == set(pairs.ravel().tolist())
    groups, connected = merge_groups(keys), np.eye(n, dtype=bool)
    connected[pairs[:, 0], pairs[:, 1]] = connected[pairs[:, 1], pairs[:, 0]] = True
    for via in range(n):  # the closure, by Warshall
        connected |= connected[:, [via]] & connected[[via], :]
    assert (connected == (groups[:, None] == groups[None, :])).all()


def test_no_pairs_are_no_keys() -> None:
    assert pair_keys(3, np.empty((0, 2), dtype=np.int64)) == ["", "", ""]
