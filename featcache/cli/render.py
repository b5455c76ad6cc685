"""What a person sees of any command, and the one JSON object that a script gets: streams, names, tables, a pass.

Results go to stdout, everything else to stderr; with `--json` stdout is the object's. Names are somebody's text: every
one passes `escaped` before it meets a terminal, and `console` makes no picture of a word between colons.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from featcache.cli.options import with_options
from featcache.names import printable

UNGROUPED = "matches no group and is its own", "match no group and are their own"


def answer(value: Any) -> None:
    """The one JSON object of `--json`."""
    print(json.dumps(value, allow_nan=False))


def console(as_json: bool) -> Console:
    """Where text for people goes: stdout, or stderr where stdout is for the JSON."""
    terminal = Console(stderr=as_json, emoji=False)
    if terminal.is_terminal:
        return terminal
    return Console(stderr=as_json, emoji=False, width=shutil.get_terminal_size((120, 24)).columns)


def escaped(path: Path | str) -> str:
    """A name as `Console.print` and tables take it: printable, and without a meaning as markup."""
    # rich reads backslashes in another way before a tag than before another bracket, so what follows is always a tag.
    text = printable(str(path)).replace("[", "\\[[none][/none]")
    kept = text.rstrip("\\")
    at_end = "\\" * 2 * (len(text) - len(kept))
    return f"[none]{kept}{at_end}[/none]" if at_end else kept


def told_of(names: Sequence[str], one: str, several: str) -> str:
    """`a.png is alone`, or `3 images are alone`: a single one is named."""
    return f"{escaped(names[0])} {one}" if len(names) == 1 else f"{len(names):,} images {several}"


def plain_table(*headers: str, left: int = 1) -> Table:
    """A table without lines; numbers stand to the right, the first `left` columns and licences to the left."""
    table = Table(box=None, header_style="bold", pad_edge=False, caption_justify="left")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i < left or header == "licence" else "right")
    return table


def rows_of(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested answer as lines for people: `transform.interpolation`, `bicubic`."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from rows_of(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for i, inner in enumerate(value):
            yield from rows_of(inner, f"{prefix}.{i}")
    else:
        yield prefix, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_notes(people: Console, notes: Sequence[str]) -> None:
    for note in notes:
        people.print(f"[yellow]note: {escaped(with_options(note))}[/]", highlight=False, soft_wrap=True)


def tell_notes(manifest: Any, on_note: Callable[[str], None]) -> None:
    """The notes of a manifest, before anything is done with its images; none where there is no manifest."""
    for note in () if manifest is None else manifest.notes:
        on_note(f"note: {note}")


def print_embedded(people: Console, done: Any) -> None:
    from featcache.manifest.listing import in_words

    counts = done.counts
    people.print(
        f"{done.backbone} ({done.weights} weights {done.weights_sha256[:12]}): found {counts.found:,} = embedded "
        f"{counts.embedded:,} + reused {counts.reused:,} + failed {counts.failed:,}"
        + (f"; skipped {in_words(done.skipped)}" if done.skipped else "")
        + (f"; {told_of(done.ungrouped, *UNGROUPED)}" if done.ungrouped else ""),
        highlight=False,
    )
    for line in _embedded_lines(done):
        people.print(line, highlight=False)
    for image_id, (code, reason) in list(done.failures.items())[:5]:
        people.print(f"  [red]{escaped(code)}[/] {escaped(image_id)}: {escaped(reason)}", highlight=False)
    if len(done.failures) > 5:
        people.print(
            f"  … and {len(done.failures) - 5:,} more, all in {escaped(done.store)}.failures.csv", highlight=False
        )
    rate = f", {done.images_per_second:,.0f} images/s" if done.images_per_second else ""
    took = f"in {done.seconds:.1f} s{rate}" if done.seconds else "were up to date"
    people.print(
        f"[bold]{escaped(done.store)}[/]: {counts.found - counts.failed:,} rows of {_shapes(done)} {took}",
        highlight=False,
    )


def _embedded_lines(done: Any) -> Iterator[str]:
    """What is particular about the images, and what the store had before and has no more."""
    if done.duplicates:
        one, several = "it was computed once", "each was computed once"
        yield told_of(
            done.duplicates, f"has the same bytes as another; {one}", f"have the same bytes as another; {several}"
        )
    if done.n_dropped:
        one, several = "1 image that the store had is", f"{done.n_dropped:,} images that the store had are"
        phrase = (one, "its row is") if done.n_dropped == 1 else (several, "their rows are")
        yield f"[yellow]{phrase[0]} not among these; {phrase[1]} gone[/]"
    if names := done.dropped_columns:
        noun, are = ("column", "it is") if len(names) == 1 else ("columns", "they are")
        had = f"{escaped(done.store)} had the {noun} {', '.join(map(escaped, names))}"
        back = "; --group-pattern brings it back" if "group" in names else ""
        yield f"[yellow]note: {had}; this pass gives none, so {are} gone{back}[/]"


def print_forecast(people: Console, estimate: Any) -> None:
    sample = sum(estimate.formats.values())
    formats_text = ", ".join(f"{n / sample:.0%} {escaped(kind)}" for kind, n in list(estimate.formats.items())[:3])
    more = f" and {len(estimate.formats) - 3:,} other kinds" if len(estimate.formats) > 3 else ""
    known_text = f", of which {estimate.n_known:,} are in the store already" if estimate.n_known else ""
    lines = [f"{estimate.n_images:,} images{known_text}: {formats_text}{more}"]
    alone = f"decode alone {estimate.decode_rate:,.0f} images/s, forward alone {estimate.forward_rate:,.0f}"
    together = f"[bold]{estimate.rate:,.0f} images/s[/]: {_duration(estimate.seconds)}, beside loading"
    lines += [f"{alone}, both together {together}"]
    lines += [
        f"{_size(estimate.disk_bytes)} on disk, twice that while it is packed; {_size(estimate.free_bytes)} are free"
    ]
    lines += [f"{_size(estimate.memory_bytes)} of memory, all decoders together"]
    lines += [f"{estimate.limit} takes longer; it would be faster with"]
    for line in [*lines, *(f"  {escaped(with_options(advice))}" for advice in estimate.advice)]:
        people.print(line, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} minutes"
        if seconds < 7200
        else f"{seconds / 3600:.1f} hours"
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.1f} GB"


def _shapes(done: Any) -> str:
    """`1,280 features`, and what else is kept of each image."""
    shapes = {tap: done.shapes[tap] for tap in ("grid", "boundary", "views") if tap in done.shapes}
    shapes_text = [f"{' × '.join(map(str, shape))} {tap}" for tap, shape in shapes.items()]
    return ", ".join([f"{done.dim:,} features", *shapes_text])
