"""How well the label is told without looking at an image: from its size, its format, its folder, the store's columns.

What tells a class apart from all others this way may be what a head has learnt instead. Each class against the rest,
from one variable and from all together, by decision trees on folds that no patient crosses: a tree cuts numbers where
it likes, so that neither a fine-grained age nor a size that is in the middle of the others escapes it.
Letters: n rows, k labelled rows, c classes.
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

WORTH_SAYING = 0.6  # AUROC; nearer to 0.5 a variable explains no score that is worth reporting
_MOST_LEAVES = 32
_LEAST_LEAF = 5  # rows
_LEAST_P = 1e-6
_NO_VARIABLES = frozenset({"group", "path", "split", "label", "kind", "finding", "problems", "mesh"})
_CODES = frozenset({"0", "1", "-1", "0.0", "1.0", "-1.0", ""})
_MOST_VARIABLES = 20
_KINDS = {"jpg": "jpeg", "jpe": "jpeg", "jfif": "jpeg", "tif": "tiff", "dcm": "dicom"}
TOGETHER = "all variables together"


@dataclass(frozen=True)
class Shortcut:
    """A class, and what tells it best from the rest without a look at an image.

    Attributes:
        label: the class, or the finding.
        variable: the name of a variable, of several that belong together, or `TOGETHER`.
        auroc, low, high: out of fold, with a 95 % interval; 0.5 is chance.
    """

    label: str
    variable: str
    auroc: float
    low: float
    high: float

    def __str__(self) -> str:
        numbers = f"{self.auroc:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.label} is told from {self.variable}{' alone' * (self.variable != TOGETHER)}: {numbers}"


@dataclass(frozen=True)
class Labels:
    """The label as numbers. Classes in too few groups for the folds are left out.

    Attributes:
        classes: c names; fewer than two where there is nothing to learn.
        rows: (k,) rows with one of them.
        y: (k,) their numbers.
        groups: (k,).
        folds: of the k rows; none where nothing can be learnt.
        seed: of everything that is drawn.
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
        """From n texts, empty where unknown, and (n,) group numbers, by folds of `splits.k_folds` or of `divide`; why
        nothing can be learnt is added to `notes`."""
        text = np.array(labels, dtype=object)
        n_groups = {name: len(np.unique(groups[text == name])) for name in sorted(set(labels) - {""})}
        classes = [name for name, n in n_groups.items() if n >= confounds.FOLDS]
        if few := [name for name in n_groups if name not in classes]:
            notes.append(f"labels in fewer than {confounds.FOLDS} groups are left out: {', '.join(few)}")
        rows = np.flatnonzero(np.isin(text, classes))
        y = np.array([classes.index(name) for name in text[rows]], dtype=np.int64)
        divide = divide or _k_folds
        return cls(classes, rows, y, groups[rows], _folds(y, groups[rows], classes, seed, notes, divide), seed)

    def told_by(self, *variables: Variable) -> Score | None:
        """How well variables alone, together, tell the label."""
        if not self.folds or not variables:
            return None
        x = np.concatenate([variable.predictors()[self.rows] for variable in variables], axis=1)
        logits = _out_of_fold(x, self.y, len(self.classes), self.folds, self.seed)
        return confounds.score(self.y, logits, self.groups, self.classes, self.seed)


def dealt(y: Array, groups: Array, classes: Sequence[str], seed: int) -> list[Fold]:
    """Folds of whole groups, dealt in turn from each class: of 6,000 groups in milliseconds, where `splits.k_folds`,
    that balances them better, takes seconds."""
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
        notes.append("there are no two classes to learn: nothing is said of labels")
        return []
    try:
        return divide(y, groups, classes, seed)
    except UsageError as error:
        notes.append(f"the label cannot be learnt: {error}")
        return []


def _out_of_fold(x: Array, y: Array, n_classes: int, folds: Sequence[Fold], seed: int) -> Array:
    """(n, c) log probabilities by trees that have not seen the row's fold."""
    from sklearn.tree import DecisionTreeClassifier

    logits = np.full((len(y), n_classes), np.log(_LEAST_P))
    for fold in folds:
        tree = DecisionTreeClassifier(max_leaf_nodes=_MOST_LEAVES, min_samples_leaf=_LEAST_LEAF, random_state=seed)
        tree.fit(x[fold.train], y[fold.train])
        p = np.maximum(tree.predict_proba(x[fold.val]), _LEAST_P)
        logits[np.ix_(fold.val, tree.classes_)] = np.log(p)
    return logits


