"""`evaluate`: a set from elsewhere gets the numbers that it would have had as the test subset of one store."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from featcache.errors import CorruptStore, IdentityMismatch, StoreNotFound, UnknownFormat, UsageError
from featcache.evaluation.evaluate import evaluate
from featcache.evaluation.labels import pairs_of
from featcache.evaluation.selection import CHOSEN_BY, TRAINED_ON
from featcache.evaluation.vocabulary import Vocabulary
from featcache.runs import Run
from featcache.runs.evaluation import Evaluation
from featcache.specs import HeadSpec, SelectionSpec, TargetSpec
from featcache.store import Part, PartFolder, Store, publish
from featcache.training.train_head import train_head
from tests.conftest import make_store, two_clouds
from tests.test_training import THREE_FINDINGS, findings, three_classes

N, N_TRAIN, D = 150, 90, 6
QUICK = HeadSpec(epochs=3)
YOUDEN = SelectionSpec(operating_point="youden")
Columns = dict[str, list[str]]


def content(n: int, start: int = 0) -> list[str]:
    return [f"{i:064x}" for i in range(start, start + n)]


def parts(folder: Path, x: np.ndarray, columns: Columns) -> tuple[Path, Path, Path]:
    """Three stores: of all images, in which the last ones are the test subset; of the first ones; and of the last."""
    folder.mkdir(exist_ok=True)
    n = len(x)
    sides = {**columns, "split": ["train"] * N_TRAIN + ["test"] * (n - N_TRAIN)}
    first, last = (
        {name: values[rows] for name, values in columns.items()} for rows in (slice(N_TRAIN), slice(N_TRAIN, n))
    )
    return (
        make_store(folder / "all.h5", x, sides, content(n)),
        make_store(folder / "first.h5", x[:N_TRAIN], first, content(N_TRAIN)),
        make_store(folder / "last.h5", x[N_TRAIN:], last, content(n - N_TRAIN, N_TRAIN)),
    )


def trained(path: Path, store: Path, **asked: Any) -> Run:
    with Store.open(store) as opened:
        return train_head(opened, asked.pop("spec", QUICK), path, **asked)


def grouped(labels: list[str]) -> Columns:
    return {"label": labels, "group": [f"p{i // 3}" for i in range(len(labels))]}


def binary() -> tuple[np.ndarray, Columns]:
    x, labels = two_clouds(N, D)
    return x, grouped(labels)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three stores of two classes, `all`, `first` and `last`, and the Run `run` of the first."""
    folder = tmp_path_factory.mktemp("two")
    parts(folder, *binary())
    trained(folder / "run", folder / "first.h5", report=YOUDEN)
    return folder


def check_counts(done: Evaluation) -> None:
    about = done.record["set"]
    assert about["found"] == about["scored"] + sum(done.record["left_out"].values()) + about["failed"]


# --- the numbers of a test subset -------------------------------------------------------------------------------------

TASKS = {
    "two classes": (binary, QUICK, TargetSpec(), YOUDEN),
    "three classes": (
        lambda: (lambda x, y: (x, grouped(y)))(*three_classes(N, D)),
        QUICK,
        TargetSpec(),
        SelectionSpec(),
    ),
    "findings": (lambda: findings(N, D), QUICK, THREE_FINDINGS, SelectionSpec()),
    "knn": (binary, HeadSpec.of("knn", n_neighbors=5), TargetSpec(), YOUDEN),
}


@pytest.mark.parametrize("case", TASKS)
def test_all_numbers_are_those_of_the_same_rows_as_a_test_subset(tmp_path: Path, case: str) -> None:
    make, spec, target, report = TASKS[case]
    both, first, last = parts(tmp_path, *make())
    asked = {"spec": spec, "target": target, "report": report}
    whole, part = trained(tmp_path / "whole", both, **asked), trained(tmp_path / "part", first, **asked)
    done = evaluate(part.path, last, tmp_path / "elsewhere")
    assert done.metrics == whole.metrics("test")
    point = whole.record["operating_point"]
    assert (done.record["operating_point"] or {}).get("external") == (point or {}).get("test")
    assert done.record["baselines"]["majority"] == whole.record["baselines"]["majority"]
    assert done.record["temperature"] == whole.record["temperature"]
    check_counts(done)


