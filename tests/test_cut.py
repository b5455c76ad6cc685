"""Where a network is cut in two: both parts are the whole, and nothing moves but what learns."""

import copy
import functools
import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from featcache import backbones
from featcache.backbones import graph
from featcache.backbones.blocks import groups
from featcache.errors import UsageError
from featcache.finetune import unfreeze
from featcache.specs import BackboneSpec, Stage

SIZES = {
    "efficientnet_b1": 64,
    "resnet18": 64,
    "simple-cnn": 64,
    "mobilenetv2_100": 64,
    "vgg16": 64,
    "legacy_xception": 96,
    "densenet121": 64,
    "test_convnext": 64,
    "vit_tiny_patch16_224": 224,
    "covid-cnn": 48,
    "convnext_tiny": 64,
    "inception_resnet_v2": 96,
    "resnet34": 64,
    "resnet50": 64,
    "vgg19_bn": 64,
}
QUICK = ("efficientnet_b1", "resnet18", "simple-cnn", "test_convnext")
LARGE_OR_ALIKE = (
    "vit_tiny_patch16_224",
    "densenet121",
    "vgg16",
    "legacy_xception",
    "convnext_tiny",
    "inception_resnet_v2",
    "resnet34",
    "resnet50",
    "vgg19_bn",
)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)


def sketch(name: str) -> nn.Module:
    return backbones.sketch(name)[1]


def network(name: str) -> nn.Module:
    return copy.deepcopy(made(name))


