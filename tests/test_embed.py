"""The pass: the vectors of a plain loop, every image accounted for, nothing computed twice."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from featcache import durable, images
from featcache.backbones import load
from featcache.embedding import default_part_rows, embed
from featcache.embedding import run as module
from featcache.embedding.forward import Forward
from featcache.embedding.network import Network
from featcache.embedding.plan import Plan
from featcache.errors import FeatcacheError, IdentityMismatch, InputOutputError, NoSpace, UsageError
from featcache.identity import digest_bytes
from featcache.images.cache import FileCache
from featcache.images.workers import Decoders
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec
from featcache.store import Store
from tests.conftest import SMALL, draw

SPEC = BackboneSpec(SMALL, "random:0", input_size=32)
PART_ROWS = 32


def many(root: Path, n: int) -> Manifest:
    for i in range(n):
        draw(root / f"{i:04d}.png", i, mode=("L", "RGB")[i % 2])
    return Manifest.read(root)


def test_vectors_equal_a_plain_timm_loop(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 40)
    embed(manifest, tmp_path / "s.h5", SPEC)
    torch.manual_seed(0)
    reference = timm.create_model(SMALL, num_classes=0).eval()
    transform = timm.data.create_transform(
        **{**timm.data.resolve_data_config(model=reference), "input_size": (3, 32, 32)}
    )
    with torch.inference_mode():
        expected = np.stack(
            [reference(transform(Image.open(path).convert("RGB"))[None])[0].numpy() for path in manifest.paths]
        )
    with Store.open(tmp_path / "s.h5") as store:
        assert store.image_ids == manifest.image_ids
        found = store.features()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_columns_of_the_manifest_are_in_the_store(embedded: Path) -> None:
    with Store.open(embedded) as store:
        row = store.image_ids.index("train/sick/trainp1s-0.png")
        columns = {name: values[row] for name, values in store.columns.items()}
    assert columns == {"label": "sick", "split": "train", "group": "trainp1"}


def test_found_is_embedded_plus_reused_plus_failed(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 70)
    for i, data in ((3, b""), (40, b"text"), (69, (tmp_path / "images" / "0001.png").read_bytes()[:-30])):
        manifest.paths[i].write_bytes(data)
    os.unlink(manifest.paths[5])
    done = embed(manifest, tmp_path / "s.h5", SPEC)
    assert (done.counts.found, done.counts.embedded, done.counts.reused, done.counts.failed) == (70, 66, 0, 4)
    codes = {image_id: code for image_id, (code, _) in done.failures.items()}
    assert codes == {"0003.png": "empty", "0005.png": "missing", "0040.png": "format", "0069.png": "damaged"}
    lines = (tmp_path / "s.h5.failures.csv").read_text().splitlines()
    assert lines[0] == "path,code,reason,image_id"
    assert len(lines) == 5
    with Store.open(tmp_path / "s.h5") as store:
        assert len(store) == 66
        assert set(store.failures) == set(codes)
        assert not set(store.image_ids) & set(codes)


def test_an_empty_store_is_never_published(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"")
    with pytest.raises(FeatcacheError, match=r"^'1\.png': zero bytes"):
        embed(Manifest.read(tmp_path / "images"), tmp_path / "s.h5", SPEC)
    assert not (tmp_path / "s.h5").exists()


def test_the_list_of_failures_goes_when_there_are_none(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 3)
    manifest.paths[0].write_bytes(b"")
    embed(manifest, tmp_path / "s.h5", SPEC)
    draw(manifest.paths[0], 0)
    done = embed(manifest, tmp_path / "s.h5", SPEC)
    assert (done.counts.embedded, done.counts.reused, done.counts.failed) == (1, 2, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s.h5.seen", "images", "s.h5"]


# --- what was computed is not computed again --------------------------------------------------------------------------


def test_a_second_pass_computes_nothing_and_changes_no_byte(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 50)
    embed(manifest, tmp_path / "s.h5", SPEC)
    before = (tmp_path / "s.h5").read_bytes()
    done = embed(manifest, tmp_path / "s.h5", SPEC)
    assert (done.counts.embedded, done.counts.reused) == (0, 50)
    assert (tmp_path / "s.h5").read_bytes() == before


def test_images_that_are_new_renamed_or_relabelled_cost_only_what_is_new(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 20)
    embed(manifest, tmp_path / "s.h5", SPEC)
    old = dict(zip(manifest.image_ids, Store.open(tmp_path / "s.h5").features(), strict=True))
    (tmp_path / "images" / "sub").mkdir()
    shutil.move(manifest.paths[0], tmp_path / "images" / "sub" / "moved.png")
    draw(tmp_path / "images" / "sub" / "new.png", 99)
    os.unlink(manifest.paths[1])
    done = embed(Manifest.read(tmp_path / "images"), tmp_path / "s.h5", SPEC)
    assert (done.counts.found, done.counts.embedded, done.counts.reused) == (20, 1, 19)
    with Store.open(tmp_path / "s.h5") as store:
        new = dict(zip(store.image_ids, store.features(), strict=True))
        assert dict(zip(store.image_ids, store.columns["label"], strict=True))["sub/new.png"] == "sub"
    assert np.array_equal(new["sub/moved.png"], old["0000.png"])
    assert "0001.png" not in new


@pytest.mark.parametrize(
    "other",
    [
        {"input_size": 48},
        {"crop_pct": 0.5},
        {"interpolation": "nearest"},
        {"mean": (0.1,)},
        {"std": (0.3,)},
        {"weights": "random:1"},
        {"name": "resnet34"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_identity_at_the_same_path_is_refused_and_nothing_changes(
    embedded: Path, class_folder: Path, other: dict[str, object]
) -> None:
    before = embedded.read_bytes()
    with pytest.raises(IdentityMismatch) as caught:
        embed(Manifest.read(class_folder), embedded, replace(SPEC, **other))
    field = {"name": "backbone.name", "weights": "backbone.weights_sha256"}.get(
        *other, f"transform.{next(iter(other))}"
    )
    assert f"\n  {field}: " in str(caught.value)
    assert embedded.read_bytes() == before
    assert not embedded.with_name("small.h5.partial").exists()


def test_a_file_that_is_no_store_is_not_written_over(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 2)
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(FeatcacheError, match="not a featcache store"):
        embed(manifest, tmp_path / "thesis.txt", SPEC)
    assert (tmp_path / "thesis.txt").read_text() == "years"


# --- stopped and continued --------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Manifest, Path]]:
    """So many images, and the store of a pass over them; made once for each number, never to be changed."""

    @cache
    def made(n: int) -> tuple[Manifest, Path]:
        folder = tmp_path_factory.mktemp("undisturbed")
        manifest = many(folder / "images", n)
        embed(manifest, folder / "whole.h5", SPEC, part_rows=PART_ROWS)
        return manifest, folder / "whole.h5"

    return made


@pytest.mark.parametrize("n_parts", [1, 2, 3])
def test_a_resumed_pass_equals_an_uninterrupted_one(
    tmp_path: Path, n_parts: int, undisturbed: Callable[[int], tuple[Manifest, Path]]
) -> None:
    manifest, whole = undisturbed(120)

    def stop_after(done: int, total: int) -> None:
        if done >= n_parts * PART_ROWS:
            raise Stop

    with pytest.raises(Stop):
        embed(manifest, tmp_path / "s.h5", SPEC, part_rows=PART_ROWS, on_progress=stop_after)
    assert not (tmp_path / "s.h5").exists()
    parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s.h5.partial").glob("part-*")}
    assert len(parts) == n_parts
    seen: list[int] = []
    done = embed(manifest, tmp_path / "s.h5", SPEC, part_rows=PART_ROWS, on_progress=lambda n, _: seen.append(n))
    assert done.n_resumed == n_parts * PART_ROWS
    assert seen == sorted(seen)
    assert seen[0] == n_parts * PART_ROWS
    assert seen[-1] == 120
    assert (tmp_path / "s.h5").read_bytes() == whole.read_bytes()
    assert not (tmp_path / "s.h5.partial").exists()


@pytest.mark.long
def test_the_size_of_the_parts_changes_no_byte(tmp_path: Path) -> None:
    """Also where images fail, or are the same as others, so that batches are not cut alike."""
    manifest = many(tmp_path / "images", 105)
    for i in (0, 31, 70):
        manifest.paths[i].write_bytes(b"")
    for i in (40, 101, 102, 104):
        shutil.copy(manifest.paths[5], manifest.paths[i])
    for rows in (1, 7, 32, 50, 96, 1000):
        embed(manifest, tmp_path / f"{rows}.h5", SPEC, part_rows=rows)
    assert len({path.read_bytes() for path in tmp_path.glob("*.h5")}) == 1


@pytest.mark.parametrize("rows", [0, -32])
def test_parts_have_rows(tmp_path: Path, rows: int) -> None:
    with pytest.raises(UsageError, match=f"at least 1, got {rows}"):
        embed(many(tmp_path / "images", 1), tmp_path / "s.h5", SPEC, part_rows=rows)


@pytest.mark.parametrize("n_views", [0, 1, 2, 8, 32])
@pytest.mark.parametrize("n_features", [1, 512, 1280, 25_088, 10**7])
def test_default_parts_hold_whole_batches(n_features: int, n_views: int) -> None:
    rows = default_part_rows(4 * n_features, n_views)
    batch_size = Forward(load(SPEC), "off", 0, print).batch_size
    assert rows % batch_size == 0
    assert rows * (1 + n_views) >= 32
    assert rows <= 256
    if rows > batch_size and n_views:  # no larger than it need be
        assert (rows - batch_size) * (1 + n_views) < 32 or rows * 4 * n_features <= 16 << 20


# --- what the machine may do ------------------------------------------------------------------------------------------


def test_too_little_space_is_told_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(NoSpace, match=r"no space: 3 images of 96 features need about .* MB, 0.0 MB are free"):
        embed(many(tmp_path / "images", 3), tmp_path / "s.h5", SPEC)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_a_network_that_gives_nan_stops_the_pass(tmp_path: Path) -> None:
    state = load(SPEC).module.state_dict()
    state["conv1.0.weight"][0] = float("nan")
    safetensors.torch.save_file(
        {key: value.contiguous() for key, value in state.items()}, tmp_path / "broken.safetensors"
    )
    with pytest.raises(InputOutputError, match="not finite for 40 of 40"):
        embed(
            many(tmp_path / "images", 40),
            tmp_path / "s.h5",
            replace(SPEC, weights=str(tmp_path / "broken.safetensors")),
        )
    assert not (tmp_path / "s.h5").exists()


def test_decoders_stay_within_their_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the network is, only so many decoded images wait for it: memory does not grow with their number."""
    manifest = many(tmp_path / "images", 200)
    begun: list[Path] = []
    taken: list[np.ndarray] = []
    prepare, vectors = Decoders.prepare, Network.vectors

    def watched(network: Network, images: list[np.ndarray]) -> dict[str, np.ndarray]:
        taken.extend(images)
        batches = (network.forward.n_streams + 2) * network.forward.batch_size
        assert len(begun) - len(taken) <= module._READ_AHEAD + 2 * 3 + batches
        return vectors(network, images)

    monkeypatch.setattr(Decoders, "prepare", lambda self, path, *rest: begun.append(path) or prepare(self, path, *rest))
    monkeypatch.setattr(Network, "vectors", watched)
    embed(manifest, tmp_path / "s.h5", SPEC, n_workers=3)
    assert len(begun) == 200


