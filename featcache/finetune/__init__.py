"""Fine-tuning: trains a part of the backbone together with the head of a Run; and training a network from scratch.

The network, weights, preprocessing, split and classes are those of the Run. Metrics before and after the training are
computed on the same rows: the validation rows, which chose the epoch, and the test rows, which chose nothing.

    distributed       the processes that train one network, with device and callbacks
    unfreeze          the trained part of a network, its optimizer and its loss
    inputs            the inputs of that part: images through the frozen part, or a store of its outputs
    start             the network, head, rows and split that training begins with
    checkpoints       the state between two epochs, on disk
    loop              the training loop: stages, epochs, batches, the best weights
    results           the metrics before and after, and the Run
    cross_validation  one training on a hold-out; or one for each fold and a last one on all rows
    fine_tune         `fine_tune` and `train`
"""
