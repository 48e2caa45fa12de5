"""torch's compiler stays out of a training, and is there for whoever asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pipeline.system.compiler import NothingDrawn, never_compiled

FRESH = """
import sys
import torch
from pipeline.model.backbones import block_order, build_backbone
from pipeline.training.trainer import OPTIMIZERS

backbone = build_backbone("resnet18", 2, 32, seed=0)
assert block_order("resnet18", 32)[0] == "head"
backbone.run(torch.zeros(2, 3, 32, 32)).sum().backward()
for make in OPTIMIZERS.values():
    optimizer = make([{"params": list(backbone.model.parameters()), "lr": 0.1}])
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
from torchvision.ops import roi_align
sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
from torch._dynamo.utils import counters
assert sys.modules["torch._dynamo"].utils.counters is counters
"""


@pytest.mark.slow
def test_a_training_does_without_the_compiler_which_is_there_when_asked_for() -> None:
    subprocess.run([sys.executable, "-c", FRESH], check=True)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_that_is_never_compiled_takes_the_same_steps(kind: type) -> None:
    def trained(make: type) -> list[torch.Tensor]:
        weights = [torch.linspace(-1, 1, 12).view(3, 4).requires_grad_(), torch.ones(5)]
        weights[1].requires_grad_()
        optimizer = make([{"params": weights, "lr": 0.1}], lr=0.1, weight_decay=0.01)
        for step in range(4):
            optimizer.zero_grad()
            sum((weight.sin() * (step + 1)).sum() for weight in weights).backward()
            optimizer.step()
            if step == 1:
                optimizer.load_state_dict(optimizer.state_dict())
        return [*weights, *(t for s in optimizer.state.values() for t in s.values())]

    for one, other in zip(trained(kind), trained(never_compiled(kind)), strict=True):
        assert one is other is None or torch.equal(one, other)


def test_a_network_without_values_has_the_shapes_of_one_with_values() -> None:
    with torch.device("meta"), NothingDrawn():
        empty = torch.nn.Linear(3, 2)
    assert empty.weight.is_meta
    assert empty.weight.shape == (2, 3)
    with NothingDrawn():
        kept = torch.ones(3).normal_()
    assert kept.tolist() == [1, 1, 1]
