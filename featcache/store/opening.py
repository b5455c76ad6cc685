"""An HDF5 file of ours, held open for reading: checked before a value is read, and its damage told with its rows.

It may be handed to forked or spawned workers, for HDF5's handles do not survive a fork: all of it is pickled but the
open file, and each process opens the file itself when it first reads. Knows nothing of what the arrays mean.
"""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from featcache.errors import InputsChanged, UsageError
from featcache.identity import Json
from featcache.store.schema import Array, get_text, texts
from featcache.store.validation import STORE, Kind, check, open_file, reading


class OpenFile:
    """A file of ours, open for reading. Closing twice is harmless, and reading again opens it again.

    Attributes:
        path: where it is.
        kind: what it is.
    """

    def __init__(self, path: Path, kind: Kind = STORE) -> None:
        """Opens nothing yet."""
        self.path, self.kind = path, kind
        self._file: h5py.File | None = None
        self._pid = 0
        self._which: tuple[int, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_pid": 0}

    def close(self) -> None:
        """Closes the file, if this process has opened it."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._file = None

    @property
    def file(self) -> h5py.File:
        """The file, as this process opened it.

        Raises:
            StoreNotFound, UnknownFormat, CorruptStore, UntrustedFile, AccessDenied: it cannot be opened.
            UsageError: it is a folder.
            InputsChanged: another file has been put there since it was first opened.
        """
        if self._file is None or self._pid != os.getpid():
            _refuse_folder(self.path, self.kind)
            file = open_file(self.path, self.kind)
            try:
                status = os.fstat(file.id.get_vfd_handle())
                key = (status.st_ino, status.st_size, status.st_mtime_ns)
                if self._which not in (None, key):
                    raise InputsChanged(f"{self.path} was replaced since it was opened. Open it again.")
                check(self.path, file, self.kind)
            except BaseException:
                file.close()
                raise
            self._file, self._pid, self._which = file, os.getpid(), key
        return self._file

    def raw(self, name: str) -> Iterator[tuple[slice, Callable[[], Any]]]:
        """An array as it is stored, chunk by chunk: (rows, a call that reads them)."""
        dataset = self.file[name]
        step = dataset.chunks[0] if dataset.chunks else max(1, len(dataset))
        for start in range(0, len(dataset), step):
            rows = slice(start, min(start + step, len(dataset)))
            yield rows, partial(dataset.__getitem__, rows)

    def chunks(self, name: str) -> Iterator[Array]:
        """The chunks of an array.

        Raises:
            CorruptStore: naming the rows of the damage.
        """
        for rows, read in self.raw(name):
            with reading(self.path, f"{name}, rows {rows.start} to {rows.stop - 1},", self.kind):
                values = read()
            yield values

    def texts(self, name: str) -> list[str]:
        """An array of texts. Raises what `chunks` does."""
        return [text for rows in self.chunks(name) for text in texts(rows)]

    def json(self, name: str, kind: type) -> Json:
        """The JSON of an attribute. NaN and infinity, which JSON does not have, are refused.

        Raises:
            ValueError: it is none, or of another kind.
        """

        def refuse(constant: str) -> None:
            raise ValueError(f"the attribute {name} has {constant}")

        try:
            value = json.loads(get_text(self.file, name), parse_constant=refuse)
        except RecursionError as error:
            raise ValueError(f"the attribute {name} is nested without end") from error
        if not isinstance(value, kind):
            raise ValueError(f"the attribute {name} is no {kind.__name__}")
        return value


def _refuse_folder(path: Path, kind: Kind) -> None:
    """Says what a folder is, where a file is expected.

    Raises:
        UsageError: it is one.
    """
    if path.is_dir():
        description = "the folder of a Run" if (path / "run.json").is_file() else "a folder"
        raise UsageError(f"{path} is {description}; {kind.explained}")
