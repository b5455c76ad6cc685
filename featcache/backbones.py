"""A name becomes a frozen network, its transform, its vectors and the digest of its weights. The only user of timm.

A name is `arch.tag` as timm spells it; a bare `arch` is resolved to timm's default tag, and the resolved name is what
is printed and kept, because a default may change from one release to the next. Pretrained weights that cannot be had
are an error: a network with random weights is made only when `random:SEED` asks for it.
"""

import difflib
import fnmatch
import math
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import safetensors.torch
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.data.config import resolve_data_config
from timm.models import VGG, InceptionResnetV2, Xception, group_parameters, is_model, list_models, list_pretrained
from torch import Tensor, nn

from featcache import networks
from featcache.augment import ViewSpec
from featcache.errors import UntrustedFile, UsageError, WeightsUnavailable, from_os_error
from featcache.graph import Cut, cut
from featcache.images import CROP_MODES, DecodeSpec, TransformSpec
from featcache.probe import pixels_sha256
from featcache.provenance import Json, digest_arrays
from featcache.request import BackboneSpec
from featcache.store import BOUNDARY, GRID, POOLED

PIPELINE_VERSION = 1  # raised when a change of code changes vectors in a way no other field of the identity shows
_AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_CPU_PRECISIONS = ("float32", "bfloat16")  # a CPU has no units for the others

SUGGESTED = (
    "efficientnet_b1",
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg16",
    "vgg19",
    "inception_resnet_v2",
    "legacy_xception",
    "mobilenetv2_100",
    *networks.DENSE,
)
_HUB_TIMEOUT_S = 5
# Stages of families whose matcher knows none: of Inception-ResNet-v2 by resolution (Szegedy et al. 2017, figure 3), of
# Xception its three flows (Chollet 2017, figure 5). In the form of timm's matchers.
_STAGES: dict[type[nn.Module], dict[str, str]] = {
    InceptionResnetV2: {
        "stem": r"^conv2d_[1-4]",
        "35": r"^mixed_5b|^repeat\.",
        "17": r"^mixed_6a|^repeat_1\.",
        "8": r"^mixed_7a|^repeat_2\.|^block8|^conv2d_7b",
    },
    Xception: {"entry": r"^conv[12]|^bn[12]|^block[123]\.", "middle": r"^block(?:[4-9]|10|11)\.", "exit": r"."},
}
_WITH_THE_GROUP_BEFORE = 99999.0  # timm's MATCH_PREV_GROUP
# What timm's conversions of foreign state dicts raise.
_DO_NOT_FIT = (RuntimeError, KeyError, AttributeError, IndexError, ValueError, TypeError, AssertionError)
_WAYS_OUT = (
    "Connect once (weights are then cached), copy the hub cache of a connected machine, pass a local file with "
    "--weights FILE.safetensors, or ask for random weights with --weights random:0."
)


