"""The pass: every image once through the frozen backbone, into a store.

Worker processes read, hash and decode ahead while the network runs; finished rows go to disk in parts, so that a
stopped pass loses at most one of them; at the end the parts are packed into the store in one step. Memory holds the
images in flight (workers and read-ahead) and two parts (one fills while one is written), whatever the number of images.
A pass that finds every vector there imports no torch and ends within a second or two.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from featcache import durable
from featcache.embedding.depth import settle_depth
from featcache.embedding.filling import Submit
from featcache.embedding.network import COMPILE, Array, Machine, Network, Note, Outdated
from featcache.embedding.output import Embedded, Output, added_to, check_space, nothing_new
from featcache.embedding.plan import Plan
from featcache.embedding.precision import Canaries, held_precision, settle
from featcache.errors import FeatcacheError, UsageError, from_os_error, in_our_words
from featcache.identity import Json
from featcache.images.cache import FileCache, stamp_of
from featcache.images.workers import TIMEOUT_S, Decoders, Prepared, check_timeout
from featcache.manifest import Manifest
from featcache.specs import STORED_DTYPES, AugmentedCopies, BackboneSpec, DecodeSpec, Request, TransformSpec
from featcache.store import KnownVectors, Part, Store, check_unlocked, held_identity

if TYPE_CHECKING:
    from featcache.embedding.forward import Streams

Progress = Callable[[int, int], None]  # rows done, rows in all

_PART_BYTES = 16 << 20
_PART_ROWS = (32, 256)
_BATCH_ROWS = 8  # of a CPU, of which parts hold whole ones
_MAX_NAME = 220  # bytes; file systems stop at 255, and `.failures.csv` and the temporary name come on top
_ROWS_WORTH_A_DECODER = 32  # a process takes a quarter of a second to start
_READ_AHEAD = 64  # images decoded before anybody asks for them, beside those that are being decoded
_HOPELESS = 200  # images that fail one after another from the start: this is not what was meant


def embed(
    manifest: Manifest,
    store_path: Path | str,
    spec: BackboneSpec,
    *,
    decode: DecodeSpec = DecodeSpec(),
    augmentations: AugmentedCopies | None = None,
    dtype: str = "float32",
    device: str = "auto",
    compile: str = "auto",  # noqa: A002  # torch's word
    n_workers: int | None = None,
    part_rows: int | None = None,
    timeout_s: float = TIMEOUT_S,
    rehash: bool = False,
    strict: bool = False,
    only_add: bool = False,
    expect: Callable[[Path, Json], None] = lambda path, identity: None,
    on_progress: Progress = lambda done, total: None,
    on_note: Note = lambda text: None,
) -> Embedded:
    """Embeds the images of a manifest once with a frozen backbone, into a store.

    Images whose bytes the store already holds are not computed again, and files that have not changed since they were
    last read are not read again. A pass that was stopped continues where it was.

    Args:
        manifest: the images and their columns.
        store_path: the store to write, `STORE.h5`. Beside it stand `STORE.h5.partial/` while the pass runs,
            `STORE.h5.failures.csv` if images failed, and the cache `.STORE.h5.seen`.
        spec: the backbone, its weights and its transform.
        decode: how files become pixels.
        augmentations: augmented copies to embed beside each image; None for none.
        dtype: stored data type of the vectors, "float32" or "float16".
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        compile: whether the network is compiled before the pass: "on", "off", or "auto", which compiles where the
            number of images is worth it.
        n_workers: number of decoding processes; None for one per core.
        part_rows: rows per part file of the unfinished pass; None chooses by the size of a row.
        timeout_s: longest time to read and decode one image, in seconds.
        rehash: read every file, even if its size and time are unchanged.
        strict: stop at the first image that fails.
        only_add: keep every row of an existing store, and refuse a store with images that the manifest lacks.
            Otherwise the store is brought in line with the manifest.
        expect: called with the path and the identity of the store before anything is computed; an exception ends the
            pass.
        on_progress: called with (rows on disk, rows in total).
        on_note: called with notes while the pass runs.

    Returns:
        Counts of embedded, reused and failed images, shapes and timings.

    Raises:
        IdentityMismatch: the store holds vectors of another identity.
        StoreLocked: another process is writing the store.
        WeightsUnavailable, UsageError: raised before anything is written.
        NoSpace, AccessDenied, InputOutputError: finished parts are kept; the same call continues.

    Example:
        >>> import featcache
        >>> images = featcache.Manifest.read("images")
        >>> backbone = featcache.BackboneSpec("test_resnet", weights="random:0", input_size=32)
        >>> done = featcache.embed(images, "example.h5", backbone)
        >>> done.counts.failed
        0
        >>> with featcache.Store.open("example.h5") as store:
        ...     len(store) == len(images)
        True
    """
    (embedded,) = embed_all(
        manifest,
        {Path(store_path): spec},
        decode=decode,
        augmentations=augmentations,
        dtype=dtype,
        device=device,
        compile=compile,
        n_workers=n_workers,
        part_rows=part_rows,
        timeout_s=timeout_s,
        rehash=rehash,
        strict=strict,
        only_add=only_add,
        expect=expect,
        on_progress=on_progress,
        on_note=on_note,
    )
    return embedded


def embed_all(
    manifest: Manifest,
    specs: Mapping[Path, BackboneSpec],
    *,
    decode: DecodeSpec = DecodeSpec(),
    augmentations: AugmentedCopies | None = None,
    dtype: str = "float32",
    device: str = "auto",
    compile: str = "auto",  # noqa: A002  # what it is called everywhere
    n_workers: int | None = None,
    part_rows: int | None = None,
    timeout_s: float = TIMEOUT_S,
    rehash: bool = False,
    strict: bool = False,
    only_add: bool = False,
    expect: Callable[[Path, Json], None] = lambda path, identity: None,
    on_progress: Progress = lambda done, total: None,
    on_note: Note = lambda text: None,
) -> list[Embedded]:
    """Embeds the images of a manifest into several stores, each of its own backbone; every image is decoded once.

    Args:
        manifest: what to embed.
        specs: store -> backbone.
        decode: how files become pixels.
        augmentations: augmentation views whose vectors are kept beside that of the clean image.
        dtype: what vectors are stored as, float32 or float16.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        compile: "on", "off" or "auto": whether the network is compiled before the pass, see `forward`.
        n_workers: decoding processes; None for one per core.
        part_rows: rows per part file; None chooses by width. Changes no byte of the store; less than a batch, the
            network takes as long as for one.
        timeout_s: what one image may take to be read and decoded.
        rehash: read every file, whatever its times say.
        strict: the first image that fails ends the pass.
        only_add: a store that is there keeps its rows, and what its columns say of them; it is refused if it has images
            that are not in the manifest. Otherwise it becomes what the manifest says.
        expect: called with each store and the identity that its vectors will have, before any is computed; what it
            raises ends the pass.
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
        raise UsageError(f"`part_rows` must be at least 1, got {part_rows}.")
    for path in specs:
        check_unlocked(path)
    caches = {path: FileCache.read(path) for path in specs}
    n_decoders = n_workers or os.cpu_count() or 1
    decode, manifest, note = of_one_depth(decode, manifest, caches, n_decoders, timeout_s, on_note)
    canaries = Canaries(manifest, decode, timeout_s)
    machine = Machine(device, compile, len(manifest.paths), canaries, note)

    def manifest_of(path: Path) -> Manifest:
        """As it looks now; what is decided by it is looked at again once the store is locked."""
        if not (only_add and path.exists()):
            return manifest
        with Store.open(path) as store:
            return added_to(store, manifest)

    def attempt() -> list[Embedded]:
        networks = networks_of(specs, decode, augmentations, dtype, machine, canaries, caches, on_note)
        for path, network in networks.items():
            expect(path, network.answer.identity)
        if len(specs) > 1:
            _make_folders({path.parent for path in specs})
        plans = {path: Plan.of(manifest_of(path), FileCache() if rehash else caches[path]) for path in specs}
        answers = {path: networks[path].answer for path in specs}
        is_new = {
            path: not plans[path].is_published(path, answer.identity, answer.weights)
            for path, answer in answers.items()
        }
        outputs = [
            Output(path, plans[path], networks[path], augmentations, caches[path], only_add)
            for path in specs
            if is_new[path]
        ]
        n_views = augmentations.n if augmentations else 0
        rows = part_rows or min((default_part_rows(t.network.row_bytes, n_views) for t in outputs), default=1)
        options = _Options(decode, augmentations, rows, n_decoders, timeout_s, strict)
        passed = _Pass(manifest, outputs, options, on_progress, on_note).run() if outputs else {}
        return [
            passed[path] if is_new[path] else nothing_new(path, plans[path], networks[path], on_note) for path in specs
        ]

    with in_our_words("writing", next(iter(specs))):
        try:
            return attempt()
        except Outdated:  # the weights of a name are others now, and no file told so: forget, and learn it by loading
            for lookup in caches.values():
                lookup.answers.clear()
            return attempt()


