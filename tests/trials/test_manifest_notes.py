"""What was guessed of a folder was never said. A note of the manifest stands before the work, and in each answer."""

import json
from dataclasses import replace
from pathlib import Path

from featcache.cli.render import tell_notes
from featcache.embedding import embed
from featcache.manifest import Manifest
from featcache.manifest.check import check
from featcache.prediction import predict
from featcache.prediction.predictor import load_run
from featcache.specs import BackboneSpec
from tests.conftest import SMALL, draw_classes
from tests.test_cli import RANDOM, featcache

NOTE = "2 of 12 images have no label, for example x.png."


def test_every_answer_has_the_notes_of_the_manifest(class_folder: Path, embedded: Path) -> None:
    manifest = replace(Manifest.read(class_folder, r"/(\w+p\d)"), notes=[NOTE])
    done = embed(manifest, embedded, BackboneSpec(SMALL, "random:0", input_size=32))
    assert done.counts.reused == done.counts.found  # nothing was computed, and the note is there all the same
    assert done.as_json()["notes"] == [NOTE]
    assert check(manifest).as_json()["notes"] == [NOTE]


def test_predictions_have_the_notes_of_the_manifest(phase_one: Path, tmp_path: Path) -> None:
    manifest = replace(Manifest.read(phase_one / "images"), notes=[NOTE])
    with load_run(phase_one / "linear", weights=str(phase_one / "net.safetensors")) as predictor:
        assert predict(predictor, tmp_path / "p.csv", images=manifest).as_json()["notes"][0] == NOTE


def test_notes_are_told_one_a_line_and_none_of_no_manifest(tmp_path: Path) -> None:
    lines: list[str] = []
    tell_notes(None, lines.append)
    tell_notes(Manifest([], [], {}, tmp_path, notes=[NOTE, NOTE]), lines.append)
    assert lines == [f"note: {NOTE}"] * 2


def test_a_run_keeps_the_notes_on_the_folder_it_was_trained_on(tmp_path: Path) -> None:
    """Told before the first epoch, and there when the Run is read years later."""
    images = draw_classes(tmp_path / "images")
    (images / "train").rename(images / "Training")
    note = "Folders were read as subsets: Training as train, test as test."
    done = featcache("train", images, "--model", *RANDOM[1:], "--epochs", "1", "-o", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"note: {note}\n")
    assert note in json.loads(done.stdout)["notes"]
    assert note in json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["notes"]
