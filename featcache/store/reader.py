"""A published store, open for reading: vectors, names, columns, and where they came from."""

import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from featcache.errors import CorruptStore, IdentityMismatch, UsageError
from featcache.identity import Json, difference, digest_json
from featcache.specs import POOLED
from featcache.store.opening import OpenFile
from featcache.store.schema import WEIGHTS_FILE, WEIGHTS_READ, WEIGHTS_SOURCE, Array, get_text
from featcache.store.validation import reading
from featcache.summary import Rows, Summary, counted
from featcache.tables import missing

_ONLY_PROBE = "Go back to the versions of its environment (see featcache info), or embed again. "
_DEPTH = re.compile(r"\d+ bit; ")
_PROBE = "probe: the libraries installed here decode or resize images otherwise than those that made it"


class Store(Summary):
    """A published store, open for reading. A context manager; closing twice is harmless.

    Readers take no lock. A store may be handed to forked or spawned workers (all of it is pickled but the open file):
    each process opens the file itself when it first reads, and is refused if another has been published there since.

    Attributes:
        path: where it is.
        identity: everything that changes a vector, as nested dictionaries.
        recorded_identity_sha256: what `identity_sha256` was when the store was published.
        environments: library versions and device of the passes that computed its vectors, oldest first; informative.
        datasets_sha256: name of each array -> the digest recorded when the store was published.
        failures: image_id -> (code, reason) of the images that could not be embedded.
        weights_source: where the pass that published it had its backbone's weights from: "hub", "file", "run" (the file
            of a training of ours, which has learnt from images) or "random:SEED"; None where the store does not say.
            Which weights they are is in the identity.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens a store; see `Store.open`."""
        self.path = Path(path)
        self._held = OpenFile(self.path)
        try:
            with reading(self.path, "its head"):
                self._read_head(self._held.file)
        except BaseException:
            self.close()
            raise

    def _summary(self) -> tuple[str, Rows]:
        backbone = self.identity.get("backbone", {})
        labels = Counter(label for label in self.columns.get("label", []) if label)
        rows = [
            ("images", f"{len(self):,}" + (f", {len(self.failures):,} failed" if self.failures else "")),
            ("backbone", f"{backbone.get('name')}, weights {str(backbone.get('weights_sha256'))[:12]}"),
            ("features", "; ".join(f"{tap} {' × '.join(map(str, self.row_shape(tap)))}" for tap in self.taps)),
            ("precision", f"{self.identity.get('precision')}, stored as {self.identity.get('stored_dtype')}"),
            ("columns", counted(list(self.columns)) or "none"),
        ]
        if labels:
            rows.append(("label", counted([f"{n:,} {name}" for name, n in labels.most_common()])))
        return f"Store {self.path}", rows

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Opens a store, once its structure is found to be that of a store and of nothing else.

        Raises:
            StoreNotFound, UnknownFormat, CorruptStore, UntrustedFile, AccessDenied: with the way out.
        """
        return cls(path)

    def __len__(self) -> int:
        return len(self._image_ids)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file. Reading again opens it again."""
        self._held.close()

    @property
    def weights_file(self) -> str | None:
        """The file that the last pass had its weights from; None where it was none, or is not known."""
        return next(iter(reversed(self._said_of_weights(WEIGHTS_FILE))), None)

    @property
    def weights_notes(self) -> list[str]:
        """How the files of weights were understood, and what of them was not used."""
        return self._said_of_weights(WEIGHTS_READ)

    def _said_of_weights(self, name: str) -> list[str]:
        texts = [environment.get(name) for environment in self.environments if isinstance(environment, dict)]
        return list(dict.fromkeys(text for text in texts if isinstance(text, str)))

    @property
    def image_ids(self) -> list[str]:
        """The n names, in the order of every other array."""
        return list(self._image_ids)

    @property
    def identity_sha256(self) -> str:
        """The digest under which two stores hold comparable vectors."""
        return digest_json(self.identity)

    @property
    def taps(self) -> list[str]:
        """The feature arrays there are; `pooled` is always one."""
        return sorted(self._held.file["features"])

    def width(self, tap: str = POOLED) -> int:
        """The number of features of a row: d, or that of all places of a feature map together."""
        return math.prod(self.row_shape(tap))

    def row_shape(self, tap: str = POOLED) -> tuple[int, ...]:
        """What a row of an array is: (d,), or for a feature map (channels, rows, columns)."""
        return tuple(int(n) for n in self._tap(tap).shape[1:])

    def dtype(self, tap: str = POOLED) -> str:
        """What the vectors are stored as: float32 or float16."""
        return str(self._tap(tap).dtype.name)

    def features(self, tap: str = POOLED, rows: slice | None = None) -> Array:
        """(n, d) float32 vectors, or those of a slice of the rows; other taps have further axes.

        Raises:
            CorruptStore: a checksum does not match, or a row was never written (NaN).
            UsageError: no such tap.
        """
        dataset = self._tap(tap)
        try:
            values = np.asarray(dataset[rows if rows is not None else slice(None)], dtype=np.float32)
        except (OSError, RuntimeError):
            deque(self._held.chunks(f"features/{tap}"), maxlen=0)  # names the rows
            with reading(self.path, f"features/{tap}"):  # this time they all could be read
                raise
        self._check_finite(tap, values, np.arange(len(self))[rows if rows is not None else slice(None)])
        return values

    def rows(self, tap: str, rows: Sequence[int] | Array, views: Sequence[int] | Array | None = None) -> Array:
        """(m, …) float32 of m rows, in any order and also repeated. Of `boundary` and `boundary_views` nothing else is
        read; other arrays are read in chunks of 64 to 256 rows, and better taken whole by `features`.

        Args:
            tap: the array.
            rows: m numbers of rows, each from 0 to n - 1.
            views: m numbers of views, one for each row, from 0 to K - 1, of an array (n, K, …); the result is then
                (m, …) of these views, and no other is read. None for rows as they are.

        Raises:
            CorruptStore: a checksum does not match, or a row was never written (NaN).
            UsageError: no such tap.
            IndexError: no such row or view.
        """
        dataset = self._tap(tap)
        places = _places(rows, views, dataset.shape)
        values = np.empty((len(places), *dataset.shape[1 if views is None else 2 :]), dtype=np.float32)
        for i, place in enumerate(places):
            with reading(self.path, f"features/{tap}, row {place[0]},"):
                values[i] = dataset[place]
        self._check_finite(tap, values, np.asarray(rows))
        return values

    def _check_finite(self, tap: str, values: Array, rows: Array) -> None:
        bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        if len(bad):
            raise CorruptStore(f"{self.path}: features/{tap} has a value that is not finite in row {rows[bad[0]]}.")

    @property
    def columns(self) -> dict[str, list[str]]:
        """Label, group, split and further columns by name: n texts each, empty where unknown, also where the file has
        a word for a missing value (see `missing`)."""
        return {name: missing.without_missing(texts, missing.is_prose(name)) for name, texts in self._texts.items()}

    @property
    def missing_words(self) -> dict[str, Counter[str]]:
        """By column, how often each word for a missing value is in the file."""
        return {name: missing.words(texts, missing.is_prose(name)) for name, texts in self._texts.items()}

    @property
    def _texts(self) -> dict[str, list[str]]:
        return {name: self._held.texts(f"columns/{name}") for name in self._held.file["columns"]}

    @property
    def content_sha256(self) -> list[str]:
        """The n digests of the image files' bytes."""
        return self._held.texts("content_sha256")

    @property
    def identical_images(self) -> list[list[str]]:
        """The sets of two or more image_ids whose files had the same bytes, in the order of the store."""
        contents = self.content_sha256
        repeated = {content for content, n in Counter(contents).items() if n > 1}
        sets: dict[str, list[str]] = {}
        for image_id, content in zip(self._image_ids, contents, strict=True):
            if content in repeated:
                sets.setdefault(content, []).append(image_id)
        return list(sets.values())

    @property
    def datasets(self) -> list[str]:
        """The full names of all arrays that are part of the format."""
        file = self._held.file
        members = [f"{group}/{name}" for group in ("columns", "failures", "features") for name in file[group]]
        return ["image_id", "content_sha256", *members]

    def raw(self, name: str) -> Iterator[tuple[slice, Callable[[], Any]]]:
        """An array as it is stored, chunk by chunk: (rows, a call that reads them). For checking it."""
        return self._held.raw(name)

    def shape(self, name: str) -> tuple[tuple[int, ...], Any]:
        """Shape and dtype of any array by its full name."""
        dataset = self._held.file[name]
        return dataset.shape, dataset.dtype

    def _read_head(self, file: h5py.File) -> None:
        self.identity: Json = self._held.json("identity", dict)
        self.recorded_identity_sha256 = get_text(file, "identity_sha256")
        self.environments: list[Json] = self._held.json("environment", list)
        self.datasets_sha256: dict[str, str] = self._held.json("datasets_sha256", dict)
        source = get_text(file, "weights_source")
        self.weights_source = source if WEIGHTS_SOURCE.fullmatch(source) else None
        self._image_ids = self._held.texts("image_id")
        entries = zip(self._held.texts("failures/code"), self._held.texts("failures/reason"), strict=True)
        self.failures = dict(zip(self._held.texts("failures/image_id"), entries, strict=True))
        self._check_lengths(file)

    def _check_lengths(self, file: h5py.File) -> None:
        """Row i of every array is the same image: all have n rows."""
        n = len(self)
        for dataset in [file["content_sha256"], *file["features"].values(), *file["columns"].values()]:
            if dataset.shape[0] != n:
                raise ValueError(f"{dataset.name} has {dataset.shape[0]} rows, image_id has {n}")
        if len(set(self._image_ids)) != n:
            raise ValueError("a name stands twice in image_id")

    def _tap(self, tap: str) -> h5py.Dataset:
        features = self._held.file["features"]
        if tap not in features:
            raise UsageError(f"{self.path} has no tap {tap!r}, it has {', '.join(self.taps)}.")
        return features[tap]


