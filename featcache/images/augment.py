"""Augmented views of an image: turned, in other light, mirrored, each by parameters that anyone can compute again.

The parameters of a view follow from the digest of the file's bytes, the seed and the number of the view, and from
nothing else: images that are added, renamed or reordered change no view, and a larger `n` keeps those there are. They
are kept beside the vectors as float32, and those very values make the view. Needs neither torch nor timm, and knows
nothing of files.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from featcache.bounds import check_number, check_seed
from featcache.identity import Json, digest_json
from featcache.images.specs import TransformSpec
from featcache.recipe import AugmentSpec

Array = np.ndarray[Any, Any]

PARAMETERS = ("angle", "brightness", "contrast", "saturation", "flip")  # the columns, in the order they are applied
MAX_VIEWS = 32

_RULE = (
    "of the resized image, before the crop: turned counter-clockwise about its centre (bilinear, corners black); times "
    "brightness; contrast about the mean gray, corners included; saturation about the gray; mirrored; rounded each "
    "time; drawn by pcg64 of the sha256 of content, seed and view"
)
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, 2.5.1; Pillow's gray has the same
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ViewSpec:
    """Which views are made of every image: a part of the identity.

    Attributes:
        n: views per image, 1 to 32.
        seed: another one gives other views of the same images.
        rotation: degrees, 0 to 180; the angle is uniform from -rotation to rotation.
        color_jitter: 0 to 0.9; the factors of brightness, contrast and saturation are uniform from 1 - color_jitter to
            1 + color_jitter.
        hflip: the probability that a view is mirrored, left to right.
    """

    n: int
    seed: int = 0
    rotation: float = 25.0
    color_jitter: float = 0.2
    hflip: float = 0.5

    def __post_init__(self) -> None:
        check_number("n", self.n, 1, MAX_VIEWS, whole=True)
        check_seed("seed", self.seed)
        for name, high in (("rotation", 180), ("color_jitter", 0.9), ("hflip", 1)):
            check_number(name, getattr(self, name), 0, high)

    def identity(self) -> Json:
        """The fields as JSON, and the rule by which parameters become a view."""
        ranges = {"rotation": self.rotation, "jitter": self.color_jitter, "flip": self.hflip}
        return {"n": self.n, "seed": self.seed, **{name: float(value) for name, value in ranges.items()}, "rule": _RULE}

    @classmethod
    def from_identity(cls, identity: Json) -> Self:
        """The spec whose `identity` this is."""
        return cls(
            identity["n"],
            identity["seed"],
            rotation=identity["rotation"],
            color_jitter=identity["jitter"],
            hflip=identity["flip"],
        )

    def parameters(self, content_sha256: str) -> Array:
        """(n, 5) float32: a row of `PARAMETERS` for each view of the file with these bytes.

        The angle is in degrees, counter-clockwise; brightness, contrast and saturation are factors; flip is 0 or 1.
        """
        assert _SHA256.fullmatch(content_sha256), content_sha256
        drawn = np.array([self._draw(content_sha256, view) for view in range(self.n)])  # (n, 5), from 0 to 1
        signed = 2.0 * drawn[:, :4] - 1.0
        angle, factors = self.rotation * signed[:, :1], 1.0 + self.color_jitter * signed[:, 1:]
        return np.hstack([angle, factors, drawn[:, 4:] < self.hflip]).astype(np.float32)

    def _draw(self, content_sha256: str, view: int) -> Array:
        """(5,) float64, uniform in [0, 1): of one view alone, so that no other view and no option moves it."""
        return _uniform([content_sha256, self.seed, view], len(PARAMETERS))


def views(
    image: Image.Image, transform: TransformSpec, spec: ViewSpec, content_sha256: str, fast: bool = False
) -> Array:
    """What a network sees of the views of a decoded image, which is resized once for all of them.

    Args:
        image: an upright image of mode L or RGB.
        transform: how it is resized and cropped; a view is made in between, so that little of its corners is black.
        spec: the views.
        content_sha256: digest of the file's bytes, 64 hexadecimal digits in lower case.
        fast: as in `TransformSpec.resize`.

    Returns:
        (n, h, w) uint8 for mode L, (n, h, w, 3) for RGB, in the order of `ViewSpec.parameters`.

    Raises:
        ImageError: `too-large`, as `TransformSpec.resize`.
    """
    resized = transform.resize(image, fast)
    return np.stack([np.asarray(transform.crop(apply(resized, row))) for row in spec.parameters(content_sha256)])


def apply(image: Image.Image, parameters: Sequence[float] | Array) -> Image.Image:
    """One view of an image of mode L or RGB, in its size and mode.

    Args:
        image: resized, and not yet cropped.
        parameters: (5,), a row of `ViewSpec.parameters`; 0, 1, 1, 1, 0 gives the same pixels.
    """
    angle, brightness, contrast, saturation, flip = (float(value) for value in parameters)
    view = image.rotate(angle, Image.Resampling.BILINEAR)
    view = _scaled(view, brightness, about=0.0)
    view = _scaled(view, contrast, about=float(np.asarray(view.convert("L")).mean()))
    view = _saturated(view, saturation)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view


def show(
    resized: Image.Image, spec: AugmentSpec, transform: TransformSpec, content_sha256: str, seed: int, epoch: int
) -> Array:
    """What a network sees of an image in an epoch: the same for the same bytes, seed and epoch, and nothing else.

    Args:
        resized: an image of mode L or RGB, resized and not yet cropped.
        spec: how it is augmented.
        transform: how it is cropped.
        content_sha256: digest of the file's bytes.
        seed: random seed of the training.
        epoch: counted from 1.

    Returns:
        (h, w) uint8 for mode L, (h, w, 3) for RGB.
    """
    drawn = _uniform([content_sha256, seed, "epoch", epoch], len(PARAMETERS) + 3)
    signed = 2.0 * drawn[:4] - 1.0
    image = apply(resized, [spec.rotation * signed[0], *(1.0 + spec.color_jitter * signed[1:]), drawn[4] < spec.hflip])
    if spec.scale == 1.0:
        return np.asarray(transform.crop(image))
    side = (spec.scale + (1.0 - spec.scale) * drawn[5]) ** 0.5
    return np.asarray(transform.zoom(image, side, float(drawn[6]), float(drawn[7])))


def _uniform(key: list[Any], n: int) -> Array:
    """(n,) float64, uniform in [0, 1): those of a key alone."""
    return np.random.Generator(np.random.PCG64(int(digest_json(key), 16))).random(n)


def _scaled(image: Image.Image, factor: float, about: float) -> Image.Image:
    """Every value moved away from `about` by `factor`, rounded, and clipped to 0 and 255."""
    table = np.rint(about + factor * (np.arange(256) - about)).clip(0, 255).astype(int)
    return image.point(table.tolist() * len(image.getbands()))


def _saturated(image: Image.Image, factor: float) -> Image.Image:
    """Colours moved away from the gray of their pixel by `factor`, rounded and clipped by Pillow; gray stays gray."""
    if image.mode == "L":
        return image
    to_gray = np.tile(_LUMA, (3, 1))
    mixed = factor * np.eye(3) + (1.0 - factor) * to_gray  # (to, from)
    return image.convert("RGB", tuple(np.hstack([mixed, np.zeros((3, 1))]).ravel().tolist()))
