"""A CSV as texts by line and column, so that whatever is wrong with it can be told with both.

Reads UTF-8, with or without a byte order mark; a record may run over several lines, and is known by its first. Knows
nothing of what the columns mean: who reads them says whether they are names (`cells`), values or prose.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache import missing
from featcache.errors import UsageError, in_our_words

MAX_CELL = 16_384  # characters; text is kept at fixed length, so the longest cell decides the size of a column


@dataclass(frozen=True)
class Table:
    """n records of a CSV.

    Attributes:
        source: the file.
        lines: n numbers of the lines on which the records begin; the header is line 1.
        columns: n cells by name, in the order of the header.
    """

    source: Path
    lines: list[int]
    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int, name: str) -> str:
        """`images.csv, line 3, column path`, for a message."""
        return f"{self.source}, line {self.lines[row]}, column {name}"

    def cells(self, name: str) -> list[str]:
        """The cells of a column without the blanks around them.

        Raises:
            UsageError: a cell that cannot be kept: a zero byte, or more than `MAX_CELL` characters.
        """
        for row, text in enumerate(self.columns[name]):
            if "\0" in text or len(text) > MAX_CELL:
                raise UsageError(f"{self.where(row, name)}: a zero byte, or more than {MAX_CELL:,} characters.")
        return [text.strip() for text in self.columns[name]]

    def values(self, name: str) -> list[str]:
        """`cells` of a column of labels, groups or keys: empty where they are missing.

        Raises:
            UsageError: as `cells`.
        """
        return missing.without_missing(self.cells(name))

    def prose(self, name: str) -> list[str]:
        """The cells of a column of text of any length without the blanks around them: empty where they are missing.

        Raises:
            UsageError: a zero byte.
        """
        for row, text in enumerate(self.columns[name]):
            if "\0" in text:
                raise UsageError(f"{self.where(row, name)}: a zero byte.")
        return [text.strip() for text in missing.without_missing(self.columns[name], prose=True)]

    def missing_notes(self, values: Sequence[str] = (), prose: Sequence[str] = ()) -> list[str]:
        """A sentence about the words for missing values in some columns; none where they have none."""
        counted = {name: missing.words(self.columns[name]) for name in values}
        counted |= {name: missing.words(self.columns[name], prose=True) for name in prose}
        kept = {name: texts.count("None") for name in prose if "None" in (texts := self.cells(name))}
        return missing.notes(self.source, counted) + [
            f"{self.source}: {n:,} cells of column {name} are 'None', which is kept as text. Empty them if a program "
            f"wrote it for a missing text."
            for name, n in kept.items()
        ]

    def check_unique(self, name: str) -> None:
        """Raises UsageError where a text stands twice in a column, with both lines."""
        first_line(self.source, self.cells(name), self.lines)


def read(source: Path, required: Sequence[str] = (), unnamed: bool = False) -> Table:
    """The records of a CSV; empty lines are none.

    Args:
        source: the file.
        required: columns it must have.
        unnamed: leave columns without a name away, instead of refusing them.

    Raises:
        UsageError: not there, not UTF-8, not a CSV, a column that lacks or stands twice, a record of more or fewer
            cells than the header; with the line.
    """
    lines, records = list[int](), list[list[str]]()
    for line, cells in _numbered(source, _text(source)):
        if records and len(cells) != len(records[0]):
            raise UsageError(f"{source}, line {line}: the number of cells is not that of the header.")
        lines.append(line)
        records.append(cells)
    names = _names(source, records[0] if records else [], required, unnamed)
    columns = {name: [cells[i] for cells in records[1:]] for i, name in enumerate(names) if name}
    return Table(source, lines[1:], columns)


def first_line(source: Path, texts: Sequence[str], lines: Sequence[int]) -> dict[str, int]:
    """The line of each text.

    Raises:
        UsageError: a text stands twice.
    """
    first: dict[str, int] = {}
    for text, line in zip(texts, lines, strict=True):
        if text in first:
            raise UsageError(f"{source}, line {line}: {text!r} stands already at line {first[text]}.")
        first[text] = line
    return first


def _numbered(source: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it begins on."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise UsageError(f"{source}, line {line}: not a CSV ({error}).") from error
        if cells is None:
            return
        if cells:
            yield line, cells


def _text(source: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark."""
    if not source.is_file():
        raise UsageError(f"{source}: no such file.")
    try:
        with in_our_words("reading", source):
            return source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise UsageError(f"{source}, line {line}: not UTF-8 (byte {byte:#04x}); save it as UTF-8.") from error


def _names(source: Path, header: Sequence[str], required: Sequence[str], unnamed: bool) -> list[str]:
    """Names of the columns without the blanks around them; empty for those that are left away."""
    names = [name.strip() for name in header]
    if any("\0" in name for name in names):
        raise UsageError(f"{source}, line 1: a column name has a zero byte.")
    for name in required:
        if name not in names:
            raise UsageError(f"{source}, line 1: no column named {name} (columns: {', '.join(names) or 'none'}).")
    named = [name for name in names if name or not unnamed]
    if len(set(named)) != len(named) or "" in named:
        raise UsageError(f"{source}, line 1: column names must be unique and not empty, got {', '.join(names)}.")
    return names
