"""`train_head`: from a store to a Run. Heads are trained on vectors that fit in memory, in seconds.

The story: labels become a task, rows are divided, specs are ranked on held rows, the winner is trained on what it may
learn from, an operating point is chosen on predictions of rows that their heads had not seen, and only then are the
rows of `test` read. What chooses is never what is reported: numbers that chose something are marked so.
Letters: n rows, d features, c classes.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from featcache import baselines, calibration, devices, figures, metrics, runs, scoring, selection
from featcache.errors import UsageError
from featcache.fitting import Fitted, Targets
from featcache.heads import HeadSpec, varied
from featcache.protocol import Protocol, SplitSpec, divide
from featcache.provenance import Json, digest_json, environment
from featcache.runs import Run, Table
from featcache.selection import Bench, Candidate, numbers, out_of_fold, spread, tap_of
from featcache.splits import Fold
from featcache.store import Store
from featcache.task import TargetSpec, Task

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]

TRAIN, VAL, TEST, OUTER = "train", "val", "test", "outer"
_NONE = np.array([], dtype=np.int64)
_NEAR_SHOWN = 5


@dataclass(frozen=True)
class ReportSpec:
    """What is said of the winner besides its numbers.

    Attributes:
        select: the metric that ranks specs on held rows.
        refit_all: after a hold-out, train the winner on the held rows too. Folds always do.
        operating_point: a rule of `calibration.parse_rule`, for two classes.
        permutations: how many shuffled labellings to train on, for comparison.
        compare: other stores of the same images, for comparison.
    """

    select: str = "auroc"
    refit_all: bool = False
    operating_point: str | None = None
    permutations: int = 0
    compare: tuple[Path, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.select not in selection.SELECT:
            raise ValueError(f"select must be one of {', '.join(selection.SELECT)}, got {self.select!r}")
        if not 0 <= self.permutations <= 1000:
            raise ValueError(f"permutations must be from 0 to 1000, got {self.permutations}")


def train_head(
    store: Store,
    specs: HeadSpec | Sequence[HeadSpec] = (),
    run_path: Path | None = None,
    *,
    target: TargetSpec = TargetSpec(),
    split: SplitSpec = SplitSpec(),
    report: ReportSpec = ReportSpec(),
    device: str = "cpu",
    on_progress: Progress = lambda done, total: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Run:
    """Trains heads on a store, and writes a Run of the best.

    Args:
        store: the vectors. Rows without a label are left out and counted.
        specs: one head, or several of which the held rows choose; the default is the linear probe.
        run_path: the folder to write; None for `runs/STORE-KIND-DIGEST` in the current folder. The same training of the
            same store may be repeated at its path; another is never overwritten.
        target: the labels.
        split: how rows are divided.
        report: what is said of the winner.
        device: "cpu", "cuda", "cuda:N" or "auto".
        on_progress: called with (heads and epochs done, heads and epochs in all) of the longest stage.
        on_note: called with what a person should know before it happens.

    Raises:
        UsageError: labels, groups or the given split do not allow it, with counts; another Run is at `run_path`.
    """
    started = time.perf_counter()
    tried = [specs] if isinstance(specs, HeadSpec) else list(specs) or [HeadSpec()]
    rule = calibration.parse_rule(report.operating_point) if report.operating_point else None
    device = devices.choose(device)
    task = Task.of(store, target)
    if rule and (task.has_findings or len(task.classes) > 2):
        raise UsageError("--operating-point is for two classes.")
    protocol = divide(task, split, store.features)
    _check_held(task, protocol, rule)
    others = [baselines.identity_of(path, task) for path in report.compare]
    _tell_near(task, protocol, split, on_note)
    key = _key(store, tried, task, protocol, split, report, others)
    run_path = run_path or Path("runs") / f"{store.path.stem}-{tried[0].kind}-{digest_json(key)[:8]}"
    runs.check_free(run_path, key)

    bench = Bench(task, protocol, _features(store, tried, device), _targets(task))
    ranked = selection.rank(bench, tried, [protocol.folds], report.select, on_progress)[0] if len(tried) > 1 else []
    spec = ranked[0].spec if ranked else tried[0]
    nested = _nested(bench, tried, report.select, on_progress) if protocol.outer else None
    made = _make(bench, spec, report.refit_all, on_progress)
    threshold = calibration.operating_point(*_positives(task, made.val_rows, made.val_logits), rule) if rule else None

    said = _Said(bench, spec, made, nested, threshold)
    record = {
        **key,
        "head": spec.used(),
        "n_parameters": made.final.n_parameters,
        "epoch": made.final.epoch,
        "metrics": said.metrics(chose=_chose(ranked, rule)),
        "temperature": made.temperature,
        "operating_point": said.at_operating_point(rule) if rule else None,
        "baselines": _baselines(bench, spec, made, report, device),
        "notes": said.notes(ranked),
        "left_out": protocol.left_out,
        "store": {"name": store.path.name, "identity": store.identity},
        "environment": environment(device),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return _save(run_path, record, made, _tables(bench, ranked, report, made, said), bench)


# --- the heads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """The winner, trained.

    Attributes:
        folds: a head on each fold.
        final: the head that is kept.
        train: the rows it may learn from.
        val_rows, val_logits: rows of the folds by heads that had not seen them.
        temperature: of those logits; None for findings.
    """

    folds: list[Fitted]
    final: Fitted
    train: Array
    val_rows: Array
    val_logits: Array
    temperature: float | None


def _make(bench: Bench, spec: HeadSpec, refit_all: bool, on_progress: Progress) -> _Made:
    task, protocol = bench.task, bench.protocol
    fitted = bench.run(bench.fits([spec], protocol.folds), curves=True, on_progress=on_progress)
    selection.check_finite(fitted)
    rows, logits = out_of_fold(len(task.image_ids), fitted)
    train, final = protocol.folds[0].train, fitted[0]
    if refit_all or not protocol.is_hold_out:
        train = protocol.rows
        (final,) = bench.run(bench.fits([spec], [Fold(train, _NONE, 0, 0)]))
        selection.check_finite([final])
    warmth = None if task.has_findings else calibration.temperature(task.labels[rows], logits)
    return _Made(fitted, final, train, rows, logits, warmth)


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
    wanted = {(best[i], id(o.fold.held)) for i, o in enumerate(outer)}
    found = bench.run([fit for fit in fits if (fit.spec, id(fit.held)) in wanted])
    selection.check_finite(found)
    return out_of_fold(len(bench.task.image_ids), found)


def _features(store: Store, specs: Sequence[HeadSpec], device: str) -> dict[str, torch.Tensor]:
    """(n, d) by tap, feature maps flattened."""
    found = {}
    for spec in specs:
        tap = tap_of(spec)
        if tap not in store.taps:
            raise UsageError(
                f"{store.path} has no {tap!r} features, which a {spec.kind} head works on; it has "
                f"{', '.join(store.taps)}."
            )
        if tap not in found:
            found[tap] = torch.from_numpy(store.features(tap).reshape(len(store), -1)).to(device)
    return found


def _targets(task: Task) -> Targets:
    return Targets(task.labels[None], len(task.classes), task.positive)


def _positives(task: Task, rows: Array, logits: Array) -> tuple[Array, Array]:
    """(n,) whether a row is of the positive class, and the probability of that."""
    return task.labels[rows] == task.positive, metrics.probabilities(logits)[:, task.positive]


# --- what is said of them ---------------------------------------------------------------------------------------------


class _Said:
    """The numbers of the winner. Its construction is the moment at which the rows of `test` are read."""

    def __init__(
        self, bench: Bench, spec: HeadSpec, made: _Made, nested: tuple[Array, Array] | None, threshold: float | None
    ) -> None:
        self._bench, self._task, self.threshold = bench, bench.task, threshold
        self.sides: dict[str, tuple[Array, Array]] = {
            TRAIN: (made.train, self._logits(spec, made, made.train)),
            VAL: (made.val_rows, made.val_logits),
        }
        if nested:
            self.sides[OUTER] = nested
        test = bench.protocol.test
        if len(test):
            self.sides[TEST] = (test, self._logits(spec, made, test))
        self._made = made

    def _logits(self, spec: HeadSpec, made: _Made, rows: Array) -> Array:
        x = self._bench.x[tap_of(spec)][torch.from_numpy(rows).to(self._bench.x[tap_of(spec)].device)].cpu().numpy()
        return scoring.logits(spec, made.final.tensors, x, len(self._task.classes), self._task.positive)

    def metrics(self, chose: list[str]) -> dict[str, Any]:
        """By side: the numbers at 0.5, with intervals where the side was not learnt from; None without test rows."""
        found: dict[str, Any] = {TEST: None}
        for side, (rows, logits) in self.sides.items():
            found[side] = numbers(self._task, rows, logits)
            if side != TRAIN:
                found[side]["intervals"] = spread(self._task, self._bench.protocol, rows, logits)
            if self._made.temperature is not None:
                found[side]["calibrated"] = self._calibrated(rows, logits, self._made.temperature)
        found[VAL]["chose"] = chose
        return found

    def _calibrated(self, rows: Array, logits: Array, temperature: float) -> dict[str, Any]:
        cooled = logits / temperature
        found = numbers(self._task, rows, cooled)
        points = metrics.reliability(self._task.labels[rows], cooled, self._task.positive)
        return {**{name: found[name] for name in ("loss", "brier", "ece")}, "reliability": points}

    def at_operating_point(self, rule: Any) -> dict[str, Any]:
        """The threshold, and the numbers of rows it was chosen on and of those it was not."""
        found: dict[str, Any] = {"rule": str(rule), "threshold": self.threshold, "chosen_on": VAL}
        for side, (rows, logits) in self.sides.items():
            if side in (VAL, TEST):
                found[side] = numbers(self._task, rows, logits, self.threshold)
                found[side]["intervals"] = spread(self._task, self._bench.protocol, rows, logits, self.threshold)
        return found

    def notes(self, ranked: Sequence[Candidate]) -> list[str]:
        """What a reader of the numbers has to know."""
        notes = []
        if len(ranked) > 1 and TEST not in self.sides and OUTER not in self.sides:
            notes.append(
                f"the val rows chose the best of {len(ranked)} specs, so their numbers are too good; for numbers of "
                f"rows that chose nothing give a test split, or --nested"
            )
        if TEST in self.sides and (words := self._disagreement()):
            notes.append(words)
        return notes

    def _disagreement(self) -> str:
        before = {
            side: spread(self._task, self._bench.protocol, *self.sides[side]).get("auroc") for side in (VAL, TEST)
        }
        val, test = before[VAL], before[TEST]
        if val is None or test is None or (val[0] <= test[1] and test[0] <= val[1]):
            return ""
        at = {side: numbers(self._task, *self.sides[side])["auroc"] for side in (VAL, TEST)}
        return (
            f"validation and test disagree beyond their intervals: AUROC {at[VAL]:.3f} [{val[0]:.3f}, {val[1]:.3f}] "
            f"and {at[TEST]:.3f} [{test[0]:.3f}, {test[1]:.3f}]. The test images are unlike the others, and validation "
            f"does not say how the head does on them"
        )


def _chose(ranked: Sequence[Candidate], rule: Any) -> list[str]:
    """What the val rows chose, so that their numbers are not those of rows that chose nothing."""
    return [*(["head"] if len(ranked) > 1 else []), *(["operating_point"] if rule else [])]


def _baselines(bench: Bench, spec: HeadSpec, made: _Made, report: ReportSpec, device: str) -> dict[str, Any]:
    """Scored on test where there is one, on val otherwise."""
    protocol = bench.protocol
    on_test = len(protocol.test) > 0
    rows = protocol.test if on_test else made.val_rows
    fold = Fold(made.train, rows, 0, 0) if on_test else protocol.folds[0]
    final = Fold(made.train, protocol.test, 0, 0)
    found: dict[str, Any] = {
        "on": TEST if on_test else VAL,
        "majority": baselines.majority(bench.task, made.train, rows),
    }
    if report.permutations:
        found["permuted_labels"] = baselines.permuted(bench, spec, fold, report.permutations)
    for path in report.compare:
        told = baselines.other_store(path, bench.task, protocol, spec, final, bench.targets, device)
        found.setdefault("other_stores", []).append(told)
    return found


def _check_held(task: Task, protocol: Protocol, rule: Any) -> None:
    """Before anything is trained: a threshold needs held rows of both classes."""
    held = np.concatenate([fold.held for fold in protocol.folds])
    if rule:
        n = task.counts(held).tolist()
        if 0 in n:
            raise UsageError(
                f"an operating point is chosen on held rows, and those are {n[0]} {task.classes[0]} and {n[1]} "
                f"{task.classes[1]}. Choose others with --val-fraction or --folds."
            )


def _tell_near(task: Task, protocol: Protocol, split: SplitSpec, on_note: Callable[[str], None]) -> None:
    if split.near_duplicates is None:
        return
    pairs, cosines = protocol.near
    shown = "; ".join(
        f"{task.image_ids[i]} and {task.image_ids[j]} ({cosine:.4f})"
        for (i, j), cosine in list(zip(pairs.tolist(), cosines.tolist(), strict=True))[:_NEAR_SHOWN]
    )
    first = f" The first: {shown}." if len(pairs) else ""
    on_note(f"{len(pairs):,} pair(s) of vectors have a cosine of {split.near_duplicates:g} or more.{first}")


# --- what is written --------------------------------------------------------------------------------------------------


def _key(
    store: Store,
    specs: Sequence[HeadSpec],
    task: Task,
    protocol: Protocol,
    split: SplitSpec,
    report: ReportSpec,
    others: list[str],
) -> Json:
    """Everything that decides the result of a training: two with the same key are the same Run."""
    known = [(task.image_ids[i], task.labels[i].tolist()) for i in task.known]
    labels = [
        (name, [None if v != v else v for v in label] if isinstance(label, list) else label) for name, label in known
    ]
    names = [path.name for path in report.compare]
    asked = {**asdict(report), "compare": dict(zip(names, others, strict=True))}
    drawn = {name: getattr(split, name) for name in ("nested", "group_by", "near_duplicates", "seed")}
    return {
        "heads": [spec.used() for spec in specs],
        "classes": task.classes,
        "task": "findings" if task.has_findings else "classes",
        "positive": task.classes[task.positive],
        "asked": {**asked, "split": drawn},
        "identity_sha256": store.identity_sha256,
        "content_sha256": digest_json(task.content),
        "split_sha256": protocol.record(task.image_ids)["sha256"],
        "labels_sha256": digest_json(labels),
    }


def _tables(
    bench: Bench, ranked: Sequence[Candidate], report: ReportSpec, made: _Made, said: _Said
) -> dict[str, Table]:
    tables = {"predictions.csv": _predictions(bench, made, said)}
    if history := _mean_history([each.history for each in made.folds]):
        names = list(history[0])
        tables["history.csv"] = (names, runs.rounded([[row[name] for name in names] for row in history]))
    if ranked:
        tables["sweep.csv"] = _sweep(ranked, report.select)
    pairs, cosines = bench.protocol.near
    if len(pairs):
        ids = bench.task.image_ids
        rows = [[ids[i], ids[j], c] for (i, j), c in zip(pairs.tolist(), cosines.tolist(), strict=True)]
        tables["near_duplicates.csv"] = (("image_id", "near", "cosine"), runs.rounded(rows))
    return tables


def _mean_history(histories: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Per epoch the mean over the folds that were still training."""
    found = []
    for epoch in range(max(len(history) for history in histories)):
        points = [history[epoch] for history in histories if epoch < len(history)]
        found.append({name: float(np.mean([point[name] for point in points])) for name in points[0]})
    return found


