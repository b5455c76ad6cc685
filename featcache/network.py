"""A request's answer: what the network of a pass is, recalled from the last pass or learnt by loading it.

Knowing an identity takes 5 to 7 s when torch has to be imported for it (two cores) and a millisecond when `seen`
remembers it. A pass that finds every vector there never loads the network; one that needs it loads it then, and checks
that it is the one that was remembered.
"""

import ctypes
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.images import TransformSpec
from featcache.probe import pixels_sha256
from featcache.provenance import Json, environment, from_json
from featcache.request import Request
from featcache.seen import Answer, Seen

if TYPE_CHECKING:
    from featcache.backbones import Backbone

Array = np.ndarray[Any, Any]
BATCH_ROWS = 16  # as fast as 32 on two cores (163 and 156 images/s, MobileNetV2), with 100 MB less
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


class Outdated(Exception):
    """The network that was loaded is not the one that was remembered. Never leaves `embed`."""


class Network:
    """The frozen network of a pass. It is loaded when an image needs it, or when nothing is remembered of it.

    Attributes:
        answer: identity, resolved name and width.
    """

    def __init__(self, request: Request, device: str, seen: Seen, on_note: Callable[[str], None]) -> None:
        self._request, self._device, self._on_note = request, device, on_note
        self._key = request.digest(environment())
        self._backbone: Backbone | None = None
        recalled = seen.answer(self._key)
        if recalled is not None and recalled.identity["probe"] != self._probe(recalled.identity):
            recalled = None
        self._is_checked = recalled is None
        self.answer = recalled or self._answer(self._load())

    @property
    def transform(self) -> TransformSpec:
        return from_json(TransformSpec, self.answer.identity["transform"])

    @property
    def environment(self) -> Json:
        """Of this process; without the device as long as none was needed."""
        if self._backbone is None:
            return {name: value for name, value in environment().items() if name != "device"}
        from featcache.devices import describe

        return environment(describe(self._backbone.device))

    def vectors(self, images: Sequence[Array]) -> Array:
        """(m, d) float32 of up to `BATCH_ROWS` decoded images.

        Raises:
            Outdated: the network is not what the answer says.
            InputOutputError: the device has no memory for one image.
        """
        backbone = self._load()
        if not self._is_checked and self._answer(backbone) != self.answer:
            raise Outdated
        self._is_checked = True
        return backbone.vectors(images, BATCH_ROWS, self._on_note)

    def remember(self, seen: Seen) -> None:
        """Keeps the answer for the next pass, if it was learnt in this one."""
        if self._backbone is not None:
            seen.keep_answer(self._key, self.answer, self._backbone.weights_paths)

    def _probe(self, identity: Json) -> str:
        return pixels_sha256(from_json(TransformSpec, identity["transform"]), self._request.decode)

    def _answer(self, backbone: "Backbone") -> Answer:
        identity = backbone.identity(self._request.decode, self._request.dtype)
        return Answer(identity, backbone.name, backbone.weights_source, backbone.n_features)

    def _load(self) -> "Backbone":
        if self._backbone is None:
            from featcache import backbones, devices

            _keep_freed_memory()
            self._backbone = backbones.load(self._request.backbone, devices.choose(self._device))
        return self._backbone


def _keep_freed_memory() -> None:
    """Tells glibc to keep what a forward pass frees, for the next one, instead of handing it back to the kernel.

    A network's activations are allocated and freed hundreds of times a second. Returned each time, their pages are
    zeroed again by the kernel: of 51 images/s (MobileNetV2, two cores) this makes 308.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    glibc = ctypes.CDLL(None)
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 256 << 20)):
        glibc.mallopt(parameter, value)
