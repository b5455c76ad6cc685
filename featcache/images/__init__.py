"""Bytes to pixels: which files are accepted, how they become 8-bit gray or RGB, and the resize and crop of a backbone.

The result of `TransformSpec` equals timm's own evaluation transform bit for bit (`tests/test_images.py`), with one
liberty that changes no value: a grayscale image is resized in one channel and repeated afterwards, which saves a third
of the time on large X-rays. `DecodeSpec.fast` takes shortcuts that do change values, and says so in the identity.
Normalisation happens later, on the device. Knows nothing of networks; needs no torch.

Everything that is converted is converted in bands of rows, so that decoding holds the image twice at most.

    containers  is an image file whole?
    dicom       DICOM to gray or RGB: the only user of pydicom
    headers     what a file says of itself before it is decoded
    augment     views of an image, each by parameters that anyone can compute again
    probe       what the installed libraries make of a few images
    seen        what the last pass saw, so that it need not be looked at again
    workers     decoding in processes that may die
"""

import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from featcache.errors import ImageError
from featcache.images import containers, dicom
from featcache.provenance import Json

Array = np.ndarray[Any, Any]
Stamp = tuple[int, int, int, int]

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")  # what Pillow may try; beside it DICOM, and nothing else
MAX_PIXELS = 89_478_485  # Pillow's own warning level (1 GiB of RGB / 4 / 3), here an error
MAX_BYTES = 1 << 30  # of a file, before it is read
MAX_ASPECT = 50  # longer side / shorter side: beyond it a crop shows next to nothing of the image
MARGIN = 2  # fast: the shorter side is decoded at no less than this many times what it is resized to
REDUCING_GAP = 2.0  # fast: boxes are averaged until this many times the result is left, which is then resampled

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
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2  # TIFF 6.0, sections 4 and 19
_NATIVE = {"F;32BF": "F;32NF", "I;16BS": "I;16NS", "I;32BS": "I;32NS"}
_PNG_GRAY_ALPHA = 4  # the colour type
_BAND_PIXELS = 1 << 22
_SCALES = (8, 4, 2)  # libjpeg divides sides by them in the inverse cosine transform, so that less is computed
_SHORTCUTS = (
    f"jpeg in gray or rgb at 1/2, 1/4 or 1/8 while its shorter side stays at least {MARGIN} times what it is resized "
    f"to; resized with a reducing gap of {REDUCING_GAP}"
)
CROP_MODES = ("center", "squash")


