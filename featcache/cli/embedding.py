"""The commands that run a frozen backbone: `embed`, and `demo`, which goes on to a trained head and its report.

How an image is decoded, transformed and computed on are options of `embed` alone: they are part of a store's identity,
and later commands read them from the store.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.groups import BACKBONE, COPIES, DECODE, DTYPE, IMAGES, PASS
from featcache.cli.options import Json, spec_of, takes
from featcache.cli.progress import going_on
from featcache.cli.render import answer, console, escaped, print_embedded, print_forecast, tell_notes
from featcache.cli.results import print_run, run_answer
from featcache.errors import EXIT_SOME_FAILED
from featcache.specs import BackboneSpec


def demo_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("featcache-demo"),
    as_json: Json = False,
) -> None:
    """Run the whole loop offline on synthetic radiographs, in about two minutes."""
    people = console(as_json)
    people.print(f"drawing synthetic chest radiographs into {escaped(output / 'images')} …")
    from featcache.demo import demo

    with going_on("embedding") as (on_progress, _):
        done = demo(output, on_progress)
    if as_json:
        results = {"embed": done.embedded.as_json(), "train_head": run_answer(done.run)}
        answer({**results, "report": done.reported.as_json()})
    if done.has_random_weights:
        people.print("[yellow]The hub cannot be reached: the backbone has random weights (random:0).[/]")
    print_embedded(people, done.embedded)
    print_run(people, done.run)
    people.print(
        f"\nThe images are [bold]synthetic[/]: the scores say that the loop works, nothing about patients.\n"
        f"Look at [bold]{escaped(done.reported.path)}[/] in a browser. Then try\n"
        f"  featcache train-head {escaped(done.embedded.store)} --lr 0.001 --epochs 100 --positive abnormal\n"
        f"  featcache embed YOUR_IMAGES -o yours.h5 --backbone efficientnet_b1.ft_in1k",
        highlight=False,
    )


@takes(table=IMAGES, network=BACKBONE, copies=COPIES, decode=DECODE, machine=PASS)
def embed_command(
    images: Annotated[Path, typer.Argument(help="Folder of images, CSV with a column of paths, or a single image.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Store to write (STORE.h5), or a folder when several backbones are given."),
    ],
    backbone: Annotated[
        list[str],
        typer.Option(
            help="timm model name, as listed by featcache backbones. Repeatable: images are decoded once for all."
        ),
    ],
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first image that fails.")] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read every file again, even if its size and time are unchanged.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate time, disk and memory from a few images, and write nothing.")
    ] = False,
    *,
    table: Any,
    decode: Any,
    network: Any,
    copies: Any,
    dtype: DTYPE = "float32",
    machine: Any,
    as_json: Json = False,
) -> None:
    """Run every image once through a frozen backbone, into a store."""
    from featcache.embedding import embed_all, store_paths
    from featcache.embedding.estimate import forecast

    network = {"precision": "auto", **network}
    specs = {
        path: spec_of(BackboneSpec, {"name": name, **network}) for name, path in store_paths(output, backbone).items()
    }
    options: dict[str, Any] = {"decode": decode, "augmentations": copies, "dtype": dtype, **machine}
    with going_on("embedding") as (on_progress, on_note):
        manifest = _manifest(images, table, on_note)
        if dry_run:
            estimate = forecast(manifest, specs, on_note=on_note, **options)
        else:
            options |= {"rehash": rehash, "strict": strict, "on_progress": on_progress}
            done = embed_all(manifest, specs, on_note=on_note, **options)
    if dry_run:
        _tell_forecast(estimate, manifest.notes, as_json)
    else:
        _tell_embedded(done, as_json)


def _manifest(images: Path, table: dict[str, Any], on_note: Any) -> Any:
    from featcache.manifest import Manifest
    from featcache.splits import unnamed_groups

    manifest = Manifest.read(images, **table)
    tell_notes(manifest, on_note)
    for note in unnamed_groups.notes(manifest.columns, manifest.image_ids):
        on_note(f"note: {note}")
    return manifest


def _tell_forecast(estimate: Any, notes: list[str], as_json: bool) -> None:
    if as_json:
        answer({**estimate.as_json(), "notes": notes})
    print_forecast(console(as_json), estimate)


def _tell_embedded(done: Any, as_json: bool) -> None:
    if as_json:
        answer(done[0].as_json() if len(done) == 1 else {"stores": [embedded.as_json() for embedded in done]})
    for embedded in done:
        print_embedded(console(as_json), embedded)
    if any(embedded.counts.failed for embedded in done):
        raise typer.Exit(EXIT_SOME_FAILED)
