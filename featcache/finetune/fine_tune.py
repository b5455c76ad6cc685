"""The verbs `fine_tune` and `train`: train a part of a network, or all of it, together with a head on images.

`fine_tune` begins with a Run, which names the network, weights, preprocessing, split, classes and head; the images, or
a store of the inputs of the last stage, must be those of the Run. `train` begins with a labelled folder and a new head.
The epoch is chosen on validation rows, and the start is among the candidates. Test rows choose nothing.
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
from featcache.finetune.checkpoints import Checkpoints
from featcache.finetune.cross_validation import CrossValidation
from featcache.finetune.distributed import Note, OnEpoch, ProcessGroup, Progress, Session, process_group
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
from featcache.finetune.results import write
from featcache.finetune.start import Start, of_folder
from featcache.identity import Json, digest_json, environment
from featcache.images.workers import TIMEOUT_S
from featcache.manifest import Manifest
from featcache.metrics import calibration
from featcache.runs import Run
from featcache.specs import SCRATCH, BackboneSpec, DecodeSpec, HeadSpec, Recipe, SplitSpec, TargetSpec
from featcache.store import Store
from featcache.training.train_head import check_held

Array = np.ndarray[Any, Any]


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
    device: str = "auto",
    compile: str = "auto",  # noqa: A002  # the usual name
    timeout_s: float = TIMEOUT_S,
    on_progress: Progress = lambda done, total: None,
    on_epoch: OnEpoch = lambda done, total, metrics: None,
    on_note: Note = lambda text: None,
) -> Run:
    """Trains a part of the backbone together with the head of a Run.

    Training stops and resumes at `run_path` with the same result as an uninterrupted training. The new Run cites its
    parent and has the metrics before and after on the same rows, with the network's weights.

    Args:
        run: a Run of `train_head` with a linear or mlp head; or of `fine_tune` or `train`.
        recipe: the parameters to train, the number of epochs, the optimizer and the augmentation.
        run_path: folder to write; None for `RUN-tuned-DIGEST` beside the Run. The result of another training is never
            overwritten.
        images: the images of the Run. The frozen part of the network is applied to them again.
        store: instead of `images`, a store of the same images with the tap `boundary`. No new augmentation is possible.
        augmentations: also train on the augmented copies in `store`, one copy or the image itself per epoch.
        weights: file of the backbone's weights, if the Run's store was made with one.
        operating_point: rule for the decision threshold, as in `calibration.parse_rule`; None for that of the Run.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        compile: compile the network with torch.compile: "on", "off", or "auto", where the images repay it.
        timeout_s: seconds allowed to read and decode one image.
        on_progress: called with (images read, images in all) before training begins.
        on_epoch: called with (epochs done, epochs in all, metrics of the epoch) once its checkpoint is on disk.
        on_note: called with each message for the user.

    Returns:
        The Run at `run_path`.

    Raises:
        IdentityMismatch: other weights, other preprocessing, or a store of other vectors.
        InputsChanged: the images differ from those of the Run; the first ones are named.
        UsageError: the head cannot be trained further, or no parameter matches `unfreeze`.
        StoreLocked: another process is training at this path.

    Example:
        >>> import featcache
        >>> from featcache.specs import Recipe, Stage
        >>> images = featcache.Manifest.read("images")
        >>> run = featcache.Run.open("runs/scratch")  # for example the Run of `train`
        >>> tuned = featcache.fine_tune(run, Recipe(stages=(Stage("last-block", 1),)), "runs/tuned", images=images)
        >>> sorted(tuned.record["gain"])
        ['test', 'val']
    """
    started = time.perf_counter()
    if (images is None) == (store is None):
        raise UsageError("fine-tuning needs either the images of the Run (`images`) or a store of them (`store`).")
    if augmentations and store is None:
        raise UsageError("`augmentations` are read from a store: give `store` instead of `images`.")
    recipe = recipe if store is None else replace(recipe, augment=None)
    run = replace(run, path=_with_name(run.path))
    callbacks = on_progress, on_epoch, on_note
    with _session(recipe, device, compile, timeout_s, *callbacks) as session, ExitStack() as files:
        start = Start.of_run(run, weights, session.device)
        start = start if images is None else replace(start, notes=[*images.notes, *start.notes])
        recipe = _with_freeze_bn(start.backbone, recipe, session)
        rule = operating_point or run.record["asked"].get("operating_point")
        _check_rule(start, rule)
        key = _key(start, recipe, _request(run, rule, store, augmentations))
        path = _with_name(Path(run_path or run.path.with_name(f"{run.path.name}-tuned-{digest_json(key)[:8]}")))
        checkpoints = _locked_checkpoints(path, key, session, files)
        inputs: Inputs
        if store is not None:
            inputs = _store_inputs(start, store, recipe, augmentations, session)
        else:
            assert images is not None
            inputs = _image_inputs(start, images, recipe, session, files)
        return _trained(start, recipe, inputs, key, checkpoints, session, started)


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
    device: str = "auto",
    compile: str = "auto",  # noqa: A002  # the usual name
    timeout_s: float = TIMEOUT_S,
    on_progress: Progress = lambda done, total: None,
    on_epoch: OnEpoch = lambda done, total, metrics: None,
    on_note: Note = lambda text: None,
) -> Run:
    """Trains a network, or a part of it, with a new head on labelled images.

    Args:
        images: labelled images, perhaps with groups and a split. Those that cannot be read are left out and counted.
        spec: the network and its weights; "random:SEED" trains from scratch.
        head: the head on the network's vectors.
        recipe: the parameters to train, the number of epochs, the optimizer and the augmentation.
        run_path: folder to write; None for `runs/FOLDER-NETWORK-DIGEST`.
        target: the labels.
        split: the division into training, validation and test rows.
        decode: the decoding of files.
        operating_point: rule for the decision threshold, as in `calibration.parse_rule`; None for none.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        compile: compile the network with torch.compile: "on", "off", or "auto", where the images repay it.
        timeout_s: seconds allowed to read and decode one image.
        on_progress: called with (images read, images in all) before training begins.
        on_epoch: called with (epochs done, epochs in all, metrics of the epoch) once its checkpoint is on disk.
        on_note: called with each message for the user.

    Returns:
        The Run at `run_path`.

    Raises:
        UsageError: labels, groups or the given split do not allow the training; the message has counts.
        WeightsUnavailable: pretrained weights are not cached and cannot be downloaded.
        StoreLocked: another process is training at this path.

    Example:
        >>> from pathlib import Path
        >>> import featcache
        >>> from featcache import phantoms
        >>> from featcache.specs import Recipe, Stage
        >>> phantoms.write(Path("images"), n_patients=20, images_per_patient=1)
        20
        >>> images = featcache.Manifest.read("images")
        >>> backbone = featcache.BackboneSpec("simple-cnn", "random:0", input_size=32)
        >>> run = featcache.train(images, backbone, recipe=Recipe(stages=(Stage("all", 1),)), run_path="runs/scratch")
        >>> run.record["classes"]
        ['abnormal', 'normal']
    """
    started = time.perf_counter()
    callbacks = on_progress, on_epoch, on_note
    with _session(recipe, device, compile, timeout_s, *callbacks) as session, ExitStack() as files:
        backbone = backbones.load(spec, session.device)
        recipe = _with_freeze_bn(backbone, recipe, session)
        decode, images = _with_bit_depth(decode, images, session)
        pixels = files.enter_context(pixels_of(images, backbone, decode, recipe, session))
        start, rows = of_folder(images, backbone, decode, head, pixels, target, split, session)
        _check_rule(start, operating_point)
        pixels.keep_only(rows)
        drawn = {name: getattr(split, name) for name in ("nested", "group_by", "near_duplicates", "seed")}
        request: Json = {"tta": False, "operating_point": operating_point, "inputs": "images"}
        key = _key(start, recipe, request | {"labels": target.as_json(), "split": drawn})
        stem = f"{_with_name(images.source).stem}-{spec.name.replace('/', '_')}"
        path = _with_name(Path(run_path or Path("runs") / f"{stem}-{digest_json(key)[:8]}"))
        checkpoints = _locked_checkpoints(path, key, session, files)
        inputs = files.enter_context(ImageInputs(backbone, pixels, recipe, len(rows), session))
        return _trained(start, recipe, inputs, key, checkpoints, session, started)


def head_for(model: str, kind: str | None = None, **overrides: Any) -> HeadSpec:
    """The default head of a network: linear, or the dense layers of `simple-cnn` and `covid-cnn`.

    Args:
        model: the network's name.
        kind: "linear", "mlp", or None for the network's default.
        overrides: fields of `HeadSpec`; None keeps the default.

    Raises:
        InvalidParameter: another kind, or a field that does not apply to it.
    """
    fields = {name: value for name, value in overrides.items() if value is not None}
    if kind is None and model in DENSE:
        return HeadSpec.of("flatten-mlp", **{"hidden_sizes": DENSE[model], **fields})
    if kind not in (None, "linear", "mlp"):
        raise InvalidParameter(f"`head` must be linear or mlp, got {kind!r}.")
    return HeadSpec.of(kind or "linear", **fields)


# --- before training --------------------------------------------------------------------------------------------------


@contextmanager
def _session(recipe: Recipe, device: str, *options: Any) -> Iterator[Session]:
    """The session of this process: a device that has the precision of the recipe, and the other processes."""
    session = Session(ProcessGroup(), device, *options)
    device = devices.choose(device)
    backbones.check_precision(recipe.precision, device)
    with process_group(device) as processes:
        yield replace(session, processes=processes, device=processes.device(device))


def _with_name(path: Path) -> Path:
    """A path whose last part is a name, not `.` or `..`, so that other files can be written beside it."""
    return path.resolve() if path.name in ("", "..") else path


def _with_freeze_bn(backbone: Backbone, recipe: Recipe, session: Session) -> Recipe:
    """The recipe with `freeze_bn` resolved. Checks before any image is read that each stage trains something."""
    session.note_all(backbone.notes)
    freeze_bn = unfreeze.freeze_bn_of(backbone, recipe.stages, recipe.freeze_bn)
    for stage in recipe.stages:
        unfreeze.unfrozen(backbone.module, stage.unfreeze, freeze_bn)
    if freeze_bn != recipe.freeze_bn and freeze_bn == "yes":
        session.on_note(
            "the batch norms of these weights hold no statistics (mean 0, variance 1), as after folding them into the "
            "convolutions. They stay frozen; `freeze_bn`=no trains them."
        )
    return replace(recipe, freeze_bn=freeze_bn)


def _with_bit_depth(decode: DecodeSpec, images: Manifest, session: Session) -> tuple[DecodeSpec, Manifest]:
    """The spec with one bit depth for all images, and the manifest with a note on it; the same in every process."""
    rows, n_workers, processes = range(len(images.paths)), os.cpu_count() or 1, session.processes
    settled = settle_depth(decode, images, rows, (), n_workers, session.timeout_s) if processes.is_first else None
    decode, note = processes.all_gather(settled)[0]
    if not note:
        return decode, images
    if processes.is_first:
        session.on_note(note)
    return decode, replace(images, notes=[*images.notes, note])


def _check_rule(start: Start, rule: str | None) -> None:
    check_held(start.task, start.protocol, calibration.parse_rule(rule) if rule else None)


def _request(run: Run, rule: str | None, store: Store | None, augmentations: bool) -> Json:
    return {
        **run.record["asked"],
        "tta": False,
        "operating_point": rule,
        "views": store.identity.get("views") if store and augmentations else None,
        "inputs": "store" if store else "images",
    }


def _key(start: Start, recipe: Recipe, request: Json) -> Json:
    """Everything that decides the result: two trainings with the same key make the same Run."""
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
    """The record without the fields that differ when the same Run is made again."""
    return {name: value for name, value in record.items() if name not in ("seconds", "environment")}


def _locked_checkpoints(run_path: Path, key: Json, session: Session, files: ExitStack) -> Checkpoints:
    """The checkpoints of the Run, locked for this process and those that train with it."""
    runs.check_free(run_path, key)
    checkpoints, processes = Checkpoints(run_path), session.processes
    if processes.is_first:
        files.enter_context(checkpoints.locked(key))
        runs.check_free(run_path, key)
    threads = processes.all_gather(checkpoints.threads)[0]  # also waits until the plan is on disk
    files.enter_context(_with_threads(threads, session))
    return checkpoints


@contextmanager
def _with_threads(n: int, session: Session) -> Iterator[None]:
    """A training continues with the number of threads that it began with."""
    n_now = torch.get_num_threads()
    if n != n_now:
        session.on_note(
            f"this training began with {n} thread(s) and continues with {n}, not the {n_now} of this process, so that "
            f"the result is that of an uninterrupted training."
        )
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(n_now)


def _store_inputs(start: Start, store: Store, recipe: Recipe, augmentations: bool, session: Session) -> Inputs:
    task = start.task
    rows = rows_of(store, start.differences(store.identity), task.image_ids, task.content, augmentations)
    source = StoreSource(store, rows, recipe.seed, augmentations, memory_bytes(session.processes))
    return StoreInputs(start.backbone, store, source)


def _image_inputs(start: Start, images: Manifest, recipe: Recipe, session: Session, files: ExitStack) -> Inputs:
    task, manifest = start.task, chosen(images, start.task.image_ids)
    pixels = files.enter_context(pixels_of(manifest, start.backbone, start.decode, recipe, session))
    check_contents(pixels, task.image_ids, task.content, session)
    return files.enter_context(ImageInputs(start.backbone, pixels, recipe, len(task.image_ids), session))


# --- training ---------------------------------------------------------------------------------------------------------


def _trained(
    start: Start,
    recipe: Recipe,
    inputs: Inputs,
    key: Json,
    checkpoints: Checkpoints,
    session: Session,
    started: float,
) -> Run:
    """Trains, and writes the Run in the first process."""
    for note in (*start.task.notes, *start.protocol.notes):
        session.on_note(note)
    result = CrossValidation(start, recipe, inputs, checkpoints, session).result()
    if session.processes.is_first:
        hardware = environment(devices.describe(start.backbone.device))
        rule, seconds = key["asked"]["operating_point"], time.perf_counter() - started
        write(start, result, key, rule, checkpoints.run_path, hardware, seconds)
        checkpoints.remove()
    session.processes.all_gather(None)
    return Run.open(checkpoints.run_path)
