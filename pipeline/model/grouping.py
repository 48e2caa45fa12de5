"""Which block each tensor of a network belongs to.

In: a network and where its blocks are declared: torchvision's families in the table here, timm's
own `group_matcher`, or patterns of the user. Out: `Blocks`: every parameter and buffer in exactly
one block. Blocks are numbered in the order images pass through them, between `stem` and `head`;
`head` is the classifier alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from pipeline.errors import SettingsError
from pipeline.model.factories import is_factory
from pipeline.model.networks import TIMM
from pipeline.system.disk.first_read import check_unchanged
from pipeline.system.disk.yaml_file import read_yaml

HEAD, STEM = "head", "stem"
LAYERED = 8
"""A network of more numbered groups than this, such as a transformer, has `USUAL` blocks."""
USUAL = 4
_SHOWN = 4


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network.

    Attributes:
        order: names in the order images pass through them; the last is `head`.
        owners: name of each parameter and buffer -> its block.
    """

    order: tuple[str, ...]
    owners: Mapping[str, str]


class Family(NamedTuple):
    r"""Patterns for the beginning of tensors' names; other tensors join the last block.

    A group `(\d+)` in `numbered` makes a block of each number. Without `numbered` the blocks are
    the runs of `features` at one resolution: a layer of a stride above 1 begins a new one.
    """

    head: str
    stem: str = ""
    numbered: tuple[str, ...] = ()


_PAIRS = (r"features\.1", r"features\.[23]", r"features\.[45]", r"features\.[67]")
FAMILIES: Mapping[str, Family] = {
    "resnet|resnext|wide_resnet": Family("fc", "conv1|bn1", (r"layer(\d+)",)),
    "regnet": Family("fc", "stem", (r"trunk_output\.block(\d+)",)),
    "mobilenet|efficientnet": Family("classifier"),
    "vgg|alexnet": Family(r"classifier\.6"),
    "squeezenet": Family(r"classifier\.1"),
    "convnext": Family(r"classifier\.2", r"features\.0", _PAIRS),
    "swin": Family("head", r"features\.0", _PAIRS),
    "vit": Family(
        "heads",
        r"class_token|conv_proj|encoder\.pos_embedding",
        (r"encoder\.layers\.encoder_layer_(\d+)",),
    ),
    "maxvit": Family("classifier", "stem", (r"blocks\.(\d+)",)),
    "densenet": Family(
        "classifier",
        r"features\.(?:conv0|norm0)",
        (r"features\.(?:denseblock|transition)(\d+)",),
    ),
    "shufflenet": Family("fc", "conv1", (r"stage(\d+)",)),
    "mnasnet": Family(
        "classifier",
        r"layers\.[0-7]\b",
        (r"layers\.8\b", r"layers\.9\b", r"layers\.1[01]", r"layers\.1[23]"),
    ),
    "googlenet": Family("fc", r"conv\d", ("inception3", "inception4", "inception5")),
    "inception": Family("fc", r"Conv2d_[12]", ("Conv2d_[34]", "Mixed_5", "Mixed_6", "Mixed_7")),
}
"""Torchvision's classifiers, by the beginning of their names; the first that fits."""


def blocks_of(model: nn.Module, name: str, blocks: str) -> Blocks:
    """The blocks of a network.

    Args:
        model: the network.
        name: as in `backbone=`.
        blocks: `auto`; a number of blocks between stem and head; or a YAML file of patterns.

    Raises:
        SettingsError: a tensor is in no block, a pattern matches nothing, too many blocks are
            asked for, or the file was edited since this process first read it.
    """
    if blocks.endswith((".yaml", ".yml")):
        where, path = f"blocks={blocks}", Path(blocks).expanduser()
        by_file = _by_patterns(model, read_yaml(path, where), where)
        check_unchanged([path], f"{where}: the file has")
        return by_file
    own = getattr(model, "blocks", None)
    if is_factory(name):
        if not isinstance(own, Mapping):
            found = "" if own is None else f" (its attribute `blocks` is a {type(own).__name__})"
            raise SettingsError(
                f"backbone={name}: the network declares no blocks{found}: give it an attribute "
                "`blocks` (a mapping, head first: name of a block -> pattern of tensors' names), "
                f"or pass -P blocks=<a YAML file>; {_modules_of(model)}"
            )
        if blocks != "auto":
            raise SettingsError(
                f"blocks={blocks}: {name} declares its blocks itself "
                f"({', '.join(map(str, own))}), a number is for networks of a library: leave "
                "blocks out, or pass a YAML file"
            )
        return _by_patterns(model, own, f"backbone={name}: its blocks")
    keys = _timm_keys(model, name) if name.startswith(TIMM) else _torchvision_keys(model, name)
    return _numbered(keys, name, blocks)


