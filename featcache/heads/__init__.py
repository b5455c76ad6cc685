"""What a head is and how it is trained: the specs, as plain values. Knows neither torch nor features.

A field that means nothing for a kind cannot be set for it: a spec never promises a dropout that nobody applies. A sweep
is a list of specs, made by `grid` from options with one or more values.

    spec       HeadSpec, and grids of them
    stacks     k heads in one tensor per parameter
    modules    a head as a torch module
    features   what of a store a head works on
    objective  what is to be learnt, and how far heads are from it
    optim      optimizers, schedules, early stopping
    mlp        first layers of millions of weights, in pieces
    jobs       what heads are to be made, and which go together
    training   many heads are trained at once
    inference  what a finished head makes of features
    solvers    heads that are solved: logistic regression, ridge, neighbours
"""

from featcache.heads.spec import KINDS, PATHS, SOLVED, TRAINED, HeadSpec, busy, grid, varied

__all__ = ["KINDS", "PATHS", "SOLVED", "TRAINED", "HeadSpec", "busy", "grid", "varied"]
