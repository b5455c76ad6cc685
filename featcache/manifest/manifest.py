"""Where images come from: a folder, a folder of classes, a CSV, or one file. Lists and names; opens no image, except
to see whether a file without a suffix is DICOM.

`image_id` is the path relative to the folder given, with `/` between its parts: the same base name in two folders is
two images. Names keep their bytes, also when they are not UTF-8 (surrogateescape). Files that are not images are
skipped and counted by reason, never silently.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featcache import durable
from featcache.errors import UsageError
from featcache.manifest.columns import about_absent, about_label, about_renamed, names_in, no_path
from featcache.manifest.companions import companions, twins
from featcache.manifest.layout import read_layout
from featcache.manifest.listing import COMPANION, IMAGE_SUFFIXES, Listing, in_words, is_image, list_images
from featcache.names import from_system, is_utf8, printable, to_system
from featcache.specs import ColumnSpec
from featcache.splits import split_name
from featcache.tables import formats, missing
from featcache.tables.missing import VALUE_COLUMNS, is_missing, is_prose, without_missing
from featcache.tables.table import MAX_CELL, Table, first_line, read_table

_RESERVED = frozenset({"image_id", "path"})
_SHOWN_FIRST = {name: place for place, name in enumerate(("split", "label", "group"))}
_MOST_LINES, _MOST_VALUES, _MOST_LETTERS = 8, 8, 40  # of what a manifest prints as


@dataclass(frozen=True, repr=False)
class Manifest:
    """A table of n images. Column values are text; an empty text is a missing value. Prints as one screen."""

    image_ids: list[str]
    paths: list[Path]
    columns: dict[str, list[str]]  # "label", "group", "split" and whatever a CSV brought; each of length n
    source: Path
    skipped: dict[str, int] = field(default_factory=dict)  # files that are not images, by reason
    refused: dict[str, str] = field(default_factory=dict)  # image_id -> why its path may not be followed
    unreadable_folders: list[str] = field(default_factory=list)  # what is in them is not known; counted in `skipped`
    n_ungrouped: int = 0  # images a group pattern did not match: each is its own group
    notes: list[str] = field(default_factory=list)  # what was guessed or may have been meant: full sentences

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return "\n".join(printable(line) for line in _described(self))

    @property
    def ungrouped(self) -> list[str]:
        """The images that a group pattern did not match."""
        if not self.n_ungrouped:
            return []
        rows = zip(self.image_ids, self.columns["group"], strict=True)
        return [image_id for image_id, group in rows if group == image_id]

    @classmethod
    def read(
        cls,
        source: Path | str,
        group_pattern: str | None = None,
        allow_outside: bool = False,
        columns: ColumnSpec = ColumnSpec(),
    ) -> "Manifest":
        """The manifest of a folder, of a table, or of one image. The quote that `write` puts before what a spreadsheet
        would take for a formula is taken off.

        Args:
            source: a folder, a table, or the file of an image, which is then the only one, by its name and without a
                label. Of a folder, the folders in it are subsets and classes, as `layout` reads them; what lies between
                images and is none is skipped and counted. A table (CSV or Excel workbook) has a column `path`, relative
                to the file, and optionally `image_id`, `label`, `group`, `split` and others. What was guessed is in
                `notes`.
            group_pattern: searched in each `image_id`; its captured parts joined by `/` become the `group`.
            allow_outside: follow links and CSV paths that lead out of the folder.
            columns: the names that these columns have in the table, where they are others.

        Raises:
            UsageError: nothing there, no image found, a malformed CSV (with line and column), a bad pattern.
        """
        manifest = _without_missing(_from(Path(source), allow_outside, columns))
        if not allow_outside:
            manifest = replace(manifest, refused=outside(manifest))
        return manifest if group_pattern is None else _with_groups(manifest, group_pattern)

    def write(self, path: Path | str) -> None:
        """Writes a CSV from which `read` has the same names, files and columns.

        Paths are relative to its folder, which is made if it is missing: where images are not below it, reading needs
        `allow_outside`. Where names are not the paths, the CSV has both, and what is read has a column `path`, too.

        Raises:
            UsageError: a name without .csv; a text that no CSV brings back as it is, with row and column: bytes that
                are not UTF-8, a name that begins with a blank, a word for a missing value; somebody else's file at
                `path`.
            StoreLocked: another process is writing at `path`.
            NoSpace, AccessDenied, InputOutputError: nothing changed at `path`.
        """
        path = Path(path)
        if path.suffix.lower() != ".csv":
            raise UsageError(f"{path}: the name of a manifest ends with .csv.")
        paths = [_relative(image_path, path.parent) for image_path in self.paths]
        names = {} if [name_of(path) for path in paths] == self.image_ids else {"image_id": self.image_ids}
        extra_columns = {name: values for name, values in self.columns.items() if name not in _RESERVED}
        cells = {**names, "path": paths, **extra_columns}
        _check_readable(path, cells)
        with durable.output(path, _is_manifest, "manifest"):
            durable.write_csv(path, list(cells), zip(*cells.values(), strict=True))


def _is_manifest(path: Path) -> bool:
    """Whether a table has the columns that are written first."""
    with durable.open_regular(path) as file:
        first = file.readline(1 << 16).decode("utf-8-sig", "replace").rstrip("\r\n").split(",")
    return "path" in first[:2]


def _without_missing(manifest: Manifest) -> Manifest:
    """With words for missing values as empty texts, and a note of them; also where they are names of folders."""
    words = {name: missing.words(texts, is_prose(name)) for name, texts in manifest.columns.items()}
    columns = {name: without_missing(texts, is_prose(name)) for name, texts in manifest.columns.items()}
    return replace(manifest, columns=columns, notes=[*manifest.notes, *missing.notes(manifest.source, words)])


def _from(source: Path, allow_outside: bool, columns: ColumnSpec) -> Manifest:
    if columns.named and not formats.is_table(source):
        raise UsageError(
            f"{next(iter(columns.named))} is for a table (.csv .tsv .xlsx, or .csv.gz), and {source} is none."
        )
    if source.is_dir():
        return _from_folder(source, allow_outside)
    if not source.exists():
        raise UsageError(f"{source} does not exist: a folder of images, a .csv file or an image is expected.")
    if formats.is_table(source):
        return _from_table(source, columns)
    if source.is_file() and is_image(source):
        return Manifest([from_system(source.name)], [source], {}, source)
    kind = formats.kind_of(source) if source.is_file() else ""
    lead = f"{source} is {kind}" if kind else f"{source} is neither a folder nor a table, and no image by its name"
    suffixes = " ".join(sorted(IMAGE_SUFFIXES))
    raise UsageError(f"{lead}: a folder, a table (.csv .tsv .xlsx, or .csv.gz) or an image ({suffixes}) is expected.")


# --- a folder ---------------------------------------------------------------------------------------------------------


def _from_folder(root: Path, allow_outside: bool) -> Manifest:
    listing = list_images(root, follow_links=allow_outside)
    set_aside = companions(sorted(listing.paths))
    image_ids = sorted(listing.paths.keys() - set(set_aside))
    skipped = dict(listing.skipped) | ({COMPANION: len(set_aside)} if set_aside else {})
    notes = [*_about_folders(listing), *_about_companions(set_aside)]
    if not image_ids:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        looked = f"looked for {suffixes} and DICOM files without a suffix; skipped {in_words(skipped) or 'nothing'}"
        raise UsageError(" ".join([f"found 0 images under {root} ({looked}).", *notes]))
    notes += _about_twins(twins(image_ids))
    layout = read_layout(image_ids, listing.without_images(), root.absolute().name)
    paths = [listing.paths[name] for name in image_ids]
    unreadable = sorted(listing.unreadable)
    return Manifest(
        image_ids, paths, layout.columns, root, skipped, unreadable_folders=unreadable, notes=[*notes, *layout.notes]
    )


def _about_folders(listing: Listing) -> Iterator[str]:
    """Folders in which nobody has looked."""
    if names := listing.unreadable:
        are = "1 folder cannot" if len(names) == 1 else f"{len(names):,} folders cannot"
        yield f"{are} be listed, for example {min(names)}: what is in there is not among these images."
    if names := listing.links:
        lead = "1 link to a folder leads" if len(names) == 1 else f"{len(names):,} links to folders lead"
        them = "it" if len(names) == 1 else "them"
        yield f"{lead} out of the given folder, for example {min(names)}: only allow_outside follows {them}."


def _about_companions(names: Sequence[str]) -> Iterator[str]:
    if names:
        are = "1 file is" if len(names) == 1 else f"{len(names):,} files are"
        yield (
            f"{are} skipped as masks, annotations or thumbnails of images with the same name, for example {names[0]}; "
            f"to read them, give their folder itself, or a CSV."
        )


def _about_twins(pairs: Sequence[Sequence[str]]) -> Iterator[str]:
    if pairs:
        names = "1 name is" if len(pairs) == 1 else f"{len(pairs):,} names are"
        yield (
            f"{names} there with more than one suffix, for example {' and '.join(pairs[0])}. If they are the same "
            f"images, remove one of each, or they are counted twice and may fall into two subsets."
        )


# --- a CSV ------------------------------------------------------------------------------------------------------------


def _from_table(source: Path, spec: ColumnSpec) -> Manifest:
    requested = list(spec.named.values())
    standard = ("path", "image_id", *VALUE_COLUMNS)
    table = read_table(source, requested, standard, header=[spec.path_column or "path", *requested])
    names = names_in(table, spec)
    if "path" not in names:
        raise UsageError(f"{source}, line 1: {no_path(table)}")
    if not len(table):
        raise UsageError(f"{source} has a header and no rows: found 0 images.")
    cells = {name: _read_cells(table, name, in_table) for name, in_table in names.items()}
    image_ids = cells.get("image_id") or [name_of(path) for path in cells["path"]]
    first_line(source, image_ids, table.lines)
    implied = _RESERVED if "image_id" not in cells else {"image_id"}  # a path is kept where it is not the name
    columns = {name: values for name, values in cells.items() if name not in implied}
    paths = [source.parent / to_system(path) for path in cells["path"]]
    notes = [*table.notes, *about_label(source, list(names)), *about_renamed(source, names)]
    notes += about_absent(source, dict(zip(cells["path"], paths, strict=True)))
    return Manifest(image_ids, paths, columns, source, notes=notes)


def name_of(path: str) -> str:
    """What an image is called that has no other name than its path."""
    return os.path.normpath(path).replace(os.sep, "/")


def _check_names(source: Path, names: Iterable[str]) -> None:
    if unusable := [name for name in names if "/" in name or name.startswith(".")]:
        raise UsageError(f"{source}, line 1: a column cannot be named {unusable[0]!r} (no '/' and no leading '.').")


def _read_cells(table: Table, name: str, in_table: str) -> list[str]:
    """The texts of a column. A split gets its standard spelling; a path and an image_id may not be missing."""
    cells = table.columns[in_table] if name == "path" else table.cells(in_table)  # a name may begin with a blank
    return [_read_cell(table.where(row, in_table), name, cell) for row, cell in enumerate(cells)]


def _read_cell(where: str, name: str, cell: str) -> str:
    value = durable.text_of(cell)
    if "\0" in value or len(value) > MAX_CELL:
        raise UsageError(f"{where}: a zero byte, or more than {MAX_CELL:,} characters.")
    if name in _RESERVED and is_missing(value, prose=True):
        raise UsageError(f"{where}: {f'{value!r}, a word for a missing value' if value.strip() else 'empty'}.")
    if name == "split" and not is_missing(value):
        if (standard := split_name(value)) is None:
            raise UsageError(f"{where}: {value!r} is not train, val or test.")
        return standard
    return value


def _relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder. Where it is not below it as both are written, links are followed first: the system
    takes `..` as the folder above where a link leads, not above the link."""
    path, folder = Path.cwd() / path, Path.cwd() / folder
    if ".." not in path.parts and path.is_relative_to(folder):
        return os.fspath(path.relative_to(folder))
    return os.path.relpath(os.path.join(os.path.realpath(path.parent), path.name), os.path.realpath(folder))


