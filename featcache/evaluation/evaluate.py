"""From a Run and a labelled set to an Evaluation: who takes part, their numbers, and the folder that keeps them.
Letters: n images that are scored, c classes.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from featcache import durable
from featcache.errors import UsageError
from featcache.evaluation import notes, sets, subgroups
from featcache.evaluation.comparison import about_difference, compared
from featcache.evaluation.labels import SetLabels, Source, labels_of
from featcache.evaluation.selection import Selection
from featcache.evaluation.sets import ScoredSet
from featcache.evaluation.subgroups import Subgroup
from featcache.evaluation.vocabulary import Vocabulary
from featcache.identity import Json, digest_json, environment
from featcache.images.workers import TIMEOUT_S, check_timeout
from featcache.manifest import Manifest
from featcache.prediction import failures_table, remove_partial
from featcache.prediction.predictor import Predictor, load_run
from featcache.runs import Table, evaluation
from featcache.runs.backbone import identity_of, said_by
from featcache.runs.evaluation import Evaluation
from featcache.specs import Where
from featcache.splits.task import Rows
from featcache.store import Store
from featcache.training import baselines
from featcache.training.results import EXTERNAL, TRAIN, Scored, predictions

Array = np.ndarray[Any, Any]

_BUNDLE = ".fcb.zip"


def evaluate(
    run: Predictor | Path | str,
    images: Manifest | Store | Path | str,
    output: Path | str | None = None,
    *,
    labels: Path | str | None = None,
    label_columns: Sequence[str] = (),
    on: str = "image_id",
    class_map: Mapping[str, str] | None = None,
    uncertain: str | None = None,
    separator: str | None = None,
    where: Sequence[Where | str] = (),
    by: Sequence[str] = (),
    group_by: str | None = None,
    with_training_images: bool = False,
    keep: Path | str | None = None,
    weights: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    first_frame: bool = False,
    max_pixels: int | None = None,
    strict: bool = False,
    timeout_s: float = TIMEOUT_S,
    n_workers: int | None = None,
    compile: str = "auto",  # noqa: A002  # what it is called everywhere
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Scores a Run on labelled images from elsewhere, and writes an Evaluation, which `report` shows.

    Args:
        run: the folder of a Run, a bundle, or what `load_run` returned.
        images: a folder of images (with a folder for each class), a CSV, or a store of vectors like the Run's.
        output: the folder to write; None for `runs/RUN-on-SET`. While images are on their way their vectors are in
            `OUTPUT.partial/`, from where the same call goes on after it was stopped.
        labels: a CSV that has the labels; None for the set's own.
        label_columns: the column of labels, `label` by default; of findings several, by default those that are called
            as the Run's findings are.
        on: the column by which `labels` is joined: `image_id`, or one that the set has too.
        class_map: label of the set -> class of the Run, where they are called otherwise.
        uncertain: what a label of -1 is, "ignore", "positive" or "negative"; None for what it was in the Run's own
            labels.
        separator: separator of a label column that lists findings; None for that of the Run's own labels.
        where: conditions on the images, such as `split=test`; others are not looked at.
        by: columns for whose values the numbers are given too; `folder` is that of the image's name.
        group_by: the column of patients, of whom all images are one witness in intervals; None for that by which the
            Run's own rows were grouped, if the set has it, else `group`.
        with_training_images: score images too that the Run has learnt from, or by which something of it was chosen.
        keep: a store in which the vectors of the images stay.
        weights: as in `load_run`, as are `device` and `precision`.
        device: see `weights`.
        precision: see `weights`.
        first_frame: as in `DecodeSpec`, as is `max_pixels`.
        max_pixels: see `first_frame`.
        strict: as in `embed.embed_all`, as are the rest.
        timeout_s: see `strict`.
        n_workers: see `strict`.
        compile: see `strict`.
        on_progress: see `strict`.
        on_note: see `strict`.

    Returns:
        The Evaluation. Images that failed are in its `failures.csv`, and counted in its record.

    Raises:
        IdentityMismatch: a store of other vectors than the Run's, with a line per field; or another network.
        StoreLocked: another process is writing at `output`.
        UsageError: no labels, none that the Run knows, a column that is not there, something else at `output`.
        StoreNotFound, UnknownFormat, CorruptStore: as `load_run` and `Store.open`.
        FeatcacheError: none of the images could be used.

    Example:
        >>> done = featcache.evaluate("runs/honest", "elsewhere", "runs/elsewhere")  # doctest: +SKIP
        >>> done.metrics["auroc"], done.metrics["intervals"]["auroc"]  # doctest: +SKIP
    """
    started = time.perf_counter()
    check_timeout(timeout_s)
    source = Source(tuple(label_columns), Path(labels) if labels else None, on, dict(class_map or {}))
    options = {
        "first_frame": first_frame, "max_pixels": max_pixels, "strict": strict, "timeout_s": timeout_s,
        "n_workers": n_workers, "compile": compile, "on_progress": on_progress, "on_note": on_note,
    }  # fmt: skip
    with ExitStack() as files:
        predictor = (
            run
            if isinstance(run, Predictor)
            else files.enter_context(load_run(run, weights=weights, device=device, precision=precision))
        )
        conditions = [Where.parse(text) if isinstance(text, str) else text for text in where]
        images, is_asked_for = sets.restricted(sets.opened(images, files), conditions)
        path, keep = Path(output or _default_path(predictor, images)), Path(keep) if keep is not None else None
        rows = sets.rows_of(images)
        patients = _patient_column(predictor, rows, group_by)
        key = {
            "run_sha256": digest_json(predictor.run.record),
            "vectors_sha256": predictor.vectors_sha256,
            "asked": _request(predictor, source, by, patients, with_training_images)
            | {"where": [str(condition) for condition in conditions], "uncertain": uncertain, "separator": separator},
        }
        _check_places(path, keep, key)
        files.enter_context(durable.locked(path))
        vocabulary = Vocabulary.of(predictor, uncertain, separator)
        set_labels = labels_of(rows, source, vocabulary)  # before hours of work, not after them
        if conditions:
            set_labels = set_labels.restricted(is_asked_for, " and ".join(map(str, conditions)))
        values = {name: subgroups.values_of(rows, name, source.file, on) for name in by}
        scored = sets.scored(predictor, images, path, keep, options)
        part = Selection.of(predictor, rows, scored, set_labels, patients, with_training_images)
        key["set_sha256"] = digest_json([scored.image_ids, scored.content_sha256, part.labels()])
        evaluation.check_free(path, key)
        by_column = {name: subgroups.subgroups(part.scored, part.ordered(texts)) for name, texts in values.items()}
        record = key | _record(predictor, images, scored, set_labels, part, by_column)
        record |= {"environment": environment(), "seconds": round(time.perf_counter() - started, 3)}
        done = evaluation.save(path, record, part.images(), _tables(images, scored, part, by_column))
        if isinstance(images, Manifest):
            remove_partial(path)
    return done


