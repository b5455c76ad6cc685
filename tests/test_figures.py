"""Curves: the same numbers give the same picture, and a phase is seen where it begins."""

import io

import numpy as np
from PIL import Image

from featcache import figures

NAMES = [f"{side}_{name}" for side in ("train", "val") for name in ("loss", "accuracy", "f1")]


def history(n: int) -> list[dict[str, float]]:
    return [{"epoch": float(i + 1), **dict.fromkeys(NAMES, 1 / (i + 2))} for i in range(n)]


def in_phases(*lengths: int) -> list[dict[str, float]]:
    phases = [phase for phase, n in enumerate(lengths, start=1) for _ in range(n)]
    return [{"phase": float(phase), **row} for phase, row in zip(phases, history(sum(lengths)), strict=True)]


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("L")).astype(int)


def test_a_single_phase_is_drawn_as_if_nothing_were_said_of_it() -> None:
    assert figures.curves(in_phases(6), "t", 6) == figures.curves(history(6), "t", 6)


def test_epochs_are_counted_through_the_phases() -> None:
    """Also where each phase begins to count anew."""
    through = in_phases(4, 5)
    anew = [{**row, "epoch": row["epoch"] - 4 if row["phase"] == 2 else row["epoch"]} for row in through]
    assert figures.curves(anew, "t", 7) == figures.curves(through, "t", 7)


def test_a_line_stands_where_a_phase_begins() -> None:
    """In each of the three panels, between the epochs, from its bottom to its top."""
    plain, marked = (pixels(figures.curves(each, "t")) for each in (history(9), in_phases(4, 5)))
    changed = (marked < plain - 30).sum(axis=0)
    tall = np.flatnonzero(changed > 0.5 * plain.shape[0])
    starts = tall[np.diff(tall, prepend=-10) > 5]
    assert len(starts) == 3
    assert np.ptp(np.diff(starts)) <= 1
