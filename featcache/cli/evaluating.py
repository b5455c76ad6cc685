"""The command that scores a Run on a labelled set from elsewhere: `evaluate`."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from featcache.cli.groups import LABELS, PREDICTION, Keep, RunPrecision
from featcache.cli.options import AllowOutside, Device, Json, RunWeights, takes
from featcache.cli.progress import going_on
from featcache.cli.render import answer, console, escaped, plain_table, print_notes, tell_notes
from featcache.cli.results import SCORES, class_table, confusion_line, score
from featcache.errors import EXIT_SOME_FAILED

_MAX_SHOWN = 20  # subgroups of a column
_PER_SUBGROUP = ("auroc", "accuracy", "recall", "specificity")


@takes(label_options=LABELS, options=PREDICTION)
def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Folder of a Run, or a bundle (MODEL.fcb.zip).")],
    images: Annotated[
        Path,
        typer.Argument(
            help="Labelled images: folder with one folder per class, CSV with a column of paths, or a store."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write. Default: runs/RUN-on-IMAGES.")
    ] = None,
    with_training_images: Annotated[
        bool, typer.Option("--with-training-images", help="Also score images that the Run was trained on.")
    ] = False,
    keep: Keep = None,
    weights: RunWeights = None,
    allow_outside: AllowOutside = False,
    *,
    label_options: Any,
    class_map: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="LABEL=CLASS",
            help="THEIRS=OURS: label THEIRS is class OURS of the Run. Repeatable.",
            rich_help_panel="Labels",
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Report metrics per value of this column; 'folder' is the folder of each image.",
            rich_help_panel="Selection",
        ),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            show_default="group",
            help="Column that identifies patients, for confidence intervals.",
            rich_help_panel="Selection",
        ),
    ] = None,
    options: Any,
    precision: RunPrecision = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a Run on an external labelled set: all metrics with intervals, per class and per subgroup."""
    from featcache.evaluation.evaluate import evaluate
    from featcache.evaluation.labels import pairs_of
    from featcache.evaluation.sets import opened as opened_set
    from featcache.manifest import Manifest
    from featcache.prediction.predictor import load_run

    with ExitStack() as files:
        on_progress, on_note = files.enter_context(going_on("evaluating"))
        predictor = files.enter_context(load_run(run, weights=weights, device=device, precision=precision))
        image_set = opened_set(images, files, allow_outside)
        tell_notes(image_set if isinstance(image_set, Manifest) else None, on_note)
        names = {"labels": label_options.pop("file", None), "label_columns": label_options.pop("columns", ())}
        done = evaluate(
            predictor,
            image_set,
            output,
            class_map=pairs_of(class_map or (), predictor.classes),
            by=by or (),
            group_by=group_by,
            with_training_images=with_training_images,
            keep=keep,
            on_progress=on_progress,
            on_note=on_note,
            **names,
            **label_options,
            **options,
        )
    if as_json:
        answer(done.as_json())
    _print_evaluation(console(as_json), done)
    if done.record["set"]["failed"]:
        raise typer.Exit(EXIT_SOME_FAILED)


# --- what is printed --------------------------------------------------------------------------------------------------


def _print_evaluation(people: Console, done: Any) -> None:
    for table in (_score_table(done), _own_table(done), _class_table(done), *_subgroup_tables(done)):
        people.print(table)
        people.print()
    for line in (*_confusions(done), _majority(done.record)):
        people.print(line, highlight=False)
    print_notes(people, done.notes)
    people.print(_counts(done), highlight=False)


def _score_table(done: Any) -> Table:
    """A line per number: at 0.5 or of the most probable class, and at the operating point."""
    record, point = done.record, done.record["operating_point"]
    columns = [(f"external ({done.metrics['n']:,})", done.metrics)]
    if point:
        columns.append((f"at p ≥ {point['threshold']:.3f}\n(operating point)", point["external"]))
    table = plain_table("", *(title for title, _ in columns))
    for name in SCORES:
        table.add_row(name.replace("_", " "), *(score(scores, name) for _, scores in columns))
    if calibrated := done.metrics.get("calibrated"):
        values = ", ".join(f"{name} {calibrated[name]:.3f}" for name in ("loss", "brier", "ece"))
        table.caption = f"divided by the Run's temperature, {record['temperature']:.3f}: {values}"
    return table


