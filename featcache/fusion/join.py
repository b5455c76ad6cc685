"""Images and reports become studies: which images are of which, what was written, and on which side of the split it is.

Every value of the key is one study, of images, of reports, or of both, in the order of the reports and then of the
store. A study belongs as a whole to one side, and so do studies that share a patient or an image: a split that has
them on two sides is refused. Knows nothing of vectors.
Letters: n rows of the store, s studies, m images of studies.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featcache import splits
from featcache.errors import UsageError
from featcache.identity import Json
from featcache.specs import FusionSpec
from featcache.splits.task import Rows
from featcache.tables import joining
from featcache.tables.missing import without_missing
from featcache.tables.table import read_table

Array = np.ndarray[Any, Any]

Reports = dict[str, tuple[str, ...]]  # study -> its texts

_SHOWN = 5


@dataclass(frozen=True)
class Division:
    """What is known of the rows besides what the store says, n texts each, empty where nothing is.

    Attributes:
        sides: `train`, `val` or `test`; they take the place of the store's own.
        groups: rows with the same text belong together, too.
        columns: take the place of those of the same name.
    """

    sides: list[str] | None = None
    groups: list[str] | None = None
    columns: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyTable:
    """s studies and their m images.

    Attributes:
        study_ids: s names.
        rows: (m,) rows of the store, by study, and within it in the order of the store.
        study: (m,) the study of each, ascending.
        view: (m,) the how-manieth of its study each is, from 0.
        groups: (s,) numbers: studies with the same one share a patient or an image.
        row_groups: (n,) the same of the rows of the store; the numbers are others.
        texts: s texts by name, empty where missing.
        columns: s texts by name: split, group, label and whatever all images of each study say alike.
        image_columns: m texts by name, of every column but the texts.
        coverage: how many studies, images and texts there are, and what is missing.
        notes: what was decided about cells of the reports, in full sentences.
    """

    study_ids: list[str]
    rows: Array
    study: Array
    view: Array
    groups: Array
    row_groups: Array
    texts: dict[str, list[str]]
    columns: dict[str, list[str]]
    image_columns: dict[str, list[str]]
    coverage: Json
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.study_ids)


def join(store: Rows, spec: FusionSpec, also: Division = Division()) -> StudyTable:
    """The studies of a store and of reports.

    Args:
        store: the images.
        spec: the key, the texts, and which studies are kept.
        also: what is known of the rows besides.

    Raises:
        UsageError: no such column, a study twice among the reports, no study with both, images of a study that say
            different things of its group or text, a study on two sides; naming the first five.
    """
    columns = {**store.columns, **also.columns}
    keys = without_missing(_column(store, columns, spec.by))
    notes = list[str]()
    reports, n_unnamed = _from_csv(spec, notes) if spec.reports else (_from_columns(store, columns, keys, spec), 0)
    notes += _check_match(store, keys, reports, spec)
    coverage, names = _coverage(keys, reports, n_unnamed, spec)
    rows, study = _rows_of(keys, names)
    row_groups = _row_groups(store, columns, keys, also)
    kept = {name: values for name, values in columns.items() if name not in spec.texts}
    image_columns = {name: [values[i] for i in rows.tolist()] for name, values in kept.items()}
    shared, conflicts = _of_studies(image_columns, names, study, spec, also)
    if side_of := _side_of_group(store, keys, row_groups, rows, _sides(columns, row_groups, also)):
        group_of = dict(zip(study.tolist(), row_groups[rows].tolist(), strict=True))
        shared["split"] = [side_of.get(group_of.get(i, -1), "") for i in range(len(names))]
    return StudyTable(
        study_ids=names,
        rows=rows,
        study=study,
        view=np.arange(len(rows)) - np.searchsorted(study, study),
        groups=_groups(row_groups[rows], study, len(names)),
        row_groups=row_groups,
        texts={name: [reports.get(name, _no(spec))[i] for name in names] for i, name in enumerate(spec.texts)},
        columns=shared,
        image_columns=image_columns,
        coverage={**coverage, "conflicts": conflicts},
        notes=tuple(notes),
    )


# --- keys and texts ---------------------------------------------------------------------------------------------------


def _column(store: Rows, columns: Mapping[str, list[str]], name: str) -> list[str]:
    values = {"image_id": store.image_ids, **columns}
    if name not in values:
        raise UsageError(f"{store.path} has no column {name!r}; it has {', '.join(values)}.")
    return values[name]


def _from_csv(spec: FusionSpec, notes: list[str]) -> tuple[Reports, int]:
    """The texts of each study, and how many records name none."""
    assert spec.reports is not None
    table = read_table(spec.reports, (spec.key, *spec.texts))
    keys, columns = table.values(spec.key), [table.prose(name) for name in spec.texts]
    notes += table.notes_on([spec.key], spec.texts)
    row_of = table.first_rows(spec.key, keys, dict(zip(spec.texts, columns, strict=True)))
    n_named = sum(map(bool, keys))
    if n_repeated := n_named - len(row_of):
        notes.append(f"{spec.reports}: {n_repeated:,} rows repeat the report of their study, which counts once.")
    texts = {key: tuple(cells[row] for cells in columns) for key, row in row_of.items()}
    return texts, len(table) - n_named


def _from_columns(store: Rows, columns: Mapping[str, list[str]], keys: Sequence[str], spec: FusionSpec) -> Reports:
    """The texts that the images of each study bring with them."""
    text_columns = [_column(store, columns, name) for name in spec.texts]
    by_name: dict[str, list[str]] = {}
    for row, key in enumerate(keys):
        if not key:
            continue
        texts = by_name.setdefault(key, [""] * len(text_columns))
        for i, values in enumerate(text_columns):
            if texts[i] and values[row] and texts[i] != values[row]:
                raise UsageError(
                    f"{store.path}: the images of {spec.by} {key!r} have different texts as {spec.texts[i]}. Give the "
                    f"texts of the studies as `reports`."
                )
            texts[i] = texts[i] or values[row]
    return {key: tuple(texts) for key, texts in by_name.items()}


def _no(spec: FusionSpec) -> tuple[str, ...]:
    """The texts of a study of which nothing was written."""
    return ("",) * len(spec.texts)


def _check_match(store: Rows, keys: Sequence[str], reports: Reports, spec: FusionSpec) -> list[str]:
    """Notes on keys of images that no report has.

    Raises:
        UsageError: no key has one.
    """
    if not spec.reports:
        return []
    if not any(key in reports for key in keys if key):
        example, image = next(iter(reports), ""), next(filter(None, keys), "")
        difference = joining.difference(set(keys) - {""}, reports)
        raise UsageError(
            f"no {spec.key} of {spec.reports} is a {spec.by} of {store.path}: the file has {example!r}, the images "
            f"{image!r}{f'; {difference}' if difference else ''}. Join by other columns."
        )
    return joining.notes(spec.reports, keys, reports)


def _rows_of(keys: Sequence[str], names: Sequence[str]) -> tuple[Array, Array]:
    """(m,) rows that are of a study, by study, and the study of each."""
    number = {name: i for i, name in enumerate(names)}
    of_row = np.array([number.get(key, -1) for key in keys], dtype=np.int64)
    rows = np.flatnonzero(of_row >= 0)
    rows = rows[np.argsort(of_row[rows], kind="stable")]
    return rows, of_row[rows]


def _coverage(keys: Sequence[str], reports: Reports, n_unnamed: int, spec: FusionSpec) -> tuple[Json, list[str]]:
    """What there is of each kind, and the studies that are kept."""
    n_images = Counter(key for key in keys if key)
    with_text = {study for study, texts in reports.items() if any(texts)}
    names = list(dict.fromkeys([*reports, *n_images]))
    both = [name for name in names if name in n_images and name in with_text]
    kept = both if spec.complete else names
    if not kept:
        raise UsageError("no study has both images and text, and `complete` leaves out all others.")
    coverage = {
        "studies": len(names),
        "with_image_and_text": len(both),
        "without_text": len(n_images) - len(both),
        "without_image": len(with_text) - len(both),
        "without_both": len(names) - len(n_images.keys() | with_text),
        "kept": len(kept),
        "images": n_images.total(),
        "images_without_study": len(keys) - n_images.total(),
        "most_images_of_a_study": max(n_images.values(), default=0),
        "reports": len(reports) + n_unnamed if spec.reports else 0,
        "reports_without_study": n_unnamed,
        "texts": {name: sum(bool(texts[i]) for texts in reports.values()) for i, name in enumerate(spec.texts)},
    }
    return coverage, kept


# --- what belongs together --------------------------------------------------------------------------------------------


def _row_groups(store: Rows, columns: Mapping[str, list[str]], keys: list[str], also: Division) -> Array:
    """(n,) numbers: rows of one study, patient, or content have the same."""
    unknown = [""] * len(store)
    return splits.merge_groups(keys, columns.get("group", unknown), store.content_sha256, also.groups or unknown)


def _groups(groups: Array, study: Array, s: int) -> Array:
    """(s,) numbers from 0 of the studies; one of text alone is a group of its own."""
    keys = np.arange(s) + (groups.max(initial=0) + 1)
    keys[study] = groups
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _sides(columns: Mapping[str, list[str]], groups: Array, also: Division) -> list[str]:
    """n texts: the side of each row, empty where unknown. Where something is known of a group besides the store, it
    decides for all of the group."""
    own = columns.get("split", [""] * len(groups))
    if also.sides is None:
        return own
    decided = {group for group, side in zip(groups.tolist(), also.sides, strict=True) if side}
    members = zip(groups.tolist(), also.sides, own, strict=True)
    return [side if group in decided else mine for group, side, mine in members]


def _side_of_group(
    store: Rows, keys: Sequence[str], groups: Array, rows: Array, sides: Sequence[str]
) -> dict[int, str]:
    """The side of each group that has one.

    Raises:
        UsageError: a group with a study is on two.
    """
    members: dict[int, dict[str, int]] = {}  # group -> side -> the first row on it
    for row, (group, side) in enumerate(zip(groups.tolist(), sides, strict=True)):
        if side:
            members.setdefault(group, {}).setdefault(side, row)
    crossing = [group for group in dict.fromkeys(groups[rows].tolist()) if len(members.get(group, ())) > 1]
    if crossing:
        first = [
            [f"{keys[row] or store.image_ids[row]!r} ({side})" for side, row in members[group].items()]
            for group in crossing
        ]
        examples = "; ".join(" and ".join(pair) for pair in first[:_SHOWN])
        raise UsageError(
            f"{len(crossing)} studies, or sets of studies that share a patient or an image, are on two sides of the "
            f"split. The first: {examples}. Mend the split, or train the Run with `group_by`."
        )
    return {group: min(subsets) for group, subsets in members.items()}


def _of_studies(
    columns: Mapping[str, list[str]], names: Sequence[str], study: Array, spec: FusionSpec, also: Division
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """What the images of each study say alike, and of how many studies they do not. A label on which they differ is
    unknown; another column on which some differ is none of studies."""
    by_column: dict[str, list[str]] = {}
    conflicts: dict[str, int] = {}
    for name, values in columns.items():
        if name == "split" or (name == spec.by and name != "group"):
            continue
        shared, differing = _shared(values, study, len(names))
        if name == "group" and differing:
            examples = ", ".join(repr(names[i]) for i in differing[:_SHOWN])
            raise UsageError(
                f"{len(differing)} studies have images of several groups (patients), the first {examples}. Mend the "
                f"column group, or choose another key as `by`."
            )
        if name == "label" or name in also.columns:
            conflicts |= {name: len(differing)} if differing else {}
        elif differing:
            continue
        by_column[name] = shared
    return by_column, conflicts


def _shared(values: Sequence[str], study: Array, s: int) -> tuple[list[str], list[int]]:
    """The one text of each study, empty where there is none or more than one; and the studies with more than one."""
    labels_seen: list[set[str]] = [set() for _ in range(s)]
    for value, i in zip(values, study.tolist(), strict=True):
        if value:
            labels_seen[i].add(value)
    return [min(texts) if len(texts) == 1 else "" for texts in labels_seen], [
        i for i, texts in enumerate(labels_seen) if len(texts) > 1
    ]