@dataclass(frozen=True)
class DecodeSpec:
    """How files become 8-bit gray or RGB: a part of the identity.

    Attributes:
        bit_depth: bits of integer gray of more than 8 bits, 9 to 16, in every file. None recognises 12 bits where the
            maximum of the image is below 4096, and takes 16 otherwise.
        float_range: (low, high) of float pixels, which become 0 and 255; what lies outside is clipped. None refuses
            float pixels: nothing in the file says what is black.
        first_frame: take the first frame of an animation, a multi-page TIFF or a multi-frame DICOM file.
        max_pixels: images of more are refused before they are decoded.
        fast: take shortcuts that change pixels a little: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where twice
            what is needed remains, and what shrinks to a quarter or less is averaged in boxes before it is resampled.
            Where the size of a JPEG does not divide, its right and lower edge move by less than half a pixel of the
            result.
    """

    bit_depth: int | None = None
    float_range: tuple[float, float] | None = None
    first_frame: bool = False
    max_pixels: int = MAX_PIXELS
    fast: bool = False

    def __post_init__(self) -> None:
        if self.bit_depth is not None and not 9 <= self.bit_depth <= 16:
            raise ValueError(f"bit_depth must be from 9 to 16, got {self.bit_depth}")
        if self.float_range is not None:
            if len(self.float_range) != 2 or not all(map(math.isfinite, self.float_range)):
                raise ValueError(f"float_range must be two finite values, got {self.float_range}")
            if self.float_range[0] >= self.float_range[1]:
                raise ValueError(f"float_range must be low < high, got {self.float_range}")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels must be at least 1, got {self.max_pixels}")

    def identity(self) -> dict[str, Json]:
        """The rules as JSON. A change here is a change of every vector.

        `first_frame` and `max_pixels` are not among them: they decide whether an image has a vector, never which.
        `shortcuts` is there only where they are taken.
        """
        bits = "12 bit if the maximum is below 4096, else 16 bit" if self.bit_depth is None else f"{self.bit_depth} bit"
        rules = {
            "decoder": "pillow",
            "orientation": "exif applied",
            "alpha": "composited on black",
            "palette": "to rgb, or gray where every entry in use is gray",
            "cmyk": "pillow conversion, no colour profile",
            "white_is_zero": "inverted",
            "gray16": f"{bits}; scaled to 8 bit, rounded",
            "colour16": "the high byte; refused where no value reaches 4096",
            "float": "refused" if self.float_range is None else [float(value) for value in self.float_range],
            "frames": "one, the first",
            "dicom": dict(dicom.RULES),
        }
        return {**rules, "shortcuts": _SHORTCUTS} if self.fast else rules


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
        """The fields as JSON; those of `DecodeSpec` stand beside them in an identity."""
        return {**asdict(self), "input_size": list(self.input_size), "mean": list(self.mean), "std": list(self.std)}

    @property
    def shorter_side(self) -> int:
        """Pixels that the shorter side of an image is resized to; under squash, the longer side of the result."""
        return max(self._resized_size())

    def __call__(self, image: Image.Image, fast: bool = False) -> Array:
        """(h, w) uint8 for mode L, (h, w, 3) for RGB: resized and cropped."""
        return np.asarray(self.crop(self.resize(image, fast)))

    def resize(self, image: Image.Image, fast: bool = False) -> Image.Image:
        """The whole image at the scale of the result, not cropped: no side is shorter than the crop.

        What has been resized stays as it is.

        Args:
            image: of mode L or RGB.
            fast: average boxes before resampling, see `DecodeSpec`; changes nothing unless a side shrinks to a quarter
                or less.

        Raises:
            ImageError: `too-large`: a thin image would be enormous once enlarged.
        """
        height, width = self._resized_size()
        if self.crop_mode == "center":
            shorter, longer = sorted(image.size)
            stretched = int(height * longer / shorter)
            width, height = (height, stretched) if image.width <= image.height else (stretched, height)
        if (width, height) == image.size:
            return image
        if width * height > MAX_PIXELS:
            raise ImageError("too-large", f"resized it would be {width} x {height}, more than {MAX_PIXELS:,} pixels")
        gap = REDUCING_GAP if fast else None
        return image.resize((width, height), _INTERPOLATION[self.interpolation], reducing_gap=gap)

    def crop(self, image: Image.Image) -> Image.Image:
        """The centre of a resized image, in input_size, rounded as torchvision's CenterCrop does it."""
        height, width = self.input_size
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def zoom(self, image: Image.Image, side: float, top: float, left: float) -> Image.Image:
        """A part of a resized image, enlarged to input_size.

        Args:
            image: as `resize` makes it.
            side: of the part, above 0 to 1, as a share of the largest crop with the aspect ratio of the result.
            top, left: where it lies, 0 to 1 of the room there is.
        """
        height, width = self.input_size
        scale = side * min(image.height / height, image.width / width)
        x, y = left * (image.width - scale * width), top * (image.height - scale * height)
        box = (x, y, min(x + scale * width, image.width), min(y + scale * height, image.height))
        return image.resize((width, height), _INTERPOLATION[self.interpolation], box=box)

    def _resized_size(self) -> tuple[int, int]:
        """(height, width) before the crop, of an image with the aspect ratio of the result."""
        height, width = (math.floor(side / self.crop_pct) for side in self.input_size)
        return height, width


