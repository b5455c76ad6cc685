"""k heads of one shape in one tensor per parameter, so that one matrix product serves them all.

Head i of a stack is the head it would be alone: what it sees (its rows, its scale, its dropout, its batch statistics)
is its own; only the arithmetic is shared. Parameters have the layout of torch.nn.Linear and BatchNorm1d with the heads
as first axis. Knows nothing of losses, splits or stores.
Letters: k heads, b rows of a batch, d features, h units of a hidden layer, c outputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featcache.heads.spec import NORM_EPSILON, HeadSpec

Array = np.ndarray[Any, Any]

NORM_MOMENTUM = 0.1  # that of torch.nn.BatchNorm1d
ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": functional.gelu}


@dataclass(frozen=True)
class Scale:
    """What k heads take off the features, (k, 1 or d), and divide them by: numbers of each head's own training rows."""

    offset: Tensor
    divisor: Tensor

    def __getitem__(self, heads: Any) -> "Scale":
        return Scale(self.offset[heads], self.divisor[heads])


def feature_scale(x: Tensor, train: Sequence[Tensor], kind: str) -> Scale:
    """The scale of heads that learn from the rows `train` of x, (n, d), or (n, v, d) with v vectors of each row.

    "rms" is one number for all features: vectors of a random network may have a scale of 1e-5, on which Adam at 0.003
    learns nothing, while a scale per feature costs 0.04 AUROC on test images of a shifted distribution.
    """
    scales: dict[bytes, tuple[Tensor, Tensor]] = {}  # heads of a fold share their rows
    for rows in train:
        if (key := rows.cpu().numpy().tobytes()) not in scales:
            scales[key] = _scale_of(x[rows].flatten(0, -2), kind)
    pairs = [scales[rows.cpu().numpy().tobytes()] for rows in train]
    return Scale(torch.stack([offset for offset, _ in pairs]), torch.stack([divisor for _, divisor in pairs]))


