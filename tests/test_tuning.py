"""The loop of a training on pixels: it is torch's own, it can be stopped anywhere, and what is frozen does not move."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

from featcache import backbones
from featcache.errors import UsageError
from featcache.finetune import unfreeze
from featcache.finetune.checkpoints import Checkpoints
from featcache.finetune.distributed import Session
from featcache.finetune.inputs import ImageInputs, Pixels, StoreInputs, StoreSource
from featcache.finetune.loop import Subsets, Trainer
from featcache.finetune.start import Start
from featcache.heads.mlp import tensors_of
from featcache.heads.optim import Targets
from featcache.manifest import Manifest
from featcache.runs import Run
from featcache.specs import BackboneSpec, DecodeSpec, Recipe, Stage
from featcache.store import Store

LAST, EARLIER = Stage("last-block", 2), Stage(r"blocks\.3\.0\.conv_dw", 2)
OF_LAST = ("blocks.4.", "conv_head.", "bn2.")
CONVOLUTIONS = r"blocks\.4.*conv|conv_head"
Score = Callable[[np.ndarray, np.ndarray], float]
Point = Mapping[str, float]


def recipe(*stages: Stage, **given: Any) -> Recipe:
    """Quick to learn, and nothing augmented."""
    return Recipe(**{"stages": stages or (LAST,), "batch_size": 8, "lr": 0.01, "augment": None, **given})


class Bench:
    """The images and the store of `phase_one`, opened for as many trainings as there are."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self.folder, self._files = folder, files
        self.manifest = Manifest.read(folder / "images")
        self.store = files.enter_context(Store.open(folder / "tail.h5"))

    def tuner(
        self,
        how: Recipe,
        parent: str = "linear",
        *,
        images: bool = False,
        score: Score | None = None,
        fold: int | None = 0,
    ) -> tuple[Trainer, Start]:
        """A network and a head as the Run left them, about to learn on a fold, or on all rows of the folds. The score
        is minus the loss."""
        start = Start.of_run(Run.open(self.folder / parent), str(self.folder / "net.safetensors"), "cpu")
        task = start.task
        targets = Targets(task.labels[None], len(task.classes), task.positive)
        sides = Subsets(start.protocol.rows, np.array([], dtype=np.int64))
        if fold is not None:
            sides = Subsets(start.protocol.folds[fold].train, start.protocol.folds[fold].val)

        def by_loss(rows: np.ndarray, logits: np.ndarray) -> float:
            return -float(functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(task.labels[rows])))

        inputs = self._of_images(start, how) if images else self._of_store(start)
        head = start.head_module(start.tensors if fold is None else start.fold_tensors[fold], how.dropout)
        made = Trainer(start.backbone, head, how, targets, sides, inputs.open, score or by_loss, Session(compile="off"))
        return made, start

    def _of_store(self, start: Start) -> StoreInputs:
        rows = [self.store.image_ids.index(name) for name in start.task.image_ids]
        return StoreInputs(start.backbone, self.store, StoreSource(self.store, rows, 0, False, 1 << 30))

    def _of_images(self, start: Start, how: Recipe) -> ImageInputs:
        names = start.task.image_ids
        paths = [self.manifest.paths[self.manifest.image_ids.index(name)] for name in names]
        pixels = self._files.enter_context(Pixels(paths, start.backbone.transform, start.decode, memory_bytes=1 << 30))
        pixels.read(range(len(paths)))
        inputs = ImageInputs(start.backbone, pixels, how, len(paths), Session(compile="off"))
        return self._files.enter_context(inputs)


@pytest.fixture
def bench(phase_one: Path) -> Iterator[Bench]:
    with ExitStack() as files:
        yield Bench(phase_one, files)


