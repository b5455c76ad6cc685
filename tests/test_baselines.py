"""What a score is worth: the numbers of a guess, of shuffled labels, and of another store."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache.errors import StoreNotFound, UsageError
from featcache.specs import HeadSpec, SplitSpec, TargetSpec
from featcache.splits import Fold
from featcache.splits.protocol import divide
from featcache.splits.task import Task
from featcache.store import Part, PartFolder, Store, publish
from featcache.training import baselines
from featcache.training.selection import Bench, numbers, out_of_fold
from featcache.training.train_head import _targets
from tests.conftest import make_store, two_clouds

N, D = 120, 8
X, LABELS = two_clouds(N, D, apart=4.0)
NONE = np.array([], dtype=int)


def bench_of(
    tmp_path: Path, labels: list[str] = LABELS, target: TargetSpec = TargetSpec(), **columns: list[str]
) -> Bench:
    store = Store.open(make_store(tmp_path / "s.h5", X, {"label": labels, **columns}))
    task = Task.of(store, target)
    protocol = divide(task, SplitSpec(n_splits=3), lambda: X)
    return Bench(task, protocol, {"pooled": torch.from_numpy(X.astype(np.float32))}, _targets(task))


def test_the_majority_says_how_common_each_class_is(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, ["a"] * 70 + ["b"] * 50)
    found = baselines.majority(bench.task, np.r_[0:30, 70:80], np.r_[30:70, 80:120])
    assert found == {"auroc": 0.5, "accuracy": 0.5, "balanced_accuracy": 0.5, "f1": 0.0}
    assert baselines.majority(bench.task, np.arange(60, 120), np.arange(60))["accuracy"] == 0.0


def test_the_majority_of_findings_is_that_of_each(tmp_path: Path) -> None:
    columns = {"x": ["1"] * 90 + ["0"] * 30, "y": ["1", "0", "0", ""] * 30}
    bench = bench_of(tmp_path, target=TargetSpec(("x", "y")), **columns)
    found = baselines.majority(bench.task, np.arange(N), np.arange(N))
    assert found["accuracy"] == pytest.approx((90 / 120 + 60 / 90) / 2)
    assert found["auroc"] == 0.5


@pytest.mark.parametrize(
    "spec", [HeadSpec(epochs=3), HeadSpec(patience=2, schedule="plateau", epochs=3), HeadSpec.of("knn")]
)
def test_shuffled_labels_teach_nothing(tmp_path: Path, spec: HeadSpec) -> None:
    bench = bench_of(tmp_path)
    found = baselines.permuted(bench, spec, bench.protocol.folds, 20)
    low, high = found["intervals"]["auroc"]
    assert low <= 0.5 <= high
    assert low <= found["auroc"] <= high
    assert found["n_permutations"] == 20


def test_only_training_labels_are_shuffled(tmp_path: Path) -> None:
    """Nothing that the held rows or the others are labelled with reaches a shuffled head, and their true labels judge
    it: with all others flipped the numbers stay, with the held ones flipped the AUROC turns round."""
    bench, spec = bench_of(tmp_path), HeadSpec.of("ridge")
    fold = Fold(np.arange(60), np.arange(60, 90), 0, 0)
    before = baselines.permuted(bench, spec, [fold], 5)
    for rows, expected in ((np.arange(90, 120), before["auroc"]), (fold.val, 1 - before["auroc"])):
        labels = bench.task.labels.copy()
        labels[rows] = 1 - labels[rows]
        task = replace(bench.task, labels=labels)
        other = replace(bench, task=task, targets=_targets(task))
        assert baselines.permuted(other, spec, [fold], 5)["auroc"] == pytest.approx(expected)


# --- another store ----------------------------------------------------------------------------------------------------


def write_store(path: Path, taps: dict[str, np.ndarray], ids: list[str], columns: dict[str, list[str]]) -> Path:
    """`make_store` with names, and feature arrays, of one's own."""
    n = len(ids)
    path.parent.mkdir(exist_ok=True)
    folder = PartFolder(path, {"identity": {"made": "for a test"}})
    with folder.locked():
        features = {tap: x.astype(np.float32) for tap, x in taps.items()}
        folder.write(Part(0, features, [f"{i:064x}" for i in range(n)], np.zeros(n, dtype=np.uint8), {}))
        publish(path, folder.heads(), ids, columns, {"made": "for a test"})
        folder.clear()
    return path


def other_store(tmp_path: Path, x: np.ndarray, rows: np.ndarray) -> Path:
    """A store of these rows in this order, under their names, whose own labels and sides say nothing."""
    ids = [f"image{i:05d}" for i in rows]
    columns = {"label": ["?"] * len(rows), "split": ["test"] * len(rows)}
    return write_store(tmp_path / "other" / "o.h5", {"pooled": x[rows]}, ids, columns)


def compared(bench: Bench, path: Path, spec: HeadSpec, final: Fold) -> dict[str, Any]:
    return baselines.other_store(path, bench, spec, final, "cpu")


@pytest.mark.parametrize("spec", [HeadSpec(epochs=3), HeadSpec.of("ridge"), HeadSpec.of("knn")])
def test_another_store_of_the_same_vectors_in_another_order_says_the_same(tmp_path: Path, spec: HeadSpec) -> None:
    bench = bench_of(tmp_path)
    path = other_store(tmp_path, X, np.random.default_rng(0).permutation(N))
    fold = bench.protocol.folds[0]
    (fitted,) = bench.run(bench.fits([spec], [fold]))
    expected = numbers(bench.task, fold.val, fitted.logits)
    found = compared(bench, path, spec, fold)
    assert {name: found[name] for name in ("auroc", "accuracy", "f1")} == {
        name: pytest.approx(expected[name]) for name in ("auroc", "accuracy", "f1")
    }
    assert found["store"] == "o.h5"
    rows, logits = out_of_fold(N, bench.run(bench.fits([spec], bench.protocol.folds)))
    expected = numbers(bench.task, rows, logits)
    found = compared(bench, path, spec, Fold(rows, NONE, 0, 0))
    assert found["auroc"] == pytest.approx(expected["auroc"])
    assert found["intervals"]["auroc"][0] <= found["auroc"] <= found["intervals"]["auroc"][1]


def test_another_store_of_other_vectors_says_something_else(tmp_path: Path) -> None:
    bench, spec = bench_of(tmp_path), HeadSpec.of("ridge")
    noise = np.random.default_rng(2).standard_normal((N, 3))
    found = compared(bench, other_store(tmp_path, noise, np.arange(N)), spec, Fold(np.arange(N), NONE, 0, 0))
    assert found["intervals"]["auroc"][0] < 0.5 < found["intervals"]["auroc"][1]


def test_a_store_that_lacks_images_cannot_be_compared(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    path = other_store(tmp_path, X, np.delete(np.arange(N), [7, 9, 90]))
    with pytest.raises(UsageError, match=r"o\.h5 has not all images of this store: 3 lack, the first is image00007"):
        baselines.identity_of(path, bench.task)
    with pytest.raises(StoreNotFound, match=r"no store at .*none\.h5"):
        baselines.identity_of(tmp_path / "none.h5", bench.task)


def test_a_head_that_diverges_on_another_store_is_refused(tmp_path: Path) -> None:
    bench, final = bench_of(tmp_path), Fold(np.arange(N), NONE, 0, 0)
    path = other_store(tmp_path, X * 1e30, np.arange(N))
    with pytest.raises(UsageError, match="diverged"):
        compared(bench, path, HeadSpec(scale="none", optimizer="sgd", lr=100.0, epochs=3), final)
