"""Operations of training, against counts by hand from the shapes of the layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.comparing.arms import decide_plan
from pipeline.comparing.cost import operations_of
from pipeline.model.backbones import build_backbone
from pipeline.model.flops import training_operations
from pipeline.settings.schedules import SCHEDULES, Stage
from tests.helpers import request_of


def forward_operations(backbone: str, size: int, blocks: tuple[str, ...]) -> dict[str, list[int]]:
    """Two for each multiplication with a weight, by block and layer, of one image."""
    model = build_backbone(backbone, 10, 0)
    x, found = torch.zeros(1, 3, size, size), {}
    for block in ("stem", "block1", "block2", "block3", "block4", "head"):
        counts: list[int] = []
        hooks = []
        for module in model.blocks[block].modules():
            if isinstance(module, nn.Conv2d | nn.Linear):

                def see(
                    layer: nn.Module, _: object, out: torch.Tensor, counts: list[int] = counts
                ) -> None:
                    positions = out[0, 0].numel() if out.ndim == 4 else 1
                    counts.append(2 * layer.weight.numel() * positions)

                hooks.append(module.register_forward_hook(see))
        with torch.no_grad():
            x = model.run(x, [block])
        for hook in hooks:
            hook.remove()
        found[block] = counts
    return {block: found[block] for block in blocks}


def test_a_head_is_run_once_and_its_gradient_taken_once() -> None:
    found = training_operations("resnet18", 10, 64, SCHEDULES["three_stage"].stage(1))
    assert found == 2 * 2 * 512 * 10  # nothing below wants a gradient


@pytest.mark.parametrize("number", [2, 3])
def test_a_block_costs_three_times_its_forward_but_for_its_first_layers(number: int) -> None:
    stage = SCHEDULES["three_stage"].stage(number)
    forward = forward_operations("resnet18", 64, stage.suffix)
    deepest = forward[stage.deepest]
    entry = deepest[0] + deepest[2]  # first convolution and shortcut see the frozen prefix
    total = sum(sum(counts) for counts in forward.values())
    found = training_operations("resnet18", 10, 64, stage)
    assert found == pytest.approx(3 * total - entry)


def test_a_frozen_block_between_has_gradients_through_it_and_none_of_its_own() -> None:
    stage = Stage("release_block3", 2, ("head", "block3"))
    whole = training_operations("resnet18", 10, 64, SCHEDULES["three_stage"].stage(3))
    block4 = sum(forward_operations("resnet18", 64, ("block4",))["block4"])
    assert training_operations("resnet18", 10, 64, stage) == pytest.approx(whole - block4)


def test_an_arms_operations_are_those_of_all_its_stages() -> None:
    options = {"preset": "cifar10_small", "train_per_class": "10", "looks": "2"}
    options |= {"treatment": "three_stage", "control": "full"}
    plan = decide_plan(request_of("decide", options))
    stages = [SCHEDULES["three_stage"].stage(number) for number in (1, 2, 3)]
    an_image = [training_operations("resnet18", 10, 64, stage) for stage in stages]
    epochs = [plan.treatment.settings.training(number).epochs for number in (1, 2, 3)]
    expected = sum(100 * n * one for n, one in zip(epochs, an_image, strict=True))
    assert operations_of(plan.treatment, 10) == pytest.approx(expected)
