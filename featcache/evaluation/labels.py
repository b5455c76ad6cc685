"""The labels of a set from elsewhere, as the classes of a Run: from its own columns, or joined from a CSV.

Classes stand in one column; findings in a column each, or in one of lists where the Run's own were lists. What stands
for no class takes no part, and is counted.
Letters: n images, c classes or findings.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from featcache.errors import UsageError
from featcache.evaluation.vocabulary import Matching, Vocabulary
from featcache.specs import TargetSpec
from featcache.splits.class_names import means_no_finding, parts_of
from featcache.splits.task import Rows, finding_values, label_texts
from featcache.tables import joining
from featcache.tables.table import read_table

Array = np.ndarray[Any, Any]

NO_LABEL, UNKNOWN_LABEL, UNCERTAIN_LABEL = "no label", "a label that the Run does not know", "an uncertain label"
_MOST_NAMES, _MOST_UNKNOWN = 20, 200  # named in a message, and in a note; the record has all


@dataclass(frozen=True)
class SetLabels:
    """The labels of n images of a set.

    Attributes:
        values: (n,) class numbers, -1 where there is none; or (n, c) with 1, 0, NaN for findings.
        reasons: n texts, why an image has no label; empty where it has one.
        matching: how texts (or, of findings, columns) became classes.
        unknown: how many images have each label that stands for no class; of findings how many values such a column
            has.
        notes: what was decided, in full sentences.
    """

    values: Array
    reasons: list[str]
    matching: Matching
    unknown: Mapping[str, int]
    notes: list[str] = field(default_factory=list)

    def restricted(self, kept: Array, where: str) -> Self:
        """Without the labels of images for which conditions do not hold.

        Args:
            kept: whether they hold, for each image of the set before any was taken away.
            where: the conditions.
        """
        note = f"Only images with {where} are looked at: {int(kept.sum()):,} of {len(kept):,}."
        if kept.all() or len(kept) != len(self.reasons):  # the others are not there any more
            return replace(self, notes=[note, *self.notes])
        reasons = [
            reason if keep else f"values other than {where}" for reason, keep in zip(self.reasons, kept, strict=True)
        ]
        return replace(self, reasons=reasons, notes=[note, *self.notes])


@dataclass(frozen=True)
class Source:
    """Where the labels of a set are.

    Attributes:
        columns: label columns; empty for `label`, or for the columns named as the Run's findings.
        file: a CSV that has them; None for the set's own columns.
        on: the column by which the CSV is joined.
        class_map: label (or column of findings) of the set -> class of the Run, where they are called otherwise.
    """

    columns: Sequence[str] = ()
    file: Path | None = None
    on: str = "image_id"
    class_map: Mapping[str, str] = field(default_factory=dict)

    def target(self, columns: Sequence[str], uncertain: str | None = None) -> TargetSpec:
        """What is read."""
        return TargetSpec(tuple(columns), self.file, self.on, uncertain=uncertain)


def labels_of(rows: Rows, source: Source, vocabulary: Vocabulary) -> SetLabels:
    """The labels of images by the classes of a Run.

    Args:
        rows: the images, with their columns.
        source: where their labels are.
        vocabulary: the classes.

    Raises:
        UsageError: no labels, none that the Run knows, or a column that is not there; `class_map` names what is not
            there.
    """
    for label, name in source.class_map.items():
        if name not in vocabulary.classes:
            raise UsageError(
                f"class_map: {label!r} cannot stand for {name!r}, which is none of the Run's classes: "
                f"{', '.join(vocabulary.classes)}."
            )
    there = _columns(rows, source)
    if not vocabulary.is_multi_label:
        return _classes(rows, source, vocabulary, there)
    if vocabulary.separator is not None and len(source.columns) < 2:
        (column,) = source.columns or (_own_column(vocabulary, there),)
        if column in there:
            return _lists(rows, source, vocabulary, column)
    return _findings(rows, source, vocabulary, there)


def pairs_of(texts: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """A `class_map` of texts such as `Pneumonie=pneumonia`. Where a name has a `=` itself, the part behind is the
    longest that is a class.

    Raises:
        UsageError: a text without `=`, or one label twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        cuts = [i for i, character in enumerate(text) if character == "=" and i > 0]
        if not cuts:
            raise UsageError(f"{text!r} is no pair: write LABEL=CLASS, the label of the set and the class of the Run.")
        cut = next((i for i in cuts if text[i + 1 :] in classes), cuts[0])
        label, name = text[:cut], text[cut + 1 :]
        if pairs.get(label, name) != name:
            raise UsageError(f"{label!r} cannot stand for {pairs[label]!r} and for {name!r}.")
        pairs[label] = name
    return pairs


