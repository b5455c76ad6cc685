"""Heads that train together: each is the head it would be alone, and the one a plain PyTorch loop would make."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

from featcache.heads import inference, optim
from featcache.heads.jobs import Fit, Fitted, Pool, bytes_per_head, make_stacks, n_parallel_stacks, trajectories
from featcache.heads.mlp import Stack, feature_scale, n_parameters
from featcache.heads.optim import LossMonitor, Targets
from featcache.heads.solvers import solve_all
from featcache.heads.training import fit_all
from featcache.specs import HeadSpec

N, D = 150, 20


def data(n_classes: int = 2, n: int = N, d: int = D, seed: int = 0) -> tuple[torch.Tensor, Targets]:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % (n_classes + 1)).clip(max=n_classes - 1)
    x = rng.standard_normal((n, d)) + y[:, None] * rng.standard_normal(d) * 0.5
    return torch.from_numpy(x.astype(np.float32)), Targets(y[None], n_classes, n_classes - 1)


def findings(n: int = N, d: int = D, c: int = 3) -> tuple[torch.Tensor, Targets]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((n, d)).astype(np.float32)
    y = (x[:, :c] + 0.3 * rng.standard_normal((n, c)) > 0).astype(float)
    y[rng.random((n, c)) < 0.3] = np.nan
    return torch.from_numpy(x), Targets(y[None], c, c - 1)


def folds(n: int, k: int) -> list[np.ndarray]:
    return [np.flatnonzero(np.arange(n) % k == i) for i in range(k)]


def one(spec: HeadSpec, n: int = N, held: np.ndarray | None = None) -> Fit:
    """A fit on all rows but the held ones, alone."""
    held = np.arange(n)[-30:] if held is None else held
    train = np.setdiff1d(np.arange(n), held)
    return Fit(spec, Pool(train), train, held)


def check_same_head(head: Fitted, other: Fitted, spec: HeadSpec, x: torch.Tensor, targets: Targets) -> None:
    """What is promised of two ways to train one head: the same epoch, the same logits of any row and the same history,
    to 1e-5 of their scale. Not the same weights: where a gradient is zero but for rounding, Adam makes a whole step of
    it, in a direction that depends on how a CPU adds.
    """
    assert head.epoch == other.epoch
    rows = x[:, 0] if x.ndim == 3 else x  # of an image and its views the image
    logits = [
        inference.logits(spec, fitted.tensors, rows, targets.n_classes, targets.positive) for fitted in (head, other)
    ]
    for ours, theirs in ((head.logits, other.logits), logits):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))
    for ours, theirs in zip(head.history, other.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


# --- equal to plain PyTorch -------------------------------------------------------------------------------------------


def plain_head(spec: HeadSpec, d: int, c: int) -> torch.nn.Sequential:
    """The modules anybody would write, initialised by torch itself."""
    torch.manual_seed(spec.seed)
    activation = {"relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid, "tanh": torch.nn.Tanh, "gelu": torch.nn.GELU}
    layers: list[torch.nn.Module] = []
    for width in spec.hidden_sizes:
        layers.append(torch.nn.Linear(d, width))
        if spec.norm == "batch":
            layers.append(torch.nn.BatchNorm1d(width))
        layers.append(activation[spec.activation]())
        d = width
    return torch.nn.Sequential(*layers, torch.nn.Linear(d, c))


def plain_loop(fit: Fit, x: torch.Tensor, targets: Targets, rate: Any = None) -> torch.nn.Sequential:
    """CrossEntropyLoss and torch.optim on the same batches, rows of other folds left out of each."""
    spec, y = fit.spec, torch.from_numpy(targets.values[fit.labelling])
    head = plain_head(spec, x.shape[1], targets.n_classes)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    more = {"momentum": spec.momentum} if spec.optimizer == "sgd" else {}
    optimizer = kinds[spec.optimizer](head.parameters(), lr=spec.lr, weight_decay=spec.weight_decay, **more)
    counts = torch.bincount(y[fit.train], minlength=targets.n_classes)
    weight = len(fit.train) / (targets.n_classes * counts.float()) if spec.class_weight == "balanced" else None
    loss_of = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=spec.label_smoothing)
    learnt = torch.zeros(len(x), dtype=torch.bool)
    learnt[fit.train] = True
    scale = x[fit.train].double().square().mean().sqrt().float() if spec.scale == "rms" else 1.0
    for epoch, batches in zip(range(1, spec.epochs + 1), fit.pool.batches(spec.batch_size), strict=False):
        for positions in batches:
            rows = torch.from_numpy(fit.pool.rows)[positions]
            rows = rows[learnt[rows]]
            for group in optimizer.param_groups:
                group["lr"] = spec.lr * (rate(epoch) if rate else 1.0)
            optimizer.zero_grad()
            loss_of(head(x[rows] / scale), y[rows]).backward()
            optimizer.step()
    return head.eval()


def check_equals_plain(fit: Fit, x: torch.Tensor, targets: Targets, atol: float = 1e-5, rate: Any = None) -> None:
    (ours,) = fit_all([fit], x, targets)
    head = plain_loop(fit, x, targets, rate)
    scale = x[fit.train].double().square().mean().sqrt().float() if fit.spec.scale == "rms" else 1.0
    with torch.no_grad():
        theirs = head(x[fit.val] / scale).numpy()
    np.testing.assert_allclose(ours.logits, theirs, atol=atol)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_linear_head_equals_a_plain_pytorch_loop(optimizer: str, class_weight: str, n_classes: int) -> None:
    x, targets = data(n_classes)
    how = {"optimizer": optimizer, "class_weight": class_weight, "weight_decay": 0.01, "label_smoothing": 0.1}
    check_equals_plain(one(HeadSpec(epochs=6, seed=7, schedule="constant", **how)), x, targets)


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "gelu"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_an_mlp_equals_a_plain_pytorch_loop(activation: str, norm: str) -> None:
    x, targets = data(3)
    how = {"hidden_sizes": (16, 8), "dropout": 0.0, "activation": activation, "norm": norm, "schedule": "constant"}
    if norm == "batch":  # Adam makes steps of the rounding errors that are torch's gradient of a bias before the norm
        how |= {"optimizer": "sgd", "lr": 0.05}
    check_equals_plain(one(HeadSpec.of("mlp", epochs=5, seed=3, **how)), x, targets, atol=1e-4)


def test_a_fold_of_a_stack_equals_a_plain_loop_that_skips_its_held_rows() -> None:
    x, targets = data(2)
    held = folds(N, 3)[1]
    pool = Pool(np.arange(N), 2 / 3)
    for spec in (HeadSpec(epochs=4), HeadSpec.of("mlp", hidden_sizes=(8,), norm="none", dropout=0.0, epochs=4)):
        spec = replace(spec, schedule="constant")
        check_equals_plain(Fit(spec, pool, np.setdiff1d(pool.rows, held), held), x, targets, atol=1e-4)


def test_the_cosine_goes_from_the_rate_to_nothing() -> None:
    x, targets = data(2)
    spec = HeadSpec(epochs=5, schedule="cosine")
    check_equals_plain(one(spec), x, targets, rate=lambda epoch: 0.5 * (1 + np.cos(np.pi * (epoch - 1) / 5)))


def test_findings_equal_a_plain_loop_with_binary_cross_entropy_on_known_labels() -> None:
    x, targets = findings()
    fit = one(HeadSpec(epochs=6, schedule="constant", weight_decay=0.0))
    (ours,) = fit_all([fit], x, targets)
    torch.manual_seed(0)
    head = torch.nn.Linear(D, 3)
    optimizer = torch.optim.Adam(head.parameters(), lr=fit.spec.lr)
    y = torch.from_numpy(targets.values[0]).float()
    scale = x[fit.train].double().square().mean().sqrt().float()
    for _, batches in zip(range(6), fit.pool.batches(fit.spec.batch_size), strict=False):
        for positions in batches:
            rows = torch.from_numpy(fit.pool.rows)[positions]
            z, known = head(x[rows] / scale), ~torch.isnan(y[rows])
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(z[known], y[rows][known]).backward()
            optimizer.step()
    with torch.no_grad():
        np.testing.assert_allclose(ours.logits, head(x[fit.val] / scale).numpy(), atol=1e-5)


def test_a_head_that_draws_views_equals_a_plain_loop_that_draws_them() -> None:
    """A row's vector of an epoch is one of its own three, divided by the root mean square of all that may be drawn."""
    x, targets = data(3)
    each = beside(x)
    fit = one(HeadSpec(epochs=6, schedule="constant", weight_decay=0.0, augmentations=True))
    (ours,) = fit_all([fit], each, targets)
    head, y = plain_head(fit.spec, D, 3), torch.from_numpy(targets.values[0])
    optimizer = torch.optim.Adam(head.parameters(), lr=fit.spec.lr)
    scale = each[fit.train].double().square().mean().sqrt().float()
    rows = torch.from_numpy(fit.pool.rows)
    for _, batches, drawn in zip(range(6), fit.pool.batches(fit.spec.batch_size), fit.pool.views(3), strict=False):
        for positions in batches:
            seen = torch.stack([each[rows[i], drawn[i]] for i in positions])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head(seen / scale), y[rows[positions]]).backward()
            optimizer.step()
    with torch.no_grad():
        np.testing.assert_allclose(ours.logits, head(x[fit.val] / scale).numpy(), atol=1e-5)
    (averaged,) = fit_all([fit], each, targets, tta=True)
    with torch.no_grad():
        np.testing.assert_allclose(averaged.logits, head(each[fit.val] / scale).mean(1).numpy(), atol=1e-5)


