"""A table as texts by line and column, so that whatever is wrong with it can be told with both.

A record may run over several lines, and is known by its first. How the file writes records is of `formats`. Knows
nothing of what the columns mean: who reads them says whether they are names (`cells`), values or prose.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featcache.errors import UsageError
from featcache.tables import formats, missing
from featcache.tables.formats import Records

_UNNAMED = re.compile(r"Unnamed: \d+(\.\d+)?|Unnamed: \d+_level_\d+")  # how pandas names what has no name
_INVISIBLE = "\ufeff\u200b"  # a second byte order mark, and a zero-width blank
MAX_CELL = 16_384  # characters; text is kept at fixed length, so the longest cell decides the size of a column


@dataclass(frozen=True)
class Table:
    """n records of a table.

    Attributes:
        source: the file.
        lines: n numbers of the lines on which the records begin; the header is line 1.
        columns: n cells by name, in the order of the header.
        notes: what was chosen in reading the file, in full sentences.
    """

    source: Path
    lines: list[int]
    columns: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)

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

    def notes_on(self, values: Sequence[str] = (), prose: Sequence[str] = ()) -> list[str]:
        """`notes`, and a sentence about the words for missing values in some columns where they have some."""
        counted = {name: missing.words(self.columns[name]) for name in values}
        counted |= {name: missing.words(self.columns[name], prose=True) for name in prose}
        kept = {name: texts.count("None") for name in prose if "None" in (texts := self.cells(name))}
        return [
            *self.notes,
            *missing.notes(self.source, counted),
            *(
                f"{self.source}: {n:,} cells of column {name} are 'None', which is kept as text. Empty them if a "
                f"program wrote it for a missing text."
                for name, n in kept.items()
            ),
        ]

    def check_unique(self, name: str) -> None:
        """Raises UsageError where a text stands twice in a column, with both lines."""
        first_line(self.source, self.cells(name), self.lines)

    def first_rows(self, key: str, keys: Sequence[str], cells: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """The first row of each key, where all rows of a key say the same; rows without a key are left away.

        Args:
            key: the name of the column of keys, for a message.
            keys: n keys, empty where missing.
            cells: n texts by name, which the rows of a key must share.

        Raises:
            UsageError: two rows of one key differ, with both lines.
        """
        row_of: dict[str, int] = {}
        for row, text in enumerate(keys):
            if text and (first := row_of.setdefault(text, row)) != row:
                for name, texts in cells.items():
                    if texts[row] != texts[first]:
                        raise UsageError(
                            f"{self.where(row, name)}: {key} {text!r} has another text in line {self.lines[first]}. "
                            f"Give each {key} one, or repeat the same."
                        )
        return row_of


def read_table(
    source: Path, required: Sequence[str] = (), known_columns: Sequence[str] = (), header: Sequence[str] = ()
) -> Table:
    """The records of a table. Rows without any text are none; columns without a name are left away, as are those that
    pandas has named `Unnamed: 0`.

    Args:
        source: the file; see `formats` for what it may be.
        required: columns it must have, in upper or lower case.
        known_columns: columns it may have, in upper or lower case.
        header: columns by which its header is recognised; those that are required where none are given.

    Raises:
        UsageError: not there, not a table, a column that lacks or stands twice, a record of more or fewer cells than
            the header; with the line.
        AccessDenied, InputOutputError: it cannot be read.
    """
    keys = set(map(_key, header or required))

    def fits(cells: Sequence[str]) -> bool:
        return bool(keys) and keys <= set(map(_key, cells))

    records = formats.read(source, fits)
    n_above, _ = formats.header(records.cells, fits)
    records = Records(records.lines[n_above:], records.cells[n_above:], records.notes)
    first, *rows = _squared(source, records) or [[]]
    names = _names(f"{source}, line {(records.lines or [1])[0]}", first, required, known_columns)
    columns = {name: [cells[i] for cells in rows] for i, name in enumerate(names) if name}
    above = [f"{source}: {n_above} rows above the names of the columns are left away."] if n_above else []
    return Table(source, records.lines[1:], columns, [*records.notes, *above, *_about_unnamed(source, names, rows)])


def _key(name: str) -> str:
    return name.strip().strip(_INVISIBLE).lower()


def _squared(source: Path, records: Records) -> list[list[str]]:
    """The records, each as long as the header: without blank cells at the end of a row, and with those that a header
    ending in delimiters has more. R writes numbers of rows without a name for them in the header."""
    if not records.cells:
        return []
    header, *rows = records.cells
    if all(len(cells) == len(header) + 1 and cells[0] == str(i) for i, cells in enumerate(rows, start=1)):
        header = ["", *header]
    n, n_named = len(header), max((i + 1 for i, name in enumerate(header) if _key(name)), default=0)
    squared = [header]
    for line, cells in zip(records.lines[1:], rows, strict=True):
        if len(cells) < n_named or any(cell.strip() for cell in cells[n:]):
            raise UsageError(f"{source}, line {line}: the number of cells is not that of the header.")
        squared.append(cells[:n] + [""] * (n - len(cells)))
    return squared


def _names(where: str, header: Sequence[str], required: Sequence[str], known_columns: Sequence[str]) -> list[str]:
    """Names of the columns without the blanks around them; empty for those that are left away."""
    names = [name.strip().strip(_INVISIBLE) for name in header]
    if any("\0" in name for name in names):
        raise UsageError(f"{where}: a column name has a zero byte.")
    names = ["" if _UNNAMED.fullmatch(name) else name for name in names]
    for name in dict.fromkeys((*required, *known_columns)):
        alike = [i for i, other in enumerate(names) if other.lower() == name.lower() and other not in required]
        if name not in names and len(alike) == 1:
            names[alike[0]] = name
    for name in required:
        if name not in names:
            raise UsageError(f"{where}: {lacking_column(name, [other for other in names if other])}")
    named = [name for name in names if name]
    if len(set(named)) != len(named):
        raise UsageError(f"{where}: column names must be unique, got {', '.join(named)}.")
    return names


def lacking_column(name: str, names: Sequence[str]) -> str:
    """`no column named label (columns: path, lable). Did you mean 'lable'?`, for a message."""
    near = difflib.get_close_matches(name.lower(), [other.lower() for other in names], 1)
    meant = f" Did you mean {next(other for other in names if other.lower() == near[0])!r}?" if near else ""
    return f"no column named {name} (columns: {', '.join(names) or 'none'}).{meant}"


def _about_unnamed(source: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A note on columns without a name that hold something, but for the first, which numbers the rows."""
    filled = [i + 1 for i, name in enumerate(names) if i and not name and any(cells[i].strip() for cells in rows)]
    if not filled:
        return []
    counted = f"column {filled[0]} has" if len(filled) == 1 else f"columns {', '.join(map(str, filled))} have"
    return [f"{source}: {counted} no name and {'is' if len(filled) == 1 else 'are'} left away."]


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
