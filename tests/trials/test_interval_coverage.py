"""Of 95 % intervals 89 in 100 held the truth with few positives, and nearly all others lay above it. Simulated binormal
scores of known areas: at least 93 in 100 hold the truth, and they miss it on both sides."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import average_precision_score

from featcache import metrics
from featcache.metrics.intervals import evaluate, paired

Array = np.ndarray[Any, Any]
N_DRAWS = 300
N_ALL = 400_000  # rows that stand for all

# positives, negatives, size of a group, whether rows of a group may be of both kinds
DESIGNS = {
    "75 + 75": (75, 75, 1, False),
    "15 of 150": (15, 135, 1, False),
    "30 of 600": (30, 570, 1, False),
    "75 + 75 in groups of 3": (75, 75, 3, False),
    "75 + 75 in mixed groups of 3": (75, 75, 3, True),
    "30 of 150 in groups of 3": (30, 120, 3, False),
}


def draw(design: tuple[int, int, int, bool], area: float, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """(n,) labels, (n,) scores with this area between two normal distributions, correlated by 0.5 within a group of
    patients' images, and (n,) groups."""
    n_positive, n_negative, size, mixed = design
    labels = np.repeat([1, 0], [n_positive, n_negative])
    groups = np.arange(len(labels)) // size
    if mixed:
        labels = rng.permutation(labels)
    shared = 0.5 if size > 1 else 0.0
    noise = np.sqrt(shared) * rng.standard_normal(groups.max() + 1)[groups]
    noise += np.sqrt(1 - shared) * rng.standard_normal(len(labels))
    return labels, noise + shift(area) * labels, groups


def shift(area: float) -> float:
    return float(np.sqrt(2) * norm.ppf(area))


def as_logits(scores: Array, area: float, share: float) -> Array:
    """(n, 2) logits whose probabilities are right."""
    d = shift(area)
    return metrics.two_columns(d * (scores - d / 2) + np.log(share / (1 - share)))


def truth(area: float, share: float, threshold: float) -> dict[str, float]:
    """Of all rows."""
    rng = np.random.default_rng(99)
    labels = (rng.random(N_ALL) < share).astype(int)
    scores = rng.standard_normal(N_ALL) + shift(area) * labels
    logits = as_logits(scores, area, share)
    numbers = metrics.evaluate(labels, logits, 1, threshold)
    p = expit(logits[:, 1])
    assert np.isclose(numbers["auprc"], average_precision_score(labels, p), atol=1e-6)
    return {name: numbers[name] for name in metrics.SCALARS} | {"auroc": area}


def misses(design: tuple[int, int, int, bool], area: float) -> dict[str, tuple[int, int]]:
    """How many of the intervals lie above the truth, and how many below it, by number. A row is called positive halfway
    between the two distributions, whatever the share of positives."""
    share = design[0] / (design[0] + design[1])
    true, counts = truth(area, share, share), {name: np.zeros(2, dtype=int) for name in metrics.SCALARS}
    rng = np.random.default_rng([*map(int, design), int(100 * area)])
    for _ in range(N_DRAWS):
        labels, scores, groups = draw(design, area, rng)
        found = evaluate(labels, as_logits(scores, area, share), 1, threshold=share, groups=groups)
        for name, (low, high) in found.items():
            counts[name] += (true[name] < low, true[name] > high)
    return {name: (int(above), int(below)) for name, (above, below) in counts.items()}


@pytest.mark.long
@pytest.mark.parametrize("area", [0.85, 0.95])
@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)
def test_intervals_hold_the_truth_as_often_as_they_say(design: tuple[int, int, int, bool], area: float) -> None:
    found = misses(design, area)
    for name, (above, below) in found.items():
        print(f"{name:18} {1 - (above + below) / N_DRAWS:.3f}   too high {above:2d}, too low {below:2d}")
        assert 1 - (above + below) / N_DRAWS >= 0.93, name
    for name in ("auroc", "recall", "specificity", "accuracy"):
        above, below = found[name]
        assert abs(above - below) <= 14, name  # of 15 misses 14 on one side are one case in 2,000


@pytest.mark.long
@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)
def test_differences_of_two_heads_hold_the_truth_as_often_as_they_say(design: tuple[int, int, int, bool]) -> None:
    """The second head sees the same rows with as much noise again, so that its area is lower."""
    share, area = design[0] / (design[0] + design[1]), 0.85
    less = float(norm.cdf(shift(area) / np.sqrt(2 * 1.5)))
    recalls = [norm.cdf(shift(area) / 2 / np.sqrt(v)) for v in (1.0, 1.5)]
    true = {"auroc": less - area, "recall": recalls[1] - recalls[0], "balanced_accuracy": recalls[1] - recalls[0]}
    counts, rng = dict.fromkeys(true, 0), np.random.default_rng([*map(int, design)])
    for _ in range(N_DRAWS):
        labels, scores, groups = draw(design, area, rng)
        worse = scores + np.sqrt(0.5) * rng.standard_normal(len(scores))
        heads = (as_logits(z, area, share) for z in (scores, worse))
        found = paired(labels, *heads, 1, thresholds=(share, share), groups=groups)
        for name, value in true.items():
            counts[name] += not found[name][1] <= value <= found[name][2]
    for name, n in counts.items():
        print(f"{name:18} {1 - n / N_DRAWS:.3f}")
        assert 1 - n / N_DRAWS >= 0.93, name
