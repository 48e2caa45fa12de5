"""Convolutions over small feature maps as matrix products, on a processor.

At 64 px the last blocks of a ResNet see maps of 4x4 and 2x2. There oneDNN's convolution spends
most of a training step on the gradient of the weights; laid out as a matrix product (im2col,
Chellapilla, Puri & Simard 2006) a bfloat16 step takes less than half the time, and a float32 one
with AVX2 an eighth less. On 2x2 maps, where im2col would mostly multiply padding, the whole
convolution is one dense matrix.
A 1x1 convolution is a product as it stands: in float32 its weight gradient is computed as one on
maps of any size. Which product pays at which size was measured (docs/experiments); other larger
maps keep the library's convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_POSITIONS = 16
"""Largest map (height x width) whose weight gradient is a matrix product."""
MAX_DENSE_SIDE = 2
"""Largest map side on which a 3x3 convolution joins every position to every other."""
CHANNELS_PER_POSITION = 32
"""With as many output channels for each position, the other two products pay as well."""


def use_small_convolutions(block: nn.Module, *, frozen: bool = False) -> None:
    """Replace plain convolutions (no groups or dilation; no bias unless frozen) by `SmallConv2d`.

    A subclass may pad or scale in its own way, and a hook may make the weight; both stay.
    """
    for name, child in block.named_children():
        if (
            type(child) is nn.Conv2d
            and is_plain(child)
            and child.padding_mode == "zeros"
            and child.groups == 1
            and child.dilation == (1, 1)
            and (child.bias is None or frozen)
            and child.stride[0] == child.stride[1]
            and child.padding in ((0, 0), (1, 1))
        ):
            setattr(block, name, SmallConv2d(child))
        else:
            use_small_convolutions(child, frozen=frozen)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes with its own parameters alone: no hook makes or changes anything.

    Spectral and weight normalisation, and pruning, write a layer's weight before each pass.
    """
    hooked = layer._forward_pre_hooks or layer._forward_hooks
    return not hooked and isinstance(layer.weight, nn.Parameter | None)


class SmallConv2d(nn.Module):
    """Matrix products where the map is small, else `conv2d`. Tensors are channels-last.

    With a bias there is no gradient.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride = conv.stride[0]
        self.padding = int(conv.padding[0])
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, O, H', W')."""
        if self.bias is not None:
            how = _How(x, self.weight, self.stride, self.padding)
            return _convolved(how, x, self.weight, self.bias)
        out: Tensor = _SmallConv.apply(x, self.weight, self.stride, self.padding)
        return out


class _How:
    """Which products a convolution is computed by."""

    def __init__(self, x: Tensor, weight: Tensor, stride: int, padding: int) -> None:
        self.stride, self.padding = stride, padding
        self.height = (x.shape[2] + 2 * padding - weight.shape[2]) // stride + 1
        self.width = (x.shape[3] + 2 * padding - weight.shape[3]) // stride + 1
        positions = self.height * self.width
        self.dense = (
            max(x.shape[2:]) <= MAX_DENSE_SIDE
            and tuple(weight.shape[2:]) == (3, 3)
            and (stride, padding) == (1, 1)
        )
        self.as_product = positions * CHANNELS_PER_POSITION <= weight.shape[0]
        # the patches of a 1x1 convolution are its input: nothing is laid out for the product
        is_product = tuple(weight.shape[2:]) == (1, 1) and (stride, padding) == (1, 0)
        self.weight_as_product = positions <= MAX_POSITIONS or (
            is_product and weight.dtype.itemsize > 2
        )


def _convolved(
    how: _How, x: Tensor, weight: Tensor, bias: Tensor | None, matrix: Tensor | None = None
) -> Tensor:
    """(N, C, H, W) to (N, O, H', W'); `matrix`: of a dense one."""
    if how.dense:
        if matrix is None:
            matrix = _dense_matrix(weight, how.height, how.width)
        out = F.linear(
            _rows(x), matrix, bias if bias is None else bias.repeat(how.height * how.width)
        )
    elif how.as_product:
        columns = _columns(x, weight, how.stride, how.padding)
        out = F.linear(columns, _rows(weight), bias)
    else:
        return F.conv2d(x, weight, bias, how.stride, how.padding)
    return out.view(len(x), how.height, how.width, -1).permute(0, 3, 1, 2)


