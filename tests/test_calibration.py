"""Operating points against every possible threshold, temperatures against a known one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import log_loss

from featcache.errors import UsageError
from featcache.metrics.calibration import OPERATING_RULES, OperatingRule, operating_point, parse_rule, temperature

Array = np.ndarray[Any, Any]
unhurried = settings(deadline=None)  # two cores are often busy


@st.composite
def scored_rows(draw: st.DrawFn) -> tuple[Array, Array]:
    """(n,) labels of both classes and (n,) scores with many ties, 0 and 1 among them."""
    rows = draw(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=25))
    labels, scores = np.array([y for y, _ in rows]), np.array([s / 8 for _, s in rows])
    assume(0 < labels.sum() < len(labels))
    return labels, scores


def rates(labels: Array, scores: Array, threshold: float) -> tuple[float, float, float]:
    """Sensitivity, specificity and F1 of calling scores from the threshold on positive, counted one by one."""
    called = scores >= threshold
    hits, misses = np.sum(called & labels), np.sum(~called & labels)
    alarms, rejections = np.sum(called & ~labels), np.sum(~called & ~labels)
    return hits / (hits + misses), rejections / (rejections + alarms), 2 * hits / (2 * hits + misses + alarms)


def overlap(labels: Array, scores: Array) -> bool:
    """Whether no threshold tells the two classes apart."""
    return bool(scores[labels].min() <= scores[~labels].max())


def every_threshold(scores: Array) -> list[float]:
    return [*np.unique(scores).tolist(), 1.5]


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*OPERATING_RULES, "sensitivity=1", "specificity=1.0", "sensitivity=.5"])
def test_a_rule_prints_as_it_was_typed(text: str) -> None:
    assert str(parse_rule(text)) == text


def test_rules_that_mean_the_same_are_equal() -> None:
    assert parse_rule("sensitivity=0.90") == parse_rule("sensitivity=0.9") == OperatingRule("sensitivity", 0.9)
    assert str(OperatingRule("sensitivity", 0.9)) == "sensitivity=0.9"
    assert str(OperatingRule("youden")) == "youden"


@pytest.mark.parametrize(
    "text",
    ["", "auc", "youden=0.5", "f1=", "sensitivity", "sensitivity=", "sensitivity=0", "specificity=1.01",
     "specificity=-1", "sensitivity=nan", "sensitivity=95%", "sensitivity=0.9=0.9"],
)  # fmt: skip
def test_any_other_text_is_refused_with_the_right_spellings(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_rule(text)
    assert repr(text) in str(refused.value)
    assert all(spelling in str(refused.value) for spelling in OPERATING_RULES)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("auc", None, "name must be one of"), ("f1", 0.5, "takes no value"), ("specificity", None, "needs a value"),
     ("sensitivity", 2.0, "at most 1, got 2.0")],
)  # fmt: skip
def test_a_rule_validates_at_birth(name: str, value: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OperatingRule(name, value)


# --- operating points -------------------------------------------------------------------------------------------------


@unhurried
@given(scored_rows(), st.sampled_from(["youden", "f1"]))
def test_no_threshold_is_better_and_none_as_good_is_nearer_one_half(rows: tuple[Array, Array], name: str) -> None:
    labels, scores = rows

    def merit(threshold: float) -> float:
        sensitivity, specificity, f1 = rates(labels, scores, threshold)
        return f1 if name == "f1" else sensitivity + specificity - 1

    found = operating_point(labels, scores, parse_rule(name))
    best = max(merit(t) for t in every_threshold(scores))
    assert merit(found) == pytest.approx(best, abs=1e-12)
    edges = np.unique([0.0, *scores, 1.0])
    as_good = [t for t in (edges[1:] + edges[:-1]) / 2 if merit(t) > best - 1e-12]
    assert abs(found - 0.5) <= min((abs(t - 0.5) for t in as_good), default=1.0)


@unhurried
@given(scored_rows(), st.integers(1, 20))
def test_the_highest_threshold_that_is_sensitive_enough(rows: tuple[Array, Array], twentieths: int) -> None:
    labels, scores = rows
    wanted = twentieths / 20
    assume(overlap(labels, scores))
    found = operating_point(labels, scores, OperatingRule("sensitivity", wanted))
    highest = max(t for t in every_threshold(scores) if rates(labels, scores, t)[0] >= wanted)
    assert np.array_equal(scores >= found, scores >= highest)


@unhurried
@given(scored_rows(), st.integers(1, 20))
def test_the_lowest_threshold_that_is_specific_enough(rows: tuple[Array, Array], twentieths: int) -> None:
    labels, scores = rows
    wanted = twentieths / 20
    assume(overlap(labels, scores))
    found = operating_point(labels, scores, OperatingRule("specificity", wanted))
    lowest = min(t for t in every_threshold(scores) if rates(labels, scores, t)[1] >= wanted)
    assert np.array_equal(scores >= found, scores >= lowest)


@unhurried
@given(scored_rows(), st.sampled_from(OPERATING_RULES))
def test_the_threshold_lies_midway_between_two_scores(rows: tuple[Array, Array], text: str) -> None:
    labels, scores = rows
    found = operating_point(labels, scores, parse_rule(text))
    called, rest = scores[scores >= found], scores[scores < found]
    if not len(called) and scores.max() == 1.0:
        assert 1.0 < found < 1.0 + 1e-15
    elif not len(rest) and scores.min() == 0.0:
        assert found == 0.0
    else:
        assert found == pytest.approx((min(called, default=1.0) + max(rest, default=0.0)) / 2)
        assert 0.0 < found < 1.0


@unhurried
@given(scored_rows(), st.sampled_from(["sensitivity", "specificity"]))
def test_asking_for_more_moves_the_threshold_one_way(rows: tuple[Array, Array], name: str) -> None:
    found = [operating_point(*rows, OperatingRule(name, wanted)) for wanted in (0.2, 0.5, 0.8, 0.95, 1.0)]
    assert found == sorted(found, reverse=name == "sensitivity")


@unhurried
@given(scored_rows(), st.sampled_from(OPERATING_RULES), st.randoms())
def test_the_order_of_the_rows_is_no_matter(rows: tuple[Array, Array], text: str, random: Any) -> None:
    labels, scores = rows
    order = random.sample(range(len(labels)), len(labels))
    rule = parse_rule(text)
    assert operating_point(labels[order], scores[order], rule) == operating_point(labels, scores, rule)


def test_equally_good_thresholds_go_to_the_one_nearest_one_half() -> None:
    """Calling one row or three makes the same J of one half, at 0.825 and at 0.4."""
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.95, 0.7, 0.6, 0.2])
    assert operating_point(labels, scores, parse_rule("youden")) == pytest.approx(0.4)


def test_a_value_that_is_met_exactly_is_met() -> None:
    """19 of 20 is 0.95, whatever the floats say."""
    labels, scores = np.array([1] * 20 + [0] * 20), np.r_[np.linspace(0.5, 0.9, 20), np.linspace(0.1, 0.55, 20)]
    found = operating_point(labels, scores, parse_rule("sensitivity=0.95"))
    assert np.sum(scores[:20] >= found) == 19
    labels = 1 - labels
    found = operating_point(labels, 1 - scores, parse_rule("specificity=0.95"))
    assert np.sum(1 - scores[:20] < found) == 19


def test_neighbouring_floats_are_still_told_apart() -> None:
    low = 1.0 - 2**-53
    found = operating_point(np.array([0, 1]), np.array([low, 1.0]), parse_rule("youden"))
    assert low < found <= 1.0


def test_nothing_may_be_called() -> None:
    """The highest score is negative: full specificity calls none, also when that score is 1."""
    labels = np.array([0, 1])
    assert operating_point(labels, np.array([0.8, 0.4]), parse_rule("specificity=1")) == pytest.approx(0.9)
    assert operating_point(labels, np.array([1.0, 0.4]), parse_rule("specificity=1")) > 1.0


def test_labels_may_be_numbers_and_scores_single_precision() -> None:
    p = np.array([0.1, 0.6, 0.8], dtype=np.float32)
    assert operating_point(np.array([0.0, 1.0, 1.0]), p, parse_rule("f1")) == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("labels", "counts"), [([1, 1, 1], "3 positive and 0 negative"), ([0], "0 positive and 1 neg")]
)
def test_one_class_has_no_operating_point(labels: list[int], counts: str) -> None:
    with pytest.raises(UsageError, match=counts):
        operating_point(np.array(labels), np.full(len(labels), 0.5), parse_rule("youden"))


# --- temperature ------------------------------------------------------------------------------------------------------


def drawn_from(logits: Array, seed: int) -> Array:
    """Labels that follow the softmax of the logits."""
    rng = np.random.default_rng(seed)
    return (
        (softmax(logits, axis=1).cumsum(axis=1) < rng.random((len(logits), 1)))
        .sum(axis=1)
        .clip(max=logits.shape[1] - 1)
    )


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("c", [2, 5])
def test_a_known_temperature_is_found(true: float, c: int) -> None:
    logits = 2 * np.random.default_rng(c).standard_normal((20000, c))
    labels = drawn_from(logits, seed=c)
    assert temperature(labels, (true * logits).astype(np.float32)) == pytest.approx(true, rel=0.05)


@unhurried
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 60), st.floats(0.01, 100))
def test_a_temperature_never_raises_the_loss(seed: int, c: int, n: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, c, n), scale * rng.standard_normal((n, c))
    logits[np.arange(n), labels] += scale * rng.uniform(0, 2)
    t = temperature(labels, logits)

    def loss(z: Array) -> float:
        return float(log_loss(labels, softmax(z, axis=1), labels=np.arange(c)))

    if t is not None:
        assert 0.05 <= t <= 20
        assert loss(logits / t) <= loss(logits) + 1e-9
