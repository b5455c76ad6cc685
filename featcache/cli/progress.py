"""Long work at the terminal: how it is stopped, and how far it is.

Ctrl-C and SIGTERM are one line and exit code 130, never a traceback. A bar moves only where stderr is a terminal; notes
are written in any case.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from featcache.cli.options import with_options
from featcache.cli.render import escaped
from featcache.errors import Interrupted

_KEPT = "everything finished is kept. Run the same command to continue"
_NOTHING_YET = "nothing was finished yet, and nothing is kept. Run the same command to begin again"
_NO_EPOCH_YET = "no epoch was finished yet, but for those of an earlier call. Run the same command to continue"


@contextmanager
def interruptible(kept: Callable[[], str] | str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end with one line and exit code 130, which says what is `kept`; a second one ends at once."""

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped; {kept if isinstance(kept, str) else kept()}.") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def going_on(doing: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """`progress` of work that a stop does not undo: the same command goes on from what `(done, total)` has told."""
    finished = 0
    with interruptible(lambda: _KEPT if finished else _NOTHING_YET), progress(doing) as (move, note):

        def moved(done: int, total: int) -> None:
            nonlocal finished
            finished = done
            move(done, total)

        yield moved, note


class TrainingCallbacks(NamedTuple):
    """The callbacks of `fine_tune` and `train`."""

    on_progress: Callable[[int, int], None]
    on_epoch: Callable[[int, int, Any], None]
    on_note: Callable[[str], None]


_SILENT = TrainingCallbacks(lambda done, total: None, lambda done, total, metrics: None, lambda text: None)


@contextmanager
def training() -> Iterator[tuple[TrainingCallbacks, ExitStack]]:
    """Callbacks of a training on images: a bar while images are read, a line per epoch; and files to close with it.
    Of several processes that train together only the first one reports."""
    speaks, finished = not int(os.environ.get("RANK", "0")), False
    kept = interruptible(lambda: _KEPT if finished else _NO_EPOCH_YET)
    with kept, progress("reading") as (on_progress, on_note), ExitStack() as opened:

        def on_epoch(done: int, total: int, point: Any) -> None:
            nonlocal finished
            finished = True
            sides = ("train", "val") if "val_loss" in point else ("train",)
            losses = "; ".join(
                f"{s} loss {point[f'{s}_loss']:.3f}, accuracy {point[f'{s}_accuracy']:.3f}" for s in sides
            )
            on_note(f"epoch {done} of {total}: {losses}")

        yield TrainingCallbacks(on_progress, on_epoch, on_note) if speaks else _SILENT, opened


@contextmanager
def progress(doing: str, unit: str = "images/s") -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """Two callbacks: (done, total) moves a bar on stderr if that is a terminal, and does nothing if not; a text is
    written to stderr in any case."""
    console = Console(stderr=True, soft_wrap=True, emoji=False)

    def note(text: str) -> None:
        console.print(escaped(with_options(text)), highlight=False)

    if not console.is_terminal:
        yield lambda done, total: None, note
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, _Rate(unit), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None, at_start=0)

        def move(done: int, total: int) -> None:
            if bar.tasks[task].total is None:
                bar.reset(task, start=True, total=total, completed=done, description=doing, at_start=done)
            bar.update(task, completed=done, total=total)

        yield move, note


class _Rate(ProgressColumn):
    """Images (or other units) per second since the bar first moved; what an earlier pass had done does not count."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["at_start"]
        elapsed = task.elapsed or 0.0
        return Text(f"{done / elapsed:,.0f} {self._unit}" if done > 0 and elapsed > 0 else "")
