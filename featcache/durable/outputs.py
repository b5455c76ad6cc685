"""May I write here? One writer at a time for each output, and nothing of somebody else is written over.

The lock is a POSIX lock on `.NAME.lock` beside the real file, whatever links lead there: it dies with its process, and
a forked worker that outlives the process does not keep it. Its last holder removes it.
"""

import errno
import os
import platform
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from featcache.durable import files, locks
from featcache.durable.regular import kind_of
from featcache.errors import FeatcacheError, StoreLocked, UsageError, from_os_error, in_our_words

_PATIENCE_S = 0.2  # to look at a lock is to hold it for microseconds
_held_here: set[Path] = set()  # by this process: POSIX locks do not exclude a second thread


def claim(path: Path, is_ours: Callable[[Path], bool], noun: str) -> None:
    """Whether a file may be written at a path: nothing is there, nothing is in it, or it is an earlier one of its kind.

    Args:
        path: where; links are followed.
        is_ours: whether a regular file that is not empty is an earlier output of the same kind.
        noun: what it would be: "export", "bundle".

    Raises:
        UsageError: something else is there; with what it is.
    """
    with in_our_words("reading", path):
        if not path.exists():
            return
        kind = kind_of(path)
        if not path.is_file():
            raise UsageError(f"{path} is {kind}. Give the name of a file.")
        if kind != "an empty file" and not _judged(is_ours, path):
            raise UsageError(f"{path} is there: {kind}, and no earlier {noun}. Write to another path.")


def _judged(is_ours: Callable[[Path], bool], path: Path) -> bool:
    try:
        return is_ours(path)
    except FeatcacheError:  # it cannot even be read as one
        return False


@contextmanager
def output(path: Path, is_ours: Callable[[Path], bool], noun: str) -> Iterator[None]:
    """Holds a path for this process, once it may be written. Raises what `claim` and `locked` do."""
    claim(path, is_ours, noun)  # before a lock is there, or a folder for it
    with locked(path):
        claim(path, is_ours, noun)
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps everybody else from writing at a path, and removes the temporary files that killed writers have left there.

    Raises:
        StoreLocked: another process, or another thread, is writing there.
        AccessDenied, NoSpace, InputOutputError: the lock cannot be had.
    """
    with in_our_words("writing", path):
        place = files.real(path)
        missing = [folder for folder in place.parents if not folder.exists()]
    if place in _held_here:
        raise StoreLocked(f"{path} is being written by this process already.")
    _held_here.add(place)
    try:
        with in_our_words("writing", path):
            lock = _acquired(place, path)
        try:
            files.sweep(place)
            yield
        finally:
            _lock_path(place).unlink(missing_ok=True)
            lock.close()
    finally:
        _held_here.discard(place)
        for folder in missing:  # made for an output that did not come to be
            with suppress(OSError):
                folder.rmdir()


def writer_of(path: Path) -> str:
    """Who is writing at a path; empty if nobody is. Never disturbs a writer.

    Raises:
        FeatcacheError: the system cannot say, as where a disk fails.
    """
    place = files.real(path)
    lock_path = _lock_path(place)
    if place in _held_here:  # to open and close the lock would free it
        return _here()
    try:
        with open(lock_path, "rb", opener=_opened) as lock:
            is_written = locks.is_locked(lock.fileno())
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise from_os_error(error, "looking for the writer of", path) from error
    return _holder(lock_path) if is_written else ""


def _lock_path(place: Path) -> Path:
    return place.with_name(f".{files.short(place.name)}.lock")


def _acquired(place: Path, path: Path) -> BinaryIO:
    """The lock file, open, locked, and with the name of its holder in it; closing it frees the lock."""
    until = time.monotonic() + _PATIENCE_S
    lock_path = _lock_path(place)
    while True:
        gone = None
        try:
            files.make_folders(place.parent)
            lock = open(lock_path, "a+b", buffering=0, opener=_opened)  # noqa: SIM115  # the caller closes it
            if _try(lock, lock_path):
                lock.truncate(0)
                lock.write(f"{_here()} since {time.strftime('%H:%M')}".encode())
                return lock
            lock.close()
        except FileNotFoundError as error:  # a writer that ended just now took the folder away
            gone = error
        if time.monotonic() > until:
            if gone is not None:
                raise gone
            raise StoreLocked(
                f"{path} is being written by {_holder(lock_path)}. Wait for it, or write to another path."
            )
        time.sleep(_PATIENCE_S / 10)


def _opened(path: str, flags: int) -> int:
    """Never through a link, and never waiting for a pipe."""
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a link, and a lock is a file. Remove it.") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is {kind_of(Path(path))}, and a lock is a file. Remove it.")
    return descriptor


def _try(lock: BinaryIO, lock_path: Path) -> bool:
    """Whether the lock could be had, and is still the file of that name: its last writer removes it when it is done."""
    return locks.lock_file(lock.fileno()) and files.is_still(lock_path, lock.fileno())


def _here() -> str:
    return f"pid {os.getpid()} on {platform.node()}"


def _holder(lock_path: Path) -> str:
    try:
        with open(lock_path, "rb", opener=_opened) as lock:
            return lock.read(200).decode("ascii", "replace") or "another process"
    except OSError:
        return "another process"
