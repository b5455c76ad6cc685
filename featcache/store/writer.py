"""Parts become a store: packed into a new file, which takes the old one's place in one step."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from featcache import durable
from featcache.errors import CorruptStore, NoSpace
from featcache.identity import ArrayDigest, Json, canonical_json, digest_json
from featcache.store.parts import Part, free_mb, out_of_reach_of_signals, part_taps, read_part
from featcache.store.schema import (
    EMBEDDED,
    FAILED,
    FORMAT,
    REUSED,
    VERSION,
    Array,
    create_rows,
    new_file,
    put_text,
    set_text,
)


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
    parts: Mapping[Path, Part],
    image_ids: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    identity: Json,
    environments: Sequence[Json] = (),
    weights_source: str | None = None,
) -> Counts:
    """Packs the parts of a pass into the store at `path`, replacing what is there in one step.

    Failed rows are left out of the arrays and listed under `failures`. Nothing in the file depends on the time, on how
    often the pass was stopped, or on the size of the parts.

    Args:
        path: the store.
        parts: all parts of the plan, in order: file -> head (`PartFolder.heads`).
        image_ids: the N names of the plan, failed ones included.
        columns: name -> N texts.
        identity: JSON; compared by every later pass.
        environments: JSON of those that computed vectors before this pass, oldest first; recorded, with those of parts.
        weights_source: where the backbone's weights came from, as in `Store`; None is not recorded.

    Raises:
        NoSpace, AccessDenied, InputOutputError: the file at `path` is as it was.
    """
    heads = parts.values()
    origin = np.concatenate([head.origin for head in heads])
    distinct = _distinct([*environments, *(head.environment for head in heads if head.environment is not None)])
    kept = np.flatnonzero(origin != FAILED).tolist()

    def fill(file: h5py.File) -> None:
        put_head(file, identity, distinct, weights_source)
        digests = put_names(file, [image_ids[i] for i in kept], {n: [v[i] for i in kept] for n, v in columns.items()})
        digests |= _pack(file, parts, image_ids, len(kept))
        set_text(file, "datasets_sha256", canonical_json(digests))

    try:
        write_file(path, fill)
    except NoSpace as error:
        n_bytes = sum(part.stat().st_size for part in parts)
        raise NoSpace(
            f"no space: writing {path} needs {n_bytes / 1e6:,.1f} MB, {free_mb(path.parent)} free on {path.parent}; "
            f"all {len(parts):,} parts are safe. Free some and run the same command again."
        ) from error
    return Counts(*(int(np.sum(origin == kind)) for kind in (EMBEDDED, REUSED, FAILED)))


def write_file(path: Path, fill: Callable[[h5py.File], None]) -> None:
    """Puts an HDF5 file at a path, replacing what is there in one step, with what `fill` puts into it.

    Raises:
        NoSpace, AccessDenied, InputOutputError: the file at `path` is as it was.
    """

    def write(raw: BinaryIO) -> None:
        with _Unbreakable(raw) as target, new_file(target) as file:
            fill(file)

    durable.write_with(path, lambda raw: out_of_reach_of_signals(partial(write, raw)))


def put_head(file: h5py.File, identity: Json, environments: Sequence[Json], weights_source: str | None) -> None:
    """What a store says of itself, but for the digests of its arrays."""
    set_text(file, "format", FORMAT)
    file.attrs["format_version"] = np.array(VERSION, dtype=np.int64)
    set_text(file, "identity", canonical_json(identity))
    set_text(file, "identity_sha256", digest_json(identity))
    set_text(file, "environment", canonical_json(environments))
    if weights_source is not None:
        set_text(file, "weights_source", weights_source)


def put_names(file: h5py.File, image_ids: Sequence[str], columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The names and columns of the rows; returns the sha256 of their arrays."""
    digests = {"image_id": put_text(file, "image_id", image_ids)}
    file.create_group("columns")
    return digests | {f"columns/{name}": put_text(file, f"columns/{name}", column) for name, column in columns.items()}


def _distinct(environments: Sequence[Json]) -> list[Json]:
    """Each once, in the order of their first."""
    return [environment for i, environment in enumerate(environments) if environment not in environments[:i]]


def _pack(file: h5py.File, parts: Mapping[Path, Part], image_ids: Sequence[str], n: int) -> dict[str, str]:
    """Copies the arrays one after another, part by part, so that memory holds one part and never the store. Returns
    their sha256."""
    contents: list[str] = []
    failures: list[tuple[str, str, str]] = []
    next_row = 0
    for path, head in parts.items():
        if head.start != next_row:
            raise CorruptStore(
                f"{path} holds the rows from {head.start} on, not from {next_row}. Remove it and run again."
            )
        next_row += len(head.origin)
        contents += [digest for digest, kind in zip(head.content_sha256, head.origin, strict=True) if kind != FAILED]
        failures += [(image_ids[head.start + row], code, reason) for row, (code, reason) in head.failures.items()]
    taps = part_taps(next(iter(parts))) if parts else []
    digests = {f"features/{tap}": _pack_tap(file, tap, list(parts), n) for tap in taps}
    texts = {"content_sha256": contents}
    texts |= {f"failures/{name}": [row[i] for row in failures] for i, name in enumerate(("image_id", "code", "reason"))}
    return digests | {name: put_text(file, name, values) for name, values in texts.items()}


def _pack_tap(file: h5py.File, tap: str, parts: Sequence[Path], n: int) -> str:
    """One array from first to last row: HDF5 gives chunks their places as they come, and no part may show in that."""
    name, sha256, start = f"features/{tap}", None, 0
    for path in parts:
        values = _kept(path, tap)
        if sha256 is None:
            shape = (n, *values.shape[1:])
            dataset, sha256 = create_rows(file, name, shape, values.dtype), ArrayDigest(values.dtype, shape)
        dataset[start : start + len(values)] = values
        sha256.update(values)
        start += len(values)
        del values  # before those of the next part come
    assert sha256 is not None
    return sha256.hexdigest()


def _kept(path: Path, tap: str) -> Array:
    """An array of a part without its failed rows."""
    part = read_part(path, taps=(tap,))
    good = part.origin != FAILED
    values = part.features[tap] if good.all() else part.features[tap][good]
    if not np.isfinite(values).all():
        raise CorruptStore(f"{path}: {tap} has a value that is not finite. Remove it and run again.")
    return values


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