@dataclass(frozen=True)
class Backbone:
    """A frozen network in `eval()`: pixels in, a vector (and a feature map or a boundary, if wanted) per image out.

    Attributes:
        name: the resolved `arch.tag`; `arch` alone where the weights are a file's or random.
        module: the network without its classifier.
        transform: resize, crop and normalisation.
        weights_source: "hub", "file" or "random:SEED", for people.
        weights_paths: the files that decided which weights these are; none for random ones.
        weights_sha256: digest of the state dict really loaded (names, dtypes, shapes, bytes).
        shapes: tap -> shape of what it gives for one image; `pooled` is (d,).
        pooling: how the vector comes from the feature map.
        precision: of the arithmetic. "float16" and "bfloat16" are torch's autocast.
        cut: the network in two parts, before its last stage, where the boundary is a tap.
        last_stage: the name of its first parameter, there too.
    """

    name: str
    module: nn.Module
    transform: TransformSpec
    weights_source: str
    weights_paths: tuple[Path, ...]
    weights_sha256: str
    shapes: Mapping[str, tuple[int, ...]]
    pooling: str
    precision: str
    device: torch.device
    cut: Cut | None = None
    last_stage: str | None = None

    @property
    def n_features(self) -> int:
        """d, the width of the pooled vector."""
        return self.shapes[POOLED][0]

    def identity(self, decode: DecodeSpec, dtype: str, views: ViewSpec | None = None) -> Json:
        """Everything that changes a vector: not the origin of the weights but their digest; no paths, labels, device or
        library versions.

        Args:
            decode: how files become pixels.
            dtype: what the vectors are stored as.
            views: augmentation views; the field is there only where they are made.
        """
        return {
            "pipeline": PIPELINE_VERSION,
            "backbone": {
                "name": self.name,
                "weights_sha256": self.weights_sha256,
                "tap": "+".join(self.shapes),
                "pooling": self.pooling,
                **({"boundary": self.last_stage} if self.last_stage else {}),
            },
            "transform": self.transform.identity(),
            "decode": decode.identity(),
            "probe": pixels_sha256(self.transform, decode, views),
            **({"views": views.identity()} if views else {}),
            "precision": self.precision,
            "stored_dtype": dtype,
        }

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """(b, 3, h, w) uint8, best in channels-last order, to (b, …) float32 by tap, on the backbone's device."""
        with self._arithmetic():
            x = self.normalize(pixels.to(self.device, non_blocking=True))
            found = _taps(self.module, self.cut, x, GRID in self.shapes)
        return {tap: values.float() for tap, values in found.items()}

    def _arithmetic(self) -> AbstractContextManager[Any]:
        lower = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype=lower) if lower else nullcontext()

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 0..255 to float32, in the order of operations of torchvision's ToTensor and Normalize."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
            for values in (self.transform.mean, self.transform.std)
        )
        return pixels.float().div_(255).sub_(mean).div_(std)


def load(spec: BackboneSpec, device: str = "cpu") -> Backbone:
    """The network a spec stands for, frozen and ready.

    Raises:
        UsageError: unknown name (with near ones), a weights file that does not fit, an impossible transform.
        WeightsUnavailable: pretrained weights are not cached and cannot be fetched.
        UntrustedFile: a `.pth` that is more than tensors.
    """
    name = resolve_name(spec.name)
    arch, _, _ = name.partition(".")
    check_precision(spec.precision, device)
    config = _config(name)
    transform = _transform(spec, config)  # before the weights: a wrong option should not cost a download
    paths: tuple[Path, ...] = ()
    if spec.weights is not None and spec.weights.startswith("random:"):
        source, module = spec.weights, _random(arch, spec.weights)
        name = arch
    elif spec.weights is not None:
        source, paths = "file", (Path(spec.weights),)
        module = _with_state(name, _read_weights(paths[0]), spec.weights)
        name = arch
    else:
        source, cached = "hub", _fetch(name, config)
        paths = (cached, _revision(cached))
        module = _with_state(name, _read_weights(cached), name)
    module = _frozen(module).to(memory_format=torch.channels_last)
    digest = weights_digest(module)
    module = module.to(device)
    last_stage, divided = _divided(module) if BOUNDARY in spec.taps else (None, None)
    return Backbone(
        name=name,
        module=module,
        transform=transform,
        weights_source=source,
        weights_paths=paths,
        weights_sha256=digest,
        shapes=_shapes(module, divided, transform, spec.taps),
        pooling=_pooling(module),
        precision=spec.precision,
        device=torch.device(device),
        cut=divided,
        last_stage=last_stage,
    )


def weights_digest(module: nn.Module) -> str:
    """sha256 of a network's state dict: names, dtypes, shapes, bytes."""
    return digest_arrays({key: _bytes_of(value) for key, value in module.state_dict().items()})


