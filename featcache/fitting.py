"""Many heads are trained at once: the loop over epochs and batches, with everything that is each head's own.

Heads of one shape that draw batches from the same rows are one stack. A fold is a mask: batches run over all rows, and
a head learns from those that are not held out for it. So head i is what it would be alone, whatever stands beside it.
On a CPU the stacks are trained side by side, each on a core of its own: nobody waits for anybody within a step.
What ends a training or lowers its rate is the loss on `watch` rows, taken from the training rows; the `held` rows are
only asked for their logits, in the end.
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
from torch.nn import functional
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from featcache import metrics
from featcache.heads import HeadSpec
from featcache.stacks import Stack, feature_scale, n_outputs, n_parameters

Array = np.ndarray[Any, Any]
History = list[dict[str, float]]
Progress = Callable[[int, int], None]

_NONE = np.array([], dtype=np.int64)
_PLATEAU_FACTOR, _PLATEAU_THRESHOLD = 0.1, 1e-4  # those of torch's ReduceLROnPlateau
_ADAM = {"amsgrad": False, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "maximize": False, "fused": True}
_SGD = {"dampening": 0.0, "nesterov": False, "maximize": False, "fused": True}
_CURVE = ("loss", "accuracy", "precision", "recall", "f1")
# Below this many multiplications a step, threads that share it wait for each other longer than they work: on two cores
# shared with other processes a linear head took 48 s with two threads and 2.4 s with one.
_WORTH_THREADS = 50_000_000


@dataclass(frozen=True)
class Targets:
    """What is to be learnt.

    Attributes:
        values: (l, n) class numbers of l labellings of the same rows (the true one, permuted ones), or (l, n, c) with
            1, 0 or NaN (unknown) for c findings that are learnt side by side.
        n_classes: c.
        positive: the class that the numbers of a curve are about.
    """

    values: Array
    n_classes: int
    positive: int

    @property
    def has_findings(self) -> bool:
        return self.values.ndim == 3

    def curve_point(self, labelling: int, rows: Array, logits: Array) -> dict[str, float]:
        """Loss, accuracy, precision, recall and F1 of some rows."""
        labels = self.values[labelling][rows]
        found = (
            metrics.per_epoch_findings(labels, logits)
            if self.has_findings
            else metrics.per_epoch(labels, logits, self.positive)
        )
        return {name: found[name] for name in _CURVE}


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
    curves: bool = False,
    memory_bytes: int | None = None,
    on_progress: Progress = lambda done, total: None,
) -> list[Fitted]:
    """Trains heads of any shapes, those of one shape together.

    Args:
        fits: what is wanted, all of trained kinds.
        x: (n, d) float32 features, on the device to train on.
        targets: labels.
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
    stacks = list(_stacked(trajectories, x.shape[1], targets, limit // abreast, abreast))
    done, total = dict.fromkeys(range(len(stacks)), 0), sum(t.epochs for t in trajectories)
    results: dict[int, Fitted] = {}
    stop = threading.Event()

    def train(number: int) -> None:
        members = stacks[number]
        for finished in _Training(members, x, targets, curves).run(results, stop):
            done[number] = finished
            on_progress(sum(done.values()), total)
        done[number] = sum(t.epochs for t in members)  # heads that stopped early are done, too

    work = max((_work(members, x.shape[1], targets) for members in stacks), default=0)
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
        training = (s.optimizer, s.momentum, s.batch_rows, s.early_stopping > 0)
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

    def __init__(self, members: list[_Trajectory], x: Tensor, targets: Targets, curves: bool) -> None:
        self._members, self._x, self._targets, self._curves = members, x, targets, curves
        fit = members[0].fit
        self._spec, self._pool, self._device = fit.spec, fit.pool, x.device
        self._pool_rows = torch.from_numpy(fit.pool.rows).to(x.device)
        train = [torch.from_numpy(t.fit.train).to(x.device) for t in members]
        scale = feature_scale(x, train, self._spec.scale)
        outputs = n_outputs(self._spec, targets.n_classes, targets.has_findings)
        self.stack = Stack.fresh([t.fit.spec for t in members], scale, x.shape[1], outputs).trainable()
        self._own = _Own.of(members, targets, self._device)
        self._moments = {name: _zeros(t, self._spec.optimizer) for name, t in self.stack.parameters.items()}
        self._watchers = [_Watcher(t.fit.spec) for t in members]
        self._best = self.stack[self._all()] if self._spec.early_stopping else None
        self._histories: list[History] = [[] for _ in members]
        self._generators = {seed: torch.Generator().manual_seed(_DROPOUT_STREAM + seed) for seed in self._seeds()}
        self._drops = any(t.fit.spec.dropout > 0 for t in members)
        self._steps = 0

    def run(self, results: dict[int, Fitted], stop: threading.Event) -> Iterator[int]:
        """Trains, puts what is finished into `results`, and yields the number of (head, epoch) pairs done."""
        done = 0
        for epoch, batches in enumerate(self._pool.batches(self._spec.batch_rows), start=1):
            groups = self._groups(epoch)
            for positions in batches:
                if stop.is_set():
                    return
                self._step(positions.to(self._device), groups)
            with torch.no_grad():
                self._look(epoch)
                done += len(self._members)
                self._release(epoch, results)
            yield done
            if not self._members:
                return

    def _step(self, positions: Tensor, groups: list["_Group"]) -> None:
        rows = self._pool_rows[positions]
        taking = self._own.mask[positions].T
        z = self._logits(self.stack(self._x[rows], taking, self._draws(len(rows))))
        parameters = list(self.stack.parameters.values())
        gradients = torch.autograd.grad(self._own.loss(z, rows, taking), parameters, materialize_grads=True)
        with torch.no_grad():
            for group in groups:
                group.step(gradients)
        self._steps += 1

    def _groups(self, epoch: int) -> list["_Group"]:
        """Runs of neighbouring heads with the same rate and decay in this epoch."""
        each = [
            (t.fit.spec.lr * watcher.factor(epoch), t.fit.spec.weight_decay)
            for t, watcher in zip(self._members, self._watchers, strict=True)
        ]
        groups, start = [], 0
        for (lr, weight_decay), run in itertools.groupby(each):
            heads = slice(start, start + len(list(run)))
            parameters = [t.detach()[heads] for t in self.stack.parameters.values()]
            moments = [[t[heads] for t in tensors] for tensors in zip(*self._moments.values(), strict=True)]
            steps = [torch.tensor(float(self._steps), device=self._device) for _ in parameters]
            how = _optimizer(self._spec, lr, weight_decay)
            groups.append(_Group(how, heads, parameters, moments, steps))
            start = heads.stop
        return groups

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
            z = self._logits(self.stack[heads](self._x[rows]))
            losses = self._own.plain_loss(z, rows, heads)
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
                logits = self._logits(head(self._x[torch.from_numpy(rows).to(self._device)]))[0].cpu().numpy()
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
            logits = self._logits(taken(self._x[rows])).cpu().numpy()
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
        self._own = self._own[heads]
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


@dataclass(frozen=True, eq=False)
class _Group:
    """Neighbouring heads of a stack that take the same step: views of their parameters and moments."""

    optimize: Callable[..., None]
    heads: slice
    parameters: list[Tensor]
    moments: list[list[Tensor]]
    steps: list[Tensor]

    def step(self, gradients: Sequence[Tensor]) -> None:
        # The fused kernels read gradients as if they were contiguous, whatever they are.
        self.optimize(self.parameters, [t[self.heads].contiguous() for t in gradients], self.moments, self.steps)


def _optimizer(spec: HeadSpec, lr: float, weight_decay: float) -> Callable[..., None]:
    """A step of torch's own functional optimizers. The classes around them cost three seconds to import what they need
    for compiling, longer than a linear head takes to train."""
    if spec.optimizer == "sgd":

        def by_sgd(
            parameters: list[Tensor], gradients: list[Tensor], moments: list[list[Tensor]], _: list[Tensor]
        ) -> None:
            how: Any = {**_SGD, "lr": lr, "weight_decay": weight_decay, "momentum": spec.momentum}
            sgd(parameters, gradients, list(moments[0]), **how)

        return by_sgd
    adaptive: Any = adamw if spec.optimizer == "adamw" else adam

    def by_adam(
        parameters: list[Tensor], gradients: list[Tensor], moments: list[list[Tensor]], steps: list[Tensor]
    ) -> None:
        adaptive(parameters, gradients, *moments, [], steps, lr=lr, weight_decay=weight_decay, **_ADAM)

    return by_adam


_DROPOUT_STREAM = 1 << 40  # seeds of dropout are not those of initial weights


def _zeros(parameter: Tensor, optimizer: str) -> tuple[Tensor, ...]:
    """What an optimizer remembers of a parameter: one moment (sgd) or two."""
    return tuple(torch.zeros_like(parameter).detach() for _ in range(1 if optimizer == "sgd" else 2))


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Threads of a single operation; None leaves them as they are."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(n or n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


# --- what is each head's own ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Own:
    """Per head: which rows it learns from, its labels, the weights of its classes and its smoothing.

    Attributes:
        mask: (m, k), 1 where a head learns from a row of the pool.
        values: (l, n) or (l, n, c), as in `Targets`.
        labelling: (k,) which of the l.
        class_weights: (k, c), or (k, 2, c) for findings: of 0 and of 1.
        smoothing: (k,).
    """

    mask: Tensor
    values: Tensor
    labelling: Tensor
    class_weights: Tensor
    smoothing: Tensor
    has_findings: bool

    @classmethod
    def of(cls, members: Sequence[_Trajectory], targets: Targets, device: torch.device) -> "_Own":
        fits = [t.fit for t in members]
        of_fold = {fit.train.tobytes(): fit for fit in fits}
        masks = {key: np.isin(fit.pool.rows, fit.train) for key, fit in of_fold.items()}
        mask = np.stack([masks[fit.train.tobytes()] for fit in fits], axis=1).astype(np.float32)
        weights = np.stack([class_weights(fit, targets) for fit in fits]).astype(np.float32)
        values = targets.values.astype(np.float32) if targets.has_findings else targets.values
        labelling = torch.tensor([fit.labelling for fit in fits], device=device)
        smoothing = torch.tensor([fit.spec.label_smoothing for fit in fits], device=device)
        tensors = (torch.from_numpy(array).to(device) for array in (mask, values, weights))
        mask_t, values_t, weights_t = tensors
        return cls(mask_t, values_t, labelling, weights_t, smoothing, targets.has_findings)

    def __getitem__(self, heads: Tensor) -> "_Own":
        mine = {name: getattr(self, name)[heads] for name in ("labelling", "class_weights", "smoothing")}
        return replace(self, mask=self.mask[:, heads], **mine)

    def loss(self, z: Tensor, rows: Tensor, taking: Tensor) -> Tensor:
        """Averaged over each head's own rows by class weight, summed over heads: a head's gradient does not depend on
        how many stand beside it. The average is that of torch's cross entropy with weights and smoothing."""
        labels = self._labels(rows, torch.arange(len(z), device=z.device))
        each = self._of_findings if self.has_findings else self._of_classes
        total, weight = each(z, labels, self.class_weights, self.smoothing, taking)
        return (total / weight.clamp(min=1e-12)).sum()

    @torch.no_grad()
    def plain_loss(self, z: Tensor, rows: Tensor, heads: Tensor) -> list[float]:
        """Per head, unweighted and not smoothed."""
        taking = z.new_ones(z.shape[:2])
        weights, smoothing = torch.ones_like(self.class_weights[heads]), torch.zeros_like(self.smoothing[heads])
        each = self._of_findings if self.has_findings else self._of_classes
        total, weight = each(z, self._labels(rows, heads), weights, smoothing, taking)
        losses: list[float] = (total / weight.clamp(min=1e-12)).tolist()
        return losses

    def _labels(self, rows: Tensor, heads: Tensor) -> Tensor:
        """(k, b) or (k, b, c)."""
        if len(self.values) == 1:
            return self.values[0][rows].expand(len(heads), *[-1] * (self.values.ndim - 1))
        return self.values[self.labelling[heads]][:, rows]

    @staticmethod
    def _of_classes(z: Tensor, y: Tensor, weights: Tensor, smoothing: Tensor, taking: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy: (k,) weighted sums and (k,) sums of weights."""
        log_p = functional.log_softmax(z, dim=2)
        y = y.clamp(min=0)
        weight = taking * weights.gather(1, y)
        total = -(weight * log_p.gather(2, y[:, :, None]).squeeze(2)).sum(1)
        if bool((smoothing > 0).any()):
            spread = -(taking * (log_p * weights[:, None, :]).mean(2)).sum(1)
            total = (1 - smoothing) * total + smoothing * spread
        return total, weight.sum(1)

    @staticmethod
    def _of_findings(z: Tensor, y: Tensor, weights: Tensor, smoothing: Tensor, taking: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross entropy of each known finding."""
        known = ~torch.isnan(y)
        y = torch.where(known, y, 0.0)
        weight = taking[:, :, None] * known * torch.where(y > 0.5, weights[:, None, 1], weights[:, None, 0])
        target = y * (1 - smoothing)[:, None, None] + 0.5 * smoothing[:, None, None]
        each = functional.softplus(z) - z * target
        return (weight * each).sum((1, 2)), weight.sum((1, 2))


def class_weights(fit: Fit, targets: Targets) -> Array:
    """Weights of the classes in a head's loss: (c,), or (2, c) for findings, absent and present. Balanced is
    n / (c n_class), as scikit-learn's compute_class_weight."""
    y = targets.values[fit.labelling][fit.train]
    if targets.has_findings:
        counts = np.stack([np.sum(y == value, axis=0) for value in (0, 1)])
    else:
        counts = np.bincount(y, minlength=targets.n_classes)
    if fit.spec.class_weights == "none":
        return np.ones(counts.shape)
    return np.asarray(counts.sum(0) / (counts.shape[0] * np.maximum(counts, 1)))


class _Watcher:
    """Follows one head's loss on its watch rows: lowers its rate on a plateau, says when to stop."""

    def __init__(self, spec: HeadSpec) -> None:
        self._spec = spec
        self._best, self.best_epoch = math.inf, 0
        self._since_stop = self._since_plateau = 0
        self._plateau_best, self._reductions = math.inf, 0

    @property
    def stopped(self) -> bool:
        return 0 < self._spec.early_stopping <= self._since_stop

    def factor(self, epoch: int) -> float:
        """Of the learning rate, in an epoch."""
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
        if self._since_plateau > self._spec.patience:
            self._reductions, self._since_plateau = self._reductions + 1, 0
