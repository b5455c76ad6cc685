"""The pass: every image once through the frozen backbone, into a store.

Worker processes read, hash and decode ahead while the network runs; finished rows go to disk in parts, so that a
stopped pass loses at most one of them; at the end the parts are packed into the store in one step. Memory holds the
images in flight (workers and read-ahead) and one part, whatever the number of images. A pass that finds every vector
there imports no torch and ends within a second or two.
"""

import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from featcache import durable
from featcache.errors import FeatcacheError, InputOutputError, NoSpace, UsageError, in_our_words
from featcache.images import DecodeSpec
from featcache.manifest import Manifest
from featcache.network import BATCH_ROWS, Network, Outdated
from featcache.plan import Plan
from featcache.provenance import Json, digest_json
from featcache.request import BackboneSpec, Request
from featcache.seen import Answer, Seen
from featcache.store import (
    EMBEDDED,
    FAILED,
    POOLED,
    REUSED,
    STORED_DTYPES,
    Counts,
    KnownVectors,
    Part,
    PartFolder,
    Store,
    check_identity,
    publish,
)
from featcache.workers import TIMEOUT_S, Decoders, Prepared

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]  # rows done, rows in all
Note = Callable[[str], None]  # a sentence for people, while it happens

_PART_BYTES = 16 << 20
_PART_ROWS = (32, 256)
_MAX_NAME = 220  # bytes; file systems stop at 255, and `.failures.csv` and the temporary name come on top
_MAX_NOT_FINITE = 0.01  # share of rows; beyond it the network or its weights are broken, not the images
_ROWS_WORTH_A_DECODER = 32  # a process takes a quarter of a second to start
_HOPELESS = 200  # images that fail one after another from the start: this is not what was meant
_MAX_ROUNDING = 2**-10  # of a vector by float16, relative; where values are not too small for it, it is below 2**-11


@dataclass(frozen=True)
class Embedded:
    """What a pass did. The counts add up: found = embedded + reused + failed.

    Attributes:
        counts: embedded are those computed for this store, also by the passes that this one continued; reused those
            whose bytes it held already.
        n_duplicates: rows whose image has the same bytes as an earlier row's: one forward pass served both.
        n_dropped: images the store held before that are not among these.
    """

    store: Path
    counts: Counts
    skipped: dict[str, int]
    n_ungrouped: int
    n_resumed: int
    n_duplicates: int
    n_dropped: int
    backbone: str
    weights: str
    dim: int
    identity: Json
    seconds: float
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """Of this pass; what an earlier one had finished does not count."""
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
            "embedded": self.counts.embedded,
            "reused": self.counts.reused,
            "failed": self.counts.failed,
            "duplicates": self.n_duplicates,
            "dropped": self.n_dropped,
            "dim": self.dim,
            "backbone": self.backbone,
            "weights_sha256": self.weights_sha256,
            "identity": digest_json(self.identity),
            "precision": self.identity["precision"],
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
        }


