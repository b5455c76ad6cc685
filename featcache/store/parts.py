"""The folder of a pass that is not published yet: its finished parts and its plan.

`STORE.h5.partial/` outlives kill -9 and power cuts: a part is there, whole and under its final name, or it is not.
The progress that is reported is the progress that is on disk.
"""

import io
import json
import re
import shutil
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from featcache import durable
from featcache.errors import (
    CorruptStore,
    FeatcacheError,
    IdentityMismatch,
    NoSpace,
    StoreLocked,
    StoreNotFound,
    UnknownFormat,
    UntrustedFile,
    UsageError,
    in_our_words,
)
from featcache.identity import Json, canonical_json, digest_bytes
from featcache.store.reader import Store, differences
from featcache.store.schema import (
    EMBEDDED,
    FAILED,
    PART_FORMAT,
    REUSED,
    SHA256,
    Array,
    get_text,
    new_file,
    put_rows,
    put_text,
    set_text,
    texts,
)
from featcache.store.validation import check_part, open_file, reading

_PART_NAME = re.compile(r"(?:part|old)-(\d{10})-([0-9a-f]{16})\.h5")


@dataclass(frozen=True)
class Part:
    """The finished rows `start` to `start + m` of a plan.

    Attributes:
        features: tap -> (m, d); a failed row is NaN.
        content_sha256: m digests, empty where the file could not be read.
        origin: (m,) uint8 of EMBEDDED, REUSED, FAILED.
        failures: row within the part -> (code, reason).
        environment: environment of the pass that computed vectors of this part; None where it computed none.
    """

    start: int
    features: dict[str, Array]
    content_sha256: list[str]
    origin: Array
    failures: dict[int, tuple[str, str]]
    environment: Json | None = None


def read_part(path: Path, taps: Container[str] | None = None) -> Part:
    """A part as it was written, with those of its features that are in `taps`; all where that is None. Its digest was
    checked when the folder was locked.

    Raises:
        CorruptStore, UntrustedFile: it was not written by featcache.
    """
    with open_file(path) as file:
        check_part(path, file)
        with reading(path, "a part"):
            failed = file["failures"]
            reasons = zip(texts(failed["code"][:]), texts(failed["reason"][:]), strict=True)
            return Part(
                start=int(file.attrs["start"]),
                features={tap: rows[:] for tap, rows in file["features"].items() if taps is None or tap in taps},
                content_sha256=texts(file["content_sha256"][:]),
                origin=file["origin"][:],
                failures=dict(zip(failed["row"][:].tolist(), reasons, strict=True)),
                environment=json.loads(get_text(file, "environment")),
            )


def is_sound(part: Part, rows: Mapping[str, Array] | None) -> bool:
    """Whether what a part says of its rows holds together, and its arrays are those of such rows; None for any."""
    m, failed = len(part.origin), part.origin == FAILED
    texts_fit = len(part.content_sha256) == m and all(
        SHA256.fullmatch(digest) or (not digest and bad)
        for digest, bad in zip(part.content_sha256, failed.tolist(), strict=True)
    )
    arrays_fit = all(len(values) == m and np.isfinite(values[~failed]).all() for values in part.features.values())
    if rows is not None:
        kinds = {tap: (values.shape[1:], values.dtype) for tap, values in part.features.items()}
        arrays_fit = arrays_fit and kinds == {tap: (row.shape[1:], row.dtype) for tap, row in rows.items()}
    return (
        bool(m)
        and texts_fit
        and arrays_fit
        and bool(np.isin(part.origin, (EMBEDDED, REUSED, FAILED)).all())
        and sorted(part.failures) == np.flatnonzero(failed).tolist()
        and isinstance(part.environment, dict | None)
    )


def part_taps(path: Path) -> list[str]:
    """The feature arrays of a part, none of which is read.

    Raises:
        CorruptStore, UntrustedFile: it was not written by featcache.
    """
    with open_file(path) as file:
        check_part(path, file)
        with reading(path, "a part"):
            return list(file["features"])


