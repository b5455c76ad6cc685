"""Whether the keys of a table are those of the images, and if not, why: a suffix, a folder, the format of a number.

Two tables that should fit and do not are the commonest reason for labels that are not there. Keys are compared as they
are written, and nothing is guessed; but where many find no partner, a note shows one of each side, and what would make
them equal.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence

_SHARE = 0.5  # of the images; where fewer have a partner, it is said
_SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (  # of equals the first is said
    ("upper and lower case", str.lower),
    ("blanks", lambda key: "".join(key.split())),
    ("the decimals of a number", lambda key: re.sub(r"\.0+$", "", key)),
    ("zeros before a number", lambda key: key.lstrip("0") or "0"),
    ("zeros before a number and its decimals", lambda key: re.sub(r"\.0+$", "", key).lstrip("0") or "0"),
    ("the direction of slashes", lambda key: key.replace("\\", "/").removeprefix("./")),
    ("the file name's extension", lambda key: os.path.splitext(key)[0]),
    ("the folder before the name", lambda key: key.replace("\\", "/").rsplit("/", 1)[-1]),
    ("folder and extension", lambda key: os.path.splitext(key.replace("\\", "/").rsplit("/", 1)[-1])[0]),
    ("the Unicode form of accents", lambda key: unicodedata.normalize("NFC", key)),
    ("case, folder and extension", lambda key: os.path.splitext(key.replace("\\", "/").rsplit("/", 1)[-1])[0].lower()),
)


def sides(on: str) -> tuple[str, str]:
    """The columns by which two tables are joined: `image_id=filename` where the names differ, else one for both."""
    ours, _, theirs = on.partition("=")
    return ours.strip(), theirs.strip() or ours.strip()


def difference(keys: Collection[str], other_keys: Collection[str]) -> str:
    """In what two sets of keys differ that have none in common, with an example of each side; empty if unknown."""
    best: tuple[int, str] = (0, "")
    for name, spelled in _SPELLINGS:
        of_other = {spelled(other): other for other in sorted(other_keys, reverse=True)}
        pairs = [(key, of_other[spelled(key)]) for key in keys if spelled(key) in of_other]
        if len(pairs) > best[0]:
            best = len(pairs), f"{min(pairs)[0]!r} and {min(pairs)[1]!r} differ in {name}"
    return best[1]


def notes(source: object, ours: Sequence[str], theirs: Collection[str]) -> list[str]:
    """A sentence where few of the images have a partner in a table, or where more would with another spelling.

    Args:
        source: the table, for the sentence.
        ours: the keys of the images, empty where missing.
        theirs: the keys of the table.
    """
    keys, other_keys = {key for key in ours if key}, set(theirs) - {""}
    alone, unused = keys - other_keys, other_keys - keys
    n_matched = sum(key in other_keys for key in ours)
    reason = difference(alone, unused) if alone and unused else ""
    if not alone or not (reason or n_matched < _SHARE * len(ours)):
        return []
    of_table = f", and of the table {min(unused)!r}" if unused else ""
    return [
        f"{n_matched:,} of {len(ours):,} images have a row in {source}; "
        + (f"{reason}." if reason else f"of the others one is {min(alone)!r}{of_table}.")
    ]


def column_like(ours: Collection[str], columns: Mapping[str, Sequence[str]]) -> str:
    """The column of a table with most of the keys of the images, as they are or nearly; empty where none has any."""
    for spelled in (str, _SPELLINGS[-1][1]):
        keys = {spelled(key) for key in ours if key}
        shared = {name: len(keys & set(map(spelled, cells))) for name, cells in columns.items()}
        best = max(shared, key=lambda name: shared[name], default="")
        if best and shared[best]:
            return best
    return ""
