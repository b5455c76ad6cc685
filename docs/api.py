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
    "featcache", "featcache.embedding", "featcache.training", "featcache.recipe", "featcache.finetune",
    "featcache.auditing",
    "featcache.reporting", "featcache.prediction", "featcache.store.export", "featcache.fusion", "featcache.phantoms",
    "featcache.doctor", "featcache.errors",
)  # fmt: skip
PARTS = (
    "featcache.manifest.datasets", "featcache.manifest.check", "featcache.splits.task", "featcache.splits.protocol",
    "featcache.prediction.bundle",
)  # fmt: skip
NO_OTHERS = r"!featcache\.\w+\..+"  # pdoc adds all parts of a package


def main(folder: Path) -> None:
    """Renders every module of the list."""
    warnings.simplefilter("error", UserWarning)
    for module in map(import_module, (*MODULES, *PARTS)):
        for name in getattr(module, "__all__", ()):  # some are loaded on first use, which pdoc does not do
            setattr(module, name, getattr(module, name))
    pdoc.render.configure(docformat="google", footer_text=f"featcache {featcache.__version__}")
    pdoc.pdoc(*MODULES, NO_OTHERS, *PARTS, output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
