"""Frozen means frozen: parameters and buffers, for every backbone and every stage."""

from __future__ import annotations

from itertools import product
from typing import Literal

import pytest
import torch
from torch import nn

from pipeline.errors import FreezingError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.model.freezing import FrozenProof, set_trainable
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import BLOCKS, SCHEDULES, Stage
from pipeline.training.device import compute_copy, run_segments
from pipeline.training.prefix.features import Features
from pipeline.training.trainer import Trainer
from tests.helpers import (
    CLASSES,
    CPU,
    DISTINCT_STAGES,
    calibrated_backbone,
    changed_names,
    copy_state,
    live_features,
    make_images,
    slow_after,
    trainer_for,
)

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
STAGE_2 = SCHEDULES["three_stage"].stage(2)


def train(
    backbone: Backbone,
    stage: Stage,
    norm: Literal["adapt", "keep"] = "adapt",
    dtype: torch.dtype = torch.float32,
) -> tuple[Trainer, FrozenProof, Features]:
    """One epoch of one step on four images; the backbone then holds the result."""
    images, proof = make_images(4), FrozenProof.take(backbone, stage.number, stage.trainable)
    features = live_features(backbone, stage, images, dtype)
    settings = TrainSettings(epochs=1, batch_size=4, augment="none", norm=norm, lr=0.01)
    trainer = trainer_for(backbone, stage, settings, dtype=dtype)
    proof.watch({"suffix": trainer.segments})
    for _ in trainer.epochs(images, features, images, features):
        pass
    backbone.put(trainer.best)
    return trainer, proof, features


def test_the_stages_tried_stand_for_those_of_every_schedule() -> None:
    everything = {stage.trainable for schedule in SCHEDULES.values() for stage in schedule.stages}
    assert set(DISTINCT_STAGES) == everything


