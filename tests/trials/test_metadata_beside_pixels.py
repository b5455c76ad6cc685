"""A PNG with a colour profile or a text of 2 MB was called damaged. What is not pixels is left out, whatever its size
and however it is broken; damage to pixels still fails."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from featcache.errors import ImageError
from featcache.images import decode, headers, lean
from featcache.specs import DecodeSpec
from tests.encoders import chunk, png, tiff

GRAY = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
LARGE = zlib.compress(bytes(2 << 20))
BOMB = zlib.compress(bytes(64 << 20), 9)
EXIF = b"MM\0*\0\0\0\x08" + bytes(65_000)


def saved(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(GRAY).save(buffer, kind, **options)
    return buffer.getvalue()


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def files() -> Iterator[tuple[str, bytes, bytes]]:
    """(name, a file with much beside its pixels, the same picture without)."""
    bare = png(GRAY)
    for name, before in {
        "profile": chunk(b"iCCP", b"p\0\0" + LARGE),
        "profile-bomb": chunk(b"iCCP", b"p\0\0" + BOMB),
        "profile-broken": chunk(b"iCCP", b"p\0\0junk"),
        "text": chunk(b"zTXt", b"c\0\0" + LARGE),
        "texts": chunk(b"zTXt", b"c\0\0" + LARGE) * 40,
        "international-text": chunk(b"iTXt", b"c\0\1\0\0\0" + BOMB),
        "xmp-bomb": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
        "profile-of-exif-bomb": chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
        "exif": chunk(b"eXIf", b"MM\0*\0\0\0\x08" + bytes(5 << 20)),
    }.items():
        yield f"png-{name}", png(GRAY, before=before), bare
    yield "png-text-at-the-end", bare[:-12] + chunk(b"zTXt", b"c\0\0" + LARGE) + bare[-12:], bare
    jpeg = saved("JPEG")
    for name, segments in {
        "exif": segment(0xE1, b"Exif\0\0" + EXIF),
        "profile": segment(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(65_000)),
        "comments": segment(0xFE, bytes(65_000)),
    }.items():
        yield f"jpeg-{name}", jpeg[:2] + segments * 200 + jpeg[2:], jpeg
    gif = saved("GIF")
    end = 13 + (3 << (gif[10] & 7) + 1)
    yield "gif-comment", gif[:end] + b"!\xfe" + (b"\xff" + bytes(255)) * 8_000 + b"\0" + gif[end:], gif
    webp = saved("WEBP", lossless=True)
    yield "webp-profile", saved("WEBP", lossless=True, icc_profile=bytes(5 << 20)), webp
    for order in "<>":
        for compression in (1, 8):
            bare = tiff(GRAY, order=order, compression=compression)
            tag = (34_675, 4, tuple(range(300_000)))
            yield (
                f"tiff-profile{order}{compression}",
                tiff(GRAY, order=order, compression=compression, tags=(tag,)),
                bare,
            )


FILES = {name: (data, bare) for name, data, bare in files()}


@pytest.mark.parametrize("name", FILES)
def test_what_is_beside_the_pixels_changes_none(name: str) -> None:
    data, bare = FILES[name]
    assert np.array_equal(np.asarray(decode(data)), np.asarray(decode(bare)))
    stated, expected = headers.of(data), headers.of(bare)
    assert (str(stated), stated.bits, stated.n_frames) == (str(expected), expected.bits, expected.n_frames)
    assert len(lean.lean(data)) < len(bare) + (1 << 18) or name.startswith("tiff")


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("tiff")])
def test_a_file_that_is_cut_short_is_damaged_whatever_is_beside_its_pixels(name: str) -> None:
    with pytest.raises(ImageError):
        decode(FILES[name][0][:-20])


def test_damage_to_pixels_fails_beside_a_large_text() -> None:
    data = bytearray(png(GRAY, before=chunk(b"zTXt", b"c\0\0" + LARGE)))
    data[data.rfind(b"IDAT") + 20] ^= 255
    with pytest.raises(ImageError, match="checksum"):
        decode(bytes(data))


def test_the_orientation_is_kept_where_the_rest_is_left_out() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    jpeg = saved("JPEG", exif=turned.tobytes())
    stuffed = jpeg[:2] + segment(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(65_000)) * 200 + jpeg[2:]
    assert decode(stuffed).size == decode(jpeg).size == (20, 24)
    of_png = saved("PNG", exif=turned.tobytes())
    at = of_png.find(b"IDAT") - 4
    assert decode(of_png[:at] + chunk(b"iCCP", b"p\0\0" + LARGE) + of_png[at:]).size == (20, 24)


def test_the_first_page_is_taken_where_a_directory_is_made_lean() -> None:
    tag = (34_675, 4, tuple(range(300_000)))
    data = tiff(GRAY, tags=(tag,), photometric=0)
    assert np.array_equal(np.asarray(decode(data, DecodeSpec(first_frame=True))), 255 - GRAY)
