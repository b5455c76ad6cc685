"""Of which network and preprocessing the vectors of a Run are, as its record says, and what tells other vectors from
them. Loads no network, and knows nothing of the head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from featcache.errors import CorruptStore, InvalidParameter, UsageError
from featcache.identity import Json, digest_json, from_json
from featcache.images.probe import pixels_sha256
from featcache.runs.run import Run
from featcache.specs import AugmentedCopies, DecodeSpec, TransformSpec
from featcache.store.reader import differences as told

_APART = ("views", "stored_dtype")  # which count for some heads only, and for rounded vectors


def identity_of(run: Run) -> Json:
    """The identity of the vectors that the head acts on."""
    with said_by(run):
        identity = run.record["store"]["identity"]
        if not isinstance(identity, dict):
            raise TypeError("its identity is no mapping")
        return identity


def views_of(identity: Json) -> AugmentedCopies | None:
    """The augmentation views that vectors were made of, beside the images as they are."""
    views = identity.get("views")
    return AugmentedCopies.from_identity(views) if views else None


def differences(run: Run, identity: Json, *, tta: bool = False, any_precision: bool = False) -> list[str]:
    """What vectors have that those of a Run have not, a line each. What else a store holds, and under which name the
    backbone is known there, changes nothing.

    Args:
        run: whose vectors are wanted.
        identity: the identity of others.
        tta: whether its views count, too.
        any_precision: leave the precision out of it.
    """
    own = identity_of(run)
    if digest_json(identity) == digest_json(own):
        return []
    own_fields = comparable(own)
    if identity.get("views") != own.get("views"):  # the probe of an identity with views is of a view, too
        with said_by(run):
            transform, decode = from_json(TransformSpec, own["transform"]), DecodeSpec.of_identity(own["decode"])
            if own["probe"] == pixels_sha256(transform, decode, views_of(own)):
                own_fields["probe"] = pixels_sha256(transform, decode, views_of(identity))
    here = comparable(identity)
    for key in ("stored_dtype", *(["views"] if tta else [])):
        here[key], own_fields[key] = identity.get(key), own.get(key)
    if any_precision:
        here["precision"] = own_fields.get("precision")
    return told(_named(here, identity, own_fields), _named(own_fields, own, here))


def comparable(identity: Json) -> Json:
    """Without what else a store held, and without the name, which follows from where the weights come from."""
    fields = {key: value for key, value in identity.items() if key not in _APART}
    if isinstance(network := fields.get("backbone"), dict):
        fields["backbone"] = {key: network[key] for key in ("weights_sha256", "pooling") if key in network}
    return fields


def _named(compared: Json, whole: Json, other: Json) -> Json:
    """With the network's name where weights differ: it says more than their digests."""
    networks = [identity.get("backbone") for identity in (compared, whole, other)]
    if not all(isinstance(network, dict) for network in networks):
        return compared
    own, full, theirs = networks
    if own.get("weights_sha256") == theirs.get("weights_sha256"):
        return compared
    return {**compared, "backbone": {**own, "name": full.get("name")}}


@contextmanager
def said_by(run: Run) -> Iterator[None]:
    """What a Run's record lacks, or has otherwise than it was written, as one error of ours."""
    try:
        yield
    except UsageError as error:
        if not isinstance(error, InvalidParameter):
            raise
        raise _damaged(run, error) from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise _damaged(run, error) from error


def _damaged(run: Run, error: Exception) -> CorruptStore:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
    return CorruptStore(f"{run.path / 'run.json'} is damaged: {reason}. Make the Run again.")
