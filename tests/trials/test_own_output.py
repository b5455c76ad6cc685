"""A store, a Run and its report written inside the folder of images: the next pass had 24 images that were curves.

Whatever featcache writes is recognised by its content, skipped and counted, wherever it lies.
"""

import os
import shutil
from pathlib import Path

import pytest

from featcache.auditing.audit import audit
from featcache.embedding import embed
from featcache.evaluation.evaluate import evaluate
from featcache.manifest import Manifest
from featcache.manifest.listing import OWN
from featcache.prediction import predict
from featcache.prediction.bundle import bundle
from featcache.prediction.predictor import load_run
from featcache.reporting.report import report
from featcache.runs import RUN_FILES, Run
from featcache.specs import BackboneSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import SMALL, draw, draw_classes


@pytest.fixture(scope="module")
def used_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 images in which everything was written that featcache writes. Never to be changed."""
    root = draw_classes(tmp_path_factory.mktemp("used") / "images")
    (root / "train" / "sick" / "broken.png").write_bytes(b"no image")  # for a list of failures
    embed(Manifest.read(root), root / "chest.h5", BackboneSpec(SMALL, "random:0", input_size=32))
    (root / "train" / "sick" / "broken.png").unlink()
    with Store.open(root / "chest.h5") as store:
        run = train_head(store, run_path=root / "runs" / "first")
        audit(store).write(root / "train")
    report(run, root / "train" / "sick" / "page.html", [root / "chest.h5"])
    evaluate(run.path, root / "chest.h5", root / "test" / "normal" / "scores", with_training_images=True)
    with load_run(run.path) as predictor, Store.open(root / "chest.h5") as store:
        predict(predictor, root / "test" / "predictions.csv", store=store)
        done = evaluate(predictor, store, root / "test" / "sick" / "evaluated", with_training_images=True)
    report(done, root / "test" / "sick" / "evaluated" / "report.html")
    bundle(run, root / "test" / "model.fcb.zip", with_backbone=False)
    return root


@pytest.fixture
def used(used_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(used_once, tmp_path / "images")


def is_clean(root: Path, n: int = 12) -> bool:
    """Whether nothing but the images was read, with their subsets and classes, and everything else is ours."""
    manifest = Manifest.read(root)
    names = [name.split("/") for name in manifest.image_ids]
    assert manifest.columns == {"split": [parts[0] for parts in names], "label": [parts[1] for parts in names]}
    assert manifest.notes == []
    assert set(manifest.skipped) == {OWN}
    n_files = sum(path.is_file() for path in root.rglob("*"))
    return len(manifest) == n and n_files == n + manifest.skipped[OWN]


def test_the_same_images_are_seen_after_everything_was_written_among_them(used_once: Path) -> None:
    assert {"page.html", "page.files"} <= {path.name for path in (used_once / "train" / "sick").iterdir()}
    assert is_clean(used_once)


def test_a_report_without_its_page_and_a_run_without_its_record_are_recognised(used: Path) -> None:
    """As they are left by a move, or by a stop."""
    (used / "train" / "sick" / "page.html").unlink()
    (used / "runs" / "first" / "run.json").unlink()
    assert is_clean(used)


def test_own_folders_are_recognised_under_other_names_and_in_other_places(used: Path) -> None:
    (used / "runs").rename(used / "train" / "normal" / "so far")
    (used / "train" / "sick" / "page.files").rename(used / "figures")
    assert is_clean(used)


def test_the_parts_of_a_stopped_pass_are_recognised(used: Path) -> None:
    (used / "other.h5.partial").mkdir()
    for name in ("plan.json", "part-000000.h5", "lock"):
        (used / "other.h5.partial" / name).write_bytes(b"{}")
    assert is_clean(used)


def test_folders_that_have_only_our_names_are_folders_of_images(tmp_path: Path) -> None:
    for i, name in enumerate(("runs", "audit", "report.files", "linear", "x.partial", "experiment")):
        draw(tmp_path / name / "curves.png", i)
        for other in ("run.json", "index.csv", "history.csv"):  # of another program
            (tmp_path / name / other).write_text("{}\n")
    manifest = Manifest.read(tmp_path)
    assert len(manifest) == 6
    assert OWN not in manifest.skipped


def test_pipes_and_folders_with_our_names_are_neither_read_nor_waited_for(tmp_path: Path) -> None:
    draw(tmp_path / "covid" / "1.png", 1)
    for name in ("head.safetensors", "images.json", "index.csv", "audit.json", "a.h5", "a.html", "a.csv"):
        os.mkfifo(tmp_path / "covid" / name)
        (tmp_path / "normal" / name).mkdir(parents=True)
    draw(tmp_path / "normal" / "x.png" / "2.png", 2)
    manifest = Manifest.read(tmp_path)
    assert manifest.image_ids == ["covid/1.png", "normal/x.png/2.png"]
    assert manifest.skipped == {"not a regular file": 7}


def test_images_in_a_folder_below_a_run_are_read(used: Path) -> None:
    draw(used / "runs" / "first" / "wrong ones" / "1.png", 99)
    assert [name for name in Manifest.read(used).image_ids if "wrong" in name] == ["runs/first/wrong ones/1.png"]


def test_a_demo_inside_a_folder_of_images_adds_no_phantom(used: Path) -> None:
    demo = used / "featcache-demo"
    draw(demo / "images" / "train" / "normal" / "patient000-0.png", 1)
    shutil.copy(used / "chest.h5", demo / "phantoms.h5")
    shutil.copytree(used / "runs" / "first", demo / "linear")
    assert is_clean(used)
    assert Manifest.read(demo).image_ids == ["images/train/normal/patient000-0.png"]


def test_every_image_that_a_run_writes_is_known(used_once: Path) -> None:
    """A picture of another name in a Run would be one more that has to be known."""
    run = Run.open(used_once / "runs" / "first")
    pictures = {path.name for path in run.path.iterdir() if path.suffix == ".png"}
    assert pictures == {"curves.png"} <= set(RUN_FILES)
