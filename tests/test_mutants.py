"""Every mutant still has its place: the code that it takes away stands in the package exactly once."""

from pathlib import Path

import pytest

import featcache
import tests.faults  # noqa: F401  # imports tests.mutants, which it lists
from tests.mutants import MUTANTS, Mutant

PACKAGE = Path(featcache.__file__).parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_has_its_place(mutant: Mutant) -> None:
    source = (PACKAGE / mutant.file).read_text("utf-8")
    mutated = mutant.applied(source)
    assert mutated != source
    compile(mutated, mutant.file, "exec")
    assert (Path(__file__).parent / mutant.test.partition("::")[0].split()[0]).is_file()
