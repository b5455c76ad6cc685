"""The heads to be trained, their results, and which of them are trained together.

Heads of one shape with batches from the same rows form one stack, as far as memory allows. Fits that differ only in
their number of epochs are snapshots of one training.
Letters: k heads, n rows, m rows of the pool, c classes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featcache.devices import machine_bytes
from featcache.heads import optim
from featcache.heads.mlp import n_outputs, n_parameters
from featcache.heads.optim import Targets
from featcache.specs import HeadSpec

Array = np.ndarray[Any, Any]
History = list[dict[str, float]]

_NONE = np.array([], dtype=np.int64)
_VIEW_STREAM = 1  # of a pool's seed


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows that batches are drawn from, in the same order for all heads.

    Attributes:
        rows: (m,) row numbers.
        share: the share of them that a head learns from: 1 for a hold-out, (k - 1) / k in k folds.
        seed: random seed of the order.
    """

    rows: Array
    share: float = 1.0
    seed: int = 0

    def batches(self, batch_size: int) -> Iterator[Iterator[Tensor]]:
        """Yields the batches of each epoch, as positions in the pool. A batch is so large that on average `batch_size`
        of its rows are training rows of a head. Batch sizes within an epoch differ by at most one."""
        generator = torch.Generator().manual_seed(self.seed)
        m = len(self.rows)
        n_batches = max(1, math.ceil(m * self.share / batch_size))
        while True:
            order = torch.randperm(m, generator=generator)
            yield iter(torch.tensor_split(order, n_batches))

    def views(self, n_vectors: int) -> Iterator[Tensor]:
        """Yields for each epoch (m,) uniform numbers from 0 to `n_vectors` - 1: the vector (augmentation) to use for
        each row. They are the same for every head that draws from the pool."""
        generator = np.random.default_rng((self.seed, _VIEW_STREAM))
        while True:
            yield torch.from_numpy(generator.integers(n_vectors, size=len(self.rows)))


@dataclass(frozen=True, eq=False)
class Fit:
    """One head to be trained or solved.

    Attributes:
        spec: the head.
        pool: the rows that its batches are drawn from.
        train: training rows, all of them in the pool.
        val: rows to predict.
        watch: early-stopping rows: held out of the training rows for early stopping and "plateau"; neither trained on
            nor reported.
        labelling: number of the labelling in `Targets` that is its target.
    """

    spec: HeadSpec
    pool: Pool
    train: Array
    val: Array
    watch: Array = field(default_factory=lambda: _NONE)
    labelling: int = 0

    def is_chunked(self, n_features: int, device: torch.device) -> bool:
        """Whether its first layer is trained in chunks, see `optim`."""
        return device.type == "cpu" and optim.is_chunked(self.spec, n_features)


@dataclass(frozen=True, eq=False)
class Fitted:
    """The result of a `Fit`.

    Attributes:
        fit: the head that was trained.
        tensors: float32 arrays that apply to features as stored; empty if only logits were requested.
        logits: (len(val), c) logits of the validation rows.
        epoch: epoch of the weights.
        n_parameters: number of trainable parameters.
        history: a mapping per epoch, if curves were requested.
        is_finite: whether all weights are finite.
    """

    fit: Fit
    tensors: dict[str, Array]
    logits: Array
    epoch: int
    n_parameters: int
    history: History = field(default_factory=list)
    is_finite: bool = True

    @property
    def diverged(self) -> bool:
        """Whether a weight or a logit is not finite."""
        return not (self.is_finite and np.isfinite(self.logits).all())


# --- heads trained together -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One training, and the fits that are snapshots of it after some epoch."""

    fit: Fit
    snapshots: dict[int, list[int]]  # epoch -> numbers of fits
    fits: Sequence[Fit]

    @property
    def epochs(self) -> int:
        return max(self.snapshots)


