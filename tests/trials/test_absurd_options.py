"""A mean of 1e30 gave 24 identical vectors, a billion epochs started, and the seed of views could be negative. Every
number of every spec has both bounds, checked when it is made, and the message names the field."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.finetune.distributed import Session
from featcache.specs import (
    KINDS,
    AugmentationSpec,
    AugmentedCopies,
    BackboneSpec,
    DecodeSpec,
    FusionSpec,
    HeadSpec,
    Recipe,
    SelectionSpec,
    SplitSpec,
    Stage,
    TargetSpec,
    TransformSpec,
)
from tests.conftest import draw
from tests.test_cli import RANDOM, featcache

GRAY = ((0.5,) * 3, (0.2,) * 3)
SPECS: list[Any] = [
    HeadSpec(),
    *(HeadSpec.of(kind) for kind in KINDS),
    Recipe(),
    Stage(),
    AugmentationSpec(),
    AugmentedCopies(2),
    DecodeSpec(),
    TransformSpec((32, 32), 0.9, "bilinear", *GRAY),
    BackboneSpec("resnet18"),
    SplitSpec(),
    TargetSpec(),
    SelectionSpec(),
    FusionSpec("study"),
    Session(),
]
NAN, INF = float("nan"), float("inf")
NEVER = [NAN, INF, -INF, 1e300, -1e300, 10**30, -(10**30), -1, -1e-9, True, "7"]


def numbers(kind: Any) -> set[type]:
    """The types of numbers in an annotation."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return set().union(*(numbers(part) for part in typing.get_args(kind)))
    return {kind} & {int, float}


def series(kind: Any) -> bool:
    """Whether a field is of several numbers."""
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return any(typing.get_origin(part) is tuple and set(typing.get_args(part)) & {int, float} for part in parts)


def fields() -> list[tuple[Any, str]]:
    return [
        (spec, name)
        for spec in SPECS
        for name, kind in typing.get_type_hints(type(spec)).items()
        if numbers(kind) and hasattr(spec, name) and name in {f.name for f in dataclasses.fields(spec)}
    ]


def series_fields() -> list[tuple[Any, str]]:
    hints = [(spec, name, kind) for spec in SPECS for name, kind in typing.get_type_hints(type(spec)).items()]
    return [(spec, name) for spec, name, kind in hints if series(kind)]


def words(case: Any) -> str:
    return case if isinstance(case, str) else f"{type(case).__name__}.{getattr(case, 'kind', '')}"


@pytest.mark.parametrize(("spec", "name"), fields(), ids=words)
def test_no_number_of_a_spec_is_absurd(spec: Any, name: str) -> None:
    for value in NEVER:
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(spec, **{name: value})


@pytest.mark.parametrize(("spec", "name"), series_fields(), ids=words)
def test_no_number_of_a_series_is_absurd(spec: Any, name: str) -> None:
    n = 2 if name in ("input_size", "float_range") else 3
    for value in (NAN, INF, 1e300, 10**40, "7"):
        with pytest.raises(ValueError, match=name):
            dataclasses.replace(spec, **{name: (value,) * n})


def test_the_specs_have_the_fields_that_are_tried() -> None:
    assert len(fields()) > 60
    assert {name for _, name in series_fields()} == {"hidden_sizes", "input_size", "mean", "std", "float_range"}


@settings(deadline=None, max_examples=60)
@given(st.integers() | st.floats() | st.booleans() | st.text(max_size=2), st.sampled_from(fields()))
def test_any_value_makes_a_spec_or_a_sentence_that_names_the_field(value: Any, field: tuple[Any, str]) -> None:
    spec, name = field
    made, sentence = None, ""
    try:
        made = dataclasses.replace(spec, **{name: value})
    except ValueError as error:
        sentence = str(error)
    if made is None:
        assert name in sentence
        assert "\n" not in sentence
    else:
        assert abs(getattr(made, name)) <= 1e12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: HeadSpec.of("mlp", hidden_sizes=(65_536, 65_536)),
            "`hidden_sizes` must be at most 64 layers, with at most",
        ),
        (lambda: HeadSpec.of("mlp", hidden_sizes=(8,) * 100), "`hidden_sizes` must be at most 64 layers"),
        (lambda: Recipe(stages=(Stage(epochs=90_000), Stage(epochs=90_000))), "`epochs` must be .*of all stages"),
        (
            lambda: TransformSpec((4096, 4096), 0.01, "bilinear", *GRAY),
            "`input_size` / `crop_pct` must be at most 1638",
        ),
        (lambda: BackboneSpec("resnet18", std=(1e-9,)), r"`std` must be from 0.0001 to 100 \(pixels are from 0 to 1\)"),
        (lambda: BackboneSpec("resnet18", input_size=10**9), "`input_size` must be from 1 to 4096"),
        (lambda: HeadSpec(epochs=1.5), "`epochs` must be a whole number from 1 to 100000, got 1.5"),  # type: ignore[arg-type]
    ],
)
def test_what_is_absurd_only_together_is_refused_too(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mean", "1e30"), "--mean must be from -10 to 10"),
        (("--std", "1e-30"), "--std must be from 0.0001 to 100"),
        (("--augmentation-seed", "-1"), "--augmentation-seed must be from 0 to 2^32 - 1"),
        (("--augmentations", "-3"), "--augmentations must be from 1 to 32"),
        (("--crop-pct", "nan"), "--crop-pct must be from 0.01 to 1"),
        (("--max-pixels", "1000000000000"), "--max-pixels must be from 1 to"),
        (("--timeout", "1e30"), "--timeout"),
        (("--part-rows", "-1"), "--part-rows"),
    ],
)
def test_the_command_line_refuses_before_anything_is_read(
    options: tuple[str, str], message: str, tmp_path: Path
) -> None:
    draw(tmp_path / "set" / "a.png", 1)
    done = featcache("embed", "set", "-o", "s.h5", *RANDOM, *options, cwd=tmp_path)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "s.h5").exists()
