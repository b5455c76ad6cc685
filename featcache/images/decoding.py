"""A file's bytes to an 8-bit image: what is accepted, and what is damaged. One file never stops a pass."""

import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from featcache.errors import ImageError
from featcache.images import containers, dicom, lean
from featcache.images.depths import Look, in_bands, is_deep, look_at, to_8_bit
from featcache.specs import MARGIN, DecodeSpec, TransformSpec

Array = np.ndarray[Any, Any]

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")  # what Pillow may try; beside it DICOM, and nothing else
MAX_ASPECT = 50  # longer side / shorter side: beyond it a crop shows next to nothing of the image

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
_NATIVE = {"F;32BF": "F;32NF", "I;16BS": "I;16NS", "I;32BS": "I;32NS"}
_SCALES = (8, 4, 2)  # libjpeg divides sides by them in the inverse cosine transform, so that less is computed


def pixels(data: bytes, transform: TransformSpec, spec: DecodeSpec = DecodeSpec()) -> Array:
    """An image file's bytes as what a network sees of them: decoded and transformed, with the shortcuts of `spec`.

    Returns:
        (h, w) uint8 of gray, or (h, w, 3) of RGB.

    Raises:
        ImageError: as `decode`, or `too-large` once resized.
    """
    return transform(decode(data, spec, transform.shorter_side), spec.fast)


def decode_each(data: bytes, transforms: Sequence[TransformSpec], spec: DecodeSpec = DecodeSpec()) -> list[Image.Image]:
    """An image for each transform: the one that it would get alone, whatever the others need.

    It is decoded once where all need the same, which they do unless `spec` is fast and the file a large JPEG; images
    that are the same are one object.

    Raises:
        ImageError: as `decode`.
    """
    sides = [transform.shorter_side for transform in transforms]
    scales = _scales(data, spec, sides)
    decoded = {scale: decode(data, spec, side) for scale, side in dict(zip(scales, sides, strict=True)).items()}
    return [decoded[scale] for scale in scales]


def decode(data: bytes, spec: DecodeSpec = DecodeSpec(), at_least: int | None = None) -> Image.Image:
    """An image file's bytes as an 8-bit image of mode L or RGB, by the rules of `spec`.

    Args:
        data: bytes of the file.
        spec: the rules.
        at_least: pixels of the shorter side that the caller needs, `TransformSpec.shorter_side`. Where `spec` is fast,
            a JPEG may come smaller than it is, but never with less than `MARGIN` times these. None: the full size.

    Raises:
        ImageError: and nothing else, whatever the bytes. `empty`, `format` (not an accepted one), `too-large`,
            `aspect`, `frames`, `damaged` (truncated data and bad checksums are never accepted quietly), `mode` (pixels
            of no stated range), or `dicom`.
    """
    with _reading(data, spec):
        if dicom.is_dicom(data):
            return dicom.decode(data, spec.first_frame, spec.max_pixels, check_size)
        with _loaded(data, spec, at_least) as (image, is_inverted):
            flat, orientation = to_8_bit(image, spec, data), _orientation(image)
        return _upright(in_bands(flat, flat.mode, ImageOps.invert) if is_inverted else flat, orientation)


def from_pillow(image: Image.Image, spec: DecodeSpec = DecodeSpec()) -> Image.Image:
    """An image that Pillow has opened or made as `decode` makes it of its file: upright, and of mode L or RGB.

    Raises:
        ImageError: `too-large`, `aspect`, `damaged`, or what `depths.to_8_bit` raises.
    """
    with _reading(b"opened", spec):
        check_size(image.width, image.height, spec.max_pixels)
        orientation = _orientation(image)
        return _upright(to_8_bit(image.copy(), spec, b""), orientation)  # a copy knows of no file


def look(data: bytes, spec: DecodeSpec = DecodeSpec()) -> Look:
    """What the pixels of an image file are, before a depth is decided for its set.

    Raises:
        ImageError: as `decode`.
    """
    with _reading(data, spec):
        if dicom.is_dicom(data):
            return look_at(dicom.decode(data, spec.first_frame, spec.max_pixels, check_size))
        with _loaded(data, spec, None) as (image, _):
            return look_at(image if is_deep(image.mode) else to_8_bit(image, spec, data))


@contextmanager
def _reading(data: bytes, spec: DecodeSpec) -> Iterator[None]:
    """Turns whatever decoding raises into an ImageError."""
    if not data:
        raise ImageError("empty", "zero bytes")
    try:
        with undisturbed(spec.max_pixels):
            yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Image.DecompressionBombError as error:
        raise ImageError("too-large", f"more than {spec.max_pixels:,} pixels; max_pixels allows it") from error
    except MemoryError as error:
        raise ImageError("too-large", "not enough memory to decode it") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes; one file never stops a pass
        raise ImageError("damaged", " ".join(f"{type(error).__name__}: {error}".split())[:300]) from error


class _Undisturbed:
    """Pillow's limit and the warning filters of the process, and how many threads are decoding with them set aside."""

    lock = threading.Lock()
    n_inside = 0
    limit: int | None = None
    filters = warnings.catch_warnings()


