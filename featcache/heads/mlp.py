"""First layers of millions of weights, as heads on flattened feature maps have them: trained in pieces, on a CPU.

The gradient of such a layer is as large as its weights: written to memory, read again by the optimizer, never needed as
a whole. Here it is made for a few units of one head at a time, in a buffer that stays in the processor's cache, and the
step is taken at once; and of a batch only those rows are multiplied that a head learns from. What comes out is what a
stack comes to in one product, but for the order of sums. Knows no loss and no labels.
Letters: k heads, b rows of a batch, r of them a head's own, d features, h units of the first layer.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from featcache.heads.optim import Step
from featcache.heads.spec import HeadSpec

HEADS = 4  # of a stack: more of them gain nothing, and memory is what other stacks could use
_LEAST = 2_000_000  # weights of the layer
_PIECE = 1 << 20  # numbers of a gradient at a time

Own = list[tuple[Tensor, Tensor]]  # of each head which rows of a batch are its own, (r,), and their features, (r, d)


def is_wide(spec: HeadSpec, n_features: int) -> bool:
    """Whether a head's first layer is large enough, and its features are divided by one number."""
    return bool(spec.hidden_sizes) and spec.scale != "standard" and spec.hidden_sizes[0] * n_features >= _LEAST


def own_rows(x: Tensor, row_mask: Tensor) -> Own:
    """The rows of a batch that each head learns from; heads of one fold share them.

    Args:
        x: (b, d) features.
        row_mask: (k, b), 1 where a head learns from the row.
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
def products(weights: Tensor, own: Own, n_rows: int) -> Tensor:
    """(k, b, h) weights times features, 0 in rows that are not a head's own.

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
def take(steps: Sequence[Step], own: Own, gradient: Tensor) -> None:
    """Steps of the first layers, which are the first parameters of each step.

    Args:
        steps: those of all heads in an epoch.
        own: rows of each head.
        gradient: (k, b, h) of the loss by what `products` gave.
    """
    buffer = gradient.new_empty(0)
    for step in steps:
        weights, moments, n_steps = step.parameters[0], [moment[0] for moment in step.moments], step.steps[0]
        for j, i in enumerate(range(*step.heads.indices(len(own)))):
            rows, x = own[i]
            row_gradient = gradient[i, rows]  # (r, h)
            for units in _pieces(*weights.shape[1:]):
                some = row_gradient[:, units].T  # (u, r)
                buffer = buffer if len(buffer) >= len(some) else x.new_empty(len(some), x.shape[1])
                piece = torch.mm(some, x, out=buffer[: len(some)])  # (u, d)
                unit_moments = [[moment[j, units]] for moment in moments]
                step.optimize([weights[j, units]], [piece], unit_moments, [n_steps.clone()])
        n_steps.add_(1)


def _pieces(n_units: int, n_features: int) -> Iterator[slice]:
    """Units that are trained at once."""
    size = max(1, _PIECE // n_features)
    for start in range(0, n_units, size):
        yield slice(start, min(start + size, n_units))
