"""Views: a function of the bytes, the seed and the number, and of nothing else; and each does what its row says."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featcache.identity import canonical_json, digest_bytes
from featcache.images.augment import apply, views
from featcache.specs import PARAMETERS, AugmentationSpec, AugmentedCopies, TransformSpec

DIGEST = "0123456789abcdef" * 4
TRANSFORM = TransformSpec((32, 32), 0.8, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NEUTRAL = (0.0, 1.0, 1.0, 1.0, 0.0)
STILL = AugmentationSpec(rotation=0.0, color_jitter=0.0, hflip=0.0)
digests = st.binary(max_size=8).map(digest_bytes)
specs = st.builds(
    AugmentedCopies, n=st.integers(1, 8), seed=st.integers(0, 2**32 - 1), augmentation=st.builds(
        AugmentationSpec, rotation=st.floats(0, 180), color_jitter=st.floats(0, 0.9), hflip=st.floats(0, 1)
    ),
)  # fmt: skip
factor = st.floats(0.125, 1.875, width=32)
rows = st.tuples(st.floats(-180, 180, width=32), factor, factor, factor, st.sampled_from([0.0, 1.0]))


def augmented(spec: AugmentedCopies, **fields: float) -> AugmentedCopies:
    return replace(spec, augmentation=replace(spec.augmentation, **fields))


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, shape, dtype=np.uint8))


def in_rgb(gray: Image.Image) -> Image.Image:
    return Image.merge("RGB", [gray] * 3)


def changed(image: Image.Image, **parameters: float) -> np.ndarray:
    """The pixels of a view of which only these parameters are not neutral."""
    return np.asarray(apply(image, list({**dict(zip(PARAMETERS, NEUTRAL, strict=True)), **parameters}.values())))


# --- what the parameters depend on ------------------------------------------------------------------------------------


def test_the_parameters_of_one_digest_are_known() -> None:
    """numpy 2.4. If others come out, every vector of a view changes with them: that is what it is for."""
    assert PARAMETERS == ("angle", "brightness", "contrast", "saturation", "flip")
    known = [
        [23.86456871032715, 0.9409385919570923, 0.9159277677536011, 1.0360969305038452, 0.0],
        [-12.852970123291016, 1.0683645009994507, 1.0742158889770508, 1.1062999963760376, 1.0],
        [-10.895493507385254, 1.088897466659546, 1.1014807224273682, 0.838560938835144, 0.0],
    ]
    assert AugmentedCopies(3).parameters(DIGEST).tolist() == known


@given(specs, digests)
def test_parameters_are_the_same_each_time_and_lie_in_their_ranges(spec: AugmentedCopies, digest: str) -> None:
    rows = spec.parameters(digest)
    assert rows.shape == (spec.n, len(PARAMETERS))
    assert rows.dtype == np.float32
    assert rows.tobytes() == spec.parameters(digest).tobytes()
    assert (np.abs(rows[:, 0]) <= np.float32(spec.augmentation.rotation)).all()
    assert (
        np.abs(rows[:, 1:4] - 1) <= spec.augmentation.color_jitter + 1e-6
    ).all()  # float32 has steps of 1.2e-7 there
    assert set(rows[:, 4]) <= {0.0, 1.0}


@given(specs, digests, st.integers(1, 32))
def test_more_views_keep_the_first_ones(spec: AugmentedCopies, digest: str, n: int) -> None:
    shorter, longer = sorted((spec.n, n))
    few, many = (replace(spec, n=count).parameters(digest) for count in (shorter, longer))
    assert np.array_equal(few, many[:shorter])


@given(specs, digests)
def test_a_change_of_one_option_moves_only_its_parameters(spec: AugmentedCopies, digest: str) -> None:
    before = spec.parameters(digest)
    assert np.array_equal(augmented(spec, rotation=7.0).parameters(digest)[:, 1:], before[:, 1:])
    assert np.array_equal(augmented(spec, color_jitter=0.3).parameters(digest)[:, [0, 4]], before[:, [0, 4]])
    assert np.array_equal(augmented(spec, hflip=0.1).parameters(digest)[:, :4], before[:, :4])


def test_every_image_seed_and_view_has_parameters_of_its_own() -> None:
    drawn = [
        AugmentedCopies(4, seed=seed).parameters(digest_bytes(bytes([i])))[:, :4] for seed in range(5) for i in range(5)
    ]
    assert len(np.unique(np.concatenate(drawn))) == 5 * 5 * 4 * 4


def test_parameters_fill_their_ranges_evenly() -> None:
    """Of 3,200 draws the mean and the share of mirrored views are within 4 standard errors of what is asked."""
    rows = np.concatenate(
        [
            AugmentedCopies(32, augmentation=AugmentationSpec(hflip=0.25)).parameters(digest_bytes(bytes([i])))
            for i in range(100)
        ]
    )
    assert np.allclose(rows[:, :4].min(axis=0), [-25, 0.8, 0.8, 0.8], rtol=0.01)
    assert np.allclose(rows[:, :4].max(axis=0), [25, 1.2, 1.2, 1.2], rtol=0.01)
    spread = np.array([50, 0.4, 0.4, 0.4]) / np.sqrt(12 * len(rows))
    assert (np.abs(rows[:, :4].mean(axis=0) - [0, 1, 1, 1]) < 4 * spread).all()
    assert abs(rows[:, 4].mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(rows))


# --- the spec ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n", 0, "`n` must be from 1 to 32, got 0"),
        ("n", 33, "`n` must be from 1 to 32, got 33"),
        ("seed", -1, "`seed` must be from 0 to 2\\^32 - 1, got -1"),
        ("rotation", 180.1, "`rotation` must be from 0 to 180, got 180.1"),
        ("rotation", float("nan"), "`rotation` must be from 0 to 180, got nan"),
        ("color_jitter", 0.91, "`color_jitter` must be from 0 to 0.9, got 0.91"),
        ("hflip", -0.1, "`hflip` must be from 0 to 1, got -0.1"),
    ],
)
def test_impossible_views_are_refused_at_birth(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentedCopies(**{"n": 2, field: value}) if field in ("n", "seed") else AugmentationSpec(**{field: value})


def test_copies_are_never_zoomed() -> None:
    with pytest.raises(ValueError, match=r"`scale` of stored copies must be 1, got 0\.5"):
        AugmentedCopies(2, augmentation=AugmentationSpec(scale=0.5))


@given(specs)
def test_the_identity_is_all_that_makes_a_view(spec: AugmentedCopies) -> None:
    identity = spec.identity()
    rule = identity.pop("rule")
    assert AugmentedCopies.from_identity(identity) == spec
    assert "before the crop" in rule
    assert canonical_json(
        AugmentedCopies(2, augmentation=AugmentationSpec(rotation=25, hflip=1)).identity()
    ) == canonical_json(AugmentedCopies(2, augmentation=AugmentationSpec(rotation=25.0, hflip=1.0)).identity())


# --- what a row does --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [noise(41, 30), noise(41, 30, "L")])
def test_neutral_parameters_give_the_same_pixels(image: Image.Image) -> None:
    view = apply(image, NEUTRAL)
    assert (view.mode, view.size) == (image.mode, image.size)
    assert np.array_equal(np.asarray(view), np.asarray(image))


@given(rows)
def test_a_flip_mirrors_the_same_view_left_to_right(row: tuple[float, ...]) -> None:
    image = noise(23, 30)
    plain, mirrored = (np.asarray(apply(image, (*row[:4], flip))) for flip in (0.0, 1.0))
    assert np.array_equal(mirrored, plain[:, ::-1])


@settings(deadline=None)
@given(rows)
def test_gray_stays_gray_and_is_the_same_in_one_channel_as_in_three(row: tuple[float, ...]) -> None:
    gray = noise(23, 30, "L")
    one, three = (np.asarray(apply(image, row)) for image in (gray, in_rgb(gray)))
    assert np.array_equal(np.repeat(one[..., None], 3, axis=-1), three)


def test_a_positive_angle_turns_counter_clockwise_about_the_centre() -> None:
    """A bright spot to the right of the centre, at 3 o'clock, is found above it after 90 / 4 degrees and after 90."""
    spot = np.zeros((101, 101), dtype=np.uint8)
    spot[48:53, 88:93] = 255  # its middle 40 pixels from that of the image, (50, 50)
    for angle in (22.5, 90.0, -22.5):
        turned = changed(Image.fromarray(spot), angle=angle).astype(float)
        y, x = (np.sum(at * turned) / turned.sum() for at in np.mgrid[0:101, 0:101])
        expected = 50 - 40 * np.sin(np.radians(angle)), 50 + 40 * np.cos(np.radians(angle))
        assert np.allclose((y, x), expected, atol=0.1)


