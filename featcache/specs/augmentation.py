"""How images are augmented: in each epoch of a training, or as copies that are stored beside the image.

The parameters of a copy follow from the digest of the file's bytes, the seed and the number of the copy, and from
nothing else: images that are added, renamed or reordered change no copy, and a larger `n` keeps the ones there are.
"""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from featcache.errors import InvalidParameter
from featcache.specs.bounds import check_number, check_seed

if TYPE_CHECKING:
    import numpy as np

    from featcache.identity import Json

    Array = np.ndarray[Any, Any]

PARAMETERS = ("angle", "brightness", "contrast", "saturation", "flip")  # the columns, in the order they are applied
MAX_COPIES = 32

_RULE = (
    "of the resized image, before the crop: turned counter-clockwise about its centre (bilinear, corners black); times "
    "brightness; contrast about the mean gray, corners included; saturation about the gray; mirrored; rounded each "
    "time; drawn by pcg64 of the sha256 of content, seed and view"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class AugmentationSpec:
    """How an image is shown differently in each epoch of a training: turned, in other light, mirrored, in part.

    Attributes:
        rotation: Largest rotation in degrees, 0 to 180. The angle is uniform from -rotation to rotation.
        color_jitter: Largest change of brightness, contrast and saturation, 0 to 0.9. Each factor is uniform from 1 -
            color_jitter to 1 + color_jitter.
        hflip: Probability of a horizontal flip.
        scale: Smallest share of the image's area that is cropped, 0.01 to 1. The share is uniform from scale to 1, and
            so is the place of the crop; 1 shows the centre, as the transform does.
    """

    rotation: float = 25.0
    color_jitter: float = 0.2
    hflip: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("rotation", 0, 180), ("color_jitter", 0, 0.9), ("hflip", 0, 1), ("scale", 0.01, 1)):
            check_number(name, getattr(self, name), low, high)


@dataclass(frozen=True)
class AugmentedCopies:
    """Augmented copies of every image, whose vectors are stored beside that of the image: a part of the identity.

    Attributes:
        n: Number of augmented copies of each image, 1 to 32.
        seed: Seed of the augmented copies.
        augmentation: How a copy is augmented; its `scale` must be 1.
    """

    n: int
    seed: int = 0
    augmentation: AugmentationSpec = field(default_factory=AugmentationSpec)

    def __post_init__(self) -> None:
        check_number("n", self.n, 1, MAX_COPIES, whole=True)
        check_seed("seed", self.seed)
        if self.augmentation.scale != 1:
            raise InvalidParameter(f"`scale` of stored copies must be 1, got {self.augmentation.scale!r}.")

    def identity(self) -> "Json":
        """The fields as JSON, and the rule by which parameters become a copy."""
        augmentation = self.augmentation
        ranges = {"rotation": augmentation.rotation, "jitter": augmentation.color_jitter, "flip": augmentation.hflip}
        return {"n": self.n, "seed": self.seed, **{name: float(value) for name, value in ranges.items()}, "rule": _RULE}

    @classmethod
    def from_identity(cls, identity: "Json") -> Self:
        """The spec whose `identity` this is."""
        augmentation = AugmentationSpec(identity["rotation"], identity["jitter"], identity["flip"])
        return cls(identity["n"], identity["seed"], augmentation)

    def parameters(self, content_sha256: str) -> "Array":
        """(n, 5) float32: a row of `PARAMETERS` for each copy of the file with these bytes.

        The angle is in degrees, counter-clockwise; brightness, contrast and saturation are factors; flip is 0 or 1.
        """
        import numpy as np

        assert _SHA256.fullmatch(content_sha256), content_sha256
        keys = ([content_sha256, self.seed, copy] for copy in range(self.n))  # no other copy and no option moves one
        drawn = np.array([uniform(key, len(PARAMETERS)) for key in keys])  # (n, 5), from 0 to 1
        signed = 2.0 * drawn[:, :4] - 1.0
        spec = self.augmentation
        angle, factors = spec.rotation * signed[:, :1], 1.0 + spec.color_jitter * signed[:, 1:]
        return np.hstack([angle, factors, drawn[:, 4:] < spec.hflip]).astype(np.float32)


def uniform(key: list[Any], n: int) -> "Array":
    """(n,) float64, uniform in [0, 1), determined by the key alone."""
    import numpy as np

    from featcache.identity import digest_json

    return np.random.Generator(np.random.PCG64(int(digest_json(key), 16))).random(n)
