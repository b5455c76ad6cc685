"""A store, reports and a Run become a fusion file, which is whole or absent.

Vectors pass through memory in blocks of studies. What is written depends on what was given alone: the same store,
reports and Run give the same bytes.
Letters: s studies, m images, v images of a study at most, d features, t places and c channels of a feature map.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featcache import durable
from featcache.errors import UsageError
from featcache.fusion import unseen
from featcache.fusion.join import Division, StudyTable, join
from featcache.fusion.reader import FINAL_HEAD, FOLD_HEADS, NO_HEAD, Studies
from featcache.identity import ArrayDigest, Json, canonical_json, digest_json
from featcache.runs import Run
from featcache.specs import GRID, POOLED, FusionSpec
from featcache.specs.data import FIRST, MEAN, VIEWS
from featcache.store import Store, gather
from featcache.store.schema import FUSION_FORMAT, FUSION_VERSION, create_rows, put_rows, put_text, set_text
from featcache.store.writer import write_file
from featcache.tables import missing

Array = np.ndarray[Any, Any]
File = Any  # an HDF5 file that is being written

_BLOCK_BYTES = 1 << 24
_MAX_PADDING = 4, 1 << 30  # times what is padded, and bytes from which it is looked at


@dataclass(frozen=True)
class Fused:
    """What was written.

    Attributes:
        path: the file.
        n_studies: s.
        n_bytes: its size.
        shapes: array -> the shape of a row.
        coverage: how many studies, images, texts and logits there are, and what is missing.
        notes: what a person should know of the logits.
    """

    path: Path
    n_studies: int
    n_bytes: int
    shapes: dict[str, list[int]]
    coverage: Json
    notes: tuple[str, ...] = ()


def export_studies(store: Store, path: Path | str, spec: FusionSpec, run: Run | None = None) -> Fused:
    """Writes the studies of a store, with what was written about them, to a fusion file.

    Args:
        store: vectors, names and columns of the images.
        path: the file, `.h5`. Another fusion file there is replaced, anything else is not.
        spec: the key, the texts, how images of one study are kept.
        run: trained on this store: its heads say the logits of the studies that they have not seen, and its division
            and labels take the place of the store's.

    Raises:
        StoreLocked: another process is writing at `path`.
        UsageError: no such column or array, studies in more than one subset, nothing to join; with the first five.
        IdentityMismatch: the Run was trained on other vectors.
        CorruptStore: the store or the Run is damaged.
        NoSpace, AccessDenied, InputOutputError: the file at `path` is as it was.
    """
    path = Path(path)
    if path.suffix.lower() != ".h5":
        raise UsageError(f"{path}: a fusion file is an HDF5 file, and its name ends with .h5.")
    with durable.output(path, _is_fusion_file, "fusion file"):
        return _written(store, path, spec, run)


def _written(store: Store, path: Path, spec: FusionSpec, run: Run | None) -> Fused:
    if spec.tokens and GRID not in store.taps:
        raise UsageError(f"{store.path} has no feature maps. Embed the images again with the taps pooled and grid.")
    learnt = unseen.learnt(run, store) if run else None
    table = join(store, spec, learnt.division if learnt else Division())
    _check_padding(store, table, spec)
    unseen_logits = unseen.unseen_logits(learnt, store, table) if learnt else None
    coverage = {**table.coverage, **(_counted(unseen_logits) if unseen_logits else {})}
    about = {
        "by": spec.by,
        "pool": spec.pool,
        "texts": list(spec.texts),
        "store": {
            "content_sha256": digest_json(store.datasets_sha256),
            "rows": len(store),
            "weights_source": store.weights_source,
        },
        "run": learnt.about() if learnt else None,
        "coverage": coverage,
    }
    write_file(path, partial(_fill, store=store, spec=spec, table=table, unseen_logits=unseen_logits, about=about))
    with Studies(path) as written:
        shapes = {"image_vectors": list(written.row_shape)}
        shapes |= {"image_tokens": list(written.token_shape)} if written.token_shape else {}
        notes = (
            *missing.notes(store.path, store.missing_words),
            *table.notes,
            *_padding(table, spec),
            *(learnt.notes(store) if learnt else ()),
        )
        return Fused(path, len(written), path.stat().st_size, shapes, coverage, notes)


def _is_fusion_file(path: Path) -> bool:
    Studies(path).close()
    return True


def _check_padding(store: Store, table: StudyTable, spec: FusionSpec) -> None:
    """A few studies of very many images would make the file of nothing but padding."""
    row_bytes = sum(store.width(tap) * np.dtype(store.dtype(tap)).itemsize for tap in _taps(spec))
    most, limit = _MAX_PADDING
    v = _most(table)
    padded = len(table) * v * row_bytes
    if spec.pool == VIEWS and padded > max(limit, most * len(table.rows) * row_bytes):
        name = table.study_ids[int(table.study[int(table.view.argmax())])]
        raise UsageError(
            f"study {name!r} has {v} images; with all others padded to as many, the vectors would take "
            f"{padded / 1e9:,.1f} GB instead of {len(table.rows) * row_bytes / 1e9:,.1f}. Use `pool`=mean or "
            "first."
        )


def _padding(table: StudyTable, spec: FusionSpec) -> tuple[str, ...]:
    """Where a file is mostly padding, and small enough to be written all the same."""
    places, most = len(table) * _most(table), _MAX_PADDING[0]
    if spec.pool != VIEWS or places <= most * len(table.rows):
        return ()
    share = f"{1 - len(table.rows) / places:.0%}"
    return (
        f"{share} of the vectors are padding, since one study has {_most(table)} images: `pool`=mean keeps one each",
    )


def _counted(unseen_logits: unseen.UnseenLogits) -> Json:
    kinds = {"by_final_head": FINAL_HEAD, "by_fold_heads": FOLD_HEADS, "none": NO_HEAD}
    return {"logits": {name: int((unseen_logits.head == kind).sum()) for name, kind in kinds.items()}}


def _taps(spec: FusionSpec) -> list[str]:
    return [POOLED, *([GRID] if spec.tokens else [])]


def _most(table: StudyTable) -> int:
    """v, 1 at least."""
    return int(table.view.max(initial=0)) + 1


# --- the arrays -------------------------------------------------------------------------------------------------------


def _fill(
    file: File,
    *,
    store: Store,
    spec: FusionSpec,
    table: StudyTable,
    unseen_logits: unseen.UnseenLogits | None,
    about: Json,
) -> None:
    set_text(file, "format", FUSION_FORMAT)
    file.attrs["format_version"] = np.array(FUSION_VERSION, dtype=np.int64)
    set_text(file, "identity", canonical_json(store.identity))
    set_text(file, "identity_sha256", digest_json(store.identity))
    set_text(file, "about", canonical_json(about))
    digests = {"study_id": put_text(file, "study_id", table.study_ids)}
    digests["group_number"] = put_rows(file, "group_number", table.groups)
    digests |= _put_columns(file, store, table)
    digests |= _put_texts(file, table)
    if unseen_logits:
        mask = (unseen_logits.head != NO_HEAD).astype(np.uint8)
        of_run = {
            "logits": unseen_logits.logits,
            "logits_mask": mask,
            "logits_head": unseen_logits.head,
            "fold": unseen_logits.fold,
        }
        digests |= {name: put_rows(file, name, values) for name, values in of_run.items()}
    digests |= _put_vectors(file, store, spec, table)
    set_text(file, "datasets_sha256", canonical_json(digests))


def _put_columns(file: File, store: Store, table: StudyTable) -> dict[str, str]:
    names, contents = store.image_ids, store.content_sha256
    texts = {
        "images/image_id": [names[i] for i in table.rows],
        "images/content_sha256": [contents[i] for i in table.rows],
    }
    texts |= {f"columns/{name}": values for name, values in table.columns.items()}
    texts |= {f"image_columns/{name}": values for name, values in table.image_columns.items()}
    digests = {name: put_text(file, name, values) for name, values in texts.items()}
    places = {"images/study": table.study, "images/view": table.view}
    return digests | {name: put_rows(file, name, values.astype(np.int64)) for name, values in places.items()}


def _put_texts(file: File, table: StudyTable) -> dict[str, str]:
    """Reports are of very different lengths: their bytes one after another, and where each begins."""
    digests = {}
    for name, values in table.texts.items():
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        data = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        digests[f"text_bytes/{name}"] = put_rows(file, f"text_bytes/{name}", data)
        digests[f"text_offsets/{name}"] = put_rows(file, f"text_offsets/{name}", offsets)
    return digests


def _put_vectors(file: File, store: Store, spec: FusionSpec, table: StudyTable) -> dict[str, str]:
    s, v = len(table), _most(table)
    mask = np.zeros((s, v), dtype=np.uint8)
    mask[table.study, table.view] = 1
    mask = mask if spec.pool == VIEWS else mask[:, 0]
    digests = {"image_mask": put_rows(file, "image_mask", np.ascontiguousarray(mask))}
    makers: dict[str, tuple[str, Callable[[Array], Array]]] = {"image_vectors": (POOLED, lambda vectors: vectors)}
    if spec.tokens:
        makers["image_tokens"] = (GRID, partial(_places, d=store.width(POOLED)))
    for name, (tap, transform) in makers.items():
        row = transform(np.zeros((1, *store.row_shape(tap)), dtype=store.dtype(tap))).shape[1:]
        dtype = np.dtype(np.float32 if spec.pool == MEAN else store.dtype(tap))
        shape = (s, *([v] if spec.pool == VIEWS else []), *row)
        dataset, digest, start = create_rows(file, name, shape, dtype), ArrayDigest(dtype, shape), 0
        for block in _blocks(store, tap, table, spec, transform, dtype, shape):
            dataset[start : start + len(block)] = block
            digest.update(block)
            start += len(block)
        digests[name] = digest.hexdigest()
    return digests


def _blocks(
    store: Store,
    tap: str,
    table: StudyTable,
    spec: FusionSpec,
    transform: Callable[[Array], Array],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> Iterator[Array]:
    """The rows of an array, some studies at a time."""
    step = max(1, _BLOCK_BYTES // max(1, int(np.prod(shape[1:])) * dtype.itemsize))
    for start in range(0, len(table), step):
        block = np.zeros((min(step, len(table) - start), *shape[1:]), dtype=dtype)
        here = slice(*np.searchsorted(table.study, [start, start + len(block)]))
        rows, study, view = table.rows[here], table.study[here] - start, table.view[here]
        if spec.pool == FIRST:
            rows, study, view = rows[view == 0], study[view == 0], view[view == 0]
        array = transform(gather(store, tap, rows))
        if spec.pool == MEAN:
            total = np.zeros(block.shape)
            np.add.at(total, study, array)
            block[:] = total / np.maximum(np.bincount(study, minlength=len(block)), 1)[:, None]
        elif spec.pool == FIRST:
            block[study] = array
        else:
            block[study, view] = array
        yield block


def _places(maps: Array, d: int) -> Array:
    """(m, …) feature maps as (m, t, c) places, row by row from the top left.

    Most networks have their channels in the first of three axes, some in the last, which is then as long as the vector;
    transformers have places already.
    """
    if maps.ndim == 4 and (maps.shape[1] == d or maps.shape[-1] != d):
        maps = np.moveaxis(maps, 1, -1)
    return maps.reshape(len(maps), -1, maps.shape[-1])
