"""What limits the pass, and how fast it is against the loop most people write: ratios from one run on one machine.

    .venv/bin/python benchmarks/embed.py [--images FOLDER] [--rounds 3] [--only jpeg224,png5m] [--process] [--peer]

Every figure is taken in a process of its own, in turns (naive, decode, forward, pass, naive, …), because machines are
noisy over minutes: a ratio is the median of the ratios of the rounds. The naive loop is timm's network in eager float32
as it comes, timm's transform, torchvision's ImageFolder, a DataLoader with one worker per core, batches of 32. Files
are in the page cache, weights are random, and steady rates leave out the first rows of a process.

Inputs: a folder of images (the real X-rays of FEATCACHE_SHARED if they are there, else phantoms), drawn grayscale PNGs
of 2,048 x 2,496, drawn grayscale JPEGs of 1,300 x 1,000. `--process` adds whole processes over all images of the folder
with cold caches of compilation, and the peak memory of 1,000 and of all of them. `--peer` adds thingsvision, in an
environment of its own. Prints a table, writes `benchmarks/embed.json`.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from featcache import backbones, phantoms
from featcache.embedding import embed, embed_all
from featcache.embedding.forward import Forward, Streams
from featcache.images.workers import Decoders
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec, DecodeSpec
from featcache.store import Store

BATCH_ROWS = 32  # of the naive loop
PART_ROWS = 32  # of the pass: when it says how far it is
CORES = os.cpu_count() or 1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPARED = 64  # rows whose vectors are compared
THREE = ("mobilenetv2_100", "efficientnet_b0", "resnet18")
Measured = dict[str, Any]

# --- inputs -----------------------------------------------------------------------------------------------------------


def draw(folder: Path, n: int, size: tuple[int, int], suffix: str) -> Path:
    """Phantoms enlarged to `size` (width, height), with the noise of a detector so that they compress as X-rays do."""
    (folder / "drawn").mkdir(parents=True, exist_ok=True)

    def one(i: int) -> None:
        small = Image.fromarray((phantoms.radiograph(i, 0, i % 2 == 0) * 255).astype(np.uint8))
        pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
        noise = np.random.default_rng(i).normal(0.0, 1.2, pixels.shape)
        Image.fromarray((pixels + noise).round().clip(0, 255).astype(np.uint8)).save(
            folder / "drawn" / f"{i:04d}{suffix}", **({"quality": 90} if suffix == ".jpg" else {})
        )

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(one, range(n)))
    return folder


def first(images: Path, n: int) -> Manifest:
    manifest = Manifest.read(images)
    step = max(1, len(manifest.paths) // n)
    return Manifest(manifest.image_ids[::step][:n], manifest.paths[::step][:n], {}, images)


# --- what is measured, each in a process of its own -------------------------------------------------------------------


def naive(images: Path, n: int, backbone: str) -> Measured:
    import timm
    from torch.utils.data import DataLoader
    from torchvision.datasets.folder import default_loader

    torch.manual_seed(0)
    network = timm.create_model(backbone, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    paths = first(images, n).paths

    class Images(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, i: int) -> torch.Tensor:
            return transform(default_loader(str(paths[i])))

    vectors = []
    with torch.inference_mode():
        for i, batch in enumerate(DataLoader(Images(), BATCH_ROWS, num_workers=CORES)):
            vectors.append(network(batch))
            if i == 0:
                started = time.perf_counter()
    rate = (len(paths) - BATCH_ROWS) / (time.perf_counter() - started)
    return {"rate": rate, "vectors": torch.cat(vectors)[:COMPARED].tolist()}


def decode(images: Path, n: int, backbone: str, how: str = "exact") -> Measured:
    transform = backbones.load(BackboneSpec(backbone, "random:0")).transform
    manifest = first(images, n)
    with Decoders([transform], DecodeSpec(fast=how == "fast")) as decoders, ThreadPoolExecutor(CORES) as pool:
        from featcache.images.cache import stamp_of

        def one(path: Path) -> None:
            assert decoders.prepare(path, stamp_of(path), ()).pixels is not None

        list(pool.map(one, manifest.paths[:CORES]))
        started = time.perf_counter()
        list(pool.map(one, manifest.paths[CORES:]))
        return {"rate": (len(manifest.paths) - CORES) / (time.perf_counter() - started)}


def forward(images: Path, n: int, backbone: str, compiled: str = "off", precision: str = "float32") -> Measured:
    loaded = backbones.load(BackboneSpec(backbone, "random:0", precision=precision), DEVICE)
    at_work = Forward(loaded, compiled, n, print_note)
    height, width = loaded.transform.input_size
    rng = np.random.default_rng(0)
    batch = [rng.integers(0, 256, (height, width), dtype=np.uint8) for _ in range(at_work.batch_size)]
    n_batches = max(8, n // at_work.batch_size)
    with Streams() as streams:
        for future in [streams.submit(at_work, at_work.vectors, batch) for _ in range(2 * at_work.n_streams)]:
            future.result()
        started = time.perf_counter()
        for future in [streams.submit(at_work, at_work.vectors, batch) for _ in range(n_batches)]:
            future.result()
        return {"rate": n_batches * at_work.batch_size / (time.perf_counter() - started)}


def whole(
    images: Path, n: int, backbone: str, compiled: str = "off", precision: str = "float32", how: str = "exact"
) -> Measured:
    """The pass, from the moment its first rows are on disk."""
    moments: dict[int, float] = {}
    manifest = first(images, n)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.h5"
        embed(
            manifest,
            path,
            BackboneSpec(backbone, "random:0", precision=precision),
            decode=DecodeSpec(fast=how == "fast"),
            compile=compiled,
            part_rows=PART_ROWS,
            on_progress=lambda rows, _: moments.setdefault(rows, time.perf_counter()),
        )
        with Store.open(path) as store:
            vectors = store.features()[:COMPARED].tolist()
    done = sorted(moments)
    start, end = next(rows for rows in done if rows >= PART_ROWS), done[-1]
    return {"rate": (end - start) / (moments[end] - moments[start]), "vectors": vectors}


def several(images: Path, n: int, backbone: str, together: str) -> Measured:
    """Seconds of passes through three backbones, in one pass or one after another; networks are loaded before."""
    manifest = first(images, n)
    with tempfile.TemporaryDirectory() as folder:
        specs = {Path(folder) / f"{name}.h5": BackboneSpec(name, "random:0") for name in THREE}
        warm = Manifest(manifest.image_ids[:1], manifest.paths[:1], {}, images)
        for path, spec in specs.items():
            embed(warm, path.with_suffix(".warm.h5"), spec, compile="off")
        passes = [specs] if together == "together" else [{path: spec} for path, spec in specs.items()]
        done = [embed_all(manifest, each, compile="off")[0].seconds for each in passes]
    return {"seconds": sum(done)}


def process(images: Path, n: int, backbone: str, who: str) -> Measured:
    """A whole process from its start to its last file, and its peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        out, env = str(Path(folder) / "s.h5"), {**os.environ, "XDG_CACHE_HOME": folder}
        if who == "naive":
            command = [sys.executable, __file__, "--one", "naive", str(images), str(n), backbone]
        else:
            listed = Path(folder) / "images.csv"
            rows = [f'"{path}"' for path in first(images, n).paths]
            listed.write_text("path\n" + "\n".join(rows) + "\n")
            options = ["--backbone", backbone, "--weights", "random:0", "--allow-outside", "-o", out]
            command = [sys.executable, "-m", "featcache", "embed", str(listed), *options]
        started = time.perf_counter()
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def peer(images: Path, n: int, backbone: str) -> Measured:
    """thingsvision, through timm, as its documentation says: images/s after the first batch."""
    code = Path(__file__).with_name("peer_thingsvision.py")
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "run", "-q", "--isolated", "--no-project", "--with", "thingsvision", "python", str(code)]
    done = subprocess.run([*command, str(images), str(n), backbone], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"rate": None, "why": done.stderr.strip().splitlines()[-1:]}
    return json.loads(done.stdout.splitlines()[-1])


