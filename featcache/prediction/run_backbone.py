"""What made the vectors of a Run: its network, found again.

The Run's record says all of it; whether a network that is loaded is the one it was, is decided by comparing identities
field by field. Until a network is loaded, neither torch nor timm is imported. Knows nothing of the head.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import IdentityMismatch, UsageError
from featcache.identity import from_json
from featcache.runs import WEIGHTS, Run
from featcache.runs.backbone import differences, identity_of, said_by, views_of
from featcache.specs import POOLED, BackboneSpec, DecodeSpec, Request, TransformSpec

if TYPE_CHECKING:
    from featcache.backbones import Backbone


def request_of(run: Run, weights: str | None = None, taps: tuple[str, ...] = (POOLED,)) -> Request:
    """What was asked for when the vectors of a Run were made. Which images are refused for their size or their frames
    is no part of it.

    Args:
        run: a Run of any kind of training.
        weights: where the backbone's weights are; None for where the Run has, or its store had them from.
        taps: taps of the network.

    Raises:
        UsageError: the weights came from a file that is not named, and not where it was.
        CorruptStore: the record does not say it.
    """
    identity = identity_of(run)
    with said_by(run):
        transform, name = from_json(TransformSpec, identity["transform"]), identity["backbone"]["name"]
        if not isinstance(name, str):
            raise TypeError("the name of the backbone is no text")
        spec = BackboneSpec(
            name,
            weights or _weights_of(run),
            input_size=transform.input_size[0] if len(set(transform.input_size)) == 1 else None,
            crop_pct=transform.crop_pct,
            crop_mode=transform.crop_mode,
            interpolation=transform.interpolation,
            mean=transform.mean,
            std=transform.std,
            taps=taps,
            precision=identity["precision"],
        )
        return Request(spec, DecodeSpec.of_identity(identity["decode"]), identity["stored_dtype"], views_of(identity))


def backbone_of(
    run: Run, weights: str | None, device: str, taps: tuple[str, ...] = (POOLED,), precision: str | None = None
) -> tuple["Backbone", Request]:
    """The Run's network, found again and compared field by field, with what was asked for.

    Args:
        run: a Run of any kind of training.
        weights: where the backbone's weights are; None for where the Run has, or its store had them from.
        device: where the network will be.
        taps: taps of the network.
        precision: precision of the arithmetic; None for that of the vectors.

    Raises:
        IdentityMismatch: other weights, or another preprocessing than the Run's.
        UsageError, CorruptStore: as `request_of`, and as `backbones.load`.
    """
    from featcache import backbones

    request = request_of(run, weights, taps)
    if precision is not None:
        request = replace(request, backbone=replace(request.backbone, precision=precision))
    backbone = backbones.load(request.backbone, device)
    own = backbone.identity(request.decode, request.dtype, request.augmentations)
    check(run, differences(run, own, any_precision=precision is not None), weights)
    return backbone, request


def packed(backbone: "Backbone") -> bytes:
    """A network as a safetensors file in timm's layout, all of it: what it learnt stands beside what it did not. Of a
    network that a training of ours has made the file says so, for whoever scores by its vectors."""
    import safetensors.torch

    from featcache.backbones.checkpoints import RUN, SOURCE_KEY

    metadata = {SOURCE_KEY: RUN} if backbone.weights_source == RUN else None
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.module.state_dict().items()}
    return safetensors.torch.save(state, metadata)


def check(run: Run, lines: list[str], weights: str | None) -> None:
    """Raises IdentityMismatch, where there are differences between a Run's network or preprocessing and another.

    Args:
        run: a Run of any kind of training.
        lines: the differences.
        weights: where the backbone's weights are; None for where the Run has, or its store had them from.
    """
    if lines:
        path = weights or _weights_of(run)
        read = f" The weights were read from {path}." if path else ""
        listed = "\n  ".join(lines)
        raise IdentityMismatch(
            f"the vectors of {run.path} come from another network or preprocessing than there is here:\n  {listed}\n"
            f"Name the Run's own weights with the parameter weights, or embed again and train a head on that.{read}"
        )


def _weights_of(run: Run) -> str | None:
    """As `BackboneSpec` takes it."""
    if (own := run.path / WEIGHTS).exists():
        return str(own)
    source = run.record["store"].get("weights")
    if source in ("file", "run"):
        return _remembered(run)
    return source if source and source.startswith("random:") else None


def _remembered(run: Run) -> str:
    """The file that the Run's store had its weights from, where it was, or one of its name in the working folder or
    beside the Run. Whether they are the same weights, is seen when they are loaded.

    Raises:
        UsageError: it is nowhere there, or not remembered.
    """
    remembered = run.record["store"].get("weights_file")
    places = _places(run, remembered) if isinstance(remembered, str) else []
    if (path := next((place for place in places if place.is_file()), None)) is not None:
        return str(path)
    digest = run.record["store"]["identity"]["backbone"]["weights_sha256"]
    looked = f" that is not there any more (looked for {', '.join(map(str, places))})" if places else ""
    raise UsageError(
        f"the weights of {run.path} came from a file{looked}. Name it with the parameter weights; the sha256 of its "
        f"weights, as featcache info shows it, is {digest[:12]}…."
    )


def _places(run: Run, remembered: str) -> list[Path]:
    path = Path(remembered)
    return list(dict.fromkeys((path, Path.cwd() / path.name, run.path.parent.absolute() / path.name)))
