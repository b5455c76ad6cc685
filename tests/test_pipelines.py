"""Each pipeline runs on phantoms in the shape of the data it was written for, and says what its Runs say."""

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix

from featcache import Manifest, Run
from featcache.manifest.datasets import kermany

PIPELINES = Path(__file__).parents[1] / "pipelines"
INDIANA, PNEUMONIA = ("a_linear_probe_indiana", "b_cnn_mlp_indiana"), ("c_pneumonia_resnet34", "e_pneumonia_resnet18")

LONGER = {INDIANA[1], *PNEUMONIA}

Rehearsed = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def _beside_them() -> Iterator[None]:
    """As for a script, whose own folder is looked in first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PIPELINES))
        yield


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory, _beside_them: None) -> Rehearsed:
    """Runs a pipeline once on its phantoms; the folder of what it has written."""
    folder = tmp_path_factory.mktemp("pipelines")

    def run(name: str) -> Path:
        if not (folder / name).exists():
            pipeline(name).main(["--quick", "-o", str(folder / name)])
        return folder / name / "quick"

    return run


def pipeline(name: str) -> ModuleType:
    return importlib.import_module(name)


def runs_of(folder: Path) -> list[Run]:
    """In the order in which they were made."""
    return [Run.open(path.parent) for path in sorted(folder.glob("*/run.json"), key=lambda path: path.stat().st_mtime)]


def rows_of(page: Path, title: str) -> list[dict[str, str]]:
    """The table that stands below a title."""
    lines = page.read_text("utf-8").split(f"{title}\n\n")[1].split("\n\n")[0].splitlines()
    header, _, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


def on_test(run: Run) -> pd.DataFrame:
    table = pd.read_csv(run.path / "predictions.csv", dtype=str)
    return table[table["split"] == "test"].set_index("image_id")


def each(*names: str) -> pytest.MarkDecorator:
    marked = [pytest.param(name, marks=pytest.mark.long if name in LONGER else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked)


@pytest.mark.long
@each(*INDIANA, *PNEUMONIA)
def test_a_pipeline_ends_with_the_page_about_its_runs(rehearsed: Rehearsed, name: str) -> None:
    folder = rehearsed(name)
    page = (folder / "report.html").read_text("utf-8")
    assert all(run.path.name in page for run in runs_of(folder))


@each(*INDIANA)
def test_no_study_is_on_two_sides(rehearsed: Rehearsed, name: str) -> None:
    for run in runs_of(rehearsed(name)):
        study = pd.Series([image_id.split("_")[0] for image_id in run.images().image_ids])
        for fold in run.protocol().folds:
            assert len(fold.train) + len(fold.val) == len(study) == 48
            assert not set(study[fold.train]) & set(study[fold.val])


@pytest.mark.slow
def test_the_linear_probe_tells_the_five_numbers_of_every_epoch(rehearsed: Rehearsed) -> None:
    folder = rehearsed(INDIANA[0])
    (run,) = runs_of(folder)
    said, held = rows_of(folder / "compared.md", "Epochs:"), run.history()
    assert len(said) == len(held) == 40
    for name in ("loss", "accuracy", "precision", "recall", "f1"):
        for side in ("train", "val"):
            assert [row[f"{side} {name}"] for row in said] == [f"{point[f'{side}_{name}']:.3f}" for point in held]


@pytest.mark.long
def test_both_phases_are_in_one_history(rehearsed: Rehearsed) -> None:
    *_, tuned = runs_of(rehearsed(INDIANA[1]))
    assert [(point["phase"], point["epoch"]) for point in tuned.history()] == [(1, 1), (1, 2), (2, 3)]


@pytest.mark.long
def test_errors_and_missed_images_are_those_of_the_predictions(rehearsed: Rehearsed) -> None:
    folder = rehearsed(PNEUMONIA[0])
    said = {row["model"]: row for row in rows_of(folder / "compared.md", "Errors on the test folder, at p = 0.5:")}
    wrong = {}
    for name, run in zip(said, runs_of(folder), strict=True):
        table = on_test(run)
        confusion = confusion_matrix(table["label"], table["prediction"], labels=["NORMAL", "PNEUMONIA"])
        assert [said[name][f"false {kind}"] for kind in ("positives", "negatives")] == [
            str(confusion[0, 1]),
            str(confusion[1, 0]),
        ]
        assert said[name]["accuracy"].startswith(f"{accuracy_score(table['label'], table['prediction']):.3f} [")
        wrong[name] = set(table.index[table["label"] != table["prediction"]])
    missed = rows_of(folder / "compared.md", "Missed on the test folder:")
    assert sum(int(n) for row in missed for n in list(row.values())[1:]) == len(table) == 16
    for row in missed:
        names = set(row["missed by"].split(" and ")) - {"none"}
        by = [image for image in table.index if {name for name in wrong if image in wrong[name]} == names]
        assert sum(int(n) for n in list(row.values())[1:]) == len(by) > 0


@pytest.mark.long
def test_confusions_stand_beside_those_that_were_published(rehearsed: Rehearsed) -> None:
    folder = rehearsed(PNEUMONIA[1])
    rows = rows_of(folder / "compared.md", "On the test folder, at p = 0.5:")
    assert rows[0]["confusion"] == "[[114, 120], [1, 389]]"
    tables = [on_test(run) for run in runs_of(folder)]
    assert len(rows) == 2 + len(tables) == 6
    assert (
        (folder / "compared.md").read_text("utf-8").startswith("A rehearsal: the images are phantoms and the weights ")
    )
    assert not [row for row in rows[2:] if "ResNet18" in row["model"]], "a rehearsal calls nothing by a network's name"
    for row, table in zip(rows[2:], tables, strict=True):
        assert row["confusion"] == str(confusion_matrix(table["label"], table["prediction"]).tolist())


@pytest.mark.long
def test_what_is_finished_is_found_by_what_was_asked_and_not_made_again(rehearsed: Rehearsed, tmp_path: Path) -> None:
    showing, folder = importlib.import_module("showing"), rehearsed(PNEUMONIA[0])
    (model, *_), images = pipeline(PNEUMONIA[0]).models(asked(quick=True, weights=None)), kermany(folder / "images")
    how = folder, pipeline(PNEUMONIA[0]).SPLIT, pipeline(PNEUMONIA[0]).TARGET
    first = runs_of(folder)[0]
    before = (first.path / "run.json").stat().st_mtime_ns
    assert showing.trained(model, images.manifest, *how).path == first.path
    assert (first.path / "run.json").stat().st_mtime_ns == before
    made: list[Path] = []
    for what in (model, replace(model, recipe=replace(model.recipe, seed=1))):
        showing.once(tmp_path, model.name, (what,), lambda path: made.append(path) or first)
    assert len(set(made)) == 2


@pytest.mark.parametrize("name", PNEUMONIA)
def test_help_costs_no_import_of_torch(name: str) -> None:
    code = f"import sys, {name}\nassert not {{'torch', 'timm', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PIPELINES)


@pytest.mark.parametrize("name", PNEUMONIA)
def test_the_reduced_form_has_the_weights_it_is_given_and_no_larger_images(name: str) -> None:
    full = pipeline(name).models(asked(weights=None, quick=False))
    less = pipeline(name).models(asked(weights="mobilenet.safetensors", quick=False))
    assert [model.recipe.lr for model in less] == [model.recipe.lr for model in full]
    for one, other in zip(less, full, strict=True):
        assert one.recipe.epochs <= other.recipe.epochs
        assert one.backbone.input_size <= 224
        assert one.backbone.weights == ("random:0" if other.backbone.weights else "mobilenet.safetensors")


def test_a_third_is_of_whole_patients_in_the_proportion_of_the_classes() -> None:
    """Three images of each of 60 training patients, a third of them normal; nothing of `test` is left away."""
    label = ["NORMAL" if i // 3 % 3 == 0 else "PNEUMONIA" for i in range(180)]
    columns = {
        "label": [*label, *label[:9]],
        "group": [f"train/{i // 3}" for i in range(180)] + [f"test/{i}" for i in range(9)],
        "split": ["train"] * 180 + ["test"] * 9,
    }
    names = [f"{i:03d}.png" for i in range(189)]
    third = importlib.import_module("showing").third(Manifest(names, list(map(Path, names)), columns, Path()))
    kept = pd.DataFrame({**third.columns, "image_id": third.image_ids})
    assert (kept["split"] == "test").sum() == 9
    train = kept[kept["split"] == "train"]
    assert set(train.groupby("group").size()) == {3}
    assert len(train) == 60
    assert abs((train["label"] == "NORMAL").sum() - 20) <= 3


def asked(**given: object) -> object:
    return importlib.import_module("showing").Asked(Path("data"), Path("out"), **given)


def test_what_a_person_causes_is_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    (tmp_path / "file").write_text("mine")
    ended = importlib.import_module("showing").ended
    assert ended(stopped) == 130
    assert ended(lambda: (tmp_path / "file" / "below").mkdir()) == 74
    said = capsys.readouterr().err.splitlines()
    assert said == ["stopped; run the same command again to go on", f"{tmp_path / 'file' / 'below'}: Not a directory"]


@pytest.mark.parametrize("name", [*INDIANA, *PNEUMONIA])
def test_a_folder_that_is_no_data_set_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = importlib.import_module("showing").ended
    (tmp_path / "data").mkdir()
    code = ended(lambda: pipeline(name).main([str(tmp_path / "data"), "-o", str(tmp_path / "out")]))
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_cell_is_text_whatever_it_says() -> None:
    table = importlib.import_module("showing").table
    lines = table(("a", "b"), [("[red]x[/] | <b>\n#", 0.12345), (None, 2562)]).splitlines()
    assert len(lines) == 4
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]
    assert cells == [["[red]x[/] \\| <b>\\n#", "0.123"], ["–", "2,562"]]
