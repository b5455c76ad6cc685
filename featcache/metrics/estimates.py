"""Estimates of single metrics: value, 95 % confidence interval and the influence of each group.

The standard error is that of the influence function: the sum over groups of squared contributions, so that rows of one
patient are not treated as independent. For AUROC this is the variance of DeLong (1988), with groups that of Obuchowski
(1997); for proportions it is the linearised variance of survey statistics.

The scale: proportions have exact binomial bounds at the effective number of rows, AUROC and average precision are
normal on the logit scale, losses on the logarithmic scale. If all rows agree, the standard error is 0 and the bound is
the population value under which this result has a probability of 2.5 %.

Independent of classes, heads and thresholds. Letters: n rows, g groups, m positive and k negative rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betaincinv, expit, logit, ndtr, ndtri, owens_t, stdtrit
from scipy.stats import rankdata

Array = np.ndarray[Any, Any]

TAIL = 0.025  # on either side of an interval
_MOST = 700.0  # exponent that a float still has
_NOTHING = 1e-24  # a variance that is rounding


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % confidence interval.

    Attributes:
        value: the estimate.
        low, high: the interval; contains the estimate.
        influence: (g,) first-order contribution of each group to the error of the estimate.
        uses: (g,) whether a group has rows in the estimate.
        df: degrees of freedom of the standard error.
        step: change of the estimate by one more discordant row; 0 if not applicable.
        error: standard error, if larger than that of the influences; otherwise None.
    """

    value: float
    low: float
    high: float
    influence: Array
    uses: Array
    df: float
    step: float = 0.0
    error: float | None = None


# --- proportions ------------------------------------------------------------------------------------------------------


def share(right: Array, group: Array, n_groups: int) -> Estimate:
    """A proportion: Clopper and Pearson's exact bounds (Biometrika 26, 1934) at the effective number of rows.

    With groups this is the interval of Korn and Graubard ("Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", Survey Methodology 24, 1998): the number of rows is divided
    by the design effect and by the squared ratio of the quantiles of t. If all rows agree, the design effect is
    unknown, and the rows of a group are treated as copies: n² / sum of size² (Kish, "Survey Sampling", 1965, section
    8.2).

    Args:
        right: (n,) bools.
        group: (n,) numbers from 0 to g - 1.
        n_groups: g.
    """
    n = len(right)
    if n == 0:
        return Estimate(0.0, 0.0, 1.0, np.zeros(n_groups), np.zeros(n_groups, dtype=bool), 0.0, 1.0)
    p = float(np.mean(right))
    sizes = np.bincount(group, minlength=n_groups)
    influence = np.bincount(group, right - p, n_groups) / n
    variance, df, kish = _variance(influence, sizes > 0), float(np.sum(sizes > 0) - 1), effective_size(sizes)
    n_effective = kish
    if variance > 0 and 0 < p < 1:
        simple = p * (1 - p) / (n - 1)  # the variance of n independent rows
        n_effective = n * min(1.0, simple / variance * (_t(n - 1) / _t(df)) ** 2)
    return Estimate(p, *_exact(p, n_effective), influence, sizes > 0, df, 1 / kish)


def f1(predicted: Array, present: Array, group: Array, n_groups: int) -> Estimate:
    """F1 = 2 J / (1 + J) with the Jaccard index J of predicted and true positives: the bounds of J on the scale of F1.

    Args:
        predicted: (n,) bools.
        present: (n,) bools.
        group, n_groups: as in `share`.
    """
    union = predicted | present
    jaccard = share((predicted & present)[union], group[union], n_groups)
    slope = 2 / (1 + jaccard.value) ** 2
    value, low, high = (2 * j / (1 + j) for j in (jaccard.value, jaccard.low, jaccard.high))
    return Estimate(value, low, high, slope * jaccard.influence, jaccard.uses, jaccard.df, slope * jaccard.step)


