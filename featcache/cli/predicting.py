"""The commands that make use of a finished Run: `predict`, and `bundle`, which makes one file of it to give away."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from featcache.cli.groups import PREDICTION, Keep, RunPrecision
from featcache.cli.options import AllowOutside, Device, Json, RunWeights, takes
from featcache.cli.progress import going_on, interruptible
from featcache.cli.render import answer, console, escaped, plain_table, print_notes, tell_notes
from featcache.errors import EXIT_SOME_FAILED

_MAX_SHOWN = 5

RunOrBundle = Annotated[Path, typer.Argument(help="Folder of a Run, or a bundle (MODEL.fcb.zip).")]


@takes(options=PREDICTION)
def predict_command(
    run: RunOrBundle,
    images: Annotated[
        Path | None, typer.Argument(help="Folder of images, CSV with a column of paths, or a single image.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")] = Path("predictions.csv"),
    store: Annotated[
        Path | None, typer.Option(help="Store with vectors of the Run's backbone, instead of images.")
    ] = None,
    keep: Keep = None,
    weights: RunWeights = None,
    allow_outside: AllowOutside = False,
    *,
    options: Any,
    precision: RunPrecision = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict new images: the probability of each class, and the class at 0.5 and at the operating point."""
    from featcache.manifest import Manifest
    from featcache.prediction import predict
    from featcache.prediction.predictor import load_run
    from featcache.store import Store

    with ExitStack() as files:
        on_progress, on_note = files.enter_context(going_on("predicting"))
        predictor = files.enter_context(load_run(run, weights=weights, device=device, precision=precision))
        vectors = files.enter_context(Store.open(store)) if store else None
        manifest = Manifest.read(images, allow_outside=allow_outside) if images else None
        tell_notes(manifest, on_note)
        options |= {"on_progress": on_progress, "on_note": on_note}
        done = predict(predictor, output, images=manifest, store=vectors, keep=keep, **options)
    if as_json:
        answer(done.as_json())
    _print_predicted(console(as_json), done, manifest.notes if manifest else [])
    if done.n_failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def bundle_command(
    run: RunOrBundle,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, MODEL.fcb.zip.")],
    with_backbone: Annotated[
        bool, typer.Option("--with-backbone/--without-backbone", help="Include the weights of the backbone.")
    ] = True,
    onnx: Annotated[bool, typer.Option("--onnx", help="Include an ONNX model.")] = False,
    weights: RunWeights = None,
    as_json: Json = False,
) -> None:
    """Pack a Run into one file that predicts on other machines."""
    from featcache.prediction.bundle import bundle
    from featcache.prediction.predictor import load_run

    with interruptible("nothing was written"), load_run(run) as predictor:
        done = bundle(predictor.run, output, with_backbone=with_backbone, weights=weights, with_onnx=onnx)
    if as_json:
        answer(done.as_json())
    people = console(as_json)
    print_notes(people, done.notes)
    if not done.has_backbone:
        people.print(f"the backbone is not inside: its weights have sha256 {done.weights_sha256[:12]}…")
    inside = ", ".join(f"{name} {n_bytes / 1e6:,.1f} MB" for name, n_bytes in done.members.items() if n_bytes > 1e5)
    people.print(
        f"[bold]{escaped(done.path)}[/]: {len(done.members)} members{f' ({inside})' if inside else ''}", highlight=False
    )


def _print_predicted(people: Console, done: Any, notes: Sequence[str]) -> None:
    """How many images are called what, and what became of the others; notes that were not told before the pass."""
    from featcache.manifest.listing import in_words

    predictions, model = done.predictions, done.predictions.model
    columns = [
        ("predicted at 0.5" if model.has_findings or len(predictions.classes) == 2 else "predicted", predictions.called)
    ]
    if predictions.at_operating_point is not None:
        columns.append((f"at p ≥ {model.threshold:.3f} of {escaped(predictions.classes[model.positive])}",
                        predictions.at_operating_point))  # fmt: skip
    table = plain_table("", *(title for title, _ in columns))
    counts = [predictions.counts(called) for _, called in columns]
    for name in predictions.classes:
        table.add_row(escaped(name), *(f"{count[name]:,}" for count in counts))
    people.print(table)
    for image_id, (code, reason) in list(predictions.failures.items())[:_MAX_SHOWN]:
        people.print(f"  [red]{escaped(code)}[/] {escaped(image_id)}: {escaped(reason)}", highlight=False)
    print_notes(people, [note for note in done.notes if note not in notes])
    skipped = in_words(done.skipped)
    more = f", see {escaped(done.output)}.failures.csv" if done.n_failed else ""
    people.print(
        f"[bold]{escaped(done.output)}[/]: found {len(predictions):,} = predicted {done.n_predicted:,} + failed "
        f"{done.n_failed:,}{more}{f'; skipped {skipped}' if skipped else ''}; in {done.seconds:.1f} s",
        highlight=False,
    )
