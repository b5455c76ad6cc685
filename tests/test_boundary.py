"""The tensor that enters the last stage, kept beside the vector: the tail of the network makes that vector of it."""

import re
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import featcache
from featcache import images
from featcache.backbones import load, registry
from featcache.backbones.blocks import groups
from featcache.embedding import embed
from featcache.embedding.estimate import forecast
from featcache.errors import CorruptStore, IdentityMismatch, UsageError
from featcache.finetune import unfreeze
from featcache.manifest import Manifest
from featcache.specs import TAPS, AugmentedCopies, BackboneSpec, DecodeSpec
from featcache.store import Part, PartFolder, Store, describe, publish, verify
from tests.conftest import SMALL, draw, make_store
from tests.test_cli import featcache as command

BOTH = ("pooled", "boundary")
VIEWS = AugmentedCopies(2, seed=3)
N = 6
SPEC = BackboneSpec(SMALL, "random:0", input_size=32, taps=BOTH)
# Network -> (input size, the module that the last stage begins with); a vision transformer has one size only.
NETWORKS = {
    SMALL: (32, "layer4"),
    "test_efficientnet": (48, "blocks.4"),
    "resnet18": (64, "layer4"),
    "mobilenetv2_100": (64, "blocks.6"),
    "vgg11": (64, None),
    "densenet121": (64, None),
    "vit_tiny_patch16_224": (224, None),
}
QUICK = (SMALL, "test_efficientnet")


