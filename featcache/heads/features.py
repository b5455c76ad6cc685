"""The vectors of a store that heads work on: one per image and, on request, those of its augmented copies.

With views they are one (n, 1 + K, d) array in which the image as it is comes first, so that all that may stand for a
row lies side by side. Knows nothing of labels, and not what a head does with them.
Letters: n rows, K views of each, d features.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from featcache.errors import UsageError
from featcache.specs import GRID, POOLED, HeadSpec
from featcache.store import VIEWS, Store

if TYPE_CHECKING:
    from torch import Tensor

_TAPS = {"flatten-mlp": GRID}
_BLOCK = 1024  # rows


def tap_of(spec: HeadSpec) -> str:
    """The feature array a kind of head works on."""
    return _TAPS.get(spec.kind, POOLED)


def need_views(specs: Sequence[HeadSpec], tta: bool) -> bool:
    """Whether augmentations are used in training or prediction."""
    return tta or any(spec.augmentations for spec in specs)


def check(store: Store, specs: Sequence[HeadSpec], tta: bool) -> None:
    """Checks that the store has the features that the heads need.

    Raises:
        UsageError: it lacks a feature array or views, or views are to be averaged for a head that works on feature
            maps, of which there are none.
    """
    for spec in specs:
        if (tap := tap_of(spec)) not in store.taps:
            raise UsageError(
                f"{store.path} has no {tap!r} features, which a {spec.kind} head works on; it has "
                f"{', '.join(store.taps)}. Embed the images again with the taps pooled and grid."
            )
        if tta and tap != POOLED:
            raise UsageError(f"a {spec.kind} head works on {tap} features, which have no views to average.")
    if need_views(specs, tta):
        _check_views(store)


def _check_views(store: Store) -> None:
    if VIEWS not in store.taps:
        raise UsageError(f"{store.path} has no augmented views. Embed the images again with `augmentations`.")
    (stored, _), (pooled, _) = store.shape(f"features/{VIEWS}"), store.shape(f"features/{POOLED}")
    if len(stored) != 3 or stored[1] < 1 or stored[2:] != pooled[1:]:
        raise UsageError(
            f"{store.path}: features/{VIEWS} of shape {stored} are no views of features/{POOLED} of shape {pooled}."
        )


def load(store: Store, specs: Sequence[HeadSpec], tta: bool, device: str) -> "dict[str, Tensor]":
    """By name the feature arrays that some heads work on, (n, d) float32 with feature maps flattened; pooled vectors as
    (n, 1 + K, d) where views are needed."""
    import torch

    arrays = {}
    for tap in dict.fromkeys(map(tap_of, specs)):
        with_views = tap == POOLED and need_views(specs, tta)
        x = _with_views(store) if with_views else store.features(tap).reshape(len(store), -1)
        arrays[tap] = torch.from_numpy(x).to(device)
    return arrays


def _with_views(store: Store) -> "np.ndarray[tuple[int, int, int], np.dtype[np.float32]]":
    n, n_views, d = store.shape(f"features/{VIEWS}")[0]
    x = np.empty((n, 1 + n_views, d), dtype=np.float32)
    for start in range(0, n, _BLOCK):
        rows = slice(start, start + _BLOCK)
        x[rows, 0], x[rows, 1:] = store.features(POOLED, rows), store.features(VIEWS, rows)
    return x


def clean(x: "Tensor") -> "Tensor":
    """(n, d) features of the images without augmentation; not copied."""
    return x if x.ndim == 2 else x[:, 0]


def scored(x: "Tensor", tta: bool) -> "Tensor":
    """The features to predict from: (n, d), or with test-time augmentation (n, 1 + K, d), whose logits are averaged."""
    return x if tta else clean(x)
