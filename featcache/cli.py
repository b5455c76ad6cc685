"""The command line: parse, call one function, print. The only module that prints, and the only user of typer and rich.

Results go to stdout, everything else to stderr; with `--json` stdout holds one JSON object and nothing else. Library
modules are imported inside the commands, so that `featcache --help` answers at once.
"""

import io
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from featcache import __version__
from featcache.errors import EXIT_SOME_FAILED, FeatcacheError, Interrupted, UsageError, from_os_error
from featcache.heads import KINDS, PATHS, HeadSpec
from featcache.recipe import PRESETS, AugmentSpec, Recipe, Stage, recipe

app = typer.Typer(
    name="featcache",
    help="Embed images once with a frozen backbone, then train heads on the cached vectors in seconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; the rest goes to stderr.")]
Spec = TypeVar("Spec")
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel="Machine")]


def _tried(name: str, says: str) -> Any:
    """An option that is a field of `HeadSpec`, shown with its default for each kind it applies to."""
    of = {kind: HeadSpec.of(kind).used() for kind in KINDS}
    defaults = {kind: PATHS.get(kind, {}).get(name, used[name]) for kind, used in of.items() if name in used}
    first = next(iter(defaults.values()))
    others = [f"{kind} {_plain(value)}" for kind, value in defaults.items() if value != first]
    shown = ", ".join([_plain(first), *others])
    return typer.Option(f"--{name.replace('_', '-')}", help=says, show_default=shown, rich_help_panel=_HEAD)


