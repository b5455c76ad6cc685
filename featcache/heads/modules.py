"""A head as a torch module, to be trained on with the network below it.

It has the numbers of `head.safetensors`, but for one change of scale: features are divided by the root mean square that
phase 1 divided them by, and the first layer's weights are multiplied by it. Adam's step is about as large as the rate,
whatever the gradient, so a rate means in phase 2 what it meant in phase 1 only on weights of the same size. Names and
layout of the parameters are those of the file. Knows nothing of the network that makes the features, of losses or rows.
Letters: b rows of a batch, d features, h units of a hidden layer, c classes.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from featcache.errors import UsageError
from featcache.heads import stacks
from featcache.heads.spec import NORM_EPSILON, HeadSpec
from featcache.heads.stacks import ACTIVATIONS, NORM_MOMENTUM

Array = np.ndarray[Any, Any]

_NOT_KEPT = ("feature_rms", "num_batches_tracked")  # buffers that `head.safetensors` does not have


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
    n_outputs = stacks.n_outputs(spec, n_classes, has_findings)
    single = positive if n_outputs < n_classes else None
    with torch.device("meta"):  # a head that is promised may be larger than its file, or than any memory
        shapes = {
            name: tuple(t.shape) for name, t in Head(spec, n_features, n_outputs, feature_rms, single).own().items()
        }
    if {name: np.shape(array) for name, array in tensors.items()} != shapes:
        raise UsageError(f"these are not the weights of a {spec.kind} head with {n_outputs} output(s).")
    module = Head(spec, n_features, n_outputs, feature_rms, single)
    own = module.own()
    with torch.no_grad():
        for name, tensor in own.items():
            kept = torch.from_numpy(np.array(tensors[name], dtype=np.float64))
            tensor.copy_(kept * module.feature_rms.double() if name == module.first else kept)
    return module


def fresh(spec: HeadSpec, n_features: int, n_outputs: int, feature_rms: float = 1.0) -> dict[str, Array]:
    """The weights of a head that has learnt nothing: the numbers with which `train-head` begins for the same seed.

    Args:
        spec: the head's, of a trained kind.
        n_features: d.
        n_outputs: as `stacks.n_outputs` counts them.
        feature_rms: what `head_module` will be given.

    Returns:
        float32 arrays as in `head.safetensors`.
    """
    head = {name: tensor.numpy() for name, tensor in stacks.initial(spec, n_features, n_outputs).items()}
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
        self, spec: HeadSpec, n_features: int, n_outputs: int, feature_rms: float, widened: int | None
    ) -> None:
        super().__init__()
        sizes = (n_features, *spec.hidden_sizes)
        self.register_buffer("feature_rms", torch.tensor(feature_rms, dtype=torch.float32))
        self.hidden = nn.ModuleList(_Hidden(spec, d, h) for d, h in itertools.pairwise(sizes))
        self.weight = nn.Parameter(torch.empty(n_outputs, sizes[-1]))
        self.bias = nn.Parameter(torch.empty(n_outputs))
        self.hidden_sizes, self._widened = spec.hidden_sizes, widened

    @property
    def first(self) -> str:
        """The name of the weights that meet the features."""
        return _first(len(self.hidden))

    def own(self) -> dict[str, Tensor]:
        """Everything of it that `head.safetensors` has, by the same names."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {name: tensor for name, tensor in tensors.items() if name.split(".")[-1] not in _NOT_KEPT}

    def forward(self, x: Tensor, draws: Sequence[Tensor] | None = None) -> Tensor:
        """(b, d) to (b, c).

        Args:
            x: features as the backbone gives them.
            draws: (b, h) uniform numbers for each hidden layer: in training a unit lives where its number is not below
                the dropout, so that whoever draws the same numbers again drops the same units. None draws them from
                torch's generator.
        """
        z = x / self.feature_rms
        for i, layer in enumerate(self.hidden):
            z = layer(z, draws[i] if draws else None)
        z = functional.linear(z, self.weight, self.bias)
        return z if self._widened is None else _widened(z, self._widened)


class _Hidden(nn.Module):
    """An affine map, batch norm where there is one, activation, dropout."""

    def __init__(self, spec: HeadSpec, n_inputs: int, n_units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_units, n_inputs))
        self.bias = nn.Parameter(torch.empty(n_units))
        self.norm = nn.BatchNorm1d(n_units, NORM_EPSILON, NORM_MOMENTUM) if spec.norm == "batch" else None
        self._activation, self._rate = ACTIVATIONS[spec.activation], spec.dropout

    def forward(self, z: Tensor, draws: Tensor | None) -> Tensor:
        """(b, d) to (b, h)."""
        z = functional.linear(z, self.weight, self._used_bias())
        if self.norm is not None:
            z = _normed(self.norm, z)
        z = self._activation(z)
        if draws is None or not self.training:
            return functional.dropout(z, self._rate, self.training)
        return z * (draws >= self._rate) / (1 - self._rate)

    def _used_bias(self) -> Tensor:
        """A bias before a batch norm has no effect and a gradient of rounding errors, which Adam would blow up to steps
        of full size: it gets a gradient of zero, as in a stack."""
        return self.bias if self.norm is None else self.bias.detach() + 0.0 * self.bias


def _normed(norm: nn.BatchNorm1d, z: Tensor) -> Tensor:
    """Batch norm, also of a single row, which torch refuses: it is its own mean, as in a stack."""
    if not norm.training or len(z) > 1:
        return norm(z)  # type: ignore[no-any-return]
    with torch.no_grad():
        for running, value in ((norm.running_mean, z[0]), (norm.running_var, torch.zeros_like(z[0]))):
            assert running is not None
            running.lerp_(value.to(running.dtype), NORM_MOMENTUM)
    return (z - z) * norm.weight + norm.bias


def _widened(z: Tensor, positive: int) -> Tensor:
    """A single output z becomes the two logits 0 and z, z of the positive class."""
    pair = (torch.zeros_like(z), z) if positive == 1 else (z, torch.zeros_like(z))
    return torch.cat(pair, dim=1)


def _first(n_hidden: int) -> str:
    return "hidden.0.weight" if n_hidden else "weight"
