"""Schedules and their stages: YAML files; those in `schedule_files` are the built-in schedules.

A *stage* is one training run with a fixed set of trainable blocks; a *schedule* is an ordered list
of stages, each started from the checkpoint of the stage before. Every backbone has the same six
blocks (see `backbones.py`), which are named head first.

    words: training in four stages     # a built-in schedule's name in a sentence
    stages:
      - [head]
      - [head, block4]
      - [head, block4, block3]
      - continued                      # the same blocks again, from the stage before

In: the name of a built-in schedule, the path of such a file, or a schedule spelled out, as runs
record it: `mine(head; head+block4; continued)`. Out: a `Schedule`. A stage trains what the stage
before trains, and may add blocks: a later stage freezes no more than an earlier stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.settings.yaml_file import did_you_mean, read_yaml
from pipeline.system.files import typed_path

BLOCKS = ("head", "block4", "block3", "block2", "block1", "stem")
"""Every block, head first: a block's index is its depth."""
SCHEDULES_DIR = Path(__file__).parent / "schedule_files"
CONTINUED = "continued"
"""In place of a stage's blocks: the blocks of the stage before."""
LEARNING_RATES = {
    "for the head alone": 3e-3,
    "for pretrained blocks": 3e-4,
    "after a stage that trained pretrained blocks": 1e-4,
}
"""Default rates by what a stage trains (measured: docs/reference.md): a new head wants a high
rate, pretrained blocks a tenth of that, blocks that already fit these images a third of that."""
_NAME = "[A-Za-z0-9_.-]+"


@dataclass(frozen=True)
class Stage:
    """One step of a schedule: `number` counts from 1, `trainable` lists blocks, head first."""

    schedule: str
    number: int
    trainable: tuple[str, ...]

    @property
    def deepest(self) -> str:
        """The deepest trainable block: everything below it is the frozen prefix."""
        return max(self.trainable, key=BLOCKS.index)

    @property
    def prefix(self) -> tuple[str, ...]:
        """The blocks below the deepest trainable one, in the order images pass through them."""
        return tuple(reversed(BLOCKS[BLOCKS.index(self.deepest) + 1 :]))

    @property
    def suffix(self) -> tuple[str, ...]:
        """The blocks from the deepest trainable one up to the head, in forward order."""
        return tuple(reversed(BLOCKS[: BLOCKS.index(self.deepest) + 1]))


@dataclass(frozen=True)
class Schedule:
    """Stages in order; `words`: the schedule's name in a sentence."""

    name: str
    stages: tuple[Stage, ...]
    words: str = field(compare=False)

    @property
    def length(self) -> str:
        """`3 stages`."""
        count = len(self.stages)
        return f"{count} stage{'s' if count > 1 else ''}"

    def __str__(self) -> str:
        """The name of a built-in schedule; another one spelled out, so that no file is needed."""
        if SCHEDULES.get(self.name) == self:
            return self.name
        return f"{self.name}({'; '.join(self._spelled)})"

    @property
    def _spelled(self) -> list[str]:
        blocks = ["+".join(stage.trainable) for stage in self.stages]
        return [blocks[0], *(CONTINUED if a == b else b for a, b in pairwise(blocks))]

    @property
    def is_continued(self) -> bool:
        """Whether a stage trains the blocks of the stage before: such schedules are controls."""
        return CONTINUED in self._spelled

    def trains(self, count: int | None = None) -> list[tuple[str, ...]]:
        """The trainable blocks of the first `count` stages (None: of all)."""
        return [stage.trainable for stage in self.stages[:count]]

    def default_lr(self, number: int) -> float:
        """The learning rate of stage `number` where nothing gives another."""
        head, pretrained, fitted = LEARNING_RATES.values()
        *before, stage = (trains == ("head",) for trains in self.trains(number))
        if stage:
            return head
        return pretrained if all(before) else fitted

    def stage(self, number: int) -> Stage:
        """Stage `number`.

        Raises:
            SettingsError: the schedule has no such stage.
        """
        if 1 <= number <= len(self.stages):
            return self.stages[number - 1]
        fitting = [
            name
            for name, other in SCHEDULES.items()
            if len(other.stages) >= number and not other.is_continued
        ]
        raise SettingsError(
            f"schedule {self.name} has {self.length}, got stage {number}: run an earlier stage, "
            f"or pass -P schedule={' or '.join(fitting) or '<a YAML file with as many stages>'}"
        )


