"""`report`: Runs as one self-contained HTML page that a reader of images, or a reviewer, can open and send on.

It shows what was trained on what, every number with its interval, the curves, how decisions and probabilities hold up,
the images that went wrong, and where they lie among those that were learnt from. What is shown is what the Run
recorded: nothing is trained or scored again. Figures and tables are also written as PNG and CSV beside the page.
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
from featcache.names import printable
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
    count,
    interval_of,
    listed,
    name_of,
    shown,
)
from featcache.reporting.materials import Material, load_materials
from featcache.reporting.page import GENERATOR, Page, render
from featcache.reporting.run_view import CALLED, RunView, views_of
from featcache.runs import Run
from featcache.runs.backbone import identity_of
from featcache.runs.evaluation import Evaluation, is_evaluation
from featcache.training.results import TRAIN, VAL

__all__ = ["Reported", "report"]

# Where a page of ours says that it is one; a page that only speaks of one does so elsewhere.
_START = '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="'
_OURS = re.compile(f'{_START}{GENERATOR} [^"<>\n]{{1,64}}">'.encode())
_OURS_BYTES = 512
_FILE = re.compile(r"[\w-]+\.(csv|png)", re.ASCII)
_DIGEST_CHARACTERS = 12
_GENERATION = re.compile(rf"[0-9a-f]{{{_DIGEST_CHARACTERS}}}")
_INDEX, _INDEX_HEADER = "index.csv", ["file", "run", "section"]
_KINDS = {
    "linear": "a linear head", "mlp": "an MLP head", "flatten-mlp": "an MLP head on the feature map",
    "logreg": "logistic regression", "ridge": "ridge regression", "knn": "the vote of nearest neighbours",
}  # fmt: skip
_MEANINGS = {
    "auroc": "how often a positive image ranks above another one",
    "recall": "positive images that were called so",
    "specificity": "other images that were not",
    "accuracy": "images rightly called",
    "balanced_accuracy": "mean share found of each class",
    "f1": "precision and sensitivity together",
}


@dataclass(frozen=True)
class Reported:
    """What was written.

    Attributes:
        path: the page.
        files: beside it, in the order of the page.
        n_bytes: of the page.
        missing: what could not be shown, and what to give for it, a sentence each.
    """

    path: Path
    files: list[Path]
    n_bytes: int
    missing: list[str]

    @property
    def folder(self) -> Path:
        """Where these files are."""
        return self.files[0].parent if self.files else self.path.with_suffix(".files")

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
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
    """Writes a page about one Run or evaluation, or about several beside each other.

    Args:
        runs: folders of Runs or evaluations, or these themselves. Differences are from the first.
        path: the page to write, `.html`; None for `report.html` in the first Run's folder. Pictures and tables go into
            a folder beside it, `report.files`, and there into one that is named by what they are: a page never stands
            beside the files of another. A page of ours that is there is replaced, nothing else is.
        store: their stores; without, each is looked for beside the Run, above it and in the current folder.
        images: the folder or CSV that was embedded; without, they are looked for where the store's last pass saw them.
        by: columns of the store for whose values numbers are given; `folder` is that of the image_id.
        umap: UMAP instead of t-SNE; needs the extra `umap`.
        on_note: called with what takes a while.

    Raises:
        StoreNotFound: no finished Run, or no store, where one is given.
        StoreLocked: another process is writing at `path`.
        UsageError: something else is at `path`; an unknown column; a Run of an earlier featcache.
        IdentityMismatch: a store that is given is of none of the Runs.
        CorruptStore: a file of a Run is damaged.
        AccessDenied, NoSpace, InputOutputError: the page cannot be written.
    """
    run_views = views_of([run if isinstance(run, Run | Evaluation) else _opened(Path(run)) for run in _several(runs)])
    for run_view in run_views:
        checking.check_vectors(run_view.run)
    path = Path(path) if path is not None else run_views[0].run.path / "report.html"
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path} is no name of a page: give one that ends in .html with -o.")
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
    """That the page can be written, and nothing of somebody else's is in its way."""
    durable.claim(path, _is_page, "report")
    with in_our_words("writing", path):
        folder = _folder_of(path)
        if folder.exists() and not folder.is_dir():
            kind = durable.kind_of(folder)
            raise UsageError(f"{folder} is {kind}, and figures and tables go there. Choose another place with -o.")
        if not path.exists() and any(not _is_generation(entry) for entry in _entries(folder)):
            raise UsageError(f"{folder} holds files that are of no report. Choose another place with -o.")
        _try_to_write(folder)


