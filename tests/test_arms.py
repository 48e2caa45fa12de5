"""Arms: a control has the treatment's steps; stages in common are the same runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.comparing.arms import (
    Arm,
    Comparison,
    at_equal_steps,
    decide_plan,
    differences,
    own_stages,
)
from pipeline.errors import SettingsError
from pipeline.runs.session import Session
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import SCHEDULES
from pipeline.tracking import Tracking
from tests.conftest import TINY, Command
from tests.helpers import request_of

PRESET = {"preset": "cifar10_small"}
OWN_STAGES = {
    "stage1.lr": "0.01",
    "stage2.lr": "0.002",
    "stage2.augment": "strong",
    "stage3.lr": "0.0001",
}


def compare(config: Path | None = None, **options: str) -> Comparison:
    """The comparison behind these words, ten epochs a stage."""
    return decide_plan(request_of("decide", {**PRESET, **options}, config))


def epochs(arm: Arm) -> list[int]:
    return [arm.settings.training(number).epochs for number in range(1, arm.last + 1)]


def epochs_of(arm: Arm) -> int:
    return sum(epochs(arm))


def steps(arm: Arm, images: int = 1000) -> float:
    """Optimizer steps on so many images, in exact fractions of an epoch."""
    stages = [arm.settings.training(number) for number in range(1, arm.last + 1)]
    return sum(stage.epochs * images / stage.batch_size for stage in stages)


@pytest.mark.parametrize(
    ("treatment", "control", "expected"),
    [
        ("three_stage", "stage2_continued", [4, 6, 9]),
        ("three_stage", "stage1_continued", [4, 15]),
        ("three_stage", "full", [19]),
        ("three_stage", "head_only", [19]),
        ("three_stage", "lp_ft", [4, 15]),
        ("three_stage", "two_stage", [10, 9]),
        ("stage2_continued", "three_stage", [4, 6, 9]),
        ("two_stage", "full", [10]),
        ("two_stage", "lp_ft", [4, 6]),
        ("lp_ft", "two_stage", [4, 6]),
        ("lp_ft", "stage1_continued", [4, 6]),
        ("full", "head_only", [4]),
    ],
)
def test_a_control_has_the_treatments_epochs(
    treatment: str, control: str, expected: list[int]
) -> None:
    own = {f"stage{n}.epochs": str((4, 6, 9)[n - 1]) for n in range(1, 4)}
    stages = len(SCHEDULES[treatment].stages)
    own = {key: text for key, text in own.items() if int(key[5]) <= stages}
    plan = compare(treatment=treatment, control=control, **own)
    assert epochs(plan.control) == expected
    assert epochs_of(plan.control) == epochs_of(plan.treatment) == sum(expected)
    assert (plan.control.name, plan.control.last) == (control, len(SCHEDULES[control].stages))


@pytest.mark.parametrize(
    "control", ["lp_ft", "two_stage", "full", "head_only", "stage1_continued"]
)
@pytest.mark.parametrize("batches", [(8, 64, 64), (64, 32, 16), (100, 7, 50), (16, 64, 128)])
def test_other_batch_sizes_make_the_same_number_of_steps_to_the_nearest_epoch(
    control: str, batches: tuple[int, int, int]
) -> None:
    sizes = {f"stage{n}.batch_size": str(size) for n, size in enumerate(batches, start=1)}
    plan = compare(treatment="three_stage", control=control, **sizes)
    of_an_epoch = [1000 / t.batch_size for t in plan.control.settings.stages]
    off = abs(steps(plan.control) - steps(plan.treatment))
    assert off <= sum(of_an_epoch) / 2
    assert plan.control.settings.stages[-1].batch_size == batches[-1]


def test_epochs_grow_and_shrink_with_the_batch() -> None:
    sizes = {"stage1.batch_size": "10", "stage2.batch_size": "1000", "epochs": "1"}
    assert epochs(compare(treatment="two_stage", control="full", **sizes).control) == [101]
    sizes = {"stage1.batch_size": "1000", "stage2.batch_size": "10", "epochs": "1"}
    assert epochs(compare(treatment="two_stage", control="full", **sizes).control) == [1]


def test_a_stage_that_goes_on_has_the_settings_of_the_stage_it_is_held_against() -> None:
    """Or a decision would compare rates: stage 3 at its own against stage 2's."""
    own = {**OWN_STAGES, "stage3.epochs": "7", "stage3.label_smoothing": "0.2"}
    plan = compare(question="stage3", **own)
    ours, theirs = plan.control.settings.stages, plan.treatment.settings.stages
    assert ours == theirs
    assert (ours[2].lr, ours[2].label_smoothing, ours[2].epochs) == (1e-4, 0.2, 7)
    assert (ours[1].lr, ours[1].augment) == (0.002, "strong")


