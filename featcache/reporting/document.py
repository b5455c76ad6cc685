"""Content of a report as plain values: chapters, sections and blocks (paragraphs, facts, tables, figures, cards, maps).

Independent of Runs and of HTML; the template chooses the markup by a block's `kind`. A block's `files` are its PNG and
CSV files.
Letters: n rows.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from PIL import Image

from featcache.figures.charts import Drawn
from featcache.names import printable

Rows = Sequence[Sequence[object]]
Content = bytes | tuple[Sequence[str], Rows]  # of a file: bytes, or a header and the rows of a CSV

LARGE, SMALL, TINY = 224, 96, 72  # pixels of the longer side: on cards, of neighbours, on maps
_QUALITY = {LARGE: 58, SMALL: 50, TINY: 42}
NOTHING = "–"
NAMES = {
    "auroc": "AUROC", "auprc": "AUPRC", "recall": "sensitivity (recall)", "f1": "F1", "loss": "loss (nats)",
    "brier": "Brier score", "ece": "expected calibration error", "precision": "PPV (precision)",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: displayed text.
        value: unrounded number; None for text.
        small: second line, such as an interval.
        shade: background from 0 (light) to 10 (dark); None for no background.
        is_head: whether the cell names its row.
    """

    text: str
    value: float | None = None
    small: str = ""
    shade: int | None = None
    is_head: bool = False


@dataclass(frozen=True)
class Words:
    """A paragraph. Its role is "plain", "missing" (an input that a section needs), "gone" (why a part is not shown)
    or "hint" (a parameter that adds a part). "missing" and "hint" are omitted from print."""

    kind: ClassVar[str] = "words"
    text: str
    role: str = "plain"

    def files(self) -> Iterator[tuple[str, Content]]:
        yield from ()


@dataclass(frozen=True)
class Facts:
    """Terms and their values. A leading backtick marks code, such as a digest. With `folded`, the list is collapsed
    under that title."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]
    folded: str = ""

    def files(self) -> Iterator[tuple[str, Content]]:
        yield from ()


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    Attributes:
        name: name of its CSV; empty for none.
        caption: title.
        header: names of its columns.
        rows: a cell for each column.
        note: text below the table.
        shape: "numbers" or "matrix" (shaded cells).
        data: header and rows of the CSV.
        png: picture of the table; empty for none.
    """

    kind: ClassVar[str] = "table"
    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    shape: str = "numbers"
    data: tuple[Sequence[str], Rows] = ((), ())
    png: bytes = b""

    def files(self) -> Iterator[tuple[str, Content]]:
        if self.png:
            yield f"{self.name}.png", self.png
        if self.data[0]:
            yield f"{self.name}.csv", self.data


@dataclass(frozen=True)
class Figure:
    """A chart with its title, caption and numbers."""

    name: str
    title: str
    caption: str
    drawn: Drawn
    header: Sequence[str]
    rows: Rows


@dataclass(frozen=True)
class Abreast:
    """Figures or tables side by side on a wide page: three small ones or two others."""

    kind: ClassVar[str] = "abreast"
    of: Sequence["Figure | Table"]
    are_small: bool = False

    @property
    def figures(self) -> list[Figure]:
        return [block for block in self.of if isinstance(block, Figure)]

    @property
    def tables(self) -> list[Table]:
        return [block for block in self.of if isinstance(block, Table)]

    def files(self) -> Iterator[tuple[str, Content]]:
        for figure in self.figures:
            yield f"{figure.name}.png", figure.drawn.png
            yield f"{figure.name}.csv", (figure.header, figure.rows)
        for table in self.tables:
            yield from table.files()


@dataclass(frozen=True)
class Neighbour:
    """A training image near another one."""

    name: str
    label: str
    similarity: float
    picture: str
    agrees: bool


@dataclass(frozen=True)
class Card:
    """An example image with its prediction.

    Attributes:
        name: image_id.
        picture: data URI; empty if the image is not available.
        cam: data URI of the image with its class activation map; empty for none.
        label, predicted: true and predicted class.
        p: predicted probability of the class `p_of`.
        neighbours: nearest training images.
    """

    name: str
    picture: str
    cam: str
    label: str
    predicted: str
    p: float
    p_of: str
    neighbours: Sequence[Neighbour] = ()