def _folder_of(path: Path) -> Path:
    """Where figures and tables of a page go: beside the real file, if the name is a link."""
    return durable.real(path).with_suffix(".files")


def _entries(folder: Path) -> list[Path]:
    """What lies in the folder of a page, but for what is hidden."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")] if folder.is_dir() else []


def _is_generation(folder: Path) -> bool:
    """Whether it holds the figures and tables of one page: of a page that was interrupted, too, and none where it was
    being removed."""
    index, begun = folder / _INDEX, (",".join(_INDEX_HEADER) + "\n").encode()
    if not _GENERATION.fullmatch(folder.name) or not folder.is_dir():
        return False
    if not index.is_file():
        return not any(folder.iterdir())
    with durable.open_regular(index) as file:
        return file.read(len(begun)) == begun


def _try_to_write(folder: Path) -> None:
    """Before hours of work, not after them: whether a file can be made where the page goes."""
    for place in dict.fromkeys((folder, folder.parent)):
        existing = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
        if not existing.is_dir():
            raise UsageError(f"{existing} is a file, not a folder. Choose another place with -o.")
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
    judged: list[Block] = [*decisions.confusions(run_view), *charts.ranking(run_view), *charts.calibration(run_view)]
    gained: list[Block] = []
    if run_view.record.get("gain"):
        figure = charts.gain(run_view)
        gained = [*tables.gain(run_view), *([Abreast([figure])] if figure else [])]
    back = "going back to the pixels" if run_view.record.get("parent") else "the training"
    sections: list[tuple[str, str, Sequence[Block]]] = [
        ("what", "What was trained on what", [*tables.protocol(run_view), *tables.identity(run_view)]),
        ("numbers", "Numbers", tables.scores(run_view)),
        ("gain", f"What {back} changed", gained),
        ("decisions", "Decisions and probabilities", judged),
        ("classes", "By class and by group" if by else "By class", [
            *decisions.per_class(run_view), *decisions.per_group(run_view, by, material.vectors, material.no_vectors),
        ]),
        ("images", "Errors and successes", gallery.gallery(run_view, material)),
        ("map", "Map", projection.maps(run_view, material, umap, images_shown, on_note)),
        ("curves", "Learning curves", charts.curves(run_view)),
        ("sweep", "Heads that were tried", tables.sweep(run_view)),
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
    """Of a Run on a set from elsewhere: without curves and heads that were tried, beside the Run's own rows."""
    judged: list[Block] = [*decisions.confusions(run_view), *charts.ranking(run_view), *charts.calibration(run_view)]
    columns = decisions.per_group(run_view, by, material.vectors, material.no_vectors) if by else []
    sections: list[tuple[str, str, Sequence[Block]]] = [
        ("what", "What was evaluated on what", external.what(run_view)),
        ("own", "Beside the Run's own rows", external.comparison(run_view)),
        ("numbers", "Numbers", tables.scores(run_view)),
        ("decisions", "Decisions and probabilities", judged),
        ("classes", "By class and by subgroup", [
            *decisions.per_class(run_view), *external.subgroups(run_view), *columns,
        ]),
        ("images", "Errors and successes", gallery.gallery(run_view, material)),
        ("map", "Map", projection.maps(run_view, material, umap, images_shown, on_note)),
    ]  # fmt: skip
    return _sections(run_view, sections)


def _sections(run_view: RunView, sections: Sequence[tuple[str, str, Sequence[Block]]]) -> Chapter:
    anchor = f"run-{run_view.slug}"  # a folder may be called as some part of the page is
    nonempty = [Section(f"{anchor}-{name}", title, blocks) for name, title, blocks in sections if blocks]
    notes = [printable(note) for note in run_view.record["notes"]]
    return Chapter(anchor, run_view.name, _lead(run_view), _headlines(run_view), _below(run_view), notes, nonempty)


def _title(run_views: Sequence[RunView]) -> str:
    """What is told apart, where all Runs tell the same apart."""
    if len({tuple(run_view.classes) for run_view in run_views}) > 1:
        return f"{len(run_views)} Runs"
    classes = run_views[0].classes
    if len(classes) > 4:
        return f"{len(classes)} {'findings' if run_views[0].task.has_findings else 'classes'}"
    return listed(classes, "and" if run_views[0].task.has_findings else "or")


