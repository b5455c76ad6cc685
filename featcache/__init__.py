"""featcache: embed images once with a frozen backbone, train heads on the cached vectors in seconds.

The public names, and the packages with the verbs (`featcache.embed.embed`, …), are loaded on first use, so that `import
featcache` and opening a store cost milliseconds and import neither torch nor timm (`tests/test_public_api.py` holds
this).
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "BackboneSpec": "featcache.request",
    "FeatcacheError": "featcache.errors",
    "HeadSpec": "featcache.heads",
    "Manifest": "featcache.manifest",
    "ReportSpec": "featcache.training",
    "Run": "featcache.runs",
    "SplitSpec": "featcache.runs.protocol",
    "Store": "featcache.store",
    "TargetSpec": "featcache.runs.task",
    "TransformSpec": "featcache.images",
    "load_run": "featcache.predict.predictor",
}

__all__ = [
    "BackboneSpec",
    "FeatcacheError",
    "HeadSpec",
    "Manifest",
    "ReportSpec",
    "Run",
    "SplitSpec",
    "Store",
    "TargetSpec",
    "TransformSpec",
    "__version__",
    "load_run",
]

if TYPE_CHECKING:
    from featcache.errors import FeatcacheError
    from featcache.heads import HeadSpec
    from featcache.images import TransformSpec
    from featcache.manifest import Manifest
    from featcache.predict.predictor import load_run
    from featcache.request import BackboneSpec
    from featcache.runs import Run
    from featcache.runs.protocol import SplitSpec
    from featcache.runs.task import TargetSpec
    from featcache.store import Store
    from featcache.training import ReportSpec


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if not name.startswith("_") and find_spec(f"featcache.{name}"):
        return import_module(f"featcache.{name}")
    raise AttributeError(f"module 'featcache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
