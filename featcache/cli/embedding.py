"""The commands that run a frozen backbone: `embed`, and `demo`, which goes on to a trained head and its report.

How an image is decoded, transformed and computed on are options of `embed` alone: they are of a store's identity, and
whatever works on the store later takes them from there.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.options import (
    AllowOutside,
    ClassColumn,
    CropPct,
    Device,
    GroupColumn,
    IdColumn,
    InputSize,
    Json,
    Mean,
    PathColumn,
    SplitColumn,
    Std,
    is_fast,
    numbers_of,
    spec_of,
    weights_there,
)
from featcache.cli.progress import going_on
from featcache.cli.render import answer, console, escaped, print_embedded, print_forecast, tell_notes
from featcache.cli.results import print_run, run_answer
from featcache.errors import EXIT_SOME_FAILED, UsageError


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
    weights: Annotated[
        str | None,
        typer.Option(
            callback=weights_there,
            help="Weights: a .safetensors or .pth file, or random:SEED. Default: pretrained weights from the hub.",
        ),
    ] = None,
    group_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression whose captured part of the image_id names the group (patient)."),
    ] = None,
    allow_outside: AllowOutside = False,
    path_column: PathColumn = None,
    id_column: IdColumn = None,
    label_column: ClassColumn = None,
    group_column: GroupColumn = None,
    split_column: SplitColumn = None,
    input_size: InputSize = None,
    crop_pct: CropPct = None,
    interpolation: Annotated[str | None, typer.Option(rich_help_panel="Transform")] = None,
    mean: Mean = None,
    std: Std = None,
    first_frame: Annotated[
        bool, typer.Option(help="Use the first frame of images with several.", rich_help_panel="Images")
    ] = False,
    bit_depth: Annotated[
        int | None,
        typer.Option(
            show_default="by the greatest value of all",
            help="Bit depth of grayscale images with more than 8 bits, 8 to 16.",
            rich_help_panel="Images",
        ),
    ] = None,
    float_range: Annotated[
        str | None,
        typer.Option(
            help="Range LOW,HIGH of floating-point pixels; without it such images are refused.",
            rich_help_panel="Images",
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(show_default="89478485", help="Largest number of pixels per image.", rich_help_panel="Images"),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=86_400,
            show_default="60",
            help="Longest time to decode one image, in seconds.",
            rich_help_panel="Images",
        ),
    ] = None,
    decode: Annotated[
        str,
        typer.Option(
            help="exact, or fast, which takes shortcuts that change pixels slightly.", rich_help_panel="Images"
        ),
    ] = "exact",
    strict: Annotated[
        bool, typer.Option(help="Stop at the first image that cannot be used.", rich_help_panel="Images")
    ] = False,
    rehash: Annotated[
        bool, typer.Option(help="Read every file again, even if size and time are unchanged.", rich_help_panel="Images")
    ] = False,
    tap: Annotated[
        list[str] | None,
        typer.Option(
            show_default="pooled",
            help="Features to store: pooled, and also grid (last feature map) or boundary (input of the last stage).",
            rich_help_panel="Vectors",
        ),
    ] = None,
    augmentations: Annotated[
        int, typer.Option(help="Number of augmented copies to embed per image.", rich_help_panel="Vectors")
    ] = 0,
    augmentation_seed: Annotated[
        int | None,
        typer.Option(show_default="0", help="Random seed of the augmented copies.", rich_help_panel="Vectors"),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="Arithmetic of the network: auto, float32 or bfloat16; on a GPU also tf32 or float16.",
            rich_help_panel="Vectors",
        ),
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Stored data type: float32 or float16.", rich_help_panel="Vectors")
    ] = "float32",
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Number of processes that decode images.", rich_help_panel="Machine"),
    ] = None,
    compile: Annotated[  # noqa: A002
        str, typer.Option(help="Compile the network before the pass: auto, on or off.", rich_help_panel="Machine")
    ] = "auto",
    part_rows: Annotated[
        int | None, typer.Option(help="Rows per part file of an unfinished pass.", rich_help_panel="Machine")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Estimate time, disk and memory from a few images, and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Embed every image once with a frozen backbone, into a store."""
    people = console(as_json)
    from featcache.embedding import embed_all, store_paths
    from featcache.embedding.estimate import forecast
    from featcache.images import DecodeSpec
    from featcache.images.workers import TIMEOUT_S
    from featcache.manifest import Manifest
    from featcache.manifest.columns import ColumnSpec
    from featcache.request import BackboneSpec
    from featcache.splits import unnamed_groups

    arguments: dict[str, Any] = {
        "weights": weights,
        "input_size": input_size,
        "crop_pct": crop_pct,
        "interpolation": interpolation,
    }
    arguments |= {"mean": numbers_of("--mean", mean), "std": numbers_of("--std", std)}
    arguments |= {"taps": tuple(tap) if tap else None, "precision": precision}
    specs = {
        path: spec_of(BackboneSpec, {"name": name, **arguments}) for name, path in store_paths(output, backbone).items()
    }
    stated: dict[str, Any] = {"bit_depth": bit_depth, "float_range": numbers_of("--float-range", float_range, 2)}
    stated |= {"first_frame": first_frame, "max_pixels": max_pixels, "fast": is_fast(decode)}
    named = {"path_column": path_column, "id_column": id_column, "label_column": label_column}
    named |= {"group_column": group_column, "split_column": split_column}
    with going_on("embedding") as (on_progress, on_note):
        manifest = Manifest.read(images, group_pattern, allow_outside, spec_of(ColumnSpec, named))
        tell_notes(manifest, on_note)
        for note in unnamed_groups.notes(manifest.columns, manifest.image_ids):
            on_note(f"note: {note}")
        options: dict[str, Any] = {
            "decode": spec_of(DecodeSpec, stated),
            "augmentations": _augmentations(augmentations, augmentation_seed),
            "dtype": dtype,
            "device": device,
            "compile": compile,
            "n_workers": workers,
            "part_rows": part_rows,
            "timeout_s": timeout or TIMEOUT_S,
            "on_note": on_note,
        }
        if dry_run:
            estimate = forecast(manifest, specs, **options)
        else:
            done = embed_all(manifest, specs, rehash=rehash, strict=strict, on_progress=on_progress, **options)
    if dry_run:
        if as_json:
            answer({**estimate.as_json(), "notes": manifest.notes})
        print_forecast(people, estimate)
        return
    if as_json:
        answer(done[0].as_json() if len(done) == 1 else {"stores": [embedded.as_json() for embedded in done]})
    for embedded in done:
        print_embedded(people, embedded)
    if any(embedded.counts.failed for embedded in done):
        raise typer.Exit(EXIT_SOME_FAILED)


def _augmentations(n: int, seed: int | None) -> Any:
    """The views that were asked for; None for none."""
    from featcache.images.augment import ViewSpec

    if not n and seed is None:
        return None
    augmentations = spec_of(ViewSpec, {"n": n or 1, "seed": seed}, n="augmentations", seed="augmentation_seed")
    if not n:
        raise UsageError("--augmentation-seed is the seed of --augmentations, and there are none.")
    return augmentations
