"""Parts of the report that only an evaluation on external images has: the set, the comparison with the Run's own data,
and the subgroups.

Nothing is computed here: every number is read from the record.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featcache.figures import charts
from featcache.figures.charts import Estimate
from featcache.identity import Json
from featcache.names import plural, printable
from featcache.reporting.document import (
    Abreast,
    Block,
    Cell,
    Facts,
    Figure,
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
from featcache.reporting.run_view import RunView
from featcache.reporting.tables import MOVED, SCORES
from featcache.runs.backbone import identity_of, said_by
from featcache.training.results import EXTERNAL, OUTER, TEST, VAL

_OWN = {TEST: "test", OUTER: "outer fold", VAL: "validation"}
_PER_SUBGROUP = ("auroc", "accuracy", "recall", "specificity")
_MOST_SUBGROUPS = 20


def lead(run_view: RunView, kind: str) -> str:
    """One sentence about the Run and the images."""
    record = run_view.record
    backbone = printable(str(identity_of(run_view.run)["backbone"]["name"]))
    run = f"The {'bundle' if record['run']['is_bundle'] else 'Run'} {printable(record['run']['name'])}"
    overlap = (
        "may include training images" if record["asked"].get("with_training_images") else "no known training images"
    )
    n_images = plural(record["set"]["scored"], "image")
    return f"{run} ({kind} on {backbone} features), evaluated on {n_images} of {_source(record)}; {overlap}."


def _source(record: Json) -> str:
    """The last part of the name of the set."""
    return printable(str(record["set"]["source"]).rstrip("/").rpartition("/")[2]) or "a set"


# --- data and model ---------------------------------------------------------------------------------------------------


def data_blocks(run_view: RunView) -> list[Block]:
    """The Run, the images, their counts, and the mapping of labels to classes."""
    with said_by(run_view.run):
        return [Words(_counts_text(run_view)), _counts(run_view), Facts(list(_facts(run_view)))]


def _counts_text(run_view: RunView) -> str:
    about, left_out = run_view.record["set"], run_view.record["left_out"]
    n_groups, n = about["n_groups"], about["scored"]
    reasons = ", ".join(f"{m:,} with {printable(reason)}" for reason, m in left_out.items())
    groups = (
        "The patients are unknown: every image is treated as its own group."
        if n_groups == n
        else f"They form {n_groups:,} groups (patients, identical images), for which the confidence intervals account."
    )
    excluded = f"; excluded: {reasons}" if left_out else ""
    failed = f"; {about['failed']:,} could not be read" if about["failed"] else ""
    return (
        f"{n:,} of {plural(about['found'], 'image')} were evaluated{excluded}{failed}. {groups} Head, temperature, "
        f"positive class and operating point are those of the Run; no selection used these images."
    )


def _counts(run_view: RunView) -> Table:
    n, total = run_view.task.counts(run_view.subsets[EXTERNAL].rows).tolist(), len(run_view.subsets[EXTERNAL])
    cells = [Cell(f"{n_images:,}", n_images, f"{n_images / total:.1%}") for n_images in n]
    data = (["subset", "images", *run_view.classes], [[EXTERNAL, total, *n]])
    header = ["subset", "images", *run_view.classes]
    caption = "Images by label" if run_view.task.has_findings else "Images by class"
    return Table(f"{run_view.slug}-counts", caption, header, [[head("external"), count(total), *cells]], data=data)


def _facts(run_view: RunView) -> Iterator[tuple[str, str]]:
    record, identity = run_view.record, identity_of(run_view.run)
    about, request, backbone, transform = record["set"], record["asked"], identity["backbone"], identity["transform"]
    yield "Run", printable(record["run"]["name"]) + (", a bundle" if record["run"]["is_bundle"] else "")
    yield "Head", f"{record['head']['kind']}, {record['n_parameters']:,} trainable parameters"
    yield "Images", printable(str(about["source"]))
    columns = printable(listed(request.get("label_columns") or ["label"]))
    yield "Labels", f"column {columns}" + (f" of {printable(str(request['labels']))}" if request.get("labels") else "")
    for title, pairs in (("Labels matched by spelling", about["respelled"]), ("Labels mapped", about["mapped"])):
        if pairs:
            yield title, printable("; ".join(f"{text} as {name}" for text, name in pairs.items()))
    if about["unknown_labels"]:
        unknown = "; ".join(f"{text} ({n:,})" for text, n in about["unknown_labels"].items())
        yield "Labels unknown to the Run", printable(unknown)
    yield (
        "Patients",
        printable(f"column {request['split']['group_by']}") if request["split"]["group_by"] else "unknown",
    )
    yield "Backbone", printable(str(backbone["name"]))
    yield "Weights (sha256)", f"`{backbone['weights_sha256']}"
    yield "Input", f"{' × '.join(map(str, transform['input_size']))} pixels, {transform['interpolation']}"
    yield "Vectors (identity)", f"`{record['identity_sha256']}"
    environment = record["environment"]
    yield (
        "Software",
        ", ".join(
            f"{name} {environment[name]}" for name in ("featcache", "torch", "timm", "numpy") if name in environment
        ),
    )


# --- comparison with the Run's own data -------------------------------------------------------------------------------


def comparison(run_view: RunView) -> list[Block]:
    """Metrics on the external images, on the Run's own subset, and their difference with its interval."""
    comparison = run_view.record["comparison"]
    where = _OWN.get(comparison["subset"], comparison["subset"])
    header = ["metric", "external images", f"the Run's {where} images", "difference"]
    rows, data = [], []
    for name, key, own, external in _pairs(run_view):
        value, *ends = (comparison[f"differences{key}"] or {}).get(name) or (None,)
        at = "at the operating point" if key else ""
        change = Cell("–") if value is None else Cell(with_sign(value), value, interval_of(ends, signed=True))
        cells = [number(scores.get(name), scores.get("intervals", {}).get(name)) for scores in (external, own)]
        rows.append([head(name_of(name), at), *cells, change])
        data.append([name, at or "0.5", external.get(name), own.get(name), value, *(ends or (None, None))])
    csv = ["metric", "threshold", "external", "own", "difference", "low", "high"]
    note = comparison["reason"] or (
        "The two sets have different images, so the intervals of differences are unpaired (MOVER). If an interval "
        "excludes 0, the difference is significant at the 5 % level."
    )
    lines = [["" if value is None else value for value in row] for row in data]
    caption = f"Performance on external images and on the Run's {where} images"
    table = Table(f"{run_view.slug}-own", caption, header, rows, note, data=(csv, lines))
    return [table, *_without_training_images(run_view)]


