"""The report: its numbers are the Run's, its pictures are the Run's, and it does nothing but show them."""

import base64
import csv
import hashlib
import io
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import auc, confusion_matrix

from featcache import metrics
from featcache.errors import CorruptStore, IdentityMismatch, InputOutputError, UsageError
from featcache.finetune.fine_tune import fine_tune
from featcache.heads import inference
from featcache.identity import digest_bytes
from featcache.images.cache import FileCache, stamp_of
from featcache.manifest import Manifest
from featcache.metrics import intervals
from featcache.prediction import predict
from featcache.prediction.predictor import load_run
from featcache.reporting import cam, checking, comparison, decisions, gallery, projection, tables
from featcache.reporting import report as report_module
from featcache.reporting.document import Chapter, Table, Words
from featcache.reporting.materials import Material, load_materials
from featcache.reporting.page import GENERATOR, Page, render
from featcache.reporting.report import Reported, report
from featcache.reporting.run_view import RunView, views_of
from featcache.runs import Run
from featcache.specs import (
    DecodeSpec,
    HeadSpec,
    Recipe,
    SelectionSpec,
    SplitSpec,
    Stage,
    TargetSpec,
    TransformSpec,
    Where,
)
from featcache.store import Part, PartFolder, Store, publish
from featcache.store.export import export
from featcache.training.train_head import train_head
from tests.browser import chromium
from tests.conftest import make_store, two_clouds
from tests.test_cli import featcache

N, D, SIDE = 72, 12, 3  # images, channels, places along a side of the feature map
HOSTILE = {
    1: "test/sick/<img src=x onerror=alert(1)>.png",
    4: "test/well/=cmd|' '!A1\n.png",
    7: "test/sick/</script><script>alert(2)<!--.png",
    10: "@SUM(A1).png",
}
SECRET = "Jane Doe 1970-01-01"


def draw(path: Path, seed: int) -> str:
    """A small image that tells of a patient in its header; the sha256 of its bytes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((30, 26), Image.Resampling.BICUBIC)
    about = Image.Exif()
    about[0x010E] = SECRET
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=about)
    return digest_bytes(path.read_bytes())


def names() -> list[str]:
    plain = [f"{'test' if i % 3 == 1 else 'train'}/{'sick' if i % 2 else 'well'}/{i:03d}.png" for i in range(N)]
    return [HOSTILE.get(i, name) for i, name in enumerate(plain)]


def embedded(folder: Path) -> Path:
    """A store of images that are there, with feature maps whose means are the vectors; written as all stores are."""
    rng = np.random.default_rng(0)
    files = [folder / "images" / f"{i:03d}.png" for i in range(N)]
    content = [draw(path, i) for i, path in enumerate(files)]
    sick = np.arange(N) % 2
    grid = rng.standard_normal((N, D, SIDE, SIDE)).astype(np.float32)
    grid[:, 0, 1, 1] += 6.0 * sick
    pooled = grid.mean(axis=(2, 3))
    transform = TransformSpec((24, 24), 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    identity = {
        "pipeline": 1,
        "backbone": {"name": "small", "weights_sha256": "0" * 64, "tap": "pooled+grid", "pooling": "mean"},
        "transform": transform.identity(),
        "decode": DecodeSpec().identity(),
        "probe": "0" * 64,
        "precision": "float32",
        "stored_dtype": "float32",
    }
    columns = {
        "label": ["sick" if s else "well" for s in sick],
        "split": ["test" if i % 3 == 1 else "train" for i in range(N)],
        "group": [f"p{i // 2}" if i % 3 == 0 else f"q{i}" for i in range(N)],
        "view": ["<b>frontal" if i % 5 else "lateral" for i in range(N)],
    }
    path = folder / "s.h5"
    parts = PartFolder(path, {"identity": identity})
    with parts.locked():
        parts.write(Part(0, {"pooled": pooled, "grid": grid}, content, np.zeros(N, dtype=np.uint8), {}))
        publish(path, parts.heads(), names(), columns, identity)
        parts.clear()
    seen = FileCache()
    for file, digest in zip(files, content, strict=True):
        seen.keep(file, stamp_of(file), digest)
    seen.write(path)
    return path


def label(folder: Path) -> None:
    """Other labels of the same images: three classes, and two findings of which some are unknown."""
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "kind", "sick", "odd"])
        for i, name in enumerate(names()):
            kind = "well" if i % 2 == 0 else ("<i>virus", "other")[i // 2 % 2]
            rows.writerow([name, kind, i % 2, "" if i % 11 == 5 else int(i % 4 < 2)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, its images, and the Runs `two` (a linear head with an operating point), `mlp`, `three` (of
    three classes), `findings` and `flat`. Never to be changed."""
    folder = tmp_path_factory.mktemp("report")
    path = embedded(folder)
    label(folder)
    linear = HeadSpec(epochs=6, lr=0.01)
    three, two = TargetSpec(("kind",), folder / "labels.csv"), TargetSpec(positive="sick")
    found = TargetSpec(("sick", "odd"), folder / "labels.csv")
    held = SplitSpec(val_fraction=0.3)
    youden = SelectionSpec(operating_point="youden")
    with Store.open(path) as store:
        train_head(store, linear, folder / "two", target=two, split=held, report=youden)
        train_head(store, HeadSpec.of("mlp", hidden_sizes=(6,), epochs=3), folder / "mlp", target=two, split=held)
        train_head(store, linear, folder / "three", target=three, split=held)
        train_head(store, linear, folder / "findings", target=found, split=held)
        flat = HeadSpec.of("flatten-mlp", hidden_sizes=(5,), epochs=2, lr=0.01)
        train_head(store, flat, folder / "flat", target=two, split=held)
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> Reported:
    """The report of `two`, for which nothing is given: store and images are found."""
    return report(folder / "two", folder / "pages" / "two.html", by=["view"])


def chapter_of(path: Path) -> Chapter:
    """What a page says of a Run for which neither store nor images are at hand."""
    nothing = Material(None, "not here", None, "")
    return report_module._chapter(subject_of(path), nothing, [], False, projection.ShownImages([]), lambda text: None)


def subject_of(path: Path) -> RunView:
    (found,) = views_of([Run.open(path)])
    return found


# --- what stands in a page --------------------------------------------------------------------------------------------


