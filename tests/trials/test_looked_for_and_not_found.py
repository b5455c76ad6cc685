"""What users tried and found missing: `HeadSpec(kind="mlp")` was refused, a store whose pass had not ended was "no such
store", and numbers of each class were in a file only."""

import re
from pathlib import Path

import numpy as np
import pytest

from featcache.cli.results import confusion_line
from featcache.errors import StoreNotFound
from featcache.specs import KINDS, HeadSpec
from featcache.store import Part, PartFolder, Store
from tests.conftest import make_store
from tests.test_cli import featcache


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_of_each_kind_has_the_defaults_of_its_kind(kind: str) -> None:
    assert HeadSpec(kind) == HeadSpec(kind=kind) == HeadSpec.of(kind)


def test_what_is_given_is_kept_also_where_it_is_the_default_of_another_kind() -> None:
    mlp = HeadSpec(kind="mlp", lr=HeadSpec().lr, norm="none")
    assert (mlp.lr, mlp.norm, mlp.hidden_sizes, mlp.dropout) == (0.003, "none", (256,), 0.5)
    assert "that of the kind" not in repr(mlp)


def unfinished(store_path: Path) -> PartFolder:
    """A pass of which a part is on disk, and that has not published anything."""
    folder = PartFolder(store_path, {"identity": {"made": "for a test"}, "n_rows": 4})
    with folder.locked():
        rows = Part(0, {"pooled": np.ones((2, 3), np.float32)}, ["a" * 64, "b" * 64], np.zeros(2, np.uint8), {})
        folder.write(rows)
    return folder


def test_a_store_whose_pass_has_not_ended_is_told_as_such(tmp_path: Path) -> None:
    unfinished(tmp_path / "s.h5")
    with pytest.raises(StoreNotFound, match=r"a pass into it is running, or was stopped .* featcache status"):
        Store.open(tmp_path / "s.h5")
    with pytest.raises(StoreNotFound, match="Make one with: featcache embed"):
        Store.open(tmp_path / "other.h5")


@pytest.mark.slow
def test_the_command_says_it_too(tmp_path: Path) -> None:
    unfinished(tmp_path / "s.h5")
    done = featcache("train-head", "s.h5", cwd=tmp_path)
    assert done.returncode == 10
    assert "featcache status s.h5 says which" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True], ids=["classes", "findings"])
def test_numbers_of_each_class_are_on_the_console(tmp_path: Path, several: bool) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    x = rng.standard_normal((90, 4)) + 2 * np.eye(4)[y]
    names = ["Edema", "Mass", "Nodule"]
    columns = {"label": [names[c] for c in y]}
    if several:
        columns = {name: [str(int(c == i)) for c in y] for i, name in enumerate(names)}
    make_store(tmp_path / "s.h5", x, columns)
    asked = [word for name in names for word in ("--label-column", name)] if several else []
    done = featcache("train-head", "s.h5", "-o", "run", "--epochs", "5", *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head = "finding +known +present" if several else "class +n"
    assert re.search(rf"each {'finding' if several else 'class'} on val:\n{head} +auroc +auprc +precision", done.stdout)
    for name in names:
        assert re.search(rf"^{name} +\d+ .*0\.\d\d\d", done.stdout, re.MULTILINE)


def test_confusions_of_many_classes_fit_on_a_screen() -> None:
    """They were a sentence of 2,500 numbers where there were 50 classes."""
    classes = [f"c{i}" for i in range(50)]
    matrix = (5 * np.eye(50, dtype=int) + np.eye(50, k=1, dtype=int)).tolist()
    matrix[7][3] = 4
    line = confusion_line(classes, matrix)
    assert line.startswith("53 of 303 are predicted as another class: 4 c7 predicted as c3, 1 c0 predicted as c1, ")
    assert line.count("predicted as c") == 10
    assert confusion_line(["a", "b"], [[3, 1], [0, 2]]) == (
        "of 4 a, 3 predicted as a, 1 predicted as b; of 2 b, 0 predicted as a, 2 predicted as b"
    )
