"""What the installed libraries make of a few images: one digest, for the identity of every vector.

A library update that changes how files are decoded or resized changes vectors without a change of any setting. So a few
images built in here, whose bytes no installed encoder had a hand in, are decoded and transformed, and the sha256 of
what comes out stands in the identity: after such an update the old store says that it was made otherwise. Needs neither
torch nor timm, and no file. DICOM is not probed: its gray is computed here, its codecs may be absent. Where shortcuts
are taken, the images are also shrunk so far that every shortcut has something to do.
"""

import base64
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np

from featcache.errors import ImageError
from featcache.identity import digest_arrays
from featcache.images import augment, decoding
from featcache.specs import MAX_PIXELS, AugmentedCopies, DecodeSpec, TransformSpec

Array = np.ndarray[Any, Any]

_SIDE = 61  # pixels; odd, and smaller than any input size, so that resizing has something to do
_SHRUNK = 6  # pixels; a quarter of the shorter side of every image, at most
_GRAY, _RGB, _PALETTE, _RGBA = 0, 2, 3, 6  # colour types of PNG
_EXIF_TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
_JPEG_GRAY = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqmx5mo
q6T/wAALCAAlAB0BAREA/8QAGAABAQEBAQAAAAAAAAAAAAAAAwQBAgD/xAAhEAACAgICAgMBAAAAAAAAAAABAgADBBEFQRNCEiMkIv/aAAgBAQAAPwBa
HCtsxM20W0FRJuL+hbA3czCHiNu/Ztw7n+A3OMO43XBTKOR/OyAdzcseIVa9l3BuQuuoeFUarwxlPJ/oZCOpuafKKteq6iUoHbRneZSKqSwk/GfoVyep
mGfKbd+rajUHTRc9y+OQZJxP1pZrsT2D/DXa7af/2Q==
"""
_JPEG_COLOUR = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABsSFBcUERsXFhceHBsgKEIrKCUlKFE6PTBCYFVlZF9VXVtqeJmBanGQc1tdhbWGkJ6jq62rZ4C8ybqmx5mo
q6T/2wBDARweHigjKE4rK06kbl1upKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKSkpKT/wAARCAAlAB0DASIAAhEB
AxEB/8QAGAABAQEBAQAAAAAAAAAAAAAABAADBQb/xAAfEAACAgIDAQEBAAAAAAAAAAAAAQIRBBIDImEhMXH/xAAWAQEBAQAAAAAAAAAAAAAAAAAEBQH/
xAAdEQACAQQDAAAAAAAAAAAAAAAAAgMBIUJRETJB/9oADAMBAAIRAxEAPwDncDpjL2jQCDpCsaW0kjXoJkfEbh9E7FcC1UvWGfRr0U1rGPqBuoB7W0ee
irQnGjrJMy4FbGa6xspOo6RMhEu7jQqXaMfEFxO6diuDspeMG6gJK832cLg/Rt3AiKTlGTrU3wviYrH+KX9IgTk1vD//2Q==
"""


def pixels_sha256(transform: TransformSpec, decode: DecodeSpec, augmentations: AugmentedCopies | None = None) -> str:
    """The digest of the built-in images, decoded and transformed, and of a view of each where views are made: equal as
    long as preprocessing is."""
    # Which images are refused for their size changes no vector, and the depth stands in the identity by itself.
    decode = replace(decode, max_pixels=MAX_PIXELS, bit_depth=None, is_settled=False)
    transforms = {"": transform}
    if decode.fast:
        transforms["shrunk "] = replace(transform, input_size=(_SHRUNK, _SHRUNK), crop_pct=1.0)
    pixels = {
        f"{prefix}{name}": _pixels(data, spec, decode)
        for prefix, spec in transforms.items()
        for name, data in _images().items()
    }
    if augmentations:
        one = replace(augmentations, n=1)
        gray, colour = (decoding.decode(base64.b64decode(jpeg), decode) for jpeg in (_JPEG_GRAY, _JPEG_COLOUR))
        pixels |= {f"view {image.mode}": augment.views(image, transform, one, "0" * 64) for image in (gray, colour)}
    return digest_arrays(pixels)


def _pixels(data: bytes, transform: TransformSpec, decode: DecodeSpec) -> Array:
    """What becomes of one image; where it is refused (16 bits, if 12 are stated), the word for why."""
    try:
        return decoding.pixels(data, transform, decode)
    except ImageError as error:
        return np.frombuffer(error.code.encode("ascii"), dtype=np.uint8)


def _images() -> dict[str, bytes]:
    gray = _pattern(256)  # (side, side)
    rgb = np.stack([gray, gray.T, 255 - gray], axis=-1)
    alpha = np.concatenate([rgb, gray.T[..., None]], axis=-1)
    jpeg_gray, jpeg_colour = base64.b64decode(_JPEG_GRAY), base64.b64decode(_JPEG_COLOUR)
    return {
        "png gray": _png(gray.astype(np.uint8), 8, _GRAY),
        "png gray 9": _png(_pattern(512).astype(">u2"), 16, _GRAY),
        "png gray 16": _png((_pattern(4096) * 16 + 15).astype(">u2"), 16, _GRAY),
        "png rgb": _png(rgb.astype(np.uint8), 8, _RGB),
        "png rgba": _png(alpha.astype(np.uint8), 8, _RGBA),
        "png palette": _png(gray.astype(np.uint8), 8, _PALETTE),
        "jpeg gray": jpeg_gray,
        "jpeg 4:2:0": jpeg_colour,
        "jpeg turned": _turned(jpeg_colour),
    }


def _pattern(n_levels: int) -> Array:
    """(side, side) of slopes and edges in both directions, by integer arithmetic only."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE]
    pattern: Array = (x * x * 7 + y * 53 + (x // 8 + y // 5) % 2 * 97) * (n_levels // 64 + 1) % n_levels
    return pattern


def _png(pixels: Array, bits: int, colour: int) -> bytes:
    """A PNG, unfiltered and stored without compression."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    palette = bytes(value for i in range(256) for value in (i, 255 - i, i * 5 % 256))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, colour, 0, 0, 0)),
            _chunk(b"PLTE", palette) if colour == _PALETTE else b"",
            _chunk(b"IDAT", zlib.compress(rows, 0)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _turned(jpeg: bytes) -> bytes:
    """The same picture, to be turned by a quarter: the EXIF segment goes behind the start mark."""
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(_EXIF_TURNED) + 2) + _EXIF_TURNED + jpeg[2:]
