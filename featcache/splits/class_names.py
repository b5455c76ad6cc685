"""What the names of classes say before anything is trained: which one is positive, and whether they are classes.

A class is a text, and texts are written by people and programs: `0` beside `0.0`, `Normal` beside `normal`, lists of
findings, ages, codes for "uncertain". Two spellings that are one number, or that look the same, are one class. All else
is said in a note, never changed: `a` and `A` may be two letters of an alphabet. Knows nothing of images or of what is
learnt: names with their counts in, sentences out.
"""

import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from featcache.tables.missing import doubtful

Counts = Mapping[str, int]

UNCERTAIN = -1.0  # of CheXpert and MIMIC-CXR (Irvin et al., "CheXpert", AAAI 2019, section 3)

_MANY_NUMBERS = 10  # classes; more numbers than these are measurements, not digits
_MANY_FRACTIONS = 3
_MANY_IDS = 5
_SHOWN = 3
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?\d+,0+", re.IGNORECASE)
_DATE = re.compile(
    r"(19|20)\d\d([-/.]?)(0?[1-9]|1[0-2])\2(0?[1-9]|[12]\d|3[01])([T ].*)?|\d{1,2}([-/.])\d{1,2}\6\d{2,4}"
)
_BRACKETS = re.compile(r"[\[({].*[\])}]")
_MISSING_CODES = frozenset({-999.0, -99.0, -9.0, 9.0, 99.0, 999.0, 9999.0})


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Words that say that something is not there, or that an image is none of the rest.
_ALONE = _set(
    "none nothing rest remainder background clear clean intact nil nihil uninfected unaffected undiseased uninvolved "
    "unremarkable wildtype wt wnl nad cn hc unauffällig o.b. falsch faux falso "
    "норма нет 正常 阴性 陰性 健康"
)
_OTHERS = _set("other others andere anderes sonstige sonstiges autre autres otro otros otra otras altro altri")
_AT_ENDS = _OTHERS | _set(
    "normal normals neg negative negatives control controls ctrl healthy benign absent false "
    "gesund gesunde negativ gutartig sain saine sains négatif négative negatif bénin normale normaux sano sana sanos "
    "negativo negativa benigno normali assente ausente"
)
_NOT = _set(
    "no non not without absence nein nicht ohne kein keine keinen sans pas aucun aucune sin ningún ninguna "
    "senza nessun nessuna sem"
)
_AT_THE_END = frozenset({"free", "none", "0", *_NOT})
_GLUED = re.compile(
    r"(no|non|not)(abnormalit|cancer|covid|dement|disease|dr|finding|fractur|lesion|mass|melanom|nodule|opacit|patholog"
    r"|pneumon|polyp|tb|tumou?r)\w*"
)
_PREFIXES = ("non", "not", "no", "un", "in", "nicht", "ohne")
_LETTERS = {"n": "yjosp", "f": "t"}  # no beside yes, ja, oui, sí or positive; false beside true
_UNSURE = _set(
    "unknown uncertain unclear unsure undetermined undefined unspecified unlabeled unlabelled unclassified ambiguous "
    "indeterminate equivocal inconclusive maybe todo tbd ? ?? unbekannt unklar inconnu desconocido"
)
_YES = frozenset({"1", "true", "t", "yes", "y", "positive", "pos", "present"})
_NO = frozenset({"0", "false", "f", "no", "n", "negative", "neg", "absent"})
_SEPARATORS = ("|", ";", ",", "+", "&", "/")
_SURE_SEPARATORS = ("|", ";")


# --- the positive class -----------------------------------------------------------------------------------------------


def positive_class(classes: Sequence[str]) -> tuple[int, str]:
    """The number of the class that precision, recall and their like are about, and why it is that one.

    It is the last in sorted order of those whose names do not say that something is absent (`normal`, `other`, `no
    tumour`, `non-COVID`, `0`, `false`) or unknown; of all, where that leaves none.

    Args:
        classes: c names, sorted.
    """
    looked_for = [name for name in classes if not negates(name, classes) and _words(name) not in _UNSURE_WORDS]
    chosen = (looked_for or list(classes))[-1]
    if len(classes) != 2:
        return classes.index(chosen), "the last class in sorted order that does not mean absence"
    if len(looked_for) == 1:
        other = next(name for name in classes if name != chosen)
        return classes.index(chosen), f"the name {other!r} says what is absent or not known"
    ambiguity = "neither name says" if looked_for else "both names say"
    return classes.index(chosen), f"the last in alphabetical order, because {ambiguity} what is absent"


