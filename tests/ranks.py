"""What `test_world` has several processes do together, started by torch.distributed.run: every case, one after another.

python -m torch.distributed.run --nproc-per-node=2 -m tests.ranks PHASE_ONE OUT
"""

import sys
from pathlib import Path

import torch

from featcache.errors import UsageError
from featcache.specs import AugmentationSpec, Recipe, Stage
from tests.test_finetune import recipe, tuned

# Name -> (parent, recipe, whether from images).
CASES: dict[str, tuple[str, Recipe, bool]] = {
    "freeze_bn": ("uneven", recipe(Stage("last-block", 2), lr=0.003), False),
    "grad_accumulation": ("mlp", recipe(Stage("last-block", 2), lr=0.003, dropout=0.4, grad_accumulation=2), False),
    "augmented": ("bare", recipe(Stage("2", 2), lr=0.001, dropout=0.3, augment=AugmentationSpec(), batch_size=9), True),
    "sgd": ("linear", recipe(Stage("blocks.4", 2), optimizer="sgd", lr=0.01, label_smoothing=0.1), False),
}
TOO_SMALL = recipe(Stage("last-block", 1), batch_size=3)


def train_all(folder: Path, out: Path) -> None:
    for name, (parent, how, images) in CASES.items():
        tuned(folder, how, out / name, parent, images=images)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_all(Path(sys.argv[1]), Path(sys.argv[2]))
    try:
        tuned(Path(sys.argv[1]), TOO_SMALL, Path(sys.argv[2]) / "too-small")
    except UsageError as error:
        print(f"refused: {error}", flush=True)
