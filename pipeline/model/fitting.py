"""The network in a file that fits a backbone, under whatever names a training script gave it.

In: a file's content (nested mappings and tensors) and a backbone's name. Out: a `Fit`: the tensors
that come before the classifier, and what the file has for the classifier itself.

Every mapping in the file, and every prefix of its names, may hold the network; it is there where
all tensors before the classifier have their shapes. Wrappers (`state_dict`, `model`, …) and
prefixes (`module.`, `_orig_mod.`, `backbone.`, `encoder_q.`, …) need not be known by name for
that. Tensors beside the network are passed over; unknown ones inside the backbone's own modules
make it another network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any, get_args

import torch
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.model.backbones import build_backbone
from pipeline.settings.run import BackboneName
from pipeline.system.text import first_of

_DEPTH = 4
"""Mappings inside mappings are looked into this far."""
_SHOWN = 4
_SECOND = re.compile(r"(^|[._/])(ema|\w+_ema|ema_\w+|momentum_\w+|encoder_k)([._/]|$)")
"""Of two networks that fit, the one that is named so is the copy: a running average, or MoCo's key
encoder (He et al. 2020, arXiv 1911.05722, whose evaluation uses the query encoder)."""


@dataclass(frozen=True)
class Layout:
    """A backbone's tensors as shapes (on torch's meta device).

    Attributes:
        trunk: what comes before the classifier.
        root: the classifier's module, such as `fc`.
        modules: the backbone's other modules.
    """

    trunk: Mapping[str, Tensor]
    root: str
    modules: frozenset[str]

    @classmethod
    @cache
    def of(cls, backbone: str) -> Layout:
        """The layout of the backbone of that name."""
        with torch.device("meta"):
            built = build_backbone(backbone, 2, seed=0)
        root = built.head_layer().partition(".")[0]
        state = built.model.state_dict()
        trunk = {n: t for n, t in state.items() if not n.startswith(f"{root}.")}
        return cls(trunk, root, frozenset(name.partition(".")[0] for name in trunk))


@dataclass(frozen=True)
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


def find_network(content: Any, backbone: str, weights: str) -> tuple[Fit, str]:  # noqa: ANN401
    """The network in a file's content that fits the backbone, and why it was this one of several.

    Raises:
        WeightsError: there is none, or several of which none goes without saying.
    """
    if not isinstance(content, Mapping) or not any(_states(content)):
        kind = "an empty mapping" if content == {} else f"a {type(content).__name__.lower()}"
        raise WeightsError(
            f"weights={weights}: holds no state dict (name -> tensor) but {kind}, also inside its "
            f"mappings, {_DEPTH} deep: save model.state_dict()"
        )
    found = _candidates(content, backbone)
    fits = [fit for fit in found if not fit.wrong]
    if not fits:
        raise WeightsError(_misfit(content, backbone, weights, found))
    first = [fit for fit in fits if not _SECOND.search(fit.path)] or fits
    if any(not _same(first[0].trunk, fit.trunk) for fit in first[1:]):
        raise WeightsError(
            f"weights={weights} hold {len(first)} networks that fit {backbone}: "
            f"{first_of([fit.path for fit in first], _SHOWN)}: save the state dict of one of them "
            "as a file"
        )
    others = [fit.path for fit in fits if fit is not first[0]]
    chosen = first[0].path or "the plain names"
    note = f", from {chosen} (not {first_of(others, _SHOWN)})" if others else ""
    return first[0], note


def _candidates(content: Mapping[Any, Any], backbone: str) -> list[Fit]:
    layout = Layout.of(backbone)
    return [
        _held_against(layout, backbone, where, prefix, state)
        for where, state in _states(content)
        for prefix in _prefixes(layout, state)
    ]


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
    """The tensor with a value for every element, neither quantized nor sparse."""
    if tensor.is_meta:
        return tensor
    if tensor.is_quantized:
        return tensor.dequantize()
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
    backbone: str,
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
        elif module == layout.root:
            head[name] = tensor
        elif name not in layout.trunk and module in layout.modules:
            wrong.append(f"{name} is not part of {backbone}")
        elif name not in layout.trunk:
            passed_over.append(full)
    return Fit(where, prefix, trunk, head, tuple(passed_over), tuple(wrong))


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        not one[name].is_meta and not other[name].is_meta and torch.equal(one[name], other[name])
        for name in one
    )


def _misfit(content: Mapping[Any, Any], backbone: str, weights: str, found: list[Fit]) -> str:
    """Why no network in the file fits, and what to do."""
    others = (name for name in get_args(BackboneName) if name != backbone)
    fitting = (n for n in others if any(not fit.wrong for fit in _candidates(content, n)))
    if other := next(fitting, None):
        todo = f"pass -P backbone={other}, which they fit"
    else:
        todo = f"they fit no other backbone of this pipeline either: pass weights of {backbone}"
    start = f"weights={weights} do not fit {backbone}:"
    nearest = max(found, key=lambda fit: len(fit.trunk), default=None)
    if nearest and nearest.trunk:
        under = f" under {nearest.path}" if nearest.path else ""
        return f"{start}{under} {first_of(nearest.wrong, _SHOWN)}: {todo}"
    names = [name for _, state in _states(content) for name in state]
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    common = [column[0] for column in takewhile(lambda c: len(set(c)) == 1, columns)]
    begin = f"all begin with {'.'.join(common)}." if common else f"begin with {_modules(names)}"
    wanted = _modules(Layout.of(backbone).trunk)
    return f"{start} the names of its {_counted(names)} {begin}, not with {wanted}: {todo}"


def _modules(names: Iterable[str]) -> str:
    """The first parts of the names, in order."""
    return first_of(list(dict.fromkeys(name.partition(".")[0] for name in names)), _SHOWN)


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"
