"""The main job on real X-rays (Kermany et al. 2018, 5,840 images of 224 pixels) with real weights (MobileNetV2)."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from featcache.store import Store
from tests.conftest import KERMANY_GROUPS, shared

pytestmark = [pytest.mark.real, pytest.mark.slow]


def featcache(*arguments: object, cwd: Path) -> dict[str, object]:
    command = [sys.executable, "-m", "featcache", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def kermany(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("kermany")
    weights = shared("weights", "mobilenetv2_100.onnxzoo7.safetensors")
    answer = featcache(
        "embed", shared("data", "kermany224"), "-o", "k.h5", "--backbone", "mobilenetv2_100", "--weights", weights,
        "--crop-pct", "1.0", "--group-pattern", KERMANY_GROUPS, cwd=folder,
    )  # fmt: skip
    return folder / "k.h5", answer


def test_every_image_is_embedded(kermany: tuple[Path, dict[str, object]]) -> None:
    _, answer = kermany
    assert [answer[key] for key in ("found", "skipped", "embedded", "failed", "dim")] == [5840, 3, 5840, 0, 1280]


def test_vectors_equal_a_plain_timm_loop(kermany: tuple[Path, dict[str, object]]) -> None:
    network = timm.create_model("mobilenetv2_100", num_classes=0).eval()
    network.load_state_dict(safetensors.torch.load_file(shared("weights", "mobilenetv2_100.onnxzoo7.safetensors")))
    config = {**timm.data.resolve_data_config(model=network), "crop_pct": 1.0}
    transform = timm.data.create_transform(**config)
    images = shared("data", "kermany224")
    with Store.open(kermany[0]) as store:
        rows = range(0, len(store), 97)
        names, found = [store.image_ids[i] for i in rows], store.features()[list(rows)]
    with torch.inference_mode():
        pixels = [transform(Image.open(images / name).convert("RGB")) for name in names]
        expected = torch.cat([network(batch) for batch in torch.stack(pixels).split(16)]).numpy()
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() <= 1e-5


def test_a_linear_head_scores_as_it_should(kermany: tuple[Path, dict[str, object]]) -> None:
    path, _ = kermany
    how = ("--folds", 5, "--group-by", "group", "--class-weight", "balanced", "--operating-point", "youden")
    answer = featcache("train-head", path, "--head", "linear", *how, cwd=path.parent)
    assert answer["n_parameters"] == 2562
    at_point = answer["operating_point"]["test"]
    assert answer["test"]["n"] == at_point["n"] == 624
    assert answer["test"]["auroc"] >= 0.95
    assert at_point["accuracy"] >= 0.84
    for numbers, name in ((answer["test"], "auroc"), (at_point, "accuracy")):
        low, high = numbers["intervals"][name]
        assert low < numbers[name] < high
    assert any("validation and test disagree" in note for note in answer["notes"])


def test_an_mlp_has_the_parameters_it_should(kermany: tuple[Path, dict[str, object]]) -> None:
    answer = featcache("train-head", kermany[0], "--head", "mlp", "--epochs", 5, cwd=kermany[0].parent)
    assert answer["n_parameters"] == 328_962
    assert answer["test"]["auroc"] >= 0.93


def test_an_audit_finds_copies_and_what_crosses_the_split(kermany: tuple[Path, dict[str, object]]) -> None:
    answer = featcache("audit", kermany[0], "--images", shared("data", "kermany224"), cwd=kermany[0].parent)
    assert (answer["identical"]["sets"], answer["identical"]["images"]) == (30, 62)
    assert answer["identical"]["across_splits"] == answer["identical"]["different_labels"] == []
    assert answer["near"]["pairs"] == 34
    nearest = answer["near"]["nearest_across_splits"]
    assert [each["near"] for each in nearest[:3]] == ["yes", "yes", "no"]
    assert answer["label_from_vectors"]["auroc"] >= 0.985
    (split,) = answer["confounds"]  # all images have one size and format
    assert split["name"] == "split"
    assert 0.6 < split["from_vectors"]["low"] < split["from_vectors"]["high"] < 0.8


def test_h5py_alone_finds_everything(kermany: tuple[Path, dict[str, object]]) -> None:
    with h5py.File(kermany[0]) as file:
        assert file["features/pooled"].shape == (5840, 1280)
        labels, sides = (np.char.decode(file[f"columns/{name}"][:]) for name in ("label", "split"))
        assert len(np.unique(file["image_id"][:])) == 5840
        assert len(np.unique(file["columns/group"][:])) > 2000
    counts = {
        (side, label): int(np.sum((sides == side) & (labels == label))) for side in set(sides) for label in set(labels)
    }
    assert counts == {
        ("train", "NORMAL"): 1341, ("train", "PNEUMONIA"): 3875, ("test", "NORMAL"): 234, ("test", "PNEUMONIA"): 390,
    }  # fmt: skip