def test_a_network_that_cannot_be_divided_says_that_all_of_it_runs(bench: Bench) -> None:
    how = recipe()
    note = "torch.fx cannot trace this network, so its frozen part runs together with the trained part."
    for name, expected in (("test_vit", [note]), ("test_resnet", [])):
        backbone, notes = backbones.load(BackboneSpec(name, "random:0")), list[str]()
        pixels = Pixels(bench.manifest.paths[:1], backbone.transform, DecodeSpec(), memory_bytes=1 << 30)
        session = Session(compile="off", on_note=notes.append)
        with pixels, ImageInputs(backbone, pixels, how, 1, session) as inputs:
            with inputs.open(unfreeze.unfrozen(backbone.module, "last-block")):
                pass
            assert notes == expected


@contextmanager
def checkpoints(path: Path) -> Iterator[Checkpoints]:
    kept = Checkpoints(path)
    with kept.locked({}):
        yield kept


def run(tuner: Trainer, path: Path, on_epoch: Callable[[int, int, Point], None] = lambda *_: None) -> Trainer:
    with checkpoints(path) as kept:
        tuner.run(kept, "fold-0", on_epoch)
    return tuner


def weights(tuner: Trainer, start: Start) -> dict[str, torch.Tensor]:
    return {**start.backbone.module.state_dict(), **{f"head.{k}": t for k, t in tuner.head.state_dict().items()}}


def moved(bench: Bench, start: Start) -> set[str]:
    """Names of the tensors of the network that are no longer those of phase 1."""
    before = load_file(bench.folder / "net.safetensors")
    state = start.backbone.module.state_dict()
    assert before.keys() == state.keys()
    return {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}


def losses(history: list[dict[str, float]]) -> np.ndarray:
    return np.array([[point[name] for name in ("train_loss", "val_loss")] for point in history])


# --- against torch ----------------------------------------------------------------------------------------------------


def plain_loop(bench: Bench, how: Recipe, parent: str) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """The same training as anybody would write it: (epochs, 2) losses, and the head and the network in the end."""
    _, start = bench.tuner(how, parent)
    net, head = start.backbone.module, plain_head(start)
    x, y = all_pixels(bench, start), torch.from_numpy(start.task.labels)
    fold, rms = start.protocol.folds[0], start.feature_rms
    weight = torch.ones(2)
    if how.class_weight == "balanced":
        balanced = compute_class_weight("balanced", classes=np.arange(2), y=y[fold.train].numpy())
        weight = torch.from_numpy(balanced).float()
    found, epoch = [], 0
    for stage in how.stages:
        names = set(unfreeze.unfrozen(net, stage.unfreeze))
        owners = {name.rpartition(".")[0] for name in names}
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name in names)
        learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
        groups = [{"params": learning, "lr": how.rates[1]}, {"params": head.parameters(), "lr": how.rates[0]}]
        optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, weight_decay=how.weight_decay)
        if how.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, weight_decay=how.weight_decay, momentum=how.momentum)
        for _ in range(stage.epochs):
            epoch += 1
            said = []
            for batch in batches(fold.train, how, epoch):
                for name, module in net.named_modules():
                    module.training = name in owners
                head.train()
                z = head(net(x[batch]) / rms)
                loss = functional.cross_entropy(z, y[batch], weight, label_smoothing=how.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                said.append((z.detach(), y[batch]))
            net.eval()
            head.eval()
            with torch.no_grad():
                held = functional.cross_entropy(head(net(x[fold.val]) / rms), y[fold.val])
            seen = functional.cross_entropy(torch.cat([z for z, _ in said]), torch.cat([y for _, y in said]))
            found.append([float(seen), float(held)])
    return np.array(found), {**net.state_dict(), **{f"head.{k}": t for k, t in head.state_dict().items()}}


def batches(train: np.ndarray, how: Recipe, epoch: int) -> list[np.ndarray]:
    order = np.random.default_rng((how.seed, epoch)).permutation(len(train))
    return np.array_split(train[order], math.ceil(len(train) / how.batch_size))


def plain_head(start: Start) -> nn.Module:
    """torch's own layers with the Run's weights, for features that were divided by their root mean square. A bias
    before a batch norm stays: it has no effect, and a gradient of rounding errors."""
    tensors = {name: torch.from_numpy(array).clone() for name, array in start.tensors.items()}
    first = "hidden.0.weight" if start.head.hidden_sizes else "weight"
    tensors[first] *= start.feature_rms
    layers: list[nn.Module] = []
    for i, width in enumerate(start.head.hidden_sizes):
        affine = linear(tensors[f"hidden.{i}.weight"], tensors[f"hidden.{i}.bias"])
        affine.bias.requires_grad_(False)
        norm = nn.BatchNorm1d(width)
        kept = {name.rpartition(".")[2]: t for name, t in tensors.items() if name.startswith(f"hidden.{i}.norm.")}
        norm.load_state_dict({"num_batches_tracked": torch.tensor(0), **kept})
        layers += [affine, norm, nn.ReLU()]
    return nn.Sequential(*layers, linear(tensors["weight"], tensors["bias"]))


def linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def all_pixels(bench: Bench, start: Start) -> torch.Tensor:
    """(n, 3, h, w) float32: every image opened, resized, cropped and normalised by hand."""
    transform, found = start.backbone.transform, []
    for name in start.task.image_ids:
        image = Image.open(bench.manifest.paths[bench.manifest.image_ids.index(name)])
        found.append(np.asarray(transform(image.convert("RGB"))))
    x = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transform.mean, transform.std))
    return (x - mean) / std


