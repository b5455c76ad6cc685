"""Files that are whole or absent, also after a power cut.

Written under a temporary name in the same folder, fsync, rename, fsync of the folder. Without the last step one
acknowledged file was lost in every one of 24 power cuts that were tried. The temporary name cannot be guessed, is never
an existing file or link, and is locked as long as its writer lives: what is not locked was left by a writer that was
killed. What is replaced gives its owner, group and mode to what replaces it. Knows nothing of what the bytes mean.
"""

import csv
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from featcache.durable.locks import lock_for_life
from featcache.durable.regular import kind_of
from featcache.errors import UsageError, in_our_words

_LONG = 200  # bytes of a name, from which its temporary names have its digest instead
_ACL = "system.posix_acl_access"
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet computes, with or without quotes before it


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Puts `data` at `path`, replacing what is there, or leaves what is there untouched.

    Raises:
        NoSpace, AccessDenied, InputOutputError: nothing changed at `path`, the temporary file is removed.
    """
    write_with(path, lambda file: write_all(file, data))


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8; file names that are not UTF-8 keep their bytes (surrogateescape)."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table, as `csv_bytes` has it."""
    write_bytes(path, csv_bytes(header, rows))


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table in UTF-8. A text that a spreadsheet would take for a formula gets a quote before it."""
    table = [[cell(value) for value in row] for row in (header, *rows)]
    # Python 3.11 leaves a lone carriage return bare, which ends the line for every reader.
    bare = any("\r" in cell for row in table for cell in row)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL).writerows(table)
    return buffer.getvalue().encode("utf-8", "surrogateescape")


def cell(value: object) -> str:
    """A value as `write_csv` writes it. No two texts become the same cell: what has a quote there gets another."""
    text = str(value)
    return f"'{text}" if isinstance(value, str) and _FORMULA.match(text) else text


def text_of(written: str) -> str:
    """The text that `cell` has written so."""
    return written[1:] if written.startswith("'") and _FORMULA.match(written) else written


def write_with(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """As `write_bytes`, for content that `fill` writes into an open (unbuffered, read-write) file."""
    with in_our_words("writing", path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UsageError(f"{path} is {kind_of(path)}, which cannot be replaced. Give the name of a file.")
        path = real(path)  # a link keeps pointing at the file that is written
        temporary, file = _created(path)
        try:
            with file:
                fill(file)
                keep_access(file.fileno(), path)
                os.fsync(file.fileno())
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def real(path: Path) -> Path:
    """Where a path leads, once links are followed: what is written, locked and cleared is there."""
    return Path(os.path.realpath(path))


# --- temporary names --------------------------------------------------------------------------------------------------


def temporary_of(path: Path) -> Path:
    """A new name beside `path` that nobody can have waited at."""
    return path.with_name(f".{short(path.name)}.{secrets.token_hex(8)}.tmp")


def short(name: str) -> str:
    """A name to which something can be added: itself, or its digest where it is nearly as long as names may be."""
    return name if len(os.fsencode(name)) <= _LONG else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]


def _created(path: Path) -> tuple[Path, BinaryIO]:
    """A new file under a temporary name, open and locked; nobody else may read it before it has its mode."""
    opener = partial(_opened, mode=0o600 if path.exists() else 0o666)
    while True:
        temporary = temporary_of(path)
        file = open(temporary, "x+b", buffering=0, opener=opener)  # noqa: SIM115  # the caller closes it
        if lock_for_life(file.fileno()) is not False and is_still(temporary, file.fileno()):
            return temporary, file
        file.close()  # somebody took it for a leftover before it was locked


def _opened(path: str, flags: int, mode: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), mode)


def is_still(path: Path, descriptor: int) -> bool:
    """Whether an open file or folder is the one that has this name."""
    try:
        named, opened = os.lstat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def leftovers(path: Path) -> list[Path]:
    """Temporary files and folders of writers of `path`, or of `path` with something around it."""
    path = real(path)
    name = re.compile(rf"\.\.?{re.escape(short(path.name))}(\.[a-z.]+)?\.[0-9a-f]{{1,16}}\.tmp")
    return [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]


def sweep(path: Path) -> None:
    """Removes the temporary files that killed writers of `path` have left: those that no living writer has locked.
    Links and folders at such names are left alone."""
    with suppress(OSError):
        for entry in leftovers(path):
            if stat.S_ISREG(os.lstat(entry).st_mode):
                _remove_if_dead(entry)


def _remove_if_dead(entry: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(entry, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if lock_for_life(descriptor) and is_still(entry, descriptor):
                entry.unlink()
        finally:
            os.close(descriptor)


# --- owner, group and mode --------------------------------------------------------------------------------------------


def keep_access(descriptor: int, replaced: Path) -> None:
    """Gives a new file or folder the owner, group, mode and access list of what it replaces, as far as this user may;
    where nothing is replaced the umask has decided. Where the group cannot be kept, it gets no more than others."""
    try:
        old = os.stat(replaced)
    except FileNotFoundError:
        return
    new = os.fstat(descriptor)
    for owner in (old.st_uid, -1):
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            with suppress(OSError):
                os.fchown(descriptor, owner, old.st_gid)
        new = os.fstat(descriptor)
    mode = stat.S_IMODE(old.st_mode) & (0o7777 if stat.S_ISDIR(old.st_mode) else 0o777)
    if new.st_gid != old.st_gid:
        mode &= ~0o070 | (mode & 0o007) << 3
    with suppress(OSError):  # a file system without modes
        os.fchmod(descriptor, mode)
    if hasattr(os, "getxattr"):
        with suppress(OSError):  # it has none
            os.setxattr(descriptor, _ACL, os.getxattr(replaced, _ACL))


# --- bytes and folders ------------------------------------------------------------------------------------------------


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """`write` until everything is written: an unbuffered write may take a part only, near a full disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


class Whole(io.RawIOBase):
    """An unbuffered file for libraries that take a `write` for done: each is whole or raises, and after the first that
    raises nothing more is written, so that they may close what they have begun in peace."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._is_over = raw, False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if not self._is_over:
            try:
                write_all(self._raw, view)
            except OSError:
                self._is_over = True
                raise
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Path) -> None:
    """Makes a folder and those above it that are missing, each of which survives a power cut."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
