"""The whole loop on generated phantoms, offline: images, store, Run, report. Everything it makes is synthetic.

With the hub in reach the backbone has its pretrained weights; without, it has random ones (seed 0) and the result says
so. Even random convolutions see opacities of this size better than chance, which is a caution for easy data sets.
"""

from dataclasses import dataclass
from pathlib import Path

from featcache import phantoms
from featcache.embedding import Progress, embed
from featcache.embedding.output import Embedded
from featcache.errors import WeightsUnavailable, from_os_error
from featcache.manifest import Manifest
from featcache.reporting.report import Reported, report
from featcache.runs import Run
from featcache.specs import BackboneSpec, HeadSpec, TargetSpec
from featcache.store import Store
from featcache.training.train_head import train_head

BACKBONE = "efficientnet_b1"
RANDOM = "random:0"


@dataclass(frozen=True)
class Demonstrated:
    """What the demo left behind."""

    images: Path
    embedded: Embedded
    run: Run
    reported: Reported

    @property
    def has_random_weights(self) -> bool:
        return self.embedded.weights == RANDOM


def demo(folder: Path | str, on_progress: Progress = lambda done, total: None) -> Demonstrated:
    """Draws a few hundred phantoms below `folder`, embeds them, trains a linear head, and writes its report.

    Run again, it draws the same images, finds all of them in the store, and repeats the Run in its place.

    Raises:
        AccessDenied, NoSpace, InputOutputError: the folder cannot be written.
    """
    folder = Path(folder)
    image_dir, store_path = folder / "images", folder / "phantoms.h5"
    try:
        phantoms.write(image_dir)
    except OSError as error:
        raise from_os_error(error, "writing", image_dir) from error
    manifest = Manifest.read(image_dir, group_pattern=phantoms.GROUP_PATTERN)
    embedded = _embed(manifest, store_path, on_progress)
    with Store.open(store_path) as store:
        run = train_head(store, HeadSpec(), folder / "linear", target=TargetSpec(positive="abnormal"))
    reported = report(run, folder / "report.html", store_path, manifest)
    return Demonstrated(image_dir, embedded, run, reported)


def _embed(manifest: Manifest, store_path: Path, on_progress: Progress) -> Embedded:
    try:
        return embed(manifest, store_path, BackboneSpec(BACKBONE), on_progress=on_progress)
    except WeightsUnavailable:
        return embed(manifest, store_path, BackboneSpec(BACKBONE, RANDOM), on_progress=on_progress)
