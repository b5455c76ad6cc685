"""`predict`: applies a Run to images, or to a store of their vectors, and writes a CSV.

Only an earlier prediction is overwritten, and a stopped pass continues.

    run_backbone  finds the network that made the vectors of a Run
    overlap       counts images that a Run was trained on
    predictions   probabilities and predicted classes from vectors
    onnx_export   a Run as an ONNX file; the only user of onnx
    bundle        a Run packed into one file
    predictor     `load_run`: a Run that predicts new images
    files         `predict`: from files to a CSV
"""

from featcache.prediction.files import failures_table, predict, remove_partial, through_store

__all__ = ["failures_table", "predict", "remove_partial", "through_store"]
