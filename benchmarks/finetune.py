"""How fast phase 2 is: seconds per epoch beside the naive way, and from a store of the boundary beside from the images.

    python benchmarks/finetune.py [--images FOLDER] [--backbone NAME --weights FILE] [--n 960] [--rounds 3]

The naive way is the loop of most tutorials: timm's network with its frozen parameters merely `requires_grad=False`, in
eager float32, ImageFolder-like decoding and torchvision's augmentation in a DataLoader, a process per core. Each figure
is of a process of its own, in turns; an epoch is timed after the first, which decodes and compiles. Losses are compared
on the same batches without augmentation and dropout; on X-rays only: a third of the phantoms have 16 bits, which
the naive loop clips.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache import backbones, phantoms
from featcache.embedding import embed
from featcache.finetune.fine_tune import fine_tune
from featcache.finetune.unfreeze import unfrozen
from featcache.heads.mlp import head_module
from featcache.manifest import Manifest
from featcache.runs import Run
from featcache.specs import AugmentationSpec, BackboneSpec, HeadSpec, Recipe, Stage
from featcache.store import Store
from featcache.training.train_head import train_head

CORES = len(os.sched_getaffinity(0))
EPOCHS = 3
Measured = dict[str, Any]


def prepare(folder: Path, images: Path, n: int, backbone: str, weights: str, unfreeze: str) -> None:
    """A store with the boundary of n images, and a Run on it: what phase 2 starts from."""
    manifest = Manifest.read(images)
    train = [i for i, split in enumerate(manifest.columns.get("split", [""] * len(manifest))) if split != "test"]
    rows = train[:: max(1, len(train) // n)][:n]
    columns = {"label": [manifest.columns["label"][i] for i in rows]}
    some = Manifest([manifest.image_ids[i] for i in rows], [manifest.paths[i] for i in rows], columns, images)
    spec = BackboneSpec(backbone, weights, crop_pct=1.0, taps=("pooled", "boundary"))
    embed(some, folder / "s.h5", spec)
    with Store.open(folder / "s.h5") as store:
        train_head(store, HeadSpec.of("mlp", epochs=5, dropout=0.0), folder / "run")
    np.savez(folder / "images.npz", paths=[str(path) for path in some.paths], ids=some.image_ids)


def _manifest(folder: Path) -> Manifest:
    held = np.load(folder / "images.npz")
    return Manifest(held["ids"].tolist(), [Path(path) for path in held["paths"]], {}, folder)


def _recipe(unfreeze: str, augment: bool) -> Recipe:
    spec = AugmentationSpec() if augment else None
    return Recipe(stages=(Stage(unfreeze, EPOCHS),), augment=spec, class_weight="none", schedule="constant")


def ours(folder: Path, unfreeze: str, weights: str, source: str, compiled: str, augment: str = "on") -> Measured:
    """Seconds of an epoch after the first, and the losses of all."""
    moments, losses = [], []

    def on_epoch(done: int, total: int, point: Any) -> None:
        moments.append(time.perf_counter())
        losses.append(point["train_loss"])

    with tempfile.TemporaryDirectory() as out:
        how: dict[str, Any] = {"weights": None if weights.startswith("random") else weights}
        if source == "store":
            how["store"] = Store.open(folder / "s.h5")
        else:
            how["images"] = _manifest(folder)
        fine_tune(
            Run.open(folder / "run"),
            _recipe(unfreeze, augment == "on"),
            Path(out) / "tuned",
            **how,
            device="cpu",
            compile=compiled,
            on_epoch=on_epoch,
        )
    return {"seconds": statistics.median(np.diff(moments)), "losses": losses}


def naive(folder: Path, unfreeze: str, weights: str, augment: str = "on") -> Measured:
    """The same with everybody's loop; on the rows and, without augmentation, the batches of ours."""
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms
    from torchvision.datasets.folder import default_loader

    run = Run.open(folder / "run")
    task, fold = run.task(), run.protocol().folds[0]
    paths = dict(zip(_manifest(folder).image_ids, _manifest(folder).paths, strict=True))
    held = run.record["store"]["identity"]
    loaded = backbones.load(BackboneSpec(held["backbone"]["name"], weights, crop_pct=1.0))
    names = set(unfrozen(loaded.module, unfreeze))
    network = loaded.module.to(memory_format=torch.contiguous_format)
    head = head_module(run.spec, run.weights(), run.feature_rms or 1.0, 2, task.positive, False)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)
    size, mean, std = loaded.transform.input_size, loaded.transform.mean, loaded.transform.std
    resize = transforms.Resize(
        loaded.transform.shorter_side, transforms.InterpolationMode(loaded.transform.interpolation)
    )
    varied = [transforms.RandomRotation(25), transforms.ColorJitter(0.2, 0.2, 0.2), transforms.RandomHorizontalFlip()]
    rest = [transforms.CenterCrop(size), transforms.ToTensor(), transforms.Normalize(mean, std)]
    transform = transforms.Compose([resize, *(varied if augment == "on" else []), *rest])

    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return len(fold.train)

        def __getitem__(self, i: int) -> Any:
            row = int(fold.train[i])
            return transform(default_loader(str(paths[task.image_ids[row]]))), int(task.labels[row])

    learning = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([{"params": learning, "lr": 1e-4}, {"params": head.parameters(), "lr": 1e-3}])
    seconds, losses = [], []
    for epoch in range(1, EPOCHS + 1):
        started = time.perf_counter()
        n = len(fold.train)
        order = np.random.default_rng((0, epoch)).permutation(n)
        batches = [batch.tolist() for batch in np.array_split(order, max(1, -(-n // 32)))]
        network.eval()
        for name, part in network.named_modules():
            part.train(any(f"{name}.{own}" in names for own, _ in part.named_parameters(recurse=False)))
        head.train()
        total = 0.0
        for x, y in DataLoader(Images(), batch_sampler=batches, num_workers=CORES):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(head(network(x)), y)
            loss.backward()
            optimizer.step()
            total += float(loss) * len(y)
        losses.append(total / n)
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds[1:]), "losses": losses}


MEASURES: dict[str, Callable[..., Measured]] = {"naive": naive, "ours": ours}


def alone(name: str, folder: Path, *options: str) -> Measured:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        _, _, name, folder, *rest = sys.argv
        print(json.dumps(MEASURES[name](Path(folder), *rest)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = Path(os.environ.get("FEATCACHE_SHARED", Path(__file__).parents[2] / "shared"))
    images, weights = real / "data" / "kermany224", real / "weights" / "mobilenetv2_100.onnxzoo7.safetensors"
    parser.add_argument("--images", type=Path, default=images if images.exists() else None)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", default=str(weights) if weights.exists() else "random:0")
    parser.add_argument("--unfreeze", default="last-block")
    parser.add_argument("--n", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    variants = {
        "from images": ("ours", "images", "off"),
        "from images, compiled": ("ours", "images", "on"),
        "from the store": ("ours", "store", "off"),
        "from the store, compiled": ("ours", "store", "on"),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.images is None:
            phantoms.write(folder / "phantoms")
            options.images, options.n = folder / "phantoms" / "train", min(options.n, 336)
        fixed = options.unfreeze, options.weights
        prepare(folder, options.images, options.n, options.backbone, options.weights, options.unfreeze)
        seconds: dict[str, list[float]] = {name: [] for name in ("naive", *variants)}
        for i in range(options.rounds):
            seconds["naive"].append(alone("naive", folder, *fixed)["seconds"])
            for name, (measure, *how) in variants.items():
                seconds[name].append(alone(measure, folder, *fixed, *how)["seconds"])
                print(f"round {i + 1}: {name} {seconds[name][-1]:.2f} s", file=sys.stderr)
        expected = alone("naive", folder, *fixed, "off")["losses"]
        found = {how: alone("ours", folder, *fixed, "images", how, "off")["losses"] for how in ("off", "on")}
    apart = {how: max(abs(a - b) for a, b in zip(losses, expected, strict=True)) for how, losses in found.items()}
    n_train = int(options.n * 0.8)
    what = f"{options.backbone}, {options.unfreeze}, about {n_train} images an epoch"
    print(f"{what}, {options.rounds} rounds, {CORES} cores")
    print(f"{'':<28}{'s/epoch':>9}{'naive /':>9}{'images /':>10}")
    for name, values in seconds.items():
        to_naive = statistics.median(a / b for a, b in zip(seconds["naive"], values, strict=True))
        kind = "from images, compiled" if name.endswith("compiled") else "from images"
        to_images = statistics.median(a / b for a, b in zip(seconds[kind], values, strict=True))
        print(f"{name:<28}{statistics.median(values):9.2f}{to_naive:9.2f}{to_images:10.2f}")
    print(
        f"losses of {EPOCHS} epochs, not augmented, from the naive ones: {apart['off']:.1e}, compiled {apart['on']:.1e}"
    )
    result = {
        "date": date.today().isoformat(), "machine": f"{platform.machine()}, {CORES} cores", "torch": torch.__version__,
        "seconds": seconds, "apart": apart,
    }  # fmt: skip
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
