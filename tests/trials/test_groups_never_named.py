"""A column `patientid` with several rows per value, or names like `00001684_010.png`, and no group: images of one
patient were in training and in test, and nothing was said. A note names the column, or a pattern that can be copied."""

import json
import re
from pathlib import Path

import pytest

from featcache.embedding import embed
from featcache.manifest import Manifest
from featcache.manifest.check import check
from featcache.specs import BackboneSpec, SplitSpec
from featcache.splits import unnamed_groups
from featcache.splits.protocol import divide
from featcache.splits.task import Task
from featcache.store import Store
from tests.conftest import SMALL, draw, make_store, two_clouds
from tests.test_cli import featcache

N = 24


def names(form: str, n_each: int = 3) -> list[str]:
    """N names; `p` counts patients, `i` their images."""
    return [form.format(p=row // n_each, i=row % n_each, n=row, side="LR"[row % 2]) for row in range(N)]


@pytest.mark.parametrize("column", ["patientid", "Patient ID", "subject_id", "StudyInstanceUID", "lesion_id", "case"])
def test_a_column_of_patients_is_named(column: str) -> None:
    values = [f"{row // 3}" for row in range(N)]
    (note,) = unnamed_groups.notes({column: values, "age": values}, names("{n}.png"))
    assert f"column {column} has 8 values for 24 images" in note
    assert f"Set group_by={column!r}" in note


@pytest.mark.parametrize(
    ("form", "group", "n_groups"),
    [
        ("{p:08d}_{i:03d}.png", "00000000", 8),  # NIH
        ("train/patient{p:05d}/study1/view{i}_frontal.jpg", "patient00000", 8),  # CheXpert
        ("files/p10/p1000{p:04d}/s5041426{i}/{n:08x}.jpg", "p10000000", 8),  # MIMIC-CXR
        ("PNEUMONIA/person{p}_bacteria_{n}.jpeg", "person0", 8),  # Kermany
        ("train/NORMAL/IM-{p:04d}-0001-{i:04d}.jpeg", "train/IM-0000", 8),
        ("CNV/CNV-{p}016042-{i}.jpeg", "CNV-0016042", 8),
        ("sub-{p:02d}_ses-1_slice{i}.png", "sub-00", 8),
        ("covid/A{p}x/{i}.png", "A0x", 8),
        ("TCGA-OR-A5J{p}-01Z-00-DX{i}.png", "TCGA-OR-A5J0", 8),
        ("scan7_{p:03d}-{i}.tif", "scan7_000", 8),
    ],
)
def test_a_pattern_is_named_that_captures_the_patient(form: str, group: str, n_groups: int) -> None:
    (note,) = unnamed_groups.notes({}, names(form))
    assert f"24 of 24 share a part of their names that may be the patient, such as {group!r} (3 images)" in note
    assert f"({n_groups} groups)" in note
    pattern = re.search(r"Set group_pattern to (.*) to keep", note)
    assert pattern is not None
    found = [re.search(pattern[1], name) for name in names(form)]
    assert len({match.groups() for match in found if match}) == n_groups


@pytest.mark.parametrize(
    "form", ["{p}_left{n}.png", "{n}.png", "img_{n:04d}.png", "ISIC_{n:07d}.jpg", "c/IMG_2020_{n}.png"]
)
def test_names_that_share_nothing_get_no_note(form: str) -> None:
    assert unnamed_groups.notes({}, names(form, 1)) == []


def test_two_eyes_of_one_person_are_told_apart_from_two_persons() -> None:
    eyes = [f"{row // 2}_{('left', 'right')[row % 2]}.jpeg" for row in range(N)]
    assert "(12 groups)" in unnamed_groups.notes({}, eyes)[0]


def test_classes_subsets_and_collections_are_no_patients() -> None:
    grades = [f"grade{row % 4}/grade{row % 4}_{row}.png" for row in range(N)]
    assert unnamed_groups.notes({"label": [name[:6] for name in grades]}, grades) == []
    assert unnamed_groups.notes({"study": ["A"] * 20 + ["B"] * 4}, names("{n}.png")) == []
    assert unnamed_groups.notes({"patient_id": [str(row) for row in range(N)]}, names("{n}.png")) == []


def test_nothing_is_said_where_there_are_groups() -> None:
    columns = {"patientid": [f"{row // 3}" for row in range(N)]}
    assert unnamed_groups.notes({**columns, "group": ["g"] * N}, names("{p:08d}_{i:03d}.png")) == []


def test_check_embed_and_training_say_it(tmp_path: Path) -> None:
    for row, name in enumerate(names("{p:08d}_{i:03d}.png")):
        draw(tmp_path / "images" / ("a", "b")[row // 3 % 2] / name, row)
    manifest = Manifest.read(tmp_path / "images")
    (expected,) = unnamed_groups.notes(manifest.columns, manifest.image_ids)
    assert expected in check(manifest).notes
    embedded = embed(manifest, tmp_path / "s.h5", BackboneSpec(SMALL, "random:0", input_size=32))
    assert expected in embedded.notes
    with Store.open(tmp_path / "s.h5") as store:
        assert divide(Task.of(store), SplitSpec(), None).notes == [expected]
    grouped = Manifest.read(tmp_path / "images", group_pattern=r"(\d{8})_\d{3}\.")
    assert not check(grouped).notes


def test_a_column_that_is_grouped_by_needs_no_note(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    columns = {"label": labels, "patientid": [f"{row // 4}" for row in range(40)]}
    with Store.open(make_store(tmp_path / "s.h5", x, columns)) as store:
        assert "patientid" in divide(Task.of(store), SplitSpec(), None).notes[0]
        assert divide(Task.of(store), SplitSpec(group_by="patientid"), None).notes == []


@pytest.mark.slow
def test_the_command_answers_with_it(tmp_path: Path) -> None:
    for row, name in enumerate(names("{p:08d}_{i:03d}.png")):
        draw(tmp_path / "images" / name, row)
    done = featcache("check", "images", "--json", cwd=tmp_path)
    assert r"Set group_pattern to (\d{8})_\d{3}\. to keep them together" in json.loads(done.stdout)["notes"][-1]
