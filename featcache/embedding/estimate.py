"""`featcache embed --dry-run`: what a pass would take, from a look at the files and the timing of a few of them.

Decoding and arithmetic are timed one after the other, each with the whole machine to itself. On a CPU both need the
same cores, so their times add up; beside a GPU the slower of the two is what the pass takes.
"""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from featcache.embedding.network import Array, Machine, Network, Note
from featcache.embedding.output import store_bytes
from featcache.embedding.plan import Plan
from featcache.embedding.precision import Canaries
from featcache.embedding.run import default_part_rows, networks_of, of_one_depth
from featcache.errors import FeatcacheError, ImageError
from featcache.identity import Json
from featcache.images.cache import FileCache
from featcache.images.workers import TIMEOUT_S, Decoders
from featcache.manifest import Manifest
from featcache.specs import AugmentedCopies, BackboneSpec, DecodeSpec
from featcache.store import Store, check_identity

N_TIMED = 64
_N_HEADERS = 1000
_PARTS = 4  # in memory: one fills, one is written, from a file's bytes; and what malloc keeps of freed ones
_LEAST_S = 1.0  # of forward passes, before their rate is believed
_KIB = 1024 if sys.platform != "darwin" else 1  # what `getrusage` counts in


@dataclass(frozen=True)
class Forecast:
    """What a pass would do and take.

    Attributes:
        n_images: in the manifest.
        n_known: number of images that are unchanged since they were embedded here.
        formats: what the headers say of a sample of the files: `PNG 2048 x 2496 L` -> how many.
        decode_rate, forward_rate: images/s, each alone on the machine; of all networks and views together.
        rate: images/s of both at once.
        disk_bytes: size of the stores; twice that is needed while they are packed.
        free_bytes: where they go.
        memory_bytes: memory of the pass and its decoders, at most, as measured while timing.
        limit: "decode" or "forward", whichever takes longer.
        advice: what would make it faster.
    """

    n_images: int
    n_known: int
    formats: Mapping[str, int]
    decode_rate: float
    forward_rate: float
    rate: float
    disk_bytes: int
    free_bytes: int
    memory_bytes: int
    limit: str
    advice: Sequence[str]

    @property
    def seconds(self) -> float:
        """Duration of the pass, without loading and compiling."""
        return (self.n_images - self.n_known) / self.rate

    def as_json(self) -> Json:
        """The answer of `featcache embed --dry-run --json`."""
        rates = {name: round(getattr(self, name), 2) for name in ("decode_rate", "forward_rate", "rate")}
        sizes = {name: getattr(self, name) for name in ("disk_bytes", "free_bytes", "memory_bytes")}
        answer = {"limit": self.limit, "advice": list(self.advice), "formats": dict(self.formats)}
        counts = {"images": self.n_images, "known": self.n_known, "seconds": round(self.seconds, 1)}
        return {**counts, **rates, **sizes, **answer}


def forecast(
    manifest: Manifest,
    specs: Mapping[Path, BackboneSpec],
    *,
    decode: DecodeSpec = DecodeSpec(),
    augmentations: AugmentedCopies | None = None,
    dtype: str = "float32",
    device: str = "auto",
    compile: str = "auto",  # noqa: A002
    n_workers: int | None = None,
    part_rows: int | None = None,
    timeout_s: float = TIMEOUT_S,
    on_note: Note = lambda text: None,
) -> Forecast:
    """Times a few images of a manifest, and writes nothing. The arguments are those of `embed_all`.

    Raises:
        FeatcacheError: none of the images that were tried can be decoded; and whatever `embed_all` raises before it
            computes.
    """
    n_decoders, n_views = n_workers or os.cpu_count() or 1, 1 + (augmentations.n if augmentations else 0)
    caches = {path: FileCache.read(path) for path in specs}
    decode, manifest, _ = of_one_depth(decode, manifest, caches, n_decoders, timeout_s, on_note)
    canaries = Canaries(manifest, decode, timeout_s)
    machine = Machine(device, compile, len(manifest.paths), canaries)
    # Nothing is recalled of the networks: they are loaded to be timed.
    networks = networks_of(
        specs, decode, augmentations, dtype, machine, canaries, {path: FileCache() for path in specs}, on_note
    )
    n_known = min(_n_known(path, Plan.of(manifest, caches[path]), networks[path]) for path in specs)

    decode_s, decoder_bytes, pixels = _decoding(canaries, list(networks.values()), augmentations, n_decoders)
    forward_s = sum(_computing(network, images) for network, images in zip(networks.values(), pixels, strict=True))
    forward_s *= n_views
    on_gpu = any(network.environment["device"] != "cpu" for network in networks.values())
    row_bytes = sum(network.row_bytes for network in networks.values())
    rows = part_rows or min(default_part_rows(network.row_bytes, n_views - 1) for network in networks.values())
    folder = next(iter(specs)).parent
    return Forecast(
        n_images=len(manifest.paths),
        n_known=n_known,
        formats=_formats(manifest, decode, n_decoders, timeout_s),
        decode_rate=1 / decode_s,
        forward_rate=1 / forward_s,
        rate=1 / (max(decode_s, forward_s) if on_gpu else decode_s + forward_s),
        disk_bytes=sum(store_bytes(network, len(manifest.paths)) for network in networks.values()),
        free_bytes=shutil.disk_usage(
            next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        ).free,
        memory_bytes=_peak() + decoder_bytes + _PARTS * rows * row_bytes,
        limit="decode" if decode_s > forward_s else "forward",
        advice=_advice(decode_s > forward_s, decode, list(networks.values()), n_decoders),
    )


