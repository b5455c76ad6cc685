"""Charts: an SVG for any page that does nothing but show, and the same bytes for the same numbers."""

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from featcache.figures import INK, RULE, charts
from featcache.figures.charts import Counts, Dots, Drawn, Estimate, Line

HOSTILE = "<img src=x onerror=alert(1)> & $x_1$ _"


def drawn() -> dict[str, Drawn]:
    """One of each, in which every text that a caller may give is hostile."""
    x = np.linspace(0, 1, 5)
    edges = np.linspace(0, 1, 4)
    history = [{"epoch": e, "train_loss": 1 / e, "val_loss": 2 / e} for e in (1.0, 2.0, 3.0)]
    return {
        "lines": charts.lines(
            [Line(f"_{HOSTILE}", x, x**2, INK, 2.0, (0.5, 0.25))], HOSTILE, HOSTILE, (0.0, 1.0), HOSTILE
        ),
        "dots": charts.dots([Dots(HOSTILE, x, x, np.arange(5), RULE)], HOSTILE, HOSTILE, HOSTILE),
        "histogram": charts.histogram(
            edges, [Counts(HOSTILE, np.array([0, 3, 400]), charts.CLASSES[1])], HOSTILE, 0.5, HOSTILE
        ),
        "forest": charts.forest(
            [Estimate(HOSTILE, 0.5, (0.4, 0.6)), Estimate("none", 0.2, None)], HOSTILE, 0.0, HOSTILE
        ),
        "curve": charts.curve(history, "loss", "loss", 2, HOSTILE),
    }


@pytest.fixture(scope="module")
def every() -> dict[str, Drawn]:
    return drawn()


def test_an_svg_only_shows(every: dict[str, Drawn]) -> None:
    """No style, script, link, handler or address; and what is said of it in words is the caller's, as text."""
    for chart in every.values():
        root = ElementTree.fromstring(chart.svg)
        assert root.attrib.keys() == {"viewBox", "role", "aria-label"}
        assert root.attrib["aria-label"] == HOSTILE
        for element in root.iter():
            assert element.tag in {"svg", "g", "path", "defs", "use", "text", "clipPath", "rect", "tspan"}, element.tag
            for name, value in element.attrib.items():
                assert not name.startswith("on")
                assert name != "style"
                assert "//" not in value
                assert name != "href" or value.startswith("#f")


def test_names_are_texts_of_an_svg_as_they_are(every: dict[str, Drawn]) -> None:
    for name in ("lines", "dots", "histogram", "forest"):
        texts = ["".join(each.itertext()) for each in ElementTree.fromstring(every[name].svg).iter("text")]
        assert any(HOSTILE in text for text in texts), name


def test_an_svg_has_the_colours_of_the_page(every: dict[str, Drawn]) -> None:
    for chart in every.values():
        found = re.findall(r'(?:fill|stroke)="([^"]+)"', chart.svg)
        assert found
        assert all(color == "none" or color.startswith(("var(--", "#")) for color in found)
        assert not [color for color in found if color.startswith("#")], "a colour that the page cannot change"


def test_references_lead_to_something_within(every: dict[str, Drawn]) -> None:
    for chart in every.values():
        ids = re.findall(r' id="([^"]+)"', chart.svg)
        assert len(set(ids)) == len(ids)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', chart.svg)) == set(ids)


def test_the_same_numbers_give_the_same_bytes(every: dict[str, Drawn]) -> None:
    assert drawn() == every


def test_a_png_is_a_png(every: dict[str, Drawn]) -> None:
    pngs = [chart.png for chart in every.values()]
    pngs.append(charts.matrix(np.array([[5, 0], [2, 3]]), [HOSTILE, "b"]))
    points = np.arange(12.0).reshape(6, 2)
    pngs.append(charts.scatter(points, [(HOSTILE, INK, points[:, 0] > 2)], points[:, 0] > 5))
    assert all(png.startswith(b"\x89PNG") for png in pngs)


def test_what_is_no_mathematics_is_not_read_as_such() -> None:
    """Half of a formula, in every place where a name may stand."""
    name, x = r"$\frac{a$", np.linspace(0, 1, 3)
    for chart in (
        charts.forest([Estimate(name, 0.5, (0.4, 0.6))], f"AUROC − that of {name}", 0.0, name),
        charts.lines([Line(name, x, x, INK)], name, name, None, name),
        charts.histogram(np.linspace(0, 1, 3), [Counts(name, np.array([1, 2]), INK)], name, None, name),
    ):
        assert name in "".join(ElementTree.fromstring(chart.svg).itertext())


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        return image.size


def test_long_names_stay_within_the_chart() -> None:
    """Each below the other, where they are too long to stand side by side."""
    edges = np.linspace(0, 1, 4)
    widths = {}
    for n in (3, 40):
        kinds = [Counts("w" * n, np.array([1, 20, 300]), color) for color in charts.CLASSES[:3]]
        root = ElementTree.fromstring(charts.histogram(edges, kinds, "x", None, "h").svg)
        legend = [text for text in root.iter("text") if "".join(text.itertext()).startswith("www")]
        widths[n] = {float(re.findall(r"translate\(([-\d.]+)", each.get("transform", "translate(0"))[0]) if each.get(
            "transform") else float(each.get("x", "0")) for each in legend}  # fmt: skip
    assert len(widths[3]) == 3
    assert len(widths[40]) == 1


def test_a_map_is_as_high_as_its_points() -> None:
    flat = np.array([[0.0, 0.0], [50.0, 5.0], [100.0, 10.0]])
    every, none = np.ones(3, dtype=bool), np.zeros(3, dtype=bool)
    width, height = size_of(charts.scatter(flat, [("a", INK, every)], none))
    assert height < 0.5 * width
    width, height = size_of(charts.scatter(flat * [1, 10], [("a", INK, every)], none))
    assert height > 0.9 * width


def test_a_line_lies_where_its_numbers_are() -> None:
    """The last point of a line through (0, 0) and (1, 1) is right of and above its first."""
    chart = charts.lines(
        [Line("a", np.array([0.0, 1.0]), np.array([0.0, 1.0]), charts.CLASSES[2])], "x", "y", (0.3, 0.3), "a"
    )
    element = next(each for each in ElementTree.fromstring(chart.svg).iter("path") if each.get("stroke") == "var(--c2)")
    numbers = [float(each) for each in re.findall(r"-?\d+\.?\d*", element.attrib["d"])]
    (x0, y0), (x1, y1) = numbers[:2], numbers[2:]
    assert x1 > x0
    assert y1 < y0  # an SVG counts downwards
