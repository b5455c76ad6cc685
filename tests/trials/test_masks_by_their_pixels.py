"""Masks beside images were embedded without a word. `check` says which images are of few gray levels, as masks are, and
which show nothing at all."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.images import look
from featcache.manifest import Manifest
from featcache.manifest.check import check
from tests.conftest import draw


def mask(path: Path, levels: tuple[int, ...] = (0, 255), mode: str = "L", size: int = 64) -> Path:
    """Stripes of these levels behind a disc."""
    y, x = np.mgrid[0:size, 0:size]
    pixels = np.array(levels, dtype=np.uint8)[(x // 8 % len(levels)) * ((x - 32) ** 2 + (y - 32) ** 2 < 500)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "levels", "mode"),
    [
        ("binary.png", (0, 255), "L"),
        ("one-bit.png", (0, 255), "1"),
        ("labels.png", (0, 1, 2, 3, 4), "L"),
        ("colour.png", (0, 255), "RGB"),
        ("palette.gif", (0, 120, 240), "P"),
        ("edges.jpg", (0, 255), "L"),
    ],
)
def test_a_mask_is_told_from_a_picture_whatever_its_format(
    name: str, levels: tuple[int, ...], mode: str, tmp_path: Path
) -> None:
    mask(tmp_path / name, levels, mode, size=256 if name.endswith("jpg") else 64)
    draw(tmp_path / "picture.png", 1)
    (note,) = check(Manifest.read(tmp_path)).notes
    assert note.startswith("1 of the 2 images that were decoded have 8 gray levels or fewer")
    assert name in note
    assert "picture" not in note


def test_images_that_show_nothing_are_said(tmp_path: Path) -> None:
    for i in range(4):
        draw(tmp_path / f"{i}.png", i)
    Image.new("L", (40, 36), 17).save(tmp_path / "black.png")
    Image.fromarray(np.full((40, 36), 900, dtype=np.uint16)).save(tmp_path / "deep.png")
    notes = check(Manifest.read(tmp_path), full=True).notes
    assert any("2 of the 6 images that were decoded have one gray level throughout" in note for note in notes)
    assert any("'black.png', 'deep.png'" in note for note in notes)


def test_a_sample_says_that_it_is_one_and_full_looks_at_all(tmp_path: Path) -> None:
    for i in range(130):
        (mask if i % 2 else draw)(tmp_path / f"{i:03d}.png", *([] if i % 2 else [i]))
    (note,) = check(Manifest.read(tmp_path)).notes
    assert "of the 64 images that were decoded (a sample of 130; full looks at all)" in note
    (note,) = check(Manifest.read(tmp_path), full=True).notes
    assert note.startswith("65 of the 130 images that were decoded have 8 gray levels or fewer")


def test_noise_around_one_level_counts_as_few_levels_and_a_dark_picture_does_not() -> None:
    noise = np.random.default_rng(0).integers(100, 103, (40, 40)).astype(np.uint8)
    ramp = np.arange(1600, dtype=np.uint16).reshape(40, 40)
    assert look(saved(noise)).n_main_levels == 3
    assert look(saved(ramp)).n_main_levels > 100


def saved(pixels: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
