"""Whether two machines compute the same vectors in a low precision, by what they make of images built in here.

In bfloat16 or float16 the kernels of one kind of processor round differently from those of another: for MobileNetV2,
AVX2 and AMX differ by up to 1 % (a cosine of 0.99996), and not at all in float32. The identity cannot tell them apart,
so a pass keeps the vectors of two images with its environment, and whoever adds to its store compares.
"""

import base64
import binascii
import os
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_IMAGES = 2
_FEATURES = 512  # of each vector, at most: an environment is a few kilobytes


def images(height: int, width: int) -> list[Array]:
    """(h, w) uint8 images of smooth waves, the same everywhere."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(2 * np.pi * (k * x + y)) * np.cos(2 * np.pi * (k + 2) * y) for k in range(1, _IMAGES + 1)]
    return [np.rint(127.5 + 120 * wave).astype(np.uint8) for wave in waves]


def name() -> str:
    """The kernels of this processor, as torch chooses them."""
    import torch

    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{capability}{', AMX' if amx and not limit else ''}{f', oneDNN up to {limit}' if limit else ''}"


def packed(vectors: Array) -> str:
    """Some features of (m, d) vectors as text, each vector scaled to length 1."""
    some = vectors[:, :: -(-vectors.shape[1] // _FEATURES)].astype(np.float64)
    unit = some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return base64.b64encode(unit.astype("<f2").tobytes()).decode("ascii")


def cosine(one: str, other: str) -> float | None:
    """The smallest cosine of the vectors of two texts; None where they cannot be compared."""
    try:
        a, b = (np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float64) for text in (one, other))
    except (binascii.Error, ValueError):
        return None
    if len(a) != len(b) or not len(a) or len(a) % _IMAGES:
        return None
    a, b = a.reshape(_IMAGES, -1), b.reshape(_IMAGES, -1)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    least = float(np.min((a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)))
    return least if np.isfinite(least) else None
