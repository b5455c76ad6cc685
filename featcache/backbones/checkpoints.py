"""A file of weights as training scripts leave it: named tensors out, whatever wraps them.

The format is told by content and never by suffix: safetensors, or what `torch.save` writes (zip or pickle). A pickle is
opened as tensors and plain values only; a file of another format is named as what it is. A training checkpoint may hold
several state dicts (a model, its moving average, a teacher): all are given, in the order of preference. Knows nothing
of networks.
"""

import argparse
import pathlib
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from featcache.errors import FeatcacheError, UntrustedFile, UsageError, from_os_error

RUN = "run"
SOURCE_KEY = "featcache.weights_source"  # of a file's metadata: RUN, where a training of ours made the weights

# Of several state dicts in one file the first of these is taken: a moving average before the model itself, as timm's
# `load_state_dict` does; of a distillation the teacher, as DINO's own evaluation does (Caron et al. 2021).
_PREFERRED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher",
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "backbone", "encoder", "weights",
    "params", "student",
)  # fmt: skip
_MAX_DEPTH = 3  # of wrappers in wrappers
_NOT_ZIPPED = 2  # times the size of a file that its members may have: torch stores them without compression

# What training scripts put beside the tensors. None of it does anything when it is made.
_PLAIN_VALUES: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
    np.dtype,
    *sorted({type(np.dtype(kind)) for kind in "?bhilqBHILQefdgFDSU"}, key=str),
    # What a NumPy scalar is unpickled by, under its names in NumPy 1 and 2.
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]

_ZIP, _PICKLE = b"PK\x03\x04", re.compile(rb"\x80[\x02-\x05]")
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x3a\x42]")  # field 1 of a ModelProto, and one that follows
_OTHERS = (  # how a file begins -> what it is, and what to do
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (weights of Keras, or a store of vectors)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"BZh", "compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ\x00", "compressed by xz: unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself with git lfs pull"),
    (b"<", "a web page, not the file that it leads to: download it again"),
    (b"{", "JSON, perhaps the index of several files of weights: join them into one"),
)
_TAR_MAGIC, _TAR_PLACE = b"ustar", 257
_BEGINNING = 512


@dataclass(frozen=True)
class StateDict:
    """Named tensors of a checkpoint.

    Attributes:
        place: where they lie in it, such as `state_dict`; empty where they are all of the file.
        tensors: tensors by name.
        other_entries: what lies among them and is no tensor.
    """

    place: str
    tensors: Mapping[str, Tensor]
    other_entries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        path: the file.
        state_dicts: one at least, the preferred one first.
        source: "run" for a file that a training of ours has written, "file" for another.
    """

    path: Path
    state_dicts: tuple[StateDict, ...]
    source: str = "file"


def read(path: Path) -> Checkpoint:
    """Every state dict of a file.

    Raises:
        UsageError: another format, which is named; a damaged file; one without a state dict.
        UntrustedFile: a pickle that wants more than tensors and plain values; the message names what.
    """
    try:
        if _format(path) == "safetensors":
            return _safetensors(path)
        state_dicts = sorted(_state_dicts(_torch(path)), key=_rank)
    except OSError as error:
        raise from_os_error(error, "reading", path) from error
    if not state_dicts:
        raise UsageError(f"the weights file {path} holds no state dict (names with tensors).")
    return Checkpoint(path, tuple(state_dicts))


# --- formats ----------------------------------------------------------------------------------------------------------


def _format(path: Path) -> str:
    """ "safetensors" or "torch".

    Raises:
        UsageError: another format, with its name.
    """
    with open(path, "rb") as file:
        start = file.read(_BEGINNING)
        n_bytes = file.seek(0, 2)
    if start.startswith(_ZIP):
        _check_zip(path, n_bytes)
        return "torch"
    if _PICKLE.match(start):
        return "torch"
    if _is_safetensors(start, n_bytes):
        return "safetensors"
    raise UsageError(
        f"the weights file {path} is {_name_of(start)}. A safetensors file or a checkpoint of torch is expected."
    )


def _is_safetensors(start: bytes, n_bytes: int) -> bool:
    """A header of so many bytes, which is a JSON object."""
    if len(start) < 9:
        return False
    (n_header,) = struct.unpack("<Q", start[:8])
    return start[8:9] == b"{" and n_header <= max(n_bytes, 100 << 20)


def _name_of(start: bytes) -> str:
    """What a file is that begins so."""
    if not start.strip():
        return "empty" if not start else "blank"
    if name := next((name for magic, name in _OTHERS if start.lstrip().startswith(magic)), None):
        return name
    if _ONNX.match(start):
        return "an ONNX model"
    if start[_TAR_PLACE:].startswith(_TAR_MAGIC):
        return "a tar archive: unpack it first"
    return "of no known format"


def _check_zip(path: Path, n_bytes: int) -> None:
    """Raises UsageError for a zip that torch has not written, and UntrustedFile for one that unpacks to much more."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info.file_size for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise UsageError(f"the weights file {path} is damaged: {error}. Copy or download it again.") from error
    if name := _foreign_zip(members):
        raise UsageError(f"the weights file {path} is {name}. A safetensors file or a checkpoint of torch is expected.")
    if sum(members.values()) > _NOT_ZIPPED * n_bytes:
        raise UntrustedFile(f"the weights file {path}: {sum(members.values()):,} bytes are packed into {n_bytes:,}.")


