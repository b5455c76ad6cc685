"""Words that stand for a missing value: one rule for every table that is read.

Programs write a word where a value is missing: pandas and NumPy `nan`, R `NA`, a database `NULL` or `\\N`, a
spreadsheet `#N/A`. As a class, such a word turns unlabelled images into one; as a group, it turns unknown patients into
one. Cells are compared as a whole, without the blanks around them: "No acute disease" is text.

Two kinds of columns differ in a few short words. In a column of *values* (labels, groups, keys) `None`, a lone `.`
(SAS, Stata) and a lone `?` (ARFF) are missing. In a column of *prose* (reports, and every column that is neither label,
group nor split) they are text: of the 3,851 comparisons of the Indiana reports 567 are "None" and 814 "None.", which
radiologists wrote. `none` in lower case is what no program writes, and stays a class, as a grade of none, mild, severe.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

VALUE_COLUMNS = frozenset({"label", "group", "split"})  # of a manifest or a store; its others are prose

# Compared in lower case. The sources: pandas 2.3 `_libs/parsers.pyx` STR_NA_VALUES and the text of NaT and NA; R 4
# `read.table(na.strings)` and a factor's <NA>; printf of C and of Microsoft's libraries; NULL and \N of COPY of
# PostgreSQL and LOAD DATA of MySQL; error values of Excel, which say that a formula has no value.
_MISSING = frozenset(
    {
        *("nan", "+nan", "-nan", "nan(ind)", "-nan(ind)", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "nat"),
        *("na", "n/a", "n.a.", "<na>", "null", "(null)", "\\n"),
        *("#n/a", "#n/a n/a", "#na", "#nan", "#null!", "#div/0!", "#value!", "#ref!", "#name?", "#num!"),
    }
)
_MISSING_VALUES = frozenset({"None", ".", "?"})  # as they are written
_DOUBTFUL = frozenset({"none", "unknown", "missing", "not available", "undefined", "-", "--"})  # people's words
_INVISIBLE = "\u200b\ufeff"  # zero-width blanks, which `strip` leaves
_SHOWN = 3


def is_missing(text: str, prose: bool = False) -> bool:
    """Whether a cell holds no value: it is blank, or a word that a program wrote for a missing value.

    >>> is_missing("NaN"), is_missing("None"), is_missing("None", prose=True), is_missing("No acute disease")
    (True, True, False, False)

    Args:
        text: the cell.
        prose: the cell is of a column of text, where `None`, `.` and `?` are what somebody wrote.
    """
    cell = _listed(text)
    return not cell or cell.lower() in _MISSING or (not prose and cell in _MISSING_VALUES)


def is_prose(column: str) -> bool:
    """Whether a column of a manifest or a store is read as text: all but label, group and split."""
    return column not in VALUE_COLUMNS


def without_missing(texts: Sequence[str], prose: bool = False) -> list[str]:
    """The cells of a column, empty where they are missing and otherwise as they are."""
    absent = {text for text in set(texts) if is_missing(text, prose)}
    return ["" if text in absent else text for text in texts]


def words(texts: Sequence[str], prose: bool = False) -> Counter[str]:
    """How often each word for a missing value stands in a column; blank cells are no words."""
    counts = Counter[str]()
    for text, n in Counter(texts).items():
        if (cell := _listed(text)) and is_missing(cell, prose):
            counts[cell] += n
    return counts


def doubtful(texts: Sequence[str]) -> Counter[str]:
    """How often words stand among labels that people write both for a class and for a missing value."""
    return Counter(text for text in texts if text.strip().lower() in _DOUBTFUL)


def notes(source: object, columns: Mapping[str, Counter[str]]) -> list[str]:
    """One sentence about the words for missing values of a table; none where it has none.

    Args:
        source: the table, for the sentence.
        columns: `words` of each column by its name.
    """
    counted = {name: word_counts for name, word_counts in columns.items() if word_counts}
    if not counted:
        return []
    parts = ", ".join(
        f"{word_counts.total():,} of column {name} ({_examples(word_counts)})" for name, word_counts in counted.items()
    )
    lead = f"{source} has words for a missing value, which are read as empty cells: {parts}"
    return [f"{lead}. Where such a word is meant as a value, write another one."]


def _listed(text: str) -> str:
    return text.strip().strip(_INVISIBLE).strip()


def _examples(word_counts: Counter[str]) -> str:
    """`'nan' 12 times, 'N/A' 2 times`."""
    examples = (f"{word!r} {n:,} times" if n > 1 else repr(word) for word, n in word_counts.most_common(_SHOWN))
    return ", ".join(examples) + (f" and {len(word_counts) - _SHOWN} other words" if len(word_counts) > _SHOWN else "")