def stamp(found: os.stat_result) -> Stamp:
    """What tells a file from a changed one: size, time of the last change of its bytes and of its inode, inode."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def read(path: Path, expected: Sequence[int] | None = None) -> bytes:
    """The bytes of an image file, read once: what is hashed is what is decoded. A FIFO or device is never opened.

    Args:
        path: the file.
        expected: its `stamp` when the pass was planned; another one now is a failure.

    Raises:
        ImageError: `missing`, `unreadable`, `not-a-file`, `too-large`, or `changed` (since the plan, or while reading).
    """
    with opened(path) as file:
        found = os.fstat(file.fileno())
        _check_unchanged(expected, found)
        if found.st_size > MAX_BYTES:
            raise ImageError("too-large", f"{found.st_size:,} bytes, more than {MAX_BYTES:,}")
        data = file.read(found.st_size + 1)  # one more, to notice a file that grows
        _check_unchanged((len(data), *stamp(found)[1:]), os.fstat(file.fileno()))
        return data


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading. A FIFO or device is never opened.

    Raises:
        ImageError: `missing`, `unreadable` or `not-a-file`; also for what the block meets while it reads.
    """
    try:
        _check_regular(os.stat(path))
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO put there since cannot block
        with os.fdopen(descriptor, "rb") as file:
            _check_regular(os.fstat(descriptor))
            yield file
    except FileNotFoundError as error:
        raise ImageError("missing", "the file is gone") from error
    except OSError as error:
        raise ImageError("unreadable", (error.strerror or str(error)).lower()) from error


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ImageError("not-a-file", "not a regular file")


def _check_unchanged(expected: Sequence[int] | None, found: os.stat_result) -> None:
    if expected is not None and tuple(expected) != stamp(found):
        raise ImageError("changed", "changed since the pass was planned; run again")


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
        data: of the file.
        spec: the rules.
        at_least: pixels of the shorter side that the caller needs, `TransformSpec.shorter_side`. Where `spec` is fast,
            a JPEG may come smaller than it is, but never with less than `MARGIN` times these. None: the full size.

    Raises:
        ImageError: and nothing else, whatever the bytes. `empty`, `format` (not an accepted one), `too-large`,
            `aspect`, `frames`, `damaged` (truncated data and bad checksums are never accepted quietly), `mode` (pixels
            of no stated range), or `dicom`.
    """
    if not data:
        raise ImageError("empty", "zero bytes")
    try:
        with undisturbed(spec.max_pixels):
            if dicom.is_dicom(data):
                return dicom.decode(data, spec.first_frame, spec.max_pixels, check_size)
            return _upright(*_decode(data, spec, at_least))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Image.DecompressionBombError as error:
        raise ImageError("too-large", f"more than {spec.max_pixels:,} pixels; --max-pixels allows it") from error
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


def _decode(data: bytes, spec: DecodeSpec, at_least: int | None) -> tuple[Image.Image, int]:
    """The 8-bit image as it lies in the file, and its orientation; what it was converted from is free on return."""
    data, inverted = containers.black_is_zero(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        check_size(image.width, image.height, spec.max_pixels)
        containers.check_whole(image.format, data)
        if (n_frames := getattr(image, "n_frames", 1)) != 1 and not spec.first_frame:
            raise ImageError("frames", f"{n_frames} frames or pages, one is expected; --first-frame takes the first")
        _mend_byte_order(image)
        if (scale := _scale(image, spec, at_least)) > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        image.load()
        _check_last_row(image, data)
        flat = _to_8_bit(image, spec, data)
        return (_in_bands(flat, flat.mode, ImageOps.invert) if inverted else flat), _orientation(image)


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
        reason = "it looks like DICOM without the preamble that says so; write it anew as a DICOM file (dcmconv +F)"
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
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as with pixels, Pillow raises nearly anything; a broken tag does not make the picture unusable
        return 1
    return found if found in _TURNS else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises ImageError (`too-large`, `aspect`) for a size that is not decoded."""
    shorter, longer = sorted((width, height))
    if shorter * longer > max_pixels:
        raise ImageError("too-large", f"{width} x {height} is more than {max_pixels:,} pixels; --max-pixels allows it")
    if shorter < 2 or longer > MAX_ASPECT * shorter:
        raise ImageError("aspect", f"{width} x {height} is too thin to be a picture")


# --- to 8 bit ---------------------------------------------------------------------------------------------------------


