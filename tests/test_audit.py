"""What is planted in a store is found, and a clean one shows nothing."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from featcache.auditing import confounds, suspects
from featcache.auditing.audit import audit
from featcache.auditing.confounds import Variable
from featcache.auditing.results import Audit, check_free
from featcache.cli.auditing import print_audit
from featcache.errors import UsageError
from featcache.manifest import Manifest
from featcache.store import Store
from tests.conftest import draw, make_store, two_clouds
from tests.test_cli import featcache

N, D = 400, 24
GROUPS = [f"patient{i // 2}" for i in range(N)]
SPLITS = ["train" if i % 10 < 7 else "test" for i in range(N // 2) for _ in (0, 1)]


def found_in(path: Path, **options: object) -> Audit:
    with Store.open(path) as store:
        return audit(store, **options)


def columns_of(labels: list[str], **others: list[str]) -> dict[str, list[str]]:
    return {"label": labels, "group": GROUPS, "split": SPLITS, **others}


def score_of(found: Audit, name: str) -> confounds.Confound:
    return next(each for each in found.confounds if each.name == name)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """A store with everything: a scanner in the vectors that goes with the label, a ward in neither, wrong labels,
    outliers, copies within and across splits, one of them with another label, and near copies."""
    rng = np.random.default_rng(3)
    x, labels = two_clouds(N, D, seed=3, apart=5.0)
    scanner = np.array(["new" if (label == "sick") == (rng.random() < 0.8) else "old" for label in labels])
    x[:, 0] += np.where(scanner == "new", 3.0, -3.0)
    wrong, odd = [11, 52, 153], [200, 301]
    for row in wrong:
        labels[row] = "normal" if labels[row] == "sick" else "sick"
    x[odd] = 40 * rng.standard_normal((2, D)) * (np.arange(D) > D - 4)
    train, test = ([i for i in range(60, 180) if SPLITS[i] == side] for side in ("train", "test"))
    content = [f"{i:064x}" for i in range(N)]
    for one, other in ((train[0], train[9]), (train[1], test[0])):
        content[other], x[other] = content[one], x[one]
    labels[train[9]], labels[train[0]] = "normal", "sick"
    labels[test[0]] = labels[train[1]]
    x[test[5]] = x[train[5]] * 1.0001 + 1e-4
    ages = [str(20 + 60 * rng.random()) for _ in range(N)]
    wards = [("a", "b", "c")[rng.integers(3)] for _ in range(N)]
    texts = [f"report {i}" for i in range(N)]
    others = {"scanner": list(scanner), "ward": wards, "age": ages, "findings": texts, "kind": labels}
    path = make_store(tmp_path_factory.mktemp("planted") / "p.h5", x, columns_of(labels, **others), content)
    return path, {
        "wrong": wrong, "odd": odd, "copies": [train[0], train[9], train[1], test[0]], "near": [train[5], test[5]],
    }  # fmt: skip


@pytest.fixture(scope="module")
def found(planted: tuple[Path, dict[str, list[int]]]) -> Audit:
    return found_in(planted[0], near=0.9999)


# --- copies -----------------------------------------------------------------------------------------------------------


def test_copies_are_sets_and_those_across_splits_or_of_two_labels_are_marked(
    planted: tuple[Path, dict[str, list[int]]], found: Audit
) -> None:
    a, b, c, d = (found.image_ids[row] for row in planted[1]["copies"])
    assert {tuple(sorted(each.images)) for each in found.identical} == {tuple(sorted((a, b))), tuple(sorted((c, d)))}
    assert [sorted(each.images) for each in found.identical if each.crosses] == [sorted((c, d))]
    assert [sorted(each.images) for each in found.identical if len(each.labels) > 1] == [sorted((a, b))]


def test_near_copies_across_splits_are_told_from_copies(
    planted: tuple[Path, dict[str, list[int]]], found: Audit
) -> None:
    near = found.near
    of = {
        tuple(pair): (bool(c), bool(i))
        for pair, c, i, is_near in zip(near.pairs.tolist(), near.crosses, near.identical, near.is_near, strict=True)
        if is_near
    }
    a, b, c, d = planted[1]["copies"]
    assert of == {
        tuple(sorted((a, b))): (False, True), tuple(sorted((c, d))): (True, True),
        tuple(sorted(planted[1]["near"])): (True, False),
    }  # fmt: skip
    assert (near.count(across=False), near.count(across=True)) == (1, 1)
    assert near.pairs[0].tolist() == planted[1]["copies"][2:]
    assert [(each["image_id"], each["near"]) for each in found.top_across_splits()][:2] == [
        (found.image_ids[min(planted[1]["near"])], "yes"), (found.top_across_splits()[1]["image_id"], "no"),
    ]  # fmt: skip


@pytest.mark.parametrize("n", [700, 60])
def test_of_vectors_that_are_all_alike_few_pairs_are_listed_and_a_threshold_is_named(tmp_path: Path, n: int) -> None:
    x = 100 + np.random.default_rng(0).standard_normal((n, 8))
    path = make_store(tmp_path / "s.h5", x, {"split": ["train", "test"] * (n // 2)})
    found = found_in(path)
    assert found.near.count(across=False) is None
    (note,) = [note for note in found.notes if "near duplicates" in note]
    assert "100.0% of all pairs have a cosine similarity of at least 0.95, so this threshold does not" in note
    low = float(note.partition("`near`=")[2].partition(" leaves")[0])
    assert (found.near.cosine >= low).all()
    assert f"{max(5, n // 20)} pairs" in note
    raised = found_in(path, near=low)
    assert 0 < (raised.near.count(across=False) or 0) <= max(5, n // 20)
    assert len(found.near.pairs) <= raised.near.count(across=True)
    assert not [note for note in raised.notes if "near duplicates" in note]


def test_of_vectors_that_are_the_same_no_threshold_is_named(tmp_path: Path) -> None:
    found = found_in(make_store(tmp_path / "s.h5", np.ones((40, 3)), {}))
    (note,) = [note for note in found.notes if "near duplicates" in note]
    assert note.endswith("does not identify near duplicates; no higher threshold separates them")


def test_a_cosine_that_many_but_not_most_pairs_reach_is_said_beside_the_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = np.repeat(rng.standard_normal((20, 40)), 6, axis=0) + 0.01 * rng.standard_normal((120, 40))
    found = found_in(make_store(tmp_path / "s.h5", x, {}))
    assert found.near.count(across=False) == 20 * 6 * 5 // 2
    (note,) = [note for note in found.notes if "near duplicates" in note]
    assert "4.2% of all pairs have a cosine similarity of at least 0.95; `near`=0.9" in note


@pytest.mark.parametrize("n", [24, 650])
def test_identical_files_are_no_near_copies_however_many(tmp_path: Path, n: int) -> None:
    """650 identical ones are more pairs than are listed."""
    x = np.random.default_rng(0).standard_normal((n + 2, 6))
    x[:n] = x[0]
    x[n + 1] = 1.0001 * x[n]
    found = found_in(make_store(tmp_path / "s.h5", x, {}, ["ab" * 32] * n + ["cd" * 32, "ef" * 32]))
    assert [len(each.images) for each in found.identical] == [n]
    assert found.near.count(across=False) == 1
    assert not [note for note in found.notes if "near duplicates" in note]


# --- confounds --------------------------------------------------------------------------------------------------------


def test_a_planted_confound_is_above_chance_from_vectors_and_to_the_label(found: Audit) -> None:
    scanner = score_of(found, "scanner")
    assert scanner.from_vectors is not None
    assert scanner.label_score is not None
    assert scanner.from_vectors.low > 0.9
    assert 0.6 < scanner.label_score.low < 0.8 < scanner.label_score.high < 0.95
    assert found.confounds[0] is scanner
    assert found.label_from_variables is not None
    assert found.label_from_variables.above_chance
    assert found.label_from_vectors is not None
    assert found.label_from_vectors.low > 0.9


def test_what_is_in_neither_is_at_chance(found: Audit) -> None:
    for name in ("ward", "age", "split"):
        each = score_of(found, name)
        assert each.from_vectors is not None
        assert each.from_vectors.low <= confounds.CHANCE <= each.from_vectors.high, name
        assert each.label_score is None or each.label_score.low <= confounds.CHANCE, name
    assert score_of(found, "split").label_score is None
    assert len(score_of(found, "age").classes) == 5


def test_free_text_and_the_label_in_other_words_are_no_variables(found: Audit) -> None:
    assert found.excluded["findings"] == "400 different texts"
    assert found.excluded["kind"] == "repeats the label"
    assert found.excluded["source folder"] == "the same everywhere"
    assert {each.name for each in found.confounds} == {"scanner", "ward", "age", "split"}


@pytest.mark.parametrize("seed", [1, 2])
def test_a_clean_store_shows_no_confound_no_copy_and_no_confident_doubt(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, labels = two_clouds(N, D, seed=seed, apart=12.0)
    wards = [("a", "b")[rng.integers(2)] for _ in range(N)]
    found = found_in(make_store(tmp_path / "c.h5", x, columns_of(labels, ward=wards)), near=0.9999)
    assert not [each.name for each in found.confounds if each.from_vectors and each.from_vectors.above_chance]
    assert not [each.name for each in found.confounds if each.label_score and each.label_score.above_chance]
    assert (len(found.identical), found.near.count(across=False)) == (0, 0)
    assert found.label_issues is not None
    assert not found.label_issues.is_issue.any()


def test_no_group_is_on_two_sides_of_the_folds_that_score(tmp_path: Path) -> None:
    """A vector that is its patient's alone tells the patient's ward only to those who have seen the patient."""
    rng = np.random.default_rng(5)
    of_patient = rng.standard_normal((N // 2, 150))
    x = np.repeat(of_patient, 2, axis=0) + 0.01 * rng.standard_normal((N, 150))
    wards = [("a", "b")[w] for w in np.repeat(rng.integers(2, size=N // 2), 2)]
    columns = columns_of(["n"] * N, ward=wards)
    told = score_of(found_in(make_store(tmp_path / "g.h5", x, columns)), "ward").from_vectors
    del columns["group"]
    blind = found_in(make_store(tmp_path / "b.h5", x, columns))
    blind_told = score_of(blind, "ward").from_vectors
    assert told is not None
    assert blind_told is not None
    assert told.low < 0.5 < told.high
    assert blind_told.low > 0.7
    assert any("no groups" in note for note in blind.notes)


def test_values_in_few_groups_become_one_and_unknown_ones_are_not_learnt() -> None:
    texts = ["a"] * 40 + ["b"] * 40 + [f"rare{i % 4}" for i in range(16)] + [""] * 4
    variable = Variable.of("view", texts, np.arange(100))
    assert isinstance(variable, Variable)
    assert variable.classes == ["a", "b", "(rare)"]
    assert np.bincount(variable.codes + 1).tolist() == [4, 40, 40, 16]
    assert variable.predictors().sum(axis=0).tolist() == [40, 40, 16, 4]
    assert Variable.of("view", ["a"] * 96 + ["b"] * 4, np.arange(100)) == "the same everywhere, but for a few"


def test_numbers_are_learnt_by_fifths_and_predict_by_value() -> None:
    numbers = np.random.default_rng(0).permutation(200)
    variable = Variable.of("width", [str(n) for n in numbers] + [""], np.arange(201))
    assert isinstance(variable, Variable)
    assert variable.classes == ["<= 39", "39 to 79", "79 to 119", "119 to 159", "> 159"]
    assert (variable.codes[:-1] == numbers // 40).all()
    assert variable.codes[-1] == -1
    assert np.array_equal(variable.predictors()[:, 0], [*numbers, np.nan], equal_nan=True)


def test_a_number_that_most_images_have_is_told_from_the_others() -> None:
    """Also where it is the greatest, and where so few are others that they are no tenth."""
    half = Variable.of("width", ["1024"] * 150 + [str(n) for n in range(50)], np.arange(200))
    few = Variable.of("width", ["1024"] * 985 + [str(n) for n in range(15)], np.arange(1000))
    assert isinstance(half, Variable)
    assert isinstance(few, Variable)
    assert np.bincount(half.codes).tolist() == [40, 160]
    assert few.classes == ["1024", "others"]
    assert np.bincount(few.codes).tolist() == [985, 15]


def test_numbers_at_the_end_of_the_floats_are_cut_like_others() -> None:
    """Where the sum of two of them, or their difference, is no float any more."""
    huge = [9.0e307 + 2.3e304 * i for i in range(100)]
    for numbers in (huge, [sign * number for sign in (-1.9, 1.9) for number in huge[::2]]):
        variable = Variable.of("dose", [repr(number) for number in numbers], np.arange(100))
        assert isinstance(variable, Variable)
        assert np.bincount(variable.codes).tolist() == [20] * 5
        assert np.isfinite(variable.predictors()).all()


def test_a_value_in_too_few_groups_is_named() -> None:
    values = [str(i) for i in range(40)]
    variable = Variable.of("age", values, np.arange(40))
    assert isinstance(variable, Variable)
    with pytest.raises(UsageError, match=r"> 31 has 8 row\(s\) in 1 group\(s\)"):
        confounds.score_of(variable, np.eye(40, dtype=np.float32), np.minimum(np.arange(40), 21))


# --- outliers ---------------------------------------------------------------------------------------------------------


def test_planted_outliers_are_the_furthest(planted: tuple[Path, dict[str, list[int]]], found: Audit) -> None:
    assert set(found.ranked_outliers[:2]) == set(planted[1]["odd"])


@pytest.mark.parametrize("max_reference", [1000, 60])
def test_distances_are_those_of_brute_force(max_reference: int) -> None:
    x = np.random.default_rng(0).standard_normal((90, 7)).astype(np.float32)
    x[40] = x[3]
    kth, nearest = suspects.outliers(x, k=4, max_reference=max_reference)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    apart = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    drawn = np.random.default_rng(0).permutation(90)[:max_reference] if max_reference < 90 else np.arange(90)
    others = np.sort(apart[:, drawn], axis=1)
    assert np.allclose(kth, others[:, 3], atol=1e-3)
    assert np.allclose(apart[np.arange(90), nearest], others[:, 0], atol=1e-3)


@pytest.mark.parametrize("most", [3, 1000])
def test_the_nearest_across_splits_are_those_of_brute_force(most: int) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((60, 5))
    sides = np.array(["train"] * 30 + ["val"] * 10 + ["test"] * 15 + [""] * 5, dtype=object)[rng.permutation(60)]
    content = np.array([f"{i}" for i in range(60)], dtype=object)
    one, other = np.flatnonzero(sides == "train")[0], np.flatnonzero(sides == "test")[0]
    x[other], content[other] = x[one], content[one]
    pairs, cosine = suspects.nearest_across_splits(x, sides, content, most)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    best = {}
    for few, many in (("val", "test"), ("val", "train"), ("test", "train")):
        for i in np.flatnonzero(sides == few):
            others = [j for j in np.flatnonzero(sides == many) if content[j] != content[i]]
            j = max(others, key=lambda j: unit[i] @ unit[j])
            best[tuple(sorted((int(i), int(j))))] = float(unit[i] @ unit[j])
    expected = sorted(best.values(), reverse=True)[:most]
    assert len(pairs) == len({tuple(pair) for pair in pairs.tolist()}) == len(expected)
    assert np.allclose(cosine, expected, atol=1e-5)
    assert all(abs(best[tuple(pair)] - c) < 1e-5 for pair, c in zip(pairs.tolist(), cosine, strict=True))


# --- labels -----------------------------------------------------------------------------------------------------------


def test_planted_wrong_labels_rank_first(planted: tuple[Path, dict[str, list[int]]], found: Audit) -> None:
    wrong = {*planted[1]["wrong"], planted[1]["copies"][0], planted[1]["copies"][1]}  # two copies, two labels: one is
    assert found.label_issues is not None
    ranked = [int(found.labelled_rows[place]) for place in found.ranked_labels]
    assert set(planted[1]["wrong"]) <= set(ranked[: len(wrong)])
    assert {*ranked[:3]} <= wrong
    assert found.label_issues.is_issue[found.ranked_labels[:3]].all()


def test_confident_learning_counts_as_it_is_defined() -> None:
    """Four rows of two classes whose thresholds are 0.6 and 0.7, by hand."""
    p = np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8], [0.4, 0.6]])
    labels = np.array([0, 0, 1, 1])
    found = suspects.find_label_issues(labels, np.log(p))
    assert found.is_issue.tolist() == [False, True, False, False]
    assert found.suggested.tolist() == [0, 1, 1, 1]
    assert np.allclose(found.loss, -np.log([0.9, 0.3, 0.8, 0.6]))
    assert np.allclose(found.p_given, [0.9, 0.3, 0.8, 0.6])


def test_a_label_as_probable_as_another_is_in_no_doubt() -> None:
    """Of equal vectors with two labels neither is accused; the order of the classes is no evidence."""
    labels = np.array([0, 1] * 15)
    logits = np.zeros((30, 2), dtype=np.float32)
    found = suspects.find_label_issues(labels, logits)
    assert not found.is_issue.any()
    assert (found.suggested == labels).all()
    logits[::2, 0] += 1e-7  # what a solver leaves of nothing
    assert not suspects.find_label_issues(labels, logits).is_issue.any()


def test_a_label_that_is_the_likeliest_is_not_contradicted() -> None:
    """The thresholds are 0.8 and 0.225: the second row counts in class 1, whose probability is lower."""
    p = np.array([[0.98, 0.02], [0.6, 0.4], [0.9, 0.1], [0.65, 0.35]])
    found = suspects.find_label_issues(np.array([0, 0, 1, 1]), np.log(p))
    assert found.is_issue.tolist() == [False, False, True, False]
    assert found.suggested.tolist() == [0, 0, 0, 0]


# --- what cannot be learnt --------------------------------------------------------------------------------------------


def test_a_store_without_labels_is_audited_for_the_rest(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((30, 6))
    found = found_in(make_store(tmp_path / "s.h5", x, {}))
    assert (found.label_issues, found.label_from_vectors, found.label_from_variables) == (None, None, None)
    assert len(found.ranked_outliers) == 30
    assert any("fewer than two classes" in note for note in found.notes)


def test_a_class_of_few_patients_is_left_out_and_said(tmp_path: Path) -> None:
    x, labels = two_clouds(N, D, seed=9, apart=5.0)
    labels[5] = labels[6] = "rare"
    found = found_in(make_store(tmp_path / "s.h5", x, columns_of(labels)))
    assert len(found.labelled_rows) == N - 2
    assert any("fewer than 5 groups" in note and "rare" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore": ["colour"]}, "no column 'colour'"),
        ({"label": "colour"}, "no column 'colour'"),
        ({"near": 0.0}, "above 0 and at most 1"),
    ],
)
def test_what_is_not_there_cannot_be_asked_for(
    planted: tuple[Path, dict[str, list[int]]], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        found_in(planted[0], **options)


def test_one_image_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1 image; an audit needs at least two"):
        found_in(make_store(tmp_path / "s.h5", np.ones((1, 3)), {}))


# --- images, files and the command line -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of 60 images whose width goes with the class, as some vectors do, and the folder of the images."""
    folder = tmp_path_factory.mktemp("pictured")
    x, labels = two_clouds(60, 6, seed=1, apart=8.0)
    ids = [f"image{i:05d}" for i in range(60)]
    for i, (name, label) in enumerate(zip(ids, labels, strict=True)):
        draw(folder / "images" / f"{name}.png", i, size=(50 if label == "sick" else 40, 30))
    rows = "".join(f"{name},images/{name}.png\n" for name in ids)
    (folder / "m.csv").write_text("image_id,path\n" + rows)
    return make_store(folder / "s.h5", x, {"label": labels}), folder / "m.csv"


