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

from featcache import durable
from featcache.errors import UsageError
from featcache.specs import TargetSpec
from featcache.splits import class_names, coding, plan
from featcache.store import Store, matching
from featcache.tables import joining
from featcache.tables.missing import without_missing
from featcache.tables.table import lacking_column, read_table

Array = np.ndarray[Any, Any]

_MOST_IMAGES = 10**9
_MOST_COLUMNS = 10
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
        notes: what was chosen for the user, or read otherwise than it is written.
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
        texts, notes = label_texts(source, target)
        kept = matching(source, target.where) if target.where else np.ones(len(source), dtype=bool)
        texts = [[text if keep else "" for text, keep in zip(column, kept, strict=True)] for column in texts]
        coded = _coded(source, texts, target)
        n_other, others_text = int((~kept).sum()), f"values other than {' and '.join(map(str, target.where))}"
        n_unknown = int((~cls._labelled(coded.labels)).sum()) - sum(coded.left_out.values()) - n_other
        left_out = {
            reason: n for reason, n in {"no label": n_unknown, **coded.left_out, others_text: n_other}.items() if n
        }
        positive, about = _positive(target.positive, coded)
        notes = [*about, *notes, *coded.notes]
        return cls(
            source.image_ids,
            source.columns,
            source.content_sha256,
            coded.labels,
            coded.classes,
            positive,
            left_out,
            notes,
        )

    @property
    def has_findings(self) -> bool:
        return self.labels.ndim == 2

    @property
    def labelled(self) -> Array:
        """Rows with a label, or with one finding at least that is known."""
        return np.flatnonzero(self._labelled(self.labels))

    @staticmethod
    def _labelled(labels: Array) -> Array:
        return np.asarray(np.isfinite(labels).any(axis=1) if labels.ndim == 2 else labels >= 0)

    def strata(self, rows: Array, groups: Array, min_groups: int) -> Array:
        """What the rows are stratified by: their class, or the rarest of their findings."""
        if self.has_findings:
            return plan.stratum(self.labels[rows], groups[rows], min_groups, self.classes)
        return np.array(self.classes)[self.labels[rows]]

    def counts(self, rows: Array) -> Array:
        """(c,) rows of each class, or rows that have each finding."""
        if self.has_findings:
            return np.asarray(np.nansum(self.labels[rows], axis=0), dtype=np.int64)
        return np.bincount(self.labels[rows], minlength=len(self.classes))

    def check_learnable(self, rows: Array, subset: str) -> None:
        """A head learns no class, and no finding, of which the rows have no example, and none of whose absence they
        have no example.

        Raises:
            UsageError: with the counts.
        """
        counts = self.counts(rows)
        n_known = np.isfinite(self.labels[rows]).sum(axis=0) if self.has_findings else np.full(len(counts), len(rows))
        rows_of = list(zip(self.classes, counts.tolist(), n_known.tolist(), strict=True))
        counts_text = ", ".join(f"{n} {name}" for name, n, _ in rows_of)
        remedy = "Mend the split or the labels, or leave such classes out (min_images, drop_classes)"
        if absent := [repr(name) for name, n, _ in rows_of if n == 0]:
            raise UsageError(f"{subset} have no image of class {' or '.join(absent)} ({counts_text}). {remedy}.")
        if always := [repr(name) for name, n, of in rows_of if n == of and self.has_findings]:
            raise UsageError(f"{subset} have no image without {' or '.join(always)} ({counts_text}). {remedy}.")


def _coded(source: Rows, texts: Sequence[Sequence[str]], target: TargetSpec) -> coding.Coded:
    if len(target.columns) > 1:
        return coding.findings_of(texts, target.columns, source.image_ids, target.file or source.path, target)
    if target.separator is not None:
        return coding.findings_in(texts[0], target.separator, target)
    coded = coding.classes_of(texts[0], target)
    if len(coded.classes) < 2:
        raise UsageError(f"{source.path} has {_too_few(source, coded, target)}")
    return coded


def _too_few(source: Rows, coded: coding.Coded, target: TargetSpec) -> str:
    """What there is, where there are no two classes, and what to do."""
    n_labelled = int((coded.labels >= 0).sum())
    classes = f"only the class {coded.classes[0]!r}" if coded.classes else "no labels"
    left_out = ", ".join(f"{n:,} with {reason}" for reason, n in coded.left_out.items())
    if left_out:
        return f"{classes} left ({n_labelled:,} images; left out: {left_out}); a head needs two classes."
    other_columns = [name for name in source.columns if name not in ("group", "split", *target.columns)]
    columns = f" Its other columns are {', '.join(other_columns[:_MOST_COLUMNS])}: one may be named as label column."
    return (
        f"{classes}; a head needs two classes, and of {len(source):,} images {n_labelled:,} have a label. Put the "
        f"images into one folder per class, or give a CSV with a label column"
        f"{_AGAIN if isinstance(source, Store) else ''}, or join labels with --labels FILE.csv: they are not part of "
        f"what is computed.{columns if other_columns else ''}"
    )


def finding_values(source: Rows, texts: Sequence[Sequence[str]], target: TargetSpec) -> Array:
    """(n, c) of 1, 0 and NaN for unknown, from the texts of c columns.

    Raises:
        UsageError: a text that is none of these, with its image.
    """
    return coding.values_of(texts, target.columns, source.image_ids, target.file or source.path, target)


def _positive(requested: str | None, coded: coding.Coded) -> tuple[int, list[str]]:
    """The number of the positive class, and what is said of it where it was not asked for."""
    classes, several = coded.classes, coded.labels.ndim == 2
    if several and requested is not None:
        raise UsageError("positive is for classes; of several findings each is its own positive.")
    if several:
        return len(classes) - 1, []
    if requested is not None:
        return classes.index(coding.spelt(requested, classes, "positive")), []
    positive, why = class_names.positive_class(classes)
    return positive, [class_names.positive_note(classes, positive, why)] if len(classes) == 2 else []


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
    ours, theirs = joining.sides(target.on)
    if ours != "image_id" and ours not in columns:
        raise UsageError(f"{source.path}: {lacking_column(ours, list(columns))} It cannot be joined on.")
    keys = source.image_ids if ours == "image_id" else without_missing(columns[ours])
    table = read_table(target.file, target.columns, (theirs,), header=(theirs, *target.columns))
    if theirs not in table.columns:
        like = joining.column_like(keys, table.columns)
        hint = f" Its column {like!r} has such keys: join on {f'{ours}={like}'!r}." if like else ""
        raise UsageError(f"{target.file}, line 1: {lacking_column(theirs, list(table.columns))}{hint}")
    notes += table.notes_on(target.columns)
    cells = {name: table.values(name) for name in target.columns}
    row_of = table.first_rows(theirs, list(map(durable.text_of, table.values(theirs))), cells)
    if not any(key in row_of for key in keys if key):
        difference = joining.difference(set(keys) - {""}, row_of)
        raise UsageError(
            f"no {theirs} of {target.file} is in {source.path}: the file has {next(iter(row_of), '')!r}, the images "
            f"{next(iter(keys), '')!r}{f'; {difference}' if difference else ''}. Join on another column."
        )
    notes += joining.notes(target.file, keys, row_of)
    rows = [row_of.get(key) if key else None for key in keys]
    return [["" if row is None else cells[name][row] for row in rows] for name in target.columns]
