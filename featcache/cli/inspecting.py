"""The commands that look and change nothing: `status`, `info` and `verify` of a store, `backbones`, and `doctor`.

None of them embeds or trains: what the library finds becomes lines and tables, or one JSON object.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from featcache.cli.options import Json, StoreFile
from featcache.cli.progress import interruptible
from featcache.cli.render import answer, console, escaped, plain_table, rows_of
from featcache.errors import UsageError


def status_command(store: StoreFile, as_json: Json = False) -> None:
    """How far the pass into a store is: running, stopped or published."""
    from featcache.store import status

    state = status(store)
    if as_json:
        answer({"store": str(store), **asdict(state)})
    writer = f" by {state.writer}" if state.writer else ""
    hint = "; run the same featcache embed command to continue" if state.state == "stopped" else ""
    console(as_json).print(
        f"[bold]{escaped(store)}[/]: {state.state}{escaped(writer)}; of {state.total:,} images {state.done:,} are "
        f"done, {state.pending:,} pending, {state.failed:,} failed{hint}",
        highlight=False,
    )


def info_command(store: StoreFile, as_json: Json = False) -> None:
    """What is inside a store, and the identity of its vectors."""
    from featcache.store import describe

    about = describe(store)
    if as_json:
        answer(about)
    people = console(as_json)
    rows = list(rows_of(about))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        people.print(f"[bold]{escaped(name):<{width}}[/] {escaped(value)}", highlight=False, soft_wrap=True)


def verify_command(
    store: StoreFile,
    full: Annotated[bool, typer.Option("--full/--quick", help="Check every array, or all but the vectors.")] = True,
    as_json: Json = False,
) -> None:
    """Compare a store with the checksums recorded when it was written."""
    from featcache.store import verify

    with interruptible("nothing was changed"):
        result = verify(store, full)
    if as_json:
        answer({"store": str(store), "full": full, **asdict(result)})
    read = "every array agrees" if full else "all but the vectors was read and agrees"
    console(as_json).print(
        f"[bold]{escaped(store)}[/] is whole: {result.n_rows:,} rows, {len(result.datasets)} arrays, "
        f"{result.n_bytes:,} bytes; {read} with its sha256",
        highlight=False,
    )


def backbones_command(
    pattern: Annotated[str | None, typer.Argument(help="Part of a model name, or a pattern such as 'resnet*'.")] = None,
    taps: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show what can be unfrozen in this backbone, and what it costs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List backbones with parameters, feature size, input size and licence; without PATTERN the suggested ones."""
    from featcache.backbones import listing

    if taps is not None:
        _backbone_choices(taps, pattern, as_json)
        return
    rows = list(listing(pattern))
    if not rows:
        raise UsageError(f"no backbone matches {pattern!r}. Try a shorter part of the name.")
    if as_json:
        answer({"backbones": rows})
        return
    table = plain_table("name", "default tag", "parameters", "features", "input", "licence", left=2)
    for row in rows:
        numbers = (f"{row['n_parameters']:,}", f"{row['n_features']:,}", str(row["input_size"]))
        table.add_row(row["name"], row["tag"], *numbers, row["licence"])
    people = console(as_json)
    people.print(table)
    people.print("Parameters and features are those without the classifier.", highlight=False)


def _backbone_choices(name: str, pattern: str | None, as_json: bool) -> None:
    from featcache.backbones import resolve_name
    from featcache.finetune.unfreeze import choices

    if pattern is not None:
        raise UsageError(f"--taps {name} is of one backbone: leave {pattern!r} away.")
    rows = choices(name)
    if as_json:
        answer({"backbone": resolve_name(name), "choices": [asdict(row) for row in rows]})
        return
    table = plain_table(
        "unfreeze", "blocks", "from", "boundary", "parameters", "with linear head", "with mlp head", left=4
    )
    for row in rows:
        numbers = (f"{n:,}" for n in (row.n_trainable, row.with_linear, row.with_mlp))
        shape = " × ".join(map(str, row.boundary))
        table.add_row(row.unfreeze, str(row.n_blocks or ""), escape(row.first), shape, *numbers)
    people = console(as_json)
    people.print(f"[bold]{escape(resolve_name(name))}[/]", highlight=False)
    people.print(table)
    people.print(
        "Parameters are those that learn, alone and with a head of two classes. What lies before them is computed "
        "without gradients; the boundary is what it hands over, per image.",
        highlight=False,
    )


def doctor_command(
    folder: Annotated[
        Path, typer.Argument(help="Folder in which stores will be written.", show_default="the current one")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Check this machine: libraries, devices, weights, extras, and whether a folder can hold stores."""
    from featcache.doctor import NOTE, PROBLEM, doctor

    findings = doctor(folder)
    n_problems = sum(finding.state == PROBLEM for finding in findings)
    if as_json:
        answer({"problems": n_problems, "findings": [finding.as_json() for finding in findings]})
    people = console(as_json)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        colour = {PROBLEM: "red", NOTE: "yellow"}.get(finding.state, "green")
        remedy = f" → {escaped(finding.remedy)}" if finding.remedy else ""
        mark, name = f"[{colour}]{finding.state:<7}[/]", f"[bold]{finding.name:<{width}}[/]"
        people.print(f"{mark} {name} {escaped(finding.text)}{remedy}", highlight=False, soft_wrap=True)
    if n_problems:
        raise typer.Exit(1)