def long_but(quick: tuple[str, ...]) -> list[object]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.long) for name in NETWORKS]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Images of two modes. Never to be changed."""
    root = tmp_path_factory.mktemp("pictures") / "images"
    for i in range(N):
        draw(root / ("normal", "sick")[i % 2] / f"{i}.png", i, size=(90, 80), mode=("L", "RGB")[i % 2])
    return Manifest.read(root)


@pytest.fixture(scope="module")
def small(manifest: Manifest) -> Path:
    """A store with boundaries of images and of views. To be copied, never to be changed."""
    path = manifest.source.parent / "small.h5"
    embed(manifest, path, SPEC, augmentations=VIEWS)
    return path


def tail_of(spec: BackboneSpec) -> torch.nn.Module:
    module = load(replace(spec, taps=("pooled",))).module
    return unfreeze.cut(module, unfreeze.unfrozen(module, "last-stage")).tail


def pooled_by(tail: torch.nn.Module, boundary: np.ndarray) -> np.ndarray:
    """(…, d) of (…, *shape of a boundary), by torch itself and one after another."""
    with torch.inference_mode():
        return np.stack([tail(torch.from_numpy(each[None]))[0].numpy() for each in boundary])


# --- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", long_but(QUICK))
def test_the_tail_makes_the_vector_of_the_boundary_also_of_views(name: str, manifest: Manifest, tmp_path: Path) -> None:
    spec = BackboneSpec(name, "random:0", input_size=NETWORKS[name][0], taps=BOTH)
    embed(manifest, tmp_path / "s.h5", spec, augmentations=VIEWS)
    tail = tail_of(spec)
    with Store.open(tmp_path / "s.h5") as store:
        pooled, boundary = store.features(), store.features("boundary")
        views, of_views = store.features("views"), store.features("boundary_views")
        assert boundary.shape[1:] == store.row_shape("boundary")
        assert of_views.shape == (N, VIEWS.n, *store.row_shape("boundary"))
    for k, vectors in enumerate((pooled, *views.swapaxes(0, 1))):
        found = pooled_by(tail, of_views[:, k - 1] if k else boundary)
        size = np.linalg.norm(vectors, axis=1)
        assert (size > 0).all()
        assert (np.linalg.norm(found - vectors, axis=1) <= 1e-6 * size).all()
    assert np.abs(of_views - boundary[:, None]).max() > 0


@pytest.mark.parametrize("name", [param for param in long_but(QUICK) if NETWORKS[param.values[0]][1]])
def test_the_boundary_is_what_enters_the_last_stage_of_the_whole_network(
    name: str, manifest: Manifest, tmp_path: Path
) -> None:
    size, first = NETWORKS[name]
    spec = BackboneSpec(name, "random:0", input_size=size, taps=BOTH)
    embed(manifest, tmp_path / "s.h5", spec)
    whole, seen = load(replace(spec, taps=("pooled",))), []
    whole.module.get_submodule(first).register_forward_pre_hook(lambda module, given: seen.append(given[0].numpy()))
    path = manifest.paths[0]
    pixels = whole.transform(images.decode(path.read_bytes(), DecodeSpec()))
    with torch.inference_mode():
        whole(torch.from_numpy(np.stack([pixels] * 3)[None]))
    with Store.open(tmp_path / "s.h5") as store:
        held = store.features("boundary", slice(0, 1))
    assert held.shape == seen[0].shape
    np.testing.assert_allclose(held, seen[0], rtol=1e-5, atol=1e-6 * np.abs(held).max())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "shape"),
    [("efficientnet_b1", (192, 8, 8)), ("mobilenetv2_100", (160, 7, 7)), ("resnet50", (1024, 14, 14))],
)
def test_the_boundary_of_a_usual_network_has_this_shape(name: str, shape: tuple[int, ...]) -> None:
    size = {"efficientnet_b1": 240}.get(name, 224)
    assert load(BackboneSpec(name, "random:0", input_size=size, taps=BOTH)).shapes["boundary"] == shape


def test_the_boundary_beside_it_leaves_vectors_and_views_as_they_are(
    small: Path, manifest: Manifest, tmp_path: Path
) -> None:
    embed(manifest, tmp_path / "s.h5", replace(SPEC, taps=("pooled",)), augmentations=VIEWS)
    with Store.open(small) as beside, Store.open(tmp_path / "s.h5") as alone:
        assert alone.taps == ["pooled", "view_parameters", "views"]
        assert beside.taps == sorted([*alone.taps, "boundary", "boundary_views"])
        assert {name: beside.datasets_sha256[name] for name in alone.datasets_sha256} == alone.datasets_sha256


@pytest.mark.long
def test_a_compiled_network_gives_the_boundary_of_torch_to_five_digits(manifest: Manifest, tmp_path: Path) -> None:
    for compile_ in ("on", "off"):
        embed(manifest, tmp_path / f"{compile_}.h5", SPEC, augmentations=VIEWS, compile=compile_)
    with Store.open(tmp_path / "on.h5") as one, Store.open(tmp_path / "off.h5") as other:
        assert one.environments[0]["compiled"] == "inductor"
        for tap in ("pooled", "boundary", "boundary_views"):
            expected = other.features(tap)
            np.testing.assert_allclose(one.features(tap), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# --- its identity -----------------------------------------------------------------------------------------------------


def test_a_store_without_boundaries_is_refused_with_the_difference(manifest: Manifest, tmp_path: Path) -> None:
    arguments = (manifest.source, "-o", "s.h5", "--backbone", SMALL, "--weights", "random:0", "--input-size", "32")
    assert command("embed", *arguments, cwd=tmp_path).returncode == 0
    before = (tmp_path / "s.h5").read_bytes()
    done = command("embed", *arguments, "--tap", "pooled", "--tap", "boundary", cwd=tmp_path)
    assert done.returncode == 12
    assert "\n  backbone.tap: pooled here, pooled+boundary asked\n" in done.stderr
    assert re.search(r"\n  backbone\.boundary: absent here, layer4\.0\.\S+ asked\n", done.stderr)
    assert (tmp_path / "s.h5").read_bytes() == before


def test_another_last_stage_is_another_identity(
    small: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later timm may divide a network into other stages."""
    shutil.copy(small, tmp_path / "s.h5")
    real = groups

    def fewer(module: torch.nn.Module, coarse: bool) -> list[list[str]]:
        *groups, last_but_one, last = real(module, coarse)
        return [*groups, [*last_but_one, *last]]

    monkeypatch.setattr(registry, "groups", fewer)
    (tmp_path / ".s.h5.seen").unlink(missing_ok=True)
    with pytest.raises(IdentityMismatch, match=r"backbone\.boundary: layer4\.0\.\S+ here, layer3\.\S+ asked"):
        embed(manifest, tmp_path / "s.h5", SPEC, augmentations=VIEWS)


