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
