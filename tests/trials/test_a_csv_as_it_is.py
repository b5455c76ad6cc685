"""A CSV whose columns have other names had to be rewritten, and files that never were there were said to be gone. Now
columns can be named, a missing one is said with the name that is probably meant, absent files with where they lie."""

import csv
import json
from pathlib import Path

import pytest

from featcache.errors import UsageError
from featcache.manifest import Manifest
from featcache.specs import ColumnSpec
from tests.conftest import draw
from tests.test_cli import RANDOM, featcache

HEADER = ["Image Index", "Finding Labels", "Patient ID", "fold"]
ROWS = [[f"{i:08d}_000.png", ("Mass", "Edema")[i % 2], str(i // 2), ("train", "test")[i % 2]] for i in range(6)]
NAMED = ColumnSpec("Image Index", None, "Finding Labels", "Patient ID", "fold")
OPTIONS = ("--path-column", "Image Index", "--label-column", "Finding Labels", "--group-column", "Patient ID",
           "--split-column", "fold")  # fmt: skip


def table(path: Path, header: list[str] = HEADER, rows: list[list[str]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def touch(folder: Path, names: list[str] = [row[0] for row in ROWS]) -> None:  # noqa: B006
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_columns_of_any_name_are_paths_labels_groups_and_subsets(tmp_path: Path) -> None:
    touch(tmp_path)
    manifest = Manifest.read(table(tmp_path / "nih.csv"), columns=NAMED)
    assert manifest.image_ids == [row[0] for row in ROWS]
    assert manifest.columns == {
        name: [row[i] for row in ROWS] for i, name in ((1, "label"), (2, "group"), (3, "split"))
    }
    assert not manifest.notes
    named = ColumnSpec(path_column="Image Index", id_column="Finding Labels")
    with pytest.raises(UsageError, match="'Mass' stands already at line 2"):
        Manifest.read(tmp_path / "nih.csv", columns=named)


def test_check_and_embed_take_the_names_as_options(tmp_path: Path) -> None:
    for i, row in enumerate(ROWS):
        draw(tmp_path / row[0], i)
    table(tmp_path / "nih.csv")
    told = json.loads(featcache("check", "nih.csv", *OPTIONS, "--json", cwd=tmp_path).stdout)
    assert {(each["split"], each["label"]) for each in told["classes"]} == {("train", "Mass"), ("test", "Edema")}
    done = featcache("embed", "nih.csv", "-o", "s.h5", *RANDOM, *OPTIONS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(featcache("info", "s.h5", "--json", cwd=tmp_path).stdout)["rows"] == len(ROWS)


@pytest.mark.parametrize("name", ["image", "filename", "file", "img_path", "Image Index", "dicom", "x"])
def test_without_a_column_path_the_one_with_image_files_is_named(tmp_path: Path, name: str) -> None:
    source = table(tmp_path / "t.csv", ["n", name], [["1", "1.png"], ["2", "2.PNG"]])
    with pytest.raises(UsageError, match=rf"no column named path .* The column '{name}' .*: give path_column='{name}'"):
        Manifest.read(source)


def test_names_without_a_suffix_are_known_by_their_column(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv", ["study", "image_name"], [["1", "a1"], ["2", "a2"]])
    with pytest.raises(
        UsageError, match="'image_name' may have the paths of the images: give path_column='image_name'"
    ):
        Manifest.read(source)


def test_a_misspelt_column_is_answered_with_the_nearest(tmp_path: Path) -> None:
    source = table(tmp_path / "nih.csv")
    for wrong, right in (("Finding Label", "Finding Labels"), ("finding_labels", "Finding Labels")):
        with pytest.raises(UsageError, match=rf"no column named {wrong} \(columns: .*\)\. Did you mean '{right}'"):
            Manifest.read(source, columns=ColumnSpec("Image Index", label_column=wrong))


def test_columns_of_a_folder_or_named_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="label_column is for a table"):
        Manifest.read(tmp_path, columns=ColumnSpec(label_column="x"))
    with pytest.raises(ValueError, match="each column is one thing only"):
        ColumnSpec(path_column="x", label_column="x")


def test_a_likely_label_column_is_said(tmp_path: Path) -> None:
    touch(tmp_path, ["1.png"])
    for name in ("diagnosis", "class", "Finding Labels"):
        notes = Manifest.read(table(tmp_path / "t.csv", ["path", name], [["1.png", "a"]])).notes
        assert f"give label_column='{name}'" in notes[0]


def test_names_of_columns_with_a_slash_are_kept_without(tmp_path: Path) -> None:
    """As `Frontal/Lateral` of CheXpert."""
    touch(tmp_path, ["1.png"])
    manifest = Manifest.read(table(tmp_path / "t.csv", ["Path", "Frontal/Lateral"], [["1.png", "Frontal"]]))
    assert manifest.columns == {"Frontal_Lateral": ["Frontal"]}
    assert "hence 'Frontal_Lateral' for 'Frontal/Lateral'" in manifest.notes[0]


# --- files that are not there -----------------------------------------------------------------------------------------


def about_absent(folder: Path, names: list[str]) -> str:
    (note,) = Manifest.read(table(folder / "t.csv", ["path"], [[name] for name in names])).notes
    return note


def test_absent_files_are_said_before_the_pass_with_where_they_were_looked_for(tmp_path: Path) -> None:
    touch(tmp_path, ["1.png", "2.png"])
    note = about_absent(tmp_path, ["1.png", "2.png", "sub/3.png"])
    assert note.startswith("1 file is not there, of 3")
    assert f"paths are relative to {tmp_path}" in note
    assert f"the first that is missing is {tmp_path / 'sub/3.png'}" in note


@pytest.mark.parametrize(
    ("there", "listed", "says"),
    [
        ("data/images/1.png", "1.png", "Under {}/data/images there is '1.png'"),
        ("1.png", "wrong/place/1.png", "Under {} there is '1.png': without the folders before it"),
        ("images/1.png", "C:\\x\\images\\1.png", "Under {}/images there is '1.png': without the folders before it"),
        ("train/a/1.png", "a\\1.png", "Under {}/train there is 'a/1.png'"),
        ("1.jpg", "1", "Under {} there is '1.jpg': the paths lack the extension"),
    ],
)
def test_where_most_are_absent_the_folder_that_has_them_is_named(
    tmp_path: Path, there: str, listed: str, says: str
) -> None:
    touch(tmp_path, [there])
    assert says.format(tmp_path) in about_absent(tmp_path, [listed])


def test_images_in_the_folder_beside_that_of_the_table_are_found(tmp_path: Path) -> None:
    touch(tmp_path / "images", ["1.png"])
    note = about_absent(tmp_path / "labels", ["1.png"])
    assert f"Under {tmp_path / 'images'} there is '1.png'" in note


def test_a_file_that_never_was_is_not_said_to_be_gone(tmp_path: Path) -> None:
    draw(tmp_path / "1.png", 1)
    table(tmp_path / "t.csv", ["path"], [["1.png"], ["2.png"]])
    done = featcache("embed", "t.csv", "-o", "s.h5", *RANDOM, cwd=tmp_path)
    assert done.returncode == 3
    assert "the file is gone" not in done.stdout + done.stderr
    assert f"the first that is missing is {tmp_path / '2.png'}" in done.stderr
