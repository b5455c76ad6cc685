"""How fast `featcache embed` is against the loop most people write, in one run on one machine, as a ratio.

    .venv/bin/python benchmarks/embed.py [IMAGES] [--backbone NAME] [--n N]

The naive loop: timm's network in eager float32 as it comes, timm's transform, torchvision's ImageFolder, a DataLoader
with one worker per core, batches of 32. Both start from files that are in the page cache, both have random weights, and
the time of each is that of images 33 to N, after one batch to warm up; the whole pass of featcache is its own figure,
from the loaded network to the published file.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

from featcache import phantoms
from featcache.embed import embed
from featcache.manifest import Manifest
from featcache.request import BackboneSpec

BATCH_ROWS = 32  # of the plain loop, and rows per part of the pass


def naive(images: Path, backbone: str, n: int) -> tuple[float, torch.Tensor]:
    """images/s of the naive loop after its first batch, and its vectors."""
    torch.manual_seed(0)
    network = timm.create_model(backbone, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    data = Subset(ImageFolder(images, transform), range(n))
    vectors = []
    with torch.inference_mode():
        for i, (batch, _) in enumerate(DataLoader(data, BATCH_ROWS, num_workers=os.cpu_count() or 1)):
            vectors.append(network(batch))
            if i == 0:
                started = time.perf_counter()
    return (n - BATCH_ROWS) / (time.perf_counter() - started), torch.cat(vectors)


def ours(images: Path, backbone: str, n: int) -> tuple[float, float]:
    """images/s of the pass after its first batch, and of the pass as a whole."""
    manifest = Manifest.read(images)
    subset = Manifest(manifest.image_ids[:n], manifest.paths[:n], {}, images)
    moments: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        done = embed(
            subset,
            Path(folder) / "s.h5",
            BackboneSpec(backbone, "random:0"),
            part_rows=BATCH_ROWS,
            on_progress=lambda rows, _: moments.setdefault(rows, time.perf_counter()),
        )
    steady = (n - BATCH_ROWS) / (moments[n] - moments[BATCH_ROWS])
    return steady, done.counts.embedded / done.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=Path, help="a folder of classes; default: 480 phantoms")
    parser.add_argument("--backbone", default="efficientnet_b1")
    parser.add_argument("--n", type=int, default=480)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.images is None:
            phantoms.write(Path(folder))
            options.images = Path(folder) / "train"
            options.n = min(options.n, 336)
        # featcache last: it tells the allocator to keep memory, which would help the naive loop as well.
        naive_rate, _ = naive(options.images, options.backbone, options.n)
        steady, whole = ours(options.images, options.backbone, options.n)
    result: dict[str, Any] = {
        "backbone": options.backbone,
        "n": options.n,
        "naive_images_per_second": round(naive_rate, 1),
        "featcache_images_per_second": round(steady, 1),
        "featcache_whole_pass_images_per_second": round(whole, 1),
        "ratio": round(steady / naive_rate, 2),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
