"""A name becomes a frozen network, its transform, its vectors and the digest of its weights.

A name is `arch.tag` as timm spells it; a bare `arch` is resolved to timm's default tag, and the resolved name is what
is printed and kept, because a default may change from one release to the next. Pretrained weights that cannot be had
are an error: a network with random weights is made only when `random:SEED` asks for it.

    graph        a network cut in two: a frozen trunk, and a tail in which something learns
    networks     two small networks of our own
    blocks       what the blocks and stages of a network are
    checkpoints  a file of weights as training scripts leave it
    matching     which of its tensors are those of a network
    weights      a name to a network with its weights: from the hub, a file or a seed
    registry     names, listing, loading: `load`
"""

from featcache.backbones.registry import SUGGESTED, Backbone, check_precision, listing, load, resolve_name, sketch

__all__ = ["SUGGESTED", "Backbone", "check_precision", "listing", "load", "resolve_name", "sketch"]
