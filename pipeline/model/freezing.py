"""Which blocks train, in which BatchNorm mode, and the proof that the others did not move.

Parameters *and buffers* outside the trainable blocks are bit-identical before and after a stage:
they run in eval mode, without gradients, and no optimizer holds them. `FrozenProof` digests them
before and after and fails the run if they differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from pipeline.errors import FreezingError
from pipeline.model.backbones import Backbone, batch_norms
from pipeline.model.segments import Segment
from pipeline.system.disk.digests import digest_each, digest_values


def set_trainable(
    segments: Iterable[Segment], trainable: Iterable[str], norm: Literal["adapt", "keep"]
) -> None:
    """Put each block into the mode it has during a stage.

    Trainable blocks are in training mode with gradients; with `norm="keep"` their BatchNorm layers
    use the statistics they came with, while their scale and shift still learn. Other blocks are in
    eval mode without gradients: their dropout and stochastic depth are off.
    """
    wanted = set(trainable)
    for segment in segments:
        for block, part in segment.parts():
            if isinstance(part, nn.Module | nn.Parameter):  # a bare buffer learns nothing
                part.requires_grad_(block in wanted)
            if isinstance(part, nn.Module):
                part.train(block in wanted)
        if norm == "keep":
            for layer in batch_norms([segment.module]):
                layer.eval()


@dataclass(kw_only=True)
class FrozenProof:
    """The digests of every tensor outside a stage's trainable blocks.

    Segments run as copies in the precision of the computation, so the proof covers both the
    model's own tensors and the frozen ones of the copies that run for each batch.

    Attributes:
        stage: number of the stage, for messages.
        trainable: its blocks.
        digests: frozen tensor's name -> SHA-256, before the stage.
        running: purpose -> copies of segments that run for this purpose.
        running_digests: as `digests`, of the frozen tensors in these copies.
    """

    stage: int
    trainable: tuple[str, ...]
    digests: dict[str, str]
    running: Mapping[str, Sequence[Segment]] = field(default_factory=dict)
    running_digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def take(cls, backbone: Backbone, stage: int, trainable: tuple[str, ...]) -> FrozenProof:
        """Digest the frozen tensors."""
        names = backbone.tensor_names(set(backbone.order) - set(trainable))
        digests = digest_each(backbone.model.state_dict(), names)
        return cls(stage=stage, trainable=trainable, digests=digests)

    def watch(self, running: Mapping[str, Sequence[Segment]]) -> None:
        """Digest the frozen tensors of copies, too; `running`: purpose -> its copies."""
        self.running, self.running_digests = running, self._of_running(running)

    @property
    def digest(self) -> str:
        """One SHA-256 over all frozen tensors."""
        return digest_values(self.digests)

    def check(self, backbone: Backbone) -> None:
        """Compare with the frozen tensors as they are now.

        Raises:
            FreezingError: a frozen tensor changed; names it.
        """
        now = digest_each(backbone.model.state_dict(), self.digests)
        now |= self._of_running(self.running)
        before = self.digests | self.running_digests
        moved = [name for name in before if now[name] != before[name]]
        if moved:
            raise FreezingError(
                f"stage {self.stage} changed frozen tensors ({', '.join(moved[:4])}): only "
                f"{', '.join(self.trainable)} may train; the run's result is void"
            )

    def _of_running(self, running: Mapping[str, Sequence[Segment]]) -> dict[str, str]:
        return {
            f"{purpose}.{name}": digest
            for purpose, segments in running.items()
            for segment in segments
            for name, digest in self._frozen_in(segment).items()
        }

    def _frozen_in(self, segment: Segment) -> dict[str, str]:
        """The digests of a segment's frozen tensors, constants of no block among them."""
        state = segment.module.state_dict()
        names = [name for name in state if segment.block_of(name) not in self.trainable]
        return digest_each(state, names)
