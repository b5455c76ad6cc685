"""The positive class was the last in alphabetical order: of `COVID-19` and `other` it was `other`, and AUPRC 0.32
instead of 0.86. A class whose name means that something is absent is not positive unless somebody asks for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from featcache.finetune.fine_tune import train as train_network
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec, HeadSpec, Recipe, Stage, TargetSpec
from featcache.splits.class_names import positive_class
from featcache.splits.task import Task
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import SMALL, draw, make_store, two_clouds
from tests.test_cli import featcache

# The positive class, and the other one.
PAIRS = [
    ("COVID-19", "other"), ("COVID-19", "Others"), ("abnormal", "normal"), ("malignant", "benign"), ("case", "control"),
    ("1", "0"), ("1.0", "0.0"), ("1", "-1"), ("yes", "no"), ("y", "n"), ("TRUE", "FALSE"), ("t", "f"), ("pos", "Neg"),
    ("present", "Absent"), ("PNEUMONIA", "no finding"), ("Edema", "No_Finding"), ("COVID", "non-COVID"),
    ("covid", "noncovid"), ("Demented", "NonDemented"), ("fractured", "not fractured"), ("DR", "No_DR"),
    ("glioma", "notumor"), ("mass", "without mass"), ("mass", "w/o mass"), ("Parasitized", "Uninfected"),
    ("affected", "unaffected"), ("active", "inactive"), ("tumor", "tumor-free"), ("HPV+", "HPV-"), ("+", "-"),
    ("HER2 pos", "HER2_neg"), ("Typical Appearance", "negative for pneumonia"), ("patient", "Z healthy controls"),
    ("1_abnormal", "2_normal"), ("class_1", "class_0"), ("krank", "unauffällig"), ("krank", "normal"),
    ("Befund", "kein Befund"), ("malade", "sain"), ("enfermo", "sano"),
    ("Lung Opacity", "No Lung Opacity / Not Normal"),
    ("melanoma", "unknown"),
]  # fmt: skip
FINDINGS = [  # a negation of a negation is a finding
    ("unhealthy", "healthy"), ("not normal", "normal"), ("non-benign", "benign"), ("sick", "normal"),
    ("nodule", "mass"), ("notch", "bulge"), ("true positive", "false positive"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "other"), PAIRS + FINDINGS)
def test_what_is_absent_is_not_positive(name: str, other: str) -> None:
    classes = sorted([name, other])
    assert classes[positive_class(classes)[0]] == name


@pytest.mark.parametrize("classes", [["cat", "dog"], ["M", "f"], ["benign", "normal"], ["2", "3"], ["Nile", "Oder"]])
def test_names_that_say_nothing_keep_the_alphabetical_rule(classes: list[str]) -> None:
    number, why = positive_class(classes)
    assert (number, "alphabetical" in why) == (1, True)


def test_of_more_classes_the_last_that_is_not_a_negation_is_positive() -> None:
    assert positive_class(["COVID-19", "bacterial", "normal", "other"])[0] == 1


def test_the_choice_is_told_before_training_and_kept(tmp_path: Path) -> None:
    x, labels = two_clouds(60, 4, apart=3)
    labels = ["COVID-19" if label == "sick" else "other" for label in labels]
    told: list[str] = []
    with Store.open(make_store(tmp_path / "s.h5", x, {"label": labels})) as store:
        run = train_head(store, HeadSpec(epochs=2), tmp_path / "run", on_note=told.append)
        asked = train_head(store, HeadSpec(epochs=2), tmp_path / "asked", target=TargetSpec(positive="other"))
    assert run.record["positive"] == "COVID-19"
    assert told[0] == run.record["notes"][0]
    assert told[0] == (
        "the positive class is 'COVID-19': the name 'other' says what is absent or not known. Set `positive` to "
        "choose 'other'."
    )
    assert asked.record["positive"] == "other"
    assert not any("positive class" in note for note in asked.record["notes"])


def test_cats_and_dogs_get_a_note_that_names_the_parameter(tmp_path: Path) -> None:
    with Store.open(make_store(tmp_path / "s.h5", two_clouds(6, 2)[0], {"label": ["cat", "dog"] * 3})) as store:
        (note,) = Task.of(store).notes
    assert "the positive class is 'dog': the last in alphabetical order" in note
    assert "Set `positive` to choose 'cat'" in note


def test_a_training_on_images_follows_the_same_rule(tmp_path: Path) -> None:
    for i in range(24):
        draw(tmp_path / "images" / ("sick", "zero findings", "no finding")[i % 2 * 2] / f"{i}.png", i)
    told: list[str] = []
    recipe = Recipe(stages=(Stage("all", 1),), augment=None)
    network = BackboneSpec(SMALL, "random:0", input_size=32)
    images = Manifest.read(tmp_path / "images")
    options: dict[str, Any] = {"device": "cpu", "compile": "off", "on_note": told.append}
    run = train_network(images, network, recipe=recipe, run_path=tmp_path / "run", **options)
    assert run.record["positive"] == "sick"
    assert told[0] == run.record["notes"][0]
    assert "the name 'no finding'" in told[0]


@pytest.mark.slow
def test_the_command_prints_it_first_and_answers_with_it(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    make_store(tmp_path / "s.h5", x, {"label": [{"sick": "flu", "normal": "negative"}[label] for label in labels]})
    done = featcache("train-head", "s.h5", "-o", "run", "--epochs", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("the positive class is 'flu': the name 'negative'")
    assert "the positive class is 'flu'" in json.loads(done.stdout)["notes"][0]
