"""The command `audit`: writes the tables and prints their first rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from featcache.cli.options import AllowOutside, Json, StoreFile
from featcache.cli.progress import interruptible, progress
from featcache.cli.render import answer, console, escaped, plain_table, print_notes, tell_notes
from featcache.names import plural


def audit_command(
    store: StoreFile,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder or CSV of the embedded images; image sizes, bit depths and formats are then tested as well."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the tables.", show_default="audit/STORE")
    ] = None,
    label_column: Annotated[
        list[str] | None,
        typer.Option(
            help="Column with the classes. Repeat the option for one column per finding.", show_default="label"
        ),
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Column that is not a confounder. Repeatable.")] = None,
    near: Annotated[
        float | None,
        typer.Option(help="Cosine similarity from which two images count as near-duplicates.", show_default="0.95"),
    ] = None,
    allow_outside: AllowOutside = False,
    as_json: Json = False,
) -> None:
    """Find duplicates, confounders, outliers and probable label errors in a store."""
    from featcache.auditing.audit import NEAR, audit
    from featcache.auditing.results import check_free
    from featcache.manifest import Manifest
    from featcache.store import Store

    folder = output or Path("audit") / store.stem
    check_free(folder)
    arguments: dict[str, Any] = {
        "label": label_column or "label",
        "ignore": ignore or (),
        "near": NEAR if near is None else near,
    }
    with interruptible("nothing was changed"), progress("auditing", "steps/s") as (on_progress, on_note):
        manifest = Manifest.read(images, allow_outside=allow_outside) if images is not None else None
        tell_notes(manifest, on_note)
        with Store.open(store) as opened:
            result = audit(opened, manifest, on_progress=on_progress, **arguments)
        result.write(folder)
    if as_json:
        answer({**result.as_json(), "tables": str(folder)})
    print_audit(console(as_json), result, folder)


def print_audit(people: Console, result: Any, folder: Path) -> None:
    """Prints the first rows of each table."""
    for line in (_copies(result), *_near_copies(result)):
        people.print(line, highlight=False, soft_wrap=True)
    if result.confounds:
        people.print(_confounds(result))
    for line in (*_label_lines(result), *_excluded(result)):
        people.print(line, highlight=False, soft_wrap=True)
    n_issues = 0 if result.label_issues is None else int(result.label_issues.is_issue.sum())
    for title, rows in (
        ("outliers", result.top_outliers()),
        (f"label issues ({n_issues:,} by confident learning)", result.top_label_issues()),
    ):
        if rows:
            people.print(title, style="bold")
            people.print(_rows(rows))
    print_notes(people, result.notes)
    people.print(f"[bold]{escaped(folder)}[/]: complete tables", highlight=False, soft_wrap=True)


def _copies(result: Any) -> str:
    crossing = sum(copies.crosses for copies in result.identical)
    other = sum(len(copies.labels) > 1 for copies in result.identical)
    n_images = sum(len(copies.images) for copies in result.identical)
    return (
        f"{plural(len(result.identical), 'set')} of identical images ({plural(n_images, 'file')}), {crossing:,} "
        f"of them across splits, {other:,} with different labels"
    )


def _near_copies(result: Any) -> Iterator[str]:
    n, n_across = (result.near.count(across) for across in (False, True))
    text = "nearly all pairs"
    if n is not None:
        text = f"{plural(n, 'pair')} of different files, {n_across:,} of them across splits"
    if result.n_equal:
        yield f"{plural(result.n_equal, 'image')} with the vector of a different file"
    yield f"cosine similarity of {result.threshold:g} or more: {text}"
    for pair in result.top_across_splits():
        names = f"{escaped(pair['image_id'])} and {escaped(pair['other_image_id'])}"
        yield f"  nearest across splits: {_cosine(pair['cosine'])} {names}"


def _cosine(value: float) -> str:
    """With enough digits to differ from 1."""
    return f"{value:.3f}" if value < 0.9995 else f"{value:.6f}"


def _confounds(result: Any) -> Any:
    table = plain_table("variable", "values", "AUROC from vectors", "AUROC of label from it", left=1)
    for confound in result.confounds:
        from_vectors = escaped(confound.reason) if confound.from_vectors is None else _score(confound.from_vectors)
        table.add_row(escaped(confound.name), str(len(confound.classes)), from_vectors, _score(confound.label_score))
    return table


def _score(score: Any) -> str:
    if score is None:
        return "–"
    best = f" {escaped(score.best.name)} {score.best.auroc:.3f}" if score.n_classes > 2 else ""
    return f"{score.auroc:.3f} [{score.low:.3f}, {score.high:.3f}]{'*' if score.above_chance else ' '}{best}"


def _label_lines(result: Any) -> Iterator[str]:
    from featcache.auditing.shortcuts import notable

    yield "out-of-fold AUROC with 95 % confidence interval; 0.5 is chance, * marks intervals above it"
    variables = result.label_from_variables
    joint = f"; from all variables together: {_score(variables).strip()}" if variables else ""
    for shortcut in notable(result.shortcuts):
        yield f"[yellow]{escaped(str(shortcut))}[/]"
    yield f"AUROC of the label predicted from the vectors: {_score(result.label_from_vectors).strip()}{joint}"


def _excluded(result: Any) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for name, reason in result.excluded.items():
        names.setdefault(reason, []).append(name)
    for reason, columns in names.items():
        yield f"not tested: {escaped(', '.join(columns))} ({escaped(reason)})"


def _rows(rows: Any) -> Any:
    table = plain_table(*(name.replace("_", " ") for name in rows[0]), left=3)
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else escaped(str(v)) for v in row.values()))
    return table
