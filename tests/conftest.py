"""Shared material: small image folders, a tiny real network, and where the real data is."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach a network; read when huggingface_hub is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the cores from other processes of tests
os.environ.pop("COLUMNS", None)  # of several processes of tests each has one, which would be the width of tables

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from featcache.backbones import load
from featcache.embedding import embed
from featcache.manifest import Manifest
from featcache.specs import AugmentedCopies, BackboneSpec, HeadSpec, SplitSpec, TargetSpec
from featcache.store import Part, PartFolder, Store, publish
from featcache.training.train_head import train_head

if TYPE_CHECKING:
    from tests.test_cli import Done

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born with it ignored

SMALL = "test_resnet"  # a real network of 373,000 parameters
NET = "test_efficientnet"  # another, of 99,000, of which every random weight has a gradient
KERMANY_GROUPS = r"^(train|val|test)/\w+/(person\d+|(?:NORMAL2-)?IM-\d+)"


def shared(*parts: str) -> Path:
    """A path of the real data, or the test is skipped with the reason."""
    root = Path(os.environ.get("FEATCACHE_SHARED", Path(__file__).parents[2] / "shared"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no {path}: set FEATCACHE_SHARED to the folder with the real data")
    return path


def draw(path: Path, seed: int, size: tuple[int, int] = (40, 36), mode: str = "L") -> None:
    """A small image of smooth noise, different for every seed."""
    rng = np.random.default_rng(seed)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    coarse = rng.integers(0, 256, (6, 5, *channels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def draw_classes(root: Path) -> Path:
    """12 images: train and test, two classes, three patients a class and side, in PNG and JPEG."""
    seed = 0
    for side, n in (("train", 4), ("test", 2)):
        for label in ("normal", "sick"):
            for patient in range(n):
                suffix = "png" if seed % 2 else "jpg"
                draw(root / side / label / f"{side}p{patient}{label[0]}-0.{suffix}", seed)
                seed += 1
    return root


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    return draw_classes(tmp_path / "images")


@pytest.fixture(scope="session")
def embedded_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real store of the images of `class_folder`. To be copied, never to be changed."""
    folder = tmp_path_factory.mktemp("embedded")
    manifest = Manifest.read(draw_classes(folder / "images"), group_pattern=r"/(\w+p\d)")
    embed(manifest, folder / "small.h5", BackboneSpec(SMALL, "random:0", input_size=32))
    return folder / "small.h5"


@pytest.fixture
def embedded(embedded_once: Path, class_folder: Path, tmp_path: Path) -> Path:
    """A real store of `class_folder`, and what was seen when it was made, of the same images elsewhere."""
    for name in ("small.h5", ".small.h5.seen"):
        shutil.copy(embedded_once.with_name(name), tmp_path / name)
    return tmp_path / "small.h5"


