"""Words that programs write for a missing value were classes, groups and report texts, without a word about it: "nan"
became the positive class. One rule for every table: such a cell is empty, and a note counts it; sentences stay."""

import csv
from pathlib import Path

import numpy as np
import pytest

from featcache.auditing.audit import audit
from featcache.errors import UsageError
from featcache.fusion import Studies
from featcache.fusion.writer import export_studies
from featcache.manifest import Manifest
from featcache.manifest.covid import covid
from featcache.specs import FusionSpec, SplitSpec, TargetSpec
from featcache.splits.task import Task
from featcache.store import Store
from featcache.tables.missing import is_missing
from featcache.training.train_head import train_head
from tests.conftest import make_store, two_clouds

N = 40
WORDS = ["nan", "NaN", "N/A", "n/a", "NA", "null", "NULL", "None", "<NA>", "NaT", "-nan", "#N/A", "#VALUE!", "\\N"]
WORDS += [".", "?", " ", "\u00a0", "\u200b"]
SENTENCES = ["No acute disease", "None.", "none", "N/A in prior study.", "nano", "0", "0.0", "-", "Normal", "NAN-1"]


def table(path: Path, header: list[str], rows: list[tuple[str, ...]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def store_of(folder: Path, **columns: list[str]) -> Store:
    return Store.open(make_store(folder / "s.h5", two_clouds(N, 4)[0], columns))


def half(word: str) -> list[str]:
    """Two classes of ten images each, and a word for the other twenty."""
    return [("cat", "dog", word, word)[i % 4] for i in range(N)]


def labels_csv(folder: Path, labels: list[str]) -> Path:
    rows = [(f"image{i:05d}", label) for i, label in enumerate(labels)]
    return table(folder / "labels.csv", ["image_id", "label"], rows)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_for_a_missing_value_is_missing_whatever_its_blanks(word: str) -> None:
    assert is_missing(word)
    assert is_missing(f"  {word}\t")


@pytest.mark.parametrize("text", SENTENCES)
def test_what_people_write_is_not_missing(text: str) -> None:
    assert not is_missing(text)
    assert not is_missing(text, prose=True)


@pytest.mark.parametrize("word", ["nan", "N/A", "None", "<NA>"])
def test_half_the_labels_of_a_csv_as_a_word_are_as_half_of_them_empty(tmp_path: Path, word: str) -> None:
    store = store_of(tmp_path)
    tasks = [Task.of(store, TargetSpec(file=labels_csv(tmp_path, half(text)))) for text in ("", word)]
    assert tasks[0].classes == tasks[1].classes == ["cat", "dog"]
    assert np.array_equal(tasks[0].labels, tasks[1].labels)
    assert tasks[0].left_out == tasks[1].left_out == {"no label": 20}
    assert not any("column label" in note for note in tasks[0].notes)
    assert any(f"20 of column label ({word!r} 20 times)" in note for note in tasks[1].notes)


def test_a_run_keeps_the_note(tmp_path: Path) -> None:
    target = TargetSpec(file=labels_csv(tmp_path, half("nan")))
    run = train_head(store_of(tmp_path), run_path=tmp_path / "run", target=target)
    assert run.record["classes"] == ["cat", "dog"]
    assert any("'nan' 20 times" in note for note in run.record["notes"])


def test_a_store_that_holds_words_is_read_by_the_same_rule(tmp_path: Path) -> None:
    """Its label, its groups, and a column that is learnt instead of the label."""
    store = store_of(
        tmp_path, label=half("N/A"), group=[f"p{i}" if i % 4 < 2 else "NA" for i in range(N)], site=half("None")
    )
    assert store.columns["label"] == half("")
    assert store.columns["group"].count("") == 20
    assert Task.of(store).classes == Task.of(store, TargetSpec(("site",))).classes == ["cat", "dog"]
    assert store.missing_words["label"] == {"N/A": 20}
    run = train_head(store, run_path=tmp_path / "run", split=SplitSpec(val_fraction=0.5))
    assert any("20 of column label ('N/A' 20 times)" in note for note in run.record["notes"])
    assert any("column label ('N/A' 20 times)" in note for note in audit(store).notes)


def test_unknown_patients_are_not_one_patient(tmp_path: Path) -> None:
    """All images of a group are on one side: of one giant group no hold-out could be drawn."""
    labels = ["cat", "dog"] * (N // 2)
    store = store_of(tmp_path, label=labels, group=["nan"] * N)
    run = train_head(store, run_path=tmp_path / "run", split=SplitSpec(val_fraction=0.25))
    assert run.metrics("val")["n"] == 10


def test_a_manifest_has_unlabelled_rows_and_a_note(tmp_path: Path) -> None:
    rows = [("1.png", "cat", "p1", "train"), ("2.png", "nan", "NA", "NaN"), ("3.png", "None", "?", "test")]
    manifest = Manifest.read(table(tmp_path / "images.csv", ["path", "label", "group", "split"], rows))
    assert manifest.columns == {"label": ["cat", "", ""], "group": ["p1", "", ""], "split": ["train", "", "test"]}
    assert "2 of column label ('nan', 'None'), 2 of column group ('NA', '?'), 1 of column split" in manifest.notes[-1]
    manifest.write(tmp_path / "again.csv")
    assert Manifest.read(tmp_path / "again.csv").columns == manifest.columns


def test_a_path_that_is_a_word_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 3, column path: 'nan', a word for a missing value"):
        Manifest.read(table(tmp_path / "images.csv", ["path"], [("1.png",), ("nan",)]))


def test_a_class_folder_named_as_a_word_is_told_to_be_renamed(tmp_path: Path) -> None:
    for name in ("None/1.png", "Mild/2.png", "Severe/3.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    manifest = Manifest.read(tmp_path)
    assert manifest.columns["label"] == ["Mild", "", "Severe"]
    assert "1 of column label ('None')" in manifest.notes[0]


def test_reports_that_are_words_have_no_text_and_sentences_stay(tmp_path: Path) -> None:
    store = store_of(tmp_path, study=[str(i // 2) for i in range(N)])
    rows = [("0", "nan", "NaN"), ("1", "None.", "No acute disease"), ("2", "N/A", "Clear."), ("3", "None", "null")]
    reports = table(tmp_path / "reports.csv", ["study", "comparison", "impression"], rows)
    fused = export_studies(store, tmp_path / "f.h5", FusionSpec("study", ("comparison", "impression"), reports))
    assert fused.coverage["texts"] == {"comparison": 2, "impression": 2}
    assert fused.coverage["with_image_and_text"] == 3
    with Studies(tmp_path / "f.h5") as studies:
        assert studies.text("comparison")[:4] == ["", "None.", "", "None"]
    assert "2 of column comparison ('nan', 'N/A')" in fused.notes[0]
    assert "1 cells of column comparison are 'None', which is kept as text" in fused.notes[1]


def test_findings_of_a_collection_that_are_words_give_no_label(tmp_path: Path) -> None:
    rows = [(str(i), ("COVID-19", "nan", "No Finding")[i % 3], "PA", f"{i}.png") for i in range(6)]
    for *_, name in rows:
        (tmp_path / name).touch()
    found = covid(table(tmp_path / "metadata.csv", ["patientid", "finding", "view", "filename"], rows))
    assert found.manifest.columns["label"] == ["COVID-19", "", "No Finding"] * 2


def test_a_word_of_people_stays_a_class_with_a_note(tmp_path: Path) -> None:
    task = Task.of(store_of(tmp_path, label=half("none")))
    assert task.classes == ["cat", "dog", "none"]
    assert "'none' (20 images) may mean that the label is not known" in task.notes[0]
