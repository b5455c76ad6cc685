"""A Run that was repeated with other bits, and killed between two of its files, was damaged. Folders are replaced in
one step, and a page never stands beside the figures of another one."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from featcache import durable
from featcache.durable import folders
from featcache.runs import Run
from tests.trials.outputs import WRITERS, Material, in_a_process, tree

OLD, NEW = {"a": b"old", "b": b"old"}, {"a": b"new", "c": b"new"}


def put(path: Path, contents: dict[str, bytes]) -> None:
    with durable.locked(path):
        durable.write_folder(path, contents, owned=("a", "b", "c"))


def contents(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir() if each.is_file()}


def dies_at(name: str, number: int, work: Callable[[], object]) -> Callable[[], object]:
    """kill -9 before the call of this number of a function of `os` or of `folders`."""

    def run() -> None:
        module = folders if name == "_exchange" else os
        real, n = getattr(module, name), [0]

        def call(*args: object, **more: object) -> object:
            n[0] += 1
            if n[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **more)

        setattr(module, name, call)
        work()

    return run


@pytest.mark.parametrize("has_exchange", [True, False])
@pytest.mark.parametrize(
    ("name", "number"), [("fsync", 1), ("fsync", 2), ("fsync", 3), ("rename", 1), ("rename", 2), ("fsync", 4),
                         ("unlink", 1), ("unlink", 2), ("rmdir", 1), ("_exchange", 1)],
)  # fmt: skip
def test_a_kill_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, name: str, number: int, has_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a system that cannot exchange two names: there whoever opens it next puts the old one back."""
    if not has_exchange:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    path = tmp_path / "r"
    put(path, OLD)
    (path / "thesis.txt").write_bytes(b"mine")
    (path / "figures").mkdir()
    (path / "figures" / "1.png").write_bytes(b"mine")
    code, _ = in_a_process(dies_at(name, number, lambda: put(path, NEW)))
    assert code in (0, -signal.SIGKILL)
    durable.recover(path)
    assert {name: data for name, data in contents(path).items() if name != "thesis.txt"} in (OLD, NEW)
    put(path, NEW)
    assert contents(path) == {**NEW, "thesis.txt": b"mine"}
    assert (path / "figures" / "1.png").read_bytes() == b"mine", "folders of others are never lost"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["r"]


def test_a_run_killed_between_two_files_is_the_old_one(material: Material, tmp_path: Path) -> None:
    name, write = WRITERS["run"]
    write(material, tmp_path / name)
    before = tree(tmp_path / name)
    other = replace(material, variant=1)
    for number in (1, 3):
        code, _ = in_a_process(dies_at("fsync", number, lambda: write(other, tmp_path / name)))
        assert code == -signal.SIGKILL
        assert {key: data for key, data in tree(tmp_path / name).items() if not key.startswith(".")} == before
        Run.open(tmp_path / name).weights()
    write(other, tmp_path / name)
    assert tree(tmp_path / name).keys() == before.keys()


def test_what_fails_leaves_the_old_folder_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r"
    put(path, OLD)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(Exception, match=r"no space: writing .*/r stopped"):
        put(path, NEW)
    assert contents(path) == OLD
    assert [each.name for each in tmp_path.iterdir()] == ["r"]


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "r").symlink_to(tmp_path / "disk" / "real")
    put(tmp_path / "r", OLD)
    put(tmp_path / "r", NEW)
    assert (tmp_path / "r").is_symlink()
    assert contents(tmp_path / "disk" / "real") == NEW


@pytest.mark.long
def test_a_page_killed_before_it_is_there_leaves_the_old_one_with_its_files(material: Material, tmp_path: Path) -> None:
    name, write = WRITERS["report"]
    write(material, tmp_path / name)
    before = tree(tmp_path / name)
    other = replace(material, variant=1)
    code, _ = in_a_process(dies_at("replace", 1, lambda: write(other, tmp_path / name)))
    assert code == -signal.SIGKILL
    after = tree(tmp_path / name)
    assert {key: after[key] for key in before} == before
    write(other, tmp_path / name)
    assert len(list((tmp_path / "o.files").iterdir())) == 1
