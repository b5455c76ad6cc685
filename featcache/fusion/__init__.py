"""Fusion files: one row per study, with the vectors of its images, its report, and logits of a head.

The file is the interface to a project that fuses images and text. Reading it needs h5py and numpy, nothing else of
featcache's dependencies; `StudyDataset` needs torch as well. `FORMAT.md` states the format.

    reader   Studies: a fusion file, open for reading
    dataset  StudyDataset: a PyTorch dataset of studies, and `collate`
    join     joins images and reports to studies
    unseen   out-of-sample logits per study
    writer   `export_studies` writes the file
"""

from typing import TYPE_CHECKING, Any

from featcache.errors import FeatcacheError
from featcache.fusion.reader import Studies, Study, open_studies

__all__ = ["FeatcacheError", "Studies", "Study", "StudyDataset", "collate", "open_studies"]

if TYPE_CHECKING:
    from featcache.fusion.dataset import StudyDataset, collate


def __getattr__(name: str) -> Any:
    if name not in ("StudyDataset", "collate"):
        raise AttributeError(f"module 'featcache.fusion' has no attribute {name!r}")
    from featcache.fusion import dataset

    return getattr(dataset, name)
