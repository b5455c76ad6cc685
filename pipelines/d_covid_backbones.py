"""The COVID challenge: heads on the flattened feature maps of five frozen backbones, a small CNN, and grid searches.

Data      Two classes, about 130 training images: DATA/binary/{train,test}/CLASS/…; four classes: DATA/four/….
Method    VGG16, VGG19, ResNet50, InceptionResNetV2 and Xception with ImageNet weights, frozen, at 224 x 224, in one
          decoding of each image. On each flattened map Dense 256, ReLU, dropout 0.25, then 1 sigmoid or 4 softmax
          outputs. Two classes: Adam 0.005, 40 epochs; four: Adam 0.0001, 100. Then, on VGG16, a grid in three folds:
          270 fits for two classes, 54 for four. An own CNN (`covid-cnn`) learns from the pixels, and tries 32 and 64
          units in its second dense layer; the weights of least validation loss are kept. t-SNE of the dense layer.
Command   python pipelines/d_covid_backbones.py DATA -o runs/d                            as published
          python pipelines/d_covid_backbones.py DATA --reduced random:0 -o runs/d         phantoms, for two cores
          python pipelines/d_covid_backbones.py --quick                                   small phantoms, in seconds
Minutes   see README.md beside this file; as published it was not run.
Expected  Validation accuracy, two classes: VGG16 0.90, VGG19 0.95, ResNet50 0.50, tuned VGG16 1.00; four classes: VGG16
          0.68, ResNet50 0.41, Xception 0.39, InceptionResNetV2 0.32, own 0.52; on test tuned VGG16 0.7222, own 0.4166.
Deviates  Feature maps are divided by their root mean square. Images are cut to a square, not squashed. Grids are ranked
          by the loss of held rows, where 43 rows have few accuracies; what stops a training early is a tenth of its own
          training rows. The rate, dropout and activation of the own CNN are tried in the published form only.
          `--reduced random:0` fills DATA with phantoms if it is not there, and has networks with random weights: it
          shows what takes how long, and nothing about patients.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import showing
import torch

from featcache import BackboneSpec, HeadSpec, Manifest, Run, Store, backbones, durable, phantoms
from featcache.cli.progress import progress, training
from featcache.embedding import embed_all
from featcache.figures import charts
from featcache.finetune.fine_tune import train
from featcache.heads import inference
from featcache.heads.mlp import n_parameters
from featcache.reporting.projection import project
from featcache.reporting.report import report
from featcache.specs import Recipe, SelectionSpec, SplitSpec, Stage, grid
from featcache.training.train_head import train_head

TASKS, OWN = ("binary", "four"), "own CNN"
NETWORKS = {  # and the numbers of trainable parameters that are published, for two classes and for four
    "VGG16": ("vgg16.tv_in1k", 6_423_041, 6_423_812),
    "VGG19": ("vgg19.tv_in1k", 6_423_041, 6_423_812),
    "ResNet50": ("resnet50.tv_in1k", 25_690_625, 25_691_396),
    "InceptionResNetV2": ("inception_resnet_v2.tf_in1k", 9_830_913, 9_831_684),
    "Xception": ("legacy_xception.tf_in1k", 25_690_625, 25_691_396),
    OWN: ("covid-cnn", 23_935_041, 23_935_236),
}
HEADS = {
    "binary": HeadSpec.of("flatten-mlp", lr=0.005, epochs=40),
    "four": HeadSpec.of("flatten-mlp", lr=0.0001, epochs=100),
}
UNITS = (128, 64)  # of the own CNN's dense layers
TRIED: dict[str, Any] = {"activation": ("sigmoid", "relu"), "dropout": (0.15, 0.20, 0.25)}
GRIDS: dict[str, dict[str, Any]] = {
    "binary": {"lr": (0.001, 0.005, 0.01, 0.05, 0.1), "epochs": (40, 80, 120), **TRIED},
    "four": {"lr": (1e-3, 1e-4, 1e-5), "epochs": (100,), "patience": (10,), **TRIED},
    OWN: {"lr": (1e-3, 1e-4, 1e-5), "epochs": (100,), "hidden_sizes": ((128, 32), UNITS), **TRIED},
}
RECIPE = Recipe(schedule="constant", class_weight="none", augment=None, select="loss", patience=10)
LOSS, FOLDS = SelectionSpec(select="loss"), SplitSpec(n_splits=3)
PUBLISHED = {  # accuracy on validation and on test
    "binary": {"VGG16": (0.90, None), "VGG19": (0.95, None), "ResNet50": (0.50, None), "VGG16 tuned": (1.0, None)},
    "four": {
        "VGG16": (0.68, None), "ResNet50": (0.41, None), "Xception": (0.39, None), "InceptionResNetV2": (0.32, None),
        OWN: (0.52, 0.4166), "VGG16 tuned": (None, 0.7222),
    },
}  # fmt: skip
SMALLER = "networks with these WEIGHTS, the own CNN in 5 epochs; on phantoms where DATA is not there"


def main(given: Sequence[str] | None = None) -> None:
    """The study."""
    asked = showing.asked(__doc__, lambda folder: draw(folder, 32), given, SMALLER)
    if asked.weights and not asked.data.exists():
        draw(asked.data, 184)
    runs: dict[tuple[str, str], Run] = {}
    for task in TASKS:
        images, folder = Manifest.read(asked.data / task), asked.folder / task
        specs = specs_of(asked)
        with progress(f"{task}, five networks") as (on_progress, on_note):
            told = showing.in_tenths(f"{task}, images through five networks", on_progress, on_note)
            stores = {folder / f"{name}.h5": spec for name, spec in specs.items()}
            embed_all(images, stores, on_progress=told, on_note=on_note)
        for name in specs:
            runs[task, name] = on_maps(folder, name, name, smaller(asked, [HEADS[task]]), SplitSpec())
        runs[task, "VGG16 tuned"] = on_maps(folder, "VGG16", "VGG16 tuned", tried(asked, task), FOLDS)
        runs[task, OWN] = on_pixels(asked, images, folder, replace(HEADS[task], hidden_sizes=UNITS), SplitSpec())
    tuned = [on_pixels(asked, images, folder, spec, FOLDS) for spec in tried(asked, OWN)]
    runs["four", f"{OWN} tuned"] = min(tuned, key=lambda run: run.record["metrics"]["val"]["loss"])
    for task in TASKS:
        durable.write_bytes(asked.folder / f"{task}-hidden.png", hidden(asked.folder / task, runs[task, "VGG16"]))
    on = "of phantoms, in a rehearsal" if asked.quick else f"with weights {asked.weights or 'of ImageNet'}"
    tables = {"Trainable parameters": counted(), f"Accuracy, {on}": compared(runs)}
    showing.tell(asked.folder / "compared.md", tables, asked.quick)
    report([runs["four", name] for name in ("VGG16 tuned", OWN)], asked.folder / "report.html")


def draw(folder: Path, n: int) -> None:
    """Phantoms of n patients, three in ten of them for the test, in two classes and in four."""
    phantoms.write(folder / "binary", n, 1)
    phantoms.write(folder / "four", n, 1, classes=phantoms.FOUR_CLASSES)


def specs_of(asked: showing.Asked) -> dict[str, BackboneSpec]:
    """The frozen networks."""
    names = {name: arch for name, (arch, _, _) in NETWORKS.items() if name != OWN}
    how: dict[str, Any] = {"crop_pct": 1.0, "taps": ("pooled", "grid")}
    if asked.quick:
        return {name: BackboneSpec("test_resnet", f"random:{i}", 64, **how) for i, name in enumerate(names)}
    return {name: BackboneSpec(arch, asked.weights, 224, **how) for name, arch in names.items()}


def smaller(asked: showing.Asked, specs: Sequence[HeadSpec]) -> list[HeadSpec]:
    """The same heads; in a rehearsal those that differ still when all are trained for two epochs."""
    return list(dict.fromkeys(replace(spec, epochs=2) for spec in specs)) if asked.quick else list(specs)


def tried(asked: showing.Asked, what: str) -> list[HeadSpec]:
    """A grid; of the own CNN only the units where it is not the published form."""
    options = GRIDS[what]
    if what == OWN and (asked.quick or asked.weights):
        options = {"lr": (HEADS["four"].lr,), "hidden_sizes": options["hidden_sizes"]}
    return smaller(asked, grid(["flatten-mlp"], options))


def on_maps(folder: Path, store_name: str, name: str, specs: Sequence[HeadSpec], split: SplitSpec) -> Run:
    """Heads on the flattened maps of a store."""
    with Store.open(folder / f"{store_name}.h5") as store, progress(name, "epochs/s") as (on_progress, on_note):

        def make(run_path: Path) -> Run:
            told = showing.in_tenths(f"{folder.name}, {name}, epochs", on_progress, on_note)
            return train_head(store, specs, run_path, split=split, report=LOSS, on_progress=told, on_note=on_note)

        return showing.once(folder, name, (list(specs), split, store.identity_sha256, store.content_sha256), make)


def on_pixels(asked: showing.Asked, images: Manifest, folder: Path, head: HeadSpec, split: SplitSpec) -> Run:
    """The own CNN with the dense layers and the rate of `head`."""
    backbone = BackboneSpec("covid-cnn", "random:0", 32 if asked.quick else None)
    epochs = 1 if asked.quick else 5 if asked.weights else head.epochs
    recipe = replace(RECIPE, stages=(Stage("all", epochs),), lr=head.lr, backbone_lr=head.lr)

    def make(run_path: Path) -> Run:
        with training() as (callbacks, _):
            callbacks.on_note(f"{folder.name}, {OWN}, {head.hidden_sizes[1]} units: {run_path}")
            return train(images, backbone, head, recipe, run_path, split=split, **callbacks._asdict())

    return showing.once(folder, OWN, (backbone, head, recipe, split, images.image_ids, images.columns), make)


def hidden(folder: Path, run: Run) -> bytes:
    """t-SNE of the dense layer of a head on VGG16's maps, coloured by class."""
    with Store.open(folder / "VGG16.h5") as store:
        maps, labels = store.features("grid").reshape(len(store), -1), np.array(store.columns["label"])
    points = project(inference.hidden(run.spec, run.weights(), maps), umap=False)
    kinds = [(name, charts.CLASSES[i], labels == name) for i, name in enumerate(run.record["classes"])]
    return charts.scatter(points, kinds, np.zeros(len(points), dtype=bool))


