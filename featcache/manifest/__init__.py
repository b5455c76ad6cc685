"""Where images come from: a folder, a folder of classes, a CSV, or one file. Lists and names; opens no image.

With one exception: DICOM files often have no suffix, or a number, as in names made of UIDs. The first 132 bytes of such
a file, if it is a regular one and no link, decide.

`image_id` is the path relative to the folder given, with `/` between its parts: the same base name in two folders is
two images. Names keep their bytes, also when they are not UTF-8 (surrogateescape). Files that are not images are
skipped and counted by reason, never silently.

    tables      a CSV as texts, by line and column
    sources     known collections of chest X-rays as manifests
    checking    what a folder of images holds, before a pass
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from featcache import durable, missing
from featcache.errors import UsageError, from_os_error, in_our_words
from featcache.images import dicom
from featcache.manifest import tables
from featcache.manifest.tables import Table
from featcache.missing import is_missing, is_prose, without_missing
from featcache.names import is_utf8
from featcache.splits import split_name

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".dcm", ".dicom"}
)
_JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx", "dicomdir"})
_NO_SUFFIX = re.compile(r"(\.\d*)?")  # what `splitext` leaves of IM0001 and of 1.2.840.113619.2
_DICOM_HEAD = 132  # bytes
_RESERVED = frozenset({"image_id", "path"})


@dataclass(frozen=True)
class Manifest:
    """A table of n images. Column values are text; an empty text is a missing value."""

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

    @property
    def ungrouped(self) -> list[str]:
        """The images that a group pattern did not match."""
        if not self.n_ungrouped:
            return []
        rows = zip(self.image_ids, self.columns["group"], strict=True)
        return [image_id for image_id, group in rows if group == image_id]

    @classmethod
    def read(cls, source: Path | str, group_pattern: str | None = None, allow_outside: bool = False) -> "Manifest":
        """The manifest of a folder, of a CSV file, or of one image. The quote that `write` puts before what a
        spreadsheet would take for a formula is taken off.

        Args:
            source: a folder (classes are its first level, or its second below `train`, `val`, `test`); a `.csv` with a
                column `path`, relative to the file, and optionally `image_id`, `label`, `group`, `split` and others; or
                the file of an image, which is then the only one, by its name and without a label.
            group_pattern: searched in each `image_id`; its captured parts joined by `/` become the `group`.
            allow_outside: follow links and CSV paths that lead out of the folder.

        Raises:
            UsageError: nothing there, no image found, a malformed CSV (with line and column), a bad pattern.
        """
        manifest = _without_missing(_from(Path(source)))
        if not allow_outside:
            manifest = replace(manifest, refused=outside(manifest))
        return manifest if group_pattern is None else _with_groups(manifest, group_pattern)

    def write(self, path: Path | str) -> None:
        """Writes a CSV from which `read` has the same names, files and columns.

        Paths are relative to its folder, which is made if it is missing: where images are not below it, reading needs
        `allow_outside`. Where names are not the paths, the CSV has both, and what is read has a column `path`, too.

        Raises:
            UsageError: a name without .csv; a text that no CSV brings back as it is, with row and column: bytes that
                are not UTF-8, a name that begins with a blank, a word for a missing value.
            NoSpace, AccessDenied, InputOutputError: nothing changed at `path`.
        """
        path = Path(path)
        if path.suffix.lower() != ".csv":
            raise UsageError(f"{path}: the name of a manifest ends with .csv.")
        paths = [_relative(each, path.parent) for each in self.paths]
        names = {} if [name_of(each) for each in paths] == self.image_ids else {"image_id": self.image_ids}
        others = {name: values for name, values in self.columns.items() if name not in _RESERVED}
        cells = {**names, "path": paths, **others}
        _check_readable(path, cells)
        with in_our_words("making", path.parent):
            durable.make_folders(path.parent)
        durable.write_csv(path, list(cells), zip(*cells.values(), strict=True))


def _without_missing(manifest: Manifest) -> Manifest:
    """With words for missing values as empty texts, and a note of them; also where they are names of folders."""
    words = {name: missing.words(texts, is_prose(name)) for name, texts in manifest.columns.items()}
    columns = {name: without_missing(texts, is_prose(name)) for name, texts in manifest.columns.items()}
    return replace(manifest, columns=columns, notes=[*manifest.notes, *missing.notes(manifest.source, words)])


def _from(source: Path) -> Manifest:
    if source.is_dir():
        return _from_folder(source)
    if not source.exists():
        raise UsageError(f"{source} does not exist: a folder of images, a .csv file or an image is expected.")
    if source.is_file() and source.suffix.lower() == ".csv":
        return _from_csv(source)
    if source.is_file() and _is_image(source):
        return Manifest([source.name], [source], {}, source)
    suffixes = " ".join(sorted(IMAGE_SUFFIXES))
    raise UsageError(f"{source} is neither a folder nor a .csv file, and no image by its name ({suffixes}).")


def _is_image(path: Path) -> bool:
    """Whether a file that was named itself is one, by its suffix, or without one by its first bytes."""
    suffix = os.path.splitext(path.name)[1].lower()
    if suffix in IMAGE_SUFFIXES or not _NO_SUFFIX.fullmatch(suffix):
        return suffix in IMAGE_SUFFIXES
    with in_our_words("reading", path), open(path, "rb") as file:
        return dicom.is_dicom(file.read(_DICOM_HEAD))


# --- a folder ---------------------------------------------------------------------------------------------------------


def _from_folder(root: Path) -> Manifest:
    skipped: Counter[str] = Counter()
    unreadable: list[str] = []
    image_ids = sorted(_walk(root, skipped, unreadable))
    if not image_ids:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError(
            f"found 0 images under {root} (looked for {suffixes} and DICOM files without a suffix; skipped "
            f"{_told(skipped) or 'nothing'})."
        )
    folders = [image_id.split("/")[:-1] for image_id in image_ids]
    splits = [split_name(parts[0]) or "" if parts else "" for parts in folders]
    columns: dict[str, list[str]] = {}
    if _is_split_tree(folders, splits):
        columns["split"] = splits
        folders = [parts[1:] if split else [] for parts, split in zip(folders, splits, strict=True)]
    if any(folders):
        columns["label"] = [parts[0] if parts else "" for parts in folders]
    paths = [root / image_id for image_id in image_ids]
    notes = [_about_unreadable(sorted(unreadable))] if unreadable else []
    return Manifest(image_ids, paths, columns, root, dict(skipped), unreadable_folders=sorted(unreadable), notes=notes)


def _about_unreadable(folders: list[str]) -> str:
    which = "1 folder cannot" if len(folders) == 1 else f"{len(folders):,} folders cannot"
    return f"{which} be listed, for example {folders[0]}: what is in there is not among these images."


def _told(skipped: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in skipped.items())


def _is_split_tree(folders: list[list[str]], splits: list[str]) -> bool:
    """Whether `train`, `val`, `test` stand above the classes: all folders are so named, or those that are hold folders.
    An image or folder beside them has then neither split nor label; a class that happens to be called test is a class.
    """
    inside = [(parts, split) for parts, split in zip(folders, splits, strict=True) if parts]
    return bool(inside) and (
        all(split for _, split in inside) or any(split and len(parts) > 1 for parts, split in inside)
    )


def _walk(root: Path, skipped: Counter[str], unreadable: list[str]) -> Iterator[str]:
    """image_ids below root; links to folders are not followed, so no loop can catch it."""
    folders = [""]
    while folders:
        below = folders.pop()
        try:
            entries = list(os.scandir(root / below))
        except OSError as error:
            if not below:
                raise from_os_error(error, "listing", root) from error
            skipped["unreadable folder"] += 1
            unreadable.append(below)
            continue
        for entry in entries:
            image_id = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False) and not _is_system(entry.name):
                folders.append(image_id)
            elif reason := _why_skipped(entry):
                skipped[reason] += 1
            else:
                yield image_id


def _is_system(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _why_skipped(entry: os.DirEntry[str]) -> str | None:
    """Why an entry that is not a folder is no image."""
    if _is_system(entry.name):
        return "system file"
    if os.path.isdir(entry):
        return "link to a folder"
    if not os.path.isfile(entry):
        return "not a regular file"
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    return _why_no_dicom(entry) if _NO_SUFFIX.fullmatch(suffix) else "not an image name"


def _why_no_dicom(entry: os.DirEntry[str]) -> str | None:
    """Of a file without a suffix. A link is not opened: it may lead out of the folder, which is decided later."""
    if entry.is_symlink():
        return "not an image name"
    try:
        with open(os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return None if dicom.is_dicom(file.read(_DICOM_HEAD)) else "not an image name"
    except OSError:
        return "unreadable file without a suffix"


# --- a CSV ------------------------------------------------------------------------------------------------------------


def _from_csv(source: Path) -> Manifest:
    table = tables.read(source, required=("path",))
    _check_names(source, table.columns)
    if not len(table):
        raise UsageError(f"{source} has a header and no rows: found 0 images.")
    cells = {name: _read_cells(table, name) for name in table.columns}
    image_ids = cells.get("image_id") or [name_of(path) for path in cells["path"]]
    tables.first_line(source, image_ids, table.lines)
    implied = _RESERVED if "image_id" not in cells else {"image_id"}  # a path is kept where it is not the name
    columns = {name: values for name, values in cells.items() if name not in implied}
    return Manifest(image_ids, [source.parent / path for path in cells["path"]], columns, source)


def name_of(path: str) -> str:
    """What an image is called that has no other name than its path."""
    return os.path.normpath(path).replace(os.sep, "/")


def _check_names(source: Path, names: Iterable[str]) -> None:
    if unusable := [name for name in names if "/" in name or name.startswith(".")]:
        raise UsageError(f"{source}, line 1: a column cannot be named {unusable[0]!r} (no '/' and no leading '.').")


def _read_cells(table: Table, name: str) -> list[str]:
    """The texts of a column. A split gets its standard spelling; a path and an image_id may not be missing."""
    cells = table.columns[name] if name == "path" else table.cells(name)  # a file's name may begin with a blank
    return [_read_cell(table.where(row, name), name, cell) for row, cell in enumerate(cells)]


def _read_cell(where: str, name: str, cell: str) -> str:
    value = durable.text_of(cell)
    if "\0" in value or len(value) > tables.MAX_CELL:
        raise UsageError(f"{where}: a zero byte, or more than {tables.MAX_CELL:,} characters.")
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


# --- both -------------------------------------------------------------------------------------------------------------


def outside(manifest: Manifest) -> dict[str, str]:
    """The images whose path, links followed, is not below the folder of the source; never one that is the source."""
    if manifest.paths == [manifest.source]:
        return {}
    folder = manifest.source if manifest.source.is_dir() else manifest.source.parent
    inside = os.path.join(os.path.realpath(folder), "")  # ends with one separator, also where the folder is /
    return {
        image_id: "leads out of the folder (allow it with --allow-outside)"
        for image_id, path in zip(manifest.image_ids, manifest.paths, strict=True)
        if not os.path.realpath(path).startswith(inside)
    }


def _with_groups(manifest: Manifest, pattern: str) -> Manifest:
    if "group" in manifest.columns:
        raise UsageError(f"{manifest.source} has a column group already: drop it, or drop --group-pattern.")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--group-pattern {pattern!r} is not a regular expression: {error}.") from error
    if compiled.groups == 0:
        raise UsageError(f"--group-pattern {pattern!r} captures nothing: put the part that names the group in (…).")
    matches = [compiled.search(image_id) for image_id in manifest.image_ids]
    captured = ["/".join(part for part in match.groups() if part) if match else "" for match in matches]
    groups = [group or image_id for group, image_id in zip(captured, manifest.image_ids, strict=True)]
    return replace(manifest, columns={**manifest.columns, "group": groups}, n_ungrouped=captured.count(""))
