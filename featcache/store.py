"""The HDF5 format: one published, read-only file of vectors and their names. The only user of h5py.

`FORMAT.md` beside this file states the format; the names below are that page in code. A store is never appended to:
a pass leaves part files, which are packed into a new file that replaces the old one by a rename. Knows nothing of
images or networks: an identity is JSON that it keeps and compares. Opening costs milliseconds; vectors are read when
asked for.
"""

import fcntl
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import h5py
import numpy as np

from featcache import durable
from featcache.errors import (
    CorruptStore,
    IdentityMismatch,
    StoreLocked,
    StoreNotFound,
    UnknownFormat,
    UsageError,
    from_os_error,
)
from featcache.provenance import Json, canonical_json, difference, digest_bytes, digest_json

Array = np.ndarray[Any, Any]

FORMAT = "featcache.store"
PART_FORMAT = "featcache.part"
VERSION = (1, 0)  # (major, minor): a reader refuses another major, ignores what a later minor added
POOLED = "pooled"

EMBEDDED, REUSED, FAILED = 0, 1, 2  # the origin of a row of a part

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_PART_NAME = re.compile(r"part-(\d{10})-([0-9a-f]{16})\.h5")
_CHUNK_BYTES = 1 << 18  # aim of a chunk; its rows stay within the two bounds below
_CHUNK_ROWS = (64, 256)


# --- reading ----------------------------------------------------------------------------------------------------------


class Store:
    """A published store, open for reading. A context manager; closing twice is harmless.

    Attributes:
        path: where it is.
        identity: everything that changes a vector, as nested dictionaries.
        environment: library versions and device of the pass that published it; informative.
        failures: image_id -> (code, reason) of the images that could not be embedded.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._file = file
        self.identity: Json = json.loads(file.attrs["identity"])
        self.environment: Json = json.loads(file.attrs["environment"])
        self._image_ids = _read_text(file["image_id"])
        failed = file["failures"]
        entries = zip(_read_text(failed["code"]), _read_text(failed["reason"]), strict=True)
        self.failures = dict(zip(_read_text(failed["image_id"]), entries, strict=True))

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Opens a store.

        Raises:
            StoreNotFound, UnknownFormat, CorruptStore, AccessDenied: with the way out.
        """
        path = Path(path)
        file = _open_file(path)
        try:
            with _reading(path, "its head"):
                _check_format(path, file)
                store = cls(path, file)
                store._check_lengths()
                return store
        except BaseException:
            file.close()
            raise

    def __len__(self) -> int:
        return len(self._image_ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    @property
    def image_ids(self) -> list[str]:
        """The n names, in the order of every other array."""
        return list(self._image_ids)

    @property
    def identity_sha256(self) -> str:
        """The digest under which two stores hold comparable vectors."""
        return digest_json(self.identity)

    @property
    def taps(self) -> list[str]:
        """The feature arrays there are; `pooled` is always one."""
        return sorted(self._file["features"])

    def width(self, tap: str = POOLED) -> int:
        """d, the number of features of a row."""
        return int(self._tap(tap).shape[1])

    def features(self, tap: str = POOLED, rows: slice | None = None) -> Array:
        """(n, d) vectors, or those of a slice of the rows.

        Raises:
            CorruptStore: a checksum does not match, or a row was never written (NaN).
            UsageError: no such tap.
        """
        dataset = self._tap(tap)
        with _reading(self.path, f"features/{tap}"):
            values = np.asarray(dataset[rows if rows is not None else slice(None)])
        if not np.isfinite(values).all():
            first = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0]) + (rows.start or 0 if rows else 0)
            raise CorruptStore(f"{self.path}: features/{tap} has a value that is not finite in row {first}.")
        return values

    @property
    def columns(self) -> dict[str, list[str]]:
        """Label, group, split and further columns by name: n texts each, empty where unknown."""
        with _reading(self.path, "columns"):
            return {name: _read_text(dataset) for name, dataset in self._file["columns"].items()}

    @property
    def content_sha256(self) -> list[str]:
        """The n digests of the image files' bytes."""
        with _reading(self.path, "content_sha256"):
            return _read_text(self._file["content_sha256"])

    def _check_lengths(self) -> None:
        """Row i of every array is the same image: all have n rows."""
        n = len(self)
        rows = [self._file["content_sha256"], *self._file["features"].values(), *self._file["columns"].values()]
        for dataset in rows:
            if dataset.shape[0] != n:
                raise ValueError(f"{dataset.name} has {dataset.shape[0]} rows, image_id has {n}")
        if POOLED not in self._file["features"] or len(set(self._image_ids)) != n:
            raise ValueError("features/pooled is missing, or a name stands twice")

    def _tap(self, tap: str) -> h5py.Dataset:
        if tap not in self._file["features"]:
            raise UsageError(f"{self.path} has no tap {tap!r}, it has {', '.join(self.taps)}.")
        return self._file["features"][tap]


