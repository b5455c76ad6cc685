"""What a terminal and a notebook show of an object: a title and a few rows, on one screen.

A class that has `_summary` and inherits from `Summary` prints as aligned text and, in a notebook, as a small table.
Names of files and classes are somebody's text: they are made printable, and escaped in HTML.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape

from featcache.names import printable

Rows = Sequence[tuple[str, str]]
_MOST_CHARACTERS = 100  # of a value on a line
_LEFT = "style='text-align:left'"


class Summary(ABC):
    """An object with a one-screen `repr` and an HTML table for notebooks.

    Example:
        >>> class Point(Summary):
        ...     def _summary(self):
        ...         return "Point", [("x", "1"), ("distance", "2")]
        >>> Point()
        Point
          x         1
          distance  2
    """

    @abstractmethod
    def _summary(self) -> tuple[str, Rows]:
        """A title, and (name, value) of each row."""

    def __repr__(self) -> str:
        title, rows = self._summary()
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join([printable(title), *(f"  {name:<{width}}  {_line(value)}" for name, value in rows)])

    def _repr_html_(self) -> str:
        title, rows = self._summary()
        cells = "".join(
            f"<tr><th {_LEFT}>{escape(name)}</th><td {_LEFT}>{escape(_line(value))}</td></tr>" for name, value in rows
        )
        return f"<table><caption>{escape(printable(title))}</caption>{cells}</table>"


def _line(value: str) -> str:
    text = printable(value)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def counted(values: Sequence[str], most: int = 5) -> str:
    """The first few of a list of names, and how many more there are."""
    more = f" and {len(values) - most:,} more" if len(values) > most else ""
    return ", ".join(values[:most]) + more
