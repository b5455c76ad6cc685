"""A network cut in two: a trunk that is frozen for good, and a tail in which something learns.

torch.fx writes down what happens to an image, module by module, and looks into a module only where a part of its
parameters learns. Whatever depends on these belongs to the tail; the cut is at the latest place before that one tensor
crosses, so that the tail may begin with layers that do not learn: a DenseNet's with a whole dense block, whose layers
all see what lies before them. Both parts are made of the network's own modules and parameters, under their own names.
Knows nothing of blocks, images or optimizers.
"""

import operator
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from featcache.errors import UsageError

_NET = "net"
_ATTRIBUTES = ("call_module", "get_attr")  # the kinds of nodes that stand for something the network owns
# What tracing raises where a network's path depends on what it sees (TraceError is a ValueError).
_UNTRACEABLE = (ValueError, TypeError, RuntimeError, AttributeError, NameError, LookupError, AssertionError)


class Trunk(nn.Module):
    """(b, 3, h, w) normalised float32 to the boundary tensor, (b, …): no gradients, and never in training mode."""

    def __init__(self, layers: fx.GraphModule) -> None:
        super().__init__()
        self.layers = layers.eval()
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            _settle(self.layers.modules())  # its modules are the network's, and `train()` may have been called there
        with torch.no_grad():
            boundary = self.layers(x)
        if not isinstance(boundary, Tensor):
            raise UsageError("several tensors cross this network where it is cut: let other blocks learn, or all.")
        return boundary

    def train(self, mode: bool = True) -> Self:
        """Does nothing."""
        return self


class Tail(fx.GraphModule):
    """The boundary tensor (of the whole network: its input) to (b, d) pooled vectors. Leaves its input as it is."""

    def train(self, mode: bool = True) -> Self:
        """Training mode, but only for what learns: see `learn`."""
        super().train(mode)
        for hook in self._forward_pre_hooks.values():
            if isinstance(hook, _Modes):
                hook(self)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        twin = super().__deepcopy__(memo)  # which leaves the hooks of a forward pass behind
        for hook in self._forward_pre_hooks.values():
            if isinstance(hook, _Modes):
                twin.register_forward_pre_hook(hook)
        twin.training = self.training
        return twin


@dataclass(frozen=True)
class Cut:
    """A network in two parts: `tail(trunk(x))` is what the whole network makes of x, to the last bit.

    Attributes:
        trunk: None where the first layer learns, where many tensors lead to what learns, and where the network's path
            depends on what it sees, so that torch.fx cannot follow it. The tail is then the whole network.
        tail: what learns, and what follows it.
    """

    trunk: Trunk | None
    tail: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) normalised float32 to (b, d)."""
        return self.tail(x if self.trunk is None else self.trunk(x))  # type: ignore[no-any-return]


def cut(module: nn.Module, names: Collection[str]) -> Cut:
    """A network cut before the first layer of which something learns.

    Args:
        module: (b, 3, h, w) to (b, d), in training mode or not. What lies before the cut is put into `eval()`.
        names: names of the trained parameters, at least one.

    Raises:
        UsageError: the network does not use these parameters.
    """
    whole = _Whole(module)
    learning = _learning(module, names)
    graph = _traced(whole, learning, deepest=max(name.count(".") for name in names) + 1)
    if graph is None:
        return Cut(None, module)
    nodes = _reached(graph, lambda node: node.op == "placeholder")  # the image first, the output last
    after = set(_reached(graph, lambda node: _learns(whole, node, learning)))
    first = next((i for i, node in enumerate(nodes) if node in after), None)
    if first is None:
        raise UsageError(f"{', '.join(sorted(names)[:3])}: no vector of this network depends on what is to learn.")
    place, boundary = _boundary(nodes, first)
    tail = Tail(*_part(whole, nodes[place:], boundary, None))
    trunk = fx.GraphModule(*_part(whole, nodes[1:place], nodes[0], boundary)) if boundary is not nodes[0] else None
    return Cut(Trunk(trunk) if trunk is not None else None, tail)


def learn(module: nn.Module, names: Collection[str]) -> None:
    """From now on these parameters learn and nothing else: they alone have gradients, and in training mode there are
    only the modules that own them. All others stay in `eval()`, whatever is said to the module or to its parts: the
    statistics of a norm move only if its weights learn, and frozen layers drop nothing.

    `module.eval()` and `module.train()` work as ever on what learns.

    Args:
        module: a tail, or a whole network.
        names: names of its parameters.
    """
    learning = _learning(module, names)
    for parameter in module.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, _Modes):
            del module._forward_pre_hooks[key]
    modes = _Modes(frozenset(name.rpartition(".")[0] for name in names))
    module.register_forward_pre_hook(modes)
    module.train()
    modes(module)


def n_trainable(module: nn.Module, names: Collection[str]) -> int:
    """Numbers in these parameters."""
    selected = set(names)
    return sum(parameter.numel() for name, parameter in module.named_parameters() if name in selected)


@dataclass(frozen=True)
class _Modes:
    """Called before every forward pass, because the modules are the network's as well, whose `train()` reaches them."""

    owners: frozenset[str]

    def __call__(self, root: nn.Module, _inputs: Any = None) -> None:
        parts = [(name, part) for name, part in root.named_modules() if part is not root]
        _settle(part for name, part in parts if name not in self.owners)
        _settle((part for name, part in parts if name in self.owners), root.training)