def _check_readable(path: Path, cells: dict[str, list[str]]) -> None:
    """Raises UsageError for a text that would not be read as what it is, or not at all."""
    _check_names(path, cells)
    for name, values in cells.items():
        for row, value in enumerate(values):
            where = f"{path}, row {row + 1}, column {name}"
            written = durable.cell(value)
            if value and name not in _RESERVED and is_missing(value, is_prose(name)):
                raise UsageError(f"{where}: {value!r} would be read as a missing value. Rename it.")
            if _read_cell(where, name, written if name == "path" else written.strip()) != value:
                raise UsageError(f"{where}: {value!r} would be read as another text (blanks at an end?). Rename it.")
            if not is_utf8(value):
                raise UsageError(f"{where}: {value!r} is not UTF-8, as a CSV has to be. Rename it.")


# --- what it prints as ------------------------------------------------------------------------------------------------


def _described(manifest: Manifest) -> Iterator[str]:
    """Lines of limited number and length: counts of each column, what is not among the images, notes."""
    yield f"Manifest of {manifest.source}: {len(manifest):,} {'image' if len(manifest) == 1 else 'images'}"
    for name in sorted(manifest.columns, key=lambda name: _SHOWN_FIRST.get(name, len(_SHOWN_FIRST)))[:_MOST_LINES]:
        yield f"  {name[:_MOST_LETTERS]}: {_column_in_words(manifest.columns[name])}"
    if (n_more := len(manifest.columns) - _MOST_LINES) > 0:
        yield f"  and {n_more:,} more columns"
    for title, text in (("skipped", in_words(manifest.skipped)), ("refused", _refused_in_words(manifest.refused))):
        if text:
            yield f"  {title}: {text}"
    yield from (f"  note: {note}" for note in manifest.notes[:_MOST_LINES])
    if (n_more := len(manifest.notes) - _MOST_LINES) > 0:
        yield f"  and {n_more:,} more notes"


