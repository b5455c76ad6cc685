"""Where a training on pixels runs, and how its caller follows it: nothing here changes more than last digits."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from featcache.bounds import MOST_SECONDS, check_number
from featcache.errors import InvalidParameter
from featcache.images.workers import TIMEOUT_S

_COMPILE = ("auto", "on", "off")


@dataclass(frozen=True)
class Machine:
    """Where it runs.

    Attributes:
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        compile: whether the frozen part is compiled: "on", "off", or "auto", which compiles where the number
            of images is worth it.
        timeout_s: what one image may take to be read and decoded.
    """

    device: str = "auto"
    compile: str = "auto"
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        if self.compile not in _COMPILE:
            raise InvalidParameter(f"`compile` must be one of {', '.join(_COMPILE)}, got {self.compile!r}.")
        check_number("timeout_s", self.timeout_s, 0, MOST_SECONDS, above=True)


@dataclass(frozen=True)
class Callbacks:
    """How a caller follows it.

    Attributes:
        on_reading: called with (images read, images in all) before it begins.
        on_epoch: called with (epochs done, epochs in all, the last point of the curves) when its checkpoint is safe.
        on_note: called with what a person should know while it happens.
    """

    on_reading: Callable[[int, int], None] = lambda done, total: None
    on_epoch: Callable[[int, int, Mapping[str, float]], None] = lambda done, total, point: None
    on_note: Callable[[str], None] = lambda text: None

    def tell(self, notes: Iterable[str]) -> None:
        """Each of some notes."""
        for note in notes:
            self.on_note(f"note: {note}")
