"""A zoo of files: every kind that people keep images in, whole, odd, disguised and broken, each with its pinned answer.

    python -m tests.zoo DIR      writes it and prints what every file is answered

The answer is "ok", the code of a failure, or "skipped". Where it is "ok", the pixels are known from what was encoded,
computed here and not by what is tested: exactly where the format is lossless, within a tolerance where it is not.
"""

import base64
import importlib.util
import io
import math
import os
import socket
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from featcache.specs import DecodeSpec
from tests import encoders
from tests.encoders import GRAY_ALPHA, PALETTE, RGB, RGBA, chunk, dicom, lossless_jpeg, lut, png, png_header, tiff

HAS_DICOM = all(importlib.util.find_spec(name) for name in ("pydicom", "pylibjpeg", "libjpeg", "openjpeg"))
HEIGHT, WIDTH = 20, 24
LOSSY = 8  # gray levels between a smooth picture and what a lossy format makes of it


@dataclass(frozen=True)
class Animal:
    """One file, what it is answered, and what it shows."""

    name: str
    data: bytes
    answer: str = "ok"
    pixels: np.ndarray | None = None
    tolerance: int = 0
    also: tuple[tuple[DecodeSpec, np.ndarray], ...] = field(default=())  # other rules, and what they must give


def _scaled(values: np.ndarray, full: float) -> np.ndarray:
    return np.round(values.astype(np.float64) * 255.0 / full).astype(np.uint8)


