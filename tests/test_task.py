"""Labels as numbers: from the store or a CSV, classes or findings, and what cannot be learnt."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import UsageError
from featcache.specs import TargetSpec
from featcache.splits.task import Task
from featcache.store import Store
from tests.conftest import make_store

N = 6
LABELS = ["b", "a", "b", "a", "b", ""]


def store_of(tmp_path: Path, columns: dict[str, list[str]], n: int = N) -> Store:
    return Store.open(make_store(tmp_path / "s.h5", np.ones((n, 2)), columns))


def joined(tmp_path: Path, text: str | bytes, on: str = "image_id", *columns: str) -> Task:
    """The task of a store with the patients p0 to p5, by a CSV."""
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    store = store_of(tmp_path, {"label": ["own"] * N, "patient": [f"p{i}" for i in range(N)]})
    return Task.of(store, TargetSpec(columns or ("label",), path, on))


def texts(task: Task) -> list[str]:
    return [task.classes[i] if i >= 0 else "" for i in task.labels]


def lines(header: str, labels: list[str], name: str = "image0000") -> str:
    return "\n".join([header, *(f"{name}{i},{label}" for i, label in enumerate(labels)), ""])


# --- the store's own --------------------------------------------------------------------------------------------------


def test_classes_are_sorted_and_the_last_is_positive(tmp_path: Path) -> None:
    task = Task.of(store_of(tmp_path, {"label": LABELS}))
    assert (task.classes, task.labels.tolist(), task.positive) == (["a", "b"], [1, 0, 1, 0, 1, -1], 1)
    assert task.labelled.tolist() == [0, 1, 2, 3, 4]
    assert task.left_out == {"no label": 1}
    assert task.counts(np.arange(5)).tolist() == [2, 3]


def test_the_positive_class_can_be_named(tmp_path: Path) -> None:
    store = store_of(tmp_path, {"label": LABELS})
    assert Task.of(store, TargetSpec(positive="a")).positive == 0
    with pytest.raises(UsageError, match=r"positive: 'flu' is not one of the classes: a, b\."):
        Task.of(store, TargetSpec(positive="flu"))


def test_any_column_of_the_store_can_be_learnt(tmp_path: Path) -> None:
    store = store_of(tmp_path, {"label": LABELS, "my sex": list("mfmfmf")})
    assert texts(Task.of(store, TargetSpec(("my sex",)))) == list("mfmfmf")
    with pytest.raises(UsageError, match="has no column 'age'; it has label, my sex"):
        Task.of(store, TargetSpec(("age",)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [({}, "has no labels; a head needs two classes"), ({"label": ["a"] * N}, "has only the class 'a'; a head needs")],
)
def test_one_class_is_too_few(tmp_path: Path, columns: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Task.of(store_of(tmp_path, columns))


@dataclass(frozen=True)
class Folder:
    """Labelled images that were never embedded."""

    path: Path
    image_ids: list[str]
    columns: dict[str, list[str]]
    content_sha256: list[str]

    def __len__(self) -> int:
        return len(self.image_ids)


def test_a_folder_of_labelled_images_serves_as_well_as_a_store(tmp_path: Path) -> None:
    store = store_of(tmp_path, {"label": LABELS, "site": list("xyxyxy")})
    folder = Folder(tmp_path / "images", store.image_ids, store.columns, store.content_sha256)
    (tmp_path / "l.csv").write_text("site,class\nx,n\ny,o\n")
    for target in (TargetSpec(), TargetSpec(("site",)), TargetSpec(("class",), tmp_path / "l.csv", "site")):
        ours, theirs = Task.of(store, target), Task.of(folder, target)
        assert np.array_equal(ours.labels, theirs.labels)
        for name in ("image_ids", "columns", "content", "classes", "positive", "left_out"):
            assert getattr(ours, name) == getattr(theirs, name), name


def test_only_a_store_is_to_be_embedded_again(tmp_path: Path) -> None:
    store = store_of(tmp_path, {})
    with pytest.raises(UsageError, match=r"a label column, and embed again, or join labels with --labels FILE\.csv"):
        Task.of(store)
    with pytest.raises(UsageError, match=r"images has no labels; .* a label column, or join labels with --labels"):
        Task.of(Folder(tmp_path / "images", store.image_ids, {}, store.content_sha256))


@pytest.mark.parametrize("columns", [(), ("a", "a")])
def test_label_columns_are_named_once_each(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="label columns must be named once each"):
        TargetSpec(columns)


# --- from a CSV -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        lines("image_id,label", LABELS),
        "\ufeff" + lines("image_id,label", LABELS),
        lines("image_id,label", LABELS).replace("\n", "\r\n"),
        lines("image_id,label", [f'"{label}"' for label in LABELS]),
        lines("image_id,label", [f" {label} " for label in LABELS]),
        lines("image_id,label", LABELS) + "elsewhere,c\n,c\n,d\n\n\n",
        lines("image_id,label", LABELS[:-1]),
        lines("image_id,label", LABELS) + "image00000,b\n",
        lines("image_id,label,age", [f"{label},7" for label in LABELS]),
    ],
    ids=["plain", "bom", "crlf", "quoted", "spaces", "extra", "lacking", "twice", "columns"],
)
def test_labels_join_by_name_however_the_csv_is_written(tmp_path: Path, text: str) -> None:
    """Rows that the store has not, empty lines and empty names change nothing, and their labels make no class."""
    task = joined(tmp_path, text)
    assert texts(task) == LABELS
    assert task.left_out == {"no label": 1}
    assert task.columns["label"] == ["own"] * N


def test_labels_join_by_another_column(tmp_path: Path) -> None:
    assert texts(joined(tmp_path, lines("patient,label", LABELS, "p"), "patient")) == LABELS
    assert texts(joined(tmp_path, lines("patient,x y", LABELS, "p"), "patient", "x y")) == LABELS


def test_an_empty_key_joins_nothing(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("patient,label\n,c\np0,a\np1,b\n")
    store = store_of(tmp_path, {"patient": ["", "p0", "p1", "p0", "p1", ""]})
    task = Task.of(store, TargetSpec(file=tmp_path / "l.csv", on="patient"))
    assert texts(task) == ["", "a", "b", "a", "b", ""]


@pytest.mark.parametrize(
    ("text", "on", "message"),
    [
        (
            lines("image_id,label", LABELS) + "\nimage00001,b\n",
            "image_id",
            "line 9, column label: image_id 'image00001' has another text in line 3",
        ),
        (lines("image_id,class", LABELS), "image_id", "line 1: no column named label (columns: image_id, class)"),
        (lines("name,label", LABELS), "image_id", "line 1: no column named image_id (columns: name, label)"),
        (
            lines("image_id,label", LABELS),
            "site",
            "no column named site (columns: label, patient). It cannot be joined on.",
        ),
        (lines("image_id,label", LABELS), "patient", "line 1: no column named patient (columns: image_id, label)"),
        (
            lines("image_id,label", LABELS, "scan"),
            "image_id",
            "the file has 'scan0', the images 'image00000'. Join on another column.",
        ),
        ("image_id,label\n", "image_id", "no image_id of"),
        (
            'image_id,label\n"of two\nlines",a\nimage00001,b\nimage00001,a\n',
            "image_id",
            "line 5, column label: image_id 'image00001' has another text in line 4",
        ),
        ("", "image_id", "line 1: no column named label (columns: none)"),
        (lines("image_id,label", LABELS).encode("utf-16")[:-1], "image_id", "damaged UTF-16; save it as UTF-8"),
        (lines("image_id,label", ["ä", "b"]).encode("latin-1"), "image_id", "line 2: not UTF-8 (byte 0xe4)"),
        (
            lines("image_id,label", [*LABELS[:-1], "b"]).replace("image00005,b", "image00005"),
            "image_id",
            "line 7: the n",
        ),
        (
            lines("image_id,label", LABELS) + "a,b,c\n",
            "image_id",
            "line 8: the number of cells is not that of the header",
        ),
    ],
    ids=[
        "disagree",
        "label",
        "id",
        "on",
        "on file",
        "no match",
        "header",
        "lines",
        "empty",
        "utf-16",
        "latin-1",
        "short",
        "ragged",
    ],
)
def test_a_csv_that_says_nothing_of_the_store_is_refused(
    tmp_path: Path, text: str | bytes, on: str, message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        joined(tmp_path, text, on)


def test_a_csv_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.csv: no such file"):
        Task.of(store_of(tmp_path, {"label": LABELS}), TargetSpec(file=tmp_path / "none.csv"))


# --- findings ---------------------------------------------------------------------------------------------------------


def test_findings_are_one_zero_or_unknown(tmp_path: Path) -> None:
    columns = {"Edema": ["1", "0", "1.0", "0.0", "", "nan"], "Mass": [" TRUE", "false", "NaN", "1", "0", ""]}
    task = Task.of(store_of(tmp_path, columns), TargetSpec(("Mass", "Edema")))
    nan = np.nan
    expected = [[1, 1], [0, 0], [nan, 1], [1, 0], [0, nan], [nan, nan]]
    assert np.array_equal(task.labels, expected, equal_nan=True)
    assert (task.classes, task.has_findings, task.labelled.tolist()) == (["Mass", "Edema"], True, [0, 1, 2, 3, 4])
    assert task.left_out == {"no label": 1}
    assert task.counts(task.labelled).tolist() == [2, 2]


@pytest.mark.parametrize("text", ["-2", "yes", "2", "positive", "0.5"])
def test_a_finding_that_is_neither_is_refused_with_the_image(tmp_path: Path, text: str) -> None:
    columns = {"Edema": ["1", "0", "1", text, "0", "0"], "Mass": list("010101")}
    with pytest.raises(UsageError, match=f"Edema of image00003 is '{text}'; several label columns are findings"):
        Task.of(store_of(tmp_path, columns), TargetSpec(("Edema", "Mass")))


@pytest.mark.parametrize(("values", "has"), [("1111 1", "only 1"), ("000000", "only 0"), ("      ", "no value")])
def test_a_finding_that_everybody_or_nobody_has_is_refused(tmp_path: Path, values: str, has: str) -> None:
    columns = {"Edema": [value.strip() for value in values], "Mass": list("010101")}
    with pytest.raises(UsageError, match=f"the finding 'Edema' has {has}; it needs images with it and images without"):
        Task.of(store_of(tmp_path, columns), TargetSpec(("Edema", "Mass")))


def test_findings_have_no_positive_class(tmp_path: Path) -> None:
    columns = {"Edema": list("010110"), "Mass": list("010101")}
    with pytest.raises(UsageError, match="positive is for classes"):
        Task.of(store_of(tmp_path, columns), TargetSpec(("Edema", "Mass"), positive="Mass"))


def test_findings_join_by_name(tmp_path: Path) -> None:
    text = lines("image_id,Edema,Mass", ["1,0", "0,1", "1,", "0,0", ",", "1,1"])
    task = joined(tmp_path, text, "image_id", "Edema", "Mass")
    assert np.array_equal(task.labels, [[1, 0], [0, 1], [1, np.nan], [0, 0], [np.nan, np.nan], [1, 1]], equal_nan=True)
    with pytest.raises(UsageError, match=r"labels\.csv: Mass of image00001 is 'x'"):
        joined(tmp_path, text.replace("00001,0,1", "00001,0,x"), "image_id", "Edema", "Mass")


# --- what can be learnt -----------------------------------------------------------------------------------------------


def test_rows_without_an_example_of_a_class_cannot_be_learnt_from(tmp_path: Path) -> None:
    task = Task.of(store_of(tmp_path, {"label": ["a", "b", "c", "a", "b", "c"]}))
    task.check_learnable(np.arange(3), "these rows")
    with pytest.raises(UsageError, match=r"these rows have no image of class 'c' \(2 a, 1 b, 0 c\)"):
        task.check_learnable(np.array([0, 1, 3]), "these rows")


def test_rows_without_an_example_of_the_absence_of_a_finding_cannot_be_learnt_from(tmp_path: Path) -> None:
    task = Task.of(store_of(tmp_path, {"x": list("010101"), "y": ["1", "0", "1", "", "", "1"]}), TargetSpec(("x", "y")))
    task.check_learnable(np.arange(3), "these rows")
    with pytest.raises(UsageError, match=r"these rows have no image without 'y' \(1 x, 2 y\)"):
        task.check_learnable(np.array([0, 2, 3]), "these rows")
    with pytest.raises(UsageError, match=r"these rows have no image of class 'y' \(1 x, 0 y\)"):
        task.check_learnable(np.array([1, 4]), "these rows")


def test_a_line_with_a_cell_too_many_shifts_no_label(tmp_path: Path) -> None:
    """Some readers would take the first cell for an index, and every label for the column before it."""
    store = store_of(tmp_path, {})
    rows = "".join(f"{name},{label},extra\n" for name, label in zip(store.image_ids, LABELS, strict=True))
    (tmp_path / "labels.csv").write_text("image_id,label\n" + rows)
    with pytest.raises(UsageError, match=r"line 2: the number of cells is not that of the header"):
        Task.of(store, TargetSpec(file=tmp_path / "labels.csv"))
