"""Convolutions as matrix products equal the library's, forward and backward."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from pipeline.training.small_conv import SmallConv2d, use_small_convolutions

SHAPES = [  # images, channels in, map, channels out, kernel, stride, padding
    (3, 4, 2, 64, 3, 1, 1),  # every product
    (3, 4, 2, 128, 3, 1, 1),
    (2, 6, 4, 256, 3, 2, 1),
    (2, 6, 4, 8, 3, 1, 1),  # the weight gradient alone
    (2, 6, 5, 8, 3, 2, 1),  # odd map
    (2, 6, 9, 8, 3, 1, 1),  # too large: the library's own
    (2, 6, 4, 256, 1, 2, 0),  # a residual shortcut
    (2, 6, 1, 64, 1, 1, 0),
    (2, 6, 9, 8, 1, 1, 0),  # its weight gradient, whatever the map
    (3, 4, 1, 5, 3, 1, 1),  # dense, in any precision
    (3, 4, 2, 5, 3, 1, 1),
    (3, 4, 3, 5, 3, 1, 1),  # too large for it
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("needs_input_gradient", [True, False])
def test_values_and_gradients_equal_the_library(
    shape: tuple[int, ...], needs_input_gradient: bool
) -> None:
    n, c, side, o, kernel, stride, padding = shape
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(c, o, kernel, stride, padding, bias=False).double()
    x = torch.randn(n, c, side, side, generator=generator, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last)
    conv.to(memory_format=torch.channels_last)
    ours = SmallConv2d(conv)
    results = []
    for module in (conv, ours):
        inputs = x.clone().requires_grad_(needs_input_gradient)
        conv.weight.grad = None
        out = module(inputs)
        torch.autograd.backward(out.square().sum())
        results.append((out.detach(), conv.weight.grad.clone(), inputs.grad))
    (out, weight, grad), (our_out, our_weight, our_grad) = results
    torch.testing.assert_close(our_out, out)
    torch.testing.assert_close(our_weight, weight)
    assert our_weight.stride() == ours.weight.stride()
    if needs_input_gradient:
        torch.testing.assert_close(our_grad, grad)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_frozen_convolution_with_a_bias_equals_the_library(shape: tuple[int, ...]) -> None:
    n, c, side, o, kernel, stride, padding = shape
    conv = nn.Conv2d(c, o, kernel, stride, padding).double().requires_grad_(False)
    conv.to(memory_format=torch.channels_last)
    block = nn.Sequential(conv)
    use_small_convolutions(block)
    assert block[0] is conv
    use_small_convolutions(block, frozen=True)
    assert type(block[0]) is SmallConv2d
    x = torch.randn(n, c, side, side, generator=torch.Generator().manual_seed(0)).double()
    x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(block(x), conv(x))


class PaddedAsNeeded(nn.Conv2d):
    """As in networks that came from TensorFlow: how much is padded depends on the map."""


def test_convolutions_that_pad_or_scale_in_their_own_way_are_left_alone() -> None:
    block = nn.Sequential(
        PaddedAsNeeded(4, 8, 3, bias=False),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", bias=False),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, bias=False)),
    )
    before = list(block)
    use_small_convolutions(block)
    assert list(block) == before


def test_convolutions_with_hooks_are_left_alone() -> None:
    plain = partial(nn.Conv2d, 8, 8, 3, padding=1, bias=False)
    block = nn.Sequential(nn.utils.spectral_norm(plain()), plain(), plain())
    block[1].register_forward_pre_hook(lambda layer, _: layer.weight.data.clamp_(-1, 1))
    block[2].register_forward_hook(lambda _, __, out: out + 1)
    before = list(block)
    use_small_convolutions(block)
    assert list(block) == before


def test_only_plain_convolutions_are_replaced_and_names_stay() -> None:
    block = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, bias=False),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, dilation=2, bias=False),
        nn.Conv2d(8, 8, (3, 1), bias=False),
    )
    names = list(block.state_dict())
    use_small_convolutions(block)
    assert [type(layer) is SmallConv2d for layer in block] == [True, False, False, False, True]
    assert type(block[1][0]) is nn.Conv2d
    assert list(block.state_dict()) == names
