"""Bytes to pixels: equal to timm's own transform, and no file is taken for what it is not."""

import io
import json
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache import images
from featcache.backbones import Backbone, load
from featcache.errors import ImageError
from featcache.images import decode
from featcache.specs import CROP_MODES, BackboneSpec, DecodeSpec, TransformSpec

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, mode: str) -> Image.Image:
    rng = np.random.default_rng(width * height)
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


@cache
def imagenet() -> Backbone:
    return load(BackboneSpec("resnet18", "random:0", **IMAGENET))


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
    normalised = imagenet().normalize(torch.from_numpy(planes.transpose(2, 0, 1)[None].copy()))[0]
    assert torch.equal(normalised, reference)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("crop_pct", 0.0, "`crop_pct` must be from 0.01"),
        ("crop_pct", 1.5, "`crop_pct` must be from 0.01"),
        ("interpolation", "best", "`interpolation` must be one of"),
        ("input_size", (0, 0), "`input_size` must be from 1"),
        ("std", (0.1, 0.0, 0.1), "`std` must be from 0.0001 to 100"),
        ("mean", (0.1, float("inf"), 0.1), "`mean` must be from -10 to 10"),
        ("mean", (0.5,), "three finite values"),
        ("crop_mode", "border", "`crop_mode` must be one of"),
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


# --- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bit_depth", 7, "`bit_depth` must be from 8 to 16, got 7"),
        ("bit_depth", 17, "`bit_depth` must be from 8 to 16, got 17"),
        ("float_range", (1.0, 1.0), r"`float_range` must be low < high, got \(1.0, 1.0\)"),
        ("float_range", (0.0, float("nan")), "`float_range` must be "),
        ("float_range", (0.0,), "`float_range` must be "),
        ("max_pixels", 0, "`max_pixels` must be from 1 to 1073741824 "),
    ],
)
def test_impossible_rules_are_refused_at_birth(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeSpec(**{field: value})


def test_only_rules_that_change_pixels_are_in_the_identity() -> None:
    plain = DecodeSpec().identity()
    assert DecodeSpec(first_frame=True, max_pixels=7).identity() == plain
    assert DecodeSpec(bit_depth=12).identity()["gray16"] == "12 bit; scaled to 8 bit, rounded"
    assert DecodeSpec(float_range=(0, 4)).identity()["float"] == [0.0, 4.0]
    assert json.loads(json.dumps(plain)) == plain


def test_a_stated_depth_holds_for_every_image_and_refuses_what_exceeds_it() -> None:
    dark = np.full((8, 8), 1000, dtype=np.uint16)
    for bits, gray in ((None, 62), (10, 249), (12, 62), (16, 4)):
        assert np.asarray(decode(encoded(Image.fromarray(dark)), DecodeSpec(bit_depth=bits))).max() == gray
    with pytest.raises(ImageError, match="its greatest value, 1,000, is beyond the 9 bits of this set"):
        decode(encoded(Image.fromarray(dark)), DecodeSpec(bit_depth=9))
    with pytest.raises(ImageError, match="no bit_depth is settled for it"):
        decode(encoded(Image.fromarray(dark)), DecodeSpec(is_settled=True))


def test_flattening_equals_alpha_composite_for_every_pair_of_colour_and_alpha() -> None:
    colour, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    image = Image.fromarray(np.dstack([colour, colour[::-1], colour, alpha]))
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    expected = np.asarray(Image.alpha_composite(black, image).convert("RGB"))
    assert np.array_equal(np.asarray(decode(encoded(image))), expected)
    gray = np.asarray(decode(encoded(Image.fromarray(np.dstack([colour, alpha])))))
    assert np.array_equal(gray, expected[..., 0])


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "I;16", "F"])
def test_bands_leave_no_seam(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    if mode == "F":
        image = Image.fromarray(np.random.default_rng(0).random((50, 40), dtype=np.float32))
    elif mode == "I;16":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 65_536, (50, 40), dtype=np.uint16))
    else:
        image = noise(40, 50, "RGB").convert(mode)
    data, spec = encoded(image, "TIFF"), DecodeSpec(float_range=(0.0, 1.0))
    whole = np.asarray(decode(data, spec))
    monkeypatch.setattr("featcache.images.depths._BAND_PIXELS", 7 * 40)
    assert np.array_equal(np.asarray(decode(data, spec)), whole)


@given(st.integers(2, 90), st.integers(2, 90), st.sampled_from([0.7, 0.875, 1.0]), st.sampled_from(CROP_MODES))
def test_what_has_been_resized_stays_as_it_is(width: int, height: int, crop_pct: float, crop_mode: str) -> None:
    spec = TransformSpec((31, 31), crop_pct, "bicubic", crop_mode=crop_mode, **IMAGENET)
    resized = spec.resize(Image.new("L", (width, height)))
    assert spec.resize(resized) is resized
    assert min(resized.size) >= 31


# --- shortcuts --------------------------------------------------------------------------------------------------------

FAST = DecodeSpec(fast=True)
SMALL = TransformSpec((240, 240), 1.0, "bicubic", **IMAGENET)


