"""Vectors by the sha256 of their image's bytes, wherever they lie: what was computed once is not computed again."""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path

from featcache.identity import Json
from featcache.store.parts import Part, read_part
from featcache.store.reader import Store
from featcache.store.schema import FAILED, SINGLE, Array

_BLOCK_ROWS = 64  # of a store, read at once: a chunk; neighbours are asked for one after another
_KEPT_BLOCKS = 32
_KEPT_BYTES = 64 << 20  # of feature maps, fewer blocks are kept, but for the last two


class KnownVectors:
    """The rows of the store that is about to be replaced, of parts whose plan no longer holds, and of this pass.

    Attributes:
        environments: environments of the passes that computed the vectors that were there before this one.
    """

    def __init__(self, store: Store | None, old_parts: Sequence[Path]) -> None:
        self._store = store
        self._place: dict[str, tuple[Path | None, int]] = {}  # digest -> (part, None for the store; row in it)
        self._of_this_pass: set[str] = set()
        self.environments: list[Json] = list(store.environments) if store is not None else []
        self._singles = [tap for tap in store.taps if f"features/{tap}" in SINGLE] if store is not None else []
        self._kept: OrderedDict[tuple[Path | None, int], dict[str, Array]] = OrderedDict()  # the last used come last
        if store is not None:
            self._place.update({digest: (None, row) for row, digest in enumerate(store.content_sha256)})
        for path in old_parts:
            part = read_part(path, taps=())
            self._add(path, part)
            self.environments += [part.environment] if part.environment else []

    def __contains__(self, digest: object) -> bool:
        return digest in self._place

    def is_reused(self, digest: str) -> bool:
        """Whether the vector was there before this pass; else a twin of the image was computed in it."""
        return digest not in self._of_this_pass

    def add_finished(self, path: Path, part: Part) -> None:
        """Takes note of a part of this pass."""
        self._of_this_pass |= self._add(path, part)

    def n_not_among(self, contents: Collection[str]) -> int:
        """How many images of the store have none of these contents: what a new store without them would lose."""
        return sum(path is None and digest not in contents for digest, (path, _) in self._place.items())

    def features(self, digest: str) -> dict[str, Array]:
        """Its row of every array, as it was stored."""
        path, row = self._place[digest]
        block, place = divmod(row, _BLOCK_ROWS) if path is None else (0, row)
        tensors = {tap: values[place] for tap, values in self._block(path, block).items()}
        if path is None and self._store is not None:
            tensors |= {tap: self._store.rows(tap, [row])[0] for tap in self._singles}
        return tensors

    def _add(self, path: Path, part: Part) -> set[str]:
        rows = enumerate(zip(part.content_sha256, part.origin, strict=True))
        new = {
            digest: (path, row)
            for row, (digest, environment) in rows
            if environment != FAILED and digest not in self._place
        }
        self._place.update(new)
        return set(new)

    def _block(self, path: Path | None, block: int) -> dict[str, Array]:
        if (path, block) not in self._kept:
            self._kept[path, block] = self._read_block(path, block)
        self._kept.move_to_end((path, block))
        while len(self._kept) > 2 and (len(self._kept) > _KEPT_BLOCKS or self._kept_bytes > _KEPT_BYTES):
            self._kept.popitem(last=False)
        return self._kept[path, block]

    @property
    def _kept_bytes(self) -> int:
        return sum(values.nbytes for block in self._kept.values() for values in block.values())

    def _read_block(self, path: Path | None, block: int) -> dict[str, Array]:
        if path is not None:
            return read_part(path).features
        assert self._store is not None
        rows = slice(block * _BLOCK_ROWS, (block + 1) * _BLOCK_ROWS)
        return {tap: self._store.features(tap, rows) for tap in self._store.taps if tap not in self._singles}
