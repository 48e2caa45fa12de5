"""Where and in what precision segments are computed.

Out: a device, a dtype, and copies of segments cast to it. BatchNorm's parameters and statistics
and the head stay float32: they are small, and the head's logits feed the loss.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.errors import SettingsError
from pipeline.model.backbones import BatchNorm, batch_norms
from pipeline.model.grouping import HEAD
from pipeline.model.segments import Segment
from pipeline.system.interrupts import check
from pipeline.system.variables import KERNELS, word
from pipeline.training.folding import folded
from pipeline.training.small_conv import use_small_convolutions

EVAL_BATCH, EVAL_PIXELS = 500, 500 * 64 * 64
PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
NATIVE = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}
"""Names of the instructions by which an x86 processor multiplies 16-bit numbers."""


def pick_device(name: str) -> torch.device:
    """`auto`: cuda, else mps, else cpu; `cuda:1` is the second of several, `cuda` the first.

    Raises:
        SettingsError: the device asked for is not here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cuda"] * bool(count) + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    here += [f"cuda:{number}" for number in range(count)]
    if name not in ("auto", *here):
        raise SettingsError(
            f"device={name} is not available here: pass -P device=auto ({', '.join(here)})"
        )
    device = torch.device(here[0] if name == "auto" else name)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def compute_repeatably(device: torch.device) -> None:
    """Have a GPU compute the same bits each time and float32 as float32; processors do anyway.

    An operation without a deterministic kernel goes on, with a warning by PyTorch that names it.
    To be called before anything is computed: cuBLAS reads its variable when it starts.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if device.index is not None:  # pinned memory belongs to the current device
            torch.cuda.set_device(device)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the processor multiplies it natively, else float32.

    CUDA devices that multiply float16 alone (capability 7) take that, with a scaled loss.
    """
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cpu":
        fast = any(_cpu_capabilities().get(name) for name in NATIVE[torch.bfloat16])
        return torch.bfloat16 if fast else torch.float32
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= (7, 0):
            return torch.bfloat16 if capability >= (8, 0) else torch.float16
    return torch.float32


def emulation_note(name: str, device: torch.device) -> str:
    """A note that a device computes a precision by way of float32; empty: no, or not known."""
    if name in ("auto", "float32"):
        return ""
    asked, emulated = PRECISIONS[name], False
    if device.type == "cuda":
        least = (8, 0) if asked == torch.bfloat16 else (7, 0)
        has = torch.cuda.get_device_capability(device)
        emulated = has < least and (asked, has) != (torch.float16, (6, 0))
    elif device.type == "cpu" and (here := _cpu_capabilities()).get("architecture") == "x86_64":
        emulated = not any(here.get(name) for name in NATIVE[asked])
    if not emulated:
        return ""
    auto = str(pick_precision("auto", device)).removeprefix("torch.")
    return (
        f"the {device.type} here has no instructions for precision={name} and computes it "
        f"by way of float32, slower than float32 itself: -P precision=auto takes {auto}"
    )


def _cpu_capabilities() -> Mapping[str, object]:
    """What PyTorch knows of the processor; earlier versions of PyTorch do not tell."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return capabilities


def with_kernels(name: str) -> str:
    """A device or a precision as keys name it: what plain kernels compute is kept apart."""
    return name if word(KERNELS) == "fast" else f"{name} plain"


def uses_channels_last(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether maps are (N, H, W, C) in memory: faster wherever measured (docs/experiments)."""
    return device.type == "cpu" or dtype != torch.float32


def compute_copy(
    segments: Iterable[Segment],
    dtype: torch.dtype,
    device: torch.device,
    *,
    frozen: bool = False,
) -> tuple[Segment, ...]:
    """Independent copies of segments in `dtype` on `device`, in eval mode.

    Unless `kernels` are plain, small maps are convolved as matrix products on a processor
    (`small_conv`), and `frozen` copies, which cannot be trained, have their BatchNorm folded
    (`folding`): in float32 alone, as in 16 bits the outputs of a block would depend on whether
    the block is frozen. A segment that holds the head is never folded: what enters the head is
    looked for by the names of its modules.
    """
    fast = word(KERNELS) == "fast"
    copies = [segment.copied() for segment in segments]
    for number, segment in enumerate(copies):
        module = segment.module.eval()
        if frozen and fast and dtype == torch.float32 and HEAD not in segment.blocks:
            module = folded(module)
        module.to(device).requires_grad_(False)
        _cast(module, dtype_of(segment, dtype))
        if uses_channels_last(dtype, device):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]
            for layer in batch_norms([module]):
                layer.register_forward_hook(_keep_layout)
        if device.type == "cpu" and fast:
            use_small_convolutions(module, frozen=frozen)
        copies[number] = replace(segment, module=module)
    return tuple(copies)


