"""The most memory that a piece of work held, where it can be told apart from what came before."""

from __future__ import annotations

import ctypes
import math
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): clear_refs resets the peak of the resident set


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
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        if not self._is_known or sys.platform != "linux" or self._device.type != "cpu":
            return math.nan
        status = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1024
