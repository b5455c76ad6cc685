"""Several Runs beside each other, and by how much each is better than the first, on the rows that both report.

A difference is of the same images, named alike, with the same bytes and labels; its interval is `intervals.paired`'s,
whole groups drawn. Runs of other classes stand in the table, and are not subtracted.
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
    shown,
    with_sign,
)
from featcache.reporting.run_view import CALLED, RunView
from featcache.reporting.tables import MOVED, settings
from featcache.runs.backbone import identity_of
from featcache.training import selection

Array = np.ndarray[Any, Any]
Difference = tuple[int, dict[str, list[float]]]

_SHOWN = ("auroc", "accuracy", "recall", "specificity")


def compared(run_views: Sequence[RunView]) -> Chapter:
    """What is said of several Runs together."""
    first, *other_runs = run_views
    lead = (
        f"{len(run_views)} Runs beside each other. Differences are those from {first.name}, on the images that both "
        f"report, the same for both, with 95 % intervals of the difference."
    )
    blocks: list[Block] = [_beside(run_views)]
    differences = [(other, difference(first, other)) for other in other_runs]
    figures = [figure for figure in (_areas(run_views), _differences(first, differences)) if figure]
    blocks += [Abreast([figure]) for figure in figures]
    blocks += _tables(first, differences)
    blocks += _settings(run_views)
    section = Section("comparison-numbers", "Numbers and differences", blocks)
    return Chapter("comparison", "Comparison", lead, sections=[section])


def _beside(run_views: Sequence[RunView]) -> Table:
    rows, data = [], []
    for run_view in run_views:
        side = run_view.reported
        backbone = printable(str(identity_of(run_view.run)["backbone"]["name"]))
        about = f"{run_view.record['head']['kind']} on {backbone}{_unmoved(run_view)}"
        where = f"called from {shown(run_view.threshold)}" if run_view.threshold is not None else ""
        n = len(run_view.sides[side])
        rows_of = Cell(f"{n:,} {CALLED[side]}", small=where)
        values = [_value(run_view, name) for name in _SHOWN]
        cells = [number(value, interval) for value, interval in values]
        rows.append([head(run_view.name, about), count(run_view.run.n_parameters), rows_of, *cells])
        for name, (value, interval) in zip(_SHOWN, values, strict=True):
            low, high = interval or ("", "")
            data.append([run_view.name, side, n, name, "" if value is None else value, low, high])
    header = ["Run", "parameters that learnt", "images", *map(name_of, _SHOWN)]
    csv = (["run", "side", "n", "number", "value", "low", "high"], data)
    note = "At the operating point where there is one, else at 0.5 or by the likeliest class."
    return Table("comparison-runs", "Numbers of each Run", header, rows, note, data=csv)


def _unmoved(run_view: RunView) -> str:
    """That a training on the pixels came to nothing: its best weights are those that it began with."""
    parent = run_view.record.get("parent")
    gained = [value for _, value in flatten(run_view.record.get("gain") or {})]
    if not parent or any(value for triple in gained for value in triple):
        return ""
    return f"; no epoch was better than {printable(parent['run'])}, whose weights these are"


def _value(run_view: RunView, name: str) -> tuple[float | None, Sequence[float] | None]:
    scores = run_view.scores(run_view.reported, name in MOVED and run_view.threshold is not None)
    return scores.get(name), scores.get("intervals", {}).get(name)


def _settings(run_views: Sequence[RunView]) -> list[Block]:
    """What the Runs were asked for, where that differs."""
    all_settings = [settings(run_view) for run_view in run_views]
    names = list(dict.fromkeys(name for all_setting in all_settings for name in all_setting))
    differing = [name for name in names if len({all_setting.get(name) for all_setting in all_settings}) > 1]
    if not differing:
        return []
    setting_rows = [[name, *(all_setting.get(name, NOTHING) for all_setting in all_settings)] for name in differing]
    header = ["", *(run_view.name for run_view in run_views)]
    rows = [[head(name), *map(Cell, values)] for name, *values in setting_rows]
    return [Table("comparison-settings", "What was done differently", header, rows, data=(header, setting_rows))]


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
    chart = charts.forest(estimates, f"AUROC − that of {first.name}", 0.0, f"Differences of AUROC: {text}.")
    header = ["run", "difference", "low", "high"]
    caption = "An interval that holds 0 says that the difference may be chance."
    return Figure("comparison-difference", f"AUROC above {first.name}", caption, chart, header, rows)


def _tables(first: RunView, compared_runs: Sequence[tuple[RunView, Difference | str]]) -> list[Block]:
    rows, data, left_out = [], [], []
    for other, differences in compared_runs:
        if isinstance(differences, str):
            left_out.append(Words(f"{other.name} is not subtracted: {differences}.", "gone"))
            continue
        n, remark = differences
        cells = []
        for name in _SHOWN:
            value, low, high = remark.get(name, (None, 0.0, 0.0))
            interval = interval_of((low, high), signed=True) if value is not None else ""
            cells.append(Cell(NOTHING if value is None else with_sign(value), value, interval))
        data += [[other.name, n, name, *remark[name]] for name in COMPARED if name in remark]
        rows.append([head(other.name), count(n), *cells])
    if not rows:
        return list(left_out)
    header = [f"minus {first.name}", "images of both", *map(name_of, _SHOWN)]
    csv = (["run", "n", "number", "difference", "low", "high"], data)
    note = "Each called at its own operating point, where it has one."
    return [Table("comparison-differences", "Differences, paired", header, rows, note, data=csv), *left_out]


def difference(first: RunView, other: RunView) -> Difference | str:
    """The number of rows that both report, and [difference, low, high] of each of `intervals.COMPARED`; or why it
    cannot be had."""
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
        return "it reports other images"
    mine, its = np.array(pairs).T
    here, there = first.labels(first.reported)[mine], other.labels(other.reported)[its]
    if not np.array_equal(here, there, equal_nan=first.task.has_findings):
        return "it has other labels for the same images"
    before, after = first.sides[first.reported].logits[mine], other.sides[other.reported].logits[its]
    rows = np.array(_rows(first))[mine]
    thresholds = (first.threshold, other.threshold)
    return len(pairs), selection.change(first.task, first.protocol, rows, before, after, thresholds)


def _rows(run_view: RunView) -> list[int]:
    rows: list[int] = run_view.sides[run_view.reported].rows.tolist()
    return rows