def of_one_depth(
    decode: DecodeSpec,
    manifest: Manifest,
    caches: Mapping[Path, FileCache],
    n_workers: int,
    timeout_s: float,
    on_note: Note,
) -> tuple[DecodeSpec, Manifest, str]:
    """The spec with a depth for all images, the manifest with the note on it, and the note, which was told."""
    check_timeout(timeout_s)
    for path in caches:
        _check_name(path)
    identities = [identity for path in caches if (identity := held_identity(path)) is not None]
    seen_here = (
        list(caches.values()) if len(identities) == len(caches) else []
    )  # what was seen without a store counts for none
    paths = enumerate(manifest.paths)
    rows = [i for i, path in paths if not seen_here or not all(s.content(path, stamp_of(path)) for s in seen_here)]
    decode, note = settle_depth(decode, manifest, rows, identities, n_workers, timeout_s)
    if note:
        on_note(note)
        manifest = replace(manifest, notes=[*manifest.notes, note])
    return decode, manifest, note


def networks_of(
    specs: Mapping[Path, BackboneSpec],
    decode: DecodeSpec,
    augmentations: AugmentedCopies | None,
    dtype: str,
    machine: Machine,
    canaries: Canaries,
    caches: Mapping[Path, FileCache],
    on_note: Note,
) -> dict[Path, Network]:
    """Store -> what is asked of its network, with "auto" settled."""
    if dtype not in STORED_DTYPES:
        raise UsageError(f"`dtype`={dtype}: {' or '.join(STORED_DTYPES)} is expected.")
    if machine.compile not in COMPILE:
        raise UsageError(f"`compile`={machine.compile}: {', '.join(COMPILE)} is expected.")
    networks = {}
    for path, spec in specs.items():
        settled = settle(spec, held_precision(path), machine.device, canaries, on_note)
        networks[path] = Network(Request(settled, decode, dtype, augmentations), machine, caches[path], on_note)
    return networks


