"""What a page says of an evaluation and of no Run: which Run on which set, its numbers beside those of the Run's own
rows, and the subgroups.

Computes nothing: every number is the record's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featcache.figures import charts
from featcache.figures.charts import Estimate
from featcache.identity import Json
from featcache.names import printable
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
    shown,
    with_sign,
)
from featcache.reporting.run_view import RunView
from featcache.reporting.tables import MOVED, SCORES
from featcache.runs.backbone import identity_of, said_by
from featcache.training.results import EXTERNAL, OUTER, TEST, VAL

_OWN = {TEST: "test", OUTER: "outer folds", VAL: "validation"}
_PER_SUBGROUP = ("auroc", "accuracy", "recall", "specificity")
_MOST_SUBGROUPS = 20


def lead(run_view: RunView, kind: str) -> str:
    """What was evaluated on what, in a sentence."""
    record = run_view.record
    backbone = printable(str(identity_of(run_view.run)["backbone"]["name"]))
    run = f"The {'bundle' if record['run']['is_bundle'] else 'Run'} {printable(record['run']['name'])}"
    has_learnt = bool(record["asked"].get("with_training_images"))
    learnt = "some of which it may have learnt from" if has_learnt else "none of which it is known to have learnt from"
    n_images = f"{record['set']['scored']:,} images of {_source(record)}"
    return f"{run}, {kind} on the vectors of {backbone}: {n_images}, {learnt}."


def _source(record: Json) -> str:
    """The last part of the name of the set."""
    return printable(str(record["set"]["source"]).rstrip("/").rpartition("/")[2]) or "a set"


# --- what was evaluated -----------------------------------------------------------------------------------------------


def what(run_view: RunView) -> list[Block]:
    """The Run, the set, who takes part, and how labels became classes."""
    with said_by(run_view.run):
        return [Words(_counts_in_words(run_view)), _counts(run_view), Facts(list(_facts(run_view)))]


def _counts_in_words(run_view: RunView) -> str:
    about, left_out = run_view.record["set"], run_view.record["left_out"]
    n_groups, n = about["n_groups"], about["scored"]
    reasons = ", ".join(f"{m:,} with {printable(reason)}" for reason, m in left_out.items())
    groups = (
        "No patients are known in the set: each image counts as its own."
        if n_groups == n
        else f"They are {n_groups:,} groups (patients, identical images), each of which is one witness in intervals."
    )
    out = f"; left out are {reasons}" if left_out else ""
    failed = f"; {about['failed']:,} could not be read" if about["failed"] else ""
    return (
        f"Of {about['found']:,} images {n:,} are scored{out}{failed}. {groups} Head, temperature, positive class and "
        f"operating point are the Run's: nothing was chosen on these images."
    )


def _counts(run_view: RunView) -> Table:
    n, total = run_view.task.counts(run_view.sides[EXTERNAL].rows).tolist(), len(run_view.sides[EXTERNAL])
    cells = [Cell(f"{subset:,}", subset, f"{subset / total:.1%}") for subset in n]
    data = (["subset", "images", *run_view.classes], [[EXTERNAL, total, *n]])
    header = ["", "images", *run_view.classes]
    return Table(
        f"{run_view.slug}-counts", "Images by class", header, [[head("external"), count(total), *cells]], data=data
    )


def _facts(run_view: RunView) -> Iterator[tuple[str, str]]:
    record, identity = run_view.record, identity_of(run_view.run)
    about, request, backbone, transform = record["set"], record["asked"], identity["backbone"], identity["transform"]
    yield "Run", printable(record["run"]["name"]) + (", a bundle" if record["run"]["is_bundle"] else "")
    yield "Head", f"{record['head']['kind']}, {record['n_parameters']:,} parameters that learnt"
    yield "Set", printable(str(about["source"]))
    columns = printable(listed(request.get("label_columns") or ["label"]))
    yield "Labels", f"column {columns}" + (f" of {printable(str(request['labels']))}" if request.get("labels") else "")
    for title, pairs in (("Read by spelling", about["respelled"]), ("Read as asked", about["mapped"])):
        if pairs:
            yield title, printable("; ".join(f"{text} as {name}" for text, name in pairs.items()))
    if about["unknown_labels"]:
        unknown = "; ".join(f"{text} ({n:,})" for text, n in about["unknown_labels"].items())
        yield "Labels that the Run does not know", printable(unknown)
    yield (
        "Patients",
        printable(f"column {request['split']['group_by']}") if request["split"]["group_by"] else "not known",
    )
    yield "Backbone", printable(str(backbone["name"]))
    yield "Weights (sha256)", f"`{backbone['weights_sha256']}"
    yield "Images seen at", f"{' × '.join(map(str, transform['input_size']))} pixels, {transform['interpolation']}"
    yield "Vectors (identity)", f"`{record['identity_sha256']}"
    environment = record["environment"]
    yield (
        "Computed with",
        ", ".join(
            f"{name} {environment[name]}" for name in ("featcache", "torch", "timm", "numpy") if name in environment
        ),
    )


# --- beside the Run's own rows ----------------------------------------------------------------------------------------


def comparison(run_view: RunView) -> list[Block]:
    """The numbers of the set, those of the Run's own rows, and the difference with its interval."""
    comparison = run_view.record["comparison"]
    where = _OWN.get(comparison["subset"], comparison["subset"])
    header = ["", "external", f"the Run's own {where} rows", "difference"]
    rows, data = [], []
    for name, key, own, external in _pairs(run_view):
        value, *ends = (comparison[f"differences{key}"] or {}).get(name) or (None,)
        at = "at the operating point" if key else ""
        change = Cell("–") if value is None else Cell(with_sign(value), value, interval_of(ends, signed=True))
        cells = [number(run_view.get(name), run_view.get("intervals", {}).get(name)) for run_view in (external, own)]
        rows.append([head(name_of(name), at), *cells, change])
        data.append([name, at or "0.5", external.get(name), own.get(name), value, *(ends or (None, None))])
    csv = ["number", "called_from", "external", "own", "difference", "low", "high"]
    note = comparison["reason"] or (
        "The two are of different images, so intervals of differences are unpaired (MOVER). One that does not hold 0 "
        "says that the difference is more than chance explains."
    )
    empty = [["" if value is None else value for value in row] for row in data]
    table = Table(f"{run_view.slug}-own", "Beside the Run's own rows", header, rows, note, data=(csv, empty))
    return [table, *_without_training_images(run_view)]