# --- before the pass --------------------------------------------------------------------------------------------------


def _default_path(predictor: Predictor, images: Manifest | Store) -> Path:
    place = sets.source_of(images).resolve()
    name = place.name if place.is_dir() else place.stem
    return Path("runs") / f"{predictor.path.resolve().name.removesuffix(_BUNDLE)}-on-{name}"


def _check_places(path: Path, keep: Path | None, key: Json) -> None:
    evaluation.check_free(path, key)
    if keep is not None and path.resolve() in (keep.resolve(), *keep.resolve().parents):
        raise UsageError(f"{keep} lies in the folder of the evaluation. Keep the vectors in another place.")


def _patient_column(predictor: Predictor, rows: Rows, group_by: str | None) -> str | None:
    """The column whose values are one witness each in intervals."""
    columns = rows.columns
    if group_by is not None and group_by not in columns:
        raise UsageError(f"{rows.path} has no column {group_by!r} to group by; it has {', '.join(columns) or 'none'}.")
    with said_by(predictor.run):
        own = predictor.run.record["asked"]["split"]["group_by"]
    return next((name for name in (group_by, own, "group") if name in columns), None)


def _request(
    predictor: Predictor, source: Source, by: Sequence[str], patients: str | None, with_training_images: bool
) -> Json:
    """What was asked for, as the record keeps it."""
    return {
        "labels": source.file.name if source.file else None,
        "label_columns": list(source.columns),
        "on": source.on,
        "class_map": dict(source.class_map),
        "by": list(by),
        "with_training_images": with_training_images,
        "tta": predictor.model.tta,
        "split": {"seed": 0, "group_by": patients},
    }


# --- what is kept -----------------------------------------------------------------------------------------------------


