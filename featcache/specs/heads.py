"""What a head is and how it is trained: the specs, as plain values. Knows neither torch nor features.

A field that means nothing for a kind cannot be set for it: a spec never promises a dropout that nobody applies. A sweep
is a list of specs, made by `grid` from options with one or more values.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, Self

from featcache.errors import InvalidParameter
from featcache.specs.bounds import MOST_EPOCHS, MOST_ROWS, check_choice, check_number, check_seed

TRAINED = ("linear", "mlp", "flatten-mlp")
SOLVED = ("logreg", "ridge", "knn")
KINDS = TRAINED + SOLVED

NORM_EPSILON = 1e-5  # of a batch norm, that of torch.nn.BatchNorm1d

CHOICES = {
    "kind": KINDS,
    "activation": ("relu", "sigmoid", "tanh", "gelu"),
    "norm": ("none", "batch"),
    "output": ("softmax", "sigmoid"),
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "plateau", "cosine"),
    "class_weight": ("none", "balanced"),
    "scale": ("rms", "none", "standard"),
}
_HIDDEN = {"hidden_sizes", "activation", "norm", "dropout"}
_TRAINING = {
    "optimizer", "lr", "weight_decay", "momentum", "label_smoothing", "epochs", "batch_size", "schedule", "lr_patience",
    "patience", "class_weight", "scale", "seed",
}  # fmt: skip
_APPLIES = {
    "linear": _TRAINING | {"augmentations"},
    "mlp": _TRAINING | _HIDDEN | {"augmentations"},
    "flatten-mlp": _TRAINING | _HIDDEN | {"output"},
    "logreg": {"C", "class_weight", "scale"},
    "ridge": {"alpha", "class_weight", "scale"},
    "knn": {"n_neighbors"},
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden_sizes": (256,), "norm": "batch", "dropout": 0.5, "lr": 0.001, "weight_decay": 0.0},
    "flatten-mlp": {
        "hidden_sizes": (256,),
        "dropout": 0.25,
        "output": "sigmoid",
        "lr": 0.0001,
        "weight_decay": 0.0,
        "schedule": "constant",
    },
}
_COMMON: dict[str, Any] = {  # of the kinds that have no other
    "hidden_sizes": (), "norm": "none", "dropout": 0.0, "output": "softmax", "lr": 0.003, "weight_decay": 0.03,
    "schedule": "cosine",
}  # fmt: skip
_MOST_LAYERS, _MOST_WEIGHTS = 64, 1 << 28  # a GiB in float32, four with what Adam keeps
_COUNTS = (
    ("epochs", 1, MOST_EPOCHS),
    ("batch_size", 1, MOST_ROWS),
    ("lr_patience", 1, MOST_EPOCHS),
    ("patience", 0, MOST_EPOCHS),
    ("n_neighbors", 1, MOST_ROWS),
)
_ONLY_WITH = {"momentum": ("optimizer", "sgd"), "lr_patience": ("schedule", "plateau")}
# What a solved head tries when nobody says what: one decomposition or search serves all of them.
PATHS: dict[str, dict[str, tuple[Any, ...]]] = {
    "logreg": {"C": (0.0001, 0.001, 0.01, 0.1, 1.0)},
    "ridge": {"alpha": tuple(10.0**i for i in range(-1, 7))},
    "knn": {"n_neighbors": (1, 5, 11, 21, 51)},
}


class _OfKind:
    """A value that was not given: it becomes the default of the spec's kind."""

    def __repr__(self) -> str:
        return "<that of the kind>"


_OF_KIND: Any = _OfKind()


