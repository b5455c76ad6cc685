"""What made the vectors of a Run: its network, found again, and what tells other vectors from them.

The Run's record says all of it; whether a network that is loaded is the one it was, is decided by comparing identities
field by field. Until a network is loaded, neither torch nor timm is imported. Knows nothing of the head.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from featcache.errors import CorruptStore, IdentityMismatch, UsageError
from featcache.images import DecodeSpec, TransformSpec
from featcache.images.augment import ViewSpec
from featcache.images.probe import pixels_sha256
from featcache.provenance import Json, digest_json, from_json
from featcache.request import BackboneSpec, Request
from featcache.runs import WEIGHTS, Run
from featcache.store import POOLED
from featcache.store.reading import differences as told

if TYPE_CHECKING:
    from featcache.backbones import Backbone

_COMPARED = ("pipeline", "backbone", "transform", "decode", "probe", "precision")


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


def identity_of(run: Run) -> Json:
    """Of the vectors that the head acts on."""
    with said_by(run):
        held = run.record["store"]["identity"]
        if not isinstance(held, dict):
            raise TypeError("its identity is no mapping")
        return held


def views_of(identity: Json) -> ViewSpec | None:
    """The augmentation views that vectors were made of, beside the images as they are."""
    held = identity.get("views")
    return from_json(ViewSpec, {f.name: held[f.name] for f in fields(ViewSpec)}) if held else None


def differences(run: Run, found: Json, *, average_views: bool = False, any_precision: bool = False) -> list[str]:
    """What vectors have that those of a Run have not, a line each. What else a store holds, and under which name the
    backbone is known there, changes nothing.

    Args:
        run: whose vectors are wanted.
        found: the identity of others.
        average_views: whether its views count, too.
        any_precision: leave the precision out of it.
    """
    held = identity_of(run)
    if digest_json(found) == digest_json(held):
        return []
    wanted = comparable(held)
    if found.get("views") != held.get("views"):  # the probe of an identity with views is of a view, too
        with said_by(run):
            transform, decode = from_json(TransformSpec, held["transform"]), decode_of(held["decode"])
            if held["probe"] == pixels_sha256(transform, decode, views_of(held)):
                wanted["probe"] = pixels_sha256(transform, decode, views_of(found))
    here = comparable(found)
    for key in ("stored_dtype", *(["views"] if average_views else [])):
        here[key], wanted[key] = found.get(key), held.get(key)
    if any_precision:
        here["precision"] = wanted.get("precision")
    return told(_named(here, found, wanted), _named(wanted, held, here))


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

    from featcache.backbones.weights import RUN, SOURCE_KEY

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


def comparable(identity: Json) -> Json:
    """Without what else a store held, and without the name, which follows from where the weights come from."""
    found = {key: identity[key] for key in _COMPARED if key in identity}
    if isinstance(network := found.get("backbone"), dict):
        found["backbone"] = {key: network[key] for key in ("weights_sha256", "pooling") if key in network}
    return found


def _named(compared: Json, whole: Json, other: Json) -> Json:
    """With the network's name where weights differ: it says more than their digests."""
    networks = [identity.get("backbone") for identity in (compared, whole, other)]
    if not all(isinstance(network, dict) for network in networks):
        return compared
    own, full, theirs = networks
    if own.get("weights_sha256") == theirs.get("weights_sha256"):
        return compared
    return {**compared, "backbone": {**own, "name": full.get("name")}}


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


def decode_of(rules: Json) -> DecodeSpec:
    """The options by which files became pixels, from the rules of an identity."""
    bits = re.match(r"(\d+) bit;", rules["gray16"])
    return DecodeSpec(
        bit_depth=int(bits[1]) if bits else None,
        float_range=tuple(rules["float"]) if isinstance(rules["float"], list) else None,
        fast="shortcuts" in rules,
    )


@contextmanager
def said_by(run: Run) -> Iterator[None]:
    """What a Run's record lacks, or has otherwise than it was written, as one error of ours."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
        raise CorruptStore(f"{run.path / 'run.json'} is damaged: {reason}. Make the Run again.") from error