def store_paths(output: Path, names: Sequence[str]) -> dict[str, Path]:
    """Backbone -> its store: `output` for one; `NAME.h5` in that folder for several.

    Raises:
        UsageError: a backbone twice, or the name of a file where that of a folder is needed.
    """
    if len(names) == 1:
        return {names[0]: output}
    if len(set(names)) < len(names):
        raise UsageError(f"`backbone` names each network once, got {', '.join(names)}.")
    if output.suffix in (".h5", ".hdf5") or output.is_file():
        raise UsageError(f"-o {output}: {len(names)} backbones make as many stores; give the name of a folder.")
    return {name: output / f"{name.replace('/', '_')}.h5" for name in names}


def _make_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        try:
            durable.make_folders(folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"-o {folder}: a folder of that name cannot be made, a file is in its place.") from error
        except OSError as error:
            raise from_os_error(error, "making", folder) from error


def _check_name(store_path: Path) -> None:
    """A file name, with room for the names that are made from it."""
    if store_path.name in ("", "..") or store_path.is_dir():
        raise UsageError(f"-o {store_path}: give the name of a file, such as {store_path / 'chest.h5'}.")
    if len(os.fsencode(store_path.name)) > _MAX_NAME:
        raise UsageError(f"-o: the name {store_path.name[:40]}… is longer than {_MAX_NAME} bytes.")


