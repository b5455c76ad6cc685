"""Pneumonia on chest X-rays: a simple CNN, ResNet34 from scratch, ResNet34 pretrained, and which images each misses.

Data      Kermany et al. 2018, Mendeley Data rscbjbr9sj or Kaggle paultimothymooney/chest-xray-pneumonia:
          train|val|test / NORMAL|PNEUMONIA, 5,216 / 16 / 624 X-rays of children (the source counts 5,855 in all).
Method    Three networks learn all their weights on the training folder. The simple CNN has two convolutions and three
          dense layers (`simple-cnn`). Adam, cross entropy, batches of 32; 3 epochs for the simple and the pretrained
          one, 5 from scratch. False negatives and false positives are counted on the test folder at p = 0.5, and
          compared image by image.
Command   python pipelines/c_pneumonia_resnet34.py CHEST_XRAY -o runs/c              as published, for a GPU
          python pipelines/c_pneumonia_resnet34.py CHEST_XRAY --reduced WEIGHTS      smaller, for two cores
          python pipelines/c_pneumonia_resnet34.py --quick                           on phantoms, in seconds
Minutes   see README.md beside this file; as published it was not run.
Expected  Accuracy above 0.90 on validation, a validation loss near 0.15; on test 22 false negatives from scratch, 12
          pretrained. For the simple CNN none are published.
Deviates  The published division of the 5,855 images is not known: a tenth of the training folder, whole patients, is
          held out, and the epoch with the least loss on it is kept (the 16 images of `val` are too few for it).
          Rates are not published: those of the second pneumonia study, 0.001 from scratch, 0.0001 pretrained.
          `--reduced` learns from a third of the patients, from scratch in smaller images (112 and 64 pixels), and in
          the place of the pretrained ResNet34 has MobileNetV2 with the ImageNet weights in WEIGHTS: it compares where
          weights come from, not architectures.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import showing
from showing import Model

from featcache import BackboneSpec, Run, durable
from featcache.manifest.datasets import kermany
from featcache.specs import PRESETS, SplitSpec, Stage, TargetSpec

SPLIT = SplitSpec(val_fraction=0.1)
TARGET = TargetSpec(positive="PNEUMONIA")
SCRATCH = replace(PRESETS["pneumonia-scratch"], weight_decay=0.0, augment=None, select="loss")
PRETRAINED = replace(
    PRESETS["pneumonia-pretrained"], stages=(Stage("all", 3),), augment=None, freeze_bn="no", select="loss"
)
MODELS = (
    Model("simple CNN", BackboneSpec("simple-cnn", "random:0"), replace(SCRATCH, stages=(Stage("all", 3),))),
    Model("ResNet34 from scratch", BackboneSpec("resnet34.tv_in1k", "random:0", crop_pct=1.0), SCRATCH),
    Model("ResNet34 pretrained", BackboneSpec("resnet34.tv_in1k", crop_pct=1.0), PRETRAINED),
)
PUBLISHED = {"ResNet34 from scratch": 22, "ResNet34 pretrained": 12}
SMALLER = "a third of the patients, small images, and MobileNetV2 with WEIGHTS for the pretrained network"


def main(given: Sequence[str] | None = None) -> None:
    """The study."""
    asked = showing.asked(__doc__, showing.draw_kermany, given, SMALLER)
    from featcache.reporting.report import report

    images = kermany(asked.data).manifest
    images = showing.third(images) if asked.weights else images
    runs = {m.name: showing.trained(m, images, asked.folder, SPLIT, TARGET) for m in models(asked)}
    said = predictions(runs)
    durable.write_csv(asked.folder / "predictions.csv", ("image_id", *said), said.reset_index().values.tolist())
    tables = {"Errors on the test folder, at p = 0.5:": errors(runs), "Missed on the test folder:": missed(said)}
    page = asked.folder / "compared.md"
    showing.tell(page, tables, asked.quick)
    showing.left(page, report(list(runs.values()), asked.folder / "report.html", images=images).path)


def models(asked: showing.Asked) -> list[Model]:
    """The three networks, in the size that is asked for."""
    simple, scratch, pretrained = MODELS
    if asked.quick:
        small = {"name": "test_resnet"}
        pretended = pretrained.smaller(32, 1, weights="random:1", **small)
        return [simple.smaller(32, 1), scratch.smaller(32, 1, **small), pretended]
    if asked.weights is None:
        return list(MODELS)
    mobile = replace(pretrained, name="MobileNetV2 pretrained")
    net = {"name": "mobilenetv2_100", "weights": asked.weights}
    return [simple.smaller(112, 3), scratch.smaller(64, 5), mobile.smaller(224, 3, **net)]


def errors(runs: Mapping[str, Run]) -> str:
    """False negatives and false positives side by side."""
    rows = []
    for name, run in runs.items():
        scores, val = run.metrics("test"), run.metrics("val")
        (_, false_positives), (false_negatives, _) = scores["confusion"]
        counts = false_negatives, PUBLISHED.get(name), false_positives
        pixels = run.record["store"]["identity"]["transform"]["input_size"][0]
        on_test = (showing.measured(scores, number) for number in ("accuracy", "auroc"))
        rows.append((name, pixels, *counts, *on_test, val["accuracy"], val["loss"]))
    header = ("model", "pixels", "false negatives", "published", "false positives", "accuracy", "AUROC")
    return showing.table((*header, "validation accuracy", "validation loss"), rows)


def predictions(runs: Mapping[str, Run]) -> pd.DataFrame:
    """A row per test image: its label, and what each model calls it."""
    tables = {name: pd.read_csv(run.path / "predictions.csv", dtype=str, na_filter=False) for name, run in runs.items()}
    test = {name: table[table["split"] == "test"].set_index("image_id") for name, table in tables.items()}
    label = next(iter(test.values()))["label"]
    return pd.DataFrame({"label": label, **{name: table["prediction"] for name, table in test.items()}})


def missed(said: pd.DataFrame) -> str:
    """How many images are missed by which models together."""
    wrong = said.drop(columns="label").ne(said["label"], axis=0)
    by = wrong.dot(wrong.columns + " and ").str.removesuffix(" and ").replace("", "none")
    counts = pd.crosstab(by, said["label"])
    return showing.table(
        ("missed by", *(f"of {n:,} {c}" for c, n in counts.sum().items())), counts.reset_index().values
    )


if __name__ == "__main__":
    sys.exit(showing.ended(main))