def _sweep(ranked: Sequence[Candidate], select: str) -> Table:
    """A line per spec: rank, what differs, the metric that selects over folds and seeds, the means of others."""
    fields = [name for name in varied([each.spec for each in ranked]) if name != "seed"]
    sign = -1.0 if select == "loss" else 1.0
    header = ["rank", *fields, "n_fits", *(f"{select}_{what}" for what in ("mean", "std", "min", "max"))]
    header += [name for name in selection.SHOWN if name != select]
    rows = []
    for place, each in enumerate(ranked, start=1):
        used, scores = each.spec.used(), sign * np.array(each.scores)
        finite = np.isfinite(scores).all()
        about = [float(f(scores)) if finite else "" for f in (np.mean, np.std, np.min, np.max)]
        chosen = [_cell(used.get(name, "")) for name in fields]
        rest = [each.means.get(name, "") for name in header[len(fields) + 6 :]]
        rows.append([place, *chosen, len(scores), *about, *rest])
    return header, runs.rounded(rows)


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _predictions(bench: Bench, made: _Made, said: _Said) -> Table:
    """A line per row and side: image_id, split, fold, label, prediction, probability of each class or finding."""
    task = bench.task
    fold_of = np.full(len(task.image_ids), "", dtype=object)
    held = np.concatenate([each.held for each in bench.protocol.folds])
    if len(bench.protocol.folds) > 1 and len(np.unique(held)) == len(held):  # repeats have no one fold for a row
        for each in bench.protocol.folds:
            fold_of[each.held] = str(each.number)
    at = said.threshold
    header = ["image_id", "split", "fold", "label", "prediction", *(["at_operating_point"] if at is not None else [])]
    rows: list[list[object]] = []
    for side, (numbers_of, logits) in said.sides.items():
        p = expit(logits.astype(np.float64)) if task.has_findings else metrics.probabilities(logits)
        for j, i in enumerate(numbers_of.tolist()):
            fold = fold_of[i] if side == VAL else ""
            names = [task.image_ids[i], side, fold, _label(task, task.labels[i]), _call(task, p[j])]
            called = [_called(task, p[j], at)] if at is not None else []
            rows.append([*names, *called, *(f"{value:.9g}" for value in p[j])])
    return [*header, *(f"p_{name}" for name in task.classes)], rows