def _scale_of(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    if kind == "standard":
        deviation, mean = torch.std_mean(x, dim=0, correction=0)
        return mean, torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    rms = x.double().square().mean().sqrt().to(x.dtype) if kind == "rms" else x.new_ones(())
    return x.new_zeros(1), (rms if rms > 0 else torch.ones_like(rms))[None]


@dataclass(frozen=True)
class Stack:
    """k heads.

    Attributes:
        parameters: what is trained: `weight` (k, c, d or h) and `bias` (k, c) of the last layer, `hidden.0.weight` and
            so on of the layers before it, `hidden.0.norm.weight` and `.bias` (k, h) of a batch norm.
        statistics: `hidden.0.norm.running_mean` and `.running_var`, (k, h).
        scale: scale of the features.
        dropout: (k,) rates.
        activation: activation of all hidden layers.
    """

    parameters: dict[str, Tensor]
    statistics: dict[str, Tensor]
    scale: Scale
    dropout: Tensor
    activation: str

    @classmethod
    def fresh(cls, specs: Sequence[HeadSpec], scale: Scale, n_features: int, n_outputs: int) -> Self:
        """k heads, each initialised from its seed exactly as torch.nn.Linear initialises itself, first layer first:
        weight and bias uniform within ±1/sqrt(inputs) (He et al. 2015 with a = sqrt 5). The specs have one shape."""
        heads = [initial(spec, n_features, n_outputs) for spec in specs]
        device = scale.offset.device
        parameters = {name: torch.stack([head[name] for head in heads]).to(device) for name in heads[0]}
        statistics = {}
        for name, tensor in parameters.items():
            if name.endswith("norm.weight"):
                statistics[name.replace("weight", "running_mean")] = torch.zeros_like(tensor)
                statistics[name.replace("weight", "running_var")] = torch.ones_like(tensor)
        dropout = torch.tensor([spec.dropout for spec in specs], device=device)
        return cls(parameters, statistics, scale, dropout, specs[0].activation)

    def __len__(self) -> int:
        return len(self.dropout)

    def __getitem__(self, heads: Tensor) -> "Stack":
        """The heads of these numbers, copied."""
        parameters = {name: tensor.detach()[heads] for name, tensor in self.parameters.items()}
        statistics = {name: tensor[heads] for name, tensor in self.statistics.items()}
        return Stack(parameters, statistics, self.scale[heads], self.dropout[heads], self.activation)

    def one(self, i: int) -> "Stack":
        """Head i alone, not copied."""
        parameters = {name: tensor.detach()[i : i + 1] for name, tensor in self.parameters.items()}
        statistics = {name: tensor[i : i + 1] for name, tensor in self.statistics.items()}
        only = slice(i, i + 1)
        return Stack(parameters, statistics, self.scale[only], self.dropout[only], self.activation)

    def put(self, heads: Tensor | int, better: "Stack") -> None:
        """Replaces the heads of these numbers, or one head, by those of another stack of the same length."""
        for mine, theirs in ((self.parameters, better.parameters), (self.statistics, better.statistics)):
            for name, tensor in mine.items():
                tensor[heads] = theirs[name].detach()[heads]

    def is_finite(self, i: int) -> bool:
        """Whether all numbers of head i are."""
        return all(bool(torch.isfinite(t[i]).all()) for t in (*self.parameters.values(), *self.statistics.values()))

    def trainable(self) -> "Stack":
        """The same heads, with gradients."""
        return replace(self, parameters={name: t.clone().requires_grad_() for name, t in self.parameters.items()})

    @property
    def n_hidden(self) -> int:
        return sum(
            name.startswith("hidden.") and name.count(".") == 2 and name.endswith("weight") for name in self.parameters
        )

    def __call__(self, x: Tensor, mask: Tensor | None = None, draws: Sequence[Tensor] = ()) -> Tensor:
        """(b, d) features, the same rows for every head, to (k, b, c).

        Args:
            x: as they are in the store; each head scales them by itself.
            mask: (k, b), 1 where a head learns from the row: batch norm takes its statistics from these rows and
                updates the running ones. None uses the running ones.
            draws: (k, b, h) uniform numbers for each hidden layer; a unit lives where its number is not below the
                head's dropout. None of them drops nothing.
        """
        return self.onward(self._first(x), mask, draws)

    def onward(self, z: Tensor, mask: Tensor | None = None, draws: Sequence[Tensor] = ()) -> Tensor:
        """What the first layer gives, (k, b, h), to (k, b, c); `mask` and `draws` as above."""
        names = [f"hidden.{i}." for i in range(self.n_hidden)]
        for i, name in enumerate(names):
            if f"{name}norm.weight" in self.parameters:
                z = self._normed(z, f"{name}norm.", mask)
            z = ACTIVATIONS[self.activation](z)
            if draws:
                rate = self.dropout[:, None, None]
                z = z * (draws[i] >= rate) / (1 - rate)
            following = names[i + 1] if i + 1 < len(names) else ""
            weight, bias = self.parameters[f"{following}weight"], self._bias(following)
            z = torch.baddbmm(bias[:, None, :], z, weight.transpose(1, 2))
        return z

    def scaled(self, product: Tensor) -> Tensor:
        """(k, b, h) of the first layer's weights and features as they are in the store, where the scale is one number:
        divided by it, and the bias added."""
        return product / self.scale.divisor[:, None] + self._bias("hidden.0." if self.n_hidden else "")[:, None]

    def _first(self, x: Tensor) -> Tensor:
        """x W' + b of the first layer on scaled features, (k, b, h): the scale is taken into the weights where it is
        per feature, into the product where it is one number."""
        name = "hidden.0." if self.n_hidden else ""
        weight, per_feature = self.parameters[f"{name}weight"], self.scale.divisor.shape[1] > 1
        k, h, d = weight.shape
        if per_feature:
            weight = weight / self.scale.divisor[:, None, :]
        z = functional.linear(x, weight.reshape(k * h, d)).view(len(x), k, h)  # one product for all heads
        z = z.transpose(0, 1)
        if not per_feature:
            return self.scaled(z)
        return z + (self._bias(name) - (weight @ self.scale.offset[:, :, None]).squeeze(2))[:, None]

    def _bias(self, name: str) -> Tensor:
        """A bias before a batch norm has no effect and a gradient of rounding errors, which Adam would blow up to steps
        of full size: it stays as it is."""
        bias = self.parameters[f"{name}bias"]
        return bias.detach() if f"{name}norm.weight" in self.parameters else bias

    def _normed(self, z: Tensor, name: str, mask: Tensor | None) -> Tensor:
        """Batch normalisation (Ioffe and Szegedy 2015) of (k, b, h) with each head's own rows."""
        mean, var = self.statistics[f"{name}running_mean"], self.statistics[f"{name}running_var"]
        if mask is not None:
            share = (mask / mask.sum(1, keepdim=True).clamp(min=1))[:, None, :]  # (k, 1, b)
            running = mean, var
            mean = (share @ z).squeeze(1)
            var = (share @ (z - mean[:, None]).square()).squeeze(1)
            _update(running, mean, var, mask.sum(1, keepdim=True))
        scaled = (z - mean[:, None]) * torch.rsqrt(var + NORM_EPSILON)[:, None]
        return scaled * self.parameters[f"{name}weight"][:, None] + self.parameters[f"{name}bias"][:, None]

    def folded(self, i: int) -> dict[str, Array]:
        """Head i as it acts on features that were never scaled: W (x - offset) / divisor + b as W' x + b'.

        Returns:
            float32 arrays in the layout of torch.nn; folded in float64.
        """
        head = {name: t[i].detach().double().cpu() for name, t in (self.parameters | self.statistics).items()}
        first = "hidden.0." if self.n_hidden else ""
        offset, divisor = (t[i].double().cpu() for t in (self.scale.offset, self.scale.divisor))
        head[f"{first}weight"] = head[f"{first}weight"] / divisor
        head[f"{first}bias"] = head[f"{first}bias"] - (head[f"{first}weight"] * offset).sum(1)
        return {name: t.float().contiguous().numpy() for name, t in head.items()}


def n_parameters(spec: HeadSpec, n_features: int, n_outputs: int) -> int:
    """Trainable numbers of one head."""
    total, inputs = 0, n_features
    for width in spec.hidden_sizes:
        total += (inputs + 1) * width + (2 * width if spec.norm == "batch" else 0)
        inputs = width
    return total + (inputs + 1) * n_outputs


def n_outputs(spec: HeadSpec, n_classes: int, has_findings: bool) -> int:
    """c, or one for two classes with a sigmoid between them."""
    return 1 if spec.output == "sigmoid" and n_classes == 2 and not has_findings else n_classes


@torch.no_grad()
def _update(running: tuple[Tensor, Tensor], mean: Tensor, var: Tensor, n: Tensor) -> None:
    """The running variance is the unbiased one, as in torch."""
    running[0].lerp_(mean, NORM_MOMENTUM)
    running[1].lerp_(var * n / (n - 1).clamp(min=1), NORM_MOMENTUM)


def initial(spec: HeadSpec, n_features: int, n_outputs: int) -> dict[str, Tensor]:
    """The parameters of one head before it has learnt anything, on scaled features: see `Stack.fresh`."""
    generator = torch.Generator().manual_seed(spec.seed)
    head, inputs = {}, n_features
    for i, width in enumerate((*spec.hidden_sizes, n_outputs)):
        name = f"hidden.{i}." if i < len(spec.hidden_sizes) else ""
        bound = 1.0 / math.sqrt(inputs)
        head[f"{name}weight"] = torch.empty(width, inputs).uniform_(-bound, bound, generator=generator)
        head[f"{name}bias"] = torch.empty(width).uniform_(-bound, bound, generator=generator)
        if name and spec.norm == "batch":
            head[f"{name}norm.weight"], head[f"{name}norm.bias"] = torch.ones(width), torch.zeros(width)
        inputs = width
    return head
