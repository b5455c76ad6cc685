"""`audit`: duplicates, near duplicates, confounders, outliers and label issues of a store.

Nothing is changed: the results are ranked tables for a person to review. Memory grows with n × d, and so does time,
except for the search for near duplicates, which compares all pairs: 5,840 images of 1,280 features take half a minute
on two cores.
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
from featcache.auditing.results import N_SHOWN, Audit, Near
from featcache.auditing.shortcuts import ALL_VARIABLES, Labels, Shortcut, best, dealt_folds, folders, suffix
from featcache.auditing.suspects import LabelIssues
from featcache.errors import ImageError, UsageError
from featcache.images.headers import Header
from featcache.images.workers import Decoders
from featcache.manifest import Manifest
from featcache.manifest.check import alike
from featcache.names import plural
from featcache.specs import DecodeSpec
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
_MAX_SHARE = 0.1  # of all pairs; a threshold that more pairs reach does not identify near duplicates
_NO_VARIABLES = frozenset({"group", "path"})
_LABEL_COLUMNS = frozenset({"label", "kind", "finding", "problems", "mesh"})  # columns that may repeat the label
_PRESENT = frozenset({"1", "1.0"})
_JOINT_VARIABLES = {"image size": ("image width", "image height", "aspect ratio")}


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
    """Checks the vectors, contents and columns of a store, and optionally the headers of its images.

    Args:
        store: an open store.
        images: the embedded images, matched by image_id; their sizes, bit depths and formats are tested as confounders.
        label: column of classes, or several columns of a multi-label task, each 1, 0 or empty.
        ignore: columns that are not tested as confounders.
        near: cosine similarity from which two images are near duplicates.
        seed: seed of folds and samples.
        on_progress: called with (completed steps, number of steps).

    Returns:
        Tables of the results; `Audit.write` saves them, `Audit.as_json` summarizes them.

    Raises:
        UsageError: fewer than two rows, an unknown column, or none of the images is in the store; further errors are
            those of reading the store.

    Example:
        >>> with Store.open("chest.h5") as store:
        ...     result = audit(store, label="label")
        >>> sorted(confound.name for confound in result.confounds)
        ['split', 'view']
        >>> result.near.count(across=True)  # near duplicates across the split
        0
    """
    label_columns = (label,) if isinstance(label, str) else tuple(label)
    columns, notes = _columns_and_notes(store, label_columns, ignore, images is not None)
    groups = _groups(store, columns, notes)
    texts = _texts(store, columns, images, {"label", *label_columns, *ignore}, notes)
    variables, excluded = _variables(texts, columns["label"], groups)
    step = _stepper(len(variables) + 3, on_progress)
    x = store.features()
    variety = Variety.of_blocks([x], store.content_sha256)
    notes += variety.notes()
    pairs = _near(store, x, columns["split"], near, seed, notes)
    step()
    distance, nearest = suspects.outliers(x, seed=seed)
    step()
    x = confounds.components(x, seed)
    task = _Task.of(columns["label"], x, groups, seed, notes)
    step()
    scores = {variable.name: _label_from(task.labels, variable) for variable in variables}
    label_from_variables = task.labels.score_from(*(variable for variable in variables if variable.name != "split"))
    return Audit(
        store=store.path,
        image_ids=store.image_ids,
        splits=columns["split"],
        labels=columns["label"],
        identical=alike(store.content_sha256, store.image_ids, columns),
        threshold=near,
        near=pairs,
        n_equal=variety.n_equal,
        confounds=_worst_first(
            [_confound(variable, x, groups, scores[variable.name], seed, step) for variable in variables]
        ),
        excluded=excluded,
        label_from_variables=label_from_variables,
        shortcuts=_shortcuts(
            columns,
            label_columns,
            task.labels,
            variables,
            {**scores, ALL_VARIABLES: label_from_variables},
            groups,
            seed,
        ),
        label_from_vectors=task.score,
        distance=distance,
        nearest=nearest,
        classes=task.labels.classes,
        labelled_rows=task.labels.rows,
        label_issues=task.label_issues,
        notes=notes,
    )


def _columns_and_notes(
    store: Store, label_columns: Sequence[str], ignore: Sequence[str], has_images: bool
) -> tuple[dict[str, Sequence[str]], list[str]]:
    """The store's columns with one spelling of each class, and notes on class names, missing values and headers."""
    columns = _columns(store, label_columns, ignore)
    spelling = class_names.one_spelling(counts := Counter(text for text in columns["label"] if text))
    columns["label"] = [spelling.get(text, "") for text in columns["label"]]
    notes = class_names.notes(counts) if len(label_columns) == 1 else []
    notes += missing.notes(store.path, store.missing_words)
    if not has_images:
        notes.append(
            "image headers were not read, so image size, bit depth and colour mode were not tested as confounders; "
            "give the folder or CSV of the images to test them"
        )
    return columns, notes


