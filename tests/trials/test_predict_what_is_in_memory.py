"""A Pillow image, the most usual thing to have in memory, was refused. What `predict` takes is a path, arrays or Pillow
images, which get the probabilities of their file; anything else is refused in a sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featcache.embedding import embed
from featcache.errors import UsageError
from featcache.manifest import Manifest
from featcache.prediction.predictor import Predictor, load_run
from featcache.specs import BackboneSpec, HeadSpec, SplitSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import SMALL, draw, draw_classes


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("memory")
    embed(
        Manifest.read(draw_classes(folder / "images")), folder / "s.h5", BackboneSpec(SMALL, "random:0", input_size=32)
    )
    with Store.open(folder / "s.h5") as store:
        return load_run(train_head(store, HeadSpec(epochs=2), folder / "run", split=SplitSpec(val_fraction=0.25)).path)


def saved(folder: Path, mode: str) -> Path:
    """A picture in a mode of Pillow's."""
    draw(folder / "drawn.png", 3, (50, 44), "RGBA" if mode in ("RGBA", "LA", "PA") else "RGB")
    suffix = {"CMYK": "jpg", "PA": "png"}.get(mode, "png")
    path = folder / f"{mode}.{suffix}"
    image = Image.open(folder / "drawn.png")
    image = image.quantize() if mode == "PA" else image.convert(mode)
    image.save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P", "LA", "RGBA", "PA", "CMYK"])
def test_a_pillow_image_has_the_probabilities_of_its_file(mode: str, predictor: Predictor, tmp_path: Path) -> None:
    path = saved(tmp_path, mode)
    expected = predictor.predict(path).probabilities
    np.testing.assert_allclose(predictor.predict(Image.open(path)).probabilities, expected, atol=1e-5)
    with Image.open(path) as image:
        image.load()
        np.testing.assert_allclose(predictor.predict([image]).probabilities, expected, atol=1e-5)


def test_a_turned_image_is_turned_as_its_file_is(predictor: Predictor, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    draw(tmp_path / "a.png", 4, (60, 40))
    Image.open(tmp_path / "a.png").save(tmp_path / "turned.png", exif=turned)
    expected = predictor.predict(tmp_path / "turned.png").probabilities
    np.testing.assert_allclose(
        predictor.predict(Image.open(tmp_path / "turned.png")).probabilities, expected, atol=1e-5
    )


def test_images_and_arrays_may_stand_in_one_list(predictor: Predictor, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 5)
    image = Image.open(tmp_path / "a.png")
    both = predictor.predict([image, np.asarray(image), np.asarray(image.convert("RGB"))])
    assert both.names == ["0", "1", "2"]
    np.testing.assert_allclose(both.probabilities[1:], both.probabilities[:1].repeat(2, axis=0), atol=1e-5)


def test_what_a_pillow_image_cannot_be_fails_by_its_reason_beside_good_ones(
    predictor: Predictor, tmp_path: Path
) -> None:
    draw(tmp_path / "a.png", 6)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-200])
    deep = Image.fromarray(np.full((40, 40), 3_000, dtype=np.uint16))
    floats, line = Image.fromarray(np.ones((40, 40), dtype=np.float32)), Image.new("L", (400, 2))
    with Image.open(tmp_path / "a.png") as good, Image.open(tmp_path / "cut.png") as cut:
        done = predictor.predict([good, deep, floats, line, cut])
    codes = {name: code for name, (code, _) in done.failures.items()}
    assert codes == {"1": "depth", "2": "mode", "3": "aspect", "4": "damaged"}
    assert np.isfinite(done.probabilities[0]).all()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (5, "a path, a store, a manifest, an image, an array or a list of one of these is expected, got int"),
        (None, "is expected, got NoneType"),
        (b"bytes", "images are all paths, or all arrays and Pillow images; number 0 is int"),
        ([Image.new("L", (40, 40)), "a.png"], "images are all paths, or all arrays and Pillow images; number 1 is str"),
        ([], "found 0 images"),
        (np.zeros((40, 40)), r"array 0: uint8 of \(h, w\) or \(h, w, 3\) is expected, got float64"),
        ([np.zeros((40, 40), dtype=bool)], "array 0: uint8 .* got bool"),
        (np.zeros((40, 40, 4), dtype=np.uint8), r"one image is \(h, w\) or \(h, w, 3\)"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(images: Any, words: str, predictor: Predictor) -> None:
    with pytest.raises(UsageError, match=words):
        predictor.predict(images)
