"""Numbers against hand counts and scikit-learn."""

import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as sk

from featcache.metrics import (
    SCALARS,
    bin_numbers,
    decisions,
    evaluate,
    evaluate_findings,
    per_epoch,
    per_epoch_findings,
    probabilities,
    reliability,
    two_columns,
)


def logits_of(p: list[float]) -> np.ndarray:
    """(n, 2) logits with these probabilities of class 1."""
    p_ = np.array(p)
    return np.stack([np.log(1 - p_), np.log(p_)], axis=1).astype(np.float32)


def test_two_classes_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    found = evaluate(labels, logits_of([0.1, 0.4, 0.6, 0.3, 0.7, 0.8, 0.9]), positive=1)
    assert found["confusion"] == [[2, 1], [1, 3]]
    assert found["support"] == [3, 4]
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["precision"] == pytest.approx(3 / 4)
    assert found["recall"] == pytest.approx(3 / 4)
    assert found["specificity"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert found["f1"] == pytest.approx(3 / 4)
    assert found["auroc"] == pytest.approx(10 / 12)
    assert found["loss"] == pytest.approx(-np.mean(np.log([0.9, 0.6, 0.4, 0.3, 0.7, 0.8, 0.9])), rel=1e-6)


def test_the_positive_class_can_be_the_first() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 200), rng.standard_normal((200, 2))
    one, zero = evaluate(labels, logits, 1), evaluate(labels, logits, 0)
    assert zero["auroc"] == pytest.approx(one["auroc"])
    assert zero["recall"] == pytest.approx(one["specificity"])
    assert zero["auprc"] == pytest.approx(sk.average_precision_score(labels == 0, logits[:, 0] - logits[:, 1]))


def test_many_classes_are_macro_averages() -> None:
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 4, 300), rng.standard_normal((300, 4))
    found = evaluate(labels, logits, 0)
    assert found["f1"] == pytest.approx(sk.f1_score(labels, logits.argmax(1), average="macro"))
    assert found["recall"] == pytest.approx(found["balanced_accuracy"])
    assert len(found["confusion"]) == 4
    assert 0.4 < found["auroc"] < 0.6


def test_what_does_not_exist_is_none_and_never_nan() -> None:
    found = evaluate(np.ones(5, dtype=int), logits_of([0.9] * 5), positive=1)
    assert found["auroc"] is None
    assert found["auprc"] is None
    assert found["specificity"] is None
    json.dumps(found, allow_nan=False)


def test_saturated_logits_still_rank() -> None:
    logits = np.array([[0.0, 100.0], [0.0, 200.0], [0.0, 300.0]])
    assert evaluate(np.array([0, 0, 1]), logits, 1)["auroc"] == 1.0


def test_a_curve_point_has_the_five_numbers() -> None:
    point = per_epoch(np.array([0, 1]), logits_of([0.2, 0.9]), 1)
    assert list(point) == ["loss", "accuracy", "precision", "recall", "f1"]


def with_unknowns(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) labels, a fifth of them unknown, and logits that know something."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < [0.1, 0.4, 0.7]).astype(float)
    logits = rng.standard_normal((n, 3)) + labels
    labels[rng.random((n, 3)) < 0.2] = np.nan
    return labels, logits


# --- Brier score and calibration error --------------------------------------------------------------------------------


def test_brier_score_of_two_classes_is_sklearns() -> None:
    rng = np.random.default_rng(2)
    labels, logits = rng.integers(0, 2, 200), rng.standard_normal((200, 2))
    p = probabilities(logits)[:, 1]
    assert evaluate(labels, logits, 1)["brier"] == pytest.approx(sk.brier_score_loss(labels, p))
    assert evaluate(labels, logits, 0)["brier"] == pytest.approx(sk.brier_score_loss(labels, p))