# --- each the head it would be alone ----------------------------------------------------------------------------------


def mixed(kind: str) -> list[HeadSpec]:
    """Heads that differ in everything that heads of one stack may differ in."""
    hidden = {"hidden_sizes": (12,)} if kind == "mlp" else {}
    dropouts = [0.5, 0.0, 0.25] if kind == "mlp" else [0.0] * 3
    return [
        HeadSpec.of(
            kind, lr=lr, weight_decay=decay, seed=seed, class_weight=weights, label_smoothing=smooth, epochs=epochs,
            schedule=schedule, lr_patience=2, patience=3, **hidden, **({"dropout": dropout} if hidden else {}),
        )
        for lr, decay, seed, weights, smooth, epochs, schedule, dropout in (
            (0.003, 0.0, 0, "none", 0.0, 12, "constant", dropouts[0]),
            (0.03, 0.01, 1, "balanced", 0.1, 9, "plateau", dropouts[1]),
            (0.1, 0.0, 0, "none", 0.0, 12, "cosine", dropouts[2]),
            (0.003, 0.1, 2, "balanced", 0.2, 6, "plateau", dropouts[0]),
        )
    ]  # fmt: skip


def beside(x: torch.Tensor, n_views: int = 2) -> torch.Tensor:
    """(n, 1 + K, d): the vectors, and noisy views of them."""
    noise = torch.randn((len(x), n_views, x.shape[1]), generator=torch.Generator().manual_seed(8))
    return torch.cat([x[:, None], x[:, None] + noise], dim=1)


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("stops", [True, False])
def test_head_i_of_a_stack_equals_head_i_alone(kind: str, stops: bool, views: bool) -> None:
    """With batch norm, dropout, folds, class weights, schedules, early stopping, and views drawn and averaged."""
    x, targets = data(2)
    x = beside(x) if views else x
    pool = Pool(np.arange(N), 2 / 3, seed=5)
    fits = []
    for i, spec in enumerate(mixed(kind)):
        for held in folds(N, 3):
            train = np.setdiff1d(pool.rows, held)
            spec = spec if stops else replace(spec, patience=0)
            spec = replace(spec, augmentations=views and i != 1)  # one of them stands beside, in a stack of its own
            fits.append(Fit(spec, pool, train[10:], held, train[:10]))
    together = fit_all(fits, x, targets, tta=views, curves=True)
    assert len({each.epoch for each in together}) > 2
    for fit, found in zip(fits, together, strict=True):
        (alone,) = fit_all([fit], x, targets, tta=views, curves=True)
        check_same_head(found, alone, fit.spec, x, targets)


