"""The images of a training: decoded and resized once, then cropped, or augmented anew, in every epoch.

What is kept is small (a gray radiograph at 256 is 80 kB); images beyond the memory given are decoded again. Every file
is read and compared with its digest before a training begins: what is learnt from is what is on record.
Letters: h, w pixels.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featcache.errors import InputsChanged
from featcache.images import DecodeSpec, TransformSpec, augment
from featcache.images.cache import stamp_of
from featcache.images.workers import TIMEOUT_S, Decoders, Prepared
from featcache.recipe import AugmentSpec

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]


class Pixels:
    """n images by number. A context manager: it starts decoding processes when it needs them.

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
        """Decodes images for the first time: notes their digests and failures, and keeps what there is room for."""
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

    def shown(self, number: int, spec: AugmentSpec | None, epoch: int) -> Array:
        """(h, w) or (h, w, 3) uint8: what the network sees of an image, in an epoch if it is augmented.

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
            why = decoded.failure[1] if decoded.failure else "other bytes"
            raise InputsChanged(f"{self._paths[number]} is not what it was when the training began: {why}.")
        pixels: Array = decoded.pixels[0][0]
        return pixels

    def _decode(self, number: int) -> Prepared:
        path = self._paths[number]
        return self._decoders.prepare(path, stamp_of(path), ())

    def _keep(self, number: int, pixels: Array) -> None:
        if pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[number] = pixels
