"""The rows of a part while they fill: failures, vectors that are known, twins, and batches on their way.

Nothing here waits for the network until the part is asked for: batches are handed over and come back as futures.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from featcache.embedding.network import Array, Network
from featcache.errors import InputOutputError, UsageError
from featcache.images.workers import Prepared
from featcache.specs import BOUNDARY, POOLED, AugmentedCopies
from featcache.store import BOUNDARY_VIEWS, EMBEDDED, FAILED, REUSED, VIEW_PARAMETERS, VIEWS, KnownVectors, Part

Submit = Callable[[Network, Sequence[Array]], "Future[Mapping[str, Array]]"]

_OF_VIEWS = {POOLED: VIEWS, BOUNDARY: BOUNDARY_VIEWS}  # tap -> the array of the same of views
_MAX_NOT_FINITE = 0.01  # share of rows; beyond it the network or its weights are broken, not the images
_MAX_ROUNDING = 2**-10  # of a vector by float16, relative; where values are not too small for it, it is below 2**-11


class Filling:
    """m rows of one store, from the first image taken to the finished part.

    Batches have one shape and never reach into another part, so where a pass was stopped changes no vector. Images with
    the same bytes are computed once, also where the first of them lies in the part before, which may still be on its
    way.
    """

    def __init__(
        self,
        rows: range,
        network: Network,
        augmentations: AugmentedCopies | None,
        dtype: str,
        submit: Submit,
        before: "Filling | None" = None,
    ) -> None:
        """Args:
        rows: rows of the plan.
        network: what computes.
        augmentations: augmented copies made of each image.
        dtype: what is stored.
        submit: starts a forward pass.
        before: the part before, if it was filled by the same pass.
        """
        self._rows, self._network, self._augmentations, self._dtype, self._submit = (
            rows,
            network,
            augmentations,
            dtype,
            submit,
        )
        self._before = before
        self._features = {
            tap: np.full((len(rows), *shape), np.nan, dtype=np.float32) for tap, shape in network.shapes.items()
        }
        self._digests: list[str] = []
        self._origin = np.full(len(rows), EMBEDDED, dtype=np.uint8)
        self._failures: dict[int, tuple[str, str]] = {}
        self._first: dict[str, int] = {}  # digest -> the first row of this part that has it
        self._twins: dict[int, tuple[Filling, int]] = {}  # row -> the part and the row with the same bytes
        self._waiting: list[tuple[int, int, Array]] = []  # row, view (0: the image itself), pixels
        self._batches: deque[tuple[list[tuple[int, int]], Future[Mapping[str, Array]]]] = deque()
        self._n_computed = 0

    def take(self, image: Prepared, pixels: Array | None, lookup: KnownVectors) -> None:
        """Notes the next image: its failure, its known vector, its twin, or its pixels for the next batch.

        Args:
            image: what became of its file.
            pixels: (1 + K, h, w) or (1 + K, h, w, 3) for this network; None where none were needed.
            lookup: vectors by digest.
        """
        row = len(self._digests)
        self._digests.append(image.digest)
        if image.failure is not None:
            self._failures[row] = image.failure
        elif image.digest in lookup:
            for tap, values in lookup.features(image.digest).items():
                self._features[tap][row] = values
            self._origin[row] = REUSED if lookup.is_reused(image.digest) else EMBEDDED
        elif twin := self._twin_of(image.digest):
            self._twins[row] = twin
        else:
            assert pixels is not None
            self._first[image.digest] = row
            if self._augmentations:
                self._features[VIEW_PARAMETERS][row] = self._augmentations.parameters(image.digest)
            for view, array in enumerate(pixels):
                self._waiting.append((row, view, array))
                if len(self._waiting) == self._network.forward.batch_size:
                    self._send()
        if len(self._digests) == len(self._rows) and self._waiting:
            self._send()

    def part(self) -> Part:
        """The finished part, once its batches are back.

        Raises:
            InputOutputError: the network gives values that are not finite.
            UsageError: float16 cannot hold the vectors.
        """
        while self._batches:
            self._place(*self._batches.popleft())
        for row, (filling, first) in self._twins.items():
            for tap, values in self._features.items():
                values[row] = filling._features[tap][first]
        self._before, self._twins = None, {}
        self._failures.update(_not_finite(self._features, self._failures))
        self._origin[list(self._failures)] = FAILED
        features = {
            tap: values if tap == VIEW_PARAMETERS else stored(values, self._dtype)
            for tap, values in self._features.items()
        }
        environment = self._network.environment if self._n_computed else None
        return Part(self._rows.start, features, self._digests, self._origin, self._failures, environment)

    def _twin_of(self, digest: str) -> "tuple[Filling, int] | None":
        for filling in (self, self._before):
            if filling is not None and digest in filling._first:
                return filling, filling._first[digest]
        return None

    def _send(self) -> None:
        places = [(row, view) for row, view, _ in self._waiting]
        self._batches.append((places, self._submit(self._network, [pixels for _, _, pixels in self._waiting])))
        self._waiting = []
        while self._batches and self._batches[0][1].done():  # what is back need not be held twice
            self._place(*self._batches.popleft())

    def _place(self, places: Sequence[tuple[int, int]], future: "Future[Mapping[str, Array]]") -> None:
        """Puts what the network gave for a batch into its rows."""
        result = future.result()
        for i, (row, view) in enumerate(places):
            self._n_computed += not view
            for tap, values in result.items():
                if not view:
                    self._features[tap][row] = values[i]
                elif tap in _OF_VIEWS:
                    self._features[_OF_VIEWS[tap]][row, view - 1] = values[i]


def _not_finite(features: Mapping[str, Array], failures: Mapping[int, object]) -> dict[int, tuple[str, str]]:
    n = len(features[POOLED])
    finite = np.logical_and.reduce([np.isfinite(values.reshape(n, -1)).all(axis=1) for values in features.values()])
    bad = [int(row) for row in np.flatnonzero(~finite) if row not in failures]
    if len(bad) > max(1, _MAX_NOT_FINITE * n):
        raise InputOutputError(
            f"the network gave values that are not finite for {len(bad)} of {n} images: its weights, `mean` and `std` "
            f"or `precision` are broken. Nothing of this part was kept."
        )
    return dict.fromkeys(bad, ("not-finite", "the network gave a value that is not finite"))


def stored(vectors: Array, dtype: str) -> Array:
    """The vectors as they will lie in the store.

    Raises:
        UsageError: float16 cannot hold them: h5py would write infinities, or dust, without a word.
    """
    if dtype == "float32":
        return vectors
    rows = vectors.reshape(len(vectors), -1)
    whole = np.flatnonzero(np.isfinite(rows).all(axis=1))
    with np.errstate(over="ignore"):
        rounded = vectors.astype(dtype)
    # Row by row: all at once, this takes four times the memory of the part.
    lost = np.array([np.linalg.norm(rows[i] - rounded[i].reshape(-1)) for i in whole])
    size = np.array([np.linalg.norm(rows[i]) for i in whole])
    if not np.isfinite(lost).all():
        raise UsageError(
            f"float16 ends at 65,504, and these vectors reach {np.abs(rows[whole]).max():,.0f}. Use `dtype`=float32."
        )
    if (lost > _MAX_ROUNDING * size).any():
        raise UsageError(
            f"float16 would lose up to {np.max(lost / np.maximum(size, 1e-45)):.1%} of these vectors: their values are "
            f"too small for it (the median is {np.median(np.abs(rows[whole])):.1g}). Use `dtype`=float32."
        )
    return rounded
