"""What asks for more than being read is refused before a value of it is read; a damaged store says where."""

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from featcache.errors import CorruptStore, FeatcacheError, InputsChanged, UntrustedFile, UsageError
from featcache.store import Store, describe, verify
from tests.conftest import make_store, two_clouds


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    x, labels = two_clouds(600, 16)
    return make_store(tmp_path / "s.h5", x, {"label": labels})


def replaced(file: h5py.File, name: str, **options: object) -> None:
    """An array made anew in another way."""
    values = file[name][:]
    del file[name]
    if "data" not in options and "shape" not in options:
        options["data"] = values
    file.create_dataset(name, **options)


# --- strangers --------------------------------------------------------------------------------------------------------


def external_storage(file: h5py.File, secret: Path) -> None:
    replaced(file, "features/pooled", shape=(600, 16), dtype="f4", external=[(str(secret), 0, 600 * 16 * 4)])


def external_link(file: h5py.File, secret: Path) -> None:
    del file["features/pooled"]
    file["features/pooled"] = h5py.ExternalLink(str(secret), "/x")


def external_link_in_place_of_a_group(file: h5py.File, secret: Path) -> None:
    del file["features"]
    file["features"] = h5py.ExternalLink(str(secret), "/")


def soft_link(file: h5py.File, secret: Path) -> None:
    del file["image_id"]
    file["image_id"] = h5py.SoftLink("/columns/label")


def virtual_sources(file: h5py.File, secret: Path) -> None:
    del file["features/pooled"]
    layout = h5py.VirtualLayout(shape=(600, 16), dtype="f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", shape=(600, 16))
    file.create_virtual_dataset("features/pooled", layout)


def a_million_million_rows(file: h5py.File, secret: Path) -> None:
    replaced(file, "features/pooled", shape=(10**12, 16), dtype="f4", chunks=(256, 16), fletcher32=True)


def a_million_million_names(file: h5py.File, secret: Path) -> None:
    replaced(file, "image_id", shape=(10**12,), dtype="S20", chunks=(256,), fletcher32=True)


def an_enormous_chunk(file: h5py.File, secret: Path) -> None:
    chunks = (1_500_000_000 // 64, 16)
    replaced(file, "features/pooled", shape=chunks, dtype="f4", chunks=chunks, fletcher32=True)


def compression(file: h5py.File, secret: Path) -> None:
    replaced(file, "features/pooled", chunks=(64, 16), compression="gzip", fletcher32=True)


def variable_length_text(file: h5py.File, secret: Path) -> None:
    replaced(file, "image_id", data=[f"{i}" for i in range(600)], dtype=h5py.string_dtype())


def objects_as_numbers(file: h5py.File, secret: Path) -> None:
    replaced(file, "features/pooled", shape=(600, 16), dtype=h5py.ref_dtype, chunks=(64, 16), fletcher32=True)


def no_checksums(file: h5py.File, secret: Path) -> None:
    replaced(file, "features/pooled")


def an_identity_of_variable_length(file: h5py.File, secret: Path) -> None:
    identity = file.attrs["identity"]
    del file.attrs["identity"]
    file.attrs["identity"] = identity.decode()


def an_origin_of_variable_length(file: h5py.File, secret: Path) -> None:
    file.attrs["weights_source"] = "hub"


def a_link_in_columns(file: h5py.File, secret: Path) -> None:
    file["columns/secret"] = h5py.ExternalLink(str(secret), "/x")


def a_group_in_place_of_an_array(file: h5py.File, secret: Path) -> None:
    del file["features/pooled"]
    file.create_group("features/pooled")


STRANGERS = [
    external_storage, external_link, external_link_in_place_of_a_group, soft_link, virtual_sources,
    a_million_million_rows, a_million_million_names, an_enormous_chunk, compression, variable_length_text,
    objects_as_numbers, no_checksums, an_identity_of_variable_length, a_link_in_columns,
    an_origin_of_variable_length,
]  # fmt: skip


@pytest.mark.parametrize("craft", STRANGERS, ids=lambda craft: craft.__name__)
def test_a_file_that_asks_for_more_than_reading_is_refused_unread(
    craft: Callable[[h5py.File, Path], None], store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(600 * 16 * 4))
    with h5py.File(store_path, "r+") as file:
        craft(file, secret)

    def read(*_: object) -> None:
        raise AssertionError("a value was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", read)
    for use in (Store.open, verify, describe):
        with pytest.raises(UntrustedFile) as caught:
            use(store_path)
        assert caught.value.exit_code == 22


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("datasets_sha256", b"null"),
        ("datasets_sha256", b"[1]"),
        ("environment", b"null"),
        ("identity", b"[]"),
        ("identity", b'{"x":NaN}'),
        ("identity", b'{"x":-Infinity}'),
        ("identity", b"[" * 100_000),
    ],
)
def test_an_attribute_that_is_not_its_json_is_damage(name: str, value: bytes, store_path: Path) -> None:
    with h5py.File(store_path, "r+", libver=("v110", "v110")) as file:
        file.attrs.create(name, np.bytes_(value), dtype=h5py.string_dtype("utf-8", len(value)))
    for use in (Store.open, verify, describe):
        with pytest.raises(CorruptStore):
            use(store_path)


