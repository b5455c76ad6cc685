"""The loss of k heads, their optimizers and schedules, and early stopping.

Each head has its own rows, labels, class weights and label smoothing. A loss is averaged over a head's own rows and
summed over heads. Neighbouring heads of a stack with the same learning rate and weight decay share one optimizer call.

First layers of millions of weights (heads on flattened feature maps, on a CPU) are trained in chunks: the gradient of
such a layer is as large as its weights, so it is computed for a few units of one head at a time, in a buffer that
stays in the processor's cache, and applied at once. The result is that of one matrix product, up to the order of sums.
Letters: k heads, n rows, m rows of the pool, b rows of a batch, r of them a head's own, d features, h units of the
first layer, c classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from featcache import metrics
from featcache.specs import HeadSpec

Array = np.ndarray[Any, Any]

_CURVE = ("loss", "accuracy", "precision", "recall", "f1")
_PLATEAU_FACTOR, _PLATEAU_THRESHOLD = 0.1, 1e-4  # those of torch's ReduceLROnPlateau
_ADAM = {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "maximize": False, "fused": True}
_SGD = {"dampening": 0.0, "nesterov": False, "maximize": False, "fused": True}
MAX_CHUNKED_HEADS = 4  # of a stack: more of them gain nothing, and memory is what other stacks could use
_MIN_CHUNKED_WEIGHTS = 2_000_000  # weights of the layer
_CHUNK_VALUES = 1 << 20  # numbers of a gradient at a time
Own = list[tuple[Tensor, Tensor]]  # of each head which rows of a batch are its own, (r,), and their features, (r, d)


@dataclass(frozen=True)
class Targets:
    """Labels.

    Attributes:
        values: (l, n) class numbers in l labellings of the same rows (the true one, permuted ones), or (l, n, c) with
            1, 0 or NaN (unknown) for c findings.
        n_classes: c.
        positive: positive class of precision, recall and F1.
    """

    values: Array
    n_classes: int
    positive: int

    @property
    def has_findings(self) -> bool:
        return self.values.ndim == 3

    def curve_point(self, labelling: int, rows: Array, logits: Array) -> dict[str, float]:
        """Loss, accuracy, precision, recall and F1 of some rows."""
        labels = self.values[labelling][rows]
        point = (
            metrics.per_epoch_findings(labels, logits)
            if self.has_findings
            else metrics.per_epoch(labels, logits, self.positive)
        )
        return {name: point[name] for name in _CURVE}


def class_weight(labels: Array, n_classes: int, kind: str) -> Array:
    """Class weights in the loss of a head trained on rows with these labels.

    Args:
        labels: (r,) class numbers, or (r, c) findings.
        n_classes: c.
        kind: "none", or "balanced", n / (c n_class), as scikit-learn's compute_class_weight.

    Returns:
        (c,), or (2, c) for findings, absent and present.
    """
    if labels.ndim == 2:
        counts = np.stack([np.sum(labels == value, axis=0) for value in (0, 1)])
    else:
        counts = np.bincount(labels, minlength=n_classes)
    if kind == "none":
        return np.ones(counts.shape)
    return np.asarray(counts.sum(0) / (counts.shape[0] * np.maximum(counts, 1)))


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of k heads: for each its training rows, labels, class weights and label smoothing.

    Attributes:
        mask: (m, k), 1 for training rows of a head in the pool.
        values: (l, n) or (l, n, c), as in `Targets`.
        labelling: (k,) which of the l.
        class_weight: (k, c), or (k, 2, c) for findings: of 0 and of 1.
        smoothing: (k,).
    """

    mask: Tensor
    values: Tensor
    labelling: Tensor
    class_weight: Tensor
    smoothing: Tensor
    has_findings: bool

    @classmethod
    def of(
        cls,
        specs: Sequence[HeadSpec],
        train: Sequence[Array],
        labelling: Sequence[int],
        pool_rows: Array,
        targets: Targets,
        device: torch.device,
    ) -> Self:
        """The loss of k heads.

        Args:
            specs: the heads.
            train: training rows of each head, all of them in the pool.
            labelling: number of each head's labelling.
            pool_rows: (m,) row numbers.
            targets: labels.
            device: device of its tensors.
        """
        masks = {rows.tobytes(): np.isin(pool_rows, rows) for rows in train}
        mask = np.stack([masks[rows.tobytes()] for rows in train], axis=1).astype(np.float32)
        labels = [targets.values[label_set][rows] for label_set, rows in zip(labelling, train, strict=True)]
        weights = [class_weight(y, targets.n_classes, s.class_weight) for y, s in zip(labels, specs, strict=True)]
        values = targets.values.astype(np.float32) if targets.has_findings else targets.values
        return cls(
            torch.from_numpy(mask).to(device),
            torch.from_numpy(values).to(device),
            torch.tensor(labelling, device=device),
            torch.from_numpy(np.stack(weights).astype(np.float32)).to(device),
            torch.tensor([spec.label_smoothing for spec in specs], device=device),
            targets.has_findings,
        )

    def __getitem__(self, heads: Tensor) -> Self:
        mine = {name: getattr(self, name)[heads] for name in ("labelling", "class_weight", "smoothing")}
        return replace(self, mask=self.mask[:, heads], **mine)

    def loss(self, z: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        """Averaged over each head's own rows by class weight, summed over heads: a head's gradient does not depend on
        how many stand beside it. The average is that of torch's cross entropy with weights and smoothing."""
        total, weight = self.parts(z, rows, mask)
        return (total / weight.clamp(min=1e-12)).sum()

    def parts(self, z: Tensor, rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(k,) sums of weighted losses, and (k,) sums of weights, to average over several pieces of a batch."""
        labels = self._labels(rows, torch.arange(len(z), device=z.device))
        parts = self._of_findings if self.has_findings else self._of_classes
        return parts(z, labels, self.class_weight, self.smoothing, mask)

    @torch.no_grad()
    def plain_loss(self, z: Tensor, rows: Tensor, heads: Tensor) -> list[float]:
        """Per head, unweighted and not smoothed."""
        mask = z.new_ones(z.shape[:2])
        weights, smoothing = torch.ones_like(self.class_weight[heads]), torch.zeros_like(self.smoothing[heads])
        parts = self._of_findings if self.has_findings else self._of_classes
        total, weight = parts(z, self._labels(rows, heads), weights, smoothing, mask)
        losses: list[float] = (total / weight.clamp(min=1e-12)).tolist()
        return losses

    def _labels(self, rows: Tensor, heads: Tensor) -> Tensor:
        """(k, b) or (k, b, c)."""
        if len(self.values) == 1:
            return self.values[0][rows].expand(len(heads), *[-1] * (self.values.ndim - 1))
        return self.values[self.labelling[heads]][:, rows]

    @staticmethod
    def _of_classes(z: Tensor, y: Tensor, weights: Tensor, smoothing: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy: (k,) weighted sums and (k,) sums of weights."""
        log_p = functional.log_softmax(z, dim=2)
        y = y.clamp(min=0)
        weight = mask * weights.gather(1, y)
        total = -(weight * log_p.gather(2, y[:, :, None]).squeeze(2)).sum(1)
        if bool((smoothing > 0).any()):
            spread = -(mask * (log_p * weights[:, None, :]).mean(2)).sum(1)
            total = (1 - smoothing) * total + smoothing * spread
        return total, weight.sum(1)

    @staticmethod
    def _of_findings(z: Tensor, y: Tensor, weights: Tensor, smoothing: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross entropy of each known finding."""
        is_known = ~torch.isnan(y)
        y = torch.where(is_known, y, 0.0)
        weight = mask[:, :, None] * is_known * torch.where(y > 0.5, weights[:, None, 1], weights[:, None, 0])
        target = y * (1 - smoothing)[:, None, None] + 0.5 * smoothing[:, None, None]
        losses = functional.softplus(z) - z * target
        return (weight * losses).sum((1, 2)), weight.sum((1, 2))


class Schedule(Protocol):
    """The fields of `HeadSpec` that a `LossMonitor` reads."""

    @property
    def schedule(self) -> str: ...
    @property
    def lr_patience(self) -> int: ...
    @property
    def patience(self) -> int: ...
    @property
    def epochs(self) -> int: ...


class LossMonitor:
    """Follows the loss on early-stopping rows: reduces the learning rate on a plateau, and stops early."""

    def __init__(self, spec: Schedule) -> None:
        self._spec = spec
        self._best, self.best_epoch = math.inf, 0
        self._since_stop = self._since_plateau = 0
        self._plateau_best, self._reductions = math.inf, 0

    @property
    def should_stop(self) -> bool:
        return 0 < self._spec.patience <= self._since_stop

    def lr_factor(self, epoch: int) -> float:
        """The factor of the learning rate in an epoch."""
        if self._spec.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (epoch - 1) / self._spec.epochs))
        return _PLATEAU_FACTOR**self._reductions

    def update(self, loss: float, epoch: int) -> bool:
        """Takes the loss after an epoch; True if it is the best so far."""
        if self._spec.schedule == "plateau":
            self._update_plateau(loss)
        improved = loss < self._best
        if improved:
            self._best, self.best_epoch, self._since_stop = loss, epoch, 0
        else:
            self._since_stop += 1
        return improved

    def _update_plateau(self, loss: float) -> None:
        if loss < self._plateau_best * (1 - _PLATEAU_THRESHOLD):
            self._plateau_best, self._since_plateau = loss, 0
            return
        self._since_plateau += 1
        if self._since_plateau > self._spec.lr_patience:
            self._reductions, self._since_plateau = self._reductions + 1, 0


@dataclass(frozen=True, eq=False)
class Step:
    """An optimizer step of neighbouring heads of a stack: views of their parameters and moments."""

    optimize: Callable[..., None]
    heads: slice
    parameters: list[Tensor]
    moments: list[list[Tensor]]
    steps: list[Tensor]

    def take(self, gradients: Sequence[Tensor], skipped: int = 0) -> None:
        """Takes the step, given the gradients of the whole stack, of all parameters but the first `skipped`."""
        # The fused kernels assume contiguous gradients.
        head_gradients = [t[self.heads].contiguous() for t in gradients]
        moments = [moment[skipped:] for moment in self.moments]
        self.optimize(self.parameters[skipped:], head_gradients, moments, self.steps[skipped:])


def optimizer(spec: HeadSpec, lr: float, weight_decay: float) -> Callable[..., None]:
    """A step of torch's functional optimizers. Their classes import the compiler, which takes three seconds: longer
    than training a linear head."""
    if spec.optimizer == "sgd":

        def by_sgd(
            parameters: list[Tensor], gradients: list[Tensor], moments: list[list[Tensor]], _: list[Tensor]
        ) -> None:
            options: Any = {**_SGD, "lr": lr, "weight_decay": weight_decay, "momentum": spec.momentum}
            sgd(parameters, gradients, list(moments[0]), **options)

        return by_sgd
    adaptive: Any = adamw if spec.optimizer == "adamw" else adam

    def by_adam(
        parameters: list[Tensor], gradients: list[Tensor], moments: list[list[Tensor]], steps: list[Tensor]
    ) -> None:
        adaptive(parameters, gradients, *moments, [], steps, lr=lr, weight_decay=weight_decay, **_ADAM)

    return by_adam


def moments_of(parameter: Tensor, optimizer: str) -> tuple[Tensor, ...]:
    """The optimizer state of a parameter: one moment (sgd) or two."""
    return tuple(torch.zeros_like(parameter).detach() for _ in range(1 if optimizer == "sgd" else 2))


def is_chunked(spec: HeadSpec, n_features: int) -> bool:
    """Whether a head's first layer is large enough to be trained in chunks, and its scale is a single number."""
    return (
        bool(spec.hidden_sizes)
        and spec.scale != "standard"
        and spec.hidden_sizes[0] * n_features >= _MIN_CHUNKED_WEIGHTS
    )


def rows_of_heads(x: Tensor, row_mask: Tensor) -> Own:
    """The training rows of each head in a batch; heads of one fold share them.

    Args:
        x: (b, d) features.
        row_mask: (k, b), 1 for training rows of a head.
    """
    sets: dict[bytes, tuple[Tensor, Tensor]] = {}
    own = []
    for mask in row_mask.bool():
        key = mask.numpy().tobytes()
        if key not in sets:
            rows = mask.nonzero().squeeze(1)
            sets[key] = rows, x[rows]
        own.append(sets[key])
    return own


@torch.no_grad()
def first_layer_products(weights: Tensor, own: Own, n_rows: int) -> Tensor:
    """(k, b, h) weights times features, 0 in rows that are not training rows of a head.

    Args:
        weights: (k, h, d).
        own: rows of each head.
        n_rows: b.
    """
    outputs = weights.new_zeros(len(own), n_rows, weights.shape[1])
    for i, (rows, x) in enumerate(own):
        outputs[i, rows] = x @ weights[i].T
    return outputs


@torch.no_grad()
def step_first_layers(steps: Sequence[Step], own: Own, gradient: Tensor) -> None:
    """Takes the step of the first layers, which are the first parameters of each `Step`.

    Args:
        steps: those of all heads in an epoch.
        own: rows of each head.
        gradient: (k, b, h) of the loss by what `first_layer_products` gave.
    """
    buffer = gradient.new_empty(0)
    for step in steps:
        weights, moments, n_steps = step.parameters[0], [moment[0] for moment in step.moments], step.steps[0]
        for j, i in enumerate(range(*step.heads.indices(len(own)))):
            rows, x = own[i]
            row_gradient = gradient[i, rows]  # (r, h)
            for units in _unit_slices(*weights.shape[1:]):
                some = row_gradient[:, units].T  # (u, r)
                buffer = buffer if len(buffer) >= len(some) else x.new_empty(len(some), x.shape[1])
                piece = torch.mm(some, x, out=buffer[: len(some)])  # (u, d)
                unit_moments = [[moment[j, units]] for moment in moments]
                step.optimize([weights[j, units]], [piece], unit_moments, [n_steps.clone()])
        n_steps.add_(1)


def _unit_slices(n_units: int, n_features: int) -> Iterator[slice]:
    """Slices of units whose gradients are computed together."""
    size = max(1, _CHUNK_VALUES // n_features)
    for start in range(0, n_units, size):
        yield slice(start, min(start + size, n_units))
