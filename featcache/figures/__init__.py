"""Figures from numbers; the only user of matplotlib. Independent of Runs and stores.

Figures need no display and do not use pyplot's global state. Learning curves are PNG at 150 dots per inch; charts of a
report are SVG, and PNG at 300.

    plots   learning curves, and the common style
    charts  charts of a report
"""

from featcache.figures.plots import FAINT, INK, RULE, VAL, curves

__all__ = ["FAINT", "INK", "RULE", "VAL", "curves"]
