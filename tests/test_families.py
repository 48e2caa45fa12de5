"""One network of every family: its blocks, what the cache gives, and what a stage may move."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from pipeline.data.images import USUAL
from pipeline.model.backbones import Backbone
from pipeline.model.freezing import FrozenProof
from pipeline.model.grouping import FAMILIES as DECLARED
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import Stage
from pipeline.training.device import compute_copy, run_segments
from pipeline.training.prefix.cache import PrefixCache
from pipeline.training.prefix.features import StoredFeatures
from tests.families import FAMILIES, small
from tests.helpers import (
    CPU,
    calibrate,
    changed_names,
    copy_state,
    live_features,
    make_images,
    slow_after,
    trainer_for,
)

IMAGES = 4


QUICK = ("resnext50_32x4d", "convnext_tiny", "vit_b_16", "timm:convnextv2_atto")


@pytest.fixture(
    scope="module",
    params=slow_after(len(QUICK), [*QUICK, *(name for name in FAMILIES if name not in QUICK)]),
)
def family(request: pytest.FixtureRequest) -> Backbone:
    """The smallest network of a family, its BatchNorm statistics those of the images."""
    backbone = small(request.param)
    calibrate(backbone, make_images(IMAGES, FAMILIES[request.param][0]))
    return backbone


def test_every_classifier_of_torchvision_is_of_one_declared_family() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        first = [pattern for pattern in DECLARED if re.match(pattern, name)]
        assert len(first) == 1, name


def test_the_blocks_have_names_and_each_tensor_one_block(family: Backbone) -> None:
    _, _, wanted = FAMILIES[family.name]
    assert tuple(segment.name for segment in family.segments) == wanted
    assert family.order == tuple("+".join(wanted).split("+"))
    assert set(family.merged) == {b for s in family.segments for b in s.blocks[:-1]}
    tensors = list(family.model.state_dict())
    assert sorted(n for b in family.order for n in family.tensor_names([b])) == sorted(tensors)
    assert all(family.tensor_names([block]) for block in family.order)
    held = [n for s in family.segments for n in s.module.state_dict()]
    assert sorted(set(held) & set(tensors)) == sorted(tensors)


@torch.no_grad()
def test_logits_are_the_same_with_the_cache_at_every_border_and_without(
    family: Backbone, tmp_path: Path
) -> None:
    images = make_images(IMAGES, FAMILIES[family.name][0])
    rows = np.arange(IMAGES)
    pixels = USUAL.normalise(images.pixels)
    whole = family.model(pixels)
    assert torch.equal(family.run(pixels), whole)
    # random weights amplify rounding, more so in deep networks: as much as PyTorch's own is fine
    exact = deepcopy(family.model).double()(pixels.double())
    rounding = float((whole - exact).abs().max())
    room = {"rtol": 0.0, "atol": 4 * rounding + 1e-5}
    whole_copy = compute_copy(family.segments, torch.float32, CPU, frozen=True)
    direct = run_segments(whole_copy, pixels, torch.float32)
    torch.testing.assert_close(direct.double(), exact, **room)
    cache = PrefixCache(tmp_path, 1 << 30)
    for prefix in range(1, len(family.segments)):
        features = cache.features(
            family, prefix, images, augment="none", views=1, dtype=torch.float32, device=CPU
        )
        assert isinstance(features, StoredFeatures)
        inputs = features.batch(rows, np.zeros_like(rows))
        trained = compute_copy(family.segments[prefix:], torch.float32, CPU)
        torch.testing.assert_close(
            run_segments(trained, inputs, torch.float32).double(), exact, **room
        )
        cached = run_segments(whole_copy[prefix:], inputs, torch.float32)
        torch.testing.assert_close(
            cached, direct, rtol=0, atol=1e-5 * float(whole.abs().max().clamp(min=1.0))
        )
    assert len(list(tmp_path.glob("*.bin"))) == len(family.segments) - 1
    assert cache.notes == []


def test_a_step_moves_tensors_of_the_trainable_blocks_alone(family: Backbone) -> None:
    trainable = ("head", family.order[-2])
    images = make_images(IMAGES, FAMILIES[family.name][0])
    stage = Stage("mine", 2, trainable)
    before = copy_state(family)
    proof = FrozenProof.take(family, 2, trainable)
    features = live_features(family, stage, images)
    settings = TrainSettings(epochs=1, batch_size=IMAGES, augment="none", lr=0.01, warmup=0.0)
    trainer = trainer_for(family, stage, settings)
    proof.watch({"train": features.running, "suffix": trainer.segments})
    assert list(trainer.epochs(images, features, images, features))
    family.put(trainer.best)
    proof.check(family)
    moved = changed_names(before, copy_state(family))
    family.put(before)
    assert moved <= set(family.tensor_names(trainable))
    assert {family.owners[name] for name in moved} == set(trainable)
