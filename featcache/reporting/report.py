"""`report`: one self-contained HTML page about one or more Runs, for a radiologist or a reviewer.

The page shows the data and the model, every metric with its confidence interval, ROC and calibration curves, confusion
matrices, example images, and a projection of the vectors. All metrics are read from the Run's record; nothing is
trained or scored again. Figures and tables are also written as PNG and CSV into a folder beside the page.
"""

import csv
import io
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache import __version__, durable
from featcache.errors import UsageError, in_our_words
from featcache.identity import digest_bytes, digest_json
from featcache.manifest import Manifest
from featcache.names import plural, printable
from featcache.reporting import charts, checking, comparison, decisions, external, gallery, projection, tables
from featcache.reporting.document import (
    Abreast,
    Block,
    Cell,
    Chapter,
    Content,
    Headline,
    Section,
    Words,
    interval_of,
    listed,
    name_of,
    number_text,
)
from featcache.reporting.materials import Material, load_materials
from featcache.reporting.page import GENERATOR, Page, render
from featcache.reporting.run_view import SUBSET_NAMES, RunView, views_of
from featcache.runs import Run
from featcache.runs.backbone import identity_of
from featcache.runs.evaluation import Evaluation, is_evaluation
from featcache.training.results import TRAIN, VAL

__all__ = ["Reported", "report"]

# The start of every page that featcache writes; it identifies a report.
_START = '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="'
_OURS = re.compile(f'{_START}{GENERATOR} [^"<>\n]{{1,64}}">'.encode())
_OURS_BYTES = 512
_FILE = re.compile(r"[\w-]+\.(csv|png)", re.ASCII)
_DIGEST_CHARACTERS = 12
_GENERATION = re.compile(rf"[0-9a-f]{{{_DIGEST_CHARACTERS}}}")
_INDEX, _INDEX_HEADER = "index.csv", ["file", "run", "section"]
_KINDS = {
    "linear": "a linear head", "mlp": "an MLP head", "flatten-mlp": "an MLP head on the feature map",
    "logreg": "logistic regression", "ridge": "ridge regression", "knn": "a k-nearest-neighbour classifier",
}  # fmt: skip
_MEANINGS = {
    "auroc": "probability that a positive image is ranked above a negative one",
    "recall": "positive images predicted positive",
    "specificity": "negative images predicted negative",
    "accuracy": "images predicted correctly",
    "balanced_accuracy": "mean sensitivity over the classes",
    "f1": "harmonic mean of PPV and sensitivity",
}


@dataclass(frozen=True)
class Reported:
    """The written report.

    Attributes:
        path: the HTML page.
        files: PNG and CSV files, in the order of the page.
        n_bytes: size of the page.
        missing: a sentence for each part that could not be shown, with the parameter that adds it.
    """

    path: Path
    files: list[Path]
    n_bytes: int
    missing: list[str]

    @property
    def folder(self) -> Path:
        """The folder of `files`."""
        return self.files[0].parent if self.files else self.path.with_suffix(".files")

    def as_json(self) -> dict[str, Any]:
        """The written files as JSON values."""
        files = [str(path) for path in self.files]
        return {"report": str(self.path), "bytes": self.n_bytes, "files": files, "missing": self.missing}


def report(
    runs: Run | Evaluation | Path | str | Sequence[Run | Evaluation | Path | str],
    path: Path | str | None = None,
    store: Path | str | Sequence[Path | str] = (),
    images: Manifest | Path | str | None = None,
    *,
    by: Sequence[str] = (),
    umap: bool = False,
    on_note: Callable[[str], None] = lambda text: None,
) -> Reported:
    """Writes an HTML report of one Run or evaluation, or a comparison of several.

    Args:
        runs: Runs or evaluations, or their folders. In a comparison, differences are relative to the first.
        path: HTML file to write; None writes `report.html` into the folder of the first Run. Figures and tables go into
            the folder `report.files` beside it, in a subfolder named by a digest of their contents. An existing report
            at `path` is replaced; any other file is an error.
        store: the stores of the Runs. By default, each store is searched beside the Run, in the folders above it and in
            the current folder.
        images: folder or CSV of the embedded images. By default, the paths recorded by the last `embed` are used.
        by: columns of the store; metrics are reported for each of their values. `folder` is the folder of the image_id.
        umap: use UMAP instead of t-SNE for projections; needs the extra `umap`.
        on_note: called with a message before each slow step.

    Returns:
        The paths that were written, and what could not be shown.

    Raises:
        StoreNotFound: a path in `runs` or `store` has no finished Run or store.
        StoreLocked: another process is writing at `path`.
        UsageError: `path` exists and is not a report; `by` names an unknown column; the Run has an older format.
        IdentityMismatch: a given store belongs to none of the Runs.
        CorruptStore: a file of a Run is damaged.
        AccessDenied, NoSpace, InputOutputError: the report cannot be written.

    Example:
        >>> reported = report("runs/linear", "report.html", store="chest.h5", by=["view"])
        >>> reported.path.name, reported.files[0].name
        ('report.html', 'linear-counts.csv')
    """
    run_views = views_of([run if isinstance(run, Run | Evaluation) else _opened(Path(run)) for run in _several(runs)])
    for run_view in run_views:
        checking.check_vectors(run_view.run)
    path = Path(path) if path is not None else run_views[0].run.path / "report.html"
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"a report must end in .html or .htm, got {path}.")
    if umap:
        projection.check_umap()
    _check_free(path)
    manifest = Manifest.read(images) if isinstance(images, Path | str) else images
    with ExitStack() as files:
        files.enter_context(durable.output(path, _is_page, "report"))
        _check_free(path)
        materials = load_materials(run_views, [Path(path) for path in _several(store)], manifest, files)
        _check_columns(run_views, materials, by)
        images_shown = projection.ShownImages([])
        chapters = [comparison.compared(run_views)] if len(run_views) > 1 else []
        chapters += [
            _chapter(run_view, material, by, umap, images_shown, on_note)
            for run_view, material in zip(run_views, materials, strict=True)
        ]
        return _write(path, run_views, chapters, images_shown)


