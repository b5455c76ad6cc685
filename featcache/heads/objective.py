"""What is to be learnt, and how far k heads are from it: labels, class weights, the loss.

Each head has its own rows, labelling, class weights and smoothing; a loss is averaged over a head's own rows and summed
over heads. Knows nothing of features, and not which head it is.
Letters: k heads, n rows, m rows of the pool, b rows of a batch, c classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featcache import metrics
from featcache.heads.spec import HeadSpec

Array = np.ndarray[Any, Any]

_CURVE = ("loss", "accuracy", "precision", "recall", "f1")


@dataclass(frozen=True)
class Targets:
    """What is to be learnt.

    Attributes:
        values: (l, n) class numbers of l labellings of the same rows (the true one, permuted ones), or (l, n, c) with
            1, 0 or NaN (unknown) for c findings that are learnt side by side.
        n_classes: c.
        positive: the class that the numbers of a curve are about.
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
    """Weights of the classes in the loss of a head that learns from rows with these labels.

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
    """Per head: which rows it learns from, its labels, the weights of its classes and its smoothing.

    Attributes:
        mask: (m, k), 1 where a head learns from a row of the pool.
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
        """That of k heads.

        Args:
            specs: the heads.
            train: the rows that each learns from, all of them in the pool.
            labelling: the number of the labelling that each learns.
            pool_rows: (m,) row numbers.
            targets: labels.
            device: where its tensors live.
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
        """(k,) sums of losses times weights, and (k,) sums of weights: what an average over several pieces of a batch
        is made of."""
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
