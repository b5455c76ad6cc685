"""COVID-19 collections as manifests: class folders, or the metadata of `ieee8023/covid-chestxray-dataset`.

An image of that collection may have several findings, and they have been written in two ways. In newer releases a
finding is a path from the general to the special (`Pneumonia/Viral/COVID-19`); in older ones it is a list
(`COVID-19, ARDS`). Both are read, also mixed: a finding is a list of paths, and a class is any part of any of them.
"""

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from featcache.errors import UsageError
from featcache.manifest.datasets import Sourced, keyed_table
from featcache.manifest.listing import COMPANION, IMAGE_SUFFIXES
from featcache.manifest.manifest import Manifest, name_of, outside
from featcache.tables.table import Table

_UNKNOWN_FINDINGS = {"todo", "unknown"}
_KEPT = ("finding", "view", "modality", "location", "license")
_SHOWN = 24  # findings in a message
_SEPARATORS = re.compile(r"[,;|+&]|\sand\s")


def covid(
    source: Path | str,
    images: Path | str | None = None,
    *,
    classes: Sequence[str] = (),
    other: str = "",
    modality: str = "X-ray",
    group_pattern: str | None = None,
) -> Sourced:
    """A COVID-19 collection: a folder of class folders (two, four, any number), or the `metadata.csv` of
    `ieee8023/covid-chestxray-dataset` (Cohen et al. 2020).

    Args:
        source: the folder, or the CSV.
        images: the folder to which `folder` and `filename` of the CSV are relative; None for that of the CSV.
        classes: parts of findings, or names of class folders, in any case. The first of them that a finding has is the
            label of the image, so the special ones come first: COVID-19, Viral, Bacterial, "No Finding". Without any,
            the label is the last part, of several findings that of the first.
        other: label of the images that have none of `classes`; empty gives them none.
        modality: rows of another one (CT) are left away; empty keeps all.
        group_pattern: for a folder, as in `Manifest.read`.

    Returns:
        label and finding; of the CSV also group (the patient), view, and modality, location and license where it has
        them. The notes of the manifest say what was decided.
        Counts: `rows` of the CSV, and why there is no image of them: `other_modality`, `volume` (NIfTI and the like),
        `missing`, `repeated`; images of `no_label`; `masks` in folders of that name, which are no X-rays.

    Raises:
        UsageError: a CSV that cannot be read, with line and column; a class that nothing has; no image at all.
    """
    source = Path(source)
    if source.is_dir():
        manifest, counts = _covid_folder(source, group_pattern)
    else:
        manifest, counts = _covid_csv(source, Path(images) if images is not None else source.parent, modality)
    findings, notes = manifest.columns["finding"], list(manifest.notes)
    if classes:
        labels = _of_classes(source, findings, classes, other, notes)
    else:
        labels = manifest.columns.get("label") or _last_parts(findings, notes)
    manifest = replace(manifest, columns={**manifest.columns, "label": labels}, notes=notes)
    return Sourced(manifest, {**counts, "no_label": labels.count("")})


def _covid_folder(folder: Path, group_pattern: str | None) -> Sourced:
    manifest = Manifest.read(folder, group_pattern)
    kept = [row for row, name in enumerate(manifest.image_ids) if "masks" not in name.lower().split("/")[:-1]]
    n_masks = len(manifest) - len(kept) + manifest.skipped.get(COMPANION, 0)
    manifest = _rows(manifest, kept)
    n_classes = len(set(manifest.columns.get("label", [])) - {""})
    if n_classes < 2:
        raise UsageError(f"{folder} has {n_classes} folder(s) of classes with images in them, two at least are needed.")
    columns = {**manifest.columns, "finding": manifest.columns["label"]}
    return Sourced(replace(manifest, columns=columns), {"masks": n_masks})


def _rows(manifest: Manifest, rows: Sequence[int]) -> Manifest:
    """Some rows of a manifest, in this order."""
    image_ids, paths = [manifest.image_ids[row] for row in rows], [manifest.paths[row] for row in rows]
    columns = {name: [values[row] for row in rows] for name, values in manifest.columns.items()}
    refused = {name: manifest.refused[name] for name in image_ids if name in manifest.refused}
    own = sum(map(str.__eq__, image_ids, columns.get("group", [])))  # an image no pattern matches is its own group
    n_ungrouped = own if manifest.n_ungrouped else 0
    return replace(
        manifest, image_ids=image_ids, paths=paths, columns=columns, refused=refused, n_ungrouped=n_ungrouped
    )


def _covid_csv(source: Path, images: Path, modality: str) -> Sourced:
    table = keyed_table(source, ("patientid", "finding", "view", "filename"), key="filename")
    folders = table.cells("folder") if "folder" in table.columns else [""] * len(table)
    files = ["/".join(filter(None, part)) for part in zip(folders, table.cells("filename"), strict=True)]
    paths, names = [images / file for file in files], [name_of(file) for file in files]
    kept, left = _with_image(table, names, paths, modality)
    if not kept:
        why = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in left.items() if n)
        raise UsageError(
            f"none of the {len(table):,} rows of {source} has an image of modality {modality!r} under {images} "
            f"({why}; the first is {paths[0]})."
        )
    columns = {"group": table.values("patientid")}
    columns |= {name: table.values(name) for name in _KEPT if name in table.columns}
    notes = table.notes_on(["patientid", *(name for name in _KEPT if name in table.columns)])
    manifest = Manifest(names, paths, columns, images, notes=notes)
    manifest = _rows(manifest, kept)
    return Sourced(replace(manifest, refused=outside(manifest)), {"rows": len(table), **left})


