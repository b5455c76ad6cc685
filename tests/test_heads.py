"""Heads as values: what each kind takes, what it refuses and in which words, and grids of them."""

import re
from typing import Any

import pytest

from featcache.specs import KINDS, PATHS, SOLVED, TRAINED, HeadSpec, grid, varied

SET = {  # a value of each field that is nobody's default
    "hidden_sizes": (7,), "activation": "gelu", "norm": "batch", "dropout": 0.125, "output": "sigmoid",
    "optimizer": "sgd", "lr": 0.7, "weight_decay": 0.6, "momentum": 0.4, "label_smoothing": 0.05, "epochs": 3,
    "batch_size": 5, "schedule": "plateau", "lr_patience": 4, "patience": 2, "class_weight": "balanced",
    "scale": "standard", "seed": 9, "augmentations": True, "C": 0.3, "alpha": 0.2, "n_neighbors": 8,
}  # fmt: skip


def applies(kind: str, name: str) -> bool:
    return name in HeadSpec.of(kind).used()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_defaults(kind: str) -> None:
    spec = HeadSpec.of(kind)
    said = {name: getattr(spec, name) for name in ("hidden_sizes", "dropout", "norm", "lr", "weight_decay", "schedule")}
    assert {name: value for name, value in said.items() if applies(kind, name)} == {
        "linear": {"lr": 0.003, "weight_decay": 0.03, "schedule": "cosine"},
        "mlp": {
            "hidden_sizes": (256,), "dropout": 0.5, "norm": "batch", "lr": 0.001, "weight_decay": 0.0,
            "schedule": "cosine",
        },
        "flatten-mlp": {
            "hidden_sizes": (256,), "dropout": 0.25, "norm": "none", "lr": 0.0001, "weight_decay": 0.0,
            "schedule": "constant",
        },
        "logreg": {},
        "ridge": {},
        "knn": {},
    }[kind]  # fmt: skip
    assert spec.is_trained == (kind in TRAINED) == (kind not in SOLVED)


def test_without_a_word_a_head_is_a_linear_probe() -> None:
    assert HeadSpec() == HeadSpec.of("linear") == HeadSpec("linear")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SET)
def test_a_field_is_taken_by_the_kinds_it_applies_to_and_refused_by_the_others(kind: str, name: str) -> None:
    whole = {**HeadSpec.of(kind).used(), name: SET[name]}
    if applies(kind, name):
        assert getattr(HeadSpec.of(kind, **{name: SET[name]}), name) == SET[name]
        assert getattr(HeadSpec(**whole), name) == SET[name]
        return
    message = re.escape(f"`{name}` does not apply to {kind} heads")
    with pytest.raises(ValueError, match=message):
        HeadSpec.of(kind, **{name: SET[name]})
    with pytest.raises(ValueError, match=message):
        HeadSpec(**whole)


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("linear", "lr", -1.0, "`lr` must be > 0 and at most 1000, got -1.0"),
        ("linear", "lr", 0.0, "`lr` must be > 0 and at most 1000, got 0.0"),
        ("linear", "lr", float("nan"), "`lr` must be > 0 and at most 1000, got nan"),
        ("linear", "lr", 1e38, "`lr` must be > 0 and at most 1000, got 1e+38"),
        ("linear", "weight_decay", -0.1, "`weight_decay` must be from 0 to 1000, got -0.1"),
        ("linear", "weight_decay", float("inf"), "`weight_decay` must be from 0 to 1000, got inf"),
        ("linear", "momentum", 1.0, "`momentum` must be at least 0 and below 1, got 1.0"),
        ("linear", "label_smoothing", 1.0, "`label_smoothing` must be at least 0 and below 1, got 1.0"),
        ("linear", "epochs", 0, "`epochs` must be from 1 to 100000, got 0"),
        ("linear", "batch_size", 0, "`batch_size` must be from 1 to 1048576, got 0"),
        ("linear", "lr_patience", 0, "`lr_patience` must be from 1 to 100000, got 0"),
        ("linear", "patience", -1, "`patience` must be from 0 to 100000, got -1"),
        ("linear", "seed", -1, "`seed` must be from 0 to 2^32 - 1, got -1"),
        ("linear", "seed", 2**32, "`seed` must be from 0 to 2^32 - 1, got 4294967296"),
        ("linear", "optimizer", "lion", "`optimizer` must be one of adam, adamw, sgd, got 'lion'"),
        ("linear", "schedule", "step", "`schedule` must be one of constant, plateau, cosine, got 'step'"),
        ("linear", "class_weight", "heavy", "`class_weight` must be one of none, balanced, got 'heavy'"),
        ("linear", "scale", "big", "`scale` must be one of rms, none, standard, got 'big'"),
        ("mlp", "dropout", 1.0, "`dropout` must be at least 0 and below 1, got 1.0"),
        ("mlp", "activation", "swish", "`activation` must be one of relu, sigmoid, tanh, gelu, got 'swish'"),
        ("mlp", "norm", "layer", "`norm` must be one of none, batch, got 'layer'"),
        ("mlp", "hidden_sizes", (256, 0), "`hidden_sizes` must be from 1 to 65536, got 0"),
        ("mlp", "hidden_sizes", (65537,), "`hidden_sizes` must be from 1 to 65536, got 65537"),
        ("mlp", "hidden_sizes", (), "mlp needs `hidden_sizes`, as in hidden_sizes=(256,)"),
        ("flatten-mlp", "output", "tanh", "`output` must be one of softmax, sigmoid, got 'tanh'"),
        ("logreg", "C", 0.0, "`C` must be > 0 and at most 1e+12, got 0.0"),
        ("ridge", "alpha", 1e13, "`alpha` must be > 0 and at most 1e+12, got 10000000000000.0"),
        ("ridge", "alpha", -1.0, "`alpha` must be > 0 and at most 1e+12, got -1.0"),
        ("knn", "n_neighbors", 0, "`n_neighbors` must be from 1 to 1048576, got 0"),
    ],
)
def test_an_impossible_head_is_refused_at_birth(kind: str, field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}\.$"):
        HeadSpec.of(kind, **{field: value})


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    message = re.escape("`kind` must be one of linear, mlp, flatten-mlp, logreg, ridge, knn, got 'deep'")
    for make in (HeadSpec, HeadSpec.of, lambda kind: grid([kind], {})):
        with pytest.raises(ValueError, match=message):
            make("deep")


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_prints_as_itself_and_is_made_again_of_the_fields_it_uses(kind: str) -> None:
    spec = HeadSpec.of(kind, **{name: value for name, value in SET.items() if applies(kind, name)})
    assert next(iter(spec.used())) == "kind"
    again = [HeadSpec.of(**spec.used()), eval(repr(spec), {"HeadSpec": HeadSpec})]
    assert {spec, *again} == {spec}
    assert spec != HeadSpec.of(kind)


