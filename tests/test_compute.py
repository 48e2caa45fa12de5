"""Copies compute in the order and precision asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.images import USUAL
from pipeline.model.backbones import batch_norms, build_backbone
from pipeline.model.freezing import set_trainable
from pipeline.training.device import compute_copy, run_segments
from pipeline.training.small_conv import SmallConv2d
from tests.helpers import CLASSES, CPU, calibrated_backbone, make_images

FLAGS = """
import os, torch
from pipeline.training.device import compute_repeatably

def flags():
    cudnn = torch.backends.cudnn
    return [torch.are_deterministic_algorithms_enabled(), cudnn.deterministic]

compute_repeatably(torch.device("cpu"))
assert flags() == [False, False], flags()
assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
compute_repeatably(torch.device("cuda"))
assert flags() == [True, True], flags()
assert torch.is_deterministic_algorithms_warn_only_enabled()
assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
assert not torch.backends.cudnn.benchmark
assert torch.backends.cudnn.conv.fp32_precision == "none"
assert not torch.backends.cudnn.allow_tf32
"""


@pytest.mark.slow
def test_a_gpu_is_told_to_repeat_itself_and_a_processor_is_left_alone() -> None:
    variables = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    subprocess.run([sys.executable, "-c", FLAGS], check=True, env=variables)


@pytest.mark.parametrize(("name", "size"), [("resnet18", 32), ("efficientnet_b0", 64)])
def test_the_copy_that_computes_gives_the_models_own_logits(name: str, size: int) -> None:
    """Channels-last copies with matrix products against torchvision's model as it is."""
    images = make_images(6, size)
    backbone = calibrated_backbone(name, images)
    inputs = USUAL.normalise(images.pixels)
    with torch.no_grad():
        wanted = backbone.model(inputs)
        copies = compute_copy(backbone.segments, torch.float32, CPU)
        got = run_segments(copies, inputs, torch.float32)
    scale = float(wanted.abs().max())  # random weights amplify rounding from layer to layer
    torch.testing.assert_close(got, wanted, rtol=0, atol=5e-4 * scale)


def test_gradients_lie_in_memory_as_maps_do_also_behind_global_pooling() -> None:
    backbone = build_backbone("mobilenet_v3_small", CLASSES, 64, seed=0)
    copies = compute_copy(backbone.segments, torch.float32, CPU)
    set_trainable(copies, backbone.order, "adapt")
    found: list[tuple[torch.Size, bool]] = []

    def see(_layer: nn.Module, _inputs: object, outputs: Tensor) -> None:
        outputs.register_hook(  # type: ignore[no-untyped-call]
            lambda grad: found.append(
                (grad.shape, grad.is_contiguous(memory_format=torch.channels_last))
            )
        )

    layers = list(batch_norms(copied.module for copied in copies))
    for layer in layers:
        layer.register_forward_hook(see)
    logits = run_segments(copies, make_images(4, 64).pixels.float(), torch.float32)
    torch.autograd.backward(logits.square().sum())
    assert len(found) == len(layers)
    assert all(is_last for _, is_last in found), found


def test_a_copy_is_channels_last_and_shares_nothing() -> None:
    backbone = build_backbone("resnet18", CLASSES, 32, seed=0)
    copies = compute_copy(backbone.segments, torch.bfloat16, CPU)
    theirs = {p.data_ptr() for copied in copies for p in copied.module.parameters()}
    assert theirs.isdisjoint(p.data_ptr() for p in backbone.model.parameters())
    for copied in copies:
        for module in copied.module.modules():
            assert not module.training
            if isinstance(module, nn.Conv2d | SmallConv2d) and module.weight.shape[-1] > 1:
                assert module.weight.is_contiguous(memory_format=torch.channels_last)
                assert module.weight.dtype == torch.bfloat16
            if isinstance(module, nn.BatchNorm2d | nn.Linear):
                assert module.weight.dtype == torch.float32, copied.name
