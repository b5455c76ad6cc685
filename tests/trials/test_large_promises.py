"""A small file that names a giant network had it built before its weights were seen not to fit: out of memory.

Names, shapes and the numbers that really lie in a file are compared with a network without memory first; a network that
the machine cannot hold is refused before it is made.
"""

import json
import resource
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from featcache.backbones import load
from featcache.errors import CorruptStore, UsageError
from featcache.heads.mlp import head_module
from featcache.prediction.predictor import load_run
from featcache.specs import BackboneSpec, HeadSpec
from tests.conftest import SMALL

GIANT = "resnetv2_152x4_bit"  # 900 million parameters in few layers: 3.7 GB
LARGER = "vit_7b_patch16_dinov3"  # 27 GB


@pytest.fixture
def little_memory() -> Iterator[None]:
    """At most 2 GiB more than now: whoever builds what is promised has no memory for it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    state = load(BackboneSpec(SMALL, "random:0", 32)).module.state_dict()
    safetensors.torch.save_file({name: t.contiguous() for name, t in state.items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.mark.usefixtures("little_memory")
def test_a_giant_network_is_not_built_for_a_small_file(small: Path) -> None:
    with pytest.raises(UsageError, match=rf"do not fit {GIANT}.* tensors are missing .* are unexpected"):
        load(BackboneSpec(GIANT, str(small)))


@pytest.mark.usefixtures("little_memory")
def test_a_run_that_names_a_giant_network_is_refused(phase_one: Path, tmp_path: Path) -> None:
    """As a bundle that somebody else has made."""
    shutil.copytree(phase_one / "mlp", tmp_path / "run")
    shutil.copy(phase_one / "net.safetensors", tmp_path / "run" / "backbone.safetensors")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["store"]["identity"]["backbone"]["name"] = GIANT
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=f"do not fit {GIANT}"):
        load_run(tmp_path / "run", device="cpu").predict(phase_one / "images" / "test")


@pytest.mark.usefixtures("little_memory")
def test_one_number_repeated_is_no_network(tmp_path: Path) -> None:
    """Tensors of the right names and shapes, all of them views of a single number."""
    from featcache.backbones.weights import shapes_of, sketch

    zero = torch.zeros(())
    torch.save({name: zero.expand(shape) for name, shape in shapes_of(sketch(GIANT)).items()}, tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_size < 1 << 20
    with pytest.raises(UsageError, match=f"do not fit {GIANT}"):
        load(BackboneSpec(GIANT, str(tmp_path / "w.pt")))


@pytest.mark.usefixtures("little_memory")
def test_random_weights_that_do_not_fit_into_memory_are_refused() -> None:
    with pytest.raises(
        UsageError, match=rf"{LARGER} has 6,7\d\d,\d\d\d,\d\d\d parameters, which take 26\.9 GB of memory"
    ):
        load(BackboneSpec(LARGER, "random:0"))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("shape", [[10**6, 10**6], [10**12, 0], [2**40]])
def test_a_header_that_declares_more_than_the_file_has_is_refused(tmp_path: Path, shape: list[int]) -> None:
    n_bytes = 4 * int(np.prod(shape, dtype=object))
    header = json.dumps({"conv1.0.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, n_bytes]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UsageError, match=r"not a whole safetensors file|do not fit"):
        load(BackboneSpec(SMALL, str(tmp_path / "w.safetensors")))


@pytest.mark.usefixtures("little_memory")
def test_a_head_of_absurd_width_is_refused_by_its_tensors(phase_one: Path, tmp_path: Path) -> None:
    wide = HeadSpec.of("mlp", hidden_sizes=(16384, 16384))  # as wide as a spec may be: 1 GB
    with pytest.raises(UsageError, match="these are not the weights of a mlp head"):
        head_module(wide, {"hidden.0.weight": np.ones((2, 3), dtype=np.float32)}, 1.0, 2, 1, False)
    for hidden_sizes in ([10**12], [65536] * 3):
        shutil.copytree(phase_one / "mlp", tmp_path / "run", dirs_exist_ok=True)
        record = json.loads((phase_one / "mlp" / "run.json").read_text())
        record["head"]["hidden_sizes"] = hidden_sizes
        (tmp_path / "run" / "run.json").write_text(json.dumps(record))
        with pytest.raises(CorruptStore, match="is damaged"):
            load_run(tmp_path / "run")
