"""python -m tests.faults [--quick] [PROOF …]      runs proofs and prints a table; no name is all of them."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.faults import LONG, QUICK


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("proofs", nargs="*", choices=[[], *LONG], metavar="PROOF", help=f"any of {', '.join(LONG)}")
    parser.add_argument("--quick", action="store_true", help="the short versions, as pytest runs them")
    arguments = parser.parse_args()
    proofs = QUICK if arguments.quick else LONG
    n_broken = 0
    print("| proof | tried | held | seconds |\n|---|--:|--:|--:|", flush=True)
    for name in arguments.proofs or proofs:
        work = Path(tempfile.mkdtemp(prefix=f"featcache-{name}-", dir=_memory()))
        try:
            figures = proofs[name](work)
            print(figures.row(), flush=True)
            n_broken += len(figures.broken)
        except pytest.skip.Exception as reason:
            print(f"| {name} (skipped: {reason}) | 0 | 0 | 0 |", flush=True)
        finally:
            shutil.rmtree(work)
    return min(1, n_broken)


def _memory() -> str | None:
    """A file system in memory, where there is one: only the pace of these proofs depends on a disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
