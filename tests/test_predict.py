"""A Run says of new images what it said of its own: from a store, from files and from arrays, by one path."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import featcache as package
from featcache import durable
from featcache.embedding import embed
from featcache.errors import CorruptStore, FeatcacheError, IdentityMismatch, UnknownFormat, UsageError
from featcache.finetune.fine_tune import fine_tune, train
from featcache.manifest import Manifest
from featcache.prediction import predict
from featcache.prediction.predictions import Predictions
from featcache.prediction.predictor import Predictor, load_run
from featcache.runs import Run
from featcache.specs import BackboneSpec, HeadSpec, Recipe, SelectionSpec, SplitSpec, Stage, TargetSpec
from featcache.store import EMBEDDED, FAILED, Part, PartFolder, Store, publish
from featcache.training.train_head import train_head
from tests.conftest import NET, SMALL, draw, make_store, moved_away, save_others, shared, two_clouds
from tests.test_cli import Done, featcache
from tests.test_training import THREE_FINDINGS, findings

N, D = 90, 6
QUICK = HeadSpec(epochs=2)
HOSTILE = ("=cmd.png", "<img src=x onerror=alert(1)>.png", "two\nlines.png", os.fsdecode(b"caf\xe9.png"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def own(run: Run, side: str = "test") -> dict[str, dict[str, str]]:
    """What the Run said of its rows of a side, by name."""
    return {row["image_id"]: row for row in rows_of(run.path / "predictions.csv") if row["split"] == side}


def check_as_own(run: Run, found: Predictions, tolerance: float = 1e-6) -> None:
    """Of every test row the probabilities and the decisions are those of the Run's own predictions."""
    header, rows = found.table()
    said = {str(row[0]): dict(zip(header, row, strict=True)) for row in rows}
    expected = own(run)
    assert expected
    for name, row in expected.items():
        p = [float(row[f"p_{c}"]) for c in found.classes]
        np.testing.assert_allclose([float(str(said[name][f"p_{c}"])) for c in found.classes], p, atol=tolerance)
        edge = [0.5] if found.model.threshold is None else [0.5, found.model.threshold]
        if min(abs(value - at) for value in p for at in edge) > 10 * tolerance:
            for column in ("prediction", "at_operating_point"):
                assert said[name].get(column) == row.get(column)
    place = {name: i for i, name in enumerate(found.names)}
    rows = [place[name] for name in expected]
    p = np.array([[float(row[f"p_{c}"]) for c in found.classes] for row in expected.values()])
    np.testing.assert_allclose(found.probabilities[rows], p, atol=max(tolerance, 1e-6))
    assert found.probabilities.dtype == np.float32


def check_refused(done: Done, code: int, message: str) -> None:
    """One line, the exit code, no traceback, nothing on stdout."""
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def linear(phase_one: Path) -> Run:
    return Run.open(phase_one / "linear")


@pytest.fixture(scope="module")
def weights(phase_one: Path) -> str:
    return str(phase_one / "net.safetensors")


@pytest.fixture(scope="module")
def said(phase_one: Path, weights: str) -> Predictions:
    """What the linear Run says of the files of its images."""
    with load_run(phase_one / "linear", weights=weights, device="cpu") as predictor:
        return predictor.predict(phase_one / "images")


# --- from a store -----------------------------------------------------------------------------------------------------

SPECS = [
    QUICK,
    HeadSpec.of("mlp", hidden_sizes=(5, 4), epochs=2, activation="gelu"),
    HeadSpec.of("logreg"),
    HeadSpec.of("ridge"),
    HeadSpec.of("knn", n_neighbors=3),
]


def clouds(n_classes: int = 2) -> dict[str, list[str]]:
    labels = [f"c{i % n_classes}" for i in range(N)] if n_classes > 2 else two_clouds(N, D)[1]
    return {"label": labels, "split": ["train"] * 60 + ["test"] * 30}


@pytest.mark.parametrize("spec", SPECS, ids=[spec.kind for spec in SPECS])
def test_a_store_is_told_what_the_run_told_its_own_rows(tmp_path: Path, spec: HeadSpec) -> None:
    report = SelectionSpec(operating_point="youden")
    with Store.open(make_store(tmp_path / "s.h5", two_clouds(N, D)[0], clouds())) as store:
        run = train_head(store, spec, tmp_path / "run", report=report)
        found = load_run(run.path).predict(store)
    check_as_own(run, found)
    assert found.names == store.image_ids
    assert found.at_operating_point is not None
    assert found.failures == {}


