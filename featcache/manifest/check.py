"""What a folder or CSV of images holds, before anything is computed from it: counts, formats, sizes, and what leaks.

Headers are read, and whole files only where two have the same size and may be the same image; of a few images the
pixels are looked at. That finds what is no image at all, not what is cut short: `full` decodes every file, and fails
what a pass would. All of it in workers, as in a pass: a file has its time and its memory, whatever is in it.
A score is too good where one patient, or one image, is both learnt from and reported: patients are looked for by name,
images by content. Knows nothing of networks or vectors.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median_low
from typing import Any

from featcache.errors import ImageError
from featcache.images import Look
from featcache.images.headers import Header
from featcache.images.workers import TIMEOUT_S, Decoders
from featcache.manifest.manifest import Manifest
from featcache.manifest.survey import Depths, levels_notes, looks_at, spread
from featcache.specs import DecodeSpec
from featcache.splits import TEST, TRAIN, VAL, class_names, unnamed_groups

Progress = Callable[[int, int], None]

_SIDES = (TRAIN, VAL, TEST)
_N_DECODED = 64  # images that are looked at unless all are: of all, and of those of deep gray


@dataclass(frozen=True)
class Alike:
    """Images that are one thing: the same bytes, or the same patient.

    Attributes:
        images: two or more names, in the order of the manifest.
        splits, labels: those they have, sorted, unknown ones left away.
    """

    images: list[str]
    splits: list[str]
    labels: list[str]

    @property
    def crosses(self) -> bool:
        """Whether it is in more than one subset."""
        return len(self.splits) > 1


@dataclass(frozen=True)
class Stratum:
    """The images of one class on one side of the split.

    Attributes:
        split, label: empty where unknown.
        n_images: number of images.
        n_groups: None where there are no groups.
        formats, bits, modes: how many headers say so; of those that could be read.
        widths, heights: least, median and greatest, in pixels; empty where no header could be read.
    """

    split: str
    label: str
    n_images: int
    n_groups: int | None
    formats: dict[str, int]
    bits: dict[str, int]
    modes: dict[str, int]
    widths: list[int]
    heights: list[int]


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        n_images: in the manifest.
        n_bytes: size of the files whose header could be read.
        full: whether every image was decoded.
        failures: image_id -> (code, reason) of those a pass would fail.
        strata: counts by split, then by class.
        sizes: `2048 x 2496` -> how many, the most frequent first.
        identical: sets of images with the same bytes.
        groups: groups that are in more than one subset.
        n_groups: None where there are no groups.
        largest_group: images of it.
        ungrouped: images that the group pattern did not match.
        n_unlabelled: images without a label.
        skipped: files that are no images, by reason.
        notes: what was guessed of the manifest, or may have been meant; and what is odd about the names of classes.
    """

    n_images: int
    n_bytes: int
    full: bool
    failures: Mapping[str, tuple[str, str]]
    strata: Sequence[Stratum]
    sizes: Mapping[str, int]
    identical: Sequence[Alike]
    groups: Sequence[Alike]
    n_groups: int | None
    largest_group: int
    ungrouped: Sequence[str]
    n_unlabelled: int
    skipped: Mapping[str, int]
    notes: Sequence[str]

    @property
    def n_ungrouped(self) -> int:
        return len(self.ungrouped)

    @property
    def leaks(self) -> list[Alike]:
        """What is in more than one subset: identical images, then groups."""
        return [*(copies for copies in self.identical if copies.crosses), *self.groups]

    def as_json(self) -> dict[str, Any]:
        """The answer of `featcache check --json`."""
        failures = [{"image_id": name, "code": code, "reason": why} for name, (code, why) in self.failures.items()]
        groups = {"n": self.n_groups, "largest": self.largest_group, "ungrouped": self.n_ungrouped}
        return {
            "notes": list(self.notes),
            "images": self.n_images,
            "bytes": self.n_bytes,
            "full": self.full,
            "unreadable": failures,
            "unlabelled": self.n_unlabelled,
            "skipped": dict(self.skipped),
            "classes": [asdict(stratum) for stratum in self.strata],
            "sizes": dict(self.sizes),
            "identical": [asdict(copies) for copies in self.identical],
            "identical_across_splits": sum(copies.crosses for copies in self.identical),
            "groups": {**groups, "across_splits": [asdict(group) for group in self.groups]},
            "leaks": len(self.leaks),
        }