@dataclass(frozen=True)
class Cards:
    """Example images of one kind of prediction, with a heading and their number."""

    kind: ClassVar[str] = "cards"
    name: str
    title: str
    words: str
    cards: Sequence[Card]

    @property
    def are_pairs(self) -> bool:
        """Whether some card has two pictures."""
        return any(card.cam for card in self.cards)

    def files(self) -> Iterator[tuple[str, Content]]:
        header = ("image_id", "label", "predicted", "probability_of", "probability", "neighbours", "similarities")
        yield f"{self.name}.csv", (header, [_line(card) for card in self.cards])


def name_of(score: str) -> str:
    """The display name of a metric."""
    return NAMES.get(score, score.replace("_", " "))


def _line(card: Card) -> list[object]:
    near = " | ".join(f"{neighbour.name} ({neighbour.label})" for neighbour in card.neighbours)
    cosines = " | ".join(f"{neighbour.similarity:.6g}" for neighbour in card.neighbours)
    return [card.name, card.label, card.predicted, card.p_of, f"{card.p:.9g}", near, cosines]


@dataclass(frozen=True)
class Point:
    """A point of a map: coordinates (0 to 100), colour number, ring, number of its image within the page, size."""

    x: float
    y: float
    color: int
    is_ringed: bool
    image: int
    is_small: bool


@dataclass(frozen=True)
class Map:
    """A projection; each point is an image.

    Attributes:
        name: name of its files.
        title: the projected values and the colouring.
        alt: text alternative.
        colors: legend: (colour number, label).
        top, height: vertical extent of the points; the map is 100 wide.
        points: the images.
        png: picture of the map on white.
        data: header and rows of the CSV; empty if another map has the same data.
    """

    name: str
    title: str
    alt: str
    colors: Sequence[tuple[int, str]]
    top: float
    height: float
    points: Sequence[Point]
    png: bytes
    data: tuple[Sequence[str], Rows] = ((), ())


@dataclass(frozen=True)
class Maps:
    """Maps side by side."""

    kind: ClassVar[str] = "maps"
    of: Sequence[Map]

    def files(self) -> Iterator[tuple[str, Content]]:
        for block in self.of:
            yield f"{block.name}.png", block.png
            if block.data[0]:
                yield f"{block.name}.csv", block.data


Block = Words | Facts | Table | Abreast | Cards | Maps


@dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Headline:
    """A main metric at the top of a chapter."""

    name: str
    cell: Cell
    meaning: str


@dataclass(frozen=True)
class Chapter:
    """The part of a report about one Run, or about a comparison.

    Attributes:
        name: anchor.
        title: heading.
        lead: summary in a sentence.
        headlines: main metrics.
        caption: the images of these metrics.
        notes: notes of the Run's record.
        sections: the details.
    """

    name: str
    title: str
    lead: str
    headlines: Sequence[Headline] = ()
    caption: str = ""
    notes: Sequence[str] = ()
    sections: Sequence[Section] = field(default=())

    def files(self) -> Iterator[tuple[str, Content]]:
        for section in self.sections:
            for block in section.blocks:
                yield from block.files()


def missing(text: str) -> Words:
    """A sentence about a missing input."""
    return Words(text, "missing")


def number_text(value: float | None, digits: int = 3) -> str:
    """A number as displayed."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def with_sign(value: float, digits: int = 3) -> str:
    """A difference as displayed, with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def probability(p: float) -> str:
    """A probability as displayed; never 0 or 1."""
    return "< 0.001" if p < 0.0005 else "> 0.999" if p > 0.9995 else f"{p:.3f}"


def interval_of(interval: Sequence[float] | None, signed: bool = False, digits: int = 3) -> str:
    """`[0.944, 0.974]`; empty without an interval."""
    if not interval:
        return ""
    low, high = (with_sign(value, digits) if signed else number_text(value, digits) for value in interval)
    return f"[{low}, {high}]"


def number(value: float | None, interval: Sequence[float] | None = None, digits: int = 3) -> Cell:
    """A cell with a number, and its interval below."""
    return Cell(number_text(value, digits), value, interval_of(interval, digits=digits) if value is not None else "")


def count(value: int) -> Cell:
    """A cell with a number of rows."""
    return Cell(f"{value:,}", value)


def head(text: str, small: str = "") -> Cell:
    """The name of a row."""
    return Cell(printable(text), small=printable(small), is_head=True)


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def data_uri(image: Image.Image, side: int) -> str:
    """A WebP data URI whose longer side has at most `side` pixels; without the metadata of the file."""
    small = image.convert("RGB") if image.mode != "RGB" else image
    scale = side / max(small.size)
    if scale < 1:
        size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        small = small.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY[side], method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
