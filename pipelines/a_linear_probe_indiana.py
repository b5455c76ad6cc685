"""A linear probe: normal or not, on the Indiana chest X-rays, by the vectors of a frozen EfficientNet-B1.

Data      Indiana University chest X-rays (Demner-Fushman et al. 2016), 3,851 studies with reports, frontal and lateral;
          Kaggle raddar/chest-xrays-indiana-university: indiana_reports.csv, indiana_projections.csv and
          images/images_normalized, 14.19 GB. An image is normal where `Problems` of its report is `normal`.
Method    One pass through the frozen network, then only the classification layer learns: 1,280 features, 2 classes,
          2,562 parameters; Adam at 0.003, cross entropy, 40 epochs, 80 : 20. Loss, accuracy, precision, recall and F1
          of both sides in every epoch. It is what image and report together have to be better than.
Command   python pipelines/a_linear_probe_indiana.py INDIANA -o runs/a
          python pipelines/a_linear_probe_indiana.py --quick                 on phantoms, in seconds
Minutes   not measured, the images are not kept with the code; `featcache embed … --dry-run` tells what the pass takes.
Expected  On validation in epoch 40: accuracy 0.6774, F1 0.7600; the best accuracy 0.6948 in epoch 31, most between 0.64
          and 0.69, where 64 % of the images are not normal.
Deviates  A study is on one side: the source split by image, so that the other view of a patient could be in training.
          Batches of 32, and no weight decay, are assumed. timm's weights `efficientnet_b1.ft_in1k`.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import showing

from featcache import BackboneSpec, HeadSpec, Run, Store
from featcache.manifest.datasets import iu_xray
from featcache.reporting.report import report
from featcache.specs import SplitSpec, TargetSpec
from featcache.training.train_head import train_head

BACKBONE = BackboneSpec("efficientnet_b1.ft_in1k")
HEAD = HeadSpec(lr=0.003, epochs=40, weight_decay=0.0, schedule="constant", scale="none")
SPLIT = SplitSpec(val_fraction=0.2)
TARGET = TargetSpec(positive="abnormal")
PUBLISHED = {  # of validation
    "parameters": 2562,
    "accuracy, epoch 40": 0.6774,
    "F1, epoch 40": 0.7600,
    "best accuracy": 0.6948,
    "its epoch": 31,
}


def main(given: Sequence[str] | None = None) -> None:
    """The study."""
    asked = showing.asked(__doc__, showing.draw_indiana, given)
    tables = (asked.data / f"indiana_{name}.csv" for name in ("reports", "projections"))
    images, counts = iu_xray(*tables, asked.data / "images" / "images_normalized")
    spec = replace(BACKBONE, name="test_efficientnet", weights="random:0", input_size=32) if asked.quick else BACKBONE
    store_path = asked.folder / "indiana.h5"
    showing.embedded(images, store_path, spec)
    with Store.open(store_path) as store:
        run = train_head(store, HEAD, asked.folder / "linear", target=TARGET, split=SPLIT)
    report(run, asked.folder / "report.html", store_path, images)
    compared = {"Validation:": showing.beside(PUBLISHED, {"here": numbers(run)}), "Epochs:": showing.epochs(run)}
    showing.tell(asked.folder / "compared.md", {"Images:": showing.counted(counts), **compared}, asked.quick)


def numbers(run: Run) -> dict[str, float]:
    """What was published, as this Run has it."""
    history = run.history()
    best = max(history, key=lambda point: point["val_accuracy"])
    last = history[-1]["val_accuracy"], history[-1]["val_f1"], best["val_accuracy"], int(best["epoch"])
    return dict(zip(PUBLISHED, (run.n_parameters, *last), strict=True))


if __name__ == "__main__":
    sys.exit(showing.ended(main))
