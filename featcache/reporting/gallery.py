"""Example images: the most confident errors first, then correct predictions; with the nearest training images and a
class activation map.

For two classes false negatives come first, the errors of the highest clinical cost. For more classes errors are ordered
by the predicted probability of the true class. Multi-label examples are pairs of an image and a label.
Letters: n rows, d features, k neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.heads import inference
from featcache.reporting import cam
from featcache.reporting.document import LARGE, SMALL, Block, Card, Cards, Neighbour, Words, data_uri, missing
from featcache.reporting.materials import Material, Pictures, Vectors
from featcache.reporting.run_view import SUBSET_NAMES, RunView
from featcache.specs import GRID
from featcache.training.results import TRAIN

Array = np.ndarray[Any, Any]

N_ERRORS, N_CORRECT, N_NEIGHBOURS = 12, 6, 3  # per kind of example


@dataclass(frozen=True)
class Examples:
    """Examples of one kind of prediction, such as false negatives.

    Attributes:
        key: part of the file's name.
        title: heading.
        words: how many there are, and how many are shown.
        places: positions within the subset.
        of: (n,) number of the class, or label, of each example.
    """

    key: str
    title: str
    words: str
    places: Array
    of: Array


def gallery(run_view: RunView, material: Material) -> list[Block]:
    """Cards with examples of the reported subset, after sentences about missing parts."""
    kinds = choose(run_view)
    rows = run_view.subsets[run_view.reported].rows
    shown_rows = (
        np.unique(np.concatenate([rows[kind.places] for kind in kinds])) if kinds else np.zeros(0, dtype=np.int64)
    )
    near = neighbours(run_view, material.vectors, shown_rows) if material.vectors and TRAIN in run_view.subsets else {}
    if material.pictures:
        training_rows = [row for blocks in near.values() for row, _ in blocks]
        material.pictures.load([*shown_rows.tolist(), *training_rows])
    maps, no_maps = ({}, "") if run_view.is_external else _activation_maps(run_view, material, kinds)
    blocks: list[Block] = [Words(_caption(run_view, near, maps))]
    blocks += _missing(run_view, material, no_maps)
    if run_view.is_binary and not any(kind.key == "false-negatives" for kind in kinds):
        blocks.append(Words("There are no false negatives."))
    for kind in kinds:
        cards = [
            _card(run_view, material.pictures, int(place), int(of), near, maps)
            for place, of in zip(kind.places, kind.of, strict=True)
        ]
        blocks.append(Cards(f"{run_view.slug}-{kind.key}", kind.title, kind.words, cards))
    return blocks


def _caption(run_view: RunView, near: dict[int, list[tuple[int, float]]], maps: dict[tuple[int, int], Array]) -> str:
    name = SUBSET_NAMES[run_view.reported].capitalize()
    text = f"{name} images as the backbone receives them, the most confident predictions first."
    if near:
        text += f" Below each image: the {N_NEIGHBOURS} training images with the highest cosine similarity."
    if maps:
        target = "label" if run_view.task.has_findings else "predicted class"
        text += (
            f" Right of each image: a class activation map; red areas raise the log odds of the {target}, blue areas "
        )
        text += "lower them. Each map has its own scale."
    return text


def _missing(run_view: RunView, material: Material, no_maps: str) -> list[Words]:
    lines = []
    if material.no_pictures:
        lines.append(Words(material.no_pictures, "gone" if material.pictures else "missing"))
    if material.pictures and (changed := sorted(material.pictures.changed)):
        more = f" and {len(changed) - 3:,} more" if len(changed) > 3 else ""
        text = f"Images that changed since the Run, or cannot be read, are not shown: {', '.join(changed[:3])}{more}."
        lines.append(Words(text, "gone"))
    if not material.vectors and not run_view.is_external:
        lines.append(missing(f"The nearest training images need the store: {material.no_vectors}."))
    return lines + ([missing(no_maps)] if no_maps else [])


# --- which images -----------------------------------------------------------------------------------------------------


def choose(run_view: RunView) -> list[Examples]:
    """The kinds of examples that are not empty, errors before correct predictions."""
    if run_view.task.has_findings:
        kinds = _multi_label_examples(run_view)
    elif run_view.is_binary:
        kinds = _binary_examples(run_view)
    else:
        kinds = _multi_class_examples(run_view)
    return [kind for kind in kinds if len(kind.places)]


def _binary_examples(run_view: RunView) -> list[Examples]:
    predictions, labels, positive = (
        run_view.subsets[run_view.reported],
        run_view.labels(run_view.reported),
        run_view.task.positive,
    )
    p, name, other = predictions.p[:, positive], run_view.positive, run_view.classes[1 - positive]
    kinds = (
        ("false-negatives", f"False negatives: {name} predicted {other}", (positive, 1 - positive), p, N_ERRORS),
        ("false-positives", f"False positives: {other} predicted {name}", (1 - positive, positive), -p, N_ERRORS),
        ("true-positives", f"True positives: {name}", (positive, positive), -p, N_CORRECT),
        ("true-negatives", f"True negatives: {other}", (1 - positive, 1 - positive), p, N_CORRECT),
    )
    selected = []
    for key, title, (label, predicted), order, most in kinds:
        places = np.flatnonzero((labels == label) & (predictions.predicted == predicted))
        selected.append(_first(key, title, places, order, np.full(len(labels), predicted), most))
    return selected


def _multi_class_examples(run_view: RunView) -> list[Examples]:
    predictions, labels = run_view.subsets[run_view.reported], run_view.labels(run_view.reported)
    p_true, p_predicted = (predictions.p[np.arange(len(labels)), of] for of in (labels, predictions.predicted))
    wrong, correct = np.flatnonzero(predictions.predicted != labels), np.flatnonzero(predictions.predicted == labels)
    return [
        _first("errors", "Errors", wrong, p_true, predictions.predicted, 2 * N_ERRORS),
        _first("correct", "Correct predictions", correct, -p_predicted, predictions.predicted, 2 * N_CORRECT),
    ]


def _multi_label_examples(run_view: RunView) -> list[Examples]:
    predictions, labels = run_view.subsets[run_view.reported], run_view.labels(run_view.reported)
    n, c = labels.shape
    order, of = predictions.p.reshape(-1), np.tile(np.arange(c), n)  # one position per image and label
    kinds = (
        ("false-negatives", "False negatives", (1, 0), order, N_ERRORS),
        ("false-positives", "False positives", (0, 1), -order, N_ERRORS),
        ("true-positives", "True positives", (1, 1), -order, N_CORRECT),
    )
    selected = []
    for key, title, (label, predicted), by, most in kinds:
        pairs = np.flatnonzero(((labels == label) & (predictions.predicted == predicted)).reshape(-1))
        kind = _first(key, title, pairs, by, of, most)
        selected.append(Examples(kind.key, kind.title, kind.words, kind.places // c, kind.of))
    return selected


def _first(key: str, title: str, places: Array, order: Array, of: Array, most: int) -> Examples:
    """The first positions by `order`; ties keep their order."""
    kept = places[np.argsort(order[places], kind="stable")][:most]
    words = f"{len(places):,}" if len(places) <= most else f"the {most} most confident of {len(places):,}"
    return Examples(key, title, words, kept, of[kept])


# --- cards ------------------------------------------------------------------------------------------------------------


def neighbours(run_view: RunView, vectors: Vectors, rows: Array) -> dict[int, list[tuple[int, float]]]:
    """For each row the k training rows with the highest cosine similarity, and the similarity. Training rows are those
    of the head that made the prediction."""
    nearest_rows: dict[int, list[tuple[int, float]]] = {}
    by_training_rows: dict[bytes, tuple[Array, list[int]]] = {}
    for row in rows.tolist():
        training_rows = run_view.training_rows(run_view.reported, row)
        by_training_rows.setdefault(training_rows.tobytes(), (training_rows, []))[1].append(row)
    for training_rows, members in by_training_rows.values():
        units = inference.unit_rows(vectors.features[training_rows])
        member_vectors = vectors.features[members]
        near = inference.nearest(units, member_vectors, N_NEIGHBOURS)
        cosines = np.einsum("nd,nkd->nk", inference.unit_rows(member_vectors), units[near])
        for row, nearest_places, similar in zip(members, near, cosines, strict=True):
            nearest_rows[row] = list(zip(training_rows[nearest_places].tolist(), similar.tolist(), strict=True))
    return nearest_rows


def _activation_maps(
    run_view: RunView, material: Material, kinds: Sequence[Examples]
) -> tuple[dict[tuple[int, int], Array], str]:
    """(row, class) -> (h, w), and why there is none."""
    why = no_cam_reason(run_view, material.vectors)
    if why or material.vectors is None or not kinds:
        return {}, why
    rows = run_view.subsets[run_view.reported].rows
    pairs = sorted({(int(rows[p]), int(of)) for kind in kinds for p, of in zip(kind.places, kind.of, strict=True)})
    numbers = np.array([row for row, _ in pairs])
    places = material.vectors.places[numbers]
    grids = material.vectors.store.rows(GRID, places)
    grid = cam.channels_first(grids, material.vectors.features.shape[1])
    if run_view.run.spec.kind != "flatten-mlp" and not cam.is_mean(grid, material.vectors.features[numbers]):
        return {}, (
            "Class activation maps cannot be computed: the vectors of this backbone are not means of its feature map."
        )
    of, maps = np.array([column for _, column in pairs]), np.empty((len(pairs), *grid.shape[2:]))
    for here, head in run_view.heads(numbers):
        maps[here] = cam.maps(run_view.run.spec, head, grid[here], run_view.task, of[here])
    return dict(zip(pairs, maps, strict=True)), ""


def no_cam_reason(run_view: RunView, vectors: Vectors | None) -> str:
    """Why there are no class activation maps; empty if they can be computed."""
    title = "Class activation maps"
    if run_view.run.spec.kind == "knn":
        return f"{title} cannot be computed for a knn head, which has no weights."
    if vectors is None:
        return f"{title} need a store with feature maps (the tap grid)."
    shape = vectors.store.row_shape(GRID) if GRID in vectors.store.taps else ()
    if not shape:
        return f"{title} need feature maps: embed the images with the taps pooled and grid, and report that store."
    if len(shape) != 3:
        return f"{title} cannot be computed: this backbone has no spatial feature map."
    scored = run_view.subsets[run_view.reported].rows
    return (
        ""
        if run_view.heads(scored[:1])
        else f"{title} cannot be computed: the heads that made these predictions were not kept."
    )


def _card(
    run_view: RunView,
    images: Pictures | None,
    place: int,
    of: int,
    near: dict[int, list[tuple[int, float]]],
    maps: dict[tuple[int, int], Array],
) -> Card:
    predictions = run_view.subsets[run_view.reported]
    row = int(predictions.rows[place])
    image, map_ = images.get(row) if images else None, maps.get((row, of))
    overlay = cam.overlaid(image, map_) if image is not None and map_ is not None else None
    label, predicted, p_of = _outcome(run_view, place, row, of)
    return Card(
        run_view.printable_names[row],
        data_uri(image, LARGE) if image is not None else "",
        data_uri(overlay, LARGE) if overlay is not None else "",
        label,
        predicted,
        float(predictions.p[place, p_of]),
        run_view.classes[p_of],
        [_neighbour(run_view, images, row, other, cosine, of) for other, cosine in near.get(row, ())],
    )


def _outcome(run_view: RunView, place: int, row: int, of: int) -> tuple[str, str, int]:
    """The true label, the predicted label, and the class of the displayed probability."""
    predictions = run_view.subsets[run_view.reported]
    if run_view.task.has_findings:
        name = run_view.classes[of]
        label, predicted = run_view.task.labels[row, of], predictions.predicted[place, of]
        return (name if label else f"no {name}"), (name if predicted else f"no {name}"), of
    predicted = int(predictions.predicted[place])
    p_of = run_view.task.positive if run_view.is_binary else predicted
    return run_view.label_of(row), run_view.classes[predicted], p_of


def _neighbour(run_view: RunView, images: Pictures | None, row: int, other: int, cosine: float, of: int) -> Neighbour:
    image = images.get(other) if images else None
    picture = data_uri(image, SMALL) if image is not None else ""
    labels = run_view.task.labels[:, of] if run_view.task.has_findings else run_view.task.labels
    differs = bool(labels[other] != labels[row] and np.isfinite(labels[other]))  # unknown labels agree
    return Neighbour(run_view.printable_names[other], run_view.label_of(other), cosine, picture, not differs)
