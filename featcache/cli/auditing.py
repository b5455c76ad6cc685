"""The command that looks at vectors for what they should not know: `audit`.

The tables are files; what is printed is their heads, and what of it a score should be doubted for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from featcache.cli.options import AllowOutside, Json, StoreFile
from featcache.cli.progress import interruptible, progress
from featcache.cli.render import answer, console, escaped, plain_table, print_notes, tell_notes


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
    """The head of each table."""
    for line in (_copies(result), *_near_copies(result)):
        people.print(line, highlight=False, soft_wrap=True)
    if result.confounds:
        people.print(_confounds(result))
    for line in (*_label_lines(result), *_left_out(result)):
        people.print(line, highlight=False, soft_wrap=True)
    doubtful = "" if result.doubts is None else f" ({int(result.doubts.is_confident.sum()):,} by confident learning)"
    for title, rows in (
        ("furthest from all others", result.furthest()),
        (f"most doubtful labels{doubtful}", result.most_doubtful()),
    ):
        if rows:
            people.print(title, style="bold")
            people.print(_rows(rows))
    print_notes(people, result.notes)
    people.print(f"[bold]{escaped(folder)}[/]: all of it, the worst first", highlight=False, soft_wrap=True)


def _copies(result: Any) -> str:
    crossing = sum(copies.crosses for copies in result.identical)
    other = sum(len(copies.labels) > 1 for copies in result.identical)
    n_images = sum(len(copies.images) for copies in result.identical)
    return (
        f"{len(result.identical):,} sets of identical images ({n_images:,} files), {crossing:,} of them across splits, "
        f"{other:,} with different labels"
    )


def _near_copies(result: Any) -> Iterator[str]:
    n, n_across = (result.near.count(across) for across in (False, True))
    text = "too many pairs to say anything"
    if n is not None:
        text = f"{n:,} pairs of different files, {n_across:,} of them across splits"
    if result.n_equal:
        yield f"{result.n_equal:,} images have the vector of an image with other bytes"
    yield f"vectors with a cosine of {result.threshold:g} or more: {text}"
    for pair in result.nearest_across():
        names = f"{escaped(pair['image_id'])} and {escaped(pair['other_image_id'])}"
        yield f"  nearest across splits: {_cosine(pair['cosine'])} {names}"


def _cosine(value: float) -> str:
    """With as many digits as tell it from 1."""
    return f"{value:.3f}" if value < 0.9995 else f"{value:.6f}"


def _confounds(result: Any) -> Any:
    table = plain_table("variable", "values", "vectors tell it", "it tells the label", left=1)
    for confound in result.confounds:
        from_vectors = escaped(confound.why) if confound.from_vectors is None else _score(confound.from_vectors)
        table.add_row(escaped(confound.name), str(len(confound.classes)), from_vectors, _score(confound.to_label))
    return table


def _score(score: Any) -> str:
    if score is None:
        return "–"
    best = f" {escaped(score.best.name)} {score.best.auroc:.3f}" if score.n_classes > 2 else ""
    return f"{score.auroc:.3f} [{score.low:.3f}, {score.high:.3f}]{'*' if score.above_chance else ' '}{best}"


def _label_lines(result: Any) -> Iterator[str]:
    from featcache.auditing.shortcuts import worth_saying

    yield "AUROC out of fold with its 95 % interval; chance is 0.5, * stands where all of it is above"
    together = f"; from the variables together: {_score(result.together).strip()}" if result.together else ""
    for shortcut in worth_saying(result.shortcuts):
        yield f"[yellow]{escaped(str(shortcut))}[/]"
    yield f"the label is told from the vectors: {_score(result.of_label).strip()}{together}"


def _left_out(result: Any) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for name, why in result.left_out.items():
        names.setdefault(why, []).append(name)
    for why, columns in names.items():
        yield f"not looked at: {escaped(', '.join(columns))} ({escaped(why)})"


def _rows(rows: Any) -> Any:
    table = plain_table(*(name.replace("_", " ") for name in rows[0]), left=3)
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else escaped(str(v)) for v in row.values()))
    return table