def smooth(width: int, height: int, mode: str) -> Image.Image:
    """Waves of a tenth of the picture and longer, of another phase in each channel, from black to white."""
    y, x = np.mgrid[0:height, 0:width] / min(width, height)
    waves = [np.sin(9 * x + 4 * y + phase) + np.sin(30 * x * y + 40 * y - phase) for phase in range(3)]  # -2 to 2
    levels = np.round(np.stack(waves, axis=-1) * 63.75 + 127.5).astype(np.uint8)
    return Image.fromarray(levels if mode == "RGB" else levels[..., 0])


def test_shortcuts_are_in_the_identity_only_where_they_are_taken() -> None:
    plain, fast = DecodeSpec().identity(), FAST.identity()
    assert "shortcuts" not in plain
    assert fast == {**plain, "shortcuts": fast["shortcuts"]}
    assert all(number in fast["shortcuts"] for number in ("1/2, 1/4 or 1/8", "2 times", "gap of 2.0"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("width", "height", "kind", "levels"),
    [(1300, 1000, "JPEG", 0.5), (2048, 2496, "PNG", 0.5), (1303, 2005, "JPEG", 2.0)],  # the last does not divide
)
def test_shortcuts_move_a_smooth_picture_by_a_level_or_two(
    width: int, height: int, kind: str, levels: float, mode: str
) -> None:
    data = encoded(smooth(width, height, mode), kind, **({"quality": 90} if kind == "JPEG" else {"compress_level": 1}))
    exact, fast = (images.pixels(data, SMALL, spec).astype(int) for spec in (DecodeSpec(), FAST))
    assert exact.shape == fast.shape == (240, 240, 3)[: exact.ndim]
    assert 0 < np.abs(exact - fast).mean() < levels  # of 8 bits


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 900), st.integers(20, 900), st.integers(1, 120))
def test_a_reduced_image_has_at_least_twice_what_is_needed(width: int, height: int, needed: int) -> None:
    shorter = min(width, height)
    reduced = decode(encoded(Image.new("L", (width, height)), "JPEG"), FAST, needed)
    scale = next((scale for scale in (8, 4, 2) if shorter >= scale * 2 * needed), 1)
    assert reduced.size == (-(-width // scale), -(-height // scale))
    assert min(reduced.size) >= min(2 * needed, shorter)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (smooth(959, 959, "RGB"), "JPEG"),  # a pixel short of half
        (smooth(959, 900, "L"), "PNG"),
        (smooth(100, 120, "RGB"), "JPEG"),
    ],
)
def test_without_room_to_reduce_shortcuts_change_nothing(image: Image.Image, kind: str) -> None:
    data = encoded(image, kind)
    assert np.array_equal(images.pixels(data, SMALL, FAST), images.pixels(data, SMALL))


def test_what_libjpeg_offers_is_taken_for_gray_and_rgb_only() -> None:
    large = noise(800, 640, "RGB")
    for mode, kind, size in (("L", "JPEG", (200, 160)), ("RGB", "JPEG", (200, 160)), ("CMYK", "JPEG", (800, 640))):
        reduced = decode(encoded(large.convert(mode), kind), FAST, 80)
        assert (reduced.mode, reduced.size) == ("L" if mode == "L" else "RGB", size)
    assert decode(encoded(large, "JPEG"), FAST).size == large.size
    assert decode(encoded(large, "JPEG"), DecodeSpec(), 80).size == large.size


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_jpeg_is_upright_with_shortcuts_too(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(1300, 1000, "L"), "JPEG", exif=exif)
    exact, fast = (images.pixels(data, SMALL, spec).astype(int) for spec in (DecodeSpec(), FAST))
    assert decode(data, FAST, 240).size == ((500, 650) if orientation >= 6 else (650, 500))
    assert np.abs(exact - fast).mean() < 1.0


@pytest.mark.parametrize("cut", [2, 400, 20_000])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_short_is_refused_with_shortcuts_too(cut: int, progressive: bool) -> None:
    data = encoded(noise(640, 480, "RGB"), "JPEG", progressive=progressive)
    assert decode(data, FAST, 30).size == (80, 60)
    with pytest.raises(ImageError) as caught:
        images.pixels(data[:-cut], SMALL, FAST)
    assert caught.value.code == "damaged"


@pytest.mark.parametrize("spec", [DecodeSpec(), FAST])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_several_transforms_share_a_decoded_image_only_where_each_would_get_the_same(
    spec: DecodeSpec, kind: str
) -> None:
    data = encoded(smooth(800, 640, "L"), kind)
    transforms = [TransformSpec((side, side), 1.0, "bicubic", **IMAGENET) for side in (150, 40, 155, 150)]
    shared = images.decode_each(data, transforms, spec)
    for transform, image in zip(transforms, shared, strict=True):
        assert np.array_equal(transform(image, spec.fast), images.pixels(data, transform, spec))
    assert len({id(image) for image in shared}) == (2 if spec.fast and kind == "JPEG" else 1)