def _label(task: Task, label: Any) -> str:
    if not task.has_findings:
        return task.classes[int(label)]
    return " ".join("" if v != v else str(int(v)) for v in label)


def _call(task: Task, p: Array) -> str:
    if task.has_findings:
        return " ".join(str(int(value >= 0.5)) for value in p)
    return task.classes[int(p.argmax())]


def _called(task: Task, p: Array, threshold: float) -> str:
    return task.classes[task.positive if p[task.positive] >= threshold else 1 - task.positive]


def _save(run_path: Path, record: Json, made: _Made, tables: dict[str, Table], bench: Bench) -> Run:
    spec, protocol = record["head"], bench.protocol
    files = {"split.json": (json.dumps(protocol.record(bench.task.image_ids)) + "\n").encode()}
    if "history.csv" in tables:
        names, rows = tables["history.csv"]
        history = [dict(zip(names, row, strict=True)) for row in rows]
        how = f", lr {spec['lr']:g}, class weights {spec['class_weights']}"
        over = f", mean of {len(protocol.folds)} folds" if len(protocol.folds) > 1 else ""
        title = f"{spec['kind']} head on {record['store']['name']}{how}{over}"
        files["curves.png"] = figures.curves(history, title)  # type: ignore[arg-type]
    return runs.save(run_path, record, made.final.tensors, tables, files)