@dataclass(frozen=True)
class HeadSpec:
    """One head and its training. `HeadSpec()` is a linear probe: Adam, cross entropy, learning rate 0.003, 40 epochs,
    batches of 32. What is not given is the default of the kind: `HeadSpec("mlp")` has 256 hidden units.

    A few thousand images of 1,280 features are linearly separable: without a penalty a head grows surer with every
    epoch, and what its last batch did to it stays. So weights decay, and the rate ends at nothing. On X-rays of another
    distribution than the training ones the decay was worth 0.005 of AUROC and 0.02 of accuracy (benchmarks/README.md).

    Attributes:
        kind: Kind of head. "linear" is one affine map from d features to c classes with (d + 1) c parameters; "mlp" has
            hidden layers before it, "flatten-mlp" the same on the flattened feature map; "logreg" is L2-penalised
            logistic regression, "ridge" least squares on ±1, "knn" the vote of the nearest training rows by cosine:
            these three are solved, not trained.
        hidden_sizes: Number of units of each hidden layer, as in 256 or 512,256.
        activation: Activation of the hidden layers.
        norm: Normalisation before the activation.
        dropout: Dropout after the activation.
        output: Output of two classes. "sigmoid" has one output instead of two; more classes have c in any case.
        optimizer: Optimizer. "adam" has weight decay as L2 in the gradient, "adamw" decoupled; betas are 0.9 and 0.999.
        lr: Learning rate.
        weight_decay: Weight decay of all parameters. As torch.optim applies it.
        momentum: Momentum (SGD only).
        label_smoothing: Share of the target that is spread evenly over the classes.
        epochs: Number of passes over the training rows.
        batch_size: Number of rows per step. Batches differ from it by at most a half; in k folds, on average over the
            folds.
        schedule: Learning-rate schedule. "plateau" divides the rate by ten when the loss on early-stopping rows has not
            improved for more than `lr_patience` epochs; "cosine" lowers it to 0 over the epochs.
        lr_patience: Epochs without a better loss before the learning rate drops (plateau only).
        patience: Epochs without a better loss on the early-stopping rows before training stops; 0 disables early
            stopping. The best weights are kept; without early stopping the last.
        class_weight: Weight of each class in the loss. "balanced" is n / (c n_class), as in scikit-learn.
        scale: Scaling of the features. "rms" is the root
            mean square of the training rows; "standard" subtracts a feature's mean and divides by its standard
            deviation. With `augmentations` they are computed from all stored vectors of the training rows.
        seed: Seed of the initial weights and of dropout. The order of the batches, and which augmented copies are
            drawn, follow from the seed of the split.
        augmentations: Train on the stored augmented copies, drawn anew in each epoch. For each row and epoch one vector
            is drawn uniformly from that of the image and those of its copies.
        C: Inverse strength of the L2 penalty (logreg only). As in scikit-learn.
        alpha: Strength of the L2 penalty (ridge only). As in scikit-learn.
        n_neighbors: Number of neighbours that vote (knn only).
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = CHOICES

    kind: str = "linear"
    hidden_sizes: tuple[int, ...] = _OF_KIND
    activation: str = "relu"
    norm: str = _OF_KIND
    dropout: float = _OF_KIND
    output: str = _OF_KIND
    optimizer: str = "adam"
    lr: float = _OF_KIND
    weight_decay: float = _OF_KIND
    momentum: float = 0.9
    label_smoothing: float = 0.0
    epochs: int = 40
    batch_size: int = 32
    schedule: str = _OF_KIND
    lr_patience: int = 10
    patience: int = 0
    class_weight: str = "none"
    scale: str = "rms"
    seed: int = 0
    augmentations: bool = False
    C: float = 1.0
    alpha: float = 1.0
    n_neighbors: int = 5

    @classmethod
    def defaults(cls, field: str) -> dict[str, Any]:
        """The default of a field for each kind of head that has the field; of solved heads the values of a sweep."""
        if field == "kind":
            return {"linear": "linear"}
        used = {kind: cls(kind).used() for kind in KINDS}
        return {kind: PATHS.get(kind, {}).get(field, values[field]) for kind, values in used.items() if field in values}

    @classmethod
    def of(cls, kind: str, **overrides: Any) -> Self:
        """A spec with the defaults of its kind.

        Raises:
            ValueError: a value out of its range, or a field that does not apply to the kind.
        """
        check_choice("kind", kind, KINDS)
        if foreign := [name for name in overrides if name not in _APPLIES[kind]]:
            raise InvalidParameter(f"`{foreign[0]}` does not apply to {kind} heads.")
        return cls(kind, **overrides)

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        plain = _plain(self.kind)
        self._take(plain)
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, most in (("lr", 1000), ("C", 1e12), ("alpha", 1e12)):
            check_number(name, getattr(self, name), 0, most, above=True)
        for name in ("dropout", "label_smoothing", "momentum"):
            check_number(name, getattr(self, name), 0, 1, below=True)
        check_number("weight_decay", self.weight_decay, 0, 1000)
        for name, low, high in _COUNTS:
            check_number(name, getattr(self, name), low, high, whole=True)
        check_seed("seed", self.seed)
        if not isinstance(self.augmentations, bool):
            raise InvalidParameter(f"`augmentations` must be true or false, got {self.augmentations!r}.")
        self._check_widths()
        if self.kind.endswith("mlp") and not self.hidden_sizes:
            raise InvalidParameter(f"{self.kind} needs `hidden_sizes`, as in hidden_sizes=(256,).")
        for name in plain:
            if name not in _APPLIES[self.kind] and getattr(self, name) != plain[name]:
                raise InvalidParameter(f"`{name}` does not apply to {self.kind} heads.")

    def _take(self, defaults: Mapping[str, Any]) -> None:
        """Gives the fields that were not given their defaults."""
        for name, value in defaults.items():
            if getattr(self, name) is _OF_KIND:
                object.__setattr__(self, name, value)

    def _check_widths(self) -> None:
        for width in self.hidden_sizes:
            check_number("hidden_sizes", width, 1, 65536, whole=True)
        n_weights = sum(a * b for a, b in pairwise(self.hidden_sizes))
        if n_weights > _MOST_WEIGHTS or len(self.hidden_sizes) > _MOST_LAYERS:
            raise InvalidParameter(
                f"`hidden_sizes` must be at most {_MOST_LAYERS} layers, with at most {_MOST_WEIGHTS:,} weights between "
                f"them, got {len(self.hidden_sizes)} and {n_weights:,}."
            )

    @property
    def is_trained(self) -> bool:
        """By gradient descent, epoch after epoch; otherwise solved at once."""
        return self.kind in TRAINED

    @property
    def needs_watch(self) -> bool:
        """Whether some training rows have to be kept aside to end the training or to lower its rate."""
        return self.patience > 0 or self.schedule == "plateau"

    def used(self) -> dict[str, Any]:
        """The fields that apply to this kind, `kind` first."""
        return {name: value for name, value in asdict(self).items() if name == "kind" or name in _APPLIES[self.kind]}


def grid(kinds: Sequence[str], options: Mapping[str, Sequence[Any]]) -> list[HeadSpec]:
    """All combinations of the options' values, for each kind those that apply to it; what is not given is the kind's
    default, for solved kinds their path. The order is that of the options, the last changing fastest.

    Raises:
        ValueError: a value out of its range, or an option that applies to none of the kinds.
    """
    options = {name: values for name, values in options.items() if values}
    for kind in kinds:
        check_choice("kind", kind, KINDS)
    for name in options:
        if not any(name in _APPLIES[kind] for kind in kinds):
            raise InvalidParameter(f"`{name}` does not apply to {' or '.join(kinds)} heads.")
    for name, (other, value) in _ONLY_WITH.items():
        if name in options and value not in options.get(other, ()):
            raise InvalidParameter(f"`{name}` is for `{other}`={value}.")
    specs: list[HeadSpec] = []
    for kind in dict.fromkeys(kinds):
        chosen = {name: values for name, values in options.items() if name in _APPLIES[kind]}
        chosen = {**{name: path for name, path in PATHS.get(kind, {}).items() if name not in chosen}, **chosen}
        combined = itertools.product(*chosen.values())
        specs += [HeadSpec.of(kind, **busy(dict(zip(chosen, values, strict=True)))) for values in combined]
    return list(dict.fromkeys(specs))


def busy(values: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that do nothing beside the others: two specs that train alike are one."""
    idle = {name for name, (other, value) in _ONLY_WITH.items() if values.get(other) != value}
    return {name: value for name, value in values.items() if name not in idle}


def varied(specs: Sequence[HeadSpec]) -> list[str]:
    """The fields in which those specs differ that have them, in the order of `HeadSpec`."""
    used = [spec.used() for spec in specs]
    return [
        f.name
        for f in fields(HeadSpec)
        if len({fields_used[f.name] for fields_used in used if f.name in fields_used}) > 1
    ]


def _plain(kind: str) -> dict[str, Any]:
    """The values that fields have when nobody sets them."""
    own = {f.name: f.default for f in fields(HeadSpec) if f.name != "kind"}
    return {**own, **_COMMON, **_DEFAULTS.get(kind, {})}
