"""The pass: every image once through the frozen backbone, into a store.

Worker processes read, hash and decode images while the network runs. Finished rows are written to part files, so that a
stopped or killed pass continues and loses at most one part; at the end the parts are packed into the store in one step.
Memory holds the images in flight and two parts, whatever the number of images. A pass that has nothing to compute does
not import torch.

    plan       the images of a pass, and what an earlier pass has finished
    forward    the forward pass in batches, compiled or not
    kernels    compares the kernels of two processors in low precision
    network    the identity of a network, from a cache or by loading it
    depth      the 16-bit rule: one bit depth for the whole set
    precision  chooses the precision of the arithmetic
    filling    collects the rows of a part
    output     one output store of a pass
    run        `embed`: the pass from the first image to the published store
    estimate   estimates time, disk and memory of a pass
"""

from featcache.embedding.run import Progress, default_part_rows, embed, embed_all, store_paths

__all__ = ["Progress", "default_part_rows", "embed", "embed_all", "store_paths"]
