"""Trainable parameters in reduced precision.

Reduced precision keeps float32 master weights beside the copies that compute (Micikevicius et al.
2018, arXiv 1710.03740).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.model.grouping import HEAD


class MasterWeight:
    """A trainable parameter: the copy that computes, and the float32 master that is optimized.

    The master has its dimensions in the order of the copy's memory: the fused optimizer would
    otherwise copy channels-last tensors back and forth at every step. In float32 it is the copy
    itself, seen in that order.
    """

    def __init__(self, name: str, block: str, computed: nn.Parameter, start: Tensor) -> None:
        self.name = name
        self.block = block
        self.computed = computed
        self._channels_last = computed.ndim == 4 and not computed.is_contiguous()
        self._shared = computed.dtype == torch.float32
        self.start = self._in_memory_order(start).contiguous()
        value = self._in_memory_order(computed.detach()) if self._shared else self.start.clone()
        self.master = nn.Parameter(value)
        self._gradient = None if self._shared else torch.empty_like(self.master)

    def _in_memory_order(self, tensor: Tensor) -> Tensor:
        return tensor.permute(0, 2, 3, 1) if self._channels_last else tensor

    @property
    def value(self) -> Tensor:
        """The float32 value in the parameter's own shape."""
        value = self.master.detach()
        return value.permute(0, 3, 1, 2) if self._channels_last else value

    @torch.no_grad()
    def pull_gradient(self) -> None:
        """Move the gradient to the master.

        A parameter that took no part in the forward pass has none: optimizers pass it over.
        """
        gradient = self.computed.grad
        if gradient is not None:
            gradient = self._in_memory_order(gradient)
            if self._gradient is not None:
                gradient = self._gradient.copy_(gradient)
        self.master.grad = gradient

    @torch.no_grad()
    def pull_to_start(self, l2_sp: float) -> None:
        """Add the pull of L2-SP to the master's gradient (not on the new head)."""
        if l2_sp and self.block != HEAD and self.master.grad is not None:
            self.master.grad.add_(self.master - self.start, alpha=l2_sp)

    @torch.no_grad()
    def push_value(self) -> None:
        """Move the master's value to the copy that computes, and drop the gradient."""
        if not self._shared:
            self._in_memory_order(self.computed).copy_(self.master)
        self.computed.grad = None


def unrounded(computed: Tensor, original: Tensor) -> Tensor:
    """What a computing copy holds, in the original's precision: the original where it is that."""
    if computed.dtype != original.dtype and torch.equal(original.to(computed.dtype), computed):
        return original.clone()
    return computed.to(original.dtype)
