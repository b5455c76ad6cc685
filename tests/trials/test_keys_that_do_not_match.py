"""Keys that pandas wrote as 7.0, or without their zeros, folder or extension, joined labels to nothing, or to a few,
and nothing was said. Matches are counted, and one key of each side is shown with what differs; nothing is guessed."""

import csv
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import UsageError
from featcache.fusion.writer import export_studies
from featcache.specs import FusionSpec, TargetSpec
from featcache.splits.task import Task
from featcache.store import Store
from featcache.tables import joining
from tests.conftest import make_store

N = 12


def task(folder: Path, ours: list[str], theirs: list[str], on: str = "patient") -> Task:
    """A store with the patients `ours`, and labels by the patients `theirs`."""
    with open(folder / "l.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["patient", "label"], *([key, "ab"[i % 2]] for i, key in enumerate(theirs))])
    path = folder / "s.h5"
    path.unlink(missing_ok=True)
    store = Store.open(make_store(path, np.ones((N, 2)), {"patient": ours}))
    return Task.of(store, TargetSpec(file=folder / "l.csv", on=on))


DIFFERENCES = {
    "the decimals of a number": ("{}", "{}.0"),
    "zeros before a number": ("{:05d}", "{}"),
    "zeros before a number and its decimals": ("{:05d}", "{}.0"),
    "the file name's extension": ("scan{}.png", "scan{}"),
    "the folder before the name": ("train/a/{}.png", "{}.png"),
    "folder and extension": ("train/a/x{}.png", "x{}"),
    "upper and lower case": ("P{}", "p{}"),
    "the direction of slashes": ("a/{}.png", "a\\{}.png"),
    "blanks": ("P{}", "P {}"),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_where_no_key_matches_the_refusal_says_what_differs(tmp_path: Path, difference: str) -> None:
    ours, theirs = ([form.format(i) for i in range(1, N + 1)] for form in DIFFERENCES[difference])
    with pytest.raises(UsageError) as refused:
        task(tmp_path, ours, theirs)
    assert f"{ours[0]!r} and {theirs[0]!r} differ in {difference}. Join on another column" in str(refused.value)


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_where_some_match_a_note_counts_them_and_says_what_differs(tmp_path: Path, difference: str) -> None:
    """A third of the keys is written as those of the store."""
    ours, theirs = ([form.format(i) for i in range(1, N + 1)] for form in DIFFERENCES[difference])
    labelled = task(tmp_path, ours, [*ours[:4], *theirs[4:]])
    assert labelled.left_out == {"no label": N - 4}
    (note,) = [note for note in labelled.notes if "images have a row in" in note]
    assert note.startswith(f"4 of {N} images have a row in")
    assert note.endswith(f"differ in {difference}.")


def test_blanks_around_keys_make_no_difference(tmp_path: Path) -> None:
    labelled = task(tmp_path, [f"p{i}" for i in range(N)], [f"  p{i}\t" for i in range(N)])
    assert not labelled.left_out
    assert not [note for note in labelled.notes if "have a row in" in note]


def test_a_few_unlabelled_images_are_no_reason_for_a_note(tmp_path: Path) -> None:
    labelled = task(tmp_path, [f"p{i}" for i in range(N)], [f"p{i}" for i in range(N - 2)])
    assert labelled.left_out == {"no label": 2}
    assert not [note for note in labelled.notes if "have a row in" in note]


def test_few_matches_without_a_likely_reason_show_one_of_each_side(tmp_path: Path) -> None:
    labelled = task(tmp_path, [f"p{i}" for i in range(N)], ["p0", "p1", "zebra"])
    assert any(
        f"2 of {N} images have a row in" in note and "'p10', and of the table 'zebra'" in note
        for note in labelled.notes
    )


def test_reports_that_match_few_studies_are_said_likewise(tmp_path: Path) -> None:
    store = Store.open(make_store(tmp_path / "s.h5", np.ones((N, 2)), {"study": [f"{i:03d}" for i in range(N)]}))
    with open(tmp_path / "r.csv", "w", newline="") as file:
        csv.writer(file).writerows([["study", "text"], ["000", "Clear."], *([str(i), "Clear."] for i in range(1, N))])
    fused = export_studies(store, tmp_path / "f.h5", FusionSpec("study", ("text",), tmp_path / "r.csv"))
    assert any("'001' and '1' differ in zeros before a number" in note for note in fused.notes)


def test_the_column_that_has_the_keys_is_found_also_where_they_are_written_otherwise() -> None:
    columns = {"age": ["7", "8"], "file": ["A/1.PNG", "2.png"], "name": ["x", "y"]}
    assert joining.column_like(["a/1", "b/2"], columns) == "file"
    assert joining.column_like(["zebra"], columns) == ""