def _lead(run_view: RunView) -> str:
    record = run_view.record
    backbone = printable(str(identity_of(run_view.run)["backbone"]["name"]))
    kind = _KINDS.get(record["head"]["kind"], record["head"]["kind"])
    if run_view.is_external:
        return external.lead(run_view, kind)
    n_images = f"{len(run_view.task.image_ids):,} images"
    if trainable := record.get("n_trainable"):
        parts = f"{trainable['backbone']:,} parameters of {backbone} and {trainable['head']:,} of {kind}"
        return f"{parts}, trained on the pixels of {len(run_view.sides[TRAIN]):,} of {n_images}."
    n = f" of {run_view.run.n_parameters:,} parameters" if run_view.run.n_parameters else ""
    untaught = " with random weights" if tables.has_random_weights(record) else ""
    return f"{kind[0].upper()}{kind[1:]}{n}, on the vectors that a frozen {backbone}{untaught} made of {n_images}."


def _headlines(run_view: RunView) -> list[Headline]:
    """The numbers that a reader takes along, of the reported side, where is decided."""
    at_point = run_view.threshold is not None
    side = run_view.reported
    names = ("auroc", "recall", "specificity", "accuracy") if run_view.is_binary else (
        "auroc", "accuracy", "balanced_accuracy", "f1"
    )  # fmt: skip
    headlines = []
    for name in names:
        scores = run_view.scores(side, at_point and name != "auroc")
        value, interval = scores.get(name), scores.get("intervals", {}).get(name)
        meaning = f"{_MEANINGS[name]}{_counted(run_view, scores, name)}"
        cell = Cell(shown(value), value, interval_of(interval) if value is not None else "")
        called = "sensitivity" if name == "recall" else name_of(name)
        headlines.append(Headline(called, cell, meaning))
    return headlines


def _counted(run_view: RunView, scores: Any, name: str) -> str:
    """The images behind a share, of two classes."""
    if not run_view.is_binary or name == "auroc":
        return ""
    matrix, positive = scores["confusion"], run_view.task.positive
    right = [matrix[0][0], matrix[1][1]]
    of = [sum(row) for row in matrix]
    if name == "accuracy":
        return f": {count(sum(right)).text} of {count(sum(of)).text}"
    c = positive if name == "recall" else 1 - positive
    return f": {count(right[c]).text} of {count(of[c]).text}"


def _below(run_view: RunView) -> str:
    side = run_view.reported
    n = f"{len(run_view.sides[side]):,} {CALLED[side]} images"
    chose = " (which also chose, so these numbers flatter)" if side == VAL and run_view.scores(VAL).get("chose") else ""
    if not run_view.is_binary:
        means = "means over the findings" if run_view.task.has_findings else "macro averages"
        return f"{n}{chose}; {means}. In brackets 95 % intervals."
    at = 0.5 if run_view.threshold is None else run_view.threshold
    share = float((run_view.labels(side) == run_view.task.positive).mean())
    return (
        f"{n}{chose}; {share:.1%} of them are {run_view.positive}, the positive class, called from p ≥ {at:.3f}. In "
        f"brackets 95 % intervals."
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
    """By which the files of a page are told from those of another."""
    return digest_json({name: digest_bytes(data) for name, data in contents.items()})[:_DIGEST_CHARACTERS]


def _remove_others(folder: Path) -> None:
    """The files of the page that was here. What somebody has put among them stays."""
    for other in _entries(folder.parent):
        if other != folder and other.is_dir() and not other.is_symlink() and _is_generation(other):
            for name in sorted(_listed(other)):
                (other / name).unlink(missing_ok=True)
            (other / _INDEX).unlink(missing_ok=True)
            with suppress(OSError):
                other.rmdir()


def _listed(folder: Path) -> set[str]:
    """The files that a page has put into its folder, as its index has them; nothing that lies elsewhere."""
    if not (folder / _INDEX).is_file():
        return set()
    text = durable.read_regular(folder / _INDEX).decode("utf-8", "surrogateescape")
    names = {row[0] for row in csv.reader(io.StringIO(text, newline="")) if row}
    return {name for name in names if _FILE.fullmatch(name)} - {_INDEX}


def _beside(chapters: Sequence[Chapter]) -> tuple[dict[str, Content], tuple[list[str], list[list[object]]]]:
    """What is kept beside the page by name, and the table that says where on the page each stands."""
    contents: dict[str, Content] = {}
    rows: list[list[object]] = []
    for chapter in chapters:
        for section in chapter.sections:
            files = dict(file for block in section.blocks for file in block.files())
            contents |= files
            rows += [[name, chapter.title, section.title] for name in files]
    return contents, (_INDEX_HEADER, rows)


def _missing(chapters: Sequence[Chapter]) -> list[str]:
    """What could not be shown, each once."""
    blocks = (block for chapter in chapters for section in chapter.sections for block in section.blocks)
    missing = [block.text for block in blocks if isinstance(block, Words) and block.role in ("missing", "gone")]
    return list(dict.fromkeys(missing))
