"""Small images as data URIs, and overlays of class activation maps.

The same image gives the same bytes. Only pixels are kept: no metadata of the file enters the page.
"""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]

LARGE, SMALL, TINY = 224, 96, 72  # pixels of the longer side: on cards, of neighbours, on maps
_QUALITY = {LARGE: 58, SMALL: 50, TINY: 42}
_FOR, _AGAINST = (204, 85, 51), (68, 119, 170)  # the colours of the charts
_STRONGEST = 0.62  # opacity of the strongest value


def embedded(image: Image.Image, side: int) -> str:
    """A WebP data URI whose longer side has at most `side` pixels."""
    small = image.convert("RGB") if image.mode != "RGB" else image
    scale = side / max(small.size)
    if scale < 1:
        size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        small = small.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY[side], method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def overlaid(image: Image.Image, activation: Array) -> Image.Image:
    """The image with an (h, w) activation map: red for positive, blue for negative values, scaled to its maximum."""
    most = float(np.abs(activation).max()) or 1.0
    scaled = Image.fromarray((activation / most).astype(np.float32))
    strength = np.asarray(scaled.resize(image.size, Image.Resampling.BICUBIC)).clip(-1, 1)[..., None]
    base = np.asarray(image.convert("RGB"), dtype=np.float32)
    color = np.where(strength > 0, np.array(_FOR, dtype=np.float32), np.array(_AGAINST, dtype=np.float32))
    cover = _STRONGEST * np.abs(strength)
    return Image.fromarray(np.rint(base * (1 - cover) + color * cover).astype(np.uint8))
