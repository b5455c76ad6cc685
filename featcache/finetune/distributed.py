"""The processes that train one network together, as `torchrun` starts them, or the one process there is.

Each sees its share of every batch. Gradients are averaged by torch's DistributedDataParallel; batch norms that learn
take their statistics over the whole batch, so that the loss is that of one process with the same batch.
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Array = np.ndarray[Any, Any]

_numbers = itertools.count()  # of the groups that this process has been in
_TIMEOUT = timedelta(hours=2)  # the first process may read and test for long while the others wait


@dataclass(frozen=True)
class ProcessGroup:
    """How many processes there are, and which this one is.

    Attributes:
        rank: number of this process, from 0 to size - 1; 0 writes the Run.
        size: 1 where nobody else is.
        local_rank: number of its GPU on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, rows: Array) -> Array:
        """The part of some rows that is this process's."""
        return np.array_split(rows, self.size)[self.rank]

    def device(self, device: str) -> str:
        """Where several processes share a machine, each has a GPU of its own."""
        return f"cuda:{self.local_rank}" if self.size > 1 and device == "cuda" else device

    def distributed(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module such that `backward` averages its gradients over all processes."""
        if self.size == 1:
            return module
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    def no_sync(self, module: nn.Module, more: bool) -> AbstractContextManager[Any]:
        """While `more` of a batch is to come, gradients are added up and not yet averaged."""
        if more and isinstance(module, nn.parallel.DistributedDataParallel):
            no_sync: AbstractContextManager[Any] = module.no_sync()
            return no_sync
        return nullcontext()

    def all_gather(self, values: Any) -> list[Any]:
        """What each process has, in the order of their ranks."""
        if self.size == 1:
            return [values]
        objects: list[Any] = [None] * self.size
        dist.all_gather_object(objects, values)
        return objects


@contextmanager
def process_group(device: str, env: Any = None) -> Iterator[ProcessGroup]:
    """The processes of this process: alone, unless `torchrun` has set the variables that say otherwise."""
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
    store = dist.PrefixStore(f"featcache-{next(_numbers)}", key_store)  # type: ignore[attr-defined]
    options: Any = {"store": store, "rank": processes.rank, "world_size": size, "timeout": _TIMEOUT}
    dist.init_process_group("nccl" if device == "cuda" else "gloo", **options)
    try:
        yield processes
    finally:
        dist.destroy_process_group()


class SyncBatchNorms(TorchFunctionMode):
    """Within it, batch norms in training take mean and variance over the batches of all processes.

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
    """The sum over all processes; every process's gradient of it goes back to every process."""

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
