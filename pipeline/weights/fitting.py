"""The network in a file that fits a backbone, under whatever names a training script gave it.

In: a file's content (nested mappings and tensors) and a backbone's name. Out: a `Fit`: the tensors
that come before the classifier, and what the file has for the classifier itself.

The network may lie in any mapping in the file and under any prefix of names: where all tensors
before the classifier have the backbone's names and shapes. So wrappers (`state_dict`, `model`, …)
and prefixes (`module.`, `_orig_mod.`, `backbone.`, `encoder_q.`, …) need no list. Tensors beside
the network are passed over; unknown tensors inside the backbone's modules make another network.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import SettingsError, WeightsError
from pipeline.model.backbones import AUTO, shape_network
from pipeline.model.grouping import HEAD, blocks_of, outer_modules
from pipeline.model.networks import TIMM
from pipeline.model.often import OFTEN
from pipeline.system.text import first_of

USUAL_SIZE = 224
_DEPTH = 4
"""How deep mappings inside mappings are searched."""
_SHOWN = 4
_SECOND = re.compile(r"(^|[._/])(ema|\w+_ema|ema_\w+|momentum_\w+|encoder_k)([._/]|$)")
"""Names of the copy where two networks fit: a running average, or MoCo's key encoder (He et al.
2020, arXiv 1911.05722, whose evaluation uses the query encoder)."""

_OLDER_NAMES = {
    "vit_": ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    "densenet": ((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),),
}
"""Families of torchvision -> names in their published files, and what these are called today."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A network's tensors as shapes.

    Attributes:
        name: of the backbone.
        trunk: what comes before the classifier, and has one shape for any number of classes.
        roots: the modules of the classifier and of others that follow from the number of
            classes, such as `fc`.
        modules: the network's other modules.
        model: the network itself, of two classes.
    """

    name: str
    trunk: Mapping[str, Tensor]
    roots: tuple[str, ...]
    modules: frozenset[str]
    model: nn.Module

    @classmethod
    @cache
    def of(cls, name: str, image_size: int, blocks: str = AUTO) -> Layout:
        """The layout of the backbone of that name for images of that size."""
        model = shape_network(name, image_size)
        owners = blocks_of(model, name, blocks).owners
        state = other = model.state_dict()
        with suppress(SettingsError):  # a network of two classes alone
            other = shape_network(name, image_size, 3).state_dict()
        trunk = {
            n: t
            for n, t in state.items()
            if owners[n] != HEAD and n in other and other[n].shape == t.shape
        }
        return cls(
            name=name,
            trunk=trunk,
            roots=tuple(outer_modules([n for n in state if n not in trunk], trunk)),
            modules=frozenset(n.partition(".")[0] for n in trunk),
            model=model,
        )

    def in_head(self, name: str) -> bool:
        """Whether a tensor of that name belongs to the classifier, whatever its form."""
        return name.startswith(self.roots)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A network in the file, held against a backbone.

    Attributes:
        where: keys of the mappings that it lies in.
        prefix: what its names begin with, such as `module.`.
        trunk: tensors before the classifier that have their shapes.
        head: the classifier's tensors in the file, of any shape.
        passed_over: names that are neither.
        wrong: what is missing, misshapen, or unknown inside the backbone's modules.
    """

    where: tuple[str, ...]
    prefix: str
    trunk: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    passed_over: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def path(self) -> str:
        """Where the network lies in the file, for messages."""
        return "/".join((*self.where, self.prefix)).removesuffix("/")

    @property
    def note(self) -> str:
        """What was taken off and passed over, as an addition to the report."""
        text = f", without the prefix {self.prefix}" if self.prefix else ""
        if not self.passed_over:
            return text
        depth = max(1, self.prefix.count("."))
        groups = {
            name.removeprefix(self.prefix).partition(".")[0]
            if name.startswith(self.prefix)
            else ".".join(name.split(".")[:depth])
            for name in self.passed_over
        }
        shown = first_of(sorted(groups), _SHOWN)
        return f"{text}, passed over {_counted(self.passed_over)} ({shown})"


def find_network(content: Any, layout: Layout, weights: str) -> tuple[Fit, str]:  # noqa: ANN401
    """The network in a file's content that fits the layout, and a note on others that fit.

    Raises:
        WeightsError: no network fits, or several fit whose values differ.
    """
    if not isinstance(content, Mapping) or not any(_states(content)):
        kind = "an empty mapping" if content == {} else f"a {type(content).__name__.lower()}"
        raise WeightsError(
            f"weights={weights}: holds no state dict (name -> tensor) but {kind}, also inside its "
            f"mappings, {_DEPTH} deep: save model.state_dict()"
        )
    found = _candidates(content, layout)
    fits = [fit for fit in found if not fit.wrong]
    if not fits:
        raise WeightsError(_misfit(content, layout, weights, found))
    first = [fit for fit in fits if not _SECOND.search(fit.path)] or fits
    if any(not _same(first[0].trunk, fit.trunk) for fit in first[1:]):
        raise WeightsError(
            f"weights={weights} hold {len(first)} networks that fit {layout.name}: "
            f"{first_of([fit.path for fit in first], _SHOWN)}: save the state dict of one of them "
            "as a file"
        )
    others = [fit.path for fit in fits if fit is not first[0]]
    chosen = first[0].path or "the plain names"
    note = f", from {chosen} (not {first_of(others, _SHOWN)})" if others else ""
    return first[0], note