class _SmallConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:  # noqa: ANN401
        ctx.how = how = _How(x, weight, stride, padding)
        matrix = _dense_matrix(weight, how.height, how.width) if how.dense else None
        ctx.save_for_backward(x, weight, matrix)
        return _convolved(how, x, weight, None, matrix)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ANN401
        (grad,) = gradients
        how: _How = ctx.how
        x, weight, matrix = ctx.saved_tensors
        if how.dense:
            grad_x = None
            if ctx.needs_input_grad[0]:
                n, c, h, w = x.shape
                grad_x = (_rows(grad) @ matrix).view(n, h, w, c).permute(0, 3, 1, 2)
            return grad_x, _dense_weight_gradient(x, weight, grad), None, None
        stride, padding = how.stride, how.padding
        grad_x = grad_weight = None
        wants_x = ctx.needs_input_grad[0]
        by_library = [wants_x and not how.as_product, not how.weight_as_product]
        if any(by_library):
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                *(grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1),
                [*by_library, False],
            )
        rows = grad.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])  # (N * H' * W', O)
        if how.weight_as_product:
            product = rows.t() @ _columns(x, weight, stride, padding)
            o, c, kh, kw = weight.shape
            grad_weight = product.view(o, kh, kw, c).permute(0, 3, 1, 2)
        if wants_x and how.as_product:
            grad_x = _fold(rows @ _rows(weight), x, weight, grad, stride, padding)
        return grad_x, grad_weight, None, None


def _dense_matrix(weight: Tensor, height: int, width: int) -> Tensor:
    """A 3x3 convolution with padding 1 as one matrix, (H * W * O, H * W * C).

    On maps of at most 2x2 every input position is under the kernel of every output position, so
    the matrix has no zeros, while 20 of the 36 taps of im2col would multiply padding.
    """
    o, c = weight.shape[:2]
    taps = weight.permute(0, 2, 3, 1)  # (O, 3, 3, C)
    matrix = weight.new_empty(height, width, o, height, width, c)
    for i in range(height):
        for j in range(width):
            matrix[i, j] = taps[:, 1 - i : 1 - i + height, 1 - j : 1 - j + width]
    return matrix.view(height * width * o, height * width * c)


def _dense_weight_gradient(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """The gradient of each tap from the positions that it joins, shaped like the weight."""
    o, c = weight.shape[:2]
    height, width = x.shape[2:]
    inputs, outputs = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    taps = weight.new_zeros(o, 3, 3, c)
    for i in range(max(0, 2 - height), min(3, height + 1)):
        for j in range(max(0, 2 - width), min(3, width + 1)):
            # output row r reads input row r + i - 1
            rows = slice(max(0, 1 - i), min(height, height + 1 - i))
            columns = slice(max(0, 1 - j), min(width, width + 1 - j))
            under = inputs[:, rows.start + i - 1 : rows.stop + i - 1]
            under = under[:, :, columns.start + j - 1 : columns.stop + j - 1]
            over = outputs[:, rows, columns].reshape(-1, o)
            torch.mm(over.t(), under.reshape(-1, c), out=taps[:, i, j])
    return taps.permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H * W * C), weights, too: a view of channels-last tensors."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def _columns(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The patch under each output position, (N * H' * W', kh * kw * C)."""
    rows = x.permute(0, 2, 3, 1)
    kh, kw = weight.shape[2:]
    if padding:
        rows = F.pad(rows, (0, 0, padding, padding, padding, padding))
    n, h, w, c = rows.shape
    height, width = (h - kh) // stride + 1, (w - kw) // stride + 1
    rows = rows.contiguous()
    step = rows.stride()
    strides = (step[0], step[1] * stride, step[2] * stride, step[1], 1)
    patches = rows.as_strided((n, height, width, kh, kw * c), strides)
    return patches.reshape(n * height * width, kh * kw * c)


def _fold(
    columns: Tensor, x: Tensor, weight: Tensor, grad: Tensor, stride: int, padding: int
) -> Tensor:
    """The transpose of `_columns`: add every patch back where it came from, shaped like x."""
    n, c, h, w = x.shape
    kh, kw = weight.shape[2:]
    height, width = grad.shape[2:]
    patches = columns.view(n, height, width, kh, kw, c)
    padded = columns.new_zeros(n, h + 2 * padding, w + 2 * padding, c)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i, i + stride * height, stride)
            padded[:, rows, j : j + stride * width : stride] += patches[:, :, :, i, j]
    return padded[:, padding : padding + h, padding : padding + w].permute(0, 3, 1, 2)
