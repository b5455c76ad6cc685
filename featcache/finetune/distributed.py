"""Distributed training: the processes that train one network, started by `torchrun`, or a single process.

Each process computes its share of every batch. Gradients are averaged by torch's DistributedDataParallel. Batch norms
in training mode take their statistics over the whole batch, so the loss is that of one process with the same batch.
`Session` adds the device, the limits and the callbacks of the caller.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from featcache.errors import InvalidParameter
from featcache.images.workers import TIMEOUT_S
from featcache.specs.bounds import MOST_SECONDS, check_number

Array = np.ndarray[Any, Any]

Progress = Callable[[int, int], None]
OnEpoch = Callable[[int, int, Mapping[str, float]], None]
Note = Callable[[str], None]

_COMPILE = ("auto", "on", "off")
_group_numbers = itertools.count()  # a new key prefix for every group of this process
_TIMEOUT = timedelta(hours=2)  # the others wait while the first process reads and checks


@dataclass(frozen=True)
class ProcessGroup:
    """The number of processes, and the rank of this one.

    Attributes:
        rank: number of this process, from 0 to size - 1; 0 writes the Run.
        size: number of processes.
        local_rank: number of this process on its machine, and of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, rows: Array) -> Array:
        """This process's share of some rows."""
        return np.array_split(rows, self.size)[self.rank]

    def device(self, device: str) -> str:
        """The device of this process: with several processes, each has its own GPU."""
        return f"cuda:{self.local_rank}" if self.size > 1 and device == "cuda" else device

    def distributed(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module wrapped so that `backward` averages gradients over all processes."""
        if self.size == 1:
            return module
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    def no_sync(self, module: nn.Module, has_more: bool) -> AbstractContextManager[Any]:
        """Accumulates gradients without averaging them while more pieces of a batch follow."""
        if has_more and isinstance(module, nn.parallel.DistributedDataParallel):
            no_sync: AbstractContextManager[Any] = module.no_sync()
            return no_sync
        return nullcontext()

    def all_gather(self, values: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [values]
        objects: list[Any] = [None] * self.size
        dist.all_gather_object(objects, values)
        return objects


@dataclass(frozen=True)
class Session:
    """The execution of a training: processes, device, limits and callbacks. It changes results by rounding only.

    Attributes:
        processes: the processes that train together.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        compile: compilation of the network: "on", "off", or "auto", where there are enough images to repay it.
        timeout_s: seconds allowed to read and decode one image.
        on_progress: called with (images read, images in all) before training begins.
        on_epoch: called with (epochs done, epochs in all, metrics of the epoch) once its checkpoint is on disk.
        on_note: called with each message for the user.
    """

    processes: ProcessGroup = field(default_factory=ProcessGroup)
    device: str = "auto"
    compile: str = "auto"
    timeout_s: float = TIMEOUT_S
    on_progress: Progress = lambda done, total: None
    on_epoch: OnEpoch = lambda done, total, metrics: None
    on_note: Note = lambda text: None

    def __post_init__(self) -> None:
        if self.compile not in _COMPILE:
            raise InvalidParameter(f"`compile` must be one of {', '.join(_COMPILE)}, got {self.compile!r}.")
        check_number("timeout_s", self.timeout_s, 0, MOST_SECONDS, above=True)

    def note_all(self, notes: Iterable[str]) -> None:
        """Passes notes to `on_note`."""
        for note in notes:
            self.on_note(f"note: {note}")


@contextmanager
def process_group(device: str, env: Any = None) -> Iterator[ProcessGroup]:
    """The process group set up by `torchrun` (WORLD_SIZE, RANK, LOCAL_RANK), or a single process."""
    env = os.environ if env is None else env
    size = int(env.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ProcessGroup()
        return
    processes = ProcessGroup(int(env["RANK"]), size, int(env.get("LOCAL_RANK", "0")))
    if device == "cuda":
        torch.cuda.set_device(processes.local_rank)
    # The store of torchrun outlives a group, and the next one of this process would read the addresses of the last.
    key_store, _, _ = next(dist.rendezvous("env://", timeout=_TIMEOUT))  # type: ignore[attr-defined]
    store = dist.PrefixStore(f"featcache-{next(_group_numbers)}", key_store)  # type: ignore[attr-defined]
    options: Any = {"store": store, "rank": processes.rank, "world_size": size, "timeout": _TIMEOUT}
    dist.init_process_group("nccl" if device == "cuda" else "gloo", **options)
    try:
        yield processes
    finally:
        dist.destroy_process_group()


class SyncBatchNorms(TorchFunctionMode):
    """Context in which batch norms in training mode take mean and variance over the batches of all processes.

    Two sums over the processes, of the values and of their squared distances from the mean (torch's own SyncBatchNorm
    runs on GPUs only).
    """

    def __init__(self, processes: ProcessGroup) -> None:
        super().__init__()
        self._processes = processes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.batch_norm and self._processes.size > 1:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.batch_norm`, over the batches of all processes."""
    if not training:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    axes = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    values = x.float()
    n = _sum(values.new_tensor(float(values.numel() // values.shape[1])))
    mean = _sum(values.sum(axes)) / n
    var = _sum((values - mean.view(shape)).square().sum(axes)) / n
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * n / (n - 1)).to(running_var.dtype), momentum)
    scaled = (values - mean.view(shape)) * torch.rsqrt(var + eps).view(shape)
    if weight is not None and bias is not None:
        scaled = scaled * weight.view(shape) + bias.view(shape)
    return scaled.to(x.dtype)


class _Sum(torch.autograd.Function):
    """Differentiable all-reduce: the sum over all processes, and of their gradients on the way back."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum(value: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(value)
    return total
