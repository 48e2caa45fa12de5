"""Networks that are used most: what is known of them without importing torch, which takes seconds.

A wrong setting is told at once that way; a test compares the list with what the networks have.
"""

from __future__ import annotations

OFTEN = (
    *("resnet18", "resnet34", "resnet50", "mobilenet_v2"),
    *("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"),
)
"""Networks of torchvision; weights that fit no network asked for are tried for these."""
BLOCKS = ("head", "block4", "block3", "block2", "block1", "stem")
"""Their blocks, head first."""
