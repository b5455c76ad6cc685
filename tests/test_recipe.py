"""Recipes as plain values: refused at birth where they cannot be, and as the command line gives them."""

import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import pytest

from featcache.cli.groups import RECIPE
from featcache.errors import UsageError
from featcache.specs import PRESETS, AugmentationSpec, Recipe, Stage, recipe

NONE: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Stage("", 1), "`unfreeze` must name what learns"),
        (lambda: Stage("all", 0), "`epochs` must be from 1 to 100000, got 0"),
        (lambda: Recipe(stages=()), "a recipe needs a stage"),
        (lambda: Recipe(optimizer="lion"), "`optimizer` must be one of adam, adamw, sgd, got 'lion'"),
        (lambda: Recipe(schedule="step"), "`schedule` must be one of plateau, constant, cosine, got 'step'"),
        (lambda: Recipe(precision="auto"), "`precision` must be one of float32, tf32, float16, bfloat16, got 'auto'"),
        (lambda: Recipe(select="recall"), "`select` must be one of auroc, .*, got 'recall'"),
        (lambda: Recipe(lr=0.0), "`lr` must be > 0 and at most 1000, got 0.0"),
        (lambda: Recipe(lr=-1.0), "`lr` must be > 0 and at most 1000, got -1.0"),
        (lambda: Recipe(lr=float("nan")), "`lr` must be .*, got nan"),
        (lambda: Recipe(backbone_lr=0.0), "`backbone_lr` must be > 0 and at most 1000, got 0.0"),
        (lambda: Recipe(backbone_lr=float("inf")), "`backbone_lr` must be .*, got inf"),
        (lambda: Recipe(weight_decay=-0.1), "`weight_decay` must be from 0 to 1000, got -0.1"),
        (lambda: Recipe(momentum=1.0), "`momentum` must be at least 0 and below 1, got 1.0"),
        (lambda: Recipe(dropout=1.0), "`dropout` must be at least 0 and below 1, got 1.0"),
        (lambda: Recipe(label_smoothing=-0.1), "`label_smoothing` must be at least 0 and below 1, got -0.1"),
        (lambda: Recipe(lr_patience=0), "`lr_patience` must be from 1 to 100000, got 0"),
        (lambda: Recipe(patience=-1), "`patience` must be from 0 to 100000, got -1"),
        (lambda: Recipe(batch_size=0), "`batch_size` must be from 1 to 65536"),
        (lambda: Recipe(grad_accumulation=33), "`grad_accumulation` must be at most `batch_size`, got 33 of 32"),
        (lambda: Recipe(seed=2**32), r"`seed` must be from 0 to 2\^32 - 1"),
        (lambda: AugmentationSpec(rotation=181.0), "`rotation` must be from 0 to 180, got 181.0"),
        (lambda: AugmentationSpec(color_jitter=1.0), "`color_jitter` must be from 0 to 0.9, got 1.0"),
        (lambda: AugmentationSpec(hflip=float("nan")), "`hflip` must be from 0 to 1, got nan"),
        (lambda: AugmentationSpec(scale=0.0), "`scale` must be from 0.01 to 1, got 0.0"),
        (lambda: recipe("best"), "`preset` must be one of cnn-mlp, .*, got 'best'"),
    ],
)
def test_an_impossible_recipe_is_refused_at_birth(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made()


def test_the_backbone_goes_at_a_tenth_of_the_rate_unless_it_is_given() -> None:
    assert Recipe(lr=0.02).rates == (0.02, 0.002)
    assert Recipe(lr=0.02, backbone_lr=0.5).rates == (0.02, 0.5)


def test_presets_are_as_they_were_published() -> None:
    """Rates, epochs and batches of the projects they are named after."""
    mlp, pretrained, scratch = (PRESETS[name] for name in ("cnn-mlp", "pneumonia-pretrained", "pneumonia-scratch"))
    assert (mlp.rates, mlp.epochs, mlp.class_weight, mlp.schedule) == ((0.001, 0.001), 25, "balanced", "plateau")
    assert (pretrained.rates, pretrained.epochs, pretrained.batch_size) == ((1e-4, 1e-4), 5, 32)
    assert (scratch.rates, scratch.epochs, scratch.weight_decay) == ((0.001, 0.001), 5, 1e-4)
    for preset in PRESETS.values():
        assert (preset.optimizer, preset.augment) == ("adam", AugmentationSpec())


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_what_is_given_takes_the_place_of_what_is_held(preset: str | None) -> None:
    held = PRESETS[preset] if preset else Recipe()
    assert recipe(preset) == held
    assert recipe(preset, lr=0.5, seed=3) == replace(held, lr=0.5, seed=3)
    assert recipe(preset, (Stage("all", 2),)).stages == (Stage("all", 2),)


# --- from the command line --------------------------------------------------------------------------------------------


def of(*unfreeze: str, epochs: tuple[int, ...] = (), **options: Any) -> Recipe:
    """The recipe of these options of fine-tune."""
    arguments = {parameter.name: parameter.default for parameter in RECIPE.parameters}
    recipe: Recipe = RECIPE.value({**arguments, **options, "unfreeze": list(unfreeze), "epochs": list(epochs)})
    return recipe


def test_options_that_are_not_given_are_the_defaults() -> None:
    assert of(lr=None, seed=None) == Recipe()
    assert of(preset="cnn-mlp") == PRESETS["cnn-mlp"]


def test_stages_and_epochs_go_in_pairs() -> None:
    assert of("all", "last-block", epochs=(1, 2)).stages == (Stage("all", 1), Stage("last-block", 2))
    assert of(epochs=(3,)).stages == (Stage("last-block", 3),)
    assert of("all", preset="cnn-mlp").stages == (Stage("all", 25),)
    assert of("all", "2").stages == (Stage("all", 10), Stage("2", 10))
    for unfreeze, epochs, message in (
        (("all", "2"), (1,), "`unfreeze`=2 has no `epochs`"),
        (("all",), (1, 2), "`epochs`=2: 2 of them for 1 `unfreeze`"),
        ((), (1, 2), "`epochs`=2: 2 of them for 0 `unfreeze`"),
        (("all",), (0,), "`epochs` must be from 1 to 100000, got 0"),
        (("",), (), "`unfreeze` must name what learns"),
    ):
        with pytest.raises(UsageError, match=message):
            of(*unfreeze, epochs=epochs)


@pytest.mark.parametrize("preset", [None, "pneumonia-scratch"])
def test_no_augment_shows_images_as_they_are(preset: str | None) -> None:
    assert of(preset=preset, augment=False).augment is None
    assert of(preset=preset, hflip=0.0, scale=0.7).augment == AugmentationSpec(hflip=0.0, scale=0.7)
    with pytest.raises(UsageError, match="--no-augment uses the images as they are"):
        of(preset=preset, augment=False, rotation=3.0)


def test_a_wrong_value_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^`lr` must be > 0 and at most 1000, got 0\.0\.$"):
        of(lr=0.0)
    with pytest.raises(UsageError, match=r"^`scale` must be from 0\.01 to 1, got 2\.0\.$"):
        of(scale=2.0)


def test_recipes_need_no_torch() -> None:
    code = "import sys, featcache.specs; assert not {'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_recipe_is_its_fields() -> None:
    made = Recipe(stages=(Stage("all", 3),), augment=None)
    assert Recipe(**{**asdict(made), "stages": tuple(Stage(**stage) for stage in asdict(made)["stages"])}) == made
