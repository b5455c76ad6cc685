"""A Run whose weights came from a file had to be told that file again for every prediction, bundle and fine-tuning.

The place of the file is remembered with the store and the Run: there, in the working folder or beside the Run it is
found again. A file that is gone is asked for with its digest, and one that has changed is refused.
"""

import json
import shutil
from pathlib import Path

import pytest

from featcache.embedding import embed
from featcache.errors import IdentityMismatch, UsageError
from featcache.finetune.fine_tune import fine_tune
from featcache.manifest import Manifest
from featcache.prediction import run_backbone
from featcache.prediction.bundle import bundle
from featcache.prediction.predictor import load_run
from featcache.runs import Run
from featcache.specs import BackboneSpec, HeadSpec, Recipe, SplitSpec, Stage
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import NET, save_others
from tests.test_cli import featcache


@pytest.fixture(scope="module")
def project(phase_one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, weights, a store and a Run. Never to be changed."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(phase_one / "images", folder / "images")
    shutil.copy(phase_one / "net.safetensors", folder / "net.safetensors")
    spec = BackboneSpec(NET, str(folder / "net.safetensors"), input_size=32)
    embed(Manifest.read(folder / "images"), folder / "s.h5", spec)
    with Store.open(folder / "s.h5") as store:
        train_head(store, HeadSpec(epochs=1, lr=1e-4), folder / "run", split=SplitSpec(val_fraction=0.25))
    return folder


@pytest.fixture
def moved(project: Path, tmp_path: Path) -> Path:
    """The Run alone, in another place, whose record names a file that can be taken away."""
    shutil.copytree(project / "run", tmp_path / "there" / "run")
    shutil.copy(project / "net.safetensors", tmp_path / "net.safetensors")
    record = json.loads((tmp_path / "there" / "run" / "run.json").read_text("utf-8"))
    record["store"]["weights_file"] = str(tmp_path / "net.safetensors")
    (tmp_path / "there" / "run" / "run.json").write_text(json.dumps(record), "utf-8")
    return tmp_path / "there" / "run"


def test_the_file_is_named_in_store_and_run_and_not_in_the_identity(project: Path) -> None:
    with Store.open(project / "s.h5") as store:
        assert store.weights_file == str(project / "net.safetensors")
        assert "net.safetensors" not in json.dumps(store.identity)
    assert Run.open(project / "run").record["store"]["weights_file"] == str(project / "net.safetensors")


def test_predictions_bundles_and_exports_find_the_weights_by_themselves(project: Path, tmp_path: Path) -> None:
    done = featcache("predict", project / "run", project / "images" / "test", "-o", "p.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert bundle(Run.open(project / "run"), tmp_path / "m.fcb.zip").has_backbone
    backbone, _ = run_backbone.backbone_of(Run.open(project / "run"), None, "cpu")
    assert backbone.weights_file == project / "net.safetensors"


def test_fine_tuning_finds_the_weights_by_itself(project: Path, tmp_path: Path) -> None:
    images = Manifest.read(project / "images")
    done = fine_tune(
        Run.open(project / "run"),
        Recipe(stages=(Stage("last-block", 1),), batch_size=8),
        tmp_path / "tuned",
        images=images,
    )
    assert (done.path / "backbone.safetensors").exists()


@pytest.mark.parametrize("place", ["working folder", "beside the Run"])
def test_a_file_that_moved_along_is_found(
    moved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    to = {"working folder": tmp_path / "here", "beside the Run": moved.parent}[place]
    (tmp_path / "here").mkdir()
    (tmp_path / "net.safetensors").rename(to / "net.safetensors")
    monkeypatch.chdir(tmp_path / "here")
    backbone, _ = run_backbone.backbone_of(Run.open(moved), None, "cpu")
    assert backbone.weights_file == to / "net.safetensors"


def test_a_file_that_is_gone_is_asked_for_with_the_places_and_the_digest(moved: Path, tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").unlink()
    digest = Run.open(moved).record["store"]["identity"]["backbone"]["weights_sha256"][:12]
    with pytest.raises(
        UsageError, match=rf"looked for {tmp_path}/net.safetensors, .*there/net.safetensors\).*{digest}"
    ):
        load_run(moved).predict(tmp_path.parent)


def test_a_file_that_has_changed_is_refused_by_name(moved: Path, project: Path, tmp_path: Path) -> None:
    save_others(project / "net.safetensors", tmp_path / "net.safetensors")
    with pytest.raises(IdentityMismatch, match=rf"weights_sha256(.|\n)*were read from {tmp_path}/net.safetensors"):
        load_run(moved, device="cpu").predict(project / "images")
    with pytest.raises(IdentityMismatch, match="weights_sha256"):
        bundle(Run.open(moved), tmp_path / "m.fcb.zip")


def test_a_folder_in_the_place_of_the_file_is_no_file(moved: Path, project: Path, tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").unlink()
    (tmp_path / "net.safetensors").mkdir()
    with pytest.raises(UsageError, match="came from a file that is not there any more"):
        load_run(moved).predict(project / "images")


def test_a_store_grown_elsewhere_does_not_call_it_other_arithmetic(project: Path, tmp_path: Path) -> None:
    """The place of the weights is no part of how vectors are computed."""
    for name in ("s.h5", "net.safetensors"):
        shutil.copy(project / name, tmp_path / name)
    notes: list[str] = []
    spec = BackboneSpec(NET, str(tmp_path / "net.safetensors"), input_size=32)
    shutil.copytree(project / "images", tmp_path / "images")
    shutil.copy(next((project / "images").rglob("000.png")), tmp_path / "images" / "train" / "sick" / "again.png")
    embed(Manifest.read(tmp_path / "images"), tmp_path / "s.h5", spec, on_note=notes.append)
    assert not any("last digits" in note for note in notes)
