"""The images of a set from elsewhere: as they are known before a pass, and with the Run's logits after it.

A set is a manifest, whose images go through the pass of `predict`, or a store of vectors like the Run's.
Letters: n images, c classes.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.manifest import Manifest
from featcache.prediction import through_store
from featcache.prediction.predictor import Predictor
from featcache.specs import Where
from featcache.splits.task import Rows
from featcache.store import Store, matching

Array = np.ndarray[Any, Any]

_STORES = (".h5", ".hdf5")


@dataclass(frozen=True)
class Listed:
    """Images of a manifest, as labels are given to them: `Rows` whose contents are not known yet."""

    path: Path
    image_ids: list[str]
    columns: dict[str, list[str]]
    content_sha256: list[str]

    def __len__(self) -> int:
        return len(self.image_ids)


@dataclass(frozen=True)
class ScoredSet:
    """Images that have logits.

    Attributes:
        image_ids: n names, in the order of the store of their vectors.
        content_sha256: n digests of their files.
        logits: (n, c).
        failures: image_id -> (code, reason) of those that have none.
        contents: digest of all contents of the store, in its order.
        store: its name, where it stays.
    """

    image_ids: list[str]
    content_sha256: list[str]
    logits: Array
    failures: Mapping[str, tuple[str, str]]
    contents: list[str]
    store: str


def opened(images: Manifest | Store | Path | str, files: ExitStack, allow_outside: bool = False) -> Manifest | Store:
    """A set by its path: a `.h5` is a store, anything else what `Manifest.read` takes."""
    if not isinstance(images, Path | str):
        return images
    if Path(images).suffix.lower() in _STORES and not Path(images).is_dir():
        return files.enter_context(Store.open(images))
    return Manifest.read(images, allow_outside=allow_outside)


def source_of(images: Manifest | Store) -> Path:
    """What the set is called."""
    return images.path if isinstance(images, Store) else images.source


def rows_of(images: Manifest | Store) -> Rows:
    """The images as labels are given to them, before any is read."""
    if isinstance(images, Store):
        return images
    return Listed(images.source, list(images.image_ids), dict(images.columns), [])


def restricted(images: Manifest | Store, where: Sequence[Where]) -> tuple[Manifest | Store, Array]:
    """The images for which conditions hold, and (n,) whether they hold for an image. Of a manifest the others are not
    there any more; a store stays as it is.

    Raises:
        UsageError: a column that is not there, or no image is left.
    """
    rows = rows_of(images)
    kept = matching(rows, where) if where else np.ones(len(rows.image_ids), dtype=bool)
    if isinstance(images, Store) or kept.all():
        return images, kept
    places = np.flatnonzero(kept).tolist()
    names, paths = [images.image_ids[i] for i in places], [images.paths[i] for i in places]
    columns = {name: [texts[i] for i in places] for name, texts in images.columns.items()}
    refused = {name: why for name, why in images.refused.items() if name in set(names)}
    return replace(images, image_ids=names, paths=paths, columns=columns, refused=refused), kept


def scored(
    predictor: Predictor, images: Manifest | Store, output: Path, keep: Path | None, options: dict[str, Any]
) -> ScoredSet:
    """The Run's logits of a set.

    Args:
        predictor: the Run.
        images: the set.
        output: beside which vectors of images are while the pass runs.
        keep: a store in which they stay.
        options: as in `Predictor.of_images`.

    Raises:
        What `predict` raises.
    """
    if isinstance(images, Store):
        if keep is not None:
            raise UsageError(f"{keep}: the vectors are those of a store already, and need not be kept.")
        return _with_logits(images, predictor.of_store(images), images.path.name)
    predictions, path = through_store(predictor, output, images, keep, options)
    with Store.open(path) as store:
        return _with_logits(store, predictions, path.name if keep else "")


def _with_logits(store: Store, predictions: Any, name: str) -> ScoredSet:
    place = {image_id: i for i, image_id in enumerate(predictions.names)}
    contents = store.content_sha256
    kept = [i for i, image_id in enumerate(store.image_ids) if image_id not in predictions.failures]
    names = [store.image_ids[i] for i in kept]
    logits = predictions.logits[[place[image_id] for image_id in names]]
    return ScoredSet(names, [contents[i] for i in kept], logits, predictions.failures, contents, name)
