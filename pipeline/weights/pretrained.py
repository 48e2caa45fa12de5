"""Pretrained weights: where they come from, which tensors matched, and their digest.

In: `imagenet` or `pretrained` (the library's default weights, fetched on first use; what a factory
returns), torchvision's name for some (`IMAGENET1K_V1`), `tiny_imagenet` (the starter in this
folder, ResNet-18 only), `none`, or a state dict file. Out: `Pretrained`. All but the classifier is
checked by `read_weights`, before the number of classes is known. A classifier of another size or
form is left out; any other mismatch is an error that names the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import SettingsError, WeightsError
from pipeline.model.backbones import AUTO, Backbone
from pipeline.model.factories import is_factory
from pipeline.model.networks import TIMM, build_network
from pipeline.system.disk.digests import digest_file, digest_tensors
from pipeline.system.disk.files import seen, typed_path
from pipeline.system.disk.yaml_file import did_you_mean
from pipeline.system.text import first_of
from pipeline.weights.fitting import Layout, find_network
from pipeline.weights.published import (
    DEFAULT,
    PRETRAINED,
    fetch,
    fetch_from_timm,
    is_published_name,
    published,
    timm_is_here,
)
from pipeline.weights.state_files import read_content

OWN = ("tiny_imagenet", "none")
STARTER = Path(__file__).parent / "resnet18-tiny-imagenet-64px.safetensors"
STARTER_BACKBONE = "resnet18"
STARTER_SHA256 = "28c7281f45aaee0437d1b242cab83877735eb8924ffeadd8040beb853759cbc4"


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The tensors that a backbone starts from.

    Attributes:
        name: as in the setting `weights`.
        digest: SHA-256 of `tensors`; "none" for random weights.
        tensors: float32 (counters int64), named as in the network's state dict.
        report: one line: how many tensors matched, which were left out.
    """

    name: str
    digest: str
    tensors: dict[str, Tensor]
    report: str

    def apply(self, backbone: Backbone) -> None:
        """Copy the tensors into the backbone; its other tensors stay as they are."""
        backbone.put(self.tensors)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights that fit a backbone up to its classifier, whose size is not known yet.

    Attributes:
        name: as in the setting `weights`.
        state: their tensors, finite before the classifier; None for random weights.
        roots: the classifier's modules, each as `fc.`.
        note: what was taken off or passed over, as an addition to the report.
    """

    name: str
    state: Mapping[str, Tensor] | None
    roots: tuple[str, ...] = ()
    note: str = ""

    def fitted(self, backbone: Backbone) -> Pretrained:
        """The tensors for a backbone with its number of classes.

        A classifier of as many classes is taken, if its values are finite: the report says so.
        """
        if self.state is None:
            report = "weights none: every block starts at random"
            return Pretrained(name="none", digest="none", tensors={}, report=report)
        expected = backbone.model.state_dict()
        last = f"{backbone.head_layer()}."
        tensors = {
            name: self.state[name].to(target.dtype)
            for name, target in expected.items()
            if name in self.state
            and self.state[name].shape == target.shape
            and self.state[name].isfinite().all()
        }
        # half a classifier is of no use: its last layer needs the layers below it
        for part in (last, *self.roots):
            whole = [name for name in expected if name.startswith(part)]
            below = [name for name in whole if not name.startswith(last)] or whole
            if not all(name in tensors for name in below):
                tensors = {n: t for n, t in tensors.items() if n not in whole}
        left_out = [n for n in expected if n not in tensors and n.startswith(self.roots)]
        broken = any(not tensor.isfinite().all() for tensor in self.state.values())
        why = "not finite" if broken else "new classes"
        head = ", the classifier among them: it has as many classes"
        if left_out:
            head = f", left out {' and '.join(left_out)} ({why})"
        matched = f"{len(tensors)} of {len(expected)} tensors matched"
        absent = [n for n in expected if n not in tensors and n not in left_out]
        if absent:  # older files count no batches
            head += f", {first_of(absent, 1)} not in the file"
        report = f"weights {self.name}: {matched}{head}{self.note}"
        digest = digest_tensors(tensors)
        return Pretrained(name=self.name, digest=digest, tensors=tensors, report=report)


def read_weights(weights: str, backbone: str, image_size: int, blocks: str = AUTO) -> Weights:
    """The weights, checked for all but the classifier.

    Args:
        weights: as in the setting.
        backbone: name of the network.
        image_size: pixels a side; positions learnt at another size are interpolated.
        blocks: as in the setting; tells which tensors are the classifier's.

    Raises:
        WeightsError: no such file, a damaged file, or weights of another backbone.
        DownloadError: published weights are not here and could not be fetched.
    """
    if weights == "none":
        return Weights(name="none", state=None)
    layout = Layout.of(backbone, image_size, blocks)
    if is_published_name(weights) and is_factory(backbone):
        content = _as_built(weights, backbone, image_size)
    elif is_published_name(weights) and backbone.startswith(TIMM):
        content = fetch_from_timm(weights, backbone, image_size)
    else:
        content = read_content(_path_of(weights, backbone), weights)
    fit, note = find_network(content, layout, weights)
    _check_values(weights, fit.trunk, layout.trunk)
    head = fit.head
    if is_published_name(weights) and is_factory(backbone):
        other = build_network(backbone, 2, image_size, seed=1).state_dict()
        head = {n: t for n, t in head.items() if torch.equal(t, other[n])}  # not drawn at random
    state = {**fit.trunk, **head}
    return Weights(name=weights, state=state, roots=layout.roots, note=note + fit.note)


def _as_built(weights: str, backbone: str, image_size: int) -> dict[str, Tensor]:
    """What a factory returns, which may have loaded weights itself, for two classes.

    Raises:
        WeightsError: other weights than `pretrained` are asked for.
    """
    if weights != PRETRAINED:
        raise WeightsError(
            f"weights={weights}: {backbone} is a factory, nobody publishes its weights: pass a "
            f"file, none, or {PRETRAINED} for what the factory returns"
        )
    return build_network(backbone, 2, image_size, seed=0).state_dict()


def names_a_file(weights: str) -> bool:
    """Whether `weights` is a path, not the name of published, starter or random weights."""
    return weights not in OWN and not is_published_name(weights)


def is_here(weights: str, backbone: str) -> bool:
    """Whether nothing has to be fetched for these weights.

    Raises:
        WeightsError: torchvision has none of that name.
    """
    if names_a_file(weights) or weights in OWN or is_factory(backbone):
        return True
    if backbone.startswith(TIMM):
        return timm_is_here(backbone)
    return seen(published(weights, backbone)[1].is_file)


def _check_values(
    weights: str, trunk: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Refuse values that no training can have produced, where the network `expected` has floats.

    Whole numbers are counters, or places in a table, such as Swin's of relative positions.
    """
    values = {n: t for n, t in trunk.items() if expected[n].is_floating_point()}
    learned = [t for t in values.values() if t.dim() > 1]
    checks: list[tuple[str, Callable[[], list[str]]]] = [
        (
            "hold no values (they are on torch's meta device)",
            lambda: [n for n, t in trunk.items() if t.is_meta],
        ),
        (
            "are of whole numbers, truth values or complex numbers",
            lambda: [n for n, t in values.items() if not t.is_floating_point()],
        ),
        (
            "hold variances below zero",
            lambda: [n for n, t in values.items() if n.endswith("running_var") and (t < 0).any()],
        ),
        (
            "are all zeros",
            lambda: list(values) if learned and not any(t.any() for t in learned) else [],
        ),
        (
            "hold variances that are all zero",
            lambda: [n for n, t in values.items() if n.endswith("running_var") and not t.any()],
        ),
        (
            "hold values that are not finite numbers",
            lambda: [n for n, t in trunk.items() if not t.float().isfinite().all()],
        ),
    ]
    for fault, found in checks:
        if names := found():
            raise WeightsError(
                f"weights={weights}: {first_of(names, 4)} {fault}: use other weights, "
                "saved as floats with torch.save(model.state_dict(), path)"
            )


