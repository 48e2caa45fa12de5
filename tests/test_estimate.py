"""What arms will take is told from earlier runs, else measured, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

from pipeline.comparing import estimate as module
from pipeline.comparing.arms import Arm
from pipeline.comparing.estimate import OVERHEAD_S, Estimate, estimate
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.settings.layers import Layer, resolve
from pipeline.tracking import Tracking
from tests.conftest import TINY, Command
from tests.test_run_stage import runs

SMALL = {"train_per_class": "3", "val_per_class": "3"}  # two draws
TRAIN, VAL, TEST = 9, 9, 10  # three classes
FORWARD_S, TRAIN_S, VAL_S = 1.0, 100.0, 10.0
"""What a segment, a training image and a validation image cost in tests by hand."""


def arm_of(place: dict[str, str], schedule: str, last: int) -> Arm:
    values = {**TINY, **SMALL, **place, "schedule": schedule}
    settings = resolve([Layer(source="test", values=values)])
    return Arm(name=schedule, settings=settings, last=last)


@pytest.fixture
def place(store: Path, image_folder: Path) -> dict[str, str]:
    return {"data": str(image_folder), "cache_dir": str(store / "cache"), "draw": "1"}


@pytest.fixture
def arm(place: dict[str, str]) -> Arm:
    return arm_of(place, "three_stage", 2)


@pytest.fixture
def known_speed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A machine of which all is known; gives the stages that it was asked for."""
    asked = []

    def image_s(_: Any, arm: Arm, number: int) -> tuple[float, float]:  # noqa: ANN401
        asked.append(arm.settings.stage(number).trainable)
        return TRAIN_S, VAL_S

    def forward_s(session: Any, _: object) -> list[float]:  # noqa: ANN401
        return [FORWARD_S] * len(session.backbone.segments)

    monkeypatch.setattr(module._Probe, "_image_s", image_s)
    monkeypatch.setattr(module, "_forward_s", forward_s)
    return asked


def network() -> Backbone:
    return build_backbone(TINY["backbone"], 3, 32, 0)


def test_an_estimate_leaves_no_run_and_nothing_in_the_prefix_cache(arm: Arm, store: Path) -> None:
    threads = torch.get_num_threads()
    found = estimate([arm], TEST, Tracking.connect())
    assert OVERHEAD_S < found.draw_s < 600
    assert found.how == "by measured training steps"
    assert not (store / "cache" / "prefix").exists()
    assert mlflow.search_runs(["0"], output_format="list") == []
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "given",
    [{"cache": "off"}, {"views": "0"}, {"augment": "strong", "views": "3"}, {"augment": "mixup"}],
    ids=str,
)
def test_stages_are_measured_whatever_they_are_fed_with(
    place: dict[str, str], given: dict[str, str]
) -> None:
    found = estimate([arm_of({**place, **given}, "three_stage", 2)], TEST, Tracking.connect())
    assert OVERHEAD_S < found.draw_s < 600


def test_a_stage_takes_as_long_as_its_runs_on_other_draws_did_here(
    arm: Arm, command: Command
) -> None:
    assert command("stage1", **SMALL) == 0
    client, run_id = mlflow.MlflowClient(), runs()["run_id"][0]
    client.log_metric(run_id, "time/total_s", 5000.0)
    client.log_metric(run_id, "time/prefix_s", 1000.0)
    assert 4000 < estimate([arm], TEST, Tracking.connect()).draw_s < 4600
    first = Arm(name="first", settings=arm.settings, last=1)
    assert estimate([first], TEST, Tracking.connect()).how == "as 1 finished runs took"
    client.set_tag(run_id, "z.owner.machine", "another boot")
    assert estimate([arm], TEST, Tracking.connect()).draw_s < 600


def test_both_arms_cost_their_stages_once_and_the_frozen_part_of_test_images_once_in_all(
    place: dict[str, str], known_speed: list[tuple[str, ...]]
) -> None:
    source = {**place, "norm_stats": "source"}
    arms = [arm_of(source, "three_stage", 3), arm_of(source, "stage2_continued", 3)]
    found = estimate(arms, TEST, Tracking.connect())

    stages = [arms[0].settings.stage(n).trainable for n in (1, 2, 3)]
    head, last, middle = (network().frozen_segments(trainable) for trainable in stages)
    every = len(network().segments)
    assert 0 < middle < last < head < every
    epochs = 1 + 2 + 2 + 2  # stages 1 and 2 are both arms'
    training = epochs * (TRAIN * TRAIN_S + VAL * VAL_S)
    frozen = (TRAIN * 2 + VAL) * head  # flips have two views
    assert found.draw_s == OVERHEAD_S + training + frozen + 2 * TEST * (every - middle)
    assert found.once_s == TEST * middle
    assert known_speed == stages  # the second arm's last stage costs what stage 2 costs


def test_statistics_of_each_draw_make_a_frozen_part_for_each(
    place: dict[str, str], known_speed: list[tuple[str, ...]]
) -> None:
    own = estimate([arm_of(place, "three_stage", 1)], TEST, Tracking.connect())
    shared = estimate(
        [arm_of({**place, "norm_stats": "source"}, "three_stage", 1)], TEST, Tracking.connect()
    )
    assert own.once_s == 0
    assert own.draw_s == shared.draw_s + shared.once_s
    chosen = estimate(
        [arm_of({**place, "norm_stats": "auto"}, "three_stage", 1)], TEST, Tracking.connect()
    )
    assert chosen.draw_s - min(own.draw_s, shared.draw_s) >= 2 * TRAIN * FORWARD_S
    assert known_speed


def test_without_a_cache_every_arm_computes_everything(
    place: dict[str, str], known_speed: list[tuple[str, ...]]
) -> None:
    off = {**place, "cache": "off", "norm_stats": "source"}
    found = estimate([arm_of(off, "three_stage", 1)], TEST, Tracking.connect())
    every = len(network().segments)
    assert found.draw_s == OVERHEAD_S + TRAIN * TRAIN_S + VAL * VAL_S + TEST * every
    assert found.once_s == 0
    assert len(known_speed) == 1


def test_draws_side_by_side_take_the_time_of_the_longest_row() -> None:
    two = Estimate(draw_s=10.0, once_s=3.0, at_once=2, how="")
    assert [two.seconds(draws) for draws in (1, 2, 5)] == [13.0, 13.0, 33.0]
    assert two.beside == " (2 at once)"
    assert Estimate(draw_s=10.0, once_s=3.0, at_once=1, how="").seconds(5) == 53.0
