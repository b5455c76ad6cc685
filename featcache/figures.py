"""Numbers in, PNG out. The only user of matplotlib; knows nothing of runs or stores.

Figures are drawn without a display and without pyplot's global state, for a white page, at 150 dots per inch.
"""

import io
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_TRAIN, _VAL, _INK, _FAINT = "#4477aa", "#cc5533", "#222222", "#dddddd"
_DPI = 150
_SIDES = {"train": "training", "val": "validation"}


def curves(history: Sequence[Mapping[str, float]], title: str) -> bytes:
    """Loss and four scores per epoch, training and validation in one panel each.

    Args:
        history: a mapping per epoch with `epoch`, and `train_` and `val_` before loss, accuracy, precision, recall, f1.
        title: one line above the panels.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(
        title.encode("utf-8", "replace").decode(), fontsize=11, color=_INK, x=0.01, ha="left", parse_math=False
    )
    panels = figure.subplots(1, 3)
    for axes, name, label in zip(
        panels, ("loss", "accuracy", "f1"), ("cross entropy (nats)", "accuracy", "F1"), strict=True
    ):
        _draw_curve(axes, history, name, label)
    panels[0].legend(frameon=False, fontsize=9, labelcolor=_INK)
    canvas = FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    canvas.print_figure(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _draw_curve(axes: Axes, history: Sequence[Mapping[str, float]], name: str, label: str) -> None:
    epochs = [row["epoch"] for row in history]
    for side, color, width in (("train", _TRAIN, 1.4), ("val", _VAL, 1.8)):
        values = [row[f"{side}_{name}"] for row in history]
        axes.plot(
            epochs, values, color=color, linewidth=width, label=_SIDES[side], marker="o" if len(epochs) < 3 else ""
        )
        if side == "val":
            _mark_best(axes, epochs, values, name, color)
    axes.set_title(label, fontsize=10, color=_INK, loc="left")
    axes.set_xlabel("epoch", fontsize=9, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8, colors=_INK, length=3)
    axes.grid(axis="y", color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _mark_best(axes: Axes, epochs: Sequence[float], values: Sequence[float], name: str, color: str) -> None:
    lowest = name == "loss"
    best = min(values) if lowest else max(values)
    epoch = epochs[list(values).index(best)]
    axes.plot([epoch], [best], "o", color=color, markersize=5, markerfacecolor="white", markeredgewidth=1.5)
    beside = (0, -13 if lowest else 7)
    axes.annotate(
        f"{best:.3f}", (epoch, best), beside, textcoords="offset points", ha="center", fontsize=8, color=color
    )
    axes.margins(y=0.12)
