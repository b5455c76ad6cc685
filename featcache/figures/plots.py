"""Learning curves as PNG, and the common style of all figures.

Figures need no display and do not use pyplot's global state.
"""

import io
import itertools
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TRAIN, VAL, INK, FAINT, RULE = "#4477aa", "#cc5533", "#222222", "#dddddd", "#888888"
_DPI = 150
_ABOVE_PHASES = 14.0  # points between a panel and its title, for the names of phases
_SUBSETS = {"train": "training", "val": "validation"}


def curves(history: Sequence[Mapping[str, float]], title: str, kept: int | None = None) -> bytes:
    """Loss, accuracy and F1 per epoch as PNG, one panel each, with training and validation curves.

    Args:
        history: a mapping per epoch with `train_` and `val_` keys of loss, accuracy, precision, recall and f1, and
            `phase` if there are several.
        title: one line above the panels.
        kept: epoch whose weights are kept, marked by a ring; None for no ring. Epochs count from 1 through all phases.
    """
    figure = Figure(figsize=(11, 3.6))
    figure.suptitle(
        title.encode("utf-8", "replace").decode(), fontsize=11, color=INK, x=0.01, ha="left", parse_math=False
    )
    margins = {
        "left": 0.04,
        "right": 0.99,
        "top": 0.83,
        "bottom": 0.14,
        "wspace": 0.16,
    }  # a layout engine doubles the time
    panels = figure.subplots(1, 3, gridspec_kw=margins)
    for axes, name, label in zip(
        panels, ("loss", "accuracy", "f1"), ("cross entropy (nats)", "accuracy", "F1"), strict=True
    ):
        draw_curve(axes, history, name, label, kept)
    panels[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    return png_of(figure)


def png_of(figure: Figure, dpi: int = _DPI) -> bytes:
    """The figure for a white page, of so many dots per inch. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def plain(axes: Axes) -> None:
    """Short ticks, a faint grid across, no frame above or to the right."""
    axes.tick_params(labelsize=8, colors=INK, length=3)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_curve(axes: Axes, history: Sequence[Mapping[str, float]], name: str, label: str, kept: int | None) -> None:
    """One of the panels of `curves`, for the number `name`, called `label`."""
    epochs = range(1, len(history) + 1)
    for side, color, width in (("train", TRAIN, 1.4), ("val", VAL, 1.8)):
        values = [row[f"{side}_{name}"] for row in history]
        axes.plot(
            epochs, values, color=color, linewidth=width, label=_SUBSETS[side], marker="o" if len(epochs) < 3 else ""
        )
        if side == "val" and kept is not None:
            _mark(axes, kept, values[epochs.index(kept)], 7 if name == "loss" else -13, color)
    phases = [int(row.get("phase", 1)) for row in history]
    above = _ABOVE_PHASES if len(set(phases)) > 1 else None
    axes.set_title(label, fontsize=10, color=INK, loc="left", pad=above)
    axes.set_xlabel("epoch", fontsize=9, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes)
    _draw_phases(axes, phases)


def _draw_phases(axes: Axes, phases: Sequence[int]) -> None:
    """A line between the epochs where a phase begins, and which it is, above the curves."""
    for i, (before, phase) in enumerate(itertools.pairwise(phases), start=1):
        if phase != before:
            axes.axvline(i + 0.5, color=RULE, linewidth=0.8, zorder=1)
            at = axes.get_xaxis_transform()
            is_late = i > 0.85 * len(phases)  # where a word to the right would leave the figure
            side, shift = ("right", -3) if is_late else ("left", 3)
            axes.annotate(
                f"phase {phase}", (i + 0.5, 1), (shift, 2), at, "offset points", ha=side, fontsize=7, color=RULE
            )


def _mark(axes: Axes, epoch: int, value: float, above: int, color: str) -> None:
    """A ring and the value, a few points above or below it."""
    axes.plot([epoch], [value], "o", color=color, markersize=5, markerfacecolor="white", markeredgewidth=1.5)
    axes.annotate(
        f"{value:.3f}", (epoch, value), (0, above), textcoords="offset points", ha="center", fontsize=8, color=color
    )
    axes.margins(y=0.12)
