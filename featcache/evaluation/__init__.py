"""`evaluate`: all metrics of a Run on an external labelled set.

The labels of the set are mapped to classes of the Run, its images (or a store of their vectors) are predicted as in
`predict`, images that the Run was trained on are left out, and the rest is scored by the code that scores test rows.
Head, temperature, positive class and operating point are those of the Run: nothing is chosen on the set.

    vocabulary  maps texts to classes of the Run
    labels      the labels of the set as classes of the Run
    sets        the images of the set, with the Run's logits
    selection   rows that are scored
    subgroups   metrics per value of a column
    comparison  comparison with the Run's own rows
    notes       notes on the metrics
    evaluate    the function `evaluate`
"""
