"""A head as a torch module is the head that was trained, and goes on as it would have gone on."""

from typing import Any

import numpy as np
import pytest
import torch

from featcache.errors import UsageError
from featcache.heads import inference
from featcache.heads.jobs import Fit, Fitted, Pool
from featcache.heads.mlp import feature_scale, fresh, head_module, n_outputs, n_parameters, tensors_of
from featcache.heads.optim import Targets, class_weight
from featcache.heads.solvers import solve_all
from featcache.heads.training import fit_all
from featcache.specs import HeadSpec
from tests.conftest import two_clouds

Array = np.ndarray[Any, Any]
N, D = 60, 12
ROWS = np.arange(N)
MLP = {"hidden_sizes": (9, 5), "epochs": 3, "dropout": 0.3}
SPECS = {
    "linear": HeadSpec(epochs=3),
    "standard": HeadSpec(epochs=3, scale="standard"),
    "mlp": HeadSpec.of("mlp", **MLP, activation="gelu"),
    "mlp-plain": HeadSpec.of("mlp", **MLP, norm="none", activation="tanh"),
    "flatten-mlp": HeadSpec.of("flatten-mlp", hidden_sizes=(7,), epochs=3, activation="sigmoid"),
    "logreg": HeadSpec.of("logreg"),
    "ridge": HeadSpec.of("ridge", alpha=10.0),
}


def vectors(scale: float = 1e-3) -> Array:
    return (two_clouds(N, D)[0] * scale).astype(np.float32)


def targets(what: str, positive: int = 1) -> Targets:
    labels = two_clouds(N, D)[1]
    values = np.array([label == "sick" for label in labels], dtype=np.int64)
    if what == "three":
        values = np.arange(N) % 3
    if what == "findings":
        known = np.random.default_rng(0).random((N, 3)) < 0.8
        return Targets(np.where(known, values[:, None] == [0, 1, 1], np.nan)[None], 3, 2)
    return Targets(values[None], 3 if what == "three" else 2, positive)


def fitted(spec: HeadSpec, x: Array, y: Targets, pool: Pool | None = None) -> Fitted:
    solve = fit_all if spec.is_trained else solve_all
    return solve([Fit(spec, pool or Pool(ROWS), ROWS, ROWS)], torch.from_numpy(x), y)[0]


def rms(x: Array) -> float:
    return float(feature_scale(torch.from_numpy(x), [torch.arange(len(x))], "rms").divisor)


