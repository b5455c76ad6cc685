"""Stands between a pass and its files: every call on a path of one folder goes through a hook.

Installed in a fork, it replaces the functions of `os` and `fcntl` and `open` itself, by which all of featcache's
writing is done. Compared once with `strace -f -y -e trace=%file,%desc` of the same pass (243 calls), filtered to the
folder: whatever changes something (openat with O_CREAT, write, ftruncate, fsync, rename, unlink, mkdir, rmdir, the lock
by fcntl) is seen here exactly as often. Not seen are lstat by `realpath`, the lseek, fstat and ioctl that `open` adds,
and what HDF5 reads of parts and stores by itself.
"""

import builtins
import fcntl
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.durable import folders

CHANGES = (
    "create", "write", "truncate", "fsync", "replace", "rename", "link", "exchange", "unlink", "mkdir", "rmdir", "lock",
)  # fmt: skip
LOOKS = ("open", "read", "stat", "list", "close")


@dataclass
class Call:
    """One call on a file of the folder.

    Attributes:
        path, to: names relative to the folder ("." is itself); `to` is the target of a rename.
        data, at: what is written where; `at` is the new size of a truncate.
        half: does the first half of a write.
    """

    kind: str
    path: str
    to: str = ""
    data: bytes = b""
    at: int = 0
    half: Callable[[], Any] | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.path}{' to ' + self.to if self.to else ''}"


Hook = Callable[[Call, Callable[[], Any]], Any]  # (call, what does it) -> its result


class Tap:
    """The replacements. There is no way back: it lives in a fork."""

    def __init__(self, folder: Path, hook: Hook) -> None:
        self._folder = os.path.realpath(folder)
        self.hook = hook

    def install(self) -> None:
        self._real_open, self._readlink = builtins.open, os.readlink
        builtins.open = io.open = self._open  # type: ignore[assignment]
        for name in ("unlink", "mkdir", "rmdir"):
            self._replace(name, name)
        for name, kind in {"remove": "unlink", "stat": "stat", "statvfs": "stat"}.items():
            self._replace(name, kind)
        for name in ("listdir", "scandir"):
            self._replace(name, "list")
        for name in ("replace", "rename", "link"):
            self._replace_two(os, name, name)
        self._replace_two(folders, "_exchange", "exchange")
        for module, name, kind in ((os, "fsync", "fsync"), (os, "close", "close"), (fcntl, "lockf", "lock")):
            self._replace_descriptor(module, name, kind)
        os_open = os.open
        os.open = lambda path, *rest, **more: self._through("open", path, lambda: os_open(path, *rest, **more))

    def name(self, path: Any) -> str | None:
        """A path relative to the folder, or None if it is elsewhere."""
        if isinstance(path, int) or not isinstance(path, str | os.PathLike):
            return None
        absolute = os.path.abspath(os.fspath(path))
        inside = absolute == self._folder or absolute.startswith(self._folder + "/")
        return os.path.relpath(absolute, self._folder) if inside else None

    def of_descriptor(self, file: Any) -> str | None:
        descriptor = file if isinstance(file, int) else file.fileno()
        try:
            return self.name(self._readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)"))
        except OSError:
            return None

    def _through(self, kind: str, path: Any, run: Callable[[], Any]) -> Any:
        name = self.name(path)
        return run() if name is None else self.hook(Call(kind, name), run)

    def _replace(self, name: str, kind: str) -> None:
        real = getattr(os, name)
        setattr(os, name, lambda path=".", *rest, **more: self._through(kind, path, lambda: real(path, *rest, **more)))

    def _replace_two(self, module: Any, function: str, kind: str) -> None:
        real = getattr(module, function)

        def watched(source: Any, target: Any, **more: Any) -> Any:
            name, to = self.name(source), self.name(target)
            run = lambda: real(source, target, **more)  # noqa: E731
            return run() if name is None or to is None else self.hook(Call(kind, name, to), run)

        setattr(module, function, watched)

    def _replace_descriptor(self, module: Any, function: str, kind: str) -> None:
        real = getattr(module, function)

        def watched(file: Any, *rest: Any) -> Any:
            name = self.of_descriptor(file)
            return real(file, *rest) if name is None else self.hook(Call(kind, name), lambda: real(file, *rest))

        setattr(module, function, watched)

    def _open(
        self, path: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *rest: Any, **more: Any
    ) -> Any:
        name = self.name(path)
        if name is None:
            return self._real_open(path, mode, buffering, encoding, *rest, **more)
        raw = _File(os.fspath(path), mode.replace("b", "").replace("t", ""), name, self, more.get("opener"))
        if buffering == 0:
            return raw
        assert mode in ("r", "rb"), f"{mode}: featcache writes unbuffered"
        buffered = io.BufferedReader(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, *rest)


class _File(io.FileIO):
    def __init__(self, path: str, mode: str, name: str, tap: Tap, opener: Any = None) -> None:
        self._mode, self._name, self._tap = mode, name, tap
        self._is_open = False
        kind = "open" if mode == "r" else "create"
        tap.hook(Call(kind, name, data=mode.encode()), lambda: io.FileIO.__init__(self, path, mode, opener=opener))
        self._is_open = True

    def write(self, data: Any) -> Any:
        data = bytes(data)
        at = os.fstat(self.fileno()).st_size if "a" in self._mode else self.tell()
        half = lambda: io.FileIO.write(self, data[: len(data) // 2])  # noqa: E731
        return self._tap.hook(
            Call("write", self._name, data=data, at=at, half=half), lambda: io.FileIO.write(self, data)
        )

    def truncate(self, size: int | None = None) -> Any:
        at = self.tell() if size is None else size
        return self._tap.hook(Call("truncate", self._name, at=at), lambda: io.FileIO.truncate(self, at))

    def read(self, size: int = -1) -> Any:
        return self._tap.hook(Call("read", self._name), lambda: io.FileIO.read(self, size))

    def readall(self) -> Any:
        return self._tap.hook(Call("read", self._name), lambda: io.FileIO.readall(self))

    def readinto(self, buffer: Any) -> Any:
        return self._tap.hook(Call("read", self._name), lambda: io.FileIO.readinto(self, buffer))

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            try:
                self._tap.hook(Call("close", self._name), lambda: None)
            finally:
                io.FileIO.close(self)
