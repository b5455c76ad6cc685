"""What a result came from: canonical JSON, digests, differences between two identities, the environment.

Knows nothing of images, stores or networks. A digest is always sha256 in lower-case hexadecimal.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Self, TypeVar

import numpy as np

Json = Any  # what `json.loads` returns
T = TypeVar("T")

_LIBRARIES = (
    "featcache", "h5py", "numpy", "pillow", "pydicom", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg",
    "scikit-learn", "timm", "torch", "torchvision",
)  # fmt: skip


def canonical_json(value: Json) -> str:
    """One spelling per value: sorted keys, no spaces, ASCII, floats as Python prints them (shortest that round-trips).

    Raises:
        ValueError: on NaN or infinity, which JSON does not have.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_bytes(*chunks: bytes | memoryview) -> str:
    """sha256 of the chunks, one after another."""
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return sha.hexdigest()


def digest_json(value: Json) -> str:
    """sha256 of the canonical JSON of `value`."""
    return digest_bytes(canonical_json(value).encode("ascii"))


class ArrayDigest:
    """sha256 of an array whose rows arrive in pieces: canonical JSON of dtype and shape, then the bytes (little-endian,
    C order). Equal for equal arrays, however they were cut."""

    def __init__(self, dtype: np.dtype[Any], shape: Sequence[int]) -> None:
        header = {"dtype": np.dtype(dtype).str, "shape": [int(length) for length in shape]}
        self._sha = hashlib.sha256(canonical_json(header).encode("ascii"))

    def update(self, rows: np.ndarray[Any, Any]) -> Self:
        """Takes the next rows."""
        self._sha.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        return self

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def digest_arrays(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names (little-endian, C order)."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        header = {"name": name, "dtype": array.dtype.str, "shape": list(array.shape)}
        sha.update(canonical_json(header).encode("ascii"))
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def from_json(kind: Callable[..., T], fields: Json) -> T:
    """A spec from the JSON of its fields: lists become the tuples they were."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def flatten(value: Json, prefix: str = "") -> Iterator[tuple[str, Json]]:
    """`{"a": {"b": 1}}` as `("a.b", 1)`: the fields of a nested identity by their full name."""
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for key in sorted(value):
        yield from flatten(value[key], f"{prefix}.{key}" if prefix else str(key))


def difference(stored: Json, requested: Json) -> list[str]:
    """A line per field that differs: `transform.input_size: [224, 224] here, [192, 192] asked`."""
    here, there = dict(flatten(stored)), dict(flatten(requested))
    absent = "absent"
    return [
        f"{field}: {here.get(field, absent)} here, {there.get(field, absent)} asked"
        for field in sorted(here.keys() | there.keys())
        if here.get(field, absent) != there.get(field, absent)
    ]


def environment(device: str = "cpu") -> dict[str, str]:
    """Versions and machine: recorded beside a result and compared with a warning, never part of an identity."""
    here = {"python": platform.python_version(), "machine": platform.machine(), "device": device}
    return {**{library: _version(library) for library in _LIBRARIES}, **here}


@cache
def _version(library: str) -> str:
    from importlib import metadata  # a fifteenth of the start of a decoding process, which has no use for it

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:  # an install without dependencies: a store can still be read
        return "absent"
