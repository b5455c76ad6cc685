"""Linear heads and MLPs: k of them make_stacks in one tensor per parameter, and one as a torch module.

A stack trains many heads with one matrix product. Head i of a stack is the head it would be alone: its rows, scale,
dropout and batch statistics are its own. Parameters have the layout of torch.nn.Linear and BatchNorm1d with the heads
as first axis.

The module is trained together with the backbone below it. It has the parameters of `head.safetensors`, with one change
of scale: features are divided by the root mean square of the training features, and the first layer's weights are
multiplied by it. A step of Adam is about as large as the learning rate, whatever the gradient, so a learning rate
means the same in both only for weights of the same size.
Letters: k heads, b rows of a batch, d features, h units of a hidden layer, c outputs or classes.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from featcache.errors import UsageError
from featcache.specs import NORM_EPSILON, HeadSpec

Array = np.ndarray[Any, Any]

NORM_MOMENTUM = 0.1  # that of torch.nn.BatchNorm1d
_NOT_KEPT = ("feature_rms", "num_batches_tracked")  # buffers that `head.safetensors` does not have
ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": functional.gelu}


@dataclass(frozen=True)
class Scale:
    """The offset and divisor of the features of k heads, (k, 1 or d), computed from each head's own training rows."""

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
        """A copy of the heads with these numbers."""
        parameters = {name: tensor.detach()[heads] for name, tensor in self.parameters.items()}
        statistics = {name: tensor[heads] for name, tensor in self.statistics.items()}
        return Stack(parameters, statistics, self.scale[heads], self.dropout[heads], self.activation)

    def one(self, i: int) -> "Stack":
        """Head i, not copied."""
        parameters = {name: tensor.detach()[i : i + 1] for name, tensor in self.parameters.items()}
        statistics = {name: tensor[i : i + 1] for name, tensor in self.statistics.items()}
        only = slice(i, i + 1)
        return Stack(parameters, statistics, self.scale[only], self.dropout[only], self.activation)

    def put(self, heads: Tensor | int, better: "Stack") -> None:
        """Replaces some heads, or one, by those of another stack of the same length."""
        for mine, theirs in ((self.parameters, better.parameters), (self.statistics, better.statistics)):
            for name, tensor in mine.items():
                tensor[heads] = theirs[name].detach()[heads]

    def is_finite(self, i: int) -> bool:
        """Whether all numbers of head i are."""
        return all(bool(torch.isfinite(t[i]).all()) for t in (*self.parameters.values(), *self.statistics.values()))

    def trainable(self) -> "Stack":
        """The same heads, with `requires_grad`."""
        return replace(self, parameters={name: t.clone().requires_grad_() for name, t in self.parameters.items()})

    @property
    def n_hidden(self) -> int:
        return sum(
            name.startswith("hidden.") and name.count(".") == 2 and name.endswith("weight") for name in self.parameters
        )

    def __call__(self, x: Tensor, mask: Tensor | None = None, uniforms: Sequence[Tensor] = ()) -> Tensor:
        """(b, d) features, the same rows for every head, to (k, b, c).

        Args:
            x: features as stored; each head scales them itself.
            mask: (k, b), 1 where the row is a training row of the head: batch norm takes its statistics from these rows
                and updates the running ones. None uses the running ones.
            uniforms: (k, b, h) random numbers in [0, 1) for each hidden layer; a unit is kept where its number is not
                below the head's dropout rate. Without them nothing is dropped.
        """
        return self.upper_layers(self._first(x), mask, uniforms)

    def upper_layers(self, z: Tensor, mask: Tensor | None = None, uniforms: Sequence[Tensor] = ()) -> Tensor:
        """(k, b, h) outputs of the first layer to (k, b, c); `mask` and `uniforms` as above."""
        names = [f"hidden.{i}." for i in range(self.n_hidden)]
        for i, name in enumerate(names):
            if f"{name}norm.weight" in self.parameters:
                z = self._normed(z, f"{name}norm.", mask)
            z = ACTIVATIONS[self.activation](z)
            if uniforms:
                rate = self.dropout[:, None, None]
                z = z * (uniforms[i] >= rate) / (1 - rate)
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
        """The bias; detached before a batch norm, where it has no effect and its gradient is rounding error, which Adam
        would scale to full steps."""
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
        """Head i for unscaled features: W (x - offset) / divisor + b as W' x + b'.

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
    """Number of trainable parameters of one head."""
    total, inputs = 0, n_features
    for width in spec.hidden_sizes:
        total += (inputs + 1) * width + (2 * width if spec.norm == "batch" else 0)
        inputs = width
    return total + (inputs + 1) * n_outputs


def n_outputs(spec: HeadSpec, n_classes: int, has_findings: bool) -> int:
    """Number of outputs: c, or 1 for two classes with a sigmoid."""
    return 1 if spec.output == "sigmoid" and n_classes == 2 and not has_findings else n_classes


@torch.no_grad()
def _update(running: tuple[Tensor, Tensor], mean: Tensor, var: Tensor, n: Tensor) -> None:
    """The running variance is the unbiased one, as in torch."""
    running[0].lerp_(mean, NORM_MOMENTUM)
    running[1].lerp_(var * n / (n - 1).clamp(min=1), NORM_MOMENTUM)


def initial(spec: HeadSpec, n_features: int, n_outputs: int) -> dict[str, Tensor]:
    """Initial parameters of one head for scaled features, see `Stack.fresh`."""
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


def head_module(
    spec: HeadSpec,
    tensors: Mapping[str, Array],
    feature_rms: float,
    n_classes: int,
    positive: int,
    has_findings: bool,
) -> "Head":
    """A head that can be trained on.

    Args:
        spec: the head's; any kind but "knn".
        tensors: its weights as in `head.safetensors`: they act on features as the backbone gives them.
        feature_rms: what features are divided by: `feature_rms` of a Run, 1 for none.
        n_classes: c.
        positive: which of two classes a single output is about.
        has_findings: whether the classes are findings, each with an output of its own.

    Returns:
        A module from (b, d) to (b, c), on the CPU, in training mode as every new module.

    Raises:
        UsageError: "knn", which has nothing to train; weights that are not those of such a head.
        ValueError: `feature_rms` is not above 0.
    """
    if spec.kind == "knn":
        raise UsageError("a knn head has no weights that could be trained on. Train a linear or mlp head first.")
    if not (math.isfinite(feature_rms) and feature_rms > 0):
        raise ValueError(f"feature_rms must be above 0, got {feature_rms}")
    n_features = np.atleast_1d(tensors.get(_first(len(spec.hidden_sizes)), 0.0)).shape[-1]
    outputs = n_outputs(spec, n_classes, has_findings)
    single = positive if outputs < n_classes else None
    with torch.device("meta"):  # the spec may describe a head larger than its file, or than memory
        shapes = {
            name: tuple(t.shape) for name, t in Head(spec, n_features, outputs, feature_rms, single).own().items()
        }
    if {name: np.shape(array) for name, array in tensors.items()} != shapes:
        raise UsageError(f"these are not the weights of a {spec.kind} head with {outputs} output(s).")
    module = Head(spec, n_features, outputs, feature_rms, single)
    own = module.own()
    with torch.no_grad():
        for name, tensor in own.items():
            kept = torch.from_numpy(np.array(tensors[name], dtype=np.float64))
            tensor.copy_(kept * module.feature_rms.double() if name == module.first else kept)
    return module


def fresh(spec: HeadSpec, n_features: int, n_outputs: int, feature_rms: float = 1.0) -> dict[str, Array]:
    """Initial weights of a head: those with which `train_head` begins for the same seed.

    Args:
        spec: the head's, of a trained kind.
        n_features: d.
        n_outputs: as `n_outputs` counts them.
        feature_rms: what `head_module` will be given.

    Returns:
        float32 arrays as in `head.safetensors`.
    """
    head = {name: tensor.numpy() for name, tensor in initial(spec, n_features, n_outputs).items()}
    for name in [name for name in head if name.endswith("norm.weight")]:
        head[name.replace("weight", "running_mean")] = np.zeros_like(head[name])
        head[name.replace("weight", "running_var")] = np.ones_like(head[name])
    first = _first(len(spec.hidden_sizes))
    return {**head, first: (head[first].astype(np.float64) / feature_rms).astype(np.float32)}


def tensors_of(module: "Head") -> dict[str, Array]:
    """The head as `head.safetensors` keeps it: float32 arrays that act on features as the backbone gives them. The
    scale is folded in float64, as `Stack.folded` does."""
    kept = {name: t.detach().double().cpu() for name, t in module.own().items()}
    kept[module.first] = kept[module.first] / module.feature_rms.double().cpu()
    return {name: t.float().contiguous().numpy() for name, t in kept.items()}


class Head(nn.Module):
    """(b, d) features as the backbone gives them to (b, c) logits; made by `head_module`.

    Attributes:
        feature_rms: a buffer, (), what features are divided by.
        hidden: the layers before the last.
        hidden_sizes: units of each of them.
        weight, bias: parameters of the last layer, (c, d or h) and (c,); (1, …) for a single output.
    """

    feature_rms: Tensor

    def __init__(
        self, spec: HeadSpec, n_features: int, n_outputs: int, feature_rms: float, positive: int | None
    ) -> None:
        super().__init__()
        sizes = (n_features, *spec.hidden_sizes)
        self.register_buffer("feature_rms", torch.tensor(feature_rms, dtype=torch.float32))
        self.hidden = nn.ModuleList(_Hidden(spec, d, h) for d, h in itertools.pairwise(sizes))
        self.weight = nn.Parameter(torch.empty(n_outputs, sizes[-1]))
        self.bias = nn.Parameter(torch.empty(n_outputs))
        self.hidden_sizes, self._positive = spec.hidden_sizes, positive

    @property
    def first(self) -> str:
        """The name of the weights that meet the features."""
        return _first(len(self.hidden))

    def own(self) -> dict[str, Tensor]:
        """Everything of it that `head.safetensors` has, by the same names."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {name: tensor for name, tensor in tensors.items() if name.split(".")[-1] not in _NOT_KEPT}

    def forward(self, x: Tensor, uniforms: Sequence[Tensor] | None = None) -> Tensor:
        """(b, d) to (b, c).

        Args:
            x: features as the backbone gives them.
            uniforms: (b, h) random numbers in [0, 1) for each hidden layer. In training a unit is kept where its number
                is not below the dropout rate, so the same numbers drop the same units. None uses torch's generator.
        """
        z = x / self.feature_rms
        for i, layer in enumerate(self.hidden):
            z = layer(z, uniforms[i] if uniforms else None)
        z = functional.linear(z, self.weight, self.bias)
        return z if self._positive is None else two_logits(z, self._positive)


