"""What is requested of an embedding pass: the network, how files are decoded, how vectors are stored."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from featcache.errors import InvalidParameter, UsageError
from featcache.specs.augmentation import AugmentedCopies
from featcache.specs.bounds import check_choice
from featcache.specs.images import (
    INTERPOLATIONS,
    DecodeSpec,
    check_crop_pct,
    check_input_size,
    check_normalisation,
)

if TYPE_CHECKING:
    from featcache.identity import Json

POOLED, GRID, BOUNDARY = TAPS = ("pooled", "grid", "boundary")
STORED_DTYPES = ("float32", "float16")
PRECISIONS = ("auto", "float32", "tf32", "float16", "bfloat16")


@dataclass(frozen=True)
class BackboneSpec:
    """Which network, with which weights, seen through which transform.

    Attributes:
        name: Name of the backbone as timm spells it: arch or arch.tag.
        weights: Weights: a .safetensors, .pth or .pt file, or random:SEED. None for the pretrained weights of the name,
            from the hub.
        input_size: Height and width of the network's input in pixels. None, as for the next five, is the model's own.
        crop_pct: Share of the resized image that the central crop keeps.
        interpolation: Interpolation of the resize.
        mean: Mean of the pixels, one or three numbers: 0.53 or 0.485,0.456,0.406.
        std: Standard deviation of the pixels, one or three numbers.
        crop_mode: How the image is fitted: center crops it, squash changes its aspect ratio.
        taps: Features to store: pooled vectors, with grid the last feature map, or with boundary the input of the last
            stage.
        precision: Precision of the network. "auto" is settled before a network
            is loaded; "tf32" and "float16" need a GPU.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"interpolation": INTERPOLATIONS, "precision": PRECISIONS}

    name: str
    weights: str | None = None
    input_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    taps: tuple[str, ...] = (POOLED,)
    precision: str = "float32"
    crop_mode: str | None = None

    def __post_init__(self) -> None:
        if POOLED not in self.taps or not set(self.taps) <= set(TAPS) or {GRID, BOUNDARY} <= set(self.taps):
            raise InvalidParameter(
                f"`tap` must be pooled, pooled and grid, or pooled and boundary, got {', '.join(self.taps) or 'none'}."
            )
        check_choice("precision", self.precision, PRECISIONS)
        if self.input_size is not None:
            check_input_size(self.input_size)
        if self.crop_pct is not None:
            check_crop_pct(self.crop_pct)
        check_normalisation(self.mean or (), self.std or ())

    @property
    def weights_path(self) -> Path | None:
        """The file of weights, where one was named."""
        named = self.weights is not None and not self.weights.startswith("random:")
        return Path(os.path.abspath(str(self.weights))) if named else None


def check_weights(weights: str | None) -> None:
    """Raises UsageError for a file of weights that is not there."""
    if weights is not None and not weights.startswith("random:") and not os.path.isfile(weights):
        raise UsageError(f"`weights`={weights}: no such file (a local .safetensors or .pth, or random:SEED).")


@dataclass(frozen=True)
class Request:
    """Everything a person can ask for that changes a vector.

    Attributes:
        backbone: the network.
        decode: how files become pixels.
        dtype: what vectors are stored as, float32 or float16.
        augmentations: augmentation views beside the clean image; None for none.
    """

    backbone: BackboneSpec
    decode: DecodeSpec = field(default_factory=DecodeSpec)
    dtype: str = "float32"
    augmentations: AugmentedCopies | None = None

    def __post_init__(self) -> None:
        if self.dtype not in STORED_DTYPES:
            raise InvalidParameter(f"`dtype` must be {' or '.join(STORED_DTYPES)}, got {self.dtype!r}.")

    def digest(self, libraries: "Json") -> str:
        """Under which its answer is remembered, with the versions of the libraries that gave it."""
        weights = self.backbone.weights_path
        request = {**asdict(self.backbone), "weights": str(weights) if weights else self.backbone.weights}
        views = self.augmentations.identity() if self.augmentations else None
        rest = {"decode": self.decode.identity(), "dtype": self.dtype, "views": views, "by": libraries}
        from featcache.identity import digest_json

        return digest_json({"backbone": request, **rest})