def effective_size(sizes: Array) -> float:
    """The effective number of rows if the rows of a group were copies (Kish 1965, section 8.2)."""
    return float(sizes.sum() ** 2 / np.sum(sizes.astype(np.float64) ** 2))


# --- rankings ---------------------------------------------------------------------------------------------------------


def auroc(truth: Array, scores: Array, group: Array, n_groups: int) -> Estimate:
    """Area under the ROC curve: DeLong's variance, with groups Obuchowski's, on the logit scale.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988, by the ranks of Sun and Xu ("Fast implementation of DeLong's
    algorithm", IEEE Signal Processing Letters 21, 2014); Obuchowski, "Nonparametric analysis of clustered ROC curve
    data", Biometrics 53, 1997, section 3. On the logit scale as in Pepe, "The Statistical Evaluation of Medical Tests",
    2003, section 5.2. Degrees of freedom as Satterthwaite's, of the two sums.

    With few positives DeLong's variance can be much too small: with 15 positives of 150 and a true area of 0.95 such
    intervals cover it in 91 % of the cases. The variance is therefore at least that of two normal distributions with
    this area, times the design effect.

    For an area of 1 (or 0) the bound is that of a proportion: each of min(m, k) disjoint pairs of a positive and a
    negative row is ordered correctly with the true area A as its probability, so all are with at most A^min(m, k)
    (Hoeffding, "Probability inequalities for sums of bounded random variables", 1963, section 5, on disjoint pairs).

    Args:
        truth: (n,) bools, with both values.
        scores: (n,) ranking scores.
        group, n_groups: as in `share`.
    """
    m, k = int(truth.sum()), int(np.sum(~truth))
    ranks = rankdata(scores)
    above = (ranks[truth] - rankdata(scores[truth])) / k  # (m,) proportion of negatives below each positive
    below = 1 - (ranks[~truth] - rankdata(scores[~truth])) / m
    area = float(above.mean())
    parts = np.empty(len(truth))
    parts[truth], parts[~truth] = (above - area) / m, (below - area) / k
    of_positives = np.bincount(group[truth], parts[truth], n_groups)
    of_negatives = np.bincount(group[~truth], parts[~truth], n_groups)
    sizes = [np.bincount(group[rows], minlength=n_groups) for rows in (truth, ~truth)]
    influence, uses = of_positives + of_negatives, sizes[0] + sizes[1] > 0
    first, second = (_variance(of, size > 0) for of, size in zip((of_positives, of_negatives), sizes, strict=True))
    df = _satterthwaite((first, second), [int(np.sum(size > 0)) - 1 for size in sizes])
    if area in (0.0, 1.0):
        pairs = min(*map(effective_size, sizes), np.sum(uses) / 2)
        low, high = _exact(area, max(1.0, pairs))
        return Estimate(area, low, high, influence, uses, df, error=(high - low) / _t(df))
    if min(np.sum(size > 0) for size in sizes) < 2:
        return Estimate(area, 0.0, 1.0, influence, uses, df)
    variance = first + second + 2 * _covariance(of_positives, of_negatives, uses)
    alone = float(np.sum(parts[truth] ** 2) * m / (m - 1) + np.sum(parts[~truth] ** 2) * k / (k - 1))
    design = max(1.0, variance / alone) if alone > 0 else (m + k) / effective_size(sizes[0] + sizes[1])
    variance = max(variance, design * _of_two_normals(area, m, k))
    return Estimate(area, *_on_logit_scale(area, variance, df), influence, uses, df, error=math.sqrt(variance))


def _of_two_normals(area: float, m: int, k: int) -> float:
    """Variance of the area of m and k rows of two normal distributions of one width: Hanley and McNeil, Radiology 143,
    1982, equation 1; the probability that two rows of one kind are above one of the other is that of a bivariate normal
    with correlation 1/2 (Owen 1956)."""
    d = float(ndtri(area))
    both = area - 2 * float(owens_t(d, math.sqrt(1 / 3)))
    return (area * (1 - area) + (m + k - 2) * (both - area**2)) / (m * k)


