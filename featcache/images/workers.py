"""Decoding in processes of their own: an image that crashes or hangs a decoder takes its worker with it, not the pass.

A worker is a plain Python process that reads a file once, hashes those bytes, and decodes those bytes if the vector of
that digest is not known: once, for every network and every augmented view that is made of it. It imports Pillow and
numpy, never torch. Processes are not made by `multiprocessing`, which would run the caller's script a second time. A
pair of sockets joins both ends: lines of JSON, and pixels as they are.

Whatever a file holds, a worker has a time for it, and memory in proportion to the file and to the pixels its header
states: foreign bytes are parsed nowhere else.
"""

import json
import os
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import ImageError, InputOutputError
from featcache.identity import Json
from featcache.images.depths import Look
from featcache.images.headers import Header
from featcache.specs import AugmentedCopies, DecodeSpec, TransformSpec
from featcache.specs.bounds import MOST_SECONDS, check_number

Array = np.ndarray[Any, Any]

TIMEOUT_S = 60.0  # an 89-megapixel PNG is decoded in 0.8 s if gray, in 3 s if RGB (two cores)
_START_TIMEOUT_S = 120.0
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
    "from featcache.images.serving import serve\n"
    "serve(int(sys.argv[2]))"
)


@dataclass(frozen=True)
class Prepared:
    """An image on its way to the network: its pixels, or that its vector is known, or why there are none.

    Attributes:
        digest: sha256 of the file's bytes; empty where they could not be read.
        pixels: for each transform (1 + K, h, w) or (1 + K, h, w, 3) uint8: the image, and its K views.
        failure: (code, reason).
    """

    digest: str = ""
    pixels: Sequence[Array] | None = None
    failure: tuple[str, str] | None = None


def check_timeout(timeout_s: float) -> None:
    """Raises UsageError for what is no time to wait for an image."""
    check_number("timeout_s", timeout_s, 0, MOST_SECONDS, above=True)


