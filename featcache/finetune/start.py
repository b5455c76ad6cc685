"""What a training on pixels starts from: the network, its head, the rows and how they are divided, checked before
anything is computed. Either of a Run, or of a labelled folder of images with a fresh head.
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
from featcache.heads import HeadSpec, mlp
from featcache.heads.mlp import Head, head_module
from featcache.identity import Json, difference
from featcache.images import DecodeSpec
from featcache.manifest import Manifest
from featcache.prediction import run_backbone
from featcache.runs import WEIGHTS, Run
from featcache.runs.backbone import comparable, views_of
from featcache.splits.protocol import Protocol, SplitSpec, divide
from featcache.splits.task import TargetSpec, Task
from featcache.store.reader import differences as vector_differences

Array = np.ndarray[Any, Any]

_MAX_PIXELS = 1 << 30  # an image of the Run was within the bound that it was embedded with


@dataclass(frozen=True)
class Start:
    """What a training on pixels starts from.

    Attributes:
        task: labels of the rows.
        protocol: how they are divided.
        backbone: the network, ready and frozen.
        decode: how files become pixels.
        head: what the head is.
        tensors: its weights; those of the final head.
        fold_tensors: the weights of the head of each fold, which has not seen its held rows.
        feature_rms: what the head's features were divided by.
        parent: the Run, if it is one.
        notes: those of the manifest of the images.
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
        """The state in which a Run was left.

        Args:
            run: a Run of `train_head` or of a training on pixels.
            weights: where the backbone's weights are; None for where the Run's store had them from.
            device: where the network will be.

        Raises:
            UsageError: a head that has no weights to train on, or whose validation rows were learnt from.
            IdentityMismatch: other weights, or another preprocessing than the Run's.
        """
        if run.spec.kind == "knn" or (run.spec.kind == "flatten-mlp" and not (run.path / WEIGHTS).exists()):
            raise UsageError(f"{run.path} has a {run.spec.kind} head; phase 2 needs one on vectors: linear or mlp.")
        if run.record["asked"].get("refit_all"):
            raise UsageError(
                f"{run.path} was trained on its validation rows as well (`refit_all`), and they could not choose "
                f"anything any more. Train the head again without it."
            )
        task, protocol = run.task(), run.protocol()
        folds = [run.weights()] if protocol.is_hold_out else run.fold_weights()
        if len(folds) != len(protocol.folds):
            raise UsageError(f"{run.path} has no heads of its {len(protocol.folds)} folds to go on from.")
        backbone, request = run_backbone.backbone_of(run, weights, device)
        # What was embedded is known by its bytes, so a first frame is taken where it was taken before.
        decode = replace(request.decode, first_frame=True, max_pixels=_MAX_PIXELS)
        rms = run.feature_rms
        assert rms is not None, "only knn has none"
        return cls(task, protocol, backbone, decode, run.spec, run.weights(), folds, rms, run, backbone.notes)

    def differences(self, identity: Json) -> list[str]:
        """What the vectors of a store have that those of the Run have not, a line each. What else it holds, and under
        which name, changes nothing."""
        assert self.parent is not None
        own = self.backbone.identity(self.decode, "", views_of(identity))
        lines = vector_differences(comparable(identity), comparable(own))
        stored = (fields["stored_dtype"] for fields in (identity, self.parent.record["store"]["identity"]))
        return lines + difference(*({"stored_dtype": dtype} for dtype in stored))

    def head_module(self, tensors: Mapping[str, Array], dropout: float | None) -> Head:
        """A head with these weights, to be trained on."""
        spec = replace(self.head, dropout=dropout) if dropout is not None and self.head.hidden_sizes else self.head
        task = self.task
        return head_module(spec, tensors, self.feature_rms, len(task.classes), task.positive, task.has_findings)


# --- of a folder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folder:
    """The images of a folder that can be read, as rows to be labelled."""

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
    """A fresh head on the images of a folder that can be read, and the number among all images of each row.

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
