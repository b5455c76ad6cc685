"""`train_head`: from a store to a Run. Heads are trained on vectors that fit in memory, in seconds.

The story: labels become a task, rows are divided, specs are ranked on held rows, the winner is trained on what it may
learn from, an operating point is chosen on predictions of rows that their heads had not seen, and only then are the
rows of `test` read. What chooses is never what is reported: numbers that chose something are marked so.
Letters: n rows, d features, c classes.

    selection   specs are tried on folds and ranked
    baselines   what a score is worth
    results     what is said of a trained head
    train_head  `train_head`, the verb
"""
