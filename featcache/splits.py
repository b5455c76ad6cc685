"""Labels and groups in, index arrays out; the same seed gives the same answer.

The one rule: rows of one group (a patient, a study, one image stored twice) are never on both sides. Knows nothing of
vectors or files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from featcache.errors import UsageError

Array = np.ndarray[Any, Any]

TRAIN, VAL, TEST = "train", "val", "test"
_SPELLINGS = {"train": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}


def split_name(text: str) -> str | None:
    """`train`, `val` or `test` for the spellings people use (`valid`, `validation`, any case); None for other words."""
    return _SPELLINGS.get(text.strip().lower())


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
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(n_splits=share.denominator, shuffle=True, random_state=seed)
    parts = [held for _, held in folds.split(np.zeros(len(labels)), labels, groups)]
    held_out = np.sort(np.concatenate(parts[: share.numerator]))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


def check_nothing_crosses(split: Split, groups: Array, row_names: Sequence[str]) -> None:
    """Refuses a split in which a group is on two sides.

    Raises:
        UsageError: naming the number of such groups and rows of the first five.
    """
    side_of = np.full(len(groups), "", dtype=object)
    for side, rows in split.sides().items():
        side_of[rows] = side
    seen: dict[int, set[str]] = {}
    for group, side in zip(groups, side_of, strict=True):
        if side:
            seen.setdefault(int(group), set()).add(side)
    crossing = [group for group, sides in seen.items() if len(sides) > 1]
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
        f"{len(crossing)} group(s) or identical images are on two sides of the given split, so its scores would be too "
        f"good. The first: {'; '.join(examples)}. Mend the split column, or group by another column with --group-by."
    )


def _fewest_groups(labels: Array, groups: Array) -> int:
    """The number of groups of the class that is in the fewest."""
    n_groups = {str(label): len(np.unique(groups[labels == label])) for label in np.unique(labels)}
    rarest = min(n_groups, key=lambda label: n_groups[label])
    if n_groups[rarest] < 2:
        n = int(np.sum(labels.astype(str) == rarest))
        raise UsageError(
            f"class {rarest} has {n} image(s), all of one group: one side of a hold-out would be without it. Add "
            f"images of other groups, or give a split column."
        )
    return n_groups[rarest]
