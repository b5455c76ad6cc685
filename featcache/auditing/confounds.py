"""What gives itself away: how well vectors tell what they should not know.

If a head can tell the hospital, the format or the size of an image from its vector, and these differ between the
classes, its score may be theirs. Each such variable is learnt from the vectors by logistic regression on folds that no
patient crosses: a value against all others, and of numbers each fifth of them. A score is an AUROC, of which 0.5 is
chance. How well the variables alone tell the label is said by `shortcuts`.
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
from featcache.heads import HeadSpec
from featcache.heads.jobs import Fit, Pool
from featcache.heads.objective import Targets
from featcache.heads.solvers import solve_all
from featcache.metrics import estimates
from featcache.metrics.estimates import Estimate
from featcache.splits import Fold
from featcache.threads import one_thread

Array = np.ndarray[Any, Any]

CHANCE = 0.5
FOLDS = 5
COMPONENTS = 128
MAX_CLASSES = 12  # values of a variable; more are numbers that are cut, or no variable
MAX_ROWS = 20_000  # that one head learns from, and that a score is of
_MIN_GROUPS = 2 * FOLDS  # that a value must be in to be a class of its own
_WIDER = math.sqrt(1 + FOLDS / (FOLDS - 1))  # see `score`
_C = 0.1  # inverse penalty, of components of variance 1
_BLOCK = 4096  # rows
_LEAST_PART = 0.1  # of the rows
_RARE = "(rare)"
_UNKNOWN = -1


@dataclass(frozen=True)
class Variable:
    """Something known of n images that is no finding.

    Attributes:
        name: of it.
        classes: c names of what is learnt: values, or parts of the numbers.
        codes: (n,) class numbers, -1 where unknown.
        numbers: (n,) the numbers themselves, NaN where unknown; None where it is no number, or has few values.
    """

    name: str
    classes: Sequence[str]
    codes: Array
    numbers: Array | None = None

    @classmethod
    def of(cls, name: str, texts: Sequence[str], groups: Array) -> "Variable | str":
        """A variable of n texts, empty where unknown; or why it is none.

        Values in too few groups to be on all sides of all folds become one, "(rare)", and so do all but the most
        frequent of many. Of many, these must be half of the images: else they are free text.
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
        """Fifths, as far as equal numbers allow; or one number against all others, where nearly all are that."""
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
        """(n, k) float32: what a label is predicted from. Numbers by value, NaN where unknown; else a column per class
        and one for unknown."""
        if self.numbers is not None:
            largest = float(np.finfo(np.float32).max)
            return np.clip(self.numbers, -largest, largest).astype(np.float32)[:, None]
        levels = np.where(self.codes < 0, len(self.classes), self.codes)
        return np.eye(len(self.classes) + 1, dtype=np.float32)[levels]


@dataclass(frozen=True)
class OneClass:
    """How well one class is told from all others: its name, and an AUROC with its 95 % interval."""

    name: str
    auroc: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """How well one thing is told from another, out of fold.

    Attributes:
        auroc: of two classes, or the mean of each against the rest.
        low, high: 95 % interval.
        n_rows: that it is of.
        n_classes: c.
        by_class: each against the rest; of two, the last.
    """

    auroc: float
    low: float
    high: float
    n_rows: int
    n_classes: int
    by_class: Sequence[OneClass] = ()

    @property
    def above_chance(self) -> bool:
        """Whether the whole interval is."""
        return self.low > CHANCE

    @property
    def best(self) -> OneClass:
        """The class that is told best."""
        return max(self.by_class, key=lambda class_score: class_score.auroc)


@dataclass(frozen=True)
class Confound:
    """A variable, how well the vectors tell it, and how well it tells the label.

    Attributes:
        name: of the variable.
        classes: what is told apart.
        from_vectors, to_label: None where there is no score, for the reason in `why`.
        why: the reasons.
    """

    name: str
    classes: Sequence[str]
    from_vectors: Score | None
    to_label: Score | None
    why: str = ""


@one_thread()
def components(x: Array, seed: int = 0) -> Array:
    """(n, k) float32, the first principal components of the vectors, each scaled to a variance of 1; k at most 128.

    What a probe learns from, so that many are made in seconds. On 5,840 X-rays (MobileNetV2, 1,280 features) the label
    is told with an AUROC of 0.988 from them, and of 0.991 from all features in many times the time.

    Args:
        x: (n, d) floats, n at least 2; the components are those of at most `MAX_ROWS` rows, drawn at random.
        seed: of the draw, and of the randomised decomposition.
    """
    from sklearn.decomposition import PCA

    drawn = np.sort(np.random.default_rng(seed).permutation(len(x))[:MAX_ROWS])
    k = min(COMPONENTS, x.shape[1], len(drawn) - 1)
    with np.errstate(invalid="ignore"):  # of vectors that are all the same no share of the variance is explained
        pca = PCA(n_components=k, whiten=True, random_state=seed).fit(rows_of(x, drawn))
    blocks = [pca.transform(x[start : start + _BLOCK]) for start in range(0, len(x), _BLOCK)]
    return np.concatenate(blocks).astype(np.float32)