def embed(
    manifest: Manifest,
    store_path: Path,
    spec: BackboneSpec,
    *,
    decode: DecodeSpec = DecodeSpec(),
    dtype: str = "float32",
    device: str = "auto",
    n_workers: int | None = None,
    part_rows: int | None = None,
    timeout_s: float = TIMEOUT_S,
    rehash: bool = False,
    strict: bool = False,
    on_progress: Progress = lambda done, total: None,
    on_note: Note = lambda text: None,
) -> Embedded:
    """Embeds the images of a manifest into a store. Images whose bytes the store already holds are not computed again,
    and files that have not changed since they were last read are not read again.

    Args:
        manifest: what to embed.
        store_path: the `.h5` to write; next to it `STORE.h5.partial/` while the pass runs, `STORE.h5.failures.csv` if
            images failed, and `.STORE.h5.seen`, which only saves time.
        spec: which backbone.
        decode: how files become pixels.
        dtype: what vectors are stored as, float32 or float16.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        n_workers: decoding processes; None for one per core.
        part_rows: rows per part file; None chooses by width. Changes no byte of the store; below 16, the network takes
            as long as for 16.
        timeout_s: what one image may take to be read and decoded.
        rehash: read every file, whatever its times say.
        strict: the first image that fails ends the pass.
        on_progress: called when rows are safely on disk.
        on_note: called with what a person should know while it happens.

    Raises:
        IdentityMismatch: the store at this path holds other vectors.
        StoreLocked: another process is writing it.
        WeightsUnavailable, UsageError: before anything is written.
        NoSpace, AccessDenied, InputOutputError: everything finished is kept; the same call continues.
    """
    if part_rows is not None and part_rows < 1:
        raise UsageError(f"--part-rows must be at least 1, got {part_rows}.")
    if dtype not in STORED_DTYPES:
        raise UsageError(f"--dtype {dtype}: {' or '.join(STORED_DTYPES)} is expected.")
    request, seen = Request(spec, decode, dtype), Seen.read(store_path)

    def attempt() -> Embedded:
        _check_name(store_path)
        network = Network(request, device, seen, on_note)
        plan = Plan.of(manifest, Seen() if rehash else seen)
        if plan.is_published(store_path, network.answer.identity):
            return _nothing_new(store_path, plan, network, on_note)
        n_decoders, rows = n_workers or os.cpu_count() or 1, part_rows or default_part_rows(network.answer.dim)
        work = _Pass(store_path, plan, network, decode, rows, n_decoders, timeout_s, strict, on_progress, on_note)
        done = work.run()
        plan.remember(seen, work.planned_ns)
        network.remember(seen)
        seen.write(store_path)
        return done

    with in_our_words("writing", store_path):
        try:
            return attempt()
        except Outdated:  # the weights of a name are others now, and no file told so: forget, and learn it by loading
            seen.answers.clear()
            return attempt()


def _check_name(store_path: Path) -> None:
    """A file name, with room for the names that are made from it."""
    if store_path.name in ("", "..") or store_path.is_dir():
        raise UsageError(f"-o {store_path}: give the name of a file, such as {store_path / 'chest.h5'}.")
    if len(os.fsencode(store_path.name)) > _MAX_NAME:
        raise UsageError(f"-o: the name {store_path.name[:40]}… is longer than {_MAX_NAME} bytes.")