def _foreign_zip(members: Mapping[str, int]) -> str | None:
    """What a zip is that is no checkpoint of torch."""
    ends = {name.rpartition("/")[2] for name in members}
    if "constants.pkl" in ends:
        return "a TorchScript program: load it with torch.jit.load and save its state_dict()"
    if "data.pkl" in ends:
        return None
    if "bundle.json" in ends:
        return "a bundle of a Run: its backbone is used by predict"
    if "model.weights.h5" in ends:
        return "a Keras model"
    return "an archive of NumPy arrays" if any(name.endswith(".npy") for name in ends) else "a zip archive"


# --- reading ----------------------------------------------------------------------------------------------------------


def _safetensors(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, "pt") as file:
            source = (file.metadata() or {}).get(SOURCE_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except safetensors.SafetensorError as error:
        raise _not_whole(path, error) from error
    return Checkpoint(path, (StateDict("", tensors),), RUN if source == RUN else "file")


def _not_whole(path: Path, error: Exception) -> FeatcacheError:
    return UsageError(f"the weights file {path} is not a whole safetensors file: {error}. Copy or download it again.")


def _torch(path: Path) -> Any:
    """What `torch.save` has written: tensors and plain values, whatever the environment says."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN_VALUES):
            warnings.simplefilter("ignore")  # of protocols of pickle, which are for whoever wrote the file
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # UnpicklingError for a refused global, RuntimeError and others for damage
        raise _refused(path, str(error)) from error


def _refused(path: Path, reason: str) -> FeatcacheError:
    """A pickle that wants what is no tensor, by its name; or damage."""
    text = " ".join(reason.split())
    named = re.search(r"GLOBAL (\S+)", text)
    why = text.partition("WeightsUnpickler error:")[2].partition("Check the documentation")[0].strip()[:200]
    if not (named or why):
        return UsageError(
            f"the weights file {path} is damaged, or no checkpoint of torch: {text[:200]}. Copy it again."
        )
    return UntrustedFile(
        f"the weights file {path} is not a plain file of tensors: it wants "
        f"{named[1] if named else f'more than torch.save writes ({why})'}, and no code is run to read weights. If you "
        f"trust the file, load it in the program that wrote it and save model.state_dict() as safetensors."
    )


def _state_dicts(value: Any, place: str = "", depth: int = 0) -> Iterator[StateDict]:
    """Those of a checkpoint, also in wrappers."""
    if not isinstance(value, Mapping) or depth > _MAX_DEPTH:
        return
    named = {key: entry for key, entry in value.items() if isinstance(key, str)}
    tensors = {key: entry for key, entry in named.items() if isinstance(entry, Tensor)}
    wrapped = [key for key, entry in named.items() if isinstance(entry, Mapping) and entry]
    if tensors and not wrapped:
        yield StateDict(place, tensors, tuple(str(key) for key in value if key not in tensors))
    for key in wrapped:
        yield from _state_dicts(named[key], f"{place}.{key}" if place else key, depth + 1)


def _rank(state_dict: StateDict) -> int:
    last = state_dict.place.rpartition(".")[2]
    return _PREFERRED.index(last) if last in _PREFERRED else len(_PREFERRED)
