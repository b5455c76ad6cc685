"""Specs are ranked by what held rows say, and rows are scored by heads that have not seen them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featcache import metrics
from featcache.errors import UsageError
from featcache.specs import SELECT, HeadSpec, SplitSpec, TargetSpec, grid
from featcache.splits import Fold
from featcache.splits.protocol import divide
from featcache.splits.task import Task
from featcache.store import Store
from featcache.training.selection import Bench, Candidate, change, check_finite, numbers, out_of_fold, rank, spread
from featcache.training.train_head import _targets
from tests.conftest import make_store, two_clouds

N, D = 120, 8
FOLDS = SplitSpec(n_splits=3)
NONE = np.array([], dtype=int)


def bench_of(
    tmp_path: Path, spec: SplitSpec = FOLDS, x: np.ndarray | None = None, columns: dict[str, list[str]] | None = None
) -> Bench:
    """Two clouds, or findings where columns of them are given."""
    vectors, labels = two_clouds(N, D)
    x = (vectors if x is None else x).astype(np.float32)
    store = Store.open(make_store(tmp_path / "s.h5", x, {"label": labels, **(columns or {})}))
    task = Task.of(store, TargetSpec(tuple(columns or ("label",))))
    return Bench(task, divide(task, spec, lambda: x), {"pooled": torch.from_numpy(x)}, _targets(task))


def ranked(bench: Bench, specs: Sequence[HeadSpec], select: str = "auroc") -> list[Candidate]:
    return rank(bench, specs, [bench.protocol.folds], select)[0]


def score(bench: Bench, spec: HeadSpec, fold: Fold, select: str) -> float:
    """What the head of one spec, trained alone, scores on the held rows of one fold."""
    (fitted,) = bench.run(bench.fits([spec], [fold]))
    found = metrics.evaluate(bench.task.labels[fold.val], fitted.logits, 1)[select]
    return -found if select == "loss" else found


@pytest.mark.parametrize("select", SELECT)
def test_the_best_mean_over_the_folds_is_first(tmp_path: Path, select: str) -> None:
    bench = bench_of(tmp_path)
    specs = grid(["linear", "mlp", "ridge", "knn"], {"lr": [1e-5, 0.01], "epochs": [2], "alpha": [1.0, 1e6]})
    found = ranked(bench, specs, select)
    expected = {spec: [score(bench, spec, fold, select) for fold in bench.protocol.folds] for spec in specs}
    assert {each.spec for each in found} == set(specs)
    for each in found:
        pooled = [each.means[select]] if select in each.means else []
        assert pooled in ([], [pytest.approx(abs(each.mean))])
        if each.spec.kind in ("ridge", "knn"):  # batches of a fold trained alone are not those of folds side by side
            assert each.scores == pytest.approx(expected[each.spec], abs=1e-6)
    means = [each.mean for each in found]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1]


def test_groups_of_folds_are_ranked_each_by_itself(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, SplitSpec(n_splits=3, n_repeats=2))
    specs = grid(["ridge", "knn"], {"alpha": [1.0, 1e6], "n_neighbors": [1, 30]})
    groups = [bench.protocol.folds[:3], bench.protocol.folds[3:5], bench.protocol.folds[5:]]
    together = rank(bench, specs, groups, "accuracy")
    assert together == [rank(bench, specs, [group], "accuracy")[0] for group in groups]
    assert [[len(each.scores) for each in found] for found in together] == [[3] * 4, [2] * 4, [1] * 4]


@pytest.mark.parametrize("kind", ["linear", "mlp", "logreg", "ridge", "knn"])
def test_the_held_rows_of_a_fold_change_nothing_of_its_head(tmp_path: Path, kind: str) -> None:
    """Neither their vectors nor their labels, also where the best epoch is taken and the rate falls on a plateau."""
    bench = bench_of(tmp_path)
    spec = HeadSpec.of(kind)
    if spec.is_trained:
        spec = HeadSpec.of(kind, epochs=8, lr=0.05, patience=2, schedule="plateau", lr_patience=1)
    for fold in bench.protocol.folds:
        x, labels = bench.x["pooled"].clone(), bench.task.labels.copy()
        x[fold.val], labels[fold.val] = 1e3, 1 - labels[fold.val]
        task = replace(bench.task, labels=labels)
        poisoned = replace(bench, task=task, x={"pooled": x}, targets=_targets(task))
        (before,), (after,) = (each.run(each.fits([spec], [fold])) for each in (bench, poisoned))
        assert before.epoch == after.epoch
        for name, tensor in before.tensors.items():
            assert np.array_equal(tensor, after.tensors[name]), name


def test_of_equals_the_first_wins(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, x=np.zeros((N, D)))
    specs = grid(["knn"], {"n_neighbors": [7, 3, 5]})
    for order in (specs, specs[::-1]):
        assert [each.spec for each in ranked(bench, order)] == order


def test_specs_that_differ_in_their_seed_alone_are_one(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    specs = grid(["mlp"], {"epochs": [1, 2], "seed": [4, 5, 6]})
    found = ranked(bench, specs)
    assert sorted(each.spec.epochs for each in found) == [1, 2]
    for each in found:
        assert each.spec.seed == 4
        assert len(each.scores) == 3 * len(bench.protocol.folds)
        alone = [ranked(bench, [spec])[0].scores for spec in specs if spec.epochs == each.spec.epochs]
        assert each.scores == pytest.approx([value for scores in alone for value in scores], abs=1e-6)


def diverging() -> HeadSpec:
    return HeadSpec(optimizer="sgd", lr=1000.0, weight_decay=1000.0, epochs=20, schedule="constant")


def test_what_diverges_ranks_last_and_ends_nothing(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    found = ranked(bench, [diverging(), HeadSpec(epochs=2), HeadSpec(epochs=3)])
    assert found[-1].spec == diverging()
    assert found[-1].mean == -np.inf
    assert found[-1].means == {}
    assert np.isfinite(found[0].mean)
    fitted = bench.run(bench.fits([diverging()], bench.protocol.folds[:1]))
    with pytest.raises(UsageError, match=r"diverged: its numbers are not finite. Lower `lr`"):
        check_finite(fitted)


def test_held_rows_of_one_class_can_be_ranked_by_accuracy_alone(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    held = np.flatnonzero(bench.task.labels == 1)[:20]
    fold = Fold(np.setdiff1d(np.arange(N), held), held, 0, 0)
    specs = grid(["ridge"], {"alpha": [1e6, 0.1]})
    with pytest.raises(UsageError, match="auroc does not exist on validation rows of one class"):
        rank(bench, specs, [[fold]], "auroc")
    assert all(0 <= each.mean <= 1 for each in rank(bench, specs, [[fold]], "accuracy")[0])


def test_progress_ends_with_everything_done(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    seen: list[tuple[int, int]] = []
    rank(
        bench,
        grid(["linear"], {"lr": [0.1, 0.01], "epochs": [3]}),
        [bench.protocol.folds],
        "auroc",
        lambda *at: seen.append(at),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (18, 18)


def test_every_row_is_scored_by_heads_that_have_not_seen_it(tmp_path: Path) -> None:
    """Of repeats the mean."""
    bench = bench_of(tmp_path, SplitSpec(n_splits=3, n_repeats=2))
    fitted = bench.run(bench.fits([HeadSpec.of("ridge")], bench.protocol.folds))
    rows, logits = out_of_fold(N, fitted)
    assert rows.tolist() == list(range(N))
    for i in (0, 17, N - 1):
        unseen = [each for each in fitted if i in each.fit.val]
        assert len(unseen) == 2
        assert not any(i in each.fit.train for each in unseen)
        expected = np.mean([each.logits[each.fit.val == i][0] for each in unseen], axis=0)
        np.testing.assert_allclose(logits[i], expected, atol=1e-6)


def test_watched_rows_are_training_rows_that_nothing_is_learnt_from(tmp_path: Path) -> None:
    group = [f"p{i // 4}" for i in range(N)]
    bench = bench_of(tmp_path, SplitSpec(n_splits=3))
    bench.task.columns["group"] = group
    protocol = divide(bench.task, SplitSpec(n_splits=3), lambda: None)
    bench = Bench(bench.task, protocol, bench.x, bench.targets)
    specs = [HeadSpec(epochs=2), HeadSpec(patience=2), HeadSpec(schedule="plateau")]
    fits = bench.fits(specs, protocol.folds)
    assert [fit.spec for fit in fits] == [spec for spec in specs for _ in protocol.folds]
    for fit, fold in zip(fits, protocol.folds * 3, strict=True):
        assert np.array_equal(np.sort(np.concatenate([fit.train, fit.watch])), fold.train)
        assert (len(fit.watch) > 0) == fit.spec.needs_watch
        assert not set(fit.watch) & set(fit.val)
        assert not {group[i] for i in fit.watch} & {group[i] for i in np.concatenate([fit.train, fit.val])}


def test_kinds_may_be_mixed_and_come_back_in_order(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    specs = [HeadSpec.of(kind, **({"epochs": 1} if kind in ("linear", "mlp") else {})) for kind in
             ("knn", "linear", "ridge", "mlp", "logreg")]  # fmt: skip
    fits = bench.fits(specs, bench.protocol.folds)
    assert [each.fit for each in bench.run(fits)] == fits


def test_findings_are_ranked_by_their_mean(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = two_clouds(N, D)[0][:, :2] + 0.3 * rng.standard_normal((N, 2)) > 0
    columns = {f"f{c}": [str(int(v)) if rng.random() < 0.9 else "" for v in y[:, c]] for c in range(2)}
    bench = bench_of(tmp_path, columns=columns)
    for each in ranked(bench, grid(["ridge"], {"alpha": [1.0, 1e6]})):
        fitted = bench.run(bench.fits([each.spec], bench.protocol.folds))
        expected = [metrics.evaluate_findings(bench.task.labels[f.fit.val], f.logits)["auroc"] for f in fitted]
        assert each.scores == pytest.approx(expected)
        assert each.mean > 0.7
        rows, logits = out_of_fold(N, fitted)
        low, high = spread(bench.task, bench.protocol, rows, logits)["auroc"]
        assert low < metrics.evaluate_findings(bench.task.labels[rows], logits)["auroc"] < high


@pytest.mark.parametrize("kept", [0, 1])
def test_rows_of_one_class_have_an_interval_of_each_number_that_exists_and_of_no_other(
    tmp_path: Path, kept: int
) -> None:
    bench = bench_of(tmp_path)
    rows = np.flatnonzero(bench.task.labels == kept)
    at = rows, bench.x["pooled"].numpy()[rows, :2], 0.4
    found = numbers(bench.task, *at)
    missing = ("auroc", "auprc", *(("specificity",) if kept == bench.task.positive else ("precision", "recall", "f1")))
    assert [name for name in metrics.SCALARS if found[name] is None] == [n for n in metrics.SCALARS if n in missing]
    assert set(spread(bench.task, bench.protocol, *at)) == set(metrics.SCALARS) - set(missing)


def test_intervals_draw_whole_groups(tmp_path: Path) -> None:
    """Rows there ten times say no more than once: the interval is that of the rows alone, not a third as wide."""
    bench = bench_of(tmp_path)
    once = np.arange(N)
    logits = bench.x["pooled"].numpy()[:, :2]
    low, high = spread(bench.task, bench.protocol, once, logits)["accuracy"]
    many = np.repeat(once, 10)
    again = spread(bench.task, bench.protocol, many, logits[many])["accuracy"]
    assert again == pytest.approx([low, high], abs=0.03)
    assert high - low > 0.1


@pytest.mark.parametrize("what", ["classes", "findings"])
def test_a_change_is_between_the_numbers_that_are_told_and_whole_groups_are_drawn(tmp_path: Path, what: str) -> None:
    x = two_clouds(N, D)[0]
    columns = {f"f{c}": [str(int(value > 0.3)) for value in x[:, c]] for c in range(2)}
    bench = bench_of(tmp_path, columns=columns if what == "findings" else None)
    fitted = bench.run(bench.fits([HeadSpec(epochs=1), HeadSpec(epochs=6, seed=1)], bench.protocol.folds))
    (rows, before), (_, after) = out_of_fold(N, fitted[:3]), out_of_fold(N, fitted[3:])
    found = change(bench.task, bench.protocol, rows, before, after)
    assert change(bench.task, bench.protocol, rows, after, after) == {name: [0.0, 0.0, 0.0] for name in found}
    told, then = (numbers(bench.task, rows, z) for z in (before, after))
    for name, (value, low, high) in found.items():
        assert value == pytest.approx(then[name] - told[name], abs=1e-9)
        assert low < high
    grouped = replace(bench.protocol, groups=np.arange(N) // 4)
    assert change(bench.task, grouped, rows, before, after) != found