@dataclass
class Grid:
    """A table of a page: its caption, its header, and of each cell the text and the number behind it."""

    caption: str = ""
    header: list[str] = field(default_factory=list)
    rows: list[list[tuple[str, float | None]]] = field(default_factory=list)


class Seer(HTMLParser):
    """What a reader sees of a page: texts, tables, and the numbers in large type."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tables: list[Grid] = []
        self.large: list[float] = []
        self.images: list[str] = []
        self.handlers: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.handlers += [name for name in told if name == "style" or name.startswith("on")]
        if tag == "table":
            self.tables.append(Grid())
        elif tag == "tr":
            self.tables[-1].rows.append([])
        elif tag in ("td", "th"):
            self.tables[-1].rows[-1].append(("", None))
        elif tag == "data" and told.get("class") == "large":
            self.large.append(float(told["value"] or "nan"))
        elif tag == "data" and "table" in self._open:
            self.tables[-1].rows[-1][-1] = ("", float(told["value"] or "nan"))
        elif tag == "img" and told.get("src"):
            self.images.append(told["src"] or "")
        if tag not in ("meta", "link", "img", "rect", "circle", "path", "use"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass
        if tag == "table" and self.tables[-1].rows:
            self.tables[-1].header = [text for text, _ in self.tables[-1].rows.pop(0)]

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self._open):
            return
        if data.strip():
            self.texts.append(data.strip())
        if "caption" in self._open:
            self.tables[-1].caption += data
        elif "table" in self._open and "tr" in self._open and "small" not in self._open:
            row = self.tables[-1].rows[-1]
            if row and data.strip():
                row[-1] = (row[-1][0] + data.strip(), row[-1][1])

    def table(self, caption: str) -> Grid:
        return next(table for table in self.tables if table.caption.startswith(caption))


def read(found: Reported) -> str:
    return found.path.read_text("utf-8")


def csv_of(found: Reported, name: str) -> list[dict[str, str]]:
    path = next(path for path in found.files if path.name == name)
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def predictions(run: Path, side: str) -> list[dict[str, str]]:
    with open(run / "predictions.csv", encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == side]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_every_number_of_the_page_is_the_records(folder: Path, two: Reported) -> None:
    record, seen = Run.open(folder / "two").record, Seer(read(two))
    table = seen.table("Performance by subset")
    columns = [record["metrics"]["train"], record["metrics"]["val"], record["metrics"]["test"]]
    columns += [record["operating_point"]["val"], record["operating_point"]["test"]]
    assert len(table.header) == len(columns) + 1
    by_name = {row[0][0]: row[1:] for row in table.rows}
    called = {"auroc": "AUROC", "accuracy": "accuracy", "recall": "sensitivity (recall)", "loss": "loss (nats)"}
    for name, shown in called.items():
        for (text, value), of in zip(by_name[shown], columns, strict=True):
            assert (value, text) == (of[name], f"{of[name]:.3f}") or (text == "" and name in ("auroc", "loss"))
    point = record["operating_point"]["test"]
    large = [record["metrics"]["test"]["auroc"], *(point[name] for name in ("recall", "specificity", "accuracy"))]
    assert seen.large == large
    low, high = point["intervals"]["accuracy"]
    assert f"[{low:.3f}, {high:.3f}]" in seen.texts


def test_random_weights_are_said_to_be_random(folder: Path, two: Reported, tmp_path: Path) -> None:
    run_path = shutil.copytree(folder / "two", tmp_path / "two")
    record = json.loads((run_path / "run.json").read_text("utf-8"))
    record["store"]["weights"] = "random:7"
    (run_path / "run.json").write_text(json.dumps(record), "utf-8")
    for made, says in ((report([Run.open(run_path)], tmp_path / "r.html"), True), (two, False)):
        text = " ".join(Seer(read(made)).texts)
        assert ("features with random weights" in text) == ("random, seed 7 (not pretrained)" in text) == says


def test_what_chose_something_is_marked_so(two: Reported) -> None:
    assert "validation, selected the operating point" in Seer(read(two)).table("Performance by subset").header


def test_confusion_equals_scikit_learn_on_the_predictions(folder: Path, two: Reported) -> None:
    rows, tables = predictions(folder / "two", "test"), Seer(read(two)).tables
    found = [table for table in tables if table.caption.startswith("Confusion matrix")]
    assert len(found) == 2
    for table, column in zip(found, ("prediction", "at_operating_point"), strict=True):
        expected = confusion_matrix([row["label"] for row in rows], [row[column] for row in rows])
        assert [[value for _, value in row[1:]] for row in table.rows] == expected.tolist()


def test_curves_have_the_areas_of_the_record(folder: Path, two: Reported) -> None:
    record = Run.open(folder / "two").record["metrics"]
    for side in ("val", "test"):
        rows = [row for row in csv_of(two, "two-roc.csv") if row["curve"] == side]
        x, y = (np.array([float(row[n]) for row in rows]) for n in ("false_positive_rate", "true_positive_rate"))
        assert auc(x, y) == pytest.approx(record[side]["auroc"], abs=1e-12)
        rows = [row for row in csv_of(two, "two-pr.csv") if row["curve"] == side]
        recall, precision = (np.array([float(row[n]) for row in rows]) for n in ("recall", "precision"))
        assert -np.sum(np.diff(recall) * precision[:-1]) == pytest.approx(record[side]["auprc"], abs=1e-12)


def test_reliability_is_that_of_the_record(folder: Path, tmp_path: Path) -> None:
    """Of a Run with a temperature, which so few validation rows do not tell."""
    shutil.copytree(folder / "two", tmp_path / "two")
    record, run_view = Run.open(folder / "two").record, subject_of(folder / "two")
    labels, cooled = run_view.labels("test"), run_view.subsets["test"].logits / 2.0
    expected = metrics.reliability(labels, cooled, run_view.task.positive)
    record["metrics"]["test"]["calibrated"] = {"ece": 0.1, "reliability": expected}
    (tmp_path / "two" / "run.json").write_text(json.dumps({**record, "temperature": 2.0}))
    rows = rows_of(chapter_of(tmp_path / "two"), "two-reliability")
    calibrated = [row for row in rows if row["probabilities"] == "calibrated"]
    assert [row["frequency"] for row in calibrated] == [point["frequency"] for point in expected]
    assert [row["n"] for row in calibrated] == [point["n"] for point in expected]


def test_scores_are_counted_once_each(folder: Path, two: Reported) -> None:
    rows = csv_of(two, "two-scores.csv")
    counts = {name: sum(int(row["n"]) for row in rows if row["class"] == name) for name in ("sick", "well")}
    assert [counts["sick"], counts["well"]] == Run.open(folder / "two").record["metrics"]["test"]["support"]


def test_numbers_by_a_column_equal_those_of_its_rows(folder: Path, two: Reported) -> None:
    run_view = subject_of(folder / "two")
    side = run_view.subsets["test"]
    views = ["lateral" if row % 5 == 0 else "<b>frontal" for row in side.rows.tolist()]
    for view in set(views):
        mask = np.array([each == view for each in views])
        labels = run_view.task.labels[side.rows[mask]]
        expected = metrics.evaluate(labels, side.logits[mask], run_view.task.positive, run_view.threshold)
        rows = [row for row in csv_of(two, "two-by-view.csv") if row["value"] == view]
        found = {row["metric"]: row["estimate"] for row in rows}
        assert {int(row["n"]) for row in rows} == {len(labels)}
        for name in ("auroc", "accuracy", "recall", "specificity"):
            assert float(found[name]) == expected[name]


@pytest.mark.slow
def test_other_tasks_are_told_as_they_are(folder: Path, tmp_path: Path) -> None:
    """Three classes and two findings, also where neither store nor images are at hand; by the command, which answers
    scripts with one object."""
    for name in ("three", "findings"):
        shutil.copytree(folder / name, tmp_path / name)
        done = featcache("report", name, "-o", f"{name}.html", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert list(answer) == ["report", "bytes", "files", "missing"]
        assert answer["bytes"] == (tmp_path / f"{name}.html").stat().st_size
        assert all((tmp_path / path).exists() for path in answer["files"])
        record, seen = Run.open(tmp_path / name).record, Seer((tmp_path / f"{name}.html").read_text("utf-8"))
        assert seen.large == [record["metrics"]["test"][n] for n in ("auroc", "accuracy", "balanced_accuracy", "f1")]
        table = seen.table("Performance by class (one" if name == "three" else "Performance by label")
        at = table.header.index("AUROC")
        told = record["metrics"]["test"]["per_class"]
        assert [row[at][1] for row in table.rows] == [each["auroc"] for each in told]
        assert [row[0][0] for row in table.rows] == record["classes"]
        assert not seen.images
        for what in ("give them to the report", "give it to the report"):
            assert any(what in text for text in answer["missing"]), what
        counts = next(t for t in seen.tables if t.caption.startswith(("Confusion matrix", "Decisions at")))
        labels, calls = [[row[c] for row in predictions(tmp_path / name, "test")] for c in ("label", "prediction")]
        if name == "three":
            expected = confusion_matrix(labels, calls, labels=record["classes"]).tolist()
            assert [[value for _, value in row[1:]] for row in counts.rows] == expected
        else:
            first = [(y.split(" ")[0], z.split(" ")[0]) for y, z in zip(labels, calls, strict=True)]
            expected = [first.count((y, z)) for y, z in (("1", "1"), ("1", "0"), ("0", "1"), ("0", "0"))]
            assert [value for _, value in counts.rows[0][1:5]] == expected


# --- images -----------------------------------------------------------------------------------------------------------


def test_missed_positives_come_first_and_the_surest_before_others(folder: Path) -> None:
    run_view = subject_of(folder / "two")
    side, labels = run_view.subsets["test"], run_view.labels("test")
    kinds = gallery.choose(run_view)
    order = [kind.key for kind in kinds]
    assert order == [
        key for key in ("false-negatives", "false-positives", "true-positives", "true-negatives") if key in order
    ]
    positive = run_view.task.positive
    for kind in kinds:
        p = side.p[kind.places, positive]
        is_positive, is_predicted = labels[kind.places] == positive, side.predicted[kind.places] == positive
        assert is_positive.all() if kind.key in ("false-negatives", "true-positives") else not is_positive.any()
        assert is_predicted.all() if kind.key in ("false-positives", "true-positives") else not is_predicted.any()
        assert (np.diff(p if kind.key in ("false-negatives", "true-negatives") else -p) >= 0).all()


def nearest_by_hand(features: np.ndarray, row: int, taught: Sequence[int], k: int) -> list[int]:
    x = features.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return sorted(taught, key=lambda other: -float(x[row] @ x[other]))[:k]


def test_neighbours_are_the_nearest_of_all_training_rows(folder: Path, two: Reported) -> None:
    run_view = subject_of(folder / "two")
    with ExitStack() as opened:
        vectors = load_materials([run_view], [], None, opened)[0].vectors
        assert vectors is not None
        rows = run_view.subsets["test"].rows
        found = gallery.neighbours(run_view, vectors, rows)
        taught = run_view.subsets["train"].rows.tolist()
        for row in rows.tolist():
            assert [other for other, _ in found[row]] == nearest_by_hand(vectors.features, row, taught, 3)
            x, y = vectors.features[row], vectors.features[found[row][0][0]]
            assert found[row][0][1] == pytest.approx(float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)), abs=1e-6)
        first = csv_of(two, "two-true-positives.csv")[0]
        place = run_view.task.image_ids.index(first["image_id"].removeprefix("'"))
        assert first["neighbours"].split(" | ")[0].startswith(run_view.printable_names[found[place][0][0]])


def test_a_row_has_no_neighbour_that_taught_another_head(tmp_path: Path) -> None:
    """Out of fold, neighbours are rows that the head of that fold learnt from."""
    x, labels = two_clouds(40, 6)
    path = make_store(tmp_path / "s.h5", x, {"label": labels})
    with Store.open(path) as store:
        train_head(store, HeadSpec(epochs=2), tmp_path / "run", split=SplitSpec(n_splits=3))
        train_head(store, HeadSpec.of("knn"), tmp_path / "knn")
    run_view = subject_of(tmp_path / "run")
    assert run_view.reported == "val"
    for fold in run_view.protocol.folds:
        for row in fold.val.tolist():
            assert np.array_equal(run_view.training_rows("val", row), fold.train)
    assert "knn head" in gallery.no_cam_reason(subject_of(tmp_path / "knn"), None)


def test_a_map_of_a_linear_head_sums_to_its_log_odds(folder: Path) -> None:
    """Zhou et al. 2016: over the places, and with the bias, for each of two and of three classes, and of findings."""
    with Store.open(folder / "s.h5") as store:
        grid, pooled = store.features("grid"), store.features()
    for name in ("two", "three", "findings"):
        run_view = subject_of(folder / name)
        run, c = run_view.run, len(run_view.classes)
        z = run.logits(pooled).astype(np.float64)
        for of in range(c):
            found = cam.maps(run.spec, run.weights(), grid, run_view.task, np.full(N, of))
            assert found.shape == (N, SIDE, SIDE)
            said = found.sum(axis=(1, 2)) + cam.constant(run.weights(), run_view.task, of)
            others = np.delete(z, of, axis=1).mean(axis=1)
            np.testing.assert_allclose(said, z[:, of] - (0 if name == "findings" else others), atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "flat"])
def test_a_map_of_another_head_is_its_gradient(folder: Path, name: str) -> None:
    """Scaling an image's map by (1 + e) moves the log odds by e times the sum of what its places add."""
    run_view = subject_of(folder / name)
    run, positive = run_view.run, run_view.task.positive
    with Store.open(folder / "s.h5") as store:
        grid = store.features("grid")[:20]
    found = cam.maps(run.spec, run.weights(), grid, run_view.task, np.full(20, positive))

    def log_odds(scale: float) -> np.ndarray:
        x = grid.mean(axis=(2, 3)) if name == "mlp" else grid.reshape(20, -1)
        z = run.logits((scale * x).astype(np.float32)).astype(np.float64)
        return z[:, positive] - z[:, 1 - positive]

    slope = (log_odds(1.001) - log_odds(0.999)) / 0.002
    off = np.abs(found.sum(axis=(1, 2)) - slope)
    assert np.median(off) < 1e-3  # a unit may switch between the two
    assert np.mean(off < 0.02) > 0.8


