"""CNN and MLP: normal or not, on the Indiana chest X-rays; first the head learns, then the last block with it.

Data      Indiana University chest X-rays, as in a_linear_probe_indiana.py.
Method    Phase 1, epochs 1 to 15: an MLP 1,280 - 256 - 2 with batch norm and dropout 0.5, 328,962 parameters, on the
          vectors of a frozen EfficientNet-B1. Phase 2, epochs 16 to 40: MLP and last block, from the pixels. Adam at
          0.001, cross entropy weighted by class frequency, rate lowered on a plateau, augmented images. Once with a
          hold-out as published, once with 5 folds of whole studies.
Command   python pipelines/b_cnn_mlp_indiana.py INDIANA -o runs/b
          python pipelines/b_cnn_mlp_indiana.py --quick                      on phantoms, in seconds
Minutes   not measured, the images are not kept with the code; `featcache embed … --dry-run` tells what the pass takes.
Expected  On validation: accuracy 0.6506 in epoch 15, 0.6854 in epoch 40 with F1 0.7293, the best 0.6968 in epoch 21. In
          phase 2 between 1.33 and 2.33 million parameters learn.
Deviates  A study is on one side: the source split by image. Phase 1 learns from the vectors of an image and of 4 views
          of it, one drawn in each epoch, rather than from as many views as epochs. With folds phase 2 learns from the
          stored inputs of the last stage, of the same views (2 GB), by which it needs no pixels. In phase 1 a tenth of
          the training rows lowers the rate, in phase 2 the validation rows; the epoch with the best AUROC is kept.
          Batches of 32 are assumed. timm's weights `efficientnet_b1.ft_in1k`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import showing

from featcache import BackboneSpec, HeadSpec, Manifest, Run, Store
from featcache.cli.progress import training
from featcache.finetune.fine_tune import fine_tune
from featcache.manifest.datasets import iu_xray
from featcache.reporting.report import report
from featcache.specs import PRESETS, AugmentedCopies, Recipe, SplitSpec, Stage, TargetSpec
from featcache.training.train_head import train_head


@dataclass(frozen=True)
class Study:
    """Its constants."""

    backbone: BackboneSpec
    views: AugmentedCopies
    head: HeadSpec
    recipe: Recipe
    folds: int


STUDY = Study(
    BackboneSpec("efficientnet_b1.ft_in1k", taps=("pooled", "boundary")),
    AugmentedCopies(4),
    HeadSpec.of("mlp", epochs=15, class_weight="balanced", schedule="plateau", augmentations=True),
    PRESETS["cnn-mlp"],
    folds=5,
)
REHEARSAL = Study(
    replace(STUDY.backbone, name="test_efficientnet", weights="random:0", input_size=32),
    AugmentedCopies(1),
    replace(STUDY.head, epochs=2),
    replace(STUDY.recipe, stages=(Stage("last-block", 1),)),
    folds=2,
)
TARGET = TargetSpec(positive="abnormal")
PUBLISHED = {  # of validation
    "parameters, phase 1": 328_962,
    "parameters, phase 2": "1.33 to 2.33 million",
    "accuracy, end of phase 1": 0.6506,
    "best accuracy": 0.6968,
    "its epoch": 21,
    "accuracy, end of phase 2": 0.6854,
    "F1, end of phase 2": 0.7293,
}


def main(given: Sequence[str] | None = None) -> None:
    """The study."""
    asked = showing.asked(__doc__, showing.draw_indiana, given)
    study = REHEARSAL if asked.quick else STUDY
    tables = (asked.data / f"indiana_{name}.csv" for name in ("reports", "projections"))
    images, counts = iu_xray(*tables, asked.data / "images" / "images_normalized")
    store_path = asked.folder / "indiana.h5"
    showing.embedded(images, store_path, study.backbone, study.views)
    with Store.open(store_path) as store:
        once = both_phases(study, SplitSpec(val_fraction=0.2), asked.folder / "hold-out", store, images)
        folds = both_phases(study, SplitSpec(n_splits=study.folds), asked.folder / "folds", store)
    report([*once, *folds], asked.folder / "report.html", store_path, images)
    here = {"hold-out": numbers(*once), f"{study.folds} folds": numbers(*folds)}
    compared = {"Validation:": showing.beside(PUBLISHED, here), "Epochs of the hold-out:": showing.epochs(once[1])}
    showing.tell(asked.folder / "compared.md", {"Images:": showing.counted(counts), **compared}, asked.quick)


def both_phases(
    study: Study, split: SplitSpec, folder: Path, store: Store, images: Manifest | None = None
) -> tuple[Run, Run]:
    """The Run of the head, and that of head and last block: from the images, or without them from the store."""
    first = train_head(store, study.head, folder.with_name(f"{folder.name}-head"), target=TARGET, split=split)
    made_of = study, *(first.record[name] for name in ("identity_sha256", "split_sha256", "labels_sha256"))
    inputs: dict[str, Any] = {"images": images} if images else {"store": store, "augmentations": True}

    def tune(run_path: Path) -> Run:
        with training() as (callbacks, _):
            return fine_tune(first, study.recipe, run_path, **callbacks._asdict(), **inputs)

    return first, showing.once(folder.parent, folder.name, made_of, tune)


def numbers(first: Run, second: Run) -> dict[str, object]:
    """What was published, as these Runs have it."""
    history = second.history()
    ends = [point for point in history if point["epoch"] in (first.record["head"]["epochs"], len(history))]
    best = max(history, key=lambda point: point["val_accuracy"])
    accuracies = ends[0]["val_accuracy"], best["val_accuracy"], int(best["epoch"]), ends[1]["val_accuracy"]
    return dict(zip(PUBLISHED, (first.n_parameters, second.n_parameters, *accuracies, ends[1]["val_f1"]), strict=True))


if __name__ == "__main__":
    sys.exit(showing.ended(main))
