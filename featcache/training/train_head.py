"""`train_head`: from a store to a Run. Heads are trained on vectors that fit in memory, in seconds.

The story: labels become a task, rows are divided, specs are ranked on held rows, the winner is trained on what it may
learn from, an operating point is chosen on predictions of rows that their heads had not seen, and only then are the
rows of `test` read. What chooses is never what is reported: numbers that chose something are marked so.
Letters: n rows, d features, c classes.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache import devices, figures, runs
from featcache.auditing.shortcuts import column_shortcuts, notable
from featcache.errors import UsageError
from featcache.heads import features, inference
from featcache.heads.jobs import Fitted
from featcache.heads.optim import Targets
from featcache.identity import Json, digest_json, environment
from featcache.metrics import calibration
from featcache.runs import Images, Run, Table
from featcache.specs import HeadSpec, SelectionSpec, SplitSpec, TargetSpec
from featcache.splits import Fold
from featcache.splits.protocol import Protocol, divide
from featcache.splits.task import Task
from featcache.store import Store, Variety
from featcache.tables import missing
from featcache.training import baselines, selection
from featcache.training.results import OUTER, TEST, TRAIN, VAL, Scored, about_network, chosen, tables
from featcache.training.selection import Bench, Candidate, out_of_fold

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]

_NONE = np.array([], dtype=np.int64)
_NEAR_SHOWN = 5
_LOOKED_AT = 20_000  # rows, to see whether vectors differ
_SHORTCUTS_SHOWN = 3


def train_head(
    store: Store,
    specs: HeadSpec | Sequence[HeadSpec] = (),
    run_path: Path | str | None = None,
    *,
    target: TargetSpec = TargetSpec(),
    split: SplitSpec = SplitSpec(),
    report: SelectionSpec = SelectionSpec(),
    device: str = "cpu",
    on_progress: Progress = lambda done, total: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Run:
    """Trains heads on the vectors of a store, and writes the best as a Run.

    Specs are ranked on validation rows, the best is trained on the training rows (with folds on all rows except test),
    its operating point and temperature are chosen on predictions of rows that it was not trained on, and only then are
    the test rows read.

    Args:
        store: an open store of n rows. Rows without a label are left out and counted.
        specs: one head, or several to compare; none stands for a linear probe, `HeadSpec()`.
        run_path: folder of the Run; None for `runs/STORE-KIND-DIGEST` in the current folder. The same training may be
            repeated at its path; another Run is never overwritten.
        target: which labels are predicted.
        split: how rows are divided into training, validation and test rows.
        report: how the best head is selected, and which baselines are computed.
        device: "cpu", "cuda", "cuda:N" or "auto".
        on_progress: called with (epochs done, epochs in total), summed over heads.
        on_note: called with each note on the data before training starts.

    Returns:
        The Run, with metrics, predictions, history and weights.

    Raises:
        UsageError: labels, groups or the given split do not allow the training, with counts; the store lacks the
            features or augmented copies that the head needs; another Run is at `run_path`.
        StoreLocked: another process is training at `run_path`.

    Example:
        >>> import featcache
        >>> with featcache.Store.open("chest.h5") as store:
        ...     target = featcache.TargetSpec(positive="sick")
        ...     run = featcache.train_head(store, featcache.HeadSpec("linear", epochs=5), "runs/example", target=target)
        >>> run.metrics("test")["auroc"] > 0.5
        True
    """
    started = time.perf_counter()
    tried = [specs] if isinstance(specs, HeadSpec) else list(specs) or [HeadSpec()]
    rule = calibration.parse_rule(report.operating_point) if report.operating_point else None
    device = devices.choose(device)
    task = Task.of(store, target)
    protocol = divide(task, split, store.features)
    notes = [*task.notes, *protocol.notes, *_about_vectors(store), *_about_missing(store, target, split)]
    check_held(task, protocol, rule)
    needed = tried, report.tta
    features.check(store, *needed)
    other_stores = [baselines.identity_of(path, task, *needed) for path in report.compare]
    for note in notes:
        on_note(note)
    _tell_near(task, protocol, split, on_note)
    division = protocol.record(task.image_ids)
    key = _key(store, tried, task, division, target, split, report, other_stores)
    run_path = Path(run_path or f"runs/{store.path.stem}-{tried[0].kind}-{digest_json(key)[:8]}")
    with runs.place(run_path, key):
        bench = Bench(task, protocol, features.load(store, *needed, device), _targets(task), report.tta)
        ranked = selection.rank(bench, tried, [protocol.folds], report.select, on_progress)[0] if len(tried) > 1 else []
        spec = ranked[0].spec if ranked else tried[0]
        nested = _nested(bench, tried, report.select, on_progress) if protocol.outer else None
        trained = _make(bench, spec, report.refit_all, on_progress)
        choice = chosen(task, trained.val_rows, trained.val_logits, rule)

        scored = Scored(task, protocol, _sides(bench, spec, trained, nested), choice)
        images, baseline_scores = Images.of(task, protocol).to_json(), _baselines(bench, spec, trained, report, device)
        record = {
            **key,
            "head": spec.used(),
            "n_parameters": trained.final.n_parameters,
            "epoch": trained.final.epoch,
            "metrics": scored.metrics(chose=_chose(ranked, rule)),
            "temperature": choice.temperature,
            "operating_point": scored.at_operating_point(rule) if rule else None,
            "baselines": baseline_scores,
            "notes": [
                *notes,
                *about_network(store.weights_source),
                *_about_others(baseline_scores),
                *_shortcut_notes(task, protocol, target),
                *scored.notes(ranked),
            ],
            "left_out": protocol.left_out,
            "feature_rms": bench.rms(trained.final.fit) if spec.kind != "knn" else None,
            "images_sha256": images["sha256"],
            "store": {
                "name": store.path.name,
                "identity": store.identity,
                "weights": store.weights_source,
                **({"weights_file": store.weights_file} if store.weights_file else {}),
            },
            "environment": environment(device),
            "seconds": round(time.perf_counter() - started, 3),
        }
        run_tables = tables(scored, [fold.history for fold in trained.folds], ranked, report.select)
        return _save(run_path, record, {"split.json": division, "images.json": images}, trained, run_tables)


# --- the heads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedHeads:
    """The winner, trained.

    Attributes:
        folds: a head on each fold.
        final: the head that is kept.
        train: the rows it may learn from.
        val_rows, val_logits: rows of the folds by heads that had not seen them.
    """

    folds: list[Fitted]
    final: Fitted
    train: Array
    val_rows: Array
    val_logits: Array


def _make(bench: Bench, spec: HeadSpec, refit_all: bool, on_progress: Progress) -> TrainedHeads:
    task, protocol = bench.task, bench.protocol
    fitted = bench.run(bench.fits([spec], protocol.folds), curves=True, on_progress=on_progress)
    selection.check_finite(fitted)
    rows, logits = out_of_fold(len(task.image_ids), fitted)
    train, final = protocol.folds[0].train, fitted[0]
    if refit_all or not protocol.is_hold_out:
        train = protocol.rows
        (final,) = bench.run(bench.fits([spec], [Fold(train, _NONE, 0, 0)]))
        selection.check_finite([final])
    return TrainedHeads(fitted, final, train, rows, logits)


def _nested(bench: Bench, specs: Sequence[HeadSpec], select: str, on_progress: Progress) -> tuple[Array, Array]:
    """(rows, logits) of the outer folds, each by the spec that its own inner folds chose, trained on its own training
    rows: nothing that is scored here has chosen anything."""
    outer = bench.protocol.outer
    best = [specs[0]] * len(outer)
    if len(specs) > 1:
        best = [
            ranked[0].spec for ranked in selection.rank(bench, specs, [o.inner for o in outer], select, on_progress)
        ]
    fits = bench.fits(list(dict.fromkeys(best)), [o.fold for o in outer])
    chosen = {(best[i], id(o.fold.val)) for i, o in enumerate(outer)}
    inner = bench.run([fit for fit in fits if (fit.spec, id(fit.val)) in chosen], weights=False)
    selection.check_finite(inner)
    return out_of_fold(len(bench.task.image_ids), inner)


def _sides(
    bench: Bench, spec: HeadSpec, trained: TrainedHeads, nested: tuple[Array, Array] | None
) -> dict[str, tuple[Array, Array]]:
    """Rows and logits by side. This is the moment at which the rows of `test` are read."""

    def by_the_final(rows: Array) -> tuple[Array, Array]:
        x = bench.scored(spec, rows)
        return rows, inference.logits(spec, trained.final.tensors, x, len(bench.task.classes), bench.task.positive)

    subsets = {TRAIN: by_the_final(trained.train), VAL: (trained.val_rows, trained.val_logits)}
    if nested:
        subsets[OUTER] = nested
    if len(bench.protocol.test):
        subsets[TEST] = by_the_final(bench.protocol.test)
    return subsets


def _targets(task: Task) -> Targets:
    return Targets(task.labels[None], len(task.classes), task.positive)


# --- before and after ------------------------------------------------------------------------------------------------


def _chose(ranked: Sequence[Candidate], rule: Any) -> list[str]:
    """What the val rows chose, so that their numbers are not those of rows that chose nothing."""
    return [*(["head"] if len(ranked) > 1 else []), *(["operating_point"] if rule else [])]


def _baselines(
    bench: Bench, spec: HeadSpec, trained: TrainedHeads, report: SelectionSpec, device: str
) -> dict[str, Any]:
    """Scored on test where there is one, on val otherwise."""
    protocol = bench.protocol
    on_test = len(protocol.test) > 0
    rows = protocol.test if on_test else trained.val_rows
    folds = [Fold(trained.train, rows, 0, 0)] if on_test else protocol.folds
    final = Fold(trained.train, protocol.test, 0, 0)
    baseline_scores: dict[str, Any] = {
        "on": TEST if on_test else VAL,
        "majority": baselines.majority(bench.task, trained.train, rows),
    }
    if report.n_permutations:
        baseline_scores["permuted_labels"] = baselines.permuted(bench, spec, folds, report.n_permutations)
    for path in report.compare:
        other = baselines.other_store(path, bench, spec, final, device)
        baseline_scores.setdefault("other_stores", []).append(other)
    return baseline_scores


def _about_others(baselines: Mapping[str, Any]) -> list[str]:
    """Where a store that is compared with is of a network that has learnt from images."""
    return [
        f"{other['store']}: {note}"
        for other in baselines.get("other_stores", ())
        for note in about_network(other["weights"])
    ]


def _shortcut_notes(task: Task, protocol: Protocol, target: TargetSpec) -> list[str]:
    """Notes on classes that image_ids or columns of the store predict."""
    if task.has_findings:
        words = {1.0: "1", 0.0: "0"}
        labels = {
            name: [words.get(value, "") for value in column]
            for name, column in zip(task.classes, task.labels.T.tolist(), strict=True)
        }
    else:
        labels = {"": [task.classes[number] if number >= 0 else "" for number in task.labels.tolist()]}
    shortcuts = column_shortcuts(task.image_ids, task.columns, labels, protocol.groups, target.columns)
    return [
        f"shortcut: {shortcut}, without looking at the image. A head may have learned this instead of the finding; "
        f"audit the store for more"
        for shortcut in notable(shortcuts)[:_SHORTCUTS_SHOWN]
    ]


def check_held(task: Task, protocol: Protocol, rule: Any) -> None:
    """Before anything is trained: a threshold needs two classes, and held rows of both."""
    if rule and (task.has_findings or len(task.classes) > 2):
        raise UsageError("`operating_point` is for two classes.")
    val = np.concatenate([fold.val for fold in protocol.folds])
    if rule:
        n = task.counts(val).tolist()
        if 0 in n:
            raise UsageError(
                f"an operating point is chosen on validation rows, and those are {n[0]} {task.classes[0]} and {n[1]} "
                f"{task.classes[1]}. Choose others with `val_fraction` or `n_splits`."
            )


def _about_vectors(store: Store) -> list[str]:
    """What is known of the weights that made them, and whether those of different images differ."""
    return [*store.weights_notes, *Variety.of(store, _LOOKED_AT).notes()]


def _about_missing(store: Store, target: TargetSpec, split: SplitSpec) -> list[str]:
    """A note on the words for missing values in those columns of a store that the training reads."""
    read = {split.group_by or "group", "split", *(() if target.file else target.columns), target.on}
    return missing.notes(store.path, {name: words for name, words in store.missing_words.items() if name in read})


def _tell_near(task: Task, protocol: Protocol, split: SplitSpec, on_note: Callable[[str], None]) -> None:
    if split.near_duplicates is None:
        return
    pairs, cosines = protocol.near
    examples = "; ".join(
        f"{task.image_ids[i]} and {task.image_ids[j]} ({cosine:.4f})"
        for (i, j), cosine in list(zip(pairs.tolist(), cosines.tolist(), strict=True))[:_NEAR_SHOWN]
    )
    first = f" The first: {examples}." if len(pairs) else ""
    on_note(f"{len(pairs):,} pair(s) of vectors have a cosine of {split.near_duplicates:g} or more.{first}")


def _key(
    store: Store,
    specs: Sequence[HeadSpec],
    task: Task,
    division: Json,
    target: TargetSpec,
    split: SplitSpec,
    report: SelectionSpec,
    other_stores: list[str],
) -> Json:
    """Everything that decides the result of a training: two with the same key are the same Run."""
    labelled = [(task.image_ids[i], task.labels[i].tolist()) for i in task.labelled]
    labels = [
        (name, [None if v != v else v for v in label] if isinstance(label, list) else label) for name, label in labelled
    ]
    names = [path.name for path in report.compare]
    request = {**asdict(report), "compare": dict(zip(names, other_stores, strict=True))}
    drawn = {name: getattr(split, name) for name in ("nested", "group_by", "near_duplicates", "seed")}
    return {
        "heads": [spec.used() for spec in specs],
        "classes": task.classes,
        "task": "findings" if task.has_findings else "classes",
        "positive": task.classes[task.positive],
        "asked": {**request, "labels": target.as_json(), "split": drawn},
        "identity_sha256": store.identity_sha256,
        "content_sha256": digest_json(task.content),
        "split_sha256": division["sha256"],
        "labels_sha256": digest_json(labels),
    }


def _save(
    run_path: Path, record: Json, json_files: dict[str, Json], trained: TrainedHeads, tables: dict[str, Table]
) -> Run:
    spec, n_folds = record["head"], len(trained.folds)
    files = {name: (json.dumps(value) + "\n").encode() for name, value in json_files.items()}
    if "history.csv" in tables:
        names, points = tables["history.csv"]
        history = [dict(zip(names, point, strict=True)) for point in points]
        description = f", lr {spec['lr']:g}, class weights {spec['class_weight']}"
        over = f", mean of {n_folds} folds" if n_folds > 1 else ""
        title = f"{spec['kind']} head on {record['store']['name']}{description}{over}"
        kept = record["epoch"] if n_folds == 1 else None if spec["patience"] else len(history)
        files["curves.png"] = figures.curves(history, title, kept)  # type: ignore[arg-type]
    folds = [fold.tensors for fold in trained.folds] if n_folds > 1 and spec["kind"] != "knn" else []
    return runs.save(run_path, record, trained.final.tensors, tables, files, folds)