@contextmanager
def undisturbed(max_pixels: int) -> Iterator[None]:
    """While any thread decodes: no warning is printed, and Pillow's own limit is ours.

    Both are settings of the process and have no local form; they are put back when the last thread leaves.
    """
    with _Undisturbed.lock:
        if _Undisturbed.n_inside == 0:
            _Undisturbed.limit, _Undisturbed.filters = Image.MAX_IMAGE_PIXELS, warnings.catch_warnings()
            _Undisturbed.filters.__enter__()
            warnings.simplefilter("ignore")
            Image.MAX_IMAGE_PIXELS = max_pixels
        Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
        _Undisturbed.n_inside += 1
    try:
        yield
    finally:
        with _Undisturbed.lock:
            _Undisturbed.n_inside -= 1
            if _Undisturbed.n_inside == 0:
                Image.MAX_IMAGE_PIXELS = _Undisturbed.limit
                _Undisturbed.filters.__exit__(None, None, None)


@contextmanager
def _loaded(data: bytes, spec: DecodeSpec, at_least: int | None) -> Iterator[tuple[Image.Image, bool]]:
    """The image as it lies in the file, and whether its gray is still to be inverted."""
    if containers.kind_of(data) == "WEBP":
        check_size(*lean.webp_header(data)[:2], spec.max_pixels, "WEBP")
    original, (data, is_inverted) = data, containers.black_is_zero(lean.lean(data))
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        check_size(image.width, image.height, spec.max_pixels)
        containers.check_whole(image.format, original)
        if not spec.first_frame and (n_frames := lean.n_frames(original) or int(getattr(image, "n_frames", 1))) != 1:
            raise several_frames(n_frames)
        _mend_byte_order(image)
        if (scale := _scale(image, spec, at_least)) > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        image.load()
        _check_last_row(image, data)
        yield image, is_inverted


def _scale(image: Image.Image, spec: DecodeSpec, at_least: int | None) -> int:
    """By how much a file's sides are divided while it is decoded: 1, or what libjpeg offers for gray and YCbCr."""
    if not spec.fast or at_least is None or image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return 1
    return next((scale for scale in _SCALES if min(image.size) >= scale * MARGIN * at_least), 1)


def _scales(data: bytes, spec: DecodeSpec, sides: Sequence[int]) -> list[int]:
    """Equal for those of `sides` that one decoded image serves. Bytes that cannot be opened are left to `decode`."""
    if not spec.fast or len(set(sides)) == 1 or containers.kind_of(data) != "JPEG":
        return [1] * len(sides)
    try:
        with undisturbed(spec.max_pixels), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return [_scale(image, spec, side) for side in sides]
    except Exception:
        return [1] * len(sides)


def _check_last_row(image: Image.Image, data: bytes) -> None:
    """Costs an inflation more where the last row is black or the rows lie in disorder; most images are spared it."""
    if image.format == "PNG":
        last = image.crop((0, image.height - 1, *image.size))
        if "interlace" in image.info or last.getbbox() is None:
            containers.check_png_rows(data)


def _unidentified(data: bytes) -> ImageError:
    """Why no decoder took the bytes: damage, where they begin as an image does."""
    if (kind := containers.kind_of(data)) is not None:
        containers.check_whole(kind, data)
        return ImageError("damaged", f"the header of the {kind} file is not valid")
    if data[:2] in (b"II", b"MM"):
        return ImageError("format", "a damaged TIFF, or one of pixels that are not read (1 to 16 bits are)")
    if dicom.is_headless(data):
        reason = "it looks like DICOM without the preamble that says so; rewrite it as a DICOM file (dcmconv +F)"
        return ImageError("format", reason)
    return ImageError("format", f"not an image of an accepted format ({', '.join(FORMATS)}, DICOM with its preamble)")


def _mend_byte_order(image: Image.Image) -> None:
    """libtiff gives values in the byte order of the machine. Pillow 13 knows this for 16 bits without sign only, and
    reads a compressed big-endian TIFF of floats as nonsense near zero."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    image.tile = [
        tile._replace(args=(_NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple)
        else tile
        for tile in image.tile
    ]


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where it is missing or the EXIF data cannot be read. Pillow turns TIFF itself."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as with pixels, Pillow raises nearly anything; a broken tag does not make the picture unusable
        return 1
    return orientation if orientation in _TURNS else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def several_frames(n_frames: int) -> ImageError:
    """The error of an image of several frames."""
    counted = f"more than {lean.MOST_FRAMES:,}" if n_frames > lean.MOST_FRAMES else f"{n_frames:,}"
    return ImageError("frames", f"{counted} frames or pages, one is expected; first_frame takes the first")


def check_size(width: int, height: int, max_pixels: int, kind: str = "") -> None:
    """Raises ImageError (`too-large`, `aspect`) for a size that is not decoded. A WebP may have half the pixels
    of other formats: Pillow holds it four times."""
    shorter, longer = sorted((width, height))
    if shorter * longer > (most := max_pixels // 2 if kind == "WEBP" else max_pixels):
        raise ImageError("too-large", f"{width} x {height} is more than {most:,} pixels; max_pixels allows it")
    if shorter < 2 or longer > MAX_ASPECT * shorter:
        raise ImageError("aspect", f"{width} x {height} is too thin to be a picture")
