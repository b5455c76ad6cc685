"""Checkpoints were refused for a prefix, a wrapper or a suffix, and the message was cut before it said so.

Whatever a training script leaves is read where every tensor of the network is in it, and what was taken off is said.
What does not fit is refused with all that is missing, unexpected and of another shape; what is no checkpoint is named.
"""

import argparse
import json
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from featcache.backbones import load
from featcache.embedding import embed
from featcache.errors import UntrustedFile, UsageError
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec, HeadSpec, SplitSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import SMALL

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def trained() -> State:
    """A network of three classes, as `state_dict()` gives it."""
    torch.manual_seed(7)
    return dict(timm.create_model(SMALL, num_classes=3).state_dict())


@pytest.fixture(scope="module")
def digest(trained: State, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    safetensors.torch.save_file(trained, path)
    return load(BackboneSpec(SMALL, str(path), input_size=32)).weights_sha256


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def headless(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def other(state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


WRITTEN: dict[str, Callable[[State], Any]] = {
    "ddp": lambda s: {"state_dict": under("module.", s), "epoch": 3},
    "lightning": lambda s: {
        "state_dict": {**under("model.", s), "criterion.pos_weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.3), "best": {}}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
        "pytorch-lightning_version": "2.4.0",
    },
    "compiled_ddp": lambda s: {"model_state_dict": under("module._orig_mod.", s), "loss": np.float32(0.3)},
    "timm": lambda s: {
        "state_dict": other(s),
        "state_dict_ema": s,
        "args": argparse.Namespace(lr=0.1, output=pathlib.Path("out"), seed=np.int64(3)),
        "metric": np.float64(71.3),
    },
    "dino": lambda s: {"student": under("module.backbone.", other(s)), "teacher": under("backbone.", s), "epoch": 9},
    "moco": lambda s: {
        "state_dict": {
            **under("module.encoder_k.", headless(other(s))),
            **under("module.encoder_q.", headless(s)),
            "module.queue": torch.ones(4, 4),
        }
    },
    "wrapper_of_ours": lambda s: {"net": {**under("encoder.", headless(s)), "head.1.weight": torch.ones(7, 4)}},
    "averaged": lambda s: {**under("module.", s), "n_averaged": torch.tensor(5)},
    "twice_wrapped": lambda s: {"checkpoint": {"model": {"state_dict": under("net.model.", s)}}, "step": 5},
    "another_classifier": lambda s: {
        **headless(s),
        "classifier.0.weight": torch.ones(11, 4),
        "aux_head.b": torch.ones(2),
    },
    "half_precision_without_counters": lambda s: {n: t for n, t in s.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("suffix", [".ckpt", ".pth.tar", ".bin", ".safetensors", ""])
def test_the_suffix_decides_nothing(trained: State, digest: str, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"best{suffix}"
    torch.save(WRITTEN["ddp"](trained), path)
    assert load(BackboneSpec(SMALL, str(path), input_size=32)).weights_sha256 == digest
    safetensors.torch.save_file(under("model.", trained), path)
    assert load(BackboneSpec(SMALL, str(path), input_size=32)).weights_sha256 == digest


@pytest.mark.parametrize("name", WRITTEN)
def test_a_checkpoint_of_a_training_script_is_the_network_in_it(
    trained: State, digest: str, tmp_path: Path, name: str
) -> None:
    torch.save(WRITTEN[name](trained), tmp_path / "w.pt", _use_new_zipfile_serialization=name != "timm")
    assert load(BackboneSpec(SMALL, str(tmp_path / "w.pt"), input_size=32)).weights_sha256 == digest


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "lightning",
            ["read from 'state_dict'", "prefix 'model.' was taken off", "criterion.pos_weight", "fc.weight [3,"],
        ),
        ("timm", ["read from 'state_dict_ema'", "those of state_dict would fit, too"]),
        ("moco", ["'module.encoder_q.' was taken off", "state_dict.module.encoder_k would fit", "outside of"]),
        ("another_classifier", ["2 tensors of a classifier are not used", "classifier.0.weight [11, 4]"]),
    ],
)
def test_what_was_taken_off_is_said(trained: State, tmp_path: Path, name: str, words: list[str]) -> None:
    torch.save(WRITTEN[name](trained), tmp_path / "w.pt")
    (note,) = load(BackboneSpec(SMALL, str(tmp_path / "w.pt"), input_size=32)).notes
    for word in [str(tmp_path / "w.pt"), *words]:
        assert word in note


def test_the_note_stays_with_the_store_and_its_runs(trained: State, class_folder: Path, tmp_path: Path) -> None:
    torch.save(WRITTEN["ddp"](trained), tmp_path / "best.pth.tar")
    notes: list[str] = []
    spec = BackboneSpec(SMALL, str(tmp_path / "best.pth.tar"), input_size=32)
    done = embed(Manifest.read(class_folder), tmp_path / "s.h5", spec, on_note=notes.append)
    (note,) = done.as_json()["notes"]
    assert "the prefix 'module.' was taken off" in note
    assert f"note: {note}" in notes
    again = embed(Manifest.read(class_folder), tmp_path / "s.h5", spec, on_note=notes.append)
    assert again.as_json()["notes"] == [note]
    with Store.open(tmp_path / "s.h5") as store:
        run = train_head(store, HeadSpec(epochs=1), tmp_path / "run", split=SplitSpec(val_fraction=0.25))
    assert note in run.record["notes"]


def test_a_plain_file_of_the_network_needs_no_note(trained: State, tmp_path: Path) -> None:
    safetensors.torch.save_file(headless(trained), tmp_path / "w.safetensors")
    assert load(BackboneSpec(SMALL, str(tmp_path / "w.safetensors"), input_size=32)).notes == ()


@pytest.mark.long
def test_torchvisions_layout_is_found_under_a_prefix_with_any_number_of_classes(tmp_path: Path) -> None:
    """Of VGG, whose dense layers are a classifier here. They are one zero each, repeated."""
    from torchvision.models import vgg

    with torch.device("meta"):
        original = vgg.vgg11(init_weights=False, num_classes=2)
    original.features = vgg.make_layers(vgg.cfgs["A"])
    state = {name: torch.zeros(()).expand(t.shape) if t.is_meta else t for name, t in original.state_dict().items()}
    torch.save({"model": under("module.", state)}, tmp_path / "vgg11.pth")
    backbone = load(BackboneSpec("vgg11", str(tmp_path / "vgg11.pth"), input_size=32))
    assert torch.equal(backbone.module.state_dict()["features.0.weight"], state["features.0.weight"])


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_stand_together(trained: State, tmp_path: Path) -> None:
    state = headless(trained)
    names = [name for name in state if name.startswith("layer1")]
    for name in names:
        state[f"blocks.{name}"] = state.pop(name)
    state["conv1.0.weight"] = state["conv1.0.weight"].mean(dim=1, keepdim=True)
    torch.save({"state_dict": under("module.", state)}, tmp_path / "w.pt")
    with pytest.raises(UsageError) as error:
        load(BackboneSpec(SMALL, str(tmp_path / "w.pt"), input_size=32))
    text, counters = str(error.value), sum(name.endswith("num_batches_tracked") for name in names)
    assert f"do not fit {SMALL}" in text
    assert "in 'state_dict' under the prefix 'module.'" in text
    assert f"{len(names) - counters} of {len(state)} tensors are missing ({names[0]}," in text
    assert f"{len(names)} are unexpected (blocks.{names[0]}," in text
    assert f"1 have another shape (conv1.0.weight {list(state['conv1.0.weight'].shape)} instead of" in text
    assert f"and {len(names) - 3} more" in text


def test_nothing_is_half_loaded(trained: State, tmp_path: Path) -> None:
    """A prefix on some of the tensors only, and a part of the network that is named as a classifier."""
    state, names = headless(trained), list(headless(trained))
    mixed = {("module." if i % 2 else "") + name: tensor for i, (name, tensor) in enumerate(state.items())}
    for wrong in (mixed, {**state, "layer5.0.weight": torch.ones(2)}, {n: state[n] for n in names[1:]}):
        torch.save(wrong, tmp_path / "w.pt")
        with pytest.raises(UsageError, match="do not fit"):
            load(BackboneSpec(SMALL, str(tmp_path / "w.pt"), input_size=32))


# --- what is none -----------------------------------------------------------------------------------------------------


def as_zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")


FOREIGN: dict[str, tuple[Callable[[Path, State], object], type[Exception], str]] = {
    "hdf5": (
        lambda p, s: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90)),
        UsageError,
        "an HDF5 file .weights of Keras",
    ),
    "keras": (lambda p, s: as_zip(p, "config.json", "model.weights.h5"), UsageError, "is a Keras model"),
    "onnx": (lambda p, s: p.write_bytes(b"\x08\x08\x12\x07pytorch" + bytes(90)), UsageError, "is an ONNX model"),
    "numpy": (lambda p, s: as_zip(p, "a.npy", "b.npy"), UsageError, "an archive of NumPy arrays"),
    "torchscript": (lambda p, s: as_zip(p, "m/constants.pkl", "m/data.pkl"), UsageError, "TorchScript"),
    "page": (lambda p, s: p.write_bytes(b"\n<!DOCTYPE html>" + bytes(90)), UsageError, "a web page.*download it again"),
    "lfs": (lambda p, s: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), UsageError, "git lfs pull"),
    "index": (lambda p, s: p.write_text(json.dumps({"weight_map": {}})), UsageError, "is JSON, perhaps the index"),
    "gzip": (lambda p, s: p.write_bytes(b"\x1f\x8b\x08" + bytes(90)), UsageError, "compressed by gzip"),
    "empty": (lambda p, s: p.write_bytes(b""), UsageError, "is empty"),
    "noise": (lambda p, s: p.write_bytes(b"\xff" * 90), UsageError, "of no known format"),
    "whole_model": (lambda p, s: torch.save(nn.Linear(2, 2), p), UntrustedFile, "wants torch.nn.modules.linear.Linear"),
    "arrays": (
        lambda p, s: p.write_bytes(pickle.dumps({"w": np.ones(2)}, 2)),
        UntrustedFile,
        "wants numpy.*reconstruct",
    ),
    "pickle": (lambda p, s: p.write_bytes(pickle.dumps(s, 4)), UntrustedFile, "wants more than torch.save writes"),
    "settings": (lambda p, s: torch.save({"epoch": 3, "args": {"lr": 0.1}}, p), UsageError, "holds no state dict"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_checkpoint_is_named_as_what_it_is(trained: State, tmp_path: Path, kind: str) -> None:
    make, error, words = FOREIGN[kind]
    make(tmp_path / "w.pth", trained)
    with pytest.raises(error, match=rf"w\.pth.*{words}"):
        load(BackboneSpec(SMALL, str(tmp_path / "w.pth"), input_size=32))


def test_a_checkpoint_cut_short_is_damaged(trained: State, tmp_path: Path) -> None:
    torch.save({"model": trained}, tmp_path / "new.pt")
    torch.save({"model": trained}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(trained, tmp_path / "w.safetensors")
    for name in ("new.pt", "old.pt", "w.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UsageError, match=r"damaged|not a whole safetensors file"):
            load(BackboneSpec(SMALL, str(tmp_path / name), input_size=32))