def _pairs(run_view: RunView) -> Iterator[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    """(number, key of the record, own numbers, those of the set), decisions where is decided."""
    comparison = run_view.record["comparison"]
    at_point = comparison["own_at_operating_point"] and run_view.threshold is not None
    for name in ("auroc", "accuracy", "balanced_accuracy", "recall", "specificity"):
        if at_point and name in MOVED:
            yield name, "_at_operating_point", comparison["own_at_operating_point"], run_view.scores(EXTERNAL, True)
        else:
            yield name, "", comparison["own"], run_view.scores(EXTERNAL)


def _without_training_images(run_view: RunView) -> list[Block]:
    """Where images that the Run learnt from are scored too: the numbers of the others."""
    unseen = run_view.record["without_training_images"]
    if not unseen:
        return []
    columns = [run_view.scores(EXTERNAL), unseen["metrics"]]
    rows = [
        [head(name_of(name)), *(number(column.get(name), column.get("intervals", {}).get(name)) for column in columns)]
        for name in SCORES
    ]
    header = ["", "all images", f"the {unseen['n']:,} that it has not learnt from"]
    data = [[name, *("" if column.get(name) is None else column[name] for column in columns)] for name in SCORES]
    csv = (["number", "all", "not_learnt_from"], data)
    return [Table(f"{run_view.slug}-unseen", "Without images that the Run learnt from", header, rows, data=csv)]


# --- subgroups --------------------------------------------------------------------------------------------------------


def subgroups(run_view: RunView) -> list[Block]:
    """A table and a forest for each column that the evaluation was asked for."""
    subgroups = run_view.record["subgroups"]
    if not subgroups:
        return [Words("For numbers per site, view or folder, name a column when the set is evaluated.", "hint")]
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
    at = "" if run_view.threshold is None else f" Called at p ≥ {run_view.threshold:.3f}."
    rest = f" The {_MOST_SUBGROUPS} largest of {len(rows):,}." if len(rows) > _MOST_SUBGROUPS else ""
    header = [printable(column), "images", *classes, *map(name_of, _PER_SUBGROUP)]
    csv = (["value", "n", "number", "estimate", "low", "high"], data)
    note = f"In brackets 95 % intervals.{at}{rest}"
    caption = f"By “{printable(column)}”"
    blocks: list[Block] = [Table(name, caption, header, rows[:_MOST_SUBGROUPS], note, data=csv)]
    if figure := _forest(run_view, name, column, members[:_MOST_SUBGROUPS]):
        blocks.append(Abreast([figure]))
    return blocks


def _numbers(member: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Where a number of a subgroup is: decisions at the operating point, where there is one."""
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
        f"{estimate.label} {shown(estimate.value)} {interval_of(estimate.interval)}" for estimate in estimates
    )
    chart = charts.forest(estimates, "AUROC", whole, f"{title}: {alt}.")
    caption = f"The dotted line is the AUROC of all, {shown(whole)}."
    return Figure(f"{name}-auroc", title, caption, chart, ["value", "auroc", "low", "high"], rows)