def outer_modules(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """The outermost modules that hold tensors of these names and none of the others, as `fc.`.

    A tensor that is in no such module stands for itself.
    """
    taken = {prefix for name in others for prefix in _prefixes(name)}
    own = (next((p for p in _prefixes(name) if p not in taken), name) for name in names)
    return list(dict.fromkeys(own))


def _prefixes(name: str) -> list[str]:
    """`layer1.`, `layer1.0.` of `layer1.0.weight`."""
    parts = name.split(".")
    return [".".join([*parts[:count], ""]) for count in range(1, len(parts))]


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that timm calls the classifier: two in distilled networks."""
    found: Any = model.get_classifier()  # type: ignore[operator, unused-ignore]
    wanted = found if isinstance(found, tuple | list) else (found,)
    return tuple(n for n, module in model.named_modules() if any(module is w for w in wanted))


_Key = tuple[int, ...]
_HEAD: _Key = (sys.maxsize,)
_LAST: _Key = (sys.maxsize - 1,)


def _timm_keys(model: nn.Module, name: str) -> dict[str, _Key]:
    from timm.models._manipulate import group_with_matcher

    try:
        matcher: Any = model.group_matcher(coarse=True)  # type: ignore[operator, unused-ignore]
        heads = tuple(f"{each}." for each in classifiers(model))
    except (AttributeError, AssertionError, NotImplementedError):
        raise SettingsError(
            f"backbone={name}: timm declares no groups of layers for it: pass -P blocks=<a YAML "
            f"file of patterns>; {_modules_of(model)}"
        ) from None
    tensors = model.state_dict(keep_vars=True)
    groups = group_with_matcher(iter(tensors.items()), matcher, reverse=True)
    end = max(groups.values())  # the classifier, and what the matcher does not name
    return {
        tensor: _HEAD if tensor.startswith(heads) else _LAST if number == end else (number,)
        for tensor, number in groups.items()
    }


def _torchvision_keys(model: nn.Module, name: str) -> dict[str, _Key]:
    family = next(each for pattern, each in FAMILIES.items() if re.match(pattern, name))
    names = list(model.state_dict())
    runs = {} if family.numbered else _resolution_runs(model)
    keys: dict[str, _Key] = {}
    for tensor in names:
        found = [(i, m) for i, p in enumerate(family.numbered, 1) if (m := re.match(p, tensor))]
        if re.match(family.head, tensor):
            keys[tensor] = _HEAD
        elif family.stem and re.match(family.stem, tensor):
            keys[tensor] = (0,)
        elif found:
            i, match = found[0]
            keys[tensor] = (i, *map(int, match.groups()))
        elif runs and tensor.startswith("features."):
            keys[tensor] = (runs[tensor.split(".")[1]],)
        else:
            keys[tensor] = _LAST
    return keys


def _resolution_runs(model: nn.Module) -> dict[str, int]:
    """Number of a layer of `features` -> number of its run, from 0; pooling begins a run too."""
    runs: dict[str, int] = {}
    number, fresh = 0, True
    for name, layer in model.get_submodule("features").named_children():
        halves = any(
            np.max(module.stride) > 1
            for module in layer.modules()
            if isinstance(module, nn.Conv2d | nn.MaxPool2d)
        )
        if halves and not fresh:
            number, fresh = number + 1, True
        runs[name] = number
        fresh = fresh and not any(True for _ in layer.parameters())
    return runs


def _numbered(keys: Mapping[str, _Key], name: str, blocks: str) -> Blocks:
    """Blocks from sortable keys: the first is the stem, what lies before the head is numbered."""
    stem, *numbered = sorted({key for key in keys.values() if key not in (_HEAD, _LAST)})
    count = min(len(numbered), USUAL) if len(numbered) > LAYERED else len(numbered)
    if blocks != "auto":
        count = int(blocks)
        if not 1 <= count <= len(numbered):
            raise SettingsError(
                f"blocks={blocks}: {name} has {len(numbered)} between stem and head, got {count}: "
                f"pass 1 to {len(numbered)}, or a YAML file of patterns"
            )
    parts = np.array_split(np.arange(len(numbered)), count)
    names = {numbered[i]: f"block{n}" for n, part in enumerate(parts, 1) for i in part}
    names |= {stem: STEM, _HEAD: HEAD, _LAST: f"block{count}" if count else STEM}
    owners = {tensor: names[key] for tensor, key in keys.items()}
    return Blocks((STEM, *(f"block{n}" for n in range(1, count + 1)), HEAD), owners)


def _by_patterns(model: nn.Module, given: Mapping[Any, Any], where: str) -> Blocks:
    """Blocks from patterns, head first; a tensor belongs to the first that its name begins with.

    Raises:
        SettingsError: there is no head, a schedule could not use a name, a pattern is not a
            regular expression or matches nothing, or a tensor is left over.
    """
    given = given.get("blocks", given)
    if not isinstance(given, Mapping) or next(iter(given), None) != HEAD:
        raise SettingsError(
            f"{where}: blocks must map names to patterns, head first (head: fc, last: layer4, …), "
            f"got {given!r:.80}"
        )
    owners: dict[str, str] = {}
    for block, patterns in given.items():
        if not re.fullmatch(r"(?!\d+$|all$|continued$)[A-Za-z0-9_.-]+", str(block)):
            raise SettingsError(
                f"{where}: {block!r} cannot name a block: use letters, digits, _ . - alone, and "
                "no number, `all` or `continued`, which mean something else in schedules"
            )
        listed = patterns if isinstance(patterns, Sequence | set) else [patterns]
        listed = [listed] if isinstance(listed, str) else listed
        if not listed:
            raise SettingsError(f"{where}: {block} has no patterns: add one, or leave it out")
        for pattern in listed:
            owners |= dict.fromkeys(_matching(model, owners, pattern, f"{where}: {block}"), block)
    if left := [name for name in model.state_dict() if name not in owners]:
        raise SettingsError(
            f"{where}: {_listed(left)} in no block: add a pattern, such as "
            f"{left[0].rpartition('.')[0] or left[0]}"
        )
    return Blocks(tuple(map(str, reversed(given))), owners)


def _matching(model: nn.Module, taken: Iterable[str], pattern: object, where: str) -> list[str]:
    """Names of tensors that are in no block yet and fit the pattern from their beginning."""
    try:
        if not isinstance(pattern, str | int):
            raise SettingsError(f"{where}: a pattern must be a text, got {pattern!r:.80}")
        expression = re.compile(str(pattern))
    except re.error as err:
        raise SettingsError(
            f"{where}: {pattern} is not a regular expression ({err}): mend it, or escape its signs"
        ) from None
    found = [name for name in model.state_dict() if expression.match(name)]
    free = [name for name in found if name not in set(taken)]
    if not free:
        why = (
            f"{_listed(found)} in blocks above it: move it up, or leave it out"
            if found
            else f"no tensor's name begins so; {_modules_of(model)}"
        )
        raise SettingsError(f"{where}: {pattern} matches nothing: {why}")
    return free


def _modules_of(model: nn.Module) -> str:
    return f"its modules are {', '.join(child for child, _ in model.named_children())}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"
