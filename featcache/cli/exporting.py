"""The command that hands things on: `export`, of a store to other tools, and of a store and reports to a fusion file.

What is written is said by the name of the output, and by whether studies are asked for.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.options import Json, spec_of
from featcache.cli.progress import interruptible
from featcache.cli.render import answer, console, escaped, plain_table, print_notes
from featcache.errors import UsageError

_UNTOUCHED = "nothing was written"


def export_command(
    source: Annotated[Path, typer.Argument(metavar="STORE", help="Store to export; for .onnx a Run or a bundle.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to write: .npz, .parquet, .safetensors, .h5 or .onnx.")
    ],
    where: Annotated[
        list[str] | None,
        typer.Option(help="Export only rows with COLUMN=VALUE or COLUMN!=VALUE. Repeatable.", rich_help_panel="Rows"),
    ] = None,
    tap: Annotated[
        list[str] | None,
        typer.Option(show_default="all", help="Feature array to export. Repeatable.", rich_help_panel="Rows"),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Column that identifies studies; writes a fusion file.", rich_help_panel="Studies"),
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(help="CSV with one report per study.", rich_help_panel="Studies")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            show_default="as --by", help="Column of that CSV that identifies studies.", rich_help_panel="Studies"
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Column with report text. Repeatable.", rich_help_panel="Studies")
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            show_default="views",
            help="Vectors kept per study: views (all images), mean or first.",
            rich_help_panel="Studies",
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run whose out-of-sample logits are added per study.", rich_help_panel="Studies")
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Keep only studies that have images and text.", rich_help_panel="Studies")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(help="File with the backbone's weights, if the store was made with weights from a file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the vectors of a store for other tools, studies with their reports (--by), or a Run as OUT.onnx."""
    rows: dict[str, Any] = {"where": where, "tap": tap}
    studies = {"reports": reports, "on": on, "text": text, "pool": pool, "run": run, "complete": complete}
    if output.suffix.lower() == ".onnx":
        _refuse({"by": by, **rows, **studies}, "an ONNX file holds a whole Run, so only --weights applies")
        _export_onnx(source, output, weights, as_json)
        return
    _refuse({"weights": weights}, "is of a Run that becomes OUT.onnx: leave it away")
    if by is None:
        _refuse(studies, "is of studies: give --by COLUMN")
        _export_rows(source, output, where or [], tap or [], as_json)
        return
    taps = set(tap or ())
    _refuse(
        {"where": where, "tap": taps - {"pooled", "grid"}}, "with --by all rows go out, and --tap grid is added at most"
    )
    arguments = {"by": by, "tokens": "grid" in taps, "texts": tuple(text or ()) or None}
    arguments |= {name: value for name, value in studies.items() if name not in ("text", "run")}
    _export_studies(source, output, arguments, run, as_json)


def _refuse(options: dict[str, Any], why: str) -> None:
    """Raises UsageError, naming the first of these options that was given."""
    for name, value in options.items():
        if value:
            raise UsageError(f"--{name}: {why}.")


def _export_onnx(source: Path, output: Path, weights: str | None, as_json: bool) -> None:
    from featcache.prediction.onnx_export import onnx_model
    from featcache.prediction.predictor import load_run

    with interruptible(_UNTOUCHED), load_run(source) as predictor:
        done = onnx_model(predictor.run, output, weights=weights)
    if as_json:
        answer({"output": str(output), **done.as_json()})
    people = console(as_json)
    print_notes(people, done.notes)
    size = " × ".join(map(str, done.input_size))
    people.print(
        f"[bold]{escaped(output)}[/]: {len(done.data) / 1e6:,.1f} MB; uint8 images of 3 × {size} in, logits and "
        f"probabilities of {len(done.classes)} classes out, which differ from torch's by {done.difference:.1e} at most",
        highlight=False,
    )


def _export_rows(source: Path, output: Path, where: list[str], taps: list[str], as_json: bool) -> None:
    from featcache.store import Store, Where
    from featcache.store.export import export

    with interruptible(_UNTOUCHED), Store.open(source) as store:
        done = export(store, output, taps=taps, where=[Where.parse(text) for text in where])
    if as_json:
        answer({
            "output": str(done.path), "rows": done.n_rows, "bytes": done.n_bytes, "features": done.shapes,
            "columns": done.columns, "datasets_sha256": done.datasets_sha256,
        })  # fmt: skip
    console(as_json).print(
        f"[bold]{escaped(done.path)}[/]: {done.n_rows:,} rows of {_shapes(done.shapes)}, {len(done.columns)} columns, "
        f"{done.n_bytes / 1e6:,.1f} MB",
        highlight=False,
    )


def _export_studies(source: Path, output: Path, arguments: dict[str, Any], run: Path | None, as_json: bool) -> None:
    from featcache.fusion.spec import FusionSpec
    from featcache.fusion.writer import export_studies
    from featcache.runs import Run
    from featcache.store import Store

    spec = spec_of(FusionSpec, arguments)
    with interruptible(_UNTOUCHED), Store.open(source) as store:
        done = export_studies(store, output, spec, Run.open(run) if run else None)
    if as_json:
        answer({
            "output": str(done.path), "studies": done.n_studies, "bytes": done.n_bytes, "features": done.shapes,
            "coverage": done.coverage, "notes": list(done.notes),
        })  # fmt: skip
    people = console(as_json)
    print_notes(people, done.notes)
    people.print(_coverage(done.coverage))
    people.print(
        f"[bold]{escaped(done.path)}[/]: {done.n_studies:,} studies of {_shapes(done.shapes)}, "
        f"{done.n_bytes / 1e6:,.1f} MB",
        highlight=False,
    )


def _shapes(shapes: dict[str, list[int]]) -> str:
    return ", ".join(f"{' × '.join(map(str, shape))} {escaped(name)}" for name, shape in shapes.items())


def _coverage(coverage: dict[str, Any]) -> Any:
    """A line per number, also of those in groups: how many studies have each text, whose logits they have."""
    table = plain_table("coverage", "number")
    for name, value in coverage.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, number in inner.items():
            table.add_row(escaped(f"{name.replace('_', ' ')} {key.replace('_', ' ')}".strip()), f"{number:,}")
    return table
