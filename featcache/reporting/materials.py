"""The store and the images of a Run: given, or searched beside it, and verified.

A store belongs to a Run if the identity of its vectors and the contents of its images are those that the Run recorded.
An image belongs to a Run if the Run recorded the sha256 of its bytes, which is computed before decoding. A missing
input is not an error but a sentence in the sections that need it; a given input that belongs to no Run is an error.
Letters: n rows of a task, d features.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featcache.errors import FeatcacheError, IdentityMismatch, UsageError
from featcache.identity import digest_json, from_json
from featcache.images.cache import FileCache, stamp_of
from featcache.images.workers import Decoders
from featcache.manifest import Manifest
from featcache.names import printable
from featcache.reporting.run_view import RunView
from featcache.runs import WEIGHTS
from featcache.runs.backbone import differences, identity_of, said_by
from featcache.specs import POOLED, DecodeSpec, TransformSpec
from featcache.store import Store

Array = np.ndarray[Any, Any]

_ABOVE = 3  # folders above a Run in which its store is looked for
_THREADS = 4
_STORES = (".h5", ".hdf5")
_NAMED = 3  # of images that are not there


@dataclass(frozen=True)
class Vectors:
    """The store of a Run.

    Attributes:
        store: open.
        places: (n,) the store's row of each row of the task.
    """

    store: Store
    places: Array

    @cached_property
    def features(self) -> Array:
        """(n, d) float32, in the order of the task."""
        x = self.store.features(POOLED)
        return x if np.array_equal(self.places, np.arange(len(x))) else x[self.places]

    def column(self, name: str) -> list[str] | None:
        """n texts; None where there is no such column."""
        values = self.store.columns.get(name)
        return None if values is None else [values[i] for i in self.places.tolist()]


@dataclass
class Pictures:
    """The images of a Run as the backbone receives them: resized and cropped, without augmentation.

    Attributes:
        paths: path of an image by row.
        names: n image_ids.
        contents: sha256 of each image's bytes.
        transform, decode: how pixels are made.
        changed: names of images that changed or cannot be read.
    """

    paths: Mapping[int, Path]
    names: Sequence[str]
    contents: Sequence[str]
    transform: TransformSpec
    decode: DecodeSpec
    changed: set[str] = field(default_factory=set)
    _kept: dict[int, Image.Image] = field(default_factory=dict)

    def load(self, rows: Sequence[int]) -> None:
        """Reads the images of some rows, several at a time, unless they were read before."""
        unread_rows = [row for row in dict.fromkeys(rows) if row in self.paths and row not in self._kept]
        with Decoders([self.transform], self.decode) as decoders, ThreadPoolExecutor(_THREADS) as pool:
            for row, image in zip(unread_rows, pool.map(partial(self._read, decoders), unread_rows), strict=True):
                if image is None:
                    self.changed.add(self.names[row])
                else:
                    self._kept[row] = image

    def get(self, row: int) -> Image.Image | None:
        """The loaded image of a row, or None."""
        return self._kept.get(row)

    def _read(self, decoders: Decoders, row: int) -> Image.Image | None:
        path = self.paths[row]
        prepared = decoders.prepare(path, stamp_of(path), ())
        if prepared.pixels is None or prepared.digest != self.contents[row]:
            return None
        return Image.fromarray(prepared.pixels[0][0])


@dataclass(frozen=True)
class Material:
    """The inputs of a report besides the Run's own files.

    Attributes:
        vectors: the store; None for the reason `no_vectors`.
        pictures: the images; None if there are none.
        no_pictures: a sentence about missing images; empty if none is known to be missing.
    """

    vectors: Vectors | None
    no_vectors: str
    pictures: Pictures | None
    no_pictures: str


# --- stores -----------------------------------------------------------------------------------------------------------


def load_materials(
    run_views: Sequence[RunView], stores: Sequence[Path], images_at: Manifest | None, opened: ExitStack
) -> list[Material]:
    """Finds the store and the images of each Run.

    Args:
        run_views: the Runs.
        stores: given stores; otherwise stores are searched beside each Run, above it and in the current folder.
        images_at: given images; otherwise the paths recorded by the last `embed` are used.
        opened: closes the stores on exit.

    Raises:
        StoreNotFound, CorruptStore, UntrustedFile: a given store cannot be read.
        IdentityMismatch: a given store belongs to none of the Runs.
        UsageError: none of the given images belongs to any of the Runs.
    """
    _check_named(run_views, images_at)
    opened_stores = [opened.enter_context(Store.open(path)) for path in stores]
    for store in opened_stores:
        wrong = [_mismatch(store, run_view) for run_view in run_views]
        if all(wrong):
            raise IdentityMismatch(wrong[0])
    loaded = [_vectors(run_view, opened_stores, opened) for run_view in run_views]
    cached = _cached_paths([vectors.store for vectors, _ in loaded if vectors]) if images_at is None else {}
    materials = []
    for run_view, (vectors, why) in zip(run_views, loaded, strict=True):
        images_here = images_at or _evaluated(run_view)
        paths = _named(run_view, images_here) if images_here else _by_content(run_view, cached)
        pictures = _pictures(run_view, paths) if paths else None
        materials.append(Material(vectors, why, pictures, _missing_images_text(run_view, paths, images_at)))
    return materials


def _vectors(run_view: RunView, opened_stores: Sequence[Store], opened: ExitStack) -> tuple[Vectors | None, str]:
    for store in opened_stores:
        if not _mismatch(store, run_view):
            return _in_order(store, run_view), ""
    other_paths = []
    for path in _candidates(run_view):
        try:
            store = opened.enter_context(Store.open(path))
        except FeatcacheError:
            continue
        if not _mismatch(store, run_view):
            return _in_order(store, run_view), ""
        other_paths.append(path)
    return None, _missing_store_text(run_view, other_paths)


def _missing_store_text(run_view: RunView, other_paths: Sequence[Path]) -> str:
    if (run_view.run.path / WEIGHTS).exists():
        return (
            f"this Run has a fine-tuned backbone, and no store of its vectors is given: predict the images with "
            f"{printable(str(run_view.run.path))} and keep their vectors, then give that store to the report"
        )
    if run_view.is_external and not other_paths:
        return "no store of these images was found: give one to the report, or keep the vectors in the evaluation"
    name = printable(run_view.record["store"]["name"])
    if other_paths:
        return f"the vectors or images of {name} are not those of this Run: give another store"
    return f"{name or 'it'} was not found beside or above the Run, nor in the current folder: give it to the report"


def _candidates(run_view: RunView) -> Iterator[Path]:
    """Files that may be the Run's store."""
    name = run_view.record["store"]["name"]
    if not name or Path(name).name != name:
        return
    place = run_view.run.path.resolve()
    folders = [place, *list(place.parents)[:_ABOVE], Path.cwd()]
    if run_view.is_external and (source := Path(str(run_view.record["set"]["source"]))).suffix.lower() in _STORES:
        yield from (path for path in [source] if path.is_file())
    yield from (folder / name for folder in dict.fromkeys(folders) if (folder / name).is_file())


