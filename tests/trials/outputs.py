"""One writer for each kind of output, all of them the real ones, on material that is made once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache import durable
from featcache.auditing.audit import audit
from featcache.embedding import embed
from featcache.errors import FeatcacheError
from featcache.fusion.writer import export_studies
from featcache.manifest import Manifest
from featcache.prediction import predict
from featcache.prediction.bundle import bundle
from featcache.prediction.predictor import load_run
from featcache.reporting.report import report
from featcache.runs import Run
from featcache.specs import BackboneSpec, FusionSpec, HeadSpec
from featcache.store import Store
from featcache.store.export import Where, export
from featcache.training.train_head import train_head
from tests.conftest import draw

SPEC = BackboneSpec("test_resnet", "random:0", input_size=32)
HEAD = HeadSpec(epochs=2)


@dataclass(frozen=True)
class Material:
    """What outputs are made of: a folder with `s.h5`, `images` and the Run `run`.

    Attributes:
        variant: 0 or 1, of two outputs of one kind with other bits.
    """

    folder: Path
    variant: int = 0

    @property
    def store(self) -> Store:
        return Store.open(self.folder / "s.h5")

    @property
    def run(self) -> Run:
        return Run.open(self.folder / ("run1" if self.variant else "run"))


Write = Callable[[Material, Path], object]


def make_material(folder: Path) -> Material:
    """Real vectors of 24 images of two classes, and two Runs on them; six other images."""
    lines = ["path,label,study,view"]
    for i in range(24):
        draw(folder / "seen" / f"{i:02d}.png", i)
        lines.append(f"{i:02d}.png,{('sick', 'normal')[i % 2]},study{i // 2},{('pa', 'ap')[i // 4 % 2]}")
    (folder / "seen" / "all.csv").write_text("\n".join(lines) + "\n")
    embed(Manifest.read(folder / "seen" / "all.csv"), folder / "s.h5", SPEC, n_workers=1)
    for i in range(6):
        draw(folder / "images" / f"{i}.png", 100 + i)
    with Store.open(folder / "s.h5") as store:
        train_head(store, HEAD, folder / "run")
    save_again(Run.open(folder / "run"), folder / "run1", 1)
    return Material(folder)


def _export(material: Material, path: Path) -> None:
    where = [Where("view", "pa")] if material.variant else []
    with material.store as store:
        export(store, path, where=where)


def _fusion(material: Material, path: Path) -> None:
    with material.store as store:
        export_studies(store, path, FusionSpec("study", pool="mean" if material.variant else "views"))


def _run(material: Material, path: Path) -> None:
    """Of one key: repeated, as it would be on another machine, with other bits."""
    run = Run.open(material.folder / "run")
    key = {name: run.record[name] for name in ("heads", "split_sha256", "labels_sha256")}
    with durable_place(path, key):
        save_again(run, path, material.variant)


def _trained(material: Material, path: Path) -> None:
    with material.store as store:
        train_head(store, HEAD, path)


def _report(material: Material, path: Path) -> None:
    report(material.run, path)


def _bundle(material: Material, path: Path) -> None:
    bundle(material.run, path, with_backbone=False)


def _audit(material: Material, path: Path) -> None:
    with material.store as store:
        audit(store, near=0.5 if material.variant else 0.95, ignore=["study"]).write(path)


def _manifest(material: Material, path: Path) -> None:
    manifest = Manifest.read(material.folder / "images")
    if material.variant:
        manifest = Manifest(manifest.image_ids[:3], manifest.paths[:3], {}, manifest.source)
    manifest.write(path)


def _predictions(material: Material, path: Path) -> None:
    with load_run(material.run.path) as predictor, material.store as store:
        predict(predictor, path, store=store)


def _store(material: Material, path: Path) -> None:
    manifest = Manifest.read(material.folder / "images")
    if material.variant:
        manifest = Manifest(manifest.image_ids[:3], manifest.paths[:3], {}, manifest.source)
    embed(manifest, path, SPEC, n_workers=1)


def durable_place(path: Path, key: Any) -> Any:
    from featcache import runs

    return runs.place(path, key)


def save_again(run: Run, path: Path, variant: int) -> None:
    """The same training with other last bits, as another processor would have them."""
    from featcache import runs

    tensors = {name: values * np.float32(1 + variant / 8) for name, values in run.weights().items()}
    tables = {name: table for name in ("history.csv", "predictions.csv") if (table := run.table(name)) is not None}
    names = ("split.json", "images.json", "curves.png")
    files = {name: (run.path / name).read_bytes() for name in names if (run.path / name).exists()}
    runs.save(path, {**run.record, "seconds": float(variant)}, tensors, tables, files)


WRITERS: dict[str, tuple[str, Write]] = {
    "npz": ("o.npz", _export),
    "parquet": ("o.parquet", _export),
    "safetensors": ("o.safetensors", _export),
    "h5": ("o.h5", _export),
    "fusion": ("o.h5", _fusion),
    "run": ("o", _run),
    "trained": ("o", _trained),
    "report": ("o.html", _report),
    "bundle": ("o.fcb.zip", _bundle),
    "audit": ("o", _audit),
    "manifest": ("o.csv", _manifest),
    "predictions": ("o.csv", _predictions),
    "store": ("o.h5", _store),
}
FOLDERS = ("run", "trained", "audit")


@contextmanager
def held_elsewhere(path: Path) -> Iterator[int]:
    """Another process holds an output, until the end of the block."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with durable.locked(path):
                os.write(write, b"!")
                time.sleep(60)
        finally:
            os._exit(0)
    try:
        assert os.read(read, 1) == b"!"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)


def in_a_process(work: Callable[[], object]) -> tuple[int, str]:
    """The exit code and the message of some work in a fork of its own; -9 if it was killed, 70 for a traceback."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        code, text = 70, ""
        try:
            import torch

            torch.set_num_threads(1)
            work()
            code = 0
        except FeatcacheError as error:
            code, text = error.exit_code, str(error)
        except BaseException as error:  # noqa: BLE001  # told to the parent
            text = repr(error)
        finally:
            os.write(write, text.encode("utf-8", "replace")[:60_000])
            os._exit(code)
    os.close(write)
    with open(read, "rb") as told:
        message = told.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), message


def tree(path: Path) -> dict[str, bytes]:
    """An output and what lies beside it: name -> bytes; folders end in a slash."""
    found = sorted(path.parent.rglob("*"))
    return {
        str(each.relative_to(path.parent)) + "/" * each.is_dir(): b"" if each.is_dir() else each.read_bytes()
        for each in found
    }