def _pairs(run_view: RunView) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    """(metric, suffix of the record's key, own scores, external scores), at the operating point if there is one."""
    comparison = run_view.record["comparison"]
    at_point = comparison["own_at_operating_point"] and run_view.threshold is not None
    for name in ("auroc", "accuracy", "balanced_accuracy", "recall", "specificity"):
        if at_point and name in MOVED:
            yield name, "_at_operating_point", comparison["own_at_operating_point"], run_view.scores(EXTERNAL, True)
        else:
            yield name, "", comparison["own"], run_view.scores(EXTERNAL)


def _without_training_images(run_view: RunView) -> list[Block]:
    """Metrics without the Run's training images, if the evaluation includes some."""
    others = run_view.record["without_training_images"]
    if not others:
        return []
    columns = [run_view.scores(EXTERNAL), others["metrics"]]
    rows = [
        [head(name_of(name)), *(number(column.get(name), column.get("intervals", {}).get(name)) for column in columns)]
        for name in SCORES
    ]
    header = ["metric", "all images", f"without training images ({others['n']:,})"]
    data = [[name, *("" if column.get(name) is None else column[name] for column in columns)] for name in SCORES]
    csv = (["metric", "all", "without_training_images"], data)
    return [Table(f"{run_view.slug}-unseen", "Performance without training images", header, rows, data=csv)]


