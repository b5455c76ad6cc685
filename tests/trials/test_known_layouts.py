"""`Training/{covid,normal}` and `Testing/{covid,normal}` were two classes, Training and Testing, without a word.

The usual spellings of the subsets at the usual places are understood, and what is nearly a layout is read literally
with a note that says what was read and what may have been meant.
"""

import json
from pathlib import Path

import pytest

from featcache.manifest import Manifest
from tests.conftest import draw
from tests.test_cli import featcache

Where = dict[str, tuple[str, str]]  # folder -> subset and class of the images in it


def touch(root: Path, *folders: str, n: int = 2) -> Path:
    """`n` images in each folder, all with different names; a folder whose name ends with / stays empty."""
    for place, name in enumerate(folders):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(0 if name.endswith("/") else n):
            (folder / f"{place}-{i}.png").write_bytes(b"x")
    return root


def read(root: Path, *folders: str, n: int = 2) -> tuple[Where, str]:
    """What is read of images in these folders, and all notes."""
    manifest = Manifest.read(touch(root, *folders, n=n))
    columns = [manifest.columns.get(name, [""] * len(manifest)) for name in ("split", "label")]
    rows = zip(manifest.image_ids, *columns, strict=True)
    return {name.rpartition("/")[0]: (split, label) for name, split, label in rows}, "\n".join(manifest.notes)


def tree(subsets: dict[str, str], form: str) -> Where:
    """A whole data set of two classes: folders by a form such as `{subset}/{label}`, and what each means."""
    return {
        form.format(subset=folder, label=label): (split, label)
        for folder, split in subsets.items()
        for label in ("covid", "normal")
    }


SPELLINGS = [
    ("Training", "Testing"), ("TRAIN", "VALID"), ("01_train", "02_test"), ("Train Set", "test-set"), ("tr", "ts"),
    ("train_images", "validation_images"), ("trainset", "devset"), ("train", "holdout"), ("imagesTr", "imagesTs"),
    ("trn", "val"), ("traindata", "development"), ("train", "evaluation"), ("1. Training", "3. Test images"),
    ("train_v2", "test_224x224"),
]  # fmt: skip
VALIDATION = ("VALID", "validation_images", "devset", "val", "development")


@pytest.mark.parametrize("names", SPELLINGS, ids="-".join)
def test_the_usual_spellings_of_subsets_are_understood(tmp_path: Path, names: tuple[str, str]) -> None:
    first, second = names
    expected = tree({first: "train", second: "val" if second in VALIDATION else "test"}, "{subset}/{label}")
    where, notes = read(tmp_path, *expected)
    assert where == expected
    assert ("Folders were read as subsets" in notes) == (names != ("TRAIN", "VALID"))


@pytest.mark.parametrize(
    "form",
    [
        "chest_xray/{subset}/{label}",
        "archive/data/{subset}/{label}",
        "{label}/{subset}",
        "data/{label}/{subset}/images",
    ],
)
def test_subsets_are_understood_at_the_usual_depths(tmp_path: Path, form: str) -> None:
    expected = tree({"train": "train", "test": "test"}, form)
    where, notes = read(tmp_path, *expected)
    assert where == expected
    assert notes.startswith(("Folders were read as subsets, below ", "Subsets were read below the classes, as in "))


@pytest.mark.parametrize("root", ["archive", "archive/chest_xray"])
def test_a_data_set_that_lies_in_itself_once_more_is_read_twice_alike(tmp_path: Path, root: str) -> None:
    once = tree({"train": "train", "test": "test"}, "chest_xray/{subset}/{label}")
    touch(tmp_path / "archive", *once, *(f"chest_xray/{name}" for name in once))
    where, _ = read(tmp_path / root)
    assert len(where) == 8
    assert all(split in name.split("/") and name.endswith(label) for name, (split, label) in where.items())


