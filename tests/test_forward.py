"""The arithmetic of a pass: bit for bit the same however it is spread, compiled or not, and how precise it is."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featcache.backbones import load
from featcache.embedding import embed
from featcache.embedding import forward as module
from featcache.embedding import network as network_module
from featcache.embedding.forward import Forward, Streams
from featcache.errors import IdentityMismatch, UsageError
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec
from featcache.store import Store
from tests.conftest import SMALL, draw
from tests.test_cli import featcache

SPEC = BackboneSpec(SMALL, "random:0", input_size=32)
ARGUMENTS = ("--backbone", SMALL, "--weights", "random:0", "--input-size", "32")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
with_a_compiler = pytest.mark.skipif(not any(map(module.shutil.which, ("g++", "clang++"))), reason="no C++ compiler")


def noise(n: int, seed: int = 0, side: int = 32) -> list[np.ndarray]:
    """Decoded images, every other one gray."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, ((side, side), (side, side, 3))[i % 2], dtype=np.uint8) for i in range(n)]


def many(root: Path, n: int) -> Manifest:
    for i in range(n):
        draw(root / f"{i:04d}.png", i, mode=("L", "RGB")[i % 2])
    return Manifest.read(root)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def eager() -> Forward:
    """To be asked in a thread of `Streams`, where its threads are as in a pass."""
    return Forward(load(SPEC), "off", 0, print)


def asked(forward: Forward, batches: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
    """The vectors of batches that go through one after another."""
    with Streams() as streams:
        return [streams.submit(forward, forward.vectors, batch).result()["pooled"] for batch in batches]


# --- side by side -----------------------------------------------------------------------------------------------------


def test_batches_side_by_side_give_the_vectors_of_one_after_another(
    eager: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [noise(eager.batch_size, seed) for seed in range(24)]
    expected = asked(eager, batches)
    monkeypatch.setattr(eager, "n_streams", 4)
    with Streams() as streams:
        futures = [streams.submit(eager, eager.vectors, batch) for batch in batches]
        found = [future.result()["pooled"] for future in futures]
    assert np.array_equal(found, expected)


def test_a_vector_depends_neither_on_its_neighbours_nor_on_its_place_nor_on_how_full_the_batch_is(
    eager: Forward,
) -> None:
    image, *others = noise(2 * eager.batch_size)
    n = eager.batch_size
    batches = [[image], [image, *others[: n - 1]], [image, *others[-3:]]]
    batches += [[*others[:i], image, *others[i : n - 1]] for i in range(1, n)]
    places = [0, 0, 0, *range(1, n)]
    found = [vectors[place] for vectors, place in zip(asked(eager, batches), places, strict=True)]
    assert len(np.unique(found, axis=0)) == 1


def test_the_network_sees_batches_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(SPEC)
    shapes: list[tuple[int, ...]] = []
    backbone.module.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape)))
    forward = Forward(backbone, "off", 0, print)
    for n in (1, 3, forward.batch_size):
        assert len(forward.vectors(noise(n))["pooled"]) == n
    assert set(shapes) == {(forward.batch_size, 3, 32, 32)}


@pytest.mark.parametrize("n", [1, 3])
def test_of_n_streams_never_more_than_n_and_one_batches_are_under_way(
    n: int, eager: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "n_streams", n)
    may_end, submitted = threading.Semaphore(0), []

    def submit(streams: Streams) -> None:
        for i in range(3 * n):
            streams.submit(eager, lambda _: may_end.acquire(timeout=10), [])
            submitted.append(i)

    with Streams() as streams:
        thread = threading.Thread(target=submit, args=(streams,))
        thread.start()
        for n_ended in range(2 * n):
            deadline = time.monotonic() + 5
            while len(submitted) < min(n + 1 + n_ended, 3 * n) and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.05)  # whoever would go too far has the time to
            assert len(submitted) == min(n + 1 + n_ended, 3 * n)
            may_end.release()
        may_end.release(n)
        thread.join()


