"""What a Run says of images it was not made of: vectors in, logits, probabilities and decisions out.

The head, its temperature and its operating point are read from the Run and checked once; numpy does the rest, and torch
is not imported. Probabilities are those of the Run's own `predictions.csv`, to which the operating point belongs; the
calibrated ones stand beside them. Knows nothing of images, and not where vectors come from.
Letters: n rows, d features, c classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from scipy.special import expit

from featcache import metrics
from featcache.errors import UsageError
from featcache.heads import features, inference
from featcache.prediction.overlap import Overlap
from featcache.runs import Run, Table
from featcache.runs.backbone import identity_of, said_by
from featcache.specs import POOLED, HeadSpec

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Model:
    """A finished head, and what makes decisions of its logits.

    Attributes:
        spec: the head.
        tensors: its weights; they act on vectors as they are stored.
        classes: c names, of classes or of findings.
        positive: the number of the class that the operating point is about.
        has_findings: whether several of them may hold at once.
        temperature: that logits are divided by, to be calibrated; None for findings, and where validation rows do not
            tell it.
        threshold: the operating point, of two classes; None for none.
        tap: the feature array that the head acts on.
        tta: whether logits are means over an image as it is and its augmented views.
    """

    spec: HeadSpec
    tensors: Mapping[str, Array]
    classes: list[str]
    positive: int
    has_findings: bool
    temperature: float | None
    threshold: float | None
    tap: str
    tta: bool

    @classmethod
    def of(cls, run: Run) -> Self:
        """The head of a Run.

        Raises:
            CorruptStore: the record or the weights are damaged, or are not of one Run.
        """
        tensors, identity = run.weights(), identity_of(run)
        with said_by(run):
            record = run.record
            classes = list(record["classes"])
            point, network = record["operating_point"], identity.get("backbone")
            model = cls(
                run.spec,
                tensors,
                classes,
                classes.index(record["positive"]),
                record["task"] == "findings",
                _number(record["temperature"]),
                _number(point["threshold"]) if point else None,
                # The vector of a network of ours is its flattened map, and there is no other.
                POOLED if isinstance(network, dict) and network.get("tap") == POOLED else features.tap_of(run.spec),
                bool(record["asked"].get("tta")),
            )
            model._check()
        return model

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or not all(isinstance(name, str) for name in self.classes):
            raise ValueError("two classes at least are expected, by name")
        if len(set(self.classes)) < len(self.classes) or "" in self.classes:
            raise ValueError("classes have no name, or one name")
        if self.threshold is not None and not 0 <= self.threshold <= 1 + 1e-9:  # the first number above 1 calls none
            raise ValueError(f"the operating point is a probability, got {self.threshold}")
        for name in self.classes:
            name.encode("utf-8", "surrogateescape")  # as it will be written; a ValueError where it cannot be
        if self.threshold is not None and (self.has_findings or len(self.classes) != 2):
            raise ValueError("an operating point is for two classes")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    @property
    def n_features(self) -> int:
        """d, the width of the vectors it acts on."""
        first = "vectors" if self.spec.kind == "knn" else "hidden.0.weight" if self.spec.hidden_sizes else "weight"
        return int(self.tensors[first].shape[1])

    def logits(self, x: Array) -> Array:
        """(n, d) vectors as they are stored, or (n, v, d) of v views of each, to (n, c) float32 logits.

        Raises:
            UsageError: vectors of another width.
        """
        if x.shape[-1] != self.n_features:
            raise UsageError(f"the head acts on vectors of {self.n_features:,} features, these have {x.shape[-1]:,}.")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite fails, row by row
            return inference.logits(self.spec, self.tensors, x, len(self.classes), self.positive)

    def _check(self) -> None:
        """Whether the weights are those of such a head: it is tried on a vector of zeros."""
        logits = self.logits(np.zeros((1, self.n_features), dtype=np.float32))
        if logits.shape != (1, len(self.classes)) or not np.isfinite(logits).all():
            raise ValueError(f"its weights are not those of a {self.spec.kind} head of {len(self.classes)} classes")


@dataclass(frozen=True)
class Predictions:
    """What was said of n images, in the order in which they were given.

    Attributes:
        model: that said it.
        names: names of the images.
        logits: (n, c) float32, before the temperature; NaN where an image could not be used.
        failures: name -> (code, reason) of those.
        overlap: how many of the images the Run was trained on; None for arrays, which have no files to compare.
    """

    model: Model
    names: Sequence[str]
    logits: Array
    failures: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    overlap: Overlap | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def classes(self) -> list[str]:
        """The c names, in the order of the columns."""
        return self.model.classes

    @cached_property
    def probabilities(self) -> Array:
        """(n, c) float32: of each class, or of each finding; NaN where an image could not be used."""
        return self._probabilities(self.logits).astype(np.float32)

    @cached_property
    def calibrated(self) -> Array | None:
        """(n, c) float32 probabilities after the temperature; None where there is none. The operating point is one of
        the others."""
        if self.model.temperature is None:
            return None
        return self._probabilities(self.logits.astype(np.float64) / self.model.temperature).astype(np.float32)

    @cached_property
    def called(self) -> list[str]:
        """n names: the most probable class; of findings a 1 or 0 each, from 0.5 on. Empty for images that failed."""
        if self.model.has_findings:
            present = self._probabilities(self.logits) >= 0.5
            return self._names([" ".join(str(int(value)) for value in row) for row in present])
        return self._names([self.classes[number] for number in metrics.decisions(self.logits, self.model.positive)])

    @cached_property
    def at_operating_point(self) -> list[str] | None:
        """n names: the class that is called at the operating point; None without one."""
        if self.model.threshold is None:
            return None
        numbers = metrics.decisions(self.logits, self.model.positive, self.model.threshold)
        return self._names([self.classes[number] for number in numbers])

    def table(self) -> Table:
        """The columns of `predictions.csv`: image_id, prediction, at_operating_point where there is one, p_… of each
        class and, where there is a temperature, calibrated_…; a line per image that could be used."""
        columns: list[tuple[str, Sequence[object]]] = [("image_id", self.names), ("prediction", self.called)]
        if self.at_operating_point is not None:
            columns.append(("at_operating_point", self.at_operating_point))
        columns += self._numbers("p", self._probabilities(self.logits))
        if self.model.temperature is not None:
            cooled = self.logits.astype(np.float64) / self.model.temperature
            columns += self._numbers("calibrated", self._probabilities(cooled))
        rows = zip(*(values for _, values in columns), strict=True)
        return [name for name, _ in columns], [row for row in rows if row[0] not in self.failures]

    def counts(self, called: Sequence[str]) -> dict[str, int]:
        """Number of images per predicted class, at 0.5 or at the operating point."""
        if self.model.has_findings:
            rows = [text.split() for text in called if text]
            return {name: sum(row[i] == "1" for row in rows) for i, name in enumerate(self.classes)}
        return {name: sum(text == name for text in called) for name in self.classes}

    def _probabilities(self, logits: Array) -> Array:
        """(n, c) float64."""
        return (
            np.asarray(expit(logits.astype(np.float64))) if self.model.has_findings else metrics.probabilities(logits)
        )

    def _numbers(self, prefix: str, values: Array) -> list[tuple[str, Sequence[object]]]:
        columns = zip(self.classes, values.T, strict=True)
        return [(f"{prefix}_{name}", [f"{value:.9g}" for value in column]) for name, column in columns]

    def _names(self, called: list[str]) -> list[str]:
        return ["" if name in self.failures else text for name, text in zip(self.names, called, strict=True)]


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not math.isfinite(value)):
        raise ValueError(f"{value!r} where a number is expected")
    return None if value is None else float(value)
