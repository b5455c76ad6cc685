"""The probe: equal as long as preprocessing is, another as soon as it is not."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from featcache import images, specs
from featcache.images import decoding, probe
from featcache.images.probe import pixels_sha256
from featcache.specs import DecodeSpec, TransformSpec

SPEC = TransformSpec((48, 48), 0.9, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
DECODE = DecodeSpec()
PINNED = "7f35de79f348b1e36291d333063956923fa234c9d283a6ca32f7a82e1e34f9e2"


def test_the_digest_of_these_libraries_is_known() -> None:
    """Pillow 13.0.0 with libjpeg-turbo 3.2.0. If another fails here, vectors change with it: that is what it is for."""
    if Image.__version__ != "13.0.0":
        pytest.skip(f"pinned for Pillow 13.0.0, this is {Image.__version__}")
    assert pixels_sha256(SPEC, DECODE) == PINNED
    assert pixels_sha256(SPEC, DECODE) == PINNED


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": (47, 47)},
        {"crop_pct": 0.91},
        {"interpolation": "bilinear"},
        {"interpolation": "lanczos"},
        {"interpolation": "nearest"},
        {"crop_mode": "squash"},
    ],
)
def test_every_field_that_changes_pixels_changes_it(change: dict[str, object]) -> None:
    assert pixels_sha256(replace(SPEC, **change), DECODE) != PINNED


def test_neither_a_depth_nor_a_limit_changes_it() -> None:
    """The depth stands in the identity by itself, and is settled after vectors that do not depend on it."""
    assert {pixels_sha256(SPEC, replace(DECODE, bit_depth=bits, is_settled=True)) for bits in range(8, 17)} == {PINNED}
    assert pixels_sha256(SPEC, replace(DECODE, first_frame=True, max_pixels=9, float_range=(0.0, 1.0))) == PINNED


def test_another_resampling_filter_under_the_same_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs.images, "_resampling", lambda name: Image.Resampling.HAMMING)
    assert pixels_sha256(SPEC, DECODE) != PINNED


@pytest.mark.parametrize("name", sorted(probe._images()))
def test_a_decoder_that_is_off_by_one_in_one_image_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    decode, data = images.decode, probe._images()[name]

    def off_by_one(given: bytes, spec: DecodeSpec, at_least: int | None) -> Image.Image:
        return Image.fromarray(np.asarray(decode(given, spec, at_least)) ^ np.uint8(given == data))

    monkeypatch.setattr(decoding, "decode", off_by_one)
    assert pixels_sha256(SPEC, DECODE) != PINNED


def test_shortcuts_change_it_and_so_does_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are smaller than an input of a network: shrunk ones stand beside them, or nothing would be noticed."""
    fast = replace(DECODE, fast=True)
    digests = {PINNED, pixels_sha256(SPEC, fast)}
    monkeypatch.setattr(specs.images, "REDUCING_GAP", 3.0)
    digests.add(pixels_sha256(SPEC, fast))
    monkeypatch.setattr(decoding, "_SCALES", ())
    digests.add(pixels_sha256(SPEC, fast))
    assert len(digests) == 4
    assert pixels_sha256(SPEC, DECODE) == PINNED


def test_the_jpegs_are_small() -> None:
    built_in = probe._images()
    assert len(built_in["jpeg gray"]) + len(built_in["jpeg 4:2:0"]) < 1_500
    assert {name: images.decode(data).mode for name, data in built_in.items()} == {
        "png gray": "L", "png gray 9": "L", "png gray 16": "L",
        "png rgb": "RGB", "png rgba": "RGB", "png palette": "RGB",
        "jpeg gray": "L", "jpeg 4:2:0": "RGB", "jpeg turned": "RGB",
    }  # fmt: skip
    assert images.decode(built_in["jpeg turned"]).size == images.decode(built_in["jpeg 4:2:0"]).size[::-1]