def test_a_store_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 70)
    for n in (1, 5):
        embed(manifest, tmp_path / f"{n}.h5", SPEC, n_workers=n)
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "5.h5").read_bytes()


# --- what an attack found ---------------------------------------------------------------------------------------------


def stopped_after(n_parts: int, manifest: Manifest, path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= n_parts * PART_ROWS:
            raise Stop

    with pytest.raises(Stop):
        embed(manifest, path, SPEC, part_rows=PART_ROWS, on_progress=stop)


def check_rows_are_their_images(path: Path, manifest: Manifest) -> None:
    """Every row's digest is that of its file, and its vector that of its pixels."""
    backbone = load(SPEC)
    with Store.open(path) as store:
        features, digests = store.features(), store.content_sha256
        assert store.image_ids == manifest.image_ids
        for file, vector, digest in zip(manifest.paths, features, digests, strict=True):
            data = file.read_bytes()
            assert digest == digest_bytes(data)
            pixels = backbone.transform(images.decode(data))
            pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
            expected = backbone(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])["pooled"][0].numpy()
            assert np.abs(vector - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_resumed_pass_over_changed_files_keeps_vectors_by_content(tmp_path: Path) -> None:
    """Between stop and resume a CSV is re-sorted, an image overwritten, one repaired and one added."""
    many(tmp_path / "images", 96)
    names = [f"{i:04d}.png" for i in range(96)]
    (tmp_path / "images" / "0007.png").write_bytes(b"")
    source = tmp_path / "list.csv"
    source.write_text("image_id,path\n" + "".join(f"row{i},images/{name}\n" for i, name in enumerate(names)))
    stopped_after(2, Manifest.read(source), tmp_path / "s.h5")
    draw(tmp_path / "images" / "0003.png", 1003)
    draw(tmp_path / "images" / "0007.png", 7)
    draw(tmp_path / "images" / "9999.png", 9999)
    shuffled = ["9999.png", *reversed(names)]
    source.write_text("image_id,path\n" + "".join(f"row{i},images/{name}\n" for i, name in enumerate(shuffled)))
    manifest = Manifest.read(source)
    done = embed(manifest, tmp_path / "s.h5", SPEC, part_rows=PART_ROWS)
    assert (done.counts.found, done.counts.failed) == (97, 0)
    assert done.counts.reused == 62  # two parts of 32, but for the image that failed and the one overwritten
    check_rows_are_their_images(tmp_path / "s.h5", manifest)
    assert not (tmp_path / "s.h5.partial").exists()


def test_a_part_under_another_parts_name_is_not_taken_for_it(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 96)
    stopped_after(2, manifest, tmp_path / "s.h5")
    (first,) = (tmp_path / "s.h5.partial").glob("part-0000000000-*")
    shutil.copy(first, first.with_name(first.name.replace("part-0000000000", "part-0000000064")))
    embed(manifest, tmp_path / "s.h5", SPEC, part_rows=PART_ROWS)
    embed(manifest, tmp_path / "other.h5", SPEC, part_rows=PART_ROWS)
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "other.h5").read_bytes()


