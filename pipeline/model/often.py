"""What the most used networks have, known without importing torch, which takes seconds.

So a wrong setting is refused at once. A test compares the lists with the networks.
"""

from __future__ import annotations

OFTEN = (
    *("resnet18", "resnet34", "resnet50", "mobilenet_v2"),
    *("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"),
)
"""Networks of torchvision. Weights that do not fit the network asked for are tried on these."""
DEPTHWISE = tuple(name for name in OFTEN if not name.startswith("resnet"))
"""Those with depthwise convolutions."""
BLOCKS = ("head", "block4", "block3", "block2", "block1", "stem")
"""The blocks of these networks, head first."""


def block_order(name: str, image_size: int, blocks: str) -> tuple[str, ...]:
    """The names of a network's blocks, head first; see `backbones.block_order`."""
    if name in OFTEN and blocks == "auto":
        return BLOCKS
    from pipeline.model import backbones

    return backbones.block_order(name, image_size, blocks)


def has_batch_norm(name: str, image_size: int) -> bool:
    """Whether a network has BatchNorm; transformers and ConvNeXt have none."""
    if name in OFTEN:
        return True
    from pipeline.model import backbones

    return backbones.has_batch_norm(name, image_size)


def is_depthwise(name: str, image_size: int) -> bool:
    """Whether a network has depthwise convolutions, as MobileNets and EfficientNets have."""
    if name in OFTEN:
        return name in DEPTHWISE
    from pipeline.model import backbones

    return backbones.is_depthwise(name, image_size)
