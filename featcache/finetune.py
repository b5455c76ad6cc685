"""Phase 2: back to the pixels, for exactly as much of the network as helps; and training from scratch, the same loop
with everything unfrozen.

The story: a Run says which network, weights, transform, split, classes and head; the images, or a store that holds what
enters the last stage, have to be the ones it was made of. What it bought is said on the same rows: those of validation,
which chose the epoch, and those of test, which chose nothing. The start itself may win.
Letters: n rows, c classes.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from featcache import backbones, devices, modules, runs
from featcache.boundaries import FromStore
from featcache.checkpoints import Checkpoints
from featcache.errors import UsageError
from featcache.heads import HeadSpec
from featcache.images import DecodeSpec
from featcache.inputs import ImageInputs, Inputs, StoreInputs, check_contents, chosen, memory_bytes, pixels_of, rows_of
from featcache.manifest import Manifest
from featcache.networks import DENSE
from featcache.objective import Targets
from featcache.outcome import Outcome, write
from featcache.protocol import SplitSpec
from featcache.provenance import Json, digest_json, environment
from featcache.recipe import Recipe, Stage
from featcache.request import BackboneSpec
from featcache.runs import Run
from featcache.selection import numbers
from featcache.start import Start, of_folder
from featcache.store import Store
from featcache.summary import TEST, TRAIN, VAL
from featcache.task import TargetSpec
from featcache.telling import Machine, Telling
from featcache.tuning import Sides, Tuner
from featcache.world import World, joined

Array = np.ndarray[Any, Any]

_NONE = np.array([], dtype=np.int64)
SCRATCH = Recipe(stages=(Stage("all", 10),), backbone_lr=0.001)


def fine_tune(
    run: Run,
    recipe: Recipe = Recipe(),
    run_path: Path | None = None,
    *,
    images: Manifest | None = None,
    store: Store | None = None,
    views: bool = False,
    weights: str | None = None,
    operating_point: str | None = None,
    machine: Machine = Machine(),
    telling: Telling = Telling(),
) -> Run:
    """Trains a part of the backbone and the head of a Run on, and writes a Run that cites it.

    Args:
        run: of `train_head`, with a linear or mlp head; or of `fine_tune`.
        recipe: what learns, for how long, and how.
        run_path: the folder to write; None for `RUN-tuned-DIGEST` beside the Run. A training that was stopped is
            continued at its path; another one is never overwritten.
        images: those of the Run, which go through the frozen part again.
        store: instead of them, a store of the same images with the tap `boundary`; without augmentation.
        views: learn from the augmented views that the store holds as well, drawn per epoch.
        weights: where the backbone's weights are, if the Run's store had them from a file.
        operating_point: a rule of `calibration.parse_rule`; None for that of the Run.
        machine: where it runs.
        telling: how it is followed.

    Raises:
        IdentityMismatch: other weights, another preprocessing, or a store of other vectors.
        InputsChanged: images that are not those of the Run, with the first of them.
        UsageError: a head that cannot be trained on; nothing of that name to unfreeze.
        StoreLocked: another process is training at this path.
    """
    started = time.perf_counter()
    if (images is None) == (store is None):
        raise UsageError("fine-tune needs the images of the Run (--images), or a store of them (--from-cache).")
    if views and store is None:
        raise UsageError("--views are those of a store: give it with --from-cache.")
    recipe = replace(recipe, augment=None) if store is not None else recipe
    device = devices.choose(machine.device)
    with joined(device) as world, ExitStack() as files:
        start = Start.of_run(run, weights, world.device(device))
        rule = operating_point or run.record["asked"].get("operating_point")
        asked = {
            **run.record["asked"],
            "operating_point": rule,
            "views": views,
            "inputs": "store" if store else "images",
        }
        key = _key(start, recipe, asked)
        run_path = run_path or run.path.with_name(f"{run.path.name}-tuned-{digest_json(key)[:8]}")
        checkpoints = _prepared(run_path, key, world, files)
        inputs: Inputs
        if store is not None:
            identity = run.record["store"]["identity"]
            rows = rows_of(store, identity, start.task.image_ids, start.task.content, views)
            inputs = StoreInputs(start.backbone, store, FromStore(store, rows, recipe.seed, views, memory_bytes(world)))
        else:
            assert images is not None
            picked = chosen(images, start.task.image_ids)
            pixels = files.enter_context(pixels_of(picked, start.backbone, start.decode, recipe, machine, world))
            check_contents(pixels, start.task.image_ids, start.task.content, world, telling)
            n = len(start.task.image_ids)
            inputs = files.enter_context(
                ImageInputs(start.backbone, pixels, recipe, n, machine.compile, world, telling)
            )
        outcome = _trained(start, recipe, inputs, checkpoints, world, machine, telling)
        return _written(start, outcome, key, rule, run_path, checkpoints, world, started)


def train(
    images: Manifest,
    spec: BackboneSpec,
    head: HeadSpec = HeadSpec(),
    recipe: Recipe = SCRATCH,
    run_path: Path | None = None,
    *,
    target: TargetSpec = TargetSpec(),
    split: SplitSpec = SplitSpec(),
    decode: DecodeSpec = DecodeSpec(),
    operating_point: str | None = None,
    machine: Machine = Machine(),
    telling: Telling = Telling(),
) -> Run:
    """Trains a network with a fresh head on images, all of it or a part, and writes a Run.

    Args:
        images: with labels, and perhaps groups and a split. Those that cannot be read are left out and counted.
        spec: the network and its weights: "random:SEED" is training from scratch.
        head: on its vectors.
        recipe: what learns, for how long, and how.
        run_path: the folder to write; None for `runs/FOLDER-NETWORK-DIGEST`.
        target: the labels.
        split: how rows are divided.
        decode: how files become pixels.
        operating_point: a rule of `calibration.parse_rule`; None for none.
        machine: where it runs.
        telling: how it is followed.

    Raises:
        UsageError: labels, groups or the given split do not allow it, with counts.
        WeightsUnavailable: pretrained weights are not cached and cannot be fetched.
        StoreLocked: another process is training at this path.
    """
    started = time.perf_counter()
    device = devices.choose(machine.device)
    with joined(device) as world, ExitStack() as files:
        backbone = backbones.load(spec, world.device(device))
        pixels = files.enter_context(pixels_of(images, backbone, decode, recipe, machine, world))
        start, used = of_folder(images, backbone, decode, head, pixels, target, split, world, telling)
        pixels.keep_only(used)
        drawn = {name: getattr(split, name) for name in ("nested", "group_by", "near_duplicates", "seed")}
        asked = {"average_views": False, "operating_point": operating_point, "split": drawn, "inputs": "images"}
        key = _key(start, recipe, asked)
        stem = f"{images.source.stem}-{spec.name.replace('/', '_')}"
        run_path = run_path or Path("runs") / f"{stem}-{digest_json(key)[:8]}"
        checkpoints = _prepared(run_path, key, world, files)
        inputs = files.enter_context(ImageInputs(backbone, pixels, recipe, len(used), machine.compile, world, telling))
        outcome = _trained(start, recipe, inputs, checkpoints, world, machine, telling)
        return _written(start, outcome, key, operating_point, run_path, checkpoints, world, started)


def head_for(model: str, kind: str | None = None, **given: Any) -> HeadSpec:
    """The head that a network is trained with: a linear one, or the dense layers of a small network of ours.

    Args:
        model: the network's name.
        kind: "linear", "mlp", or None for the network's own.
        given: fields of `HeadSpec`; None for those that are not given.

    Raises:
        ValueError: another kind, or a field that does not apply to it.
    """
    fields = {name: value for name, value in given.items() if value is not None}
    if kind is None and model in DENSE:
        return HeadSpec.of("flatten-mlp", **{"widths": DENSE[model], **fields})
    if kind not in (None, "linear", "mlp"):
        raise ValueError(f"head must be linear or mlp, got {kind!r}")
    return HeadSpec.of(kind or "linear", **fields)


# --- the trainings ----------------------------------------------------------------------------------------------------


def _trained(
    start: Start,
    recipe: Recipe,
    inputs: Inputs,
    checkpoints: Checkpoints,
    world: World,
    machine: Machine,
    telling: Telling,
) -> Outcome:
    """A training for each fold, and where there are several one on all their rows, for as many epochs as were best for
    the folds on average: that one is kept."""
    task, protocol, initial = start.task, start.protocol, _copied(start)
    targets = Targets(task.labels[None], len(task.classes), task.positive)

    def score(rows: Array, logits: Array) -> float:
        value = numbers(task, rows, logits).get(recipe.select)
        return -np.inf if value is None else -float(value) if recipe.select == "loss" else float(value)

    def tuner(tensors: Mapping[str, Array], recipe: Recipe, train: Array, held: Array) -> Tuner:
        start.backbone.module.load_state_dict(initial)
        head = start.made(tensors, recipe.dropout)
        how = inputs.open, score, world, machine.compile, telling.on_note
        return Tuner(start.backbone, head, recipe, targets, Sides(train, held), *how)

    def follow(done: int, total: int, point: Mapping[str, float]) -> None:
        telling.on_epoch(done, total, point)

    befores, afters, histories, best = [], [], [], []
    for i, fold in enumerate(protocol.folds):
        one = tuner(start.of_folds[i], recipe, fold.train, fold.held)
        befores.append((fold.held, one.logits(fold.held)))
        first = {side: (rows, one.logits(rows)) for side, rows in _reported(start, i).items()}
        one.run(checkpoints, f"fold-{i}", follow)
        afters.append((fold.held, one.logits(fold.held)))
        histories.append(one.history)
        best.append(one.best_epoch)
    epochs = best[0]
    if not protocol.is_hold_out:
        epochs = round(float(np.mean(best)))
        shorter = _shortened(recipe, epochs)
        one = tuner(start.tensors, shorter or recipe, protocol.rows, _NONE)
        first = {side: (rows, one.logits(rows)) for side, rows in _reported(start, None).items()}
        if shorter:
            one.run(checkpoints, "final", follow)
    last = {side: (rows, one.logits(rows)) for side, (rows, _) in first.items()}
    n = len(task.image_ids)
    return Outcome(
        {VAL: _out_of_fold(n, befores), **first},
        {VAL: _out_of_fold(n, afters), **last},
        modules.tensors_of(one.head),
        histories,
        epochs,
        one.n_trainable,
    )


def _reported(start: Start, fold: int | None) -> dict[str, Array]:
    """The rows that are scored by the network that is kept, besides the held ones: nothing where it is not that of a
    fold alone."""
    protocol = start.protocol
    if fold is not None and not protocol.is_hold_out:
        return {}
    train = protocol.folds[0].train if protocol.is_hold_out else protocol.rows
    return {TRAIN: train, **({TEST: protocol.test} if len(protocol.test) else {})}


def _copied(start: Start) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in start.backbone.module.state_dict().items()}


def _shortened(recipe: Recipe, epochs: int) -> Recipe | None:
    """The recipe, ended after so many epochs; None after none."""
    stages = []
    for stage in recipe.stages:
        if epochs > 0:
            stages.append(replace(stage, epochs=min(stage.epochs, epochs)))
            epochs -= stage.epochs
    return replace(recipe, stages=tuple(stages), early_stopping=0) if stages else None


def _out_of_fold(n: int, found: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """(rows, logits): each held row's logits by networks that have not seen it, averaged over repeats."""
    total, times = np.zeros((n, found[0][1].shape[1])), np.zeros(n, dtype=np.int64)
    for rows, logits in found:
        total[rows] += logits
        times[rows] += 1
    rows = np.flatnonzero(times)
    return rows, (total[rows] / times[rows, None]).astype(np.float32)


