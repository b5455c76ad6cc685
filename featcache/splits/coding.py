"""Texts of label columns as numbers: classes, or findings that an image has or has not.

How texts are read is asked for by parameters of a target: which codes mean uncertain, what separates the parts of a
list, which classes are joined or left out. What is read otherwise than it is written is said in a note. Knows neither
stores nor files.
Letters: n rows, c classes or findings.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from featcache.errors import UsageError
from featcache.splits import class_names

Array = np.ndarray[Any, Any]
Texts = Sequence[str]


_YES_NO = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "": np.nan, "nan": np.nan}
_VALUES = {"ignore": np.nan, "positive": 1.0, "negative": 0.0}
_MOST_NAMES = 20


class Reading(Protocol):
    """How label texts are read; see `TargetSpec`."""

    @property
    def uncertain(self) -> str | None: ...

    @property
    def separator(self) -> str | None: ...

    @property
    def merge_classes(self) -> Mapping[str, str]: ...

    @property
    def drop_classes(self) -> tuple[str, ...]: ...

    @property
    def min_images(self) -> int: ...


@dataclass(frozen=True)
class Coded:
    """Labels as numbers.

    Attributes:
        labels: (n,) class numbers, -1 where unknown; or (n, c) with 1, 0, NaN for findings.
        classes: c names.
        left_out: rows whose label is known and not learnt, by reason.
        notes: what was read otherwise than it is written, or may not be meant.
    """

    labels: Array
    classes: list[str]
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


# --- classes ----------------------------------------------------------------------------------------------------------


def classes_of(texts: Texts, reading: Reading) -> Coded:
    """One column of class names, in sorted order; fewer than two classes are no error here.

    Raises:
        UsageError: a class to be joined or left out that is not there.
    """
    counts = Counter(text for text in texts if text)
    spelling = class_names.one_spelling(counts)
    named = _Named([spelling.get(text, "") for text in texts], Counter(), [class_names.spellings_note(counts)])
    if reading.uncertain is not None:
        named.code_uncertain(reading.uncertain)
    named.merge(reading.merge_classes)
    named.drop(reading.drop_classes)
    named.drop_rare(reading.min_images)
    notes = [*(note for note in named.notes if note), *class_names.notes(named.counts)]
    classes = sorted(named.counts)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number.get(name, -1) for name in named.names], dtype=np.int64)
    return Coded(labels, classes, dict(named.left_out), notes)


@dataclass
class _Named:
    """The class of each row while classes are joined and left out; empty where there is none."""

    names: list[str]
    left_out: Counter[str]
    notes: list[str]

    @property
    def counts(self) -> Counter[str]:
        return Counter(name for name in self.names if name)

    def code_uncertain(self, policy: str) -> None:
        value_of = {name: class_names.number(name) for name in self.counts}
        codes = [name for name, value in value_of.items() if value == class_names.UNCERTAIN]
        if not codes:
            self.notes.append(f"uncertain is {policy!r}, and no label is -1: it changes nothing.")
        elif policy == "ignore":
            self._leave_out(codes, "an uncertain label")
        else:
            affected = [name for name, value in value_of.items() if value == _VALUES[policy]]
            if not affected:
                raise UsageError(f"uncertain is {policy!r}, and no label is {_VALUES[policy]:g} to count -1 as.")
            n = self.counts[codes[0]]
            self.notes.append(f"{n:,} labels of -1 are counted as {affected[0]!r} (uncertain is {policy!r}).")
            self._rename({codes[0]: affected[0]})

    def merge(self, merged: Mapping[str, str]) -> None:
        here = list(self.counts)
        names = {spelt(name, here, "merge_classes"): class_names.find(to, here) or to for name, to in merged.items()}
        self._rename(names)

    def drop(self, names: Sequence[str]) -> None:
        here = list(self.counts)
        self._leave_out([spelt(name, here, "drop_classes") for name in names], "a class that was dropped")

    def drop_rare(self, least: int) -> None:
        rare = {name: n for name, n in sorted(self.counts.items()) if n < least}
        if rare:
            self.notes.append(f"classes with fewer than {least} images are left out: {counted(rare)}.")
        self._leave_out(list(rare), f"a class of fewer than {least} images")

    def _rename(self, names: Mapping[str, str]) -> None:
        self.names = [names.get(name, name) for name in self.names]

    def _leave_out(self, names: Sequence[str], reason: str) -> None:
        if n := sum(self.counts[name] for name in names):
            self.left_out[reason] += n
            self._rename(dict.fromkeys(names, ""))


def counted(counts: Mapping[str, int]) -> str:
    """`a (2), b (1)`, of many the first."""
    counts_text = [f"{name} ({n:,})" for name, n in counts.items()]
    more = [f"and {len(counts_text) - _MOST_NAMES:,} more"] if len(counts_text) > _MOST_NAMES else []
    return ", ".join([*counts_text[:_MOST_NAMES], *more])


def spelt(name: str, names: Sequence[str], parameter: str) -> str:
    """The name of a class as it is spelt among these.

    Raises:
        UsageError: it is none of them, with the parameter that asked for it.
    """
    if (class_name := class_names.find(name, names)) is not None:
        return class_name
    ordered = sorted(names)
    more = f" and {len(ordered) - _MOST_NAMES:,} more" if len(ordered) > _MOST_NAMES else ""
    names_text = ", ".join(ordered[:_MOST_NAMES])
    raise UsageError(f"{parameter}: {name!r} is not one of the classes: {names_text or 'there are none'}{more}.")


# --- findings ---------------------------------------------------------------------------------------------------------


def findings_of(columns: Sequence[Texts], names: Sequence[str], rows: Texts, path: object, reading: Reading) -> Coded:
    """Several columns of findings, each 1, 0 or empty.

    Args:
        columns: c columns of n texts.
        names: c names of the findings.
        rows: n names of the rows, for messages.
        path: path of the labels, for messages.
        reading: a finding is joined with another where one of both is there.

    Raises:
        UsageError: another value, with its row; a finding that all or none of the images have.
    """
    return _chosen_findings(Coded(values_of(columns, names, rows, path, reading), list(names)), reading)


def values_of(columns: Sequence[Texts], names: Sequence[str], rows: Texts, path: object, reading: Reading) -> Array:
    """(n, c) of 1, 0 and NaN for unknown; arguments and errors as in `findings_of`, whatever the values are."""
    labels = np.empty((len(rows), len(columns)))
    for c, (name, texts) in enumerate(zip(names, columns, strict=True)):
        for row, text in enumerate(texts):
            labels[row, c] = _finding(text, reading.uncertain, lambda i=row, n=name: f"{path}: {n} of {rows[i]}")
    return labels


def findings_in(texts: Texts, separator: str, reading: Reading) -> Coded:
    """One column of lists of findings. An empty text is unknown; `No Finding` and its like are none of the others."""
    parts = [class_names.parts_of(text, separator) for text in texts]
    counts = Counter(part for findings in parts for part in findings)
    spelling = class_names.one_spelling(counts)
    nothing = {name for name in set(spelling.values()) if class_names.means_no_finding(name)}
    names = sorted(set(spelling.values()) - nothing)
    number = {name: c for c, name in enumerate(names)}
    labels = np.zeros((len(texts), len(names)))
    for row, (text, findings) in enumerate(zip(texts, parts, strict=True)):
        labels[row, [number[name] for part in findings if (name := spelling[part]) in number]] = 1
        labels[row] = labels[row] if text else np.nan
    notes = [class_names.spellings_note(counts)]
    if nothing:
        names_text = ", ".join(map(repr, sorted(nothing)))
        notes.append(f"the label {names_text} is read as an image that has none of the findings.")
    return _chosen_findings(Coded(labels, names, notes=[note for note in notes if note]), reading)


def _finding(text: str, uncertain: str | None, where: Any) -> float:
    value = _YES_NO.get(text.strip().lower())
    if value is not None:
        return value
    is_uncertain = class_names.number(text) == class_names.UNCERTAIN
    if is_uncertain and uncertain is not None:
        return _VALUES[uncertain]
    if is_uncertain:
        raise UsageError(
            f"{where()} is {text!r}, which means uncertain in CheXpert and MIMIC-CXR. Set uncertain to 'ignore', "
            f"'positive' or 'negative'."
        )
    raise UsageError(
        f"{where()} is {text!r}; several label columns are findings, each 1, 0 or empty. Give one label column to "
        f"learn classes."
    )


def _chosen_findings(coded: Coded, reading: Reading) -> Coded:
    """Findings that are joined, and those that are left out.

    Raises:
        UsageError: one that is not there, none left, one that all or none of the images have.
    """
    column_of = dict(zip(coded.classes, coded.labels.T, strict=True))
    for name, to in reading.merge_classes.items():
        column = column_of.pop(spelt(name, list(column_of), "merge_classes"))
        other = class_names.find(to, list(column_of))
        column_of[other or to] = column if other is None else np.fmax(column, column_of[other])
    for name in reading.drop_classes:
        del column_of[spelt(name, list(column_of), "drop_classes")]
    n_images = {name: int(np.nansum(column)) for name, column in column_of.items()}
    rare = {name: n for name, n in n_images.items() if n < reading.min_images}
    column_of = {name: column for name, column in column_of.items() if name not in rare}
    about_rare = [f"findings of fewer than {reading.min_images} images are left out: {counted(rare)}."] if rare else []
    if not column_of:
        raise UsageError(f"no finding is left to learn; there were {counted(n_images) or 'none'}.")
    for name, column in column_of.items():
        values = set(column[np.isfinite(column)].tolist())
        if len(values) < 2:
            values_text = f"only {values.pop():g}" if values else "no value"
            raise UsageError(
                f"the finding {name!r} has {values_text}; it needs images with it and images without it. Leave it out "
                f"with drop_classes."
            )
    labels = np.stack(list(column_of.values()), axis=1)
    return Coded(labels, list(column_of), coded.left_out, [*coded.notes, *about_rare])