@pytest.fixture(scope="module")
def untested(folder: Path) -> Path:
    """A folder with a store that has no test rows, and Runs on it: `folds`, `refitted` after a hold-out, `anew` of
    several hold-outs."""
    path = folder / "untested"
    path.mkdir()
    with Store.open(folder / "s.h5") as store:
        export(store, path / "s.h5", where=[Where.parse("split=train")])
    with Store.open(path / "s.h5") as store:
        held, target = SplitSpec(val_fraction=0.3), TargetSpec(positive="sick")
        head = HeadSpec(epochs=6, lr=0.01)
        train_head(store, head, path / "folds", target=target, split=SplitSpec(n_splits=3))
        train_head(store, head, path / "refitted", target=target, split=held, report=SelectionSpec(refit_all=True))
        train_head(store, head, path / "anew", target=target, split=replace(held, n_repeats=3))
    return path


def test_a_map_is_of_the_head_that_scored_the_image(untested: Path) -> None:
    """Of folds that of its fold, of which the probability is; where it was not kept, there is none."""
    run_view = subject_of(untested / "folds")
    side = run_view.subsets["val"]
    with Store.open(untested / "s.h5") as store:
        place = {name: i for i, name in enumerate(store.image_ids)}
        x = store.features()[[place[run_view.task.image_ids[row]] for row in side.rows]]
    heads = run_view.heads(side.rows)
    assert np.sum([here for here, _ in heads], axis=0).tolist() == [1] * len(side)
    for here, head in heads:
        z = inference.logits(run_view.run.spec, head, x[here], 2, run_view.task.positive)
        np.testing.assert_allclose(metrics.probabilities(z), side.p[here], atol=1e-6)
    with ExitStack() as files:
        (found,) = load_materials([subject_of(untested / "refitted")], [untested / "s.h5"], None, files)
        assert found.vectors is not None
        assert "were not kept" in gallery.no_cam_reason(subject_of(untested / "refitted"), found.vectors)


