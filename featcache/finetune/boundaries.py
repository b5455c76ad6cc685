"""What enters the part of a network that learns: from the images through the trunk, or from a store.

The trunk is frozen, so its output for an image that is shown unchanged is computed once and kept; for augmented images
it is computed in every epoch, batch by batch ahead of the part that learns, as the pass of `embed` does it.
Letters: b rows of a batch.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import Any, Protocol

import numpy as np

from featcache.embedding.forward import Forward, Streams
from featcache.finetune.pixels import Pixels
from featcache.recipe import AugmentSpec
from featcache.store import BOUNDARY, BOUNDARY_VIEWS, POOLED, Store

Array = np.ndarray[Any, Any]

_VIEW_STREAM = 2  # of a training's seed


class Source(Protocol):
    """Where the inputs of the learning part come from."""

    def batches(self, order: Sequence[Array], epoch: int) -> Iterator[Array]:
        """For each batch of row numbers (b, …): of training rows in an epoch from 1 on, or as they are in epoch 0."""
        ...


class FromImages:
    """Images through the trunk; without a trunk the pixels themselves, (b, h, w) or (b, h, w, 3) uint8.

    A context manager, one for each stage of a training.
    """

    def __init__(
        self,
        pixels: Pixels,
        augment: AugmentSpec | None,
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

    def __enter__(self) -> "FromImages":
        self._streams = self._open.enter_context(Streams()) if self._trunk else None
        self._threads = self._open.enter_context(ThreadPoolExecutor(os.cpu_count() or 1))
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)  # type: ignore[arg-type]

    def batches(self, order: Sequence[Array], epoch: int) -> Iterator[Array]:
        augment = self._augment if epoch else None
        lacking = [int(row) for rows in order for row in rows if augment or int(row) not in self._kept]
        arriving = self._computed(lacking, augment, epoch)
        here: dict[int, Array] = {}
        for rows in order:
            for row in map(int, rows):
                while row not in here and (augment or row not in self._kept):
                    arrived, pixels = next(arriving)
                    here[arrived] = pixels
            yield _alike([here.pop(row) if row in here else self._kept[row] for row in map(int, rows)])

    def _computed(self, rows: Sequence[int], augment: AugmentSpec | None, epoch: int) -> Iterator[tuple[int, Array]]:
        """(row, what enters the learning part), in order, a few chunks ahead."""

        def work(chunk: Sequence[int]) -> Sequence[Array]:
            augmented = [self._pixels.shown(row, augment, epoch) for row in chunk]
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
            self._kept[row] = output.copy()  # not a view that holds its whole batch


class FromStore:
    """The stored inputs of the last stage, of images as they are and of their augmented views: no trunk, no pixels."""

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

    def __enter__(self) -> "FromStore":
        return self

    def __exit__(self, *error: object) -> None:
        self._kept.clear()

    def batches(self, order: Sequence[Array], epoch: int) -> Iterator[Array]:
        drawn = np.zeros(len(self._rows), dtype=np.int64)  # 0 is the image as it is
        if epoch and self._n_views:
            generator = np.random.default_rng((self._seed, _VIEW_STREAM, epoch))
            drawn = generator.integers(self._n_views + 1, size=len(drawn))
        for rows in order:
            clean, turned = rows[drawn[rows] == 0], rows[drawn[rows] > 0]
            outputs = {row: self._kept[row] for row in clean.tolist() if row in self._kept}
            lacking = np.array([row for row in clean.tolist() if row not in outputs], dtype=np.int64)
            for row, values in zip(lacking.tolist(), self._store.rows(BOUNDARY, self._rows[lacking]), strict=True):
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


def _alike(rows: Sequence[Array]) -> Array:
    """One array; gray pixels become three equal bands where others have colours."""
    if len({row.ndim for row in rows}) > 1:
        rows = [np.repeat(row[..., None], 3, axis=2) if row.ndim == 2 else row for row in rows]
    return np.stack(rows)
