"""What a training on pixels is fed with: the images of a Run, of a folder, or a store that holds the boundary.

Both give the learning part of the network for what has to learn, and what enters it. A trunk never moves, so whatever
was computed by it for images as they are serves all folds of a training.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol, Self

import numpy as np
from torch import nn

from featcache.backbones import Backbone
from featcache.backbones.blocks import groups
from featcache.embedding.forward import Forward
from featcache.errors import IdentityMismatch, InputsChanged, UsageError
from featcache.finetune import cut
from featcache.finetune.boundaries import FromImages, FromStore, Source
from featcache.finetune.callbacks import Callbacks, Machine
from featcache.finetune.distributed import Processes
from featcache.finetune.pixels import Pixels
from featcache.images import DecodeSpec
from featcache.manifest import Manifest
from featcache.recipe import Recipe
from featcache.store import BOUNDARY, BOUNDARY_VIEWS, Store

Array = np.ndarray[Any, Any]

_SHARE_OF_MEMORY = 4  # a quarter for resized images, a quarter for what the trunk made of them
_SHOWN = 5


class Inputs(Protocol):
    """Where a training gets its inputs from."""

    def open(self, names: Sequence[str]) -> "Any":
        """A context: (the part of the network that has all these parameters in it, what enters it)."""
        ...


class ImageInputs:
    """Images, through the frozen part of a network. A context manager."""

    def __init__(
        self,
        backbone: Backbone,
        pixels: Pixels,
        recipe: Recipe,
        n_rows: int,
        compile_: str,
        processes: Processes,
        callbacks: Callbacks,
    ) -> None:
        """Args:
        backbone: the network, of which nothing below a cut may move while it is used.
        pixels: the images; those numbered from 0 to `n_rows` - 1 are the rows of the training.
        recipe: for its augmentation, and the number of epochs.
        n_rows: n.
        compile_: "on", "off" or "auto", of the frozen part.
        processes: the processes that share the memory.
        callbacks: how it is followed.
        """
        self._backbone, self._pixels, self._augment = backbone, pixels, recipe.augment
        self._n_images = n_rows * (recipe.epochs if recipe.augment else 1)
        self._compile, self._processes, self._telling = compile_, processes, callbacks
        self._names: tuple[str, ...] = ()
        self._tail: nn.Module | None = None
        self._source: FromImages | None = None
        self._files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    @contextmanager
    def open(self, names: Sequence[str]) -> Iterator[tuple[nn.Module, Source]]:
        """The tail in which all these parameters lie, and what the trunk below it makes of the images."""
        if self._source is None or tuple(names) != self._names:
            self._files.close()
            parts = cut.cut(self._backbone.module, names)
            trunk = None
            if parts.tail is self._backbone.module:
                self._telling.on_note("torch.fx cannot follow this network: its frozen part runs with what learns.")
            if parts.trunk is not None:
                below = replace(
                    self._backbone, module=parts.trunk, cut=None, last_stage=None
                )  # its vector: the boundary
                trunk = Forward(below, self._compile, self._n_images, self._telling.on_note)
            source = FromImages(self._pixels, self._augment, trunk, memory_bytes(self._processes))
            self._source, self._tail = self._files.enter_context(source), parts.tail
            self._names = tuple(names)
        assert self._tail is not None
        yield self._tail, self._source


class StoreInputs:
    """The stored inputs of the last stage."""

    def __init__(self, backbone: Backbone, store: Store, source: FromStore) -> None:
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
        self._tail = cut.cut(backbone.module, self._stage).tail

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


def memory_bytes(processes: Processes) -> int:
    """What may be kept of images, and as much again of what was computed from them."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _SHARE_OF_MEMORY // processes.size


# --- the images of a Run ----------------------------------------------------------------------------------------------


def pixels_of(
    manifest: Manifest, backbone: Backbone, decode: DecodeSpec, recipe: Recipe, machine: Machine, processes: Processes
) -> Pixels:
    """The images of a manifest in its order, not read yet."""
    return Pixels(
        manifest.paths,
        backbone.transform,
        decode,
        memory_bytes=memory_bytes(processes),
        timeout_s=machine.timeout_s,
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
            f"{', '.join(missing[:_SHOWN])}{refused}. Give the folder or CSV that was embedded."
        )
    rows = [place[image_id] for image_id in image_ids]
    columns = {name: [values[i] for i in rows] for name, values in manifest.columns.items()}
    return Manifest(list(image_ids), [manifest.paths[i] for i in rows], columns, manifest.source)


def check_contents(
    pixels: Pixels, image_ids: Sequence[str], contents: Sequence[str], processes: Processes, callbacks: Callbacks
) -> None:
    """Reads every image, each process its share, and compares it with what the Run was made of.

    Raises:
        InputsChanged: with the first of those that are others, or cannot be read.
    """
    mine = processes.share(np.arange(len(image_ids))).tolist()
    pixels.read(mine, callbacks.on_reading)
    wrong = [
        f"{image_ids[i]} ({pixels.failures[i][1] if i in pixels.failures else 'other bytes'})"
        for i in mine
        if pixels.digests[i] != contents[i] or i in pixels.failures
    ]
    wrong = [part for several in processes.gathered(wrong) for part in several]
    if wrong:
        raise InputsChanged(
            f"{len(wrong):,} of {len(image_ids):,} images are not those of the Run: {', '.join(wrong[:_SHOWN])}. "
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
            f"{', '.join(wrong[:_SHOWN])}."
        )
    return [place[image_id] for image_id in image_ids]
