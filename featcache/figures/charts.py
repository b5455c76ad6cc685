"""Charts of a report, each as PNG on white and as inline SVG.

The SVG is inlined rather than embedded as an image because only then do its colours (`var(--ink)`) and font follow the
page's light and dark themes. It contains no style, script, link or date, and the same numbers give the same bytes. Its
`aria-label` describes it. Independent of Runs.
"""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from featcache.figures.plots import FAINT, INK, RULE, TRAIN, VAL, draw_curve, plain, png_of
from featcache.identity import digest_bytes

Array = np.ndarray[Any, Any]

# Distinguishable with most forms of colour blindness (Tol, "Colour Schemes", 2021, section 2).
CLASSES = (TRAIN, VAL, "#228833", "#aa3377", "#66ccee", "#ccbb44", "#555588", "#999933")
PAPER = "#ffffff"
_NAMES = {INK: "ink", FAINT: "rule", RULE: "muted", PAPER: "paper", "#000000": "ink"}
_NAMES |= {color: f"c{i}" for i, color in enumerate(CLASSES)}

_WIDTH, _HEIGHT = 3.6, 2.9  # inches
_NARROW = 2.75, 2.4
_SMALL = 8  # points
_DPI = 300  # of a PNG, for print
_LEGEND = 54  # characters per row of a legend above a chart
_LOWEST = 0.7  # lower end of bars on a logarithmic scale, below one image
_PLACES = ("d", "x", "y", "cx", "cy", "r", "width", "height", "points", "transform")  # attributes that hold lengths


@dataclass(frozen=True)
class Drawn:
    """A chart as an `<svg>` element with named colours, and as PNG on white."""

    svg: str
    png: bytes


@dataclass(frozen=True)
class Line:
    """A line of a chart, optionally with a marked point.

    Attributes:
        label: label in the legend.
        x, y: (m,) coordinates.
        color: a colour of this module or of `figures`.
        width: line width in points.
        point: (x, y), marked by a ring; None for none.
    """

    label: str
    x: Array
    y: Array
    color: str
    width: float = 1.6
    point: tuple[float, float] | None = None


@dataclass(frozen=True)
class Dots:
    """Points joined by a thin line; their size grows with n."""

    label: str
    x: Array
    y: Array
    n: Array
    color: str


@dataclass(frozen=True)
class Counts:
    """A histogram: number of rows by bin."""

    label: str
    values: Array
    color: str


@dataclass(frozen=True)
class Estimate:
    """A row of a forest plot: a value and its interval, or None."""

    label: str
    value: float
    interval: tuple[float, float] | None


def color_of(number: int, n_classes: int, positive: int) -> str:
    """The colour of a class: red for the positive class of two, otherwise the next colour."""
    if n_classes == 2:
        return VAL if number == positive else TRAIN
    return CLASSES[number % len(CLASSES)]


# --- charts -----------------------------------------------------------------------------------------------------------


def curve(history: Sequence[Any], name: str, label: str, kept: int | None, alt: str, has_legend: bool = True) -> Drawn:
    """A learning curve: training and validation values per epoch."""
    figure, axes = _empty(*_NARROW)
    draw_curve(axes, history, name, label, kept)
    axes.set_title("", loc="left")
    axes.set_ylabel(label, fontsize=9, color=INK)
    if has_legend:
        _legend(axes, ["training", "validation"])
    return _drawn(figure, alt)


def lines(
    drawn: Sequence[Line], x: str, y: str, base: tuple[float, float] | None, alt: str, place: str = "lower right"
) -> Drawn:
    """Lines in a unit square.

    Args:
        drawn: lines; the last is on top.
        x, y: labels of the axes.
        base: heights at which the dotted line of chance begins and ends; None for no line.
        alt: text alternative.
        place: position of the legend.
    """
    figure, axes = _empty()
    if base is not None:
        axes.plot([0, 1], base, color=RULE, linewidth=0.9, linestyle=(0, (1, 2)))
    for line in drawn:
        axes.plot(line.x, line.y, color=line.color, linewidth=line.width, gid="named")
        if line.point is not None:
            axes.plot(*([v] for v in line.point), "o", color=line.color, markersize=6, markerfacecolor=PAPER)
    _unit(axes, x, y)
    named = [line for line in axes.get_lines() if line.get_gid() == "named"]
    _legend(axes, [line.label for line in drawn], named, place)
    return _drawn(figure, alt)