def test_a_stack_too_large_for_memory_is_cut_and_gives_the_same() -> None:
    x, targets = data(2)
    fit = one(HeadSpec.of("mlp", hidden_sizes=(8,), epochs=3))
    fits = [replace(fit, spec=replace(fit.spec, seed=seed)) for seed in range(5)]
    whole, cut = fit_all(fits, x, targets), fit_all(fits, x, targets, memory_bytes=1)
    for a, b in zip(whole, cut, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)
    size = bytes_per_head(fits[0], x, targets)
    shares = [len(s) for s in make_stacks(trajectories(fits), x, targets, 2 * size, 1)]
    assert shares == [2, 2, 1]
    torch.set_num_threads(4)
    assert [n_parallel_stacks(trajectories(fits), x, targets, n * size) for n in (0, 1, 3, 9)] == [1, 1, 3, 4]


def test_logits_without_weights_are_the_same_and_a_head_that_diverged_is_told_apart() -> None:
    x, targets = data(2)
    fit = one(HeadSpec.of("mlp", hidden_sizes=(8,), lr=0.01, epochs=4, optimizer="sgd"))
    fits = [fit, replace(fit, spec=replace(fit.spec, weight_decay=1000.0, norm="none", epochs=40))]
    for whole, bare in zip(fit_all(fits, x, targets), fit_all(fits, x, targets, weights=False), strict=True):
        assert not bare.tensors
        assert np.array_equal(whole.logits, bare.logits, equal_nan=True)
        assert bare.diverged == whole.diverged == (whole.fit is fits[1])


