"""What PyTorch asks a driver, answered for `fake_device.FakeDevice`: two devices, all alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol
from unittest.mock import patch

import torch

DEVICES = 2
_cudnn, _matmul = torch.backends.cudnn, torch.backends.cuda.matmul
Facade = list[tuple[Any, str, Any]]
"""Modules, names in them, and what takes their place."""


class Driver(Protocol):
    """What answers are made of.

    Attributes:
        is_started: the driver is in use; most calls start it, that for peaks of memory does not.
        current: the number of the current device.
    """

    capability: tuple[int, int]
    model: str
    free_bytes: int
    reserved_bytes: int
    generators: tuple[torch.Generator, ...]
    is_started: bool
    current: int

    def start(self) -> None:
        """What PyTorch does by itself before most calls of a device."""


def _of_cuda(fake: Driver) -> Facade:
    def started(answer: Callable[[], object]) -> Callable[..., object]:
        def asked(_: object = None) -> object:
            fake.start()
            return answer()

        return asked

    def reset_peak(_: object = None) -> None:
        if not fake.is_started:
            raise RuntimeError("Invalid device argument 0: did you call init?")

    def set_device(device: torch.device) -> None:
        fake.current = torch.device(device).index or 0

    answers = {
        "is_available": lambda: True,
        "device_count": lambda: DEVICES,
        "init": fake.start,
        "_initialized": True,
        "_is_in_bad_fork": lambda: False,
        "default_generators": fake.generators,
        "current_device": lambda: fake.current,
        "set_device": set_device,
        "get_device_capability": started(lambda: fake.capability),
        "get_device_name": started(lambda: fake.model),
        "memory_reserved": lambda _=None: fake.reserved_bytes,
        "memory_allocated": lambda _=None: 0,
        "mem_get_info": started(lambda: (fake.free_bytes, fake.free_bytes)),
        "reset_peak_memory_stats": reset_peak,
        "max_memory_allocated": lambda _=None: 0,
    }
    return [
        *((torch.cuda, name, answer) for name, answer in answers.items()),
        *((torch.cuda.random, n, answers[n]) for n in ("current_device", "device_count")),
        (torch.accelerator, "is_available", lambda: False),  # optimizers ask, for CUDA graphs
    ]


def _of_mps(fake: Driver) -> Facade:
    return [
        (torch.backends.mps, "is_available", lambda: True),
        (torch.mps, "_get_default_mps_generator", lambda: fake.generators[0]),
        (torch.mps, "recommended_max_memory", lambda: fake.free_bytes),
        (torch.mps, "current_allocated_memory", lambda: 0),
    ]


@contextmanager
def flags_kept() -> Iterator[None]:
    """Whether kernels are deterministic, and the like, is afterwards what it was."""
    fill = torch.utils.deterministic
    places = [(_cudnn, "benchmark"), (_cudnn, "deterministic"), (_cudnn, "allow_tf32")]
    places += [(_matmul, "allow_tf32"), (fill, "fill_uninitialized_memory")]
    before = [getattr(*place) for place in places]
    enabled = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with patch.dict(os.environ):
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=only_warns)
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


FACADES: Mapping[str, Callable[[Driver], Facade]] = {"cuda": _of_cuda, "mps": _of_mps}
