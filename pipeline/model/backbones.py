"""Pretrained classifiers cut into the same six blocks.

In: a backbone's name and a number of classes. Out: torchvision's model, its modules grouped into
`head, block4, block3, block2, block1, stem` that can be run one after another. Parameters keep
torchvision's names, so that checkpoints load into torchvision's own models.

ResNets are cut at `fc, layer4..layer1, conv1+bn1`. The others are runs of `features` at one
spatial resolution: a layer with stride 2 begins a new block, and `block4` ends with the final 1x1
convolution. Pooling has no parameters and ends `block4`, so that the head's input is a plain
vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.settings.schedules import BLOCKS

FORWARD_ORDER = tuple(reversed(BLOCKS))


@dataclass(frozen=True)
class Backbone:
    """A classifier as blocks. `model` owns the parameters; `blocks` (stem first) share them.

    Attributes:
        name: torchvision's name of the model.
        model: the torchvision model.
        blocks: block name -> its layers, in forward order.
    """

    name: str
    model: nn.Module
    blocks: dict[str, nn.Sequential]

    def run(self, inputs: Tensor, blocks: Iterable[str]) -> Tensor:
        """Pass `inputs` through the named blocks, which must be given in forward order."""
        for block in blocks:
            inputs = self.blocks[block](inputs)
        return inputs

    def tensor_names(self, blocks: Iterable[str]) -> list[str]:
        """State-dict names (parameters and buffers) of these blocks, in the model's order."""
        wanted = {
            id(t)
            for block in blocks
            for t in self.blocks[block].state_dict(keep_vars=True).values()
        }
        named = self.model.state_dict(keep_vars=True)
        return [name for name, tensor in named.items() if id(tensor) in wanted]

    def head_layer(self) -> str:
        """Name of the last linear layer, whose size depends on the number of classes."""
        layers = self.model.named_modules()
        return str([name for name, module in layers if isinstance(module, nn.Linear)][-1])


def batch_norms(blocks: Iterable[nn.Module]) -> Iterator[nn.BatchNorm2d]:
    """Every BatchNorm layer in these modules."""
    layers = (layer for block in blocks for layer in block.modules())
    return (layer for layer in layers if isinstance(layer, nn.BatchNorm2d))


def build_backbone(name: str, num_classes: int, seed: int) -> Backbone:
    """A backbone in eval mode with random weights drawn from `seed`.

    Pretrained weights replace all but the new head, so `seed` is the head's initialisation.
    """
    import torchvision

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes
        )
    parts = dict(model.named_children())
    if name.startswith("resnet"):
        stem = [parts[part] for part in ("conv1", "bn1", "relu", "maxpool")]
        runs = [stem, *([parts[f"layer{i}"]] for i in range(1, 5))]
        head = [parts["fc"]]
    else:
        runs = _resolution_runs(parts["features"])
        head = list(parts["classifier"].children())
    runs[-1] += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    groups = zip(FORWARD_ORDER, [*runs, head], strict=True)
    blocks = {block: nn.Sequential(*layers).eval() for block, layers in groups}
    return Backbone(name, model.eval(), blocks)


def _resolution_runs(features: nn.Module) -> list[list[nn.Module]]:
    runs: list[list[nn.Module]] = []
    for layer in features.children():
        halves = any(isinstance(m, nn.Conv2d) and m.stride[0] == 2 for m in layer.modules())
        if halves:
            runs.append([])
        runs[-1].append(layer)
    return runs
