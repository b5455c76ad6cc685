"""Which images, labels and rows are used: the columns of a table, the labels to learn, the split, the studies."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from featcache.errors import InvalidParameter, UsageError
from featcache.specs.bounds import check_choice, check_number, check_seed

if TYPE_CHECKING:
    from featcache.identity import Json

PATH, IMAGE_ID, LABEL, GROUP, SPLIT = "path", "image_id", "label", "group", "split"
_STANDARD = {"path_column": PATH, "id_column": IMAGE_ID, "label_column": LABEL, "group_column": GROUP,
             "split_column": SPLIT}  # fmt: skip
UNCERTAIN = ("ignore", "positive", "negative")  # U-Ignore, U-Ones and U-Zeros of CheXpert (Irvin et al., 2019)
MAX_FOLDS, MAX_REPEATS = 100, 1000
_MOST_IMAGES = 10**9
VIEWS, MEAN, FIRST = POOLS = ("views", "mean", "first")


@dataclass(frozen=True)
class ColumnSpec:
    """Names of columns of a table that are others than the standard ones.

    Attributes:
        path_column: Column of the image paths. They are relative to the folder of the table.
        id_column: Column of the image names.
        label_column: Column of the class names.
        group_column: Column of the patients or other groups.
        split_column: Column of the subsets: train, val or test.
    """

    path_column: str | None = None
    id_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None

    def __post_init__(self) -> None:
        for parameter, name in self.named.items():
            if not name.strip():
                raise InvalidParameter(f"{parameter} is the name of a column, got {name!r}.")
        if len(set(self.named.values())) < len(self.named):
            raise InvalidParameter(f"each column is one thing only, got {', '.join(self.named.values())}.")

    @property
    def named(self) -> dict[str, str]:
        """What was asked for, by the name of the parameter."""
        values = {field_.name: getattr(self, field_.name) for field_ in fields(self)}
        return {parameter: name for parameter, name in values.items() if name is not None}

    @property
    def name_of(self) -> dict[str, str]:
        """By the standard name, the name in the table, where it is another."""
        return {_STANDARD[parameter]: name for parameter, name in self.named.items()}


@dataclass(frozen=True)
class Where:
    """A condition on the rows: the text of a column is this one, or is not.

    Attributes:
        column: `image_id`, or a column of the rows.
        value: compared as it is; the empty text is a missing value.
        equal: whether it must be the same, or another.
    """

    column: str
    value: str
    equal: bool = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """`split=train` or `label!=`.

        Raises:
            UsageError: neither.
        """
        name, sign, value = text.partition("=")
        if not sign or not name.removesuffix("!"):
            raise UsageError(f"where {text!r}: COLUMN=VALUE or COLUMN!=VALUE is expected, as in split=train.")
        return cls(name.removesuffix("!"), value, not name.endswith("!"))

    def __str__(self) -> str:
        return f"{self.column}{'=' if self.equal else '!='}{self.value}"


@dataclass(frozen=True)
class TargetSpec:
    """Which labels to learn.

    Attributes:
        columns: Label column. One column of class names, or several columns of findings, each 1, 0 or empty
            (multi-label).
        file: CSV file with the labels. None for the rows' own columns.
        on: Column that joins the CSV to the images, or COLUMN=CSV_COLUMN where their names differ.
        positive: Class that sensitivity, PPV and the operating point refer to. None is the last in sorted order of the
            classes whose names are no negation (`splits.class_names.positive_class`).
        uncertain: Meaning of the label -1. The policies U-Ignore, U-Ones and U-Zeros of
            CheXpert (Irvin et al., AAAI 2019, section 3.1); None is a class of its own, and refused in several columns.
        where: Condition on the rows: COLUMN=VALUE or COLUMN!=VALUE. Other rows take no part at all.
        separator: Text that separates the findings in one label column, as in "Edema|Mass".
        merge_classes: Classes to merge: A=B turns class A into class B. B may be new. A merged finding is present where
            either is.
        drop_classes: Class whose images are left out. Of findings, one that is not trained on.
        min_images: Fewest images of a class; rarer classes are left out.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"uncertain": UNCERTAIN}

    columns: tuple[str, ...] = ("label",)
    file: Path | None = None
    on: str = "image_id"
    positive: str | None = None
    uncertain: str | None = None
    where: tuple[Where, ...] = ()
    separator: str | None = None
    merge_classes: Mapping[str, str] = field(default_factory=dict)
    drop_classes: tuple[str, ...] = ()
    min_images: int = 0

    def __post_init__(self) -> None:
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise InvalidParameter(f"label columns must be named once each, got {', '.join(self.columns) or 'none'}.")
        if self.uncertain is not None:
            check_choice("uncertain", self.uncertain, UNCERTAIN)
        if self.separator is not None and (not self.separator.strip() or len(self.columns) > 1):
            raise InvalidParameter("`separator` is a text that is not blank, and for one label column.")
        check_number("min_images", self.min_images, 0, _MOST_IMAGES, whole=True)
        if chained := [name for name in self.merge_classes.values() if self.merge_classes.get(name, name) != name]:
            raise InvalidParameter(
                f"`merge_classes` makes other classes {chained[0]!r}, and {chained[0]!r} another one."
            )

    def as_json(self) -> "Json":
        """The spec as a Run records it, with the name of the file instead of its path."""
        own = {"file": self.file.name if self.file else None, "where": [str(condition) for condition in self.where]}
        return {**asdict(self), **own}


