"""Checkpoints of a training, in `RUN.partial/`; they survive kill -9 and power cuts.

A checkpoint is complete or absent, and its name contains the digest of its bytes: a damaged one is skipped for the one
before it. Tensors and JSON, no pickle.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from featcache import durable
from featcache.errors import UsageError, in_our_words
from featcache.identity import Json, canonical_json, difference, digest_bytes

_NAME = re.compile(r"(?P<name>[a-z0-9-]+)-(?P<epoch>\d{6})-(?P<digest>[0-9a-f]{16})\.safetensors")
_KEPT = 2
_THREADS, _MOST = "threads", 4096

Checkpoint = tuple[dict[str, Tensor], Json]
Usable = Callable[[Mapping[str, Tensor], Json], bool]  # whether a training can resume from it


class Checkpoints:
    """The checkpoints of one Run that is not finished.

    Attributes:
        folder: `RUN.partial`.
        threads: number of threads that the training began with. Another number changes the last bits of sums, and a
            resumed training must have the result of an uninterrupted one.
    """

    def __init__(self, run_path: Path) -> None:
        self.run_path = run_path
        self.threads = torch.get_num_threads()
        place = durable.real(run_path)
        self.folder = place.with_name(f"{place.name}.partial")

    @contextmanager
    def locked(self, key: Json) -> Iterator[None]:
        """Locks the Run against other processes, and refuses checkpoints of another training.

        Raises:
            StoreLocked: another process is training this Run.
            UsageError: the folder has an unfinished training with other settings.
        """
        with durable.locked(self.run_path):
            try:
                with in_our_words("writing", self.folder):
                    durable.make_folders(self.folder)
                    self._check(json.loads(canonical_json(key)))
                yield
            finally:
                if not self._newest():
                    self.remove()

    def save(self, name: str, epoch: int, tensors: Mapping[str, Tensor], state: Json) -> None:
        """Writes a checkpoint. The one before it is kept, older ones are deleted.

        Raises:
            NoSpace, AccessDenied, InputOutputError: existing checkpoints are unchanged.
        """
        rows = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        data = safetensors.torch.save(rows, metadata={"featcache": json.dumps(state)})
        path = self.folder / f"{name}-{epoch:06d}-{digest_bytes(data)[:16]}.safetensors"
        durable.write_bytes(path, data)
        with in_our_words("writing", self.folder):
            for old in self._newest(name)[:-_KEPT]:
                old.unlink()

    def latest(self, name: str, is_usable: Usable = lambda tensors, state: True) -> Checkpoint | None:
        """Tensors and state of the last complete and usable checkpoint; None if there is none."""
        for path in reversed(self._newest(name)):
            with in_our_words("reading", path):
                data = durable.read_regular(path)
            match = _NAME.fullmatch(path.name)
            if match and digest_bytes(data).startswith(match["digest"]):
                with suppress(SafetensorError, ValueError, LookupError, TypeError, RecursionError):  # another program's
                    checkpoint = safetensors.torch.load(data), _state(data)
                    if is_usable(*checkpoint):
                        return checkpoint
        return None

    def remove(self) -> None:
        """Removes the checkpoints and the folder, but no other files in it."""
        for path in (*self._newest(), *self.folder.glob(".*.tmp"), self.folder / "plan.json"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _newest(self, name: str | None = None) -> list[Path]:
        """The checkpoints of a training, or of all, in their order."""
        if not self.folder.is_dir():
            return []
        matches = ((path, _NAME.fullmatch(path.name)) for path in self.folder.iterdir())
        return sorted(path for path, match in matches if match and path.is_file() and name in (None, match["name"]))

    def _check(self, key: Json) -> None:
        path = self.folder / "plan.json"
        stored_plan = self._plan(path)
        if stored_plan == key and self._newest():
            return
        if stored_plan is not None and self._newest():
            differences = "; ".join(difference(stored_plan, key)[:5])
            raise UsageError(
                f"{self.folder} holds an unfinished training that differs ({differences}). Finish it, choose another "
                f"folder, or remove that folder."
            )
        for old in self._newest():  # without a plan they belong to an unknown training
            old.unlink()
        self.threads = torch.get_num_threads()
        durable.write_text(path, canonical_json({**key, _THREADS: self.threads}))

    def _plan(self, path: Path) -> Json | None:
        """The plan on disk, setting `threads`; None if there is none that can be read."""
        if not path.is_file():
            return None
        with suppress(ValueError, RecursionError), in_our_words("reading", path):
            plan = json.loads(durable.read_regular(path))
            if isinstance(plan, dict) and type(threads := plan.pop(_THREADS, None)) is int and 0 < threads <= _MOST:
                self.threads = threads
                return plan
        return None


def _state(data: bytes) -> Json:
    """The JSON object in the header of a safetensors file: 8 bytes of length, then the header.

    Raises:
        ValueError, LookupError, TypeError: the header holds no such object.
    """
    length = int.from_bytes(data[:8], "little")
    state = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["featcache"])
    if not isinstance(state, dict):
        raise ValueError(f"a state is a JSON object, not {type(state).__name__}")
    return state
