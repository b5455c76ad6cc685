"""What a decoder made of a file, in 8 bits: depths, palettes, transparency. Pixels of no stated range are refused.

Everything is converted in bands of rows, so that the image is held twice at most.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from featcache.errors import ImageError
from featcache.specs import DecodeSpec

Array = np.ndarray[Any, Any]

_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2  # TIFF 6.0, sections 4 and 19
_PNG_GRAY_ALPHA = 4  # the colour type
_DEEPEST = 65_535  # of 16 bits, the most that a depth may be
_BAND_PIXELS = 1 << 22
_MAIN_SHARE = 0.98  # of the pixels; the others of a mask that went through JPEG lie along its edges


@dataclass(frozen=True)
class Look:
    """What the pixels of one image are.

    Attributes:
        greatest: the greatest value of integer gray of more than 8 bits; None for any other image.
        n_levels: different gray levels, of 256 at most.
        n_main_levels: the fewest of them that 98 % of the pixels have.
    """

    greatest: int | None
    n_levels: int
    n_main_levels: int


def look_at(image: Image.Image) -> Look:
    """A look at a loaded image of integer gray, or at one of mode L or RGB."""
    greatest = integer_range(image)[1] if is_deep(image.mode) else None
    shift = max(0, (greatest or 0).bit_length() - 8)
    counts = np.zeros(256, dtype=np.int64)
    for band in _bands(image):
        gray = _integers(band) >> shift if greatest is not None else np.asarray(band.convert("L"))
        counts += np.bincount(np.clip(gray, 0, 255).reshape(-1), minlength=256)
    shares = np.cumsum(np.sort(counts)[::-1]) / counts.sum()
    return Look(greatest, int(np.count_nonzero(counts)), int(np.searchsorted(shares, _MAIN_SHARE - 1e-9)) + 1)


def to_8_bit(image: Image.Image, spec: DecodeSpec, data: bytes) -> Image.Image:
    """A loaded image of any mode in mode L or RGB, by the rules of `spec`; `data` are the bytes of its file.

    Raises:
        ImageError: `mode`: pixels of no stated range.
    """
    if image.mode in ("1", "L"):
        return _from_gray(image, data)
    if image.mode == "F":
        return _from_floats(image, spec)
    if is_deep(image.mode):
        return _from_integers(image, spec)
    if image.mode == "P":
        return _from_palette(image)
    _check_colour_depth(image, data)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        flat = _on_black(image)
        gray16 = image.format == "PNG" and data[25] == _PNG_GRAY_ALPHA  # which Pillow reads as RGBA
        return flat.getchannel(0) if gray16 and flat.mode == "RGB" else flat
    if image.mode in ("CMYK", "YCbCr"):
        return in_bands(image, "RGB", lambda band: band.convert("RGB"))
    if image.mode == "RGB":
        return image
    raise ImageError("mode", f"pixels of mode {image.mode} have no stated range")


def in_bands(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert`, pixel by pixel, from one band of rows to the next: no copy of the whole but the result."""
    result, top = Image.new(mode, image.size), 0
    for band in _bands(image):
        result.paste(convert(band), (0, top))
        top += band.height
    return result


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """Rows of an image, some at a time, from the top."""
    n_rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, n_rows):
        yield image.crop((0, top, image.width, min(top + n_rows, image.height)))


def _from_gray(image: Image.Image, data: bytes) -> Image.Image:
    """Up to 8 bits, which Pillow has scaled; a PNG's transparent level it has not."""
    if _tiff_value(image, _SAMPLE_FORMAT, 1) == _SIGNED:
        raise ImageError("mode", "pixels with a sign have no stated range")
    gray = image.convert("L") if image.mode == "1" else image
    level = image.info.get("transparency")
    if not isinstance(level, int):
        return gray
    full = (1 << data[24]) - 1 if image.format == "PNG" and image.mode == "L" else 255
    transparent = (level & full) * 255 // full
    return gray.point([0 if value == transparent else value for value in range(256)])


