"""featcache: embed images once with a frozen backbone, train heads on the cached vectors in seconds.

The verbs (`embed`, `train_head`, `fine_tune`, `predict`, …), the nouns and the specs are loaded on first use, so that
`import featcache` and opening a store cost milliseconds and import neither torch nor timm (`tests/test_public_api.py`
holds this).
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_SPECS = (
    "AugmentationSpec",
    "AugmentedCopies",
    "BackboneSpec",
    "ColumnSpec",
    "DecodeSpec",
    "FusionSpec",
    "HeadSpec",
    "Recipe",
    "SelectionSpec",
    "SplitSpec",
    "Stage",
    "TargetSpec",
    "TransformSpec",
    "Where",
)
_HOME = {
    "FeatcacheError": "featcache.errors",
    "Manifest": "featcache.manifest",
    "Run": "featcache.runs",
    "Store": "featcache.store",
    "audit": "featcache.auditing.audit",
    "embed": "featcache.embedding",
    "evaluate": "featcache.evaluation.evaluate",
    "export": "featcache.store.export",
    "export_onnx": "featcache.prediction.onnx_export",
    "export_studies": "featcache.fusion.writer",
    "fine_tune": "featcache.finetune.fine_tune",
    "load_run": "featcache.prediction.predictor",
    "predict": "featcache.prediction",
    "report": "featcache.reporting.report",
    "train": "featcache.finetune.fine_tune",
    "train_head": "featcache.training.train_head",
    **dict.fromkeys(_SPECS, "featcache.specs"),
}

__all__ = [
    "AugmentationSpec",
    "AugmentedCopies",
    "BackboneSpec",
    "ColumnSpec",
    "DecodeSpec",
    "FeatcacheError",
    "FusionSpec",
    "HeadSpec",
    "Manifest",
    "Recipe",
    "Run",
    "SelectionSpec",
    "SplitSpec",
    "Stage",
    "Store",
    "TargetSpec",
    "TransformSpec",
    "Where",
    "__version__",
    "audit",
    "embed",
    "evaluate",
    "export",
    "export_onnx",
    "export_studies",
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
    from featcache.fusion.writer import export_studies
    from featcache.manifest import Manifest
    from featcache.prediction import predict
    from featcache.prediction.onnx_export import export_onnx
    from featcache.prediction.predictor import load_run
    from featcache.reporting.report import report
    from featcache.runs import Run
    from featcache.specs import (
        AugmentationSpec,
        AugmentedCopies,
        BackboneSpec,
        ColumnSpec,
        DecodeSpec,
        FusionSpec,
        HeadSpec,
        Recipe,
        SelectionSpec,
        SplitSpec,
        Stage,
        TargetSpec,
        TransformSpec,
        Where,
    )
    from featcache.store import Store
    from featcache.store.export import export
    from featcache.training.train_head import train_head


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if not name.startswith("_") and find_spec(f"featcache.{name}"):
        return import_module(f"featcache.{name}")
    raise AttributeError(f"module 'featcache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
