"""`covid/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg` was an image of the class covid.

What systems, servers and programs put between images is skipped, and each of its files is counted.
"""

from pathlib import Path

import pytest

from featcache.manifest import Manifest
from featcache.manifest.listing import in_words

SYSTEM = [
    "covid/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/covid/0.png", "#snapshot/GMT-2024/0.png", "covid/@tmp/0.png",
    "@Recycle/0.png", "covid/.@__thumb/0.png", "@Recently-Snapshot/d/0.png", "$RECYCLE.BIN/S-1-5/$R1.png",
    "System Volume Information/0.png", "covid/Thumbs.db", "covid/ehthumbs.db", "covid/Desktop.ini", "FOUND.000/0.png",
    "__MACOSX/covid/._0.png", "covid/._0.png", "covid/.DS_Store", "covid/.AppleDouble/0.png", "Icon\r",
    "Network Trash Folder/0.png", "Temporary Items/0.png", ".Spotlight-V100/0.png", ".fseventsd/0.png",
    ".Trash-1000/files/0.png", "lost+found/0.png", ".thumbnails/0.png", "covid/.ipynb_checkpoints/0-checkpoint.png",
    ".git/0.png", ".dropbox.cache/0.png", ".sync/Archive/0.png", "covid/~$0.png", ".stversions/covid/0.png",
    ".snapshot/hourly.0/covid/0.png", "~snapshot/hourly.0/0.png", "_gsdata_/0.png", "covid/.picasaoriginals/0.png",
    "Cat Previews.lrdata/0/1.jpg",
]  # fmt: skip


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


@pytest.mark.parametrize("name", SYSTEM)
def test_a_file_of_a_system_is_skipped_and_counted(tmp_path: Path, name: str) -> None:
    manifest = Manifest.read(touch(tmp_path, "covid/0.png", "normal/0.png", name))
    assert manifest.image_ids == ["covid/0.png", "normal/0.png"]
    assert manifest.skipped == {"system file": 1}
    assert manifest.notes == []


def test_every_file_in_a_system_folder_is_counted_in_words(tmp_path: Path) -> None:
    thumbnails = [f"covid/@eaDir/{i}.png/SYNOPHOTO_THUMB_{size}.jpg" for i in range(3) for size in "MSX"]
    manifest = Manifest.read(touch(tmp_path, "covid/0.png", *thumbnails, "notes.txt"))
    assert manifest.skipped == {"system file": 9, "not an image name": 1}
    assert "9 system files" in in_words(manifest.skipped)


def test_a_class_whose_name_resembles_a_system_folder_is_a_class(tmp_path: Path) -> None:
    names = ["recycle/0.png", "thumbs/0.png", "eaDir/0.png", "snapshot/0.png", "trash/0.png", "#1/0.png", "@home/0.png"]
    assert len(Manifest.read(touch(tmp_path, *names))) == len(names)


def test_a_system_folder_that_is_named_itself_is_read(tmp_path: Path) -> None:
    assert len(Manifest.read(touch(tmp_path, "#recycle/covid/0.png") / "#recycle")) == 1
