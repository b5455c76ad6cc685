"""What may be asked: the options that several commands have, and how what was given becomes values and specs.

An option of one command stands in that command. Defaults belong to the specs: an option that was not given is None and
is left away, and of heads and recipes `--help` shows what the spec itself says. Knows nothing of what is then done.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from featcache.errors import FeatcacheError, InvalidParameter, UsageError
from featcache.heads import KINDS, PATHS, HeadSpec
from featcache.recipe import PRESETS, AugmentSpec, Recipe, Stage, recipe

Spec = TypeVar("Spec")
_FIELDS_OF = {  # options whose fields have other names
    "drop_class": ("drop_classes",), "folds": ("n_splits",), "from_cache": ("store",), "head": ("kind",),
    "merge": ("merge_classes",), "repeats": ("n_repeats",), "tap": ("taps",), "text": ("texts",),
    "timeout": ("timeout_s",),
}  # fmt: skip
_RUNNING: ContextVar["OptionCommand | None"] = ContextVar("running", default=None)
HEAD = "Head (repeat an option to try several values)"


def tried(name: str, says: str) -> Any:
    """An option that is a field of `HeadSpec`, shown with its default for each kind it applies to."""
    of = {kind: HeadSpec.of(kind).used() for kind in KINDS}
    defaults = {kind: PATHS.get(kind, {}).get(name, used[name]) for kind, used in of.items() if name in used}
    first = next(iter(defaults.values()))
    other_defaults = [f"{kind} {_plain(value)}" for kind, value in defaults.items() if value != first]
    default_text = ", ".join([_plain(first), *other_defaults])
    return typer.Option(f"--{name.replace('_', '-')}", help=says, show_default=default_text, rich_help_panel=HEAD)


def _plain(value: Any) -> str:
    return (
        " ".join(map(_plain, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def of_recipe(name: str, says: str, default: str | None = None, panel: str = "Recipe") -> Any:
    """An option that is a field of `Recipe`, or of its augmentation, shown with its default."""
    default_text = default or _plain(getattr(Recipe(), name, getattr(AugmentSpec(), name, None)))
    return typer.Option(f"--{name.replace('_', '-')}", help=says, show_default=default_text, rich_help_panel=panel)


# of all
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; the rest goes to stderr.")]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.", rich_help_panel="Machine")]
StoreFile = Annotated[Path, typer.Argument(help="Path of a store, STORE.h5.")]

# of images and their labels
AllowOutside = Annotated[bool, typer.Option(help="Allow links and CSV paths that lead out of the folder.")]
PathColumn = Annotated[
    str | None,
    typer.Option(show_default="path", help="Column with the paths of the images.", rich_help_panel="Columns of a CSV"),
]
IdColumn = Annotated[
    str | None,
    typer.Option(
        show_default="image_id, or the path",
        help="Column with the names of the images.",
        rich_help_panel="Columns of a CSV",
    ),
]
ClassColumn = Annotated[
    str | None,
    typer.Option(
        "--label-column", show_default="label", help="Column with the labels.", rich_help_panel="Columns of a CSV"
    ),
]
GroupColumn = Annotated[
    str | None,
    typer.Option(show_default="group", help="Column that identifies patients.", rich_help_panel="Columns of a CSV"),
]
SplitColumn = Annotated[
    str | None,
    typer.Option(
        show_default="split", help="Column with the subset: train, val or test.", rich_help_panel="Columns of a CSV"
    ),
]
InputSize = Annotated[
    int | None, typer.Option(help="Side of the network's input, in pixels.", rich_help_panel="Transform")
]
CropPct = Annotated[
    float | None, typer.Option(help="Share of the resized image kept by the center crop.", rich_help_panel="Transform")
]
Mean = Annotated[
    str | None, typer.Option(help="Mean per channel, one or three numbers, as in 0.53.", rich_help_panel="Transform")
]
Std = Annotated[
    str | None,
    typer.Option(help="Standard deviation per channel, one or three numbers, as in 0.19.", rich_help_panel="Transform"),
]
Labels = Annotated[Path | None, typer.Option(help="CSV with labels to join.", rich_help_panel="Labels")]
LabelColumn = Annotated[
    list[str] | None,
    typer.Option(
        show_default="label",
        help="Column with the classes. Repeat the option for several findings, each 1 or 0.",
        rich_help_panel="Labels",
    ),
]
On = Annotated[
    str,
    typer.Option(
        help="Column that joins the CSV to the images; OURS=THEIRS if the names differ.", rich_help_panel="Labels"
    ),
]
Positive = Annotated[
    str | None,
    typer.Option(show_default="the last that is no negation", help="Positive class of two.", rich_help_panel="Labels"),
]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Use only rows with COLUMN=VALUE or COLUMN!=VALUE. Repeatable.", rich_help_panel="Labels"),
]
Merge = Annotated[
    list[str] | None, typer.Option(help="A=B: merge class A into class B. Repeatable.", rich_help_panel="Labels")
]
DropClass = Annotated[
    list[str] | None, typer.Option(help="Leave this class out. Repeatable.", rich_help_panel="Labels")
]
MinImages = Annotated[
    int | None, typer.Option(show_default="0", help="Leave out classes with fewer images.", rich_help_panel="Labels")
]
Uncertain = Annotated[
    str | None,
    typer.Option(help="How a label of -1 (uncertain) is read: ignore, positive or negative.", rich_help_panel="Labels"),
]
Separator = Annotated[
    str | None,
    typer.Option(help="Separator of a label column that lists several findings, as in '|'.", rich_help_panel="Labels"),
]

# of a training
ValFraction = Annotated[
    float | None,
    typer.Option(show_default="0.2", help="Share of rows held out for validation.", rich_help_panel="Split"),
]
Folds = Annotated[
    int | None,
    typer.Option(help="Cross-validate with this many stratified group folds instead.", rich_help_panel="Split"),
]
SplitFile = Annotated[
    Path | None, typer.Option(help="Split file (split.json) of another Run.", rich_help_panel="Split")
]
OperatingPoint = Annotated[
    str | None,
    typer.Option(
        help="Rule that chooses the threshold: youden, f1, sensitivity=S or specificity=S.", rich_help_panel="Selection"
    ),
]

# of a recipe, and of the machine that follows it
Preset = Annotated[
    str | None, typer.Option(help=f"A published recipe: {', '.join(PRESETS)}.", rich_help_panel="Recipe")
]
Unfreeze = Annotated[
    list[str] | None,
    typer.Option(
        show_default="last-block, all for train",
        help="What to train: last-block, last-stage, a number of blocks, all, or a regular expression of parameter "
        "names. Repeat the option for stages.",
        rich_help_panel="Recipe",
    ),
]
Epochs = Annotated[
    list[int] | None,
    typer.Option(show_default="10", help="Epochs of each stage, in the order of --unfreeze.", rich_help_panel="Recipe"),
]
Optimizer = Annotated[str | None, of_recipe("optimizer", "Optimizer: adam, adamw or sgd.")]
WeightDecay = Annotated[float | None, of_recipe("weight_decay", "Weight decay of all trained parameters.")]
Schedule = Annotated[str | None, of_recipe("schedule", "Learning rate schedule: plateau, constant or cosine.")]
LrPatience = Annotated[
    int | None, of_recipe("lr_patience", "Epochs without improvement before the rate drops (schedule plateau only).")
]
Patience = Annotated[
    int | None,
    of_recipe("patience", "Early stopping: epochs without a better loss before a stage ends; 0 turns it off."),
]
ClassWeight = Annotated[str | None, of_recipe("class_weight", "Class weights of the loss: none or balanced.")]
LabelSmoothing = Annotated[
    float | None, of_recipe("label_smoothing", "Label smoothing: share of each target spread over the classes.")
]
FreezeBn = Annotated[
    str | None, of_recipe("freeze_bn", "Keep batch normalisation layers as they are: auto, yes or no.")
]
BatchSize = Annotated[int | None, of_recipe("batch_size", "Images per optimizer step, over all processes.")]
GradAccumulation = Annotated[
    int | None, of_recipe("grad_accumulation", "Parts in which a batch is processed, to save memory.")
]
LearningPrecision = Annotated[
    str | None, of_recipe("precision", "Arithmetic of training: float32 or bfloat16; on a GPU also tf32 or float16.")
]
Seed = Annotated[int | None, of_recipe("seed", "Random seed.")]
SelectEpoch = Annotated[str | None, of_recipe("select", "Validation metric that chooses the epoch.")]
Augment = Annotated[bool, typer.Option(help="Augment the training images.", rich_help_panel="Augmentation")]
Rotation = Annotated[float | None, of_recipe("rotation", "Largest rotation, in degrees.", panel="Augmentation")]
ColorJitter = Annotated[
    float | None,
    of_recipe("color_jitter", "Largest relative change of brightness, contrast and saturation.", panel="Augmentation"),
]
Hflip = Annotated[float | None, of_recipe("hflip", "Probability of a horizontal flip.", panel="Augmentation")]
Scale = Annotated[
    float | None,
    of_recipe("scale", "Smallest share of the image's area that a random crop keeps.", panel="Augmentation"),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        max=86_400,
        show_default="60",
        help="Longest time to decode one image, in seconds.",
        rich_help_panel="Machine",
    ),
]
CompileTrunk = Annotated[
    str,
    typer.Option(
        "--compile", help="Compile the frozen part of the network: auto, on or off.", rich_help_panel="Machine"
    ),
]


def target_of(
    columns: list[str] | None,
    where: list[str] | None,
    merge: list[str] | None,
    drop: list[str] | None,
    **more_fields: Any,
) -> Any:
    """What is to be learnt, of the options that say so."""
    from featcache.splits.task import TargetSpec
    from featcache.store import Where

    pairs = [text.partition("=") for text in merge or []]
    if wrong := [text for text, (old, sign, new) in zip(merge or [], pairs, strict=True) if not (old and sign and new)]:
        raise UsageError(f"--merge {wrong[0]!r}: A=B is expected, where class A becomes class B.")
    fields = {
        "columns": tuple(columns or ()) or None,
        "where": tuple(Where.parse(text) for text in where or ()),
        "merge_classes": {old: new for old, _, new in pairs},
        "drop_classes": tuple(drop or ()),
    }
    return spec_of(TargetSpec, {**fields, **more_fields})


def hidden_sizes_of(text: str) -> tuple[int, ...]:
    """`256`, or `512,256` for two layers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--hidden-sizes {text!r}: whole numbers are expected, as in --hidden-sizes 512,256."
        ) from error


