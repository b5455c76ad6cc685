"""Comparison of several Runs: their metrics, and differences from the first Run on the images that both report.

Differences are paired: images match by name, content and label; intervals are those of `intervals.paired`, by group. A
Run with other classes is listed without differences.
Letters: n rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from featcache.figures import charts
from featcache.figures.charts import Estimate
from featcache.identity import flatten
from featcache.metrics.intervals import COMPARED
from featcache.names import printable
from featcache.reporting.document import (
    NOTHING,
    Abreast,
    Block,
    Cell,
    Chapter,
    Figure,
    Section,
    Table,
    Words,
    count,
    head,
    interval_of,
    listed,
    name_of,
    number,
    number_text,
    with_sign,
)
from featcache.reporting.run_view import SUBSET_NAMES, RunView
from featcache.reporting.tables import MOVED, settings
from featcache.runs.backbone import identity_of
from featcache.training import selection

Array = np.ndarray[Any, Any]
Difference = tuple[int, dict[str, list[float]]]

_METRICS = ("auroc", "accuracy", "recall", "specificity")


def compared(run_views: Sequence[RunView]) -> Chapter:
    """The chapter that compares several Runs."""
    first, *others = run_views
    lead = (
        f"Comparison of {len(run_views)} Runs. Differences are relative to {first.name} and paired by image, with 95 % "
        f"confidence intervals."
    )
    blocks: list[Block] = [_beside(run_views)]
    differences = [(run_view, difference(first, run_view)) for run_view in others]
    figures = [figure for figure in (_areas(run_views), _differences(first, differences)) if figure]
    blocks += [Abreast([figure]) for figure in figures]
    blocks += _tables(first, differences)
    blocks += _settings(run_views)
    section = Section("comparison-performance", "Performance and differences", blocks)
    return Chapter("comparison", "Comparison", lead, sections=[section])


def _beside(run_views: Sequence[RunView]) -> Table:
    rows, data = [], []
    for run_view in run_views:
        subset = run_view.reported
        backbone = printable(str(identity_of(run_view.run)["backbone"]["name"]))
        about = f"{run_view.record['head']['kind']} on {backbone}{_unmoved(run_view)}"
        where = f"positive if p ≥ {number_text(run_view.threshold)}" if run_view.threshold is not None else ""
        n = len(run_view.subsets[subset])
        rows_of = Cell(f"{n:,} {SUBSET_NAMES[subset]}", small=where)
        values = [_value(run_view, name) for name in _METRICS]
        cells = [number(value, interval) for value, interval in values]
        rows.append([head(run_view.name, about), count(run_view.run.n_parameters), rows_of, *cells])
        for name, (value, interval) in zip(_METRICS, values, strict=True):
            low, high = interval or ("", "")
            data.append([run_view.name, subset, n, name, "" if value is None else value, low, high])
    header = ["Run", "trainable parameters", "images", *map(name_of, _METRICS)]
    csv = (["run", "subset", "n", "metric", "value", "low", "high"], data)
    note = "Decisions are made at the operating point, or at 0.5 (argmax) if a Run has none."
    return Table("comparison-runs", "Performance of each Run", header, rows, note, data=csv)


def _unmoved(run_view: RunView) -> str:
    """A changes if fine-tuning changed nothing: the best weights are the initial ones."""
    parent = run_view.record.get("parent")
    changes = [value for _, value in flatten(run_view.record.get("gain") or {})]
    if not parent or any(value for triple in changes for value in triple):
        return ""
    return f"; no epoch improved on {printable(parent['run'])}, so its weights were kept"


def _value(run_view: RunView, name: str) -> tuple[float | None, Sequence[float] | None]:
    scores = run_view.scores(run_view.reported, name in MOVED and run_view.threshold is not None)
    return scores.get(name), scores.get("intervals", {}).get(name)


def _settings(run_views: Sequence[RunView]) -> list[Block]:
    """The settings in which the Runs differ."""
    settings_of = [settings(run_view) for run_view in run_views]
    names = list(dict.fromkeys(name for values in settings_of for name in values))
    differing = [name for name in names if len({values.get(name) for values in settings_of}) > 1]
    if not differing:
        return []
    data = [[name, *(values.get(name, NOTHING) for values in settings_of)] for name in differing]
    header = ["setting", *(run_view.name for run_view in run_views)]
    rows = [[head(name), *map(Cell, values)] for name, *values in data]
    return [Table("comparison-settings", "Settings that differ", header, rows, data=(header, data))]


def _areas(run_views: Sequence[RunView]) -> Figure | None:
    rows, estimates = [], []
    for run_view in run_views:
        value, interval = _value(run_view, "auroc")
        if value is not None and interval:
            low, high = interval
            estimates.append(Estimate(run_view.name, value, (low, high)))
            rows.append([run_view.name, value, low, high])
    if not estimates:
        return None
    text = "; ".join(
        f"{estimate.label} {estimate.value:.3f} {interval_of(estimate.interval)}" for estimate in estimates
    )
    chart = charts.forest(estimates, "AUROC", None, f"AUROC of each Run: {text}.")
    return Figure("comparison-auroc", "AUROC", "", chart, ["run", "auroc", "low", "high"], rows)


def _differences(first: RunView, compared_runs: Sequence[tuple[RunView, Difference | str]]) -> Figure | None:
    rows, estimates = [], []
    for other, differences in compared_runs:
        if isinstance(differences, str) or "auroc" not in differences[1]:
            continue
        value, low, high = differences[1]["auroc"]
        estimates.append(Estimate(other.name, value, (low, high)))
        rows.append([other.name, value, low, high])
    if not estimates:
        return None
    text = "; ".join(
        f"{estimate.label} {with_sign(estimate.value)} {interval_of(estimate.interval, signed=True)}"
        for estimate in estimates
    )
    chart = charts.forest(estimates, f"AUROC − AUROC of {first.name}", 0.0, f"Differences of AUROC: {text}.")
    header = ["run", "difference", "low", "high"]
    caption = "If the interval includes 0, the difference is not significant at the 5 % level."
    return Figure("comparison-difference", f"AUROC difference from {first.name}", caption, chart, header, rows)


def _tables(first: RunView, compared_runs: Sequence[tuple[RunView, Difference | str]]) -> list[Block]:
    rows, data, left_out = [], [], []
    for other, differences in compared_runs:
        if isinstance(differences, str):
            left_out.append(Words(f"There is no difference for {other.name}: {differences}.", "gone"))
            continue
        n, changes = differences
        cells = []
        for name in _METRICS:
            value, low, high = changes.get(name, (None, 0.0, 0.0))
            interval = interval_of((low, high), signed=True) if value is not None else ""
            cells.append(Cell(NOTHING if value is None else with_sign(value), value, interval))
        data += [[other.name, n, name, *changes[name]] for name in COMPARED if name in changes]
        rows.append([head(other.name), count(n), *cells])
    if not rows:
        return list(left_out)
    header = ["Run", "common images", *map(name_of, _METRICS)]
    csv = (["run", "n", "metric", "difference", "low", "high"], data)
    note = "Each Run decides at its own operating point, if it has one."
    caption = f"Paired differences from {first.name}"
    return [Table("comparison-differences", caption, header, rows, note, data=csv), *left_out]


def difference(first: RunView, other: RunView) -> Difference | str:
    """The number of common images and [difference, low, high] by `intervals.COMPARED`; or why there is none."""
    if (first.task.classes, first.task.has_findings) != (other.task.classes, other.task.has_findings):
        return f"it has other classes ({listed(other.classes)})"
    if first.task.positive != other.task.positive and first.is_binary:
        return f"its positive class is {other.positive}"
    place = {(other.task.image_ids[row], other.task.content[row]): i for i, row in enumerate(_rows(other))}
    pairs = []
    for i, row in enumerate(_rows(first)):
        j = place.get((first.task.image_ids[row], first.task.content[row]))
        if j is not None:
            pairs.append((i, j))
    if not pairs:
        return "the Runs have no images in common"
    mine, its = np.array(pairs).T
    here, there = first.labels(first.reported)[mine], other.labels(other.reported)[its]
    if not np.array_equal(here, there, equal_nan=first.task.has_findings):
        return "it has other labels for the same images"
    before, after = first.subsets[first.reported].logits[mine], other.subsets[other.reported].logits[its]
    rows = np.array(_rows(first))[mine]
    thresholds = (first.threshold, other.threshold)
    return len(pairs), selection.change(first.task, first.protocol, rows, before, after, thresholds)


def _rows(run_view: RunView) -> list[int]:
    rows: list[int] = run_view.subsets[run_view.reported].rows.tolist()
    return rows