def test_brier_score_of_more_classes_sums_over_them() -> None:
    logits = np.log([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    expected = ((0.3**2 + 0.2**2 + 0.1**2) + (0.1**2 + 0.9**2 + 0.8**2)) / 2
    assert evaluate(np.array([0, 1]), logits, 0)["brier"] == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    """0.62 and 0.66 share a bin (0.6 to 0.667) in which half is positive; 0.1 is alone."""
    labels, logits = np.array([1, 0, 0]), logits_of([0.62, 0.66, 0.1])
    bins = reliability(labels, logits, 1)
    assert [(b["n"], b["frequency"]) for b in bins] == [(1, 0.0), (2, 0.5)]
    assert (bins[1]["low"], bins[1]["high"]) == (pytest.approx(9 / 15), pytest.approx(10 / 15))
    assert bins[1]["confidence"] == pytest.approx(0.64)
    assert evaluate(labels, logits, 1)["ece"] == pytest.approx((1 * 0.1 + 2 * 0.14) / 3, rel=1e-6)


def test_calibration_error_of_more_classes_is_of_the_called_one() -> None:
    logits = np.log([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
    (only,) = reliability(np.array([0, 0]), logits, 0)
    assert (only["n"], only["frequency"]) == (2, 0.5)
    assert only["confidence"] == pytest.approx(0.7)
    assert evaluate(np.array([0, 0]), logits, 0)["ece"] == pytest.approx(0.2)


def test_an_edge_belongs_to_the_bin_below_it() -> None:
    assert bin_numbers(np.linspace(0, 1, 16)).tolist() == [0, *range(15)]


def test_no_probability_falls_out_of_the_bins() -> None:
    """Logits so far apart that the probabilities are exactly 0 and 1."""
    bins = reliability(np.array([0, 1, 1]), np.array([[0.0, -900.0], [0.0, 0.0], [0.0, 900.0]]), 1)
    assert [b["n"] for b in bins] == [1, 1, 1]
    assert bins[0]["low"] == 0.0
    assert bins[-1]["high"] == 1.0


def test_well_calibrated_predictions_have_a_small_error() -> None:
    rng = np.random.default_rng(3)
    logits = 2 * rng.standard_normal((20000, 2))
    labels = (rng.random(20000) < probabilities(logits)[:, 1]).astype(int)
    assert evaluate(labels, logits, 1)["ece"] < 0.02
    assert evaluate(labels, 4 * logits, 1)["ece"] > 0.05


# --- thresholds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positive", [0, 1])
def test_a_threshold_moves_the_decisions_and_nothing_else(positive: int) -> None:
    rng = np.random.default_rng(4)
    labels, logits = rng.integers(0, 2, 200), rng.standard_normal((200, 2))
    plain, moved = evaluate(labels, logits, positive), evaluate(labels, logits, positive, threshold=0.2)
    called = probabilities(logits)[:, positive] >= 0.2
    assert moved["recall"] == pytest.approx(sk.recall_score(labels == positive, called))
    assert moved["precision"] == pytest.approx(sk.precision_score(labels == positive, called))
    assert moved["accuracy"] == pytest.approx(np.mean((labels == positive) == called))
    assert np.sum(moved["confusion"], axis=0)[positive] == called.sum()
    for name in ("loss", "auroc", "auprc", "brier", "ece", "support"):
        assert moved[name] == plain[name]


def test_one_half_is_the_highest_logit() -> None:
    rng = np.random.default_rng(5)
    labels, logits = rng.integers(0, 2, 200), rng.standard_normal((200, 2))
    assert evaluate(labels, logits, 1, threshold=0.5) == evaluate(labels, logits, 1)


def test_a_row_at_the_threshold_is_positive() -> None:
    assert decisions(np.zeros((1, 2)), 1, threshold=0.5).tolist() == [1]
    assert decisions(np.zeros((1, 2)), 0, threshold=0.5).tolist() == [0]


def test_a_threshold_needs_two_classes() -> None:
    with pytest.raises(ValueError, match="a threshold needs two classes, got 3"):
        evaluate(np.array([0]), np.zeros((1, 3)), 0, threshold=0.4)


# --- one dict per class -----------------------------------------------------------------------------------------------


def test_each_class_against_the_rest_is_sklearns() -> None:
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 3, 300)
    logits = rng.standard_normal((300, 3)) + np.eye(3)[labels]
    found = evaluate(labels, logits, 0)
    for c, each in enumerate(found["per_class"]):
        truth, called = labels == c, logits.argmax(1) == c
        assert each["support"] == truth.sum()
        assert each["precision"] == pytest.approx(sk.precision_score(truth, called))
        assert each["recall"] == pytest.approx(sk.recall_score(truth, called))
        assert each["specificity"] == pytest.approx(sk.recall_score(~truth, ~called))
        assert each["f1"] == pytest.approx(sk.f1_score(truth, called))
        assert each["auroc"] == pytest.approx(sk.roc_auc_score(truth, probabilities(logits)[:, c]))
        assert each["auprc"] == pytest.approx(sk.average_precision_score(truth, probabilities(logits)[:, c]))


def test_macro_averages_are_the_means_of_the_classes_also_when_one_is_absent() -> None:
    rng = np.random.default_rng(7)
    found = evaluate(rng.integers(0, 3, 60), rng.standard_normal((60, 4)), 0)
    assert found["per_class"][3]["support"] == 0
    assert found["per_class"][3]["auroc"] is None
    for name in ("precision", "recall", "specificity", "f1", "auroc", "auprc"):
        there = [each[name] for each in found["per_class"] if each[name] is not None]
        assert found[name] == pytest.approx(np.mean(there))
    json.dumps(found, allow_nan=False)


def test_a_class_without_a_row_pulls_no_average_down() -> None:
    """Six of one class and six of another, all right; nothing of a third."""
    labels = np.repeat([0, 1], 6)
    found = evaluate(labels, 5 * np.eye(3)[labels], 0)
    assert found["confusion"] == [[6, 0, 0], [0, 6, 0], [0, 0, 0]]
    for name in ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "auroc"):
        assert found[name] == 1.0, name
    absent = found["per_class"][2]
    assert (absent["precision"], absent["recall"], absent["f1"], absent["specificity"]) == (None, None, None, 1.0)


def test_averages_are_sklearns_over_the_classes_that_have_rows_whatever_is_called() -> None:
    rng = np.random.default_rng(9)
    labels, logits = rng.choice([0, 2, 3], 90), rng.standard_normal((90, 4))
    found, called = evaluate(labels, logits, 0), logits.argmax(1)
    assert 1 in called
    how = {"labels": [0, 2, 3], "average": "macro"}
    assert found["precision"] == pytest.approx(sk.precision_score(labels, called, **how))
    assert found["recall"] == pytest.approx(sk.recall_score(labels, called, **how))
    assert found["recall"] == pytest.approx(found["balanced_accuracy"])
    assert found["f1"] == pytest.approx(sk.f1_score(labels, called, **how))
    point = per_epoch(labels, logits, 0)
    assert {name: point[name] for name in ("precision", "recall", "f1")} == {
        name: pytest.approx(found[name]) for name in ("precision", "recall", "f1")
    }


def test_a_class_that_is_there_and_never_called_counts_as_0() -> None:
    labels = np.array([0, 0, 1, 2])
    found = evaluate(labels, np.eye(3)[[0, 0, 1, 1]], 0)
    assert [each["precision"] for each in found["per_class"]] == [1.0, 0.5, 0.0]
    assert found["precision"] == per_epoch(labels, np.eye(3)[[0, 0, 1, 1]], 0)["precision"] == 0.5


def test_without_a_positive_row_there_is_nothing_to_find() -> None:
    """And a curve, which has no gaps, stands at 0."""
    labels, logits = np.zeros(4, dtype=int), logits_of([0.2, 0.3, 0.1, 0.9])
    found, point = evaluate(labels, logits, 1), per_epoch(labels, logits, 1)
    for name in ("precision", "recall", "f1"):
        assert found[name] is None
        assert point[name] == 0.0
    assert found["specificity"] == found["accuracy"] == 0.75


def test_two_classes_have_no_list_of_classes() -> None:
    assert "per_class" not in evaluate(np.array([0, 1]), logits_of([0.2, 0.9]), 1)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_curve_ends_where_the_evaluation_stands(n_classes: int) -> None:
    rng = np.random.default_rng(8)
    labels, logits = rng.integers(0, n_classes, 100), rng.standard_normal((100, n_classes))
    found = evaluate(labels, logits, 1)
    assert per_epoch(labels, logits, 1) == {
        name: pytest.approx(found[name]) for name in ("loss", "accuracy", "precision", "recall", "f1")
    }


# --- findings ---------------------------------------------------------------------------------------------------------


def test_two_columns_have_the_probability_of_the_sigmoid() -> None:
    z = np.array([-900.0, -40.0, -1e-17, 0.0, 0.3, 40.0, 900.0])
    assert probabilities(two_columns(z))[:, 1].tolist() == expit(z).tolist()


@pytest.mark.parametrize("thresholds", [None, [0.3, 0.6, 0.8]])
def test_a_finding_is_judged_on_the_rows_where_it_is_known(thresholds: list[float] | None) -> None:
    labels, logits = with_unknowns(0)
    found = evaluate_findings(labels, logits, thresholds)
    for c, each in enumerate(found["per_class"]):
        known = ~np.isnan(labels[:, c])
        truth, p = labels[known, c] == 1, expit(logits[known, c])
        called = p >= (thresholds or [0.5] * 3)[c]
        assert (each["n"], each["support"]) == (known.sum(), truth.sum())
        assert each["loss"] == pytest.approx(sk.log_loss(truth, p))
        assert each["accuracy"] == pytest.approx(sk.accuracy_score(truth, called))
        assert each["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, called))
        assert each["f1"] == pytest.approx(sk.f1_score(truth, called))
        assert each["specificity"] == pytest.approx(sk.recall_score(~truth, ~called))
        assert each["auroc"] == pytest.approx(sk.roc_auc_score(truth, p))
        assert each["auprc"] == pytest.approx(sk.average_precision_score(truth, p))
        assert each["brier"] == pytest.approx(sk.brier_score_loss(truth, p))
        assert 0 < each["ece"] < 1


def test_the_summary_of_findings_is_their_mean_and_the_loss_that_of_the_entries() -> None:
    labels, logits = with_unknowns(1)
    found = evaluate_findings(labels, logits)
    known = ~np.isnan(labels)
    assert found["n"] == len(labels)
    assert found["loss"] == pytest.approx(sk.log_loss(labels[known], expit(logits[known])))
    for name in set(SCALARS) - {"loss"}:
        assert found[name] == pytest.approx(np.mean([each[name] for each in found["per_class"]]))
    json.dumps(found, allow_nan=False)


def test_unknown_entries_are_as_if_they_were_not_there() -> None:
    labels, logits = with_unknowns(2)
    other = np.where(np.isnan(labels), 7.0, logits)
    assert evaluate_findings(labels, other) == evaluate_findings(labels, logits)


def test_a_finding_nobody_has_pulls_no_average_down() -> None:
    labels, logits = with_unknowns(3)
    labels[:, 0] = np.where(np.isnan(labels[:, 0]), np.nan, 0.0)
    labels[:, 1] = np.nan
    found = evaluate_findings(labels, logits)
    never, unknown, there = found["per_class"]
    assert never["recall"] is never["f1"] is never["auroc"] is None
    assert never["specificity"] == pytest.approx(never["accuracy"])
    assert set(unknown.values()) == {0, None}
    assert found["recall"] == there["recall"]
    assert per_epoch_findings(labels, logits)["f1"] == pytest.approx(found["f1"])
    json.dumps(found, allow_nan=False)


def test_nothing_known_is_none_in_the_summary_and_an_error_in_the_curve() -> None:
    labels, logits = np.full((4, 2), np.nan), np.zeros((4, 2))
    assert {evaluate_findings(labels, logits)[name] for name in SCALARS} == {None}
    with pytest.raises(ValueError, match="unknown"):
        per_epoch_findings(labels, logits)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_curve_over_findings_ends_where_the_evaluation_stands(dtype: type) -> None:
    labels, logits = with_unknowns(4)
    logits = logits.astype(dtype)
    logits[:5] = 0.0
    found = evaluate_findings(labels, logits)
    assert per_epoch_findings(labels, logits) == {
        name: pytest.approx(found[name]) for name in ("loss", "accuracy", "precision", "recall", "f1")
    }


def test_a_threshold_per_finding_no_more_and_no_less() -> None:
    labels, logits = with_unknowns(5)
    with pytest.raises(ValueError, match="zip"):
        evaluate_findings(labels, logits, [0.5, 0.5])
