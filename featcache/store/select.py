"""Some rows of a store: their vectors block by block, so that memory holds a few megabytes of them, or a store of their
own.

Rows are asked for by number. What is read is what was published, bit for bit: half-precision vectors stay so. Knows
nothing of why these rows.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from featcache.identity import ArrayDigest, canonical_json
from featcache.store.reader import Store
from featcache.store.schema import Array, create_rows, put_text, set_text, text_array
from featcache.store.writer import put_head, put_names, write_file

BLOCK_BYTES = 1 << 24


def blocks(store: Store, tap: str, rows: Array) -> Iterator[Array]:
    """The vectors of some rows, in the dtype in which they are stored, 16 MB of the store at a time.

    Args:
        store: where they are.
        tap: the array.
        rows: (m,) row numbers, ascending, each once.

    Yields:
        (b, …) of the next b rows.

    Raises:
        CorruptStore, UsageError: what `Store.features` raises.
    """
    dtype = np.dtype(store.dtype(tap))
    window = max(1, BLOCK_BYTES // (4 * max(1, store.width(tap))))  # rows; they are read as float32
    edges = np.searchsorted(rows, np.arange(0, len(store) + window, window))
    for start, stop in itertools.pairwise(edges):
        if block_rows := rows[start:stop].tolist():
            block = store.features(tap, slice(block_rows[0], block_rows[-1] + 1))
            here = np.asarray(block_rows) - block_rows[0]
            yield (block if len(here) == len(block) else block[here]).astype(dtype, copy=False)


def gather(store: Store, tap: str, rows: Array) -> Array:
    """(m, …) vectors of m rows in any order, also repeated, in the dtype in which they are stored. Raises what `blocks`
    does."""
    ascending, place = np.unique(rows, return_inverse=True)
    if not len(ascending):
        return np.empty((0, *store.row_shape(tap)), dtype=store.dtype(tap))
    return np.concatenate(list(blocks(store, tap, ascending)))[place]


def texts_of(store: Store, rows: Array) -> dict[str, list[str]]:
    """The texts of some rows by the full names of their arrays: names, contents, columns."""
    texts = {"image_id": store.image_ids, "content_sha256": store.content_sha256}
    texts |= {f"columns/{name}": values for name, values in store.columns.items()}
    return {name: [values[i] for i in rows.tolist()] for name, values in texts.items()}


def digests_of(store: Store, rows: Array, taps: Sequence[str]) -> dict[str, str]:
    """Of each array, by its full name, the sha256 that it has in a store of these rows alone. Raises what `blocks`
    does."""
    digests = {}
    for name, values in texts_of(store, rows).items():
        array = text_array(values)
        digests[name] = ArrayDigest(array.dtype, array.shape).update(array).hexdigest()
    for tap in taps:
        digest = ArrayDigest(np.dtype(store.dtype(tap)), (len(rows), *store.row_shape(tap)))
        for block in blocks(store, tap, rows):
            digest.update(block)
        digests[f"features/{tap}"] = digest.hexdigest()
    return digests


def publish_rows(path: Path, store: Store, rows: Array) -> None:
    """Some rows of a store as a store: every array, the identity, the environments. The failures of the pass go along
    where all rows do; of a part of them it is not known to which they would belong.

    Raises:
        NoSpace, AccessDenied, InputOutputError: the file at `path` is as it was.
        CorruptStore: the store is damaged.
    """
    texts = texts_of(store, rows)
    contents = texts.pop("content_sha256")
    columns = {name.removeprefix("columns/"): values for name, values in texts.items() if name != "image_id"}
    failures = [(name, *why) for name, why in store.failures.items()] if len(rows) == len(store) else []

    def fill(file: h5py.File) -> None:
        put_head(file, store.identity, store.environments, store.weights_source)
        digests = put_names(file, texts["image_id"], columns)
        for tap in store.taps:
            digests[f"features/{tap}"] = _put_tap(file, store, tap, rows)
        digests["content_sha256"] = put_text(file, "content_sha256", contents)
        for i, name in enumerate(("image_id", "code", "reason")):
            digests[f"failures/{name}"] = put_text(file, f"failures/{name}", [row[i] for row in failures])
        set_text(file, "datasets_sha256", canonical_json(digests))

    write_file(path, fill)


def _put_tap(file: h5py.File, store: Store, tap: str, rows: Array) -> str:
    dtype, shape = np.dtype(store.dtype(tap)), (len(rows), *store.row_shape(tap))
    dataset, digest, start = create_rows(file, f"features/{tap}", shape, dtype), ArrayDigest(dtype, shape), 0
    for block in blocks(store, tap, rows):
        dataset[start : start + len(block)] = block
        digest.update(block)
        start += len(block)
    return digest.hexdigest()