def integer_range(image: Image.Image) -> tuple[int, int]:
    """The least and the greatest value of an image of integer gray, and of 0; a transparent value is black."""
    values = [(int(band.min()), int(band.max())) for band in map(_integers, _bands(image))]
    return min(0, *(low for low, _ in values)), max(0, *(high for _, high in values))


def is_deep(mode: str) -> bool:
    """Whether images of a mode of Pillow's are of integer gray of more than 8 bits."""
    return mode == "I" or mode.startswith("I;16")


def _from_integers(image: Image.Image, spec: DecodeSpec) -> Image.Image:
    """Gray of more than 8 bits through a table of its depth."""
    low, high = integer_range(image)
    if low < 0 or high > _DEEPEST:
        raise ImageError("mode", f"integer pixels from {low} to {high} have no stated range")
    if spec.is_settled and spec.bit_depth is None:
        raise ImageError("depth", f"gray of more than 8 bits (values to {high:,}), and no bit_depth is settled for it")
    full = (1 << (spec.bit_depth or (12 if high < 4_096 else 16))) - 1
    if high > full:
        reason = f"its greatest value, {high:,}, is beyond the {spec.bit_depth} bits of this set"
        raise ImageError("depth", f"{reason}; state a bit_depth that holds it for a set of its own")
    table = np.round(np.arange(full + 1) * (255.0 / full)).astype(np.uint8)
    return in_bands(image, "L", lambda band: Image.fromarray(table[_integers(band)]))


def _integers(band: Image.Image) -> Array:
    values = np.asarray(band)
    level = band.info.get("transparency")
    return values if level is None else np.where(values == level, 0, values)


def _from_floats(image: Image.Image, spec: DecodeSpec) -> Image.Image:
    if spec.float_range is None:
        raise ImageError("mode", "float pixels have no stated range; state it as `float_range` (LOW,HIGH)")
    low, high = spec.float_range

    def scaled(band: Image.Image) -> Image.Image:
        values = np.asarray(band).astype(np.float64)
        if not np.isfinite(values).all():
            raise ImageError("mode", "float pixels that are not finite")
        return Image.fromarray(np.round((values.clip(low, high) - low) * (255.0 / (high - low))).astype(np.uint8))

    return in_bands(image, "L", scaled)


def _from_palette(image: Image.Image) -> Image.Image:
    """Through the 256 entries, each composited on black; gray if those in use are."""
    indexes = image.crop((0, 0, 2, 2)).resize((256, 1))
    indexes.putdata(range(256))
    entries = np.asarray(_on_black(indexes) if "transparency" in image.info else indexes.convert("RGB"))[0]  # (256, 3)
    tables = [column.tolist() for column in entries.T]
    used = entries[np.array(image.histogram()) > 0]
    if (used == used[:, :1]).all():
        return image.point(tables[0], "L")
    return in_bands(image, "RGB", lambda band: Image.merge("RGB", [band.point(table, "L") for table in tables]))


def _check_colour_depth(image: Image.Image, data: bytes) -> None:
    """Of colour of 16 bits Pillow keeps the high byte, which is next to nothing of 12 bits stored in 16."""
    if (data[24] if image.format == "PNG" else _tiff_value(image, _BITS_PER_SAMPLE, 8)) != 16:
        return
    if "transparency" in image.info:
        raise ImageError("mode", "colour of 16 bits with a transparent colour; write it with an alpha channel")
    if all(high < 16 for _, high in _extrema(image)[:3]):
        raise ImageError("mode", "colour of 16 bits without a value of 4096 or more has no stated range")


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    return [(low, high) for low, high in image.getextrema()]  # type: ignore[misc]


def _tiff_value(image: Image.Image, tag: int, default: int) -> int:
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return max(value) if isinstance(value, tuple) else int(value)


def _on_black(image: Image.Image) -> Image.Image:
    """Equal to `Image.alpha_composite` for every pair of colour and alpha, in half the memory."""

    def flat(band: Image.Image) -> Image.Image:
        layered = band.convert("LA") if gray else band.convert("RGBA")
        black = Image.new(mode, band.size)
        black.paste(layered, mask=layered)
        return black

    gray = image.mode in ("LA", "La")
    mode = "L" if gray else "RGB"
    return in_bands(image, mode, flat)
