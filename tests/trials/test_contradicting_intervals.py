"""Intervals contradicted their numbers: an ECE of 0.143 had [0.147, 0.328], and AUROC 1 of 20 + 20 rows [1, 1].
Whatever the labels and scores, an interval holds its number, has a width, and lies where the number can be."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featcache import metrics
from featcache.metrics.intervals import evaluate, evaluate_findings, paired
from tests.test_intervals import check_hold

Array = np.ndarray[Any, Any]
unhurried = settings(deadline=None, max_examples=60)
SCORES = st.one_of(
    st.sampled_from([-800.0, -5.0, -1.0, 0.0, 1.0, 5.0, 800.0]), st.floats(-30, 30, width=32, allow_subnormal=False)
)


@st.composite
def scored_classes(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """(n,) labels, (n, c) logits with ties, saturation and perfect rows, and (n,) groups."""
    n, c = draw(st.integers(1, 40)), draw(st.integers(2, 4))
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, c - 1)))
    logits = draw(hnp.arrays(np.float64, (n, c), elements=SCORES))
    if draw(st.booleans()):
        logits[np.arange(n), labels] += draw(st.sampled_from([1.0, 20.0, 2000.0]))
    return labels, logits, draw(hnp.arrays(np.int64, n, elements=st.integers(0, max(1, n // 2))))


def separated(n: int, k: int, c: int = 2, scale: float = 5.0) -> tuple[Array, Array]:
    """n rows of class 0, k of each other, all called right."""
    labels = np.repeat(np.arange(c), [n] + [k] * (c - 1))
    return labels, scale * np.eye(c)[labels]


@unhurried
@given(scored_classes(), st.booleans())
@example((np.repeat([0, 1], 20), 5 * np.eye(2)[np.repeat([0, 1], 20)], np.arange(40)), True)
@example((np.array([1]), np.array([[0.0, 1.0]]), np.zeros(1, dtype=np.int64)), True)
@example((np.repeat([0, 1], 3), np.zeros((6, 2)), np.zeros(6, dtype=np.int64)), True)
def test_an_interval_holds_its_number_and_has_a_width(rows: tuple[Array, Array, Array], grouped: bool) -> None:
    labels, logits, groups = rows
    found = evaluate(labels, logits, logits.shape[1] - 1, groups=groups if grouped else None)
    check_hold(found, metrics.evaluate(labels, logits, logits.shape[1] - 1))


@unhurried
@given(
    hnp.arrays(np.float64, (17, 3), elements=st.sampled_from([0.0, 1.0, np.nan])),
    hnp.arrays(np.float64, (17, 3), elements=SCORES),
)
def test_an_interval_of_findings_holds_its_number_and_has_a_width(labels: Array, logits: Array) -> None:
    point = metrics.evaluate_findings(labels, logits)
    check_hold(evaluate_findings(labels, logits, groups=np.arange(17) // 2), point)


@unhurried
@given(scored_classes(), st.randoms())
def test_a_difference_lies_in_its_interval(rows: tuple[Array, Array, Array], random: Any) -> None:
    labels, logits, groups = rows
    after = logits[random.sample(range(len(logits)), len(logits))]
    for name, (value, low, high) in paired(labels, logits, after, 1, groups=groups).items():
        assert -1 <= low <= value <= high <= 1, name


def test_a_calibration_error_lies_in_its_interval() -> None:
    """Of 50 times 300 rows of a well calibrated head: resampling added noise of its own to the bins. The truth is 0."""
    n_low = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        p = rng.uniform(0, 1, 300)
        labels, logits = (rng.random(300) < p).astype(int), metrics.two_columns(np.log(p / (1 - p)))
        low, high = evaluate(labels, logits, 1)["ece"]
        assert low < metrics.evaluate(labels, logits, 1)["ece"] < high
        n_low += low == 0.0
    assert n_low >= 45


def test_a_perfect_ranking_has_the_bound_of_its_disjoint_pairs() -> None:
    """20 pairs in the right order: an area of 0.025^(1/20) would show that in 25 of 1,000 samples, at most."""
    labels, logits = separated(20, 20)
    found = evaluate(labels, logits, 1)
    assert found["auroc"] == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    groups = np.arange(40) // 4
    assert evaluate(labels, logits, 1, groups=groups)["auroc"] == (pytest.approx(0.025 ** (1 / 5)), 1.0)
    upside_down = evaluate(labels, -logits, 1)["auroc"]
    assert upside_down == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))


def test_shares_of_which_all_or_none_are_right_have_exact_bounds() -> None:
    labels, logits = separated(20, 20)
    found = evaluate(labels, logits, 1)
    for name, n in {"accuracy": 40, "precision": 20, "recall": 20, "specificity": 20}.items():
        assert found[name] == (pytest.approx(0.025 ** (1 / n)), 1.0), name
    low = 0.025 ** (1 / 20)
    assert found["f1"] == (pytest.approx(2 * low / (1 + low)), 1.0)
    assert found["balanced_accuracy"] == (pytest.approx(1 - (1 - low) / np.sqrt(2)), 1.0)
    assert evaluate(labels, -logits, 1)["recall"] == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert evaluate(labels, logits, 1, threshold=0.999999)["recall"][0] == 0.0


@pytest.mark.parametrize(("n", "k"), [(20, 20), (135, 15), (15, 135), (5, 5)])
def test_no_population_below_the_bound_of_average_precision_ranks_perfectly_more_often(n: int, k: int) -> None:
    """Of populations of which a share f of the negatives is above all positives, (1 - f)^n of the samples are perfect;
    with the largest f that does this in 2.5 % the average precision is still above the bound."""
    labels, logits = separated(n, k)
    low, high = evaluate(labels, logits, 1)["auprc"]
    f = 1 - 0.025 ** (1 / n)
    u = (np.arange(200_000) + 0.5) / 200_000
    assert 0 < low <= np.mean(u / (u + f * n / k)) + 1e-6
    assert high == 1.0


@pytest.mark.parametrize("c", [3, 6])
def test_macro_averages_of_perfect_heads_are_no_certainty(c: int) -> None:
    labels, logits = separated(12, 12, c)
    found = evaluate(labels, logits, 0)
    for name in ("accuracy", "precision", "recall", "f1", "balanced_accuracy", "auroc", "auprc"):
        assert 0.5 < found[name][0] < 0.995, name
        assert found[name][1] == 1.0, name


def test_losses_of_a_head_without_a_mistake_allow_for_one() -> None:
    """Of 40 rows without a mistake a share of 9 % may be one, at what it would cost by the head's own probability."""
    labels, logits = separated(20, 20, scale=5.0)
    point, found = metrics.evaluate(labels, logits, 1), evaluate(labels, logits, 1)
    unseen = 1 - 0.025 ** (1 / 40)
    assert found["loss"][1] == pytest.approx(point["loss"] + unseen * np.log1p(np.exp(5)))
    assert found["brier"][1] == pytest.approx(point["brier"] + unseen / (1 + np.exp(-5)) ** 2)
    assert found["ece"][1] > 0.02