def _mismatch(store: Store, run_view: RunView) -> str:
    """How a store differs from the Run's; empty if it is the Run's own."""
    tta = bool(run_view.record["asked"].get("tta"))
    if lines := differences(run_view.run, store.identity, tta=tta):
        fields = "\n  ".join(lines)
        return f"The vectors of {store.path} are not those of {run_view.run.path}:\n  {fields}\nGive the Run's store."
    if digest_json(store.content_sha256) != run_view.record["content_sha256"]:
        return f"The images of {store.path} are not those of {run_view.run.path}. Give the Run's store."
    place = set(store.image_ids)
    if any(name not in place for name in run_view.task.image_ids):
        return f"The image_ids of {store.path} are not those of {run_view.run.path}. Train on this store again."
    return ""


def _in_order(store: Store, run_view: RunView) -> Vectors:
    place = {name: i for i, name in enumerate(store.image_ids)}
    return Vectors(store, np.array([place[name] for name in run_view.task.image_ids]))


# --- images -----------------------------------------------------------------------------------------------------------


def _pictures(run_view: RunView, paths: Mapping[int, Path]) -> Pictures:
    identity = identity_of(run_view.run)
    with said_by(run_view.run):
        transform, decode = from_json(TransformSpec, identity["transform"]), DecodeSpec.of_identity(identity["decode"])
    return Pictures(paths, run_view.printable_names, run_view.task.content, transform, decode)


def _evaluated(run_view: RunView) -> Manifest | None:
    """The images of an evaluation, if its source can still be read."""
    source = Path(str(run_view.record["set"]["source"])) if run_view.is_external else None
    if source is None or source.suffix.lower() in _STORES:
        return None
    try:
        return Manifest.read(source)
    except FeatcacheError:
        return None


def _named(run_view: RunView, manifest: Manifest) -> dict[int, Path]:
    """Paths of the rows whose image_id is in a manifest."""
    path_of = {
        name: path
        for name, path in zip(manifest.image_ids, manifest.paths, strict=True)
        if name not in manifest.refused
    }
    return {i: path_of[name] for i, name in enumerate(run_view.task.image_ids) if name in path_of}


def _check_named(run_views: Sequence[RunView], manifest: Manifest | None) -> None:
    if manifest is None or any(_named(run_view, manifest) for run_view in run_views):
        return
    first = run_views[0]
    why = manifest.refused.get(first.task.image_ids[0], "")
    raise UsageError(
        f"{manifest.source} has none of the {len(first.task.image_ids):,} images of {first.run.path}, such as "
        f"{first.printable_names[0]}"
        + (f", which {why}." if why else ". Give the folder or the CSV that was embedded.")
    )


def _missing_images_text(run_view: RunView, paths: Mapping[int, Path], manifest: Manifest | None) -> str:
    """A sentence about the images of a Run that are missing."""
    if manifest is None:
        return "" if paths else "The images were not found: give them to the report."
    absent = [name for i, name in enumerate(run_view.printable_names) if i not in paths]
    if not absent:
        return ""
    rest = f" and {len(absent) - _NAMED:,} more" if len(absent) > _NAMED else ""
    source, total = printable(manifest.source.resolve().name), len(run_view.printable_names)
    names = f"{', '.join(absent[:_NAMED])}{rest}"
    return f"{len(absent):,} of the {total:,} images of {run_view.name} are not in {source} and are not shown: {names}."


def _cached_paths(stores: Sequence[Store]) -> dict[str, Path]:
    """Image paths that the last `embed` into these stores recorded, by the sha256 of the bytes. The record lies beside
    the name of the store, which may be a link."""
    beside = dict.fromkeys(path for store in stores for path in (store.path.resolve(), store.path))
    return {digest: Path(path) for store in beside for path, (_, digest) in FileCache.read(store).files.items()}


def _by_content(run_view: RunView, cached: Mapping[str, Path]) -> dict[int, Path]:
    """Paths of the rows by their content; empty if none of the files exists any more."""
    paths = {i: cached[digest] for i, digest in enumerate(run_view.task.content) if digest in cached}
    return paths if any(path.is_file() for path in paths.values()) else {}