# --- subgroups --------------------------------------------------------------------------------------------------------


def subgroups(run_view: RunView) -> list[Block]:
    """A table and a forest plot for each column in `by` of the evaluation."""
    subgroups = run_view.record["subgroups"]
    if not subgroups:
        return [Words("For metrics by site, view or folder, name a column in the evaluation.", "hint")]
    blocks: list[Block] = []
    for i, (column, members) in enumerate(subgroups.items(), start=1):
        blocks += _column(run_view, f"{run_view.slug}-subgroups-{i}", column, members)
    return blocks


def _column(run_view: RunView, name: str, column: str, members: Sequence[Mapping[str, Any]]) -> list[Block]:
    classes = run_view.classes if len(run_view.classes) <= 3 else []
    rows, data = [], []
    for member in members:
        scores = [_numbers(member, metric) for metric in _PER_SUBGROUP]
        cells = [
            number(score.get(of), score.get("intervals", {}).get(of))
            for of, score in zip(_PER_SUBGROUP, scores, strict=True)
        ]
        support = [count(n) for n in member["support"]] if classes else []
        label = printable(member["value"]) or "(empty)"
        rows.append([head(label, " ".join(map(printable, member["reasons"]))), count(member["n"]), *support, *cells])
        for of, score in zip(_PER_SUBGROUP, scores, strict=True):
            low, high = score.get("intervals", {}).get(of) or ("", "")
            data.append([label, member["n"], of, "" if score.get(of) is None else score[of], low, high])
    at = "" if run_view.threshold is None else f" Decisions at p ≥ {run_view.threshold:.3f}."
    rest = (
        f" The table shows the {_MOST_SUBGROUPS} largest of {len(rows):,} groups."
        if len(rows) > _MOST_SUBGROUPS
        else ""
    )
    header = [printable(column), "images", *classes, *map(name_of, _PER_SUBGROUP)]
    csv = (["value", "n", "metric", "estimate", "low", "high"], data)
    note = f"In brackets: 95 % confidence intervals.{at}{rest}"
    caption = f"Performance by “{printable(column)}”"
    blocks: list[Block] = [Table(name, caption, header, rows[:_MOST_SUBGROUPS], note, data=csv)]
    if figure := _forest(run_view, name, column, members[:_MOST_SUBGROUPS]):
        blocks.append(Abreast([figure]))
    return blocks


def _numbers(member: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The scores of a subgroup that hold a metric: at the operating point if it depends on the threshold."""
    scores: Mapping[str, Any] = (member["at_operating_point"] if name in MOVED else None) or member["metrics"]
    return scores


def _forest(run_view: RunView, name: str, column: str, members: Sequence[Mapping[str, Any]]) -> Figure | None:
    whole, estimates, rows = run_view.scores(EXTERNAL)["auroc"], [], []
    for member in members:
        value, interval = member["metrics"]["auroc"], member["metrics"]["intervals"].get("auroc")
        if value is not None and interval:
            label = f"{printable(member['value'])[:36] or '(empty)'} ({member['n']:,})"
            estimates.append(Estimate(label, value, tuple(interval)))
            rows.append([label, value, *interval])
    if len(estimates) < 2 or whole is None:
        return None
    title = f"AUROC by {printable(column)}"
    alt = "; ".join(
        f"{estimate.label} {number_text(estimate.value)} {interval_of(estimate.interval)}" for estimate in estimates
    )
    chart = charts.forest(estimates, "AUROC", whole, f"{title}: {alt}.")
    caption = f"The dotted line is the AUROC of all images, {number_text(whole)}."
    return Figure(f"{name}-auroc", title, caption, chart, ["value", "auroc", "low", "high"], rows)
