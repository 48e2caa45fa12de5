"""A pretrained classifier as blocks, and as the segments that are computed one after another.

In: a network's name, a number of classes, a size of images. Out: a `Backbone`: the network with
random weights, which block each of its tensors belongs to (`grouping.py`), and the segments that
the network was cut into (`cutting.py`). Parameters keep the names that the network's library gives
them, so that checkpoints load into the library's own models.

Most segments are one block. Blocks between which more than one tensor passes share a segment: a
frozen prefix ends at the border of a segment.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from pipeline.errors import SettingsError
from pipeline.model.cutting import Cut, cut
from pipeline.model.factories import check_sources, is_factory, sources_of
from pipeline.model.grouping import HEAD, Blocks, blocks_of
from pipeline.model.networks import build_network, check_network
from pipeline.model.segments import Segment
from pipeline.system.disk.digests import digest_bytes, digest_values
from pipeline.system.text import first_of

AUTO = "auto"
TOO_LARGE = 1.5
"""A head is drawn anew if its weights spread this many times as far as PyTorch's own."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A classifier as blocks. `model` owns the tensors; the segments share them.

    Attributes:
        name: as in the setting `backbone`.
        model: the network, in eval mode.
        order: names of its blocks in the order images pass through them, `head` last.
        owners: name of each parameter and buffer -> its block.
        segments: compute, one after another, what the network computes.
        merged: block -> why it shares a segment with the block after it.
        identity: digest of what the name does not tell: blocks of a person's choice, a factory's
            source files; else empty.
        head_redrawn: the library draws the head larger than `torch.nn.Linear` would; it is drawn
            by PyTorch's own rule in its place.
    """

    name: str
    model: nn.Module
    order: tuple[str, ...]
    owners: Mapping[str, str]
    segments: tuple[Segment, ...]
    merged: Mapping[str, str]
    identity: str
    head_redrawn: bool = False

    @property
    def named(self) -> dict[str, str]:
        """What a key has of the network beside its tensors: other code computes other values."""
        return {"backbone": self.name, **({"network": self.identity} if self.identity else {})}

    def run(self, inputs: Tensor, start: int = 0, end: int | None = None) -> Tensor:
        """Pass `inputs` through the segments from `start` up to and without `end`."""
        for segment in self.segments[start:end]:
            inputs = segment.module(inputs)
        return inputs

    def frozen_segments(self, trainable: Iterable[str]) -> int:
        """How many segments, from the first on, hold none of these blocks: the frozen prefix."""
        wanted = set(trainable)
        holds = [not wanted.isdisjoint(segment.blocks) for segment in self.segments]
        return holds.index(True)

    def computed_anew(self, trainable: Iterable[str]) -> tuple[str, ...]:
        """Blocks before the first of these that share its segment: no prefix can end there."""
        wanted = set(trainable)
        first = self.segments[self.frozen_segments(wanted)].blocks
        return tuple(itertools.takewhile(lambda block: block not in wanted, first))

    def tensor_names(self, blocks: Iterable[str]) -> list[str]:
        """State-dict names (parameters and buffers) of these blocks, in the model's order."""
        wanted = set(blocks)
        return [name for name in self.model.state_dict() if self.owners[name] in wanted]

    def segment_tensors(self, count: int) -> list[str]:
        """State-dict names of the first `count` segments, in the model's order."""
        return self.tensor_names(b for s in self.segments[:count] for b in s.blocks)

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into the network by name; names that it does not have are passed over."""
        for name, own in self.model.state_dict().items():
            if name in tensors:
                own.copy_(tensors[name])

    def head_layer(self) -> str:
        """Name of the last layer of the head, which gives the logits."""
        return self.tensor_names([HEAD])[-1].rpartition(".")[0]

    def depth(self, block: str) -> int:
        """How many blocks lie between this one and the logits: 0 for the head."""
        return len(self.order) - 1 - self.order.index(block)


BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norms(modules: Iterable[nn.Module]) -> Iterator[BatchNorm]:
    """Every BatchNorm layer, of one dimension or two, in these modules."""
    layers = (layer for module in modules for layer in module.modules())
    return (layer for layer in layers if isinstance(layer, BatchNorm))


def build_backbone(
    name: str, num_classes: int, image_size: int, seed: int, blocks: str = AUTO
) -> Backbone:
    """A backbone in eval mode with random weights drawn from `seed`.

    Pretrained weights replace all but the new head, so `seed` is the head's initialisation.

    Args:
        name: a network of torchvision, `timm:` and a network of timm, or `package.module:factory`.
        num_classes: logits of an image.
        image_size: pixels a side of the images; `run` takes other sizes where the network does.
        seed: of the random weights.
        blocks: `auto`, a number of blocks between stem and head, or a YAML file of patterns.

    Raises:
        SettingsError: no such network, images that it refuses, blocks that it cannot have.
    """
    model = build_network(name, num_classes, image_size, seed)
    grouped = blocks_of(model, name, blocks)
    if is_factory(name):
        found = _cut(model, name, grouped, num_classes, image_size)
    else:
        found = _cut_of(name, num_classes, image_size, blocks)
    _check_head(model, name, grouped, num_classes)
    backbone = Backbone(
        name=name,
        model=model,
        order=grouped.order,
        owners=grouped.owners,
        segments=found.of(model),
        merged=found.merged,
        identity=_identity(name, grouped, blocks),
    )
    redrawn = not is_factory(name) and _redraw_large_head(backbone, seed)
    return replace(backbone, head_redrawn=redrawn)


def _redraw_large_head(backbone: Backbone, seed: int) -> bool:
    """Draw the classifier as `torch.nn.Linear` does, where its library draws it larger.

    EfficientNets and MobileNetV4 draw from a range of 1 / sqrt(classes), meant for a thousand
    classes: with ten, the first logits are so large that a short stage 1 is spent on undoing them.
    """
    layer = backbone.model.get_submodule(backbone.head_layer())
    if not isinstance(layer, nn.Linear):
        return False
    usual = 1 / math.sqrt(3 * layer.in_features)  # of U(-1 / sqrt(in), 1 / sqrt(in))
    if float(layer.weight.detach().std()) <= TOO_LARGE * usual:
        return False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer.reset_parameters()
    return True


def _check_head(model: nn.Module, name: str, grouped: Blocks, classes: int) -> None:
    """Refuse a head that is not the classifier: the rest would keep a classifier at random."""
    sized = [n for n, t in model.state_dict().items() if t.shape[:1] == (classes,)]
    own = [n for n, block in grouped.owners.items() if block == HEAD]
    if not {*sized} & {*own}:
        near = f", such as {sized[-1].rpartition('.')[0] or sized[-1]}" if sized else ""
        raise SettingsError(
            f"backbone={name}: its head is {first_of(own, 4)}, and none of them gives "
            f"{classes} logits: name the classifier as head{near}"
        )


def _identity(name: str, grouped: Blocks, blocks: str) -> str:
    check_sources(name)
    files = {below: digest_bytes(content) for below, content in sources_of(name).items()}
    if not files and blocks == AUTO:
        return ""
    return digest_values({"files": files, "owners": dict(grouped.owners)})


@cache
def _cut_of(name: str, classes: int, image_size: int, blocks: str) -> Cut:
    """How a library's network is cut; the same for all its weights."""
    model = build_network(name, classes, image_size, seed=0)
    return _cut(model, name, blocks_of(model, name, blocks), classes, image_size)


