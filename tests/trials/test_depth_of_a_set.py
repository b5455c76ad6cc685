"""The depth of gray in 16 bits was guessed for each image by its own greatest value: one pixel at 4096 made a picture
of 12 bits nearly black. It is settled once for the whole set, kept in the store's identity, and said where ranges
differ."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.embedding import embed
from featcache.embedding.depth import settle_depth
from featcache.errors import IdentityMismatch
from featcache.manifest import Manifest
from featcache.manifest.check import check
from featcache.manifest.survey import needed, spread
from featcache.prediction.predictor import load_run
from featcache.specs import BackboneSpec, DecodeSpec, HeadSpec, SplitSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import SMALL, draw
from tests.encoders import dicom, tiff
from tests.test_cli import RANDOM, featcache

SPEC = BackboneSpec(SMALL, "random:0", input_size=32)


def picture(seed: int, greatest: int) -> np.ndarray:
    """(36, 40) uint16: smooth noise whose greatest value is this one."""
    coarse = np.random.default_rng(seed).random((6, 5)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(coarse).resize((40, 36), Image.Resampling.BILINEAR)).astype(np.float64)
    return np.round(smooth / smooth.max() * greatest).astype(np.uint16)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def twelve_bits(folder: Path, n: int = 4) -> Path:
    for i in range(n):
        write(folder / "sick" / f"{i}.png", picture(i, 4_000 + i))
    return folder


def made(folder: Path, store: Path, **options: object) -> tuple[dict[str, np.ndarray], str, list[str]]:
    """Vectors by name, the depth in the identity, and the notes."""
    notes: list[str] = []
    embed(Manifest.read(folder), store, SPEC, on_note=notes.append, **options)
    with Store.open(store) as held:
        vectors = dict(zip(held.image_ids, held.features(), strict=True))
        return vectors, str(held.identity["decode"]["gray16"]), notes


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_one_bright_pixel_does_not_darken_its_picture_alone(tmp_path: Path) -> None:
    pixels = picture(0, 4_095)
    write(tmp_path / "set" / "a.png", pixels)
    pixels[3, 3] = 4_096
    write(tmp_path / "set" / "b.png", pixels)
    vectors, depth, (note, *_) = made(tmp_path / "set", tmp_path / "s.h5")
    assert depth.startswith("13 bit; ")
    assert cosine(vectors["a.png"], vectors["b.png"]) > 0.9999
    assert "2 images are of gray of more than 8 bits, with values up to 4,096: all are read as 13 bits" in note
    assert "1 (12 bits, such as 'a.png')" in note


@pytest.mark.parametrize(("greatest", "bits"), [(200, 8), (1_000, 10), (4_095, 12), (16_383, 14), (65_535, 16)])
def test_the_greatest_value_of_the_set_settles_its_depth(greatest: int, bits: int, tmp_path: Path) -> None:
    write(tmp_path / "dark.png", picture(1, greatest // 3))
    write(tmp_path / "bright.png", picture(2, greatest))
    (tmp_path / "big-endian.tif").write_bytes(tiff(picture(3, greatest // 2), order=">", bits=16))
    manifest = Manifest.read(tmp_path)
    decode, note = settle_depth(DecodeSpec(), manifest, range(3), (), 1, 60.0)
    assert (decode.bit_depth, decode.is_settled) == (bits, True)
    assert f"3 images are of gray of more than 8 bits, with values up to {greatest:,}" in note
    assert needed(greatest) == bits


def test_a_depth_that_is_stated_is_not_looked_for_and_dicom_states_its_own(tmp_path: Path) -> None:
    write(tmp_path / "a.png", picture(1, 3_000))
    stated = settle_depth(DecodeSpec(bit_depth=16), Manifest.read(tmp_path), range(1), (), 1, 60.0)
    assert stated == (DecodeSpec(bit_depth=16, is_settled=True), "")
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.dcm").write_bytes(dicom(picture(1, 3_000)))
    assert settle_depth(DecodeSpec(), Manifest.read(tmp_path), range(1), (), 1, 60.0) == (
        DecodeSpec(is_settled=True),
        "",
    )


def test_a_store_keeps_its_depth_and_an_image_beyond_it_fails_by_its_name(tmp_path: Path) -> None:
    folder = twelve_bits(tmp_path / "set")
    before, depth, _ = made(folder, tmp_path / "s.h5")
    assert depth.startswith("12 bit; ")
    write(folder / "sick" / "dark.png", picture(8, 300))
    write(folder / "sick" / "beyond.png", picture(9, 5_000))
    after, depth, (note,) = made(folder, tmp_path / "s.h5")
    assert depth.startswith("12 bit; ")
    assert "1 (13 bits, such as 'sick/beyond.png') need more, and these images fail" in note
    with Store.open(tmp_path / "s.h5") as store:
        assert {name: code for name, (code, _) in store.failures.items()} == {"sick/beyond.png": "depth"}
        assert "its greatest value, 5,000, is beyond the 12 bits" in store.failures["sick/beyond.png"][1]
    assert all(np.array_equal(before[name], after[name]) for name in before)
    at_once, *_ = made(folder, tmp_path / "again.h5", decode=DecodeSpec(bit_depth=12))
    assert {name: values.tolist() for name, values in at_once.items()} == {
        name: values.tolist() for name, values in after.items()
    }


def test_a_store_of_8_bit_images_takes_the_depth_of_the_first_deep_ones(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    draw(folder / "sick" / "plain.png", 5)
    before, depth, notes = made(folder, tmp_path / "s.h5")
    assert (depth, notes) == ("None", [])
    after, depth, notes = made(twelve_bits(folder), tmp_path / "s.h5")
    assert depth.startswith("12 bit; ")
    assert len(notes) == 1
    assert np.array_equal(before["sick/plain.png"], after["sick/plain.png"])
    with pytest.raises(IdentityMismatch, match=r"decode.gray16: 12 bit; .* here, 16 bit; "):
        made(folder, tmp_path / "s.h5", decode=DecodeSpec(bit_depth=16))


def test_a_pass_that_was_stopped_goes_on_with_its_depth_and_its_words(tmp_path: Path) -> None:
    folder = twelve_bits(tmp_path / "set")
    write(folder / "sick" / "last.png", picture(9, 60_000))

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(folder, tmp_path / "s.h5", part_rows=2, on_progress=stop)
    made(folder, tmp_path / "s.h5", part_rows=2)
    made(folder, tmp_path / "at-once.h5", part_rows=2)
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "at-once.h5").read_bytes()


def test_ranges_that_differ_are_said_by_check_embed_and_the_store(tmp_path: Path) -> None:
    folder = twelve_bits(tmp_path / "set")
    write(folder / "sick" / "8-in-16.png", picture(8, 250))
    write(folder / "sick" / "full.png", picture(9, 65_000))
    said = "4 (12 bits, such as 'sick/0.png') need fewer bits, and these images come out dark"
    for full in (False, True):
        notes = check(Manifest.read(folder), full=full).notes
        assert sum("1 (8 bits, such as 'sick/8-in-16.png')" in note and said in note for note in notes) == 1
    done = featcache("embed", folder, "-o", "s.h5", *RANDOM, "--json", cwd=tmp_path)
    assert said in done.stderr
    assert said in done.stdout
    with Store.open(tmp_path / "s.h5") as store:
        assert said in store.environments[0]["depth"]


def test_a_run_reads_one_new_image_with_the_depth_of_its_store(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for i in range(12):
        write(folder / ("normal", "sick")[i % 2] / f"{i}.png", picture(i, 700 if i == 0 else 4_000))
    made(folder, tmp_path / "s.h5")
    with Store.open(tmp_path / "s.h5") as store:
        run = train_head(store, HeadSpec(epochs=2), tmp_path / "run", split=SplitSpec(val_fraction=0.5))
        dark = store.image_ids.index("normal/0.png")
        with load_run(run.path) as predictor:
            of_store, alone = predictor.predict(store), predictor.predict(folder / "normal" / "0.png")
            np.testing.assert_allclose(alone.logits[0], of_store.logits[dark], rtol=1e-4, atol=1e-5)
            beyond = predictor.predict([folder / "normal" / "0.png", write(tmp_path / "b.png", picture(1, 5_000))])
            assert [code for code, _ in beyond.failures.values()] == ["depth"]


def test_a_sample_is_spread_over_the_whole_set() -> None:
    assert spread(range(5), 10) == [0, 1, 2, 3, 4]
    assert spread(range(100), 4) == [0, 33, 66, 99]
