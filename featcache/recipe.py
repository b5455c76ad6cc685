"""How a network is trained on pixels, as plain values: what learns for how long, how fast, on which augmented images.

Knows neither torch nor images, so that the command line has its defaults without them.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from featcache.bounds import MOST_EPOCHS, check_number, check_seed
from featcache.errors import InvalidParameter

_MOST_IMAGES = 1 << 16  # of a step
_CHOICES = {
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("plateau", "constant", "cosine"),
    "class_weight": ("none", "balanced"),
    "freeze_bn": ("auto", "yes", "no"),
    "precision": ("float32", "tf32", "float16", "bfloat16"),
    "select": ("auroc", "loss", "accuracy", "balanced_accuracy", "f1", "auprc"),
}


@dataclass(frozen=True)
class AugmentSpec:
    """How an image is shown differently in each epoch of a training: turned, in other light, mirrored, in part.

    Attributes:
        rotation: degrees, 0 to 180; the angle is uniform from -rotation to rotation.
        color_jitter: 0 to 0.9; the factors of brightness, contrast and saturation are uniform from 1 - color_jitter
            to 1 + color_jitter.
        hflip: the probability that an image is mirrored, left to right.
        scale: the smallest share of the image's area that is shown, 0.01 to 1; the share is uniform from scale to 1,
            its place in the image as well. 1 shows the centre, as the transform does.
    """

    rotation: float = 25.0
    color_jitter: float = 0.2
    hflip: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name, low, high in (("rotation", 0, 180), ("color_jitter", 0, 0.9), ("hflip", 0, 1), ("scale", 0.01, 1)):
            check_number(name, getattr(self, name), low, high)


@dataclass(frozen=True)
class Stage:
    """A stretch of training in which the same parameters learn.

    Attributes:
        unfreeze: "last-block", "last-stage", a number of blocks from the end, "all", or a REGEX of parameter names.
        epochs: passes over the training rows.
    """

    unfreeze: str = "last-block"
    epochs: int = 10

    def __post_init__(self) -> None:
        if not self.unfreeze:
            raise InvalidParameter(
                "`unfreeze` must name what learns: last-block, last-stage, a number, all or a REGEX."
            )
        check_number("epochs", self.epochs, 1, MOST_EPOCHS, whole=True)


@dataclass(frozen=True)
class Recipe:
    """A training on pixels.

    Attributes:
        stages: one after another, each from where the one before ended: progressive unfreezing.
        optimizer: "adam" (weight decay as L2 in the gradient), "adamw" (decoupled) or "sgd"; betas 0.9 and 0.999.
        lr: learning rate of the head.
        backbone_lr: that of what learns of the backbone; None for a tenth of `lr`: pretrained layers need small steps.
        weight_decay: weight decay of all trained parameters, as torch.optim applies it.
        momentum: momentum of sgd.
        schedule: "plateau", a tenth of the rates when the loss on validation rows has not improved for more than
            `lr_patience` epochs; "constant"; "cosine", to 0 over each stage.
        lr_patience: epochs without improvement before "plateau" drops the rates.
        patience: epochs without a better validation loss after which a stage ends; 0 trains all.
        class_weight: "balanced" weighs each class of the loss by n / (c n_class), as scikit-learn does.
        label_smoothing: share of the target spread evenly over the classes.
        dropout: dropout rate of the head's hidden layers; None for that of the head.
        freeze_bn: whether batch norms of the trained part keep their weights and statistics: "no" trains their weights
            with the statistics of each batch; "yes" keeps them; "auto" freezes those of loaded weights that hold no
            statistics (mean 0 and variance 1 throughout, as where norms were folded into the convolutions before
            them), because the statistics of a batch would make another network of it.
        batch_size: images per step, within half a batch; of all processes together.
        grad_accumulation: pieces in which a batch goes through the network, for less memory: gradients are added up,
            and norms that learn see a piece at a time.
        augment: augmentation of training images; None trains on them as they are.
        precision: precision of training; "float16" and "bfloat16" are torch's autocast, weights stay float32.
        select: the validation metric by which the best weights are kept; those of the start are among them.
        seed: random seed of the order of images, of augmentation, dropout and a new head.
    """

    stages: tuple[Stage, ...] = (Stage(),)
    optimizer: str = "adam"
    lr: float = 0.001
    backbone_lr: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "plateau"
    lr_patience: int = 3
    patience: int = 0
    class_weight: str = "balanced"
    label_smoothing: float = 0.0
    dropout: float | None = None
    freeze_bn: str = "auto"
    batch_size: int = 32
    grad_accumulation: int = 1
    augment: AugmentSpec | None = field(default_factory=AugmentSpec)
    precision: str = "float32"
    select: str = "auroc"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InvalidParameter(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if not self.stages:
            raise InvalidParameter("a recipe needs a stage: what learns, and for how many epochs.")
        check_number("lr", self.lr, 0, 1000, above=True)
        check_number("weight_decay", self.weight_decay, 0, 1000)
        if self.backbone_lr is not None:
            check_number("backbone_lr", self.backbone_lr, 0, 1000, above=True)
        check_number("momentum", self.momentum, 0, 1, below=True)
        check_number("label_smoothing", self.label_smoothing, 0, 1, below=True)
        if self.dropout is not None:
            check_number("dropout", self.dropout, 0, 1, below=True)
        check_number("lr_patience", self.lr_patience, 1, MOST_EPOCHS, whole=True)
        check_number("patience", self.patience, 0, MOST_EPOCHS, whole=True)
        check_number("batch_size", self.batch_size, 1, _MOST_IMAGES, whole=True, why="images in memory at once")
        check_number("grad_accumulation", self.grad_accumulation, 1, _MOST_IMAGES, whole=True)
        if self.grad_accumulation > self.batch_size:
            raise InvalidParameter(
                f"`grad_accumulation` must be at most `batch_size`, got {self.grad_accumulation} of {self.batch_size}."
            )
        check_seed("seed", self.seed)
        check_number("epochs", self.epochs, 1, MOST_EPOCHS, whole=True, why="of all stages")

    @property
    def rates(self) -> tuple[float, float]:
        """(of the head, of the backbone)."""
        return self.lr, self.lr / 10 if self.backbone_lr is None else self.backbone_lr

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)


# Recipes that were published with the projects featcache was first built for; where they say nothing, our default.
PRESETS: dict[str, Recipe] = {
    # Indiana chest X-rays: 15 epochs of an MLP on frozen features, then 25 of MLP and last block together. Adam 0.001,
    # weighted cross entropy, reduction on plateau, augmentation.
    "cnn-mlp": Recipe(stages=(Stage("last-block", 25),), lr=0.001, backbone_lr=0.001, dropout=0.5, lr_patience=10),
    # Kermany's pneumonia images: a pretrained ResNet18, everything unfrozen. Adam 0.0001, batches of 32, 5 epochs.
    "pneumonia-pretrained": Recipe(
        stages=(Stage("all", 5),), lr=0.0001, backbone_lr=0.0001, schedule="constant", class_weight="none"
    ),
    # The same from random weights: Adam 0.001, weight decay 0.0001.
    "pneumonia-scratch": Recipe(
        stages=(Stage("all", 5),),
        lr=0.001,
        backbone_lr=0.001,
        weight_decay=0.0001,
        schedule="constant",
        class_weight="none",
    ),
}


def recipe(
    preset: str | None = None, stages: tuple[Stage, ...] = (), base: Recipe | None = None, **overrides: Any
) -> Recipe:
    """A preset, or `base`, or the defaults, with what was given in its place.

    Raises:
        ValueError: no such preset, or a value out of its range.
    """
    if preset is not None and preset not in PRESETS:
        raise InvalidParameter(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}.")
    result = replace(PRESETS[preset] if preset else base or Recipe(), **overrides)
    return replace(result, stages=stages) if stages else result
