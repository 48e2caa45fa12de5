"""Which blocks train, in which BatchNorm mode, and the proof that the others did not move.

Parameters *and buffers* outside the trainable blocks are bit-identical before and after a stage:
they run in eval mode, need no gradient and never meet an optimizer. `FrozenProof` digests them
before and after and fails the run if they differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pipeline.backbones import Backbone
from pipeline.digests import digest_tensors
from pipeline.errors import FreezingError
from pipeline.stages import BLOCKS, Stage


def set_trainable(
    blocks: Mapping[str, nn.Sequential], trainable: Iterable[str], norm: Literal["adapt", "keep"]
) -> None:
    """Put each block into the mode it has during a stage.

    Trainable blocks are in training mode with gradients; with `norm="keep"` their BatchNorm layers
    use the statistics they came with, while their scale and shift still learn. Other blocks are in
    eval mode without gradients.
    """
    wanted = set(trainable)
    for name, block in blocks.items():
        block.train(name in wanted).requires_grad_(name in wanted)
        if norm == "keep":
            for module in block.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()


@dataclass(frozen=True)
class FrozenProof:
    """The digest of every tensor outside a stage's trainable blocks."""

    stage: Stage
    names: tuple[str, ...]
    digest: str

    @classmethod
    def take(cls, backbone: Backbone, stage: Stage) -> FrozenProof:
        """Digest the frozen tensors as they are now."""
        names = tuple(backbone.tensor_names([b for b in BLOCKS if b not in stage.trainable]))
        return cls(stage, names, digest_tensors(backbone.model.state_dict(), names))

    def check(self, backbone: Backbone, before: Mapping[str, Tensor] | None = None) -> None:
        """Compare with the frozen tensors as they are now; `before`, if given, finds the culprits.

        Raises:
            FreezingError: a frozen tensor changed.
        """
        state = backbone.model.state_dict()
        if digest_tensors(state, self.names) == self.digest:
            return
        moved = [n for n in self.names if before is not None and not state[n].equal(before[n])]
        raise FreezingError(
            f"stage {self.stage.number} changed frozen tensors "
            f"({', '.join(moved[:4]) or 'unnamed'}): "
            f"only {', '.join(self.stage.trainable)} may train; the run's result is void"
        )
