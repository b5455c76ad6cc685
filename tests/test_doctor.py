"""What is said of a machine is true of it, and nothing stays behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from featcache.doctor import NOTE, PROBLEM, WELL, Finding, doctor
from tests.test_cli import Done, featcache


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    folder = tmp_path_factory.mktemp("healthy")
    found = {finding.name: finding for finding in doctor(folder)}
    assert not list(folder.iterdir())
    return found


def told(done: Done) -> dict[str, dict[str, str]]:
    return {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}


def installed(folder: Path, name: str, version: str) -> None:
    """What an installer leaves of a library."""
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_where_the_tests_run_nothing_is_a_problem(healthy: dict[str, Finding]) -> None:
    assert {finding.state for finding in healthy.values()} <= {WELL, NOTE}
    assert {"featcache", "libraries", "devices", "compiler", "pretrained weights", "folder"} <= healthy.keys()
    assert f"{len(os.sched_getaffinity(0))} cores" in healthy["devices"].text
    assert "h5py" in healthy["libraries"].text
    assert all(bool(finding.remedy) == (finding.state != WELL) for finding in healthy.values())


def test_weights_that_are_out_of_reach_are_a_note_with_the_ways_out(healthy: dict[str, Finding]) -> None:
    """Tests are offline."""
    assert healthy["pretrained weights"].state == NOTE
    assert "the hub cannot be reached" in healthy["pretrained weights"].text
    assert "a file of weights" in healthy["pretrained weights"].remedy


@pytest.mark.parametrize("made", [True, False])
def test_what_is_no_folder_is_a_problem(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "there").write_bytes(b"kept")
    *_, folder = doctor(tmp_path / "there")
    assert (folder.name, folder.state) == ("folder", PROBLEM)
    assert "is no folder" in folder.text
    assert not made or (tmp_path / "there").read_bytes() == b"kept"


def test_a_folder_in_which_nothing_can_be_written_is_a_problem() -> None:
    *_, folder = doctor("/proc")
    assert (folder.name, folder.state) == ("folder", PROBLEM)


def test_the_command_line_says_it_to_people_and_to_scripts(healthy: dict[str, Finding], tmp_path: Path) -> None:
    done = featcache("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in healthy:
        assert name in done.stdout
    done = featcache("doctor", tmp_path / "[b]missing", "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["problems"] == 1
    assert told(done)["folder"]["text"] == f"{tmp_path / '[b]missing'} is no folder"
    assert "[b]missing is no folder" in done.stderr


def test_a_library_that_is_too_old_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path / "old", "h5py", "1.0")
    installed(tmp_path / "old", "onnx", "0.1")
    monkeypatch.syspath_prepend(tmp_path / "old")
    found = {finding.name: finding for finding in doctor(tmp_path)}
    assert found["libraries"].state == PROBLEM
    assert re.fullmatch(r"h5py 1\.0 is not >=3\.\d+", found["libraries"].text)
    assert found["extra onnx"].state == NOTE
    assert "onnx 0.1 is not >=" in found["extra onnx"].text
    assert "featcache[onnx]" in found["extra onnx"].remedy


def test_a_torch_that_does_not_fit_the_machine_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.99: cannot open shared object')\n")
    done = subprocess.run(
        [sys.executable, "-m", "featcache", "doctor", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = told(Done(done.returncode, done.stdout, done.stderr))
    assert "libcudart.so.99" in found["torch"]["text"]
    assert found["folder"]["state"] == WELL


def test_without_a_compiler_only_compiling_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = {finding.name: finding for finding in doctor(tmp_path)}
    assert found["compiler"].state == NOTE
    assert "g++" in found["compiler"].remedy
    assert PROBLEM not in {finding.state for finding in found.values()}
