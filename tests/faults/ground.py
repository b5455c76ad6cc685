"""What the proofs stand on: a few images, a pass in a process of its own, and what must be true when it has ended.

A proof runs hundreds of passes, and importing torch takes seconds: so everything is imported once, and each pass is a
fork. Its decoding workers are forks too, instead of fresh interpreters; they serve the same lines over the same
sockets. The network is a real one, timm's `test_resnet`, loaded before the fork. All else is the code as it is.
"""

import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from featcache import backbones
from featcache.embedding import embed
from featcache.embedding.network import Network
from featcache.errors import FeatcacheError
from featcache.images import serving, workers
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec
from featcache.store import FAILED, Store, read_part
from tests.conftest import draw

SPEC = BackboneSpec("test_resnet", "random:0", input_size=32)
STORE = "s.h5"
PART_ROWS = 8
_PART_NAME = re.compile(r"(?:part|old)-\d{10}-([0-9a-f]{16})\.h5")
_PATIENCE_S = 120.0
_real_load = backbones.load


@dataclass
class Figures:
    """What came of a proof: how often it was tried, how often all that must hold held, and where it did not."""

    proof: str
    tried: int = 0
    held: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)
    note: str = ""

    def count(self, what: str, complaints: list[str]) -> None:
        self.tried += 1
        self.held += not complaints
        if complaints:
            self.broken.append(f"{what}: {'; '.join(complaints)}")
            print(f"broken: {self.proof}, {self.broken[-1][:1000]}", file=sys.stderr, flush=True)

    def row(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"| {self.proof}{note} | {self.tried:,} | {self.held:,} | {self.seconds:,.0f} |"


@contextmanager
def timed(figures: Figures) -> Iterator[Figures]:
    started = time.monotonic()
    yield figures
    figures.seconds = time.monotonic() - started


# --- a pass in a process of its own -----------------------------------------------------------------------------------


@dataclass
class Ran:
    """How a pass ended.

    Attributes:
        exit_code: as the command line would end; 70 is a traceback; None where a signal ended the process.
        computed: images that went through the network.
        progress: rows that were reported as safe, in order.
    """

    exit_code: int | None = None
    signal: int = 0
    message: str = ""
    computed: int = 0
    progress: list[int] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)


Tell = Callable[..., None]  # tell(kind, value): an event for the parent


class ForkedWorker:
    """A decoding worker by fork, with the part of `subprocess.Popen` that `featcache.images.workers` uses."""

    def __init__(self, command: list[str], *, pass_fds: list[int], **_: Any) -> None:
        self.returncode: int | None = None
        self._waiting = threading.Lock()  # by the thread it works for, and by the one that ends the pass
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.closerange(3, pass_fds[0])
                os.closerange(pass_fds[0] + 1, 1024)
                serving.serve(pass_fds[0])
            finally:
                os._exit(0)

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        return self._wait(0)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _wait(self, options: int) -> int | None:
        with self._waiting:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, options)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode


class _Subprocess:
    """`subprocess` as `featcache.images.workers` sees it in a forked pass."""

    DEVNULL = subprocess.DEVNULL
    Popen = ForkedWorker


@cache
def _backbone() -> backbones.Backbone:
    return _real_load(SPEC, torch.device("cpu"))


def run_pass(
    manifest: Manifest,
    store_path: Path,
    prepare: Callable[[Tell], None] = lambda tell: None,
    on_progress: Callable[[int], None] = lambda done: None,
    **options: Any,
) -> Ran:
    """`embed` in a fork. `prepare` is called there before it, `on_progress` after each report."""
    return finish(*start_pass(manifest, store_path, prepare, on_progress, **options))