def _with_image(
    table: Table, names: Sequence[str], paths: Sequence[Path], modality: str
) -> tuple[list[int], dict[str, int]]:
    """The rows that have an image, each image once, and how many have none, by reason."""
    modalities = table.cells("modality") if "modality" in table.columns else [""] * len(table)
    texts = {"finding": table.values("finding"), "patientid": table.values("patientid")}
    first = dict[str, int]()
    left = dict.fromkeys(("other_modality", "volume", "missing", "repeated"), 0)
    for row, name in enumerate(names):
        if reason := _why_no_image(paths[row], modalities[row], modality):
            left[reason] += 1
        elif (before := first.setdefault(name, row)) == row:
            continue
        elif other := [column for column, cells in texts.items() if cells[row] != cells[before]]:
            raise UsageError(f"{table.where(row, other[0])}: not that of line {table.lines[before]}, the same image.")
        else:
            left["repeated"] += 1
    return list(first.values()), left


def _why_no_image(path: Path, modality: str, modality_wanted: str) -> str | None:
    if modality_wanted and modality and modality.lower() != modality_wanted.lower():
        return "other_modality"
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return "volume"
    return None if os.path.isfile(path) else "missing"


# --- findings ---------------------------------------------------------------------------------------------------------


def _paths(finding: str) -> list[list[str]]:
    """`COVID-19, ARDS` as [[COVID-19], [ARDS]], and `Pneumonia/Viral/COVID-19` as one path of three parts."""
    paths = [[part.strip() for part in path.split("/")] for path in _SEPARATORS.split(finding)]
    return [path for path in paths if any(path)]


def _names(finding: str) -> set[str]:
    """In lower case, every name by which a finding may be asked for: its parts, and the whole of it."""
    parts = {part.lower() for path in _paths(finding) for part in path if part}
    return parts | ({finding.strip().lower()} if parts else set())


def _last_parts(findings: Sequence[str], notes: list[str]) -> list[str]:
    """The most special part of each finding; of several findings that of the first, which a note says."""
    paths = {finding: _paths(finding) for finding in set(findings)}
    several = Counter(finding for finding in findings if len(paths[finding]) > 1)
    if several:
        example = several.most_common(1)[0][0]
        notes.append(
            f"{several.total():,} images have several findings, and their label is the first: {example!r} is "
            f"{paths[example][0][-1]!r}. Name the classes to decide otherwise."
        )
    labels = {finding: parts[0][-1] if parts else "" for finding, parts in paths.items()}
    return ["" if _is_unknown(finding) else labels[finding] for finding in findings]


def _is_unknown(finding: str) -> bool:
    names = _names(finding)
    return not names or bool(names & _UNKNOWN_FINDINGS)


def _of_classes(
    source: Path, findings: Sequence[str], classes: Sequence[str], other: str, notes: list[str]
) -> list[str]:
    """The first of the classes that each finding has, or `other`."""
    names = {finding: _names(finding) for finding in set(findings)}
    for name in classes:
        if not any(_key(name) in synonyms for synonyms in names.values()):
            raise UsageError(f"no image of {source} has the finding {name!r}. {_nearest(name, findings)}")
    labels = {
        finding: next((name for name in classes if _key(name) in synonyms), "" if _is_unknown(finding) else other)
        for finding, synonyms in names.items()
    }
    counts = Counter(findings)
    notes += _about_shadowed(classes, names, labels)
    notes += _about_alike(classes, {finding: n for finding, n in counts.items() if not names[finding] & _keys(classes)})
    return [labels[finding] for finding in findings]


def _key(name: str) -> str:
    return name.strip().lower()


def _keys(names: Iterable[str]) -> set[str]:
    return {_key(name) for name in names}


def _nearest(name: str, findings: Sequence[str]) -> str:
    spelling = {part.lower(): part for finding in findings for path in _paths(finding) for part in path if part}
    near = difflib.get_close_matches(_key(name), list(spelling), 3)
    lead = f"Did you mean {' or '.join(repr(spelling[neighbour]) for neighbour in near)}? " if near else ""
    return f"{lead}There are {', '.join(sorted(spelling.values())[:_SHOWN])}."


def _about_shadowed(classes: Sequence[str], names: Mapping[str, set[str]], labels: Mapping[str, str]) -> Iterator[str]:
    """A note on each class whose images all have an earlier one."""
    for name in classes:
        if name not in labels.values():
            shadowed = sorted({labels[finding] for finding, synonyms in names.items() if _key(name) in synonyms})
            yield (
                f"the class {name!r} has no image: all with this finding are {' or '.join(map(repr, shadowed))}, which "
                f"comes first. Give the special classes before the general ones."
            )


def _about_alike(classes: Sequence[str], left: Mapping[str, int]) -> Iterator[str]:
    """A note on each finding that is in no class, though its letters and digits contain those of one."""
    for finding, n in left.items():
        if like := [name for name in classes if _letters(name) in _letters(finding)]:
            yield (
                f"{finding!r}, the finding of {n:,} images, is not in the class {like[0]!r}. Give it as a class, or "
                f"mend its spelling, if it is meant as one."
            )


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
