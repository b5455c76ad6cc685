"""Metrics, confidence intervals and calibration of predictions.

Independent of Runs and stores: everything is computed from arrays of labels and logits.

    calibration  temperature scaling and operating points
    scores       metrics of a set of predictions, and their conventions
    estimates    a single metric with its standard error and interval
    intervals    95 % confidence intervals of the metrics and of differences
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
