"""Splits: one invariant, stated once and applied to everything that splits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import UsageError
from featcache.splits import Split, check_nothing_crosses, hold_out, merge_groups


def check_valid_split(split: Split, n: int, groups: np.ndarray) -> None:
    """Every row is on one side at most, rows are in order, no group is on two sides."""
    sides = list(split.sides().values())
    together = np.concatenate(sides)
    assert len(np.unique(together)) == len(together)
    assert set(together.tolist()) <= set(range(n))
    assert all((np.diff(rows) > 0).all() for rows in sides)
    for i, a in enumerate(sides):
        for b in sides[i + 1 :]:
            assert not set(groups[a].tolist()) & set(groups[b].tolist())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(60, 200),
    st.integers(1, 4),
    st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5]),
)
def test_hold_out_keeps_groups_together_and_its_share(seed: int, n: int, per_group: int, fraction: float) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.arange(n) // per_group)
    labels = (groups % 2).astype(int)
    train, val = hold_out(labels, groups, fraction, seed)
    check_valid_split(Split(train, val, np.array([], dtype=int)), n, groups)
    assert len(train) + len(val) == n
    assert abs(len(val) / n - fraction) < 0.15
    assert abs(labels[val].mean() - labels.mean()) < 0.25


def test_hold_out_depends_on_the_seed_and_on_nothing_else() -> None:
    labels, groups = np.arange(100) % 2, np.arange(100)
    first, again, other = (hold_out(labels, groups, 0.2, seed)[1].tolist() for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_an_impossible_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        hold_out(np.arange(10) % 2, np.arange(10), fraction, 0)


def test_a_class_of_one_group_is_refused_with_its_counts() -> None:
    labels = np.array(["healthy"] * 20 + ["sick"] * 6)
    groups = np.array([*range(20), 20, 20, 20, 20, 20, 20])
    with pytest.raises(UsageError, match=r"class sick has 6 image\(s\), all of one group"):
        hold_out(labels, groups, 0.2, 0)


def test_few_groups_are_held_out_as_near_to_the_share_as_they_allow() -> None:
    labels, groups = np.array([0] * 6 + [1] * 6), np.arange(12) // 2
    train, val = hold_out(labels, groups, 0.1, 0)
    check_valid_split(Split(train, val, np.array([], dtype=int)), 12, groups)
    assert sorted(labels[val].tolist()) == [0, 0, 1, 1]


def test_merge_groups_follows_chains_through_patients_and_identical_bytes() -> None:
    patients = ["p1", "p1", "p2", "", "", "p3"]
    content = ["a", "b", "b", "c", "c", "d"]
    groups = merge_groups(patients, content)
    assert len({groups[0], groups[1], groups[2]}) == 1
    assert groups[3] == groups[4]
    assert len(set(groups.tolist())) == 3


def test_merge_groups_takes_an_empty_value_for_unknown() -> None:
    assert len(set(merge_groups(["", "", ""]).tolist())) == 3


def test_the_same_text_in_two_columns_joins_nothing() -> None:
    assert len(set(merge_groups(["x", ""], ["", "x"]).tolist())) == 2


def test_a_group_on_two_sides_is_refused_with_the_first_rows() -> None:
    groups = np.array([0, 0, 1, 2, 2])
    split = Split(np.array([0, 2]), np.array([3]), np.array([1, 4]))
    names = ["a", "b", "c", "d", "e"]
    with pytest.raises(UsageError, match=r"2 group\(s\).*a \(train\) and b \(test\); d \(val\) and e \(test\)"):
        check_nothing_crosses(split, groups, names)
    check_nothing_crosses(Split(np.array([0, 1]), np.array([2]), np.array([3, 4])), groups, names)


def test_a_split_is_named_the_same_in_any_order_of_rows() -> None:
    one = Split(np.array([0, 1]), np.array([2]), np.array([], dtype=int)).named(["a", "b", "c"])
    other = Split(np.array([1, 2]), np.array([0]), np.array([], dtype=int)).named(["c", "b", "a"])
    assert one == other