def _to_8_bit(image: Image.Image, spec: DecodeSpec, data: bytes) -> Image.Image:
    if image.mode in ("1", "L"):
        return _from_gray(image, data)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_floats(image, spec) if image.mode == "F" else _from_integers(image, spec)
    if image.mode == "P":
        return _from_palette(image)
    _check_colour_depth(image, data)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        flat = _on_black(image)
        gray16 = image.format == "PNG" and data[25] == _PNG_GRAY_ALPHA  # which Pillow reads as RGBA
        return flat.getchannel(0) if gray16 and flat.mode == "RGB" else flat
    if image.mode in ("CMYK", "YCbCr"):
        return _in_bands(image, "RGB", lambda band: band.convert("RGB"))
    if image.mode == "RGB":
        return image
    raise ImageError("mode", f"pixels of mode {image.mode} have no stated range")


def _in_bands(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`convert`, pixel by pixel, from one band of rows to the next: no copy of the whole but the result."""
    result = Image.new(mode, image.size)
    n_rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, n_rows):
        band = image.crop((0, top, image.width, min(top + n_rows, image.height)))
        result.paste(convert(band), (0, top))
    return result


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


def _from_integers(image: Image.Image, spec: DecodeSpec) -> Image.Image:
    """Gray of 9 to 16 bits through a table; a transparent value becomes black before the depth is recognised."""
    low, high = 0, 0
    for top in range(0, image.height, n_rows := max(1, _BAND_PIXELS // image.width)):
        values = _integers(image.crop((0, top, image.width, min(top + n_rows, image.height))))
        low, high = min(low, int(values.min())), max(high, int(values.max()))
    full = (1 << (spec.bit_depth or (12 if high < 4_096 else 16))) - 1
    if low < 0 or high > full:
        stated = f" of {spec.bit_depth} bits" if spec.bit_depth else ""
        raise ImageError("mode", f"integer pixels{stated} from {low} to {high} have no stated range")
    table = np.round(np.arange(full + 1) * (255.0 / full)).astype(np.uint8)
    return _in_bands(image, "L", lambda band: Image.fromarray(table[_integers(band)]))


def _integers(band: Image.Image) -> Array:
    values = np.asarray(band)
    level = band.info.get("transparency")
    return values if level is None else np.where(values == level, 0, values)


def _from_floats(image: Image.Image, spec: DecodeSpec) -> Image.Image:
    if spec.float_range is None:
        raise ImageError("mode", "float pixels have no stated range; --float-range LOW,HIGH states it")
    low, high = spec.float_range

    def scaled(band: Image.Image) -> Image.Image:
        values = np.asarray(band).astype(np.float64)
        if not np.isfinite(values).all():
            raise ImageError("mode", "float pixels that are not finite")
        return Image.fromarray(np.round((values.clip(low, high) - low) * (255.0 / (high - low))).astype(np.uint8))

    return _in_bands(image, "L", scaled)


def _from_palette(image: Image.Image) -> Image.Image:
    """Through the 256 entries, each composited on black; gray if those in use are."""
    indexes = image.crop((0, 0, 2, 2)).resize((256, 1))
    indexes.putdata(range(256))
    entries = np.asarray(_on_black(indexes) if "transparency" in image.info else indexes.convert("RGB"))[0]  # (256, 3)
    tables = [column.tolist() for column in entries.T]
    used = entries[np.array(image.histogram()) > 0]
    if (used == used[:, :1]).all():
        return image.point(tables[0], "L")
    return _in_bands(image, "RGB", lambda band: Image.merge("RGB", [band.point(table, "L") for table in tables]))


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
    found = getattr(image, "tag_v2", {}).get(tag, default)
    return max(found) if isinstance(found, tuple) else int(found)


def _on_black(image: Image.Image) -> Image.Image:
    """Equal to `Image.alpha_composite` for every pair of colour and alpha, in half the memory."""

    def flat(band: Image.Image) -> Image.Image:
        layered = band.convert("LA") if gray else band.convert("RGBA")
        black = Image.new(mode, band.size)
        black.paste(layered, mask=layered)
        return black

    gray = image.mode in ("LA", "La")
    mode = "L" if gray else "RGB"
    return _in_bands(image, mode, flat)
