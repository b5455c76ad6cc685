"""Confounders: variables such as hospital, format or size that can be predicted from the vectors.

If a variable can be predicted from the vectors and differs between the classes, the performance of a head may rest on
it.
Each variable is predicted from the vectors by logistic regression on grouped folds: each value against the rest;
numbers are cut into fifths. The score is the AUROC; 0.5 is chance. `shortcuts` predicts the label from the variables.
Knows neither files nor images. Letters: n rows, d features, k components, c classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from featcache import metrics, splits
from featcache.heads.jobs import Fit, Pool
from featcache.heads.optim import Targets
from featcache.heads.solvers import solve_all
from featcache.metrics import estimates
from featcache.metrics.estimates import Estimate
from featcache.specs import HeadSpec
from featcache.splits import Fold
from featcache.threads import one_thread

Array = np.ndarray[Any, Any]

CHANCE = 0.5
FOLDS = 5
COMPONENTS = 128
MAX_CLASSES = 12  # values of a categorical variable; numbers with more values are cut into fifths
MAX_ROWS = 20_000  # rows of one training fold, and of one score
_MIN_GROUPS = 2 * FOLDS  # groups that a value needs to be a class
_WIDER = math.sqrt(1 + FOLDS / (FOLDS - 1))  # see `score`
_C = 0.1  # inverse penalty, of components of variance 1
_BLOCK = 4096  # rows
_LEAST_PART = 0.1  # of the rows
_RARE = "(rare)"
_UNKNOWN = -1


@dataclass(frozen=True)
class Variable:
    """A variable of n images that is not the label, such as a column or the image width.

    Attributes:
        name: name of the variable.
        classes: c names of values, or of ranges of numbers.
        codes: (n,) class numbers, -1 for unknown.
        numbers: (n,) numeric values, NaN for unknown; None for a categorical variable.
    """

    name: str
    classes: Sequence[str]
    codes: Array
    numbers: Array | None = None

    @classmethod
    def of(cls, name: str, texts: Sequence[str], groups: Array) -> "Variable | str":
        """A variable from n texts (empty for unknown), or the reason why the texts are not tested.

        Values in too few groups for the folds are merged into "(rare)", as are all but the most frequent of many. If
        the frequent values cover less than half of the images, the texts are taken for free text.
        """
        n_different = len(set(texts) - {""})
        if n_different > MAX_CLASSES and (numbers := _numbers(texts)) is not None:
            return cls._of_numbers(name, numbers, groups)
        names = _frequent(texts, groups)
        if n_different > MAX_CLASSES and 2 * sum(text in names for text in texts) < sum(map(bool, texts)):
            return f"{n_different:,} different texts"
        if len(names) < 2:
            return "the same everywhere, but for a few" if n_different > 1 else "the same everywhere"
        rare = names.index(_RARE) if _RARE in names else _UNKNOWN
        codes = np.array([names.index(t) if t in names else rare if t else _UNKNOWN for t in texts])
        return cls(name, names, codes)

    @classmethod
    def _of_numbers(cls, name: str, numbers: Array, groups: Array) -> "Variable | str":
        """Fifths, as far as ties allow; or the most frequent number against the rest."""
        is_finite = np.isfinite(numbers)
        edges = _edges(numbers[is_finite])
        if len(edges):
            words = [f"{value:.6g}" for value in edges]
            names = [f"<= {words[0]}", *map(" to ".join, pairwise(words)), f"> {words[-1]}"]
            codes = np.searchsorted(edges, numbers, side="left")
        else:
            values, counts = np.unique(numbers[is_finite], return_counts=True)
            usual = values[counts.argmax()]
            names, codes = [f"{usual:.6g}", "others"], (numbers != usual).astype(np.int64)
        codes = np.where(is_finite, codes, _UNKNOWN)
        if min(len(np.unique(groups[codes == code])) for code in range(len(names))) < min(_MIN_GROUPS, FOLDS):
            return "the same everywhere, but for a few"
        return cls(name, names, codes, numbers)

    def predictors(self) -> Array:
        """(n, k) float32 predictors: the numbers with NaN for unknown, or one-hot classes with a column for unknown."""
        if self.numbers is not None:
            largest = float(np.finfo(np.float32).max)
            return np.clip(self.numbers, -largest, largest).astype(np.float32)[:, None]
        levels = np.where(self.codes < 0, len(self.classes), self.codes)
        return np.eye(len(self.classes) + 1, dtype=np.float32)[levels]


@dataclass(frozen=True)
class OneClass:
    """The AUROC of one class against the rest, with its 95 % confidence interval."""

    name: str
    auroc: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """An out-of-fold AUROC.

    Attributes:
        auroc: AUROC of two classes, or the macro average of one class against the rest.
        low, high: 95 % confidence interval.
        n_rows: number of rows.
        n_classes: number of classes c.
        by_class: AUROC of each class against the rest; of two classes, only the last.
    """

    auroc: float
    low: float
    high: float
    n_rows: int
    n_classes: int
    by_class: Sequence[OneClass] = ()

    @property
    def above_chance(self) -> bool:
        """Whether the interval lies above 0.5."""
        return self.low > CHANCE

    @property
    def best(self) -> OneClass:
        """The class with the highest AUROC."""
        return max(self.by_class, key=lambda class_score: class_score.auroc)


@dataclass(frozen=True)
class Confound:
    """A tested variable.

    Attributes:
        name: name of the variable.
        classes: its values or ranges.
        from_vectors: AUROC of the variable predicted from the vectors; None for the reason `reason`.
        label_score: AUROC of the label predicted from the variable; None if the label cannot be learned.
        reason: why there is no score; empty otherwise.
    """

    name: str
    classes: Sequence[str]
    from_vectors: Score | None
    label_score: Score | None
    reason: str = ""


@one_thread()
def components(x: Array, seed: int = 0) -> Array:
    """(n, k) float32 first principal components of the vectors, scaled to variance 1; k at most 128.

    Variables are predicted from these so that many are tested in seconds. On 5,840 X-rays (MobileNetV2, 1,280 features)
    the AUROC of the label is 0.988 from the components and 0.991 from all features, which takes many times as long.

    Args:
        x: (n, d) floats, n at least 2; the decomposition uses a random sample of at most `MAX_ROWS` rows.
        seed: seed of the sample and of the randomised decomposition.
    """
    from sklearn.decomposition import PCA

    drawn = np.sort(np.random.default_rng(seed).permutation(len(x))[:MAX_ROWS])
    k = min(COMPONENTS, x.shape[1], len(drawn) - 1)
    with np.errstate(invalid="ignore"):  # of vectors that are all the same no share of the variance is explained
        pca = PCA(n_components=k, whiten=True, random_state=seed).fit(rows_of(x, drawn))
    blocks = [pca.transform(x[start : start + _BLOCK]) for start in range(0, len(x), _BLOCK)]
    return np.concatenate(blocks).astype(np.float32)


def out_of_fold(x: Array, y: Array, n_classes: int, folds: Sequence[Fold], seed: int = 0) -> Array:
    """(n, c) out-of-fold logits of logistic regressions.

    Args:
        x: (n, d) float32.
        y: (n,) class numbers.
        n_classes: c.
        folds: folds in which each row is a validation row once.
        seed: seed of the sample of training rows, if a fold has more than `MAX_ROWS`.
    """
    rng = np.random.default_rng(seed)
    training_rows = [np.sort(rng.permutation(fold.train)[:MAX_ROWS]) for fold in folds]
    spec = HeadSpec.of("logreg", C=_C)
    fits = [Fit(spec, Pool(train), train, fold.val) for train, fold in zip(training_rows, folds, strict=True)]
    logits = np.empty((len(y), n_classes), dtype=np.float32)
    for fitted in solve_all(fits, torch.from_numpy(x), Targets(y[None], n_classes, n_classes - 1)):
        logits[fitted.fit.val] = fitted.logits
    return logits


def score(y: Array, logits: Array, groups: Array, classes: Sequence[str], seed: int = 0) -> Score:
    """The AUROC of out-of-fold logits with its interval, on at most about `MAX_ROWS` rows (a sample of whole groups).

    The interval of the rows ignores the training: the heads of different folds share most of their training rows, and
    an excess of a class in one fold is a lack in the others. It is therefore widened by sqrt(1 + k n2 / n1), 1.5 for
    five folds, the correction of Nadeau and Bengio ("Inference for the generalization error", Machine Learning 52,
    2003) for resampled scores. Of 180 variables that were independent of the vectors, 3 intervals lay above chance;
    without the correction 15 did.

    Args:
        y: (n,) class numbers.
        logits: (n, c).
        groups: (n,) group numbers.
        classes: c names.
        seed: seed of the sample.
    """
    rows = _drawn(groups, seed)
    y, logits = y[rows], logits[rows]
    names, group = np.unique(groups[rows], return_inverse=True)
    counted = metrics.counted(len(classes), len(classes) - 1)
    present = [c for c in counted if (y == c).any()]
    areas = [estimates.auroc(y == c, metrics.log_odds(logits, c), group, len(names)) for c in present]
    whole = _widened(estimates.mean(areas) if len(areas) > 1 else areas[0])
    by_class = [OneClass(classes[c], *_widened(area)) for c, area in zip(present, areas, strict=True)]
    return Score(*whole, len(rows), len(classes), by_class)


def _widened(estimate: Estimate) -> tuple[float, float, float]:
    value = estimate.value
    low, high = value - _WIDER * (value - estimate.low), value + _WIDER * (estimate.high - value)
    return value, max(0.0, low), min(1.0, high)


def score_of(variable: Variable, x: Array, groups: Array, seed: int = 0) -> Score:
    """The AUROC of a variable predicted from x, on the rows where the variable is known.

    Args:
        variable: variable of n rows.
        x: (n, d) float32.
        groups: (n,) group numbers.
        seed: seed of folds and samples.

    Raises:
        UsageError: groups too large or too uneven for the folds, with the counts.
    """
    rows = np.flatnonzero(variable.codes >= 0)
    y, groups, n_classes = variable.codes[rows], groups[rows], len(variable.classes)
    folds = splits.k_folds(np.array(variable.classes)[y], groups, FOLDS, seed)
    return score(y, out_of_fold(rows_of(x, rows), y, n_classes, folds, seed), groups, variable.classes, seed)


def rows_of(x: Array, rows: Array) -> Array:
    """Some rows in ascending order, without a copy if all are selected."""
    return x if len(rows) == len(x) else x[rows]


def _frequent(texts: Sequence[str], groups: Array) -> list[str]:
    """The sorted values that are in enough groups, and "(rare)" if the other values together are."""
    groups_of: dict[str, set[int]] = {}
    for text, group in zip(texts, groups.tolist(), strict=True):
        if text:
            groups_of.setdefault(text, set()).add(group)
    names = sorted(groups_of, key=lambda text: (-len(groups_of[text]), text))
    names = sorted(text for text in names[: MAX_CLASSES - 1] if len(groups_of[text]) >= _MIN_GROUPS)
    rare = set().union(*(group_set for text, group_set in groups_of.items() if text not in names))
    return [*names, _RARE] if len(rare) >= _MIN_GROUPS else names


def _numbers(texts: Sequence[str]) -> Array | None:
    """(n,) numbers, NaN for unknown; None if a text is not a finite number."""
    try:
        numbers = np.array([float(text) if text else math.nan for text in texts])
    except ValueError:
        return None
    is_present = np.array([bool(text) for text in texts])
    return numbers if np.isfinite(numbers[is_present]).all() else None


def _edges(numbers: Array) -> Array:
    """Upper edges of the first four fifths, as far as every part has a tenth of the numbers."""
    edges: list[float] = []
    below = 0.0
    for edge in np.unique(np.quantile(numbers, np.arange(1, 5) / 5, method="lower")).tolist():
        share = float(np.mean(numbers <= edge))
        if share - below >= _LEAST_PART and 1 - share >= _LEAST_PART:
            edges.append(edge)
            below = share
    return np.array(edges)


def _drawn(groups: Array, seed: int) -> Array:
    """All rows, or a random sample of whole groups with about `MAX_ROWS` rows."""
    if len(groups) <= MAX_ROWS:
        return np.arange(len(groups))
    names, place, size = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    sampled = order[: int(np.searchsorted(np.cumsum(size[order]), MAX_ROWS)) + 1]
    return np.flatnonzero(np.isin(place, sampled))
