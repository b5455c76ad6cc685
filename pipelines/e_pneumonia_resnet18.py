"""Pneumonia on chest X-rays: ResNet18 from scratch and pretrained, each with and without augmentation.

Data      Kermany et al. 2018, Mendeley Data rscbjbr9sj or Kaggle paultimothymooney/chest-xray-pneumonia:
          train|val|test / NORMAL|PNEUMONIA; 1,341 / 3,875 images to train on, 8 / 8 in val, 234 / 390 in test.
Method    All weights learn. Pixels minus 0.5303 by 0.1944, batches of 32, cross entropy, 5 epochs. From scratch: Adam
          at 0.001, with weight decay 0.0001 where images are augmented. Pretrained: Adam at 0.0001. Augmentation turns
          an image by up to 25 degrees, changes its light, and mirrors it. Confusion matrix, specificity and the rest
          are of the test folder at p = 0.5; the report has the gallery of failures and successes.
Command   python pipelines/e_pneumonia_resnet18.py CHEST_XRAY -o runs/e              as published, for a GPU
          python pipelines/e_pneumonia_resnet18.py CHEST_XRAY --reduced WEIGHTS      smaller, for two cores
          python pipelines/e_pneumonia_resnet18.py --quick                           on phantoms, in seconds
Minutes   see README.md beside this file; as published it was not run.
Expected  On test: accuracy 0.806, specificity 0.487, recall 0.997 from scratch; 0.822, 0.529, 0.997 pretrained. Also
          published, accuracies after 5 epochs: 0.83 from scratch, 0.855 with augmentation, 0.858 pretrained; and 0.907
          from scratch after 9.
Deviates  A tenth of the training folder, whole patients, is held out, and the epoch with the least loss on it is kept:
          the 16 images of `val` are too few to choose by. How strongly the light was changed is not published: 0.2.
          `--reduced` learns from a third of the patients, from scratch in images of 64 pixels, and has in the place of
          the pretrained ResNet18 MobileNetV2 with the ImageNet weights in WEIGHTS and their mean and deviation, for 2
          epochs: it compares where weights come from, not architectures.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import showing
from showing import Model

from featcache import BackboneSpec, Run
from featcache.manifest.datasets import kermany
from featcache.specs import PRESETS, SplitSpec, TargetSpec

SPLIT = SplitSpec(val_fraction=0.1)
TARGET = TargetSpec(positive="PNEUMONIA")
LOOK = {"crop_pct": 1.0, "mean": (0.5303,) * 3, "std": (0.1944,) * 3}
FRESH = BackboneSpec("resnet18.tv_in1k", "random:0", **LOOK)
IMAGENET = BackboneSpec("resnet18.tv_in1k", **LOOK)
SCRATCH = replace(PRESETS["pneumonia-scratch"], select="loss")
PRETRAINED = replace(PRESETS["pneumonia-pretrained"], freeze_bn="no", select="loss")
MODELS = (
    Model("ResNet18 from scratch", FRESH, replace(SCRATCH, weight_decay=0.0, augment=None)),
    Model("ResNet18 from scratch, augmented", FRESH, SCRATCH),
    Model("ResNet18 pretrained", IMAGENET, replace(PRETRAINED, augment=None)),
    Model("ResNet18 pretrained, augmented", IMAGENET, PRETRAINED),
)
COLUMNS = ("accuracy", "specificity", "precision", "recall", "f1")
PUBLISHED = {  # and the confusion matrix, rows are the truth
    "published, from scratch": (0.806, 0.487, 0.764, 0.997, 0.865, [[114, 120], [1, 389]]),
    "published, pretrained": (0.822, 0.529, 0.779, 0.997, 0.875, [[124, 110], [1, 389]]),
}
SMALLER = "a third of the patients, small images, and MobileNetV2 with WEIGHTS for the pretrained network"


def main(given: Sequence[str] | None = None) -> None:
    """The study."""
    asked = showing.asked(__doc__, showing.draw_kermany, given, SMALLER)
    from featcache.reporting.report import report

    images = kermany(asked.data).manifest
    images = showing.third(images) if asked.weights else images
    runs = {m.name: showing.trained(m, images, asked.folder, SPLIT, TARGET) for m in models(asked)}
    page = asked.folder / "compared.md"
    showing.tell(page, {"On the test folder, at p = 0.5:": compared(runs)}, asked.quick)
    showing.left(page, report(list(runs.values()), asked.folder / "report.html", images=images).path)


def models(asked: showing.Asked) -> list[Model]:
    """The four trainings, in the size that is asked for."""
    if asked.quick:
        small = [m.smaller(32, 1, name="test_resnet", weights=m.backbone.weights or "random:1") for m in MODELS]
        names = [m.name.replace("ResNet18", "test_resnet") for m in MODELS]
        return [replace(m, name=n.replace("pretrained", "as if pretrained")) for m, n in zip(small, names, strict=True)]
    if asked.weights is None:
        return list(MODELS)
    net = {"name": "mobilenetv2_100", "weights": asked.weights, "mean": None, "std": None}
    fresh, pretrained = MODELS[:2], MODELS[2:]
    renamed = [replace(m, name=m.name.replace("ResNet18", "MobileNetV2")) for m in pretrained]
    return [*(m.smaller(64, 5) for m in fresh), *(m.smaller(224, 2, **net) for m in renamed)]


def compared(runs: Mapping[str, Run]) -> str:
    """What was published, and what was found here."""
    rows = [[name, None, *numbers] for name, numbers in PUBLISHED.items()]
    for name, run in runs.items():
        scores = run.metrics("test")
        rows.append(
            [name, showing.measured(scores, "auroc"), *(scores[column] for column in COLUMNS), scores["confusion"]]
        )
    return showing.table(("model", "AUROC", *COLUMNS, "confusion"), rows)


if __name__ == "__main__":
    sys.exit(showing.ended(main))
