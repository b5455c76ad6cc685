"""What an audit found, as one JSON object and as tables, the worst first.

Computes nothing but orders: what is shown to a person, written to a CSV and answered to a script is the same. Names in
the tables are somebody's text, and are written so that no spreadsheet takes one for a formula.
Letters: n rows, k labelled rows, m pairs.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache import durable
from featcache.auditing import confounds
from featcache.auditing.confounds import Confound, Score
from featcache.auditing.shortcuts import Shortcut, as_json
from featcache.auditing.suspects import Doubts
from featcache.errors import UsageError, in_our_words
from featcache.identity import Json, canonical_json
from featcache.manifest.check import Alike

Array = np.ndarray[Any, Any]

SHOWN = 5  # rows of the long tables in an answer
_OF_SET = ("set", "image_id", "split", "label", "across_splits")
_OF_PAIR = (
    "image_id", "split", "label", "other_image_id", "other_split", "other_label", "cosine", "near", "across_splits",
    "identical",
)  # fmt: skip
_OF_LABEL = ("image_id", "split", "label", "suggested", "p_label", "p_suggested", "loss", "confident")
_OF_OUTLIER = ("image_id", "split", "label", "distance", "nearest")
_OF_CONFOUND = (
    "variable", "classes", "auroc_from_vectors", "low", "high", "above_chance", "auroc_to_label", "label_low",
    "label_high", "label_class", "label_class_auroc", "chance", "why_not",
)  # fmt: skip
_HEADERS = {
    "identical.csv": _OF_SET, "near_duplicates.csv": _OF_PAIR, "confounds.csv": _OF_CONFOUND,
    "outliers.csv": _OF_OUTLIER, "labels.csv": _OF_LABEL,
}  # fmt: skip
_ANSWER = "audit.json"
_SAID = {"store", "identical", "near", "confounds", "outliers"}  # of every audit


@dataclass(frozen=True)
class Near:
    """Pairs of rows with similar vectors: all above a threshold, and the nearest across the split, however far.

    Attributes:
        pairs: (m, 2) row numbers, those across the split first, then by cosine.
        cosine: (m,).
        crosses: (m,) whether they are on two sides of the split.
        identical: (m,) whether their files are the same.
        is_near: (m,) whether the cosine is at least the threshold.
        too_many: whether nearly all pairs are near, so that only the nearest few across the split are here, if any.
    """

    pairs: Array
    cosine: Array
    crosses: Array
    identical: Array
    is_near: Array
    too_many: bool

    def count(self, across: bool) -> int | None:
        """Near pairs of different files, of all or of those across the split; None where there are too many."""
        selected = self.is_near & ~self.identical & (self.crosses | (not across))
        return None if self.too_many else int(selected.sum())


@dataclass(frozen=True)
class Audit:
    """What was found in a store.

    Attributes:
        store: its file.
        image_ids, splits, labels: n texts each, empty where unknown.
        identical: sets of images with the same bytes.
        threshold: cosine from which two vectors are nearly the same.
        near: pairs.
        n_equal: images whose vector is exactly, or nearly, that of an image of other bytes.
        confounds: a variable each, the best told by the vectors first.
        left_out: columns that are no variables, with the reason.
        together: how well all variables together tell the label.
        shortcuts: of each class what tells it best without a look at an image, the best told first.
        of_label: how well the vectors tell it, in the same way.
        distance, nearest: of each row, see `suspects.outliers`.
        classes: names of the labels.
        labelled: (k,) rows with a label.
        doubts: of these; None where there is nothing to learn.
        notes: what a reader must know.
    """

    store: Path
    image_ids: Sequence[str]
    splits: Sequence[str]
    labels: Sequence[str]
    identical: Sequence[Alike]
    threshold: float
    near: Near
    n_equal: int
    confounds: Sequence[Confound]
    left_out: Mapping[str, str]
    together: Score | None
    shortcuts: Sequence[Shortcut]
    of_label: Score | None
    distance: Array
    nearest: Array
    classes: Sequence[str]
    labelled: Array
    doubts: Doubts | None
    notes: Sequence[str]

    @property
    def outlying(self) -> list[int]:
        """Rows, the furthest from all others first."""
        rows: list[int] = np.argsort(-self.distance, kind="stable").tolist()
        return rows

    @property
    def doubtful(self) -> list[int]:
        """Places in `labelled`, by the loss of their label: those that confident learning counts first."""
        if self.doubts is None:
            return []
        places: list[int] = np.lexsort((-self.doubts.loss, ~self.doubts.is_confident)).tolist()
        return places

    def nearest_across(self) -> list[dict[str, Any]]:
        """The head of the table of pairs: different files, across the split."""
        places = np.flatnonzero(self.near.crosses & ~self.near.identical)[:SHOWN]
        return [self._pair(place) for place in places.tolist()]

    def furthest(self) -> list[dict[str, Any]]:
        """The head of the table of outliers."""
        return [self._outlier(row) for row in self.outlying[:SHOWN]]

    def most_doubtful(self) -> list[dict[str, Any]]:
        """The head of the table of labels."""
        return [self._doubt(place) for place in self.doubtful[:SHOWN]]

    def as_json(self) -> Json:
        """The answer of `featcache audit --json`."""
        crossing = [asdict(copies) for copies in self.identical if copies.crosses]
        return {
            "store": str(self.store),
            "rows": len(self.image_ids),
            "identical": {
                "sets": len(self.identical),
                "images": sum(len(copies.images) for copies in self.identical),
                "across_splits": crossing,
                "different_labels": [asdict(copies) for copies in self.identical if len(copies.labels) > 1],
            },
            "equal_vectors": self.n_equal,
            "near": {
                "threshold": self.threshold,
                "pairs": self.near.count(across=False),
                "across_splits": self.near.count(across=True),
                "nearest_across_splits": self.nearest_across(),
            },
            "chance": confounds.CHANCE,
            "confounds": [asdict(confound) for confound in self.confounds],
            "left_out": dict(self.left_out),
            "label_from_confounds": None if self.together is None else asdict(self.together),
            "shortcuts": as_json(self.shortcuts),
            "label_from_vectors": None if self.of_label is None else asdict(self.of_label),
            "outliers": self.furthest(),
            "doubtful_labels": None if self.doubts is None else int(self.doubts.is_confident.sum()),
            "most_doubtful": self.most_doubtful(),
            "notes": list(self.notes),
        }

    def write(self, folder: Path) -> list[Path]:
        """Writes `audit.json` and a CSV each of identical images, near copies, confounds, outliers and doubtful labels.

        Raises:
            UsageError: as `check_free`.
            StoreLocked: another process is writing there.
            NoSpace, AccessDenied, InputOutputError: what was written before is as it was.
        """
        check_free(folder)
        with durable.locked(folder):
            check_free(folder)
            contents = {name: durable.csv_bytes(_HEADERS[name], rows) for name, rows in self._tables().items()}
            contents[_ANSWER] = (canonical_json(self.as_json()) + "\n").encode("utf-8")
            durable.write_folder(folder, contents)
        return [folder / name for name in (*_HEADERS, _ANSWER)]

    def _tables(self) -> dict[str, list[list[object]]]:
        return {
            "identical.csv": list(self._identical_rows()),
            "near_duplicates.csv": [list(self._pair(i).values()) for i in range(len(self.near.pairs))],
            "confounds.csv": [_confound_row(confound) for confound in self.confounds],
            "outliers.csv": [list(self._outlier(row).values()) for row in self.outlying],
            "labels.csv": [list(self._doubt(place).values()) for place in self.doubtful],
        }

    def _row(self, row: int) -> dict[str, str]:
        return {"image_id": self.image_ids[row], "split": self.splits[row], "label": self.labels[row]}

    def _outlier(self, row: int) -> dict[str, Any]:
        nearest = self.image_ids[int(self.nearest[row])]
        return {**self._row(row), "distance": round(float(self.distance[row]), 6), "nearest": nearest}

    def _doubt(self, place: int) -> dict[str, Any]:
        doubts = self.doubts
        assert doubts is not None
        numbers = {"p_label": doubts.p_given, "p_suggested": doubts.p_suggested, "loss": doubts.loss}
        return {
            **self._row(int(self.labelled[place])),
            "suggested": self.classes[doubts.suggested[place]],
            **{name: round(float(values[place]), 6) for name, values in numbers.items()},
            "confident": "yes" if doubts.is_confident[place] else "no",
        }

    def _identical_rows(self) -> Iterator[list[object]]:
        row_of = {name: row for row, name in enumerate(self.image_ids)}
        worst_first = sorted(self.identical, key=lambda copies: (not copies.crosses, len(copies.labels) < 2))
        for number, copies in enumerate(worst_first, start=1):
            for name in copies.images:
                yield [number, *self._row(row_of[name]).values(), "yes" if copies.crosses else "no"]

    def _pair(self, place: int) -> dict[str, Any]:
        one, other = self.near.pairs[place].tolist()
        flags = {"near": self.near.is_near, "across_splits": self.near.crosses, "identical": self.near.identical}
        return {
            **self._row(one),
            **{f"other_{name}": text for name, text in self._row(other).items()},
            "cosine": round(float(self.near.cosine[place]), 6),
            **{name: "yes" if values[place] else "no" for name, values in flags.items()},
        }


def check_free(folder: Path) -> None:
    """An audit may be written over another, finished or not; somebody's files never are.

    Raises:
        UsageError: a file is there instead of the folder, or in it, by the name of one of ours, what no audit wrote.
    """
    with in_our_words("reading", folder):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UsageError(f"{folder} is no folder. Choose another place with -o.")
        # One look at the names: an audit that is put here meanwhile is seen wholly or not at all.
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        if _ANSWER in names and _is_answer(folder / _ANSWER):
            return
        if "run.json" in names:
            raise UsageError(f"{folder} is the folder of a Run. Choose another one with -o.")
        for name in (*_HEADERS, _ANSWER):
            if name in names and not _is_table(folder / name):
                raise UsageError(
                    f"{folder / name} is from no audit, and would be written over. Choose another folder with -o."
                )


def _is_answer(path: Path) -> bool:
    try:
        record = json.loads(durable.read_regular(path)) if path.is_file() else None
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.keys() >= _SAID


def _is_table(path: Path) -> bool:
    """Whether it begins as the table of that name does."""
    if path.name not in _HEADERS or not path.is_file():
        return False
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        return next(csv.reader([file.readline(1000)]), []) == list(_HEADERS[path.name])


def _confound_row(confound: Confound) -> list[object]:
    def numbers(score: Score | None) -> list[object]:
        return ["", "", ""] if score is None else [round(value, 4) for value in (score.auroc, score.low, score.high)]

    above = "" if confound.from_vectors is None else "yes" if confound.from_vectors.above_chance else "no"
    best = [confound.to_label.best.name, round(confound.to_label.best.auroc, 4)] if confound.to_label else ["", ""]
    cells = [*numbers(confound.from_vectors), above, *numbers(confound.to_label), *best]
    return [confound.name, "; ".join(confound.classes), *cells, confounds.CHANCE, confound.why]
