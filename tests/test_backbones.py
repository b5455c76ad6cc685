"""A name to a frozen network: the right vectors, the right digest, and no silent substitute for missing weights."""

import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from featcache.backbones import listing, load, resolve_name, weights
from featcache.embedding.forward import Forward
from featcache.errors import UntrustedFile, UsageError, WeightsUnavailable
from featcache.specs import BackboneSpec

SMALL = "resnet18"  # with the tensors and the tags of a network people use

HIDDEN_SIZES = {
    "efficientnet_b1": 1280,
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "vgg16": 512,
    "vgg19": 512,
    "inception_resnet_v2": 1536,
    "xception": 2048,
}
LARGE_OR_ALIKE = {"resnet34", "resnet50", "vgg19", "inception_resnet_v2"}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return timm.create_model(SMALL, num_classes=10).state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in LARGE_OR_ALIKE else ()) for name in sorted(HIDDEN_SIZES)],
)
def test_backbone_embeds_to_its_width(name: str) -> None:
    backbone = load(BackboneSpec(name, "random:0", input_size=96))
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vectors = backbone(pixels)["pooled"]
    assert vectors.shape == (2, HIDDEN_SIZES[name])
    assert vectors.dtype == torch.float32
    assert backbone.n_features == HIDDEN_SIZES[name]
    assert torch.isfinite(vectors).all()


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100"])
def test_vectors_are_timms_own(name: str) -> None:
    backbone = load(BackboneSpec(name, "random:5"))
    torch.manual_seed(5)
    reference = timm.create_model(name, num_classes=0).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference(backbone.normalize(pixels))
    torch.testing.assert_close(backbone(pixels)["pooled"], expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


def test_vgg_gives_the_mean_of_its_feature_map() -> None:
    backbone = load(BackboneSpec("vgg11", "random:0", input_size=64))
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = backbone.module.forward_features(backbone.normalize(pixels)).mean(dim=(2, 3))
    torch.testing.assert_close(backbone(pixels)["pooled"], expected)
    assert sum(p.numel() for p in backbone.module.parameters()) < 10_000_000


def test_the_network_is_frozen_and_in_eval() -> None:
    module = load(BackboneSpec(SMALL, "random:0")).module
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(part.training for part in module.modules())


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_bare_name_gets_timms_default_tag() -> None:
    assert resolve_name("efficientnet_b1") == f"efficientnet_b1.{timm.get_pretrained_cfg('efficientnet_b1').tag}"
    assert resolve_name("resnet18.tv_in1k") == "resnet18.tv_in1k"
    assert resolve_name("xception").startswith("legacy_xception.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnetb1", "no backbone is named 'efficientnetb1'. Near it: .*efficientnet_b1"),
        ("resnet18.nonsense", "no weights tagged 'nonsense'. There are: .*resnet18.tv_in1k"),
        ("", "no backbone is named ''"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_name(name)


def test_listing_names_parameters_width_size_and_licence() -> None:
    row = next(row for row in listing("efficientnet_b1") if row["name"] == "efficientnet_b1")
    assert (row["n_parameters"], row["n_features"], row["input_size"]) == (6_513_184, 1280, 240)
    assert row["licence"] == "apache-2.0"
    by_name = {row["name"]: row["n_features"] for row in listing()}
    assert {
        name.replace("xception", "legacy_xception"): width for name, width in HIDDEN_SIZES.items()
    }.items() <= by_name.items()


# --- weights ----------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_weights_and_of_nothing_else(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    def digest(spec: BackboneSpec) -> str:
        return load(spec).weights_sha256

    headless = {key: value for key, value in state.items() if not key.startswith("fc.")}
    changed = {**headless, "conv1.weight": headless["conv1.weight"].clone()}
    changed["conv1.weight"][0, 0, 0, 0] += 1e-6
    paths = {}
    for name, tensors in (("whole", state), ("headless", headless), ("changed", changed)):
        paths[name] = str(tmp_path / f"{name}.safetensors")
        safetensors.torch.save_file(tensors, paths[name])
    torch.save(state, tmp_path / "whole.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pt")
    same = {
        digest(BackboneSpec(SMALL, str(p)))
        for p in (paths["whole"], paths["headless"], tmp_path / "whole.pth", tmp_path / "nested.pt")
    }
    assert len(same) == 1
    assert digest(BackboneSpec(SMALL, paths["changed"])) not in same
    assert digest(BackboneSpec(SMALL, "random:0")) == digest(BackboneSpec(SMALL, "random:0", input_size=32))
    assert digest(BackboneSpec(SMALL, "random:0")) != digest(BackboneSpec(SMALL, "random:1"))


def test_weights_in_an_older_layout_are_converted(tmp_path: Path) -> None:
    """torchvision's VGG. Its classifier, 124 million numbers that are dropped, is one zero here, repeated."""
    from torchvision.models import vgg

    with torch.device("meta"):
        original = vgg.vgg11(init_weights=False)
    torch.manual_seed(0)
    original.features = vgg.make_layers(vgg.cfgs["A"])
    state = {key: torch.zeros(()).expand(v.shape) if v.is_meta else v for key, v in original.state_dict().items()}
    torch.save(state, tmp_path / "vgg11.pth")
    backbone = load(BackboneSpec("vgg11", str(tmp_path / "vgg11.pth"), input_size=64))
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = original.eval().features(backbone.normalize(pixels))  # ends with the pooling of its last block
    torch.testing.assert_close(backbone(pixels)["pooled"], expected.mean(dim=(2, 3)))


def test_random_weights_leave_the_global_seed_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load(BackboneSpec(SMALL, "random:0"))
    assert torch.equal(torch.rand(3), expected)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({key: value for key, value in state.items() if key != "conv1.weight"}, path)
    with pytest.raises(UsageError, match=r"do not fit resnet18.*conv1\.weight"):
        load(BackboneSpec(SMALL, str(path)))
    safetensors.torch.save_file({**state, "extra.weight": torch.ones(1)}, path)
    with pytest.raises(UsageError, match=r"do not fit resnet18.*extra\.weight"):
        load(BackboneSpec(SMALL, str(path)))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harmed",)


def test_a_pickle_that_is_more_than_tensors_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"weight": Harmful()}, "w.pth")
    with pytest.raises(UntrustedFile, match=r"w\.pth is not a plain file of tensors.*mkdir"):
        load(BackboneSpec(SMALL, "w.pth"))
    assert not Path("harmed").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.safetensors", None, "no such file"),
        ("w.onnx", b"x", "is of no known format. A safetensors file or a checkpoint"),
        ("w.safetensors", b"\x08" + bytes(7) + b"{broken}", "not a whole safetensors file"),
        ("random:x", None, "the seed must be a whole number"),
    ],
)
def test_a_bad_weights_argument_says_what_is_wrong(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    weights = name if name.startswith("random") else str(tmp_path / name)
    with pytest.raises(UsageError, match=message):
        load(BackboneSpec(SMALL, weights))


@pytest.mark.usefixtures("empty_hub")
def test_unreachable_weights_are_an_error_that_names_the_ways_out() -> None:
    with pytest.raises(WeightsUnavailable, match=r"efficientnet_b1\.\w+ are not cached.*`weights`=FILE.*random:0"):
        load(BackboneSpec("efficientnet_b1"))


def test_cached_weights_are_found_without_a_network(empty_hub: Path, state: dict[str, torch.Tensor]) -> None:
    tag = resolve_name(SMALL)
    snapshot = empty_hub / f"models--timm--{tag}" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    safetensors.torch.save_file(state, snapshot / "model.safetensors")
    (empty_hub / f"models--timm--{tag}" / "refs").mkdir()
    (empty_hub / f"models--timm--{tag}" / "refs" / "main").write_text("a" * 40)
    backbone = load(BackboneSpec(SMALL))
    assert backbone.name == tag
    assert backbone.weights_source == "hub"
    assert torch.equal(backbone.module.state_dict()["conv1.weight"], state["conv1.weight"])


# --- the transform ----------------------------------------------------------------------------------------------------


def test_the_transform_is_the_models_own_unless_overridden() -> None:
    for name in ("efficientnet_b1.ft_in1k", "efficientnet_b1", "vgg16"):
        own = load(BackboneSpec(name, "random:0")).transform
        config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        assert own.identity() == {
            **{key: config[key] for key in ("crop_pct", "crop_mode", "interpolation")},
            **{key: list(config[key]) for key in ("mean", "std")},
            "input_size": list(config["input_size"][1:]),
        }
    changed = load(
        BackboneSpec("efficientnet_b1.ft_in1k", "random:0", 192, 1.0, "bilinear", (0.53,), (0.19, 0.2, 0.21))
    ).transform
    assert changed.input_size == (192, 192)
    assert (changed.crop_pct, changed.interpolation, changed.mean) == (1.0, "bilinear", (0.53, 0.53, 0.53))
    assert changed.std == (0.19, 0.2, 0.21)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("crop_pct", 2.0, "crop_pct"), ("input_size", -3, "input_size"), ("interpolation", "x", "interpolation")],
)
def test_an_impossible_transform_is_refused_by_its_name(field: str, value: object, message: str) -> None:
    with pytest.raises((ValueError, UsageError), match=message):
        load(BackboneSpec(SMALL, "random:0", **{field: value}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_vectors_of_the_cpu() -> None:
    pixels = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = list(pixels.permute(0, 2, 3, 1).numpy())
    spec = BackboneSpec("resnet50", "random:0", input_size=96)
    cpu, gpu = (Forward(load(spec, device), "off", 4, print).vectors(images)["pooled"] for device in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-4, atol=1e-4 * np.abs(cpu).max())


def test_the_hub_counts_as_unreachable_where_it_is_told_to_be_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not weights.hub_is_reachable()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not weights.hub_is_reachable()


@pytest.mark.usefixtures("empty_hub")
@pytest.mark.parametrize("state", [{}, {"fc.weight": torch.ones(2, 512)}, {1: torch.ones(1)}])
def test_weights_without_a_tensor_of_the_network_are_refused(tmp_path: Path, state: dict[object, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"do not fit resnet18.*they hold no tensor|holds no state dict"):
        load(BackboneSpec(SMALL, str(tmp_path / "w.pth")))
