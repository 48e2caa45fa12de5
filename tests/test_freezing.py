"""Frozen means frozen: parameters and buffers, for every backbone and every stage."""

from __future__ import annotations

from typing import Literal, get_args

import pytest
import torch
from torch import nn

from pipeline.errors import FreezingError
from pipeline.model.backbones import build_backbone
from pipeline.model.freezing import FrozenProof, set_trainable
from pipeline.settings.run import BackboneName, TrainSettings
from pipeline.settings.schedules import BLOCKS, SCHEDULES, Stage
from pipeline.training.device import compute_copy, run_blocks
from pipeline.training.features import LiveFeatures
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
    trainer_for,
)

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
BACKBONES = get_args(BackboneName)


def test_the_stages_tried_stand_for_those_of_every_schedule() -> None:
    everything = {stage.trainable for schedule in SCHEDULES.values() for stage in schedule.stages}
    assert set(DISTINCT_STAGES) == everything


@pytest.mark.parametrize("stage", DISTINCT_STAGES.values(), ids=map("+".join, DISTINCT_STAGES))
@pytest.mark.parametrize("name", BACKBONES)
def test_a_stage_changes_its_trainable_blocks_and_nothing_else(name: str, stage: Stage) -> None:
    backbone, images = build_backbone(name, CLASSES, seed=0), make_images(4)
    before, proof = copy_state(backbone), FrozenProof.take(backbone, stage)
    features = live_features(backbone, stage, images)
    settings = TrainSettings(epochs=1, batch_size=4, augment="none", lr=0.01)
    trainer = trainer_for(backbone, stage, settings)
    for _ in trainer.epochs(images, features, images, features):
        pass
    backbone.model.load_state_dict(trainer.best, strict=False)
    proof.check(backbone)

    trainable = set(backbone.tensor_names(stage.trainable))
    assert changed_names(before, copy_state(backbone)) == trainable

    assert isinstance(features, LiveFeatures)  # the copy of the prefix that was really run
    for block, copied in features.prefix.items():
        assert copied.state_dict().keys() == backbone.blocks[block].state_dict().keys()
        for inner, tensor in backbone.blocks[block].state_dict().items():
            assert torch.equal(copied.state_dict()[inner], tensor)
        assert not any(module.training for module in copied.modules())
        assert not any(p.requires_grad or p.grad is not None for p in copied.parameters())


@pytest.mark.parametrize("stage", DISTINCT_STAGES.values(), ids=map("+".join, DISTINCT_STAGES))
@pytest.mark.parametrize("name", BACKBONES)
def test_the_optimizer_holds_the_trainable_parameters_alone(name: str, stage: Stage) -> None:
    backbone = build_backbone(name, CLASSES, seed=0)
    trainer = Trainer(
        backbone=backbone,
        stage=stage,
        settings=TrainSettings(),
        seed=0,
        views=1,
        device=CPU,
        dtype=torch.float32,
    )
    held = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    names = {id(weight.master): weight.name for weight in trainer.weights}
    parameters = dict(backbone.model.named_parameters())
    wanted = set(backbone.tensor_names(stage.trainable)) & set(parameters)
    assert {names[key] for key in held} == wanted
    assert len(held) == len(wanted)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_frozen_weights_get_no_gradient_and_no_optimizer_state(number: int) -> None:
    stage = SCHEDULES["three_stage"].stage(number)
    backbone, images = build_backbone("mobilenet_v3_small", CLASSES, seed=0), make_images(4)
    features = live_features(backbone, stage, images)
    settings = TrainSettings(epochs=1, batch_size=2, augment="none")
    trainer = trainer_for(backbone, stage, settings)
    for _ in trainer.epochs(images, features, images, features):
        pass
    stepped = {id(parameter) for parameter in trainer.optimizer.state}
    assert stepped == {id(weight.master) for weight in trainer.weights}
    assert {w.block for w in trainer.weights} == set(stage.trainable)
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_block_above_a_trainable_one_stays_frozen(dtype: torch.dtype) -> None:
    """Also where its copy computes in fewer bits than the model holds."""
    stage = Stage("release_block3", 2, ("head", "block3"))
    backbone, images = build_backbone("mobilenet_v3_small", CLASSES, seed=0), make_images(4)
    before, proof = copy_state(backbone), FrozenProof.take(backbone, stage)
    features = live_features(backbone, stage, images, dtype)
    settings = TrainSettings(epochs=1, batch_size=4, augment="none", lr=0.01)
    trainer = Trainer(
        backbone=backbone, stage=stage, settings=settings, seed=0, views=1, device=CPU, dtype=dtype
    )
    proof.watch(trainer.frozen)
    for _ in trainer.epochs(images, features, images, features):
        pass
    assert set(trainer.frozen) == {"block4"}
    assert all(p.grad is None for p in trainer.blocks["block4"].parameters())
    backbone.model.load_state_dict(trainer.best, strict=False)
    proof.check(backbone)
    trainable = set(backbone.tensor_names(stage.trainable))
    assert changed_names(before, copy_state(backbone)) == trainable


