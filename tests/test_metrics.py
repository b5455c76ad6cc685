"""Numbers against hand counts and scikit-learn."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from featcache.metrics import evaluate, per_epoch


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
