"""Memory that a device or the host does not have, told as a fault that a person can mend.

In: what PyTorch and NumPy raise. Out: an `OutOfMemoryError` of one line. PyTorch has a class of
its own for CUDA alone; for MPS and for processors its RuntimeErrors go by their words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import OutOfMemoryError, first_line

_OF_DEVICES = ("MPS backend out of memory", "CUDA error: out of memory")
_OF_HOSTS = tuple(f"DefaultCPUAllocator: {w} memory" for w in ("can't allocate", "not enough"))


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do where memory does not suffice.

    Raises:
        OutOfMemoryError: it does not.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
        where = _where(err)
        if not where:
            raise
        instead = ", or -P device=cpu" if where == "the device" else ", or fewer images"
        raise OutOfMemoryError(
            f"the memory of {where} does not suffice ({first_line(err)}): pass a smaller "
            f"-P batch_size=<images> or -P image_size=<pixels>{instead}; what is finished is kept"
        ) from err


def _where(err: Exception) -> str:
    """Whose memory it is; empty where the fault is another."""
    said = str(err)
    if isinstance(err, torch.OutOfMemoryError) or any(words in said for words in _OF_DEVICES):
        return "the device"
    if isinstance(err, MemoryError) or any(words in said for words in _OF_HOSTS):
        return "this machine"
    return ""