class PartFolder:
    """`STORE.h5.partial/`, beside the real file of a store that is reached through a link.

    Parts of an earlier plan (images were added, changed or renamed since) are kept as `old-*.h5`: their rows no longer
    have their place, but their vectors are still those of their digests.
    """

    def __init__(self, store_path: Path, plan: Json, rows: Mapping[str, Array] | None = None) -> None:
        """Args:
        store_path: the store.
        plan: JSON of what the parts belong to: `identity`, and `n_rows` and `part_rows`, where they are known.
        rows: tap -> (0, …) of the shape and type of its rows; a part with others is none of this pass. None for any.
        """
        self.store_path = store_path
        self.path = folder_of(store_path)
        self._plan, self._rows = plan, rows
        self._finished: dict[int, Path] = {}
        self._head = cache(partial(read_part, taps=()))  # the file of a name never changes

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process. Its parts are kept if they belong to the same plan, else set aside as old.

        Raises:
            StoreLocked: another process is writing this store.
            IdentityMismatch: the folder belongs to a pass with another identity.
        """
        with durable.locked(self.store_path):
            try:
                with in_our_words("writing", self.path):
                    durable.make_folders(self.path)
                    self._remove_leftovers()
                    self._keep_same_plan()
                    self._sync()
                    self._finished = {
                        start: path for start, path in _whole(self.path, "part") if self._fits(path, start)
                    }
                yield
            finally:
                self._remove_if_empty()

    def finished(self) -> dict[int, Path]:
        """First row -> file of the parts that are whole: the digest in the name is that of the bytes."""
        return dict(sorted(self._finished.items()))

    def heads(self) -> dict[Path, Part]:
        """File -> the part without its features, of the finished ones, in their order. Each is read once."""
        return {path: self._head(path) for path in self.finished().values()}

    def old(self) -> list[Path]:
        """Whole parts of earlier plans of the same identity."""
        return [path for _, path in _whole(self.path, "old") if self._fits(path, None)]

    def _fits(self, path: Path, start: int | None) -> bool:
        """Whether a part is one that this pass could have written: the digest in its name is that of its bytes, but
        they may be somebody else's. What does not fit is left out, and computed again."""
        with suppress(CorruptStore, UntrustedFile, UnknownFormat):
            part = read_part(path)
            return is_sound(part, self._rows) and (start is None or self._is_in_place(part, start))
        return False

    def _is_in_place(self, part: Part, start: int) -> bool:
        if "n_rows" not in self._plan or "part_rows" not in self._plan:
            return part.start == start
        step, n = self._plan["part_rows"], self._plan["n_rows"]
        return part.start == start and start % step == 0 and len(part.origin) == min(step, n - start)

    def write(self, part: Part) -> Path:
        """Puts a part on disk. When this returns, a power cut cannot take it.

        Raises:
            NoSpace: the parts before it are safe.
        """
        data = _part_bytes(part)
        path = self.path / f"part-{part.start:010d}-{digest_bytes(data)[:16]}.h5"
        try:
            durable.write_bytes(path, data)
        except NoSpace as error:
            raise NoSpace(
                f"no space: this part needs {len(data) / 1e6:,.1f} MB, {free_mb(self.path)} free on "
                f"{self.path.parent}; {len(self._finished):,} parts are safe. Free some and run the same command again."
            ) from error
        self._finished[part.start] = path
        return path

    def failures(self) -> dict[int, tuple[str, str]]:
        """Row of the plan -> (code, reason), over all finished parts."""
        return {head.start + row: failure for head in self.heads().values() for row, failure in head.failures.items()}

    def contents(self) -> list[str]:
        """The sha256 of every image of a finished plan; empty for those that failed."""
        return [
            "" if origin == FAILED else digest
            for head in self.heads().values()
            for digest, origin in zip(head.content_sha256, head.origin, strict=True)
        ]

    @property
    def planned_ns(self) -> int:
        """When the plan was written, on the clock of this file system."""
        return (self.path / "plan.json").stat().st_mtime_ns

    def clear(self) -> None:
        """Drops the parts, once they are published."""
        self._finished = {}
        for path in (*self.path.glob("part-*.h5"), *self.path.glob("old-*.h5")):
            if path.is_symlink() or not path.is_dir():  # a folder is none of ours
                path.unlink()

    def _sync(self) -> None:
        """What a killed writer may have left undone: it made the folder, or named a part, and fell before the fsync."""
        for folder in (self.path.parent, self.path):
            durable.sync_folder(folder)

    def _remove_leftovers(self) -> None:
        """Temporary files of writers that were killed; holding the lock, none can be at work."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def _remove_if_empty(self) -> None:
        """A folder without parts holds nothing worth a message. Only files of this module's making are removed."""
        if any(self.path.glob("part-*.h5")) or any(self.path.glob("old-*.h5")) or is_training(self.path):
            return
        for path in (*self.path.glob(".*.tmp"), self.path / "plan.json"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # somebody put a file of their own in it
            self.path.rmdir()

    def _keep_same_plan(self) -> None:
        stored_plan = _read_plan(self.path)
        if is_training(self.path):
            raise UsageError(
                f"{self.path} holds epochs of an unfinished training (featcache fine-tune or train). Finish it, or "
                f"write to another path."
            )
        if stored_plan is None:
            self.clear()  # without its plan no part has a place
        else:
            self._check_same_identity(stored_plan)
            if stored_plan == self._plan:
                return
            for path in self.path.glob("part-*.h5"):
                path.rename(path.with_name(f"old-{path.name[5:]}"))
        durable.sync_folder(self.path)  # else a power cut may leave the new plan with parts of the old one
        durable.write_bytes(self.path / "plan.json", canonical_json(self._plan).encode("ascii"))

    def _check_same_identity(self, stored: Json) -> None:
        if lines := differences(stored["identity"], self._plan["identity"]):
            fields = "\n  ".join(lines)
            raise IdentityMismatch(
                f"{self.path} holds parts of a stopped pass, of other vectors than the ones asked for:\n  {fields}\n"
                f"Finish it with its own options, write to another path, or drop its parts: rm -r {self.path}"
            )


def held_identity(store_path: Path) -> Json | None:
    """That of the store at a path, else that of the stopped pass into it; None where there is neither, or none that can
    be read: whoever opens it then will say why."""
    with suppress(FeatcacheError):
        if store_path.exists():
            with Store.open(store_path) as store:
                return store.identity
    plan = _read_plan(folder_of(store_path))
    return plan["identity"] if plan else None


def folder_of(store_path: Path) -> Path:
    """Where the parts of a store are while it is made."""
    place = durable.real(store_path)
    return place.with_name(f"{place.name}.partial")


def free_mb(folder: Path) -> str:
    """Free space for a message: `3.1 MB`."""
    return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"


def _whole(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """(first row, file) of the parts whose bytes have the digest in their name."""
    named = [(path, _PART_NAME.fullmatch(path.name)) for path in sorted(folder.glob(f"{kind}-*.h5"))]
    return [
        (int(name[1]), path)
        for path, name in named
        if name and path.is_file() and digest_bytes(durable.read_regular(path)).startswith(name[2])
    ]


def is_training(folder: Path) -> bool:
    """Whether it is a training that keeps its epochs in a folder, and not a pass its parts."""
    plan = _json_of(folder / "plan.json")
    return isinstance(plan, dict) and "command" in plan


def _read_plan(folder: Path) -> Json | None:
    """The plan the parts belong to; None where there is none, or not one of ours."""
    plan = _json_of(folder / "plan.json")
    is_ours = isinstance(plan, dict) and isinstance(plan.get("identity"), dict) and "command" not in plan
    counts = [plan[name] for name in ("n_rows", "part_rows") if name in plan] if is_ours else []
    return plan if is_ours and all(type(count) is int and count >= 0 for count in counts) else None


def _json_of(path: Path) -> Json:
    """What a file of ours says; None where there is no file, or no JSON in it."""
    try:
        return json.loads(durable.read_regular(path)) if path.is_file() else None
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def _part_bytes(part: Part) -> memoryview:
    buffer = io.BytesIO()

    def fill() -> None:
        with new_file(buffer) as file:
            set_text(file, "format", PART_FORMAT)
            set_text(file, "environment", canonical_json(part.environment))
            file.attrs["start"] = part.start
            put_rows(file, "origin", part.origin)
            put_text(file, "content_sha256", part.content_sha256)
            for tap, values in part.features.items():
                put_rows(file, f"features/{tap}", values)
            failures = sorted(part.failures.items())
            put_rows(file, "failures/row", np.array([row for row, _ in failures], dtype=np.int64))
            put_text(file, "failures/code", [code for _, (code, _) in failures])
            put_text(file, "failures/reason", [reason for _, (_, reason) in failures])

    out_of_reach_of_signals(fill)
    return buffer.getbuffer()  # not a copy of all of it


def out_of_reach_of_signals(work: Callable[[], None]) -> None:
    """Runs work that lets HDF5 call back into Python in a thread of its own, and waits for its end in any case.

    Python delivers Ctrl-C to the main thread only. Raised inside a callback it would be swallowed by HDF5, which then
    takes a half-written file for a whole one, or ends the interpreter. A Ctrl-C is raised once the work has ended, or
    at once if it has not begun: an executor forgets a thread whose start was interrupted, and its file would be closed
    under it.
    """
    result: Future[None] = Future()

    def run() -> None:
        if result.set_running_or_notify_cancel():
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread that waits
                result.set_exception(error)
            else:
                result.set_result(None)

    try:
        threading.Thread(target=run, name="hdf5").start()
        wait([result])
    except BaseException:
        while not (result.cancel() or result.done()):
            with suppress(KeyboardInterrupt):  # another Ctrl-C; the first one is raised when the work has ended
                wait([result])
        raise
    result.result()


# --- how far a pass is ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """How far the pass into a store is.

    Attributes:
        state: "running", "stopped" (the same command continues) or "published" (nothing is under way).
        total, done, pending, failed: images; done are on disk, failed ones among them.
        writer: who is writing, while running.
    """

    state: str
    total: int
    done: int
    pending: int
    failed: int
    writer: str


def status(store_path: Path | str) -> Status:
    """What a pass has finished, whether it runs, was stopped or is published. Never disturbs a writer.

    Raises:
        StoreNotFound: neither a store nor a pass into it, or a pass that has no plan yet.
        CorruptStore: its plan does not say of how many images.
        UnknownFormat, UntrustedFile, AccessDenied: the store cannot be opened.
    """
    store_path = Path(store_path)
    folder = folder_of(store_path) if store_path.name else store_path  # "." and "/" are folders, and no names
    if not store_path.name or not folder.is_dir():
        with Store.open(store_path) as store:
            n_failed = len(store.failures)
            n = len(store) + n_failed
            return Status("published", n, n, 0, n_failed, "")
    if (plan := _read_plan(folder)) is None:
        if is_training(folder):
            raise StoreNotFound(f"{store_path} is being trained (featcache fine-tune or train), which is no pass.")
        if (folder / "plan.json").exists():
            raise CorruptStore(f"{folder / 'plan.json'} is damaged. Run the same featcache embed command again.")
        raise StoreNotFound(f"{folder} has no plan yet: a pass is starting, or was stopped before it did anything.")
    if "n_rows" not in plan:
        raise CorruptStore(f"{folder / 'plan.json'} is damaged: it has no n_rows. Run the same command again.")
    parts = [_read_while_it_lasts(path) for path in sorted(folder.glob("part-*.h5"))]
    done = sum(len(part.origin) for part in parts if part)
    failed = sum(int(np.sum(part.origin == FAILED)) for part in parts if part)
    writer = durable.writer_of(store_path)
    n_rows = int(plan["n_rows"])
    return Status("running" if writer else "stopped", n_rows, done, n_rows - done, failed, writer)


def _read_while_it_lasts(path: Path) -> Part | None:
    """A part without its features; None if it was published and removed meanwhile, or is damaged: it does not count."""
    try:
        return read_part(path, taps=())
    except (StoreNotFound, CorruptStore):
        return None


def check_unlocked(store_path: Path) -> None:
    """Raises StoreLocked where another process is writing the store, without waiting and before anything is loaded. Who
    writes takes the lock itself, all the same."""
    if store_path.name and (writer := durable.writer_of(store_path)):
        raise StoreLocked(f"{store_path} is being written by {writer}. Wait for it, or write to another path.")