def _settle(parts: Iterable[nn.Module], mode: bool = False) -> None:
    for part in parts:
        if part.training is not mode:  # a compiler sees an assignment as a change, even of nothing
            part.training = mode


def _learning(module: nn.Module, names: Collection[str]) -> frozenset[int]:
    """The parameters that learn, by identity: the parts of a network know them by different names."""
    parameters = dict(module.named_parameters())
    assert names, "nothing learns"
    assert set(names) <= set(parameters), "a name that is no parameter's"
    return frozenset(id(parameters[name]) for name in names)


# --- the graph --------------------------------------------------------------------------------------------------------


class _Whole(nn.Module):
    """A network as a function of an image alone: some have further arguments, which torch.fx would take for inputs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class _Tracer(fx.Tracer):
    """Looks into a module only if a part of its parameters learns, and into none that owns one itself: what a norm does
    depends on its mode, which is not known yet. Nor into modules that lie deeper than `depth`."""

    def __init__(self, learning: frozenset[int], depth: int) -> None:
        super().__init__()
        self._learning, self._depth = learning, depth

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name == _NET:
            return False
        if module_qualified_name.count(".") >= self._depth:
            return True
        own = [id(parameter) in self._learning for parameter in m.parameters(recurse=False)]
        every = [id(parameter) in self._learning for parameter in m.parameters()]
        return any(own) or all(every) or not any(every)


def _traced(whole: _Whole, learning: frozenset[int], deepest: int) -> fx.Graph | None:
    """What happens to an image in `eval()`, seen as deep as it can be followed, if it can. The modules are put back."""
    were = [(part, part.training) for part in whole.modules()]
    _settle(part for part, _ in were)
    try:
        for depth in range(deepest, 0, -1):
            with suppress(*_UNTRACEABLE):
                return _Tracer(learning, depth).trace(whole)
        return None
    finally:
        for part, mode in were:
            part.training = mode


def _reached(graph: fx.Graph, starts: Any) -> list[fx.Node]:
    """The nodes where something starts, and all that depend on them, in order."""
    reached: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if starts(node) or any(source in reached for source in node.all_input_nodes):
            reached[node] = None
    return list(reached)


def _learns(whole: nn.Module, node: fx.Node, learning: frozenset[int]) -> bool:
    owned = _owned(whole, str(node.target)) if node.op in _ATTRIBUTES else None
    parameters = owned.parameters() if isinstance(owned, nn.Module) else [owned]
    return any(id(parameter) in learning for parameter in parameters)


def _boundary(nodes: Sequence[fx.Node], first: int) -> tuple[int, fx.Node]:
    """The latest place, at most `first`, that the value of one node alone crosses: (where the tail begins, the node).
    At place 1 that is the image."""
    places = {node: i for i, node in enumerate(nodes)}
    last_used = [max((places[user] for user in node.users), default=0) for node in nodes]
    for place in range(first, 1, -1):
        crossing = [node for node, last in zip(nodes[:place], last_used, strict=False) if last >= place]
        if len(crossing) == 1 and not _is_tuple(crossing[0]):
            return place, crossing[0]
    return 1, nodes[0]


def _is_tuple(node: fx.Node) -> bool:
    """As far as one can see: its items are taken one by one."""
    indexes = [user.args[1] for user in node.users if user.target is operator.getitem]
    return any(isinstance(item, int) for item in indexes)


def _part(
    whole: _Whole, nodes: Sequence[fx.Node], entry: fx.Node, exit_: fx.Node | None
) -> tuple[dict[str, Any], fx.Graph]:
    """(what it owns by name, the graph) of some consecutive nodes, from the value of `entry` to that of `exit_`, or to
    the output that is among them. What does not depend on the image is made in each part that needs it."""
    graph, owned = fx.Graph(), dict[str, Any]()
    placeholder = graph.placeholder("x")
    # Some blocks begin with an activation in place, and boundaries may be kept for the next epoch.
    copies = {entry: placeholder if exit_ is not None else graph.call_method("clone", (placeholder,))}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in copies:
            copies[node] = copy = graph.node_copy(node, copy_of)
            if node.op in _ATTRIBUTES:
                copy.target = str(node.target).removeprefix(f"{_NET}.")
                owned[copy.target] = _owned(whole, str(node.target))
        return copies[node]

    for node in nodes:
        copy_of(node)
    if exit_ is not None:
        graph.output(copies[exit_])
    graph.lint()
    return owned, graph


def _owned(whole: nn.Module, target: str) -> Any:
    owner: Any = whole
    for name in target.split("."):
        owner = getattr(owner, name)
    return owner
