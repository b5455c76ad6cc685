"""Only regular files are read: a pipe or a device in the place of a file is named, and never waited for."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from featcache.errors import UsageError

_MAGICS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"), (b"PK\x03\x04", "a zip archive"), (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"), (b"PAR1", "a Parquet file"), (b"%PDF", "a PDF file"),
    (b"\x1f\x8b", "a gzip file"),
)  # fmt: skip
_SPECIAL = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)  # fmt: skip
_LOOKED_AT = 4096


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading. A pipe put there between the two looks is not waited for, either.

    Raises:
        UsageError: it is a folder, a pipe, a socket or a device.
        OSError: it cannot be opened.
    """
    _check_regular(path, os.stat(path))
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  # the caller closes it
    try:
        _check_regular(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file. Raises what `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


def kind_of(path: Path) -> str:
    """What is at a path, for a message: `a folder`, `a text file`, `a PNG image`."""
    status = os.stat(path)
    if special := _special(status):
        return special
    if not status.st_size:
        return "an empty file"
    with open_regular(path) as file:
        start = file.read(_LOOKED_AT)
    return next((name for magic, name in _MAGICS if start.startswith(magic)), _text_or_other(start))


def _text_or_other(start: bytes) -> str:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else a character that is cut
            return "a file of another format"
        text = ""
    return "a file of another format" if "\0" in text else "a text file"


def _special(status: os.stat_result) -> str | None:
    return next((name for is_such, name in _SPECIAL if is_such(status.st_mode)), None)


def _check_regular(path: Path, status: os.stat_result) -> None:
    if special := _special(status):
        raise UsageError(f"{path} is {special}; a file is expected.")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
