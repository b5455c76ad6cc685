"""Counts images that a Run was trained on or selected by: for these, predictions are better than for new images.

Images are compared by the sha256 of their files. A bundle does not name the images of its Run, and nothing can be known
of them then, which is a note as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from featcache.errors import CorruptStore, UsageError
from featcache.runs import Run


@dataclass(frozen=True)
class Contents:
    """The images of a Run by the sha256 of their files: those that its head was trained on, those by which something of
    it was chosen, and those of its test subset, which are as good as new ones."""

    train: frozenset[str]
    val: frozenset[str]
    test: frozenset[str]

    @classmethod
    def of(cls, run: Run) -> Self | None:
        """None where the Run does not name its images, as in a bundle."""
        try:
            contents, protocol = run.images().content_sha256, run.protocol()
        except (UsageError, CorruptStore):  # nothing of it is needed for predictions
            return None
        learnt_all = not protocol.is_hold_out or run.record["asked"].get("refit_all")
        rows = protocol.rows if learnt_all else protocol.folds[0].train
        train, learnt, test = (frozenset(contents[row] for row in of) for of in (rows, protocol.rows, protocol.test))
        return cls(train, learnt - train, test)


@dataclass(frozen=True)
class Overlap:
    """Images that are also images of a Run.

    Attributes:
        n: images that were compared.
        n_train: those that the final head was trained on.
        n_val: those that it was not trained on, and by which something of it was chosen.
        is_known: whether the Run names its images.
    """

    n: int
    n_train: int = 0
    n_val: int = 0
    is_known: bool = True

    @classmethod
    def of(cls, run: Run, content_sha256: Sequence[str]) -> Self:
        """The images of these digests beside those of a Run. The test images of the Run are as good as new ones."""
        contents = Contents.of(run)
        if contents is None:
            return cls(len(content_sha256), is_known=False)
        n_train, n_val = (sum(c in of for c in content_sha256) for of in (contents.train, contents.val))
        return cls(len(content_sha256), n_train, n_val)

    @property
    def n_learnt(self) -> int | None:
        """All of them; None where it is not known."""
        return self.n_train + self.n_val if self.is_known else None

    @property
    def note(self) -> str | None:
        """What a person should know before believing the predictions."""
        if not self.is_known:
            return (
                "the Run does not name its images here, as in a bundle: whether it was trained on some of these cannot "
                "be known."
            )
        if not self.n_learnt:
            return None
        return (
            f"of these {self.n:,} images, the head was trained on {self.n_train:,} and chosen by {self.n_val:,} more "
            f"(validation): how well it does on them says nothing of new images."
        )
