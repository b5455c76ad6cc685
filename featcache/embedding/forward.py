"""The arithmetic of a pass: batches of decoded images through a frozen network, as fast as the machine does it.

On a CPU several batches run side by side, each on a core of its own: no thread waits for another within a layer, and a
decoder that takes a core away delays one batch and not all. On a GPU two run side by side, so that one is copied while
the other is computed. A batch always has the same shape, zeros where images are missing, so that a vector does not
depend on its neighbours. Compiled or not is the machine's affair: vectors agree to about 1e-6.
"""

import ctypes
import os
import platform
import shutil
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from featcache.backbones import Backbone
from featcache.errors import InputOutputError, UsageError
from featcache.specs import POOLED

Array = np.ndarray[Any, Any]
Note = Callable[[str], None]
T = TypeVar("T")
R = TypeVar("R")

_BATCH_ROWS = {"cpu": 8, "cuda": 128}  # on a CPU 8 are as fast as 16, in two thirds of the memory
_MAX_STREAMS = 8  # of a CPU: each holds the activations of a batch, 200 MB for EfficientNet-B1
_GPU_STREAMS = 2
# Compiling takes half a minute to a minute, and saves a tenth to a third of the time. It pays from so much work on:
_WORTH_COMPILING = {"cpu": 7e12, "cuda": 5e14}  # multiplications and additions per core, or per GPU
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


