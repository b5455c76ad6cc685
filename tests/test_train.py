"""Training a whole network on a folder of images, from random weights or from others."""

import csv
import doctest
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file
from scipy.special import softmax

from featcache import backbones
from featcache.backbones.networks import DENSE
from featcache.embedding import embed
from featcache.errors import UsageError, WeightsUnavailable
from featcache.finetune.fine_tune import fine_tune, head_for, train
from featcache.heads import mlp
from featcache.manifest import Manifest
from featcache.runs import Run
from featcache.specs import AugmentationSpec, BackboneSpec, HeadSpec, Recipe, SplitSpec, Stage, TargetSpec
from featcache.store import Store
from tests.conftest import NET, draw_shadows
from tests.test_finetune import stop_after

SIZE = 32
HOLD_OUT = SplitSpec(val_fraction=0.25)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images of two classes in train and test. Never to be changed."""
    return draw_shadows(tmp_path_factory.mktemp("drawn") / "images")


def recipe(*stages: Stage, **given: Any) -> Recipe:
    how = {"stages": stages or (Stage("all", 2),), "batch_size": 8, "lr": 0.003, "augment": None, "select": "loss"}
    return Recipe(**{**how, **given})


def trained(images: Path, path: Path, how: Recipe | None = None, name: str = NET, **asked: Any) -> Run:
    spec = BackboneSpec(name, asked.pop("weights", "random:0"), input_size=asked.pop("input_size", SIZE))
    head = asked.pop("head", None) or head_for(name)
    manifest = asked.pop("manifest", None) or Manifest.read(images)
    return train(manifest, spec, head, how or recipe(), path, **{"split": HOLD_OUT, **asked})


def test_norms_without_statistics_stay_as_they_are_and_it_says_so(images: Path, tmp_path: Path) -> None:
    state = {
        name: tensor.contiguous()
        for name, tensor in backbones.load(BackboneSpec(NET, "random:0", SIZE), "cpu").module.state_dict().items()
    }
    save_file(state, tmp_path / "folded.safetensors")  # as they begin: mean 0, variance 1
    notes: list[str] = []
    asked = {"weights": str(tmp_path / "folded.safetensors"), "on_note": notes.append}
    run = trained(images, tmp_path / "run", recipe(Stage("last-block", 2)), **asked)
    assert run.record["recipe"]["freeze_bn"] == "yes"
    assert [note for note in notes if "hold no statistics" in note and "`freeze_bn`=no" in note]
    after = load_file(run.path / "backbone.safetensors")
    statistics = [name for name in state if name.endswith(("running_mean", "running_var"))]
    assert all(np.array_equal(after[name], state[name].numpy()) for name in statistics)
    assert trained(images, tmp_path / "other", recipe(Stage("last-block", 1))).record["recipe"]["freeze_bn"] == "no"


def table(run: Run) -> list[dict[str, str]]:
    with open(run.path / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- what is learnt ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NET, "simple-cnn"])
def test_a_network_learns_from_random_weights(images: Path, tmp_path: Path, name: str) -> None:
    """Everything moves, the loss falls, and the numbers are those of what is kept."""
    run = trained(images, tmp_path / "run", recipe(Stage("all", 6), lr=0.005, backbone_lr=0.005), name)
    points = run.history()
    assert points[-1]["train_loss"] < points[0]["train_loss"]
    assert [(point["phase"], point["epoch"]) for point in points] == [(1, e) for e in range(1, 7)]
    before = backbones.load(BackboneSpec(name, "random:0", input_size=SIZE), "cpu")
    after = load_file(run.path / "backbone.safetensors")
    learnt = [key for key, _ in before.module.named_parameters()]
    assert run.record["epoch"] > 0
    assert all(np.any(after[key] != before.module.state_dict()[key].numpy()) for key in learnt)
    assert run.record["n_trainable"]["backbone"] == sum(p.numel() for p in before.module.parameters())
    assert run.record["parent"] is None
    assert run.metrics("test")["n"] == 16
    assert run.metrics("train")["n"] + run.metrics("val")["n"] == 32


@pytest.mark.long
@pytest.mark.parametrize("name", [NET, "simple-cnn"])
def test_what_was_trained_embeds_and_is_fine_tuned_on(images: Path, tmp_path: Path, name: str) -> None:
    run = trained(images, tmp_path / "run", recipe(), name)
    spec = BackboneSpec(name, str(run.path / "backbone.safetensors"), input_size=SIZE)
    embed(Manifest.read(images), tmp_path / "s.h5", spec)
    with Store.open(tmp_path / "s.h5") as store:
        p = dict(zip(store.image_ids, softmax(run.logits(store.features()).astype(float), axis=1)[:, 1], strict=True))
    rows = table(run)
    assert len(rows) == 48
    np.testing.assert_allclose([float(row["p_sick"]) for row in rows], [p[row["image_id"]] for row in rows], atol=1e-5)
    again = fine_tune(run, recipe(), tmp_path / "again", images=Manifest.read(images))
    assert [point["phase"] for point in again.history()] == [1, 1, 2, 2]
    assert again.record["before"]["metrics"]["val"]["loss"] == pytest.approx(run.metrics("val")["loss"], abs=1e-6)


def test_a_part_of_a_network_may_be_trained_with_a_fresh_head(images: Path, phase_one: Path, tmp_path: Path) -> None:
    weights = str(phase_one / "net.safetensors")
    how = recipe(Stage("last-block", 3), lr=0.01)
    run = trained(
        images, tmp_path / "run", how, weights=weights, head=HeadSpec.of("mlp", hidden_sizes=(6,), dropout=0.2)
    )
    before, after = load_file(phase_one / "net.safetensors"), load_file(run.path / "backbone.safetensors")
    assert run.record["epoch"] > 0
    moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert moved == {name for name in before if name.startswith(("blocks.4.", "conv_head.", "bn2."))}
    assert run.record["head"]["hidden_sizes"] == [6]


def test_a_start_that_no_epoch_improves_is_kept_and_said(images: Path, tmp_path: Path) -> None:
    """There is no epoch of it in the curves, then."""
    how = recipe(optimizer="sgd", lr=1e-30, backbone_lr=1e-30)
    run = trained(images, tmp_path / "run", how, "simple-cnn")
    assert run.record["epoch"] == 0
    assert "no epoch was better on the validation rows, so the weights are the first" in run.record["notes"]
    before = backbones.load(BackboneSpec("simple-cnn", "random:0", input_size=SIZE), "cpu").module.state_dict()
    after = load_file(run.path / "backbone.safetensors")
    assert all(np.array_equal(after[name], tensor.numpy()) for name, tensor in before.items())


@pytest.mark.long
@pytest.mark.long
def test_folds_train_a_network_each_and_one_of_all_rows(images: Path, tmp_path: Path) -> None:
    run = trained(images, tmp_path / "run", split=SplitSpec(n_splits=3))
    assert run.metrics("val")["n"] == run.metrics("train")["n"] == 32
    assert {row["fold"] for row in table(run) if row["split"] == "val"} == {"0", "1", "2"}


def test_two_trainings_of_one_seed_are_the_same_and_of_another_not(images: Path, tmp_path: Path) -> None:
    how = recipe(Stage("all", 1), augment=AugmentationSpec(scale=0.7))
    one, two = (trained(images, tmp_path / name, how) for name in ("one", "two"))
    for name in ("history.csv", "predictions.csv", "backbone.safetensors", "head.safetensors"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()
    other = trained(images, tmp_path / "other", recipe(Stage("all", 1), augment=AugmentationSpec(scale=0.7), seed=1))
    assert one.history() != other.history()


def test_a_stopped_training_ends_as_one_that_was_not(images: Path, tmp_path: Path) -> None:
    how = recipe(augment=AugmentationSpec())
    whole = trained(images, tmp_path / "whole", how, "simple-cnn")
    with pytest.raises(KeyboardInterrupt):
        trained(images, tmp_path / "run", how, "simple-cnn", on_epoch=stop_after(1))
    run = trained(images, tmp_path / "run", how, "simple-cnn")
    for name in {path.name for path in whole.path.iterdir()} - {"run.json"}:
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name


# --- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_classes", "wanted"), [(2, 23_935_041), (4, 23_935_236)])
def test_the_larger_small_network_has_the_parameters_it_was_published_with(n_classes: int, wanted: int) -> None:
    """Counted of what would be trained, and not trained: one output for two classes, four for four."""
    head = head_for("covid-cnn")
    backbone = backbones.load(BackboneSpec("covid-cnn", "random:0"), "cpu")
    n_outputs = mlp.n_outputs(head, n_classes, has_findings=False)
    tensors = mlp.fresh(head, backbone.n_features, n_outputs)
    made = mlp.head_module(head, tensors, 1.0, n_classes, n_classes - 1, has_findings=False)
    count = sum(p.numel() for module in (backbone.module, made) for p in module.parameters())
    assert count == wanted
    assert head.hidden_sizes == DENSE["covid-cnn"]


def test_heads_are_those_of_the_network_or_what_was_asked() -> None:
    assert head_for(NET) == HeadSpec.of("linear")
    assert head_for("simple-cnn") == HeadSpec.of("flatten-mlp", hidden_sizes=(120, 84))
    assert head_for("simple-cnn", "linear") == HeadSpec.of("linear")
    assert head_for(NET, "mlp", hidden_sizes=(4,), dropout=None, seed=3) == HeadSpec.of(
        "mlp", hidden_sizes=(4,), seed=3
    )
    for kind, given, message in (
        ("knn", {}, "`head` must be linear or mlp, got 'knn'"),
        (None, {"hidden_sizes": (4,)}, "`hidden_sizes` does not apply to linear heads"),
    ):
        with pytest.raises(ValueError, match=message):
            head_for(NET, kind, **given)


@pytest.mark.long
def test_a_network_that_loses_more_than_its_classifier_is_kept_and_found_again(tmp_path: Path) -> None:
    """Of a VGG the dense layers are classifier as well, and its kept weights are without them."""
    kept = backbones.load(BackboneSpec("vgg11", "random:0", input_size=SIZE), "cpu")
    path = tmp_path / "backbone.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in kept.module.state_dict().items()}, path)
    found = backbones.load(BackboneSpec("vgg11", str(path), input_size=SIZE), "cpu")
    assert found.weights_sha256 == kept.weights_sha256


# --- images and labels ------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(images: Path, tmp_path: Path) -> Path:
    """The images, and four that cannot be used."""
    shutil.copytree(images, tmp_path / "images")
    folder = tmp_path / "images" / "train" / "sick"
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    (folder / "000short.png").write_bytes((folder / "001.png").read_bytes()[:-20])
    Image.new("L", (600, 2)).save(folder / "thin.png")
    return tmp_path / "images"


def test_images_that_cannot_be_read_are_left_out_and_counted(images: Path, spoilt: Path, tmp_path: Path) -> None:
    """And change nothing else: the training is that of the others."""
    notes: list[str] = []
    run = trained(spoilt, tmp_path / "run", on_note=notes.append)
    clean = trained(images, tmp_path / "clean")
    assert run.record["left_out"]["unreadable image"] == 4
    assert any(
        note.startswith("4 images cannot be used and are left out; the first: train/sick/000short.png: cut")
        for note in notes
    )
    assert run.history() == clean.history()
    assert run.images().image_ids == clean.images().image_ids
    for name in ("backbone.safetensors", "predictions.csv"):
        assert (run.path / name).read_bytes() == (clean.path / name).read_bytes()


def test_rows_without_a_label_are_left_out_and_counted(images: Path, tmp_path: Path) -> None:
    names = Manifest.read(images).image_ids
    rows = [f"{name},{'' if i % 6 == 0 else 'ab'[i % 2]}" for i, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["image_id,label", *rows]) + "\n")
    run = trained(images, tmp_path / "run", recipe(Stage("all", 1)), target=TargetSpec(file=tmp_path / "labels.csv"))
    assert sum(run.record["left_out"].values()) == 8
    assert run.record["classes"] == ["a", "b"]
    assert len(run.images()) == 40


def test_findings_are_learnt_side_by_side(images: Path, tmp_path: Path) -> None:
    names = Manifest.read(images).image_ids
    rows = [f"{name},{int('sick' in name)},{'' if i % 5 == 0 else i % 2},{i // 2 % 2}" for i, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["image_id,fluid,mass,air", *rows]) + "\n")
    target = TargetSpec(("fluid", "mass", "air"), file=tmp_path / "labels.csv")
    run = trained(images, tmp_path / "run", target=target)
    assert (run.record["task"], run.record["classes"]) == ("findings", ["fluid", "mass", "air"])
    assert run.record["n_trainable"]["head"] == 3 * (256 + 1)
    assert len(run.metrics("test")["per_class"]) == 3
    again = fine_tune(run, recipe(Stage("last-block", 1)), tmp_path / "again", images=Manifest.read(images))
    assert again.record["task"] == "findings"
    assert again.record["before"]["metrics"]["test"]["loss"] == pytest.approx(run.metrics("test")["loss"], abs=1e-6)


def test_identical_images_are_never_on_two_sides(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    for path in sorted((tmp_path / "images" / "train" / "sick").iterdir())[:6]:
        for i in range(2):
            shutil.copy(path, path.with_name(f"{path.stem}-copy{i}.png"))
    run = trained(tmp_path / "images", tmp_path / "run", recipe(Stage("all", 1)))
    content, fold = run.images().content_sha256, run.protocol().folds[0]
    assert not {content[i] for i in fold.train} & {content[i] for i in fold.val}


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_another_transform_is_another_training(images: Path, tmp_path: Path) -> None:
    """The same images, weights and recipe at another size: not the same Run, nor the same stopped training."""
    how = recipe(Stage("all", 1))
    run = trained(images, tmp_path / "run", how)
    with pytest.raises(UsageError, match="holds another Run"):
        trained(images, tmp_path / "run", how, input_size=48)
    assert Run.open(run.path).record == run.record
    with pytest.raises(KeyboardInterrupt):
        trained(images, tmp_path / "stopped", how, on_epoch=stop_after(1))
    with pytest.raises(UsageError, match="holds an unfinished training that differs"):
        trained(images, tmp_path / "stopped", how, input_size=48)


def test_images_that_were_added_since_are_another_training(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    how = recipe(Stage("all", 1))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "images", tmp_path / "run", how, on_epoch=stop_after(1))
    shutil.copy(images / "test" / "sick" / "005.png", tmp_path / "images" / "train" / "sick" / "more.png")
    (tmp_path / "images" / "test" / "sick" / "005.png").unlink()
    with pytest.raises(UsageError, match="holds an unfinished training that differs"):
        trained(tmp_path / "images", tmp_path / "run", how)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"name": "simple-cnn", "input_size": 16}, UsageError, "cannot take images of 16x16"),
        ({"name": "simple-cnn", "weights": None}, WeightsUnavailable, "simple-cnn has no pretrained weights"),
        ({"how": recipe(Stage("layer9", 1))}, UsageError, "'layer9' is in the name of no parameter"),
        ({"how": recipe(precision="tf32")}, UsageError, "`precision`=tf32 needs a GPU"),
        ({"how": recipe(precision="float16")}, UsageError, "`precision`=float16 needs a GPU"),
        (
            {"how": recipe(batch_size=1)},
            UsageError,
            "a batch norm in training mode needs more than one image at a time",
        ),
        ({"how": recipe(optimizer="sgd", lr=1000.0, backbone_lr=1000.0)}, UsageError, "the training diverged in epoch"),
        ({"operating_point": "best"}, UsageError, "is no rule for an operating point"),
        ({"target": TargetSpec(("height",))}, UsageError, "height"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    images: Path, tmp_path: Path, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        trained(images, tmp_path / "run", **asked)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_held_rows_of_one_class_choose_by_loss_alone(images: Path, tmp_path: Path) -> None:
    """AUROC does not exist on them: said at the beginning, and not in the end."""
    names = Manifest.read(images).image_ids
    run = trained(images, tmp_path / "first", recipe(Stage("all", 1)))
    division = json.loads((run.path / "split.json").read_text())
    held = set(division["folds"][0]["val"])
    rows = [f"{name},{'normal' if name in held else name.split('/')[1]}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["image_id,label", *rows]) + "\n")
    asked = {"target": TargetSpec(file=tmp_path / "labels.csv"), "split": SplitSpec(file=run.path / "split.json")}
    with pytest.raises(UsageError, match=r"auroc does not exist on validation rows of one class.*`select`=loss"):
        trained(images, tmp_path / "run", recipe(select="auroc"), **asked)
    trained(images, tmp_path / "run", recipe(Stage("all", 1)), **asked)


def test_a_folder_without_images_or_labels_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match="found 0 images"):
        trained(tmp_path / "nothing", tmp_path / "run")
    shutil.copytree(images / "train" / "sick", tmp_path / "flat")
    with pytest.raises(UsageError, match="has no labels"):
        trained(tmp_path / "flat", tmp_path / "run")
    shutil.copytree(images / "train", tmp_path / "bad")
    for path in (tmp_path / "bad").rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(
        UsageError, match=r"none of the 32 images under .*bad can be used; the first: normal/000\.png: "
    ):
        trained(tmp_path / "bad", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_torch_keeps_its_threads(images: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    trained(images, tmp_path / "run", recipe(Stage("last-block", 1)))
    assert torch.get_num_threads() == before


def test_the_examples_of_train_and_fine_tune_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this order: the example of `fine_tune` begins with the Run of the example of `train`."""
    monkeypatch.chdir(tmp_path)
    for verb in (train, fine_tune):
        (example,) = doctest.DocTestFinder(recurse=False).find(verb, verb.__name__, globs={})
        assert example.examples
        assert doctest.DocTestRunner().run(example).failed == 0
