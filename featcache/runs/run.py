"""A `Run`: the folder that keeps what came of a training. It is written and replaced as a whole.

It names the rows that took part, with their labels and groups, so that phase 2 divides the same images in the same way
without the store. Letters: n rows, d features, c classes.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from featcache import durable, splits
from featcache.errors import (
    CorruptStore,
    FeatcacheError,
    InputsChanged,
    StoreNotFound,
    UnknownFormat,
    UsageError,
    from_os_error,
    in_our_words,
)
from featcache.heads import inference
from featcache.identity import Json, canonical_json, digest_bytes, digest_json, from_json
from featcache.names import printable
from featcache.specs import HeadSpec
from featcache.splits.protocol import Protocol
from featcache.splits.task import Task
from featcache.summary import Rows, Summary, counted

Array = np.ndarray[Any, Any]
Table = tuple[Sequence[str], Sequence[Sequence[object]]]

WEIGHTS = "backbone.safetensors"  # of a Run whose network is its own
RUN_FILES = (
    "run.json", "head.safetensors", "folds.safetensors", "split.json", "images.json", "history.csv", "predictions.csv",
    "sweep.csv", "near_duplicates.csv", "curves.png", WEIGHTS,
)  # fmt: skip
IMAGES_FORMAT, IMAGES_VERSION = "featcache.images", 1
_ABOUT = ("head", "classes", "positive", "identity_sha256")  # what a head says of itself, beside its tensors
_COLUMNS = ("image_ids", "content_sha256", "labels", "groups")
_CURVES = [f"{side}_{name}" for side in ("train", "val") for name in ("loss", "accuracy", "f1")]
_DIGESTS = "files_sha256"  # of the record: of each CSV and of the heads; an earlier featcache did not keep them
_EARLIER = ": an earlier featcache made it. Run the same featcache train-head command again."


@dataclass(frozen=True)
class Images:
    """The rows that take part in a training, by name, and what is known of them.

    Attributes:
        image_ids: n names, all different, in the order of the rows they were.
        content_sha256: n digests of the image files.
        labels: (n,) class numbers; or (n, c) with 1, 0, NaN for findings.
        groups: (n,) numbers from 0; rows of one number are on one side of everything.
    """

    image_ids: list[str]
    content_sha256: list[str]
    labels: Array
    groups: Array

    @classmethod
    def of(cls, task: Task, protocol: Protocol) -> Self:
        """The rows of a task that are on some side of a protocol, ascending."""
        rows = np.union1d(protocol.rows, protocol.test)
        groups = np.unique(protocol.groups[rows], return_inverse=True)[1]
        names, contents = ([texts[i] for i in rows.tolist()] for texts in (task.image_ids, task.content))
        return cls(names, contents, task.labels[rows], groups)

    def __len__(self) -> int:
        return len(self.image_ids)

    def to_json(self) -> Json:
        """As `images.json` has it: format, version, a list of n per attribute (null for an unknown finding), and the
        sha256 of the canonical JSON of the rest."""
        labels = self.labels.tolist()
        if self.labels.ndim == 2:
            labels = [[int(value) if value == value else None for value in row] for row in labels]
        record = {
            "format": IMAGES_FORMAT,
            "version": IMAGES_VERSION,
            "image_ids": self.image_ids,
            "content_sha256": self.content_sha256,
            "labels": labels,
            "groups": self.groups.tolist(),
        }
        return {**record, "sha256": digest_json(record)}

    @classmethod
    def from_json(cls, record: Json, n_classes: int, has_findings: bool) -> Self:
        """What `to_json` returned.

        Raises:
            UnknownFormat: a later version.
            ValueError: anything else that is not what was written.
        """
        if not isinstance(record, dict) or record.get("format") != IMAGES_FORMAT:
            raise ValueError("it is no list of images")
        if record.get("version") != IMAGES_VERSION:
            raise UnknownFormat(f"its list of images is of version {record.get('version')!r}: upgrade featcache")
        if record.get("sha256") != digest_json({name: value for name, value in record.items() if name != "sha256"}):
            raise ValueError("its sha256 is not that of its content")
        columns: list[Json] = [record.get(name) for name in _COLUMNS]
        names, contents, labels, groups = columns
        if not all(isinstance(column, list) and len(column) == len(names) > 0 for column in columns):
            raise ValueError(f"{', '.join(_COLUMNS)} are not lists of one length")
        if not all(isinstance(text, str) for text in (*names, *contents)) or len(set(names)) < len(names):
            raise ValueError("image_ids and content_sha256 are not texts, or a name stands twice")
        if not all(_is_count(group) for group in groups):
            raise ValueError("groups are not whole numbers from 0")
        return cls(names, contents, _labels(labels, n_classes, has_findings), np.array(groups, dtype=np.int64))


def _labels(labels: list[Json], n_classes: int, has_findings: bool) -> Array:
    if not has_findings:
        if not all(_is_count(label) and label < n_classes for label in labels):
            raise ValueError(f"a label is not the number of one of {n_classes} classes")
        return np.array(labels, dtype=np.int64)
    if not all(isinstance(row, list) and len(row) == n_classes for row in labels):
        raise ValueError(f"a label is not a list of {n_classes} findings")
    if not all(value is None or (_is_count(value) and value <= 1) for row in labels for value in row):
        raise ValueError("a finding is not 1, 0 or null")
    return np.array(labels, dtype=np.float64)  # None becomes NaN


def _is_count(value: Json) -> bool:
    return type(value) is int and value >= 0


_SUMMARY = ("auroc", "accuracy", "balanced_accuracy", "f1")  # metrics of the one-screen summary


@dataclass(frozen=True, repr=False)
class Run(Summary):
    """A finished training: a folder with `run.json` (what was trained on what, and the numbers), the weights, the
    split, the history, the predictions and the curves."""

    path: Path
    record: Json

    def _summary(self) -> tuple[str, Rows]:
        record = self.record
        rows = [
            ("head", f"{record.get('head', {}).get('kind')}, {record.get('n_parameters', 0):,} parameters"),
            ("classes", counted(list(record.get("classes") or []))),
        ]
        for subset, metrics in (record.get("metrics") or {}).items():
            shown = [f"{name} {metrics[name]:.3f}" for name in _SUMMARY if metrics and metrics.get(name) is not None]
            if shown:
                rows.append((subset, f"{', '.join(shown)} ({metrics.get('n', 0):,} images)"))
        rows += [("note", note) for note in list(record.get("notes") or [])[:3]]
        return f"Run {self.path}", rows

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Reads a Run's record.

        Raises:
            StoreNotFound: no `run.json` there, so no finished Run. UsageError: it is a file. CorruptStore: it is not
                JSON.
        """
        path = Path(path)
        try:
            durable.recover(path)
            text = durable.read_regular(path / "run.json").decode("utf-8")
            record = json.loads(text, parse_constant=finite, parse_float=finite)
        except FileNotFoundError as error:
            if (path / "evaluation.json").is_file():
                raise StoreNotFound(
                    f"{path} is an evaluation of a Run, which can be reported and nothing else. Name the Run."
                ) from error
            raise StoreNotFound(
                f"there is no finished Run at {path}. Make one: featcache train-head STORE.h5"
            ) from error
        except NotADirectoryError as error:
            raise UsageError(f"{path} is a file; a Run is the folder that featcache train-head writes.") from error
        except OSError as error:
            raise from_os_error(error, "reading", path) from error
        except (ValueError, RecursionError) as error:
            raise CorruptStore(f"{path / 'run.json'} is damaged: {error}.") from error
        if not isinstance(record, dict):
            raise CorruptStore(f"{path / 'run.json'} is damaged: it holds no record.")
        return cls(path, record)

    @property
    def spec(self) -> HeadSpec:
        """The head."""
        fields = dict(self.record["head"])
        return from_json(HeadSpec.of, fields)

    @property
    def n_parameters(self) -> int:
        return int(self.record["n_parameters"])

    def metrics(self, side: str) -> dict[str, Any] | None:
        """The numbers of `train`, `val`, `test` or `outer` (nested cross-validation); None without such rows."""
        metrics: dict[str, Any] | None = self.record["metrics"].get(side)
        return metrics

    @property
    def feature_rms(self) -> float | None:
        """The root mean square of the features that the head has learnt from; None for knn.

        Raises:
            UsageError: the Run is of an earlier featcache, which did not record it.
        """
        if "feature_rms" not in self.record:
            raise UsageError(f"{self.path} does not say the scale of its features{_EARLIER}")
        rms: float | None = self.record["feature_rms"]
        return rms

    def weights(self) -> dict[str, Array]:
        """The head's arrays, in the layout of torch.nn, to be applied to the store's vectors as they are.

        Raises:
            CorruptStore: the file is damaged.
        """
        return self._tensors("head.safetensors")

    def fold_weights(self) -> list[dict[str, Array]]:
        """For each fold, in their order, the arrays of the head that has not seen its held rows, as `weights`. None
        where there was one fold, or a knn head, which has no weights.

        Raises:
            CorruptStore: the file is damaged.
        """
        path = self.path / "folds.safetensors"
        weights: dict[int, dict[str, Array]] = {}
        with _of_this_run(path):
            for key, tensor in self._tensors(path.name).items() if path.exists() else ():
                number, _, name = key.partition("/")
                weights.setdefault(int(number), {})[name] = tensor
        return [weights[number] for number in sorted(weights)]

    def logits(self, features: Array) -> Array:
        """(n, d) features as they are stored to (n, c) logits, before the temperature; of (n, v, d), v vectors of each
        row, the mean logits."""
        classes = self.record["classes"]
        positive = classes.index(self.record["positive"])
        return inference.logits(self.spec, self.weights(), features, len(classes), positive)

    def images(self) -> Images:
        """The rows that took part: everything of the store that phase 2 needs, besides the images themselves.

        Raises:
            UsageError: the Run is of an earlier featcache, which did not keep them.
            CorruptStore: the file is damaged, or of another Run.
        """
        path, record = self.path / "images.json", self._kept("images.json")
        with self._unreplaced(), _of_this_run(path):
            images = Images.from_json(record, len(self.record["classes"]), self.record["task"] == "findings")
            if self.record.get("images_sha256", record["sha256"]) != record["sha256"]:
                raise ValueError("it is not the one that run.json names")
        return images

    def task(self) -> Task:
        """What was learnt, rows numbered as in `images`, without the store's columns. Raises what `images` does."""
        images, classes = self.images(), self.record["classes"]
        positive = classes.index(self.record["positive"])
        two = len(classes) == 2 and self.record["task"] == "classes"
        notes = [f"the positive class is {classes[positive]!r}, as in {self.path.name}."] if two else []
        return Task(images.image_ids, {}, images.content_sha256, images.labels, classes, positive, {}, notes)

    def protocol(self) -> Protocol:
        """How the rows were divided, rows numbered as in `images`: test rows, folds, groups and seed. Folds around
        folds and near-duplicates, which chose nothing and are in `groups`, are left out.

        Raises:
            UsageError, CorruptStore: as `images`, also for `split.json`.
        """
        images, path, record = self.images(), self.path / "split.json", self._kept("split.json")
        with self._unreplaced(), _of_this_run(path):
            test, folds, n_missing = splits.from_json(record, images.image_ids)
            if record["sha256"] != self.record["split_sha256"] or n_missing:
                raise ValueError("it is not the one that run.json names")
            seed, left_out = int(self.record["asked"]["split"]["seed"]), dict(self.record["left_out"])
        near = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)
        return Protocol(test, folds, [], images.groups, left_out, near, seed)

    @contextmanager
    def _unreplaced(self) -> Iterator[None]:
        """A file that is not of this record is no damage where another Run has been put here since it was opened.

        Raises:
            InputsChanged: it has.
        """
        try:
            yield
        except FeatcacheError as error:
            if self._is_replaced():
                raise InputsChanged(f"{self.path} was replaced since it was opened. Open it again.") from error
            raise

    def _is_replaced(self) -> bool:
        """Whether the Run that is at this path now is another."""
        try:
            return bool(Run.open(self.path).record != self.record)
        except FeatcacheError:  # what is there now is no Run
            return False

    def _tensors(self, name: str) -> dict[str, Array]:
        path, digests = self.path / name, self.record.get(_DIGESTS)
        with self._unreplaced(), _of_this_run(path), in_our_words("reading", path):
            data = durable.read_regular(path)
            if isinstance(digests, dict) and digests.get(name) != digest_bytes(data):
                raise ValueError("it is not the one that run.json names")
            self._check_same(name, data)
            return safetensors.numpy.load(data)

    def _check_same(self, name: str, data: bytes) -> None:
        """Raises CorruptStore where a head says of itself something else than the record does of it."""
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["featcache"])
        if other := [field for field in _ABOUT if about[field] != self.record.get(field)]:
            path = self.path / "run.json"
            raise CorruptStore(f"{path} is damaged: its {other[0]} is not that of {name}. Make the Run again.")

    def _kept(self, name: str) -> Json:
        """The JSON of a file beside the record."""
        path = self.path / name
        if not path.exists():
            raise UsageError(f"{self.path} has no {name}{_EARLIER}")
        with self._unreplaced(), _of_this_run(path), in_our_words("reading", path):
            return json.loads(durable.read_regular(path).decode("utf-8"))

    def table(self, name: str) -> tuple[list[str], list[list[str]]] | None:
        """Header and rows of one of the Run's CSV files, as texts; None where there is no such file.

        Raises:
            CorruptStore: it is not the one that was written.
        """
        path, digests = self.path / name, self.record.get(_DIGESTS)
        digests = digests if isinstance(digests, dict) else None
        if digests is not None and name not in digests:
            return None  # whatever lies there, this Run has not written it
        if not path.exists():
            if digests:
                raise CorruptStore(f"{path} is gone. Make the Run again.")
            return None
        with self._unreplaced(), _of_this_run(path), in_our_words("reading", path):
            data = durable.read_regular(path)  # once: these bytes are compared, and these are parsed
            text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
            header, *rows = csv.reader(text)
            if not header or len(set(header)) < len(header) or any(len(row) != len(header) for row in rows):
                raise ValueError("its rows are not those of one table")
            if digests and digests[name] != digest_bytes(data):
                raise ValueError("it is not the one that run.json names")
        return header, rows

    def history(self) -> list[dict[str, float]]:
        """A mapping per epoch, as in `history.csv`; none for a head that was solved at once. Where a training had
        several phases each says its `phase`, 1, 2 and so on; without one all are of the first.

        Raises:
            CorruptStore: the file is damaged, or has not all epochs.
        """
        header, rows = self.table("history.csv") or ([], [])
        with _of_this_run(self.path / "history.csv"):
            if header and not {"epoch", *_CURVES} <= set(header):
                raise ValueError("its columns are not those of a training")
            epochs = [dict(zip(header, map(float, row), strict=True)) for row in rows]
            head = self.record["head"]
            if header and head.get("patience") == 0 and len(epochs) != head["epochs"]:
                raise ValueError(f"it has {len(epochs):,} of {head['epochs']:,} epochs")
        return epochs

    def sweep(self) -> list[dict[str, str]]:
        """The ranking of the specs that were tried, best first, as in `sweep.csv`; none where there was one.

        Raises:
            CorruptStore: the file is damaged.
        """
        header, rows = self.table("sweep.csv") or ([], [])
        with _of_this_run(self.path / "sweep.csv"):
            if header and (header[0] != "rank" or "n_fits" not in header[:-4]):
                raise ValueError("its columns are not those of a ranking")
            if header and (not rows or [row[0] for row in rows] != [str(i + 1) for i in range(len(rows))]):
                raise ValueError("its ranks are not 1, 2 and so on")
        return [dict(zip(header, row, strict=True)) for row in rows]