class Forward:
    """A backbone at work. Calls may come from several threads, each of which was made ready by `enter_thread`.

    Attributes:
        batch_size: images per batch.
        n_streams: batches to run side by side.
        is_compiled: whether inductor's code runs instead of torch's own kernels.
    """

    def __init__(self, backbone: Backbone, compile_: str, n_images: int, on_note: Note) -> None:
        """Args:
        backbone: the network.
        compile_: "on", "off", or "auto", which compiles where that is shorter than what it saves.
        n_images: images in the whole pass, finished ones included: a resumed pass must compute as the first did.
        on_note: told what was decided, and why.
        """
        self._backbone, self._on_note = backbone, on_note
        self._kind = backbone.device.type
        self.batch_size = _BATCH_ROWS.get(self._kind, _BATCH_ROWS["cuda"])
        self.n_streams, self._threads = _streams(self._kind)
        self._micro_batch = self.batch_size
        self._is_asked = compile_ == "on"
        self.is_compiled = _is_to_be_compiled(backbone, compile_, n_images, on_note)
        self._network: Callable[[Tensor], dict[str, Tensor]] = _compiled(backbone) if self.is_compiled else backbone
        self._is_warm = False
        self._warming = threading.Lock()
        keep_freed_memory()

    def enter_thread(self) -> None:
        """Makes a thread ready: so many cores are its own; on a GPU, a stream of its own."""
        torch.set_num_threads(self._threads)
        if self._kind == "cuda":
            torch.cuda.set_stream(torch.cuda.Stream(self._backbone.device))  # type: ignore[no-untyped-call]

    def vectors(self, images: Sequence[Array]) -> dict[str, Array]:
        """(m, …) float32 by tap of m decoded images, (h, w) or (h, w, 3) uint8, m at most `batch_size`.

        Where the device has no memory for a batch, it sees half of it at a time, and so on.

        Raises:
            InputOutputError: no memory even for one image.
            UsageError: it cannot be compiled here, and that was asked for.
        """
        batch = self._batch(images)
        while True:
            n = self._micro_batch
            try:
                pieces = [self._pass(piece) for piece in torch.split(batch, n)]
                return {tap: np.concatenate([p[tap] for p in pieces])[: len(images)] for tap in pieces[0]}
            except torch.OutOfMemoryError as error:
                self._halve(n, error)

    def alone(self, images: Sequence[Array]) -> Array:
        """(m, d) pooled vectors of a few images, with one thread: the same bits however many cores there are."""
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return Forward(self._backbone, "off", 0, self._on_note).vectors(images)[POOLED]
        finally:
            torch.set_num_threads(n_threads)

    def drift(self, images: Sequence[Array]) -> float | None:
        """The smallest cosine of the images' pooled vectors with those in float32; None without images."""
        if not images:
            return None
        exact, own = (
            Forward(replace(self._backbone, precision=precision), "off", 0, self._on_note)
            for precision in ("float32", self._backbone.precision)
        )
        n = self.batch_size
        batches = [images[i : i + n] for i in range(0, len(images), n)]
        vectors, reference = (
            np.concatenate([forward.vectors(batch)[POOLED] for batch in batches]).astype(np.float64)
            for forward in (own, exact)
        )
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
        cosines = (vectors * reference).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
        return float(np.nan_to_num(cosines, nan=-1.0).min())

    def _batch(self, images: Sequence[Array]) -> Tensor:
        height, width = self._backbone.transform.input_size
        empty = torch.zeros((self.batch_size, height, width, 3), dtype=torch.uint8, pin_memory=self._kind == "cuda")
        pixels = empty.numpy()
        for i, image in enumerate(images):
            pixels[i] = image[..., None] if image.ndim == 2 else image  # gray: the same value three times
        return empty.permute(0, 3, 1, 2)

    def _pass(self, batch: Tensor) -> dict[str, Array]:
        warming = nullcontext() if self._is_warm else self._warming  # what is compiled is compiled once
        launching = _launching if self._kind == "cuda" else nullcontext()
        with warming, launching:
            if self._kind == "cuda":
                _set_tf32(self._backbone.precision == "tf32")
            # Frozen constants cannot be made in inference mode.
            with torch.no_grad() if self.is_compiled else torch.inference_mode():
                tensors = self._first(batch) if not self._is_warm else self._network(batch)
            self._is_warm = True
        return {tap: values.cpu().numpy() for tap, values in tensors.items()}

    def _first(self, batch: Tensor) -> dict[str, Tensor]:
        """The first batch, with which a network is compiled; uncompiled where the machine cannot do it."""
        if not self.is_compiled:
            return self._network(batch)
        try:
            with _freezing() if self._kind == "cpu" else nullcontext():
                return self._network(batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # dynamo, inductor and a C++ compiler in all their words
            reason = " ".join(str(error).split())[:200]
            if self._is_asked:
                raise UsageError(f"`compile`=on: {self._backbone.name} cannot be compiled here: {reason}") from error
            self._on_note(f"going on without compiling, which failed: {reason}")
            self._network, self.is_compiled = self._backbone, False
            return self._network(batch)

    def _halve(self, n: int, error: Exception) -> None:
        height, width = self._backbone.transform.input_size
        device = self._backbone.device
        if n == 1:
            raise InputOutputError(
                f"{device} has not enough memory for one image of {height} x {width}: choose another `device`, or a "
                "smaller network."
            ) from error
        with self._warming:
            if self._micro_batch == n:  # another thread may have said it
                self._micro_batch = n // 2
                self._on_note(f"{device} has not enough memory for {n} images at a time: going on with {n // 2}.")


def _streams(kind: str) -> tuple[int, int]:
    """(batches side by side, threads of each)."""
    if kind != "cpu":
        return _GPU_STREAMS, 1
    n = min(cores := n_cores(), _MAX_STREAMS)
    return n, cores // n


def n_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- compiled or not --------------------------------------------------------------------------------------------------


def _is_to_be_compiled(backbone: Backbone, compile_: str, n_images: int, on_note: Note) -> bool:
    if compile_ == "off":
        return False
    kind = backbone.device.type
    has_compiler = _has_compiler(kind)
    if compile_ == "on":
        if not has_compiler:
            raise UsageError("`compile`=on needs a C++ compiler (Debian: apt install g++); none was found.")
        on_note("compiling the network, which takes half a minute or more (less where it was compiled before).")
        return True
    if not has_compiler or kind not in _WORTH_COMPILING:
        return False
    flops = _flops(backbone)
    if not _is_worth_it(kind, n_images * flops):
        return False
    on_note(
        f"compiling the network first: {n_images:,} images of {flops / 1e9:.1f} billion operations are worth the "
        "minute it takes (`compile`=off does without)."
    )
    return True


def cpp_compiler() -> str | None:
    """Where the compiler is that inductor needs for a CPU; None where there is none."""
    names = filter(None, (os.environ.get("CXX"), "g++", "clang++"))
    return next(filter(None, map(shutil.which, names)), None)


def _has_compiler(kind: str) -> bool:
    return kind != "cpu" or cpp_compiler() is not None


def _is_worth_it(kind: str, flops: float) -> bool:
    return flops / (n_cores() if kind == "cpu" else 1) >= _WORTH_COMPILING[kind]


def _flops(backbone: Backbone) -> int:
    """The floating-point operations for one image."""
    image = torch.zeros(1, 3, *backbone.transform.input_size, dtype=torch.uint8)
    return _operations(lambda: backbone(image))


def _operations(work: Callable[[], object]) -> int:
    """Multiplications and additions of some work, counted by torch while it is done."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        work()
    return int(counter.get_total_flops())


def for_learning(module: nn.Module, sample: Tensor, n_images: int, compile_: str, on_note: Note) -> nn.Module:
    """A module that will learn: as it is, or through inductor, by which forward and backward together take a half to a
    third of the time.

    Args:
        module: (b, …) to (b, d).
        sample: (1, …), on the module's device.
        n_images: that will go through it, in all epochs.
        compile_: "on", "off", or "auto", which compiles where that is shorter than what it saves.
        on_note: told what was decided.

    Raises:
        UsageError: "on" without a compiler.
    """
    kind = sample.device.type
    if compile_ == "off" or kind not in _WORTH_COMPILING or not _has_compiler(kind):
        if compile_ == "on":
            raise UsageError("`compile`=on needs a C++ compiler (Debian: apt install g++); none was found.")
        return module
    if compile_ == "auto" and not _is_worth_it(kind, 3.0 * n_images * _operations(lambda: _unmoved(module, sample))):
        return module
    on_note("compiling the part that learns, which takes about a minute (`compile`=off does without).")
    _keep_compiled_code()
    compiled: Any = torch.compile(module, dynamic=True)
    return _OrPlain(module, compiled, on_note)


def _unmoved(module: nn.Module, x: Tensor) -> Tensor:
    """A forward pass that leaves the statistics of lengths as they are; a single image would be no batch for them."""
    was = module.training
    try:
        output: Tensor = module.eval()(x)
    finally:
        module.train(was)
    return output


class _OrPlain(nn.Module):
    """Compiled, or as it was where the machine cannot compile it."""

    def __init__(self, module: nn.Module, compiled: Any, on_note: Note) -> None:
        super().__init__()
        self.module = module
        self._run: Any = [compiled]  # in a list: it is no part of this one's parameters
        self._on_note, self._has_run = on_note, False

    def forward(self, x: Tensor) -> Tensor:
        try:
            output: Tensor = self._run[0](x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # dynamo, inductor and a C++ compiler in all their words
            if self._has_run:
                raise
            self._on_note(f"going on without compiling, which failed: {' '.join(str(error).split())[:200]}")
            self._run = [self.module]
            output = self.module(x)
        self._has_run = True
        return output


def _compiled(backbone: Backbone) -> Callable[[Tensor], dict[str, Tensor]]:
    """The backbone through inductor, with its weights as constants."""
    _keep_compiled_code()
    compiled: Callable[[Tensor], dict[str, Tensor]] = torch.compile(backbone.__call__, dynamic=False)
    return compiled


def _keep_compiled_code() -> None:
    """What is compiled is kept for later runs, in the user's cache and not in a folder that others can write."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featcache" / "inductor"
    named = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    if named.name.startswith("torchinductor_") or not named.name:  # torch's own, in /tmp: set when timm is imported
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)