@pytest.mark.parametrize(
    ("parent", "how"),
    [
        ("uneven", recipe(lr=0.001)),
        ("mlp", recipe(Stage("all", 2), lr=0.001, dropout=0.0, label_smoothing=0.1)),
        ("linear", recipe(EARLIER, LAST, lr=0.001, weight_decay=0.01, class_weight="none", schedule="constant")),
        ("mlp", recipe(Stage(CONVOLUTIONS, 3), lr=0.001, dropout=0.0, batch_size=5, seed=3)),
    ],
)
def test_losses_are_those_of_a_plain_loop_in_torch(bench: Bench, tmp_path: Path, parent: str, how: Recipe) -> None:
    tuner, _ = bench.tuner(how, parent, images=True)
    wanted, _ = plain_loop(bench, how, parent)
    np.testing.assert_allclose(losses(run(tuner, tmp_path / "run").history), wanted, rtol=1e-5, atol=1e-5)


def test_weights_are_those_of_a_plain_loop_in_torch(bench: Bench, tmp_path: Path) -> None:
    """By SGD: Adam divides by gradients, and makes of a rounding error a step of full size."""
    how = recipe(Stage("last-block", 3), optimizer="sgd", backbone_lr=0.01, schedule="constant", label_smoothing=0.1)
    tuner, start = bench.tuner(how, "uneven", images=True, score=rising())
    run(tuner, tmp_path / "run")
    _, wanted = plain_loop(bench, how, "uneven")
    found = weights(tuner, start)
    assert tuner.best_epoch == 3
    assert "conv_head.weight" in moved(bench, start)
    for name in found.keys() & wanted.keys():
        np.testing.assert_allclose(found[name].numpy(), wanted[name].numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


# --- what learns and what does not ------------------------------------------------------------------------------------


def rising() -> Score:
    """Every evaluation is better than the one before it."""
    number = iter(range(1_000_000))
    return lambda rows, logits: float(next(number))


def falling() -> Score:
    number = iter(range(1_000_000))
    return lambda rows, logits: -float(next(number))


def best_at(evaluation: int) -> Score:
    """The start is evaluation 0, the state after epoch n evaluation n."""
    number = iter(range(1_000_000))
    return lambda rows, logits: -abs(next(number) - evaluation)


@pytest.mark.parametrize("images", [True, False])
def test_nothing_moves_but_what_learns(bench: Bench, tmp_path: Path, images: bool) -> None:
    """FreezeBn of the part that learns move with their statistics, all others by no bit."""
    tuner, start = bench.tuner(recipe(), images=images, score=rising())
    run(tuner, tmp_path / "run")
    state = start.backbone.module.state_dict()
    assert moved(bench, start) == {name for name in state if name.startswith(OF_LAST)}
    assert tuner.best_epoch == 2


def test_convolutions_learn_while_the_norms_between_them_stay(bench: Bench, tmp_path: Path) -> None:
    tuner, start = bench.tuner(recipe(Stage(CONVOLUTIONS, 1)), score=rising())
    run(tuner, tmp_path / "run")
    learning = {name for name, _ in start.backbone.module.named_parameters() if re.search(CONVOLUTIONS, name)}
    assert moved(bench, start) == learning
    assert len(learning) == 8


def test_frozen_norms_do_not_move_while_all_else_of_the_block_learns(bench: Bench, tmp_path: Path) -> None:
    tuner, start = bench.tuner(recipe(freeze_bn="yes"), score=rising())
    run(tuner, tmp_path / "run")
    norms = {name for name, part in start.backbone.module.named_modules() if isinstance(part, nn.BatchNorm2d)}
    parameters = [name for name, _ in start.backbone.module.named_parameters() if name.startswith(OF_LAST)]
    assert moved(bench, start) == {name for name in parameters if name.rpartition(".")[0] not in norms}
    assert tuner.n_trainable[0] == sum(
        start.backbone.module.get_parameter(name).numel() for name in moved(bench, start)
    )


def test_a_second_stage_elsewhere_keeps_what_the_first_has_learnt(bench: Bench, tmp_path: Path) -> None:
    first, start = bench.tuner(recipe(LAST), images=True, score=rising())
    run(first, tmp_path / "one")
    of_last = {k: t.clone() for k, t in start.backbone.module.state_dict().items() if k.startswith(OF_LAST)}
    both, start = bench.tuner(recipe(LAST, EARLIER), images=True, score=rising())
    run(both, tmp_path / "both")
    assert losses(both.history)[:2].tolist() == losses(first.history).tolist()
    assert moved(bench, start) == {*of_last, "blocks.3.0.conv_dw.weight"}
    state = start.backbone.module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in of_last.items())
    assert [point["stage"] for point in both.history] == [1, 1, 2, 2]
    assert [point["epoch"] for point in both.history] == [1, 2, 3, 4]


