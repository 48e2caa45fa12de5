"""Schedules: the table of the method, and how a stage splits a backbone."""

from __future__ import annotations

import pytest

from pipeline.errors import SettingsError
from pipeline.settings.schedules import BLOCKS, SCHEDULES, Stage, get_stage

FORWARD = ("stem", "block1", "block2", "block3", "block4", "head")
ALL_STAGES = [
    pytest.param(stage, id=f"{stage.schedule}-{stage.number}")
    for stages in SCHEDULES.values()
    for stage in stages
]


def test_the_schedules_are_those_of_the_method() -> None:
    table = {
        "three_stage": [{"head"}, {"block4", "head"}, {"block3", "block4", "head"}],
        "two_stage": [{"block4", "head"}, {"block3", "block4", "head"}],
        "full": [set(FORWARD)],
        "lp_ft": [{"head"}, set(FORWARD)],
        "head_only": [{"head"}],
        "stage1_continued": [{"head"}, {"head"}],
        "stage2_continued": [{"head"}, {"block4", "head"}, {"block4", "head"}],
    }
    assert {
        name: [set(stage.trainable) for stage in stages] for name, stages in SCHEDULES.items()
    } == table


def test_blocks_are_named_head_first() -> None:
    assert BLOCKS == ("head", "block4", "block3", "block2", "block1", "stem")


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_a_stage_knows_its_schedule_and_number(stage: Stage) -> None:
    assert get_stage(stage.schedule, stage.number) is stage


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_prefix_and_suffix_are_all_blocks_in_forward_order(stage: Stage) -> None:
    assert stage.prefix + stage.suffix == FORWARD


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_the_prefix_is_frozen_and_the_suffix_begins_with_a_trainable_block(stage: Stage) -> None:
    assert not set(stage.prefix) & set(stage.trainable)
    assert stage.suffix[0] == stage.deepest
    assert stage.deepest in stage.trainable


@pytest.mark.parametrize(
    ("trainable", "deepest", "prefix"),
    [
        (("head",), "head", FORWARD[:5]),
        (("head", "block4"), "block4", FORWARD[:4]),
        (("block3", "head"), "block3", FORWARD[:3]),  # a gap: block4 is frozen, not in the prefix
        (BLOCKS, "stem", ()),
    ],
)
def test_everything_below_the_deepest_trainable_block_is_prefix(
    trainable: tuple[str, ...], deepest: str, prefix: tuple[str, ...]
) -> None:
    stage = Stage("example", 1, trainable)
    assert (stage.deepest, stage.prefix) == (deepest, prefix)


@pytest.mark.parametrize(
    ("schedule", "number", "message"),
    [
        (
            "full",
            2,
            "full has 1 stage, got stage 2: .*schedule=three_stage or two_stage or lp_ft$",
        ),
        ("two_stage", 3, "two_stage has 2 stages, got stage 3: .*schedule=three_stage$"),
        ("three_stage", 4, "three_stage has 3 stages, got stage 4: run an earlier stage"),
        ("head_only", 0, "head_only has 1 stage, got stage 0"),
        ("head_only", -1, "head_only has 1 stage, got stage -1"),
    ],
)
def test_a_missing_stage_names_the_schedules_that_have_it(
    schedule: str, number: int, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        get_stage(schedule, number)
