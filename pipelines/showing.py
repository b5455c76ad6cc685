"""What the pipelines of this folder share: how they are called, images for a rehearsal, trainings, tables at the end.

Knows no study and no published figure. A rehearsal (`--quick`) draws phantoms into the shape of the real data set, so
that a pipeline takes the same steps on them; what it learns there is of no use. What takes seconds to import, torch and
figures, is imported where it is used, so that `--help` answers at once.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from featcache import BackboneSpec, FeatcacheError, Manifest, Run, durable, phantoms, splits
from featcache.cli.progress import progress, training
from featcache.cli.render import console, escaped, print_embedded
from featcache.embedding import embed
from featcache.errors import InputOutputError, Interrupted
from featcache.identity import digest_bytes
from featcache.specs import AugmentedCopies, Recipe, SplitSpec, Stage, TargetSpec

_REHEARSED = (
    "A rehearsal: the images are phantoms and the weights of every network are random ones. What stands here beside "
    "published numbers says that the steps work, and nothing else."
)
_SIDE = 96  # pixels of a phantom, which are looked at in 32 to 64
_REPORTS = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")


# --- how a pipeline is called -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What a person asks of a pipeline.

    Attributes:
        data: the folder of the data set; of phantoms in a rehearsal.
        folder: where everything is written.
        quick: whether it is a rehearsal.
        weights: those of the reduced form; None for the published one.
    """

    data: Path
    folder: Path
    quick: bool
    weights: str | None


