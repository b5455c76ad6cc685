"""Labels and groups in, index arrays out; the same seed gives the same answer.

The one rule: rows of one group (a patient, a study, one image stored twice) are never on both sides. A split is handed
on as a JSON object of row names, which outlives the order of the rows. Knows nothing of vectors or files. Stratifying
is paid in time: five folds of 112,120 rows in 30,000 groups take about 5 s, 24 s if each row is its own group.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.specs import MAX_FOLDS, MAX_REPEATS

Array = np.ndarray[Any, Any]

TRAIN, VAL, TEST = "train", "val", "test"
_SPELLINGS = {
    TRAIN: "train training trn tr",
    VAL: "val valid validation vali dev devel development",
    TEST: "test testing tst ts te eval evaluation holdout",
}
_SUBSETS = {word: name for name, words in _SPELLINGS.items() for word in words.split()}
_FILLERS = frozenset(
    {
        "the", "set", "sets", "subset", "subsets", "split", "part", "data", "dataset", "image", "images", "img", "imgs",
        "folder", "file", "files", "sample", "samples", "cxr", "cxrs", "xray", "xrays", "v", "x", "px",
        "new", "final", "resized",
    }
)  # fmt: skip
_COMPOUND = re.compile(r"(sets?|data|images?|imgs?)\Z")  # of `testset`
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")  # of `imagesTr`, `01_train` and `TEST-set2`

NO_FINDING = "none"
FORMAT, VERSION = "featcache.split", 1
_FURTHER_SEEDS = 20
_MOST_RARE = 20  # classes that an error names
_LEAVE_OUT = "leave such classes out (min_images, drop_classes) or join them (merge_classes)"


def split_name(text: str) -> str | None:
    """`train`, `val` or `test` for the spellings that people use; None for other words.

    Case, numbers and words such as "set" or "images" do not count: `Training`, `01_train`, `test-set`, `valid_images`.
    """
    words = [word.lower() for word in _WORD.findall(text)]
    words = [_COMPOUND.sub("", word) for word in words if word not in _FILLERS]
    return _SUBSETS.get("".join(words)) if words in (["hold", "out"], words[:1]) else None


@dataclass(frozen=True)
class Split:
    """Row numbers of the three sides, each ascending. `test` may be empty."""

    train: Array
    val: Array
    test: Array

    def sides(self) -> dict[str, Array]:
        return {TRAIN: self.train, VAL: self.val, TEST: self.test}

    def named(self, row_names: Sequence[str]) -> dict[str, list[str]]:
        """The names of the rows on each side, sorted: the same for the same split, whatever the order of the rows."""
        return {side: sorted(row_names[i] for i in rows) for side, rows in self.sides().items()}


@dataclass(frozen=True)
class Fold:
    """One of the k parts of a repeat: it is `val`, the others are `train`. Row numbers, ascending; counts from 0."""

    train: Array
    val: Array
    repeat: int
    number: int


def merge_groups(*keys: Sequence[str]) -> Array:
    """(n,) group numbers such that rows which share a value in any of the keys share a number.

    Chains count: a shares a patient with b, b shares its bytes with c, so a, b and c are one group. An empty value
    stands for "unknown" and joins nothing.
    """
    from scipy.sparse import coo_array  # here: names of splits are needed where a third of a second matters
    from scipy.sparse.csgraph import connected_components

    n = len(keys[0])
    rows, nodes = [], []
    numbers: dict[tuple[int, str], int] = {}
    for k, key in enumerate(keys):
        for row, value in enumerate(key):
            if value:
                rows.append(row)
                nodes.append(n + numbers.setdefault((k, value), len(numbers)))
    size = n + len(numbers)
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, nodes)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][:n])


def hold_out(labels: Array, groups: Array, fraction: float, seed: int) -> tuple[Array, Array]:
    """Row numbers (kept, held out): about `fraction` of the rows held out, stratified by label, no group on both sides.

    scikit-learn's StratifiedGroupKFold makes k folds, j of which are held out, with j/k the nearest fraction to the one
    asked for; k is at most 20 and at most the groups of the rarest class. With few or large groups the share comes out
    near, not exactly, as asked.

    Raises:
        UsageError: a class in fewer than two groups, with the counts.
    """
    if not 0.0 < fraction < 1.0:
        raise UsageError(f"the validation fraction must be between 0 and 1, got {fraction}.")
    most = min(20, _fewest_groups(labels, groups))
    share = Fraction(fraction).limit_denominator(most)
    share = max(Fraction(1, most), min(share, Fraction(most - 1, most)))
    parts = _stratified_parts(labels, groups, share.denominator, seed)
    held_out = np.sort(np.concatenate(parts[: share.numerator]))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def carve(labels: Array, groups: Array, rows: Array, fraction: float, seed: int) -> tuple[Array, Array]:
    """`hold_out` among some rows only: (kept, carved), both in the numbering of `labels`, ascending.

    Takes the small set for early stopping out of the training rows of a fold. The order of `rows` and what stands
    outside them make no difference.

    Args:
        labels: (n,) classes.
        groups: (n,) group numbers.
        rows: the row numbers to divide.
        fraction: the share of `rows` to carve out, as near as the groups allow.
        seed: as in `hold_out`.

    Raises:
        UsageError: among these rows a class is in fewer than two groups, with the counts.
    """
    rows = np.unique(rows)
    assert np.issubdtype(rows.dtype, np.integer), "row numbers, not a mask"
    kept, carved = hold_out(labels[rows], groups[rows], fraction, seed)
    return rows[kept], rows[carved]


def k_folds(labels: Array, groups: Array, k: int, seed: int, repeats: int = 1) -> list[Fold]:
    """Stratified group k-fold: k folds per repeat, each row held once per repeat, no group on both sides of a fold.

    Repeat r is scikit-learn's StratifiedGroupKFold shuffled with seed + r. That deals groups out greedily and may leave
    a fold without a class where groups are uneven; then up to 20 further seeds are tried, none of them the first seed
    of another repeat.

    Args:
        labels: (n,) classes, numbers or words; for tasks of several findings those of `stratum`.
        groups: (n,) group numbers, as from `merge_groups`.
        k: the number of folds, 2 to 100.
        seed: the seed of the first repeat.
        repeats: how often all rows are dealt out anew, 1 to 1000.

    Returns:
        k × repeats folds, by repeat, then by number.

    Raises:
        UsageError: k or repeats out of range, a class in fewer than k groups, a group larger than a fold, or groups so
            uneven that a fold stays without a class; with the counts.
    """
    assert len(labels) == len(groups)
    _check_counts(k, repeats)
    _check_groups(labels, groups, k)
    return [fold for repeat in range(repeats) for fold in _one_repeat(labels, groups, k, seed, repeat)]


def stratum(
    labels: Array, groups: Array | None = None, min_groups: int = 1, names: Sequence[str] | None = None
) -> Array:
    """One class per row of a task of several findings, to stratify by: the rarest finding the row has.

    Rarest means positive in the fewest groups; of equals the first. Findings in fewer than `min_groups` groups do not
    count, and no stratum returned is in fewer, unless it is the only one: with `min_groups=k` the strata never forbid k
    folds. To that end small strata join "none", and a "none" that is still too small joins the most frequent stratum.

    Args:
        labels: (n, c), 1 for a finding, 0 for its absence, NaN for unknown, which counts as absent.
        groups: (n,) group numbers; without them each row is a group of its own.
        min_groups: the fewest groups a stratum may be in.
        names: c names of the findings; their column numbers without.

    Returns:
        (n,) strings, names of findings or "none".

    Raises:
        UsageError: labels other than 0, 1 and NaN, with their number and the first.
    """
    positive = _positive(labels)
    groups = np.arange(len(labels)) if groups is None else groups
    names = [str(column) for column in range(positive.shape[1])] if names is None else names
    n_groups = np.array([len(np.unique(groups[rows])) for rows in positive.T], dtype=np.int64)  # (c,)
    rarest_first = np.argsort(n_groups, kind="stable")
    strata = np.full(len(labels), NO_FINDING, dtype=object)
    for column in rarest_first[::-1]:  # the rarest is written last, over the others
        if n_groups[column] >= min_groups:
            strata[positive[:, column]] = names[column]
    return _merge_small(strata, groups, min_groups).astype(str)


def to_json(test: Array, folds: Sequence[Fold], row_names: Sequence[str]) -> dict[str, Any]:
    """A split as a JSON object that holds for the same rows in any order, in any store.

    `train` is null throughout where each fold trains on everything that the object holds somewhere except its own held
    rows, as those of `k_folds` do: five folds of 100,000 names then store each name once, not five times. Names may be
    any text, also such as stand for bytes that are not UTF-8.

    Args:
        test: row numbers no fold may use; may be empty.
        folds: each with rows on both sides.
        row_names: (n,) names, all different.

    Returns:
        format, version, test, folds (repeat, number, train, held), names sorted, and the sha256 of the canonical JSON
        of the rest (sorted keys, no spaces, ASCII).

    Raises:
        UsageError: two rows of one name, a fold with an empty side, a row on two sides.
    """
    names = _different_names(row_names)
    val = np.unique(np.concatenate([fold.val for fold in folds])) if folds else np.array([], dtype=np.int64)
    compact = all(np.array_equal(fold.train, np.setdiff1d(val, fold.val)) for fold in folds)
    test_names = _names_of(test, names)
    entries = []
    for fold in folds:
        train_names, held_names = _names_of(fold.train, names), _names_of(fold.val, names)
        _check_sides(set(test_names), set(train_names), set(held_names), _called(fold.repeat, fold.number))
        sides = {"train": None if compact else train_names, "val": held_names}
        entries.append({"repeat": int(fold.repeat), "number": int(fold.number), **sides})
    record = {"format": FORMAT, "version": VERSION, "test": test_names, "folds": entries}
    return {**record, "sha256": _digest(record)}


def from_json(record: Any, row_names: Sequence[str]) -> tuple[Array, list[Fold], int]:
    """The split of `to_json` in the row numbers of a store: (test rows, folds, number of names the store lacks).

    Rows of the store which the object does not name are on no side.

    Args:
        record: what `json.loads` returned.
        row_names: (n,) names of the store's rows, all different.

    Raises:
        UsageError: another format or version, a digest that does not match, a wrong shape, a row on two sides, two rows
            of one name in the store, a side of which the store has no row.
    """
    _check_record(record)
    numbers = {name: row for row, name in enumerate(_different_names(row_names))}
    held_somewhere = {name for entry in record["folds"] for name in entry["val"]}
    named, folds = set(record["test"]) | held_somewhere, []
    for entry in record["folds"]:
        val = set(entry["val"])
        train = held_somewhere - val if entry["train"] is None else set(entry["train"])
        fold = _called(entry["repeat"], entry["number"])
        _check_sides(set(record["test"]), train, val, fold)
        rows = _rows_of(train, numbers, f"training side of {fold}"), _rows_of(val, numbers, f"held side of {fold}")
        folds.append(Fold(*rows, entry["repeat"], entry["number"]))
        named |= train
    return _rows_of(set(record["test"]), numbers, "test side"), folds, len(named - numbers.keys())


def check_nothing_crosses(split: Split, groups: Array, row_names: Sequence[str]) -> None:
    """Refuses a split in which a group is on two sides.

    Raises:
        UsageError: naming the number of such groups and rows of the first five.
    """
    side_of = np.full(len(groups), "", dtype=object)
    for side, rows in split.sides().items():
        side_of[rows] = side
    sides_of: dict[int, set[str]] = {}
    for group, side in zip(groups, side_of, strict=True):
        if side:
            sides_of.setdefault(int(group), set()).add(side)
    crossing = [group for group, sides in sides_of.items() if len(sides) > 1]
    if crossing:
        raise UsageError(_crossing_message(crossing, groups, side_of, row_names))


def _crossing_message(crossing: list[int], groups: Array, side_of: Array, row_names: Sequence[str]) -> str:
    examples = []
    for group in crossing[:5]:
        rows = np.flatnonzero((groups == group) & (side_of != "")).tolist()
        first = rows[0]
        other = next(r for r in rows if side_of[r] != side_of[first])
        examples.append(f"{row_names[first]} ({side_of[first]}) and {row_names[other]} ({side_of[other]})")
    return (
        f"{len(crossing)} group(s) or identical images are in more than one subset of the given split, so its "
        f"scores would be too good. The first: {'; '.join(examples)}. Mend the split column, or group by another "
        f"column with `group_by`."
    )


def _fewest_groups(labels: Array, groups: Array) -> int:
    """The number of groups of the class that is in the fewest."""
    n_groups = _groups_per_class(labels, groups)
    if rare := [label for label, n in n_groups.items() if n < 2]:
        classes_text = [f"class {label} has {_n_rows(labels, label)} image(s), all of one group" for label in rare]
        raise UsageError(
            f"{_listed(classes_text)}: one subset of a hold-out would be without it. Add images of other "
            f"groups, or give a split column; or {_LEAVE_OUT}."
        )
    return min(n_groups.values())


def _listed(classes: Sequence[str]) -> str:
    more = f", and so have {len(classes) - _MOST_RARE} other classes" if len(classes) > _MOST_RARE else ""
    return ", and ".join(classes[:_MOST_RARE]) + more


def _n_rows(labels: Array, label: str) -> int:
    return int(np.sum(labels.astype(str) == label))


def _groups_per_class(labels: Array, groups: Array) -> dict[str, int]:
    return {str(label): len(np.unique(groups[labels == label])) for label in np.unique(labels)}


def _stratified_parts(labels: Array, groups: Array, k: int, seed: int) -> list[Array]:
    """k arrays of row numbers, ascending, that hold each row once and no group twice."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    return [val for _, val in folds.split(np.zeros(len(labels)), labels, groups)]


