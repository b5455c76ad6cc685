"""Images that the head called wrong, the surest errors first, and some that it called right; beside each what the head
learnt nearby, and where on the image it found what it says.

Of two classes the missed positives come first: they are what a reader fears most. Of more, errors by how little was
given to the true class; of findings, missed ones and false alarms, each of one finding.
Letters: n rows, d features, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.heads import inference
from featcache.reporting import cam, pictures
from featcache.reporting.document import Block, Card, Cards, Neighbour, Words, missing
from featcache.reporting.materials import Material, Pictures, Vectors
from featcache.reporting.run_view import CALLED, RunView
from featcache.store import GRID
from featcache.training.results import TRAIN

Array = np.ndarray[Any, Any]

N_ERRORS, N_RIGHT, N_NEIGHBOURS = 12, 6, 3  # of each kind


@dataclass(frozen=True)
class Chosen:
    """Rows of one kind: which, and the class, or finding, that is told of each.

    Attributes:
        key: in the file's name.
        title: the heading.
        words: of how many these are.
        places: numbers within the side.
        of: class numbers.
    """

    key: str
    title: str
    words: str
    places: Array
    of: Array


def gallery(run_view: RunView, material: Material) -> list[Block]:
    """Cards of the reported side, with what is missing said first."""
    kinds = choose(run_view)
    rows = run_view.sides[run_view.reported].rows
    shown_rows = (
        np.unique(np.concatenate([rows[kind.places] for kind in kinds])) if kinds else np.zeros(0, dtype=np.int64)
    )
    near = neighbours(run_view, material.vectors, shown_rows) if material.vectors and TRAIN in run_view.sides else {}
    if material.pictures:
        training_rows = [row for blocks in near.values() for row, _ in blocks]
        material.pictures.load([*shown_rows.tolist(), *training_rows])
    maps, about = ({}, "") if run_view.is_external else _activation_maps(run_view, material, kinds)
    blocks: list[Block] = [Words(_about(run_view, near, maps))]
    blocks += _missing(run_view, material, about)
    if run_view.is_binary and not any(kind.key == "missed" for kind in kinds):
        blocks.append(Words(f"No {run_view.positive} was missed."))
    for kind in kinds:
        cards = [
            _card(run_view, material.pictures, int(place), int(of), near, maps)
            for place, of in zip(kind.places, kind.of, strict=True)
        ]
        blocks.append(Cards(f"{run_view.slug}-{kind.key}", kind.title, kind.words, cards))
    return blocks


def _about(run_view: RunView, near: dict[int, list[tuple[int, float]]], maps: dict[tuple[int, int], Array]) -> str:
    text = f"{CALLED[run_view.reported].capitalize()} images, the surest first, as the network saw them."
    if near:
        text += f" Below each its {N_NEIGHBOURS} nearest training images by the cosine of their vectors."
    if maps:
        subject_text = "the finding" if run_view.task.has_findings else "the class called"
        text += f" Beside each where the head found it: red speaks for {subject_text}, blue "
        text += "against it, each on its own scale."
    return text


def _missing(run_view: RunView, material: Material, about: str) -> list[Words]:
    lines = []
    if material.no_pictures:
        lines.append(Words(material.no_pictures, "gone" if material.pictures else "missing"))
    if material.pictures and (changed := sorted(material.pictures.changed)):
        more = f" and {len(changed) - 3:,} more" if len(changed) > 3 else ""
        text = f"Not shown, since they are not the images of the Run any more: {', '.join(changed[:3])}{more}."
        lines.append(Words(text, "gone"))
    if not material.vectors and not run_view.is_external:
        lines.append(missing(f"For the nearest training images the store is needed: {material.no_vectors}."))
    return lines + ([missing(about)] if about else [])


# --- which images -----------------------------------------------------------------------------------------------------


def choose(run_view: RunView) -> list[Chosen]:
    """The kinds there are, errors before successes; none that would be empty."""
    if run_view.task.has_findings:
        kinds = _of_findings(run_view)
    elif run_view.is_binary:
        kinds = _of_two(run_view)
    else:
        kinds = _of_classes(run_view)
    return [kind for kind in kinds if len(kind.places)]


def _of_two(run_view: RunView) -> list[Chosen]:
    side, labels, positive = (
        run_view.sides[run_view.reported],
        run_view.labels(run_view.reported),
        run_view.task.positive,
    )
    p, name, other = side.p[:, positive], run_view.positive, run_view.classes[1 - positive]
    kinds = (
        ("missed", f"Missed {name}", (positive, 1 - positive), p, N_ERRORS),
        ("false-alarms", f"{other} called {name}", (1 - positive, positive), -p, N_ERRORS),
        ("found", f"{name}, found", (positive, positive), -p, N_RIGHT),
        ("rightly-absent", f"{other}, rightly called", (1 - positive, 1 - positive), p, N_RIGHT),
    )
    selected = []
    for key, title, (label, called), order, most in kinds:
        places = np.flatnonzero((labels == label) & (side.called == called))
        selected.append(_first(key, title, places, order, np.full(len(labels), called), most))
    return selected


def _of_classes(run_view: RunView) -> list[Chosen]:
    side, labels = run_view.sides[run_view.reported], run_view.labels(run_view.reported)
    p_true, p_called = (side.p[np.arange(len(labels)), of] for of in (labels, side.called))
    wrong, right = np.flatnonzero(side.called != labels), np.flatnonzero(side.called == labels)
    return [
        _first("errors", "Errors", wrong, p_true, side.called, 2 * N_ERRORS),
        _first("right", "Rightly called", right, -p_called, side.called, 2 * N_RIGHT),
    ]


def _of_findings(run_view: RunView) -> list[Chosen]:
    side, labels = run_view.sides[run_view.reported], run_view.labels(run_view.reported)
    n, c = labels.shape
    order, of = side.p.reshape(-1), np.tile(np.arange(c), n)  # a place for each image and finding
    kinds = (
        ("missed", "Missed findings", (1, 0), order, N_ERRORS),
        ("false-alarms", "False alarms", (0, 1), -order, N_ERRORS),
        ("found", "Findings found", (1, 1), -order, N_RIGHT),
    )
    selected = []
    for key, title, (label, called), by, most in kinds:
        pairs = np.flatnonzero(((labels == label) & (side.called == called)).reshape(-1))
        kind = _first(key, title, pairs, by, of, most)
        selected.append(Chosen(kind.key, kind.title, kind.words, kind.places // c, kind.of))
    return selected


def _first(key: str, title: str, places: Array, order: Array, of: Array, most: int) -> Chosen:
    """The first of some places in an order; of equals those that stand first."""
    kept = places[np.argsort(order[places], kind="stable")][:most]
    words = f"{len(places):,}" if len(places) <= most else f"the {most} surest of {len(places):,}"
    return Chosen(key, title, words, kept, of[kept])


# --- what is said of them ---------------------------------------------------------------------------------------------


def neighbours(run_view: RunView, vectors: Vectors, rows: Array) -> dict[int, list[tuple[int, float]]]:
    """For each row the k training rows with the largest cosine, nearest first, and the cosine. Training rows are those
    of the head that scored it."""
    nearest_rows: dict[int, list[tuple[int, float]]] = {}
    by_taught: dict[bytes, tuple[Array, list[int]]] = {}
    for row in rows.tolist():
        training_rows = run_view.training_rows(run_view.reported, row)
        by_taught.setdefault(training_rows.tobytes(), (training_rows, []))[1].append(row)
    for training_rows, members in by_taught.values():
        units = inference.unit_rows(vectors.features[training_rows])
        member_vectors = vectors.features[members]
        near = inference.nearest(units, member_vectors, N_NEIGHBOURS)
        cosines = np.einsum("nd,nkd->nk", inference.unit_rows(member_vectors), units[near])
        for row, nearest_places, similar in zip(members, near, cosines, strict=True):
            nearest_rows[row] = list(zip(training_rows[nearest_places].tolist(), similar.tolist(), strict=True))
    return nearest_rows


def _activation_maps(
    run_view: RunView, material: Material, kinds: Sequence[Chosen]
) -> tuple[dict[tuple[int, int], Array], str]:
    """(row, class) -> (h, w), and why there is none."""
    why = evidence_missing(run_view, material.vectors)
    if why or material.vectors is None or not kinds:
        return {}, why
    rows = run_view.sides[run_view.reported].rows
    pairs = sorted({(int(rows[p]), int(of)) for kind in kinds for p, of in zip(kind.places, kind.of, strict=True)})
    numbers = np.array([row for row, _ in pairs])
    places = material.vectors.places[numbers]
    grids = material.vectors.store.rows(GRID, places)
    grid = cam.channels_first(grids, material.vectors.features.shape[1])
    if run_view.run.spec.kind != "flatten-mlp" and not cam.is_mean(grid, material.vectors.features[numbers]):
        return {}, (
            "Where on the image the head finds what it says cannot be shown: the vectors of this backbone are not the "
            "mean of its feature map."
        )
    of, maps = np.array([column for _, column in pairs]), np.empty((len(pairs), *grid.shape[2:]))
    for here, head in run_view.heads(numbers):
        maps[here] = cam.maps(run_view.run.spec, head, grid[here], run_view.task, of[here])
    return dict(zip(pairs, maps, strict=True)), ""


def evidence_missing(run_view: RunView, vectors: Vectors | None) -> str:
    """Why no feature map can be read; empty where one can."""
    title = "Where on the image the head finds what it says"
    if run_view.run.spec.kind == "knn":
        return f"{title} cannot be shown of a knn head, which has no weights."
    if vectors is None:
        return f"{title} needs a store with feature maps (the tap grid)."
    shape = vectors.store.row_shape(GRID) if GRID in vectors.store.taps else ()
    if not shape:
        return f"{title} needs feature maps: embed the images with the taps pooled and grid, and report that store."
    if len(shape) != 3:
        return f"{title} cannot be shown: this backbone has no map of rows and columns."
    scored = run_view.sides[run_view.reported].rows
    return (
        ""
        if run_view.heads(scored[:1])
        else f"{title} cannot be shown: the heads that scored the images were not kept."
    )


def _card(
    run_view: RunView,
    images: Pictures | None,
    place: int,
    of: int,
    near: dict[int, list[tuple[int, float]]],
    maps: dict[tuple[int, int], Array],
) -> Card:
    side = run_view.sides[run_view.reported]
    row = int(side.rows[place])
    image, map_ = images.get(row) if images else None, maps.get((row, of))
    evident = pictures.overlaid(image, map_) if image is not None and map_ is not None else None
    label, called, p_of = _described(run_view, place, row, of)
    return Card(
        run_view.printable_names[row],
        pictures.embedded(image, pictures.LARGE) if image is not None else "",
        pictures.embedded(evident, pictures.LARGE) if evident is not None else "",
        label,
        called,
        float(side.p[place, p_of]),
        run_view.classes[p_of],
        [_neighbour(run_view, images, row, other, cosine, of) for other, cosine in near.get(row, ())],
    )


def _described(run_view: RunView, place: int, row: int, of: int) -> tuple[str, str, int]:
    """The true label, what it was called, and whose probability is told."""
    side = run_view.sides[run_view.reported]
    if run_view.task.has_findings:
        name = run_view.classes[of]
        label, called = run_view.task.labels[row, of], side.called[place, of]
        return (name if label else f"no {name}"), (name if called else f"no {name}"), of
    called = int(side.called[place])
    return run_view.label_of(row), run_view.classes[called], run_view.task.positive if run_view.is_binary else called


def _neighbour(run_view: RunView, images: Pictures | None, row: int, other: int, cosine: float, of: int) -> Neighbour:
    image = images.get(other) if images else None
    picture = pictures.embedded(image, pictures.SMALL) if image is not None else ""
    labels = run_view.task.labels[:, of] if run_view.task.has_findings else run_view.task.labels
    differs = bool(labels[other] != labels[row] and np.isfinite(labels[other]))  # an unknown one says nothing
    return Neighbour(run_view.printable_names[other], run_view.label_of(other), cosine, picture, not differs)
