"""What is asked of a pass, as plain values: which network, how files are decoded, how vectors are stored.

Light on purpose: what a request stands for is learnt by loading a network, and remembered by `seen`, so that asking
again costs no import of torch.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from featcache.errors import InvalidParameter, UsageError
from featcache.identity import Json, digest_json
from featcache.images import DecodeSpec
from featcache.images.augment import ViewSpec
from featcache.images.specs import check_crop_pct, check_input_size, check_normalisation
from featcache.store import BOUNDARY, GRID, POOLED, STORED_DTYPES

TAPS = (POOLED, GRID, BOUNDARY)
PRECISIONS = ("auto", "float32", "tf32", "float16", "bfloat16")


@dataclass(frozen=True)
class BackboneSpec:
    """Which network, with which weights, seen through which transform.

    Attributes:
        name: `arch.tag` or `arch`, as timm spells it.
        weights: None for those the name stands for, a `.safetensors`, `.pth` or `.pt` file, or `random:SEED`.
        input_size, crop_pct, interpolation, mean, std, crop_mode: None for the model's own data configuration.
        taps: what is kept of it: `pooled`, the vector; with `grid` the feature map before pooling, too, or with
            `boundary` the tensor that enters the last stage.
        precision: precision of the arithmetic; "auto" is settled by `precision.settled` before a network is loaded.
    """

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
        if self.precision not in PRECISIONS:
            raise InvalidParameter(f"`precision` must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.")
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
    augmentations: ViewSpec | None = None

    def __post_init__(self) -> None:
        if self.dtype not in STORED_DTYPES:
            raise InvalidParameter(f"`dtype` must be {' or '.join(STORED_DTYPES)}, got {self.dtype!r}.")

    def digest(self, libraries: Json) -> str:
        """Under which its answer is remembered, with the versions of the libraries that gave it."""
        weights = self.backbone.weights_path
        request = {**asdict(self.backbone), "weights": str(weights) if weights else self.backbone.weights}
        views = self.augmentations.identity() if self.augmentations else None
        rest = {"decode": self.decode.identity(), "dtype": self.dtype, "views": views, "by": libraries}
        return digest_json({"backbone": request, **rest})
