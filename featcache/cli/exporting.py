"""The commands that write files for other tools: `export` rows, `export-studies`, and `export-onnx` a Run."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.options import Group, Json, RunWeights, StoreFile, option, takes
from featcache.cli.progress import interruptible
from featcache.cli.render import answer, console, escaped, plain_table, print_notes
from featcache.specs import FusionSpec

_UNTOUCHED = "nothing was written"
_study = partial(option, FusionSpec)
STUDIES = Group(
    FusionSpec,
    _study("by", required=True),
    _study("reports"),
    _study("on", default="as --by"),
    _study("texts", "text", text="Column of report text. Repeatable."),
    _study("pool"),
    _study("tokens", text="Add the feature maps of a store with --tap grid."),
    _study("complete"),
)


def export_command(
    store: StoreFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .npz, .parquet, .safetensors, or .h5 for a store.")
    ],
    where: Annotated[
        list[str] | None, typer.Option(help="Write only rows with COLUMN=VALUE or COLUMN!=VALUE. Repeatable.")
    ] = None,
    tap: Annotated[
        list[str] | None, typer.Option(show_default="all", help="Features to write, as in pooled. Repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write rows of a store for other tools: features, names and columns."""
    from featcache.specs import Where
    from featcache.store import Store
    from featcache.store.export import export

    with interruptible(_UNTOUCHED), Store.open(store) as opened:
        done = export(opened, output, taps=tap or (), where=[Where.parse(text) for text in where or ()])
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


@takes(spec=STUDIES)
def export_studies_command(
    store: StoreFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Fusion file to write, STUDIES.h5.")],
    *,
    spec: Any,
    run: Annotated[
        Path | None, typer.Option(help="Run whose logits are added, for the studies that it was not trained on.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the studies of a store with their reports to one file, for models of images and text."""
    from featcache.fusion.writer import export_studies
    from featcache.runs import Run
    from featcache.store import Store

    with interruptible(_UNTOUCHED), Store.open(store) as opened:
        done = export_studies(opened, output, spec, Run.open(run) if run else None)
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


def export_onnx_command(
    run: Annotated[Path, typer.Argument(help="Folder of a Run, or a bundle (MODEL.fcb.zip).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="ONNX file to write, MODEL.onnx.")],
    weights: RunWeights = None,
    as_json: Json = False,
) -> None:
    """Write a Run as one ONNX file: normalisation, backbone and head."""
    from featcache.prediction.onnx_export import export_onnx
    from featcache.prediction.predictor import load_run

    with interruptible(_UNTOUCHED), load_run(run) as predictor:
        done = export_onnx(predictor.run, output, weights=weights)
    if as_json:
        answer({"output": str(output), **done.as_json()})
    people = console(as_json)
    print_notes(people, done.notes)
    size = " × ".join(map(str, done.input_size))
    people.print(
        f"[bold]{escaped(output)}[/]: {len(done.data) / 1e6:,.1f} MB; input: uint8 images of 3 × {size}; output: "
        f"logits and probabilities of {len(done.classes)} classes, which differ from torch's by at most "
        f"{done.difference:.1e}",
        highlight=False,
    )


def _shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{' × '.join(map(str, shape))} {escaped(name)}" for name, shape in shapes.items())


def _coverage(coverage: dict[str, Any]) -> Any:
    """A row per count, including those in groups: studies with each text, studies with logits."""
    table = plain_table("coverage", "number")
    for name, value in coverage.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, number in inner.items():
            table.add_row(escaped(f"{name.replace('_', ' ')} {key.replace('_', ' ')}".strip()), f"{number:,}")
    return table