def test_how_rows_were_divided_is_told_as_it_was(untested: Path) -> None:
    said = {name: tables.split_text(subject_of(untested / name)) for name in ("folds", "refitted", "anew")}
    n = {name: {side: len(rows) for side, rows in subject_of(untested / name).subsets.items()} for name in said}
    assert f"{n['folds']['val']} images were split into 3 folds;" in said["folds"]
    apart = n["refitted"]["train"] - n["refitted"]["val"]
    assert f"trained on {apart} images; {n['refitted']['val']} other images were held out" in said["refitted"]
    assert "the final head was refitted on the training and validation images together" in said["refitted"]
    assert f"Some of the images were held out, repeated 3 times, {n['anew']['val']} of them in total;" in said["anew"]
    assert f"The final head was trained on {n['anew']['train']} images" in said["anew"]


def test_vectors_that_are_no_mean_are_not_read_place_by_place() -> None:
    grid = np.random.default_rng(0).standard_normal((5, 4, 3, 3)).astype(np.float32)
    assert cam.is_mean(grid, grid.mean(axis=(2, 3)))
    assert cam.is_mean(grid.astype(np.float16), grid.mean(axis=(2, 3)))
    assert not cam.is_mean(grid, grid.max(axis=(2, 3)))
    assert not cam.is_mean(grid, grid.mean(axis=(2, 3))[:, :2])
    assert np.array_equal(cam.channels_first(np.moveaxis(grid, 1, 3), 4), grid)


def test_the_hidden_layer_is_what_the_last_layer_acts_on(folder: Path) -> None:
    run_view = subject_of(folder / "mlp")
    with Store.open(folder / "s.h5") as store:
        x = store.features()
    tensors = run_view.run.weights()
    z = projection.hidden(run_view, x) @ tensors["weight"].T + tensors["bias"]
    np.testing.assert_allclose(z, run_view.run.logits(x), atol=1e-6)
    assert np.array_equal(inference.hidden(subject_of(folder / "two").run.spec, {}, x), x)


def test_vectors_that_are_all_alike_have_a_map_too() -> None:
    assert not projection.project(np.ones((9, 4), dtype=np.float32), umap=False).any()


