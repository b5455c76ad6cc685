"""Several processes train what one would have trained."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from featcache.finetune.distributed import ProcessGroup, process_group
from featcache.runs import Run
from tests import ranks

ROOT = Path(__file__).parents[1]


def together(n: int, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m …` in n processes of one machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launcher = ["torch.distributed.run", f"--nproc-per-node={n}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", *launcher, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=500)


def losses(run: Run) -> np.ndarray:
    return np.array([[point[f"{side}_{name}"] for side in ("train", "val") for name in ("loss", "accuracy")]
                     for point in run.history()])  # fmt: skip


# --- alone ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 5, 21])
def test_shares_are_even_and_in_order(n: int, size: int) -> None:
    shares = [ProcessGroup(rank, size).share(np.arange(n)) for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_that_torchrun_has_not_started_is_alone() -> None:
    module = nn.Linear(2, 2)
    with process_group("cpu", env={}) as processes:
        assert processes == ProcessGroup()
        assert processes.is_first
        assert processes.all_gather(7) == [7]
        assert processes.distributed(module, torch.device("cpu")) is module
        assert processes.device("cuda") == "cuda"
    assert ProcessGroup(1, 2, 1).device("cuda") == "cuda:1"
    assert ProcessGroup(1, 2, 1).device("cpu") == "cpu"


# --- two processes ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_processes_train_what_one_does(phase_one: Path, tmp_path: Path) -> None:
    """With norms whose statistics are of whole batches, dropout, class weights, pieces of batches, augmentation."""
    ranks.train_all(phase_one, tmp_path / "one")
    done = together(2, "-m", "tests.ranks", phase_one, tmp_path / "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ranks.CASES:
        one, two = (Run.open(tmp_path / side / name) for side in ("one", "two"))
        # Sums in another order differ in last digits, and that grows: to 1.8e-5 in the fourth epoch on one machine.
        np.testing.assert_allclose(losses(one)[:2], losses(two)[:2], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(losses(one), losses(two), atol=1e-4, err_msg=name)
        assert one.record["epoch"] == two.record["epoch"]
        assert one.record["recipe"] == two.record["recipe"]
        assert not list((tmp_path / "two").glob("*.partial"))
    assert done.stdout.count("refused: 2 processes cannot share 3 images") == 2
    assert not (tmp_path / "two" / "too-small").exists()


WHOLE = """
import sys, torch, torch.distributed as dist
from torch import nn
from featcache.finetune.distributed import SyncBatchNorms, process_group

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Flatten(),
                         nn.LazyLinear(6), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2))

with process_group("cpu") as processes:
    x = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    whole, part = net(), net()
    with torch.no_grad():
        whole(x), part(x)
    part.load_state_dict(whole.state_dict())
    y = torch.tensor([0, 1, 1, 0, 1, 0, 1])
    loss = nn.functional.cross_entropy(whole(x), y)
    loss.backward()
    mine = processes.share(torch.arange(7).numpy())
    with SyncBatchNorms(processes):
        z = part(x[mine])
        (nn.functional.cross_entropy(z, y[mine], reduction="sum") / 7).backward()
    for (name, a), b in zip(whole.named_parameters(), part.parameters()):
        dist.all_reduce(b.grad)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6, msg=name)
    for (name, a), b in zip(whole.named_buffers(), part.buffers()):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    with SyncBatchNorms(processes), torch.no_grad():
        torch.testing.assert_close(part.eval()(x), whole.eval()(x), rtol=1e-4, atol=1e-6)
"""


@pytest.mark.long
def test_norms_over_several_processes_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Outputs, gradients of everything below and above, and running statistics."""
    (tmp_path / "whole.py").write_text(WHOLE)
    done = together(2, tmp_path / "whole.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_of_several_processes_only_the_first_speaks(phase_one: Path, tmp_path: Path) -> None:
    command = ["fine-tune", phase_one / "linear", "--from-cache", phase_one / "tail.h5", "--epochs", 2, "--json",
               "--weights", phase_one / "net.safetensors", "--batch-size", 8, "-o", tmp_path / "run"]  # fmt: skip
    done = together(2, "-m", "featcache", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"run":') == 1
    assert done.stderr.count("epoch 2 of 2:") == 1
    refused = together(2, "-m", "featcache", *command[:-1], phase_one / "linear", cwd=tmp_path)
    assert refused.returncode != 0
    assert "holds another Run" in refused.stderr


def test_a_norm_of_one_process_is_torchs(tmp_path: Path) -> None:
    from featcache.finetune.distributed import SyncBatchNorms

    x = torch.randn(5, 3, 4, 4)
    with SyncBatchNorms(ProcessGroup()):
        found = functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(found, functional.batch_norm(x, None, None, training=True), rtol=0, atol=0)