@pytest.mark.parametrize("norm", ["adapt", "keep"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0"])
def test_statistics_of_trainable_blocks_adapt_or_are_kept(
    name: str, norm: Literal["adapt", "keep"]
) -> None:
    stage, images = SCHEDULES["three_stage"].stage(2), make_images(4)
    backbone = calibrated_backbone(name, images)
    before = copy_state(backbone)
    features = live_features(backbone, stage, images)
    settings = TrainSettings(epochs=1, batch_size=4, augment="none", norm=norm, lr=0.01)
    trainer = trainer_for(backbone, stage, settings)
    for _ in trainer.epochs(images, features, images, features):
        pass
    names = set(backbone.tensor_names(stage.trainable))
    statistics = {n for n in names if n.endswith(STATISTICS)}
    assert statistics
    moved = changed_names({n: before[n] for n in trainer.best}, trainer.best)
    assert moved == (names if norm == "adapt" else names - statistics)  # affine trains either way


@pytest.mark.parametrize("norm", ["adapt", "keep"])
def test_each_block_is_in_the_mode_of_its_stage(norm: Literal["adapt", "keep"]) -> None:
    blocks = build_backbone("mobilenet_v3_small", CLASSES, seed=0).blocks
    set_trainable(blocks, ("head", "block4"), norm)
    for name, block in blocks.items():
        trains = name in ("head", "block4")
        assert {p.requires_grad for p in block.parameters()} == {trains}
        for module in block.modules():
            kept = isinstance(module, nn.BatchNorm2d) and norm == "keep"
            assert module.training == (trains and not kept)


def test_setting_another_stage_freezes_what_trained_before() -> None:
    blocks = build_backbone("mobilenet_v3_small", CLASSES, seed=0).blocks
    set_trainable(blocks, BLOCKS, "adapt")
    set_trainable(blocks, ("head",), "adapt")
    trains = {name for name, block in blocks.items() if any(m.training for m in block.modules())}
    learns = {n for n, block in blocks.items() if any(p.requires_grad for p in block.parameters())}
    assert trains == learns == {"head"}


def test_a_frozen_batch_norm_in_training_mode_is_caught_by_name() -> None:
    stage = SCHEDULES["three_stage"].stage(2)
    backbone = build_backbone("resnet18", CLASSES, seed=0)
    proof = FrozenProof.take(backbone, stage)
    backbone.model.get_submodule("layer2.0.bn1").train()
    with torch.no_grad():
        backbone.model(torch.rand(4, 3, 32, 32))
    with pytest.raises(FreezingError, match=r"stage 2 .*layer2\.0\.bn1\.running_mean"):
        proof.check(backbone)


@pytest.mark.parametrize(
    "name", ["conv1.weight", "bn1.num_batches_tracked", "layer3.1.bn2.bias", "layer1.0.bn1.weight"]
)
def test_a_changed_frozen_tensor_is_caught_by_name(name: str) -> None:
    stage = SCHEDULES["three_stage"].stage(2)
    backbone = build_backbone("resnet18", CLASSES, seed=0)
    proof = FrozenProof.take(backbone, stage)
    backbone.model.state_dict()[name].view(-1)[-1:] += 1
    with pytest.raises(FreezingError, match=rf"\({name}\): only head, block4 may train"):
        proof.check(backbone)


def test_the_smallest_change_of_one_value_is_caught_by_name() -> None:
    backbone = build_backbone("resnet18", CLASSES, seed=0)
    weight = backbone.model.state_dict()["layer1.0.conv1.weight"]
    weight.view(-1)[0] = 0.0
    proof = FrozenProof.take(backbone, SCHEDULES["head_only"].stage(1))
    weight.view(-1)[0] = -0.0
    with pytest.raises(FreezingError, match=r"\(layer1\.0\.conv1\.weight\)"):
        proof.check(backbone)


def test_a_changed_trainable_tensor_is_no_fault() -> None:
    backbone = build_backbone("resnet18", CLASSES, seed=0)
    proof = FrozenProof.take(backbone, SCHEDULES["three_stage"].stage(2))
    backbone.model.state_dict()["layer4.1.conv2.weight"] += 1
    backbone.model.state_dict()["fc.bias"] += 1
    proof.check(backbone)


def test_the_proof_of_a_stage_that_trains_everything_covers_nothing() -> None:
    backbone = build_backbone("resnet18", CLASSES, seed=0)
    assert FrozenProof.take(backbone, SCHEDULES["full"].stage(1)).digests == {}


def test_a_running_copy_of_the_prefix_in_training_mode_is_caught() -> None:
    stage = SCHEDULES["three_stage"].stage(2)
    backbone = build_backbone("resnet18", CLASSES, seed=0)
    copies = compute_copy(backbone, stage.prefix, torch.float32, torch.device("cpu"))
    proof = FrozenProof.take(backbone, stage)
    proof.watch(copies)
    copies["block2"].train()
    with torch.no_grad():
        run_blocks(copies, torch.rand(4, 3, 32, 32), torch.float32)
    with pytest.raises(FreezingError, match=r"block2\.0\.0\.bn1\.running_mean"):
        proof.check(backbone)
