"""Fine-tuning: trains a part of the backbone together with the head of a Run; and training a network from scratch.

fine_tune         `fine_tune` and `train`
callbacks         device settings, and callbacks for progress and notes
start             the network, head, rows and split that training begins with
unfreeze          the trained part of a network, its optimizer and its loss
inputs            the inputs of that part: images through the frozen part, or a store of its outputs
loop              the training loop: stages, epochs, batches, the best weights
distributed       several processes that train one network
checkpoints       the state between two epochs, on disk
cross_validation  one training on a hold-out; or one for each fold and a last one on all rows
results           the metrics before and after, and the Run
"""
