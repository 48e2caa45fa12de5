"""Where and in what precision blocks are computed.

Out: a device, a dtype, and copies of blocks cast to it. BatchNorm's parameters and statistics and
the head stay float32: they are small, and the head's logits feed the loss.
"""

from __future__ import annotations

import copy
import ctypes
import os
import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.errors import SettingsError
from pipeline.model.backbones import Backbone
from pipeline.system.interrupts import check
from pipeline.training.small_conv import use_small_convolutions

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KERNELS = "UNFREEZE_KERNELS"
LARGEST_FROM_HEAP = 1 << 30
KEPT_AT_MOST = (1 << 31) - 1


def pick_device(name: str) -> torch.device:
    """`auto`: cuda, else mps, else cpu.

    Raises:
        SettingsError: the device asked for is not here.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    here = [*(device for device, is_here in present.items() if is_here), "cpu"]
    if name not in ("auto", *here):
        raise SettingsError(
            f"device={name} is not available here: pass -P device=auto ({', '.join(here)})"
        )
    return torch.device(here[0] if name == "auto" else name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the processor multiplies it natively, else float32."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees, where the C library is glibc.

    By default large tensors come from the system and go back to it at every step, and every page
    is faulted in anew: a quarter of the time of a prefix pass (docs/experiments).
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option:
        set_option(M_MMAP_THRESHOLD, LARGEST_FROM_HEAP)
        set_option(M_TRIM_THRESHOLD, KEPT_AT_MOST)


def kernels() -> str:
    """`fast`, or `plain`: every convolution by PyTorch's own kernel, to check ours against.

    Raises:
        SettingsError: the environment variable `UNFREEZE_KERNELS` says something else.
    """
    name = os.environ.get(KERNELS, "") or "fast"
    if name not in ("fast", "plain"):
        raise SettingsError(f"{KERNELS}={name}: write fast or plain, or unset it")
    return name


def with_kernels(name: str) -> str:
    """A device or a precision as keys name it: what plain kernels compute is kept apart."""
    return name if kernels() == "fast" else f"{name} plain"


def uses_channels_last(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether maps are (N, H, W, C) in memory: faster wherever measured (docs/experiments)."""
    return device.type == "cpu" or dtype == torch.bfloat16


def compute_copy(
    backbone: Backbone, blocks: Iterable[str], dtype: torch.dtype, device: torch.device
) -> dict[str, nn.Sequential]:
    """Independent copies of the named blocks in `dtype` on `device`, in eval mode.

    On a processor small maps are convolved as matrix products (`small_conv`), unless `kernels`
    are plain.
    """
    copies = copy.deepcopy({name: backbone.blocks[name] for name in blocks})
    for name, block in copies.items():
        block.to(device).eval().requires_grad_(False)
        if name != "head":
            for module in block.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(dtype)
        if uses_channels_last(dtype, device):
            block.to(memory_format=torch.channels_last)
        if device.type == "cpu" and kernels() == "fast":
            use_small_convolutions(block)
    return copies


def run_blocks(blocks: dict[str, nn.Sequential], inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Pass `inputs` through blocks in forward order: `dtype` inside, float32 into the head.

    Raises:
        KeyboardInterrupt: Ctrl-C has asked for it; every batch of every pass comes through here.
    """
    if inputs.ndim == 4:
        last = uses_channels_last(dtype, inputs.device)
        order = torch.channels_last if last else torch.contiguous_format
        inputs = inputs.contiguous(memory_format=order)
    for name, block in blocks.items():
        check()
        inputs = block(inputs.to(torch.float32 if name == "head" else dtype))
    return inputs
