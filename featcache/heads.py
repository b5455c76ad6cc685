"""Heads: their specs, and k of them stacked in one tensor.

A `HeadSpec` says how one head is made and trained. A `HeadStack` holds k heads of one shape, so that one matrix product
serves them all; head i of a stack is the head it would be alone. Knows nothing of stores, splits or metrics.
Letters: k heads, b rows of a batch, d features, c classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

KINDS = ("linear",)
CLASS_WEIGHTS = ("none", "balanced")
SCALES = ("rms", "none", "standard")


@dataclass(frozen=True)
class HeadSpec:
    """One head and its training. The defaults are the recipe of the linear probe that featcache was first built for:
    Adam, cross entropy, learning rate 0.003, 40 epochs, batches of 32.

    Attributes:
        kind: "linear", one affine map from d features to c classes: (d + 1) c parameters.
        lr: learning rate of Adam (betas 0.9 and 0.999, epsilon 1e-8).
        epochs: passes over the training rows.
        batch_rows: rows per step; the last batch of an epoch may be smaller.
        class_weights: "balanced" weighs each class of the loss by n / (c n_class), as scikit-learn does.
        scale: what features are divided by: "rms", one number, the root mean square of the training rows; "standard",
            each feature's standard deviation after its mean was taken off; "none".
        seed: of the initial weights and of the order of the batches.
    """

    kind: str = "linear"
    lr: float = 0.003
    epochs: int = 40
    batch_rows: int = 32
    class_weights: str = "none"
    scale: str = "rms"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("kind", self.kind, KINDS),
            ("class_weights", self.class_weights, CLASS_WEIGHTS),
            ("scale", self.scale, SCALES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if not 0 < self.lr <= 1000:
            raise ValueError(f"lr must be > 0 and at most 1000, got {self.lr}")
        for name, count in (("epochs", self.epochs), ("batch_rows", self.batch_rows)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2^32 - 1, got {self.seed}")


@dataclass
class HeadStack:
    """k linear heads: `weight` (k, d, c), `bias` (k, c)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def fresh(cls, n_features: int, n_classes: int, generators: Sequence[torch.Generator]) -> Self:
        """k heads, each initialised from its generator exactly as `torch.nn.Linear` initialises itself: both weight and
        bias uniform within ±1/sqrt(d) (He et al. 2015 with a = sqrt 5)."""
        bound = 1.0 / math.sqrt(n_features)
        weights, biases = [], []
        for generator in generators:
            weights.append(torch.empty(n_classes, n_features).uniform_(-bound, bound, generator=generator).T)
            biases.append(torch.empty(n_classes).uniform_(-bound, bound, generator=generator))
        return cls(torch.stack(weights).contiguous(), torch.stack(biases))

    def parameters(self) -> list[Tensor]:
        return [self.weight, self.bias]

    @property
    def n_parameters(self) -> int:
        """Trainable numbers of one head."""
        return sum(parameter[0].numel() for parameter in self.parameters())

    def __call__(self, x: Tensor) -> Tensor:
        """(b, d) features to (k, b, c) logits; every head sees the same rows."""
        k, d, c = self.weight.shape
        flat = x @ self.weight.permute(1, 0, 2).reshape(d, k * c)  # (b, k*c): one product for all heads
        return flat.view(len(x), k, c).transpose(0, 1) + self.bias[:, None, :]

    def fold(self, offset: Tensor, scale: Tensor, i: int) -> dict[str, Any]:
        """Head i as it acts on features that were never scaled: W (x - offset) / scale + b as W' x + b'.

        Args:
            offset, scale: (d,), what the training took off and divided by.

        Returns:
            float32 arrays `weight` (c, d) and `bias` (c), the layout of `torch.nn.Linear`; folded in float64.
        """
        weight = self.weight[i].double().cpu() / scale.double().cpu()[:, None]  # (d, c)
        bias = self.bias[i].double().cpu() - offset.double().cpu() @ weight
        return {"weight": weight.T.float().contiguous().numpy(), "bias": bias.float().numpy()}
