"""The COVID pipeline runs on phantoms, and has the parameters that are published."""

import importlib
import io
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from featcache import Run, Store

PIPELINES = Path(__file__).parents[1] / "pipelines"


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PIPELINES))  # as for a script
        return importlib.import_module("d_covid_backbones")


@pytest.fixture(scope="module")
def rehearsed(pipeline: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("d")
    pipeline.main(["--quick", "-o", str(folder)])
    return folder / "quick"


def rows(folder: Path, title: str) -> list[list[str]]:
    """The cells below a title of the page."""
    text = (folder / "compared.md").read_text("utf-8").split(title)[1]
    return cells(text[text.index("|") :].split("\n\n")[0])


def cells(table: str) -> list[list[str]]:
    """Of a table in Markdown, without its header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def runs(folder: Path) -> list[Run]:
    return [Run.open(path.parent) for path in sorted(folder.glob("*/*/run.json"))]


def test_every_model_has_as_many_trainable_parameters_as_are_published(pipeline: ModuleType) -> None:
    table = cells(pipeline.counted())
    assert {name for name, *_ in table} == set(pipeline.NETWORKS)
    for _, _, two, published_two, four, published_four in table:
        assert (two, four) == (published_two, published_four)


def test_the_grids_are_those_that_are_published(pipeline: ModuleType) -> None:
    from featcache.specs import grid

    sizes = {what: len(grid(["flatten-mlp"], options)) for what, options in pipeline.GRIDS.items()}
    assert {what: 3 * n for what, n in sizes.items()} == {"binary": 270, "four": 54, pipeline.OWN: 108}


@pytest.mark.long
def test_a_rehearsal_has_a_run_of_every_model(rehearsed: Path, pipeline: ModuleType) -> None:
    told = {(task, name): numbers for task, name, *numbers in rows(rehearsed, "Accuracy")}
    models = {(task, name) for task in pipeline.TASKS for name in [*pipeline.NETWORKS, "VGG16 tuned"]}
    assert set(told) == models | {("four", "own CNN tuned")}
    published = {(task, name): each for task, of in pipeline.PUBLISHED.items() for name, each in of.items()}
    for key, (_, _, val, _, test) in told.items():
        assert [val, test] == ["–" if value is None else f"{value:.3f}" for value in published.get(key, (None, None))]


@pytest.mark.long
def test_all_five_networks_have_seen_the_same_images_and_keep_their_maps(rehearsed: Path) -> None:
    stores = [Store.open(path) for path in sorted((rehearsed / "binary").glob("*.h5"))]
    assert len(stores) == 5
    assert len({tuple(store.content_sha256) for store in stores}) == 1
    assert len({store.identity_sha256 for store in stores}) == 5
    assert all("grid" in store.taps for store in stores)


@pytest.mark.long
def test_what_is_told_is_what_the_runs_say(rehearsed: Path) -> None:
    said = {(run.path.parent.name, run.n_parameters, run.metrics("test")["accuracy"]) for run in runs(rehearsed)}
    for task, _, n, _, _, test, _ in rows(rehearsed, "Accuracy"):
        assert any(
            where == task and f"{parameters:,}" == n and f"{accuracy:.3f}" == test
            for where, parameters, accuracy in said
        )


@pytest.mark.long
def test_a_grid_is_ranked_by_loss_over_three_folds(rehearsed: Path) -> None:
    (tuned,) = [run for run in runs(rehearsed) if run.sweep() and run.path.parent.name == "binary"]
    losses = [float(row["loss_mean"]) for row in tuned.sweep()]
    assert losses == sorted(losses)
    assert {row["n_fits"] for row in tuned.sweep()} == {"3"}
    assert len(tuned.protocol().folds) == 3


@pytest.mark.long
def test_the_map_of_the_hidden_layer_shows_every_class(rehearsed: Path) -> None:
    for task in ("binary", "four"):
        with Image.open(io.BytesIO((rehearsed / f"{task}-hidden.png").read_bytes())) as image:
            colors = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
        assert len(colors) > 10


@pytest.mark.long
def test_a_rehearsal_again_finds_what_is_there(rehearsed: Path, pipeline: ModuleType) -> None:
    before = {path: path.stat().st_mtime_ns for path in rehearsed.glob("*/*/run.json")}
    page = (rehearsed / "compared.md").read_bytes()
    pipeline.main(["--quick", "-o", str(rehearsed.parent)])
    assert {path: path.stat().st_mtime_ns for path in rehearsed.glob("*/*/run.json")} == before
    assert (rehearsed / "compared.md").read_bytes() == page
