"""Images of a training: what is shown follows from bytes, seed and epoch, whatever is kept in memory."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.backbones import load
from featcache.embedding.forward import Forward
from featcache.errors import InputsChanged
from featcache.finetune.inputs import ImageSource, Pixels, StoreSource
from featcache.finetune.unfreeze import cut, unfrozen
from featcache.identity import digest_bytes
from featcache.images import augment
from featcache.specs import AugmentationSpec, BackboneSpec, TransformSpec
from featcache.store import Store
from tests.conftest import NET, draw

TRANSFORM = TransformSpec((32, 32), 0.8, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OFF = AugmentationSpec(rotation=0.0, color_jitter=0.0, hflip=0.0, scale=1.0)
DIGEST = "0123456789abcdef" * 4
digests = st.binary(max_size=8).map(digest_bytes)
specs = st.builds(
    AugmentationSpec,
    rotation=st.floats(0, 180),
    color_jitter=st.floats(0, 0.9),
    hflip=st.floats(0, 1),
    scale=st.floats(0.01, 1),
)
seeds, epochs = st.integers(0, 2**32 - 1), st.integers(1, 10_000)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, shape, dtype=np.uint8))


def shown(
    image: Image.Image, spec: AugmentationSpec, digest: str = DIGEST, seed: int = 0, epoch: int = 1
) -> np.ndarray:
    return augment.show(TRANSFORM.resize(image), spec, TRANSFORM, digest, seed, epoch)


# --- one image --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(specs, digests, seeds, epochs, st.sampled_from(["L", "RGB"]), st.integers(33, 90), st.integers(33, 90))
def test_the_same_bytes_seed_and_epoch_show_the_same(
    spec: AugmentationSpec, digest: str, seed: int, epoch: int, mode: str, width: int, height: int
) -> None:
    one, two = (shown(noise(width, height, mode), spec, digest, seed, epoch) for _ in range(2))
    assert one.shape == ((32, 32) if mode == "L" else (32, 32, 3))
    assert one.dtype == np.uint8
    assert one.tobytes() == two.tobytes()


def test_another_epoch_seed_or_image_shows_another() -> None:
    image, spec = noise(60, 50), AugmentationSpec(scale=0.5)
    found = {shown(image, spec, digest_bytes(bytes([i])), seed, epoch).tobytes()
             for i in range(3) for seed in range(3) for epoch in range(1, 4)}  # fmt: skip
    assert len(found) == 27


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(60, 50), (32, 32), (33, 90)])
def test_with_everything_off_the_image_is_what_the_network_sees_in_a_pass(mode: str, size: tuple[int, int]) -> None:
    image = noise(*size, mode)
    for epoch in (1, 2):
        np.testing.assert_array_equal(shown(image, OFF, epoch=epoch), TRANSFORM(image))


def test_each_option_does_what_it_says() -> None:
    image = noise(60, 50, "L")
    clean = TRANSFORM(image)
    flipped = [np.array_equal(shown(image, replace(OFF, hflip=0.3), epoch=e), clean[:, ::-1]) for e in range(1, 201)]
    assert all(
        flipped[e] or np.array_equal(shown(image, replace(OFF, hflip=0.3), epoch=e + 1), clean) for e in range(200)
    )
    assert 35 < sum(flipped) < 85  # four standard errors around 60
    np.testing.assert_array_equal(shown(image, replace(OFF, hflip=1.0)), clean[:, ::-1])
    brighter = [shown(image, replace(OFF, color_jitter=0.5), epoch=e).mean() / clean.mean() for e in range(1, 60)]
    assert min(brighter) < 0.7 < 1.2 < max(brighter)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 1), digests, st.integers(32, 90), st.integers(32, 90))
def test_a_crop_lies_in_the_image(crop: float, digest: str, width: int, height: int) -> None:
    """Of an image whose pixels are their own places: no more is shown than there is, and never less than asked."""
    places = np.linspace(20, 220, 64)
    for image in (np.tile(places, (64, 1)), np.tile(places[:, None], (1, 64))):
        resized = TRANSFORM.resize(Image.fromarray(image.round().astype(np.uint8)).resize((width, height)))
        found = augment.show(resized, replace(OFF, scale=crop), TRANSFORM, digest, 0, 1)
        whole = np.asarray(resized)
        assert int(whole.min()) - 2 <= int(found.min())
        assert int(found.max()) <= int(whole.max()) + 2


def test_a_crop_takes_the_share_of_the_area_that_was_asked() -> None:
    """A square image with a ramp: what is shown of the ramp is the side of the crop."""
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    transform = replace(TRANSFORM, input_size=(256, 256), crop_pct=1.0, interpolation="bilinear")
    sides = []
    for epoch in range(1, 120):
        found = augment.show(ramp, replace(OFF, scale=0.25), transform, DIGEST, 0, epoch)
        sides.append((int(found.max()) - int(found.min())) / 255)
    shares = np.square(sides)
    assert shares.min() > 0.23
    assert shares.max() > 0.95
    assert abs(shares.mean() - 0.625) < 0.08  # uniform from 0.25 to 1


# --- several ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for i in range(6):
        draw(tmp_path / f"{i}.png", i, size=(50 + i, 44), mode=("L", "RGB")[i % 2])
    return [tmp_path / f"{i}.png" for i in range(6)]


def pixels(files: Sequence[Path], memory_bytes: int, opened: ExitStack) -> Pixels:
    made = opened.enter_context(Pixels(files, TRANSFORM, memory_bytes=memory_bytes, seed=4))
    made.read(range(len(files)))
    return made


def test_what_is_shown_does_not_depend_on_what_is_kept(files: list[Path]) -> None:
    """All in memory, some, none, or in another order."""
    spec = AugmentationSpec(scale=0.6)
    with ExitStack() as opened:
        several = [pixels(files, memory, opened) for memory in (0, 4000, 1 << 20)]
        turned = pixels(files[::-1], 4000, opened)
        for i in range(6):
            for how, epoch in ((None, 0), (spec, 1), (spec, 2)):
                wanted = several[0].transformed(i, how, epoch)
                for each in several[1:]:
                    np.testing.assert_array_equal(each.transformed(i, how, epoch), wanted)
                np.testing.assert_array_equal(turned.transformed(5 - i, how, epoch), wanted)
            np.testing.assert_array_equal(several[0].transformed(i, None, 0), TRANSFORM(Image.open(files[i])))
            assert several[0].digests[i] == digest_bytes(files[i].read_bytes())


def test_images_that_cannot_be_read_are_named_and_left_out(files: list[Path]) -> None:
    files[1].write_bytes(b"no image")
    files[3].write_bytes(files[3].read_bytes()[:-30])
    files[4].unlink()
    with ExitStack() as opened:
        found = pixels(files, 1 << 20, opened)
        assert sorted(found.failures) == [1, 3, 4]
        assert found.digests[1] == digest_bytes(b"no image")
        wanted = [found.transformed(i, AugmentationSpec(), 1) for i in (0, 2, 5)]
        found.keep_only([0, 2, 5])
        assert found.failures == {}
        for i, each in enumerate(wanted):
            np.testing.assert_array_equal(found.transformed(i, AugmentationSpec(), 1), each)


def test_a_file_that_was_replaced_since_is_seen_and_not_learnt_from(files: list[Path]) -> None:
    with ExitStack() as opened:
        found = pixels(files, 0, opened)
        draw(files[2], 99)
        with pytest.raises(InputsChanged, match=r"2\.png has changed since the training began: other bytes"):
            found.transformed(2, None, 0)
        files[2].unlink()
        with pytest.raises(InputsChanged, match=r"2\.png has changed since the training began: "):
            found.transformed(2, None, 0)


# --- what enters the part that learns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_bytes", [0, 30_000, 1 << 30])
@pytest.mark.parametrize("augmented", [False, True])
def test_boundaries_of_images_come_in_the_order_that_was_asked(
    files: list[Path], memory_bytes: int, augmented: bool
) -> None:
    """Each the trunk's output for that image alone, in any order, batches of any size, epoch after epoch."""
    backbone = load(BackboneSpec(NET, "random:0", input_size=32), "cpu")
    trunk = cut(backbone.module, unfrozen(backbone.module, "last-block")).trunk
    below = replace(backbone, module=trunk, cut=None, last_stage=None)
    spec = AugmentationSpec() if augmented else None
    orders = [[[5, 0], [1, 2, 3], [4]], [[0, 1, 2, 3, 4, 5]], [[4], [4], [0]]]
    with ExitStack() as opened:
        some = opened.enter_context(Pixels(files, backbone.transform, memory_bytes=1 << 20))
        some.read(range(6))
        forward = Forward(below, "off", 6, lambda text: None)
        source = opened.enter_context(ImageSource(some, spec, forward, memory_bytes))
        for epoch, order in ((1, orders[0]), (0, orders[1]), (2, orders[1]), (0, orders[0]), (0, orders[2])):
            rows = [np.array(batch) for batch in order]
            found = list(source.batches(rows, epoch))
            for batch, values in zip(order, found, strict=True):
                alone = [
                    forward.vectors([some.transformed(i, spec if epoch else None, epoch)])["pooled"][0] for i in batch
                ]
                np.testing.assert_allclose(values, np.stack(alone), rtol=1e-6, atol=1e-6)


