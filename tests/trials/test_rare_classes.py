"""Of the classes that are too rare to be divided an error named one at a time, and there was no way to leave them out
or to join them but to write another table. All are named at once, and parameters of the target choose among them."""

import json
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import UsageError
from featcache.prediction.predictor import load_run
from featcache.runs import Run
from featcache.specs import HeadSpec, SplitSpec, TargetSpec, Where
from featcache.splits.protocol import divide
from featcache.splits.task import Task
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import make_store, two_clouds
from tests.test_cli import featcache

N = 60
LABELS = [{0: "rare", 1: "rarer", 2: "rare", 3: "Rest"}.get(i, ("normal", "sick")[i % 2]) for i in range(N)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    columns = {"label": LABELS, "site": ["AB"[i // 30] for i in range(N)]}
    return Store.open(make_store(tmp_path / "s.h5", two_clouds(N, 4)[0], columns))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            SplitSpec(),
            r"class Rest has 1 image\(s\), all of one group, and class rarer has 1 image\(s\), all of one",
        ),
        (
            SplitSpec(n_splits=5),
            r"class Rest has 1 row\(s\) in 1 group\(s\), and class rare has 2 row\(s\) in 2 group\(s\), and class",
        ),
    ],
    ids=["hold-out", "folds"],
)
def test_all_rare_classes_are_named_at_once_with_the_way_out(store: Store, spec: SplitSpec, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        divide(Task.of(store), spec, None)
    assert "min_images, drop_classes" in str(raised.value)
    assert "merge_classes" in str(raised.value)


def test_a_subset_without_several_classes_names_them_all(tmp_path: Path) -> None:
    split = ["test" if label in ("rare", "rarer", "Rest") else "train" for label in LABELS]
    path = make_store(tmp_path / "s.h5", two_clouds(N, 4)[0], {"label": LABELS, "split": split})
    with Store.open(path) as store, pytest.raises(UsageError, match="no image of class 'Rest' or 'rare' or 'rarer'"):
        divide(Task.of(store), SplitSpec(), None)


@pytest.mark.parametrize(
    ("asked", "classes", "left_out"),
    [
        ({"min_images": 5}, ["normal", "sick"], {"a class of fewer than 5 images": 4}),
        ({"min_images": 2}, ["normal", "rare", "sick"], {"a class of fewer than 2 images": 2}),
        ({"drop_classes": ("rare", "Rest")}, ["normal", "rarer", "sick"], {"a class that was dropped": 3}),
        ({"merge_classes": {"rare": "rarer", "Rest": "sick"}}, ["normal", "rarer", "sick"], {}),
        ({"merge_classes": {"rare": "other", "rarer": "other"}}, ["Rest", "normal", "other", "sick"], {}),
        (
            {"merge_classes": {"rare": "other", "rarer": "other"}, "drop_classes": ("Rest",), "min_images": 3},
            ["normal", "other", "sick"],
            {"a class that was dropped": 1},
        ),
        ({"where": (Where("site", "B"),)}, ["normal", "sick"], {"values other than site=B": 30}),
        (
            {"where": (Where("site", "A"), Where("label", "rare", equal=False)), "min_images": 2},
            ["normal", "sick"],
            {"values other than site=A and label!=rare": 32, "a class of fewer than 2 images": 2},
        ),
    ],
    ids=str,
)
def test_classes_are_left_out_and_joined_as_asked(
    store: Store, asked: dict[str, object], classes: list[str], left_out: dict[str, int]
) -> None:
    task = Task.of(store, TargetSpec(**asked))  # type: ignore[arg-type]
    assert (task.classes, task.left_out) == (classes, left_out)
    assert len(task.labelled) == N - sum(left_out.values())


def test_findings_are_left_out_and_joined_too(tmp_path: Path) -> None:
    columns = {"Mass": list("110010"), "Nodule": list("001010"), "Hernia": list("000001"), "Edema": list("010101")}
    target = TargetSpec(tuple(columns), merge_classes={"Nodule": "Mass"}, drop_classes=("Edema",), min_images=2)
    with Store.open(make_store(tmp_path / "s.h5", np.ones((6, 2)), columns)) as store:
        task = Task.of(store, target)
    assert task.classes == ["Mass"]
    assert task.labels[:, 0].tolist() == [1, 1, 1, 0, 1, 0]
    assert "findings of fewer than 2 images are left out: Hernia (1)." in task.notes


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"drop_classes": ("flu",)}, "drop_classes: 'flu' is not one of the classes: Rest, normal, rare, rarer, sick"),
        ({"merge_classes": {"flu": "sick"}}, "merge_classes: 'flu' is not one of the classes"),
        ({"min_images": 29}, r"has no labels left .*left out: 60 with a class of fewer than 29 images"),
        (
            {"drop_classes": ("sick", "rare", "rarer", "Rest")},
            r"only the class 'normal' left \(28 images; left out",
        ),
        ({"where": (Where("site", "C"),)}, "no row of .* has site=C; site is 'A', 'B'"),
        ({"where": (Where("age", "3"),)}, "has no column 'age'; it has image_id, label, site"),
    ],
    ids=str,
)
def test_what_leaves_nothing_to_learn_is_refused_with_counts(
    store: Store, asked: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Task.of(store, TargetSpec(**asked))  # type: ignore[arg-type]


def test_a_chain_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="`merge_classes` makes other classes 'b', and 'b' another one"):
        TargetSpec(merge_classes={"a": "b", "b": "c"})


def test_the_run_keeps_what_was_asked_and_predicts_as_any_other(store: Store, tmp_path: Path) -> None:
    target = TargetSpec(min_images=5, where=(Where("site", "B"),))
    run = train_head(store, HeadSpec(epochs=2), tmp_path / "run", target=target)
    labels = run.record["asked"]["labels"]
    assert (labels["min_images"], labels["where"]) == (5, ["site=B"])
    assert run.record["left_out"] == {"values other than site=B": 30}
    assert set(run.images().image_ids) == set(store.image_ids[30:])
    with load_run(tmp_path / "run") as predictor:
        assert len(predictor.of_store(store).logits) == N


@pytest.mark.slow
def test_the_command_takes_all_of_them(store: Store, tmp_path: Path) -> None:
    asked = ("--merge", "rare=rarer", "--drop-class", "Rest", "--min-images", "4", "--where", "label!=nothing")
    done = featcache("train-head", store.path, "-o", "run", "--epochs", "2", *asked, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    notes = json.loads(done.stdout)["notes"]
    assert "classes with fewer than 4 images are left out: rarer (3)." in notes
    assert Run.open(tmp_path / "run").record["classes"] == ["normal", "sick"]
    wrong = featcache("train-head", store.path, "--merge", "rare", cwd=tmp_path)
    assert (wrong.returncode, "--merge 'rare': A=B is expected" in wrong.stderr) == (2, True)