def _n_known(path: Path, plan: Plan, network: Network) -> int:
    if not path.exists():
        return 0
    with Store.open(path) as store:
        check_identity(path, store.identity, network.answer.identity)
        there = set(store.content_sha256)
    return sum(content in there for content in plan.contents if content)


def _decoding(
    canaries: Canaries, networks: Sequence[Network], augmentations: AugmentedCopies | None, n_decoders: int
) -> tuple[float, int, list[list[Array]]]:
    """(seconds per image, bytes of the decoders, pixels for each network). The first images, during which decoders
    start, are not timed, unless there are no others."""
    transforms = list(dict.fromkeys(network.transform for network in networks))
    started = time.perf_counter()
    decoded, n_bytes = canaries.timed(transforms, augmentations, N_TIMED, n_decoders)
    if not decoded:
        raise FeatcacheError("none of the images that were tried can be decoded: embedding them says why.")
    moments = [started] * n_decoders + sorted(when for when, _ in decoded)
    n_timed = len(decoded) - n_decoders if len(decoded) > n_decoders else len(decoded)
    seconds = (moments[-1] - moments[-1 - n_timed]) / n_timed
    pixels = {transform: [pixels[i][0] for _, pixels in decoded] for i, transform in enumerate(transforms)}
    return seconds, n_bytes, [pixels[network.transform] for network in networks]


def _computing(network: Network, images: Sequence[Array]) -> float:
    """Seconds per image, in batches side by side."""
    from featcache.embedding.forward import Streams

    forward = network.forward
    batch = [images[i % len(images)] for i in range(forward.batch_size)]
    with Streams() as streams:

        def run(n_batches: int) -> float:
            started = time.perf_counter()
            for future in [streams.submit(forward, network.vectors, batch) for _ in range(n_batches)]:
                future.result()
            return time.perf_counter() - started

        run(2 * forward.n_streams)
        n_batches, seconds = forward.n_streams, 0.0
        while seconds < _LEAST_S:
            n_batches *= 2
            seconds = run(n_batches)
    return seconds / (n_batches * forward.batch_size)


def _formats(manifest: Manifest, decode: DecodeSpec, n_decoders: int, timeout_s: float) -> dict[str, int]:
    """Of a sample of the files, by their headers, the most frequent first."""
    step = max(1, len(manifest.paths) // _N_HEADERS)
    with Decoders([], decode, None, timeout_s) as decoders, ThreadPoolExecutor(n_decoders) as pool:

        def format_of(path: Path) -> str:
            try:
                return str(decoders.header(path))
            except ImageError as error:
                return "unreadable" if error.code in ("missing", "unreadable", "not-a-file") else "other"

        return dict(Counter(pool.map(format_of, manifest.paths[::step])).most_common())


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


def _advice(decoding: bool, decode: DecodeSpec, networks: Sequence[Network], n_decoders: int) -> list[str]:
    """What would shorten the longer of the two."""
    n_cores = os.cpu_count() or 1
    if decoding:
        more = [f"`workers`={n_cores}: there are as many cores"] if n_decoders < n_cores else []
        fast = [] if decode.fast else ["`decode`=fast: shortcuts that change pixels a little"]
        return [*more, *fast, "copies of the images that are nearer to the input size"]
    advice = []
    if any(network.environment["device"] == "cpu" for network in networks):
        advice.append("`device`=cuda, on a machine that has one")
        if any(network.answer.identity["precision"] == "float32" for network in networks):
            advice.append("`precision`=bfloat16: other vectors, its drift is measured")
    if not all(network.forward.is_compiled for network in networks):
        advice.append("`compile`=on: a tenth to a third less, after half a minute or more")
    return [*advice, "a smaller `input_size` or backbone: other vectors"]
