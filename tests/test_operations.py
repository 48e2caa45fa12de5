"""Operations of training, against counts by hand from the shapes of the layers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from pipeline.comparing.arms import decide_plan
from pipeline.comparing.cost import operations_of
from pipeline.model.backbones import build_backbone
from pipeline.model.flops import training_operations
from pipeline.settings.schedules import BLOCKS
from tests.helpers import request_of


def forward_operations(backbone: str, size: int, blocks: Sequence[str]) -> dict[str, list[int]]:
    """Two for each multiplication with a weight, by block and layer, of one image."""
    model = build_backbone(backbone, 10, size, 0)
    x, found = torch.zeros(1, 3, size, size), {}
    for segment in model.segments:
        counts: list[int] = []
        hooks = []
        for module in segment.module.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):

                def see(
                    layer: nn.Module, _: object, out: torch.Tensor, counts: list[int] = counts
                ) -> None:
                    positions = out[0, 0].numel() if out.ndim == 4 else 1
                    counts.append(2 * layer.weight.numel() * positions)

                hooks.append(module.register_forward_hook(see))
        with torch.no_grad():
            x = segment.module(x)
        for hook in hooks:
            hook.remove()
        found[segment.name] = counts
    return {block: found[block] for block in blocks}


def test_a_head_is_run_once_and_its_gradient_taken_once() -> None:
    found = training_operations("resnet18", 10, 64, ("head",))
    assert found == 2 * 2 * 512 * 10  # nothing below wants a gradient


@pytest.mark.parametrize("trainable", [BLOCKS[:2], BLOCKS[:3]])
def test_a_block_costs_three_times_its_forward_but_for_its_first_layers(
    trainable: tuple[str, ...],
) -> None:
    forward = forward_operations("resnet18", 64, trainable)
    deepest = forward[trainable[-1]]
    entry = deepest[0] + deepest[2]  # first convolution and shortcut see the frozen prefix
    total = sum(sum(counts) for counts in forward.values())
    found = training_operations("resnet18", 10, 64, trainable)
    assert found == pytest.approx(3 * total - entry)


def test_a_frozen_block_between_has_gradients_through_it_and_none_of_its_own() -> None:
    whole = training_operations("resnet18", 10, 64, BLOCKS[:3])
    block4 = sum(forward_operations("resnet18", 64, ("block4",))["block4"])
    found = training_operations("resnet18", 10, 64, ("head", "block3"))
    assert found == pytest.approx(whole - block4)


def test_an_arms_operations_are_those_of_all_its_stages() -> None:
    options = {"preset": "cifar10_small", "train_per_class": "10", "looks": "2"}
    options |= {"treatment": "three_stage", "control": "full"}
    plan = decide_plan(request_of("decide", options))
    an_image = [training_operations("resnet18", 10, 64, BLOCKS[:n]) for n in (1, 2, 3)]
    epochs = [plan.treatment.settings.training(number).epochs for number in (1, 2, 3)]
    expected = sum(100 * n * one for n, one in zip(epochs, an_image, strict=True))
    assert operations_of(plan.treatment, 10, 100) == pytest.approx(expected)
