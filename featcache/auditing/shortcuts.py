"""Shortcuts: the label predicted without the image, from its size, format, folder and the columns of the store.

A variable that predicts a class may be what a head has learned instead. Each class is predicted against the rest, from
each variable and from all together, by decision trees on grouped folds; trees also find intervals of a number.
Letters: n rows, k labelled_rows rows, c classes.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from featcache import splits
from featcache.auditing import confounds
from featcache.auditing.confounds import CHANCE, OneClass, Score, Variable
from featcache.errors import UsageError
from featcache.splits import Fold
from featcache.tables.missing import without_missing

Array = np.ndarray[Any, Any]
Columns = Mapping[str, Sequence[str]]
Divide = Callable[[Array, Array, Sequence[str], int], list[Fold]]

NOTABLE_AUROC = 0.6  # nearer to 0.5 a variable explains no reported performance
_MOST_LEAVES = 32
_LEAST_LEAF = 5  # rows
_LEAST_P = 1e-6
_NO_VARIABLES = frozenset({"group", "path", "split", "label", "kind", "finding", "problems", "mesh"})
_CODES = frozenset({"0", "1", "-1", "0.0", "1.0", "-1.0", ""})
_MOST_VARIABLES = 20
_KINDS = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "tif": "tiff", "dcm": "dicom"}
ALL_VARIABLES = "all variables together"


@dataclass(frozen=True)
class Shortcut:
    """The strongest predictor of a class without the image.

    Attributes:
        label: the class, or the label of a multi-label task.
        variable: name of a variable, of several joint variables, or `ALL_VARIABLES`.
        auroc, low, high: out-of-fold AUROC with its 95 % confidence interval; 0.5 is chance.
    """

    label: str
    variable: str
    auroc: float
    low: float
    high: float

    def __str__(self) -> str:
        numbers = f"{self.auroc:.3f} [{self.low:.3f}, {self.high:.3f}]"
        alone = "" if self.variable == ALL_VARIABLES else " alone"
        return f"AUROC of {self.label} predicted from {self.variable}{alone}: {numbers}"


@dataclass(frozen=True)
class Labels:
    """The label as numbers. Classes in too few groups for the folds are excluded.

    Attributes:
        classes: c names.
        rows: (k,) rows with one of these classes.
        y: (k,) class numbers.
        groups: (k,) group numbers.
        folds: folds of the k rows; empty if the label cannot be learned.
        seed: seed of folds and trees.
    """

    classes: Sequence[str]
    rows: Array
    y: Array
    groups: Array
    folds: Sequence[Fold]
    seed: int

    @classmethod
    def of(
        cls, labels: Sequence[str], groups: Array, seed: int, notes: list[str], divide: Divide | None = None
    ) -> Self:
        """From n texts (empty for unknown) and (n,) group numbers; folds are those of `divide`, or `splits.k_folds`.
        The reason why a label cannot be learned is appended to `notes`."""
        text = np.array(labels, dtype=object)
        n_groups = {name: len(np.unique(groups[text == name])) for name in sorted(set(labels) - {""})}
        classes = [name for name, n in n_groups.items() if n >= confounds.FOLDS]
        if few := [name for name in n_groups if name not in classes]:
            notes.append(f"classes in fewer than {confounds.FOLDS} groups are excluded: {', '.join(few)}")
        rows = np.flatnonzero(np.isin(text, classes))
        y = np.array([classes.index(name) for name in text[rows]], dtype=np.int64)
        divide = divide or _k_folds
        return cls(classes, rows, y, groups[rows], _folds(y, groups[rows], classes, seed, notes, divide), seed)

    def score_from(self, *variables: Variable) -> Score | None:
        """The AUROC of the label predicted from some variables together."""
        if not self.folds or not variables:
            return None
        x = np.concatenate([variable.predictors()[self.rows] for variable in variables], axis=1)
        logits = _out_of_fold(x, self.y, len(self.classes), self.folds, self.seed)
        return confounds.score(self.y, logits, self.groups, self.classes, self.seed)


def dealt_folds(y: Array, groups: Array, classes: Sequence[str], seed: int) -> list[Fold]:
    """Folds of whole groups, dealt in turn by class: milliseconds for 6,000 groups, where the better balanced
    `splits.k_folds` takes seconds."""
    names, first, place = np.unique(groups, return_index=True, return_inverse=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(names)), y[first]))
    number = np.empty(len(names), dtype=np.int64)
    number[order] = np.arange(len(names)) % confounds.FOLDS
    of_row = number[place]
    return [Fold(np.flatnonzero(of_row != i), np.flatnonzero(of_row == i), i, 0) for i in range(confounds.FOLDS)]


def _k_folds(y: Array, groups: Array, classes: Sequence[str], seed: int) -> list[Fold]:
    return list(splits.k_folds(np.array(classes)[y], groups, confounds.FOLDS, seed))


def _folds(y: Array, groups: Array, classes: Sequence[str], seed: int, notes: list[str], divide: Divide) -> list[Fold]:
    if len(classes) < 2:
        notes.append("the labels have fewer than two classes, so they were not checked")
        return []
    try:
        return divide(y, groups, classes, seed)
    except UsageError as error:
        notes.append(f"the label cannot be predicted: {error}")
        return []


def _out_of_fold(x: Array, y: Array, n_classes: int, folds: Sequence[Fold], seed: int) -> Array:
    """(n, c) out-of-fold log probabilities of decision trees."""
    from sklearn.tree import DecisionTreeClassifier

    logits = np.full((len(y), n_classes), np.log(_LEAST_P))
    for fold in folds:
        tree = DecisionTreeClassifier(max_leaf_nodes=_MOST_LEAVES, min_samples_leaf=_LEAST_LEAF, random_state=seed)
        tree.fit(x[fold.train], y[fold.train])
        p = np.maximum(tree.predict_proba(x[fold.val]), _LEAST_P)
        logits[np.ix_(fold.val, tree.classes_)] = np.log(p)
    return logits


def best(scores: Mapping[str, Score | None], label: str | None = None) -> list[Shortcut]:
    """The strongest predictor of each class, the strongest first; `ALL_VARIABLES` only if clearly better than one.

    Args:
        scores: AUROC of the label predicted from a variable, or several, by name.
        label: the label of a multi-label task; None for the names of the classes.
    """
    by_variable: dict[str, dict[str, OneClass]] = {}
    for variable, score in scores.items():
        for class_score in score.by_class if score else ():
            by_variable.setdefault(class_score.name, {})[variable] = class_score
    shortcuts = []
    for name, of_class in by_variable.items():
        alone = {variable: score for variable, score in of_class.items() if variable != ALL_VARIABLES} or of_class
        variable = max(alone, key=lambda key: alone[key].auroc)
        if ALL_VARIABLES in of_class and of_class[ALL_VARIABLES].low > of_class[variable].auroc:
            variable = ALL_VARIABLES
        strongest = of_class[variable]
        shortcuts.append(Shortcut(label or name, variable, strongest.auroc, strongest.low, strongest.high))
    return sorted(shortcuts, key=lambda shortcut: -shortcut.auroc)


def notable(shortcuts: Sequence[Shortcut]) -> list[Shortcut]:
    """The shortcuts above chance that could explain a performance."""
    return [shortcut for shortcut in shortcuts if shortcut.low > CHANCE and shortcut.auroc >= NOTABLE_AUROC]


# --- variables of a store ---------------------------------------------------------------------------------------------


def folders(image_ids: Sequence[str], columns: Columns) -> list[str]:
    """The folders of each image_id, without folders named like the split or the label."""
    empty = [""] * len(image_ids)
    rows = zip(image_ids, columns.get("split", empty), columns.get("label", empty), strict=True)
    return ["/".join(_other_folders(name.split("/")[:-1], split, label)) or "." for name, split, label in rows]


def _other_folders(parts: Sequence[str], split: str, label: str) -> Iterator[str]:
    return (part for part in parts if part != label and (not split or splits.split_name(part) != split))


def suffix(name: str) -> str:
    """The file format by the suffix."""
    extension = os.path.splitext(name)[1].lower().removeprefix(".")
    return _KINDS.get(extension, extension)


def column_shortcuts(
    image_ids: Sequence[str],
    columns: Columns,
    labels: Mapping[str, Sequence[str]],
    groups: Array,
    ignore: Sequence[str] = (),
    seed: int = 0,
) -> list[Shortcut]:
    """Shortcuts by image_ids and columns of a store; takes a second for 6,000 rows.

    Columns that repeat the label, and other label columns of a multi-label task, are not tested.

    Args:
        image_ids: n image_ids.
        columns: n texts each.
        labels: n texts, empty for unknown: under "" for classes, or under the name of each label.
        groups: (n,) group numbers.
        ignore: label columns.
        seed: seed of the folds.
    """
    texts: dict[str, Sequence[str]] = {
        "source folder": folders(image_ids, columns),
        "file format": [suffix(name) for name in image_ids],
    }
    of_findings = "" not in labels
    for name, values in columns.items():
        is_label = any(_is_label(values, of) for of in labels.values()) or (of_findings and set(values) <= _CODES)
        if name not in _NO_VARIABLES | {*ignore} and not is_label:
            texts[name] = without_missing(values)
    variables = [v for name, of in texts.items() if isinstance(v := Variable.of(name, of, groups), Variable)]
    shortcuts: list[Shortcut] = []
    for label, of in labels.items():
        numbered = Labels.of(of, groups, seed, [], dealt_folds)
        scores = {variable.name: numbered.score_from(variable) for variable in variables[:_MOST_VARIABLES]}
        shortcuts += best(scores, label or None)
    return sorted(shortcuts, key=lambda shortcut: -shortcut.auroc)


def _is_label(values: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether a column repeats the label: the same names up to case, or a small number for each."""
    pairs = {(value, label) for value, label in zip(values, labels, strict=True) if value and label}
    if len(pairs) != len({value for value, _ in pairs}) or len(pairs) != len({label for _, label in pairs}):
        return False
    codes = {str(number) for number in range(len(pairs) + 1)}
    return all(value.casefold() == label.casefold() or value in codes for value, label in pairs)


def as_json(shortcuts: Sequence[Shortcut]) -> list[dict[str, Any]]:
    """Shortcuts as JSON values."""
    return [asdict(shortcut) for shortcut in shortcuts]