def asked(document: str, draw: Callable[[Path], None], given: Sequence[str] | None, reduced: str = "") -> Asked:
    """Reads the command line, and draws the phantoms of a rehearsal.

    Args:
        document: what the pipeline says of itself.
        draw: fills a folder with phantoms.
        given: the arguments; None for those of the process.
        reduced: what `--reduced WEIGHTS` does; empty for a pipeline without.
    """
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="the folder of the data set")
    default = Path("runs") / Path(sys.argv[0]).stem
    parser.add_argument("-o", "--output", type=Path, default=default, help="the folder to write to (%(default)s)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="a rehearsal on phantoms, in seconds")
    parser.set_defaults(reduced=None)
    if reduced:
        form.add_argument("--reduced", metavar="WEIGHTS", help=reduced)
    found = parser.parse_args(given)
    if found.quick == (found.data is not None):
        parser.error("give the folder of the data set, or --quick")
    folder = found.output / ("quick" if found.quick else "reduced" if found.reduced else "published")
    durable.make_folders(folder)
    if found.quick and not (folder / "images").exists():
        with TemporaryDirectory(dir=folder) as unfinished:
            draw(Path(unfinished) / "images")
            (Path(unfinished) / "images").rename(folder / "images")
    return Asked(found.data or folder / "images", folder, found.quick, found.reduced)


def ended(main: Callable[[], None]) -> int:
    """The exit code of a pipeline: what a person can cause is one line, never a traceback."""
    said: str | None = None
    try:
        main()
    except KeyboardInterrupt:
        said, code = "stopped; run the same command again to go on", Interrupted.exit_code
    except FeatcacheError as error:
        said, code = str(error), error.exit_code
    except OSError as error:
        said, code = f"{error.filename}: {error.strerror}", InputOutputError.exit_code
    if said:
        Console(stderr=True, soft_wrap=True, emoji=False).print(escaped(said), highlight=False)
        return code
    return 0


# --- images for a rehearsal -------------------------------------------------------------------------------------------


def draw_kermany(folder: Path) -> None:
    """48 phantoms in the folders, and under names, of Kermany's set: two images of a patient, a third in `test`."""
    for number in range(24):
        side, sick = ("train", "train", "test")[number // 2 % 3], bool(number % 2)
        for k in range(2):
            name = f"person{number}_bacteria_{k}" if sick else f"IM-{number:04d}-{k:04d}"
            _draw(folder / side / ("PNEUMONIA" if sick else "NORMAL") / f"{name}.jpeg", number, k, sick)


def draw_indiana(folder: Path) -> None:
    """24 studies of two views, with their two tables as Kaggle ships those of the Indiana set."""
    reports: list[list[object]] = []
    projections: list[list[object]] = []
    for uid in range(1, 25):
        sick = uid % 3 > 0
        found = "Opacity" if sick else "normal"
        reports.append([uid, found, found, "Chest, 2 views", "", "", f"{found}.", f"{found}."])
        for k, view in ((4001, "Frontal"), (3001, "Lateral")):
            projections.append([uid, f"{uid}_IM-{uid:04d}-{k}.dcm.png", view])
            _draw(folder / "images" / "images_normalized" / str(projections[-1][1]), uid, k, sick)
    durable.write_csv(folder / "indiana_reports.csv", _REPORTS, reports)
    durable.write_csv(folder / "indiana_projections.csv", ("uid", "filename", "projection"), projections)


def _draw(path: Path, patient: int, image: int, sick: bool) -> None:
    durable.make_folders(path.parent)
    pixels = Image.fromarray(np.round(phantoms.radiograph(patient, image, sick) * 255).astype(np.uint8))
    pixels.resize((_SIDE, _SIDE)).save(path)


def third(images: Manifest) -> Manifest:
    """The images of `test`, and of the others those of a third of the patients, classes in proportion."""
    from featcache.finetune.inputs import chosen

    columns = {name: np.array(values) for name, values in images.columns.items()}
    rows = np.flatnonzero(columns["split"] != "test")
    patients = np.unique(columns["group"][rows], return_inverse=True)[1]
    _, kept = splits.hold_out(columns["label"][rows], patients, 1 / 3, seed=0)
    every = np.union1d(rows[kept], np.flatnonzero(columns["split"] == "test"))
    return chosen(images, [images.image_ids[row] for row in every.tolist()])


# --- passes and trainings ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A network, and how it is trained on pixels."""

    name: str
    backbone: BackboneSpec
    recipe: Recipe
    compile: str = "auto"

    def smaller(self, input_size: int, epochs: int, **backbone: Any) -> "Model":
        """The same with smaller images, for so many epochs, and not compiled, which would take longer than they do;
        `backbone` has further fields of the network."""
        recipe = replace(self.recipe, stages=(Stage("all", epochs),))
        spec = replace(self.backbone, input_size=input_size, **backbone)
        return Model(self.name, spec, recipe, compile="off")


def embedded(images: Manifest, store_path: Path, spec: BackboneSpec, views: AugmentedCopies | None = None) -> None:
    """`embed.embed`, and what became of each image."""
    with progress("embedding") as (on_progress, on_note):
        done = embed(images, store_path, spec, augmentations=views, on_progress=on_progress, on_note=on_note)
    print_embedded(console(False), done)


def trained(model: Model, images: Manifest, folder: Path, split: SplitSpec, target: TargetSpec) -> Run:
    """`finetune.train` with the head that belongs to the network, or the Run that it has left."""

    def make(run_path: Path) -> Run:
        from featcache.finetune.fine_tune import head_for, train

        with training() as (callbacks, _):
            callbacks.on_note(f"{model.name}: {run_path}")
            head = head_for(model.backbone.name)
            options: dict[str, Any] = {"target": target, "split": split, "compile": model.compile}
            return train(images, model.backbone, head, model.recipe, run_path, **options, **callbacks._asdict())

    return once(folder, model.name, (model, images.image_ids, images.columns, split, target), make)


def once(folder: Path, name: str, asked: tuple[Any, ...], make: Callable[[Path], Run]) -> Run:
    """A Run that takes minutes is made once: its folder is named by what was asked, so that what is finished is found.

    Args:
        folder: of all Runs of the pipeline.
        name: for people.
        asked: specs, names and labels; that files of images or weights were exchanged under their names is not seen.
        make: for the folder of the Run, the Run.
    """
    word = re.sub(r"\W+", "-", name.lower())
    text = json.dumps(asked, default=lambda value: asdict(value) if is_dataclass(value) else str(value), sort_keys=True)
    run_path = folder / f"{word}-{digest_bytes(text.encode())[:8]}"
    return Run.open(run_path) if (run_path / "run.json").exists() else make(run_path)


def in_tenths(
    what: str, on_progress: Callable[[int, int], None], on_note: Callable[[str], None]
) -> Callable[[int, int], None]:
    """What is called with (done, total): it moves a bar, and writes a line at every tenth of what takes minutes."""
    started, said = time.perf_counter(), [0]

    def told(done: int, total: int) -> None:
        on_progress(done, total)
        minutes = (time.perf_counter() - started) / 60
        if (tenth := 10 * done // total) > said[0] and minutes > 1:
            said[0] = tenth
            on_note(f"{what}: {done:,} of {total:,} in {minutes:.1f} minutes")

    return told


# --- tables -----------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; fractions with three digits, nothing as a dash."""
    made = Table(*header, box=box.MARKDOWN)
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    with StringIO() as text:
        Console(file=text, width=1000, emoji=False).print(made)
        return "\n".join(line.strip() for line in text.getvalue().splitlines() if line.strip())


def counted(counts: Mapping[str, int]) -> str:
    """What a collection was found to have, and to lack."""
    return table([name.replace("_", " ") for name in counts], [list(counts.values())])


def beside(published: Mapping[str, object], here: Mapping[str, Mapping[str, object]]) -> str:
    """Published numbers, and a column of our own for each name in `here`."""
    rows = [(name, value, *(found[name] for found in here.values())) for name, value in published.items()]
    return table(("", "published", *here), rows)


def measured(scores: Mapping[str, Any], name: str) -> str:
    """A number with its 95 % interval."""
    low, high = scores["intervals"][name]
    return f"{scores[name]:.3f} [{low:.3f}, {high:.3f}]"


def epochs(run: Run) -> str:
    """The five numbers of training and validation rows in every epoch of every phase."""
    names = [
        f"{side}_{name}" for side in ("train", "val") for name in ("loss", "accuracy", "precision", "recall", "f1")
    ]
    rows = [[int(point["epoch"]), *(point[name] for name in names)] for point in run.history()]
    return table(("epoch", *(name.replace("_", " ") for name in names)), rows)


def tell(path: Path, parts: dict[str, str], rehearsed: bool) -> None:
    """Writes titles and tables as one page, and prints it; of a rehearsal it begins with what it is worth."""
    page = "\n\n".join([*([_REHEARSED] if rehearsed else []), *(f"{title}\n\n{text}" for title, text in parts.items())])
    durable.write_text(path, page + "\n")
    console(False).print(page, markup=False, highlight=False, soft_wrap=True)


def left(*paths: Path) -> None:
    """Says where a person finds what a pipeline has made."""
    for path in paths:
        console(False).print(f"[bold]{escaped(path)}[/]", highlight=False, soft_wrap=True)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    text = f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return escaped(text.replace("|", "\\|"))
