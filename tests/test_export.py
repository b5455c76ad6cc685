"""What goes out in any format comes back bit for bit, under the same names, and a fault leaves what was there."""

import errno
import io
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from featcache import durable
from featcache.errors import CorruptStore, IdentityMismatch, NoSpace, UsageError
from featcache.identity import digest_json
from featcache.specs import Where
from featcache.store import Part, PartFolder, Store, blocks, gather, publish, select, verify
from featcache.store import export as module
from featcache.store.export import SUFFIXES, export
from tests.conftest import make_store
from tests.test_cli import featcache

N, D, K, GRID = 300, 6, 2, (6, 2, 3)
HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "two\nlines.png",
    "=cmd|' /C calc'!A0",
    "caf\u00e9 \u4e2d.png",
    '"quoted",.png',
]
IDENTITY = {"made": "for a test", "backbone": {"tap": "pooled+grid"}, "views": {"n": K}}
Held = dict[str, Any]  # full name of an array -> its texts, or its values


def store_at(path: Path, dtype: str = "float32", not_utf8: bool = False) -> Path:
    """A store of two parts, with feature maps and views, awkward names, missing labels and a failure."""
    rng = np.random.default_rng(0)
    ids = [*HOSTILE, *(f"folder/{i:03d}.png" for i in range(N - len(HOSTILE)))]
    ids[9] = "\udcff\udcfe.png" if not_utf8 else ids[9]
    columns = {
        "label": [("normal", "sick", "")[i % 3] for i in range(N)],
        "split": [("train", "test")[i // 200] for i in range(N)],
        "=note, \u00fc": [f"@{i}" if i % 2 else "" for i in range(N)],
    }
    parts = PartFolder(path, {"identity": IDENTITY})
    with parts.locked():
        for start, stop in ((0, 256), (256, N)):
            n = stop - start
            features = {
                "pooled": rng.standard_normal((n, D)).astype(dtype),
                "grid": rng.standard_normal((n, *GRID)).astype(dtype),
                "views": rng.standard_normal((n, K, D)).astype(dtype),
                "view_parameters": rng.standard_normal((n, K, 5)).astype(np.float32),
            }
            origin, failed = np.zeros(n, dtype=np.uint8), {}
            if start:
                origin[-1], failed = 2, {n - 1: ("damaged", "it is cut short")}
            parts.write(Part(start, features, [f"{i:064x}" for i in range(start, stop)], origin, failed))
        publish(path, parts.heads(), ids, columns, IDENTITY, [{"device": "cpu"}], "random:0")
        parts.clear()
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    return {dtype: store_at(folder / f"{dtype}.h5", dtype) for dtype in ("float32", "float16")}


def held(store: Store, rows: np.ndarray | slice = slice(None)) -> Held:
    texts = {"image_id": store.image_ids, "content_sha256": store.content_sha256}
    texts |= {f"columns/{name}": values for name, values in store.columns.items()}
    vectors = {f"features/{tap}": store.features(tap)[rows].astype(store.dtype(tap)) for tap in store.taps}
    return {**{name: np.array(values, dtype=object)[rows].tolist() for name, values in texts.items()}, **vectors}


def read_npz(path: Path) -> tuple[Held, Any]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    about = json.loads(arrays.pop("featcache").item())
    return {name: a.tolist() if a.dtype.kind == "U" else a for name, a in arrays.items()}, about


def read_safetensors(path: Path) -> tuple[Held, Any]:
    with safetensors.safe_open(path, "numpy") as file:
        metadata = dict(file.metadata())
    about = json.loads(metadata.pop("featcache"))
    texts = {name: json.loads(values) for name, values in metadata.items()}
    return {**texts, **safetensors.numpy.load_file(path)}, about


def read_parquet(path: Path) -> tuple[Held, Any]:
    pq = pytest.importorskip("pyarrow.parquet")
    table, found = pq.read_table(path), {}
    for name in table.column_names:
        column, field = table.column(name).combine_chunks(), table.schema.field(name)
        if name.startswith("features/"):
            shape = json.loads(field.metadata[b"shape"])
            found[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape)
        else:
            values = [value or "" for value in column.to_pylist()]
            found[name] = [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in values]
    return found, json.loads(table.schema.metadata[b"featcache"])


def read_h5(path: Path) -> tuple[Held, Any]:
    with Store.open(path) as store:
        about = {"identity": store.identity, "environments": store.environments, "weights_source": store.weights_source}
        return held(store), {
            **about,
            "identity_sha256": store.identity_sha256,
            "datasets_sha256": store.datasets_sha256,
        }


READERS = {".npz": read_npz, ".parquet": read_parquet, ".safetensors": read_safetensors, ".h5": read_h5}


def same(found: Held, wanted: Held) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        if isinstance(values, list):
            assert found[name] == values, name
        else:
            assert found[name].dtype == values.dtype, name
            assert found[name].shape == values.shape, name
            assert found[name].tobytes() == values.tobytes(), name


# --- round trips ------------------------------------------------------------------------------------------------------


def test_every_format_has_a_round_trip_here() -> None:
    assert set(READERS) == set(SUFFIXES)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("where", ["", "split=test"])
def test_what_goes_out_comes_back_bit_for_bit(
    suffix: str, dtype: str, where: str, stores: dict[str, Path], tmp_path: Path
) -> None:
    with Store.open(stores[dtype]) as store:
        done = export(store, tmp_path / f"out{suffix}", where=[Where.parse(where)] if where else [])
        rows = np.arange(200, N - 1) if where else slice(None)
        found, about = READERS[suffix](done.path)
        same(found, held(store, rows))
        assert done.n_rows == len(found["image_id"])
        assert about["identity"] == store.identity
        assert about["identity_sha256"] == store.identity_sha256
        assert about["environments"] == store.environments
        assert about["weights_source"] == "random:0"
        if suffix != ".h5":
            assert about["of"] == {"rows": N - 1, "content_sha256": digest_json(store.datasets_sha256)}
            assert about["where"] == ([where] if where else [])
    recorded = {name: digest for name, digest in about["datasets_sha256"].items() if not name.startswith("failures/")}
    assert recorded == done.datasets_sha256
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_that_are_not_utf8_keep_their_bytes(suffix: str, tmp_path: Path) -> None:
    with Store.open(store_at(tmp_path / "s.h5", not_utf8=True)) as store:
        found, _ = READERS[suffix](export(store, tmp_path / f"out{suffix}").path)
        assert found["image_id"] == store.image_ids
        assert found["image_id"][9] == "\udcff\udcfe.png"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_export_gives_the_same_bytes(suffix: str, stores: dict[str, Path], tmp_path: Path) -> None:
    with Store.open(stores["float32"]) as store:
        first = export(store, tmp_path / f"a{suffix}", where=[Where("label", "")]).path.read_bytes()
        assert export(store, tmp_path / f"a{suffix}", where=[Where("label", "")]).path.read_bytes() == first


def test_all_rows_of_a_store_as_a_store_are_its_bytes(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.h5", np.ones((300, 4)), {"group": ["a", "b"] * 150, "label": ["", "c"] * 150})
    with Store.open(path) as store:
        export(store, tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


def test_a_smaller_store_is_whole_and_says_the_digests_of_every_other_format(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    where = [Where("label", "sick"), Where("split", "train")]
    with Store.open(stores["float16"]) as store:
        digests = [export(store, tmp_path / f"out{suffix}", where=where).datasets_sha256 for suffix in SUFFIXES]
    assert all(each == digests[0] for each in digests)
    assert verify(tmp_path / "out.h5").n_rows == 67
    with Store.open(tmp_path / "out.h5") as smaller:
        assert set(smaller.columns["split"]) == {"train"}
        assert smaller.failures == {}


# --- which rows, which arrays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        (["label=sick"], lambda label, split, name: label == "sick"),
        (["label!="], lambda label, split, name: label != ""),
        (["label="], lambda label, split, name: label == ""),
        (["label=sick", "label=normal"], lambda label, split, name: label != ""),
        (["label!=sick", "label!=normal"], lambda label, split, name: label == ""),
        (["label=sick", "split=test"], lambda label, split, name: label == "sick" and split == "test"),
        (["image_id=two\nlines.png"], lambda label, split, name: name == "two\nlines.png"),
        ([f"image_id={HOSTILE[2]}"], lambda label, split, name: name == HOSTILE[2]),
    ],
)
def test_conditions_choose_the_rows(asked: list[str], kept: Any, stores: dict[str, Path], tmp_path: Path) -> None:
    with Store.open(stores["float32"]) as store:
        rows = zip(store.columns["label"], store.columns["split"], store.image_ids, strict=True)
        wanted = [row[2] for row in rows if kept(*row)]
        done = export(store, tmp_path / "out.npz", where=[Where.parse(text) for text in asked])
    assert READERS[".npz"](done.path)[0]["image_id"] == wanted


@pytest.mark.parametrize("text", ["split", "", "=x", "!=x"])
def test_a_condition_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="COLUMN=VALUE"):
        Where.parse(text)


def test_conditions_that_leave_no_row_say_what_there_is(stores: dict[str, Path], tmp_path: Path) -> None:
    with Store.open(stores["float32"]) as store:
        with pytest.raises(UsageError, match=r"no row .* split=Train; split is 'test', 'train'\."):
            export(store, tmp_path / "out.npz", where=[Where("split", "Train")])
        with pytest.raises(UsageError, match="no column 'view'; it has image_id, "):
            export(store, tmp_path / "out.npz", where=[Where("view", "PA")])
    assert not list(tmp_path.iterdir())


def test_an_array_may_be_chosen_but_a_store_keeps_all(stores: dict[str, Path], tmp_path: Path) -> None:
    with Store.open(stores["float32"]) as store:
        done = export(store, tmp_path / "out.safetensors", taps=["pooled"])
        assert done.shapes == {"pooled": [D]}
        assert [name for name in READERS[".safetensors"](done.path)[0] if "features" in name] == ["features/pooled"]
        with pytest.raises(UsageError, match="no tap 'boundary', it has grid, pooled"):
            export(store, tmp_path / "out.npz", taps=["boundary"])
        with pytest.raises(UsageError, match="a store has all the arrays that its identity names"):
            export(store, tmp_path / "out.h5", taps=["pooled"])
        with pytest.raises(UsageError, match=r"one of \.npz, \.parquet, \.safetensors, \.h5"):
            export(store, tmp_path / "out.csv")


def test_rows_are_read_in_blocks_of_a_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "BLOCK_BYTES", 32 * 100)
    x = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    with Store.open(make_store(tmp_path / "s.h5", x, {})) as store:
        rows = np.array([0, 1, 5, 400, 401, 999])
        found = list(blocks(store, "pooled", rows))
        assert [len(block) for block in found] == [3, 2, 1]
        assert np.array_equal(np.concatenate(found), x[rows])
        assert [len(block) for block in blocks(store, "pooled", np.arange(1000))] == [100] * 10
        mixed = np.array([999, 3, 3, 0])
        assert np.array_equal(gather(store, "pooled", mixed), x[mixed])
        assert gather(store, "pooled", mixed[:0]).shape == (0, 8)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_memory_holds_blocks_and_not_the_store(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 MB of vectors a sixteenth at a time."""
    monkeypatch.setattr(select, "BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr(module, "_GROUP_BYTES", 1 << 18)
    x = np.random.default_rng(0).standard_normal((1000, 1024)).astype(np.float32)
    with Store.open(make_store(tmp_path / "s.h5", x, {})) as store:
        del x
        tracemalloc.start()
        try:
            export(store, tmp_path / f"out{suffix}")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 2.5e6


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("room", [0, 100, 20_000, -1])
def test_a_full_disk_leaves_the_file_that_was_there(
    suffix: str, room: int, stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(stores["float32"]) as store:
        path = tmp_path / f"out{suffix}"
        room += export(store, path).n_bytes if room < 0 else 0  # for all but the last byte
        before = export(store, path, where=[Where("split", "test")]).path.read_bytes()
        fill_with = durable.write_with

        def with_little_room(target: Path, fill: Any) -> None:
            fill_with(target, lambda raw: fill(_Full(raw, room)))

        monkeypatch.setattr(durable, "write_with", with_little_room)
        with pytest.raises(NoSpace, match="no space: writing"):
            export(store, path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


class _Full(io.RawIOBase):
    """A file on a disk that is soon full: like the operating system it first takes a part of what is written."""

    def __init__(self, raw: BinaryIO, room: int) -> None:
        self._raw, self._room = raw, room

    def write(self, data: Any) -> int:
        if not self._room and len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        n = self._raw.write(memoryview(data)[: self._room])
        self._room -= n
        return n

    def readinto(self, buffer: Any) -> int:
        return self._raw.readinto(buffer)  # type: ignore[attr-defined,no-any-return]

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def truncate(self, size: int | None = None) -> int:
        return self._raw.truncate(size)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def test_a_store_takes_the_place_of_one_that_holds_nothing_else(stores: dict[str, Path], tmp_path: Path) -> None:
    with Store.open(stores["float32"]) as store:
        path = export(store, tmp_path / "out.h5", where=[Where("split", "test")]).path
        export(store, path, where=[Where("split", "train")])
        assert verify(path).n_rows == 200
        with pytest.raises(UsageError, match="is the store itself"):
            export(store, stores["float32"])
        other = make_store(tmp_path / "other.h5", np.ones((3, 2)), {})
        with pytest.raises(IdentityMismatch, match=r"views\.n: absent here"):
            export(store, other)
        (tmp_path / "notes.h5").write_text("mine")
        with pytest.raises(UsageError, match="no earlier store"):
            export(store, tmp_path / "notes.h5")
    with Store.open(path) as smaller, pytest.raises(UsageError, match="holds 99 image"):
        export(smaller, stores["float32"])
    assert (tmp_path / "notes.h5").read_text() == "mine"


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".h5"])
@pytest.mark.parametrize("foreign", [b"mine", b"PAR1", b"PAR1" + b"\xff" * 40, b"\x10" + bytes(7) + b"{}"])
def test_what_is_no_export_is_not_replaced(
    stores: dict[str, Path], tmp_path: Path, suffix: str, foreign: bytes
) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_bytes(foreign)
    with Store.open(stores["float32"]) as store:
        with pytest.raises(UsageError, match="no earlier export"):
            export(store, path)
        assert path.read_bytes() == foreign
        path.write_bytes(b"")
        export(store, path)
        export(store, path)


def test_a_zip_of_somebody_is_not_replaced(stores: dict[str, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "out.npz", mine=np.ones(3))
    with Store.open(stores["float32"]) as store, pytest.raises(UsageError, match="no earlier export"):
        export(store, tmp_path / "out.npz")
    assert list(np.load(tmp_path / "out.npz")) == ["mine"]


def test_a_store_whose_columns_would_be_lost_is_not_replaced(tmp_path: Path) -> None:
    labelled = make_store(tmp_path / "labelled.h5", np.ones((3, 2)), {"label": ["a", "b", "a"]})
    before = labelled.read_bytes()
    plain = make_store(tmp_path / "plain.h5", np.ones((3, 2)), {})
    with Store.open(plain) as store, pytest.raises(UsageError, match="has a column 'label'"):
        export(store, labelled)
    assert labelled.read_bytes() == before


def test_a_value_that_was_changed_behind_the_checksums_does_not_go_out(stores: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "s.h5").write_bytes(stores["float32"].read_bytes())
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["features/pooled"][7, 3] += 1
    with Store.open(tmp_path / "s.h5") as store, pytest.raises(CorruptStore, match="features/pooled does not have"):
        export(store, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_more_names_than_a_header_of_safetensors_takes_are_refused(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_HEADER_BYTES", 1000)
    with Store.open(stores["float32"]) as store, pytest.raises(UsageError, match="Take fewer rows with `where`"):
        export(store, tmp_path / "out.safetensors")


def test_an_npz_holds_no_pickle_and_nothing_outside(stores: dict[str, Path], tmp_path: Path) -> None:
    with Store.open(stores["float32"]) as store:
        export(store, tmp_path / "out.npz")
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert all(name.endswith(".npy") and ".." not in name for name in archive.namelist())
        assert archive.testzip() is None


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote(stores: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("export", stores["float32"], "-o", "out.npz", "--where", "split=test", "--tap", "pooled")
    done = featcache(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out.npz: 99 rows of 6 pooled, 3 columns" in done.stdout
    done = featcache(*arguments, "--json", cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert (answer["rows"], answer["features"], answer["output"]) == (99, {"pooled": [D]}, "out.npz")
    assert answer["bytes"] == (tmp_path / "out.npz").stat().st_size
    assert "99 rows" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export-studies", "out.npz", "--by", "label"), "ends with .h5"),
        (("export-studies", "out.h5", "--by", "label", "--pool", "max"), "--pool must be one of views, mean, first"),
        (("export-studies", "out.h5", "--by", "label", "--on", "id"), "--on is a column of --reports"),
        (("export", "out.npz", "--where", "split"), "COLUMN=VALUE or COLUMN!=VALUE is expected"),
        (("export", "out.xlsx"), "the suffix says the format"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(
    arguments: tuple[str, ...], said: str, stores: dict[str, Path], tmp_path: Path
) -> None:
    command, output, *options = arguments
    done = featcache(command, stores["float32"], "-o", output, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
