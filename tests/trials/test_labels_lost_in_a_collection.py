"""Older metadata of the COVID-19 collection lists several findings of an image, "COVID-19, ARDS", where newer ones have
a path: with `--class COVID-19 --other other` those images became "other". Both spellings are read, and every label says
of which findings it is made."""

import csv
import json
from pathlib import Path

import pytest

from featcache.errors import UsageError
from featcache.manifest import Manifest
from featcache.manifest.covid import covid
from tests.test_cli import featcache

OLDER = ["COVID-19", "COVID-19, ARDS", "SARS", "ARDS", "Streptococcus", "No Finding"]


def metadata(folder: Path, findings: list[str]) -> Path:
    """The CSV, with an image of each finding."""
    rows = [(str(i), finding, "PA", "X-ray", f"{i}.png") for i, finding in enumerate(findings)]
    for *_, name in rows:
        (folder / name).touch()
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("patientid", "finding", "view", "modality", "filename"), *rows])
    return folder / "metadata.csv"


def labels(folder: Path, findings: list[str], *classes: str, other: str = "other") -> list[str]:
    return covid(metadata(folder, findings), classes=classes, other=other).manifest.columns["label"]


def test_an_image_with_two_findings_is_of_the_class_of_either(tmp_path: Path) -> None:
    expected = ["COVID-19", "COVID-19", "other", "other", "other", "other"]
    assert labels(tmp_path, OLDER, "COVID-19") == expected
    assert labels(tmp_path, OLDER, "COVID-19", "ARDS") == [*expected[:3], "ARDS", *expected[4:]]


@pytest.mark.parametrize(
    "finding",
    ["COVID-19; ARDS", "ARDS,COVID-19", "COVID-19|ARDS", "COVID-19 and ARDS", "Pneumonia/Viral/COVID-19",
     "covid-19 , ARDS",
     "Pneumonia/Viral/COVID-19, ARDS", "Pneumonia / Viral / Covid-19", "ARDS + COVID-19,"],
)  # fmt: skip
def test_every_spelling_of_several_findings_is_read(tmp_path: Path, finding: str) -> None:
    assert labels(tmp_path, [finding, "SARS"], "COVID-19") == ["COVID-19", "other"]
    assert labels(tmp_path, [finding, "SARS"], " covid-19") == [" covid-19", "other"]


def test_the_answer_says_of_which_findings_each_label_is_made(tmp_path: Path) -> None:
    metadata(tmp_path, [*OLDER, "SARS"])
    command = ("manifest", "covid", "metadata.csv", "-o", "m.csv", "--class", "COVID-19", "--other", "other")
    told = json.loads(featcache(*command, "--json", cwd=tmp_path).stdout)
    assert told["findings"]["other"] == {"SARS": 2, "ARDS": 1, "Streptococcus": 1, "No Finding": 1}
    assert told["findings"]["COVID-19"] == {"COVID-19": 1, "COVID-19, ARDS": 1}
    assert (
        "findings of other: 2 SARS, 1 ARDS, 1 Streptococcus, 1 No Finding" in featcache(*command, cwd=tmp_path).stdout
    )


def test_what_nobody_has_decided_is_no_class(tmp_path: Path) -> None:
    assert labels(tmp_path, ["COVID-19", "todo", "", "Unknown", "nan", " , "], "COVID-19") == ["COVID-19"] + [""] * 5


def test_without_classes_the_first_finding_is_the_label_and_a_note_counts_them(tmp_path: Path) -> None:
    manifest = covid(metadata(tmp_path, [*OLDER, "Pneumonia/Viral/SARS"])).manifest
    assert manifest.columns["label"] == ["COVID-19", "COVID-19", "SARS", "ARDS", "Streptococcus", "No Finding", "SARS"]
    assert (
        "1 images have several findings, and their label is the first: 'COVID-19, ARDS' is 'COVID-19'"
        in manifest.notes[0]
    )


def test_a_class_that_no_image_has_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has the finding 'COVID19'\. Did you mean 'COVID-19'"):
        labels(tmp_path, OLDER, "COVID19")


def test_a_class_that_an_earlier_one_takes_is_said(tmp_path: Path) -> None:
    findings = ["Pneumonia/Viral/COVID-19", "Pneumonia"]
    notes = covid(metadata(tmp_path, findings), classes=["Pneumonia", "COVID-19"]).manifest.notes
    assert "the class 'COVID-19' has no image: all with this finding are 'Pneumonia', which comes first" in notes[0]


def test_a_finding_that_resembles_a_class_is_said(tmp_path: Path) -> None:
    found = covid(metadata(tmp_path, ["COVID-19", "COVID 19 suspected", "SARS"]), classes=["COVID-19"], other="other")
    assert found.manifest.columns["label"] == ["COVID-19", "other", "other"]
    assert "'COVID 19 suspected', the finding of 1 images, is not in the class 'COVID-19'" in found.manifest.notes[0]


def test_no_image_of_the_modality_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has an image of modality 'DX' under .* \(6 other modality; the first is"):
        covid(metadata(tmp_path, OLDER), modality="DX")


def test_classes_of_a_folder_are_its_folders_and_say_what_the_rest_is(tmp_path: Path) -> None:
    for name in ("COVID/1.png", "Normal/2.png", "Viral Pneumonia/3.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    found = covid(tmp_path, classes=["covid"], other="rest")
    assert found.as_json()["findings"]["rest"] == {"Normal": 1, "Viral Pneumonia": 1}
    found.write(tmp_path / "m.csv")
    assert Manifest.read(tmp_path / "m.csv").columns["label"] == ["covid", "rest", "rest"]
