"""A fusion file, open for reading: vectors, report texts and logits of studies. Needs h5py and numpy.

A study is a row of every array. Its images stand side by side, padded with zeros to the most that a study has; the mask
says which are images. A text that is empty is a text that is missing. Knows nothing of how the file was made.
Letters: s studies, v images at most, d features, t places of a feature map, c classes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from featcache.errors import CorruptStore, UsageError
from featcache.identity import ArrayDigest, Json, digest_json
from featcache.store.opening import OpenFile
from featcache.store.schema import get_text
from featcache.store.validation import FUSION, reading

Array = np.ndarray[Any, Any]

NO_HEAD, FINAL_HEAD, FOLD_HEADS = 0, 1, 2  # which heads of a Run said the logits of a study
_OF_A_RUN = ("logits", "logits_mask", "logits_head", "fold")
_PER_STUDY = ("group_number", "image_vectors", "image_mask", "image_tokens", *_OF_A_RUN)


@dataclass(frozen=True)
class Study:
    """One study, without padding.

    Attributes:
        study_id: its name.
        vectors: (k, d) float32 of its k images, or of the one vector that stands for them; k may be 0.
        texts: texts by name; empty where missing.
        columns: label, group, split and whatever all its images say alike; empty where unknown.
        group_number: studies with the same number belong on one side of everything.
        tokens: (k, t, c) float32 of the places of their feature maps; None where the file has none.
        logits: (c,) float32 by a head that has not seen it; None where there is none.
    """

    study_id: str
    vectors: Array
    texts: Mapping[str, str]
    columns: Mapping[str, str]
    group_number: int
    tokens: Array | None = None
    logits: Array | None = None


@dataclass(frozen=True)
class _Text:
    """All texts of one name: their bytes in a row, and where each begins."""

    data: bytes = field(repr=False)
    offsets: list[int] = field(repr=False)

    def __getitem__(self, i: int) -> str:
        return self.data[self.offsets[i] : self.offsets[i + 1]].decode("utf-8", "surrogateescape")


class Studies:
    """A fusion file, open for reading. A context manager; closing twice is harmless.

    It may be handed to forked or spawned workers: each process opens the file itself when it first reads, and is
    refused if another has been put there since.

    Attributes:
        path: where it is.
        identity: everything that changes a vector, as nested dictionaries.
        about: how the studies were made: the join, the Run, the classes of the logits, the coverage.
        study_ids: s names, all different.
        datasets_sha256: array by its full name -> the digest recorded when the file was written.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens a fusion file; see `open_studies`."""
        self.path = Path(path)
        self._held = OpenFile(self.path, FUSION)
        try:
            with reading(self.path, "its head", FUSION):
                self._read_head()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.study_ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __getitem__(self, i: int) -> Study:
        """The study of a row."""
        i = range(len(self))[i]
        mask = self._mask[i]
        k = int(mask.sum())  # images stand first, padding behind them
        padded = self.vectors(slice(i, i + 1))[0]
        tokens = self.tokens(slice(i, i + 1))[0] if "image_tokens" in self._held.file else None
        return Study(
            study_id=self.study_ids[i],
            vectors=padded.reshape(len(mask), -1)[:k],
            texts={name: text[i] for name, text in self._texts.items()},
            columns={name: values[i] for name, values in self.columns.items()},
            group_number=int(self.group_numbers[i]),
            tokens=None if tokens is None else tokens.reshape(len(mask), *tokens.shape[-2:])[:k],
            logits=self.logits[i] if self.classes and self.logits_mask[i] else None,
        )

    def close(self) -> None:
        """Closes the file. Reading again opens it again."""
        self._held.close()

    # --- of every study ---

    @property
    def identity_sha256(self) -> str:
        """The digest under which the vectors may be compared with others."""
        return digest_json(self.identity)

    @property
    def pool(self) -> str:
        """`views` (all images of a study), `mean` or `first` (one vector)."""
        return str(self.about["pool"])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of the vectors of a study: (v, d), or (d,) where one stands for all its images."""
        return tuple(int(n) for n in self._held.file["image_vectors"].shape[1:])

    @property
    def n_features(self) -> int:
        """d."""
        return self.row_shape[-1]

    @property
    def token_shape(self) -> tuple[int, int] | None:
        """(t, c) of the feature map of an image, c being its channels; None where the file has none."""
        if "image_tokens" not in self._held.file:
            return None
        t, c = self._held.file["image_tokens"].shape[-2:]
        return int(t), int(c)

    def vectors(self, rows: slice | None = None) -> Array:
        """(s, v, d) or (s, d) float32, or those of a slice of the studies; zeros where `image_mask` is false.

        Raises:
            CorruptStore: a checksum does not match, or a value was never written.
        """
        return self._numbers("image_vectors", rows)

    def tokens(self, rows: slice | None = None) -> Array:
        """(s, v, t, c) or (s, t, c) float32: the places of the feature maps, row by row from the top left.

        Raises:
            UsageError: the file has none.
            CorruptStore: as `vectors`.
        """
        if "image_tokens" not in self._held.file:
            raise UsageError(f"{self.path} has no tokens. Export it again with the tap grid.")
        return self._numbers("image_tokens", rows)

    @cached_property
    def image_mask(self) -> Array:
        """(s, v) or (s,) bool: which vectors are of images."""
        return self._array("image_mask").astype(bool)

    @property
    def has_image(self) -> Array:
        """(s,) bool."""
        return np.asarray(self._mask.any(axis=1))

    @property
    def has_text(self) -> Array:
        """(s,) bool: some text of a study is there."""
        lengths = [np.diff(text.offsets) > 0 for text in self._texts.values()]
        return np.asarray(np.any(lengths, axis=0)) if lengths else np.zeros(len(self), dtype=bool)

    @property
    def text_names(self) -> list[str]:
        """The texts that there are, as `text` takes them."""
        return list(self._texts)

    def text(self, name: str) -> list[str]:
        """s texts, empty where missing.

        Raises:
            UsageError: no such text.
        """
        if name not in self._texts:
            raise UsageError(f"{self.path} has no text {name!r}, it has {', '.join(self._texts) or 'none'}.")
        return [self._texts[name][i] for i in range(len(self))]

    @cached_property
    def columns(self) -> dict[str, list[str]]:
        """Label, group, split and whatever the images of a study say alike: s texts each, empty where unknown."""
        return {name: self._held.texts(f"columns/{name}") for name in self._names("columns")}

    @cached_property
    def group_numbers(self) -> Array:
        """(s,) int64: studies of one number share a patient or an image, and belong on one side of everything."""
        return self._array("group_number")

    # --- what a Run says of them ---

    @property
    def classes(self) -> list[str]:
        """Of the logits: classes of a softmax, or findings of a sigmoid each (`about["run"]["task"]`); none without."""
        return list((self.about.get("run") or {}).get("classes", []))

    @cached_property
    def logits(self) -> Array:
        """(s, c) float32 before the temperature, by heads that have seen no image of the study nor of its group; NaN
        where `logits_mask` is false.

        Raises:
            UsageError: the file has none.
        """
        if not self.classes:
            raise UsageError(f"{self.path} has no logits. Export it again with a Run (`run`).")
        return self._array("logits")

    @cached_property
    def logits_mask(self) -> Array:
        """(s,) bool; all false where the file has no logits."""
        return self._array("logits_mask").astype(bool) if self.classes else np.zeros(len(self), dtype=bool)

    @cached_property
    def logits_head(self) -> Array:
        """(s,) uint8 of NO_HEAD, FINAL_HEAD, FOLD_HEADS."""
        return self._array("logits_head") if self.classes else np.zeros(len(self), dtype=np.uint8)

    @cached_property
    def folds(self) -> Array:
        """(s,) int64: the fold of the Run that held a study, -1 where none did."""
        return self._array("fold") if self.classes else np.full(len(self), -1, dtype=np.int64)

    # --- where the vectors came from ---

    @cached_property
    def images(self) -> dict[str, Any]:
        """The m images, by study: `image_id` and `content_sha256` (m texts), `study` and `view` (m,) int64, the row of
        the study and the place in it, and the m texts of each column of the store as `columns`."""
        texts = {name: self._held.texts(f"images/{name}") for name in ("image_id", "content_sha256")}
        places = {name: self._array(f"images/{name}") for name in ("study", "view")}
        columns = {name: self._held.texts(f"image_columns/{name}") for name in self._names("image_columns")}
        return {**texts, **places, "columns": columns}

    def verify(self) -> int:
        """Compares every array with its recorded sha256, and returns how many there are.

        Raises:
            CorruptStore: naming those that differ.
        """
        there = [name for name in self._all() if not self._agrees(name)]
        gone = sorted(self.datasets_sha256.keys() - set(self._all()))
        if there or gone:
            raise CorruptStore(f"{self.path} is damaged: {', '.join(there + gone)}. Export it again.")
        return len(self.datasets_sha256)

    # --- reading ---

    def _read_head(self) -> None:
        file = self._held.file
        self.identity: Json = self._held.json("identity", dict)
        self.recorded_identity_sha256 = get_text(file, "identity_sha256")
        self.about: Json = self._held.json("about", dict)
        self.datasets_sha256: dict[str, str] = self._held.json("datasets_sha256", dict)
        self.study_ids = self._held.texts("study_id")
        self._check_lengths()

    def _check_lengths(self) -> None:
        """Row i of every array is the same study."""
        s, file = len(self), self._held.file
        for name in [*(name for name in _PER_STUDY if name in file), *(f"columns/{n}" for n in self._names("columns"))]:
            if file[name].shape[0] != s:
                raise ValueError(f"{name} has {file[name].shape[0]} rows, study_id has {s}")
        if self._names("text_bytes") != self._names("text_offsets"):
            raise ValueError("texts and their offsets have different names")
        m = {file[f"images/{name}"].shape[0] for name in ("image_id", "content_sha256", "study", "view")}
        m |= {file[f"image_columns/{name}"].shape[0] for name in self._names("image_columns")}
        if len(m) != 1 or len(set(self.study_ids)) != s:
            raise ValueError("a name stands twice in study_id, or the arrays of images have different lengths")
        vectors, mask = file["image_vectors"].shape, file["image_mask"].shape
        if not 2 <= len(vectors) <= 3 or mask != vectors[:-1]:
            raise ValueError(f"image_vectors are of shape {vectors}, image_mask of {mask}")
        if self.classes and not (set(_OF_A_RUN) <= set(file) and file["logits"].shape == (s, len(self.classes))):
            raise ValueError(f"it has no logits of {s} studies and {len(self.classes)} classes")

    @cached_property
    def _texts(self) -> dict[str, _Text]:
        return {name: self._read_text(name) for name in self._names("text_bytes")}

    def _read_text(self, name: str) -> _Text:
        data = b"".join(chunk.tobytes() for chunk in self._held.chunks(f"text_bytes/{name}"))
        offsets = self._array(f"text_offsets/{name}")
        if (
            len(offsets) != len(self) + 1
            or [*offsets[:1], *offsets[-1:]] != [0, len(data)]
            or (np.diff(offsets) < 0).any()
        ):
            raise CorruptStore(f"{self.path} is damaged: text_offsets/{name} do not divide its bytes. {FUSION.again}")
        return _Text(data, offsets.tolist())

    @property
    def _mask(self) -> Array:
        """(s, v), v being 1 where one vector stands for all images."""
        return self.image_mask.reshape(len(self), -1)

    def _array(self, name: str) -> Array:
        chunks = list(self._held.chunks(name))
        return np.concatenate(chunks) if chunks else np.asarray(self._held.file[name][:])

    def _numbers(self, name: str, rows: slice | None) -> Array:
        dataset, rows = self._held.file[name], rows or slice(None)
        with reading(self.path, name, FUSION):
            values = np.asarray(dataset[rows], dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        if len(bad):
            row = range(len(self))[rows][bad[0]]
            raise CorruptStore(f"{self.path}: {name} has a value that is not finite in row {row}.")
        return values

    def _names(self, group: str) -> list[str]:
        return list(self._held.file.get(group, ()))

    def _all(self) -> Iterator[str]:
        """The full names of all arrays of the format."""
        file = self._held.file
        yield from (name for name in ("study_id", *_PER_STUDY) if name in file)
        for group in ("images", "columns", "image_columns", "text_bytes", "text_offsets"):
            yield from (f"{group}/{name}" for name in self._names(group))

    def _agrees(self, name: str) -> bool:
        dataset = self._held.file[name]
        digest = ArrayDigest(dataset.dtype, dataset.shape)
        try:
            for chunk in self._held.chunks(name):
                digest.update(np.asarray(chunk))
        except CorruptStore:
            return False
        return digest.hexdigest() == self.datasets_sha256.get(name)


def open_studies(path: Path | str) -> Studies:
    """Opens a fusion file, once its structure is found to be that of one and of nothing else.

    Raises:
        StoreNotFound, UnknownFormat, CorruptStore, UntrustedFile, AccessDenied: with the way out.
    """
    return Studies(path)
