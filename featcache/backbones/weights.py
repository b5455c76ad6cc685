"""The network that a name stands for, with the weights that are asked for: every tensor in its place, or an error.

Weights come from the hub (cached), from a file of tensors, or from a seed. timm itself would skip a missing tensor
without a word and leave it random; pretrained weights that cannot be had are an error here, too. The network
comes without its classifier. Knows nothing of images.
"""

import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import VGG
from torch import Tensor, nn

from featcache.backbones import checkpoints, networks
from featcache.backbones.checkpoints import Checkpoint
from featcache.backbones.matching import Match, matches, n_elements
from featcache.devices import memory_bytes
from featcache.errors import UsageError, WeightsUnavailable
from featcache.identity import digest_arrays
from featcache.specs import check_weights

_HUB_TIMEOUT_S = 5
_MAX_WAYS = 6  # to read a checkpoint, which are tried one after another
# What timm's conversions of foreign state dicts raise.
_DO_NOT_FIT = (RuntimeError, KeyError, AttributeError, IndexError, ValueError, TypeError, AssertionError)
_WAYS_OUT = (
    "Connect once (weights are then cached), copy the hub cache of a connected machine, pass a local file with "
    "`weights`=FILE.safetensors, or ask for random weights with `weights`=random:0."
)


@dataclass(frozen=True)
class Loaded:
    """A network with its weights.

    Attributes:
        name: the resolved `arch.tag`; `arch` alone where the weights are a file's or random.
        module: the network without its classifier, frozen, in `eval()`.
        source: "hub", "file", "run" (a file that a training of ours has written) or "random:SEED", for people.
        paths: the files that decided which weights these are; none for random ones.
        notes: what of a file was not taken, or how it was understood.
    """

    name: str
    module: nn.Module
    source: str
    paths: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def load(name: str, weights: str | None) -> Loaded:
    """The network of a resolved name.

    Args:
        name: `arch.tag` or `arch`, as `backbones.resolve_name` gives it.
        weights: a file, "random:SEED", or None for those that the name stands for, from the hub.

    Raises:
        UsageError: weights that do not fit. WeightsUnavailable: not cached and not to be fetched. UntrustedFile: a
            `.pth` that is more than tensors.
    """
    arch = name.partition(".")[0]
    if weights is None:
        cached = _fetch(name, config_of(name))
        module, _ = _with_state(name, checkpoints.read(cached))
        return Loaded(name, headless(module), "hub", (cached, _revision(cached)))
    if weights.startswith("random:"):
        return Loaded(arch, headless(_random(arch, weights)), weights)
    check_weights(weights)
    checkpoint = checkpoints.read(Path(weights))
    module, note = _with_state(name, checkpoint)
    return Loaded(arch, headless(module), checkpoint.source, (Path(weights),), (note,) if note else ())


