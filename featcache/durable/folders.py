"""Folders that are replaced as a whole: a reader finds the old one or the new one, at every moment.

The new folder is filled beside the old one and takes its place in one step (`renameat2` with RENAME_EXCHANGE). Where a
system has no such step the old one is renamed first, and whoever comes next puts it back if the writer was killed in
between. What lies in the old folder and is not of its writer goes along.
"""

import ctypes
import errno
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from featcache.durable import files
from featcache.durable.locks import lock_for_life
from featcache.durable.outputs import locked
from featcache.errors import StoreLocked, in_our_words

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
_UNKNOWN = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_OLD = ".old"


def write_folder(path: Path, contents: Mapping[str, bytes], owned: Collection[str] = ()) -> None:
    """Puts a folder with these files at `path`, in the place of the one that is there, whole or not at all. To be
    called by whoever holds `path` (`outputs.locked`).

    Args:
        path: the folder.
        contents: name -> bytes of its files.
        owned: names of files that an earlier writer may have put there, which go if they are not among `contents`.
            Everything else that is there stays.

    Raises:
        NoSpace, AccessDenied, InputOutputError: the folder at `path` is as it was.
    """
    owned = {*owned, *contents}
    with in_our_words("writing", path):
        path = files.real(path)
        files.make_folders(path.parent)
        _put_back(path)
        _sweep(path, owned)
        with _filled(path) as (new, descriptor):
            for name, data in contents.items():
                _write(new / name, data, path / name)
            _link_others(path, new, owned)
            files.keep_access(descriptor, path)
            os.fsync(descriptor)
            if old := _take_place(new, path):
                _dissolve(old, path, owned)


def recover(path: Path) -> None:
    """Puts back a folder whose writer was killed between two renames, on a system that cannot exchange names. Does
    nothing where there is a folder, or nothing to put back."""
    place = files.real(path)
    if not os.path.lexists(place) and place.parent.is_dir() and _beside(place, _OLD):
        with suppress(StoreLocked), locked(place):
            _put_back(place)


def sweep_folders(parent: Path) -> None:
    """Removes the temporary folders that killed writers have left in a folder of which everything is ours."""
    for entry in parent.glob(".*.tmp") if parent.is_dir() else ():
        with _unless_alive(entry) as is_dead:
            if is_dead:
                _remove(entry)


def _put_back(path: Path) -> None:
    for old in [] if os.path.lexists(path) else _beside(path, _OLD)[:1]:
        os.rename(old, path)
        files.sync_folder(path.parent)


# --- beside it --------------------------------------------------------------------------------------------------------


@contextmanager
def _filled(path: Path) -> Iterator[tuple[Path, int]]:
    """A new folder under a temporary name, locked while it is filled. If it fails nothing of it is left."""
    new = files.temporary_of(path)
    os.mkdir(new, 0o700 if path.exists() else 0o777)
    descriptor = os.open(new, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        lock_for_life(descriptor)
        yield new, descriptor
    except BaseException:
        if files.is_still(new, descriptor):
            _remove(new)
        raise
    finally:
        os.close(descriptor)


def _write(new: Path, data: bytes, replaced: Path) -> None:
    mode = 0o600 if replaced.exists() else 0o666
    with open(new, "xb", buffering=0, opener=partial(os.open, mode=mode)) as file:
        files.write_all(file, data)
        files.keep_access(file.fileno(), replaced)
        os.fsync(file.fileno())


def _link_others(path: Path, new: Path, owned: Collection[str]) -> None:
    """Files of somebody else have their names in both folders, so that none is missed at any moment; folders, which
    can have only one, follow after the exchange."""
    for entry in _entries(path):
        if entry.name not in owned and entry.is_file(follow_symlinks=False):
            with suppress(OSError):  # a file system without links: it follows as folders do
                os.link(entry.path, new / entry.name, follow_symlinks=False)


def _take_place(new: Path, path: Path) -> Path | None:
    """Gives the new folder its name; returns where the old one is now, None where there was none."""
    old: Path | None = new
    if not os.path.lexists(path):
        os.rename(new, path)
        old = None
    elif not _exchange(new, path):
        old = new.with_suffix(_OLD)
        os.rename(path, old)
        os.rename(new, path)
    files.sync_folder(path.parent)
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False where the system cannot."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    if swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(other))


# --- what is left -----------------------------------------------------------------------------------------------------


def _sweep(path: Path, owned: Collection[str]) -> None:
    """Dissolves the folders that killed writers of `path` have left beside it."""
    for entry in (*files.leftovers(path), *_beside(path, _OLD)):
        with _unless_alive(entry) as is_dead:
            if is_dead:
                _dissolve(entry, path, owned)


@contextmanager
def _unless_alive(entry: Path) -> Iterator[bool]:
    """Whether it is a folder that no living writer has locked; it is locked in the block."""
    if not stat.S_ISDIR(os.lstat(entry).st_mode):
        yield False
        return
    descriptor = os.open(entry, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        yield bool(lock_for_life(descriptor))
    finally:
        os.close(descriptor)


def _dissolve(old: Path, path: Path, owned: Collection[str]) -> None:
    """Removes a folder that has been replaced, or was never finished. What in it is of somebody else goes to `path`; if
    it cannot, it stays where it is, and the folder with it."""
    for entry in _entries(old):
        source, target = old / entry.name, path / entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        if not is_folder and (entry.name in owned or _is_same(source, target)):
            source.unlink()
        elif path.is_dir() and not os.path.lexists(target):
            os.rename(source, target)
    if path.is_dir():
        files.sync_folder(path)
    with suppress(OSError):  # somebody's file is still in it
        old.rmdir()


def _is_same(one: Path, other: Path) -> bool:
    """Whether two names are of one file."""
    return os.path.lexists(other) and os.path.samestat(os.lstat(one), os.lstat(other))


def _remove(folder: Path) -> None:
    """A folder that this process has begun and given up: files, and links to files that have other names too."""
    for entry in _entries(folder):
        with suppress(OSError):
            os.unlink(entry.path)
    with suppress(OSError):
        folder.rmdir()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return list(entries)


def _beside(path: Path, suffix: str) -> list[Path]:
    name = re.compile(rf"\.{re.escape(files.short(path.name))}\.[0-9a-f]{{16}}{re.escape(suffix)}")
    return [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]
