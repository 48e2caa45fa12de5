"""A device that is not there: the code that trains really runs on it, and every copy is counted.

In: a kind (`cuda` or `mps`). Inside `FakeDevice`, `.to("cuda")`, `torch.zeros(device=...)` and the
rest give tensors that say that they are on that device and hold real values, which a processor
computes. What goes from host to device, from device to host, and what a host waits for is kept as
a `Move`, with the line of the pipeline that asked for it. As on a real device, tensors of two
places in one operation are refused, `.numpy()` is, and so is float64 on MPS.

Why a tensor subclass under a dispatch mode: PyTorch's own FakeTensor gives shapes without values,
so that no epoch has a loss to log; a mode that counts over plain processor tensors never takes the
paths that ask for `device.type`, and `.to(device)` of a tensor that is there already is nothing to
count; a backend of one's own (privateuse1) is compiled C++ and is not called `cuda`. To autograd
the tensors are on `meta:1`: its engine has a thread for a CUDA device only where a driver is.

Not covered: CUDA's kernels, their rounding, determinism and speed, and memory, of which only the
largest single tensor is limited. Copies to the host that do not wait are refused: nothing here
could tell whether they were waited for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.fake_driver import DEVICES, FACADES, flags_kept

aten = torch.ops.aten
HOST = torch.device("cpu")
TO_DEVICE, TO_HOST, WAITS = "to device", "to host", "host waits"
_ITEM = (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default)
_SHAPES_FROM_VALUES = (
    *(aten.nonzero.default, aten.masked_select.default, aten._unique2.default),
    *(aten.unique_dim.default, aten.bincount.default, aten.repeat_interleave.Tensor),
)
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
_COPIES = (aten._to_copy.default, aten.copy_.default)
_PUT = aten.copy_.default


@dataclass(frozen=True, kw_only=True)
class Move:
    """One copy between host and device, or one wait.

    Attributes:
        is_free: the host goes on at once: from pinned memory, not blocking.
        line: the innermost line of the pipeline that led to it.
    """

    kind: str
    size_bytes: int
    is_free: bool
    line: str


class OnDevice(Tensor):
    """A tensor on the device; `held` is where its values really are."""

    held: Tensor
    place: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type[OnDevice], values: Tensor, place: torch.device) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=as_meta(place),
        )
        made.held, made.place = values.detach(), place
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any, **__: Any) -> Any:  # noqa: ANN401
        raise AssertionError(f"{func} on a device tensor outside of its FakeDevice")

    def __repr__(self) -> str:
        return f"OnDevice({self.held!r}, {self.place})"

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401 - as torch.save asks
        return self.held.__reduce_ex__(protocol)

    def _set_data(self, new: OnDevice) -> None:
        self.held = new.held
        Tensor.data.__set__(self, new)

    device = property(lambda self: self.place)
    is_cuda = property(lambda self: self.place.type == "cuda")
    is_meta = property(lambda _: False)
    data = property(lambda self: self.detach(), _set_data)


def as_meta(place: torch.device) -> torch.device:
    """The device that PyTorch's C++ takes a fake one for."""
    return torch.device("meta", 1 + (place.index or 0))


@dataclass(kw_only=True)
class FakeDevice:
    """A device in a `with` statement.

    Attributes:
        kind: `cuda` or `mps`.
        capability: as `torch.cuda.get_device_capability` gives it.
        model: as `torch.cuda.get_device_name` gives it.
        free_bytes: what `torch.cuda.mem_get_info` calls free.
        reserved_bytes: what PyTorch keeps of what it has freed.
        largest_bytes: a larger tensor is out of memory.
        moves: all that was counted.
    """

    kind: str = "cuda"
    capability: tuple[int, int] = (9, 0)
    model: str = "Fake GPU"
    free_bytes: int = 1 << 30
    reserved_bytes: int = 0
    largest_bytes: int = 1 << 30
    moves: list[Move] = field(default_factory=list)
    in_flight: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pinned: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.generators = tuple(torch.Generator() for _ in range(DEVICES))
        self._held, self.is_started, self.current = ExitStack(), False, 0

    def __enter__(self) -> FakeDevice:
        import_module("torch._dynamo")  # by every mode; looks at functions that are replaced here
        self._held.enter_context(flags_kept())
        # `Module.to` makes new parameters: the class of one cannot be changed
        parameters = (torch.__future__, "_overwrite_module_params_on_conversion", True)
        for module, name, value in (parameters, *FACADES[self.kind](self)):
            self._held.enter_context(patch.object(module, name, value))
        self._held.enter_context(_Functions(self))
        self._held.enter_context(_Operations(self))
        return self

    def __exit__(self, *why: object) -> None:
        self._held.close()
        if why[0] is None:
            self.check_buffers()

    def note(self, kind: str, size_bytes: int = 0, *, is_free: bool = False) -> None:
        """Keep a move, with the line that asked for it."""
        line = _line_of_the_pipeline()
        self.moves.append(Move(kind=kind, size_bytes=size_bytes, is_free=is_free, line=line))

    def start(self) -> None:
        """What PyTorch does by itself before most calls of a device."""
        self.is_started = True

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def pin(self, tensor: Tensor) -> Tensor:
        self.pinned[tensor.untyped_storage().data_ptr()] = tensor  # held: no address comes twice
        return tensor

    def check_buffers(self) -> None:
        """Pinned memory that was handed over has not been written since."""
        for source, sent in self.in_flight:
            assert torch.equal(source, sent), "a pinned buffer was written while it was copied"

    def place_of(self, device: object) -> torch.device | None:
        """The device of this kind that a device, a name or C++ names; None: another."""
        if isinstance(device, str) and device.split(":")[0] == self.kind:
            device = torch.device(device)
        if not isinstance(device, torch.device):
            return None
        if device.type == self.kind:
            return torch.device(self.kind, device.index or 0)
        if device.type == "meta" and device.index:
            return torch.device(self.kind, device.index - 1)
        return None


