"""Many heads are trained at once: the loop over epochs and batches, with everything that is each head's own.

Heads of one shape that draw batches from the same rows are one stack. A fold is a mask: batches run over all rows, and
a head learns from those that are not held out for it. So head i is what it would be alone, whatever stands beside it.
On a CPU the stacks are trained side by side, each on a core of its own: nobody waits for anybody within a step.
What ends a training or lowers its rate is the loss on `watch` rows, taken from the training rows; the `held` rows are
only asked for their logits, in the end. A row may have vectors of augmented views beside its own: which one is learnt
from is drawn epoch by epoch, with the order of the batches.
Letters: k heads, n rows, m rows of the pool, b rows of a batch, d features, c classes.
"""

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featcache.heads import HeadSpec
from featcache.objective import Objective, Targets
from featcache.pace import Step, Watcher, moments_of, optimizer
from featcache.stacks import Stack, feature_scale, n_outputs, n_parameters
from featcache.vectors import clean, scored

Array = np.ndarray[Any, Any]
History = list[dict[str, float]]
Progress = Callable[[int, int], None]

_NONE = np.array([], dtype=np.int64)
_VIEW_STREAM = 1  # of a pool's seed
_DROPOUT_STREAM = 1 << 40  # seeds of dropout are not those of initial weights
# Below this many multiplications a step, threads that share it wait for each other longer than they work: on two cores
# shared with other processes a linear head took 48 s with two threads and 2.4 s with one.
_WORTH_THREADS = 50_000_000


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows that batches are drawn from, in an order that heads share.

    Attributes:
        rows: (m,) row numbers.
        share: the share of them that a head learns from: 1 for a hold-out, (k - 1) / k in k folds.
        seed: of the order.
    """

    rows: Array
    share: float = 1.0
    seed: int = 0

    def batches(self, batch_rows: int) -> Iterator[Iterator[Tensor]]:
        """Epoch by epoch, the batches: positions in the pool. A batch has so many rows that `batch_rows` of them are a
        head's own on average; the batches of an epoch differ by at most one row."""
        generator = torch.Generator().manual_seed(self.seed)
        m = len(self.rows)
        n_batches = max(1, math.ceil(m * self.share / batch_rows))
        while True:
            order = torch.randperm(m, generator=generator)
            yield iter(torch.tensor_split(order, n_batches))

    def views(self, n_vectors: int) -> Iterator[Tensor]:
        """Epoch by epoch (m,) numbers from 0 to `n_vectors` - 1, each as likely: which of its vectors stands for a row.
        As the order, they are the same for every head that draws from the pool."""
        generator = np.random.default_rng((self.seed, _VIEW_STREAM))
        while True:
            yield torch.from_numpy(generator.integers(n_vectors, size=len(self.rows)))


@dataclass(frozen=True, eq=False)
class Fit:
    """One head to be made.

    Attributes:
        spec: the head.
        pool: where its batches come from.
        train: rows it learns from, all of them in the pool.
        held: rows whose logits are wanted.
        watch: training rows kept aside for early stopping and "plateau"; neither learnt from nor reported.
        labelling: number of the labelling it learns.
    """

    spec: HeadSpec
    pool: Pool
    train: Array
    held: Array
    watch: Array = field(default_factory=lambda: _NONE)
    labelling: int = 0


@dataclass(frozen=True, eq=False)
class Fitted:
    """What came of a `Fit`.

    Attributes:
        fit: what was asked.
        tensors: float32 arrays that act on features as they are stored.
        logits: (len(held), c) of the rows asked for.
        epoch: the weights are those after this epoch.
        n_parameters: trainable numbers.
        history: a mapping per epoch, where curves were asked for.
    """

    fit: Fit
    tensors: dict[str, Array]
    logits: Array
    epoch: int
    n_parameters: int
    history: History = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """Whether a number of it is not finite. Labels that neighbours vote with may be unknown: they do not count."""
        weights = self.tensors.values() if self.fit.spec.is_trained else ()
        return not np.isfinite(self.logits).all() or not all(np.isfinite(t).all() for t in weights)


