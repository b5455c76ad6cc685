"""The exceptions featcache raises, and the exit code a script gets for each.

A message is one sentence or two: what, where, and what to do. It writes the names of parameters in backticks; the
command line prints it after `featcache: `, shows those names as its options, and exits with `exit_code`. A traceback
means a bug in featcache.

    FeatcacheError                 1   anything else
    ├── UsageError                 2   a parameter, a manifest or a data set that cannot be worked with; a ValueError
    │   └── InvalidParameter       2   a value that a parameter of a spec cannot have
    ├── WeightsUnavailable         1   named weights are neither cached nor reachable
    ├── StoreNotFound             10   no such store
    ├── StoreLocked               11   another process is writing this store
    ├── IdentityMismatch          12   the store holds vectors of another backbone, weights or preprocessing
    ├── CorruptStore              13   damage found
    ├── UnknownFormat             14   not a store, or a store of a newer major version
    ├── InputsChanged             16   what was being read was replaced meanwhile
    ├── NoSpace                   20   disk full or quota reached
    ├── AccessDenied              21   permission denied, read-only file system
    ├── UntrustedFile             22   a file that asks for more than reading it may do
    ├── InputOutputError          74   the operating system could not read or write
    ├── Interrupted              130   Ctrl-C or SIGTERM; everything finished is kept
    └── ImageError                 –   one image cannot be used; never leaves a pass, becomes a failed row

    0 is done, 3 is "finished, some images failed": not exceptions, see `EXIT_SOME_FAILED`.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_SOME_FAILED = 3


class FeatcacheError(Exception):
    """Root of everything featcache raises on purpose."""

    exit_code = 1


class UsageError(FeatcacheError, ValueError):
    """The request cannot be carried out as asked: a parameter, a manifest, labels, a split.

    Messages write the names of parameters in backticks, as in "`lr` must be > 0"; the command line shows them as its
    options.
    """

    exit_code = 2


class InvalidParameter(UsageError):
    """A parameter of a spec has a value that it cannot take, or one that contradicts another parameter."""


class WeightsUnavailable(FeatcacheError):
    """Pretrained weights are neither in the local cache nor reachable. Never answered by a random init."""


class StoreNotFound(FeatcacheError):
    """There is no store at this path."""

    exit_code = 10


class StoreLocked(FeatcacheError):
    """Another process is writing this store."""

    exit_code = 11


class IdentityMismatch(FeatcacheError):
    """The vectors at this path were made by another backbone, other weights or another preprocessing."""

    exit_code = 12


class CorruptStore(FeatcacheError):
    """A file's bytes are not the bytes that were written."""

    exit_code = 13


class UnknownFormat(FeatcacheError):
    """Not a featcache file, or one of a major version this release cannot read."""

    exit_code = 14


class InputsChanged(FeatcacheError):
    """A file that was open for reading has been replaced by another since."""

    exit_code = 16


class NoSpace(FeatcacheError):
    """The disk is full or a quota is reached."""

    exit_code = 20


class AccessDenied(FeatcacheError):
    """Permission denied or a read-only file system."""

    exit_code = 21


class UntrustedFile(FeatcacheError):
    """A file asks for more than being read: pickled objects, links out of the file, absurd sizes."""

    exit_code = 22


class InputOutputError(FeatcacheError):
    """The operating system could not read or write."""

    exit_code = 74


class Interrupted(FeatcacheError):
    """Stopped by Ctrl-C or SIGTERM. Everything finished is kept."""

    exit_code = 130


class ImageError(FeatcacheError):
    """One image cannot be used. `code` is a word for scripts, the message is the reason for people."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
_WRONG_PATH = {
    errno.EISDIR: "it is a folder; a file is expected",
    errno.ENOTDIR: "a file stands where a folder is expected",
    errno.EEXIST: "something else of that name stands in the way",
    errno.ELOOP: "its links lead to one another",
    errno.ENAMETOOLONG: "the name is too long",
}


def from_os_error(error: OSError, doing: str, path: Path) -> FeatcacheError:
    """The exception of the tree for an `OSError` met while `doing` ("writing", "reading") something at `path`."""
    reason = error.strerror or type(error).__name__
    if error.errno in _SPACE:
        return NoSpace(f"no space: {doing} {path} stopped ({reason}). Free some and run the same command again.")
    if error.errno in _ACCESS:
        return AccessDenied(f"{doing} {path}: {reason.lower()}. Choose a folder you may write to.")
    if error.errno in _WRONG_PATH:
        name = error.filename2 or error.filename or path  # of a rename its target
        return UsageError(f"{doing} {name}: {_WRONG_PATH[error.errno]}. Name another path.")
    return InputOutputError(f"{doing} {path}: {reason.lower()}.")


@contextmanager
def in_our_words(doing: str, path: Path) -> Iterator[None]:
    """Turns any `OSError` of a block into the exception of the tree."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing, path) from error
