"""Schedules and their stages: YAML files, of which `schedule_files` holds the built-in schedules.

A *stage* is one training run with a fixed set of trainable blocks; a *schedule* is an ordered list
of stages, each started from the checkpoint of the stage before. Blocks go by their position from
the head, which every network has, or by name.

    words: training in five stages   # a built-in schedule's name in a sentence
    stages:
      - [head]
      - [head, 1]             # 1 is the last block before the head, 2 the one before it
      - [head, 1, block3]
      - continued             # the same blocks again, from the stage before
      - all                   # every block

In: the name of a built-in schedule, the path of such a file, or a schedule spelled out, as runs
record it: `mine(head; head+1; continued)`. Out: a `Schedule`, whose stages are those of the blocks
of a network. A stage trains what the stage before trains, and may add blocks: a later stage
freezes no more than an earlier stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.model.often import BLOCKS
from pipeline.system.disk.files import typed_path
from pipeline.system.disk.yaml_file import did_you_mean, read_yaml

SCHEDULES_DIR = Path(__file__).parent / "schedule_files"
ALL, CONTINUED, HEAD = "all", "continued", "head"
"""In place of a stage's blocks: every block; the blocks of the stage before."""
LEARNING_RATES = {
    "for the head alone": 3e-3,
    "for pretrained blocks": 3e-4,
    "after a stage that trained pretrained blocks": 1e-4,
}
"""Default rates by what a stage trains (measured: docs/reference.md): a new head wants a high
rate, pretrained blocks a tenth of that, blocks that already fit these images a third of that."""
WITHOUT_BATCH_NORM = 3
DECAY_WITHOUT_BATCH_NORM = 0.05
"""Pretrained blocks of networks without BatchNorm start from a rate divided by this, and from this
weight decay. Not measured here, as no such weights could be had: 1e-4 is what He et al. 2022
(arXiv 2111.06377) fine-tune ViT with at this batch size, with AdamW and this weight decay."""
_NAME = "[A-Za-z0-9_.-]+"
_FILES: dict[str, str] = {}
"""Schedules, spelled out -> the files that they were read from, for messages."""


@dataclass(frozen=True)
class Stage:
    """One step of a schedule: `number` counts from 1, `trainable` lists blocks, head first."""

    schedule: str
    number: int
    trainable: tuple[str, ...]

    @property
    def is_probe(self) -> bool:
        """Whether the head alone trains."""
        return self.trainable == (HEAD,)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Stages in order.

    Attributes:
        name: of the built-in schedule or of its file.
        given: the blocks of each stage as they were written: names, positions, or one word.
        words: its name in a sentence.
        blocks: names of the network's blocks, head first; those of most networks, until `on`.
    """

    name: str
    given: tuple[tuple[str, ...], ...]
    words: str = field(default="", compare=False)
    blocks: tuple[str, ...] = field(default=BLOCKS, compare=False)

    def on(self, blocks: tuple[str, ...]) -> Schedule:
        """The schedule on a network of these blocks, head first.

        Raises:
            SettingsError: a stage that cannot be on these blocks; says which and why.
        """
        schedule = replace(self, blocks=blocks)
        assert schedule.stages
        return schedule

    def fits(self, blocks: tuple[str, ...]) -> bool:
        """Whether a network of these blocks, head first, has all that the stages name."""
        try:
            return bool(self._stages(blocks))
        except ValueError:
            return False

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages on `blocks`."""
        try:
            return self._stages(self.blocks)
        except _NoSuchBlockError as err:
            others = [one for one in SCHEDULES.values() if not one.is_continued]
            fitting = [one.name for one in others if one.fits(self.blocks)]
            todo = f": name one of these, or pass -P schedule={' or '.join(fitting)}"
            raise SettingsError(f"schedule {self._where}: {err}{todo}") from None
        except ValueError as err:
            raise SettingsError(f"schedule {self._where}: {err}") from None

    def _stages(self, blocks: tuple[str, ...]) -> tuple[Stage, ...]:
        stages: list[Stage] = []
        for number, given in enumerate(self.given, start=1):
            before = stages[-1].trainable if stages else ()
            try:
                trainable = _trainable(given, before, number - 1, blocks)
            except ValueError as err:
                raise type(err)(f"stage {number} {err}") from None
            stages.append(Stage(self.name, number, trainable))
        return tuple(stages)

    @property
    def _where(self) -> str:
        path = _FILES.get(str(self))
        return f"{self.name} ({path})" if path and self.name not in SCHEDULES else self.name

    @property
    def count(self) -> int:
        """How many stages there are."""
        return len(self.given)

    @property
    def length(self) -> str:
        """`3 stages`."""
        return f"{self.count} stage{'s' if self.count > 1 else ''}"

    def __str__(self) -> str:
        """The name of a built-in schedule; another one spelled out, so that no file is needed."""
        if SCHEDULES.get(self.name) == self:
            return self.name
        return f"{self.name}({'; '.join(map('+'.join, self.given))})"

    @property
    def is_continued(self) -> bool:
        """Whether a stage trains the blocks of the stage before: such schedules are controls."""
        return (CONTINUED,) in self.given

    def trains(self, count: int | None = None) -> list[tuple[str, ...]]:
        """The trainable blocks of the first `count` stages (None: of all)."""
        return [stage.trainable for stage in self.stages[:count]]

    def default_lr(
        self, number: int, *, has_batch_norm: bool, rates: Mapping[str, float] = LEARNING_RATES
    ) -> float:
        """The learning rate of stage `number` where nothing gives another."""
        head, pretrained, fitted = rates.values()
        if not has_batch_norm:
            pretrained, fitted = pretrained / WITHOUT_BATCH_NORM, fitted / WITHOUT_BATCH_NORM
        *before, stage = self.stages[:number]
        if stage.is_probe:
            return head
        return pretrained if all(one.is_probe for one in before) else fitted

    def stage(self, number: int) -> Stage:
        """Stage `number`.

        Raises:
            SettingsError: the schedule has no such stage.
        """
        if 1 <= number <= self.count:
            return self.stages[number - 1]
        fitting = [
            name
            for name, other in SCHEDULES.items()
            if other.count >= number and not other.is_continued
        ]
        raise SettingsError(
            f"schedule {self.name} has {self.length}, got stage {number}: run an earlier stage, "
            f"or pass -P schedule={' or '.join(fitting) or '<a YAML file with as many stages>'}"
        )


