"""The examples in docstrings are run as they stand."""

import doctest
import importlib
from pathlib import Path

import pytest

from featcache.specs import HeadSpec, TargetSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.test_report import embedded

MODULES = [
    "featcache.metrics.scores", "featcache.metrics.intervals", "featcache.metrics.calibration",
    "featcache.auditing.audit", "featcache.reporting.report", "featcache.training.train_head",
    "featcache.embedding.run",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store `chest.h5` with the columns label, split, group and view, and a Run `runs/linear`."""
    folder = tmp_path_factory.mktemp("examples")
    with Store.open(embedded(folder).rename(folder / "chest.h5")) as store:
        train_head(store, HeadSpec(epochs=2), folder / "runs" / "linear", target=TargetSpec(positive="sick"))
    return folder


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_are_true(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    result = doctest.testmod(importlib.import_module(name), verbose=False)
    assert result.attempted > 0
    assert result.failed == 0
