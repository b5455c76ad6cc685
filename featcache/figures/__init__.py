"""Numbers in, PNG out. With `charts` the only user of matplotlib; knows nothing of runs or stores.

Figures are drawn without a display and without pyplot's global state, for a white page: curves, which are wide, at 150
dots per inch, the small charts of a report at 300.

    plots   training curves, and how every figure looks
    charts  pictures of a report
"""

from featcache.figures.plots import FAINT, INK, RULE, VAL, curves

__all__ = ["FAINT", "INK", "RULE", "VAL", "curves"]