def test_several_classes_and_findings_are_told_as_the_run_told_them(tmp_path: Path) -> None:
    with Store.open(make_store(tmp_path / "s.h5", two_clouds(N, D)[0], clouds(3))) as store:
        run = train_head(store, QUICK, tmp_path / "three")
        found = load_run(run.path).predict(store)
    check_as_own(run, found)
    assert found.at_operating_point is None
    x, columns = findings(N, D)
    columns["split"] = ["train"] * 60 + ["test"] * 30
    with Store.open(make_store(tmp_path / "f.h5", x, columns)) as store:
        run = train_head(store, QUICK, tmp_path / "findings", target=THREE_FINDINGS)
        found = load_run(run.path).predict(store)
    check_as_own(run, found)
    assert found.calibrated is None
    assert {len(text.split()) for text in found.called} == {3}
    assert found.counts(found.called)["f0"] == sum(text[0] == "1" for text in found.called)


def test_means_over_views_are_those_of_the_run(phase_one: Path, tmp_path: Path) -> None:
    with Store.open(phase_one / "tail.h5") as store:
        run = train_head(store, QUICK, tmp_path / "run", report=SelectionSpec(tta=True))
        found, plain = load_run(run.path).predict(store), run.logits(store.features())
    check_as_own(run, found)
    assert np.abs(found.logits - plain).max() > 1e-3


@pytest.mark.long
def test_views_of_files_are_made_again(phase_one: Path, weights: str, tmp_path: Path) -> None:
    with Store.open(phase_one / "tail.h5") as store:
        run = train_head(store, QUICK, tmp_path / "run", report=SelectionSpec(tta=True))
    predictor = load_run(run.path, weights=weights, device="cpu")
    found = predictor.predict(phase_one / "images")
    check_as_own(run, found, 1e-5)
    paths = [phase_one / "images" / name for name in found.names[:3]]
    arrays = predictor.predict([np.asarray(Image.open(path)) for path in paths])
    assert 0 < np.abs(arrays.probabilities - found.probabilities[:3]).max() < 0.2  # other views of the same images


def test_the_temperature_makes_the_calibrated_probabilities(said: Predictions) -> None:
    said = replace(said, model=replace(said.model, temperature=1.7))
    z = said.logits.astype(np.float64) / 1.7
    expected = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert said.calibrated is not None
    np.testing.assert_allclose(said.calibrated, expected, atol=1e-6)
    header, rows = said.table()
    assert header == ["image_id", "prediction", "p_normal", "p_sick", "calibrated_normal", "calibrated_sick"]
    np.testing.assert_allclose([float(str(row[-1])) for row in rows], expected[:, 1], atol=1e-6)


def test_a_store_of_other_vectors_is_refused_with_what_differs(phase_one: Path, embedded_once: Path) -> None:
    done = featcache("predict", "linear", "--store", embedded_once, "-o", "/dev/null/x", cwd=phase_one)
    check_refused(done, 2, "/dev/null: something else of that name stands in the way")
    with pytest.raises(IdentityMismatch, match=r"backbone\.weights_sha256: \w+ here, \w+ asked") as raised:
        load_run(phase_one / "linear").predict(Store.open(embedded_once))
    assert "transform.mean: [0.5, 0.5, 0.5] here, [0.485, 0.456, 0.406] asked" in str(raised.value)
    assert f"backbone.name: test_resnet here, {NET} asked" in str(raised.value)
    assert "input_size" not in str(raised.value)


@pytest.mark.long
def test_a_store_with_or_without_views_has_the_same_vectors(phase_one: Path, weights: str, tmp_path: Path) -> None:
    """What else it holds is no difference, though the probe of its identity is another."""
    manifest = Manifest.read(phase_one / "images")
    embed(manifest, tmp_path / "s.h5", BackboneSpec(NET, weights, input_size=32), device="cpu")
    with Store.open(tmp_path / "s.h5") as store:
        check_as_own(Run.open(phase_one / "linear"), load_run(phase_one / "linear").predict(store), 1e-5)


