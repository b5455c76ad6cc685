"""`group_by` another column than the store's `group` let go of the patients: with sites kept together every held
patient was also in training. Both are kept together now, and the number of sets that this leaves is told."""

from pathlib import Path

import numpy as np
import pytest

from featcache.errors import UsageError
from featcache.specs import HeadSpec, SplitSpec
from featcache.splits.protocol import Protocol, divide
from featcache.splits.task import Task
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import make_store, two_clouds

N = 120
PATIENTS = [f"p{i // 4}" for i in range(N)]  # four images each, of two classes
TRAVELLED = {0: "s9", 5: "s8", 9: "s7"}  # patients who were at two sites


def sites(n_sites: int, travelled: dict[int, str]) -> list[str]:
    """Patients 3, 6, 9 and so on at one site; those who travelled have their last image from elsewhere."""
    return [travelled[i // 4] if i // 4 in travelled and i % 4 == 3 else f"s{i // 4 % n_sites}" for i in range(N)]


def store_of(folder: Path, **columns: list[str]) -> Store:
    x, labels = two_clouds(N, 4)
    return Store.open(make_store(folder / "s.h5", x, {"label": labels, **columns}))


def crossing(protocol: Protocol, values: list[str]) -> set[str]:
    """The values that are in training rows and in held ones of a fold."""
    sides = [({values[i] for i in f.train}, {values[i] for i in f.val} | {values[i] for i in protocol.test})
             for f in protocol.folds]  # fmt: skip
    return {value for train, held in sides for value in train & held - {""}}


@pytest.mark.parametrize("spec", [SplitSpec(group_by="site"), SplitSpec(group_by="site", n_splits=3)], ids=str)
def test_neither_sites_nor_patients_cross(tmp_path: Path, spec: SplitSpec) -> None:
    site = sites(10, TRAVELLED)
    with store_of(tmp_path, group=PATIENTS, site=site) as store:
        protocol = divide(Task.of(store), spec, None)
    assert not crossing(protocol, site)
    assert not crossing(protocol, PATIENTS)
    (note,) = protocol.notes
    assert "10 values of site and 30 values of group make 7 sets of images that stay together" in note


def test_the_run_keeps_the_note_and_it_is_told_before(tmp_path: Path) -> None:
    told: list[str] = []
    with store_of(tmp_path, group=PATIENTS, site=sites(10, TRAVELLED)) as store:
        split = SplitSpec(group_by="site")
        run = train_head(store, HeadSpec(epochs=1), tmp_path / "run", split=split, on_note=told.append)
    assert [note for note in run.record["notes"] if "7 sets of images" in note] == told[1:2]


def test_sites_that_share_no_patient_need_no_note(tmp_path: Path) -> None:
    with store_of(tmp_path, group=PATIENTS, site=sites(10, {})) as store:
        assert divide(Task.of(store), SplitSpec(group_by="site"), None).notes == []


def test_patients_named_instead_of_studies_keep_their_studies(tmp_path: Path) -> None:
    """The store's groups are studies; a study that was entered under two patients joins them."""
    studies = [f"e{i // 2}" for i in range(N)]
    studies[4] = studies[3]
    with store_of(tmp_path, group=studies, patient=PATIENTS) as store:
        protocol = divide(Task.of(store), SplitSpec(group_by="patient", n_splits=3), None)
    assert not crossing(protocol, PATIENTS) | crossing(protocol, studies)
    assert "30 values of patient and 60 values of group make 29 sets" in protocol.notes[0]


def test_unknown_sites_fall_back_to_the_patients(tmp_path: Path) -> None:
    site = ["" if i < 40 else name for i, name in enumerate(sites(10, {}))]
    with store_of(tmp_path, group=PATIENTS, site=site) as store:
        protocol = divide(Task.of(store), SplitSpec(group_by="site", n_splits=3), None)
    assert not crossing(protocol, PATIENTS) | crossing(protocol, site)


def test_too_few_sets_are_an_error_that_says_why(tmp_path: Path) -> None:
    """Everybody was everywhere: one set."""
    site = [f"s{i % 3}" for i in range(N)]
    with (
        store_of(tmp_path, group=PATIENTS, site=site) as store,
        pytest.raises(UsageError, match=r"3 values of site and 30 values of group make 1 sets of images"),
    ):
        divide(Task.of(store), SplitSpec(group_by="site"), None)


def test_the_own_groups_can_still_be_asked_for(tmp_path: Path) -> None:
    with store_of(tmp_path, group=PATIENTS, site=[f"s{i % 3}" for i in range(N)]) as store:
        protocol = divide(Task.of(store), SplitSpec(group_by="group"), None)
    assert len(np.unique(protocol.groups)) == 30
