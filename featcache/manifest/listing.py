"""The files below a folder that are images by their names, and how many are not, by reason. Opens no image.

With one exception: DICOM files often have no suffix, or a number, as in names made of UIDs. The first 132 bytes of such
a file, if it is a regular one and no link, decide. Links to folders are followed on request, each folder once, so that
no loop can catch the walk.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from featcache.errors import from_os_error, in_our_words
from featcache.images import dicom
from featcache.manifest import housekeeping
from featcache.names import from_system

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".dcm", ".dicom"}
)
LINK, OWN, SYSTEM, UNREADABLE = "link to a folder", "written by featcache", "system file", "unreadable folder"
COMPANION = "companion of an image"
_OTHER, _NO_FILE, _CLOSED = "not an image name", "not a regular file", "unreadable file without a suffix"
_SEVERAL = {  # how a reason is counted in a sentence
    LINK: "links to folders", SYSTEM: "system files", UNREADABLE: "unreadable folders",
    COMPANION: "companions of images", _CLOSED: "unreadable files without a suffix",
}  # fmt: skip
_NO_SUFFIX = re.compile(r"(\.\d*)?")  # what `splitext` leaves of IM0001 and of 1.2.840.113619.2
_DICOM_HEAD = 132  # bytes


@dataclass
class Listing:
    """What is below a folder. Names are relative to it, with `/` between their parts.

    Attributes:
        paths: name of an image -> its path.
        folders: those that were listed, but for the first.
        skipped: files that are no images, by reason.
        unreadable: folders that cannot be listed.
        links: links to folders that were not followed, though they may lead to images.
        own: folders in which featcache has written.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    own: set[str] = field(default_factory=set)

    def without_images(self) -> list[str]:
        """The folders below which no image is, as far as one can tell, and nothing of ours."""
        names = [*self.paths, *(f"{folder}/" for folder in {*self.own, *self.unreadable, *self.links})]
        full = {"/".join(parts[:n]) for name in names if (parts := name.split("/")) for n in range(1, len(parts))}
        return sorted(set(self.folders) - full)


def list_images(root: Path, follow_links: bool = False) -> Listing:
    """Lists a folder and those below it.

    Args:
        root: the folder.
        follow_links: walk into links to folders too, after all that is no link; a folder that was walked already, or
            that holds `root`, is skipped.

    Raises:
        FeatcacheError: `root` itself cannot be listed.
    """
    walk = _Walk(root, follow_links)
    walk.run()
    return walk.listing


def in_words(skipped: Mapping[str, int]) -> str:
    """`3 system files, 1 link to a folder`; empty where nothing was skipped."""
    rows = sorted(skipped.items(), key=lambda row: (-row[1], row[0]))
    return ", ".join(f"{n:,} {_SEVERAL.get(reason, reason) if n != 1 else reason}" for reason, n in rows)


def is_image(path: Path) -> bool:
    """Whether a file that was named itself is one, by its suffix, or without one by its first bytes."""
    suffix = os.path.splitext(path.name)[1].lower()
    if suffix in IMAGE_SUFFIXES or not _NO_SUFFIX.fullmatch(suffix):
        return suffix in IMAGE_SUFFIXES
    with in_our_words("reading", path), open(path, "rb") as file:
        return dicom.is_dicom(file.read(_DICOM_HEAD))


@dataclass
class _Walk:
    """One walk. Folders wait in `waiting`, links to folders in `links`, which are walked when nothing else is left."""

    root: Path
    follow_links: bool
    listing: Listing = field(default_factory=Listing)
    waiting: list[tuple[str, Path]] = field(default_factory=list)
    links: list[tuple[str, Path]] = field(default_factory=list)
    walked: set[tuple[int, int]] = field(default_factory=set)  # device and inode; kept only where links are followed

    def run(self) -> None:
        self.waiting.append(("", self.root))
        while self.waiting or self.links:
            if self.waiting:
                self._look_into(*self.waiting.pop())
            else:
                self.links.sort(reverse=True)
                self._follow(*self.links.pop())

    def _look_into(self, name: str, folder: Path) -> None:
        entries = self._entries(name, folder)
        names = {entry.name for entry in entries}
        if name and housekeeping.is_demo_folder(os.fspath(folder), names):
            self.listing.skipped[OWN] += _n_files(folder)
            self.listing.own.add(name)
            return
        if name:
            self.listing.folders.append(name)
        is_own = housekeeping.is_own_folder(os.fspath(folder), names)
        for entry in entries:
            self._take(f"{name}/{from_system(entry.name)}" if name else from_system(entry.name), entry, names, is_own)

    def _entries(self, name: str, folder: Path) -> list[os.DirEntry[str]]:
        try:
            if self.follow_links:
                self.walked.add(_inode(folder))
            with os.scandir(folder) as entries:
                return list(entries)
        except OSError as error:
            if not name:
                raise from_os_error(error, "listing", folder) from error
            self.listing.skipped[UNREADABLE] += 1
            self.listing.unreadable.append(name)
            return []

    def _take(self, name: str, entry: os.DirEntry[str], names: Set[str], is_own: bool) -> None:
        """One entry of a folder: to be walked, an image, or skipped."""
        skipped, path = self.listing.skipped, Path(entry.path)
        if housekeeping.is_system(entry.name):
            own = housekeeping.is_own_name(entry.name)
            skipped[OWN if own else SYSTEM] += _n_files(path) if entry.is_dir(follow_symlinks=False) else 1
        elif entry.is_dir(follow_symlinks=False):
            self.waiting.append((name, path))
        elif os.path.isdir(entry):
            self.links.append((name, path)) if self.follow_links else self._skip_link(name, path)
        elif reason := OWN if is_own else _why_skipped(entry, names):
            skipped[reason] += 1
            if reason == OWN:
                self.listing.own.add(os.path.dirname(name))
        else:
            self.listing.paths[name] = path

    def _follow(self, name: str, link: Path) -> None:
        target = os.path.realpath(link)
        if _inode(link) in self.walked or _is_within(os.path.realpath(self.root), target):
            self.listing.skipped[LINK] += 1
        else:
            self.waiting.append((name, link))

    def _skip_link(self, name: str, link: Path) -> None:
        """A link to what is in the folder anyway hides nothing."""
        self.listing.skipped[LINK] += 1
        root, target = os.path.realpath(self.root), os.path.realpath(link)
        if not _is_within(target, root) and not _is_within(root, target):
            self.listing.links.append(name)


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _inode(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _n_files(folder: Path) -> int:
    """Entries below a folder that are no folders, as far as it can be listed; one at least, which stands for it."""
    n, waiting = 0, [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    n += 1
    return max(1, n)


def _why_skipped(entry: os.DirEntry[str], names: Set[str]) -> str | None:
    """Why an entry that leads to no folder is no image."""
    if not os.path.isfile(entry):
        return _NO_FILE
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    if housekeeping.is_own_file(entry.path, names):
        return OWN
    return _why_no_dicom(entry) if _NO_SUFFIX.fullmatch(suffix) else _OTHER


def _why_no_dicom(entry: os.DirEntry[str]) -> str | None:
    """Of a file without a suffix. A link is not opened: it may lead out of the folder, which is decided later."""
    if entry.is_symlink():
        return _OTHER
    try:
        with open(os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return None if dicom.is_dicom(file.read(_DICOM_HEAD)) else _OTHER
    except OSError:
        return _CLOSED
