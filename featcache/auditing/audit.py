"""What the vectors of a store give away: copies, near copies, confounds, outliers, labels that are probably wrong.

Everything is looked for at once, after a pass and before a score is believed. Nothing is changed, and nothing is
decided: a person looks at what heads the tables. Memory grows with n × d, time with n × d but for the sieve for near
copies, which compares every row with every other: 5,840 images of 1,280 features take half a minute on two cores.
Letters: n rows, d features, c classes.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np

from featcache import splits
from featcache.auditing import confounds, suspects
from featcache.auditing.confounds import Confound, Score, Variable
from featcache.auditing.results import SHOWN, Audit, Near
from featcache.auditing.shortcuts import TOGETHER, Labels, Shortcut, best, dealt, folders, suffix
from featcache.auditing.suspects import Doubts
from featcache.errors import ImageError, UsageError
from featcache.images import DecodeSpec
from featcache.images.headers import Header
from featcache.images.workers import Decoders
from featcache.manifest import Manifest
from featcache.manifest.check import alike
from featcache.splits import class_names, unnamed_groups
from featcache.splits.near_duplicates import near_pairs
from featcache.store import Store, Variety
from featcache.tables import missing
from featcache.tables.missing import without_missing

Array = np.ndarray[Any, Any]
Columns = Mapping[str, Sequence[str]]
Progress = Callable[[int, int], None]

# Copies of 80 X-rays (MobileNetV2) that were mirrored, halved, cropped by 3 % or saved again as JPEG at quality 40 had
# a median cosine of 0.965 to 0.968, and one in twenty less than 0.946 to 0.951. Of the 17 million pairs of different
# files of their set 34 have more than 0.95.
NEAR = 0.95
_MAX_NEAR = 200_000  # pairs
_TELLS_NOTHING = 0.1  # share of all pairs
_NO_VARIABLES = frozenset({"group", "path"})
_LABELS = frozenset({"label", "kind", "finding", "problems", "mesh"})  # the label in other words, as `sources` has them
_PRESENT = frozenset({"1", "1.0"})
_TOGETHER = {"image size": ("image width", "image height", "aspect ratio")}  # variables that are one thing


def audit(
    store: Store,
    images: Manifest | None = None,
    *,
    label: str | Sequence[str] = "label",
    ignore: Sequence[str] = (),
    near: float = NEAR,
    seed: int = 0,
    on_progress: Progress = lambda done, total: None,
) -> Audit:
    """Looks at the vectors, contents and columns of a store, and at the headers of its images where they are given.

    Args:
        store: an open store.
        images: where its images are now; matched by name.
        label: the column of classes, or several of findings, each 1, 0 or empty.
        ignore: columns that are no variables.
        near: cosine from which two vectors are nearly the same.
        seed: of everything that is drawn.
        on_progress: called with (steps done, steps in all).

    Raises:
        UsageError: fewer than two rows, no such column, none of the images is in the store; and whatever reading the
            store raises.
    """
    label_columns = (label,) if isinstance(label, str) else tuple(label)
    columns = _columns(store, label_columns, ignore)
    spelling = class_names.one_spelling(counts := Counter(text for text in columns["label"] if text))
    columns["label"] = [spelling.get(text, "") for text in columns["label"]]
    about_names = class_names.notes(counts) if len(label_columns) == 1 else []
    notes = [*about_names, *missing.notes(store.path, store.missing_words)]
    if images is None:
        notes.append(
            "the headers of the images were not read, so confounding by image size, bit depth and colour mode was not "
            "tested; give the folder or CSV of the images as well to test it"
        )
    groups = _groups(store, columns, notes)
    texts = _texts(store, columns, images, {"label", *label_columns, *ignore}, notes)
    variables, left_out = _variables(texts, columns["label"], groups)
    step = _stepper(len(variables) + 3, on_progress)
    x = store.features()
    variety = Variety.of_blocks([x], store.content_sha256)
    notes += variety.notes()
    found_near = _near(store, x, columns["split"], near, seed, notes)
    step()
    distance, nearest = suspects.outliers(x, seed=seed)
    step()
    x = confounds.components(x, seed)
    task = _Task.of(columns["label"], x, groups, seed, notes)
    step()
    scores = {variable.name: _label_from(task.labels, variable) for variable in variables}
    together = task.labels.told_by(*(variable for variable in variables if variable.name != "split"))
    return Audit(
        store=store.path,
        image_ids=store.image_ids,
        splits=columns["split"],
        labels=columns["label"],
        identical=alike(store.content_sha256, store.image_ids, columns),
        threshold=near,
        near=found_near,
        n_equal=variety.n_equal,
        confounds=_worst_first(
            [_confound(variable, x, groups, scores[variable.name], seed, step) for variable in variables]
        ),
        left_out=left_out,
        together=together,
        shortcuts=_shortcuts(
            columns, label_columns, task.labels, variables, {**scores, TOGETHER: together}, groups, seed
        ),
        of_label=task.score,
        distance=distance,
        nearest=nearest,
        classes=task.labels.classes,
        labelled=task.labels.rows,
        doubts=task.doubts,
        notes=notes,
    )


def _label_from(labels: Labels, variable: Variable) -> Score | None:
    """The split is chosen, not found."""
    return None if variable.name == "split" else labels.told_by(variable)


def _shortcuts(
    columns: Columns,
    label_columns: Sequence[str],
    labels: Labels,
    variables: Sequence[Variable],
    scores: Mapping[str, Score | None],
    groups: Array,
    seed: int,
) -> list[Shortcut]:
    """Of each class, or each finding, what tells it best."""
    by_name = {variable.name: variable for variable in variables if variable.name != "split"}
    sets = {name: [by_name[part] for part in parts if part in by_name] for name, parts in _TOGETHER.items()}
    sets = {name: parts for name, parts in sets.items() if len(parts) > 1}
    if len(label_columns) == 1:
        return best({**scores, **{name: labels.told_by(*parts) for name, parts in sets.items()}})
    shortcuts: list[Shortcut] = []
    sets |= {name: [variable] for name, variable in by_name.items()} | {TOGETHER: list(by_name.values())}
    for finding in label_columns:
        of = Labels.of(without_missing(columns[finding]), groups, seed, [], dealt)
        shortcuts += best({name: of.told_by(*parts) for name, parts in sets.items()}, finding)
    return sorted(shortcuts, key=lambda shortcut: -shortcut.auroc)


def _columns(store: Store, label_columns: Sequence[str], ignore: Sequence[str]) -> dict[str, Sequence[str]]:
    """Those of the store, with `label` the one asked for, or the first finding of several; and empty ones where there
    is no label or split."""
    columns = store.columns
    if len(store) < 2:
        raise UsageError(f"{store.path} has {len(store)} image(s): there is nothing to compare.")
    for name in (*ignore, *(name for name in label_columns if name != "label" or len(label_columns) > 1)):
        if name not in columns:
            raise UsageError(f"{store.path} has no column {name!r}; it has {', '.join(columns) or 'none'}.")
    empty = [""] * len(store)
    return {"split": empty, **columns, "label": _label_texts(columns, label_columns, empty)}


def _label_texts(columns: Columns, label_columns: Sequence[str], empty: Sequence[str]) -> list[str]:
    """The class of each row; of several findings those that are there, empty where none is known."""
    if len(label_columns) == 1:
        return list(without_missing(columns.get(label_columns[0], empty)))
    findings = [without_missing(columns[name]) for name in label_columns]
    return [_present(label_columns, row) if any(row) else "" for row in zip(*findings, strict=True)]


def _present(findings: Sequence[str], row: Sequence[str]) -> str:
    return "|".join(name for name, text in zip(findings, row, strict=True) if text in _PRESENT) or "no finding"


def _groups(store: Store, columns: Columns, notes: list[str]) -> Array:
    """(n,) group numbers: rows of one patient, or of the same bytes, are one."""
    if "group" not in columns:
        notes.append(
            "the store has no groups: images of one patient are on both sides of the folds, and AUROCs too good"
        )
        notes += unnamed_groups.notes(columns, store.image_ids)
    keys = [columns["group"]] if "group" in columns else []
    return splits.merge_groups(*keys, store.content_sha256)


def _stepper(total: int, on_progress: Progress) -> Callable[[], None]:
    numbers = count(1)
    return lambda: on_progress(next(numbers), total)


def _near(store: Store, x: Array, sides: Sequence[str], threshold: float, seed: int, notes: list[str]) -> Near:
    side, content = np.array(sides, dtype=object), np.array(store.content_sha256, dtype=object)
    pairs, cosine, callbacks = _above(x, content, threshold, seed, notes)
    closest, of_closest = suspects.closest_across(x, side, content)
    if too_many := callbacks is not None:
        closest, of_closest = closest[of_closest >= callbacks], of_closest[of_closest >= callbacks]
    listed = set(map(tuple, pairs.tolist()))
    new = np.array([tuple(pair) not in listed for pair in closest.tolist()], dtype=bool)
    pairs, cosine = np.concatenate([pairs, closest[new]]), np.concatenate([cosine, of_closest[new]])
    one, other = pairs.T
    crosses = ((side[one] != side[other]) & (side[one] != "") & (side[other] != "")).astype(bool)
    order = np.lexsort((-cosine, ~crosses))
    identical = (content[one] == content[other]).astype(bool)
    is_near = cosine >= np.float32(threshold)
    return Near(pairs[order], cosine[order], crosses[order], identical[order], is_near[order], too_many)


def _above(
    x: Array, content: Array, threshold: float, seed: int, notes: list[str]
) -> tuple[Array, Array, float | None]:
    """(pairs, cosines, None), or neither and the cosine that a pair needs to be worth a look, where nearly all have the
    one asked for."""
    n, few = len(x), max(SHOWN, len(x) // 20)
    near_pairs = _all_near(x, content, threshold)
    if near_pairs is not None:
        pairs, cosine = near_pairs
        one, other = pairs.T
        n_near = int(np.sum(content[one] != content[other]))
        if n_near <= n:
            return pairs, cosine, None
    share, low = suspects.how_alike(x, content, threshold, few, seed)
    way_out = "no other tells them apart" if low is None else f"`near`={low:g} leaves about {few:,} pairs"
    of_all = f"near copies: the images are alike throughout: {share:.1%} of all pairs have a cosine of {threshold:g}"
    if near_pairs is not None and n_near <= _TELLS_NOTHING * n * (n - 1) / 2:
        notes.append(f"{of_all} or more; {way_out}")
        return pairs, cosine, None
    notes.append(f"{of_all} or more, which says nothing of these vectors; {way_out}")
    return np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32), 1.0 if low is None else low


def _all_near(x: Array, content: Array, threshold: float) -> tuple[Array, Array] | None:
    """All near pairs; if they are too many, those of different files, of which one row stands for its copies; None if
    these are, too."""
    firsts = np.sort(np.unique(content.astype(str), return_index=True)[1])
    for rows in (np.arange(len(x)), firsts):
        try:
            pairs, cosine = near_pairs(confounds.rows_of(x, rows), threshold, max_pairs=_MAX_NEAR)
            return rows[pairs], cosine
        except UsageError:
            if not 0 < threshold <= 1:
                raise
    return None


# --- the label --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """The label, and what the vectors say of it.

    Attributes:
        labels: as numbers.
        score, doubts: of the out-of-fold logits; None where there are none.
    """

    labels: Labels
    score: Score | None
    doubts: Doubts | None

    @classmethod
    def of(cls, texts: Sequence[str], x: Array, groups: Array, seed: int, notes: list[str]) -> Self:
        """Learns the label from the vectors."""
        labels = Labels.of(texts, groups, seed, notes)
        if not labels.folds:
            return cls(labels, None, None)
        y, classes = labels.y, labels.classes
        logits = confounds.out_of_fold(confounds.rows_of(x, labels.rows), y, len(classes), labels.folds, seed)
        score = confounds.score(y, logits, labels.groups, classes, seed)
        return cls(labels, score, suspects.doubt(y, logits))


# --- what is no finding -----------------------------------------------------------------------------------------------


def _confound(
    variable: Variable, x: Array, groups: Array, to_label: Score | None, seed: int, step: Callable[[], None]
) -> Confound:
    try:
        score, why = confounds.score_of(variable, x, groups, seed), ""
    except UsageError as error:
        score, why = None, str(error)
    step()
    return Confound(variable.name, variable.classes, score, to_label, why)


def _worst_first(confounds: Sequence[Confound]) -> list[Confound]:
    return sorted(confounds, key=lambda confound: -confound.from_vectors.low if confound.from_vectors else 1.0)


def _variables(texts: Columns, labels: Sequence[str], groups: Array) -> tuple[list[Variable], dict[str, str]]:
    """Those that can be told apart, and why the others cannot."""
    variables, left_out = [], {}
    for name, values in texts.items():
        is_label = name in _LABELS and _decides(values, labels)
        variable = "says what the label says" if is_label else Variable.of(name, values, groups)
        if isinstance(variable, str):
            left_out[name] = variable
        else:
            variables.append(variable)
    return variables, left_out


def _decides(values: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether rows with the same value have the same label, as far as both are known."""
    pairs = {(value, label) for value, label in zip(values, labels, strict=True) if value and label}
    return len(pairs) == len({value for value, _ in pairs})