def average_precision(truth: Array, scores: Array, group: Array, n_groups: int) -> Estimate:
    """Average precision on the logit scale, as in Boyd, Eng and Page ("Area under the precision-recall curve: point
    estimates and confidence intervals", ECML PKDD 2013, section 3.2); the variance is that of the influence function.

    Args:
        truth: (n,) bools, with both values.
        scores: (n,) ranking scores.
        group, n_groups: as in `share`.
    """
    value, parts = _precision_parts(truth, scores)
    influence = np.bincount(group, parts, n_groups)
    sizes = [np.bincount(group[rows], minlength=n_groups) for rows in (truth, ~truth)]
    uses = sizes[0] + sizes[1] > 0
    df = min(float(np.sum(sizes[0] > 0) - 1), _steadiness(influence, uses))
    if value == 1.0:
        prevalence = float(np.mean(truth))
        bound = _least_precision(effective_size(sizes[0]), effective_size(sizes[1]), (1 - prevalence) / prevalence)
        return Estimate(value, bound, 1.0, influence, uses, df)
    variance = _variance(influence, uses)
    if df < 1 or variance <= 0:
        return Estimate(value, 0.0, 1.0, influence, uses, df)
    return Estimate(value, *_on_logit_scale(value, variance, df), influence, uses, df)


def _precision_parts(truth: Array, scores: Array) -> tuple[float, Array]:
    """Average precision, and its derivative by the weight of each row: (n,)."""
    values, place = np.unique(-scores, return_inverse=True)
    n_rows = np.bincount(place, minlength=len(values))
    n_present = np.bincount(place, truth, len(values))
    n_predicted, m = np.cumsum(n_rows), n_present.sum()
    precision = np.cumsum(n_present) / n_predicted  # at each score
    value = float(np.sum(n_present * precision) / m)
    gain, loss = (np.cumsum((n_present * part / n_predicted)[::-1])[::-1] for part in (1 - precision, precision))
    of_positives = precision - value + gain
    return value, np.where(truth, of_positives[place], -loss[place]) / m


def _least_precision(m: float, k: float, odds: float) -> float:
    """The least average precision that still ranks all m positives above all k negatives with a probability of 2.5 %.

    Of a population let a share a of the positives be above the rest of the positives, and a share f of the negatives
    between them, so that all are in order with probability a^m (1 - f)^k. Of the worst such population the negatives of
    the share f are above all positives, and the others above the positives of the share 1 - a: its average precision is
    a - c ln(1 + a / c) with c = odds f, and for the rest the mean of u / (u + odds). It is minimised over a.
    """
    a = np.linspace(TAIL ** (1 / m), 1.0, 201)
    f = 1 - (TAIL / a**m) ** (1 / k)
    c = odds * np.maximum(f, 1e-300)
    rest = (1 - a) - odds * np.log((1 + odds) / (a + odds))
    return float(np.min(a - c * np.log1p(a / c) + rest))


# --- means ------------------------------------------------------------------------------------------------------------


def mean_loss(losses: Array, if_wrong: Array, group: Array, n_groups: int, most: float = math.inf) -> Estimate:
    """A mean loss, on the logarithmic scale, or on the logit scale if the loss is bounded.

    A few large losses dominate the mean and its variance, so its degrees of freedom are those of `_steadiness`. If the
    rows happen to have no large loss, the variance is too small: a proportion 1 - 0.025^(1/n) of all rows may be absent
    among n rows, so the upper end is at least the mean plus this proportion of the mean loss of wrong predictions.

    Args:
        losses: (n,) from 0 to `most`.
        if_wrong: (n,) loss of each row if another class were true.
        group, n_groups: as in `share`.
        most: upper bound of a loss.
    """
    value, sizes = float(np.mean(losses)), np.bincount(group, minlength=n_groups)
    influence = np.bincount(group, losses - value, n_groups) / len(losses)
    variance, df = _variance(influence, sizes > 0), _steadiness(influence, sizes > 0)
    unseen = 1 - TAIL ** (1 / effective_size(sizes))
    low, high = value * (1 - unseen), value + unseen * float(np.mean(if_wrong))
    if df > 0 and 0 < value < most:
        reach = _t(df) * math.sqrt(variance) / value
        ends = value * math.exp(-reach), value * math.exp(min(reach, _MOST))
        if not math.isinf(most):
            first, last = _on_logit_scale(value / most, variance / most**2, df)
            ends = most * first, most * last
        low, high = min(low, ends[0]), max(high, ends[1])
    return Estimate(value, low, min(high, most), influence, sizes > 0, df)


