"""Augmented views beside the vectors of a store: learnt from by a draw per row and epoch, scored by the mean logits."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from featcache import metrics
from featcache.errors import UsageError
from featcache.heads import features
from featcache.heads.jobs import Pool
from featcache.metrics import calibration
from featcache.runs import Run
from featcache.specs import HeadSpec, SelectionSpec, SplitSpec, TargetSpec, grid
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import two_clouds
from tests.test_baselines import write_store
from tests.test_cli import featcache

N, D, K = 120, 8, 2
DRAWN = HeadSpec(epochs=5, augmentations=True)
AVERAGED = SelectionSpec(tta=True)
Columns = dict[str, list[str]]


def noisy(x: np.ndarray, n_views: int = K, noise: float = 0.5, seed: int = 1) -> np.ndarray:
    """(n, K, d): the vectors, each time with other noise."""
    draws = np.random.default_rng(seed).standard_normal((len(x), n_views, x.shape[1]))
    return x[:, None] + noise * draws


def store_of(path: Path, x: np.ndarray, views: np.ndarray | None, columns: Columns, **more: np.ndarray) -> Path:
    taps = {"pooled": x, **({} if views is None else {"views": views}), **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_store(path, taps, [f"image{i:05d}" for i in range(len(x))], columns)


def train(
    path: Path, x: np.ndarray, views: np.ndarray | None, columns: Columns, specs: Any = DRAWN, **asked: Any
) -> Run:
    """A Run at `path`, of a store that is called s.h5 wherever it is."""
    with Store.open(store_of(path / "s.h5", x, views, columns)) as store:
        return train_head(store, specs, path / "run", **asked)


def data(n: int = N, apart: float = 2.0) -> tuple[np.ndarray, Columns]:
    """Two clouds, the last quarter of which is for testing."""
    x, labels = two_clouds(n, D, apart=apart)
    return x, {"label": labels, "split": ["train"] * (n * 3 // 4) + ["test"] * (n - n * 3 // 4)}


def table(run: Run) -> list[dict[str, str]]:
    with open(run.path / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir() if path.name != "run.json"}


def said(run: Run) -> dict[str, Any]:
    return {**run.record, "seconds": 0}


def close(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    for name in ("loss", "accuracy", "auroc", "brier"):
        assert a[name] == pytest.approx(b[name], abs=1e-6), name


# --- what is learnt from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        HeadSpec(epochs=5),
        HeadSpec(epochs=8, lr=0.03, patience=2, schedule="plateau", lr_patience=1, scale="standard"),
        HeadSpec.of("mlp", hidden_sizes=(8,), epochs=4),
        HeadSpec.of("logreg"),
        HeadSpec.of("ridge"),
        HeadSpec.of("knn"),
    ],
    ids=lambda value: value.kind if isinstance(value, HeadSpec) else str(value),
)
def test_views_that_are_copies_change_nothing(tmp_path: Path, spec: HeadSpec, average: bool) -> None:
    x, columns = data()
    plain = train(tmp_path / "plain", x, None, columns, spec)
    drawn = replace(spec, augmentations=True) if spec.is_trained else spec
    same = train(tmp_path / "same", x, np.stack([x] * K, 1), columns, drawn, report=SelectionSpec(tta=average))
    for name, tensor in plain.weights().items():
        np.testing.assert_allclose(same.weights()[name], tensor, atol=1e-6)
    for ours, theirs in zip(table(same), table(plain), strict=True):
        assert float(ours["p_sick"]) == pytest.approx(float(theirs["p_sick"]), abs=1e-6)
    for side in ("train", "val", "test"):
        close(same.metrics(side), plain.metrics(side))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_what_the_views_contradict_is_not_learnt(tmp_path: Path, kind: str) -> None:
    """One feature tells the classes apart without a fault in the images as they are, and the other way round in the
    view of each; another tells them apart in both, with many faults."""
    x, columns = data(400, apart=0.0)
    sign = np.array([1.0 if label == "sick" else -1.0 for label in columns["label"]])
    x[:, 0], x[:, 1] = 2 * sign, x[:, 1] + sign
    views = x[:, None].copy()
    views[:, :, 0] *= -1
    spec = HeadSpec.of(kind, **({"hidden_sizes": (8,), "dropout": 0.0} if kind == "mlp" else {}))
    plain, drawn = (
        train(tmp_path / str(views_too), x, views, columns, replace(spec, augmentations=views_too))
        for views_too in (False, True)
    )
    assert plain.metrics("test")["accuracy"] > 0.98

    def moved_by(run: Run, feature: int) -> float:
        other = x.copy()
        other[:, feature] *= -1
        z = run.logits(np.stack([x, other]).reshape(-1, D).astype(np.float32))
        return float(np.abs(np.diff(z.reshape(2, -1, 2), axis=0)).mean())

    assert moved_by(plain, 0) > 2 * moved_by(plain, 1)
    assert moved_by(drawn, 0) < 0.35 * moved_by(drawn, 1)


def test_each_vector_of_a_row_is_drawn_as_often_and_anew_in_every_epoch() -> None:
    pool = Pool(np.arange(50), seed=3)
    drawn = torch.stack([epoch for epoch, _ in zip(pool.views(3), range(600), strict=False)])  # (epochs, m)
    shares = torch.stack([(drawn == i).float().mean(0) for i in range(3)])
    assert (shares - 1 / 3).abs().max() < 0.08
    assert (drawn[0] != drawn[1]).any()
    again, other = (next(replace(pool, seed=seed).views(3)) for seed in (3, 4))
    assert torch.equal(again, drawn[0])
    assert not torch.equal(other, drawn[0])


def test_the_draw_belongs_to_the_split_and_not_to_the_head(tmp_path: Path) -> None:
    """A head in a sweep learns what it learns alone."""
    x, columns = data()
    views = noisy(x)
    alone = train(tmp_path / "1", x, views, columns, DRAWN)
    specs = [replace(DRAWN, lr=1e-9), replace(DRAWN, augmentations=False, lr=1e-9), DRAWN]
    best = train(tmp_path / "2", x, views, columns, specs, report=SelectionSpec(select="loss"))
    assert best.spec == DRAWN
    for name, tensor in alone.weights().items():
        np.testing.assert_allclose(best.weights()[name], tensor, atol=1e-6)
    seeded = train(tmp_path / "3", x, views, columns, DRAWN, split=SplitSpec(val_fraction=0.2, seed=1))
    assert seeded.record["split_sha256"] != alone.record["split_sha256"]


def test_heads_with_and_without_views_are_a_sweep(tmp_path: Path) -> None:
    x, columns = data()
    specs = grid(["linear", "ridge"], {"augmentations": [False, True], "epochs": [3], "alpha": [1.0]})
    run = train(tmp_path, x, noisy(x), columns, specs, split=SplitSpec(n_splits=3))
    assert sorted(row["augmentations"] for row in run.sweep()) == ["", "False", "True"]


# --- what scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [HeadSpec(augmentations=True), HeadSpec(), HeadSpec.of("ridge"), HeadSpec.of("knn")])
def test_the_mean_over_views_errs_less_where_each_of_them_is_noisy(tmp_path: Path, spec: HeadSpec) -> None:
    """And it is of the same head: averaging changes what is said of it, not what it learns."""
    x, columns = data(400, apart=4.0)
    single, mean = (
        train(tmp_path / str(average), noisy(x, 1, 4.0, 7)[:, 0], noisy(x, 8, 4.0), columns, spec, report=report)
        for average, report in ((False, SelectionSpec()), (True, AVERAGED))
    )
    weights = [(run.path / "head.safetensors").read_bytes() for run in (single, mean)]
    assert weights[0] == weights[1]
    for side in ("val", "test"):
        assert mean.metrics(side)["auroc"] > single.metrics(side)["auroc"] + 0.03
        assert 1 - mean.metrics(side)["accuracy"] < 0.8 * (1 - single.metrics(side)["accuracy"])
    assert (single.record["asked"]["tta"], mean.record["asked"]["tta"]) == (False, True)


FINDINGS = TargetSpec(("f0", "f1"))
CASES = {
    "linear": (DRAWN, SplitSpec(), 2),
    "folds": (DRAWN, SplitSpec(n_splits=3), 2),
    "nested": ([DRAWN, HeadSpec.of("ridge")], SplitSpec(n_splits=3, nested=True), 2),
    "mlp": (HeadSpec.of("mlp", hidden_sizes=(8,), epochs=4, augmentations=True, patience=2), SplitSpec(), 3),
    "knn": (HeadSpec.of("knn"), SplitSpec(), 3),
    "ridge": (HeadSpec.of("ridge"), SplitSpec(n_repeats=2), 3),
    "findings": (DRAWN, SplitSpec(), 0),
    "knn findings": (HeadSpec.of("knn"), SplitSpec(), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_saved_run_says_of_all_vectors_of_a_row_what_its_predictions_say(tmp_path: Path, case: str) -> None:
    """The mean is that of logits: of rows that the saved head has not seen, and of those it has learnt from. Numbers,
    temperature and threshold are those of the predictions."""
    spec, split, n_classes = CASES[case]
    x, columns = data()
    rng = np.random.default_rng(5)
    if n_classes == 3:
        columns["label"] = ["abc"[i] for i in rng.permutation(np.arange(N) % 3)]
    if n_classes == 0:
        columns |= {f"f{c}": [str(int(v > 0)) if v > -1.5 else "" for v in x[:, c]] for c in range(2)}
    views = noisy(x).astype(np.float32)
    rule = "youden" if n_classes == 2 else None
    report = replace(AVERAGED, n_permutations=2, refit_all=case == "linear", operating_point=rule)
    target = FINDINGS if n_classes == 0 else TargetSpec()
    run = train(tmp_path, x, views, columns, spec, split=split, report=report, target=target)

    z = run.logits(np.concatenate([x.astype(np.float32)[:, None], views], axis=1))
    each = np.stack([run.logits(part.astype(np.float32)) for part in (x, *views.swapaxes(0, 1))])
    np.testing.assert_allclose(z, each.mean(0), atol=1e-5)
    p = expit(z) if n_classes == 0 else softmax(z, axis=1)
    rows = table(run)
    by_final = [row for row in rows if row["split"] in ("train", "test")]
    assert {row["split"] for row in by_final} == {"train", "test"}
    for row in by_final:
        found = [float(row[f"p_{name}"]) for name in run.record["classes"]]
        assert found == pytest.approx(p[int(row["image_id"][5:])], abs=1e-5)
    if n_classes:
        check_numbers(run, rows)


def check_numbers(run: Run, rows: list[dict[str, str]]) -> None:
    classes = run.record["classes"]
    for side in [name for name in ("val", "outer", "test") if run.metrics(name)]:
        mine = [row for row in rows if row["split"] == side]
        y = np.array([classes.index(row["label"]) for row in mine])
        z = np.log([[float(row[f"p_{name}"]) for name in classes] for row in mine])
        assert run.metrics(side)["loss"] == pytest.approx(-log_softmax(z, 1)[np.arange(len(y)), y].mean(), abs=1e-5)
        assert run.metrics(side)["auroc"] == pytest.approx(metrics.evaluate(y, z, len(classes) - 1)["auroc"], abs=1e-3)
        if side == "val":
            expected = calibration.temperature(y, z)
            assert run.record["temperature"] == (expected and pytest.approx(expected, rel=1e-2))
            if point := run.record["operating_point"]:
                called = [row["at_operating_point"] for row in mine]
                assert np.mean([row["label"] for row in mine] == np.array(called)) == pytest.approx(
                    point["val"]["accuracy"]
                )


def test_curves_and_watched_rows_are_scored_as_all_others(tmp_path: Path) -> None:
    x, columns = data()
    run = train(tmp_path, x, noisy(x, noise=2.0), columns, DRAWN, report=AVERAGED)
    last = run.history()[-1]
    for side in ("train", "val"):
        assert last[f"{side}_loss"] == pytest.approx(run.metrics(side)["loss"], abs=1e-6)


# --- what may not matter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize(
    ("specs", "split"),
    [
        ([DRAWN, replace(DRAWN, lr=0.1, patience=2)], SplitSpec()),
        ([DRAWN, HeadSpec.of("ridge"), HeadSpec.of("knn")], SplitSpec(n_splits=3)),
    ],
    ids=["hold-out", "folds"],
)
def test_the_views_of_test_rows_change_at_most_their_own_numbers(
    tmp_path: Path, specs: list[HeadSpec], split: SplitSpec, average: bool
) -> None:
    """Without averaging not even those."""
    x, columns = data()
    views = noisy(x)
    poisoned = views.copy()
    poisoned[N * 3 // 4 :] = np.random.default_rng(9).standard_normal(poisoned[N * 3 // 4 :].shape) * 1e3
    report = SelectionSpec(tta=average, operating_point="f1", refit_all=True)
    before, after = (
        train(tmp_path / str(i), x, each, columns, specs, split=split, report=report)
        for i, each in enumerate((views, poisoned))
    )
    if not average:
        assert contents(before) == contents(after)
        assert said(before) == said(after)
        return
    a, b = contents(before), contents(after)
    assert a.pop("predictions.csv") != b.pop("predictions.csv")
    assert a == b
    assert [r for r in table(before) if r["split"] != "test"] == [r for r in table(after) if r["split"] != "test"]
    for name in before.record.keys() - {"files_sha256", "metrics", "operating_point", "baselines", "notes", "seconds"}:
        assert before.record[name] == after.record[name], name
    for side in ("train", "val"):
        assert before.metrics(side) == after.metrics(side)
    assert before.metrics("test")["loss"] != after.metrics("test")["loss"]


@pytest.mark.parametrize("spec", [DRAWN, HeadSpec.of("mlp", hidden_sizes=(8,), epochs=3, augmentations=True)])
def test_the_same_training_makes_the_same_bytes(tmp_path: Path, spec: HeadSpec) -> None:
    x, columns = data()
    report = replace(AVERAGED, n_permutations=2, operating_point="youden")
    first, again = (train(tmp_path / str(i), x, noisy(x), columns, spec, report=report) for i in range(2))
    assert contents(first) == contents(again)
    assert said(first) == said(again)


def test_views_that_are_not_asked_for_change_nothing_and_are_not_read(tmp_path: Path) -> None:
    x, columns = data()
    without = train(tmp_path / "1", x, None, columns, HeadSpec(epochs=3))
    beside = train(tmp_path / "2", x, noisy(x), columns, HeadSpec(epochs=3))
    assert contents(without) == contents(beside)
    with Store.open(tmp_path / "2" / "s.h5") as store:
        assert features.load(store, [HeadSpec()], False, "cpu")["pooled"].shape == (N, D)
        both = features.load(store, [HeadSpec(), DRAWN], False, "cpu")["pooled"]
        assert both.shape == (N, 1 + K, D)
        np.testing.assert_array_equal(both[:, 0], store.features())
        np.testing.assert_array_equal(both[:, 1:], store.features("views"))
        assert features.clean(both).data_ptr() == both.data_ptr()


def test_another_setting_is_another_run(tmp_path: Path) -> None:
    x, columns = data()
    store = Store.open(store_of(tmp_path / "s.h5", x, noisy(x), columns))
    train_head(store, DRAWN, tmp_path / "run")
    for spec, report in ((replace(DRAWN, augmentations=False), SelectionSpec()), (DRAWN, AVERAGED)):
        with pytest.raises(UsageError, match="holds another Run"):
            train_head(store, spec, tmp_path / "run", report=report)
    assert Run.open(tmp_path / "run").spec == DRAWN


# --- another store ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["", "test"])
@pytest.mark.parametrize("spec", [DRAWN, HeadSpec.of("ridge")])
def test_another_store_is_compared_with_its_views(tmp_path: Path, spec: HeadSpec, split: str) -> None:
    x, columns = data()
    columns = columns if split else {"label": columns["label"]}
    views, order = noisy(x), np.random.default_rng(0).permutation(N)
    ids = [f"image{i:05d}" for i in order]
    other = write_store(tmp_path / "other" / "o.h5", {"pooled": x[order], "views": views[order]}, ids, {})
    run = train(tmp_path, x, views, columns, spec, report=replace(AVERAGED, compare=(other,)))
    (found,) = run.record["baselines"]["other_stores"]
    for name in ("auroc", "accuracy", "f1"):
        assert found[name] == pytest.approx(run.metrics(run.record["baselines"]["on"])[name])


# --- errors -----------------------------------------------------------------------------------------------------------

NEED = r"s\.h5 has no augmented views\. Embed the images again with `augmentations`\."
FLAT = HeadSpec.of("flatten-mlp", hidden_sizes=(4,))


@pytest.mark.parametrize(
    ("tap", "specs", "report", "message"),
    [
        (None, DRAWN, SelectionSpec(), NEED),
        (None, HeadSpec.of("ridge"), AVERAGED, NEED),
        ((N, K, D), [DRAWN, FLAT], AVERAGED, r"flatten-mlp head works on grid features, which have no views"),
        (
            (N, K, D + 1),
            DRAWN,
            SelectionSpec(),
            r"features/views of shape \(120, 2, 9\) are no views of features/pooled",
        ),
        ((N, D), DRAWN, SelectionSpec(), r"features/views of shape \(120, 8\) are no views"),
    ],
)
def test_what_has_no_views_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tap: Any, specs: Any, report: SelectionSpec, message: str
) -> None:
    monkeypatch.setattr("featcache.training.selection.fit_all", None)
    x, columns = data()
    views = None if tap is None else np.zeros(tap)
    store = Store.open(store_of(tmp_path / "s.h5", x, views, columns, grid=np.zeros((N, 2, 2, 2))))
    with pytest.raises(UsageError, match=message):
        train_head(store, specs, tmp_path / "run", report=report)
    assert not (tmp_path / "run").exists()


def test_a_compared_store_without_views_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.training.selection.fit_all", None)
    x, columns = data()
    other = store_of(tmp_path / "other" / "o.h5", x, None, columns)
    for spec, report in ((DRAWN, SelectionSpec()), (HeadSpec(), AVERAGED)):
        with pytest.raises(UsageError, match=r"o\.h5 has no augmented views"):
            train(tmp_path / spec.kind, x, noisy(x), columns, spec, report=replace(report, compare=(other,)))


@pytest.mark.parametrize("kind", ["flatten-mlp", "logreg", "ridge", "knn"])
def test_heads_that_cannot_draw_refuse_to(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^`augmentations` does not apply to {kind} heads\.$"):
        HeadSpec.of(kind, augmentations=True)
    with pytest.raises(ValueError, match=rf"^`augmentations` does not apply to {kind} heads\.$"):
        grid([kind], {"augmentations": [True]})
    with pytest.raises(ValueError, match=r"^`augmentations` must be true or false, got 2\.$"):
        HeadSpec(augmentations=2)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_learns_from_views_and_says_so(tmp_path: Path) -> None:
    x, columns = data()
    store_of(tmp_path / "v.h5", x, noisy(x), columns)
    how = ("v.h5", "--epochs", 3, "--positive", "sick")
    done = featcache("train-head", *how, "--augmentations", "--tta", "-o", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["spec"]["augmentations"], answer["tta"]) == (True, True)
    assert "of the mean over each image and its views" in " ".join(done.stderr.split())
    record = Run.open(tmp_path / "run").record
    assert (record["heads"][0]["augmentations"], record["asked"]["tta"]) == (True, True)
    plain = json.loads(featcache("train-head", *how, "--json", cwd=tmp_path).stdout)
    assert (plain["spec"]["augmentations"], plain["tta"]) == (False, False)
    assert plain["test"]["loss"] != answer["test"]["loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--augmentations",), "has no augmented views. Embed the images again with --augmentations."),
        (("--tta", "--head", "knn"), "has no augmented views."),
        (("--augmentations", "--head", "knn"), "--augmentations does not apply to knn heads."),
        (("--augmentations", "--head", "flatten-mlp"), "--augmentations does not apply to flatten-mlp heads."),
    ],
)
def test_the_command_refuses_with_one_line(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    x, columns = data()
    store_of(tmp_path / "s.h5", x, None, columns)
    done = featcache("train-head", "s.h5", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
