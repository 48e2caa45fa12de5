"""What arms will take: measured as it will be done, and nothing is left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlflow
import pytest
import torch

from pipeline.cluster.dispatcher import Cluster
from pipeline.comparing import estimate as module
from pipeline.comparing.arms import Arm
from pipeline.comparing.estimate import LR, OVERHEAD_S, Estimate, estimate
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.settings.layers import Layer, resolve
from pipeline.tracking import Tracking
from pipeline.training.prefix.features import LiveFeatures, StoredFeatures
from pipeline.training.trainer import Trainer
from tests.conftest import TINY

SMALL = {"train_per_class": "3", "val_per_class": "3"}  # two draws
TRAIN, VAL, TEST = 9, 9, 10  # three classes
FORWARD_S, RENDER_S, TRAIN_S, VAL_S, EPOCH_S = 1.0, 0.25, 100.0, 10.0, 1000.0
"""What an image costs in a segment, as a view, in training and in validation; what an epoch has
beside."""


def arm_of(place: dict[str, str], schedule: str, last: int) -> Arm:
    values = {**TINY, **SMALL, **place, "schedule": schedule}
    settings = resolve([Layer(source="test", values=values)])
    return Arm(name=schedule, settings=settings, last=last)


@pytest.fixture
def place(store: Path, image_folder: Path) -> dict[str, str]:
    return {"data": str(image_folder), "cache_dir": str(store / "cache"), "draw": "1"}


@pytest.fixture
def known_speed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A machine of which all is known; gives the stages that it was asked for."""
    asked = []

    def measured(_: Any, arm: Arm, number: int) -> tuple[float, float, float]:  # noqa: ANN401
        asked.append(arm.settings.stage(number).trainable)
        return TRAIN_S, VAL_S, EPOCH_S

    def forward_s(probe: Any) -> list[float]:  # noqa: ANN401
        return [FORWARD_S] * len(probe.session.backbone.segments)

    monkeypatch.setattr(module._Probe, "_measured", measured)
    monkeypatch.setattr(module._Probe, "forward_s", property(forward_s))
    monkeypatch.setattr(module._Probe, "render_s", lambda *_: RENDER_S)
    return asked


def network() -> Backbone:
    return build_backbone(TINY["backbone"], 3, 32, 0)


def of_stage_1(epochs: int = 1) -> float:
    return epochs * (TRAIN * TRAIN_S + VAL * VAL_S + EPOCH_S)


def test_an_estimate_leaves_no_run_and_nothing_in_the_prefix_cache(
    place: dict[str, str], store: Path
) -> None:
    found = estimate([arm_of(place, "three_stage", 2)], TEST, Tracking.connect())
    assert OVERHEAD_S < found.mean_s < 600
    assert not (store / "cache" / "prefix").exists()
    assert mlflow.search_runs(["0"], output_format="list") == []


def test_a_rate_at_which_everything_diverges_is_no_fault(place: dict[str, str]) -> None:
    ruinous = {"optimizer": "sgd", "lr": "100", "batch_size": "3", "warmup": "0"}
    found = estimate([arm_of({**place, **ruinous}, "full", 1)], TEST, Tracking.connect())
    assert OVERHEAD_S < found.mean_s < 600


@dataclass
class Fed:
    """What a stage was measured with."""

    augment: str
    train: type
    train_augment: str
    val: type


STORED, LIVE = StoredFeatures, LiveFeatures


