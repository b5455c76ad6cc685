"""200 validation rows without a mistake gave a temperature of 0.01, with which the log loss of images from elsewhere
went from 1.79 to 14.34. Where validation rows do not tell a temperature there is none, where they do not tell a
threshold it is in the middle of what does as well, and either is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featcache import metrics
from featcache.embedding import embed
from featcache.manifest import Manifest
from featcache.metrics.calibration import COLDEST, HOTTEST, Choice, OperatingRule, parse_rule, temperature
from featcache.prediction.predictions import Model
from featcache.runs import Run
from featcache.specs import BackboneSpec, HeadSpec, SelectionSpec, SplitSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import SMALL, draw

Array = np.ndarray[Any, Any]
YOUDEN = parse_rule("youden")


def scored(n: int, shift: float, scale: float, seed: int = 0) -> tuple[Array, Array]:
    """n rows of each of two classes, and logits `shift` standard deviations apart, times `scale`."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], n)
    return labels, scale * metrics.two_columns(rng.standard_normal(2 * n) + shift * (labels - 0.5))


def loss(labels: Array, logits: Array) -> float:
    return float(metrics.cross_entropies(labels, logits).mean())


# --- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.001, 1.0, 1000.0])
@pytest.mark.parametrize("c", [2, 5])
def test_rows_without_a_mistake_tell_no_temperature(c: int, scale: float) -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(200) % c
    logits = scale * (np.eye(c)[labels] * 3 + rng.uniform(0, 1, (200, c)))
    choice = Choice.of(labels, logits, c - 1)
    assert choice.temperature is None
    (note,) = choice.notes
    assert note.startswith(
        "no temperature: the validation rows do not determine it: all 200 of them are predicted correctly"
    )


def test_one_narrow_mistake_among_many_rows_tells_no_temperature() -> None:
    labels, logits = scored(100, 12.0, 1.0)
    logits[0, 1] = 0.01
    assert loss(labels, logits / 0.1) < loss(labels, logits)
    choice = Choice.of(labels, logits, 1)
    assert choice.temperature is None
    assert "they are too few: of 200, 1 predicted wrongly" in choice.notes[0]


@pytest.mark.parametrize(
    ("labels", "logits", "why"),
    [
        ([0, 1] * 30, np.zeros((60, 2)), "the logits of all classes are the same"),
        ([0, 1] * 30, np.eye(2)[[1, 0] * 30], "the head says no more of them than a guess"),
        ([0, 1, 1, 0], np.array([[1, 0], [0, 1], [1, 0], [0.5, 0]]), "they are too few: of 4, 1 predicted wrongly"),
    ],
    ids=["constant", "worse than a guess", "four rows"],
)
def test_rows_that_say_nothing_of_it_tell_no_temperature(labels: list[int], logits: Array, why: str) -> None:
    choice = Choice.of(np.array(labels), logits, 1)
    assert choice.temperature is None
    assert why in choice.notes[0]


def test_no_temperature_makes_images_from_elsewhere_much_worse() -> None:
    """Of validation rows of any ease and number: where they tell one, the loss of harder rows is less than tripled."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels, logits = scored(int(rng.integers(5, 200)), rng.uniform(0.5, 8), rng.uniform(0.1, 5), seed)
        elsewhere = scored(500, 1.5, 1.0, seed + 1000)
        found = temperature(labels, logits)
        if found is not None and found < 1:
            assert loss(elsewhere[0], elsewhere[1] / found) < 3 * loss(*elsewhere)


@pytest.mark.parametrize(("scale", "bound", "which"), [(0.001, COLDEST, "lowest"), (1000.0, HOTTEST, "highest")])
def test_a_temperature_at_its_bound_says_so(scale: float, bound: float, which: str) -> None:
    choice = Choice.of(*scored(300, 2.0, scale), 1)
    assert choice.temperature == bound
    assert f"the temperature {bound:g} is the {which} that is allowed" in choice.notes[0]


def test_a_temperature_that_rows_tell_has_nothing_to_be_said() -> None:
    choice = Choice.of(*scored(300, 2.0, 2.0), 1)
    assert choice.temperature == pytest.approx(1.0, rel=0.25)
    assert choice.notes == ()


# --- operating point --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["youden", "f1", "sensitivity=0.5", "specificity=0.9"])
def test_a_gap_between_the_classes_has_its_threshold_in_the_middle(rule: str) -> None:
    p = np.array([0.01, 0.1, 0.2, 0.6, 0.8, 0.95])
    choice = Choice.of(np.repeat([0, 1], 3), metrics.two_columns(np.log(p / (1 - p))), 1, parse_rule(rule))
    assert choice.threshold == pytest.approx(0.4)
    assert "6 validation rows, so any threshold from 0.2 to 0.6 does as well (0.4 wide)" in choice.notes[-1]


@pytest.mark.parametrize(
    ("logit", "rule", "which"),
    [
        ([3.0, -3.0, 1.0, 1.0], OperatingRule("specificity", 1.0), "none of the validation rows positive meets spec"),
        ([-3.0, 1.0, -3.5, 1.0], OperatingRule("sensitivity", 1.0), "all of the validation rows positive meets"),
        ([1.0, 1.0, 1.0, 1.0], YOUDEN, "all of the validation rows positive meets youden"),
    ],
)
def test_a_rule_that_only_all_or_none_can_meet_says_so(logit: list[float], rule: OperatingRule, which: str) -> None:
    choice = Choice.of(np.array([0, 0, 1, 1]), metrics.two_columns(np.array(logit)), 1, rule)
    assert which in choice.notes[-1]


def test_several_equally_good_thresholds_are_counted() -> None:
    p = np.array([0.95, 0.7, 0.6, 0.2])
    choice = Choice.of(np.array([1, 0, 1, 0]), metrics.two_columns(np.log(p / (1 - p))), 1, YOUDEN)
    assert choice.notes[-1].startswith("operating point: 2 thresholds from 0.4 to 0.825 are equally good by youden")


# --- in a Run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def separated_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of 30 dark and 30 bright images."""
    folder = tmp_path_factory.mktemp("separated")
    for i in range(60):
        path = folder / "images" / ("bright", "dark")[i % 2] / f"{i:02d}.png"
        draw(path, i)
        Image.open(path).point(lambda value, odd=i % 2: value // 4 + 190 * (1 - odd)).save(path)
    embed(Manifest.read(folder / "images"), folder / "s.h5", BackboneSpec(SMALL, "random:0", input_size=32))
    with Store.open(folder / "s.h5") as store:
        report = SelectionSpec(operating_point="youden")
        return train_head(store, HeadSpec.of("logreg"), folder / "run", split=SplitSpec(n_splits=2), report=report)


def test_a_run_of_separated_classes_has_no_temperature_and_says_why(separated_run: Run) -> None:
    record = separated_run.record
    assert record["temperature"] is None
    assert all("calibrated" not in (record["metrics"][side] or {}) for side in record["metrics"])
    notes = " ".join(record["notes"])
    assert "no temperature: the validation rows do not determine it" in notes
    assert "the two classes do not overlap on the 60 validation rows" in notes


def test_what_it_predicts_has_no_calibrated_columns(separated_run: Run) -> None:
    assert Model.of(Run.open(separated_run.path)).temperature is None
    assert json.loads((separated_run.path / "run.json").read_text())["temperature"] is None


def test_its_report_copes(separated_run: Run, tmp_path: Path) -> None:
    from featcache.reporting.report import report

    report([separated_run.path], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "o temperature: the validation rows do not determine it" in page
    assert "divided by T" not in page