def default_part_rows(row_bytes: int, n_views: int = 0) -> int:
    """Rows per part: about 16 MiB, from 32 to 256 rows, so that a stop costs seconds and not minutes. Where rows are so
    large that 32 of them are more, as many as have 32 images among their views and themselves, and whole batches."""
    low, high = _PART_ROWS
    rows = min(high, _PART_BYTES // row_bytes)
    if rows >= low:
        return rows // low * low
    least = -(-low // (1 + n_views))
    return max(-(-least // _BATCH_ROWS), rows // _BATCH_ROWS) * _BATCH_ROWS


# --- the work ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Options:
    """What holds for all stores of a pass."""

    decode: DecodeSpec
    augmentations: AugmentedCopies | None
    part_rows: int
    n_decoders: int
    timeout_s: float
    strict: bool


@dataclass
class _Pass:
    """One pass over the images, from locks to published stores."""

    manifest: Manifest
    outputs: Sequence[Output]
    options: _Options
    on_progress: Progress
    on_note: Note

    def run(self) -> dict[Path, Embedded]:
        """Computes what is missing and publishes."""
        with ExitStack() as stack:
            for output in self.outputs:
                stack.enter_context(output.opened(self.options.part_rows, self.on_note))
            check_space(self.outputs, len(self.manifest.paths))
            for output in self.outputs:
                output.check_kernels(self.on_note)
            started = time.perf_counter()
            self._fill()
            seconds = time.perf_counter() - started
            return {output.store_path: output.publish(seconds, self.on_note) for output in self.outputs}

    def _fill(self) -> None:
        """Writes the parts that are missing. While one is written, the next one fills."""
        n, step = len(self.manifest.paths), self.options.part_rows
        missing = sorted(set().union(*(output.missing for output in self.outputs)))
        ranges = [range(start, min(start + step, n)) for start in missing]
        done = n - sum(map(len, ranges))
        self.on_progress(done, n)
        with (
            self._prepared([row for rows in ranges for row in rows]) as prepared,
            self._computing() as submit,
            ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
        ):
            written: list[tuple[Output, Future[tuple[Path, Part]]]] = []
            for rows in ranges:
                receivers = [output for output in self.outputs if rows.start in output.missing]
                fillings = [output.begin(rows, submit) for output in receivers]
                for image in islice(prepared, len(rows)):
                    for output, filling in zip(receivers, fillings, strict=True):
                        filling.take(image, self._pixels(output, image), output.lookup)
                done += self._collect(written, done, n)
                pairs = zip(receivers, fillings, strict=True)
                written = [(output, writer.submit(output.write, filling)) for output, filling in pairs]
            self._collect(written, done, n)

    def _collect(self, written: Sequence[tuple[Output, "Future[tuple[Path, Part]]"]], done: int, n: int) -> int:
        """Waits until a part is on disk in every store that lacked it. Returns its rows."""
        n_rows = 0
        for output, future in written:
            path, part = future.result()
            output.lookup.add_finished(path, part)
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
                from featcache.embedding.forward import Streams

                return stack.enter_context(Streams())

            yield lambda network, images: streams().submit(network.forward, network.vectors, images)

    # --- decoded images

    @cached_property
    def _transforms(self) -> list[TransformSpec]:
        """Each once, however many networks have it."""
        return list(dict.fromkeys(output.network.transform for output in self.outputs))

    def _pixels(self, output: Output, image: Prepared) -> Array | None:
        return image.pixels[self._transforms.index(output.network.transform)] if image.pixels is not None else None

    @contextmanager
    def _prepared(self, rows: Sequence[int]) -> Iterator[Iterator[Prepared]]:
        """The images of these rows, in their order, decoded ahead of whoever takes them."""
        options = self.options
        n_decoders = min(options.n_decoders, -(-len(rows) // _ROWS_WORTH_A_DECODER) or 1)
        pool = ThreadPoolExecutor(n_decoders, thread_name_prefix="decode")
        try:
            with Decoders(self._transforms, options.decode, options.augmentations, options.timeout_s) as decoders:
                work = partial(self._prepare, decoders=decoders)
                yield self._watched(rows, _in_order(pool, work, iter(rows), _READ_AHEAD + n_decoders))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, row: int, decoders: Decoders) -> Prepared:
        """One image, in a thread that waits for its worker. One bad image is a failed row, never the end."""
        manifest = self.manifest
        start = row - row % self.options.part_rows
        receivers = [output for output in self.outputs if start in output.missing]
        lookup = _KnownToAll([output.lookup for output in receivers])
        content = next((content for output in receivers if (content := output.plan.contents[row])), "")
        if reason := manifest.refused.get(manifest.image_ids[row]):
            return Prepared(failure=("outside", reason))
        if content in lookup:
            return Prepared(content)
        return decoders.prepare(manifest.paths[row], receivers[0].plan.stamps[row], lookup)

    def _watched(self, rows: Sequence[int], prepared: Iterator[Prepared]) -> Iterator[Prepared]:
        """Passes images on, and ends a pass that is strict, or hopeless from its start."""
        failed: Counter[str] = Counter()
        any_good = len(rows) < len(self.manifest.paths)
        for row, image in zip(rows, prepared, strict=True):
            if image.failure is None:
                any_good = True
            elif self.options.strict:
                name = self.manifest.image_ids[row]
                raise FeatcacheError(f"`strict`: {name!r}: {image.failure[1]}. What was finished before it is kept.")
            else:
                failed[image.failure[1]] += 1
            if not any_good and failed.total() == _HOPELESS:
                (reason, n), *_ = failed.most_common(1)
                raise FeatcacheError(f"the first {_HOPELESS} images all failed, {n} with: {reason}. Nothing was kept.")
            yield image


@dataclass(frozen=True)
class _KnownToAll:
    """The digests whose vectors are at hand for every store."""

    lookups: Sequence[KnownVectors]

    def __contains__(self, digest: object) -> bool:
        return all(digest in lookup for lookup in self.lookups)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], Prepared], rows: Iterator[int], n_ahead: int
) -> Iterator[Prepared]:
    """`map(work, rows)` in threads, at most so many ahead."""
    pending: deque[Future[Prepared]] = deque(pool.submit(work, row) for row in islice(rows, n_ahead))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(work, row) for row in islice(rows, 1))
        yield result