def schedule_of(text: str) -> Schedule:
    """The schedule of that name, in that file, or spelled out so.

    Raises:
        SettingsError: there is none, or it cannot be used; says what is wrong with it.
    """
    if text in SCHEDULES:
        return SCHEDULES[text]
    if spelled := re.fullmatch(rf"({_NAME})\((.+)\)", text):
        stages = [
            CONTINUED if part.strip() == CONTINUED else [b.strip() for b in part.split("+")]
            for part in spelled[2].split(";")
        ]
        schedule = _checked(spelled[1], stages, f"schedule={text}")
    elif text.endswith((".yaml", ".yml")):
        schedule = read_schedule(typed_path(text))
    else:
        hint = did_you_mean(text, SCHEDULES) or (
            f": choose from {', '.join(SCHEDULES)}, or pass the path of a .yaml file with stages"
        )
        raise SettingsError(f"schedule {text!r} is not known{hint}")
    known = SCHEDULES.get(schedule.name)
    if known is None:  # runs record name and stages, no words
        return replace(schedule, words=schedule.name)
    if known != schedule:
        raise SettingsError(
            f"schedule={text}: {schedule.name} is the name of a built-in schedule with other "
            "stages: rename the file"
        )
    return known


def check_distinct(schedules: Sequence[Schedule]) -> None:
    """Refuse schedules that cannot be told apart.

    Raises:
        SettingsError: two train the same blocks in the same stages, or have one name.
    """
    for one, other in combinations(schedules, 2):
        if one.trains() == other.trains():
            raise SettingsError(
                f"schedules {one.name} and {other.name} train the same blocks in the same stages: "
                "choose two that differ"
            )
        if one.name == other.name:
            raise SettingsError(f"two schedules are called {one.name}: rename one of the files")


def read_schedule(path: Path) -> Schedule:
    """The schedule in a YAML file, named after the file.

    Raises:
        SettingsError: it cannot be read or used.
    """
    where = f"schedule={path}"
    content = read_yaml(path, where)
    stages, words = content.get("stages"), content.get("words", path.stem)
    if not isinstance(stages, list) or not stages or not isinstance(words, str):
        raise SettingsError(
            f"{where}: stages must be a list of stages, each a list of blocks, and words, if "
            f"given, a text, got {content}"
        )
    if unknown := content.keys() - {"stages", "words"}:
        raise SettingsError(
            f"{where}: a schedule has stages and words, got {', '.join(sorted(unknown))}: leave "
            "that out"
        )
    if not re.fullmatch(_NAME, path.stem):
        raise SettingsError(
            f"{where}: the file's name names the schedule: use letters, digits and _ . - alone"
        )
    return _checked(path.stem, stages, where, words)


def _checked(name: str, given: Sequence[object], where: str, words: str = "") -> Schedule:
    """A schedule of these stages, each a list of blocks or `continued`.

    Raises:
        SettingsError: a stage that cannot be; says which and why.
    """
    stages: list[Stage] = []
    for number, blocks in enumerate(given, start=1):
        before = stages[-1].trainable if stages else ()
        if fault := _fault(blocks, before, number - 1):
            raise SettingsError(f"{where}: stage {number} {fault}")
        if blocks != CONTINUED:
            assert isinstance(blocks, list)
            before = tuple(sorted(blocks, key=BLOCKS.index))
        stages.append(Stage(name, number, before))
    return Schedule(name, tuple(stages), words or name)


def _fault(blocks: object, before: tuple[str, ...], number_before: int) -> str:
    """What is wrong with a stage after one that trains `before`; empty if nothing is."""
    if blocks == CONTINUED:
        return "" if before else "has no stage before it to go on with: list its blocks"
    known = ", ".join(BLOCKS)
    if not isinstance(blocks, list) or not blocks:
        return f"must be a list of blocks ({known}) or `{CONTINUED}`, got {blocks!r}"
    for block in map(str, blocks):
        if block not in BLOCKS:
            return f"names unknown block {block}{did_you_mean(block, BLOCKS)} (there are {known})"
    if len(set(blocks)) < len(blocks):
        return f"names a block twice, got {blocks}: keep one"
    if "head" not in blocks and not before:
        return "must train the head, which is new: add head"
    if left := [block for block in before if block not in blocks]:
        return (
            f"leaves out {' and '.join(left)}, which stage {number_before} trains: a stage trains "
            "what the stage before trains, and may add blocks"
        )
    if len(blocks) == len(before):
        return (
            f"trains the same blocks as stage {number_before}: add a block, or write "
            f"`{CONTINUED}` where the stage is meant to go on with them"
        )
    return ""


SCHEDULES: Mapping[str, Schedule] = {
    path.stem: read_schedule(path) for path in sorted(SCHEDULES_DIR.glob("*.yaml"))
}
"""The built-in schedules: whatever lies in the folder, by name."""
