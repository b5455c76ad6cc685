"""What is said of a trained head: its numbers by side, notes a reader needs, and tables.

Knows the rows of `test`, and nothing that could still be chosen.
Letters: n rows, c classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import expit

from featcache import metrics, runs
from featcache.metrics.calibration import Choice, OperatingRule
from featcache.runs import Table, subsets
from featcache.specs import varied
from featcache.splits.protocol import Protocol
from featcache.splits.task import Task
from featcache.training import selection
from featcache.training.selection import Candidate, numbers, spread

Array = np.ndarray[Any, Any]

TRAIN, VAL, TEST, OUTER, EXTERNAL = subsets.TRAIN, subsets.VAL, subsets.TEST, subsets.OUTER, subsets.EXTERNAL
_COMPARED = {"auroc": "AUROC", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "loss": "loss"}
_DECIDED = ("accuracy", "balanced_accuracy")  # by a threshold


@dataclass(frozen=True)
class Scored:
    """What a trained head says of rows whose labels are known.

    Attributes:
        task: labels.
        protocol: how the rows were divided.
        sides: by name (TRAIN, VAL, TEST, OUTER) the numbers of some rows and their (n, c) logits: VAL of rows by heads
            that had not seen them; a TEST where there are such rows, an OUTER where folds lay around folds. Or
            EXTERNAL alone, of a set from elsewhere.
        choice: the temperature and the operating point, with what has to be said of them.
        has_intervals: whether numbers of rows that were not learnt from have intervals.
    """

    task: Task
    protocol: Protocol
    sides: Mapping[str, tuple[Array, Array]]
    choice: Choice = field(default_factory=Choice)
    has_intervals: bool = True

    @property
    def temperature(self) -> float | None:
        return self.choice.temperature

    @property
    def threshold(self) -> float | None:
        return self.choice.threshold

    def metrics(self, chose: list[str]) -> dict[str, Any]:
        """By side: the numbers at 0.5, with intervals where the side was not learnt from; None without test rows.

        Args:
            chose: what the VAL rows have chosen.
        """
        metrics: dict[str, Any] = {TEST: None}
        for side, (rows, logits) in self.sides.items():
            metrics[side] = dict(self._at_half[side])
            if self.temperature is not None:
                metrics[side]["calibrated"] = self._calibrated(rows, logits, self.temperature)
        if VAL in metrics:
            metrics[VAL]["chose"] = chose
        return metrics

    def _calibrated(self, rows: Array, logits: Array, temperature: float) -> dict[str, Any]:
        cooled = logits / temperature
        scores = numbers(self.task, rows, cooled)
        points = metrics.reliability(self.task.labels[rows], cooled, self.task.positive)
        return {**{name: scores[name] for name in ("loss", "brier", "ece")}, "reliability": points}

    def at_operating_point(self, rule: Any) -> dict[str, Any]:
        """The threshold, and the numbers of rows it was chosen on and of those it was not."""
        point: dict[str, Any] = {"rule": str(rule), "threshold": self.threshold, "chosen_on": VAL}
        return point | self._at_point

    @cached_property
    def _at_half(self) -> dict[str, dict[str, Any]]:
        return {side: self._numbers(side, None) for side in self.sides}

    @cached_property
    def _at_point(self) -> dict[str, dict[str, Any]]:
        return {side: self._numbers(side, self.threshold) for side in (VAL, TEST, EXTERNAL) if side in self.sides}

    def _numbers(self, side: str, threshold: float | None) -> dict[str, Any]:
        """With intervals where the side was not learnt from."""
        of = *self.sides[side], threshold
        scores = numbers(self.task, *of)
        if side == TRAIN or not self.has_intervals:
            return scores
        return {**scores, "intervals": spread(self.task, self.protocol, *of)}

    def notes(self, ranked: Sequence[Candidate] = ()) -> list[str]:
        """What a reader of the numbers has to know; `ranked` are the specs that were tried."""
        notes = list(self.choice.notes)
        if len(ranked) > 1 and TEST not in self.sides and OUTER not in self.sides:
            notes.append(
                f"the val rows chose the best of {len(ranked)} specs, so their numbers are too good; for numbers of "
                f"rows that chose nothing give a test split, or use `nested` folds"
            )
        if TEST in self.sides and (words := self._disagreement()):
            notes.append(words)
        return notes

    def _disagreement(self) -> str:
        """The numbers whose intervals of the two sides have nothing in common; those of decisions where is decided."""
        words = []
        for name, called in _COMPARED.items():
            at_point = self.threshold is not None and name in _DECIDED
            sides = self._at_point if at_point else self._at_half
            pair = [(sides[side][name], sides[side]["intervals"].get(name)) for side in (VAL, TEST)]
            if _lie_apart(*(interval for _, interval in pair)):
                pair_text = " and ".join(f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, (low, high) in pair)
                words.append(f"{called}{' at the operating point' if at_point else ''} {pair_text}")
        if not words:
            return ""
        return (
            f"validation and test disagree beyond their intervals: {'; '.join(words)}. The test images are unlike the "
            f"others, and validation does not say how the head does on them"
        )


def chosen(task: Task, rows: Array, logits: Array, rule: OperatingRule | None) -> Choice:
    """What validation rows choose besides the head; nothing for findings."""
    return Choice() if task.has_findings else Choice.of(task.labels[rows], logits, task.positive, rule)


def about_network(weights_source: str | None) -> list[str]:
    """What a reader has to know of a network that is not merely pretrained: no fold of these rows is without it."""
    words = (
        "the network had been trained by featcache before: on its training images, or images that chose its epoch, "
        "all numbers here are too good, out of fold as well"
    )
    return [words] if weights_source == "run" else []


def _lie_apart(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    return one is not None and other is not None and (one[1] < other[0] or other[1] < one[0])


# --- tables -----------------------------------------------------------------------------------------------------------


def tables(
    scored: Scored,
    histories: Sequence[Sequence[Mapping[str, float]]],
    ranked: Sequence[Candidate] = (),
    select: str = "auroc",
) -> dict[str, Table]:
    """The CSV files of a Run by name: predictions, history, the sweep and near-duplicates where there are any.

    Args:
        scored: the head's logits.
        histories: per fold one mapping per epoch, with `epoch` and perhaps `phase`.
        ranked: specs that were tried, best first.
        select: the number that ranked them.
    """
    run_tables: dict[str, Table] = {"predictions.csv": predictions(scored)}
    if history := _mean_history(histories):
        names = list(history[0])
        run_tables["history.csv"] = (names, runs.rounded([[row[name] for name in names] for row in history]))
    if ranked:
        run_tables["sweep.csv"] = _sweep(ranked, select)
    pairs, cosines = scored.protocol.near
    if len(pairs):
        ids = scored.task.image_ids
        rows = [[ids[i], ids[j], c] for (i, j), c in zip(pairs.tolist(), cosines.tolist(), strict=True)]
        run_tables["near_duplicates.csv"] = (("image_id", "near", "cosine"), runs.rounded(rows))
    return run_tables


def _mean_history(histories: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Per epoch, of each phase, the mean over the folds that were still training."""
    points: dict[tuple[float, float], list[Mapping[str, float]]] = {}
    for history in histories:
        for point in history:
            points.setdefault((point.get("phase", 1.0), point["epoch"]), []).append(point)
    epochs = [points[epoch] for epoch in sorted(points)]
    return [{name: float(np.mean([point[name] for point in of])) for name in of[0]} for of in epochs]


