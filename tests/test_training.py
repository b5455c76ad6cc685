"""Heads: equal to a plain PyTorch loop, honest about the split, kept in a Run."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from featcache.errors import StoreNotFound, UsageError
from featcache.heads import HeadSpec, HeadStack
from featcache.splits import Split
from featcache.store import Store
from featcache.training import Adam, Run, Task, choose_split, feature_scale, fit, train_head
from tests.conftest import make_store, two_clouds


def plain_loop(spec: HeadSpec, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor | None) -> torch.nn.Linear:
    """What anybody would write: nn.Linear, CrossEntropyLoss, torch.optim.Adam, shuffled batches."""
    torch.manual_seed(spec.seed)
    head = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=spec.lr)
    loss_of = torch.nn.CrossEntropyLoss(weight=weight)
    for _ in range(spec.epochs):
        for rows in torch.randperm(len(x)).split(spec.batch_rows):
            optimizer.zero_grad()
            loss_of(head(x[rows]), y[rows]).backward()
            optimizer.step()
    return head


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_linear_head_equals_a_plain_pytorch_loop(class_weights: str, n_classes: int) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((150, 20)).astype(np.float32))
    y = torch.from_numpy(rng.permutation(np.arange(150) % (n_classes + 1)).clip(max=n_classes - 1))
    spec = HeadSpec(epochs=5, seed=7, class_weights=class_weights)
    counts = torch.bincount(y)
    weight = len(y) / (n_classes * counts.float()) if class_weights == "balanced" else None
    everything = Split(np.arange(150), np.arange(150), np.array([], dtype=int))
    stack, history = fit(spec, x, y, everything, n_classes, 1)
    reference = plain_loop(spec, x, y, weight)
    torch.testing.assert_close(stack.weight[0].T, reference.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(stack.bias[0], reference.bias, atol=1e-6, rtol=0)
    loss = torch.nn.functional.cross_entropy(reference(x), y).item()
    assert history[-1]["train_loss"] == pytest.approx(loss, abs=1e-6)


def test_our_adam_takes_the_steps_of_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=generator)
    ours, theirs = start.clone(), start.clone().requires_grad_()
    adam, reference = Adam([ours], 0.01), torch.optim.Adam([theirs], lr=0.01)
    for _ in range(50):
        gradient = torch.randn(5, 3, generator=generator)
        theirs.grad = gradient
        reference.step()
        adam.step([gradient])
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=0)


def test_each_head_of_a_stack_is_the_head_it_would_be_alone() -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]

    stack = HeadStack.fresh(6, 2, generators())
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    for i, generator in enumerate(generators()):
        alone = HeadStack.fresh(6, 2, [generator])
        torch.testing.assert_close(stack(x)[i], alone(x)[0], atol=1e-6, rtol=0)
    assert stack.n_parameters == 14


@pytest.mark.parametrize("scale", ["rms", "none", "standard"])
def test_a_folded_head_gives_the_same_logits_on_raw_features(scale: str) -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * 3e-5 + 1e-4
    stack = HeadStack.fresh(8, 3, [torch.Generator().manual_seed(1)])
    offset, divisor = feature_scale(x, scale)
    head = stack.fold(offset, divisor, 0)
    raw = x.double().numpy() @ head["weight"].T.astype(np.float64) + head["bias"]
    np.testing.assert_allclose(raw, stack((x - offset) / divisor)[0].numpy(), atol=2e-5)


def test_scaling_knows_only_the_training_rows(tmp_path: Path) -> None:
    x, labels = two_clouds(120, 8)
    split = ["train"] * 80 + ["test"] * 40
    one = train_head(
        Store.open(make_store(tmp_path / "1.h5", x, {"label": labels, "split": split})), run_path=tmp_path / "1"
    )
    x[80:] *= 1000
    other = train_head(
        Store.open(make_store(tmp_path / "2.h5", x, {"label": labels, "split": split})), run_path=tmp_path / "2"
    )
    assert np.array_equal(one.weights()["weight"], other.weights()["weight"])
    assert one.metrics("test") != other.metrics("test")


def test_features_of_any_scale_are_learnt(tmp_path: Path) -> None:
    x, labels = two_clouds(400, 64, apart=3.0)
    accuracy = {}
    for scale in (1e-5, 1.0, 1e5):
        store = Store.open(make_store(tmp_path / f"{scale}.h5", x * scale, {"label": labels}))
        accuracy[scale] = train_head(store, run_path=tmp_path / f"run{scale}").metrics("val")["accuracy"]
    assert len(set(accuracy.values())) == 1
    assert accuracy[1.0] > 0.9


# --- the split --------------------------------------------------------------------------------------------------------


def check_run_split(
    store: Store, group_by: str | None, val_fraction: float | None, positive: str | None = None
) -> Split:
    task = Task.of(store, positive)
    split = choose_split(task, val_fraction, group_by, 0)
    groups = task.columns.get(group_by or "group")
    sides = list(split.sides().values())
    for i, a in enumerate(sides):
        for b in sides[i + 1 :]:
            for key in (groups, task.content):
                if key is not None:
                    assert not {key[j] for j in a} & {key[j] for j in b} - {""}
    return split


def test_no_group_and_no_content_is_on_two_sides(tmp_path: Path) -> None:
    x, labels = two_clouds(200, 4)
    group = [f"p{i // 5 * 2 + i % 2}" for i in range(200)]
    content = [f"{i % 190 if labels[i] == labels[i % 190] else i:064x}" for i in range(200)]
    store = Store.open(make_store(tmp_path / "s.h5", x, {"label": labels, "group": group, "site": group}, content))
    for group_by, fraction in ((None, None), ("site", 0.3), (None, 0.5)):
        split = check_run_split(store, group_by, fraction)
        assert len(split.val)
        assert not len(split.test)


def test_given_sides_are_kept_and_validation_is_carved_from_train_alone(tmp_path: Path) -> None:
    x, labels = two_clouds(100, 4)
    side = ["train"] * 60 + ["test"] * 40
    split = check_run_split(Store.open(make_store(tmp_path / "s.h5", x, {"label": labels, "split": side})), None, None)
    assert split.test.tolist() == list(range(60, 100))
    assert sorted([*split.train, *split.val]) == list(range(60))
    assert len(split.val) == 12


def test_given_validation_rows_are_used_unless_a_fraction_is_asked_for(tmp_path: Path) -> None:
    x, labels = two_clouds(100, 4)
    side = ["train"] * 80 + ["val"] * 4 + ["test"] * 16
    store = Store.open(make_store(tmp_path / "s.h5", x, {"label": labels, "split": side}))
    assert check_run_split(store, None, None).val.tolist() == [80, 81, 82, 83]
    assert len(check_run_split(store, None, 0.25).val) in range(18, 25)


@pytest.mark.parametrize("key", ["group", "content"])
def test_a_given_split_that_leaks_is_refused(tmp_path: Path, key: str) -> None:
    x, labels = two_clouds(40, 4)
    columns = {"label": labels, "split": ["train"] * 30 + ["test"] * 10}
    content = [f"{i:064x}" for i in range(40)]
    if key == "content":
        content[35] = content[5]
    else:
        columns["group"] = [f"p{i % 35}" for i in range(40)]
    store = Store.open(make_store(tmp_path / "s.h5", x, columns, content))
    with pytest.raises(UsageError, match=r"on two sides of the given split.*\(train\) and image000\d\d \(test\)"):
        train_head(store, run_path=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_without_a_label_or_a_side_are_left_out_and_counted(tmp_path: Path) -> None:
    x, labels = two_clouds(60, 4)
    labels[3] = labels[50] = ""
    side = ["train"] * 40 + ["test"] * 18 + ["", ""]
    run = train_head(
        Store.open(make_store(tmp_path / "s.h5", x, {"label": labels, "split": side})), run_path=tmp_path / "run"
    )
    assert run.record["left_out"] == {"no label": 2, "no split": 2}
    assert sum(run.metrics(name)["n"] for name in ("train", "val", "test")) == 56


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "has no labels; a head needs two classes"),
        ({"label": ["a"] * 20}, "only the class 'a'"),
        ({"label": ["a", "b"] * 10, "split": ["test"] * 20}, "leaves no labelled image to train on"),
        ({"label": ["a"] * 19 + ["b"]}, r"class b has 1 image\(s\), all of one group"),
    ],
)
def test_a_store_that_cannot_be_learnt_from_says_why(
    tmp_path: Path, columns: dict[str, list[str]], message: str
) -> None:
    store = Store.open(make_store(tmp_path / "s.h5", np.ones((20, 2)), columns))
    with pytest.raises(UsageError, match=message):
        train_head(store, run_path=tmp_path / "run")


def test_unknown_names_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    store = Store.open(make_store(tmp_path / "s.h5", x, {"label": labels}))
    with pytest.raises(UsageError, match="'flu' is not one of the classes: normal, sick"):
        train_head(store, run_path=tmp_path / "run", positive="flu")
    with pytest.raises(UsageError, match="no column 'patient' to group by; there are label"):
        train_head(store, run_path=tmp_path / "run", group_by="patient")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", -1.0, "lr must be > 0 and at most 1000, got -1.0"),
        ("lr", float("nan"), "lr must be > 0"),
        ("lr", 1e38, "lr must be > 0 and at most 1000"),
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("batch_rows", 0, "batch_rows must be at least 1"),
        ("kind", "deep", "kind must be one of linear"),
        ("class_weights", "heavy", "class_weights must be one of none, balanced"),
        ("scale", "big", "scale must be one of"),
        ("seed", -1, "seed must be"),
    ],
)
def test_an_impossible_head_is_refused_at_birth(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeadSpec(**{field: value})


# --- the Run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Run:
    x, labels = two_clouds(120, 10, apart=2.0)
    columns = {"label": labels, "split": ["train"] * 90 + ["test"] * 30}
    return train_head(Store.open(make_store(tmp_path / "s.h5", x, columns)), HeadSpec(epochs=6), tmp_path / "run")


def test_a_run_reopens_as_it_was_made(run: Run) -> None:
    again = Run.open(run.path)
    assert again.record == run.record
    assert again.n_parameters == 22
    assert [row["epoch"] for row in again.history()] == [1, 2, 3, 4, 5, 6]


def test_predictions_can_be_recomputed_from_the_saved_head_and_the_store(run: Run, tmp_path: Path) -> None:
    head, store = run.weights(), Store.open(tmp_path / "s.h5")
    logits = store.features() @ head["weight"].T + head["bias"]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    row_of = {name: i for i, name in enumerate(store.image_ids)}
    with open(run.path / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120
    for row in rows:
        assert float(row["p_sick"]) == pytest.approx(p[row_of[row["image_id"]], 1], abs=1e-5)
        assert row["prediction"] == ("sick" if float(row["p_sick"]) > 0.5 else "normal")
    test = [row for row in rows if row["split"] == "test"]
    accuracy = np.mean([row["label"] == row["prediction"] for row in test])
    assert accuracy == pytest.approx(run.metrics("test")["accuracy"])


def test_the_last_line_of_the_history_is_what_is_reported(run: Run) -> None:
    last = run.history()[-1]
    for side in ("train", "val"):
        for name in ("loss", "accuracy", "precision", "recall", "f1"):
            assert last[f"{side}_{name}"] == pytest.approx(run.metrics(side)[name], rel=1e-6)


def test_curves_are_a_picture(run: Run) -> None:
    with Image.open(run.path / "curves.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_a_run_may_be_repeated_in_its_place_and_no_other_may_take_it(run: Run, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "s.h5")
    before = {path.name: path.read_bytes() for path in run.path.iterdir() if path.name != "run.json"}
    train_head(store, HeadSpec(epochs=6), run.path)
    assert before == {path.name: path.read_bytes() for path in run.path.iterdir() if path.name != "run.json"}
    with pytest.raises(UsageError, match="holds another Run"):
        train_head(store, HeadSpec(epochs=7), run.path)
    assert Run.open(run.path).record["head"]["epochs"] == 6


def test_a_folder_with_other_files_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="with other files in it"):
        train_head(Store.open(tmp_path / "s.h5"), None, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_folder_without_run_json_is_no_run(run: Run) -> None:
    (run.path / "run.json").unlink()
    with pytest.raises(StoreNotFound, match="no finished Run"):
        Run.open(run.path)


def test_names_that_a_spreadsheet_would_run_are_quoted(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    labels = ["=cmd()" if label == "sick" else "@x" for label in labels]
    run = train_head(Store.open(make_store(tmp_path / "s.h5", x, {"label": labels})), run_path=tmp_path / "run")
    with open(run.path / "predictions.csv", encoding="utf-8", newline="") as file:
        assert all(row["label"] in ("'=cmd()", "'@x") for row in csv.DictReader(file))


def test_run_json_has_no_nan(run: Run) -> None:
    json.loads((run.path / "run.json").read_text("utf-8"), parse_constant=lambda name: pytest.fail(name))


def test_a_class_without_training_rows_is_refused(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    side = ["train" if label == "normal" else "test" for label in labels]
    store = Store.open(make_store(tmp_path / "s.h5", x, {"label": labels, "split": side}))
    with pytest.raises(UsageError, match=r"the training rows have no image of class 'sick' \(16 normal, 0 sick\)"):
        train_head(store, run_path=tmp_path / "run")


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    store = Store.open(make_store(tmp_path / "s.h5", x * 1e36, {"label": labels}))
    with pytest.raises(UsageError, match=r"diverged.*Lower --lr"):
        train_head(store, HeadSpec(lr=1000.0, scale="none"), tmp_path / "run")


def test_names_that_would_be_formulas_or_line_ends_survive(tmp_path: Path) -> None:
    x, labels = two_clouds(40, 4)
    labels = ["$x^$\r" if label == "sick" else "b" for label in labels]
    run = train_head(
        Store.open(make_store(tmp_path / "$x^$.h5", x, {"label": labels})),
        HeadSpec(batch_rows=10**30),
        tmp_path / "run",
    )
    with open(run.path / "predictions.csv", encoding="utf-8", newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"$x^$\r", "b"}