def check_identity(path: Path, held: Json, asked: Json) -> None:
    """Refuses to mix vectors of two kinds at one path.

    Raises:
        IdentityMismatch: with a line per field that differs.
    """
    if lines := difference(held, asked):
        fields = "\n  ".join(lines)
        raise IdentityMismatch(
            f"{path} holds other vectors than the ones asked for:\n  {fields}\nWrite to another path."
        )


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Damage, in whatever words HDF5, numpy or json put it, as one error of ours."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptStore(f"{path} is damaged: {what} cannot be read ({reason}). Embed into another file.") from error


def _open_file(path: Path) -> h5py.File:
    try:
        with open(path, "rb") as raw:  # for the operating system's own reason, which h5py hides in its message
            is_hdf5 = raw.read(len(_SIGNATURE)) == _SIGNATURE
    except FileNotFoundError as error:
        raise StoreNotFound(f"there is no store at {path}. Make one with: featcache embed IMAGES -o {path}") from error
    except OSError as error:
        raise from_os_error(error, "reading", path) from error
    try:
        # No HDF5 lock: a published file never changes, and read-only or network file systems may refuse locks.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if is_hdf5:
            raise CorruptStore(f"{path} is damaged or cut short ({error}).") from error
        raise UnknownFormat(f"{path} is not a featcache store.") from error


def _check_format(path: Path, file: h5py.File) -> None:
    if _attribute(file, "format") != FORMAT:
        raise UnknownFormat(f"{path} is an HDF5 file, but not a featcache store.")
    major, minor = (int(number) for number in file.attrs["format_version"])
    if major != VERSION[0]:
        raise UnknownFormat(f"{path} is of format {major}.{minor}; this featcache reads {VERSION[0]}.x. Upgrade it.")


def _attribute(file: h5py.File, name: str) -> str:
    value = file.attrs.get(name, b"")
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _read_text(dataset: h5py.Dataset) -> list[str]:
    return [value.decode("utf-8", "surrogateescape") for value in dataset[:].tolist()]


