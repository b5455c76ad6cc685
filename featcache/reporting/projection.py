"""Maps: the images of a Run on a plane, near to each other where their vectors are. t-SNE, or UMAP where asked for.

The map is of a sample: all errors of the reported side as far as there is room, others of it, and training images, so
that a side that lies apart is seen. Vectors are first reduced to 50 principal components, as van der Maaten and Hinton
("Visualizing Data using t-SNE", 2008, section 4.2) do. Distances between clusters mean nothing, and neither do axes.
The same Run gives the same map: seeds are fixed, and one thread sums in one order.
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
from featcache.reporting import pictures
from featcache.reporting.document import Block, Map, Maps, Point, Words, missing, probability
from featcache.reporting.materials import Material
from featcache.reporting.run_view import CALLED, RunView
from featcache.threads import one_thread
from featcache.training.results import TRAIN as TAUGHT

Array = np.ndarray[Any, Any]

N_REPORTED, N_ERRORS, N_TAUGHT = 400, 150, 200
N_COMPONENTS = 50
_PERPLEXITY = 30.0
_FEWEST = 8  # images below which a map says nothing
_FAINT, _RIGHT, _MISSED, _ALARM = 9, 8, 1, 0  # colours by error


@dataclass
class ShownImages:
    """The images that the maps of a page show, each once.

    Attributes:
        entries: what a point says: name, side, label, what it was called, the probability, and a picture.
    """

    entries: list[dict[str, Any]]

    def add(self, run_view: RunView, material: Material, row: int, side: str, place: int) -> int:
        """The number of an image among those of the page."""
        image = material.pictures.get(row) if material.pictures else None
        subset = run_view.sides[side]
        called = subset.called[place]
        if run_view.task.has_findings:
            names = ", ".join(name for name, value in zip(run_view.classes, called, strict=True) if value) or "none"
            p = ""
        else:
            names = run_view.classes[int(called)]
            of = run_view.task.positive if run_view.is_binary else int(called)
            p = f"p({run_view.classes[of]}) {probability(float(subset.p[place, of]))}"
        self.entries.append(
            {
                "name": run_view.printable_names[row],
                "side": CALLED[side],
                "label": run_view.label_of(row),
                "called": names,
                "p": p,
                "picture": pictures.embedded(image, pictures.TINY) if image is not None else "",
            }
        )
        return len(self.entries) - 1


@dataclass(frozen=True)
class Sample:
    """n rows that are mapped, with the side each is of, its place there, and whether it was called wrong."""

    rows: Array
    sides: list[str]
    places: Array
    wrong: Array

    def __len__(self) -> int:
        return len(self.rows)


def maps(
    run_view: RunView, material: Material, umap: bool, image_names: ShownImages, on_note: Callable[[str], None]
) -> list[Block]:
    """A map of the vectors, and one of the last hidden layer where there is one, each by class and by error.

    Args:
        run_view: the Run.
        material: its vectors, and its images if they are at hand.
        umap: UMAP in place of t-SNE.
        image_names: takes the images of the points.
        on_note: called with what takes a while.

    Raises:
        UsageError: UMAP is asked for and not installed.
    """
    if material.vectors is None:
        return [missing(f"For a map of the vectors the store is needed: {material.no_vectors}.")]
    drawn = sample(run_view)
    if len(drawn) < _FEWEST:
        return [Words(f"{len(drawn)} images are too few for a map.", "gone")]
    if material.pictures:
        material.pictures.load(drawn.rows.tolist())
    numbers = [
        image_names.add(run_view, material, int(row), side, int(place))
        for row, side, place in zip(drawn.rows, drawn.sides, drawn.places, strict=True)
    ]
    blocks: list[Block] = [Words(_about(run_view, drawn, umap))]
    for key, title, x in spaces(run_view, material.vectors.features[drawn.rows]):
        on_note(f"mapping {len(drawn):,} images of {run_view.name} by {title}")
        plane = project(x, umap)
        blocks.append(Maps(_pair(run_view, drawn, plane, key, title, numbers)))
    return blocks


def _about(run_view: RunView, sample: Sample, umap: bool) -> str:
    by = "UMAP (McInnes et al., 2018)" if umap else "t-SNE (van der Maaten and Hinton, 2008)"
    n_taught = sample.sides.count(TAUGHT)
    side = CALLED[run_view.reported]
    n_side, n_wrong = len(sample) - n_taught, int(sample.wrong[[s != TAUGHT for s in sample.sides]].sum())
    total = int(run_view.is_error(run_view.reported).sum())
    text = f"{by} of {n_side:,} of {len(run_view.sides[run_view.reported]):,} {side} images"
    text += f", with {n_wrong:,} of {total:,} errors" if total else ""
    if n_taught:
        text += f", and of {n_taught:,} of {len(run_view.sides[TAUGHT]):,} training images, which are small"
    return (
        f"{text}. Images that lie together look alike to the network; distances between clusters, and directions, mean "
        f"nothing. Point at an image to see it, or choose a map and use the arrow keys."
    )


def sample(run_view: RunView) -> Sample:
    """Which rows are mapped: errors first, then others drawn with a fixed seed, then training rows."""
    rng = np.random.default_rng(0)
    side = run_view.reported
    wrong = run_view.is_error(side)
    errors = _drawn(rng, np.flatnonzero(wrong), N_ERRORS)
    correct = _drawn(rng, np.flatnonzero(~wrong), N_REPORTED - len(errors))
    places = np.sort(np.concatenate([errors, correct]))
    rows = run_view.sides[side].rows[places]
    if TAUGHT not in run_view.sides:
        return Sample(rows, [side] * len(places), places, wrong[places])
    apart = np.flatnonzero(~np.isin(run_view.sides[TAUGHT].rows, run_view.sides[side].rows))
    training_rows = _drawn(rng, apart, N_TAUGHT)
    return Sample(
        np.concatenate([run_view.sides[TAUGHT].rows[training_rows], rows]),
        [TAUGHT] * len(training_rows) + [side] * len(places),
        np.concatenate([training_rows, places]),
        np.concatenate([run_view.is_error(TAUGHT)[training_rows], wrong[places]]),
    )


def _drawn(rng: np.random.Generator, of: Array, most: int) -> Array:
    return np.sort(rng.permutation(of)[: max(0, most)])


def spaces(run_view: RunView, x: Array) -> list[tuple[str, str, Array]]:
    """(key, title, (n, …)) of the vectors, and of what the head makes of them before its last layer."""
    spaces = [("vectors", "the vectors", x)]
    spec = run_view.run.spec
    if spec.kind == "mlp" and not run_view.is_external:
        spaces.append(("hidden", f"the head's hidden layer ({spec.hidden_sizes[-1]} units)", hidden(run_view, x)))
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
        return np.zeros((len(x), 2))  # all alike: nothing to unfold
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
    is_taught = np.array([side == TAUGHT for side in sample.sides])
    by_class, class_names = _classes_of(run_view, sample)
    by_error, error_names = _errors_of(run_view, sample, is_taught)
    pair = []
    for coloring, colors, names in (("class", by_class, class_names), ("error", by_error, error_names)):
        names = [(number, name) for number, name in names if (colors == number).any()]
        points = [
            Point(x, y, int(color), bool(coloring == "class" and wrong and not is_training), number, bool(is_training))
            for (x, y), color, wrong, is_training, number in zip(
                at.tolist(), colors, sample.wrong, is_taught, numbers, strict=True
            )
        ]
        ringed = ", errors ringed" if coloring == "class" and (sample.wrong & ~is_taught).any() else ""
        name = f"{run_view.slug}-map-{key}-{coloring}"
        kinds = [(label, _color(number), colors == number) for number, label in names]
        png = charts.scatter(at * [1, -1], kinds, sample.wrong & ~is_taught & (coloring == "class"))
        alt = f"Map of {len(sample):,} images by {title}, coloured by {coloring}{ringed}."
        data = _data(run_view, sample, plane) if coloring == "class" else ((), ())
        called = f"{title[0].upper()}{title[1:]}, by {coloring}{ringed}"
        top = float(at[:, 1].min()) - 3
        pair.append(Map(name, called, alt, names, top, 2 * (50 - top), points, png, data))
    return pair


def _classes_of(run_view: RunView, sample: Sample) -> tuple[Array, list[tuple[int, str]]]:
    """(n,) colours, and what they stand for; of findings the first that an image has."""
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


def _errors_of(run_view: RunView, sample: Sample, is_taught: Array) -> tuple[Array, list[tuple[int, str]]]:
    """(n,) colours, and what they stand for; of two classes missed ones apart from false alarms."""
    wrong: Array = np.full(len(sample), _MISSED)
    names = [(_MISSED, "called wrong")]
    if run_view.is_binary:
        is_positive = run_view.task.labels[sample.rows] == run_view.task.positive
        wrong = np.where(is_positive, _MISSED, _ALARM)
        names = [(_MISSED, f"missed {run_view.positive}"), (_ALARM, f"called {run_view.positive}, and is not")]
    colors = np.where(is_taught, _FAINT, np.where(sample.wrong, wrong, _RIGHT))
    return colors, [*names, (_RIGHT, "called right"), (_FAINT, "training")]


def _color(number: int) -> str:
    return {_FAINT: FAINT, _RIGHT: RULE}.get(number) or CLASSES[number % len(CLASSES)]


def _scaled(plane: Array) -> Array:
    """(n, 2) from 2 to 98 across, the shorter side around 50, to a tenth. Directions mean nothing, so the plane is
    turned: what it is longest in lies across."""
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
    for row, side, place, wrong, (x, y) in zip(
        sample.rows.tolist(),
        sample.sides,
        sample.places.tolist(),
        sample.wrong.tolist(),
        plane.tolist(),
        strict=True,
    ):
        p = " ".join(f"{value:.6g}" for value in run_view.sides[side].p[place])
        name = run_view.task.image_ids[row]
        rows.append([name, side, run_view.label_of(row), int(wrong), p, f"{x:.6g}", f"{y:.6g}"])
    return ["image_id", "split", "label", "is_error", "probabilities", "x", "y"], rows