@dataclass(frozen=True)
class SplitSpec:
    """How rows are divided.

    Attributes:
        val_fraction: Share of rows that is held out for validation. None uses the store's own validation rows if there
            are any, else 0.2. A number first returns the store's own validation rows to the training rows.
        n_splits: Number of folds of a stratified group k-fold cross-validation, instead of a hold-out.
        n_repeats: Number of times the hold-out or the cross-validation is repeated with new splits.
        nested: Add an outer cross-validation, whose validation rows select nothing. An estimate where there is no test
            set.
        group_by: Column of patients or other groups: rows with the same value stay in one subset. None is `group` where
            there is one. With another column, rows are kept together that share a value of either, also through a chain
            of such rows.
        near_duplicates: Cosine similarity from which two images count as one group.
        seed: Seed of the split and of the order of the batches.
        file: The split.json of another Run, whose split is used again.
    """

    val_fraction: float | None = None
    n_splits: int | None = None
    n_repeats: int = 1
    nested: bool = False
    group_by: str | None = None
    near_duplicates: float | None = None
    seed: int = 0
    file: Path | None = None

    def __post_init__(self) -> None:
        check_number("n_repeats", self.n_repeats, 1, MAX_REPEATS, whole=True)
        check_seed("seed", self.seed)
        if self.n_splits is not None:
            check_number("n_splits", self.n_splits, 2, MAX_FOLDS, whole=True)
        if self.val_fraction is not None:
            check_number("val_fraction", self.val_fraction, 0, 1, above=True, below=True)
        if self.near_duplicates is not None:
            check_number("near_duplicates", self.near_duplicates, 0, 1, above=True, why="a cosine")
        drawn = self.n_splits is not None or self.val_fraction is not None or self.n_repeats > 1
        if self.n_splits is not None and self.val_fraction is not None:
            raise InvalidParameter("`n_splits` and `val_fraction` exclude each other.")
        if self.file is not None and (drawn or self.nested):
            raise InvalidParameter(
                "a split from a file says all: no `n_splits`, `n_repeats`, `val_fraction` or `nested` beside it."
            )
        if self.nested and self.n_splits is None:
            raise InvalidParameter("`nested` needs `n_splits`.")


@dataclass(frozen=True)
class FusionSpec:
    """How images and reports become studies.

    Attributes:
        by: Column of the store whose values are the studies; image_id makes each image a study.
        texts: Column of report text.
        reports: CSV file of reports, one record for each study. None for columns of the store.
        on: Column of studies in the CSV file. None for one named as `by`.
        pool: Vectors of a study: views keeps those of all images, mean averages them, first keeps that of the first
            image.
        tokens: Add the feature maps (tap grid).
        complete: Leave out studies without images or without text.
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
