"""The entry points that train a chain: settings, parent, and stages in their order.

In: a `StagePlan`, or the settings of every stage. Out: finished runs. `gate.py` and `runs.scoring`
hold the entry points that only read finished runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.entries.command_line.plans import StagePlan
from pipeline.reporting.page import to_markdown
from pipeline.runs.command import Command
from pipeline.runs.find_or_run import add_pictures_and_model, find_or_run, train_once
from pipeline.runs.floor import Floor, floor_on
from pipeline.runs.lineage import (
    WITHOUT_PARENT,
    check_agreement,
    check_parent,
    check_places,
    inherit,
)
from pipeline.runs.messages.beforehand import tell_beforehand
from pipeline.runs.messages.command_line import command_line
from pipeline.runs.messages.next_step import next_command
from pipeline.runs.messages.words import before_of, outcome_sentence, stage_name, summary_table
from pipeline.runs.resuming.once import Work
from pipeline.runs.session import Session
from pipeline.runs.stage_log import picture_line
from pipeline.settings.describe import without_thresholds
from pipeline.settings.request import Request
from pipeline.settings.run import (
    INHERITED_KEYS,
    PLACE_KEYS,
    Settings,
    plain_values,
)
from pipeline.signals.evidence import refresh_siblings, signals_of
from pipeline.stats.metrics import OBJECTIVES
from pipeline.system.text import in_columns
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.history import Summary
from pipeline.tracking.keys import KIND, LINEAGE_KEY, NAME, NORM_STATS_REASON, NOTE

if TYPE_CHECKING:
    from pipeline.tuning.storage.access import Storage


def stage_entry(command: Command, plan: StagePlan) -> Summary:
    """Entry points stage1, stage2, …: the stage's parent is given, found or trained."""
    number, settings = plan.number, plan.settings
    data = "" if plan.parent_run_id else settings.data_name  # a parent says which data
    tracking = Tracking.connect(f"stage {number} · {data}".rstrip(" ·"), data)
    with tracking.explained():
        studies = check_storage(command, tracking, must_exist=True) if command.tuned else None
        parent: RunView | None = None
        if plan.parent_run_id:
            parent = tracking.get(plan.parent_run_id)
            check_parent(parent, number)
            tracking.follow(parent)
            settings = _inheriting(command, plan, parent)
        session = Session.open(settings, tracking, command.say, command.on_epoch)
        tell_beforehand(session.source, session.settings, command.say)
        if parent:  # a run of the same images stands for the stage before
            session.advice = f", or {WITHOUT_PARENT}"
            session.check_images(parent)
            session.restore(parent)  # what is damaged is told before a run is started
            session.keys[number - 1] = parent.tags[LINEAGE_KEY]
            session.norm_reason = parent.tags.get(NORM_STATS_REASON, "")
        stages = [number] if parent else range(1, number + 1)
        session = _tuned(plan.request, session, stages, studies)
        if not parent and number > 1:
            if note := plan.request.note_on_earlier_stages(session.settings):
                command.say(f"note: {note}")
            parent = tracking.get(find_or_run(session, number - 1).run_id)
        earlier = Work.of_stage(session, number).finished(command.started)
        summary = train_once(session, number, parent, target=True, known=earlier)
        if summary.reused:  # another command that was started at the same time has trained it
            add_pictures_and_model(session, number, summary.run_id)
            tracking.name_launched(f"stage {number} · reused", "reuse", summary.run_id)
        if number == 1:
            _floor(session, summary.run_id)
        refresh_siblings(tracking, command.say)
    command.say(f"next: {next_command(session.asked, number, summary.run_id, session.source)}")
    command.say(tracking.how_to_browse)
    return summary


def _inheriting(command: Command, plan: StagePlan, parent: RunView) -> Settings:
    """The plan's settings on top of those that the parent run hands down."""
    inherited = inherit(parent)
    settings = plan.request.settings(inherited, parent.run_id)
    check_agreement(settings, parent)
    check_places(settings, parent)
    settings = settings.model_copy(update={"norm_stats": parent.settings["norm_stats"]})
    taken = ", ".join(
        f"{key}={value}"
        for key in INHERITED_KEYS
        if (value := inherited.get(key, "")) != ""
        and not (key in PLACE_KEYS and getattr(settings, key) != value)
    )
    command.say(f"inherited from run {parent.run_id} ({parent.name}): {taken}")
    return settings


