"""How many bits gray of more than 8 bits has: settled once for the whole set of a store, and held from then on.

The depth is a part of the identity. Where a store, or the parts of a stopped pass, have settled it, it is theirs; a set
without such images settles nothing, and whoever adds the first ones settles it. An image beyond it fails by its name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from featcache.identity import Json
from featcache.manifest import Manifest
from featcache.manifest.survey import depths_of
from featcache.specs import DecodeSpec


def settle_depth(
    decode: DecodeSpec,
    manifest: Manifest,
    rows: Sequence[int],
    identities: Iterable[Json],
    n_workers: int,
    timeout_s: float,
) -> tuple[DecodeSpec, str]:
    """The spec with a depth for the set, and what is to be said of it; empty where there is nothing to say.

    Args:
        decode: what is asked; a depth that is stated stays.
        manifest: the images.
        rows: rows of the manifest that may not have been checked yet.
        identities: identities of what lies at the paths of the pass already.
        n_workers: processes that decode.
        timeout_s: what one image may take.
    """
    settled = replace(decode, is_settled=True)
    if decode.bit_depth is not None:
        return settled, ""
    of_stores = (
        DecodeSpec.of_identity(identity["decode"]).bit_depth for identity in identities if _has_rules(identity)
    )
    bits = next((depth for depth in of_stores if depth is not None), None)
    depths = depths_of(manifest, rows, decode, n_workers, timeout_s)
    if depths is None:
        return replace(settled, bit_depth=bits), ""
    bits = bits or depths.bits
    return replace(settled, bit_depth=bits), depths.note(bits)


def _has_rules(identity: Json) -> bool:
    rules = identity.get("decode") if isinstance(identity, dict) else None
    return isinstance(rules, dict) and isinstance(rules.get("gray16"), str) and "float" in rules