def test_headers_of_the_images_are_variables_where_they_are_given(pictured: tuple[Path, Path]) -> None:
    found = found_in(pictured[0], images=Manifest.read(pictured[1]))
    width = score_of(found, "image width")
    assert width.classes == ["40", "50"]
    assert width.from_vectors is not None
    assert width.label_score is not None
    assert width.from_vectors.low > 0.8
    assert width.label_score.low > 0.8
    assert found.excluded["image height"] == found.excluded["bit depth"] == "the same everywhere"


def test_images_of_another_store_are_refused(pictured: tuple[Path, Path], class_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"has none of the 60 images of"):
        found_in(pictured[0], images=Manifest.read(class_folder))


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_tables_are_whole_and_the_worst_comes_first(
    planted: tuple[Path, dict[str, list[int]]], found: Audit, tmp_path: Path
) -> None:
    found.write(tmp_path / "audit")
    ids = found.image_ids
    outliers, labels = rows_of(tmp_path / "audit" / "outliers.csv"), rows_of(tmp_path / "audit" / "labels.csv")
    assert (len(outliers), len(labels)) == (N, N)
    assert {row["image_id"] for row in outliers[:2]} == {ids[row] for row in planted[1]["odd"]}
    assert labels[0]["is_issue"] == "yes"
    assert {row["across_splits"] for row in rows_of(tmp_path / "audit" / "identical.csv")[:2]} == {"yes"}
    near = rows_of(tmp_path / "audit" / "near_duplicates.csv")
    assert [(row["across_splits"], row["identical"]) for row in near if row["near"] == "yes"] == [
        ("yes", "yes"), ("yes", "no"), ("no", "yes"),
    ]  # fmt: skip
    assert rows_of(tmp_path / "audit" / "confounds.csv")[0]["variable"] == "scanner"
    assert json.loads((tmp_path / "audit" / "audit.json").read_text()) == found.as_json()


