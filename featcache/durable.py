"""Files that are whole or absent, also after a power cut.

Everything featcache keeps goes through here: written under a temporary name in the same folder, fsync, rename, fsync
of the folder. Without the last step one acknowledged file was lost in every one of 24 power cuts that were tried.
Knows nothing of what the bytes mean.
"""

import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from featcache.errors import UsageError, in_our_words

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
    """A table in UTF-8. A text that a spreadsheet would take for a formula gets a quote before it."""
    table = [[cell(value) for value in row] for row in (header, *rows)]
    # Python 3.11 leaves a lone carriage return bare, which ends the line for every reader.
    bare = any("\r" in cell for row in table for cell in row)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL).writerows(table)
    write_text(path, buffer.getvalue())


def cell(value: object) -> str:
    """A value as `write_csv` writes it. No two texts become the same cell: what has a quote there gets another."""
    text = str(value)
    return f"'{text}" if isinstance(value, str) and _FORMULA.match(text) else text


def text_of(written: str) -> str:
    """The text that `cell` has written so."""
    return written[1:] if written.startswith("'") and _FORMULA.match(written) else written


def write_with(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """As `write_bytes`, for content that `fill` writes into an open (unbuffered, read-write) file."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"{path} is no file but a device or a pipe, and cannot be replaced. Give the name of a file.")
    path = Path(os.path.realpath(path))  # a link keeps pointing at the file that is written
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # as `leftovers` looks for it
    with in_our_words("writing", path):
        try:
            with open(temporary, "w+b", buffering=0) as file:
                fill(file)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def leftovers(path: Path) -> list[Path]:
    """Temporary files that killed writers of `path`, or of `path` with something around it, have left beside it."""
    path = Path(os.path.realpath(path))
    name = re.compile(rf"\.\.?{re.escape(path.name)}(\.[a-z.]+)?\.\d+\.tmp")
    return [found for found in path.parent.iterdir() if name.fullmatch(found.name)]


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
