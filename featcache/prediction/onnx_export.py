"""A Run as one ONNX file: normalisation, backbone, head, and the words that go with them.

The only user of onnx and onnxruntime, which the extra `onnx` brings. Pixels go in as they come from a decoder, resized
and cropped: no runtime resizes as the images of the Run were resized. Arithmetic is float32, whatever the precision of
the Run. A file is written only after onnxruntime has given with it, for batches of one and of five, what torch gives.
Letters: b images, h, w pixels, d features, c classes.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featcache import durable
from featcache.backbones import Backbone
from featcache.errors import FeatcacheError, UsageError
from featcache.heads.mlp import Head, head_module
from featcache.identity import Json, canonical_json, environment, from_json
from featcache.prediction import run_backbone
from featcache.prediction.predictions import Model
from featcache.runs import Run
from featcache.runs.backbone import identity_of
from featcache.specs import GRID, POOLED, DecodeSpec, Request, TransformSpec

Array = np.ndarray[Any, Any]

INPUT, OUTPUTS = "images", ("logits", "probabilities")
TOLERANCE = 1e-4  # of probabilities; of logits, times the largest of them where that is above 1
_OPSET = 18
_MAX_BYTES = 2_000_000_000  # protobuf ends a message at 2 GiB
_BATCHES = (5, 1)
_PRODUCER, _HEAD_BYTES = "featcache", 64
_ABOUT = "A classifier made by featcache. Not a medical device. Its classes and preprocessing are in the metadata."


@dataclass(frozen=True)
class Exported:
    """An ONNX file, and how far it is from the network that it was made of.

    Attributes:
        data: the file.
        input_size: (h, w) of the images it takes.
        classes: the c names, in the order of the outputs' columns.
        difference: the largest between onnxruntime and torch, of a probability.
        logits_difference: the same of a logit, divided by the largest logit where that is above 1.
        notes: what of the Run is not in it.
    """

    data: bytes
    input_size: tuple[int, int]
    classes: list[str]
    difference: float
    logits_difference: float
    notes: tuple[str, ...]

    def as_json(self) -> Json:
        """What a script is told of it."""
        return {
            "bytes": len(self.data),
            "input": {"name": INPUT, "shape": ["batch", 3, *self.input_size], "dtype": "uint8"},
            "outputs": list(OUTPUTS),
            "classes": self.classes,
            "opset": _OPSET,
            "difference": self.difference,
            "logits_difference": self.logits_difference,
            "notes": list(self.notes),
        }


def export_onnx(run: Run, path: Path | str, *, weights: str | None = None) -> Exported:
    """Writes a Run as an ONNX file, once onnxruntime agrees with torch about it.

    Args:
        run: a Run whose head has weights: any but knn.
        path: the file.
        weights: where the backbone's weights are, if the Run's store had them from a file.

    Raises:
        What `build` raises. UsageError: somebody else's file is at `path`. StoreLocked: another process is writing
        there. NoSpace, AccessDenied, InputOutputError: nothing changed at `path`.
    """
    path = Path(path)
    with durable.output(path, _is_ours, "ONNX file of a Run"):
        exported = build(run, weights=weights)
        durable.write_bytes(path, exported.data)
    return exported


def _is_ours(path: Path) -> bool:
    """By the name of its producer, which stands before the graph."""
    with durable.open_regular(path) as file:
        return _PRODUCER.encode("ascii") in file.read(_HEAD_BYTES)


def build(run: Run, *, weights: str | None = None) -> Exported:
    """An ONNX file of a Run: `images` (b, 3, h, w) uint8 in, `logits` and `probabilities` (b, c) float32 out.

    Args:
        run: a Run whose head has weights: any but knn.
        weights: where the backbone's weights are, if the Run's store had them from a file.

    Raises:
        UsageError: a head or a network that has no place in such a file; the extra `onnx` is not installed.
        IdentityMismatch: other weights, or another preprocessing than the Run's.
        FeatcacheError: onnxruntime and torch disagree by more than `TOLERANCE`.
    """
    _check_installed()
    model = Model.of(run)
    if model.spec.kind == "knn":
        raise UsageError(f"{run.path} has a knn head, which is a search and no network: it cannot be an ONNX file.")
    taps = (POOLED, GRID) if model.tap == GRID else (POOLED,)
    backbone, request = run_backbone.backbone_of(run, weights, "cpu", taps, "float32")
    head = head_module(model.spec, model.tensors, 1.0, len(model.classes), model.positive, model.has_findings)
    whole = _Whole(backbone, head, model.tap, model.has_findings).eval()
    size = backbone.transform.input_size
    data = _file(_program(whole, _samples(2, size)), _metadata(run, model, request), run)
    difference, of_logits = _differences(data, whole, size)
    if not max(difference, of_logits) <= TOLERANCE:
        raise FeatcacheError(
            f"the ONNX file of {run.path} gives other answers than the network it was made of: probabilities differ by "
            f"up to {difference:.2g}, logits by {of_logits:.2g} of the largest. Nothing was written."
        )
    return Exported(data, size, model.classes, difference, of_logits, _notes(model, run))


# --- the graph --------------------------------------------------------------------------------------------------------


class _Whole(nn.Module):
    """(b, 3, h, w) uint8 to (b, c) logits and (b, c) probabilities."""

    def __init__(self, backbone: Backbone, head: Head, tap: str, has_findings: bool) -> None:
        super().__init__()
        self.network, self.head = backbone.module, head  # so that the exporter sees whose parameters they are
        self._vectors, self._tap, self._has_findings = backbone.__call__, tap, has_findings

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(self._vectors(images)[self._tap].flatten(1))
        return logits, torch.sigmoid(logits) if self._has_findings else torch.softmax(logits, dim=1)


def _program(whole: nn.Module, images: Array) -> Any:
    """torch's exporter at work; it has much to say, of which nothing is for whoever exports a Run."""
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    with _quiet():
        try:
            return torch.onnx.export(
                whole,
                (torch.from_numpy(images),),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                opset_version=_OPSET,
                dynamo=True,
                dynamic_shapes={INPUT: {0: batch}},
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise UsageError(f"this network cannot be an ONNX file: {reason}") from error


def _file(program: Any, metadata: dict[str, str], run: Run) -> bytes:
    """The bytes, without what the exporter notes of the code that it went through."""
    n_bytes = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    if n_bytes > _MAX_BYTES:
        raise UsageError(f"{run.path} is of {n_bytes / 1e9:.1f} GB, and one ONNX file ends at 2 GB.")
    proto = program.model_proto
    graph = proto.graph
    for noted in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        noted.doc_string = ""
        del noted.metadata_props[:]
    proto.doc_string = _ABOUT
    proto.producer_name, proto.producer_version = _PRODUCER, environment()["featcache"]
    del proto.metadata_props[:]
    for key, value in sorted(metadata.items()):
        proto.metadata_props.add(key=key, value=value)
    return bytes(proto.SerializeToString(deterministic=True))


def _metadata(run: Run, model: Model, request: Request) -> dict[str, str]:
    """What whoever runs the file has to know, by name, each as JSON."""
    identity = identity_of(run)
    point = run.record["operating_point"]
    metadata = {
        "classes": model.classes,
        "task": run.record["task"],
        "positive": run.record["positive"],
        "input": "uint8, 0 to 255, red green blue, resized and cropped as transform says; gray three times",
        "transform": identity["transform"],
        "decode": request.decode.identity(),
        "preprocessing": preprocessing(from_json(TransformSpec, identity["transform"]), request.decode),
        "identity_sha256": run.record["identity_sha256"],
        "weights_sha256": identity["backbone"]["weights_sha256"],
        "backbone": identity["backbone"]["name"],
        "temperature": model.temperature,
        "operating_point": {"rule": point["rule"], "threshold": point["threshold"]} if point else None,
        "notes": list(_notes(model, run)),
    }
    return {f"featcache.{name}": canonical_json(value) for name, value in metadata.items()}


def preprocessing(transform: TransformSpec, decode: DecodeSpec) -> Json:
    """Every step from the file of an image to the input of the graph, in their order and in plain words; the script of
    docs/onnx.md follows them."""
    height, width = transform.resized_size
    is_squashed = transform.crop_mode == "squash"
    other = "none: both sides are stated" if is_squashed else "longer * height / shorter of the image, rounded down"
    return {
        "orientation": "the EXIF orientation is applied",
        "gray16": {
            "bits": decode.bit_depth,
            "rule": "gray of more than 8 bits: value * 255 / (2^bits - 1), rounded, halves to even; null: the Run has "
            "seen none",
        },
        "transparency": "composited on black",
        "colour": "red, green, blue; gray three times; no colour profile is applied",
        "shortcuts": decode.identity().get("shortcuts"),
        "resize": {
            "side": "both" if is_squashed else "shorter",
            "height": height,
            "width": width,
            "other_side": other,
            "interpolation": transform.interpolation,
            "antialias": True,
            "values": "of 8 bits, rounded to 8 bits, as Pillow's Image.resize does",
        },
        "crop": {
            "height": transform.input_size[0],
            "width": transform.input_size[1],
            "offset": "(resized - crop) / 2 from the left and from the top, rounded, halves to even",
        },
        "layout": "n, channel, row, column; uint8 from 0 to 255",
        "normalisation": {
            "in_graph": True,
            "rule": "(value / 255 - mean) / std",
            "mean": list(transform.mean),
            "std": list(transform.std),
        },
    }


def _notes(model: Model, run: Run) -> tuple[str, ...]:
    """What of the Run the graph leaves out."""
    notes = []
    if model.tta:
        notes.append("the Run averages over augmented views; the file answers for the image as it is")
    if (precision := identity_of(run)["precision"]) != "float32":
        notes.append(f"the Run's vectors are of {precision}; the file computes in float32")
    if (dtype := identity_of(run)["stored_dtype"]) != "float32":
        notes.append(f"the Run's vectors were stored as {dtype}; the file does not round them")
    return tuple(notes)


# --- what it is worth -------------------------------------------------------------------------------------------------


def _differences(data: bytes, whole: nn.Module, size: tuple[int, int]) -> tuple[float, float]:
    """The largest of a probability, and of a logit by the largest logit, over images of many kinds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    differences = [0.0, 0.0]
    for n in _BATCHES:
        images = _samples(n, size)
        with torch.inference_mode():
            logits, probabilities = (values.numpy() for values in whole(torch.from_numpy(images)))
        own = session.run(list(OUTPUTS), {INPUT: images})
        scale = max(1.0, float(np.abs(logits).max()))
        pairs = ((own[1], probabilities, 1.0), (own[0], logits, scale))
        # NaN is no agreement, and `max` might pass over it.
        here = [float(np.nan_to_num(np.abs(a - b).max(), nan=np.inf)) / by for a, b, by in pairs]
        differences = [max(pair) for pair in zip(differences, here, strict=True)]
    return differences[0], differences[1]


def _samples(n: int, size: tuple[int, int]) -> Array:
    """(n, 3, h, w) uint8 of at most five kinds: noise in colour, a slope, noise in gray, black, white."""
    height, width = size
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    slope = (255.0 * (x + y) / max(1, height + width - 2)).astype(np.uint8)
    gray = rng.integers(0, 256, (height, width), dtype=np.uint8)
    planes = [np.broadcast_to(plane, (3, height, width)) for plane in (slope, gray, slope * 0, slope * 0 + 255)]
    return np.stack([rng.integers(0, 256, (3, height, width), dtype=np.uint8), *planes])[:n]


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f"an ONNX file needs {error.name}: pip install 'featcache[onnx]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield
