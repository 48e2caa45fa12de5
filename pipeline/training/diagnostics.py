"""What a stage risks, measured while it trains: how far weights and representations have moved.

Relative weight drift ||w - w0|| / ||w0||, gradient norm and its relative form ||g|| / ||w||
(Lee et al. 2022, arXiv 2210.11466), and linear CKA of a block's output before and after (Kornblith
et al. 2019, arXiv 1905.00414). CKA alone decides nothing (Davari et al. 2022, arXiv 2210.16156).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.tracking.keys import RISKS
from pipeline.training.master_weights import MasterWeight

PROBES = 200
"""At most so many validation images, evenly spread, have their representations compared."""

GRAM_VALUES = 1 << 24
"""Values of representations that are centred at a time: 64 MB."""


class RiskMeter:
    """Measures one stage's risks, once an epoch.

    Attributes:
        probes: rows of the validation images whose representations are compared.
    """

    def __init__(self, weights: Sequence[MasterWeight], images: int) -> None:
        self._weights: dict[str, list[MasterWeight]] = {}
        for weight in weights:
            self._weights.setdefault(weight.block, []).append(weight)
        self.probes = np.arange(0, images, max(1, -(-images // PROBES)))
        self._before: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}

    def start(self, outputs: Mapping[str, Tensor]) -> None:
        """Remember what each block made of the probes before the first step."""
        self._before = {block: gram(output) for block, output in outputs.items()}

    def see_gradients(self, *, may_overflow: bool = False) -> None:
        """Take the gradients as the optimizer will, unclipped; a device is not waited for.

        `may_overflow`: the loss is scaled, and a step whose gradients are no finite numbers is
        left out by the optimizer; the gradients of the step before stand.
        """
        for block, weights in self._weights.items():
            gradients = [w.master.grad for w in weights if w.master.grad is not None]
            nothing = weights[0].master.new_zeros(())  # where all of a block take no part
            norm = norm_of(gradients or [nothing])
            if may_overflow and block in self._gradients:
                norm = torch.where(norm.isfinite(), norm, self._gradients[block])
            self._gradients[block] = norm

    def read(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """`risk/drift/`, `risk/cka/`, … of each trainable block; a device is read from once."""
        measured = []
        for block, weights in self._weights.items():
            now = [weight.master.detach() for weight in weights]
            cka = linear_cka(self._before[block], gram(outputs[block]))
            sizes = *_moved(now, [w.start for w in weights]), self._gradients[block], norm_of(now)
            measured += [*sizes, cka]
        numbers = iter(torch.stack(measured).view(-1, 5).tolist() if measured else ())
        risks = {}
        for block, (moved, origin, gradient, size, cka) in zip(
            self._weights, numbers, strict=True
        ):
            risks[f"{RISKS}drift/{block}"] = _share(moved, origin)
            risks[f"{RISKS}cka/{block}"] = cka
            risks[f"{RISKS}grad_norm/{block}"] = gradient
            risks[f"{RISKS}grad_relative/{block}"] = gradient / size if size else float("inf")
        return risks


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all values together, ()."""
    norms = torch._foreach_norm(list(tensors))
    return torch.stack(norms).square().sum().sqrt()


def _moved(now: Sequence[Tensor], start: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """||w - w0|| and ||w0||."""
    return norm_of(torch._foreach_sub(list(now), list(start))), norm_of(start)


def _share(moved: float, origin: float) -> float:
    """||w - w0|| / ||w0||; 0 where w0 is all zeros and nothing moved, else infinite."""
    return moved / origin if origin else (float("inf") if moved else 0.0)


def gram(outputs: Tensor) -> Tensor:
    """Centred Gram matrix of N representations (N, …), float32, scaled to norm 1."""
    x = outputs.flatten(1)
    products = torch.zeros((), device=x.device)
    for piece in torch.split(x, max(1, GRAM_VALUES // max(1, len(x))), dim=1):
        centred = piece.float() - piece.float().mean(0)
        products = products + centred @ centred.t()
    size = products.norm()
    return products / torch.where(size == 0, torch.ones_like(size), size)


def linear_cka(one: Tensor, other: Tensor) -> Tensor:
    """Linear CKA from two `gram`s, (): 1 for the same but for rotation and scale."""
    return (one * other).sum()