def _column_in_words(values: Sequence[str]) -> str:
    """How often each value is there, or how many values there are."""
    counts = Counter(value for value in values if value)
    n_missing = len(values) - counts.total()
    missing = [f"{n_missing:,} missing"] if n_missing else []
    if len(counts) <= _MOST_VALUES and all(len(value) <= _MOST_LETTERS for value in counts):
        return ", ".join([*(f"{value} {n:,}" for value, n in sorted(counts.items())), *missing])
    return ", ".join([f"{len(counts):,} values", *missing])


def _refused_in_words(refused: Mapping[str, str]) -> str:
    if not refused:
        return ""
    name, reason = next(iter(refused.items()))
    return f"{len(refused):,}, for example {name}, which {reason}"


# --- both -------------------------------------------------------------------------------------------------------------


def outside(manifest: Manifest) -> dict[str, str]:
    """The images whose path, links followed, is not below the folder of the source; never one that is the source."""
    if manifest.paths == [manifest.source]:
        return {}
    folder = manifest.source if manifest.source.is_dir() else manifest.source.parent
    inside = os.path.join(os.path.realpath(folder), "")  # ends with one separator, also where the folder is /
    return {
        image_id: "leads out of the folder (`allow_outside` allows it)"
        for image_id, path in zip(manifest.image_ids, manifest.paths, strict=True)
        if not os.path.realpath(path).startswith(inside)
    }


def _with_groups(manifest: Manifest, pattern: str) -> Manifest:
    if "group" in manifest.columns:
        raise UsageError(f"{manifest.source} has a column group already: drop it, or drop `group_pattern`.")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"`group_pattern`={pattern!r} is not a regular expression: {error}.") from error
    if compiled.groups == 0:
        raise UsageError(f"`group_pattern`={pattern!r} captures nothing: put the part that names the group in (…).")
    matches = [compiled.search(image_id) for image_id in manifest.image_ids]
    captured = ["/".join(part for part in match.groups() if part) if match else "" for match in matches]
    groups = [group or image_id for group, image_id in zip(captured, manifest.image_ids, strict=True)]
    return replace(manifest, columns={**manifest.columns, "group": groups}, n_ungrouped=captured.count(""))
