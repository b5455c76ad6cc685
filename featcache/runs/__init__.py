"""A `Run`: the folder with the results of a training. It is written and replaced as a whole.

It names its rows, with their labels and groups, so that a fine-tune splits the same images in the same way without the
store. Letters: n rows, d features, c classes.

    run         Run: reads and writes the folder
    backbone    the identity of the vectors that the Run was trained on
    subsets     predictions per subset
    evaluation  the folder with the results of `evaluate`
"""

from featcache.runs.run import RUN_FILES, WEIGHTS, Images, Run, Table, check_free, place, rounded, save

__all__ = ["RUN_FILES", "WEIGHTS", "Images", "Run", "Table", "check_free", "place", "rounded", "save"]