@pytest.mark.long
def test_umap_gives_the_same_plane_twice() -> None:
    pytest.importorskip("umap", reason="the extra umap is not installed")
    x = two_clouds(40, 6, apart=9.0)[0]
    planes = [projection.project(x, umap=True) for _ in range(2)]
    assert planes[0].shape == (40, 2)
    assert np.array_equal(*planes)


def test_a_map_shows_all_errors_and_says_of_how_many(folder: Path, two: Reported) -> None:
    run_view = subject_of(folder / "two")
    found = projection.sample(run_view)
    wrong = set(run_view.subsets["test"].rows[run_view.is_error("test")].tolist())
    assert wrong <= set(found.rows.tolist())
    assert len(set(found.rows.tolist())) == len(found)
    n = len(run_view.subsets["test"])
    assert any(f"of {n} of the {n} test images" in text for text in Seer(read(two)).texts)
    assert len(csv_of(two, "two-map-vectors-class.csv")) == len(found)


def test_pictures_are_pixels_and_nothing_else(two: Reported) -> None:
    html = read(two)
    uris = set(re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", html))
    assert len(uris) > 20
    for uri in uris:
        data = base64.b64decode(uri)
        assert SECRET.encode() not in data
        with Image.open(io.BytesIO(data)) as image:
            assert not image.getexif()
            assert max(image.size) <= 224
    assert SECRET not in html


def test_an_image_that_is_another_by_now_is_not_shown(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "images", tmp_path / "images")
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "image_id"], *([f"images/{i:03d}.png", n] for i, n in enumerate(names()))])
    for i in (1, 7):
        draw(tmp_path / "images" / f"{i:03d}.png", 1000 + i)
    (tmp_path / "images" / "013.png").unlink()
    run_view = subject_of(folder / "two")
    with ExitStack() as opened:
        (found,) = load_materials([run_view], [], Manifest.read(tmp_path / "rows.csv"), opened)
    assert found.pictures is not None
    found.pictures.load(range(20))
    assert [row for row in range(20) if found.pictures.get(row) is None] == [1, 7, 13]
    assert found.pictures.changed == {run_view.printable_names[row] for row in (1, 7, 13)}
    with Image.open(folder / "images" / "002.png") as image:
        expected = TransformSpec((24, 24), 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)(image)
    assert np.array_equal(np.asarray(found.pictures.get(2)), expected)


# --- what may go wrong ------------------------------------------------------------------------------------------------


def manifest_of(folder: Path, path: Path, rows: Sequence[int]) -> Manifest:
    """Some of the images, by their names."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "image_id"])
        writer.writerows([str(folder / "images" / f"{i:03d}.png"), names()[i]] for i in rows)
    return Manifest.read(path, allow_outside=True)


def test_the_same_run_gives_the_same_bytes(folder: Path, two: Reported, tmp_path: Path) -> None:
    """Also from another place, with store and images named."""
    manifest = manifest_of(folder, tmp_path / "rows.csv", range(N))
    again = report(folder / "two", tmp_path / "two.html", folder / "s.h5", manifest, by=["view"])
    assert again.path.read_bytes() == two.path.read_bytes()
    assert [path.name for path in again.files] == [path.name for path in two.files]
    for mine, its in zip(again.files, two.files, strict=True):
        assert mine.read_bytes() == its.read_bytes(), mine.name


def test_names_are_texts(folder: Path, two: Reported) -> None:
    html = read(two)
    for text in ("<img src=x", "alert(2)<!", "<b>frontal"):
        assert text not in html
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in html
    assert "<b>frontal" in " ".join(Seer(html).texts)
    (data,) = re.findall(r'<script type="application/json" id="images">(.*?)</script>', html, re.S)
    assert not set("<>&") & set(data)
    shown = {entry["name"] for entry in json.loads(data)}
    assert {HOSTILE[1], HOSTILE[7]} <= shown
    for path in two.files:
        if path.suffix == ".csv":
            with open(path, encoding="utf-8", newline="") as file:
                assert not [cell for row in csv.reader(file) for cell in row if cell[:1] in ("=", "@")], path.name


def test_a_page_runs_its_own_script_and_asks_for_nothing(two: Reported) -> None:
    html = read(two)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    policy = policy.replace("&#39;", "'")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.findall(r"//[a-z]", re.sub(r"data:image/webp;base64,[A-Za-z0-9+/=]+", "", html))
    assert not Seer(html).handlers


def test_figures_and_their_numbers_lie_beside_the_page(two: Reported) -> None:
    """With a table of them, which says where on the page each stands."""
    names = [path.name for path in two.files]
    (beside,) = (two.path.parent / "two.files").iterdir()
    assert sorted(path.name for path in beside.iterdir()) == sorted([*names, "index.csv"])
    assert f"two.files/{beside.name}" in read(two), "the page says which"
    with open(beside / "index.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == names
    assert {row["section"] for row in rows} <= set(Seer(read(two)).texts)
    assert {path.suffix for path in two.files} == {".png", ".csv"}
    charts = [path for path in two.files if path.suffix == ".png"]
    assert len(charts) >= 9
    assert all(path.with_suffix(".csv") in two.files for path in charts if "error" not in path.name)


@pytest.mark.long
def test_what_an_earlier_page_had_beside_it_and_this_one_has_not_is_gone(folder: Path, tmp_path: Path) -> None:
    """Numbers of another Run would be taken for this one's. What somebody else has put there stays."""
    first = report(folder / "two", tmp_path / "r.html", by=["view"])
    (tmp_path / "r.files" / "mine.txt").write_text("mine")
    (tmp_path / "mine.csv").write_text("mine")
    with open(first.folder / "index.csv", "a", encoding="utf-8") as index:
        index.write("../mine.csv,two,Numbers\n../../mine.csv,two,Numbers\n")
    second = report(folder / "three", tmp_path / "r.html")
    assert {path.name for path in (tmp_path / "r.files").iterdir()} == {"mine.txt", second.folder.name}
    assert {path.name for path in second.folder.iterdir()} == {"index.csv", *(path.name for path in second.files)}
    assert (tmp_path / "mine.csv").read_text() == "mine"


