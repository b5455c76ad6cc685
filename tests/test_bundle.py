"""A Run in one file says what the Run says, and a file that is no such thing does nothing but be refused."""

import io
import json
import random
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from featcache import durable
from featcache.errors import CorruptStore, FeatcacheError, IdentityMismatch, UnknownFormat, UntrustedFile, UsageError
from featcache.identity import digest_bytes
from featcache.prediction import bundle as bundles
from featcache.prediction.bundle import bundle, unpack
from featcache.prediction.predictor import load_run
from featcache.runs import Run
from featcache.specs import HeadSpec, TargetSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import moved_away, save_others
from tests.test_cli import Done, featcache


@pytest.fixture(scope="module")
def weights(phase_one: Path) -> str:
    return str(phase_one / "net.safetensors")


@pytest.fixture(scope="module")
def given(phase_one: Path, weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The linear Run with its backbone. Never to be changed."""
    path = tmp_path_factory.mktemp("given") / "model.fcb.zip"
    bundle(Run.open(phase_one / "linear"), path, weights=weights)
    return path


def some(folder: Path) -> list[np.ndarray]:
    """A few images, decoded."""
    return [np.asarray(Image.open(path)) for path in sorted((folder / "images" / "test").rglob("*.png"))[:3]]


def check_refused(done: Done, code: int, message: str) -> None:
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# --- what it is -------------------------------------------------------------------------------------------------------


def test_the_format_keeps_its_name(phase_one: Path, tmp_path: Path) -> None:
    """Whatever module writes it: bundles of before have to open."""
    bundle(Run.open(phase_one / "linear"), tmp_path / "model.zip", with_backbone=False)
    with zipfile.ZipFile(tmp_path / "model.zip") as members:
        assert json.loads(members.read("bundle.json"))["format"] == "featcache.bundle"


@pytest.mark.parametrize("foreign", [b"mine", b"PK\x03\x04mine"])
def test_a_file_of_somebody_is_not_replaced(phase_one: Path, tmp_path: Path, foreign: bytes) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(foreign)
    with pytest.raises(UsageError, match="no earlier bundle"):
        bundle(Run.open(phase_one / "linear"), path, with_backbone=False)
    assert path.read_bytes() == foreign
    with zipfile.ZipFile(path, "w") as members:
        members.writestr("thesis.txt", "mine")
    with pytest.raises(UsageError, match="no earlier bundle"):
        bundle(Run.open(phase_one / "linear"), path, with_backbone=False)
    path.write_bytes(b"")
    for _ in range(2):
        bundle(Run.open(phase_one / "linear"), path, with_backbone=False)


def test_a_bundle_says_what_its_run_says_and_needs_nothing_else(phase_one: Path, weights: str, given: Path) -> None:
    with load_run(phase_one / "linear", weights=weights, device="cpu") as predictor:
        expected = predictor.predict(some(phase_one))
    with load_run(given, device="cpu") as predictor:
        found = predictor.predict(some(phase_one))
        unpacked = predictor.run.path
        assert unpacked.exists()
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    assert found.table()[0] == expected.table()[0]
    assert not unpacked.exists(), "what it was unpacked to is gone at the end"


def test_what_a_bundle_was_unpacked_to_goes_with_its_last_user(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    predictor = load_run(given)
    assert len(list(tmp_path.iterdir())) == 1
    del predictor
    assert not list(tmp_path.iterdir())
    (tmp_path / "broken.fcb.zip").write_bytes(given.read_bytes()[:-30])
    with pytest.raises(CorruptStore):
        load_run(tmp_path / "broken.fcb.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.fcb.zip"]


def test_the_same_run_is_the_same_bytes(phase_one: Path, weights: str, given: Path, tmp_path: Path) -> None:
    shutil.copytree(phase_one / "linear", tmp_path / "linear")
    for path in (tmp_path / "linear").iterdir():
        path.touch()
    bundle(Run.open(tmp_path / "linear"), tmp_path / "again.fcb.zip", weights=weights)
    assert (tmp_path / "again.fcb.zip").read_bytes() == given.read_bytes()
    with load_run(given) as predictor:  # of a bundle
        bundle(predictor.run, tmp_path / "third.fcb.zip")
    assert (tmp_path / "third.fcb.zip").read_bytes() == given.read_bytes()


def test_a_bundle_names_no_image_and_says_what_it_is(phase_one: Path, given: Path) -> None:
    data = given.read_bytes()
    for name in Run.open(phase_one / "linear").images().image_ids:
        assert Path(name).name.encode() not in data
    with zipfile.ZipFile(given) as archive:
        readme = archive.read("README.txt").decode()
        index = json.loads(archive.read("bundle.json"))
        for name, about in index["members"].items():
            assert about == {"bytes": len(archive.read(name)), "sha256": digest_bytes(archive.read(name))}
        assert list(archive.namelist()) == [
            "README.txt", "bundle.json", "run.json", "head.safetensors", "backbone.safetensors",
        ]  # fmt: skip
    for text in ("no medical device", "normal, sick", "featcache predict MODEL.fcb.zip", "load_run"):
        assert text in readme
    record = Run.open(phase_one / "linear").record
    test = record["metrics"]["test"]
    low, high = test["intervals"]["recall"]
    assert f"On 16 test images:\n    AUROC {test['auroc']:.3f} [" in readme
    assert f"\n    sensitivity {test['recall']:.3f} [{low:.3f}, {high:.3f}], specificity " in readme
    assert "where p is 0.5 or more\n" in readme
    assert index["classes"] == record["classes"]
    assert index["identity"] == record["store"]["identity"]
    assert index["transform"]["input_size"] == [32, 32]


def test_without_its_backbone_a_bundle_needs_the_weights_as_the_run_does(
    phase_one: Path, weights: str, tmp_path: Path
) -> None:
    done = bundle(Run.open(phase_one / "linear"), tmp_path / "m.fcb.zip", with_backbone=False)
    assert not done.has_backbone
    assert done.members["head.safetensors"] > 0
    away = moved_away(phase_one / "linear", tmp_path)
    bundle(Run.open(away), tmp_path / "away.fcb.zip", with_backbone=False)
    with pytest.raises(UsageError, match=r"away\.fcb\.zip came from a file .* Name it with the parameter weights"):
        load_run(tmp_path / "away.fcb.zip").predict(some(phase_one))
    found = load_run(tmp_path / "m.fcb.zip", weights=weights, device="cpu").predict(some(phase_one))
    assert np.isfinite(found.probabilities).all()
    with Store.open(phase_one / "tail.h5") as store:  # for which no network is needed
        assert len(load_run(tmp_path / "m.fcb.zip").predict(store)) == 48


def test_weights_that_are_not_the_runs_are_not_given_away(phase_one: Path, weights: str, tmp_path: Path) -> None:
    save_others(weights, tmp_path / "other.safetensors")
    run = Run.open(phase_one / "linear")
    with pytest.raises(IdentityMismatch, match=r"weights_sha256"):
        bundle(run, tmp_path / "m.fcb.zip", weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(UsageError, match="came from a file"):
        bundle(Run.open(moved_away(phase_one / "linear", tmp_path)), tmp_path / "m.fcb.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["away", "other.safetensors"]


def test_neighbours_are_given_away_with_a_word_of_warning(phase_one: Path, tmp_path: Path) -> None:
    with Store.open(phase_one / "tail.h5") as store:
        run = train_head(store, HeadSpec.of("knn", n_neighbors=3), tmp_path / "run")
        done = bundle(run, tmp_path / "m.fcb.zip", with_backbone=False)
        found, own = (load_run(path).predict(store) for path in (done.path, run.path))
    assert np.array_equal(found.probabilities, own.probabilities)
    n = run.metrics("train")["n"]
    assert done.notes == (f"a knn head is the vectors of its {n} training images and their labels: they are inside",)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_bundle_and_predict_answer_scripts(phase_one: Path, weights: str, tmp_path: Path) -> None:
    done = featcache("bundle", phase_one / "mlp", "-o", "m.fcb.zip", "--weights", weights, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer) == ["bundle", "bytes", "members", "weights_sha256", "has_backbone", "notes"]
    assert answer["bytes"] == (tmp_path / "m.fcb.zip").stat().st_size
    assert "their licence decides whether they may be shared" in answer["notes"][0]
    done = featcache("predict", "m.fcb.zip", phase_one / "images" / "test", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "found 16 = predicted 16 + failed 0" in done.stdout
    done = featcache("bundle", phase_one / "mlp", "-o", "bare.fcb.zip", "--without-backbone", cwd=tmp_path)
    assert "the backbone is not inside" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("linear", "-o", "m.fcb"), 2, "-o m.fcb: give the name of a file that ends with .fcb.zip"),
        (("linear", "-o", "m.fcb.zip", "--weights", "no.pth"), 2, "--weights no.pth: no such file"),
        (("nowhere", "-o", "m.fcb.zip"), 10, "there is no finished Run at nowhere"),
        (("linear", "-o", "/proc/none/m.fcb.zip", "--without-backbone"), 74, "writing /proc/none/m.fcb.zip: no such"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    phase_one: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "linear").symlink_to(phase_one / "linear")
    check_refused(featcache("bundle", *arguments, cwd=tmp_path), code, message)
    assert [path.name for path in tmp_path.iterdir()] == ["linear"]


# --- what comes from elsewhere ----------------------------------------------------------------------------------------


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def signed(members: dict[str, bytes]) -> dict[str, bytes]:
    """With an index that names what is inside."""
    index = json.loads(members["bundle.json"])
    rest = {name: data for name, data in members.items() if name != "bundle.json"}
    index["members"] = {name: {"bytes": len(data), "sha256": digest_bytes(data)} for name, data in rest.items()}
    return {**members, "bundle.json": json.dumps(index).encode()}


def written(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def indexed(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    def changed(members: dict[str, bytes]) -> dict[str, bytes]:
        index = json.loads(members["bundle.json"])
        return {**members, "bundle.json": json.dumps(change(index)).encode()}

    return changed


def recorded(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda members: signed({**members, "run.json": json.dumps(change(json.loads(members["run.json"]))).encode()})


def headed(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """Other tensors, of which the head says the same, and the record has the digest."""

    def changed(members: dict[str, bytes]) -> dict[str, bytes]:
        data, record = members["head.safetensors"], json.loads(members["run.json"])
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        data = safetensors.numpy.save(change(safetensors.numpy.load(data)), about)
        record["files_sha256"]["head.safetensors"] = digest_bytes(data)
        return signed({**members, "head.safetensors": data, "run.json": json.dumps(record).encode()})

    return changed


STRANGE: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], type[FeatcacheError]]] = {
    "slip": (lambda m: signed({**m, "../slipped": b"x"}), UntrustedFile),
    "absolute": (lambda m: signed({**m, "/tmp/slipped": b"x"}), UntrustedFile),
    "folder": (lambda m: signed({**m, "head.safetensors/": b""}), UntrustedFile),
    "pickle": (lambda m: signed({**m, "head.pkl": b"cos\nsystem\n."}), UntrustedFile),
    "no head": (lambda m: signed({k: v for k, v in m.items() if k != "head.safetensors"}), CorruptStore),
    "no index": (lambda m: {k: v for k, v in m.items() if k != "bundle.json"}, CorruptStore),
    "other head": (lambda m: {**m, "head.safetensors": m["head.safetensors"][:-1] + b"\xff"}, CorruptStore),
    "a pickle as head": (lambda m: signed({**m, "head.safetensors": b"cos\nsystem\n."}), CorruptStore),
    "a list as record": (lambda m: signed({**m, "run.json": b"[]"}), CorruptStore),
    "deep record": (lambda m: signed({**m, "run.json": b"[" * 100_000}), CorruptStore),
    "deep index": (lambda m: {**m, "bundle.json": b"[" * 100_000}, CorruptStore),
    "other order": (recorded(lambda r: {**r, "classes": r["classes"][::-1]}), CorruptStore),
    "three outputs": (headed(lambda t: {"weight": t["weight"][[0, 0, 1]], "bias": t["bias"][[0, 0, 1]]}), CorruptStore),
    "one class twice": (recorded(lambda r: {**r, "classes": ["sick", "sick"], "positive": "sick"}), CorruptStore),
    "no such text": (recorded(lambda r: {**r, "classes": ["\ud800", "sick"], "positive": "sick"}), CorruptStore),
    "no members": (indexed(lambda i: {**i, "members": [1]}), CorruptStore),
    "fewer members": (indexed(lambda i: {**i, "members": dict(list(i["members"].items())[1:])}), CorruptStore),
    "later": (indexed(lambda i: {**i, "version": 2}), UnknownFormat),
    "other zip": (indexed(lambda i: {"format": "else"}), UnknownFormat),
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_strange_zip_is_refused_and_leaves_nothing(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    change, error = STRANGE[what]
    path = written(tmp_path / "x.zip", change(members_of(given)))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(error) as raised:
        load_run(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    assert "temporary" not in str(raised.value), "where it was unpacked to is nobody's business"
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["temporary", "x.zip"]


def test_the_exit_code_of_a_strange_zip_is_its_kind(given: Path, tmp_path: Path) -> None:
    codes = {"slip": 22, "other head": 13, "later": 14}
    for what, code in codes.items():
        written(tmp_path / "x.zip", STRANGE[what][0](members_of(given)))
        check_refused(featcache("predict", "x.zip", "images", cwd=tmp_path), code, "x.zip")


def test_nothing_is_inflated_and_no_name_stands_twice(given: Path, tmp_path: Path) -> None:
    members = signed({**members_of(given), "README.txt": b"0" * 50_000_000})
    path = written(tmp_path / "bomb.zip", members, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2_000_000
    with pytest.raises(UntrustedFile, match=r"README\.txt is compressed or encrypted"):
        unpack(path, tmp_path / "run")
    path = written(tmp_path / "twice.zip", members_of(given))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("run.json", b"{}")
    with pytest.raises(UntrustedFile, match=r"'run\.json', which no bundle has, or has once"):
        unpack(path, tmp_path / "run")


def test_a_size_is_not_believed(given: Path, tmp_path: Path) -> None:
    """A member that says it has terabytes, or encrypted ones."""
    data = bytearray(given.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    for offset, value in ((20, struct.pack("<II", 2**32 - 2, 2**32 - 2)), (8, struct.pack("<H", 1))):
        changed = bytearray(data)
        changed[entry + offset : entry + offset + len(value)] = value
        (tmp_path / "x.zip").write_bytes(changed)
        with pytest.raises(UntrustedFile):
            unpack(tmp_path / "x.zip", tmp_path / "run")


def test_whatever_is_changed_is_found_or_changes_nothing(given: Path, tmp_path: Path) -> None:
    data, rng = given.read_bytes(), random.Random(0)
    expected = {name: members_of(given)[name] for name in ("run.json", "head.safetensors", "backbone.safetensors")}
    structure = [data.index(name.encode()) - 30 for name in expected] + [data.rindex(b"PK\x05\x06")]
    spots = [rng.randrange(len(data)) for _ in range(30)] + [at + rng.randrange(40) for at in structure * 5]
    spots += [rng.randrange(data.index(b"PK\x01\x02"), len(data)) for _ in range(30)]
    for i, spot in enumerate(spots):
        changed = bytearray(data)
        changed[min(spot, len(data) - 1)] ^= 1 << rng.randrange(8)
        (tmp_path / "x.zip").write_bytes(changed)
        with suppress(CorruptStore, UnknownFormat, UntrustedFile):
            run = unpack(tmp_path / "x.zip", tmp_path / str(i))
            assert {name: (run.path / name).read_bytes() for name in expected} == expected
    for n in (0, 1, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "x.zip").write_bytes(data[:n])
        with pytest.raises((CorruptStore, UnknownFormat)):
            unpack(tmp_path / "x.zip", tmp_path / "cut")


def test_names_in_a_readme_do_nothing_on_a_terminal(phase_one: Path, tmp_path: Path) -> None:
    with Store.open(phase_one / "tail.h5") as store:
        labels = zip(store.image_ids, store.columns["label"], strict=True)
        rows = [[name, "\x1b[2Jgone" if label == "normal" else "sick"] for name, label in labels]
        durable.write_csv(tmp_path / "evil.csv", ["image_id", "label"], rows)
        run = train_head(store, HeadSpec(epochs=1), tmp_path / "run", target=TargetSpec(file=tmp_path / "evil.csv"))
    evil = replace(run, record={**run.record, "notes": ["a\nb"]})
    bundle(evil, tmp_path / "m.fcb.zip", with_backbone=False)
    readme = members_of(tmp_path / "m.fcb.zip")["README.txt"].decode()
    assert "\x1b" not in readme
    assert "\\x1b[2Jgone, sick" in readme
    assert "Note: a\\nb." in readme


def test_a_write_that_takes_a_part_only_is_gone_on_with(given: Path) -> None:
    class Slow(io.FileIO):
        def write(self, data: Any) -> int:  # type: ignore[override]
            return super().write(memoryview(data)[:1000])

    with tempfile.NamedTemporaryFile() as file, Slow(file.name, "w+b") as slow:
        bundles._fill(slow, members_of(given))
        assert Path(file.name).read_bytes() == given.read_bytes()


def test_what_is_not_finite_has_failed(phase_one: Path, given: Path, tmp_path: Path) -> None:
    """Of images and of a store, not a line of predictions."""
    members = headed(lambda tensors: {**tensors, "bias": tensors["bias"] + 3e38, "weight": tensors["weight"] * 1e38})
    path = written(tmp_path / "x.zip", members(members_of(given)))
    with Store.open(phase_one / "tail.h5") as store, load_run(path) as predictor:
        found = predictor.predict(store)
    assert {code for code, _ in found.failures.values()} == {"not-finite"}
    assert len(found.table()[1]) == len(found) - len(found.failures) < len(found)