def _floor(session: Session, run_id: str) -> Floor | None:
    """Stage 0 of a session's images, on the run of stage 1; prints what it came to."""
    floor = floor_on(session, session.tracking.get(run_id))
    if floor:
        session.say(floor.sentence)
    return floor


def check_storage(command: Command, tracking: Tracking, *, must_exist: bool = False) -> Storage:
    """Open the storage of studies, before anything is read for them.

    Raises:
        StudyError: the storage cannot be used, or is a file that `must_exist` and does not.
    """
    from pipeline.tuning.storage.access import open_storage, storage_url

    return open_storage(storage_url(command.storage, tracking.uri), must_exist=must_exist)


def _tuned(
    request: Request, session: Session, stages: Sequence[int], studies: Storage | None
) -> Session:
    """The session with the settings of matching studies; as it is where `studies` is None."""
    if studies is None:
        return session
    from pipeline.tuning.reuse import with_tuned

    explicit = {number: request.explicit_keys(number) for number in stages}
    return with_tuned(session, list(stages), explicit, studies)


def best_of(rows: Sequence[Summary], select: str) -> Summary:
    """The stage that is best by the metric that `select` names, the earlier one of equals."""
    objective = OBJECTIVES[select]

    def rank(row: Summary) -> tuple[float, float]:
        val = {name.removeprefix("val_"): value for name, value in row.val.items()}
        return objective.rank(val) if objective.metric in val else (row.val_acc, 0.0)

    return max(rows, key=rank)


def main_entry(command: Command, settings: Settings) -> list[Summary]:
    """Entry point main: every stage of the schedule, and a run that sums them up."""
    data = settings.data_name
    name = f"{settings.stage(1).schedule} · {data} · {settings.backbone} · draw {settings.draw}"
    tracking = Tracking.connect(name, data)
    with tracking.explained():  # wrong images are refused before a run is started
        studies = check_storage(command, tracking, must_exist=True) if command.tuned else None
        session = Session.open(settings, tracking, command.say, command.on_epoch)
        tell_beforehand(session.source, session.settings, command.say)
        numbers = range(1, len(settings.stages) + 1)
        session = _tuned(command.request, session, numbers, studies)
    with tracking.run(name, {KIND: "chain"}, target=True) as log:
        values = plain_values(session.settings)
        rows = [find_or_run(session, number, log.run_id) for number in numbers]
        floor = _floor(session, rows[0].run_id)
        for row in rows:
            add_pictures_and_model(session, row.number, row.run_id)
        refresh_siblings(tracking, command.say)
        log.params(without_thresholds(values))
        log.metrics(floor.metrics if floor else {})
        for row in rows:
            prefix = f"stage{row.number}"
            log.metrics({f"{prefix}/{name}": value for name, value in row.val.items()})
            log.tags({f"{prefix}_run_id": row.run_id})
        table = summary_table(rows, floor.rows if floor else ())
        last = rows[-1]
        run, count = tracking.get(last.run_id), len(session.draw.val)
        signals = signals_of(tracking, run)
        told = (f(session.settings, last.number) for f in (stage_name, before_of))
        sentence = outcome_sentence(
            next(told), last.val_acc, count, signals, next(told), balanced=last.balanced
        )
        then = next_command(session.asked, last.number, last.run_id, session.source)
        picture = picture_line(last.run_id, "figures/chain.png") if len(rows) > 1 else ""
        page = to_markdown("chain", sentence=sentence, then=then, name=name, table=table)
        reached = ", ".join(f"{row.val_acc:.1%}" for row in rows)
        log.tags({NOTE: f"{page}\n{picture}\n", NAME: f"{reached} · {name}"})
        log.text(page, "summary.md")
        log.text(json.dumps(values, indent=2) + "\n", "settings.json")
    best = best_of(rows, session.settings.training(last.number).select)
    refit = command_line("refit", {"run_id": best.run_id})
    command.say(f"\nthe model to use (stage {best.number} is best on validation images): {refit}")
    command.say(f"\n{in_columns(table)}")
    if floor and (remark := floor.remark(rows[-1].number, rows[-1].val_acc)):
        command.say(remark)
    command.say(f"\n{sentence}\nnext: {then}")
    command.say(tracking.how_to_browse)
    return rows
