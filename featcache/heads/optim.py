"""How far a head goes with a step, and when it stops: optimizers, schedules, early stopping.

Neighbouring heads of a stack that go at the same rate take one step together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from featcache.heads.spec import HeadSpec

_PLATEAU_FACTOR, _PLATEAU_THRESHOLD = 0.1, 1e-4  # those of torch's ReduceLROnPlateau
_ADAM = {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "maximize": False, "fused": True}
_SGD = {"dampening": 0.0, "nesterov": False, "maximize": False, "fused": True}


class Schedule(Protocol):
    """What a `Watcher` must know of a training: fields of `HeadSpec`."""

    @property
    def schedule(self) -> str: ...
    @property
    def lr_patience(self) -> int: ...
    @property
    def patience(self) -> int: ...
    @property
    def epochs(self) -> int: ...


class Watcher:
    """Follows one training's loss on its watch rows: lowers its rate on a plateau, says when to stop."""

    def __init__(self, spec: Schedule) -> None:
        self._spec = spec
        self._best, self.best_epoch = math.inf, 0
        self._since_stop = self._since_plateau = 0
        self._plateau_best, self._reductions = math.inf, 0

    @property
    def stopped(self) -> bool:
        return 0 < self._spec.patience <= self._since_stop

    def factor(self, epoch: int) -> float:
        """The factor of the learning rate in an epoch."""
        if self._spec.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (epoch - 1) / self._spec.epochs))
        return _PLATEAU_FACTOR**self._reductions

    def see(self, loss: float, epoch: int) -> bool:
        """Takes the loss after an epoch; True if it is the best so far."""
        if self._spec.schedule == "plateau":
            self._see_plateau(loss)
        improved = loss < self._best
        if improved:
            self._best, self.best_epoch, self._since_stop = loss, epoch, 0
        else:
            self._since_stop += 1
        return improved

    def _see_plateau(self, loss: float) -> None:
        if loss < self._plateau_best * (1 - _PLATEAU_THRESHOLD):
            self._plateau_best, self._since_plateau = loss, 0
            return
        self._since_plateau += 1
        if self._since_plateau > self._spec.lr_patience:
            self._reductions, self._since_plateau = self._reductions + 1, 0


@dataclass(frozen=True, eq=False)
class Step:
    """Neighbouring heads of a stack that take the same step: views of their parameters and moments."""

    optimize: Callable[..., None]
    heads: slice
    parameters: list[Tensor]
    moments: list[list[Tensor]]
    steps: list[Tensor]

    def take(self, gradients: Sequence[Tensor], skipped: int = 0) -> None:
        """By the gradients of the whole stack, of all parameters but the first `skipped`."""
        # The fused kernels read gradients as if they were contiguous, whatever they are.
        head_gradients = [t[self.heads].contiguous() for t in gradients]
        moments = [moment[skipped:] for moment in self.moments]
        self.optimize(self.parameters[skipped:], head_gradients, moments, self.steps[skipped:])


def optimizer(spec: HeadSpec, lr: float, weight_decay: float) -> Callable[..., None]:
    """A step of torch's own functional optimizers. The classes around them cost three seconds to import what they need
    for compiling, longer than a linear head takes to train."""
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
    """What an optimizer remembers of a parameter: one moment (sgd) or two."""
    return tuple(torch.zeros_like(parameter).detach() for _ in range(1 if optimizer == "sgd" else 2))
