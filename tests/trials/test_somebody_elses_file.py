"""`export RUN mine.onnx` wrote over a text of that name, while other exports refused. One rule holds for every output:
what is not an earlier output of the same kind is left alone, and the refusal says what it is."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache import durable
from featcache.errors import FeatcacheError, UsageError
from featcache.prediction import onnx_export
from tests.trials.outputs import FOLDERS, WRITERS, Material, tree

FILES = [name for name in WRITERS if name not in FOLDERS]


def text(path: Path) -> None:
    path.write_text("years of work\n")


def picture(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(path, format="PNG")


def folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


def archive(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, mine=np.zeros(3))


def pipe(path: Path) -> None:
    os.mkfifo(path)


FOREIGN: dict[Callable[[Path], None], str] = {
    text: "a text file", picture: "a PNG image", folder: "a folder", archive: "a zip archive", pipe: "a pipe",
}  # fmt: skip


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", [*FILES, "onnx"])
def test_what_is_of_somebody_else_is_refused_by_its_kind(
    material: Material, tmp_path: Path, kind: str, foreign: Callable[[Path], None]
) -> None:
    name, write = WRITERS.get(kind, ("o.onnx", lambda material, path: onnx_export.export_onnx(material.run, path)))
    foreign(tmp_path / name)
    before = {} if foreign is pipe else tree(tmp_path / name)
    with pytest.raises(FeatcacheError) as raised:
        write(material, tmp_path / name)
    assert "\n" not in str(raised.value)
    if kind != "store":  # of which readers say more
        assert isinstance(raised.value, UsageError)
        assert FOREIGN[foreign] in str(raised.value) or (foreign, kind) in ((folder, "predictions"), (folder, "bundle"))
    assert foreign is pipe or tree(tmp_path / name) == before
    assert [path.name for path in tmp_path.iterdir()] == [name], "and nothing of ours is beside it"


@pytest.mark.parametrize("kind", ["run", "audit"])
def test_folders_of_somebody_else_keep_their_files(material: Material, tmp_path: Path, kind: str) -> None:
    """A Run is not put into a folder with other files; an audit may be, and takes nothing away there."""
    name, write = WRITERS[kind]
    folder(tmp_path / name)
    if kind == "run":
        with pytest.raises(UsageError, match="a folder with other files in it"):
            write(material, tmp_path / name)
    else:
        write(material, tmp_path / name)
    assert (tmp_path / name / "thesis.txt").read_text() == "mine"
    (tmp_path / "a").write_text("mine")
    with pytest.raises(UsageError):
        write(material, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("kind", ["npz", "bundle", "manifest", "predictions", "fusion"])
def test_an_output_of_another_kind_of_ours_is_somebody_elses(material: Material, tmp_path: Path, kind: str) -> None:
    """And an earlier one of the same kind, or an empty file as `mktemp` makes it, is replaced."""
    name, write = WRITERS[kind]
    path = tmp_path / name
    other = {"npz": "bundle", "bundle": "npz", "manifest": "predictions", "predictions": "manifest", "fusion": "h5"}[
        kind
    ]
    WRITERS[other][1](material, tmp_path / WRITERS[other][0].replace("o.", "other."))
    (made,) = tmp_path.iterdir()
    made.rename(path)
    held = path.read_bytes()
    with pytest.raises(UsageError, match="is there: "):
        write(material, path)
    assert path.read_bytes() == held
    path.write_bytes(b"")
    write(material, path)
    write(material, path)
    assert path.stat().st_size


def test_the_rule_itself(tmp_path: Path) -> None:
    path = tmp_path / "o"
    durable.claim(path, lambda path: False, "thing")
    path.write_bytes(b"")
    durable.claim(path, lambda path: False, "thing")
    path.write_bytes(b"\0\1")
    durable.claim(path, lambda path: True, "thing")
    with pytest.raises(UsageError, match="o is there: a file of another format, and no earlier thing"):
        durable.claim(path, lambda path: False, "thing")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    durable.claim(tmp_path / "dangling", lambda path: False, "thing")
