"""Stores written by earlier releases are read by this one, to the last bit."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from featcache.store import Store, verify
from tests import golden

STORES = sorted((Path(__file__).parent / "data" / "stores").glob("*/*.h5"))


def test_there_are_golden_stores() -> None:
    assert len(STORES) >= 4


@pytest.mark.parametrize("path", STORES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_store_of_an_earlier_release_is_read(path: Path) -> None:
    held = json.loads(path.with_suffix(".json").read_text())
    verify(path)
    with Store.open(path) as store:
        for name in ("image_ids", "content_sha256", "columns", "identity", "environments"):
            assert getattr(store, name) == held[name], name
        assert {name: list(failure) for name, failure in store.failures.items()} == held["failures"]
        assert store.dtype() == held["dtype"]
        assert np.array_equal(store.features(), np.array(held["features"], dtype=np.float32))


def layout(path: Path) -> dict[str, object]:
    """Everything about a file but its values, whose sha256 is among the attributes."""
    found: dict[str, object] = {}

    def look(name: str, thing: h5py.Dataset | h5py.Group) -> None:
        if isinstance(thing, h5py.Dataset):
            found[name] = (thing.shape, thing.dtype.str, thing.chunks, thing.fletcher32, str(thing.fillvalue))

    with h5py.File(path) as file:
        file.visititems(look)
        return {**found, **{name: str(value) for name, value in file.attrs.items()}}


def test_the_golden_stores_of_this_version_are_what_it_writes(tmp_path: Path) -> None:
    """Where this fails, the format has changed, and its version and a new folder are due."""
    golden.main(tmp_path / "v1")
    for path in (path for path in STORES if path.parent.name == "v1"):
        assert layout(tmp_path / "v1" / path.name) == layout(path), path.name
