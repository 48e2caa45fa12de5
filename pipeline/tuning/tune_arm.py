"""Tuning an arm of a decision: its stages, one study each, on draws that the decision never uses.

In: an arm. Out: the same arm with the best settings found, and what they were found to be worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipeline.cluster.dispatcher import Cluster
from pipeline.comparing.arms import Arm, TunedArm
from pipeline.errors import LineageError, SettingsError, StudyError
from pipeline.runs.command import Command
from pipeline.settings.entry import TuneSettings
from pipeline.settings.search_space import TunePlan, default_space, read_space
from pipeline.stats.metrics import OBJECTIVES
from pipeline.tracking import Tracking
from pipeline.tuning.storage.access import open_storage, storage_url
from pipeline.tuning.storage.trial_state import RUN_ID
from pipeline.tuning.study import AFTER_FAILURES
from pipeline.tuning.work import work


def tune_arm(
    command: Command,
    tracking: Tracking,
    tune: TuneSettings,
    arm: Arm,
    fixed: Mapping[int, set[str]],
    cluster: Cluster | None = None,
) -> TunedArm:
    """Studies of an arm's stages, each from the best of the one before.

    `fixed`: the stages, in order, and the settings of each that are not tuned. `cluster`: where
    trials run; None: in this process.

    Raises:
        SettingsError: nothing is left to tune, or patience.
        StudyError: a study without a completed trial, or without all of its trials.
    """
    spaces = {}
    for number, kept in fixed.items():
        space = read_space(default_space(arm.schedule, number))
        if "patience" in space.dimensions:
            raise SettingsError(
                f"{space.source}: patience cannot be tuned here, arms have equal optimizer steps "
                "and may not stop early: take it out"
            )
        spaces[number] = space.without(kept, f"{arm.words}, stage {number}")
    storage = open_storage(storage_url(command.storage, tracking.uri), tune.heartbeat)
    done = work(command, TunePlan(tune, arm.settings, spaces), tracking, storage, cluster)
    settings = arm.settings
    for one in done:
        if one.choice is None:
            failure = one.study.failure or f"no trial of study {one.study.name} was completed"
            raise StudyError(f"{arm.words}, stage {one.number}: {failure}: {AFTER_FAILURES}")
        settings = settings.with_training(one.number, one.settings)
        chosen = one.choice.trial
    if not all(one.finished for one in done) or len(done) < len(spaces):
        raise StudyError(
            f"{arm.words}: timeout={tune.timeout:g} s was over before the studies had their "
            "trials: the same command goes on with them"
        )
    try:
        metrics = tracking.get(str(chosen.user_attrs.get(RUN_ID, ""))).metrics
    except LineageError:
        metrics = {}
    return TunedArm(
        arm=replace(arm, settings=settings),
        val={name: value for name, value in metrics.items() if name in OBJECTIVES},
        studies={one.number: one.study.name for one in done},
        run_ids=tuple(one.run_id for one in done),
    )
