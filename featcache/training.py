"""Heads are trained here, on vectors that fit in memory; a `Run` is the folder that keeps what came of it.

There is no DataLoader: an epoch is a permutation and slices of one array. What is reported as `test` is never looked at
before the last step. Knows nothing of images; the pixels come back only in the partial fine-tune.
Letters: k heads, n rows, b rows of a batch, d features, c classes.
"""

import csv
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor
from torch.nn import functional

from featcache import devices, durable, figures, metrics, splits
from featcache.errors import CorruptStore, StoreNotFound, UsageError, from_os_error
from featcache.heads import HeadSpec, HeadStack
from featcache.provenance import Json, canonical_json, digest_json, environment
from featcache.splits import Split
from featcache.store import Store

Array = np.ndarray[Any, Any]
History = list[dict[str, float]]

RUN_FILES = ("run.json", "head.safetensors", "history.csv", "predictions.csv", "curves.png")
DEFAULT_VAL_FRACTION = 0.2
_CURVE = ("loss", "accuracy", "precision", "recall", "f1")


# --- the result -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A finished training: a folder with `run.json` (what was trained on what, and the numbers), the weights, the
    history, the predictions and the curves."""

    path: Path
    record: Json

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Reads a Run's record.

        Raises:
            StoreNotFound: no `run.json` there, so no finished Run. CorruptStore: it is not JSON.
        """
        path = Path(path)
        try:
            record = json.loads((path / "run.json").read_text("utf-8"))
        except FileNotFoundError as error:
            raise StoreNotFound(
                f"there is no finished Run at {path}. Make one: featcache train-head STORE.h5"
            ) from error
        except OSError as error:
            raise from_os_error(error, "reading", path) from error
        except ValueError as error:
            raise CorruptStore(f"{path / 'run.json'} is damaged: {error}.") from error
        if not isinstance(record, dict):
            raise CorruptStore(f"{path / 'run.json'} is damaged: it holds no record.")
        return cls(path, record)

    @property
    def n_parameters(self) -> int:
        return int(self.record["n_parameters"])

    def metrics(self, side: str) -> dict[str, Any] | None:
        """The numbers of `train`, `val` or `test`; None where there is no test split."""
        found: dict[str, Any] | None = self.record["metrics"][side]
        return found

    def weights(self) -> dict[str, Array]:
        """`weight` (c, d) and `bias` (c), to be applied to the store's vectors as they are."""
        return safetensors.numpy.load_file(self.path / "head.safetensors")

    def history(self) -> History:
        """A mapping per epoch, as in `history.csv`."""
        with open(self.path / "history.csv", encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


# --- train-head -------------------------------------------------------------------------------------------------------


def train_head(
    store: Store,
    spec: HeadSpec | None = None,
    run_path: Path | None = None,
    *,
    val_fraction: float | None = None,
    group_by: str | None = None,
    positive: str | None = None,
    device: str = "cpu",
) -> Run:
    """Trains one head on a store and writes the Run.

    Args:
        store: with a column `label`. Rows without one are left out and counted.
        spec: the head; the default is the linear probe.
        run_path: the folder to write; None for `runs/STORE-KIND-DIGEST` in the current folder. The same training of the
            same store may be repeated at its path; another is never overwritten.
        val_fraction: share of the training rows held out. None uses the store's own validation rows if any, else
            0.2. Given, it also returns the store's own validation rows to the training rows first.
        group_by: the column whose values may not be on two sides; None for `group` where there is one. Identical images
            are never on two sides in any case.
        positive: the class that precision, recall and the like are about; None for the last in sorted order.
        device: "cpu", "cuda", "cuda:N" or "auto".

    Raises:
        UsageError: labels, groups or the given split do not allow it, with counts; another Run is at `run_path`.
    """
    started = time.perf_counter()
    spec, device = spec or HeadSpec(), devices.choose(device)
    task = Task.of(store, positive)
    split = choose_split(task, val_fraction, group_by, spec.seed)
    _check_classes(task, split)
    key = _key(store, spec, task, split)
    run_path = run_path or Path("runs") / f"{store.path.stem}-{spec.kind}-{digest_json(key)[:8]}"
    _check_free(run_path, key)

    x = torch.from_numpy(store.features()).to(device)  # (n, d)
    y = torch.from_numpy(task.labels).to(device)  # (n,)
    offset, scale = feature_scale(x[split.train], spec.scale)
    x = (x - offset) / scale
    with _one_thread():
        stack, history = fit(spec, x, y, split, len(task.classes), task.positive)
    head = stack.fold(offset, scale, 0)

    logits = stack(x)[0].cpu().numpy()  # (n, c)
    record = {
        **key,
        "n_parameters": stack.n_parameters,
        "metrics": {side: _evaluate(task, rows, logits) for side, rows in split.sides().items()},
        "left_out": task.left_out,
        "store": {"name": store.path.name, "identity": store.identity},
        "environment": environment(device),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return _save(run_path, record, head, history, _predictions(task, split, logits))


@dataclass(frozen=True)
class Task:
    """What is to be learnt from a store: labels as numbers, and everything a split needs.

    Attributes:
        labels: (n,) class numbers; -1 where the label is missing.
        classes: the c names in sorted order.
        positive: number of the positive class.
        left_out: rows that take no part, by reason.
    """

    image_ids: list[str]
    columns: dict[str, list[str]]
    content: list[str]
    labels: Array
    classes: list[str]
    positive: int
    left_out: dict[str, int]

    @classmethod
    def of(cls, store: Store, positive: str | None) -> Self:
        """Raises UsageError without labels, with fewer than two classes, or if `positive` is none of them."""
        columns = store.columns
        texts = columns.get("label", [""] * len(store))
        classes = sorted({text for text in texts if text})
        if len(classes) < 2:
            found = f"only the class {classes[0]!r}" if classes else "no labels"
            raise UsageError(
                f"{store.path} has {found}; a head needs two classes. Put the images into one folder per class, or "
                f"give a CSV with a label column, and embed again: labels are not part of what is computed."
            )
        if positive is not None and positive not in classes:
            raise UsageError(f"--positive {positive!r} is not one of the classes: {', '.join(classes)}.")
        number = {text: i for i, text in enumerate(classes)}
        labels = np.array([number.get(text, -1) for text in texts], dtype=np.int64)
        left_out = {"no label": int(np.sum(labels < 0))} if (labels < 0).any() else {}
        chosen = number[positive] if positive is not None else len(classes) - 1
        return cls(store.image_ids, columns, store.content_sha256, labels, classes, chosen, left_out)


def choose_split(task: Task, val_fraction: float | None, group_by: str | None, seed: int) -> Split:
    """The store's own split where it has one, with validation rows carved out of the training rows where it has none.

    Raises:
        UsageError: an unknown group column, a group or identical image on two sides of the given split, too few groups.
    """
    if group_by is not None and group_by not in task.columns:
        raise UsageError(f"there is no column {group_by!r} to group by; there are {', '.join(task.columns) or 'none'}.")
    group_column = task.columns.get(group_by or "group", [""] * len(task.labels))
    groups = splits.merge_groups(group_column, task.content)
    labelled = np.flatnonzero(task.labels >= 0)
    given = task.columns.get("split")
    if given is None or not any(given):
        train, val = _carve(task, groups, labelled, val_fraction, seed)
        return Split(train, val, np.array([], dtype=np.int64))
    side = np.array(given, dtype=object)
    train, val, test = (labelled[side[labelled] == name] for name in (splits.TRAIN, splits.VAL, splits.TEST))
    if unassigned := len(labelled) - len(train) - len(val) - len(test):
        task.left_out["no split"] = unassigned
    splits.check_nothing_crosses(Split(train, val, test), groups, task.image_ids)
    if val_fraction is not None or not len(val):
        train, val = _carve(task, groups, np.sort(np.concatenate([train, val])), val_fraction, seed)
    if not len(train):
        raise UsageError("the split column leaves no labelled image to train on.")
    return Split(train, val, test)


def _carve(task: Task, groups: Array, rows: Array, fraction: float | None, seed: int) -> tuple[Array, Array]:
    if not len(rows):
        raise UsageError("the split column leaves no labelled image to train on.")
    fraction = DEFAULT_VAL_FRACTION if fraction is None else fraction
    names = np.array(task.classes)[task.labels[rows]]
    kept, held_out = splits.hold_out(names, groups[rows], fraction, seed)
    return rows[kept], rows[held_out]


def _check_classes(task: Task, split: Split) -> None:
    """A head learns no class that the training rows do not have."""
    count = {side: np.bincount(task.labels[rows], minlength=len(task.classes)) for side, rows in split.sides().items()}
    missing = [name for name, n in zip(task.classes, count[splits.TRAIN], strict=True) if n == 0]
    if missing:
        held = ", ".join(f"{n} {name}" for name, n in zip(task.classes, count[splits.TRAIN], strict=True))
        raise UsageError(
            f"the training rows have no image of class {missing[0]!r} ({held}). Mend the split or the labels."
        )


# --- the fit ----------------------------------------------------------------------------------------------------------


def feature_scale(x: Tensor, scale: str) -> tuple[Tensor, Tensor]:
    """(d,) offset and (d,) divisor of the features, from the (n, d) training rows alone.

    "rms" is one number for all features: vectors of a random network may have a scale of 1e-5, on which Adam at 0.003
    learns nothing, while a scale per feature costs 0.04 AUROC on test images of a shifted distribution.
    """
    d = x.shape[1]
    zeros, ones = x.new_zeros(d), x.new_ones(d)
    if scale == "rms":
        rms = x.double().square().mean().sqrt().to(x.dtype)
        return zeros, ones * rms if rms > 0 else ones
    if scale == "standard":
        deviation = x.std(dim=0, correction=0)
        return x.mean(dim=0), torch.where(deviation > 0, deviation, ones)
    return zeros, ones


def fit(spec: HeadSpec, x: Tensor, y: Tensor, split: Split, n_classes: int, positive: int) -> tuple[HeadStack, History]:
    """Trains a head on the training rows with Adam; after every epoch both sides are evaluated.

    Args:
        spec: the head.
        x: (n, d) features, scaled.
        y: (n,) class numbers; rows outside the split may hold anything.
        split: row numbers; only `train` is learnt from, `test` is not touched.
        n_classes: c.
        positive: as in `metrics.per_epoch`.

    Returns:
        The stack (k = 1) as it is after the last epoch, and the history.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    stack = HeadStack.fresh(x.shape[1], n_classes, [generator])
    stack = HeadStack(*(parameter.to(x.device).requires_grad_() for parameter in stack.parameters()))
    optimizer = Adam(stack.parameters(), spec.lr)
    weights = _class_weights(spec, y[split.train], n_classes)
    seen = {side: (x[rows], y[rows]) for side, rows in split.sides().items() if side != splits.TEST and len(rows)}
    x_train, y_train = seen[splits.TRAIN]
    history = []
    batch_rows = min(spec.batch_rows, len(x_train))
    for epoch in range(1, spec.epochs + 1):
        for rows in _batches(len(x_train), batch_rows, generator):
            loss = _loss(stack(x_train[rows]), y_train[rows], weights)
            optimizer.step(torch.autograd.grad(loss, stack.parameters()))
        history.append({"epoch": float(epoch), **_curve_point(stack, seen, positive)})
        if not all(map(math.isfinite, history[-1].values())):
            raise UsageError(f"the training diverged: the loss of epoch {epoch} is not finite. Lower --lr.")
    return HeadStack(*(parameter.detach() for parameter in stack.parameters())), history


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) with the defaults of torch.optim.Adam, to whose steps its own are equal.

    Ours because the first optimizer of torch.optim takes three seconds to import what it needs for compiling, longer
    than a linear head takes to train.
    """

    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def __init__(self, parameters: list[Tensor], lr: float) -> None:
        self._lr, self._t = lr, 0
        self._moments = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        self._t += 1
        lr = self._lr / (1 - self.beta1**self._t)
        correction = (1 - self.beta2**self._t) ** 0.5
        for (parameter, mean, square), gradient in zip(self._moments, gradients, strict=True):
            mean.lerp_(gradient, 1 - self.beta1)
            square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
            parameter.addcdiv_(mean, (square.sqrt() / correction).add_(self.epsilon), value=-lr)


@contextmanager
def _one_thread() -> Iterator[None]:
    """A step of a head is microseconds of arithmetic: threads that wait for each other cost more than they bring.

    On two cores shared with other work the same head took 48 s with two threads and 2.4 s with one.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _batches(n: int, batch_rows: int, generator: torch.Generator) -> Iterator[Tensor]:
    yield from torch.split(torch.randperm(n, generator=generator), batch_rows)


def _loss(logits: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Cross entropy of (k, b, c) logits, averaged over the batch by class weight, summed over heads: a head's gradient
    does not depend on how many stand beside it."""
    k, b, c = logits.shape
    each = functional.cross_entropy(logits.reshape(k * b, c), y.repeat(k), weight=weights, reduction="none")
    return each.sum() / weights[y].sum()


def _class_weights(spec: HeadSpec, y: Tensor, n_classes: int) -> Tensor:
    """(c,); balanced is n / (c n_class), as scikit-learn's compute_class_weight."""
    if spec.class_weights == "none":
        return torch.ones(n_classes, device=y.device)
    counts = torch.bincount(y, minlength=n_classes).clamp(min=1)
    return len(y) / (n_classes * counts.float())


@torch.no_grad()
def _curve_point(stack: HeadStack, seen: Mapping[str, tuple[Tensor, Tensor]], positive: int) -> dict[str, float]:
    point = {}
    for side, (x, y) in seen.items():
        values = metrics.per_epoch(y.cpu().numpy(), stack(x)[0].cpu().numpy(), positive)
        point.update({f"{side}_{name}": values[name] for name in _CURVE})
    return point


# --- what is written --------------------------------------------------------------------------------------------------


def _key(store: Store, spec: HeadSpec, task: Task, split: Split) -> Json:
    """Everything that decides the result of a training: two with the same key are the same Run."""
    used = {side: [(task.image_ids[i], int(task.labels[i])) for i in rows] for side, rows in split.sides().items()}
    return {
        "head": asdict(spec),
        "classes": task.classes,
        "positive": task.classes[task.positive],
        "identity_sha256": store.identity_sha256,
        "content_sha256": digest_json(task.content),
        "split_sha256": digest_json(split.named(task.image_ids)),
        "labels_sha256": digest_json(used),
    }


def _check_free(run_path: Path, key: Json) -> None:
    """A Run may be repeated in its place; another Run, or somebody's folder, is never written over."""
    if not run_path.exists():
        return
    if not run_path.is_dir():
        raise UsageError(f"{run_path} is a file. Choose another place with -o.")
    names = {path.name for path in run_path.iterdir()}
    if "run.json" in names:
        held = Run.open(run_path).record
        if {name: held.get(name) for name in key} != json.loads(canonical_json(key)):
            raise UsageError(f"{run_path} holds another Run. Choose another folder with -o, or remove it first.")
    elif {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))} - set(RUN_FILES):
        raise UsageError(f"{run_path} is a folder with other files in it. Choose another place with -o.")


