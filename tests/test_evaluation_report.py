"""The page of an evaluation: its numbers are the record's, its images are the set's, names are only text."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from featcache.errors import CorruptStore
from featcache.evaluation.evaluate import evaluate
from featcache.reporting.report import Reported, report
from featcache.runs.evaluation import Evaluation
from featcache.specs import SelectionSpec, TargetSpec
from featcache.store import Store
from featcache.store.export import Where, export
from featcache.training.train_head import train_head
from tests.browser import chromium
from tests.test_cli import featcache
from tests.test_evaluate import QUICK
from tests.test_report import HOSTILE, Seer, embedded, label

SICK = TargetSpec(positive="sick")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with hostile names, stores of two thirds and of a third of them, Runs, and the evaluation `out`."""
    folder = tmp_path_factory.mktemp("evaluated")
    with Store.open(embedded(folder)) as store:
        for side in ("train", "test"):
            export(store, folder / f"{side}.h5", where=[Where("split", side)])
    label(folder)
    with Store.open(folder / "train.h5") as store:
        train_head(store, QUICK, folder / "run", target=SICK, report=SelectionSpec(operating_point="youden"))
        kinds = TargetSpec(("kind",), folder / "labels.csv")
        train_head(store, QUICK, folder / "kinds", target=kinds)
        findings = TargetSpec(("sick", "odd"), folder / "labels.csv")
        train_head(store, QUICK, folder / "findings", target=findings)
    evaluate(folder / "run", folder / "test.h5", folder / "out", by=["view", "folder"])
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Reported:
    return report(folder / "out", folder / "page.html", images=None)


def records(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_number_of_the_page_is_the_record_s(folder: Path, page: Reported) -> None:
    done = Evaluation.open(folder / "out")
    (scores,) = [path for path in page.files if path.name.endswith("scores-by-subset.csv")]
    for row in records(scores):
        at_point = row["threshold"] != "0.5"
        held = done.record["operating_point"]["external"] if at_point else done.metrics
        assert row["subset"] == "external"
        if row["value"]:
            assert float(row["value"]) == pytest.approx(held[row["metric"]], abs=1e-9)
    seer = Seer(page.path.read_text("utf-8"))
    assert done.metrics["auroc"] in seer.large
    text = " ".join(seer.texts)
    for note in done.notes:
        assert note[:60] in text


def test_it_shows_the_own_rows_the_subgroups_and_no_curves(folder: Path, page: Reported) -> None:
    names = {path.name for path in page.files}
    assert {"out-own.csv", "out-subgroups-1.csv", "out-counts.csv", "out-roc.csv", "out-false-negatives.csv"} <= names
    assert not {name for name in names if "curve" in name or "sweep" in name}
    rows = records(next(path for path in page.files if path.name == "out-own.csv"))
    found = Evaluation.open(folder / "out").record["comparison"]
    (auroc,) = [row for row in rows if row["metric"] == "auroc"]
    assert float(auroc["difference"]) == pytest.approx(found["differences"]["auroc"][0], abs=1e-9)
    members = records(next(path for path in page.files if path.name == "out-subgroups-1.csv"))
    assert {row["value"] for row in members} == {"<b>frontal", "lateral"}


def test_names_are_text(page: Reported) -> None:
    html = page.path.read_text("utf-8")
    assert "<img src=x" not in html
    assert "<b>frontal" not in html
    assert not Seer(html).handlers
    assert any(HOSTILE[1] in text for text in Seer(html).texts)


@pytest.mark.parametrize("task", ["kinds", "findings"])
def test_other_tasks_have_a_page(folder: Path, tmp_path: Path, task: str) -> None:
    columns = {"kinds": ["kind"], "findings": ["sick", "odd"]}[task]
    done = evaluate(
        folder / task, folder / "test.h5", tmp_path / task, labels=folder / "labels.csv", label_columns=columns,
        by=["group"],
    )  # fmt: skip
    seer = Seer(report(done, tmp_path / "page.html").path.read_text("utf-8"))
    assert any(done.metrics["auroc"] == value for value in seer.large)


def test_evaluations_stand_beside_each_other_and_beside_a_run(folder: Path, tmp_path: Path) -> None:
    with Store.open(folder / "train.h5") as store:
        other = train_head(store, QUICK, tmp_path / "other", target=SICK)
    evaluate(other.path, folder / "test.h5", tmp_path / "on-other")
    page = report([folder / "out", tmp_path / "on-other", folder / "run"], tmp_path / "p.html")
    assert "the Runs have no images in common" in page.path.read_text("utf-8")
    rows = records(next(path for path in page.files if path.name == "comparison-differences.csv"))
    assert {row["run"] for row in rows} == {"on-other"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["metrics"]["external"].update(auroc=2.0), "metrics.external.auroc"),
        (lambda r: r["operating_point"].pop("external"), "operating_point.external"),
        (lambda r: r["subgroups"]["view"][0].update(n=-1), r"subgroups.view\[0\].n"),
        (lambda r: r["comparison"].update(subset="exam"), "comparison.subset"),
        (lambda r: r.pop("set"), "set"),
    ],
)
def test_a_damaged_record_is_one_line(folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    done = Evaluation.open(folder / "out")
    record = json.loads(json.dumps(done.record))
    change(record)
    with pytest.raises(CorruptStore, match=f"evaluation.json is damaged: it does not say .*{message}"):
        report(Evaluation(done.path, record), tmp_path / "page.html")


def test_the_command_reports_it_in_its_own_folder(folder: Path) -> None:
    done = featcache("report", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "report.html").exists()
    again = featcache("evaluate", "run", "test.h5", "-o", "out", "--by", "view", "--by", "folder", cwd=folder)
    assert again.returncode == 0, again.stderr
    refused = featcache("predict", "out", "--store", "test.h5", cwd=folder)
    assert (refused.returncode, refused.stdout) == (10, "")
    assert "is an evaluation of a Run" in refused.stderr


@pytest.mark.slow
def test_a_browser_shows_it_without_complaint_or_request(page: Reported, tmp_path: Path) -> None:
    with chromium(tmp_path) as browser:
        browser.open(page.path)
        assert browser.evaluate("document.querySelectorAll('img[src=x], .card script').length") == 0
        assert HOSTILE[1] in browser.evaluate("document.body.innerText")
        assert browser.complaints == []
        assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
