"""The pass: every image once through the frozen backbone, into a store.

Threads read, hash and decode ahead while the network runs; finished rows go to disk in parts, so that a stopped pass
loses at most one of them; at the end the parts are packed into the store in one step. Memory holds the images in
flight (threads and read-ahead) and one part, whatever the number of images.
"""

import ctypes
import os
import platform
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache import backbones, devices, durable, images
from featcache.backbones import Backbone, BackboneSpec
from featcache.errors import FeatcacheError, ImageError, InputOutputError, NoSpace, StoreNotFound, UsageError
from featcache.manifest import Manifest
from featcache.provenance import Json, digest_bytes, digest_json, environment
from featcache.store import (
    EMBEDDED,
    FAILED,
    POOLED,
    REUSED,
    Counts,
    Part,
    PartFolder,
    Store,
    check_identity,
    publish,
    read_part,
)

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]  # rows done, rows in all

PIPELINE_VERSION = 1  # raised when a change of code changes vectors in a way no other field of the identity shows
PRECISION = "float32"
BATCH_ROWS = 32
_PART_BYTES = 16 << 20
_PART_ROWS = (32, 256)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_MAX_NAME = 220  # bytes; file systems stop at 255, and `.failures.csv` and the temporary name come on top
_MAX_NOT_FINITE = 0.01  # share of rows; beyond it the network or its weights are broken, not the images


@dataclass(frozen=True)
class Embedded:
    """What a pass did. The counts add up: found = embedded + reused + failed."""

    store: Path
    counts: Counts
    skipped: dict[str, int]
    n_ungrouped: int
    n_resumed: int
    backbone: str
    weights: str
    weights_sha256: str
    dim: int
    identity: str
    precision: str
    seconds: float
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """Of this pass; what an earlier one had finished does not count."""
        return max(0, self.counts.embedded - self.n_resumed) / self.seconds

    def as_json(self) -> Json:
        """The answer of `featcache embed --json`."""
        return {
            "store": str(self.store),
            "found": self.counts.found,
            "skipped": sum(self.skipped.values()),
            "embedded": self.counts.embedded,
            "reused": self.counts.reused,
            "failed": self.counts.failed,
            "dim": self.dim,
            "backbone": self.backbone,
            "weights_sha256": self.weights_sha256,
            "identity": self.identity,
            "precision": self.precision,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
        }


def embed(
    manifest: Manifest,
    store_path: Path,
    spec: BackboneSpec,
    *,
    device: str = "auto",
    n_workers: int | None = None,
    part_rows: int | None = None,
    on_progress: Progress = lambda done, total: None,
) -> Embedded:
    """Embeds the images of a manifest into a store. Images whose bytes the store already holds are not computed again.

    Args:
        manifest: what to embed.
        store_path: the `.h5` to write; next to it `STORE.h5.partial/` while the pass runs, and
            `STORE.h5.failures.csv` if images failed.
        spec: which backbone.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        n_workers: decoding threads; None for one per core.
        part_rows: rows per part file; None chooses by width. Changes no vector.
        on_progress: called when rows are safely on disk.

    Raises:
        IdentityMismatch: the store at this path holds other vectors.
        StoreLocked: another process is writing it.
        WeightsUnavailable, UsageError: before anything is written.
        NoSpace, AccessDenied, InputOutputError: everything finished is kept; the same call continues.
    """
    _keep_freed_memory()
    backbone = backbones.load(spec, devices.choose(device))
    identity = identity_of(backbone)
    plan = _plan(manifest, identity, default_part_rows(backbone.n_features) if part_rows is None else part_rows)
    _check_name(store_path)
    folder = PartFolder(store_path, plan)
    with folder.locked(), _known_vectors(store_path, identity, folder.old()) as known:
        _check_space(store_path, len(manifest), backbone.n_features)
        n_resumed, seconds = _fill(folder, plan, manifest, backbone, known, n_workers, on_progress)
        failures = _report_failures(store_path, manifest, folder)
        parts = list(folder.finished().values())
        env = environment(str(backbone.device))
        counts = publish(store_path, parts, manifest.image_ids, manifest.columns, identity, env)
        folder.clear()
    return Embedded(
        store=store_path,
        counts=counts,
        skipped=manifest.skipped,
        n_ungrouped=manifest.n_ungrouped,
        n_resumed=n_resumed,
        backbone=backbone.name,
        weights=backbone.weights_source,
        weights_sha256=backbone.weights_sha256,
        dim=backbone.n_features,
        identity=digest_json(identity),
        precision=PRECISION,
        seconds=seconds,
        failures=failures,
    )


def identity_of(backbone: Backbone) -> Json:
    """Everything that changes a vector. Paths, labels, device and library versions are not in it."""
    return {
        "pipeline": PIPELINE_VERSION,
        "backbone": backbone.identity(),
        "transform": backbone.transform.identity(),
        "decode": images.DECODE_POLICY,
        "precision": PRECISION,
        "stored_dtype": "float32",
    }


