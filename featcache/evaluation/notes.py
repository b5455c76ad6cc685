"""What a reader of an evaluation has to know: which images took no part and why, and what the numbers do not say.

Full sentences with counts and an example, each of which names what can be done.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from featcache.runs import Run
from featcache.splits.task import Task
from featcache.training.results import about_network

Array = np.ndarray[Any, Any]

_BUNDLED = (
    "A bundle does not name the images that its Run was trained on: whether some of them are in this set is not known. "
    "Evaluate the Run itself to have them counted."
)
_NAMED = 3  # examples


def about_absent_classes(task: Task, rows: Array) -> Iterator[str]:
    """Classes of the Run of which no image is scored."""
    counts = task.counts(rows)
    absent = [name for name, n in zip(task.classes, counts.tolist(), strict=True) if not n]
    if not absent:
        return
    if task.has_findings:
        yield f"No image that is scored has {_quoted(absent)}: numbers that need one do not exist."
        return
    name = task.classes[int(counts.argmax())]
    only = f" All of them are {name!r}: there is no AUROC." if len(rows) == counts.max() else ""
    yield f"No image that is scored is {_quoted(absent)}, so that numbers that need one do not exist.{only}"


def about_training_images(names: Sequence[str], n: int, are_scored: bool) -> Iterator[str]:
    """Images of the set whose bytes the Run has learnt from, or was chosen by.

    Args:
        names: theirs.
        n: labelled images of the set.
        are_scored: whether they take part in the numbers.
    """
    if not names:
        return
    counted = f"{len(names):,} of the {n:,} labelled images are images that the Run was trained on or chosen by"
    if are_scored:
        yield (
            f"{counted}, for example {_first(names)}. They are scored, as asked, and make the numbers too good; the "
            f"numbers of the other images stand beside them."
        )
    else:
        yield f"{counted}, for example {_first(names)}. They are left out; with_training_images scores them too."


def about_test_images(names: Sequence[str]) -> Iterator[str]:
    """Images of the set that are in the Run's test subset."""
    if names:
        yield (
            f"{len(names):,} images are test images of the Run itself, for example {_first(names)}: the set is not "
            f"wholly from elsewhere, and its numbers are not compared with those of the Run's own rows."
        )


def about_copies(names: Sequence[str], contents: Sequence[str], labels: Sequence[object]) -> Iterator[str]:
    """Images of the set that have the bytes of another one.

    Args:
        names: names of the scored images.
        contents: digests of their files.
        labels: a value for each by which labels can be compared.
    """
    members: dict[str, list[int]] = {}
    for i, content in enumerate(contents):
        members.setdefault(content, []).append(i)
    sets = [rows for rows in members.values() if len(rows) > 1]
    if not sets:
        return
    n = sum(map(len, sets))
    yield (
        f"{n:,} images have the same bytes as another one of the set, for example "
        f"{_first([names[i] for i in sets[0]])}. Each is scored; in intervals they are one witness."
    )
    if contrary := [rows for rows in sets if len({labels[i] for i in rows}) > 1]:
        yield (
            f"{sum(map(len, contrary)):,} images with the same bytes as another one have different labels, for example "
            f"{_first([names[i] for i in contrary[0]])}. At least one of the labels is wrong."
        )


def about_split(columns: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A set that has a split of its own."""
    counts = Counter(text for text in columns.get("split", ()) if text)
    if len(counts) > 1:
        listed = ", ".join(f"{text} {n:,}" for text, n in sorted(counts.items()))
        yield f"The images have a split of their own ({listed}), which is not looked at: all of them are scored."


def about_run(run: Run, is_bundle: bool) -> Iterator[str]:
    """What the Run says of itself that counts for any image."""
    if is_bundle:
        yield _BUNDLED
    yield from (note for note in about_network("run") if note in run.record["notes"])
    if run.record["temperature"] is None and run.record["task"] == "classes":
        yield "The Run has no temperature, so there are no numbers of calibrated probabilities."


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts))


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED])
