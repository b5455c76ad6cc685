"""What the pixels of a set of images are, looked at before a depth is decided for all of them.

A file says that it has 16 bits to a pixel, and not how many of them mean anything: 12 bits in 16 are next to black if
16 are believed, and one bright pixel must not decide it for one image. So the greatest value of the set decides, and it
is said which ranges there are. A look decodes in workers; of a large set it is at images spread evenly over it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from featcache.errors import ImageError
from featcache.images import Look, headers
from featcache.images.workers import Decoders
from featcache.manifest.manifest import Manifest
from featcache.specs import DecodeSpec

T = TypeVar("T")

N_LOOKED = 1_000  # images of deep gray that are decoded, to settle the depth of a set
DEPTHS = (8, 10, 12, 13, 14, 15, 16)  # bits: those of detectors and of converted films, and from 12 on every one
FEW_LEVELS = 8  # gray levels, up to which an image is more likely a mask than a picture
_SHOWN = 3


@dataclass(frozen=True)
class Depths:
    """The depths of the images of a set that are of integer gray of more than 8 bits.

    Attributes:
        n_images: number of such images.
        n_looked: number of those images that were decoded.
        greatest: value among them.
        counts: depth -> how many of those that were decoded need it, by their greatest value.
        examples: depth -> the first of them.
    """

    n_images: int
    n_looked: int
    greatest: int
    counts: Mapping[int, int]
    examples: Mapping[int, str]

    @classmethod
    def of(cls, looks: Iterable[tuple[str, Look]], n_images: int) -> "Depths | None":
        """Of the looks at some images of a set; None where none is of deep gray."""
        values = [(name, look.greatest) for name, look in looks if look.greatest is not None]
        if not values:
            return None
        counts = Counter(needed(value) for _, value in values)
        examples = {needed(value): name for name, value in reversed(values)}
        greatest = max(value for _, value in values)
        return cls(n_images, len(values), greatest, dict(sorted(counts.items())), examples)

    @property
    def bits(self) -> int:
        """The least depth that holds every value."""
        return needed(self.greatest)

    def note(self, bits: int) -> str:
        """What was decided, and by what; with counts where the set has more than one range."""
        looked = "" if self.n_looked == self.n_images else f" ({self.n_looked:,} of them were looked at)"
        images = "1 image is" if self.n_images == 1 else f"{self.n_images:,} images are"
        decided = f"{images} of gray of more than 8 bits{looked}, with values up to {self.greatest:,}"
        text = f"{decided}: all are read as {bits} bits; bit_depth states another depth."
        less = {depth: n for depth, n in self.counts.items() if depth < bits}
        more = {depth: n for depth, n in self.counts.items() if depth > bits}
        if less:
            text += (
                f" But the values of {self._described(less)} need fewer bits, and these images come out dark if that "
                f"is their range: bring all images to one range, or embed each range into a store of its own."
            )
        if more:
            text += f" But the values of {self._described(more)} need more, and these images fail."
        return text

    def _described(self, counts: Mapping[int, int]) -> str:
        parts = (f"{n:,} ({depth} bits, such as {self.examples[depth]!r})" for depth, n in counts.items())
        return " and ".join(parts)


def needed(greatest: int) -> int:
    """The least of `DEPTHS` that holds a value."""
    return next((bits for bits in DEPTHS if greatest < 1 << bits), DEPTHS[-1])


def depths_of(
    manifest: Manifest, rows: Sequence[int], decode: DecodeSpec, n_workers: int, timeout_s: float
) -> Depths | None:
    """The depths of some rows of a manifest; None where none is of deep gray. No process is started for sets that have
    none by their first bytes.

    Args:
        manifest: the images.
        rows: rows of the manifest.
        decode: how files become pixels, whatever its depth.
        n_workers: processes that decode.
        timeout_s: what one image may take.
    """
    readable = (row for row in rows if manifest.image_ids[row] not in manifest.refused)
    candidates = [row for row in readable if headers.may_be_deep(manifest.paths[row])]
    if not candidates:
        return None
    with Decoders([], decode, None, timeout_s) as decoders, ThreadPoolExecutor(n_workers) as pool:

        def is_deep(row: int) -> bool:
            try:
                return decoders.header(manifest.paths[row]).is_deep
            except ImageError:  # embedding says why
                return False

        deep = [row for row, it_is in zip(candidates, pool.map(is_deep, candidates), strict=True) if it_is]
        return Depths.of(looks_at(manifest, spread(deep, N_LOOKED), decoders, pool), len(deep))


def looks_at(
    manifest: Manifest, rows: Sequence[int], decoders: Decoders, pool: ThreadPoolExecutor
) -> list[tuple[str, Look]]:
    """Name and look of those rows that can be decoded."""

    def look(row: int) -> Look | None:
        try:
            return decoders.look(manifest.paths[row])[1]
        except ImageError:
            return None

    looks = zip(rows, pool.map(look, rows), strict=True)
    return [(manifest.image_ids[row], look) for row, look in looks if look is not None]


def spread(values: Sequence[T], most: int) -> list[T]:
    """At most so many of some values, spread evenly over them, the first and the last among them."""
    n = len(values)
    if n <= most:
        return list(values)
    return [values[round(i * (n - 1) / (most - 1))] for i in range(most)]


def levels_notes(looks: Sequence[tuple[str, Look]], n_images: int) -> list[str]:
    """A note on images without a picture, and one on those of few gray levels, where there are any."""
    sample = "" if len(looks) >= n_images else f" (a sample of {n_images:,}; full looks at all)"
    decoded = f"of the {len(looks):,} images that were decoded{sample}"
    constant = [name for name, look in looks if look.n_levels == 1]
    few = [name for name, look in looks if look.n_levels > 1 and look.n_main_levels <= FEW_LEVELS]
    notes = []
    if constant:
        notes.append(
            f"{len(constant):,} {decoded} have one gray level throughout and show nothing ({_some(constant)})."
        )
    if few:
        notes.append(
            f"{len(few):,} {decoded} have {FEW_LEVELS} gray levels or fewer in 98 % of their pixels, as masks and "
            f"drawings have ({_some(few)}): leave them out unless they are meant."
        )
    return notes


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
