"""The command that trains on vectors: `train-head`.

An option of the head that is given several times is tried with all its values, as `heads.grid` combines them; those of
labels, split and report are one each.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.options import (
    HEAD,
    Device,
    DropClass,
    Folds,
    Json,
    LabelColumn,
    Labels,
    Merge,
    MinImages,
    On,
    OperatingPoint,
    Positive,
    Separator,
    SplitFile,
    StoreFile,
    Uncertain,
    ValFraction,
    Where,
    hidden_sizes_of,
    spec_of,
    target_of,
    tried,
)
from featcache.cli.progress import interruptible, progress
from featcache.cli.render import answer, console
from featcache.cli.results import print_run, run_answer
from featcache.heads import KINDS


def train_head_command(
    store: StoreFile,
    head: Annotated[
        list[str] | None, typer.Option(show_default="linear", help=f"Kind of head: {', '.join(KINDS)}.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the new Run. Default: runs/STORE-HEAD-DIGEST.")
    ] = None,
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
    lr: Annotated[list[float] | None, tried("lr", "Learning rate.")] = None,
    epochs: Annotated[list[int] | None, tried("epochs", "Passes over the training rows.")] = None,
    batch_size: Annotated[list[int] | None, tried("batch_size", "Rows per optimizer step.")] = None,
    optimizer: Annotated[list[str] | None, tried("optimizer", "Optimizer: adam, adamw or sgd.")] = None,
    weight_decay: Annotated[list[float] | None, tried("weight_decay", "Weight decay of all parameters.")] = None,
    momentum: Annotated[list[float] | None, tried("momentum", "Momentum (sgd only).")] = None,
    schedule: Annotated[
        list[str] | None, tried("schedule", "Learning rate schedule: constant, plateau or cosine.")
    ] = None,
    lr_patience: Annotated[
        list[int] | None,
        tried("lr_patience", "Epochs without improvement before the rate drops (schedule plateau only)."),
    ] = None,
    patience: Annotated[
        list[int] | None,
        tried("patience", "Early stopping: epochs without a better loss before training ends; 0 turns it off."),
    ] = None,
    label_smoothing: Annotated[
        list[float] | None, tried("label_smoothing", "Label smoothing: share of each target spread over the classes.")
    ] = None,
    class_weight: Annotated[
        list[str] | None, tried("class_weight", "Class weights of the loss: none or balanced.")
    ] = None,
    scale: Annotated[list[str] | None, tried("scale", "Feature scaling: rms, standard or none.")] = None,
    seed: Annotated[list[int] | None, tried("seed", "Random seed of initial weights and dropout.")] = None,
    augmentations: Annotated[
        bool,
        typer.Option(
            "--augmentations",
            help="Train on the store's augmented copies, drawn again in each epoch.",
            rich_help_panel=HEAD,
        ),
    ] = False,
    hidden_sizes: Annotated[
        list[str] | None, tried("hidden_sizes", "Units per hidden layer (mlp only), as in 256 or 512,256.")
    ] = None,
    activation: Annotated[
        list[str] | None, tried("activation", "Activation of hidden layers: relu, sigmoid, tanh or gelu.")
    ] = None,
    norm: Annotated[list[str] | None, tried("norm", "Normalisation of hidden layers: none or batch.")] = None,
    dropout: Annotated[list[float] | None, tried("dropout", "Dropout rate of hidden layers.")] = None,
    C: Annotated[list[float] | None, tried("C", "Inverse L2 penalty (logreg only).")] = None,  # noqa: N803
    alpha: Annotated[list[float] | None, tried("alpha", "L2 penalty (ridge only).")] = None,
    n_neighbors: Annotated[list[int] | None, tried("n_neighbors", "Number of neighbors (knn only).")] = None,
    val_fraction: ValFraction = None,
    folds: Folds = None,
    repeats: Annotated[
        int, typer.Option(help="Repeat cross-validation this often, each time with new folds.", rich_help_panel="Split")
    ] = 1,
    nested: Annotated[
        bool,
        typer.Option(
            help="Nest the folds in outer folds, which estimate performance without a test set.",
            rich_help_panel="Split",
        ),
    ] = False,
    group_by: Annotated[
        str | None,
        typer.Option(
            show_default="group",
            help="Keep all rows with the same value of this column in one subset.",
            rich_help_panel="Split",
        ),
    ] = None,
    near_duplicates: Annotated[
        float | None,
        typer.Option(help="Keep images with at least this cosine similarity in one subset.", rich_help_panel="Split"),
    ] = None,
    split: SplitFile = None,
    split_seed: Annotated[
        int, typer.Option(help="Random seed of the split and of batches.", rich_help_panel="Split")
    ] = 0,
    select: Annotated[
        str,
        typer.Option(
            help="Validation metric that ranks heads: auroc, f1, balanced_accuracy, accuracy, auprc or loss.",
            rich_help_panel="Selection",
        ),
    ] = "auroc",
    refit_all: Annotated[
        bool, typer.Option(help="Train the chosen head on training and validation rows.", rich_help_panel="Selection")
    ] = False,
    operating_point: OperatingPoint = None,
    n_permutations: Annotated[
        int, typer.Option(help="Number of baselines trained on shuffled labels.", rich_help_panel="Selection")
    ] = 0,
    compare: Annotated[
        list[Path] | None,
        typer.Option(help="Another store, trained on as a baseline. Repeatable.", rich_help_panel="Selection"),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta",
            help="Test-time augmentation: score by the mean logits of an image and its augmented copies.",
            rich_help_panel="Selection",
        ),
    ] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train heads on a store in seconds. Repeat an option of the head to compare several values."""
    from featcache.heads import grid
    from featcache.splits.protocol import SplitSpec
    from featcache.store import Store
    from featcache.training.train_head import SelectionSpec, train_head

    options = {
        "lr": lr, "epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "weight_decay": weight_decay,
        "momentum": momentum, "schedule": schedule, "lr_patience": lr_patience, "patience": patience,
        "label_smoothing": label_smoothing, "class_weight": class_weight, "scale": scale, "seed": seed,
        "augmentations": [True] if augmentations else [],
        "hidden_sizes": [hidden_sizes_of(text) for text in hidden_sizes or []],
        "activation": activation, "norm": norm, "dropout": dropout, "C": C, "alpha": alpha, "n_neighbors": n_neighbors,
    }  # fmt: skip
    specs = spec_of(
        grid,
        {"kinds": head or ["linear"], "options": {name: values for name, values in options.items() if values}},
    )
    labelled = {"file": labels, "on": on, "positive": positive, "min_images": min_images}
    labelled |= {"uncertain": uncertain, "separator": separator}
    target = target_of(label_column, where, merge, drop_class, **labelled)
    drawn: dict[str, Any] = {
        "val_fraction": val_fraction,
        "n_splits": folds,
        "n_repeats": repeats,
        "nested": nested,
        "group_by": group_by,
    }
    drawn |= {"near_duplicates": near_duplicates, "seed": split_seed, "file": split}
    selection = {
        "select": select,
        "refit_all": refit_all,
        "operating_point": operating_point,
        "n_permutations": n_permutations,
    }
    division = spec_of(SplitSpec, drawn, seed="split_seed")
    report = spec_of(SelectionSpec, {**selection, "compare": tuple(compare or ()), "tta": tta})
    with (
        interruptible("nothing was written"),
        Store.open(store) as opened,
        progress("training", "epochs/s") as (on_progress, on_note),
    ):
        run = train_head(
            opened,
            specs,
            output,
            target=target,
            split=division,
            report=report,
            device=device,
            on_progress=on_progress,
            on_note=on_note,
        )
    if as_json:
        answer(run_answer(run))
    print_run(console(as_json), run)
