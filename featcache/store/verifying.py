"""Is a store, after years and copies, still what was published? Every array against its recorded sha256."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.errors import CorruptStore
from featcache.identity import ArrayDigest
from featcache.store.reader import Store
from featcache.store.schema import SHA256, Array

_MAX_SHOWN = 20


@dataclass(frozen=True)
class Verified:
    """What was looked at and found whole.

    Attributes:
        n_rows: rows of the store.
        datasets: names of the arrays that were read and agree with their sha256.
        n_bytes: their size.
    """

    n_rows: int
    datasets: list[str]
    n_bytes: int


def verify(path: Path | str, full: bool = True) -> Verified:
    """Reads a store and compares it with what was recorded when it was published.

    Args:
        path: the store.
        full: every array; else all but the vectors: structure, names, columns, counts.

    Raises:
        CorruptStore: with a line per damaged array, naming its rows where a chunk's checksum tells them.
        StoreNotFound, UnknownFormat, UntrustedFile, AccessDenied: it cannot be opened.
    """
    with Store.open(path) as store:
        names = [name for name in store.datasets if full or not name.startswith("features/")]
        damages = list(_disagreements(store))
        n_bytes = 0
        for name in names:
            damages += _damages(store, name)
            shape, dtype = store.shape(name)
            n_bytes += int(np.prod(shape)) * dtype.itemsize
        if damages:
            examples = damages[:_MAX_SHOWN] + [f"… and {len(damages) - _MAX_SHOWN} more"] * (len(damages) > _MAX_SHOWN)
            raise CorruptStore(f"{path} is damaged:\n  " + "\n  ".join(examples) + "\nEmbed into another file.")
        return Verified(len(store), names, n_bytes)


def _disagreements(store: Store) -> Iterator[str]:
    """What does not fit together, before the arrays are compared with their digests."""
    if store.identity_sha256 != store.recorded_identity_sha256:
        yield "identity: it does not have the sha256 recorded beside it"
    there = set(store.datasets)
    for name in sorted(there ^ set(store.datasets_sha256)):
        yield f"{name}: {'has no recorded sha256' if name in there else 'is recorded and not there'}"
    if both := set(store.failures) & set(store.image_ids):
        yield f"failures/image_id: {sorted(both)[0]!r} has a row and a failure"


def _damages(store: Store, name: str) -> Iterator[str]:
    """What is wrong with one array, chunk by chunk."""
    shape, dtype = store.shape(name)
    digest = ArrayDigest(dtype, shape)
    damages: list[tuple[slice, str]] = []
    for rows, read in store.raw(name):
        try:
            values = np.asarray(read())
        except (OSError, RuntimeError, ValueError) as error:
            damages.append((rows, f"cannot be read ({' '.join(str(error).split())[:120]})"))
            continue
        digest.update(values)
        if reason := _implausible(name, values):
            damages.append((rows, reason))
    for rows, reason in _joined(damages):
        yield f"{name}, rows {rows.start} to {rows.stop - 1}: {reason}"
    whole = not damages
    if whole and digest.hexdigest() != store.datasets_sha256.get(name):
        yield f"{name}, rows 0 to {max(0, shape[0] - 1)}: its values do not have the recorded sha256"


def _joined(damages: Sequence[tuple[slice, str]]) -> list[tuple[slice, str]]:
    """Neighbouring chunks with the same damage as one: some arrays have a chunk per row."""
    joined: list[tuple[slice, str]] = []
    for rows, reason in damages:
        if joined and (joined[-1][0].stop, joined[-1][1]) == (rows.start, reason):
            rows = slice(joined.pop()[0].start, rows.stop)
        joined.append((rows, reason))
    return joined


def _implausible(name: str, values: Array) -> str | None:
    """What no value of such an array can be, whatever its digest says."""
    if name.startswith("features/") and not np.isfinite(values).all():
        return "a value that is not finite"
    if name == "content_sha256" and not all(SHA256.fullmatch(value.decode("latin-1")) for value in values.tolist()):
        return "a text that is no sha256"
    return None
