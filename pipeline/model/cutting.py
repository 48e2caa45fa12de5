"""A network cut where its blocks meet, so that a frozen prefix can be computed once and kept.

In: any `nn.Module` whose tensors each belong to a block, and the size of its images. Out:
`Segment`s that, one after another, compute what the network computes. A segment ends at a border
that a single tensor crosses: (N, C, H, W) maps, (N, L, C) tokens or (N, C) vectors. Blocks between
which more has to pass (a skip connection over their border, a tuple), or over which images come
back, share a segment. The forward pass is traced by `torch.fx` (Reed et al. 2022, arXiv
2112.08429); a module inside one block stays whole. Not covered: a forward pass that branches on
the values of its input; such a network is a single segment.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from pipeline.model.segments import Segment
from pipeline.model.tracing import tensors_of, traced_by_blocks, write_sizes

_SHOWN = 3


@dataclass(frozen=True)
class _Part:
    """A segment of any network of one architecture; without a graph it is the whole network."""

    blocks: tuple[str, ...]
    owners: Mapping[str, str]
    graph: fx.Graph | None = None

    def on_a_copy(self) -> _Part:
        """The part with its input copied first; only images enter a part without a graph."""
        if self.graph:
            image = next(node for node in self.graph.nodes if node.op == "placeholder")
            with self.graph.inserting_after(image):
                copied = self.graph.call_method("clone", (image,))
            image.replace_all_uses_with(copied, lambda user: user is not copied)
        return self


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How networks of one architecture are cut.

    Attributes:
        parts: what becomes segments, in forward order.
        merged: block -> why there is no cut between this block and the one after it.
        added: name -> what the graphs use and the network lacks: constants, and modules in place
            of functions that have no training mode.
        shapes: of what each part makes of one image.
    """

    parts: tuple[_Part, ...]
    merged: Mapping[str, str]
    added: Mapping[str, nn.Module | Tensor]
    shapes: tuple[tuple[int, ...], ...] = ()

    def of(self, model: nn.Module) -> tuple[Segment, ...]:
        """The segments of such a network, which share its tensors."""
        return tuple(
            Segment(
                blocks=part.blocks,
                module=self._module(model, part.graph),
                owners=part.owners,
                shape=shape,
            )
            for part, shape in zip(self.parts, self.shapes, strict=True)
        )

    def _module(self, model: nn.Module, graph: fx.Graph | None) -> nn.Module:
        if graph is None:
            return model
        named = [str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")]
        own = copy.deepcopy({n: self.added[n] for n in named if n in self.added})
        used = {n: own[n] if n in own else attrgetter(n)(model) for n in named}
        return fx.GraphModule(used, graph).eval()


def cut(model: nn.Module, owners: Mapping[str, str], order: Sequence[str], image: Tensor) -> Cut:
    """Cut a network between its blocks wherever a single tensor crosses.

    Args:
        model: the network, in eval mode.
        owners: name of each parameter and buffer -> its block.
        order: the blocks in forward order.
        image: an example, (1, 3, H, W).
    """
    try:
        traced, added = traced_by_blocks(model, owners)
        places = _Places(traced, owners, order)
        if places.sizes_may_cross():
            write_sizes(traced, image)
            places.settle()
        parts, merged = places.parts()
        found = _measured(model, Cut(parts=parts, merged=merged, added=added), image)
        reason = "its parts compute something else"
    except Exception as err:  # noqa: BLE001 - a network's own code may raise anything when traced
        found, first = None, (str(err).splitlines() or [""])[0]
        reason = f"its forward pass cannot be traced ({type(err).__name__}: {first[:120]})"
    if found:
        return found
    whole = _measured(model, _whole(model, owners, order, reason), image)
    assert whole
    return whole


def _whole(model: nn.Module, owners: Mapping[str, str], order: Sequence[str], why: str) -> Cut:
    modules = {
        name: {owners[tensor] for tensor in tensors_of(module, name)}
        for name, module in model.named_modules()
    }
    owned = {name: min(blocks) for name, blocks in modules.items() if len(blocks) == 1}
    following = order[-1]
    for name in reversed(modules):  # what has no tensors, such as dropout, goes with what follows
        following = owned.get(name, following)
        if not modules[name] and not any(name.startswith(f"{outer}.") for outer in owned):
            owned[name] = following
    bare = {name: block for name, block in owners.items() if name.rpartition(".")[0] not in owned}
    part = _Part(blocks=tuple(order), owners=owned | bare)
    return Cut(parts=(part,), merged=dict.fromkeys(order[:-1], why), added={})


@torch.no_grad()
def _measured(model: nn.Module, found: Cut, image: Tensor) -> Cut | None:
    """The cut with its shapes; None where its parts compute something else than the network.

    Parts that would change their inputs in place work on a copy.
    """
    x = torch.linspace(-2, 2, image.numel()).view_as(image).repeat(2, 1, 1, 1)
    direct = model(x.clone())
    parts, shapes = [], []
    for part in found.parts:
        inputs, before = x, x.clone()
        x = found._module(model, part.graph)(inputs)
        parts.append(part if _same(inputs, before) else part.on_a_copy())
        shapes.append(tuple(x.shape[1:]))
    measured = replace(found, parts=tuple(parts), shapes=tuple(shapes))
    return measured if _same(x, direct) else None


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


class _Places:
    """Where each node of a graph is: the number of its block in forward order."""

    def __init__(
        self, traced: fx.GraphModule, owners: Mapping[str, str], order: Sequence[str]
    ) -> None:
        self.traced, self.owners, self.order = traced, owners, tuple(order)
        self.image = next(node for node in traced.graph.nodes if node.op == "placeholder")
        self.settle()

    def settle(self) -> None:
        """Place nodes anew: in their own block, or that of an input or a tensor which comes later.

        `free`: nodes without a place, and the tensors that each is made of: parameters, and what
        is computed from parameters alone. `back`: borders that images pass backwards, or that lie
        between two uses of a tensor -> what is said of them.
        """
        self.free: dict[fx.Node, frozenset[str]] = {}
        self.at: dict[fx.Node, int] = {}
        self.back: dict[int, str] = {}
        last = len(self.order) - 1
        for node in self.traced.graph.nodes:
            inputs = [self.at[each] for each in node.all_input_nodes if each not in self.free]
            if not inputs and node.op in ("get_attr", "call_function", "call_method"):
                self.free[node] = self._tensors(node)
                continue
            block = self._block_of(node)
            own = self.order.index(block) if block else 0
            places = [*inputs, *map(self._place, self._tensors(node) & self.owners.keys())]
            if block and max(places) > own:
                later = self.order[max(places)]
                why = f"{block} computes on what {later} makes, which is declared to come after it"
                self.back |= dict.fromkeys(range(own, max(places)), why)
            self.at[node] = last if node.op == "output" else max([own, *places])
        self._keep_whole()
        for node in self.at:  # dropout before the classifier belongs to the classifier
            if self._is_dropout(node) and {self.at[user] for user in node.users} == {last}:
                self.at[node] = last

    def _place(self, tensor: str) -> int:
        return self.order.index(self.owners[tensor])

    def _tensors(self, node: fx.Node) -> frozenset[str]:
        """The tensors that a node uses beside images: its own, and those of its free inputs."""
        name = str(node.target)
        own: list[str] = []
        if node.op == "get_attr":
            own = [name]
        elif node.op == "call_module":
            own = tensors_of(self.traced.get_submodule(name), name)
        return frozenset(own).union(
            *(self.free[each] for each in node.all_input_nodes if each in self.free)
        )

    def _keep_whole(self) -> None:
        """No border between two uses of one tensor: each side would train its own."""
        uses: dict[str, set[int]] = {}
        for node, place in self.at.items():
            for tensor in self._tensors(node) & self.owners.keys():
                uses.setdefault(tensor, set()).add(place)
        for tensor, places in uses.items():
            why = f"{tensor} is used on both sides"
            self.back |= dict.fromkeys(range(min(places), max(places)), why)

    def _is_dropout(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(
            self.traced.get_submodule(str(node.target)), nn.modules.dropout._DropoutNd
        )

    def _block_of(self, node: fx.Node) -> str | None:
        """The block of the module or tensor that a node uses; None where it uses neither."""
        name = str(node.target)
        if node.op == "get_attr":
            return self.owners.get(name)
        if node.op != "call_module":
            return None
        tensors = tensors_of(self.traced.get_submodule(name), name)
        return self.owners[tensors[0]] if tensors else None

    def _crossing(self) -> dict[int, list[fx.Node]]:
        """Border k, between blocks k and k + 1 -> the nodes whose values cross it."""
        found: dict[int, list[fx.Node]] = {k: [] for k in range(len(self.order) - 1)}
        for node in self.at:
            last = max((self.at[user] for user in node.users), default=0)
            for border in range(self.at[node], last):
                found[border].append(node)
        return found

    def sizes_may_cross(self) -> bool:
        """Whether something else than a module's output crosses a border."""
        nodes = {node for crossing in self._crossing().values() for node in crossing}
        return any(node.op != "call_module" for node in nodes)

    def parts(self) -> tuple[tuple[_Part, ...], dict[str, str]]:
        """The parts, and why there is no cut at borders that more than one tensor crosses."""
        crossing = self._crossing()
        merged: dict[str, str] = {}
        groups, enters = [[0]], [self.image]
        for border, nodes in crossing.items():
            if (
                len(nodes) == 1
                and border not in self.back
                and nodes[0] is not self.image
                and nodes[0].meta.get("tensor", True)
            ):
                groups.append([])
                enters.append(nodes[0])
            else:
                names = ", ".join(node.name for node in nodes[:_SHOWN])
                more = ", …" if len(nodes) > _SHOWN else ""
                why = f"no single tensor crosses ({names}{more})"
                merged[self.order[border]] = self.back.get(border, why)
            groups[-1].append(border + 1)
        leaves = [*enters[1:], None]
        return tuple(map(self._part, groups, enters, leaves)), merged

    def _part(self, group: list[int], enters: fx.Node, leaves: fx.Node | None) -> _Part:
        """One part: the nodes of its blocks, with a copy of each free node that they use."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {enters: graph.placeholder("x")}
        owned: dict[str, str] = {}

        def copied(node: fx.Node) -> fx.Node:
            if node not in copies:
                copies[node] = graph.node_copy(node, copied)
                block = self._block_of(node) or (None if node in self.free else self.at[node])
                if node.op in ("get_attr", "call_module") and block is not None:
                    name = block if isinstance(block, str) else self.order[block]
                    owned.setdefault(str(node.target), name)
            return copies[node]

        for node in self._inside(group, enters):
            copied(node)
        graph.output(copied(leaves) if leaves else map_arg(self._result(), copied))
        return _Part(tuple(self.order[k] for k in group), owned, graph)

    def _inside(self, group: list[int], enters: fx.Node) -> Iterator[fx.Node]:
        for node, place in self.at.items():
            if place in group and node is not enters and node.op not in ("placeholder", "output"):
                yield node

    def _result(self) -> Any:  # noqa: ANN401 - what the network returns
        return next(node for node in self.at if node.op == "output").args[0]
