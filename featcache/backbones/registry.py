"""A name becomes a frozen network, its transform, its vectors and the digest of its weights.

A name is `arch.tag` as timm spells it; a bare `arch` is resolved to timm's default tag, and the resolved name is what
is printed and kept, because a default may change from one release to the next. Pretrained weights that cannot be had
are an error: a network with random weights is made only when `random:SEED` asks for it.
"""

import difflib
import fnmatch
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from timm.data.config import resolve_data_config
from timm.models import VGG, is_model, list_models, list_pretrained
from torch import Tensor, nn

from featcache.backbones import networks, weights
from featcache.backbones.blocks import groups
from featcache.backbones.graph import Cut, cut
from featcache.errors import UsageError
from featcache.identity import Json
from featcache.images.probe import pixels_sha256
from featcache.specs import BOUNDARY, CROP_MODES, GRID, POOLED, AugmentedCopies, BackboneSpec, DecodeSpec, TransformSpec

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


@dataclass(frozen=True)
class Backbone:
    """A frozen network in `eval()`: pixels in, a vector (and a feature map or a boundary, if wanted) per image out.

    Attributes:
        name: the resolved `arch.tag`; `arch` alone where the weights are a file's or random.
        module: the network without its classifier.
        transform: resize, crop and normalisation.
        weights_source: as in `weights.Loaded`, for people.
        weights_paths: the files that decided which weights these are; none for random ones.
        weights_sha256: digest of the state dict really loaded (names, dtypes, shapes, bytes).
        shapes: tap -> shape of what it gives for one image; `pooled` is (d,).
        pooling: how the vector comes from the feature map.
        precision: precision of the arithmetic. "float16" and "bfloat16" are torch's autocast.
        cut: the network in two parts, before its last stage, where the boundary is a tap.
        last_stage: the name of its first parameter, there too.
        notes: how the file of weights was understood, and what of it was not used.
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
    notes: tuple[str, ...] = ()

    @property
    def weights_file(self) -> Path | None:
        """The file that was named for the weights; None where they came from the hub or a seed."""
        named = self.weights_source in ("file", "run") and self.weights_paths
        return Path(os.path.abspath(self.weights_paths[0])) if named else None

    @property
    def n_features(self) -> int:
        """d, the width of the pooled vector."""
        return self.shapes[POOLED][0]

    def identity(self, decode: DecodeSpec, dtype: str, augmentations: AugmentedCopies | None = None) -> Json:
        """Everything that changes a vector: not the origin of the weights but their digest; no paths, labels, device or
        library versions.

        Args:
            decode: how files become pixels.
            dtype: what the vectors are stored as.
            augmentations: augmentation views; the field is there only where they are made.
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
            "probe": pixels_sha256(self.transform, decode, augmentations),
            **({"views": augmentations.identity()} if augmentations else {}),
            "precision": self.precision,
            "stored_dtype": dtype,
        }

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """(b, 3, h, w) uint8, best in channels-last order, to (b, …) float32 by tap, on the backbone's device."""
        with self._arithmetic():
            x = self.normalize(pixels.to(self.device, non_blocking=True))
            tensors = _taps(self.module, self.cut, x, GRID in self.shapes)
        return {tap: values.float() for tap, values in tensors.items()}

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
    check_precision(spec.precision, device)
    config = weights.config_of(name)
    transform = _transform(spec, config)  # before the weights: a wrong option should not cost a download
    loaded = weights.load(name, spec.weights)
    module = loaded.module.to(memory_format=torch.channels_last)
    digest = weights.digest(module)
    module = module.to(device)
    last_stage, divided = _divided(module) if BOUNDARY in spec.taps else (None, None)
    return Backbone(
        name=loaded.name,
        module=module,
        transform=transform,
        weights_source=loaded.source,
        weights_paths=loaded.paths,
        weights_sha256=digest,
        shapes=_shapes(module, divided, transform, spec.taps),
        pooling=_pooling(module),
        precision=spec.precision,
        device=torch.device(device),
        cut=divided,
        last_stage=last_stage,
        notes=loaded.notes,
    )


def check_precision(precision: str, device: str) -> None:
    """Raises UsageError where a device has no such arithmetic."""
    if device == "cpu" and precision not in _CPU_PRECISIONS:
        raise UsageError(f"`precision`={precision} needs a GPU; on the CPU there are {' and '.join(_CPU_PRECISIONS)}.")


# --- names ------------------------------------------------------------------------------------------------------------


def resolve_name(name: str) -> str:
    """`arch` as `arch.tag` with timm's default tag; an `arch.tag` as it is; an old spelling as its successor.

    Raises:
        UsageError: no such architecture or tag, with the nearest names.
    """
    arch, _, tag = name.partition(".")
    if not is_model(arch) and arch not in networks.DENSE:
        raise UsageError(f"no backbone is named {arch!r}. {_near(arch)}See: featcache backbones '*{arch[:6]}*'")
    default = weights.config_of(arch)  # of the successor, where timm has renamed an architecture
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
        archs = [arch for arch in _supported() if fnmatch.fnmatch(arch, pattern) or pattern in arch]
    for arch in archs:
        module = weights.headless(weights.sketch(arch))
        config = weights.config_of(arch)
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
    return (
        name,
        weights.headless(weights.sketch(name)),
        _transform(BackboneSpec(name), weights.config_of(name)).input_size,
    )


def _supported() -> list[str]:
    return [*list_models(), *networks.DENSE]


def _near(arch: str) -> str:
    near = difflib.get_close_matches(arch, _supported(), n=3)
    return f"Near it: {', '.join(near)}. " if near else ""


# --- vectors ----------------------------------------------------------------------------------------------------------


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
        raise UsageError(f"the tap boundary: the last stage of this backbone is not known. {error}") from error
    if divided.trunk is None:
        raise UsageError("the tap boundary: nothing lies before the last stage of this backbone.")
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
            tensors = _taps(module, divided, torch.zeros(1, 3, *transform.input_size, device=device), GRID in taps)
        except (RuntimeError, AssertionError) as error:
            size = "x".join(map(str, transform.input_size))
            raise UsageError(f"this backbone cannot take images of {size}: {str(error).splitlines()[0]}") from error
    if tensors[POOLED].ndim != 2:
        raise UsageError(
            f"this backbone gives no vector per image but an array of shape {tuple(tensors[POOLED].shape)}."
        )
    return {tap: tuple(values.shape[1:]) for tap, values in tensors.items()}


def _transform(spec: BackboneSpec, config: dict[str, Any]) -> TransformSpec:
    """The model's own data configuration, with the overrides of the spec."""
    own = resolve_data_config(pretrained_cfg=config)  # type: ignore[no-untyped-call]
    named = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
    settings = {key: getattr(spec, key) for key in named}
    overrides = {key: value for key, value in settings.items() if value is not None}
    size = overrides.pop("input_size", None)
    for key in ("mean", "std"):
        if key in overrides and len(overrides[key]) == 1:
            overrides[key] = overrides[key] * 3
    fields = {
        "input_size": (size, size) if size is not None else tuple(own["input_size"][1:]),
        **{key: own[key] for key in ("crop_pct", "interpolation")},
        **{key: tuple(own[key]) for key in ("mean", "std")},
        "crop_mode": own["crop_mode"] if own["crop_mode"] in CROP_MODES else "center",
        **overrides,
    }
    return TransformSpec(**fields)
