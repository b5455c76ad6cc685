"""What changes a vector is refused at the same path; what only might is told; nothing else matters."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featcache import specs
from featcache.backbones import load, registry, weights
from featcache.embedding import embed
from featcache.errors import IdentityMismatch
from featcache.identity import environment, flatten
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec, DecodeSpec
from featcache.store import Part, PartFolder, Store, publish
from tests.conftest import draw

SPEC = BackboneSpec("test_resnet", "random:0", input_size=32)
IDENTITY = load(SPEC).identity(DecodeSpec(), "float32")
FIELDS = dict(flatten(IDENTITY))

# For each field of the identity, what a person or an update can do to change it: options of the backbone or of the
# decoding, or a constant of the code. A field that is added has no place here yet, and fails the test below.
KNOBS: dict[str, Any] = {
    "pipeline": (registry, "PIPELINE_VERSION", 2),
    "precision": {"precision": "bfloat16"},
    "probe": (specs.images, "_resampling", lambda name: Image.Resampling.BOX),
    "backbone.name": {"name": "test_efficientnet"},
    "backbone.weights_sha256": {"weights": "random:1"},
    "backbone.pooling": {"name": "vgg11"},
    "backbone.tap": {"taps": ("pooled", "grid")},
    "transform.input_size": {"input_size": 48},
    "transform.crop_pct": {"crop_pct": 0.5},
    "transform.interpolation": {"interpolation": "nearest"},
    "transform.mean": {"mean": (0.1,)},
    "transform.std": {"std": (0.3,)},
    "decode.gray16": DecodeSpec(bit_depth=12),
    "decode.float": DecodeSpec(float_range=(0.0, 1.0)),
    "stored_dtype": "float16",
}
FIXED = {  # rules that have no option: only a change of the code changes them
    "transform.crop_mode",
    *(f"decode.{rule}" for rule in ("decoder", "orientation", "alpha", "palette", "cmyk", "white_is_zero", "frames")),
    "decode.colour16", *(name for name in FIELDS if name.startswith("decode.dicom.")),
}  # fmt: skip


def changed(identity: dict[str, Any], field: str) -> dict[str, Any]:
    """The identity with one leaf of another value."""
    copy = json.loads(json.dumps(identity))
    *parents, leaf = field.split(".")
    inner = copy
    for name in parents:
        inner = inner[name]
    inner[leaf] = "something else"
    return copy


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    for i in range(3):
        draw(tmp_path / "images" / f"{i}.png", i)
    return Manifest.read(tmp_path / "images")


def published(path: Path, manifest: Manifest, identity: object, environments: list[object]) -> None:
    """A store of these images as if a pass with this identity and environment had made it."""
    folder = PartFolder(path, {"identity": identity})
    vectors = {"pooled": np.ones((3, 512), dtype=np.float32)}
    with folder.locked():
        folder.write(Part(0, vectors, [f"{i:064x}" for i in range(3)], np.zeros(3, dtype=np.uint8), {}))
        publish(path, folder.heads(), manifest.image_ids, {}, identity, environments)
        folder.clear()


def test_every_field_of_the_identity_has_a_knob_or_is_fixed() -> None:
    assert set(KNOBS) | FIXED == set(FIELDS)
    assert not set(KNOBS) & FIXED


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_a_store_that_differs_in_one_field_is_refused_by_its_name(
    field: str, manifest: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "s.h5"
    published(path, manifest, changed(IDENTITY, field), [environment()])
    before = path.read_bytes()
    with pytest.raises(IdentityMismatch) as caught:
        embed(manifest, path, SPEC)
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert len(lines) == 1
    said = "the libraries installed here decode " if field == "probe" else "something else here, "
    assert lines[0].startswith(f"  {field}: {said}")
    assert path.read_bytes() == before


@pytest.mark.parametrize("field", sorted(KNOBS))
def test_every_knob_reaches_its_field(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    knob = KNOBS[field]
    spec, decode, dtype = SPEC, DecodeSpec(), "float32"
    if isinstance(knob, tuple):
        monkeypatch.setattr(*knob)
    elif isinstance(knob, DecodeSpec):
        decode = knob
    elif isinstance(knob, dict):
        spec = replace(SPEC, **knob)
    else:
        dtype = knob
    assert dict(flatten(load(spec).identity(decode, dtype)))[field] != FIELDS[field]


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(field, marks=() if field in ("device", "python", "torch") else pytest.mark.long)
        for field in sorted(environment())
    ],
)
def test_another_environment_is_told_by_its_name_and_refuses_nothing(
    field: str, manifest: Manifest, tmp_path: Path
) -> None:
    path, notes = tmp_path / "s.h5", []
    published(path, manifest, IDENTITY, [{**environment(), field: "0.0.1"}])
    done = embed(manifest, path, SPEC, on_note=notes.append)
    assert done.counts.embedded == 3
    (note,) = notes
    assert f"{field} 0.0.1 (here {environment()[field]})" in note
    with Store.open(path) as store:
        assert [env[field] for env in store.environments] == ["0.0.1", environment()[field]]


def test_the_same_environment_is_not_told(manifest: Manifest, tmp_path: Path) -> None:
    notes: list[str] = []
    for _ in range(2):
        embed(manifest, tmp_path / "s.h5", SPEC, on_note=notes.append)
    assert not notes


def test_a_library_that_changes_pixels_is_refused_even_where_everything_is_remembered(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(manifest, tmp_path / "s.h5", SPEC)
    monkeypatch.setattr(specs.images, "_resampling", lambda name: Image.Resampling.HAMMING)
    with pytest.raises(IdentityMismatch, match="probe: the libraries installed here decode or resize images otherwise"):
        embed(manifest, tmp_path / "s.h5", SPEC)


def test_a_bare_name_never_matches_a_store_of_another_tag(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later timm may resolve the bare name to another tag: here, the hub gives each tag the same weights."""
    network = load(SPEC)
    asked: list[str] = []
    resolve: Callable[[str], str] = registry.resolve_name

    def hub(name: str, config: object) -> Path:
        asked.append(name)
        from safetensors.torch import save_file

        path = tmp_path / "models--x" / "snapshots" / "1" / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous() for key, value in network.module.state_dict().items()}, path)
        return path

    monkeypatch.setattr(weights, "_fetch", hub)
    embed(manifest, tmp_path / "s.h5", BackboneSpec("test_resnet", input_size=32))
    assert asked == ["test_resnet.r160_in1k"]
    (tmp_path / ".s.h5.seen").unlink()
    monkeypatch.setattr(registry, "resolve_name", lambda name: resolve(name).replace("r160", "r161"))
    monkeypatch.setattr(weights, "config_of", lambda name, real=weights.config_of: real(name.replace("r161", "r160")))
    monkeypatch.setattr(
        weights, "_with_state", lambda name, *rest, real=weights._with_state: real("test_resnet", *rest)
    )
    with pytest.raises(
        IdentityMismatch, match=r"backbone.name: test_resnet.r160_in1k here, test_resnet.r161_in1k asked"
    ):
        embed(manifest, tmp_path / "s.h5", BackboneSpec("test_resnet", input_size=32))