def _record(
    predictor: Predictor,
    images: Manifest | Store,
    scored: ScoredSet,
    labels: SetLabels,
    part: Selection,
    by_column: Mapping[str, Sequence[Subgroup]],
) -> Json:
    run, scoring = predictor.run, part.scored
    own = run.record
    unseen, numbers = _unseen(part), scoring.metrics([])[EXTERNAL]
    with said_by(run):
        point = scoring.at_operating_point(own["operating_point"]["rule"]) if scoring.threshold is not None else None
        at_point = point[EXTERNAL] if point else None
        comparison = compared(own, numbers, at_point, bool(part.tested or part.scored_learnt))
        return {
            "run": {"name": predictor.path.resolve().name, "is_bundle": predictor.path.is_file()},
            "set": _about_set(images, scored, labels, part),
            "task": own["task"],
            "classes": scoring.task.classes,
            "positive": own["positive"],
            "head": own["head"],
            "n_parameters": own["n_parameters"],
            "metrics": {EXTERNAL: numbers},
            "temperature": scoring.temperature,
            "operating_point": point,
            "baselines": {"on": EXTERNAL, "majority": _majority(own, scoring)},
            "subgroups": {name: [asdict(member) for member in members] for name, members in by_column.items()},
            "without_training_images": asdict(unseen) if unseen else None,
            "comparison": comparison,
            "notes": [*_notes(predictor, images, labels, part), *about_difference(comparison, numbers, at_point)],
            "left_out": scoring.task.left_out,
            "store": {"name": scored.store, "identity": identity_of(run), "weights": own["store"].get("weights")},
            "identity_sha256": own["identity_sha256"],
            "content_sha256": digest_json(scored.contents),
        }


def _about_set(images: Manifest | Store, scored: ScoredSet, labels: SetLabels, part: Selection) -> Json:
    """The counts add up: found = scored + left out + failed."""
    groups = part.scored.protocol.groups[part.rows]
    return {
        "source": str(sets.source_of(images)),
        "found": len(scored.image_ids) + len(scored.failures),
        "scored": len(part.rows),
        "failed": len(scored.failures),
        "skipped": dict(images.skipped) if isinstance(images, Manifest) else {},
        "n_groups": len(np.unique(groups)),
        "respelled": dict(labels.matching.respelled),
        "mapped": dict(labels.matching.mapped),
        "unknown_labels": dict(labels.unknown),
    }


def _majority(own: Json, scored: Scored) -> Json:
    """Always saying how common each class is among the rows that the Run learnt from, as its record counts them."""
    train = own["metrics"][TRAIN]
    if scored.task.has_findings:
        support, n_known = (np.array([scores[name] for scores in train["per_class"]]) for name in ("support", "n"))
    else:
        support, n_known = np.array(train["support"]), train["n"]
    return baselines.by_frequency(scored.task, support, n_known, scored.sides[EXTERNAL][0])


def _unseen(part: Selection) -> Subgroup | None:
    """Where training images are scored too: the numbers of the others."""
    if not part.scored_learnt:
        return None
    learnt = set(part.learnt)
    texts = ["seen" if i in learnt else "unseen" for i in range(len(part.order))]
    return next((subgroup for subgroup in subgroups.subgroups(part.scored, texts) if subgroup.value == "unseen"), None)


def _notes(predictor: Predictor, images: Manifest | Store, labels: SetLabels, part: Selection) -> Iterator[str]:
    task, rows = part.scored.task, part.rows.tolist()
    all_labels = part.labels()
    if isinstance(images, Manifest):
        yield from images.notes
    yield from labels.notes
    yield from notes.about_absent_classes(task, part.rows)
    yield from notes.about_split(task.columns)
    n_labelled = len({*rows, *part.learnt})
    yield from notes.about_training_images(part.names(part.learnt), n_labelled, part.scored_learnt)
    yield from notes.about_test_images(part.names(part.tested))
    yield from notes.about_copies(part.names(rows), [task.content[i] for i in rows], [all_labels[i] for i in rows])
    yield from notes.about_run(predictor.run, predictor.path.is_file())


def _tables(
    images: Manifest | Store, scored: ScoredSet, part: Selection, by_column: Mapping[str, Sequence[Subgroup]]
) -> dict[str, Table]:
    tables = {evaluation.PREDICTIONS: predictions(part.scored)}
    if by_column:
        tables[evaluation.SUBGROUPS] = subgroups.table(by_column, part.scored.task.classes)
    if scored.failures:
        paths = images if isinstance(images, Manifest) else Manifest([], [], {}, images.path)
        tables[evaluation.FAILURES] = failures_table(scored.failures, paths)
    return tables