def _check_counts(k: int, repeats: int) -> None:
    if not 2 <= k <= MAX_FOLDS:
        raise UsageError(f"the number of folds must be from 2 to {MAX_FOLDS}, got {k}.")
    if not 1 <= repeats <= MAX_REPEATS:
        raise UsageError(f"the number of repeats must be from 1 to {MAX_REPEATS}, got {repeats}.")


def _check_groups(labels: Array, groups: Array, k: int) -> None:
    """Refuses what no draw of k folds can mend: no rows, a class in too few groups, a group too large."""
    if not len(labels):
        raise UsageError("there are no labelled rows to divide into folds.")
    n_groups = _groups_per_class(labels, groups)
    if rare := {label: n for label, n in n_groups.items() if n < k}:
        classes_text = [
            f"class {label} has {_n_rows(labels, label)} row(s) in {n} group(s)" for label, n in rare.items()
        ]
        remedy = _use_fewer(min(rare.values())).removesuffix(".")
        raise UsageError(f"{_listed(classes_text)}, too few for {k} folds: {remedy}; or {_LEAVE_OUT}.")
    largest, fold_rows = int(np.unique(groups, return_counts=True)[1].max()), -(-len(labels) // k)
    if largest > fold_rows:
        raise UsageError(
            f"the largest group has {largest} rows, more than one of {k} folds of {len(labels)} rows holds "
            f"({fold_rows}): {_use_fewer(-(-len(labels) // (largest - 1)) - 1)}"
        )


def _use_fewer(most: int) -> str:
    if most >= 2:
        return f"use at most {most} folds."
    return "not even two folds are possible. Add rows of other groups, or group by another column."


def _one_repeat(labels: Array, groups: Array, k: int, seed: int, repeat: int) -> list[Fold]:
    """The folds of the first draw that leaves every class in every fold, hence also in all others together."""
    _, codes = np.unique(labels, return_inverse=True)
    for attempt in range(1 + _FURTHER_SEEDS):
        drawn_with = (seed + repeat + attempt * MAX_REPEATS) % 2**32  # what a RandomState takes
        parts = _stratified_parts(codes, groups, k, drawn_with)
        rows_of = np.stack([np.bincount(codes[val], minlength=codes.max() + 1) for val in parts])  # (k, c)
        if rows_of.all():
            everything = np.arange(len(codes))
            return [Fold(np.setdiff1d(everything, val), val, repeat, number) for number, val in enumerate(parts)]
    lacking = np.flatnonzero((rows_of == 0).any(axis=0))[0]
    raise UsageError(_uneven_message(labels, groups, labels[codes == lacking][0], k))


def _uneven_message(labels: Array, groups: Array, lacking: Any, k: int) -> str:
    rows = np.flatnonzero(labels == lacking)
    return (
        f"{1 + _FURTHER_SEEDS} draws of {k} folds each left a fold without a class, the last without class {lacking} ("
        f"{len(rows)} row(s) in {len(np.unique(groups[rows]))} groups). The groups are too uneven: {_use_fewer(k - 1)}"
    )


def _positive(labels: Array) -> Array:
    """(n, c) booleans: where a finding is present."""
    assert labels.ndim == 2
    labels = labels.astype(np.float64)
    strange = labels[~(np.isnan(labels) | (labels == 0) | (labels == 1))]
    if len(strange):
        raise UsageError(
            f"{len(strange)} label(s) are neither 0, 1 nor empty, the first is {strange[0]:g}. Decide what they stand "
            f"for and give 0, 1 or an empty cell."
        )
    return np.asarray(labels == 1)


def _merge_small(strata: Array, groups: Array, min_groups: int) -> Array:
    for value, n_groups in _groups_per_class(strata, groups).items():
        if n_groups < min_groups:
            strata[strata == value] = NO_FINDING
    left = _groups_per_class(strata, groups)
    if left.pop(NO_FINDING, min_groups) < min_groups and left:
        strata[strata == NO_FINDING] = max(left, key=lambda value: left[value])
    return strata


def _different_names(row_names: Sequence[str]) -> list[str]:
    """The names as JSON returns them: two halves of a surrogate pair come back as the one character they encode."""
    names: list[str] = json.loads(json.dumps(list(row_names)))
    if n_twice := len(names) - len(set(names)):
        raise UsageError(f"{n_twice} row name(s) are there more than once, so a split by name would be ambiguous.")
    return names


def _names_of(rows: Array, names: Sequence[str]) -> list[str]:
    return sorted(names[row] for row in rows)


def _rows_of(names: set[str], numbers: dict[str, int], side: str) -> Array:
    rows = np.array(sorted(numbers[name] for name in names & numbers.keys()), dtype=np.int64)
    if names and not len(rows):
        raise UsageError(
            f"the {side} names {len(names)} row(s), none of which is in this store. Was the split made for another?"
        )
    return rows


def _called(repeat: int, number: int) -> str:
    return f"fold {number} of repeat {repeat}"


def _check_sides(test: set[str], train: set[str], val: set[str], fold: str) -> None:
    if not train or not val:
        raise UsageError(f"{fold} has {len(train)} training and {len(val)} validation rows; it needs both.")
    if twice := (test & train) | (test & val) | (train & val):
        raise UsageError(
            f"{fold} has {len(twice)} row(s) in two subsets, the first {min(twice)!a}. Make the split again."
        )


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def _check_record(record: Any) -> None:
    format_ = record.get("format") if isinstance(record, dict) else None
    if format_ != FORMAT:
        raise UsageError(f"this is not a split: its format is {format_!r}, not {FORMAT!r}.")
    if record.get("version") != VERSION:
        raise UsageError(
            f"this split is of version {record.get('version')!r}, this release reads version {VERSION}. Read it with "
            f"the featcache that wrote it."
        )
    if record.get("sha256") != _digest({key: value for key, value in record.items() if key != "sha256"}):
        raise UsageError("the split's sha256 is not that of its content: it was changed or damaged. Make it again.")
    if fault := _shape_fault(record):
        raise UsageError(f"the split has a wrong shape: {fault}.")


def _shape_fault(record: dict[str, Any]) -> str | None:
    """What keeps a record from being read, in words; None where nothing does."""
    folds = record.get("folds")
    if not _are_names(record.get("test")):
        return "`test` is not a list of different names"
    if not isinstance(folds, list) or not all(isinstance(entry, dict) for entry in folds):
        return "`folds` is not a list of objects"
    for place, entry in enumerate(folds):
        if not all(type(entry.get(key)) is int and entry[key] >= 0 for key in ("repeat", "number")):
            return f"`repeat` or `number` of entry {place} of `folds` is not a whole number from 0"
        if not _are_names(entry.get("val")) or not (entry.get("train", 0) is None or _are_names(entry.get("train"))):
            return f"`train` or `val` of entry {place} of `folds` is not a list of different names"
    if len({(entry["repeat"], entry["number"]) for entry in folds}) < len(folds):
        return "`folds` has the same fold more than once"
    return None


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)