@pytest.mark.parametrize("missing", ["image_id", "content_sha256", "features", "features/pooled", "failures/code"])
def test_a_store_without_one_of_its_arrays_is_damaged(missing: str, store_path: Path) -> None:
    with h5py.File(store_path, "r+") as file:
        del file[missing]
    with pytest.raises(CorruptStore, match=missing):
        Store.open(store_path)


def test_a_group_where_an_array_should_be_is_damage_or_distrusted(store_path: Path, tmp_path: Path) -> None:
    with h5py.File(store_path, "r+") as file:
        a_group_in_place_of_an_array(file, tmp_path)
    with pytest.raises((CorruptStore, UntrustedFile)):
        Store.open(store_path)


@pytest.mark.parametrize(
    ("said", "taken"), [("hub", "hub"), ("file", "file"), ("random:7", "random:7"), ("/home/me/net.pth", None)]
)
def test_only_a_known_word_is_taken_for_the_origin_of_the_weights(
    said: str, taken: str | None, store_path: Path
) -> None:
    """A store need not say it, and no path gets any further."""
    assert Store.open(store_path).weights_source is None
    with h5py.File(store_path, "r+", libver=("v110", "v110")) as file:
        file.attrs.create("weights_source", np.bytes_(said.encode()), dtype=h5py.string_dtype("utf-8", len(said)))
    assert Store.open(store_path).weights_source == describe(store_path)["weights_source"] == taken


def test_what_a_later_minor_version_adds_is_ignored_but_not_if_it_leads_elsewhere(store_path: Path) -> None:
    with h5py.File(store_path, "r+") as file:
        file["later/thing"] = [1, 2]
    assert len(Store.open(store_path)) == 600
    with h5py.File(store_path, "r+") as file:
        file["elsewhere"] = h5py.SoftLink("/later")
    with pytest.raises(UntrustedFile, match="elsewhere"):
        Store.open(store_path)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.h5")
    with pytest.raises(UsageError, match="is a pipe; a store is the"):
        Store.open(tmp_path / "s.h5")


# --- verify -----------------------------------------------------------------------------------------------------------


def test_a_whole_store_is_found_whole(store_path: Path) -> None:
    found = verify(store_path)
    assert found.n_rows == 600
    assert set(found.datasets) == {
        "image_id", "content_sha256", "columns/label", "features/pooled",
        "failures/image_id", "failures/code", "failures/reason",
    }  # fmt: skip
    assert "features/pooled" not in verify(store_path, full=False).datasets