class Decoders:
    """Workers for the threads of a pass: each call takes an idle one, or starts one. A context manager."""

    def __init__(
        self,
        transforms: Sequence[TransformSpec],
        decode: DecodeSpec,
        augmentations: AugmentedCopies | None = None,
        timeout_s: float = TIMEOUT_S,
        is_whole: bool = False,
    ) -> None:
        """Args:
        transforms: transforms of the networks.
        decode: how files become pixels.
        augmentations: augmented copies made of each image.
        timeout_s: what one image may take.
        is_whole: resize the images, and crop nothing off.

        Raises:
            UsageError: no such time.
        """
        check_timeout(timeout_s)
        self._config = {
            "transforms": [asdict(transform) for transform in transforms],
            "decode": asdict(decode),
            "augmentations": augmentations.identity() if augmentations else None,
            "is_whole": is_whole,
        }
        self._timeout_s = timeout_s
        self._idle: queue.LifoQueue[_Decoder] = queue.LifoQueue()
        self._all: list[_Decoder] = []
        self._closed = False

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the workers, also one in the middle of an image: whoever waits for it gets `crashed`."""
        self._closed = True
        for worker in self._all:
            worker.kill()

    @property
    def pids(self) -> list[int]:
        """The processes there are."""
        return [worker.pid for worker in self._all if worker.is_alive]

    @property
    def memory_bytes(self) -> int:
        """What the processes have taken at most, together; 0 where the system does not say. (`getrusage` would count
        what this process held when it started them.)"""
        total = 0
        for pid in self.pids:
            with suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
                total += sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        return total

    def prepare(self, path: Path, expected: Sequence[int], known_digests: Container[str]) -> Prepared:
        """Reads, hashes and decodes one file; does not decode what is known by its digest.

        Args:
            path: the file.
            expected: its stamp when the pass was planned; another one is a failure.
            known_digests: digests whose vectors are at hand.
        """
        worker = self._take()
        try:
            return worker.prepare(path, expected, known_digests)
        finally:
            self._idle.put(worker)

    def header(self, path: Path) -> Header:
        """What a file says of itself; no pixel is decoded.

        Raises:
            ImageError: as `headers.read`, `timeout` or `crashed`.
        """
        return Header(**self._ask("header", path))

    def look(self, path: Path) -> tuple[str, Look]:
        """The sha256 of a file's bytes, and what its pixels are.

        Raises:
            ImageError: as `images.read` and `images.look`, `timeout` or `crashed`.
        """
        digest, fields = self._ask("look", path)
        return str(digest), Look(**fields)

    def digest(self, path: Path) -> str:
        """The sha256 of a file's bytes.

        Raises:
            ImageError: as `images.read`, `timeout` or `crashed`.
        """
        return str(self._ask("digest", path))

    def _ask(self, question: str, path: Path) -> Json:
        worker = self._take()
        try:
            return worker.ask(question, path)
        finally:
            self._idle.put(worker)

    def _take(self) -> "_Decoder":
        try:
            worker = self._idle.get_nowait()
            if worker.is_alive or self._closed:
                return worker
        except queue.Empty:
            pass
        worker = _Decoder(self._config, self._timeout_s)
        self._all.append(worker)
        if self._closed:  # `__exit__` may have gone through them while this one started
            worker.kill()
        return worker


class _Decoder:
    """One worker process, seen from the pass."""

    def __init__(self, config: Json, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, with our own line
                [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders written in C speak there, about what the failure says anyway
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the pass, which decides what becomes of its workers
            )
        self._channel = _Channel(here)
        try:
            self._channel.send(config)
            self._channel.line(time.monotonic() + _START_TIMEOUT_S)
        except (OSError, EOFError) as error:
            self.kill()
            code = self._process.returncode
            raise InputOutputError(
                f"a process for decoding images could not be started (it ended with {code})."
            ) from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._channel.close()

    def prepare(self, path: Path, expected: Sequence[int], known_digests: Container[str]) -> Prepared:
        until = time.monotonic() + self._timeout_s
        try:
            with self._alive():
                self._send("prepare", path, list(expected))
                answer = self._channel.line(until)
                if "digest" not in answer:
                    return _without_pixels(answer)
                digest = answer["digest"]
                is_known = digest in known_digests
                self._channel.send(not is_known)
                return Prepared(digest) if is_known else self._pixels(digest, until)
        except ImageError as error:
            return Prepared(failure=(error.code, str(error)))

    def ask(self, question: str, path: Path) -> Json:
        """The answer of `_ANSWERS`, or the ImageError that it raised there."""
        with self._alive():
            self._send(question, path, None)
            answer = self._channel.line(time.monotonic() + self._timeout_s)
        if failure := "answer" not in answer and _without_pixels(answer).failure:
            raise ImageError(*failure)
        return answer["answer"]

    def _send(self, question: str, path: Path, expected: list[int] | None) -> None:
        self._channel.send({"do": question, "path": os.fsencode(path).decode("latin-1"), "expected": expected})

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Ends a worker that takes too long.

        Raises:
            ImageError: `timeout` or `crashed`.
        """
        try:
            yield
        except TimeoutError as error:
            self.kill()
            raise ImageError("timeout", f"decoding took longer than {self._timeout_s:g} s (see timeout_s)") from error
        except (OSError, EOFError) as error:
            self.kill()
            raise ImageError("crashed", f"its decoder died ({_manner(self._process.returncode)})") from error

    def _pixels(self, digest: str, until: float) -> Prepared:
        line = self._channel.line(until)
        if "shapes" not in line:
            return _without_pixels(line, digest)
        pixels = [np.empty(shape, dtype=np.uint8) for shape in line["shapes"]]
        for array in pixels:
            self._channel.fill(array.reshape(-1).data, until)
        return Prepared(digest, pixels)


def _without_pixels(answer: Json, digest: str = "") -> Prepared:
    if "bug" in answer:
        raise RuntimeError(f"a decoding process failed:\n{answer['bug']}")
    code, reason = answer["failure"]
    return Prepared(digest, failure=(code, reason))


def _manner(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit {returncode}"


class _Channel:
    """Lines of JSON and bare bytes over a socket, each receipt with a deadline on the monotonic clock."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._ahead = bytearray()  # received behind the end of a line

    def close(self) -> None:
        self._end.close()

    def send(self, value: Json) -> None:
        self._end.sendall(json.dumps(value).encode("ascii") + b"\n")

    def line(self, until: float) -> Json:
        while (end := self._ahead.find(b"\n")) < 0:
            self._end.settimeout(max(0.001, until - time.monotonic()))
            received = self._end.recv(65_536)
            if not received:
                raise EOFError
            self._ahead += received
        line = bytes(self._ahead[:end])
        del self._ahead[: end + 1]
        return json.loads(line)

    def fill(self, target: memoryview, until: float) -> None:
        n = min(len(self._ahead), len(target))
        target[:n] = self._ahead[:n]
        del self._ahead[:n]
        while n < len(target):
            self._end.settimeout(max(0.001, until - time.monotonic()))
            received = self._end.recv_into(target[n:])
            if not received:
                raise EOFError
            n += received
