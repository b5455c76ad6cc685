"""The charts of a Run: curves, ROC, precision and recall, calibration, scores. Blocks, with their numbers beside them.

Points of a curve are scikit-learn's on the Run's own predictions; a number that is told of a curve is the record's.
Letters: n rows, c classes.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from featcache import metrics
from featcache.figures import INK, RULE, VAL, charts
from featcache.figures.charts import CLASSES, Counts, Dots, Line
from featcache.reporting.document import Abreast, Figure, Words, interval_of, listed, name_of, shown, with_sign
from featcache.reporting.run_view import CALLED, SIDES, RunView
from featcache.training.results import TRAIN

Array = np.ndarray[Any, Any]

_CURVES = (("loss", "cross entropy (nats)"), ("accuracy", "accuracy"), ("f1", "F1"))
_MOST_CURVES = len(CLASSES)
_N_SCORES = 25  # bins


def curves(run_view: RunView) -> list[Words | Abreast]:
    """Loss, accuracy and F1 per epoch, through all phases."""
    history = run_view.run.history()
    if not history:
        return [Words("This head was solved at once, not trained epoch by epoch: there are no curves.", "gone")]
    kept = _kept(run_view, len(history))
    phases = sorted({int(row.get("phase", 1)) for row in history})
    header = list(history[0])
    rows = [[row[name] for name in header] for row in history]
    figures = []
    for name, label in _CURVES:
        ends = f"{history[-1][f'train_{name}']:.3f} and {history[-1][f'val_{name}']:.3f}"
        alt = f"{label} per epoch; in the last of {len(history)} epochs {ends} on training and validation rows."
        drawn = charts.curve(history, name, label, kept, alt, has_legend=name == "loss")
        figures.append(Figure(f"{run_view.slug}-curve-{name}", label, "", drawn, header, rows))
    return [Words(_about_curves(run_view, len(history), len(phases), kept)), Abreast(figures, are_small=True)]


def _kept(run_view: RunView, n_epochs: int) -> int | None:
    """The epoch to ring: the one whose weights are kept, where the curve is of one head."""
    epoch = run_view.record["epoch"]
    return epoch if run_view.protocol.is_hold_out and epoch and epoch <= n_epochs else None


def _about_curves(run_view: RunView, n_epochs: int, n_phases: int, kept: int | None) -> str:
    n_folds = len(run_view.protocol.folds)
    of = f"Means over {n_folds} folds. " if n_folds > 1 else ""
    ring = f"The ring is at epoch {kept}, whose weights were kept. " if kept else ""
    phases = f"They run through {n_phases} phases. " if n_phases > 1 else ""
    recipe = run_view.record.get("recipe") or {}
    ring += f"Validation {name_of(recipe['select'])} chose it. " if ring and recipe else ""
    last = " of the last phase" if n_phases > 1 else ""
    augmented = f"Training numbers{last} are of augmented images, while the network learnt from them. " * bool(
        recipe.get("augment")
    )
    return (
        f"{n_epochs} epochs. {phases}{of}{ring}{augmented}The loss is unweighted, whatever the weights of the training."
    )


# --- ranking ----------------------------------------------------------------------------------------------------------


def ranking(run_view: RunView) -> list[Words | Abreast]:
    """ROC and precision against recall: of two classes for each side that was not learnt from, with the point at which
    is decided; of more classes, or findings, one curve for each on the reported side."""
    ranked = _of_sides(run_view) if run_view.is_binary else _of_classes(run_view)
    if not ranked:
        return [Words("No class has rows of both kinds here, so there is nothing to rank.", "gone")]
    return [Abreast([_roc(run_view, ranked), _precision_recall(run_view, ranked)])]


Ranked = tuple[str, str, str, Array, Array, tuple[float, float] | None]  # key, label, colour, truth, scores, point


def _of_sides(run_view: RunView) -> list[Ranked]:
    ranked: list[Ranked] = []
    positive = run_view.task.positive
    for side in (side for side in SIDES if side in run_view.sides and side != TRAIN):
        truth = run_view.labels(side) == positive
        if not truth.any() or truth.all():
            continue
        is_main = side == run_view.reported
        called = run_view.sides[side].called == positive
        point = (float(np.mean(called[~truth])), float(np.mean(called[truth])))
        auroc = run_view.scores(side)["auroc"]
        label = f"{CALLED[side]} {shown(auroc)}"
        scores = metrics.log_odds(run_view.sides[side].logits, positive)
        ranked.append((side, label, INK if is_main else RULE, truth, scores, point))
    return sorted(ranked, key=lambda curve: curve[0] == run_view.reported)


def _of_classes(run_view: RunView) -> list[Ranked]:
    side = run_view.sides[run_view.reported]
    labels = run_view.labels(run_view.reported)
    ranked: list[Ranked] = []
    for c, name in enumerate(run_view.classes[:_MOST_CURVES]):
        is_known = np.isfinite(labels[:, c]) if run_view.task.has_findings else np.ones(len(side), dtype=bool)
        truth = (labels[:, c] == 1 if run_view.task.has_findings else labels == c)[is_known]
        if not truth.any() or truth.all():
            continue
        scores = side.logits[:, c] if run_view.task.has_findings else metrics.log_odds(side.logits, c)
        auroc = run_view.scores(run_view.reported)["per_class"][c]["auroc"]
        ranked.append((name, f"{_apart(name)} {shown(auroc)}", CLASSES[c], truth, scores[is_known], None))
    return ranked


def _apart(name: str) -> str:
    """A name after which a number stays where it is: behind letters that run from right to left it would stand before
    them."""
    runs_left = any(unicodedata.bidirectional(c) in ("R", "AL") for c in name)
    return f"{name}\u200e" if runs_left else name


def _roc(run_view: RunView, ranked: Sequence[Ranked]) -> Figure:
    drawn, rows = [], []
    for key, label, color, truth, scores, point in ranked:
        false, true, at = roc_curve(truth, scores)
        drawn.append(Line(label, false, true, color, 2.0 if color == INK else 1.4, point))
        rows += [[key, x, y, t] for x, y, t in zip(false.tolist(), true.tolist(), at.tolist(), strict=True)]
    areas = ", ".join(curve[1] for curve in ranked)
    chart = charts.lines(drawn, "1 − specificity", "sensitivity", (0.0, 1.0), f"ROC curves. Areas: {areas}.")
    caption = f"The number is the area under the curve{_about_point(run_view)}."
    return Figure(
        f"{run_view.slug}-roc", "ROC", caption, chart, ["of", "false_positive_rate", "true_positive_rate", "log_odds"],
        _finite(rows),
    )  # fmt: skip


def _precision_recall(run_view: RunView, ranked: Sequence[Ranked]) -> Figure:
    drawn, rows = [], []
    for key, label, color, truth, scores, point in ranked:
        precision, recall, at = precision_recall_curve(truth, scores)
        name = label.rpartition(" ")[0]
        marked = None
        if point is not None and sum(point) > 0:
            hits, alarms = point[1] * truth.sum(), point[0] * (~truth).sum()
            marked = (point[1], float(hits / (hits + alarms)))
        drawn.append(Line(name, recall, precision, color, 2.0 if color == INK else 1.4, marked))
        thresholds = [*at.tolist(), np.inf]
        rows += [[key, x, y, t] for x, y, t in zip(recall.tolist(), precision.tolist(), thresholds, strict=True)]
    base = float(ranked[-1][3].mean())
    alt = f"Precision against recall of {listed([line.label for line in drawn])}."
    line = (base, base) if run_view.is_binary else None
    chart = charts.lines(drawn, "recall (sensitivity)", "precision", line, alt, "lower left")
    dotted = f"The dotted line, at {base:.3f}, is the share of positives among the images{_about_point(run_view)}."
    caption = dotted if run_view.is_binary else "Each class, or finding, against the rest."
    header = ["of", "recall", "precision", "log_odds"]
    return Figure(f"{run_view.slug}-pr", "Precision and recall", caption, chart, header, _finite(rows))


def _about_point(run_view: RunView) -> str:
    if not run_view.is_binary:
        return ""
    at = run_view.threshold
    return f"; the ring is where p ≥ {0.5 if at is None else at:.3f} is called {run_view.positive}"


def _finite(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [
        [reliability if not isinstance(reliability, float) or np.isfinite(reliability) else "" for reliability in row]
        for row in rows
    ]


# --- probabilities ----------------------------------------------------------------------------------------------------


def calibration(run_view: RunView) -> list[Words | Abreast]:
    """What was promised and what came, before and after the temperature; and how the scores are spread."""
    side = run_view.reported
    before = _reliability(run_view, side)
    drawn = [_dots("as trained", before, RULE)]
    rows = [["as trained", *_bin(bin_)] for bin_ in before]
    temperature, scores = run_view.record["temperature"], run_view.scores(side)
    after = scores.get("calibrated")
    if after:
        drawn.append(_dots(f"divided by T = {temperature:.2f}", after["reliability"], VAL))
        rows += [["calibrated", *_bin(bin_)] for bin_ in after["reliability"]]
    ece = f"{shown(scores['ece'])}" + (f", after the temperature {shown(after['ece'])}" if after else "")
    ordinate = "positives among them" if run_view.is_binary or run_view.task.has_findings else "right among them"
    promised = (
        "probability said" if run_view.is_binary or run_view.task.has_findings else "probability of the class called"
    )
    alt = f"Reliability of the probabilities on {CALLED[side]} rows. Expected calibration error: {ece}."
    chart = charts.dots(drawn, promised, f"share of {ordinate}", alt)
    caption = (
        f"On the diagonal a probability means what it says. Expected calibration error {ece}{_about_t(temperature)}."
    )
    header = ["what", "low", "high", "n", "confidence", "frequency"]
    figures = [
        Figure(f"{run_view.slug}-reliability", "Reliability", caption, chart, header, rows),
        _scores(run_view, side),
    ]
    return [Abreast(figures)]


def _about_t(temperature: float | None) -> str:
    if temperature is None:
        return ""
    more = "" if temperature == 1 else f"makes every probability {'surer' if temperature < 1 else 'less sure'} and "
    return f". T was chosen on validation rows; it {more}changes no decision at 0.5"


def _reliability(run_view: RunView, side: str) -> list[dict[str, Any]]:
    labels, logits = run_view.labels(side), run_view.sides[side].logits
    if not run_view.task.has_findings:
        return metrics.reliability(labels, logits, run_view.task.positive)
    is_known = np.isfinite(labels)  # all findings together
    return metrics.reliability(labels[is_known].astype(np.int64), metrics.two_columns(logits[is_known]), 1)


def _dots(label: str, points: Sequence[dict[str, Any]], color: str) -> Dots:
    x, y, n = (np.array([point[name] for point in points]) for name in ("confidence", "frequency", "n"))
    return Dots(label, x, y, n, color)


def _bin(point: dict[str, Any]) -> list[Any]:
    return [point[name] for name in ("low", "high", "n", "confidence", "frequency")]


def _scores(run_view: RunView, side: str) -> Figure:
    edges = np.linspace(0, 1, _N_SCORES + 1)
    kinds = [(label, color, np.histogram(p, edges)[0]) for label, color, p in _kinds(run_view, side)]
    x, cut = _score_axis(run_view)
    drawn = [Counts(label, values, color) for label, color, values in kinds]
    parts = ", ".join(f"{values.sum():,} {label}" for label, _, values in kinds)
    chart = charts.histogram(edges, drawn, x, cut, f"Histogram of the {x} on {CALLED[side]} rows: {parts}.")
    rows = [
        [label, float(edges[i]), float(edges[i + 1]), int(n)]
        for label, _, values in kinds
        for i, n in enumerate(values)
    ]
    line = f"The broken line is the threshold, {cut:.3f}. " if cut is not None else ""
    caption = f"{line}{CALLED[side].capitalize()} rows, counted on a scale of logarithms."
    title = "Scores, present and absent" if run_view.task.has_findings else "Scores by class"
    return Figure(f"{run_view.slug}-scores", title, caption, chart, ["of", "low", "high", "n"], rows)


def _score_axis(run_view: RunView) -> tuple[str, float | None]:
    if run_view.is_binary:
        return f"probability of {run_view.positive}", 0.5 if run_view.threshold is None else run_view.threshold
    if run_view.task.has_findings:
        return "probability of a finding", 0.5
    return "probability given to the true class", None


def _kinds(run_view: RunView, side: str) -> list[tuple[str, str, Array]]:
    """Label, colour and scores of each kind of rows."""
    labels, p, task = run_view.labels(side), run_view.sides[side].p, run_view.task
    if task.has_findings:
        return [
            (name, color, p[labels == value]) for name, color, value in (("absent", CLASSES[0], 0), ("present", VAL, 1))
        ]
    kinds = []
    for c, name in enumerate(run_view.classes[:_MOST_CURVES]):
        of = task.positive if run_view.is_binary else c
        kinds.append((name, charts.color_of(c, len(task.classes), task.positive), p[labels == c, of]))
    return kinds


def gain(run_view: RunView) -> Figure | None:
    """What phase 2 bought, with intervals, as a forest; None for a Run that started from none."""
    rows, estimates = [], []
    for side, gained in run_view.record.get("gain", {}).items():
        at = gained.get("at_operating_point", {})
        for name, gains in (("auroc", gained), ("accuracy", at or gained), ("balanced_accuracy", at or gained)):
            if name not in gains:
                continue
            value, low, high = gains[name]
            label = f"{CALLED[side]}, {'AUROC' if name == 'auroc' else name.replace('_', ' ')}"
            estimates.append(charts.Estimate(label, value, (low, high)))
            rows.append([side, name, value, low, high])
    if not estimates:
        return None
    text = "; ".join(
        f"{estimate.label} {with_sign(estimate.value)} {interval_of(estimate.interval, signed=True)}"
        for estimate in estimates
    )
    chart = charts.forest(estimates, "difference: after − before", 0.0, f"What the training on pixels changed: {text}.")
    header = ["side", "number", "difference", "low", "high"]
    caption = "Accuracies are at each one's own operating point, where there is one. Validation rows chose the epoch."
    return Figure(f"{run_view.slug}-gain", "Gain", caption, chart, header, rows)
