"""What a decision says of itself, from numbers alone: nothing is trained."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from pipeline.comparing.arms import TunedArm, comparison_of
from pipeline.comparing.decision import Decision
from pipeline.comparing.decision_page import page_of
from pipeline.comparing.draws import Pool
from pipeline.comparing.pairs import ArmResult, ChainCost, Pair, pair_keys
from pipeline.comparing.reproduce import command_of
from pipeline.data.overlap import Counts
from pipeline.model.flops import training_operations
from pipeline.reporting.page import to_markdown
from pipeline.tracking import RunView
from tests.helpers import request_of

PRESET = {"preset": "cifar10_small", "looks": "2", "train_per_class": "10"}
UP_SIDE_DOWN = {"treatment": "stage2_continued", "control": "three_stage"}


def result(acc: float, seconds: float = 3.0, trained: int = 1000) -> ArmResult:
    cost = ChainCost(training_s=seconds, prefix_s=1.0, trained=trained, peak_mib=10.0)
    return ArmResult("a-run", acc + 0.02, acc, cost)


def decision(both: tuple[ArmResult, ArmResult] | None = None, **options: str) -> Decision:
    """A decision after two equal pairs; `options`: what was typed."""
    plan = comparison_of(request_of("decide", {**PRESET, **options}))
    both = both or (result(0.8), result(0.7))
    pool = Pool(0, False, 0.0, (2,), "pairs are disjoint draws")
    pairs = tuple(Pair(key, *both) for key in pair_keys(pool, plan.treatment.settings))
    arms = plan.treatment, plan.control
    return Decision(
        plan, *arms, plan.decide.design, pool, pairs, {}, Counts(100, 0, 0), 10, (), 60.0
    )


def said_again(made: Decision) -> dict[str, str]:
    """The options in the command line that makes a decision again."""
    return dict(word.split("=", 1) for word in shlex.split(command_of(made)) if "=" in word)


@pytest.mark.parametrize(
    "words",
    [
        {"question": "stage2"},
        {"question": "stage3"},
        {"treatment": "three_stage", "control": "stage2_continued"},
        {"treatment": "three_stage", "control": "stage1_continued"},
        {"treatment": "three_stage", "control": "full"},
        {"treatment": "two_stage", "control": "full"},
        {"treatment": "three_stage", "control": "head_only", "stage1.lr": "0.01"},
    ],
)
def test_the_command_names_the_same_two_arms(words: dict[str, str]) -> None:
    made = decision(**words)
    again = comparison_of(request_of("decide", said_again(made)))
    assert (again.treatment, again.control) == (made.treatment, made.control)


@pytest.mark.parametrize("name", ["off", "mine"])
def test_the_command_says_what_is_registered(name: str) -> None:
    assert said_again(decision(register_as=name))["register_as"] == name
    assert "register_as" not in said_again(decision())


def test_a_question_is_the_one_of_earlier_versions_unless_another_metric_is_asked_for() -> None:
    assert decision().question == "3b5cf2afd95217c0"
    assert decision(metric="acc").question == "3b5cf2afd95217c0"
    assert decision(metric="macro_f1").question not in ("3b5cf2afd95217c0", "480b27868fe9ffbe")


def test_another_metric_than_accuracy_is_named_and_asked_for_again() -> None:
    made = decision(metric="macro_f1")
    assert made.sentence.startswith("By macro F1: Stage 3 gains")
    assert made.tags["verdict.metric"] == "macro_f1"
    assert said_again(made)["metric"] == "macro_f1"
    assert "metric" not in said_again(decision())
    text = report(made)
    assert "scored by macro F1" in text
    assert "minus test macro F1" in text


def report(made: Decision) -> str:
    marks = {"data_sha256": "d" * 64, "weights_sha256": "w" * 64}
    run = RunView("a-run", "stage", "FINISHED", marks, {}, {})
    return to_markdown(page_of(made, [run] * len(made.pairs), None, ["a-commit"]))


@pytest.mark.parametrize(
    ("val_acc", "shown"),
    [
        (0.85, "chosen trial 85.00% on its tuning draws, confirmed 80.00%: optimism gap +5.00 pp"),
        (None, "the chosen trial's run is gone, confirmed 80.00% (studies a-study)"),
    ],
)
def test_the_report_says_what_the_chosen_trial_promised(val_acc: float | None, shown: str) -> None:
    made = decision(question="stage2")
    val = {} if val_acc is None else {"val_acc": val_acc}
    tuned = TunedArm(made.treatment, val, {2: "a-study"}, ("a-run",))
    assert f"Tuning of stage 2: {shown}" in report(replace(made, tuned=(tuned,)))


@pytest.mark.parametrize(
    ("seconds", "trained", "words", "shown"),
    [
        ((4.0, 3.0), (2000, 1000), {}, "costs +0.1 s, +100 parameters released and +"),
        # the blocks that are not released cost operations even where the clock saw none
        ((3.0, 3.0), (1000, 1000), {}, "costs +0.0 s, +0 parameters released and +"),
        ((3.0, 4.0), (1000, 2000), UP_SIDE_DOWN, "What was gained costs nothing more."),
        ((3.1, 3.0), (1000, 2000), UP_SIDE_DOWN, "costs +0.0 s, -100 parameters released and -"),
    ],
)
def test_a_gain_costs_nothing_only_where_nothing_at_all_costs_more(
    seconds: tuple[float, float], trained: tuple[int, int], words: dict[str, str], shown: str
) -> None:
    both = result(0.8, seconds[0], trained[0]), result(0.7, seconds[1], trained[1])
    assert shown in report(decision(both, **words))


def test_an_arms_cost_is_that_of_all_its_stages() -> None:
    made = decision(treatment="three_stage", control="stage1_continued")
    settings = made.treatment.settings
    an_image = [training_operations("resnet18", 10, 64, settings.stage(n)) for n in (1, 2, 3)]
    ours, theirs = made.cost(made.treatment), made.cost(made.control)
    assert (ours.training_s, ours.trained) == (3.0, 1000)
    assert ours.operations == pytest.approx(100 * 10 * sum(an_image))
    assert theirs.operations == pytest.approx(100 * 30 * an_image[0])


@pytest.mark.parametrize(
    ("words", "treatment", "control"),
    [
        ({"question": "stage3"}, "stage 3", "stage 2 continued"),
        ({"question": "stage2"}, "stage 2", "stage 1 continued"),
        ({"treatment": "three_stage", "control": "stage2_continued"}, "stage 3", ""),
        (
            {"treatment": "three_stage", "control": "stage1_continued"},
            "training in three stages",
            "",
        ),
        ({"treatment": "three_stage", "control": "full"}, "training in three stages", ""),
        ({"treatment": "two_stage", "control": "full"}, "training in two stages", ""),
        (UP_SIDE_DOWN, "stage 2 continued", "training in three stages"),
    ],
)
def test_a_stage_is_what_is_judged_only_against_the_one_before_continued(
    words: dict[str, str], treatment: str, control: str
) -> None:
    made = decision(**words)
    shown = report(made)
    assert shown.startswith(f"# Is {treatment} justified?")
    assert f"{treatment[:1].upper()}{treatment[1:]} gains +10.0 pp against {control}" in shown


def test_the_report_says_how_many_optimizer_steps_both_arms_had() -> None:
    words = {"treatment": "three_stage", "control": "full", "epochs": "5"}
    made = decision(**words, **{"stage1.batch_size": "20", "stage3.batch_size": "20"})
    assert (made.treatment.epochs, made.control.epochs) != (15, 15)
    assert "Both arms had 60 optimizer steps on the same images" in report(made)


def test_images_and_seeds_are_said_pair_by_pair_and_nowhere_else() -> None:
    made = decision()
    pairs = pair_keys(replace(made.pool, resampled=True), made.treatment.settings)
    shown = report(
        replace(
            made, pairs=tuple(replace(p, key=k) for p, k in zip(made.pairs, pairs, strict=True))
        )
    )
    assert "| 1 | 1 | 0 | 0 | 80.00% |" in shown
    assert "| 2 | 2 | 0 | 1 | 80.00% |" in shown
    assert "\n| data_seed | " not in shown
    assert "\n| draw | " not in shown