def test_another_store_is_refused_where_it_is_given_and_passed_over_where_not(folder: Path, tmp_path: Path) -> None:
    x, labels = two_clouds(20, D)
    other = make_store(tmp_path / "s.h5", x, {"label": labels})
    with pytest.raises(IdentityMismatch, match=r"The vectors of .* are not those of"):
        report(folder / "two", tmp_path / "r.html", other)
    shutil.copytree(folder / "two", tmp_path / "two")
    run_view = subject_of(tmp_path / "two")
    with ExitStack() as opened:
        (found,) = load_materials([run_view], [], None, opened)
    assert found.vectors is None
    assert "the vectors or images of s.h5 are not those of this Run" in found.no_vectors
    assert not (tmp_path / "r.html").exists()


def test_what_is_not_a_report_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.html").write_text("<!doctype html><title>years of work</title>")
    with pytest.raises(UsageError, match="no earlier report"):
        report(folder / "two", tmp_path / "thesis.html")
    with pytest.raises(UsageError, match=r"must end in \.html"):
        report(folder / "two", tmp_path / "report.pdf")
    speaks = f'my notes: <meta name="generator" content="{GENERATOR} 1.0">'
    (tmp_path / "notes.html").write_text(speaks)
    (tmp_path / "page.files").mkdir()
    (tmp_path / "page.files" / "two-counts.csv").write_text("MINE")
    (tmp_path / "file.files").write_text("MINE")
    (tmp_path / "folder.html").mkdir()
    for name, words in (
        ("notes.html", "no earlier report"),
        ("page.html", r"page\.files holds files that are not part of a report"),
        ("file.html", r"file\.files is a text file"),
        ("folder.html", "is a folder"),
        ("notes.html/page.html", r"notes\.html is a file, not a folder"),
    ):
        with pytest.raises(UsageError, match=words):
            report(folder / "two", tmp_path / name)
    assert (tmp_path / "notes.html").read_text() == speaks
    assert (tmp_path / "page.files" / "two-counts.csv").read_text() == "MINE"
    with pytest.raises(InputOutputError, match=r"writing /proc/page\.html"):
        report(folder / "two", Path("/proc/page.html"))
    with pytest.raises(UsageError, match="no column 'ward'"):
        report(folder / "two", tmp_path / "r.html", by=["ward"])
    with pytest.raises(UsageError, match="no Run twice"):
        report([folder / "two", folder / "two"], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_page_of_ours_is_replaced_also_one_that_was_interrupted(folder: Path, tmp_path: Path) -> None:
    """Files are written before the page, and the table of them first."""
    shutil.copytree(folder / "two", tmp_path / "two")
    found = report(tmp_path / "two", tmp_path / "r.html")
    whole = found.path.read_bytes()
    report_module._check_free(tmp_path / "r.html")
    found.path.unlink()
    for path in found.files[1:]:
        path.unlink()
    assert report(tmp_path / "two", tmp_path / "r.html").path.read_bytes() == whole
    assert all(path.exists() for path in found.files)


def test_images_of_another_set_are_refused_and_missing_ones_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    draw(tmp_path / "others" / "a.png", 1)
    with pytest.raises(UsageError, match=rf"others has none of the {N} images of .*two, such as "):
        report(folder / "two", tmp_path / "r.html", images=tmp_path / "others")
    assert not (tmp_path / "r.html").exists()
    run_view = subject_of(folder / "two")
    with ExitStack() as opened:
        (found,) = load_materials([run_view], [], manifest_of(folder, tmp_path / "rows.csv", range(5, N)), opened)
    assert found.pictures is not None
    names = ", ".join(run_view.printable_names[:3])
    text = f"5 of the {N} images of two are not in rows.csv and are not shown: {names} and 2 more."
    assert found.no_pictures == text
    assert found.no_pictures in [block.text for block in gallery.gallery(run_view, found) if isinstance(block, Words)]


def test_a_store_behind_a_link_has_its_images(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.h5").symlink_to(folder / "s.h5")
    with ExitStack() as opened:
        (found,) = load_materials([subject_of(folder / "two")], [tmp_path / "link.h5"], None, opened)
    assert found.pictures is not None
    assert len(found.pictures.paths) == N


def test_a_folder_is_that_of_the_name_whatever_the_store_has(folder: Path) -> None:
    run_view = subject_of(folder / "two")
    with ExitStack() as opened:
        vectors = load_materials([run_view], [], None, opened)[0].vectors
        assert vectors is not None
        vectors.store.columns[decisions.FOLDER] = ["elsewhere"] * N
        found = decisions.column_of(run_view, decisions.FOLDER, vectors)
    assert found == [name.rpartition("/")[0] for name in run_view.task.image_ids]
    assert found == decisions.column_of(run_view, decisions.FOLDER, None)


def forget_digests(run_path: Path) -> None:
    """A Run of a release that kept no digest of its tables."""
    record = json.loads((run_path / "run.json").read_text("utf-8"))
    del record["files_sha256"]
    (run_path / "run.json").write_text(json.dumps(record), "utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text.replace("p_sick", "p_ill"), "columns"),
        (lambda text: text.replace(",test,", ",exam,", 1), "subset"),
        (
            lambda text: re.sub(r"(test/well/\d+\.png,test,,well,\w+,\w+),[^,]+", r"\1,nan", text, count=1),
            "probability",
        ),
        (lambda text: text.replace("train/well/002.png", "nobody.png"), "nobody"),
        (lambda text: text[:60], "columns"),
        (lambda text: text[:100], "not those of one table"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-5]), "test rows are not those of the split"),
        (lambda text: text + text.splitlines(keepends=True)[-1], "test rows are not those of the split"),
        (lambda text: text.replace("train/well/002.png", "train/well/006.png"), "rows are not those of the split"),
        (
            lambda text: re.sub(r"(,test,,sick,)\w+,\w+,[^,]+,", r"\1well,well,", text, count=1),
            "not those of one table",
        ),
        (lambda text: re.sub(r"(,test,,\w+,)(\w+),(\w+),.*", r"\1\2,\3,0.9,0.9", text), "do not sum to 1"),
        (
            lambda text: re.sub(r"(,test,,\w+,)(\w+),(\w+),(.*),(.*)", r"\1\2,\3,\5,\4", text),
            "does not have the highest probability",
        ),
        (
            lambda text: re.sub(r"(,test,,\w+,\w+,)(\w+),", swapped, text),
            "other predictions than the record says",
        ),
    ],
)
def test_damaged_predictions_are_one_line(folder: Path, tmp_path: Path, damage: Any, words: str) -> None:
    """By their digest; and without one by the rows, the probabilities and the counts of the record."""
    shutil.copytree(folder / "two", tmp_path / "two")
    path = tmp_path / "two" / "predictions.csv"
    path.write_text(damage(path.read_text()))
    for reason in (r"not the one that run\.json names|not those of one table", words):
        with pytest.raises(CorruptStore, match=reason) as error:
            subject_of(tmp_path / "two")
        assert "\n" not in str(error.value)
        if "files_sha256" in (tmp_path / "two" / "run.json").read_text():
            forget_digests(tmp_path / "two")


