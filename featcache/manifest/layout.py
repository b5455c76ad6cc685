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
_PLAIN = ("train", "val", "valid", "validation", "test")  # spellings that need no word
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


@dataclass(frozen=True)
class _Place:
    """Where the folder of a subset is among those above an image: `head / name / below`."""

    head: Parts
    name: str
    below: Parts

    @classmethod
    def of(cls, folders: Parts) -> "_Place | None":
        """The first folder that is called like a subset."""
        i = next((i for i, name in enumerate(folders) if split_name(name)), None)
        return None if i is None else cls(folders[:i], folders[i], folders[i + 1 :])

    @property
    def split(self) -> str:
        return split_name(self.name) or ""


def _with_subsets(folders: list[Parts], root_name: str) -> _Tree | None:
    """The reading in which folders are subsets, if there is one that is unambiguous."""
    places = [_Place.of(parts) for parts in folders]
    heads = {place.head for place in places if place}
    if len(heads) > 1 and not _are_doubled(heads, root_name):
        if () not in heads:
            return _subsets_of_several(folders, [place for place in places if place], heads)
        places = [place if place and not place.head else None for place in places]
    return _subsets_first(folders, places) if heads else None


def _are_doubled(heads: set[Parts], root_name: str) -> bool:
    """Whether the folders above the subsets are one that holds itself once more."""
    names = {name for head in heads for name in head}
    return len(names) == 1 and (() not in heads or names == {root_name})


def _subsets_first(folders: list[Parts], places: Sequence[_Place | None]) -> _Tree | None:
    """Subsets above classes. Images that lie elsewhere have neither, if the subsets are clear without them."""
    inside = [place for place in places if place]
    above = {place.head[:n] for place in inside for n in range(len(place.head) + 1)}
    stray = {parts for parts, place in zip(folders, places, strict=True) if not place} - above
    if not (_are_clear_beside(inside) if stray else _are_clear(inside)):
        return None
    classes = iter(_classes_below(inside))
    labels = [next(classes) if place else "" for place in places]
    return _Tree(folders, [place.split if place else "" for place in places], labels, _about_subsets(inside))


def _are_clear(places: Sequence[_Place]) -> bool:
    """Where all folders are called like subsets: `tr` and `ts` are, but not `TR` alone, which may be a class."""
    splits = {place.split for place in places}
    return any(_CLEAR.search(place.name) for place in places) or (TRAIN in splits and len(splits) > 1)


def _are_clear_beside(places: Sequence[_Place]) -> bool:
    """Where other folders lie beside them on the first level: two subsets, or the training one, that hold folders."""
    splits = {place.split for place in places if _CLEAR.search(place.name)}
    is_first = all(not place.head for place in places)
    return is_first and (len(splits) > 1 or splits == {TRAIN}) and any(place.below for place in places)


def _once(places: Sequence[_Place]) -> list[Parts]:
    """The folders below the subsets; in `train/train/covid` and `test/test/covid` those below the second."""
    n = 1 if all(place.below[:1] == (place.name,) for place in places) else 0
    return [place.below[n:] for place in places]


def _classes_below(places: Sequence[_Place]) -> list[str]:
    """The first folder below each subset that says more than that images are in it; each subset by itself."""
    below, labels = _once(places), [""] * len(places)
    for split in _SUBSETS:
        rows = [row for row, place in enumerate(places) if place.split == split]
        inner, _ = _without_wrapper([below[row] for row in rows])
        for row, parts in zip(rows, inner, strict=True):
            labels[row] = "".join(parts[:1])
    return labels


def _subsets_of_several(folders: list[Parts], places: Sequence[_Place], heads: set[Parts]) -> _Tree | None:
    """Subsets within several folders, which are classes if they hold images, or collections with the same classes."""
    splits = {place.split for place in places if _CLEAR.search(place.name)}
    if len(places) < len(folders) or len(splits) < 2 or len({head[:-1] for head in heads}) > 1:
        return None
    below: dict[str, set[str]] = {place.head[-1]: set() for place in places}
    inner = [next((name for name in place.below if not is_image_word(name)), "") for place in places]
    for place, name in zip(places, inner, strict=True):
        below[place.head[-1]] |= {name} - {""}
    shared = set.intersection(*below.values())
    if not any(inner):
        labels = [place.head[-1] for place in places]
        note = f"Subsets were read below the classes, as in {'/'.join((*places[0].head, places[0].name))}."
    elif len(shared) > 1:
        labels = inner
        note = (
            f"{_listed(sorted(below))} were read as collections, not as classes: each holds subsets, and in them the "
            f"classes {_listed(sorted(shared))}."
        )
    else:
        return None
    return _Tree(folders, [place.split for place in places], labels, note)


def _without_wrapper(folders: Sequence[Parts]) -> tuple[list[Parts], Parts]:
    """The folders below those that hold all others and say only that there are images in them, and the latter."""
    below, wrapper = list(folders), []
    while below and all(parts and is_image_word(parts[0]) for parts in below):
        names = {parts[0] for parts in below}
        if len({re.sub(r"[\W\d_]+", "", name) for name in names}) > 1:  # `png` and `jpg`, or `raw` and `film`
            break
        wrapper.append(min(names))
        below = [parts[1:] for parts in below]
    return below, tuple(wrapper)


# --- notes ------------------------------------------------------------------------------------------------------------


def _about_subsets(places: Sequence[_Place]) -> str:
    """Subsets that are spelled differently, or lie below the first level."""
    heads = sorted({"/".join(place.head) for place in places} - {""})
    names = {split: sorted({place.name for place in places if place.split == split}) for split in _SUBSETS}
    if not heads and all(name.lower() in _PLAIN for several in names.values() for name in several):
        return ""
    read = ", ".join(f"{_listed(several)} as {split}" for split, several in names.items() if several)
    return f"Folders were read as subsets{f', below {_listed(heads)}' if heads else ''}: {read}."


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
    below = f"the folders in it ({_listed(sorted(inner))}), give {name} itself; if they are " if inner else ""
    yield (
        f"All images that have a class have the same, {name}. If the classes are {below}folders beside it, give the "
        f"folder that holds all of them."
    )


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
        differences = "; ".join(f"{subset} has no {_listed(names, 'or')}" for subset, names in lacking.items() if names)
        twins = Counter(re.sub(r"[\W_]+", "", name).casefold() for name in tree.names)
        alike = [name for name in tree.names if twins[re.sub(r"[\W_]+", "", name).casefold()] > 1]
        same = f" {_listed(alike)} may be the same class: rename the folders." if alike else ""
        yield f"The subsets have different classes: {differences}.{same}"


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