@functools.lru_cache(maxsize=2)
def made(name: str) -> nn.Module:
    """Random weights, with norms and scales that do something: fresh ones are ones and zeros, and some blocks begin
    their lives by giving nothing."""
    module = backbones.load(BackboneSpec(name, "random:0", input_size=SIZES[name])).module
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        tensors = [*part.parameters(recurse=False), *part.buffers(recurse=False)] if isinstance(part, NORMS) else []
        for tensor in [*tensors, *([part.gamma] if hasattr(part, "gamma") else [])]:
            if tensor.is_floating_point():
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return module


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            name, marks=[] if name in QUICK else [pytest.mark.slow, *[pytest.mark.long] * (name in LARGE_OR_ALIKE)]
        )
        for name in SIZES
    ],
)
def family(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    """A network of each family, to be left as it was found."""
    return request.param, network(request.param)


def images(name: str) -> Tensor:
    size = SIZES[name]
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def n_of(module: nn.Module, names: list[str]) -> int:
    return unfreeze.n_trainable(module, names)


# --- blocks and stages ------------------------------------------------------------------------------------------------

# Last block, last stage, number of blocks and stages: what the family's paper or module tree calls so.
LAST = {
    "efficientnet_b1": ("blocks.6.1", "blocks.6", 24, 8),
    "mobilenetv2_100": ("blocks.6", "blocks.6", 18, 8),
    "resnet18": ("layer4.1", "layer4", 9, 5),
    "resnet34": ("layer4.2", "layer4", 17, 5),
    "resnet50": ("layer4.2", "layer4", 17, 5),
    "vgg16": ("features.28", "features.24", 13, 5),
    "vgg19": ("features.34", "features.28", 16, 5),
    "vgg19_bn": ("features.49", "features.40", 16, 5),
    "inception_resnet_v2": ("block8", "mixed_7a", 45, 4),
    "legacy_xception": ("conv3", "block12", 14, 3),
    "densenet121": ("features.denseblock4.denselayer16", "features.denseblock4", 59, 5),
    "convnext_tiny": ("stages.3.blocks.2", "stages.3", 19, 5),
    "vit_tiny_patch16_224": ("blocks.11", "blocks.11", 13, 13),
    "simple-cnn": ("features.3", "features.3", 2, 2),
    "covid-cnn": ("features.3", "features.3", 2, 2),
}


@pytest.mark.parametrize("name", LAST)
def test_blocks_and_stages_are_those_of_the_family(name: str) -> None:
    module = sketch(name)
    every = [parameter for parameter, _ in module.named_parameters()]
    blocks, stages = (groups(module, coarse) for coarse in (False, True))
    last = (unfreeze.block_name(module, blocks[-1]), unfreeze.block_name(module, stages[-1]))
    assert (*last, len(blocks), len(stages)) == LAST[name]
    for parts in (blocks, stages):
        assert sorted(parameter for group in parts for parameter in group) == sorted(every)
    assert set(blocks[-1]) <= set(stages[-1])
    assert every[0] in blocks[0]
    assert every[-1] in blocks[-1]


def test_the_last_block_of_efficientnet_b1_has_the_head_convolution_and_its_norm() -> None:
    module = sketch("efficientnet_b1")
    names = unfreeze.unfrozen(module, "last-block")
    of_head = [name for name in names if name.startswith(("conv_head.", "bn2."))]
    assert (n_of(module, names), n_of(module, of_head)) == (1_975_760, 412_160)
    assert {name.rpartition(".")[0] for name in names if name not in of_head} >= {"blocks.6.1.conv_dw"}


def test_what_follows_the_last_block_belongs_to_it() -> None:
    for name, final in (("densenet121", "features.norm5"), ("convnext_tiny", "head.norm"), ("test_vit", "norm")):
        module = sketch(name)
        for which in ("last-block", "last-stage"):
            assert f"{final}.weight" in unfreeze.unfrozen(module, which)


def test_a_network_whose_blocks_are_not_known_is_refused_and_may_be_named_by_a_pattern() -> None:
    module = sketch("pit_ti_224")
    with pytest.raises(UsageError, match="blocks of PoolingVisionTransformer are: name parameters by a pattern"):
        unfreeze.unfrozen(module, "last-block")
    with pytest.raises(UsageError, match="stages of RDNet"):
        unfreeze.unfrozen(sketch("rdnet_tiny"), "last-stage")
    assert unfreeze.unfrozen(module, r"^transformers\.2\.")


# --- what learns, by a word -------------------------------------------------------------------------------------------


def test_words_numbers_and_patterns_name_parameters_in_the_networks_order() -> None:
    module = sketch("resnet18")
    every = [name for name, _ in module.named_parameters()]
    assert unfreeze.unfrozen(module, "all") == every
    assert unfreeze.unfrozen(module, "9") == every
    assert unfreeze.unfrozen(module, "1") == unfreeze.unfrozen(module, "last-block")
    assert unfreeze.unfrozen(module, "2") == unfreeze.unfrozen(module, "last-stage") == every[-15:]
    assert unfreeze.unfrozen(module, r"layer4\.1") == unfreeze.unfrozen(module, "last-block")
    assert unfreeze.unfrozen(module, r"bn2\.bias$") == [name for name in every if name.endswith("bn2.bias")]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("0", "`unfreeze`=0: this backbone has 9 blocks"),
        ("10", "must be from 1 to 9"),
        (
            "last_block",
            r"in the name of no parameter.*last-block, .*last blocks are layer3.0, layer3.1, layer4.0, layer4.1",
        ),
        ("layer4[", "is no regular expression: unterminated character set.*last-stage"),
        ("a{99999999999}", "is no regular expression"),
    ],
)
def test_what_matches_nothing_is_refused_with_what_there_is(which: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        unfreeze.unfrozen(sketch("resnet18"), which)
    assert "\n" not in str(refused.value)


# --- two parts --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_both_parts_are_the_whole_network_bit_for_bit(family: tuple[str, nn.Module]) -> None:
    name, module = family
    x = images(name)
    whole = module(x)
    assert torch.isfinite(whole).all()
    before = state(module)
    parameters = dict(module.named_parameters())
    for which in ("last-block", "last-stage", "all"):
        module.train(which == "last-stage")  # what it is in when it is cut makes no difference
        parts = unfreeze.cut(module, unfreeze.unfrozen(module, which))
        module.eval()
        parts.tail.eval()
        boundary = parts.trunk(x) if parts.trunk else x
        kept = boundary.clone()
        assert torch.equal(parts.tail(boundary), whole)
        assert torch.equal(boundary, kept), "the tail changed what it was given"
        assert all(parameter is parameters[of] for of, parameter in parts.tail.named_parameters())
    assert_same(state(module), before)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(found[name], wanted[name])]


