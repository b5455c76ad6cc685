"""The results of a training on images: metrics before and after on the same rows, and the Run that records them.

Letters: n rows, c classes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featcache import figures, runs
from featcache.backbones import checkpoints, weights
from featcache.finetune.start import Start
from featcache.identity import Json, digest_json
from featcache.metrics import calibration
from featcache.prediction.run_backbone import packed
from featcache.runs import WEIGHTS, Images, Run
from featcache.splits.protocol import Protocol
from featcache.splits.task import Task
from featcache.training import baselines, selection
from featcache.training.results import TEST, VAL, Scored, about_network, chosen, tables

Array = np.ndarray[Any, Any]
SubsetLogits = Mapping[str, tuple[Array, Array]]

# Fields of the head; those of its training are in the recipe.
_SHAPE = ("kind", "hidden_sizes", "activation", "norm", "dropout", "output", "C", "alpha")


@dataclass(frozen=True)
class TrainingResult:
    """A finished training.

    Attributes:
        before, after: rows and (n, c) logits by subset, before and after the training.
        tensors: tensors of the head as in `head.safetensors`.
        histories: per fold one mapping per epoch: epoch, stage, train_ and val_ numbers.
        epoch: the weights are those after this one, counted from the start of the training; 0 for those of the start.
        n_trainable: number of trained parameters, (of the backbone, of the head).
    """

    before: SubsetLogits
    after: SubsetLogits
    tensors: Mapping[str, Array]
    histories: Sequence[Sequence[Mapping[str, float]]]
    epoch: int
    n_trainable: tuple[int, int]


def write(
    start: Start, result: TrainingResult, key: Json, rule: str | None, run_path: Path, environment: Json, seconds: float
) -> Run:
    """Writes the Run: metrics before and after, network and head, and the curves of all phases.

    Args:
        start: its start; its backbone now has the selected weights.
        result: the trained head, logits and histories.
        key: everything that decided the result.
        rule: rule of the operating point; None for none.
        run_path: the folder.
        environment: environment of this process.
        seconds: it took.
    """
    task, protocol = start.task, start.protocol
    before, after = (_scored(task, protocol, sides, rule) for sides in (result.before, result.after))
    source = checkpoints.RUN if result.epoch else start.backbone.weights_source
    digest = weights.digest(start.backbone.module)
    backbone = replace(start.backbone, weights_sha256=digest, weights_source=source)
    identity = backbone.identity(start.decode, "float32")
    images, division = Images.of(task, protocol).to_json(), protocol.record(task.image_ids)
    points, epoch = _history(start.parent, result)
    chose = ["epoch", *(["operating_point"] if rule else [])]
    parent = start.parent.record if start.parent else None
    record = {
        **key,
        "parent": {"run": start.parent.path.name, "sha256": key["parent_sha256"]} if start.parent else None,
        "head": {name: value for name, value in start.head.used().items() if name in _SHAPE},
        "n_parameters": sum(result.n_trainable),
        "n_trainable": {"backbone": result.n_trainable[0], "head": result.n_trainable[1]},
        "epoch": epoch,
        "metrics": after.metrics(chose),
        "before": {"metrics": before.metrics(chose), **_point("operating_point", before, rule)},
        "gain": _gain(task, protocol, before, after),
        "temperature": after.temperature,
        **_point("operating_point", after, rule),
        "baselines": _baselines(task, protocol),
        "notes": _notes(start, result, after),
        "left_out": parent["left_out"] if parent else protocol.left_out,
        "feature_rms": start.feature_rms,
        "images_sha256": images["sha256"],
        "identity_sha256": digest_json(identity),
        "store": {"name": parent["store"]["name"] if parent else "", "identity": identity, "weights": source},
        "environment": environment,
        "seconds": round(seconds, 3),
    }
    kept = {"split.json": division, "images.json": images}
    files = {name: (json.dumps(value) + "\n").encode() for name, value in kept.items()}
    files[WEIGHTS] = packed(backbone)
    run_tables = tables(after, points)
    names, rows = run_tables["history.csv"]
    history = [dict(zip(names, row, strict=True)) for row in rows]
    ringed = epoch if len(result.histories) == 1 and epoch in [point["epoch"] for point in history] else None
    files["curves.png"] = figures.curves(history, _title(start, key), ringed)  # type: ignore[arg-type]
    return runs.save(run_path, record, result.tensors, run_tables, files)


def _scored(task: Task, protocol: Protocol, sides: SubsetLogits, rule: str | None) -> Scored:
    """Metrics of some logits; temperature and threshold are chosen on their validation rows."""
    parsed = calibration.parse_rule(rule) if rule else None
    return Scored(task, protocol, sides, chosen(task, *sides[VAL], parsed))


def _point(name: str, scored: Scored, rule: str | None) -> Json:
    return {name: scored.at_operating_point(calibration.parse_rule(rule)) if rule else None}


def _gain(task: Task, protocol: Protocol, before: Scored, after: Scored) -> Json:
    """By subset, the change of the metrics with intervals: at 0.5, and each at its own operating point."""
    gains: dict[str, Any] = {}
    for side in (VAL, TEST):
        if side not in after.sides:
            continue
        rows, z = after.sides[side]
        change: dict[str, Any] = selection.change(task, protocol, rows, before.sides[side][1], z)
        if after.threshold is not None:
            at = before.threshold, after.threshold
            change["at_operating_point"] = selection.change(task, protocol, rows, before.sides[side][1], z, at)
        gains[side] = change
    return gains


def _baselines(task: Task, protocol: Protocol) -> Json:
    on_test = len(protocol.test) > 0
    val = np.unique(np.concatenate([fold.val for fold in protocol.folds]))
    train = protocol.folds[0].train if protocol.is_hold_out else protocol.rows
    rows = protocol.test if on_test else val
    return {"on": TEST if on_test else VAL, "majority": baselines.majority(task, train, rows)}


def _notes(start: Start, result: TrainingResult, after: Scored) -> list[str]:
    parent = start.parent
    sources = {start.backbone.weights_source, parent.record["store"].get("weights") if parent else None}
    inherited = about_network(checkpoints.RUN if checkpoints.RUN in sources else None)
    if parent and parent.record.get("n_trainable"):  # its network has the same training rows
        inherited = [note for note in inherited if note in parent.record["notes"]]
    notes = [*inherited, *after.notes()]
    if parent and parent.record["asked"].get("tta"):
        name = parent.path.name
        notes.insert(0, f"{name} used test-time augmentation; the metrics here, before and after, do not")
    if result.epoch == 0:
        of = f"those of {parent.path.name}" if parent else "the first"
        notes.insert(0, f"no epoch was better on the validation rows, so the weights are {of}")
    return [*start.task.notes, *start.protocol.notes, *start.notes, *notes]


def _history(parent: Run | None, result: TrainingResult) -> tuple[list[list[dict[str, float]]], int | None]:
    """For each fold the points of all phases, the parent's first; and the epoch of the weights."""
    earlier = parent.history() if parent else []
    phase = max((int(point.get("phase", 1)) for point in earlier), default=1 if parent else 0)
    n = int(max((point["epoch"] for point in earlier), default=0))
    rows = []
    for history in result.histories:
        points = [{"phase": 1.0, **point} for point in earlier]
        for point in history:
            rest = {name: value for name, value in point.items() if name not in ("epoch", "stage")}
            points.append({"phase": phase + point["stage"], "epoch": n + point["epoch"], **rest})
        rows.append(points)
    if result.epoch == 0 and parent:
        return rows, parent.record["epoch"]
    return rows, n + result.epoch


def _title(start: Start, key: Json) -> str:
    stages = ", ".join(
        f"{stage['unfreeze']} for {stage['epochs']} epoch{'s' * (stage['epochs'] != 1)}"
        for stage in key["recipe"]["stages"]
    )
    over = f", mean of {len(start.protocol.folds)} folds" if not start.protocol.is_hold_out else ""
    return f"{start.backbone.name}, {stages}, lr {key['recipe']['lr']:g}{over}"