def trajectories(fits: Sequence[Fit]) -> list[Trajectory]:
    """Groups fits that are snapshots of one training."""
    trajectories: dict[Any, Trajectory] = {}
    for i, fit in enumerate(fits):
        spec = fit.spec if fit.spec.schedule == "cosine" else replace(fit.spec, epochs=1)
        key = (spec, id(fit.pool), fit.train.tobytes(), fit.watch.tobytes(), fit.val.tobytes(), fit.labelling)
        trajectory = trajectories.setdefault(key, Trajectory(fit, {}, fits))
        trajectory.snapshots.setdefault(fit.spec.epochs, []).append(i)
    return list(trajectories.values())


def n_parallel_stacks(members: Sequence[Trajectory], x: Tensor, targets: Targets, limit: int) -> int:
    """Number of stacks that are trained in parallel: one on a GPU; on a CPU one per core, as far as memory allows a
    head in each."""
    if x.device.type == "cuda" or not members:
        return 1
    largest = max(bytes_per_head(trajectory.fit, x, targets) for trajectory in members)
    return max(1, min(torch.get_num_threads(), len(members), limit // largest))


def make_stacks(
    members: Sequence[Trajectory], x: Tensor, targets: Targets, limit: int, n_parallel: int
) -> Iterator[list[Trajectory]]:
    """Divides trajectories of one shape and pool into at least `n_parallel` stacks that fit into memory.

    Within a stack, heads with the same learning rate and weight decay are neighbours and share one optimizer call.

    Args:
        members: all trajectories.
        x: the features.
        targets: labels.
        limit: memory of a stack, in bytes.
        n_parallel: number of stacks that are trained in parallel.
    """

    def shape(trajectory: Trajectory) -> Any:
        s = trajectory.fit.spec
        layers = (s.kind, s.hidden_sizes, s.activation, s.norm, s.output, s.scale)
        training = (s.optimizer, s.momentum, s.batch_size, s.patience > 0, s.augmentations)
        return layers, training, id(trajectory.fit.pool)

    groups: dict[Any, list[Trajectory]] = {}
    for trajectory in members:
        groups.setdefault(shape(trajectory), []).append(trajectory)
    for group in groups.values():
        group.sort(key=lambda t: (t.fit.spec.lr, t.fit.spec.weight_decay))
        fit = group[0].fit
        size = min(max(1, limit // bytes_per_head(fit, x, targets)), math.ceil(len(group) / n_parallel))
        size = min(size, optim.MAX_CHUNKED_HEADS) if fit.is_chunked(x.shape[-1], x.device) else size
        for start in range(0, len(group), size):
            yield group[start : start + size]


def bytes_per_head(fit: Fit, x: Tensor, targets: Targets) -> int:
    """Approximate memory of one head in training: parameters, gradients, two moments, the best weights and a scratch
    copy; a dozen activations of a batch; its mask and its logits of the pool. A chunked one has no full gradient, and
    best weights only with early stopping."""
    spec = fit.spec
    c = n_outputs(spec, targets.n_classes, targets.has_findings)
    batch_size = _batch_size(fit)
    copies = 4 + (spec.patience > 0) if fit.is_chunked(x.shape[-1], x.device) else 6
    floats = copies * n_parameters(spec, x.shape[-1], c) + 12 * batch_size * (sum(spec.hidden_sizes) + c)
    return int(4 * (floats + len(fit.pool.rows) * (2 + 2 * c + sum(spec.hidden_sizes[:1]) / 8)))


def multiplications_per_step(members: Sequence[Trajectory], x: Tensor, targets: Targets) -> int:
    """Multiplications of one forward pass of a stack."""
    fit = members[0].fit
    outputs = n_outputs(fit.spec, targets.n_classes, targets.has_findings)
    return int(len(members) * n_parameters(fit.spec, x.shape[-1], outputs) * _batch_size(fit))


def _batch_size(fit: Fit) -> float:
    """Rows of the pool per batch."""
    return min(len(fit.pool.rows), fit.spec.batch_size / fit.pool.share)


def memory_for(device: torch.device) -> int:
    """Bytes: half of what a GPU has free, a quarter of the machine's memory otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return machine_bytes() // 4
