"""How fast heads train together, against the loops most people write, in one run on one machine, as ratios.

    .venv/bin/python benchmarks/heads.py [STORE.h5] [--head linear|mlp] [--epochs 40] [--one-by-one 15]
    .venv/bin/python benchmarks/heads.py [STORE.h5] --head flatten-mlp --one-by-one 27

The sweep is 5 learning rates × 3 weight decays × 6 seeds × 3 folds: 270 fits on 5,976 × 1,280 generated features (or
the rows of a store). For flatten-mlp it is a published one, of 5 learning rates × 3 numbers of epochs × 2 activations ×
3 dropouts × 3 folds, on 130 flattened maps of 25,088 (or those of a store; pipelines/d_covid_backbones.py). Peers make
the same fits one after another: a sample of them, spread over the sweep, is timed and multiplied up. Everybody starts
from features in memory and ends with the logits of the held rows; nobody evaluates in between. The plain loop is
torch.nn, torch.optim and slices of a tensor, with as many threads as it is fastest with; the DataLoader loop is that
with TensorDataset and DataLoader, as tutorials have it. For flatten-mlp, where a step takes much longer than a batch
takes to be made, it is left out, and so is logistic regression.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from torch.utils.data import DataLoader, TensorDataset

from featcache.heads.jobs import Fit, Pool
from featcache.heads.optim import Targets
from featcache.heads.solvers import solve_all
from featcache.heads.training import fit_all
from featcache.specs import HeadSpec, grid
from featcache.splits.task import Task
from featcache.store import Store

LR, DECAY, SEEDS, FOLDS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (0.0, 1e-4, 1e-2), range(6), 3
MAPS = {
    "lr": (0.001, 0.005, 0.01, 0.05, 0.1), "epochs": (40, 80, 120), "activation": ("sigmoid", "relu"),
    "dropout": (0.15, 0.20, 0.25),
}  # fmt: skip
C_PATH = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def material(store: Path | None, tap: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) features and (n,) class numbers."""
    if store is not None:
        with Store.open(store) as opened:
            task = Task.of(opened)
            return opened.features(tap)[task.labelled].reshape(len(task.labelled), -1), task.labels[task.labelled]
    rng = np.random.default_rng(0)
    if tap == "grid":
        y = rng.integers(0, 2, 130)
        return np.maximum(rng.standard_normal((130, 25_088)) + 0.02 * y[:, None], 0).astype(np.float32), y
    y = rng.integers(0, 2, 5976)
    centre = rng.standard_normal(1280) * 0.03
    return (rng.standard_normal((5976, 1280)) + np.outer(y, centre)).astype(np.float32), y