def _label_from(labels: Labels, variable: Variable) -> Score | None:
    """The AUROC of the label predicted from a variable; None for the split, which is chosen and not observed."""
    return None if variable.name == "split" else labels.score_from(variable)


def _shortcuts(
    columns: Columns,
    label_columns: Sequence[str],
    labels: Labels,
    variables: Sequence[Variable],
    scores: Mapping[str, Score | None],
    groups: Array,
    seed: int,
) -> list[Shortcut]:
    """The strongest predictor of each class, or label."""
    by_name = {variable.name: variable for variable in variables if variable.name != "split"}
    sets = {name: [by_name[part] for part in parts if part in by_name] for name, parts in _JOINT_VARIABLES.items()}
    sets = {name: parts for name, parts in sets.items() if len(parts) > 1}
    if len(label_columns) == 1:
        return best({**scores, **{name: labels.score_from(*parts) for name, parts in sets.items()}})
    shortcuts: list[Shortcut] = []
    sets |= {name: [variable] for name, variable in by_name.items()} | {ALL_VARIABLES: list(by_name.values())}
    for finding in label_columns:
        of = Labels.of(without_missing(columns[finding]), groups, seed, [], dealt_folds)
        shortcuts += best({name: of.score_from(*parts) for name, parts in sets.items()}, finding)
    return sorted(shortcuts, key=lambda shortcut: -shortcut.auroc)


def _columns(store: Store, label_columns: Sequence[str], ignore: Sequence[str]) -> dict[str, Sequence[str]]:
    """The store's columns, with `label` from the label columns; `label` and `split` are empty if the store has none."""
    columns = store.columns
    if len(store) < 2:
        raise UsageError(f"{store.path} has {plural(len(store), 'image')}; an audit needs at least two.")
    for name in (*ignore, *(name for name in label_columns if name != "label" or len(label_columns) > 1)):
        if name not in columns:
            raise UsageError(f"{store.path} has no column {name!r}; it has {', '.join(columns) or 'none'}.")
    empty = [""] * len(store)
    return {"split": empty, **columns, "label": _label_texts(columns, label_columns, empty)}


def _label_texts(columns: Columns, label_columns: Sequence[str], empty: Sequence[str]) -> list[str]:
    """The class of each row, or its positive labels; empty if unknown."""
    if len(label_columns) == 1:
        return list(without_missing(columns.get(label_columns[0], empty)))
    findings = [without_missing(columns[name]) for name in label_columns]
    return [_present(label_columns, row) if any(row) else "" for row in zip(*findings, strict=True)]


def _present(findings: Sequence[str], row: Sequence[str]) -> str:
    return "|".join(name for name, text in zip(findings, row, strict=True) if text in _PRESENT) or "no finding"


def _groups(store: Store, columns: Columns, notes: list[str]) -> Array:
    """(n,) group numbers: rows of one patient, or of identical files, are one group."""
    if "group" not in columns:
        notes.append(
            "the store has no groups: images of one patient may be in training and validation folds, so AUROCs may be "
            "too high"
        )
        notes += unnamed_groups.notes(columns, store.image_ids)
    keys = [columns["group"]] if "group" in columns else []
    return splits.merge_groups(*keys, store.content_sha256)


def _stepper(total: int, on_progress: Progress) -> Callable[[], None]:
    numbers = count(1)
    return lambda: on_progress(next(numbers), total)


def _near(store: Store, x: Array, subsets: Sequence[str], threshold: float, seed: int, notes: list[str]) -> Near:
    subset, content = np.array(subsets, dtype=object), np.array(store.content_sha256, dtype=object)
    pairs, cosine, least = _above(x, content, threshold, seed, notes)
    closest, of_closest = suspects.nearest_across_splits(x, subset, content)
    if too_many := least is not None:
        closest, of_closest = closest[of_closest >= least], of_closest[of_closest >= least]
    listed = set(map(tuple, pairs.tolist()))
    new = np.array([tuple(pair) not in listed for pair in closest.tolist()], dtype=bool)
    pairs, cosine = np.concatenate([pairs, closest[new]]), np.concatenate([cosine, of_closest[new]])
    one, other = pairs.T
    crosses = ((subset[one] != subset[other]) & (subset[one] != "") & (subset[other] != "")).astype(bool)
    order = np.lexsort((-cosine, ~crosses))
    identical = (content[one] == content[other]).astype(bool)
    is_near = cosine >= np.float32(threshold)
    return Near(pairs[order], cosine[order], crosses[order], identical[order], is_near[order], too_many)


