"""Calibration: BatchNorm takes the new images' statistics, and nothing else moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.augment import normalise
from pipeline.data.images import ImageSet
from pipeline.model.backbones import FORWARD_ORDER, Backbone, batch_norms, build_backbone
from pipeline.system.digests import digest_tensors
from pipeline.training.norm_stats import calibrate_norm_stats
from tests.helpers import CLASSES, CPU, calibrate, changed_names, copy_state, make_images


def first_norm(backbone: Backbone) -> nn.BatchNorm2d:
    return next(batch_norms(backbone.blocks[name] for name in FORWARD_ORDER))


def first_norm_inputs(backbone: Backbone, images: ImageSet) -> Tensor:
    """What the first BatchNorm is fed with: the first convolution of the whole image set."""
    first = next(m for m in backbone.model.modules() if isinstance(m, nn.Conv2d))
    weight = first.weight.detach().double()
    inputs = normalise(images.pixels).double()
    return F.conv2d(inputs, weight, stride=first.stride, padding=first.padding)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_the_first_norm_has_the_images_mean_and_variance(name: str) -> None:
    images, backbone = make_images(12), build_backbone(name, CLASSES, seed=0)
    values = first_norm_inputs(backbone, images)
    calibrate(backbone, images)
    norm = first_norm(backbone)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var = values.mean((0, 2, 3)), values.var((0, 2, 3), unbiased=True)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-4, atol=1e-5)


def test_class_by_class_order_in_several_batches_gives_the_same_statistics() -> None:
    """Draws list images class by class; batches must not mistake a class for the whole set."""
    rng = np.random.default_rng(0)
    count = 1026  # two batches at 32 px
    pixels = torch.from_numpy(rng.integers(0, 120, (count, 3, 32, 32), dtype=np.uint8))
    labels = torch.arange(count) // (count // 2)
    pixels[labels == 1, 0] += 100
    digests = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    images, backbone = ImageSet(pixels, labels, digests), build_backbone("resnet18", 2, seed=0)
    backbone.blocks.update({name: nn.Sequential() for name in FORWARD_ORDER[1:5]})  # the stem only
    values = first_norm_inputs(backbone, images)
    calibrate(backbone, images)
    norm = first_norm(backbone)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var = values.mean((0, 2, 3)), values.var((0, 2, 3), unbiased=True)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var.double(), var, rtol=0.02, atol=0)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_only_batch_norm_statistics_change_and_all_of_them_do(name: str) -> None:
    backbone = build_backbone(name, CLASSES, seed=0)
    before = copy_state(backbone)
    calibrate(backbone, make_images(12))
    statistics = {
        n for n in before if n.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    assert changed_names(before, copy_state(backbone)) == statistics


def test_what_the_statistics_were_before_does_not_matter() -> None:
    fresh, used = (build_backbone("mobilenet_v3_small", CLASSES, seed=0) for _ in range(2))
    for norm in batch_norms(used.blocks.values()):
        assert norm.running_mean is not None
        assert norm.num_batches_tracked is not None
        norm.running_mean += 5.0
        norm.num_batches_tracked += 1000
    calibrate(fresh, make_images(12))
    calibrate(used, make_images(12))
    assert changed_names(copy_state(fresh), copy_state(used)) == set()


def test_the_backbone_stays_in_eval_mode_with_its_own_momenta() -> None:
    backbone = build_backbone("mobilenet_v3_small", CLASSES, seed=0)
    momenta = [norm.momentum for norm in batch_norms(backbone.blocks.values())]
    assert None not in momenta
    calibrate(backbone, make_images(6))
    assert [norm.momentum for norm in batch_norms(backbone.blocks.values())] == momenta
    assert not any(module.training for module in backbone.model.modules())
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


def test_bfloat16_statistics_are_those_of_float32_up_to_rounding_and_kept_apart(
    tmp_path: Path,
) -> None:
    images = make_images(12)
    kept = []
    for dtype in (torch.float32, torch.bfloat16):
        backbone = build_backbone("resnet18", CLASSES, seed=0)
        calibrate_norm_stats(backbone, images, dtype, CPU, tmp_path)
        kept.append(backbone)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    exact, rounded = (backbone.model.state_dict() for backbone in kept)
    differs = False
    for name in exact:
        if name.endswith("running_var"):
            assert rounded[name].dtype == torch.float32
            torch.testing.assert_close(rounded[name], exact[name], rtol=0.3, atol=1e-3)
            differs |= not torch.equal(rounded[name], exact[name])
    assert differs  # bfloat16 was really used


def test_calibration_is_deterministic_and_blind_to_labels() -> None:
    images = make_images(12)
    relabelled = ImageSet(images.pixels, images.labels.flip(0), images.digests)
    states = []
    for given in (images, images, relabelled):
        backbone = build_backbone("mobilenet_v3_small", CLASSES, seed=0)
        calibrate(backbone, given)
        states.append(copy_state(backbone))
    assert changed_names(states[0], states[1]) == set()
    assert changed_names(states[0], states[2]) == set()


def test_other_images_give_other_statistics() -> None:
    first, second = (build_backbone("mobilenet_v3_small", CLASSES, seed=0) for _ in range(2))
    calibrate(first, make_images(12))
    calibrate(second, make_images(12, start=100))
    assert changed_names(copy_state(first), copy_state(second))


def test_kept_statistics_are_those_that_were_computed(tmp_path: Path) -> None:
    images = make_images(8)
    plain = build_backbone("resnet18", CLASSES, seed=0)
    calibrate(plain, images)
    for _ in range(2):
        kept = build_backbone("resnet18", CLASSES, seed=0)
        calibrate(kept, images, tmp_path)
        assert digest_tensors(kept.model.state_dict()) == digest_tensors(plain.model.state_dict())
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_kept_statistics_are_really_read_and_damage_is_noticed(tmp_path: Path) -> None:
    images = make_images(8)
    first = build_backbone("resnet18", CLASSES, seed=0)
    calibrate(first, images, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    content = path.read_bytes()
    written = path.stat().st_mtime_ns
    calibrate(build_backbone("resnet18", CLASSES, seed=0), images, tmp_path)
    assert path.stat().st_mtime_ns == written
    for damaged in (content[:-3], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        again = build_backbone("resnet18", CLASSES, seed=0)
        calibrate(again, images, tmp_path)
        assert digest_tensors(again.model.state_dict()) == digest_tensors(first.model.state_dict())


@pytest.mark.parametrize("other", ["images", "weights", "size"])
def test_other_weights_or_images_have_statistics_of_their_own(tmp_path: Path, other: str) -> None:
    calibrate(build_backbone("resnet18", CLASSES, seed=0), make_images(8), tmp_path)
    images = {
        "images": make_images(8, start=1),
        "weights": make_images(8),
        "size": make_images(8, 48),
    }
    seed = 1 if other == "weights" else 0
    calibrate(build_backbone("resnet18", CLASSES, seed), images[other], tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
