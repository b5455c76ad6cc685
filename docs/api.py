"""Pages of what is meant to be called from Python, out of the docstrings.

    python docs/api.py FOLDER

A name that cannot be found, or anything else that pdoc warns of, ends it with an error.
"""

import sys
import warnings
from importlib import import_module
from pathlib import Path

import pdoc

import featcache

MODULES = (
    "featcache", "featcache.manifest.sources", "featcache.manifest.checking", "featcache.embed", "featcache.training",
    "featcache.runs.task", "featcache.runs.protocol", "featcache.recipe", "featcache.finetune", "featcache.audit",
    "featcache.report", "featcache.predict", "featcache.predict.bundle", "featcache.export", "featcache.fusion",
    "featcache.phantoms", "featcache.errors",
)  # fmt: skip


def main(folder: Path) -> None:
    """Renders every module of the list."""
    warnings.simplefilter("error", UserWarning)
    for module in map(import_module, MODULES):
        for name in getattr(module, "__all__", ()):  # some are loaded on first use, which pdoc does not do
            setattr(module, name, getattr(module, name))
    pdoc.render.configure(docformat="google", footer_text=f"featcache {featcache.__version__}")
    pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
