"""Heads: classifiers on cached vectors, trained or solved many at a time.

A field that does not apply to a kind of head cannot be set for it. A sweep is a list of specs, made by `grid`.

    mlp        linear heads and MLPs: k of them stacked in one tensor per parameter, or one as a torch module
    features   the vectors of a store that a head is trained on
    optim      the loss, optimizers, schedules and early stopping
    jobs       the heads to be trained, and which of them are trained together
    training   the training loop of many heads at once
    inference  a trained head's logits, in numpy
    solvers    logistic regression, ridge and nearest neighbours
"""
