"""Studies: the images of an examination, what was written about them, and what a head made of them, in one file.

The file is the contract with a project that fuses images and text. Reading it needs h5py and numpy, nothing else of
featcache's dependencies; `StudyDataset` needs torch as well. `FORMAT.md` states the format.

    reader   Studies: a fusion file, open for reading
    dataset  StudyDataset: the same for torch, and how its items become batches
    join     images and reports become studies
    unseen   logits by heads that have not seen a study
    writer   `export_studies`: from store, reports and Run to the file
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
