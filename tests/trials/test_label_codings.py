"""Several codings in one label column were classes without a word: `0` beside `0.0`, `Normal` beside
`normal`, -1 for uncertain, lists, ages. What is certainly one class is read as one; of the rest a note
names the parameter that reads it as meant."""

from pathlib import Path

import numpy as np
import pytest

from featcache.auditing.audit import audit
from featcache.errors import UsageError
from featcache.manifest import Manifest
from featcache.manifest.check import check
from featcache.specs import TargetSpec
from featcache.splits import class_names
from featcache.splits.task import Task
from featcache.store import Store
from tests.conftest import draw, make_store


def task_of(folder: Path, labels: list[str], **asked: object) -> Task:
    path = make_store(folder / "s.h5", np.ones((len(labels), 2)), {"label": labels})
    with Store.open(path) as store:
        return Task.of(store, TargetSpec(**asked))  # type: ignore[arg-type]


def about(labels: list[str]) -> str:
    return " ".join(class_names.notes({label: labels.count(label) for label in labels}))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["0", "0", "0.0", "1"], ["0", "1"]),
        (["1", "1.0", "01", "+1", "0"], ["0", "1"]),
        (["1,0", "0,0", "1", "0", "0"], ["0", "1"]),
        (["normal", "normal ", "sick"], ["normal", "sick"]),
        (["normal", "nor\u00admal", "\ufeffnormal", "sick"], ["normal", "sick"]),
        (["lung opacity", "lung  opacity", "lung\u00a0opacity", "x"], ["lung opacity", "x"]),
        (["Opacit\u00e9", "Opacite\u0301", "a"], ["Opacit\u00e9", "a"]),
    ],
    ids=["0.0", "01", "1,0", "blank", "invisible", "blanks", "accent"],
)
def test_the_same_number_or_the_same_to_the_eye_is_one_class(
    tmp_path: Path, labels: list[str], classes: list[str]
) -> None:
    task = task_of(tmp_path, labels)
    assert task.classes == classes
    assert any("are read as one class" in note for note in task.notes)
    assert len(task.labelled) == len(labels)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["Normal", "normal", "normal", "sick"], "merge_classes={'Normal': 'normal'}"),
        (["COVID-19", "COVID-19", "covid_19", "Covid19", "x"], "'covid_19': 'COVID-19'"),
        (["1", "yes", "0", "no"], "several words for one answer"),
        (["pos", "positive", "neg"], "'pos' (1 images) and 'positive' (1)"),
        (["-1.0", "0.0", "1.0"], "'-1.0' (1 images) is a class of its own beside '0.0', '1.0'; in CheXpert"),
        (["-1", "1"], "Set uncertain to 'ignore'"),
        (["0", "1", "99"], "'99' (1 images) beside '0', '1' may be a code for a missing value"),
        (["Cardiomegaly|Emphysema", "Emphysema", "No Finding"], "1 of 3 classes are lists"),
        (["['a', 'b']", "['a']"], "separator=','"),
        (["A, B", "A", "B"], "such as 'A, B'"),
        (["Edema;Mass", "Mass"], "separator=';'"),
        ([str(age) for age in range(20, 80)] * 3, "the classes are numbers from 20 to 79"),
        (["0.5", "1.25", "1.75", "2.5"] * 4, "the classes are numbers from 0.5 to 2.5"),
        ([f"patient{i}" for i in range(30)], "nearly as many classes as images (30 classes for 30 images"),
        (["2020-01-03", "2020-02-04", "2021-12-31"] * 9, "the classes are dates"),
        (["03.04.2021", "05.04.2021"] * 9, "the classes are dates"),
        (["unknown", "a", "b"], "drop_classes=('unknown',)"),
        (["equivocal", "a", "b"], "drop_classes=('equivocal',)"),
    ],
)
def test_what_may_not_be_meant_is_said_with_its_remedy(labels: list[str], words: str) -> None:
    assert words in about(labels)


@pytest.mark.parametrize(
    "labels",
    [
        ["COVID+", "COVID-"],
        ["grade 1", "grade 2", "grade 10"],
        ["stage 1.0", "stage 10"],
        [str(digit) for digit in range(10)] * 9,
        ["pneumonia, viral", "pneumonia, bacterial"],
        ["squamous/cell", "adeno"],
        ["0", "1"] * 9,
        ["True", "False"],
        ["mild", "none", "severe"][::2],
    ],
)
def test_plain_classes_get_no_note(labels: list[str]) -> None:
    assert about(labels) == ""


