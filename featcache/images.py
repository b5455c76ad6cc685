"""Bytes to pixels: which files are accepted, how they become 8-bit gray or RGB, and the resize and crop of a backbone.

The result of `TransformSpec` equals timm's own evaluation transform bit for bit (`tests/test_images.py`), with one
liberty that changes no value: a grayscale image is resized in one channel and repeated afterwards, which saves a third
of the time on large X-rays. Normalisation happens later, on the device. Knows nothing of networks; needs no torch.
"""

import io
import math
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from featcache.errors import ImageError
from featcache.provenance import Json

Array = np.ndarray[Any, Any]

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")  # what Pillow may try; everything else is refused
MAX_PIXELS = 89_478_485  # Pillow's own warning level (1 GiB of RGB / 4 / 3), here an error
MAX_BYTES = 1 << 30  # of a file, before it is read
MAX_ASPECT = 50  # longer side / shorter side: beyond it a crop shows next to nothing of the image

_INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_ORIENTATION = 0x0112
_TURNS = {  # EXIF orientation (Exif 2.32, 4.6.4 A): what brings the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF 6.0, section 4
CROP_MODES = ("center", "squash")

# How files become 8-bit gray or RGB. Part of every identity: a change here is a change of every vector.
DECODE_POLICY: dict[str, Json] = {
    "decoder": "pillow",
    "orientation": "exif applied",
    "alpha": "composited on black",
    "palette": "to rgb, or gray where every entry is gray",
    "cmyk": "pillow conversion, no colour profile",
    "gray16": "12 bit if the maximum is below 4096, else 16 bit; scaled to 8 bit, rounded",
    "frames": "one only",
}


@dataclass(frozen=True)
class TransformSpec:
    """Resize, crop and normalisation: a callable from a decoded image to pixels, and a part of the identity.

    Attributes:
        input_size: (height, width) of the result, in pixels.
        crop_pct: the shorter side is resized to floor(input_size / crop_pct), then the centre is cropped.
        crop_mode: "center" keeps the aspect ratio, "squash" does not.
        interpolation: nearest, bilinear, bicubic or lanczos, antialiased, as Pillow does it.
        mean, std: per channel (red, green, blue), on a scale from 0 to 1.
    """

    input_size: tuple[int, int]
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if min(self.input_size) < 1 or max(self.input_size) > 4096:
            raise ValueError(f"input_size must be from 1 to 4096, got {self.input_size}")
        if not 0.01 <= self.crop_pct <= 1.0:
            raise ValueError(f"crop_pct must be from 0.01 to 1, got {self.crop_pct}")
        if self.interpolation not in _INTERPOLATION:
            raise ValueError(f"interpolation must be one of {', '.join(_INTERPOLATION)}, got {self.interpolation!r}")
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f"crop_mode must be one of {', '.join(CROP_MODES)}, got {self.crop_mode!r}")
        numbers = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0 or not all(map(math.isfinite, numbers)):
            raise ValueError(f"mean and std must be three finite values, std above 0, got {self.mean} and {self.std}")
        if self.crop_mode == "center" and self.input_size[0] != self.input_size[1]:
            raise ValueError(f"crop_mode center needs a square input_size, got {self.input_size}; use squash")

    def identity(self) -> Json:
        """The fields as JSON; `DECODE_POLICY` stands beside them in an identity."""
        return {**asdict(self), "input_size": list(self.input_size), "mean": list(self.mean), "std": list(self.std)}

    def __call__(self, image: Image.Image) -> Array:
        """(h, w) uint8 for mode L, (h, w, 3) for RGB: resized and cropped."""
        return np.asarray(self._crop(self._resize(image)))

    def _resize(self, image: Image.Image) -> Image.Image:
        height, width = (math.floor(side / self.crop_pct) for side in self.input_size)
        if self.crop_mode == "center":
            shorter, longer = sorted(image.size)
            stretched = int(height * longer / shorter)
            width, height = (height, stretched) if image.width <= image.height else (stretched, height)
        if (width, height) == image.size:
            return image
        if width * height > MAX_PIXELS:
            raise ImageError("too-large", f"resized it would be {width} x {height}, more than {MAX_PIXELS:,} pixels")
        return image.resize((width, height), _INTERPOLATION[self.interpolation])

    def _crop(self, image: Image.Image) -> Image.Image:
        """The centre, rounded as torchvision's CenterCrop does it; `_resize` leaves no side shorter than the crop."""
        height, width = self.input_size
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))


def read(path: Path) -> bytes:
    """The bytes of an image file, read once: what is hashed is what is decoded. A FIFO or device is never opened.

    Raises:
        ImageError: `missing`, `unreadable`, or `not-a-file`.
    """
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ImageError("not-a-file", "not a regular file")
        if found.st_size > MAX_BYTES:
            raise ImageError("too-large", f"{found.st_size:,} bytes, more than {MAX_BYTES:,}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError("missing", "the file is gone") from error
    except OSError as error:
        raise ImageError("unreadable", (error.strerror or str(error)).lower()) from error


def decode(data: bytes) -> Image.Image:
    """An image file's bytes as an 8-bit image of mode L or RGB, by `DECODE_POLICY`.

    Raises:
        ImageError: `empty`, `format` (not an allowed format), `too-large`, `aspect`, `frames`, `damaged` (truncated
            data and bad checksums are never accepted quietly), or `mode` (float pixels and other unstated ranges).
    """
    if not data:
        raise ImageError("empty", "zero bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image)
            if image.format == "PNG":
                _check_png(data)
            image.load()
            return _upright(_to_8_bit(image), _orientation(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("format", f"not an image of an accepted format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too-large", f"more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes; one file never stops a pass
        raise ImageError("damaged", f"{type(error).__name__}: {error}") from error


def _check_png(data: bytes) -> None:
    """Every chunk's checksum; decoding alone does not look at those of the pixels."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.verify()


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where it is missing or the EXIF data cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as with pixels, Pillow raises nearly anything; a broken tag does not make the picture unusable
        return 1
    return found if found in _TURNS else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _check_size(image: Image.Image) -> None:
    shorter, longer = sorted(image.size)
    if shorter * longer > MAX_PIXELS:
        raise ImageError("too-large", f"{image.width} x {image.height} is more than {MAX_PIXELS:,} pixels")
    if shorter < 2 or longer > MAX_ASPECT * shorter:
        raise ImageError("aspect", f"{image.width} x {image.height} is too thin to be a picture")
    if (n_frames := getattr(image, "n_frames", 1)) != 1:
        raise ImageError("frames", f"{n_frames} frames or pages, one is expected")


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return _on_black(image) if "transparency" in image.info else image
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I;16") or image.mode == "I":
        return _from_16_bit(image)
    if image.mode == "P":
        return _from_palette(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return _on_black(image)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        return image.convert("RGB")
    raise ImageError("mode", f"pixels of mode {image.mode} have no stated range")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise ImageError("mode", f"integer pixels from {low} to {high} have no stated range")
    full = 4_095 if high < 4_096 else 65_535
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = full - values.astype(np.int32)  # Pillow does this for 8 bit, not for 16
    return Image.fromarray(np.round(values.astype(np.float32) * (255.0 / full)).astype(np.uint8))


def _from_palette(image: Image.Image) -> Image.Image:
    if "transparency" in image.info:
        return _on_black(image)
    rgb = image.convert("RGB")
    red, green, blue = rgb.split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else rgb


def _on_black(image: Image.Image) -> Image.Image:
    gray = image.mode in ("L", "LA", "La")
    layered = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", layered.size, (0, 0, 0, 255)), layered).convert("RGB")
    return flat.getchannel(0) if gray else flat
