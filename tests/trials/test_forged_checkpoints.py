"""A valid safetensors file with other metadata in `RUN.partial` gave a KeyError. What a training could not have written
is passed over, as a damaged checkpoint is, for the one before it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from featcache.finetune import fine_tune as finetune
from featcache.finetune.checkpoints import Checkpoints
from featcache.identity import digest_bytes
from featcache.manifest import Manifest
from featcache.runs import Run
from featcache.specs import BackboneSpec, HeadSpec, Recipe, SplitSpec, Stage
from tests.conftest import NET, draw_shadows

RECIPE = Recipe(stages=(Stage("last-block", 2),), backbone_lr=0.001)
Tensors = dict[str, torch.Tensor]


class Stop(Exception):
    """Ends a training."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forged")
    draw_shadows(folder / "images", 8)
    return folder


def train(folder: Path, path: Path, **callbacks: Any) -> Run:
    spec = BackboneSpec(NET, "random:0", input_size=32)
    return finetune.train(
        Manifest.read(folder / "images"), spec, HeadSpec(), RECIPE, path, split=SplitSpec(val_fraction=0.25),
        device="cpu", compile="off", **callbacks,
    )  # fmt: skip


def stopped(folder: Path, path: Path) -> Path:
    """A training that was stopped after its first epoch: its last checkpoint."""

    def stop(done: int, total: int, point: Any) -> None:
        raise Stop

    with pytest.raises(Stop):
        train(folder, path, on_epoch=stop)
    (last,) = path.with_name(f"{path.name}.partial").glob("*.safetensors")
    return last


def history(run: Run) -> list[dict[str, float]]:
    return run.history()


FORGED: dict[str, Callable[[Tensors, dict[str, Any]], tuple[Tensors, Any]]] = {
    "no state": lambda tensors, state: (tensors, None),
    "another state": lambda tensors, state: (tensors, {"epoch": 1}),
    "a text": lambda tensors, state: (tensors, "epoch 1"),
    "one field more": lambda tensors, state: (tensors, {**state, "more": 1}),
    "an epoch too late": lambda tensors, state: (tensors, {**state, "epoch": 99}),
    "an epoch that is a text": lambda tensors, state: (tensors, {**state, "epoch": "1"}),
    "no stage": lambda tensors, state: (tensors, {**state, "stage": 0}),
    "no history": lambda tensors, state: (tensors, {**state, "history": []}),
    "other names": lambda tensors, state: (tensors, {**state, "names": ["conv_stem.weight"]}),
    "watched otherwise": lambda tensors, state: (tensors, {**state, "watching": {"see": 1}}),
    "other tensors": lambda tensors, state: ({"w": torch.zeros(3)}, state),
    "other shapes": lambda tensors, state: ({name: t.flatten()[:1] for name, t in tensors.items()}, state),
    "NaN": lambda tensors, state: (
        {name: torch.full_like(t, torch.nan) if t.is_floating_point() else t for name, t in tensors.items()}, state),
    "moments of nothing": lambda tensors, state: ({**tensors, "moments/x/step": torch.zeros(())}, state),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", FORGED)
def test_a_forged_checkpoint_is_passed_over(folder: Path, tmp_path: Path, what: str) -> None:
    last = stopped(folder, tmp_path / "r")
    data = last.read_bytes()
    length = int.from_bytes(data[:8], "little")
    state = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["featcache"])
    tensors, state = FORGED[what](safetensors.torch.load(data), state)
    metadata = None if state is None else {"featcache": json.dumps(state)}
    forged = safetensors.torch.save({name: t.contiguous().clone() for name, t in tensors.items()}, metadata)
    (last.parent / f"fold-0-000002-{digest_bytes(forged)[:16]}.safetensors").write_bytes(forged)
    seen: list[int] = []
    run = train(folder, tmp_path / "r", on_epoch=lambda done, total, point: seen.append(done))
    assert seen == [2], "the first epoch is kept, the second was trained"
    assert len(run.history()) == 2


def test_any_safetensors_file_with_a_name_of_ours_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    with checkpoints.locked({"seed": 0}):
        checkpoints.save("fold-0", 1, {"w": torch.zeros(2)}, {"epoch": 1})
        for number, metadata in enumerate((None, {}, {"format": "pt"}, {"featcache": "{"}, {"featcache": "[" * 9999})):
            data = safetensors.torch.save({"w": torch.zeros(2)}, metadata)
            name = f"fold-0-{number + 2:06d}-{digest_bytes(data)[:16]}.safetensors"
            (checkpoints.folder / name).write_bytes(data)
        found = checkpoints.latest("fold-0")
        assert found is not None
        assert found[1] == {"epoch": 1}


@pytest.mark.slow
def test_a_training_goes_on_with_as_many_threads_as_it_was_begun_with(folder: Path, tmp_path: Path) -> None:
    """It was killed at one thread and went on at two, and its history was another one: sums over other pieces differ in
    their last bits."""
    torch.set_num_threads(1)
    whole = train(folder, tmp_path / "whole")
    stopped(folder, tmp_path / "r")
    torch.set_num_threads(2)
    notes: list[str] = []
    resumed = train(folder, tmp_path / "r", on_note=notes.append)
    assert torch.get_num_threads() == 2
    assert any("began with 1 thread(s) and continues with 1, not the 2" in note for note in notes)
    assert (resumed.path / "history.csv").read_bytes() == (whole.path / "history.csv").read_bytes()
    assert resumed.path.joinpath("head.safetensors").read_bytes() == (whole.path / "head.safetensors").read_bytes()


def test_a_plan_with_a_wrong_number_of_threads_is_none(tmp_path: Path) -> None:
    for wrong in (0, -1, "2", True, 10**9, None):
        checkpoints = Checkpoints(tmp_path / "run")
        with checkpoints.locked({"seed": 0}):
            checkpoints.save("fold-0", 1, {"w": torch.zeros(2)}, {"epoch": 1})
        path = checkpoints.folder / "plan.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "threads": wrong}))
        with checkpoints.locked({"seed": 0}):
            assert checkpoints.latest("fold-0") is None
            assert checkpoints.threads == torch.get_num_threads()