def test_a_stage_that_goes_on_alone_has_the_last_settings_of_all_it_is_held_against() -> None:
    plan = compare(treatment="three_stage", control="stage1_continued", **OWN_STAGES)
    ours, theirs = plan.control.settings.stages, plan.treatment.settings.stages
    assert ours[0] == theirs[0]
    assert ours[1] == theirs[2].model_copy(update={"epochs": ours[1].epochs})


def test_a_stage_that_goes_on_starts_its_tuning_from_what_the_treatment_started_from() -> None:
    plan = compare(question="stage3", **OWN_STAGES)
    stages = list(plan.treatment.settings.stages)
    stages[2] = stages[2].model_copy(update={"lr": 7e-5, "epochs": 20})
    found = replace(
        plan.treatment,
        settings=plan.treatment.settings.model_copy(update={"stages": tuple(stages)}),
    )
    control = at_equal_steps(
        found, SCHEDULES["stage2_continued"], request_of("decide", PRESET), plan.treatment
    )
    assert control.settings.training(3).lr == 1e-4
    assert control.settings.training(3).epochs == 20  # as many steps, all the same


def test_what_was_set_by_hand_for_stage_3_is_tuned_in_neither_arm() -> None:
    plan = compare(question="stage3", **OWN_STAGES, **{"stage3.norm": "keep"})
    assert own_stages(plan) == {3: {"epochs", "batch_size", "lr", "norm"}}


def test_a_setting_of_the_controls_alone_sets_its_last_stage_apart_and_is_told() -> None:
    own = {"stage3.lr": "3e-3", "control.lr": "1e-4", "control.augment": "strong"}
    plan = compare(question="stage3", **own)
    ours, theirs = plan.control.settings, plan.treatment.settings
    assert (ours.training(3).lr, ours.training(3).augment) == (1e-4, "strong")
    assert (theirs.training(3).lr, theirs.training(3).augment) == (3e-3, "light")
    assert ours.stages[:2] == theirs.stages[:2]
    assert differences(plan.treatment, plan.control) == [
        "lr 0.003 against 0.0001",
        "augment light against strong",
    ]
    assert own_stages(plan) == {3: {"epochs", "batch_size", "lr", "augment"}}
    assert plan.request.typed["control.lr"] == "1e-4"  # a worker is told, too


def test_arms_whose_last_stages_are_alike_differ_in_nothing_but_what_they_train() -> None:
    plan = compare(question="stage3", **OWN_STAGES)
    assert differences(plan.treatment, plan.control) == []
    other = compare(treatment="three_stage", control="full", **OWN_STAGES)
    assert differences(other.treatment, other.control) == ["lr 0.0001 against 0.0003"]


def test_a_stage_of_the_controls_own_has_its_defaults_and_what_was_said_of_every_stage() -> None:
    plan = compare(treatment="three_stage", control="full", weight_decay="0.2", **OWN_STAGES)
    expected = TrainSettings(epochs=30, lr=3e-4, weight_decay=0.2)
    assert plan.control.settings.stages == (expected,)
    assert plan.general == {"weight_decay": "0.2"}


