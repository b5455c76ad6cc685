"""`predict` on a folder that holds images of the Run said nothing; only a store was compared.

Images are compared by the digests of their files, wherever they lie and whatever they are called. The count stands in
the answer and in a note; where the Run's images are not known, that is said.
"""

import json
import shutil
from pathlib import Path

import pytest

from featcache.prediction.predictor import load_run
from featcache.specs import HeadSpec, SplitSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import draw, draw_shadows
from tests.test_cli import featcache


def some_of(phase_one: Path, folder: Path) -> Path:
    """All images under other names in one folder, and four new ones."""
    for i, path in enumerate(sorted((phase_one / "images").rglob("*.png"))):
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder / f"new{i}.png")
    for i in range(4):
        draw(folder / f"unseen{i}.png", 900 + i)
    return folder


@pytest.fixture
def images(phase_one: Path, tmp_path: Path) -> Path:
    return some_of(phase_one, tmp_path / "in")


def test_images_of_the_run_in_a_folder_are_counted_and_said(phase_one: Path, images: Path, tmp_path: Path) -> None:
    command = ("predict", phase_one / "linear", images, "--weights", phase_one / "net.safetensors", "--json")
    done = featcache(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["seen"], answer["trained_on"], answer["chosen_by"]) == (32, 24, 8)
    note = "of these 52 images, the head was trained on 24 and chosen by 8 more (validation)"
    assert f"note: {note}" in done.stderr
    assert any(note in text for text in answer["notes"])


def test_of_a_head_of_folds_all_rows_were_trained_on(phase_one: Path, images: Path) -> None:
    with load_run(phase_one / "folds", weights=str(phase_one / "net.safetensors")) as predictor:
        overlap = predictor.predict(images).overlap
    assert overlap is not None
    assert (overlap.n, overlap.n_train, overlap.n_val) == (52, 32, 0)


def test_of_a_head_trained_again_on_its_validation_rows_all_were_trained_on(
    phase_one: Path, images: Path, tmp_path: Path
) -> None:
    from featcache.specs import SelectionSpec

    with Store.open(phase_one / "tail.h5") as store:
        split, report = SplitSpec(val_fraction=0.25), SelectionSpec(refit_all=True)
        train_head(store, HeadSpec(epochs=1), tmp_path / "refit", split=split, report=report)
    with load_run(tmp_path / "refit", weights=str(phase_one / "net.safetensors")) as predictor:
        overlap = predictor.predict(images).overlap
    assert overlap is not None
    assert (overlap.n_train, overlap.n_val) == (32, 0)


def test_new_images_and_test_images_need_no_note(phase_one: Path, tmp_path: Path) -> None:
    draw_shadows(tmp_path / "all")
    shutil.rmtree(tmp_path / "all" / "train")
    with load_run(phase_one / "linear", weights=str(phase_one / "net.safetensors")) as predictor:
        overlap = predictor.predict(tmp_path / "all").overlap
    assert overlap is not None
    assert (overlap.n, overlap.n_learnt, overlap.note) == (16, 0, None)


def test_of_a_bundle_it_is_said_that_it_cannot_be_known(phase_one: Path, images: Path, tmp_path: Path) -> None:
    weights = phase_one / "net.safetensors"
    done = featcache("bundle", phase_one / "linear", "-o", "m.fcb.zip", "--weights", weights, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = featcache("predict", "m.fcb.zip", images, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["trained_on"] is None
    assert "whether it was trained on some of these cannot be known" in done.stderr
    assert "cannot be known" in json.loads(done.stdout)["notes"][-1]
