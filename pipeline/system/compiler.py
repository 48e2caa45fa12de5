"""torch's compiler, left out: importing it takes as long as torch, and nothing is compiled here.

torchvision imports it to compile an operation of detectors, optimizers to tell it that they are
not to be compiled, and tensors on the device `meta` to draw numbers that they do not have. Where
anything else imports the compiler, it is there as ever.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

_ASKED_FOR = "torch._dynamo.utils"
_DRAWING = (Tensor.normal_, Tensor.uniform_)
_NOT_COMPILED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import what asks for the compiler and does not use it yet."""
    if _ASKED_FOR in sys.modules:
        yield
        return
    stand_in = ModuleType(_ASKED_FOR)

    def found(name: str) -> Any:  # noqa: ANN401 - whatever the compiler has
        if name.startswith("__"):  # asked of every module
            raise AttributeError(name)
        _take_away(stand_in)
        return getattr(import_module(_ASKED_FOR), name)

    vars(stand_in)["is_compile_supported"] = lambda device: found("is_compile_supported")(device)
    vars(stand_in)["__getattr__"] = found
    sys.modules[_ASKED_FOR] = stand_in
    try:
        yield
    finally:
        _take_away(stand_in)


def _take_away(stand_in: ModuleType) -> None:
    if sys.modules.get(_ASKED_FOR) is stand_in:
        del sys.modules[_ASKED_FOR]


def never_compiled(kind: type[Optimizer]) -> Callable[..., Optimizer]:
    """The same optimizer without what it has the compiler told at every step."""
    own: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in _NOT_COMPILED}
    own["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), own)


class NothingDrawn(TorchFunctionMode):
    """Within, tensors keep what they have in place of random numbers: for those without values."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function gives
        """Call the function, unless it draws in place."""
        return args[0] if func in _DRAWING else func(*args, **(kwargs or {}))
