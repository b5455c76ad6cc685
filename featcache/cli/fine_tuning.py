"""The commands that train on images: `fine-tune`, which starts from a Run, and `train`, a whole network.

Both take the options of one recipe and are followed in the same way; what is said of them is `results.tell_tuned`.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.options import (
    AllowOutside,
    Augment,
    BatchSize,
    ClassWeight,
    ColorJitter,
    CompileTrunk,
    CropPct,
    Device,
    DropClass,
    Epochs,
    Folds,
    FreezeBn,
    GradAccumulation,
    GroupColumn,
    Hflip,
    IdColumn,
    InputSize,
    Json,
    LabelColumn,
    Labels,
    LabelSmoothing,
    LearningPrecision,
    LrPatience,
    Mean,
    Merge,
    MinImages,
    On,
    OperatingPoint,
    Optimizer,
    PathColumn,
    Patience,
    Positive,
    Preset,
    Rotation,
    Scale,
    Schedule,
    Seed,
    SelectEpoch,
    Separator,
    SplitColumn,
    SplitFile,
    Std,
    Timeout,
    Uncertain,
    Unfreeze,
    ValFraction,
    WeightDecay,
    Where,
    hidden_sizes_of,
    numbers_of,
    of_recipe,
    recipe_of,
    spec_of,
    target_of,
    weights_there,
)
from featcache.cli.progress import training
from featcache.cli.render import tell_notes
from featcache.cli.results import tell_tuned


def fine_tune_command(
    run: Annotated[Path, typer.Argument(help="Run of train-head or fine-tune to start from.")],
    images: Annotated[Path | None, typer.Option(help="Folder or CSV of the images that were embedded.")] = None,
    from_cache: Annotated[
        Path | None, typer.Option(help="Train from a store with the tap boundary instead of from images.")
    ] = None,
    augmentations: Annotated[
        bool, typer.Option("--augmentations", help="Also train on the augmented copies in that store.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the new Run. Default: RUN-tuned-DIGEST.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            callback=weights_there,
            help="File with the backbone's weights, if the store was made with weights from a file.",
        ),
    ] = None,
    preset: Preset = None,
    unfreeze: Unfreeze = None,
    epochs: Epochs = None,
    lr: Annotated[float | None, of_recipe("lr", "Learning rate of the head.")] = None,
    backbone_lr: Annotated[
        float | None, of_recipe("backbone_lr", "Learning rate of the backbone.", "a tenth of lr")
    ] = None,
    optimizer: Optimizer = None,
    weight_decay: WeightDecay = None,
    schedule: Schedule = None,
    lr_patience: LrPatience = None,
    patience: Patience = None,
    class_weight: ClassWeight = None,
    label_smoothing: LabelSmoothing = None,
    dropout: Annotated[
        float | None, of_recipe("dropout", "Dropout rate of the head's hidden layers.", "that of the Run")
    ] = None,
    freeze_bn: FreezeBn = None,
    batch_size: BatchSize = None,
    grad_accumulation: GradAccumulation = None,
    precision: LearningPrecision = None,
    augment: Augment = True,
    rotation: Rotation = None,
    color_jitter: ColorJitter = None,
    hflip: Hflip = None,
    scale: Scale = None,
    seed: Seed = None,
    select: SelectEpoch = None,
    operating_point: OperatingPoint = None,
    allow_outside: AllowOutside = False,
    timeout: Timeout = None,
    compile: CompileTrunk = "auto",  # noqa: A002
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Fine-tune a part of the backbone together with the head of a Run."""
    from featcache.finetune.fine_tune import fine_tune
    from featcache.images.workers import TIMEOUT_S
    from featcache.manifest import Manifest
    from featcache.runs import Run
    from featcache.store import Store

    fields = {
        "lr": lr, "backbone_lr": backbone_lr, "optimizer": optimizer, "weight_decay": weight_decay,
        "schedule": schedule, "lr_patience": lr_patience, "patience": patience, "class_weight": class_weight,
        "label_smoothing": label_smoothing, "freeze_bn": freeze_bn, "dropout": dropout, "batch_size": batch_size,
        "grad_accumulation": grad_accumulation, "precision": precision, "seed": seed, "select": select,
    }  # fmt: skip
    augmentation = {"rotation": rotation, "color_jitter": color_jitter, "hflip": hflip, "scale": scale}
    recipe = recipe_of(preset, unfreeze or [], epochs or [], fields, augmentation, augment)
    with training() as (callbacks, opened):
        manifest = Manifest.read(images, allow_outside=allow_outside) if images else None
        tell_notes(manifest, callbacks.on_note)
        done = fine_tune(
            Run.open(run),
            recipe,
            output,
            images=manifest,
            store=opened.enter_context(Store.open(from_cache)) if from_cache else None,
            augmentations=augmentations,
            weights=weights,
            operating_point=operating_point,
            device=device,
            compile=compile,
            timeout_s=TIMEOUT_S if timeout is None else timeout,
            on_progress=callbacks.on_progress,
            on_epoch=callbacks.on_epoch,
            on_note=callbacks.on_note,
        )
    tell_tuned(as_json, done)


