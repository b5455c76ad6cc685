"""Augmented views of an image: turned, in other light, mirrored, each by parameters that anyone can compute again.

The parameters of a view follow from the digest of the file's bytes, the seed and the number of the view, and from
nothing else: images that are added, renamed or reordered change no view, and a larger `n` keeps those there are. They
are kept beside the vectors as float32, and those very values make the view. Needs neither torch nor timm, and knows
nothing of files.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from featcache.specs import PARAMETERS, AugmentationSpec, AugmentedCopies, TransformSpec
from featcache.specs.augmentation import uniform

Array = np.ndarray[Any, Any]

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, 2.5.1; Pillow's gray has the same


def views(
    image: Image.Image, transform: TransformSpec, spec: AugmentedCopies, content_sha256: str, fast: bool = False
) -> Array:
    """What a network sees of the views of a decoded image, which is resized once for all of them.

    Args:
        image: an upright image of mode L or RGB.
        transform: how it is resized and cropped; a view is made in between, so that little of its corners is black.
        spec: the views.
        content_sha256: digest of the file's bytes, 64 hexadecimal digits in lower case.
        fast: as in `TransformSpec.resize`.

    Returns:
        (n, h, w) uint8 for mode L, (n, h, w, 3) for RGB, in the order of `AugmentedCopies.parameters`.

    Raises:
        ImageError: `too-large`, as `TransformSpec.resize`.
    """
    resized = transform.resize(image, fast)
    return np.stack([np.asarray(transform.crop(apply(resized, row))) for row in spec.parameters(content_sha256)])


def apply(image: Image.Image, parameters: Sequence[float] | Array) -> Image.Image:
    """One view of an image of mode L or RGB, in its size and mode.

    Args:
        image: resized, and not yet cropped.
        parameters: (5,), a row of `AugmentedCopies.parameters`; 0, 1, 1, 1, 0 gives the same pixels.
    """
    angle, brightness, contrast, saturation, flip = (float(value) for value in parameters)
    view = image.rotate(angle, Image.Resampling.BILINEAR)
    view = _scaled(view, brightness, about=0.0)
    view = _scaled(view, contrast, about=float(np.asarray(view.convert("L")).mean()))
    view = _saturated(view, saturation)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view


def show(
    resized: Image.Image, spec: AugmentationSpec, transform: TransformSpec, content_sha256: str, seed: int, epoch: int
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
    drawn = uniform([content_sha256, seed, "epoch", epoch], len(PARAMETERS) + 3)
    signed = 2.0 * drawn[:4] - 1.0
    image = apply(resized, [spec.rotation * signed[0], *(1.0 + spec.color_jitter * signed[1:]), drawn[4] < spec.hflip])
    if spec.scale == 1.0:
        return np.asarray(transform.crop(image))
    side = (spec.scale + (1.0 - spec.scale) * drawn[5]) ** 0.5
    return np.asarray(transform.zoom(image, side, float(drawn[6]), float(drawn[7])))


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