def test_the_pooled_vector_is_the_one_of_the_backbone() -> None:
    backbone = backbones.load(BackboneSpec("vgg11", "random:0", input_size=64))
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    parts = unfreeze.cut(backbone.module, unfreeze.unfrozen(backbone.module, "last-stage"))
    assert torch.equal(parts(backbone.normalize(pixels)), backbone(pixels)["pooled"])


@pytest.mark.parametrize(
    ("name", "which", "shape"),
    [
        ("efficientnet_b1", "last-stage", (192, 8, 8)),
        ("efficientnet_b1", "last-block", (320, 8, 8)),
        ("efficientnet_b1", "^bn2", (1280, 8, 8)),  # of one norm: from there
        ("mobilenetv2_100", "last-stage", (160, 7, 7)),
        ("resnet50", "last-stage", (1024, 14, 14)),
        ("resnet50", r"layer4\.2\.bn3\.bias", (2048, 7, 7)),  # beside the shortcut of its block: from where it forks
        ("densenet121", "last-block", (512, 7, 7)),  # its layers see all layers of their block
        ("hrnet_w18_small", "last-stage", (128, 56, 56)),  # branches at four resolutions: from before they part
    ],
)
def test_the_cut_is_at_the_latest_place_that_one_tensor_crosses(name: str, which: str, shape: tuple[int, ...]) -> None:
    _, module, size = backbones.sketch(name)
    parts = unfreeze.cut(module, unfreeze.unfrozen(module, which))
    assert parts.trunk is not None
    boundary = parts.trunk(torch.zeros(2, 3, *size, device="meta"))
    assert tuple(boundary.shape) == (2, *shape)
    of_trunk = {id(parameter) for parameter in parts.trunk.parameters()}
    assert not of_trunk & {id(parameter) for parameter in parts.tail.parameters()}
    assert set(unfreeze.unfrozen(module, which)) <= {of for of, _ in parts.tail.named_parameters()}


def test_a_network_that_cannot_be_followed_is_its_own_tail() -> None:
    for name in ("test_vit", "twins_svt_small"):
        module = sketch(name)
        parts = unfreeze.cut(module, unfreeze.unfrozen(module, "last-block"))
        assert parts.trunk is None
        assert parts.tail is module


def test_a_tail_that_begins_in_place_leaves_the_boundary_as_it_is() -> None:
    in_place = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
    module = nn.Sequential(nn.Conv2d(3, 4, 1), in_place, nn.Flatten()).eval()
    x = torch.randn(2, 3, 4, 4)
    whole = module(x)
    parts = unfreeze.cut(module, unfreeze.unfrozen(module, r"^1\."))
    assert parts.trunk is not None
    boundary = parts.trunk(x)
    for _ in range(2):  # as in two epochs
        assert torch.equal(parts.tail(boundary), whole)
    assert torch.equal(boundary, module[0](x))


