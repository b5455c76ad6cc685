"""Every call a pass makes on its files, each gone wrong in every way: the pass dies before it, after it, or in the
middle of a write; the disk is full; the device fails.

What must hold: an error ends in the exception that is made for it, or does no harm; at every moment the store is the
old one or the new one; the next pass computes exactly what is not on disk, leaves the store of an uninterrupted pass,
byte for byte, and nothing else.
"""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from featcache.errors import InputOutputError, NoSpace
from tests.faults.ground import STORE, Figures, Ran, Scene, Tell, put, run_pass, scenes, timed, tree
from tests.faults.tap import CHANGES, Call, Hook, Tap

_ERRORS = {"ENOSPC": (errno.ENOSPC, NoSpace), "EIO": (errno.EIO, InputOutputError)}
FAULTS = ("die before", "die after", "half", *_ERRORS)


def calls(work: Path, every: int = 1) -> Figures:
    """All faults at all calls of three scenes; `every` is 1 for all of them, more for a sample."""
    figures = Figures("calls")
    with timed(figures):
        for number, scene in enumerate(scenes(work)):
            made = list_calls(scene, work / "calls")
            for at, fault in list(_faults(made))[number * every // 3 :: every]:
                figures.count(
                    f"{scene.name}, call {at} ({made[at]}), {fault}", _tried(scene, work / "calls", at, fault)
                )
            figures.note += f"{', ' if figures.note else ''}{scene.name}: {len(made)} calls"
    return figures


def list_calls(scene: Scene, folder: Path) -> list[str]:
    """The calls of an undisturbed pass."""

    def prepare(tell: Tell) -> None:
        def hook(call: Call, run: Callable[[], Any]) -> Any:
            tell("calls", str(call))
            return run()

        Tap(folder, hook).install()

    ran = run_pass(scene.manifest, put(scene.before, folder) / STORE, prepare)
    assert ran.exit_code == 0, ran.message
    return ran.calls


def _faults(made: list[str]) -> Iterator[tuple[int, str]]:
    """(number of the call, fault): reading can only fail with EIO, and only writes have halves."""
    for at, call in enumerate(made):
        kind = call.split()[0]
        for fault in FAULTS if kind in CHANGES else ("EIO",):
            if fault != "half" or kind == "write":
                yield at, fault


def _tried(scene: Scene, folder: Path, at: int, fault: str) -> list[str]:
    ran = run_pass(scene.manifest, put(scene.before, folder) / STORE, faulty(folder, at, fault))
    complaints = scene.store_is_old_or_new(tree(folder)) + _wrong_end(ran, fault)
    return complaints + scene.recover(folder)


def faulty(folder: Path, at: int, fault: str) -> Callable[[Tell], None]:
    """What makes the call of this number go wrong."""
    made = [0]

    def hook(call: Call, run: Callable[[], Any]) -> Any:
        number, made[0] = made[0], made[0] + 1
        return _go_wrong(fault, call, run) if number == at else run()

    return lambda tell: Tap(folder, hook).install()


def _go_wrong(fault: str, call: Call, run: Callable[[], Any]) -> Any:
    if fault in _ERRORS:
        number, _ = _ERRORS[fault]
        raise OSError(number, os.strerror(number), call.path)
    if fault == "half":
        assert call.half is not None
        call.half()
    elif fault == "die after":
        run()
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def _wrong_end(ran: Ran, fault: str) -> list[str]:
    if fault not in _ERRORS:
        return [] if ran.signal == signal.SIGKILL else [f"it did not die: {ran.exit_code} {ran.message[-300:]}"]
    _, expected = _ERRORS[fault]
    if ran.exit_code in (0, expected.exit_code):
        return []
    return [f"ended with {ran.exit_code}, signal {ran.signal}: {ran.message.strip()[-400:]}"]


__all__ = ["Hook", "calls", "faulty", "list_calls"]
