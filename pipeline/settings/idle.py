"""Settings that change nothing beside the others: a line tells of each, and the command goes on.

In: what was typed, and the settings that it came to. Out: lines. What a setting needs stands in
`NEEDS` alone. Not covered: settings that do not go with the images, which `data/` refuses
(`test_per_class` where the data has a test split), and settings of the control alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.settings.augmentation import of_images
from pipeline.settings.layers import flatten, split_stage_key
from pipeline.settings.request import Request
from pipeline.settings.run import RUN_KEYS, TRAIN_KEYS, Settings, TrainSettings

Own = Mapping[str, Any]
"""The entry point's own settings, by key, those that were not given by their defaults."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What settings are judged by: `stages`, the numbers of those that a training setting sets."""

    own: Own
    settings: Settings
    stages: Sequence[int] = ()

    @property
    def tunes(self) -> bool:
        """Whether the command tunes, or takes tuned settings."""
        return bool(self.own.get("tune", self.own.get("tuned", "n_trials" in self.own)))

    @property
    def training(self) -> list[TrainSettings]:
        """The training settings of `stages`."""
        return [self.settings.training(number) for number in self.stages]

    @property
    def trains_blocks(self) -> bool:
        """Whether one of `stages` trains more than the head."""
        return any(self.settings.stage(number).trainable != ("head",) for number in self.stages)


@dataclass(frozen=True)
class Need:
    """What settings need to have an effect, and why they have none without.

    `{tuned}` in `why` is the option by which the command tunes.
    """

    keys: tuple[str, ...]
    met: Callable[[Case], bool]
    why: str


def _has_tasks(case: Case) -> bool:
    return bool(case.own["cluster"]) or case.own["workers"] > 1


def _is_varied(case: Case) -> bool:
    augments = [training.augment for training in case.settings.stages]
    return case.tunes or any(of_images(augment) != "none" for augment in augments)


_NO_TUNING = "nothing is tuned without {tuned}"
_NO_BATCH_NORM = "the network has no BatchNorm"
NEEDS = (
    Need(
        ("num_cpus", "num_gpus"),
        _has_tasks,
        "without workers=2 or more, or cluster=, everything is done in this process",
    ),
    Need(("num_gpus",), lambda case: case.settings.device != "cpu", "device=cpu takes no GPU"),
    Need(
        ("n_trials", "objective", "margin", "heartbeat", "tune_draws", "storage"),
        lambda case: case.tunes,
        _NO_TUNING,
    ),
    Need(("draws",), lambda case: case.tunes or "tune_draws" in case.own, _NO_TUNING),
    Need(
        ("refit",),
        lambda case: (
            "looks" not in case.own
            or case.own["register_as"] != "off"
            or case.own["refit"] == "off"
        ),
        "register_as=off registers nothing, so nothing is trained on all images",
    ),
    Need(
        ("question",),
        lambda case: not case.own["treatment"],
        "treatment and control say what is compared",
    ),
    Need(("cache_limit",), lambda case: case.settings.cache, "cache=off keeps nothing"),
    Need(("views",), _is_varied, "augment=none has one view of each image"),
    Need(("norm_stats",), lambda case: case.settings.has_batch_norm, _NO_BATCH_NORM),
    Need(("norm",), lambda case: case.settings.has_batch_norm, _NO_BATCH_NORM),
    Need(
        ("lr_decay",),
        lambda case: case.trains_blocks,
        "the stage trains the head alone, whose rate is lr",
    ),
    Need(
        ("patience",),
        lambda case: case.tunes or any(one.patience < one.epochs for one in case.training),
        "a stage has no more epochs than that",
    ),
    Need(
        ("enforce_gate", *(key for key in RUN_KEYS if key.startswith("gate_"))),
        lambda case: case.settings.chain.name == "three_stage",
        "the gate stands before stage 3 of the schedule three_stage alone",
    ),
)
"""In the order in which they are looked at: of several reasons the first is told."""


def idle_lines(
    request: Request,
    own: Own,
    usual: Own,
    settings: Sequence[Settings],
    silent: Collection[str] = (),
) -> list[str]:
    """A line for each reason why settings that were given have no effect.

    Args:
        request: what was typed; training settings may be for a single stage.
        own: the entry point's own settings.
        usual: what these are where they are not given.
        settings: of everything that the command runs; a setting has an effect where any needs it.
        silent: settings of which nothing is told.
    """
    of_runs = {**Settings.model_fields, **TrainSettings.model_fields}
    defaults = {**{key: field.default for key, field in of_runs.items()}, **usual}
    typed = {**flatten(request.file), **request.options}
    told: dict[str, list[str]] = {}
    if request.of_others:
        told["settings of other entry points"] = [*request.of_others]
    for key in dict.fromkeys([*request.own_in_file, *request.own, *typed]):
        number, name = split_stage_key(key)
        if key in silent or name not in defaults:
            continue
        cases = [
            Case(own=own, settings=one, stages=_stages(one, number, request.target))
            for one in settings
        ]
        values = [value for case in cases for value in _values(key, name, case)]
        if all(value == defaults[name] for value in values):
            continue
        for need in NEEDS:
            if name in need.keys and not any(need.met(case) for case in cases):
                why = need.why.format(tuned="tune=on" if "tune" in own else "tuned=on")
                told.setdefault(why, []).append(key)
                break
    return [
        f"note: {', '.join(keys)} {'has' if len(keys) == 1 else 'have'} no effect here: {why}"
        for why, keys in told.items()
    ]


def _stages(settings: Settings, number: int | None, target: int | None) -> list[int]:
    """The stages that a training setting is for."""
    asked = number or target
    every = range(1, len(settings.stages) + 1)
    return [n for n in every if asked in (None, n)]


def _values(key: str, name: str, case: Case) -> list[object]:
    """What a setting came to."""
    if name in TRAIN_KEYS:
        return [getattr(training, name) for training in case.training]
    return [case.own[key] if key in case.own else getattr(case.settings, name)]