@pytest.mark.parametrize("stages", [(LAST, EARLIER), (EARLIER, LAST)])
@pytest.mark.parametrize("kept", [0, 2, 3])
def test_the_weights_that_are_kept_are_all_of_one_epoch(
    bench: Bench, tmp_path: Path, kept: int, stages: tuple[Stage, Stage]
) -> None:
    """Also where a later stage has moved what the best epoch had not touched yet, or has left alone what it had."""
    tuner, start = bench.tuner(recipe(*stages), images=True, score=best_at(kept))
    run(tuner, tmp_path / "run")
    assert tuner.best_epoch == kept
    found = weights(tuner, start)

    def stop(done: int, total: int, point: Point) -> None:
        if done == kept:
            raise KeyboardInterrupt

    other, start = bench.tuner(recipe(*stages), images=True, score=rising())
    if kept:
        with pytest.raises(KeyboardInterrupt):
            run(other, tmp_path / "stopped", stop)
    for name, tensor in weights(other, start).items():
        assert torch.equal(tensor, found[name]), name


def test_a_start_that_stays_the_best_comes_back_bit_for_bit(bench: Bench, tmp_path: Path) -> None:
    tuner, start = bench.tuner(recipe(lr=1.0), score=falling())
    before = {name: tensor.clone() for name, tensor in weights(tuner, start).items()}
    run(tuner, tmp_path / "run")
    assert tuner.best_epoch == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tuner, start).items())


def test_of_equal_epochs_the_first_is_kept(bench: Bench, tmp_path: Path) -> None:
    tuner, start = bench.tuner(recipe(), score=lambda rows, logits: 0.5)
    assert run(tuner, tmp_path / "run").best_epoch == 0
    assert moved(bench, start) == set()


