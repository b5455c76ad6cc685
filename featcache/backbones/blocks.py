"""What the blocks and stages of a network are, by the names of their parameters.

They are those of timm's own matchers, by which it scales learning rates, and of a few lines of ours for families that
have none. Knows nothing of what is done with a block.
"""

import math
from typing import Any, cast

from timm.models import VGG, InceptionResnetV2, Xception, group_parameters
from torch import nn

from featcache.backbones import networks
from featcache.errors import UsageError

# Stages of families whose matcher knows none: of Inception-ResNet-v2 by resolution (Szegedy et al. 2017, figure 3), of
# Xception its three flows (Chollet 2017, figure 5). In the form of timm's matchers.
_STAGES: dict[type[nn.Module], dict[str, str]] = {
    InceptionResnetV2: {
        "stem": r"^conv2d_[1-4]",
        "35": r"^mixed_5b|^repeat\.",
        "17": r"^mixed_6a|^repeat_1\.",
        "8": r"^mixed_7a|^repeat_2\.|^block8|^conv2d_7b",
    },
    Xception: {"entry": r"^conv[12]|^bn[12]|^block[123]\.", "middle": r"^block(?:[4-9]|10|11)\.", "exit": r"."},
}
_WITH_THE_GROUP_BEFORE = 99999.0  # timm's MATCH_PREV_GROUP


def groups(module: nn.Module, coarse: bool) -> list[list[str]]:
    """Names of the parameters of each block, first to last; with `coarse` of each stage. Stem and head belong to none:
    the stem is a group of its own, and what follows the last block (a convolution, a norm) is part of the last group.

    They are those of timm's own matchers, by which it scales learning rates, with three exceptions: in a VGG or a
    network of ours a block is a convolution with its norm, and a stage is what lies between two poolings; Xception and
    Inception-ResNet-v2 have stages. In a transformer without stages, a stage is a block.

    Args:
        module: the module of a `Backbone`.

    Raises:
        UsageError: timm does not say what a block of this network is.
    """
    if isinstance(module, VGG | networks.ConvNet):
        return _convolutions(module.features, coarse)
    parameter_names = group_parameters(module, _with_rest(_matcher(module, coarse)))
    return [names for names in parameter_names.values() if names]


def _matcher(module: nn.Module, coarse: bool) -> Any:
    if coarse and type(module) in _STAGES:
        return _STAGES[type(module)]
    try:
        return cast(Any, module).group_matcher(coarse=coarse)
    except (AttributeError, AssertionError, NotImplementedError) as error:  # it has none; or not this one
        kind = "stages" if coarse else "blocks"
        raise UsageError(
            f"timm does not say what the {kind} of {type(module).__name__} are: name parameters by a pattern, or all."
        ) from error


def _with_rest(matcher: Any) -> Any:
    """A matcher by which what it knows nothing of (norms and layers after the last block) goes with the last group."""
    if not callable(matcher):
        return {**matcher, "rest": [(r".", (_WITH_THE_GROUP_BEFORE,))]}

    def with_rest(name: str) -> Any:
        group = matcher(name)
        return (math.inf, _WITH_THE_GROUP_BEFORE) if group == math.inf else group

    return with_rest


def _convolutions(features: nn.Module, coarse: bool) -> list[list[str]]:
    """Those of a plain row of layers."""
    convolutions: list[list[str]] = [[]]
    for i, layer in features.named_children():
        if isinstance(layer, nn.MaxPool2d if coarse else nn.Conv2d):
            convolutions.append([])
        convolutions[-1] += [f"features.{i}.{name}" for name, _ in layer.named_parameters()]
    return [names for names in convolutions if names]