def test_what_a_batch_raises_is_raised_where_a_later_one_is_submitted(eager: Forward) -> None:
    class Broken(Exception):
        pass

    def fail(_: object) -> None:
        raise Broken

    with Streams() as streams:
        first = streams.submit(eager, fail, [])
        for _ in range(eager.n_streams):
            streams.submit(eager, len, [])
        with pytest.raises(Broken):
            streams.submit(eager, len, [])
    assert isinstance(first.exception(), Broken)


def n_threads_elsewhere() -> int:
    """Torch's number of threads, in a thread that has just begun."""
    found: Future[int] = Future()
    thread = threading.Thread(target=lambda: found.set_result(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found.result()


@pytest.mark.parametrize("fails", [False, True])
def test_a_pass_leaves_the_number_of_threads_of_torch_as_it_was(fails: bool, tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 3)
    torch.set_num_threads(3)
    assert (torch.get_num_threads(), n_threads_elsewhere()) == (3, 3)
    inside: list[int] = []

    def stop(done: int, total: int) -> None:
        inside.append(torch.get_num_threads())
        if fails and done:
            raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            embed(manifest, tmp_path / "s.h5", SPEC, on_progress=stop)
    else:
        embed(manifest, tmp_path / "s.h5", SPEC, on_progress=stop)
    assert set(inside) == {3}
    assert (torch.get_num_threads(), n_threads_elsewhere()) == (3, 3)


# --- compiled ---------------------------------------------------------------------------------------------------------


def in_a_process(folder: Path, *arguments: str, first: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """`featcache` with what it compiles kept in `folder`, after a line of Python."""
    code = f"import sys\n{first}\nfrom featcache.cli.main import main\nsys.argv[0] = 'featcache'\nmain()"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TORCH", "CXX"))}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), **variables}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, `on.h5` of a pass with --compile on, and its cache."""
    folder = tmp_path_factory.mktemp("compiled")
    many(folder / "images", 20)
    done = in_a_process(folder, "embed", "images", "-o", "on.h5", *ARGUMENTS, "--compile", "on")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
@with_a_compiler
def test_compiled_vectors_are_those_of_torch_to_five_digits_and_the_store_says_compiled(compiled: Path) -> None:
    embed(Manifest.read(compiled / "images"), compiled / "off.h5", SPEC, compile="off")
    with Store.open(compiled / "on.h5") as on, Store.open(compiled / "off.h5") as off:
        assert on.identity == off.identity
        a, b = on.features(), off.features()
        assert (np.linalg.norm(a - b, axis=1) <= 1e-5 * np.linalg.norm(b, axis=1)).all()
        assert [environment.get("compiled") for environment in on.environments] == ["inductor"]
        assert [environment.get("compiled") for environment in off.environments] == [None]


@pytest.mark.long
@with_a_compiler
def test_what_was_compiled_lies_in_the_users_cache_and_serves_the_next_process(compiled: Path) -> None:
    cache = compiled / "cache" / "featcache" / "inductor"
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.so")}
    assert before
    done = in_a_process(compiled, "embed", "images", "-o", "again.h5", *ARGUMENTS, "--compile", "on")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.so")} == before
    assert (compiled / "again.h5").read_bytes() == (compiled / "on.h5").read_bytes()


@pytest.mark.long
@with_a_compiler
def test_a_compiled_store_is_no_reason_for_a_warning_before_it_is_known_how_this_pass_computes(compiled: Path) -> None:
    """The network is loaded to learn what it is, and not yet compiled."""
    for name in ("on.h5", ".on.h5.seen"):
        (compiled / f"{name}.kept").write_bytes((compiled / name).read_bytes())
    (compiled / ".on.h5.seen").unlink()
    notes: list[str] = []
    embed(Manifest.read(compiled / "images"), compiled / "on.h5", SPEC, compile="on", on_note=notes.append)
    assert notes == []


@pytest.mark.long
@with_a_compiler
def test_a_compiler_that_fails_is_one_line_and_exit_2_where_compiling_was_asked_for(tmp_path: Path) -> None:
    many(tmp_path / "images", 3)
    arguments = ("embed", "images", "-o", "s.h5", *ARGUMENTS, "--compile", "on")
    done = in_a_process(tmp_path, *arguments, CXX="/bin/false")
    assert done.returncode == 2, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("featcache: ")]
    assert len(told) == 1
    assert told[0].startswith("featcache: --compile on: test_resnet cannot be compiled here: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s.h5").exists()


@pytest.mark.long
@with_a_compiler
def test_a_compiler_that_fails_where_nobody_asked_for_it_is_a_note_and_the_pass_goes_on(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 3)
    patch = "import featcache.embedding.forward as forward; forward._WORTH_COMPILING = {'cpu': 1.0}"
    arguments = ("embed", "images", "-o", "s.h5", *ARGUMENTS, "--device", "cpu")
    done = in_a_process(tmp_path, *arguments, first=patch, CXX="/bin/false")
    assert done.returncode == 0, done.stderr
    assert "compiling the network first: 3 images of" in done.stderr
    assert "going on without compiling, which failed: " in done.stderr
    embed(manifest, tmp_path / "off.h5", SPEC, compile="off")
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "off.h5").read_bytes()


def test_without_a_compiler_auto_does_without_and_on_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not Forward(load(SPEC), "auto", 10**12, print).is_compiled
    with pytest.raises(UsageError, match=r"`compile`=on needs a C\+\+ compiler"):
        Forward(load(SPEC), "on", 1, print)


def test_auto_decides_by_the_images_of_the_plan_and_not_by_those_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a stopped pass would be resumed by other arithmetic. What is compiled here is the network as it is."""
    manifest = many(tmp_path / "images", 40)
    flops = module._flops(load(SPEC))
    monkeypatch.setattr(module, "_WORTH_COMPILING", {"cpu": 30 * flops / (os.cpu_count() or 1)})
    monkeypatch.setattr(module, "_compiled", lambda backbone: backbone)
    monkeypatch.setattr(module.shutil, "which", lambda name: name)

    def stop(done: int, total: int) -> None:
        if done >= 32:
            raise KeyboardInterrupt

    notes: list[list[str]] = [[], []]
    with pytest.raises(KeyboardInterrupt):
        embed(manifest, tmp_path / "s.h5", SPEC, part_rows=32, on_progress=stop, on_note=notes[0].append)
    embed(manifest, tmp_path / "s.h5", SPEC, part_rows=32, on_note=notes[1].append)
    for told in notes:
        assert told[-1].startswith("compiling the network first: 40 images of ")
    assert notes[1][:-1] == ["resuming: 1 of 2 parts are done"]  # and nothing of other arithmetic
    embed(many(tmp_path / "few", 29), tmp_path / "few.h5", SPEC)
    compiled = [Store.open(tmp_path / name).environments[0].get("compiled") for name in ("s.h5", "few.h5")]
    assert compiled == ["inductor", None]


def test_the_work_of_an_image_is_counted_by_its_layers() -> None:
    """The first convolution of ResNet-18 alone: 64 filters of 7 x 7 x 3, at 16 x 16 places, two operations each."""
    backbone = load(BackboneSpec("resnet18", "random:0", input_size=32))
    first = 64 * 7 * 7 * 3 * 16 * 16
    layer = 9 * 64 * 64 * 8 * 8  # 3 x 3; in a later stage twice the channels, at a quarter of the places
    to_more_channels = layer // 2 + layer // 18  # a 3 x 3 from half the channels, and a 1 x 1 beside it
    assert module._flops(backbone) == 2 * (first + 4 * layer + 3 * (3 * layer + to_more_channels))


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Images, and beside their folder `float32.h5`, `bfloat16.h5`, and what was said. Never to be changed."""
    folder = tmp_path_factory.mktemp("precision")
    manifest = many(folder / "images", 40)
    for precision in ("float32", "bfloat16"):
        notes: list[str] = []
        spec = replace(SPEC, precision=precision)
        embed(manifest, folder / f"{precision}.h5", spec, part_rows=32, on_note=notes.append)
        (folder / f"{precision}.notes").write_text(json.dumps(notes))
    return manifest


def copied(lower: Manifest, folder: Path, precision: str) -> Path:
    (folder / "s.h5").write_bytes(lower.source.with_name(f"{precision}.h5").read_bytes())
    return folder / "s.h5"


def test_bfloat16_is_in_the_identity_and_gives_nearly_the_vectors_of_float32(lower: Manifest) -> None:
    with (
        Store.open(lower.source.with_name("float32.h5")) as exact,
        Store.open(lower.source.with_name("bfloat16.h5")) as low,
    ):
        assert (exact.identity["precision"], low.identity["precision"]) == ("float32", "bfloat16")
        assert {**low.identity, "precision": "float32"} == exact.identity
        assert not np.array_equal(low.features(), exact.features())
        assert cosines(low.features(), exact.features()).min() > 0.99


def test_the_drift_of_bfloat16_is_measured_told_and_recorded(lower: Manifest) -> None:
    with (
        Store.open(lower.source.with_name("bfloat16.h5")) as low,
        Store.open(lower.source.with_name("float32.h5")) as exact,
    ):
        (environment,) = low.environments
        (without,) = exact.environments
        assert "drift" not in without
        told = float(environment["drift"].split()[2])
        found = cosines(low.features(), exact.features())
    assert environment["drift"] == f"cosine of {told:.6f} with float32, at least, on some of the images"
    # Of 16 of the 40 images, in float32 of two threads and not of one.
    assert found.min() - 1e-6 <= told <= np.sort(found)[-16] + 1e-6
    (note,) = json.loads(lower.source.with_name("bfloat16.notes").read_text())
    assert note == f"bfloat16: cosine with float32 at least {told:.6f} on some of the images."
    assert json.loads(lower.source.with_name("float32.notes").read_text()) == []


def test_a_drift_below_the_bound_is_told_with_what_is_exact(
    lower: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_module, "BOUND", 1.1)
    notes: list[str] = []
    embed(lower, tmp_path / "s.h5", replace(SPEC, precision="bfloat16"), on_note=notes.append)
    assert "below 1.1: the vectors are others, `precision`=float32 is exact" in notes[0]


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_a_second_pass_in_bfloat16_computes_nothing_and_warns_of_nothing(
    precision: str, lower: Manifest, tmp_path: Path
) -> None:
    """Though a drift is recorded with the vectors, and none is measured now."""
    path, notes = copied(lower, tmp_path, "bfloat16"), []
    before = path.read_bytes()
    for _ in range(2):
        done = embed(lower, path, replace(SPEC, precision=precision), on_note=notes.append)
        assert (done.counts.reused, done.identity["precision"]) == (40, "bfloat16")
    assert notes == []
    assert path.read_bytes() == before


def test_auto_is_float32_on_a_cpu_where_nothing_is_there(lower: Manifest, tmp_path: Path) -> None:
    done = embed(lower, tmp_path / "s.h5", replace(SPEC, precision="auto"), device="cpu", part_rows=32)
    assert done.identity["precision"] == "float32"
    assert (tmp_path / "s.h5").read_bytes() == lower.source.with_name("float32.h5").read_bytes()


def stopped(lower: Manifest, path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(lower, path, replace(SPEC, precision="bfloat16"), part_rows=32, on_progress=stop)


def test_auto_goes_on_with_the_precision_of_a_stopped_pass(lower: Manifest, tmp_path: Path) -> None:
    stopped(lower, tmp_path / "s.h5")
    embed(lower, tmp_path / "s.h5", replace(SPEC, precision="auto"), part_rows=32)
    assert (tmp_path / "s.h5").read_bytes() == lower.source.with_name("bfloat16.h5").read_bytes()


@pytest.mark.parametrize("is_published", [True, False])
def test_float32_is_refused_where_bfloat16_lies_and_nothing_changes(
    is_published: bool, lower: Manifest, tmp_path: Path
) -> None:
    path = copied(lower, tmp_path, "bfloat16") if is_published else tmp_path / "s.h5"
    if not is_published:
        stopped(lower, path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.h5")}
    with pytest.raises(IdentityMismatch, match=r"\n  precision: bfloat16 here, float32 asked\n") as caught:
        embed(lower, path, replace(SPEC, precision="float32"))
    assert caught.value.exit_code == 12
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.h5")} == before


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_what_a_cpu_has_no_units_for_is_refused_in_one_line(precision: str, lower: Manifest, tmp_path: Path) -> None:
    arguments = ("embed", lower.source, "-o", "s.h5", *ARGUMENTS, "--device", "cpu", "--precision", precision)
    done = featcache(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"featcache: --precision {precision} needs a GPU; on the CPU there are float32 and bfloat16.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_does_not_exist_is_refused(lower: Manifest, tmp_path: Path) -> None:
    done = featcache("embed", lower.source, "-o", "s.h5", *ARGUMENTS, "--precision", "float64", cwd=tmp_path)
    assert done.returncode == 2
    assert "--precision must be one of auto, float32, tf32, float16, bfloat16, got 'float64'" in done.stderr


# --- on a GPU ---------------------------------------------------------------------------------------------------------


def on_cuda(precision: str, **options: object) -> Forward:
    spec = BackboneSpec("resnet18", "random:0", input_size=64, precision=precision)
    return Forward(load(spec, "cuda"), **{"compile_": "off", "n_images": 0, "on_note": print, **options})


@pytest.mark.gpu
@on_a_gpu
def test_auto_on_a_gpu_takes_what_is_as_good_as_float32(tmp_path: Path) -> None:
    manifest, spec = many(tmp_path / "images", 40), BackboneSpec("resnet18", "random:0", input_size=64)
    notes: list[str] = []
    for precision in ("float32", "auto"):
        path = tmp_path / f"{precision}.h5"
        embed(manifest, path, replace(spec, precision=precision), device="cuda", on_note=notes.append)
    with Store.open(tmp_path / "auto.h5") as auto, Store.open(tmp_path / "float32.h5") as exact:
        chosen = auto.identity["precision"]
        assert cosines(auto.features(), exact.features()).min() >= 0.9999 - 1e-5  # of all images, not of the sixteen
    assert any(note.startswith(f"precision {chosen}: ") for note in notes)


@pytest.mark.gpu
@pytest.mark.long
@on_a_gpu
def test_compiled_for_a_gpu_is_what_is_not_compiled() -> None:
    images = noise(200, side=64)[:100]
    expected, found = (on_cuda("float32", compile_=mode).vectors(images)["pooled"] for mode in ("off", "on"))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.gpu
@on_a_gpu
def test_a_gpu_without_memory_for_a_batch_takes_half_of_it() -> None:
    images, notes = noise(100, side=64), []
    forward = on_cuda("float32", on_note=notes.append)
    expected = forward.vectors(images)["pooled"]
    seen: list[int] = []

    def scarce(_: object, given: tuple[torch.Tensor, ...]) -> None:
        """Asks the device for more than it has, as long as the batch is large."""
        seen.append(len(given[0]))
        if len(given[0]) > 40:
            torch.empty(2 * torch.cuda.get_device_properties(0).total_memory, dtype=torch.uint8, device="cuda")

    forward._backbone.module.register_forward_pre_hook(scarce)
    found = forward.vectors(images)["pooled"]
    assert seen == [128, 64, 32, 32, 32, 32]
    assert [note.split(": ")[1] for note in notes] == ["going on with 64.", "going on with 32."]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.gpu
@on_a_gpu
def test_networks_side_by_side_on_a_gpu_keep_their_precisions_apart() -> None:
    """TF32 is one setting of the process, and batches of both networks are under way at the same time."""
    images = noise(100, side=64)
    forwards = [on_cuda(precision) for precision in ("float32", "tf32")]
    alone = [asked(forward, [images])[0] for forward in forwards]
    with Streams() as streams:
        futures = [streams.submit(forward, forward.vectors, images) for _ in range(20) for forward in forwards]
        found = [future.result()["pooled"] for future in futures]
    for i, vectors in enumerate(found):
        assert np.abs(vectors - alone[i % 2]).max() < 1e-5 * np.abs(alone[i % 2]).max()  # TF32 is off by 1e-3