def check_precision(precision: str, device: str) -> None:
    """Raises UsageError where a device has no such arithmetic."""
    if device == "cpu" and precision not in _CPU_PRECISIONS:
        raise UsageError(f"--precision {precision} needs a GPU; on the CPU there are {' and '.join(_CPU_PRECISIONS)}.")


# --- names ------------------------------------------------------------------------------------------------------------


def resolve_name(name: str) -> str:
    """`arch` as `arch.tag` with timm's default tag; an `arch.tag` as it is; an old spelling as its successor.

    Raises:
        UsageError: no such architecture or tag, with the nearest names.
    """
    arch, _, tag = name.partition(".")
    if not is_model(arch) and arch not in networks.DENSE:
        raise UsageError(f"no backbone is named {arch!r}. {_near(arch)}See: featcache backbones '*{arch[:6]}*'")
    default = _config(arch)  # of the successor, where timm has renamed an architecture
    arch = default["architecture"]
    if not tag:
        return f"{arch}.{default['tag']}" if default.get("tag") else arch
    if (full := f"{arch}.{tag}") not in list_pretrained(f"{arch}.*"):
        tags = ", ".join(list_pretrained(f"{arch}.*")) or "none"
        raise UsageError(f"{arch} has no weights tagged {tag!r}. There are: {tags}.")
    return full


def listing(pattern: str | None = None) -> Iterator[dict[str, Any]]:
    """Per backbone: name, tag, parameters (without classifier), features, input size, licence. Networks are sketched on
    torch's meta device, so that nothing is downloaded or allocated.

    Args:
        pattern: shell-style, or a part of the name; None lists the suggested ones.
    """
    if pattern is None:
        archs: Sequence[str] = SUGGESTED
    else:
        archs = [arch for arch in _known() if fnmatch.fnmatch(arch, pattern) or pattern in arch]
    for arch in archs:
        module = _frozen(_sketch(arch))
        config = _config(arch)
        yield {
            "name": config["architecture"],
            "tag": config.get("tag") or "",
            "n_parameters": sum(parameter.numel() for parameter in module.parameters()),
            "n_features": _declared_width(module),
            "input_size": config["input_size"][-1],
            "licence": config.get("license") or "not stated",
        }


def sketch(name: str) -> tuple[str, nn.Module, tuple[int, ...]]:
    """A network without memory for its weights: (its resolved name, the module, height and width of its images).

    Raises:
        UsageError: unknown name.
    """
    name = resolve_name(name)
    return name, _frozen(_sketch(name)), _transform(BackboneSpec(name), _config(name)).input_size


def _known() -> list[str]:
    return [*list_models(), *networks.DENSE]


def _near(arch: str) -> str:
    near = difflib.get_close_matches(arch, _known(), n=3)
    return f"Near it: {', '.join(near)}. " if near else ""


# --- blocks -----------------------------------------------------------------------------------------------------------


def groups(module: nn.Module, coarse: bool) -> list[list[str]]:
    """Names of the parameters of each block, first to last; with `coarse` of each stage. Stem and head belong to none:
    the stem is a group of its own, and what follows the last block (a convolution, a norm) is part of the last group.

    They are those of timm's own matchers, by which it scales learning rates, with three exceptions: in a VGG or a
    network of ours a block is a convolution with its norm, and a stage is what lies between two poolings; Xception and
    Inception-ResNet-v2 have stages. In a transformer without stages, a stage is a block.

    Args:
        module: of a `Backbone`.

    Raises:
        UsageError: timm does not say what a block of this network is.
    """
    if isinstance(module, VGG | networks.ConvNet):
        return _convolutions(module.features, coarse)
    found = group_parameters(module, _with_rest(_matcher(module, coarse)))
    return [names for names in found.values() if names]