def test_epochs_of_a_sweep_are_snapshots_of_one_training() -> None:
    x, targets = data(2)
    base = one(HeadSpec(schedule="constant"))
    fits = [replace(base, spec=replace(base.spec, epochs=epochs)) for epochs in (3, 9, 6)]
    assert len(trajectories(fits)) == 1
    for fit, snapshot in zip(fits, fit_all(fits, x, targets), strict=True):
        (alone,) = fit_all([fit], x, targets)
        assert snapshot.epoch == fit.spec.epochs == alone.epoch
        np.testing.assert_allclose(snapshot.logits, alone.logits, atol=1e-6)
    cosine = [replace(base, spec=replace(base.spec, epochs=epochs, schedule="cosine")) for epochs in (3, 9)]
    assert len(trajectories(cosine)) == 2


def test_many_labellings_are_learnt_side_by_side() -> None:
    x, targets = data(2)
    flipped = replace(targets, values=np.concatenate([targets.values, 1 - targets.values]))
    fit = one(HeadSpec(epochs=4))
    straight, other = fit_all([fit, replace(fit, labelling=1)], x, flipped)
    (alone,) = fit_all([fit], x, Targets(1 - targets.values, 2, 1))
    np.testing.assert_allclose(other.logits, alone.logits, atol=1e-5)
    assert np.abs(straight.logits - other.logits).max() > 0.1


# --- first layers of millions of weights ------------------------------------------------------------------------------

WIDE = 8_192  # features, times 256 units


def wide_fits(**how: Any) -> tuple[list[Fit], torch.Tensor, Targets]:
    """Six heads in three folds, of two rates and dropouts, and what they learn from."""
    x, targets = data(3, n=60, d=WIDE)
    pool = Pool(np.arange(60), 2 / 3, seed=5)
    specs = [
        HeadSpec.of("flatten-mlp", **{"lr": lr, "dropout": dropout, "epochs": 3, "weight_decay": 0.01, **how})
        for lr, dropout in ((1e-3, 0.25), (3e-4, 0.0))
    ]
    fits = [Fit(spec, pool, np.setdiff1d(pool.rows, held)[6:], held) for spec in specs for held in folds(60, 3)]
    assert all(optim.is_chunked(fit.spec, WIDE) for fit in fits)
    return [replace(fit, watch=np.setdiff1d(fit.pool.rows, [*fit.train, *fit.val])) for fit in fits], x, targets


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_wide_head_equals_a_plain_pytorch_loop(optimizer: str) -> None:
    fits, x, targets = wide_fits(optimizer=optimizer, dropout=0.0)
    check_equals_plain(fits[1], x, targets, atol=1e-4)