def _create(arch: str) -> nn.Module:
    if arch in networks.DENSE:
        return networks.build(arch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own deprecations concern its developers
        return timm.create_model(arch, pretrained=False, num_classes=0)


def sketch(name: str) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return _create(name)


def config_of(name: str) -> dict[str, Any]:
    """What timm knows of the weights a name stands for: tag, source, input size, normalisation, classifier."""
    return dict(cast(dict[str, Any], sketch(name).pretrained_cfg))


def _random(arch: str, weights: str) -> nn.Module:
    seed = weights.removeprefix("random:")
    if not re.fullmatch(r"[0-9]{1,18}", seed):
        raise UsageError(f"`weights`={weights[:40]}: the seed must be a whole number, as in random:0.")
    _check_memory(arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return _create(arch)


def _check_memory(arch: str) -> None:
    """Raises UsageError for a network that this machine cannot hold, before it is made."""
    needed, there = 4 * n_elements(shapes_of(sketch(arch))), memory_bytes()
    if needed > there:
        raise UsageError(
            f"{arch} has {needed // 4:,} parameters, which take {needed / 1e9:,.1f} GB of memory; there are "
            f"{there / 1e9:,.1f} GB. Choose a smaller backbone, or a larger machine."
        )


def _with_state(name: str, checkpoint: Checkpoint) -> tuple[nn.Module, str | None]:
    """The network with the weights of a file and without their classifier, every tensor in its place; and a note on
    what was taken of the file.

    Raises:
        UsageError: a tensor of the network is missing from the weights, left over, or of another shape.
    """
    config = config_of(name)
    ways = matches(checkpoint, shapes_of(headless(sketch(name))), _classifiers(config))
    if not any(way.backbone for way in ways):  # timm would take an empty state dict for none, and fetch its own
        raise UsageError(f"the weights {checkpoint.path} do not fit {name}: they hold no tensor of it.")
    for way in ways[:_MAX_WAYS]:
        if way.is_large_enough and (module := _built(name, way, config)) is not None:
            alternatives = [other for other in ways if other.fits and other is not way] if way.fits else []
            return module, way.note(checkpoint.path, alternatives)
    nearest = max(ways, key=lambda way: way.n_common)
    raise UsageError(f"the weights {checkpoint.path} do not fit {name}: {nearest.differences()}.")


def _built(name: str, way: Match, config: dict[str, Any]) -> nn.Module | None:
    """The network with these tensors; None where they are not all of it, or more.

    Weights in timm's layout are stripped of their classifier and loaded into the headless network. Older layouts
    (torchvision's VGG) show their classifier only once timm has converted them: they go into the whole network, with as
    many classes as they have, which then loses its head. Those of a Run lack what `headless` takes away.
    """
    if not way.backbone:
        return None
    with suppress(*_DO_NOT_FIT):
        return _strictly(name, way.backbone, {"num_classes": 0, "classifier": None})
    last = list(way.tensors.values())[-1]
    for n_classes in dict.fromkeys((*last.shape[:1], config["num_classes"])):
        with suppress(*_DO_NOT_FIT):
            module = _strictly(name, way.tensors, {"num_classes": n_classes, "label_offset": 0})
            cast(Any, module).reset_classifier(0)
            return module
    return _as_kept(name, way) if way.fits else None


def _as_kept(name: str, way: Match) -> nn.Module | None:
    """The network of a Run, which has no tensor of what `headless` takes away; None where the weights do not fit."""
    if name in networks.DENSE:
        return None
    module = headless(timm.create_model(name, pretrained=False, num_classes=0))
    with suppress(RuntimeError):
        module.load_state_dict(way.backbone)
        return module
    return None


def _strictly(name: str, state: Mapping[str, Tensor], overlay: dict[str, Any]) -> nn.Module:
    """timm's own conversion and loading, made strict: it is lenient where the classes of weights and network differ."""
    if name in networks.DENSE:
        module = networks.build(name)
        module.load_state_dict(dict(state))
        return module
    overlay = {**overlay, "state_dict": dict(state), "custom_load": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(
            name, pretrained=True, num_classes=overlay["num_classes"], pretrained_cfg_overlay=overlay
        )


def _classifiers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """How the names of its classifiers begin, as timm says it."""
    classifier = config.get("classifier") or ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each tensor of its state dict."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _fetch(name: str, config: Mapping[str, Any]) -> Path:
    """The file of pretrained weights in the local hub cache, brought there through the network if need be."""
    repository = config.get("hf_hub_id")
    if not repository:
        raise WeightsUnavailable(
            f"{name} has no pretrained weights. Pass a local file with `weights`=FILE.safetensors, or ask for random "
            "weights with `weights`=random:0."
        )
    if path := cached(name, config):
        return path
    if not hub_is_reachable():
        raise WeightsUnavailable(f"weights of {name} are not cached and the hub cannot be reached. {_WAYS_OUT}")
    try:
        return Path(huggingface_hub.hf_hub_download(*_address(config)))
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsUnavailable(f"weights of {name} could not be fetched: {reason} {_WAYS_OUT}") from error


def _address(config: Mapping[str, Any]) -> tuple[str, str]:
    """Repository and file name on the hub."""
    return config["hf_hub_id"], config.get("hf_hub_filename") or "model.safetensors"


def cached(name: str, config: Mapping[str, Any] | None = None) -> Path | None:
    """The file of pretrained weights in the local hub cache; None where it is not there. Asks nobody.

    Args:
        name: name of a backbone that has pretrained weights.
        config: its `config_of`, where it is known already.
    """
    try:
        return Path(huggingface_hub.hf_hub_download(*_address(config or config_of(name)), local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def cache_folder() -> Path:
    """Where the hub keeps what it has fetched."""
    return Path(huggingface_hub.constants.HF_HUB_CACHE)


def _revision(cached: Path) -> Path:
    """The file of the hub's cache that names the current revision: REPO/refs/main beside REPO/snapshots/…."""
    return cached.parents[2] / "refs" / "main"


def hub_is_reachable() -> bool:
    """Whether the hub answers within seconds: its client alone would try for three quarters of a minute."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True  # an answer, if not a friendly one
    except OSError:
        return False
    return True


def _bytes_of(tensor: Tensor) -> Any:
    """A tensor as an array of the same bytes; bfloat16, which numpy lacks, as uint16."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


class _MeanOfMap(nn.Module):
    """(b, d, rows, columns) to (b, d)."""

    def forward(self, grid: Tensor) -> Tensor:
        return grid.mean(dim=(2, 3))


def headless(module: nn.Module) -> nn.Module:
    """Without classifier: called with an image, it gives the pooled vector."""
    if isinstance(module, VGG):
        module.register_module(
            "pre_logits", nn.Identity()
        )  # its two dense layers are classifier: 120 of 138 million parameters
        module.register_module("head", _MeanOfMap())
    return module.eval().requires_grad_(False)


def digest(module: nn.Module) -> str:
    """sha256 of a network's state dict: names, dtypes, shapes, bytes."""
    return digest_arrays({key: _bytes_of(value) for key, value in module.state_dict().items()})