def test_collections_with_the_same_classes_are_not_classes(tmp_path: Path) -> None:
    expected = tree({"A/train": "train", "A/test": "test", "B/train": "train"}, "{subset}/{label}")
    where, notes = read(tmp_path, *expected)
    assert where == expected
    assert "A and B were read as collections, not as classes" in notes


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("covid/images", "normal/images"), {"covid/images": ("", "covid"), "normal/images": ("", "normal")}),
        (("images/covid", "images/normal"), {"images/covid": ("", "covid"), "images/normal": ("", "normal")}),
        (("train/images", "test/images"), {"train/images": ("train", ""), "test/images": ("test", "")}),
        (("images_001/images", "images_002/images"), {f"images_00{i}/images": ("", "") for i in (1, 2)}),
        (
            ("train/a", "train/b", "test/images"),
            {"train/a": ("train", "a"), "train/b": ("train", "b"), "test/images": ("test", "")},
        ),
        (("images/train", "images/val"), {"images/train": ("train", ""), "images/val": ("val", "")}),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[0],
)
def test_a_folder_called_images_is_no_class(tmp_path: Path, folders: tuple[str, ...], expected: Where) -> None:
    assert read(tmp_path, *folders)[0] == expected


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        (("covid/train", "covid/test", "normal"), "Folders named test and train (4 images) were not read as subsets"),
        (("test/p1", "control/p1"), "Folders named test (2 images) were not read as subsets, but as classes"),
        (("covid", "normal", "."), "2 of 6 images lie beside the folders of the classes and have no label"),
        (("train/a", "train/b", "test"), "2 of 6 images lie beside the folders of the classes and have no label"),
        (("train/a", "test/a", "extra/x"), "2 of 6 images lie beside the folders of the subsets and have neither"),
        (
            ("covid/a", "covid/b"),
            "have the same, covid. If the classes are the folders in it (a and b), give covid itself",
        ),
        (("covid",), "If the classes are folders beside it, give the folder that holds all of them."),
        (("A/covid", "A/normal", "B/covid", "B/normal"), "A and B were read as the classes, and each of them holds"),
        (("train/a", "train/b", "test/a", "test/c"), "different classes: train has no c; test has no b."),
        (("train/NORMAL", "train/x", "test/Normal", "test/x"), "NORMAL and Normal may be the same class"),
        (("covid", "normal", "sick/"), "1 folder beside the others holds no image: sick."),
        (("train/a", "train/b", "test/a", "test/b", "val/"), "1 folder beside the others holds no image: val."),
        (("train/a", "train/b", "test/a", "test/b/"), "holds no image: test/b."),
        (tuple(f"{i:04d}" for i in range(120)), "120 folders were read as classes, for example 0000, 0001"),
        (("patient_1", "patient_2", "patient_3"), "3 folders were read as classes, for example patient_1"),
        (("files/p10/p100", "files/p11/p110"), "2 folders were read as classes, for example p10 and p11"),
        (("part1", "part2"), "2 folders were read as classes, for example part1 and part2"),
        (("train_covid", "train_normal", "test_covid"), "Names of classes have words for subsets in them"),
    ],
    ids=lambda value: None if isinstance(value, str) else value[0],
)
def test_what_is_nearly_a_layout_is_a_note(tmp_path: Path, folders: tuple[str, ...], note: str) -> None:
    assert note in read(tmp_path, *folders)[1]


@pytest.mark.parametrize(
    "folders",
    [
        ("covid", "normal"), ("train/a", "train/b", "test/a", "test/b"), ("TR", "AS", "MR"), ("0", "1", "2", "3", "4"),
        ("covid/p1", "covid/p2", "normal/p3"), (".",), ("valid/a", "valid/b", "train/a", "train/b"),
        ("grade 1", "grade 2", "grade 3"), ("xray", "ct"), ("train/test", "train/b", "test/test", "test/b"),
        ("train/train/a", "train/train/b", "test/test/a", "test/test/b"),
    ],
    ids="-".join,
)  # fmt: skip
def test_a_plain_layout_has_no_note(tmp_path: Path, folders: tuple[str, ...]) -> None:
    assert read(tmp_path, *folders)[1] == ""


def test_a_class_called_test_keeps_its_neighbours_labels(tmp_path: Path) -> None:
    """One folder of that name, with folders in it, took the labels of all others away."""
    where, _ = read(tmp_path, "test/p1", "test/p2", "control/p3")
    assert where["control/p3"] == ("", "control")


def test_check_tells_notes_first_and_in_its_answer(tmp_path: Path) -> None:
    for i in range(4):
        draw(tmp_path / "images" / ("covid", "normal/test")[i % 2] / f"{i}.png", i)
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    done = featcache("check", "images", cwd=tmp_path)
    assert done.stdout.startswith("note: Folders named test (2 images) were not read as subsets")
    assert "skipped 1 system file\n" in done.stdout
    answer = json.loads(featcache("check", "images", "--json", cwd=tmp_path).stdout)
    assert next(iter(answer)) == "notes"
    assert len(answer["notes"]) == 1


def test_a_pass_tells_notes_before_its_work(tmp_path: Path) -> None:
    for i in range(4):
        draw(tmp_path / "images" / ("Training", "Testing")[i // 2] / ("a", "b")[i % 2] / f"{i}.png", i)
    command = ("embed", "images", "-o", "s.h5", "--backbone", "test_resnet", "--weights", "random:0", "--json")
    done = featcache(*command, "--input-size", "32", cwd=tmp_path)
    assert done.stderr.startswith("note: Folders were read as subsets: Training as train, Testing as test.")
    assert json.loads(done.stdout)["notes"] == ["Folders were read as subsets: Training as train, Testing as test."]
