"""Configuration of the documentation site: `make docs` builds it offline, with warnings as errors."""

from pathlib import Path

import featcache
from featcache.cli.main import app

project = "featcache"
author = "The featcache authors"
release = version = featcache.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "featcache"
exclude_patterns = ["_generated"]
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # signatures in the text say types; annotations would name private aliases
napoleon_google_docstring = True
napoleon_numpy_docstring = False
suppress_warnings = ["myst.xref_missing", "myst.header"]  # FORMAT.md links to files of the repository


def _commands() -> str:
    """The help of every command as Markdown."""
    from typer.testing import CliRunner

    names = [command.name or "" for command in app.registered_commands]
    names[names.index("check") : names.index("check")] = ["manifest iu-xray", "manifest kermany", "manifest covid"]
    runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"})
    texts = {name: runner.invoke(app, [*name.split(), "--help"]).stdout.strip("\n") for name in names}
    return "\n".join(f"## {name}\n\n```text\n{text}\n```\n" for name, text in texts.items())


def setup(sphinx: object) -> None:
    """Writes the pages that come from code."""
    folder = Path(__file__).parent / "_generated"
    folder.mkdir(exist_ok=True)
    (folder / "commands.md").write_text(_commands(), "utf-8")