@pytest.mark.parametrize("name", ["labels.csv", "audit.json"])
@pytest.mark.parametrize("text", ["my,labels\n", '{"store": 1}', "", "\udcff\x00"])
def test_a_folder_with_files_of_somebody_else_is_refused_before_anything_is_computed(
    pictured: tuple[Path, Path], tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text, errors="surrogateescape")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=f"{name} is not part of an audit and would be overwritten"):
        check_free(tmp_path)
    assert (tmp_path / name).read_text(errors="surrogateescape") == text
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="is not part of an audit"):
        check_free(tmp_path)


def test_an_audit_is_written_over_another_finished_or_not(found: Audit, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    found.write(tmp_path)
    found.write(tmp_path)
    for name in ("audit.json", "outliers.csv"):
        (tmp_path / name).unlink()
    check_free(tmp_path)
    found.write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 7
    with pytest.raises(UsageError, match=r"notes.txt is not a folder"):
        found.write(tmp_path / "notes.txt")


def test_an_audit_twice_is_the_same_audit(pictured: tuple[Path, Path]) -> None:
    assert found_in(pictured[0]).as_json() == found_in(pictured[0]).as_json()


def test_what_is_printed_is_what_was_found(planted: tuple[Path, dict[str, list[int]]], found: Audit) -> None:
    people = Console(file=io.StringIO(), width=140)
    print_audit(people, found, Path("out"))
    text = people.file.getvalue()  # type: ignore[attr-defined]
    assert "2 sets of identical images (4 files), 1 of them across splits, 1 with different labels" in text
    assert "cosine similarity of 0.9999 or more: 1 pair of different files, 1 of them across splits" in text
    scanner = score_of(found, "scanner").from_vectors
    assert scanner is not None
    assert f"{scanner.auroc:.3f} [{scanner.low:.3f}, {scanner.high:.3f}]*" in text
    assert "not tested: findings (400 different texts)" in text
    assert found.image_ids[planted[1]["odd"][0]] in text


def test_audit_on_the_command_line(pictured: tuple[Path, Path], tmp_path: Path) -> None:
    done = featcache("audit", pictured[0], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 sets of identical images" in done.stdout
    assert "note: the store has no groups" in done.stdout
    assert (tmp_path / "audit" / "s" / "labels.csv").exists()
    assert not done.stderr


def test_audit_answers_scripts_with_one_json_object(pictured: tuple[Path, Path], tmp_path: Path) -> None:
    done = featcache("audit", pictured[0], "--images", pictured[1], "-o", "out", "--json", cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert (answer["rows"], answer["chance"], answer["tables"]) == (60, 0.5, "out")
    assert answer["confounds"][0]["name"] == "image width"
    assert answer["confounds"][0]["from_vectors"]["low"] > 0.8
    (tmp_path / "out" / "audit.json").write_text("mine")
    done = featcache("audit", pictured[0], "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "audit.json is not part of an audit and would be overwritten" in done.stderr
    assert (tmp_path / "out" / "audit.json").read_text() == "mine"


def test_names_that_would_be_formulas_or_markup_are_text(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4, seed=0, apart=8.0)
    hostile = ["=cmd|' /C calc'!A0", "<img src=x onerror=alert(1)>", "[red]x[/]"]
    columns = {"label": labels, "=view": [hostile[i % 3] for i in range(40)]}
    path = make_store(tmp_path / "s.h5", x, columns)
    done = featcache("audit", path, "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "confounds.csv").read_text()
    assert "\n'=view" in text
    assert "\n=view" not in text
