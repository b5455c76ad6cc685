"""The labels of a set from elsewhere, as the classes of a Run.

Another hospital writes `Normal` where the Run learnt `normal`. A label is the class that has its name; failing that,
the one class that differs from it in case, blanks, `-`, `_` or the format of a number alone; whatever else it may stand
for has to be said. What stands for no class takes no part, and is counted.
Letters: n images, c classes or findings.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.manifest import tables
from featcache.predict.predictions import Model
from featcache.runs.task import Rows, TargetSpec, finding_values, label_texts

Array = np.ndarray[Any, Any]

NO_LABEL, UNKNOWN_LABEL = "no label", "a label that the Run does not know"
_GAPS = re.compile(r"[\s_\-‐-―]+")  # what stands between words


@dataclass(frozen=True)
class Matching:
    """Which class of a Run each text of a set stands for.

    Attributes:
        number_of: text -> number of a class; texts that stand for none are not in it.
        respelled: texts that are the name of a class in another spelling -> that name.
        mapped: texts that were said to stand for a class -> its name.
        unknown: texts that stand for no class, in sorted order.
    """

    number_of: Mapping[str, int]
    respelled: Mapping[str, str]
    mapped: Mapping[str, str]
    unknown: Sequence[str]


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


@dataclass(frozen=True)
class Source:
    """Where the labels of a set are.

    Attributes:
        columns: of labels; none for `label`, or for findings the columns that are called as they are.
        file: a CSV that has them; None for the set's own columns.
        on: the column by which the CSV is joined.
        class_map: label (or column of findings) of the set -> class of the Run, where they are called otherwise.
    """

    columns: Sequence[str] = ()
    file: Path | None = None
    on: str = "image_id"
    class_map: Mapping[str, str] = field(default_factory=dict)

    def target(self, columns: Sequence[str]) -> TargetSpec:
        """What is read."""
        return TargetSpec(tuple(columns), self.file, self.on)


def labels_of(rows: Rows, source: Source, model: Model) -> SetLabels:
    """The labels of images by the classes of a head.

    Args:
        rows: the images, with their columns.
        source: where their labels are.
        model: whose classes count.

    Raises:
        UsageError: no labels, none that the Run knows, or a column that is not there; `class_map` names what is not
            there.
    """
    for label, name in source.class_map.items():
        if name not in model.classes:
            raise UsageError(
                f"class_map: {label!r} cannot stand for {name!r}, which is none of the Run's classes: "
                f"{', '.join(model.classes)}."
            )
    return (_findings if model.has_findings else _classes)(rows, source, model)


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


# --- names ------------------------------------------------------------------------------------------------------------


def match(texts: Iterable[str], classes: Sequence[str], class_map: Mapping[str, str]) -> Matching:
    """What the texts of a set stand for: what was said, the class of that name, or the only one that is spelled alike.

    Args:
        texts: of the set, also repeated; none empty.
        classes: c names.
        class_map: text -> class.
    """
    number = {name: i for i, name in enumerate(classes)}
    spelled = Counter(map(spelling, classes))
    alike = {spelling(name): name for name in classes if spelled[spelling(name)] == 1}
    number_of, respelled, mapped, unknown = dict[str, int](), dict[str, str](), dict[str, str](), list[str]()
    for text in sorted(set(texts)):
        name = class_map.get(text, text if text in number else None)
        if name is None and (name := alike.get(spelling(text))) is not None:
            respelled[text] = name
        if text in class_map:
            mapped[text] = class_map[text]
        if name is None:
            unknown.append(text)
        else:
            number_of[text] = number[name]
    return Matching(number_of, respelled, mapped, unknown)


def spelling(text: str) -> tuple[str, str]:
    """What two spellings of one name have in common: `COVID-19` and `covid 19`, `1` and `1.0`."""
    plain = unicodedata.normalize("NFKC", text).strip().casefold()
    try:
        return "number", f"{float(plain):g}"
    except ValueError:
        return "text", _GAPS.sub("", plain)


# --- classes ----------------------------------------------------------------------------------------------------------


def _classes(rows: Rows, source: Source, model: Model) -> SetLabels:
    if len(source.columns) > 1:
        raise UsageError(
            f"the Run learnt classes, which stand in one column of labels; {', '.join(source.columns)} are several."
        )
    (name,) = source.columns or ("label",)
    (column,), notes = label_texts(rows, source.target([name]))
    if not any(column):
        raise UsageError(
            f"{source.file or rows.path} has no labels in column {name!r}. Name the column that has them, or a CSV "
            f"that is joined to the images (parameters label_columns and labels). The images have the columns "
            f"{', '.join(rows.columns) or 'none'}."
        )
    counts = Counter(text for text in column if text)
    _check_map(source.class_map, counts, "label")
    matching = match(counts, model.classes, source.class_map)
    if not matching.number_of:
        raise UsageError(
            f"{rows.path}: no label is a class of the Run. The labels are {_quoted(counts)}; the Run's classes are "
            f"{_quoted(model.classes)}. Say which stands for which (parameter class_map)."
        )
    values = np.array([matching.number_of.get(text, -1) for text in column], dtype=np.int64)
    reasons = [
        "" if value >= 0 else UNKNOWN_LABEL if text else NO_LABEL for value, text in zip(values, column, strict=True)
    ]
    unknown = {text: counts[text] for text in matching.unknown}
    notes += _about_matching(matching, counts, "label")
    return SetLabels(values, reasons, matching, unknown, notes)


# --- findings ---------------------------------------------------------------------------------------------------------


def _findings(rows: Rows, source: Source, model: Model) -> SetLabels:
    there = _columns(rows, source)
    asked = list(source.columns) or there
    _check_map(source.class_map, asked, "column")
    matching = match(asked, model.classes, source.class_map)
    used = [name for name in asked if name in matching.number_of]
    if not used:
        raise UsageError(
            f"{source.file or rows.path}: no column is a finding of the Run. The columns are {_quoted(there)}; the "
            f"Run's findings are {_quoted(model.classes)}. Say which stands for which (parameter class_map)."
        )
    _check_one_each(used, matching, model)
    target = source.target(used)
    texts, notes = label_texts(rows, target)
    values = np.full((len(rows.image_ids), len(model.classes)), np.nan)
    values[:, [matching.number_of[name] for name in used]] = finding_values(rows, texts, target)
    reasons = ["" if is_known else NO_LABEL for is_known in np.isfinite(values).any(axis=1)]
    if all(reasons):
        raise UsageError(f"{source.file or rows.path}: no image has a value in {_quoted(used)}.")
    unknown = matching.unknown if source.columns else []  # other columns were not asked for
    notes += _about_matching(matching, None, "column", unknown)
    if absent := [name for i, name in enumerate(model.classes) if i not in matching.number_of.values()]:
        notes.append(
            f"The set has no column for {_quoted(absent)}: means are over the other findings. If another column stands "
            f"for one of them, map it (class_map); the columns are {_quoted(there)}."
        )
    return SetLabels(values, reasons, matching, dict.fromkeys(unknown, len(rows.image_ids)), notes)


def _columns(rows: Rows, source: Source) -> list[str]:
    if source.file is None:
        return list(rows.columns)
    return [name for name in tables.read(source.file, unnamed=True).columns if name not in ("", source.on)]


def _check_one_each(used: Sequence[str], matching: Matching, model: Model) -> None:
    of: dict[int, str] = {}
    for name in used:
        number = matching.number_of[name]
        if number in of:
            raise UsageError(
                f"the columns {of[number]!r} and {name!r} both stand for {model.classes[number]!r}. Name one."
            )
        of[number] = name


# --- what is said -----------------------------------------------------------------------------------------------------


def _check_map(class_map: Mapping[str, str], there: Iterable[str], what: str) -> None:
    if absent := [text for text in class_map if text not in set(there)]:
        raise UsageError(f"class_map: the set has no {what} {_quoted(absent)}; it has {_quoted(there)}.")


def _about_matching(
    matching: Matching, counts: Mapping[str, int] | None, what: str, unknown: Sequence[str] | None = None
) -> list[str]:
    def counted(text: str) -> str:
        return f"{text!r}" + (f" ({counts[text]:,})" if counts else "")

    notes = []
    for kinds, why in ((matching.respelled, "by its spelling"), (matching.mapped, "as asked")):
        if kinds:
            listed = ", ".join(f"{counted(text)} as {name!r}" for text, name in kinds.items())
            notes.append(f"Read {why}: {what} {listed}.")
    if unknown := matching.unknown if unknown is None else unknown:
        of = f"{sum(counts[text] for text in unknown):,} images have" if counts else f"{len(unknown):,} columns are"
        notes.append(
            f"{of} {'a label that is no class' if counts else 'no finding'} of the Run, and are left out: "
            f"{', '.join(map(counted, unknown))}. If one of them is a class of the Run under another name, map it "
            f"(class_map)."
        )
    return notes


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(set(texts))))
