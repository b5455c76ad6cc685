"""An encoder that gives every image the same vector was embedded, trained on and reported without a word.

That vectors of different images are (nearly) equal is seen by their spread relative to their length, said by every
command that makes or reads them, and told apart from images that are alike themselves.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, PngImagePlugin

from featcache.auditing.audit import audit
from featcache.embedding import embed
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec, HeadSpec, SplitSpec
from featcache.store import Store, Variety, describe
from featcache.training.train_head import train_head
from tests.conftest import NET, SMALL, draw, make_store, two_clouds
from tests.test_cli import featcache

State = dict[str, torch.Tensor]


def zero(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def nearly_constant(state: State) -> State:
    """Of the last norm only the bias is left."""
    last = [name for name in state if name.endswith("bn2.weight")][-1]
    return {**state, last: state[last] * 1e-4, last.replace("weight", "bias"): torch.ones_like(state[last])}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for i in range(12):
        draw(tmp_path / "images" / ("a", "b")[i % 2] / f"{i}.png", i)
    return tmp_path / "images"


@pytest.mark.parametrize("broken", [zero, nearly_constant])
def test_a_dead_encoder_is_said_by_embed_info_and_train_head(
    phase_one: Path, images: Path, tmp_path: Path, broken: Callable[[State], State]
) -> None:
    state = broken(safetensors.torch.load_file(phase_one / "net.safetensors"))
    safetensors.torch.save_file(state, tmp_path / "dead.safetensors")
    arguments = ("--backbone", NET, "--weights", "dead.safetensors", "--input-size", "32", "--json")
    done = featcache("embed", images, "-o", "s.h5", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (note,) = json.loads(done.stdout)["notes"]
    assert "12 different images" in note
    assert "the images differ, so the encoder is dead or constant" in note
    assert f"note: {note}" in done.stderr.replace("\n", " ")
    about = json.loads(featcache("info", "s.h5", "--json", cwd=tmp_path).stdout)["vectors"]
    assert (about["images"], about["equal_vectors"] > 5 or about["spread"] < 0.01) == (12, True)
    assert "the encoder is dead or constant" in featcache("info", "s.h5", cwd=tmp_path).stdout.replace("\n", " ")
    with Store.open(tmp_path / "s.h5") as store:
        run = train_head(store, HeadSpec(epochs=1), tmp_path / "run", split=SplitSpec(val_fraction=0.5))
    assert any("the encoder is dead or constant" in text for text in run.record["notes"])


def test_the_note_comes_again_when_nothing_is_new(images: Path, phase_one: Path, tmp_path: Path) -> None:
    state = zero(safetensors.torch.load_file(phase_one / "net.safetensors"))
    safetensors.torch.save_file(state, tmp_path / "dead.safetensors")
    spec = BackboneSpec(NET, str(tmp_path / "dead.safetensors"), input_size=32)
    first, again = (embed(Manifest.read(images), tmp_path / "s.h5", spec) for _ in range(2))
    assert again.counts.reused == 12
    assert list(again.notes) == list(first.notes)


# --- images that are alike --------------------------------------------------------------------------------------------


def test_images_of_one_file_are_said_to_be_one(tmp_path: Path) -> None:
    for i in range(6):
        draw(tmp_path / "images" / f"{i}.png", 0)
    done = embed(Manifest.read(tmp_path / "images"), tmp_path / "s.h5", BackboneSpec(SMALL, "random:0", input_size=32))
    assert done.notes[-1].startswith("all 6 images have the same bytes")


def test_images_of_the_same_pixels_are_not_blamed_on_the_encoder(tmp_path: Path) -> None:
    draw(tmp_path / "one.png", 0)
    (tmp_path / "images").mkdir()
    for i in range(6):
        text = PngImagePlugin.PngInfo()
        text.add_text("number", str(i))
        Image.open(tmp_path / "one.png").save(tmp_path / "images" / f"{i}.png", pnginfo=text)
    done = embed(Manifest.read(tmp_path / "images"), tmp_path / "s.h5", BackboneSpec(SMALL, "random:0", input_size=32))
    assert done.as_json()["equal_vectors"] == 5
    assert "it is the images, not the encoder" in done.notes[-1]


def test_a_living_encoder_needs_no_note(embedded: Path, phase_one: Path) -> None:
    for path in (embedded, phase_one / "tail.h5"):
        assert describe(path)["vectors"]["notes"] == []


# --- ways to be dead --------------------------------------------------------------------------------------------------


def per_batch(x: np.ndarray) -> np.ndarray:
    return x[np.arange(len(x)) // 8 * 8]


def nearly_per_batch(x: np.ndarray) -> np.ndarray:
    return per_batch(x) + 1e-6 * x


def two_vectors(x: np.ndarray) -> np.ndarray:
    """In any order: equal ones are no neighbours."""
    return x[np.random.default_rng(0).integers(0, 2, len(x))]


def far_from_zero(x: np.ndarray) -> np.ndarray:
    """All features alive, and none of them says anything: a great offset."""
    return x + 1e4


def half_dead(x: np.ndarray) -> np.ndarray:
    return np.where(np.arange(x.shape[1]) % 2, np.maximum(x, 0), 0)


def few_alive(x: np.ndarray) -> np.ndarray:
    return np.where(np.arange(x.shape[1]) < 3, x, 0.7)


@pytest.mark.parametrize(
    ("dead", "words"),
    [
        (per_batch, "84 of 96 different images have the vector of another one"),
        (nearly_per_batch, "84 of 96 different images have the vector of another one"),
        (two_vectors, "94 of 96 different images have the vector of another one"),
        (far_from_zero, "are nearly one vector"),
        (half_dead, "of 64 features have the same value in all 96 images"),
        (few_alive, "61 of 64 features have the same value in all 96 images: only 3 tell images apart"),
    ],
)
def test_every_way_to_be_dead_is_seen(tmp_path: Path, dead: Callable[[np.ndarray], np.ndarray], words: str) -> None:
    x, labels = two_clouds(96, 64)
    with Store.open(make_store(tmp_path / "s.h5", dead(x), {"label": labels})) as store:
        (note,) = Variety.of(store).notes()
        assert words in note
        found = audit(store)
    assert note in found.notes
    assert (
        found.as_json()["equal_vectors"]
        == Variety.of_blocks([dead(x).astype(np.float32)], [str(i) for i in range(96)]).n_equal
    )


def test_vectors_that_differ_are_counted_alike_however_they_are_cut(tmp_path: Path) -> None:
    x, _ = two_clouds(50, 16)
    x = x.astype(np.float32)
    whole = Variety.of_blocks([x], [str(i) for i in range(50)])
    cut = Variety.of_blocks([x[:7], x[7:8], x[8:]], [str(i) for i in range(50)])
    assert whole.notes() == cut.notes() == []
    assert whole.spread == pytest.approx(cut.spread, rel=1e-9)
    assert (whole.n_equal, whole.n_constant) == (cut.n_equal, cut.n_constant) == (0, 0)


def test_copies_of_a_few_images_are_counted_and_need_no_note() -> None:
    x, _ = two_clouds(50, 16)
    x[10], x[30] = x[9], x[4]
    variety = Variety.of_blocks([x.astype(np.float32)], [str(i) for i in range(50)])
    assert (variety.n_equal, variety.notes()) == (2, [])


@pytest.mark.long
def test_a_random_inception_resnet_is_constant(images: Path, tmp_path: Path) -> None:
    spec = BackboneSpec("inception_resnet_v2", "random:0", input_size=128)
    done = embed(Manifest.read(images), tmp_path / "s.h5", spec, compile="off")
    assert "nearly one vector" in done.notes[-1]
