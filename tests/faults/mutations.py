"""One byte of a store is another; a store is cut short; a block of it is zero.

What must hold: whenever plain h5py reads something else than was published, or cannot read it, `verify` says
CorruptStore, and names the array if its structure could be read; whenever `verify` passes, every value is the one that
was published. And HDF5 never takes the interpreter down. Half of the changes are aimed at what is not vectors or text:
the superblock, headers and indices, a few per cent of the file.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featcache.errors import CorruptStore, FeatcacheError, UnknownFormat
from featcache.store import EMBEDDED, FAILED, Part, PartFolder, publish, verify
from tests.faults.ground import Figures, timed

_CHUNK = 250  # changes per process
_BLOCK = 4096
_SIGNATURE_SEEN = 6  # bytes of HDF5's signature; a file with fewer is no store, damaged or not
Mutation = tuple[str, Callable[[bytes], bytes]]


def mutations(work: Path, n: int, seed: int = 0) -> Figures:
    """n changed bytes, n/20 cuts and n/20 zeroed blocks, of a float32 and a float16 store in turn."""
    figures = Figures("mutations")
    stores = [_publish(work / f"{dtype}.h5", dtype).read_bytes() for dtype in ("float32", "float16")]
    with timed(figures):
        for number, start in enumerate(range(0, n, _CHUNK)):
            m, dice = min(_CHUNK, n - start), random.Random(seed + start)
            data = stores[number % 2]
            made = [*_bytes(work, data, m, dice), *_cuts(data, max(1, m // 20), dice), *_blocks(data, m // 20, dice)]
            for what, complaints in _in_a_fork(work / "changed.h5", data, made):
                figures.count(what, complaints)
    return figures


def _publish(path: Path, dtype: str, n: int = 600, d: int = 48) -> Path:
    """A store of 600 rows in three chunks, and of as many boundaries in a chunk each, with columns of long, short and
    missing texts, and with failures."""
    dice = np.random.default_rng(1)
    failed = {i: ("damaged", f"reason {i}") for i in range(0, n, 50)}
    features = dice.standard_normal((n, d)).astype(dtype)
    boundary = dice.standard_normal((n, 2, 2, 2)).astype(dtype)
    features[list(failed)] = boundary[list(failed)] = np.nan
    origin = np.full(n, EMBEDDED, dtype=np.uint8)
    origin[list(failed)] = FAILED
    contents = [hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(n)]
    columns = {"label": [("normal", "sick", "")[i % 3] for i in range(n)], "group": [f"patient {i}" for i in range(n)]}
    folder = PartFolder(path, {"identity": {}})
    with folder.locked():
        folder.write(Part(0, {"pooled": features, "boundary": boundary}, contents, origin, failed, {"numpy": "2"}))
        names = [f"folder/image {i:04d}.png" for i in range(n)]
        publish(path, folder.heads(), names, columns, {"backbone": {"name": "none"}})
        folder.clear()
    return path


# --- changes ----------------------------------------------------------------------------------------------------------


def _bytes(work: Path, data: bytes, n: int, dice: random.Random) -> Iterator[Mutation]:
    rest = _not_in_arrays(work / "original.h5", data)
    for i in range(n):
        at = dice.randrange(len(data)) if i % 2 else dice.choice(rest)
        flip = 1 << dice.randrange(8) if i % 4 < 2 else dice.randrange(1, 256)
        yield f"byte {at} ^ {flip}", lambda data, at=at, flip=flip: _with(data, at, bytes([data[at] ^ flip]))


def _cuts(data: bytes, n: int, dice: random.Random) -> Iterator[Mutation]:
    for _ in range(n):
        keep = dice.randrange(len(data))
        yield f"cut at {keep}", lambda data, keep=keep: data[:keep]


def _blocks(data: bytes, n: int, dice: random.Random) -> Iterator[Mutation]:
    for _ in range(n):
        at = dice.randrange(len(data) // _BLOCK) * _BLOCK
        yield f"block at {at} zeroed", lambda data, at=at: _with(data, at, bytes(_BLOCK))


def _with(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _not_in_arrays(path: Path, data: bytes) -> list[int]:
    """The places of bytes that are no array's."""
    path.write_bytes(data)
    outside = np.ones(len(data), dtype=bool)

    def mark(name: str, thing: Any) -> None:
        if isinstance(thing, h5py.Dataset):
            for i in range(thing.id.get_num_chunks()):
                chunk = thing.id.get_chunk_info(i)
                outside[chunk.byte_offset : chunk.byte_offset + chunk.size] = False

    with h5py.File(path, "r") as file:
        file.visititems(mark)
    return np.flatnonzero(outside).tolist()


# --- what must hold ---------------------------------------------------------------------------------------------------


def _in_a_fork(path: Path, data: bytes, made: list[Mutation]) -> Iterator[tuple[str, list[str]]]:
    """Each change and what is wrong about its answer; a process that dies is one complaint about all it had to do."""
    answers = path.with_suffix(".json")
    answers.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            path.write_bytes(data)
            expected = _all_of(path)
            found = [[what, _complaints(path, change(data), data, expected)] for what, change in made]
            answers.write_text(json.dumps(found))
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if answers.exists():
        yield from json.loads(answers.read_text())
    else:
        yield from ((what, [f"the interpreter ended with {code} at one of these"]) for what, _ in made)


def _complaints(path: Path, changed: bytes, data: bytes, expected: dict[str, bytes]) -> list[str]:
    path.unlink()
    path.write_bytes(changed)
    found = _all_of(path)
    damaged = sorted(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name))
    try:
        verify(path)
    except CorruptStore as error:
        arrays = [name for name in damaged if name in found and not name.startswith("@")]
        return [f"{name} is not named: {error}" for name in arrays if name not in str(error)]
    except UnknownFormat as error:
        alike = sum(a == b for a, b in zip(changed[:8], data[:8], strict=False))
        return [] if alike < _SIGNATURE_SEEN else [f"not a store, it says: {error}"]
    except FeatcacheError as error:
        return [f"{type(error).__name__}: {error}"]
    return [f"{name} differs, and verify passed" for name in damaged]


def _all_of(path: Path) -> dict[str, bytes]:
    """Everything plain h5py reads: arrays by name, attributes behind @. What cannot be read is b"?"; names that cannot
    be had are not there."""
    held: dict[str, bytes] = {}

    def take(name: str, thing: Any) -> None:
        held[name] = _value(lambda: thing[()]) if isinstance(thing, h5py.Dataset) else b""
        for key in list(thing.attrs):
            held[f"@{name}/{key}"] = _value(lambda key=key: np.asarray(thing.attrs[key]))

    try:
        with h5py.File(path, "r", locking=False) as file:
            take("", file)
            file.visititems(take)
    except Exception:  # noqa: BLE001  # whatever h5py makes of damage: what was read until then counts
        held["@"] = b"?"
    return held


def _value(read: Callable[[], Any]) -> bytes:
    try:
        value = read()
        return f"{value.dtype} {value.shape} ".encode() + value.tobytes()
    except Exception:  # noqa: BLE001
        return b"?"
