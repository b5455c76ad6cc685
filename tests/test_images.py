"""Bytes to pixels: equal to timm's own transform, and no file is taken for what it is not."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from featcache import images
from featcache.backbones import BackboneSpec, load
from featcache.errors import ImageError
from featcache.images import TransformSpec, decode

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, mode: str) -> Image.Image:
    rng = np.random.default_rng(width * height)
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


# --- the transform ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(300, 200), (200, 301), (224, 224), (57, 91), (501, 500)])
@pytest.mark.parametrize(
    ("input_size", "crop_pct", "interpolation", "crop_mode"),
    [
        (224, 0.875, "bicubic", "center"),
        (240, 1.0, "bilinear", "center"),
        (240, 0.9, "bicubic", "center"),
        (31, 0.95, "lanczos", "center"),
        (224, 0.9, "bicubic", "squash"),
        (96, 1.0, "nearest", "squash"),
    ],
)
def test_pixels_equal_timms_evaluation_transform(
    mode: str, size: tuple[int, int], input_size: int, crop_pct: float, interpolation: str, crop_mode: str
) -> None:
    image = noise(*size, mode)
    spec = TransformSpec((input_size, input_size), crop_pct, interpolation, crop_mode=crop_mode, **IMAGENET)
    reference = timm.data.create_transform(
        (3, input_size, input_size), interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, **IMAGENET
    )(image.convert("RGB"))
    pixels = spec(image)
    planes = np.broadcast_to(pixels[..., None], (*pixels.shape, 3)) if pixels.ndim == 2 else pixels
    backbone = load(BackboneSpec("resnet18", "random:0", **IMAGENET))
    normalised = backbone.normalize(torch.from_numpy(planes.transpose(2, 0, 1)[None].copy()))[0]
    assert torch.equal(normalised, reference)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("crop_pct", 0.0, "crop_pct must be from 0.01"),
        ("crop_pct", 1.5, "crop_pct must be from 0.01"),
        ("interpolation", "best", "interpolation must be one of"),
        ("input_size", (0, 0), "input_size must be from 1"),
        ("std", (0.1, 0.0, 0.1), "std above 0"),
        ("mean", (0.1, float("inf"), 0.1), "three finite values"),
        ("mean", (0.5,), "three finite values"),
        ("crop_mode", "border", "crop_mode must be one of"),
        ("input_size", (224, 200), "square"),
    ],
)
def test_an_impossible_transform_is_refused_at_birth(field: str, value: object, message: str) -> None:
    good = {"input_size": (224, 224), "crop_pct": 0.9, "interpolation": "bicubic", **IMAGENET}
    with pytest.raises(ValueError, match=message):
        TransformSpec(**{**good, field: value})


# --- what is accepted, and as what ------------------------------------------------------------------------------------


def test_sixteen_bit_gray_keeps_its_order_and_its_levels() -> None:
    for bits in (12, 16):
        ramp = np.linspace(0, 2**bits - 1, 4096).astype(np.uint16).reshape(64, 64)
        pixels = np.asarray(decode(encoded(Image.fromarray(ramp)))).reshape(-1)
        assert (np.diff(pixels.astype(int)) >= 0).all()
        assert len(np.unique(pixels)) == 256


def test_alpha_is_composited_on_black() -> None:
    half = Image.fromarray(np.full((8, 8, 4), (200, 100, 0, 128), dtype=np.uint8))
    assert np.asarray(decode(encoded(half)))[0, 0].tolist() == [100, 50, 0]
    assert decode(encoded(half.convert("LA"))).mode == "L"


@pytest.mark.parametrize(("mode", "expected"), [("1", "L"), ("P", "RGB"), ("L", "L"), ("RGB", "RGB")])
def test_other_modes_become_gray_or_rgb(mode: str, expected: str) -> None:
    assert decode(encoded(noise(20, 20, "RGB").convert(mode))).mode == expected


def test_cmyk_becomes_rgb() -> None:
    assert decode(encoded(noise(20, 20, "RGB").convert("CMYK"), "JPEG")).mode == "RGB"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = noise(30, 20, "L")
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = decode(encoded(image, exif=exif))
    assert turned.size == ((20, 30) if orientation >= 5 else (30, 20))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds nearly nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"not an image", "format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format"),
        (encoded(noise(64, 64, "L"))[:-40], "damaged"),
        (encoded(noise(64, 64, "L"), "JPEG")[:-400], "damaged"),
        (encoded(noise(64, 64, "L")).replace(b"IDAT", b"IDAT\xff", 1), "damaged"),
        (png_of_size(10_000, 10_000), "too-large"),
        (png_of_size(20_000, 20_000), "too-large"),
        (png_of_size(1, 1), "aspect"),
        (png_of_size(100_000, 4), "aspect"),
        (encoded(Image.fromarray(np.zeros((9, 9), dtype=np.float32)), "TIFF"), "mode"),
        (encoded(noise(9, 9, "L"), "GIF", save_all=True, append_images=[noise(9, 8, "L").resize((9, 9))]), "frames"),
    ],
)
def test_what_cannot_be_trusted_is_refused_with_a_word_for_why(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.code == code


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    for name, code in (("fifo.png", "not-a-file"), ("gone.png", "missing")):
        with pytest.raises(ImageError) as caught:
            images.read(tmp_path / name)
        assert caught.value.code == code


def test_white_is_zero_is_inverted_at_any_depth() -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    plain, inverted = (
        np.asarray(decode(encoded(Image.fromarray(ramp), "TIFF", tiffinfo={262: photometric}))).astype(int)
        for photometric in (1, 0)
    )
    assert np.array_equal(plain, 255 - inverted)


def test_every_flipped_bit_of_a_png_is_seen() -> None:
    data = encoded(noise(24, 24, "RGB"))
    for at in range(8, len(data) - 12):  # behind the pixels comes only the end mark
        broken = bytearray(data)
        broken[at] ^= 4
        with pytest.raises(ImageError):
            decode(bytes(broken))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_a_broken_exif_tag_does_not_fail_the_image() -> None:
    data = encoded(noise(30, 20, "L"), "JPEG")
    payload = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\xff\xff"  # cut short
    broken = data[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]
    assert decode(broken).size in ((30, 20), (20, 30))


def test_a_transparent_gray_level_is_composited_on_black() -> None:
    image = Image.fromarray(np.full((8, 8), 200, dtype=np.uint8))
    assert np.asarray(decode(encoded(image, transparency=200))).max() == 0


def test_an_enormous_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.touch()
    os.truncate(path, 200 << 30)
    with pytest.raises(ImageError, match="bytes, more than") as caught:
        images.read(path)
    assert caught.value.code == "too-large"


def test_an_image_that_would_be_enormous_once_resized_is_refused() -> None:
    spec = TransformSpec((4096, 4096), 0.5, "nearest", **IMAGENET)
    with pytest.raises(ImageError, match="resized it would be"):
        spec(noise(10, 200, "L"))
