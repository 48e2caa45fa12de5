"""Which blocks train, in which BatchNorm mode, and the proof that the others did not move.

Parameters *and buffers* outside the trainable blocks are bit-identical before and after a stage:
they run in eval mode, need no gradient and never meet an optimizer. `FrozenProof` digests them
before and after and fails the run if they differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from pipeline.errors import FreezingError
from pipeline.model.backbones import Backbone, batch_norms
from pipeline.settings.schedules import Stage
from pipeline.system.digests import digest_each, digest_values


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
            for layer in batch_norms([block]):
                layer.eval()


@dataclass
class FrozenProof:
    """The digests of every tensor outside a stage's trainable blocks.

    Blocks run as copies in the precision of the computation, so the proof covers both the model's
    own tensors and the copies that run for each batch.

    Attributes:
        digests: frozen tensor's name -> SHA-256, before the stage.
    """

    stage: Stage
    digests: dict[str, str]
    running: Mapping[str, nn.Sequential] = field(default_factory=dict)
    running_digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def take(cls, backbone: Backbone, stage: Stage) -> FrozenProof:
        """Digest the frozen tensors."""
        names = backbone.tensor_names([b for b in backbone.blocks if b not in stage.trainable])
        return cls(stage, digest_each(backbone.model.state_dict(), names))

    def watch(self, running: Mapping[str, nn.Sequential]) -> None:
        """Digest the copies of frozen blocks that will run, too."""
        self.running, self.running_digests = running, _digests(running)

    @property
    def digest(self) -> str:
        """One SHA-256 over all frozen tensors."""
        return digest_values(self.digests)

    def check(self, backbone: Backbone) -> None:
        """Compare with the frozen tensors as they are now.

        Raises:
            FreezingError: a frozen tensor changed; names it.
        """
        now = digest_each(backbone.model.state_dict(), self.digests) | _digests(self.running)
        before = self.digests | self.running_digests
        moved = [name for name in before if now[name] != before[name]]
        if moved:
            raise FreezingError(
                f"stage {self.stage.number} changed frozen tensors ({', '.join(moved[:4])}): only "
                f"{', '.join(self.stage.trainable)} may train; the run's result is void"
            )


def _digests(blocks: Mapping[str, nn.Sequential]) -> dict[str, str]:
    return {
        f"{block}.{name}": digest
        for block, module in blocks.items()
        for name, digest in digest_each(module.state_dict(), module.state_dict()).items()
    }
