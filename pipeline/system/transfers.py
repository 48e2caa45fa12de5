"""Tensors on their way from the host to a device, so that the host does not wait for them.

In: tensors of the host. Out: the same on a device. A copy to a CUDA device comes from pinned
memory and does not block; the pinned block is a new one each time, as PyTorch's allocator hands a
block out again only once its copy is over. On MPS host and device share one memory, and a copy is
a plain one. Not covered: copies back to the host, which are waited for where they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SHARE = 0.5
"""Of a device's free memory, for what could as well be sent batch by batch."""
PIECE_BYTES = 32 << 20


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; the tensor itself where it is there already."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def send_rows(source: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Rows of a tensor on the host, gathered straight into the memory that is copied from."""
    if device.type != "cuda":
        return source.index_select(0, rows).to(device)
    shape = (len(rows), *source.shape[1:])
    gathered = torch.empty(shape, dtype=source.dtype, pin_memory=True)
    torch.index_select(source, 0, rows, out=gathered)
    return gathered.to(device, non_blocking=True)


def send_all(
    source: Tensor, device: torch.device, on_piece: Callable[[int], object] = lambda _: None
) -> Tensor:
    """All rows on `device`, in pieces of about `PIECE_BYTES`; `on_piece` is told their bytes."""
    there = torch.empty(source.shape, dtype=source.dtype, device=device)
    size = max(1, PIECE_BYTES // max(1, source[:1].nbytes))
    for start in range(0, len(source), size):
        piece = source[start : start + size]
        there[start : start + size].copy_(send(piece, device))
        on_piece(piece.nbytes)
    return there


def has_room(size_bytes: int, device: torch.device) -> bool:
    """Whether `size_bytes` may stay on a device, which has other work to do; True on the host."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return size_bytes <= SHARE * (free + kept)  # PyTorch keeps what it has freed
    if device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        return size_bytes <= SHARE * free
    return True
