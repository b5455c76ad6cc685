"""Temperature scaling of logits, and operating points (decision thresholds).

Both are chosen on validation rows and then fixed; choosing them on test rows would bias the test metrics. The choice of
a rule is clinical: `youden` weights sensitivity and specificity equally, which is rarely appropriate in practice.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax

from featcache.errors import UsageError

Array = np.ndarray[Any, Any]

COLDEST, HOTTEST = 0.05, 20.0
_LEAST_INFORMATION = (1.96 / math.log(2)) ** 2  # of log T: its 95 % interval is from half to twice its value
OPERATING_RULES = ("youden", "f1", "sensitivity=0.95", "specificity=0.90")
_WITH_VALUE = {"youden": False, "f1": False, "sensitivity": True, "specificity": True}


@dataclass(frozen=True)
class OperatingRule:
    """A rule for choosing a threshold: a name and, for some names, a target value. Prints as it was typed.

    Raises:
        ValueError: an unknown name; a missing or superfluous value, or one outside (0, 1].
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
    """Parses `youden`, `f1`, `sensitivity=0.95` or `specificity=0.90` (any value above 0 and at most 1).

    Raises:
        UsageError: any other text.

    Example:
        >>> rule = parse_rule("sensitivity=0.9")
        >>> rule.name, rule.value
        ('sensitivity', 0.9)
    """
    name, equals, value = text.partition("=")
    try:
        return OperatingRule(name, float(value) if equals else None, typed=text)
    except ValueError as e:
        raise UsageError(
            f"{text!r} is no rule for an operating point. Give one of {', '.join(OPERATING_RULES)}; a value is above 0 "
            f"and at most 1."
        ) from e


@dataclass(frozen=True)
class Choice:
    """Temperature and operating point, chosen on validation rows.

    Attributes:
        temperature: divisor of the logits; None if it is not identified by these rows.
        threshold: operating point; None without a rule.
        notes: remarks, such as why there is no temperature or which thresholds are equally good.
    """

    temperature: float | None = None
    threshold: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, labels: Array, logits: Array, positive: int, rule: OperatingRule | None = None) -> "Choice":
        """The temperature and, with a rule, the operating point of (n,) labels and (n, c) logits.

        Raises:
            UsageError: as `operating_point`.
        """
        value = temperature(labels, logits)
        notes, threshold = [about_temperature(labels, logits, value)], None
        if rule:
            z = logits.astype(np.float64)
            truth, p = labels == positive, np.asarray(expit(z[:, positive] - z[:, 1 - positive]))
            threshold = operating_point(truth, p, rule)
            notes.append(about_operating_point(truth, p, rule, threshold))
        return cls(value, threshold, tuple(note for note in notes if note))


def temperature(labels: Array, logits: Array) -> float | None:
    """The T for which softmax(logits / T) has the lowest mean cross entropy on these rows, if it is identified.

    Temperature scaling of Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2: dividing by T
    changes no ranking and no argmax, only the confidence. The loss is convex in 1/T and has a single minimum.

    Args:
        labels: (n,) class indices; n may not be 0.
        logits: (n, c).

    Returns:
        T from 0.05 to 20, never with a higher loss than T = 1; None if it is not identified (see `why_no_temperature`).
        If no row is wrong, the lowest T fits best and would make the next error 20 times as costly.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 2, 400)
        >>> margin = rng.normal(2 * labels - 1, 1.0)  # calibrated log odds would be 2 * margin
        >>> logits = np.stack([-margin, margin], axis=1) * 3  # overconfident by a factor of 3
        >>> 2.5 < temperature(labels, logits) < 3.5
        True
    """
    if why_no_temperature(labels, logits):
        return None
    bounded = min(max(_best_temperature(labels, logits), COLDEST), HOTTEST)  # the best one in between, by convexity
    return min((bounded, 1.0), key=lambda t: _loss(labels, logits, t))


def why_no_temperature(labels: Array, logits: Array) -> str:
    """Why the temperature is not identified by these rows; "" if it is.

    It is not identified if every prediction is correct, because the lowest T is then the best (with separated classes
    the maximum likelihood estimate of a logistic regression does not exist: Albert and Anderson, Biometrika 71, 1984);
    if the logits are no better than chance, because the highest T is then the best; and if the 95 % interval of T is
    wider than a factor of two either way, by the Fisher information of log T, the sum of the variances of logits / T
    under the softmax.
    """
    z, rows = logits.astype(np.float64), np.arange(len(labels))
    right = z[rows, labels]
    other_logits = z.copy()
    other_logits[rows, labels] = -np.inf
    if np.all(z == z[:, :1]):
        return "the logits of all classes are the same"
    if np.all(right >= other_logits.max(axis=1)):
        return f"all {len(labels):,} of them are predicted correctly, so any lower temperature would look better"
    if np.mean(right - z.mean(axis=1)) <= 0:
        return "the head says no more of them than a guess"
    cooled = z / _best_temperature(labels, logits)
    p = softmax(cooled, axis=1)
    information = np.sum(p * cooled**2) - np.sum(np.sum(p * cooled, axis=1) ** 2)
    if information < _LEAST_INFORMATION:
        n_wrong = int(np.sum(right < other_logits.max(axis=1)))
        return f"they are too few: of {len(labels):,}, {n_wrong:,} predicted wrongly, uncertain by a factor of two"
    return ""


def _best_temperature(labels: Array, logits: Array) -> float:
    """Without bounds: from a thousandth to a thousand times the spread of the logits."""
    centre, reach = math.log(float(np.std(logits.astype(np.float64)))), math.log(1000.0)
    optimum = minimize_scalar(
        lambda log_t: _loss(labels, logits, math.exp(log_t)), bounds=(centre - reach, centre + reach), method="bounded"
    )
    return math.exp(optimum.x)


