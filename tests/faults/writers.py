"""Two to eight passes into one new store, within a fraction of a second, while a reader asks how far they are.

What must hold: each image is computed once, by whoever was first; the others end with exit code 11 and the name of a
process that was writing, or come later and find every vector there; the store is that of a lonely pass, byte for byte,
and nothing else is left; the reader gets answers, or is told that there is nothing yet.
"""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from featcache.errors import FeatcacheError, StoreLocked
from featcache.store import Store, status
from tests.faults.ground import (
    STORE,
    Figures,
    Ran,
    Scene,
    Tell,
    differences,
    finish,
    put,
    scenes,
    start_pass,
    timed,
    tree,
)

_SPREAD_S = 1.5  # a pass takes about a third of it


def writers(work: Path, n: int, seed: int = 0) -> Figures:
    """n rounds."""
    figures, dice = Figures("writers"), random.Random(seed)
    scene = scenes(work)[0]
    n_locked = n_late = 0
    with timed(figures):
        for number in range(n):
            folder = put({}, work / "writers")
            pids, rans, reader_code = _round(scene, folder, [dice.uniform(0, _SPREAD_S) for _ in range(2 + number % 7)])
            complaints = _wrong(scene, pids, rans) + differences(tree(folder), scene.after)
            complaints += [f"the reader ended with {reader_code}"] * (reader_code != -signal.SIGKILL)
            figures.count(f"{len(rans)} writers", complaints)
            n_locked += sum(ran.exit_code == StoreLocked.exit_code for ran in rans)
            n_late += sum(ran.exit_code == 0 and not ran.computed for ran in rans)
    figures.note = f"2 to 8 at a time; {n_locked} were told to wait, {n_late} came later"
    return figures


def _round(scene: Scene, folder: Path, delays: list[float]) -> tuple[list[int], list[Ran], int]:
    started = [start_pass(scene.manifest, folder / STORE, _after(delay)) for delay in delays]
    reader = _start_reader(folder / STORE)
    rans = [finish(pid, events) for pid, events in started]
    os.kill(reader, signal.SIGKILL)
    reader_code = os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1])
    return [pid for pid, _ in started], rans, reader_code


def _after(seconds: float) -> Callable[[Tell], None]:
    def prepare(tell: Tell) -> None:
        time.sleep(seconds)

    return prepare


def _start_reader(store_path: Path) -> int:
    """Asks again and again, until it is killed; ends by itself only at an exception that is not one of ours."""
    if pid := os.fork():
        return pid
    try:
        while True:
            _ask(store_path)
            time.sleep(0.002)
    finally:
        os._exit(70)


def _ask(store_path: Path) -> None:
    for question in (status, Store.open):
        try:
            answer = question(store_path)
        except FeatcacheError:
            continue
        if isinstance(answer, Store):
            answer.close()


def _wrong(scene: Scene, pids: list[int], rans: list[Ran]) -> list[str]:
    complaints = []
    if sorted(ran.computed for ran in rans) != [0] * (len(rans) - 1) + [len(scene.images)]:
        complaints.append(f"images computed: {[ran.computed for ran in rans]}, there are {len(scene.images)}")
    for ran in rans:
        if ran.exit_code == StoreLocked.exit_code:
            named = re.search(rf"is being written by pid (\d+) on {re.escape(os.uname().nodename)}", ran.message)
            if named is None or int(named[1]) not in pids:
                complaints.append(f"no writer is named: {ran.message}")
        elif ran.exit_code != 0:
            complaints.append(f"ended with {ran.exit_code}, signal {ran.signal}: {ran.message.strip()[-300:]}")
    return complaints
