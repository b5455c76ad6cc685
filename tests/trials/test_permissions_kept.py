"""A store at mode 600 that grew was at 644. What is replaced gives its mode, owner and group to what replaces it; what
is new has the mode that the umask leaves."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from featcache import durable
from tests.trials.outputs import FOLDERS, WRITERS, Material, in_a_process

QUICK = [name for name in WRITERS if name not in ("trained", "report", "audit")]


def mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", QUICK)
def test_a_new_output_has_the_mode_of_the_umask_and_keeps_it(material: Material, tmp_path: Path, kind: str) -> None:
    name, write = WRITERS[kind]
    path = tmp_path / name
    with umask(0o027):
        write(material, path)
    assert mode(path) == (0o750 if kind in FOLDERS else 0o640)
    path.chmod(0o700 if kind in FOLDERS else 0o600)
    if kind == "run":
        (path / "run.json").chmod(0o600)
    write(replace(material, variant=1), path)
    assert mode(path) == (0o700 if kind in FOLDERS else 0o600)
    if kind == "run":
        assert [mode(path / each) for each in ("run.json", "head.safetensors")] == [0o600, 0o640]


@pytest.mark.parametrize("value", [0o600, 0o644, 0o664, 0o400, 0o777])
def test_every_mode_is_kept_and_no_setuid_bit(tmp_path: Path, value: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(value | stat.S_ISUID)
    durable.write_bytes(path, b"new")
    assert mode(path) == value
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_owner_and_group_are_kept_as_far_as_one_may() -> None:
    """Whoever may not keep the group gives it no more than others had."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(b"old")
        os.chown(path, 1234, 2345)
        path.chmod(0o640)
        durable.write_bytes(path, b"new")
        status = os.stat(path)
        assert (status.st_uid, status.st_gid, mode(path)) == (1234, 2345, 0o640)
        Path(folder).chmod(0o777)
        assert in_a_process(lambda: as_nobody(path)) == (0, "")
        assert mode(path) == 0o600
        assert path.read_bytes() == b"another's"


def as_nobody(path: Path) -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    durable.write_bytes(path, b"another's")


def test_nobody_else_can_read_a_private_file_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(0o600)

    def fill(file: object) -> None:
        (temporary,) = tmp_path.glob(".f.*.tmp")
        assert mode(temporary) == 0o600

    durable.write_with(path, fill)
