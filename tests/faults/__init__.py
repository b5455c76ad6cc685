"""The proof that a store cannot lie: faults of every kind, again and again, and what must hold after each.

    calls       every call of a pass on its files: dies before, after or in the middle; disk full; device fails
    power       power cuts after every call, and all a disk may hold then
    kills       kill -9 at random moments of the real command line, within one pass; by fork, and by exec
    space       a disk that is full at every step from nothing to enough
    mutations   changed bytes, cuts and zeroed blocks of a store
    writers     several passes into one store at once
    rounds      two writers of one output, and a reader: stores, Runs, reports, bundles, exports, audits
    interrupted the same outputs, killed before each call
    zoo         every kind of file through the real command line
    mutants     the tests themselves: each protection taken away, and the test that notices

`python -m tests.faults` runs the long versions, `tests/test_faults.py` the short ones. Each proof is a function of a
folder to work in and a size, and returns figures: how often it was tried, how often everything held.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults.calls import calls
from tests.faults.ground import Figures
from tests.faults.kills import kills
from tests.faults.menagerie import menagerie
from tests.faults.mutations import mutations
from tests.faults.outputs import interrupted, rounds
from tests.faults.power import power
from tests.faults.space import space
from tests.faults.writers import writers
from tests.mutants import mutants

Proof = Callable[[Path], Figures]

QUICK: dict[str, Proof] = {
    "calls": partial(calls, every=101),
    "power": partial(power, every=101),
    "kills": partial(kills, n=8),
    "space": partial(space, step_kib=48),
    "mutations": partial(mutations, n=500),
    "writers": partial(writers, n=4),
    "rounds": partial(rounds, n=2),
    "interrupted": partial(interrupted, every=11),
    "zoo": menagerie,
}
LONG: dict[str, Proof] = {
    "calls": calls,
    "power": power,
    "kills": partial(kills, n=200, real=True),
    "kills-by-exec": partial(kills, n=20, real=True, by_fork=False),
    "space": space,
    "mutations": partial(mutations, n=10_000),
    "writers": partial(writers, n=100),
    "rounds": partial(rounds, n=200),
    "interrupted": interrupted,
    "zoo": menagerie,
    "mutants": mutants,
}
