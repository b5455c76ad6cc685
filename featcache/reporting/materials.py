"""Where the vectors and the images of a Run are: given, or found beside it, and checked to be its own.

A store is the Run's when its vectors are those that the Run recorded (whatever else it holds beside them), and so are
the contents of its images. An image is the Run's when its bytes are: whatever led to the file, they are hashed before
they are decoded. What cannot be found is no error, but a sentence for the sections that need it; what is given and is
another's, is one.
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
from featcache.images import DecodeSpec, TransformSpec
from featcache.images.cache import FileCache, stamp_of
from featcache.images.workers import Decoders
from featcache.manifest import Manifest
from featcache.names import printable
from featcache.reporting.run_view import RunView
from featcache.runs import WEIGHTS
from featcache.runs.backbone import differences, identity_of, said_by
from featcache.store import POOLED, Store

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
    """The images of a Run as its network saw them: resized and cropped, without augmentation.

    Attributes:
        paths: where a row's image may be, by row.
        contents: the sha256 of each row's bytes.
        changed: names of images whose bytes are no longer those, or that cannot be read.
    """

    paths: Mapping[int, Path]
    names: Sequence[str]
    contents: Sequence[str]
    transform: TransformSpec
    decode: DecodeSpec
    changed: set[str] = field(default_factory=set)
    _kept: dict[int, Image.Image] = field(default_factory=dict)

    def load(self, rows: Sequence[int]) -> None:
        """Reads what was not read yet of these rows, several at a time."""
        wanted_rows = [row for row in dict.fromkeys(rows) if row in self.paths and row not in self._kept]
        with Decoders([self.transform], self.decode) as decoders, ThreadPoolExecutor(_THREADS) as pool:
            for row, image in zip(wanted_rows, pool.map(partial(self._read, decoders), wanted_rows), strict=True):
                if image is None:
                    self.changed.add(self.names[row])
                else:
                    self._kept[row] = image

    def get(self, row: int) -> Image.Image | None:
        """The image of a row that was loaded; None where it is not to be had."""
        return self._kept.get(row)

    def _read(self, decoders: Decoders, row: int) -> Image.Image | None:
        path = self.paths[row]
        prepared = decoders.prepare(path, stamp_of(path), ())
        if prepared.pixels is None or prepared.digest != self.contents[row]:
            return None
        return Image.fromarray(prepared.pixels[0][0])


@dataclass(frozen=True)
class Material:
    """What there is of a Run besides its own files.

    Attributes:
        vectors: None where the store is not at hand, for the reason `no_vectors`.
        pictures: None where no image is.
        no_pictures: a sentence about images that are not at hand; empty where none is known to be missing.
    """

    vectors: Vectors | None
    no_vectors: str
    pictures: Pictures | None
    no_pictures: str


# --- stores -----------------------------------------------------------------------------------------------------------


def load_materials(
    run_views: Sequence[RunView], stores: Sequence[Path], images_at: Manifest | None, opened: ExitStack
) -> list[Material]:
    """For each Run what there is.

    Args:
        run_views: the Runs, of which one has some of the images that are given.
        stores: those that were given; without them they are looked for beside each Run, above it and here.
        images_at: the images that were given; without them they are looked for where the store's pass saw them.
        opened: keeps the stores open.

    Raises:
        StoreNotFound, CorruptStore, UntrustedFile: a store that was given cannot be read.
        IdentityMismatch: one that was given is of none of the Runs.
        UsageError: of the images that were given, none is of any of the Runs.
    """
    _check_named(run_views, images_at)
    opened_stores = [opened.enter_context(Store.open(path)) for path in stores]
    for store in opened_stores:
        wrong = [_mismatch(store, run_view) for run_view in run_views]
        if all(wrong):
            raise IdentityMismatch(wrong[0])
    loaded = [_vectors(run_view, opened_stores, opened) for run_view in run_views]
    seen = _cached_paths([vectors.store for vectors, _ in loaded if vectors]) if images_at is None else {}
    materials = []
    for run_view, (vectors, why) in zip(run_views, loaded, strict=True):
        images_here = images_at or _evaluated(run_view)
        paths = _named(run_view, images_here) if images_here else _by_content(run_view, seen)
        pictures = _pictures(run_view, paths) if paths else None
        materials.append(Material(vectors, why, pictures, _why_unseen(run_view, paths, images_at)))
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
    return None, _why_none(run_view, other_paths)


def _why_none(run_view: RunView, other_paths: Sequence[Path]) -> str:
    if (run_view.run.path / WEIGHTS).exists():
        return (
            f"this Run has a network of its own, and no store of its vectors is given: predict "
            f"the images with {printable(str(run_view.run.path))} and keep their vectors, then "
            "give that store to the report"
        )
    if run_view.is_external and not other_paths:
        return "no store of these images is at hand: give one to the report, or keep the vectors in evaluating"
    name = printable(run_view.record["store"]["name"])
    if other_paths:
        return f"the {name} that is there holds vectors or images other than those of this Run: give another store"
    return f"{name or 'it'} is not beside or above the Run, nor in the current folder: give that store to the report"


def _candidates(run_view: RunView) -> Iterator[Path]:
    """Where the store may be: files of its name."""
    name = run_view.record["store"]["name"]
    if not name or Path(name).name != name:
        return
    place = run_view.run.path.resolve()
    folders = [place, *list(place.parents)[:_ABOVE], Path.cwd()]
    if run_view.is_external and (source := Path(str(run_view.record["set"]["source"]))).suffix.lower() in _STORES:
        yield from (path for path in [source] if path.is_file())
    yield from (folder / name for folder in dict.fromkeys(folders) if (folder / name).is_file())


def _mismatch(store: Store, run_view: RunView) -> str:
    """What a store has that the Run has not, in a sentence; empty where it is the Run's own."""
    views = bool(run_view.record["asked"].get("tta"))
    if lines := differences(run_view.run, store.identity, tta=views):
        fields = "\n  ".join(lines)
        return f"{store.path} holds other vectors than those of {run_view.run.path}:\n  {fields}\nGive the Run's store."
    if digest_json(store.content_sha256) != run_view.record["content_sha256"]:
        return f"{store.path} holds other images than those of {run_view.run.path}. Give the Run's store."
    place = set(store.image_ids)
    if any(name not in place for name in run_view.task.image_ids):
        return f"{store.path} names its images otherwise than {run_view.run.path} does. Train on it again."
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
    """The images of an evaluation where they were, if they are still there."""
    source = Path(str(run_view.record["set"]["source"])) if run_view.is_external else None
    if source is None or source.suffix.lower() in _STORES:
        return None
    try:
        return Manifest.read(source)
    except FeatcacheError:
        return None