def print_note(text: str) -> None:
    print(text, file=sys.stderr)


MEASURES: dict[str, Callable[..., Measured]] = {
    "naive": naive, "decode": decode, "forward": forward, "pass": whole, "several": several, "process": process,
    "peer": peer,
}  # fmt: skip


def alone(name: str, images: Path, n: int, backbone: str, *options: str) -> Measured:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(images), str(n), backbone, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- the table --------------------------------------------------------------------------------------------------------


def drift(found: Measured, expected: Measured) -> dict[str, float]:
    """How far vectors are from the naive loop's: the worst row, relative, and its cosine."""
    x, y = (np.array(each.pop("vectors")) for each in (found, expected))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return {
        "relative": float((np.linalg.norm(x - y, axis=1) / np.linalg.norm(y, axis=1)).max()),
        "cosine": float(((x * y).sum(axis=1) / norms).min()),
    }


def compare(title: str, images: Path, n: int, backbone: str, rounds: int, variants: dict[str, tuple[str, ...]]) -> Any:
    """Rounds of all variants; prints and returns the medians, and their ratios to the naive loop."""
    rates: dict[str, list[float]] = {name: [] for name in ("naive", *variants)}
    drifts: dict[str, dict[str, float]] = {}
    for i in range(rounds):
        expected = alone("naive", images, n, backbone)
        rates["naive"].append(expected["rate"])
        for name, (measure, *options) in variants.items():
            found = alone(measure, images, n, backbone, *options)
            rates[name].append(found["rate"])
            if "vectors" in found:
                drifts[name] = drift(found, dict(expected))
            print_note(f"{title}, round {i + 1}: {name} {found['rate']:.1f} images/s")
    rows = {}
    print(f"\n{title}, {backbone}, {n} images, {rounds} rounds\n{'':<34}{'images/s':>9}{'ratio':>7}  drift")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["naive"], strict=True))
        rows[name] = {"images_per_second": values, "ratio": ratio, **drifts.get(name, {})}
        told = "{relative:.1e} relative, cosine {cosine:.6f}".format(**drifts[name]) if name in drifts else ""
        print(f"{name:<34}{statistics.median(values):9.1f}{ratio:7.2f}  {told}")
    return rows


