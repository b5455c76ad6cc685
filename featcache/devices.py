"""Where tensors live: `auto`, `cpu`, `cuda` or `cuda:N` as a device torch can use here."""

import os
import re

import torch

from featcache.errors import UsageError


def describe(device: torch.device) -> str:
    """`cpu`, or a GPU with its name: what the environment record says."""
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def machine_bytes() -> int:
    """Bytes of the machine's memory; 8 GiB where the platform does not say."""
    if not hasattr(os, "sysconf"):
        return 8 << 30
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def memory_bytes() -> int:
    """What this process may use of the machine's memory: all of it, or what its address space is limited to."""
    n_bytes = machine_bytes()
    try:
        import resource
    except ImportError:  # no POSIX
        return n_bytes
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return n_bytes if limit == resource.RLIM_INFINITY else min(n_bytes, limit)


def choose(device: str) -> str:
    """`auto` as CUDA where there is one; another name as it is.

    Raises:
        UsageError: torch cannot use it on this machine.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", device):
        raise UsageError(f"`device`={device}: expected auto, cpu, cuda or cuda:N.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"`device`={device} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