def train_command(
    images: Annotated[
        Path, typer.Argument(help="Folder with one folder per class, or CSV with columns path and label.")
    ],
    model: Annotated[str, typer.Option(help="timm model name, simple-cnn or covid-cnn.")],
    weights: Annotated[
        str | None,
        typer.Option(
            callback=weights_there,
            help="random:SEED to train from scratch, or a file. Default: pretrained weights from the hub.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the new Run. Default: runs/IMAGES-MODEL-DIGEST.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(show_default="linear; that of simple-cnn and covid-cnn", help="Kind of head: linear or mlp."),
    ] = None,
    hidden_sizes: Annotated[
        str | None,
        typer.Option(show_default="256", help="Units per hidden layer of the mlp head, as in 256 or 512,256."),
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(show_default="0.5", help="Dropout rate of the hidden layers.")
    ] = None,
    preset: Preset = None,
    unfreeze: Unfreeze = None,
    epochs: Epochs = None,
    lr: Annotated[float | None, of_recipe("lr", "Learning rate of all parameters.")] = None,
    backbone_lr: Annotated[float | None, of_recipe("backbone_lr", "Learning rate of the backbone.", "lr")] = None,
    optimizer: Optimizer = None,
    weight_decay: WeightDecay = None,
    schedule: Schedule = None,
    lr_patience: LrPatience = None,
    patience: Patience = None,
    class_weight: ClassWeight = None,
    label_smoothing: LabelSmoothing = None,
    freeze_bn: FreezeBn = None,
    batch_size: BatchSize = None,
    grad_accumulation: GradAccumulation = None,
    precision: LearningPrecision = None,
    augment: Augment = True,
    rotation: Rotation = None,
    color_jitter: ColorJitter = None,
    hflip: Hflip = None,
    scale: Scale = None,
    seed: Seed = None,
    select: SelectEpoch = None,
    operating_point: OperatingPoint = None,
    input_size: InputSize = None,
    crop_pct: CropPct = None,
    mean: Mean = None,
    std: Std = None,
    labels: Labels = None,
    label_column: LabelColumn = None,
    on: On = "image_id",
    positive: Positive = None,
    where: Where = None,
    merge: Merge = None,
    drop_class: DropClass = None,
    min_images: MinImages = None,
    uncertain: Uncertain = None,
    separator: Separator = None,
    val_fraction: ValFraction = None,
    folds: Folds = None,
    group_pattern: Annotated[
        str | None,
        typer.Option(
            help="Regular expression whose captured part of the image_id names the group (patient).",
            rich_help_panel="Split",
        ),
    ] = None,
    split: SplitFile = None,
    split_seed: Annotated[int, typer.Option(help="Random seed of the split.", rich_help_panel="Split")] = 0,
    path_column: PathColumn = None,
    id_column: IdColumn = None,
    group_column: GroupColumn = None,
    split_column: SplitColumn = None,
    allow_outside: AllowOutside = False,
    timeout: Timeout = None,
    compile: CompileTrunk = "auto",  # noqa: A002
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a whole network on images, from scratch or from pretrained weights."""
    from featcache.finetune.fine_tune import SCRATCH, head_for, train
    from featcache.images.workers import TIMEOUT_S
    from featcache.manifest import Manifest
    from featcache.manifest.columns import ColumnSpec
    from featcache.request import BackboneSpec
    from featcache.splits.protocol import SplitSpec

    fields = {
        "lr": lr, "backbone_lr": lr if backbone_lr is None else backbone_lr, "optimizer": optimizer,
        "weight_decay": weight_decay, "schedule": schedule, "lr_patience": lr_patience, "patience": patience,
        "class_weight": class_weight, "label_smoothing": label_smoothing, "freeze_bn": freeze_bn,
        "batch_size": batch_size, "grad_accumulation": grad_accumulation, "precision": precision, "seed": seed,
        "select": select,
    }  # fmt: skip
    augmentation = {"rotation": rotation, "color_jitter": color_jitter, "hflip": hflip, "scale": scale}
    recipe = recipe_of(preset, unfreeze or [], epochs or [], fields, augmentation, augment, SCRATCH)
    transform_fields: dict[str, Any] = {"input_size": input_size, "crop_pct": crop_pct}
    transform_fields |= {"mean": numbers_of("--mean", mean), "std": numbers_of("--std", std)}
    labelled = {"file": labels, "on": on, "positive": positive, "min_images": min_images}
    labelled |= {"uncertain": uncertain, "separator": separator}
    target = target_of(label_column, where, merge, drop_class, **labelled)
    drawn = {"val_fraction": val_fraction, "n_splits": folds, "seed": split_seed, "file": split}
    named = {"path_column": path_column, "id_column": id_column}
    named |= {"group_column": group_column, "split_column": split_column}
    arguments = {
        "kind": head,
        "hidden_sizes": hidden_sizes_of(hidden_sizes) if hidden_sizes else None,
        "dropout": dropout,
        "seed": seed,
    }
    with training() as (callbacks, _):
        manifest = Manifest.read(images, group_pattern, allow_outside, spec_of(ColumnSpec, named))
        tell_notes(manifest, callbacks.on_note)
        done = train(
            manifest,
            spec_of(BackboneSpec, {"name": model, "weights": weights, **transform_fields}),
            spec_of(head_for, {"model": model, **arguments}),
            recipe,
            output,
            target=target,
            split=spec_of(SplitSpec, drawn, seed="split_seed"),
            operating_point=operating_point,
            device=device,
            compile=compile,
            timeout_s=TIMEOUT_S if timeout is None else timeout,
            on_progress=callbacks.on_progress,
            on_epoch=callbacks.on_epoch,
            on_note=callbacks.on_note,
        )
    tell_tuned(as_json, done)