def default_part_rows(n_features: int) -> int:
    """Rows per part: about 16 MiB of vectors, from 32 to 256 rows, so that a stop costs seconds and not minutes."""
    low, high = _PART_ROWS
    return max(low, min(high, _PART_BYTES // (4 * n_features) // low * low))


# --- the work ---------------------------------------------------------------------------------------------------------


@dataclass
class _Pass:
    """One pass, from lock to published store.

    Attributes:
        planned_ns: when the plan that is being worked on was made, on the clock of the store's file system.
    """

    store_path: Path
    plan: Plan
    network: Network
    decode: DecodeSpec
    part_rows: int
    n_decoders: int
    timeout_s: float
    strict: bool
    on_progress: Progress
    on_note: Note
    planned_ns: int = 0

    def run(self) -> Embedded:
        """Computes what is missing and publishes."""
        manifest, identity = self.plan.manifest, self.network.answer.identity
        folder = PartFolder(self.store_path, self.plan.record(identity, self.part_rows))
        with folder.locked(), self._known(folder) as known:
            self.planned_ns = folder.planned_ns
            _check_space(self.store_path, len(self.plan), self.network.answer)
            self._tell_what_is_there(folder, known)
            n_resumed, seconds = self._fill(folder, known)
            failures = _report_failures(self.store_path, manifest, folder)
            self.plan.contents = folder.contents()
            n_dropped = known.n_not_among(set(self.plan.contents))
            counts = publish(
                self.store_path, folder.heads(), manifest.image_ids, manifest.columns, identity, known.environments
            )
            folder.clear()
        done = _embedded(self.store_path, self.plan, self.network, counts)
        return replace(done, n_resumed=n_resumed, n_dropped=n_dropped, seconds=seconds, failures=failures)

    @contextmanager
    def _known(self, folder: PartFolder) -> Iterator[KnownVectors]:
        """The vectors that are there already."""
        if not self.store_path.exists():
            yield KnownVectors(None, folder.old())
            return
        with Store.open(self.store_path) as store:
            check_identity(self.store_path, store.identity, self.network.answer.identity)
            yield KnownVectors(store, folder.old())

    def _tell_what_is_there(self, folder: PartFolder, known: KnownVectors) -> None:
        environments = list(known.environments)
        for path, head in folder.heads().items():
            known.add_finished(path, head)
            environments += [head.environment] if head.environment else []
        if n_finished := len(folder.finished()):
            n_parts = -(-len(self.plan) // self.part_rows)
            self.on_note(f"resuming: {n_finished:,} of {n_parts:,} parts are done")
        _tell_of_other_environments(self.store_path, environments, self.network, self.on_note)

    def _fill(self, folder: PartFolder, known: KnownVectors) -> tuple[int, float]:
        """Writes the parts that are missing. Returns (rows that were there already, seconds)."""
        started = time.perf_counter()
        n = len(self.plan)
        finished = folder.finished()
        missing = [range(i, min(i + self.part_rows, n)) for i in range(0, n, self.part_rows) if i not in finished]
        done = n_resumed = n - sum(map(len, missing))
        self.on_progress(done, n)
        with self._prepared([row for rows in missing for row in rows], known) as prepared:
            for rows in missing:
                part = self._part(rows.start, islice(prepared, len(rows)), len(rows), known)
                known.add_finished(folder.write(part), part)
                done += len(rows)
                self.on_progress(done, n)
        return n_resumed, time.perf_counter() - started

    @contextmanager
    def _prepared(self, rows: Sequence[int], known: KnownVectors) -> Iterator[Iterator[Prepared]]:
        """The images of these rows, in their order, decoded at most four batches ahead of whoever takes them."""
        n_decoders = min(self.n_decoders, -(-len(rows) // _ROWS_WORTH_A_DECODER) or 1)
        pool = ThreadPoolExecutor(n_decoders, thread_name_prefix="decode")
        try:
            with Decoders(self.network.transform, self.decode, self.timeout_s) as decoders:
                work = partial(self._prepare, decoders=decoders, known=known)
                yield self._watched(rows, _in_order(pool, work, iter(rows), 4 * BATCH_ROWS + n_decoders))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, row: int, decoders: Decoders, known: KnownVectors) -> Prepared:
        """One image, in a thread that waits for its worker. One bad image is a failed row, never the end."""
        manifest, content = self.plan.manifest, self.plan.contents[row]
        if reason := manifest.refused.get(manifest.image_ids[row]):
            return Prepared(failure=("outside", reason))
        if content in known:
            return Prepared(content)
        return decoders.prepare(manifest.paths[row], self.plan.stamps[row], known)

    def _watched(self, rows: Sequence[int], prepared: Iterator[Prepared]) -> Iterator[Prepared]:
        """Passes images on, and ends a pass that is strict, or hopeless from its start."""
        failed: Counter[str] = Counter()
        any_good = len(rows) < len(self.plan)
        for row, image in zip(rows, prepared, strict=True):
            if image.failure is None:
                any_good = True
            elif self.strict:
                name = self.plan.manifest.image_ids[row]
                raise FeatcacheError(f"--strict: {name!r}: {image.failure[1]}. What was finished before it is kept.")
            else:
                failed[image.failure[1]] += 1
            if not any_good and failed.total() == _HOPELESS:
                (reason, n), *_ = failed.most_common(1)
                raise FeatcacheError(f"the first {_HOPELESS} images all failed, {n} with: {reason}. Nothing was kept.")
            yield image

    def _part(self, start: int, prepared: Iterable[Prepared], m: int, known: KnownVectors) -> Part:
        """The m rows from `start` on, computed in batches of one shape; no batch reaches into the next part, so where a
        pass was stopped changes no vector. Images with the same bytes are computed once."""
        rows = _Rows(m, self.network.answer.dim)
        for row, image in enumerate(prepared):
            rows.take(row, image, known)
            if len(rows.batch) == BATCH_ROWS:
                rows.compute(self.network)
        rows.compute(self.network)
        return rows.part(start, self.network)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], Prepared], rows: Iterator[int], n_ahead: int
) -> Iterator[Prepared]:
    """`map(work, rows)` in threads, at most so many ahead."""
    pending: deque[Future[Prepared]] = deque(pool.submit(work, row) for row in islice(rows, n_ahead))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(work, row) for row in islice(rows, 1))
        yield result


