"""The network of tests in which the network is not the point: it trains in milliseconds.

`backbone=small_net:build`. Six blocks named as those of torchvision's families, with BatchNorm in
each but the head. The module stands outside the package `tests`, whose files would all be part of
a run's identity; `tests/conftest.py` puts its folder on Python's path.
"""

from __future__ import annotations

from torch import Tensor, nn

STRIDES = (2, 2, 1, 2, 1)


class SmallNet(nn.Module):
    """Stem, four blocks and a head, one after another."""

    blocks = {  # noqa: RUF012
        "head": "fc",
        "block4": "block4",
        "block3": "block3",
        "block2": "block2",
        "block1": "block1",
        "stem": "stem",
    }

    def __init__(self, num_classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem, self.block1, self.block2, self.block3, self.block4 = (
            nn.Sequential(
                nn.Conv2d(inputs, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for inputs, width, stride in zip((3, *widths[:-1]), widths, STRIDES, strict=True)
        )
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block4(self.block3(self.block2(self.block1(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


def build(num_classes: int) -> nn.Module:
    return SmallNet(num_classes, (8, 12, 16, 16, 24))


def wide(num_classes: int) -> nn.Module:
    """Another one, where tests take two."""
    return SmallNet(num_classes, (8, 16, 24, 24, 32))
