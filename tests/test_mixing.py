"""Batches are mixed by hand-computed weights, repeatably, and what cannot be mixed is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.image_set import ImageSet
from pipeline.errors import SettingsError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import SCHEDULES, Stage
from pipeline.tracking.keys import TRAIN_ACC, TRAIN_LOSS
from pipeline.training.mixing import mix, mixing_line
from pipeline.training.prefix.cache import PrefixCache
from pipeline.training.prefix.features import Features, LiveFeatures, StoredFeatures
from pipeline.training.trainer import Trainer
from tests.conftest import Command
from tests.families import small
from tests.helpers import load_settings

CPU = torch.device("cpu")
CLASSES, SIZE = 3, 64
LABELS = torch.tensor([0, 1, 2, 1, 0, 2])
HEAD, BLOCK4 = SCHEDULES["three_stage"].stage(1), SCHEDULES["three_stage"].stage(2)
FULL = SCHEDULES["full"].stage(1)


def stages_logged() -> int:
    return len(mlflow.search_runs(["0"], "tags.kind = 'stage'"))


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def images() -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (6, 3, SIZE, SIZE), dtype=np.uint8))
    digests = rng.integers(0, 256, (6, 32), dtype=np.uint8)
    return ImageSet(pixels=pixels, labels=LABELS, digests=digests)


@cache
def resnet() -> Backbone:
    """No test changes it."""
    return build_backbone("resnet18", CLASSES, SIZE, 0)


def features(
    backbone: Backbone, stage: Stage, augment: str, folder: Path | None = None
) -> Features:
    return PrefixCache(folder, 10**9).features(
        backbone,
        backbone.frozen_segments(stage.trainable),
        images(),
        augment=augment,
        views=2,
        dtype=torch.float32,
        device=CPU,
    )


def trained(
    backbone: Backbone, stage: Stage, source: Features, **settings: object
) -> tuple[Trainer, dict[str, float]]:
    """Trained on all six images at once, validated on the same; the trainer and its last row."""
    chosen = TrainSettings(**{"epochs": 1, "batch_size": 6, "lr": 1e-3, **settings})  # type: ignore[arg-type]
    trainer = Trainer(
        backbone=backbone,
        stage=stage,
        settings=chosen,
        seed=5,
        views=2,
        device=CPU,
        dtype=torch.float32,
    )
    rows = list(trainer.epochs(images(), source, images(), source))
    return trainer, dict(rows[-1])


# By hand


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(6, 5), (6, 7, 4), (6, 4, 5, 5)], ids=["vectors", "tokens", "maps"]
)
def test_mixup_is_a_weighted_mean_of_neighbours_and_labels_have_the_same_weights(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    inputs = noise(*shape, dtype=dtype)
    mixed, shares = mix(inputs, LABELS, "mixup", CLASSES, (1, 2, 3, 4))
    own = shares[0, 0].item()  # neighbours of label 2 give image 0 nothing of class 0
    expected = own * inputs + (1 - own) * inputs.roll(1, 0)
    assert 0 < own < 1
    assert (mixed.shape, mixed.dtype) == (inputs.shape, dtype)
    torch.testing.assert_close(
        mixed, expected, rtol=2e-2, atol=2e-2 if dtype != inputs.float().dtype else 1e-6
    )
    labels = torch.eye(CLASSES)[LABELS]
    torch.testing.assert_close(shares, own * labels + (1 - own) * labels.roll(1, 0))


def test_cutmix_cuts_a_rectangle_whose_area_is_the_neighbours_share() -> None:
    maps = noise(6, 4, 8, 8)
    areas = set()
    for batch in range(20):
        mixed, shares = mix(maps, LABELS, "cutmix", CLASSES, (0, 2, 0, batch))
        is_own = (mixed == maps).all(1)
        assert (is_own | (mixed == maps.roll(1, 0)).all(1)).all()
        assert (is_own == is_own[0]).all()
        cut = ~is_own[0]
        assert cut.sum() == cut.any(1).sum() * cut.any(0).sum()
        area = cut.float().mean().item()
        labels = torch.eye(CLASSES)[LABELS]
        torch.testing.assert_close(shares, (1 - area) * labels + area * labels.roll(1, 0))
        areas.add(area)
    assert len(areas) > 5


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
def test_mixing_depends_on_its_seed_alone_and_leaves_the_random_state_as_it_was(how: str) -> None:
    maps, seeds = noise(6, 4, 8, 8), [(0, 2, 0, 0), (1, 2, 0, 0), (0, 3, 0, 0), (0, 2, 1, 0)]

    def of(seed: Sequence[int]) -> Tensor:
        return mix(maps, LABELS, how, CLASSES, seed)[0]

    torch.manual_seed(1)
    before, kept = torch.get_rng_state(), maps.clone()
    first = [of(seed) for seed in seeds]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(maps, kept)
    torch.manual_seed(2)
    assert all(torch.equal(of(seed), mixed) for seed, mixed in zip(seeds, first, strict=True))
    assert len({mixed.numpy().tobytes() for mixed in first}) == len(seeds)


# In training


@pytest.mark.parametrize(
    ("augment", "stage"), [("mixup", HEAD), ("mixup", FULL), ("cutmix", BLOCK4)]
)
def test_training_loss_and_accuracy_are_of_the_mixed_batch(augment: str, stage: Stage) -> None:
    backbone = resnet()
    source = features(backbone, stage, augment)
    _, row = trained(backbone, stage, source, augment=augment, norm="keep", label_smoothing=0.1)
    order = np.random.default_rng([5, stage.number]).permutation(6)
    inputs = source.batch(order, np.zeros_like(order))
    mixed, shares = mix(inputs, LABELS[order], augment, CLASSES, (5, stage.number, 0, 0))
    with torch.no_grad():
        logits = backbone.run(mixed, backbone.frozen_segments(stage.trainable))
    expected = -(shares * nn.functional.log_softmax(logits, 1)).sum(1).mean().item()
    assert row[TRAIN_LOSS] == pytest.approx(expected, rel=1e-4)
    right = logits.argmax(1) == shares.argmax(1)
    assert row[TRAIN_ACC] == pytest.approx(right.float().mean().item(), rel=1e-5)


def test_the_step_follows_the_soft_labels_gradient() -> None:
    """A first step of SGD with Nesterov momentum is 1.9 times rate and gradient."""
    backbone = resnet()
    source = features(backbone, HEAD, "mixup")
    sgd = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "warmup": 0.0}
    trainer, _ = trained(backbone, HEAD, source, augment="mixup", label_smoothing=0.2, **sgd)
    order = np.random.default_rng([5, 1]).permutation(6)
    inputs = source.batch(order, np.zeros_like(order))
    mixed, shares = mix(inputs, LABELS[order], "mixup", CLASSES, (5, 1, 0, 0))
    head = next(m for m in backbone.model.modules() if isinstance(m, nn.Linear))
    start = head.weight.detach().clone()
    logits = backbone.run(mixed, backbone.frozen_segments(HEAD.trainable))
    smooth = shares * 0.8 + 0.2 / CLASSES
    loss = -(smooth * nn.functional.log_softmax(logits, 1)).sum(1).mean()
    (gradient,) = torch.autograd.grad(loss, head.weight)
    moved = trainer.snapshot()["fc.weight"] - start
    torch.testing.assert_close(moved, -0.1 * 1.9 * gradient, rtol=1e-3, atol=1e-6)


def test_a_run_repeats_bit_for_bit_and_differs_from_one_without_mixing() -> None:
    augment, backbone, ends = "light+cutmix", resnet(), []
    for one in (augment, augment, "light"):
        trainer, _ = trained(
            backbone, BLOCK4, features(backbone, BLOCK4, one), augment=one, batch_size=3, epochs=1
        )
        ends.append(trainer.snapshot())
    same = [all(torch.equal(ends[0][n], end[n]) for n in end) for end in ends]
    assert same == [True, True, False]


def test_stored_and_live_inputs_are_the_same_and_so_is_what_is_mixed(tmp_path: Path) -> None:
    augment = "strong+randaugment+erasing+mixup"
    backbone, rows = resnet(), np.array([4, 0, 5, 1, 1, 2])
    views = np.array([0, 1, 1, 0, 1, 0])
    batches, weights = [], []
    for folder, kind in ((tmp_path, StoredFeatures), (None, LiveFeatures)):
        source = features(backbone, BLOCK4, augment, folder)
        assert isinstance(source, kind)
        batches.append(source.batch(rows, views))
        trainer, _ = trained(backbone, BLOCK4, source, augment=augment, batch_size=3)
        weights.append(trainer.snapshot())
    torch.testing.assert_close(batches[0], batches[1], rtol=1e-4, atol=1e-4)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)


def test_mixing_shares_the_entries_of_the_cache_with_the_same_views_unmixed(
    tmp_path: Path,
) -> None:
    backbone = resnet()
    for augment in ("light", "light+mixup", "light+cutmix"):
        features(backbone, BLOCK4, augment, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 1
    features(backbone, BLOCK4, "light+erasing+mixup", tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2


# What people are told


def line_of(backbone: Backbone, augment: str, number: int, schedule: str = "three_stage") -> str:
    words = {"backbone": backbone.name, "schedule": schedule, "augment": augment}
    return mixing_line(backbone, load_settings(words), number)


def test_what_mixing_acts_on_is_told() -> None:
    backbone = resnet()
    assert line_of(backbone, "light+erasing", 2) == ""
    assert "head is fed with, after the frozen blocks (manifold mixup)" in line_of(
        backbone, "mixup", 1
    )
    assert "block4 is fed with, after the frozen blocks (manifold" in line_of(backbone, "mixup", 2)
    assert "cutmix acts on what block4 is fed with" in line_of(backbone, "light+cutmix", 2)
    assert "acts on the images" in line_of(backbone, "cutmix", 1, "full")
    assert "acts on the images" in line_of(backbone, "mixup", 1, "full")


@pytest.mark.parametrize(
    ("backbone", "number", "fed"),
    [
        (resnet, 1, r"head of resnet18 is fed with \(512,\)"),
        (partial(build_backbone, "resnet18", CLASSES, 32, 0), 2, r"block4 .* with \(256, 2, 2\)"),
        (partial(small, "vit_b_16"), 2, r"block4 of vit_b_16 is fed with \(\d+, 16\)"),
        (partial(small, "swin_t"), 2, r"block4 of swin_t is fed with \(\d, \d, \d+\)"),
    ],
)
def test_cutmix_is_refused_where_there_is_no_map_to_cut(
    backbone: Callable[[], Backbone], number: int, fed: str
) -> None:
    network = backbone()
    advice = rf"stage{number}\.augment=light, or stage{number}\.augment=light\+mixup"
    with pytest.raises(SettingsError, match=f"^stage{number}.augment=.*{fed}.*{advice}$"):
        line_of(network, "light+cutmix", number)
    assert "manifold" in line_of(network, "light+mixup", number)


def test_a_chain_with_a_stage_that_cannot_be_mixed_ends_before_it_begins(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    words = {"backbone": "resnet18", "image_size": "64"}
    assert command("main", **words, **{"stage3.augment": "cutmix", "augment": "light+cutmix"}) == 2
    err = capfd.readouterr().err
    assert "error: stage1.augment=light+cutmix: cutmix cuts regions out of maps" in err
    assert stages_logged() == 0
    assert command("stage1", **words, augment="light+mixup") == 0
    output = capfd.readouterr().out
    assert "mixup acts on what head is fed with" in output
    assert stages_logged() == 1


@pytest.mark.slow
def test_a_space_with_a_choice_that_cannot_be_makes_no_study(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("augment: [light, light+cutmix]\n")
    assert command("tune", stage="1", space=str(space), n_trials="2") == 2
    assert "stage1.augment=light+cutmix" in capfd.readouterr().err
    assert stages_logged() == 0