def test_rows_are_kept_aside_where_something_is_watched() -> None:
    assert not HeadSpec().needs_watch
    assert HeadSpec(patience=1).needs_watch
    assert HeadSpec(schedule="plateau").needs_watch


# --- grids ------------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_the_last_option_changing_fastest() -> None:
    specs = grid(["linear"], {"lr": [0.1, 0.01], "epochs": [5, 6, 7]})
    assert [(s.lr, s.epochs) for s in specs] == [(0.1, 5), (0.1, 6), (0.1, 7), (0.01, 5), (0.01, 6), (0.01, 7)]
    assert varied(specs) == ["lr", "epochs"]


def test_a_grid_gives_each_kind_the_options_that_apply_to_it() -> None:
    specs = grid(["linear", "mlp", "ridge"], {"lr": [0.1, 0.01], "dropout": [0.0, 0.3], "alpha": [2.0]})
    assert specs[:2] == [HeadSpec(lr=0.1), HeadSpec(lr=0.01)]
    assert [(s.lr, s.dropout) for s in specs[2:6]] == [(0.1, 0.0), (0.1, 0.3), (0.01, 0.0), (0.01, 0.3)]
    assert specs[6:] == [HeadSpec.of("ridge", alpha=2.0)]


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (["linear"], {"dropout": [0.1]}, "`dropout` does not apply to linear heads"),
        (["ridge", "knn"], {"lr": [0.1]}, "`lr` does not apply to ridge or knn heads"),
        (["mlp"], {"output": ["sigmoid"]}, "`output` does not apply to mlp heads"),
        (["linear"], {"lr": [0.1, -0.1]}, "`lr` must be > 0"),
    ],
)
def test_a_grid_refuses_an_option_that_nothing_takes(
    kinds: list[str], options: dict[str, list[Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grid(kinds, options)


@pytest.mark.parametrize("kind", SOLVED)
def test_a_grid_of_a_solved_kind_is_its_path_unless_values_are_given(kind: str) -> None:
    ((name, path),) = PATHS[kind].items()
    assert [getattr(spec, name) for spec in grid([kind], {})] == list(path)
    assert [getattr(spec, name) for spec in grid([kind], {name: [3]})] == [3]


def test_a_grid_holds_each_head_once() -> None:
    assert grid(["linear", "linear"], {"lr": [0.1, 0.1]}) == [HeadSpec(lr=0.1)]
    assert varied([HeadSpec()]) == []


def test_heads_of_different_kinds_vary_in_what_they_share() -> None:
    assert varied([HeadSpec.of("ridge"), HeadSpec.of("knn")]) == ["kind"]
    assert varied([HeadSpec.of("ridge"), HeadSpec.of("logreg", scale="none")]) == ["kind", "scale"]