def _pictures() -> dict[str, np.ndarray]:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    gray = (y * 8 + x * 4).astype(np.uint8)
    noise = np.random.default_rng(5).integers(0, 1 << 16, (HEIGHT, WIDTH)).astype(np.uint16)
    ramp12 = (np.arange(HEIGHT * WIDTH) * 4095 // (HEIGHT * WIDTH - 1)).reshape(HEIGHT, WIDTH).astype(np.uint16)
    rgb = np.stack([gray, gray[::-1], 255 - gray], axis=-1)
    alpha = np.ascontiguousarray(np.flip(gray)) + np.uint8(3)
    return {"gray": gray, "noise": noise, "ramp12": ramp12, "rgb": rgb, "alpha": alpha}


P = _pictures()
G, C, A, N, R12 = P["gray"], P["rgb"], P["alpha"], P["noise"], P["ramp12"]
RGBA8 = np.dstack([C, A])
LA8 = np.dstack([G, A])


def _on_black(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.round(colour.astype(float) * (alpha[..., None] if colour.ndim == 3 else alpha) / 255).astype(np.uint8)


def _pillow(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Exif 2.32, 4.6.4 A: where the first row and the first column of the file belong."""
    turned = {
        2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.T, 6: pixels[::-1].T, 7: pixels[::-1, ::-1].T, 8: pixels.T[::-1],
    }  # fmt: skip
    return turned.get(orientation, pixels)


# --- PNG --------------------------------------------------------------------------------------------------------------


def _png_animals() -> Iterator[Animal]:
    for bits in (1, 2, 4, 8):
        values = G >> 8 - bits
        full = (1 << bits) - 1
        yield Animal(f"gray{bits}.png", png(values, bits=bits), pixels=_scaled(values, full))
        level = int(values[5, 5])
        clear = np.where(values == level, 0, _scaled(values, full)).astype(np.uint8)
        transparent = png(values, bits=bits, before=chunk(b"tRNS", struct.pack(">H", level)))
        yield Animal(f"gray{bits}-transparent-level.png", transparent, pixels=clear)
    at_12 = (DecodeSpec(bit_depth=16), _scaled(R12, 65_535))
    yield Animal("gray16.png", png(N, bits=16), pixels=_scaled(N, 65_535))
    yield Animal("gray12in16.png", png(R12, bits=16), pixels=_scaled(R12, 4_095), also=(at_12,))
    level = int(N[3, 3])
    clear = np.where(level == N, 0, _scaled(N, 65_535))
    transparent = png(N, bits=16, before=chunk(b"tRNS", struct.pack(">H", level)))
    yield Animal("gray16-transparent-level.png", transparent, pixels=clear)
    yield Animal("gray16-interlaced.png", png(N, bits=16, interlaced=True), pixels=_scaled(N, 65_535))
    wide = np.dstack([N, N[::-1], N[:, ::-1]])
    yield Animal("rgb8.png", png(C, RGB), pixels=C)
    yield Animal("rgb8-interlaced.png", png(C, RGB, interlaced=True), pixels=C)
    yield Animal("rgb16.png", png(wide, RGB, 16), pixels=(wide >> 8).astype(np.uint8))
    yield Animal("rgb12in16.png", png(wide >> 4, RGB, 16), "mode")
    key = chunk(b"tRNS", struct.pack(">HHH", *map(int, C[4, 4])))
    clear = np.where((C[4, 4] == C).all(axis=-1, keepdims=True), 0, C)
    yield Animal("rgb8-transparent-colour.png", png(C, RGB, before=key), pixels=clear)
    yield Animal("rgb16-transparent-colour.png", png(wide, RGB, 16, before=key), "mode")
    yield Animal("la8.png", png(LA8, GRAY_ALPHA), pixels=_on_black(G, A))
    yield Animal("rgba8.png", png(RGBA8, RGBA), pixels=_on_black(C, A))
    opaque = np.full_like(N, 65_535)
    yield Animal("la16.png", png(np.dstack([N, opaque]), GRAY_ALPHA, 16), pixels=(N >> 8).astype(np.uint8))
    wide = np.dstack([wide, opaque])
    yield Animal("rgba16.png", png(wide, RGBA, 16), pixels=(wide[..., :3] >> 8).astype(np.uint8))
    yield from _png_palettes()
    yield from _png_broken()
    for orientation in (*range(1, 9), 9, 0):
        data = _pillow(G, "PNG", exif=_exif(orientation))
        yield Animal(f"turned{orientation}.png", data, pixels=_upright(G, orientation))


def _png_palettes() -> Iterator[Animal]:
    for bits in (1, 2, 4, 8):
        entries = np.random.default_rng(bits).integers(0, 256, (1 << bits, 3)).astype(np.uint8)
        data = png(G >> 8 - bits, PALETTE, bits, chunk(b"PLTE", entries.tobytes()))
        yield Animal(f"palette{bits}.png", data, pixels=entries[G >> 8 - bits])
    entries = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    alphas = np.random.default_rng(1).integers(0, 256, 256).astype(np.uint8)
    plte = chunk(b"PLTE", entries.tobytes())
    flat = _on_black(entries[None], alphas[None])[0]
    data = png(G, PALETTE, before=plte + chunk(b"tRNS", alphas.tobytes()))
    yield Animal("palette-alphas.png", data, pixels=flat[G])
    one = entries.copy()
    one[int(G[0, 0])] = 0
    data = png(G, PALETTE, before=plte + chunk(b"tRNS", b"\xff" * int(G[0, 0]) + b"\0"))
    yield Animal("palette-one-transparent.png", data, pixels=one[G])
    grays = np.repeat(np.arange(255, -1, -1, dtype=np.uint8)[:, None], 3, axis=1)
    yield Animal("palette-of-grays.png", png(G, PALETTE, before=chunk(b"PLTE", grays.tobytes())), pixels=255 - G)
    yield Animal("palette-missing.png", png(G, PALETTE), "damaged")


def _png_broken() -> Iterator[Animal]:
    whole = png(G)
    yield Animal("trailing-garbage.png", whole + b"garbage" * 9, pixels=G)
    yield Animal("cut-half.png", whole[: len(whole) // 2], "damaged")
    yield Animal("cut-4.png", whole[:-4], "damaged")
    yield Animal("cut-12.png", whole[:-12], "damaged")
    yield Animal("only-start.png", whole[:8], "damaged")
    yield Animal("bad-crc-pixels.png", whole[:-17] + bytes([whole[-17] ^ 1]) + whole[-16:], "damaged")
    yield Animal("bad-crc-header.png", whole[:29] + bytes([whole[29] ^ 1]) + whole[30:], "damaged")
    text = chunk(b"tEXt", b"Title\0x")
    yield Animal("bad-crc-text.png", png(G, before=text[:-1] + bytes([text[-1] ^ 1])), "damaged")
    yield Animal("no-pixels.png", png_header(24, 20, 8, 0) + chunk(b"IEND", b""), "damaged")
    short = png_header(24, 20, 8, 0) + chunk(b"IDAT", zlib.compress(b"\0" * 250)) + chunk(b"IEND", b"")
    yield Animal("pixels-missing.png", short, "damaged")
    black = np.zeros((20, 24), np.uint8)
    yield Animal("black.png", png(black), pixels=black)
    for bits, colour, n in ((1, 0, 1), (16, 0, 1), (8, 2, 3), (8, 4, 2)):
        zeros = np.zeros((20, 21, n), np.uint8)
        for interlaced in (False, True):
            data = png(zeros, colour, bits, interlaced=interlaced)
            name = f"black-{bits}-{colour}-{'interlaced' if interlaced else 'plain'}.png"
            yield Animal(name, data, pixels=zeros if colour == 2 else zeros[..., 0])
    header = png_header(24, 20, 8, 0, 1)
    short = header + chunk(b"IDAT", zlib.compress(b"\0" * 250)) + chunk(b"IEND", b"")
    yield Animal("pixels-missing-interlaced.png", short, "damaged")
    yield Animal("black-rgb16.png", png(np.zeros((20, 21, 3), np.uint16), RGB, 16), "mode")
    yield Animal("dot.png", png(G[:1, :1]), "aspect")
    yield Animal("line.png", png(np.zeros((1, 100_000), np.uint8)), "aspect")
    yield Animal("thin.png", png(np.zeros((2, 1_000), np.uint8)), "aspect")
    yield Animal("bomb.png", _bomb(13_350, 13_350), "too-large")
    declared = png_header(60_000, 60_000, 8, 0) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    yield Animal("declared.png", declared, "too-large")
    still = [Image.fromarray(np.roll(G, shift, axis=0)) for shift in (1, 2)]
    animated = _pillow(G, "PNG", save_all=True, append_images=still)
    yield Animal("animated.png", animated, "frames", also=((DecodeSpec(first_frame=True), G),))


def _bomb(width: int, height: int) -> bytes:
    """One bit a pixel, all black: about 22 kB for 178 megapixels."""
    rows = b"\0" * ((width + 7) // 8 + 1) * height
    return png_header(width, height, 1, 0) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


# --- JPEG -------------------------------------------------------------------------------------------------------------

_ARITHMETIC = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGBYU
GBIUFRT/yQALCAAQABABAREA/8wABgAQEAX/2gAIAQEAAD8A/wDn4Y4FdSn/ANTDAouzgGrE9Lp6ttuKzVnigID/2Q==
"""


def _jpeg_animals() -> Iterator[Animal]:
    gray, colour = _pillow(G, "JPEG", quality=95), _pillow(C, "JPEG", quality=95, subsampling=0)
    kinds = {
        "gray": (gray, G), "rgb444": (colour, C),
        "rgb420": (_pillow(C, "JPEG", quality=95, subsampling=2), C),
        "rgb422": (_pillow(C, "JPEG", quality=95, subsampling=1), C),
        "gray-progressive": (_pillow(G, "JPEG", quality=95, progressive=True), G),
        "rgb-progressive": (_pillow(C, "JPEG", quality=95, subsampling=0, progressive=True), C),
        "restarts": (_pillow(G, "JPEG", quality=95, restart_marker_blocks=1), G),
        "not-ycc": (_pillow(C, "JPEG", quality=95, keep_rgb=True), C),
        "trailing-garbage": (gray + b"garbage" * 9, G),
        "fill-bytes": (gray[:2] + b"\xff\xff\xff" + gray[2:], G),
    }  # fmt: skip
    for name, (data, pixels) in kinds.items():
        yield Animal(f"{name}.jpg", data, pixels=pixels, tolerance=LOSSY)
    y, x = np.mgrid[0:16, 0:16]
    yield Animal("arithmetic.jpg", base64.b64decode(_ARITHMETIC), pixels=(x * 8 + y * 7).astype(np.uint8), tolerance=2)
    yield Animal("really-a.png", gray, pixels=G, tolerance=LOSSY)
    yield Animal("really-a-png.jpg", png(G), pixels=G)
    yield from _jpeg_inks()
    for orientation in (*range(1, 9), 9, 0):
        data = _pillow(G, "JPEG", quality=95, exif=_exif(orientation))
        yield Animal(f"turned{orientation}.jpg", data, pixels=_upright(G, orientation), tolerance=LOSSY)
    payload = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\xff\xff"  # cut short
    for name, exif in (("exif-cut", payload), ("exif-garbage", b"Exif\0\0" + b"garbage" * 5)):
        data = gray[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + gray[2:]
        turned = _upright(G, 6) if name == "exif-cut" else G  # its orientation comes before the cut
        yield Animal(f"{name}.jpg", data, pixels=turned, tolerance=LOSSY)
    two = _pillow(G, "MPO", save_all=True, append_images=[Image.fromarray(G[::-1])], quality=95)
    yield Animal("two-pictures.jpg", two, "frames")
    yield from _jpeg_broken(gray)


def _jpeg_inks() -> Iterator[Animal]:
    """CMYK as Adobe writes it, inverted, and YCCK: the inks as luma and chroma, marked by transform 2."""
    inks = np.full((16, 16, 4), (0, 200, 100, 40), np.uint8)
    light = np.round((255.0 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).astype(np.uint8)
    cmyk = _pillow(Image.frombytes("CMYK", (16, 16), inks.tobytes()), "JPEG",
                   quality=100)  # fmt: skip
    yield Animal("cmyk.jpg", cmyk, pixels=light, tolerance=LOSSY)
    ycc = np.asarray(Image.fromarray(inks[..., :3]).convert("YCbCr"))
    stored = np.dstack([255 - ycc, inks[..., 3]])  # Pillow inverts as it writes
    ycck = _pillow(Image.frombytes("CMYK", (16, 16), stored.tobytes()), "JPEG", quality=100)
    at = ycck.index(b"Adobe") + 11
    yield Animal("ycck.jpg", ycck[:at] + b"\x02" + ycck[at + 1 :], pixels=light, tolerance=LOSSY)


def _jpeg_broken(whole: bytes) -> Iterator[Animal]:
    progressive = _pillow(G, "JPEG", quality=95, progressive=True)
    half = len(whole) * 3 // 4
    for name, data in {
        "cut": whole[:half],
        "cut-2": whole[:-2],
        "cut-1": whole[:-1],
        "cut-header": whole[:100],
        "cut-progressive": progressive[: len(progressive) - 60],
        "zero-tail": whole[:half] + b"\0" * 100_000,
        "empty-scan": whole[: whole.index(b"\xff\xda") + 10],
        "no-frame": b"\xff\xd8\xff\xd9" + b"\0" * 20,
    }.items():
        yield Animal(f"{name}.jpg", data, "damaged")
    yield Animal("leading-garbage.jpg", b"garbage" + whole, "format")
    sizes = whole.index(b"\xff\xc0") + 5
    large = whole[:sizes] + struct.pack(">HH", 40_000, 40_000) + whole[sizes + 4 :]
    yield Animal("declared.jpg", large, "too-large")


# --- GIF, BMP, WebP ---------------------------------------------------------------------------------------------------


def _other_animals() -> Iterator[Animal]:
    entries = np.random.default_rng(3).integers(0, 256, (256, 3)).astype(np.uint8)
    indexed = Image.fromarray(G)
    indexed.putpalette(entries.tobytes())
    gif = _pillow(indexed, "GIF")
    yield Animal("palette.gif", gif, pixels=entries[G])
    yield Animal("gray.gif", _pillow(G, "GIF"), pixels=G)
    yield Animal("interlaced.gif", _pillow(G, "GIF", interlace=1), pixels=G)
    yield Animal("comment.gif", _pillow(indexed, "GIF", comment=b"hello"), pixels=entries[G])
    clear = entries.copy()
    clear[int(G[2, 2])] = 0
    yield Animal("transparent.gif", _pillow(indexed, "GIF", transparency=int(G[2, 2])), pixels=clear[G])
    two = _pillow(G, "GIF", save_all=True, append_images=[Image.fromarray(G[::-1])], optimize=False)
    yield Animal("animated.gif", two, "frames", also=((DecodeSpec(first_frame=True), G),))
    yield Animal("trailing-garbage.gif", gif + b"\0garbage", pixels=entries[G])
    for name, data in {"cut-1": gif[:-1], "cut-2": gif[:-2], "cut-half": gif[: len(gif) * 3 // 4]}.items():
        yield Animal(f"{name}.gif", data, "damaged")
    bits = G > 99
    yield Animal("one.bmp", _pillow(bits, "BMP"), pixels=bits.astype(np.uint8) * 255)
    yield Animal("gray.bmp", _pillow(G, "BMP"), pixels=G)
    yield Animal("palette.bmp", _pillow(indexed, "BMP"), pixels=entries[G])
    rgb = _pillow(C, "BMP")
    yield Animal("rgb.bmp", rgb, pixels=C)
    yield Animal("rgb-upside-down.bmp", rgb[:22] + struct.pack("<i", -HEIGHT) + rgb[26:], pixels=C[::-1])
    yield Animal("cut.bmp", rgb[:-1], "damaged")
    yield Animal("cut-header.bmp", rgb[:30], "damaged")
    webp = _pillow(C, "WEBP", lossless=True)
    yield Animal("lossless.webp", webp, pixels=C)
    yield Animal("lossy.webp", _pillow(C, "WEBP", quality=95), pixels=C, tolerance=40)  # chroma is always 4:2:0
    yield Animal("alpha.webp", _pillow(RGBA8, "WEBP", lossless=True, exact=True), pixels=_on_black(C, A))
    gray = np.repeat(G[..., None], 3, axis=2)
    for orientation in (3, 6, 8):
        data = _pillow(gray, "WEBP", lossless=True, exif=_exif(orientation))
        turned = np.repeat(_upright(G, orientation)[..., None], 3, axis=2)
        yield Animal(f"turned{orientation}.webp", data, pixels=turned)
    two = _pillow(C, "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(C[::-1])])
    yield Animal("animated.webp", two, "frames", also=((DecodeSpec(first_frame=True), C),))
    yield Animal("cut.webp", webp[:-3], "damaged")
    yield Animal("cut-header.webp", webp[:25], "damaged")


# --- TIFF -------------------------------------------------------------------------------------------------------------


def _tiff_animals() -> Iterator[Animal]:
    for order, end in (("<", "little"), (">", "big")):
        yield from _tiff_grays(order, end)
        yield Animal(f"rgb8-{end}.tif", tiff(C, order=order, photometric=2), pixels=C)
        wide = np.dstack([N, N[::-1], N[:, ::-1]])
        data = tiff(wide, order=order, bits=16, photometric=2)
        yield Animal(f"rgb16-{end}.tif", data, pixels=(wide >> 8).astype(np.uint8))
        values = (G / 255 - 0.25).astype(np.float32)
        spec = DecodeSpec(float_range=(0.0, 0.5))
        ranged = np.round(np.clip(values.astype(np.float64) / 0.5, 0, 1) * 255).astype(np.uint8)
        for compression in (1, encoders.DEFLATE):
            data = tiff(values, order=order, bits=32, sample_format=3, compression=compression)
            yield Animal(f"float-{end}-{compression}.tif", data, "mode", also=((spec, ranged),))
    small = np.array([[0.0, np.nan], [1.0, np.inf]], np.float32)
    yield Animal("not-finite.tif", tiff(small, bits=32, sample_format=3), "mode")
    yield Animal("rgb12in16.tif", tiff(np.dstack([R12] * 3), bits=16, photometric=2), "mode")
    yield Animal("signed8.tif", tiff(G.astype(np.int8), sample_format=2), "mode")
    yield Animal("uint32-large.tif", tiff(N.astype(np.uint32) << 8, bits=32), "mode")
    yield Animal("uint32-small.tif", tiff(N.astype(np.uint32), bits=32), pixels=_scaled(N, 65_535))
    white = tiff(N.astype(np.uint32), bits=32, photometric=0)
    yield Animal("uint32-white.tif", white, pixels=_scaled(65_535 - N, 65_535))
    yield Animal("uint32-big.tif", tiff(N.astype(np.uint32), bits=32, order=">"), "format")
    yield Animal("packed12.tif", tiff(R12, bits=12), pixels=_scaled(R12, 4_095))
    yield Animal("planar.tif", tiff(C, photometric=2, planar=True), pixels=C)
    yield Animal("tiles.tif", tiff(G, tile=16), pixels=G)
    yield Animal("rgba.tif", tiff(RGBA8, photometric=2, tags=((338, 3, (2,)),)), pixels=_on_black(C, A))
    yield Animal("rgbx.tif", tiff(RGBA8, photometric=2, tags=((338, 3, (0,)),)), pixels=C)
    yield Animal("lab.tif", tiff(C, photometric=8), "mode")
    colours = np.random.default_rng(4).integers(0, 256, (3, 256)).astype(int)
    table = ((320, 3, tuple((colours * 257).reshape(-1).tolist())),)
    yield Animal("palette.tif", tiff(G, photometric=3, tags=table), pixels=colours.T[G].astype(np.uint8))
    inks = np.full((16, 16, 4), (0, 200, 100, 40), np.uint8)
    light = np.round((255.0 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).astype(np.uint8)
    yield Animal("cmyk.tif", tiff(inks, photometric=5), pixels=light, tolerance=1)
    for orientation in range(1, 9):
        for compression in (1, encoders.DEFLATE):
            data = tiff(G, compression=compression, tags=((274, 3, (orientation,)),))
            yield Animal(f"turned{orientation}-{compression}.tif", data, pixels=_upright(G, orientation))
    yield from _tiff_by_pillow()
    whole = tiff(G)
    yield Animal("no-photometric.tif", tiff(G, photometric=None), "damaged")
    yield Animal("trailing-garbage.tif", whole + b"garbage", pixels=G)
    for name, data in {"cut": whole[:-9], "cut-deflate": tiff(G, compression=8)[:-9]}.items():
        yield Animal(f"{name}.tif", data, "damaged")
    yield Animal("cut-directory.tif", whole[:40], "damaged")
    yield Animal("only-start.tif", whole[:8], "damaged")


def _tiff_grays(order: str, end: str) -> Iterator[Animal]:
    """Black is zero and white is zero, at every depth, stored as it is and compressed."""
    for photometric, sign in ((1, "black"), (0, "white")):
        for bits, values, full in ((1, G >> 7, 1), (8, G, 255), (16, N, 65_535), (16, R12, 4_095)):
            for compression in (1, encoders.DEFLATE, encoders.PACKBITS):
                data = tiff(values, order=order, bits=bits, photometric=photometric, compression=compression)
                pixels = _scaled(values if photometric else full - values, full)
                yield Animal(f"gray-{full}-{sign}-{end}-{compression}.tif", data, pixels=pixels)
    for compression in (1, encoders.DEFLATE):
        options = {"order": order, "bits": 16, "sample_format": 2, "compression": compression}
        positive = (N >> 1).astype(np.int16)
        yield Animal(f"signed16-{end}-{compression}.tif", tiff(positive, **options), pixels=_scaled(positive, 65_535))
        yield Animal(f"negative-{end}-{compression}.tif", tiff(positive - np.int16(9_000), **options), "mode")


def _tiff_by_pillow() -> Iterator[Animal]:
    pages = [Image.fromarray(G[::-1]), Image.fromarray(G[:, ::-1])]
    data = _pillow(G, "TIFF", save_all=True, append_images=pages)
    yield Animal("pages.tif", data, "frames", also=((DecodeSpec(first_frame=True), G),))
    yield Animal("lzw.tif", _pillow(C, "TIFF", compression="tiff_lzw"), pixels=C)
    yield Animal("jpeg.tif", _pillow(G, "TIFF", compression="jpeg", quality=95), pixels=G, tolerance=LOSSY)
    bits = G > 99
    fax = _pillow(bits, "TIFF", compression="group4")
    yield Animal("fax.tif", fax, pixels=bits.astype(np.uint8) * 255)
    yield Animal("fax-cut-4.tif", fax[:-4], "damaged")
    yield Animal("large-offsets.tif", _pillow(G, "TIFF", big_tiff=True), pixels=G)


# --- DICOM ------------------------------------------------------------------------------------------------------------


def _dicom_animals() -> Iterator[Animal]:
    plain = _scaled(R12, 4_095)
    yield Animal("plain.dcm", dicom(R12), pixels=plain)
    yield Animal("IM0001", dicom(R12), pixels=plain)
    yield Animal("1.2.840.113619.2.5", dicom(R12), pixels=plain)
    yield Animal("plain.DICOM", dicom(R12), pixels=plain)
    yield Animal("dicom-named.png", dicom(R12), pixels=plain)
    yield Animal("implicit.dcm", dicom(R12, syntax=encoders.IMPLICIT), pixels=plain)
    yield Animal("big-endian.dcm", dicom(R12, syntax=encoders.BIG_ENDIAN), pixels=plain)
    yield Animal("bytes.dcm", dicom(G), pixels=G)
    for end, syntax in (("little", encoders.EXPLICIT), ("big", encoders.BIG_ENDIAN)):
        data = dicom(N, BitsStored=16, HighBit=15, syntax=syntax)
        yield Animal(f"sixteen-{end}.dcm", data, pixels=_scaled(N, 65_535))
    dirty = R12 | np.uint16(0xA000)  # an old overlay in the bits that are not stored
    yield Animal("overlay-bits.dcm", dicom(dirty), pixels=plain)
    yield Animal("signed.dcm", dicom(R12.astype(np.int16) - np.int16(2_048)), pixels=plain)
    ct = dicom(R12, RescaleSlope=2, RescaleIntercept=-1024)
    yield Animal("rescaled.dcm", ct, pixels=plain)
    yield Animal(
        "negative-slope.dcm", dicom(R12, RescaleSlope=-1, RescaleIntercept=0), pixels=_scaled(4_095 - R12, 4_095)
    )
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    yield Animal("monochrome1.dcm", dicom(4_095 - R12, **inverted), pixels=plain)
    yield Animal("monochrome1-bytes.dcm", dicom(255 - G, **inverted), pixels=G)
    yield Animal("padded.dcm", dicom(R12, PixelPaddingValue=0), pixels=plain)
    yield from _dicom_windows(ct)
    yield from _dicom_tables()
    yield from _dicom_colours()
    yield from _dicom_compressed(plain)
    yield from _dicom_refused(plain)


def _dicom_windows(ct: bytes) -> Iterator[Animal]:
    """The formulas of PS3.3 C.11.2.1.2 and C.11.2.1.3, value by value."""

    def linear(x: float, c: float, w: float) -> float:
        if x <= c - 0.5 - (w - 1) / 2:
            return 0.0
        return 255.0 if x > c - 0.5 + (w - 1) / 2 else ((x - (c - 0.5)) / (w - 1) + 0.5) * 255

    def exact(x: float, c: float, w: float) -> float:
        return 0.0 if x <= c - w / 2 else 255.0 if x > c + w / 2 else ((x - c) / w + 0.5) * 255

    def sigmoid(x: float, c: float, w: float) -> float:
        return 255 / (1 + math.exp(-4 * (x - c) / w))

    for name, formula in (("LINEAR", linear), ("LINEAR_EXACT", exact), ("SIGMOID", sigmoid)):
        pixels = np.array([[round(round(formula(x, 1_800, 1_500), 9)) for x in row] for row in R12.tolist()], np.uint8)
        data = dicom(R12, WindowCenter=1_800, WindowWidth=1_500, VOILUTFunction=name)
        yield Animal(f"window-{name.lower()}.dcm", data, pixels=pixels)
    shown = np.array([[round(round(linear(2 * x - 1024, 40, 400), 9)) for x in row] for row in R12.tolist()], np.uint8)
    several = {"WindowCenter": [40, 900], "WindowWidth": [400, 50], "RescaleSlope": 2, "RescaleIntercept": -1024}
    yield Animal("several-windows.dcm", dicom(R12, **several), pixels=shown)
    twin = dicom(R12, **several, PhotometricInterpretation="MONOCHROME1")
    dark = [[round(255 - round(linear(2 * x - 1024, 40, 400), 9)) for x in row] for row in R12.tolist()]
    yield Animal("several-windows-monochrome1.dcm", twin, pixels=np.array(dark, np.uint8))
    step = np.where(R12 > 1_799, 255, 0).astype(np.uint8)
    yield Animal("window-of-one.dcm", dicom(R12, WindowCenter=1_800, WindowWidth=1), pixels=step)
    yield Animal("window-of-none.dcm", dicom(R12, WindowCenter=1_800, WindowWidth=0), "dicom")
    yield Animal("window-unknown.dcm", dicom(R12, WindowCenter=9, WindowWidth=9, VOILUTFunction="CUBIC"), "dicom")
    yield Animal("slope-of-none.dcm", dicom(R12, RescaleSlope=0, RescaleIntercept=0), "dicom")
    yield Animal("cut-pixels.dcm", ct[:-200], "dicom")
    yield Animal("cut-header.dcm", ct[:300], "dicom")


def _dicom_tables() -> Iterator[Animal]:
    entries = [v // 16 for v in range(4_096)]
    shown = (R12 // 16).astype(np.uint8)
    yield Animal("voi-8bit.dcm", dicom(R12, VOILUTSequence=[lut(entries, 0, 8)]), pixels=shown)
    packed = bytes(entries)
    yield Animal("voi-8bit-packed.dcm", dicom(R12, VOILUTSequence=[lut(packed, 0, 8)]), pixels=shown)
    both = dicom(R12, VOILUTSequence=[lut(entries, 0, 8), lut([0, 9], 0, 8)], WindowCenter=9, WindowWidth=9)
    yield Animal("voi-before-window.dcm", both, pixels=shown)
    wide = lut([65_535 - v * 16 for v in range(2_000)], 1_000, 16)
    index = np.clip(R12.astype(int) - 1_000, 0, 1_999)
    yield Animal("voi-16bit.dcm", dicom(R12, VOILUTSequence=[wide]), pixels=_scaled(65_535 - index * 16, 65_535))
    modality = lut([min(v * 3, 4_095) for v in range(4_096)], 0, 12)
    modality.ModalityLUTType = "US"
    tripled = np.minimum(R12.astype(int) * 3, 4_095)
    yield Animal("modality.dcm", dicom(R12, ModalityLUTSequence=[modality]), pixels=_scaled(tripled, 4_095))
    yield Animal("voi-short.dcm", dicom(R12, VOILUTSequence=[_shortened(lut(entries, 0, 8))]), "dicom")


def _shortened(item: object) -> object:
    item.LUTData = item.LUTData[:10]
    return item


def _dicom_colours() -> Iterator[Animal]:
    yield Animal("rgb.dcm", dicom(C), pixels=C)
    planar = np.ascontiguousarray(np.moveaxis(C, -1, 0)).tobytes()
    yield Animal("rgb-planar.dcm", dicom(C, PlanarConfiguration=1, PixelData=planar), pixels=C)
    ycc = np.asarray(Image.fromarray(C).convert("YCbCr"))
    yield Animal("ybr.dcm", dicom(ycc, PhotometricInterpretation="YBR_FULL"), pixels=C, tolerance=3)
    even = np.repeat(ycc[:, ::2], 2, axis=1)  # pairs of pixels share their chroma, and here their luma
    pairs = np.dstack([even[:, ::2, 0], even[:, 1::2, 0], even[:, ::2, 1], even[:, ::2, 2]]).tobytes()
    data = dicom(even, PhotometricInterpretation="YBR_FULL_422", PixelData=pairs)
    yield Animal("ybr422.dcm", data, pixels=np.repeat(C[:, ::2], 2, axis=1), tolerance=3)
    entries = np.random.default_rng(6).integers(0, 256, (3, 256))
    for name, columns in (("palette", entries), ("palette-of-grays", entries[[0, 0, 0]])):
        elements = {}
        for colour, column in zip(("Red", "Green", "Blue"), columns, strict=True):
            elements[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
            elements[f"{colour}PaletteColorLookupTableData"] = (column * 257).astype("<u2").tobytes()
        data = dicom(G, PhotometricInterpretation="PALETTE COLOR", **elements)
        shown = columns.T[G].astype(np.uint8)
        yield Animal(f"{name}.dcm", data, pixels=shown if name == "palette" else shown[..., 0])
    yield Animal("cmyk.dcm", dicom(C, PhotometricInterpretation="CMYK"), "dicom")


def _dicom_compressed(plain: np.ndarray) -> Iterator[Animal]:
    lossless = {"syntax": encoders.JPEG_LOSSLESS, "codestream": lossless_jpeg(R12, 12)}
    yield Animal("jpeg-lossless.dcm", dicom(R12, **lossless), pixels=plain)
    j2k = _pillow(R12, "JPEG2000", no_jp2=True, irreversible=False)
    yield Animal("jpeg2000.dcm", dicom(R12, syntax=encoders.JPEG_2000, codestream=j2k), pixels=plain)
    yield Animal("jpeg2000-cut.dcm", dicom(R12, syntax=encoders.JPEG_2000, codestream=j2k[:-40]), "dicom")
    colour = _pillow(C, "JPEG2000", no_jp2=True, mct=1)
    data = dicom(C, syntax=encoders.JPEG_2000, codestream=colour, PhotometricInterpretation="YBR_RCT")
    yield Animal("jpeg2000-rgb.dcm", data, pixels=C)
    jpeg = _pillow(G, "JPEG", quality=95)
    baseline = {"syntax": encoders.JPEG_BASELINE, "codestream": jpeg}
    yield Animal("jpeg.dcm", dicom(G, **baseline), pixels=G, tolerance=LOSSY)
    colour = _pillow(C, "JPEG", quality=95, subsampling=0)
    options = {"syntax": encoders.JPEG_BASELINE, "PhotometricInterpretation": "YBR_FULL"}
    yield Animal("jpeg-rgb.dcm", dicom(C, codestream=colour, **options), pixels=C, tolerance=LOSSY)
    yield Animal("jpeg-cut.dcm", dicom(G, syntax=encoders.JPEG_BASELINE, codestream=jpeg[:-30]), "dicom")
    yield Animal("jpeg-of-other-size.dcm", dicom(G, Rows=40, **baseline), "dicom")
    yield Animal("rle.dcm", _rle(R12), pixels=plain)


def _rle(pixels: np.ndarray) -> bytes:
    """PS3.5 annex G: high bytes, then low bytes, each in literal runs."""

    def segment(plane: bytes) -> bytes:
        runs = b"".join(bytes([len(run) - 1]) + run for run in (plane[i : i + 128] for i in range(0, len(plane), 128)))
        return runs + b"\0" * (len(runs) % 2)

    raw = pixels.astype(">u2").tobytes()
    high, low = segment(raw[::2]), segment(raw[1::2])
    header = struct.pack("<16I", 2, 64, 64 + len(high), *[0] * 13)
    return dicom(pixels, syntax=encoders.RLE, codestream=header + high + low)


def _dicom_refused(plain: np.ndarray) -> Iterator[Animal]:
    whole = dicom(R12)
    first = ((DecodeSpec(first_frame=True), plain),)
    twice = R12.tobytes() + (4_095 - R12).tobytes()
    yield Animal("frames.dcm", dicom(R12, NumberOfFrames=2, PixelData=twice), "frames", also=first)
    yield Animal("one-frame.dcm", dicom(R12, NumberOfFrames=1), pixels=plain)
    yield Animal("no-preamble.dcm", whole[132:], "format")
    yield Animal("no-pixels.dcm", dicom(None, Rows=20, Columns=24), "dicom")
    yield Animal("only-start.dcm", whole[:132], "dicom")
    yield Animal("mpeg.dcm", dicom(G, syntax=encoders.MPEG2, codestream=b"\0\0\1\xb3"), "dicom")
    yield Animal("deflated.dcm", dicom(R12, syntax=encoders.DEFLATED), pixels=plain)
    yield Animal("deflated-cut.dcm", dicom(R12, syntax=encoders.DEFLATED)[:-40], "dicom")
    yield Animal("large.dcm", dicom(R12, Rows=20_000, Columns=20_000), "too-large")
    yield Animal("thin.dcm", dicom(R12, Rows=1, Columns=60_000), "aspect")
    yield Animal("float.dcm", dicom(R12, PixelData=None, FloatPixelData=b"\0" * 1_920), "dicom")
    yield Animal("thirty-two.dcm", dicom(R12, BitsAllocated=32, BitsStored=32, HighBit=31), "dicom")
    wide = {"BitsAllocated": 8, "PixelData": b"\0" * 480}
    yield Animal("more-stored-than-allocated.dcm", dicom(R12, **wide), "dicom")
    yield Animal("no-bits.dcm", dicom(R12, BitsStored=0, HighBit=0), "dicom")
    yield Animal("gray-of-three.dcm", dicom(C, PhotometricInterpretation="MONOCHROME2"), "dicom")
    yield Animal("rgb-of-one.dcm", dicom(G, PhotometricInterpretation="RGB"), "dicom")
    yield Animal("high-bit.dcm", dicom(R12, HighBit=15), "dicom")


# --- disguised, named oddly, or no files at all -----------------------------------------------------------------------

_DISGUISED = {
    "text": b"this is no image\n" * 9,
    "html": b"<!doctype html><img src=x>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
    "psd": b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 20, 24, 8, 3) + b"\0" * 64,
    "fits": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
    "tga": bytes([0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 20, 0, 8, 0]) + G.tobytes(),
    "ppm": b"P5 24 20 255\n" + G.tobytes(),
    "xbm": b"#define x_width 8\n#define x_height 1\nstatic char x_bits[] = {0x00};\n",
    "npy": b"\x93NUMPY\1\0v\0{'descr': '|u1'}",
    "pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x07builtins",
    "zip": b"PK\3\4" + b"\0" * 40,
    "gzip": b"\x1f\x8b\x08\0" + b"\0" * 20,
    "elf": b"\x7fELF\2\1\1" + b"\0" * 60,
    "zeros": b"\0" * 4096,
    "avif": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + b"\0" * 40,
    "dicm-too-early": b"\0" * 100 + b"DICM" + b"\0" * 100,
}


def _disguised_animals() -> Iterator[Animal]:
    yield Animal("empty.png", b"", "empty")
    yield Animal("empty.dcm", b"", "empty")
    for i, (name, data) in enumerate(_DISGUISED.items()):
        yield Animal(f"{name}.{('png', 'jpg', 'tif')[i % 3]}", data, "format")
    for kind in ("ICO", "JPEG2000", "PCX", "SGI"):
        yield Animal(f"{kind.lower()}.png", _pillow(C, kind), "format")


def _named_animals() -> Iterator[Animal]:
    names = [
        "UPPER.PNG", "two  spaces.png", "new\nline.png", "tab\t.png", "\x1b[31mred.png", "=cmd().png", "-rf.png",
        "'.png",
        "caf\u00e9.png", "cafe\u0301.png", os.fsdecode(b"caf\xe9.png"), "x" * 236 + ".png", "\u4e2d\U0001f600.png",
        "double.png.jpg", "a,b;c.png", "%00.png", "trailing .png", "..png",
    ]  # fmt: skip
    for name in names:
        skipped = name.startswith(".")
        yield Animal(name, png(G), "skipped" if skipped else "ok", pixels=None if skipped else G)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png", "._x.png", "DICOMDIR", "notes.txt", "README",
                 "archive.zip", "x.png.bak", "IM0002.5x"):  # fmt: skip
        yield Animal(name, b"\0" * 200, "skipped")
    yield Animal("__MACOSX/x.png", png(G), "skipped")
    for name in ("first-twin.png", "second-twin.png", "deeper/first-twin.png"):
        yield Animal(name, png(C, RGB), pixels=C)


_FOLDERS = {
    "png": _png_animals,
    "jpeg": _jpeg_animals,
    "others": _other_animals,
    "tiff": _tiff_animals,
    "disguised": _disguised_animals,
    "named": _named_animals,
}


@cache
def animals() -> dict[str, Animal]:
    """Every file with bytes, by its name in the zoo; those of DICOM only where its codecs are installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folders = {**_FOLDERS, "dicom": _dicom_animals} if HAS_DICOM else _FOLDERS
        return {f"{folder}/{animal.name}": animal for folder, made in folders.items() for animal in made()}


def build(root: Path) -> dict[str, str]:
    """Writes the zoo and returns the answers, by name."""
    answers = {}
    for name, animal in animals().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(animal.data)
        answers[name] = animal.answer
    return {**answers, **_no_files(root)}


def _no_files(root: Path) -> dict[str, str]:
    """FIFO, socket, links and their kin. Nothing here may be opened but what a link inside leads to."""
    outside = root.with_name(root.name + "-outside")
    outside.mkdir(exist_ok=True)
    (outside / "secret.png").write_bytes(png(G))
    there = root / "special"
    (there / "folder.png").mkdir(parents=True)
    os.mkfifo(there / "fifo.png")
    os.mkfifo(there / "fifo")
    _bind(there / "socket.png")
    links = {
        "loop.png": ("loop.png", "skipped"), "ring.png": ("ring2.png", "skipped"), "ring2.png": ("ring.png", "skipped"),
        "dangling.png": ("nowhere.png", "skipped"), "device.png": ("/dev/zero", "skipped"),
        "to-folder.png": ("../png", "skipped"), "up": ("..", "skipped"), "to-fifo.png": ("fifo.png", "skipped"),
        "inside.png": ("../png/gray8.png", "ok"), "outside.png": (outside / "secret.png", "outside"),
        "outside-by-dots.png": (f"../../{outside.name}/secret.png", "outside"), "without-suffix": ("fifo", "skipped"),
    }  # fmt: skip
    for name, (target, _) in links.items():
        os.symlink(target, there / name)
    answers = {name: answer for name, (_, answer) in links.items()}
    answers |= dict.fromkeys(("fifo.png", "fifo", "socket.png"), "skipped")
    return {f"special/{name}": answer for name, answer in answers.items()}


def _bind(path: Path) -> None:
    """A socket; by its name alone, as the path of one may not be longer than 107 bytes."""
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def main(root: Path) -> None:
    answers = build(root)
    for name, answer in sorted(answers.items()):
        print(f"{answer:10} {ascii(name)[1:-1]}")
    print(f"{len(answers)} entries, {sum(len(animal.data) for animal in animals().values()):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