# --- before and after -------------------------------------------------------------------------------------------------


def _key(start: Start, recipe: Recipe, asked: Json) -> Json:
    """Everything that decides the result: two with the same key are the same Run."""
    task, parent = start.task, start.parent
    labels = [[None if v != v else v for v in np.atleast_1d(label).tolist()] for label in task.labels]
    return {
        "command": "fine-tune" if parent else "train",
        "parent": {"run": parent.path.name, "sha256": digest_json(parent.record)} if parent else None,
        "recipe": asdict(recipe),
        "heads": [start.head.used()],
        "classes": task.classes,
        "task": "findings" if task.has_findings else "classes",
        "positive": task.classes[task.positive],
        "asked": asked,
        "start_sha256": start.backbone.weights_sha256,
        "content_sha256": digest_json(task.content),
        "split_sha256": start.protocol.record(task.image_ids)["sha256"],
        "labels_sha256": digest_json(labels),
    }


def _prepared(run_path: Path, key: Json, world: World, files: ExitStack) -> Checkpoints:
    """Where it is written, if it may be, locked for this process and those that train with it."""
    runs.check_free(run_path, key)
    checkpoints = Checkpoints(run_path)
    files.enter_context(checkpoints.locked(key) if world.is_first else nullcontext())
    world.gathered(None)  # the plan is there before anybody looks for a checkpoint
    return checkpoints


def _written(
    start: Start,
    outcome: Outcome,
    key: Json,
    rule: str | None,
    run_path: Path,
    checkpoints: Checkpoints,
    world: World,
    started: float,
) -> Run:
    if world.is_first:
        here = environment(devices.describe(start.backbone.device))
        write(start, outcome, key, rule, run_path, here, time.perf_counter() - started)
        checkpoints.remove()
    world.gathered(None)
    return Run.open(run_path)
