"""From a store to a Run: what is reported has chosen nothing, and a Run says what was done."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file
from scipy.special import expit, softmax

from featcache import metrics
from featcache.cli.results import print_run
from featcache.errors import CorruptStore, StoreNotFound, UsageError
from featcache.runs import Run
from featcache.specs import HeadSpec, SelectionSpec, SplitSpec, TargetSpec, grid
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import make_store, two_clouds
from tests.test_baselines import write_store

QUICK = HeadSpec(epochs=3)
Columns = dict[str, list[str]]


def train(path: Path, x: np.ndarray, columns: Columns, specs: Any = QUICK, **asked: Any) -> Run:
    """A Run at `path`, of a store that is called s.h5 wherever it is."""
    path.mkdir(parents=True, exist_ok=True)
    with Store.open(make_store(path / "s.h5", x, columns)) as store:
        return train_head(store, specs, path / "run", **asked)


def table(run: Run, name: str = "predictions.csv") -> list[dict[str, str]]:
    with open(run.path / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def notes_of(run: Run) -> list[str]:
    """Those that are not about the positive class, nor about the temperature that few rows do not tell."""
    about = "the positive class is ", "no temperature: "
    return [note for note in run.record["notes"] if not note.startswith(about)]


def side(run: Run, name: str) -> list[dict[str, str]]:
    return [row for row in table(run) if row["split"] == name]


def three_classes(n: int, d: int) -> tuple[np.ndarray, list[str]]:
    x = np.random.default_rng(3).standard_normal((n, d))
    x[np.arange(n), np.arange(n) % 3] += 2.0
    return x, ["abc"[i % 3] for i in range(n)]


def findings(n: int, d: int) -> tuple[np.ndarray, Columns]:
    """Three findings that the first three features decide, a fifth of which is unknown."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((n, d))
    known = rng.random((n, 3)) < 0.8
    return x, {f"f{c}": [str(int(x[i, c] > 0.3)) if known[i, c] else "" for i in range(n)] for c in range(3)}


THREE_FINDINGS = TargetSpec(("f0", "f1", "f2"))


# --- what chooses is not what is reported -----------------------------------------------------------------------------

EARLY = [HeadSpec(epochs=8, lr=lr, patience=2, schedule=how) for lr in (0.01, 0.1) for how in ("plateau", "cosine")]
POISONED = {
    "folds": (EARLY[1:3], SplitSpec(n_splits=3), SelectionSpec(operating_point="youden")),
    "hold-out": (EARLY[::2], SplitSpec(), SelectionSpec(operating_point="sensitivity=0.9", refit_all=True)),
    "mlp": (
        grid(["mlp"], {"hidden_sizes": [(8,), (4, 4)], "epochs": [4]}),
        SplitSpec(n_repeats=2),
        SelectionSpec(select="loss"),
    ),
    "solved": (grid(["logreg", "ridge", "knn"], {}), SplitSpec(n_splits=3), SelectionSpec(operating_point="f1")),
    "nested": (grid(["ridge"], {}), SplitSpec(n_splits=3, nested=True), SelectionSpec(select="f1")),
    "one": (EARLY[0], SplitSpec(val_fraction=0.3), SelectionSpec(operating_point="youden")),
}


@pytest.mark.parametrize(
    "case", ["folds", *(pytest.param(case, marks=pytest.mark.long) for case in POISONED if case != "folds")]
)
def test_nothing_but_the_test_numbers_depends_on_the_test_rows(tmp_path: Path, case: str) -> None:
    """Garbage in place of their features and the opposite of their labels leaves every other byte as it was."""
    x, labels = two_clouds(180, 10)
    columns = {"label": labels, "split": ["train"] * 120 + ["test"] * 60}
    specs, split, report = POISONED[case]
    clean = train(tmp_path / "clean", x, columns, specs, split=split, report=report)
    x, labels = x.copy(), list(labels)
    x[120:] = np.random.default_rng(1).standard_normal((60, 10)) * 1e3
    labels[120:] = ["sick" if label == "normal" else "normal" for label in labels[120:]]
    poisoned = train(tmp_path / "poisoned", x, {**columns, "label": labels}, specs, split=split, report=report)

    for name in {path.name for path in clean.path.iterdir()} - {"run.json", "predictions.csv", "images.json"}:
        assert (clean.path / name).read_bytes() == (poisoned.path / name).read_bytes(), name
    ours, theirs = clean.images(), poisoned.images()
    assert (ours.image_ids, ours.labels[:120].tolist()) == (theirs.image_ids, theirs.labels[:120].tolist())
    assert np.array_equal(ours.groups, theirs.groups)
    for a, b in ((clean, poisoned), (poisoned, clean)):
        assert [row for row in table(a) if row["split"] != "test"] == [
            row for row in table(b) if row["split"] != "test"
        ]
    may_differ = {"labels_sha256", "images_sha256", "metrics", "operating_point", "baselines", "notes", "seconds"}
    may_differ |= {"files_sha256"}  # that of the predictions
    for name in clean.record.keys() - may_differ:
        assert clean.record[name] == poisoned.record[name], name
    for one in ("train", "val", "outer"):
        assert clean.metrics(one) == poisoned.metrics(one)
    assert clean.metrics("test")["loss"] != poisoned.metrics("test")["loss"]
    if report.operating_point:
        points = [run.record["operating_point"] for run in (clean, poisoned)]
        assert points[0]["threshold"] == points[1]["threshold"]
        assert points[0]["val"] == points[1]["val"]
        assert points[0]["test"] != points[1]["test"]