def _above(
    x: Array, content: Array, threshold: float, seed: int, notes: list[str]
) -> tuple[Array, Array, float | None]:
    """(pairs, cosines, None); if nearly all pairs reach the threshold, (no pairs, no cosines, a higher threshold)."""
    n, few = len(x), max(N_SHOWN, len(x) // 20)
    near_pairs = _all_near(x, content, threshold)
    if near_pairs is not None:
        pairs, cosine = near_pairs
        one, other = pairs.T
        n_near = int(np.sum(content[one] != content[other]))
        if n_near <= n:
            return pairs, cosine, None
    share, low = suspects.share_above(x, content, threshold, few, seed)
    advice = "no higher threshold separates them" if low is None else f"`near`={low:g} leaves about {few:,} pairs"
    finding = f"near duplicates: {share:.1%} of all pairs have a cosine similarity of at least {threshold:g}"
    if near_pairs is not None and n_near <= _MAX_SHARE * n * (n - 1) / 2:
        notes.append(f"{finding}; {advice}")
        return pairs, cosine, None
    notes.append(f"{finding}, so this threshold does not identify near duplicates; {advice}")
    return np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32), 1.0 if low is None else low


def _all_near(x: Array, content: Array, threshold: float) -> tuple[Array, Array] | None:
    """All near pairs; if they are too many, those of different files, with one row per file; None if these are too many
    as well."""
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
    """The label and its prediction from the vectors.

    Attributes:
        labels: the labels as numbers.
        score: AUROC of the out-of-fold predictions; None if the label cannot be learned.
        label_issues: label issues by the same predictions; None likewise.
    """

    labels: Labels
    score: Score | None
    label_issues: LabelIssues | None

    @classmethod
    def of(cls, texts: Sequence[str], x: Array, groups: Array, seed: int, notes: list[str]) -> Self:
        """Predicts the label from the vectors, out of fold."""
        labels = Labels.of(texts, groups, seed, notes)
        if not labels.folds:
            return cls(labels, None, None)
        y, classes = labels.y, labels.classes
        logits = confounds.out_of_fold(confounds.rows_of(x, labels.rows), y, len(classes), labels.folds, seed)
        score = confounds.score(y, logits, labels.groups, classes, seed)
        return cls(labels, score, suspects.find_label_issues(y, logits))


# --- confounders ------------------------------------------------------------------------------------------------------


def _confound(
    variable: Variable, x: Array, groups: Array, label_score: Score | None, seed: int, step: Callable[[], None]
) -> Confound:
    try:
        score, reason = confounds.score_of(variable, x, groups, seed), ""
    except UsageError as error:
        score, reason = None, str(error)
    step()
    return Confound(variable.name, variable.classes, score, label_score, reason)


def _worst_first(confounds: Sequence[Confound]) -> list[Confound]:
    return sorted(confounds, key=lambda confound: -confound.from_vectors.low if confound.from_vectors else 1.0)


def _variables(texts: Columns, labels: Sequence[str], groups: Array) -> tuple[list[Variable], dict[str, str]]:
    """Variables to test, and the reasons why other columns are not tested."""
    variables, excluded = [], {}
    for name, values in texts.items():
        is_label = name in _LABEL_COLUMNS and _determines(values, labels)
        variable = "repeats the label" if is_label else Variable.of(name, values, groups)
        if isinstance(variable, str):
            excluded[name] = variable
        else:
            variables.append(variable)
    return variables, excluded


def _determines(values: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether a value determines the label, on rows where both are known."""
    pairs = {(value, label) for value, label in zip(values, labels, strict=True) if value and label}
    return len(pairs) == len({value for value, _ in pairs})


def _texts(
    store: Store, columns: Columns, images: Manifest | None, ignored: set[str], notes: list[str]
) -> dict[str, Sequence[str]]:
    """The columns and header fields that may be variables, by name."""
    own = {name: values for name, values in columns.items() if name not in _NO_VARIABLES | ignored and any(values)}
    own |= {"source folder": folders(store.image_ids, columns)}
    if images is None:
        return {**own, "file format": [suffix(name) for name in store.image_ids]}
    return {**own, **_of_headers(store, images, notes)}


def _of_headers(store: Store, images: Manifest, notes: list[str]) -> dict[str, Sequence[str]]:
    """Header fields of the images, matched by image_id."""
    row_of = {name: row for row, name in enumerate(images.image_ids) if name not in images.refused}
    paths = [images.paths[row_of[name]] if name in row_of else None for name in store.image_ids]
    if not any(paths):
        first = store.image_ids[0]
        why = images.refused.get(first, "")
        raise UsageError(
            f"{images.source} has none of the {len(store):,} images of {store.path}, such as {first!r}"
            + (f", which {why}." if why else ". Give the folder or CSV that was embedded.")
        )
    with Decoders([], DecodeSpec()) as decoders, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        headers = list(pool.map(lambda path: None if path is None else _header(decoders, path), paths))
    if n_without := headers.count(None):
        notes.append(f"the headers of {plural(n_without, 'image')} could not be read")
    fields = {"image width": "width", "image height": "height", "bit depth": "bits", "colour mode": "mode"}
    fields["file format"] = "kind"
    texts = {name: ["" if h is None else str(getattr(h, field)) for h in headers] for name, field in fields.items()}
    return {**texts, "aspect ratio": ["" if h is None else f"{h.width / max(h.height, 1):.3g}" for h in headers]}


def _header(decoders: Decoders, path: Path) -> Header | None:
    try:
        return decoders.header(path)
    except ImageError:
        return None
