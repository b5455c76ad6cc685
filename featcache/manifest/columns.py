"""Which columns of a table are the paths, names, labels, groups and subsets of its images, and where its files are.

A table is taken as it is: its columns are named, not renamed. Where one is needed and not there, the message names the
one that is probably meant. Looks at names and texts, opens no file.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from featcache.errors import UsageError
from featcache.manifest.listing import IMAGE_SUFFIXES
from featcache.specs import ColumnSpec
from featcache.specs.data import LABEL, PATH
from featcache.tables.missing import is_missing
from featcache.tables.table import Table, lacking_column

_LIKE_PATH = re.compile(r"(?i).*(image|img|file|path|dicom|xray|x-ray|scan).*")
_LIKE_LABEL = re.compile(
    r"(?i)(class(es)?|class.?name|labels?|targets?|y|diagnos[ie]s|dx|findings?|finding.labels|category|disease|outcome)"
)
_SHARE = 0.5  # of the cells, or of the files
_PROBED = 5  # names that are looked for
_MOST_FOLDERS = 500
_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")


def names_in(table: Table, spec: ColumnSpec) -> dict[str, str]:
    """By the name that a manifest gives each column, its name in the table. A column of a standard name in whose place
    another is asked for is left away; `Frontal/Lateral` becomes `Frontal_Lateral`, as a store keeps no slash.

    Raises:
        UsageError: two columns would have one name.
    """
    requested = spec.name_of
    own = [name for name in table.columns if name not in requested and name not in requested.values()]
    kept = [_kept_name(name) for name in own]
    if len({*requested, *kept}) < len(requested) + len(kept):
        raise UsageError(f"{table.source}, line 1: two columns would have one name without '/': rename one.")
    return {**requested, **dict(zip(kept, own, strict=True))}


def _kept_name(name: str) -> str:
    plain = name.replace("/", "_")
    return f"_{plain[1:]}" if plain.startswith(".") else plain


def about_renamed(source: Path, names: Mapping[str, str]) -> Iterator[str]:
    """A note on columns that have another name in the manifest than in its table, because of a slash or dot."""
    kept = [(name, own) for name, own in names.items() if own != _kept_name(own) == name]
    if renamed := [f"{name!r} for {own!r}" for name, own in kept]:
        yield f"{source}: names of columns have no '/' and no leading '.', hence {', '.join(renamed)}."


def no_path(table: Table) -> str:
    """What is said of a table without a column `path`."""
    names = list(table.columns)
    of_images = [name for name in names if _share_of_images(table.columns[name]) > _SHARE]
    named_so = [name for name in names if _LIKE_PATH.fullmatch(name)]
    if not (likely := [*of_images, *named_so]):
        return f"{lacking_column(PATH, names)} Name the one with the paths of the images as path_column."
    description = "has names of image files" if of_images else "may have the paths of the images"
    columns = f"no column named {PATH} (columns: {', '.join(names)})."
    return f"{columns} The column {likely[0]!r} {description}: give path_column={likely[0]!r}."


def _share_of_images(cells: Sequence[str]) -> float:
    present = [cell for cell in cells if not is_missing(cell)]
    return sum(os.path.splitext(cell.strip())[1].lower() in IMAGE_SUFFIXES for cell in present) / max(len(present), 1)


def about_label(source: Path, names: Sequence[str]) -> Iterator[str]:
    """A note where a table has no column `label`, and one that is probably meant."""
    if LABEL not in names and (likely := [name for name in names if _LIKE_LABEL.fullmatch(name)]):
        yield (
            f"{source} has no column label, so its images have no class. If the column {likely[0]!r} has the classes, "
            f"give label_column={likely[0]!r}."
        )


# --- files that are not there -----------------------------------------------------------------------------------------


def about_absent(source: Path, files: Mapping[str, Path]) -> Iterator[str]:
    """A note on files of a table that are not there: how many, where they were looked for, and where they may be.

    Args:
        source: the table.
        files: the path in the table, and where it was looked for.
    """
    absent = {cell: path for cell, path in files.items() if not os.path.lexists(path)}
    if not absent:
        return
    folder = os.path.abspath(source.parent)
    first = os.path.abspath(next(iter(absent.values())))
    counted = "1 file is" if len(absent) == 1 else f"{len(absent):,} files are"
    note = f"{counted} not there, of {len(files):,} that {source} names: paths are relative to {folder}, and"
    note += f" the first that is missing is {first}."
    if len(absent) > _SHARE * len(files) and (place := _where(source, list(absent)[:_PROBED])):
        note += f" {place}"
    yield note


def _where(source: Path, cells: Sequence[str]) -> str:
    """In which folder near a table most of some names are."""
    names = [cell.replace("\\", "/").lstrip("/") for cell in cells]
    spellings = [("mend the paths, or move the table.", names)]
    spellings += [("without the folders before it: mend the paths.", [name.rsplit("/", 1)[-1] for name in names])]
    spellings += [("the paths lack the extension.", [name + suffix for name in names]) for suffix in _SUFFIXES]
    for folder in _near(Path(os.path.abspath(source.parent))):
        for advice, spelled in spellings:
            files = [name for name in spelled if os.path.isfile(folder / name)]
            if len(files) > _SHARE * len(spelled):
                return f"Under {folder} there is {files[0]!r}: {advice}"
    return ""


def _near(here: Path) -> Iterator[Path]:
    """Folders below that of a table, then the one above and those below that, the nearest first."""
    n_left = _MOST_FOLDERS
    for top in (here, here.parent):
        level = [top]
        while level and n_left > 0:
            yield from level[:n_left]
            n_left -= len(level)
            level = [entry for folder in level for entry in _folders(folder)][: max(n_left, 0)]


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
