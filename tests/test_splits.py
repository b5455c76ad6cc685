"""Splits: one invariant, stated once and applied to everything that splits."""

import hashlib
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import splits
from featcache.errors import UsageError
from featcache.specs import MAX_REPEATS
from featcache.splits import (
    Fold,
    Split,
    carve,
    check_nothing_crosses,
    from_json,
    hold_out,
    k_folds,
    merge_groups,
    split_name,
    stratum,
    to_json,
)

NO_ROWS = np.array([], dtype=np.int64)


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


def check_valid_folds(folds: list[Fold], n: int, groups: np.ndarray) -> None:
    """A fold's sides are together all n rows, in order, and share no group; each row is held once per repeat."""
    for fold in folds:
        check_valid_split(Split(fold.train, fold.val, NO_ROWS), n, groups)
        assert len(fold.train) + len(fold.val) == n
        assert len(fold.train)
        assert len(fold.val)
    for repeat in {fold.repeat for fold in folds}:
        of_repeat = [fold for fold in folds if fold.repeat == repeat]
        assert [fold.number for fold in of_repeat] == list(range(len(of_repeat)))
        assert sorted(np.concatenate([fold.val for fold in of_repeat]).tolist()) == list(range(n))


def both_ways(one: np.ndarray, other: np.ndarray) -> list[Fold]:
    """Two sides as the two folds they make, for `check_valid_folds`."""
    return [Fold(one, other, 0, 0), Fold(other, one, 0, 1)]


def rows_of(folds: list[Fold]) -> list[tuple[int, int, list[int], list[int]]]:
    return [(fold.repeat, fold.number, fold.train.tolist(), fold.val.tolist()) for fold in folds]


