"""Two `train-head … -o rr` at once lost one Run, and so did other outputs: now one writes, the others say that it does,
and leave nothing behind. A lock dies with its process, and belongs to the real file, whatever links lead there."""

import os
import signal
from pathlib import Path

import pytest

from featcache import durable
from featcache.errors import StoreLocked
from featcache.finetune.checkpoints import Checkpoints
from tests.trials.outputs import WRITERS, Material, held_elsewhere, tree

KINDS = [pytest.param(name, marks=[pytest.mark.long] * (name == "report")) for name in WRITERS]


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_writer_says_who_is_writing_and_keeps_nothing(material: Material, tmp_path: Path, kind: str) -> None:
    name, write = WRITERS[kind]
    with held_elsewhere(tmp_path / name) as pid:
        before = tree(tmp_path / name)
        with pytest.raises(StoreLocked, match=rf"{name} is being written by pid {pid} on {os.uname().nodename} since"):
            write(material, tmp_path / name)
        assert tree(tmp_path / name) == before
    write(material, tmp_path / name)  # the holder was killed
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith((".lock", ".tmp"))]


def test_a_training_on_pixels_and_one_on_vectors_exclude_each_other(material: Material, tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "o").locked({"seed": 0}), pytest.raises(StoreLocked):
        WRITERS["trained"][1](material, tmp_path / "o")


def test_a_store_that_is_reached_through_links_has_one_lock(material: Material, tmp_path: Path) -> None:
    """A link to the file, and a link to its folder."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.h5").symlink_to(tmp_path / "disk" / "o.h5")
    (tmp_path / "folder").symlink_to(tmp_path / "disk")
    write = WRITERS["store"][1]
    for place in (tmp_path / "link.h5", tmp_path / "folder" / "o.h5", tmp_path / "disk" / "o.h5"):
        with held_elsewhere(tmp_path / "disk" / "o.h5"), pytest.raises(StoreLocked):
            write(material, place)
        with durable.locked(place):
            assert durable.writer_of(tmp_path / "disk" / "o.h5")
    write(material, tmp_path / "link.h5")
    assert (tmp_path / "disk" / "o.h5").is_file()
    assert (tmp_path / "link.h5").is_symlink()


def test_kinds_of_outputs_share_the_lock_of_a_path(material: Material, tmp_path: Path) -> None:
    """A fusion file, an export and a pass that go to one name."""
    for kind in ("fusion", "h5", "store"):
        with durable.locked(tmp_path / "o.h5"), pytest.raises(StoreLocked, match="is being written by"):
            WRITERS[kind][1](material, tmp_path / "o.h5")


def test_to_ask_who_writes_does_not_free_the_lock(tmp_path: Path) -> None:
    """POSIX frees a lock when any descriptor of its file is closed in the process that holds it."""
    path = tmp_path / "o"
    with durable.locked(path):
        assert durable.writer_of(path) == f"pid {os.getpid()} on {os.uname().nodename}"
        pid = os.fork()
        if not pid:
            code = 0
            try:
                with durable.locked(path):
                    code = 1
            except StoreLocked:
                code = 11
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 11
    assert durable.writer_of(path) == ""
    assert list(tmp_path.iterdir()) == []


def test_folders_made_for_an_output_that_did_not_come_to_be_are_gone(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), durable.locked(tmp_path / "a" / "b" / "o"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_left_by_a_killed_writer_is_no_lock(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "o") as pid:
        os.kill(pid, signal.SIGKILL)
        with durable.locked(tmp_path / "o"):
            pass
    assert list(tmp_path.iterdir()) == []
