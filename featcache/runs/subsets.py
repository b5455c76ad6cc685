"""What a head predicted for the rows of each subset (training, validation, test …), as a `predictions.csv` says.

Probabilities are those of the file; their logarithms serve as logits, which give the same softmax, the same order and
the same numbers. What is read is compared with the split and with the counts of the record. Computes no logits.
Letters: n rows of a subset, c classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featcache import durable, splits
from featcache.errors import CorruptStore
from featcache.names import printable
from featcache.runs.run import Run
from featcache.splits.protocol import Protocol
from featcache.splits.task import Task

Array = np.ndarray[Any, Any]

TRAIN, VAL, TEST = splits.TRAIN, splits.VAL, splits.TEST
OUTER = "outer"  # rows that folds around folds hold out
EXTERNAL = "external"  # of a set from elsewhere
SUBSETS = (TRAIN, VAL, OUTER, TEST, EXTERNAL)
_LEAST = 1e-300  # a probability of 0 was rounded to it
_ROUNDED = 1e-6  # probabilities are kept with nine digits
_FIRST = ["image_id", "split", "fold", "label", "prediction"]
_AT = "at_operating_point"


@dataclass(frozen=True)
class Subset:
    """Rows of one subset, and what the head predicted for them.

    Attributes:
        rows: (n,) numbers of rows of the task.
        logits: (n, c), of a softmax over classes or of a sigmoid per finding.
        p: (n, c) probabilities.
        predicted: (n,) class numbers, at the operating point where there is one; (n, c) of 0 and 1 for findings.
        argmax: the same without an operating point.
    """

    rows: Array
    logits: Array
    p: Array
    predicted: Array
    argmax: Array

    def __len__(self) -> int:
        return len(self.rows)


def subsets_of(run: Run, task: Task, protocol: Protocol) -> dict[str, Subset]:
    """What `predictions.csv` says, once it is seen to be of these rows and of the numbers of the record."""
    path = run.path / "predictions.csv"
    predictions = run.table(path.name)
    if predictions is None:
        raise CorruptStore(f"{path} is gone. Make the Run again.")
    try:
        subsets = _parsed(*predictions, task)
        _check_rows(subsets, _expected(protocol))
        _check_counts(run, task, subsets)
    except (KeyError, ValueError, IndexError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise CorruptStore(f"{path} is damaged: {reason}. Make the Run again.") from error
    is_decided = OUTER not in subsets or TEST in subsets  # at the operating point, where there is one
    if is_decided:
        return subsets
    return {name: replace(subset, predicted=subset.argmax) for name, subset in subsets.items()}


def _parsed(header: Sequence[str], lines: Sequence[Sequence[str]], task: Task) -> dict[str, Subset]:
    has_point = _AT in header
    expected = [*_FIRST, *([_AT] if has_point else []), *(durable.cell(f"p_{name}") for name in task.classes)]
    if list(header) != expected:
        raise ValueError("its columns are not those of such a Run")
    row_of = {durable.cell(name): i for i, name in enumerate(task.image_ids)}
    by_subset: dict[str, list[Sequence[str]]] = {}
    for line in lines:
        by_subset.setdefault(line[1], []).append(line)
    n_first = len(expected) - len(task.classes)
    if unknown := set(by_subset) - set(SUBSETS):
        raise ValueError(f"it has rows of a subset {min(unknown)!r}")
    subsets = {}
    for name in (name for name in SUBSETS if name in by_subset):
        rows = np.array([row_of[line[0]] for line in by_subset[name]])
        p = _probabilities([line[n_first:] for line in by_subset[name]], task.has_findings)
        argmax, predicted = _decisions(by_subset[name], n_first, p, task)
        subsets[name] = Subset(rows, _logits(p, task.has_findings), p, predicted, argmax)
    return subsets


def _probabilities(cells: Sequence[Sequence[str]], has_findings: bool) -> Array:
    """(n, c) numbers of which those of classes sum to 1, as far as nine digits say."""
    p = np.array(cells, dtype=np.float64)
    if not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
        raise ValueError("a probability is not a number from 0 to 1")
    if not has_findings and np.abs(p.sum(axis=1) - 1).max() > _ROUNDED:
        raise ValueError("probabilities of an image do not sum to 1")
    return p


def _decisions(lines: Sequence[Sequence[str]], n_first: int, p: Array, task: Task) -> tuple[Array, Array]:
    """(n,) class numbers of the highest probability, and as predicted; they differ only at an operating point."""
    if task.has_findings:
        predicted = (p >= 0.5).astype(np.int64)
        return predicted, predicted
    class_of = {durable.cell(name): i for i, name in enumerate(task.classes)}
    argmax, predicted = (np.array([class_of[line[at]] for line in lines]) for at in (len(_FIRST) - 1, n_first - 1))
    if (p.max(axis=1) - p[np.arange(len(p)), argmax] > _ROUNDED).any():
        raise ValueError("a predicted class does not have the highest probability")
    return argmax, predicted


def _expected(protocol: Protocol) -> dict[str, tuple[Array, ...]]:
    """The rows that each subset may consist of. A protocol without folds is that of a set from elsewhere."""
    if not protocol.folds:
        return {EXTERNAL: (protocol.test,)}
    val = np.unique(np.concatenate([fold.val for fold in protocol.folds]))
    test = {TEST: (protocol.test,)} if len(protocol.test) else {}
    return {TRAIN: (protocol.folds[0].train, protocol.rows), VAL: (val,), OUTER: (val,), **test}


def _check_rows(subsets: Mapping[str, Subset], expected: Mapping[str, tuple[Array, ...]]) -> None:
    """Each row once in a subset, and those of the split; of the subsets that must be there only OUTER may be absent."""
    if set(subsets) - set(expected) or set(expected) - set(subsets) - {OUTER}:
        raise ValueError(f"its subsets are {', '.join(sorted(subsets)) or 'none'}")
    for name, subset in subsets.items():
        rows = np.sort(subset.rows)
        if not any(np.array_equal(rows, np.sort(allowed)) for allowed in expected[name]):
            raise ValueError(f"its {name} rows are not those of the split")


def _check_counts(run: Run, task: Task, subsets: Mapping[str, Subset]) -> None:
    """That its decisions are those that the record has counted."""
    point = run.record["operating_point"] or {}
    for name, subset in subsets.items():
        metrics = run.record["metrics"].get(name)
        if metrics is None or metrics["n"] != len(subset):
            raise ValueError(f"its {name} rows are not as many as the record says")
        for scores, predicted in ((metrics, subset.argmax), (point.get(name), subset.predicted)):
            if scores is None or task.has_findings:
                continue
            c = len(task.classes)
            counts = np.bincount(task.labels[subset.rows] * c + predicted, minlength=c * c).reshape(c, c)
            if counts.tolist() != scores["confusion"]:
                raise ValueError(f"its {name} rows have other predictions than the record says")


def _logits(p: Array, has_findings: bool) -> Array:
    logs = np.log(np.maximum(p, _LEAST))
    return logs - np.log(np.maximum(1 - p, _LEAST)) if has_findings else logs
