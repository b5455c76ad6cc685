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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache import durable
from featcache.augment import ViewSpec
from featcache.errors import FeatcacheError, NoSpace, UsageError, from_os_error, in_our_words
from featcache.filling import Filling, Submit
from featcache.images import DecodeSpec, TransformSpec
from featcache.manifest import Manifest
from featcache.network import COMPILE, Array, Machine, Network, Note, Outdated
from featcache.plan import Plan
from featcache.precision import Canaries, held_precision, settle
from featcache.provenance import Json, digest_json
from featcache.request import BackboneSpec, Request
from featcache.seen import Seen
from featcache.store import (
    POOLED,
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

if TYPE_CHECKING:
    from featcache.forward import Streams

Progress = Callable[[int, int], None]  # rows done, rows in all

_PART_BYTES = 16 << 20
_PART_ROWS = (32, 256)
_MAX_NAME = 220  # bytes; file systems stop at 255, and `.failures.csv` and the temporary name come on top
_ROWS_WORTH_A_DECODER = 32  # a process takes a quarter of a second to start
_READ_AHEAD = 64  # images decoded before anybody asks for them, beside those that are being decoded
_HOPELESS = 200  # images that fail one after another from the start: this is not what was meant


@dataclass(frozen=True)
class Embedded:
    """What a pass did. The counts add up: found = embedded + reused + failed.

    Attributes:
        counts: embedded are those computed for this store, also by the passes that this one continued; reused those
            whose bytes it held already.
        n_duplicates: rows whose image has the same bytes as an earlier row's: one forward pass served both.
        n_dropped: images the store held before that are not among these.
        shapes: array of the store -> shape of its rows.
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
    shapes: Mapping[str, Sequence[int]]
    identity: Json
    seconds: float
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """d, the width of the pooled vector."""
        return self.shapes[POOLED][0]

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
            "shapes": {tap: list(shape) for tap, shape in self.shapes.items()},
            "backbone": self.backbone,
            "weights_sha256": self.weights_sha256,
            "identity": digest_json(self.identity),
            "precision": self.identity["precision"],
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 2),
        }


def embed(manifest: Manifest, store_path: Path, spec: BackboneSpec, **options: Any) -> Embedded:
    """Embeds the images of a manifest into a store. Images whose bytes the store already holds are not computed again,
    and files that have not changed since they were last read are not read again.

    Args:
        manifest: what to embed.
        store_path: the `.h5` to write; next to it `STORE.h5.partial/` while the pass runs, `STORE.h5.failures.csv` if
            images failed, and `.STORE.h5.seen`, which only saves time.
        spec: which backbone.
        options: as in `embed_all`, which this is for one store.

    Raises:
        FeatcacheError: what `embed_all` raises.
    """
    return embed_all(manifest, {store_path: spec}, **options)[0]


def embed_all(
    manifest: Manifest,
    specs: Mapping[Path, BackboneSpec],
    *,
    decode: DecodeSpec = DecodeSpec(),
    views: ViewSpec | None = None,
    dtype: str = "float32",
    device: str = "auto",
    compile: str = "auto",  # noqa: A002  # what it is called everywhere
    n_workers: int | None = None,
    part_rows: int | None = None,
    timeout_s: float = TIMEOUT_S,
    rehash: bool = False,
    strict: bool = False,
    on_progress: Progress = lambda done, total: None,
    on_note: Note = lambda text: None,
) -> list[Embedded]:
    """Embeds the images of a manifest into several stores, each of its own backbone; every image is decoded once.

    Args:
        manifest: what to embed.
        specs: store -> backbone.
        decode: how files become pixels.
        views: augmentation views whose vectors are kept beside that of the clean image.
        dtype: what vectors are stored as, float32 or float16.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        compile: "on", "off" or "auto": whether the network is compiled before the pass, see `forward`.
        n_workers: decoding processes; None for one per core.
        part_rows: rows per part file; None chooses by width. Changes no byte of the store; less than a batch, the
            network takes as long as for one.
        timeout_s: what one image may take to be read and decoded.
        rehash: read every file, whatever its times say.
        strict: the first image that fails ends the pass.
        on_progress: called when rows are safely on disk, in all stores.
        on_note: called with what a person should know while it happens.

    Returns:
        What became of each store, in the order of `specs`.

    Raises:
        IdentityMismatch: a store at one of the paths holds other vectors.
        StoreLocked: another process is writing it.
        WeightsUnavailable, UsageError: before anything is written.
        NoSpace, AccessDenied, InputOutputError: everything finished is kept; the same call continues.
    """
    if part_rows is not None and part_rows < 1:
        raise UsageError(f"--part-rows must be at least 1, got {part_rows}.")
    canaries = Canaries(manifest, decode, timeout_s)
    machine = Machine(device, compile, len(manifest.paths), canaries)
    seen = {path: Seen.read(path) for path in specs}

    def attempt() -> list[Embedded]:
        networks = networks_of(specs, decode, views, dtype, machine, canaries, seen, on_note)
        plans = {path: Plan.of(manifest, Seen() if rehash else seen[path]) for path in specs}
        is_new = {path: not plans[path].is_published(path, networks[path].answer.identity) for path in specs}
        targets = [_Target(path, plans[path], networks[path], views) for path in specs if is_new[path]]
        rows = part_rows or min((default_part_rows(t.network.row_bytes) for t in targets), default=1)
        options = _Options(decode, views, rows, n_workers or os.cpu_count() or 1, timeout_s, strict)
        made = _Pass(manifest, targets, options, on_progress, on_note).run() if targets else {}
        for target in targets:
            target.remember(seen[target.store_path])
        return [
            made[path] if is_new[path] else _nothing_new(path, plans[path], networks[path], on_note) for path in specs
        ]

    with in_our_words("writing", next(iter(specs))):
        try:
            return attempt()
        except Outdated:  # the weights of a name are others now, and no file told so: forget, and learn it by loading
            for each in seen.values():
                each.answers.clear()
            return attempt()


def networks_of(
    specs: Mapping[Path, BackboneSpec],
    decode: DecodeSpec,
    views: ViewSpec | None,
    dtype: str,
    machine: Machine,
    canaries: Canaries,
    seen: Mapping[Path, Seen],
    on_note: Note,
) -> dict[Path, Network]:
    """Store -> what is asked of its network, with "auto" settled."""
    if dtype not in STORED_DTYPES:
        raise UsageError(f"--dtype {dtype}: {' or '.join(STORED_DTYPES)} is expected.")
    if machine.compile not in COMPILE:
        raise UsageError(f"--compile {machine.compile}: {', '.join(COMPILE)} is expected.")
    networks = {}
    for path, spec in specs.items():
        _check_name(path)
        settled = settle(spec, held_precision(path), machine.device, canaries, on_note)
        networks[path] = Network(Request(settled, decode, dtype, views), machine, seen[path], on_note)
    return networks


def store_paths(output: Path, names: Sequence[str]) -> dict[str, Path]:
    """Backbone -> its store: `output` for one; `NAME.h5` in that folder for several, which is made if need be.

    Raises:
        UsageError: a backbone twice, or a file where a folder is needed.
    """
    if len(names) == 1:
        return {names[0]: output}
    if len(set(names)) < len(names):
        raise UsageError(f"--backbone: each once, got {', '.join(names)}.")
    if output.suffix in (".h5", ".hdf5") or output.is_file():
        raise UsageError(f"-o {output}: {len(names)} backbones make as many stores; give the name of a folder.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except NotADirectoryError as error:
        raise UsageError(f"-o {output}: a folder of that name cannot be made, a file is in its place.") from error
    except OSError as error:
        raise from_os_error(error, "making", output) from error
    return {name: output / f"{name.replace('/', '_')}.h5" for name in names}


def _check_name(store_path: Path) -> None:
    """A file name, with room for the names that are made from it."""
    if store_path.name in ("", "..") or store_path.is_dir():
        raise UsageError(f"-o {store_path}: give the name of a file, such as {store_path / 'chest.h5'}.")
    if len(os.fsencode(store_path.name)) > _MAX_NAME:
        raise UsageError(f"-o: the name {store_path.name[:40]}… is longer than {_MAX_NAME} bytes.")


def default_part_rows(row_bytes: int) -> int:
    """Rows per part: about 16 MiB, from 32 to 256 rows, so that a stop costs seconds and not minutes."""
    low, high = _PART_ROWS
    return max(low, min(high, _PART_BYTES // row_bytes // low * low))


# --- the work ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    """What holds for all stores of a pass."""

    decode: DecodeSpec
    views: ViewSpec | None
    part_rows: int
    n_decoders: int
    timeout_s: float
    strict: bool


@dataclass
class _Target:
    """One store of a pass.

    Attributes:
        folder: its finished parts.
        known: the vectors there are.
        missing: first rows of the parts that are to be made.
        n_resumed: rows that an earlier pass had finished.
        planned_ns: when the plan that is being worked on was made, on the clock of the store's file system.
        filling: the part that is being filled.
    """

    store_path: Path
    plan: Plan
    network: Network
    views: ViewSpec | None
    missing: set[int] = field(default_factory=set)
    n_resumed: int = 0
    planned_ns: int = 0
    filling: Filling | None = None

    @contextmanager
    def opened(self, part_rows: int, on_note: Note) -> Iterator[None]:
        """Locked, with what is there already looked at, and told."""
        self.folder = PartFolder(self.store_path, self.plan.record(self.network.answer.identity, part_rows))
        with self.folder.locked(), self._known() as self.known:
            self.planned_ns = self.folder.planned_ns
            self._tell_what_is_there(part_rows, on_note)
            n, finished = len(self.plan), self.folder.finished()
            self.missing = {start for start in range(0, n, part_rows) if start not in finished}
            self.n_resumed = n - sum(min(part_rows, n - start) for start in self.missing)
            yield

    def begin(self, rows: range, submit: Submit) -> Filling:
        """The next part."""
        self.filling = Filling(
            rows, self.network, self.views, self.network.answer.identity["stored_dtype"], submit, self.filling
        )
        return self.filling

    def write(self, filling: Filling) -> tuple[Path, Part]:
        """Puts a part on disk once its batches are back: in a thread of its own, while the next one fills."""
        part = filling.part()
        return self.folder.write(part), part

    def publish(self, manifest: Manifest, seconds: float) -> Embedded:
        """Packs the parts into the store."""
        failures = _report_failures(self.store_path, manifest, self.folder)
        self.plan.contents = self.folder.contents()
        n_dropped = self.known.n_not_among(set(self.plan.contents))
        heads, identity = self.folder.heads(), self.network.answer.identity
        counts = publish(
            self.store_path, heads, manifest.image_ids, manifest.columns, identity, self.known.environments
        )
        self.folder.clear()
        done = _embedded(self.store_path, self.plan, self.network, counts)
        return replace(done, n_resumed=self.n_resumed, n_dropped=n_dropped, seconds=seconds, failures=failures)

    def remember(self, seen: Seen) -> None:
        """Keeps what was seen, for the next pass."""
        self.plan.remember(seen, self.planned_ns)
        self.network.remember(seen)
        seen.write(self.store_path)

    @contextmanager
    def _known(self) -> Iterator[KnownVectors]:
        """The vectors that are there already."""
        if not self.store_path.exists():
            yield KnownVectors(None, self.folder.old())
            return
        with Store.open(self.store_path) as store:
            check_identity(self.store_path, store.identity, self.network.answer.identity)
            yield KnownVectors(store, self.folder.old())

    def _tell_what_is_there(self, part_rows: int, on_note: Note) -> None:
        environments = list(self.known.environments)
        for path, head in self.folder.heads().items():
            self.known.add_finished(path, head)
            environments += [head.environment] if head.environment else []
        if n_finished := len(self.folder.finished()):
            n_parts = -(-len(self.plan) // part_rows)
            on_note(f"resuming: {n_finished:,} of {n_parts:,} parts are done")
        _tell_of_other_environments(self.store_path, environments, self.network, on_note)


@dataclass
class _Pass:
    """One pass over the images, from locks to published stores."""

    manifest: Manifest
    targets: Sequence[_Target]
    options: _Options
    on_progress: Progress
    on_note: Note

    def run(self) -> dict[Path, Embedded]:
        """Computes what is missing and publishes."""
        with ExitStack() as stack:
            for target in self.targets:
                stack.enter_context(target.opened(self.options.part_rows, self.on_note))
            _check_space(self.targets, len(self.manifest.paths))
            started = time.perf_counter()
            self._fill()
            seconds = time.perf_counter() - started
            return {target.store_path: target.publish(self.manifest, seconds) for target in self.targets}

    def _fill(self) -> None:
        """Writes the parts that are missing. While one is written, the next one fills."""
        n, step = len(self.manifest.paths), self.options.part_rows
        missing = sorted(set().union(*(target.missing for target in self.targets)))
        ranges = [range(start, min(start + step, n)) for start in missing]
        done = n - sum(map(len, ranges))
        self.on_progress(done, n)
        with (
            self._prepared([row for rows in ranges for row in rows]) as prepared,
            self._computing() as submit,
            ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
        ):
            written: list[tuple[_Target, Future[tuple[Path, Part]]]] = []
            for rows in ranges:
                takers = [target for target in self.targets if rows.start in target.missing]
                fillings = [target.begin(rows, submit) for target in takers]
                for image in islice(prepared, len(rows)):
                    for target, filling in zip(takers, fillings, strict=True):
                        filling.take(image, self._pixels(target, image), target.known)
                done += self._collect(written, done, n)
                pairs = zip(takers, fillings, strict=True)
                written = [(target, writer.submit(target.write, filling)) for target, filling in pairs]
            self._collect(written, done, n)

    def _collect(self, written: Sequence[tuple[_Target, "Future[tuple[Path, Part]]"]], done: int, n: int) -> int:
        """Waits until a part is on disk in every store that lacked it. Returns its rows."""
        n_rows = 0
        for target, future in written:
            path, part = future.result()
            target.known.add_finished(path, part)
            n_rows = len(part.origin)
        if n_rows:
            self.on_progress(done + n_rows, n)
        return n_rows

    @contextmanager
    def _computing(self) -> Iterator[Submit]:
        """Starts forward passes. Torch is imported with the first of them, and not at all where none is needed."""
        with ExitStack() as stack:

            @cache
            def streams() -> "Streams":
                from featcache.forward import Streams

                return stack.enter_context(Streams())

            yield lambda network, images: streams().submit(network.forward, network.vectors, images)

    # --- decoded images

    @cached_property
    def _transforms(self) -> list[TransformSpec]:
        """Each once, however many networks have it."""
        return list(dict.fromkeys(target.network.transform for target in self.targets))

    def _pixels(self, target: _Target, image: Prepared) -> Array | None:
        return image.pixels[self._transforms.index(target.network.transform)] if image.pixels is not None else None

    @contextmanager
    def _prepared(self, rows: Sequence[int]) -> Iterator[Iterator[Prepared]]:
        """The images of these rows, in their order, decoded ahead of whoever takes them."""
        options = self.options
        n_decoders = min(options.n_decoders, -(-len(rows) // _ROWS_WORTH_A_DECODER) or 1)
        pool = ThreadPoolExecutor(n_decoders, thread_name_prefix="decode")
        try:
            with Decoders(self._transforms, options.decode, options.views, options.timeout_s) as decoders:
                work = partial(self._prepare, decoders=decoders)
                yield self._watched(rows, _in_order(pool, work, iter(rows), _READ_AHEAD + n_decoders))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, row: int, decoders: Decoders) -> Prepared:
        """One image, in a thread that waits for its worker. One bad image is a failed row, never the end."""
        manifest = self.manifest
        start = row - row % self.options.part_rows
        takers = [target for target in self.targets if start in target.missing]
        known = _KnownToAll([target.known for target in takers])
        content = next((content for target in takers if (content := target.plan.contents[row])), "")
        if reason := manifest.refused.get(manifest.image_ids[row]):
            return Prepared(failure=("outside", reason))
        if content in known:
            return Prepared(content)
        return decoders.prepare(manifest.paths[row], takers[0].plan.stamps[row], known)

    def _watched(self, rows: Sequence[int], prepared: Iterator[Prepared]) -> Iterator[Prepared]:
        """Passes images on, and ends a pass that is strict, or hopeless from its start."""
        failed: Counter[str] = Counter()
        any_good = len(rows) < len(self.manifest.paths)
        for row, image in zip(rows, prepared, strict=True):
            if image.failure is None:
                any_good = True
            elif self.options.strict:
                name = self.manifest.image_ids[row]
                raise FeatcacheError(f"--strict: {name!r}: {image.failure[1]}. What was finished before it is kept.")
            else:
                failed[image.failure[1]] += 1
            if not any_good and failed.total() == _HOPELESS:
                (reason, n), *_ = failed.most_common(1)
                raise FeatcacheError(f"the first {_HOPELESS} images all failed, {n} with: {reason}. Nothing was kept.")
            yield image


@dataclass(frozen=True)
class _KnownToAll:
    """The digests whose vectors are at hand for every store."""

    each: Sequence[KnownVectors]

    def __contains__(self, digest: object) -> bool:
        return all(digest in known for known in self.each)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], Prepared], rows: Iterator[int], n_ahead: int
) -> Iterator[Prepared]:
    """`map(work, rows)` in threads, at most so many ahead."""
    pending: deque[Future[Prepared]] = deque(pool.submit(work, row) for row in islice(rows, n_ahead))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(work, row) for row in islice(rows, 1))
        yield result


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
        shapes=network.shapes,
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
        f"{name} {environment.get(name, 'unknown')} (here {here.get(name, 'unknown')})": None
        for environment in held
        for name in here
        if environment.get(name) != here.get(name)
    }
    if others:
        on_note(f"{store_path} has vectors made with {', '.join(others)}: they may differ in the last digits.")


def store_bytes(network: Network, n: int) -> int:
    """About what a store of n images takes: its arrays, names and labels."""
    values = int(np.dtype(network.answer.identity["stored_dtype"]).itemsize)
    return n * (network.row_bytes * values // 4 + 512)


def _check_space(targets: Sequence[_Target], n: int) -> None:
    """The parts and the store they are packed into exist side by side for a moment."""
    needed = 2 * sum(store_bytes(target.network, n) for target in targets)
    folder = targets[0].store_path.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        n_features = sum(target.network.row_bytes // 4 for target in targets)
        raise NoSpace(
            f"no space: {n:,} images of {n_features:,} features need about {needed / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free on {folder}. Nothing was computed."
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
