"""A Run as an ONNX file says what the Run says, and no file is left that does not."""

import builtins
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from featcache.embedding import embed
from featcache.errors import FeatcacheError, UsageError
from featcache.manifest import Manifest
from featcache.prediction import onnx_export
from featcache.prediction.onnx_export import export_onnx
from featcache.prediction.predictor import load_run
from featcache.prediction.run_backbone import backbone_of
from featcache.runs import Run
from featcache.specs import BackboneSpec, HeadSpec, SplitSpec, TargetSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import draw_classes
from tests.test_cli import featcache

QUICK = HeadSpec(epochs=2)
MLP = HeadSpec.of("mlp", hidden_sizes=(5,), epochs=2)
HELD = SplitSpec(val_fraction=0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_classes(tmp_path_factory.mktemp("onnx") / "images").parent


def run_of(folder: Path, name: str, spec: HeadSpec, size: int = 32, **asked: Any) -> Run:
    """A Run of a network with random weights, on a store that is made where it is not there."""
    taps = ("pooled", "grid") if spec.kind == "flatten-mlp" else ("pooled",)
    store_path = folder / f"{name}-{len(taps)}.h5"
    backbone = BackboneSpec(name, "random:0", input_size=size, taps=taps)
    embed(Manifest.read(folder / "images"), store_path, backbone, device="cpu")
    with Store.open(store_path) as store:
        return train_head(store, spec, folder / f"{name}-{spec.kind}", split=HELD, **asked)


def pixels_of(run: Run, folder: Path, n: int) -> tuple[np.ndarray, list[Path]]:
    """(n, 3, h, w) uint8 as the Run's images were resized and cropped, and the files."""
    paths = Manifest.read(folder / "images").paths[:n]
    transform = backbone_of(run, None, "cpu")[0].transform
    shown = [transform(Image.open(path).convert("RGB")) for path in paths]
    return np.stack(shown).transpose(0, 3, 1, 2), paths


def check_as_run(run: Run, folder: Path, data: bytes) -> None:
    """Of one image and of five, probabilities and logits are those of the Run."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    predictor = load_run(run.path, device="cpu")
    for n in (1, 5):
        images, paths = pixels_of(run, folder, n)
        logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
        expected = predictor.predict([np.asarray(Image.open(path)) for path in paths])
        assert probabilities.shape == (n, len(expected.classes))
        np.testing.assert_allclose(probabilities, expected.probabilities, atol=1e-4)
        np.testing.assert_allclose(logits, expected.logits, atol=1e-4 * max(1.0, float(np.abs(expected.logits).max())))


def metadata_of(data: bytes) -> dict[str, Any]:
    held = {entry.key: json.loads(entry.value) for entry in onnx.load_from_string(data).metadata_props}
    return {key.removeprefix("featcache."): value for key, value in held.items()}


# --- what it says -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[Run, bytes]:
    """A Run of a tiny EfficientNet, and its file."""
    run = run_of(folder, "test_efficientnet", MLP)
    return run, export_onnx(run, folder / "made.onnx").data


def test_onnxruntime_says_what_the_run_says(made: tuple[Run, bytes], folder: Path) -> None:
    check_as_run(made[0], folder, made[1])
    onnx.checker.check_model(onnx.load_from_string(made[1]))


FLATTENED = HeadSpec.of("flatten-mlp", hidden_sizes=(4,), epochs=2)
CASES = [  # beside the tiny EfficientNet of `made`
    ("test_resnet", QUICK, 32),
    ("mobilenetv2_035", HeadSpec.of("logreg"), 32),
    ("vgg11", HeadSpec.of("ridge"), 32),
    ("test_vit", QUICK, 160),
    ("simple-cnn", QUICK, 64),
    ("test_resnet", FLATTENED, 32),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "spec", "size"), CASES)
def test_networks_of_all_kinds_say_in_onnxruntime_what_they_say_in_torch(
    folder: Path, name: str, spec: HeadSpec, size: int
) -> None:
    run = run_of(folder, name, spec, size)
    path = folder / f"{name}-{spec.kind}.onnx"
    done = export_onnx(run, path)
    assert path.read_bytes() == done.data
    assert done.difference <= 1e-4
    onnx.checker.check_model(onnx.load_from_string(done.data))
    check_as_run(run, folder, done.data)


def test_the_file_says_what_has_to_be_known(made: tuple[Run, bytes]) -> None:
    run, data = made
    told, identity = metadata_of(data), run.record["store"]["identity"]
    assert told["classes"] == run.record["classes"]
    assert told["transform"] == identity["transform"]
    assert told["identity_sha256"] == run.record["identity_sha256"]
    assert told["weights_sha256"] == identity["backbone"]["weights_sha256"]
    assert told["temperature"] == run.record["temperature"]
    assert told["operating_point"] is None
    model = onnx.load_from_string(data)
    (entry,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    assert entry.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]
    assert "Not a medical device" in model.doc_string


def test_the_file_tells_nothing_of_the_machine_that_made_it(made: tuple[Run, bytes], folder: Path) -> None:
    for text in (b'File "', b"/featcache/", str(folder).encode(), str(Path.home()).encode() + b"/"):
        assert text not in made[1]


@pytest.mark.long
def test_the_same_run_is_the_same_bytes(made: tuple[Run, bytes]) -> None:
    assert onnx_export.build(made[0]).data == made[1]


@pytest.mark.long
def test_findings_have_a_sigmoid_each(folder: Path) -> None:
    run_of(folder, "test_resnet", QUICK)
    with Store.open(folder / "test_resnet-1.h5") as store:
        rows = enumerate(store.image_ids)
        (folder / "f.csv").write_text(
            "\n".join(["image_id,a,b", *(f"{name},{i % 2},{i // 2 % 2}" for i, name in rows)]) + "\n"
        )
        target = TargetSpec(("a", "b"), file=folder / "f.csv")
        run = train_head(store, QUICK, folder / "findings", target=target, split=HELD)
    data = export_onnx(run, folder / "findings.onnx").data
    check_as_run(run, folder, data)
    assert metadata_of(data)["task"] == "findings"


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_a_file_that_disagrees_is_not_left(
    made: tuple[Run, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file as it would be, had the exporter mistaken a number of the head by a hundredth."""
    model = onnx.load_from_string(made[1])
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == "head.bias"]
    bias.raw_data = (np.frombuffer(bias.raw_data, dtype=np.float32) + np.float32([0, 0.01])).tobytes()
    monkeypatch.setattr(onnx_export, "_program", lambda *given: None)
    monkeypatch.setattr(onnx_export, "_file", lambda *given: model.SerializeToString())
    with pytest.raises(FeatcacheError, match=r"other answers than the network .* Nothing was written\."):
        export_onnx(made[0], tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_no_network_is_refused(folder: Path, tmp_path: Path) -> None:
    run = run_of(folder, "test_efficientnet", HeadSpec.of("knn", n_neighbors=3))
    with pytest.raises(UsageError, match="a knn head, which is a search and no network"):
        export_onnx(run, tmp_path / "m.onnx")


def test_a_missing_extra_is_named(made: tuple[Run, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "onnxscript":
            raise ImportError(f"No module named {name!r}", name=name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"an ONNX file needs onnxscript: pip install 'featcache\[onnx\]'"):
        export_onnx(made[0], tmp_path / "m.onnx")


def test_what_the_graph_leaves_out_is_said(made: tuple[Run, bytes]) -> None:
    run = made[0]
    identity = {**run.record["store"]["identity"], "precision": "tf32", "stored_dtype": "float16"}
    asked = {**run.record["asked"], "tta": True}
    other = replace(run, record={**run.record, "asked": asked, "store": {**run.record["store"], "identity": identity}})
    model = load_run(run.path).model
    notes = onnx_export._notes(replace(model, tta=True), other)
    assert [note.split(";")[0] for note in notes] == [
        "the Run averages over augmented views",
        "the Run's vectors are of tf32",
        "the Run's vectors were stored as float16",
    ]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_export_and_bundle_answer_scripts(made: tuple[Run, bytes], folder: Path, tmp_path: Path) -> None:
    done = featcache("bundle", made[0].path, "-o", "m.fcb.zip", "--onnx", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["members"]["model.onnx"] == len(made[1])
    done = featcache("export-onnx", "m.fcb.zip", "-o", "m.onnx", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["input"] == {"name": "images", "shape": ["batch", 3, 32, 32], "dtype": "uint8"}
    assert answer["difference"] <= 1e-4
    check_as_run(made[0], folder, (tmp_path / "m.onnx").read_bytes())