class Late(nn.Module):
    """Its learning part uses the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.unused = nn.Linear(1, 1)
        self.constant = torch.arange(3.0)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        if scale is not None:
            x = x * scale
        y = self.first(nn.functional.dropout(x.mean(dim=(2, 3)), 0.5, self.training)) + self.constant
        return self.second(y) + x.amax(dim=(2, 3))


def test_what_needs_the_image_at_its_end_gets_the_image() -> None:
    module, x = Late().eval(), torch.randn(2, 3, 4, 4)
    whole = module(x)
    for pattern in ("second", "first"):
        for mode in (False, True):
            parts = unfreeze.cut(module.train(mode), unfreeze.unfrozen(module, pattern))
            assert parts.trunk is None
            assert torch.equal(parts(x), whole), "frozen layers drop nothing"


def test_parameters_that_take_no_part_cannot_be_cut_at() -> None:
    module = Late()
    with pytest.raises(UsageError, match=r"unused\.bias, unused\.weight: no vector of this network depends"):
        unfreeze.cut(module, unfreeze.unfrozen(module, "unused"))


class Pair(nn.Module):
    """Two tensors go from one layer to the next, in a list that nobody opens on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.ModuleList([nn.Linear(3, 3)]), nn.Linear(3, 3)
        self.fork, self.join = _Fork(), _Join()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.join(self.fork(self.first[0](x.mean(dim=(2, 3))))))


class _Fork(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x + 1]


class _Join(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, pair: list[Tensor]) -> Tensor:
        return operator.add(*map(self.inner, pair))


def test_several_tensors_that_look_like_one_are_an_error_and_not_a_boundary() -> None:
    module = Pair()
    parts = unfreeze.cut(module, unfreeze.unfrozen(module, "join"))
    assert parts.trunk is not None
    with pytest.raises(UsageError, match="several tensors cross"):
        parts.trunk(torch.zeros(1, 3, 2, 2))
    module.eval()
    later = unfreeze.cut(module, unfreeze.unfrozen(module, "second"))
    x = torch.randn(1, 3, 2, 2)
    assert torch.equal(later(x), module(x))


# --- what learns moves, and nothing else ------------------------------------------------------------------------------


def touched(
    name: str, module: nn.Module, which: str, call_train: Callable[[nn.Module, nn.Module], object]
) -> tuple[set[str], set[str]]:
    """(what learns, what a step of Adam has changed), by name. Afterwards the network is as it was before."""
    x, before = images(name), state(module)
    names = unfreeze.unfrozen(module, which)
    parts = unfreeze.cut(module, names)
    unfreeze.learn(parts.tail, names)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    call_train(parts.tail, module)
    y = parts(x)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    (y * direction / y.detach().std()).sum().backward()
    optimizer.step()
    moved = {key for key, tensor in state(module).items() if not torch.equal(before[key], tensor)}
    module.load_state_dict(before)
    module.eval().requires_grad_(False).zero_grad()
    return set(names), moved


def is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def test_a_step_moves_what_learns_and_nothing_else(family: tuple[str, nn.Module]) -> None:
    calls: dict[str, Callable[[nn.Module, nn.Module], object]] = {
        "nothing": lambda tail, module: None,
        "all": lambda tail, module: (tail.train(), module.train()),
    }
    for call in calls.values():
        learning, moved = touched(*family, "last-block", call)
        assert {key for key in moved if not is_statistic(key)} == learning
        owners = {key.rpartition(".")[0] for key in learning}
        assert {key.rpartition(".")[0] for key in moved if is_statistic(key)} <= owners


def test_statistics_move_only_with_the_weights_of_their_norm() -> None:
    module = network("resnet18")
    convolutions, moved = touched("resnet18", module, r"layer4\.\d\.conv", lambda tail, module: module.train())
    assert moved == convolutions
    norms, moved = touched("resnet18", module, r"layer4\.\d\.bn", lambda tail, module: module.train())
    statistics = {f"{key.rpartition('.')[0]}.{kind}" for key in norms for kind in ("running_mean", "running_var")}
    assert moved == norms | statistics | {f"{key.rpartition('.')[0]}.num_batches_tracked" for key in norms}


def test_a_norm_of_which_a_part_learns_is_a_norm_in_training() -> None:
    module = network("efficientnet_b1")
    names, moved = touched("efficientnet_b1", module, r"^bn2\.weight$", lambda tail, module: None)
    assert moved == names | {"bn2.running_mean", "bn2.running_var", "bn2.num_batches_tracked"}


