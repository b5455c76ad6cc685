"""A store, or some of its rows and arrays, for other tools: npz, Parquet, safetensors, or a smaller store.

Whatever the format, arrays have the names that they have in the store (`image_id`, `columns/label`, `features/pooled`)
and their dtype, and beside them lies one JSON object with the identity of the vectors and the sha256 of every array.
The rows pass through memory in blocks of 16 MB (64 MB for Parquet); only names and columns are held as a whole. Every
array is read twice, first for its sha256, because safetensors and Parquet say what they hold before they hold it. Knows
nothing of labels or Runs.
Letters: n rows of the store, m rows that are exported.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from featcache import durable
from featcache.errors import CorruptStore, UsageError
from featcache.identity import Json, canonical_json, digest_json
from featcache.names import is_utf8
from featcache.specs import Where
from featcache.store.conditions import matching
from featcache.store.reader import Store, check_identity
from featcache.store.select import blocks, digests_of, gather, publish_rows, texts_of

Array = np.ndarray[Any, Any]

FORMAT, VERSION = "featcache.export", 1
ABOUT = "featcache"  # the name of the JSON beside the arrays
_BLOCK_BYTES = 1 << 24
_GROUP_BYTES = 1 << 26  # of a row group of Parquet
_MAX_HEADER_BYTES = 100_000_000  # what readers of safetensors accept
_CODES = {"float32": "F32", "float16": "F16"}
_NO_TIME = (1980, 1, 1, 0, 0, 0)  # the first that zip can write: the same rows are the same bytes


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        n_rows: m.
        n_bytes: its size.
        shapes: feature array -> the shape of a row.
        columns: names.
        datasets_sha256: array by its full name -> sha256, as a store of these rows alone has it.
    """

    path: Path
    n_rows: int
    n_bytes: int
    shapes: dict[str, list[int]]
    columns: list[str]
    datasets_sha256: dict[str, str]


@dataclass(frozen=True)
class _Selection:
    """Rows and arrays of a store, and what is said of them."""

    store: Store
    rows: Array
    taps: list[str]
    texts: dict[str, list[str]]
    about: Json

    def shape(self, tap: str) -> tuple[int, ...]:
        return (len(self.rows), *self.store.row_shape(tap))