def _named(run_view: RunView, manifest: Manifest) -> dict[int, Path]:
    """Rows whose image_id is among the images given."""
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
        f"none of the {len(first.task.image_ids):,} images of {first.run.path} can be had from {manifest.source}; the "
        f"first is {first.printable_names[0]}"
        + (f", which {why}." if why else ". Give the folder or the CSV that was embedded.")
    )


def _why_unseen(run_view: RunView, paths: Mapping[int, Path], manifest: Manifest | None) -> str:
    """Which images of a Run are not at hand."""
    if manifest is None:
        return "" if paths else "Give the images to the report to see them here."
    absent = [name for i, name in enumerate(run_view.printable_names) if i not in paths]
    if not absent:
        return ""
    rest = f" and {len(absent) - _NAMED:,} more" if len(absent) > _NAMED else ""
    where, of = (
        printable(manifest.source.resolve().name),
        f"{len(absent):,} of the {len(run_view.printable_names):,} images of {run_view.name}",
    )
    return f"Not under {where}, and so not shown: {of}: {', '.join(absent[:_NAMED])}{rest}."


def _cached_paths(stores: Sequence[Store]) -> dict[str, Path]:
    """Where the last passes into some stores saw images, by the sha256 of their bytes. What is there now is hashed when
    it is read. What a pass saw lies beside the name that it was given, which may have been a link."""
    beside = dict.fromkeys(path for store in stores for path in (store.path.resolve(), store.path))
    return {digest: Path(path) for store in beside for path, (_, digest) in FileCache.read(store).files.items()}


def _by_content(run_view: RunView, seen: Mapping[str, Path]) -> dict[int, Path]:
    """Rows whose image was seen; none where not one of them is there any more."""
    paths = {i: seen[digest] for i, digest in enumerate(run_view.task.content) if digest in seen}
    return paths if any(path.is_file() for path in paths.values()) else {}