def test_a_settings_file_is_read_for_both_arms(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("epochs: 4\nseed: 3\nstage1: {lr: 0.5}\nstage2.lr: 0.25\n")
    plan = compare(config, treatment="three_stage", control="full", seed="9")
    assert plan.treatment.settings.training(1).lr == 0.5
    assert plan.control.settings.training(1) == TrainSettings(epochs=12, lr=3e-4)
    assert plan.treatment.settings.seed == plan.control.settings.seed == 9
    assert plan.general == {"epochs": "4"}


@pytest.mark.parametrize(
    ("question", "words", "control", "last", "control_epochs"),
    [
        ("stage3", "stage 3", "stage2_continued", 3, [10, 10, 10]),
        ("stage2", "stage 2", "stage1_continued", 2, [10, 10]),
    ],
)
def test_a_question_names_both_arms(
    question: str, words: str, control: str, last: int, control_epochs: list[int]
) -> None:
    plan = compare(question=question)
    assert (plan.treatment.name, plan.treatment.last) == ("three_stage", last)
    assert plan.treatment.words == words
    assert epochs_of(plan.treatment) == 10 * last
    assert plan.control.name == control
    assert plan.control.words == f"stage {last - 1} continued"
    assert epochs(plan.control) == control_epochs


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, {"full": [30], "lp_ft": [10, 20]}),
        ({"question": "stage2"}, {"full": [20], "lp_ft": [10, 10]}),
        ({"treatment": "three_stage", "control": "full"}, {"lp_ft": [10, 20]}),
        ({"treatment": "lp_ft", "control": "full"}, {}),
        ({"treatment": "full", "control": "head_only"}, {}),  # one stage: lp_ft has no room
        ({"treatment": "head_only", "control": "full"}, {}),
    ],
)
def test_beside_the_arms_stand_full_and_lp_ft_at_the_same_steps(
    words: dict[str, str], expected: dict[str, list[int]]
) -> None:
    assert {arm.name: epochs(arm) for arm in compare(**words).extra_arms} == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"looks": "5,3"}, "looks must be whole numbers of pairs"),
        ({"threshold": "1"}, "threshold must be less than 1"),
        ({"rope_pp": "-1"}, "rope_pp must be greater than or equal to 0"),
        ({"rope_pp": "nan"}, "rope_pp must be a finite number"),
        ({"sd_pp": "0"}, "sd_pp must be greater than 0"),
        ({"question": "stage4"}, "question must be 'stage2' or 'stage3', got 'stage4'"),
        ({"treatment": "three_stages", "control": "full"}, "did you mean three_stage?"),
        ({"treatment": "full"}, "treatment=full control=?: give both"),
        ({"control": "full"}, "treatment=? control=full: give both"),
        ({"treatment": "full", "control": "full"}, "full and full train the same blocks"),
        ({"treatment": "full", "control": "lp_ft"}, "2 stages cannot share the steps of 1"),
        ({"n_trials": "0"}, "n_trials must be greater than or equal to 1"),
        *(
            ({"register_as": n}, f"register_as must begin with a letter or digit and hold {rest}")
            for n, rest in (
                ("a/b", "none of / : ' ?, got 'a/b' (command line)"),
                ("a:b", "none of / : ' ?, got 'a:b' (command line)"),
                ("Ann's", "none of / : ' ?, got \"Ann's\" (command line)"),
                ("..", "none of / : ' ?, got '..' (command line)"),
            )
        ),
        ({"treatment": "full", "control": "head_only", "stage2.lr": "1"}, "full has 1 stage"),
        ({"schedule": "full"}, "schedule=full: a decision is between two"),
        ({"config": "schedule.yaml"}, "schedule=full: a decision is between two"),
        ({"enforce_gate": "on"}, "enforce_gate=on: the gate judges by finished runs"),
        ({"config": "gate.yaml"}, "enforce_gate=on: the gate judges by finished runs"),
        ({"rope": "1"}, "unknown setting rope"),
        ({"control.lr": "fast"}, "control.lr must be a number, got"),
        (
            {"control.epochs": "3"},
            "control.epochs=3 (command line): both arms have equal optimizer steps",
        ),
        ({"config": "control.yaml"}, "got 'abc' (config control.yaml)"),
        ({"control.rate": "3"}, "unknown setting control.rate"),
        ({"stage2.patience": "3"}, "patience=3: arms have equal optimizer steps"),
    ],
)
def test_a_fault_is_one_line_exit_code_2_and_no_run(
    command: Command, capfd: pytest.CaptureFixture[str], words: dict[str, str], message: str
) -> None:
    import mlflow

    Path("schedule.yaml").write_text("schedule: full\n")
    Path("control.yaml").write_text("control.lr: abc\n")
    Path("gate.yaml").write_text("enforce_gate: true\n")
    assert command("decide", **words) == 2
    output = capfd.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert output.out == ""
    assert mlflow.search_runs(["0"], output_format="list") == []