# --- the same head ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["two", "three", "findings"])
@pytest.mark.parametrize("name", SPECS)
def test_a_module_says_what_the_head_says_and_gives_it_back(name: str, what: str) -> None:
    spec, x, y = SPECS[name], vectors(), targets(what)
    tensors = fitted(spec, x, y).tensors
    module = head_module(spec, tensors, rms(x), y.n_classes, y.positive, y.has_findings).eval()
    with torch.no_grad():
        said = module(torch.from_numpy(x)).numpy()
    wanted = inference.logits(spec, tensors, x, y.n_classes, y.positive)
    np.testing.assert_allclose(said, wanted, atol=1e-5, rtol=1e-5)
    back = tensors_of(module)
    assert {key: (t.shape, t.dtype) for key, t in back.items()} == {k: (t.shape, t.dtype) for k, t in tensors.items()}
    for key, tensor in tensors.items():
        np.testing.assert_allclose(back[key], tensor, rtol=1e-6, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("positive", [0, 1])
def test_a_single_output_is_about_the_positive_class(positive: int) -> None:
    spec, x, y = SPECS["flatten-mlp"], vectors(), targets("two", positive)
    tensors = fitted(spec, x, y).tensors
    assert tensors["bias"].shape == (1,)
    module = head_module(spec, tensors, rms(x), 2, positive, False).eval()
    z = module(torch.from_numpy(x)).detach()
    assert z.shape == (N, 2)
    assert not z[:, 1 - positive].any()
    np.testing.assert_allclose(z.numpy(), inference.logits(spec, tensors, x, 2, positive), atol=1e-5)


def test_the_weights_of_a_module_are_of_the_size_at_which_they_were_trained() -> None:
    """Of features of 1e-3 the folded weights are a thousand times as large: a rate would mean another thing."""
    x, spec = vectors(), SPECS["mlp"]
    tensors = fitted(spec, x, targets("two")).tensors
    module = head_module(spec, tensors, rms(x), 2, 1, False)
    np.testing.assert_allclose(
        module.hidden[0].weight.detach().numpy(), tensors["hidden.0.weight"] * rms(x), rtol=1e-6, atol=0
    )
    assert module.feature_rms.item() == rms(x)
    assert "feature_rms" not in dict(module.named_parameters())


@pytest.mark.parametrize("what", ["two", "three", "findings"])
@pytest.mark.parametrize("name", SPECS)
def test_all_parameters_of_a_head_are_trained_on(name: str, what: str) -> None:
    spec, x, y = SPECS[name], vectors(), targets(what)
    module = head_module(spec, fitted(spec, x, y).tensors, 1.0, y.n_classes, y.positive, y.has_findings)
    n = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert n == n_parameters(spec, D, n_outputs(spec, y.n_classes, y.has_findings))


def test_the_mlp_of_the_design_has_its_parameters() -> None:
    spec = HeadSpec.of("mlp")
    module = head_module(spec, fresh(spec, 1280, 2), 1.0, 2, 1, False)
    assert sum(p.numel() for p in module.parameters()) == 328_962


# --- training goes on -------------------------------------------------------------------------------------------------

EVERY = {"lr": 0.01, "epochs": 4, "batch_size": 16, "schedule": "constant", "weight_decay": 0.1, "seed": 3}
STEPS = {
    "linear": HeadSpec.of("linear", **EVERY),
    "balanced": HeadSpec.of("linear", **EVERY, class_weight="balanced", label_smoothing=0.1),
    "batch norm": HeadSpec.of("mlp", hidden_sizes=(9, 5), **EVERY, dropout=0.4),
    "no norm": HeadSpec.of("mlp", hidden_sizes=(9,), **EVERY, norm="none", dropout=0.0),
    "one output": HeadSpec.of("flatten-mlp", hidden_sizes=(9,), **EVERY, dropout=0.4),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_adam_on_a_module_are_those_of_a_stack(name: str) -> None:
    """From the same initial weights through the same batches, with the same units dropped."""
    spec, x, y, pool = STEPS[name], vectors(), targets("two"), Pool(ROWS, seed=5)
    scale = rms(x)
    tensors = fresh(spec, D, n_outputs(spec, 2, False), scale)
    module = head_module(spec, tensors, scale, 2, 1, False)
    labels = torch.from_numpy(y.values[0])
    weights = torch.from_numpy(class_weight(y.values[0], 2, spec.class_weight)).float()
    loss = torch.nn.CrossEntropyLoss(weights, label_smoothing=spec.label_smoothing)
    adam = torch.optim.Adam(module.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
    generator = torch.Generator().manual_seed((1 << 40) + spec.seed)
    for _, batches in zip(range(spec.epochs), pool.batches(spec.batch_size), strict=False):
        for rows in batches:
            draws = [torch.rand(len(rows), width, generator=generator) for width in spec.hidden_sizes]
            adam.zero_grad()
            loss(module(torch.from_numpy(x)[rows], draws), labels[rows]).backward()
            adam.step()
    wanted = fitted(spec, x, y, pool)
    module.eval()
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach().numpy(), wanted.logits, atol=1e-4)
    for key, tensor in tensors_of(module).items():
        np.testing.assert_allclose(
            tensor, wanted.tensors[key], rtol=1e-3, atol=1e-4 * np.abs(tensor).max(), err_msg=key
        )
        assert key.endswith("running_var") or not np.array_equal(tensor, tensors[key]), key


@pytest.mark.parametrize("name", ["linear", "mlp", "mlp-plain"])
def test_a_fresh_head_has_the_numbers_with_which_a_training_begins(name: str) -> None:
    """A training at a rate of nearly nothing ends where it began."""
    used = SPECS[name].used()
    spec = HeadSpec.of(used.pop("kind"), **{**used, "lr": 1e-12, "weight_decay": 0.0, "seed": 9})
    x = vectors()
    wanted = fitted(spec, x, targets("three")).tensors
    for key, tensor in fresh(spec, D, 3, rms(x)).items():
        if "running" not in key:
            np.testing.assert_allclose(tensor, wanted[key], rtol=1e-5, atol=1e-9, err_msg=key)
    unscaled = fresh(spec, D, 3)
    first = "hidden.0.weight" if spec.hidden_sizes else "weight"
    np.testing.assert_allclose(unscaled[first] / rms(x), wanted[first], rtol=1e-5)


def test_the_numbers_drawn_decide_which_units_are_dropped() -> None:
    spec = HeadSpec.of("mlp", hidden_sizes=(200,), norm="none", dropout=0.5)
    module = head_module(spec, fresh(spec, D, 2), 1.0, 2, 1, False)
    x = torch.from_numpy(vectors(1.0))
    draws = [torch.rand(N, 200, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(module(x, draws), module(x, draws))
    assert not torch.equal(module(x, draws), module(x, [1 - draws[0]]))
    assert not torch.equal(module(x), module(x))
    nothing_dropped = module(x, [torch.full((N, 200), 0.999)])
    module.eval()
    assert torch.equal(module(x, draws), module(x))
    hidden = torch.relu(x @ module.hidden[0].weight.T + module.hidden[0].bias) * 2
    assert torch.allclose(nothing_dropped, hidden @ module.weight.T + module.bias, atol=1e-4)


def test_a_batch_of_one_row_is_its_own_mean() -> None:
    """torch refuses it; a stack does not, and a module does what the stack does."""
    spec = HeadSpec.of("mlp", hidden_sizes=(4,), batch_size=1, epochs=2, dropout=0.0, schedule="constant")
    x, y, pool = vectors(), targets("two"), Pool(ROWS[:6])
    scale = rms(x[:6])
    module = head_module(spec, fresh(spec, D, 2, scale), scale, 2, 1, False)
    labels = torch.from_numpy(y.values[0])
    adam = torch.optim.Adam(module.parameters(), lr=spec.lr)
    for _, batches in zip(range(2), pool.batches(1), strict=False):
        for rows in batches:
            adam.zero_grad()
            torch.nn.functional.cross_entropy(module(torch.from_numpy(x)[rows]), labels[rows]).backward()
            adam.step()
    wanted = fit_all([Fit(spec, pool, ROWS[:6], ROWS)], torch.from_numpy(x), y)[0].tensors
    for key, tensor in tensors_of(module).items():
        np.testing.assert_allclose(tensor, wanted[key], rtol=1e-5, atol=1e-6, err_msg=key)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_is_no_head_to_train_on_is_refused() -> None:
    spec, x = HeadSpec(), vectors()
    tensors = fresh(spec, D, 2)
    with pytest.raises(UsageError, match="a knn head has no weights that could be trained on"):
        head_module(HeadSpec.of("knn"), fitted(HeadSpec.of("knn"), x, targets("two")).tensors, 1.0, 2, 1, False)
    wrong: list[tuple[HeadSpec, dict[str, Array]]] = [
        (spec, {}),
        (spec, {"weight": tensors["weight"]}),
        (spec, {**tensors, "more": tensors["bias"]}),
        (spec, {**tensors, "bias": np.zeros(3, dtype=np.float32)}),
        (spec, {**tensors, "weight": np.zeros((), dtype=np.float32)}),
        (spec, fresh(spec, D, 3)),
        (HeadSpec.of("mlp"), tensors),
    ]
    for asked, given in wrong:
        with pytest.raises(UsageError, match=rf"these are not the weights of a {asked.kind} head with 2 output"):
            head_module(asked, given, 1.0, 2, 1, False)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="feature_rms must be above 0"):
            head_module(spec, tensors, scale, 2, 1, False)
