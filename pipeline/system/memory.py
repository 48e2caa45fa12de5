"""Memory of the process: the most that a piece of work held, and what is freed and kept."""

from __future__ import annotations

import ctypes
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): clear_refs resets the peak of the resident set
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGEST_FROM_HEAP = 1 << 30
_KEPT_AT_MOST = (1 << 31) - 1


class PeakMemory:
    """Begins now; `read_mib` says the most since.

    On CUDA what PyTorch allocated on the device. On a CPU under Linux the process's resident
    memory, imports and images included; what earlier work freed is given back first. Elsewhere
    NaN: the system keeps one peak for the whole process.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_known = True
        if device.type == "cuda":
            import torch

            torch.cuda.init()  # type: ignore[no-untyped-call]  # the reset does not
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if _CLEAR.exists() else None
            if trim:
                trim(0)
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        except OSError:
            self._is_known = False

    def read_mib(self) -> float:
        """MiB, or NaN where it cannot be told."""
        if self._device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self._device) / 2**20
        if not self._is_known or sys.platform != "linux" or self._device.type != "cpu":
            return math.nan
        status = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1024


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees, where the C library is glibc.

    By default large tensors come from the system and go back to it at every step, and every page
    is faulted in anew: a quarter of the time of a prefix pass (docs/experiments).
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option:
        set_option(_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
        set_option(_M_TRIM_THRESHOLD, _KEPT_AT_MOST)