def test_turned_corners_are_black() -> None:
    white = Image.new("RGB", (40, 40), (255, 255, 255))
    turned = changed(white, angle=25.0)
    assert turned[0, 0].tolist() == turned[-1, 0].tolist() == [0, 0, 0]
    assert (turned[10:30, 10:30] == 255).all()


def test_brightness_is_a_factor_clipped_at_white() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for brightness in (0.5, 1.2):
        expected = np.minimum(np.rint(brightness * np.arange(256)), 255).reshape(16, 16)
        assert np.array_equal(changed(ramp, brightness=brightness), expected)


def test_contrast_spreads_values_about_their_mean() -> None:
    image = Image.fromarray(np.array([[60, 80], [120, 140]], dtype=np.uint8))  # of mean 100
    assert changed(image, contrast=1.5).tolist() == [[40, 70], [130, 160]]
    assert changed(image, contrast=0.5).tolist() == [[80, 90], [110, 120]]


def test_saturation_moves_colours_from_their_gray_and_is_clipped() -> None:
    image = Image.new("RGB", (1, 1), (200, 100, 0))  # its gray is 0.299 * 200 + 0.587 * 100 = 118.5
    assert changed(image, saturation=0.5)[0, 0].tolist() == [159, 109, 59]
    assert changed(image, saturation=1.2)[0, 0].tolist() == [216, 96, 0]
    assert changed(Image.new("RGB", (1, 1), (255, 0, 0)), saturation=1.9)[0, 0].tolist() == [255, 0, 0]


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_views_of_nothing_but_neutral_parameters_are_the_image_as_it_is_transformed(mode: str) -> None:
    image = noise(90, 70, mode)
    still = views(
        image,
        TRANSFORM,
        AugmentedCopies(2, augmentation=AugmentationSpec(rotation=0.0, color_jitter=0.0, hflip=0.0)),
        DIGEST,
    )
    assert still.dtype == np.uint8
    assert np.array_equal(still, np.stack([TRANSFORM(image)] * 2))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_stored_parameters_make_the_views_again(mode: str) -> None:
    image, spec = noise(90, 70, mode), AugmentedCopies(3)
    stored = np.frombuffer(spec.parameters(DIGEST).tobytes(), dtype=np.float32).reshape(3, len(PARAMETERS))
    resized = TRANSFORM.resize(image)
    again = [np.asarray(TRANSFORM.crop(apply(resized, row))) for row in stored]
    assert np.array_equal(views(image, TRANSFORM, spec, DIGEST), again)


def test_more_views_keep_the_pixels_of_the_first_ones() -> None:
    image = noise(90, 70)
    assert np.array_equal(
        views(image, TRANSFORM, AugmentedCopies(4), DIGEST)[:2], views(image, TRANSFORM, AugmentedCopies(2), DIGEST)
    )


def test_a_view_shows_what_lies_beside_the_crop_instead_of_black_corners() -> None:
    """A crop of 0.8 of the side, turned by 10 degrees, lies within the image: 0.8 * (cos 10 + sin 10) = 0.93."""
    white = Image.new("L", (200, 200), 255)
    spec = AugmentedCopies(8, augmentation=AugmentationSpec(rotation=10.0, color_jitter=0.0))
    assert views(white, TRANSFORM, spec, DIGEST).min() == 255


def test_shortcuts_reach_the_views() -> None:
    image = noise(400, 400, "L")
    exact, fast = (views(image, TRANSFORM, AugmentedCopies(2), DIGEST, fast) for fast in (False, True))
    still = AugmentedCopies(1, augmentation=STILL)
    assert not np.array_equal(exact, fast)
    assert np.array_equal(views(image, TRANSFORM, still, DIGEST, fast=True)[0], TRANSFORM(image, fast=True))
