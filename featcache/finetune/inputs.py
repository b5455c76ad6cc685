"""The inputs of the trained part of a network: images through the frozen part, or a store of its outputs.

The frozen part (the trunk) never changes, so its output for an image without augmentation is computed once and kept.
For augmented images it is computed in every epoch, a few batches ahead of the part that is trained. Images are decoded
and resized once and then cropped, or augmented again in every epoch; those beyond the memory given are decoded again.
Every file is read and compared with its digest before training begins.
Letters: b rows of a batch, h, w pixels.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from PIL import Image
from torch import nn

from featcache.backbones import Backbone
from featcache.backbones.blocks import groups
from featcache.devices import machine_bytes
from featcache.embedding.forward import Forward, Streams
from featcache.errors import IdentityMismatch, InputsChanged, UsageError
from featcache.finetune import unfreeze
from featcache.finetune.distributed import ProcessGroup, Progress, Session
from featcache.images import augment
from featcache.images.cache import stamp_of
from featcache.images.workers import TIMEOUT_S, Decoders, Prepared
from featcache.manifest import Manifest
from featcache.specs import BOUNDARY, POOLED, AugmentationSpec, DecodeSpec, Recipe, TransformSpec
from featcache.store import BOUNDARY_VIEWS, Store

Array = np.ndarray[Any, Any]

_COPY_STREAM = 2  # keeps the choice of stored copies apart from the order of the batches
_MEMORY_SHARE = 4  # a quarter for resized images, a quarter for what the trunk made of them
_N_NAMED = 5


class Pixels:
    """The images of a training, by number. A context manager, which starts decoding processes when needed.

    Attributes:
        digests: sha256 of each file's bytes; empty where it could not be read.
        failures: number -> (code, reason).
    """

    def __init__(
        self,
        paths: Sequence[Path],
        transform: TransformSpec,
        decode: DecodeSpec = DecodeSpec(),
        *,
        memory_bytes: int = 0,
        timeout_s: float = TIMEOUT_S,
        seed: int = 0,
    ) -> None:
        """Args:
        paths: the files.
        transform: the network's transform.
        decode: how files become pixels.
        memory_bytes: for resized images that are kept.
        timeout_s: what one image may take to be read and decoded.
        seed: random seed of the augmentation.
        """
        self._paths, self._transform, self._seed = paths, transform, seed
        self._decoders = Decoders([transform], decode, None, timeout_s, is_whole=True)
        self._room = memory_bytes
        self._kept: dict[int, Array] = {}
        self.digests = [""] * len(paths)
        self.failures: dict[int, tuple[str, str]] = {}

    def __enter__(self) -> "Pixels":
        self._decoders.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._decoders.__exit__(*error)

    def read(self, numbers: Sequence[int], on_progress: Progress = lambda done, total: None) -> None:
        """Decodes images for the first time, records digests and failures, and keeps images as memory allows."""
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for done, (number, decoded) in enumerate(
                zip(numbers, pool.map(self._decode, numbers), strict=True), start=1
            ):
                self.digests[number] = decoded.digest
                if decoded.pixels is None:
                    self.failures[number] = decoded.failure or ("unreadable", "no reason was given")
                else:
                    self._keep(number, decoded.pixels[0][0])
                on_progress(done, len(numbers))

    def keep_only(self, numbers: Sequence[int]) -> None:
        """Sets the images and their order."""
        self._paths = [self._paths[i] for i in numbers]
        self._kept = {new: self._kept[old] for new, old in enumerate(numbers) if old in self._kept}
        self.digests = [self.digests[i] for i in numbers]
        self.failures = {}

    def transformed(self, number: int, spec: AugmentationSpec | None, epoch: int) -> Array:
        """(h, w) or (h, w, 3) uint8 pixels of an image after cropping, augmented for an epoch if `spec` is given.

        Raises:
            InputsChanged: the file is no longer what was read.
        """
        resized = Image.fromarray(self._resized(number))
        if spec is None:
            return np.asarray(self._transform.crop(resized))
        return augment.show(resized, spec, self._transform, self.digests[number], self._seed, epoch)

    def _resized(self, number: int) -> Array:
        if number in self._kept:
            return self._kept[number]
        decoded = self._decode(number)
        if decoded.pixels is None or decoded.digest != self.digests[number]:
            reason = decoded.failure[1] if decoded.failure else "other bytes"
            raise InputsChanged(f"{self._paths[number]} has changed since the training began: {reason}.")
        pixels: Array = decoded.pixels[0][0]
        return pixels

    def _decode(self, number: int) -> Prepared:
        path = self._paths[number]
        return self._decoders.prepare(path, stamp_of(path), ())

    def _keep(self, number: int, pixels: Array) -> None:
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[number] = pixels


class Source(Protocol):
    """The inputs of the trained part, in batches."""

    def batches(self, order: Sequence[Array], epoch: int) -> Iterator[Array]:
        """Yields (b, …) inputs for each batch of row numbers: augmented in epochs from 1 on, not in epoch 0."""
        ...


class ImageSource:
    """Outputs of the trunk for images; without a trunk the pixels, (b, h, w) or (b, h, w, 3) uint8.

    A context manager, one for each stage of a training.
    """

    def __init__(
        self,
        pixels: Pixels,
        augment: AugmentationSpec | None,
        trunk: Forward | None,
        memory_bytes: int,
    ) -> None:
        """Args:
        pixels: the images, numbered as the rows are.
        augment: augmentation of training rows; None for none.
        trunk: the frozen part; what it calls its vector is the boundary.
        memory_bytes: for what is kept of images that are not augmented.
        """
        self._pixels, self._augment, self._trunk = pixels, augment, trunk
        self._chunk_rows = trunk.batch_size if trunk else 32
        self._room, self._kept = memory_bytes, dict[int, Array]()
        self._open = ExitStack()

    def __enter__(self) -> "ImageSource":
        self._streams = self._open.enter_context(Streams()) if self._trunk else None
        self._threads = self._open.enter_context(ThreadPoolExecutor(os.cpu_count() or 1))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)  # type: ignore[arg-type]

    def batches(self, order: Sequence[Array], epoch: int) -> Iterator[Array]:
        augment = self._augment if epoch else None
        missing = [int(row) for rows in order for row in rows if augment or int(row) not in self._kept]
        arriving = self._computed(missing, augment, epoch)
        arrived_outputs: dict[int, Array] = {}
        for rows in order:
            for row in map(int, rows):
                while row not in arrived_outputs and (augment or row not in self._kept):
                    arrived, pixels = next(arriving)
                    arrived_outputs[arrived] = pixels
            yield _stacked(
                [arrived_outputs.pop(row) if row in arrived_outputs else self._kept[row] for row in map(int, rows)]
            )

    def _computed(
        self, rows: Sequence[int], augment: AugmentationSpec | None, epoch: int
    ) -> Iterator[tuple[int, Array]]:
        """Yields (row, input of the trained part), in order, computed a few chunks ahead."""

        def work(chunk: Sequence[int]) -> Sequence[Array]:
            augmented = [self._pixels.transformed(row, augment, epoch) for row in chunk]
            return list(self._trunk.vectors(augmented)[POOLED]) if self._trunk else augmented

        remaining = iter(rows)
        chunks = iter(lambda: list(islice(remaining, self._chunk_rows)), [])
        ahead: deque[tuple[list[int], Future[Sequence[Array]]]] = deque()
        while True:
            for chunk in islice(chunks, max(0, self._n_ahead - len(ahead))):
                ahead.append((chunk, self._submit(work, chunk)))
            if not ahead:
                return
            chunk, future = ahead.popleft()
            for row, outputs in zip(chunk, future.result(), strict=True):
                if augment is None:
                    self._keep(row, outputs)
                yield row, outputs

    @property
    def _n_ahead(self) -> int:
        return 2 * (self._trunk.n_streams if self._trunk else os.cpu_count() or 1)

    def _submit(
        self, work: Callable[[Sequence[int]], Sequence[Array]], chunk: Sequence[int]
    ) -> "Future[Sequence[Array]]":
        if self._streams and self._trunk:
            return self._streams.submit(self._trunk, work, chunk)
        return self._threads.submit(work, chunk)

    def _keep(self, row: int, output: Array) -> None:
        if output.nbytes <= self._room:
            self._room -= output.nbytes
            self._kept[row] = output.copy()  # a view would keep its whole batch in memory


class StoreSource:
    """The stored inputs of the last stage, for images and their augmented copies."""

    def __init__(self, store: Store, rows: Sequence[int], seed: int, with_views: bool, memory_bytes: int) -> None:
        """Args:
        store: a store with the tap `boundary`, and with `boundary_views` to train on augmented copies.
        rows: the store's row of each row of the training.
        seed: random seed that chooses the augmented copy of each epoch.
        with_views: draw a view, or the image as it is, each as likely, for each training row in each epoch.
        memory_bytes: for what is kept of images as they are.
        """
        self._store, self._rows, self._seed = store, np.asarray(rows), seed
        self._n_views = store.row_shape(BOUNDARY_VIEWS)[0] if with_views else 0
        self._room, self._kept = memory_bytes, dict[int, Array]()

    def __enter__(self) -> "StoreSource":
        return self

    def __exit__(self, *error: object) -> None:
        self._kept.clear()

    def batches(self, order: Sequence[Array], epoch: int) -> Iterator[Array]:
        drawn = np.zeros(len(self._rows), dtype=np.int64)  # 0 is the image as it is
        if epoch and self._n_views:
            generator = np.random.default_rng((self._seed, _COPY_STREAM, epoch))
            drawn = generator.integers(self._n_views + 1, size=len(drawn))
        for rows in order:
            clean, turned = rows[drawn[rows] == 0], rows[drawn[rows] > 0]
            outputs = {row: self._kept[row] for row in clean.tolist() if row in self._kept}
            missing = np.array([row for row in clean.tolist() if row not in outputs], dtype=np.int64)
            for row, values in zip(missing.tolist(), self._store.rows(BOUNDARY, self._rows[missing]), strict=True):
                outputs[row] = self._keep(row, values)
            if len(turned):
                values = self._store.rows(BOUNDARY_VIEWS, self._rows[turned], drawn[turned] - 1)
                outputs.update(zip(turned.tolist(), values, strict=True))
            yield np.stack([outputs[row] for row in rows.tolist()])

    def _keep(self, row: int, values: Array) -> Array:
        if values.nbytes <= self._room:
            self._room -= values.nbytes
            self._kept[row] = values.copy()
        return values


def _stacked(rows: Sequence[Array]) -> Array:
    """One array; gray images are repeated to three bands if others have colours."""
    if len({row.ndim for row in rows}) > 1:
        rows = [np.repeat(row[..., None], 3, axis=2) if row.ndim == 2 else row for row in rows]
    return np.stack(rows)


class Inputs(Protocol):
    """The inputs of a training: images, or a store."""

    def open(self, names: Sequence[str]) -> "Any":
        """A context of (the part of the network that contains these parameters, its inputs)."""
        ...


class ImageInputs:
    """Images as inputs, through the frozen part of a network. A context manager."""

    def __init__(
        self,
        backbone: Backbone,
        pixels: Pixels,
        recipe: Recipe,
        n_rows: int,
        session: Session,
    ) -> None:
        """Args:
        backbone: the network, of which nothing below a cut may move while it is used.
        pixels: the images; those numbered from 0 to `n_rows` - 1 are the rows of the training.
        recipe: for its augmentation, and the number of epochs.
        n_rows: n.
        session: compilation, callbacks, and the processes that share the memory.
        """
        self._backbone, self._pixels, self._augment = backbone, pixels, recipe.augment
        self._n_images = n_rows * (recipe.epochs if recipe.augment else 1)
        self._session = session
        self._names: tuple[str, ...] = ()
        self._tail: nn.Module | None = None
        self._source: ImageSource | None = None
        self._files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    @contextmanager
    def open(self, names: Sequence[str]) -> Iterator[tuple[nn.Module, Source]]:
        """The tail that contains these parameters, and the outputs of the trunk below it for the images."""
        if self._source is None or tuple(names) != self._names:
            self._files.close()
            parts = unfreeze.cut(self._backbone.module, names)
            trunk = None
            if parts.tail is self._backbone.module:
                self._session.on_note(
                    "torch.fx cannot trace this network, so its frozen part runs together with the trained part."
                )
            if parts.trunk is not None:
                below = replace(
                    self._backbone, module=parts.trunk, cut=None, last_stage=None
                )  # its vector: the boundary
                trunk = Forward(below, self._session.compile, self._n_images, self._session.on_note)
            source = ImageSource(self._pixels, self._augment, trunk, memory_bytes(self._session.processes))
            self._source, self._tail = self._files.enter_context(source), parts.tail
            self._names = tuple(names)
        assert self._tail is not None
        yield self._tail, self._source


class StoreInputs:
    """The stored inputs of the last stage."""

    def __init__(self, backbone: Backbone, store: Store, source: StoreSource) -> None:
        """Args:
        backbone: the network.
        store: where the source reads.
        source: what it has of the rows.

        Raises:
            IdentityMismatch: what it calls the last stage is not what is called so here.
        """
        self._source = source
        self._stage = groups(backbone.module, coarse=True)[-1]
        boundary = store.identity["backbone"].get("boundary")
        if boundary != self._stage[0]:
            raise IdentityMismatch(
                f"{store.path} holds what enters {boundary}, and the last stage begins with {self._stage[0]} here: "
                f"another version of timm divides this network in another way. Embed again."
            )
        self._tail = unfreeze.cut(backbone.module, self._stage).tail

    @contextmanager
    def open(self, names: Sequence[str]) -> Iterator[tuple[nn.Module, Source]]:
        """The last stage and what follows it, and its stored inputs.

        Raises:
            UsageError: something below the last stage is to learn.
        """
        if below := sorted(set(names) - set(self._stage)):
            raise UsageError(
                f"a store holds what enters the last stage, and {below[0]} lies below it: unfreeze last-block or "
                f"last-stage, or train from the images (`images`)."
            )
        yield self._tail, self._source


def memory_bytes(processes: ProcessGroup) -> int:
    """Bytes for resized images, and as much again for outputs of the trunk."""
    return machine_bytes() // _MEMORY_SHARE // processes.size


# --- the images of a Run ----------------------------------------------------------------------------------------------


def pixels_of(
    manifest: Manifest,
    backbone: Backbone,
    decode: DecodeSpec,
    recipe: Recipe,
    session: Session,
) -> Pixels:
    """The images of a manifest in its order, not read yet."""
    return Pixels(
        manifest.paths,
        backbone.transform,
        decode,
        memory_bytes=memory_bytes(session.processes),
        timeout_s=session.timeout_s,
        seed=recipe.seed,
    )


def chosen(manifest: Manifest, image_ids: Sequence[str]) -> Manifest:
    """The images of these names, in this order.

    Raises:
        InputsChanged: some are not there, or may not be read.
    """
    place = {image_id: i for i, image_id in enumerate(manifest.image_ids) if image_id not in manifest.refused}
    if missing := [image_id for image_id in image_ids if image_id not in place]:
        refused = f" ({manifest.refused[missing[0]]})" if missing[0] in manifest.refused else ""
        raise InputsChanged(
            f"{manifest.source} lacks {len(missing):,} of the Run's {len(image_ids):,} images: "
            f"{', '.join(missing[:_N_NAMED])}{refused}. Give the folder or CSV that was embedded."
        )
    rows = [place[image_id] for image_id in image_ids]
    columns = {name: [values[i] for i in rows] for name, values in manifest.columns.items()}
    return Manifest(list(image_ids), [manifest.paths[i] for i in rows], columns, manifest.source)


def check_contents(pixels: Pixels, image_ids: Sequence[str], contents: Sequence[str], session: Session) -> None:
    """Reads every image, each process its share, and compares its digest with that in the Run.

    Raises:
        InputsChanged: with the first of those that are others, or cannot be read.
    """
    mine = session.processes.share(np.arange(len(image_ids))).tolist()
    pixels.read(mine, session.on_progress)
    wrong = [
        f"{image_ids[i]} ({pixels.failures[i][1] if i in pixels.failures else 'other bytes'})"
        for i in mine
        if pixels.digests[i] != contents[i] or i in pixels.failures
    ]
    wrong = [part for names in session.processes.all_gather(wrong) for part in names]
    if wrong:
        raise InputsChanged(
            f"{len(wrong):,} of {len(image_ids):,} images are not those of the Run: {', '.join(wrong[:_N_NAMED])}. "
            f"Embed them again, train a head, and fine-tune that Run."
        )
    pixels.digests = list(contents)


def rows_of(
    store: Store, differences: Sequence[str], image_ids: Sequence[str], contents: Sequence[str], with_views: bool
) -> list[int]:
    """The store's row of each image of a Run.

    Args:
        store: that has the boundary.
        differences: what its vectors have that those of the Run have not, a line each.
        image_ids, contents: the rows of the Run.
        with_views: whether views are to be learnt from.

    Raises:
        UsageError: the store lacks the boundary, or views of it.
        IdentityMismatch: its vectors are others.
        InputsChanged: it lacks some of the images, or has others under their names.
    """
    if BOUNDARY not in store.taps or (with_views and BOUNDARY_VIEWS not in store.taps):
        views = " and augmented copies" if with_views else ""
        raise UsageError(
            f"{store.path} has no {BOUNDARY_VIEWS if BOUNDARY in store.taps else BOUNDARY}. Embed the "
            f"images into another store with the taps pooled and boundary{views}."
        )
    if differences:
        fields = "\n  ".join(differences)
        raise IdentityMismatch(
            f"{store.path} holds other vectors than those of the Run:\n  {fields}\nEmbed them alike."
        )
    place, digests = {image_id: i for i, image_id in enumerate(store.image_ids)}, store.content_sha256
    wrong = [
        image_id
        for image_id, content in zip(image_ids, contents, strict=True)
        if image_id not in place or digests[place[image_id]] != content
    ]
    if wrong:
        raise InputsChanged(
            f"{store.path} lacks {len(wrong):,} of the Run's {len(image_ids):,} images, or has others in their place: "
            f"{', '.join(wrong[:_N_NAMED])}."
        )
    return [place[image_id] for image_id in image_ids]