def best(scores: Mapping[str, Score | None], label: str | None = None) -> list[Shortcut]:
    """Of each class what tells it best, the best told first; `TOGETHER` only where it tells clearly more than one.

    Args:
        scores: of the label from a variable each, or several, by name.
        label: the finding, where the classes are whether it is there; None for the names of the classes.
    """
    by_variable: dict[str, dict[str, OneClass]] = {}
    for variable, score in scores.items():
        for class_score in score.by_class if score else ():
            by_variable.setdefault(class_score.name, {})[variable] = class_score
    shortcuts = []
    for name, of_class in by_variable.items():
        alone = {variable: score for variable, score in of_class.items() if variable != TOGETHER} or of_class
        variable = max(alone, key=lambda key: alone[key].auroc)
        if TOGETHER in of_class and of_class[TOGETHER].low > of_class[variable].auroc:
            variable = TOGETHER
        strongest = of_class[variable]
        shortcuts.append(Shortcut(label or name, variable, strongest.auroc, strongest.low, strongest.high))
    return sorted(shortcuts, key=lambda shortcut: -shortcut.auroc)


def worth_saying(shortcuts: Sequence[Shortcut]) -> list[Shortcut]:
    """Those that are above chance and could explain something."""
    return [shortcut for shortcut in shortcuts if shortcut.low > CHANCE and shortcut.auroc >= WORTH_SAYING]


# --- what is known of the images of a store ---------------------------------------------------------------------------


def folders(image_ids: Sequence[str], columns: Columns) -> list[str]:
    """Of each name its folders, without those that are the split or the label."""
    empty = [""] * len(image_ids)
    rows = zip(image_ids, columns.get("split", empty), columns.get("label", empty), strict=True)
    return ["/".join(_other_folders(name.split("/")[:-1], split, label)) or "." for name, split, label in rows]


def _other_folders(parts: Sequence[str], split: str, label: str) -> Iterator[str]:
    return (part for part in parts if part != label and (not split or splits.split_name(part) != split))


def suffix(name: str) -> str:
    """The format that a file's name says it has."""
    extension = os.path.splitext(name)[1].lower().removeprefix(".")
    return _KINDS.get(extension, extension)


def in_store(
    image_ids: Sequence[str],
    columns: Columns,
    labels: Mapping[str, Sequence[str]],
    groups: Array,
    ignore: Sequence[str] = (),
    seed: int = 0,
) -> list[Shortcut]:
    """The shortcuts that names and columns of a store show by themselves: a second for 6,000 rows.

    Columns that are the label once more, and codes of findings beside findings, are no variables.

    Args:
        image_ids: n names.
        columns: n texts each.
        labels: n texts, empty where unknown: by "" of classes, or by the name of each finding.
        groups: (n,) group numbers.
        ignore: columns that are the label.
        seed: of the folds.
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
        numbered = Labels.of(of, groups, seed, [], dealt)
        scores = {variable.name: numbered.told_by(variable) for variable in variables[:_MOST_VARIABLES]}
        shortcuts += best(scores, label or None)
    return sorted(shortcuts, key=lambda shortcut: -shortcut.auroc)


def _is_label(values: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether a column is the label once more: its names, but for their case, or a small number for each of them."""
    pairs = {(value, label) for value, label in zip(values, labels, strict=True) if value and label}
    if len(pairs) != len({value for value, _ in pairs}) or len(pairs) != len({label for _, label in pairs}):
        return False
    codes = {str(number) for number in range(len(pairs) + 1)}
    return all(value.casefold() == label.casefold() or value in codes for value, label in pairs)


def as_json(shortcuts: Sequence[Shortcut]) -> list[dict[str, Any]]:
    """For an answer to a script."""
    return [asdict(shortcut) for shortcut in shortcuts]
