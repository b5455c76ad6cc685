"""The file of a table as records of texts: CSV in any common dress, or an Excel workbook. What it is, its content says.

A delimiter of comma, semicolon, tab or bar, UTF-8 or UTF-16, packed with gzip or not: all are read without being asked
for, because spreadsheets of different languages and R write each of them. A suffix decides nothing. What cannot be read
is called by its name ("is a Parquet file"). At most `MAX_BYTES` are unpacked: 100 kB of gzip may be a gigabyte.
"""

import csv
import datetime
import gzip
import io
import itertools
import os
import re
import stat
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.errors import UsageError, from_os_error, in_our_words

MAX_BYTES = 1 << 29  # of text, after unpacking; the largest table of a public chest X-ray collection has 0.15 GB
MAX_CELLS = 20_000_000  # of a sheet
DELIMITERS = ",\t;|"
_MOST_ABOVE = 10  # records among which the header is looked for

_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_KINDS = (  # the first bytes, and what a file with them is
    (b"PAR1", "a Parquet file"), (b"ARROW1", "an Arrow file"), (b"FEA1", "a Feather file"),
    (b"\x89HDF\r\n", "an HDF5 file"), (b"SQLite format 3", "an SQLite database"), (b"\x93NUMPY", "a NumPy array"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook of before 2007, or another old Office file"), (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG image"), (b"\xff\xd8\xff", "a JPEG image"), (b"GIF8", "a GIF image"),
    (b"II*\0", "a TIFF image"), (b"MM\0*", "a TIFF image"), (b"BZh", "a bzip2 archive"), (b"\xfd7zXZ", "an xz archive"),
    (b"(\xb5/\xfd", "a Zstandard archive"), (b"7z\xbc\xaf", "a 7z archive"), (b"Rar!", "a RAR archive"),
    (b"\x80\x02", "a Python pickle"), (b"\x80\x03", "a Python pickle"), (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"), (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
)  # fmt: skip
_MARKUP = (("{", "JSON"), ("[", "JSON"), ("<!doctype html", "a web page"), ("<html", "a web page"), ("<?xml", "XML"))
_MEMBERS = (  # of a ZIP archive
    ("xl/workbook.bin", "a binary Excel workbook (.xlsb)"), ("word/document.xml", "a Word document"),
    ("content.xml", "an OpenDocument file"), ("[Content_Types].xml", "an Office document"),
)  # fmt: skip
_MARKS = (("utf-8-sig", b"\xef\xbb\xbf"), ("utf-32", b"\xff\xfe\0\0"), ("utf-32", b"\0\0\xfe\xff"),
          ("utf-16", b"\xff\xfe"), ("utf-16", b"\xfe\xff"))  # fmt: skip
_STATED = re.compile(r'"?sep=(.)"?(?=[\r\n])')  # Excel's first line
_DAMAGED = (
    *(KeyError, ValueError, TypeError, AttributeError, IndexError, OSError, EOFError, SyntaxError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)


@dataclass(frozen=True)
class Records:
    """The records of a table that are not blank.

    Attributes:
        lines: the line on which each record begins, from 1; the row in a workbook.
        cells: the texts of each record; the first record is the header.
        notes: what was chosen, in full sentences.
    """

    lines: list[int]
    cells: list[list[str]]
    notes: list[str] = field(default_factory=list)


def read(source: Path, fits: Callable[[Sequence[str]], bool]) -> Records:
    """The records of a file.

    Args:
        source: the file.
        fits: whether a header has the columns that are looked for; decides between delimiters, and between sheets.

    Raises:
        UsageError: not there, a folder, not a table (with what it is), not UTF-8 or not a CSV (with the line), or more
            than `MAX_BYTES`.
        AccessDenied, InputOutputError: it cannot be read.
    """
    data = _content(source)
    if data.startswith(_ZIP):
        return _of_workbook(source, data, fits)
    return _of_text(source, _text(source, data), fits)


def is_table(path: Path) -> bool:
    """Whether a file is read as a table, by its name."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith((".csv", ".tsv", ".xlsx", ".xlsm"))


def kind_of(source: Path) -> str:
    """What a file is that is no table, in words; empty where its first bytes do not say."""
    with in_our_words("reading", source), open(source, "rb") as file:
        return _kind(file.read(1 << 12))


def _kind(data: bytes) -> str:
    if name := next((kind for signature, kind in _KINDS if data.startswith(signature)), ""):
        return name
    if data[128:132] == b"DICM":
        return "a DICOM file"
    if data[257:262] == b"ustar":
        return "a tar archive"
    start = data[:64].decode("latin-1").removeprefix("ï»¿").lstrip().lower()
    return next((kind for mark, kind in _MARKUP if start.startswith(mark)), "")


def _content(source: Path) -> bytes:
    """The bytes of a regular file, unpacked."""
    check_file(source)
    with in_our_words("reading", source), open(source, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if data.startswith(_GZIP):
        data = _unpacked(source, data)
    if len(data) > MAX_BYTES:
        raise UsageError(f"{source} has more than {MAX_BYTES / 1e6:,.0f} MB, unpacked: no table of images is so large.")
    if kind := "packed with gzip twice" if data.startswith(_GZIP) else _kind(data):
        raise UsageError(f"{source} is {kind}; a table is a CSV or an Excel workbook. Save it as CSV.")
    return data


def check_file(source: Path) -> None:
    """Raises UsageError unless a regular file is there, and AccessDenied where that cannot be known."""
    try:
        mode = os.stat(source).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{source}: no such file.") from error
    except OSError as error:
        raise from_os_error(error, "reading", source) from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"{source} is a folder; the file of a table is expected, such as a CSV.")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{source} is a device, a pipe or a socket; the file of a table is expected.")


def _unpacked(source: Path, data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            return packed.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{source} is damaged gzip ({error}). Get it again.") from error


# --- text -------------------------------------------------------------------------------------------------------------


def _text(source: Path, data: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 where a byte order mark or the zero bytes say so."""
    encoding = next((name for name, mark in _MARKS if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and 0 in data[:2] and any(data[:2]):
        encoding = "utf-16-be" if not data[0] else "utf-16-le"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith(("utf-16", "utf-32")):
            raise UsageError(f"{source} is damaged {encoding.upper()}; save it as UTF-8.") from error
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise UsageError(f"{source}, line {line}: not UTF-8 (byte {byte:#04x}); save it as UTF-8.") from error


def _of_text(source: Path, text: str, fits: Callable[[Sequence[str]], bool]) -> Records:
    if stated := _STATED.match(text):
        delimiter, text = stated[1], text[stated.end() :]
    else:
        delimiter = _delimiter(text, fits)
    return _not_blank(_numbered(source, text, delimiter))


def _delimiter(text: str, fits: Callable[[Sequence[str]], bool]) -> str:
    """The one whose header has the columns that are looked for; of several, that with most columns."""
    headers = {delimiter: header(_first(text, delimiter), fits)[1] for delimiter in DELIMITERS}
    return max(DELIMITERS, key=lambda delimiter: (fits(headers[delimiter]), len(headers[delimiter])))


def header(records: Sequence[list[str]], fits: Callable[[Sequence[str]], bool]) -> tuple[int, list[str]]:
    """The number and the cells of the first record that has the expected columns, among the first records, since titles
    and remarks may stand above it. The first of all where none has them."""
    place = next((i for i, cells in enumerate(records[:_MOST_ABOVE]) if fits(cells)), 0)
    return place, records[place] if records else []


def _first(text: str, delimiter: str) -> list[list[str]]:
    """The first records that are not blank; none where they are no CSV."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return list(itertools.islice(filter(_has_text, rows), _MOST_ABOVE))
    except csv.Error:
        return []


def _numbered(source: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it begins on."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise UsageError(f"{source}, line {line}: not a CSV ({error}).") from error
        if cells is None:
            return
        yield line, cells


def _not_blank(numbered: Iterable[tuple[int, list[str]]]) -> Records:
    records = Records([], [])
    for line, cells in numbered:
        if _has_text(cells):
            records.lines.append(line)
            records.cells.append(cells)
    return records


def _has_text(cells: Sequence[str]) -> bool:
    return any(cell.strip().strip("\x1a") for cell in cells)  # DOS ends a file with it


# --- an Excel workbook ------------------------------------------------------------------------------------------------


def _of_workbook(source: Path, data: bytes, fits: Callable[[Sequence[str]], bool]) -> Records:
    _check_archive(source, data)
    try:
        import openpyxl
    except ImportError as error:
        raise UsageError(
            f"{source} is an Excel workbook: reading one needs pip install 'featcache[excel]'. Or save it as CSV."
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of styles and extensions, which hold no cell
            book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
            sheets = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
            first = {sheet.title: _first_rows(source, sheet) for sheet in sheets}
            sheets = [sheet for sheet in sheets if first[sheet.title]]
            if not sheets:
                raise UsageError(f"{source} has no visible sheet with a cell in it.")
            chosen = next((sheet for sheet in sheets if fits(header(first[sheet.title], fits)[1])), sheets[0])
            records = _not_blank(_rows_of(source, chosen))
            _check_formulas(source, data, chosen)
    except UsageError:
        raise
    except _DAMAGED as error:
        raise UsageError(f"{source} is a damaged Excel workbook ({type(error).__name__}). Save it as CSV.") from error
    if len(sheets) > 1:
        records.notes.append(f"{source} has {len(sheets)} sheets, and {chosen.title!r} is the one that is read.")
    return records


def _first_rows(source: Path, sheet: Any) -> list[list[str]]:
    return list(itertools.islice((cells for _, cells in _rows_of(source, sheet) if _has_text(cells)), _MOST_ABOVE))


def _check_formulas(source: Path, data: bytes, sheet: Any) -> None:
    """Raises UsageError where formulas have no value in the file, as programs that compute none leave them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sheets = [name for name in archive.namelist() if name.startswith("xl/worksheets/")]
        if not any(b"<f" in archive.read(name) for name in sheets):
            return
    import openpyxl

    formulas = openpyxl.load_workbook(io.BytesIO(data), read_only=True)[sheet.title]
    formulas.reset_dimensions()
    for row, values in zip(formulas.iter_rows(), sheet.iter_rows(values_only=True), strict=False):
        for cell, value in zip(row, values, strict=False):
            if cell.data_type == "f" and value is None:
                raise UsageError(
                    f"{source}, cell {cell.coordinate}: a formula without its value. Open and save it in Excel or "
                    f"LibreOffice, or save it as CSV."
                )


def _check_archive(source: Path, data: bytes) -> None:
    """Raises UsageError for an archive that is no workbook, or holds more than `MAX_BYTES`."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member.filename: member.file_size for member in archive.infolist()}
    except _DAMAGED as error:
        raise UsageError(f"{source} is a damaged ZIP archive, or a damaged Excel workbook.") from error
    if "xl/workbook.xml" not in members:
        content = next((kind for name, kind in _MEMBERS if name in members), "a ZIP archive")
        raise UsageError(f"{source} is {content}; a table is a CSV or an Excel workbook. Save it as CSV.")
    if sum(members.values()) > MAX_BYTES:
        raise UsageError(f"{source} has more than {MAX_BYTES / 1e6:,.0f} MB, unpacked: no table of images is so large.")


def _rows_of(source: Path, sheet: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows of a sheet with their numbers; all are as long as the first that is not blank, or longer."""
    sheet.reset_dimensions()  # those that a file states may be anything
    n_cells, width = 0, 0
    for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
        cells = [_cell_text(value) for value in row]
        width = width or (len(cells) if _has_text(cells) else 0)
        n_cells += max(len(cells), 1)
        if n_cells > MAX_CELLS:
            raise UsageError(f"{source} has more than {MAX_CELLS:,} cells: no table of images is so large.")
        yield number, cells + [""] * (width - len(cells))


def _cell_text(value: Any) -> str:
    """A cell as Excel writes it to a CSV, with dates as in ISO 8601."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ")
    return str(value)
