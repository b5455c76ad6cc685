"""featcache: embed images once with a frozen backbone, train heads on the cached vectors in seconds.

The verbs (`embed`, `train_head`, `fine_tune`, `predict`, …), the nouns and the specs are loaded on first use, so that
`import featcache` and opening a store cost milliseconds and import neither torch nor timm (`tests/test_public_api.py`
holds this).
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
    "SelectionSpec": "featcache.training.train_head",
    "Run": "featcache.runs",
    "SplitSpec": "featcache.splits.protocol",
    "Store": "featcache.store",
    "TargetSpec": "featcache.splits.task",
    "TransformSpec": "featcache.images",
    "audit": "featcache.auditing.audit",
    "embed": "featcache.embedding",
    "evaluate": "featcache.evaluation.evaluate",
    "export": "featcache.store.export",
    "fine_tune": "featcache.finetune.fine_tune",
    "load_run": "featcache.prediction.predictor",
    "predict": "featcache.prediction",
    "report": "featcache.reporting.report",
    "train": "featcache.finetune.fine_tune",
    "train_head": "featcache.training.train_head",
}

__all__ = [
    "BackboneSpec",
    "FeatcacheError",
    "HeadSpec",
    "Manifest",
    "Run",
    "SelectionSpec",
    "SplitSpec",
    "Store",
    "TargetSpec",
    "TransformSpec",
    "__version__",
    "audit",
    "embed",
    "evaluate",
    "export",
    "fine_tune",
    "load_run",
    "predict",
    "report",
    "train",
    "train_head",
]

if TYPE_CHECKING:
    from featcache.auditing.audit import audit
    from featcache.embedding import embed
    from featcache.errors import FeatcacheError
    from featcache.evaluation.evaluate import evaluate
    from featcache.finetune.fine_tune import fine_tune, train
    from featcache.heads import HeadSpec
    from featcache.images import TransformSpec
    from featcache.manifest import Manifest
    from featcache.prediction import predict
    from featcache.prediction.predictor import load_run
    from featcache.reporting.report import report
    from featcache.request import BackboneSpec
    from featcache.runs import Run
    from featcache.splits.protocol import SplitSpec
    from featcache.splits.task import TargetSpec
    from featcache.store import Store
    from featcache.store.export import export
    from featcache.training.train_head import SelectionSpec, train_head


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if not name.startswith("_") and find_spec(f"featcache.{name}"):
        return import_module(f"featcache.{name}")
    raise AttributeError(f"module 'featcache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