# --- classes ----------------------------------------------------------------------------------------------------------


def _own_column(vocabulary: Vocabulary, there: Sequence[str]) -> str:
    """The column that the Run's own labels were in, where the set has one of that name."""
    own = vocabulary.columns[0]
    return own if len(vocabulary.columns) == 1 and own in there else "label"


def _classes(rows: Rows, source: Source, vocabulary: Vocabulary, there: Sequence[str]) -> SetLabels:
    if len(source.columns) > 1:
        raise UsageError(
            f"the Run was trained on classes, in one column of labels; {', '.join(source.columns)} are several."
        )
    (name,) = source.columns or (_own_column(vocabulary, there),)
    (column,), notes = label_texts(rows, source.target([name]))
    if not any(column):
        raise UsageError(
            f"{source.file or rows.path} has no labels in column {name!r}. Name the column that has them, or a CSV "
            f"that is joined to the images (parameters label_columns and labels). There are the columns "
            f"{', '.join(there) or 'none'}."
        )
    counts = Counter(text for text in column if text)
    _check_map(source.class_map, counts, "label")
    matching = vocabulary.match(counts, source.class_map)
    if not matching.number_of:
        raise UsageError(
            f"{rows.path}: no label is a class of the Run. The labels are {quoted(counts)}; the Run's classes are "
            f"{quoted(vocabulary.classes)}. Say which stands for which (parameter class_map)."
        )
    values = np.array([matching.number_of.get(text, -1) for text in column], dtype=np.int64)
    reasons = [_why_not(text, matching) for text in column]
    notes += (
        [f"The labels are those of column {name!r}, as the Run's own were."]
        if name != "label" and not source.columns
        else []
    )
    unknown = {text: counts[text] for text in matching.unknown}
    return SetLabels(values, reasons, matching, unknown, [*notes, *_about_matching(matching, "label", counts)])


def _why_not(text: str, matching: Matching) -> str:
    """Why an image with such a label has no class; empty where it has one."""
    if text in matching.number_of:
        return ""
    return NO_LABEL if not text else UNCERTAIN_LABEL if text in matching.uncertain else UNKNOWN_LABEL


# --- findings ---------------------------------------------------------------------------------------------------------


def _lists(rows: Rows, source: Source, vocabulary: Vocabulary, name: str) -> SetLabels:
    """One column of lists, as the Run's own labels were. An empty text is unknown, `No Finding` none of them."""
    (column,), notes = label_texts(rows, source.target([name]))
    parts = [parts_of(text, vocabulary.separator or "") for text in column]
    counts = Counter(part for listed in parts for part in listed)
    _check_map(source.class_map, counts, "finding")
    matching = vocabulary.match(counts, source.class_map)
    nothing = [part for part in matching.unknown if means_no_finding(part)]
    if not matching.number_of and not nothing:
        raise UsageError(
            f"{rows.path}: no label is a finding of the Run. The labels are {quoted(counts) or 'all empty'}; the Run's "
            f"findings are {quoted(vocabulary.classes)}. Say which stands for which (parameter class_map)."
        )
    values = np.zeros((len(column), len(vocabulary.classes)))
    for row, listed in enumerate(parts):
        values[row, [matching.number_of[part] for part in listed if part in matching.number_of]] = 1
        values[row] = values[row] if listed else np.nan
    unknown = {part: counts[part] for part in matching.unknown if part not in nothing}
    notes.append(
        f"Column {name!r} is read as lists separated by {vocabulary.separator!r}, as the Run's own labels were."
    )
    notes += _about_matching(matching, "label", counts, list(unknown), are_left_out=False)
    reasons = ["" if listed else NO_LABEL for listed in parts]
    return SetLabels(values, reasons, matching, unknown, notes)