def _places(rows: Any, views: Any, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """(row,) or (row, view) of each, which an array of this shape has.

    Raises:
        IndexError: it has not.
    """
    indexes = [
        np.asarray(numbers, dtype=np.int64 if len(numbers) == 0 else None)
        for numbers in (rows, views)
        if numbers is not None
    ]
    if any(
        numbers.ndim != 1 or numbers.dtype.kind not in "iu" or len(numbers) != len(indexes[0]) for numbers in indexes
    ):
        raise IndexError("rows and views are lists of whole numbers, of one length")
    for numbers, n, axis in zip(indexes, shape, ("rows", "views"), strict=False):
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= n):
            raise IndexError(f"there are {n:,} {axis}, got numbers from {numbers.min()} to {numbers.max()}")
    return list(zip(*(numbers.tolist() for numbers in indexes), strict=True))


def differences(stored: Json, requested: Json) -> list[str]:
    """A line per field in which two identities differ; of the probe, whose digests say nothing to a person, what it
    means, where it is not another only since other pixels are asked for. A depth of gray that was settled on one side
    only is no difference: the other side has no image of more than 8 bits."""
    stored, requested = _of_one_depth(stored, requested), _of_one_depth(requested, stored)
    alike = all(stored.get(key) == requested.get(key) for key in ("transform", "decode", "views"))
    lines = difference(stored, requested)
    return [_PROBE if line.startswith("probe: ") else line for line in lines if alike or not line.startswith("probe: ")]


def _of_one_depth(identity: Json, other: Json) -> Json:
    """An identity with the depth of another, where it has none that is settled itself."""
    rules, other_rules = (fields.get("decode") if isinstance(fields, dict) else None for fields in (identity, other))
    if not isinstance(rules, dict) or not isinstance(other_rules, dict) or rules.get("gray16", "") is not None:
        return identity
    depth = other_rules.get("gray16")
    is_depth = isinstance(depth, str) and _DEPTH.match(depth)
    return {**identity, "decode": {**rules, "gray16": depth}} if is_depth else identity


def check_identity(path: Path, stored: Json, requested: Json) -> None:
    """Refuses to mix vectors of two kinds at one path.

    Raises:
        IdentityMismatch: with a line per field that differs.
    """
    if lines := differences(stored, requested):
        fields = "\n  ".join(lines)
        why = _ONLY_PROBE if lines == [_PROBE] else ""
        raise IdentityMismatch(
            f"{path} holds other vectors than the ones asked for:\n  {fields}\n{why}Write to another path."
        )
