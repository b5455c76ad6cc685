"""What the vectors of a store give away: copies, near copies, confounds, outliers, labels that are probably wrong.

Everything is looked for at once, after a pass and before a score is believed. Nothing is changed, and nothing is
decided: a person looks at what heads the tables. Memory grows with n × d, time with n × d but for the sieve for near
copies, which compares every row with every other: 5,840 images of 1,280 features take half a minute on two cores.
Letters: n rows, d features, c classes.

    suspects   rows that deserve a look: outliers, labels that are probably wrong
    confounds  what vectors tell that they should not know
    shortcuts  what tells the label without a look at an image
    results    what was found, as tables
    audit      `audit`, the verb
"""
