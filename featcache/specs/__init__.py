"""Every spec: frozen dataclasses that check their values when they are created, and print as themselves.

Importing them costs milliseconds: none needs torch, timm, numpy or Pillow until it is applied to pixels.

    bounds        checks of numbers and choices
    augmentation  AugmentationSpec, AugmentedCopies
    images        DecodeSpec, TransformSpec
    backbones     BackboneSpec, Request
    heads         HeadSpec, and grids of them
    training      Recipe, Stage, SelectionSpec
    data          ColumnSpec, Where, TargetSpec, SplitSpec, FusionSpec
"""

from featcache.specs.augmentation import PARAMETERS, AugmentationSpec, AugmentedCopies
from featcache.specs.backbones import (
    BOUNDARY,
    GRID,
    POOLED,
    PRECISIONS,
    STORED_DTYPES,
    TAPS,
    BackboneSpec,
    Request,
    check_weights,
)
from featcache.specs.data import MAX_FOLDS, MAX_REPEATS, UNCERTAIN, ColumnSpec, FusionSpec, SplitSpec, TargetSpec, Where
from featcache.specs.heads import KINDS, NORM_EPSILON, PATHS, SOLVED, TRAINED, HeadSpec, busy, grid, varied
from featcache.specs.images import CROP_MODES, MARGIN, MAX_PIXELS, DecodeSpec, TransformSpec
from featcache.specs.training import PRESETS, SCRATCH, SELECT, Recipe, SelectionSpec, Stage, recipe

__all__ = [
    "BOUNDARY",
    "CROP_MODES",
    "GRID",
    "KINDS",
    "MARGIN",
    "MAX_FOLDS",
    "MAX_PIXELS",
    "MAX_REPEATS",
    "NORM_EPSILON",
    "PARAMETERS",
    "PATHS",
    "POOLED",
    "PRECISIONS",
    "PRESETS",
    "SCRATCH",
    "SELECT",
    "SOLVED",
    "STORED_DTYPES",
    "TAPS",
    "TRAINED",
    "UNCERTAIN",
    "AugmentationSpec",
    "AugmentedCopies",
    "BackboneSpec",
    "ColumnSpec",
    "DecodeSpec",
    "FusionSpec",
    "HeadSpec",
    "Recipe",
    "Request",
    "SelectionSpec",
    "SplitSpec",
    "Stage",
    "TargetSpec",
    "TransformSpec",
    "Where",
    "busy",
    "check_weights",
    "grid",
    "recipe",
    "varied",
]
