"""The pass: every image once through the frozen backbone, into a store.

Worker processes read, hash and decode ahead while the network runs; finished rows go to disk in parts, so that a
stopped pass loses at most one of them; at the end the parts are packed into the store in one step. Memory holds the
images in flight (workers and read-ahead) and two parts (one fills while one is written), whatever the number of images.
A pass that finds every vector there imports no torch and ends within a second or two.

    plan       the images of a pass as they are when it is planned
    forward    batches through a network, side by side, compiled or not
    kernels    whether two machines compute the same vectors in a low precision
    network    a request's answer, recalled or learnt by loading
    depth      how many bits deep gray has, by the whole set
    precision  how precise the arithmetic is, by what it costs
    filling    the rows of a part while they fill
    output     one store of a pass
    run        `embed`, the verb: the pass from first image to published store
    estimate   what a pass would take
"""

from featcache.embedding.run import Progress, default_part_rows, embed, embed_all, store_paths

__all__ = ["Progress", "default_part_rows", "embed", "embed_all", "store_paths"]
