"""Predictions in, numbers out. scikit-learn does the ranking; this module fixes the conventions.

Two classes: precision, recall, specificity, F1, AUROC and AUPRC are those of the positive class. More classes: the
macro average, one class against the rest. Findings (several yes-or-no labels per row, some of them unknown): each one
is a two-class problem on the rows where it is known, and the summary is their macro average.

A class without a true row has no precision, recall and F1, and takes no part in the macro average: its classes are
those that scikit-learn's balanced accuracy averages over, whatever is called. The precision of a class that is there
and never called counts as 0. A number that does not exist is None, never NaN. Knows nothing of how the predictions were
made.

    calibration  temperature and operating point
    scores       the scores of a set of predictions
    estimates    one number of some rows, its standard error and its interval
    intervals    how far all these numbers may be from the truth
"""

from featcache.metrics.scores import (
    SCALARS,
    bin_numbers,
    confidences,
    counted,
    cross_entropies,
    decisions,
    evaluate,
    evaluate_findings,
    log_odds,
    per_epoch,
    per_epoch_findings,
    probabilities,
    reliability,
    squared_errors,
    two_columns,
)

__all__ = [
    "SCALARS",
    "bin_numbers",
    "confidences",
    "counted",
    "cross_entropies",
    "decisions",
    "evaluate",
    "evaluate_findings",
    "log_odds",
    "per_epoch",
    "per_epoch_findings",
    "probabilities",
    "reliability",
    "squared_errors",
    "two_columns",
]
