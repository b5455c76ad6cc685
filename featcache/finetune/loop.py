"""The training loop on images: stages, epochs and batches; the best weights by validation; a checkpoint per epoch.

All random numbers follow from the seed and the numbers of epoch and batch, so a resumed training has the result of an
uninterrupted one. The frozen part stays in `eval()`, and its weights and statistics never change.
Letters: n rows, b rows of a batch, c classes.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache.backbones import Backbone
from featcache.embedding.forward import for_learning, keep_freed_memory
from featcache.errors import InputOutputError, UsageError
from featcache.finetune import unfreeze
from featcache.finetune.checkpoints import Checkpoints
from featcache.finetune.distributed import Session, SyncBatchNorms
from featcache.finetune.inputs import Source
from featcache.finetune.unfreeze import TrainedPart
from featcache.heads.mlp import Head
from featcache.heads.optim import LossMonitor, Targets
from featcache.identity import Json
from featcache.specs import Recipe, Stage

Array = np.ndarray[Any, Any]
Point = dict[str, float]
Open = Callable[[Sequence[str]], AbstractContextManager[tuple[nn.Module, Source]]]

_AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_BACKBONE, _HEAD, _BEST, _MOMENTS = "backbone/", "head/", "best/", "moments/"


@dataclass(frozen=True)
class Subsets:
    """Row numbers: training rows, and validation rows, whose metric selects the weights; without any, the last epoch is
    kept."""

    train: Array
    val: Array


@dataclass
class _State:
    """The state of a training, besides weights and optimizer state."""

    epoch: int = 0
    stage: int = 0  # from 1
    before_stage: int = 0  # epochs of the stages before it
    is_over: bool = False  # whether the stage ended early
    history: list[Point] = field(default_factory=list)
    best_score: float = -math.inf
    best_epoch: int = 0
    monitor_state: dict[str, Any] = field(default_factory=dict)
    scaler_state: dict[str, Any] = field(default_factory=dict)

    def check(self, n_stages: int, n_epochs: int) -> None:
        """Raises ValueError for a state that no epoch of such a training can have, TypeError for other types."""
        if not (1 <= self.epoch <= n_epochs and 1 <= self.stage <= n_stages and 0 <= self.before_stage < self.epoch):
            raise ValueError("no such epoch or stage")
        if [point["epoch"] for point in self.history] != list(range(1, self.epoch + 1)):
            raise ValueError("an epoch without a point of the curves")
        if not all(isinstance(value, float) for point in self.history for value in point.values()):
            raise ValueError("a point of the curves is not a number")
        if not 0 <= self.best_epoch <= self.epoch or math.isnan(self.best_score):
            raise ValueError("no such best epoch")
        monitor_fields = vars(LossMonitor(unfreeze.StageSchedule(Recipe(), 1))).keys() - {"_spec"}
        if not isinstance(self.scaler_state, dict) or self.monitor_state.keys() != monitor_fields:
            raise ValueError("other monitored fields")
        if not all(isinstance(value, int | float) for value in self.monitor_state.values()):
            raise ValueError("a monitored value is not a number")

    def enter(self, stage: int) -> None:
        """Enters a stage, unless the training is already in it."""
        if stage > self.stage:
            self.stage, self.before_stage, self.is_over = stage, self.epoch, False
            self.monitor_state, self.scaler_state = {}, {}


@dataclass
class _RunningStage:
    """A stage in progress."""

    stage: Stage
    names: Sequence[str]  # trained parameters of the backbone
    model: TrainedPart
    wrapped: nn.Module
    source: Source
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    monitor: LossMonitor


class Trainer:
    """The training of a network and its head.

    Attributes:
        history: a mapping per epoch: epoch (from 1), stage (from 1), train_ and val_ numbers.
        best_epoch: the weights are those after this epoch; 0 for those of the start.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        recipe: Recipe,
        targets: Targets,
        sides: Subsets,
        open_source: Open,
        score: Callable[[Array, Array], float],
        session: Session,
    ) -> None:
        """Args:
        backbone: the network; it is changed in place.
        head: the head; changed in place.
        recipe: optimizer, schedule and stages.
        targets: labels of all rows.
        sides: the rows.
        open_source: function of parameter names to the part of the network that contains them, and its inputs.
        score: function of (rows, logits) that chooses the best weights; larger is better.
        session: processes, compilation of the trained part, and callbacks.
        """
        self._backbone, self.head, self._recipe, self._targets = backbone, head.to(backbone.device), recipe, targets
        self._subsets, self._open, self._score, self._processes = sides, open_source, score, session.processes
        self._compile, self._on_note = "off" if self._processes.size > 1 else session.compile, session.on_note
        self._device = backbone.device
        keep_freed_memory()
        self._objective = unfreeze.objective(targets, sides.train, recipe, self._device)
        self._names: list[str] = []  # parameters trained so far
        self._state, self._best = _State(), dict[str, Tensor]()

    @property
    def history(self) -> list[Point]:
        return self._state.history

    @property
    def best_epoch(self) -> int:
        return self._state.best_epoch

    @property
    def n_trainable(self) -> tuple[int, int]:
        """Number of parameters trained in any stage: (of the backbone, of the head)."""
        names = {name for stage in self._recipe.stages for name in self._unfrozen(stage)}
        head = sum(p.numel() for p in self.head.parameters())
        return unfreeze.n_trainable(self._backbone.module, names), head

    def run(self, checkpoints: Checkpoints, name: str, on_epoch: Callable[[int, int, Point], None]) -> None:
        """Trains from the start, or from the last checkpoint, and leaves the best weights in place.

        Args:
            checkpoints: where they are kept.
            name: name of this training among the checkpoints.
            on_epoch: called after each, when its checkpoint is safe.

        Raises:
            UsageError: the training diverged, or a stage names nothing.
        """
        self._check_shares()
        checkpoint = checkpoints.latest(name, self._is_ours)
        moments = self._restored(*checkpoint) if checkpoint else {}
        state = self._state
        for number, stage in enumerate(self._recipe.stages[max(0, state.stage - 1) :], start=max(1, state.stage)):
            state.enter(number)
            end = state.before_stage + stage.epochs
            if state.is_over or state.epoch >= end:
                continue
            with self._running_stage(stage, moments if state.epoch > state.before_stage else None) as running:
                while state.epoch < end and not state.is_over:
                    self._run_epoch(running)
                    if self._processes.is_first:
                        checkpoints.save(name, state.epoch, self._tensors(running.optimizer), self._as_json(running))
                    on_epoch(state.epoch, self._recipe.epochs, self.history[-1])
        if self._best:
            self._load(self._best)

    def logits(self, rows: Array) -> Array:
        """(n, c) float32 of rows as they are, by the weights in place: those of the start before `run`, the best after
        it. Nothing is augmented, nothing dropped."""
        with self._open(self._up_to(len(self._recipe.stages))) as (tail, source):
            return self._evaluated(TrainedPart(self._backbone, tail, self.head), source, rows)

    # --- a stage ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _running_stage(self, stage: Stage, moments: Mapping[str, Tensor] | None) -> Iterator[_RunningStage]:
        """Divides the network, opens the inputs of the trained part, and restores the optimizer; `moments` is None at
        the beginning of a stage."""
        names = self._unfrozen(stage)
        self._names = self._up_to(self._state.stage)
        if self._best:  # newly trained parameters were the same in the best weights
            self._best = {**self._weights(), **self._best}
        optimizer = unfreeze.optimizer(self._backbone.module, names, self.head, self._recipe)
        scaler = torch.amp.GradScaler(self._device.type, enabled=self._recipe.precision == "float16")
        monitor = LossMonitor(unfreeze.StageSchedule(self._recipe, stage.epochs))
        if moments is not None:  # empty for sgd without momentum
            unfreeze.put_moments(optimizer, moments)
            vars(monitor).update(self._state.monitor_state)
            scaler.load_state_dict(self._state.scaler_state)
        with self._open(self._names) as (tail, source):
            model = TrainedPart(self._backbone, tail, self.head)
            n_images = len(self._subsets.train) * stage.epochs
            with torch.no_grad():
                sample = model.to_device(next(source.batches([self._subsets.train[:1]], 0)))
            unfreeze.learn(tail, names)
            self.head.requires_grad_(True)
            model.compiled_tail = for_learning(tail, sample, n_images, self._compile, self._on_note)
            wrapped = self._processes.distributed(model, self._device)
            yield _RunningStage(stage, names, model, wrapped, source, optimizer, scaler, monitor)

    def _run_epoch(self, running: _RunningStage) -> None:
        """Trains one epoch and records it."""
        state, val = self._state, self._subsets.val
        if not state.epoch and len(val):  # the initial weights are the first candidate
            state.best_score = self._score(val, self._evaluated(running.model, running.source, val))
            self._best = self._weights()
            if state.best_score == -math.inf:
                raise UsageError(
                    f"{self._recipe.select} does not exist on validation rows of one class, so no epoch is the best "
                    f"by it. Choose `select`=loss, or divide the rows otherwise."
                )
        state.epoch += 1
        factor = running.monitor.lr_factor(state.epoch - state.before_stage)
        for group in running.optimizer.param_groups:
            group["lr"] = group["full"] * factor
        self._record_epoch(running, self._train_epoch(running))
        state.scaler_state = running.scaler.state_dict()

    def _train_epoch(self, running: _RunningStage) -> Point:
        """One pass over the training rows. Returns loss and metrics of the batches as trained on."""
        running.model.train()
        batches = self._batches(self._state.epoch)
        inputs = running.source.batches(
            [piece for batch in batches for piece in self._pieces(batch)], self._state.epoch
        )
        predictions: list[tuple[Array, Array]] = []
        for step, batch in enumerate(batches):
            running.optimizer.zero_grad(set_to_none=True)
            predictions += self._backward(running, step, batch, inputs)
            running.scaler.step(running.optimizer)
            running.scaler.update()
        return self._curve_point(predictions)

    def _backward(
        self, running: _RunningStage, step: int, batch: Array, inputs: Iterator[Array]
    ) -> list[tuple[Array, Array]]:
        """Accumulates the gradients of a batch, piece by piece. Returns (rows, logits) of each piece."""
        predictions = []
        weight, uniforms, pieces = self._weight(batch), self._dropout_uniforms(step, batch), self._pieces(batch)
        for i, piece in enumerate(pieces):
            of_piece = [draw[np.isin(batch, piece)] for draw in uniforms]
            with self._processes.no_sync(running.wrapped, i < len(pieces) - 1):
                z = self._predictions(running.wrapped, running.model.to_device(next(inputs)), of_piece).float()
                rows = torch.from_numpy(piece).to(self._device)
                total, _ = self._objective.parts(z[None], rows, torch.ones_like(z[None, :, 0]))
                loss = total.sum() / weight * self._processes.size
                running.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            predictions.append((piece, z.detach().cpu().numpy()))
        return predictions

    def _predictions(self, wrapped: nn.Module, inputs: Tensor, uniforms: Sequence[Array]) -> Tensor:
        lower = _AUTOCAST.get(self._recipe.precision)
        casting = torch.autocast(self._device.type, dtype=lower) if lower else nullcontext()
        uniform = [torch.from_numpy(draw).to(self._device) for draw in uniforms]
        sync_bn = SyncBatchNorms(self._processes) if self._processes.size > 1 else nullcontext()
        with casting, sync_bn, unfreeze.explained_batch_norm_errors():
            z: Tensor = wrapped(inputs, uniform)
            return z

    def _batches(self, epoch: int) -> list[Array]:
        """The rows of each batch of an epoch, over all processes; sizes differ by at most one."""
        n = len(self._subsets.train)
        order = np.random.default_rng((self._recipe.seed, epoch)).permutation(n)
        return np.array_split(self._subsets.train[order], self._n_batches)

    @property
    def _n_batches(self) -> int:
        return max(1, math.ceil(len(self._subsets.train) / self._recipe.batch_size))

    def _check_shares(self) -> None:
        """Every process needs two rows of every piece, because a batch norm needs two."""
        size, pieces = self._processes.size, self._recipe.grad_accumulation
        fewest = len(self._subsets.train) // self._n_batches // pieces
        if size > 1 and fewest < 2 * size:
            raise UsageError(
                f"{size} processes cannot share {fewest} images, of a batch in {pieces} piece(s), with two for each: a "
                f"larger `batch_size`, a smaller `grad_accumulation`, or fewer processes."
            )

    def _pieces(self, batch: Array) -> list[Array]:
        """This process's share of each piece of a batch (gradient accumulation)."""
        pieces = np.array_split(batch, min(self._recipe.grad_accumulation, len(batch)))
        return [self._processes.share(piece) for piece in pieces]

    def _weight(self, batch: Array) -> Tensor:
        """The sum of class weights of a whole batch, by which its loss is averaged in every process."""
        rows = torch.from_numpy(batch).to(self._device)
        nothing = torch.zeros(1, len(batch), self._targets.n_classes, device=self._device)
        _, weight = self._objective.parts(nothing, rows, nothing[:, :, 0] + 1)
        return weight.sum().clamp(min=1e-12)

    def _dropout_uniforms(self, step: int, batch: Array) -> list[Array]:
        """Random numbers in [0, 1) for the dropout of each hidden layer, for a whole batch."""
        generator = np.random.default_rng((self._recipe.seed, self._state.epoch, step + 1))
        return [generator.random((len(batch), width), dtype=np.float32) for width in self.head.hidden_sizes]

    # --- after an epoch -----------------------------------------------------------------------------------------------

    def _record_epoch(self, running: _RunningStage, point: Point) -> None:
        """Validates, keeps the best weights, and decides whether the stage is over."""
        state, val = self._state, self._subsets.val
        if not math.isfinite(point["train_loss"]):
            raise self._diverged()
        if len(val):
            logits = self._evaluated(running.model, running.source, val)
            numbers = self._targets.curve_point(0, val, logits)
            point |= {f"val_{name}": value for name, value in numbers.items()}
            if (score := self._score(val, logits)) > state.best_score:
                state.best_score, state.best_epoch, self._best = score, state.epoch, self._weights()
        else:
            state.best_epoch = state.epoch
        running.monitor.update(point.get("val_loss", point["train_loss"]), state.epoch)
        state.is_over = running.monitor.should_stop
        state.history.append({"epoch": float(state.epoch), "stage": float(state.stage), **point})

    def _curve_point(self, predictions: Sequence[tuple[Array, Array]]) -> Point:
        every = self._processes.all_gather(predictions)
        rows = np.concatenate([rows for predicted in every for rows, _ in predicted])
        logits = np.concatenate([z for predicted in every for _, z in predicted])
        if not np.isfinite(logits).all():
            return {"train_loss": math.nan}
        return {f"train_{name}": value for name, value in self._targets.curve_point(0, rows, logits).items()}

    @torch.no_grad()
    def _evaluated(self, model: TrainedPart, source: Source, rows: Array) -> Array:
        model.eval()
        batches = np.array_split(self._processes.share(rows), max(1, math.ceil(len(rows) / 32 / self._processes.size)))
        chunks = [
            self._plain(model, inputs) for inputs in source.batches([batch for batch in batches if len(batch)], 0)
        ]
        mine = np.concatenate(chunks) if chunks else np.zeros((0, self._targets.n_classes), dtype=np.float32)
        logits = np.concatenate(self._processes.all_gather(mine))
        if not np.isfinite(logits).all():
            if self._state.epoch:
                raise self._diverged()
            raise InputOutputError("the network gives values that are not finite, before the first training step.")
        return logits

    def _diverged(self) -> UsageError:
        return UsageError(f"the training diverged in epoch {self._state.epoch}: lower `lr` and `backbone_lr`.")

    def _plain(self, model: TrainedPart, inputs: Array) -> Array:
        logits: Array = model(model.to_device(inputs), []).float().cpu().numpy()
        return logits

    # --- rates, weights, checkpoints ----------------------------------------------------------------------------------

    def _unfrozen(self, stage: Stage) -> list[str]:
        return unfreeze.unfrozen(self._backbone.module, stage.unfreeze, self._recipe.freeze_bn)

    def _up_to(self, stage: int) -> list[str]:
        """Parameters trained in any of the first stages. All of them are in the tail, so the trunk never changes."""
        names = {name for earlier in self._recipe.stages[:stage] for name in self._unfrozen(earlier)}
        return [name for name, _ in self._backbone.module.named_parameters() if name in names]

    def _trained_tensors(self) -> dict[str, Tensor]:
        """The parameters trained so far, and the batch norm statistics beside them."""
        state = self._backbone.module.state_dict()
        owners = {name.rpartition(".")[0] for name in self._names}
        backbone = {
            _BACKBONE + name: tensor
            for name, tensor in state.items()
            if name in self._names or (name.rpartition(".")[0] in owners and _is_statistic(name))
        }
        return backbone | {_HEAD + name: tensor for name, tensor in self.head.state_dict().items()}

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._trained_tensors().items()}

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        own = {_BACKBONE + name: tensor for name, tensor in self._backbone.module.state_dict().items()}
        own |= {_HEAD + name: tensor for name, tensor in self.head.state_dict().items()}
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)

    def _tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        best = {_BEST + name: tensor for name, tensor in self._best.items()}
        moments = {
            f"{_MOMENTS}{i}/{name}": value
            for i, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        return {**self._trained_tensors(), **best, **moments}

    def _as_json(self, running: _RunningStage) -> Json:
        self._state.monitor_state = {name: value for name, value in vars(running.monitor).items() if name != "_spec"}
        return copy.deepcopy(vars(self._state)) | {"names": self._names}

    def _is_ours(self, tensors: Mapping[str, Tensor], state: Json) -> bool:
        """Whether a checkpoint belongs to this training, by its state and the names, shapes and types of its tensors.
        A file with the right name and digest may still be another program's."""
        kept = _State(**{name: value for name, value in state.items() if name != "names"})
        kept.check(len(self._recipe.stages), self._recipe.epochs)
        names = self._up_to(kept.stage)
        own = {_BACKBONE + name: tensor for name, tensor in self._backbone.module.state_dict().items()}
        own |= {_HEAD + name: tensor for name, tensor in self.head.state_dict().items()}
        plain = {name.removeprefix(_BEST): t for name, t in tensors.items() if not name.startswith(_MOMENTS)}
        moments = {name.removeprefix(_MOMENTS): t for name, t in tensors.items() if name.startswith(_MOMENTS)}
        shapes = {t.shape for t in own.values()} | {torch.Size()}
        return (
            state["names"] == names
            and all(
                name in own and t.shape == own[name].shape and t.dtype == own[name].dtype for name, t in plain.items()
            )
            and all(int(name.partition("/")[0]) >= 0 and t.shape in shapes for name, t in moments.items())
            and all(bool(torch.isfinite(t).all()) for t in tensors.values())
        )

    def _restored(self, tensors: Mapping[str, Tensor], state: Json) -> dict[str, Tensor]:
        """Restores a checkpoint. Returns the optimizer state."""
        self._names = list(state["names"])
        self._state = _State(**{name: value for name, value in state.items() if name != "names"})
        self._load({name: t for name, t in tensors.items() if name.startswith((_BACKBONE, _HEAD))})
        self._best = {
            name.removeprefix(_BEST): t.to(self._device) for name, t in tensors.items() if name.startswith(_BEST)
        }
        return {name.removeprefix(_MOMENTS): t for name, t in tensors.items() if name.startswith(_MOMENTS)}


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