def test_strange_files_beside_the_parts_stop_nothing(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 96)
    stopped_after(1, manifest, tmp_path / "s.h5")
    for name in (".DS_Store", "part-copy.h5", "old-x.h5"):
        (tmp_path / "s.h5.partial" / name).write_bytes(b"x")
    (tmp_path / "s.h5.partial" / "plan.json").write_text("")
    assert embed(manifest, tmp_path / "s.h5", SPEC, part_rows=PART_ROWS).counts.embedded == 96
    check_rows_are_their_images(tmp_path / "s.h5", manifest)


@pytest.mark.parametrize("call", range(1, 20, 3))
def test_a_signal_while_publishing_publishes_all_or_nothing(
    tmp_path: Path,
    call: int,
    undisturbed: Callable[[int], tuple[Manifest, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C in the middle of a write by HDF5, which swallows exceptions of its callbacks."""
    manifest, whole = undisturbed(40)
    calls = []
    real = durable.write_all

    def interrupted(file: object, data: bytes) -> None:
        calls.append(len(data))
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        real(file, data)

    monkeypatch.setattr(durable, "write_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed(manifest, tmp_path / "s.h5", SPEC)
    assert len(calls) >= call
    assert not (tmp_path / "s.h5").exists()
    monkeypatch.undo()
    embed(manifest, tmp_path / "s.h5", SPEC)
    assert (tmp_path / "s.h5").read_bytes() == whole.read_bytes()


def test_a_store_that_is_a_link_stays_a_link(tmp_path: Path) -> None:
    manifest = many(tmp_path / "images", 2)
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk" / "real.h5", tmp_path / "s.h5")
    embed(manifest, tmp_path / "s.h5", SPEC)
    assert (tmp_path / "s.h5").is_symlink()
    assert len(Store.open(tmp_path / "disk" / "real.h5")) == 2


@pytest.mark.parametrize("name", [".", "", "x" * 250])
def test_a_store_needs_a_usable_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = many(tmp_path / "images", 1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="-o"):
        embed(manifest, Path(name), SPEC)


def test_what_killed_writers_left_beside_the_store_is_removed(tmp_path: Path) -> None:
    """Of the store, of its list of failures, and of its memory, whose name begins with a dot of its own."""
    manifest = many(tmp_path / "images", 2)
    for name in (".s.h5.7.tmp", ".s.h5.failures.csv.7.tmp", "..s.h5.seen.7.tmp"):
        (tmp_path / name).write_bytes(b"half")
    embed(manifest, tmp_path / "s.h5", SPEC)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s.h5.seen", "images", "s.h5"]


def test_an_error_of_the_operating_system_is_never_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here while the parts are removed, once they are published: the next pass goes on."""
    manifest = many(tmp_path / "images", 2)
    real = os.unlink

    def fails(path: Path, **options: object) -> None:
        if Path(path).name.startswith("part-"):
            raise OSError(errno.EIO, "Input/output error")
        real(path, **options)

    monkeypatch.setattr(os, "unlink", fails)
    with pytest.raises(InputOutputError, match=r"writing .*s\.h5: input/output error"):
        embed(manifest, tmp_path / "s.h5", SPEC)
    monkeypatch.undo()
    embed(manifest, tmp_path / "s.h5", SPEC)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".s.h5.seen", "images", "s.h5"]


# --- files that change ------------------------------------------------------------------------------------------------


def test_a_resumed_pass_sees_a_file_that_was_overwritten(tmp_path: Path) -> None:
    """The same names in the same order: only the stamps of the files tell that the plan no longer holds."""
    manifest = many(tmp_path / "images", 96)
    stopped_after(2, manifest, tmp_path / "s.h5")
    draw(manifest.paths[3], 1003)
    embed(manifest, tmp_path / "s.h5", SPEC, part_rows=PART_ROWS)
    check_rows_are_their_images(tmp_path / "s.h5", manifest)


def test_a_change_whose_time_was_set_back_is_seen(tmp_path: Path) -> None:
    """Same size, same inode, same time of change of its bytes: ctime cannot be set by a program."""
    manifest = many(tmp_path / "images", 3)
    for path in manifest.paths:
        Image.open(path).convert("L").save(path, compress_level=0)
    time.sleep(0.3)
    embed(manifest, tmp_path / "s.h5", SPEC)
    before = manifest.paths[1].stat()
    Image.open(manifest.paths[2]).transpose(Image.Transpose.ROTATE_180).save(manifest.paths[1], compress_level=0)
    os.utime(manifest.paths[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    after = manifest.paths[1].stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert embed(manifest, tmp_path / "s.h5", SPEC).counts.embedded == 1
    check_rows_are_their_images(tmp_path / "s.h5", manifest)


def test_a_file_that_changed_just_before_the_plan_is_read_again(tmp_path: Path) -> None:
    """Within one tick of the file system's clock, a second change would leave its times as they are."""
    manifest = many(tmp_path / "images", 1)
    plan = Plan.of(manifest, FileCache())
    plan.contents = [digest_bytes(manifest.paths[0].read_bytes())]
    changed_ns = manifest.paths[0].stat().st_ctime_ns
    for planned_ns, is_kept in ((changed_ns + 1_000_000, False), (changed_ns + 10_000_000_000, True)):
        seen = FileCache()
        plan.remember(seen, planned_ns)
        assert bool(seen.files) is is_kept


def test_a_file_that_changes_after_the_plan_fails_as_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = many(tmp_path / "images", 3)
    planned = Plan.of

    def then_changed(manifest: Manifest, seen: FileCache) -> Plan:
        plan = planned(manifest, seen)
        draw(manifest.paths[1], 99)
        return plan

    monkeypatch.setattr(Plan, "of", staticmethod(then_changed))
    done = embed(manifest, tmp_path / "s.h5", SPEC)
    assert {image_id: code for image_id, (code, _) in done.failures.items()} == {"0001.png": "changed"}


def test_images_with_the_same_bytes_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one part, and in two."""
    manifest = many(tmp_path / "images", 70)
    for twin in (6, 40):
        shutil.copy(manifest.paths[5], manifest.paths[twin])
    computed = []
    vectors = Network.vectors
    monkeypatch.setattr(Network, "vectors", lambda self, batch: computed.append(len(batch)) or vectors(self, batch))
    done = embed(manifest, tmp_path / "s.h5", SPEC, part_rows=PART_ROWS)
    assert (sum(computed), done.n_duplicates, done.counts.embedded) == (68, 2, 70)
