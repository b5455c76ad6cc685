"""Phase 2: back to the pixels, for exactly as much of the network as helps; and training from scratch, the same loop
with everything unfrozen.

The story: a Run says which network, weights, transform, split, classes and head; the images, or a store that holds what
enters the last stage, have to be the ones it was made of. What it bought is said on the same rows: those of validation,
which chose the epoch, and those of test, which chose nothing. The start itself may win.
Letters: n rows, c classes.

    distributed       the processes that train one network together
    callbacks         where a training runs, and how it is followed
    cut               which part of a backbone learns, by a word of a person
    pixels            images decoded once, augmented in every epoch
    start             what a training starts from
    boundaries        what enters the part that learns, from images or a store
    inputs            the images of a Run, of a folder, or a store of them, checked
    learning          what learns: the upper part of a network, its optimizer, loss and pace
    checkpoints       where a training is between two epochs, on disk
    loop              the loop: stages, epochs, batches, the best weights
    results           what is said of it, beside what it started from
    cross_validation  the trainings that make a Run: one, or one for each fold and a last
    fine_tune         `fine_tune` and `train`, the verbs
"""
