"""A `Run`: the folder that keeps what came of a training. Written last file last, so a Run that opens is finished."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.numpy

from featcache import durable, scoring
from featcache.errors import CorruptStore, StoreNotFound, UsageError, from_os_error, in_our_words
from featcache.heads import HeadSpec
from featcache.provenance import Json, canonical_json, from_json

Array = np.ndarray[Any, Any]
Table = tuple[Sequence[str], Sequence[Sequence[object]]]

RUN_FILES = (
    "run.json", "head.safetensors", "split.json", "history.csv", "predictions.csv", "sweep.csv",
    "near_duplicates.csv", "curves.png",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished training: a folder with `run.json` (what was trained on what, and the numbers), the weights, the
    split, the history, the predictions and the curves."""

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
    def spec(self) -> HeadSpec:
        """The head."""
        fields = dict(self.record["head"])
        return from_json(HeadSpec.of, fields)

    @property
    def n_parameters(self) -> int:
        return int(self.record["n_parameters"])

    def metrics(self, side: str) -> dict[str, Any] | None:
        """The numbers of `train`, `val`, `test` or `outer` (nested cross-validation); None without such rows."""
        found: dict[str, Any] | None = self.record["metrics"].get(side)
        return found

    def weights(self) -> dict[str, Array]:
        """The head's arrays, in the layout of torch.nn, to be applied to the store's vectors as they are."""
        return safetensors.numpy.load_file(self.path / "head.safetensors")

    def logits(self, features: Array) -> Array:
        """(n, d) features as they are stored to (n, c) logits, before the temperature; of (n, v, d), v vectors of each
        row, the mean logits."""
        classes = self.record["classes"]
        positive = classes.index(self.record["positive"])
        return scoring.logits(self.spec, self.weights(), features, len(classes), positive)

    def history(self) -> list[dict[str, float]]:
        """A mapping per epoch, as in `history.csv`; none for a head that was solved at once."""
        path = self.path / "history.csv"
        if not path.exists():
            return []
        with open(path, encoding="utf-8", newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    def sweep(self) -> list[dict[str, str]]:
        """The ranking of the specs that were tried, best first, as in `sweep.csv`; none where there was one."""
        path = self.path / "sweep.csv"
        if not path.exists():
            return []
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


def check_free(run_path: Path, key: Json) -> None:
    """A Run may be repeated in its place; another Run, or somebody's folder, is never written over.

    Raises:
        UsageError: something else is there.
    """
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


def save(
    run_path: Path, record: Json, tensors: Mapping[str, Array], tables: Mapping[str, Table], files: Mapping[str, bytes]
) -> Run:
    """Each file whole or absent, `run.json` last.

    Args:
        run_path: the folder.
        record: of `run.json`.
        tensors: the head.
        tables: CSV files by name: header and rows.
        files: further files by name.
    """
    with in_our_words("writing", run_path):
        run_path.mkdir(parents=True, exist_ok=True)
    # One key: safetensors writes several in no fixed order, and the same Run should be the same bytes.
    about = {name: record[name] for name in ("head", "classes", "positive", "identity_sha256")}
    in_rows = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}  # others are written as they lie
    head = safetensors.numpy.save(in_rows, metadata={"featcache": canonical_json(about)})
    durable.write_bytes(run_path / "head.safetensors", head)
    for name, (header, rows) in tables.items():
        durable.write_csv(run_path / name, header, rows)
    for name, data in files.items():
        durable.write_bytes(run_path / name, data)
    text = json.dumps(record, indent=1, allow_nan=False)
    durable.write_text(run_path / "run.json", text + "\n")
    return Run(run_path, json.loads(text))


def rounded(rows: Sequence[Sequence[object]]) -> list[list[object]]:
    """Numbers with nine digits, as float32 has them."""
    return [[float(f"{value:.9g}") if isinstance(value, float) else value for value in row] for row in rows]
