"""kill -9 at random moments, again and again within one pass, on the real command line.

Moments are drawn for the three stages of a pass: start-up (uniformly over the time to the first new part), writing (up
to some part times after a new part is seen), and publishing (after all parts are there: before, while and after the new
file takes its place). After every kill, parts that were whole are the same files still, with the same inode and time,
and the workers are gone; in the end the store equals that of an uninterrupted run byte for byte.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.conftest import draw, shared
from tests.faults.ground import Figures, timed, whole_parts

_WORKERS_END_S = 10.0
_POLL_S = 0.005
_STARTUP_EVERY = 7  # kills, one falls into start-up
_PUBLISHING_SHARE = 0.1


class Running:
    """A command line under way: by exec, or by fork where the seconds of importing torch matter more."""

    def __init__(self, arguments: list[str], cwd: Path, by_fork: bool) -> None:
        self.returncode: int | None = None
        self.pid = self._fork(arguments, cwd) if by_fork else self._exec(arguments, cwd)
        self.children: set[int] = set()
        self._note_next = 0.0

    def poll(self) -> int | None:
        if self.returncode is None:
            if time.monotonic() > self._note_next:
                self._note_children()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> bool:
        """Kills the process, unless it has ended. Returns whether it did."""
        if self.poll() is not None:
            return False
        self._note_children()
        os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def survivors(self) -> set[int]:
        """Children that outlive the process by more than it takes to notice."""
        until = time.monotonic() + _WORKERS_END_S
        while (alive := {pid for pid in self.children if _is_alive(pid)}) and time.monotonic() < until:
            time.sleep(0.01)
        return alive

    def _note_children(self) -> None:
        self._note_next = time.monotonic() + 0.2
        for task in Path(f"/proc/{self.pid}/task").glob("*/children"):
            try:
                self.children |= set(map(int, task.read_text().split()))
            except OSError:  # a thread that ended meanwhile
                continue

    @staticmethod
    def _exec(arguments: list[str], cwd: Path) -> int:
        command = [sys.executable, "-m", "featcache", *arguments]
        with open(cwd / "stderr.txt", "ab") as stderr:
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
            process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=stderr, env=environment)
        process.returncode = 0  # waited for here, by its id
        return process.pid

    @staticmethod
    def _fork(arguments: list[str], cwd: Path) -> int:
        if pid := os.fork():
            return pid
        code = 70
        try:
            torch.set_num_threads(1)
            os.chdir(cwd)
            output = os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.argv = ["featcache", *arguments]
            from featcache.cli.main import main

            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            os._exit(code)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False


@dataclass
class _Loop:
    """A pass that is killed over and over.

    Attributes:
        startup_s, part_s, publish_s: of the uninterrupted run.
        parts: those that were whole at the last kill: name -> (inode, time).
    """

    cwd: Path
    arguments: list[str]
    by_fork: bool
    n_parts: int
    dice: random.Random
    startup_s: float = 0.0
    part_s: float = 0.0
    publish_s: float = 0.0
    expected: bytes = b""
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    stages: Counter[str] = field(default_factory=Counter)

    @property
    def store(self) -> Path:
        return self.cwd / "k.h5"

    @property
    def folder(self) -> Path:
        return self.cwd / "k.h5.partial"

    def start(self) -> Running:
        return Running([*self.arguments, "-o", self.store.name], self.cwd, self.by_fork)

    def measure(self) -> None:
        """The uninterrupted run."""
        started = time.monotonic()
        process = self.start()
        first = last = started
        while process.poll() is None:
            n = self._n_parts()
            first = time.monotonic() if n == 0 and last == started else first
            last = time.monotonic() if n < self.n_parts and not self.store.exists() else last
            time.sleep(_POLL_S)
        assert process.returncode in (0, 3), (self.cwd / "stderr.txt").read_text()
        self.startup_s, self.part_s = first - started, (last - first) / self.n_parts
        self.publish_s = max(0.02, time.monotonic() - last)
        self.expected = self.store.read_bytes()
        for path in (self.store, self.cwd / ".k.h5.seen"):
            path.unlink()

    def kill_once(self, number: int, n: int) -> list[str] | None:
        """One run and its end, the kill of this number of n. None if it finished before it could be killed."""
        process = self.start()
        n_missing = self.n_parts - self._n_parts()
        if self.store.exists() or n_missing == 0:
            stage = self._wait_publishing(process)
        elif number % _STARTUP_EVERY == 3:
            stage = self._wait(process, "start-up", self.dice.uniform(0, self.startup_s))
        else:
            stage = self._wait_writing(process, n_missing / max(1.0, n - number - n * _PUBLISHING_SHARE))
        if not process.kill():
            code = process.returncode
            return None if code in (0, 3) else [f"the command ended with {code} on its own"]
        self.stages[stage] += 1
        return self._after(process)

    def _wait(self, process: Running, stage: str, seconds: float) -> str:
        until = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < until:
            time.sleep(_POLL_S)
        return stage

    def _wait_writing(self, process: Running, parts_to_spend: float) -> str:
        before = self._n_parts()
        while process.poll() is None and self._n_parts() <= before and not self._packing():
            time.sleep(_POLL_S)
        spend = max(0.5, min(6.0, 2 * (parts_to_spend - 1)))
        return self._wait(process, "writing", self.dice.uniform(0, spend) * self.part_s)

    def _wait_publishing(self, process: Running) -> str:
        """Around the moments that count: the temporary file appears, grows, takes its place; the parts go."""
        while process.poll() is None and not self._packing():
            time.sleep(_POLL_S)
        return self._wait(process, "publishing", self.dice.uniform(0, 0.9 * self.publish_s))

    def _packing(self) -> bool:
        return any(self.cwd.glob(".k.h5.*.tmp"))

    def _n_parts(self) -> int:
        return sum(name.startswith("part-") for name in os.listdir(self.folder)) if self.folder.is_dir() else 0

    def _after(self, process: Running) -> list[str]:
        complaints = [f"worker {pid} outlived the pass" for pid in process.survivors()]
        found = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in whole_parts(self.folder)}
        if self.store.exists():
            if self.store.read_bytes() != self.expected:
                complaints.append("a store was published that differs")
        else:
            lost = {name for name, which in self.parts.items() if found.get(name) != which}
            complaints += [f"{name} was lost or written again" for name in sorted(lost)]
        self.parts = found
        return complaints

    def finish(self) -> list[str]:
        code = self.start().wait()
        left = [path.name for path in (self.folder, *self.cwd.glob(".k.h5.*.tmp")) if path.exists()]
        same = self.store.exists() and self.store.read_bytes() == self.expected
        return (
            [f"the last run ended with {code}"] * (code not in (0, 3))
            + ["the store differs from that of an uninterrupted run"] * (not same)
            + [f"{name} is left" for name in left]
        )


def kills(work: Path, n: int, real: bool = False, by_fork: bool = True, seed: int = 0) -> Figures:
    """n kills within one pass, over `real` X-rays or generated images.

    `by_fork` spares each command line the seconds of importing torch; without it, start-up is that of a person's.
    """
    figures = Figures("kills" if by_fork else "kills by exec")
    arguments, n_parts = _real(work) if real else _generated(work, n)
    loop = _Loop(work, arguments, by_fork, n_parts, random.Random(seed))
    with timed(figures):
        loop.measure()
        while figures.tried < n:
            complaints = loop.kill_once(figures.tried, n)
            if complaints is None:
                break
            figures.count(f"kill {figures.tried + 1}", complaints)
            print(f"kill {figures.tried} {dict(loop.stages)} {complaints}", file=sys.stderr, flush=True)
        figures.count("the last run", loop.finish())
    stages = ", ".join(f"{count} {stage}" for stage, count in sorted(loop.stages.items()))
    figures.note = f"{'real X-rays' if real else 'generated images'}; {stages}, and the last run"
    return figures


def _real(work: Path) -> tuple[list[str], int]:
    """2,000 X-rays in parts of 6."""
    root, weights = shared("data", "kermany224"), shared("weights", "mobilenetv2_100.onnxzoo7.safetensors")
    names = sorted(str(path) for path in root.rglob("*.jpeg"))[:2000]
    (work / "images.csv").write_text("\n".join(["path", *names]) + "\n")
    options = ["--allow-outside", "--backbone", "mobilenetv2_100", "--weights", str(weights), "--crop-pct", "1.0"]
    return ["embed", "images.csv", *options, "--workers", "2", "--part-rows", "6"], -(-len(names) // 6)


def _generated(work: Path, n: int) -> tuple[list[str], int]:
    """Eight images a kill, in parts of 2."""
    for i in range(8 * n):
        draw(work / "images" / f"{i:04d}.png", i)
    options = ["--backbone", "test_resnet", "--weights", "random:0", "--input-size", "32"]
    options += ["--tap", "pooled", "--tap", "boundary", "--augmentations", "1"]
    return ["embed", "images", *options, "--workers", "1", "--part-rows", "2"], 4 * n
