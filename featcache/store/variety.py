"""Whether the vectors of different images differ: a dead or constant encoder gives all of them the same one.

Vectors are compared by content: rows whose files have the same bytes count once. Knows nothing of networks, so it can
say that vectors are alike, and not whether it is the encoder or the images.
Letters: n images of different bytes, d features.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from featcache.identity import Json
from featcache.store.reader import Store
from featcache.store.schema import Array

# Root mean square distance from the mean vector, relative to the root mean square length. Measured on 48 chest X-rays:
# 0.47 and 0.55 of trained networks, 0.08 to 0.95 of random ones of ten families, 0.003 of a random InceptionResNetV2,
# whose vectors no head can tell apart.
MIN_SPREAD = 0.01
UNKNOWN = "the encoder is dead or constant (its weights are wrong or random), or the images are alike"
_NEARLY = 1e-4  # distance of two vectors, relative to their length, from which on they differ
_MANY = 0.5  # share of the images or of the features that is worth a note
_FEW_IMAGES = 8  # of fewer a feature may well be zero in all
_BLOCK = 4096  # rows


@dataclass(frozen=True)
class Variety:
    """How much the vectors of n different images differ.

    Attributes:
        n_rows: rows that were looked at.
        n_images: number of images with different bytes.
        n_features: d.
        spread: root mean square distance from the mean vector, by the root mean square length; 0 where all are zero.
        n_equal: images whose vector is that of another image, or nearly that of the one before it.
        n_constant: features with the same value in all images.
        is_zero: whether every value is 0.
    """

    n_rows: int
    n_images: int
    n_features: int
    spread: float
    n_equal: int
    n_constant: int
    is_zero: bool

    @classmethod
    def of(cls, store: Store, max_rows: int | None = None) -> "Variety":
        """That of a store's pooled vectors, of all of them or of the first `max_rows`.

        Raises:
            CorruptStore: a vector is damaged.
        """
        n = min(len(store), max_rows or len(store))
        slices = (slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))
        return cls.of_blocks((store.features(rows=rows) for rows in slices), store.content_sha256[:n])

    @classmethod
    def of_blocks(cls, blocks: Iterable[Array], content_sha256: Sequence[str]) -> "Variety":
        """That of vectors in blocks of rows, whose images have these digests."""
        sums = _Sums()
        for x in _of_different_images(blocks, content_sha256):
            sums.add(x)
        return sums.variety(len(content_sha256))

    @property
    def is_constant(self) -> bool:
        """Whether all vectors are nearly one."""
        return self.n_images > 1 and self.spread < MIN_SPREAD

    @property
    def is_worth_a_look(self) -> bool:
        """Whether so many vectors are equal that the encoder or the images cannot be what was meant."""
        return self.is_constant or (self.n_images > 1 and self.n_equal >= _MANY * self.n_images)

    def notes(self, why: str = UNKNOWN) -> list[str]:
        """What a person should know before training on these vectors.

        Args:
            why: the cause of equal vectors, as far as it is known.
        """
        if self.n_images == 1 and self.n_rows > 1:
            return [f"all {self.n_rows:,} images have the same bytes: there is one vector, and nothing to learn."]
        return [*self._of_equal(why), *self._of_constant()]

    def as_json(self) -> Json:
        """For `featcache info` and scripts."""
        return {
            "images": self.n_images,
            "spread": float(f"{self.spread:.4g}"),
            "equal_vectors": self.n_equal,
            "constant_features": self.n_constant,
            "notes": self.notes(),
        }

    def _of_equal(self, why: str) -> Iterator[str]:
        if self.is_zero and self.n_images:
            yield f"every value of the vectors of {self.n_images:,} different images is 0: {why}."
        elif self.is_constant:
            yield (
                f"the vectors of {self.n_images:,} different images are nearly one vector (relative spread "
                f"{self.spread:.2g}, where encoders that see something have 0.08 or more): {why}. No head can tell "
                f"them apart."
            )
        elif self.is_worth_a_look:
            yield f"{self.n_equal:,} of {self.n_images:,} different images have the vector of another one: {why}."

    def _of_constant(self) -> Iterator[str]:
        alive = self.n_features - self.n_constant
        if not self.is_worth_a_look and self.n_images >= _FEW_IMAGES and self.n_constant >= _MANY * self.n_features:
            yield (
                f"{self.n_constant:,} of {self.n_features:,} features have the same value in all {self.n_images:,} "
                f"images: only {alive:,} tell images apart. Look at the encoder's weights."
            )


@dataclass
class _Sums:
    """What is kept of the blocks that went by."""

    n: int = 0
    n_equal: int = 0
    total: Array = field(default_factory=lambda: np.zeros(0))
    squares: float = 0.0
    low: Array = field(default_factory=lambda: np.zeros(0))
    high: Array = field(default_factory=lambda: np.zeros(0))
    last: Array | None = None
    vectors: set[int] = field(default_factory=set)

    def add(self, x: Array) -> None:
        """(m, d) float32 vectors of m different images."""
        if not self.n:
            self.total, self.low, self.high = np.zeros(x.shape[1]), x[0], x[0]
        self.n_equal += int(self._repeats(x).sum())
        self.n += len(x)
        wide = x.astype(np.float64)
        self.total = self.total + wide.sum(axis=0)
        self.squares += float(np.square(wide).sum())
        self.low, self.high = np.minimum(self.low, x.min(axis=0)), np.maximum(self.high, x.max(axis=0))
        self.last = x[-1:]

    def variety(self, n_rows: int) -> Variety:
        mean_square = self.squares / max(1, self.n)
        rest = mean_square - float(np.square(self.total / max(1, self.n)).sum())
        spread = math.sqrt(max(0.0, rest) / mean_square) if mean_square else 0.0
        n_constant = int((self.low == self.high).sum())
        return Variety(n_rows, self.n, len(self.total), spread, self.n_equal, n_constant, mean_square == 0)

    def _repeats(self, x: Array) -> Array:
        """(m,) whether a vector was there before, or nearly the one before it."""
        before = np.concatenate([self.last if self.last is not None else np.full_like(x[:1], np.inf), x[:-1]])
        distance = np.linalg.norm(x - before, axis=1)
        is_repeat = np.zeros(len(x), dtype=bool)
        for i, row in enumerate(np.ascontiguousarray(x)):
            digest = hash(row.tobytes())
            is_repeat[i] = digest in self.vectors
            self.vectors.add(digest)
        repeats: Array = is_repeat | (distance <= _NEARLY * np.linalg.norm(x, axis=1))
        return repeats


def _of_different_images(blocks: Iterable[Array], content_sha256: Sequence[str]) -> Iterator[Array]:
    """The blocks without rows whose bytes went by before."""
    kept: set[str] = set()
    start = 0
    for block in blocks:
        contents = content_sha256[start : start + len(block)]
        start += len(block)
        first = {content: i for i, content in reversed(list(enumerate(contents))) if content not in kept}
        kept.update(first)
        if first:
            yield np.asarray(block[sorted(first.values())], dtype=np.float32)
