"""A disk that is full at every page from nothing to enough: a small tmpfs, filled once the pass has looked how much is
free.

What must hold: the pass ends with exit code 20 and a message that begins with "no space", leaves no temporary file, and
the store that was there; once there is space, the next pass computes exactly what is not on disk and leaves the store
of an uninterrupted pass, byte for byte, and nothing else.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from featcache.embedding import run as module
from featcache.errors import NoSpace
from tests.faults.ground import STORE, Figures, Ran, Scene, Tell, put, run_pass, scenes, timed, tree

_DISK_KIB = 4096


def space(work: Path, step_kib: int = 4) -> Figures:
    """Steps of free space, for a new store and for one that replaces another, until a pass finds enough."""
    figures = Figures("space")
    if os.geteuid() != 0:
        figures.note = "skipped: mounting a tmpfs needs root"
        return figures
    with timed(figures), _small_disk(work / "tmpfs") as disk:
        for scene in scenes(work)[:2]:
            free_kib, ran = 0, Ran()
            while ran.exit_code != 0 and free_kib < _DISK_KIB:
                ran, complaints = _tried(scene, disk, free_kib)
                figures.count(f"{scene.name}, {free_kib} KiB free", complaints)
                free_kib += step_kib
            figures.note += f"{', ' if figures.note else ''}{scene.name}: 0 to {free_kib - step_kib} KiB"
    return figures


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_KIB}k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _tried(scene: Scene, disk: Path, free_kib: int) -> tuple[Ran, list[str]]:
    folder, ballast = put(scene.before, disk / "here"), disk / "ballast"
    ran = run_pass(scene.manifest, folder / STORE, _filled_later(ballast, free_kib))
    left = tree(folder)
    ballast.unlink(missing_ok=True)
    complaints = scene.store_is_old_or_new(left) + [f"{name} is left" for name in left if name.endswith(".tmp")]
    if ran.exit_code != 0 and (ran.exit_code != NoSpace.exit_code or not ran.message.startswith("NoSpace: no space")):
        complaints.append(f"ended with {ran.exit_code}, signal {ran.signal}: {ran.message.strip()[-300:]}")
    return ran, complaints + scene.recover(folder)


def _filled_later(ballast: Path, free_kib: int) -> Callable[[Tell], None]:
    """Leaves so much space, once the pass has found that there is enough."""

    def prepare(tell: Tell) -> None:
        check = module.check_space

        def fill(*arguments: object) -> None:
            check(*arguments)
            with open(ballast, "wb") as file:
                found = os.statvfs(ballast)
                os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - free_kib * 1024)

        module.check_space = fill

    return prepare
