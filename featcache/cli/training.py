"""The commands that train: `train-head` on cached vectors, `fine-tune` from a Run back to images, `train` on images."""

from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.groups import (
    HEADS,
    IMAGE_SPLIT,
    MACHINE,
    NETWORK,
    NETWORK_HEAD,
    OPERATING_POINT,
    RECIPE,
    SCRATCH_RECIPE,
    SELECTION,
    SPLIT,
    TARGET,
    TRAINING_IMAGES,
)
from featcache.cli.options import AllowOutside, Device, Json, RunWeights, StoreFile, spec_of, takes
from featcache.cli.progress import interruptible, progress, training
from featcache.cli.render import answer, console, tell_notes
from featcache.cli.results import print_run, run_answer, tell_tuned
from featcache.specs import BackboneSpec


@takes(target=TARGET, split=SPLIT, heads=HEADS, selection=SELECTION)
def train_head_command(
    store: StoreFile,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the new Run.", show_default="runs/STORE-HEAD-DIGEST"),
    ] = None,
    *,
    heads: Any,
    target: Any,
    split: Any,
    selection: Any,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train heads on a store in seconds. Repeat an option of the head to compare several values."""
    from featcache.store import Store
    from featcache.training.train_head import train_head

    callbacks = progress("training", "epochs/s")
    with interruptible("nothing was written"), Store.open(store) as opened, callbacks as (on_progress, on_note):
        run = train_head(
            opened,
            heads,
            output,
            target=target,
            split=split,
            report=selection,
            device=device,
            on_progress=on_progress,
            on_note=on_note,
        )
    if as_json:
        answer(run_answer(run))
    print_run(console(as_json), run)


@takes(recipe=RECIPE, machine=MACHINE)
def fine_tune_command(
    run: Annotated[Path, typer.Argument(help="Run of train-head or fine-tune to start from.")],
    images: Annotated[Path | None, typer.Option(help="Folder or CSV of the images that were embedded.")] = None,
    from_cache: Annotated[
        Path | None,
        typer.Option(help="Store with --tap boundary, instead of images: the frozen part is not computed again."),
    ] = None,
    augmentations: Annotated[
        bool, typer.Option("--augmentations", help="Train on the augmented copies of that store as well.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the new Run.", show_default="RUN-tuned-DIGEST")
    ] = None,
    weights: RunWeights = None,
    allow_outside: AllowOutside = False,
    *,
    recipe: Any,
    operating_point: OPERATING_POINT = None,
    machine: Any,
    as_json: Json = False,
) -> None:
    """Continue a Run on its images: train the last part of the backbone together with the head."""
    from featcache.finetune.fine_tune import fine_tune
    from featcache.manifest import Manifest
    from featcache.runs import Run
    from featcache.store import Store

    with training() as (callbacks, files):
        manifest = Manifest.read(images, allow_outside=allow_outside) if images else None
        tell_notes(manifest, callbacks.on_note)
        done = fine_tune(
            Run.open(run),
            recipe,
            output,
            images=manifest,
            store=files.enter_context(Store.open(from_cache)) if from_cache else None,
            augmentations=augmentations,
            weights=weights,
            operating_point=operating_point,
            on_progress=callbacks.on_progress,
            on_epoch=callbacks.on_epoch,
            on_note=callbacks.on_note,
            **machine,
        )
    tell_tuned(as_json, done)


@takes(
    table=TRAINING_IMAGES,
    target=TARGET,
    split=IMAGE_SPLIT,
    network=NETWORK,
    head=NETWORK_HEAD,
    recipe=SCRATCH_RECIPE,
    machine=MACHINE,
)
def train_command(
    images: Annotated[Path, typer.Argument(help="Folder of class folders, or CSV with columns path and label.")],
    model: Annotated[str, typer.Option(help="timm model name, simple-cnn or covid-cnn.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the new Run.", show_default="runs/IMAGES-MODEL-DIGEST"),
    ] = None,
    *,
    head: Any,
    table: Any,
    target: Any,
    split: Any,
    network: Any,
    recipe: Any,
    operating_point: OPERATING_POINT = None,
    machine: Any,
    as_json: Json = False,
) -> None:
    """Train a whole network on images, from random or from pretrained weights."""
    from featcache.finetune.fine_tune import head_for, train
    from featcache.manifest import Manifest

    with training() as (callbacks, _):
        manifest = Manifest.read(images, **table)
        tell_notes(manifest, callbacks.on_note)
        done = train(
            manifest,
            spec_of(BackboneSpec, {"name": model, **network}),
            spec_of(head_for, {"model": model, "seed": recipe.seed, **head}),
            recipe,
            output,
            target=target,
            split=split,
            operating_point=operating_point,
            on_progress=callbacks.on_progress,
            on_epoch=callbacks.on_epoch,
            on_note=callbacks.on_note,
            **machine,
        )
    tell_tuned(as_json, done)
