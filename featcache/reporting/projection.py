"""Two-dimensional projections of a Run's vectors: t-SNE, or UMAP.

A projection shows a sample: up to 400 images of the reported subset (up to 150 of them errors) and up to 200 training
images, so that a shift between the subsets is visible. Vectors are first reduced to 50 principal components, as in van
der Maaten and Hinton ("Visualizing Data using t-SNE", 2008, section 4.2). Axes and distances between clusters mean
nothing. Seeds are fixed and one thread computes the sums, so the same Run gives the same projection.
Letters: n rows of the sample, d features.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.figures import FAINT, RULE, charts
from featcache.figures.charts import CLASSES
from featcache.heads import inference
from featcache.names import plural
from featcache.reporting.document import TINY, Block, Map, Maps, Point, Words, data_uri, missing, probability
from featcache.reporting.materials import Material
from featcache.reporting.run_view import SUBSET_NAMES, RunView
from featcache.threads import one_thread
from featcache.training.results import TRAIN

Array = np.ndarray[Any, Any]

N_REPORTED, N_ERRORS, N_TRAINING = 400, 150, 200
N_COMPONENTS = 50
_PERPLEXITY = 30.0
_FEWEST = 8  # images below which a map says nothing
_FAINT, _RIGHT, _MISSED, _ALARM = 9, 8, 1, 0  # colours by error


@dataclass
class ShownImages:
    """The images of all projections of a page, once each.

    Attributes:
        entries: for each image name, subset, label, predicted class, probability and picture, as the script reads them.
    """

    entries: list[dict[str, Any]]

    def add(self, run_view: RunView, material: Material, row: int, subset: str, place: int) -> int:
        """Adds an image; returns its number within the page."""
        image = material.pictures.get(row) if material.pictures else None
        predictions = run_view.subsets[subset]
        predicted = predictions.predicted[place]
        if run_view.task.has_findings:
            names = ", ".join(name for name, value in zip(run_view.classes, predicted, strict=True) if value) or "none"
            p = ""
        else:
            names = run_view.classes[int(predicted)]
            of = run_view.task.positive if run_view.is_binary else int(predicted)
            p = f"p({run_view.classes[of]}) {probability(float(predictions.p[place, of]))}"
        self.entries.append(
            {
                "name": run_view.printable_names[row],
                "subset": SUBSET_NAMES[subset],
                "label": run_view.label_of(row),
                "predicted": names,
                "p": p,
                "picture": data_uri(image, TINY) if image is not None else "",
            }
        )
        return len(self.entries) - 1


@dataclass(frozen=True)
class Sample:
    """n projected rows: the subset of each row, its place within the subset, and whether its prediction is wrong."""

    rows: Array
    subsets: list[str]
    places: Array
    wrong: Array

    def __len__(self) -> int:
        return len(self.rows)


def maps(
    run_view: RunView, material: Material, umap: bool, shown_images: ShownImages, on_note: Callable[[str], None]
) -> list[Block]:
    """Projections of the vectors, and of the last hidden layer if there is one, coloured by class and by error.

    Args:
        run_view: the Run.
        material: its vectors and, if available, its images.
        umap: use UMAP instead of t-SNE.
        shown_images: receives the images of the points.
        on_note: called before each projection.

    Raises:
        UsageError: `umap` without the package.
    """
    if material.vectors is None:
        return [missing(f"A projection of the vectors needs the store: {material.no_vectors}.")]
    drawn = sample(run_view)
    if len(drawn) < _FEWEST:
        return [Words(f"A projection needs at least {_FEWEST} images; the Run has {len(drawn)}.", "gone")]
    if material.pictures:
        material.pictures.load(drawn.rows.tolist())
    numbers = [
        shown_images.add(run_view, material, int(row), subset, int(place))
        for row, subset, place in zip(drawn.rows, drawn.subsets, drawn.places, strict=True)
    ]
    blocks: list[Block] = [Words(_caption(run_view, drawn, umap))]
    for key, title, x in spaces(run_view, material.vectors.features[drawn.rows]):
        on_note(f"projecting {title} of {run_view.name} ({len(drawn):,} images)")
        plane = project(x, umap)
        blocks.append(Maps(_pair(run_view, drawn, plane, key, title, numbers)))
    return blocks


def _caption(run_view: RunView, sample: Sample, umap: bool) -> str:
    by = "UMAP (McInnes et al., 2018)" if umap else "t-SNE (van der Maaten and Hinton, 2008)"
    n_training = sample.subsets.count(TRAIN)
    subset = SUBSET_NAMES[run_view.reported]
    n_reported, n_wrong = len(sample) - n_training, int(sample.wrong[[s != TRAIN for s in sample.subsets]].sum())
    total = int(run_view.is_error(run_view.reported).sum())
    text = f"{by} of {n_reported:,} of the {len(run_view.subsets[run_view.reported]):,} {subset} images"
    text += f", including {n_wrong:,} of {plural(total, 'error')}" if total else ""
    if n_training:
        text += f", and of {n_training:,} of the {len(run_view.subsets[TRAIN]):,} training images (smaller points)"
    return (
        f"{text}. Neighbouring points have similar vectors; axes and distances between clusters have no meaning. Point "
        f"at an image to see it, or focus a projection and use the arrow keys."
    )


def sample(run_view: RunView) -> Sample:
    """The rows to project: errors first, then other rows of the reported subset, then training rows; fixed seed."""
    rng = np.random.default_rng(0)
    subset = run_view.reported
    wrong = run_view.is_error(subset)
    errors = _drawn(rng, np.flatnonzero(wrong), N_ERRORS)
    correct = _drawn(rng, np.flatnonzero(~wrong), N_REPORTED - len(errors))
    places = np.sort(np.concatenate([errors, correct]))
    rows = run_view.subsets[subset].rows[places]
    if TRAIN not in run_view.subsets:
        return Sample(rows, [subset] * len(places), places, wrong[places])
    apart = np.flatnonzero(~np.isin(run_view.subsets[TRAIN].rows, run_view.subsets[subset].rows))
    training_rows = _drawn(rng, apart, N_TRAINING)
    return Sample(
        np.concatenate([run_view.subsets[TRAIN].rows[training_rows], rows]),
        [TRAIN] * len(training_rows) + [subset] * len(places),
        np.concatenate([training_rows, places]),
        np.concatenate([run_view.is_error(TRAIN)[training_rows], wrong[places]]),
    )


def _drawn(rng: np.random.Generator, of: Array, most: int) -> Array:
    return np.sort(rng.permutation(of)[: max(0, most)])


def spaces(run_view: RunView, x: Array) -> list[tuple[str, str, Array]]:
    """(key, title, (n, d) values) of the vectors and, for an MLP, of its last hidden layer."""
    spaces = [("vectors", "backbone vectors", x)]
    spec = run_view.run.spec
    if spec.kind == "mlp" and not run_view.is_external:
        spaces.append(("hidden", f"hidden layer of the head ({spec.hidden_sizes[-1]} units)", hidden(run_view, x)))
    return spaces


def hidden(run_view: RunView, x: Array) -> Array:
    """(n, h) activations of the last hidden layer, from (n, d) vectors."""
    return inference.hidden(run_view.run.spec, run_view.run.weights(), x)


@one_thread()
def project(x: Array, umap: bool) -> Array:
    """(n, 2) on a plane.

    Raises:
        UsageError: UMAP is asked for and not installed.
    """
    from sklearn.decomposition import PCA

    x = x.astype(np.float64)
    n_components = min(N_COMPONENTS, len(x) - 1, x.shape[1])
    reduced = PCA(n_components, svd_solver="full").fit_transform(x) if n_components < x.shape[1] else x
    if not np.ptp(reduced, axis=0).any():
        return np.zeros((len(x), 2))  # all vectors are equal
    return _umap(reduced) if umap else _tsne(reduced)


def _tsne(x: Array) -> Array:
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(x) - 1) / 3)
    return np.asarray(TSNE(init="pca", learning_rate="auto", perplexity=perplexity, random_state=0).fit_transform(x))


def check_umap() -> None:
    """Raises UsageError where UMAP is not installed."""
    try:
        importlib.import_module("umap")
    except ImportError as error:
        raise UsageError("`umap` needs the extra umap: pip install 'featcache[umap]'.") from error


def _umap(x: Array) -> Array:
    check_umap()
    reducer = importlib.import_module("umap").UMAP(n_neighbors=min(15, len(x) - 1), random_state=0, n_jobs=1)
    return np.asarray(reducer.fit_transform(x))


# --- blocks -----------------------------------------------------------------------------------------------------------


def _pair(run_view: RunView, sample: Sample, plane: Array, key: str, title: str, numbers: Sequence[int]) -> list[Map]:
    at = _scaled(plane)
    is_training = np.array([subset == TRAIN for subset in sample.subsets])
    by_class, class_names = _classes_of(run_view, sample)
    by_error, error_names = _errors_of(run_view, sample, is_training)
    pair = []
    for coloring, colors, names in (("class", by_class, class_names), ("error", by_error, error_names)):
        names = [(number, name) for number, name in names if (colors == number).any()]
        points = [
            Point(x, y, int(color), bool(coloring == "class" and wrong and not is_training), number, bool(is_training))
            for (x, y), color, wrong, is_training, number in zip(
                at.tolist(), colors, sample.wrong, is_training, numbers, strict=True
            )
        ]
        ringed = "; errors ringed" if coloring == "class" and (sample.wrong & ~is_training).any() else ""
        name = f"{run_view.slug}-map-{key}-{coloring}"
        kinds = [(label, _color(number), colors == number) for number, label in names]
        png = charts.scatter(at * [1, -1], kinds, sample.wrong & ~is_training & (coloring == "class"))
        alt = f"Projection of {title} of {len(sample):,} images, coloured by {coloring}{ringed}."
        data = _data(run_view, sample, plane) if coloring == "class" else ((), ())
        heading = f"{title[0].upper()}{title[1:]}, by {coloring}{ringed}"
        top = float(at[:, 1].min()) - 3
        pair.append(Map(name, heading, alt, names, top, 2 * (50 - top), points, png, data))
    return pair


def _classes_of(run_view: RunView, sample: Sample) -> tuple[Array, list[tuple[int, str]]]:
    """(n,) colour numbers, and their legend; multi-label images have the colour of their first label."""
    labels, n = run_view.task.labels[sample.rows], len(CLASSES)
    if run_view.task.has_findings:
        present = labels == 1
        first = np.where(present.any(axis=1), present.argmax(axis=1) % n, _FAINT)
        names = [(c, name) for c, name in enumerate(run_view.classes[:n])]
        return first, [*names, (_FAINT, "none")]
    if run_view.is_binary:
        colors = np.where(labels == run_view.task.positive, 1, 0)
        return colors, [(1 if c == run_view.task.positive else 0, name) for c, name in enumerate(run_view.classes)]
    return labels % n, [(c % n, name) for c, name in enumerate(run_view.classes[:n])]


def _errors_of(run_view: RunView, sample: Sample, is_training: Array) -> tuple[Array, list[tuple[int, str]]]:
    """(n,) colour numbers, and their legend; for two classes false negatives and false positives are separate."""
    wrong: Array = np.full(len(sample), _MISSED)
    names = [(_MISSED, "wrong prediction")]
    if run_view.is_binary:
        is_positive = run_view.task.labels[sample.rows] == run_view.task.positive
        wrong = np.where(is_positive, _MISSED, _ALARM)
        names = [(_MISSED, "false negative"), (_ALARM, "false positive")]
    colors = np.where(is_training, _FAINT, np.where(sample.wrong, wrong, _RIGHT))
    return colors, [*names, (_RIGHT, "correct prediction"), (_FAINT, "training")]


def _color(number: int) -> str:
    return {_FAINT: FAINT, _RIGHT: RULE}.get(number) or CLASSES[number % len(CLASSES)]


def _scaled(plane: Array) -> Array:
    """(n, 2) coordinates from 2 to 98, rounded to a tenth, rotated so that the longest extent is horizontal."""
    centred = plane - plane.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    axes *= np.where(axes[np.arange(2), np.abs(axes).argmax(axis=1)] < 0, -1, 1)[:, None]  # either sign fits
    plane = centred @ axes.T
    if np.ptp(plane[:, 1]) > np.ptp(plane[:, 0]):
        plane = plane[:, ::-1]
    low, high = plane.min(axis=0), plane.max(axis=0)
    longest = float((high - low).max()) or 1.0
    return np.asarray(np.round(50 + 96 * (plane - (low + high) / 2) / longest, 1))


def _data(run_view: RunView, sample: Sample, plane: Array) -> tuple[list[str], list[list[object]]]:
    rows: list[list[object]] = []
    for row, subset, place, wrong, (x, y) in zip(
        sample.rows.tolist(),
        sample.subsets,
        sample.places.tolist(),
        sample.wrong.tolist(),
        plane.tolist(),
        strict=True,
    ):
        p = " ".join(f"{value:.6g}" for value in run_view.subsets[subset].p[place])
        name = run_view.task.image_ids[row]
        rows.append([name, subset, run_view.label_of(row), int(wrong), p, f"{x:.6g}", f"{y:.6g}"])
    return ["image_id", "split", "label", "is_error", "probabilities", "x", "y"], rows
