"""The format: what goes in comes out, FORMAT.md says where, and damage is seen."""

import errno
import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import featcache
from featcache import durable
from featcache import store as store_module
from featcache.durable import outputs
from featcache.errors import (
    CorruptStore,
    IdentityMismatch,
    InputOutputError,
    NoSpace,
    StoreLocked,
    StoreNotFound,
    UnknownFormat,
    UsageError,
)
from featcache.store import EMBEDDED, FAILED, Counts, Part, PartFolder, Store, parts, publish, schema
from featcache.store.validation import reading
from featcache.tables.missing import without_missing
from tests.conftest import make_store, two_clouds

FORMAT = (Path(featcache.__file__).parent / "FORMAT.md").read_text("utf-8")


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 9)), elements=st.floats(-1e6, 1e6, width=32)),
    st.data(),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, features: np.ndarray, data: st.DataObject) -> None:
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
    labels = data.draw(st.lists(text, min_size=len(features), max_size=len(features)))
    path = make_store(tmp_path_factory.mktemp("store") / "s.h5", features, {"label": labels})
    with Store.open(path) as store:
        assert len(store) == len(features)
        assert np.array_equal(store.features(), features)
        assert store.columns == {"label": without_missing(labels)}
        assert store.identity == {"made": "for a test"}
        assert store.image_ids[0] == "image00000"


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    path = make_store(tmp_path / "s.h5", np.ones((1, 3)), {"label": [name]})
    assert os.fsencode(Store.open(path).columns["label"][0]) == b"caf\xe9.png"


def test_failed_rows_are_left_out_and_listed(tmp_path: Path) -> None:
    folder = PartFolder(tmp_path / "s.h5", {"identity": {}})
    features = np.array([[1.0], [np.nan], [3.0]], dtype=np.float32)
    origin = np.array([EMBEDDED, FAILED, EMBEDDED], dtype=np.uint8)
    with folder.locked():
        folder.write(Part(0, {"pooled": features}, ["a" * 64, "", "c" * 64], origin, {1: ("empty", "zero bytes")}))
        counts = publish(folder.store_path, folder.heads(), ["a", "b", "c"], {}, {})
        folder.clear()
    assert counts == Counts(embedded=2, reused=0, failed=1)
    assert counts.found == 3
    with Store.open(folder.store_path) as store:
        assert store.image_ids == ["a", "c"]
        assert store.features().tolist() == [[1.0], [3.0]]
        assert store.failures == {"b": ("empty", "zero bytes")}


# --- FORMAT.md --------------------------------------------------------------------------------------------------------


def test_the_file_holds_what_the_format_names_and_nothing_else(embedded: Path) -> None:
    tables = FORMAT.split("## How things are kept")[0]
    attributes = set(re.findall(r"`/` attribute `(\w+)`", tables))
    objects = {name.replace("TAP", "pooled") for name in re.findall(r"`/([\w/]+)`", tables)} - {""}
    with h5py.File(embedded) as file:
        assert set(file.attrs) == attributes
        held: set[str] = set()
        file.visititems(lambda name, thing: held.add(name) if isinstance(thing, h5py.Dataset) else None)
    columns = {name for name in held if name.startswith("columns/")}
    assert columns == {"columns/label", "columns/split", "columns/group"}
    assert held - columns == objects - {"columns/NAME"}


def test_datasets_are_kept_as_the_format_says(embedded: Path) -> None:
    checked = []

    def check(name: str, thing: object) -> None:
        if not isinstance(thing, h5py.Dataset) or not len(thing):
            return
        checked.append(name)
        assert thing.fletcher32, name
        assert thing.compression is None, name
        assert not h5py.check_vlen_dtype(thing.dtype), name
        assert 64 <= thing.chunks[0] <= 256 or thing.chunks[0] == len(thing), name
        if thing.dtype.kind == "f":
            assert np.isnan(thing.fillvalue), name

    with h5py.File(embedded) as file:
        file.visititems(check)
        assert tuple(file.attrs["format_version"]) == store_module.VERSION
    assert f"format {store_module.VERSION[0]}.{store_module.VERSION[1]}" in FORMAT
    assert len(checked) >= 5