# --- writing: parts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The finished rows `start` to `start + m` of a plan.

    Attributes:
        features: tap -> (m, d); a failed row is NaN.
        content_sha256: m digests, empty where the file could not be read.
        origin: (m,) uint8 of EMBEDDED, REUSED, FAILED.
        failures: row within the part -> (code, reason).
    """

    start: int
    features: dict[str, Array]
    content_sha256: list[str]
    origin: Array
    failures: dict[int, tuple[str, str]]


class PartFolder:
    """`STORE.h5.partial/`: the finished parts of a pass that has not been published, and the lock of its writer.

    Parts of an earlier plan (images were added, changed or renamed since) are kept as `old-*.h5`: their rows no longer
    have their place, but their vectors are still those of their digests.
    """

    def __init__(self, store_path: Path, plan: Json) -> None:
        self.store_path = store_path
        self.path = store_path.with_name(store_path.name + ".partial")
        self._plan = plan

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process. Its parts are kept if they belong to the same plan, else set aside as old.

        Raises:
            StoreLocked: another process is writing this store.
            IdentityMismatch: the folder belongs to a pass with another identity.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "lock", "a+b", buffering=0)  # noqa: SIM115  # closed below, which frees the lock
        except OSError as error:
            raise from_os_error(error, "writing", self.path) from error
        with lock:
            _take_lock(lock, self.path / "lock", self.store_path)
            try:
                self._keep_same_plan()
                yield
            finally:
                self._remove_if_empty()

    def finished(self) -> dict[int, Path]:
        """First row -> file of the parts that are whole: the digest in the name is that of the bytes."""
        whole = {}
        for path in sorted(self.path.glob("part-*.h5")):
            name = _PART_NAME.fullmatch(path.name)
            if name and digest_bytes(path.read_bytes()).startswith(name[2]):
                whole[int(name[1])] = path
        return whole

    def old(self) -> list[Path]:
        """Whole parts of earlier plans of the same identity."""
        named = [(path, _PART_NAME.fullmatch(f"part-{path.name[4:]}")) for path in sorted(self.path.glob("old-*.h5"))]
        return [path for path, name in named if name and digest_bytes(path.read_bytes()).startswith(name[2])]

    def write(self, part: Part) -> None:
        """Puts a part on disk. When this returns, a power cut cannot take it."""
        data = _part_bytes(part)
        durable.write_bytes(self.path / f"part-{part.start:010d}-{digest_bytes(data)[:16]}.h5", data)

    def failures(self) -> dict[int, tuple[str, str]]:
        """Row of the plan -> (code, reason), over all finished parts."""
        parts = (read_part(path, with_features=False) for path in self.finished().values())
        return {part.start + row: failure for part in parts for row, failure in part.failures.items()}

    def clear(self) -> None:
        """Drops the parts, once they are published."""
        for path in (*self.path.glob("part-*.h5"), *self.path.glob("old-*.h5")):
            path.unlink()

    def _remove_if_empty(self) -> None:
        """A folder without parts holds nothing worth a message. Only files of this module's making are removed."""
        if any(self.path.glob("part-*.h5")) or any(self.path.glob("old-*.h5")):
            return
        for path in (*self.path.glob(".*.tmp"), self.path / "plan.json", self.path / "lock"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # somebody put a file of their own in it
            self.path.rmdir()

    def _keep_same_plan(self) -> None:
        plan_path = self.path / "plan.json"
        try:
            held = json.loads(plan_path.read_text("ascii"))
        except (FileNotFoundError, ValueError):  # none yet; or not ours: without it no part has a place
            held = None
        if isinstance(held, dict) and "identity" in held:
            check_identity(self.path, held["identity"], self._plan["identity"])
            if held == self._plan:
                return
            for path in self.path.glob("part-*.h5"):
                path.rename(path.with_name(f"old-{path.name[5:]}"))
        else:
            self.clear()
        durable.write_bytes(plan_path, canonical_json(self._plan).encode("ascii"))


def _take_lock(lock: BinaryIO, lock_path: Path, store_path: Path) -> None:
    """A POSIX lock: it dies with its process, and a forked worker that outlives the process does not keep it."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not lock_path.exists() or lock_path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
            raise BlockingIOError("its last writer removed the lock while it was being taken")
    except OSError as error:
        lock.seek(0)
        holder = lock.read().decode("ascii", "replace") or "another process"
        raise StoreLocked(
            f"{store_path} is being written by {holder}. Wait for it, or write to another path."
        ) from error
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on {os.uname().nodename}".encode())


def _part_bytes(part: Part) -> bytes:
    buffer = io.BytesIO()

    def fill() -> None:
        with _new_file(buffer) as file:
            _set_text(file, "format", PART_FORMAT)
            file.attrs["start"] = part.start
            _put_rows(file, "origin", part.origin)
            _put_text(file, "content_sha256", part.content_sha256)
            for tap, values in part.features.items():
                _put_rows(file, f"features/{tap}", values)
            failures = sorted(part.failures.items())
            _put_rows(file, "failures/row", np.array([row for row, _ in failures], dtype=np.int64))
            _put_text(file, "failures/code", [code for _, (code, _) in failures])
            _put_text(file, "failures/reason", [reason for _, (_, reason) in failures])

    _out_of_reach_of_signals(fill)
    return buffer.getvalue()


def _out_of_reach_of_signals(work: Callable[[], None]) -> None:
    """Runs work that lets HDF5 call back into Python in a thread of its own, and waits for its end in any case.

    Python delivers Ctrl-C to the main thread only. Raised inside a callback it would be swallowed by HDF5, which then
    takes a half-written file for a whole one, or ends the interpreter.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="hdf5") as pool:
        pool.submit(work).result()


def read_part(path: Path, with_features: bool = True) -> Part:
    """A part as it was written, or all of it but the features. Its digest was checked by `PartFolder.finished`."""
    with h5py.File(path, "r", locking=False) as file:
        failed = file["failures"]
        reasons = zip(_read_text(failed["code"]), _read_text(failed["reason"]), strict=True)
        return Part(
            start=int(file.attrs["start"]),
            features={tap: dataset[:] for tap, dataset in file["features"].items()} if with_features else {},
            content_sha256=_read_text(file["content_sha256"]),
            origin=file["origin"][:],
            failures=dict(zip(failed["row"][:].tolist(), reasons, strict=True)),
        )


# --- writing: the published file --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """What became of the images of a pass: found = embedded + reused + failed."""

    embedded: int
    reused: int
    failed: int

    @property
    def found(self) -> int:
        return self.embedded + self.reused + self.failed