def is_fast(decode: str) -> bool:
    if decode not in ("exact", "fast"):
        raise UsageError(f"--decode {decode}: exact or fast is expected.")
    return decode == "fast"


def numbers_of(option: str, text: str | None, *lengths: int) -> tuple[float, ...] | None:
    """`0.53` or `0.485,0.456,0.406`."""
    if text is None:
        return None
    expected, example = ("two numbers are", "0,1") if lengths else ("one or three numbers are", "0.5,0.5,0.5")
    try:
        values = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise UsageError(f"{option} {text!r}: {expected} expected, as in {option} {example}.") from error
    if len(values) not in (lengths or (1, 3)):
        raise UsageError(f"{option} {text!r}: {expected} expected, got {len(values)}.")
    return values


def weights_there(weights: str | None) -> str | None:
    """What `--weights` was given, before seconds are spent on loading torch: not a file that is not there."""
    if weights is not None:
        from featcache.request import check_weights

        check_weights(weights)
    return weights


def spec_of(kind: Callable[..., Spec], fields: dict[str, Any], /, **parameter_of: str) -> Spec:
    """A spec of the options that were given; the defaults are its own.

    Args:
        kind: makes it.
        fields: its fields; None stands for an option that was not given.
        parameter_of: the parameter of the command that sets a field of another name.

    Raises:
        UsageError: a value that the spec refuses.
    """
    try:
        return kind(**{name: value for name, value in fields.items() if value is not None})
    except InvalidParameter as error:
        message = str(error)
        for name, parameter in parameter_of.items():
            message = message.replace(f"`{name}`", f"`{parameter}`")
        raise UsageError(message) from error