def _own_table(done: Any) -> Table:
    """The main numbers beside those of the Run's own rows, with the difference; decisions where is decided."""
    comparison = done.record["comparison"]
    own_point, point = comparison["own_at_operating_point"], done.record["operating_point"]
    table = plain_table("", "external", f"the Run's own {comparison['subset']} ({comparison['n']:,})", "difference")
    for name in ("auroc", "accuracy", "balanced_accuracy", "recall", "specificity"):
        at_point = name != "auroc" and own_point is not None and point is not None
        own, here = (own_point, point["external"]) if at_point else (comparison["own"], done.metrics)
        differences = comparison["differences_at_operating_point" if at_point else "differences"] or {}
        title = f"{name.replace('_', ' ')}{' (operating point)' if at_point else ''}"
        table.add_row(title, score(here, name), score(own, name), _difference(differences.get(name)))
    table.caption = escaped(
        comparison["reason"] or "the rows are different ones, so intervals of differences are unpaired"
    )
    return table


def _difference(interval: list[float] | None) -> str:
    return f"{interval[0]:+.3f} [{interval[1]:+.3f}, {interval[2]:+.3f}]" if interval else "–"


def _class_table(done: Any) -> Table:
    """A line per class or finding, each against the rest."""
    record, scores = done.record, done.metrics
    if "per_class" not in scores:
        return _two_classes(record, (record["operating_point"] or {}).get("external", scores)["confusion"])
    return class_table(record, scores)


def _two_classes(record: Any, matrix: list[list[int]]) -> Table:
    """How much of each class is found, and how often its name is right, where is decided."""
    table = plain_table("class", "n", "recall", "precision")
    for c, name in enumerate(record["classes"]):
        n, n_called = sum(matrix[c]), sum(row[c] for row in matrix)
        shares = [f"{matrix[c][c] / of:.3f}" if of else "–" for of in (n, n_called)]
        table.add_row(escaped(name), f"{n:,}", *shares)
    point = record["operating_point"]
    at = f"p ≥ {point['threshold']:.3f}" if point else "p ≥ 0.5"
    table.caption = f"positive class: {escaped(record['positive'])}, predicted from {at} on"
    return table


def _subgroup_tables(done: Any) -> Iterator[Table]:
    for column, members in done.record["subgroups"].items():
        table = plain_table(escaped(column), "n", *(name.replace("_", " ") for name in _PER_SUBGROUP), "")
        for member in members[:_MAX_SHOWN]:
            scores = member["at_operating_point"] or member["metrics"]
            numbers = [score(member["metrics"] if name == "auroc" else scores, name) for name in _PER_SUBGROUP]
            name = escaped(member["value"]) or "(empty)"
            table.add_row(name, f"{member['n']:,}", *numbers, escaped(" ".join(member["reasons"])))
        if len(members) > _MAX_SHOWN:
            table.caption = f"the {_MAX_SHOWN} largest of {len(members):,}; all are in subgroups.csv"
        yield table


def _confusions(done: Any) -> Iterator[str]:
    classes, point = done.record["classes"], done.record["operating_point"]
    if "confusion" in done.metrics:
        yield f"external: {confusion_line(classes, done.metrics['confusion'])}"
    if point:
        yield f"external at p ≥ {point['threshold']:.3f}: {confusion_line(classes, point['external']['confusion'])}"


def _majority(record: Any) -> str:
    """What a guess is worth."""
    majority = record["baselines"]["majority"]
    values = ", ".join(
        f"{name} {score(majority, name)}" for name in ("auroc", "accuracy") if majority[name] is not None
    )
    return f"baseline, the most frequent class: {values}"


def _counts(done: Any) -> str:
    about = done.record["set"]
    left_out = ", ".join(f"{n:,} with {escaped(reason)}" for reason, n in done.record["left_out"].items())
    skipped = ", ".join(f"{n} {reason}" for reason, n in about["skipped"].items())
    failed = f", see {escaped(done.path / 'failures.csv')}" if about["failed"] else ""
    return (
        f"[bold]{escaped(done.path)}[/]: found {about['found']:,} = scored {about['scored']:,} + left out "
        f"{sum(done.record['left_out'].values()):,}{f' ({left_out})' if left_out else ''} + failed {about['failed']:,}"
        f"{failed}{f'; skipped {skipped}' if skipped else ''}; in {done.record['seconds']:.1f} s"
    )
