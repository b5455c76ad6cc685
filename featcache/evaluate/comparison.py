"""How a Run does on a set from elsewhere beside how it did on its own rows.

The two have no image in common, so the difference of a number has an unpaired interval. The own rows are those of the
Run's test subset; of a Run without one those of outer folds, or of validation, which it is then said.
Letters: n rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.errors import CorruptStore, UsageError
from featcache.predict.predictor import Predictor
from featcache.provenance import Json
from featcache.runs import Run
from featcache.runs.subsets import subsets_of
from featcache.training.summary import OUTER, TEST, VAL, Said

Array = np.ndarray[Any, Any]

SUBSETS = {TEST: "test", OUTER: "outer folds", VAL: "validation"}
_NAMES = {"auroc": "AUROC", "recall": "sensitivity"}
_MAIN = ("auroc", "accuracy", "balanced_accuracy", "recall", "specificity")


@dataclass(frozen=True)
class OwnRows:
    """The rows of a Run whose numbers are its result.

    Attributes:
        subset: TEST, OUTER or VAL.
        labels: (n,) class numbers, or (n, c) findings.
        logits: (n, c).
        groups: (n,) numbers.
    """

    subset: str
    labels: Array
    logits: Array
    groups: Array


def own_rows(run: Run) -> OwnRows | str:
    """What a Run predicted for its own rows; or why that is not at hand."""
    try:
        task, protocol = run.task(), run.protocol()
        subsets = subsets_of(run, task, protocol)
    except (UsageError, CorruptStore) as error:
        return str(error)
    name = next(name for name in SUBSETS if name in subsets)
    rows = subsets[name].rows
    return OwnRows(name, task.labels[rows], subsets[name].logits, protocol.groups[rows])


def compared(predictor: Predictor, said: Said, is_shared: bool) -> tuple[Json, list[str]]:
    return None, []
