"""A Run and new images in, probabilities out: by the very path on which the Run's own predictions came.

Network, preprocessing, views, head, temperature and operating point are those of the Run, found again and compared by
identity. Images go through `embed`, so that what becomes of a bad one is what becomes of it there; vectors that a store
has already are not computed again. Memory holds a block of vectors, whatever the number of images.
Letters: n images, d features, c classes, v vectors of an image (one, or it and its views).
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from featcache.embedding import embed
from featcache.embedding.filling import stored
from featcache.embedding.output import Embedded, failures_path
from featcache.errors import FeatcacheError, IdentityMismatch, ImageError, InputsChanged, UsageError
from featcache.heads import features
from featcache.identity import ArrayDigest, Json, digest_json
from featcache.images import augment, from_pillow
from featcache.manifest import Manifest
from featcache.prediction import bundle, run_backbone
from featcache.prediction.overlap import Overlap
from featcache.prediction.predictions import Model, Predictions
from featcache.runs import Run
from featcache.runs.backbone import differences, identity_of
from featcache.specs import GRID, POOLED, PRECISIONS, DecodeSpec, Request
from featcache.store import VIEWS, Store
from featcache.tables.formats import is_table

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.embedding.forward import Forward

Array = np.ndarray[Any, Any]

_BLOCK_BYTES = 64 << 20  # of vectors, read at once
_IN_MEMORY = (np.ndarray, Image.Image)
_NOT_FINITE = ("not-finite", "network or head gave a value that is not finite")


def load_run(
    path: Path | str, *, weights: str | None = None, device: str = "auto", precision: str | None = None
) -> "Predictor":
    """A Run, or a bundle of one, that can be asked about new images. Torch is loaded when the first image needs it.

    Args:
        path: the folder of a Run, or the file of a bundle.
        weights: where the backbone's weights are, if the store of the Run had them from a file.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        precision: precision of the arithmetic; None for that of the Run's vectors. Another precision
            changes probabilities slightly.

    Raises:
        StoreNotFound: nothing is there. UnknownFormat: something else is there. CorruptStore: it is damaged.
        UntrustedFile: a bundle that asks for more than being read.
    """
    path = Path(path)
    if not path.is_file():
        return Predictor(Run.open(path), path, weights, device, precision)
    folder = Path(tempfile.mkdtemp(prefix="featcache-"))
    try:
        return Predictor(bundle.unpack(path, folder / path.name), path, weights, device, precision, folder)
    except BaseException as error:
        _name(error, path, folder / path.name)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _name(error: object, path: Path, unpacked: Path) -> None:
    """An error about the folder that a bundle was unpacked to becomes one about the bundle."""
    if isinstance(error, FeatcacheError):
        error.args = tuple(str(argument).replace(str(unpacked), str(path)) for argument in error.args)


class Predictor:
    """A Run that can be asked about new images; made by `load_run`. A context manager: what a bundle was unpacked to is
    removed at its end, or when it is no longer used.

    Attributes:
        run: its record.
        model: its head.
        path: the Run or bundle, as it was named.
    """

    def __init__(
        self,
        run: Run,
        path: Path,
        weights: str | None = None,
        device: str = "auto",
        precision: str | None = None,
        unpacked: Path | None = None,
    ) -> None:
        """Args:
        run: its record.
        path: as it was named.
        weights, device, precision: as in `load_run`.
        unpacked: a folder that is removed when this is no longer used.
        """
        if precision is not None and precision not in PRECISIONS:
            raise UsageError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
        self.run, self.path, self.model = run, path, Model.of(run)
        self._weights, self._device, self._precision = weights, device, precision
        remove = partial(shutil.rmtree, unpacked, ignore_errors=True) if unpacked else lambda: None
        self._close = weakref.finalize(self, remove)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: object, traceback: object) -> None:
        _name(error, self.path, self.run.path)
        self._close()

    @property
    def vectors_sha256(self) -> str:
        """Of all that decides the vectors of an image: what is kept of a stopped pass has to agree in it."""
        return digest_json([identity_of(self.run), self.model.tap, self.model.tta, self._precision])

    @property
    def classes(self) -> list[str]:
        """The c names, in the order of the columns of probabilities."""
        return self.model.classes

    def predict(
        self, images: "Manifest | Store | Path | str | Array | Image.Image | Sequence[Any]", **options: Any
    ) -> Predictions:
        """Probabilities of images.

        Args:
            images: a manifest; a store of vectors of the Run's identity; a folder, CSV or image file; files; a Pillow
                image of any mode, which is read as its file would be, or an array, uint8 of (h, w) gray or (h, w, 3)
                RGB, upright; or a list of those two. Where the Run averages over views, those of an array are drawn by
                the digest of its pixels.
            options: `first_frame` and `max_pixels` as in `DecodeSpec`, and those of `embed.embed_all`: compile,
                n_workers, timeout_s, strict, on_progress, on_note.

        Returns:
            A row for each image, in the order given; NaN for one that could not be used, with the reason.

        Raises:
            IdentityMismatch: another network or preprocessing than the Run's.
            UsageError: no image; weights that have to be named.
            FeatcacheError: none of the images could be used.
        """
        try:
            return self._predicted(images, **options)
        except FeatcacheError as error:
            _name(error, self.path, self.run.path)
            raise

    def _predicted(
        self, images: "Manifest | Store | Path | str | Array | Image.Image | Sequence[Any]", **options: Any
    ) -> Predictions:
        if isinstance(images, Store):
            _check_none(options, "a store")
            return self.of_store(images)
        if isinstance(images, str | Path):
            images = [images] if Path(images).is_file() and not is_table(Path(images)) else Manifest.read(images)
        if isinstance(images, Manifest):
            return self._of_manifest(images, **options)
        if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] in (1, 2, 4):
            raise UsageError(
                f"an array of {images.shape}: one image is (h, w) or (h, w, 3), several are a list of such arrays."
            )
        items = _items(images)
        if isinstance(items[0], _IN_MEMORY):
            _check_none(options, "arrays and Pillow images")
            return self._of_pixels(items)
        names = [os.fspath(item) for item in items]
        files = list(dict.fromkeys(names))
        predictions = self._of_manifest(Manifest(files, list(map(Path, files)), {}, Path()), **options)
        row = {name: i for i, name in enumerate(files)}
        return replace(predictions, names=names, logits=predictions.logits[[row[name] for name in names]])

    def of_store(self, store: Store) -> Predictions:
        """Of the rows of a store, and of the images that failed when it was made.

        Raises:
            IdentityMismatch: its vectors are others than the Run's, with a line per field.
            UsageError: it lacks the feature array or the views that the head works on.
        """
        views = self.model.tta
        if lines := differences(self.run, store.identity, tta=views):
            listed = "\n  ".join(lines)
            raise IdentityMismatch(
                f"{store.path} holds other vectors than those of {self.path}:\n  {listed}\nPredict from the images, or "
                f"embed them alike."
            )
        names = [*store.image_ids, *store.failures]
        return self._of_vectors(store, names)

    def of_images(
        self,
        images: Manifest,
        store_path: Path,
        *,
        first_frame: bool = False,
        max_pixels: int | None = None,
        **options: Any,
    ) -> tuple[Predictions, Embedded]:
        """Of the images of a manifest, in its order, through a store of their vectors.

        Args:
            images: which.
            store_path: where their vectors are kept.
            first_frame, max_pixels: as in `DecodeSpec`.
            options: as in `embed.embed_all`.

        Raises:
            What `predict` and `embed.embed_all` raise.
        """
        request = self._request()
        done = embed(
            images,
            store_path,
            request.backbone,
            decode=_decode(request, first_frame, max_pixels),
            augmentations=request.augmentations if self.model.tta else None,
            dtype=request.dtype,
            device=self._device,
            expect=lambda _, identity: self._check(identity),
            **options,
        )
        with Store.open(store_path) as store:
            if {*store.image_ids, *store.failures} - {*images.image_ids}:
                raise InputsChanged(f"{store_path} was replaced since these images were embedded. Predict again.")
            return self._of_vectors(store, images.image_ids), done

    # --- the network

    def _request(self) -> Request:
        """By which vectors like the Run's are made."""
        taps = (POOLED, GRID) if self.model.tap == GRID else (POOLED,)
        request = run_backbone.request_of(self.run, self._weights, taps)
        if self._precision is None:
            return request
        return replace(request, backbone=replace(request.backbone, precision=self._precision))

    def _check(self, identity: Json) -> None:
        """Raises IdentityMismatch for a network that is not the Run's, before it computes anything."""
        views, freely = self.model.tta, self._precision is not None
        run_backbone.check(self.run, differences(self.run, identity, tta=views, any_precision=freely), self._weights)

    @cached_property
    def _network(self) -> tuple["Backbone", Request, "Forward"]:
        """The Run's network at work in this process, for images that are in memory already."""
        from featcache import devices
        from featcache.embedding.forward import Forward

        requested = self._request()
        device = devices.choose(self._device)
        backbone, request = run_backbone.backbone_of(
            self.run, self._weights, device, requested.backbone.taps, self._precision
        )
        return backbone, request, Forward(backbone, "off", 0, lambda text: None)

    # --- vectors to predictions

    def _of_vectors(self, store: Store, names: list[str]) -> Predictions:
        """Predictions for these images, each a row or a failure of the store."""
        model, place = self.model, {name: i for i, name in enumerate(names)}
        features.check(store, [replace(model.spec, augmentations=False)] if model.tap == GRID else [], model.tta)
        logits = np.full((len(names), len(model.classes)), np.nan, dtype=np.float32)
        rows = [place[name] for name in store.image_ids]
        for start, x in _blocks(store, model):
            logits[rows[start : start + len(x)]] = model.logits(x)
        bad = [name for name in store.image_ids if not np.isfinite(logits[place[name]]).all()]
        logits[[place[name] for name in bad]] = np.nan
        failures = {**store.failures, **dict.fromkeys(bad, _NOT_FINITE)}
        return Predictions(model, names, logits, failures, Overlap.of(self.run, store.content_sha256))

    def _of_manifest(self, images: Manifest, **options: Any) -> Predictions:
        with tempfile.TemporaryDirectory(prefix="featcache-") as folder:
            path = Path(folder) / "vectors.h5"
            try:
                return self.of_images(images, path, **options)[0]
            except FeatcacheError as error:
                if none_was_used(error, path):
                    raise FeatcacheError(str(error).removesuffix(f" See {failures_path(path)}.")) from error
                raise

    def _of_pixels(self, items: Sequence[Array | Image.Image]) -> Predictions:
        for i, array in enumerate(items):
            if isinstance(array, np.ndarray) and (array.dtype != np.uint8 or not _is_one(array)):
                raise UsageError(
                    f"array {i}: uint8 of (h, w) or (h, w, 3) is expected, got {array.dtype} of {array.shape}."
                )
        names = [str(i) for i in range(len(items))]
        logits = np.full((len(items), len(self.classes)), np.nan, dtype=np.float32)
        failures: dict[str, tuple[str, str]] = {}
        step = self._network[2].batch_size
        for start in range(0, len(items), step):
            pixels: dict[int, Array] = {}
            for i in range(start, min(start + step, len(items))):
                try:
                    pixels[i] = self._pixels(items[i])
                except ImageError as error:
                    failures[names[i]] = error.code, str(error)
            if pixels:
                logits[list(pixels)] = self.model.logits(self._vectors(list(pixels.values())))
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1)).tolist()
        failures |= {names[i]: _NOT_FINITE for i in bad if names[i] not in failures}
        logits[bad] = np.nan
        return Predictions(self.model, names, logits, failures)

    def _pixels(self, item: Array | Image.Image) -> Array:
        """(v, h, w) or (v, h, w, 3): what the network sees of decoded pixels."""
        backbone, request, _ = self._network
        fast, transform = request.decode.fast, backbone.transform
        image = item if isinstance(item, Image.Image) else Image.fromarray(item)
        image = from_pillow(image, request.decode)
        resized = transform.resize(image, fast)
        clean = np.asarray(transform.crop(resized))[None]
        if not self.model.tta or request.augmentations is None:
            return clean
        array = np.asarray(image)
        digest = ArrayDigest(array.dtype, array.shape).update(array).hexdigest()
        return np.concatenate([clean, augment.views(resized, transform, request.augmentations, digest)])

    def _vectors(self, images: Sequence[Array]) -> Array:
        """(m, d) of m images, or (m, v, d) with their views, rounded as the Run's were."""
        _, request, forward = self._network
        flat = [view for views in images for view in views]
        step = forward.batch_size
        vectors = [forward.vectors(flat[i : i + step])[self.model.tap] for i in range(0, len(flat), step)]
        x = stored(np.concatenate(vectors).reshape(len(flat), -1), request.dtype).astype(np.float32)
        return x.reshape(len(images), len(flat) // len(images), -1) if self.model.tta else x


def _check_none(options: dict[str, Any], images: str) -> None:
    if options:
        raise UsageError(f"{', '.join(options)}: for images in files, which {images} are not.")


def _items(images: Any) -> list[Any]:
    """Paths, or what is in memory, one after another.

    Raises:
        UsageError: neither, both, or nothing at all.
    """
    is_one = isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and _is_one(images))
    if not is_one and not isinstance(images, Iterable):
        raise UsageError(
            f"images: a path, a store, a manifest, an image, an array or a list of one of these is expected, got "
            f"{type(images).__name__}."
        )
    items = [images] if is_one else list(images)
    if not items:
        raise UsageError("found 0 images.")
    kind = _IN_MEMORY if isinstance(items[0], _IN_MEMORY) else (str, Path)
    if wrong := [i for i, item in enumerate(items) if not isinstance(item, kind)]:
        raise UsageError(
            f"images are all paths, or all arrays and Pillow images; number {wrong[0]} is "
            f"{type(items[wrong[0]]).__name__}."
        )
    return items


def _is_one(array: Array) -> bool:
    """Whether an array is one image."""
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)


def _decode(request: Request, first_frame: bool, max_pixels: int | None) -> DecodeSpec:
    decode = replace(request.decode, first_frame=first_frame)
    return replace(decode, max_pixels=max_pixels) if max_pixels is not None else decode


def _blocks(store: Store, model: Model) -> Iterator[tuple[int, Array]]:
    """(first row, (m, d) or (m, v, d) vectors of m rows) of all rows in their order."""
    n_views = store.shape(f"features/{VIEWS}")[0][1] if model.tta else 0
    step = max(1, _BLOCK_BYTES // (4 * store.width(model.tap) * (1 + n_views)))
    for start in range(0, len(store), step):
        rows = slice(start, min(start + step, len(store)))
        x = store.features(model.tap, rows).reshape(rows.stop - start, -1)
        yield start, np.concatenate([x[:, None], store.features(VIEWS, rows)], axis=1) if n_views else x


def none_was_used(error: FeatcacheError, store_path: Path) -> bool:
    """Whether a pass has ended because every image failed: there is a list of them, and no store."""
    return type(error) is FeatcacheError and failures_path(store_path).exists() and not store_path.exists()
