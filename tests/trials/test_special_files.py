"""A pipe as `.f.h5.seen` or `plan.json` made a command wait for ever. Only regular files are read as our own: anything
else is passed over where it only saves time, and named where it is needed."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from featcache import durable
from featcache.embedding import embed
from featcache.errors import FeatcacheError, UsageError
from featcache.finetune.checkpoints import Checkpoints
from featcache.identity import digest_bytes
from featcache.manifest import Manifest
from featcache.runs import Run
from featcache.store import Store, status
from tests.conftest import draw
from tests.trials.outputs import SPEC, WRITERS, Material


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Whoever waits for a pipe is ended."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def socket_at(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo, "folder": os.mkdir, "socket": socket_at, "device": lambda path: path.symlink_to("/dev/zero"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", [".f.h5.seen", "f.h5.partial/plan.json", "f.h5.partial/part-0000000000-%s.h5"])
def test_what_a_pass_keeps_for_itself_is_passed_over(tmp_path: Path, kind: str, name: str) -> None:
    draw(tmp_path / "in" / "0.png", 0)
    (tmp_path / "f.h5.partial").mkdir()
    SPECIAL[kind](tmp_path / (name % ("0" * 16) if "%" in name else name))
    manifest = Manifest.read(tmp_path / "in")
    if "plan" in name and kind != "device":  # which has to be written
        with pytest.raises(UsageError, match=r"plan\.json"):
            embed(manifest, tmp_path / "f.h5", SPEC, n_workers=1)
        return
    with suppress(UsageError):
        embed(manifest, tmp_path / "f.h5", SPEC, n_workers=1)


@pytest.mark.parametrize("kind", SPECIAL)
def test_status_of_a_pass_does_not_wait(tmp_path: Path, kind: str) -> None:
    (tmp_path / "f.h5.partial").mkdir()
    SPECIAL[kind](tmp_path / "f.h5.partial" / "plan.json")
    with pytest.raises(FeatcacheError):
        status(tmp_path / "f.h5")
    SPECIAL[kind](tmp_path / "g.h5")
    with pytest.raises(FeatcacheError):
        Store.open(tmp_path / "g.h5")


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["run.json", "head.safetensors", "split.json", "images.json"])
def test_a_file_of_a_run_is_named_for_what_it_is(material: Material, tmp_path: Path, kind: str, name: str) -> None:
    WRITERS["run"][1](material, tmp_path / "o")
    (tmp_path / "o" / name).unlink()
    SPECIAL[kind](tmp_path / "o" / name)

    def read() -> None:
        run = Run.open(tmp_path / "o")
        run.weights(), run.images(), run.protocol()

    with pytest.raises(FeatcacheError, match=rf"{name} is a {kind}|{name} is damaged: .*is a {kind}"):
        read()


@pytest.mark.parametrize("kind", [*SPECIAL, "link"])
def test_a_lock_is_a_file(tmp_path: Path, kind: str) -> None:
    make = SPECIAL.get(kind, lambda path: path.symlink_to(tmp_path / "elsewhere"))
    make(tmp_path / ".o.lock")
    with pytest.raises(FeatcacheError), durable.locked(tmp_path / "o"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", SPECIAL)
def test_checkpoints_that_are_no_files_are_passed_over(tmp_path: Path, kind: str) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    with checkpoints.locked({"seed": 0}):
        checkpoints.save("fold-0", 1, {"w": torch.zeros(1)}, {"epoch": 1})
        SPECIAL[kind](checkpoints.folder / f"fold-0-000002-{digest_bytes(b'')[:16]}.safetensors")
        found = checkpoints.latest("fold-0")
        assert found is not None
        assert found[1] == {"epoch": 1}