def counted() -> str:
    """Trainable parameters, ours beside those published: of a head, of the own CNN with its convolutions."""
    rows = []
    for name, (arch, *published) in NETWORKS.items():
        _, module, _ = backbones.sketch(arch)
        shape = module.forward_features(torch.zeros(1, 3, 224, 224, device="meta")).shape[1:]
        head = HeadSpec.of("flatten-mlp", **({"hidden_sizes": UNITS} if name == OWN else {}))
        below = sum(parameter.numel() for parameter in module.parameters()) if name == OWN else 0
        ours = [below + n_parameters(head, prod(shape), n_outputs) for n_outputs in (1, 4)]
        rows.append((name, prod(shape), ours[0], published[0], ours[1], published[1]))
    return showing.table(("network", "map", "two classes", "published", "four classes", "published"), rows)


def compared(runs: Mapping[tuple[str, str], Run]) -> str:
    """Accuracy of every model, ours beside those published."""
    rows = []
    for (task, name), run in runs.items():
        ours = [run.record["metrics"][side]["accuracy"] for side in ("val", "test")]
        published = PUBLISHED[task].get(name, (None, None))
        rows.append((task, name, run.n_parameters, ours[0], published[0], ours[1], published[1]))
    header = ("classes", "model", "parameters", "validation", "published", "test", "published")
    return showing.table(header, rows)


if __name__ == "__main__":
    sys.exit(showing.ended(main))