def export(store: Store, path: Path | str, *, taps: Sequence[str] = (), where: Sequence[Where] = ()) -> Exported:
    """Writes rows of a store to a file, whose suffix says in which format. The file is whole or absent.

    Args:
        store: the vectors.
        path: `.npz`, `.parquet`, `.safetensors`, or `.h5` for a store.
        taps: feature arrays; none for all. A store has all that its identity names.
        where: conditions on the rows. Those that ask for a value of one column are alternatives; otherwise all must
            hold. Without any, all rows.

    Raises:
        StoreLocked: another process is writing at `path`.
        UsageError: another suffix, an array or a column that is not there, no row left, pyarrow is missing, more text
            than safetensors takes.
        CorruptStore: the store is damaged.
        IdentityMismatch: at `path` is a store of other vectors.
        NoSpace, AccessDenied, InputOutputError: the file at `path` is as it was.
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise UsageError(f"{path}: the suffix says the format, one of {', '.join(_WRITERS)}.")
    if not all(map(is_utf8, store.columns)):
        raise UsageError(f"{store.path} has a column whose name is not UTF-8, which no other format takes.")
    rows, taps = _chosen(store, where), _taps(store, taps, path)
    with durable.output(path, _is_store if write is _store else _is_export, "store" if write is _store else "export"):
        digests = digests_of(store, rows, taps)
        if len(rows) == len(store):
            _check_recorded(store, digests)
        texts = texts_of(store, rows)
        write(_Selection(store, rows, taps, texts, _about(store, where, taps, digests)), path)
    shapes = {tap: list(store.row_shape(tap)) for tap in taps}
    return Exported(path, len(rows), path.stat().st_size, shapes, list(store.columns), digests)


# --- what is exported -------------------------------------------------------------------------------------------------


def _chosen(store: Store, where: Sequence[Where]) -> Array:
    """The numbers of the rows for which the conditions hold, ascending."""
    return np.flatnonzero(matching(store, where))


def _taps(store: Store, requested: Sequence[str], path: Path) -> list[str]:
    for tap in requested:
        if tap not in store.taps:
            raise UsageError(f"{store.path} has no tap {tap!r}, it has {', '.join(store.taps)}.")
    taps = [tap for tap in store.taps if not requested or tap in requested]
    if path.suffix.lower() == ".h5" and taps != store.taps:
        raise UsageError(
            f"{path} would be a store, and a store has all the arrays that its identity names: "
            f"{', '.join(store.taps)}. Leave `taps` out, or write .npz, .parquet or .safetensors."
        )
    return taps


def _check_recorded(store: Store, digests: dict[str, str]) -> None:
    """What was read is what was published."""
    for name, digest in digests.items():
        if store.datasets_sha256.get(name) != digest:
            raise CorruptStore(f"{store.path} is damaged: {name} does not have its recorded sha256. Embed again.")


def _about(store: Store, where: Sequence[Where], taps: Sequence[str], digests: dict[str, str]) -> Json:
    return {
        "format": FORMAT,
        "version": VERSION,
        "of": {"rows": len(store), "content_sha256": digest_json(store.datasets_sha256)},
        "where": [str(text) for text in where],
        "shapes": {tap: list(store.row_shape(tap)) for tap in taps},
        "columns": list(store.columns),
        "datasets_sha256": digests,
        "identity": store.identity,
        "identity_sha256": store.identity_sha256,
        "environments": store.environments,
        "weights_source": store.weights_source,
    }


# --- in which format --------------------------------------------------------------------------------------------------


def _npz(chosen: _Selection, path: Path) -> None:
    """A zip of .npy files, none of which is pickled: vectors as they are, texts deflated, for numpy keeps four bytes of
    each character and pads all to the longest."""

    def fill(raw: BinaryIO) -> None:
        with zipfile.ZipFile(durable.Whole(raw), "w") as archive:
            for name, values in {**chosen.texts, ABOUT: canonical_json(chosen.about)}.items():
                _add(archive, name, *_text_blocks(values), zipfile.ZIP_DEFLATED)
            for tap in chosen.taps:
                dtype = np.dtype(chosen.store.dtype(tap)).newbyteorder("<")
                rows = blocks(chosen.store, tap, chosen.rows)
                _add(archive, f"features/{tap}", dtype, chosen.shape(tap), rows, zipfile.ZIP_STORED)

    durable.write_with(path, fill)


def _add(
    archive: zipfile.ZipFile, name: str, dtype: Any, shape: tuple[int, ...], blocks: Iterator[Array], compression: int
) -> None:
    info = zipfile.ZipInfo(f"{name}.npy", _NO_TIME)
    info.compress_type = compression
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for block in blocks:
            member.write(_bytes(block.astype(dtype, copy=False)))


def _text_blocks(values: Sequence[str] | str) -> tuple[Any, tuple[int, ...], Iterator[Array]]:
    """Dtype, shape and blocks of a list of texts, or of one text."""
    one = isinstance(values, str)
    listed = [values] if isinstance(values, str) else values
    dtype = np.dtype(f"<U{max([1, *map(len, listed)])}")
    step = max(1, _BLOCK_BYTES // dtype.itemsize)
    text_blocks = (np.array(listed[start : start + step], dtype=dtype) for start in range(0, len(listed), step))
    return dtype, () if one else (len(listed),), text_blocks


def _safetensors(chosen: _Selection, path: Path) -> None:
    """The format of https://github.com/huggingface/safetensors: the length of a JSON header in eight bytes, the header,
    the tensors one after another. Its own library wants all of them in memory. Texts are lists in the metadata."""
    texts = {name: json.dumps(values) for name, values in chosen.texts.items()}
    header: Json = {"__metadata__": {ABOUT: canonical_json(chosen.about), **texts}}
    # From large values to small ones: then each tensor begins at a multiple of the size of its values.
    taps = sorted(chosen.taps, key=lambda tap: (-np.dtype(chosen.store.dtype(tap)).itemsize, tap))
    end = 0
    for tap in taps:
        dtype, shape = chosen.store.dtype(tap), chosen.shape(tap)
        start, end = end, end + int(np.prod(shape)) * np.dtype(dtype).itemsize
        header[f"features/{tap}"] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": (start, end)}
    data = json.dumps(header).encode("ascii")
    data += b" " * (-len(data) % 8)
    if len(data) > _MAX_HEADER_BYTES:
        raise UsageError(
            f"{path}: names and columns take {len(data) / 1e6:,.0f} MB, and safetensors holds "
            f"{_MAX_HEADER_BYTES / 1e6:,.0f} MB beside its tensors. Take fewer rows with `where`, or .npz or .parquet."
        )

    def fill(raw: BinaryIO) -> None:
        durable.write_all(raw, len(data).to_bytes(8, "little") + data)
        for tap in taps:
            for block in blocks(chosen.store, tap, chosen.rows):
                durable.write_all(raw, _bytes(block.astype(block.dtype.newbyteorder("<"), copy=False)))

    durable.write_with(path, fill)


def _parquet(chosen: _Selection, path: Path) -> None:
    """A column per array: texts with null where a value is missing, each feature array as lists of one fixed length,
    the shape of a row in the metadata of its field."""
    pa, pq = _arrow()
    row_bytes = sum(chosen.store.width(tap) * np.dtype(chosen.store.dtype(tap)).itemsize for tap in chosen.taps)
    step = max(1, _GROUP_BYTES // row_bytes)
    schema = _arrow_schema(pa, chosen)

    def columns(start: int) -> Iterator[Any]:
        for name, values in chosen.texts.items():
            yield _arrow_texts(pa, values[start : start + step], schema.field(name).type)
        for tap in chosen.taps:
            block = gather(chosen.store, tap, chosen.rows[start : start + step])
            flat = pa.array(np.ascontiguousarray(block).reshape(-1))
            yield pa.FixedSizeListArray.from_arrays(flat, chosen.store.width(tap))

    def fill(raw: BinaryIO) -> None:
        options = {"use_dictionary": list(chosen.texts), "write_statistics": list(chosen.texts)}
        with pq.ParquetWriter(durable.Whole(raw), schema, **options) as writer:
            for start in range(0, len(chosen.rows), step):
                writer.write_table(pa.Table.from_arrays(list(columns(start)), schema=schema), row_group_size=step)

    durable.write_with(path, fill)


def _arrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise UsageError("Parquet needs pyarrow: pip install 'featcache[parquet]'.") from error


def _arrow_schema(pa: Any, chosen: _Selection) -> Any:
    is_text = {name: all(map(is_utf8, values)) for name, values in chosen.texts.items()}
    fields = [pa.field(name, pa.string() if kept else pa.binary()) for name, kept in is_text.items()]
    for tap in chosen.taps:
        kind = pa.list_(pa.from_numpy_dtype(np.dtype(chosen.store.dtype(tap))), chosen.store.width(tap))
        fields.append(pa.field(f"features/{tap}", kind, metadata={"shape": json.dumps(chosen.store.row_shape(tap))}))
    return pa.schema(fields, metadata={ABOUT: canonical_json(chosen.about)})


def _arrow_texts(pa: Any, values: Sequence[str], kind: Any) -> Any:
    """A name that is not UTF-8 makes a column one of bytes: Arrow's texts are UTF-8."""
    cells = [value or None for value in values]
    if kind == pa.string():
        return pa.array(cells, kind)
    return pa.array([value and value.encode("utf-8", "surrogateescape") for value in cells], kind)


