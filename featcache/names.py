"""Names of files, classes and columns are somebody's text: how they are shown without doing anything.

Knows no terminal and no page: what a name may not mean there is escaped there.
"""

import os
import sys


def from_system(name: str) -> str:
    """A file name as the system gives it, as text: UTF-8 whatever the locale, other bytes as surrogates."""
    if sys.getfilesystemencoding() == "utf-8":
        return name
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def to_system(name: str) -> str:
    """The other way: what the system takes for the file of that name."""
    if sys.getfilesystemencoding() == "utf-8":
        return name
    return os.fsdecode(name.encode("utf-8", "surrogateescape"))


def is_utf8(text: str) -> bool:
    """Whether a text can be kept in UTF-8: bytes of a file name that are not stand in it as surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str, keep_lines: bool = False) -> str:
    """A text with its control characters, and bytes that are not UTF-8, made visible: names are somebody's text."""
    return "".join(
        c if c.isprintable() or (keep_lines and c == "\n") else c.encode("unicode_escape").decode() for c in text
    )


def plural(n: int, noun: str) -> str:
    """`1 image`, `1,200 images`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
