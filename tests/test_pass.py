"""What a pass does with the processes as it is: files it has seen, images that hang or kill, storage that rounds."""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featcache import backbones
from featcache.backbones import load
from featcache.embedding import embed
from featcache.embedding import run as module
from featcache.embedding.filling import stored
from featcache.embedding.forward import Forward
from featcache.embedding.network import Network
from featcache.errors import FeatcacheError, InputOutputError, StoreLocked, UsageError
from featcache.images import cache, workers
from featcache.images.workers import Decoders
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec, DecodeSpec
from featcache.store import Part, PartFolder, Store, status
from tests.conftest import draw

SPEC = BackboneSpec("test_resnet", "random:0", input_size=32)


def many(root: Path, n: int) -> Manifest:
    for i in range(n):
        draw(root / f"{i:04d}.png", i)
    return Manifest.read(root)


def aged(manifest: Manifest) -> Manifest:
    """As if the images had lain there a while: files of this very moment are not remembered."""
    time.sleep(0.15)
    return manifest


@pytest.fixture(scope="module")
def first_pass(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Five images, and beside their folder `s.h5` and its memory. To be copied, never to be changed."""
    folder = tmp_path_factory.mktemp("first")
    manifest = aged(many(folder / "images", 5))
    embed(manifest, folder / "s.h5", SPEC)
    return manifest


@pytest.fixture
def remembered(first_pass: Manifest, tmp_path: Path) -> Manifest:
    """Five images that lie elsewhere, and in `tmp_path` the store of the first pass over them, with its memory."""
    for name in ("s.h5", ".s.h5.seen"):
        shutil.copy(first_pass.source.with_name(name), tmp_path)
    return first_pass


# --- files that were seen ---------------------------------------------------------------------------------------------


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = aged(many(tmp_path / "images", 40))
    embed(manifest, tmp_path / "s.h5", SPEC)
    before = (tmp_path / "s.h5").stat().st_mtime_ns

    def refuse(*_: object) -> None:
        raise AssertionError("a worker was started, or a network loaded")

    monkeypatch.setattr(workers, "_Decoder", refuse)
    monkeypatch.setattr(backbones, "load", refuse)
    done = embed(manifest, tmp_path / "s.h5", SPEC)
    assert (done.counts.embedded, done.counts.reused) == (0, 40)
    assert (tmp_path / "s.h5").stat().st_mtime_ns == before


def test_new_labels_read_no_file_and_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = aged(many(tmp_path / "images", 40))
    embed(manifest, tmp_path / "s.h5", SPEC)
    monkeypatch.setattr(workers, "_Decoder", None)
    labelled = replace(manifest, columns={"label": ["a", "b"] * 20})
    done = embed(labelled, tmp_path / "s.h5", SPEC)
    assert (done.counts.embedded, done.counts.reused) == (0, 40)
    with Store.open(tmp_path / "s.h5") as store:
        assert store.columns["label"] == ["a", "b"] * 20


def test_only_new_and_changed_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = aged(many(tmp_path / "images", 40))
    embed(manifest, tmp_path / "s.h5", SPEC)
    draw(manifest.paths[3], 1003)
    draw(tmp_path / "images" / "new.png", 99)
    read: list[str] = []
    real = Decoders.prepare
    monkeypatch.setattr(
        Decoders, "prepare", lambda self, path, *rest: read.append(path.name) or real(self, path, *rest)
    )
    done = embed(Manifest.read(tmp_path / "images"), tmp_path / "s.h5", SPEC)
    assert sorted(read) == ["0003.png", "new.png"]
    assert (done.counts.embedded, done.counts.reused) == (2, 39)
    assert done.n_dropped == 1  # what 0003.png was


def test_rehash_reads_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = aged(many(tmp_path / "images", 10))
    embed(manifest, tmp_path / "s.h5", SPEC)
    read: list[Path] = []
    real = Decoders.prepare
    monkeypatch.setattr(Decoders, "prepare", lambda self, path, *rest: read.append(path) or real(self, path, *rest))
    before = (tmp_path / "s.h5").read_bytes()
    done = embed(manifest, tmp_path / "s.h5", SPEC, rehash=True)
    assert (len(read), done.counts.reused) == (10, 10)
    assert (tmp_path / "s.h5").read_bytes() == before


@pytest.mark.parametrize(
    "junk", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 1, "files": {"a": 1}, "answers": {}}']
)
def test_a_broken_memory_costs_time_and_nothing_else(junk: bytes, remembered: Manifest, tmp_path: Path) -> None:
    (tmp_path / ".s.h5.seen").write_bytes(junk)
    assert embed(remembered, tmp_path / "s.h5", SPEC).counts.reused == 5


@pytest.mark.parametrize(
    "spoilt",
    [
        {"identity": 5}, {"identity": []}, {"identity": {}}, {"shapes": 5}, {"shapes": {}}, {"shapes": {"pooled": []}},
        {"shapes": {"pooled": ["x"]}}, {"dim": 512},
    ],
)  # fmt: skip
def test_a_spoilt_answer_is_no_answer(spoilt: dict[str, object], remembered: Manifest, tmp_path: Path) -> None:
    path = tmp_path / ".s.h5.seen"
    held = json.loads(path.read_text())
    ((_, (answer, _)),) = held["answers"].items()
    answer.update(spoilt)
    path.write_text(json.dumps(held))
    assert embed(remembered, tmp_path / "s.h5", SPEC).counts.reused == 5


def test_a_network_that_is_not_the_remembered_one_is_learnt_anew(remembered: Manifest, tmp_path: Path) -> None:
    """The memory says what the request stood for; an image is new, the network is loaded, and is another."""
    path = tmp_path / ".s.h5.seen"
    held = json.loads(path.read_text())
    ((key, (answer, hangs_on)),) = held["answers"].items()
    answer["identity"]["backbone"]["weights_sha256"] = "0" * 64
    held["answers"] = {key: [answer, hangs_on]}
    path.write_text(json.dumps(held))
    (tmp_path / "s.h5").unlink()
    embed(remembered, tmp_path / "s.h5", SPEC)
    with Store.open(tmp_path / "s.h5") as store:
        assert store.identity == load(SPEC).identity(DecodeSpec(), "float32")


def test_weights_that_change_under_their_name_are_not_taken_from_memory(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = tmp_path / "w.safetensors"
    for seed in (0, 1):
        state = load(replace(SPEC, weights=f"random:{seed}")).module.state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, weights)
        time.sleep(0.15)
        spec = replace(SPEC, weights=str(weights))
        manifest = aged(many(tmp_path / "images", 3))
        if seed == 0:
            embed(manifest, tmp_path / "s.h5", spec)
            continue
        with pytest.raises(FeatcacheError, match=r"backbone\.weights_sha256") as caught:
            embed(manifest, tmp_path / "s.h5", spec)
        assert caught.value.exit_code == 12


@pytest.mark.parametrize(
    ("changed_ns_ago", "ctime_ns", "at_rest"),
    [(10_000_000, 123_456_789, False), (300_000_000, 123_456_789, True), (300_000_000, 0, False), (3 * 10**9, 0, True)],
)
def test_a_file_is_at_rest_once_its_clock_has_ticked(changed_ns_ago: int, ctime_ns: int, at_rest: bool) -> None:
    changed = 1_700_000_000 * 10**9 + ctime_ns
    assert cache.is_at_rest((1, changed, changed, 1), changed + changed_ns_ago) == at_rest


# --- identical images -------------------------------------------------------------------------------------------------


def test_identical_images_are_computed_once_and_each_has_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = many(tmp_path / "images", 80)
    for i, twin in ((1, 0), (40, 0), (41, 39), (79, 0)):
        shutil.copy(manifest.paths[twin], manifest.paths[i])
    computed: list[np.ndarray] = []
    real = Network.vectors
    monkeypatch.setattr(Network, "vectors", lambda self, images: computed.extend(images) or real(self, images))
    done = embed(manifest, tmp_path / "s.h5", SPEC, part_rows=32)
    assert len(computed) == 76
    assert (done.counts.embedded, done.n_duplicates) == (80, 4)
    with Store.open(tmp_path / "s.h5") as store:
        x = store.features()
        assert store.identical_images == [["0000.png", "0001.png", "0040.png", "0079.png"], ["0039.png", "0041.png"]]
    assert np.array_equal(x[[1, 40, 79]], x[[0, 0, 0]])
    assert np.array_equal(x[41], x[39])


# --- images that misbehave --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kill", "code"), [(True, "crashed"), (False, "timeout")])
def test_an_image_that_kills_or_hangs_its_decoder_fails_and_the_pass_goes_on(
    kill: bool, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is stopped as it is asked for one image: it hangs; then, in one case, it is killed."""
    manifest = many(tmp_path / "images", 5)
    real = Decoders.prepare

    def prepare(self: Decoders, path: Path, *rest: object) -> workers.Prepared:
        if path.name == "0002.png":
            (pid,) = self.pids
            os.kill(pid, signal.SIGSTOP)
            if kill:
                threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        return real(self, path, *rest)

    monkeypatch.setattr(Decoders, "prepare", prepare)
    done = embed(manifest, tmp_path / "s.h5", SPEC, n_workers=1, timeout_s=3)
    assert {name: failure[0] for name, failure in done.failures.items()} == {"0002.png": code}
    assert done.counts.embedded == 4
    monkeypatch.undo()
    assert embed(manifest, tmp_path / "s.h5", SPEC).counts.embedded == 1


def test_no_worker_outlives_its_pass(tmp_path: Path) -> None:
    pids: list[int] = []
    manifest = many(tmp_path / "images", 40)
    with pytest.MonkeyPatch.context() as patch:
        real = Decoders.prepare
        patch.setattr(Decoders, "prepare", lambda self, *rest: (real(self, *rest), pids.extend(self.pids))[0])
        embed(manifest, tmp_path / "s.h5", SPEC, n_workers=2)
    assert pids
    assert not [pid for pid in set(pids) if Path(f"/proc/{pid}").exists()]


def test_a_worker_that_starts_while_the_pass_ends_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = Decoders([load(SPEC).transform], DecodeSpec())
    started = workers._Decoder

    def start(*config: object) -> workers._Decoder:
        worker = started(*config)
        decoders.__exit__()
        return worker

    monkeypatch.setattr(workers, "_Decoder", start)
    found = decoders.prepare(Path("a.png"), (), ())
    assert found.failure == ("crashed", "its decoder died (signal 9)")
    assert decoders.pids == []


def test_files_that_change_or_go_between_plan_and_read_fail_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = many(tmp_path / "images", 40)
    real = Decoders.prepare

    def prepare(self: Decoders, path: Path, *rest: object) -> workers.Prepared:
        if path.name == "0003.png":
            draw(path, 99)
        if path.name == "0004.png":
            path.unlink()
        return real(self, path, *rest)

    monkeypatch.setattr(Decoders, "prepare", prepare)
    done = embed(manifest, tmp_path / "s.h5", SPEC)
    assert {name: failure[0] for name, failure in done.failures.items()} == {
        "0003.png": "changed",
        "0004.png": "missing",
    }
    monkeypatch.undo()
    assert embed(manifest, tmp_path / "s.h5", SPEC).failures.keys() == {"0004.png"}


def test_strict_ends_at_the_first_bad_image(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 80)
    manifest.paths[50].write_bytes(b"")
    with pytest.raises(FeatcacheError, match=r"`strict`: '0050\.png': zero bytes"):
        embed(manifest, tmp_path / "s.h5", SPEC, strict=True, part_rows=32)
    assert not (tmp_path / "s.h5").exists()
    assert status(tmp_path / "s.h5").done == 32
    draw(manifest.paths[50], 50)
    assert embed(manifest, tmp_path / "s.h5", SPEC, strict=True).counts.embedded + 32 >= 80


def test_a_pass_that_only_fails_stops_early(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(260):
        (tmp_path / "images" / f"{i:04d}.png").write_bytes(b"text")
    draw(tmp_path / "images" / "9999.png", 1)
    with pytest.raises(FeatcacheError, match="the first 200 images all failed, 200 with: not an image"):
        embed(Manifest.read(tmp_path / "images"), tmp_path / "s.h5", SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    draw(tmp_path / "images" / "0000.png", 1)
    assert embed(Manifest.read(tmp_path / "images"), tmp_path / "s.h5", SPEC).counts.failed == 259


# --- storage and memory -----------------------------------------------------------------------------------------------


def test_float16_halves_the_store_and_rounds(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 40)
    for dtype in ("float32", "float16"):
        embed(manifest, tmp_path / f"{dtype}.h5", SPEC, dtype=dtype)
    with Store.open(tmp_path / "float32.h5") as full, Store.open(tmp_path / "float16.h5") as half:
        assert half.dtype() == "float16"
        assert half.features().dtype == np.float32
        assert np.array_equal(half.features(), full.features().astype(np.float16).astype(np.float32))
    assert embed(manifest, tmp_path / "float16.h5", SPEC, dtype="float16").counts.reused == 40


@pytest.mark.parametrize(
    ("values", "message"), [(1e5, r"ends at 65,504, and these vectors reach 100,000"), (1e-5, "too small for it")]
)
def test_float16_that_cannot_hold_the_vectors_is_refused_before_anything_is_written(
    values: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Network.vectors

    def scaled(self: Network, images: list[np.ndarray]) -> dict[str, np.ndarray]:
        vectors = real(self, images)["pooled"]
        return {"pooled": values * vectors / np.abs(vectors).max()}

    monkeypatch.setattr(Network, "vectors", scaled)
    with pytest.raises(UsageError, match=message) as caught:
        embed(many(tmp_path / "images", 5), tmp_path / "s.h5", SPEC, dtype="float16")
    assert "`dtype`=float32" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.slow
def test_a_random_efficientnet_b1_is_too_small_for_float16(tmp_path: Path) -> None:
    spec = BackboneSpec("efficientnet_b1", "random:0")
    with pytest.raises(UsageError, match="`dtype`=float32"):
        embed(many(tmp_path / "images", 2), tmp_path / "s.h5", spec, dtype="float16")


def test_zeros_are_no_loss_to_float16() -> None:
    vectors = np.zeros((3, 4), dtype=np.float32)
    vectors[1] = np.nan
    assert stored(vectors, "float16").dtype == np.float16


class Scarce(torch.nn.Module):
    """A network on a device with memory for few images: what CUDA raises, where there is no CUDA."""

    def __init__(self, inner: torch.nn.Module, n: int) -> None:
        super().__init__()
        self.inner, self.n = inner, n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.n:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(x)


def test_too_little_device_memory_halves_the_micro_batch_and_says_so() -> None:
    backbone, notes = load(SPEC), []

    def forward(n: int | None) -> Forward:
        module = backbone.module if n is None else Scarce(backbone.module, n)
        return Forward(replace(backbone, module=module), "off", 12, notes.append)

    images = [np.full((32, 32), i, dtype=np.uint8) for i in range(7)]
    expected = forward(None).vectors(images)["pooled"]
    scarce = forward(3)
    for _ in range(2):  # what was learnt is kept
        assert np.allclose(scarce.vectors(images)["pooled"], expected, rtol=1e-4, atol=1e-7)
    assert notes == [
        "cpu has not enough memory for 8 images at a time: going on with 4.",
        "cpu has not enough memory for 4 images at a time: going on with 2.",
    ]
    with pytest.raises(InputOutputError, match="not enough memory for one image of 32 x 32"):
        forward(0).vectors(images)


# --- status, and one writer -------------------------------------------------------------------------------------------


def test_status_tells_running_stopped_and_published(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 100)
    manifest.paths[3].write_bytes(b"")
    states = []

    class Stop(Exception):
        pass

    def look(done: int, total: int) -> None:
        states.append(status(tmp_path / "s.h5"))
        if done >= 64:
            raise Stop

    with pytest.raises(Stop):
        embed(manifest, tmp_path / "s.h5", SPEC, part_rows=32, on_progress=look)
    assert [(found.state, found.done, found.pending, found.failed) for found in states] == [
        ("running", 0, 100, 0), ("running", 32, 68, 1), ("running", 64, 36, 1),
    ]  # fmt: skip
    assert f"pid {os.getpid()}" in states[0].writer
    stopped = status(tmp_path / "s.h5")
    assert (stopped.state, stopped.done, stopped.writer) == ("stopped", 64, "")
    embed(manifest, tmp_path / "s.h5", SPEC)
    published = status(tmp_path / "s.h5")
    assert (published.state, published.total, published.done, published.failed) == ("published", 100, 100, 1)


def test_two_threads_of_one_process_are_two_writers(tmp_path: Path) -> None:
    folder = PartFolder(tmp_path / "s.h5", {"identity": {}})
    with folder.locked(), pytest.raises(StoreLocked, match="by this process"), folder.locked():
        pass


def test_a_resumed_pass_under_other_libraries_says_so_and_records_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = many(tmp_path / "images", 80)
    real = PartFolder.write

    def write(self: PartFolder, part: Part) -> Path:
        assert part.environment is not None
        return real(self, replace(part, environment={**part.environment, "torch": "2.0.0"}))

    with monkeypatch.context() as patch:
        patch.setattr(PartFolder, "write", write)
        with pytest.raises(KeyboardInterrupt):
            embed(manifest, tmp_path / "s.h5", SPEC, part_rows=32, on_progress=_stop_after(32))
    notes: list[str] = []
    embed(manifest, tmp_path / "s.h5", SPEC, part_rows=32, on_note=notes.append)
    assert notes[0] == "resuming: 1 of 3 parts are done"
    assert "torch 2.0.0 (here " in notes[1]
    with Store.open(tmp_path / "s.h5") as store:
        assert [env["torch"] for env in store.environments] == ["2.0.0", torch.__version__.split("+")[0]]


def _stop_after(rows: int) -> module.Progress:
    def stop(done: int, total: int) -> None:
        if done >= rows:
            raise KeyboardInterrupt

    return stop