def _candidates(content: Mapping[Any, Any], layout: Layout) -> list[Fit]:
    found = []
    for where, state in _states(content):
        for prefix in _prefixes(layout, state):
            fit = _held_against(layout, where, prefix, state)
            if fit.wrong and (adapted := _adapted(layout, prefix, state)):
                fit = min(
                    fit,
                    _held_against(layout, where, prefix, adapted),
                    key=lambda each: len(each.wrong),
                )
            found.append(fit)
    return found


def _adapted(layout: Layout, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The state as the network's library adapts it: older names, positions for other sizes."""
    own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    try:
        if layout.name.startswith(TIMM):
            adapt = sys.modules[type(layout.model).__module__].checkpoint_filter_fn
            own = adapt(own, layout.model)
        else:
            family = next((name for name in _OLDER_NAMES if layout.name.startswith(name)), None)
            if family is None:
                return None
            for older, name in _OLDER_NAMES[family]:
                own = {re.sub(older, name, n): t for n, t in own.items()}
            if family == "vit_":
                from torchvision.models.vision_transformer import interpolate_embeddings

                side = layout.model.image_size, layout.model.patch_size
                own = dict(interpolate_embeddings(*side, OrderedDict(own)))
    except Exception:  # noqa: BLE001 - the library's own code, on any file
        return None
    return {f"{prefix}{name}": tensor for name, tensor in own.items()}


def _states(
    content: Mapping[Any, Any], where: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every mapping in the content that holds tensors, the outer ones first."""
    tensors = {str(k): _plain(v) for k, v in content.items() if isinstance(v, Tensor)}
    if tensors:
        yield where, tensors
    if len(where) < _DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                yield from _states(value, (*where, key))


def _plain(tensor: Tensor) -> Tensor:
    """The tensor with a value for every element, neither quantized nor sparse nor of 8 bits."""
    if tensor.is_meta:
        return tensor
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.is_floating_point() and tensor.element_size() == 1:  # few operations take these
        return tensor.float()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _prefixes(layout: Layout, state: Mapping[str, Tensor]) -> list[str]:
    """Prefixes under which the state has names of the backbone, those with most names first."""
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in layout.trunk:
                counts[".".join([*parts[:start], ""])] += 1
    return [prefix for prefix, _ in counts.most_common(2 * _SHOWN)]


def _held_against(
    layout: Layout,
    where: tuple[str, ...],
    prefix: str,
    state: Mapping[str, Tensor],
) -> Fit:
    trunk: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    wrong = []
    for name, target in layout.trunk.items():
        tensor = state.get(f"{prefix}{name}")
        if tensor is None:
            # counters are absent from files older than PyTorch 0.4.1
            if not name.endswith("num_batches_tracked"):
                wrong.append(f"{name} is missing")
        elif tensor.shape != target.shape:
            wrong.append(f"{name} is {tuple(tensor.shape)}, not {tuple(target.shape)}")
        else:
            trunk[name] = tensor
    passed_over = []
    for full, tensor in sorted(state.items()):
        name = full.removeprefix(prefix)
        module = name.partition(".")[0]
        if not full.startswith(prefix):
            passed_over.append(full)
        elif layout.in_head(name):
            head[name] = tensor
        elif name not in layout.trunk and module in layout.modules:
            wrong.append(f"{name} is not part of {layout.name}")
        elif name not in layout.trunk:
            passed_over.append(full)
    return Fit(
        where=where,
        prefix=prefix,
        trunk=trunk,
        head=head,
        passed_over=tuple(passed_over),
        wrong=tuple(wrong),
    )


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        not one[name].is_meta and not other[name].is_meta and torch.equal(one[name], other[name])
        for name in one
    )


def _misfit(content: Mapping[Any, Any], layout: Layout, weights: str, found: list[Fit]) -> str:
    """Why no network in the file fits, and what to do."""
    backbone = layout.name
    others = (Layout.of(name, USUAL_SIZE) for name in OFTEN if name != backbone)
    fitting = (o.name for o in others if any(not f.wrong for f in _candidates(content, o)))
    if other := next(fitting, None):
        todo = f"pass -P backbone={other}, which they fit"
    else:
        todo = f"they fit none of {', '.join(OFTEN)} either: pass weights of {backbone}"
    start = f"weights={weights} do not fit {backbone}:"
    nearest = max(found, key=lambda fit: len(fit.trunk), default=None)
    names = [name for _, state in _states(content) for name in state]
    wanted = _modules(layout.trunk)
    if nearest and (nearest.trunk or wanted in _modules(names)):
        under = f" under {nearest.path}" if nearest.path else ""
        return f"{start}{under} {first_of(nearest.wrong, _SHOWN)}: {todo}"
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    common = [column[0] for column in takewhile(lambda c: len(set(c)) == 1, columns)]
    begin = f"all begin with {'.'.join(common)}." if common else f"begin with {_modules(names)}"
    return f"{start} the names of its {_counted(names)} {begin}, not with {wanted}: {todo}"


def _modules(names: Iterable[str]) -> str:
    """The first parts of the names, in order."""
    return first_of(list(dict.fromkeys(name.partition(".")[0] for name in names)), _SHOWN)


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"