def _keep_freed_memory() -> None:
    """Tells glibc to keep what a forward pass frees, for the next one, instead of handing it back to the kernel.

    A network's activations are allocated and freed hundreds of times a second. Returned each time, their pages are
    zeroed again by the kernel: of 51 images/s (MobileNetV2, two cores) this makes 308.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    glibc = ctypes.CDLL(None)
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 << 20)):
        glibc.mallopt(parameter, value)


# --- the plan ---------------------------------------------------------------------------------------------------------


def default_part_rows(n_features: int) -> int:
    """Rows per part: about 16 MiB of vectors, from 32 to 256 rows, so that a stop costs seconds and not minutes."""
    low, high = _PART_ROWS
    return max(low, min(high, _PART_BYTES // (4 * n_features) // low * low))


def _plan(manifest: Manifest, identity: Json, part_rows: int) -> Json:
    """What the finished parts of a stopped pass must agree with, to be continued: the same files in the same order, by
    name, place, size and time of change."""
    if part_rows < 1 or part_rows % BATCH_ROWS:
        raise UsageError(f"--part-rows must be a multiple of {BATCH_ROWS}, got {part_rows}.")
    files = [
        [image_id, os.fspath(path), image_id in manifest.refused, *_stamp(path)]
        for image_id, path in zip(manifest.image_ids, manifest.paths, strict=True)
    ]
    return {"identity": identity, "files_sha256": digest_json(files), "n_rows": len(manifest), "part_rows": part_rows}


def _stamp(path: Path) -> list[int]:
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _check_name(store_path: Path) -> None:
    """A file name, with room for the names that are made from it."""
    if store_path.name in ("", "..") or store_path.is_dir():
        raise UsageError(f"-o {store_path}: give the name of a file, such as {store_path / 'chest.h5'}.")
    if len(os.fsencode(store_path.name)) > _MAX_NAME:
        raise UsageError(f"-o: the name {store_path.name[:40]}… is longer than {_MAX_NAME} bytes.")


def _check_space(store_path: Path, n: int, d: int) -> None:
    """The parts and the store they are packed into exist side by side for a moment."""
    needed = 2 * n * (4 * d + 512)
    free = shutil.disk_usage(store_path.parent).free
    if needed > free:
        raise NoSpace(
            f"no space: {n:,} images of {d:,} features need about {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are "
            f"free on {store_path.parent}. Nothing was computed."
        )


# --- vectors that are there already -----------------------------------------------------------------------------------


class _KnownVectors:
    """Vectors by the digest of their image's bytes: the rows of the store that is about to be replaced, and those of
    parts whose plan no longer holds."""

    def __init__(self, store: Store | None, old_parts: Sequence[Path]) -> None:
        self._store = store
        self._row = {digest: i for i, digest in enumerate(store.content_sha256)} if store is not None else {}
        self._in_parts: dict[str, Array] = {}
        for part in map(read_part, old_parts):
            rows = zip(part.content_sha256, part.features[POOLED], part.origin, strict=True)
            self._in_parts.update({digest: vector for digest, vector, origin in rows if origin != FAILED})

    def __contains__(self, digest: str) -> bool:
        return digest in self._row or digest in self._in_parts

    def vector(self, digest: str) -> Array:
        if digest in self._in_parts:
            return self._in_parts[digest]
        assert self._store is not None
        row = self._row[digest]
        vector: Array = self._store.features(POOLED, slice(row, row + 1))[0]
        return vector


@contextmanager
def _known_vectors(store_path: Path, identity: Json, old_parts: Sequence[Path]) -> Iterator[_KnownVectors]:
    try:
        store = Store.open(store_path)
    except StoreNotFound:
        yield _KnownVectors(None, old_parts)
        return
    with store:
        check_identity(store_path, store.identity, identity)
        yield _KnownVectors(store, old_parts)


# --- the work ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Prepared:
    """An image on its way: its pixels, or that its vector is known, or why there are none."""

    digest: str = ""
    pixels: Array | None = None  # (h, w) or (h, w, 3) uint8
    failure: tuple[str, str] | None = None


def _fill(
    folder: PartFolder,
    plan: Json,
    manifest: Manifest,
    backbone: Backbone,
    known: _KnownVectors,
    n_workers: int | None,
    on_progress: Progress,
) -> tuple[int, float]:
    """Writes the parts that are missing. Returns (rows that were there already, seconds)."""
    started = time.perf_counter()
    n, part_rows = len(manifest), plan["part_rows"]
    finished = folder.finished()
    missing = [range(i, min(i + part_rows, n)) for i in range(0, n, part_rows) if i not in finished]
    done = n_resumed = n - sum(map(len, missing))
    on_progress(done, n)
    todo = (row for rows in missing for row in rows)
    work = partial(_prepare, manifest=manifest, backbone=backbone, known=known)
    with _ahead(work, todo, n_workers or os.cpu_count() or 1) as prepared:
        for rows in missing:
            folder.write(_part(rows.start, islice(prepared, len(rows)), len(rows), backbone, known))
            done += len(rows)
            on_progress(done, n)
    return n_resumed, time.perf_counter() - started


def _prepare(row: int, manifest: Manifest, backbone: Backbone, known: _KnownVectors) -> _Prepared:
    """Reads, hashes and decodes one image, in a worker thread. One bad image is a failed row, never the end."""
    if reason := manifest.refused.get(manifest.image_ids[row]):
        return _Prepared(failure=("outside", reason))
    digest = ""
    try:
        data = images.read(manifest.paths[row])
        digest = digest_bytes(data)
        return _Prepared(digest, None if digest in known else backbone.transform(images.decode(data)))
    except ImageError as error:
        return _Prepared(digest, failure=(error.code, str(error)))
    except MemoryError:
        return _Prepared(digest, failure=("too-large", "not enough memory to decode it"))


@contextmanager
def _ahead(work: Callable[[int], _Prepared], rows: Iterable[int], n_workers: int) -> Iterator[Iterator[_Prepared]]:
    """`map(work, rows)` in threads, at most two batches ahead of whoever takes the results; ends at once when left."""
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="decode")
    try:
        yield _in_order(pool, work, iter(rows), 2 * BATCH_ROWS + n_workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], _Prepared], rows: Iterator[int], n_ahead: int
) -> Iterator[_Prepared]:
    pending: deque[Future[_Prepared]] = deque(pool.submit(work, row) for row in islice(rows, n_ahead))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(work, row) for row in islice(rows, 1))
        yield result


def _part(start: int, prepared: Iterable[_Prepared], m: int, backbone: Backbone, known: _KnownVectors) -> Part:
    """The m rows from `start` on, computed in batches of one shape; no batch reaches into the next part, so where a
    pass was stopped changes no vector."""
    vectors = np.full((m, backbone.n_features), np.nan, dtype=np.float32)
    digests, failures = [], {}
    batch: dict[int, Array] = {}  # row -> pixels
    origin = np.full(m, EMBEDDED, dtype=np.uint8)
    for row, image in enumerate(prepared):
        digests.append(image.digest)
        if image.failure is not None:
            failures[row] = image.failure
        elif image.pixels is None:
            origin[row], vectors[row] = REUSED, known.vector(image.digest)
        else:
            batch[row] = image.pixels
        if len(batch) == BATCH_ROWS:
            _forward(batch, vectors, backbone)
            batch = {}
    _forward(batch, vectors, backbone)
    failures.update(_not_finite(vectors, failures))
    origin[list(failures)] = FAILED
    return Part(start, {POOLED: vectors}, digests, origin, failures)


def _forward(batch: dict[int, Array], vectors: Array, backbone: Backbone) -> None:
    """Fills in the vectors of a batch. A batch that is not full is padded: every forward pass has the same shape."""
    if not batch:
        return
    height, width = backbone.transform.input_size
    pixels = np.zeros((BATCH_ROWS, height, width, 3), dtype=np.uint8)
    for i, image in enumerate(batch.values()):
        pixels[i] = image[..., None] if image.ndim == 2 else image  # gray: the same value three times
    computed = backbone(torch.from_numpy(pixels).permute(0, 3, 1, 2)).cpu().numpy()
    vectors[list(batch)] = computed[: len(batch)]


def _not_finite(vectors: Array, failures: dict[int, tuple[str, str]]) -> dict[int, tuple[str, str]]:
    bad = [int(row) for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)) if row not in failures]
    if len(bad) > max(1, _MAX_NOT_FINITE * len(vectors)):
        raise InputOutputError(
            f"the network gave values that are not finite for {len(bad)} of {len(vectors)} images: its weights or "
            f"--mean and --std are broken. Nothing of this part was kept."
        )
    return dict.fromkeys(bad, ("not-finite", "the network gave a value that is not finite"))


# --- failures ---------------------------------------------------------------------------------------------------------


def failures_path(store_path: Path) -> Path:
    """`STORE.h5.failures.csv`, beside the store; there only while the last pass had failures."""
    return store_path.with_name(store_path.name + ".failures.csv")


def _report_failures(store_path: Path, manifest: Manifest, folder: PartFolder) -> dict[str, tuple[str, str]]:
    """Writes the list of failed images, and stops before an empty store would be published."""
    failures = {manifest.image_ids[row]: reason for row, reason in sorted(folder.failures().items())}
    path = failures_path(store_path)
    if not failures:
        if path.is_file():
            path.unlink()
        return failures
    rows = [[image_id, code, reason] for image_id, (code, reason) in failures.items()]
    durable.write_csv(path, ["image_id", "code", "reason"], rows)
    if len(failures) == len(manifest):
        image_id, (_, reason) = next(iter(failures.items()))
        raise FeatcacheError(f"none of {len(manifest)} images could be embedded. {image_id!r}: {reason}. See {path}.")
    return failures
