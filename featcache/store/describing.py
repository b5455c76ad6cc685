"""What is inside a store, as one JSON object: for `featcache info`, and for whoever writes down what a result is of."""

from collections import Counter
from pathlib import Path

from featcache.errors import CorruptStore
from featcache.identity import Json, digest_json
from featcache.store.reader import Store
from featcache.store.variety import Variety

_LOOKED_AT = 4096  # rows, whose vectors are read
_MAX_VALUES = 20  # of a column, before it is only counted


def describe(path: Path | str) -> Json:
    """Counts, arrays, columns, identity and environments of a store, and whether its first vectors differ.

    Raises:
        StoreNotFound, UnknownFormat, CorruptStore, UntrustedFile, AccessDenied: it cannot be opened.
    """
    with Store.open(path) as store:
        identical = store.identical_images
        return {
            "store": str(path),
            "bytes": Path(path).stat().st_size,
            "rows": len(store),
            "failed": len(store.failures),
            "failures": dict(Counter(code for code, _ in store.failures.values()).most_common()),
            "identical_images": sum(map(len, identical)),
            "sets_of_identical_images": len(identical),
            "features": {tap: _array(store, tap) for tap in store.taps},
            "columns": {name: _column(values) for name, values in store.columns.items()},
            "identity_sha256": store.identity_sha256,
            "content_sha256": digest_json(store.datasets_sha256),
            "identity": store.identity,
            "weights_source": store.weights_source,
            "environments": store.environments,
            "vectors": _vectors(store),
        }


def _vectors(store: Store) -> Json:
    """Whether the vectors of different images differ; None where they cannot be read."""
    try:
        return Variety.of(store, _LOOKED_AT).as_json()
    except CorruptStore:  # which `verify` tells, and training refuses
        return None


def _array(store: Store, tap: str) -> Json:
    shape = store.row_shape(tap)
    return {"dim": shape[0] if len(shape) == 1 else list(shape), "dtype": store.dtype(tap)}


def _column(values: list[str]) -> Json:
    """How often each value stands in a column, or how many there are; unknown ones are counted apart."""
    counts = Counter(value for value in values if value)
    unknown = {"unknown": len(values) - counts.total()} if counts.total() < len(values) else {}
    few = dict(sorted(counts.items())) if len(counts) <= _MAX_VALUES else {"different": len(counts)}
    return {**few, **unknown}
