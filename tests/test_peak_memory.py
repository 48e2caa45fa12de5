"""Memory: what a piece of work held at most is seen, and what is freed is kept."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.system import memory
from pipeline.system.memory import PeakMemory, keep_freed_memory
from tests.helpers import CPU

BIG_MIB = 400
ROOM_MIB = 80
"""What else a process may do to its memory meanwhile."""
FAULTS = """
import resource, sys
from pipeline.system.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * (40 << 20)  # above what malloc ever takes from the heap
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
leave = [faults() for _ in range(2)][1]
keep_freed_memory()
keep = [faults() for _ in range(2)][1]
sys.exit(not keep < 0.1 * leave)
"""

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


def fill(mib: int) -> torch.Tensor:
    """So much memory, every page of it written."""
    return torch.ones(mib << 18)


def peak_of_nothing() -> float:
    return PeakMemory(CPU).read_mib()


@on_linux
def test_memory_that_was_given_back_before_the_end_is_seen() -> None:
    before = peak_of_nothing()
    peak = PeakMemory(CPU)
    held = fill(BIG_MIB)
    del held
    assert BIG_MIB - ROOM_MIB <= peak.read_mib() - before <= BIG_MIB + ROOM_MIB


@on_linux
def test_a_peak_is_no_longer_counted_once_the_next_work_begins() -> None:
    keep_freed_memory()  # as every command does: the process would keep what it frees
    before = peak_of_nothing()
    peak = PeakMemory(CPU)
    for _ in range(3):
        held = fill(BIG_MIB)
        del held
    assert peak.read_mib() - before >= BIG_MIB - ROOM_MIB
    assert peak_of_nothing() - before <= ROOM_MIB


@on_linux
def test_small_pieces_that_were_given_back_are_not_counted_either() -> None:
    keep_freed_memory()
    before = peak_of_nothing()
    pieces = [torch.ones(1 << 14) for _ in range(BIG_MIB * 16)]
    last = pieces[-1]  # the heap cannot shrink below it
    assert peak_of_nothing() - before >= BIG_MIB - ROOM_MIB
    del pieces
    assert last.sum() == 1 << 14
    assert peak_of_nothing() - before <= ROOM_MIB


@on_linux
def test_reading_twice_says_the_same_and_more_only_for_more() -> None:
    peak = PeakMemory(CPU)
    first = peak.read_mib()
    assert peak.read_mib() - first <= ROOM_MIB
    held = fill(BIG_MIB)
    for now in (peak.read_mib(), peak_of_nothing()):  # what is still held counts in the next peak
        assert now - first >= BIG_MIB - ROOM_MIB
    assert held[-1] == 1


def test_where_the_peak_cannot_be_reset_and_on_other_devices_it_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert math.isnan(PeakMemory(torch.device("mps")).read_mib())
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "nowhere" / "clear_refs")
    assert math.isnan(peak_of_nothing())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_what_was_allocated_there_counts() -> None:
    device = torch.device("cuda")
    peak = PeakMemory(device)
    before = torch.cuda.memory_allocated(device) / 2**20
    held = torch.ones(BIG_MIB << 18, device=device)
    del held
    assert peak.read_mib() - before >= BIG_MIB
    assert PeakMemory(device).read_mib() <= before + 1


@on_linux
def test_freed_memory_is_not_faulted_in_again() -> None:
    subprocess.run([sys.executable, "-c", FAULTS], check=True)