@st.composite
def tasks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Labels, groups, k, seed: small, uneven, often impossible."""
    n, k = draw(st.integers(1, 40)), draw(st.integers(2, 5))
    labels = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    groups = draw(st.lists(st.integers(0, 30), min_size=n, max_size=n))
    return np.array(labels), np.array(groups), k, draw(st.integers(-(2**40), 2**40))


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
    check_valid_folds(both_ways(train, val), n, groups)
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


# --- folds ------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(tasks(), st.integers(1, 3))
def test_k_folds_are_valid_and_complete_or_refused(task: tuple[Any, ...], repeats: int) -> None:
    """Whatever the groups: valid folds with every class on both sides, the same each time, or an error."""
    labels, groups, k, seed = task
    try:
        folds = k_folds(labels, groups, k, seed, repeats)
    except UsageError:
        return
    assert len(folds) == k * repeats
    check_valid_folds(folds, len(labels), groups)
    for fold in folds:
        assert set(labels[fold.train]) == set(labels[fold.val]) == set(labels)
    assert rows_of(folds) == rows_of(k_folds(labels, groups, k, seed, repeats))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 6))
def test_even_groups_are_never_refused_however_they_are_numbered(seed: int, per_group: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.arange(120) // per_group
    labels = groups % 2
    for numbering in (groups, rng.permutation(120)[groups], -groups):
        folds = k_folds(labels, numbering, k, seed)
        check_valid_folds(folds, 120, groups)
        assert all(abs(len(fold.val) - 120 / k) <= 2 * per_group for fold in folds)
        assert all(abs(labels[fold.val].mean() - 0.5) < 0.2 for fold in folds)


def test_words_and_numbers_are_folded_alike() -> None:
    labels, groups = np.arange(60) % 3, np.arange(60) // 2
    words = np.array(["a", "b", "c"], dtype=object)[labels]
    assert rows_of(k_folds(labels, groups, 4, 0)) == rows_of(k_folds(words, groups, 4, 0))


def test_folds_are_those_of_scikit_learn() -> None:
    from sklearn.model_selection import StratifiedGroupKFold

    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, 200), rng.integers(0, 60, 200)
    expected = StratifiedGroupKFold(5, shuffle=True, random_state=7).split(labels, labels, groups)
    ours = k_folds(labels, groups, 5, 7)
    assert [(f.train.tolist(), f.val.tolist()) for f in ours] == [(t.tolist(), h.tolist()) for t, h in expected]


def test_a_repeat_has_the_folds_of_the_next_seed() -> None:
    labels, groups = np.arange(100) % 2, np.arange(100)
    repeated = k_folds(labels, groups, 5, 3, repeats=2)
    assert [f.val.tolist() for f in repeated[:5]] == [f.val.tolist() for f in k_folds(labels, groups, 5, 3)]
    assert [f.val.tolist() for f in repeated[5:]] == [f.val.tolist() for f in k_folds(labels, groups, 5, 4)]
    assert rows_of(repeated[:5]) != rows_of(repeated[5:])


@pytest.mark.parametrize("k", [-1, 0, 1, 101])
def test_an_impossible_number_of_folds_is_refused(k: int) -> None:
    with pytest.raises(UsageError, match=f"from 2 to 100, got {k}"):
        k_folds(np.arange(400) % 2, np.arange(400), k, 0)


@pytest.mark.parametrize("repeats", [-1, 0, 1001])
def test_an_impossible_number_of_repeats_is_refused(repeats: int) -> None:
    with pytest.raises(UsageError, match=f"from 1 to 1000, got {repeats}"):
        k_folds(np.arange(10) % 2, np.arange(10), 2, 0, repeats)


def test_no_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="no labelled rows"):
        k_folds(NO_ROWS, NO_ROWS, 2, 0)


def test_a_class_in_too_few_groups_is_refused_with_the_folds_it_allows() -> None:
    labels = np.array(["healthy"] * 20 + ["sick"] * 6)
    groups = np.array([*range(20), 20, 20, 21, 21, 22, 22])
    with pytest.raises(
        UsageError, match=r"class sick has 6 row\(s\) in 3 group\(s\).*for 5 folds: use at most 3 folds"
    ):
        k_folds(labels, groups, 5, 0)
    check_valid_folds(k_folds(labels, groups, 3, 0), 26, groups)


def test_a_class_of_one_group_cannot_be_folded() -> None:
    with pytest.raises(UsageError, match="not even two folds are possible"):
        k_folds(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 3]), 2, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 60), st.integers(2, 12))
def test_a_group_larger_than_a_fold_is_refused_with_the_most_folds_that_hold_it(
    large: int, others: int, k: int
) -> None:
    n = large + others
    groups = np.concatenate([np.zeros(large, dtype=int), 1 + np.arange(others)])
    possible = [folds for folds in range(2, n + 1) if large <= -(-n // folds)]
    advice = f"at most {max(possible)} folds" if possible else "not even two"
    if others + 1 < k or k in possible:
        return
    with pytest.raises(UsageError, match=rf"has {large} rows.*of {n} rows holds \({-(-n // k)}\): .*{advice}"):
        k_folds(np.zeros(n), groups, k, 0)


# Class 1 in three groups besides others; the draw of seed 0 leaves a fold without it, that of seed 1000 does not.
UNLUCKY = np.array([1, 0, 0, 1, 0, 0, 1, 0, 0, 1]), np.array([5, 1, 5, 6, 1, 6, 6, 8, 2, 4])
HOPELESS = np.array([2, 0, 1, 1, 0, 2, 1, 0]), np.array([3, 1, 1, 1, 1, 0, 3, 3])


def test_a_draw_that_leaves_a_fold_without_a_class_is_drawn_again() -> None:
    labels, groups = UNLUCKY
    first = splits._stratified_parts(labels, groups, 3, 0)
    assert any(set(labels[held]) != {0, 1} for held in first)
    folds = k_folds(labels, groups, 3, 0)
    check_valid_folds(folds, 10, groups)
    assert all(set(labels[fold.val]) == {0, 1} for fold in folds)
    further = splits._stratified_parts(labels, groups, 3, MAX_REPEATS)  # a seed that no other repeat begins with
    assert [fold.val.tolist() for fold in folds] == [held.tolist() for held in further]


def test_groups_too_uneven_for_any_draw_are_refused_with_counts() -> None:
    with pytest.raises(
        UsageError, match=r"21 draws of 2 folds.*without class 2 \(2 row\(s\) in 2 groups\).*not even two"
    ):
        k_folds(*HOPELESS, 2, 0)


# --- a set for early stopping -----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([0.1, 0.2, 0.5]))
def test_carving_divides_the_rows_given_and_no_group(seed: int, per_group: int, fraction: float) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.arange(150) // per_group)
    labels = groups % 2
    rows = k_folds(labels, groups, 3, seed)[0].train
    kept, carved = carve(labels, groups, rows, fraction, seed)
    check_valid_folds(both_ways(*(np.searchsorted(rows, side) for side in (kept, carved))), len(rows), groups[rows])
    assert sorted([*kept.tolist(), *carved.tolist()]) == rows.tolist()
    assert abs(len(carved) / len(rows) - fraction) < 0.15


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_carving_knows_rows_as_a_set_and_nothing_outside_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, groups, rows = np.arange(90) % 2, np.arange(90) // 2, np.arange(20, 80)
    expected = [side.tolist() for side in carve(labels, groups, rows, 0.2, seed)]
    shuffled = rng.permutation(np.concatenate([rows, rows[:7]]))
    assert [side.tolist() for side in carve(labels, groups, shuffled, 0.2, seed)] == expected
    elsewhere = np.setdiff1d(np.arange(90), rows)
    labels[elsewhere], groups[elsewhere] = 7, 1000
    assert [side.tolist() for side in carve(labels, groups, rows, 0.2, seed)] == expected


def test_carving_a_class_of_one_group_is_refused() -> None:
    with pytest.raises(UsageError, match=r"class 1 has 2 image\(s\), all of one group"):
        carve(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 3, 3, 4]), np.arange(5), 0.5, 0)


# --- several findings per row -----------------------------------------------------------------------------------------

NAN = float("nan")


def test_the_stratum_of_a_row_is_its_rarest_finding() -> None:
    labels = np.array([[1, 0, 0], [1, 1, NAN], [1, 1, 1], [0, NAN, 0], [NAN, NAN, NAN]])
    assert stratum(labels).tolist() == ["0", "1", "2", "none", "none"]
    assert stratum(labels, names=["opacity", "oedema", "mass"]).tolist() == [
        "opacity",
        "oedema",
        "mass",
        "none",
        "none",
    ]


def test_rarest_counts_groups_and_of_equals_the_first_wins() -> None:
    labels = np.array([[1, 1], [1, 0], [1, 0], [0, 1]])
    assert stratum(labels).tolist() == ["1", "0", "0", "1"]
    assert stratum(labels, np.array([0, 0, 0, 1])).tolist() == ["0", "0", "0", "1"]
    assert stratum(np.ones((2, 3))).tolist() == ["0", "0"]


def test_a_row_of_too_rare_a_finding_is_known_by_its_next() -> None:
    labels = np.array([[1, 1], [1, 0], [0, 0], [0, 0]])
    assert stratum(labels, min_groups=2).tolist() == ["0", "0", "none", "none"]


def test_a_stratum_emptied_by_rarer_findings_joins_none() -> None:
    """Finding 0 is in three groups, but all of them bar one also have the rarer finding 1."""
    labels = np.array([[1, 1], [1, 1], [1, 0], [0, 0], [0, 0]])
    assert stratum(labels, min_groups=2).tolist() == ["1", "1", "none", "none", "none"]


def test_too_few_rows_without_finding_join_the_most_frequent_stratum() -> None:
    labels = np.array([[0, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, 1]])
    assert stratum(labels, min_groups=2).tolist() == ["0", "0", "0", "0", "1", "1"]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(0, 4), st.integers(1, 5))
def test_strata_are_never_in_too_few_groups(seed: int, n: int, n_findings: int, min_groups: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0.0, 1.0, NAN], size=(n, n_findings), p=[0.6, 0.3, 0.1])
    groups = rng.integers(0, 15, n)
    strata = stratum(labels, groups, min_groups)
    assert strata.shape == (n,)
    assert strata.dtype.kind == "U"
    n_groups = {value: len(set(groups[strata == value])) for value in set(strata.tolist())}
    assert len(n_groups) <= 1 or min(n_groups.values()) >= min_groups


@pytest.mark.parametrize("strange", [-1.0, 0.5, float("inf")])
def test_labels_that_are_not_findings_are_refused(strange: float) -> None:
    with pytest.raises(UsageError, match=rf"2 label\(s\) are neither 0, 1 nor empty, the first is {strange:g}"):
        stratum(np.array([[0, strange], [1, strange]]))


# --- handing over -----------------------------------------------------------------------------------------------------


def written(record: Any) -> Any:
    """As it comes back from a file."""
    return json.loads(json.dumps(record))


def signed(**changes: Any) -> dict[str, Any]:
    """A small valid record with other values in places and a digest that matches them."""
    entry = {"repeat": 0, "number": 0, "train": ["a"], "val": ["b"]}
    record = {"format": "featcache.split", "version": 1, "test": ["c"], "folds": [entry], **changes}
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return {**record, "sha256": hashlib.sha256(text.encode("ascii")).hexdigest()}


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=4)


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY_TEXT, min_size=12, max_size=30, unique=True), st.integers(0, 10**6), st.booleans())
def test_a_split_comes_back_whatever_the_names_and_the_order_of_the_rows(
    names: list[str], seed: int, partial: bool
) -> None:
    if len(set(json.loads(json.dumps(names)))) < len(names):
        return  # one is written as the two halves of another's character
    rng = np.random.default_rng(seed)
    test, rows = np.arange(4), np.arange(4, len(names))
    groups = np.arange(len(rows))
    folds = k_folds(np.zeros(len(rows)), groups, 3, seed, repeats=2)
    check_valid_folds(folds, len(rows), groups)
    folds = [Fold(rows[f.train][partial:], rows[f.val], f.repeat, f.number) for f in folds]
    record = to_json(test, folds, names)
    assert all((entry["train"] is None) != partial for entry in record["folds"])
    back = from_json(written(record), names)
    assert (back[0].tolist(), rows_of(back[1]), back[2]) == (test.tolist(), rows_of(folds), 0)
    order = rng.permutation(len(names))
    moved = from_json(written(record), [names[i] for i in order])
    assert sorted(order[moved[0]].tolist()) == test.tolist()
    assert [sorted(order[f.val].tolist()) for f in moved[1]] == [f.val.tolist() for f in folds]
    assert to_json(moved[0], moved[1], [names[i] for i in order]) == record


def test_names_that_are_not_utf8_come_back() -> None:
    names = [b"lung\xff.png".decode("utf-8", "surrogateescape"), "\ud83d\ude00", "plain"]
    record = to_json(NO_ROWS, both_ways(np.array([0]), np.array([1, 2])), names)
    assert json.dumps(record).isascii()
    assert from_json(written(record), names)[2] == 0


def test_the_record_is_as_documented() -> None:
    record = to_json(np.array([2]), both_ways(np.array([1]), np.array([0])), ["b", "a", "c"])
    entries = [
        {"repeat": 0, "number": 0, "train": None, "val": ["b"]},
        {"repeat": 0, "number": 1, "train": None, "val": ["a"]},
    ]
    assert record == signed(test=["c"], folds=entries)


def test_rows_the_record_does_not_name_are_on_no_side() -> None:
    """A store that grew: the new row may share a patient with a held one."""
    folds = k_folds(np.zeros(9), np.arange(9), 3, 0)
    record = to_json(NO_ROWS, folds, list("abcdefghi"))
    test, back, missing = from_json(record, [*"abcdefghi", "new"])
    check_valid_folds(back, 9, np.arange(9))
    assert (len(test), missing) == (0, 0)


def test_names_the_store_lacks_are_counted_once_and_left_out() -> None:
    folds = k_folds(np.zeros(9), np.arange(9), 3, 0, repeats=2)
    record = to_json(np.array([9, 10]), folds, list("abcdefghijk"))
    test, back, missing = from_json(record, list("bcdefghij"))
    assert (test.tolist(), missing) == ([8], 2)
    check_valid_folds(back, 8, np.arange(8))


@pytest.mark.parametrize(("lost", "side"), [("a", "training side of fold 0"), ("b", "held side"), ("c", "test side")])
def test_a_side_of_which_the_store_has_no_row_is_refused(lost: str, side: str) -> None:
    with pytest.raises(UsageError, match=rf"{side}.* names 1 row\(s\), none of which is in this store"):
        from_json(signed(), [name for name in "abc" if name != lost])


@pytest.mark.parametrize("record", [None, [], "split", {}, signed(format="featcache.store")])
def test_another_format_is_refused(record: Any) -> None:
    with pytest.raises(UsageError, match=r"its format is .*, not 'featcache\.split'"):
        from_json(record, ["a"])


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_another_version_is_refused(version: Any) -> None:
    with pytest.raises(UsageError, match=r"of version .*, this release reads version 1"):
        from_json(signed(version=version), ["a"])


@pytest.mark.parametrize("changes", [{"test": ["d"]}, {"folds": []}, {"sha256": None}, {"more": 1}])
def test_a_changed_record_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="sha256 is not that of its content"):
        from_json({**signed(), **changes}, ["a", "b", "c"])


ENTRY = signed()["folds"][0]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"test": None}, "`test` is not a list of different names"),
        ({"test": "abc"}, "`test`"),
        ({"test": ["c", "c"]}, "`test`"),
        ({"test": [["c"]]}, "`test`"),
        ({"folds": None}, "`folds` is not a list of objects"),
        ({"folds": [ENTRY, 1]}, "`folds` is not a list of objects"),
        ({"folds": [{**ENTRY, "repeat": -1}]}, "`repeat` or `number` of entry 0"),
        ({"folds": [{**ENTRY, "number": True}]}, "`repeat` or `number` of entry 0"),
        ({"folds": [{"repeat": 0, "number": 0, "val": ["b"]}]}, "`train` or `val` of entry 0"),
        ({"folds": [ENTRY, {**ENTRY, "number": 1, "val": None}]}, "`train` or `val` of entry 1"),
        ({"folds": [{**ENTRY, "train": [0]}]}, "`train` or `val` of entry 0"),
        ({"folds": [ENTRY, ENTRY]}, "the same fold more than once"),
    ],
)
def test_a_wrong_shape_is_refused_by_place(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=f"wrong shape: .*{fault}"):
        from_json(signed(**changes), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"train": ["a", "b"]}, r"fold 0 of repeat 0 has 1 row\(s\) in two subsets, the first 'b'"),
        ({"train": ["a", "c"]}, "in two subsets, the first 'c'"),
        ({"val": ["c"]}, "in two subsets, the first 'c'"),
        ({"train": []}, "0 training and 1 validation rows"),
        ({"val": []}, "1 training and 0 validation rows"),
        ({"train": None}, "0 training and 1 validation rows"),
    ],
)
def test_a_row_on_two_sides_or_an_empty_side_is_refused_when_read(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        from_json(signed(folds=[{**ENTRY, **changes}]), ["a", "b", "c"])


@pytest.mark.parametrize("sides", [((0, 1), (1, 2)), ((0, 3), (1,)), ((0,), (3,)), ((), (1,)), ((0,), ())])
def test_a_row_on_two_sides_or_an_empty_side_is_refused_when_written(sides: tuple[tuple[int, ...], ...]) -> None:
    train, held = (np.array(side, dtype=np.int64) for side in sides)
    with pytest.raises(UsageError, match=r"in two subsets|it needs both"):
        to_json(np.array([3]), [Fold(train, held, 0, 0)], list("abcd"))


def test_two_rows_of_one_name_are_refused_both_ways() -> None:
    with pytest.raises(UsageError, match=r"2 row name\(s\) are there more than once"):
        to_json(NO_ROWS, [], ["a", "a", "b", "b"])
    with pytest.raises(UsageError, match=r"1 row name\(s\) are there more than once"):
        from_json(signed(), ["a", "b", "c", "c"])


def test_importing_splits_is_cheap() -> None:
    code = "import sys, featcache.splits; assert not {'sklearn', 'scipy', 'torch', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "name"),
    [(" Train ", "train"), ("imagesTr", "train"), ("TEST-set2", "test"), ("holdOut", "test"), ("valdata", "val"),
     ("contest", None), ("no_test", None), ("pretraining", None), ("set", None), ("", None), ("train test", None)],
)  # fmt: skip
def test_a_subset_is_known_by_its_word_alone(text: str, name: str | None) -> None:
    assert split_name(text) == name