def test_identity_fields_are_those_the_format_lists(embedded: Path) -> None:
    listed = FORMAT.split("## Identity")[1].split("## Reading")[0]
    fields = {name.split(".")[0] for name in re.findall(r"`([\w.*]+)`", listed.split("|---|---|")[1])}
    assert set(Store.open(embedded).identity) <= fields


def test_the_formats_example_reads_a_store(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = FORMAT.split("```python\n")[1].split("```")[0]
    shutil.copy(embedded, tmp_path / "chest.h5")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    with Store.open(embedded) as store:
        assert np.array_equal(names["vectors"], store.features())
        assert names["names"] == store.image_ids
        assert names["labels"] == store.columns["label"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    x, labels = two_clouds(200, 8)
    one, other = (make_store(tmp_path / f"{i}.h5", x, {"label": labels}) for i in (1, 2))
    assert one.read_bytes() == other.read_bytes()


# --- damage and strangers ---------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_the_vectors_is_seen(tmp_path: Path) -> None:
    x, labels = two_clouds(300, 16)
    path = make_store(tmp_path / "s.h5", x, {"label": labels})
    data = bytearray(path.read_bytes())
    at = data.find(x[150].astype(np.float32).tobytes())
    data[at + 3] ^= 16
    path.write_bytes(data)
    with pytest.raises(CorruptStore, match="features/pooled"):
        Store.open(path).features()


def test_rows_that_were_never_written_are_seen(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.h5", np.ones((300, 4)), {})
    with h5py.File(path, "r+") as file:
        del file["features/pooled"]
        schema.create_rows(file, "features/pooled", (300, 4), np.dtype(np.float32))
    with pytest.raises(CorruptStore, match="row 0"):
        Store.open(path).features()


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_a_store_cut_short_is_not_read(tmp_path: Path, keep: int) -> None:
    path = make_store(tmp_path / "s.h5", np.ones((300, 4)), {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((UnknownFormat, CorruptStore)):
        Store.open(path)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="featcache embed"):
        Store.open(tmp_path / "gone.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(UnknownFormat, match=r"text\.h5"):
        Store.open(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(UnknownFormat, match="not a featcache store"):
        Store.open(tmp_path / "other.h5")


def test_a_later_minor_version_is_read_and_another_major_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.h5", np.ones((3, 2)), {})
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = np.array([1, 9])
        file["something_new"] = [1]
    assert len(Store.open(path)) == 3
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = np.array([2, 0])
    with pytest.raises(UnknownFormat, match=r"format 2\.0; this featcache reads 1\.x"):
        Store.open(path)


def test_an_unknown_tap_is_refused_with_those_there_are(embedded: Path) -> None:
    with pytest.raises(UsageError, match="no tap 'grid', it has pooled"):
        Store.open(embedded).features(tap="grid")


# --- the folder of parts ----------------------------------------------------------------------------------------------


def part(start: int, m: int = 3) -> Part:
    rng = np.random.default_rng(start)
    features = {"pooled": rng.standard_normal((m, 4)).astype(np.float32)}
    return Part(start, features, ["d" * 64] * m, np.zeros(m, dtype=np.uint8), {})


def test_a_part_comes_back_as_it_went(tmp_path: Path) -> None:
    folder = PartFolder(tmp_path / "s.h5", {"identity": {}})
    with folder.locked():
        folder.write(part(6))
        (found,) = folder.finished().values()
        back = store_module.read_part(found)
    assert back.start == 6
    assert np.array_equal(back.features["pooled"], part(6).features["pooled"])


def test_a_damaged_part_does_not_count_as_finished(tmp_path: Path) -> None:
    folder = PartFolder(tmp_path / "s.h5", {"identity": {}})
    with folder.locked():
        folder.write(part(0))
        folder.write(part(3))
        broken = folder.finished()[3]
        broken.write_bytes(broken.read_bytes()[:-1])
    with folder.locked():
        assert list(folder.finished()) == [0]


def test_parts_of_another_plan_are_dropped_and_of_another_identity_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    for plan, kept in (
        ({"identity": {"a": 1}, "n": 3}, 0),
        ({"identity": {"a": 1}, "n": 3}, 1),
        ({"identity": {"a": 1}, "n": 4}, 0),
    ):
        folder = PartFolder(path, plan)
        with folder.locked():
            assert len(folder.finished()) == kept
            folder.clear()
            folder.write(part(0))
    with (
        pytest.raises(IdentityMismatch, match="a: 1 here, 2 asked"),
        PartFolder(path, {"identity": {"a": 2}, "n": 4}).locked(),
    ):
        pass
    assert len(list(folder.path.glob("part-*"))) == 1


def test_an_empty_folder_of_parts_does_not_stay(tmp_path: Path) -> None:
    folder = PartFolder(tmp_path / "s.h5", {"identity": {}})
    with folder.locked():
        assert folder.path.is_dir()
    assert not folder.path.exists()


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    import subprocess
    import sys

    folder = PartFolder(tmp_path / "s.h5", {"identity": {}})
    code = (
        "import sys; from pathlib import Path\n"
        "from featcache.store import PartFolder; from featcache.errors import StoreLocked\n"
        "try:\n"
        "    with PartFolder(Path(sys.argv[1]), {'identity': {}}).locked(): sys.exit(0)\n"
        "except StoreLocked as error: print(error); sys.exit(error.exit_code)\n"
    )
    command = [sys.executable, "-c", code, str(folder.store_path)]
    with folder.locked():
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == StoreLocked.exit_code
    assert f"pid {os.getpid()}" in second.stdout
    assert subprocess.run(command, check=False).returncode == 0


@pytest.mark.parametrize("fails_after", [0, 1, 4, 9])
def test_a_full_disk_while_publishing_leaves_the_old_store(
    tmp_path: Path, fails_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels = two_clouds(600, 64)
    path = make_store(tmp_path / "s.h5", x, {"label": labels})
    before, calls = path.read_bytes(), []
    real = durable.write_all

    def full(file: object, data: bytes) -> None:
        calls.append(len(data))
        if len(calls) > fails_after:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, data)

    folder = PartFolder(path, {"identity": {"made": "for a test"}})
    with folder.locked():
        folder.write(part(0))
        monkeypatch.setattr(durable, "write_all", full)
        with pytest.raises(NoSpace, match="no space: writing"):
            publish(path, folder.heads(), ["a", "b", "c"], {}, {})
        monkeypatch.undo()
        folder.clear()
    assert calls
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["s.h5"]


def test_a_device_that_cannot_read_is_not_called_damage(tmp_path: Path) -> None:
    """HDF5 reads by itself; what the operating system told it stands in the middle of its message."""
    path = make_store(tmp_path / "s.h5", np.ones((3, 2)), {})
    said = "file read failed: filename = 's.h5', file descriptor = 3, errno = 5, error message = 'Input/output error'"
    with pytest.raises(InputOutputError, match=r"reading .*s\.h5: input/output error"), reading(path, "features"):
        raise RuntimeError(f"Can't synchronously read data ({said}, buf = 0x55cb94bed3b0)")
    with pytest.raises(CorruptStore), reading(path, "features"):
        raise OSError("Can't synchronously read data (data error detected by Fletcher32 checksum)")


@pytest.mark.parametrize("name", ["image_id", "failures/code", "failures/image_id", "failures/reason"])
def test_damage_in_what_is_read_at_opening_is_named_too(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s.h5"
    folder = PartFolder(path, {"identity": {}})
    origin = np.array([EMBEDDED, FAILED], dtype=np.uint8)
    with folder.locked():
        features = np.array([[1.0], [np.nan]], dtype=np.float32)
        folder.write(Part(0, {"pooled": features}, ["a" * 64, ""], origin, {1: ("empty", "zero bytes")}))
        publish(path, folder.heads(), ["a", "b"], {}, {})
        folder.clear()
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        data[file[name].id.get_chunk_info(0).byte_offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptStore, match=f"{name}, rows 0 to 0, cannot be read"):
        store_module.verify(path)


def test_verify_sees_a_value_whose_checksum_is_right(tmp_path: Path) -> None:
    """HDF5 itself wrote it: only the recorded sha256 knows what was published."""
    path = make_store(tmp_path / "s.h5", np.ones((300, 4)), {})
    with h5py.File(path, "r+") as file:
        file["features/pooled"][7, 2] = 1.5
    assert Store.open(path).features()[7, 2] == 1.5
    with pytest.raises(
        CorruptStore, match="features/pooled, rows 0 to 299: its values do not have the recorded sha256"
    ):
        store_module.verify(path)


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        ('{"identity": {}}', CorruptStore),
        ('{"identity": {}, "n_rows": 1e999}', CorruptStore),
        ('{"identity": {}, "n_rows": null}', CorruptStore),
        ("[]", CorruptStore),
        ("", CorruptStore),
    ],
)
def test_status_of_a_pass_whose_plan_is_none_is_an_error_of_ours(plan: str, error: type, tmp_path: Path) -> None:
    parts.folder_of(tmp_path / "s.h5").mkdir()
    (parts.folder_of(tmp_path / "s.h5") / "plan.json").write_text(plan)
    with pytest.raises(error, match="plan"):
        store_module.status(tmp_path / "s.h5")


def test_what_a_training_keeps_is_no_pass_and_is_not_taken_away(tmp_path: Path) -> None:
    """Both keep what is unfinished beside what it becomes."""
    folder = parts.folder_of(tmp_path / "s.h5")
    folder.mkdir()
    (folder / "plan.json").write_text('{"command": "train"}')
    (folder / "fold-0-000001-0123456789abcdef.safetensors").write_bytes(b"an epoch")
    with pytest.raises(StoreNotFound, match="is being trained"):
        store_module.status(tmp_path / "s.h5")
    with (
        pytest.raises(UsageError, match="epochs of an unfinished training"),
        PartFolder(tmp_path / "s.h5", {"identity": {}}).locked(),
    ):
        pass
    assert (folder / "plan.json").read_text() == '{"command": "train"}'
    assert len(list(folder.glob("fold-*"))) == 1


@pytest.mark.parametrize("path", [".", "", "/"])
def test_a_folder_has_no_status(path: str) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        store_module.status(path)


def test_a_part_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often its failures, its contents and its head are asked for; not counting its vectors."""
    read: list[Path] = []
    real = parts.read_part
    monkeypatch.setattr(parts, "read_part", lambda path, **options: read.append(path) or real(path, **options))
    folder = PartFolder(tmp_path / "s.h5", {"identity": {}})
    with folder.locked():
        path = folder.write(part(0))
        for _ in range(2):
            assert folder.contents() == real(path).content_sha256
            assert folder.failures() == {}
            assert list(folder.heads()) == [path]
        folder.clear()
    assert read == [path]


def test_a_read_that_fails_only_once_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __getitem__(self, rows: slice) -> None:
            raise OSError("not now")

    path = make_store(tmp_path / "s.h5", np.ones((3, 2)), {})
    with Store.open(path) as store:
        monkeypatch.setattr(Store, "_tap", lambda self, tap: Failing())
        with pytest.raises(CorruptStore, match=r"features/pooled cannot be read .*not now"):
            store.features()
        monkeypatch.undo()
        assert store.features().shape == (3, 2)


def test_a_lock_on_a_file_that_was_removed_is_not_held(tmp_path: Path) -> None:
    """Its last writer removes it when it is done; whoever opened it before locks a file that nobody else finds."""
    path = tmp_path / "lock"
    with open(path, "a+b", buffering=0) as lock:
        path.unlink()
        assert not outputs._try(lock, path)
        path.write_bytes(b"")
        assert not outputs._try(lock, path)
    with open(path, "a+b", buffering=0) as lock:
        assert outputs._try(lock, path)
