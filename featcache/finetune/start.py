"""The start of a training on images: network, head, rows and split, checked before anything is computed.

It is a Run, or a labelled folder of images with a new head.
Letters: d features, c classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from featcache.backbones import Backbone
from featcache.errors import UsageError
from featcache.finetune.distributed import Session
from featcache.finetune.inputs import Pixels
from featcache.heads import mlp
from featcache.heads.mlp import Head, head_module
from featcache.identity import Json, difference
from featcache.manifest import Manifest
from featcache.prediction import run_backbone
from featcache.runs import WEIGHTS, Run
from featcache.runs.backbone import comparable, views_of
from featcache.specs import DecodeSpec, HeadSpec, SplitSpec, TargetSpec
from featcache.splits.protocol import Protocol, divide
from featcache.splits.task import Task
from featcache.store.reader import differences as vector_differences

Array = np.ndarray[Any, Any]

_MAX_PIXELS = 1 << 30  # an image of the Run was within the bound that it was embedded with


@dataclass(frozen=True)
class Start:
    """The start of a training on images.

    Attributes:
        task: labels of the rows.
        protocol: split of the rows.
        backbone: the network, loaded and frozen.
        decode: decoding of the files.
        head: spec of the head.
        tensors: weights of the final head.
        fold_tensors: weights of the head of each fold, trained without its validation rows.
        feature_rms: divisor of the head's features.
        parent: the Run it starts from; None for a folder.
        notes: notes of the manifest.
    """

    task: Task
    protocol: Protocol
    backbone: Backbone
    decode: DecodeSpec
    head: HeadSpec
    tensors: Mapping[str, Array]
    fold_tensors: Sequence[Mapping[str, Array]]
    feature_rms: float
    parent: Run | None = None
    notes: Sequence[str] = ()

    @classmethod
    def of_run(cls, run: Run, weights: str | None, device: str) -> Self:
        """Starts from a Run.

        Args:
            run: a Run of `train_head` or of a training on pixels.
            weights: where the backbone's weights are; None for where the Run's store had them from.
            device: where the network will be.

        Raises:
            UsageError: a head that has no weights to train on, or whose validation rows were learnt from.
            IdentityMismatch: other weights, or another preprocessing than the Run's.
        """
        if run.spec.kind == "knn" or (run.spec.kind == "flatten-mlp" and not (run.path / WEIGHTS).exists()):
            raise UsageError(f"{run.path} has a {run.spec.kind} head; fine-tuning needs a linear or mlp head.")
        if run.record["asked"].get("refit_all"):
            raise UsageError(
                f"{run.path} was trained on its validation rows as well (`refit_all`), so they cannot select an epoch. "
                f"Train the head again without it."
            )
        task, protocol = run.task(), run.protocol()
        folds = [run.weights()] if protocol.is_hold_out else run.fold_weights()
        if len(folds) != len(protocol.folds):
            raise UsageError(f"{run.path} has no heads of its {len(protocol.folds)} folds to start from.")
        backbone, request = run_backbone.backbone_of(run, weights, device)
        # What was embedded is known by its bytes, so a first frame is taken where it was taken before.
        decode = replace(request.decode, first_frame=True, max_pixels=_MAX_PIXELS)
        rms = run.feature_rms
        assert rms is not None, "only knn has none"
        return cls(task, protocol, backbone, decode, run.spec, run.weights(), folds, rms, run, backbone.notes)

    def differences(self, identity: Json) -> list[str]:
        """Differences between the vectors of a store and those of the Run, one line each. Other arrays of the store,
        and its name, are ignored."""
        assert self.parent is not None
        own = self.backbone.identity(self.decode, "", views_of(identity))
        lines = vector_differences(comparable(identity), comparable(own))
        stored = (fields["stored_dtype"] for fields in (identity, self.parent.record["store"]["identity"]))
        return lines + difference(*({"stored_dtype": dtype} for dtype in stored))

    def head_module(self, tensors: Mapping[str, Array], dropout: float | None) -> Head:
        """A trainable head with these weights."""
        spec = replace(self.head, dropout=dropout) if dropout is not None and self.head.hidden_sizes else self.head
        task = self.task
        return head_module(spec, tensors, self.feature_rms, len(task.classes), task.positive, task.has_findings)


# --- of a folder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folder:
    """The readable images of a folder, as rows to be labelled."""

    path: Path
    image_ids: list[str]
    columns: dict[str, list[str]]
    content_sha256: list[str]

    def __len__(self) -> int:
        return len(self.image_ids)


def of_folder(
    images: Manifest,
    backbone: Backbone,
    decode: DecodeSpec,
    head: HeadSpec,
    pixels: Pixels,
    target: TargetSpec,
    split: SplitSpec,
    session: Session,
) -> tuple[Start, list[int]]:
    """A new head on the readable images of a folder, and the number of each row among all images.

    Raises:
        UsageError: labels, groups or the given split do not allow it, with counts.
    """
    if not images.image_ids:
        raise UsageError(f"found 0 images under {images.source}.")
    everything = np.arange(len(images.image_ids))
    processes = session.processes
    mine = processes.share(everything).tolist()
    pixels.read([i for i in mine if images.image_ids[i] not in images.refused], session.on_progress)
    digests = [part for several in processes.all_gather([pixels.digests[i] for i in mine]) for part in several]
    failures: dict[int, tuple[str, str]] = {}
    for failures_there in processes.all_gather(pixels.failures):
        failures |= failures_there
    pixels.digests = digests
    numbers = [i for i in everything.tolist() if digests[i] and i not in failures]
    failed = len(everything) - len(numbers)
    reasons = [f"; the first: {images.image_ids[i]}: {reason}" for i, (_, reason) in sorted(failures.items())]
    first = reasons[0].rstrip(".") if reasons else ""
    if not numbers:
        raise UsageError(f"none of the {failed:,} images under {images.source} can be used{first}.")
    columns = {name: [values[i] for i in numbers] for name, values in images.columns.items()}
    folder = _Folder(images.source, [images.image_ids[i] for i in numbers], columns, [digests[i] for i in numbers])
    task = Task.of(folder, target)
    if failed:
        task.left_out["unreadable image"] = failed
        session.on_note(f"{failed:,} images cannot be used and are left out{first}.")
    protocol = divide(task, split, None)
    n_outputs = mlp.n_outputs(head, len(task.classes), task.has_findings)
    tensors = mlp.fresh(head, backbone.n_features, n_outputs)
    folds = [tensors] * len(protocol.folds)
    start = Start(task, protocol, backbone, decode, head, tensors, folds, 1.0, notes=[*images.notes, *backbone.notes])
    return start, numbers
