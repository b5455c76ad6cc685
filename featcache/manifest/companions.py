"""Masks, segmentations, annotations, thumbnails and the like: pictures of pictures that lie beside the images.

A companion is known by two things together: a word in the name of a folder or at an end of its own, and an image with
the same name without that word. Folders of masks without images are data, and so is a class that is called "mask".
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from featcache.manifest.listing import IMAGE_SUFFIXES

_WORDS = frozenset(
    {
        "mask", "masks", "msk", "segmentation", "segmentations", "segm", "seg", "segs", "annotation", "annotations",
        "annot", "label", "labels", "lbl", "lbls", "gt", "groundtruth", "thumbnail", "thumbnails", "thumb", "thumbs",
        "heatmap", "heatmaps", "overlay", "overlays", "contour", "contours", "bbox", "bboxes",
    }
)  # fmt: skip
_IMAGE_WORDS = frozenset(
    {
        "image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "scan", "scans", "radiograph",
        "radiographs", "xray", "xrays", "cxr", "cxrs", "film", "films", "original", "originals", "raw", "input",
        "inputs", "data", "dataset", "files", "png", "jpg", "jpeg", "tif", "tiff", "bmp", "dcm", "dicom",
    }
)  # fmt: skip
_END = "|".join(sorted(_WORDS, key=len, reverse=True))
_OF = "left|right|lungs?|heart|infection|lesion"
_SUFFIX = re.compile(rf"(.+?)(?:[-_. ]+(?:{_OF}))*(?:[-_. ]+(?:{_END}))+(?:[-_ ]*\d+)?", re.IGNORECASE)  # x_lung_mask_2
_PREFIX = re.compile(rf"(?:{_END})[-_. ]+(.+)", re.IGNORECASE)
_IMAGE_END = re.compile(r"[-_. ](image|img|cxr|xray|0000)\Z")  # x_image beside x_mask; the first channel of nnU-Net
_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")  # leftMask
_GAP = re.compile(r"[\s_.\-]+")

Key = tuple[str, ...]


def companions(image_ids: Sequence[str]) -> list[str]:
    """Those of these images that accompany others of them, in their order.

    Where half of the companions' folder has a counterpart, all of the folder are companions; elsewhere those that have.

    Args:
        image_ids: paths relative to one folder, with `/` between their parts.
    """
    suspects = [name for name in image_ids if _may_be(name)]
    if not suspects:
        return []
    keys = {_key(*_parts(name)) for name in image_ids}
    by_folder = {name for name in suspects if not keys.isdisjoint(_without_folder_words(name))}
    by_name = {name for name in suspects if not keys.isdisjoint(_without_end_word(name))}
    n_of, n_matched = (Counter(map(os.path.dirname, names)) for names in (suspects, by_folder))
    whole = {folder for folder, n in n_matched.items() if 2 * n >= n_of[folder]}
    return [name for name in suspects if name in by_folder | by_name or os.path.dirname(name) in whole]


def twins(image_ids: Iterable[str]) -> list[list[str]]:
    """Images that have one name with several suffixes, such as `1.dcm` and `1.png`: perhaps the same picture."""
    by_name: dict[str, list[str]] = {}
    for name in image_ids:
        by_name.setdefault(_without_suffix(name), []).append(name)
    return [names for names in by_name.values() if len(names) > 1]


def _without_suffix(name: str) -> str:
    """Suffixes of images only: the end of a name such as 1.2.840.113619.2 is none."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


@cache
def is_image_word(folder: str) -> bool:
    """Whether the name of a folder says only that images are in it: `images`, `CXR_png`, `images_001`."""
    words = [word for word in _words(folder) if not word.isdigit()]
    return bool(words) and _IMAGE_WORDS.issuperset(words)


def _parts(name: str) -> tuple[list[str], str]:
    """Folders and stem."""
    *folders, stem = _without_suffix(name).split("/")
    return folders, stem


def _may_be(name: str) -> bool:
    folders, stem = _parts(name)
    return any(map(_has_word, folders)) or _shortened(stem) != stem


@cache
def _words(folder: str) -> tuple[str, ...]:
    """`leftMask` and `left_mask` as left, mask."""
    text = _GAP.sub(" ", _CASE.sub(" ", folder).lower()).replace("ground truth", "groundtruth")
    return tuple(text.split())


@cache
def _has_word(folder: str) -> bool:
    return not _WORDS.isdisjoint(_words(folder))


def _key(folders: Sequence[str], stem: str) -> Key:
    """A name without what says only that it is an image: `COVID/images/1` and `COVID/1` are the same."""
    kept = (" ".join(word for word in _words(folder) if word not in _IMAGE_WORDS) for folder in folders)
    return (*(folder for folder in kept if folder), _IMAGE_END.sub("", stem.lower()))


def _without_folder_words(name: str) -> Iterator[Key]:
    """The keys that the image of a companion in `masks` may have.

    The words of a companion go from one of its folders on downwards: in `Infection Segmentation Data/lung masks/1` the
    first folder is of the images as well.
    """
    folders, stem = _parts(name)
    for first in (i for i, folder in enumerate(folders) if _has_word(folder)):
        above, below = folders[:first], folders[first:]
        without_folders = [folder for folder in below if not _has_word(folder)]
        without_words = [" ".join(word for word in _words(folder) if word not in _WORDS) for folder in below]
        for end in {stem, _shortened(stem)}:
            yield _key([*above, *without_folders], end)
            yield _key([*above, *without_words], end)


def _without_end_word(name: str) -> Iterator[Key]:
    """The key that the image beside a companion `x_mask` has."""
    folders, stem = _parts(name)
    if (short := _shortened(stem)) != stem:
        yield _key(folders, short)


@cache
def _shortened(stem: str) -> str:
    """`x` of `x_mask`, `x-seg-2` or `mask_x`; other names as they are."""
    match = _SUFFIX.fullmatch(stem) or _PREFIX.fullmatch(stem)
    return match[1] if match else stem