def _path_of(weights: str, backbone: str) -> Path:
    """The file of these weights, fetched where torchvision publishes it."""
    if weights == "tiny_imagenet":
        return _starter_for(backbone)
    if not names_a_file(weights):
        starter = f"-P backbone={STARTER_BACKBONE} -P weights=tiny_imagenet"
        return fetch(
            weights,
            backbone,
            f"-P weights=<a .pth or .safetensors file of {backbone}>, or {starter}, which come "
            "with the package",
        )
    try:
        path = typed_path(weights)
        if path.is_dir():
            raise WeightsError(
                f"weights={weights} is a folder: pass the .pth or .safetensors file in it"
            )
        if path.is_file():
            return path
        reason = f"{path.absolute()} {'is not a file' if path.exists() else 'does not exist'}"
    except (OSError, SettingsError, ValueError) as err:  # permissions, a long name, no home
        reason = getattr(err, "strerror", None) or str(err)
    names = (DEFAULT, PRETRAINED, *OWN, "IMAGENET1K_V1")
    is_path = "/" in weights or weights.endswith((".pth", ".safetensors"))
    hint = "" if is_path else did_you_mean(weights, names)
    meant = hint or ": pass one of these or a .pth/.safetensors file"
    raise WeightsError(
        f"weights={weights}: neither imagenet, pretrained, tiny_imagenet, none, a name such as "
        f"IMAGENET1K_V1 nor a file ({reason}){meant}"
    )


def _starter_for(backbone: str) -> Path:
    if backbone != STARTER_BACKBONE:
        raise WeightsError(
            f"weights=tiny_imagenet are for {STARTER_BACKBONE}, got backbone {backbone}: pass "
            f"-P backbone={STARTER_BACKBONE}, or -P weights=imagenet or a file of your own"
        )
    if not STARTER.is_file() or digest_file(STARTER) != STARTER_SHA256:
        raise WeightsError(
            f"weights=tiny_imagenet: {STARTER} is damaged (its SHA-256 is not "
            f"{STARTER_SHA256[:12]}…): restore it from the repository"
        )
    return STARTER