def noise(n: int, d: int, seed: int) -> tuple[np.ndarray, Columns]:
    """Vectors that say nothing of their labels."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), {"label": rng.permutation(["a", "b"] * (n // 2)).tolist()}


def contains(interval: list[float], value: float) -> bool:
    return interval[0] <= value <= interval[1]


def test_folds_find_nothing_in_noise(tmp_path: Path) -> None:
    """Also where the best of many epochs is taken: it is the best of other rows than those reported."""
    x, columns = noise(400, 40, 0)
    spec = HeadSpec(lr=0.05, epochs=12, patience=12, schedule="constant")
    for name, head in (("early", spec), ("ridge", HeadSpec.of("ridge", alpha=100.0))):
        run = train(tmp_path / name, x, columns, head, split=SplitSpec(n_splits=4))
        assert contains(run.metrics("val")["intervals"]["auroc"], 0.5)
    assert run.metrics("train")["auroc"] > 0.6


def test_the_outer_folds_of_a_sweep_find_nothing_in_noise(tmp_path: Path) -> None:
    """While the best candidate looks better than chance: it was chosen for that."""
    x, columns = noise(120, 6, 1)
    options = {"n_neighbors": list(range(1, 40, 2)), "alpha": [1.0, 1e3], "epochs": [2], "lr": [0.001, 0.1]}
    specs = grid(["knn", "ridge", "linear"], {**options, "scale": ["rms", "standard"]})
    run = train(tmp_path, x, columns, specs, split=SplitSpec(n_splits=3, nested=True))
    outer = run.metrics("outer")
    assert contains(outer["intervals"]["auroc"], 0.5)
    assert float(run.sweep()[0]["auroc_mean"]) > max(0.53, outer["auroc"])
    assert notes_of(run) == []


def test_shuffled_labels_are_chance_where_the_head_is_good(tmp_path: Path) -> None:
    x, labels = two_clouds(160, 16, apart=4.0)
    for split in ([""] * 160, ["train"] * 100 + ["test"] * 60):
        columns = {"label": labels, "split": split}
        run = train(
            tmp_path / f"{split[0]}-",
            x,
            columns,
            HeadSpec.of("ridge", alpha=100.0),
            report=SelectionSpec(n_permutations=20),
        )
        found = run.record["baselines"]
        assert contains(found["permuted_labels"]["intervals"]["auroc"], 0.5)
        assert found["on"] == ("test" if split[0] else "val")
        assert run.metrics(found["on"])["auroc"] > 0.9 > found["majority"]["auroc"]


# --- sweeps -----------------------------------------------------------------------------------------------------------

DIVERGING = HeadSpec(optimizer="sgd", lr=1000.0, weight_decay=1000.0, epochs=20, schedule="constant")


def test_the_best_of_a_sweep_is_trained_and_all_are_listed(tmp_path: Path) -> None:
    x, labels = two_clouds(120, 8)
    specs = [DIVERGING, *grid(["linear"], {"lr": [1e-6, 0.03], "epochs": [4], "seed": [0, 1]})]
    run = train(tmp_path, x, {"label": labels}, specs, split=SplitSpec(n_splits=3))
    sweep = run.sweep()
    assert list(sweep[0])[:7] == ["rank", "optimizer", "lr", "weight_decay", "epochs", "schedule", "n_fits"]
    assert [row["rank"] for row in sweep] == ["1", "2", "3"]
    assert [row["n_fits"] for row in sweep] == ["6", "6", "3"]
    assert (sweep[-1]["lr"], sweep[-1]["auroc_mean"]) == ("1000.0", "")
    means = [float(row["auroc_mean"]) for row in sweep[:-1]]
    assert means == sorted(means, reverse=True)
    assert float(sweep[0]["auroc_min"]) <= means[0] <= float(sweep[0]["auroc_max"])
    assert (run.spec.lr, run.spec.seed) == (float(sweep[0]["lr"]), 0)
    assert run.record["heads"] == [spec.used() for spec in specs]
    assert run.metrics("val")["chose"] == ["head"]


@pytest.mark.parametrize("select", ["auroc", "loss"])
def test_the_winner_is_the_best_by_what_was_asked(tmp_path: Path, select: str) -> None:
    """Which is not the same: a weak penalty ranks well with probabilities that are much too sure."""
    x, labels = two_clouds(160, 40, apart=1.5)
    specs = grid(["logreg"], {"C": [1e-7, 1e-3, 0.1, 1e5]})
    run = train(tmp_path, x, {"label": labels}, specs, report=SelectionSpec(select=select), split=SplitSpec(n_splits=2))
    score = {float(row["C"]): float(row[f"{select}_mean"]) for row in run.sweep()}
    best = min if select == "loss" else max
    assert best(score, key=score.__getitem__) == run.spec.C
    assert list(score.values()) == sorted(score.values(), reverse=select == "auroc")
    other = {float(row["C"]): float(row["auroc" if select == "loss" else "loss"]) for row in run.sweep()}
    assert sorted(score, key=score.__getitem__) != sorted(other, key=lambda value: -other[value])


def test_of_equal_specs_the_first_wins(tmp_path: Path) -> None:
    x, labels = np.ones((60, 3)), two_clouds(60, 3)[1]
    specs = grid(["knn"], {"n_neighbors": [9, 1, 5]})
    run = train(tmp_path, x, {"label": labels}, specs)
    assert run.spec.n_neighbors == 9
    assert [row["n_neighbors"] for row in run.sweep()] == ["9", "1", "5"]


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    for specs in (DIVERGING, [DIVERGING, HeadSpec(**{**DIVERGING.used(), "epochs": 30})]):
        with pytest.raises(UsageError, match=r"the training diverged: its numbers are not finite\. Lower `lr`\."):
            train(tmp_path, x, {"label": labels}, specs)
    assert not (tmp_path / "run").exists()


# --- what is trained on what ------------------------------------------------------------------------------------------


def test_a_hold_out_head_may_be_trained_on_the_held_rows_in_the_end(tmp_path: Path) -> None:
    x, labels = two_clouds(120, 6)
    columns = {"label": labels, "split": ["train"] * 80 + ["test"] * 40}
    said = SelectionSpec(operating_point="youden")
    kept = train(tmp_path / "kept", x, columns, report=said)
    all_of_it = train(tmp_path / "all", x, columns, report=SelectionSpec(operating_point="youden", refit_all=True))
    assert [run.metrics("train")["n"] for run in (kept, all_of_it)] == [64, 80]
    assert kept.metrics("val") == all_of_it.metrics("val")
    assert kept.record["operating_point"]["threshold"] == all_of_it.record["operating_point"]["threshold"]
    assert kept.metrics("test")["loss"] != all_of_it.metrics("test")["loss"]


@pytest.mark.parametrize("repeats", [1, 2])
def test_folds_end_in_a_head_of_all_rows_and_a_prediction_of_each_by_one_that_had_not_seen_it(
    tmp_path: Path, repeats: int
) -> None:
    x, labels = two_clouds(90, 6)
    columns = {"label": labels, "split": ["train"] * 60 + ["val"] * 12 + ["test"] * 18}
    run = train(tmp_path, x, columns, HeadSpec.of("ridge"), split=SplitSpec(n_splits=4, n_repeats=repeats))
    named = [row["image_id"] for row in side(run, "val")]
    assert named == [row["image_id"] for row in side(run, "train")] == [f"image{i:05d}" for i in range(72)]
    numbers = {"0", "1", "2", "3"} if repeats == 1 else {""}  # a row of several repeats is in no one fold
    assert {row["fold"] for row in side(run, "val")} == numbers
    unseen, seen = ([float(row["p_sick"]) for row in side(run, name)] for name in ("val", "train"))
    assert np.abs(np.subtract(unseen, seen)).min() > 1e-6
    whole = train(tmp_path / "whole", x[:72], {"label": labels[:72]}, HeadSpec.of("ridge"), split=SplitSpec(n_splits=2))
    for name, tensor in whole.weights().items():
        np.testing.assert_allclose(run.weights()[name], tensor, atol=1e-6)


KIND_SPECS = [
    HeadSpec(epochs=3),
    HeadSpec.of("mlp", hidden_sizes=(8, 5), epochs=3, activation="gelu", scale="standard"),
    HeadSpec.of("logreg"),
    HeadSpec.of("ridge", class_weight="balanced"),
    HeadSpec.of("knn", n_neighbors=3),
]


@pytest.mark.parametrize("spec", KIND_SPECS, ids=[spec.kind for spec in KIND_SPECS])
@pytest.mark.parametrize("what", ["two", "three", "findings"])
def test_a_run_says_again_what_its_predictions_say(tmp_path: Path, spec: HeadSpec, what: str) -> None:
    n, d, target = 120, 8, TargetSpec()
    x, labels = two_clouds(n, d) if what == "two" else three_classes(n, d)
    columns = {"label": labels}
    if what == "findings":
        (x, columns), target = findings(n, d), THREE_FINDINGS
    columns["split"] = ["train"] * 80 + ["test"] * 40
    made = train(tmp_path, x, columns, spec, target=target)
    run = Run.open(made.path)
    assert run.record == made.record
    assert run.spec == spec
    logits = run.logits(x[80:].astype(np.float32))
    p = expit(logits.astype(float)) if what == "findings" else softmax(logits.astype(float), axis=1)
    classes = run.record["classes"]
    said = [[float(row[f"p_{name}"]) for name in classes] for row in side(run, "test")]
    np.testing.assert_allclose(said, p, atol=1e-5)
    if what == "findings":
        called = [" ".join(str(int(value >= 0.5)) for value in row) for row in p]
        assert {row["label"] for row in side(run, "test")} > {"0 0 0", "1 0 1"}
    else:
        called = [classes[i] for i in p.argmax(axis=1)]
        right = np.mean([row["label"] == row["prediction"] for row in side(run, "test")])
        assert right == pytest.approx(run.metrics("test")["accuracy"])
    assert [row["prediction"] for row in side(run, "test")] == called


def test_a_feature_map_head_works_on_the_feature_map(tmp_path: Path) -> None:
    x, labels = two_clouds(60, 4)
    maps = np.random.default_rng(0).standard_normal((60, 3, 2, 2))
    maps[:, 0, 0, 0] += [3.0 if label == "sick" else -3.0 for label in labels]
    ids = [f"image{i:05d}" for i in range(60)]
    spec = HeadSpec.of("flatten-mlp", hidden_sizes=(8,), epochs=10, lr=0.01)
    with Store.open(write_store(tmp_path / "s.h5", {"pooled": x, "grid": maps}, ids, {"label": labels})) as store:
        run = train_head(store, [spec, HeadSpec(epochs=2)], tmp_path / "run")
    assert run.spec == spec
    assert run.n_parameters == run.record["n_parameters"] == (12 + 1) * 8 + 8 + 1
    assert run.metrics("val")["auroc"] > 0.9
    logits = run.logits(maps.reshape(60, 12).astype(np.float32))
    row_of = {name: i for i, name in enumerate(ids)}
    for row in side(run, "val"):
        assert float(row["p_sick"]) == pytest.approx(expit(logits[row_of[row["image_id"]], 1]), abs=1e-5)


def test_a_feature_map_head_needs_the_feature_map(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    with pytest.raises(UsageError, match=r"has no 'grid' features, which a flatten-mlp head works on; it has pooled\."):
        train(tmp_path, x, {"label": labels}, [QUICK, HeadSpec.of("flatten-mlp")])


def test_features_of_any_scale_are_learnt(tmp_path: Path) -> None:
    x, labels = two_clouds(200, 32, apart=3.0)
    runs = [train(tmp_path / f"{i}", x * 10.0**i, {"label": labels}, HeadSpec(epochs=10)) for i in (-5, 5)]
    accuracy = {run.metrics("val")["accuracy"] for run in runs}
    assert len(accuracy) == 1
    assert accuracy.pop() > 0.9


# --- numbers ----------------------------------------------------------------------------------------------------------


def check_intervals(numbers: dict[str, Any]) -> None:
    """Each number that has an interval lies in it; resampling moves the calibration error alone."""
    assert numbers["intervals"].keys() == {name for name in metrics.SCALARS if numbers[name] is not None}
    for name, interval in numbers["intervals"].items():
        assert name == "ece" or contains(interval, numbers[name]), name


def test_classes_are_told_apart_one_by_one(tmp_path: Path) -> None:
    x, labels = three_classes(180, 8)
    columns = {"label": labels, "split": ["train"] * 120 + ["test"] * 60}
    run = train(tmp_path, x, columns, HeadSpec.of("logreg"))
    test = run.metrics("test")
    assert [each["support"] for each in test["per_class"]] == test["support"] == [20, 20, 20]
    assert np.mean([each["auroc"] for each in test["per_class"]]) == pytest.approx(test["auroc"])
    assert np.shape(test["confusion"]) == (3, 3)
    assert test["auroc"] > 0.8
    check_intervals(test)
    check_intervals(run.metrics("val"))
    assert "intervals" not in run.metrics("train")
    assert run.record["positive"] == "c"


def test_findings_are_told_apart_one_by_one(tmp_path: Path) -> None:
    x, columns = findings(200, 8)
    columns["split"] = ["train"] * 140 + ["test"] * 60
    run = train(tmp_path, x, columns, grid(["ridge"], {}), target=THREE_FINDINGS, split=SplitSpec(n_splits=3))
    test = run.metrics("test")
    for c, each in enumerate(test["per_class"]):
        said = columns[f"f{c}"][140:]
        assert (each["n"], each["support"]) == (60 - said.count(""), said.count("1"))
        assert each["auroc"] > 0.85
    assert test["auroc"] == pytest.approx(np.mean([each["auroc"] for each in test["per_class"]]))
    check_intervals(test)
    assert run.record["temperature"] is None
    assert "calibrated" not in test
    assert {len(row["label"].split(" ")) for row in side(run, "test")} == {3}


@pytest.mark.parametrize("what", ["three", "findings"])
def test_an_operating_point_is_of_two_classes(tmp_path: Path, what: str) -> None:
    (x, labels), target = three_classes(60, 4), TargetSpec()
    columns = {"label": labels}
    if what == "findings":
        (x, columns), target = findings(60, 4), THREE_FINDINGS
    with pytest.raises(UsageError, match=r"`operating_point` is for two classes\."):
        train(tmp_path, x, columns, target=target, report=SelectionSpec(operating_point="youden"))


@pytest.mark.parametrize("positive", ["normal", "sick"])
@pytest.mark.parametrize("rule", ["youden", "f1", "sensitivity=0.9", "specificity=0.9"])
def test_the_operating_point_is_chosen_on_val_and_counted_on_test(tmp_path: Path, rule: str, positive: str) -> None:
    x, labels = two_clouds(300, 8)
    columns = {"label": labels, "split": ["train"] * 200 + ["test"] * 100}
    asked = {"report": SelectionSpec(operating_point=rule), "target": TargetSpec(positive=positive)}
    run = train(tmp_path, x, columns, HeadSpec.of("ridge"), split=SplitSpec(n_splits=4), **asked)
    point = run.record["operating_point"]
    assert (point["rule"], point["chosen_on"]) == (rule, "val")
    name, _, value = rule.partition("=")
    if value:
        assert point["val"][{"sensitivity": "recall"}.get(name, name)] >= float(value)
    for each in ("val", "test"):
        rows = side(run, each)
        called = [row["at_operating_point"] == positive for row in rows]
        assert called == [float(row[f"p_{positive}"]) >= point["threshold"] for row in rows]
        truth = [row["label"] == positive for row in rows]
        hits = np.sum(np.logical_and(called, truth))
        assert point[each]["recall"] == pytest.approx(hits / np.sum(truth))
        assert point[each]["precision"] == pytest.approx(hits / np.sum(called))
        assert point[each]["auroc"] == pytest.approx(run.metrics(each)["auroc"])
        check_intervals(point[each])
        check_intervals(run.metrics(each))
    assert run.metrics("val")["chose"] == ["operating_point"]


def test_an_operating_point_without_a_row_of_each_class_is_refused(tmp_path: Path) -> None:
    x, labels = two_clouds(80, 4)
    where = ["train"] * 40 + ["val" if i % 2 else "train" for i in range(40)]
    with pytest.raises(UsageError, match="validation rows, and those are 0 normal and 20 sick"):
        train(tmp_path, x, {"label": labels, "split": where}, report=SelectionSpec(operating_point="youden"))


def test_the_temperature_makes_val_no_worse_and_changes_no_ranking(tmp_path: Path) -> None:
    x, labels = two_clouds(600, 200)
    run = train(tmp_path, x, {"label": labels}, HeadSpec(epochs=30, lr=0.1, weight_decay=0.0))
    val = run.metrics("val")
    assert run.record["temperature"] > 1.5
    assert val["calibrated"]["loss"] < val["loss"]
    assert sum(point["n"] for point in val["calibrated"]["reliability"]) == val["n"]


def test_the_notes_say_what_the_val_rows_chose(tmp_path: Path) -> None:
    x, labels = two_clouds(120, 6)
    specs = grid(["ridge"], {"alpha": [1.0, 10.0, 100.0]})
    whole = {"label": labels}
    with_test = {**whole, "split": ["train"] * 80 + ["test"] * 40}
    (note,) = notes_of(train(tmp_path / "1", x, whole, specs))
    assert "the val rows chose the best of 3 specs, so their numbers are too good" in note
    assert notes_of(train(tmp_path / "2", x, whole, specs[0])) == []
    assert notes_of(train(tmp_path / "3", x, with_test, specs)) == []
    assert notes_of(train(tmp_path / "4", x, whole, specs, split=SplitSpec(n_splits=3, nested=True))) == []


def test_a_note_says_that_test_images_are_unlike_the_others(tmp_path: Path) -> None:
    x, labels = two_clouds(160, 6, apart=2.0)
    columns = {"label": labels, "split": ["train"] * 100 + ["test"] * 60}
    spec = HeadSpec.of("ridge")
    assert notes_of(train(tmp_path / "alike", x, columns, spec)) == []
    x[100:] = -x[100:]
    run = train(tmp_path / "unlike", x, columns, spec)
    (note,) = notes_of(run)
    assert "validation and test disagree beyond their intervals: AUROC" in note
    for name in ("val", "test"):
        low, high = run.metrics(name)["intervals"]["auroc"]
        assert f"{run.metrics(name)['auroc']:.3f} [{low:.3f}, {high:.3f}]" in note


@pytest.mark.parametrize("rule", [None, "youden"])
def test_the_note_names_what_disagrees_where_is_decided(tmp_path: Path, rule: str | None) -> None:
    """Test images that lie elsewhere are ranked as well as the others, and called by a threshold that is not theirs."""
    x, labels = two_clouds(240, 6, apart=3.0)
    direction = x[1::2].mean(axis=0) - x[::2].mean(axis=0)
    x[120:] += direction
    columns = {"label": labels, "split": ["train"] * 120 + ["test"] * 120}
    how = {"split": SplitSpec(n_splits=3), "report": SelectionSpec(operating_point=rule)}
    run = train(tmp_path, x, columns, HeadSpec.of("ridge"), **how)
    (note,) = notes_of(run)
    sides = run.record["operating_point"] if rule else run.record["metrics"]
    at = " at the operating point" if rule else ""
    (val, test), name = ((sides[side] for side in ("val", "test")), "accuracy")
    told = [f"{s[name]:.3f} [{s['intervals'][name][0]:.3f}, {s['intervals'][name][1]:.3f}]" for s in (val, test)]
    assert f"beyond their intervals: accuracy{at} {told[0]} and {told[1]}; balanced accuracy{at} " in note
    assert "AUROC" not in note
    assert val["intervals"][name][0] > test["intervals"][name][1]


def printed(run: Run) -> str:
    people = Console(file=io.StringIO(), width=160)
    print_run(people, run)
    return people.file.getvalue()  # type: ignore[attr-defined]


def test_what_looks_like_a_contradiction_is_explained(tmp_path: Path) -> None:
    x, labels = two_clouds(60, 6)
    one = HeadSpec.of("ridge")
    text = printed(train(tmp_path / "1", x, {"label": labels}, one, split=SplitSpec(n_splits=3, nested=True)))
    assert "train and val are the same rows: val is out of fold, train is by the final head" in text
    assert "outer is val: there was one head, and nothing to choose" in text
    seeds = [replace(QUICK, seed=seed, lr=lr) for seed in (0, 1) for lr in (0.003, 0.01)]
    text = printed(train(tmp_path / "2", x, {"label": labels}, seeds, split=SplitSpec(n_splits=3)))
    assert "4 heads have 2 ranks: those that differ in nothing but the seed share one" in text
    assert "ranks are by the mean over folds and seeds; val, below, is of the rows of all folds at once" in text
    assert "best of 4 heads" in text
    text = printed(train(tmp_path / "3", x, {"label": labels}, one, split=SplitSpec(val_fraction=0.5)))
    assert not [words for words in ("same rows", "outer", "ranks", "mean over") if words in text]


def test_two_test_classes_of_which_one_is_missing_are_reported_without_a_ranking(tmp_path: Path) -> None:
    x, labels = two_clouds(120, 6)
    where = ["train"] * 80 + ["test" if i % 2 else "" for i in range(40)]
    run = train(tmp_path, x, {"label": labels, "split": where}, report=SelectionSpec(n_permutations=2))
    test = run.metrics("test")
    assert (test["auroc"], test["specificity"], test["support"]) == (None, None, [0, 20])
    assert "auroc" not in test["intervals"]
    assert 0 <= test["accuracy"] <= 1


@pytest.mark.parametrize("split", [[""] * 120, ["train"] * 80 + ["test"] * 40])
def test_another_store_is_compared_by_the_names_of_its_rows(tmp_path: Path, split: list[str]) -> None:
    """The same vectors in another order are worth the same."""
    x, labels = two_clouds(120, 6)
    order = np.random.default_rng(0).permutation(120)
    ids = [f"image{i:05d}" for i in order]
    other = write_store(tmp_path / "other" / "o.h5", {"pooled": x[order]}, ids, {})
    run = train(tmp_path, x, {"label": labels, "split": split}, report=SelectionSpec(compare=(other,)))
    (found,) = run.record["baselines"]["other_stores"]
    own = run.metrics(run.record["baselines"]["on"])
    assert found["store"] == "o.h5"
    for name in ("auroc", "accuracy", "f1"):
        assert found[name] == pytest.approx(own[name])
        assert found["intervals"][name] == pytest.approx(own["intervals"][name])
    lacking = write_store(tmp_path / "other" / "less.h5", {"pooled": x[:100]}, ids[:100], {})
    with pytest.raises(UsageError, match=r"less\.h5 has not all images of this store: 20 lack"):
        train(tmp_path / "2", x, {"label": labels}, report=SelectionSpec(compare=(lacking,)))


# --- the Run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Run:
    x, labels = two_clouds(120, 10, apart=2.0)
    columns = {"label": labels, "split": ["train"] * 90 + ["test"] * 30}
    return train(tmp_path, x, columns, HeadSpec(epochs=6))


def contents(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path.name != "run.json"}


def test_a_run_reopens_as_it_was_made(run: Run) -> None:
    again = Run.open(str(run.path))
    assert again.record == run.record
    assert again.n_parameters == 22
    assert again.metrics("outer") is None
    assert again.sweep() == []
    assert [row["epoch"] for row in again.history()] == [1, 2, 3, 4, 5, 6]
    assert {name: tensor.shape for name, tensor in again.weights().items()} == {"weight": (2, 10), "bias": (2,)}
    assert sorted(contents(run)) == [
        "curves.png", "head.safetensors", "history.csv", "images.json", "predictions.csv", "split.json",
    ]  # fmt: skip


def test_the_last_line_of_the_history_is_what_is_reported(run: Run) -> None:
    last = run.history()[-1]
    for name in ("train", "val"):
        for number in ("loss", "accuracy", "precision", "recall", "f1"):
            assert last[f"{name}_{number}"] == pytest.approx(run.metrics(name)[number], rel=1e-6)


def test_curves_are_a_picture(run: Run) -> None:
    with Image.open(run.path / "curves.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_a_run_may_be_repeated_in_its_place_and_no_other_may_take_it(run: Run, tmp_path: Path) -> None:
    before, record = contents(run), run.record
    with Store.open(tmp_path / "s.h5") as store:
        again = train_head(store, HeadSpec(epochs=6), run.path)
        assert contents(again) == before
        assert {**again.record, "seconds": 0} == {**record, "seconds": 0}
        for other in (
            {"specs": HeadSpec(epochs=7)}, {"split": SplitSpec(seed=1)}, {"report": SelectionSpec(refit_all=True)},
            {"target": TargetSpec(positive="normal")}, {"split": SplitSpec(val_fraction=0.3)},
        ):  # fmt: skip
            with pytest.raises(UsageError, match="holds another Run"):
                train_head(store, **{"specs": HeadSpec(epochs=6), "run_path": run.path, **other})
    assert Run.open(run.path).record["head"]["epochs"] == 6


def test_a_saved_split_makes_the_same_run_again(run: Run, tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.h5") as store:
        again = train_head(store, HeadSpec(epochs=6), tmp_path / "again", split=SplitSpec(file=run.path / "split.json"))
    assert again.record["split_sha256"] == run.record["split_sha256"]
    assert contents(again) == contents(run)
    (run.path / "split.json").write_text("{}")
    with Store.open(tmp_path / "s.h5") as store, pytest.raises(UsageError, match=r"split\.json: this is not a split"):
        train_head(store, QUICK, tmp_path / "3", split=SplitSpec(file=run.path / "split.json"))


def test_a_run_is_kept_under_its_name_where_none_is_given(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store.open(tmp_path / "s.h5") as store:
        paths = [train_head(store, spec).path for spec in (QUICK, QUICK, HeadSpec.of("knn"), HeadSpec(epochs=2))]
    assert paths[0] == paths[1]
    assert len(set(paths)) == 3
    assert [path.name[:-8] for path in paths] == ["s-linear-", "s-linear-", "s-knn-", "s-linear-"]


def test_the_head_file_says_what_it_is(run: Run) -> None:
    from safetensors import safe_open

    with safe_open(run.path / "head.safetensors", "numpy") as file:
        about = json.loads(file.metadata()["featcache"])
    assert about == {name: run.record[name] for name in ("head", "classes", "positive", "identity_sha256")}
    assert load_file(run.path / "head.safetensors").keys() == {"weight", "bias"}


def test_a_folder_with_other_files_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with Store.open(tmp_path / "s.h5") as store:
        with pytest.raises(UsageError, match="with other files in it"):
            train_head(store, QUICK, tmp_path / "mine")
        with pytest.raises(UsageError, match="is an HDF5 file"):
            train_head(store, QUICK, tmp_path / "s.h5")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_folder_without_a_record_is_no_run(run: Run) -> None:
    for text in ("{", "[]", "\ud800"):
        (run.path / "run.json").write_text(text, errors="surrogatepass")
        with pytest.raises(CorruptStore, match=r"run\.json is damaged"):
            Run.open(run.path)
    (run.path / "run.json").unlink()
    with pytest.raises(StoreNotFound, match="no finished Run"):
        Run.open(run.path)


def test_run_json_has_no_nan(tmp_path: Path) -> None:
    """Where half of the numbers do not exist: one class in test, a finding nobody there has, a head that says nothing,
    a spec that diverged."""
    x, labels = two_clouds(60, 4)
    (y, columns), where = findings(60, 4), ["train"] * 45 + ["test"] * 15
    columns["f1"][45:] = [""] * 15
    columns["f2"][45:] = ["0"] * 15
    runs = [
        train(tmp_path / "1", x, {"label": ["a", "b"] * 22 + ["a"] * 16, "split": where}),
        train(tmp_path / "2", y, {**columns, "split": where}, target=THREE_FINDINGS, split=SplitSpec(n_splits=3)),
        train(tmp_path / "3", np.zeros((60, 4)), {"label": labels}, report=SelectionSpec(operating_point="youden")),
        train(tmp_path / "4", x, {"label": labels}, [DIVERGING, QUICK], report=SelectionSpec(n_permutations=2)),
    ]
    for run in runs:
        text = (run.path / "run.json").read_text("utf-8")
        assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == run.record
    assert runs[1].metrics("test")["per_class"][1]["n"] == 0


# --- small, odd and impossible ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "specs", "split"),
    [
        (4, QUICK, SplitSpec()),
        (6, HeadSpec(epochs=1, batch_size=10**6), SplitSpec()),
        (6, HeadSpec.of("mlp", epochs=2, batch_size=1), SplitSpec(n_splits=2)),
        (6, HeadSpec(epochs=2, patience=1), SplitSpec(n_splits=3)),
        (12, HeadSpec(epochs=2, patience=1, schedule="plateau"), SplitSpec(n_splits=3, n_repeats=2)),
        (12, HeadSpec.of("knn", n_neighbors=1000), SplitSpec(n_splits=6)),
        (12, grid(["logreg", "ridge", "knn"], {}), SplitSpec(n_splits=2, nested=True)),
        (20, QUICK, SplitSpec(val_fraction=0.95)),
        (20, QUICK, SplitSpec(n_repeats=3, seed=2**32 - 1)),
    ],
    ids=["4", "one-batch", "batches-of-one", "watch-1", "watch-2", "knn", "nested", "most-held", "last-seed"],
)
def test_very_few_rows_are_enough(tmp_path: Path, n: int, specs: Any, split: SplitSpec) -> None:
    x, labels = two_clouds(n, 3)
    run = train(tmp_path, x, {"label": labels}, specs, split=split, report=SelectionSpec(n_permutations=1))
    assert run.metrics("train")["n"] + (run.metrics("val")["n"] if split.n_splits is None else 0) >= n


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "has no labels; a head needs two classes"),
        ({"label": ["a"] * 20}, "only the class 'a'"),
        ({"label": ["a", "b"] * 10, "split": ["test"] * 20}, "leaves no labelled image to train on"),
        ({"label": ["a"] * 19 + ["b"]}, r"class b has 1 image\(s\), all of one group"),
        (
            {"label": ["a", "b"] * 10, "group": ["p"] * 20},
            r"class a has 10 image\(s\), all of one group, and class b has 10",
        ),
        (
            {"label": ["a", "b"] * 10, "split": ["train", "test"] * 10},
            r"the training rows have no image of class 'b' \(8 a, 0 b\)",
        ),
        (
            {"label": ["a", "b"] * 10, "group": ["p", "p", *"q" * 18], "split": ["train", "test"] * 10},
            "in more than one subset",
        ),
    ],
)
def test_a_store_that_cannot_be_learnt_from_says_why(tmp_path: Path, columns: Columns, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(tmp_path, np.ones((20, 2)), columns)
    assert not (tmp_path / "run").exists()


def test_one_large_group_is_no_fold(tmp_path: Path) -> None:
    x, labels = two_clouds(80, 3)
    columns = {"label": labels, "group": ["p"] * 70 + [f"q{i}" for i in range(10)]}
    with pytest.raises(UsageError, match=r"the largest group has 70 rows, more than one of 3 folds of 80 rows holds"):
        train(tmp_path, x, columns, split=SplitSpec(n_splits=3))


def test_rows_without_a_label_or_a_side_are_left_out_and_counted(tmp_path: Path) -> None:
    x, labels = two_clouds(60, 4)
    labels[3] = labels[50] = ""
    run = train(tmp_path, x, {"label": labels, "split": ["train"] * 40 + ["test"] * 18 + ["", ""]})
    assert run.record["left_out"] == {"no label": 2, "no split": 2}
    assert sum(run.metrics(name)["n"] for name in ("train", "val", "test")) == 56


def test_labels_may_come_from_a_csv(tmp_path: Path) -> None:
    """They make the Run that the same labels in the store make."""
    x, labels = two_clouds(60, 4)
    own = train(tmp_path / "own", x, {"label": labels})
    lines = [f"image{i:05d},{label}" for i, label in enumerate(labels)]
    (tmp_path / "l.csv").write_text("\n".join(["image_id,my label", *reversed(lines)]))
    joined = train(tmp_path / "joined", x, {}, target=TargetSpec(("my label",), tmp_path / "l.csv"))
    assert contents(joined) == contents(own)
    assert joined.record["labels_sha256"] == own.record["labels_sha256"]


def test_near_duplicates_are_told_and_listed(tmp_path: Path) -> None:
    x, labels = two_clouds(60, 4)
    x[40] = x[0] * 2
    notes: list[str] = []
    split = SplitSpec(near_duplicates=0.99999, n_splits=3)
    run = train(tmp_path, x, {"label": labels}, split=split, on_note=notes.append)
    assert notes[1:] == [
        "1 pair(s) of vectors have a cosine of 0.99999 or more. The first: image00000 and image00040 (1.0000)."
    ]
    assert table(run, "near_duplicates.csv") == [{"image_id": "image00000", "near": "image00040", "cosine": "1.0"}]
    fold_of = {row["image_id"]: row["fold"] for row in side(run, "val")}
    assert fold_of["image00000"] == fold_of["image00040"]


def test_names_that_a_spreadsheet_would_run_are_quoted(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    run = train(tmp_path, x, {"label": ["=cmd()" if label == "sick" else "@x" for label in labels]})
    assert {row["label"] for row in table(run)} == {"'=cmd()", "'@x"}


def test_names_that_would_be_formulas_or_line_ends_survive(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    labels = ["$x^$\r" if label == "sick" else 'ä,"\n' for label in labels]
    with Store.open(make_store(tmp_path / "$x^$.h5", x, {"label": labels})) as store:
        run = train_head(store, QUICK, tmp_path / "run")
    assert {row["label"] for row in table(run)} == {"$x^$\r", 'ä,"\n'}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"select": "recall"},
            "`select` must be one of auroc, f1, balanced_accuracy, accuracy, auprc, loss, got 'recall'",
        ),
        ({"n_permutations": -1}, "`n_permutations` must be from 0 to 1000, got -1"),
    ],
)
def test_an_impossible_report_is_refused_at_birth(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectionSpec(**given)


def test_an_unknown_operating_rule_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    with pytest.raises(UsageError, match="'best' is no rule for an operating point"):
        train(tmp_path, x, {"label": labels}, report=SelectionSpec(operating_point="best"))


def test_options_that_change_numbers_make_another_run(tmp_path: Path) -> None:
    """A split from a file with other groups has the same rows and other intervals."""
    x, labels = two_clouds(80, 4)
    site = [f"s{i // 4}" for i in range(80)]
    first = train(tmp_path, x, {"label": labels, "site": site}, HeadSpec(epochs=2), split=SplitSpec(group_by="site"))
    store = Store.open(tmp_path / "s.h5")
    again = SplitSpec(file=first.path / "split.json", group_by="site")
    train_head(store, HeadSpec(epochs=2), tmp_path / "again", split=again)
    with pytest.raises(UsageError, match="holds another Run"):
        train_head(store, HeadSpec(epochs=2), tmp_path / "again", split=SplitSpec(file=first.path / "split.json"))


def test_seeds_alone_are_no_choice(tmp_path: Path) -> None:
    x, labels = two_clouds(80, 4)
    run = train(tmp_path, x, {"label": labels}, [HeadSpec(epochs=2, seed=seed) for seed in (0, 1)])
    assert run.metrics("val")["chose"] == []
    assert notes_of(run) == []
