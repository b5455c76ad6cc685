"""A worker's end of decoding: reads a file once, hashes those bytes, and decodes them, within a bound of memory.

What a worker may hold follows from the size of the file and the pixels that its header states: a file that asks for
more is `too-large`, whatever part of it asks. Time is measured by whoever waits, in `workers`.
"""

import json
import os
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import ImageError
from featcache.identity import Json, digest_bytes, from_json
from featcache.images import augment, decoding, files, headers
from featcache.specs import MAX_PIXELS, AugmentedCopies, DecodeSpec, TransformSpec

Array = np.ndarray[Any, Any]

_ROOM_BYTES = 128 << 20  # beside the file and its pixels
_MOST_BYTES = 896 << 20  # of any image, unless more pixels are allowed
_PIXEL_BYTES = 24  # of a pixel, at most: JPEG 2000 in colour, 12 in the codec and 11 of copies
_THINNEST = 50  # the longer side of an image, of its shorter one, at most


def serve(descriptor: int) -> None:
    """The life of a worker: answers until the pass closes its end, or is gone."""
    with socket.socket(fileno=descriptor) as end, end.makefile("rwb") as stream:
        config = json.loads(stream.readline())
        work = _Work(
            [from_json(TransformSpec, fields) for fields in config["transforms"]],
            from_json(DecodeSpec, config["decode"]),
            AugmentedCopies.from_identity(config["augmentations"]) if config["augmentations"] else None,
            config["is_whole"],
            _Memory(config["decode"]["max_pixels"]),
        )
        _send(stream, {"ready": True})
        while line := stream.readline():
            _answer(stream, json.loads(line), work)


class _Memory:
    """What a worker may hold beside itself. Where the system does not say what a process holds, nothing is limited."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._own_bytes = _data_bytes()

    def allow(self, n_bytes: int, n_pixels: int) -> None:
        """Limits this process to what it held at its start, some room, and this much."""
        if self._own_bytes is None:
            return
        import resource

        bound = _MOST_BYTES * max(1, self.max_pixels // MAX_PIXELS)
        limit = self._own_bytes + min(_ROOM_BYTES + n_bytes + _PIXEL_BYTES * n_pixels, bound)
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int | None:
    """Memory of this process that is no file's: what RLIMIT_DATA limits on Linux; None elsewhere."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmData")), None)
    return None


@dataclass(frozen=True)
class _Work:
    """What is made of a file."""

    transforms: Sequence[TransformSpec]
    decode: DecodeSpec
    augmentations: AugmentedCopies | None
    is_whole: bool
    memory: _Memory

    def read(self, path: Path, expected: Sequence[int] | None = None) -> bytes:
        """The bytes of a file; a large one only where its header has pixels for them.

        Raises:
            ImageError: as `images.read` and `headers.read`; `too-large`: more bytes than its pixels can be.
        """
        if (n_bytes := files.size(path)) > headers.LARGE_BYTES:
            headers.read(path, self.decode.max_pixels).check_bytes()
        self.memory.allow(2 * n_bytes, 0)
        return files.read(path, expected)

    def allow_pixels(self, data: bytes) -> None:
        """Allows the memory that decoding and resizing need, by what the header says; where it cannot be read,
        decoding says why."""
        with suppress(ImageError):
            header = headers.of(data, self.decode.max_pixels)
            resized = max((_THINNEST * spec.shorter_side**2 for spec in self.transforms), default=0)
            self.memory.allow(2 * len(data), min(header.n_pixels, self.decode.max_pixels) + min(resized, MAX_PIXELS))

    def pixels(self, data: bytes, digest: str) -> Iterator[Array]:
        """For each transform (1 + K, h, w) or (1 + K, h, w, 3) uint8."""
        decoded = decoding.decode_each(data, self.transforms, self.decode)
        for transform, image in zip(self.transforms, decoded, strict=True):
            resized = transform.resize(image, self.decode.fast)
            clean = np.asarray(resized if self.is_whole else transform.crop(resized))[None]
            views = [augment.views(resized, transform, self.augmentations, digest)] if self.augmentations else []
            yield np.concatenate([clean, *views])


def _answer(stream: Any, request: Json, work: _Work) -> None:
    path = Path(os.fsdecode(request["path"].encode("latin-1")))
    try:
        work.memory.allow(0, 0)
        if request["do"] == "prepare":
            _prepare(stream, path, request["expected"], work)
        else:
            _send(stream, {"answer": _ANSWERS[request["do"]](path, work)})
    except ImageError as error:
        _send(stream, {"failure": [error.code, str(error)]})
    except MemoryError:
        _send(stream, {"failure": ["too-large", "not enough memory to decode it"]})
    except OSError:  # the pass is gone
        sys.exit(0)
    except Exception:  # noqa: BLE001  # told to the pass, which ends with it: a bug of ours
        _send(stream, {"bug": traceback.format_exc()})


def _prepare(stream: Any, path: Path, expected: Sequence[int], work: _Work) -> None:
    data = work.read(path, expected)
    digest = digest_bytes(data)
    _send(stream, {"digest": digest})
    if json.loads(stream.readline() or b"false"):
        work.allow_pixels(data)
        pixels = list(work.pixels(data, digest))
        _send(stream, {"shapes": [list(array.shape) for array in pixels]}, *pixels)


def _header(path: Path, work: _Work) -> Json:
    return asdict(headers.read(path, work.decode.max_pixels))


def _look(path: Path, work: _Work) -> Json:
    data = work.read(path)
    work.allow_pixels(data)
    return digest_bytes(data), asdict(decoding.look(data, work.decode))


def _digest(path: Path, work: _Work) -> Json:
    return digest_bytes(*files.chunks(path))


_ANSWERS = {"header": _header, "look": _look, "digest": _digest}


def _send(stream: Any, value: Json, *payload: Array) -> None:
    stream.write(json.dumps(value).encode("ascii") + b"\n")
    for array in payload:
        stream.write(array.reshape(-1).data)
    stream.flush()