def _sweep(ranked: Sequence[Candidate], select: str) -> Table:
    """A line per spec: rank, what differs, the metric that selects over folds and seeds, the means of others."""
    fields = [name for name in varied([trial.spec for trial in ranked]) if name != "seed"]
    sign = -1.0 if select == "loss" else 1.0
    header = ["rank", *fields, "n_fits", *(f"{select}_{statistic}" for statistic in ("mean", "std", "min", "max"))]
    header += [name for name in selection.SHOWN if name != select]
    rows = []
    for place, trial in enumerate(ranked, start=1):
        used, scores = trial.spec.used(), sign * np.array(trial.scores)
        finite = np.isfinite(scores).all()
        about = [float(f(scores)) if finite else "" for f in (np.mean, np.std, np.min, np.max)]
        chosen = [_cell(used.get(name, "")) for name in fields]
        rest = [trial.means.get(name, "") for name in header[len(fields) + 6 :]]
        rows.append([place, *chosen, len(scores), *about, *rest])
    return header, runs.rounded(rows)


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def predictions(scored: Scored) -> Table:
    """A line per row and side: image_id, split, fold, label, prediction, probability of each class or finding."""
    task, folds = scored.task, scored.protocol.folds
    fold_of = np.full(len(task.image_ids), "", dtype=object)
    val = np.concatenate([fold.val for fold in folds]) if folds else np.array([], dtype=np.int64)
    if len(folds) > 1 and len(np.unique(val)) == len(val):  # repeats have no one fold for a row
        for one_fold in folds:
            fold_of[one_fold.val] = str(one_fold.number)
    at = scored.threshold
    header = ["image_id", "split", "fold", "label", "prediction", *(["at_operating_point"] if at is not None else [])]
    rows: list[list[object]] = []
    for side, (numbers_of, logits) in scored.sides.items():
        p = expit(logits.astype(np.float64)) if task.has_findings else metrics.probabilities(logits)
        for j, i in enumerate(numbers_of.tolist()):
            fold = fold_of[i] if side == VAL else ""
            names = [task.image_ids[i], side, fold, _label(task, task.labels[i]), _call(task, p[j])]
            called = [_called(task, p[j], at)] if at is not None else []
            rows.append([*names, *called, *(f"{value:.9g}" for value in p[j])])
    return [*header, *(f"p_{name}" for name in task.classes)], rows


def _label(task: Task, label: Any) -> str:
    if not task.has_findings:
        return task.classes[int(label)]
    return " ".join("" if v != v else str(int(v)) for v in label)


def _call(task: Task, p: Array) -> str:
    if task.has_findings:
        return " ".join(str(int(value >= 0.5)) for value in p)
    return task.classes[int(p.argmax())]


def _called(task: Task, p: Array, threshold: float) -> str:
    return task.classes[task.positive if p[task.positive] >= threshold else 1 - task.positive]
