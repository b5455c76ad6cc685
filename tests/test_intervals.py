"""Weights against repeated rows, and intervals against what they promise."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from featcache import metrics
from featcache.metrics import intervals
from featcache.metrics.intervals import (
    COMPARED,
    bootstrap,
    bootstrap_findings,
    paired,
    paired_findings,
    unpaired,
    weighted,
    weighted_findings,
)

Array = np.ndarray[Any, Any]
SCORES = {"no ties": None, "ties": 1, "two scores": 0}  # digits kept of the logits


def classes(n: int, c: int, seed: int, digits: int | None = None) -> tuple[Array, Array]:
    """Labels, the last class rare, and logits that know something."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.integers(0, c, n), rng.integers(0, c, n))
    logits = rng.standard_normal((n, c)) + np.eye(c)[labels]
    return labels, logits if digits is None else np.round(np.clip(logits, 0, 1), digits)


def findings(n: int, seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < [0.08, 0.4, 0.7]).astype(float)
    logits = np.round(rng.standard_normal((n, 3)) + labels, 1)
    labels[rng.random((n, 3)) < 0.3] = np.nan
    return labels, logits


def counts(r: int, n: int, seed: int) -> Array:
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=r)


def check_equal(found: dict[str, Array], expected: list[dict[str, Any]]) -> None:
    """Every number of every weighting, and NaN exactly where the evaluation says None."""
    assert set(found) == set(metrics.SCALARS)
    for name, values in found.items():
        wanted = [np.nan if each[name] is None else each[name] for each in expected]
        np.testing.assert_allclose(values, wanted, rtol=1e-9, atol=1e-12, err_msg=name)


def width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("c", [2, 4])
@pytest.mark.parametrize("n", [7, 120])
def test_weighted_rows_equal_repeated_rows(n: int, c: int, digits: int | None) -> None:
    """With 7 rows many a resample lacks a class."""
    labels, logits = classes(n, c, seed=n + c, digits=digits)
    weights = counts(30, n, seed=c)
    repeated = [np.repeat(np.arange(n), w) for w in weights]
    expected = [metrics.evaluate(labels[rows], logits[rows], 1) for rows in repeated]
    check_equal(weighted(labels, logits, 1, weights), expected)


@pytest.mark.parametrize("positive", [0, 1])
def test_weighted_rows_equal_repeated_rows_at_a_threshold(positive: int) -> None:
    labels, logits = classes(80, 2, seed=1)
    weights = counts(20, 80, seed=2)
    repeated = [np.repeat(np.arange(80), w) for w in weights]
    expected = [metrics.evaluate(labels[rows], logits[rows], positive, 0.3) for rows in repeated]
    check_equal(weighted(labels, logits, positive, weights, threshold=0.3), expected)


@pytest.mark.parametrize("thresholds", [None, [0.2, 0.5, 0.7]])
@pytest.mark.parametrize("n", [6, 100])
def test_weighted_findings_equal_repeated_findings(n: int, thresholds: list[float] | None) -> None:
    labels, logits = findings(n, seed=n)
    weights = counts(30, n, seed=3)
    repeated = [np.repeat(np.arange(n), w) for w in weights]
    expected = [metrics.evaluate_findings(labels[rows], logits[rows], thresholds) for rows in repeated]
    check_equal(weighted_findings(labels, logits, weights, thresholds), expected)


def test_a_finding_that_is_never_known_changes_nothing() -> None:
    labels, logits = findings(60, seed=4)
    weights = counts(5, 60, seed=5)
    found = weighted_findings(labels, logits, weights)
    more = weighted_findings(np.c_[labels, np.full(60, np.nan)], np.c_[logits, np.zeros(60)], weights)
    for name, values in found.items():
        np.testing.assert_allclose(more[name], values, err_msg=name)


# --- resampling -------------------------------------------------------------------------------------------------------


def test_same_seed_same_intervals() -> None:
    labels, logits = classes(100, 2, seed=6)
    assert bootstrap(labels, logits, 1, n_resamples=100, seed=1) == bootstrap(
        labels, logits, 1, n_resamples=100, seed=1
    )
    assert bootstrap(labels, logits, 1, n_resamples=100, seed=1) != bootstrap(
        labels, logits, 1, n_resamples=100, seed=2
    )


