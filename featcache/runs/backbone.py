"""Of which network and preprocessing the vectors of a Run are, as its record says, and what tells other vectors from
them. Loads no network, and knows nothing of the head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from featcache.errors import CorruptStore
from featcache.identity import Json, digest_json, from_json
from featcache.images import DecodeSpec, TransformSpec
from featcache.images.augment import ViewSpec
from featcache.images.probe import pixels_sha256
from featcache.runs.run import Run
from featcache.store.reader import differences as told

_APART = ("views", "stored_dtype")  # which count for some heads only, and for rounded vectors


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
    return ViewSpec.from_identity(held) if held else None


def differences(run: Run, found: Json, *, tta: bool = False, any_precision: bool = False) -> list[str]:
    """What vectors have that those of a Run have not, a line each. What else a store holds, and under which name the
    backbone is known there, changes nothing.

    Args:
        run: whose vectors are wanted.
        found: the identity of others.
        tta: whether its views count, too.
        any_precision: leave the precision out of it.
    """
    held = identity_of(run)
    if digest_json(found) == digest_json(held):
        return []
    wanted = comparable(held)
    if found.get("views") != held.get("views"):  # the probe of an identity with views is of a view, too
        with said_by(run):
            transform, decode = from_json(TransformSpec, held["transform"]), DecodeSpec.of_identity(held["decode"])
            if held["probe"] == pixels_sha256(transform, decode, views_of(held)):
                wanted["probe"] = pixels_sha256(transform, decode, views_of(found))
    here = comparable(found)
    for key in ("stored_dtype", *(["views"] if tta else [])):
        here[key], wanted[key] = found.get(key), held.get(key)
    if any_precision:
        here["precision"] = wanted.get("precision")
    return told(_named(here, found, wanted), _named(wanted, held, here))


def comparable(identity: Json) -> Json:
    """Without what else a store held, and without the name, which follows from where the weights come from."""
    found = {key: value for key, value in identity.items() if key not in _APART}
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


@contextmanager
def said_by(run: Run) -> Iterator[None]:
    """What a Run's record lacks, or has otherwise than it was written, as one error of ours."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
        raise CorruptStore(f"{run.path / 'run.json'} is damaged: {reason}. Make the Run again.") from error