@dataclass(frozen=True)
class _Looked:
    """What one file gave."""

    header: Header | None = None
    digest: str = ""  # empty where nothing else has its size
    failure: tuple[str, str] | None = None
    look: Look | None = None


def check(
    manifest: Manifest,
    *,
    full: bool = False,
    decode: DecodeSpec = DecodeSpec(),
    n_workers: int | None = None,
    timeout_s: float = TIMEOUT_S,
    on_progress: Progress = lambda done, total: None,
) -> Checked:
    """Looks at the images of a manifest, and changes nothing.

    Args:
        manifest: what to look at.
        full: decode every image.
        decode: rules of decoding, with the sizes and frames that are refused.
        n_workers: processes that decode, and threads that read.
        timeout_s: what one image may take.
        on_progress: called with (images done, images in all).

    Raises:
        InputOutputError: no process for decoding can be started.
    """
    n_threads = n_workers or os.cpu_count() or 1
    pool = ThreadPoolExecutor(n_threads)
    try:
        with Decoders([], decode, None, timeout_s) as decoders:
            look = partial(_look, manifest, decode, decoders, full)
            looked = list(_counted(pool.map(look, range(len(manifest))), len(manifest), on_progress))
            if full:
                looks = [(name, one.look) for name, one in zip(manifest.image_ids, looked, strict=True) if one.look]
            else:
                looked = _with_digests(manifest, looked, decoders, pool)
                looks = looks_at(manifest, _sample(looked), decoders, pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return _checked(manifest, looked, full, _pixel_notes(looked, looks, decode.bit_depth))


def alike(keys: Sequence[str], image_ids: Sequence[str], columns: Mapping[str, Sequence[str]]) -> list[Alike]:
    """The rows that share a key, in the order of the first of each; empty keys share nothing.

    Args:
        keys: n texts.
        image_ids: n names.
        columns: `split` and `label` of n texts each, where there are any.
    """
    rows_of: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        if key:
            rows_of.setdefault(key, []).append(row)
    sets = [rows for rows in rows_of.values() if len(rows) > 1]
    values = {name: columns.get(name, [""] * len(keys)) for name in ("split", "label")}
    return [
        Alike(
            [image_ids[row] for row in rows],
            *(sorted({values[name][row] for row in rows} - {""}) for name in ("split", "label")),
        )
        for rows in sets
    ]


def _counted(results: Iterable[_Looked], total: int, on_progress: Progress) -> Iterator[_Looked]:
    for done, result in enumerate(results, start=1):
        yield result
        on_progress(done, total)


def _look(manifest: Manifest, decode: DecodeSpec, decoders: Decoders, full: bool, row: int) -> _Looked:
    """One image. Whatever is wrong with it is its failure, never the end."""
    if reason := manifest.refused.get(manifest.image_ids[row]):
        return _Looked(failure=("outside", reason))
    path, header = manifest.paths[row], None
    try:
        header = decoders.header(path)
        header.check(decode.first_frame, decode.max_pixels)
        digest, look = decoders.look(path) if full else ("", None)
        return _Looked(header, digest, look=look)
    except ImageError as error:
        return _Looked(header, failure=(error.code, str(error)))


def _with_digests(
    manifest: Manifest, looked: Sequence[_Looked], decoders: Decoders, pool: ThreadPoolExecutor
) -> list[_Looked]:
    """With the content of those files that are as long as another."""
    lengths = Counter(image.header.n_bytes for image in looked if image.header and not image.failure)

    def content(row: int) -> _Looked:
        image = looked[row]
        if image.header is None or image.failure or lengths[image.header.n_bytes] == 1:
            return image
        try:
            return replace(image, digest=decoders.digest(manifest.paths[row]))
        except ImageError as error:
            return replace(image, failure=(error.code, str(error)))

    return list(pool.map(content, range(len(looked))))


def _sample(looked: Sequence[_Looked]) -> list[int]:
    """Rows whose pixels are looked at where not all are: some of all, and some of those of deep gray."""
    good = [row for row, one in enumerate(looked) if one.header and not one.failure]
    deep = [row for row in good if (header := looked[row].header) and header.is_deep]
    return sorted({*spread(good, _N_DECODED), *spread(deep, _N_DECODED)})


def _pixel_notes(looked: Sequence[_Looked], looks: Sequence[tuple[str, Look]], bit_depth: int | None) -> list[str]:
    """What the pixels say of the set: the depth that a pass would settle, and what is no picture."""
    n_deep = sum(bool(one.header and one.header.is_deep and not one.failure) for one in looked)
    depths = Depths.of(looks, n_deep)
    notes = [depths.note(bit_depth or depths.bits)] if depths else []
    return notes + levels_notes(looks, sum(not one.failure for one in looked))


def _checked(manifest: Manifest, looked: Sequence[_Looked], full: bool, pixel_notes: Sequence[str]) -> Checked:
    columns, headers = manifest.columns, [image.header for image in looked if image.header]
    named = zip(manifest.image_ids, looked, strict=True)
    groups = columns.get("group", [])
    sizes = Counter(f"{header.width} x {header.height}" for header in headers)
    return Checked(
        n_images=len(manifest),
        n_bytes=sum(header.n_bytes for header in headers),
        full=full,
        failures={image_id: image.failure for image_id, image in named if image.failure},
        strata=_strata(manifest, looked),
        sizes=dict(sizes.most_common()),
        identical=alike([image.digest for image in looked], manifest.image_ids, columns),
        groups=[group for group in alike(groups, manifest.image_ids, columns) if group.crosses],
        n_groups=len(set(groups) - {""}) if groups else None,
        largest_group=max(Counter(group for group in groups if group).values(), default=0),
        ungrouped=manifest.ungrouped,
        n_unlabelled=columns.get("label", [""] * len(manifest)).count(""),
        skipped=manifest.skipped,
        notes=[
            *class_names.notes(Counter(label for label in columns.get("label", ()) if label)),
            *manifest.notes,
            *unnamed_groups.notes(columns, manifest.image_ids),
            *pixel_notes,
        ],
    )


def _strata(manifest: Manifest, looked: Sequence[_Looked]) -> list[Stratum]:
    empty = [""] * len(manifest)
    splits, labels = (manifest.columns.get(name, empty) for name in ("split", "label"))
    rows_of: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(splits, labels, strict=True)):
        rows_of.setdefault(key, []).append(row)
    keys = sorted(rows_of, key=lambda key: (_SIDES.index(key[0]) if key[0] in _SIDES else len(_SIDES), key))
    return [_stratum(*key, rows_of[key], manifest, looked) for key in keys]


def _stratum(split: str, label: str, rows: Sequence[int], manifest: Manifest, looked: Sequence[_Looked]) -> Stratum:
    headers = [header for row in rows if (header := looked[row].header)]
    groups = manifest.columns.get("group")
    n_groups = None if groups is None else len({groups[row] for row in rows} - {""})
    kinds, bits, modes = (
        {str(value): n for value, n in Counter(getattr(header, name) for header in headers).most_common()}
        for name in ("kind", "bits", "mode")
    )
    widths, heights = (_spread([getattr(header, name) for header in headers]) for name in ("width", "height"))
    return Stratum(split, label, len(rows), n_groups, kinds, bits, modes, widths, heights)


def _spread(values: Sequence[int]) -> list[int]:
    return [min(values), median_low(values), max(values)] if values else []