@pytest.mark.parametrize("groups", [None, np.arange(50) // 3])
def test_the_size_of_a_block_changes_no_interval(groups: Array | None, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, logits = classes(50, 4, seed=7)
    at_once = bootstrap(labels, logits, 0, groups=groups, n_resamples=40)
    monkeypatch.setattr(intervals, "BLOCK_BYTES", 1)
    one_by_one = bootstrap(labels, logits, 0, groups=groups, n_resamples=40)
    assert one_by_one == {name: pytest.approx(interval) for name, interval in at_once.items()}


def test_interval_is_that_of_a_plain_bootstrap() -> None:
    labels, logits = classes(150, 2, seed=8)
    rng = np.random.default_rng(9)
    drawn = [rng.integers(0, 150, 150) for _ in range(400)]
    values = [roc_auc_score(labels[rows], metrics.log_odds(logits[rows], 1)) for rows in drawn]
    low, high = np.percentile(values, [2.5, 97.5])
    assert bootstrap(labels, logits, 1, n_resamples=5000)["auroc"] == pytest.approx((low, high), abs=0.015)


@pytest.mark.parametrize("c", [2, 4])
def test_the_number_itself_lies_inside(c: int) -> None:
    """But for `ece`, to which resampling mostly adds."""
    labels, logits = classes(400, c, seed=10)
    found, point = bootstrap(labels, logits, 1), metrics.evaluate(labels, logits, 1)
    assert set(found) == set(metrics.SCALARS)
    for name in set(found) - {"ece"}:
        assert found[name][0] < point[name] < found[name][1], name
    assert found["ece"][1] > point["ece"]


def test_findings_have_the_intervals_of_their_summary() -> None:
    labels, logits = findings(400, seed=11)
    found, point = bootstrap_findings(labels, logits), metrics.evaluate_findings(labels, logits)
    assert set(found) == set(metrics.SCALARS)
    for name in set(found) - {"ece"}:
        assert found[name][0] < point[name] < found[name][1], name


def test_one_finding_has_the_intervals_of_two_classes() -> None:
    labels, logits = classes(200, 2, seed=12)
    z = logits[:, 1] - logits[:, 0]
    found = bootstrap_findings(labels[:, None].astype(float), z[:, None], n_resamples=200, seed=3)
    two = bootstrap(labels, logits, 1, n_resamples=200, seed=3)
    assert found == {name: pytest.approx(interval) for name, interval in two.items()}


# --- groups -----------------------------------------------------------------------------------------------------------


def test_ten_copies_of_every_row_are_no_ten_rows() -> None:
    labels, logits = classes(200, 2, seed=13)
    once = bootstrap(labels, logits, 1)
    labels, logits, groups = np.repeat(labels, 10), np.repeat(logits, 10, axis=0), np.repeat(np.arange(200), 10)
    blind, grouped = bootstrap(labels, logits, 1), bootstrap(labels, logits, 1, groups=groups)
    for name in ("accuracy", "auroc", "loss", "f1"):
        assert width(grouped[name]) > 2 * width(blind[name]), name
        assert grouped[name] == pytest.approx(once[name], abs=1e-9), name


def test_groups_of_one_row_are_rows_whatever_their_numbers() -> None:
    labels, logits = classes(100, 2, seed=14)
    numbers = np.arange(100) * 7 - 50
    grouped = bootstrap(labels, logits, 1, groups=numbers, n_resamples=100)
    assert grouped == bootstrap(labels, logits, 1, n_resamples=100)


def test_a_group_is_drawn_whole() -> None:
    """Two groups, one all right and one all wrong: a resample is right in none, half or all of its rows."""
    labels = np.array([0, 1, 0, 1, 0, 1])
    logits = np.where(np.arange(6)[:, None] < 3, np.eye(2)[labels], 1 - np.eye(2)[labels])
    rows = intervals._resamples(6, np.array([5, 5, 5, 9, 9, 9]), 50, 0)
    accuracy = np.concatenate([weighted(labels, logits, 1, w)["accuracy"] for w in rows])
    assert set(accuracy.tolist()) == {0.0, 0.5, 1.0}


def test_findings_are_drawn_by_group_too() -> None:
    labels, logits = findings(100, seed=15)
    once = bootstrap_findings(labels, logits, n_resamples=200)
    groups = np.repeat(np.arange(100), 4)
    grouped = bootstrap_findings(
        np.repeat(labels, 4, axis=0), np.repeat(logits, 4, axis=0), groups=groups, n_resamples=200
    )
    assert grouped == {name: pytest.approx(interval) for name, interval in once.items()}


# --- extremes ---------------------------------------------------------------------------------------------------------


def test_shares_of_which_all_or_none_are_right_have_exact_bounds() -> None:
    """The lower bound p of n of n is that for which p ** n is 2.5 %; groups are trials, not rows. What has no such
    bounds has an interval of no width."""
    labels = np.array([0, 1] * 20)
    found = bootstrap(labels, 5 * np.eye(2)[labels], 1, n_resamples=200)
    for name, n in {"accuracy": 40, "precision": 20, "recall": 20, "specificity": 20}.items():
        assert found[name] == (pytest.approx(0.025 ** (1 / n)), 1.0), name
    for name in ("balanced_accuracy", "f1", "auroc", "auprc"):
        assert found[name] == (1.0, 1.0), name
    groups = np.arange(40) // 8
    grouped = bootstrap(labels, 5 * np.eye(2)[labels], 1, groups=groups, n_resamples=200)
    assert grouped["recall"] == (pytest.approx(0.025 ** (1 / 5)), 1.0)
    wrong = bootstrap(labels, 5 * np.eye(2)[1 - labels], 1, n_resamples=200)
    assert wrong["specificity"] == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert bootstrap(labels, 5 * np.eye(2)[labels], 1, threshold=0.999999, n_resamples=200)["recall"][0] == 0.0


def test_a_number_that_does_not_exist_has_no_interval() -> None:
    labels, logits = np.ones(30, dtype=int), np.random.default_rng(16).standard_normal((30, 2))
    found = bootstrap(labels, logits, 1, n_resamples=50)
    assert set(metrics.SCALARS) - set(found) == {"auroc", "auprc", "specificity"}
    assert np.isfinite(list(found.values())).all()


def test_resamples_without_the_number_are_left_out() -> None:
    """One positive row of five: a third of the resamples lack it, and AUROC is 1 in all the others."""
    labels = np.array([0, 0, 0, 0, 1])
    assert bootstrap(labels, 5 * np.eye(2)[labels], 1, n_resamples=200)["auroc"] == (1.0, 1.0)


@pytest.mark.parametrize(("n_present", "n"), [(3, 20), (1, 8)])
def test_resamples_without_a_positive_say_nothing_of_what_is_found(n_present: int, n: int) -> None:
    """All of few positives are found; a resample without any is no miss."""
    labels = (np.arange(n) < n_present).astype(int)
    found = bootstrap(labels, 5 * np.eye(2)[labels], 1)
    for name in ("f1", "balanced_accuracy"):
        assert found[name] == (1.0, 1.0), name
    for name in ("recall", "precision"):
        assert found[name] == (pytest.approx(0.025 ** (1 / n_present)), 1.0), name


def test_a_class_without_a_row_is_in_no_interval() -> None:
    labels = np.repeat([0, 1], 6)
    found = bootstrap(labels, 5 * np.eye(3)[labels], 0, n_resamples=100)
    for name in ("recall", "precision", "f1", "balanced_accuracy"):
        assert found[name] == (1.0, 1.0), name


def test_one_row_is_enough() -> None:
    found = bootstrap(np.array([1]), np.array([[0.0, 1.0]]), 1, n_resamples=20)
    assert found["accuracy"] == (pytest.approx(0.025), 1.0)
    assert found["loss"][0] == pytest.approx(np.log1p(np.exp(-1)))


def test_nothing_known_has_no_intervals() -> None:
    assert bootstrap_findings(np.full((5, 2), np.nan), np.zeros((5, 2)), n_resamples=10) == {}


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """200 sets of 150 rows, each row right with probability 0.8; a binomial of 0.95 lies in 0.88 to 0.99 surely."""
    rng = np.random.default_rng(17)
    covered = 0
    for seed in range(200):
        labels = rng.integers(0, 2, 150)
        called = np.where(rng.random(150) < 0.8, labels, 1 - labels)
        low, high = bootstrap(labels, np.eye(2)[called], 1, n_resamples=200, seed=seed)["accuracy"]
        covered += low <= 0.8 <= high
    assert 176 <= covered <= 198


# --- two heads on the same rows ---------------------------------------------------------------------------------------


def resampled(n: int, groups: Array | None, n_resamples: int, seed: int) -> list[Array]:
    """Rows of each resample, whole groups drawn with replacement, one resample after the other."""
    units = np.arange(n) if groups is None else groups
    numbers = np.unique(units)
    drawn = np.random.default_rng(seed).integers(len(numbers), size=(n_resamples, len(numbers)))
    return [np.concatenate([np.flatnonzero(units == numbers[i]) for i in each]) for each in drawn]


@pytest.mark.parametrize("groups", [None, np.arange(60) // 4 * 7], ids=["rows", "groups"])
@pytest.mark.parametrize(("c", "thresholds"), [(2, (None, None)), (2, (0.3, 0.7)), (4, (None, None))])
def test_a_difference_and_its_interval_are_those_of_a_plain_loop(
    c: int, thresholds: tuple[float | None, float | None], groups: Array | None
) -> None:
    labels, before = classes(60, c, seed=20)
    after = before + np.random.default_rng(21).standard_normal(before.shape)
    found = paired(labels, before, after, 1, thresholds=thresholds, groups=groups, n_resamples=50, seed=4)

    def difference(rows: Array) -> dict[str, float]:
        a, b = (
            metrics.evaluate(labels[rows], z[rows], 1, at) for z, at in zip((before, after), thresholds, strict=True)
        )
        return {name: np.nan if a[name] is None else b[name] - a[name] for name in COMPARED}

    each = [difference(rows) for rows in resampled(60, groups, 50, seed=4)]
    assert set(found) == set(COMPARED)
    for name, value in difference(np.arange(60)).items():
        ends = np.nanpercentile([one[name] for one in each], (2.5, 97.5))
        np.testing.assert_allclose(found[name], (value, *ends), atol=1e-12, err_msg=name)


def test_the_difference_of_findings_is_that_of_a_plain_loop() -> None:
    labels, before = findings(70, seed=22)
    after = before + np.random.default_rng(23).standard_normal(before.shape)
    found = paired_findings(labels, before, after, groups=np.arange(70) // 2, n_resamples=40, seed=5)
    each = []
    for rows in [np.arange(70), *resampled(70, np.arange(70) // 2, 40, seed=5)]:
        a, b = (metrics.evaluate_findings(labels[rows], z[rows]) for z in (before, after))
        each.append({name: b[name] - a[name] for name in COMPARED})
    for name, numbers in found.items():
        ends = np.percentile([one[name] for one in each[1:]], (2.5, 97.5))
        np.testing.assert_allclose(numbers, (each[0][name], *ends), atol=1e-12, err_msg=name)


def test_nothing_lies_between_a_head_and_itself() -> None:
    labels, logits = classes(90, 3, seed=24)
    assert paired(labels, logits, logits, 0, n_resamples=100) == dict.fromkeys(COMPARED, (0.0, 0.0, 0.0))
    labels, logits = classes(90, 2, seed=24)
    at = {"thresholds": (0.3, 0.3), "groups": np.arange(90) // 3}
    assert paired(labels, logits, logits, 1, **at, n_resamples=100) == dict.fromkeys(COMPARED, (0.0, 0.0, 0.0))
    labels, logits = findings(90, seed=25)
    assert paired_findings(labels, logits, logits, n_resamples=50) == dict.fromkeys(COMPARED, (0.0, 0.0, 0.0))


def test_turning_the_heads_round_turns_the_sign() -> None:
    labels, before = classes(80, 2, seed=26)
    after = np.random.default_rng(27).standard_normal(before.shape)
    there, back = (paired(labels, *heads, 1, n_resamples=80) for heads in ((before, after), (after, before)))
    assert there["auroc"][0] < 0
    for name, (value, low, high) in there.items():
        np.testing.assert_allclose(back[name], (-value, -high, -low), atol=1e-12, err_msg=name)


def test_a_pair_says_more_than_two_intervals_side_by_side() -> None:
    """What makes rows hard for both heads is not what tells them apart."""
    labels, before = classes(200, 2, seed=28)
    after = before + 0.05 * np.random.default_rng(29).standard_normal(before.shape)
    value, low, high = paired(labels, before, after, 1, n_resamples=200)["auroc"]
    assert low <= value <= high
    assert high - low < 0.5 * width(bootstrap(labels, before, 1, n_resamples=200)["auroc"])


def test_a_number_that_does_not_exist_has_no_difference() -> None:
    labels, logits = np.zeros(30, dtype=int), classes(30, 2, seed=30)[1]
    assert set(paired(labels, logits, -logits, 1, n_resamples=20)) == set(COMPARED) - {"auroc", "recall", "f1"}


# --- two independent samples ------------------------------------------------------------------------------------------


def test_the_difference_of_two_shares_of_other_rows_is_newcombes() -> None:
    """56 of 70 against 48 of 80 with Wilson's intervals is example (a) of Newcombe 1998: 0.2 [0.0524, 0.3339]."""
    before = {"accuracy": 48 / 80, "intervals": {"accuracy": binomtest(48, 80).proportion_ci(method="wilson")}}
    after = {"accuracy": 56 / 70, "intervals": {"accuracy": binomtest(56, 70).proportion_ci(method="wilson")}}
    assert unpaired(before, after) == {"accuracy": pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)}


def test_turning_two_samples_round_turns_the_sign() -> None:
    one = {"auroc": 0.9, "loss": 0.4, "intervals": {"auroc": (0.8, 0.95), "loss": (0.3, 0.7)}}
    other = {"auroc": 0.7, "loss": 0.5, "intervals": {"auroc": (0.6, 0.75), "loss": (0.45, 0.6)}}
    there, back = unpaired(one, other), unpaired(other, one)
    assert set(there) == {"auroc", "loss"}
    for name, (value, low, high) in there.items():
        assert low < value < high
        assert back[name] == pytest.approx((-value, -high, -low)), name


def test_a_number_without_an_interval_on_both_sides_has_no_difference() -> None:
    one = {"auroc": None, "loss": 0.4, "f1": 0.5, "intervals": {"f1": (0.4, 0.6)}}
    assert unpaired(one, one | {"auroc": 0.9}) == {
        "f1": (0.0, pytest.approx(-0.1414, abs=1e-4), pytest.approx(0.1414, abs=1e-4))
    }
