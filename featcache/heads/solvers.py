"""Heads with a solver instead of a training loop: logistic regression, ridge, nearest neighbours. Fast baselines.

One fold's features are scaled, decomposed or searched once, for all penalties and numbers of neighbours: a path of C is
walked with warm starts, all ridge penalties come from one eigendecomposition, all k from one search. scikit-learn does
logistic regression and the search.
Letters: n rows, d features, c classes.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featcache.heads import inference
from featcache.heads.features import clean, scored
from featcache.heads.jobs import Fit, Fitted
from featcache.heads.mlp import feature_scale
from featcache.heads.optim import Targets, class_weight
from featcache.threads import one_thread

Array = np.ndarray[Any, Any]

_LOGREG_ITERATIONS = 300


@one_thread()
def solve_all(fits: Sequence[Fit], x: Tensor, targets: Targets, *, tta: bool = False) -> list[Fitted]:
    """Solves heads on features without augmentation; arguments and result are those of `training.fit_all`.

    The result of "logreg" and "ridge" is `weight` and `bias` for features as stored; that of "knn" is the training rows
    (at unit length) and their labels.
    """
    groups: dict[Any, list[int]] = {}
    for i, fit in enumerate(fits):
        shared = (fit.spec.kind, fit.spec.scale, fit.spec.class_weight, fit.train.tobytes(), fit.val.tobytes())
        groups.setdefault((*shared, fit.labelling), []).append(i)
    results: dict[int, Fitted] = {}
    for numbers in groups.values():
        members = [fits[i] for i in numbers]
        solve = {"logreg": _logreg, "ridge": _ridge, "knn": _knn}[members[0].spec.kind]
        results.update(zip(numbers, solve(members, x, targets, tta), strict=True))
    return [results[i] for i in range(len(fits))]


# --- affine heads -----------------------------------------------------------------------------------------------------


def _logreg(fits: Sequence[Fit], x: Tensor, targets: Targets, tta: bool) -> list[Fitted]:
    """L2-penalised logistic regression, from strong to weak penalty, each starting where the last ended."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    problem = _Problem(fits[0], x, targets, tta)
    model = LogisticRegression(max_iter=_LOGREG_ITERATIONS, warm_start=True)
    solutions: dict[int, tuple[Array, Array]] = {}
    for finding in problem.labels():
        rows, y, weights = problem.labelled(finding)
        for i in sorted(range(len(fits)), key=lambda i: fits[i].spec.C):
            model.set_params(C=fits[i].spec.C)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # its validation score decides
                model.fit(problem.x[rows], y, sample_weight=weights)
            _append_solution(solutions, i, model.coef_.copy(), model.intercept_.copy(), finding)
        model = LogisticRegression(max_iter=_LOGREG_ITERATIONS, warm_start=True)
    return [problem.affine(fit, *_one_row_per_class(*solutions[i], problem)) for i, fit in enumerate(fits)]


def _ridge(fits: Sequence[Fit], x: Tensor, targets: Targets, tta: bool) -> list[Fitted]:
    """Weighted least squares on -1 and 1 with penalty alpha |w|^2 and a free intercept, as scikit-learn's
    RidgeClassifier: (X'WX + alpha I) w = X'W y on centred X and y. With X'WX = V S V' every alpha is a division."""
    problem = _Problem(fits[0], x, targets, tta)
    solutions: dict[int, tuple[Array, Array]] = {}
    for finding in problem.labels():
        rows, y, weights = problem.labelled(finding)
        classes = np.array([1]) if finding is not None else np.arange(targets.n_classes)
        t = np.where(y[:, None] == classes, 1.0, -1.0)
        a = problem.x[rows].astype(np.float64)
        share = weights / weights.sum()
        mean_x, mean_t = share @ a, share @ t
        root = np.sqrt(weights)[:, None]
        a, t = (a - mean_x) * root, (t - mean_t) * root
        solve = _primal(a, t) if len(a) >= a.shape[1] else _dual(a, t)
        for i, fit in enumerate(fits):
            w = solve(fit.spec.alpha)  # (d, c)
            _append_solution(solutions, i, w.T, mean_t - mean_x @ w, finding)
    return [problem.affine(fit, *solutions[i]) for i, fit in enumerate(fits)]


def _primal(a: Array, t: Array) -> Any:
    values, vectors = np.linalg.eigh(a.T @ a)
    projected = vectors.T @ (a.T @ t)
    return lambda alpha: vectors @ (projected / (values.clip(min=0) + alpha)[:, None])


