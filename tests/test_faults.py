"""The short versions of the proofs in `tests/faults`: each holds at every try."""

from pathlib import Path

import pytest

from tests.faults import QUICK

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, so that what the proofs stand on is made once."""
    return tmp_path_factory.mktemp("faults")


def check(proof: str, work: Path) -> None:
    figures = QUICK[proof](work)
    if figures.note.startswith("skipped"):
        pytest.skip(figures.note)
    assert figures.broken == []
    assert figures.tried == figures.held > 0


def test_a_call_that_goes_wrong_loses_and_leaves_nothing(work: Path) -> None:
    check("calls", work)


def test_a_power_cut_takes_nothing_that_was_reported_as_safe(work: Path) -> None:
    check("power", work)


def test_kill_9_loses_no_finished_part(tmp_path: Path) -> None:
    check("kills", tmp_path)


def test_a_full_disk_is_said_and_survived_at_every_step(work: Path) -> None:
    check("space", work)


def test_every_changed_byte_that_can_be_read_is_found(tmp_path: Path) -> None:
    check("mutations", tmp_path)


def test_of_several_writers_exactly_one_computes(work: Path) -> None:
    check("writers", work)


def test_of_two_writers_of_an_output_nothing_is_lost_and_nothing_is_half(tmp_path: Path) -> None:
    check("rounds", tmp_path)


def test_a_killed_writer_leaves_the_old_output_or_the_new_one(tmp_path: Path) -> None:
    check("interrupted", tmp_path)


def test_a_pass_goes_on_past_every_kind_of_file(tmp_path: Path) -> None:
    check("zoo", tmp_path)