def _texts(
    store: Store, columns: Columns, images: Manifest | None, ignored: set[str], notes: list[str]
) -> dict[str, Sequence[str]]:
    """Everything known of the images that may be a variable, by name."""
    own = {name: values for name, values in columns.items() if name not in _NO_VARIABLES | ignored and any(values)}
    own |= {"source folder": folders(store.image_ids, columns)}
    if images is None:
        return {**own, "file format": [suffix(name) for name in store.image_ids]}
    return {**own, **_of_headers(store, images, notes)}


def _of_headers(store: Store, images: Manifest, notes: list[str]) -> dict[str, Sequence[str]]:
    """Of the images of the store that are there, by their names."""
    row_of = {name: row for row, name in enumerate(images.image_ids) if name not in images.refused}
    paths = [images.paths[row_of[name]] if name in row_of else None for name in store.image_ids]
    if not any(paths):
        first = store.image_ids[0]
        why = images.refused.get(first, "")
        raise UsageError(
            f"none of the {len(store):,} images of {store.path} can be had from {images.source}; the first is {first!r}"
            + (f", which {why}." if why else ". Give the folder, or the CSV, that they were embedded from.")
        )
    with Decoders([], DecodeSpec()) as decoders, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        headers = list(pool.map(lambda path: None if path is None else _header(decoders, path), paths))
    if n_without := headers.count(None):
        notes.append(f"{n_without:,} images are not there, or cannot be read: their headers are unknown")
    of = {"image width": "width", "image height": "height", "bit depth": "bits", "colour mode": "mode"}
    of["file format"] = "kind"
    texts = {name: ["" if h is None else str(getattr(h, field)) for h in headers] for name, field in of.items()}
    return {**texts, "aspect ratio": ["" if h is None else f"{h.width / max(h.height, 1):.3g}" for h in headers]}


def _header(decoders: Decoders, path: Path) -> Header | None:
    try:
        return decoders.header(path)
    except ImageError:
        return None