@pytest.mark.parametrize(
    ("given", "schedule", "fed"),
    [
        ({}, "three_stage", Fed("none", STORED, "", STORED)),
        ({"augment": "strong"}, "three_stage", Fed("none", STORED, "", STORED)),
        ({"augment": "strong+mixup"}, "three_stage", Fed("mixup", STORED, "", STORED)),
        ({"views": "0"}, "three_stage", Fed("light", LIVE, "light", STORED)),
        ({"cache": "off"}, "three_stage", Fed("light", LIVE, "light", LIVE)),
        ({"cache_limit": "1 kB"}, "three_stage", Fed("light", LIVE, "light", LIVE)),
        ({"augment": "strong+cutmix"}, "full", Fed("strong+cutmix", LIVE, "strong", LIVE)),
    ],
    ids=str,
)
def test_stages_are_fed_as_they_will_be(
    place: dict[str, str],
    given: dict[str, str],
    schedule: str,
    fed: Fed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    train_as_before = Trainer.epochs

    def epochs(trainer: Trainer, few: Any, train: Any, also: Any, val: Any) -> Any:  # noqa: ANN401
        assert few is also
        assert trainer.settings.lr == LR
        rendered = getattr(train, "augment", "")
        seen.append(Fed(trainer.settings.augment, type(train), rendered, type(val)))
        return train_as_before(trainer, few, train, also, val)

    monkeypatch.setattr(Trainer, "epochs", epochs)
    estimate([arm_of({**place, **given}, schedule, 1)], TEST, Tracking.connect())
    assert seen == [fed]


def test_both_arms_cost_their_stages_once_and_the_frozen_part_of_test_images_once_in_all(
    place: dict[str, str], known_speed: list[tuple[str, ...]]
) -> None:
    source = {**place, "norm_stats": "source", "weights": "tiny_imagenet", "backbone": "resnet18"}
    arms = [arm_of(source, "three_stage", 3), arm_of(source, "stage2_continued", 3)]
    found = estimate(arms, TEST, Tracking.connect())

    stages = [arms[0].settings.stage(n).trainable for n in (1, 2, 3)]
    backbone = build_backbone("resnet18", 3, 32, 0)
    head, last, middle = (backbone.frozen_segments(trainable) for trainable in stages)
    every = len(backbone.segments)
    assert 0 < middle < last < head < every
    training = of_stage_1(1 + 2 + 2 + 2)  # stages 1 and 2 are both arms'
    frozen = (TRAIN * 2 + VAL) * (head + RENDER_S)  # flips have two views
    assert found.pair_s == OVERHEAD_S + training + 2 * TEST * (every - middle)
    assert found.draw_s == frozen
    assert found.once_s == TEST * middle
    assert known_speed == stages  # the second arm's last stage costs what stage 2 costs


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({"norm_stats": "source"}, 0),
        ({"norm_stats": "target"}, 1),  # statistics are estimated
        ({"norm_stats": "auto"}, 2),  # a probe under either
        ({"norm_stats": "auto", "train_per_class": "1"}, 0),  # nothing can be cross-validated
    ],
)
def test_random_weights_and_statistics_of_a_draw_make_a_frozen_part_for_each(
    place: dict[str, str],
    known_speed: list[tuple[str, ...]],
    given: dict[str, str],
    passes: int,
) -> None:
    found = estimate([arm_of({**place, **given}, "three_stage", 1)], TEST, Tracking.connect())
    train = 3 * int(given.get("train_per_class", "3"))
    head = network().frozen_segments(("head",))
    every = len(network().segments)
    training = train * TRAIN_S + VAL * VAL_S + EPOCH_S
    frozen = (2 * train + VAL) * (head + RENDER_S)
    assert found.pair_s == OVERHEAD_S + training + frozen + (TEST + passes * train) * every
    assert found.draw_s == 0  # another seed has another frozen part
    assert found.once_s == 0
    assert len(known_speed) == 1


def test_without_a_cache_every_arm_computes_everything(
    place: dict[str, str], known_speed: list[tuple[str, ...]]
) -> None:
    off = {**place, "cache": "off", "norm_stats": "source"}
    found = estimate([arm_of(off, "three_stage", 1)], TEST, Tracking.connect())
    assert found.pair_s == OVERHEAD_S + of_stage_1() + TEST * len(network().segments)
    assert found.draw_s == 0
    assert found.once_s == 0
    assert len(known_speed) == 1


class Broken(Exception):
    """The measurement ends."""


def test_a_clusters_tasks_are_measured_with_their_cores_and_run_side_by_side(
    place: dict[str, str], known_speed: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, threads = torch.get_num_threads(), []

    class Two:
        cpus, at_once = before + 1, 3

    def render_s(*_: object) -> float:
        threads.append(torch.get_num_threads())
        raise Broken

    arms, cluster = [arm_of(place, "three_stage", 1)], cast("Cluster", Two())
    assert estimate(arms, TEST, Tracking.connect(), cluster).at_once == 3
    monkeypatch.setattr(module._Probe, "render_s", render_s)
    with pytest.raises(Broken):
        estimate(arms, TEST, Tracking.connect(), cluster)
    assert threads == [before + 1]
    assert torch.get_num_threads() == before
    assert known_speed


def test_draws_side_by_side_take_the_time_of_the_longest_row() -> None:
    two = Estimate(pair_s=8.0, draw_s=2.0, once_s=3.0, at_once=2)
    assert [two.seconds(draws) for draws in (1, 2, 5)] == [13.0, 13.0, 33.0]
    assert two.seconds(1, 1) == 23.0  # the second waits for the first
    assert two.beside == " (2 at once)"
    one = Estimate(pair_s=8.0, draw_s=2.0, once_s=3.0, at_once=1)
    assert one.seconds(5) == 53.0
    assert one.beside == ""


def test_seeds_of_a_draw_share_its_frozen_part() -> None:
    three = Estimate(pair_s=8.0, draw_s=6.0, once_s=3.0, at_once=1, seeds=3)
    assert three.mean_s == 10.0
    assert three.seconds(6) == 3.0 + 6 * 8.0 + 2 * 6.0
    assert three.seconds(6, 3) == three.seconds(9)
    beside = Estimate(pair_s=8.0, draw_s=6.0, once_s=3.0, at_once=2, seeds=3)
    assert beside.seconds(6) == 3.0 + 3 * 8.0 + 6.0
