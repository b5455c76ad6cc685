"""A symbolic link could wait at `.NAME.PID.tmp`, and what killed writers left outlived the next run of `export` and
`report`. Temporary names cannot be guessed and are never an existing file; the next writer of an output sweeps what the
killed ones left, and nothing of one that lives."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from featcache import durable
from featcache.durable import files
from tests.trials.outputs import WRITERS, Material, in_a_process

KINDS = [pytest.param(name, marks=[pytest.mark.long] * (name == "report")) for name in WRITERS if name != "trained"]


def test_a_link_that_waits_at_a_temporary_name_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the name could be guessed. Other links and folders with such names stay."""
    (tmp_path / "victim").write_text("mine")
    names = iter(["0" * 16, "1" * 16, "2" * 16])
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: next(names))
    (tmp_path / f".f.{'0' * 16}.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(Exception, match="stands in the way"):
        durable.write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "victim").read_text() == "mine"
    for pid in (os.getpid(), os.getpid() + 1):
        (tmp_path / f".f.{pid}.tmp").symlink_to(tmp_path / "victim")
    with durable.locked(tmp_path / "f"):
        durable.write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "f").read_bytes() == b"new"


def test_names_differ_from_one_write_to_the_next(tmp_path: Path) -> None:
    seen = []

    def fill(file: BinaryIO) -> None:
        seen.extend(path.name for path in tmp_path.glob(".*.tmp"))

    for _ in range(5):
        durable.write_with(tmp_path / "f", fill)
    durable.write_with(tmp_path / ("x" * 250), fill)
    assert len(set(seen)) == 6
    assert all(str(os.getpid()) not in name.split(".") for name in seen)


def killed_while_writing(work: Callable[[], object]) -> None:
    """kill -9 when the first temporary file or folder has been written into."""

    def dies() -> None:
        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = die  # type: ignore[assignment]
        work()

    assert in_a_process(dies)[0] == -signal.SIGKILL


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_writer_removes_what_a_killed_one_left(material: Material, tmp_path: Path, kind: str) -> None:
    name, write = WRITERS[kind]
    killed_while_writing(lambda: write(material, tmp_path / name))
    assert not (tmp_path / name).exists()
    assert any(path.name.startswith(".") for path in tmp_path.rglob("*")), "a lock, and a temporary file or folder"
    write(replace(material, variant=1), tmp_path / name)
    hidden = [path.name for path in tmp_path.rglob(".*") if path.name != ".o.h5.seen"]
    assert hidden == []


def test_what_a_living_writer_writes_is_not_swept(tmp_path: Path) -> None:
    """Not even by somebody who holds the lock of that output."""
    pid = os.fork()
    if not pid:
        try:
            durable.write_with(tmp_path / "f", lambda file: time.sleep(30))
        finally:
            os._exit(1)
    try:
        until = time.monotonic() + 10
        while not list(tmp_path.glob(".f.*.tmp")) and time.monotonic() < until:
            time.sleep(0.01)
        (alive,) = tmp_path.glob(".f.*.tmp")
        time.sleep(0.1)
        (tmp_path / f".f.{'a' * 16}.tmp").write_bytes(b"half")
        with durable.locked(tmp_path / "f"):
            assert [path.name for path in tmp_path.glob(".f.*.tmp")] == [alive.name]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with durable.locked(tmp_path / "f"):
        assert list(tmp_path.glob(".f.*.tmp")) == []
