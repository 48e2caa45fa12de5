"""What a decision says of itself, from numbers alone: nothing is trained."""

from __future__ import annotations

import shlex

import pytest

from pipeline.arms import comparison_of
from pipeline.decision import Decision
from pipeline.pairs import ArmResult, ChainCost, Pair, pair_keys
from pipeline.pool import Pool
from pipeline.reproduce import command_of

PRESET = {"preset": "cifar10_small", "looks": "2", "train_per_class": "10"}


def result(acc: float, seconds: float = 3.0, trained: int = 1000) -> ArmResult:
    cost = ChainCost(training_s=seconds, prefix_s=1.0, trained=trained, peak_mib=10.0)
    return ArmResult("a-run", acc + 0.02, acc, wall_s=0.5, trainable=100, chain=cost)


def decision(both: tuple[ArmResult, ArmResult] | None = None, **options: str) -> Decision:
    """A decision after two equal pairs; `options`: what was typed."""
    plan = comparison_of({**PRESET, **options}, None)
    both = both or (result(0.8), result(0.7))
    pool = Pool(0, False, 0.0, (2,), "pairs are disjoint draws")
    pairs = tuple(Pair(key, *both) for key in pair_keys(pool, plan.treatment.settings))
    arms = plan.treatment, plan.control
    return Decision(plan, *arms, plan.design, pool, pairs, {}, 100, 10, (), 60.0)


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
    ],
)
def test_the_command_names_the_same_two_arms(words: dict[str, str]) -> None:
    made = decision(**words)
    again = comparison_of(said_again(made), None)
    assert (again.treatment, again.control) == (made.treatment, made.control)


@pytest.mark.parametrize("name", ["off", "mine"])
def test_the_command_says_what_is_registered(name: str) -> None:
    assert said_again(decision(register_as=name))["register_as"] == name
    assert "register_as" not in said_again(decision())
