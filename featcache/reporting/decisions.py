"""Decisions of a Run in tables: confusion, classes, and the values of any column, view by view or site by site.

Only the numbers of groups are computed here, from the Run's predictions, in the way in which the record's were.
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
    shown,
)
from featcache.reporting.materials import Vectors
from featcache.reporting.run_view import CALLED, RunView
from featcache.training import selection

Array = np.ndarray[Any, Any]

FOLDER = "folder"  # of image_id: a column that every Run has
_PER_CLASS = ("auroc", "auprc", "precision", "recall", "specificity", "f1")
_PER_GROUP = ("auroc", "accuracy", "recall", "specificity")
_MOST_GROUPS = 20


def confusions(run_view: RunView) -> list[Block]:
    """On the reported side: at 0.5, and at the operating point."""
    side = run_view.reported
    if run_view.task.has_findings:
        return [_finding_counts(run_view, side)]
    thresholds = [(run_view.scores(side), "0.5" if run_view.is_binary else "the likeliest class", "half")]
    if at := run_view.scores(side, True):
        thresholds.append((at, f"p ≥ {run_view.threshold:.3f}, the operating point", "point"))
    return [Abreast([_confusion(run_view, scores["confusion"], at, name) for scores, at, name in thresholds])]


def _confusion(run_view: RunView, matrix: Sequence[Sequence[int]], at: str, name: str) -> Table:
    counts, classes = np.array(matrix), run_view.classes
    rows = []
    for label, row in zip(classes, counts.tolist(), strict=True):
        of = max(sum(row), 1)
        cells = [Cell(f"{n:,}", n, f"{n / of:.1%}", shade=round(10 * n / of)) for n in row]
        rows.append([head(label, f"{sum(row):,}"), *cells])
    data = (["true", *classes], [[label, *row] for label, row in zip(classes, counts.tolist(), strict=True)])
    header = ["true", *(f"called {label}" for label in classes)]
    png = charts.matrix(counts, classes)
    caption = f"Called at {at}" if run_view.is_binary else f"Called {at}"
    return Table(f"{run_view.slug}-confusion-{name}", caption, header, rows, "", "matrix", data, png)


def _finding_counts(run_view: RunView, side: str) -> Table:
    """Of each finding: found, missed, false alarms, rightly absent."""
    labels, called = run_view.labels(side), run_view.sides[side].called
    rows, data = [], []
    for c, name in enumerate(run_view.classes):
        truth, predicted = labels[:, c], called[:, c]
        n = [int(np.sum((truth == t) & (predicted == s))) for t, s in ((1, 1), (1, 0), (0, 1), (0, 0))]
        rows.append([head(name), *map(count, n), count(int(np.isnan(truth).sum()))])
        data.append([name, *n, int(np.isnan(truth).sum())])
    header = ["finding", "found", "missed", "false alarms", "rightly absent", "unknown"]
    return Table(f"{run_view.slug}-confusion", "Findings, called from 0.5 on", header, rows, data=(header, data))


def per_class(run_view: RunView) -> list[Block]:
    """The numbers of each class, or finding, on the reported side."""
    side = run_view.reported
    scores = run_view.scores(side)
    if "per_class" not in scores:
        return [_two_classes(run_view, side)]
    names = ("n", "support", *_PER_CLASS) if run_view.task.has_findings else ("support", *_PER_CLASS)
    rows = [
        [head(name), *(count(class_scores[s]) if s in ("n", "support") else number(class_scores[s]) for s in names)]
        for name, class_scores in zip(run_view.classes, scores["per_class"], strict=True)
    ]
    data = [
        [name, *("" if class_scores[s] is None else class_scores[s] for s in names)]
        for name, class_scores in zip(run_view.classes, scores["per_class"], strict=True)
    ]
    called = {"n": "known", "support": "present" if run_view.task.has_findings else "images"}
    header = ["", *(called.get(name) or name_of(name) for name in names)]
    caption = (
        f"{'Findings' if run_view.task.has_findings else 'Classes, each against the rest'}, on {CALLED[side]} rows"
    )
    return [Table(f"{run_view.slug}-classes", caption, header, rows, data=(["class", *names], data))]


def _two_classes(run_view: RunView, side: str) -> Table:
    """Of each of two classes how much of it is found, and how often its name is right, where is decided."""
    scores = run_view.scores(side, run_view.threshold is not None)
    matrix = np.array(scores["confusion"], dtype=np.float64)
    of, called = matrix.sum(axis=1), matrix.sum(axis=0)
    rows, data = [], []
    for c, name in enumerate(run_view.classes):
        share = matrix[c, c] / of[c] if of[c] else None
        right = matrix[c, c] / called[c] if called[c] else None
        names = ("sensitivity", "PPV (precision)") if c == run_view.task.positive else ("specificity", "NPV")
        cells = [Cell(shown(value), value, small) for value, small in zip((share, right), names, strict=True)]
        rows.append([head(name), count(int(of[c])), *cells])
        data.append([name, int(of[c]), *("" if value is None else value for value in (share, right))])
    at = f"p ≥ {0.5 if run_view.threshold is None else run_view.threshold:.3f}"
    header = ["", "images", "found (of the class)", "right (of those called so)"]
    csv = (["class", "n", "recall", "precision"], data)
    return Table(f"{run_view.slug}-classes", f"Classes on {CALLED[side]} rows, at {at}", header, rows, data=csv)


# --- groups -----------------------------------------------------------------------------------------------------------


def per_group(run_view: RunView, by: Sequence[str], vectors: Vectors | None, no_vectors: str) -> list[Block]:
    """The numbers of the reported side for each value of a column."""
    if not by:
        columns = sorted(set(vectors.store.columns if vectors else ()) | {FOLDER})
        words = f"Name a column for numbers per view, folder or site; here: {printable(listed(columns))}."
        return [Words(words, "hint")]
    blocks: list[Block] = []
    for column in by:
        values = column_of(run_view, column, vectors)
        if values is None:
            blocks.append(missing(f"For the numbers by “{printable(column)}” the store is needed: {no_vectors}."))
        else:
            blocks += _by(run_view, column, values)
    return blocks


def column_of(run_view: RunView, name: str, vectors: Vectors | None) -> list[str] | None:
    """A text for each row of the task; None where only the store would say. A folder is that of the name, whether a
    store is at hand or not."""
    if name == FOLDER:
        return [image_id.rpartition("/")[0] for image_id in run_view.task.image_ids]
    return vectors.column(name) if vectors else None


def _by(run_view: RunView, column: str, values: Sequence[str]) -> list[Block]:
    side = run_view.reported
    of_row = np.array([values[i] for i in run_view.sides[side].rows.tolist()], dtype=object)
    names, n = np.unique(of_row.astype(str), return_counts=True)
    order = sorted(range(len(names)), key=lambda i: (-n[i], names[i]))
    rows, data, estimates = [], [], []
    for i in order[:_MOST_GROUPS]:
        name, group_name = printable(str(names[i])) or "(empty)", _numbers_of(run_view, side, of_row == names[i])
        cells = [number(group_name["scores"].get(s), group_name["spread"].get(s)) for s in _PER_GROUP]
        rows.append([head(name), count(int(n[i])), *map(count, group_name["counts"]), *cells])
        for s in _PER_GROUP:
            value = group_name["scores"].get(s)
            data.append([name, int(n[i]), s, "" if value is None else value, *group_name["spread"].get(s, ["", ""])])
        if (value := group_name["scores"].get("auroc")) is not None:
            low, high = group_name["spread"].get("auroc", (value, value))
            estimates.append(Estimate(f"{name[:36]} ({n[i]:,})", value, (low, high)))
    classes = run_view.classes if len(run_view.classes) <= 3 else []
    rows = rows if classes else [[*row[:2], *row[2 + len(run_view.classes) :]] for row in rows]
    rest = f" The {_MOST_GROUPS} largest of {len(names):,}." if len(names) > _MOST_GROUPS else ""
    at = "" if run_view.threshold is None else f" Called at p ≥ {run_view.threshold:.3f}."
    header = [printable(column), "images", *classes, *map(name_of, _PER_GROUP)]
    slug = "".join(c if c.isascii() and c.isalnum() else "_" for c in column)[:40]
    csv = (["value", "n", "number", "estimate", "low", "high"], data)
    caption = f"By “{printable(column)}”, {CALLED[side]} rows"
    note = f"In brackets 95 % intervals.{at}{rest}"
    blocks: list[Block] = [Table(f"{run_view.slug}-by-{slug}", caption, header, rows, note, data=csv)]
    if len(estimates) > 1:
        blocks.append(Abreast([_group_figure(run_view, column, slug, estimates)]))
    return blocks


def _numbers_of(run_view: RunView, side: str, mask: Array) -> dict[str, Any]:
    rows, logits = run_view.sides[side].rows[mask], run_view.sides[side].logits[mask]
    at = (rows, logits, run_view.threshold)
    numbers = selection.numbers(run_view.task, *at)
    spread = selection.spread(run_view.task, run_view.protocol, *at)
    counts = run_view.task.counts(rows).tolist()
    return {"scores": numbers, "spread": spread, "counts": counts}


def _group_figure(run_view: RunView, column: str, slug: str, estimates: Sequence[Estimate]) -> Figure:
    whole = run_view.scores(run_view.reported)["auroc"]
    text = "; ".join(
        f"{estimate.label} {shown(estimate.value)} {interval_of(estimate.interval)}" for estimate in estimates
    )
    chart = charts.forest(estimates, "AUROC", whole, f"AUROC by {printable(column)}: {text}.")
    rows = [[estimate.label, estimate.value, *(estimate.interval or ("", ""))] for estimate in estimates]
    caption = f"The dotted line is the AUROC of all, {shown(whole)}."
    name = f"{run_view.slug}-by-{slug}-auroc"
    return Figure(name, f"AUROC by {printable(column)}", caption, chart, ["value", "auroc", "low", "high"], rows)