def _several(values: Any) -> list[Any]:
    return [values] if isinstance(values, Run | Evaluation | Path | str) else list(values)


def _opened(path: Path) -> Run | Evaluation:
    return Evaluation.open(path) if is_evaluation(path) else Run.open(path)


def _is_page(path: Path) -> bool:
    with durable.open_regular(path) as file:
        return _OURS.match(file.read(_OURS_BYTES)) is not None


def _check_free(path: Path) -> None:
    """Raises UsageError unless the page can be written without replacing foreign files."""
    durable.claim(path, _is_page, "report")
    with in_our_words("writing", path):
        folder = _folder_of(path)
        if folder.exists() and not folder.is_dir():
            kind = durable.kind_of(folder)
            raise UsageError(f"{folder} is {kind}; figures and tables would be written there. Choose another path.")
        if not path.exists() and any(not _is_generation(entry) for entry in _entries(folder)):
            raise UsageError(f"{folder} holds files that are not part of a report. Choose another path.")
        _try_to_write(folder)


def _folder_of(path: Path) -> Path:
    """The folder of a page's figures and tables; beside the target if the page is a link."""
    return durable.real(path).with_suffix(".files")


def _entries(folder: Path) -> list[Path]:
    """The visible entries of a folder."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")] if folder.is_dir() else []


def _is_generation(folder: Path) -> bool:
    """Whether a folder holds the figures and tables of a page (also of an interrupted one), or is empty."""
    index, begun = folder / _INDEX, (",".join(_INDEX_HEADER) + "\n").encode()
    if not _GENERATION.fullmatch(folder.name) or not folder.is_dir():
        return False
    if not index.is_file():
        return not any(folder.iterdir())
    with durable.open_regular(index) as file:
        return file.read(len(begun)) == begun


def _try_to_write(folder: Path) -> None:
    """Fails before the slow steps if the output folder is not writable."""
    for place in dict.fromkeys((folder, folder.parent)):
        existing = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
        if not existing.is_dir():
            raise UsageError(f"{existing} is a file, not a folder. Choose another path.")
        tempfile.TemporaryFile(dir=existing, buffering=0).close()


def _check_columns(run_views: Sequence[RunView], materials: Sequence[Material], by: Sequence[str]) -> None:
    for run_view, material in zip(run_views, materials, strict=True):
        for name in by:
            if material.vectors and decisions.column_of(run_view, name, material.vectors) is None:
                has = sorted({*material.vectors.store.columns, decisions.FOLDER})
                raise UsageError(
                    f"{material.vectors.store.path} has no column {name!r} for `by`; it has {', '.join(has)}."
                )


# --- a chapter --------------------------------------------------------------------------------------------------------


def _chapter(
    run_view: RunView,
    material: Material,
    by: Sequence[str],
    umap: bool,
    images_shown: projection.ShownImages,
    on_note: Callable[[str], None],
) -> Chapter:
    on_note(f"reading {run_view.name}")
    if run_view.is_external:
        return _external_chapter(run_view, material, by, umap, images_shown, on_note)
    decision_blocks = [*decisions.confusions(run_view), *charts.ranking(run_view), *charts.calibration(run_view)]
    gain_blocks: list[Block] = []
    if run_view.record.get("gain"):
        figure = charts.gain_figure(run_view)
        gain_blocks = [*tables.gain(run_view), *([Abreast([figure])] if figure else [])]
    sections: list[tuple[str, str, Sequence[Block]]] = [
        ("data", "Data and model", [*tables.protocol(run_view), *tables.identity(run_view)]),
        ("performance", "Performance", tables.scores(run_view)),
        ("gain", "Effect of fine-tuning" if run_view.record.get("parent") else "Effect of training", gain_blocks),
        ("decisions", "Decisions and calibration", decision_blocks),
        ("classes", f"Performance by {_class_word(run_view)}{' and subgroup' if by else ''}", [
            *decisions.per_class(run_view), *decisions.per_group(run_view, by, material.vectors, material.no_vectors),
        ]),
        ("images", "Example images", gallery.gallery(run_view, material)),
        ("projection", "Projection", projection.maps(run_view, material, umap, images_shown, on_note)),
        ("curves", "Learning curves", charts.curves(run_view)),
        ("sweep", "Heads compared", tables.sweep(run_view)),
    ]  # fmt: skip
    return _sections(run_view, sections)


def _external_chapter(
    run_view: RunView,
    material: Material,
    by: Sequence[str],
    umap: bool,
    images_shown: projection.ShownImages,
    on_note: Callable[[str], None],
) -> Chapter:
    """The chapter of an evaluation on external images: a comparison with the Run's own subsets, no learning curves."""
    decision_blocks = [*decisions.confusions(run_view), *charts.ranking(run_view), *charts.calibration(run_view)]
    columns = decisions.per_group(run_view, by, material.vectors, material.no_vectors) if by else []
    sections: list[tuple[str, str, Sequence[Block]]] = [
        ("data", "Data and model", external.data_blocks(run_view)),
        ("own", "Comparison with the Run's own data", external.comparison(run_view)),
        ("performance", "Performance", tables.scores(run_view)),
        ("decisions", "Decisions and calibration", decision_blocks),
        ("classes", f"Performance by {_class_word(run_view)} and subgroup", [
            *decisions.per_class(run_view), *external.subgroups(run_view), *columns,
        ]),
        ("images", "Example images", gallery.gallery(run_view, material)),
        ("projection", "Projection", projection.maps(run_view, material, umap, images_shown, on_note)),
    ]  # fmt: skip
    return _sections(run_view, sections)