class _Functions(TorchFunctionMode):
    """Calls of torch from Python: the device's name becomes that for C++; pinned memory."""

    def __init__(self, fake: FakeDevice) -> None:
        super().__init__()
        self.fake = fake

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        fake, kwargs = self.fake, dict(kwargs or {})
        if func is torch.device:  # a name alone, which stays what it is
            return func(*args, **kwargs)
        if func is Tensor.pin_memory:
            assert type(args[0]) is not OnDevice, "only memory of the host can be pinned"
            return fake.pin(args[0].clone())
        if func is Tensor.is_pinned:
            return fake.is_pinned(args[0])
        if func is Tensor.tolist and type(args[0]) is OnDevice:
            return args[0].cpu().tolist()
        pinned = kwargs.pop("pin_memory", False)
        place = fake.place_of(kwargs.get("device"))
        if func in (torch.tensor, torch.as_tensor) and place:  # made on the host, then copied
            kwargs.pop("device")
            return func(*args, **kwargs).to(place)
        if place:
            kwargs["device"] = as_meta(place)
        args = tuple(as_meta(p) if (p := fake.place_of(arg)) else arg for arg in args)
        made = func(*args, **kwargs)
        return fake.pin(made) if pinned else made


class _Operations(TorchDispatchMode):
    """Every operation, of autograd's too: computed on the values, its moves kept."""

    def __init__(self, fake: FakeDevice) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if type(tensor) is OnDevice]
        place = there[0].place if there else None
        if (asked := kwargs.get("device")) is not None:
            place = self.fake.place_of(asked)
            kwargs["device"] = HOST if place else asked
        elif func is _PUT:
            place = args[0].place if type(args[0]) is OnDevice else None
        if func in _COPIES:
            self._copied(func, args, kwargs, place)
        elif there:
            self._check(func, args, tensors)
        wrapped = {id(tensor.held): tensor for tensor in there}
        args, kwargs = tree_map(_held, (args, kwargs))
        with self._random_numbers(func, place):
            result = func(*args, **kwargs)
        if place is None or func in _ITEM:
            return result
        return tree_map(lambda leaf: self._wrap(leaf, place, wrapped), result)

    def _wrap(self, value: object, place: torch.device, wrapped: Mapping[int, Tensor]) -> object:
        if not isinstance(value, Tensor):
            return value
        if id(value) in wrapped:
            return wrapped[id(value)]
        if place.type == "mps" and value.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64. Please use float32")
        if value.nbytes > self.fake.largest_bytes:
            if place.type == "mps":
                raise RuntimeError(
                    f"MPS backend out of memory (Tried to allocate {value.nbytes})."
                )
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {value.nbytes}.")
        self.fake.start()
        return OnDevice(value, place)

    def _copied(self, func: Any, args: Any, kwargs: Any, place: torch.device | None) -> None:  # noqa: ANN401
        fake = self.fake
        source = args[1] if func is _PUT else args[0]
        waits_not = kwargs.get("non_blocking") or (func is _PUT and len(args) > 2 and args[2])
        begins = source.place if type(source) is OnDevice else None
        if place and not begins:
            is_free = bool(waits_not and fake.is_pinned(source))
            fake.note(TO_DEVICE, source.nbytes, is_free=is_free)
            if is_free:
                fake.in_flight.append((source, source.clone()))
        elif begins and not place:
            if func is not _PUT and kwargs.get("device") is None:
                return  # another type on the same device
            assert not waits_not, f"not waited for: {_line_of_the_pipeline()}"
            fake.note(TO_HOST, source.held.nbytes)

    def _check(self, func: Any, args: Any, tensors: list[Tensor]) -> None:  # noqa: ANN401
        """Refuse tensors of two places; keep what the host waits for."""
        fake = self.fake
        places = {t.place for t in tensors if type(t) is OnDevice}
        if func in _INDEXED:
            index = [i for i in args[1] if i is not None]
            if any(i.dtype in (torch.bool, torch.uint8) for i in index):
                fake.note(WAITS)
            for here in (i for i in index if type(i) is not OnDevice):
                fake.note(TO_DEVICE, here.nbytes)
        elif any(type(t) is not OnDevice and t.ndim for t in tensors) or len(places) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
        if func in _ITEM:
            fake.note(TO_HOST, 8)
        elif func in _SHAPES_FROM_VALUES:
            fake.note(WAITS)

    @contextmanager
    def _random_numbers(self, func: Any, place: torch.device | None) -> Iterator[None]:  # noqa: ANN401
        """What is drawn on the device comes from the device's own generator."""
        if place is None or torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        ours, theirs = torch.default_generator, self.fake.generators[place.index or 0]
        before = ours.get_state()
        ours.set_state(theirs.get_state())
        try:
            yield
        finally:
            theirs.set_state(ours.get_state())
            ours.set_state(before)


def _held(leaf: object) -> object:
    return leaf.held if type(leaf) is OnDevice else leaf


def _line_of_the_pipeline() -> str:
    frame = sys._getframe(1)
    while frame.f_back and (
        "/pipeline/" not in frame.f_code.co_filename or "/transfers.py" in frame.f_code.co_filename
    ):
        frame = frame.f_back
    path = frame.f_code.co_filename.rpartition("/pipeline/")[2]
    return f"{path}:{frame.f_lineno} in {frame.f_code.co_name}"