def _matcher(module: nn.Module, coarse: bool) -> Any:
    if coarse and type(module) in _STAGES:
        return _STAGES[type(module)]
    try:
        return cast(Any, module).group_matcher(coarse=coarse)
    except (AttributeError, AssertionError, NotImplementedError) as error:  # it has none; or not this one
        kind = "stages" if coarse else "blocks"
        raise UsageError(
            f"timm does not say what the {kind} of {type(module).__name__} are: name parameters by a pattern, or all."
        ) from error


def _with_rest(matcher: Any) -> Any:
    """A matcher by which what it knows nothing of (norms and layers after the last block) goes with the last group."""
    if not callable(matcher):
        return {**matcher, "rest": [(r".", (_WITH_THE_GROUP_BEFORE,))]}

    def with_rest(name: str) -> Any:
        found = matcher(name)
        return (math.inf, _WITH_THE_GROUP_BEFORE) if found == math.inf else found

    return with_rest


def _convolutions(features: nn.Module, coarse: bool) -> list[list[str]]:
    """Those of a plain row of layers."""
    found: list[list[str]] = [[]]
    for i, layer in features.named_children():
        if isinstance(layer, nn.MaxPool2d if coarse else nn.Conv2d):
            found.append([])
        found[-1] += [f"features.{i}.{name}" for name, _ in layer.named_parameters()]
    return [names for names in found if names]


# --- weights ----------------------------------------------------------------------------------------------------------


