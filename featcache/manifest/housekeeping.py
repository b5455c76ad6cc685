"""What lies between images and is none of them: files of operating systems, of servers and sync programs, and our own.

System files are known by their names, the files that featcache writes by what they begin with, or by what stands beside
them: a folder that merely has a name such as `runs` is a folder of images. At most 4 KiB of a file are read.
"""

import os
import re
from collections.abc import Set
from pathlib import Path

_SYSTEM = frozenset(
    {
        # Windows: recycle bins, volume information, thumbnail and folder caches; chkdsk
        "$recycle.bin", "recycler", "recycled", "system volume information", "thumbs.db", "ehthumbs.db",
        "ehthumbs_vista.db", "desktop.ini", "iconcache.db", "found.000", "msdownld.tmp",
        # macOS, also on volumes of others (names with a leading dot need no entry)
        "__macosx", "icon\r", "network trash folder", "temporary items", "thevolumesettingsfolder",
        "thefindbycontentfolder", "desktop db", "desktop df", "resource.frk",
        # Linux and Unix; snapshots of NetApp filers
        "lost+found", "~snapshot", "aquota.user", "aquota.group",
        # Synology DSM
        "@eadir", "#recycle", "#snapshot", "@tmp", "@sharebin", "@database", "@syncrecycle",
        # QNAP QTS
        "@recycle", "@recently-snapshot", "@__thumb", "@transcode", "network recycle bin 1",
        # programs: GoodSync, Picasa, Python
        "_gsdata_", "picasa.ini", "__pycache__",
        # DICOM media: an index of files, no image
        "dicomdir",
    }
)  # fmt: skip
_SYSTEM_START = (".", "~$")  # hidden files, AppleDouble and caches; owner files of office programs
_SYSTEM_END = (".lrdata", "@synoeastream", "@synoresource")  # Lightroom previews; Synology attributes

_HEAD_BYTES = 4096
_BEGIN = {  # of a file of ours: a pattern in its first bytes, by suffix
    ".h5": rb"\A\x89HDF.*featcache\.(store|part|fusion)", ".hdf5": rb"\A\x89HDF.*featcache\.(store|part|fusion)",
    ".html": rb'<meta name="generator" content="featcache ', ".safetensors": rb'"featcache',
    ".json": rb'\A\{\s*"format": "featcache\.',
    ".csv": rb"\A(image_id,prediction|path,code,reason|file,run,section\r?\n)",
}  # fmt: skip
_FOLDER_MARKS = ("head.safetensors", "images.json", "index.csv")  # of a Run and an evaluation; of a report's figures
_AUDIT = frozenset(
    {"audit.json", "identical.csv", "near_duplicates.csv", "confounds.csv", "outliers.csv", "labels.csv"}
)
_DEMO = frozenset({"images", "phantoms.h5", "linear"})
_OWN_NAME = re.compile(r"\.\.?.+\.h5\.seen|.+\.fcb\.zip", re.IGNORECASE | re.DOTALL)


def is_system(name: str) -> bool:
    """Whether a file or folder of this name belongs to a system or a program, and holds no image of a data set."""
    lowered = name.lower()
    return lowered in _SYSTEM or name.startswith(_SYSTEM_START) or lowered.endswith(_SYSTEM_END)


def is_own_name(name: str) -> bool:
    """Whether only featcache gives a file this name: a bundle, or what was seen when a store was made."""
    return _OWN_NAME.fullmatch(name) is not None


def is_own_folder(folder: str, names: Set[str]) -> bool:
    """Whether featcache has written the files of a folder: a Run, the figures of a report, the parts of a stopped pass.
    Folders below it are somebody's until they are known to be ours as well.

    Args:
        folder: its path.
        names: what is in it.
    """
    if folder.endswith(".partial") and "plan.json" in names:
        return True
    return any(name in names and _begins_as_ours(os.path.join(folder, name)) for name in _FOLDER_MARKS)


def is_demo_folder(folder: str, names: Set[str]) -> bool:
    """Whether `featcache demo` has written a folder: its images are synthetic."""
    return names >= _DEMO and _begins_as_ours(os.path.join(folder, "phantoms.h5"))


def is_own_file(path: str, names: Set[str]) -> bool:
    """Whether featcache has written a file that is no image: a store, a page, a table, a bundle.

    Args:
        path: path of a regular file.
        names: what is in its folder.
    """
    name = os.path.basename(path)
    return is_own_name(name) or (name in _AUDIT and names >= _AUDIT) or _begins_as_ours(path)


def _begins_as_ours(path: str) -> bool:
    pattern = _BEGIN.get(os.path.splitext(path)[1].lower())
    return pattern is not None and re.search(pattern, _head(Path(path)), re.DOTALL) is not None


def _head(path: Path) -> bytes:
    """The first bytes of a file; none of a link, of what is no regular file, or of what cannot be read."""
    try:
        if path.is_symlink() or not path.is_file():
            return b""
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""
