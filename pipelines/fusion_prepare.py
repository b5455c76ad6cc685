"""The images' half of image and report: vectors, reports and logits of the Indiana studies, in one file to hand on.

Data      Indiana University chest X-rays (Demner-Fushman et al. 2016), 3,851 studies with reports, frontal and lateral;
          Kaggle raddar/chest-xrays-indiana-university: indiana_reports.csv, indiana_projections.csv and
          images/images_normalized. A study is normal where `Problems` of its report is `normal`.
Method    One pass through a frozen EfficientNet-B1. A fifth of the studies is set aside as test; on the others a linear
          head is trained in five folds of whole studies. The fusion file has a row for every study: the vectors of its
          images, findings and impression, and the logits of heads that have not seen it.
Command   python pipelines/fusion_prepare.py INDIANA -o runs/fusion
          python pipelines/fusion_prepare.py --quick          48 studies with phantoms for images, in seconds; their
                                                              reports are real where FEATCACHE_SHARED has them
Then      python pipelines/fusion_handoff.py runs/fusion/published/fusion.h5
Minutes   not measured, the images are not kept with the code; `featcache embed … --dry-run` tells what the pass takes.
Deviates  Nothing was published to compare with.
"""

import csv
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import showing
from PIL import Image

from featcache import BackboneSpec, HeadSpec, Manifest, Store, durable, phantoms, splits
from featcache.embedding import embed
from featcache.fusion.writer import export_studies
from featcache.manifest.datasets import iu_xray
from featcache.specs import FusionSpec, SplitSpec, TargetSpec
from featcache.tables.table import read_table
from featcache.training.train_head import train_head

BACKBONE = BackboneSpec("efficientnet_b1.ft_in1k")
HEAD = HeadSpec(class_weight="balanced")
SPLIT = SplitSpec(n_splits=5)
TARGET = TargetSpec(positive="abnormal")
STUDIES = FusionSpec("group", ("findings", "impression"), on="uid", reports=Path("indiana_reports.csv"))
TEST_FRACTION = 0.2
QUICK_STUDIES = 48
PHANTOM_PIXELS = 96


def main(given: Sequence[str] | None = None) -> None:
    """The study."""
    asked = showing.asked(__doc__, draw_some, given)
    reports, projections = (asked.data / f"indiana_{name}.csv" for name in ("reports", "projections"))
    images = with_test(iu_xray(reports, projections, asked.data / "images" / "images_normalized").manifest)
    if asked.quick:
        images = replace(images, columns={**images.columns, "synthetic": ["yes"] * len(images)})
    spec = replace(BACKBONE, name="test_efficientnet", weights="random:0", input_size=32) if asked.quick else BACKBONE
    embed(images, asked.folder / "indiana.h5", spec)
    with Store.open(asked.folder / "indiana.h5") as store:
        run = train_head(store, HEAD, asked.folder / "linear", target=TARGET, split=SPLIT)
        done = export_studies(store, asked.folder / "fusion.h5", replace(STUDIES, reports=reports), run)
    rows = [(name.replace("_", " "), value) for name, value in done.coverage.items() if isinstance(value, int)]
    showing.tell(asked.folder / "coverage.md", {f"{done.path}:": showing.table(("", "number"), rows)}, asked.quick)


def with_test(images: Manifest) -> Manifest:
    """A fifth of the studies, in proportion to their classes, in `test`; those without a label are in `train`."""
    labels = np.array(images.columns["label"])
    known = np.flatnonzero(labels != "")
    groups = splits.merge_groups(images.columns["group"])[known]
    _, held = splits.hold_out(labels[known], groups, TEST_FRACTION, seed=0)
    split = np.full(len(images), splits.TRAIN)
    split[known[held]] = splits.TEST
    return replace(images, columns={**images.columns, "split": split.tolist()})


# --- phantoms ---------------------------------------------------------------------------------------------------------


def draw_some(folder: Path) -> None:
    """Some studies with phantoms for images: of the real reports where they are, else of made-up ones."""
    real = Path(os.environ.get("FEATCACHE_SHARED", "../shared")) / "data" / "indiana"
    if real.is_dir():
        draw(real, folder, QUICK_STUDIES)
    else:
        showing.draw_indiana(folder)


def draw(real: Path, folder: Path, n_studies: int | None = None) -> None:
    """A phantom for each projection of the first studies of the real tables, abnormal where the report says so."""
    held = {name: read_table(real / f"indiana_{name}.csv") for name in ("reports", "projections")}
    uids = held["reports"].columns["uid"][:n_studies]
    for name, table in held.items():
        rows = [row for row in zip(*table.columns.values(), strict=True) if row[0] in set(uids)]
        durable.make_folders(folder)
        with open(folder / f"indiana_{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([list(table.columns), *rows])
    sick = dict(zip(uids, (text != "normal" for text in held["reports"].columns["Problems"]), strict=False))
    target = folder / "images" / "images_normalized"
    durable.make_folders(target)

    def one(shot: tuple[str, str]) -> None:
        uid, name = shot
        pixels = phantoms.radiograph(int(uid), len(name), sick[uid]) * 255
        small = Image.fromarray(np.round(pixels).astype(np.uint8)).resize((PHANTOM_PIXELS, PHANTOM_PIXELS))
        small.save(target / name, format="PNG", compress_level=1)

    shots = zip(held["projections"].columns["uid"], held["projections"].columns["filename"], strict=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(one, [shot for shot in shots if shot[0] in sick]))


if __name__ == "__main__":
    sys.exit(showing.ended(main))