def _evaluate(task: Task, rows: Array, logits: Array) -> metrics.Metrics | None:
    return metrics.evaluate(task.labels[rows], logits[rows], task.positive) if len(rows) else None


def _predictions(task: Task, split: Split, logits: Array) -> list[list[str]]:
    """A header, and a line per row of the split: image_id, split, label, prediction, probability of each class."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    rows = [
        [
            *(task.image_ids[i], side, task.classes[task.labels[i]], task.classes[int(logits[i].argmax())]),
            *(f"{p:.9g}" for p in probabilities[i]),
        ]
        for side, numbers in split.sides().items()
        for i in numbers
    ]
    return [["image_id", "split", "label", "prediction", *(f"p_{name}" for name in task.classes)], *rows]


def _save(run_path: Path, record: Json, head: dict[str, Any], history: History, predictions: list[list[str]]) -> Run:
    """Each file whole or absent, `run.json` last: a folder with a `run.json` is a finished Run."""
    try:
        run_path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, "writing", run_path) from error
    # One key: safetensors writes several in no fixed order, and the same Run should be the same bytes.
    meta = {"featcache": canonical_json({name: record[name] for name in ("classes", "positive", "identity_sha256")})}
    names = list(history[0])
    spec = record["head"]
    title = (
        f"{spec['kind']} head on {record['store']['name']}, lr {spec['lr']:g}, class weights {spec['class_weights']}"
    )
    durable.write_bytes(run_path / "head.safetensors", safetensors.numpy.save(head, metadata=meta))
    rounded = [[float(f"{row[name]:.9g}") for name in names] for row in history]
    durable.write_csv(run_path / "history.csv", names, rounded)
    durable.write_csv(run_path / "predictions.csv", predictions[0], predictions[1:])
    durable.write_bytes(run_path / "curves.png", figures.curves(history, title))
    durable.write_text(run_path / "run.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    return Run(run_path, record)
