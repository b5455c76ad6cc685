"""Folders of masks beside folders of images in a known collection: 24 of 36 "images" were masks.

What accompanies an image under its name is skipped, counted and noted; a folder that is named itself is read.
"""

from pathlib import Path

import pytest

from featcache.manifest import Manifest
from featcache.manifest.companions import companions
from featcache.manifest.listing import COMPANION

COVID_QU = "Infection Segmentation Data/Train/COVID-19"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_masks_of_a_collection_are_no_images(tmp_path: Path) -> None:
    rows = [(label, i) for label in ("COVID", "Normal") for i in range(3)]
    names = [f"{label}/{kind}/{label}-{i}.png" for label, i in rows for kind in ("images", "masks", "lung_masks")]
    manifest = Manifest.read(touch(tmp_path, *names))
    assert manifest.image_ids == [f"{label}/images/{label}-{i}.png" for label, i in rows]
    assert manifest.columns == {"label": ["COVID"] * 3 + ["Normal"] * 3}
    assert manifest.skipped == {COMPANION: 12}
    assert len(manifest.notes) == 1
    assert manifest.notes[0].startswith("12 files are skipped as masks, annotations or thumbnails of images with")
    assert "for example COVID/lung_masks/COVID-0.png" in manifest.notes[0]
    assert len(Manifest.read(tmp_path / "COVID" / "masks")) == 3


@pytest.mark.parametrize(
    ("image", "companion"),
    [
        ("images/train/1.jpg", "labels/train/1.png"),
        ("train/images/1.jpg", "train/segmentations/1.png"),
        ("train/1.jpg", "train_masks/1_mask.gif"),
        ("CXR_png/1.png", "ManualMask/leftMask/1.png"),
        ("benign/benign (1).png", "benign/benign (1)_mask_1.png"),
        ("covid/1.png", "covid/1-seg.png"),
        ("covid/1.png", "covid/1_thumb.jpg"),
        ("covid/1.png", "covid/1_lung_mask.png"),
        ("covid/1.dcm", "covid/thumbnails/1.jpg"),
        ("covid/1.png", "covid masks/1.png"),
        ("covid/1.png", "heatmaps/covid/1.png"),
        ("covid/1.png", "overlays/covid/1_overlay.png"),
        ("1.png", "Ground Truth/1_segmentation.png"),
        ("imagesTr/1_0000.png", "labelsTr/1.png"),
        (f"{COVID_QU}/images/1.png", f"{COVID_QU}/infection masks/1.png"),
        ("images/IMG_1.PNG", "annotations/img_1.png"),
    ],
)
def test_a_companion_is_known_by_a_word_and_its_image(image: str, companion: str) -> None:
    assert companions(sorted((image, companion))) == [companion]
    assert companions([companion]) == []


@pytest.mark.parametrize(
    "names",
    [
        ("mask/1.png", "no_mask/1.png"), ("with_mask/1.png", "without_mask/1.png"), ("mask/1.png", "helmet/1.png"),
        ("masks/1.png", "thumbnails/1.png"), ("thumb/1.png", "index/1.png"), ("label 1/1.png", "label 2/1.png"),
        ("a/1_mask.png", "b/1.png"), ("unmasked/1.png", "1.png"), ("COVID/1_masked.png", "COVID/1.png"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_word_alone_makes_no_companion(names: tuple[str, ...]) -> None:
    assert companions(sorted(names)) == []


def test_a_mask_whose_image_is_missing_goes_with_its_folder() -> None:
    names = ["images/1.png", "images/2.png", "masks/1.png", "masks/2.png", "masks/3.png"]
    assert companions(names) == names[2:]
    assert companions(["1.png", *(f"mask/{i}.png" for i in range(1, 9))]) == ["mask/1.png"]  # a class, and a stray file


def test_one_name_with_two_suffixes_is_noted(tmp_path: Path) -> None:
    """An image and its copy in another format would be two images, one of them in training, the other in test."""
    manifest = Manifest.read(touch(tmp_path, "covid/1.dcm", "covid/1.PNG", "covid/2.dcm", "normal/1.png"))
    for name in ("covid/1.2.840.1", "covid/1.2.840.2"):  # their ends are no suffixes
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM")
    assert len(manifest) == 4
    assert len(Manifest.read(tmp_path)) == 6
    assert Manifest.read(tmp_path).notes == manifest.notes
    assert manifest.notes[0].startswith("1 name is there with more than one suffix, for example covid/1.PNG and covid")


def test_masks_do_not_become_a_class_or_an_empty_folder(tmp_path: Path) -> None:
    manifest = Manifest.read(touch(tmp_path, "covid/1.png", "normal/2.png", "masks/covid/1.png", "masks/normal/2.png"))
    assert manifest.columns == {"label": ["covid", "normal"]}
    assert manifest.skipped == {COMPANION: 2}
    assert len(manifest.notes) == 1
