"""The command that shows what came of a training: `report`, of one Run or of several, as a page."""

from pathlib import Path
from typing import Annotated

import typer

from featcache.cli.options import AllowOutside, Json
from featcache.cli.progress import interruptible, progress
from featcache.cli.render import answer, console, escaped, tell_notes


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of Runs. Several are compared with the first.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", show_default="RUN/report.html", help="HTML page to write.")
    ] = None,
    store: Annotated[
        list[Path] | None,
        typer.Option(show_default="beside or above the Run", help="Store on which a Run was trained. Repeatable."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(show_default="where they were embedded", help="Folder or CSV of the images that were embedded."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Report metrics per value of this column; 'folder' is the folder of each image. Repeatable."),
    ] = None,
    umap: Annotated[
        bool, typer.Option("--umap", help="Project vectors with UMAP instead of t-SNE (needs the extra umap).")
    ] = False,
    allow_outside: AllowOutside = False,
    as_json: Json = False,
) -> None:
    """Write the performance of one or more Runs as a self-contained HTML page."""
    people = console(as_json)
    from featcache.manifest import Manifest
    from featcache.reporting.report import report

    with interruptible("nothing was written"), progress("reporting") as (_, on_note):
        manifest = Manifest.read(images, allow_outside=allow_outside) if images else None
        tell_notes(manifest, on_note)
        done = report(runs, output, store or (), manifest, by=by or (), umap=umap, on_note=on_note)
    if as_json:
        answer(done.as_json())
    for text in done.missing:
        people.print(f"[yellow]{escaped(text)}[/]", highlight=False)
    people.print(
        f"[bold]{escaped(done.path)}[/]: {done.n_bytes / 1e6:.1f} MB; {len(done.files):,} figures and tables in "
        f"{escaped(done.folder)}",
        highlight=False,
    )
