"""How precise the arithmetic of a pass is: chosen on a few of its own images, measured, and never lossy in silence.

A precision is a part of the identity. A store, or the parts of a stopped pass, therefore decide for whoever asks for
"auto" at their path. Where nothing is decided yet, a CPU takes float32, and a GPU the fastest whose vectors of the
canaries have a cosine of at least `BOUND` with those of float32.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from featcache.embedding.network import BOUND, Array, Note
from featcache.images.cache import stamp_of
from featcache.images.workers import Decoders
from featcache.manifest import Manifest
from featcache.specs import PRECISIONS, AugmentedCopies, BackboneSpec, DecodeSpec, TransformSpec
from featcache.store import held_identity

N_CANARIES = 16
_CANDIDATES = ("float32", "tf32", "float16", "bfloat16")
_TRIALS = 3


@dataclass(frozen=True)
class Canaries:
    """A few images of a pass, spread over its files; those that cannot be decoded are left out."""

    manifest: Manifest
    decode: DecodeSpec
    timeout_s: float

    def __call__(self, transform: TransformSpec) -> list[Array]:
        """At most `N_CANARIES` arrays, (h, w) or (h, w, 3) uint8."""
        return [pixels[0][0] for _, pixels in self.timed([transform], None, N_CANARIES, 1)[0]]

    def timed(
        self, transforms: Sequence[TransformSpec], augmentations: AugmentedCopies | None, n: int, n_workers: int
    ) -> tuple[list[tuple[float, Sequence[Array]]], int]:
        """At most n of them as `Decoders` makes them, each with the moment at which it was decoded, on the clock of
        `time.perf_counter`; and what the decoders took of memory, in bytes."""
        rows = np.unique(np.linspace(0, len(self.manifest.paths) - 1, n).astype(int)).tolist()
        paths = [self.manifest.paths[i] for i in rows if self.manifest.image_ids[i] not in self.manifest.refused]
        with (
            Decoders(transforms, self.decode, augmentations, self.timeout_s) as decoders,
            ThreadPoolExecutor(n_workers) as pool,
        ):

            def decode(path: Path) -> tuple[float, Sequence[Array] | None]:
                pixels = decoders.prepare(path, stamp_of(path), ()).pixels
                return time.perf_counter(), pixels

            decoded = [(when, pixels) for when, pixels in pool.map(decode, paths) if pixels is not None]
            return decoded, decoders.memory_bytes


def settle(spec: BackboneSpec, stored: str | None, device: str, canaries: Canaries, on_note: Note) -> BackboneSpec:
    """The spec with "auto" replaced.

    Args:
        spec: what is asked.
        stored: the precision of what lies at the path already; None where nothing does.
        device: "auto", "cpu", "cuda" or "cuda:N".
        canaries: images to measure with.
        on_note: told what was chosen, and by what figures.
    """
    if spec.precision != "auto":
        return spec
    if stored is not None:
        return replace(spec, precision=stored)
    from featcache import devices

    chosen = devices.choose(device)
    if not chosen.startswith("cuda"):
        return replace(spec, precision="float32")
    return replace(spec, precision=_fastest(spec, chosen, canaries, on_note))


def held_precision(store_path: Path) -> str | None:
    """That of the store or of the stopped pass at a path; None where there is neither, or one that nobody knows."""
    identity = held_identity(store_path)
    precision = identity.get("precision") if isinstance(identity, dict) else None
    return precision if precision in PRECISIONS and precision != "auto" else None


def _fastest(spec: BackboneSpec, device: str, canaries: Canaries, on_note: Note) -> str:
    """The fastest on a GPU of those that stay within the bound."""
    from featcache import backbones
    from featcache.embedding.forward import Forward

    backbone = backbones.load(replace(spec, precision="float32"), device)
    images = canaries(backbone.transform)
    if not images:
        return "float32"

    @cache
    def seconds(precision: str) -> float:
        forward = Forward(replace(backbone, precision=precision), "off", 0, on_note)
        batch = [images[i % len(images)] for i in range(forward.batch_size)]
        forward.vectors(batch)
        started = time.perf_counter()
        for _ in range(_TRIALS):
            forward.vectors(batch)
        return time.perf_counter() - started

    for precision in sorted(_CANDIDATES, key=seconds):
        cosine = Forward(replace(backbone, precision=precision), "off", 0, on_note).drift(images) or 0.0
        if precision == "float32" or cosine >= BOUND:
            on_note(
                f"precision {precision}: {seconds('float32') / seconds(precision):.1f} times as fast as float32, with "
                f"a cosine of at least {cosine:.6f} on {len(images)} of the images."
            )
            return precision
    return "float32"