def _create(arch: str) -> nn.Module:
    if arch in networks.DENSE:
        return networks.build(arch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own deprecations concern its developers
        return timm.create_model(arch, pretrained=False, num_classes=0)


def _sketch(name: str) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return _create(name)


def _config(name: str) -> dict[str, Any]:
    """What timm knows of the weights a name stands for: tag, source, input size, normalisation, classifier."""
    return dict(cast(dict[str, Any], _sketch(name).pretrained_cfg))


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
    config = _config(name)
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
    """The network of a Run, which has no tensor of what `_frozen` takes away; None where the weights do not fit."""
    if name in networks.DENSE:
        return None
    module = _frozen(timm.create_model(name, pretrained=False, num_classes=0))
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


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    """A state dict from a file. Pickles are opened as tensors only, whatever the environment says.

    Raises:
        UntrustedFile: the pickle wants more than tensors; the message names what.
    """
    if not path.is_file():
        raise UsageError(f"--weights {path}: no such file (a local .safetensors or .pth, or random:SEED).")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UsageError(f"--weights {path}: expected a .safetensors, .pth or .pt file.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
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
    return loaded


def _fetch(name: str, config: Mapping[str, Any]) -> Path:
    """The file of pretrained weights in the local hub cache, brought there through the network if need be."""
    repository = config.get("hf_hub_id")
    if not repository:
        raise WeightsUnavailable(
            f"{name} has no pretrained weights. Pass a local file with --weights FILE.safetensors, or ask for random "
            "weights with --weights random:0."
        )
    where = {"repo_id": repository, "filename": config.get("hf_hub_filename") or "model.safetensors"}
    try:
        return Path(huggingface_hub.hf_hub_download(**where, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    if not hub_is_reachable():
        raise WeightsUnavailable(f"weights of {name} are not cached and the hub cannot be reached. {_WAYS_OUT}")
    try:
        return Path(huggingface_hub.hf_hub_download(**where))
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsUnavailable(f"weights of {name} could not be fetched: {reason} {_WAYS_OUT}") from error


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


# --- vectors ----------------------------------------------------------------------------------------------------------


class _MeanOfMap(nn.Module):
    """(b, d, rows, columns) to (b, d)."""

    def forward(self, grid: Tensor) -> Tensor:
        return grid.mean(dim=(2, 3))


def _frozen(module: nn.Module) -> nn.Module:
    """Without classifier: called with an image, it gives the pooled vector."""
    if isinstance(module, VGG):
        module.register_module(
            "pre_logits", nn.Identity()
        )  # its two dense layers are classifier: 120 of 138 million parameters
        module.register_module("head", _MeanOfMap())
    return module.eval().requires_grad_(False)


def _pooling(module: nn.Module) -> str:
    if isinstance(module, networks.ConvNet):
        return "none: the flattened feature map"
    return "mean of the feature map" if isinstance(module, VGG) else "as timm with num_classes=0"


def _divided(module: nn.Module) -> tuple[str, Cut]:
    """The name of the first parameter of the last stage, and the network cut before it.

    Raises:
        UsageError: what its stages are is not known, or there is nothing before the last.
    """
    try:
        last_stage = groups(module, coarse=True)[-1]
        divided = cut(module, last_stage)
    except UsageError as error:
        raise UsageError(f"--tap boundary: the last stage of this backbone is not known. {error}") from error
    if divided.trunk is None:
        raise UsageError("--tap boundary: nothing lies before the last stage of this backbone.")
    return last_stage[0], divided


def _taps(module: nn.Module, divided: Cut | None, x: Tensor, with_grid: bool) -> dict[str, Tensor]:
    """(b, 3, h, w) float to (b, …) by tap. `pooled` is (b, d): what timm gives for num_classes=0; for VGG the mean over
    its last feature map. `grid` is that feature map as the network makes it, (b, channels, rows, columns) for most;
    `boundary`, of a divided network, what its trunk hands to its tail."""
    if divided is not None and divided.trunk is not None:
        boundary = divided.trunk(x)
        return {POOLED: divided.tail(boundary), BOUNDARY: boundary}
    net = cast(Any, module)
    if not with_grid and not isinstance(module, VGG):
        return {POOLED: net(x)}
    grid = net.forward_features(x)
    pooled = grid.mean(dim=(2, 3)) if isinstance(module, VGG) else net.forward_head(grid)
    return {POOLED: pooled, GRID: grid} if with_grid else {POOLED: pooled}


def _declared_width(module: nn.Module) -> int:
    declared: Any = None if isinstance(module, VGG) else getattr(module, "head_hidden_size", None)
    return int(declared or cast(Any, module).num_features)


def _shapes(
    module: nn.Module, divided: Cut | None, transform: TransformSpec, taps: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """What each tap gives for one image, seen rather than believed, from a black one."""
    device = next(module.parameters()).device
    with torch.inference_mode():
        try:
            found = _taps(module, divided, torch.zeros(1, 3, *transform.input_size, device=device), GRID in taps)
        except (RuntimeError, AssertionError) as error:
            size = "x".join(map(str, transform.input_size))
            raise UsageError(f"this backbone cannot take images of {size}: {str(error).splitlines()[0]}") from error
    if found[POOLED].ndim != 2:
        raise UsageError(f"this backbone gives no vector per image but an array of shape {tuple(found[POOLED].shape)}.")
    return {tap: tuple(values.shape[1:]) for tap, values in found.items()}


def _transform(spec: BackboneSpec, config: dict[str, Any]) -> TransformSpec:
    """The model's own data configuration, with the overrides of the spec."""
    own = resolve_data_config(pretrained_cfg=config)  # type: ignore[no-untyped-call]
    settings = {key: getattr(spec, key) for key in ("input_size", "crop_pct", "interpolation", "mean", "std")}
    given = {key: value for key, value in settings.items() if value is not None}
    size = given.pop("input_size", None)
    for key in ("mean", "std"):
        if key in given and len(given[key]) == 1:
            given[key] = given[key] * 3
    fields = {
        "input_size": (size, size) if size is not None else tuple(own["input_size"][1:]),
        **{key: own[key] for key in ("crop_pct", "interpolation")},
        **{key: tuple(own[key]) for key in ("mean", "std")},
        "crop_mode": own["crop_mode"] if own["crop_mode"] in CROP_MODES else "center",
        **given,
    }
    try:
        return TransformSpec(**fields)
    except ValueError as error:
        raise UsageError(f"{error}.") from error
