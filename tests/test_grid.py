"""A grid of arms: which names are taken, what all arms have in common, what is refused at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.comparing.arms import Arm
from pipeline.comparing.grid import Grid, compare_plan, explicit_keys_of_arm
from pipeline.errors import SettingsError
from pipeline.settings.run import RUN_KEYS, TrainSettings
from pipeline.settings.schedules import SCHEDULES
from tests.helpers import request_of

ROOT = Path(__file__).resolve().parent.parent
PRESET = {"preset": "cifar10_small"}
ONE = "resnet18"
FAULTS: list[tuple[dict[str, str], str]] = [
    (
        {"schedules": "full,tree_stage"},
        "schedule 'tree_stage' is not known: did you mean three_stage?",
    ),
    (
        {"schedules": "full,zzz"},
        "schedule 'zzz' is not known: choose from ",
    ),
    ({"schedules": "full,,lp_ft"}, "schedule '' is not known: choose from"),
    ({"baseline": "ful"}, "schedule 'ful' is not known: did you mean full?"),
    (
        {"schedules": "full, lp_ft,full"},
        "schedules names full twice, got 'full,lp_ft,full': keep one",
    ),
    ({"backbones": "resnet18,resnet18 "}, "backbones names resnet18 twice"),
    (
        {"backbone": "resnet18", "backbones": "resnet18,resnet34"},
        "backbone=resnet18 and backbones=resnet18,resnet34: give one of the two",
    ),
    (
        {"schedules": "full"},
        "schedules=full with baseline=full: two are needed to compare, add one",
    ),
    ({"schedule": "full"}, "schedule=full: pass -P schedules=<names with commas between them>"),
    ({"reuse": "off"}, "reuse=off: the arms start from common runs"),
    ({"enforce_gate": "on"}, "enforce_gate=on: the gate judges by finished runs"),
    ({"draws": "1"}, "draws must be greater than or equal to 2, got '1'"),
    ({"tune_draws": "0"}, "tune_draws must be greater than or equal to 1"),
    ({"rope_pp": "-1"}, "rope_pp must be greater than or equal to 0, got '-1'"),
    ({"n_trials": "0"}, "n_trials must be greater than or equal to 1"),
    (
        {"weights": "/w/{bakbone}.pth"},
        "weights=/w/{bakbone}.pth: {bakbone} is not known: write {backbone}",
    ),
    ({"stage4.lr": "1"}, "stage4.lr (command line): schedule three_stage has 3 stages"),
    ({"stage2.patience": "2"}, "patience=2: arms have equal optimizer steps"),
    ({"epochs": "0"}, "epochs must be greater than or equal to 1"),
]


def grid(config: Path | None = None, **options: str) -> Grid:
    """The grid behind these words, ten epochs a stage."""
    return compare_plan(request_of("compare", {**PRESET, **options}, config))


def arms(config: Path | None = None, **options: str) -> dict[str, Arm]:
    """The arms on the one backbone, by schedule."""
    (found,) = grid(config, **options).arms.values()
    return {arm.name: arm for arm in found}


def epochs(arm: Arm) -> list[int]:
    return [arm.settings.training(number).epochs for number in range(1, arm.last + 1)]


def test_every_arm_has_the_epochs_of_the_reference() -> None:
    found = arms(schedules="full,two_stage,three_stage,lp_ft,head_only,stage2_continued")
    assert {name: epochs(arm) for name, arm in found.items()} == {
        "full": [30],
        "two_stage": [20, 10],
        "three_stage": [10, 10, 10],
        "lp_ft": [10, 20],
        "head_only": [30],
        "stage2_continued": [10, 10, 10],
    }
    assert all(arm.last == len(SCHEDULES[name].stages) for name, arm in found.items())


def test_the_reference_says_how_many_steps_there_are_though_it_is_not_compared() -> None:
    words = {"stage1.epochs": "4", "stage2.epochs": "5", "stage3.epochs": "7"}
    found = arms(schedules="lp_ft,two_stage", **words)
    assert "three_stage" not in found
    assert {name: epochs(arm) for name, arm in found.items()} == {
        "full": [16],
        "lp_ft": [4, 12],
        "two_stage": [9, 7],
    }


def test_arms_differ_in_nothing_but_schedule_and_stages() -> None:
    found = list(arms(draw="2", image_size="40", data_seed="3", seed="5").values())
    for key in RUN_KEYS:
        if key != "schedule":
            assert len({getattr(arm.settings, key) for arm in found}) == 1, key
    assert [arm.settings.schedule for arm in found] == [arm.name for arm in found]
    assert (found[0].settings.draw, found[0].settings.image_size) == (2, 40)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, ["full", "two_stage", "three_stage", "lp_ft"]),
        ({"schedules": "lp_ft,full"}, ["full", "lp_ft"]),
        ({"schedules": " lp_ft , two_stage"}, ["full", "lp_ft", "two_stage"]),
        ({"schedules": "full,lp_ft", "baseline": "three_stage"}, ["three_stage", "full", "lp_ft"]),
        ({"schedules": "two_stage,lp_ft", "baseline": "lp_ft"}, ["lp_ft", "two_stage"]),
    ],
)
def test_the_baseline_is_added_and_put_first(words: dict[str, str], expected: list[str]) -> None:
    assert list(arms(**words)) == expected


def test_backbones_come_in_the_order_they_were_named() -> None:
    found = grid(backbones=" resnet34, mobilenet_v2,resnet18", weights="none").arms
    assert list(found) == ["resnet34", "mobilenet_v2", "resnet18"]
    for name, row in found.items():
        assert {arm.settings.backbone for arm in row} == {name}
    assert len({tuple(arm.name for arm in row) for row in found.values()}) == 1
    assert len({tuple(map(str, map(epochs, row))) for row in found.values()}) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [({}, "resnet18"), ({"backbone": "mobilenet_v2", "weights": "none"}, "mobilenet_v2")],
)
def test_without_backbones_the_usual_one_is_taken(words: dict[str, str], expected: str) -> None:
    assert list(grid(**words).arms) == [expected]


def test_a_backbone_may_stand_in_a_file(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("backbone: resnet34\nweights: none\n")
    assert list(grid(config).arms) == ["resnet34"]
    assert list(grid(config, backbones="resnet18").arms) == ["resnet18"]


def test_a_schedule_in_a_file_is_refused_as_a_typed_one_is(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("schedule: full\n")
    with pytest.raises(SettingsError, match=r"^schedule=full: pass -P schedules=<names with"):
        grid(config)


def test_weights_may_name_a_file_for_each_backbone() -> None:
    found = grid(backbones="resnet18,resnet34", weights="/w/{backbone}-{backbone}.safetensors")
    weights = {name: {arm.settings.weights for arm in row} for name, row in found.arms.items()}
    assert weights == {
        "resnet18": {"/w/resnet18-resnet18.safetensors"},
        "resnet34": {"/w/resnet34-resnet34.safetensors"},
    }


def test_weights_in_a_file_of_settings_name_a_file_for_each_backbone(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text('weights: "~/{backbone}.pth"\n')
    found = grid(config, backbones="resnet18,resnet34")
    assert [row[-1].settings.weights for row in found.arms.values()] == [
        "~/resnet18.pth",
        "~/resnet34.pth",
    ]


def test_what_was_set_by_hand_is_noted_and_kept(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("lr: 0.5\naugment: strong\nseed: 3\nstage1: {clip_norm: 2}\n")
    found = grid(config, weight_decay="0.2", lr="0.25", schedules="lp_ft,three_stage")
    of_all = {"lr", "augment", "weight_decay"}
    for arm in found.arms[ONE]:
        for number in range(1, arm.last + 1):
            # every schedule here but the baseline begins with the head, as `stage1` means it
            first = number == 1 and arm.name != "full"
            assert explicit_keys_of_arm(found, arm, number) == of_all | (
                {"clip_norm"} if first else set()
            )
            training = arm.settings.training(number)
            assert (training.lr, training.augment, training.weight_decay) == (0.25, "strong", 0.2)
        assert arm.settings.seed == 3


def test_nothing_is_set_by_hand_where_a_preset_says_it() -> None:
    assert not grid().general
    assert not any(grid().explicit.values())
    assert arms()["full"].settings.stages == (TrainSettings(epochs=30, lr=3e-4),)


def test_an_unknown_backbone_is_refused_with_near_names() -> None:
    with pytest.raises(SettingsError, match=r"did you mean resnet18 .*got 'resnet19'"):
        grid(backbones="resnet18,resnet19")


def test_every_fault_is_one_line_and_exit_code_2_before_torch_is_imported() -> None:
    code = (
        "import json, sys\n"
        "from pipeline.cli import main\n"
        "codes = [main(['compare', *words]) for words in json.loads(sys.argv[1])]\n"
        "slow = [m for m in ('torch', 'mlflow', 'optuna') if m in sys.modules]\n"
        "print(json.dumps([codes, slow]))\n"
    )
    typed = [[f"--{key}={value}" for key, value in words.items()] for words, _ in FAULTS]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(typed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    codes, slow = json.loads(done.stdout)
    assert codes == [2] * len(FAULTS)
    assert slow == []
    lines = done.stderr.splitlines()
    assert len(lines) == len(FAULTS)
    for line, (_, message) in zip(lines, FAULTS, strict=True):
        assert line.startswith("error: ")
        assert message in line


def test_a_setting_of_a_stage_that_a_schedule_has_otherwise_is_told() -> None:
    typed = {**PRESET, "backbones": ONE, "schedules": "full,two_stage,three_stage"}
    assert compare_plan(request_of("compare", {**typed, "lr": "1e-3"})).unheeded == ()
    own = {"stage2.lr": "1e-3", "stage2.epochs": "3", "stage1.lr": "2e-3"}
    lines = compare_plan(request_of("compare", {**typed, **own})).unheeded
    both = compare_plan(request_of("compare", {**typed, "lr": "4e-3", "stage2.lr": "5e-4"}))
    assert [line.partition(", whose")[0] for line in both.unheeded] == [
        "note: stage2.lr: not for two_stage"
    ]
    assert [line.partition(", whose")[0] for line in lines] == [
        "note: stage1.lr: not for full",
        "note: stage1.lr: not for two_stage",
        "note: stage2.lr: not for two_stage",
    ]


def test_blocks_that_only_the_named_backbone_has_are_taken(tmp_path: Path) -> None:
    blocks = tmp_path / "blocks.yaml"
    parts = {"head": "classifier", "late": "features.1[4-8]", "early": "features"}
    blocks.write_text("".join(f"{name}: {pattern}\n" for name, pattern in parts.items()))
    words = {**PRESET, "backbones": "mobilenet_v2", "blocks": str(blocks)}
    words["schedules"] = "full,mine(head; head+late)"
    grid = compare_plan(request_of("compare", words))
    assert [arm.last for arm in grid.arms["mobilenet_v2"]] == [1, 2]


def test_a_network_without_a_middle_block_is_compared_by_the_schedules_that_it_has() -> None:
    two_blocks = {**PRESET, "backbone": "tests.networks:FirstNormAlone", "weights": "none"}
    words = {**two_blocks, "schedules": "full,lp_ft", "stage2.lr": "2e-4"}
    found = compare_plan(request_of("compare", words))
    assert found.reference.name == "lp_ft"
    full, lp_ft = next(iter(found.arms.values()))
    assert lp_ft.settings.training(2).lr == 2e-4
    assert full.settings.training(1).epochs == sum(
        lp_ft.settings.training(n).epochs for n in (1, 2)
    )
    with pytest.raises(SettingsError, match=r"schedule three_stage: .*block"):
        compare_plan(request_of("compare", {**two_blocks, "schedules": "full,three_stage"}))