def plain(fit: Fit, x: torch.Tensor, y: torch.Tensor, loader: bool) -> torch.Tensor:
    """One head by torch.nn and torch.optim, and its logits of the held rows."""
    spec = fit.spec
    torch.manual_seed(spec.seed)
    head = {"linear": lambda _, d: torch.nn.Linear(d, 2), "mlp": mlp, "flatten-mlp": dense}[spec.kind](spec, x.shape[1])
    optimizer = torch.optim.Adam(head.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
    loss_of = torch.nn.CrossEntropyLoss() if spec.kind != "flatten-mlp" else torch.nn.BCEWithLogitsLoss()
    x_train, y_train = x[fit.train], y[fit.train] if spec.kind != "flatten-mlp" else y[fit.train, None].float()
    data = DataLoader(TensorDataset(x_train, y_train), spec.batch_size, shuffle=True) if loader else None
    head.train()
    for _ in range(spec.epochs):
        slices = ((x_train[rows], y_train[rows]) for rows in torch.randperm(len(x_train)).split(spec.batch_size))
        for batch_x, batch_y in data or slices:
            optimizer.zero_grad()
            loss_of(head(batch_x), batch_y).backward()
            optimizer.step()
    with torch.no_grad():
        return head.eval()(x[fit.val])


def mlp(spec: HeadSpec, d: int) -> torch.nn.Sequential:
    (width,) = spec.hidden_sizes
    inner = (torch.nn.BatchNorm1d(width), torch.nn.ReLU(), torch.nn.Dropout(spec.dropout))
    return torch.nn.Sequential(torch.nn.Linear(d, width), *inner, torch.nn.Linear(width, 2))


def dense(spec: HeadSpec, d: int) -> torch.nn.Sequential:
    """One output for two classes."""
    (width,), activation = spec.hidden_sizes, {"relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid}[spec.activation]
    layers = (torch.nn.Linear(d, width), activation(), torch.nn.Dropout(spec.dropout), torch.nn.Linear(width, 1))
    return torch.nn.Sequential(*layers)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def one_by_one(fits: Sequence[Fit], n: int, make: Callable[[Fit], object]) -> float:
    """Seconds of all fits one after another, from n of them spread evenly, by their epochs; one epoch to warm up."""
    chosen = [fits[i] for i in np.linspace(0, len(fits) - 1, n).astype(int)]
    make(replace(chosen[0], spec=replace(chosen[0].spec, epochs=1)))
    share = sum(fit.spec.epochs for fit in chosen) / sum(fit.spec.epochs for fit in fits)
    return seconds(lambda: [make(fit) for fit in chosen]) / share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--head", choices=("linear", "mlp", "flatten-mlp"), default="linear")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--one-by-one", type=int, default=15, help="fits of the sample")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    on_maps = args.head == "flatten-mlp"
    features, labels = material(args.store, "grid" if on_maps else "pooled")
    x, y, n = torch.from_numpy(features), torch.from_numpy(labels), len(labels)
    options = {"lr": LR, "weight_decay": DECAY, "seed": SEEDS, "epochs": [args.epochs], "schedule": ["constant"]}
    options = MAPS if on_maps else options
    specs, targets = grid([args.head], options), Targets(labels[None], 2, 1)
    pool, held = Pool(np.arange(n), 1 - 1 / FOLDS), [np.flatnonzero(np.arange(n) % FOLDS == i) for i in range(FOLDS)]
    fits = [Fit(spec, pool, np.setdiff1d(pool.rows, rows), rows) for spec in specs for rows in held]
    alone = [Fit(f.spec, Pool(f.train), f.train, f.val) for f in fits]  # without the rows of the other folds

    by_ours = partial(fit_all, x=x, targets=targets, weights=False)
    figures = {"featcache, all together": seconds(lambda: by_ours(fits))}
    figures["featcache, one after another"] = one_by_one(alone, args.one_by_one, lambda f: by_ours([f]))
    threads = torch.get_num_threads()
    plain_s = {}
    few = max(2, args.one_by_one // 5)
    for k in {1, threads}:
        torch.set_num_threads(k)
        plain_s[k] = one_by_one(alone, few, lambda f: plain(f, x, y, False))
    best = min(plain_s, key=lambda k: plain_s[k])
    torch.set_num_threads(best)
    name = f"plain PyTorch loop in memory ({best} thread{'s' if best > 1 else ''})"
    figures[name] = one_by_one(alone, args.one_by_one, lambda f: plain(f, x, y, False))
    if not on_maps:
        figures["PyTorch loop with DataLoader"] = one_by_one(alone, few, lambda f: plain(f, x, y, True))
    torch.set_num_threads(threads)

    first = figures["featcache, all together"]
    epochs = sorted({spec.epochs for spec in specs})
    print(f"{len(fits)} fits of {args.head} heads, {epochs} epochs, {n:,} x {x.shape[1]:,}, {threads} threads")
    for name, value in figures.items():
        print(f"{name:<50} {value:9.1f} s   {value / first:6.1f}")
    if not on_maps:
        figures |= solved_heads(fits, pool, features, labels, targets)
    if args.json:
        args.json.write_text(json.dumps({"fits": len(fits), "epochs": epochs, "seconds": figures}, indent=1) + "\n")


def solved_heads(
    fits: Sequence[Fit], pool: Pool, features: np.ndarray, labels: np.ndarray, targets: Targets
) -> dict[str, float]:
    """Seconds of logistic regression over a path of penalties, ours and scikit-learn's."""
    x, n, threads = torch.from_numpy(features), len(labels), torch.get_num_threads()
    path = [Fit(HeadSpec.of("logreg", C=C), pool, f.train, f.val) for C in C_PATH for f in fits[:FOLDS]]
    solved = seconds(lambda: solve_all(path, x, targets))
    folds = PredefinedSplit(np.arange(n) % FOLDS)
    search = GridSearchCV(LogisticRegression(max_iter=300), {"C": C_PATH}, cv=folds, n_jobs=threads, refit=False)
    searched = seconds(lambda: search.fit(features / np.sqrt(np.mean(features**2)), labels))
    print(f"{len(path)} fits of logreg: a path of {len(C_PATH)} C in {FOLDS} folds")
    print(f"{'featcache, warm starts':<50} {solved:9.1f} s   {1:6.1f}")
    print(f"{'scikit-learn GridSearchCV':<50} {searched:9.1f} s   {searched / solved:6.1f}")
    return {"logreg path": solved, "GridSearchCV": searched}


if __name__ == "__main__":
    main()
