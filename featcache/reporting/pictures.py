"""Images as a page carries them: small, gray, inside the page. And what speaks for and against, laid over them.

The same image gives the same bytes. Carries pixels alone: nothing of a file's header gets into a page.
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
_STRONGEST = 0.62  # how much of the image the strongest evidence covers


def embedded(image: Image.Image, side: int) -> str:
    """A data URI of WebP, with the longer side of this many pixels at most."""
    small = image.convert("RGB") if image.mode != "RGB" else image
    scale = side / max(small.size)
    if scale < 1:
        size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        small = small.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY[side], method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def overlaid(image: Image.Image, evidence: Array) -> Image.Image:
    """The image with (h, w) evidence: red where it speaks for, blue where against, as strong as beside the strongest
    of this image."""
    most = float(np.abs(evidence).max()) or 1.0
    scaled = Image.fromarray((evidence / most).astype(np.float32))
    strength = np.asarray(scaled.resize(image.size, Image.Resampling.BICUBIC)).clip(-1, 1)[..., None]
    base = np.asarray(image.convert("RGB"), dtype=np.float32)
    color = np.where(strength > 0, np.array(_FOR, dtype=np.float32), np.array(_AGAINST, dtype=np.float32))
    cover = _STRONGEST * np.abs(strength)
    return Image.fromarray(np.rint(base * (1 - cover) + color * cover).astype(np.uint8))
