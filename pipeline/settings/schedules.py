"""Schedules and their stages, as frozen data.

A *stage* is one training run with a fixed set of trainable blocks; a *schedule* is an ordered list
of stages, each started from the checkpoint of the one before. Blocks are named head first; every
backbone has the same six (see `backbones.py`).

Sources: gradual unfreezing, Howard & Ruder 2018 (arXiv 1801.06146); linear probe, then fine-tune,
Kumar et al. 2022 (arXiv 2202.10054).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import SettingsError

BLOCKS = ("head", "block4", "block3", "block2", "block1", "stem")
"""Every block, head first: a block's index is its depth."""


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


def _schedule(name: str, *trainable: tuple[str, ...]) -> tuple[Stage, ...]:
    return tuple(Stage(name, number, blocks) for number, blocks in enumerate(trainable, start=1))


SCHEDULES: dict[str, tuple[Stage, ...]] = {
    "three_stage": _schedule(
        "three_stage", ("head",), ("head", "block4"), ("head", "block4", "block3")
    ),
    "two_stage": _schedule("two_stage", ("head", "block4"), ("head", "block4", "block3")),
    "full": _schedule("full", BLOCKS),
    "lp_ft": _schedule("lp_ft", ("head",), BLOCKS),
    "head_only": _schedule("head_only", ("head",)),
    # control arms: the stage before, gone on with instead of releasing another block
    "stage1_continued": _schedule("stage1_continued", ("head",), ("head",)),
    "stage2_continued": _schedule(
        "stage2_continued", ("head",), ("head", "block4"), ("head", "block4")
    ),
}

CONTROLS = ("stage1_continued", "stage2_continued")
"""Schedules that only serve a comparison."""


def get_stage(schedule: str, number: int) -> Stage:
    """Stage `number` of `schedule`.

    Raises:
        SettingsError: the schedule has no such stage.
    """
    stages = SCHEDULES[schedule]
    if not 1 <= number <= len(stages):
        fitting = [
            name
            for name, steps in SCHEDULES.items()
            if len(steps) >= number and name not in CONTROLS
        ]
        raise SettingsError(
            f"schedule {schedule} has {len(stages)} stage{'s' if len(stages) > 1 else ''}, "
            f"got stage {number}: run an earlier stage, or pass -P schedule="
            f"{' or '.join(fitting) or 'another'}"
        )
    return stages[number - 1]
