"""The command line: parse, call one function, print. The only user of typer and rich, and the only one that prints.

Results go to stdout, everything else to stderr; with `--json` stdout holds one JSON object and nothing else. Library
modules are imported inside the commands, so that `featcache --help` answers at once.
"""

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from featcache import __version__
from featcache.cli.auditing import audit_command
from featcache.cli.collections import check_command, manifest_app
from featcache.cli.embedding import demo_command, embed_command
from featcache.cli.evaluating import evaluate_command
from featcache.cli.exporting import export_command, export_onnx_command, export_studies_command
from featcache.cli.inspecting import backbones_command, doctor_command, info_command, status_command, verify_command
from featcache.cli.options import OptionCommand
from featcache.cli.predicting import bundle_command, predict_command
from featcache.cli.render import answer
from featcache.cli.reporting import report_command
from featcache.cli.streams import ReaderGone, guarded
from featcache.cli.training import fine_tune_command, train_command, train_head_command
from featcache.errors import FeatcacheError, UsageError, from_os_error
from featcache.names import printable

__all__ = ["app", "main"]

app = typer.Typer(
    name="featcache",
    help="Embed images once with a frozen backbone, then train heads on the cached vectors in seconds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", cls=OptionCommand)(demo_command)
app.command("embed", cls=OptionCommand)(embed_command)
app.command("train-head", cls=OptionCommand)(train_head_command)
app.command("fine-tune", cls=OptionCommand)(fine_tune_command)
app.command("train", cls=OptionCommand)(train_command)
app.command("predict", cls=OptionCommand)(predict_command)
app.command("evaluate", cls=OptionCommand)(evaluate_command)
app.command("bundle", cls=OptionCommand)(bundle_command)
app.command("export", cls=OptionCommand)(export_command)
app.command("export-studies", cls=OptionCommand)(export_studies_command)
app.command("export-onnx", cls=OptionCommand)(export_onnx_command)
app.command("status", cls=OptionCommand)(status_command)
app.command("info", cls=OptionCommand)(info_command)
app.command("verify", cls=OptionCommand)(verify_command)
app.command("backbones", cls=OptionCommand)(backbones_command)
app.command("doctor", cls=OptionCommand)(doctor_command)
app.add_typer(manifest_app, name="manifest")
app.command("check", cls=OptionCommand)(check_command)
app.command("audit", cls=OptionCommand)(audit_command)
app.command("report", cls=OptionCommand)(report_command)


def main() -> None:
    """Entry point: an error of ours is one line on stderr and its exit code, never a traceback."""
    _restart_in_utf8()
    # Threads that spin while they wait take the cores from whatever else runs: a sweep beside two busy processes took
    # 8.6 s, and 3.3 s with threads that sleep. Read by libgomp when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without "…" should not end the program
    with guarded():
        try:
            _run()
        except ReaderGone as error:
            sys.exit(error.exit_code)
        except FeatcacheError as error:
            _fail(error)
        except OSError as error:  # paths too long, and whatever else only the operating system knows
            _fail(from_os_error(error, "using", Path(str(error.filename or "a file"))))


def _run() -> None:
    """The command, and what is still buffered of its answer."""
    try:
        app()
    except SystemExit as ended:  # of typer; where its code is of the parser of options, that has said why on stderr
        if ended.code == UsageError.exit_code and "--json" in sys.argv:
            answer({"error": "UsageError", "exit_code": ended.code, "message": "the options are wrong: see stderr"})
        sys.stdout.flush()
        raise


def _restart_in_utf8() -> None:
    """Names are UTF-8 whatever the locale. Python decides that before it runs a line, so it is started once more, where
    it was started for this program; the terminal is written to in its own encoding all the same."""
    is_program = any(Path(word).stem == "featcache" for word in sys.orig_argv[1:])
    if sys.getfilesystemencoding() == "utf-8" or "utf8" in sys._xoptions or not (is_program and sys.executable):
        return
    os.environ["PYTHONUTF8"] = "1"  # for the processes that decode
    os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  # ourselves


def _fail(error: FeatcacheError) -> NoReturn:
    print(f"featcache: {printable(str(error), keep_lines=True)}", file=sys.stderr)
    if "--json" in sys.argv:
        with suppress(FeatcacheError):  # stdout may be what failed
            answer({"error": type(error).__name__, "exit_code": error.exit_code, "message": str(error)})
            sys.stdout.flush()
    sys.exit(error.exit_code)


def _version(is_requested: bool) -> None:
    if is_requested:
        print(f"featcache {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
