"""Calibration: BatchNorm takes the new images' statistics, and nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.data.image_set import ImageSet
from pipeline.data.images import USUAL
from pipeline.model.backbones import Backbone, batch_norms, build_backbone
from pipeline.system.disk.digests import digest_tensors
from pipeline.training.norm.stats import STATISTICS, calibrate_norm_stats
from tests.families import small
from tests.helpers import (
    CLASSES,
    CPU,
    calibrate,
    changed_names,
    copy_state,
    edited_factory,
    make_images,
    other_version_of,
    slow_after,
)


def check_first_norm(
    backbone: Backbone, images: ImageSet, mean: tuple[float, float], var: tuple[float, float]
) -> None:
    """Calibrate, and compare the first norm with what the first convolution makes of all images.

    `mean`, `var`: relative and absolute tolerance.
    """
    first = next(m for m in backbone.model.modules() if isinstance(m, nn.Conv2d))
    weight, inputs = first.weight.detach().double(), USUAL.normalise(images.pixels).double()
    values = F.conv2d(inputs, weight, stride=first.stride, padding=first.padding)
    calibrate(backbone, images)
    norm: Any = next(batch_norms([backbone.model]))
    for found, wanted, (rtol, atol) in (
        (norm.running_mean, values.mean((0, 2, 3)), mean),
        (norm.running_var, values.var((0, 2, 3), unbiased=True), var),
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=atol)


def test_a_network_without_batch_norm_looks_at_no_image() -> None:
    backbone, images = build_backbone("tests.networks:GroupNorms", 3, 32, seed=0), make_images(4)
    object.__setattr__(images, "pixels", None)
    calibrate_norm_stats(backbone, images, torch.float32, CPU)


@pytest.mark.parametrize(
    "network",
    ["Net", "TokensIntoTheHead", "ConvolvedHead", "BranchesOnValues", "timm:regnetx_002"],
)
def test_each_batch_counts_once_however_the_head_is_fed(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if network.startswith("timm:"):
        pytest.importorskip("timm")
    monkeypatch.setattr("pipeline.training.norm.stats.PIXELS_PER_BATCH", 4 * 64 * 64)
    images = make_images(12, size=64)
    name = network if network.startswith("timm:") else f"tests.networks:{network}"
    backbone = build_backbone(name, 2, 64, seed=0)
    calibrate_norm_stats(backbone, images, torch.float32, CPU, None)
    below = [m for n, m in backbone.model.named_modules() if not n.startswith("head")]
    counted = [int(layer.num_batches_tracked) for layer in batch_norms(below)]
    assert counted
    assert set(counted) == {3}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_the_first_norm_has_the_images_mean_and_variance(name: str) -> None:
    images, backbone = make_images(12), build_backbone(name, CLASSES, 32, seed=0)
    check_first_norm(backbone, images, mean=(1e-4, 1e-5), var=(1e-4, 1e-5))


def test_class_by_class_order_in_several_batches_gives_the_same_statistics() -> None:
    """Draws list images class by class; batches must not mistake a class for the whole set."""
    rng = np.random.default_rng(0)
    count = 1026  # two batches at 32 px
    pixels = torch.from_numpy(rng.integers(0, 120, (count, 3, 32, 32), dtype=np.uint8))
    labels = torch.arange(count) // (count // 2)
    pixels[labels == 1, 0] += 100
    digests = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    images = ImageSet(pixels=pixels, labels=labels, digests=digests)
    backbone = build_backbone("tests.networks:FirstNormAlone", 2, 32, seed=0)
    check_first_norm(backbone, images, mean=(1e-3, 1e-3), var=(0.02, 0))


@pytest.mark.parametrize("name", slow_after(1, ["mobilenet_v3_small", "resnet18"]))
def test_only_batch_norm_statistics_change_whatever_they_were_before(name: str) -> None:
    fresh, used = (build_backbone(name, CLASSES, 32, seed=0) for _ in range(2))
    before = copy_state(fresh)
    norms: list[Any] = list(batch_norms([used.model]))
    for norm in norms:
        norm.running_mean += 5.0
        norm.num_batches_tracked += 1000
    momenta = [norm.momentum for norm in norms]
    calibrate(fresh, make_images(12))
    calibrate(used, make_images(12))
    assert changed_names(copy_state(fresh), copy_state(used)) == set()
    statistics = {n for n in before if n.endswith(STATISTICS)}
    assert changed_names(before, copy_state(fresh)) == statistics
    assert [norm.momentum for norm in norms] == momenta
    assert None not in momenta
    assert not any(module.training for module in used.model.modules())
    assert all(parameter.grad is None for parameter in used.model.parameters())


def test_bfloat16_statistics_are_those_of_float32_up_to_rounding_and_kept_apart(
    tmp_path: Path,
) -> None:
    images = make_images(12)
    kept = []
    for dtype in (torch.float32, torch.bfloat16):
        backbone = build_backbone("resnet18", CLASSES, 32, seed=0)
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


def test_calibration_is_blind_to_labels_and_sees_the_images() -> None:
    images = make_images(12)
    relabelled = ImageSet(
        pixels=images.pixels, labels=images.labels.flip(0), digests=images.digests
    )
    states = []
    for given in (images, relabelled, make_images(12, start=100)):
        backbone = build_backbone("mobilenet_v3_small", CLASSES, 32, seed=0)
        calibrate(backbone, given)
        states.append(copy_state(backbone))
    assert changed_names(states[0], states[1]) == set()
    assert changed_names(states[0], states[2])


def test_kept_statistics_are_those_computed_really_read_and_damage_is_noticed(
    tmp_path: Path,
) -> None:
    images = make_images(8)
    backbone = small("regnet_y_400mf")
    before = copy_state(backbone)

    def digest(folder: Path | None) -> str:
        backbone.put(before)
        calibrate(backbone, images, folder)
        return digest_tensors(backbone.model.state_dict())

    computed = digest(None)
    assert digest(tmp_path) == computed
    (path,) = tmp_path.glob("*.safetensors")
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    assert digest(tmp_path) == computed
    assert path.stat().st_mtime_ns == written
    for damaged in (content[:-3], content[:-1] + bytes([content[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        assert digest(tmp_path) == computed


@pytest.mark.parametrize("other", ["images", "weights", "size"])
def test_other_weights_or_images_have_statistics_of_their_own(tmp_path: Path, other: str) -> None:
    backbone = small("regnet_y_400mf")
    before = copy_state(backbone)
    calibrate(backbone, make_images(8), tmp_path)
    images = {
        "images": make_images(8, start=1),
        "weights": make_images(8),
        "size": make_images(8, 48),
    }
    backbone.put(before)
    if other == "weights":
        backbone.put({name: tensor * 2 for name, tensor in before.items()})
    calibrate(backbone, images[other], tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_an_edited_factory_has_statistics_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edit leaves every tensor as it is: an activation has none."""
    images, states = make_images(8), []
    for layer in ("stem[2] = nn.ReLU()", "stem[2] = nn.Hardswish()"):
        backbone = edited_factory(tmp_path, layer, monkeypatch)
        calibrate(backbone, images, tmp_path)
        states.append(copy_state(backbone))
        again = edited_factory(tmp_path, layer, monkeypatch)
        calibrate(again, images)
        assert changed_names(states[-1], copy_state(again)) == set()
    assert changed_names(*states)


def test_another_version_of_timm_has_statistics_of_its_own_for_its_networks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    for name, kept in (("timm:test_resnet", 2), ("mobilenet_v3_small", 3)):
        for _ in range(2):
            calibrate(build_backbone(name, CLASSES, 32, seed=0), make_images(4), tmp_path)
            other_version_of("timm", monkeypatch)
        monkeypatch.undo()
        assert len(list(tmp_path.glob("*.safetensors"))) == kept