def test_a_whole_network_learns_where_it_is_told_to() -> None:
    module, x = network("resnet18"), images("resnet18")
    names = unfreeze.unfrozen(module, "last-block")
    unfreeze.learn(module, names)
    before = state(module)
    module.train()
    module(x).square().mean().backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    moved = {key for key, tensor in state(module).items() if not torch.equal(tensor, before[key])}
    assert {key for key in moved if not is_statistic(key)} == set(names)
    assert all(key.startswith("layer4.1.bn") for key in moved if is_statistic(key))


def test_only_owners_are_in_training_mode_and_only_while_the_tail_is() -> None:
    module = network("efficientnet_b1")
    names = unfreeze.unfrozen(module, "last-block")
    tail = unfreeze.cut(module, unfreeze.unfrozen(module, "last-stage")).tail  # begins with a block that does not learn
    unfreeze.learn(tail, names)
    owners = {name.rpartition(".")[0] for name in names}
    for wanted, call in ((owners, tail.train), (set(), tail.eval), (owners, lambda: tail.train(True))):
        call()
        assert {name for name, part in tail.named_modules() if part.training and name} == wanted
    assert {name for name, parameter in module.named_parameters() if parameter.requires_grad} == set(names)


def test_in_eval_a_tail_gives_what_it_gave_before_it_was_told_to_learn() -> None:
    module, x = network("efficientnet_b1"), images("efficientnet_b1")
    whole, before = module(x), state(module)
    parts = unfreeze.cut(module, unfreeze.unfrozen(module, "last-stage"))
    unfreeze.learn(parts.tail, unfreeze.unfrozen(module, "last-stage"))
    assert not torch.equal(parts(x), whole)  # batch statistics
    module.load_state_dict(before)
    parts.tail.eval()
    module.train()  # by somebody who has the network
    assert torch.equal(parts(x), whole)
    assert_same(state(module), before)


def test_to_learn_again_replaces_what_learnt_before() -> None:
    module = network("resnet18")
    tail = unfreeze.cut(module, unfreeze.unfrozen(module, "2")).tail
    unfreeze.learn(tail, unfreeze.unfrozen(module, "2"))
    unfreeze.learn(tail, unfreeze.unfrozen(module, "1"))
    tail.train()
    assert {name for name, parameter in tail.named_parameters() if parameter.requires_grad} == set(
        unfreeze.unfrozen(module, "1")
    )
    assert not any(part.training for part in tail.get_submodule("layer4.0").modules())
    assert len(tail._forward_pre_hooks) == 1


def test_a_copy_of_a_tail_learns_as_the_tail_does() -> None:
    module, x = network("resnet18"), images("resnet18")
    names = unfreeze.unfrozen(module, r"layer4\.1\.conv")
    parts = unfreeze.cut(module, names)
    unfreeze.learn(parts.tail, names)
    twin = copy.deepcopy(parts.tail)
    assert parts.trunk is not None
    boundary = parts.trunk(x)
    assert torch.equal(twin(boundary), parts.tail(boundary))
    twin.train()
    statistics = state(twin)
    twin(boundary)
    assert_same(state(twin), statistics)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in parts.tail.parameters()}


def test_the_trunk_gives_no_gradients_and_cannot_be_trained() -> None:
    module, x = network("efficientnet_b1"), images("efficientnet_b1")
    parts = unfreeze.cut(module, unfreeze.unfrozen(module, "last-stage"))
    assert parts.trunk is not None
    statistics = state(module)
    first = parts.trunk(x)
    module.requires_grad_(True)
    module.train()
    parts.trunk.train()
    again = parts.trunk(x)
    assert torch.equal(first, again)
    assert not again.requires_grad
    assert_same(state(module), statistics)
    assert isinstance(parts.trunk, graph.Trunk)


# --- what there is to choose ------------------------------------------------------------------------------------------


