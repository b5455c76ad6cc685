"""Where a training is between two epochs: whole or absent, of this training or refused, and the writer's alone."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from featcache.errors import NoSpace, StoreLocked, UsageError
from featcache.finetune.checkpoints import Checkpoints
from featcache.identity import digest_bytes

KEY = {"recipe": {"lr": 0.1}, "seed": 0}


def state(epoch: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    values = torch.arange(12, dtype=torch.float32).reshape(3, 4).t() + epoch
    return {"head/weight": values, "moments/0/step": torch.tensor(float(epoch))}, {
        "epoch": epoch,
        "best_score": -0.1 * epoch,
        "watching": {"_best": float("inf")},
    }


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(tmp_path / "run")
    with checkpoints.locked(KEY):
        yield checkpoints


def files(checkpoints: Checkpoints, name: str = "fold-0") -> list[Path]:
    return sorted(checkpoints.folder.glob(f"{name}-*.safetensors"))


@contextmanager
def file_size(n_bytes: int) -> Iterator[None]:
    """No file may become larger: what a full disk does to a write, at a place of our choice."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_last_one_comes_back_as_it_was(kept: Checkpoints) -> None:
    assert kept.latest("fold-0") is None
    for epoch in (1, 2, 3):
        kept.save("fold-0", epoch, *state(epoch))
    found = kept.latest("fold-0")
    assert found is not None
    tensors, told = found
    wanted, said = state(3)
    assert told == said
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in wanted.items())


def test_the_last_two_are_kept_of_each_training(kept: Checkpoints) -> None:
    """Fold 1 is not fold 10, and epoch 10 comes after epoch 9."""
    for name in ("fold-1", "fold-10", "final"):
        for epoch in range(1, 12):
            kept.save(name, epoch, *state(epoch))
    for name in ("fold-1", "fold-10", "final"):
        found = kept.latest(name)
        assert found is not None
        assert found[1]["epoch"] == 11
    assert [path.name[:13] for path in files(kept, "fold-1")] == ["fold-1-000010", "fold-1-000011"]
    assert len(files(kept, "*")) == 6
    assert kept.latest("fold-2") is None


@pytest.mark.parametrize("damage", ["a flipped bit", "cut off", "empty", "not one of ours"])
def test_a_damaged_one_is_passed_over_for_the_one_before_it(kept: Checkpoints, damage: str) -> None:
    for epoch in (1, 2):
        kept.save("fold-0", epoch, *state(epoch))
    last = files(kept)[-1]
    data = last.read_bytes()
    if damage == "not one of ours":
        data = b"no tensors"
        last.unlink()
        last = last.with_name(f"fold-0-000002-{digest_bytes(data)[:16]}.safetensors")
    last.write_bytes(
        {
            "a flipped bit": data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
            "cut off": data[:-1],
            "empty": b"",
            "not one of ours": data,
        }[damage]
    )
    found = kept.latest("fold-0")
    assert found is not None
    assert found[1]["epoch"] == 1
    files(kept)[0].unlink()
    assert kept.latest("fold-0") is None


def test_a_full_disk_leaves_the_last_one_and_no_part_of_another(kept: Checkpoints) -> None:
    kept.save("fold-0", 1, *state(1))
    before = sorted(path.name for path in kept.folder.iterdir())
    for n_bytes in (0, 1, 100, 200):
        with file_size(n_bytes), pytest.raises(NoSpace, match=r"no space: writing .*fold-0-000002"):
            kept.save("fold-0", 2, *state(2))
    assert sorted(path.name for path in kept.folder.iterdir()) == before
    found = kept.latest("fold-0")
    assert found is not None
    assert found[1]["epoch"] == 1
    kept.save("fold-0", 2, *state(2))


def test_a_folder_without_a_checkpoint_is_not_left_behind(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "run").locked(KEY):
        assert {path.name for path in tmp_path.iterdir()} == {".run.lock", "run.partial"}
    assert list(tmp_path.iterdir()) == []


def test_another_training_is_refused_with_what_differs(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    with checkpoints.locked(KEY):
        checkpoints.save("fold-0", 1, *state(1))
    other = {**KEY, "recipe": {"lr": 0.2}}
    with (
        pytest.raises(
            UsageError, match=r"holds an unfinished training that differs \(recipe\.lr: 0\.1 here, 0\.2 asked"
        ),
        checkpoints.locked(other),
    ):
        pass
    with checkpoints.locked(KEY):
        assert checkpoints.latest("fold-0") is not None


@pytest.mark.long
def test_what_was_stopped_before_its_first_epoch_binds_nobody(tmp_path: Path) -> None:
    """A process that was killed leaves its plan, and nothing that would be lost."""
    checkpoints = Checkpoints(tmp_path / "run")
    code = (
        "import os, sys; from pathlib import Path; from featcache.finetune.checkpoints import Checkpoints\n"
        "with Checkpoints(Path(sys.argv[1])).locked({'seed': 7}): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "run.partial" / "plan.json").exists()
    with checkpoints.locked(KEY):
        checkpoints.save("fold-0", 1, *state(1))
    with checkpoints.locked(KEY):
        assert checkpoints.latest("fold-0") is not None


def test_checkpoints_whose_plan_is_lost_are_not_taken_for_ours(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    for plan in ("", "null", '{"recipe":', None):
        with checkpoints.locked(KEY):
            checkpoints.save("fold-0", 1, *state(1))
        path = checkpoints.folder / "plan.json"
        path.unlink() if plan is None else path.write_text(plan)
        with checkpoints.locked(KEY):
            assert checkpoints.latest("fold-0") is None


@pytest.mark.long
def test_only_one_process_trains_at_a_place(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from featcache.finetune.checkpoints import Checkpoints\n"
        "with Checkpoints(Path(sys.argv[1])).locked({'seed': 7}): print('here', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"here\n"
        message = rf"run is being written by pid {other.pid} on {os.uname().nodename}"
        with pytest.raises(StoreLocked, match=message), checkpoints.locked(KEY):
            pass
        other.communicate()
    with checkpoints.locked(KEY), pytest.raises(StoreLocked), Checkpoints(tmp_path / "run").locked(KEY):
        pass


def test_what_somebody_else_put_there_stays(tmp_path: Path) -> None:
    """The name of a Run may be anything, and so may what is called like it."""
    folder = tmp_path / "run.partial"
    folder.mkdir()
    (folder / "thesis.txt").write_text("not ours")
    checkpoints = Checkpoints(tmp_path / "run")
    with checkpoints.locked(KEY):
        checkpoints.save("fold-0", 1, *state(1))
        checkpoints.remove()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