def publish(
    path: Path,
    parts: Sequence[Path],
    image_ids: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    identity: Json,
    environment: Json,
) -> Counts:
    """Packs the parts of a pass into the store at `path`, replacing what is there in one step.

    Failed rows are left out of the arrays and listed under `failures`. Nothing in the file depends on the time, on how
    often the pass was stopped, or on the size of the parts.

    Args:
        path: the store.
        parts: all parts of the plan, in order.
        image_ids: the N names of the plan, failed ones included.
        columns: name -> N texts.
        identity: JSON; compared by every later pass.
        environment: JSON; recorded.

    Raises:
        NoSpace, AccessDenied, InputOutputError: the file at `path` is as it was.
    """
    origin = np.concatenate([read_part(part, with_features=False).origin for part in parts])
    kept = np.flatnonzero(origin != FAILED).tolist()

    def fill(raw: BinaryIO) -> None:
        with _Unbreakable(raw) as target, _new_file(target) as file:
            _set_text(file, "format", FORMAT)
            file.attrs["format_version"] = np.array(VERSION, dtype=np.int64)
            _set_text(file, "identity", canonical_json(identity))
            _set_text(file, "identity_sha256", digest_json(identity))
            _set_text(file, "environment", canonical_json(environment))
            _put_text(file, "image_id", [image_ids[i] for i in kept])
            file.create_group("columns")
            for name, values in columns.items():
                _put_text(file, f"columns/{name}", [values[i] for i in kept])
            _pack(file, parts, image_ids, len(kept))

    durable.write_with(path, lambda raw: _out_of_reach_of_signals(partial(fill, raw)))
    return Counts(*(int(np.sum(origin == kind)) for kind in (EMBEDDED, REUSED, FAILED)))


def _pack(file: h5py.File, parts: Sequence[Path], image_ids: Sequence[str], n: int) -> None:
    """Copies the arrays part by part, so that memory holds one part and never the store."""
    digests: list[str] = []
    failures: list[tuple[str, str, str]] = []
    next_row = 0
    for path in parts:
        part = read_part(path)
        if part.start != next_row:
            raise CorruptStore(
                f"{path} holds the rows from {part.start} on, not from {next_row}. Remove it and run again."
            )
        next_row += len(part.origin)
        good = part.origin != FAILED
        for tap, values in part.features.items():
            name = f"features/{tap}"
            dataset = file[name] if name in file else _create_rows(file, name, (n, *values.shape[1:]), values.dtype)
            dataset[len(digests) : len(digests) + int(good.sum())] = values[good]
        digests += [digest for digest, is_good in zip(part.content_sha256, good, strict=True) if is_good]
        failures += [(image_ids[part.start + row], code, reason) for row, (code, reason) in part.failures.items()]
    _put_text(file, "content_sha256", digests)
    for i, name in enumerate(("image_id", "code", "reason")):
        _put_text(file, f"failures/{name}", [failure[i] for failure in failures])


class _Unbreakable(io.RawIOBase):
    """A file that hides write errors from HDF5, which answers a full disk by ending the interpreter.

    The first error is kept and raised when the context ends; HDF5, told that all is well, closes in peace. The caller
    then removes the file, whose content is worthless.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._error: OSError | None = None

    def __exit__(self, kind: object, error: object, at: object) -> None:
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                durable.write_all(self._raw, data)
            except OSError as error:
                self._error = error
        return len(data)

    def readinto(self, buffer: Any) -> int:
        return self._raw.readinto(buffer)  # type: ignore[attr-defined,no-any-return]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def truncate(self, size: int | None = None) -> int:
        if self._error is None:
            try:
                return self._raw.truncate(size)
            except OSError as error:
                self._error = error
        return size or 0

    def flush(self) -> None:
        """Nothing is buffered; what matters is the fsync after the file is closed."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _new_file(target: Any) -> h5py.File:
    """v110: checksummed metadata that HDF5 1.10 tools can read."""
    return h5py.File(target, "w", libver=("v110", "v110"))


def _create_rows(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """A chunked, checksummed dataset of rows; a chunk that was never written reads as NaN, not as zeros."""
    kind = h5py.check_string_dtype(dtype)
    fill = np.nan if kind is None and np.issubdtype(dtype, np.floating) else None
    if shape[0] == 0:
        return file.create_dataset(name, shape=shape, dtype=dtype, fillvalue=fill)
    row_bytes = max(1, np.dtype(dtype).itemsize * int(np.prod(shape[1:])))
    rows = min(max(_CHUNK_BYTES // row_bytes, _CHUNK_ROWS[0]), _CHUNK_ROWS[1], shape[0])
    return file.create_dataset(
        name, shape=shape, dtype=dtype, chunks=(rows, *shape[1:]), fletcher32=True, fillvalue=fill, track_times=False
    )


def _put_rows(file: h5py.File, name: str, values: Array) -> None:
    _create_rows(file, name, values.shape, values.dtype)[...] = values


def _put_text(file: h5py.File, name: str, values: Sequence[str]) -> None:
    """Fixed-length UTF-8, as long as the longest value; a name that is not UTF-8 keeps its bytes."""
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    length = max([1, *map(len, encoded)])
    dtype = h5py.string_dtype("utf-8", length)
    dataset = _create_rows(file, name, (len(encoded),), dtype)
    if encoded:
        dataset[...] = np.array(encoded, dtype=dtype)


def _set_text(file: h5py.File, name: str, value: str) -> None:
    encoded = value.encode("utf-8")
    file.attrs.create(name, np.bytes_(encoded), dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))
