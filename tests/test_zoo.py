"""Every file of the zoo gets its pinned answer, and shows what was put into it."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featcache import images
from featcache.errors import ImageError
from featcache.images import decode
from featcache.manifest import Manifest
from featcache.specs import DecodeSpec
from tests import zoo

ANIMALS = zoo.animals()
SHOWN = sorted(name for name, animal in ANIMALS.items() if animal.answer == "ok")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("zoo") / "zoo"
    return root, zoo.build(root)


def answer(manifest: Manifest, row: int) -> str:
    if manifest.image_ids[row] in manifest.refused:
        return "outside"
    try:
        decode(images.read(manifest.paths[row]))
    except ImageError as error:
        return error.code if str(error).isprintable() else f"{error.code}, said in more than a line"
    return "ok"


def test_every_file_gets_its_answer(built: tuple[Path, dict[str, str]]) -> None:
    root, answers = built
    manifest = Manifest.read(root)
    given_answers = {image_id: answer(manifest, row) for row, image_id in enumerate(manifest.image_ids)}
    expected = {name: code for name, code in answers.items() if code != "skipped"}
    wrong = {
        name: (given_answers.get(name, "skipped"), expected.get(name, "skipped"))
        for name in given_answers.keys() | expected.keys()
        if given_answers.get(name) != expected.get(name)
    }
    assert wrong == {}
    assert sum(manifest.skipped.values()) == len([code for code in answers.values() if code == "skipped"])


def test_the_zoo_is_large_and_light(built: tuple[Path, dict[str, str]]) -> None:
    root, answers = built
    assert len(answers) >= 250 if zoo.HAS_DICOM else 200
    assert sum(path.lstat().st_size for path in root.rglob("*")) < 30e6
    assert ANIMALS["png/bomb.png"].data.__sizeof__() < 30_000


@pytest.mark.parametrize("name", SHOWN, ids=ascii)
def test_pixels_are_those_that_were_encoded(name: str) -> None:
    animal = ANIMALS[name]
    pixels = np.asarray(decode(animal.data))
    assert pixels.dtype == np.uint8
    assert pixels.shape == animal.pixels.shape
    assert np.abs(pixels.astype(int) - animal.pixels.astype(int)).max() <= animal.tolerance


@pytest.mark.parametrize("name", sorted(name for name, animal in ANIMALS.items() if animal.also), ids=ascii)
def test_other_rules_give_other_pixels(name: str) -> None:
    for spec, pixels in ANIMALS[name].also:
        assert np.array_equal(np.asarray(decode(ANIMALS[name].data, spec)), pixels)


def test_twelve_bits_in_sixteen_keep_their_order_and_their_levels() -> None:
    shown = np.asarray(decode(ANIMALS["png/gray12in16.png"].data)).reshape(-1).astype(int)
    assert (np.diff(shown) >= 0).all()
    assert len(np.unique(shown)) >= 250


def test_refusals_say_what_to_do() -> None:
    for name, words in {
        "png/bomb.png": "13350 x 13350 is more than 89,478,485 pixels; max_pixels allows it",
        "tiff/pages.tif": "3 frames or pages, one is expected; first_frame takes the first",
        "tiff/float-little-1.tif": "float pixels have no stated range; state it as `float_range` (LOW,HIGH)",
    }.items():
        with pytest.raises(ImageError) as caught:
            decode(ANIMALS[name].data)
        assert str(caught.value) == words


def test_the_same_bytes_twice_are_two_images(built: tuple[Path, dict[str, str]]) -> None:
    found = set(Manifest.read(built[0]).image_ids)
    assert {"named/first-twin.png", "named/second-twin.png", "named/deeper/first-twin.png"} <= found


BROKEN = sorted(name for name in ANIMALS if ANIMALS[name].data and len(ANIMALS[name].data) < 20_000)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_no_bytes_raise_anything_but_an_image_error(data: st.DataObject) -> None:
    """Flips, cuts and insertions; warnings are errors here, so none is let through either."""
    broken = bytearray(ANIMALS[data.draw(st.sampled_from(BROKEN))].data)
    for at, byte in data.draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6)):
        broken[int(at * len(broken))] = byte
    cut = data.draw(st.one_of(st.none(), st.floats(0, 1)))
    spec = DecodeSpec(first_frame=data.draw(st.booleans()), float_range=(0.0, 1.0), max_pixels=1_000_000)
    with suppress(ImageError):
        shown = decode(bytes(broken if cut is None else broken[: int(cut * len(broken))]), spec)
        assert shown.mode in ("L", "RGB")


@pytest.mark.parametrize("name", ["png/rgb8.png", "jpeg/gray.jpg", "jpeg/gray-progressive.jpg", "others/palette.gif",
                                  "others/rgb.bmp", "others/lossless.webp", "tiff/rgb8-little.tif",
                                  "tiff/gray-65535-black-big-8.tif"])  # fmt: skip
def test_no_truncated_file_is_accepted(name: str) -> None:
    data = ANIMALS[name].data
    for length in range(len(data)):
        with pytest.raises(ImageError):
            decode(data[:length])


def test_the_zoo_can_be_built_from_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.zoo", os.fspath(tmp_path / "zoo")],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "entries" in done.stdout.splitlines()[-1]
