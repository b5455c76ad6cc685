"""From logits to probabilities that mean what they say, and from probabilities to a decision.

Both are chosen on rows kept out of the training and then held fixed: a temperature or a threshold chosen on the test
rows flatters them. Knows nothing of Runs, and does not say whether a rule is the right one for a disease: `youden`
counts a missed case and a false alarm (each as a share of its class) alike, which is seldom what a clinic would do.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from featcache.errors import UsageError

Array = np.ndarray[Any, Any]

COLDEST, HOTTEST = 0.01, 100.0
OPERATING_RULES = ("youden", "f1", "sensitivity=0.95", "specificity=0.90")
_WITH_VALUE = {"youden": False, "f1": False, "sensitivity": True, "specificity": True}


@dataclass(frozen=True)
class OperatingRule:
    """How a threshold is chosen: a name, and the value to reach where the name needs one. Prints as it was typed.

    Raises:
        ValueError: an unknown name, a value missing, not wanted or outside (0, 1].
    """

    name: str
    value: float | None = None
    typed: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.name not in _WITH_VALUE:
            raise ValueError(f"name must be one of {', '.join(_WITH_VALUE)}, got {self.name}")
        if _WITH_VALUE[self.name] != (self.value is not None):
            raise ValueError(f"{self.name} {'needs a' if self.value is None else 'takes no'} value")
        if self.value is not None and not 0.0 < self.value <= 1.0:
            raise ValueError(f"{self.name} must be above 0 and at most 1, got {self.value}")

    def __str__(self) -> str:
        return self.typed or (self.name if self.value is None else f"{self.name}={self.value}")


def parse_rule(text: str) -> OperatingRule:
    """The rule for `youden`, `f1`, `sensitivity=0.95` or `specificity=0.90` (any value above 0 and at most 1).

    Raises:
        UsageError: anything else, naming the four spellings.
    """
    name, equals, value = text.partition("=")
    try:
        return OperatingRule(name, float(value) if equals else None, typed=text)
    except ValueError as e:
        raise UsageError(
            f"{text!r} is no rule for an operating point. Give one of {', '.join(OPERATING_RULES)}; a value is above 0 "
            f"and at most 1."
        ) from e


def temperature(labels: Array, logits: Array) -> float:
    """The T for which softmax(logits / T) has the lowest mean cross entropy on these rows.

    Temperature scaling of Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2: dividing by T
    changes no ranking and no argmax, only how sure the probabilities are. The loss is convex in 1/T, so the search
    has one minimum to find.

    Args:
        labels: (n,) class indices; n may not be 0.
        logits: (n, c).

    Returns:
        T between 0.01 and 100. Rows without an error have no best T: the lower bound; logits worse than a guess, the
        upper one. Never a T with a higher loss than T = 1.
    """
    logits = logits.astype(np.float64)
    rows = np.arange(len(labels))

    def loss(t: float) -> float:
        return float(-np.mean(log_softmax(logits / t, axis=1)[rows, labels]))

    bounds = (math.log(COLDEST), math.log(HOTTEST))
    inner = math.exp(minimize_scalar(lambda log_t: loss(math.exp(log_t)), bounds=bounds, method="bounded").x)
    return min((COLDEST, HOTTEST, 1.0, inner), key=loss)  # of equal losses the first: the search never reaches a bound


def operating_point(labels: Array, p_positive: Array, rule: OperatingRule) -> float:
    """The threshold t for calling a row positive when p >= t.

    `youden` has the highest sensitivity + specificity - 1 (Youden, "Index for rating diagnostic tests", 1950), `f1` the
    highest F1; of equally good thresholds the one nearest 0.5, then the higher. `sensitivity=s` is the highest
    threshold whose sensitivity is at least s, `specificity=s` the lowest whose specificity is at least s.

    Args:
        labels: (n,) bools or 0/1.
        p_positive: (n,) probabilities of the positive class.
        rule: from `parse_rule`.

    Returns:
        Midway between the last score called positive and the next lower one, so that no single row sits on the edge;
        midway to 0 where every row is called, midway to 1 where none is. In (0, 1), unless an end leaves no room: 0.0
        where rows with p = 0 are called too, the first float above 1 where a row with p = 1 may not be called.

    Raises:
        UsageError: only one class in the labels, with the counts.
    """
    truth = np.asarray(labels).astype(bool)
    n_present, n_absent = int(truth.sum()), int(np.sum(~truth))
    if not n_present or not n_absent:
        raise UsageError(
            f"an operating point needs rows of both classes, got {n_present} positive and {n_absent} negative. Choose "
            f"it on a split that holds both."
        )
    thresholds, hits, alarms = _every_threshold(truth, np.asarray(p_positive, dtype=np.float64))
    if rule.value is None:
        merit = _merit(rule.name, hits, alarms, n_present, n_absent)
        best = thresholds[merit == merit.max()]
        return float(best[np.argmin(np.abs(best - 0.5))])
    if rule.name == "sensitivity":
        return float(thresholds[hits / n_present >= rule.value][0])
    return float(thresholds[(n_absent - alarms) / n_absent >= rule.value][-1])


def _merit(name: str, hits: Array, alarms: Array, n_present: int, n_absent: int) -> Array:
    """What `youden` and `f1` maximise, in a form in which equally good thresholds are equal to the last bit."""
    if name == "f1":
        return np.asarray(2 * hits / (hits + alarms + n_present))
    return np.asarray(hits * n_absent - alarms * n_present)  # J times both counts


def _every_threshold(truth: Array, p: Array) -> tuple[Array, Array, Array]:
    """Every way to cut m distinct scores: (m + 1,) descending thresholds, true and false positives of each."""
    scores, group = np.unique(-p, return_inverse=True)
    n_rows = np.bincount(group)
    n_present = np.bincount(group, weights=truth).astype(np.int64)
    hits = np.concatenate([[0], np.cumsum(n_present)])
    alarms = np.concatenate([[0], np.cumsum(n_rows - n_present)])
    top = 1.0 if -scores[0] < 1.0 else math.nextafter(1.0, 2.0)
    called, below = np.concatenate([[top], -scores]), np.concatenate([-scores, [0.0]])
    middle = (called + below) / 2
    return np.where(middle > below, middle, called), hits, alarms  # neighbouring floats have no middle