def dots(drawn: Sequence[Dots], x: str, y: str, alt: str) -> Drawn:
    """Points in a unit square with its diagonal."""
    figure, axes = _empty()
    axes.plot([0, 1], [0, 1], color=RULE, linewidth=0.9, linestyle=(0, (1, 2)))
    handles = []
    for curve in drawn:
        size = 8 + 130 * curve.n / max(1, curve.n.max(initial=1))  # square points
        axes.plot(curve.x, curve.y, color=curve.color, linewidth=0.8, alpha=0.7)
        handles.append(
            axes.scatter(curve.x, curve.y, s=size, color=curve.color, alpha=0.85, linewidth=0, clip_on=False)
        )
    _unit(axes, x, y)
    legend = _legend(axes, [curve.label for curve in drawn], handles, "lower left", len(drawn), above=True)
    for handle in legend.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([24])
    return _drawn(figure, alt)


def histogram(edges: Array, drawn: Sequence[Counts], x: str, cut: float | None, alt: str) -> Drawn:
    """Histograms over (m + 1) bin edges on a logarithmic scale; `cut` is the threshold, a dashed line."""
    longest = max((len(histogram.label) for histogram in drawn), default=0)
    n_columns = max(1, min(3, _LEGEND // (min(longest, 40) + 5)))
    figure, axes = _empty(height=_HEIGHT + 0.16 * (-(-len(drawn) // n_columns) - 1))
    handles = []
    for histogram in drawn:
        axes.stairs(
            histogram.values, edges, fill=True, color=histogram.color, alpha=0.18, linewidth=0, baseline=_LOWEST
        )
        handles.append(axes.stairs(histogram.values, edges, color=histogram.color, linewidth=1.4, baseline=None))
    axes.set_yscale("log")
    most = max((float(histogram.values.max(initial=1)) for histogram in drawn), default=1.0)
    axes.set_ylim(_LOWEST, 1.5 * max(most, 10.0))
    axes.set_xlim(edges[0], edges[-1])
    if cut is not None:
        axes.axvline(cut, color=INK, linewidth=1.0, linestyle=(0, (4, 2)))
    _label_axes(axes, x, "images (logarithmic)")
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _legend(axes, [histogram.label for histogram in drawn], handles, "lower left", n_columns, above=True)
    return _drawn(figure, alt)


def forest(rows: Sequence[Estimate], x: str, zero: float | None, alt: str) -> Drawn:
    """A forest plot: values with intervals, and a dotted line at `zero`."""
    figure, axes = _empty(height=0.9 + 0.26 * len(rows), width=2 * _WIDTH)
    for place, row in enumerate(rows):
        if row.interval is not None:
            axes.plot(row.interval, [place, place], color=INK, linewidth=1.3, solid_capstyle="butt")
        axes.plot([row.value], [place], "o", color=VAL, markersize=5.5)
    if zero is not None:
        axes.axvline(zero, color=RULE, linewidth=0.9, linestyle=(0, (1, 2)))
    plain(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.spines["left"].set_visible(False)
    axes.set_yticks(range(len(rows)), [_cut(row.label, 48) for row in rows], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(_cut(x, 80), fontsize=_SMALL, color=INK, parse_math=False)
    return _drawn(figure, alt)


def matrix(counts: Array, classes: Sequence[str]) -> bytes:
    """A confusion matrix as PNG: (c, c) counts with true classes as rows, shaded by the proportion of the row."""
    n, labels = len(classes), [_cut(name, 20) for name in classes]
    longest = 0.08 * max(map(len, labels))  # inches
    figure, axes = _empty(width=1.0 + longest + max(0.75, longest) * n, height=1.2 + 0.6 * n)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for i, j in np.ndindex(*counts.shape):
        ink = PAPER if share[i, j] > 0.8 else INK
        axes.annotate(f"{counts[i, j]:,}", (j, i), (0, 1), "data", "offset points", ha="center", fontsize=10, color=ink)
        below: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 7, "color": ink}
        axes.annotate(f"{share[i, j]:.1%}", (j, i), (0, -2), "data", "offset points", **below)
    plain(axes)
    axes.grid(visible=False)
    axes.set_xticks(range(n), labels, parse_math=False)
    axes.set_yticks(range(n), labels, parse_math=False)
    axes.set_xlabel("predicted", fontsize=_SMALL, color=INK)
    axes.set_ylabel("true", fontsize=_SMALL, color=INK)
    return _png(figure)


def scatter(points: Array, kinds: Sequence[tuple[str, str, Array]], rings: Array) -> bytes:
    """A projection as PNG: (n, 2) points, groups of (label, colour, (n,) mask), and an (n,) mask of ringed points."""
    wide, high = np.maximum(np.ptp(points, axis=0), 1e-9)
    figure, axes = _empty(width=4.4, height=max(1.2, min(4.4, 4.4 * high / wide)) + 0.18 * -(-len(kinds) // 2))
    handles = []
    for _, color, mask in kinds:
        x, y = points[mask].T
        handles.append(axes.scatter(x, y, s=14, color=color, alpha=0.8, linewidth=0))
    x, y = points[rings].T
    axes.scatter(x, y, s=26, facecolor="none", edgecolor=INK, linewidth=0.9)
    axes.set_axis_off()
    axes.set_aspect("equal", adjustable="datalim")
    if kinds:
        _legend(axes, [label for label, _, _ in kinds], handles, "lower left", n_columns=2, above=True)
    return _png(figure)


# --- parts of charts --------------------------------------------------------------------------------------------------


def _empty(width: float = _WIDTH, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _unit(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    _label_axes(axes, x, y)


def _label_axes(axes: Axes, x: str, y: str) -> None:
    plain(axes)
    axes.set_xlabel(_cut(x, 44), fontsize=9, color=INK, parse_math=False)
    axes.set_ylabel(_cut(y, 44), fontsize=9, color=INK, parse_math=False)


def _legend(
    axes: Axes,
    labels: Sequence[str],
    handles: Sequence[Any] | None = None,
    place: str = "best",
    n_columns: int = 1,
    above: bool = False,
) -> Any:
    """A legend with literal labels; matplotlib would omit labels that begin with `_` and parse `$` as mathematics."""
    look: dict[str, Any] = {"frameon": False, "fontsize": _SMALL, "labelcolor": INK, "handlelength": 1.4}
    look |= {"loc": place, "ncols": min(n_columns, max(1, len(labels)))}
    look |= {"bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2} if above else {}
    handles = list(axes.get_lines()[: len(labels)] if handles is None else handles)
    numbers = [str(i) for i in range(len(handles))]
    legend = axes.legend(handles, numbers, **look)
    for text, label in zip(legend.get_texts(), labels, strict=False):
        text.set_parse_math(False)
        text.set_text(_cut(label, 40))
    return legend


def _cut(text: str, most: int) -> str:
    """A label, truncated to `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _png(figure: Figure) -> bytes:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # browsers have the glyph
        return png_of(figure, _DPI)


def _drawn(figure: Figure, alt: str) -> Drawn:
    png = _png(figure)
    figure.set_layout_engine("none")  # keep the layout of the PNG
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "featcache"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        FigureCanvasAgg(figure).print_figure(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Drawn(_themed(buffer.getvalue(), alt), png)


# --- themed SVG -------------------------------------------------------------------------------------------------------


def _themed(svg: bytes, alt: str) -> str:
    """Matplotlib's SVG with named colours, without styles, metadata and unused ids."""
    root = ElementTree.fromstring(svg)  # noqa: S314  it was written a moment ago
    _remove(root, {"metadata", "style"})
    prefix = f"f{digest_bytes(svg)[:8]}-"
    used = set(re.findall(rb'(?:href="#|url\(#)([^")]+)', svg))
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = _attributes(element.attrib, prefix, {name.decode() for name in used})
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    for element in root.iter():
        element.tail = None
        if not (element.text or "").strip():
            element.text = None
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _remove(element: ElementTree.Element, names: set[str]) -> None:
    for child in list(element):
        if _local(child.tag) in names:
            element.remove(child)
        else:
            _remove(child, names)


def _attributes(inherited: dict[str, str], prefix: str, used: set[str]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for name, value in {_local(name): value for name, value in inherited.items()}.items():
        if name == "style":
            attributes |= _from_style(value)
        elif name == "id":
            attributes |= {"id": prefix + value} if value in used else {}
        elif name == "href":
            attributes["href"] = "#" + prefix + value.removeprefix("#")
        elif name != "type" and not value.startswith("rotate(-0 "):
            attributes[name] = value.replace("url(#", f"url(#{prefix}")
    return {name: _shorter(value) if name in _PLACES else _by_name(value) for name, value in attributes.items()}


def _from_style(style: str) -> dict[str, str]:
    """CSS declarations as attributes: a page may forbid the one, and takes the other. Fonts are the page's."""
    properties = {}
    for declaration in filter(None, map(str.strip, style.split(";"))):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            size = re.search(r"([\d.]+)px", value)
            properties["font-size"] = size[1] if size else "8"
        elif name == "font-size":
            properties[name] = value.removesuffix("px")
        elif name != "font-family":
            properties[name] = value
    return properties


def _by_name(value: str) -> str:
    return f"var(--{_NAMES[value]})" if value in _NAMES else value


def _shorter(value: str) -> str:
    """Lengths to a hundredth of a point."""
    return re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)