@pytest.mark.parametrize(
    ("name", "stage"),
    slow_after(
        len(DISTINCT_STAGES) + 1,
        [
            *product(("mobilenet_v3_small", "resnet18"), DISTINCT_STAGES.values()),
            *product(("resnet50", "efficientnet_b0"), [SCHEDULES["three_stage"].stage(3)]),
        ],
    ),
)
def test_a_stage_changes_its_trainable_blocks_and_nothing_else(name: str, stage: Stage) -> None:
    backbone = build_backbone(name, CLASSES, 32, seed=0)
    before = copy_state(backbone)
    trainer, proof, features = train(backbone, stage)
    proof.check(backbone)
    trainable = set(backbone.tensor_names(stage.trainable))
    assert changed_names(before, copy_state(backbone)) == trainable

    frozen = backbone.segments[: len(features.running)]
    fresh = compute_copy(frozen, torch.float32, CPU, frozen=True)
    for segment, other in zip(features.running, fresh, strict=True):  # the copy that really ran
        copied = segment.module
        wanted = other.module.state_dict()
        assert list(copied.state_dict()) == list(wanted)
        for inner, tensor in copied.state_dict().items():
            assert torch.equal(tensor, wanted[inner])
        assert not any(module.training for module in copied.modules())
        assert not any(p.requires_grad or p.grad is not None for p in copied.parameters())

    parameters = dict(backbone.model.named_parameters())
    names = {id(weight.master): weight.name for weight in trainer.weights}
    held = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(trainable & parameters.keys())
    assert {id(parameter) for parameter in trainer.optimizer.state} == set(names)
    assert all(parameter.grad is None for parameter in parameters.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_block_above_a_trainable_one_stays_frozen(dtype: torch.dtype) -> None:
    """Also where its copy computes in fewer bits than the model holds."""
    stage = Stage("release_block3", 2, ("head", "block3"))
    backbone = build_backbone("mobilenet_v3_small", CLASSES, 32, seed=0)
    before = copy_state(backbone)
    trainer, proof, _ = train(backbone, stage, dtype=dtype)
    (block4,) = [s for s in trainer.segments if s.blocks == ("block4",)]
    assert all(p.grad is None for p in block4.module.parameters())
    proof.check(backbone)
    trainable = set(backbone.tensor_names(stage.trainable))
    assert changed_names(before, copy_state(backbone)) == trainable


@pytest.mark.parametrize("norm", ["adapt", "keep"])
@pytest.mark.parametrize("name", slow_after(1, ["mobilenet_v3_small", "resnet18"]))
def test_statistics_of_trainable_blocks_adapt_or_are_kept(
    name: str, norm: Literal["adapt", "keep"]
) -> None:
    backbone = calibrated_backbone(name, make_images(4))
    before = copy_state(backbone)
    train(backbone, STAGE_2, norm)
    names = set(backbone.tensor_names(STAGE_2.trainable))
    statistics = {n for n in names if n.endswith(STATISTICS)}
    assert statistics
    moved = changed_names(before, copy_state(backbone))
    assert moved == (names if norm == "adapt" else names - statistics)  # affine trains either way


@pytest.mark.parametrize("norm", ["adapt", "keep"])
def test_each_block_is_in_the_mode_of_its_stage(norm: Literal["adapt", "keep"]) -> None:
    segments = build_backbone("mobilenet_v3_small", CLASSES, 32, seed=0).segments
    set_trainable(segments, ("head", "block4"), norm)
    for segment in segments:
        trains = segment.name in ("head", "block4")
        assert {p.requires_grad for p in segment.module.parameters()} == {trains}
        for module in segment.module.modules():
            kept = isinstance(module, nn.BatchNorm2d) and norm == "keep"
            assert module.training == (trains and not kept)


def test_setting_another_stage_freezes_what_trained_before() -> None:
    segments = build_backbone("mobilenet_v3_small", CLASSES, 32, seed=0).segments
    set_trainable(segments, BLOCKS, "adapt")
    set_trainable(segments, ("head",), "adapt")
    trains = {s.name for s in segments if any(m.training for m in s.module.modules())}
    learns = {s.name for s in segments if any(p.requires_grad for p in s.module.parameters())}
    assert trains == learns == {"head"}


@pytest.fixture
def resnet() -> Backbone:
    return build_backbone("resnet18", CLASSES, 32, seed=0)


def test_a_frozen_batch_norm_in_training_mode_is_caught_by_name(resnet: Backbone) -> None:
    proof = FrozenProof.take(resnet, 2, STAGE_2.trainable)
    resnet.model.get_submodule("layer2.0.bn1").train()
    with torch.no_grad():
        resnet.model(torch.rand(4, 3, 32, 32))
    with pytest.raises(FreezingError, match=r"stage 2 .*layer2\.0\.bn1\.running_mean"):
        proof.check(resnet)


@pytest.mark.parametrize(
    "name", ["conv1.weight", "bn1.num_batches_tracked", "layer3.1.bn2.bias", "layer1.0.bn1.weight"]
)
def test_a_changed_frozen_tensor_is_caught_by_name(name: str, resnet: Backbone) -> None:
    proof = FrozenProof.take(resnet, 2, STAGE_2.trainable)
    resnet.model.state_dict()["fc.bias"] += 1  # trainable: no fault
    proof.check(resnet)
    resnet.model.state_dict()[name].view(-1)[-1:] += 1
    with pytest.raises(FreezingError, match=rf"\({name}\): only head, block4 may train"):
        proof.check(resnet)


def test_the_smallest_change_of_one_value_is_caught_by_name(resnet: Backbone) -> None:
    weight = resnet.model.state_dict()["layer1.0.conv1.weight"]
    weight.view(-1)[0] = 0.0
    proof = FrozenProof.take(resnet, 1, ("head",))
    weight.view(-1)[0] = -0.0
    with pytest.raises(FreezingError, match=r"\(layer1\.0\.conv1\.weight\)"):
        proof.check(resnet)


def test_the_proof_of_a_stage_that_trains_everything_covers_nothing(resnet: Backbone) -> None:
    assert FrozenProof.take(resnet, 1, BLOCKS).digests == {}


def test_a_running_copy_of_the_prefix_in_training_mode_is_caught(resnet: Backbone) -> None:
    copies = compute_copy(resnet.segments[:4], torch.float32, CPU)
    proof = FrozenProof.take(resnet, 2, STAGE_2.trainable)
    proof.watch({"train": copies})
    copies[2].module.train()
    with torch.no_grad():
        run_segments(copies, torch.rand(4, 3, 32, 32), torch.float32)
    with pytest.raises(FreezingError, match=r"train\.layer2\.0\.bn1\.running_mean"):
        proof.check(resnet)


def test_whole_numbers_beside_the_modules_are_not_asked_for_gradients() -> None:
    backbone = build_backbone("tests.networks:BareIndices", CLASSES, 32, seed=0)
    set_trainable(backbone.segments, ["head", "late"], "adapt")
    learning = {n for n, p in backbone.model.named_parameters() if p.requires_grad}
    names = backbone.tensor_names(["head", "late"])
    assert learning == {name for name in names if name.endswith(("weight", "bias"))}
