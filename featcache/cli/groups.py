"""The options of specs, as groups that commands take: heads, recipes, labels, splits, tables, images and backbones."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli.options import (
    AllowOutside,
    Device,
    Group,
    Option,
    Timeout,
    existing_weights,
    option,
    own_option,
)
from featcache.errors import InvalidParameter, UsageError
from featcache.specs import (
    PRESETS,
    SCRATCH,
    STORED_DTYPES,
    AugmentationSpec,
    AugmentedCopies,
    BackboneSpec,
    ColumnSpec,
    DecodeSpec,
    HeadSpec,
    Recipe,
    SelectionSpec,
    SplitSpec,
    Stage,
    TargetSpec,
    Where,
    grid,
    recipe,
)

_REPEAT = "repeat an option to compare several values"
_AUGMENTATION = tuple(field.name for field in fields(AugmentationSpec))


# --- labels, splits and selection -------------------------------------------------------------------------------------


def _target(merge_classes: Sequence[str] = (), where: Sequence[str] = (), **more: Any) -> TargetSpec:
    pairs = [text.partition("=") for text in merge_classes]
    for text, (old, sign, new) in zip(merge_classes, pairs, strict=True):
        if not (old and sign and new):
            raise InvalidParameter(f"`merge_classes`={text!r}: A=B is expected, where class A becomes class B.")
    return TargetSpec(
        merge_classes={old: new for old, _, new in pairs}, where=tuple(Where.parse(text) for text in where), **more
    )


_label = partial(option, TargetSpec, panel="Labels")
_LABEL_OPTIONS = (
    _label("file", "labels"),
    _label(
        "columns", "label_column", text="Column of class names. Repeat it for several findings, each 1, 0 or empty."
    ),
    _label("on"),
    _label("uncertain", default="a class of its own"),
    _label("separator"),
    _label("where", text="Use only the rows with COLUMN=VALUE or COLUMN!=VALUE. Repeatable.", of=str, read=list),
)
TARGET = Group(
    _target,
    *_LABEL_OPTIONS[:3],
    _label("positive", default="the last class that is no negation"),
    *_LABEL_OPTIONS[3:],
    Option("merge_classes", own_option("merge", Annotated[
        list[str] | None,
        typer.Option(help="Merge class A into class B: A=B. Repeatable.", rich_help_panel="Labels"),
    ]).parameter, list),
    _label("drop_classes", "drop_class", text="Class to leave out. Repeatable."),
    _label("min_images"),
)  # fmt: skip
LABELS = Group(dict, *_LABEL_OPTIONS)

_split = partial(option, SplitSpec, panel="Split")
_HOLD_OUT = (
    _split("val_fraction", default="0.2, or the store's own validation rows"),
    _split("n_splits", "folds"),
)
_SPLIT_END = (
    _split("file", "split"),
    _split("seed", "split_seed"),
)
SPLIT = Group(
    SplitSpec,
    *_HOLD_OUT,
    _split("n_repeats", "repeats"),
    _split("nested"),
    _split("group_by", default="group"),
    _split("near_duplicates"),
    *_SPLIT_END,
)
IMAGE_SPLIT = Group(SplitSpec, *_HOLD_OUT, *_SPLIT_END)

_selection = partial(option, SelectionSpec, panel="Selection")
SELECTION = Group(
    SelectionSpec,
    *(_selection(name) for name in ("select", "refit_all", "operating_point", "n_permutations")),
    _selection("compare", text="Store of the same images with another backbone, as a baseline. Repeatable."),
    _selection("tta", text="Test-time augmentation: average the logits over an image's augmented copies."),
)


# --- heads and recipes ------------------------------------------------------------------------------------------------


def _heads(kind: Sequence[str] = ("linear",), augmentations: bool = False, **values: Sequence[Any]) -> list[HeadSpec]:
    return grid(kind, {**values, "augmentations": [True] if augmentations else []})


_head = partial(option, HeadSpec, panel=f"Head ({_REPEAT})", several=True)
_training = partial(option, HeadSpec, panel=f"Training ({_REPEAT})", several=True)
HEADS = Group(
    _heads,
    _head("kind", "head"),
    *(_head(name) for name in ("hidden_sizes", "activation", "norm", "dropout")),
    _head("C", flag="--C"),
    *(_head(name) for name in ("alpha", "n_neighbors")),
    *(
        _training(name)
        for name in (
            "scale", "epochs", "batch_size", "optimizer", "lr", "weight_decay", "momentum", "schedule", "lr_patience",
            "patience", "class_weight", "label_smoothing", "seed",
        )
    ),
    option(HeadSpec, "augmentations", panel=f"Training ({_REPEAT})"),
)  # fmt: skip
NETWORK_HEAD = Group(
    dict,
    option(HeadSpec, "kind", "head", text="Kind of head: linear or mlp.", default="that of the network"),
    option(HeadSpec, "hidden_sizes"),
    option(HeadSpec, "dropout"),
)  # fmt: skip


def _recipe(
    base: Recipe | None = None,
    preset: str | None = None,
    unfreeze: Sequence[str] = (),
    epochs: Sequence[int] = (),
    augment: bool = True,
    **values: Any,
) -> Recipe:
    """A preset or `base`, with the values that were given; `unfreeze` and `epochs` go in pairs."""
    augmentation = {name: values.pop(name) for name in _AUGMENTATION if name in values}
    if len(epochs) > max(1, len(unfreeze)):
        raise UsageError(f"`epochs`={epochs[-1]}: {len(epochs)} of them for {len(unfreeze)} `unfreeze`; one for each.")
    if 0 < len(epochs) < len(unfreeze):
        raise UsageError(f"`unfreeze`={unfreeze[-1]} has no `epochs`: give as many, or none.")
    if augmentation and not augment:
        raise UsageError(
            "--no-augment uses the images as they are: leave `rotation`, `color_jitter`, `hflip` and `scale` out."
        )
    start = PRESETS.get(preset or "") or base or Recipe()
    names = unfreeze or ([start.stages[0].unfreeze] if epochs else [])
    lengths = epochs or [start.stages[0].epochs] * len(names)
    stages = tuple(Stage(name, length) for name, length in zip(names, lengths, strict=True))
    result = recipe(preset, stages, start, **values)
    return replace(result, augment=AugmentationSpec(**augmentation) if augment else None)


def _scratch_recipe(lr: float | None = None, backbone_lr: float | None = None, **values: Any) -> Recipe:
    """The recipe of a whole network: one learning rate for all of it, unless the backbone has its own."""
    rates = {"lr": lr, "backbone_lr": lr if backbone_lr is None else backbone_lr}
    values |= {name: rate for name, rate in rates.items() if rate is not None}
    return _recipe(SCRATCH, **values)


def _recipe_options(unfreeze: str, backbone_lr: str, *more: Option) -> tuple[Option, ...]:
    one = partial(option, Recipe, panel="Recipe")
    augmented = partial(option, AugmentationSpec, panel="Augmentation")
    preset = typer.Option(help=f"Published recipe: {', '.join(PRESETS)}.", rich_help_panel="Recipe")
    augment = typer.Option(
        "--augment/--no-augment", help="Augment the training images.", rich_help_panel="Augmentation"
    )
    return (
        own_option("preset", Annotated[str | None, preset]),
        option(Stage, "unfreeze", panel="Recipe", several=True, default=unfreeze),
        option(
            Stage,
            "epochs",
            panel="Recipe",
            several=True,
            text="Number of epochs of each stage, in the order of --unfreeze.",
        ),
        *(one(name) for name in ("batch_size", "grad_accumulation", "optimizer", "lr")),
        one("backbone_lr", default=backbone_lr),
        *(one(name) for name in ("weight_decay", "schedule", "lr_patience", "patience", "class_weight")),
        one("label_smoothing"),
        *more,
        *(one(name) for name in ("freeze_bn", "precision", "select", "seed")),
        own_option("augment", Annotated[bool, augment], True),
        *(augmented(name) for name in _AUGMENTATION),
    )


RECIPE = Group(
    _recipe,
    *_recipe_options(
        "last-block", "a tenth of lr", option(Recipe, "dropout", panel="Recipe", default="that of the Run")
    ),
)
SCRATCH_RECIPE = Group(_scratch_recipe, *_recipe_options("all", "lr"))


# --- images -----------------------------------------------------------------------------------------------------------


def _images(group_pattern: str | None = None, allow_outside: bool = False, **columns: str) -> dict[str, Any]:
    """Arguments of `Manifest.read`."""
    return {"group_pattern": group_pattern, "allow_outside": allow_outside, "columns": ColumnSpec(**columns)}


def _image_options(*names: str) -> tuple[Option, ...]:
    standard = {"path_column": "path", "id_column": "image_id, or the path"}
    columns = partial(option, ColumnSpec, panel="Columns of a CSV")
    pattern = typer.Option(help="Regular expression whose capture in the image name is the group (patient).")
    return (
        own_option("group_pattern", Annotated[str | None, pattern]),
        own_option("allow_outside", AllowOutside, False),
        *(columns(name, default=standard.get(name, name.removesuffix("_column"))) for name in names),
    )


IMAGES = Group(_images, *_image_options("path_column", "id_column", "label_column", "group_column", "split_column"))
TRAINING_IMAGES = Group(_images, *_image_options("path_column", "id_column", "group_column", "split_column"))

_WEIGHTS = typer.Option(
    callback=existing_weights,
    show_default="pretrained, from the hub",
    help="Weights: a .safetensors or .pth file, or random:SEED.",
)
_transform = partial(option, BackboneSpec, panel="Transform")


def _three(**values: Any) -> dict[str, Any]:
    """Fields of a BackboneSpec; one number stands for all channels."""
    for name in ("mean", "std"):
        if len(values.get(name, (0,))) not in (1, 3):
            raise InvalidParameter(f"`{name}`: one or three numbers are expected, got {len(values[name])}.")
    return values


_TRANSFORM = tuple(_transform(name) for name in ("input_size", "crop_pct", "interpolation", "mean", "std"))
NETWORK = Group(_three, own_option("weights", Annotated[str | None, _WEIGHTS]), *_TRANSFORM)
BACKBONE = Group(
    _three,
    own_option("weights", Annotated[str | None, _WEIGHTS]),
    *_TRANSFORM,
    option(BackboneSpec, "taps", "tap", panel="Features"),
    option(BackboneSpec, "precision", panel="Features", default="auto"),
)


def _decode(fast: str = "exact", float_range: tuple[float, ...] | None = None, **values: Any) -> DecodeSpec:
    if fast not in ("exact", "fast"):
        raise InvalidParameter(f"`fast` must be exact or fast, got {fast!r}.")
    if float_range is not None and len(float_range) != 2:
        raise InvalidParameter(f"`float_range`: two numbers are expected, as in 0,1, got {len(float_range)}.")
    return DecodeSpec(fast=fast == "fast", float_range=float_range, **values)


_image = partial(option, DecodeSpec, panel="Decoding")
FIRST_FRAME, MAX_PIXELS = _image("first_frame"), _image("max_pixels")
READABLE = Group(DecodeSpec, FIRST_FRAME, MAX_PIXELS)
DECODE = Group(
    _decode,
    _image(
        "fast",
        "decode",
        of=str,
        default="exact",
        text="Decoding: exact, or fast, which takes shortcuts that change pixels slightly.",
    ),
    _image("bit_depth", default="by the largest value of all images"),
    _image("float_range", text="Range LOW,HIGH of float pixels that becomes 0 to 255.", default="float is refused"),
    FIRST_FRAME,
    MAX_PIXELS,
)


def _copies(n: int = 0, seed: int | None = None) -> AugmentedCopies | None:
    if not n and seed is None:
        return None
    copies = AugmentedCopies(n or 1, seed or 0)
    if not n:
        raise UsageError("`augmentation_seed` is the seed of `augmentations`, and there are none.")
    return copies


COPIES = Group(
    _copies,
    option(AugmentedCopies, "n", "augmentations", panel="Features", default="0"),
    option(AugmentedCopies, "seed", "augmentation_seed", panel="Features"),
)


# --- the machine ------------------------------------------------------------------------------------------------------


def _compile(text: str) -> Option:
    info = typer.Option("--compile", help=f"{text}: auto, on or off.", rich_help_panel="Machine")
    return own_option("compile", Annotated[str, info], "auto")


_TIMEOUT, _DEVICE = own_option("timeout", Timeout, field="timeout_s"), own_option("device", Device, "auto")
_WORKERS = typer.Option(
    min=1,
    max=256,
    help="Number of processes that decode images.",
    rich_help_panel="Machine",
)
_DECODERS = own_option("workers", Annotated[int | None, _WORKERS], field="n_workers")
_PART_ROWS = typer.Option(help="Rows per part file of an unfinished pass.", rich_help_panel="Machine")
MACHINE = Group(dict, _DEVICE, _compile("Compile the frozen part of the network"), _TIMEOUT)
PASS = Group(
    dict,
    _DEVICE,
    _compile("Compile the network before the pass"),
    _DECODERS,
    _TIMEOUT,
    own_option("part_rows", Annotated[int | None, _PART_ROWS]),
)
_STRICT = typer.Option("--strict", help="Stop at the first image that fails.", rich_help_panel="Decoding")
PREDICTION = Group(
    dict,
    FIRST_FRAME,
    MAX_PIXELS,
    own_option("strict", Annotated[bool, _STRICT], False),
    _compile("Compile the network before the pass"),
    _DECODERS,
    _TIMEOUT,
)
DTYPE = Annotated[
    str, typer.Option(help=f"Stored number type: {' or '.join(STORED_DTYPES)}.", rich_help_panel="Features")
]
OPERATING_POINT = Annotated[
    str | None,
    typer.Option(
        help="Rule for the decision threshold of two classes: youden, f1, sensitivity=S or specificity=S.",
        rich_help_panel="Recipe",
    ),
]
Keep = Annotated[Path | None, typer.Option(help="Store to write the vectors of these images to, for later use.")]
RunPrecision = Annotated[
    str | None,
    typer.Option(
        show_default="that of the Run",
        help="Precision of the network: float32, bfloat16, tf32 or float16.",
        rich_help_panel="Machine",
    ),
]
