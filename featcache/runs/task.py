"""What is to be learnt from a store, or from the images of a folder: labels of rows, from their own columns or from a
CSV, as numbers.

One store serves many tasks: labels are joined by name and are no part of what was computed. Knows nothing of vectors.
Letters: n rows, c classes or findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from featcache import durable, splits
from featcache.errors import UsageError
from featcache.manifest import tables
from featcache.missing import doubtful, without_missing
from featcache.store import Store

Array = np.ndarray[Any, Any]

_YES_NO = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "": np.nan}
_AGAIN = ", and embed again"  # a folder is read anew in any case, a store is not


class Rows(Protocol):
    """What labels are given to: a `Store`, or anything else that has names, columns and contents.

    Attributes:
        path: what messages call it.
        image_ids: n names, all different.
        columns: n texts by name, empty where unknown.
        content_sha256: n digests of the image files.
    """

    @property
    def path(self) -> Path: ...

    @property
    def image_ids(self) -> list[str]: ...

    @property
    def columns(self) -> dict[str, list[str]]: ...

    @property
    def content_sha256(self) -> list[str]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class TargetSpec:
    """Which labels to learn.

    Attributes:
        columns: one column of class names, or several of findings, each 1, 0 or empty.
        file: a CSV that has them; None for the rows' own columns.
        on: the column by which the CSV is joined: `image_id`, or one that the rows have too.
        positive: the class that precision, recall and the like are about; None for the last in sorted order.
    """

    columns: tuple[str, ...] = ("label",)
    file: Path | None = None
    on: str = "image_id"
    positive: str | None = None

    def __post_init__(self) -> None:
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"label columns must be named once each, got {', '.join(self.columns) or 'none'}")


@dataclass(frozen=True)
class Task:
    """Labels as numbers, and everything a split needs.

    Attributes:
        image_ids: the n names.
        columns: those of the rows.
        content: digests of the image files.
        labels: (n,) class numbers, -1 where unknown; or (n, c) with 1, 0, NaN for findings.
        classes: names of the c classes in sorted order, or of the findings as they were asked for.
        positive: number of the positive class.
        left_out: rows that take no part, by reason.
        notes: what was decided about the texts of the labels, in full sentences.
    """

    image_ids: list[str]
    columns: dict[str, list[str]]
    content: list[str]
    labels: Array
    classes: list[str]
    positive: int
    left_out: dict[str, int]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, source: Rows, target: TargetSpec = TargetSpec()) -> Self:
        """The task of a store, or of what is like one.

        Raises:
            UsageError: no labels, one class only, a column or a key that is not there, a finding that is neither 1 nor
                0, `positive` none of the classes.
        """
        columns = source.columns
        texts, notes = label_texts(source, target)
        several = len(target.columns) > 1
        labels, classes = _findings(source, texts, target) if several else _classes(source, texts[0])
        unknown = int((~cls._known(labels)).sum())
        left_out = {"no label": unknown} if unknown else {}
        positive = _positive(target.positive, classes, several)
        notes += [] if several else _about_doubtful(target.columns[0], texts[0])
        return cls(source.image_ids, columns, source.content_sha256, labels, classes, positive, left_out, notes)

    @property
    def has_findings(self) -> bool:
        return self.labels.ndim == 2

    @property
    def known(self) -> Array:
        """Rows with a label, or with one finding at least that is known."""
        return np.flatnonzero(self._known(self.labels))

    @staticmethod
    def _known(labels: Array) -> Array:
        return np.asarray(np.isfinite(labels).any(axis=1) if labels.ndim == 2 else labels >= 0)

    def strata(self, rows: Array, groups: Array, min_groups: int) -> Array:
        """What the rows are stratified by: their class, or the rarest of their findings."""
        if self.has_findings:
            return splits.stratum(self.labels[rows], groups[rows], min_groups, self.classes)
        return np.array(self.classes)[self.labels[rows]]

    def counts(self, rows: Array) -> Array:
        """(c,) rows of each class, or rows that have each finding."""
        if self.has_findings:
            return np.asarray(np.nansum(self.labels[rows], axis=0), dtype=np.int64)
        return np.bincount(self.labels[rows], minlength=len(self.classes))

    def check_learnable(self, rows: Array, which: str) -> None:
        """A head learns no class, and no finding, of which the rows have no example, and none of whose absence they
        have no example.

        Raises:
            UsageError: with the counts.
        """
        counts = self.counts(rows)
        known = np.isfinite(self.labels[rows]).sum(axis=0) if self.has_findings else np.full(len(counts), len(rows))
        for name, n, of in zip(self.classes, counts, known, strict=True):
            held = ", ".join(f"{m} {c}" for c, m in zip(self.classes, counts, strict=True))
            if n == 0:
                raise UsageError(f"{which} have no image of class {name!r} ({held}). Mend the split or the labels.")
            if n == of and self.has_findings:
                raise UsageError(f"{which} have no image without {name!r} ({held}). Mend the split or the labels.")


def _classes(source: Rows, texts: Sequence[str]) -> tuple[Array, list[str]]:
    classes = sorted({text for text in texts if text})
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no labels"
        raise UsageError(
            f"{source.path} has {found}; a head needs two classes. Put the images into one folder per class, or give a "
            f"CSV with a label column{_AGAIN if isinstance(source, Store) else ''}, or join labels with --labels "
            f"FILE.csv: they are not part of what is computed."
        )
    number = {text: i for i, text in enumerate(classes)}
    return np.array([number.get(text, -1) for text in texts], dtype=np.int64), classes


def _findings(source: Rows, texts: Sequence[Sequence[str]], target: TargetSpec) -> tuple[Array, list[str]]:
    labels = finding_values(source, texts, target)
    for c, name in enumerate(target.columns):
        values = {value for value in labels[:, c].tolist() if value == value}
        if len(values) < 2:
            found = f"only {values.pop():g}" if values else "no value"
            raise UsageError(f"the finding {name!r} has {found}; it needs images with it and images without it.")
    return labels, list(target.columns)


def finding_values(source: Rows, texts: Sequence[Sequence[str]], target: TargetSpec) -> Array:
    """(n, c) of 1, 0 and NaN for unknown, from the texts of c columns.

    Raises:
        UsageError: a text that is none of these, with its image.
    """
    labels = np.empty((len(source.image_ids), len(texts)))
    for c, (name, column) in enumerate(zip(target.columns, texts, strict=True)):
        for row, text in enumerate(column):
            value = _YES_NO.get(text.strip().lower())
            if value is None:
                raise UsageError(
                    f"{target.file or source.path}: {name} of {source.image_ids[row]} is {text!r}; several label "
                    f"columns are findings, each 1, 0 or empty. Give one --label-column to learn classes."
                )
            labels[row, c] = value
    return labels


def _about_doubtful(name: str, texts: Sequence[str]) -> list[str]:
    """A note on each class that may be a word for a missing value."""
    return [
        f"{text!r}, the label of {n:,} images in column {name}, is kept as a class. Empty these cells if it means that "
        f"the label is unknown."
        for text, n in sorted(doubtful(texts).items())
    ]


def _positive(asked: str | None, classes: list[str], several: bool) -> int:
    if asked is None:
        return len(classes) - 1
    if several:
        raise UsageError("--positive is for classes; of several findings each is its own positive.")
    if asked not in classes:
        raise UsageError(f"--positive {asked!r} is not one of the classes: {', '.join(classes)}.")
    return classes.index(asked)


# --- where the texts come from ----------------------------------------------------------------------------------------


def label_texts(source: Rows, target: TargetSpec) -> tuple[list[list[str]], list[str]]:
    """The texts of each label column in the order of the rows, empty where there is none; and notes on how they were
    read, in full sentences.

    Raises:
        UsageError: a column or a key that is not there, one key with two labels.
    """
    columns, notes = source.columns, list[str]()
    texts = _joined(source, columns, target, notes) if target.file else _own(source, columns, target)
    return [without_missing(column) for column in texts], notes


def _own(source: Rows, columns: dict[str, list[str]], target: TargetSpec) -> list[list[str]]:
    if target.columns == ("label",):
        return [columns.get("label", [""] * len(source))]
    for name in target.columns:
        if name not in columns:
            raise UsageError(f"{source.path} has no column {name!r}; it has {', '.join(columns) or 'none'}.")
    return [columns[name] for name in target.columns]


def _joined(source: Rows, columns: dict[str, list[str]], target: TargetSpec, notes: list[str]) -> list[list[str]]:
    """The columns of the CSV in the order of the rows; empty where the CSV has none."""
    assert target.file is not None
    if target.on != "image_id" and target.on not in columns:
        raise UsageError(
            f"{source.path} has no column {target.on!r} to join on; it has {', '.join(columns) or 'none'}."
        )
    read = tables.read(target.file, (target.on, *target.columns))
    table = {name: read.values(name) for name in target.columns}
    notes += read.missing_notes(target.columns)
    keys = source.image_ids if target.on == "image_id" else without_missing(columns[target.on])
    row_of: dict[str, int] = {}
    for i, key in enumerate(map(durable.text_of, read.values(target.on))):
        if key and key in row_of and any(table[name][i] != table[name][row_of[key]] for name in target.columns):
            raise UsageError(
                f"{target.file}, line {read.lines[i]}: {target.on} {key!r} stands there with other labels than in line "
                f"{read.lines[row_of[key]]}."
            )
        row_of.setdefault(key, i)
    if not any(key in row_of for key in keys if key):
        example = next(iter(row_of), "")
        raise UsageError(
            f"no {target.on} of {target.file} is in {source.path}: the file has {example!r}, the images "
            f"{next(iter(keys), '')!r}. Choose the column to join by with --on."
        )
    rows = [row_of.get(key) if key else None for key in keys]
    return [["" if row is None else table[name][row] for row in rows] for name in target.columns]
