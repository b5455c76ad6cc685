"""Image and report together, as another project does it: from the fusion file alone, and honestly."""

import ast
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from featcache.fusion import Studies, open_studies

PIPELINES = Path(__file__).parents[1] / "pipelines"


@pytest.fixture(scope="module", autouse=True)
def _beside_them() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PIPELINES))
        yield


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, _beside_them: None) -> Path:
    """The fusion file of a rehearsal, of made-up reports."""
    import fusion_prepare

    folder = tmp_path_factory.mktemp("fusion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATCACHE_SHARED", str(folder / "nothing"))
        fusion_prepare.main(["--quick", "-o", str(folder)])
    return folder / "quick" / "fusion.h5"


@pytest.fixture
def studies(prepared: Path) -> Iterator[Studies]:
    with open_studies(prepared) as studies:
        yield studies


def test_the_consumer_knows_nothing_of_featcache_but_the_reader() -> None:
    for name in ("fusion_handoff", "fusion_prefix"):
        tree = ast.parse((PIPELINES / f"{name}.py").read_text("utf-8"))
        froms = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        plain = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert {each for each in (*froms, *plain) if each.split(".")[0] == "featcache"} == {"featcache.fusion"}


@pytest.mark.long
def test_what_is_prepared_has_every_study_and_a_side_for_each(prepared: Path, studies: Studies) -> None:
    assert studies.study_ids == [str(uid) for uid in range(1, 25)]
    assert studies.image_mask.sum() == 48
    table = pd.DataFrame({"group": studies.group_numbers, "split": studies.columns["split"]})
    assert table.group.is_unique
    assert set(table.split) == {"train", "test"}
    assert studies.logits_mask.all()
    assert set(studies.columns["synthetic"]) == {"yes"}


@pytest.mark.long
def test_the_hand_off_scores_fuses_and_teaches_a_language_model(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    import fusion_handoff

    monkeypatch.setattr(fusion_handoff, "N_RESAMPLES", 100)
    with warnings.catch_warnings():
        warnings.filterwarnings("default", module="transformers")
        fusion_handoff.main([str(prepared), "-o", str(tmp_path), "--steps", "15"])
    page = (tmp_path / "handoff.md").read_text("utf-8")
    assert capsys.readouterr().out == page
    assert "synthetic phantoms" in page
    assert "random weights" in page
    scored = re.findall(r"^\| ([\w' ]+) \| (out of fold|test) \| \d+ \| ([\d.]+) \[([\d.]+), ([\d.]+)\]", page, re.M)
    assert {row[0] for row in scored} == {"text", "image", "early fusion", "late fusion", "the Run's own head"}
    assert all(float(low) <= float(value) <= float(high) for _, _, value, low, high in scored)
    losses = pd.read_csv(tmp_path / "losses.csv").loss
    assert len(losses) == 15
    assert losses[-3:].mean() < 0.8 * losses[:3].mean()


def test_another_file_than_one_of_studies_is_told_as_such(embedded_once: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(PIPELINES / "fusion_handoff.py"), str(embedded_once), "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (14, "")
    assert done.stderr == f"{embedded_once} is an HDF5 file, but not a featcache fusion file.\n"


def test_scores_are_those_of_scikit_learn_and_folds_divide_no_group() -> None:
    import fusion_handoff

    rng = np.random.default_rng(0)
    y, odds = rng.random(200) < 0.3, np.round(rng.standard_normal(200), 1)  # with ties
    assert fusion_handoff.numbers(y, odds) == pytest.approx((roc_auc_score(y, odds), accuracy_score(y, odds > 0)))
    low, high = re.findall(r"\[([\d.]+), ([\d.]+)\]", fusion_handoff.intervals(y, odds, np.arange(200))["AUROC"])[0]
    assert float(low) < roc_auc_score(y, odds) < float(high)


def test_a_study_is_predicted_by_models_of_other_groups() -> None:
    """Words that name the group say its label, and nothing of other groups': seen groups would be predicted."""
    import fusion_handoff

    groups = np.repeat(np.arange(40), 3)
    y = np.random.default_rng(0).permutation(40)[groups] < 20
    table = pd.DataFrame({"0": np.zeros(120), "text": [f"patient number{group}" for group in groups]})
    odds = fusion_handoff.predicted(fusion_handoff.model(["words"], table), table, y, groups, groups >= 32)
    for here in (groups < 32, groups >= 32):
        assert roc_auc_score(y[here], odds[here]) < 0.75


@pytest.mark.long
def test_padding_is_no_image_to_the_language_model(studies: Studies) -> None:
    """The loss of a batch does not depend on what lies where no image is."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import fusion_prefix

    from featcache.fusion import StudyDataset, collate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, encode = fusion_prefix.language_model(None)
    model.eval()
    dataset = StudyDataset(studies)
    batch = collate([dataset[i] for i in range(4)])
    batch["image_mask"][1, 1] = False
    projector = fusion_prefix.Projector(studies.n_features, model.get_input_embeddings().embedding_dim, 1.0)
    losses = []
    for value in (0.0, 50.0):
        batch["vectors"][1, 1] = value
        with torch.no_grad():
            losses.append(float(fusion_prefix.loss_of(projector, model, encode, batch, ["findings"])))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    batch["vectors"][1, 0] = 50.0
    with torch.no_grad():
        assert float(fusion_prefix.loss_of(projector, model, encode, batch, ["findings"])) != pytest.approx(losses[0])


@pytest.mark.long
def test_the_rehearsal_runs_from_the_command_line_in_a_minute(tmp_path: Path) -> None:
    command = [sys.executable, str(PIPELINES / "fusion_handoff.py"), "--quick", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "nothing about patients" in done.stdout
    assert (tmp_path / "losses.csv").exists()