def test_several_transforms_of_what_is_refused_are_refused_as_one_is() -> None:
    transforms = [replace(SMALL, input_size=(side, side)) for side in (40, 80)]
    for data in (b"", b"\xff\xd8\xffnothing", encoded(noise(640, 480, "L"), "JPEG")[:-40], b"GIF8"):
        with pytest.raises(ImageError) as alone:
            images.pixels(data, SMALL, FAST)
        with pytest.raises(ImageError) as shared:
            images.decode_each(data, transforms, FAST)
        assert (shared.value.code, str(shared.value)) == (alone.value.code, str(alone.value))


@pytest.mark.parametrize(
    ("crop_mode", "input_size", "expected"), [("center", (224, 224), 256), ("squash", (100, 224), 256)]
)
def test_the_shorter_side_is_what_an_image_is_resized_to(
    crop_mode: str, input_size: tuple[int, int], expected: int
) -> None:
    spec = TransformSpec(input_size, 0.875, "bicubic", crop_mode=crop_mode, **IMAGENET)
    assert spec.shorter_side == expected
    resized = spec.resize(noise(700, 500, "L"))
    assert (min if crop_mode == "center" else max)(resized.size) == expected
    assert spec.crop(resized).size == input_size[::-1]


# --- limits and peace -------------------------------------------------------------------------------------------------


def test_a_raised_limit_is_the_only_limit_and_nothing_is_printed() -> None:
    """Pillow warns at 89 and refuses at 179 megapixels by itself; warnings are errors in these tests."""
    declared = png_of_size(20_000, 20_000)
    with pytest.raises(ImageError, match="20000 x 20000 is more than 399,999,999 pixels; max_pixels allows it"):
        decode(declared, DecodeSpec(max_pixels=399_999_999))
    with pytest.raises(ImageError, match="truncated") as caught:
        decode(declared, DecodeSpec(max_pixels=400_000_000))
    assert caught.value.code == "damaged"
    with pytest.raises(ImageError, match="more than 1,000 pixels") as caught:
        decode(encoded(noise(60, 60, "L")), DecodeSpec(max_pixels=1_000))
    assert caught.value.code == "too-large"


def test_settings_of_the_process_are_back_after_decoding_in_many_threads() -> None:
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    good, bad = encoded(noise(60, 60, "L")), encoded(noise(60, 60, "L"))[:-40]

    def one(i: int) -> str:
        try:
            return decode(bad if i % 3 == 0 else good, DecodeSpec(max_pixels=3_600 + i)).mode
        except ImageError as error:
            return error.code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(300))) == {"L", "damaged"}
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


_PEAK = """
import sys
from featcache.specs import DecodeSpec
from featcache.images import decode
decode(open(sys.argv[1], "rb").read(), DecodeSpec(float_range=(0.0, 9.0)))
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "kind", "orientation"),
    [
        ("RGBA", "PNG", 1),
        ("RGB", "PNG", 6),
        *((m, k, 1) for m, k in (("I;16", "PNG"), ("CMYK", "TIFF"), ("P", "PNG"), ("F", "TIFF"))),
    ],
)
def test_an_image_at_the_limit_is_decoded_in_less_than_a_gigabyte(
    tmp_path: Path, mode: str, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"compress_level": 1, "exif": exif} if kind == "PNG" else {"compression": "tiff_lzw"}
    image = Image.new(mode, (9_400, 9_500), 3 if mode in ("I;16", "P", "F") else (90, 30, 40, 200)[: len(mode)])
    if mode == "P":
        image.putpalette(bytes(range(256)) * 3)
    image.save(tmp_path / "large", kind, **options)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, os.fspath(tmp_path / "large")],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert int(done.stdout) * 1024 < 850e6


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_the_planned_one_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"planned")
    planned = images.stamp(os.stat(path))
    assert images.read(path, planned) == images.read(path, list(planned)) == images.read(path) == b"planned"
    path.write_bytes(b"another")
    with pytest.raises(ImageError, match="changed since the pass was planned; run again") as caught:
        images.read(path, planned)
    assert caught.value.code == "changed"
    path.unlink()
    with pytest.raises(ImageError) as caught:
        images.read(path, planned)
    assert caught.value.code == "missing"


def test_a_file_that_grows_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    """A writer appends all the time; a read gives one of its states whole, or `changed`.

    The pieces fit into pages: a file system may show a longer file after each page of a write, not after each write.
    """
    path, piece = tmp_path / "log.png", b"x" * 1024
    path.write_bytes(piece)
    stop = threading.Event()

    def append() -> None:
        with open(path, "ab", buffering=0) as file:
            while not stop.is_set() and file.tell() < 50_000_000:
                file.write(piece)

    writer = threading.Thread(target=append)
    writer.start()
    codes = set()
    try:
        for _ in range(3_000):
            try:
                assert len(images.read(path)) % len(piece) == 0
            except ImageError as error:
                codes.add(error.code)
                break
    finally:
        stop.set()
        writer.join()
    assert codes == {"changed"}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to become somebody who may not read")
def test_an_unreadable_file_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    path.chmod(0)
    code = "import os, sys\nfrom featcache import errors, images\nos.seteuid(65534)\ntry: images.read(sys.argv[1])\n"
    code += "except errors.ImageError as error: print(error.code, error)"
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, os.fspath(path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "unreadable permission denied\n"