@pytest.mark.parametrize("name", ["features/pooled", "image_id", "content_sha256", "columns/label"])
def test_a_changed_value_is_found_and_its_rows_are_named(name: str, store_path: Path) -> None:
    data = bytearray(store_path.read_bytes())
    with h5py.File(store_path) as file:
        dataset = file[name]
        info = dataset.id.get_chunk_info(1)
        first = info.chunk_offset[0]
        last = min(first + dataset.chunks[0], 600) - 1
    data[info.byte_offset + 5] ^= 1
    store_path.write_bytes(data)
    with pytest.raises(CorruptStore, match=rf"{name}, rows {first} to {last}"):
        verify(store_path)


def test_a_value_changed_behind_the_checksums_is_found_by_its_sha256(store_path: Path) -> None:
    """Somebody edits a store with h5py, which writes new checksums."""
    with h5py.File(store_path, "r+") as file:
        file["features/pooled"][7, 3] += 1
        file["columns/label"][2] = b"sick" if file["columns/label"][2] != b"sick" else b"normal"
    with pytest.raises(CorruptStore) as caught:
        verify(store_path)
    for name in ("features/pooled", "columns/label"):
        assert f"{name}, rows 0 to 599: its values do not have the recorded sha256" in str(caught.value)


def test_an_edited_identity_is_found(store_path: Path) -> None:
    with h5py.File(store_path, "r+") as file:
        identity = b'{"made":"by somebody else"}'
        file.attrs.create("identity", np.bytes_(identity), dtype=h5py.string_dtype("utf-8", len(identity)))
    with pytest.raises(CorruptStore, match="identity: it does not have the sha256"):
        verify(store_path)


def test_an_added_or_removed_column_is_found(store_path: Path) -> None:
    with h5py.File(store_path, "r+") as file:
        file.move("columns/label", "columns/other")
    with pytest.raises(CorruptStore) as caught:
        verify(store_path)
    assert "columns/label: is recorded and not there" in str(caught.value)
    assert "columns/other: has no recorded sha256" in str(caught.value)


@pytest.mark.parametrize("at", range(16))
def test_a_damaged_beginning_is_damage_and_not_another_format(at: int, store_path: Path) -> None:
    data = bytearray(store_path.read_bytes())
    data[at] ^= 0x55
    store_path.write_bytes(data)
    with pytest.raises(CorruptStore):
        verify(store_path)


# --- readers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_store_works_in_other_processes(method: str, store_path: Path) -> None:
    with Store.open(store_path) as store:
        here = store.features()
        with multiprocessing.get_context(method).Pool(2) as pool:
            there = pool.map(Store.features, [store] * 4)  # no function of this file, which would import torch
        assert len(there) == 4
        assert all(np.array_equal(found, here) for found in (*there, store.features()))


def test_a_store_reads_while_another_writes_and_notices_that_it_was_replaced(store_path: Path) -> None:
    store = Store.open(store_path)
    before = store.features()
    make_store(store_path, np.zeros((3, 2)), {})
    assert np.array_equal(store.features(), before)
    with pytest.raises(InputsChanged, match="was replaced since it was opened") as caught:
        pickle.loads(pickle.dumps(store)).features()
    assert caught.value.exit_code == 16


def test_a_closed_store_opens_again_when_it_is_asked(store_path: Path) -> None:
    store = Store.open(store_path)
    store.close()
    assert store.features().shape == (600, 16)


def test_a_store_is_described_without_reading_a_vector(store_path: Path) -> None:
    about = describe(store_path)
    assert about["rows"] == 600
    assert about["features"] == {"pooled": {"dim": 16, "dtype": "float32"}}
    assert about["columns"]["label"] == {"normal": 300, "sick": 300}
    assert about["identity"] == {"made": "for a test"}


def test_errors_of_reading_are_errors_of_ours() -> None:
    assert all(issubclass(kind, FeatcacheError) for kind in (CorruptStore, UntrustedFile, InputsChanged))
