"""`evaluate`: a Run on a labelled set from elsewhere, with all the numbers that `train_head` gives of its test rows.

The story: the labels of the set become classes of the Run, its images (or a store of their vectors) go through the
path of `predict`, what the Run has learnt from is left out, and the code that scores a test subset scores the rest.
Head,
temperature, positive class and operating point are the Run's: nothing is chosen on the set.

    vocabulary  which class of the Run a text stands for
    labels      the labels of the set as classes of the Run
    sets        the images of the set, with the Run's logits
    selection   which of them take part
    subgroups   the numbers for each value of a column
    comparison  the numbers beside those of the Run's own rows
    notes       what a reader of the numbers has to know
    evaluate    `evaluate`, the verb
"""
