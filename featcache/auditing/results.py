"""The results of an audit as JSON and as CSV tables, the most suspicious rows first.

The printed, written and JSON results are the same. Texts in the tables are escaped so that no spreadsheet reads them as
formulas.
Letters: n rows, k labelled_rows rows, m pairs.
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
from featcache.auditing.suspects import LabelIssues
from featcache.errors import UsageError, in_our_words
from featcache.identity import Json, canonical_json
from featcache.manifest.check import Alike

Array = np.ndarray[Any, Any]

N_SHOWN = 5  # rows of each ranking in the JSON
_OF_SET = ("set", "image_id", "split", "label", "across_splits")
_OF_PAIR = (
    "image_id", "split", "label", "other_image_id", "other_split", "other_label", "cosine", "near", "across_splits",
    "identical",
)  # fmt: skip
_OF_LABEL = ("image_id", "split", "label", "suggested", "p_label", "p_suggested", "loss", "is_issue")
_OF_OUTLIER = ("image_id", "split", "label", "distance", "nearest")
_OF_CONFOUND = (
    "variable", "classes", "auroc_from_vectors", "low", "high", "above_chance", "label_auroc", "label_low",
    "label_high", "label_class", "label_class_auroc", "chance", "reason",
)  # fmt: skip
_HEADERS = {
    "identical.csv": _OF_SET, "near_duplicates.csv": _OF_PAIR, "confounds.csv": _OF_CONFOUND,
    "outliers.csv": _OF_OUTLIER, "labels.csv": _OF_LABEL,
}  # fmt: skip
_ANSWER = "audit.json"
_KEYS = {"store", "identical", "near", "confounds", "outliers"}  # keys of every audit.json


@dataclass(frozen=True)
class Near:
    """Pairs of images with similar vectors: all above a threshold, and the most similar pairs across the split.

    Attributes:
        pairs: (m, 2) row numbers, pairs across the split first, then by cosine.
        cosine: (m,) cosine similarities.
        crosses: (m,) whether the images are in different subsets of the split.
        identical: (m,) whether the files are identical.
        is_near: (m,) whether the cosine reaches the threshold.
        too_many: whether nearly all pairs reach the threshold; then only the most similar pairs across the split are
            listed.
    """

    pairs: Array
    cosine: Array
    crosses: Array
    identical: Array
    is_near: Array
    too_many: bool

    def count(self, across: bool) -> int | None:
        """The number of near pairs of different files, of all or across the split; None if there are too many."""
        selected = self.is_near & ~self.identical & (self.crosses | (not across))
        return None if self.too_many else int(selected.sum())


@dataclass(frozen=True)
class Audit:
    """The results of an audit.

    Attributes:
        store: path of the store.
        image_ids, splits, labels: n texts each, empty if unknown.
        identical: sets of images with identical files.
        threshold: cosine similarity from which two images are near duplicates.
        near: near duplicates.
        n_equal: number of images whose vector equals that of an image with a different file.
        confounds: the tested variables, the best predicted from the vectors first.
        excluded: columns that were not tested, with the reason.
        label_from_variables: AUROC of the label predicted from all variables together.
        shortcuts: the strongest predictor of each class among the variables, the strongest first.
        label_from_vectors: AUROC of the label predicted from the vectors.
        distance, nearest: (n,) outlier score and nearest row, see `suspects.outliers`.
        classes: names of the classes.
        labelled_rows: (k,) rows with a label.
        label_issues: label issues of these rows; None if the label cannot be learned.
        notes: remarks on the data.
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
    excluded: Mapping[str, str]
    label_from_variables: Score | None
    shortcuts: Sequence[Shortcut]
    label_from_vectors: Score | None
    distance: Array
    nearest: Array
    classes: Sequence[str]
    labelled_rows: Array
    label_issues: LabelIssues | None
    notes: Sequence[str]

    @property
    def ranked_outliers(self) -> list[int]:
        """All rows, the strongest outliers first."""
        rows: list[int] = np.argsort(-self.distance, kind="stable").tolist()
        return rows

    @property
    def ranked_labels(self) -> list[int]:
        """Positions in `labelled_rows`: label issues first, each part by decreasing loss."""
        if self.label_issues is None:
            return []
        places: list[int] = np.lexsort((-self.label_issues.loss, ~self.label_issues.is_issue)).tolist()
        return places

    def top_across_splits(self) -> list[dict[str, Any]]:
        """The most similar pairs of different files across the split."""
        places = np.flatnonzero(self.near.crosses & ~self.near.identical)[:N_SHOWN]
        return [self._pair(place) for place in places.tolist()]

    def top_outliers(self) -> list[dict[str, Any]]:
        """The strongest outliers."""
        return [self._outlier(row) for row in self.ranked_outliers[:N_SHOWN]]

    def top_label_issues(self) -> list[dict[str, Any]]:
        """The labels that are most likely wrong."""
        return [self._label_row(place) for place in self.ranked_labels[:N_SHOWN]]

    def as_json(self) -> Json:
        """A summary as JSON values, as printed by `featcache audit --json`."""
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
                "nearest_across_splits": self.top_across_splits(),
            },
            "chance": confounds.CHANCE,
            "confounds": [asdict(confound) for confound in self.confounds],
            "excluded": dict(self.excluded),
            "label_from_variables": None if self.label_from_variables is None else asdict(self.label_from_variables),
            "shortcuts": as_json(self.shortcuts),
            "label_from_vectors": None if self.label_from_vectors is None else asdict(self.label_from_vectors),
            "outliers": self.top_outliers(),
            "label_issues": None if self.label_issues is None else int(self.label_issues.is_issue.sum()),
            "top_label_issues": self.top_label_issues(),
            "notes": list(self.notes),
        }

    def write(self, folder: Path) -> list[Path]:
        """Writes `audit.json` and CSV tables of duplicates, near duplicates, confounders, outliers and label issues.

        Raises:
            UsageError: as `check_free`.
            StoreLocked: another process is writing there.
            NoSpace, AccessDenied, InputOutputError: the folder cannot be written; an existing audit stays intact.
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
            "outliers.csv": [list(self._outlier(row).values()) for row in self.ranked_outliers],
            "labels.csv": [list(self._label_row(place).values()) for place in self.ranked_labels],
        }

    def _row(self, row: int) -> dict[str, str]:
        return {"image_id": self.image_ids[row], "split": self.splits[row], "label": self.labels[row]}

    def _outlier(self, row: int) -> dict[str, Any]:
        nearest = self.image_ids[int(self.nearest[row])]
        return {**self._row(row), "distance": round(float(self.distance[row]), 6), "nearest": nearest}

    def _label_row(self, place: int) -> dict[str, Any]:
        issues = self.label_issues
        assert issues is not None
        numbers = {"p_label": issues.p_given, "p_suggested": issues.p_suggested, "loss": issues.loss}
        return {
            **self._row(int(self.labelled_rows[place])),
            "suggested": self.classes[issues.suggested[place]],
            **{name: round(float(values[place]), 6) for name, values in numbers.items()},
            "is_issue": "yes" if issues.is_issue[place] else "no",
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
    """Checks that an audit can be written into a folder. An earlier audit is replaced, foreign files never are.

    Raises:
        UsageError: `folder` is a file, the folder of a Run, or holds a foreign file named like a table of an audit.
    """
    with in_our_words("reading", folder):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UsageError(f"{folder} is not a folder. Choose another folder.")
        # The names are listed once: an audit that another process puts here meanwhile is seen completely or not at all.
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        if _ANSWER in names and _is_answer(folder / _ANSWER):
            return
        if "run.json" in names:
            raise UsageError(f"{folder} is the folder of a Run. Choose another folder.")
        for name in (*_HEADERS, _ANSWER):
            if name in names and not _is_table(folder / name):
                raise UsageError(
                    f"{folder / name} is not part of an audit and would be overwritten. Choose another folder."
                )


def _is_answer(path: Path) -> bool:
    try:
        record = json.loads(durable.read_regular(path)) if path.is_file() else None
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.keys() >= _KEYS


def _is_table(path: Path) -> bool:
    """Whether a file has the header of the table of its name."""
    if path.name not in _HEADERS or not path.is_file():
        return False
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        return next(csv.reader([file.readline(1000)]), []) == list(_HEADERS[path.name])


def _confound_row(confound: Confound) -> list[object]:
    def numbers(score: Score | None) -> list[object]:
        return ["", "", ""] if score is None else [round(value, 4) for value in (score.auroc, score.low, score.high)]

    above = "" if confound.from_vectors is None else "yes" if confound.from_vectors.above_chance else "no"
    best = (
        [confound.label_score.best.name, round(confound.label_score.best.auroc, 4)]
        if confound.label_score
        else ["", ""]
    )
    cells = [*numbers(confound.from_vectors), above, *numbers(confound.label_score), *best]
    return [confound.name, "; ".join(confound.classes), *cells, confounds.CHANCE, confound.reason]