def draw_shadows(root: Path, n: int = 24) -> Path:
    """2 n images in train and test, two to one, of two classes: "sick" has a bright shadow somewhere in the middle."""
    for i in range(2 * n):
        path = root / ("train", "train", "test")[i // 2 % 3] / ("normal", "sick")[i % 2] / f"{i:03d}.png"
        draw(path, i, size=(44, 40), mode="RGB" if i % 8 == 1 else "L")
        if i % 2:
            pixels = np.asarray(Image.open(path)).copy()
            top, left = 8 + i % 7, 10 + i % 5
            part = pixels[top : top + 14, left : left + 14]
            part[:] = np.minimum(part, 155) + 100
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="session")
def phase_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what phase 2 begins with: `images`; `net.safetensors`, the weights of a network; `tail.h5`, their
    store with boundaries and two views; the Runs `linear`, `mlp` and `bare` (an mlp without a norm) of a hold-out,
    `uneven` with fewer of one class, and `folds` of three folds. Never to be changed."""
    return begin_phase_two(draw_shadows(tmp_path_factory.mktemp("phase_one") / "images").parent)


def begin_phase_two(folder: Path) -> Path:
    """Beside `images` whatever is not there yet of a network, a store and Runs."""
    torch.set_num_threads(2)  # as in every test: sums over other pieces differ in their last bit
    manifest = Manifest.read(folder / "images")
    if not (folder / "net.safetensors").exists():
        make_network(folder / "net.safetensors", manifest.paths[:24])
    spec = BackboneSpec(NET, str(folder / "net.safetensors"), input_size=32, taps=("pooled", "boundary"))
    embed(manifest, folder / "tail.h5", spec, augmentations=AugmentedCopies(2))
    linear, hold_out = HeadSpec(epochs=2, lr=1e-4), SplitSpec(val_fraction=0.25)
    mlp = HeadSpec.of("mlp", hidden_sizes=(8,), epochs=2, lr=1e-4)
    with Store.open(folder / "tail.h5") as store:
        for name, head in (("linear", linear), ("mlp", mlp), ("bare", replace(mlp, norm="none"))):
            train_head(store, head, folder / name, split=hold_out)
        train_head(store, linear, folder / "folds", split=SplitSpec(n_splits=3))
        rows = enumerate(zip(store.image_ids, store.columns["label"], strict=True))
        kept = [f"{name},{label}" for i, (name, label) in rows if label == "normal" or i % 3]
        (folder / "labels.csv").write_text("\n".join(["image_id,label", *kept]) + "\n")
        target = TargetSpec(file=folder / "labels.csv")
        train_head(store, linear, folder / "uneven", target=target, split=hold_out)
    return folder


def make_network(path: Path, images: list[Path]) -> None:
    """Random weights, and batch norms with the statistics that these images have: features of a sane size."""
    net = load(BackboneSpec(NET, "random:0", input_size=32), "cpu")
    pixels = np.stack([np.asarray(Image.open(each).convert("RGB").resize((32, 32))) for each in images])
    for norm in net.module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.train().momentum = 1.0
    with torch.no_grad():
        net.module(net.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    safetensors.torch.save_file({name: t.contiguous() for name, t in net.module.state_dict().items()}, path)


def save_others(weights: Path | str, path: Path) -> None:
    """Other weights of the same network, some of which are larger by one."""
    state = safetensors.torch.load_file(weights)
    first = next(iter(state))
    safetensors.torch.save_file({**state, first: state[first] + 1}, path)


def moved_away(run: Path, folder: Path) -> Path:
    """A copy of a Run whose weights have been in a file that is nowhere any more."""
    shutil.copytree(run, folder / "away")
    record = json.loads((folder / "away" / "run.json").read_text("utf-8"))
    record["store"]["weights_file"] = "/away/gone.safetensors"
    (folder / "away" / "run.json").write_text(json.dumps(record), "utf-8")
    return folder / "away"


@pytest.fixture(scope="session")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "Done"]:
    """A folder in which `featcache demo` ran once, as anybody sees it who has no network, and what it said.

    To be read and added to: whoever repeats a command there must find that it changes nothing.
    """
    from tests.test_cli import featcache

    folder = tmp_path_factory.mktemp("demonstrated")
    with pytest.MonkeyPatch.context() as patch:
        without_hub(patch, tmp_path_factory.mktemp("hub"))
        return folder, featcache("demo", cwd=folder)


def make_store(
    path: Path, features: np.ndarray, columns: dict[str, list[str]], content: list[str] | None = None
) -> Path:
    """A store of given vectors, written by the code that writes all stores."""
    n = len(features)
    content = content or [f"{i:064x}" for i in range(n)]
    folder = PartFolder(path, {"identity": {"made": "for a test"}})
    with folder.locked():
        folder.write(Part(0, {"pooled": features.astype(np.float32)}, content, np.zeros(n, dtype=np.uint8), {}))
        ids = [f"image{i:05d}" for i in range(n)]
        publish(path, folder.heads(), ids, columns, {"made": "for a test"})
        folder.clear()
    return path


def two_clouds(n: int, d: int, seed: int = 0, apart: float = 1.0) -> tuple[np.ndarray, list[str]]:
    """(n, d) vectors of two overlapping Gaussian classes and their labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    centre = rng.standard_normal(d) * apart / np.sqrt(d)
    return rng.standard_normal((n, d)) + np.outer(2 * y - 1, centre), ["sick" if label else "normal" for label in y]


def without_hub(patch: pytest.MonkeyPatch, cache: Path) -> None:
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with nothing in it, and no network."""
    (tmp_path / "hub").mkdir()
    without_hub(monkeypatch, tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)
