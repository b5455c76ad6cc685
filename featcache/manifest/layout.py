"""What the folders above the images mean: subsets, classes, or neither. Names in, columns and notes out.

Read as meant are subsets above classes (`train/covid/1.png`), also below one wrapper (`chest_xray/train/covid`) or one
that holds itself once more, subsets below classes (`covid/train/1.png`), subsets of several collections whose classes
have the same names (`siteA/train/covid`), and classes alone. Whatever else resembles one of these is read literally,
the first folder as the class, with a note on what may have been meant. A class that is called "test" is a class.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from featcache.manifest.companions import is_image_word
from featcache.splits import TEST, TRAIN, VAL, split_name

Parts = tuple[str, ...]

_SUBSETS = (TRAIN, VAL, TEST)
_WORD = re.compile(r"[^\W\d_]{4,}|val")
_CLEAR = re.compile(r"train|val|test", re.IGNORECASE)  # `tr`, `ts` and `dev` are subsets only beside another
_NO_CLASS = re.compile(  # patients, studies and parts of a collection by their names; numbers and UIDs
    r"(patient|pat|pt|subject|subj|sub|case|study|exam|series|person|part|batch|chunk|shard|fold|disk|cd|vol|volume|"
    r"folder|dir|archive)[\s_\-]*\w*\d.*|(p|s|id|mrn|acc)[\s_\-]?\d{2,}|\d{4,}|\d[\d.]{9,}",
    re.IGNORECASE,
)
_MANY, _FEW_IMAGES = 10, 2  # classes from which they look like patients, and images of each
_SHOWN = 4


@dataclass(frozen=True)
class Layout:
    """What the folders of n images say.

    Attributes:
        columns: `split` and `label`, where there are any; an empty text where an image has none.
        notes: what was guessed, and what may have been meant.
    """

    columns: dict[str, list[str]]
    notes: list[str]


def read_layout(image_ids: Sequence[str], empty_folders: Sequence[str] = (), root_name: str = "") -> Layout:
    """Reads the folders of images.

    Args:
        image_ids: paths relative to one folder, with `/` between their parts.
        empty_folders: paths of folders below which no image is.
        root_name: name of the folder, by which one that holds itself once more is known.
    """
    folders = [tuple(name.split("/")[:-1]) for name in image_ids]
    tree = _with_subsets(folders, root_name) or _classes_only(folders)
    columns = {}
    if any(tree.splits):
        columns["split"] = tree.splits
    if any(tree.labels):
        columns["label"] = tree.labels
    return Layout(columns, list(_notes(tree, image_ids, [tuple(name.split("/")) for name in empty_folders])))


@dataclass(frozen=True)
class _Tree:
    """One reading of n images: the folders of each, its subset and its class, and a note if it is a guess."""

    folders: list[Parts]
    splits: list[str]
    labels: list[str]
    note: str = ""

    @property
    def names(self) -> list[str]:
        """The classes, sorted."""
        return sorted(set(self.labels) - {""})


# --- readings ---------------------------------------------------------------------------------------------------------


def _classes_only(folders: list[Parts]) -> _Tree:
    """The first folder is the class; below a single one called `images` or the like, the second."""
    below, wrapper = _without_wrapper(folders)
    note = f"The folder {'/'.join(wrapper)} was not read as a class, but the folders in it." if wrapper else ""
    labels = [parts[0] if parts else "" for parts in below]
    return _Tree(folders, [""] * len(folders), labels, note if any(labels) else "")


def _with_subsets(folders: list[Parts], root_name: str) -> _Tree | None:
    """The reading in which folders are subsets, if there is one that is unambiguous."""
    places = [next((i for i, name in enumerate(parts) if split_name(name)), None) for parts in folders]
    heads = {parts[:i] for parts, i in zip(folders, places, strict=True) if i is not None}
    if not heads:
        return None
    if len(heads) == 1 or _are_doubled(heads, root_name):
        return _subsets_first(folders, places, heads)
    if () in heads:
        return _subsets_first(folders, [0 if i == 0 else None for i in places], {()})
    return _subsets_of_several(folders, places, heads)


def _are_doubled(heads: set[Parts], root_name: str) -> bool:
    """Whether the folders above the subsets are one that holds itself once more."""
    names = {name for head in heads for name in head}
    return len(names) == 1 and (() not in heads or names == {root_name})


def _subsets_first(folders: list[Parts], places: Sequence[int | None], heads: set[Parts]) -> _Tree | None:
    """Subsets above classes. Images that lie elsewhere have neither, if the subsets are clear without them."""
    inside = [i is not None for i in places]
    names = {parts[i] for parts, i in zip(folders, places, strict=True) if i is not None}
    subsets = {split_name(name) for name in names if _CLEAR.search(name)}
    stray = {parts for parts, is_in in zip(folders, inside, strict=True) if not is_in}
    above = {head[:n] for head in heads for n in range(len(head) + 1)}
    if stray <= above:  # all folders are subsets
        if not subsets and not (TRAIN in map(split_name, names) and len({split_name(name) for name in names}) > 1):
            return None
    elif () not in heads or not (len(subsets) > 1 or subsets == {TRAIN}) or not _is_deeper(folders, places):
        return None
    by_subset, _ = _without_wrapper(_once(folders, places))
    rest = iter(by_subset)
    labels = [next(rest)[:1] if is_in else () for is_in in inside]
    splits = [split_name(parts[i]) or "" if i is not None else "" for parts, i in zip(folders, places, strict=True)]
    return _Tree(folders, splits, ["".join(label) for label in labels], _about_subsets(names, heads))


def _once(folders: Sequence[Parts], places: Sequence[int | None]) -> list[Parts]:
    """The folders below the subsets, of the images that are in one; in `train/train/covid` what is below the second."""
    rows = [(parts[i], parts[i + 1 :]) for parts, i in zip(folders, places, strict=True) if i is not None]
    n = 1 if all(below[:1] == (name,) for name, below in rows) else 0
    return [below[n:] for _, below in rows]


def _is_deeper(folders: Sequence[Parts], places: Sequence[int | None]) -> bool:
    """Whether a subset holds folders."""
    return any(i is not None and len(parts) > i + 1 for parts, i in zip(folders, places, strict=True))


def _subsets_of_several(folders: list[Parts], places: Sequence[int | None], heads: set[Parts]) -> _Tree | None:
    """Subsets in each of several folders: of classes, if they hold images, or of collections with the same classes."""
    if None in places:
        return None
    at = [i for i in places if i is not None]
    names = {parts[i] for parts, i in zip(folders, at, strict=True)}
    wrapper = _common(heads)
    if len({split_name(name) for name in names if _CLEAR.search(name)}) < 2 or {len(h) for h in heads} != {
        len(wrapper) + 1
    }:
        return None
    splits = [split_name(parts[i]) or "" for parts, i in zip(folders, at, strict=True)]
    below = [tuple(n for n in parts[i + 1 :] if not is_image_word(n)) for parts, i in zip(folders, at, strict=True)]
    tops = [parts[i - 1] for parts, i in zip(folders, at, strict=True)]
    if not any(below):
        note = f"Subsets were read below the classes, as in {'/'.join(folders[0][: at[0] + 1])}."
        return _Tree(folders, splits, tops, note)
    classes = [{b[0] for b, t in zip(below, tops, strict=True) if b and t == top} for top in set(tops)]
    if len(shared := set.intersection(*classes)) < 2:
        return None
    note = (
        f"{_listed(sorted(set(tops)))} were read as collections, not as classes: each holds subsets, and in them the "
        f"classes {_listed(sorted(shared))}."
    )
    return _Tree(folders, splits, [b[0] if b else "" for b in below], note)


def _without_wrapper(folders: Sequence[Parts]) -> tuple[list[Parts], Parts]:
    """The folders below those that hold all others and say only that there are images in them, and the latter."""
    below, wrapper = list(folders), []
    while all(parts and is_image_word(parts[0]) for parts in below):
        names = {parts[0] for parts in below}
        if len({re.sub(r"[\W\d_]+", "", name) for name in names}) > 1:  # `png` and `jpg`, or `raw` and `film`
            break
        wrapper.append(min(names))
        below = [parts[1:] for parts in below]
    return below, tuple(wrapper)


def _common(heads: set[Parts]) -> Parts:
    first, last = min(heads), max(heads)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:n]


# --- notes ------------------------------------------------------------------------------------------------------------


def _about_subsets(names: set[str], heads: set[Parts]) -> str:
    """Of another spelling, and of another place than the first level."""
    if heads == {()} and all(name.lower() in ("train", "val", "valid", "validation", "test") for name in names):
        return ""
    read = [f"{_listed(sorted(n for n in names if split_name(n) == s))} as {s}" for s in _SUBSETS
            if any(split_name(n) == s for n in names)]  # fmt: skip
    where = "" if heads == {()} else f", below {_listed(sorted('/'.join(head) for head in heads if head))}"
    return f"Folders were read as subsets{where}: {', '.join(read)}."


def _notes(tree: _Tree, image_ids: Sequence[str], empty: Sequence[Parts]) -> Iterator[str]:
    if tree.note:
        yield tree.note
    yield from _beside(tree, image_ids)
    yield from _one_class(tree)
    yield from _unread_subsets(tree)
    yield from _differing_classes(tree)
    yield from _collections(tree)
    yield from _people(tree)
    yield from _without_images(tree, empty)


def _beside(tree: _Tree, image_ids: Sequence[str]) -> Iterator[str]:
    """Images without what others have."""
    missing = [row for row, label in enumerate(tree.labels) if not label] if any(tree.labels) else []
    if any(tree.splits):
        outside = [row for row, split in enumerate(tree.splits) if not split]
        yield from _counted(outside, image_ids, "beside the folders of the subsets and", "neither subset nor label")
        missing = [row for row in missing if tree.splits[row]]
    yield from _counted(missing, image_ids, "beside the folders of the classes and", "no label")


def _counted(rows: Sequence[int], image_ids: Sequence[str], where: str, lacking: str) -> Iterator[str]:
    if rows:
        of = f"{len(rows):,} of {len(image_ids):,} images" if len(rows) > 1 else f"1 of {len(image_ids):,} images"
        lie, have = ("lie", "have") if len(rows) > 1 else ("lies", "has")
        yield f"{of} {lie} {where} {have} {lacking}, for example {image_ids[rows[0]]}."


def _one_class(tree: _Tree) -> Iterator[str]:
    """The folder above, or the folder below, may have been meant."""
    if len(tree.names) != 1:
        return
    name = tree.names[0]
    inner = {parts[parts.index(name) + 1] for parts in tree.folders if name in parts[:-1]}
    meant = f"If the classes are the folders in it ({_listed(sorted(inner))}), give {name} itself. " if inner else ""
    yield f"All images with a label have the same, {name}. {meant}Otherwise give the folder that holds all classes."


def _unread_subsets(tree: _Tree) -> Iterator[str]:
    """Folders that are called like subsets, and were read as something else."""
    if any(tree.splits):
        return
    names = Counter(name for parts in tree.folders for name in parts if split_name(name) and _CLEAR.search(name))
    within = {subset for name in tree.names for word in _WORD.findall(name) if (subset := split_name(word))}
    if not names and len(within) > 1:
        yield (
            f"Names of classes have words for subsets in them: {_listed(tree.names)}. If these are subsets of the same "
            f"classes, make one folder of each subset, or give a CSV with columns split and label."
        )
    if names:
        instead = ", but as classes" if names.keys() <= set(tree.names) else ""
        yield (
            f"Folders named {_listed(sorted(names))} ({names.total():,} images) were not read as subsets{instead}: "
            f"other images have no such folder at the same place. If they are subsets, give a CSV with a column split."
        )


def _differing_classes(tree: _Tree) -> Iterator[str]:
    """Classes that a subset lacks, or that only one has."""
    classes: dict[str, set[str]] = {}
    for split, label in zip(tree.splits, tree.labels, strict=True):
        if split and label:
            classes.setdefault(split, set()).add(label)
    lacking = {s: sorted(set().union(*classes.values()) - classes[s]) for s in _SUBSETS if s in classes}
    if any(lacking.values()):
        told = "; ".join(f"{subset} has no {_listed(names, 'or')}" for subset, names in lacking.items() if names)
        twins = Counter(re.sub(r"[\W_]+", "", name).casefold() for name in tree.names)
        alike = [name for name in tree.names if twins[re.sub(r"[\W_]+", "", name).casefold()] > 1]
        same = f" {_listed(alike)} may be the same class: rename the folders." if alike else ""
        yield f"The subsets have different classes: {told}.{same}"


def _collections(tree: _Tree) -> Iterator[str]:
    """Folders with words for names below each class: they may be the classes, and these the names of collections."""
    if len(tree.names) < 2 or any(tree.splits):
        return
    inner: dict[str, set[str]] = {name: set() for name in tree.names}
    for parts, label in zip(tree.folders, tree.labels, strict=True):
        if label:
            inner[label].update(name for name in parts[parts.index(label) + 1 :][:1] if not is_image_word(name))
    names = set().union(*inner.values())
    if all(inner.values()) and len(names) > 1 and not re.search(r"\d", "".join(names)):
        yield (
            f"The folders {_listed(tree.names)} were read as the classes, and each of them holds folders: "
            f"{_listed(sorted(names))}. If those are the classes, give a CSV with a column label, or one of the outer "
            f"folders."
        )


def _people(tree: _Tree) -> Iterator[str]:
    """Classes that look like patients or studies, or like parts of a collection."""
    counts = Counter(label for label in tree.labels if label)
    n_few = sum(n <= _FEW_IMAGES for n in counts.values())
    named = len(counts) > 1 and all(_NO_CLASS.fullmatch(name) for name in counts)
    if named or (len(counts) >= _MANY and 2 * n_few > len(counts)):
        few = f"{n_few:,} of them have only 1 or 2 images. " if n_few else ""
        yield (
            f"{len(counts):,} folders were read as classes, for example {_listed(tree.names)}. {few}If they are "
            f"patients, studies or parts, give labels in a CSV; group_pattern makes groups of them."
        )


def _without_images(tree: _Tree, empty: Sequence[Parts]) -> Iterator[str]:
    """Folders beside those of subsets and classes."""
    if not any(tree.splits) and not any(tree.labels):
        return
    parents = {parts[:n] for parts, label in zip(tree.folders, tree.labels, strict=True)
               for n in range(parts.index(label) + 1 if label else 1)}  # fmt: skip
    names = sorted("/".join(parts) for parts in empty if parts[:-1] in parents)
    if names:
        hold = (
            "1 folder beside the others holds" if len(names) == 1 else f"{len(names):,} folders beside the others hold"
        )
        yield f"{hold} no image: {_listed(names)}."


def _listed(names: Sequence[str], word: str = "and") -> str:
    """`a, b and c`, and of many the first."""
    if len(names) > _SHOWN:
        return f"{', '.join(names[:_SHOWN])} {word} {len(names) - _SHOWN:,} more"
    return f" {word} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
