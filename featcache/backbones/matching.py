"""Which tensors of a checkpoint are those of a network: wrappers and prefixes off, the classifier left out.

Everything a network has must be there, by name and shape, and nothing may be left over but a classifier or what lies
outside of the network. All is decided by names and shapes, before a network is built.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from featcache.backbones.checkpoints import Checkpoint, StateDict

Shapes = Mapping[str, tuple[int, ...]]

# Words that training scripts put before the names of a network's tensors.
_WRAPPERS = frozenset((
    "module", "model", "backbone", "encoder", "net", "network", "_orig_mod", "student", "teacher", "base_model",
    "base", "trunk", "body", "feature_extractor", "features_extractor", "image_encoder", "visual", "vision_model",
    "encoder_q", "encoder_k", "online_encoder", "target_encoder", "ema", "ema_model",
))  # fmt: skip
# Of two networks in one state dict the first of these is taken: the teacher of DINO, the query encoder of MoCo.
_PREFERRED = ("ema_model", "ema", "teacher", "encoder_q", "online_encoder")
# First part of a name -> a part of training, or what turns vectors into an answer.
_BEHIND_THE_VECTOR = frozenset((
    "fc", "classifier", "head", "heads", "head_dist", "last_linear", "linear", "cls_head", "classification_head",
    "projector", "projection", "projection_head", "proj_head", "predictor", "prototypes", "AuxLogits", "aux1",
    "aux2", "aux_classifier", "aux_head", "criterion", "loss", "loss_fn", "loss_func", "n_averaged", "queue",
    "queue_ptr",
))  # fmt: skip
_COUNTER = "num_batches_tracked"  # of a batch norm: absent from old files, and never used in `eval()`
_SHOWN = 3


@dataclass(frozen=True)
class Match:
    """Tensors of a state dict under one prefix, beside those that a network wants.

    Attributes:
        state_dict: the checkpoint that holds the tensors.
        prefix: taken off their names; empty for none.
        tensors: the rest of the name -> tensor, a classifier among them.
        expected: shapes of the network without its classifier.
        classifier: names of `tensors` that are behind the vector.
    """

    state_dict: StateDict
    prefix: str
    tensors: Mapping[str, Tensor]
    expected: Shapes
    classifier: frozenset[str]

    @property
    def backbone(self) -> dict[str, Tensor]:
        """The tensors without a classifier."""
        return {name: tensor for name, tensor in self.tensors.items() if name not in self.classifier}

    @property
    def missing(self) -> list[str]:
        return [name for name in self.expected if name not in self.tensors and not name.endswith(_COUNTER)]

    @property
    def unexpected(self) -> list[str]:
        return [name for name in self.backbone if name not in self.expected]

    @property
    def misshapen(self) -> list[str]:
        return [
            name for name, shape in self.expected.items() if name in self.tensors and self.tensors[name].shape != shape
        ]

    @property
    def fits(self) -> bool:
        """Whether every tensor has its place."""
        return not (self.missing or self.unexpected or self.misshapen)

    @property
    def is_large_enough(self) -> bool:
        """Whether the numbers that really lie in the file could be those of the network: a conversion may resize a few
        of them, and none makes many out of few. What is not is refused before so large a network is built."""
        storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in self.tensors.values()}
        n_stored = sum(t.untyped_storage().nbytes() // t.element_size() for t in storages.values())
        return 2 * n_stored >= n_elements(self.expected)

    @property
    def n_common(self) -> int:
        """Tensors that are where they should be."""
        return len(self.expected) - len(self.missing) - len(self.misshapen)

    @property
    def where(self) -> str:
        """The place in the file, and the prefix."""
        return ".".join(filter(None, (self.state_dict.place, self.prefix.rstrip("."))))

    def differences(self) -> str:
        """Missing, unexpected and misshapen tensors, each with the first of them and their number."""
        shapes = {
            name: f"{name} {list(self.tensors[name].shape)} instead of {list(self.expected[name])}"
            for name in self.misshapen
        }
        lists = {
            f"of {len(self.expected):,} tensors are missing": self.missing,
            "are unexpected": self.unexpected,
            "have another shape": list(shapes.values()),
        }
        under = f"under the prefix {self.prefix!r} " if self.prefix else ""
        inside = f"in {self.state_dict.place!r} " if self.state_dict.place else ""
        parts = [f"{len(names):,} {kind} ({first(names)})" for kind, names in lists.items() if names]
        return f"{inside}{under}{'; '.join(parts)}"

    def note(self, path: Path, alternatives: Sequence["Match"]) -> str | None:
        """What was taken of a file, and what was left; None where that is all of it.

        Args:
            path: path of the file.
            alternatives: ways that would have fitted as well.
        """
        outside = [name for name in self.state_dict.tensors if not name.startswith(self.prefix)]
        parts = [
            f"read from {self.state_dict.place!r}" if self.state_dict.place else "",
            f"the prefix {self.prefix!r} was taken off" if self.prefix else "",
            f"those of {first([other.where for other in alternatives])} would fit, too" if alternatives else "",
            _not_used("of a classifier", [_with_shape(name, self.tensors) for name in sorted(self.classifier)]),
            _not_used(f"outside of {self.prefix!r}", outside),
            f"{first(self.state_dict.other_entries)} left out, which is no tensor"
            if self.state_dict.other_entries
            else "",
        ]
        description = "; ".join(filter(None, parts))
        return f"weights {path}: {description}." if description else None


def matches(checkpoint: Checkpoint, expected: Shapes, classifiers: Sequence[str]) -> list[Match]:
    """Every way to read a checkpoint as a network, the best first: those by which everything fits, in the order in
    which state dicts and prefixes are preferred; then the others, with the most common tensors first.

    Args:
        checkpoint: what the file holds.
        expected: name -> shape of the network's tensors, without a classifier.
        classifiers: how the names of its classifier begin, as timm says it.
    """
    ways = [
        _match(state_dict, prefix, expected, classifiers)
        for state_dict in checkpoint.state_dicts
        for prefix in sorted(_prefixes(state_dict.tensors, expected), key=_preference)
    ]
    return sorted(ways, key=lambda way: (not way.fits, -way.n_common if not way.fits else 0))


def n_elements(shapes: Shapes) -> int:
    """Numbers in all tensors, without counters."""
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(_COUNTER))


def first(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _match(state_dict: StateDict, prefix: str, expected: Shapes, classifiers: Sequence[str]) -> Match:
    tensors = {name[len(prefix) :]: t for name, t in state_dict.tensors.items() if name.startswith(prefix)}
    parts = {name.partition(".")[0] for name in expected}
    behind = frozenset(name for name in tensors if name not in expected and _is_behind(name, parts, classifiers))
    return Match(state_dict, prefix, tensors, expected, behind)


def _is_behind(name: str, parts: set[str], classifiers: Sequence[str]) -> bool:
    """Whether a tensor belongs to what stands behind the vector: to the classifier as timm names it, or to a part that
    is named as one and of which the network itself has nothing."""
    part = name.partition(".")[0]
    return name.startswith(tuple(f"{c}." for c in classifiers)) or (part in _BEHIND_THE_VECTOR and part not in parts)


def _prefixes(names: Iterable[str], expected: Shapes) -> set[str]:
    """Those that could be taken off: rows of known words, and whatever stands before the name of a wanted tensor."""
    anchor = next(iter(expected), "")
    by_anchor = {name[: -len(anchor)] for name in names if name.endswith(f".{anchor}")}
    return {"", *by_anchor, *(prefix for name in names for prefix in _leading(name))}


def _leading(name: str) -> Iterator[str]:
    """`module.`, `module.encoder.` of `module.encoder.conv1.weight`."""
    prefix = ""
    for part in name.split(".")[:-1]:
        if part not in _WRAPPERS:
            return
        prefix += f"{part}."
        yield prefix


def _preference(prefix: str) -> tuple[int, int, str]:
    parts = prefix.split(".")
    return min((i for i, word in enumerate(_PREFERRED) if word in parts), default=len(_PREFERRED)), len(prefix), prefix


def _with_shape(name: str, tensors: Mapping[str, Tensor]) -> str:
    return f"{name} {list(tensors[name].shape)}"


def _not_used(where: str, names: Sequence[str]) -> str:
    are = "tensor {} is" if len(names) == 1 else "tensors {} are"
    return f"{len(names):,} {are.format(where)} not used ({first(names)})" if names else ""
