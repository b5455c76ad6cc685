"""One toy job on the CPU and, where there is one, on a CUDA device, as a ratio.

    .venv/bin/python benchmarks/cpu_vs_gpu.py [--repeats 50] [--rounds 3] [--json FILE]

32 filters of 3 x 3 x 3 over 120 images of 224 x 224 x 3, and the sum of what comes out, 50 times: the job by which one
of the source projects compared the two (14.5 s and 0.31 s, 46 times; pipelines/d_covid_backbones.py). Images
and filters are on the device before the clock starts, a pass has been made, and it stops when the device has finished.
Rounds alternate between the devices; a figure is the median of its rounds. On the CPU torch has all its threads.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional

N_IMAGES, SIDE, N_FILTERS = 120, 224, 32
PUBLISHED = {"cpu": 14.5, "cuda": 0.31}


@torch.inference_mode()
def seconds(device: str, repeats: int) -> float:
    """Of the job on a device."""
    generator = torch.Generator().manual_seed(0)
    images, filters = (
        torch.rand(shape, generator=generator).to(device) for shape in ((N_IMAGES, 3, SIDE, SIDE), (N_FILTERS, 3, 3, 3))
    )
    functional.conv2d(images, filters).sum().item()
    finish(device)
    started = time.perf_counter()
    for _ in range(repeats):
        functional.conv2d(images, filters).sum()
    finish(device)
    return time.perf_counter() - started


def finish(device: str) -> None:
    """Waits until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rounds = [{device: seconds(device, args.repeats) for device in devices} for _ in range(args.rounds)]
    figures = {device: statistics.median(each[device] for each in rounds) for device in devices}
    for device, value in figures.items():
        name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
        print(f"{device} ({name}): {value:.2f} s; published {PUBLISHED[device]} s")
    if "cuda" in figures:
        ratio = statistics.median(each["cpu"] / each["cuda"] for each in rounds)
        figures["ratio"] = ratio
        print(f"ratio: {ratio:.0f}; published {PUBLISHED['cpu'] / PUBLISHED['cuda']:.0f}")
    else:
        print("no CUDA device here: the figure is the CPU's alone, and there is no ratio.")
    if args.json:
        args.json.write_text(json.dumps({"repeats": args.repeats, "seconds": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