def calibration_error(gaps: Array, expected: Array, bins: Array, group: Array, n_groups: int) -> Estimate:
    """Expected calibration error: the sum over bins of |mean of outcome − probability|, weighted by rows.

    Noise increases an absolute gap: the mean of |x| of a normal x (folded normal distribution; Leone, Nelson and
    Nottingham, Technometrics 3, 1961) exceeds |mean of x|. Twice this bias, at the observed gaps, widens the interval
    downwards; once would be too little, because observed gaps exceed true gaps. The noise of a bin is at least that of
    calibrated probabilities.

    Args:
        gaps: (n,) outcome (0 or 1) minus probability.
        expected: (n,) variances of the gaps of calibrated probabilities.
        bins: (n,) bin numbers from 0.
        group, n_groups: as in `share`.
    """
    n, n_bins, sizes = len(gaps), int(bins.max()) + 1, np.bincount(group, minlength=n_groups)
    of_cell = np.bincount(bins * n_groups + group, gaps, n_bins * n_groups).reshape(n_bins, n_groups) / n
    gap = of_cell.sum(axis=1)
    noise = np.sqrt(np.maximum(np.sum(of_cell**2, axis=1), np.bincount(bins, expected, n_bins) / n**2))
    value, df = float(np.abs(gap).sum()), float(np.sum(sizes > 0) - 1)
    influence = np.sign(gap) @ of_cell - value * sizes / n
    if not noise.any():
        return Estimate(value, *_exact(value, effective_size(sizes)), influence, sizes > 0, df)
    z = np.abs(gap) / np.maximum(noise, 1e-300)
    bias = float(np.sum(noise * math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2) - 2 * np.abs(gap) * ndtr(-z)))
    reach = _t(df) * float(np.sqrt(np.sum(noise**2)))
    return Estimate(value, max(0.0, value - 2 * bias - reach), min(1.0, value + reach), influence, sizes > 0, df)


def _steadiness(influence: Array, uses: Array) -> float:
    """Degrees of freedom of a variance over g groups that a few groups may dominate: 2 g / (kurtosis - 1), at most
    g - 1; for normal influences this is g (Satterthwaite, from the variance of a sample variance)."""
    n, squares = int(np.sum(uses)), influence**2
    if n < 2 or not squares.any():
        return 0.0
    kurtosis = n * float(np.sum(squares**2)) / float(np.sum(squares)) ** 2
    return min(n - 1.0, 2 * n / max(kurtosis - 1, 1e-9))