def test_a_network_without_anything_before_its_last_stage_has_no_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "groups", lambda module, coarse: [[name for name, _ in module.named_parameters()]])
    with pytest.raises(UsageError, match="the tap boundary: nothing lies before the last stage of this backbone"):
        load(SPEC)


def test_a_network_whose_stages_nobody_knows_has_no_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("timm.models.ByobNet.group_matcher")
    assert load(replace(SPEC, name="test_byobnet", taps=("pooled",))).cut is None
    with pytest.raises(UsageError, match="the tap boundary: the last stage of this backbone is not known"):
        load(replace(SPEC, name="test_byobnet"))


def test_feature_map_and_boundary_together_are_a_usage_error(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`tap` must be pooled, pooled and grid, or pooled and boundary, got "):
        replace(SPEC, taps=("pooled", "grid", "boundary"))
    taps = [word for tap in TAPS for word in ("--tap", tap)]
    done = command("embed", manifest.source, "-o", "s.h5", "--backbone", SMALL, *taps, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


# --- how it is kept ---------------------------------------------------------------------------------------------------


def test_the_taps_that_the_format_lists_are_those_that_are_written(small: Path) -> None:
    text = (Path(featcache.__file__).parent / "FORMAT.md").read_text("utf-8")
    table = text.split("The further taps that featcache writes:")[1].split("Row i of every array")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == {*Store.open(small).taps, "grid"} - {"pooled"}
    kept = text.split("## How things are kept")[1]
    assert "`boundary` and `boundary_views` are read a few rows at a time" in kept
    identity = text.split("## Identity")[1]
    assert "pooled+boundary" in identity
    assert "| `backbone.boundary` | only with that tap" in identity


def test_a_chunk_is_one_row_or_one_view_of_one_row(small: Path) -> None:
    with h5py.File(small) as file:
        for name, n_single in (("boundary", 1), ("boundary_views", 2)):
            dataset = file[f"features/{name}"]
            assert dataset.chunks == (*[1] * n_single, *dataset.shape[n_single:])
            assert dataset.fletcher32
            assert np.isnan(dataset.fillvalue)


def test_info_and_verify_know_it(small: Path, tmp_path: Path) -> None:
    about = describe(small)["features"]
    with Store.open(small) as store:
        shape = list(store.row_shape("boundary"))
    assert about["boundary"] == {"dim": shape, "dtype": "float32"}
    assert about["boundary_views"] == {"dim": [VIEWS.n, *shape], "dtype": "float32"}
    assert {"features/boundary", "features/boundary_views"} <= set(verify(small).datasets)
    shutil.copy(small, tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["features/boundary_views"][4, 1, 0] += 1  # with a right checksum
    with pytest.raises(CorruptStore, match=f"features/boundary_views, rows 0 to {N - 1}: its values do not have"):
        verify(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        for row in (1, 2, 3, 5):
            file["features/boundary"][row] = np.nan
    with pytest.raises(CorruptStore) as caught:
        verify(tmp_path / "s.h5")
    lines = [line.strip() for line in str(caught.value).splitlines() if "features/boundary," in line]
    assert lines == [f"features/boundary, rows {rows}: a value that is not finite" for rows in ("1 to 3", "5 to 5")]


def test_people_are_told_its_shape(manifest: Manifest, small: Path, tmp_path: Path) -> None:
    shutil.copy(small, tmp_path / "s.h5")
    arguments = ("-o", "s.h5", "--backbone", SMALL, "--weights", "random:0", "--input-size", "32")
    views = ("--augmentations", VIEWS.n, "--augmentation-seed", VIEWS.seed, "--tap", "pooled", "--tap", "boundary")
    done = command("embed", manifest.source, *arguments, *views, cwd=tmp_path)
    with Store.open(small) as store:
        shape = " × ".join(map(str, store.row_shape("boundary")))
    assert f"{shape} boundary" in done.stdout, done.stderr


def test_float16_halves_it_too(small: Path, manifest: Manifest, tmp_path: Path) -> None:
    embed(manifest, tmp_path / "s.h5", SPEC, augmentations=VIEWS, dtype="float16")
    with Store.open(tmp_path / "s.h5") as half, Store.open(small) as full:
        for tap in ("boundary", "boundary_views"):
            assert (half.dtype(tap), full.dtype(tap)) == ("float16", "float32")
            assert np.array_equal(half.features(tap), full.features(tap).astype(np.float16).astype(np.float32))


def test_a_store_with_boundaries_grows_and_computes_only_what_is_new(
    small: Path, manifest: Manifest, tmp_path: Path
) -> None:
    shutil.copytree(manifest.source, tmp_path / "images")
    shutil.copy(small, tmp_path / "s.h5")
    draw(tmp_path / "images" / "normal" / "0-new.png", 77)
    done = embed(Manifest.read(tmp_path / "images"), tmp_path / "s.h5", SPEC, augmentations=VIEWS)
    assert (done.counts.embedded, done.counts.reused) == (1, N)
    with Store.open(small) as before, Store.open(tmp_path / "s.h5") as after:
        rows = [after.image_ids.index(image_id) for image_id in before.image_ids]
        new = after.image_ids.index("normal/0-new.png")
        for tap in before.taps:
            assert np.array_equal(after.rows(tap, rows), before.features(tap)), tap
        assert np.abs(after.rows("boundary", [new])).max() > 0


def test_the_size_of_parts_changes_no_byte_where_rows_are_larger_than_what_hdf5_keeps_in_memory(
    tmp_path: Path,
) -> None:
    """Rows of 1.2 MB, as few as one a part."""
    rng, n, shape = np.random.default_rng(0), 12, (96, 56, 56)
    boundary, of_views = (rng.random((n, *axes, *shape), dtype=np.float32) for axes in ((), (2,)))
    digests = [f"{i:064x}" for i in range(n)]
    for step in (1, 5, n):
        folder = PartFolder(tmp_path / f"{step}.h5", {"identity": {}})
        with folder.locked():
            for start in range(0, n, step):
                rows = slice(start, start + step)
                m = len(digests[rows])
                arrays = {
                    "pooled": boundary[rows, :, 0, 0],
                    "boundary": boundary[rows],
                    "boundary_views": of_views[rows],
                }
                folder.write(Part(start, arrays, digests[rows], np.zeros(m, dtype=np.uint8), {}))
            publish(folder.store_path, folder.heads(), digests, {}, {})
            folder.clear()
    assert len({path.read_bytes() for path in tmp_path.glob("*.h5")}) == 1
    with Store.open(tmp_path / "1.h5") as store:
        assert np.array_equal(store.rows("boundary_views", [11, 0], [0, 1]), of_views[[11, 0], [0, 1]])


@pytest.mark.long
def test_a_dry_run_tells_the_bytes_of_boundaries_and_of_their_views(manifest: Manifest, tmp_path: Path) -> None:
    spec = replace(SPEC, name="test_efficientnet", input_size=96)
    said = forecast(manifest, {tmp_path / "s.h5": spec}, augmentations=VIEWS).disk_bytes
    assert not (tmp_path / "s.h5").exists()
    embed(manifest, tmp_path / "s.h5", spec, augmentations=VIEWS)
    assert said == pytest.approx((tmp_path / "s.h5").stat().st_size, rel=0.2)


# --- reading some of it -----------------------------------------------------------------------------------------------


def test_rows_come_in_any_order_and_as_often_as_asked(small: Path) -> None:
    asked = [4, 1, 1, 5, 0]
    with Store.open(small) as store:
        for tap in store.taps:
            found = store.rows(tap, asked)
            assert found.dtype == np.float32
            assert np.array_equal(found, store.features(tap)[asked]), tap
            assert store.rows(tap, np.array([], dtype=int)).shape == (0, *store.row_shape(tap))
        for tap in ("views", "boundary_views"):
            assert np.array_equal(store.rows(tap, asked, [0, 1, 0, 1, 1]), store.features(tap)[asked, [0, 1, 0, 1, 1]])


@pytest.mark.parametrize(
    ("rows", "views", "message"),
    [
        ([N], None, f"there are {N} rows, got numbers from {N} to {N}"),
        ([-1, 2], None, f"there are {N} rows, got numbers from -1 to 2"),
        ([0], [2], "there are 2 views, got numbers from 2 to 2"),
        ([0, 1], [0], "of one length"),
        ([0.0], None, "whole numbers"),
    ],
)
def test_rows_that_are_not_there_are_an_index_error(
    rows: list[float], views: list[int] | None, message: str, small: Path
) -> None:
    with Store.open(small) as store, pytest.raises(IndexError, match=message):
        store.rows("boundary_views", rows, views)


def test_an_array_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with (
        Store.open(make_store(tmp_path / "s.h5", np.ones((2, 3)), {})) as store,
        pytest.raises(UsageError, match="no tap 'boundary', it has pooled"),
    ):
        store.rows("boundary", [0])


def test_nothing_but_the_rows_asked_for_is_read(small: Path, tmp_path: Path) -> None:
    """All others are damaged, and that is not noticed; it is told by its row where it is."""
    shutil.copy(small, tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5") as file:
        chunks = [file["features/boundary_views"].id.get_chunk_info(i) for i in range(N * VIEWS.n)]
    data = bytearray((tmp_path / "s.h5").read_bytes())
    for chunk in chunks:
        if chunk.chunk_offset[:2] != (3, 1):
            data[chunk.byte_offset + 5] ^= 1
    (tmp_path / "s.h5").write_bytes(data)
    with Store.open(tmp_path / "s.h5") as store, Store.open(small) as whole:
        assert np.array_equal(store.rows("boundary_views", [3], [1]), whole.rows("boundary_views", [3], [1]))
        with pytest.raises(CorruptStore, match="features/boundary_views, row 3, cannot be read"):
            store.rows("boundary_views", [3])
        with pytest.raises(CorruptStore, match="features/boundary_views, rows 0 to 0, cannot be read"):
            store.features("boundary_views")


def test_rows_that_were_never_written_are_seen(small: Path, tmp_path: Path) -> None:
    shutil.copy(small, tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["features/boundary"][2] = np.nan
    with Store.open(tmp_path / "s.h5") as store:
        assert np.isfinite(store.rows("boundary", [1, 3])).all()
        with pytest.raises(CorruptStore, match="features/boundary has a value that is not finite in row 2"):
            store.rows("boundary", [1, 2, 3])


def test_reading_some_rows_takes_their_memory_and_not_that_of_all(tmp_path: Path) -> None:
    """Of 40 MB in rows of 64 KB, 16 rows: 1 MB, and as much for looking at them."""
    n, shape = 640, (16, 32, 32)
    folder = PartFolder(tmp_path / "s.h5", {"identity": {}})
    digests = [f"{i:064x}" for i in range(n)]
    x = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None], (n, *shape))
    with folder.locked():
        folder.write(Part(0, {"pooled": x[:, :, 0, 0], "boundary": x}, digests, np.zeros(n, dtype=np.uint8), {}))
        publish(folder.store_path, folder.heads(), digests, {}, {})
        folder.clear()
    with Store.open(tmp_path / "s.h5") as store:
        tracemalloc.start()
        try:
            for rows in np.random.default_rng(0).permutation(n).reshape(-1, 16):
                assert np.array_equal(store.rows("boundary", rows)[:, 0, 0, 0], rows)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 3 << 20
