"""What to type after a finished stage, with the settings that the stage was run with.

In: settings of a run. Out: command lines that can be pasted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.data.base import Source
from pipeline.runs.messages.command_line import command_line, stage_entry_point
from pipeline.runs.sources import options_for_a_test
from pipeline.settings.entry import STORAGE
from pipeline.settings.request import Request
from pipeline.settings.run import (
    THRESHOLD_KEYS,
    TRAIN_KEYS,
    MachineSettings,
    Settings,
    plain_values,
)
from pipeline.settings.schedules import SCHEDULES, Schedule
from pipeline.system.network.addresses import without_password

_OF_A_RUN = ("draw", "seed", "schedule", "reuse", "enforce_gate", "patience")
"""What a decision or comparison sets itself, or refuses."""
_OF_A_COMMAND = ("draw", "reuse", "enforce_gate")
"""What another draw of the same recipe need not have."""
_NOT_INHERITED = (*MachineSettings.model_fields, *THRESHOLD_KEYS)
"""What no parent run hands down."""


def next_command(settings: Settings, number: int, run_id: str, source: Source) -> str:
    """The command that follows a stage: the next stage, then the question whether it is worth it.

    `three_stage` is judged by `decide`, stage 3 against stage 2; other schedules by `compare`.
    Where the data has no test split, images are set aside for that. What `compare` cannot take
    of the settings, those of single stages, is left out.
    """
    if number < len(settings.stages):
        values = _apart_from_preset(settings)[1]
        own = {k: v for k, v in values.items() if k in _NOT_INHERITED and k != "reuse"}
        if later := _of_later_stages(settings, number):
            own |= {"schedule": settings.schedule, **later}
        return command_line(stage_entry_point(number + 1), {**own, "parent_run_id": run_id})
    options = options_of(settings) | options_for_a_test(source, settings)
    schedule = settings.chain.name
    if schedule == "three_stage":
        return command_line("decide", options)
    # in a comparison, settings of a stage are those of the reference's stage of that number
    of_stages = TRAIN_KEYS if len(settings.stages) == 1 else ()
    options = {k: v for k, v in options.items() if "." not in k and k not in of_stages}
    others = (one.on(settings.order) for one in _rivals(settings))
    other = next(one for one in others if one.trains() != settings.chain.trains())
    options["schedules"] = f"{settings.schedule},{other}"
    if "full" not in (schedule, other.name):  # which is the baseline
        options["baseline"] = other
    return command_line("compare", options)


def _rivals(settings: Settings) -> Iterator[Schedule]:
    """Built-in schedules to compare with, the likeliest first, that the network has blocks for."""
    for name in ("full", "three_stage", "two_stage", "head_only"):
        if SCHEDULES[name].fits(settings.order):
            yield SCHEDULES[name]


def _of_later_stages(settings: Settings, number: int) -> dict[str, object]:
    """What later stages train by that is not the preset's: a run holds what was before it."""
    values = _apart_from_preset(settings)[1]
    later = tuple(f"stage{n}." for n in range(number + 1, len(settings.stages) + 1))
    return {key: value for key, value in values.items() if later and key.startswith(later)}


def next_lines(settings: Settings, number: int, run_id: str, source: Source) -> str:
    """The same in a description, as Markdown; after the last stage also how to use the model."""
    is_last = number == len(settings.stages)
    asked = "Is it worth it? Ask" if is_last else "Go on"
    lines = [f"{asked}: `{next_command(settings, number, run_id, source)}`"]
    if is_last:
        refit = command_line("refit", {"run_id": run_id})
        lines.append(f"The same recipe on all images: `{refit}`")
    return "\n\n".join(lines)


def as_asked(settings: Settings, norm_reason: str) -> Settings:
    """The settings with `norm_stats=auto` as it was asked for, not as what it came to.

    `norm_reason`: why it came to that; empty: a value was given.
    """
    return settings.model_copy(update={"norm_stats": "auto"}) if norm_reason else settings


def tuned_command(stage: str, options: Mapping[str, str], storage: str) -> str:
    """The command that trains with tuned settings, of a stage's number or of `all` stages.

    A storage whose address holds a password is not shown: it comes from the environment again.
    """
    entry_point = "main" if stage == "all" else stage_entry_point(int(stage))
    hidden = without_password(storage) != storage
    shown = {"storage": storage} if storage and not hidden else {}
    line = command_line(entry_point, {**options, **shown, "tuned": "true"})
    return f"{line} (with the same storage in {STORAGE})" if hidden else line


def options_of_sibling(settings: Settings, number: int) -> dict[str, object]:
    """The options of the stage command whose run differs from a run of these settings in draw.

    A plain training setting would be for that stage alone, so each stage's own are named.
    """
    named, values = _apart_from_preset(settings)
    stages = tuple(f"stage{n}." for n in range(1, number + 1))
    options = {
        **named,
        **{k: v for k, v in values.items() if "." not in k or k.startswith(stages)},
    }
    return {k: v for k, v in options.items() if k not in _OF_A_COMMAND}


def options_of(settings: Settings, known: int = 0) -> dict[str, object]:
    """The options, beside presets' values, that make these settings for other draws and seeds.

    `known`: up to which stage the settings are those of a run; 0: of all stages.
    """
    named, values = _apart_from_preset(settings)
    for key in TRAIN_KEYS:  # what all stages have in common is said once
        of_stages = [
            values.get(f"stage{n}.{key}") for n in range(1, (known or len(settings.stages)) + 1)
        ]
        if None not in of_stages and len(set(of_stages)) == 1:
            values = {k: v for k, v in values.items() if not k.endswith(f".{key}")}
            values[key] = of_stages[0]
    options = {**named, **values}
    return {k: v for k, v in options.items() if k.rpartition(".")[2] not in _OF_A_RUN}


def _apart_from_preset(settings: Settings) -> tuple[dict[str, str], dict[str, object]]:
    """What names the preset, data and network, and every other value that the preset has not."""
    base = {"preset": settings.preset, "data": settings.data}
    base |= {key: getattr(settings, key) for key in ("backbone", "weights", "blocks", "schedule")}
    usual: Mapping[str, object] = plain_values(Request(options=base).settings())
    values = {k: v for k, v in plain_values(settings).items() if v != usual.get(k)}
    bare = plain_values(Request(options={k: base[k] for k in ("preset", "data")}).settings())
    named = {k: v for k, v in base.items() if k in ("preset", "data") or v != bare[k]}
    return named, values
