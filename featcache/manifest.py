"""Where images come from: a folder, a folder of classes, or a CSV. Lists and names; opens no image.

With one exception: DICOM files often have no suffix, or a number, as in names made of UIDs. The first 132 bytes of such
a file, if it is a regular one and no link, decide.

`image_id` is the path relative to the folder given, with `/` between its parts: the same base name in two folders is
two images. Names keep their bytes, also when they are not UTF-8 (surrogateescape). Files that are not images are
skipped and counted by reason, never silently.
"""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from featcache import dicom
from featcache.errors import UsageError, from_os_error, in_our_words
from featcache.splits import split_name

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".dcm", ".dicom"}
)
_JUNK = frozenset({"thumbs.db", "desktop.ini", "__macosx", "dicomdir"})
_NO_SUFFIX = re.compile(r"(\.\d*)?")  # what `splitext` leaves of IM0001 and of 1.2.840.113619.2
_DICOM_HEAD = 132  # bytes
_NOT_A_LABEL = frozenset({"nan", "na", "n/a", "null", "none"})
_MAX_CELL = 16_384  # characters; text is kept at fixed length, so the longest cell decides the size of a column
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
    unreadable_folders: list[str] = field(default_factory=list)  # what lies in them is not known; counted in `skipped`
    n_ungrouped: int = 0  # images a group pattern did not match: each is its own group

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def read(cls, source: Path | str, group_pattern: str | None = None, allow_outside: bool = False) -> "Manifest":
        """The manifest of a folder or of a CSV file.

        Args:
            source: a folder (classes are its first level, or its second below `train`, `val`, `test`), or a `.csv` with
                a column `path`, relative to the file, and optionally `image_id`, `label`, `group`, `split` and others.
            group_pattern: searched in each `image_id`; its captured parts joined by `/` become the `group`.
            allow_outside: follow links and CSV paths that lead out of the folder.

        Raises:
            UsageError: nothing there, no image found, a malformed CSV (with line and column), a bad pattern.
        """
        source = Path(source)
        if source.is_dir():
            manifest = _from_folder(source)
        elif source.is_file() and source.suffix.lower() == ".csv":
            manifest = _from_csv(source)
        else:
            raise UsageError(f"{source} is neither a folder nor a .csv file.")
        if not allow_outside:
            manifest = replace(manifest, refused=_outside(manifest))
        return manifest if group_pattern is None else _with_groups(manifest, group_pattern)


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
    return Manifest(image_ids, paths, columns, root, dict(skipped), unreadable_folders=sorted(unreadable))


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
    text = _csv_text(source)
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = _checked_header(source, rows.fieldnames)
        records = [(rows.line_num, row) for row in rows]
    except csv.Error as error:
        raise UsageError(f"{source}, line {rows.line_num + 1}: not a CSV ({error}).") from error
    if not records:
        raise UsageError(f"{source} has a header and no rows: found 0 images.")
    table = {name: [_cell(source, line, name, row) for line, row in records] for name in names}
    lines = [line for line, _ in records]
    image_ids = table.get("image_id") or [os.path.normpath(path).replace(os.sep, "/") for path in table["path"]]
    _check_unique(source, image_ids, lines)
    implied = _RESERVED if "image_id" not in table else {"image_id"}  # a path is kept where it is not the name
    columns = {name: values for name, values in table.items() if name not in implied}
    return Manifest(image_ids, [source.parent / path for path in table["path"]], columns, source)


def _csv_text(source: Path) -> str:
    """The text of a CSV in UTF-8, with or without a byte order mark."""
    try:
        with in_our_words("reading", source):
            return source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise UsageError(f"{source}, line {line}: not UTF-8 (byte {byte:#04x}); save it as UTF-8.") from error


def _checked_header(source: Path, header: object) -> list[str]:
    names = [str(name).strip() for name in header] if isinstance(header, list) else []
    if any("\0" in name for name in names):
        raise UsageError(f"{source}, line 1: a column name has a zero byte.")
    if "path" not in names:
        raise UsageError(f"{source}, line 1: no column named path (columns: {', '.join(names) or 'none'}).")
    if len(set(names)) != len(names) or "" in names:
        raise UsageError(f"{source}, line 1: column names must be unique and not empty, got {', '.join(names)}.")
    if unusable := [name for name in names if "/" in name or name.startswith(".")]:
        raise UsageError(f"{source}, line 1: a column cannot be named {unusable[0]!r} (no '/' and no leading '.').")
    return names


def _cell(source: Path, line: int, name: str, row: dict[str | None, str | list[str] | None]) -> str:
    """The text of a cell. A split gets its standard spelling; a path may not be empty, nor a label be 'nan'."""
    where = f"{source}, line {line}, column {name}"
    by_name = {key.strip() if isinstance(key, str) else key: value for key, value in row.items()}
    value = by_name.get(name)
    if None in by_name or not isinstance(value, str):
        raise UsageError(f"{source}, line {line}: the number of cells is not that of the header.")
    if "\0" in value or len(value) > _MAX_CELL:
        raise UsageError(f"{where}: a zero byte, or more than {_MAX_CELL:,} characters.")
    value = value.strip() if name != "path" else value
    if name in _RESERVED and not value:
        raise UsageError(f"{where}: empty.")
    if name == "label" and value.lower() in _NOT_A_LABEL:
        raise UsageError(f"{where}: the label is {value!r}. Leave the cell empty if the label is unknown.")
    if name == "split" and value:
        if (standard := split_name(value)) is None:
            raise UsageError(f"{where}: {value!r} is not train, val or test.")
        return standard
    return value


def _check_unique(source: Path, image_ids: list[str], lines: list[int]) -> None:
    first: dict[str, int] = {}
    for image_id, line in zip(image_ids, lines, strict=True):
        if image_id in first:
            raise UsageError(f"{source}, line {line}: {image_id!r} stands already at line {first[image_id]}.")
        first[image_id] = line


# --- both -------------------------------------------------------------------------------------------------------------


def _outside(manifest: Manifest) -> dict[str, str]:
    """The images whose path, links followed, is not below the folder of the source."""
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
