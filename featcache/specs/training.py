"""How a network is trained on pixels, as plain values: what learns for how long, how fast, on which augmented images.

Knows neither torch nor images, so that the command line has its defaults without them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from featcache.errors import InvalidParameter
from featcache.specs.augmentation import AugmentationSpec
from featcache.specs.bounds import MOST_EPOCHS, check_choice, check_number, check_seed

_MOST_IMAGES = 1 << 16  # of a step
CHOICES = {
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("plateau", "constant", "cosine"),
    "class_weight": ("none", "balanced"),
    "freeze_bn": ("auto", "yes", "no"),
    "precision": ("float32", "tf32", "float16", "bfloat16"),
    "select": ("auroc", "f1", "balanced_accuracy", "accuracy", "auprc", "loss"),
}
SELECT = CHOICES["select"]


@dataclass(frozen=True)
class Stage:
    """A stretch of training in which the same parameters learn.

    Attributes:
        unfreeze: Part of the backbone to train: last-block, last-stage, the number of blocks from the end, all, or a
            REGEX of parameter names.
        epochs: Number of passes over the training rows.
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
        stages: Stages of the training, each from where the one before ended: progressive unfreezing.
        optimizer: Optimizer. "adam" has weight decay as L2 in the gradient, "adamw" decoupled; betas are 0.9 and 0.999.
        lr: Learning rate of the head.
        backbone_lr: Learning rate of the backbone. None is a tenth of `lr`: pretrained layers need small steps.
        weight_decay: Weight decay of all trained parameters. As torch.optim applies it.
        momentum: Momentum (SGD only).
        schedule: Learning-rate schedule. "plateau" divides the rates by ten when the validation loss has not improved
            for more than `lr_patience` epochs; "cosine" lowers them to 0 over each stage.
        lr_patience: Epochs without a better validation loss before the learning rate drops (plateau only).
        patience: Epochs without a better validation loss before a stage stops early; 0 disables early stopping.
        class_weight: Weight of each class in the loss. "balanced" is n / (c n_class), as in scikit-learn.
        label_smoothing: Share of the target that is spread evenly over the classes.
        dropout: Dropout of the head's hidden layers. None keeps that of the head.
        freeze_bn: Whether batch norms of the trained part keep their weights and statistics. "no" trains their weights
            with the statistics of each batch; "yes" keeps them; "auto" freezes those of loaded weights that hold no
            statistics (mean 0 and variance 1 throughout, as where norms were folded into the convolutions before them),
            because the statistics of a batch would make another network of it.
        batch_size: Number of images per step, over all processes. Batches differ from it by at most a half.
        grad_accumulation: Number of parts in which a batch passes through the network, to save memory. Gradients are
            added up, and batch norms that are trained see one part at a time.
        augment: Augmentation of training images. None trains on the images as they are.
        precision: Precision of the trained part. "float16" and "bfloat16" are torch's autocast, weights stay float32;
            "tf32" and "float16" need a GPU.
        select: Validation metric that selects the epoch whose weights are kept. The weights of the start take part.
        seed: Seed of the order of images, augmentation, dropout and a new head.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = CHOICES

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
    augment: AugmentationSpec | None = field(default_factory=AugmentationSpec)
    precision: str = "float32"
    select: str = "auroc"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
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


SCRATCH = Recipe(stages=(Stage("all", 10),), backbone_lr=0.001)  # the default of `train`: everything, at one rate

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


@dataclass(frozen=True)
class SelectionSpec:
    """How the best head is selected, on which rows it is trained in the end, and which baselines are computed.

    Attributes:
        select: Validation metric that ranks the heads.
        refit_all: Train the selected head again on training and validation rows. Cross-validation always does.
        operating_point: Rule for the decision threshold of two classes: youden, f1, sensitivity=S or specificity=S.
        n_permutations: Number of trainings on shuffled labels, as a baseline.
        compare: Stores of the same images with other backbones, as baselines.
        tta: Test-time augmentation: scores are those of the mean logits of an image and its augmented copies. For the
            sake of one measure this holds for all subsets and for the curves.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"select": SELECT}

    select: str = "auroc"
    refit_all: bool = False
    operating_point: str | None = None
    n_permutations: int = 0
    compare: tuple[Path, ...] = field(default=())
    tta: bool = False

    def __post_init__(self) -> None:
        check_choice("select", self.select, SELECT)
        check_number("n_permutations", self.n_permutations, 0, 1000, whole=True)
