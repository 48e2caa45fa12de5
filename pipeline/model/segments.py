"""A segment of a network: consecutive blocks that are computed together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter

from torch import Tensor, fx, nn


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Consecutive blocks that are computed together.

    Attributes:
        blocks: their names, in forward order.
        module: computes them; its tensors are the network's own, under the same names.
        owners: name of a module or of a bare tensor in `module` -> its block.
        shape: of what it makes of one image, such as (C, H, W).
    """

    blocks: tuple[str, ...]
    module: nn.Module
    owners: Mapping[str, str]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its blocks as one word."""
        return "+".join(self.blocks)

    def copied(self) -> Segment:
        """The segment with modules and tensors of its own."""
        return replace(self, module=_copied(self.module))

    def block_of(self, name: str) -> str | None:
        """The block of a tensor or a module inside `module`.

        None for a constant that the network's state dict leaves out, where blocks share a segment.
        """
        while name and name not in self.owners:
            name = name.rpartition(".")[0]
        return self.owners.get(name, self.blocks[0] if len(self.blocks) == 1 else None)

    def parts(self) -> Iterator[tuple[str, nn.Module | Tensor]]:
        """Its blocks' modules and bare tensors, each with the name of its block.

        Of a module that blocks share, the modules inside are yielded, not the module.
        """
        if len(self.blocks) == 1 and {*self.blocks}.issuperset(self.owners.values()):
            yield self.blocks[0], self.module
            return
        for name, block in self.owners.items():
            yield block, attrgetter(name)(self.module)


def _copied(module: nn.Module) -> nn.Module:
    """A deep copy; a traced module and its copy share the graph, and the code made from it.

    `copy.deepcopy` would copy the graph and generate the code anew, which takes twice as long.
    """
    if not isinstance(module, fx.GraphModule):
        return copy.deepcopy(module)
    own: fx.GraphModule = object.__new__(type(module))  # the class has the code
    shared = module._graph
    own.__dict__ = copy.deepcopy(module.__dict__, {id(module): own, id(shared): shared})
    return own
