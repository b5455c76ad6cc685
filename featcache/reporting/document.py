"""What a report is made of: sections of blocks, each a few words, a table, figures, cards or a map. Plain values.

Knows nothing of Runs, and nothing of HTML but that a block has a `kind`, by which the template shows it. Whatever a
block keeps beside the page (a picture, its numbers) is among its `files`.
Letters: n rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from featcache.figures.charts import Drawn
from featcache.names import printable

Rows = Sequence[Sequence[object]]
Content = bytes | tuple[Sequence[str], Rows]  # of a file: bytes, or a header and the rows of a CSV

NOTHING = "–"
NAMES = {
    "auroc": "AUROC", "auprc": "AUPRC", "recall": "sensitivity (recall)", "f1": "F1", "loss": "loss (nats)",
    "brier": "Brier score", "ece": "calibration error",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What stands in a table: a text, the number it was made of, and something small below it.

    Attributes:
        text: shown.
        value: the number itself, with all its digits; None for a text.
        small: an interval, a share.
        shade: 0 to 10, how dark it stands; None for no shade.
        is_head: a name of the row.
    """

    text: str
    value: float | None = None
    small: str = ""
    shade: int | None = None
    is_head: bool = False


@dataclass(frozen=True)
class Words:
    """A paragraph: a plain one, of the role "missing" what a section would need, of the role "gone" why it cannot have
    something, of the role "hint" what it could have. Needs and hints are for whoever makes the page, and are not
    printed."""

    kind: ClassVar[str] = "words"
    text: str
    role: str = "plain"

    def files(self) -> Iterator[tuple[str, Content]]:
        yield from ()


@dataclass(frozen=True)
class Facts:
    """Terms, and what they are here. A digest, or whatever else is code, is marked by a leading backtick. Under a
    title, `folded`, they are seen once it is opened."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]
    folded: str = ""

    def files(self) -> Iterator[tuple[str, Content]]:
        yield from ()


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    Attributes:
        name: of its CSV; empty for none.
        caption: what it shows.
        header: names of its columns.
        rows: a cell for each column.
        note: below it.
        shape: "numbers" or "matrix" (of shaded cells).
        data: header and rows of the CSV.
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
    """A chart, its title, what is to be seen on it, and its numbers."""

    name: str
    title: str
    caption: str
    drawn: Drawn
    header: Sequence[str]
    rows: Rows


@dataclass(frozen=True)
class Abreast:
    """Figures or tables side by side, where the page is wide enough; small ones three, others two."""

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
    """An image, what it is, what it was called and why.

    Attributes:
        name: of the image.
        picture: a data URI; empty where the image is not at hand.
        evidence: a data URI of the same image with what speaks for and against; empty for none.
        label, called: the true and the called class.
        p: the probability that decided, of `p_of`.
        neighbours: the nearest training images.
    """

    name: str
    picture: str
    evidence: str
    label: str
    called: str
    p: float
    p_of: str
    neighbours: Sequence[Neighbour] = ()


@dataclass(frozen=True)
class Cards:
    """Images of one kind of success or error, with a heading and how many there are in all."""

    kind: ClassVar[str] = "cards"
    name: str
    title: str
    words: str
    cards: Sequence[Card]

    @property
    def are_pairs(self) -> bool:
        """Whether beside some image stands what was found on it."""
        return any(card.evidence for card in self.cards)

    def files(self) -> Iterator[tuple[str, Content]]:
        header = ("image_id", "label", "called", "probability_of", "probability", "neighbours", "similarities")
        yield f"{self.name}.csv", (header, [_line(card) for card in self.cards])


def name_of(score: str) -> str:
    """What a number is called."""
    return NAMES.get(score, score.replace("_", " "))


def _line(card: Card) -> list[object]:
    near = " | ".join(f"{neighbour.name} ({neighbour.label})" for neighbour in card.neighbours)
    cosines = " | ".join(f"{neighbour.similarity:.6g}" for neighbour in card.neighbours)
    return [card.name, card.label, card.called, card.p_of, f"{card.p:.9g}", near, cosines]


@dataclass(frozen=True)
class Point:
    """An image on a map: where it lies (0 to 100 each), its colour, whether it is ringed, its number among the page's
    images, and whether it is small."""

    x: float
    y: float
    color: int
    is_ringed: bool
    image: int
    is_small: bool


@dataclass(frozen=True)
class Map:
    """A plane on which each point is an image.

    Attributes:
        name: of its files.
        title: what is mapped, and by what it is coloured.
        alt: the same in a sentence.
        colors: what the colours stand for: (number, label).
        top, height: of the part of the plane, 100 wide, on which points lie.
        points: the images.
        png: the same, on white.
        data: header and rows of the CSV; empty where another map has the same.
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
    """A heading and what stands below it."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Headline:
    """One of the numbers that a reader takes along."""

    name: str
    cell: Cell
    meaning: str


@dataclass(frozen=True)
class Chapter:
    """What is said of one Run, or of several.

    Attributes:
        name: the anchor.
        title: its heading.
        lead: what it is, in a sentence or two.
        headlines: numbers in large type.
        below: of which rows they are.
        sections: everything else.
    """

    name: str
    title: str
    lead: str
    headlines: Sequence[Headline] = ()
    below: str = ""
    notes: Sequence[str] = ()
    sections: Sequence[Section] = field(default=())

    def files(self) -> Iterator[tuple[str, Content]]:
        for section in self.sections:
            for block in section.blocks:
                yield from block.files()


def missing(text: str) -> Words:
    """That something is not here, and what to give for it."""
    return Words(text, "missing")


def shown(value: float | None, digits: int = 3) -> str:
    """A number as people read it."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def with_sign(value: float, digits: int = 3) -> str:
    """A difference as people read it, with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def probability(p: float) -> str:
    """A probability as people read it: none is said to be 0 or 1."""
    return "< 0.001" if p < 0.0005 else "> 0.999" if p > 0.9995 else f"{p:.3f}"


def interval_of(interval: Sequence[float] | None, signed: bool = False, digits: int = 3) -> str:
    """`[0.944, 0.974]`, or nothing."""
    if not interval:
        return ""
    low, high = (with_sign(value, digits) if signed else shown(value, digits) for value in interval)
    return f"[{low}, {high}]"


def number(value: float | None, interval: Sequence[float] | None = None, digits: int = 3) -> Cell:
    """A cell with a number, and its interval below."""
    return Cell(shown(value, digits), value, interval_of(interval, digits=digits) if value is not None else "")


def count(value: int) -> Cell:
    """A cell with a number of rows."""
    return Cell(f"{value:,}", value)


def head(text: str, small: str = "") -> Cell:
    """The name of a row."""
    return Cell(printable(text), small=printable(small), is_head=True)


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
