"""`doctor`: what of featcache will work on this machine, in this folder, and what to do about the rest.

It changes nothing, but for a file of a few bytes in the folder, which is written, renamed, locked and removed. A
problem is what `embed` or `train-head` would fail on; a note is what some option would. Knows nothing of stores.
"""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from featcache import __version__, durable
from featcache.durable import locks
from featcache.errors import FeatcacheError, in_our_words

WELL, NOTE, PROBLEM = "well", "note", "problem"
_NEEDED = ("torch", "torchvision", "timm")  # the ones whose import fails where a build does not fit the machine
_EXTRA = re.compile(r"""extra\s*==\s*["'](\w+)["']""")
_FOR_DEVELOPERS = "dev"
_GB = 1e9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what, in a word or two.
        state: "well", "note" (an option that is not to be had here) or "problem".
        text: what was found.
        remedy: what to do; empty where nothing needs to be done.
    """

    name: str
    state: str
    text: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """For `--json`."""
        return asdict(self)


def doctor(folder: Path | str = Path()) -> list[Finding]:
    """Looks at libraries, devices, compiler, weights and extras, and at a folder.

    Args:
        folder: where stores are to lie.

    Returns:
        The findings in that order. Asking the hub whether it answers takes up to five seconds.

    Raises:
        Nothing that a machine can cause: what fails is a finding.
    """
    findings = [*_release(), *_libraries()]
    importable = [_importable(name) for name in _NEEDED]
    findings += [finding for finding in importable if finding]
    if not any(importable):
        findings += [_devices(), _compiler(), _weights()]
    return [*findings, *_extras(), _folder(Path(folder))]


# --- libraries --------------------------------------------------------------------------------------------------------


def _release() -> Iterator[Finding]:
    yield Finding(
        "featcache", WELL, f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    )


def _requirements() -> list[Requirement]:
    """Of the installed package; none where it is imported without being installed."""
    try:
        return [Requirement(text) for text in metadata.requires("featcache") or ()]
    except metadata.PackageNotFoundError:
        return []


def _extra_of(requirement: Requirement) -> str | None:
    match = _EXTRA.search(str(requirement.marker or ""))
    return match[1] if match else None


def _unmet(requirement: Requirement) -> str | None:
    """What is wrong with an installed library, in a few words."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} {version} is not {requirement.specifier}"


def _libraries() -> Iterator[Finding]:
    needed = [requirement for requirement in _requirements() if _extra_of(requirement) is None]
    if not needed:
        yield Finding("libraries", NOTE, "featcache is not installed as a package, so what it needs is not known here",
                      "python -m pip install FOLDER, with that of the sources")  # fmt: skip
        return
    if unmet := [text for text in map(_unmet, needed) if text]:
        yield Finding("libraries", PROBLEM, "; ".join(unmet), "install featcache again with pip")
        return
    versions = ", ".join(f"{requirement.name} {metadata.version(requirement.name)}" for requirement in needed)
    yield Finding("libraries", WELL, versions)


def _importable(name: str) -> Finding | None:
    try:
        import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # of a build for another machine, or for another torch
        reason = " ".join(str(error).split())[:200]
        return Finding(
            name, PROBLEM, f"cannot be imported: {reason}", f"install {name} again, with torch, from one source"
        )
    return None


# --- machine ----------------------------------------------------------------------------------------------------------


def _devices() -> Finding:
    import torch

    from featcache.devices import machine_bytes
    from featcache.embedding.forward import n_cores

    memory = machine_bytes()
    here = f"cpu: {n_cores()} cores, {memory / _GB:.0f} GB of memory"
    gpus = [_gpu(torch.cuda.get_device_properties(i), i) for i in range(torch.cuda.device_count())]
    if gpus:
        return Finding("devices", WELL, "; ".join([*gpus, here]))
    return Finding("devices", WELL, f"{here}; no GPU that torch {torch.__version__} can use")


def _gpu(device: Any, i: int) -> str:
    return (
        f"cuda:{i} {device.name}, {device.total_memory / _GB:.0f} GB, compute capability {device.major}.{device.minor}"
    )


def _compiler() -> Finding:
    from featcache.embedding.forward import cpp_compiler

    compiler = cpp_compiler()
    if compiler:
        return Finding("compiler", WELL, f"C++ compiler {compiler}")
    return Finding("compiler", NOTE, "no C++ compiler: on a CPU the network runs uncompiled", "Debian: apt install g++")


def _weights() -> Finding:
    from featcache.backbones import SUGGESTED, weights

    of_hub = [name for name in SUGGESTED if weights.config_of(name).get("hf_hub_id")]
    cached = [name for name in of_hub if weights.cached(name)]
    text = f"{len(cached)} of {len(of_hub)} suggested backbones in {weights.cache_folder()}"
    if weights.hub_is_reachable():
        return Finding("pretrained weights", WELL, f"{text}; the hub can be reached")
    remedy = "connect once, copy the cache of a connected machine, or name a file of weights"
    return Finding("pretrained weights", NOTE, f"{text}; the hub cannot be reached", remedy)


def _extras() -> Iterator[Finding]:
    extras: dict[str, list[str]] = {}
    for requirement in _requirements():
        name = _extra_of(requirement)
        if name not in (None, _FOR_DEVELOPERS):
            extras.setdefault(str(name), []).extend(filter(None, [_unmet(requirement)]))
    there = [name for name, unmet in extras.items() if not unmet]
    if there:
        yield Finding("extras", WELL, ", ".join(there))
    for name, unmet in extras.items():
        if unmet:
            yield Finding(f"extra {name}", NOTE, "; ".join(unmet), f"python -m pip install 'featcache[{name}]'")


# --- folder -----------------------------------------------------------------------------------------------------------


def _folder(folder: Path) -> Finding:
    """Whether what a store stands on holds here: whole files, and locks."""
    if not folder.is_dir():
        return Finding("folder", PROBLEM, f"{folder} is no folder", "make it, or name another")
    path = folder.absolute() / f".featcache-doctor-{os.getpid()}"
    try:
        durable.write_bytes(path, b"featcache")
        _lock_and_remove(path)
    except FeatcacheError as error:
        return Finding("folder", PROBLEM, str(error), "choose a folder on a local disk that you may write to")
    free = shutil.disk_usage(folder).free
    return Finding("folder", WELL, f"{folder.absolute()}: written, renamed, locked; {free / _GB:,.0f} GB are free")


def _lock_and_remove(path: Path) -> None:
    with in_our_words("locking", path):
        try:
            with open(path, "r+b") as file:
                locks.lock_file(file.fileno())
        finally:
            path.unlink()
