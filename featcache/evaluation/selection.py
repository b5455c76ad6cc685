"""Which images of a set take part in the numbers, and why the others do not.

An image without a label, or with one that the Run does not know, is left out; so is, unless it is asked for, an image
that the Run has learnt from. Patients and identical bytes are groups, as they are of a store that a head is trained on.
Letters: n images with logits, c classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.errors import UsageError
from featcache.evaluation.labels import SetLabels
from featcache.evaluation.sets import ScoredSet
from featcache.metrics.calibration import Choice
from featcache.prediction.overlap import Contents
from featcache.prediction.predictor import Predictor
from featcache.runs import Images
from featcache.splits import merge_groups
from featcache.splits.protocol import Protocol
from featcache.splits.task import Rows, Task
from featcache.training.results import EXTERNAL, Scored

Array = np.ndarray[Any, Any]

TRAINED_ON = "the bytes of an image that the Run was trained on"
CHOSEN_BY = "the bytes of an image by which something of the Run was chosen"


@dataclass(frozen=True)
class Selection:
    """The images that have logits, and those of them that are scored.

    Attributes:
        scored: labels, groups and logits; its EXTERNAL rows are scored.
        order: the number in the set of each image.
        learnt: labelled images that the Run learnt from or was chosen by, by row.
        tested: scored images of the Run's own test subset, by row.
    """

    scored: Scored
    order: Sequence[int]
    learnt: Sequence[int]
    tested: Sequence[int]

    @classmethod
    def of(
        cls,
        predictor: Predictor,
        rows: Rows,
        scored: ScoredSet,
        labels: SetLabels,
        patients: str | None,
        with_training_images: bool,
    ) -> "Selection":
        model = predictor.model
        place = {name: i for i, name in enumerate(rows.image_ids)}
        order = [place[name] for name in scored.image_ids]
        contents = Contents.of(predictor.run) or Contents(frozenset(), frozenset(), frozenset())
        reasons = [labels.reasons[i] for i in order]
        is_training = [_is_training(content, contents) for content in scored.content_sha256]
        learnt = [i for i, reason in enumerate(reasons) if is_training[i] and not reason]
        if not with_training_images:
            reasons = [reason or why for reason, why in zip(reasons, is_training, strict=True)]
        kept = np.array([i for i, reason in enumerate(reasons) if not reason], dtype=np.int64)
        left_out = dict(Counter(reason for reason in reasons if reason))
        if not len(kept):
            raise UsageError(_why_none(rows, left_out, len(scored.failures)))
        columns = {name: [texts[i] for i in order] for name, texts in rows.columns.items()}
        is_known = labels.values[order]
        task = Task(scored.image_ids, columns, scored.content_sha256, is_known, model.classes, model.positive, left_out)
        groups = merge_groups(columns[patients] if patients else [""] * len(order), scored.content_sha256)
        near = np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32)
        protocol = Protocol(kept, [], [], groups, left_out, near, 0)
        sides = {EXTERNAL: (kept, scored.logits[kept])}
        scoring = Scored(task, protocol, sides, Choice(model.temperature, model.threshold))
        return cls(scoring, order, learnt, [i for i in kept.tolist() if scored.content_sha256[i] in contents.test])

    @property
    def rows(self) -> Array:
        """(n,) numbers of the rows that are scored."""
        return self.scored.sides[EXTERNAL][0]

    @property
    def scored_learnt(self) -> bool:
        """Whether images are scored that the Run learnt from."""
        return bool(set(self.learnt) & set(self.rows.tolist()))

    def ordered(self, values: Sequence[Any]) -> list[Any]:
        """A value for each row, from a value for each image of the set."""
        return [values[i] for i in self.order]

    def names(self, rows: Sequence[int]) -> list[str]:
        return [self.scored.task.image_ids[i] for i in rows]

    def labels(self) -> list[Any]:
        """The labels of all rows, comparable: a number, or of findings a tuple in which unknown ones are None."""
        values = self.scored.task.labels.tolist()
        if not self.scored.task.has_findings:
            return list(values)
        return [tuple(None if value != value else value for value in row) for row in values]

    def images(self) -> Images:
        """The rows that are scored, as the folder keeps them."""
        task, rows = self.scored.task, self.rows
        groups = np.unique(self.scored.protocol.groups[rows], return_inverse=True)[1]
        contents = [task.content[i] for i in rows.tolist()]
        return Images(self.names(rows.tolist()), contents, task.labels[rows], groups)


def _is_training(content: str, contents: Contents) -> str:
    """Why an image of such bytes says nothing of new ones; empty where it is a new one."""
    return TRAINED_ON if content in contents.train else CHOSEN_BY if content in contents.val else ""


def _why_none(rows: Rows, left_out: Mapping[str, int], n_failed: int) -> str:
    reasons = [f"{n:,} have {reason}" for reason, n in left_out.items()]
    reasons += [f"{n_failed:,} could not be read"] if n_failed else []
    way_out = " with_training_images scores these, too." if {TRAINED_ON, CHOSEN_BY} & set(left_out) else ""
    return f"no image of {rows.path} is left to be scored: {', '.join(reasons) or 'there is none'}.{way_out}"