def positive_note(classes: Sequence[str], positive: int, why: str) -> str:
    """What a person is told of a positive class that was chosen for them."""
    other_names = " or ".join(repr(name) for i, name in enumerate(classes) if i != positive)
    return f"the positive class is {classes[positive]!r}: {why}. Set `positive` to choose {other_names}."


def negates(name: str, classes: Iterable[str] = ()) -> bool:
    """Whether the name of a class says that something is absent, or that an image is none of the rest.

    Args:
        name: name of the class.
        classes: all names: `unaffected` is the negation of `affected` where that is a class, too.
    """
    if (value := number(name)) is not None:
        return value <= 0
    text = unicodedata.normalize("NFKC", name).replace("−", "-").strip()
    if text.endswith(("-", "(-)")):
        return True
    other_names = [other for other in classes if other != name]
    if _negates_another(text, other_names):
        return True
    folded = text.casefold()
    if folded in _LETTERS and len(other_names) == 1:
        return other_names[0].strip().casefold() in set(_LETTERS[folded])
    return any(_negate(_words(part)) for part in re.split(r"[|,;/]| or ", re.sub(r"(?i)w/o", "without", text)))


def means_no_finding(name: str) -> bool:
    """Whether a part of a list says that the list is empty: `No Finding`, `Normal`; not `Other`."""
    return negates(name) and _OTHERS.isdisjoint(_words(name))


def _negates_another(text: str, other_names: Iterable[str]) -> bool:
    compact = "".join(_words(text))
    negations = {prefix + "".join(_words(other)) for other in other_names if not negates(other) for prefix in _PREFIXES}
    return compact in negations


def _negate(words: Sequence[str]) -> bool:
    """Twice not is a finding: `not normal`, `non-benign`."""
    if not words:
        return False
    if words[0] in _NOT and len(words) > 1:
        return not _negate(words[1:])
    if len(words) == 1 and (words[0] in _ALONE | _NOT or _GLUED.fullmatch(words[0])):
        return True
    at_the_end = words[-1] in _AT_ENDS | _AT_THE_END and words[-2:-1] not in [[word] for word in _NOT]
    return words[0] in _AT_ENDS or at_the_end


