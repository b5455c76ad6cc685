"""Looks at a file before a value of it is read: may it be read at all?

HDF5 lets a file name other files to be read in its place (external links, external storage, virtual datasets), declare
more rows than there are atoms in the disk, and pull in decoders. A store, a part of one and a fusion file have none of
that, so whatever asks for it was not written by featcache. Nothing here reads an array; a damaged header is the
caller's `reading` guard to put in words.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from featcache.durable import kind_of, open_regular
from featcache.errors import (
    CorruptStore,
    InvalidParameter,
    StoreNotFound,
    UnknownFormat,
    UntrustedFile,
    UsageError,
    from_os_error,
)
from featcache.specs import POOLED, STORED_DTYPES
from featcache.store.schema import FORMAT, FUSION_FORMAT, FUSION_VERSION, PART_FORMAT, SIGNATURE, VERSION, get_text

_MAX_CHUNK_BYTES = 1 << 28
_MAX_MEMBERS = 10_000  # of a group
_MAX_ATTRIBUTE_BYTES = 1 << 26
_MAX_TEXT_BYTES = 1 << 16  # of one text; the longest cell of a manifest is a quarter of it
_SUFFIXES = (".h5", ".hdf5")
_OF_THE_SYSTEM = (errno.EIO, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EMFILE, errno.ENOMEM, errno.ESTALE)
_SIGNATURE_ALIKE = 6  # of the eight bytes; fewer and the file is something else, not a damaged store


@dataclass(frozen=True)
class Kind:
    """A kind of file, and what a person is told of one that cannot be read.

    Attributes:
        name: what it is called.
        format, version: what it must say of itself; another major version is refused.
        attributes: texts that it must have.
        may_have: texts that it need not have.
        noun: what a person calls it.
        command: that writes it.
        made_by: the same, with the path of such a file.
        again: how another one is made.
    """

    name: str
    format: str
    version: tuple[int, int]
    attributes: tuple[str, ...]
    may_have: tuple[str, ...]
    noun: str
    command: str
    made_by: str
    again: str

    @property
    def explained(self) -> str:
        """What it is, to somebody who gave something else."""
        return f"a {self.noun} is the .h5 file that {self.command} writes."

    def missing(self, path: Path) -> str:
        """Of a path at which there is nothing: how it is made, where its name is that of such a file; or that a pass
        into it has not finished."""
        if path.name and path.with_name(f"{path.name}.partial").is_dir():
            return (
                f"there is no {self.noun} at {path} yet: a pass into it is running, or was stopped before its end. "
                f"featcache status {path} says which, and how far it is; the same {self.command} command goes on."
            )
        way = f"Make one with: {self.made_by.format(path=path)}" if path.suffix in _SUFFIXES else self.explained
        return f"there is no {self.noun} at {path}. {way[0].upper()}{way[1:]}"


STORE = Kind(
    "featcache store", FORMAT, VERSION,
    ("format", "identity", "identity_sha256", "environment", "datasets_sha256"), ("weights_source",),
    "store", "featcache embed", "featcache embed IMAGES -o {path}", "Embed into another file.",
)  # fmt: skip
FUSION = Kind(
    "featcache fusion file", FUSION_FORMAT, FUSION_VERSION,
    ("format", "identity", "identity_sha256", "about", "datasets_sha256"), (),
    "fusion file", "featcache export-studies", "featcache export-studies STORE.h5 {path}", "Export it again.",
)  # fmt: skip


@contextmanager
def reading(path: Path, part: str, kind: Kind = STORE) -> Iterator[None]:
    """Damage, in whatever words HDF5, numpy or json put it, as one error of ours. A device that fails is no damage."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if isinstance(error, UsageError) and not isinstance(error, InvalidParameter):
            raise
        _raise_if_device_failed(path, error)
        reason = " ".join(str(error).split())[:200]
        raise CorruptStore(f"{path} is damaged: {part} cannot be read ({reason}). {kind.again}") from error


def open_file(path: Path, kind: Kind = STORE) -> h5py.File:
    """Opens an HDF5 file for reading, without a lock: a published file never changes, and read-only or network file
    systems may refuse locks.

    Raises:
        StoreNotFound, UnknownFormat, CorruptStore, AccessDenied, InputOutputError.
    """
    alike = _signature_alike(path, kind)
    try:
        return h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError) as error:
        _raise_if_device_failed(path, error)
        if alike >= _SIGNATURE_ALIKE:
            raise CorruptStore(f"{path} is damaged or cut short ({error}).") from error
        raise UnknownFormat(f"{path} is not a {kind.name}.") from error


def _raise_if_device_failed(path: Path, error: Exception) -> None:
    """Tells an operating system that could not read, by its own words in HDF5's, from bytes that make no sense."""
    for number in _OF_THE_SYSTEM:
        if f"errno = {number}," in str(error) or getattr(error, "errno", None) == number:
            raise from_os_error(OSError(number, os.strerror(number)), "reading", path) from error