def fit_all(
    fits: Sequence[Fit],
    x: Tensor,
    targets: Targets,
    *,
    average_views: bool = False,
    curves: bool = False,
    memory_bytes: int | None = None,
    on_progress: Progress = lambda done, total: None,
) -> list[Fitted]:
    """Trains heads of any shapes, those of one shape together.

    Args:
        fits: what is wanted, all of trained kinds.
        x: float32 features, on the device to train on: (n, d), or (n, 1 + K, d) with K views of each row after the
            vector of the image as it is.
        targets: labels.
        average_views: whatever a head says of a row, also of one that is watched, is the mean of its logits of all
            1 + K vectors, as in `scoring.averaged`; otherwise what it says of the image as it is.
        curves: evaluate training and held rows after every epoch: costs more than the training of a large sweep.
        memory_bytes: what a stack may take; a larger one is cut into several. None for
            half of what a GPU has free, or a quarter of the machine's memory.
        on_progress: called with (heads and epochs done, heads and epochs in all).

    Returns:
        In the order of `fits`. Specs that differ in `epochs` alone are snapshots of one training.
    """
    limit = memory_bytes or _memory_for(x.device)
    trajectories = _trajectories(fits)
    abreast = 1 if x.device.type == "cuda" else max(1, min(torch.get_num_threads(), len(trajectories)))
    stacks = list(_stacked(trajectories, x.shape[-1], targets, limit // abreast, abreast))
    done, total = dict.fromkeys(range(len(stacks)), 0), sum(t.epochs for t in trajectories)
    results: dict[int, Fitted] = {}
    stop = threading.Event()

    def train(number: int) -> None:
        members = stacks[number]
        for finished in _Training(members, x, targets, average_views, curves).run(results, stop):
            done[number] = finished
            on_progress(sum(done.values()), total)
        done[number] = sum(t.epochs for t in members)  # heads that stopped early are done, too

    work = max((_work(members, x.shape[-1], targets) for members in stacks), default=0)
    has_all_cores = abreast == 1 and work >= _WORTH_THREADS
    with _threads(None if has_all_cores else 1), ThreadPoolExecutor(abreast) as pool:
        try:
            list(pool.map(train, range(len(stacks))))
        except BaseException:
            stop.set()
            raise
    return [results[i] for i in range(len(fits))]


# --- what goes together -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Trajectory:
    """One training, and the fits that are its state after some epoch."""

    fit: Fit
    snapshots: dict[int, list[int]]  # epoch -> numbers of fits
    fits: Sequence[Fit]

    @property
    def epochs(self) -> int:
        return max(self.snapshots)


def _trajectories(fits: Sequence[Fit]) -> list[_Trajectory]:
    found: dict[Any, _Trajectory] = {}
    for i, fit in enumerate(fits):
        spec = fit.spec if fit.spec.schedule == "cosine" else replace(fit.spec, epochs=1)
        key = (spec, id(fit.pool), fit.train.tobytes(), fit.watch.tobytes(), fit.held.tobytes(), fit.labelling)
        trajectory = found.setdefault(key, _Trajectory(fit, {}, fits))
        trajectory.snapshots.setdefault(fit.spec.epochs, []).append(i)
    return list(found.values())


def _stacked(
    trajectories: Sequence[_Trajectory], n_features: int, targets: Targets, limit: int, abreast: int
) -> Iterator[list[_Trajectory]]:
    """Trajectories of one shape and pool, in stacks that fit into memory, at least `abreast` of them. Within a stack
    those of equal rates stand side by side, so that one call of the optimizer serves them."""

    def shape(trajectory: _Trajectory) -> Any:
        s = trajectory.fit.spec
        layers = (s.kind, s.widths, s.activation, s.norm, s.output, s.scale)
        training = (s.optimizer, s.momentum, s.batch_rows, s.early_stopping > 0, s.views)
        return layers, training, id(trajectory.fit.pool)

    groups: dict[Any, list[_Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(shape(trajectory), []).append(trajectory)
    for members in groups.values():
        members.sort(key=lambda t: (t.fit.spec.lr, t.fit.spec.weight_decay))
        fitting = max(1, limit // _bytes_of_one(members[0].fit, n_features, targets))
        size = min(fitting, math.ceil(len(members) / abreast))
        for start in range(0, len(members), size):
            yield members[start : start + size]


def _bytes_of_one(fit: Fit, n_features: int, targets: Targets) -> int:
    """Roughly what one head takes while it trains: parameters, gradients, two moments, the best so far and a scratch
    copy; a dozen activations of a batch; its mask and its logits of the pool."""
    spec = fit.spec
    c = n_outputs(spec, targets.n_classes, targets.has_findings)
    batch_rows = min(len(fit.pool.rows), spec.batch_rows / fit.pool.share)
    floats = 6 * n_parameters(spec, n_features, c) + 12 * batch_rows * (sum(spec.widths) + c)
    return int(4 * (floats + len(fit.pool.rows) * (2 + 2 * c + sum(spec.widths[:1]) / 8)))


def _work(members: Sequence[_Trajectory], n_features: int, targets: Targets) -> int:
    """Multiplications of a step, forward."""
    fit = members[0].fit
    outputs = n_outputs(fit.spec, targets.n_classes, targets.has_findings)
    batch_rows = min(len(fit.pool.rows), fit.spec.batch_rows / fit.pool.share)
    return int(len(members) * n_parameters(fit.spec, n_features, outputs) * batch_rows)


def _memory_for(device: torch.device) -> int:
    """Half of what a GPU has free, a quarter of the machine's memory otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


# --- one stack --------------------------------------------------------------------------------------------------------


class _Training:
    """A stack from its first epoch to its last. Heads leave it when they have finished."""

    def __init__(
        self, members: list[_Trajectory], x: Tensor, targets: Targets, average_views: bool, curves: bool
    ) -> None:
        self._members, self._targets, self._curves = members, targets, curves
        fit = members[0].fit
        self._learnt = x if fit.spec.views else clean(x)
        self._scored = scored(x, average_views)
        self._spec, self._pool, self._device = fit.spec, fit.pool, x.device
        self._pool_rows = torch.from_numpy(fit.pool.rows).to(x.device)
        train = [torch.from_numpy(t.fit.train).to(x.device) for t in members]
        scale = feature_scale(self._learnt, train, self._spec.scale)
        outputs = n_outputs(self._spec, targets.n_classes, targets.has_findings)
        self.stack = Stack.fresh([t.fit.spec for t in members], scale, x.shape[-1], outputs).trainable()
        self._objective = Objective.of(
            [t.fit.spec for t in members],
            [t.fit.train for t in members],
            [t.fit.labelling for t in members],
            fit.pool.rows,
            targets,
            self._device,
        )
        self._moments = {name: moments_of(t, self._spec.optimizer) for name, t in self.stack.parameters.items()}
        self._watchers = [Watcher(t.fit.spec) for t in members]
        self._best = self.stack[self._all()] if self._spec.early_stopping else None
        self._histories: list[History] = [[] for _ in members]
        self._generators = {seed: torch.Generator().manual_seed(_DROPOUT_STREAM + seed) for seed in self._seeds()}
        self._drops = any(t.fit.spec.dropout > 0 for t in members)
        self._n_steps = 0

    def run(self, results: dict[int, Fitted], stop: threading.Event) -> Iterator[int]:
        """Trains, puts what is finished into `results`, and yields the number of (head, epoch) pairs done."""
        done = 0
        views = self._pool.views(self._learnt.shape[1]) if self._spec.views else None
        for epoch, batches in enumerate(self._pool.batches(self._spec.batch_rows), start=1):
            steps, drawn = self._steps(epoch), next(views).to(self._device) if views else None
            for positions in batches:
                if stop.is_set():
                    return
                self._learn(positions.to(self._device), drawn, steps)
            with torch.no_grad():
                self._look(epoch)
                done += len(self._members)
                self._release(epoch, results)
            yield done
            if not self._members:
                return

    def _learn(self, positions: Tensor, drawn: Tensor | None, steps: Sequence[Step]) -> None:
        rows = self._pool_rows[positions]
        x = self._learnt[rows] if drawn is None else self._learnt[rows, drawn[positions]]  # (b, d)
        taking = self._objective.mask[positions].T
        z = self._logits(self.stack(x, taking, self._draws(len(rows))))
        parameters = list(self.stack.parameters.values())
        gradients = torch.autograd.grad(self._objective.loss(z, rows, taking), parameters, materialize_grads=True)
        with torch.no_grad():
            for step in steps:
                step.take(gradients)
        self._n_steps += 1

    def _steps(self, epoch: int) -> list[Step]:
        """Runs of neighbouring heads with the same rate and decay in this epoch."""
        each = [
            (t.fit.spec.lr * watcher.factor(epoch), t.fit.spec.weight_decay)
            for t, watcher in zip(self._members, self._watchers, strict=True)
        ]
        found, start = [], 0
        for (lr, weight_decay), run in itertools.groupby(each):
            heads = slice(start, start + len(list(run)))
            parameters = [t.detach()[heads] for t in self.stack.parameters.values()]
            moments = [[t[heads] for t in tensors] for tensors in zip(*self._moments.values(), strict=True)]
            n_steps = [torch.tensor(float(self._n_steps), device=self._device) for _ in parameters]
            how = optimizer(self._spec, lr, weight_decay)
            found.append(Step(how, heads, parameters, moments, n_steps))
            start = heads.stop
        return found

    def _draws(self, n_rows: int) -> list[Tensor]:
        """Uniform numbers for dropout: heads of one seed share them, whatever their rates."""
        if not self._drops:
            return []
        seeds = [t.fit.spec.seed for t in self._members]
        draws = []
        for width in self._spec.widths:
            of_seed = {s: torch.rand(n_rows, width, generator=self._generators[s]) for s in self._seeds()}
            draws.append(torch.stack([of_seed[seed] for seed in seeds]).to(self._device))
        return draws

    def _look(self, epoch: int) -> None:
        """After an epoch: what the watch rows say, and the curves."""
        watching = [i for i, t in enumerate(self._members) if t.fit.spec.needs_watch]
        for heads, rows in self._by_rows(watching, lambda fit: fit.watch):
            z = self._said(self.stack[heads], rows)
            losses = self._objective.plain_loss(z, rows, heads)
            improved = [i for i, loss in zip(heads.tolist(), losses, strict=True) if self._watchers[i].see(loss, epoch)]
            if self._best is not None and improved:
                self._best.put(torch.tensor(improved, device=self._device), self.stack)
        if self._curves:
            for i, history in enumerate(self._histories):
                history.append({"epoch": float(epoch), **self._curve_point(i)})

    def _curve_point(self, i: int) -> dict[str, float]:
        fit, point, head = self._members[i].fit, {}, self.stack[torch.tensor([i], device=self._device)]
        for side, rows in (("train", fit.train), ("val", fit.held)):
            if len(rows):
                logits = self._said(head, torch.from_numpy(rows).to(self._device))[0].cpu().numpy()
                values = self._targets.curve_point(fit.labelling, rows, logits)
                point.update({f"{side}_{name}": value for name, value in values.items()})
        return point

    def _release(self, epoch: int, results: dict[int, Fitted]) -> None:
        """Takes the snapshots due, and drops the heads that have finished."""
        stopped = [
            watcher.stopped or epoch == t.epochs for t, watcher in zip(self._members, self._watchers, strict=True)
        ]
        due = [i for i, t in enumerate(self._members) if stopped[i] or epoch in t.snapshots]
        for heads, rows in self._by_rows(due, lambda fit: fit.held):
            taken = self._state(heads)
            logits = self._said(taken, rows).cpu().numpy()
            for j, i in enumerate(heads.tolist()):
                self._snapshot(i, taken.folded(j), logits[j], epoch, stopped[i], results)
        if any(stopped):
            self._keep([i for i, over in enumerate(stopped) if not over])

    def _state(self, heads: Tensor) -> Stack:
        """Heads as they would be kept now: the best so far where training stops early, the last otherwise."""
        return (self._best or self.stack)[heads]

    def _snapshot(
        self, i: int, tensors: dict[str, Array], logits: Array, epoch: int, stopped: bool, results: dict[int, Fitted]
    ) -> None:
        trajectory, watcher = self._members[i], self._watchers[i]
        numbers = [n for e, fits in trajectory.snapshots.items() if e == epoch or (stopped and e > epoch) for n in fits]
        at = watcher.best_epoch if trajectory.fit.spec.early_stopping else epoch
        n = sum(t[0].numel() for t in self.stack.parameters.values())
        for number in numbers:
            results[number] = Fitted(trajectory.fits[number], tensors, logits, at, n, list(self._histories[i]))

    def _keep(self, numbers: list[int]) -> None:
        heads = torch.tensor(numbers, dtype=torch.long, device=self._device)
        self._members = [self._members[i] for i in numbers]
        self._watchers = [self._watchers[i] for i in numbers]
        self._histories = [self._histories[i] for i in numbers]
        self._moments = {name: tuple(t[heads] for t in moments) for name, moments in self._moments.items()}
        self._objective = self._objective[heads]
        self._best = self._best[heads] if self._best is not None else None
        self.stack = self.stack[heads].trainable()

    def _by_rows(self, heads: Sequence[int], rows_of: Callable[[Fit], Array]) -> Iterator[tuple[Tensor, Tensor]]:
        """Heads that are asked for the same rows, and the rows: one product for all heads of a fold."""
        groups: dict[bytes, list[int]] = {}
        for i in heads:
            groups.setdefault(rows_of(self._members[i].fit).tobytes(), []).append(i)
        for members in groups.values():
            rows = rows_of(self._members[members[0]].fit)
            yield torch.tensor(members, device=self._device), torch.from_numpy(rows).to(self._device)

    def _said(self, stack: Stack, rows: Tensor) -> Tensor:
        """(k, r, c) logits of r rows."""
        if self._scored.ndim == 2:
            return self._logits(stack(self._scored[rows]))
        each = [self._logits(stack(self._scored[rows, i])) for i in range(self._scored.shape[1])]
        return torch.stack(each).mean(0)

    def _logits(self, z: Tensor) -> Tensor:
        """(k, b, c) of outputs: a single one z becomes the two logits 0 and z, z of the positive class."""
        if self._targets.has_findings or z.shape[2] == self._targets.n_classes:
            return z
        pair = (torch.zeros_like(z), z) if self._targets.positive == 1 else (z, torch.zeros_like(z))
        return torch.cat(pair, dim=2)

    def _all(self) -> Tensor:
        return torch.arange(len(self._members), device=self._device)

    def _seeds(self) -> list[int]:
        return sorted({t.fit.spec.seed for t in self._members})


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Threads of a single operation; None leaves them as they are."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(n or n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