def shared_limit(rows: dict[str, Any], decoding: str, computing: str, passing: str) -> float:
    """The pass against what decode and forward allow where they share the cores: both have to be done by them, so the
    times of an image add up."""
    each = zip(*(rows[name]["images_per_second"] for name in (decoding, computing, passing)), strict=True)
    return statistics.median(p * (1 / d + 1 / f) for d, f, p in each)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        _, _, name, images, n, *rest = sys.argv
        print(json.dumps(MEASURES[name](Path(images), int(n), *rest)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = Path(os.environ.get("FEATCACHE_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "kermany224"
    parser.add_argument("--images", type=Path, default=real if real.exists() else None)
    parser.add_argument("--backbone", default="efficientnet_b1")
    parser.add_argument("--n", type=int, default=448)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="jpeg224,jpeg1m,png5m,several")
    parser.add_argument("--process", action="store_true")
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    wanted = set(options.only.split(","))
    result: dict[str, Any] = {
        "date": date.today().isoformat(), "machine": f"{platform.machine()}, {CORES} cores", "torch": torch.__version__
    }  # fmt: skip
    decoding, eager = {"decode alone": ("decode",)}, {"forward alone": ("forward",), "pass": ("pass",)}
    compiled = {
        "forward alone, compiled": ("forward", "on"),
        "pass, compiled": ("pass", "on"),
        "forward alone, compiled bfloat16": ("forward", "on", "bfloat16"),
        "pass, compiled bfloat16": ("pass", "on", "bfloat16"),
    }
    fast = {"decode alone, fast": ("decode", "fast"), "pass, fast decode": ("pass", "off", "float32", "fast")}
    with tempfile.TemporaryDirectory() as folder:
        if options.images is None:
            phantoms.write(Path(folder) / "phantoms")
            options.images, options.n = Path(folder) / "phantoms" / "train", min(options.n, 336)
        run = partial(compare, backbone=options.backbone, rounds=options.rounds)
        if "jpeg224" in wanted:
            peers = {"thingsvision": ("peer",)} if options.peer else {}
            rows = run("images of the folder", options.images, options.n, variants=decoding | eager | compiled | peers)
            for kind in ("", ", compiled", ", compiled bfloat16"):
                rows[f"limit{kind}"] = shared_limit(rows, "decode alone", f"forward alone{kind}", f"pass{kind}")
                print(f"pass{kind}: {rows[f'limit{kind}']:.2f} of what decode and forward allow on shared cores")
            result["jpeg224"] = rows
        if "jpeg1m" in wanted:
            jpegs = draw(Path(folder) / "jpeg", 160, (1300, 1000), ".jpg")
            result["jpeg1m"] = run("JPEGs of 1300 x 1000", jpegs, 160, variants=decoding | eager | fast)
        if wanted & {"png5m", "several"}:
            pngs = draw(Path(folder) / "png", 96, (2048, 2496), ".png")
        if "png5m" in wanted:
            result["png5m"] = run("PNGs of 2048 x 2496", pngs, 96, variants=decoding | eager | fast)
        if "several" in wanted:
            pairs = [
                [alone("several", pngs, 96, options.backbone, how)["seconds"] for how in ("together", "apart")]
                for _ in range(options.rounds)
            ]
            ratio = statistics.median(one / three for one, three in pairs)
            result["several"] = {"seconds": pairs, "ratio": ratio}
            print(f"\n{', '.join(THREE)} on the PNGs: one pass takes {ratio:.2f} of three passes")
        if options.process:
            n = len(Manifest.read(options.images).paths)
            found = {who: alone("process", options.images, n, options.backbone, who) for who in ("naive", "featcache")}
            less = alone("process", options.images, min(n, 1000), options.backbone, "featcache")
            result["process"] = {**found, "featcache of 1,000": less}
            ratio = found["naive"]["seconds"] / found["featcache"]["seconds"]
            print(
                f"\nwhole processes over {n:,} images: naive {found['naive']['seconds']:.0f} s, featcache "
                f"{found['featcache']['seconds']:.0f} s, ratio {ratio:.2f}; peak memory {less['peak_mb']:,.0f} MB of "
                f"1,000 images, {found['featcache']['peak_mb']:,.0f} MB of all"
            )
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
