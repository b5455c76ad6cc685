"""An `Evaluation`: the folder that keeps what a Run predicted for a labelled set from elsewhere, and how well.

It is read and written as a Run is, with one difference: its record is `evaluation.json`, so that no command takes it
for something that can predict. The record is written last: an Evaluation that opens is finished.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from featcache import durable
from featcache.errors import CorruptStore, StoreNotFound, UnknownFormat, UsageError, in_our_words
from featcache.identity import Json, canonical_json, digest_bytes
from featcache.names import printable
from featcache.runs.run import Images, Run, Table, finite
from featcache.runs.subsets import EXTERNAL
from featcache.splits.protocol import Protocol

FORMAT, VERSION = "featcache.evaluation", 1
RECORD = "evaluation.json"
PREDICTIONS, IMAGES, FAILURES, SUBGROUPS = "predictions.csv", "images.json", "failures.csv", "subgroups.csv"
EVALUATION_FILES = (RECORD, PREDICTIONS, IMAGES, FAILURES, SUBGROUPS)


@dataclass(frozen=True)
class Evaluation:
    """How well a Run did on a labelled set from elsewhere.

    Attributes:
        path: the folder.
        record: everything that is known of it, as `evaluation.json` has it.
    """

    path: Path
    record: Json

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Reads the record of an evaluation.

        Raises:
            StoreNotFound: there is none. UnknownFormat: a later version. CorruptStore: it is damaged.
        """
        path = Path(path)
        if not is_evaluation(path):
            raise StoreNotFound(f"there is no evaluation at {path}. Make one: featcache evaluate RUN IMAGES -o {path}")
        with in_our_words("reading", path / RECORD):
            data = durable.read_regular(path / RECORD)
        try:
            record = json.loads(data.decode("utf-8"), parse_constant=finite, parse_float=finite)
            if not isinstance(record, dict) or record.get("format") != FORMAT:
                raise ValueError("it holds no record of an evaluation")
        except (ValueError, RecursionError) as error:
            raise CorruptStore(f"{path / RECORD} is damaged: {printable(str(error))}. Evaluate again.") from error
        if record.get("version") != VERSION:
            raise UnknownFormat(f"{path / RECORD} is of version {record.get('version')!r}: upgrade featcache.")
        return cls(path, record)

    @property
    def metrics(self) -> dict[str, Any]:
        """The numbers of the set, as `Run.metrics` has those of a subset."""
        metrics: dict[str, Any] = self.record["metrics"][EXTERNAL]
        return metrics

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers has to know, in full sentences."""
        return list(self.record["notes"])

    @property
    def folder(self) -> Run:
        """The folder, read as that of a Run: `images`, `task` and `table` are those of the set. It has no weights."""
        return Run(self.path, self.record)

    def protocol(self) -> Protocol:
        """All rows report, and none was learnt from; groups are those of the set. Raises what `Run.images` does."""
        images = self.folder.images()
        near = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)
        return Protocol(np.arange(len(images)), [], [], images.groups, dict(self.record["left_out"]), near, 0)

    def as_json(self) -> Json:
        """The answer of `featcache evaluate --json`: the record, and where it is."""
        return {"evaluation": str(self.path), **self.record}


def is_evaluation(path: Path) -> bool:
    """Whether a folder is that of an evaluation."""
    return (path / RECORD).is_file()


def check_free(path: Path, key: Json) -> None:
    """An evaluation may be repeated in its place; another one, or somebody's folder, is never written over.

    Args:
        path: the folder.
        key: entries of the record by which an evaluation is the same one.

    Raises:
        UsageError: something else is there.
    """
    _check_place(path)
    durable.recover(path)
    if not path.exists():
        return
    if is_evaluation(path):
        record = Evaluation.open(path).record
        if {name: record.get(name) for name in key} != json.loads(canonical_json(key)):
            raise UsageError(f"{path} holds another evaluation. Choose another folder, or remove it first.")
        return
    with in_our_words("reading", path):
        names = {entry.name for entry in path.iterdir()}
    if {name for name in names if not (name.startswith(".") and name.endswith(".tmp"))} - set(EVALUATION_FILES):
        raise UsageError(f"{path} is a folder with other files in it. Choose another place for the evaluation.")


def _check_place(path: Path) -> None:
    """Before hours of work, not after them: whether a file can be made there."""
    place = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
    if not place.is_dir():
        raise UsageError(f"{place} is no folder. Choose another place for the evaluation.")
    with in_our_words("writing", place):
        tempfile.TemporaryFile(dir=place).close()


def save(path: Path, record: Json, images: Images, tables: Mapping[str, Table]) -> Evaluation:
    """Writes an evaluation, in the place of one that is there. To be called by whoever holds `path`.

    Args:
        path: the folder.
        record: without the digests of the files.
        images: the rows that were scored.
        tables: CSV files by name: header and rows.
    """
    listed = images.to_json()
    contents = {name: durable.csv_bytes(header, rows) for name, (header, rows) in tables.items()}
    record = {
        "format": FORMAT,
        "version": VERSION,
        **record,
        "images_sha256": listed["sha256"],
        "files_sha256": {name: digest_bytes(data) for name, data in contents.items()},
    }
    text = json.dumps(record, indent=1, allow_nan=False)
    contents |= {IMAGES: (json.dumps(listed) + "\n").encode(), RECORD: f"{text}\n".encode()}
    durable.write_folder(path, contents, EVALUATION_FILES)
    return Evaluation(path, json.loads(text))