def _freezing() -> AbstractContextManager[Any]:
    """Weights become constants, folded and packed for the processor, in what is compiled in this thread.

    An option of `torch.compile` reaches inductor but not dynamo, which then hands the weights over as arguments:
    bfloat16 ran at half the speed so.
    """
    from torch._inductor import config

    patch: AbstractContextManager[Any] = config.patch(freezing=True)
    return patch


# --- the process ------------------------------------------------------------------------------------------------------


_launching = threading.Lock()  # of a GPU's kernels, which are many networks' and have one setting of TF32


def _set_tf32(allowed: bool) -> None:
    """Torch's own default lets CUDA's convolutions, and not its matrix products, round to TF32. Here both, or none."""
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def keep_freed_memory() -> None:
    """Tells glibc to keep what a forward pass frees, for the next one, instead of handing it back to the kernel.

    A network's activations are allocated and freed hundreds of times a second. Returned each time, their pages are
    zeroed again by the kernel: MobileNetV2 on two cores went from 51 to 308 images/s.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    glibc = ctypes.CDLL(None)
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 << 20)):
        glibc.mallopt(parameter, value)


class Streams:
    """Threads in which forward passes run side by side; those of several networks share them. A context manager.

    At most one batch more than there are threads is under way: whoever submits another waits.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._running: deque[Future[Any]] = deque()
        self._n_threads_before = torch.get_num_threads()

    def __enter__(self) -> "Streams":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(self._n_threads_before)  # partly a setting of the whole process

    def submit(self, forward: Forward, work: Callable[[T], R], images: T) -> "Future[R]":
        """`work(images)` in one of the threads that `forward` wants.

        Raises:
            What an earlier piece of work has raised.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(forward.n_streams, "forward", initializer=forward.enter_thread)
        while len(self._running) > forward.n_streams:
            self._running.popleft().result()
        future = self._pool.submit(work, images)
        self._running.append(future)
        return future