def _findings(rows: Rows, source: Source, vocabulary: Vocabulary, there: Sequence[str]) -> SetLabels:
    """A column for each finding."""
    requested = list(source.columns) or list(there)
    _check_map(source.class_map, requested, "column")
    matching = vocabulary.match(requested, source.class_map)
    used = [name for name in requested if name in matching.number_of]
    if not used:
        raise UsageError(
            f"{source.file or rows.path}: no column is a finding of the Run. The columns are {quoted(there)}; the "
            f"Run's findings are {quoted(vocabulary.classes)}. Say which stands for which (parameter class_map)."
        )
    _check_one_each(used, matching, vocabulary)
    target = source.target(used, vocabulary.uncertain)
    texts, notes = label_texts(rows, target)
    values = np.full((len(rows.image_ids), len(vocabulary.classes)), np.nan)
    values[:, [matching.number_of[name] for name in used]] = finding_values(rows, texts, target)
    reasons = ["" if is_known else NO_LABEL for is_known in np.isfinite(values).any(axis=1)]
    if all(reasons):
        raise UsageError(f"{source.file or rows.path}: no image has a value in {quoted(used)}.")
    unknown = matching.unknown if source.columns else []  # other columns were not asked for
    notes += _about_matching(matching, "column", None, unknown)
    if absent := [name for i, name in enumerate(vocabulary.classes) if i not in matching.number_of.values()]:
        notes.append(
            f"The set has no column for {quoted(absent)}: means are over the other findings. If another column stands "
            f"for one of them, map it (class_map); the columns are {quoted(there)}."
        )
    return SetLabels(values, reasons, matching, dict.fromkeys(unknown, len(rows.image_ids)), notes)


def _columns(rows: Rows, source: Source) -> list[str]:
    if source.file is None:
        return list(rows.columns)
    key = joining.sides(source.on)[1]
    return [name for name in read_table(source.file).columns if name not in ("", key)]


def _check_one_each(used: Sequence[str], matching: Matching, vocabulary: Vocabulary) -> None:
    of: dict[int, str] = {}
    for name in used:
        c = matching.number_of[name]
        if c in of:
            raise UsageError(
                f"the columns {of[c]!r} and {name!r} both stand for {vocabulary.classes[c]!r}. Name one of them."
            )
        of[c] = name


# --- what is said -----------------------------------------------------------------------------------------------------


def _check_map(class_map: Mapping[str, str], there: Iterable[str], noun: str) -> None:
    if absent := [text for text in class_map if text not in set(there)]:
        raise UsageError(f"class_map: the set has no {noun} {quoted(absent)}; it has {quoted(there)}.")


def _about_matching(
    matching: Matching,
    noun: str,
    counts: Mapping[str, int] | None,
    unknown: Sequence[str] | None = None,
    are_left_out: bool = True,
) -> list[str]:
    """Which texts were read as which classes, and which as none.

    Args:
        matching: how the texts match the Run's classes.
        noun: they are, "label" or "column".
        counts: images of each; None of columns.
        unknown: texts that are told to stand for no class; None for all such.
        are_left_out: whether the images that have them are.
    """

    def counted(text: str) -> str:
        return f"{text!r}" + (f" ({counts[text]:,})" if counts else "")

    notes = []
    for kinds, why in (
        (matching.respelled, "by its spelling, or as the Run's own labels were"),
        (matching.mapped, "as asked"),
    ):
        if kinds:
            pairs = ", ".join(f"{counted(text)} as {name!r}" for text, name in kinds.items())
            notes.append(f"Read {why}: {noun} {pairs}.")
    if unknown := matching.unknown if unknown is None else unknown:
        of = f"{sum(counts[text] for text in unknown):,} images have" if counts else f"{len(unknown):,} columns are"
        more = f" and {len(unknown) - _MOST_UNKNOWN:,} more" if len(unknown) > _MOST_UNKNOWN else ""
        became = ", and are left out" if are_left_out else ", which counts for nothing"
        named = ", ".join(map(counted, unknown[:_MOST_UNKNOWN])) + more
        notes.append(
            f"{of} {'a label that is no class' if counts else 'no finding'} of the Run{became}: {named}. If one of "
            f"them is a class of the Run under another name, map it (class_map)."
        )
    return notes


def quoted(texts: Iterable[str]) -> str:
    """`'a', 'b'`, each once, in sorted order; of very many the first."""
    names = sorted(set(texts))
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(map(repr, names[:_MOST_NAMES])) + more
