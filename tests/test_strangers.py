"""A file that asks for more than being read is refused before a value of it is read."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from featcache.errors import UntrustedFile
from featcache.store import Store
from tests.conftest import make_store

NAME = "features/pooled"
N, D = 300, 4


def soft_link(file: h5py.File, path: Path) -> None:
    file.move(NAME, "elsewhere")
    file[NAME] = h5py.SoftLink("/elsewhere")


def soft_link_of_no_known_name(file: h5py.File, path: Path) -> None:
    file["notes"] = h5py.SoftLink("/image_id")


def external_link(file: h5py.File, path: Path) -> None:
    other = make_store(path.with_name("other.h5"), np.ones((N, D)), {})
    del file[NAME]
    file[NAME] = h5py.ExternalLink(str(other), NAME)


def external_storage(file: h5py.File, path: Path) -> None:
    secret = path.with_name("secret")
    secret.write_bytes(bytes(4 * N * D))
    del file[NAME]
    file.create_dataset(NAME, shape=(N, D), dtype="f4", external=[(str(secret), 0, 4 * N * D)])


def virtual(file: h5py.File, path: Path) -> None:
    other = make_store(path.with_name("other.h5"), np.ones((N, D)), {})
    layout = h5py.VirtualLayout((N, D), "f4")
    layout[:] = h5py.VirtualSource(other, NAME, (N, D))
    del file[NAME]
    file.create_virtual_dataset(NAME, layout)


def rows(file: h5py.File, path: Path) -> None:
    del file[NAME]
    file.create_dataset(NAME, shape=(10**12, D), dtype="f4", chunks=(64, D), fletcher32=True)


def chunk(file: h5py.File, path: Path) -> None:
    del file[NAME]
    file.create_dataset(
        NAME, shape=(N, D), dtype="f4", maxshape=(None, None), chunks=(1 << 20, 400), fletcher32=True
    )  # fmt: skip


def filters(file: h5py.File, path: Path) -> None:
    del file[NAME]
    file.create_dataset(NAME, data=np.ones((N, D), dtype="f4"), chunks=(64, D), compression="gzip")


def variable_text(file: h5py.File, path: Path) -> None:
    del file["columns/label"]
    file.create_dataset("columns/label", data=["sick"] * N, dtype=h5py.string_dtype(), chunks=(64,))


def variable_attribute(file: h5py.File, path: Path) -> None:
    file.attrs["identity"] = "{}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (soft_link, "'pooled' is a link to another place"),
        (soft_link_of_no_known_name, "'notes' is a link to another place"),
        (external_link, "'pooled' is a link to another place"),
        (external_storage, "lies in another file"),
        (virtual, "is made of other datasets"),
        (rows, "declares 16,000,000,0.* bytes of arrays and has"),
        (chunk, "has chunks of 1,677,721,600 bytes"),
        (filters, "is filtered in another way"),
        (variable_text, "is not a list of texts of fixed length"),
        (variable_attribute, "its attribute identity is not a text of fixed length"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_foreign_store_is_refused(tmp_path: Path, change: Callable[[h5py.File, Path], None], reason: str) -> None:
    path = make_store(tmp_path / "s.h5", np.ones((N, D)), {"label": ["sick"] * N})
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        change(file, path)
    with pytest.raises(UntrustedFile, match=reason):
        Store.open(path)