def _trainable(
    given: tuple[str, ...], before: tuple[str, ...], number_before: int, blocks: tuple[str, ...]
) -> tuple[str, ...]:
    """The blocks of a stage after one that trains `before`, head first.

    Raises:
        ValueError: what is wrong with the stage.
    """
    if given == (CONTINUED,):
        if not before:
            raise ValueError("has no stage before it to go on with: list its blocks")
        return before
    named = list(blocks) if given == (ALL,) else [_block(one, blocks) for one in given]
    if len(set(named)) < len(named):
        raise ValueError(f"names a block twice, got {', '.join(given)}: keep one")
    if HEAD not in named and not before:
        raise ValueError("must train the head, which is new: add head")
    if left := [block for block in before if block not in named]:
        raise ValueError(
            f"leaves out {' and '.join(left)}, which stage {number_before} trains: a stage trains "
            "what the stage before trains, and may add blocks"
        )
    if len(named) == len(before):
        raise ValueError(
            f"trains the same blocks as stage {number_before}: add a block, or write "
            f"`{CONTINUED}` where the stage is meant to go on with them"
        )
    return tuple(sorted(named, key=blocks.index))


class _NoSuchBlockError(ValueError):
    """A stage names a block that the network does not have."""


def _block(written: str, blocks: tuple[str, ...]) -> str:
    """The block of that name, or at that position from the head."""
    if written in blocks:
        return written
    if written.isdecimal() and 0 < int(written) < len(blocks):
        return blocks[int(written)]
    hint = did_you_mean(written, blocks)
    raise _NoSuchBlockError(
        f"names block {written}{hint} (the network has {', '.join(blocks)}, which are head and 1 "
        f"to {len(blocks) - 1})"
    )


def schedule_of(text: str) -> Schedule:
    """The schedule of that name, in that file, or spelled out so.

    Raises:
        SettingsError: there is none, or it cannot be used; says what is wrong with it.
    """
    if text in SCHEDULES:
        return SCHEDULES[text]
    if spelled := re.fullmatch(rf"({_NAME})\((.+)\)", text):
        stages = [[block.strip() for block in part.split("+")] for part in spelled[2].split(";")]
        schedule = Schedule(name=spelled[1], given=tuple(map(tuple, stages)), words=spelled[1])
    elif text.endswith((".yaml", ".yml")):
        schedule = read_schedule(typed_path(text))
        _FILES[str(schedule)] = text
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
    given = tuple(_as_written(stage, number, where) for number, stage in enumerate(stages, 1))
    return Schedule(name=path.stem, given=given, words=words)


def _as_written(stage: object, number: int, where: str) -> tuple[str, ...]:
    """The blocks of a stage in a file.

    Raises:
        SettingsError: the stage is not a list of names and positions.
    """
    listed = [stage] if stage in (ALL, CONTINUED) else stage
    if not isinstance(listed, list) or not listed or not all(map(_is_name, listed)):
        raise SettingsError(
            f"{where}: stage {number} must be a list of blocks (head, 1 for the last block before "
            f"it, 2, …, or names), `{ALL}` or `{CONTINUED}`, got {stage!r}"
        )
    return tuple(str(one) for one in listed)


def _is_name(one: object) -> bool:
    return isinstance(one, str | int) and re.fullmatch(_NAME, str(one)) is not None


def _rank(schedule: Schedule) -> tuple[bool, int, str]:
    return schedule.is_continued, -schedule.count, schedule.name


SCHEDULES: Mapping[str, Schedule] = {
    schedule.name: schedule
    for schedule in sorted(
        (read_schedule(path) for path in SCHEDULES_DIR.glob("*.yaml")), key=_rank
    )
}
"""The built-in schedules: those with most stages first, those that only go on with stages last."""
