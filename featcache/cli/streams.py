"""stdout and stderr that may fail: a full disk behind stdout is one line and exit code 20, a reader who has seen enough
(`| head -1`) is no fault at all, and what cannot be told on stderr is not told.

A finished command is not undone by an answer that cannot be written. After the first failure nothing more is written to
a stream, so that the interpreter has nothing left to say at its end.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from featcache.errors import FeatcacheError, from_os_error

SIGPIPE_EXIT = 141  # as a shell has it of a program that SIGPIPE ended


class ReaderGone(FeatcacheError):
    """Whoever read stdout has closed it."""

    exit_code = SIGPIPE_EXIT


class Stream:
    """A text stream whose failures are errors of ours (stdout), or are passed over (stderr)."""

    def __init__(self, stream: TextIO, is_stdout: bool) -> None:
        self._stream, self._is_stdout, self._is_over = stream, is_stdout, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """All of a text, or nothing after the first failure."""
        return len(text) if self._is_over else self._tried(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """What is buffered goes out."""
        if not self._is_over:
            self._tried(self._stream.flush, None)

    def writelines(self, lines: Any) -> None:
        """Each of several texts."""
        for line in lines:
            self.write(line)

    def _tried(self, work: Any, otherwise: Any) -> Any:
        try:
            return work()
        except (OSError, ValueError) as error:  # a ValueError of a stream that is closed
            self._give_up()
            if self._is_stdout:
                _raise(error)
            return otherwise

    def _give_up(self) -> None:
        """What is still buffered goes nowhere: the interpreter would try once more at its end, and say so."""
        self._is_over = True
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def _raise(error: OSError | ValueError) -> NoReturn:
    if isinstance(error, BrokenPipeError):
        raise ReaderGone("the reader of standard output has closed it") from error
    os_error = error if isinstance(error, OSError) else OSError(errno.EBADF, os.strerror(errno.EBADF))
    raise from_os_error(os_error, "writing", Path("standard output")) from error


@contextmanager
def guarded() -> Iterator[None]:
    """stdout and stderr as `Stream` within the block; what is buffered is written at its end."""
    _open_what_is_closed()
    before = sys.stdout, sys.stderr
    out: Any = Stream(before[0], is_stdout=True)
    err: Any = Stream(before[1], is_stdout=False)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        err.flush()
        sys.stdout, sys.stderr = before


def _open_what_is_closed() -> None:
    """Where a program is started with a closed stream, the next file it opens would be that stream."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)
                continue
            descriptor = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
    for name, mode in (("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # until the end