def rows_of(done: Evaluation, name: str = "predictions.csv") -> list[dict[str, str]]:
    with open(done.path / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_are_those_that_scikit_learn_counts(two: Path, tmp_path: Path) -> None:
    done = evaluate(two / "run", two / "last.h5", tmp_path / "out")
    rows = rows_of(done)
    with Store.open(two / "last.h5") as store:
        label = dict(zip(store.image_ids, store.columns["label"], strict=True))
    truth = [label[row["image_id"]] == "sick" for row in rows]
    p = np.array([float(row["p_sick"]) for row in rows])
    assert [row["label"] for row in rows] == [label[row["image_id"]] for row in rows]
    assert done.metrics["auroc"] == pytest.approx(sk.roc_auc_score(truth, p), abs=1e-9)
    assert done.metrics["auprc"] == pytest.approx(sk.average_precision_score(truth, p), abs=1e-9)
    assert done.metrics["brier"] == pytest.approx(sk.brier_score_loss(truth, p), abs=1e-6)
    assert done.metrics["confusion"] == sk.confusion_matrix(truth, p >= 0.5).tolist()
    called = [row["at_operating_point"] == "sick" for row in rows]
    point = done.record["operating_point"]["external"]
    assert point["recall"] == pytest.approx(sk.recall_score(truth, called))
    assert point["precision"] == pytest.approx(sk.precision_score(truth, called))
    assert called == [value >= done.record["operating_point"]["threshold"] for value in p]


# --- labels and classes -----------------------------------------------------------------------------------------------


def relabelled(two: Path, path: Path, rename: Any) -> Path:
    """`last.h5` with other labels."""
    with Store.open(two / "last.h5") as store:
        labels = [rename(i, label) for i, label in enumerate(store.columns["label"])]
        return make_store(path, store.features(), grouped(labels), store.content_sha256)


def test_other_spellings_of_a_class_are_that_class_and_are_named(two: Path, tmp_path: Path) -> None:
    store = relabelled(two, tmp_path / "s.h5", lambda i, label: f" {label.upper()}" if i % 2 else label.capitalize())
    done = evaluate(two / "run", store, tmp_path / "out")
    assert done.metrics == evaluate(two / "run", two / "last.h5", tmp_path / "plain").metrics
    (note,) = [note for note in done.notes if "spelling" in note]
    assert "'Normal'" in note
    assert "as 'sick'" in note


def test_labels_that_the_run_does_not_know_are_left_out_and_all_of_them_named(two: Path, tmp_path: Path) -> None:
    store = relabelled(two, tmp_path / "s.h5", lambda i, label: ["", "virus", "fungus", "virus"][i] if i < 4 else label)
    done = evaluate(two / "run", store, tmp_path / "out")
    assert done.metrics["n"] == N - N_TRAIN - 4
    assert done.record["left_out"] == {"no label": 1, "a label that the Run does not know": 3}
    assert done.record["set"]["unknown_labels"] == {"fungus": 1, "virus": 2}
    assert any("'fungus' (1), 'virus' (2)" in note for note in done.notes)
    check_counts(done)


def test_a_label_may_be_said_to_stand_for_a_class(two: Path, tmp_path: Path) -> None:
    store = relabelled(two, tmp_path / "s.h5", lambda i, label: {"sick": f"kind {i // 2 % 2}", "normal": "0"}[label])
    with pytest.raises(UsageError, match=r"no label is a class of the Run.*'0', 'kind 0'.*class_map"):
        evaluate(two / "run", store, tmp_path / "out")
    class_map = {"kind 0": "sick", "kind 1": "sick", "0": "normal"}
    done = evaluate(two / "run", store, tmp_path / "out", class_map=class_map)
    assert done.metrics["n"] == N - N_TRAIN
    assert done.metrics == evaluate(two / "run", two / "last.h5", tmp_path / "plain").metrics


@pytest.mark.parametrize(
    ("class_map", "message"),
    [({"sick": "ill"}, "none of the Run's classes: normal, sick"), ({"ill": "sick"}, "the set has no label 'ill'")],
)
def test_a_map_of_what_is_not_there_is_refused(two: Path, tmp_path: Path, class_map: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(two / "run", two / "last.h5", tmp_path / "out", class_map=class_map)


HOSTILE = ["a=b", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "[bold]x[/]", "a\nb", "naïve", "NAÏVE", "1", "01"]


def test_hostile_names_are_matched_as_texts() -> None:
    found = Vocabulary(HOSTILE, False).match(HOSTILE, {})
    assert found.number_of == {name: i for i, name in enumerate(HOSTILE)}
    assert not found.respelled
    assert Vocabulary(HOSTILE, False).match(["Naïve", "1.0"], {}).unknown == [
        "1.0",
        "Naïve",
    ]  # two classes are spelled so
    assert Vocabulary(["1"], False).match(["-1", "- 1"], {}).unknown == ["- 1", "-1"]


def test_pairs_are_cut_where_a_class_begins() -> None:
    assert pairs_of(["x=a=b", "a=b=y", "=z=y"], ["a=b", "y"]) == {"x": "a=b", "a=b": "y", "=z": "y"}
    assert pairs_of(["x=a=b"], ["a=b", "b"]) == {"x": "a=b"}
    with pytest.raises(UsageError, match="LABEL=CLASS"):
        pairs_of(["x"], ["x"])
    with pytest.raises(UsageError, match="cannot stand for"):
        pairs_of(["x=a", "x=b"], ["a", "b"])


def test_labels_are_joined_from_a_csv(two: Path, tmp_path: Path) -> None:
    with Store.open(two / "last.h5") as store:
        pairs = list(zip(store.image_ids, store.columns["label"], strict=True))
        bare = make_store(tmp_path / "bare.h5", store.features(), {}, store.content_sha256)
    (tmp_path / "l.csv").write_text(
        "image_id,truth,sex\n" + "".join(f"{a},{b},{'fm'[b == 'sick']}\n" for a, b in pairs[5:])
    )
    with pytest.raises(UsageError, match="no labels in column 'label'"):
        evaluate(two / "run", bare, tmp_path / "out")
    done = evaluate(two / "run", bare, tmp_path / "out", labels=tmp_path / "l.csv", label_columns=["truth"], by=["sex"])
    assert done.metrics["n"] == len(pairs) - 5
    assert done.record["left_out"] == {"no label": 5}
    assert {member["value"] for member in done.record["subgroups"]["sex"]} == {"f", "m"}


def test_a_set_of_one_class_has_no_auroc_and_says_so(two: Path, tmp_path: Path) -> None:
    done = evaluate(two / "run", relabelled(two, tmp_path / "s.h5", lambda i, label: label if label == "sick" else ""),
                    tmp_path / "out")  # fmt: skip
    assert done.metrics["auroc"] is None
    assert done.metrics["specificity"] is None
    assert done.metrics["recall"] is not None
    assert any("'normal'" in note and "no AUROC" in note for note in done.notes)
    json.dumps(done.as_json(), allow_nan=False)


def test_a_set_without_labels_is_refused(two: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no labels in column 'label'"):
        evaluate(two / "run", relabelled(two, tmp_path / "s.h5", lambda i, label: ""), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_findings_columns_are_found_by_name_and_missing_ones_said(tmp_path: Path) -> None:
    x, columns = findings(N, D)
    _, first, last = parts(tmp_path, x, columns)
    run = trained(tmp_path / "run", first, target=THREE_FINDINGS)
    with Store.open(last) as store:
        held = {"F 0": store.columns["f0"], "other": store.columns["f1"], "view": ["PA"] * len(store)}
        some = make_store(tmp_path / "some.h5", store.features(), held, store.content_sha256)
    done = evaluate(run.path, some, tmp_path / "out", class_map={"other": "f1"})
    whole = evaluate(run.path, last, tmp_path / "whole")
    assert done.metrics["per_class"][:2] == whole.metrics["per_class"][:2]
    assert done.metrics["per_class"][2]["n"] == 0
    assert done.metrics["per_class"][2]["auroc"] is None
    assert any("no column for 'f2'" in note for note in done.notes)
    assert any("'F 0' as 'f0'" in note for note in done.notes)
    with pytest.raises(UsageError, match=r"view of image.* is 'PA'"):
        evaluate(run.path, some, tmp_path / "bad", class_map={"view": "f2"})


def test_labels_are_read_as_the_run_s_own_were(tmp_path: Path) -> None:
    """Merged classes, codes for uncertain and lists: what the training made of them, the evaluation makes of them."""
    x, labels = two_clouds(N, D)
    kinds = ["ill" if label == "sick" and i % 3 else label for i, label in enumerate(labels)]
    _, first, last = parts(tmp_path, x, {"label": kinds})
    merged = trained(tmp_path / "merged", first, target=TargetSpec(merge_classes={"ill": "sick"}))
    done = evaluate(merged.path, last, tmp_path / "out")
    assert done.record["set"]["respelled"] == {"ill": "sick"}
    assert done.metrics["n"] == N - N_TRAIN

    codes = ["-1.0" if i % 7 == 0 else "1.0" if label == "sick" else "0.0" for i, label in enumerate(labels)]
    _, first, last = parts(tmp_path / "codes", x, {"label": codes})
    for policy, n in (("ignore", sum(code != "-1.0" for code in codes[N_TRAIN:])), ("positive", N - N_TRAIN)):
        run = trained(tmp_path / policy, first, target=TargetSpec(uncertain=policy))
        done = evaluate(run.path, last, tmp_path / f"on-{policy}")
        assert done.metrics["n"] == n
        assert not done.record["set"]["unknown_labels"]


def test_lists_of_findings_are_read_as_the_run_s_own_were(tmp_path: Path) -> None:
    x, columns = findings(N, D)
    names = [" | ".join(f"F {c}" for c in range(3) if columns[f"f{c}"][i] == "1") or "No Finding" for i in range(N)]
    both, first, last = parts(tmp_path, x, {"finding": names})
    target = TargetSpec(("finding",), separator="|")
    whole, part = trained(tmp_path / "whole", both, target=target), trained(tmp_path / "part", first, target=target)
    done = evaluate(part.path, last, tmp_path / "out")
    assert done.metrics == whole.metrics("test")
    assert any("'finding' is read as lists separated by '|'" in note for note in done.notes)


def test_conditions_choose_the_images(two: Path, tmp_path: Path) -> None:
    whole = evaluate(two / "run", two / "last.h5", tmp_path / "whole")
    done = evaluate(two / "run", two / "all.h5", tmp_path / "out", where=["split=test"], with_training_images=True)
    assert done.metrics == whole.metrics
    assert done.record["left_out"] == {"values other than split=test": N_TRAIN}
    assert any(note == f"Only images with split=test are looked at: {N - N_TRAIN} of {N}." for note in done.notes)
    check_counts(done)
    with pytest.raises(UsageError, match="no column 'site'"):
        evaluate(two / "run", two / "all.h5", tmp_path / "no", where=["site=x"])
    with pytest.raises(UsageError, match="split is 'test', 'train'"):
        evaluate(two / "run", two / "all.h5", tmp_path / "no", where=["split=exam"])


def test_codes_of_the_set_may_be_said_where_the_run_s_own_had_none(tmp_path: Path) -> None:
    x, columns = findings(N, D)
    _, first, last = parts(tmp_path, x, columns)
    run = trained(tmp_path / "run", first, target=THREE_FINDINGS)
    with Store.open(last) as store:
        codes = {
            name: ["-1.0" if i % 9 == 0 else text for i, text in enumerate(texts)]
            for name, texts in store.columns.items()
        }
        coded = make_store(tmp_path / "coded.h5", store.features(), codes, store.content_sha256)
    with pytest.raises(UsageError, match="Set uncertain to 'ignore'"):
        evaluate(run.path, coded, tmp_path / "out")
    with pytest.raises(UsageError, match="`uncertain` must be one of"):
        evaluate(run.path, coded, tmp_path / "out", uncertain="maybe")
    ignored = evaluate(run.path, coded, tmp_path / "ignored", uncertain="ignore")
    counted = evaluate(run.path, coded, tmp_path / "positive", uncertain="positive")
    n_ignored, n_counted = (sum(each["support"] for each in done.metrics["per_class"]) for done in (ignored, counted))
    assert n_counted > n_ignored


# --- images that the Run knows ----------------------------------------------------------------------------------------


def test_images_that_the_run_learnt_from_are_left_out(two: Path, tmp_path: Path) -> None:
    done = evaluate(two / "run", two / "all.h5", tmp_path / "out")
    assert done.metrics["n"] == N - N_TRAIN
    assert set(done.record["left_out"]) == {TRAINED_ON, CHOSEN_BY}
    assert sum(done.record["left_out"].values()) == N_TRAIN
    assert any(f"{N_TRAIN} of the {N} labelled images" in note for note in done.notes)
    assert done.metrics == evaluate(two / "run", two / "last.h5", tmp_path / "plain").metrics


def test_they_are_scored_where_asked_and_the_others_stand_beside_them(two: Path, tmp_path: Path) -> None:
    done = evaluate(two / "run", two / "all.h5", tmp_path / "out", with_training_images=True)
    assert done.metrics["n"] == N
    unseen = done.record["without_training_images"]
    assert unseen["metrics"] == evaluate(two / "run", two / "last.h5", tmp_path / "plain").metrics
    assert done.record["comparison"]["differences"] == {}
    assert any("too good" in note for note in done.notes)


def test_a_set_of_nothing_but_training_images_is_refused(two: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no image of .*first.h5 is left.*have .* was trained on.*with_training_images"
    ):
        evaluate(two / "run", two / "first.h5", tmp_path / "out")
    done = evaluate(two / "run", two / "first.h5", tmp_path / "out", with_training_images=True)
    assert done.record["without_training_images"] is None
    assert done.record["comparison"]["differences"] == {}


def test_copies_within_the_set_are_counted_and_drawn_together(two: Path, tmp_path: Path) -> None:
    with Store.open(two / "last.h5") as store:
        x, labels = store.features(), store.columns["label"]
    contents = content(len(labels), N_TRAIN)
    contents[1] = contents[0]
    done = evaluate(two / "run", make_store(tmp_path / "s.h5", x, {"label": labels}, contents), tmp_path / "out")
    assert done.record["set"]["n_groups"] == len(labels) - 1
    assert any(note.startswith("2 images have the same bytes") for note in done.notes)
    assert any("different labels" in note for note in done.notes)


# --- subgroups and the Run's own rows ---------------------------------------------------------------------------------


def test_subgroups_have_the_numbers_of_their_rows(two: Path, tmp_path: Path) -> None:
    with Store.open(two / "last.h5") as store:
        x, columns = store.features(), store.columns
        n = len(store)
        site = ["B" if i < 40 else "A" if i < n - 3 else "" for i in range(n)]
        path = make_store(tmp_path / "s.h5", x, {**columns, "site": site}, store.content_sha256)
        alone = make_store(
            tmp_path / "b.h5", x[:40], {k: v[:40] for k, v in columns.items()}, store.content_sha256[:40]
        )
    done = evaluate(two / "run", path, tmp_path / "out", by=["site", "group"])
    members = done.record["subgroups"]["site"]
    assert [(member["value"], member["n"]) for member in members] == [("B", 40), ("A", n - 43), ("", 3)]
    expected = evaluate(two / "run", alone, tmp_path / "alone")
    assert members[0]["metrics"] == expected.metrics
    assert members[0]["at_operating_point"] == expected.record["operating_point"]["external"]
    assert members[2]["metrics"]["intervals"] == {}
    assert "too few" in members[2]["reasons"][-1]
    assert sum(member["n"] for member in done.record["subgroups"]["group"]) == n
    rows = rows_of(done, "subgroups.csv")
    assert {row["column"] for row in rows} == {"site", "group"}
    first = next(row for row in rows if row["value"] == "B" and row["number"] == "auroc")
    assert float(first["estimate"]) == pytest.approx(members[0]["metrics"]["auroc"], abs=1e-8)


def test_an_unknown_column_for_subgroups_is_refused_before_the_pass(two: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column 'site' to take subgroups by; it has folder, group, label"):
        evaluate(two / "run", two / "last.h5", tmp_path / "out", by=["site"])


def test_worse_than_on_its_own_rows_is_said_with_the_difference(tmp_path: Path) -> None:
    x, columns = binary()
    both, _, last = parts(tmp_path, x, columns)
    run = trained(tmp_path / "run", both, report=YOUDEN)
    with Store.open(last) as store:
        contrary = make_store(tmp_path / "contrary.h5", -store.features(), store.columns, content(60, 999))
    done = evaluate(run.path, contrary, tmp_path / "out")
    found = done.record["comparison"]
    difference, low, high = found["differences"]["auroc"]
    assert found["subset"] == "test"
    assert difference == pytest.approx(done.metrics["auroc"] - run.metrics("test")["auroc"])
    assert low < difference < high < 0
    assert any(note.startswith("AUROC is") and "lower by" in note for note in done.notes)
    assert set(found["differences_at_operating_point"]) >= {"accuracy", "recall"}


def test_a_run_s_own_test_images_are_scored_and_not_compared(tmp_path: Path) -> None:
    both, _, last = parts(tmp_path, *binary())
    run = trained(tmp_path / "run", both, report=YOUDEN)
    done = evaluate(run.path, last, tmp_path / "out")
    assert done.metrics == run.metrics("test")
    assert done.record["comparison"]["differences"] == {}
    assert any("test images of the Run itself" in note for note in done.notes)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_repeated_evaluation_is_the_same_bytes_and_another_is_refused(two: Path, tmp_path: Path) -> None:
    first = evaluate(two / "run", two / "last.h5", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in first.path.iterdir() if path.name != "evaluation.json"}
    again = evaluate(two / "run", two / "last.h5", tmp_path / "out")
    assert before == {path.name: path.read_bytes() for path in again.path.iterdir() if path.name != "evaluation.json"}
    drop = ("seconds",)
    assert {k: v for k, v in first.record.items() if k not in drop} == {
        k: v for k, v in again.record.items() if k not in drop
    }
    with pytest.raises(UsageError, match="holds another evaluation"):
        evaluate(two / "run", two / "last.h5", tmp_path / "out", by=["group"])
    with pytest.raises(UsageError, match="holds another evaluation"):
        evaluate(two / "run", two / "all.h5", tmp_path / "out")


def test_nobody_else_s_folder_is_written_over(two: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for place in (tmp_path / "mine", two / "run", two / "first.h5", two / "first.h5" / "out"):
        with pytest.raises(UsageError, match="Choose another place"):
            evaluate(two / "run", two / "last.h5", place)


def test_an_evaluation_is_no_run(two: Path, tmp_path: Path) -> None:
    done = evaluate(two / "run", two / "last.h5", tmp_path / "out")
    assert Evaluation.open(done.path).record == done.record
    with pytest.raises(StoreNotFound, match="is an evaluation of a Run"):
        Run.open(done.path)
    with pytest.raises(StoreNotFound, match="no evaluation"):
        Evaluation.open(two / "run")
    record = json.loads((done.path / "evaluation.json").read_text())
    (done.path / "evaluation.json").write_text(json.dumps({**record, "version": 99}))
    with pytest.raises(UnknownFormat, match="upgrade"):
        Evaluation.open(done.path)
    for text in ("{", "[]", '{"format": "x"}', '{"format": NaN}'):
        (done.path / "evaluation.json").write_text(text)
        with pytest.raises(CorruptStore, match="damaged"):
            Evaluation.open(done.path)


def test_vectors_of_another_identity_are_refused(two: Path, tmp_path: Path) -> None:
    x, labels = two_clouds(30, D)
    folder = PartFolder(tmp_path / "other.h5", {"identity": {"made": "elsewhere"}})
    with folder.locked():
        folder.write(Part(0, {"pooled": x.astype(np.float32)}, content(30), np.zeros(30, dtype=np.uint8), {}))
        ids = [f"i{i}" for i in range(30)]
        publish(tmp_path / "other.h5", folder.heads(), ids, {"label": labels}, {"made": "elsewhere"})
    with pytest.raises(IdentityMismatch, match="made"):
        evaluate(two / "run", tmp_path / "other.h5", tmp_path / "out")
    assert not (tmp_path / "out").exists()
