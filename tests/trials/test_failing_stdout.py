"""`--json > /dev/full` ended in two tracebacks. A full disk behind stdout is one line and exit code 20; a reader that
has seen enough, or a closed stream, is no fault; what cannot be told on stderr is not told."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_store

RUN = f"{sys.executable} -m featcache"


def shell(command: str, cwd: Path) -> tuple[int, str]:
    """The exit code of the first program of a pipe, and what it says on stderr."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    script = f"{command}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stdout")
    make_store(folder / "s.h5", np.ones((30, 4)), {"label": ["a", "b"] * 15})
    return folder


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", ["info s.h5 --json", "info s.h5", "verify s.h5 --json", "--help", "--version"])
def test_a_full_disk_behind_stdout_is_one_line(folder: Path, command: str) -> None:
    code, said = shell(f"{RUN} {command} > /dev/full", folder)
    assert code == 20
    assert said.startswith("featcache: no space: writing standard output stopped (No space left on device).")
    assert said.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_the_cause_of_a_failure_is_not_hidden_by_that_of_its_answer(folder: Path) -> None:
    code, said = shell(f"{RUN} info nothing.h5 --json > /dev/full", folder)
    assert code == 10
    assert said.count("\n") == 1
    assert shell(f"{RUN} info nothing.h5 2> /dev/full", folder) == (10, "")


@pytest.mark.parametrize("command", ["info s.h5", "--help", "info s.h5 --json"])
def test_a_reader_that_has_seen_enough_is_no_fault(folder: Path, command: str) -> None:
    code, said = shell(f"{RUN} {command} | true", folder)
    assert code in (0, 141)
    assert said == ""


def test_closed_streams_are_no_fault(folder: Path) -> None:
    """And no file that is opened takes their place."""
    before = (folder / "s.h5").read_bytes()
    assert shell(f"{RUN} info s.h5 --json >&-", folder)[0] == 0
    assert shell(f"{RUN} info s.h5 2>&- >&- <&-", folder) == (0, "")
    assert (folder / "s.h5").read_bytes() == before