def swapped(found: re.Match[str]) -> str:
    return f"{found[1]}{'well' if found[2] == 'sick' else 'sick'},"


def places_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a record a value stands: all of a mapping, the first two of a list."""
    if at:
        yield at
    for key, each in (
        value.items() if isinstance(value, dict) else list(enumerate(value))[:2] if isinstance(value, list) else ()
    ):
        yield from places_of(each, (*at, key))


GONE = object()
WRONG = [GONE, None, "x", float("nan"), float("inf"), -1, 7.5, 10**30, True, [], {}, [None], {"a": []}, ""]


def mutants(record: Any, sample: slice) -> Iterator[str]:
    """Records in which one value is gone, or another; a sample of all there are."""
    for (*way, last), value in list(itertools.product(places_of(record), WRONG))[sample]:
        copy = json.loads(json.dumps(record))
        of = copy
        for key in way:
            of = of[key]
        if value is GONE:
            del of[last]
        else:
            of[last] = value
        yield json.dumps(copy)


def page_or_damage(folder: Path, name: str, tmp_path: Path, sample: slice, every: int) -> tuple[int, int]:
    """Numbers of records that are refused, and that are shown as a page; of these one in `every` is made."""
    shutil.copytree(folder / name, tmp_path / name)
    path = tmp_path / name / "run.json"
    refused = shown = 0
    for text in mutants(json.loads(path.read_text("utf-8")), sample):
        path.write_text(text)
        try:
            checking.check_vectors(subject_of(tmp_path / name).run)
            if shown % every == 0:
                report(tmp_path / name, tmp_path / "r.html")
            shown += 1
        except CorruptStore as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017  both ways are right
    return refused, shown


def test_a_damaged_record_is_a_page_or_one_line(folder: Path, tmp_path: Path) -> None:
    """Of a sample of all values that may be gone or wrong."""
    refused, shown = page_or_damage(folder, "two", tmp_path, slice(0, None, 107), 1000)
    assert refused > 30
    assert shown > 3


@pytest.mark.long
@pytest.mark.parametrize("name", ["two", "three", "findings"])
def test_damaged_records_of_every_kind_are_a_page_or_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    refused, shown = page_or_damage(folder, name, tmp_path, slice(0, None, 7), 200)
    assert refused > shown > 15


@pytest.mark.parametrize("name", ["metrics", "notes", "test", "confusion"])
def test_a_damaged_record_is_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder / "two", tmp_path / "two")
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    damaged = record["metrics"]["test"] if name == "confusion" else record["metrics"] if name == "test" else record
    damaged[name] = {"auroc": "0.9"} if name == "test" else "lost"
    (tmp_path / "two" / "run.json").write_text(json.dumps(record))
    with pytest.raises(CorruptStore, match=name) as error:
        subject_of(tmp_path / "two")
    assert "\n" not in str(error.value)


# --- several Runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(folder: Path) -> Chapter:
    return comparison.compared(views_of([Run.open(folder / name) for name in ("two", "mlp", "three")]))


def rows_of(chapter: Chapter, name: str) -> list[dict[str, Any]]:
    found = dict(chapter.files())[f"{name}.csv"]
    assert isinstance(found, tuple)
    header, rows = found
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_differences_are_paired_on_the_same_rows(folder: Path, compared: Chapter) -> None:
    first, other = subject_of(folder / "two"), subject_of(folder / "mlp")
    rows = first.subsets["test"].rows
    assert np.array_equal(rows, other.subsets["test"].rows)
    found = intervals.paired(
        first.task.labels[rows], first.subsets["test"].logits, other.subsets["test"].logits, first.task.positive,
        thresholds=(first.threshold, other.threshold), groups=first.protocol.groups[rows],
    )  # fmt: skip
    told = {row["metric"]: row for row in rows_of(compared, "comparison-differences")}
    assert set(told) == set(found)
    for name, expected in found.items():
        assert tuple(told[name][each] for each in ("difference", "low", "high")) == expected
    assert told["auroc"]["n"] == len(rows)
    a, b = (Run.open(folder / name).record["metrics"]["test"]["auroc"] for name in ("two", "mlp"))
    assert found["auroc"][0] == pytest.approx(b - a, abs=1e-12)


def test_runs_of_other_classes_stand_beside_and_are_not_subtracted(folder: Path, compared: Chapter) -> None:
    beside = rows_of(compared, "comparison-runs")
    assert list(dict.fromkeys(row["run"] for row in beside)) == ["two", "mlp", "three"]
    assert {row["run"] for row in rows_of(compared, "comparison-differences")} == {"mlp"}
    words = [block.text for section in compared.sections for block in section.blocks if isinstance(block, Words)]
    assert any("no difference for three: it has other classes" in text for text in words)
    for row in beside:
        record = Run.open(folder / row["run"]).record
        point = record["operating_point"] if row["metric"] != "auroc" else None
        assert row["value"] == (point or record["metrics"])["test"][row["metric"]]


def test_what_was_done_differently_is_told(folder: Path, compared: Chapter) -> None:
    told = {row["setting"]: row for row in rows_of(compared, "comparison-settings")}
    assert [told["head"][name] for name in ("two", "mlp", "three")] == ["linear", "mlp", "linear"]
    assert told["operating point"]["mlp"] == "none"
    assert told["operating point"]["two"].startswith("youden, p ≥ ")
    assert not {"backbone", "weights", "validation"} & set(told), "what is the same says nothing"


def test_labels_that_differ_are_not_compared(folder: Path) -> None:
    first, other = subject_of(folder / "two"), subject_of(folder / "mlp")
    other.task.labels[other.subsets["test"].rows[0]] ^= 1
    assert comparison.difference(first, other) == "it has other labels for the same images"


@pytest.mark.long
def test_what_several_runs_call_alike_is_told_apart(folder: Path, tmp_path: Path) -> None:
    """Two folders of one name: in the page, among its anchors and among its files."""
    places = [tmp_path / side / "two" for side in "ab"]
    for place in places:
        shutil.copytree(folder / "two", place)
    found = report(places, tmp_path / "r.html")
    html = read(found)
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    assert len({path.name for path in found.files}) == len(found.files)
    assert {"two (1)", "two (2)"} <= set(Seer(html).texts)


def test_a_folder_may_be_called_as_a_part_of_the_page_is(folder: Path, tmp_path: Path) -> None:
    for name in ("images", "tip"):
        shutil.copytree(folder / "three", tmp_path / name)
    chapters = [chapter_of(tmp_path / name) for name in ("images", "tip")]
    html = render(Page("t", "a", "l", chapters, [], [], "f", "1"))
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(set(ids)) == len(ids)
    assert {"images", "tip", "main", "reading"} <= set(ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= set(ids)


def test_folds_around_folds_are_told_where_they_are_decided(folder: Path, tmp_path: Path) -> None:
    """Rows of the inner folds have chosen an operating point; the outer ones are counted without it."""
    with open(tmp_path / "kind.csv", "w", newline="", encoding="utf-8") as file:
        rows = [[name, i % 2] for i, name in enumerate(names()) if i % 3 != 1]
        csv.writer(file).writerows([["image_id", "kind"], *rows])
    with Store.open(folder / "s.h5") as store:
        target, split = TargetSpec(("kind",), tmp_path / "kind.csv"), SplitSpec(n_splits=2, nested=True)
        youden = SelectionSpec(operating_point="youden")
        train_head(store, HeadSpec(epochs=2), tmp_path / "n", target=target, split=split, report=youden)
    run_view, record = subject_of(tmp_path / "n"), Run.open(tmp_path / "n").record
    assert (run_view.reported, run_view.threshold) == ("outer", None)
    errors = int(run_view.is_error("outer").sum())
    assert errors == round((1 - record["metrics"]["outer"]["accuracy"]) * len(run_view.subsets["outer"]))
    chapter = chapter_of(tmp_path / "n")
    assert chapter.headlines[1].cell.value == record["metrics"]["outer"]["recall"]
    header = next(block for block in chapter.sections[1].blocks if isinstance(block, Table)).header
    assert any(f"{record['operating_point']['threshold']:.3f}" in each for each in header)


@pytest.mark.long
def test_a_run_of_phase_two_says_what_it_bought(phase_one: Path, tmp_path: Path) -> None:
    """Before, after and gain are the record's; its vectors are shown once a store of its own network is given."""
    images = Manifest.read(phase_one / "images")
    recipe, weights = Recipe(stages=(Stage("last-block", 1),)), str(phase_one / "net.safetensors")
    run = fine_tune(Run.open(phase_one / "mlp"), recipe, tmp_path / "r", images=images, weights=weights)
    found = report(run, tmp_path / "r.html", images=images)
    record = run.record
    told = [row for side in ("test", "val") for row in csv_of(found, f"r-before-after-{side}.csv")]
    for row in told:
        value, low, high = record["gain"][row["subset"]][row["metric"]]
        assert [float(row[name]) for name in ("difference", "low", "high")] == [value, low, high]
        assert float(row["before"]) == record["before"]["metrics"][row["subset"]][row["metric"]]
        assert float(row["after"]) == record["metrics"][row["subset"]][row["metric"]]
    assert {row["subset"] for row in told} == {"val", "test"}
    phases = [float(row["phase"]) for row in csv_of(found, "r-curve-loss.csv")]
    assert set(phases) == {1.0, 2.0}
    assert any("has a fine-tuned backbone" in text for text in found.missing)

    with load_run(run.path, device="cpu") as predictor:  # as the page says
        predict(predictor, tmp_path / "tuned.csv", images=images, keep=tmp_path / "tuned.h5")
    again = report(run, tmp_path / "again.html", tmp_path / "tuned.h5")
    assert not any("has a fine-tuned backbone" in text for text in again.missing)
    assert "r-map-hidden-class.csv" in {path.name for path in again.files}


