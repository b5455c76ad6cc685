"""Locks on open files by what the platform has: POSIX locks, byte locks on Windows.

A lock belongs to the process and ends with it, however it ends. Where a platform has neither module, files are written
without locks: whoever starts two writers of one output there has to keep them apart.
"""

import errno

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # not Windows
    msvcrt = None  # type: ignore[assignment]

_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)


def lock_file(descriptor: int) -> bool:
    """Locks an open file for this process. Returns False where another process has it locked.

    Raises:
        OSError: the file system cannot lock.
    """
    try:
        if fcntl is not None:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:  # pragma: no cover  # Windows
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def is_locked(descriptor: int) -> bool:
    """Whether another process has an open file locked.

    Raises:
        OSError: the file system cannot say.
    """
    if fcntl is None:
        return not lock_file(descriptor)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return True
        raise
    return False


def lock_for_life(descriptor: int) -> bool | None:
    """Locks a temporary file or folder until it is closed, also by death. Returns whether it could, False where a
    living process has it locked, and None on a file system, or a platform, without such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