def _signature_alike(path: Path, kind: Kind) -> int:
    """How many of the signature's bytes are there. Reads them itself, for the operating system's own reason where it
    cannot be opened, which h5py hides in its message."""
    try:
        if not path.is_dir() and not path.is_file() and path.exists():
            raise UsageError(f"{path} is {kind_of(path)}; {kind.explained}")
        with open_regular(path) as raw:
            return sum(a == b for a, b in zip(raw.read(len(SIGNATURE)), SIGNATURE, strict=False))
    except FileNotFoundError as error:
        raise StoreNotFound(kind.missing(path)) from error
    except OSError as error:
        raise from_os_error(error, "reading", path) from error


# --- a file -----------------------------------------------------------------------------------------------------------


def check(path: Path, file: h5py.File, kind: Kind) -> None:
    """Refuses a file that is not of this kind and version, or that asks for more than being read.

    Raises:
        UnknownFormat: another kind of file, or another major version.
        UntrustedFile: links, external storage, virtual sources, foreign types or filters, absurd sizes.
        CorruptStore: an object that every file of this kind has is missing.
    """
    with reading(path, "its head", kind):
        _check_version(path, file, kind)
        for name in kind.attributes:
            _check_text_attribute(path, file, name)
        for name in kind.may_have:
            if h5py.h5a.exists(file.id, name.encode()):
                _check_text_attribute(path, file, name)
        _check_tree(path, file, *_TREES[kind.format])


def _check_version(path: Path, file: h5py.File, kind: Kind) -> None:
    if not _is_plain_text(file, "format") or get_text(file, "format") != kind.format:
        raise UnknownFormat(f"{path} is an HDF5 file, but not a {kind.name}.")
    version = h5py.h5a.open(file.id, b"format_version")
    if version.shape != (2,) or version.dtype.kind not in "iu":
        raise UntrustedFile(f"{path}: its format_version is not two numbers.")
    major, minor = (int(number) for number in file.attrs["format_version"])
    if major != kind.version[0]:
        raise UnknownFormat(
            f"{path} is of format {major}.{minor}; this featcache reads {kind.version[0]}.x. Upgrade it."
        )


def _check_text_attribute(path: Path, file: h5py.File, name: str) -> None:
    if not h5py.h5a.exists(file.id, name.encode()):
        raise CorruptStore(f"{path} is damaged: it has no attribute {name}.")
    if not _is_plain_text(file, name):
        raise UntrustedFile(f"{path}: its attribute {name} is not a text of fixed length.")


def _is_plain_text(file: h5py.File, name: str) -> bool:
    """Whether an attribute is one text of fixed length: reading any other kind may follow pointers."""
    if not h5py.h5a.exists(file.id, name.encode()):
        return False
    attribute = h5py.h5a.open(file.id, name.encode())
    kind = attribute.get_type()
    plain = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str() and attribute.shape == ()
    return plain and attribute.get_storage_size() <= _MAX_ATTRIBUTE_BYTES


def _text(dataset: h5py.h5d.DatasetID) -> str | None:
    kind = dataset.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str() or len(dataset.shape) != 1:
        return "is not a list of texts of fixed length"
    return None if kind.get_size() <= _MAX_TEXT_BYTES else f"has texts of {kind.get_size():,} bytes"


def _vectors(dataset: h5py.h5d.DatasetID) -> str | None:
    if not isinstance(dataset.get_type(), h5py.h5t.TypeFloatID) or dataset.dtype.name not in STORED_DTYPES:
        return f"is not of {' or '.join(STORED_DTYPES)}"
    return None if len(dataset.shape) >= 2 else "has no axis of features"


def _integers(dataset: h5py.h5d.DatasetID) -> str | None:
    whole = isinstance(dataset.get_type(), h5py.h5t.TypeIntegerID) and len(dataset.shape) == 1
    return None if whole else "is not a list of whole numbers"


def _flags(dataset: h5py.h5d.DatasetID) -> str | None:
    kind = dataset.get_type()
    small = isinstance(kind, h5py.h5t.TypeIntegerID) and kind.get_size() == 1
    return None if small and 1 <= len(dataset.shape) <= 2 else "is not an array of bytes with one axis or two"


Check = Callable[[h5py.h5d.DatasetID], str | None]  # what is wrong with a dataset, if anything
Tree = Mapping[str, Check]  # "group/*" is any member of a group

