"""`predict --keep k.h5` read what the store held before it had the lock, and took away what an `embed` published in
between. What is read to be written again is read under the lock."""

from pathlib import Path

import pytest

from featcache.embedding import embed
from featcache.errors import InputsChanged, StoreLocked, UsageError
from featcache.identity import Json
from featcache.manifest import Manifest
from featcache.runs import Run
from featcache.store import Store
from featcache.store.export import export
from tests.conftest import draw
from tests.trials.outputs import SPEC, Material, held_elsewhere, save_again


def images(folder: Path, n: int, **columns: str) -> Manifest:
    for i in range(n):
        if not (folder / f"{i}.png").exists():
            draw(folder / f"{i}.png", i)
    made = Manifest.read(folder)
    names = made.image_ids[:n]
    return Manifest(names, made.paths[:n], {name: [value] * n for name, value in columns.items()}, folder)


def test_rows_published_before_the_lock_are_not_lost(tmp_path: Path) -> None:
    """The pass has looked at the store; then another one adds to it; then the first has the lock."""
    more, few = images(tmp_path / "in", 6), images(tmp_path / "in", 4)
    embed(few, tmp_path / "k.h5", SPEC, n_workers=1)

    def meanwhile(path: Path, identity: Json) -> None:
        embed(more, path, SPEC, n_workers=1)

    (tmp_path / ".k.h5.seen").unlink()  # or there would be nothing to do for the pass
    with pytest.raises(UsageError, match=r"holds 2 images that are not among these: 4\.png, 5\.png"):
        embed(few, tmp_path / "k.h5", SPEC, n_workers=1, only_add=True, expect=meanwhile, rehash=True)
    assert len(Store.open(tmp_path / "k.h5")) == 6


def test_a_column_published_before_the_lock_is_not_lost(tmp_path: Path) -> None:
    few = images(tmp_path / "in", 3)
    embed(few, tmp_path / "k.h5", SPEC, n_workers=1)

    def meanwhile(path: Path, identity: Json) -> None:
        embed(images(tmp_path / "in", 3, label="sick"), path, SPEC, n_workers=1)

    more = images(tmp_path / "in", 5)
    embed(more, tmp_path / "k.h5", SPEC, n_workers=1, only_add=True, expect=meanwhile)
    with Store.open(tmp_path / "k.h5") as store:
        assert store.columns == {"label": ["sick"] * 3 + [""] * 2}


def test_without_only_add_a_store_becomes_what_the_manifest_says(tmp_path: Path) -> None:
    embed(images(tmp_path / "in", 4), tmp_path / "k.h5", SPEC, n_workers=1)
    done = embed(images(tmp_path / "in", 3), tmp_path / "k.h5", SPEC, n_workers=1)
    assert (done.n_dropped, len(Store.open(tmp_path / "k.h5"))) == (1, 3)


def test_an_export_over_a_store_waits_for_its_writer(material: Material, tmp_path: Path) -> None:
    with material.store as store:
        export(store, tmp_path / "o.h5")
        with held_elsewhere(tmp_path / "o.h5"), pytest.raises(StoreLocked):
            export(store, tmp_path / "o.h5")


def test_a_run_that_was_replaced_is_not_called_damaged(material: Material, tmp_path: Path) -> None:
    """Nor are the files of two Runs taken for those of one."""
    held = Run.open(material.folder / "run")
    save_again(held, tmp_path / "r", 0)
    opened = Run.open(tmp_path / "r")
    opened.weights()
    save_again(held, tmp_path / "r", 1)
    for read in (opened.weights, lambda: opened.table("history.csv") and opened.weights()):
        with pytest.raises(InputsChanged, match="was replaced since it was opened"):
            read()
    Run.open(tmp_path / "r").weights()
