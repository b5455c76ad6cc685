"""The metadata of an ONNX file did not say which side is resized, nor how sizes and offsets are rounded. The script of
docs/onnx.md, which reads nothing else, gives the probabilities of `predict`."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featcache.embedding import embed
from featcache.images import decode
from featcache.manifest import Manifest
from featcache.prediction.onnx_export import export_onnx, preprocessing
from featcache.prediction.predictor import load_run
from featcache.specs import BackboneSpec, DecodeSpec, HeadSpec, SplitSpec, TransformSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import SMALL, draw, draw_classes

DOCS = Path(__file__).parents[2] / "docs" / "onnx.md"
(SCRIPT,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text("utf-8"), re.M | re.S)
GRAY = ((0.5,) * 3, (0.2,) * 3)


def pictures(folder: Path) -> list[Path]:
    """Gray, colour, transparent, palette, turned, of 12 bits, wide, tall and tiny."""
    for name, size, mode in (
        ("gray", (61, 40), "L"),
        ("colour", (40, 61), "RGB"),
        ("clear", (50, 50), "RGBA"),
        ("wide", (300, 41), "L"),
        ("tall", (33, 277), "RGB"),
        ("tiny", (7, 9), "L"),
        ("large", (501, 397), "L"),
    ):
        draw(folder / f"{name}.png", len(name), size, mode)
    Image.open(folder / "colour.png").convert("P").save(folder / "palette.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(folder / "large.png").save(folder / "turned.jpg", exif=turned)
    deep = np.asarray(Image.open(folder / "large.png")).astype(np.uint16) * 16 + 7
    Image.fromarray(deep).save(folder / "deep.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures") / "set"
    folder.mkdir()
    return pictures(folder)


def script(rules: Any) -> dict[str, Any]:
    """The functions of the script, without a session."""
    names: dict[str, Any] = {"np": np, "rules": rules}
    exec("from PIL import Image, ImageOps\n" + SCRIPT[SCRIPT.index("def prepare") :], names)
    return names


@pytest.mark.parametrize(
    "transform",
    [
        TransformSpec((32, 32), 0.875, "bilinear", *GRAY),
        TransformSpec((33, 33), 0.9, "bicubic", *GRAY),
        TransformSpec((224, 224), 0.95, "lanczos", *GRAY),
        TransformSpec((31, 31), 1.0, "nearest", *GRAY),
        TransformSpec((32, 48), 0.9, "bicubic", *GRAY, crop_mode="squash"),
    ],
    ids=lambda spec: f"{spec.input_size}{spec.interpolation}",
)
def test_the_script_prepares_every_picture_as_a_pass_does(transform: TransformSpec, files: list[Path]) -> None:
    rules = preprocessing(transform, DecodeSpec(bit_depth=12, is_settled=True))
    for path in files:
        expected = transform(decode(path.read_bytes(), DecodeSpec(bit_depth=12)))
        whole = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
        assert np.array_equal(script(rules)["prepare"](path), whole.transpose(2, 0, 1)), path.name


@pytest.mark.slow
def test_the_script_gives_the_probabilities_of_predict(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = draw_classes(tmp_path / "images")
    shutil.copy(next(path for path in files if path.name == "deep.png"), images / "train" / "sick" / "deep.png")
    embed(Manifest.read(images), tmp_path / "s.h5", BackboneSpec(SMALL, "random:0", input_size=32), device="cpu")
    with Store.open(tmp_path / "s.h5") as store:
        run = train_head(store, HeadSpec(epochs=2), tmp_path / "run", split=SplitSpec(val_fraction=0.25))
    export_onnx(run, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(SCRIPT, names)
    with load_run(run.path, device="cpu") as predictor:
        expected = predictor.predict(files)
    assert names["classes"] == expected.classes
    np.testing.assert_allclose(names["predict"](files), expected.probabilities, atol=1e-4)