class OptionCommand(TyperCommand):
    """A command whose errors show the parameters that a message names in backticks as options of this command."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with self._showing_options():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with self._showing_options():
            return super().invoke(ctx)

    @contextmanager
    def _showing_options(self) -> Iterator[None]:
        token = _RUNNING.set(self)
        try:
            yield
        except FeatcacheError as error:
            error.args = (with_options(str(error)), *error.args[1:])
            raise
        finally:
            _RUNNING.reset(token)


def with_options(message: str) -> str:
    """A message of the library as the running command shows it: "`lr` must be > 0" becomes "--lr must be > 0", and
    "`lr`=2" becomes "--lr 2"."""
    command = _RUNNING.get()
    for parameter in command.params if command else ():
        option = max(parameter.opts, key=len)
        for name in (parameter.name, *_FIELDS_OF.get(parameter.name or "", ())):
            message = message.replace(f"`{name}`=", f"{option} ").replace(f"`{name}`", option)
    return message


def recipe_of(
    preset: str | None,
    unfreeze: list[str],
    epochs: list[int],
    fields: dict[str, Any],
    augmentation: dict[str, Any],
    augment: bool,
    otherwise: Recipe | None = None,
) -> Recipe:
    """A preset, or the defaults, with the options that were given; `--unfreeze` and `--epochs` go in pairs."""
    if len(epochs) > max(1, len(unfreeze)):
        raise UsageError(f"--epochs {epochs[-1]}: {len(epochs)} of them for {len(unfreeze)} --unfreeze; one for each.")
    if 0 < len(epochs) < len(unfreeze):
        raise UsageError(f"--unfreeze {unfreeze[-1]} has no --epochs: give as many, or none.")
    if not augment and any(value is not None for value in augmentation.values()):
        raise UsageError(
            "--no-augment shows images as they are: leave --rotation, --color-jitter, --hflip and --scale away."
        )
    base = recipe(preset) if preset in PRESETS else otherwise or Recipe()
    names = unfreeze or ([base.stages[0].unfreeze] if epochs else [])
    lengths = epochs or [base.stages[0].epochs] * len(names)
    stages = tuple(spec_of(Stage, {"unfreeze": n, "epochs": e}) for n, e in zip(names, lengths, strict=True))
    overrides: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    result: Recipe = spec_of(recipe, {"preset": preset, "stages": stages or None, "base": base, **overrides})
    return replace(result, augment=spec_of(AugmentSpec, augmentation) if augment else None)
