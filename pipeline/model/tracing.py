"""The forward pass of a network as a graph whose nodes are computed by one block each.

In: a network and which block each of its tensors belongs to. Out: a graph by `torch.fx` (Reed et
al. 2022, arXiv 2112.08429) that serves every network of the same architecture: a module inside one
block stays whole, and a value that depends on sizes alone is a number. Not covered: a module that
spans blocks runs in training as in evaluation, except for the functions in `_AS_MODULES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torchvision.ops import StochasticDepth, stochastic_depth

Added = dict[str, nn.Module | Tensor]
"""Names that the network does not have -> modules in place of functions, constants."""
BATCHES = (2, 3)
"""Two sizes of batches: a number that is the same for both does not depend on the batch."""
_CONSTANT = "_tensor_constant"
"""What torch.fx calls a tensor that a forward pass makes of numbers alone."""
_AS_MODULES: Mapping[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
    stochastic_depth: StochasticDepth,
}
"""Functions that do nothing in evaluation, and the modules that do the same by their mode."""


def traced_by_blocks(model: nn.Module, owners: Mapping[str, str]) -> tuple[fx.GraphModule, Added]:
    """The graph of a network in eval mode, and what the graph uses beside the network."""
    traced = fx.GraphModule(model, _Tracer(owners).trace(model, _defaults(model)))
    traced.graph.eliminate_dead_code()
    return traced, _constants_of(model, traced) | _dropouts_as_modules(traced)


class _Tracer(fx.Tracer):
    """Leaves every module whole whose tensors belong to one block.

    Buffers of the state dict are read when the network runs, as parameters are: other weights have
    other values. Other buffers are constants.
    """

    def __init__(self, owners: Mapping[str, str]) -> None:
        super().__init__(autowrap_functions=(stochastic_depth,))
        self.owners = owners

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:  # noqa: ANN401
        if isinstance(attr_val, Tensor):
            kept = self.root.state_dict(keep_vars=True).values()
            self.proxy_buffer_attributes = any(attr_val is tensor for tensor in kept)
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return len({self.owners[name] for name in tensors_of(m, module_qualified_name)}) <= 1


def tensors_of(module: nn.Module, name: str) -> list[str]:
    """Names in the network of the tensors of its module `name`."""
    return [f"{name}.{inner}".lstrip(".") for inner in module.state_dict(keep_vars=True)]


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The optional arguments of the forward pass, which keep their defaults."""
    _image, *others = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in others if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _constants_of(model: nn.Module, traced: fx.GraphModule) -> Added:
    """Take out of the network the constants that tracing has put into it."""
    names = {str(n.target) for n in traced.graph.nodes if n.op == "get_attr"}
    return {n: vars(model).pop(n) for n in names if n.startswith(_CONSTANT) and n in vars(model)}


def _dropouts_as_modules(traced: fx.GraphModule) -> Added:
    """Replace dropout functions, traced as they are in evaluation, by modules with a mode."""
    added: Added = {}
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.target in _AS_MODULES:
            name = f"functional_dropout_{len(added)}"
            given = inspect.signature(node.target).bind(*node.args, **node.kwargs)
            given.apply_defaults()
            how = {key: given.arguments[key] for key in ("p", "mode") if key in given.arguments}
            added[name] = module = _AS_MODULES[node.target](**how)
            traced.add_submodule(name, module)
            inputs = (given.arguments["input"],)
            node.op, node.target, node.args, node.kwargs = "call_module", name, inputs, {}
    traced.recompile()
    return added


def write_sizes(traced: fx.GraphModule, image: Tensor) -> None:
    """Write numbers computed from shapes, the same for every batch, into the graph as literals."""
    one, two = (_values(traced, image.expand(size, *image.shape[1:])) for size in BATCHES)
    for node, value in one.items():
        node.meta["tensor"] = isinstance(value, Tensor)
        if node.op.startswith("call_") and _is_number(value) and value == two[node]:
            _replace(node, value)
    traced.graph.eliminate_dead_code()


def _replace(node: fx.Node, value: Any) -> None:  # noqa: ANN401
    def literal(each: fx.Node) -> Any:  # noqa: ANN401
        return value if each is node else each

    for user in list(node.users):
        user.args = map_arg(user.args, literal)
        user.kwargs = map_arg(user.kwargs, literal)


def _values(traced: fx.GraphModule, images: Tensor) -> dict[fx.Node, Any]:
    """What every node of a graph gives for these images."""
    values: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401
            values[n] = super().run_node(n)
            return values[n]

    with torch.no_grad():
        Recorder(traced).run(images)
    return values


def _is_number(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is a number, or a tuple or list of numbers."""
    if isinstance(value, tuple | list):
        return all(map(_is_number, value))
    return isinstance(value, int | float)
