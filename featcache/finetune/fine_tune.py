"""Phase 2: back to the pixels, for exactly as much of the network as helps; and training from scratch, the same loop
with everything unfrozen.

The story: a Run says which network, weights, transform, split, classes and head; the images, or a store that holds what
enters the last stage, have to be the ones it was made of. What it bought is said on the same rows: those of validation,
which chose the epoch, and those of test, which chose nothing. The start itself may win.
Letters: n rows, c classes.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache import backbones, devices, runs
from featcache.backbones import Backbone
from featcache.backbones.networks import DENSE
from featcache.embedding.depth import settle_depth
from featcache.errors import InvalidParameter, UsageError
from featcache.finetune import unfreeze
from featcache.finetune.callbacks import Callbacks, Machine
from featcache.finetune.checkpoints import Checkpoints
from featcache.finetune.cross_validation import CrossValidation
from featcache.finetune.distributed import ProcessGroup, process_group
from featcache.finetune.inputs import (
    ImageInputs,
    Inputs,
    StoreInputs,
    StoreSource,
    check_contents,
    chosen,
    memory_bytes,
    pixels_of,
    rows_of,
)
from featcache.finetune.results import TrainingResult, write
from featcache.finetune.start import Start, of_folder
from featcache.heads import HeadSpec
from featcache.identity import Json, digest_json, environment
from featcache.images import DecodeSpec
from featcache.manifest import Manifest
from featcache.metrics import calibration
from featcache.recipe import Recipe, Stage
from featcache.request import BackboneSpec
from featcache.runs import Run
from featcache.splits.protocol import SplitSpec
from featcache.splits.task import TargetSpec
from featcache.store import Store
from featcache.training.train_head import check_held

Array = np.ndarray[Any, Any]

SCRATCH = Recipe(stages=(Stage("all", 10),), backbone_lr=0.001)


def fine_tune(
    run: Run,
    recipe: Recipe = Recipe(),
    run_path: Path | str | None = None,
    *,
    images: Manifest | None = None,
    store: Store | None = None,
    augmentations: bool = False,
    weights: str | None = None,
    operating_point: str | None = None,
    machine: Machine = Machine(),
    callbacks: Callbacks = Callbacks(),
) -> Run:
    """Trains a part of the backbone and the head of a Run on, and writes a Run that cites it.

    Args:
        run: a Run of `train_head` with a linear or mlp head, or of `fine_tune`.
        recipe: what learns, for how long, and how.
        run_path: the folder to write; None for `RUN-tuned-DIGEST` beside the Run. A training that was stopped is
            continued at its path; another one is never overwritten.
        images: those of the Run, which go through the frozen part again.
        store: instead of them, a store of the same images with the tap `boundary`; without augmentation.
        augmentations: learn from the augmented views that the store holds as well, drawn per epoch.
        weights: where the backbone's weights are, if the Run's store had them from a file.
        operating_point: a rule of `calibration.parse_rule`; None for that of the Run.
        machine: where it runs.
        callbacks: how it is followed.

    Raises:
        IdentityMismatch: other weights, another preprocessing, or a store of other vectors.
        InputsChanged: images that are not those of the Run, with the first of them.
        UsageError: a head that cannot be trained on; nothing of that name to unfreeze.
        StoreLocked: another process is training at this path.
    """
    started = time.perf_counter()
    if (images is None) == (store is None):
        raise UsageError("fine-tuning needs either the images of the Run (`images`) or a store of them (`from_cache`).")
    if augmentations and store is None:
        raise UsageError("`augmentations` are stored in a store: give it as `from_cache`.")
    recipe = replace(recipe, augment=None) if store is not None else recipe
    run = replace(run, path=_with_name(run.path))
    device = _checked_device(machine, recipe)
    with process_group(device) as processes, ExitStack() as files:
        start = Start.of_run(run, weights, processes.device(device))
        start = start if images is None else replace(start, notes=[*images.notes, *start.notes])
        callbacks.tell(start.backbone.notes)
        recipe = _with_freeze_bn(start.backbone, recipe, callbacks)
        rule = operating_point or run.record["asked"].get("operating_point")
        _check_rule(start, rule)
        request = {
            **run.record["asked"],
            "tta": False,
            "operating_point": rule,
            "views": store.identity.get("views") if store and augmentations else None,
            "inputs": "store" if store else "images",
        }
        key = _key(start, recipe, request)
        run_path = (
            _with_name(Path(run_path))
            if run_path
            else run.path.with_name(f"{run.path.name}-tuned-{digest_json(key)[:8]}")
        )
        checkpoints = _locked_checkpoints(run_path, key, processes, files, callbacks)
        inputs: Inputs
        if store is not None:
            rows = rows_of(
                store, start.differences(store.identity), start.task.image_ids, start.task.content, augmentations
            )
            inputs = StoreInputs(
                start.backbone, store, StoreSource(store, rows, recipe.seed, augmentations, memory_bytes(processes))
            )
        else:
            assert images is not None
            picked = chosen(images, start.task.image_ids)
            pixels = files.enter_context(pixels_of(picked, start.backbone, start.decode, recipe, machine, processes))
            check_contents(pixels, start.task.image_ids, start.task.content, processes, callbacks)
            n = len(start.task.image_ids)
            inputs = files.enter_context(
                ImageInputs(start.backbone, pixels, recipe, n, machine.compile, processes, callbacks)
            )
        for note in (*start.task.notes, *start.protocol.notes):
            callbacks.on_note(note)
        result = CrossValidation(start, recipe, inputs, checkpoints, processes, machine, callbacks).result()
        return _write_run(start, result, key, rule, run_path, checkpoints, processes, started)


def train(
    images: Manifest,
    spec: BackboneSpec,
    head: HeadSpec = HeadSpec(),
    recipe: Recipe = SCRATCH,
    run_path: Path | str | None = None,
    *,
    target: TargetSpec = TargetSpec(),
    split: SplitSpec = SplitSpec(),
    decode: DecodeSpec = DecodeSpec(),
    operating_point: str | None = None,
    machine: Machine = Machine(),
    callbacks: Callbacks = Callbacks(),
) -> Run:
    """Trains a network with a fresh head on images, all of it or a part, and writes a Run.

    Args:
        images: labelled images, perhaps with groups and a split. Those that cannot be read are left out and counted.
        spec: the network and its weights: "random:SEED" is training from scratch.
        head: on its vectors.
        recipe: what learns, for how long, and how.
        run_path: the folder to write; None for `runs/FOLDER-NETWORK-DIGEST`.
        target: the labels.
        split: how rows are divided.
        decode: how files become pixels.
        operating_point: a rule of `calibration.parse_rule`; None for none.
        machine: where it runs.
        callbacks: how it is followed.

    Raises:
        UsageError: labels, groups or the given split do not allow it, with counts.
        WeightsUnavailable: pretrained weights are not cached and cannot be fetched.
        StoreLocked: another process is training at this path.
    """
    started = time.perf_counter()
    device = _checked_device(machine, recipe)
    with process_group(device) as processes, ExitStack() as files:
        backbone = backbones.load(spec, processes.device(device))
        callbacks.tell(backbone.notes)
        recipe = _with_freeze_bn(backbone, recipe, callbacks)
        decode, images = _with_bit_depth(decode, images, machine, processes, callbacks)
        pixels = files.enter_context(pixels_of(images, backbone, decode, recipe, machine, processes))
        start, used = of_folder(images, backbone, decode, head, pixels, target, split, processes, callbacks)
        _check_rule(start, operating_point)
        pixels.keep_only(used)
        drawn = {name: getattr(split, name) for name in ("nested", "group_by", "near_duplicates", "seed")}
        request: Json = {"tta": False, "operating_point": operating_point, "inputs": "images"}
        request |= {"labels": target.as_json(), "split": drawn}
        key = _key(start, recipe, request)
        stem = f"{_with_name(images.source).stem}-{spec.name.replace('/', '_')}"
        run_path = _with_name(Path(run_path)) if run_path else Path("runs") / f"{stem}-{digest_json(key)[:8]}"
        checkpoints = _locked_checkpoints(run_path, key, processes, files, callbacks)
        inputs = files.enter_context(
            ImageInputs(backbone, pixels, recipe, len(used), machine.compile, processes, callbacks)
        )
        for note in (*start.task.notes, *start.protocol.notes):
            callbacks.on_note(note)
        result = CrossValidation(start, recipe, inputs, checkpoints, processes, machine, callbacks).result()
        return _write_run(start, result, key, operating_point, run_path, checkpoints, processes, started)


def head_for(model: str, kind: str | None = None, **overrides: Any) -> HeadSpec:
    """The head that a network is trained with: a linear one, or the dense layers of a small network of ours.

    Args:
        model: the network's name.
        kind: "linear", "mlp", or None for the network's own.
        given: fields of `HeadSpec`; None for those that are not given.

    Raises:
        ValueError: another kind, or a field that does not apply to it.
    """
    fields = {name: value for name, value in overrides.items() if value is not None}
    if kind is None and model in DENSE:
        return HeadSpec.of("flatten-mlp", **{"hidden_sizes": DENSE[model], **fields})
    if kind not in (None, "linear", "mlp"):
        raise InvalidParameter(f"`head` must be linear or mlp, got {kind!r}.")
    return HeadSpec.of(kind or "linear", **fields)


# --- what is asked ----------------------------------------------------------------------------------------------------


def _with_name(path: Path) -> Path:
    """A path whose last part is a name, so that others can stand beside it: not `.` or `..`."""
    return path.resolve() if path.name in ("", "..") else path


def _checked_device(machine: Machine, recipe: Recipe) -> str:
    """The device, where all that is asked of it can be had."""
    device = devices.choose(machine.device)
    backbones.check_precision(recipe.precision, device)
    return device


def _with_freeze_bn(backbone: Backbone, recipe: Recipe, callbacks: Callbacks) -> Recipe:
    """What learns is there, which is known before any image is read, and what becomes of its norms."""
    freeze_bn = unfreeze.freeze_bn_of(backbone, recipe.stages, recipe.freeze_bn)
    for stage in recipe.stages:
        unfreeze.unfrozen(backbone.module, stage.unfreeze, freeze_bn)
    if freeze_bn != recipe.freeze_bn and freeze_bn == "yes":
        callbacks.on_note(
            "the batch norms of these weights hold no statistics (mean 0, variance 1), as where they were folded into "
            "the convolutions: they stay as they are (`freeze_bn`=no trains them)."
        )
    return replace(recipe, freeze_bn=freeze_bn)


def _with_bit_depth(
    decode: DecodeSpec, images: Manifest, machine: Machine, processes: ProcessGroup, callbacks: Callbacks
) -> tuple[DecodeSpec, Manifest]:
    """The spec with a depth for all images, and the manifest with the note on it; the same in every process."""
    everything, n_workers = range(len(images.paths)), os.cpu_count() or 1
    settled = settle_depth(decode, images, everything, (), n_workers, machine.timeout_s) if processes.is_first else None
    decode, note = processes.all_gather(settled)[0]
    if not note:
        return decode, images
    if processes.is_first:
        callbacks.on_note(note)
    return decode, replace(images, notes=[*images.notes, note])


def _check_rule(start: Start, rule: str | None) -> None:
    check_held(start.task, start.protocol, calibration.parse_rule(rule) if rule else None)


# --- before and after -------------------------------------------------------------------------------------------------


def _key(start: Start, recipe: Recipe, request: Json) -> Json:
    """Everything that decides the result: two with the same key are the same Run."""
    task, parent = start.task, start.parent
    labels = [[None if v != v else v for v in np.atleast_1d(label).tolist()] for label in task.labels]
    return {
        "command": "fine-tune" if parent else "train",
        "parent_sha256": digest_json(_reproducible_fields(parent.record)) if parent else None,
        "recipe": asdict(recipe),
        "heads": [start.head.used()],
        "classes": task.classes,
        "task": "findings" if task.has_findings else "classes",
        "positive": task.classes[task.positive],
        "asked": request,
        "start_sha256": digest_json(start.backbone.identity(start.decode, "float32")),
        "content_sha256": digest_json(task.content),
        "split_sha256": start.protocol.record(task.image_ids)["sha256"],
        "labels_sha256": digest_json(labels),
    }


def _reproducible_fields(record: Json) -> Json:
    """What a Run says whenever it is made again: not how long that took, nor where it was."""
    return {name: value for name, value in record.items() if name not in ("seconds", "environment")}


def _locked_checkpoints(
    run_path: Path, key: Json, processes: ProcessGroup, files: ExitStack, callbacks: Callbacks
) -> Checkpoints:
    """Where it is written, if it may be, locked for this process and those that train with it."""
    runs.check_free(run_path, key)
    checkpoints = Checkpoints(run_path)
    if processes.is_first:
        files.enter_context(checkpoints.locked(key))
        runs.check_free(run_path, key)
    threads = processes.all_gather(checkpoints.threads)[
        0
    ]  # and the plan is there before anybody looks for a checkpoint
    files.enter_context(_with_threads(threads, callbacks))
    return checkpoints


@contextmanager
def _with_threads(n: int, callbacks: Callbacks) -> Iterator[None]:
    """A training goes on with as many threads as it was begun with."""
    n_now = torch.get_num_threads()
    if n != n_now:
        callbacks.on_note(
            f"this training began with {n} thread(s) and continues with {n}, not the {n_now} of this process, so that "
            f"the result is that of an uninterrupted training."
        )
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(n_now)


def _write_run(
    start: Start,
    result: TrainingResult,
    key: Json,
    rule: str | None,
    run_path: Path,
    checkpoints: Checkpoints,
    processes: ProcessGroup,
    started: float,
) -> Run:
    if processes.is_first:
        process_environment = environment(devices.describe(start.backbone.device))
        write(start, result, key, rule, run_path, process_environment, time.perf_counter() - started)
        checkpoints.remove()
    processes.all_gather(None)
    return Run.open(run_path)