def _keep_layout(_layer: nn.Module, _inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
    """Have the gradient of a map come as the map lies in memory: (N, H, W, C).

    Behind global pooling the gradient comes as (N, C, H, W), with which BatchNorm's backward pass
    takes ten times as long (docs/experiments).
    """
    if outputs.requires_grad and outputs.ndim == 4:
        outputs.register_hook(  # type: ignore[no-untyped-call]
            partial(Tensor.contiguous, memory_format=torch.channels_last)
        )


def dtype_of(segment: Segment, dtype: torch.dtype) -> torch.dtype:
    """What a segment is computed in: float32 where the head is part of it."""
    return torch.float32 if HEAD in segment.blocks else dtype


def images_at_once(segments: Sequence[Segment], side: int) -> int:
    """How many images of so many pixels a side are validated at a time by these segments.

    Large ones fewer, as their maps are larger; the head alone is fed with vectors.
    """
    if len(segments) == 1 and segments[0].blocks == (HEAD,):
        return EVAL_BATCH
    return min(EVAL_BATCH, max(1, EVAL_PIXELS // side**2))


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast every floating-point tensor, except those of BatchNorm."""
    for inner in module.modules():
        if isinstance(inner, BatchNorm):
            continue
        tensors = [*inner.parameters(recurse=False), *inner.buffers(recurse=False)]
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def run_segments(segments: Iterable[Segment], inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Pass `inputs` through segments in forward order: `dtype` inside, float32 into the head.

    Raises:
        KeyboardInterrupt: Ctrl-C has asked for it; every batch of every pass comes through here.
    """
    if inputs.ndim == 4:
        last = uses_channels_last(dtype, inputs.device)
        order = torch.channels_last if last else torch.contiguous_format
        inputs = inputs.contiguous(memory_format=order)
    for segment in segments:
        check()
        inputs = segment.module(inputs.to(dtype_of(segment, dtype)))
    return inputs


def joined(parts: Iterable[Tensor], count: int) -> Tensor:
    """Parts with `count` rows in all, one below the other, on the host.

    Parts are in memory once, and a device is waited for once.
    """
    whole, at = torch.empty(0), 0
    for part in parts:
        if not at:
            whole = part.new_empty((count, *part.shape[1:]))
        whole[at : at + len(part)] = part
        at += len(part)
    assert at == count, (at, count)
    return whole.cpu()


def entering_head(segments: Sequence[Segment], inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """What enters the head, as it comes, from all segments of a network.

    Where blocks share a segment with the head: what enters the first of the head's modules that is
    called, those that hold tensors before others.

    Raises:
        SettingsError: none is called there.
    """
    return _entering(segments, inputs, dtype, [])[0]


def run_to_head(segments: Sequence[Segment], inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """What enters the head, float32, (N, C), from all segments of a network.

    A head that is fed with maps or tokens and pools these itself, as that of timm's Swin: what
    enters its first layer, the mean over positions where this layer sees one after the other, as
    SqueezeNet's does. What lies below the head runs once, so that BatchNorm may learn from it.
    """
    layer = first_layer(segments[-1])
    x, taken = _entering(segments, inputs, dtype, [layer] if layer else [])
    if _has_positions(x) and layer and taken is not None:
        x, kernel = taken, _shape_of(layer)[2:]
        if kernel and kernel != x.shape[2:]:  # of that size it sees the map whole
            x = x.float().mean((2, 3))
        elif not kernel and x.ndim > 2:
            x = x.float().flatten(1, -2).mean(1)
    return x.flatten(1).float()


def _has_positions(x: Tensor) -> bool:
    """Whether these are maps or tokens, of which there is more than one an image."""
    return x.shape[2:].numel() > 1


def _entering(
    segments: Sequence[Segment], inputs: Tensor, dtype: torch.dtype, layers: list[nn.Module]
) -> tuple[Tensor, Tensor | None]:
    """What enters the head; and, of maps or tokens, what enters the first layer that is called."""
    *body, last = segments
    x = run_segments(body, inputs, dtype)
    is_apart = last.blocks == (HEAD,)
    if is_apart and not (layers and _has_positions(x)):
        return x, None
    parts = [] if is_apart else [part for block, part in last.parts() if block == HEAD]
    of_head = [part for part in parts if isinstance(part, nn.Module)]
    entered = _entering_modules(last, x, dtype, [*of_head, *layers])
    if not is_apart and not entered:
        raise SettingsError(
            f"backbone: the head shares a segment with {', '.join(last.blocks[:-1])}, and no "
            "module of it is called, so that what enters it is not known: call the head as a "
            "module in the network's forward()"
        )
    taken = min((n for n in entered if n >= len(of_head)), default=None)
    head = x if is_apart else entered[min(entered)]
    return head, None if taken is None else entered[taken]


def _entering_modules(
    segment: Segment, inputs: Tensor, dtype: torch.dtype, modules: Sequence[nn.Module]
) -> dict[int, Tensor]:
    """What enters these modules first, by their places; of those that the segment calls."""
    entered: dict[int, Tensor] = {}

    def note(number: int, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args:
            entered.setdefault(number, args[0])

    hooks = [
        module.register_forward_pre_hook(partial(note, number))
        for number, module in enumerate(modules)
    ]
    try:
        run_segments([segment], inputs, dtype)
    finally:
        for hook in hooks:
            hook.remove()
    return entered


def first_layer(segment: Segment) -> nn.Module | None:
    """The head's first linear layer or convolution; None: it has neither."""
    parts = (part for block, part in segment.parts() if block == HEAD)
    layers = (layer for part in parts if isinstance(part, nn.Module) for layer in part.modules())
    return next((layer for layer in layers if len(_shape_of(layer)) in (2, 4)), None)


def _shape_of(layer: nn.Module) -> tuple[int, ...]:
    """Of the layer's weight; empty: it has none."""
    weight = getattr(layer, "weight", None)
    return tuple(weight.shape) if isinstance(weight, Tensor) else ()
