"""One pass for several stores, feature maps, boundaries, views: each array as it is alone, nothing computed twice."""

import json
import shutil
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featcache import images
from featcache.backbones import load
from featcache.embedding import embed, embed_all
from featcache.embedding.forward import Forward, Streams
from featcache.embedding.network import Network
from featcache.errors import IdentityMismatch
from featcache.identity import digest_bytes
from featcache.images import augment
from featcache.images.workers import Decoders, Prepared
from featcache.manifest import Manifest
from featcache.specs import AugmentedCopies, BackboneSpec, DecodeSpec
from featcache.store import KnownVectors, Part, PartFolder, Store, lookup, publish
from tests.conftest import SMALL, draw
from tests.test_cli import featcache

BOTH = ("pooled", "grid")
A = BackboneSpec(SMALL, "random:0", input_size=32, taps=BOTH)
B = BackboneSpec("test_efficientnet", "random:0", input_size=48, taps=("pooled", "boundary"))  # of another transform
C = BackboneSpec("test_byobnet", "random:0", input_size=32, taps=BOTH)  # of the transform of A
VIEWS = AugmentedCopies(2, seed=7)
PART_ROWS = 16
N, FAILED, TWINS = 40, 20, {6: 5, 17: 15, 36: 2}  # in the same part, in the next one, and far away
N_DISTINCT = N - len(TWINS) - 1
GRID = {"grid": (96, 1, 1)}  # of A
BOUNDARY = {"boundary": (48, 3, 3), "boundary_views": (2, 48, 3, 3)}  # of B
ARGUMENTS = ("--weights", "random:0", "--input-size", "32")
SEVERAL = ("--backbone", SMALL, "--backbone", "test_efficientnet")


class Stop(Exception):
    pass


def stop_at(rows: int) -> Callable[[int, int], None]:
    def stop(done: int, total: int) -> None:
        if done >= rows:
            raise Stop

    return stop


