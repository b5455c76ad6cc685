"""The zoo of files through the real command line: the pass goes on past every one of them.

What must hold: exit code 3; found + skipped are all the files there are; every image has a row, or a failure with its
pinned code; the memory of the pass and its workers stays under 1.5 GB together.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from featcache.errors import EXIT_SOME_FAILED
from featcache.store import Store
from tests import zoo
from tests.faults.ground import Figures, timed

_MAX_KB = 1_500_000


def menagerie(work: Path) -> Figures:
    """One pass over the whole zoo; a try is a file."""
    figures = Figures("zoo")
    answers = zoo.build(work / "zoo")
    with timed(figures):
        code, output, peak_kb = _embedded(work)
        answer = json.loads(output) if code == EXIT_SOME_FAILED else {}
        figures.count("the command", _wrong_end(code, answer, len(answers), peak_kb))
        if answer:
            with Store.open(work / "zoo.h5") as store:
                given = {
                    **dict.fromkeys(store.image_ids, "ok"),
                    **{name: code for name, (code, _) in store.failures.items()},
                }
            for name in sorted(answers.keys() | given.keys()):
                expected, found = answers.get(name, "not there"), given.get(name, "skipped")
                figures.count(ascii(name), [f"{found}, pinned is {expected}"] * (found != expected))
    figures.note = f"exit {code}; at most {peak_kb / 1e3:,.0f} MB"
    return figures


def _embedded(work: Path) -> tuple[int, bytes, int]:
    """The command's exit code and answer, and the sum of the highest marks of memory of all its processes, in kB."""
    options = ["--backbone", "test_resnet", "--weights", "random:0", "--input-size", "32", "--workers", "2", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "featcache", "embed", "zoo", "-o", "zoo.h5", *options],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    marks: dict[int, int] = {}
    while process.poll() is None:
        own = _read(process.pid, "cmdline")
        for pid in (process.pid, *_children(process.pid)):
            if pid == process.pid or _read(pid, "cmdline") != own:  # before its exec a child is its parent, seen twice
                marks[pid] = max(_highest_kb(pid), marks.get(pid, 0))
        time.sleep(0.02)
    output, _ = process.communicate()
    return process.returncode, output, sum(marks.values())


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:  # a thread that ended meanwhile
            continue
    return found


def _highest_kb(pid: int) -> int:
    lines = _read(pid, "status").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(b"VmHWM")), 0)


def _read(pid: int, name: str) -> bytes:
    """One of the files that the system keeps of a process; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _wrong_end(code: int | None, answer: dict[str, int], n: int, peak_kb: int) -> list[str]:
    found = answer.get("found", 0) + answer.get("skipped", 0)
    sums = answer.get("found") == sum(answer.get(key, 0) for key in ("embedded", "reused", "failed"))
    return (
        [f"ended with {code}"] * (code != EXIT_SOME_FAILED)
        + [f"found + skipped is {found}, there are {n}"] * (found != n)
        + ["found is not embedded + reused + failed"] * (not sums)
        + [f"{peak_kb:,} kB of memory"] * (peak_kb > _MAX_KB)
    )