class _Rows:
    """The rows of a part while they fill.

    Attributes:
        vectors: (m, d) float32, NaN where there is none yet.
        batch: row -> pixels that wait for the network.
    """

    def __init__(self, m: int, d: int) -> None:
        self.vectors = np.full((m, d), np.nan, dtype=np.float32)
        self.batch: dict[int, Array] = {}
        self._digests: list[str] = []
        self._origin = np.full(m, EMBEDDED, dtype=np.uint8)
        self._failures: dict[int, tuple[str, str]] = {}
        self._first: dict[str, int] = {}  # digest -> the first row of this part that has it
        self._twin: dict[int, int] = {}  # row -> the first row with the same bytes
        self._computed = 0

    def take(self, row: int, image: Prepared, known: KnownVectors) -> None:
        """Notes an image: its failure, its known vector, its twin in this part, or its pixels for the next batch."""
        self._digests.append(image.digest)
        if image.failure is not None:
            self._failures[row] = image.failure
        elif image.digest in known:
            self.vectors[row] = known.vector(image.digest)
            self._origin[row] = REUSED if known.is_reused(image.digest) else EMBEDDED
        elif image.digest in self._first:
            self._twin[row] = self._first[image.digest]
        else:
            assert image.pixels is not None
            self._first[image.digest] = row
            self.batch[row] = image.pixels

    def compute(self, network: Network) -> None:
        """Puts the waiting pixels through the network."""
        if self.batch:
            self.vectors[list(self.batch)] = network.vectors(list(self.batch.values()))
            self._computed += len(self.batch)
            self.batch = {}

    def part(self, start: int, network: Network) -> Part:
        """The finished part."""
        for row, first in self._twin.items():
            self.vectors[row] = self.vectors[first]
        self._failures.update(_not_finite(self.vectors, self._failures))
        self._origin[list(self._failures)] = FAILED
        features = {POOLED: _stored(self.vectors, network.answer.identity["stored_dtype"])}
        environment = network.environment if self._computed else None
        return Part(start, features, self._digests, self._origin, self._failures, environment)


def _not_finite(vectors: Array, failures: Mapping[int, object]) -> dict[int, tuple[str, str]]:
    bad = [int(row) for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)) if row not in failures]
    if len(bad) > max(1, _MAX_NOT_FINITE * len(vectors)):
        raise InputOutputError(
            f"the network gave values that are not finite for {len(bad)} of {len(vectors)} images: its weights or "
            f"--mean and --std are broken. Nothing of this part was kept."
        )
    return dict.fromkeys(bad, ("not-finite", "the network gave a value that is not finite"))


