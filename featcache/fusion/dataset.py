"""Studies for torch: a dataset that reads one study at a time, and how several become a batch.

A batch is padded to the most images that one of its studies has, with zeros and a mask. Text stays text: how it becomes
tokens is the affair of whoever reads it. Needs torch, h5py and numpy.
Letters: b studies of a batch, v images of one at most, d features, t places of a feature map, c channels or classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from featcache.errors import UsageError
from featcache.fusion.reader import Studies

Item = dict[str, Any]
UNKNOWN = -1  # the class of a study without a label; what torch's losses take as ignore_index, if told so


class StudyDataset(Dataset[Item]):
    """Studies of a fusion file, one item each; it may be handed to the workers of a DataLoader.

    An item has `study_id`, `vectors` (k, d) float32 of its k images, `texts` by name, `label` (a class number, or
    UNKNOWN), `group_number`, and where the file has them `tokens` (k, t, c) and `logits` (c,), NaN where every head had
    seen the study.

    Attributes:
        studies: the file.
        rows: the rows of the file that are the items, in their order.
        classes: names of the labels, in sorted order.
    """

    def __init__(
        self,
        studies: Studies | Path | str,
        rows: Sequence[int] | None = None,
        label: str = "label",
        classes: Sequence[str] | None = None,
    ) -> None:
        """Takes the studies of a file.

        Args:
            studies: the file, open or by its path.
            rows: which of them; None for all.
            label: the column of the labels. A file without it has only unknown ones.
            classes: None for those there are.

        Raises:
            UsageError: a label that is none of the classes.
            StoreNotFound, UnknownFormat, CorruptStore, UntrustedFile, AccessDenied: the file cannot be opened.
        """
        self.studies = studies if isinstance(studies, Studies) else Studies(studies)
        self.rows = list(range(len(self.studies)) if rows is None else rows)
        texts = self.studies.columns.get(label, [""] * len(self.studies))
        self.classes = sorted({text for text in texts if text}) if classes is None else list(classes)
        if unknown := sorted({text for text in texts if text} - set(self.classes)):
            raise UsageError(f"{self.studies.path}: {label} {unknown[0]!r} is not one of {', '.join(self.classes)}.")
        number = {name: i for i, name in enumerate(self.classes)}
        self._labels = [number.get(text, UNKNOWN) for text in texts]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Item:
        row = self.rows[i]
        study = self.studies[row]
        item = {
            "study_id": study.study_id,
            "vectors": torch.from_numpy(study.vectors),
            "texts": dict(study.texts),
            "label": self._labels[row],
            "group_number": study.group_number,
        }
        if study.tokens is not None:
            item["tokens"] = torch.from_numpy(np.ascontiguousarray(study.tokens))
        if n := len(self.studies.classes):
            item["logits"] = torch.full((n,), torch.nan) if study.logits is None else torch.from_numpy(study.logits)
        return item


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """Several items as a batch; the `collate_fn` of a DataLoader.

    Args:
        items: b of them.

    Returns:
        `study_id` (b names), `vectors` (b, v, d) and `image_mask` (b, v) bool, `tokens` (b, v, t, c), `texts` (b texts
        by name), `label` and `group_number` (b,) int64, `logits` (b, c) and `logits_mask` (b,) bool; tokens and logits
        where the items have them. v is 1 at least.
    """
    batch: dict[str, Any] = {"study_id": [item["study_id"] for item in items]}
    batch["vectors"], batch["image_mask"] = _padded([item["vectors"] for item in items])
    if "tokens" in items[0]:
        batch["tokens"], _ = _padded([item["tokens"] for item in items])
    batch["texts"] = {name: [item["texts"][name] for item in items] for name in items[0]["texts"]}
    for name in ("label", "group_number"):
        batch[name] = torch.tensor([item[name] for item in items], dtype=torch.int64)
    if "logits" in items[0]:
        batch["logits"] = torch.stack([item["logits"] for item in items])
        batch["logits_mask"] = torch.isfinite(batch["logits"]).all(dim=1)
    return batch


def _padded(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(b, v, …) with zeros behind each part's rows, and (b, v) which are rows of it."""
    lengths = torch.tensor([len(part) for part in parts])
    v = max(1, int(lengths.max()))
    padded = parts[0].new_zeros((len(parts), v, *parts[0].shape[1:]))
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
    return padded, torch.arange(v) < lengths[:, None]
