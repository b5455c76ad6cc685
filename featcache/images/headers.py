"""What an image file says of itself before a pixel of it is decoded: its format, size, mode and depth.

A header is read in a fraction of a millisecond and believed as far as it goes: whether the file is whole, only decoding
says. Knows nothing of classes, splits or vectors.
"""

import io
import os
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from featcache.errors import ImageError
from featcache.images import containers, depths, dicom, lean
from featcache.images.containers import Buffer
from featcache.images.decoding import FORMATS, check_size, several_frames, undisturbed
from featcache.images.files import opened
from featcache.specs import MAX_PIXELS

_HEAD = 132  # bytes, by which DICOM is known; those of PNG's size and depth are among them
LARGE_BYTES = 64 << 20  # of a file, from which its header is looked at before it is read
_FILE_BYTES = 16  # of a pixel in a file, at most: twice RGBA of 16 bits
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DEEP_GRAY = b"\x10\0"  # 16 bits, colour type 0: in a PNG behind its width and height
_PNG_DEPTH, _BITS_PER_SAMPLE = 24, 258  # byte of a PNG; TIFF 6.0, section 8


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        kind: as Pillow spells it, or DICOM.
        width, height: in pixels, as they lie in the file.
        mode: Pillow's, or the photometric interpretation of DICOM.
        bits: bits per sample.
        n_frames: frames or pages.
        n_bytes: size of the file.
    """

    kind: str
    width: int
    height: int
    mode: str
    bits: int
    n_frames: int
    n_bytes: int

    @property
    def n_pixels(self) -> int:
        """Pixels of a frame."""
        return self.width * self.height

    @property
    def is_deep(self) -> bool:
        """Whether it is of integer gray of more than 8 bits whose depth nothing in the file says."""
        return self.kind != "DICOM" and depths.is_deep(self.mode)

    def check_bytes(self) -> None:
        """Raises ImageError (`too-large`) for a file that holds far more than its pixels."""
        most = LARGE_BYTES + _FILE_BYTES * self.n_pixels * max(1, self.n_frames)
        if self.n_bytes > most:
            raise ImageError("too-large", f"{self.n_bytes:,} bytes, more than {most:,}, for {self}")

    def __str__(self) -> str:
        return f"{self.kind} {self.width} x {self.height} {self.mode}"

    def check(self, first_frame: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        """Raises ImageError (`too-large`, `aspect`, `frames`) for what is refused by its header."""
        check_size(self.width, self.height, max_pixels, self.kind)
        self.check_bytes()
        if self.n_frames != 1 and not first_frame:
            raise several_frames(self.n_frames)


def read(path: Path, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of an image file; one of more than twice `max_pixels` is not read to its end.

    Raises:
        ImageError: `missing`, `unreadable`, `not-a-file`, or as `of`.
    """
    with opened(path) as file:
        if not os.fstat(file.fileno()).st_size:
            raise ImageError("empty", "zero bytes")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            return of(data, max_pixels)


def of(data: Buffer, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of the bytes of an image file, of which little is looked at.

    Raises:
        ImageError: `format` (not an accepted one), `too-large`, `dicom` or `damaged`.
    """
    start = data[:_HEAD]
    if dicom.is_dicom(start):
        return Header("DICOM", *dicom.header(data), n_bytes=len(data))
    return _of_picture(data, start, max_pixels)


def may_be_deep(path: Path) -> bool:
    """Whether a file may be of integer gray of more than 8 bits, by its first bytes: a PNG says so, any TIFF may be."""
    try:
        with opened(path) as file:
            head = file.read(_PNG_DEPTH + 2)
    except ImageError:
        return False
    return head[:4] in _TIFF or (containers.kind_of(head) == "PNG" and head[_PNG_DEPTH:] == _DEEP_GRAY)


def _of_picture(data: Buffer, start: bytes, max_pixels: int) -> Header:
    try:
        if containers.kind_of(start) == "WEBP":
            width, height, mode, n_frames = lean.webp_header(data)
            return Header("WEBP", width, height, mode, 8, n_frames, len(data))
        file = io.BytesIO(lean_head) if (lean_head := lean.head(data)) is not None else _as_file(data)
        with undisturbed(max_pixels), Image.open(file, formats=FORMATS) as image:
            n_frames = lean.n_frames(data) or int(getattr(image, "n_frames", 1))
            return Header(str(image.format), *image.size, image.mode, _bits(image, start), n_frames, len(data))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("format", f"not an image of an accepted format ({', '.join(FORMATS)}, DICOM)") from error
    except Image.DecompressionBombError as error:
        raise ImageError("too-large", f"more than {2 * max_pixels:,} pixels; max_pixels allows it") from error
    except MemoryError as error:
        raise ImageError("too-large", "not enough memory to read its header") from error
    except Exception as error:  # as with pixels, Pillow raises nearly anything on damaged bytes
        raise ImageError("damaged", " ".join(f"{type(error).__name__}: {error}".split())[:300]) from error


def _as_file(data: Buffer) -> Any:
    return io.BytesIO(data) if isinstance(data, bytes) else data


def _bits(image: Image.Image, head: bytes) -> int:
    """Of a sample, as the file states it where that is not what Pillow makes of it."""
    if image.format == "PNG":
        return head[_PNG_DEPTH]
    if image.format == "TIFF":
        stated = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 1)
        return max(stated) if isinstance(stated, tuple) else int(stated)
    return 1 if image.mode == "1" else 8
