"""The training loop of many heads at once.

Heads of one shape with batches from the same rows form one stack. A fold is a mask: batches run over all rows, and a
head is trained on those that are not held out for it, so head i is what it would be if trained alone. On a CPU, stacks
are trained in parallel, each on its own core, without waiting for each other.
The loss on early-stopping rows, which are held out of the training rows, ends a training or lowers its learning rate.
Validation rows are only predicted, at the end. A row may have vectors of augmented copies beside its own; one of them
is drawn in each epoch, together with the order of the batches.
Letters: k heads, n rows, m rows of the pool, b rows of a batch, d features, c classes.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featcache.heads import optim
from featcache.heads.features import clean, scored
from featcache.heads.jobs import (
    Fit,
    Fitted,
    History,
    Trajectory,
    make_stacks,
    memory_for,
    multiplications_per_step,
    n_parallel_stacks,
    trajectories,
)
from featcache.heads.mlp import Stack, feature_scale, n_outputs, two_logits
from featcache.heads.optim import LossMonitor, Objective, Step, Targets, moments_of, optimizer

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]

_DROPOUT_STREAM = 1 << 40  # seeds of dropout are not those of initial weights
# With fewer multiplications per step, threads wait for each other longer than they compute: on two cores shared with
# other processes a linear head took 48 s with two threads and 2.4 s with one.
_WORTH_THREADS = 50_000_000


def fit_all(
    fits: Sequence[Fit],
    x: Tensor,
    targets: Targets,
    *,
    tta: bool = False,
    curves: bool = False,
    weights: bool = True,
    memory_bytes: int | None = None,
    on_progress: Progress = lambda done, total: None,
) -> list[Fitted]:
    """Trains heads of any shapes; heads of one shape are trained together.

    Args:
        fits: the heads to train; none of a solved kind.
        x: float32 features on the training device: (n, d), or (n, 1 + K, d) with K augmented copies of each row after
            the vector of the image itself.
        targets: labels.
        tta: test-time augmentation: the logits of a row are the mean over its 1 + K vectors, as in
            `inference.averaged`, also for early-stopping rows. Otherwise they are those of the image itself.
        curves: evaluate training and validation rows after every epoch; takes longer than training a large sweep.
        weights: return the weights of every head, not only its logits of the validation rows. The weights of a sweep of
            270 heads on flattened feature maps take 7 GB.
        memory_bytes: memory for the stacks that are trained in parallel; a larger stack is divided. None for half of
            the free memory of a GPU, or a quarter of the machine's memory.
        on_progress: called with (head epochs done, head epochs in all).

    Returns:
        Results in the order of `fits`. Specs that differ only in `epochs` are snapshots of one training.
    """
    limit = memory_bytes or memory_for(x.device)
    trainings = trajectories(fits)
    n_parallel = n_parallel_stacks(trainings, x, targets, limit)
    stacks = list(make_stacks(trainings, x, targets, limit // n_parallel, n_parallel))
    done, total = dict.fromkeys(range(len(stacks)), 0), sum(t.epochs for t in trainings)
    results: dict[int, Fitted] = {}
    stop = threading.Event()

    def train(number: int) -> None:
        members = stacks[number]
        for finished in _Training(members, x, targets, tta, curves, weights).run(results, stop):
            done[number] = finished
            on_progress(sum(done.values()), total)
        done[number] = sum(t.epochs for t in members)  # includes heads that stopped early

    most = max((multiplications_per_step(members, x, targets) for members in stacks), default=0)
    has_all_cores = n_parallel == 1 and most >= _WORTH_THREADS
    with _threads(None if has_all_cores else 1), ThreadPoolExecutor(n_parallel) as pool:
        try:
            list(pool.map(train, range(len(stacks))))
        except BaseException:
            stop.set()
            raise
    return [results[i] for i in range(len(fits))]


# --- one stack --------------------------------------------------------------------------------------------------------


class _Training:
    """The training of a stack. Heads are removed from it when they have finished."""

    def __init__(
        self,
        members: list[Trajectory],
        x: Tensor,
        targets: Targets,
        tta: bool,
        curves: bool,
        weights: bool,
    ) -> None:
        self._members, self._targets, self._curves, self._returns_weights = members, targets, curves, weights
        fit = members[0].fit
        self._is_chunked = fit.is_chunked(x.shape[-1], x.device)
        self._train_features = x if fit.spec.augmentations else clean(x)
        self._scoring_features = scored(x, tta)
        self._spec, self._pool, self._device = fit.spec, fit.pool, x.device
        self._pool_rows = torch.from_numpy(fit.pool.rows).to(x.device)
        train = [torch.from_numpy(t.fit.train).to(x.device) for t in members]
        scale = feature_scale(self._train_features, train, self._spec.scale)
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
        self._monitors = [LossMonitor(t.fit.spec) for t in members]
        self._best = self.stack[self._all()] if self._spec.patience else None
        self._histories: list[History] = [[] for _ in members]
        self._generators = {seed: torch.Generator().manual_seed(_DROPOUT_STREAM + seed) for seed in self._seeds()}
        self._has_dropout = any(t.fit.spec.dropout > 0 for t in members)
        self._n_steps = 0

    def run(self, results: dict[int, Fitted], stop: threading.Event) -> Iterator[int]:
        """Trains, puts finished heads into `results`, and yields the number of (head, epoch) pairs done."""
        done = 0
        views = self._pool.views(self._train_features.shape[1]) if self._spec.augmentations else None
        for epoch, batches in enumerate(self._pool.batches(self._spec.batch_size), start=1):
            steps, drawn = self._steps(epoch), next(views).to(self._device) if views else None
            for positions in batches:
                if stop.is_set():
                    return
                self._train_batch(positions.to(self._device), drawn, steps)
            with torch.no_grad():
                self._evaluate_epoch(epoch)
                done += len(self._members)
                self._finish_heads(epoch, results)
            yield done
            if not self._members:
                return

    def _train_batch(self, positions: Tensor, drawn: Tensor | None, steps: Sequence[Step]) -> None:
        rows = self._pool_rows[positions]
        x = self._train_features[rows] if drawn is None else self._train_features[rows, drawn[positions]]  # (b, d)
        mask = self._objective.mask[positions].T
        (self._step_chunked if self._is_chunked else self._step)(x, rows, mask, steps)
        self._n_steps += 1

    def _step(self, x: Tensor, rows: Tensor, mask: Tensor, steps: Sequence[Step]) -> None:
        z = self.stack(x, mask, self._dropout_uniforms(len(rows)))
        gradients = self._gradients(z, rows, mask, list(self.stack.parameters.values()))
        with torch.no_grad():
            for step in steps:
                step.take(gradients)

    def _step_chunked(self, x: Tensor, rows: Tensor, mask: Tensor, steps: Sequence[Step]) -> None:
        """The same with the first layer in chunks."""
        first, *upper = self.stack.parameters.values()
        own = optim.rows_of_heads(x, mask)
        product = optim.first_layer_products(first, own, len(rows)).requires_grad_()
        z = self.stack.upper_layers(self.stack.scaled(product), mask, self._dropout_uniforms(len(rows)))
        of_product, *gradients = self._gradients(z, rows, mask, [product, *upper])
        optim.step_first_layers(steps, own, of_product)
        with torch.no_grad():
            for step in steps:
                step.take(gradients, skipped=1)

    def _gradients(self, z: Tensor, rows: Tensor, mask: Tensor, by: Sequence[Tensor]) -> tuple[Tensor, ...]:
        loss = self._objective.loss(self._logits(z), rows, mask)
        return torch.autograd.grad(loss, by, materialize_grads=True)

    def _steps(self, epoch: int) -> list[Step]:
        """Groups of neighbouring heads with the same learning rate and weight decay in this epoch."""
        parts = [
            (t.fit.spec.lr * monitor.lr_factor(epoch), t.fit.spec.weight_decay)
            for t, monitor in zip(self._members, self._monitors, strict=True)
        ]
        steps, start = [], 0
        for (lr, weight_decay), run in itertools.groupby(parts):
            heads = slice(start, start + len(list(run)))
            parameters = [t.detach()[heads] for t in self.stack.parameters.values()]
            moments = [[t[heads] for t in tensors] for tensors in zip(*self._moments.values(), strict=True)]
            n_steps = [torch.tensor(float(self._n_steps), device=self._device) for _ in parameters]
            update = optimizer(self._spec, lr, weight_decay)
            steps.append(Step(update, heads, parameters, moments, n_steps))
            start = heads.stop
        return steps

    def _dropout_uniforms(self, n_rows: int) -> list[Tensor]:
        """Random numbers for dropout; heads with the same seed share them, whatever their rates."""
        if not self._has_dropout:
            return []
        seeds = [t.fit.spec.seed for t in self._members]
        uniforms = []
        for width in self._spec.hidden_sizes:
            of_seed = {s: torch.rand(n_rows, width, generator=self._generators[s]) for s in self._seeds()}
            uniforms.append(torch.stack([of_seed[seed] for seed in seeds]).to(self._device))
        return uniforms

    def _evaluate_epoch(self, epoch: int) -> None:
        """Computes the loss on early-stopping rows, and the curves, after an epoch."""
        watching = [i for i, t in enumerate(self._members) if t.fit.spec.needs_watch]
        for heads, rows in self._by_rows(watching, lambda fit: fit.watch):
            z = self._logits_of(self.stack, heads, rows)
            losses = self._objective.plain_loss(z, rows, heads)
            improved = [
                i for i, loss in zip(heads.tolist(), losses, strict=True) if self._monitors[i].update(loss, epoch)
            ]
            if self._best is not None and improved:
                for some in improved if self._is_chunked else [torch.tensor(improved, device=self._device)]:
                    self._best.put(some, self.stack)
        if self._curves:
            for i, history in enumerate(self._histories):
                history.append({"epoch": float(epoch), **self._curve_point(i)})

    def _curve_point(self, i: int) -> dict[str, float]:
        fit, point, head = self._members[i].fit, {}, self.stack.one(i)
        for side, rows in (("train", fit.train), ("val", fit.val)):
            if len(rows):
                logits = self._forward(head, torch.from_numpy(rows).to(self._device))[0].cpu().numpy()
                values = self._targets.curve_point(fit.labelling, rows, logits)
                point.update({f"{side}_{name}": value for name, value in values.items()})
        return point

    def _finish_heads(self, epoch: int, results: dict[int, Fitted]) -> None:
        """Takes the snapshots due, and removes heads that have finished."""
        stopped = [
            monitor.should_stop or epoch == t.epochs for t, monitor in zip(self._members, self._monitors, strict=True)
        ]
        due = [i for i, t in enumerate(self._members) if stopped[i] or epoch in t.snapshots]
        kept = self._best or self.stack  # the best so far where training stops early, the last otherwise
        for heads, rows in self._by_rows(due, lambda fit: fit.val):
            logits = self._logits_of(kept, heads, rows).cpu().numpy()
            for j, i in enumerate(heads.tolist()):
                self._snapshot(i, kept, logits[j], epoch, stopped[i], results)
        if any(stopped):
            self._select([i for i, over in enumerate(stopped) if not over])

    def _snapshot(
        self, i: int, kept: Stack, logits: Array, epoch: int, stopped: bool, results: dict[int, Fitted]
    ) -> None:
        trajectory, monitor = self._members[i], self._monitors[i]
        numbers = [n for e, fits in trajectory.snapshots.items() if e == epoch or (stopped and e > epoch) for n in fits]
        tensors = kept.folded(i) if self._returns_weights else {}
        is_finite = all(np.isfinite(t).all() for t in tensors.values()) if self._returns_weights else kept.is_finite(i)
        at = monitor.best_epoch if trajectory.fit.spec.patience else epoch
        n, history = sum(t[0].numel() for t in self.stack.parameters.values()), list(self._histories[i])
        for number in numbers:
            results[number] = Fitted(trajectory.fits[number], tensors, logits, at, n, history, is_finite)

    def _select(self, numbers: list[int]) -> None:
        heads = torch.tensor(numbers, dtype=torch.long, device=self._device)
        self._members = [self._members[i] for i in numbers]
        self._monitors = [self._monitors[i] for i in numbers]
        self._histories = [self._histories[i] for i in numbers]
        self._moments = {name: tuple(t[heads] for t in moments) for name, moments in self._moments.items()}
        self._objective = self._objective[heads]
        self._best = self._best[heads] if self._best is not None else None
        self.stack = self.stack[heads].trainable()

    def _by_rows(self, heads: Sequence[int], rows_of: Callable[[Fit], Array]) -> Iterator[tuple[Tensor, Tensor]]:
        """Heads grouped by the rows to predict: one matrix product serves all heads of a fold."""
        groups: dict[bytes, list[int]] = {}
        for i in heads:
            groups.setdefault(rows_of(self._members[i].fit).tobytes(), []).append(i)
        for members in groups.values():
            rows = rows_of(self._members[members[0]].fit)
            yield torch.tensor(members, device=self._device), torch.from_numpy(rows).to(self._device)

    def _logits_of(self, stack: Stack, heads: Tensor, rows: Tensor) -> Tensor:
        """(k, r, c) logits of r rows by these heads of a stack, in one product; chunked heads one by one, because
        copying them would take longer."""
        if self._is_chunked:
            return torch.cat([self._forward(stack.one(i), rows) for i in heads.tolist()])
        return self._forward(stack[heads], rows)

    def _forward(self, stack: Stack, rows: Tensor) -> Tensor:
        """(k, r, c) logits of r rows."""
        if self._scoring_features.ndim == 2:
            return self._logits(stack(self._scoring_features[rows]))
        logits = [self._logits(stack(self._scoring_features[rows, i])) for i in range(self._scoring_features.shape[1])]
        return torch.stack(logits).mean(0)

    def _logits(self, z: Tensor) -> Tensor:
        """(k, b, c) logits of outputs."""
        has_all = self._targets.has_findings or z.shape[2] == self._targets.n_classes
        return z if has_all else two_logits(z, self._targets.positive)

    def _all(self) -> Tensor:
        return torch.arange(len(self._members), device=self._device)

    def _seeds(self) -> list[int]:
        return sorted({t.fit.spec.seed for t in self._members})


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Sets the number of threads of an operation; None leaves it unchanged."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(n or n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
