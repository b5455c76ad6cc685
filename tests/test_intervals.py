"""Intervals against slow ones of the same formula, against resampling, and against what they promise."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, binomtest, t
from sklearn.metrics import average_precision_score

from featcache import metrics
from featcache.metrics import estimates
from featcache.metrics.intervals import COMPARED, evaluate, evaluate_findings, paired, paired_findings, unpaired

Array = np.ndarray[Any, Any]
SCORES = {"no ties": None, "ties": 1, "two scores": 0}  # digits kept of the logits
RANGES = dict.fromkeys(metrics.SCALARS, 1.0) | {"loss": np.inf, "brier": 2.0}


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


def width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


def check_hold(found: dict[str, tuple[float, float]], point: dict[str, Any]) -> None:
    """Every number that exists has an interval that holds it, has a width, and lies where the number can."""
    assert set(found) == {name for name in metrics.SCALARS if point[name] is not None}
    for name, (low, high) in found.items():
        assert 0 <= low <= point[name] + 1e-12, name
        assert point[name] - 1e-12 <= high <= RANGES[name], name
        assert low < high, name


def check_equal(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-9) -> None:
    assert set(one) == set(other)
    for name, numbers in one.items():
        np.testing.assert_allclose(numbers, other[name], atol=tolerance, err_msg=name)


# --- standard errors --------------------------------------------------------------------------------------------------


def plain_auroc_parts(truth: Array, scores: Array) -> tuple[float, Array]:
    """The area, and by how much each row moves it, from all pairs (DeLong 1988, equations 3 and 4)."""
    wins = np.sign(scores[truth][:, None] - scores[~truth][None]) / 2 + 0.5
    parts, area = np.empty(len(truth)), wins.mean()
    parts[truth] = (wins.mean(axis=1) - area) / truth.sum()
    parts[~truth] = (wins.mean(axis=0) - area) / (~truth).sum()
    return float(area), parts


@pytest.mark.parametrize("digits", SCORES.values(), ids=SCORES)
def test_the_influence_of_rows_on_auroc_is_that_of_all_pairs(digits: int | None) -> None:
    labels, logits = classes(90, 2, seed=1, digits=digits)
    truth, scores, group = labels == 1, metrics.log_odds(logits, 1), np.arange(90) // 4
    area, parts = plain_auroc_parts(truth, scores)
    found = estimates.auroc(truth, scores, group, 23)
    assert found.value == pytest.approx(area)
    np.testing.assert_allclose(found.influence, np.bincount(group, parts), atol=1e-12)


def test_the_interval_of_auroc_is_that_of_delong_on_the_logit_scale() -> None:
    """Of many rows, of which the variance is that of the rows alone, and t that of a normal distribution."""
    rng = np.random.default_rng(2)
    truth = np.arange(3000) % 2 == 0
    scores = np.where(truth, rng.exponential(2.0, 3000), rng.exponential(0.5, 3000))  # wider than two normal ones
    area, parts = plain_auroc_parts(truth, scores)
    variance = 1500 / 1499 * (np.sum(parts[truth] ** 2) + np.sum(parts[~truth] ** 2))
    reach = 1.9616 * np.sqrt(variance) / (area * (1 - area))
    found = estimates.auroc(truth, scores, np.arange(3000), 3000)
    ends = 1 / (1 + np.exp(-(np.log(area / (1 - area)) + np.array([-reach, reach]))))
    np.testing.assert_allclose((found.low, found.high), ends, atol=2e-4)


@pytest.mark.parametrize("digits", SCORES.values(), ids=SCORES)
def test_the_influence_of_rows_on_average_precision_is_its_derivative(digits: int | None) -> None:
    labels, logits = classes(60, 2, seed=3, digits=digits)
    truth, scores = labels == 1, metrics.log_odds(logits, 1)
    found = estimates.average_precision(truth, scores, np.arange(60), 60)
    assert found.value == pytest.approx(average_precision_score(truth, scores))

    def moved(row: int, by: float) -> float:
        weights = np.ones(60)
        weights[row] += by
        return float(average_precision_score(truth, scores, sample_weight=weights))

    slopes = [(moved(row, 1e-5) - moved(row, -1e-5)) / 2e-5 for row in range(60)]
    np.testing.assert_allclose(found.influence, slopes, atol=1e-8)


@pytest.mark.parametrize("c", [2, 4])
def test_intervals_of_many_rows_are_as_wide_as_resampling_makes_them(c: int) -> None:
    """Of 400 groups of two rows that say nearly the same: 3.92 standard deviations of 100 resamples of groups."""
    labels, logits = classes(400, c, seed=4)
    labels, logits, groups = np.repeat(labels, 2), np.repeat(logits, 2, axis=0), np.arange(800) // 2
    logits = logits + 0.3 * np.random.default_rng(5).standard_normal(logits.shape)
    rng, values = np.random.default_rng(6), []
    for _ in range(100):
        drawn = rng.integers(0, 400, 400)
        rows = np.concatenate([2 * drawn, 2 * drawn + 1])
        values.append(metrics.evaluate(labels[rows], logits[rows], 1))
    found = evaluate(labels, logits, 1, groups=groups)
    for name in set(metrics.SCALARS) - {"ece"}:
        assert width(found[name]) == pytest.approx(3.92 * np.std([each[name] for each in values]), rel=0.25), name


def test_a_share_has_the_bounds_of_clopper_and_pearson() -> None:
    right = np.arange(50) < 41
    found = estimates.share(right, np.arange(50), 50)
    assert (found.low, found.high) == pytest.approx(tuple(binomtest(41, 50).proportion_ci(method="exact")))


def test_a_share_of_groups_has_the_bounds_of_korn_and_graubard() -> None:
    """20 groups of 5, of which 16 are all right: as sure as 16 of 20, and a little less for the t distribution."""
    right, group = np.arange(100) < 80, np.arange(100) // 5
    found = estimates.share(right, group, 20)
    n = 19 * 100 / 99 * (t.ppf(0.975, 99) / t.ppf(0.975, 19)) ** 2
    bounds = beta.ppf([0.025, 0.975], [0.8 * n, 0.8 * n + 1], [0.2 * n + 1, 0.2 * n])
    assert (found.low, found.high) == pytest.approx(tuple(bounds))


def test_the_bounds_of_f1_are_those_of_the_hits_among_called_or_present() -> None:
    called, present = np.arange(40) < 20, (np.arange(40) >= 8) & (np.arange(40) < 25)
    found = estimates.f1(called, present, np.arange(40), 40)
    low, high = binomtest(12, 25).proportion_ci(method="exact")
    assert found.value == pytest.approx(24 / 37)
    assert (found.low, found.high) == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))


def test_the_mean_of_two_independent_shares_is_as_sure_as_newcombe_says() -> None:
    """Balanced accuracy of two classes: the distances to the ends of both recalls, squared, added and halved."""
    labels = np.repeat([0, 1], [40, 10])
    called = np.where(np.arange(50) % 5 == 0, 1 - labels, labels)
    low, high = evaluate(labels, np.eye(2)[called], 1)["balanced_accuracy"]
    ends = [binomtest(right, n).proportion_ci(method="exact") for right, n in ((32, 40), (8, 10))]
    down, up = (np.sqrt(sum((0.8 - end[i]) ** 2 for end in ends)) / 2 for i in (0, 1))
    assert (low, high) == pytest.approx((0.8 - down, 0.8 + up))


# --- what is reported -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [2, 4])
def test_the_number_itself_lies_inside(c: int) -> None:
    labels, logits = classes(400, c, seed=10)
    check_hold(evaluate(labels, logits, 1), metrics.evaluate(labels, logits, 1))


def test_findings_have_the_intervals_of_their_summary() -> None:
    labels, logits = findings(400, seed=11)
    check_hold(evaluate_findings(labels, logits), metrics.evaluate_findings(labels, logits))


def test_one_finding_has_the_intervals_of_two_classes() -> None:
    labels, logits = classes(200, 2, seed=12)
    z = logits[:, 1] - logits[:, 0]
    check_equal(evaluate_findings(labels[:, None].astype(float), z[:, None]), evaluate(labels, logits, 1))


def test_a_finding_that_is_never_known_changes_nothing() -> None:
    labels, logits = findings(60, seed=4)
    more = evaluate_findings(np.c_[labels, np.full(60, np.nan)], np.c_[logits, np.zeros(60)])
    check_equal(more, evaluate_findings(labels, logits))


def test_the_order_of_the_rows_is_no_matter() -> None:
    labels, logits = classes(100, 3, seed=6)
    order, groups = np.random.default_rng(7).permutation(100), np.arange(100) // 3
    check_equal(
        evaluate(labels[order], logits[order], 1, groups=groups[order]), evaluate(labels, logits, 1, groups=groups)
    )


def test_a_number_that_does_not_exist_has_no_interval() -> None:
    labels, logits = np.ones(30, dtype=int), np.random.default_rng(16).standard_normal((30, 2))
    found = evaluate(labels, logits, 1)
    assert set(metrics.SCALARS) - set(found) == {"auroc", "auprc", "specificity"}
    check_hold(found, metrics.evaluate(labels, logits, 1))


def test_nothing_known_has_no_intervals() -> None:
    assert evaluate_findings(np.full((5, 2), np.nan), np.zeros((5, 2))) == {}


# --- groups -----------------------------------------------------------------------------------------------------------


def test_ten_copies_of_every_row_are_no_ten_rows() -> None:
    labels, logits = classes(200, 2, seed=13)
    once = evaluate(labels, logits, 1)
    labels, logits, groups = np.repeat(labels, 10), np.repeat(logits, 10, axis=0), np.repeat(np.arange(200), 10)
    blind, grouped = evaluate(labels, logits, 1), evaluate(labels, logits, 1, groups=groups)
    for name in ("accuracy", "auroc", "loss", "f1", "auprc", "brier", "ece", "balanced_accuracy"):
        assert width(grouped[name]) > 2 * width(blind[name]), name
        assert width(grouped[name]) == pytest.approx(width(once[name]), rel=0.1), name


def test_groups_of_one_row_are_rows_whatever_their_numbers() -> None:
    labels, logits = classes(100, 2, seed=14)
    assert evaluate(labels, logits, 1, groups=np.arange(100) * 7 - 50) == evaluate(labels, logits, 1)


def test_findings_are_of_groups_too() -> None:
    labels, logits = findings(100, seed=15)
    once, groups = evaluate_findings(labels, logits), np.repeat(np.arange(100), 4)
    grouped = evaluate_findings(np.repeat(labels, 4, axis=0), np.repeat(logits, 4, axis=0), groups=groups)
    for name in once:
        assert width(grouped[name]) == pytest.approx(width(once[name]), rel=0.1), name


# --- two heads on the same rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, np.arange(600) // 4 * 7], ids=["rows", "groups"])
@pytest.mark.parametrize(("c", "thresholds"), [(2, (None, None)), (2, (0.3, 0.7)), (4, (None, None))])
def test_the_interval_of_a_difference_is_as_wide_as_resampling_makes_it(
    c: int, thresholds: tuple[float | None, float | None], groups: Array | None
) -> None:
    labels, before = classes(600, c, seed=20)
    after = before + np.random.default_rng(21).standard_normal(before.shape)
    found = paired(labels, before, after, 1, thresholds=thresholds, groups=groups)

    def difference(rows: Array) -> dict[str, float]:
        one, other = (
            metrics.evaluate(labels[rows], z[rows], 1, at) for z, at in zip((before, after), thresholds, strict=True)
        )
        return {name: other[name] - one[name] for name in COMPARED}

    units = np.arange(600).reshape(-1, 1 if groups is None else 4)
    rng = np.random.default_rng(4)
    drawn = [difference(units[rng.integers(0, len(units), len(units))].ravel()) for _ in range(80)]
    assert set(found) == set(COMPARED)
    for name, value in difference(np.arange(600)).items():
        np.testing.assert_allclose(found[name][0], value, atol=1e-12, err_msg=name)
        spread = np.std([one[name] for one in drawn])
        assert found[name][2] - found[name][1] == pytest.approx(3.92 * spread, rel=0.3), name


def test_the_difference_of_findings_is_that_of_their_summaries() -> None:
    labels, before = findings(70, seed=22)
    after = before + np.random.default_rng(23).standard_normal(before.shape)
    found = paired_findings(labels, before, after, groups=np.arange(70) // 2)
    one, other = (metrics.evaluate_findings(labels, z) for z in (before, after))
    for name, (value, low, high) in found.items():
        assert value == pytest.approx(other[name] - one[name]), name
        assert low < value < high, name


def test_nothing_lies_between_a_head_and_itself() -> None:
    labels, logits = classes(90, 3, seed=24)
    assert paired(labels, logits, logits, 0) == dict.fromkeys(COMPARED, (0.0, 0.0, 0.0))
    labels, logits = classes(90, 2, seed=24)
    at = {"thresholds": (0.3, 0.3), "groups": np.arange(90) // 3}
    assert paired(labels, logits, logits, 1, **at) == dict.fromkeys(COMPARED, (0.0, 0.0, 0.0))
    labels, logits = findings(90, seed=25)
    assert paired_findings(labels, logits, logits) == dict.fromkeys(COMPARED, (0.0, 0.0, 0.0))


def test_two_heads_that_are_both_right_everywhere_may_differ_elsewhere() -> None:
    """McNemar's table without a row that disagrees: the interval is that of one that does."""
    labels = np.array([0, 1] * 20)
    for value, low, high in paired(labels, 5 * np.eye(2)[labels], 3 * np.eye(2)[labels], 1).values():
        assert value == 0
        assert -0.3 < low < -0.02
        assert high == pytest.approx(-low)


def test_turning_the_heads_round_turns_the_sign() -> None:
    labels, before = classes(80, 2, seed=26)
    after = np.random.default_rng(27).standard_normal(before.shape)
    there, back = (paired(labels, *heads, 1) for heads in ((before, after), (after, before)))
    assert there["auroc"][0] < 0
    for name, (value, low, high) in there.items():
        np.testing.assert_allclose(back[name], (-value, -high, -low), atol=1e-12, err_msg=name)


def test_a_pair_says_more_than_two_intervals_side_by_side() -> None:
    """What makes rows hard for both heads is not what tells them apart."""
    labels, before = classes(200, 2, seed=28)
    after = before + 0.05 * np.random.default_rng(29).standard_normal(before.shape)
    value, low, high = paired(labels, before, after, 1)["auroc"]
    assert low <= value <= high
    assert high - low < 0.5 * width(evaluate(labels, before, 1)["auroc"])


def test_a_number_that_does_not_exist_has_no_difference() -> None:
    labels, logits = np.zeros(30, dtype=int), classes(30, 2, seed=30)[1]
    assert set(paired(labels, logits, -logits, 1)) == set(COMPARED) - {"auroc", "recall", "f1"}


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
