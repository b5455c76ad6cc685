"""A FIFO, a socket, a device or a link to one, found in a folder or named by a CSV, is refused and never opened."""

import os
import socket
from pathlib import Path

import pytest

from featcache.embedding import embed
from featcache.images import headers
from featcache.manifest import Manifest
from featcache.manifest.check import check
from featcache.specs import BackboneSpec
from tests.conftest import SMALL, draw

SPEC = BackboneSpec(SMALL, "random:0", input_size=32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "set"
    draw(folder / "good.png", 1)
    os.mkfifo(folder / "fifo.png")
    os.mkfifo(folder / "fifo.tif")
    monkeypatch.chdir(folder)  # a socket's name is short
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket.png")
    (folder / "link.png").symlink_to("fifo.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    return folder


def test_a_csv_that_names_special_files_has_a_reason_for_each(folder: Path) -> None:
    names = ["good.png", "fifo.png", "fifo.tif", "socket.png", "link.png", "zero.png", "folder.png"]
    (folder / "list.csv").write_text("\n".join(["path", *names]) + "\n")
    manifest = Manifest.read(folder / "list.csv", allow_outside=True)
    special = set(names) - {"good.png"}
    failures = check(manifest).failures
    assert {name: code for name, (code, _) in failures.items()} == dict.fromkeys(special, "not-a-file")
    done = embed(manifest, folder.parent / "s.h5", SPEC)
    assert set(done.failures) == special
    assert done.counts.embedded == 1


def test_a_folder_with_special_files_is_read_without_them(folder: Path) -> None:
    done = embed(Manifest.read(folder), folder.parent / "s.h5", SPEC)
    assert done.counts.embedded == 1
    assert {code for code, _ in done.failures.values()} <= {"not-a-file", "outside"}


def test_no_first_bytes_of_a_special_file_are_looked_at(folder: Path) -> None:
    assert not headers.may_be_deep(folder / "fifo.tif")
    assert not headers.may_be_deep(folder / "zero.png")
