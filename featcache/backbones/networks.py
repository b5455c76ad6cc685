"""Two small networks of our own, to be trained from scratch where timm's are more than a data set can feed.

As backbones they are their convolutions; the vector is the flattened feature map. The dense layers that belong to them
are a head like any other: its hidden widths are in `DENSE`. There are no pretrained weights, and none are invented: a
vector of random weights is what `random:SEED` asks for.

    simple-cnn  224 x 224 x 3, 5 x 5 x 16, pool 2, 5 x 5 x 32, pool 2, mean of 8 x 8, flattened to 1,568; 120, 84
    covid-cnn   224 x 224 x 3, 3 x 3 x 64, pool 2, 3 x 3 x 64, pool 2, flattened to 186,624; 128, 64

The first is LeNet-5 (LeCun et al. 1998, figure 2: two convolutions of 5 x 5, dense layers of 120, 84 and c units) with
twice its channels or more, padding, and what is usual since: rectifiers, the largest of each pooling, and a mean at the
end, here over 8 x 8, by which the first dense layer has 188,280 parameters and not 12 million. Of the 23.9 million of
the second, 99.8 % are in its first dense layer.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

# Units of the dense layers before the last.
DENSE: dict[str, tuple[int, ...]] = {"simple-cnn": (120, 84), "covid-cnn": (128, 64)}
INPUT_SIZE = 224

_CONFIG = {  # in the terms of timm's `pretrained_cfg`
    "input_size": (3, INPUT_SIZE, INPUT_SIZE),
    "crop_pct": 1.0,  # the whole of the shorter side: the edges of a radiograph are not background
    "crop_mode": "center",
    "interpolation": "bilinear",
    # From -1 to 1, all channels alike. ImageNet's numbers belong to weights that were trained with them, and would make
    # of a gray image three that differ.
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "num_classes": 0,
    "classifier": None,
    "license": "apache-2.0",
}


class ConvNet(nn.Module):
    """A row of layers, and the flattened map it ends with: (b, 3, h, w) to (b, d). Images of another size than
    `INPUT_SIZE` have another d."""

    def __init__(self, name: str, features: nn.Sequential, n_features: int) -> None:
        super().__init__()
        self.features = features
        self.flatten = nn.Flatten()
        self.num_features = n_features  # at INPUT_SIZE
        self.pretrained_cfg: dict[str, Any] = {**_CONFIG, "architecture": name}

    def forward_features(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) to the feature map (b, channels, rows, columns)."""
        return self.features(x)  # type: ignore[no-any-return]

    def forward_head(self, grid: Tensor) -> Tensor:
        """The feature map to (b, d), channel by channel."""
        return self.flatten(grid)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, d)."""
        return self.forward_head(self.forward_features(x))


def build(name: str) -> ConvNet:
    """A network of `DENSE`, initialised as torch.nn.Conv2d initialises itself."""
    return _BUILT[name]()


def _simple_cnn() -> ConvNet:
    features = nn.Sequential(*_layer(3, 16, 5, 2), *_layer(16, 32, 5, 2), nn.AvgPool2d(8))
    return ConvNet("simple-cnn", features, 32 * 7 * 7)


def _covid_cnn() -> ConvNet:
    features = nn.Sequential(*_layer(3, 64, 3, 0), *_layer(64, 64, 3, 0))
    return ConvNet("covid-cnn", features, 64 * 54 * 54)


def _layer(n_in: int, n_out: int, kernel: int, padding: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(n_in, n_out, kernel, padding=padding), nn.ReLU(inplace=True), nn.MaxPool2d(2)


_BUILT: dict[str, Callable[[], ConvNet]] = {"simple-cnn": _simple_cnn, "covid-cnn": _covid_cnn}