def _sections(run_view: RunView, sections: Sequence[tuple[str, str, Sequence[Block]]]) -> Chapter:
    anchor = f"run-{run_view.slug}"  # the prefix keeps folder names apart from other anchors of the page
    nonempty = [Section(f"{anchor}-{name}", title, blocks) for name, title, blocks in sections if blocks]
    notes = [printable(note) for note in run_view.record["notes"]]
    return Chapter(anchor, run_view.name, _lead(run_view), _headlines(run_view), _caption(run_view), notes, nonempty)


def _class_word(run_view: RunView) -> str:
    return "label" if run_view.task.has_findings else "class"


def _title(run_views: Sequence[RunView]) -> str:
    """The classes, if all Runs have the same."""
    if len({tuple(run_view.classes) for run_view in run_views}) > 1:
        return f"{len(run_views)} Runs"
    classes = run_views[0].classes
    if len(classes) > 4:
        return f"{len(classes)} {'labels' if run_views[0].task.has_findings else 'classes'}"
    return listed(classes, "and" if run_views[0].task.has_findings else "or")


def _lead(run_view: RunView) -> str:
    record = run_view.record
    backbone = printable(str(identity_of(run_view.run)["backbone"]["name"]))
    kind = _KINDS.get(record["head"]["kind"], record["head"]["kind"])
    if run_view.is_external:
        return external.lead(run_view, kind)
    n_images = f"{len(run_view.task.image_ids):,} images"
    if trainable := record.get("n_trainable"):
        parts = f"{backbone} ({trainable['backbone']:,} trainable parameters) with {kind} ({trainable['head']:,})"
        return f"{parts}, fine-tuned on the pixels of {len(run_view.subsets[TRAIN]):,} of {n_images}."
    n = f" ({run_view.run.n_parameters:,} parameters)" if run_view.run.n_parameters else ""
    untrained = " with random weights" if tables.has_random_weights(record) else ""
    return f"{kind[0].upper()}{kind[1:]}{n} on frozen {backbone} features{untrained}; {n_images}."


def _headlines(run_view: RunView) -> list[Headline]:
    """The main metrics of the reported subset, at the operating point if there is one."""
    at_point = run_view.threshold is not None
    subset = run_view.reported
    names = ("auroc", "recall", "specificity", "accuracy") if run_view.is_binary else (
        "auroc", "accuracy", "balanced_accuracy", "f1"
    )  # fmt: skip
    headlines = []
    for name in names:
        scores = run_view.scores(subset, at_point and name != "auroc")
        value, interval = scores.get(name), scores.get("intervals", {}).get(name)
        meaning = f"{_MEANINGS[name]}{_counted(run_view, scores, name)}"
        cell = Cell(number_text(value), value, interval_of(interval) if value is not None else "")
        headlines.append(Headline("sensitivity" if name == "recall" else name_of(name), cell, meaning))
    return headlines


