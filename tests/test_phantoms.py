"""Phantoms: reproducible, in three formats, neither too easy nor too hard."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache import phantoms
from featcache.demo import demo
from featcache.manifest import Manifest
from featcache.runs import Run
from tests.test_cli import Done


def test_the_same_seeds_give_the_same_pixels_and_others_do_not() -> None:
    one = phantoms.radiograph(1, 0, True)
    assert np.array_equal(one, phantoms.radiograph(1, 0, True))
    assert not np.array_equal(one, phantoms.radiograph(1, 1, True))
    assert not np.array_equal(one, phantoms.radiograph(2, 0, True))
    assert one.shape == (phantoms.HEIGHT, phantoms.WIDTH)
    assert one.min() >= 0.0
    assert one.max() <= 1.0


def test_an_abnormal_phantom_is_the_normal_one_with_something_brighter() -> None:
    difference = phantoms.radiograph(4, 0, True) - phantoms.radiograph(4, 0, False)
    assert difference.max() > 0.03
    assert np.median(np.abs(difference)) < 0.06


def test_formats_give_the_label_away_to_nobody(tmp_path: Path) -> None:
    n = phantoms.write(tmp_path, n_patients=60, images_per_patient=2)
    manifest = Manifest.read(tmp_path, phantoms.GROUP_PATTERN)
    assert len(manifest) == n == 120
    assert manifest.n_ungrouped == 0
    kinds: dict[str, Counter[str]] = {label: Counter() for label in phantoms.CLASSES}
    for path, label in zip(manifest.paths, manifest.columns["label"], strict=True):
        with Image.open(path) as image:
            kinds[label][f"{image.format} {image.mode}"] += 1
    assert kinds["normal"] == kinds["abnormal"]
    assert set(kinds["normal"]) == {"PNG I;16", "PNG L", "JPEG L"}


def test_four_classes_are_told_apart_by_their_opacities_and_by_nothing_else(tmp_path: Path) -> None:
    phantoms.write(tmp_path, n_patients=24, images_per_patient=1, classes=phantoms.FOUR_CLASSES)
    manifest = Manifest.read(tmp_path)
    assert Counter(manifest.columns["label"]) == dict.fromkeys(phantoms.FOUR_CLASSES, 6)
    kinds = [kind for kind in phantoms.FOUR_CLASSES if kind != "normal"]
    normal = phantoms.radiograph(5, 0, False)
    covered = {kind: (phantoms.radiograph(5, 0, True, kind) - normal > 0.03).mean() for kind in kinds}
    assert covered["diffuse"] > 2 * covered["focal"]
    assert np.array_equal(phantoms.radiograph(5, 0, True), phantoms.radiograph(5, 0, True, "abnormal"))


def test_a_patient_is_in_one_split_and_one_class(tmp_path: Path) -> None:
    phantoms.write(tmp_path, n_patients=40, images_per_patient=2)
    manifest = Manifest.read(tmp_path, phantoms.GROUP_PATTERN)
    where: dict[str, set[tuple[str, str]]] = {}
    for group, split, label in zip(*(manifest.columns[name] for name in ("group", "split", "label")), strict=True):
        where.setdefault(group, set()).add((split, label))
    assert len(where) == 40
    assert all(len(places) == 1 for places in where.values())


@pytest.mark.long
@pytest.mark.usefixtures("empty_hub")
def test_the_demo_scores_clearly_above_chance_and_below_perfection(demonstrated: tuple[Path, Done]) -> None:
    """With random weights, as anybody sees it who has no network."""
    folder, said = demonstrated[0] / "featcache-demo", demonstrated[1]
    assert "the backbone has random weights" in said.stdout
    assert "found 480 = embedded 480 + reused 0 + failed 0" in said.stdout
    run = Run.open(folder / "linear")
    assert run.n_parameters == 2562
    assert 0.75 < run.metrics("test")["auroc"] < 0.98
    assert 0.65 < run.metrics("test")["accuracy"] < 0.98
    before = (folder / "phantoms.h5").read_bytes()
    again = demo(folder)
    assert again.has_random_weights
    assert (again.embedded.counts.embedded, again.embedded.counts.reused) == (0, 480)
    assert again.embedded.counts.failed == 0
    assert (folder / "phantoms.h5").read_bytes() == before
    assert again.run.record["metrics"] == run.record["metrics"]
