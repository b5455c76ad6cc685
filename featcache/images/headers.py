"""What an image file says of itself before a pixel of it is decoded: its format, size, mode and depth.

A header is read in a fraction of a millisecond and believed as far as it goes: whether the file is whole, only decoding
says. Knows nothing of classes, splits or vectors.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from featcache.errors import ImageError
from featcache.images import FORMATS, MAX_PIXELS, check_size, dicom, opened, undisturbed

_HEAD = 132  # bytes, by which DICOM is known; those of PNG's size and depth are among them
_PNG_DEPTH, _BITS_PER_SAMPLE = 24, 258  # byte of a PNG; TIFF 6.0, section 8


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        kind: as Pillow spells it, or DICOM.
        width, height: in pixels, as they lie in the file.
        mode: Pillow's, or the photometric interpretation of DICOM.
        bits: of each sample.
        n_frames: frames or pages.
        n_bytes: of the file.
    """

    kind: str
    width: int
    height: int
    mode: str
    bits: int
    n_frames: int
    n_bytes: int

    def __str__(self) -> str:
        return f"{self.kind} {self.width} x {self.height} {self.mode}"

    def check(self, first_frame: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        """Raises ImageError (`too-large`, `aspect`, `frames`) for what `images.decode` refuses by its header."""
        check_size(self.width, self.height, max_pixels)
        if self.n_frames != 1 and not first_frame:
            raise ImageError(
                "frames", f"{self.n_frames} frames or pages, one is expected; --first-frame takes the first"
            )


def read(path: Path, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of an image file; one of more than twice `max_pixels` is not read to its end.

    Raises:
        ImageError: `missing`, `unreadable`, `not-a-file`, `empty`, `format` (not an accepted one), `too-large`, `dicom`
            or `damaged`.
    """
    with opened(path) as file:
        head = file.read(_HEAD)
        if not head:
            raise ImageError("empty", "zero bytes")
        file.seek(0)
        n_bytes = os.fstat(file.fileno()).st_size
        if dicom.is_dicom(head):
            return Header("DICOM", *dicom.header(file), n_bytes=n_bytes)
        return _of_picture(file, head, n_bytes, max_pixels)


def told(path: Path) -> str:
    """The header for people: `PNG 2048 x 2496 L`; `unreadable` or `other` where there is none."""
    try:
        return str(read(path))
    except ImageError as error:
        return "unreadable" if error.code in ("missing", "unreadable", "not-a-file") else "other"


def _of_picture(file: BinaryIO, head: bytes, n_bytes: int, max_pixels: int) -> Header:
    try:
        with undisturbed(max_pixels), Image.open(file, formats=FORMATS) as image:
            n_frames = getattr(image, "n_frames", 1)
            return Header(str(image.format), *image.size, image.mode, _bits(image, head), n_frames, n_bytes)
    except UnidentifiedImageError as error:
        raise ImageError("format", f"not an image of an accepted format ({', '.join(FORMATS)}, DICOM)") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too-large", f"more than {2 * max_pixels:,} pixels; --max-pixels allows it") from error
    except Exception as error:  # as with pixels, Pillow raises nearly anything on damaged bytes
        raise ImageError("damaged", " ".join(f"{type(error).__name__}: {error}".split())[:300]) from error


def _bits(image: Image.Image, head: bytes) -> int:
    """Of a sample, as the file states it where that is not what Pillow makes of it."""
    if image.format == "PNG":
        return head[_PNG_DEPTH]
    if image.format == "TIFF":
        stated = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 1)
        return max(stated) if isinstance(stated, tuple) else int(stated)
    return 1 if image.mode == "1" else 8