def keys_of(arm: Arm) -> list[str]:
    session = Session.open(arm.settings, Tracking.connect(), lambda _: None)
    return [session.key(number) for number in range(1, arm.last + 1)]


@pytest.mark.parametrize(
    ("control", "shared"),
    [("stage2_continued", 2), ("lp_ft", 1), ("stage1_continued", 1), ("two_stage", 0)],
)
def test_stages_in_common_have_one_lineage_key(
    store: Path, image_folder: Path, control: str, shared: int
) -> None:
    own = {**TINY, "data": str(image_folder), "cache_dir": str(store / "cache")}
    plan = decide_plan(
        request_of("decide", {**own, "treatment": "three_stage", "control": control})
    )
    ours, theirs = keys_of(plan.control), keys_of(plan.treatment)
    assert ours[:shared] == theirs[:shared]
    assert not set(ours[shared:]) & set(theirs[shared:])


@pytest.mark.parametrize(
    "words",
    [
        {"patience": "3"},
        {"stage1.patience": "3", "treatment": "two_stage", "control": "full"},
        {**dict.fromkeys(("stage1.patience", "stage2.patience"), "0"), "patience": "3"},
    ],
)
def test_an_arm_that_may_stop_early_is_refused(words: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"^patience=3: .*leave patience out \(0\)$"):
        compare(**words)


def test_patience_in_a_stage_that_is_not_compared_does_no_harm() -> None:
    assert epochs_of(compare(question="stage2", **{"stage3.patience": "3"}).control) == 20


@pytest.mark.parametrize(
    ("treatment", "control", "expected"),
    [
        ("three_stage", "stage2_continued", {3: {"augment"}}),
        ("three_stage", "stage1_continued", {2: {"augment"}}),
        ("three_stage", "two_stage", {1: {"augment"}, 2: {"augment"}}),
        ("three_stage", "lp_ft", {2: {"augment"}}),
        ("three_stage", "full", {1: {"augment"}}),
        ("three_stage", "head_only", {1: {"augment", "lr"}}),
        ("two_stage", "full", {1: {"augment"}}),
    ],
)
def test_a_control_is_tuned_in_the_stages_it_does_not_share_but_for_what_was_set_by_hand(
    treatment: str, control: str, expected: dict[int, set[str]]
) -> None:
    plan = compare(treatment=treatment, control=control, **{"augment": "none", "stage1.lr": "0.1"})
    fixed = {number: {"epochs", "batch_size", *said} for number, said in expected.items()}
    assert own_stages(plan) == fixed


def test_a_stage_that_begins_as_the_treatment_does_has_what_was_set_by_hand_for_it() -> None:
    plan = compare(treatment="three_stage", control="head_only", **OWN_STAGES)
    assert plan.control.settings.stages == (TrainSettings(epochs=30, lr=0.01),)
