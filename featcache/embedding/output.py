"""One store of a pass: its lock and its parts, what is there already, and what is said of it in the end."""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featcache import durable
from featcache.embedding import kernels
from featcache.embedding.filling import Filling, Submit
from featcache.embedding.network import BOUND, Network, Note
from featcache.embedding.plan import Plan
from featcache.errors import FeatcacheError, IdentityMismatch, NoSpace, UsageError, in_our_words
from featcache.identity import Json, digest_json
from featcache.images.cache import FileCache
from featcache.manifest import Manifest
from featcache.specs import POOLED, AugmentedCopies
from featcache.splits import unnamed_groups
from featcache.store import (
    CANARY,
    DEPTH,
    KERNELS,
    VIEW_PARAMETERS,
    WEIGHTS_FILE,
    WEIGHTS_READ,
    Counts,
    KnownVectors,
    Part,
    PartFolder,
    Store,
    Variety,
    check_identity,
    publish,
)
from featcache.summary import Rows, Summary

_FAILURE_COLUMNS = ("path", "code", "reason", "image_id")
_SHOWN = 5  # images in a message


@dataclass(frozen=True, repr=False)
class Embedded(Summary):
    """What a pass did. The counts add up: found = embedded + reused + failed.

    Attributes:
        counts: embedded are those computed for this store, also by the passes that this one continued; reused those
            whose bytes it held already.
        ungrouped: images that the group pattern did not match.
        duplicates: images of the same bytes as an earlier row's: one forward pass served both.
        n_dropped: images the store held before that are not among these.
        dropped_columns: columns of which the store had values, and these images have none.
        shapes: array of the store -> shape of its rows.
        notes: those of the manifest, what may be its groups where it has none, and what was left out of a file of
            weights; and whether vectors are alike.
        n_equal: different images whose vector is that of another.
    """

    store: Path
    counts: Counts
    skipped: dict[str, int]
    ungrouped: Sequence[str]
    n_resumed: int
    duplicates: Sequence[str]
    n_dropped: int
    dropped_columns: Sequence[str]
    backbone: str
    weights: str
    shapes: Mapping[str, Sequence[int]]
    identity: Json
    seconds: float
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    n_equal: int = 0

    def _summary(self) -> tuple[str, Rows]:
        counts = self.counts
        parts = f"{counts.embedded:,} embedded + {counts.reused:,} reused + {counts.failed:,} failed"
        rows = [
            ("images", f"{counts.found:,} found = {parts}"),
            ("backbone", f"{self.backbone}, {self.weights} weights"),
            ("features", "; ".join(f"{tap} {' × '.join(map(str, shape))}" for tap, shape in self.shapes.items())),
            ("time", f"{self.seconds:.1f} s, {self.images_per_second:,.0f} images/s"),
        ]
        rows += [("note", note) for note in self.notes[:3]]
        return f"Store {self.store}", rows

    @property
    def n_duplicates(self) -> int:
        return len(self.duplicates)

    @property
    def dim(self) -> int:
        """d, the width of the pooled vector."""
        return self.shapes[POOLED][0]

    @property
    def images_per_second(self) -> float:
        """Seconds that this pass took; what an earlier one had finished does not count."""
        return max(0, self.counts.embedded - self.n_resumed) / self.seconds if self.seconds else 0.0

    @property
    def weights_sha256(self) -> str:
        return str(self.identity["backbone"]["weights_sha256"])

    def as_json(self) -> Json:
        """The answer of `featcache embed --json`."""
        return {
            "store": str(self.store),
            "found": self.counts.found,
            "skipped": sum(self.skipped.values()),
            "skipped_by_reason": dict(self.skipped),
            "embedded": self.counts.embedded,
            "reused": self.counts.reused,
            "failed": self.counts.failed,
            "duplicates": self.n_duplicates,
            "equal_vectors": self.n_equal,
            "dropped": self.n_dropped,
            "dropped_columns": list(self.dropped_columns),
            "dim": self.dim,
            "shapes": {tap: list(shape) for tap, shape in self.shapes.items()},
            "backbone": self.backbone,
            "weights_sha256": self.weights_sha256,
            "identity": digest_json(self.identity),
            "precision": self.identity["precision"],
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
            "notes": list(self.notes),
        }