def _counted(run_view: RunView, scores: Any, name: str) -> str:
    """Numerator and denominator of a proportion, for two classes."""
    if not run_view.is_binary or name == "auroc":
        return ""
    matrix, positive = scores["confusion"], run_view.task.positive
    correct, total = [matrix[0][0], matrix[1][1]], [sum(row) for row in matrix]
    if name == "accuracy":
        return f": {sum(correct):,} of {sum(total):,}"
    c = positive if name == "recall" else 1 - positive
    return f": {correct[c]:,} of {total[c]:,}"


def _caption(run_view: RunView) -> str:
    subset = run_view.reported
    n = plural(len(run_view.subsets[subset]), f"{SUBSET_NAMES[subset]} image")
    interval = "In brackets: 95 % confidence intervals."
    if subset == VAL and run_view.scores(VAL).get("chose"):
        interval = f"These images were also used for selection, so the values are optimistic. {interval}"
    if not run_view.is_binary:
        means = "means over the labels" if run_view.task.has_findings else "macro averages over the classes"
        return f"{n}; {means}. {interval}"
    at = 0.5 if run_view.threshold is None else run_view.threshold
    prevalence = float((run_view.labels(subset) == run_view.task.positive).mean())
    return (
        f"{n}, of which {prevalence:.1%} are {run_view.positive} (the positive class). Predicted positive if "
        f"p\u00a0≥\u00a0{at:.3f}. {interval}"
    )


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(
    path: Path, run_views: Sequence[RunView], chapters: Sequence[Chapter], images_shown: projection.ShownImages
) -> Reported:
    files, index = _beside(chapters)
    names = list(files)
    contents = {name: file if isinstance(file, bytes) else durable.csv_bytes(*file) for name, file in files.items()}
    contents[_INDEX] = durable.csv_bytes(*index)
    folder = _folder_of(path) / _digest_of(contents)
    one = run_views[0]
    about = ("Runs " if len(run_views) > 1 else "Evaluation " if one.is_external else "Run ") + listed(
        [run_view.name for run_view in run_views]
    )
    lead = chapters[0].lead if len(run_views) > 1 else _lead(one)
    shown_folder = printable(f"{folder.parent.name}/{folder.name}")
    page = Page(_title(run_views), about, lead, chapters, images_shown.entries, names, shown_folder, __version__)
    html = render(page)
    durable.sweep_folders(folder.parent)
    durable.write_folder(folder, contents)
    durable.write_text(path, html)  # with it the new files are those of the page
    with in_our_words("writing", folder.parent):
        _remove_others(folder)
    return Reported(path, [folder / name for name in names], len(html.encode("utf-8")), _missing(chapters))


def _digest_of(contents: Mapping[str, bytes]) -> str:
    """A digest of the files of a page, the name of their folder."""
    return digest_json({name: digest_bytes(data) for name, data in contents.items()})[:_DIGEST_CHARACTERS]


def _remove_others(folder: Path) -> None:
    """Removes the files of the replaced page; foreign files stay."""
    for other in _entries(folder.parent):
        if other != folder and other.is_dir() and not other.is_symlink() and _is_generation(other):
            for name in sorted(_listed(other)):
                (other / name).unlink(missing_ok=True)
            (other / _INDEX).unlink(missing_ok=True)
            with suppress(OSError):
                other.rmdir()


def _listed(folder: Path) -> set[str]:
    """The names of a page's files, read from its index."""
    if not (folder / _INDEX).is_file():
        return set()
    text = durable.read_regular(folder / _INDEX).decode("utf-8", "surrogateescape")
    names = {row[0] for row in csv.reader(io.StringIO(text, newline="")) if row}
    return {name for name in names if _FILE.fullmatch(name)} - {_INDEX}


def _beside(chapters: Sequence[Chapter]) -> tuple[dict[str, Content], tuple[list[str], list[list[object]]]]:
    """The files of a page by name, and their index: file, Run and section."""
    contents: dict[str, Content] = {}
    rows: list[list[object]] = []
    for chapter in chapters:
        for section in chapter.sections:
            files = dict(file for block in section.blocks for file in block.files())
            contents |= files
            rows += [[name, chapter.title, section.title] for name in files]
    return contents, (_INDEX_HEADER, rows)


def _missing(chapters: Sequence[Chapter]) -> list[str]:
    """Sentences about missing parts, without repetition."""
    blocks = (block for chapter in chapters for section in chapter.sections for block in section.blocks)
    missing = [block.text for block in blocks if isinstance(block, Words) and block.role in ("missing", "gone")]
    return list(dict.fromkeys(missing))