class _Hidden(nn.Module):
    """An affine map, batch norm where there is one, activation, dropout."""

    def __init__(self, spec: HeadSpec, n_inputs: int, n_units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_units, n_inputs))
        self.bias = nn.Parameter(torch.empty(n_units))
        self.norm = nn.BatchNorm1d(n_units, NORM_EPSILON, NORM_MOMENTUM) if spec.norm == "batch" else None
        self._activation, self._rate = ACTIVATIONS[spec.activation], spec.dropout

    def forward(self, z: Tensor, uniforms: Tensor | None) -> Tensor:
        """(b, d) to (b, h)."""
        z = functional.linear(z, self.weight, self._used_bias())
        if self.norm is not None:
            z = _normed(self.norm, z)
        z = self._activation(z)
        if uniforms is None or not self.training:
            return functional.dropout(z, self._rate, self.training)
        return z * (uniforms >= self._rate) / (1 - self._rate)

    def _used_bias(self) -> Tensor:
        """The bias; before a batch norm its gradient is zero, as in a stack."""
        return self.bias if self.norm is None else self.bias.detach() + 0.0 * self.bias


def _normed(norm: nn.BatchNorm1d, z: Tensor) -> Tensor:
    """Batch norm that also accepts a single row (its own mean), as a stack does; torch raises an error."""
    if not norm.training or len(z) > 1:
        return norm(z)  # type: ignore[no-any-return]
    with torch.no_grad():
        for running, value in ((norm.running_mean, z[0]), (norm.running_var, torch.zeros_like(z[0]))):
            assert running is not None
            running.lerp_(value.to(running.dtype), NORM_MOMENTUM)
    return (z - z) * norm.weight + norm.bias


def two_logits(z: Tensor, positive: int) -> Tensor:
    """(…, 1) outputs z of the positive class to (…, 2) logits, 0 and z."""
    pair = (torch.zeros_like(z), z) if positive == 1 else (z, torch.zeros_like(z))
    return torch.cat(pair, dim=-1)


def _first(n_hidden: int) -> str:
    return "hidden.0.weight" if n_hidden else "weight"