def _is_store(path: Path) -> bool:
    Store.open(path).close()
    return True


def _is_export(path: Path) -> bool:
    """By the names of a zip's members, the beginning of safetensors, the end of Parquet."""
    with durable.open_regular(path) as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as members:
                return f"{ABOUT}.npy" in members.namelist()
        file.seek(0)
        start, n_bytes = file.read(8), path.stat().st_size
        if start[:4] == b"PAR1":
            file.seek(max(0, n_bytes - 8))
            length = int.from_bytes(file.read(4), "little")
            file.seek(max(0, n_bytes - 8 - length))
        else:
            length = int.from_bytes(start, "little")
        return FORMAT.encode("ascii") in file.read(min(length, n_bytes))


def _store(chosen: _Selection, path: Path) -> None:
    """A store of these rows. It replaces a store only if that holds nothing that this one has not."""
    if path.exists() and path.stat().st_size:
        _check_replaceable(chosen.store, path)
    publish_rows(path, chosen.store, chosen.rows)


def _check_replaceable(store: Store, path: Path) -> None:
    if path.samefile(store.path):
        raise UsageError(f"{path} is the store itself. Write to another path.")
    with Store.open(path) as there:
        identity, names, columns = there.identity, set(there.image_ids), set(there.columns)
    check_identity(path, identity, store.identity)
    if strangers := names - set(store.image_ids):
        raise UsageError(
            f"{path} holds {len(strangers):,} image(s) that {store.path} has not, {min(strangers)!r} among them. Write "
            f"to another path."
        )
    if lost := sorted(columns - set(store.columns)):
        raise UsageError(f"{path} has a column {lost[0]!r} that {store.path} has not. Write to another path.")


_WRITERS: dict[str, Callable[[_Selection, Path], None]] = {
    ".npz": _npz, ".parquet": _parquet, ".safetensors": _safetensors, ".h5": _store,
}  # fmt: skip
SUFFIXES = tuple(_WRITERS)


# --- bytes ------------------------------------------------------------------------------------------------------------


def _bytes(block: Array) -> memoryview:
    return np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
