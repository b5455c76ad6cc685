"""The division of the rows: nothing that belongs together is on two sides, and a given division is kept."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import FeatcacheError, UsageError
from featcache.specs import SplitSpec, TargetSpec
from featcache.splits import Fold
from featcache.splits.protocol import Protocol, divide, watch_rows
from featcache.splits.task import Task
from featcache.store import Store
from tests.conftest import make_store, two_clouds

Array = np.ndarray
N = 240
GROUPS = [f"p{i // 5 * 2 + i % 2}" for i in range(N)]  # of one class each
SITES = [f"site{i // 10}" for i in range(N)]  # of both, and of whole patients
TWINS = np.array([[i, N - 2 - i] for i in range(0, 20, 2)])  # rows of one vector, far apart in all else
IDS = [f"image{i:05d}" for i in range(N)]


def words(value: object) -> str:
    """What a spec asks for besides the defaults: the name of its test."""
    if not isinstance(value, SplitSpec):
        return ""
    asked = (f"{f.name}={getattr(value, f.name)}" for f in fields(value) if getattr(value, f.name) != f.default)
    return ",".join(asked) or "default"


SPECS = [
    SplitSpec(),
    SplitSpec(val_fraction=0.4, seed=3),
    SplitSpec(n_repeats=3),
    SplitSpec(n_splits=4),
    SplitSpec(n_splits=3, n_repeats=2, seed=2**32 - 1),
    SplitSpec(n_splits=3, nested=True),
    SplitSpec(group_by="site"),
    SplitSpec(n_splits=3, nested=True, group_by="site"),
]


def vectors() -> Array:
    x = two_clouds(N, 12)[0]
    x[TWINS[:, 1]] = x[TWINS[:, 0]] * 3
    return x


def task_of(tmp_path: Path, columns: dict[str, list[str]] | None = None, target: TargetSpec = TargetSpec()) -> Task:
    """Patients of about three images, sites of ten; every twelfth image is there under two names."""
    labels = two_clouds(N, 12)[1]
    content = [f"{i - 24 if i % 12 == 0 and i >= 24 else i:064x}" for i in range(N)]
    made = {"label": labels, "group": GROUPS, "site": SITES, **(columns or {})}
    return Task.of(Store.open(make_store(tmp_path / "s.h5", vectors(), made, content)), target)


def parts(protocol: Protocol, task: Task) -> list[list[Array]]:
    """Everything that is ever on different sides of something: test, train and held rows; learnt from and watched."""
    inner = [(fold, outer.fold.val) for outer in protocol.outer for fold in outer.inner]
    found = []
    none = np.array([], dtype=int)
    for fold, outside in [*((fold, none) for fold in protocol.folds), *inner]:
        found.append([protocol.test, fold.train, fold.val, outside])
        kept, watched = watch_rows(task, protocol.groups, fold.train, protocol.seed)
        assert np.array_equal(np.sort(np.concatenate([kept, watched])), fold.train)
        assert len(watched)
        found.append([protocol.test, kept, watched, fold.val, outside])
    return found


def check_nothing_crosses(task: Task, spec: SplitSpec, keys: list[list[str]]) -> Protocol:
    """A valid division: every side has rows of every class where it learns, no row and no key is on two sides, and
    every row that is not test is held once per repeat of k folds."""
    protocol = divide(task, spec, vectors)
    known, repeats = set(task.labelled.tolist()), {fold.repeat for fold in protocol.folds}
    assert sorted([*protocol.test, *protocol.rows]) == sorted(known)
    for sides in parts(protocol, task):
        assert len(np.concatenate(sides)) == len(np.unique(np.concatenate(sides)))
        assert task.counts(sides[1]).all()
        for key in keys:
            on = [{key[i] for i in rows} - {""} for rows in sides]
            assert len(set().union(*on)) == sum(map(len, on))
    if spec.n_splits:
        for repeat in repeats:
            held = np.concatenate([fold.val for fold in protocol.folds if fold.repeat == repeat])
            assert np.array_equal(np.sort(held), protocol.rows)
    for outer in protocol.outer:
        within = np.concatenate([fold.val for fold in outer.inner])
        assert np.array_equal(np.sort(within), outer.fold.train)
    assert len(protocol.outer) == (len(protocol.folds) if spec.nested else 0)
    return protocol


@pytest.mark.parametrize("spec", SPECS, ids=words)
def test_no_group_and_no_identical_image_is_ever_on_two_sides(tmp_path: Path, spec: SplitSpec) -> None:
    task = task_of(tmp_path)
    protocol = check_nothing_crosses(task, spec, [task.columns[spec.group_by or "group"], task.content])
    assert not len(protocol.test)
    assert len(protocol.near[0]) == 0


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[3], SPECS[5]], ids=words)
def test_no_near_duplicate_is_ever_on_two_sides_where_asked_for(tmp_path: Path, spec: SplitSpec) -> None:
    task = task_of(tmp_path)
    twin = [""] * N
    for i, j in TWINS.tolist():
        twin[i] = twin[j] = f"twin{i}"
    protocol = check_nothing_crosses(task, replace(spec, near_duplicates=0.9999), [GROUPS, task.content, twin])
    assert {tuple(pair) for pair in protocol.near[0].tolist()} >= {tuple(pair) for pair in TWINS.tolist()}
    with pytest.raises(AssertionError):  # and it is the asking that keeps them together
        check_nothing_crosses(task, spec, [twin])


def test_findings_are_divided_as_classes_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {name: [str(int(v < share)) for v in rng.random(N)] for name, share in (("x", 0.5), ("y", 0.2))}
    columns["y"] = [value if i % 7 else "" for i, value in enumerate(columns["y"])]
    task = task_of(tmp_path, columns, TargetSpec(("x", "y")))
    for spec in SPECS:
        check_nothing_crosses(task, spec, [task.columns[spec.group_by or "group"], task.content])


def test_the_same_seed_divides_alike_and_another_does_not(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    for spec in SPECS[:6]:
        drawn = [divide(task, replace(spec, seed=seed), vectors).record(IDS) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]


# --- a given division -------------------------------------------------------------------------------------------------


def plain(tmp_path: Path, side: list[str], n: int = 100, **columns: list[str]) -> Task:
    """A task of n rows that nothing ties to one another."""
    labels = two_clouds(n, 4)[1]
    return Task.of(
        Store.open(make_store(tmp_path / "s.h5", np.ones((n, 4)), {"label": labels, "split": side, **columns}))
    )


def no_vectors() -> Array:
    raise AssertionError("vectors are read for near-duplicates only")


def test_given_sides_are_kept_and_validation_is_carved_from_train_alone(tmp_path: Path) -> None:
    protocol = divide(plain(tmp_path, ["train"] * 60 + ["test"] * 40), SplitSpec(), no_vectors)
    assert protocol.test.tolist() == list(range(60, 100))
    assert protocol.rows.tolist() == list(range(60))
    assert len(protocol.folds[0].val) == 12
    assert protocol.is_hold_out


def test_given_validation_rows_are_used_unless_a_fraction_or_folds_are_asked_for(tmp_path: Path) -> None:
    task = plain(tmp_path, ["train"] * 80 + ["val"] * 4 + ["test"] * 16)
    (fold,) = divide(task, SplitSpec(seed=5), no_vectors).folds
    assert (fold.val.tolist(), fold.train.tolist()) == ([80, 81, 82, 83], list(range(80)))
    (drawn,) = divide(task, SplitSpec(val_fraction=0.25), no_vectors).folds
    assert len(drawn.val) in range(18, 25)
    assert sorted([*drawn.train, *drawn.val]) == list(range(84))
    folds = divide(task, SplitSpec(n_splits=4), no_vectors).folds
    assert sorted(np.concatenate([fold.val for fold in folds])) == list(range(84))


def test_given_validation_rows_cannot_be_drawn_anew(tmp_path: Path) -> None:
    task = plain(tmp_path, ["train"] * 50 + ["val"] * 50)
    with pytest.raises(UsageError, match=r"cannot be drawn again. Give `val_fraction` or `n_splits`"):
        divide(task, SplitSpec(n_repeats=2), no_vectors)


def test_a_store_of_validation_rows_alone_needs_a_fraction(tmp_path: Path) -> None:
    task = plain(tmp_path, ["val"] * 60 + ["test"] * 40)
    with pytest.raises(UsageError, match="leaves no labelled image to train on"):
        divide(task, SplitSpec(), no_vectors)
    assert divide(task, SplitSpec(val_fraction=0.2), no_vectors).rows.tolist() == list(range(60))


def test_an_empty_split_column_is_no_split(tmp_path: Path) -> None:
    protocol = divide(plain(tmp_path, [""] * 100), SplitSpec(), no_vectors)
    assert (len(protocol.test), len(protocol.rows), protocol.left_out) == (0, 100, {})


def test_rows_without_a_side_are_left_out_and_counted(tmp_path: Path) -> None:
    task = plain(tmp_path, ["train"] * 60 + ["test"] * 20 + [""] * 15 + ["later"] * 5)
    protocol = divide(task, SplitSpec(n_splits=3), no_vectors)
    assert protocol.left_out == {"no split": 20}
    assert protocol.rows.max() == 59


@pytest.mark.parametrize("key", ["group", "site", "content", "vector"])
def test_a_given_split_that_leaks_is_refused_with_the_first_five(tmp_path: Path, key: str) -> None:
    """Seven pairs cross it."""
    x, labels = two_clouds(60, 8)
    partner = [i - 40 if 40 <= i < 47 else i for i in range(60)]
    columns = {"label": labels, "split": ["train"] * 40 + ["test"] * 20}
    tied, content = [f"p{i}" for i in partner], None
    if key == "content":
        content = [f"{i:064x}" for i in partner]
    elif key == "vector":
        x = x[partner]
    else:
        columns[key] = tied
    task = Task.of(Store.open(make_store(tmp_path / "s.h5", x, columns, content)))
    spec = SplitSpec(group_by="site" if key == "site" else None, near_duplicates=1.0 if key == "vector" else None)
    first = "; ".join(f"image000{i:02d} (train) and image000{i + 40} (test)" for i in range(5))
    for asked in (spec, replace(spec, n_splits=3)):
        with pytest.raises(UsageError) as caught:
            divide(task, asked, lambda: x)
        assert "7 group(s) or identical images are in more than one subset" in str(caught.value)
        assert f"The first: {first}." in str(caught.value)


def test_an_unknown_group_column_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no column 'patient' to group by; there are label, split\."):
        divide(plain(tmp_path, [""] * 100), SplitSpec(group_by="patient"), no_vectors)


# --- a saved division -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS[:5], ids=words)
def test_a_saved_division_is_the_same_division(tmp_path: Path, spec: SplitSpec) -> None:
    task = task_of(tmp_path, {"split": ["test" if int(site[4:]) < 8 else "train" for site in SITES], "group": SITES})
    drawn = divide(task, spec, vectors)
    (tmp_path / "split.json").write_text(json.dumps(drawn.record(IDS)))
    taken = divide(task, SplitSpec(file=tmp_path / "split.json"), vectors)
    assert taken.record(IDS) == drawn.record(IDS)
    assert len(drawn.test)
    assert taken.left_out == {}


def saved(tmp_path: Path, test: list[int], folds: list[Fold], n: int = 100) -> Path:
    protocol = Protocol(np.array(test, dtype=int), folds, [], np.arange(n), {}, (np.empty((0, 2), int), np.empty(0)), 0)
    path = tmp_path / "split.json"
    path.write_text(json.dumps(protocol.record([f"image{i:05d}" for i in range(n)])))
    return path


def test_rows_that_a_saved_division_does_not_name_are_left_out_and_counted(tmp_path: Path) -> None:
    labels = two_clouds(100, 4)[1]
    labels[3] = ""
    task = Task.of(Store.open(make_store(tmp_path / "s.h5", np.ones((100, 4)), {"label": labels})))
    file = saved(tmp_path, [0, 1, 2, 3], [Fold(np.arange(4, 50), np.r_[50:80, 110:120], 0, 0)], 120)
    protocol = divide(task, SplitSpec(file=file), no_vectors)
    assert (protocol.test.tolist(), protocol.rows.tolist()) == ([0, 1, 2], list(range(4, 80)))
    assert protocol.left_out == {"no label": 1, "no row in this store": 10, "no place in the split": 20}


def test_a_saved_division_in_which_a_group_crosses_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, [0, 1], [Fold(np.arange(10, 50), np.arange(50, 99), 0, 0)])
    for pair in ((0, 10), (0, 50), (10, 50)):
        group = ["one" if i in pair else "" for i in range(100)]
        task = plain(tmp_path, [""] * 100, group=group)
        with pytest.raises(UsageError, match=r"1 group.* in more than one subset of the given split"):
            divide(task, SplitSpec(file=file), no_vectors)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "is no saved split"),
        (lambda text: "[]", "this is not a split"),
        (lambda text: text.replace("image00000", "image00099"), "sha256 is not that of its content"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "of version 2"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: object, message: str) -> None:
    file = saved(tmp_path, [0, 1], [Fold(np.arange(10, 50), np.arange(50, 99), 0, 0)])
    file.write_text(damage(file.read_text()))  # type: ignore[operator]
    with pytest.raises(UsageError, match=f"split.json.*{message}"):
        divide(plain(tmp_path, [""] * 100), SplitSpec(file=file), no_vectors)


def test_a_file_that_is_missing_not_text_or_of_another_store_is_refused(tmp_path: Path) -> None:
    task = plain(tmp_path, [""] * 100)
    with pytest.raises(FeatcacheError, match=r"none.json: no such file"):
        divide(task, SplitSpec(file=tmp_path / "none.json"), no_vectors)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"bytes.json is no saved split"):
        divide(task, SplitSpec(file=tmp_path / "bytes.json"), no_vectors)
    file = saved(tmp_path, [], [Fold(np.arange(100, 150), np.arange(150, 199), 0, 0)], 200)
    with pytest.raises(UsageError, match=r"split.json: the training side.* none of which is in this store"):
        divide(task, SplitSpec(file=file), no_vectors)


def test_a_saved_side_without_a_label_is_refused(tmp_path: Path) -> None:
    labels = two_clouds(100, 4)[1]
    labels[50:] = [""] * 50
    task = Task.of(Store.open(make_store(tmp_path / "s.h5", np.ones((100, 4)), {"label": labels})))
    file = saved(tmp_path, [], [Fold(np.arange(50), np.arange(50, 99), 0, 0)])
    with pytest.raises(UsageError, match="leaves a subset without a labelled image"):
        divide(task, SplitSpec(file=file), no_vectors)


# --- what is impossible -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_splits": 5, "val_fraction": 0.2}, "`n_splits` and `val_fraction` exclude each other"),
        ({"nested": True}, "`nested` needs `n_splits`"),
        ({"n_repeats": 0}, "`n_repeats` must be from 1 to 1000, got 0"),
        ({"n_repeats": 1001}, "`n_repeats` must be from 1 to 1000, got 1001"),
        ({"n_splits": 1}, "`n_splits` must be from 2 to 100, got 1"),
        ({"n_splits": 101}, "`n_splits` must be from 2 to 100, got 101"),
        ({"val_fraction": 1.0}, "`val_fraction` must be > 0 and below 1, got 1.0"),
        ({"val_fraction": 0.0}, "`val_fraction` must be > 0 and below 1, got 0.0"),
        ({"near_duplicates": 1.5}, r"`near_duplicates` must be > 0 and at most 1 \(a cosine\), got 1.5"),
        ({"seed": -1}, r"`seed` must be from 0 to 2\^32 - 1, got -1"),
        *(({"file": Path("x"), **more}, "a split from a file says all") for more in (
            {"n_splits": 5}, {"val_fraction": 0.2}, {"n_repeats": 2}, {"nested": True, "n_splits": 2},
        )),
    ],
)  # fmt: skip
def test_an_impossible_spec_is_refused_at_birth(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitSpec(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            SplitSpec(n_splits=60),
            r"class normal has 50 row\(s\) in 50 group\(s\), .*too few for 60 folds: use at most 50",
        ),
        (
            SplitSpec(n_splits=50, nested=True),
            r"has 49 row\(s\) in 49 group\(s\), too few for 50 folds: use at most 49",
        ),
        (SplitSpec(near_duplicates=1.0), r"class normal has 50 image\(s\), all of one group"),
        (SplitSpec(near_duplicates=1.0, n_splits=2), r"has 50 row\(s\) in 1 group\(s\), too few for 2 folds"),
    ],
    ids=words,
)
def test_a_division_that_cannot_be_drawn_says_why(tmp_path: Path, spec: SplitSpec, message: str) -> None:
    """Of 50 rows a class, all with the same vector."""
    with pytest.raises(UsageError, match=message):
        divide(plain(tmp_path, [""] * 100), spec, lambda: np.ones((100, 4)))


def test_a_class_of_one_row_or_one_patient_is_refused_with_the_count(tmp_path: Path) -> None:
    for labels, group, count in (
        (["a"] * 50 + ["b"] * 49 + ["c"], [""] * 100, "class c has 1 image"),
        (["a"] * 50 + ["b"] * 50, ["p"] * 50 + [f"q{i}" for i in range(50)], "class a has 50 image"),
    ):
        columns = {"label": labels, "group": group}
        task = Task.of(Store.open(make_store(tmp_path / "s.h5", np.ones((100, 4)), columns)))
        with pytest.raises(UsageError, match=rf"{count}\(s\), all of one group"):
            divide(task, SplitSpec(), no_vectors)


def test_a_class_that_only_test_rows_have_is_refused(tmp_path: Path) -> None:
    side = ["train" if label == "normal" else "test" for label in two_clouds(100, 4)[1]]
    with pytest.raises(UsageError, match=r"the training rows have no image of class 'sick' \(40 normal, 0 sick\)"):
        divide(plain(tmp_path, side), SplitSpec(), no_vectors)


def test_too_few_groups_to_watch_are_refused_with_the_count(tmp_path: Path) -> None:
    group = ["p" if i % 2 else "" for i in range(100)]
    task = plain(tmp_path, ["train"] * 90 + ["val"] * 10, group=[g if i < 90 else "" for i, g in enumerate(group)])
    protocol = divide(task, SplitSpec(), no_vectors)
    with pytest.raises(UsageError, match=r"class sick has 45 image\(s\), all of one group"):
        watch_rows(task, protocol.groups, protocol.folds[0].train, 0)