def test_pixels_of_gray_and_colour_images_come_as_one_array(files: list[Path]) -> None:
    with ExitStack() as opened:
        some = pixels(files, 1 << 20, opened)
        source = opened.enter_context(ImageSource(some, None, None, 1 << 20))
        gray, mixed = source.batches([np.array([0, 2, 4]), np.array([0, 1])], 1)
        assert gray.shape == (3, 32, 32)
        assert mixed.shape == (2, 32, 32, 3)
        np.testing.assert_array_equal(mixed[0], np.repeat(gray[0][..., None], 3, axis=2))


@pytest.mark.parametrize("memory_bytes", [0, 5_000, 1 << 30])
def test_a_store_gives_images_as_they_are_and_views_each_as_often(phase_one: Path, memory_bytes: int) -> None:
    with Store.open(phase_one / "tail.h5") as store:
        rows = [5, 3, 40, 11, 12, 13]
        source = StoreSource(store, rows, 7, True, memory_bytes)
        order = [np.array([3, 0]), np.array([5, 1, 2])]
        views = (
            store.rows("boundary_views", rows, np.zeros(6, dtype=int)),
            store.rows("boundary_views", rows, np.ones(6, dtype=int)),
        )
        kinds = np.stack([store.rows("boundary", rows), *views])  # (image or view, row, …)
        drawn = []
        for epoch in range(60):
            for batch, values in zip(order, source.batches(order, epoch), strict=True):
                for row, value in zip(batch, values, strict=True):
                    (which,) = [kind for kind in range(3) if np.array_equal(kinds[kind, row], value)]
                    drawn.append((epoch, which))
        assert {which for epoch, which in drawn if epoch == 0} == {0}
        counts = np.bincount([which for epoch, which in drawn if epoch])
        assert (np.abs(counts - counts.sum() / 3) < 4 * np.sqrt(counts.sum() * 2 / 9)).all()
        again = StoreSource(store, rows, 7, True, 0)
        for one, two in zip(source.batches(order, 9), again.batches(order, 9), strict=True):
            np.testing.assert_array_equal(one, two)
