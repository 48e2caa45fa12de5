"""Heads trained at once come to what `Trainer` makes of each alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.backbones import build_backbone
from pipeline.head_batch import HeadTask, linear_head, train_heads
from pipeline.settings import TrainSettings
from pipeline.stages import get_stage
from pipeline.training import Trainer
from tests.helpers import CLASSES, CPU, calibrated_backbone, live_features, make_images

HEAD = get_stage("three_stage", 1)
TASKS: list[tuple[int, dict[str, Any]]] = [
    (0, {}),
    (7, {"lr": 0.05}),
    (0, {"lr": 0.001, "weight_decay": 0.3, "epochs": 3}),
    (3, {"label_smoothing": 0.2, "warmup": 0.0}),
    (1, {"clip_norm": 0.05, "lr": 0.02}),
    (2, {"patience": 1, "lr": 0.2}),
]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("batch_size", [4, 5])
def test_each_head_is_the_one_it_would_be_alone(optimizer: str, batch_size: int) -> None:
    images, val = make_images(13), make_images(6, start=50)
    backbone = calibrated_backbone("resnet18", images)
    train_features = live_features(backbone, HEAD, images)
    val_features = live_features(backbone, HEAD, val)
    fixed = {"optimizer": optimizer, "batch_size": batch_size, "augment": "none", "lr": 0.01}
    settings = [TrainSettings(**{"epochs": 6, **fixed, **changes}) for _, changes in TASKS]
    weight, bias = linear_head(backbone)
    tasks = [HeadTask(weight, bias, s, seed) for s, (seed, _) in zip(settings, TASKS, strict=True)]
    results = train_heads(tasks, images, train_features, val, val_features, views=1)
    assert any(
        len(result.val) < task.settings.epochs for result, task in zip(results, tasks, strict=True)
    )
    for task, result in zip(tasks, results, strict=True):
        trainer = Trainer(backbone, HEAD, task.settings, task.seed, 1, CPU, torch.float32)
        alone = list(trainer.epochs(images, train_features, val, val_features))
        assert len(result.val) == len(alone)
        assert [s.acc for s in result.val] == pytest.approx([e.val.acc for e in alone])
        assert [s.acc for s in result.train] == pytest.approx([e.train.acc for e in alone])
        losses = [e.val.loss for e in alone]
        assert [s.loss for s in result.val] == pytest.approx(losses, rel=1e-3)
        assert result.best_epoch == trainer.best_epoch
        moved = (trainer.best["fc.weight"] - weight).norm()
        assert (trainer.best["fc.weight"] - result.weight).norm() < 1e-2 * moved
        assert (trainer.best["fc.bias"] - result.bias).norm() < 1e-2 * moved
    assert torch.equal(linear_head(backbone)[0], weight)


def test_a_head_that_diverges_stops_and_leaves_the_others_alone() -> None:
    images, val = make_images(12), make_images(6, start=50)
    backbone = calibrated_backbone("resnet18", images)
    features = live_features(backbone, HEAD, images), live_features(backbone, HEAD, val)
    weight, bias = linear_head(backbone)
    calm = HeadTask(weight, bias, TrainSettings(epochs=3, augment="none", batch_size=4), 0)
    wild = HeadTask(weight * float("inf"), bias, calm.settings, 0)
    alone = train_heads([calm], images, features[0], val, features[1], views=1)[0]
    first, second = train_heads([wild, calm], images, features[0], val, features[1], views=1)
    assert len(first.val) == 1
    assert second.val == alone.val
    assert torch.equal(second.weight, alone.weight)


def test_tasks_that_cannot_share_a_batch_are_refused() -> None:
    images = make_images(6)
    backbone = build_backbone("resnet18", CLASSES, seed=0)
    features = live_features(backbone, HEAD, images)
    weight, bias = linear_head(backbone)
    one, other = (
        HeadTask(weight, bias, TrainSettings(augment="none", batch_size=size), 0)
        for size in (2, 3)
    )
    with pytest.raises(ValueError, match="agree on batch_size"):
        train_heads([one, other], images, features, images, features, views=1)


def test_a_head_with_hidden_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="not one linear layer"):
        linear_head(build_backbone("mobilenet_v3_small", CLASSES, seed=0))
