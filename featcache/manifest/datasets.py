"""Known collections of chest X-rays as manifests: Indiana University's, and Kermany's of pneumonia.

Each function reads what a collection ships with, and gives a manifest whose groups are patients or studies, together
with counts of what it found, left away and missed: no image vanishes without a number. It opens CSV files and lists
folders; no image is opened. Collections of another kind need no code: one folder per class, or a CSV with a column
`path`. Where to get the collections, and their licences, is in `data/README.md`.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from featcache.errors import UsageError, in_our_words
from featcache.manifest.manifest import Manifest, outside
from featcache.splits import split_name
from featcache.tables.missing import is_missing
from featcache.tables.table import Table, read_table

KERMANY_GROUPS = r"(?i)^([^/]+)/[^/]+/(person\d+|(?:NORMAL2-)?IM-\d+)"
YES, NO = "yes", "no"

_REPORT_TEXTS = ("indication", "comparison", "findings", "impression")
_TALLIED = ("split", "label", "kind", "projection", "view")
_NORMAL, _ABNORMAL, _NOT_INDEXED = "normal", "abnormal", "no indexing"
_KERMANY_CLASSES = {"NORMAL", "PNEUMONIA"}
_KERMANY_KIND = re.compile(r"person\d+_(bacteria|virus)_", re.IGNORECASE)
_SHOWN = 12  # findings in a message


class Sourced(NamedTuple):
    """A collection.

    Attributes:
        manifest: its images.
        counts: what was found, left away and missed.
    """

    manifest: Manifest
    counts: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """The answer of `featcache manifest --json`: the counts, how often each value of the columns is there, of which
        findings each label is made where they are known, and the notes."""
        columns = self.manifest.columns
        tallies = {name: dict(sorted(Counter(columns[name]).items())) for name in _TALLIED if name in columns}
        groups = {"groups": len(set(columns["group"]))} if "group" in columns else {}
        answer = {**self.counts, **groups, **tallies, "skipped": self.manifest.skipped}
        return {**answer, **self._label_counts(), "notes": self.manifest.notes}

    def _label_counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """How many images of each label have which finding, the most frequent first."""
        columns, made_of = self.manifest.columns, dict[str, Counter[str]]()
        if not {"label", "finding"} <= columns.keys():
            return {}
        for label, finding in zip(columns["label"], columns["finding"], strict=True):
            made_of.setdefault(label, Counter())[finding] += 1
        return {"findings": {label: dict(made_of[label].most_common()) for label in sorted(made_of)}}

    def write(self, path: Path, *inputs: Path | None) -> int:
        """Writes the manifest as a CSV: in the place of an earlier one of the same columns, and over nothing else.

        Returns:
            How many images are not below the folder of the CSV: reading it leaves them out, unless it is allowed.

        Raises:
            UsageError: `path` is one of `inputs`, or another file; and whatever `Manifest.write` raises.
        """
        for source in inputs:
            if source is not None and path.exists() and source.exists() and os.path.samefile(path, source):
                raise UsageError(f"{path} is what the manifest is made from: give another file to -o.")
        if path.exists() and _columns_of(path) != {"path", *self.manifest.columns} - {"image_id"}:
            raise UsageError(
                f"{path} is there, and no earlier manifest of this kind: its columns are others. Give another file to "
                f"-o, or remove it first."
            )
        self.manifest.write(path)
        return len(outside(replace(self.manifest, source=path)))


def _columns_of(path: Path) -> set[str]:
    """The columns of a CSV but for `image_id`, which a manifest has or has not; none of what is no CSV."""
    if not path.is_file():
        return set()
    try:
        with in_our_words("reading", path), open(path, encoding="utf-8-sig", newline="") as file:
            return set(next(csv.reader(file), [])) - {"image_id"}
    except (csv.Error, UnicodeDecodeError):
        return set()


# --- Indiana University -----------------------------------------------------------------------------------------------


def iu_xray(
    reports: Path | str, projections: Path | str, images: Path | str | None = None, *, label: str = "problems"
) -> Sourced:
    """The Indiana University chest X-rays with their reports (Demner-Fushman et al. 2016), from the CSVs of Kaggle
    `raddar/chest-xrays-indiana-university`.

    Args:
        reports: `indiana_reports.csv`, a row per study.
        projections: `indiana_projections.csv`, a row per image.
        images: the folder of the images, at any depth. None looks for none, and gives all rows of the CSVs with paths
            beside `projections`.
        label: "problems": `normal` where the column Problems says so, `abnormal` where it says anything else. Otherwise
            a finding, `yes` or `no`: a term of Problems, or of MeSH up to any of its slashes ("Opacity" or
            "Opacity/lung"); then studies that nobody has indexed have no label.

    Returns:
        A row per projection whose image is there, named by its file: label, group (the study), projection (Frontal or
        Lateral), problems, mesh, and the texts of the report: indication, comparison, findings, impression. Counts:
        `projections` and `reports` in the CSVs, `missing` images, `unlisted` images in no CSV, images with `no_report`,
        reports with `no_projection`, reports `not_indexed`.

    Raises:
        UsageError: a CSV that cannot be read, with line and column; a finding that no study has; no image at all.
    """
    studies = keyed_table(Path(reports), ("uid", "MeSH", "Problems", *_REPORT_TEXTS), key="uid")
    shots = keyed_table(Path(projections), ("uid", "filename", "projection"), key="filename")
    shots.check_unique("filename")
    described = _study_columns(studies, label)
    texts = {name: cells for name, cells in described.items() if name != "label"}
    row_of = studies.first_rows("uid", studies.cells("uid"), texts)
    names, uids, beside = shots.cells("filename"), shots.values("uid"), shots.source.parent
    image_files = _ImageFiles(beside, {name: beside / name for name in names}, {}, {})
    if images is not None:
        image_files = _ImageFiles.under(Path(images), names)
    study = [row_of.get(uid) for uid in uids]
    columns = {name: ["" if row is None else values[row] for row in study] for name, values in described.items()}
    table = {"label": columns.pop("label"), "group": uids, "projection": shots.values("projection"), **columns}
    counts = {
        "projections": len(shots),
        "reports": len(row_of),
        **image_files.counts,
        "no_report": study.count(None),
        "no_projection": len(row_of.keys() - set(uids)),
        "not_indexed": sum(_is_unindexed(described["problems"][row]) for row in row_of.values()),
    }
    notes = studies.notes_on(("Problems", "MeSH"), _REPORT_TEXTS) + shots.notes_on(("uid", "projection"))
    return Sourced(replace(image_files.manifest(names, table), notes=notes), counts)


def keyed_table(source: Path, required: Sequence[str], key: str) -> Table:
    """A CSV that has rows, each with a key."""
    table = read_table(source, required)
    if not len(table):
        raise UsageError(f"{source} has a header and no rows.")
    for row, text in enumerate(table.cells(key)):
        if is_missing(text):
            raise UsageError(
                f"{table.where(row, key)}: {repr(text) + ', a word for a missing value' if text else 'empty'}."
            )
    return table


def _study_columns(studies: Table, label: str) -> dict[str, list[str]]:
    """The label of each study, and the columns of its images."""
    problems, mesh = studies.values("Problems"), studies.values("MeSH")
    if label == "problems":
        labels = [_normal_or_not(text) for text in problems]
    else:
        labels = _has_finding(label, problems, mesh)
    texts = {name: studies.prose(name) for name in _REPORT_TEXTS}
    return {"label": labels, "problems": problems, "mesh": mesh, **texts}


def _normal_or_not(problems: str) -> str:
    return problems and (_NORMAL if problems.lower() == _NORMAL else _ABNORMAL)


def _is_unindexed(problems: str) -> bool:
    return problems.lower() in ("", _NOT_INDEXED)


def _has_finding(finding: str, problems: Sequence[str], mesh: Sequence[str]) -> list[str]:
    name = finding.strip().lower()
    terms = [_terms(p) | _prefixes(_terms(m)) for p, m in zip(problems, mesh, strict=True)]
    if not any(name in term for term in terms):
        frequent = Counter(term for image_terms in terms for term in image_terms).most_common(_SHOWN)
        raise UsageError(
            f"no study has the finding {finding!r}. The most frequent: {', '.join(term for term, _ in frequent)}."
        )
    known_terms = (not _is_unindexed(text) for text in problems)
    return [
        (YES if name in term else NO) if is_known else "" for term, is_known in zip(terms, known_terms, strict=True)
    ]


def _terms(text: str) -> set[str]:
    return {term.strip().lower() for term in text.split(";")} - {""}


def _prefixes(terms: Iterable[str]) -> set[str]:
    """`opacity/lung/base` as opacity, opacity/lung and itself."""
    parts = [term.split("/") for term in terms]
    return {"/".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}


@dataclass(frozen=True)
class _ImageFiles:
    """Where the images of some names are.

    Attributes:
        folder: where they were looked for.
        paths: those that are there, by name.
        counts: missing and unlisted.
        skipped: files of the folder that are no images.
    """

    folder: Path
    paths: Mapping[str, Path]
    counts: dict[str, int]
    skipped: dict[str, int]

    @classmethod
    def under(cls, images: Path, names: Sequence[str]) -> "_ImageFiles":
        there = Manifest.read(images)
        base = [image_id.rsplit("/", 1)[-1] for image_id in there.image_ids]
        wanted_names = set(names)
        if twice := [name for name, n in Counter(base).items() if n > 1 and name in wanted_names]:
            raise UsageError(f"{images} has {len(twice):,} names in more than one folder, the first {twice[0]!r}.")
        paths = {name: path for name, path in zip(base, there.paths, strict=True) if name in wanted_names}
        if not paths:
            raise UsageError(f"none of the {len(names):,} images is under {images}, the first is {names[0]!r}.")
        counts = {"missing": len(names) - len(paths), "unlisted": len(base) - len(paths)}
        return cls(images, paths, counts, there.skipped)

    def manifest(self, names: Sequence[str], table: Mapping[str, list[str]]) -> Manifest:
        """The rows of those that are there."""
        kept = [row for row, name in enumerate(names) if name in self.paths]
        image_ids = [names[row] for row in kept]
        columns = {name: [values[row] for row in kept] for name, values in table.items()}
        manifest = Manifest(image_ids, [self.paths[name] for name in image_ids], columns, self.folder, self.skipped)
        return replace(manifest, refused=outside(manifest))


# --- Kermany ----------------------------------------------------------------------------------------------------------


def kermany(folder: Path | str) -> Sourced:
    """The pneumonia X-rays of children of Kermany et al. 2018: folders `train|val|test / NORMAL|PNEUMONIA`.

    Args:
        folder: the one that holds `train` and `test`.

    Returns:
        label (the folder), split, group (patient: `personN`, `IM-N` or `NORMAL2-IM-N` with the split before it, since
        numbers begin anew in each), and kind, a finer label: normal, bacteria or virus. Counts: images that are
        `ungrouped`, and of `no_kind`, because their names say nothing.

    Raises:
        UsageError: other folders than these.
    """
    manifest = Manifest.read(folder, KERMANY_GROUPS)
    labels, splits = set(manifest.columns.get("label", [])), set(manifest.columns.get("split", []))
    is_top = all(split_name(name.split("/")[0]) for name in manifest.image_ids)
    if "" in splits or not splits or labels != _KERMANY_CLASSES or not is_top:
        raise UsageError(
            f"{folder} is not a tree of train|val|test / NORMAL|PNEUMONIA. Give the folder that holds train and test."
        )
    kinds = [_kind(i, label) for i, label in zip(manifest.image_ids, manifest.columns["label"], strict=True)]
    manifest = replace(manifest, columns={**manifest.columns, "kind": kinds})
    return Sourced(manifest, {"ungrouped": manifest.n_ungrouped, "no_kind": kinds.count("")})


def _kind(image_id: str, label: str) -> str:
    if label == "NORMAL":
        return _NORMAL
    match = _KERMANY_KIND.match(image_id.rsplit("/", 1)[-1])
    return match[1].lower() if match else ""
