"""The two networks of our own: as backbones they behave like any other, and have the size that they say."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from featcache.backbones import listing, load, networks, resolve_name
from featcache.errors import UsageError, WeightsUnavailable
from featcache.heads import mlp
from featcache.specs import BackboneSpec, DecodeSpec, HeadSpec

HIDDEN_SIZES = {"simple-cnn": 1_568, "covid-cnn": 186_624}


def n_with_dense(name: str, n_classes: int) -> int:
    backbone = load(BackboneSpec(name, "random:0"))
    spec = HeadSpec.of("flatten-mlp", hidden_sizes=networks.DENSE[name])
    n_outputs = mlp.n_outputs(spec, n_classes, False)
    n_own = sum(parameter.numel() for parameter in backbone.module.parameters())
    return n_own + mlp.n_parameters(spec, backbone.n_features, n_outputs)


def test_covid_cnn_has_its_23_9_million_parameters() -> None:
    assert n_with_dense("covid-cnn", 2) == 23_935_041
    assert n_with_dense("covid-cnn", 4) == 23_935_236


def test_simple_cnn_is_small() -> None:
    assert n_with_dense("simple-cnn", 2) == 212_577


@pytest.mark.parametrize("name", sorted(HIDDEN_SIZES))
def test_an_own_network_loads_like_any_other(name: str) -> None:
    backbone = load(BackboneSpec(name, "random:0"))
    assert (backbone.name, backbone.weights_source, backbone.n_features) == (name, "random:0", HIDDEN_SIZES[name])
    transform = backbone.transform
    assert (transform.input_size, transform.crop_pct, transform.mean, transform.std) == (
        (224, 224),
        1.0,
        (0.5,) * 3,
        (0.5,) * 3,
    )
    assert backbone.weights_sha256 == load(BackboneSpec(name, "random:0")).weights_sha256
    assert backbone.weights_sha256 != load(BackboneSpec(name, "random:1")).weights_sha256
    assert backbone.identity(DecodeSpec(), "float32")["backbone"]["pooling"] == "none: the flattened feature map"


def by_hand(name: str, x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    padding = {"simple-cnn": 2, "covid-cnn": 0}[name]
    for i in ("0", "3"):
        x = functional.conv2d(x, weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], padding=padding)
        x = functional.max_pool2d(functional.relu(x), 2)
    return (functional.avg_pool2d(x, 8) if name == "simple-cnn" else x).flatten(1)


@pytest.mark.parametrize("name", sorted(HIDDEN_SIZES))
def test_vectors_are_the_flattened_map_of_two_convolutions(name: str) -> None:
    backbone = load(BackboneSpec(name, "random:0", taps=("pooled", "grid")))
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = backbone(pixels)
    expected = by_hand(name, pixels.float() / 127.5 - 1, backbone.module.state_dict())
    torch.testing.assert_close(found["pooled"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found["grid"].flatten(1), found["pooled"])
    assert found["pooled"].shape == (2, HIDDEN_SIZES[name])


def test_weights_come_from_a_file_with_exactly_these_tensors(tmp_path: Path) -> None:
    state = load(BackboneSpec("covid-cnn", "random:4")).module.state_dict()
    changed = {
        "whole": state,
        "short": {key: value for key, value in state.items() if key != "features.3.bias"},
        "long": {**state, "extra.weight": torch.ones(1)},
        "other": {**state, "features.0.bias": torch.ones(32)},
        "foreign": {"conv1.weight": torch.ones(64, 3, 3, 3)},
    }
    paths = {}
    for name, tensors in changed.items():
        paths[name] = str(tmp_path / f"{name}.safetensors")
        safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, paths[name])
    loaded = load(BackboneSpec("covid-cnn", paths["whole"]))
    assert loaded.weights_sha256 == load(BackboneSpec("covid-cnn", "random:4")).weights_sha256
    assert (loaded.weights_source, loaded.name) == ("file", "covid-cnn")
    for name, message in (
        ("short", "features.3.bias"),
        ("long", "extra.weight"),
        ("other", "another shape"),
        ("foreign", "conv1.weight"),
    ):
        with pytest.raises(UsageError, match=f"do not fit covid-cnn.*{message}") as refused:
            load(BackboneSpec("covid-cnn", paths[name]))
        assert "\n" not in str(refused.value)


def test_there_are_no_pretrained_weights_and_none_are_invented() -> None:
    for name in HIDDEN_SIZES:
        with pytest.raises(WeightsUnavailable, match=rf"{name} has no pretrained weights.*FILE.*random:0"):
            load(BackboneSpec(name))
        with pytest.raises(UsageError, match=f"{name} has no weights tagged 'in1k'. There are: none"):
            resolve_name(f"{name}.in1k")


def test_they_are_listed_and_near_to_their_misspellings() -> None:
    rows = {row["name"]: row for row in listing()}
    assert {name: rows[name]["n_features"] for name in HIDDEN_SIZES} == HIDDEN_SIZES
    assert [row["name"] for row in listing("*-cnn")] == list(networks.DENSE)
    assert rows["covid-cnn"]["n_parameters"] == 38_720
    with pytest.raises(UsageError, match="Near it: covid-cnn"):
        resolve_name("covid_cnn")


def test_an_image_too_small_for_two_convolutions_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot take images of 8x8"):
        load(BackboneSpec("covid-cnn", "random:0", input_size=8))
