"""Loads a frozen network by name, with its weights, its transform and the digest of its weights.

A name is `arch.tag`, as in timm; a bare `arch` is resolved to timm's default tag, and the resolved name is printed and
stored, because the default may change between releases. Pretrained weights that cannot be loaded are an error: random
weights are used only with `random:SEED`.

    graph        divides a network into a frozen part and a trained part
    networks     two small networks for training from scratch
    blocks       blocks and stages of a network
    checkpoints  reads checkpoints as training scripts write them
    matching     matches the tensors of a checkpoint with a network
    weights      weights from the hub, a file or a seed
    registry     names of networks, and `load`
"""

from featcache.backbones.registry import SUGGESTED, Backbone, check_precision, listing, load, resolve_name, sketch

__all__ = ["SUGGESTED", "Backbone", "check_precision", "listing", "load", "resolve_name", "sketch"]
