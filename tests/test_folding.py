"""BatchNorm folded into convolutions computes what the network computes, and moves no weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.backbones import Backbone, batch_norms, build_backbone
from pipeline.model.segments import Segment
from pipeline.training.device import compute_copy, run_segments
from pipeline.training.folding import folded
from tests.helpers import changed_names, copy_state

CPU, SIDE = torch.device("cpu"), 48


def with_statistics(name: str) -> Backbone:
    """A backbone whose BatchNorm layers are no identity."""
    backbone = build_backbone(name, num_classes=3, image_size=SIDE, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in batch_norms([backbone.model]):
            for tensor, low, high in (
                (layer.running_mean, -0.2, 0.2),
                (layer.running_var, 0.5, 2.0),
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.2, 0.2),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)
    return backbone


def images() -> Tensor:
    return torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def norms_in(segments: tuple[Segment, ...]) -> int:
    return sum(1 for _ in batch_norms(segment.module for segment in segments))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", 0),
        ("mobilenet_v3_small", 0),
        pytest.param("densenet121", 62, marks=pytest.mark.slow),  # BatchNorm comes first
        ("timm:mobilenetv3_small_050", 0),  # BatchNorm and activation are one layer
        ("timm:test_vit", 0),
        ("tests.networks:CalledTwice", 1),  # of the block that images come back to
        ("tests.networks:WeightsByHooks", 2),  # of the blocks with hooks
    ],
)
def test_a_folded_prefix_computes_the_same_and_the_backbone_stays(name: str, left: int) -> None:
    backbone = with_statistics(name)
    before = copy_state(backbone)
    prefix = backbone.frozen_segments(("head",))
    plain = compute_copy(backbone.segments[:prefix], torch.float32, CPU)
    ours = compute_copy(backbone.segments[:prefix], torch.float32, CPU, frozen=True)
    with torch.no_grad():
        expected = run_segments(plain, images(), torch.float32)
        found = run_segments(ours, images(), torch.float32)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * scale)
    assert norms_in(ours) == left
    assert not changed_names(before, copy_state(backbone))


def test_in_16_bits_a_block_computes_the_same_frozen_or_trained() -> None:
    body = with_statistics("resnet18").segments[:-1]
    with torch.no_grad():
        one, other = (
            run_segments(copy, images(), torch.bfloat16)
            for copy in (
                compute_copy(body, torch.bfloat16, CPU),
                compute_copy(body, torch.bfloat16, CPU, frozen=True),
            )
        )
    assert torch.equal(one, other)


def test_a_segment_with_the_head_and_plain_kernels_keep_their_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = with_statistics("resnet18")
    whole = Segment(
        blocks=backbone.order, module=backbone.model, owners=backbone.owners, shape=(3,)
    )
    assert norms_in(compute_copy([whole], torch.float32, CPU, frozen=True)) == norms_in((whole,))
    monkeypatch.setenv("UNFREEZE_KERNELS", "plain")
    assert norms_in(compute_copy(backbone.segments, torch.float32, CPU, frozen=True)) == norms_in(
        (whole,)
    )


class ByValue(nn.Module):
    """A forward pass that looks at its input cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out if float(out.detach().sum()) > 0 else -out


class UsedTwice(nn.Module):
    """What the convolution makes goes past BatchNorm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        normed: Tensor = self.norm(out)
        return normed + out


class Shared(nn.Module):
    """Layers of networks that use one of them more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.norm, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)


class OnePairTwice(Shared):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(self.norm(self.conv(x))))
        return out


class OneConvolutionForTwoNorms(Shared):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x)) + self.second(self.conv(x + 1))
        return out


class OneNormForTwoConvolutions(Shared):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x)) + self.norm(self.other(x))
        return out


class AlsoWithoutNorm(Shared):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x)) + self.conv(x + 1)
        return out


class AlsoInALayerThatIsWhole(Shared):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(self.conv, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x)) + self.layers(x + 1)
        return out


class AlsoByItsWeight(Shared):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out + F.conv2d(x, self.conv.weight, padding=1)


@pytest.mark.parametrize(
    "make",
    [
        *(ByValue, UsedTwice, OnePairTwice, OneConvolutionForTwoNorms, OneNormForTwoConvolutions),
        *(AlsoWithoutNorm, AlsoInALayerThatIsWhole, AlsoByItsWeight),
    ],
)
def test_what_cannot_be_folded_computes_what_it_did(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().eval()
    with torch.no_grad():
        for layer in batch_norms([module]):
            layer.weight.uniform_(2, 3)
        expected = module(images())
        again = folded(module)
        torch.testing.assert_close(again(images()), expected)
    assert any(True for _ in batch_norms([again]))