def _cut(model: nn.Module, name: str, grouped: Blocks, classes: int, image_size: int) -> Cut:
    check_network(name, model, classes, image_size)
    return cut(model, grouped.owners, grouped.order, torch.zeros(1, 3, image_size, image_size))


def shape_network(name: str, image_size: int, classes: int = 2) -> nn.Module:
    """The network, for its tensors' names and shapes: it may hold no values."""
    if is_factory(name):
        return build_network(name, classes, image_size, seed=0)
    return _on_meta(name, image_size, classes)


@cache
def block_order(name: str, image_size: int, blocks: str = AUTO) -> tuple[str, ...]:
    """The names of a network's blocks, head first.

    Raises:
        SettingsError: see `build_backbone`.
    """
    return tuple(reversed(blocks_of(shape_network(name, image_size), name, blocks).order))


@cache
def has_batch_norm(name: str, image_size: int) -> bool:
    """Whether the network has BatchNorm; transformers and ConvNeXt have none."""
    return any(True for _ in batch_norms([shape_network(name, image_size)]))


@cache
def is_depthwise(name: str, image_size: int) -> bool:
    """Whether the network has depthwise convolutions, as MobileNets and EfficientNets have."""
    layers = shape_network(name, image_size).modules()
    return any(isinstance(one, nn.Conv2d) and one.groups == one.in_channels > 1 for one in layers)


@cache
def _on_meta(name: str, image_size: int, classes: int) -> nn.Module:
    """A library's network; without values where the library can make it so."""
    try:
        with torch.device("meta"):
            return build_network(name, classes, image_size, seed=0)
    except SettingsError:  # the network reads values of its weights while it is made
        return build_network(name, classes, image_size, seed=0)