def test_the_logits_before_and_after_are_those_of_what_is_kept(bench: Bench, tmp_path: Path) -> None:
    tuner, start = bench.tuner(recipe(), score=best_at(1))
    held = start.protocol.folds[0].val
    before = tuner.logits(held)
    run(tuner, tmp_path / "run")
    after = tuner.logits(held)
    targets = start.task.labels[held]
    loss = float(functional.cross_entropy(torch.from_numpy(after), torch.from_numpy(targets)))
    assert loss == pytest.approx(tuner.history[0]["val_loss"], abs=1e-6)
    features = bench.store.rows("pooled", [bench.store.image_ids.index(start.task.image_ids[i]) for i in held])
    np.testing.assert_allclose(before, Run.open(bench.folder / "linear").logits(features), atol=1e-5)
    np.testing.assert_array_equal(tuner.logits(held), after)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parent", ["uneven", "bare"])
def test_a_batch_in_pieces_is_the_batch_where_no_norm_learns(bench: Bench, tmp_path: Path, parent: str) -> None:
    """Gradients are added up; dropout drops the same units, whatever piece a row is in."""
    found = []
    for grad_accumulation in (1, 3, 4, 8):
        how = recipe(
            Stage(CONVOLUTIONS, 2), grad_accumulation=grad_accumulation, dropout=0.4, optimizer="sgd", backbone_lr=0.01
        )
        found.append(losses(run(bench.tuner(how, parent)[0], tmp_path / f"{grad_accumulation}").history))
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], rtol=1e-5, atol=1e-5)


def test_dropout_changes_the_training_and_not_the_scores(bench: Bench, tmp_path: Path) -> None:
    plain, dropping = (bench.tuner(recipe(dropout=rate), "mlp")[0] for rate in (0.0, 0.5))
    np.testing.assert_array_equal(plain.logits(np.arange(8)), dropping.logits(np.arange(8)))
    train = [run(each, tmp_path / f"{i}").history[0]["train_loss"] for i, each in enumerate((plain, dropping))]
    assert train[0] != train[1]


def test_a_piece_too_small_for_the_norms_is_refused_with_the_way_out(bench: Bench, tmp_path: Path) -> None:
    for how in (recipe(batch_size=1), recipe(batch_size=8, grad_accumulation=8)):
        with pytest.raises(
            UsageError, match=r"a batch norm in training mode needs more than one image at a time: .*batch_size"
        ):
            run(bench.tuner(how)[0], tmp_path / "run")


