"""`train_head`: trains heads on the vectors of a store, and writes a Run.

Labels become a task, rows are split, specs are ranked on validation rows, the best is trained on the training rows, the
operating point is chosen on out-of-fold predictions, and only then are the test rows read. Metrics of rows that chose
something are marked.
Letters: n rows, d features, c classes.

    selection   trains specs on folds and ranks them
    baselines   baselines to compare a score with
    results     metrics, tables and notes of a trained head
    train_head  the function `train_head`
"""
