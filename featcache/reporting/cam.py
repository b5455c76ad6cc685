"""Class activation maps from the feature map before pooling.

Pooling is a mean over locations, so a linear head on pooled vectors can be applied to each location: M_c(x, y) = sum
over k of w_k^c f_k(x, y), divided by the number of places (Zhou et al., "Learning Deep Features for Discriminative
Localization", 2016, section 2, equation 2, whose sum over places becomes the mean). The sum of the map and the bias is
the logit. For a head with hidden layers the weights are the gradients of the logit, as in Grad-CAM before its last ReLU
(Selvaraju et al., 2017, equations 1 and 2); for ReLU that is exact but for a constant, else a first-order account. What
is explained is the log odds of a class, so that a place may speak for it or against it.
Letters: n rows, d channels, h × w places, c classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from featcache.specs import HeadSpec
from featcache.splits.task import Task

Array = np.ndarray[Any, Any]

_SAME = 0.02  # of the scale of the vectors: a store of float16 has them to a thousandth
_FOR, _AGAINST = (204, 85, 51), (68, 119, 170)  # the colours of the charts
_STRONGEST = 0.62  # opacity of the strongest value


def is_mean(grid: Array, pooled: Array) -> bool:
    """Whether (n, d) vectors are the means over the locations of (n, d, h, w) feature maps."""
    if grid.ndim != 4 or grid.shape[:2] != pooled.shape:
        return False
    scale = float(np.sqrt(np.mean(np.square(pooled, dtype=np.float64)))) or 1.0
    return bool(np.abs(grid.mean(axis=(2, 3), dtype=np.float64) - pooled).max(initial=0.0) <= _SAME * scale)


def channels_first(grid: Array, n_features: int) -> Array:
    """(n, d, h, w) from a map that may have its channels last, as those of Swin and ConvNeXt variants."""
    is_last = grid.ndim == 4 and grid.shape[1] != n_features and grid.shape[3] == n_features
    return np.moveaxis(grid, 3, 1) if is_last else grid


def maps(spec: HeadSpec, tensors: Mapping[str, Array], grid: Array, task: Task, of: Array) -> Array:
    """(n, h, w) contribution of each location to the log odds of a class.

    For a linear head on pooled vectors the sum over the locations plus `constant` is the log odds.

    Args:
        spec: spec of the head, of any kind but "knn".
        tensors: weights of the head.
        grid: (n, d, h, w) feature maps, whose means are the pooled vectors.
        task: the task with its classes.
        of: (n,) number of the explained class, or label, of each row.
    """
    gradients = _gradients(spec, tensors, grid, task, of)  # (n, d, h, w), or (n, d, 1, 1)
    return np.asarray((gradients * grid).sum(axis=1))


def constant(tensors: Mapping[str, Array], task: Task, of: int) -> float:
    """The contribution of a linear head's biases to the log odds of a class."""
    return float(_contrast(task, of) @ tensors["bias"].astype(np.float64))


def _contrast(task: Task, of: int) -> Array:
    """(c,) weights that turn logits into log odds: a class against the mean of the others; a label's own logit."""
    c = len(task.classes)
    if task.has_findings:
        return np.asarray(np.arange(c) == of, dtype=np.float64)
    return np.where(np.arange(c) == of, 1.0, -1.0 / (c - 1))


def _gradients(spec: HeadSpec, tensors: Mapping[str, Array], grid: Array, task: Task, of: Array) -> Array:
    import torch

    from featcache.heads.mlp import head_module

    n_places = grid.shape[2] * grid.shape[3]
    is_flat = spec.kind == "flatten-mlp"
    x = grid.reshape(len(grid), -1) if is_flat else grid.mean(axis=(2, 3))
    head = head_module(spec, tensors, 1.0, len(task.classes), task.positive, task.has_findings).eval()
    inputs = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).requires_grad_()
    contrasts = np.stack([_contrast(task, int(index)) for index in of]) if len(of) else np.zeros((0, len(task.classes)))
    contrast = (head(inputs) * torch.from_numpy(contrasts.astype(np.float32))).sum()
    (gradient,) = torch.autograd.grad(contrast, inputs)
    gradients = np.asarray(gradient.numpy())
    return gradients.reshape(grid.shape) if is_flat else gradients[:, :, None, None] / n_places


def overlaid(image: Image.Image, activation: Array) -> Image.Image:
    """The image with an (h, w) activation map: red for positive, blue for negative values, scaled to its maximum."""
    most = float(np.abs(activation).max()) or 1.0
    scaled = Image.fromarray((activation / most).astype(np.float32))
    strength = np.asarray(scaled.resize(image.size, Image.Resampling.BICUBIC)).clip(-1, 1)[..., None]
    base = np.asarray(image.convert("RGB"), dtype=np.float32)
    color = np.where(strength > 0, np.array(_FOR, dtype=np.float32), np.array(_AGAINST, dtype=np.float32))
    cover = _STRONGEST * np.abs(strength)
    return Image.fromarray(np.rint(base * (1 - cover) + color * cover).astype(np.uint8))