def test_check_and_training_say_it(tmp_path: Path) -> None:
    for i, name in enumerate(("Normal", "normal", "sick", "sick")):
        draw(tmp_path / "images" / name / f"{i}.png", i)
    (note,) = check(Manifest.read(tmp_path / "images")).notes
    assert "'Normal' (1 images) and 'normal' (1)" in note
    assert note in task_of(tmp_path, ["Normal", "normal", "sick", "sick"]).notes


def test_classes_that_were_joined_are_not_twins_any_more(tmp_path: Path) -> None:
    task = task_of(tmp_path, ["Normal", "normal", "sick"], merge_classes={"Normal": "normal"})
    assert task.classes == ["normal", "sick"]
    assert not any("merge_classes" in note for note in task.notes)


@pytest.mark.parametrize(
    ("policy", "labels"), [("ignore", [-1, 0, 1, 1]), ("positive", [1, 0, 1, 1]), ("negative", [0, 0, 1, 1])]
)
def test_uncertain_labels_are_read_as_asked(tmp_path: Path, policy: str, labels: list[int]) -> None:
    """The policies U-Ignore, U-Ones and U-Zeros of CheXpert, of one column and of several."""
    task = task_of(tmp_path, ["-1.0", "0.0", "1.0", "1"], uncertain=policy)
    assert [number(task, row) for row in range(4)] == labels
    assert task.left_out == ({"an uncertain label": 1} if policy == "ignore" else {})
    columns = {"Edema": ["-1.0", "0.0", "1.0", "1.0"], "Mass": ["0", "1", "-1", ""]}
    path = make_store(tmp_path / "several.h5", np.ones((4, 2)), columns)
    with Store.open(path) as store:
        several = Task.of(store, TargetSpec(("Edema", "Mass"), uncertain=policy))
    of_minus_one = {"ignore": np.nan, "positive": 1.0, "negative": 0.0}[policy]
    expected = [[of_minus_one, 0], [0, 1], [1, of_minus_one], [1, np.nan]]
    assert np.array_equal(several.labels, expected, equal_nan=True)


def number(task: Task, row: int) -> int:
    """Of the class of a row its text as a number, -1 where it is unknown."""
    label = int(task.labels[row])
    return -1 if label < 0 else int(float(task.classes[label]))


def test_an_uncertain_finding_is_refused_with_the_way_out(tmp_path: Path) -> None:
    columns = {"Edema": ["-1.0", "0.0", "1.0"], "Mass": ["0", "1", "1"]}
    with (
        Store.open(make_store(tmp_path / "s.h5", np.ones((3, 2)), columns)) as store,
        pytest.raises(UsageError, match=r"Edema of image00000 is '-1\.0', .* Set uncertain to 'ignore'"),
    ):
        Task.of(store, TargetSpec(("Edema", "Mass")))


@pytest.mark.parametrize(
    ("labels", "separator"),
    [
        (["Edema|Mass", "Mass", "No Finding", "Edema", ""], "|"),
        (["['Edema', 'Mass']", "['Mass']", "[]", "['Edema']", ""], ","),
        (["Edema; Mass", "Mass;", "normal", "Edema", ""], ";"),
    ],
)
def test_lists_are_learnt_as_findings_where_a_separator_is_given(
    tmp_path: Path, labels: list[str], separator: str
) -> None:
    task = task_of(tmp_path, labels, separator=separator)
    assert task.classes == ["Edema", "Mass"]
    expected = [[1, 1], [0, 1], [0, 0], [1, 0], [np.nan, np.nan]]
    assert np.array_equal(task.labels, expected, equal_nan=True)
    assert task.left_out == {"no label": 1}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"uncertain": "maybe"}, "`uncertain` must be one of ignore, positive, negative, got 'maybe'"),
        ({"separator": " "}, "`separator` is a text that is not blank"),
        ({"columns": ("a", "b"), "separator": "|"}, "and for one label column"),
    ],
)
def test_a_reading_that_is_none_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TargetSpec(**asked)  # type: ignore[arg-type]


def test_an_audit_reads_labels_alike(tmp_path: Path) -> None:
    labels = [("0", "0.0", "1", "1")[row % 4] for row in range(40)]
    x = np.random.default_rng(0).standard_normal((40, 4))
    with Store.open(make_store(tmp_path / "s.h5", x, {"label": labels})) as store:
        audited = audit(store)
    assert list(audited.classes) == ["0", "1"]
    assert any("are read as one class: '0' (10 images) and '0.0' (10) as '0'" in note for note in audited.notes)