@pytest.mark.parametrize("how", [{}, {"norm": "batch", "patience": 1, "epochs": 6, "schedule": "plateau"}])
def test_a_wide_head_of_a_stack_equals_it_alone(how: dict[str, Any]) -> None:
    fits, x, targets = wide_fits(**how)
    assert max(len(each) for each in make_stacks(trajectories(fits), x, targets, 1 << 40, 1)) == optim.MAX_CHUNKED_HEADS
    for fit, beside_others in zip(fits, fit_all(fits, x, targets, curves=True), strict=True):
        (alone,) = fit_all([fit], x, targets, curves=True)
        check_same_head(beside_others, alone, fit.spec, x, targets)


def test_training_in_pieces_comes_to_what_one_product_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a last piece that is smaller than the others."""
    fits, x, targets = wide_fits()
    monkeypatch.setattr(optim, "_CHUNK_VALUES", 100 * WIDE)
    in_pieces = fit_all(fits, x, targets)
    monkeypatch.setattr(optim, "_MIN_CHUNKED_WEIGHTS", 1 << 40)
    for one_by_one, at_once in zip(in_pieces, fit_all(fits, x, targets), strict=True):
        np.testing.assert_allclose(one_by_one.logits, at_once.logits, atol=1e-4)


# --- what may not matter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "mlp", "logreg", "ridge", "knn"])
def test_held_rows_and_their_labels_change_nothing_that_is_learnt(kind: str) -> None:
    x, targets = data(2)
    early = {"patience": 2, "schedule": "plateau"} if kind in ("linear", "mlp") else {}
    spec = HeadSpec.of(kind, **early)
    fit = one(spec)
    fit = replace(fit, train=fit.train[20:], watch=fit.train[:20]) if early else fit
    run = fit_all if early else solve_all
    (before,) = run([fit], x, targets)
    x, values = x.clone(), targets.values.copy()
    x[fit.val], values[:, fit.val] = 1e6, 0
    (after,) = run([fit], x, replace(targets, values=values))
    for name, tensor in before.tensors.items():
        assert np.array_equal(tensor, after.tensors[name]), name


@pytest.mark.parametrize("scale", ["rms", "none", "standard"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_folded_head_gives_the_same_logits_on_features_as_they_are_stored(kind: str, scale: str) -> None:
    x, targets = data(3)
    x = x * 3e-2 + 1e-2
    (made,) = fit_all([one(HeadSpec.of(kind, scale=scale, epochs=5))], x, targets)
    again = inference.logits(made.fit.spec, made.tensors, x.numpy()[made.fit.val], 3, 2)
    np.testing.assert_allclose(again, made.logits, atol=2e-5)


@pytest.mark.parametrize("positive", [0, 1])
def test_a_sigmoid_output_is_the_log_odds_of_the_positive_class(positive: int) -> None:
    x, targets = data(2)
    targets = replace(targets, positive=positive)
    (made,) = fit_all([one(HeadSpec.of("flatten-mlp", lr=0.01, epochs=30))], x, targets)
    assert made.tensors["weight"].shape == (1, 256)
    assert not made.logits[:, 1 - positive].any()
    right = made.logits.argmax(1) == targets.values[0][made.fit.val]
    assert right.mean() > 0.7
    again = inference.logits(made.fit.spec, made.tensors, x.numpy()[made.fit.val], 2, positive)
    np.testing.assert_allclose(again, made.logits, atol=2e-5)


def test_dropout_drops_the_share_it_says_and_keeps_the_mean() -> None:
    specs = [HeadSpec.of("mlp", hidden_sizes=(400,), norm="none", dropout=rate, seed=1) for rate in (0.0, 0.5)]
    x = torch.randn(64, D, generator=torch.Generator().manual_seed(0))
    stack = Stack.fresh(specs, feature_scale(x, [torch.arange(64)] * 2, "none"), D, 2)
    uniforms = [torch.rand(2, 64, 400, generator=torch.Generator().manual_seed(1))]
    whole, dropped = stack(x), stack(x, torch.ones(2, 64), uniforms)
    torch.testing.assert_close(whole[0], dropped[0])
    torch.testing.assert_close(whole[0], whole[1])
    assert (dropped[1] - whole[1]).abs().max() > 0.01
    assert (dropped[1] - whole[1]).mean().abs() < 0.02


@pytest.mark.parametrize(
    ("spec", "d", "c", "expected"),
    [
        (HeadSpec(), 1280, 2, 2562),
        (HeadSpec.of("mlp"), 1280, 2, 328_962),
        (HeadSpec.of("flatten-mlp"), 25_088, 1, 6_423_041),
        (HeadSpec.of("flatten-mlp"), 25_088, 4, 6_423_812),
        (HeadSpec.of("flatten-mlp"), 100_352, 1, 25_690_625),
        (HeadSpec.of("flatten-mlp"), 100_352, 4, 25_691_396),
        (HeadSpec.of("flatten-mlp"), 38_400, 1, 9_830_913),
        (HeadSpec.of("flatten-mlp"), 38_400, 4, 9_831_684),
    ],
)
def test_parameters_are_counted_to_the_digit(spec: HeadSpec, d: int, c: int, expected: int) -> None:
    assert n_parameters(spec, d, c) == expected


def test_the_count_is_that_of_the_parameters_trained() -> None:
    x, targets = data(2)
    for spec in (
        HeadSpec(epochs=1),
        HeadSpec.of("mlp", epochs=1),
        HeadSpec.of("flatten-mlp", epochs=1, hidden_sizes=(9, 4)),
    ):
        (made,) = fit_all([one(spec)], x, targets)
        outputs = 1 if spec.kind == "flatten-mlp" else 2
        assert made.n_parameters == n_parameters(spec, D, outputs)
        trained = [t for name, t in made.tensors.items() if "running" not in name]
        assert sum(t.size for t in trained) == made.n_parameters


# --- watching ---------------------------------------------------------------------------------------------------------


def test_early_stopping_takes_the_best_epoch_of_the_watch_rows() -> None:
    x, targets = data(2, d=60)
    fit = one(HeadSpec(lr=0.05, epochs=60, patience=4, schedule="constant"))
    fit = replace(fit, train=fit.train[:40], watch=fit.train[40:])
    (made,) = fit_all([fit], x, targets)
    assert 0 < made.epoch < 56
    y = targets.values[0]

    def loss(epochs: int) -> float:
        (cut,) = fit_all([replace(fit, spec=replace(fit.spec, epochs=epochs, patience=0))], x, targets)
        z = inference.logits(cut.fit.spec, cut.tensors, x.numpy()[fit.watch], 2, 1)
        return float(torch.nn.functional.cross_entropy(torch.from_numpy(z), torch.from_numpy(y[fit.watch])))

    losses = [loss(epochs) for epochs in range(1, made.epoch + 5)]
    assert int(np.argmin(losses)) + 1 == made.epoch


def test_plateau_is_that_of_torch() -> None:
    losses = [1.0, 0.9, 0.91, 0.9, 0.95, 0.89995, 0.8, 0.8, 0.8, 0.8, 0.8, 0.7]
    spec = HeadSpec(schedule="plateau", lr_patience=2, lr=0.1)
    monitor = LossMonitor(spec)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2, factor=0.1)
    for epoch, loss in enumerate(losses, start=1):
        assert spec.lr * monitor.lr_factor(epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step(loss)
        monitor.update(loss, epoch)
    assert spec.lr * monitor.lr_factor(99) == pytest.approx(optimizer.param_groups[0]["lr"]) == pytest.approx(0.001)


def test_a_head_that_diverges_is_told_apart_and_spoils_no_other() -> None:
    x, targets = data(2)
    fits = [one(HeadSpec(lr=0.01, weight_decay=decay, epochs=40, optimizer="sgd")) for decay in (0.0, 1000.0)]
    fine, gone = fit_all(fits, x, targets)
    (alone,) = fit_all(fits[:1], x, targets)
    assert gone.diverged
    assert not fine.diverged
    np.testing.assert_allclose(fine.logits, alone.logits, atol=1e-5)


# --- solved -----------------------------------------------------------------------------------------------------------


def solved(spec: HeadSpec, x: torch.Tensor, targets: Targets) -> Fitted:
    return solve_all([one(spec)], x, targets)[0]


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("d", [20, 300])
def test_ridge_is_that_of_scikit_learn(n_classes: int, class_weight: str, d: int) -> None:
    """With more features than rows, too."""
    x, targets = data(n_classes, d=d)
    for alpha in (0.5, 50.0):
        made = solved(HeadSpec.of("ridge", alpha=alpha, scale="none", class_weight=class_weight), x, targets)
        fit = made.fit
        weight = "balanced" if class_weight == "balanced" else None
        theirs = RidgeClassifier(alpha=alpha, class_weight=weight, solver="cholesky")
        theirs.fit(x[fit.train].double().numpy(), targets.values[0][fit.train])
        expected = theirs.decision_function(x[fit.val].double().numpy())
        ours = made.logits if n_classes > 2 else made.logits[:, 1]
        np.testing.assert_allclose(ours, expected, atol=2e-4)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logreg_is_that_of_scikit_learn_at_every_point_of_the_path(n_classes: int) -> None:
    x, targets = data(n_classes)
    fits = [one(HeadSpec.of("logreg", C=C, scale="none", class_weight="balanced")) for C in (1.0, 0.01, 0.1)]
    for made in solve_all(fits, x, targets):
        theirs = LogisticRegression(C=made.fit.spec.C, class_weight="balanced", max_iter=1000, tol=1e-8)
        theirs.fit(x[made.fit.train].numpy(), targets.values[0][made.fit.train])
        p = np.exp(made.logits) / np.exp(made.logits).sum(1, keepdims=True)
        np.testing.assert_allclose(p, theirs.predict_proba(x[made.fit.val].numpy()), atol=5e-3)


def test_knn_votes_as_scikit_learn_does() -> None:
    x, targets = data(3)
    for made in solve_all([one(HeadSpec.of("knn", n_neighbors=k)) for k in (1, 7)], x, targets):
        theirs = KNeighborsClassifier(made.fit.spec.n_neighbors, metric="cosine", algorithm="brute")
        theirs.fit(x[made.fit.train].numpy(), targets.values[0][made.fit.train])
        votes = theirs.predict_proba(x[made.fit.val].numpy()) * made.fit.spec.n_neighbors
        k = made.fit.spec.n_neighbors
        np.testing.assert_allclose(np.exp(made.logits), (votes + 1 / 3) / (k + 1), atol=1e-5)
        again = inference.logits(made.fit.spec, made.tensors, x.numpy()[made.fit.val], 3, 2)
        np.testing.assert_allclose(again, made.logits, atol=1e-6)


@pytest.mark.parametrize("kind", ["logreg", "ridge", "knn", "linear", "mlp"])
def test_findings_are_learnt_by_every_kind(kind: str) -> None:
    x, targets = findings(n=400, d=6)
    run = solve_all if kind in ("logreg", "ridge", "knn") else fit_all
    (made,) = run([one(HeadSpec.of(kind), n=400, held=np.arange(300, 400))], x, targets)
    y = targets.values[0][300:]
    for c in range(3):
        known = np.isfinite(y[:, c])
        assert np.mean((made.logits[known, c] > 0) == (y[known, c] > 0.5)) > 0.6
    again = inference.logits(made.fit.spec, made.tensors, x.numpy()[300:], 3, 2)
    np.testing.assert_allclose(again, made.logits, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_gpu_trains_the_same_heads(kind: str) -> None:
    x, targets = data(2)
    fits = [one(HeadSpec.of(kind, epochs=5, seed=seed)) for seed in range(3)]
    for here, there in zip(fit_all(fits, x, targets), fit_all(fits, x.cuda(), targets), strict=True):
        np.testing.assert_allclose(here.logits, there.logits, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same_views() -> None:
    x, targets = data(2)
    x, fit = beside(x), one(HeadSpec(epochs=5, augmentations=True))
    here, there = (fit_all([fit], each, targets, tta=True)[0] for each in (x, x.cuda()))
    np.testing.assert_allclose(here.logits, there.logits, atol=1e-3)