_FAILURES: Tree = {"failures/code": _text, "failures/reason": _text}
_STORE: Tree = {
    "image_id": _text, "content_sha256": _text, "features/*": _vectors, "columns/*": _text,
    "failures/image_id": _text, **_FAILURES,
}  # fmt: skip
_PART: Tree = {
    "origin": _integers, "content_sha256": _text, "features/*": _vectors,
    "failures/row": _integers, **_FAILURES,
}  # fmt: skip
_MAY_BE: Tree = {
    "image_tokens": _vectors, "logits": _vectors, "logits_mask": _flags, "logits_head": _flags, "fold": _integers,
}  # fmt: skip
_FUSION: Tree = {
    "study_id": _text, "group_number": _integers, "image_vectors": _vectors, "image_mask": _flags, **_MAY_BE,
    "images/image_id": _text, "images/content_sha256": _text, "images/study": _integers, "images/view": _integers,
    "columns/*": _text, "image_columns/*": _text, "text_bytes/*": _flags, "text_offsets/*": _integers,
}  # fmt: skip


def _required(tree: Tree, also: Iterable[str] = (), but: Iterable[str] = ()) -> set[str]:
    return {name for name in tree if not name.endswith("*")} - set(but) | set(also)


_TREES: Mapping[str, tuple[Tree, set[str]]] = {  # and what of it must be there
    FORMAT: (_STORE, _required(_STORE, also=[f"features/{POOLED}"])),
    PART_FORMAT: (_PART, _required(_PART, also=[f"features/{POOLED}"])),
    FUSION_FORMAT: (_FUSION, _required(_FUSION, but=_MAY_BE)),
}


def check_part(path: Path, file: h5py.File) -> None:
    """The same for a part file, whose bytes agree with the digest in its name, but may be somebody else's."""
    with reading(path, "its head"):
        _check_tree(path, file, *_TREES[PART_FORMAT])


# --- any tree ---------------------------------------------------------------------------------------------------------


def _check_tree(path: Path, file: h5py.File, tree: Tree, required: set[str]) -> None:
    """Everything required is there, and all that the tree names is plain; what it does not name is no link either, and
    is never opened."""
    n_bytes = 0
    names = set()
    for name, dataset in _members(path, file, tree):
        names.add(name)
        fault_of = tree.get(name) or tree[f"{name.rsplit('/', 1)[0]}/*"]
        if reason := fault_of(dataset) or _not_plain(dataset):
            raise UntrustedFile(f"{path}: {name} {reason}. It was not written by featcache; nothing was read.")
        n_bytes += _n_bytes(dataset)
    if missing := required - names:
        raise CorruptStore(f"{path} is damaged: it has no {', '.join(sorted(missing))}.")
    if n_bytes > (size := os.path.getsize(path)):
        raise UntrustedFile(f"{path} declares {n_bytes:,} bytes of arrays and has {size:,}; nothing was read.")


def _members(path: Path, file: h5py.File, tree: Tree) -> Iterator[tuple[str, h5py.h5d.DatasetID]]:
    """The datasets a tree names, by full name."""
    groups = {name.split("/")[0] for name in tree if "/" in name}
    for name in _links(path, file):
        if name in tree:
            yield name, h5py.h5d.open(file.id, os.fsencode(name))
        elif name in groups:
            group = file[name]
            for member in _links(path, group):
                if f"{name}/{member}" in tree or f"{name}/*" in tree:
                    yield f"{name}/{member}", h5py.h5d.open(group.id, os.fsencode(member))


def _links(path: Path, group: h5py.Group) -> list[str]:
    """The names in a group, each a hard link: soft and external ones lead elsewhere."""
    if len(group) > _MAX_MEMBERS:
        raise UntrustedFile(f"{path}: {group.name} has {len(group):,} members; nothing was read.")
    names = list(group)
    for name in names:
        if group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type != h5py.h5l.TYPE_HARD:
            raise UntrustedFile(f"{path}: {name!r} is a link to another place; nothing was read.")
    return names


def _not_plain(dataset: h5py.h5d.DatasetID) -> str | None:
    """What makes reading a dataset more than reading this file's own, checksummed bytes."""
    plan = dataset.get_create_plist()
    layout = plan.get_layout()
    if plan.get_external_count():
        return "lies in another file (external storage)"
    if layout == h5py.h5d.VIRTUAL:
        return "is made of other datasets (virtual)"
    if layout == h5py.h5d.CHUNKED:
        return _not_plain_chunks(plan, dataset)
    return "is not kept in checksummed chunks" if _n_bytes(dataset) else None


def _not_plain_chunks(plan: h5py.h5p.PropDCID, dataset: h5py.h5d.DatasetID) -> str | None:
    n_bytes = int(np.prod(plan.get_chunk(), dtype=object)) * dataset.get_type().get_size()
    if n_bytes > _MAX_CHUNK_BYTES:
        return f"has chunks of {n_bytes:,} bytes"
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    return None if filters == [h5py.h5z.FILTER_FLETCHER32] else "is filtered in another way than by fletcher32"


def _n_bytes(dataset: h5py.h5d.DatasetID) -> int:
    return int(np.prod(dataset.shape, dtype=object)) * int(dataset.get_type().get_size())