# --- means and differences --------------------------------------------------------------------------------------------


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of several estimates from 0 to 1 on the same groups, with an interval from theirs.

    MOVER (Zou and Donner, Statistics in Medicine 27, 2008, section 2; with correlations Zou, Psychological Methods 12,
    2007): the lower end is the mean minus sqrt(sum r_ij d_i d_j) / their number, where d_i is the distance of an
    estimate to its lower end. Correlations are those of the influences, at least 0; an estimate without influences has
    correlation 1 with any estimate that shares groups.
    """
    values, low, high = (
        np.array([getattr(estimate, name) for estimate in estimates]) for name in ("value", "low", "high")
    )
    correlation, n = _correlations(estimates), len(estimates)
    down, up = (math.sqrt(d @ correlation @ d) / n for d in (values - low, high - values))
    value = float(values.mean())
    influence, uses = (
        np.mean([estimate.influence for estimate in estimates], axis=0),
        np.any([e.uses for e in estimates], axis=0),
    )
    step = math.sqrt(sum(estimate.step**2 for estimate in estimates)) / n
    low_end, high_end = max(0.0, value - down), min(1.0, value + up)
    return Estimate(value, low_end, high_end, influence, uses, min(estimate.df for estimate in estimates), step)


def _correlations(estimates: Sequence[Estimate]) -> Array:
    z = np.stack([estimate.influence for estimate in estimates])
    uses = np.stack([estimate.uses for estimate in estimates]).astype(np.float64)
    length = np.sqrt(np.sum(z**2, axis=1))
    products = np.outer(length, length)
    correlations = np.where(products > 0, z @ z.T / np.where(products > 0, products, 1.0), uses @ uses.T > 0)
    np.fill_diagonal(correlations, 1.0)
    return np.clip(correlations, 0.0, 1.0)


def difference(before: Estimate, after: Estimate) -> tuple[float, float, float]:
    """(difference, low, high) of two estimates on the same groups.

    The standard error is that of the differences of influences: for AUROC the paired comparison of DeLong (1988), for
    proportions that of McNemar's table with one more discordant row (Agresti and Min, "Simple improved confidence
    intervals for comparing matched proportions", Statistics in Medicine 24, 2005). Without a discordant row, one per
    half of the groups is assumed.
    """
    value, apart, uses = after.value - before.value, after.influence - before.influence, before.uses | after.uses
    variance, step, df = _variance(apart, uses), max(before.step, after.step), min(before.df, after.df)
    if step == 0 and variance > _NOTHING:
        df = _steadiness(apart, uses)
    if before.error is not None and after.error is not None:
        variance = _apart(before, after, before.error, after.error)
    if variance < _NOTHING:
        step = step or 2 / max(2.0, float(np.sum(uses)))
    reach = _t(df) * math.sqrt(variance + step**2)
    return value, max(-1.0, value - reach), min(1.0, value + reach)


def _apart(one: Estimate, other: Estimate, *errors: float) -> float:
    """Variance of a difference, from two standard errors and the correlation of the influences."""
    lengths = math.sqrt(float(one.influence @ one.influence) * float(other.influence @ other.influence))
    correlation = float(one.influence @ other.influence) / lengths if lengths > 0 else 0.0
    return errors[0] ** 2 + errors[1] ** 2 - 2 * min(correlation, 1.0) * errors[0] * errors[1]


# --- scales -----------------------------------------------------------------------------------------------------------


def _variance(influence: Array, uses: Array) -> float:
    return _covariance(influence, influence, uses)


def _covariance(one: Array, other: Array, uses: Array) -> float:
    n = int(np.sum(uses))
    return float(one @ other * n / (n - 1)) if n > 1 else 0.0


def _satterthwaite(variances: Sequence[float], dfs: Sequence[float]) -> float:
    """Degrees of freedom of a sum of variances (Satterthwaite, Biometrics Bulletin 2, 1946)."""
    spread = sum(v**2 / df for v, df in zip(variances, dfs, strict=True) if df > 0)
    return sum(variances) ** 2 / spread if spread > 0 else float(max(1, min(dfs)))


def _t(df: float) -> float:
    return float(stdtrit(max(df, 1.0), 1 - TAIL))


def _exact(p: float, n: float) -> tuple[float, float]:
    """Clopper and Pearson's bounds for p n of n, which need not be integers."""
    hits, misses = p * n, (1 - p) * n
    low = float(betaincinv(hits, misses + 1, TAIL)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, misses, 1 - TAIL)) if misses > 0 else 1.0
    return min(low, p), max(high, p)


def _on_logit_scale(value: float, variance: float, df: float) -> tuple[float, float]:
    reach = _t(df) * math.sqrt(variance) / (value * (1 - value))
    centre = float(logit(value))
    return min(value, float(expit(centre - reach))), max(value, float(expit(centre + reach)))