def _loss(labels: Array, logits: Array, t: float) -> float:
    """Mean cross entropy of logits / t, in nats."""
    return float(-np.mean(log_softmax(logits.astype(np.float64) / t, axis=1)[np.arange(len(labels)), labels]))


def about_temperature(labels: Array, logits: Array, value: float | None) -> str:
    """A remark on the result of `temperature`; "" if there is none."""
    if value is None:
        why = why_no_temperature(labels, logits)
        return f"no temperature: the validation rows do not determine it: {why}; probabilities are as trained"
    if value in (COLDEST, HOTTEST):
        bound = "lowest" if value == COLDEST else "highest"
        return (
            f"the temperature {value:g} is the {bound} that is allowed, and the validation rows would need more: "
            f"probabilities are only partly calibrated"
        )
    return ""


def operating_point(labels: Array, p_positive: Array, rule: OperatingRule) -> float:
    """The threshold t from which a row is predicted positive (p >= t).

    `youden` has the highest sensitivity + specificity - 1 (Youden, "Index for rating diagnostic tests", 1950), `f1` the
    highest F1; of equally good thresholds the one nearest 0.5, then the higher. `sensitivity=s` is the highest
    threshold whose sensitivity is at least s, `specificity=s` the lowest whose specificity is at least s.

    Args:
        labels: (n,) bools or 0/1.
        p_positive: (n,) probabilities of the positive class.
        rule: from `parse_rule`.

    If the classes do not overlap, the threshold is the middle of the gap for every rule.

    Returns:
        The midpoint between the lowest score predicted positive and the next lower score; the midpoint to 0 if all rows
        are predicted positive, to 1 if none is. It is in (0, 1) except for 0.0 if rows with p = 0 are predicted
        positive, and the first float above 1 if a row with p = 1 must not be.

    Raises:
        UsageError: only one class in the labels, with the counts.

    Example:
        >>> p = np.array([0.1, 0.3, 0.45, 0.4, 0.7, 0.9])
        >>> t = operating_point(np.array([0, 0, 0, 1, 1, 1]), p, parse_rule("sensitivity=1"))
        >>> round(t, 3)
        0.35
    """
    truth = np.asarray(labels).astype(bool)
    n_present, n_absent = int(truth.sum()), int(np.sum(~truth))
    if not n_present or not n_absent:
        raise UsageError(
            f"an operating point needs rows of both classes, got {n_present} positive and {n_absent} negative. Choose "
            f"it on a split that holds both."
        )
    p = np.asarray(p_positive, dtype=np.float64)
    thresholds, hits, alarms = _every_threshold(truth, p)
    if p[truth].min() > p[~truth].max():
        return float(thresholds[hits - alarms == n_present][0])
    if rule.value is None:
        merit = _merit(rule.name, hits, alarms, n_present, n_absent)
        best = thresholds[merit == merit.max()]
        return float(best[np.argmin(np.abs(best - 0.5))])
    if rule.name == "sensitivity":
        return float(thresholds[hits / n_present >= rule.value][0])
    return float(thresholds[(n_absent - alarms) / n_absent >= rule.value][-1])


def about_operating_point(labels: Array, p_positive: Array, rule: OperatingRule, threshold: float) -> str:
    """A remark on the result of `operating_point`; "" if there is none.

    Args:
        labels, p_positive, rule: as in `operating_point`.
        threshold: the result.
    """
    truth, p = np.asarray(labels).astype(bool), np.asarray(p_positive, dtype=np.float64)
    low, high, n_positive = p[~truth].max(), p[truth].min(), int(np.sum(p >= threshold))
    if high > low:
        return (
            f"operating point: the two classes do not overlap on the {len(p):,} validation rows, so any threshold from "
            f"{low:.3g} to {high:.3g} does as well ({high - low:.2g} wide); {threshold:.3g} is in the middle"
        )
    if n_positive in (0, len(p)):
        rows = "none" if n_positive == 0 else "all"
        return f"operating point: only a threshold that predicts {rows} of the validation rows positive meets {rule}"
    if rule.value is not None:
        return ""
    thresholds, hits, alarms = _every_threshold(truth, p)
    merit = _merit(rule.name, hits, alarms, int(truth.sum()), int(np.sum(~truth)))
    best = thresholds[merit == merit.max()]
    if len(best) == 1:
        return ""
    return (
        f"operating point: {len(best)} thresholds from {best.min():.3g} to {best.max():.3g} are equally good by {rule} "
        f"on the validation rows; {threshold:.3g} is the nearest to 0.5"
    )


def _merit(name: str, hits: Array, alarms: Array, n_present: int, n_absent: int) -> Array:
    """The objective of `youden` or `f1`, in a form in which ties are exact."""
    if name == "f1":
        return np.asarray(2 * hits / (hits + alarms + n_present))
    return np.asarray(hits * n_absent - alarms * n_present)  # J times both counts


def _every_threshold(truth: Array, p: Array) -> tuple[Array, Array, Array]:
    """All thresholds of m distinct scores: (m + 1,) in descending order, with their true and false positives."""
    scores, group = np.unique(-p, return_inverse=True)
    n_rows = np.bincount(group)
    n_present = np.bincount(group, weights=truth).astype(np.int64)
    hits = np.concatenate([[0], np.cumsum(n_present)])
    alarms = np.concatenate([[0], np.cumsum(n_rows - n_present)])
    top = 1.0 if -scores[0] < 1.0 else math.nextafter(1.0, 2.0)
    above, below = np.concatenate([[top], -scores]), np.concatenate([-scores, [0.0]])
    middle = (above + below) / 2
    return np.where(middle > below, middle, above), hits, alarms  # neighbouring floats have no middle