def out_of_fold(x: Array, y: Array, n_classes: int, folds: Sequence[Fold], seed: int = 0) -> Array:
    """(n, c) logits of logistic regressions that have not seen the row's fold.

    Args:
        x: (n, d) float32.
        y: (n,) class numbers.
        n_classes: c.
        folds: that hold each row once.
        seed: of the rows drawn where a fold has more than `MAX_ROWS` to learn from.
    """
    rng = np.random.default_rng(seed)
    learnt = [np.sort(rng.permutation(fold.train)[:MAX_ROWS]) for fold in folds]
    spec = HeadSpec.of("logreg", C=_C)
    fits = [Fit(spec, Pool(train), train, fold.val) for train, fold in zip(learnt, folds, strict=True)]
    logits = np.empty((len(y), n_classes), dtype=np.float32)
    for fitted in solve_all(fits, torch.from_numpy(x), Targets(y[None], n_classes, n_classes - 1)):
        logits[fitted.fit.val] = fitted.logits
    return logits


def score(y: Array, logits: Array, groups: Array, classes: Sequence[str], seed: int = 0) -> Score:
    """The AUROC of out-of-fold logits with its interval, of at most about `MAX_ROWS` rows: whole groups are drawn.

    An interval of the rows knows nothing of the training: heads of different folds share most of what they learn from,
    and what one class has too much of in a fold it lacks in the others. So it is widened by sqrt(1 + k n2 / n1), which
    is 1.5 for five folds, as Nadeau and Bengio ("Inference for the generalization error", Machine Learning 52, 2003)
    correct the variance of resampled scores. Of 180 variables that were in none of the vectors it lay above chance in
    3, without that in 15.

    Args:
        y: (n,) class numbers.
        logits: (n, c).
        groups: (n,) group numbers.
        classes: c names.
        seed: of the draw.
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
    """How well a variable is told from x, of the rows where it is known.

    Args:
        variable: of n rows.
        x: (n, d) float32.
        groups: (n,) group numbers.
        seed: of everything that is drawn.

    Raises:
        UsageError: groups too large or too uneven for the folds, with the counts.
    """
    rows = np.flatnonzero(variable.codes >= 0)
    y, groups, n_classes = variable.codes[rows], groups[rows], len(variable.classes)
    folds = splits.k_folds(np.array(variable.classes)[y], groups, FOLDS, seed)
    return score(y, out_of_fold(rows_of(x, rows), y, n_classes, folds, seed), groups, variable.classes, seed)


def rows_of(x: Array, rows: Array) -> Array:
    """Some rows in ascending order; not copied where they are all."""
    return x if len(rows) == len(x) else x[rows]


def _frequent(texts: Sequence[str], groups: Array) -> list[str]:
    """The values that are in enough groups, sorted; and one for all others, if together they are."""
    groups_of: dict[str, set[int]] = {}
    for text, group in zip(texts, groups.tolist(), strict=True):
        if text:
            groups_of.setdefault(text, set()).add(group)
    names = sorted(groups_of, key=lambda text: (-len(groups_of[text]), text))
    names = sorted(text for text in names[: MAX_CLASSES - 1] if len(groups_of[text]) >= _MIN_GROUPS)
    rare = set().union(*(group_set for text, group_set in groups_of.items() if text not in names))
    return [*names, _RARE] if len(rare) >= _MIN_GROUPS else names


def _numbers(texts: Sequence[str]) -> Array | None:
    """(n,) numbers, NaN where unknown; None where a text is no finite number."""
    try:
        numbers = np.array([float(text) if text else math.nan for text in texts])
    except ValueError:
        return None
    is_present = np.array([bool(text) for text in texts])
    return numbers if np.isfinite(numbers[is_present]).all() else None


def _edges(numbers: Array) -> Array:
    """Where numbers are cut into five parts: the greatest of each but the last, which are numbers themselves, as far as
    every part has a tenth of them."""
    edges: list[float] = []
    below = 0.0
    for edge in np.unique(np.quantile(numbers, np.arange(1, 5) / 5, method="lower")).tolist():
        share = float(np.mean(numbers <= edge))
        if share - below >= _LEAST_PART and 1 - share >= _LEAST_PART:
            edges.append(edge)
            below = share
    return np.array(edges)


def _drawn(groups: Array, seed: int) -> Array:
    """Rows of whole groups, drawn at random until there are enough; all where there are not too many."""
    if len(groups) <= MAX_ROWS:
        return np.arange(len(groups))
    names, place, size = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    sampled = order[: int(np.searchsorted(np.cumsum(size[order]), MAX_ROWS)) + 1]
    return np.flatnonzero(np.isin(place, sampled))
