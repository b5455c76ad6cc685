"""The network that a name stands for, with the weights that are asked for: every tensor in its place, or an error.

Weights come from the hub (cached), from a file of tensors, or from a seed. timm itself would skip a missing tensor
without a word and leave it random; pretrained weights that cannot be had are an error here, too. The network
comes without its classifier. Knows nothing of images.
"""

import os
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import VGG
from torch import Tensor, nn

from featcache.backbones import networks
from featcache.errors import UntrustedFile, UsageError, WeightsUnavailable, from_os_error
from featcache.provenance import digest_arrays
from featcache.request import check_weights

_HUB_TIMEOUT_S = 5
RUN = "run"
SOURCE_KEY = "featcache.weights_source"  # of a file's metadata: RUN, where a training of ours made the weights
# What timm's conversions of foreign state dicts raise.
_DO_NOT_FIT = (RuntimeError, KeyError, AttributeError, IndexError, ValueError, TypeError, AssertionError)
_WAYS_OUT = (
    "Connect once (weights are then cached), copy the hub cache of a connected machine, pass a local file with "
    "--weights FILE.safetensors, or ask for random weights with --weights random:0."
)


@dataclass(frozen=True)
class Loaded:
    """A network with its weights.

    Attributes:
        name: the resolved `arch.tag`; `arch` alone where the weights are a file's or random.
        module: the network without its classifier, frozen, in `eval()`.
        source: "hub", "file", "run" (a file that a training of ours has written) or "random:SEED", for people.
        paths: the files that decided which weights these are; none for random ones.
    """

    name: str
    module: nn.Module
    source: str
    paths: tuple[Path, ...] = ()


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
        module = _with_state(name, _read_weights(cached)[0], name)
        return Loaded(name, headless(module), "hub", (cached, _revision(cached)))
    if weights.startswith("random:"):
        return Loaded(arch, headless(_random(arch, weights)), weights)
    state, source = _read_weights(Path(weights))
    return Loaded(arch, headless(_with_state(name, state, weights)), source, (Path(weights),))


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
        raise UsageError(f"--weights {weights[:40]}: the seed must be a whole number, as in random:0.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        return _create(arch)


def _with_state(name: str, state: Mapping[str, Tensor], origin: str) -> nn.Module:
    """The network with these weights and without their classifier, every tensor in its place.

    Weights in timm's layout are stripped of their classifier and loaded into the headless network. Older layouts
    (torchvision's VGG) show their classifier only once timm has converted them: they go into the whole network,
    which then loses its head. timm itself would skip a missing tensor without a word and leave it random.

    Raises:
        UsageError: a tensor of the network is missing from the weights, left over, or of another shape.
    """
    config = config_of(name)
    headless = {key: value for key, value in state.items() if not _of_classifier(key, config)}
    if not headless:  # timm would take an empty state dict for none at all, and fetch its own
        raise UsageError(f"the weights {origin} do not fit {name}: they hold no tensor of it.")
    try:
        return _strictly(name, headless, {"num_classes": 0, "classifier": None})
    except _DO_NOT_FIT as error:
        first = error
    try:
        module = _strictly(name, state, {"num_classes": config["num_classes"], "label_offset": 0})
    except _DO_NOT_FIT:
        if (kept := _as_kept(name, state)) is not None:
            return kept
        reason = " ".join(str(first).split())[:300]
        raise UsageError(f"the weights {origin} do not fit {name}: {reason}") from first
    cast(Any, module).reset_classifier(0)
    return module


def _as_kept(name: str, state: Mapping[str, Tensor]) -> nn.Module | None:
    """The network of a Run, which has no tensor of what `headless` takes away; None where the weights do not fit."""
    if name in networks.DENSE:
        return None
    module = headless(timm.create_model(name, pretrained=False, num_classes=0))
    try:
        module.load_state_dict(dict(state))
    except RuntimeError:
        return None
    return module


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


def _of_classifier(key: str, config: Mapping[str, Any]) -> bool:
    classifier = config.get("classifier") or ()
    names = [classifier] if isinstance(classifier, str) else classifier
    return any(key.startswith(f"{name}.") for name in names)


def _read_weights(path: Path) -> tuple[Mapping[str, Tensor], str]:
    """A state dict from a file, and its source. Pickles are opened as tensors only, whatever the environment says.

    Raises:
        UntrustedFile: the pickle wants more than tensors; the message names what.
    """
    check_weights(os.fspath(path))
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UsageError(f"--weights {path}: expected a .safetensors, .pth or .pt file.")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise from_os_error(error, "reading", path) from error
    except safetensors.SafetensorError as error:
        raise UsageError(f"--weights {path} is not a whole safetensors file: {error}.") from error
    except Exception as error:  # torch.load: UnpicklingError for a refused global, RuntimeError or others for damage
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), str(error))
        raise UntrustedFile(f"--weights {path} is not a plain file of tensors: {reason.strip()[:300]}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        raise UsageError(f"--weights {path} holds no state dict (names with tensors).")
    return loaded, "file"


def _read_safetensors(path: Path) -> tuple[Mapping[str, Tensor], str]:
    with safetensors.safe_open(path, "pt") as file:
        source = (file.metadata() or {}).get(SOURCE_KEY)
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, RUN if source == RUN else "file"


def _fetch(name: str, config: Mapping[str, Any]) -> Path:
    """The file of pretrained weights in the local hub cache, brought there through the network if need be."""
    repository = config.get("hf_hub_id")
    if not repository:
        raise WeightsUnavailable(
            f"{name} has no pretrained weights. Pass a local file with --weights FILE.safetensors, or ask for random "
            "weights with --weights random:0."
        )
    if found := cached(name, config):
        return found
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
        name: of a backbone that has pretrained weights.
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
