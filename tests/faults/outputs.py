"""Two writers of each kind of output at once, and a kill between any two calls of writing one.

What must hold of two writers: the output is that of one of them, whole, at every moment at which a reader looks; who
did not write says that somebody does (exit code 11), or came later; nothing else is left. Of a kill: the old output is
there, or the new one, whole; the next writer succeeds and leaves nothing of the killed one.

What takes long and decides no byte of an output is done once, before the forks: figures of reports are drawn, vectors
of a store are computed by a network that is loaded already.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from featcache import durable
from featcache.errors import FeatcacheError, StoreLocked
from featcache.reporting import report
from tests.faults.ground import Figures, draw_images, put, run_pass, timed
from tests.faults.tap import CHANGES, Call, Tap
from tests.trials.outputs import WRITERS, Material, in_a_process, make_material

KINDS = ("store", "run", "report", "bundle", "npz", "h5", "fusion", "audit")
_PATIENCE_S = 60
State = dict[str, bytes]


def rounds(work: Path, n: int, kinds: tuple[str, ...] = KINDS, seed: int = 0) -> Figures:
    """n rounds of two writers and a reader, for each kind."""
    figures, dice, outcomes = Figures("two writers of an output"), random.Random(seed), Counter[str]()
    with timed(figures):
        for kind in kinds:
            bench = Bench.of(kind, work)
            for number in range(n):
                before = None if number % 2 else bench.states[0]
                outcome, complaints = bench.round(before, [dice.uniform(0, bench.seconds) for _ in range(2)])
                outcomes[outcome] += 1
                figures.count(f"{kind}, round {number}", complaints)
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    figures.note = f"{', '.join(kinds)}; {told}"
    return figures


def interrupted(work: Path, every: int = 1, kinds: tuple[str, ...] = KINDS[1:]) -> Figures:
    """A kill before each call that changes something, of replacing each kind of output and of writing a new one."""
    figures = Figures("killed writers of an output")
    with timed(figures):
        for kind in kinds:
            bench = Bench.of(kind, work)
            for before in (bench.states[0], None):
                n = bench.n_calls(before)
                for at in range(0, n, every):
                    figures.count(
                        f"{kind}, {'new' if before is None else 'replaced'}, call {at}", bench.kill(before, at)
                    )
    return figures


class Bench:
    """One kind of output, its two versions, and where it is written.

    Attributes:
        states: what is in its folder when it has been written, by variant.
        seconds: that writing one takes, about.
    """

    def __init__(self, kind: str, write: Callable[[int, Path], object], folder: Path) -> None:
        self.kind, self.folder, self._write = kind, folder, write
        self.name = WRITERS[kind][0]
        started = time.monotonic()
        self.states = [self._state_after(variant) for variant in (0, 1)]
        self.seconds = (time.monotonic() - started) / 4  # a part of it is the fork

    @classmethod
    def of(cls, kind: str, work: Path) -> "Bench":
        """The bench of a kind, on material that is made once."""
        return cls(kind, _WRITE.get(kind, _plain)(_material(work), kind, work), work / "bench")

    def _state_after(self, variant: int) -> State:
        put({}, self.folder)
        code, text = in_a_process(lambda: self._write(variant, self.folder / self.name))
        assert code == 0, text
        return _state(self.folder)

    def round(self, before: State | None, delays: list[float]) -> tuple[str, list[str]]:
        """Two writers at once over what was there before. Returns how it ended, and what is not as it must be."""
        put(before or {}, self.folder)
        reader = self._start_reader(before)
        waiting, go = os.pipe()
        pids = [self._start(variant, delay, waiting, go) for variant, delay in enumerate(delays)]
        os.close(go)  # both begin
        os.close(waiting)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        os.kill(reader, signal.SIGTERM)
        complaints = [] if os.waitstatus_to_exitcode(os.waitpid(reader, 0)[1]) == 0 else ["a reader saw something half"]
        if sorted(codes) not in ([0, 0], [0, StoreLocked.exit_code]):
            complaints.append(f"the writers ended with {codes}")
        found = _state(self.folder)
        wrote = [variant for variant, code in enumerate(codes) if code == 0]
        if found not in [self.states[variant] for variant in wrote]:
            complaints.append(f"the output is of none that wrote: {_difference(found, self.states[wrote[0]])}")
        return "one wrote, one was told" if 11 in codes else "one after the other", complaints

    def n_calls(self, before: State | None) -> int:
        """How many calls change something when the second version is written."""
        put(before or {}, self.folder)
        n = [0]
        log = self.folder.parent / "calls"

        def hook(call: Call, run: Callable[[], Any]) -> Any:
            n[0] += call.kind in CHANGES
            log.write_text(str(n[0]))
            return run()

        code, text = in_a_process(lambda: (Tap(self.folder, hook).install(), self._write(1, self.folder / self.name)))
        assert code == 0, text
        return int(log.read_text())

    def kill(self, before: State | None, at: int) -> list[str]:
        """Dies before a call of this number; then the same is written undisturbed."""
        put(before or {}, self.folder)
        n = [0]

        def hook(call: Call, run: Callable[[], Any]) -> Any:
            if call.kind in CHANGES:
                if n[0] == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                n[0] += 1
            return run()

        code, text = in_a_process(lambda: (Tap(self.folder, hook).install(), self._write(1, self.folder / self.name)))
        complaints = [] if code == -signal.SIGKILL else [f"it did not die: {code} {text}"]
        complaints += self._half(self._whole(before))
        code, text = in_a_process(lambda: self._write(1, self.folder / self.name))
        complaints += [] if code == 0 else [f"the next writer ended with {code}: {text}"]
        after = _state(self.folder)
        return complaints + ([] if after == self.states[1] else [f"left: {_difference(after, self.states[1])}"])

    def _whole(self, before: State | None) -> list[State]:
        return [*([before] if before is not None else [{}]), *self.states]

    def _half(self, allowed: list[State]) -> list[str]:
        """What a reader finds is one of these states: of a report, the page and the files that it names."""
        found = _seen(self.kind, self.folder, self.name)
        if found in [_seen_of(self.kind, state, self.name) for state in allowed]:
            return []
        return [f"neither the old nor the new: {sorted(found)[:4]}"]

    def _start(self, variant: int, delay: float, waiting: int, go: int) -> int:
        if pid := os.fork():
            return pid
        code = 70
        try:
            import torch

            torch.set_num_threads(1)
            signal.alarm(_PATIENCE_S)
            os.close(go)
            os.read(waiting, 1)
            time.sleep(delay)
            self._write(variant, self.folder / self.name)
            code = 0
        except FeatcacheError as error:
            code = error.exit_code
        finally:
            os._exit(code)

    def _start_reader(self, before: State | None) -> int:
        """Looks again and again until it is told to stop; ends with 1 where it has seen something half."""
        if pid := os.fork():
            return pid
        allowed = [_seen_of(self.kind, state, self.name) for state in self._whole(before)]
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
        code = 1
        try:
            while not stopped:
                if _settled(self.kind, self.folder, self.name) not in [*allowed, None]:
                    break
            else:
                code = 0
        finally:
            os._exit(code)


# --- what a reader sees -----------------------------------------------------------------------------------------------


def _state(folder: Path) -> State:
    """Everything that is there, also what is hidden; not the times of a pass, which `.seen` holds."""
    found = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)) + "/" * path.is_dir(): b"" if path.is_dir() else path.read_bytes()
        for path in found
        if not path.name.endswith(".h5.seen")
    }


def _seen(kind: str, folder: Path, name: str) -> State:
    return _seen_of(kind, _state(folder), name)


def _seen_of(kind: str, state: State, name: str) -> State:
    """Of all that is there, the output: a file, the files of a folder, or a page with the files that it names."""
    if kind == "report":
        page = state.get(name, b"")
        folders = [each for each in state if each.startswith("o.files/") and each.count("/") == 2 and each[-1] == "/"]
        named = [each for each in folders if each.rstrip("/").encode() in page]
        return (
            {each: data for each, data in state.items() if each == name or each.startswith(tuple(named))}
            if page
            else {}
        )
    return {each: data for each, data in state.items() if each.rstrip("/") == name or each.startswith(f"{name}/")}


def _settled(kind: str, folder: Path, name: str) -> State | None:
    """The output as it is at one moment; None where it was replaced while it was read."""
    path = folder / name
    try:
        if kind != "report":
            descriptor = os.open(path, os.O_RDONLY)
            try:
                return _of_descriptor(descriptor, name)
            finally:
                os.close(descriptor)
        before = path.read_bytes()
        state = _seen(kind, folder, name)
        return state if path.read_bytes() == before == state.get(name) else None
    except FileNotFoundError:
        return None


def _of_descriptor(descriptor: int, name: str) -> State | None:
    """A file, or a folder, whatever has its name by now; None for a folder that is being taken apart."""
    if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
        with open(os.dup(descriptor), "rb") as file:
            return {name: file.read()}
    names = sorted(os.listdir(descriptor))
    state = {f"{name}/": b""}
    for each in names:
        with open(os.open(each, os.O_RDONLY, dir_fd=descriptor), "rb") as file:
            state[f"{name}/{each}"] = file.read()
    is_named = os.path.lexists(f"/proc/self/fd/{descriptor}") and _still_has(descriptor, name)
    return state if is_named and sorted(os.listdir(descriptor)) == names else None


def _still_has(descriptor: int, name: str) -> bool:
    return os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/{name}")


def _difference(found: State, expected: State) -> str:
    names = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
    return ", ".join(sorted(names)[:6])


# --- the writers ------------------------------------------------------------------------------------------------------


@cache
def _material(work: Path) -> Material:
    return make_material(work / "material")


def _plain(material: Material, kind: str, work: Path) -> Callable[[int, Path], object]:
    return lambda variant, path: WRITERS[kind][1](replace(material, variant=variant), path)


def _audit(material: Material, kind: str, work: Path) -> Callable[[int, Path], object]:
    """Two audits that were made before."""
    from featcache.auditing.audit import audit

    with material.store as store:
        made = [audit(store, near=near, ignore=["study"]) for near in (0.95, 0.5)]
    return lambda variant, path: made[variant].write(path)


def _report(material: Material, kind: str, work: Path) -> Callable[[int, Path], object]:
    """Two pages whose figures were drawn before: what is left is to render, to write and to clear."""
    return partial(_write_page, [_chapters(replace(material, variant=variant), work) for variant in (0, 1)])


def _chapters(material: Material, work: Path) -> tuple[Any, ...]:
    drawn: list[tuple[Any, ...]] = []
    write = report._write

    def keep(path: Path, *rest: Any) -> Any:
        drawn.append(rest)
        return write(path, *rest)

    report._write = keep  # type: ignore[assignment]
    try:
        put({}, work / "drawn")
        report.report(material.run, work / "drawn" / "o.html")
    finally:
        report._write = write
    return drawn[0]


def _write_page(drawn: list[tuple[Any, ...]], variant: int, path: Path) -> None:
    report._check_free(path)
    with durable.output(path, report._is_page, "report"):
        report._check_free(path)
        report._write(path, *drawn[variant])


def _store(material: Material, kind: str, work: Path) -> Callable[[int, Path], object]:
    """A pass over all images, or over some of them: a fork of its own, by the network that is loaded here."""
    manifests = [draw_images(work / f"few{variant}", 10 + 4 * variant) for variant in (0, 1)]

    def write(variant: int, path: Path) -> None:
        ran = run_pass(manifests[variant], path)
        if ran.exit_code:
            raise _ERRORS.get(ran.exit_code, FeatcacheError)(ran.message)

    return write


_ERRORS = {11: StoreLocked}
_WRITE: dict[str, Any] = {"audit": _audit, "report": _report, "store": _store}
