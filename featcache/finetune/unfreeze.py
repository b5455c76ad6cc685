"""What is trained of a network: parameters selected by name, with a head, an optimizer and a loss.

Parameters are selected by `last-block`, `last-stage`, a number of blocks, `all`, or a regular expression. `choices`
lists what can be unfrozen and how many parameters that trains.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featcache import backbones
from featcache.backbones import Backbone, networks
from featcache.backbones.blocks import groups
from featcache.backbones.graph import Cut, cut, learn, n_trainable
from featcache.errors import UsageError
from featcache.heads import mlp
from featcache.heads.mlp import Head
from featcache.heads.optim import Objective, Targets, class_weight
from featcache.specs import HeadSpec, Recipe, Stage

__all__ = ["Choice", "Cut", "choices", "cut", "freeze_bn_of", "learn", "n_trainable", "unfrozen"]

Shape = tuple[int, ...]

_N_NAMED = 4  # blocks in a message
_N_CLASSES = 2  # of the heads in the table
Array = np.ndarray[Any, Any]
_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@dataclass(frozen=True)
class Choice:
    """A part of a backbone that can be unfrozen.

    Attributes:
        unfreeze: its name: "last-block", "last-stage", "2" and so on, "all".
        n_blocks: how many blocks from the end; None where a stage is not made of whole blocks.
        first: the first trained module.
        n_trainable: number of parameters.
        boundary: shape of its input for one image of the default size.
        with_linear: number of parameters with a linear head of two classes.
        with_mlp: the same with the default MLP head, or the dense layers of `simple-cnn` and `covid-cnn`.
    """

    unfreeze: str
    n_blocks: int | None
    first: str
    n_trainable: int
    boundary: Shape
    with_linear: int
    with_mlp: int


def unfrozen(module: nn.Module, selection: str, freeze_bn: str = "no") -> list[str]:
    """Names of the parameters to train, in the network's order.

    Args:
        module: the module of a `backbones.Backbone`.
        selection: "last-block", "last-stage" (what follows the last block belongs to both), "all", a whole number n
            for the last n blocks, or a regular expression that is searched in the names of the parameters.
        freeze_bn: "yes" leaves batch norms out, else "no".

    Raises:
        UsageError: it matches nothing, with the names of some blocks; or the network has no such blocks; or nothing is
            left of it without norms.
    """
    if freeze_bn == "yes":
        every = unfrozen(module, selection)
        still = {f"{owner}.{name}" for owner, norm in _batch_norms(module) for name, _ in norm.named_parameters()}
        if left := [name for name in every if name not in still]:
            return left
        raise UsageError(f"`freeze_bn`=yes: nothing but batch norms is in `unfreeze`={selection}.")
    names = [name for name, _ in module.named_parameters()]
    if selection == "all":
        return names
    if selection in ("last-block", "last-stage"):
        chosen = set(groups(module, coarse=selection == "last-stage")[-1])
    elif re.fullmatch(r"[0-9]{1,6}", selection):
        chosen = set(_last(groups(module, coarse=False), int(selection)))
    else:
        chosen = set(_matching(module, names, selection))
    return [name for name in names if name in chosen]


def freeze_bn_of(backbone: backbones.Backbone, stages: Sequence[Stage], freeze_bn: str) -> str:
    """`freeze_bn`, with "auto" resolved to "yes" or "no" for the batch norms of the trained part."""
    if freeze_bn != "auto":
        return freeze_bn
    learning = {name.rpartition(".")[0] for stage in stages for name in unfrozen(backbone.module, stage.unfreeze)}
    norm_layers = [norm for owner, norm in _batch_norms(backbone.module) if owner in learning]
    folded = bool(norm_layers) and all(_is_without_statistics(norm) for norm in norm_layers)
    return "yes" if folded and not backbone.weights_source.startswith("random:") else "no"


def _batch_norms(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    return ((name, part) for name, part in module.named_modules() if isinstance(part, _BatchNorm))


def _is_without_statistics(norm: _BatchNorm) -> bool:
    mean, var = norm.running_mean, norm.running_var
    return mean is not None and var is not None and not mean.any() and bool((var == 1).all())


def _last(blocks: Sequence[Sequence[str]], n: int) -> list[str]:
    if not 1 <= n <= len(blocks):
        raise UsageError(
            f"`unfreeze`={n}: this backbone has {len(blocks)} blocks, so the number must be from 1 to {len(blocks)}."
        )
    return [name for block in blocks[-n:] for name in block]


def _matching(module: nn.Module, names: Sequence[str], pattern: str) -> list[str]:
    try:
        searched = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"`unfreeze`={pattern!r} is no regular expression: {error}. {_choices(module)}") from error
    if matches := [name for name in names if searched.search(name)]:
        return matches
    raise UsageError(f"`unfreeze`={pattern!r} is in the name of no parameter. {_choices(module)}")


def _choices(module: nn.Module) -> str:
    """A sentence with the possible values."""
    words = "There are last-block, last-stage, all, a number of blocks"
    try:
        blocks = groups(module, coarse=False)
    except UsageError:
        return f"{words}, and a part of the name of a parameter."
    near = ", ".join(block_name(module, block) for block in blocks[-_N_NAMED:])
    return f"{words}, and a part of a name: the last blocks are {near}."


def choices(name: str) -> list[Choice]:
    """The parts of a backbone that can be unfrozen. Nothing is downloaded or computed.

    Raises:
        UsageError: no backbone has this name, or what its blocks are is not known.
    """
    resolved, module, size = backbones.sketch(name)
    blocks = groups(module, coarse=False)
    stage = unfrozen(module, "last-stage")
    to_device, n_features = _entering(module, [_last(blocks, n) for n in range(len(blocks), 0, -1)], size)
    of_stage, _ = _entering(module, [stage], size)
    heads = [mlp.n_parameters(spec, n_features, mlp.n_outputs(spec, _N_CLASSES, False)) for spec in _heads(resolved)]

    def choice(word: str, n_blocks: int | None, first: Sequence[str], names: Sequence[str], enters: Shape) -> Choice:
        n = n_trainable(module, names)
        return Choice(word, n_blocks, block_name(module, first), n, enters, n + heads[0], n + heads[1])

    rows = []
    for n, enters in zip(range(1, len(blocks) + 1), reversed(to_device), strict=True):
        word = "last-block" if n == 1 else "all" if n == len(blocks) else str(n)
        rows.append(choice(word, n, blocks[-n], _last(blocks, n), enters))
    n_blocks = next((n for n in range(1, len(blocks) + 1) if set(_last(blocks, n)) == set(stage)), None)
    rows.insert(1, choice("last-stage", n_blocks, stage, stage, of_stage[0]))
    return rows


def _entering(module: nn.Module, parts: Sequence[Sequence[str]], size: Sequence[int]) -> tuple[list[Shape], int]:
    """(shapes of the inputs of some parts, d). Each part lies within the one before it, so that one pass through the
    network is enough."""
    x, rest, shapes = torch.zeros(1, 3, *size, device="meta"), module, []
    with torch.no_grad():
        for names in parts:
            division = cut(rest, names)
            x, rest = x if division.trunk is None else division.trunk(x), division.tail
            shapes.append(tuple(x.shape[1:]))
        return shapes, rest(x).shape[1]


def _heads(name: str) -> tuple[HeadSpec, HeadSpec]:
    own = networks.DENSE.get(name)
    return HeadSpec.of("linear"), HeadSpec.of("flatten-mlp", hidden_sizes=own) if own else HeadSpec.of("mlp")


def block_name(module: nn.Module, block: Sequence[str]) -> str:
    """The first module of a block, as the network calls it: `blocks.6.1`."""
    every = [name for name, _ in module.named_parameters()]
    parts = block[0].split(".")
    for n in range(1, len(parts)):
        prefix = ".".join(parts[:n])
        if {name for name in every if name.startswith(f"{prefix}.")} <= set(block):
            return prefix
    return block[0]


class TrainedPart(nn.Module):
    """The trained part of a network with its head: inputs of that part to (b, c) logits."""

    def __init__(self, backbone: Backbone, tail: nn.Module, head: Head) -> None:
        super().__init__()
        self._normalize, self._device = backbone.normalize, backbone.device
        self.tail, self.head = tail, head
        self.compiled_tail = tail

    def to_device(self, inputs: Array) -> Tensor:
        """Inputs from a source, as a tensor for the tail: normalised pixels, or outputs of the frozen part."""
        x = torch.from_numpy(inputs).to(self._device)
        if x.dtype == torch.uint8:  # pixels, (b, h, w) or (b, h, w, 3)
            x = self._normalize((x[..., None].expand(*x.shape, 3) if x.ndim == 3 else x).permute(0, 3, 1, 2))
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def forward(self, x: Tensor, uniforms: Sequence[Tensor]) -> Tensor:
        tail = self.compiled_tail if self.training else self.tail
        z: Tensor = self.head(tail(x).float(), uniforms or None)
        return z


def optimizer(module: nn.Module, names: Sequence[str], head: Head, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of the named parameters and of the head, each with its learning rate (`full`, unscheduled)."""
    trainable, (of_head, of_backbone) = set(names), recipe.rates
    learning = [p for name, p in module.named_parameters() if name in trainable]
    groups = [
        {"params": learning, "lr": of_backbone, "full": of_backbone},
        {"params": list(head.parameters()), "lr": of_head, "full": of_head},
    ]
    options: dict[str, Any] = {"weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        options["momentum"] = recipe.momentum
    make: Any = _OPTIMIZERS[recipe.optimizer]
    optimizer: torch.optim.Optimizer = make(groups, **options)
    return optimizer


def put_moments(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Restores the optimizer state of each parameter from a checkpoint."""
    if not moments:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in moments.items():
        number, _, moment = name.partition("/")
        state.setdefault(int(number), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def objective(targets: Targets, train: Array, recipe: Recipe, device: torch.device) -> Objective:
    """The loss of all rows, with class weights computed from the labels of the training rows."""
    weights = class_weight(targets.values[0][train], targets.n_classes, recipe.class_weight)
    values = targets.values.astype(np.float32) if targets.has_findings else targets.values
    return Objective(
        mask=torch.ones(0, 1, device=device),
        values=torch.from_numpy(values).to(device),
        labelling=torch.zeros(1, dtype=torch.long, device=device),
        class_weight=torch.from_numpy(weights[None].astype(np.float32)).to(device),
        smoothing=torch.tensor([recipe.label_smoothing], device=device),
        has_findings=targets.has_findings,
    )


@dataclass(frozen=True)
class StageSchedule:
    """Schedule and early stopping of one stage, for its `LossMonitor`."""

    recipe: Recipe
    epochs: int

    @property
    def schedule(self) -> str:
        return self.recipe.schedule

    @property
    def lr_patience(self) -> int:
        return self.recipe.lr_patience

    @property
    def patience(self) -> int:
        return self.recipe.patience


@contextmanager
def explained_batch_norm_errors() -> Iterator[None]:
    """Translates torch's error about batch norms of a single row."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            "a batch norm in training mode needs more than one image at a time: use a larger `batch_size`, a smaller "
            "`grad_accumulation`, or an `unfreeze` without such norms."
        ) from error
