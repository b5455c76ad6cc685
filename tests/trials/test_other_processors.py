"""Half of a store in bfloat16 made with the kernels of one kind of processor, half with those of another: no note.

What a low precision makes of built-in images is kept with the environment and compared before a store grows: what is
too unlike is refused, what is alike is said; in float32 nothing is kept and nothing asked.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featcache.embedding import embed, kernels
from featcache.errors import IdentityMismatch
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec
from featcache.store import CANARY, KERNELS, Store
from tests.conftest import NET, draw

LOW = BackboneSpec(NET, "random:0", input_size=32, precision="bfloat16")
ELSEWHERE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def grown(folder: Path) -> Manifest:
    draw(folder / "train" / "sick" / "more.png", 77)
    return Manifest.read(folder)


def test_the_kernels_and_what_they_make_are_kept_with_a_low_precision(class_folder: Path, tmp_path: Path) -> None:
    embed(Manifest.read(class_folder), tmp_path / "low.h5", LOW)
    embed(Manifest.read(class_folder), tmp_path / "full.h5", BackboneSpec(NET, "random:0", input_size=32))
    with Store.open(tmp_path / "low.h5") as low, Store.open(tmp_path / "full.h5") as full:
        (environment,) = low.environments
        assert environment[KERNELS] == kernels.name()
        assert kernels.cosine(environment[CANARY], environment[CANARY]) == pytest.approx(1)
        assert not {KERNELS, CANARY} & full.environments[0].keys()


@pytest.mark.long
def test_a_store_of_another_processor_grows_with_a_note_or_is_refused(class_folder: Path, tmp_path: Path) -> None:
    """By the kernels that this processor has for older ones."""
    command = [sys.executable, "-m", "featcache", "embed", class_folder, "-o", tmp_path / "s.h5", "--backbone", NET,
               "--weights", "random:0", "--input-size", "32", "--precision", "bfloat16"]  # fmt: skip
    subprocess.run(list(map(str, command)), env=os.environ | ELSEWHERE, check=True, capture_output=True)
    notes: list[str] = []
    try:
        embed(grown(class_folder), tmp_path / "s.h5", LOW, on_note=notes.append)
    except IdentityMismatch as error:
        notes.append(str(error))
    with Store.open(tmp_path / "s.h5") as store:
        made = store.environments[0][KERNELS]
    assert made != kernels.name()
    assert any(made in note and kernels.name() in note and "cosine" in note for note in notes)


@pytest.mark.parametrize("noise", [0.0, 0.001, 0.03])
def test_the_bound_is_a_cosine_of_0_9999(noise: float) -> None:
    x = np.random.default_rng(0).standard_normal((2, 1280))
    other = x + noise * np.random.default_rng(1).standard_normal((2, 1280))
    found = kernels.cosine(kernels.packed(x), kernels.packed(other))
    assert found is not None
    assert (found >= 0.9999) == (noise < 0.01)


def test_what_cannot_be_compared_is_not() -> None:
    x = kernels.packed(np.ones((2, 8)))
    for text in ("", "not base64!", kernels.packed(np.ones((2, 9))), "AAA="):
        assert kernels.cosine(x, text) is None


def test_the_same_processor_goes_on_without_a_word(class_folder: Path, tmp_path: Path) -> None:
    embed(Manifest.read(class_folder), tmp_path / "s.h5", LOW)
    notes: list[str] = []
    done = embed(grown(class_folder), tmp_path / "s.h5", LOW, on_note=notes.append)
    assert (done.counts.embedded, done.counts.reused) == (1, 12)
    assert not any("made with" in note for note in notes)
