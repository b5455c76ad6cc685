"""What learns in a training on pixels: the upper part of a network with its head, its optimizer, loss and pace.

Knows nothing of epochs, of what is kept, or of who trains along.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache.backbones import Backbone
from featcache.errors import UsageError
from featcache.heads.modules import Head
from featcache.heads.objective import Objective, Targets, class_weight
from featcache.recipe import Recipe

Array = np.ndarray[Any, Any]

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class Learner(nn.Module):
    """The learning part of a network, and its head: what enters it to (b, c) logits."""

    def __init__(self, backbone: Backbone, tail: nn.Module, head: Head) -> None:
        super().__init__()
        self._normalize, self._device = backbone.normalize, backbone.device
        self.tail, self.head = tail, head
        self.at_work = tail

    def entering(self, inputs: Array) -> Tensor:
        """What a source gives, as the tail takes it."""
        x = torch.from_numpy(inputs).to(self._device)
        if x.dtype == torch.uint8:  # pixels, (b, h, w) or (b, h, w, 3)
            x = self._normalize((x[..., None].expand(*x.shape, 3) if x.ndim == 3 else x).permute(0, 3, 1, 2))
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def forward(self, x: Tensor, draws: Sequence[Tensor]) -> Tensor:
        tail = self.at_work if self.training else self.tail
        z: Tensor = self.head(tail(x).float(), draws or None)
        return z


def optimizer(module: nn.Module, names: Sequence[str], head: Head, recipe: Recipe) -> torch.optim.Optimizer:
    """Of what learns of a network, by name, and of its head, each at its own rate (`full`, before any schedule)."""
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
    """What an optimizer remembers of each parameter, as a checkpoint kept it."""
    if not moments:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in moments.items():
        number, _, moment = name.partition("/")
        state.setdefault(int(number), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def objective(targets: Targets, train: Array, recipe: Recipe, device: torch.device) -> Objective:
    """The loss of all rows, with class weights by the labels of those that are learnt from."""
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
class OfStage:
    """The pace of one stage, for its `Watcher`."""

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
def in_our_words() -> Iterator[None]:
    """What torch says of a single row, one line by which something can be done about it."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            "a batch norm that learns cannot see one image at a time: use a larger `batch_size`, a smaller "
            "`grad_accumulation`, or an `unfreeze` without such norms."
        ) from error
