"""Tables of decisions: confusion matrices, metrics by class, and metrics by the values of a column (view, site).

Only the metrics of subgroups are computed here: from the Run's predictions, by the functions that computed the record.
Letters: n rows, c classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from featcache.figures import charts
from featcache.figures.charts import Estimate
from featcache.names import printable
from featcache.reporting.document import (
    Abreast,
    Block,
    Cell,
    Figure,
    Table,
    Words,
    count,
    head,
    interval_of,
    listed,
    missing,
    name_of,
    number,
    number_text,
)
from featcache.reporting.materials import Vectors
from featcache.reporting.run_view import SUBSET_NAMES, RunView
from featcache.training import selection

Array = np.ndarray[Any, Any]

FOLDER = "folder"  # of image_id: a column that every Run has
_PER_CLASS = ("auroc", "auprc", "precision", "recall", "specificity", "f1")
_PER_GROUP = ("auroc", "accuracy", "recall", "specificity")
_MOST_GROUPS = 20


def confusions(run_view: RunView) -> list[Block]:
    """Confusion matrices of the reported subset: at 0.5 (argmax), and at the operating point."""
    subset = run_view.reported
    if run_view.task.has_findings:
        return [_label_counts(run_view, subset)]
    thresholds = [(run_view.scores(subset), "p ≥ 0.5" if run_view.is_binary else "predicted by argmax", "half")]
    if at := run_view.scores(subset, True):
        thresholds.append((at, f"operating point p ≥ {run_view.threshold:.3f}", "point"))
    return [Abreast([_confusion(run_view, scores["confusion"], at, name) for scores, at, name in thresholds])]


def _confusion(run_view: RunView, matrix: Sequence[Sequence[int]], at: str, name: str) -> Table:
    counts, classes = np.array(matrix), run_view.classes
    rows = []
    for label, row in zip(classes, counts.tolist(), strict=True):
        of = max(sum(row), 1)
        cells = [Cell(f"{n:,}", n, f"{n / of:.1%}", shade=round(10 * n / of)) for n in row]
        rows.append([head(label, f"{sum(row):,}"), *cells])
    data = (["true", *classes], [[label, *row] for label, row in zip(classes, counts.tolist(), strict=True)])
    header = ["true class", *(f"predicted {label}" for label in classes)]
    png = charts.matrix(counts, classes)
    caption = f"Confusion matrix, {SUBSET_NAMES[run_view.reported]} images, {at}"
    return Table(f"{run_view.slug}-confusion-{name}", caption, header, rows, "", "matrix", data, png)


def _label_counts(run_view: RunView, subset: str) -> Table:
    """True and false positives and negatives of each label at 0.5."""
    labels, predictions = run_view.labels(subset), run_view.subsets[subset].predicted
    rows, data = [], []
    for c, name in enumerate(run_view.classes):
        truth, predicted = labels[:, c], predictions[:, c]
        n = [int(np.sum((truth == t) & (predicted == s))) for t, s in ((1, 1), (1, 0), (0, 1), (0, 0))]
        rows.append([head(name), *map(count, n), count(int(np.isnan(truth).sum()))])
        data.append([name, *n, int(np.isnan(truth).sum())])
    header = ["label", "true positives", "false negatives", "false positives", "true negatives", "unknown"]
    caption = f"Decisions at p ≥ 0.5, {SUBSET_NAMES[subset]} images"
    return Table(f"{run_view.slug}-confusion", caption, header, rows, data=(header, data))


def per_class(run_view: RunView) -> list[Block]:
    """Metrics of each class, or label, on the reported subset."""
    subset = run_view.reported
    scores = run_view.scores(subset)
    if "per_class" not in scores:
        return [_two_classes(run_view, subset)]
    names = ("n", "support", *_PER_CLASS) if run_view.task.has_findings else ("support", *_PER_CLASS)
    rows = [
        [head(name), *(count(class_scores[s]) if s in ("n", "support") else number(class_scores[s]) for s in names)]
        for name, class_scores in zip(run_view.classes, scores["per_class"], strict=True)
    ]
    data = [
        [name, *("" if class_scores[s] is None else class_scores[s] for s in names)]
        for name, class_scores in zip(run_view.classes, scores["per_class"], strict=True)
    ]
    titles = {
        "n": "images with a known label",
        "support": "positive images" if run_view.task.has_findings else "images",
    }
    kind = "label" if run_view.task.has_findings else "class"
    header = [kind, *(titles.get(name) or name_of(name) for name in names)]
    against = "" if run_view.task.has_findings else " (one against the rest)"
    caption = f"Performance by {kind}{against}, {SUBSET_NAMES[subset]} images"
    return [Table(f"{run_view.slug}-classes", caption, header, rows, data=(["class", *names], data))]


def _two_classes(run_view: RunView, subset: str) -> Table:
    """Recall and precision of each of two classes: sensitivity and PPV, specificity and NPV, at the operating point."""
    scores = run_view.scores(subset, run_view.threshold is not None)
    matrix = np.array(scores["confusion"], dtype=np.float64)
    n_true, n_predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    rows, data = [], []
    for c, name in enumerate(run_view.classes):
        recall = matrix[c, c] / n_true[c] if n_true[c] else None
        precision = matrix[c, c] / n_predicted[c] if n_predicted[c] else None
        names = ("sensitivity", "PPV") if c == run_view.task.positive else ("specificity", "NPV")
        cells = [
            Cell(number_text(value), value, small) for value, small in zip((recall, precision), names, strict=True)
        ]
        rows.append([head(name), count(int(n_true[c])), *cells])
        data.append([name, int(n_true[c]), *("" if value is None else value for value in (recall, precision))])
    at = f"p ≥ {0.5 if run_view.threshold is None else run_view.threshold:.3f}"
    header = ["class", "images", "recall", "precision (predictive value)"]
    csv = (["class", "n", "recall", "precision"], data)
    caption = f"Performance by class, {SUBSET_NAMES[subset]} images, {at}"
    return Table(f"{run_view.slug}-classes", caption, header, rows, data=csv)


# --- groups -----------------------------------------------------------------------------------------------------------


def per_group(run_view: RunView, by: Sequence[str], vectors: Vectors | None, no_vectors: str) -> list[Block]:
    """Metrics of the reported subset for each value of a column."""
    if not by:
        columns = sorted(set(vectors.store.columns if vectors else ()) | {FOLDER})
        text = f"Metrics by view, folder or site: name a column. Columns: {printable(listed(columns))}."
        return [Words(text, "hint")]
    blocks: list[Block] = []
    for column in by:
        values = column_of(run_view, column, vectors)
        if values is None:
            blocks.append(missing(f"Metrics by “{printable(column)}” need the store: {no_vectors}."))
        else:
            blocks += _by(run_view, column, values)
    return blocks


def column_of(run_view: RunView, name: str, vectors: Vectors | None) -> list[str] | None:
    """A value for each row of the task; None if the column needs a store and there is none. The column `folder` is
    derived from the image_id and needs no store."""
    if name == FOLDER:
        return [image_id.rpartition("/")[0] for image_id in run_view.task.image_ids]
    return vectors.column(name) if vectors else None


def _by(run_view: RunView, column: str, values: Sequence[str]) -> list[Block]:
    subset = run_view.reported
    of_row = np.array([values[i] for i in run_view.subsets[subset].rows.tolist()], dtype=object)
    names, n = np.unique(of_row.astype(str), return_counts=True)
    order = sorted(range(len(names)), key=lambda i: (-n[i], names[i]))
    rows, data, estimates = [], [], []
    for i in order[:_MOST_GROUPS]:
        name, group = printable(str(names[i])) or "(empty)", _metrics_of(run_view, subset, of_row == names[i])
        cells = [number(group["scores"].get(s), group["spread"].get(s)) for s in _PER_GROUP]
        rows.append([head(name), count(int(n[i])), *map(count, group["counts"]), *cells])
        for s in _PER_GROUP:
            value = group["scores"].get(s)
            data.append([name, int(n[i]), s, "" if value is None else value, *group["spread"].get(s, ["", ""])])
        if (value := group["scores"].get("auroc")) is not None:
            low, high = group["spread"].get("auroc", (value, value))
            estimates.append(Estimate(f"{name[:36]} ({n[i]:,})", value, (low, high)))
    classes = run_view.classes if len(run_view.classes) <= 3 else []
    rows = rows if classes else [[*row[:2], *row[2 + len(run_view.classes) :]] for row in rows]
    rest = f" The table shows the {_MOST_GROUPS} largest of {len(names):,} groups." if len(names) > _MOST_GROUPS else ""
    at = "" if run_view.threshold is None else f" Decisions at p ≥ {run_view.threshold:.3f}."
    header = [printable(column), "images", *classes, *map(name_of, _PER_GROUP)]
    slug = "".join(c if c.isascii() and c.isalnum() else "_" for c in column)[:40]
    csv = (["value", "n", "metric", "estimate", "low", "high"], data)
    caption = f"Performance by “{printable(column)}”, {SUBSET_NAMES[subset]} images"
    note = f"In brackets: 95 % confidence intervals.{at}{rest}"
    blocks: list[Block] = [Table(f"{run_view.slug}-by-{slug}", caption, header, rows, note, data=csv)]
    if len(estimates) > 1:
        blocks.append(Abreast([_group_figure(run_view, column, slug, estimates)]))
    return blocks


def _metrics_of(run_view: RunView, subset: str, mask: Array) -> dict[str, Any]:
    rows, logits = run_view.subsets[subset].rows[mask], run_view.subsets[subset].logits[mask]
    at = (rows, logits, run_view.threshold)
    numbers = selection.numbers(run_view.task, *at)
    spread = selection.spread(run_view.task, run_view.protocol, *at)
    counts = run_view.task.counts(rows).tolist()
    return {"scores": numbers, "spread": spread, "counts": counts}


def _group_figure(run_view: RunView, column: str, slug: str, estimates: Sequence[Estimate]) -> Figure:
    whole = run_view.scores(run_view.reported)["auroc"]
    text = "; ".join(
        f"{estimate.label} {number_text(estimate.value)} {interval_of(estimate.interval)}" for estimate in estimates
    )
    chart = charts.forest(estimates, "AUROC", whole, f"AUROC by {printable(column)}: {text}.")
    rows = [[estimate.label, estimate.value, *(estimate.interval or ("", ""))] for estimate in estimates]
    caption = f"The dotted line is the AUROC of all images, {number_text(whole)}."
    name = f"{run_view.slug}-by-{slug}-auroc"
    return Figure(name, f"AUROC by {printable(column)}", caption, chart, ["value", "auroc", "low", "high"], rows)
