"""What a head is and how it is trained: the specs, as plain values. Knows neither torch nor features.

A field that means nothing for a kind cannot be set for it: a spec never promises a dropout that nobody applies. A sweep
is a list of specs, made by `grid` from options with one or more values.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Self

from featcache.bounds import MOST_EPOCHS, MOST_ROWS, check_number, check_seed
from featcache.errors import InvalidParameter

TRAINED = ("linear", "mlp", "flatten-mlp")
SOLVED = ("logreg", "ridge", "knn")
KINDS = TRAINED + SOLVED

NORM_EPSILON = 1e-5  # of a batch norm, that of torch.nn.BatchNorm1d

_CHOICES = {
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
        kind: "linear", one affine map from d features to c classes: (d + 1) c parameters. "mlp", hidden layers before
            it. "flatten-mlp", the same on a flattened feature map. "logreg", L2-penalised logistic regression; "ridge",
            least squares on ±1; "knn", the vote of the nearest training rows by cosine: solved, not trained.
        hidden_sizes: units of each hidden layer.
        activation, norm, dropout: after each hidden layer, in the order norm, activation, dropout.
        output: "sigmoid" gives two classes one output instead of two; more classes have c in any case.
        optimizer: "adam" (weight decay as L2 in the gradient), "adamw" (decoupled), "sgd"; betas 0.9 and 0.999.
        lr: learning rate.
        weight_decay: weight decay of all parameters, as torch.optim applies it.
        momentum: momentum of sgd.
        label_smoothing: share of the target spread evenly over the classes.
        epochs: passes over the training rows.
        batch_size: rows per step, within half a batch; in k folds, on average over the folds.
        schedule: "constant"; "plateau", a tenth of the rate when the loss on rows kept aside has not improved for more
            than `lr_patience` epochs; "cosine", from lr to 0 over the epochs.
        lr_patience: epochs without improvement before "plateau" drops the rate.
        patience: epochs without a better loss on rows kept aside after which training ends, with the best weights
            taken; 0 trains all epochs and takes the last.
        class_weight: "balanced" weighs each class of the loss by n / (c n_class), as scikit-learn does.
        scale: what features are divided by: "rms", one number, the root mean square of the training rows; "standard",
            each feature's standard deviation after its mean was taken off; "none". Numbers of the vectors that are
            learnt from: with `augmentations` of all of them.
        seed: random seed of initial weights and dropout. The order of batches and the augmented copies drawn belong to
            the split.
        augmentations: draw, for each row and epoch, one vector uniformly from that of the image as it is and those of
            its augmented copies, and train on it.
        C: inverse penalty of logreg, as in scikit-learn.
        alpha: penalty of ridge, as in scikit-learn.
        n_neighbors: number of neighbors of knn.
    """

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
    def of(cls, kind: str, **overrides: Any) -> Self:
        """A spec with the defaults of its kind.

        Raises:
            ValueError: a value out of its range, or a field that does not apply to the kind.
        """
        _check_choice("kind", kind)
        if foreign := [name for name in overrides if name not in _APPLIES[kind]]:
            raise InvalidParameter(f"`{foreign[0]}` does not apply to {kind} heads.")
        return cls(kind, **overrides)

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind)
        plain = _plain(self.kind)
        self._take(plain)
        for name in _CHOICES:
            _check_choice(name, getattr(self, name))
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
        _check_choice("kind", kind)
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


def _check_choice(name: str, value: Any) -> None:
    if value not in _CHOICES[name]:
        raise InvalidParameter(f"`{name}` must be one of {', '.join(_CHOICES[name])}, got {value!r}.")