def finite(text: str) -> float:
    """A number of a record, in which there is no other than a finite one: JSON in Python reads more than it should."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text[:20]}, which is no number")
    return value


@contextmanager
def _of_this_run(path: Path) -> Iterator[None]:
    """Whatever a file has that was not written so, as one error of ours."""
    try:
        yield
    except UnknownFormat as error:
        raise UnknownFormat(f"{path}: {error}.") from error
    except (UsageError, SafetensorError, csv.Error, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = printable(" ".join(str(error).split())[:200].rstrip("."))
        raise CorruptStore(f"{path} is damaged: {reason}. Make the Run again.") from error


def check_free(run_path: Path, key: Json) -> None:
    """A Run may be repeated in its place; another Run, or somebody's folder, is never written over.

    Raises:
        UsageError: something else is there.
    """
    with in_our_words("reading", run_path):
        durable.recover(run_path)
        if not run_path.exists():
            return
        if not run_path.is_dir():
            raise UsageError(f"{run_path} is {durable.kind_of(run_path)}. Choose another place with -o.")
        names = {path.name for path in run_path.iterdir()}
    if "run.json" in names:
        record = Run.open(run_path).record
        if {name: record.get(name) for name in key} != json.loads(canonical_json(key)):
            raise UsageError(f"{run_path} holds another Run. Choose another folder with -o, or remove it first.")
    elif {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))} - set(RUN_FILES):
        raise UsageError(f"{run_path} is a folder with other files in it. Choose another place with -o.")


@contextmanager
def place(run_path: Path, key: Json) -> Iterator[None]:
    """Reserves a path for a Run from before its training until it is written; a second training there is refused.

    Raises:
        UsageError: as `check_free`.
        StoreLocked: another process is writing a Run there.
    """
    check_free(run_path, key)
    with durable.locked(run_path):
        check_free(run_path, key)
        yield


def save(
    run_path: Path,
    record: Json,
    tensors: Mapping[str, Array],
    tables: Mapping[str, Table],
    files: Mapping[str, bytes],
    folds: Sequence[Mapping[str, Array]] = (),
) -> Run:
    """Writes a Run, in the place of one that is there. To be called within `place`.

    Args:
        run_path: the folder.
        record: content of `run.json`.
        tensors: the head.
        tables: CSV files by name: header and rows.
        files: further files by name.
        folds: the heads of the folds, where they are kept.
    """
    contents = {"head.safetensors": _packed(tensors, record)}
    if folds:
        named = {f"{i}/{name}": tensor for i, head in enumerate(folds) for name, tensor in head.items()}
        contents["folds.safetensors"] = _packed(named, record)
    contents |= {name: durable.csv_bytes(header, rows) for name, (header, rows) in tables.items()}
    record = {**record, _DIGESTS: {name: digest_bytes(data) for name, data in contents.items()}}
    text = json.dumps(record, indent=1, allow_nan=False)
    durable.write_folder(run_path, {**contents, **files, "run.json": f"{text}\n".encode()}, RUN_FILES)
    return Run(run_path, json.loads(text))


def _packed(tensors: Mapping[str, Array], record: Json) -> bytes:
    """A safetensors file, with what the head is beside its tensors."""
    # One key: safetensors writes several in no fixed order, and the same Run should be the same bytes.
    about = {name: record[name] for name in _ABOUT}
    in_rows = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}  # others are written as they lie
    return safetensors.numpy.save(in_rows, metadata={"featcache": canonical_json(about)})


def rounded(rows: Sequence[Sequence[object]]) -> list[list[object]]:
    """Numbers with nine digits, as float32 has them."""
    return [[float(f"{value:.9g}") if isinstance(value, float) else value for value in row] for row in rows]
