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
    """The digests of every tensor outside a stage's trainable blocks.

    Blocks run as copies in the precision of the computation, so the proof covers both the model's
    own tensors and the copies of the prefix that run for each batch. The suffix's frozen copies
    come back into the model with the trained ones and are covered there.
    """

    stage: Stage
    names: tuple[str, ...]
    digest: str
    before: Mapping[str, Tensor]
    running: Mapping[str, nn.Sequential]
    running_before: Mapping[str, str]

    @classmethod
    def take(
        cls, backbone: Backbone, stage: Stage, running: Mapping[str, nn.Sequential] | None = None
    ) -> FrozenProof:
        """Digest the frozen tensors, and the copies of frozen blocks that will run."""
        names = tuple(backbone.tensor_names([b for b in BLOCKS if b not in stage.trainable]))
        state = backbone.model.state_dict()
        copies = running or {}
        return cls(
            stage,
            names,
            digest_tensors(state, names),
            {name: state[name].clone() for name in names},
            copies,
            _digests(copies),
        )

    def check(self, backbone: Backbone) -> None:
        """Compare with the frozen tensors as they are now.

        Raises:
            FreezingError: a frozen tensor changed; names it.
        """
        state = backbone.model.state_dict()
        moved: list[str] = []
        if digest_tensors(state, self.names) != self.digest:
            moved = [
                name
                for name in self.names
                if digest_tensors(state, [name]) != digest_tensors(self.before, [name])
            ]
        now = _digests(self.running)
        moved += [name for name, digest in self.running_before.items() if now[name] != digest]
        if moved:
            raise FreezingError(
                f"stage {self.stage.number} changed frozen tensors ({', '.join(moved[:4])}): only "
                f"{', '.join(self.stage.trainable)} may train; the run's result is void"
            )


def _digests(blocks: Mapping[str, nn.Sequential]) -> dict[str, str]:
    return {
        f"{block}.{name}": digest_tensors({name: tensor})
        for block, module in blocks.items()
        for name, tensor in module.state_dict().items()
    }
