"""A `Run`: the folder that keeps what came of a training. It is written and replaced as a whole.

It names the rows that took part, with their labels and groups, so that phase 2 divides the same images in the same way
without the store. Letters: n rows, d features, c classes.

    run         Run: the folder, open for reading; how it is written
    backbone    of which network and preprocessing the vectors are
    subsets     what a head predicted for the rows of each subset
    evaluation  the folder that keeps how well a Run did on a set from elsewhere
"""

from featcache.runs.run import RUN_FILES, WEIGHTS, Images, Run, Table, check_free, place, rounded, save

__all__ = ["RUN_FILES", "WEIGHTS", "Images", "Run", "Table", "check_free", "place", "rounded", "save"]