def _dual(a: Array, t: Array) -> Any:
    """For fewer rows than features: w = X'(XX' + alpha I)^-1 y."""
    values, vectors = np.linalg.eigh(a @ a.T)
    projected = vectors.T @ t
    return lambda alpha: a.T @ (vectors @ (projected / (values.clip(min=0) + alpha)[:, None]))


class _Problem:
    """The training rows of a fold, scaled, with labels and weights."""

    def __init__(self, fit: Fit, x: Tensor, targets: Targets, tta: bool) -> None:
        train = torch.from_numpy(fit.train).to(x.device)
        self._scoring_features, x = scored(x, tta), clean(x)
        scale = feature_scale(x, [train], fit.spec.scale)
        self._offset, self._divisor = scale.offset[0].cpu().double().numpy(), scale.divisor[0].cpu().double().numpy()
        self.x: Array = ((x[train] - scale.offset[0]) / scale.divisor[0]).cpu().numpy()
        self.y = targets.values[fit.labelling][fit.train]
        self._targets = targets
        self._class_weights = class_weight(self.y, targets.n_classes, fit.spec.class_weight)

    def labels(self) -> list[int | None]:
        """The findings one by one, or None for classes, which are solved together."""
        return list(range(self._targets.n_classes)) if self._targets.has_findings else [None]

    def labelled(self, finding: int | None) -> tuple[Array, Array, Array]:
        """Rows whose label is known, their labels, their weights."""
        y = self.y if finding is None else self.y[:, finding]
        rows = np.flatnonzero(np.isfinite(y)) if finding is not None else np.arange(len(y))
        y = y[rows].astype(np.int64)
        weights = self._class_weights if finding is None else self._class_weights[:, finding]
        return rows, y, weights[y]

    @property
    def n_classes(self) -> int:
        return self._targets.n_classes

    @property
    def has_findings(self) -> bool:
        return self._targets.has_findings

    def affine(self, fit: Fit, weight: Array, bias: Array) -> Fitted:
        """The head for features as stored, from (c, d) weights for scaled features."""
        weight = weight / self._divisor
        bias = bias - (weight * self._offset).sum(1)
        tensors = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
        logits = inference.averaged(
            lambda x: x @ tensors["weight"].T + tensors["bias"], _rows(self._scoring_features, fit.val)
        )
        return Fitted(fit, tensors, logits, 0, weight.size + bias.size)


def _append_solution(
    solutions: dict[int, tuple[Array, Array]], i: int, weight: Array, bias: Array, finding: int | None
) -> None:
    """Rows of labels are appended one by one; classes are solved together."""
    if finding is None or i not in solutions:
        solutions[i] = weight, bias
    else:
        solutions[i] = np.concatenate([solutions[i][0], weight]), np.concatenate([solutions[i][1], bias])


def _one_row_per_class(weight: Array, bias: Array, problem: _Problem) -> tuple[Array, Array]:
    """scikit-learn gives two classes one row, the log odds of the second: half of it for each side."""
    if problem.has_findings or problem.n_classes > 2:
        return weight, bias
    return np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])


# --- nearest neighbours -----------------------------------------------------------------------------------------------


def _knn(fits: Sequence[Fit], x: Tensor, targets: Targets, tta: bool) -> list[Fitted]:
    """The vote of the nearest training rows, as `inference.vote` counts it; one search serves all k."""
    fit = fits[0]
    vectors = inference.unit_rows(_rows(clean(x), fit.train))
    labels = targets.values[fit.labelling][fit.train]
    val_rows = _rows(scored(x, tta), fit.val)
    near = inference.nearest(vectors, val_rows.reshape(-1, x.shape[-1]), max(f.spec.n_neighbors for f in fits))
    near = near.reshape(*val_rows.shape[:-1], near.shape[1])  # (m, k), or (m, v, k)
    tensors = {"vectors": vectors, "labels": labels.astype(np.float32)}
    votes = (partial(_votes, labels, targets.n_classes, fit.spec.n_neighbors) for fit in fits)
    return [Fitted(fit, tensors, inference.averaged(vote, near), 0, 0) for fit, vote in zip(fits, votes, strict=True)]


def _votes(labels: Array, n_classes: int, k: int, near: Array) -> Array:
    """(m, c) logits from the k nearest of the neighbours."""
    return inference.vote(labels[near[:, :k]], n_classes)


def _rows(x: Tensor, rows: Array) -> Array:
    return x[torch.from_numpy(rows).to(x.device)].cpu().numpy()
