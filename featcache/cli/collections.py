"""The commands before a pass: `manifest`, which makes a CSV of a known collection, and `check`, which looks at images.

Neither decodes nor computes anything: lists, names and headers become counts, and what would make a score too good is
said while it costs nothing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from featcache.cli.groups import IMAGES, READABLE
from featcache.cli.options import Json, OptionCommand, takes
from featcache.cli.progress import interruptible, progress
from featcache.cli.render import UNGROUPED, answer, console, escaped, plain_table, print_notes, told_of
from featcache.errors import EXIT_SOME_FAILED

_SHOWN = 5
_MOST = 40  # lines of a table, and values of a column

manifest_app = typer.Typer(
    help="Write the manifest of a known collection: a CSV for check and embed.",
    no_args_is_help=True,
    add_completion=False,
)

_Output = Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")]
_Images = Annotated[Path | None, typer.Option(help="Folder that holds the images, at any depth.")]


@manifest_app.command("iu-xray", cls=OptionCommand)
def iu_xray_command(
    reports: Annotated[Path, typer.Argument(help="Path of indiana_reports.csv.")],
    projections: Annotated[Path, typer.Argument(help="Path of indiana_projections.csv.")],
    output: _Output,
    images: _Images = None,
    label: Annotated[
        str,
        typer.Option(help="'problems' labels studies normal or abnormal; the name of a finding labels them yes or no."),
    ] = "problems",
    as_json: Json = False,
) -> None:
    """Indiana University chest X-rays: one row per image, with the texts of its report; groups are studies."""
    from featcache.manifest.datasets import iu_xray

    collection = iu_xray(reports, projections, images, label=label)
    _write(collection, output, as_json, reports, projections)
    if images is None:
        console(True).print(
            "No image was looked for: give --images to leave out what is not there.", highlight=False, soft_wrap=True
        )


@manifest_app.command("kermany", cls=OptionCommand)
def kermany_command(
    folder: Annotated[Path, typer.Argument(help="Folder that holds train and test.")],
    output: _Output,
    as_json: Json = False,
) -> None:
    """Kermany et al. 2018, pediatric pneumonia: groups are patients, kind is bacteria, virus or normal."""
    from featcache.manifest.datasets import kermany

    collection = kermany(folder)
    _write(collection, output, as_json)


@manifest_app.command("covid", cls=OptionCommand)
def covid_command(
    source: Annotated[Path, typer.Argument(help="Folder with one folder per class, or the collection's metadata.csv.")],
    output: _Output,
    images: Annotated[
        Path | None, typer.Option(help="Folder to which the paths in the CSV are relative.", show_default="its own")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="Text that is searched for in the findings and becomes a class. Repeatable, most specific first.",
        ),
    ] = None,
    other: Annotated[str, typer.Option(help="Label of images that match no --class.")] = "",
    modality: Annotated[str, typer.Option(help="Keep only this modality; '' keeps all.")] = "X-ray",
    group_pattern: Annotated[
        str | None, typer.Option(help="Regular expression whose captured part of the path names the patient.")
    ] = None,
    as_json: Json = False,
) -> None:
    """COVID-19 collections: one folder per class, or the metadata.csv of ieee8023/covid-chestxray-dataset."""
    from featcache.manifest.covid import covid

    arguments: dict[str, Any] = {"classes": classes or (), "other": other, "modality": modality}
    collection = covid(source, images, group_pattern=group_pattern, **arguments)
    _write(collection, output, as_json, source)


@takes(table=IMAGES, decode=READABLE)
def check_command(
    images: Annotated[Path, typer.Argument(help="Folder of images, CSV with a column of paths, or a single image.")],
    full: Annotated[bool, typer.Option("--full", help="Decode every image, as embed does.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 1 if a patient or an identical image is in two subsets.")
    ] = False,
    *,
    table: Any,
    decode: Any,
    as_json: Json = False,
) -> None:
    """Check images before embedding: counts, formats, sizes, unreadable files, leakage between subsets."""
    from featcache.manifest import Manifest
    from featcache.manifest.check import check

    with interruptible("nothing was changed"), progress("checking") as (on_progress, _):
        result = check(Manifest.read(images, **table), full=full, decode=decode, on_progress=on_progress)
    if as_json:
        answer(result.as_json())
    print_checked(console(as_json), result)
    if strict and result.leaks:
        raise typer.Exit(1)
    if result.failures:
        raise typer.Exit(EXIT_SOME_FAILED)


def print_checked(people: Console, result: Any) -> None:
    """The notes, a line per class and side, then what is wrong."""
    print_notes(people, result.notes)
    people.print(_class_table(result))
    sizes = list(result.sizes.items())
    more = f", and {len(sizes) - _SHOWN:,} other sizes" if len(sizes) > _SHOWN else ""
    sizes_text = ", ".join(f"{n:,} of {size}" for size, n in sizes[:_SHOWN])
    people.print(
        f"{sizes_text or 'no readable image'}{more}; {result.n_bytes / 1e6:,.1f} MB", highlight=False, soft_wrap=True
    )
    for line in _lines(result):
        people.print(line, highlight=False, soft_wrap=True)


def _class_table(result: Any) -> Any:
    """Of the largest classes; a table of thousands of lines takes minutes to draw, and nobody reads it."""
    table = plain_table("split", "label", "images", "groups", "formats", "bits", "width", "height", left=2)
    by_size = sorted(range(len(result.strata)), key=lambda i: -result.strata[i].n_images)
    strata = [result.strata[i] for i in sorted(by_size[:_MOST])]
    for stratum in strata:
        kinds, bits = (
            ", ".join(f"{name} {n:,}" for name, n in counts.items()) for counts in (stratum.formats, stratum.bits)
        )
        sides = (" – ".join(map(str, dict.fromkeys(values))) for values in (stratum.widths, stratum.heights))
        groups = "–" if stratum.n_groups is None else f"{stratum.n_groups:,}"
        names = (escaped(stratum.split or "–"), escaped(stratum.label or "–"))
        table.add_row(*names, f"{stratum.n_images:,}", groups, escaped(kinds), bits, *sides)
    table.caption = "width and height: least, median, greatest, in pixels"
    if n_more := len(result.strata) - len(strata):
        n_images = result.n_images - sum(stratum.n_images for stratum in strata)
        table.caption += f"; {n_more:,} more lines, of {n_images:,} images, are in --json"
    return table


def _lines(result: Any) -> Iterator[str]:
    from featcache.manifest.listing import in_words

    if result.skipped:
        yield f"skipped {in_words(result.skipped)}"
    if result.n_unlabelled:
        yield f"{result.n_unlabelled:,} {'image has' if result.n_unlabelled == 1 else 'images have'} no label"
    crossing = [copies for copies in result.identical if copies.crosses]
    other = sum(len(copies.labels) > 1 for copies in result.identical)
    labels = f", {other:,} with different labels" if other else ""
    sets = "1 set" if len(result.identical) == 1 else f"{len(result.identical):,} sets"
    yield f"{sets} of identical images{labels}; {_leaking(crossing)}"
    yield from _examples(crossing)
    if result.n_groups is not None:
        alone = f", {told_of(result.ungrouped, *UNGROUPED)}" if result.ungrouped else ""
        yield f"{result.n_groups:,} groups, the largest of {result.largest_group:,}{alone}; {_leaking(result.groups)}"
        yield from _examples(result.groups)
    method = "every image was decoded" if result.full else "headers were read; --full decodes every image"
    colour = "red" if result.failures else "green"
    yield f"[{colour}]{len(result.failures):,} of {result.n_images:,} cannot be used[/] ({method})"
    for name, (code, reason) in list(result.failures.items())[:_SHOWN]:
        yield f"  [red]{escaped(code)}[/] {escaped(name)}: {escaped(reason)}"
    if len(result.failures) > _SHOWN:
        yield f"  … and {len(result.failures) - _SHOWN:,} more"


def _leaking(crossing: Any) -> str:
    return f"[{'red' if crossing else 'green'}]{len(crossing):,} in more than one subset[/]"


def _examples(crossing: Any) -> Iterator[str]:
    for crossing_set in crossing[:_SHOWN]:
        names = ", ".join(map(escaped, crossing_set.images[:_SHOWN])) + (
            " …" if len(crossing_set.images) > _SHOWN else ""
        )
        yield f"  {' and '.join(crossing_set.splits)}: {names}"
    if len(crossing) > _SHOWN:
        yield f"  … and {len(crossing) - _SHOWN:,} more"


def _write(collection: Any, output: Path, as_json: bool, *inputs: Path) -> None:
    """The CSV, and the counts."""
    n_outside = collection.write(output, *inputs)
    if as_json:
        answer(
            {"manifest": str(output), "images": len(collection.manifest), "outside": n_outside, **collection.as_json()}
        )
    people, record = console(as_json), collection.as_json()
    print_notes(people, record.pop("notes"))
    made_of = record.pop("findings", {})
    counts = [(name, n) for name, n in record.items() if not isinstance(n, dict)]
    people.print(
        ", ".join(f"{n:,} {escaped(name.replace('_', ' '))}" for name, n in counts if n or name == "missing"),
        highlight=False,
    )
    for name, values in record.items():
        if isinstance(values, dict) and values:
            _print_counts(people, name, values)
    for label, findings in made_of.items():
        if list(findings) != [label]:
            _print_counts(people, f"findings of {label or 'no label'}", findings)
    if n_outside:
        people.print(
            f"[yellow]note: {n_outside:,} of the images are not below {escaped(output.parent.resolve())}, the folder "
            f"of the CSV: check, embed, audit and report take them with --allow-outside only[/]",
            highlight=False,
            soft_wrap=True,
        )
    people.print(f"[bold]{escaped(output)}[/]: {len(collection.manifest):,} images", highlight=False, soft_wrap=True)


def _print_counts(people: Console, name: str, counts: dict[str, int]) -> None:
    """`label: 12 sick, 30 normal`."""
    values_text = ", ".join(f"{n:,} {escaped(value or '(none)')}" for value, n in list(counts.items())[:_MOST])
    more = f" and {len(counts) - _MOST:,} others" if len(counts) > _MOST else ""
    people.print(f"{escaped(name)}: {values_text}{more}", highlight=False, soft_wrap=True)