@dataclass
class Output:
    """One store of a pass.

    Attributes:
        cache: what the last pass saw, and what this one is remembered by.
        only_add: whether the store that is there keeps its rows and columns.
        folder: its finished parts.
        lookup: the vectors there are.
        missing: first rows of the parts that are to be made.
        n_resumed: rows that an earlier pass had finished.
        dropped_columns: those of the store of which the manifest has no value.
        planned_ns: when the plan that is being worked on was made, on the clock of the store's file system.
        filling: the part that is being filled.
        environments: environments of the passes that computed the existing vectors.
    """

    store_path: Path
    plan: Plan
    network: Network
    augmentations: AugmentedCopies | None
    cache: FileCache
    only_add: bool = False
    folder: PartFolder = field(init=False)
    lookup: KnownVectors = field(init=False)
    missing: set[int] = field(default_factory=set)
    n_resumed: int = 0
    dropped_columns: Sequence[str] = ()
    planned_ns: int = 0
    filling: Filling | None = None
    environments: Sequence[Json] = ()

    @contextmanager
    def opened(self, part_rows: int, on_note: Note) -> Iterator[None]:
        """Locked, with what is there already looked at, and told."""
        identity = self.network.answer.identity
        self.folder = PartFolder(self.store_path, self.plan.record(identity, part_rows), self._rows())
        with self.folder.locked(), self._lookup() as self.lookup:
            self.planned_ns = self.folder.planned_ns
            self._tell_what_is_there(part_rows, on_note)
            n, finished = len(self.plan), self.folder.finished()
            self.missing = {start for start in range(0, n, part_rows) if start not in finished}
            self.n_resumed = n - sum(min(part_rows, n - start) for start in self.missing)
            yield

    def _rows(self) -> dict[str, np.ndarray[Any, Any]]:
        """Array of the store -> (0, …) of its rows."""
        dtype = self.network.answer.identity["stored_dtype"]
        return {
            tap: np.empty((0, *shape), dtype="float32" if tap == VIEW_PARAMETERS else dtype)
            for tap, shape in self.network.shapes.items()
        }

    def begin(self, rows: range, submit: Submit) -> Filling:
        """The next part."""
        self.filling = Filling(
            rows, self.network, self.augmentations, self.network.answer.identity["stored_dtype"], submit, self.filling
        )
        return self.filling

    def write(self, filling: Filling) -> tuple[Path, Part]:
        """Puts a part on disk once its batches are back: in a thread of its own, while the next one fills."""
        part = filling.part()
        return self.folder.write(part), part

    def publish(self, seconds: float, on_note: Note) -> Embedded:
        """Packs the parts into the store, and keeps what was seen, for the next pass."""
        self.filling = None
        manifest = self.plan.manifest
        failures = _report_failures(self.store_path, manifest, self.folder)
        self.plan.contents = self.folder.contents()
        n_dropped = self.lookup.n_not_among(set(self.plan.contents))
        heads, answer = self.folder.heads(), self.network.answer
        counts = publish(
            self.store_path,
            heads,
            manifest.image_ids,
            manifest.columns,
            answer.identity,
            self.lookup.environments,
            answer.weights,
        )
        self.folder.clear()
        self._remember()
        done = _embedded(self.store_path, self.plan, self.network, counts, on_note)
        lost: Any = {"n_dropped": n_dropped, "dropped_columns": self.dropped_columns}
        return replace(done, n_resumed=self.n_resumed, seconds=seconds, failures=failures, **lost)

    def _remember(self) -> None:
        self.plan.remember(self.cache, self.planned_ns)
        self.network.remember(self.cache)
        self.cache.write(self.store_path)

    @contextmanager
    def _lookup(self) -> Iterator[KnownVectors]:
        """The vectors that are there already."""
        if not self.store_path.exists():
            yield KnownVectors(None, self.folder.old())
            return
        with Store.open(self.store_path) as store:
            check_identity(self.store_path, store.identity, self.network.answer.identity)
            if self.only_add:
                self.plan.manifest = added_to(store, self.plan.manifest)
            here = self.plan.manifest.columns
            self.dropped_columns = [
                n for n, column in store.columns.items() if any(column) and not any(here.get(n, ()))
            ]
            yield KnownVectors(store, self.folder.old())

    def check_kernels(self, on_note: Note) -> None:
        """Lets the network, once an image needs it, raise IdentityMismatch where this machine's vectors in a low
        precision are too unlike those there."""
        check = partial(_check_kernels, self.store_path, self.environments, self.network, on_note)
        self.network.on_low_precision = check

    def _tell_what_is_there(self, part_rows: int, on_note: Note) -> None:
        environments = list(self.lookup.environments)
        for path, head in self.folder.heads().items():
            self.lookup.add_finished(path, head)
            environments += [head.environment] if head.environment else []
        if n_finished := len(self.folder.finished()):
            n_parts = -(-len(self.plan) // part_rows)
            on_note(f"resuming: {n_finished:,} of {n_parts:,} parts are done")
        _tell_of_other_environments(self.store_path, environments, self.network, on_note)
        self.environments = environments


def _embedded(store_path: Path, plan: Plan, network: Network, counts: Counts, on_note: Note) -> Embedded:
    first: dict[str, str] = {}
    rows = zip(plan.manifest.image_ids, plan.contents, strict=True)
    duplicates = [image_id for image_id, content in rows if content and first.setdefault(content, image_id) != image_id]
    answer = network.answer
    with Store.open(store_path) as store:
        groups = unnamed_groups.notes(plan.manifest.columns, plan.manifest.image_ids)
        notes = [*plan.manifest.notes, *groups, *store.weights_notes]
        variety = Variety.of(store)
    alike = variety.notes(network.why_alike()) if variety.is_worth_a_look else variety.notes()
    for note in alike:
        on_note(f"note: {note}")
    return Embedded(
        store=store_path,
        counts=counts,
        skipped=plan.manifest.skipped,
        ungrouped=plan.manifest.ungrouped,
        n_resumed=0,
        duplicates=duplicates,
        n_dropped=0,
        dropped_columns=(),
        backbone=answer.backbone,
        weights=answer.weights,
        shapes=network.shapes,
        identity=answer.identity,
        seconds=0.0,
        notes=[*notes, *alike],
        n_equal=variety.n_equal,
    )


def nothing_new(store_path: Path, plan: Plan, network: Network, on_note: Note) -> Embedded:
    with Store.open(store_path) as store:
        _tell_of_other_environments(store_path, store.environments, network, on_note)
    return _embedded(store_path, plan, network, Counts(embedded=0, reused=len(plan), failed=0), on_note)


def _tell_of_other_environments(
    store_path: Path, environments: Iterable[Json], network: Network, on_note: Note
) -> None:
    """Versions or a device that are not those of the vectors there: worth a word, and no more."""
    here = network.environment
    other_environments = {
        f"{name} {environment.get(name, 'unknown')} (here {here.get(name, 'unknown')})": None
        for environment in environments
        for name in here
        if name not in (WEIGHTS_FILE, WEIGHTS_READ, DEPTH, CANARY, KERNELS)
        if environment.get(name) != here.get(name)
    }
    if other_environments:
        on_note(
            f"{store_path} has vectors made with {', '.join(other_environments)}: they may differ in the last digits."
        )


def _check_kernels(store_path: Path, environments: Iterable[Json], network: Network, on_note: Note) -> None:
    """Refuses to add vectors of a low precision to those of another kind of processor, unless they are as good as the
    same.

    Raises:
        IdentityMismatch: the cosine is below `BOUND`.
    """
    precision = network.answer.identity["precision"]
    measured = [
        environment
        for environment in environments
        if isinstance(environment, dict) and isinstance(environment.get(CANARY), str)
    ]
    here = network.environment
    for environment in measured:
        cosine = kernels.cosine(environment[CANARY], here[CANARY])
        made_with = f"{precision} vectors made with {environment.get(KERNELS, 'other kernels')}"
        if cosine is not None and cosine < BOUND:
            raise IdentityMismatch(
                f"{store_path} holds {made_with}: those made here, with {here[KERNELS]}, have a cosine of only "
                f"{cosine:.6f} with them (at least {BOUND} is needed). Embed on the same kind of "
                f"processor, or embed all images into another store; precision float32 is the same on all."
            )
        if cosine is not None and environment.get(KERNELS) != here[KERNELS]:
            on_note(
                f"note: {store_path} holds {made_with}, and gets others made with {here[KERNELS]}: their cosine is at "
                f"least {cosine:.6f} on images built in for it."
            )


def store_bytes(network: Network, n: int) -> int:
    """About what a store of n images takes: its arrays, names and labels."""
    values = int(np.dtype(network.answer.identity["stored_dtype"]).itemsize)
    return n * (network.row_bytes * values // 4 + 512)


def check_space(outputs: Sequence[Output], n: int) -> None:
    """The parts and the store they are packed into exist side by side for a moment."""
    needed = 2 * sum(store_bytes(output.network, n) for output in outputs)
    folder = outputs[0].store_path.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        n_features = sum(output.network.row_bytes // 4 for output in outputs)
        raise NoSpace(
            f"no space: {n:,} images of {n_features:,} features need about {needed / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free on {folder}. Nothing was computed."
        )


def added_to(store: Store, manifest: Manifest) -> Manifest:
    """The images of a manifest as rows of a store that keeps all it has: where the store has a label, a group or
    another value of an image, that one.

    Raises:
        UsageError: the store has images that the manifest has not, with the first five.
    """
    if lost := sorted(set(store.image_ids) - set(manifest.image_ids)):
        raise UsageError(
            f"{store.path} holds {len(lost):,} images that are not among these: {', '.join(lost[:_SHOWN])}. Keep the "
            f"vectors elsewhere."
        )
    place = {name: i for i, name in enumerate(store.image_ids)}
    rows = [place.get(name) for name in manifest.image_ids]
    columns = dict(manifest.columns)
    for name, column in store.columns.items():
        new = columns.get(name, [""] * len(rows))
        columns[name] = [new[i] if row is None else column[row] for i, row in enumerate(rows)]
    return replace(manifest, columns=columns)


def failures_path(store_path: Path) -> Path:
    """`STORE.h5.failures.csv`, beside the store; there only while the last pass had failures."""
    return store_path.with_name(store_path.name + ".failures.csv")


def is_failures(path: Path) -> bool:
    """Whether there is such a list, of an earlier pass or prediction."""
    header = ",".join(_FAILURE_COLUMNS[:3]).encode("ascii")
    return begins_with(path, header)


def begins_with(path: Path, start: bytes) -> bool:
    """Whether there is a regular file that begins so."""
    if not path.is_file():
        return False
    with in_our_words("reading", path), durable.open_regular(path) as file:
        return file.read(len(start)) == start


def _report_failures(store_path: Path, manifest: Manifest, folder: PartFolder) -> dict[str, tuple[str, str]]:
    """Writes the list of failed images, and stops before an empty store would be published."""
    rows = sorted(folder.failures().items())
    failures = {manifest.image_ids[row]: failure for row, failure in rows}
    path = failures_path(store_path)
    if not failures:
        if is_failures(path):
            path.unlink()
        return failures
    durable.claim(path, is_failures, "list of failures")
    table = [[os.fspath(manifest.paths[row]), *failure, manifest.image_ids[row]] for row, failure in rows]
    durable.write_csv(path, _FAILURE_COLUMNS, table)
    if len(failures) == len(manifest):
        image_id, (_, reason) = next(iter(failures.items()))
        message = f"none of {len(manifest):,} images could be embedded. " if len(manifest) > 1 else ""
        raise FeatcacheError(f"{message}{image_id!r}: {reason}. See {path}.")
    return failures
