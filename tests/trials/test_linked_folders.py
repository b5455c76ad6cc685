"""Class folders that are links were not followed with `allow_outside`, which promises it.

Each folder is walked once, whatever leads to it, so that no loop catches the walk; what was not followed is said.
"""

import json
import os
from pathlib import Path

from featcache.manifest import Manifest
from featcache.manifest.listing import LINK
from tests.conftest import draw
from tests.test_cli import featcache


def linked(tmp_path: Path) -> Path:
    """A folder whose two classes are links to folders elsewhere."""
    root = tmp_path / "images"
    root.mkdir()
    for i, label in enumerate(("covid", "normal")):
        draw(tmp_path / "store" / f"{label}_files" / f"{i}.png", i)
        (root / label).symlink_to(tmp_path / "store" / f"{label}_files")
    return root


def test_class_folders_that_are_links_are_followed_when_allowed(tmp_path: Path) -> None:
    manifest = Manifest.read(linked(tmp_path), allow_outside=True)
    assert manifest.image_ids == ["covid/0.png", "normal/1.png"]
    assert manifest.columns == {"label": ["covid", "normal"]}
    assert (manifest.skipped, manifest.refused, manifest.notes) == ({}, {}, [])


def test_links_that_are_not_followed_are_counted_with_the_way_out(tmp_path: Path) -> None:
    root = linked(tmp_path)
    draw(root / "pneumonia" / "2.png", 2)
    manifest = Manifest.read(root)
    assert manifest.image_ids == ["pneumonia/2.png"]
    assert manifest.skipped == {LINK: 2}
    assert manifest.notes[0].startswith("2 links to folders lead out of the given folder, for example covid")
    assert "allow_outside" in manifest.notes[0]


def test_a_folder_of_nothing_but_links_says_the_way_out(tmp_path: Path) -> None:
    done = featcache("check", linked(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert "2 links to folders" in done.stderr
    assert "only allow_outside follows" in done.stderr
    answer = json.loads(featcache("check", tmp_path / "images", "--allow-outside", "--json", cwd=tmp_path).stdout)
    assert answer["images"] == 2


def test_loops_and_second_ways_to_a_folder_are_skipped(tmp_path: Path) -> None:
    """A link before the folder it leads to, one to the root, one to a folder above, two that lead to each other."""
    root = linked(tmp_path)
    draw(root / "z" / "3.png", 3)
    for name, target in {"a": "z", "here": ".", "up": "..", "z/back": "../..", "again": "covid"}.items():
        (root / name).symlink_to(target)
    os.symlink(root, tmp_path / "store" / "covid_files" / "home")
    os.symlink(tmp_path / "store" / "normal_files", tmp_path / "store" / "covid_files" / "sibling")
    manifest = Manifest.read(root, allow_outside=True)
    assert [os.path.basename(name) for name in manifest.image_ids] == ["0.png", "1.png", "3.png"]
    assert "z/3.png" in manifest.image_ids
    assert manifest.skipped == {LINK: 7}
    assert Manifest.read(root).notes[0].startswith("3 links")  # of 6: two lead to the root, or above it, one to z


def test_a_chain_of_links_and_a_linked_subset_are_followed(tmp_path: Path) -> None:
    for i, name in enumerate(("train/a", "train/b", "test/a", "test/b")):
        draw(tmp_path / "far" / name / f"{i}.png", i)
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "middle").symlink_to(tmp_path / "far" / "test")
    (root / "train").symlink_to(tmp_path / "far" / "train")
    (root / "test").symlink_to(tmp_path / "middle")
    manifest = Manifest.read(root, allow_outside=True)
    assert manifest.columns == {"split": ["test", "test", "train", "train"], "label": ["a", "b", "a", "b"]}
