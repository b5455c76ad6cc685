"""Phase 2: what a Run of it holds, what it does not depend on, and that it can be stopped anywhere."""

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from featcache.embedding import embed
from featcache.errors import IdentityMismatch, InputsChanged, UsageError
from featcache.finetune.cross_validation import shortened
from featcache.finetune.fine_tune import fine_tune
from featcache.fusion.writer import export_studies
from featcache.manifest import Manifest
from featcache.runs import Run
from featcache.specs import (
    AugmentationSpec,
    AugmentedCopies,
    BackboneSpec,
    FusionSpec,
    HeadSpec,
    Recipe,
    SelectionSpec,
    SplitSpec,
    Stage,
    TargetSpec,
)
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import NET, begin_phase_two, moved_away
from tests.test_tuning import Bench
from tests.test_tuning import run as train

LAST = Stage("last-block", 2)
OF_LAST = ("blocks.4.", "conv_head.", "bn2.")
STILL = Stage(r"conv_head", 3)  # nothing with statistics: at the smallest rate nothing moves


def recipe(*stages: Stage, **given: Any) -> Recipe:
    """Quick to learn, and nothing augmented."""
    how = {"stages": stages or (LAST,), "batch_size": 8, "lr": 0.01, "augment": None, "select": "loss"}
    return Recipe(**{**how, **given})


def tuned(
    folder: Path, how: Recipe, path: Path, parent: str | Path = "linear", *, images: bool = False, **asked: Any
) -> Run:
    """A Run at `path`, from the images of a folder like `phase_one` or from its store."""
    run = Run.open(folder / parent)
    asked = {"weights": str(folder / "net.safetensors"), **asked}
    if images:
        return fine_tune(run, how, path, images=Manifest.read(folder / "images"), **asked)
    with Store.open(folder / "tail.h5") as store:
        return fine_tune(run, how, path, store=store, **asked)