def start_pass(
    manifest: Manifest,
    store_path: Path,
    prepare: Callable[[Tell], None] = lambda tell: None,
    on_progress: Callable[[int], None] = lambda done: None,
    **options: Any,
) -> tuple[int, int]:
    """(process, descriptor of its events)."""
    _backbone()
    here, there = os.pipe()
    pid = os.fork()
    if pid:
        os.close(there)
        return pid, here
    os.close(here)

    def tell(kind: str, value: Any = None) -> None:
        os.write(there, json.dumps([kind, value]).encode() + b"\n")

    code = 70
    try:
        code = _pass(manifest, store_path, prepare, on_progress, tell, options)
    except BaseException:  # noqa: BLE001  # told to the parent, for which it is a broken promise
        tell("message", traceback.format_exc())
    finally:
        os._exit(code)


def _pass(manifest: Manifest, store_path: Path, prepare: Any, on_progress: Any, tell: Tell, options: Any) -> int:
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    backbones.load = lambda *_: _backbone()
    workers.subprocess = _Subprocess  # type: ignore[assignment]
    vectors = Network.vectors

    def counted(network: Network, images: list[Any]) -> Any:
        tell("computed", len(images))
        return vectors(network, images)

    def progress(done: int, total: int) -> None:
        tell("progress", done)
        on_progress(done)

    Network.vectors = counted  # type: ignore[method-assign,assignment]
    prepare(tell)
    try:
        options = {"n_workers": 1, "part_rows": PART_ROWS, **options}
        done = embed(manifest, store_path, SPEC, on_progress=progress, **options)
    except FeatcacheError as error:
        tell("message", f"{type(error).__name__}: {error}")
        return error.exit_code
    tell("counts", {"found": done.counts.found, "embedded": done.counts.embedded, "reused": done.counts.reused})
    return 0


def finish(pid: int, events: int) -> Ran:
    """Waits for a pass and gathers what it told. One that hangs is killed and said to."""
    ran, data, until = Ran(), bytearray(), time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        if select.select([events], [], [], 1.0)[0]:
            received = os.read(events, 1 << 16)
            if not received:
                break
            data += received
    else:
        os.kill(pid, signal.SIGKILL)
        ran.message = "it hung"
    os.close(events)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ran.exit_code, ran.signal = (None, -code) if code < 0 else (code, 0)
    for line in bytes(data).splitlines():
        kind, value = json.loads(line)
        if kind == "computed":
            ran.computed += value
        elif kind in ("progress", "calls"):
            getattr(ran, kind).append(value)
        else:
            setattr(ran, kind, value)
    return ran


# --- what there is, and what must be there ----------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder by its name; folders end in a slash."""
    found = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)) + "/" * path.is_dir(): b"" if path.is_dir() else path.read_bytes()
        for path in found
    }