# --- the command, and a browser ---------------------------------------------------------------------------------------


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    refused = featcache("report", "nothing", cwd=tmp_path)
    assert refused.returncode == 10
    assert refused.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_browser_shows_it_without_complaint_or_request(two: Reported, tmp_path: Path) -> None:
    """In Chromium: no error, nothing fetched, names are text, and maps answer to pointer and keys."""
    with chromium(tmp_path) as browser:
        browser.open(two.path)
        assert browser.evaluate("document.querySelectorAll('img[src=x], .card script').length") == 0
        text = browser.evaluate("document.body.innerText")
        assert HOSTILE[1] in text
        assert HOSTILE[7] in text

        plane = "document.querySelector('svg.plane')"
        browser.evaluate(f"{plane}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = browser.evaluate(
            f"(() => {{ const b = {plane}.querySelector('circle').getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        browser.point(*box)
        tip = "document.getElementById('tip')"
        assert browser.evaluate(f"{tip}.hidden") is False
        assert browser.evaluate(f"{tip}.querySelector('img').src").startswith("data:image/webp")
        browser.point(1, 1)
        assert browser.evaluate(f"{tip}.hidden") is True

        browser.evaluate(f"{plane}.focus()")
        browser.press("Home")
        first = browser.evaluate(f"{tip}.innerText")
        browser.press("End")
        assert browser.evaluate(f"{tip}.innerText") != first
        for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"):
            browser.press(key)
            assert browser.evaluate(f"{tip}.hidden") is False
        browser.press("Escape")
        assert browser.evaluate(f"{tip}.hidden") is True

        papers = {}
        for dark in (False, True):
            browser.open(two.path, width=390, dark=dark)
            assert browser.evaluate("document.documentElement.scrollWidth") <= 390
            papers[dark] = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert papers[False] != papers[True]
        browser.pdf(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
        assert not browser.complaints
        assert [url for url in browser.requests if not url.startswith(("data:image/webp", "data:,", "file:"))] == []
        assert sum(url.startswith("file:") for url in browser.requests) == 1
