"""Which part of a backbone learns in a partial fine-tune, by a word of a person: `last-block`, `last-stage`, how many
blocks, `all`, or a pattern of parameter names. What can be unfrozen, and what it costs, is a table (`choices`).

What a block or a stage is, `blocks` knows; how a network is cut in two before what learns, and how the rest
is kept from learning, `graph`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from featcache import backbones
from featcache.backbones import networks
from featcache.backbones.blocks import groups
from featcache.backbones.graph import Cut, cut, learn, n_trainable
from featcache.errors import UsageError
from featcache.heads import HeadSpec, stacks
from featcache.recipe import Stage

__all__ = ["Choice", "Cut", "choices", "cut", "freeze_bn_of", "learn", "n_trainable", "unfrozen"]

Shape = tuple[int, ...]

_N_NAMED = 4  # blocks in a message
_N_CLASSES = 2  # of the heads in the table


@dataclass(frozen=True)
class Choice:
    """A part of a backbone that can be unfrozen.

    Attributes:
        unfreeze: the word for it: "last-block", "last-stage", "2" and so on, "all".
        n_blocks: how many blocks from the end; None where a stage is not made of whole blocks.
        first: the first module that learns.
        n_trainable: its parameters.
        boundary: shape of what enters it, for one image of the default size.
        with_linear: parameters with those of a linear head of two classes.
        with_mlp: the same with the default MLP head, or the dense layers that belong to a network of ours.
    """

    unfreeze: str
    n_blocks: int | None
    first: str
    n_trainable: int
    boundary: Shape
    with_linear: int
    with_mlp: int


def unfrozen(module: nn.Module, selection: str, freeze_bn: str = "no") -> list[str]:
    """Names of the parameters that learn, in the network's order.

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
    """What becomes of batch norms that would learn: `freeze_bn`, "auto" resolved to "yes" or "no"."""
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
            f"`unfreeze`={n}: this backbone has {len(blocks)} blocks, so that from 1 to {len(blocks)} may learn."
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
    """What could have been asked for."""
    words = "There are last-block, last-stage, all, a number of blocks"
    try:
        blocks = groups(module, coarse=False)
    except UsageError:
        return f"{words}, and a part of the name of a parameter."
    near = ", ".join(block_name(module, block) for block in blocks[-_N_NAMED:])
    return f"{words}, and a part of a name: the last blocks are {near}."


def choices(name: str) -> list[Choice]:
    """What of a backbone can be unfrozen. The network is a sketch, nothing is downloaded or computed.

    Raises:
        UsageError: no backbone has this name, or what its blocks are is not known.
    """
    resolved, module, size = backbones.sketch(name)
    blocks = groups(module, coarse=False)
    stage = unfrozen(module, "last-stage")
    entering, n_features = _entering(module, [_last(blocks, n) for n in range(len(blocks), 0, -1)], size)
    of_stage, _ = _entering(module, [stage], size)
    heads = [
        stacks.n_parameters(spec, n_features, stacks.n_outputs(spec, _N_CLASSES, False)) for spec in _heads(resolved)
    ]

    def choice(word: str, n_blocks: int | None, first: Sequence[str], names: Sequence[str], enters: Shape) -> Choice:
        n = n_trainable(module, names)
        return Choice(word, n_blocks, block_name(module, first), n, enters, n + heads[0], n + heads[1])

    rows = []
    for n, enters in zip(range(1, len(blocks) + 1), reversed(entering), strict=True):
        word = "last-block" if n == 1 else "all" if n == len(blocks) else str(n)
        rows.append(choice(word, n, blocks[-n], _last(blocks, n), enters))
    n_blocks = next((n for n in range(1, len(blocks) + 1) if set(_last(blocks, n)) == set(stage)), None)
    rows.insert(1, choice("last-stage", n_blocks, stage, stage, of_stage[0]))
    return rows


def _entering(module: nn.Module, parts: Sequence[Sequence[str]], size: Sequence[int]) -> tuple[list[Shape], int]:
    """(shape of what enters each of some parts, d). Each part lies within the one before it: one walk through the
    network serves all."""
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