def put(files: dict[str, bytes], folder: Path) -> Path:
    """The inverse of `tree`, into a folder that is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(data)
    return folder


def is_whole(name: str, data: bytes) -> bool:
    """Whether a file is a finished part: the digest in its name is that of its bytes."""
    match = _PART_NAME.fullmatch(Path(name).name)
    return bool(match) and hashlib.sha256(data).hexdigest().startswith(match[1])


def whole_starts(files: dict[str, bytes]) -> set[int]:
    """The first rows of the whole parts of the plan that holds."""
    return {int(Path(name).name[5:15]) for name in whole_names(files)}


def whole_names(files: dict[str, bytes]) -> list[str]:
    return [name for name, data in files.items() if Path(name).name.startswith("part-") and is_whole(name, data)]


def whole_parts(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.h5")) if is_whole(path.name, path.read_bytes())]


def contents_at_hand(store_path: Path) -> set[str]:
    """The images whose vectors are on disk, in whole parts or in the store. Parts without a plan have no place."""
    held: set[str] = set()
    folder = store_path.with_name(store_path.name + ".partial")
    for path in whole_parts(folder) if (folder / "plan.json").exists() else []:
        part = read_part(path, taps=())
        held |= {digest for digest, origin in zip(part.content_sha256, part.origin, strict=True) if origin != FAILED}
    if store_path.exists():
        with Store.open(store_path) as store:
            held |= set(store.content_sha256)
    return held


@dataclass
class Scene:
    """A pass to be disturbed.

    Attributes:
        manifest: the images asked for.
        before: what lies in the store's folder when the pass begins.
        after: what an uninterrupted pass leaves.
        images: the contents that can be embedded.
        store: the name of the store under the folder.
    """

    name: str
    manifest: Manifest
    before: dict[str, bytes]
    after: dict[str, bytes]
    images: set[str]
    store: str = STORE
    part_rows: int = PART_ROWS

    def recover(self, folder: Path) -> list[str]:
        """Runs the pass again, undisturbed. Returns what is not as it must be."""
        store_path = folder / self.store
        try:
            missing = self.images - contents_at_hand(store_path)
        except FeatcacheError as error:
            return [f"what is there cannot be read: {error}"]
        ran = run_pass(self.manifest, store_path)
        if ran.exit_code != 0:
            return [f"the next pass ended with {ran.exit_code}, signal {ran.signal}: {ran.message.strip()[-300:]}"]
        complaints = []
        if ran.computed != len(missing):
            complaints.append(f"the next pass computed {ran.computed} images, {len(missing)} were missing")
        return complaints + differences(tree(folder), self.after)

    def store_is_old_or_new(self, files: dict[str, bytes]) -> list[str]:
        is_one = files.get(self.store) in (self.before.get(self.store), self.after[self.store])
        return [] if is_one else ["the store is neither the old nor the new"]


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """A line for each file that is not as it must be."""
    both = found.keys() & expected.keys()
    return (
        [f"{name} differs" for name in sorted(both) if found[name] != expected[name]]
        + [f"{name} is left" for name in sorted(found.keys() - both)]
        + [f"{name} is missing" for name in sorted(expected.keys() - both)]
    )


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw_images(root: Path, n: int) -> Manifest:
    """n small images: one of zero bytes, and two with the same bytes in different parts."""
    for i in range(n):
        draw(root / f"{i:04d}.png", i)
    (root / "0005.png").write_bytes(b"")
    shutil.copyfile(root / "0003.png", root / f"{n - 2:04d}.png")
    time.sleep(0.3)  # at rest, when the pass is planned
    return Manifest.read(root)


@cache
def scenes(work: Path, n: int = 26) -> list[Scene]:
    """A new store; one that replaces a smaller one; one that goes on from a stopped pass of another plan."""
    manifest = draw_images(work / "images", n)
    good = {digest_of(path) for path in manifest.paths if path.stat().st_size}
    few = Manifest.read(shutil.copytree(work / "images", work / "few", ignore=shutil.ignore_patterns("001*", "002*")))
    many = Manifest.read(shutil.copytree(work / "images", work / "many", ignore=shutil.ignore_patterns("0000*")))
    time.sleep(0.3)
    befores: dict[str, dict[str, bytes]] = {"new": {}}
    assert run_pass(few, put({}, work / "grown") / STORE).exit_code == 0
    befores["grown"] = tree(work / "grown")
    assert run_pass(many, put({}, work / "stopped") / STORE, on_progress=_killed_at(2 * PART_ROWS)).signal == 9
    befores["stopped"] = tree(work / "stopped")
    made = []
    for name, before in befores.items():
        folder = put(before, work / "reference")
        ran = run_pass(manifest, folder / STORE)
        assert ran.exit_code == 0, ran.message
        made.append(Scene(name, manifest, before, tree(folder), good))
    return made


def scene_in_new_folders(work: Path) -> Scene:
    """A store in folders that are made for it. Call `scenes` first, for the images."""
    manifest, store = Manifest.read(work / "images"), "new/er/s.h5"
    folder = put({}, work / "reference")
    assert run_pass(manifest, folder / store).exit_code == 0
    good = {digest_of(path) for path in manifest.paths if path.stat().st_size}
    return Scene("in new folders", manifest, {}, tree(folder), good, store)


def _killed_at(n_done: int) -> Callable[[int], None]:
    def on_progress(done: int) -> None:
        if done >= n_done:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_progress