def test_bfloat16_learns_nearly_the_same_and_keeps_float32(bench: Bench, tmp_path: Path) -> None:
    exact = run(bench.tuner(recipe(lr=0.001))[0], tmp_path / "exact")
    tuner, start = bench.tuner(recipe(lr=0.001, precision="bfloat16"), score=rising())
    lower = run(tuner, tmp_path / "lower")
    np.testing.assert_allclose(losses(lower.history), losses(exact.history), rtol=0.1)
    assert losses(lower.history)[0, 0] != losses(exact.history)[0, 0]
    assert {t.dtype for t in weights(tuner, start).values() if t.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1]),
        ({"schedule": "cosine"}, [1, 0.5, 1, 0.5]),
        ({"schedule": "plateau", "lr_patience": 1}, [1, 1, 1, 1]),
    ],
)
def test_rates_follow_the_schedule_of_each_stage_anew(
    bench: Bench, tmp_path: Path, given: dict[str, Any], rates: list[float]
) -> None:
    """Read off the steps of SGD without momentum: the first step of an epoch is the rate times a gradient."""
    found: list[float] = []

    class Noting(torch.optim.SGD):
        def step(self, *arguments: Any, **named: Any) -> Any:
            found.append(self.param_groups[1]["lr"])
            return super().step(*arguments, **named)

    how = recipe(LAST, Stage(CONVOLUTIONS, 2), optimizer="sgd", momentum=0.0, batch_size=64, lr=1e-3, **given)
    tuner, _ = bench.tuner(how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(unfreeze._OPTIMIZERS, "sgd", Noting)
        run(tuner, tmp_path / "run")
    np.testing.assert_allclose(found, np.array(rates) * 1e-3)


# --- a training that goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [8, 64])
def test_a_training_that_diverges_says_so(bench: Bench, tmp_path: Path, batch_size: int) -> None:
    """Whether the losses are the first to show it, or with a single batch the validation rows."""
    how = recipe(Stage("last-block", 9), optimizer="sgd", lr=1000.0, weight_decay=1000.0, batch_size=batch_size)
    with pytest.raises(UsageError, match=r"the training diverged in epoch \d: lower `lr` and `backbone_lr`\."):
        run(bench.tuner(how)[0], tmp_path / "run")


# --- stopped and continued --------------------------------------------------------------------------------------------

TWO_STAGES = Stage("last-block", 2), Stage(CONVOLUTIONS, 2)
RISING = Stage("last-block", 6)
STOPPED = {
    "adam": recipe(*TWO_STAGES, lr=0.02),
    "adamw, cosine": recipe(*TWO_STAGES, optimizer="adamw", weight_decay=0.1, schedule="cosine"),
    "sgd, plateau": recipe(RISING, optimizer="sgd", schedule="plateau", lr_patience=1, lr=3.0),
    "sgd without momentum, plateau": recipe(
        RISING, optimizer="sgd", momentum=0.0, schedule="plateau", lr_patience=1, lr=3.0
    ),
    "early stopping": recipe(RISING, TWO_STAGES[1], lr=0.3, patience=2),
    "early stopping without momentum": recipe(
        RISING, TWO_STAGES[1], lr=3.0, optimizer="sgd", momentum=0.0, patience=2, schedule="constant"
    ),
}


@pytest.mark.parametrize(
    "case", ["adam", *(pytest.param(case, marks=pytest.mark.long) for case in STOPPED if case != "adam")]
)
def test_a_training_that_was_stopped_anywhere_ends_as_if_it_had_not_been(
    bench: Bench, tmp_path: Path, case: str
) -> None:
    how = STOPPED[case]
    whole, start = bench.tuner(how, "mlp")
    run(whole, tmp_path / "whole")
    wanted, n = weights(whole, start), len(whole.history)
    if "early" in case:
        assert n < how.epochs, "the stage must end early"
    for stop_at in range(1, n + 1):
        path = tmp_path / f"{stop_at}"

        def stop(done: int, total: int, point: Point, last: int = stop_at) -> None:
            if done == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(bench.tuner(how, "mlp")[0], path, stop)
        again, start = bench.tuner(how, "mlp")
        epochs: list[int] = []
        run(again, path, lambda done, total, point, to=epochs: to.append(done))
        assert epochs == list(range(stop_at + 1, n + 1)), "only what was lacking is done"
        assert (again.history, again.best_epoch) == (whole.history, whole.best_epoch)
        for name, tensor in weights(again, start).items():
            assert torch.equal(tensor, wanted[name]), (stop_at, name)


def test_a_damaged_last_checkpoint_costs_an_epoch_and_nothing_else(bench: Bench, tmp_path: Path) -> None:
    how = recipe(Stage("last-block", 4))
    whole, start = bench.tuner(how)
    run(whole, tmp_path / "whole")
    wanted = weights(whole, start)

    def stop(done: int, total: int, point: Point) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bench.tuner(how)[0], tmp_path / "run", stop)
    last = max((tmp_path / "run.partial").glob("fold-0-*"))
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    again, start = bench.tuner(how)
    epochs: list[int] = []
    run(again, tmp_path / "run", lambda done, total, point: epochs.append(done))
    assert epochs == [3, 4]
    assert again.history == whole.history
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(again, start).items())


def test_counts_what_learns_at_some_time(bench: Bench) -> None:
    tuner, start = bench.tuner(recipe(LAST, EARLIER), images=True)
    state = dict(start.backbone.module.named_parameters())
    wanted = sum(
        p.numel() for name, p in state.items() if name.startswith(OF_LAST) or name == "blocks.3.0.conv_dw.weight"
    )
    assert tuner.n_trainable == (wanted, sum(array.size for array in tensors_of(tuner.head).values()))
    assert replace(recipe(), stages=(LAST, LAST)).epochs == 4