def _stored(vectors: Array, dtype: str) -> Array:
    """The vectors as they will lie in the store.

    Raises:
        UsageError: float16 cannot hold them: h5py would write infinities, or dust, without a word.
    """
    if dtype == "float32":
        return vectors
    with np.errstate(over="ignore"):
        stored = vectors.astype(dtype)
    good = np.isfinite(vectors).all(axis=1)
    size = np.linalg.norm(vectors[good], axis=1)
    lost = np.linalg.norm(vectors[good] - stored[good].astype(np.float32), axis=1)
    if not np.isfinite(stored[good]).all():
        raise UsageError(
            f"float16 ends at 65,504, and these vectors reach {np.abs(vectors[good]).max():,.0f}. Use --dtype float32."
        )
    if (lost > _MAX_ROUNDING * size).any():
        raise UsageError(
            f"float16 would lose up to {np.max(lost / np.maximum(size, 1e-45)):.1%} of these vectors: their values are "
            f"too small for it (the median is {np.median(np.abs(vectors[good])):.1g}). Use --dtype float32."
        )
    return stored


# --- what is told -----------------------------------------------------------------------------------------------------


def _embedded(store_path: Path, plan: Plan, network: Network, counts: Counts) -> Embedded:
    contents = [content for content in plan.contents if content]
    answer = network.answer
    return Embedded(
        store=store_path,
        counts=counts,
        skipped=plan.manifest.skipped,
        n_ungrouped=plan.manifest.n_ungrouped,
        n_resumed=0,
        n_duplicates=len(contents) - len(set(contents)),
        n_dropped=0,
        backbone=answer.backbone,
        weights=answer.weights,
        dim=answer.dim,
        identity=answer.identity,
        seconds=0.0,
    )


def _nothing_new(store_path: Path, plan: Plan, network: Network, on_note: Note) -> Embedded:
    with Store.open(store_path) as store:
        _tell_of_other_environments(store_path, store.environments, network, on_note)
    return _embedded(store_path, plan, network, Counts(embedded=0, reused=len(plan), failed=0))


def _tell_of_other_environments(store_path: Path, held: Iterable[Json], network: Network, on_note: Note) -> None:
    """Versions or a device that are not those of the vectors there: worth a word, and no more."""
    here = network.environment
    others = {
        f"{name} {environment.get(name, 'unknown')} (here {here[name]})": None
        for environment in held
        for name in here
        if environment.get(name) != here[name]
    }
    if others:
        on_note(f"{store_path} has vectors made with {', '.join(others)}: they may differ in the last digits.")


def _check_space(store_path: Path, n: int, answer: Answer) -> None:
    """The parts and the store they are packed into exist side by side for a moment."""
    value_bytes = np.dtype(answer.identity["stored_dtype"]).itemsize
    needed = 2 * n * (value_bytes * answer.dim + 512)
    free = shutil.disk_usage(store_path.parent).free
    if needed > free:
        raise NoSpace(
            f"no space: {n:,} images of {answer.dim:,} features need about {needed / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free on {store_path.parent}. Nothing was computed."
        )


def failures_path(store_path: Path) -> Path:
    """`STORE.h5.failures.csv`, beside the store; there only while the last pass had failures."""
    return store_path.with_name(store_path.name + ".failures.csv")


def _report_failures(store_path: Path, manifest: Manifest, folder: PartFolder) -> dict[str, tuple[str, str]]:
    """Writes the list of failed images, and stops before an empty store would be published."""
    rows = sorted(folder.failures().items())
    failures = {manifest.image_ids[row]: failure for row, failure in rows}
    path = failures_path(store_path)
    if not failures:
        if path.is_file():
            path.unlink()
        return failures
    table = [[os.fspath(manifest.paths[row]), *failure, manifest.image_ids[row]] for row, failure in rows]
    durable.write_csv(path, ["path", "code", "reason", "image_id"], table)
    if len(failures) == len(manifest):
        image_id, (_, reason) = next(iter(failures.items()))
        raise FeatcacheError(f"none of {len(manifest)} images could be embedded. {image_id!r}: {reason}. See {path}.")
    return failures