def table(run: Run, name: str = "predictions.csv") -> list[dict[str, str]]:
    with open(run.path / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def losses(run: Run) -> np.ndarray:
    return np.array([[point["train_loss"], point["val_loss"]] for point in run.history()])


def same_files(one: Run, other: Run, but: set[str] = frozenset({"run.json"})) -> None:  # type: ignore[assignment]
    names = {path.name for path in one.path.iterdir()}
    assert names == {path.name for path in other.path.iterdir()}
    for name in names - but:
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name


# --- what a Run holds -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_store(phase_one: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four epochs of the last block. Never to be changed."""
    return tuned(phase_one, recipe(Stage("last-block", 4)), tmp_path_factory.mktemp("tuned") / "run")


def test_what_is_frozen_does_not_move_by_a_bit_and_what_learns_has_moved(from_store: Run, phase_one: Path) -> None:
    before, after = load_file(phase_one / "net.safetensors"), load_file(from_store.path / "backbone.safetensors")
    assert from_store.record["epoch"] > 2, "an epoch of phase 2 must be the best for this to say anything"
    assert before.keys() == after.keys()
    moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert moved == {name for name in before if name.startswith(OF_LAST)}
    assert any(
        np.any(from_store.weights()[name] != old) for name, old in Run.open(phase_one / "linear").weights().items()
    )


def test_its_network_embeds_to_vectors_of_which_its_head_says_what_it_predicted(
    from_store: Run, phase_one: Path, tmp_path: Path
) -> None:
    spec = BackboneSpec(NET, str(from_store.path / "backbone.safetensors"), input_size=32)
    embed(Manifest.read(phase_one / "images"), tmp_path / "new.h5", spec)
    with Store.open(tmp_path / "new.h5") as store:
        assert (
            store.identity["backbone"]["weights_sha256"]
            == from_store.record["store"]["identity"]["backbone"]["weights_sha256"]
        )
        p = dict(zip(store.image_ids, softmax(from_store.logits(store.features()).astype(float), axis=1), strict=True))
    rows = table(from_store)
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    for row in rows:
        said = [float(row[f"p_{name}"]) for name in from_store.record["classes"]]
        np.testing.assert_allclose(said, p[row["image_id"]], atol=1e-5)


def test_vectors_of_a_network_that_has_learnt_from_images_say_so(
    from_store: Run, phase_one: Path, tmp_path: Path
) -> None:
    """No fold of its images is without it, in whatever comes of them: a head, a file of studies, a further training."""
    spec = BackboneSpec(NET, str(from_store.path / "backbone.safetensors"), input_size=32)
    embed(Manifest.read(phase_one / "images"), tmp_path / "new.h5", spec)
    with Store.open(tmp_path / "new.h5") as store:
        assert store.weights_source == from_store.record["store"]["weights"] == "run"
        run = train_head(store, HeadSpec(epochs=1), tmp_path / "run")
        by_head = export_studies(store, tmp_path / "head.h5", FusionSpec("image_id"), run)
        by_itself = export_studies(store, tmp_path / "itself.h5", FusionSpec("image_id"), from_store)
    assert "out of fold as well" in " ".join(run.record["notes"])
    assert "no logits are of something that has not seen them" in by_head.notes[0]
    assert by_itself.notes == (), "it is known what the Run has learnt from"
    images = Manifest.read(phase_one / "images")
    how = recipe(Stage("last-block", 1))
    further = fine_tune(run, how, tmp_path / "further", images=images, weights=spec.weights)
    assert "out of fold as well" in " ".join(further.record["notes"])
    assert not any("out of fold as well" in note for note in from_store.record["notes"])
    again = fine_tune(from_store, how, tmp_path / "again", images=images)
    assert not any("out of fold as well" in note for note in again.record["notes"]), "it divides the rows as before"


def test_a_store_that_did_not_know_whose_weights_it_has_is_told(
    from_store: Run, phase_one: Path, tmp_path: Path
) -> None:
    """The same tensors in another file, then in the Run's: nothing is computed again."""
    save_file(load_file(from_store.path / "backbone.safetensors"), tmp_path / "bare.safetensors")
    images = Manifest.read(phase_one / "images")
    for weights, told in (("bare.safetensors", "file"), (str(from_store.path / "backbone.safetensors"), "run")):
        done = embed(images, tmp_path / "s.h5", BackboneSpec(NET, str(tmp_path / weights), input_size=32))
        assert Store.open(tmp_path / "s.h5").weights_source == told
    assert done.counts.embedded == 0


def test_a_run_says_all_that_was_asked_and_what_it_bought(from_store: Run, phase_one: Path) -> None:
    record, parent = from_store.record, Run.open(phase_one / "linear")
    assert record["command"] == "fine-tune"
    assert record["parent"]["run"] == "linear"
    assert record["recipe"]["stages"] == [{"unfreeze": "last-block", "epochs": 4}]
    assert record["n_trainable"]["head"] == sum(array.size for array in parent.weights().values())
    assert record["n_parameters"] == sum(record["n_trainable"].values())
    before = record["before"]["metrics"]
    for side in ("train", "val", "test"):
        for name in ("n", "accuracy", "auroc", "confusion"):
            assert before[side][name] == parent.metrics(side)[name]
        assert before[side]["loss"] == pytest.approx(parent.metrics(side)["loss"], abs=1e-5)
    for side in ("val", "test"):
        difference, low, high = record["gain"][side]["auroc"]
        assert difference == pytest.approx(from_store.metrics(side)["auroc"] - before[side]["auroc"])
        assert low <= difference <= high
    assert from_store.metrics("val")["chose"] == ["epoch"]
    assert json.loads((from_store.path / "split.json").read_text())["sha256"] == parent.record["split_sha256"]
    kept = [point for point in from_store.history() if point["epoch"] == record["epoch"]]
    assert kept[0]["val_loss"] == pytest.approx(from_store.metrics("val")["loss"], abs=1e-6)


def test_phases_are_counted_through(from_store: Run, phase_one: Path, tmp_path: Path) -> None:
    """And a Run of phase 2 is the start of another."""
    first = from_store.history()
    assert first[:2] == [{"phase": 1.0, **point} for point in Run.open(phase_one / "linear").history()]
    assert [(point["phase"], point["epoch"]) for point in first] == [(1, 1), (1, 2), *((2, e) for e in (3, 4, 5, 6))]
    stages = Stage(r"blocks\.3", 1), Stage("2", 2)
    how = recipe(*stages, lr=0.001)
    again = tuned(phase_one, how, tmp_path / "again", from_store.path, images=True, weights=None)
    points = again.history()
    assert points[:6] == first
    assert [(point["phase"], point["epoch"]) for point in points[6:]] == [(3, 7), (4, 8), (4, 9)]
    assert again.record["parent"]["run"] == "run"
    assert again.record["before"]["metrics"]["test"]["loss"] == pytest.approx(
        from_store.metrics("test")["loss"], abs=1e-5
    )
    moved = load_file(again.path / "backbone.safetensors")
    old = load_file(from_store.path / "backbone.safetensors")
    assert all(
        moved[name].tobytes() == old[name].tobytes() for name in old if name.startswith(("blocks.2", "conv_stem"))
    )


# --- images and stores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", ["linear", "mlp"])
def test_images_as_they_are_and_their_store_give_the_same(phase_one: Path, tmp_path: Path, parent: str) -> None:
    how = recipe(LAST, lr=0.001, batch_size=7)
    runs = [tuned(phase_one, how, tmp_path / f"{i}", parent, images=i == 1) for i in range(2)]
    np.testing.assert_allclose(losses(runs[0]), losses(runs[1]), atol=1e-5)
    assert len({run.record["epoch"] for run in runs}) == 1


def test_views_of_a_store_are_drawn_anew_in_each_epoch(phase_one: Path, tmp_path: Path) -> None:
    how = recipe(STILL, optimizer="sgd", lr=1e-12, schedule="constant")
    plain, turned = (tuned(phase_one, how, tmp_path / f"{views}", augmentations=views) for views in (False, True))
    assert np.ptp(losses(plain)[2:, 0]) < 1e-6
    assert np.ptp(losses(turned)[2:, 0]) > 1e-4
    np.testing.assert_allclose(losses(plain)[:, 1], losses(turned)[:, 1], atol=1e-6)


def test_augmented_images_are_learnt_from_and_plain_ones_scored(phase_one: Path, tmp_path: Path) -> None:
    how = recipe(STILL, optimizer="sgd", lr=1e-12, schedule="constant", augment=AugmentationSpec(scale=0.5))
    turned = tuned(phase_one, how, tmp_path / "run", images=True)
    plain = tuned(phase_one, replace(how, augment=None), tmp_path / "plain")
    assert np.ptp(losses(turned)[2:, 0]) > 1e-4
    np.testing.assert_allclose(losses(turned)[:, 1], losses(plain)[:, 1], atol=1e-5)
    assert turned.record["recipe"]["augment"] == {"rotation": 25.0, "color_jitter": 0.2, "hflip": 0.5, "scale": 0.5}
    assert plain.record["recipe"]["augment"] is None


def test_a_store_may_hold_more_than_the_one_that_the_head_was_trained_on(phase_one: Path, tmp_path: Path) -> None:
    """The usual order: a head first, boundaries and views when phase 2 is worth it."""
    spec = BackboneSpec(NET, str(phase_one / "net.safetensors"), input_size=32)
    embed(Manifest.read(phase_one / "images"), tmp_path / "plain.h5", spec)
    with Store.open(tmp_path / "plain.h5") as store:
        train_head(store, HeadSpec(epochs=2, lr=1e-4), tmp_path / "plain", split=SplitSpec(val_fraction=0.25))
    run = tuned(phase_one, recipe(), tmp_path / "tuned", tmp_path / "plain")
    reference = tuned(phase_one, recipe(), tmp_path / "reference")
    np.testing.assert_allclose(losses(run), losses(reference), atol=1e-6)


KINDS = {
    "logreg": HeadSpec.of("logreg"),
    "ridge": HeadSpec.of("ridge"),
    "two layers, gelu": HeadSpec.of("mlp", hidden_sizes=(8, 5), activation="gelu", epochs=2),
    "standard scale": HeadSpec(epochs=2, scale="standard"),
    "early": HeadSpec(epochs=30, lr=0.1, patience=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_with_weights_is_a_start(phase_one: Path, tmp_path: Path, kind: str) -> None:
    """What it says before phase 2 is what it said after phase 1, and when nothing is better it stays, bit for bit."""
    with Store.open(phase_one / "tail.h5") as store:
        parent = train_head(store, KINDS[kind], tmp_path / "parent", split=SplitSpec(val_fraction=0.25))
    run = tuned(phase_one, recipe(lr=900.0), tmp_path / "run", tmp_path / "parent")
    assert run.record["before"]["metrics"]["test"]["loss"] == pytest.approx(parent.metrics("test")["loss"], abs=1e-5)
    check_start_was_kept(run, parent, phase_one)


def test_a_run_that_was_scored_over_views_is_not_compared_with_one_that_was_not(
    phase_one: Path, tmp_path: Path
) -> None:
    """What it says before is of images as they are, as what it says after; and it says so."""
    with Store.open(phase_one / "tail.h5") as store:
        head, report = HeadSpec(epochs=2, lr=1e-4, augmentations=True), SelectionSpec(tta=True)
        split = SplitSpec(val_fraction=0.25)
        parent = train_head(store, head, tmp_path / "parent", split=split, report=report)
    run = tuned(phase_one, recipe(Stage("last-block", 1)), tmp_path / "run", tmp_path / "parent")
    assert run.record["before"]["metrics"]["test"]["loss"] != pytest.approx(parent.metrics("test")["loss"], abs=1e-5)
    assert run.record["asked"]["tta"] is False
    assert "parent used test-time augmentation; the metrics here, before and after, do not" in run.record["notes"]


# --- the start may win ------------------------------------------------------------------------------------------------


def check_start_was_kept(run: Run, parent: Run, folder: Path) -> None:
    assert (
        f"no epoch was better on the validation rows, so the weights are those of {parent.path.name}"
        in (run.record["notes"])
    )
    assert run.record["epoch"] == parent.record["epoch"]
    before, after = load_file(folder / "net.safetensors"), load_file(run.path / "backbone.safetensors")
    assert all(after[name].tobytes() == tensor.tobytes() for name, tensor in before.items())
    for name, tensor in parent.weights().items():
        assert run.weights()[name].tobytes() == tensor.tobytes(), name
    mine = {(row["image_id"], row["split"]): row for row in table(run)}
    assert len(mine) == len(table(parent)) > 0
    for row in table(parent):
        twin = mine[row["image_id"], row["split"]]
        assert (row["label"], row["prediction"], row["fold"]) == (twin["label"], twin["prediction"], twin["fold"])
        for name in run.record["classes"]:
            assert float(row[f"p_{name}"]) == pytest.approx(float(twin[f"p_{name}"]), abs=1e-5)
    assert run.record["gain"]["test"]["auroc"][0] == 0.0


@pytest.mark.parametrize("parent", ["linear", "mlp", pytest.param("folds", marks=pytest.mark.long)])
def test_where_everything_gets_worse_phase_one_is_kept(phase_one: Path, tmp_path: Path, parent: str) -> None:
    how = recipe(Stage("last-block", 1), Stage("last-stage", 1), lr=900.0)
    run = tuned(phase_one, how, tmp_path / "run", parent)
    check_start_was_kept(run, Run.open(phase_one / parent), phase_one)


# --- what it does not depend on ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poisoned(phase_one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`phase_one` with other images and the opposite labels under `test`, and everything made anew."""
    folder = tmp_path_factory.mktemp("poisoned")
    shutil.copytree(phase_one / "images", folder / "images")
    shutil.copy(phase_one / "net.safetensors", folder)
    sides = [folder / "images" / "test" / name for name in ("normal", "sick")]
    for side in sides:
        for path in side.iterdir():
            noise = np.random.default_rng(int(path.stem)).integers(0, 256, (30, 50), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    sides[0].rename(folder / "images" / "test" / "other")
    sides[1].rename(sides[0])
    (folder / "images" / "test" / "other").rename(sides[1])
    return begin_phase_two(folder)


POISON: dict[str, tuple[str, Recipe, dict[str, Any]]] = {
    "store": ("linear", recipe(), {}),
    "views": ("mlp", recipe(), {"augmentations": True, "operating_point": "youden"}),
    "augmented": (
        "linear",
        recipe(Stage("2", 2), augment=AugmentationSpec(scale=0.7), schedule="cosine"),
        {"images": True},
    ),
    "folds": ("folds", recipe(LAST, patience=1), {}),
}


@pytest.mark.parametrize("case", ["store", *(pytest.param(c, marks=pytest.mark.long) for c in POISON if c != "store")])
def test_nothing_but_the_test_numbers_depends_on_the_test_rows(
    phase_one: Path, poisoned: Path, tmp_path: Path, case: str
) -> None:
    parent, how, asked = POISON[case]
    (tmp_path / "clean").mkdir()
    (tmp_path / "poisoned").mkdir()
    clean = tuned(phase_one, how, tmp_path / "clean" / "run", parent, **asked)
    other = tuned(poisoned, how, tmp_path / "poisoned" / "run", parent, **asked)
    weights = [load_file(run.path / "backbone.safetensors") for run in (clean, other)]
    assert all(weights[0][name].tobytes() == weights[1][name].tobytes() for name in weights[0])
    for name, tensor in clean.weights().items():
        assert other.weights()[name].tobytes() == tensor.tobytes()
    assert (clean.path / "history.csv").read_bytes() == (other.path / "history.csv").read_bytes()
    assert clean.record["epoch"] == other.record["epoch"]
    for side in ("train", "val"):
        assert clean.metrics(side) == other.metrics(side)
        rows = [[row for row in table(run) if row["split"] == side] for run in (clean, other)]
        assert rows[0] == rows[1] != []
    assert clean.metrics("test")["loss"] != other.metrics("test")["loss"]


# --- folds ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_folds_end_in_a_network_of_all_rows_for_the_mean_of_their_best_epochs(phase_one: Path, tmp_path: Path) -> None:
    """Each fold is the training that it would be alone: nothing of one that has seen its held rows is in it."""
    seen: list[tuple[int, int, dict[str, float]]] = []

    def on_epoch(done: int, total: int, point: Any) -> None:
        seen.append((done, total, dict(point)))

    how, best = recipe(Stage("last-block", 3), lr=0.003), []
    run = tuned(phase_one, how, tmp_path / "run", "folds", on_epoch=on_epoch)
    fold_tensors, final = seen[:9], seen[9:]
    assert [done for done, _, _ in fold_tensors] == [1, 2, 3] * 3
    with ExitStack() as files:
        bench = Bench(phase_one, files)
        for i in range(3):
            alone, start = bench.tuner(how, "folds", fold=i)
            train(alone, tmp_path / f"{i}")
            assert alone.history == [point for _, _, point in fold_tensors[3 * i : 3 * i + 3]]
            best.append(alone.best_epoch)
        epochs = round(float(np.mean(best)))
        assert 0 < epochs == len(final)
        last, start = bench.tuner(replace(how, stages=(Stage("last-block", epochs),)), "folds", fold=None)
        train(last, tmp_path / "all")
    assert run.record["epoch"] == 2 + epochs
    assert all("val_loss" not in point for _, _, point in final)
    kept = load_file(run.path / "backbone.safetensors")
    assert all(np.array_equal(kept[name], t.numpy()) for name, t in start.backbone.module.state_dict().items())
    assert run.metrics("val")["n"] == run.metrics("train")["n"] == len(run.protocol().rows)
    folds = {row["image_id"]: row["fold"] for row in table(run) if row["split"] == "val"}
    for number, fold in enumerate(run.protocol().folds):
        assert {folds[run.images().image_ids[i]] for i in fold.val} == {str(number)}


def test_the_final_network_comes_to_the_later_stages_as_the_folds_did() -> None:
    """Where stages ended early in them, it goes on to the next as early."""
    how = recipe(Stage("last-block", 10), Stage("all", 10), patience=2)

    def history(*n_epochs: int) -> list[dict[str, float]]:
        return [{"stage": float(stage)} for stage, n in enumerate(n_epochs, start=1) for _ in range(n)]

    def final(histories: list[list[dict[str, float]]], epochs: int) -> list[tuple[str, int]]:
        made = shortened(how, histories, epochs)
        return [(stage.unfreeze, stage.epochs) for stage in made.stages] if made else []

    early = [history(3, 5), history(4, 6), history(5, 4)]
    assert final(early, 6) == [("last-block", 4), ("all", 2)]
    assert final(early, 3) == [("last-block", 3)]
    assert final(early, 0) == []
    whole = [history(10, 10)] * 3
    for epochs in range(1, 21):
        stages = [("last-block", min(epochs, 10)), *([("all", epochs - 10)] if epochs > 10 else [])]
        assert final(whole, epochs) == stages


@pytest.mark.long
def test_a_fold_whose_held_labels_are_wrong_trains_the_same_network(phase_one: Path, tmp_path: Path) -> None:
    """Held rows reach nothing but the choice of the epoch, and with a schedule or early stopping the rate and the end:
    the state after the last epoch is the same."""
    division = json.loads((phase_one / "folds" / "split.json").read_text())
    held = {
        Run.open(phase_one / "folds").images().image_ids[i]
        for i in Run.open(phase_one / "folds").protocol().folds[0].val
    }
    found = []
    for poison in (False, True):
        folder = tmp_path / f"{poison}"
        folder.mkdir()
        with Store.open(phase_one / "tail.h5") as store:
            labels = dict(zip(store.image_ids, store.columns["label"], strict=True))
            if poison:
                labels |= {name: {"normal": "sick", "sick": "normal"}[labels[name]] for name in held}
            lines = ["image_id,label", *(f"{name},{label}" for name, label in labels.items())]
            (folder / "labels.csv").write_text("\n".join(lines) + "\n")
            split = SplitSpec(file=phase_one / "folds" / "split.json")
            target = TargetSpec(file=folder / "labels.csv")
            train_head(store, HeadSpec(epochs=2, lr=1e-4), folder / "parent", split=split, target=target)
        how = recipe(Stage("last-block", 2), schedule="constant")
        with pytest.raises(KeyboardInterrupt):
            tuned(phase_one, how, folder / "run", folder / "parent", on_epoch=stop_after(2))
        tensors = load_file(max((folder / "run.partial").glob("fold-0-000002-*")))
        found.append({name: tensor for name, tensor in tensors.items() if name.startswith(("backbone/", "head/"))})
    assert len(division["folds"]) == 3
    assert found[0].keys() == found[1].keys() != set()
    assert all(found[0][name].tobytes() == found[1][name].tobytes() for name in found[0])


# --- stopped and continued --------------------------------------------------------------------------------------------


def stop_after(n: int) -> Callable[[int, int, Any], None]:
    """Ctrl-C once so many epochs, of whatever fold, are done."""
    left = iter(range(n, 0, -1))

    def on_epoch(done: int, total: int, point: Any) -> None:
        if next(left) == 1:
            raise KeyboardInterrupt

    return on_epoch


CUT: dict[str, tuple[str, Recipe, dict[str, Any], int]] = {
    "images": ("mlp", recipe(LAST, Stage("2", 1), augment=AugmentationSpec(), dropout=0.3), {"images": True}, 3),
    "folds": ("folds", recipe(Stage("last-block", 1), Stage("last-stage", 2), lr=0.003), {"augmentations": True}, 9),
}


@pytest.mark.long
@pytest.mark.parametrize("case", ["images", "folds"])
def test_a_stopped_training_leaves_the_files_of_one_that_was_not(phase_one: Path, tmp_path: Path, case: str) -> None:
    parent, how, asked, n = CUT[case]
    whole = tuned(phase_one, how, tmp_path / "whole", parent, **asked)
    for i in range(1, n + 1):
        with pytest.raises(KeyboardInterrupt):
            tuned(phase_one, how, tmp_path / f"{i}", parent, on_epoch=stop_after(i), **asked)
        assert not (tmp_path / f"{i}").exists()
        assert (tmp_path / f"{i}.partial").is_dir()
        again = tuned(phase_one, how, tmp_path / f"{i}", parent, **asked)
        same_files(again, whole)
        varying = {"seconds"}
        assert {k: v for k, v in again.record.items() if k not in varying} == {
            k: v for k, v in whole.record.items() if k not in varying
        }
        assert not (tmp_path / f"{i}.partial").exists()


def test_a_training_may_be_repeated_in_its_place(phase_one: Path, tmp_path: Path) -> None:
    first = tuned(phase_one, recipe(), tmp_path / "run")
    shutil.copytree(first.path, tmp_path / "kept")
    again = tuned(phase_one, recipe(), tmp_path / "run")
    same_files(again, replace(first, path=tmp_path / "kept"))


def test_a_run_that_was_killed_while_it_was_written_is_written_again(
    from_store: Run, phase_one: Path, tmp_path: Path
) -> None:
    """Everything is there, also the network, but for the record, which comes last."""
    shutil.copytree(from_store.path, tmp_path / "run", ignore=shutil.ignore_patterns("run.json"))
    same_files(tuned(phase_one, recipe(Stage("last-block", 4)), tmp_path / "run"), from_store)


def test_a_parent_that_was_made_again_or_moved_is_the_same_parent(phase_one: Path, tmp_path: Path) -> None:
    """A script may run twice from the beginning, and a stopped training goes on wherever its parent is by then."""
    for name in ("once", "again"):
        with Store.open(phase_one / "tail.h5") as store:
            head, split = HeadSpec(epochs=2, lr=1e-4), SplitSpec(val_fraction=0.25)
            train_head(store, head, tmp_path / name / "head", split=split)
    (tmp_path / "again" / "head").rename(tmp_path / "again" / "elsewhere")
    parents = [tmp_path / "once" / "head", tmp_path / "again" / "elsewhere"]
    seconds = [Run.open(parent).record["seconds"] for parent in parents]
    record = json.loads((parents[1] / "run.json").read_text())
    (parents[1] / "run.json").write_text(json.dumps({**record, "seconds": seconds[0] + 1}))
    tuned(phase_one, recipe(Stage("last-block", 1)), tmp_path / "run", parents[0])
    again = tuned(phase_one, recipe(Stage("last-block", 1)), tmp_path / "run", parents[1])
    assert again.record["parent"]["run"] == "elsewhere"
    with pytest.raises(UsageError, match="holds another Run"):
        tuned(phase_one, recipe(Stage("last-block", 1)), tmp_path / "run", "mlp")


def test_another_training_is_never_continued_nor_written_over(phase_one: Path, tmp_path: Path) -> None:
    stop = stop_after(1)
    with pytest.raises(KeyboardInterrupt):
        tuned(phase_one, recipe(), tmp_path / "run", on_epoch=stop)
    for other, asked in ((recipe(seed=1), {}), (recipe(), {"operating_point": "f1"}), (recipe(), {"images": True})):
        with pytest.raises(UsageError, match="holds an unfinished training that differs"):
            tuned(phase_one, other, tmp_path / "run", **asked)
    done = tuned(phase_one, recipe(), tmp_path / "run")
    with pytest.raises(UsageError, match="holds another Run"):
        tuned(phase_one, recipe(seed=1), tmp_path / "run")
    with pytest.raises(UsageError, match="holds another Run"):
        tuned(phase_one, recipe(), phase_one / "linear")
    assert Run.open(done.path).record == done.record


def test_views_of_another_seed_are_another_training(phase_one: Path, tmp_path: Path) -> None:
    spec = BackboneSpec(NET, str(phase_one / "net.safetensors"), input_size=32, taps=("pooled", "boundary"))
    embed(Manifest.read(phase_one / "images"), tmp_path / "other.h5", spec, augmentations=AugmentedCopies(2, seed=9))
    with pytest.raises(KeyboardInterrupt):
        tuned(phase_one, recipe(), tmp_path / "run", augmentations=True, on_epoch=stop_after(1))
    run, weights = Run.open(phase_one / "linear"), str(phase_one / "net.safetensors")
    with Store.open(tmp_path / "other.h5") as store:
        with pytest.raises(UsageError, match=r"unfinished training that differs .*views"):
            fine_tune(run, recipe(), tmp_path / "run", store=store, augmentations=True, weights=weights)
        fine_tune(run, recipe(), tmp_path / "elsewhere", store=store, weights=weights)


def test_what_is_refused_leaves_nothing_behind(phase_one: Path, tmp_path: Path) -> None:
    """A corrected command at the same place is not told of an unfinished training that never began."""
    with pytest.raises(UsageError, match="lies below it"):
        tuned(phase_one, recipe(Stage("all", 1)), tmp_path / "run")
    with pytest.raises(UsageError, match="is in the name of no parameter"):
        tuned(phase_one, recipe(Stage("nothing", 1)), tmp_path / "run", images=True)
    assert list(tmp_path.iterdir()) == []
    tuned(phase_one, recipe(Stage("last-block", 1)), tmp_path / "run")


# --- other inputs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def moved(phase_one: Path, tmp_path: Path) -> Path:
    """The images elsewhere, to be changed."""
    shutil.copytree(phase_one / "images", tmp_path / "images")
    return tmp_path / "images"


def of_images(folder: Path, phase_one: Path, path: Path, **asked: Any) -> Run:
    weights = str(phase_one / "net.safetensors")
    parent = Run.open(phase_one / "linear")
    return fine_tune(
        parent, recipe(Stage("last-block", 1)), path, images=Manifest.read(folder), weights=weights, **asked
    )


def test_images_are_known_by_their_names_and_bytes(phase_one: Path, moved: Path, tmp_path: Path) -> None:
    """Another place and further images are no matter; other bytes, or none, are."""
    shutil.copy(moved / "test" / "sick" / "005.png", moved / "further.png")
    run = of_images(moved, phase_one, tmp_path / "run")
    assert run.metrics("test")["n"] == 16
    path = moved / "train" / "sick" / "001.png"
    data = path.read_bytes()
    Image.open(moved / "further.png").save(path)
    with pytest.raises(
        InputsChanged, match=r"1 of 48 images are not those of the Run: train/sick/001.png \(other bytes\)"
    ):
        of_images(moved, phase_one, tmp_path / "other")
    path.write_bytes(data[:-20])
    with pytest.raises(InputsChanged, match=r"1 of 48 images are not those of the Run: train/sick/001.png"):
        of_images(moved, phase_one, tmp_path / "other")
    path.unlink()
    with pytest.raises(InputsChanged, match=r"lacks 1 of the Run's 48 images: train/sick/001.png"):
        of_images(moved, phase_one, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "other.partial").exists()


def test_an_image_that_changes_while_it_is_learnt_from_is_seen(
    phase_one: Path, moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is not kept in memory it is read again in each epoch, and compared again."""
    from featcache.finetune import inputs

    monkeypatch.setattr(inputs, "memory_bytes", lambda processes: 0)

    def change(done: int, total: int) -> None:
        if done == total:
            Image.new("L", (40, 40), 7).save(moved / "train" / "sick" / "001.png")

    with pytest.raises(InputsChanged, match=r"001\.png has changed since the training began: other bytes"):
        of_images(moved, phase_one, tmp_path / "run", on_progress=change)


def test_other_weights_and_other_stores_are_refused(phase_one: Path, tmp_path: Path) -> None:
    run = Run.open(phase_one / "linear")
    with pytest.raises(UsageError, match=r"came from a file .*away/gone.safetensors.*\. Name it with the parameter"):
        fine_tune(
            Run.open(moved_away(phase_one / "linear", tmp_path)),
            recipe(),
            tmp_path / "run",
            images=Manifest.read(phase_one / "images"),
        )
    with pytest.raises(IdentityMismatch, match=r"backbone\.weights_sha256"):
        tuned(phase_one, recipe(), tmp_path / "run", weights="random:0")
    manifest = Manifest.read(phase_one / "images")
    weights = str(phase_one / "net.safetensors")
    for name, spec, dtype, message in (
        (
            "other",
            BackboneSpec(NET, "random:0", input_size=32, taps=("pooled", "boundary")),
            "float32",
            "weights_sha256",
        ),
        ("large", BackboneSpec(NET, weights, input_size=48, taps=("pooled", "boundary")), "float32", "input_size"),
        ("rough", BackboneSpec(NET, weights, input_size=32, taps=("pooled", "boundary")), "float16", "stored_dtype"),
    ):
        embed(manifest, tmp_path / f"{name}.h5", spec, dtype=dtype)
        with Store.open(tmp_path / f"{name}.h5") as store, pytest.raises(IdentityMismatch, match=message):
            fine_tune(run, recipe(), tmp_path / "run", store=store, weights=weights)
    embed(manifest, tmp_path / "plain.h5", BackboneSpec(NET, weights, input_size=32))
    with Store.open(tmp_path / "plain.h5") as store, pytest.raises(UsageError, match="has no boundary"):
        fine_tune(run, recipe(), tmp_path / "run", store=store, weights=weights)
    assert not list(tmp_path.glob("run*"))


def test_a_store_of_other_images_is_refused(phase_one: Path, moved: Path, tmp_path: Path) -> None:
    (moved / "train" / "sick" / "001.png").unlink()
    spec = BackboneSpec(NET, str(phase_one / "net.safetensors"), input_size=32, taps=("pooled", "boundary"))
    embed(Manifest.read(moved), tmp_path / "fewer.h5", spec)
    run, weights = Run.open(phase_one / "linear"), str(phase_one / "net.safetensors")
    with Store.open(tmp_path / "fewer.h5") as store:
        with pytest.raises(InputsChanged, match=r"lacks 1 of the Run's 48 images, .*: train/sick/001.png"):
            fine_tune(run, recipe(), tmp_path / "run", store=store, weights=weights)
        with pytest.raises(UsageError, match="has no boundary_views"):
            fine_tune(run, recipe(), tmp_path / "run", store=store, weights=weights, augmentations=True)


# --- findings and other tasks -----------------------------------------------------------------------------------------


def test_findings_are_fine_tuned_side_by_side(phase_one: Path, tmp_path: Path) -> None:
    """Several label columns, some unknown: the loss of each known one counts."""
    with Store.open(phase_one / "tail.h5") as store:
        lines = ["image_id,fluid,mass"]
        for i, (name, label) in enumerate(zip(store.image_ids, store.columns["label"], strict=True)):
            lines.append(f"{name},{int(label == 'sick')},{'' if i % 5 == 0 else i % 2}")
        (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
        target = TargetSpec(("fluid", "mass"), file=tmp_path / "labels.csv")
        head = HeadSpec(epochs=2, lr=1e-4)
        train_head(store, head, tmp_path / "parent", target=target, split=SplitSpec(val_fraction=0.25))
    run = tuned(phase_one, recipe(Stage("last-block", 2)), tmp_path / "run", tmp_path / "parent")
    assert run.record["task"] == "findings"
    assert run.record["classes"] == ["fluid", "mass"]
    assert run.metrics("test")["per_class"][0]["n"] == 16
    assert run.record["temperature"] is None
    assert "auroc" in run.record["gain"]["test"]
    with pytest.raises(UsageError, match="`operating_point` is for two classes"):
        tuned(phase_one, recipe(), tmp_path / "other", tmp_path / "parent", operating_point="youden")


def test_a_rule_for_the_operating_point_is_checked_before_anything_is_trained(phase_one: Path, tmp_path: Path) -> None:
    epochs: list[int] = []

    def on_epoch(done: int, total: int, point: Any) -> None:
        epochs.append(done)

    with pytest.raises(UsageError, match="is no rule for an operating point"):
        tuned(phase_one, recipe(), tmp_path / "run", operating_point="best", on_epoch=on_epoch)
    assert epochs == []
    run = tuned(phase_one, recipe(), tmp_path / "run", operating_point="sensitivity=0.9", on_epoch=on_epoch)
    assert run.record["operating_point"]["val"]["recall"] >= 0.9
    assert run.record["before"]["operating_point"]["val"]["recall"] >= 0.9
    assert run.metrics("val")["chose"] == ["epoch", "operating_point"]


@pytest.mark.parametrize("select", ["auroc", "loss", "accuracy", "balanced_accuracy", "f1", "auprc"])
def test_the_epoch_that_is_kept_is_the_best_by_what_was_asked(phase_one: Path, tmp_path: Path, select: str) -> None:
    run = tuned(phase_one, recipe(Stage("last-block", 3), select=select), tmp_path / "run", "mlp")
    found = run.metrics("val")[select]
    before = run.record["before"]["metrics"]["val"][select]
    if select in ("loss", "accuracy", "f1"):
        curve = [before, *(point[f"val_{select}"] for point in run.history()[2:])]
        best = min(curve) if select == "loss" else max(curve)
        assert found == pytest.approx(best, abs=1e-6)
        assert run.record["epoch"] == (2 + curve.index(best) if curve.index(best) else run.record["epoch"])
    assert (found <= before) if select == "loss" else (found >= before)
