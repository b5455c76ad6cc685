"""What the last pass saw: `.STORE.h5.seen`, which saves time and holds nothing else.

A file whose size, times and inode are those of the last pass has the content it had, and need not be read. A request
whose weights file and libraries are unchanged has the identity it had, and no network need be loaded to know it. Lost
or removed, it costs one pass of reading. It holds no vector, and is believed as far as whoever writes beside the store
is: `--rehash` believes none of it but what a request stands for.

Of the times, the time of change (ctime) is compared too: a program can set the other one back.
"""

import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from featcache import durable
from featcache.errors import FeatcacheError, UsageError
from featcache.identity import Json, canonical_json
from featcache.images.files import stamp

_VERSION = 2
_TICK_NS = 100_000_000  # a file changed again within one tick of its file system's clock may keep its times
_COARSE_TICK_NS = 2_000_000_000  # of file systems that keep whole seconds, or two of them

_MOST = 1 << 40  # of a size; a network's are thousands
_FIELDS = {"backbone", "decode", "precision", "probe", "stored_dtype", "transform"}  # of an identity, at least
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BEGINNING = b'{"answers":'

Stamp = Sequence[int]  # size, mtime, ctime (ns), inode; empty where there is no file


@dataclass(frozen=True)
class Answer:
    """What a request stood for: its identity, and what of the network is told to people.

    Attributes:
        shapes: tap -> shape of what it gives for one image; `pooled` is [d].
    """

    identity: Json
    backbone: str
    weights: str
    shapes: Mapping[str, Sequence[int]]

    def __post_init__(self) -> None:
        shapes = dict(self.shapes)
        sizes = [size for shape in shapes.values() for size in shape]
        is_shaped = len(shapes["pooled"]) == 1 and all(type(size) is int and 0 < size <= _MOST for size in sizes)
        is_named = isinstance(self.backbone, str) and isinstance(self.weights, str)
        if not is_shaped or not is_named or not dict(self.identity).keys() >= _FIELDS:
            raise ValueError("not the answer to a request")
        object.__setattr__(self, "shapes", {tap: list(shape) for tap, shape in shapes.items()})

    @property
    def dim(self) -> int:
        """d, the width of the pooled vector."""
        return self.shapes["pooled"][0]


@dataclass
class FileCache:
    """What the last pass saw, by path and by request.

    Attributes:
        files: absolute path -> (stamp, sha256 of its bytes).
        answers: digest of a request -> (answer, stamps of the files it hangs on, by path).
    """

    files: dict[str, tuple[Stamp, str]] = field(default_factory=dict)
    answers: dict[str, tuple[Answer, dict[str, Stamp]]] = field(default_factory=dict)

    @classmethod
    def read(cls, store_path: Path) -> "FileCache":
        """What was written beside a store; empty where there is nothing, or nothing that can be read."""
        try:
            stored = json.loads(durable.read_regular(_path(store_path)))
            if stored["version"] != _VERSION:
                return cls()
            files: dict[str, tuple[Stamp, str]] = {
                path: (_checked(entry[:-1]), _digest(entry[-1])) for path, entry in stored["files"].items()
            }
            answers: dict[str, tuple[Answer, dict[str, Stamp]]] = {
                key: (Answer(**answer), {path: _checked(stamps) for path, stamps in hangs_on.items()})
                for key, (answer, hangs_on) in stored["answers"].items()
            }
        except (OSError, UsageError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return cls()
        return cls(files, answers)

    def write(self, store_path: Path) -> None:
        """Keeps it beside the store. That it cannot be written is no reason for a finished pass to fail."""
        record = {
            "version": _VERSION,
            "files": {path: [*stamp, digest] for path, (stamp, digest) in self.files.items()},
            "answers": {key: [asdict(answer), hangs_on] for key, (answer, hangs_on) in self.answers.items()},
        }
        with suppress(FeatcacheError):
            durable.claim(_path(store_path), _is_ours, "memory of a pass")
            durable.write_bytes(_path(store_path), canonical_json(record).encode("ascii"))

    def content(self, path: Path, stamp: Stamp) -> str | None:
        """The sha256 of a file that is as it was seen."""
        stored_stamp, digest = self.files.get(os.path.abspath(path), ((), ""))
        return digest if stamp and tuple(stored_stamp) == tuple(stamp) else None

    def keep(self, path: Path, stamp: Stamp, digest: str) -> None:
        """Remembers a file by its content."""
        self.files[os.path.abspath(path)] = (stamp, digest)

    def answer(self, key: str) -> Answer | None:
        """What a request stood for, if every file it hangs on is as it was."""
        if key not in self.answers:
            return None
        answer, hangs_on = self.answers[key]
        return answer if all(stamp_of(Path(path)) == stamp for path, stamp in hangs_on.items()) else None

    def keep_answer(self, key: str, answer: Answer, hangs_on: Iterable[Path]) -> None:
        """Remembers what a request stands for. Files that changed this very moment are not trusted to stay."""
        stamps: Mapping[str, Stamp] = {os.path.abspath(path): stamp_of(path) for path in hangs_on}
        if all(is_at_rest(stamp, time.time_ns()) for stamp in stamps.values()):
            self.answers = {key: (answer, dict(stamps))}


def stamp_of(path: Path) -> Stamp:
    """Size, times and inode of a file; empty where it cannot be had."""
    try:
        return stamp(os.stat(path))
    except OSError:
        return ()


def is_at_rest(stamp: Stamp, now_ns: int) -> bool:
    """Whether a change from now on would show in a file's times, given the tick of its file system's clock."""
    if not stamp:
        return False
    _, mtime, ctime, _ = stamp
    tick = _COARSE_TICK_NS if ctime % 1_000_000_000 == 0 else _TICK_NS
    return now_ns - max(mtime, ctime) > tick


def _checked(stamp: Sequence[int]) -> Stamp:
    """A stamp of four whole numbers, or an empty one."""
    if len(stamp) not in (0, 4) or not all(type(value) is int for value in stamp):
        raise ValueError("not the stamp of a file")
    return tuple(stamp)


def _digest(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise ValueError("not a sha256")
    return text


def _is_ours(path: Path) -> bool:
    with durable.open_regular(path) as file:
        return file.read(len(_BEGINNING)) == _BEGINNING


def _path(store_path: Path) -> Path:
    return store_path.with_name(f".{store_path.name}.seen")
