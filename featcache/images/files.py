"""An image file as bytes: read once, if it is a regular file and the one that was planned. Never waits for a FIFO."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from featcache.errors import ImageError

Stamp = tuple[int, int, int, int]

MAX_BYTES = 1 << 30  # of a file, before it is read
_CHUNK_BYTES = 1 << 20


def stamp(status: os.stat_result) -> Stamp:
    """What tells a file from a changed one: size, time of the last change of its bytes and of its inode, inode."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def read(path: Path, expected: Sequence[int] | None = None) -> bytes:
    """The bytes of an image file, read once: what is hashed is what is decoded. A FIFO or device is never opened.

    Args:
        path: the file.
        expected: its `stamp` when the pass was planned; another one now is a failure.

    Raises:
        ImageError: `missing`, `unreadable`, `not-a-file`, `too-large`, or `changed` (since the plan, or while reading).
    """
    with opened(path) as file:
        status = os.fstat(file.fileno())
        _check_unchanged(expected, status)
        if status.st_size > MAX_BYTES:
            raise ImageError("too-large", f"{status.st_size:,} bytes, more than {MAX_BYTES:,}")
        data = file.read(status.st_size + 1)  # one more, to notice a file that grows
        _check_unchanged((len(data), *stamp(status)[1:]), os.fstat(file.fileno()))
        return data


def size(path: Path) -> int:
    """The bytes of a regular file. Raises ImageError as `opened` does."""
    with opened(path) as file:
        return os.fstat(file.fileno()).st_size


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a regular file, some at a time. Raises ImageError as `opened` does."""
    with opened(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading. A FIFO or device is never opened.

    Raises:
        ImageError: `missing`, `unreadable` or `not-a-file`; also for what the block meets while it reads.
    """
    try:
        _check_regular(os.stat(path))
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO put there since cannot block
        with os.fdopen(descriptor, "rb") as file:
            _check_regular(os.fstat(descriptor))
            yield file
    except FileNotFoundError as error:
        raise ImageError("missing", "there is no such file, or no longer") from error
    except OSError as error:
        raise ImageError("unreadable", (error.strerror or str(error)).lower()) from error


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not-a-file", "not a regular file")


def _check_unchanged(expected: Sequence[int] | None, status: os.stat_result) -> None:
    if expected is not None and tuple(expected) != stamp(status):
        raise ImageError("changed", "changed since the pass was planned; run again")
