"""What made the vectors of a Run: its network, found again.

The Run's record says all of it; whether a network that is loaded is the one it was, is decided by comparing identities
field by field. Until a network is loaded, neither torch nor timm is imported. Knows nothing of the head.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from featcache.errors import IdentityMismatch, UsageError
from featcache.images import TransformSpec
from featcache.provenance import from_json
from featcache.request import BackboneSpec, Request
from featcache.runs import WEIGHTS, Run
from featcache.runs.identity import decode_of, differences, identity_of, said_by, views_of
from featcache.store import POOLED

if TYPE_CHECKING:
    from featcache.backbones import Backbone


def request_of(run: Run, weights: str | None = None, taps: tuple[str, ...] = (POOLED,)) -> Request:
    """What was asked for when the vectors of a Run were made. Which images are refused for their size or their frames
    is no part of it.

    Args:
        run: of any training.
        weights: where the backbone's weights are; None for where the Run has, or its store had them from.
        taps: of the network.

    Raises:
        UsageError: the weights came from a file, and it is not named.
        CorruptStore: the record does not say it.
    """
    held = identity_of(run)
    with said_by(run):
        transform, name = from_json(TransformSpec, held["transform"]), held["backbone"]["name"]
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
            precision=held["precision"],
        )
        return Request(spec, decode_of(held["decode"]), held["stored_dtype"], views_of(held))


def backbone_of(
    run: Run, weights: str | None, device: str, taps: tuple[str, ...] = (POOLED,), precision: str | None = None
) -> tuple["Backbone", Request]:
    """The Run's network, found again and compared field by field, with what was asked for.

    Args:
        run: of any training.
        weights: where the backbone's weights are; None for where the Run has, or its store had them from.
        device: where the network will be.
        taps: of it.
        precision: of the arithmetic; None for that of the vectors.

    Raises:
        IdentityMismatch: other weights, or another preprocessing than the Run's.
        UsageError, CorruptStore: as `request_of`, and as `backbones.load`.
    """
    from featcache import backbones

    request = request_of(run, weights, taps)
    if precision is not None:
        request = replace(request, backbone=replace(request.backbone, precision=precision))
    backbone = backbones.load(request.backbone, device)
    own = backbone.identity(request.decode, request.dtype, request.views)
    check(run, differences(run, own, any_precision=precision is not None))
    return backbone, request


def packed(backbone: "Backbone") -> bytes:
    """A network as a safetensors file in timm's layout, all of it: what it learnt stands beside what it did not. Of a
    network that a training of ours has made the file says so, for whoever scores by its vectors."""
    import safetensors.torch

    from featcache.backbones.checkpoints import RUN, SOURCE_KEY

    metadata = {SOURCE_KEY: RUN} if backbone.weights_source == RUN else None
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.module.state_dict().items()}
    return safetensors.torch.save(state, metadata)


def check(run: Run, lines: list[str]) -> None:
    """Raises IdentityMismatch, where there are differences between a Run's network or preprocessing and another."""
    if lines:
        listed = "\n  ".join(lines)
        raise IdentityMismatch(
            f"the vectors of {run.path} come from another network or preprocessing than there is here:\n  {listed}\n"
            f"Give its weights with --weights, or embed again and train a head on that."
        )


def _weights_of(run: Run) -> str | None:
    """As `BackboneSpec` takes it."""
    if (own := run.path / WEIGHTS).exists():
        return str(own)
    source = run.record["store"].get("weights")
    if source in ("file", "run"):
        digest = run.record["store"]["identity"]["backbone"]["weights_sha256"]
        raise UsageError(
            f"the weights of {run.path} came from a file: name it with --weights FILE (their sha256, as featcache info "
            f'tells it, is {digest[:12]}…); in Python with weights="FILE".'
        )
    return source if source and source.startswith("random:") else None
