"""What is asked of a fusion file, as plain values that are checked when they are made."""

from dataclasses import dataclass
from pathlib import Path

from featcache.errors import InvalidParameter

VIEWS, MEAN, FIRST = POOLS = ("views", "mean", "first")


@dataclass(frozen=True)
class FusionSpec:
    """How images and reports become studies.

    Attributes:
        by: the column of the store whose values are the studies; `image_id` makes each image one.
        texts: the columns of report text.
        reports: a CSV that has them, one record for each study; None for columns of the store.
        on: the column of the CSV that has the studies; None for one named as `by`.
        pool: `views` keeps the vectors of all images of a study, `mean` their mean, `first` that of the first image in
            the order of the store.
        tokens: keep the places of the feature maps (`grid`), too.
        complete: leave studies out that lack images or text.
    """

    by: str
    texts: tuple[str, ...] = ()
    reports: Path | None = None
    on: str | None = None
    pool: str = VIEWS
    tokens: bool = False
    complete: bool = False

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise InvalidParameter(f"`pool` must be one of {', '.join(POOLS)}, got {self.pool!r}.")
        if self.tokens and self.pool == MEAN:
            raise InvalidParameter("the feature maps of several images have no mean: `pool` must be views or first.")
        if len(set(self.texts)) < len(self.texts) or any("/" in text or text.startswith(".") for text in self.texts):
            raise InvalidParameter(
                f"`texts` are named once each, without '/' or a leading '.', got {', '.join(self.texts)}."
            )
        if self.reports is not None and not self.texts:
            raise InvalidParameter(
                "`reports` need the names of their text columns (`texts`), as in findings and impression."
            )
        if self.reports is None and self.on is not None:
            raise InvalidParameter("`on` is a column of `reports`, and there are none.")

    @property
    def key(self) -> str:
        """The column of the CSV that has the studies."""
        return self.on or self.by
