"""The trainings of a Run on images: one on a hold-out; or one for each fold, and a final one on all rows.

The final training has the mean number of epochs that was best for the folds. No network is scored on its own training
rows. Letters: n rows, c classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from featcache.finetune.checkpoints import Checkpoints
from featcache.finetune.distributed import Session
from featcache.finetune.inputs import Inputs
from featcache.finetune.loop import Subsets, Trainer
from featcache.finetune.results import SubsetLogits, TrainingResult
from featcache.finetune.start import Start
from featcache.heads import mlp
from featcache.heads.optim import Targets
from featcache.specs import Recipe, Stage
from featcache.training.results import TEST, TRAIN, VAL
from featcache.training.selection import by_row, numbers

Array = np.ndarray[Any, Any]

_NONE = np.array([], dtype=np.int64)


@dataclass(frozen=True)
class CrossValidation:
    """The trainings of a Run.

    Attributes:
        start: network, heads and rows.
        recipe: the parameters to train, the number of epochs, and the optimizer.
        inputs: inputs of the trained part.
        checkpoints: checkpoints of each training.
        session: processes, device and callbacks.
    """

    start: Start
    recipe: Recipe
    inputs: Inputs
    checkpoints: Checkpoints
    session: Session

    def result(self) -> TrainingResult:
        """Trains, and leaves the selected weights in the network of the start."""
        return self._hold_out() if self.start.protocol.is_hold_out else self._cross_validated()

    def _hold_out(self) -> TrainingResult:
        start, fold = self.start, self.start.protocol.folds[0]
        trainer = self._trainer(start.fold_tensors[0], self.recipe, Subsets(fold.train, fold.val))
        sides = {VAL: fold.val, **self._scored_rows(fold.train)}
        before = _predictions(trainer, sides)
        trainer.run(self.checkpoints, "fold-0", self.session.on_epoch)
        return self._result(trainer, before, _predictions(trainer, sides), [trainer.history], trainer.best_epoch)

    def _cross_validated(self) -> TrainingResult:
        start, n = self.start, len(self.start.task.image_ids)
        befores, afters, histories, best = [], [], [], []
        for i, fold in enumerate(start.protocol.folds):
            trainer = self._trainer(start.fold_tensors[i], self.recipe, Subsets(fold.train, fold.val))
            befores.append((fold.val, trainer.logits(fold.val)))
            trainer.run(self.checkpoints, f"fold-{i}", self.session.on_epoch)
            afters.append((fold.val, trainer.logits(fold.val)))
            histories.append(trainer.history)
            best.append(trainer.best_epoch)
        epochs = round(float(np.mean(best)))
        recipe = shortened(self.recipe, histories, epochs)
        rows = start.protocol.rows
        last, sides = self._trainer(start.tensors, recipe or self.recipe, Subsets(rows, _NONE)), self._scored_rows(rows)
        before = _predictions(last, sides)
        if recipe:
            last.run(self.checkpoints, "final", self.session.on_epoch)
        out_of_fold = {VAL: by_row(n, befores), **before}, {VAL: by_row(n, afters), **_predictions(last, sides)}
        return self._result(last, *out_of_fold, histories, epochs)

    def _trainer(self, tensors: Mapping[str, Array], recipe: Recipe, sides: Subsets) -> Trainer:
        """A training that begins with the weights of the start."""
        start, task = self.start, self.start.task
        start.backbone.module.load_state_dict(self._initial)
        targets = Targets(task.labels[None], len(task.classes), task.positive)
        head = start.head_module(tensors, recipe.dropout)
        return Trainer(start.backbone, head, recipe, targets, sides, self.inputs.open, self._score, self.session)

    @cached_property
    def _initial(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.start.backbone.module.state_dict().items()}

    def _score(self, rows: Array, logits: Array) -> float:
        """The metric of selection, larger is better; -inf where it is undefined on these rows."""
        select = self.recipe.select
        value = numbers(self.start.task, rows, logits).get(select)
        if value is None:
            return -np.inf
        return -float(value) if select == "loss" else float(value)

    def _scored_rows(self, train: Array) -> dict[str, Array]:
        """Rows scored by the final network, besides validation rows."""
        test = self.start.protocol.test
        return {TRAIN: train, **({TEST: test} if len(test) else {})}

    def _result(
        self,
        trainer: Trainer,
        before: SubsetLogits,
        after: SubsetLogits,
        histories: Sequence[Sequence[Mapping[str, float]]],
        epoch: int,
    ) -> TrainingResult:
        tensors = mlp.tensors_of(trainer.head) if epoch else self.start.tensors  # to the last bit, not through a scale
        return TrainingResult(before, after, tensors, histories, epoch, trainer.n_trainable)


def _predictions(trainer: Trainer, sides: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    return {side: (rows, trainer.logits(rows)) for side, rows in sides.items()}


def shortened(recipe: Recipe, histories: Sequence[Sequence[Mapping[str, float]]], epochs: int) -> Recipe | None:
    """The recipe cut to `epochs` epochs, each stage as long as in the folds on average; None for 0 epochs."""
    stages: list[Stage] = []
    for number, stage in enumerate(recipe.stages, start=1):
        ran = round(float(np.mean([sum(point["stage"] == number for point in history) for history in histories])))
        n = epochs if number == len(recipe.stages) else min(max(1, ran), epochs)
        stages += [replace(stage, epochs=n)] if n else []
        epochs -= n
    return replace(recipe, stages=tuple(stages), patience=0) if stages else None
