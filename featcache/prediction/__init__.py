"""`predict`: images, or a store of their vectors, through a Run into a CSV.

What is asked of the images is asked of them in `predictor`; here is what is written, and where: nothing is written over
that is not an earlier answer, and a pass that was stopped is gone on with.

    run_backbone  what made the vectors of a Run, found again
    overlap       how many of some images a Run was trained on
    predictions   vectors in, probabilities and decisions out
    onnx_export   a Run as an ONNX file: the only user of onnx
    bundle        a Run in one file, to be given away
    predictor     a Run that is asked about new images
    files         `predict`, the verb: from files to a CSV
"""

from featcache.prediction.files import failures_table, predict, remove_partial, through_store

__all__ = ["failures_table", "predict", "remove_partial", "through_store"]
