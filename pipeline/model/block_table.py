"""The blocks of a network as a table: what a stage that trains a block would release.

In: a backbone and the size of its images. Out: a row a block, head first: its position, name and
modules, its parameters and their share, the shape of its output, and the floating-point operations
that an image costs there (a multiplication and an addition are two).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

import pandas as pd

from pipeline.model.backbones import Backbone
from pipeline.model.flops import segment_operations
from pipeline.model.grouping import outer_modules

MODULES_SHOWN = 4


def block_table(backbone: Backbone, image_size: int) -> pd.DataFrame:
    """The table, of text. Operations of blocks that share a segment stand at the last of them."""
    sizes = {name: tensor.numel() for name, tensor in backbone.model.named_parameters()}
    total = sum(sizes.values())
    ends = [segment.blocks[-1] for segment in backbone.segments]
    operations = dict(zip(ends, segment_operations(backbone, image_size), strict=True))
    shapes = {s.blocks[-1]: " x ".join(map(str, s.shape)) for s in backbone.segments}
    rows = []
    for position, block in enumerate(reversed(backbone.order)):
        names = backbone.tensor_names([block])
        parameters = sum(sizes.get(name, 0) for name in names)
        rows.append(
            {
                "position": "head" if position == 0 else str(position),
                "block": block,
                "modules": _modules(backbone, names),
                "parameters": f"{parameters:,}",
                "share": f"{parameters / total:.1%}",
                "output": shapes.get(block, "(shared)"),
                "MFLOP": f"{operations[block] / 1e6:,.1f}" if block in operations else "(shared)",
            }
        )
    return pd.DataFrame(rows)


def _modules(backbone: Backbone, names: Sequence[str]) -> str:
    """The outermost modules of a block; `features.14-18` are numbers one after another."""
    others = [name for name in backbone.model.state_dict() if name not in set(names)]
    shown = list(_joined(root.removesuffix(".") for root in outer_modules(names, others)))
    more = [f"and {len(shown) - MODULES_SHOWN} more"] if len(shown) > MODULES_SHOWN else []
    return ", ".join([*shown[:MODULES_SHOWN], *more])


def _joined(names: Iterable[str]) -> Iterable[str]:
    def parts(item: tuple[int, str]) -> tuple[str, int]:
        index, name = item
        before, number = re.fullmatch(r"(.*?)(\d*)", name).groups()  # type: ignore[union-attr]
        return (before, int(number) - index) if number else (name, 0)

    for (before, _), group in groupby(enumerate(names), key=parts):
        listed = [name for _, name in group]
        first, last = listed[0], listed[-1]
        yield first if first == last else f"{first}-{last.removeprefix(before)}"