def _plain(value: Any) -> str:
    return (
        " ".join(map(_plain, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


_HEAD = "Head (repeat an option to try several values)"


def _of_recipe(name: str, says: str, default: str | None = None, panel: str = "Recipe") -> Any:
    """An option that is a field of `Recipe`, or of its augmentation, shown with its default."""
    shown = default or _plain(getattr(Recipe(), name, getattr(AugmentSpec(), name, None)))
    return typer.Option(f"--{name.replace('_', '-')}", help=says, show_default=shown, rich_help_panel=panel)


Preset = Annotated[
    str | None, typer.Option(help=f"A published recipe: {', '.join(PRESETS)}.", rich_help_panel="Recipe")
]
Unfreeze = Annotated[
    list[str] | None,
    typer.Option(
        show_default="last-block, all for train",
        help="last-block, last-stage, N blocks, all, or a REGEX of parameters. Repeat it for stages.",
        rich_help_panel="Recipe",
    ),
]
Epochs = Annotated[
    list[int] | None, typer.Option(show_default="10", help="Of each --unfreeze, in turn.", rich_help_panel="Recipe")
]
Optimizer = Annotated[str | None, _of_recipe("optimizer", "adam, adamw or sgd.")]
WeightDecay = Annotated[float | None, _of_recipe("weight_decay", "Of all that learns.")]
Schedule = Annotated[str | None, _of_recipe("schedule", "plateau, constant or cosine.")]
Patience = Annotated[int | None, _of_recipe("patience", "Epochs of plateau.")]
EarlyStopping = Annotated[int | None, _of_recipe("early_stopping", "Epochs without a better loss; 0: off.")]
ClassWeights = Annotated[str | None, _of_recipe("class_weights", "none or balanced.")]
LabelSmoothing = Annotated[float | None, _of_recipe("label_smoothing", "Share spread over the classes.")]
BatchRows = Annotated[int | None, _of_recipe("batch_rows", "Images per step, of all processes.")]
Accumulate = Annotated[int | None, _of_recipe("accumulate", "Pieces of a batch, for less memory.")]
LearningPrecision = Annotated[str | None, _of_recipe("precision", "float32, bfloat16; tf32, float16 on a GPU.")]
Seed = Annotated[int | None, _of_recipe("seed", "Of everything that is drawn.")]
SelectEpoch = Annotated[str | None, _of_recipe("select", "Validation metric that keeps an epoch.")]
Augment = Annotated[bool, typer.Option(help="Show images differently in each epoch.", rich_help_panel="Augmentation")]
Rotation = Annotated[float | None, _of_recipe("rotation", "Degrees, to either side.", panel="Augmentation")]
Jitter = Annotated[float | None, _of_recipe("jitter", "Of brightness and contrast.", panel="Augmentation")]
Flip = Annotated[float | None, _of_recipe("flip", "Probability of mirroring.", panel="Augmentation")]
Crop = Annotated[float | None, _of_recipe("crop", "Smallest share of the area shown.", panel="Augmentation")]
OperatingPoint = Annotated[
    str | None, typer.Option(help="youden, f1, sensitivity=S, specificity=S.", rich_help_panel="Report")
]
Timeout = Annotated[
    float | None, typer.Option(min=0.1, show_default="60", help="Seconds per image.", rich_help_panel="Machine")
]
CompileTrunk = Annotated[
    str, typer.Option("--compile", help="auto, on or off: compile the frozen part.", rich_help_panel="Machine")
]

_MAX_HISTORY_ROWS = 12
_SIDES = ("train", "val", "outer", "test")
_CONTINUES = "everything finished is kept. Run the same command to continue"
_MAX_SPECS = 10
_SCORES = (
    "auroc", "auprc", "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "loss", "brier",
    "ece",
)  # fmt: skip


def main() -> None:
    """Entry point: an error of ours is one line on stderr and its exit code, never a traceback."""
    # Threads that spin while they wait take the cores from whatever else runs: a sweep beside two busy processes took
    # 8.6 s, and 3.3 s with threads that sleep. Read by libgomp when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without "…" should not end the program
    try:
        app()
    except FeatcacheError as error:
        _fail(error)
    except OSError as error:  # paths too long, and whatever else only the operating system knows
        _fail(from_os_error(error, "using", Path(str(error.filename or "a file"))))


def _fail(error: FeatcacheError) -> NoReturn:
    if "--json" in sys.argv:
        _answer({"error": type(error).__name__, "exit_code": error.exit_code, "message": str(error)})
    print(f"featcache: {_shown(str(error), keep_lines=True)}", file=sys.stderr)
    sys.exit(error.exit_code)


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("featcache-demo"),
    as_json: Json = False,
) -> None:
    """The whole loop on generated phantoms, offline, in about a minute."""
    people = _people(as_json)
    people.print(f"drawing synthetic chest radiographs into {_name(output / 'images')} …")
    from featcache.demo import demo

    with _interruptible(_CONTINUES), _progress("embedding") as (on_progress, _):
        done = demo(output, on_progress)
    if as_json:
        _answer({"embed": done.embedded.as_json(), "train_head": _run_answer(done.run)})
    if done.has_random_weights:
        people.print("[yellow]The hub cannot be reached: the backbone has random weights (random:0).[/]")
    _print_embedded(people, done.embedded)
    _print_run(people, done.run)
    people.print(
        f"\nThe images are [bold]synthetic[/]: the scores say that the loop works, nothing about patients.\n"
        f"Look at [bold]{_name(done.run.path / 'curves.png')}[/]. Then try\n"
        f"  featcache train-head {_name(done.embedded.store)} --lr 0.001 --epochs 100 --positive abnormal\n"
        f"  featcache embed YOUR_IMAGES -o yours.h5 --backbone efficientnet_b1.ft_in1k",
        highlight=False,
    )


@app.command("embed")
def embed_command(
    images: Annotated[Path, typer.Argument(help="A folder of images, or a CSV with a column path.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The store to write, STORE.h5; a folder for several backbones.")
    ],
    backbone: Annotated[
        list[str], typer.Option(help="arch.tag or arch, see featcache backbones. Repeat it: one decode feeds all.")
    ],
    weights: Annotated[
        str | None, typer.Option(help="A .safetensors or .pth file, or random:SEED. Default: pretrained, from the hub.")
    ] = None,
    group_pattern: Annotated[
        str | None, typer.Option(help="REGEX searched in image_id; what it captures is the group (patient).")
    ] = None,
    allow_outside: Annotated[bool, typer.Option(help="Follow links and CSV paths out of the folder.")] = False,
    input_size: Annotated[int | None, typer.Option(help="Pixels.", rich_help_panel="Transform")] = None,
    crop_pct: Annotated[float | None, typer.Option(help="Share kept.", rich_help_panel="Transform")] = None,
    interpolation: Annotated[str | None, typer.Option(rich_help_panel="Transform")] = None,
    mean: Annotated[str | None, typer.Option(help="One or three numbers: 0.53", rich_help_panel="Transform")] = None,
    std: Annotated[str | None, typer.Option(help="One or three numbers: 0.19", rich_help_panel="Transform")] = None,
    first_frame: Annotated[
        bool, typer.Option(help="Take the first frame of several.", rich_help_panel="Images")
    ] = False,
    bit_depth: Annotated[
        int | None,
        typer.Option(show_default="12 or 16, by the maximum", help="Of deep gray.", rich_help_panel="Images"),
    ] = None,
    float_range: Annotated[
        str | None, typer.Option(help="LOW,HIGH of float pixels, else refused.", rich_help_panel="Images")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(show_default="89478485", help="Per image.", rich_help_panel="Images")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.1, show_default="60", help="Seconds per image.", rich_help_panel="Images")
    ] = None,
    decode: Annotated[
        str,
        typer.Option(help="exact, or fast: shortcuts that change pixels a little.", rich_help_panel="Images"),
    ] = "exact",
    strict: Annotated[bool, typer.Option(help="Stop at the first bad image.", rich_help_panel="Images")] = False,
    rehash: Annotated[bool, typer.Option(help="Read every file again.", rich_help_panel="Images")] = False,
    tap: Annotated[
        list[str] | None,
        typer.Option(
            show_default="pooled",
            help="pooled; with grid the last feature map, or with boundary what enters the last stage, too.",
            rich_help_panel="Vectors",
        ),
    ] = None,
    views: Annotated[
        int, typer.Option(help="Augmented views of each image, beside it.", rich_help_panel="Vectors")
    ] = 0,
    view_seed: Annotated[int, typer.Option(help="Of the views.", rich_help_panel="Vectors")] = 0,
    precision: Annotated[
        str, typer.Option(help="auto, float32, bfloat16; tf32, float16 on a GPU.", rich_help_panel="Vectors")
    ] = "auto",
    dtype: Annotated[str, typer.Option(help="Stored as float32 or float16.", rich_help_panel="Vectors")] = "float32",
    device: Device = "auto",
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Decoders.", rich_help_panel="Machine")] = None,
    compile: Annotated[  # noqa: A002
        str, typer.Option(help="auto, on or off: compile the network first.", rich_help_panel="Machine")
    ] = "auto",
    part_rows: Annotated[int | None, typer.Option(help="Rows per part file.", rich_help_panel="Machine")] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Time a few images, say what the pass would take, and write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run every image once through a frozen backbone, into a store."""
    people = _people(as_json)
    from featcache.augment import ViewSpec
    from featcache.embed import embed_all, store_paths
    from featcache.forecast import forecast
    from featcache.images import DecodeSpec
    from featcache.manifest import Manifest
    from featcache.request import BackboneSpec
    from featcache.workers import TIMEOUT_S

    asked: dict[str, Any] = {
        "weights": weights,
        "input_size": input_size,
        "crop_pct": crop_pct,
        "interpolation": interpolation,
    }
    asked |= {"mean": _numbers("--mean", mean), "std": _numbers("--std", std)}
    asked |= {"taps": tuple(tap) if tap else None, "precision": precision}
    specs = {path: _spec(BackboneSpec, {"name": name, **asked}) for name, path in store_paths(output, backbone).items()}
    stated: dict[str, Any] = {"bit_depth": bit_depth, "float_range": _numbers("--float-range", float_range, 2)}
    stated |= {"first_frame": first_frame, "max_pixels": max_pixels, "fast": _is_fast(decode)}
    with _interruptible(_CONTINUES), _progress("embedding") as (on_progress, on_note):
        manifest = Manifest.read(images, group_pattern, allow_outside)
        _tell_unreadable(manifest.unreadable_folders, on_note)
        options: dict[str, Any] = {
            "decode": _spec(DecodeSpec, stated),
            "views": _spec(ViewSpec, {"n": views, "seed": view_seed}) if views else None,
            "dtype": dtype,
            "device": device,
            "compile": compile,
            "n_workers": workers,
            "part_rows": part_rows,
            "timeout_s": timeout or TIMEOUT_S,
            "on_note": on_note,
        }
        if dry_run:
            told = forecast(manifest, specs, **options)
        else:
            done = embed_all(manifest, specs, rehash=rehash, strict=strict, on_progress=on_progress, **options)
    if dry_run:
        if as_json:
            _answer(told.as_json())
        _print_forecast(people, told)
        return
    if as_json:
        _answer(done[0].as_json() if len(done) == 1 else {"stores": [each.as_json() for each in done]})
    for each in done:
        _print_embedded(people, each)
    if any(each.counts.failed for each in done):
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command("train-head")
def train_head_command(
    store: Annotated[Path, typer.Argument(help="STORE.h5")],
    head: Annotated[list[str] | None, typer.Option(show_default="linear", help=f"{', '.join(KINDS)}.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder. Default: runs/STORE-HEAD-DIGEST.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="A CSV with labels.", rich_help_panel="Labels")] = None,
    label_column: Annotated[
        list[str] | None,
        typer.Option(show_default="label", help="Of classes; several: findings, 1 or 0.", rich_help_panel="Labels"),
    ] = None,
    on: Annotated[str, typer.Option(help="Column that joins the CSV.", rich_help_panel="Labels")] = "image_id",
    positive: Annotated[
        str | None,
        typer.Option(show_default="last in sorted order", help="Positive class.", rich_help_panel="Labels"),
    ] = None,
    lr: Annotated[list[float] | None, _tried("lr", "Learning rate.")] = None,
    epochs: Annotated[list[int] | None, _tried("epochs", "Passes over the training rows.")] = None,
    batch_rows: Annotated[list[int] | None, _tried("batch_rows", "Rows per step.")] = None,
    optimizer: Annotated[list[str] | None, _tried("optimizer", "adam, adamw or sgd.")] = None,
    weight_decay: Annotated[list[float] | None, _tried("weight_decay", "Of all parameters.")] = None,
    momentum: Annotated[list[float] | None, _tried("momentum", "Of sgd.")] = None,
    schedule: Annotated[list[str] | None, _tried("schedule", "constant, plateau or cosine.")] = None,
    patience: Annotated[list[int] | None, _tried("patience", "Epochs of plateau.")] = None,
    early_stopping: Annotated[
        list[int] | None, _tried("early_stopping", "Epochs without a better loss; 0: off.")
    ] = None,
    label_smoothing: Annotated[list[float] | None, _tried("label_smoothing", "Share spread over the classes.")] = None,
    class_weights: Annotated[list[str] | None, _tried("class_weights", "none or balanced.")] = None,
    scale: Annotated[list[str] | None, _tried("scale", "Features divided by: rms, standard or none.")] = None,
    seed: Annotated[list[int] | None, _tried("seed", "Of initial weights and dropout.")] = None,
    views: Annotated[
        bool, typer.Option("--views", help="Learn from augmented views, drawn per epoch.", rich_help_panel=_HEAD)
    ] = False,
    widths: Annotated[list[str] | None, _tried("widths", "Hidden units of mlp: 256 or 512,256.")] = None,
    activation: Annotated[list[str] | None, _tried("activation", "relu, sigmoid, tanh or gelu.")] = None,
    norm: Annotated[list[str] | None, _tried("norm", "none or batch.")] = None,
    dropout: Annotated[list[float] | None, _tried("dropout", "Of hidden units.")] = None,
    C: Annotated[list[float] | None, _tried("C", "Inverse penalty of logreg.")] = None,  # noqa: N803
    alpha: Annotated[list[float] | None, _tried("alpha", "Penalty of ridge.")] = None,
    neighbors: Annotated[list[int] | None, _tried("neighbors", "Of knn.")] = None,
    val_fraction: Annotated[
        float | None, typer.Option(show_default="0.2", help="Share held out.", rich_help_panel="Split")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Group k-fold instead.", rich_help_panel="Split")] = None,
    repeats: Annotated[int, typer.Option(help="Draw the folds so often.", rich_help_panel="Split")] = 1,
    nested: Annotated[bool, typer.Option(help="Folds around the folds.", rich_help_panel="Split")] = False,
    group_by: Annotated[
        str | None,
        typer.Option(show_default="group", help="Column never on two sides.", rich_help_panel="Split"),
    ] = None,
    near_duplicates: Annotated[
        float | None, typer.Option(help="Cosine from which two are one group.", rich_help_panel="Split")
    ] = None,
    split: Annotated[Path | None, typer.Option(help="split.json of another Run.", rich_help_panel="Split")] = None,
    split_seed: Annotated[int, typer.Option(help="Of folds and batches.", rich_help_panel="Split")] = 0,
    select: Annotated[
        str, typer.Option(help="auroc, f1, balanced_accuracy, accuracy, auprc or loss.", rich_help_panel="Report")
    ] = "auroc",
    refit_all: Annotated[bool, typer.Option(help="Train on held rows too.", rich_help_panel="Report")] = False,
    operating_point: Annotated[
        str | None, typer.Option(help="youden, f1, sensitivity=S, specificity=S.", rich_help_panel="Report")
    ] = None,
    permutations: Annotated[int, typer.Option(help="Baselines on shuffled labels.", rich_help_panel="Report")] = 0,
    compare: Annotated[
        list[Path] | None, typer.Option(help="Another store, as a baseline.", rich_help_panel="Report")
    ] = None,
    average_views: Annotated[
        bool,
        typer.Option("--average-views", help="Score by the mean logits of all views.", rich_help_panel="Report"),
    ] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train heads on a store, in seconds. Repeat an option of the head to try all its values."""
    from featcache.heads import grid
    from featcache.protocol import SplitSpec
    from featcache.store import Store
    from featcache.task import TargetSpec
    from featcache.training import ReportSpec, train_head

    options = {
        "lr": lr, "epochs": epochs, "batch_rows": batch_rows, "optimizer": optimizer, "weight_decay": weight_decay,
        "momentum": momentum, "schedule": schedule, "patience": patience, "early_stopping": early_stopping,
        "label_smoothing": label_smoothing, "class_weights": class_weights, "scale": scale, "seed": seed,
        "views": [True] if views else [], "widths": [_widths(text) for text in widths or []], "activation": activation,
        "norm": norm, "dropout": dropout, "C": C, "alpha": alpha, "neighbors": neighbors,
    }  # fmt: skip
    specs = _spec(
        grid, {"kinds": head or ["linear"], "options": {name: values for name, values in options.items() if values}}
    )
    labelled = {"columns": tuple(label_column or ()) or None, "file": labels, "on": on, "positive": positive}
    drawn: dict[str, Any] = {
        "val_fraction": val_fraction,
        "folds": folds,
        "repeats": repeats,
        "nested": nested,
        "group_by": group_by,
    }
    drawn |= {"near_duplicates": near_duplicates, "seed": split_seed, "file": split}
    said = {"select": select, "refit_all": refit_all, "operating_point": operating_point, "permutations": permutations}
    target, division = _spec(TargetSpec, labelled), _spec(SplitSpec, drawn)
    report = _spec(ReportSpec, {**said, "compare": tuple(compare or ()), "average_views": average_views})
    with (
        _interruptible("nothing was written"),
        Store.open(store) as opened,
        _progress("training", "epochs/s") as (on_progress, on_note),
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
        _answer(_run_answer(run))
    _print_run(_people(as_json), run)


@app.command("fine-tune")
def fine_tune_command(
    run: Annotated[Path, typer.Argument(help="The Run of train-head, or of fine-tune, to start from.")],
    images: Annotated[Path | None, typer.Option(help="The folder or CSV that was embedded.")] = None,
    from_cache: Annotated[
        Path | None, typer.Option(help="Instead, a store with --tap boundary: no trunk, no pixels.")
    ] = None,
    views: Annotated[bool, typer.Option("--views", help="Learn from the views of that store, too.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder. Default: RUN-tuned-DIGEST.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Of the backbone, where the store had them from a file.")] = None,
    preset: Preset = None,
    unfreeze: Unfreeze = None,
    epochs: Epochs = None,
    lr: Annotated[float | None, _of_recipe("lr", "Of the head.")] = None,
    backbone_lr: Annotated[float | None, _of_recipe("backbone_lr", "Of the backbone.", "a tenth of lr")] = None,
    optimizer: Optimizer = None,
    weight_decay: WeightDecay = None,
    schedule: Schedule = None,
    patience: Patience = None,
    early_stopping: EarlyStopping = None,
    class_weights: ClassWeights = None,
    label_smoothing: LabelSmoothing = None,
    dropout: Annotated[float | None, _of_recipe("dropout", "Of the head's hidden units.", "that of the Run")] = None,
    batch_rows: BatchRows = None,
    accumulate: Accumulate = None,
    precision: LearningPrecision = None,
    augment: Augment = True,
    rotation: Rotation = None,
    jitter: Jitter = None,
    flip: Flip = None,
    crop: Crop = None,
    seed: Seed = None,
    select: SelectEpoch = None,
    operating_point: OperatingPoint = None,
    allow_outside: Annotated[bool, typer.Option(help="Follow links and CSV paths out of the folder.")] = False,
    timeout: Timeout = None,
    compile: CompileTrunk = "auto",  # noqa: A002
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Phase 2: go back to the images, and train a part of the backbone together with the head."""
    from featcache.finetune import fine_tune
    from featcache.manifest import Manifest
    from featcache.runs import Run
    from featcache.store import Store
    from featcache.telling import Machine

    asked = {
        "lr": lr, "backbone_lr": backbone_lr, "optimizer": optimizer, "weight_decay": weight_decay,
        "schedule": schedule, "patience": patience, "early_stopping": early_stopping, "class_weights": class_weights,
        "label_smoothing": label_smoothing, "dropout": dropout, "batch_rows": batch_rows, "accumulate": accumulate,
        "precision": precision, "seed": seed, "select": select,
    }  # fmt: skip
    shown = {"rotation": rotation, "jitter": jitter, "flip": flip, "crop": crop}
    how = _recipe(preset, unfreeze or [], epochs or [], asked, shown, augment)
    with _training() as (telling, opened):
        done = fine_tune(
            Run.open(run),
            how,
            output,
            images=Manifest.read(images, allow_outside=allow_outside) if images else None,
            store=opened.enter_context(Store.open(from_cache)) if from_cache else None,
            views=views,
            weights=weights,
            operating_point=operating_point,
            machine=_spec(Machine, {"device": device, "compile": compile, "timeout_s": timeout}),
            telling=telling,
        )
    _tell_tuned(as_json, done)


@app.command("train")
def train_command(
    images: Annotated[Path, typer.Argument(help="A folder of classes, or a CSV with columns path and label.")],
    model: Annotated[str, typer.Option(help="As --backbone of embed; also simple-cnn and covid-cnn.")],
    weights: Annotated[
        str | None, typer.Option(help="random:SEED for from scratch, or a file. Default: pretrained, from the hub.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder. Default: runs/IMAGES-MODEL-DIGEST.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(show_default="linear; that of simple-cnn and covid-cnn", help="linear or mlp.")
    ] = None,
    widths: Annotated[str | None, typer.Option(show_default="256", help="Hidden units of mlp: 256 or 512,256.")] = None,
    dropout: Annotated[float | None, typer.Option(show_default="0.5", help="Of hidden units.")] = None,
    preset: Preset = None,
    unfreeze: Unfreeze = None,
    epochs: Epochs = None,
    lr: Annotated[float | None, _of_recipe("lr", "Of everything.")] = None,
    backbone_lr: Annotated[float | None, _of_recipe("backbone_lr", "Of the backbone.", "lr")] = None,
    optimizer: Optimizer = None,
    weight_decay: WeightDecay = None,
    schedule: Schedule = None,
    patience: Patience = None,
    early_stopping: EarlyStopping = None,
    class_weights: ClassWeights = None,
    label_smoothing: LabelSmoothing = None,
    batch_rows: BatchRows = None,
    accumulate: Accumulate = None,
    precision: LearningPrecision = None,
    augment: Augment = True,
    rotation: Rotation = None,
    jitter: Jitter = None,
    flip: Flip = None,
    crop: Crop = None,
    seed: Seed = None,
    select: SelectEpoch = None,
    operating_point: OperatingPoint = None,
    input_size: Annotated[int | None, typer.Option(help="Pixels.", rich_help_panel="Transform")] = None,
    crop_pct: Annotated[float | None, typer.Option(help="Share kept.", rich_help_panel="Transform")] = None,
    mean: Annotated[str | None, typer.Option(help="One or three numbers: 0.53", rich_help_panel="Transform")] = None,
    std: Annotated[str | None, typer.Option(help="One or three numbers: 0.19", rich_help_panel="Transform")] = None,
    labels: Annotated[Path | None, typer.Option(help="A CSV with labels.", rich_help_panel="Labels")] = None,
    label_column: Annotated[
        list[str] | None,
        typer.Option(show_default="label", help="Of classes; several: findings, 1 or 0.", rich_help_panel="Labels"),
    ] = None,
    on: Annotated[str, typer.Option(help="Column that joins the CSV.", rich_help_panel="Labels")] = "image_id",
    positive: Annotated[
        str | None,
        typer.Option(show_default="last in sorted order", help="Positive class.", rich_help_panel="Labels"),
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(show_default="0.2", help="Share held out.", rich_help_panel="Split")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Group k-fold instead.", rich_help_panel="Split")] = None,
    group_pattern: Annotated[
        str | None, typer.Option(help="REGEX whose capture is the group.", rich_help_panel="Split")
    ] = None,
    split: Annotated[Path | None, typer.Option(help="split.json of another Run.", rich_help_panel="Split")] = None,
    split_seed: Annotated[int, typer.Option(help="Of the folds.", rich_help_panel="Split")] = 0,
    allow_outside: Annotated[bool, typer.Option(help="Follow links and CSV paths out of the folder.")] = False,
    timeout: Timeout = None,
    compile: CompileTrunk = "auto",  # noqa: A002
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a whole network on images: from scratch, or from pretrained weights."""
    from featcache.finetune import SCRATCH, head_for, train
    from featcache.manifest import Manifest
    from featcache.protocol import SplitSpec
    from featcache.request import BackboneSpec
    from featcache.task import TargetSpec
    from featcache.telling import Machine

    asked = {
        "lr": lr, "backbone_lr": backbone_lr, "optimizer": optimizer, "weight_decay": weight_decay,
        "schedule": schedule, "patience": patience, "early_stopping": early_stopping, "class_weights": class_weights,
        "label_smoothing": label_smoothing, "batch_rows": batch_rows, "accumulate": accumulate,
        "precision": precision, "seed": seed, "select": select,
    }  # fmt: skip
    shown = {"rotation": rotation, "jitter": jitter, "flip": flip, "crop": crop}
    how = _recipe(preset, unfreeze or [], epochs or [], asked, shown, augment, SCRATCH)
    seen: dict[str, Any] = {"input_size": input_size, "crop_pct": crop_pct}
    seen |= {"mean": _numbers("--mean", mean), "std": _numbers("--std", std)}
    labelled = {"columns": tuple(label_column or ()) or None, "file": labels, "on": on, "positive": positive}
    drawn = {"val_fraction": val_fraction, "folds": folds, "seed": split_seed, "file": split}
    given = {"kind": head, "widths": _widths(widths) if widths else None, "dropout": dropout, "seed": seed}
    with _training() as (telling, _):
        done = train(
            Manifest.read(images, group_pattern, allow_outside),
            _spec(BackboneSpec, {"name": model, "weights": weights, **seen}),
            _spec(head_for, {"model": model, **given}),
            how,
            output,
            target=_spec(TargetSpec, labelled),
            split=_spec(SplitSpec, drawn),
            operating_point=operating_point,
            machine=_spec(Machine, {"device": device, "compile": compile, "timeout_s": timeout}),
            telling=telling,
        )
    _tell_tuned(as_json, done)


@app.command("status")
def status_command(store: Annotated[Path, typer.Argument(help="STORE.h5")], as_json: Json = False) -> None:
    """How far the pass into a store is: running, stopped or published."""
    from featcache.store import status

    found = status(store)
    if as_json:
        _answer({"store": str(store), **asdict(found)})
    writer = f" by {found.writer}" if found.writer else ""
    hint = "; run the same featcache embed command to continue" if found.state == "stopped" else ""
    _people(as_json).print(
        f"[bold]{_name(store)}[/]: {found.state}{_name(writer)}; of {found.found:,} images {found.done:,} are done, "
        f"{found.pending:,} pending, {found.failed:,} failed{hint}",
        highlight=False,
    )


@app.command("info")
def info_command(store: Annotated[Path, typer.Argument(help="STORE.h5")], as_json: Json = False) -> None:
    """What is inside a store, and the identity of its vectors."""
    from featcache.store import describe

    about = describe(store)
    if as_json:
        _answer(about)
    people = _people(as_json)
    rows = list(_rows_of(about))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        people.print(f"[bold]{_name(name):<{width}}[/] {_name(value)}", highlight=False, soft_wrap=True)


@app.command("verify")
def verify_command(
    store: Annotated[Path, typer.Argument(help="STORE.h5")],
    full: Annotated[bool, typer.Option("--full/--quick", help="Every array, or all but the vectors.")] = True,
    as_json: Json = False,
) -> None:
    """Compare a store with the digests recorded when it was published."""
    from featcache.store import verify

    with _interruptible("nothing was changed"):
        found = verify(store, full)
    if as_json:
        _answer({"store": str(store), "full": full, **asdict(found)})
    read = "every array agrees" if full else "all but the vectors was read and agrees"
    _people(as_json).print(
        f"[bold]{_name(store)}[/] is whole: {found.n_rows:,} rows, {len(found.datasets)} arrays, "
        f"{found.n_bytes:,} bytes; {read} with its sha256",
        highlight=False,
    )


@app.command("backbones")
def backbones_command(
    pattern: Annotated[str | None, typer.Argument(help="Part of a name, or a pattern: 'resnet*'.")] = None,
    taps: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this backbone, what can be unfrozen, and what it costs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List backbones: tag, parameters, feature width, input size, licence. Without PATTERN, the suggested ones."""
    from featcache.backbones import listing

    if taps is not None:
        _backbone_choices(taps, pattern, as_json)
        return
    rows = list(listing(pattern))
    if not rows:
        raise UsageError(f"no backbone matches {pattern!r}. Try a shorter part of the name.")
    if as_json:
        _answer({"backbones": rows})
        return
    table = _table("name", "default tag", "parameters", "features", "input", "licence", left=2)
    for row in rows:
        numbers = (f"{row['n_parameters']:,}", f"{row['n_features']:,}", str(row["input_size"]))
        table.add_row(row["name"], row["tag"], *numbers, row["licence"])
    people = _people(as_json)
    people.print(table)
    people.print("Parameters and features are those without the classifier.", highlight=False)


def _backbone_choices(name: str, pattern: str | None, as_json: bool) -> None:
    from featcache.backbones import resolve_name
    from featcache.cut import choices

    if pattern is not None:
        raise UsageError(f"--taps {name} is of one backbone: leave {pattern!r} away.")
    rows = choices(name)
    if as_json:
        _answer({"backbone": resolve_name(name), "choices": [asdict(row) for row in rows]})
        return
    table = _table("unfreeze", "blocks", "from", "boundary", "parameters", "with linear head", "with mlp head", left=4)
    for row in rows:
        numbers = (f"{n:,}" for n in (row.n_trainable, row.with_linear, row.with_mlp))
        shape = " × ".join(map(str, row.boundary))
        table.add_row(row.unfreeze, str(row.n_blocks or ""), escape(row.first), shape, *numbers)
    people = _people(as_json)
    people.print(f"[bold]{escape(resolve_name(name))}[/]", highlight=False)
    people.print(table)
    people.print(
        "Parameters are those that learn, alone and with a head of two classes. What lies before them is computed "
        "without gradients; the boundary is what it hands over, per image.",
        highlight=False,
    )


def _version(wanted: bool) -> None:
    if wanted:
        print(f"featcache {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# --- what was asked ---------------------------------------------------------------------------------------------------


def _widths(text: str) -> tuple[int, ...]:
    """`256`, or `512,256` for two layers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--widths {text!r}: whole numbers are expected, as in --widths 512,256.") from error


def _is_fast(decode: str) -> bool:
    if decode not in ("exact", "fast"):
        raise UsageError(f"--decode {decode}: exact or fast is expected.")
    return decode == "fast"


def _numbers(option: str, text: str | None, *lengths: int) -> tuple[float, ...] | None:
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


def _spec(kind: Callable[..., Spec], given: dict[str, Any]) -> Spec:
    """A spec of the options that were given; the defaults are its own."""
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise UsageError(f"{error}.") from error


def _recipe(
    preset: str | None,
    unfreeze: list[str],
    epochs: list[int],
    asked: dict[str, Any],
    shown: dict[str, Any],
    augment: bool,
    otherwise: Recipe | None = None,
) -> Recipe:
    """A preset, or the defaults, with the options that were given; `--unfreeze` and `--epochs` go in pairs."""
    if len(epochs) > max(1, len(unfreeze)):
        raise UsageError(f"--epochs {epochs[-1]}: {len(epochs)} of them for {len(unfreeze)} --unfreeze; one for each.")
    if 0 < len(epochs) < len(unfreeze):
        raise UsageError(f"--unfreeze {unfreeze[-1]} has no --epochs: give as many, or none.")
    if not augment and any(value is not None for value in shown.values()):
        raise UsageError("--no-augment shows images as they are: leave --rotation, --jitter, --flip and --crop away.")
    held = recipe(preset) if preset in PRESETS else otherwise or Recipe()
    names = unfreeze or ([held.stages[0].unfreeze] if epochs else [])
    lengths = epochs or [held.stages[0].epochs] * len(names)
    stages = tuple(_spec(Stage, {"unfreeze": n, "epochs": e}) for n, e in zip(names, lengths, strict=True))
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    given["augment"] = _spec(AugmentSpec, shown) if augment else None
    made: Recipe = _spec(recipe, {"preset": preset, "stages": stages or None, "held": held, **given})
    return made


# --- what is answered -------------------------------------------------------------------------------------------------


def _answer(value: Any) -> None:
    print(json.dumps(value, allow_nan=False))


def _run_answer(run: Any) -> dict[str, Any]:
    said = ("seconds", "epoch", "operating_point", "temperature", "baselines", "notes")
    return {
        "run": str(run.path),
        "head": run.record["head"]["kind"],
        "spec": run.record["head"],
        "n_parameters": run.n_parameters,
        "average_views": run.record["asked"]["average_views"],
        **{name: run.record[name] for name in said},
        **{side: run.metrics(side) for side in _SIDES},
        "sweep": run.sweep(),
    }


def _tuned_answer(run: Any) -> dict[str, Any]:
    record = run.record
    said = ("seconds", "epoch", "gain", "before", "operating_point", "temperature", "baselines", "notes", "recipe")
    return {
        "run": str(run.path),
        "parent": record["parent"]["run"] if record["parent"] else None,
        "head": record["head"]["kind"],
        "n_trainable": run.n_parameters,
        "trainable": record["n_trainable"],
        **{name: record[name] for name in said},
        **{side: run.metrics(side) for side in _SIDES if side != "outer"},
    }


def _people(as_json: bool) -> Console:
    """Where text for people goes: stdout, or stderr where stdout is for the JSON."""
    console = Console(stderr=as_json)
    return (
        console if console.is_terminal else Console(stderr=as_json, width=shutil.get_terminal_size((120, 24)).columns)
    )


def _name(path: Path | str) -> str:
    return escape(_shown(str(path)))


def _shown(text: str, keep_lines: bool = False) -> str:
    """A text with its control characters, and bytes that are not UTF-8, made visible: names are somebody's text."""
    return "".join(
        c if c.isprintable() or (keep_lines and c == "\n") else c.encode("unicode_escape").decode() for c in text
    )


def _rows_of(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested answer as lines for people: `transform.interpolation`, `bicubic`."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _rows_of(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for i, inner in enumerate(value):
            yield from _rows_of(inner, f"{prefix}.{i}")
    else:
        yield prefix, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _tell_unreadable(folders: list[str], on_note: Callable[[str], None]) -> None:
    if folders:
        more = f" and {len(folders) - 1:,} more" if len(folders) > 1 else ""
        on_note(f"warning: could not look into {folders[0]}{more}; what is in there is not embedded")


def _print_embedded(people: Console, done: Any) -> None:
    counts = done.counts
    skipped = ", ".join(f"{n} {reason}" for reason, n in done.skipped.items())
    people.print(
        f"{done.backbone} ({done.weights} weights {done.weights_sha256[:12]}): found {counts.found:,} = embedded "
        f"{counts.embedded:,} + reused {counts.reused:,} + failed {counts.failed:,}"
        + (f"; skipped {skipped}" if skipped else "")
        + (f"; {done.n_ungrouped:,} images match no group and are their own" if done.n_ungrouped else ""),
        highlight=False,
    )
    if done.n_duplicates:
        people.print(
            f"{done.n_duplicates:,} images have the same bytes as another; each was computed once", highlight=False
        )
    if done.n_dropped:
        people.print(
            f"[yellow]{done.n_dropped:,} images that the store held are not among these; their rows are gone[/]",
            highlight=False,
        )
    for image_id, (code, reason) in list(done.failures.items())[:5]:
        people.print(f"  [red]{escape(code)}[/] {_name(image_id)}: {_name(reason)}", highlight=False)
    if len(done.failures) > 5:
        people.print(
            f"  … and {len(done.failures) - 5:,} more, all in {_name(done.store)}.failures.csv", highlight=False
        )
    rate = f", {done.images_per_second:,.0f} images/s" if done.images_per_second else ""
    took = f"in {done.seconds:.1f} s{rate}" if done.seconds else "were up to date"
    people.print(
        f"[bold]{_name(done.store)}[/]: {counts.found - counts.failed:,} rows of {_shapes(done)} {took}",
        highlight=False,
    )


def _print_forecast(people: Console, told: Any) -> None:
    sample = sum(told.formats.values())
    shown = ", ".join(f"{n / sample:.0%} {_name(kind)}" for kind, n in list(told.formats.items())[:3])
    more = f" and {len(told.formats) - 3:,} other kinds" if len(told.formats) > 3 else ""
    known = f", of which {told.n_known:,} are in the store already" if told.n_known else ""
    lines = [f"{told.n_images:,} images{known}: {shown}{more}"]
    alone = f"decode alone {told.decode_rate:,.0f} images/s, forward alone {told.forward_rate:,.0f}"
    together = f"[bold]{told.rate:,.0f} images/s[/]: {_duration(told.seconds)}, beside loading"
    lines += [f"{alone}, both together {together}"]
    lines += [f"{_size(told.disk_bytes)} on disk, twice that while it is packed; {_size(told.free_bytes)} are free"]
    lines += [f"{_size(told.memory_bytes)} of memory, all decoders together"]
    lines += [f"{told.limit} takes longer; it would be faster with"]
    for line in [*lines, *(f"  {_name(advice)}" for advice in told.advice)]:
        people.print(line, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} minutes"
        if seconds < 7200
        else f"{seconds / 3600:.1f} hours"
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.1f} GB"


def _shapes(done: Any) -> str:
    """`1,280 features`, and what else is kept of each image."""
    told = {tap: done.shapes[tap] for tap in ("grid", "boundary", "views") if tap in done.shapes}
    others = [f"{' × '.join(map(str, shape))} {tap}" for tap, shape in told.items()]
    return ", ".join([f"{done.dim:,} features", *others])


def _print_run(people: Console, run: Any) -> None:
    if sweep := run.sweep():
        people.print(_sweep_table(sweep))
    elif history := run.history():
        people.print(_history_table(history))
    people.print(_score_table(run))
    for name, line in _confusions(run):
        people.print(f"{name}: {line}", highlight=False)
    for line in _baseline_lines(run.record["baselines"]):
        people.print(line, highlight=False)
    for note in run.record["notes"]:
        people.print(f"[yellow]note: {_name(note)}[/]", highlight=False)
    left_out = ", ".join(f"{n:,} with {reason}" for reason, n in run.record["left_out"].items())
    tried = f"best of {len(run.record['heads']):,} heads, " if len(run.record["heads"]) > 1 else ""
    people.print(
        f"[bold]{_name(run.path)}[/]: {tried}{run.n_parameters:,} parameters in {run.record['seconds']:.1f} s"
        + (f"; left out: {left_out}" if left_out else ""),
        highlight=False,
    )


def _tell_tuned(as_json: bool, run: Any) -> None:
    """The answer of a training on pixels; of several processes that train together the first gives it."""
    if int(os.environ.get("RANK", "0")):
        return
    if as_json:
        _answer(_tuned_answer(run))
    people, record = _people(as_json), run.record
    people.print(_history_table(run.history()))
    people.print(_score_table(run))
    for name, line in _confusions(run):
        people.print(f"{name}: {line}", highlight=False)
    for line in (*_baseline_lines(record["baselines"]), *_gain_lines(record)):
        people.print(line, highlight=False)
    for note in record["notes"]:
        people.print(f"[yellow]note: {_name(note)}[/]", highlight=False)
    backbone, head = (record["n_trainable"][part] for part in ("backbone", "head"))
    left_out = ", ".join(f"{n:,} with {reason}" for reason, n in record["left_out"].items())
    people.print(
        f"[bold]{_name(run.path)}[/]: {run.n_parameters:,} trainable parameters ({backbone:,} of the backbone, "
        f"{head:,} of the head) in {record['seconds']:.1f} s; the weights are those of epoch {record['epoch']}"
        + (f"; left out: {left_out}" if left_out else ""),
        highlight=False,
    )


def _gain_lines(record: dict[str, Any]) -> Iterator[str]:
    """What the training bought: before, after and the difference, with intervals, on rows that were not learnt from."""
    for side, gained in record["gain"].items():
        parts = [_gained(record, side, "auroc", gained, record["before"]["metrics"], record["metrics"])]
        if "at_operating_point" in gained:
            points = record["before"]["operating_point"], record["operating_point"]
            at = _gained(record, side, "accuracy", gained["at_operating_point"], *points)
            parts.append(f"{at} at the operating point")
        elif "accuracy" in gained:
            parts.append(_gained(record, side, "accuracy", gained, record["before"]["metrics"], record["metrics"]))
        of = f"since {_name(record['parent']['run'])}" if record["parent"] else "since the start"
        chose = " (these rows chose the epoch)" if side == "val" else ""
        yield f"{side}, {of}: {'; '.join(part for part in parts if part)}{chose}"


def _gained(record: dict[str, Any], side: str, name: str, gained: Any, before: Any, after: Any) -> str:
    if name not in gained:
        return ""
    difference, low, high = gained[name]
    shown = [f"{each[side][name]:.3f} {_interval(each[side], name)}".strip() for each in (before, after)]
    word = "AUROC" if name == "auroc" else name
    return f"{word} {shown[0]} → {shown[1]}, difference {difference:+.3f} \\[{low:+.3f}, {high:+.3f}]"


def _interval(scores: dict[str, Any], name: str) -> str:
    found = scores.get("intervals", {}).get(name)
    return f"\\[{found[0]:.3f}, {found[1]:.3f}]" if found else ""


def _history_table(history: list[dict[str, float]]) -> Table:
    names = ("loss", "accuracy", "precision", "recall", "f1")
    sides = [side for side in ("train", "val") if f"{side}_loss" in history[0]]
    phases = [int(row.get("phase", 1)) for row in history]
    counted = ["phase", "epoch"] if len(set(phases)) > 1 else ["epoch"]
    table = _table(*(f"\n{name}" for name in counted), *(f"{side}\n{name}" for side in sides for name in names), left=0)
    step = -(-len(history) // _MAX_HISTORY_ROWS)
    ends = [i for i, pair in enumerate(itertools.pairwise(phases)) if pair[0] != pair[1]]  # of phases, but the last
    shown = {0, len(history) - 1, *ends, *(i + 1 for i in ends)}
    for i, row in enumerate(history):
        if (i + 1) % step == 0 or i in shown:
            values = (row[f"{side}_{name}"] for side in sides for name in names)
            table.add_row(*(str(int(row[name])) for name in counted), *(f"{value:.3f}" for value in values))
    if step > 1:
        table.caption = f"1 epoch in {step}; all are in history.csv"
    return table


def _sweep_table(sweep: list[dict[str, str]]) -> Table:
    """The best specs: what differs between them, and how they did on held rows (± over folds and seeds)."""
    names = list(sweep[0])
    first = names.index("n_fits")
    select = names[first + 1].removesuffix("_mean")
    others = names[first + 5 :]
    table = _table(*(_name(name.replace("_", " ")) for name in (*names[: first + 1], select, *others)), left=0)
    for row in sweep[:_MAX_SPECS]:
        spread = f" ± {float(row[f'{select}_std'] or 'nan'):.4f}" if int(row["n_fits"]) > 1 else ""
        shown = [_short(row[name]) for name in names[: first + 1]]
        means = [_short(row[f"{select}_mean"]) + spread, *(_short(row[name]) for name in others)]
        table.add_row(*(_name(value) for value in (*shown, *means)))
    if len(sweep) > _MAX_SPECS:
        table.caption = f"the best {_MAX_SPECS} of {len(sweep):,}; all are in sweep.csv"
    return table


def _short(text: str) -> str:
    """A number of a table with as many digits as a person reads."""
    try:
        value = float(text)
    except ValueError:
        return text or "–"
    return text if len(text) < 7 else f"{value:.4f}"


def _score_table(run: Any) -> Table:
    """A line per number, a column per side, with intervals where the rows were not learnt from."""
    columns = [(_side_title(side, run.metrics(side)), run.metrics(side)) for side in _SIDES if run.metrics(side)]
    if point := run.record["operating_point"]:
        at = f"at p ≥ {point['threshold']:.3f}"
        columns += [(f"{_side_title(side, point[side])}\n{at}", point[side]) for side in _SIDES if side in point]
    table = _table("", *(title for title, _ in columns))
    for name in _SCORES:
        table.add_row(name.replace("_", " "), *(_score(scores, name) for _, scores in columns))
    record = run.record
    two = len(record["classes"]) == 2 and record["task"] == "classes"
    means = "macro averages" if record["task"] == "classes" else "averages over findings"
    table.caption = f"positive class: {_name(record['positive'])}" if two else f"{means}; each is in run.json"
    if record["asked"]["average_views"]:
        table.caption += "; of the mean over each image and its views"
    return table


def _side_title(side: str, scores: Any) -> str:
    chose = " and ".join(scores.get("chose", ())).replace("_", " ")
    return f"{side} ({scores['n']:,})" + (f"\nchose {chose}" if chose else "")


def _score(scores: dict[str, Any], name: str) -> str:
    value, interval = scores.get(name), scores.get("intervals", {}).get(name)
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _confusions(run: Any) -> Iterator[tuple[str, str]]:
    """Of the rows that were not learnt from, at 0.5 and at the operating point; not for findings."""
    point = run.record["operating_point"] or {}
    for side in ("val", "outer", "test"):
        if (scores := run.metrics(side)) and "confusion" in scores:
            yield side, _confusion(run.record["classes"], scores["confusion"])
        if side in point:
            yield f"{side} at p ≥ {point['threshold']:.3f}", _confusion(run.record["classes"], point[side]["confusion"])


def _baseline_lines(found: dict[str, Any]) -> Iterator[str]:
    def said(scores: dict[str, Any]) -> str:
        return ", ".join(
            f"{name.replace('_', ' ')} {_score(scores, name)}" for name in ("auroc", "accuracy") if scores.get(name)
        )

    yield f"to compare, on {found['on']}: always the most frequent class: {said(found['majority'])}"
    if permuted := found.get("permuted_labels"):
        yield f"  {permuted['n_permutations']} times shuffled training labels: {said(permuted)}"
    for other in found.get("other_stores", ()):
        yield f"  {_name(other['store'])} ({_name(str(other['backbone'].get('name', '')))}): {said(other)}"


def _confusion(classes: list[str], matrix: list[list[int]]) -> str:
    return "; ".join(
        f"of {sum(row):,} {_name(name)}, "
        + ", ".join(f"{n:,} called {_name(c)}" for n, c in zip(row, classes, strict=True))
        for name, row in zip(classes, matrix, strict=True)
    )


def _table(*headers: str, left: int = 1) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, caption_justify="left")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i < left or header == "licence" else "right")
    return table


# --- long work --------------------------------------------------------------------------------------------------------


@contextmanager
def _interruptible(kept: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end with one line and exit code 130; a second one ends at once."""

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped; {kept}.") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _training() -> Iterator[tuple[Any, ExitStack]]:
    """How a training on pixels is followed: a bar while images are read, a line per epoch; and files to close with it.
    Of several processes that train together only the first speaks."""
    from featcache.telling import Telling

    speaks = not int(os.environ.get("RANK", "0"))
    with _interruptible(_CONTINUES), _progress("reading") as (on_reading, on_note), ExitStack() as opened:

        def on_epoch(done: int, total: int, point: Any) -> None:
            sides = ("train", "val") if "val_loss" in point else ("train",)
            said = "; ".join(f"{s} loss {point[f'{s}_loss']:.3f}, accuracy {point[f'{s}_accuracy']:.3f}" for s in sides)
            on_note(f"epoch {done} of {total}: {said}")

        yield Telling(on_reading, on_epoch, on_note) if speaks else Telling(), opened


class _Rate(ProgressColumn):
    """Images (or other units) per second since the bar first moved; what an earlier pass had done does not count."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["at_start"]
        elapsed = task.elapsed or 0.0
        return Text(f"{done / elapsed:,.0f} {self._unit}" if done > 0 and elapsed > 0 else "")


@contextmanager
def _progress(doing: str, unit: str = "images/s") -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """Two callbacks: (done, total) moves a bar on stderr if that is a terminal, and does nothing if not; a text is
    written to stderr in any case."""
    console = Console(stderr=True, soft_wrap=True)

    def note(text: str) -> None:
        console.print(_name(text), highlight=False)

    if not console.is_terminal:
        yield lambda done, total: None, note
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, _Rate(unit), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None, at_start=0)

        def move(done: int, total: int) -> None:
            if bar.tasks[task].total is None:
                bar.reset(task, start=True, total=total, completed=done, description=doing, at_start=done)
            bar.update(task, completed=done, total=total)

        yield move, note
