"""What a Run says of studies that it has not seen: logits by the heads that learnt from no image of theirs.

A head has seen a study if it has learnt from an image of it, of another study of the same patient, or from the same
bytes under another name. The head that a Run keeps speaks of those it has not seen, which are the rows of `test`, those
held out of a single division, and those that took no part; of all others the heads of its folds that have not seen
them, their logits averaged, as are those of the images of a study. Where no head is left there are no logits.
Letters: n rows of the store, s studies, m images of studies, c classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.errors import IdentityMismatch, UsageError
from featcache.fusion.join import Division, StudyTable
from featcache.fusion.reader import FINAL_HEAD, FOLD_HEADS, NO_HEAD
from featcache.heads import features, inference
from featcache.identity import Json
from featcache.runs import Run
from featcache.runs.backbone import differences, said_by
from featcache.splits import TEST, TRAIN, VAL
from featcache.store import Store

Array = np.ndarray[Any, Any]
Head = Mapping[str, Array]

_SHOWN = 5


@dataclass(frozen=True)
class Learnt:
    """What a Run has learnt from, in the rows of a store.

    Attributes:
        run: it.
        division: sides, groups and labels of the rows that took part.
        fold: (n,) the fold, of the first repeat, that held a row; -1 where none did.
        final: the head that is kept, and (n,) bool of the rows it has seen.
        folds: the same of each fold's head; none where they were not kept.
    """

    run: Run
    division: Division
    fold: Array
    final: tuple[Head, Array]
    folds: Sequence[tuple[Head, Array]]

    def about(self) -> Json:
        """What a reader of the logits has to know."""
        record = self.run.record
        kept = ("classes", "positive", "task", "temperature", "head", "split_sha256", "images_sha256")
        with said_by(self.run):
            point = record["operating_point"]
            return {
                **{name: record[name] for name in kept},
                "operating_point": {"rule": point["rule"], "threshold": point["threshold"]} if point else None,
                "name": self.run.path.name,
                "tta": record["asked"]["tta"],
                "n_folds": len(self.folds) or 1,
            }

    def notes(self, store: Store) -> tuple[str, ...]:
        """Where heads that have not seen a study act on vectors of a network that may have."""
        if store.weights_source != "run" or self.run.record.get("n_trainable"):  # that network is the Run's own
            return ()
        words = (
            "the network of these vectors was itself trained by featcache; for studies in its training set no "
            "logits are of something that has not seen them"
        )
        return (words,)


@dataclass(frozen=True)
class UnseenLogits:
    """Logits of studies.

    Attributes:
        logits: (s, c) float32, NaN where there are none.
        head: (s,) uint8 of NO_HEAD, FINAL_HEAD, FOLD_HEADS.
        fold: (s,) int64, the fold that held all images of a study, -1 where none did.
    """

    logits: Array
    head: Array
    fold: Array


def learnt(run: Run, store: Store) -> Learnt:
    """What a Run has learnt from.

    Raises:
        IdentityMismatch: the Run's head is for other vectors than those of the store.
        UsageError: the Run has learnt from images that the store has not, or is of an earlier featcache.
        CorruptStore: a file of the Run is damaged.
    """
    final = run.weights()  # first: a head says whether the record is its own
    with said_by(run):
        request = run.record["asked"]
        averages, refitted = bool(request["tta"]), bool(request.get("refit_all"))
    if lines := differences(run, store.identity, tta=averages):
        fields = "\n  ".join(lines)
        raise IdentityMismatch(
            f"{run.path} was trained on other vectors than those of {store.path}:\n  {fields}\nTrain it on this store."
        )
    rows, protocol = _rows(run, store), run.protocol()
    n, is_one = len(store), protocol.is_hold_out
    is_training = _mask(n, rows[protocol.folds[0].train if is_one and not refitted else protocol.rows])
    heads = run.fold_weights()
    if len(heads) not in (0, len(protocol.folds)):
        raise UsageError(f"{run.path} has {len(heads)} heads of {len(protocol.folds)} folds. Make the Run again.")
    fold = np.full(n, -1, dtype=np.int64)
    for held_out in protocol.folds:
        fold[rows[held_out.val]] = held_out.number if held_out.repeat == 0 else fold[rows[held_out.val]]
    by_fold = [(head, _mask(n, rows[fold.train])) for head, fold in zip(heads, protocol.folds, strict=False)]
    return Learnt(run, _division(run, rows, n), fold, (final, is_training), by_fold)


def unseen_logits(learnt: Learnt, store: Store, table: StudyTable) -> UnseenLogits:
    """The logits of studies, each by heads that have not seen it.

    Raises:
        UsageError: the store lacks the vectors or views that the head works on.
        CorruptStore: the store is damaged.
    """
    spec, record = learnt.run.spec, learnt.run.record
    average = bool(record["asked"]["tta"])
    features.check(store, [spec], average)
    x = features.scored(features.load(store, [spec], average, "cpu")[features.tap_of(spec)], average)[
        table.rows
    ].numpy()
    c = len(record["classes"])
    unit = table.row_groups[table.rows]  # (m,)
    total, times = np.zeros((len(table), c)), np.zeros(len(table), dtype=np.int64)
    head_of = np.full(len(table), NO_HEAD, dtype=np.uint8)
    for kind, heads in ((FINAL_HEAD, [learnt.final]), (FOLD_HEADS, learnt.folds)):
        left = np.isin(table.study, np.flatnonzero(head_of == NO_HEAD))
        for head, is_training in heads:
            clean = np.flatnonzero(left & ~np.isin(unit, table.row_groups[is_training]))
            z = inference.logits(spec, head, x[clean], c, record["classes"].index(record["positive"]))
            np.add.at(total, table.study[clean], z)
            np.add.at(times, table.study[clean], 1)
            head_of[table.study[clean]] = kind
    logits = np.where(times[:, None] > 0, total / np.maximum(times, 1)[:, None], np.nan)
    return UnseenLogits(logits.astype(np.float32), head_of, _fold_of_studies(learnt.fold, table))


def _rows(run: Run, store: Store) -> Array:
    """The row of the store that each image of the Run is."""
    images = run.images()
    place, digests = {name: i for i, name in enumerate(store.image_ids)}, store.content_sha256
    pairs = zip(images.image_ids, images.content_sha256, strict=True)
    missing = [name for name, content in pairs if name not in place or digests[place[name]] != content]
    if missing:
        examples = ", ".join(map(repr, missing[:_SHOWN]))
        raise UsageError(
            f"{run.path} was trained on {len(missing):,} image(s) that {store.path} has not, or has with other bytes, "
            f"the first {examples}: which studies were in its training set is unknown. Train it on this store."
        )
    return np.array([place[name] for name in images.image_ids], dtype=np.int64)


def _division(run: Run, rows: Array, n: int) -> Division:
    """Sides, groups and labels of the rows that took part."""
    protocol, images, record = run.protocol(), run.images(), run.record
    sides, groups = [""] * n, [""] * n
    learnt_from = VAL if protocol.is_hold_out else TRAIN
    named = [(protocol.rows, learnt_from), (protocol.test, TEST)]
    named += [(protocol.folds[0].train, TRAIN)] if protocol.is_hold_out else []
    for numbers, side in named:
        for row in rows[numbers].tolist():
            sides[row] = side
    for row, group in zip(rows.tolist(), images.groups.tolist(), strict=True):
        groups[row] = str(group)
    labels = images.labels if images.labels.ndim == 2 else None
    names = record["classes"] if labels is not None else ["label"]
    columns = {name: [""] * n for name in names}
    for i, row in enumerate(rows.tolist()):
        if labels is None:
            columns["label"][row] = record["classes"][int(images.labels[i])]
        else:
            for name, value in zip(names, labels[i].tolist(), strict=True):
                columns[name][row] = "" if value != value else f"{value:.0f}"
    return Division(sides, groups, columns)


def _fold_of_studies(fold: Array, table: StudyTable) -> Array:
    low, high = np.full(len(table), np.iinfo(np.int64).max), np.full(len(table), -1, dtype=np.int64)
    np.minimum.at(low, table.study, fold[table.rows])
    np.maximum.at(high, table.study, fold[table.rows])
    return np.where(low == high, high, -1)


def _mask(n: int, rows: Array) -> Array:
    mask = np.zeros(n, dtype=bool)
    mask[rows] = True
    return mask
