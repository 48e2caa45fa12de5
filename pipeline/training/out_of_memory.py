"""Memory that a device or the host does not have, told as a fault that a person can mend.

In: what PyTorch and NumPy raise, and the settings that a command takes. Out: an
`OutOfMemoryError` of one line, which names these settings alone. PyTorch has a class of its own
for CUDA alone; for MPS and for processors its RuntimeErrors go by their words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import OutOfMemoryError, first_line

DEVICE = "the device"
_OF_DEVICES = (
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_OF_HOSTS = tuple(f"DefaultCPUAllocator: {w} memory" for w in ("can't allocate", "not enough"))


SMALLER = {"batch_size": "images", "image_size": "pixels"}
"""Settings of which a lower value takes less memory, and what they count."""


@contextmanager
def explained(taken: Collection[str] = (*SMALLER, "device")) -> Iterator[None]:
    """Say what to do where memory does not suffice.

    `taken`: the settings that the command takes.

    Raises:
        OutOfMemoryError: it does not.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
        where = _where(err)
        if not where:
            raise
        raise OutOfMemoryError(
            f"the memory of {where} does not suffice ({first_line(err)}): {_advice(where, taken)}"
        ) from err


def _advice(where: str, taken: Collection[str]) -> str:
    """What to do, by settings that the command takes."""
    smaller = " or ".join(f"-P {key}=<{what}>" for key, what in SMALLER.items() if key in taken)
    ways = [f"pass a smaller {smaller}"] if smaller else []
    if where == DEVICE and "device" in taken:
        ways.append("-P device=cpu" if ways else "pass -P device=cpu")
    elif "batch_size" in taken:
        ways.append("fewer images")
    if not smaller:
        ways.append("end other programs that use it")
    kept = "; what is finished is kept" if "device" in taken else ""
    return f"{', or '.join(ways)}{kept}"


def _where(err: Exception) -> str:
    """Whose memory it is; empty where the fault is another."""
    said = str(err)
    if isinstance(err, torch.OutOfMemoryError) or any(words in said for words in _OF_DEVICES):
        return DEVICE
    if isinstance(err, MemoryError) or any(words in said for words in _OF_HOSTS):
        return "this machine"
    return ""
