"""Groups that nobody has named: a column of patients, or a part of file names that several images share.

Images of one patient in training and in test make every score too good. Where there are no groups, names of columns and
of files are looked at for what may be a patient, a study or a slide. This is a guess: it is said, with the parameter
that makes it a group, and changes nothing.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

Columns = Mapping[str, Sequence[str]]

# In the order in which they are preferred: whoever keeps patients together keeps their studies together, too.
_OWNERS = (
    r"patient|pat|pid|mrn|patienten",
    r"subject|subj|participant|person|individual|donor|animal|proband",
    r"case|fall",
    r"specimen|lesion|slide|wsi",
    r"study|studyinstance|exam|examination|accession|encounter|visit|uid|series|seriesinstance|video|volume",
    r"id",
)
_ENDS = r"s?(id|uid|key|no|nr|num|number|nummer|name|code|hash|index)?"
_VIEWS = ("left|right", "l|r", "od|os|ou", "pa|ap|lat|lateral|frontal", "cc|mlo")
# What names of well-known collections have in them, each with the collection; then what names have in general.
_PATTERNS = (
    r"(patient\d+)/study\d+/",  # CheXpert
    r"(p\d{8})/s\d+/",  # MIMIC-CXR
    r"^(train|val|test)/.*/(person\d+|(?:NORMAL2-)?IM-\d+)",  # Kermany: numbers begin anew in each subset
    r"(person\d+|(?:NORMAL2-)?IM-\d+)[_-]",
    r"(\d{8})_\d{3}\.",  # NIH ChestX-ray14
    r"(TCGA-\w{2}-\w{4})",
    r"(LIDC-IDRI-\d+)",
    r"(OAS\d_\d+)",
    r"(\d{3}_S_\d{4})",  # ADNI
    r"(sub-[A-Za-z0-9]+)",  # BIDS
    r"(P_\d+)_(?:LEFT|RIGHT)",  # CBIS-DDSM
    r"(?i)((?:patient|patid|pid|subject|subj|case|person)[_-]?\d+)",
    *(rf"(?i)([^/]*\d[^/]*?)[_. -](?:{views})[_. -]" for views in _VIEWS),
    r"([^/]*\d[^/]*)[_. -][A-Za-z]*\d{1,4}\.[^./]+$",
    r"([^/]*\d[^/]*)/[^/]+$",
)
_MIN_VALUES = 3
_MOST_SHARE = 0.5  # of the images that one value may have: more is a collection, no patient
_LEAST_MATCHED = 0.9
_SAMPLE = 2000  # names that a pattern has to fit before all are tried


def _crossing(unit: str) -> str:
    return f"so images of one {unit} may be in training and in test"


def notes(columns: Columns, image_ids: Sequence[str]) -> list[str]:
    """What may be the groups of images that have none, in at most one sentence or two.

    Args:
        columns: n texts by name; nothing is said where `group` has any.
        image_ids: n names.
    """
    if any(columns.get("group", ())):
        return []
    if (name := likely_column(columns)) is not None:
        values = Counter(value for value in columns[name] if value)
        counts = f"column {name} has {len(values):,} values for {values.total():,} images"
        remedy = f"Set group_by={name!r} to keep them together."
        return [f"the images have no groups, and {counts}, {_crossing(name)}. {remedy}"]
    if (pattern := likely_pattern(columns, image_ids)) is not None:
        groups = Counter(_groups(pattern, image_ids)) - Counter([""])
        example, n = groups.most_common(1)[0]
        n_shared = sum(n for n in groups.values() if n > 1)
        counts = f"{n_shared:,} of {len(image_ids):,} share a part of their names that may be the patient"
        remedy = (
            f"Set group_pattern to {pattern} to keep them together ({len(groups):,} groups); vectors that a store has "
            f"are not computed again."
        )
        description = f"such as {example!r} ({n:,} images), {_crossing('patient')}"
        return [f"the images have no groups, and {counts}, {description}. {remedy}"]
    return []


def likely_column(columns: Columns) -> str | None:
    """The column whose name says that it is a patient, or something of one, and whose values several images share."""
    for owner in _OWNERS:
        called = re.compile(rf"(anon|anonymi[sz]ed|deid)?(id)?({owner}){_ENDS}")
        for name, values in columns.items():
            if called.fullmatch(re.sub(r"[\W_]", "", name.casefold())) and _are_groups(list(values), columns):
                return name
    return None


def likely_pattern(columns: Columns, image_ids: Sequence[str]) -> str | None:
    """The first regular expression that captures of nearly all names a part that several images share."""
    sample = image_ids[:_SAMPLE]
    for pattern in _PATTERNS:
        n_matched = sum(map(bool, _groups(pattern, sample)))
        if n_matched >= _LEAST_MATCHED * len(sample) and _are_groups(_groups(pattern, image_ids), columns):
            return pattern
    return None


def _groups(pattern: str, image_ids: Sequence[str]) -> list[str]:
    """What the pattern captures of each name, as a manifest reads it."""
    compiled = re.compile(pattern)
    matches = (compiled.search(image_id) for image_id in image_ids)
    return ["/".join(part for part in match.groups() if part) if match else "" for match in matches]


def _are_groups(values: Sequence[str], columns: Columns) -> bool:
    """Whether some images share a value, and the values are neither classes nor subsets."""
    sizes = Counter(value for value in values if value)
    n_known = sizes.total()
    if len(sizes) < _MIN_VALUES or len(sizes) == n_known or max(sizes.values()) > _MOST_SHARE * n_known:
        return False
    return not any(_says(values, columns.get(name, ())) for name in ("label", "split"))


def _says(values: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether values stand for texts one to one."""
    pairs = {(value, text) for value, text in zip(values, texts, strict=False) if value and text}
    return len(pairs) == len({value for value, _ in pairs}) == len({text for _, text in pairs}) > 0
