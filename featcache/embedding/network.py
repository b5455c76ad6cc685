"""A request's answer: what the network of a pass is, recalled from the last pass or learnt by loading it.

Knowing an identity takes 5 to 7 s when torch has to be imported for it (two cores) and a millisecond when `cache`
remembers it. A pass that finds every vector there never loads the network; one that needs it loads it then, and checks
that it is the one that was remembered.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.embedding import kernels
from featcache.errors import FeatcacheError
from featcache.identity import Json, digest_json, environment, from_json
from featcache.images.cache import Answer, FileCache
from featcache.images.probe import pixels_sha256
from featcache.specs import BOUNDARY, PARAMETERS, Request, TransformSpec
from featcache.store import (
    BOUNDARY_VIEWS,
    CANARY,
    DEPTH,
    KERNELS,
    VIEW_PARAMETERS,
    VIEWS,
    WEIGHTS_FILE,
    WEIGHTS_READ,
    Variety,
)

if TYPE_CHECKING:
    from featcache.backbones import Backbone
    from featcache.embedding.forward import Forward

Array = np.ndarray[Any, Any]
Note = Callable[[str], None]  # a sentence for people, while it happens
BOUND = 0.9999  # cosine of the worst of some images with float32, from which a precision is as good
COMPILE = ("auto", "on", "off")


class Outdated(Exception):
    """The network that was loaded is not the one that was remembered. Never leaves `embed`."""


@dataclass(frozen=True)
class Machine:
    """How the arithmetic is done: nothing here changes a vector beyond its last digits.

    Attributes:
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        compile: "on", "off", or "auto", which compiles where so many images are worth it.
        n_images: images in the pass.
        canaries: gives some of its images, to measure what a lower precision costs.
        depth: what was said of the depth of its images, which is recorded with the environment.
    """

    device: str = "auto"
    compile: str = "auto"
    n_images: int = 0
    canaries: Callable[[TransformSpec], Sequence[Array]] = lambda transform: ()
    depth: str = ""


class Network:
    """The frozen network of a pass. It is loaded when an image needs it, or when nothing is remembered of it.

    Attributes:
        answer: identity, resolved name, and the shapes of what it gives.
        on_low_precision: called when a network of a low precision is about to compute; what it raises ends the pass.
    """

    def __init__(self, request: Request, machine: Machine, cache: FileCache, on_note: Callable[[str], None]) -> None:
        self._request, self._machine, self._on_note = request, machine, on_note
        self._key = request.digest(environment())
        self._backbone: Backbone | None = None
        self._forward: Forward | None = None
        self._drift: float | None = None
        self._canary: str | None = None
        self.on_low_precision: Callable[[], None] = lambda: None
        recalled = self._recalled(cache)
        self._is_checked = recalled is None
        self.answer = recalled or self._answer(self._load())

    def _recalled(self, cache: FileCache) -> Answer | None:
        """What the last pass remembered of this request, if it can be an answer to it."""
        answer, request = cache.answer(self._key), self._request
        if answer is None or set(answer.shapes) != set(request.backbone.taps):
            return None
        fields = {
            "precision": request.backbone.precision,
            "stored_dtype": request.dtype,
            "decode": request.decode.identity(),
            **({"views": request.augmentations.identity()} if request.augmentations else {}),
        }
        with suppress(FeatcacheError, ValueError, TypeError, LookupError, AttributeError):  # not of our making
            if digest_json({name: answer.identity[name] for name in fields}) == digest_json(fields):
                return answer if answer.identity["probe"] == self._probe(answer.identity) else None
        return None

    @cached_property
    def transform(self) -> TransformSpec:
        return from_json(TransformSpec, self.answer.identity["transform"])

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Array of the store -> shape of its rows; views and their parameters are among them."""
        shapes = {tap: tuple(shape) for tap, shape in self.answer.shapes.items()}
        if augmentations := self._request.augmentations:
            shapes |= {
                VIEWS: (augmentations.n, self.answer.dim),
                VIEW_PARAMETERS: (augmentations.n, len(PARAMETERS)),
            }
            shapes |= {BOUNDARY_VIEWS: (augmentations.n, *shapes[BOUNDARY])} if BOUNDARY in shapes else {}
        return shapes

    @property
    def row_bytes(self) -> int:
        """What a row takes in memory, in all its arrays."""
        return sum(4 * math.prod(shape) for shape in self.shapes.values())

    @property
    def environment(self) -> Json:
        """The environment of this process, without the device as long as none was needed."""
        if self._backbone is None:
            return {name: value for name, value in environment().items() if name != "device"}
        from featcache.devices import describe

        here = environment(describe(self._backbone.device))
        if self._forward is not None and self._forward.is_compiled:
            here["compiled"] = "inductor"
        if paths := self._backbone.weights_file:
            here[WEIGHTS_FILE] = str(paths)
        if self._backbone.notes:
            here[WEIGHTS_READ] = " ".join(self._backbone.notes)
        if self._machine.depth:
            here[DEPTH] = self._machine.depth
        if self._canary is not None:
            here |= {KERNELS: kernels.name(), CANARY: self._canary}
        if self._drift is not None:
            here["drift"] = f"cosine of {self._drift:.6f} with float32, at least, on some of the images"
        return here

    @property
    def forward(self) -> "Forward":
        """The network at work, loaded if it is not.

        Raises:
            Outdated: it is not what the answer says.
        """
        if self._forward is None:
            backbone = self._load()
            if not self._is_checked and self._answer(backbone) != self.answer:
                raise Outdated
            self._is_checked = True
            from featcache.embedding.forward import Forward

            self._forward = Forward(backbone, self._machine.compile, self._machine.n_images, self._on_note)
            if backbone.precision != "float32":
                self._measure_drift(self._forward)
                self._canary = kernels.packed(self._forward.alone(kernels.images(*self.transform.input_size)))
                self.on_low_precision()
        return self._forward

    def vectors(self, images: Sequence[Array]) -> Mapping[str, Array]:
        """(m, …) float32 by tap of up to `forward.batch_size` decoded images.

        Raises:
            InputOutputError: the device has no memory for one image.
        """
        return self.forward.vectors(images)

    def remember(self, cache: FileCache) -> None:
        """Keeps the answer for the next pass, if it was learnt in this one."""
        if self._backbone is not None:
            cache.keep_answer(self._key, self.answer, self._backbone.weights_paths)

    def why_alike(self) -> str:
        """The cause of equal vectors: some images of the pass, or else the network."""
        images = self._machine.canaries(self.transform)
        grays = [image.mean(axis=2) if image.ndim == 3 else image for image in images]
        flat = [np.stack(grays).reshape(len(grays), -1).astype(np.float32)] if grays else []
        variety = Variety.of_blocks(flat, [str(i) for i in range(len(grays))])
        if variety.is_worth_a_look:
            return (
                f"so are the pixels of the {len(grays)} images that were looked at; it is the images, not the encoder"
            )
        return "the images differ, so the encoder is dead or constant: its weights are wrong, or random"

    def _measure_drift(self, forward: "Forward") -> None:
        """What the precision costs, on some of the images: told, and recorded with the environment."""
        self._drift = forward.drift(self._machine.canaries(self.transform))
        if self._drift is not None:
            differences = (
                "" if self._drift >= BOUND else f", below {BOUND}: the vectors are others, `precision`=float32 is exact"
            )
            precision = self.answer.identity["precision"]
            self._on_note(
                f"{precision}: cosine with float32 at least {self._drift:.6f} on some of the images{differences}."
            )

    def _probe(self, identity: Json) -> str:
        return pixels_sha256(
            from_json(TransformSpec, identity["transform"]), self._request.decode, self._request.augmentations
        )

    def _answer(self, backbone: "Backbone") -> Answer:
        identity = backbone.identity(self._request.decode, self._request.dtype, self._request.augmentations)
        return Answer(identity, backbone.name, backbone.weights_source, dict(backbone.shapes))

    def _load(self) -> "Backbone":
        if self._backbone is None:
            from featcache import backbones, devices

            self._backbone = backbones.load(self._request.backbone, devices.choose(self._machine.device))
            for note in self._backbone.notes:
                self._on_note(f"note: {note}")
        return self._backbone