def arrays(path: Path) -> dict[str, np.ndarray]:
    with Store.open(path) as store:
        return {tap: store.features(tap) for tap in store.taps}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Images of two modes and sizes; one of them is empty, and some are the same. Never to be changed."""
    root = tmp_path_factory.mktemp("pictures") / "images"
    for i in range(N):
        draw(root / f"{i:04d}.png", i, size=((40, 36), (30, 50))[i % 3 % 2], mode=("L", "RGB")[i % 2])
    for twin, first in TWINS.items():
        shutil.copy(root / f"{first:04d}.png", root / f"{twin:04d}.png")
    (root / f"{FAILED:04d}.png").write_bytes(b"")
    time.sleep(0.15)  # files of this very moment are not remembered
    return Manifest.read(root)


@pytest.fixture(scope="module")
def alone(manifest: Manifest) -> Mapping[str, Path]:
    """The stores of undisturbed passes, one for each of A, B and C. To be copied, never to be changed."""
    folder = manifest.source.parent
    for name, spec in (("A", A), ("B", B), ("C", C)):
        embed(manifest, folder / f"{name}.h5", spec, augmentations=VIEWS, part_rows=PART_ROWS)
    return {name: folder / f"{name}.h5" for name in "ABC"}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many images and views each network computes from now on."""
    counts: Counter[str] = Counter()
    real = Network.vectors

    def vectors(self: Network, batch: list[np.ndarray]) -> Mapping[str, np.ndarray]:
        counts[self.answer.backbone] += len(batch)
        return real(self, batch)

    monkeypatch.setattr(Network, "vectors", vectors)
    return counts


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is given to a decoder from now on."""
    counts: Counter[str] = Counter()
    real = Decoders.prepare

    def prepare(self: Decoders, path: Path, *rest: object) -> Prepared:
        counts[path.name] += 1
        return real(self, path, *rest)

    monkeypatch.setattr(Decoders, "prepare", prepare)
    return counts


def pixels_of(backbone: BackboneSpec, path: Path) -> list[np.ndarray]:
    """The image and its views as a network sees them, made step by step."""
    data = path.read_bytes()
    transform, image = load(backbone).transform, images.decode(data, DecodeSpec())
    return [transform(image), *augment.views(image, transform, VIEWS, digest_bytes(data))]


# --- several backbones ------------------------------------------------------------------------------------------------


def test_each_store_is_byte_for_byte_that_of_a_pass_of_its_own_and_every_image_is_decoded_once(
    manifest: Manifest,
    alone: Mapping[str, Path],
    tmp_path: Path,
    computed: Counter[str],
    decoded: Counter[str],
) -> None:
    specs = {tmp_path / "a.h5": A, tmp_path / "b.h5": B, tmp_path / "c.h5": C}
    done = embed_all(manifest, specs, augmentations=VIEWS, part_rows=PART_ROWS)
    assert [each.store for each in done] == list(specs)
    for name, path in zip("ABC", specs, strict=True):
        assert path.read_bytes() == alone[name].read_bytes()
    assert set(decoded) == {path.name for path in manifest.paths}
    assert set(decoded.values()) == {1}
    assert set(computed.values()) == {3 * N_DISTINCT}
    assert len(computed) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        name for letter in "abc" for name in (f".{letter}.h5.seen", f"{letter}.h5", f"{letter}.h5.failures.csv")
    )


@pytest.fixture
def in_one_part(manifest: Manifest, tmp_path: Path) -> list[Path]:
    """The stores of A and B, of a pass with parts of the default size."""
    specs = {tmp_path / "a.h5": A, tmp_path / "b.h5": B}
    embed_all(manifest, specs, augmentations=VIEWS)
    return list(specs)


def test_the_size_of_the_parts_changes_no_value(in_one_part: list[Path], alone: Mapping[str, Path]) -> None:
    for name, path in zip("AB", in_one_part, strict=True):
        with Store.open(path) as store, Store.open(alone[name]) as other:
            assert store.datasets_sha256 == other.datasets_sha256
            assert (store.identity, store.environments) == (other.identity, other.environments)


def test_the_size_of_the_parts_changes_no_byte(in_one_part: list[Path], alone: Mapping[str, Path]) -> None:
    for name, path in zip("AB", in_one_part, strict=True):
        assert path.read_bytes() == alone[name].read_bytes()


@pytest.mark.parametrize("is_remembered", [True, False])
def test_a_store_that_is_there_already_costs_nothing(
    is_remembered: bool,
    manifest: Manifest,
    alone: Mapping[str, Path],
    tmp_path: Path,
    computed: Counter[str],
    decoded: Counter[str],
) -> None:
    shutil.copy(alone["A"], tmp_path / "a.h5")
    if is_remembered:
        shutil.copy(alone["A"].with_name(".A.h5.seen"), tmp_path / ".a.h5.seen")
    specs = {tmp_path / "a.h5": A, tmp_path / "b.h5": B}
    first, second = embed_all(manifest, specs, augmentations=VIEWS, part_rows=PART_ROWS)
    assert (first.counts.embedded, first.counts.reused, first.counts.failed) == (0, N - 1, 1)
    assert (second.counts.embedded, second.counts.reused, second.counts.failed) == (N - 1, 0, 1)
    assert computed == {"test_efficientnet": 3 * N_DISTINCT}
    assert set(decoded.values()) == {1}
    for name in "AB":
        assert (tmp_path / f"{name.lower()}.h5").read_bytes() == alone[name].read_bytes()


def test_where_all_is_there_no_decoder_is_asked(
    manifest: Manifest, tmp_path: Path, computed: Counter[str], decoded: Counter[str]
) -> None:
    good = [path for i, path in enumerate(manifest.paths) if i < 8 and i not in TWINS]
    for path in good:
        (tmp_path / "images").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "images")
    time.sleep(0.15)
    few, specs = Manifest.read(tmp_path / "images"), {tmp_path / "a.h5": A, tmp_path / "b.h5": B}
    embed_all(few, specs, augmentations=VIEWS)
    before = [path.read_bytes() for path in specs]
    computed.clear()
    decoded.clear()
    done = embed_all(few, specs, augmentations=VIEWS)
    assert [each.counts.reused for each in done] == [len(good)] * 2
    assert not computed
    assert not decoded
    assert [path.read_bytes() for path in specs] == before


@pytest.mark.slow
def test_of_stores_that_are_done_to_different_parts_each_gets_what_it_lacks(
    manifest: Manifest, alone: Mapping[str, Path], tmp_path: Path, computed: Counter[str], decoded: Counter[str]
) -> None:
    specs = {tmp_path / "a.h5": A, tmp_path / "b.h5": B, tmp_path / "c.h5": C}
    for n_parts, (path, spec) in enumerate(specs.items()):
        if n_parts:
            with pytest.raises(Stop):
                embed(
                    manifest,
                    path,
                    spec,
                    augmentations=VIEWS,
                    part_rows=PART_ROWS,
                    on_progress=stop_at(n_parts * PART_ROWS),
                )
    computed.clear()
    decoded.clear()
    done = embed_all(manifest, specs, augmentations=VIEWS, part_rows=PART_ROWS)
    assert [each.n_resumed for each in done] == [0, 16, 32]
    # By rows: 16 with one twin; 16 with one failure and a twin of the first 16; 8 with a twin of the first 16.
    assert computed == {SMALL: 3 * (15 + 14 + 7), "test_efficientnet": 3 * (14 + 7), "test_byobnet": 3 * 7}
    assert set(decoded.values()) == {1}
    assert [(path.read_bytes()) for path in specs] == [alone[name].read_bytes() for name in "ABC"]


@pytest.mark.parametrize("rows", [16, 32, 40])
def test_a_pass_with_everything_on_that_was_stopped_goes_on_to_the_same_bytes(
    rows: int, manifest: Manifest, alone: Mapping[str, Path], tmp_path: Path, computed: Counter[str]
) -> None:
    """Two backbones, a feature map, a boundary and views."""
    specs = {tmp_path / "a.h5": A, tmp_path / "b.h5": B}
    with pytest.raises(Stop):
        embed_all(manifest, specs, augmentations=VIEWS, part_rows=PART_ROWS, on_progress=stop_at(rows))
    assert not any(path.exists() for path in specs)
    computed.clear()
    notes: list[str] = []
    done = embed_all(manifest, specs, augmentations=VIEWS, part_rows=PART_ROWS, on_note=notes.append)
    assert [each.n_resumed for each in done] == [rows] * 2
    assert notes == [f"resuming: {-(-rows // PART_ROWS)} of 3 parts are done"] * 2
    n_left = {16: 14 + 7, 32: 7, 40: 0}[rows]
    assert computed == Counter({SMALL: 3 * n_left, "test_efficientnet": 3 * n_left}) - Counter()
    for name, path in zip("AB", specs, strict=True):
        assert path.read_bytes() == alone[name].read_bytes()
        assert featcache("verify", path, cwd=tmp_path).returncode == 0


def test_twins_in_neighbouring_parts_are_computed_once_while_the_first_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: Counter[str]
) -> None:
    """The last row of each part is the first of the next, and no part is on disk when the next has all its images."""
    for i in range(12):
        draw(tmp_path / "images" / f"{i:04d}.png", i - (i in (4, 8)))
    real = PartFolder.write
    monkeypatch.setattr(PartFolder, "write", lambda self, part: time.sleep(0.1) or real(self, part))
    specs = {tmp_path / "a.h5": A, tmp_path / "b.h5": B}
    done = embed_all(Manifest.read(tmp_path / "images"), specs, augmentations=VIEWS, part_rows=4)
    assert [(each.counts.embedded, each.n_duplicates) for each in done] == [(12, 2)] * 2
    assert computed == {SMALL: 3 * 10, "test_efficientnet": 3 * 10}
    for path in specs:
        for values in arrays(path).values():
            assert np.array_equal(values[[3, 7]], values[[4, 8]])
            assert not np.array_equal(values[0], values[1])


def test_an_image_that_fails_fails_in_all_and_drops_its_row_of_every_array(
    manifest: Manifest, alone: Mapping[str, Path]
) -> None:
    good = [image_id for i, image_id in enumerate(manifest.image_ids) if i != FAILED]
    for name, dim, maps in (("A", 96, GRID), ("B", 256, BOUNDARY)):
        with Store.open(alone[name]) as store:
            assert store.image_ids == good
            assert store.failures == {f"{FAILED:04d}.png": ("empty", "zero bytes")}
            shapes = {tap: store.features(tap).shape for tap in store.taps}
        n = N - 1
        assert shapes == {"pooled": (n, dim), "views": (n, 2, dim), "view_parameters": (n, 2, 5)} | {
            tap: (n, *shape) for tap, shape in maps.items()
        }


@pytest.mark.parametrize("is_first", [True, False])
def test_another_identity_at_one_of_the_paths_refuses_all_before_anything_is_computed(
    is_first: bool, manifest: Manifest, alone: Mapping[str, Path], tmp_path: Path, decoded: Counter[str]
) -> None:
    shutil.copy(alone["B"], tmp_path / "b.h5")
    specs = {tmp_path / "a.h5": A, tmp_path / "b.h5": replace(B, crop_pct=0.5)}
    if is_first:
        specs = dict(reversed(specs.items()))
    with pytest.raises(IdentityMismatch, match=r"(?s)b\.h5 holds other vectors than .*\n  transform\.crop_pct: "):
        embed_all(manifest, specs, augmentations=VIEWS)
    assert not decoded
    assert [path.name for path in tmp_path.iterdir()] == ["b.h5"]
    assert (tmp_path / "b.h5").read_bytes() == alone["B"].read_bytes()


# --- on the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-o", "x.h5", *SEVERAL), 2, "-o x.h5: 2 backbones make as many stores; give the name of a folder."),
        (("-o", "file", *SEVERAL), 2, "-o file: 2 backbones make as many stores; give the name of a folder."),
        (
            ("-o", "out", "--backbone", SMALL, *SEVERAL),
            2,
            f"--backbone names each network once, got {SMALL}, {SMALL}",
        ),
        (("-o", "file/out", *SEVERAL), 2, "-o file/out: a folder of that name cannot be made, a file is in its place."),
        (("-o", "/sys/out", *SEVERAL), 21, "making /sys/out: "),  # where even root can make nothing
    ],
)
def test_several_backbones_need_a_folder_and_each_its_own_name(
    arguments: tuple[str, ...], code: int, message: str, manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    done = featcache("embed", manifest.source, *arguments, *ARGUMENTS, cwd=tmp_path)
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"featcache: {message}")
    assert done.returncode == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_script_gets_all_stores_in_one_answer(manifest: Manifest, tmp_path: Path) -> None:
    done = featcache("embed", manifest.source, "-o", "out", *SEVERAL, *ARGUMENTS, "--json", cwd=tmp_path)
    assert done.returncode == 3  # one image failed
    answer = json.loads(done.stdout)
    assert list(answer) == ["stores"]
    assert [each["store"] for each in answer["stores"]] == [f"out/{SMALL}.h5", "out/test_efficientnet.h5"]
    for each in answer["stores"]:
        assert (each["found"], each["embedded"], each["failed"], each["duplicates"]) == (N, N - 1, 1, 3)
        assert list(each["shapes"]) == ["pooled"]
        with Store.open(tmp_path / each["store"]) as store:
            assert (len(store), store.identity_sha256) == (N - 1, each["identity"])
        assert (tmp_path / f"{each['store']}.failures.csv").is_file()
    people = featcache("embed", manifest.source, "-o", "out", *SEVERAL, *ARGUMENTS, cwd=tmp_path)
    assert people.stdout.count(f"embedded 0 + reused {N - 1} + failed 1") == 2


# --- feature maps -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mapped(class_pictures: Manifest) -> Mapping[str, Path]:
    """Stores with and without feature maps, and one of half the precision."""
    folder = class_pictures.source.parent
    for name in ("resnet18", "vgg11"):
        spec = BackboneSpec(name, "random:0", input_size=64, taps=BOTH)
        embed_all(
            class_pictures, {folder / f"{name}.h5": spec, folder / f"{name}-pooled.h5": replace(spec, taps=("pooled",))}
        )
    half = BackboneSpec("resnet18", "random:0", input_size=64, taps=BOTH)
    embed(class_pictures, folder / "half.h5", half, dtype="float16")
    return {path.stem: path for path in folder.glob("*.h5")}


@pytest.fixture(scope="module")
def class_pictures(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("classes") / "images"
    for i in range(12):
        draw(root / ("train", "test")[i % 3 == 2] / ("normal", "sick")[i % 2] / f"{i}.png", i, size=(80, 70))
    return Manifest.read(root)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_a_feature_map_is_that_of_a_plain_computation(
    name: str, mapped: Mapping[str, Path], class_pictures: Manifest
) -> None:
    backbone = load(BackboneSpec(name, "random:0", input_size=64))
    mean, std = (np.array(values)[:, None, None] for values in (backbone.transform.mean, backbone.transform.std))
    expected = []
    for path in class_pictures.paths:
        pixels = backbone.transform(images.decode(path.read_bytes()))
        x = (np.stack([pixels] * 3) / 255 - mean) / std
        with torch.inference_mode():
            expected.append(backbone.module.forward_features(torch.from_numpy(x[None]).float())[0].numpy())
    with Store.open(mapped[name]) as store:
        assert store.identity["backbone"]["tap"] == "pooled+grid"
        assert store.row_shape("grid") == (512, 2, 2)
        grid, pooled = store.features("grid"), store.features()
    np.testing.assert_allclose(grid, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(pooled, grid.mean(axis=(2, 3)), rtol=1e-5, atol=1e-6 * np.abs(pooled).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_the_feature_map_beside_it_leaves_the_vector_as_it_is(name: str, mapped: Mapping[str, Path]) -> None:
    with_map, without = arrays(mapped[name]), arrays(mapped[f"{name}-pooled"])
    assert list(without) == ["pooled"]
    size = np.abs(without["pooled"]).max()
    np.testing.assert_allclose(with_map["pooled"], without["pooled"], rtol=1e-6, atol=1e-6 * size)


@pytest.mark.slow
def test_float16_halves_the_feature_map_too(mapped: Mapping[str, Path]) -> None:
    with Store.open(mapped["half"]) as half, Store.open(mapped["resnet18"]) as full:
        for tap in BOTH:
            assert (half.dtype(tap), full.dtype(tap)) == ("float16", "float32")
            assert np.array_equal(half.features(tap), full.features(tap).astype(np.float16).astype(np.float32))
    n_bytes = [mapped[name].stat().st_size for name in ("half", "resnet18")]
    n_values = 12 * (512 + 512 * 4)
    assert n_bytes[1] - n_bytes[0] == pytest.approx(2 * n_values, rel=0.05)


@pytest.mark.slow
def test_a_head_is_trained_on_feature_maps(mapped: Mapping[str, Path], tmp_path: Path) -> None:
    arguments = ("--head", "flatten-mlp", "--epochs", "2", "--hidden-sizes", "4", "--json", "-o", "run")
    done = featcache("train-head", mapped["resnet18"], *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    refused = featcache("train-head", mapped["resnet18-pooled"], *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert "has no 'grid' features" in refused.stderr


@pytest.mark.slow
def test_a_feature_map_asked_of_a_store_without_one_is_refused(mapped: Mapping[str, Path], tmp_path: Path) -> None:
    path = mapped["resnet18-pooled"]
    before = path.read_bytes()
    arguments = ("-o", path, "--backbone", "resnet18", "--weights", "random:0", "--input-size", "64")
    done = featcache("embed", path.with_name("images"), *arguments, "--tap", "pooled", "--tap", "grid", cwd=tmp_path)
    assert done.returncode == 12
    assert "\n  backbone.tap: pooled here, pooled+grid asked\n" in done.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("taps", [("grid",), ("pooled", "logits"), ()])
def test_the_vector_is_always_there_and_other_taps_do_not_exist(taps: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="`tap` must be pooled, pooled and grid, or pooled and boundary, got "):
        replace(A, taps=taps)


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "spec"), [("A", A), ("B", B)])
def test_the_vectors_of_views_are_the_networks_on_their_pixels(
    name: str, spec: BackboneSpec, manifest: Manifest, alone: Mapping[str, Path]
) -> None:
    """Bit for bit, wherever in a batch they were; and so are their boundaries."""
    _, other = spec.taps
    rows = [0, 1, 5, 30]
    forward = Forward(load(spec), "off", 0, print)
    with Streams() as streams:
        found = [
            streams.submit(forward, forward.vectors, pixels_of(spec, manifest.paths[row])).result() for row in rows
        ]
    with Store.open(alone[name]) as store:
        places = [store.image_ids.index(manifest.image_ids[row]) for row in rows]
    held = arrays(alone[name])
    for place, expected in zip(places, found, strict=True):
        assert np.array_equal(held["pooled"][place], expected["pooled"][0])
        assert np.array_equal(held[other][place], expected[other][0])
        if other == "boundary":
            assert np.array_equal(held["boundary_views"][place], expected["boundary"][1:])
        assert np.array_equal(held["views"][place], expected["pooled"][1:])
    distances = np.linalg.norm(held["views"] - held["pooled"][:, None], axis=2)
    assert distances.min() > 0


def test_the_parameters_of_views_are_those_of_the_files_bytes(manifest: Manifest, alone: Mapping[str, Path]) -> None:
    with Store.open(alone["A"]) as store:
        expected = [VIEWS.parameters(digest) for digest in store.content_sha256]
        assert store.dtype("view_parameters") == "float32"
        assert np.array_equal(store.features("view_parameters"), expected)
        assert store.identity["views"] == VIEWS.identity()
    assert np.array_equal(arrays(alone["A"])["view_parameters"], arrays(alone["B"])["view_parameters"])


def test_twins_have_the_same_views(manifest: Manifest, alone: Mapping[str, Path]) -> None:
    with Store.open(alone["B"]) as store:
        place = {image_id: row for row, image_id in enumerate(store.image_ids)}
    for values in arrays(alone["B"]).values():
        for twin, first in TWINS.items():
            assert np.array_equal(values[place[f"{twin:04d}.png"]], values[place[f"{first:04d}.png"]])


def test_parameters_stay_float32_in_a_store_of_float16(manifest: Manifest, tmp_path: Path) -> None:
    done = embed(manifest, tmp_path / "s.h5", A, augmentations=VIEWS, dtype="float16")
    with Store.open(tmp_path / "s.h5") as store:
        kinds = {tap: store.dtype(tap) for tap in store.taps}
        assert kinds == {"pooled": "float16", "grid": "float16", "views": "float16", "view_parameters": "float32"}
        expected = [VIEWS.parameters(digest) for digest in store.content_sha256]
        assert np.array_equal(store.features("view_parameters"), expected)
    before = (tmp_path / "s.h5").read_bytes()
    (tmp_path / "s.h5.failures.csv").unlink()
    again = embed(manifest, tmp_path / "s.h5", A, augmentations=VIEWS, dtype="float16", rehash=True)
    assert (done.counts.embedded, again.counts.reused) == (N - 1, N - 1)
    assert (tmp_path / "s.h5").read_bytes() == before


@pytest.mark.parametrize("is_stopped", [False, True])
def test_images_renamed_added_and_reordered_keep_their_vectors_views_and_parameters(
    is_stopped: bool, manifest: Manifest, alone: Mapping[str, Path], tmp_path: Path, computed: Counter[str]
) -> None:
    """Also those in the parts of a stopped pass, whose plan no longer holds."""
    shutil.copytree(manifest.source, tmp_path / "images")
    old, specs = Manifest.read(tmp_path / "images"), {tmp_path / "a.h5": A, tmp_path / "b.h5": B}
    if is_stopped:
        with pytest.raises(Stop):
            embed_all(old, specs, augmentations=VIEWS, part_rows=PART_ROWS, on_progress=stop_at(32))
    else:
        for path, name in zip(specs, "AB", strict=True):
            shutil.copy(alone[name], path)
    for i, path in enumerate(old.paths):
        path.rename(path.with_name(f"{N - i:04d}-again.png"))
    draw(tmp_path / "images" / "0018-new.png", 1001, mode="RGB")
    computed.clear()
    done = embed_all(Manifest.read(tmp_path / "images"), specs, augmentations=VIEWS, part_rows=PART_ROWS)
    n_lost = 7 if is_stopped else 0  # the last part, but for its twin
    assert computed == {SMALL: 3 * (1 + n_lost), "test_efficientnet": 3 * (1 + n_lost)}
    assert [(each.counts.embedded, each.counts.reused) for each in done] == [(1 + n_lost, N - 1 - n_lost)] * 2
    for path, name in zip(specs, "AB", strict=True):
        before, after = arrays(alone[name]), arrays(path)
        with Store.open(alone[name]) as first, Store.open(path) as second:
            place = {digest: row for row, digest in enumerate(first.content_sha256)}
            new = second.image_ids.index("0018-new.png")
            rows = [row for row in range(N) if row != new]
            olds = [place[second.content_sha256[row]] for row in rows]
            assert second.image_ids == sorted(second.image_ids)
            assert olds != sorted(olds)
            assert np.array_equal(after["view_parameters"][new], VIEWS.parameters(second.content_sha256[new]))
        for tap, values in after.items():
            assert np.array_equal(values[rows], before[tap][olds])
            assert np.isfinite(values[new]).all()


def test_other_views_are_other_vectors(manifest: Manifest, alone: Mapping[str, Path], tmp_path: Path) -> None:
    shutil.copy(alone["A"], tmp_path / "s.h5")
    arguments = ("-o", "s.h5", "--backbone", SMALL, *ARGUMENTS, "--tap", "pooled", "--tap", "grid")
    for views, field in (
        (("--augmentations", "2", "--augmentation-seed", "8"), "views.seed: 7 here, 8 asked"),
        (("--augmentations", "3", "--augmentation-seed", "7"), "views.n: 2 here, 3 asked"),
        ((), "views.n: 2 here, absent asked"),
    ):
        done = featcache("embed", manifest.source, *arguments, *views, cwd=tmp_path)
        assert done.returncode == 12
        assert f"\n  {field}\n" in done.stderr
    same = ("--augmentations", "2", "--augmentation-seed", "7", "--part-rows", PART_ROWS)
    again = featcache("embed", manifest.source, *arguments, *same, cwd=tmp_path)
    assert f"embedded 0 + reused {N - 1} + failed 1" in again.stdout
    assert (tmp_path / "s.h5").read_bytes() == alone["A"].read_bytes()


def test_impossible_views_are_a_usage_error(manifest: Manifest, tmp_path: Path) -> None:
    done = featcache(
        "embed", manifest.source, "-o", "s.h5", "--backbone", SMALL, *ARGUMENTS, "--augmentations", "33", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "--augmentations must be from 1 to 32, got 33" in done.stderr


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tap", ["grid", "boundary"])
@pytest.mark.parametrize("of", ["store", "parts"])
def test_of_known_vectors_with_large_rows_few_are_in_memory(
    of: str, tap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """640 rows of 16 KB: 10 MB; asked for twice, in and out of their order. What is kept may take 2 MB."""
    monkeypatch.setattr(lookup, "_KEPT_BYTES", 2 << 20)
    rng, n, step = np.random.default_rng(0), 640, 64
    x = rng.random((n, 4, 32, 32), dtype=np.float32)
    digests = [f"{i:064x}" for i in range(n)]
    folder = PartFolder(tmp_path / "s.h5", {"identity": {}})
    with folder.locked():
        paths = [
            folder.write(
                Part(
                    start,
                    {"pooled": x[start : start + step, 0, 0], tap: x[start : start + step]},
                    digests[start : start + step],
                    np.zeros(step, dtype=np.uint8),
                    {},
                )
            )
            for start in range(0, n, step)
        ]
        publish(tmp_path / "s.h5", folder.heads(), digests, {}, {})
        with Store.open(tmp_path / "s.h5") as store:
            vectors = KnownVectors(store, []) if of == "store" else KnownVectors(None, paths)
            asked = [*range(n), *rng.permutation(n)[:40].tolist()]
            tracemalloc.start()
            try:
                for row in asked:
                    found = vectors.features(digests[row])
                    assert np.array_equal(found[tap], x[row])
                    assert np.array_equal(found["pooled"], x[row, 0, 0])
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    alone = of == "store" and tap == "boundary"  # is not kept at all
    assert peak < (1 << 20 if alone else 6 << 20)  # what is kept, and two blocks of 1 MB that are being read


def test_blocks_are_read_once_while_they_are_asked_for_in_their_order(
    alone: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    real = KnownVectors._read_block
    monkeypatch.setattr(KnownVectors, "_read_block", lambda self, *at: read.append(at) or real(self, *at))
    with Store.open(alone["A"]) as store:
        vectors = KnownVectors(store, [])
        for digest in store.content_sha256:
            vectors.features(digest)
    assert len(read) == 1