def _words(text: str) -> list[str]:
    """Its words, case folded, also those of `NonDemented`; a number before them is an order, as in `0_normal`."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", text)).casefold()
    words = [word for word in re.split(r"[^\w./?]+|_+", apart) if word.strip(".")]
    return words[1:] if len(words) > 1 and words[0].strip(".").isdigit() else words


_UNSURE_WORDS = [[word] for word in _UNSURE] + [["not", "sure"], ["not", "specified"]]


# --- spellings --------------------------------------------------------------------------------------------------------


def number(text: str) -> float | None:
    """The number that a text is, also `1,0`; None for other texts."""
    text = text.strip()
    return float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else None


def same(text: str) -> Hashable:
    """Equal for two texts that are certainly one class: the same number, or the same to the eye (blanks at the ends,
    composed or decomposed accents, characters without a width)."""
    value = number(text)
    return _visible(text) if value is None else value


def alike(text: str) -> Hashable:
    """Equal for two texts that are probably one class: those of `same`, and texts that differ in case or in what stands
    between their words."""
    if (value := number(text)) is not None:
        return value
    folded = unicodedata.normalize("NFKC", _visible(text)).casefold()
    sign = folded[-1:] if folded.endswith(("+", "-")) else ""
    return re.sub(r"(?<=[^\W\d_])(?=\d)", " ", re.sub(r"[\s_-]+", " ", folded)).strip(" .") + sign


def find(name: str, classes: Sequence[str]) -> str | None:
    """The class of that name, or the only one that is the `same`; None where there is none."""
    if name in classes:
        return name
    return next((class_ for class_ in classes if same(class_) == same(name)), None)


def one_spelling(counts: Counts) -> dict[str, str]:
    """Of each text the class that it is: texts that are the `same` are one, by the spelling that is the most frequent
    of a number, and without what cannot be seen of a text."""
    spelling = dict[str, str]()
    for names in _sets(counts, same):
        usual = max(names, key=lambda name: (counts[name], -len(name)))
        kept = usual if len(names) == 1 or number(usual) is not None else _visible(usual)
        spelling |= dict.fromkeys(names, kept)
    return spelling


def _visible(text: str) -> str:
    kept = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    return " ".join(kept.split())


def _sets(names: Iterable[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """The names that share a key, sorted, in the order of the first."""
    sets: dict[Hashable, list[str]] = {}
    for name in sorted(names):
        sets.setdefault(key(name), []).append(name)
    return list(sets.values())


# --- notes ------------------------------------------------------------------------------------------------------------


def notes(counts: Counts) -> list[str]:
    """What is odd about the classes of one column, a sentence or two each, with counts and the way out.

    Args:
        counts: images of each class, without those whose label is unknown.
    """
    spelling = one_spelling(counts)
    classes = dict.fromkeys(spelling.values(), 0)
    for name, n in counts.items():
        classes[spelling[name]] += n
    lists = _about_lists(classes)
    class_notes = [spellings_note(counts), _about_alike(classes), _about_senses(classes), _about_codes(classes), lists]
    if not lists:
        class_notes.append(_about_values(classes))
    return [note for note in (*class_notes, _about_unsure(classes)) if note]


def spellings_note(counts: Counts) -> str:
    """Which texts `one_spelling` makes one class; empty where it makes none."""
    twins = [names for names in _sets(counts, same) if len(names) > 1]
    if not twins:
        return ""
    spelling = one_spelling(counts)
    twins_text = "; ".join(f"{_with_counts(names, counts)} as {spelling[names[0]]!r}" for names in twins[:_SHOWN])
    return f"class names that are the same number, or look the same, are read as one class: {twins_text}{_more(twins)}."


def _about_alike(counts: Counts) -> str:
    twins = [names for names in _sets(counts, alike) if len(names) > 1]
    if not twins:
        return ""
    twins_text = "; ".join(_with_counts(names, counts) for names in twins[:_SHOWN])
    return (
        f"some classes differ only in case, blanks, hyphens or underscores, and are treated as different ones: "
        f"{twins_text}{_more(twins)}. Make them one with merge_classes={_merged(twins, counts)}."
    )


def _about_senses(counts: Counts) -> str:
    """`yes` beside `1`: several codings of one answer."""
    twins = [[name for name in sorted(counts) if _sense(name) in words] for words in (_YES, _NO)]
    twins = [names for names in twins if len({alike(name) for name in names}) > 1]
    if not twins:
        return ""
    twins_text = "; ".join(_with_counts(names, counts) for names in twins)
    return (
        f"the label column has several words for one answer, which are treated as different classes: {twins_text}. "
        f"Make them one with merge_classes={_merged(twins, counts)}."
    )


def _sense(name: str) -> str:
    value = number(name)
    return f"{value:g}" if value is not None else name.strip().casefold()


def _about_codes(counts: Counts) -> str:
    """Numbers among the classes that stand for no class."""
    value_of = {name: value for name in counts if (value := number(name)) is not None}
    values = set(value_of.values())
    if UNCERTAIN in values and len(values) > 1 and values <= {UNCERTAIN, 0.0, 1.0}:
        name = next(name for name, value in value_of.items() if value == UNCERTAIN)
        return (
            f"{name!r} ({counts[name]:,} images) is a class of its own beside {_names(set(value_of) - {name})}; in "
            f"CheXpert and MIMIC-CXR it means uncertain. Set uncertain to 'ignore' to leave these images out, or to "
            f"'positive' or 'negative' to count them as such."
        )
    codes = [name for name, value in value_of.items() if value in _MISSING_CODES]
    other_values = [value for value in values if value not in _MISSING_CODES]
    if codes and other_values and len(values) <= 6 and max(other_values) < 9:
        return (
            f"{_with_counts(codes, counts)} beside {_names(set(value_of) - set(codes))} may be a code for a missing "
            f"value; it is a class of its own. Leave it out with drop_classes=({codes[0]!r},)."
        )
    return ""


def _about_lists(counts: Counts) -> str:
    separator = list_separator(counts)
    if separator is None:
        return ""
    lists = [name for name in counts if separator in name or _BRACKETS.fullmatch(name.strip())]
    example = max(lists, key=lambda name: counts[name])
    return (
        f"{len(lists):,} of {len(counts):,} classes are lists, such as {example!r} ({counts[example]:,} images), and "
        f"each combination is treated as a class of its own. Set separator={separator!r} to learn each part as a "
        f"finding that an image has or has not (multi-label)."
    )


def list_separator(names: Iterable[str]) -> str | None:
    """What separates the parts of class names that are lists; None where they are none.

    `|` and `;` stand in nothing else. A comma has to separate parts that are classes themselves, or that are in
    several of at least three lists; `+`, `&` and `/` parts that are classes.
    """
    names = [name.strip() for name in names]
    if any(_BRACKETS.fullmatch(name) and ("," in name or "'" in name or '"' in name) for name in names):
        return ","
    classes = {name.casefold() for name in names}
    for separator in _SEPARATORS:
        lists = [parts_of(name, separator) for name in names if separator in name and number(name) is None]
        parts = [part.casefold() for pieces in lists if len(pieces) > 1 for part in pieces]
        if parts and (
            separator in _SURE_SEPARATORS
            or not classes.isdisjoint(parts)
            or (separator == "," and len(lists) > 2 and len(set(parts)) < len(parts))
        ):
            return separator
    return None


def parts_of(text: str, separator: str) -> list[str]:
    """The parts of a list: without the brackets around it, or blanks and quotes around them."""
    inner = text.strip()[1:-1] if _BRACKETS.fullmatch(text.strip()) else text
    parts = [part.strip().strip("'\"").strip() for part in inner.split(separator)]
    return list(dict.fromkeys(part for part in parts if part))


def _about_values(counts: Counts) -> str:
    """Classes that are measurements, dates or names of images."""
    n_images, n_classes = sum(counts.values()), len(counts)
    many = f"{n_classes:,} classes for {n_images:,} images"
    values = sorted(value for name in counts if (value := number(name)) is not None)
    dates = [name for name in counts if _DATE.fullmatch(name.strip())]
    wrong = "Is this the label column? Choose another with columns"
    if len(dates) > 1 and len(dates) * 10 >= n_classes * 9:
        return f"the classes are dates, such as {dates[0]!r} ({many}). {wrong}."
    if n_classes >= _MANY_IDS and 2 * n_classes > n_images:
        return f"there are nearly as many classes as images ({many}, such as {_names(counts)}). {wrong}."
    is_measured = len(values) > _MANY_NUMBERS or len([v for v in values if v % 1]) > _MANY_FRACTIONS
    if is_measured and len(values) * 10 >= n_classes * 9:
        span = f"from {values[0]:g} to {values[-1]:g}"
        return f"the classes are numbers {span}, each treated as a class of its own ({many}). {wrong}."
    return ""


def _about_unsure(counts: Counts) -> str:
    unsure = [name for name in counts if _words(name) in _UNSURE_WORDS or name in doubtful(list(counts))]
    if not unsure:
        return ""
    return (
        f"{_with_counts(unsure, counts)} may mean that the label is not known; it is treated as a class of its own. "
        f"Leave it out with drop_classes=({unsure[0]!r},)."
    )


def _with_counts(names: Sequence[str], counts: Counts) -> str:
    """`'Normal' (20 images) and 'normal' (4)`."""
    counts_text = [f"{name!r} ({counts[name]:,}{'' if i else ' images'})" for i, name in enumerate(names)]
    return " and ".join([", ".join(counts_text[:-1]), counts_text[-1]] if len(counts_text) > 1 else counts_text)


def _names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(map(repr, ordered[:_SHOWN])) + (" …" if len(ordered) > _SHOWN else "")


def _more(sets: Sequence[object]) -> str:
    return f"; and {len(sets) - _SHOWN:,} more" if len(sets) > _SHOWN else ""


def _merged(twins: Sequence[Sequence[str]], counts: Counts) -> str:
    """As `merge_classes` takes it: each name to the most frequent of its set."""
    merged = dict[str, str]()
    for names in twins:
        usual = max(names, key=lambda name: counts[name])
        merged |= {name: usual for name in names if name != usual}
    return str(merged)
