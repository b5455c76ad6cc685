"""Charts of a Run: learning curves, ROC, precision-recall, calibration, predicted probabilities; each with its numbers.

Curves are computed by scikit-learn from the Run's predictions; the numbers in captions are read from the record.
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
from featcache.names import plural
from featcache.reporting.document import Abreast, Figure, Words, interval_of, listed, name_of, number_text, with_sign
from featcache.reporting.run_view import SUBSET_NAMES, RunView
from featcache.runs.subsets import SUBSETS
from featcache.training.results import TRAIN

Array = np.ndarray[Any, Any]

_CURVES = (("loss", "cross entropy (nats)"), ("accuracy", "accuracy"), ("f1", "F1"))
_MOST_CURVES = len(CLASSES)
_N_SCORES = 25  # bins


def curves(run_view: RunView) -> list[Words | Abreast]:
    """Loss, accuracy and F1 per epoch, through all phases."""
    history = run_view.run.history()
    if not history:
        return [Words("There are no learning curves: this head is fitted by a solver, not in epochs.", "gone")]
    kept = _kept(run_view, len(history))
    phases = sorted({int(row.get("phase", 1)) for row in history})
    header = list(history[0])
    rows = [[row[name] for name in header] for row in history]
    figures = []
    for name, label in _CURVES:
        ends = f"{history[-1][f'train_{name}']:.3f} and {history[-1][f'val_{name}']:.3f}"
        alt = f"{label} per epoch; in the last of {len(history)} epochs {ends} on training and validation images."
        drawn = charts.curve(history, name, label, kept, alt, has_legend=name == "loss")
        figures.append(Figure(f"{run_view.slug}-curve-{name}", label, "", drawn, header, rows))
    return [Words(_curves_text(run_view, len(history), len(phases), kept)), Abreast(figures, are_small=True)]


def _kept(run_view: RunView, n_epochs: int) -> int | None:
    """The epoch whose weights were kept, where the curve shows a single head."""
    epoch = run_view.record["epoch"]
    return epoch if run_view.protocol.is_hold_out and epoch and epoch <= n_epochs else None


def _curves_text(run_view: RunView, n_epochs: int, n_phases: int, kept: int | None) -> str:
    n_folds = len(run_view.protocol.folds)
    recipe = run_view.record.get("recipe") or {}
    epochs = plural(n_epochs, "epoch") + (f" in {n_phases} phases" if n_phases > 1 else "")
    sentences = [f"The head was trained for {epochs}."]
    if n_folds > 1:
        sentences.append(f"The curves are means over {n_folds} folds.")
    if kept:
        selected = f", which has the best validation {name_of(recipe['select'])}" if recipe else ""
        sentences.append(f"The ring marks epoch {kept}{selected}; its weights were kept.")
    if recipe.get("augment"):
        last = " in the last phase" if n_phases > 1 else ""
        sentences.append(f"Training values{last} are running means over augmented images.")
    return " ".join([*sentences, "The loss is shown without class weights."])


# --- ranking ----------------------------------------------------------------------------------------------------------


def ranking(run_view: RunView) -> list[Words | Abreast]:
    """ROC and precision-recall curves: for two classes one per subset other than training, with the operating point;
    for more classes, or labels, one per class on the reported subset."""
    ranked = _of_sides(run_view) if run_view.is_binary else _of_classes(run_view)
    if not ranked:
        return [Words("ROC curves need positive and negative images of a class; no class has both here.", "gone")]
    return [Abreast([_roc(run_view, ranked), _precision_recall(run_view, ranked)])]


Ranked = tuple[str, str, str, Array, Array, tuple[float, float] | None]  # key, label, colour, truth, scores, point


def _of_sides(run_view: RunView) -> list[Ranked]:
    ranked: list[Ranked] = []
    positive = run_view.task.positive
    for subset in (subset for subset in SUBSETS if subset in run_view.subsets and subset != TRAIN):
        truth = run_view.labels(subset) == positive
        if not truth.any() or truth.all():
            continue
        is_main = subset == run_view.reported
        predicted = run_view.subsets[subset].predicted == positive
        point = (float(np.mean(predicted[~truth])), float(np.mean(predicted[truth])))
        auroc = run_view.scores(subset)["auroc"]
        label = f"{SUBSET_NAMES[subset]} {number_text(auroc)}"
        scores = metrics.log_odds(run_view.subsets[subset].logits, positive)
        ranked.append((subset, label, INK if is_main else RULE, truth, scores, point))
    return sorted(ranked, key=lambda curve: curve[0] == run_view.reported)


def _of_classes(run_view: RunView) -> list[Ranked]:
    predictions = run_view.subsets[run_view.reported]
    labels = run_view.labels(run_view.reported)
    ranked: list[Ranked] = []
    for c, name in enumerate(run_view.classes[:_MOST_CURVES]):
        is_known = np.isfinite(labels[:, c]) if run_view.task.has_findings else np.ones(len(predictions), dtype=bool)
        truth = (labels[:, c] == 1 if run_view.task.has_findings else labels == c)[is_known]
        if not truth.any() or truth.all():
            continue
        scores = predictions.logits[:, c] if run_view.task.has_findings else metrics.log_odds(predictions.logits, c)
        auroc = run_view.scores(run_view.reported)["per_class"][c]["auroc"]
        ranked.append((name, f"{_left_to_right(name)} {number_text(auroc)}", CLASSES[c], truth, scores[is_known], None))
    return ranked


def _left_to_right(name: str) -> str:
    """The name, with a left-to-right mark after right-to-left letters, so that a number can follow."""
    is_right_to_left = any(unicodedata.bidirectional(c) in ("R", "AL") for c in name)
    return f"{name}\u200e" if is_right_to_left else name


def _roc(run_view: RunView, ranked: Sequence[Ranked]) -> Figure:
    drawn, rows = [], []
    for key, label, color, truth, scores, point in ranked:
        false, true, at = roc_curve(truth, scores)
        drawn.append(Line(label, false, true, color, 2.0 if color == INK else 1.4, point))
        rows += [[key, x, y, t] for x, y, t in zip(false.tolist(), true.tolist(), at.tolist(), strict=True)]
    areas = ", ".join(curve[1] for curve in ranked)
    chart = charts.lines(drawn, "1 − specificity", "sensitivity", (0.0, 1.0), f"ROC curves. Areas: {areas}.")
    caption = f"The numbers are areas under the curves (AUROC){_point_text(run_view)}."
    header = ["curve", "false_positive_rate", "true_positive_rate", "log_odds"]
    return Figure(f"{run_view.slug}-roc", "ROC", caption, chart, header, _finite(rows))


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
    alt = f"Precision-recall curves of {listed([line.label for line in drawn])}."
    line = (base, base) if run_view.is_binary else None
    chart = charts.lines(drawn, "sensitivity (recall)", "PPV (precision)", line, alt, "lower left")
    caption = "One curve per class, against the rest."
    if run_view.task.has_findings:
        caption = "One curve per label."
    elif run_view.is_binary:
        caption = f"The dotted line is the prevalence, {base:.3f}{_point_text(run_view)}."
    header = ["curve", "recall", "precision", "log_odds"]
    return Figure(f"{run_view.slug}-pr", "Precision-recall", caption, chart, header, _finite(rows))


def _point_text(run_view: RunView) -> str:
    if not run_view.is_binary:
        return ""
    at = run_view.threshold
    name = "threshold" if at is None else "operating point"
    return f"; the ring marks the {name} p({run_view.positive}) ≥ {0.5 if at is None else at:.3f}"


def _finite(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [[value if not isinstance(value, float) or np.isfinite(value) else "" for value in row] for row in rows]


# --- probabilities ----------------------------------------------------------------------------------------------------


def calibration(run_view: RunView) -> list[Words | Abreast]:
    """Reliability before and after temperature scaling, and the histogram of predicted probabilities."""
    subset = run_view.reported
    before = _reliability(run_view, subset)
    drawn = [_dots("uncalibrated", before, RULE)]
    rows = [["uncalibrated", *_bin(bin_)] for bin_ in before]
    temperature, scores = run_view.record["temperature"], run_view.scores(subset)
    after = scores.get("calibrated")
    if after:
        drawn.append(_dots(f"calibrated (T = {temperature:.2f})", after["reliability"], VAL))
        rows += [["calibrated", *_bin(bin_)] for bin_ in after["reliability"]]
    ece = f"{number_text(scores['ece'])}" + (f", {number_text(after['ece'])} after calibration" if after else "")
    is_positive = run_view.is_binary or run_view.task.has_findings
    x = "predicted probability" if is_positive else "probability of the predicted class"
    y = "observed frequency" if is_positive else "accuracy"
    alt = f"Reliability diagram on {SUBSET_NAMES[subset]} images. Expected calibration error: {ece}."
    chart = charts.dots(drawn, x, y, alt)
    caption = (
        f"Perfect calibration lies on the diagonal. Expected calibration error: {ece}.{_temperature_text(temperature)}"
    )
    header = ["probabilities", "low", "high", "n", "confidence", "frequency"]
    figures = [
        Figure(f"{run_view.slug}-reliability", "Reliability", caption, chart, header, rows),
        _scores(run_view, subset),
    ]
    return [Abreast(figures)]


def _temperature_text(temperature: float | None) -> str:
    if temperature is None:
        return ""
    effect = "" if temperature == 1 else f"makes predictions {'more' if temperature < 1 else 'less'} confident and "
    return f" T was fitted on validation images; it {effect}changes no decision at 0.5."


def _reliability(run_view: RunView, subset: str) -> list[dict[str, Any]]:
    labels, logits = run_view.labels(subset), run_view.subsets[subset].logits
    if not run_view.task.has_findings:
        return metrics.reliability(labels, logits, run_view.task.positive)
    is_known = np.isfinite(labels)  # all findings together
    return metrics.reliability(labels[is_known].astype(np.int64), metrics.two_columns(logits[is_known]), 1)


def _dots(label: str, points: Sequence[dict[str, Any]], color: str) -> Dots:
    x, y, n = (np.array([point[name] for point in points]) for name in ("confidence", "frequency", "n"))
    return Dots(label, x, y, n, color)


def _bin(point: dict[str, Any]) -> list[Any]:
    return [point[name] for name in ("low", "high", "n", "confidence", "frequency")]


def _scores(run_view: RunView, subset: str) -> Figure:
    edges = np.linspace(0, 1, _N_SCORES + 1)
    kinds = [(label, color, np.histogram(p, edges)[0]) for label, color, p in _probabilities_by_class(run_view, subset)]
    x, cut = _score_axis(run_view)
    drawn = [Counts(label, values, color) for label, color, values in kinds]
    parts = ", ".join(f"{values.sum():,} {label}" for label, _, values in kinds)
    chart = charts.histogram(edges, drawn, x, cut, f"Histogram of the {x} on {SUBSET_NAMES[subset]} images: {parts}.")
    rows = [
        [label, float(edges[i]), float(edges[i + 1]), int(n)]
        for label, _, values in kinds
        for i, n in enumerate(values)
    ]
    line = f" The dashed line is the threshold, {cut:.3f}." if cut is not None else ""
    caption = f"Number of {SUBSET_NAMES[subset]} images on a logarithmic scale.{line}"
    title = "Predicted probabilities by " + ("label" if run_view.task.has_findings else "class")
    return Figure(f"{run_view.slug}-scores", title, caption, chart, ["class", "low", "high", "n"], rows)


def _score_axis(run_view: RunView) -> tuple[str, float | None]:
    if run_view.is_binary:
        return (
            f"predicted probability of {run_view.positive}",
            0.5 if run_view.threshold is None else run_view.threshold,
        )
    if run_view.task.has_findings:
        return "predicted probability of a label", 0.5
    return "predicted probability of the true class", None


def _probabilities_by_class(run_view: RunView, subset: str) -> list[tuple[str, str, Array]]:
    """Label, colour and probabilities of each histogram."""
    labels, p, task = run_view.labels(subset), run_view.subsets[subset].p, run_view.task
    if task.has_findings:
        return [
            (name, color, p[labels == value]) for name, color, value in (("absent", CLASSES[0], 0), ("present", VAL, 1))
        ]
    histograms = []
    for c, name in enumerate(run_view.classes[:_MOST_CURVES]):
        of = task.positive if run_view.is_binary else c
        histograms.append((name, charts.color_of(c, len(task.classes), task.positive), p[labels == c, of]))
    return histograms


def gain_figure(run_view: RunView) -> Figure | None:
    """Forest plot of the changes by fine-tuning; None for a Run without them."""
    rows, estimates = [], []
    for subset, gain in run_view.record.get("gain", {}).items():
        at = gain.get("at_operating_point", {})
        for name, gains in (("auroc", gain), ("accuracy", at or gain), ("balanced_accuracy", at or gain)):
            if name not in gains:
                continue
            value, low, high = gains[name]
            label = f"{SUBSET_NAMES[subset]}, {'AUROC' if name == 'auroc' else name.replace('_', ' ')}"
            estimates.append(charts.Estimate(label, value, (low, high)))
            rows.append([subset, name, value, low, high])
    if not estimates:
        return None
    text = "; ".join(
        f"{estimate.label} {with_sign(estimate.value)} {interval_of(estimate.interval, signed=True)}"
        for estimate in estimates
    )
    chart = charts.forest(estimates, "difference: after − before", 0.0, f"Changes by fine-tuning: {text}.")
    header = ["subset", "metric", "difference", "low", "high"]
    caption = (
        "Differences with 95 % confidence intervals. Accuracies are compared at the respective operating points. The "
        "validation images selected the epoch."
    )
    return Figure(f"{run_view.slug}-gain", "Change by fine-tuning", caption, chart, header, rows)