def test_choices_of_efficientnet_b1_are_the_numbers_of_its_partial_fine_tune() -> None:
    rows = unfreeze.choices("efficientnet_b1")
    block, stage = rows[:2]
    assert (block.unfreeze, block.n_blocks, block.first, block.boundary) == ("last-block", 1, "blocks.6.1", (320, 8, 8))
    assert (block.n_trainable, block.with_linear, block.with_mlp) == (1_975_760, 1_978_322, 2_304_722)
    assert (stage.unfreeze, stage.n_blocks, stage.first, stage.boundary) == ("last-stage", 2, "blocks.6", (192, 8, 8))
    assert [row.unfreeze for row in rows[2:]] == [*map(str, range(2, 24)), "all"]
    assert (rows[-1].n_trainable, rows[-1].boundary) == (6_513_184, (3, 240, 240))


@pytest.mark.parametrize("name", ["resnet18", "legacy_xception", "vgg11_bn"])
def test_choices_say_what_a_cut_would(name: str) -> None:
    _, module, size = backbones.sketch(name)
    rows = unfreeze.choices(name)
    for row in rows:
        names = unfreeze.unfrozen(module, row.unfreeze)
        trunk = unfreeze.cut(module, names).trunk
        x = torch.zeros(1, 3, *size, device="meta")
        assert row.boundary == tuple((trunk(x) if trunk else x).shape[1:])
        assert row.n_trainable == n_of(module, names)
        if row.n_blocks is not None:
            assert set(unfreeze.unfrozen(module, str(row.n_blocks))) == set(names)
        assert any(name.startswith(row.first) for name in names)
    assert len(rows) == len(groups(module, coarse=False)) + 1


def test_choices_of_the_own_networks_count_the_dense_layers_that_belong_to_them() -> None:
    rows = unfreeze.choices("covid-cnn")
    assert [row.unfreeze for row in rows] == ["last-block", "last-stage", "all"]
    assert rows[-1].with_mlp == 23_935_041


# --- norms ------------------------------------------------------------------------------------------------------------


def folded(path: Path) -> Path:
    """Weights whose norms hold no statistics, as where they were folded into the convolutions before them."""
    state = {name: tensor.contiguous() for name, tensor in made("resnet18").state_dict().items()}
    for name, tensor in state.items():
        if name.endswith(("running_mean", "running_var")):
            state[name] = torch.full_like(tensor, float(name.endswith("var")))
    save_file(state, path)
    return path


@pytest.mark.parametrize("which", ["last-block", "last-stage", "all"])
def test_frozen_norms_are_no_part_of_what_learns(which: str) -> None:
    module = sketch("resnet18")
    norms = {name for name, part in module.named_modules() if isinstance(part, NORMS)}
    every, without = unfreeze.unfrozen(module, which), unfreeze.unfrozen(module, which, "yes")
    assert without == [name for name in every if name.rpartition(".")[0] not in norms]
    assert 0 < len(without) < len(every)


def test_where_nothing_but_norms_would_learn_they_cannot_be_frozen() -> None:
    with pytest.raises(UsageError, match="nothing but batch norms"):
        unfreeze.unfrozen(sketch("resnet18"), r"layer4\.1\.bn", "yes")


def test_norms_without_statistics_are_left_alone_unless_they_are_random_or_are_to_learn(tmp_path: Path) -> None:
    stages = (Stage("last-block", 1),)
    random = backbones.load(BackboneSpec("resnet18", "random:0", 64))
    loaded = backbones.load(BackboneSpec("resnet18", str(folded(tmp_path / "folded.safetensors")), 64))
    assert [unfreeze.freeze_bn_of(each, stages, "auto") for each in (random, loaded)] == ["no", "yes"]
    assert [unfreeze.freeze_bn_of(loaded, stages, asked) for asked in ("no", "yes")] == ["no", "yes"]
    loaded.module.get_submodule("layer4.1.bn2").running_mean += 0.1  # those of the last block have statistics again
    assert unfreeze.freeze_bn_of(loaded, stages, "auto") == "no"
    assert unfreeze.freeze_bn_of(loaded, (Stage("conv1", 1),), "auto") == "no", "no norm learns"