@pytest.mark.long
def test_a_store_is_predicted_without_torch(phase_one: Path) -> None:
    code = (
        "import sys, featcache\n"
        "with featcache.Store.open(sys.argv[2]) as store: print(len(featcache.load_run(sys.argv[1]).predict(store)))\n"
        "heavy = {'torch', 'timm', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code, str(phase_one / "linear"), str(phase_one / "tail.h5")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "48\n"


# --- from files and arrays --------------------------------------------------------------------------------------------


def test_files_are_told_what_the_run_told_its_own_rows(linear: Run, said: Predictions) -> None:
    check_as_own(linear, said, 1e-5)
    assert len(said) == 48


def test_paths_and_arrays_are_told_the_same_in_the_order_given(
    phase_one: Path, weights: str, said: Predictions
) -> None:
    names = [said.names[i] for i in (40, 3, 3, 17)]
    paths = [phase_one / "images" / name for name in names]
    with package.load_run(phase_one / "linear", weights=weights, device="cpu") as predictor:
        of_paths = predictor.predict(paths)
        of_arrays = predictor.predict([np.asarray(Image.open(path)) for path in paths])
        of_one = predictor.predict(np.asarray(Image.open(paths[0])))
    expected = said.probabilities[[said.names.index(name) for name in names]]
    np.testing.assert_allclose(of_paths.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(of_arrays.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(of_one.probabilities, expected[:1], atol=1e-6)
    assert of_paths.names == [str(path) for path in paths]
    assert of_arrays.names == ["0", "1", "2", "3"]


@pytest.mark.parametrize("shape", [(40, 40, 1), (40, 40, 4), (40, 40, 2)])
def test_an_array_with_channels_that_no_image_has_is_not_taken_for_several(linear: Run, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="several are a list of such arrays"):
        load_run(linear.path).predict(np.zeros(shape, dtype=np.uint8))


def test_what_cannot_be_used_is_a_row_without_numbers(phase_one: Path, weights: str, tmp_path: Path) -> None:
    good = phase_one / "images" / "test" / "sick" / "005.png"
    (tmp_path / "text.png").write_text("no image")
    thin, whole = np.zeros((400, 2), dtype=np.uint8), np.asarray(Image.open(good))
    with load_run(phase_one / "linear", weights=weights, device="cpu") as predictor:
        of_paths = predictor.predict([good, tmp_path / "text.png", tmp_path / "gone.png"])
        of_arrays = predictor.predict([thin, whole])
        with pytest.raises(FeatcacheError, match=r"^'.*not an image") as raised:
            predictor.predict(tmp_path / "text.png")
        for wrong in ([whole.astype(np.float32)], [whole[..., None]], [whole, good], [], [3]):
            with pytest.raises(UsageError):
                predictor.predict(wrong)
    assert "See" not in str(raised.value)
    assert np.isnan(of_paths.probabilities).all(axis=1).tolist() == [False, True, True]
    assert [code for code, _ in of_paths.failures.values()] == ["format", "missing"]
    assert np.isnan(of_arrays.probabilities).all(axis=1).tolist() == [True, False]
    assert of_arrays.failures["0"][0] == "aspect"
    assert of_arrays.called[0] == ""
    assert len(of_paths.table()[1]) == len(of_arrays.table()[1]) == 1


@pytest.mark.long
def test_a_feature_map_is_worked_on_as_it_was(phase_one: Path, weights: str, tmp_path: Path) -> None:
    spec = BackboneSpec(NET, weights, input_size=32, taps=("pooled", "grid"))
    images = phase_one / "images" / "test"
    embed(Manifest.read(images), tmp_path / "maps.h5", spec, device="cpu")
    with Store.open(tmp_path / "maps.h5") as store:
        head = HeadSpec.of("flatten-mlp", hidden_sizes=(4,), epochs=2)
        run = train_head(store, head, tmp_path / "run")
        from_store = load_run(run.path).predict(store)
    check_val = own(run, "val")
    predictor = load_run(run.path, weights=weights, device="cpu")
    found = predictor.predict(images)
    np.testing.assert_allclose(found.probabilities, from_store.probabilities, atol=1e-5)
    for name, row in check_val.items():
        p = from_store.probabilities[from_store.names.index(name)]
        np.testing.assert_allclose(p, [float(row["p_normal"]), float(row["p_sick"])], atol=1e-6)
    with pytest.raises(UsageError, match="has no 'grid' features"):
        predictor.predict(Store.open(phase_one / "tail.h5"))


@pytest.mark.long
def test_a_run_of_phase_two_or_from_scratch_needs_no_weights(phase_one: Path, weights: str, tmp_path: Path) -> None:
    """Fine-tuned, and trained from scratch; the vector of a small network of ours is its flattened map."""
    with Store.open(phase_one / "tail.h5") as store:
        recipe = Recipe(stages=(Stage("last-stage", 1),), batch_size=8, lr=0.003)
        tuned = fine_tune(Run.open(phase_one / "linear"), recipe, tmp_path / "tuned", store=store, weights=weights)
    check_as_own(tuned, load_run(tuned.path, device="cpu").predict(phase_one / "images"), 1e-5)
    images = Manifest.read(phase_one / "images")
    recipe = Recipe(stages=(Stage("all", 1),), batch_size=8)
    head = HeadSpec.of("flatten-mlp", hidden_sizes=(4,))
    made = train(images, BackboneSpec("simple-cnn", "random:0", input_size=64), head, recipe, tmp_path / "scratch")
    check_as_own(made, load_run(made.path, device="cpu").predict(images), 1e-5)


@pytest.mark.long
def test_vectors_are_rounded_as_the_run_had_them(tmp_path: Path, class_folder: Path) -> None:
    spec = BackboneSpec(SMALL, "random:0", input_size=32)
    embed(Manifest.read(class_folder), tmp_path / "h.h5", spec, dtype="float16", device="cpu")
    with Store.open(tmp_path / "h.h5") as store:
        run = train_head(store, QUICK, tmp_path / "run", split=SplitSpec(val_fraction=0.25))
        expected = load_run(run.path).predict(store)
    paths = [class_folder / name for name in expected.names]
    predictor = load_run(run.path, device="cpu")
    for found in (predictor.predict(paths), predictor.predict([np.asarray(Image.open(path)) for path in paths])):
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)


def test_a_run_with_a_network_of_its_own_needs_no_weights(
    phase_one: Path, weights: str, tmp_path: Path, said: Predictions
) -> None:
    shutil.copytree(phase_one / "linear", tmp_path / "run")
    shutil.copy(weights, tmp_path / "run" / "backbone.safetensors")
    path = phase_one / "images" / said.names[5]
    found = load_run(tmp_path / "run", device="cpu").predict(np.asarray(Image.open(path)))
    np.testing.assert_allclose(found.probabilities, said.probabilities[5:6], atol=1e-6)


# --- weights and identity ---------------------------------------------------------------------------------------------


def test_weights_from_a_file_have_to_be_named_and_to_be_the_ones(phase_one: Path, weights: str, tmp_path: Path) -> None:
    away = moved_away(phase_one / "linear", tmp_path)
    done = featcache("predict", away, phase_one / "images", "-o", tmp_path / "p.csv", cwd=tmp_path)
    check_refused(
        done, 2, f"the weights of {away} came from a file that is not there any more (looked for /away/gone.s"
    )
    save_others(weights, tmp_path / "other.safetensors")
    command = ("predict", "linear", "images", "--weights", tmp_path / "other.safetensors", "-o", tmp_path / "p.csv")
    done = featcache(*command, cwd=phase_one)
    check_refused(done, 12, "backbone.weights_sha256:")
    assert "0 of" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["away", "other.safetensors", "p.csv.partial"]


def test_libraries_that_make_other_pixels_are_refused(phase_one: Path, weights: str, tmp_path: Path) -> None:
    """Also where the Run's store had views, of which nothing is wanted here."""
    run = changed(phase_one / "linear", tmp_path / "run", lambda r: r["store"]["identity"].update(probe="0" * 64))
    with load_run(run, weights=weights, device="cpu") as predictor:
        for images in (phase_one / "images", [np.zeros((32, 32), dtype=np.uint8)]):
            with pytest.raises(IdentityMismatch, match="probe: the libraries installed here decode or") as found:
                predictor.predict(images)
            assert "0" * 64 not in str(found.value)


def test_another_precision_has_to_be_asked_for(
    phase_one: Path, weights: str, tmp_path: Path, said: Predictions
) -> None:
    run = changed(phase_one / "linear", tmp_path / "run", lambda r: r["store"]["identity"].update(precision="tf32"))
    with pytest.raises(UsageError, match="`precision`=tf32 needs a GPU"):
        load_run(run, weights=weights, device="cpu").predict(phase_one / "images")
    path = phase_one / "images" / said.names[0]
    found = load_run(run, weights=weights, device="cpu", precision="float32").predict(np.asarray(Image.open(path)))
    np.testing.assert_allclose(found.probabilities, said.probabilities[:1], atol=1e-6)


# --- the command ------------------------------------------------------------------------------------------------------


def test_predict_answers_scripts_with_one_json_object(
    phase_one: Path, weights: str, tmp_path: Path, linear: Run
) -> None:
    command = ("predict", phase_one / "linear", phase_one / "images", "--weights", weights, "--device", "cpu")
    done = featcache(*command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer) == [
        "run", "output", "store", "found", "skipped", "skipped_by_reason", "predicted", "failed", "failures",
        "seen", "trained_on", "chosen_by", "classes", "counts", "operating_point", "temperature",
        "tta", "seconds", "notes",
    ]  # fmt: skip
    assert (answer["found"], answer["predicted"], answer["failed"]) == (48, 48, 0)
    assert sum(answer["counts"].values()) == 48
    rows = rows_of(tmp_path / "predictions.csv")
    assert [row["image_id"] for row in rows] == Manifest.read(phase_one / "images").image_ids
    expected = own(linear)
    for row in rows:
        if row["image_id"] in expected:
            assert float(row["p_sick"]) == pytest.approx(float(expected[row["image_id"]]["p_sick"]), abs=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"], "what was on its way is gone"


def test_bad_images_are_told_and_counted(phase_one: Path, weights: str, tmp_path: Path) -> None:
    """Names are somebody's text: they stand in the tables as they are, and do nothing there or on the terminal."""
    for i, name in enumerate(HOSTILE):
        draw(tmp_path / "in" / "x.png", i)
        (tmp_path / "in" / "x.png").rename(tmp_path / "in" / name)
    (tmp_path / "in" / "=bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "in" / "notes.txt").write_text("none")
    command = ("predict", phase_one / "linear", "in", "--weights", weights, "-o", "out/p.csv", "--device", "cpu")
    done = featcache(*command, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "found 5 = predicted 4 + failed 1, see out/p.csv.failures.csv; skipped 1" in done.stdout
    assert "\nlines" not in done.stdout
    names = [row["image_id"] for row in rows_of(tmp_path / "out" / "p.csv")]
    assert sorted(names) == sorted(["'=cmd.png", *HOSTILE[1:]])
    (failed,) = rows_of(tmp_path / "out" / "p.csv.failures.csv")
    assert (failed["image_id"], failed["code"], failed["path"]) == ("'=bad.png", "damaged", "in/=bad.png")
    told = json.loads(featcache(*command, "--json", cwd=tmp_path).stdout)["failures"]
    assert told == [{"image_id": "=bad.png", "code": "damaged", "reason": failed["reason"]}]
    (tmp_path / "in" / "=bad.png").unlink()
    assert featcache(*command, cwd=tmp_path).returncode == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["p.csv"]


def test_one_image_is_told_what_it_is_told_among_others(
    phase_one: Path, weights: str, tmp_path: Path, said: Predictions
) -> None:
    command = ("predict", phase_one / "linear", phase_one / "images" / said.names[0], "--device", "cpu")
    done = featcache(*command, "--weights", weights, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(tmp_path / "predictions.csv")
    assert row["image_id"] == said.names[0].rsplit("/", 1)[-1]
    assert float(row["p_sick"]) == pytest.approx(float(said.probabilities[0, 1]), abs=1e-6)


def test_how_many_rows_of_a_store_a_run_has_learnt_from_is_said(phase_one: Path, tmp_path: Path) -> None:
    """32 of the 48 images were to learn from; those of the test side are what new ones are."""
    command = ("predict", phase_one / "linear", "--store", phase_one / "tail.h5")
    done = featcache(*command, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["seen"] == 32
    assert "note: of these 48 images, the head was trained on 24 and chosen by 8 more (validation)" in done.stderr
    run = changed(phase_one / "linear", tmp_path / "run", lambda record: None)  # without the names of its images
    done = featcache("predict", run, *command[2:], "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["seen"] is None
    assert "whether it was trained on some of these cannot be known" in done.stderr


@pytest.mark.parametrize("name", ["notes.txt", "p.csv", "weights.safetensors", "p.csv.failures.csv"])
def test_what_is_no_earlier_answer_is_not_written_over(phase_one: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    output = name.removesuffix(".failures.csv")
    done = featcache("predict", phase_one / "linear", "--store", phase_one / "tail.h5", "-o", output, cwd=tmp_path)
    check_refused(done, 2, f"{name} is there: a text file, and no earlier ")
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).write_text("")  # as mktemp makes it
    for _ in range(2):
        done = featcache("predict", phase_one / "linear", "--store", phase_one / "tail.h5", "-o", output, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_device_or_a_pipe_is_not_replaced(phase_one: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = featcache("predict", phase_one / "linear", "--store", phase_one / "tail.h5", "-o", "pipe", cwd=tmp_path)
    check_refused(done, 2, "pipe is a pipe")
    with pytest.raises(UsageError, match="is a pipe, which cannot be replaced"):
        durable.write_bytes(tmp_path / "pipe", b"x")
    assert (tmp_path / "pipe").is_fifo()


def test_what_others_have_put_beside_an_unfinished_pass_stays(phase_one: Path, weights: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv.partial").mkdir()
    (tmp_path / "p.csv.partial" / "thesis.txt").write_text("mine")
    command = ("predict", phase_one / "linear", phase_one / "images", "--weights", weights, "--device", "cpu")
    assert featcache(*command, "-o", "p.csv", cwd=tmp_path).returncode == 0
    assert [path.name for path in (tmp_path / "p.csv.partial").iterdir()] == ["thesis.txt"]
    (tmp_path / "p.csv.partial" / f"{'0' * 12}.h5.partial").mkdir()  # as of a pass that runs
    done = featcache("predict", phase_one / "linear", "--store", phase_one / "tail.h5", "-o", "p.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "p.csv.partial").iterdir())) == 2


def test_a_store_that_gets_more_vectors_keeps_its_columns(phase_one: Path, weights: str, tmp_path: Path) -> None:
    images = Manifest.read(phase_one / "images")
    groups = {"group": [f"patient{i // 2}" for i in range(len(images))], "label": ["other"] * len(images)}
    few = replace(
        images, image_ids=images.image_ids[:40], paths=images.paths[:40],
        columns={name: values[:40] for name, values in {**images.columns, **groups}.items()},
    )  # fmt: skip
    embed(few, tmp_path / "k.h5", BackboneSpec(NET, weights, input_size=32))
    command = ("predict", phase_one / "linear", phase_one / "images", "--weights", weights, "--keep", "k.h5")
    done = featcache(*command, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Store.open(tmp_path / "k.h5") as store:
        row = {name: i for i, name in enumerate(store.image_ids)}
        for i, name in enumerate(images.image_ids):
            told = {column: values[row[name]] for column, values in store.columns.items()}
            assert told["group"] == (groups["group"][i] if i < 40 else "")
            assert told["label"] == ("other" if i < 40 else images.columns["label"][i])


def test_an_answer_does_not_depend_on_which_rows_go_along(tmp_path: Path) -> None:
    x, labels = two_clouds(80, 200)
    with Store.open(make_store(tmp_path / "s.h5", x, {"label": labels})) as store:
        for spec in (QUICK, HeadSpec.of("mlp", epochs=2)):
            run = train_head(store, spec, tmp_path / spec.kind)
            features = store.features()
            together = run.logits(features)
            assert np.array_equal(np.concatenate([run.logits(row[None]) for row in features]), together)


def test_nothing_to_predict_is_an_error(phase_one: Path, weights: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    command = ("predict", phase_one / "linear", "in", "--weights", weights, "-o", "p.csv", "--device", "cpu")
    check_refused(featcache(*command, cwd=tmp_path), 2, "found 0 images under in")
    (tmp_path / "in" / "a.png").write_text("no image")
    done = featcache(*command, cwd=tmp_path)
    check_refused(done, 1, "featcache: 'a.png': not an image")
    assert done.stderr.endswith("See p.csv.failures.csv.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "p.csv.failures.csv"]


@pytest.mark.long
def test_a_stopped_pass_is_gone_on_with(phase_one: Path, weights: str, tmp_path: Path, said: Predictions) -> None:
    """Whatever stops it; here the first bad image does, which may do so if that is asked."""
    images = Manifest.read(phase_one / "images")
    (tmp_path / "bad.png").write_text("no image")
    paths = [*images.paths[:47], tmp_path / "bad.png"]
    stopped = replace(images, paths=paths)
    notes: list[str] = []
    with load_run(phase_one / "linear", weights=weights, device="cpu") as predictor:
        with pytest.raises(FeatcacheError, match="`strict`: 'train/sick/"):
            predict(predictor, tmp_path / "p.csv", images=stopped, strict=True, part_rows=8)
        assert not (tmp_path / "p.csv").exists()
        done = predict(predictor, tmp_path / "p.csv", images=stopped, part_rows=8, on_note=notes.append)
    assert any("resuming: 5 of 6 parts are done" in note for note in notes)
    assert (done.n_predicted, done.n_failed) == (47, 1)
    np.testing.assert_allclose(done.predictions.probabilities[:47], said.probabilities[:47], atol=1e-6)


@pytest.mark.long
def test_vectors_that_are_kept_are_a_store_like_any_other(phase_one: Path, weights: str, tmp_path: Path) -> None:
    test, everything = phase_one / "images" / "test", phase_one / "images"
    command = ("predict", phase_one / "linear", "--weights", weights, "--keep", "k.h5", "--device", "cpu")
    assert featcache(*command, test, cwd=tmp_path).returncode == 0
    first = rows_of(tmp_path / "predictions.csv")
    again = featcache("predict", phase_one / "linear", "--store", "k.h5", "-o", "again.csv", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert rows_of(tmp_path / "again.csv") == first
    (tmp_path / "few").mkdir()
    draw(tmp_path / "few" / "new.png", 5)
    done = featcache(*command, "few", cwd=tmp_path)
    check_refused(done, 2, "k.h5 holds 16 images that are not among these: normal/")
    with Store.open(tmp_path / "k.h5") as store:
        assert len(store) == 16
    assert everything.exists()


def test_images_that_failed_when_a_store_was_made_have_failed(tmp_path: Path) -> None:
    x, columns = two_clouds(N, D)[0].astype(np.float32), clouds()
    x[7], origin = np.nan, np.where(np.arange(N) == 7, FAILED, EMBEDDED).astype(np.uint8)
    folder, identity = PartFolder(tmp_path / "s.h5", {"identity": {"made": "for a test"}}), {"made": "for a test"}
    contents, names = [f"{i:064x}" for i in range(N)], [f"{i}.png" for i in range(N)]
    with folder.locked():
        folder.write(Part(0, {"pooled": x}, contents, origin, {7: ("damaged", "it is cut short")}))
        publish(tmp_path / "s.h5", folder.heads(), names, columns, identity)
        folder.clear()
    with Store.open(tmp_path / "s.h5") as store:
        train_head(store, QUICK, tmp_path / "run", split=SplitSpec(val_fraction=0.25))
    done = featcache("predict", "run", "--store", "s.h5", "-o", "p.csv", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "damaged 7.png: it is cut short" in done.stdout
    assert "found 90 = predicted 89 + failed 1" in done.stdout
    assert [row["image_id"] for row in rows_of(tmp_path / "p.csv.failures.csv")] == ["7.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "predict needs images, or a store of their vectors (--store)."),
        (("images", "--store", "tail.h5"), 2, "predict needs images, or a store"),
        (("--store", "tail.h5", "--keep", "k.h5"), 2, "--keep k.h5: the vectors are those of a store already."),
        (("--store", "tail.h5", "-o", "linear/predictions.csv"), 2, "is a file of the Run itself"),
        (("--store", "tail.h5", "-o", "images"), 2, "-o images: give the name of a file"),
        (("--store", "tail.h5", "-o", "tail.h5"), 2, "-o tail.h5 is what is read"),
        (("images.csv", "-o", "images.csv"), 2, "-o images.csv is what is read"),
        (("--store", "nothing.h5"), 10, "nothing.h5"),
        (("nothing",), 2, "nothing does not exist: a folder of images, a .csv file or an image is expected."),
        (("linear/run.json",), 2, "linear/run.json is JSON: a folder, a table"),
        (("images", "--max-pixels", "0"), 2, "--max-pixels must be from 1"),
        (("images", "--device", "cuda:77"), 2, "cuda:77"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    phase_one: Path, tmp_path: Path, weights: str, arguments: tuple[str, ...], code: int, message: str
) -> None:
    for name in ("images", "tail.h5", "linear"):
        (tmp_path / name).symlink_to(phase_one / name)
    (tmp_path / "images.csv").write_text("path\nimages/test/sick/005.png\n")
    done = featcache("predict", "linear", *arguments, "--weights", weights, cwd=tmp_path)
    check_refused(done, code, message)


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("none")
    with pytest.raises(UnknownFormat, match="file is neither the folder of a Run nor a bundle of one"):
        load_run(tmp_path / "file")
    check_refused(featcache("predict", "nowhere", "x", cwd=tmp_path), 10, "there is no finished Run at nowhere")


# --- damage -----------------------------------------------------------------------------------------------------------


def changed(run: Path, copy: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a Run whose record was changed in place."""
    copy.mkdir()
    record = json.loads((run / "run.json").read_text())
    change(record)
    (copy / "run.json").write_text(json.dumps(record))
    (copy / "head.safetensors").write_bytes((run / "head.safetensors").read_bytes())
    return copy


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no classes": lambda r: r.pop("classes"),
    "classes": lambda r: r.update(classes=["a", "b", "c"], positive="a"),
    "one class": lambda r: r.update(classes=["sick"]),
    "no names": lambda r: r.update(classes=[1, 2], positive=1),
    "positive": lambda r: r.update(positive="other"),
    "task": lambda r: r.pop("task"),
    "temperature": lambda r: r.update(temperature=-1),
    "no number": lambda r: r.update(temperature="warm"),
    "point": lambda r: r.update(operating_point={"rule": "youden"}),
    "head": lambda r: r.update(head={"kind": "other"}),
    "wider": lambda r: r.update(head={"kind": "mlp", "hidden_sizes": [3]}),
    "no head": lambda r: r.update(head=None),
    "asked": lambda r: r.update(asked=7),
    "store": lambda r: r.pop("store"),
    "identity": lambda r: r["store"].update(identity=[1]),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_record_is_said_in_one_line(phase_one: Path, tmp_path: Path, what: str) -> None:
    path = changed(phase_one / "linear", tmp_path / "run", DAMAGE[what])
    with pytest.raises(CorruptStore, match=r"run\.json is damaged: .*\. Make the Run again\.$") as raised:
        load_run(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("what", ["transform", "decode", "backbone", "precision", "stored_dtype"])
def test_a_record_that_does_not_say_how_vectors_were_made_is_damaged(
    phase_one: Path, tmp_path: Path, weights: str, what: str
) -> None:
    for name, value in (("none", None), ("odd", {"name": 3, "input_size": [0, 0]})):
        path = changed(
            phase_one / "linear", tmp_path / name, lambda r, v=value: r["store"]["identity"].update({what: v})
        )
        with pytest.raises(FeatcacheError) as raised:
            load_run(path, weights=weights, device="cpu").predict(phase_one / "images")
        assert raised.value.exit_code in (2, 12, 13)


@pytest.mark.parametrize(("option", "value"), [("--precision", "foo"), ("--timeout", "inf"), ("--timeout", "1e9")])
def test_an_option_out_of_its_range_is_refused_and_leaves_nothing(
    phase_one: Path, tmp_path: Path, option: str, value: str
) -> None:
    run, images, weights = (phase_one / name for name in ("linear", "images", "net.safetensors"))
    done = featcache("predict", run, images, "-o", "p.csv", "--weights", weights, option, value, cwd=tmp_path)
    check_refused(done, 2, option)
    assert not list(tmp_path.iterdir())


def test_options_that_do_not_apply_are_refused(linear: Run, phase_one: Path) -> None:
    with Store.open(phase_one / "tail.h5") as store, pytest.raises(UsageError, match="strict: for images in files"):
        load_run(linear.path).predict(store, strict=True)
    with pytest.raises(UsageError, match="max_pixels: for images in files"):
        load_run(linear.path).predict([np.zeros((40, 40), dtype=np.uint8)], max_pixels=10)


def test_a_predictor_is_not_made_by_hand_only(linear: Run) -> None:
    """Of a Run that is open already."""
    assert Predictor(linear, linear.path).classes == ["normal", "sick"]


# --- real X-rays ------------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
def test_real_xrays_are_told_from_files_what_the_run_told_them(tmp_path: Path) -> None:
    images = Manifest.read(shared("data", "kermany224"))
    split, label = images.columns["split"], images.columns["label"]
    picked = [
        i
        for side, n in (("train", 20), ("test", 15))
        for each in ("NORMAL", "PNEUMONIA")
        for i in [i for i in range(len(images)) if (split[i], label[i]) == (side, each)][:n]
    ]
    few = Manifest(
        [images.image_ids[i] for i in picked],
        [images.paths[i] for i in picked],
        {name: [values[i] for i in picked] for name, values in images.columns.items()},
        images.source,
    )
    weights = str(shared("weights", "mobilenetv2_100.onnxzoo7.safetensors"))
    embed(few, tmp_path / "k.h5", BackboneSpec("mobilenetv2_100", weights, crop_pct=1.0), device="cpu")
    with Store.open(tmp_path / "k.h5") as store:
        run = train_head(store, HeadSpec(), tmp_path / "run", target=TargetSpec(positive="PNEUMONIA"))
        check_as_own(run, load_run(run.path).predict(store))
    paths = [path for path, side in zip(few.paths, few.columns["split"], strict=True) if side == "test"]
    names = [name for name, side in zip(few.image_ids, few.columns["split"], strict=True) if side == "test"]
    with load_run(run.path, weights=weights, device="cpu") as predictor:
        found = predictor.predict([np.asarray(Image.open(path)) for path in paths])
        check_as_own(run, replace(found, names=names), 1e-5)
        check_as_own(run, replace(predictor.predict(paths), names=names), 1e-5)
