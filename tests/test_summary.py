"""What a terminal and a notebook show of a store, a Run and a pass: one screen, whatever the names contain."""

from pathlib import Path

import pytest

import featcache
from featcache.embedding.output import Counts, Embedded
from featcache.store import Store
from featcache.summary import Summary, counted
from tests.conftest import make_store, two_clouds


@pytest.fixture
def store(tmp_path: Path) -> Store:
    x, labels = two_clouds(60, 4)
    labels = ["<b>sick\n" if label == "sick" else label for label in labels]
    return Store.open(make_store(tmp_path / "s.h5", x, {"label": labels}))


def check_one_screen(shown: Summary, *words: str) -> None:
    text, html = repr(shown), shown._repr_html_()
    assert len(text.splitlines()) <= 20
    assert max(map(len, text.splitlines())) <= 140
    assert html.startswith("<table>")
    assert html.count("<tr>") == len(text.splitlines()) - 1
    for word in words:
        assert word in text
    assert "<b>" not in html


def test_a_store_and_a_run_show_themselves(store: Store, tmp_path: Path) -> None:
    check_one_screen(store, "images     60", "pooled 4", r"<b>sick\n")
    run = featcache.train_head(store, featcache.HeadSpec(epochs=2), tmp_path / "run")
    check_one_screen(run, "linear, 10 parameters", "val ", "auroc ", r"<b>sick\n")
    store.close()


def test_a_pass_shows_its_counts(tmp_path: Path) -> None:
    counts = Counts(embedded=3, reused=1, failed=1)
    done = Embedded(
        store=tmp_path / "s.h5", counts=counts, skipped={}, ungrouped=(), n_resumed=0, duplicates=(), n_dropped=0,
        dropped_columns=(), backbone="resnet18", weights="random:0", shapes={"pooled": (512,)}, identity={},
        seconds=2.0, notes=("a note " * 100,),
    )  # fmt: skip
    check_one_screen(done, "5 found = 3 embedded + 1 reused + 1 failed", "pooled 512", "…")


def test_many_names_are_counted() -> None:
    assert counted(list("abc")) == "a, b, c"
    assert counted(list("abcdefg")) == "a, b, c, d, e and 2 more"
