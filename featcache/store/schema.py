"""The format in code: names, limits, and how an array of rows or of text is put into HDF5 and taken out.

`FORMAT.md` is this page in words. Everything is chunked, checksummed (fletcher32) and of fixed length; nothing is
compressed. Knows no file system: whoever calls hands in an open file.
"""

import re
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from featcache.identity import ArrayDigest
from featcache.specs import BOUNDARY

Array = np.ndarray[Any, Any]

FORMAT = "featcache.store"
PART_FORMAT = "featcache.part"
VERSION = (1, 0)  # (major, minor): a reader refuses another major, ignores what a later minor added
FUSION_FORMAT, FUSION_VERSION = "featcache.fusion", (1, 0)  # of a table of studies, made of a store and texts
VIEWS, VIEW_PARAMETERS = "views", "view_parameters"  # arrays of `features` beside the taps
BOUNDARY_VIEWS = "boundary_views"
EMBEDDED, REUSED, FAILED = 0, 1, 2  # the origin of a row of a part
SHA256 = re.compile(r"[0-9a-f]{64}")
CANARY, KERNELS = "canary", "kernels"  # of an environment: what a low precision makes of built-in images, and with what
WEIGHTS_FILE, WEIGHTS_READ, DEPTH = (
    "weights_file",
    "weights_read",
    "depth",
)  # of an environment: no part of the arithmetic
WEIGHTS_SOURCE = re.compile(r"hub|file|run|random:[0-9]{1,18}")

SIGNATURE = b"\x89HDF\r\n\x1a\n"
CHUNK_ROWS = (64, 256)
CHUNK_BYTES = 1 << 18  # aim of a chunk; its rows stay within the two bounds above
# Read in any order, a few rows at a time: a chunk is one row, or one view of one. Rows of 49 KB drawn 32 at a time then
# take as long as all of them at once. Array -> leading axes of length 1.
SINGLE = {f"features/{BOUNDARY}": 1, f"features/{BOUNDARY_VIEWS}": 2, "image_vectors": 1, "image_tokens": 1}
TEXT_BYTES = "text_bytes/"  # arrays of single bytes, for which 256 rows would be a chunk of 256 bytes


def new_file(target: Any) -> h5py.File:
    """v110: checksummed metadata that HDF5 1.10 tools can read."""
    return h5py.File(target, "w", libver=("v110", "v110"))


def create_rows(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """A chunked, checksummed dataset of rows; a chunk that was never written reads as NaN, not as zeros."""
    kind = h5py.check_string_dtype(dtype)
    fill = np.nan if kind is None and np.issubdtype(dtype, np.floating) else None
    if shape[0] == 0:
        return file.create_dataset(name, shape=shape, dtype=dtype, fillvalue=fill)
    return file.create_dataset(
        name,
        shape=shape,
        dtype=dtype,
        chunks=_chunk(name, shape, np.dtype(dtype).itemsize),
        fletcher32=True,
        fillvalue=fill,
        track_times=False,
    )


def _chunk(name: str, shape: tuple[int, ...], value_bytes: int) -> tuple[int, ...]:
    if n_single := SINGLE.get(name):
        return (*[1] * n_single, *shape[n_single:])
    if name.startswith(TEXT_BYTES):
        return (min(CHUNK_BYTES, shape[0]),)
    row_bytes = max(1, value_bytes * int(np.prod(shape[1:])))
    rows = min(max(CHUNK_BYTES // row_bytes, CHUNK_ROWS[0]), CHUNK_ROWS[1], shape[0])
    return (rows, *shape[1:])


def put_rows(file: h5py.File, name: str, values: Array) -> str:
    """Writes an array and returns its sha256."""
    create_rows(file, name, values.shape, values.dtype)[...] = values
    return ArrayDigest(values.dtype, values.shape).update(values).hexdigest()


def put_text(file: h5py.File, name: str, values: Sequence[str]) -> str:
    """Writes texts as `text_array` has them, and returns the sha256 of the array."""
    array = text_array(values)
    dataset = create_rows(file, name, array.shape, array.dtype)
    if len(array):
        dataset[...] = array
    return ArrayDigest(array.dtype, array.shape).update(array).hexdigest()


def text_array(values: Sequence[str]) -> Array:
    """Texts as fixed-length UTF-8, as long as the longest. A name that is not UTF-8 keeps its bytes."""
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    length = max([1, *map(len, encoded)])
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


def texts(values: Array) -> list[str]:
    """What `text_array` was given."""
    return [value.decode("utf-8", "surrogateescape") for value in values.tolist()]


def set_text(file: h5py.File, name: str, value: str) -> None:
    encoded = value.encode("utf-8")
    file.attrs.create(name, np.bytes_(encoded), dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))


def get_text(file: h5py.File, name: str) -> str:
    """A text attribute; empty where there is none."""
    value = file.attrs.get(name, b"")
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
