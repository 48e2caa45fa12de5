"""Entry point tune: a study for each stage, by one process or many, here or on other machines.

In: what was typed. Out: studies in Optuna's storage, runs in MLflow, a summary. Any number of
commands may work on one study; each asks for the next trial until the study has enough, then
waits for the trials of others, to take over the trials of lost commands. A command runs its trials
itself, or has the tasks of a cluster run them.
"""

from __future__ import annotations

import time

from pipeline.cluster.dispatcher import Cluster, cluster_of
from pipeline.errors import StudyError
from pipeline.runs.command import Command
from pipeline.runs.messages.beforehand import tell_beforehand
from pipeline.runs.messages.next_step import tuned_command
from pipeline.runs.session import Session
from pipeline.runs.sources import check_draws, source_and_weights
from pipeline.settings.describe import without_thresholds
from pipeline.settings.entry import TuneSettings
from pipeline.settings.run import plain_values
from pipeline.settings.search_space import Choices, TunePlan
from pipeline.system.network.addresses import without_password
from pipeline.system.text import as_sentence
from pipeline.tracking import Tracking
from pipeline.tracking.keys import KIND, NOTE
from pipeline.tuning.report import summary
from pipeline.tuning.spec import Spec
from pipeline.tuning.storage.access import (
    Storage,
    for_optunas_commands,
    open_storage,
    storage_url,
    translated,
)
from pipeline.tuning.study import AFTER_FAILURES
from pipeline.tuning.worker import Tuned, Worker


def tune_entry(command: Command, plan: TunePlan) -> list[Tuned]:
    """Entry point tune: work on the studies until they have their trials, or time is over.

    Raises:
        StudyError: a study has all its trials and no value.
    """
    tune, settings = plan.tune, plan.settings
    tracking = Tracking.connect(f"tune · {settings.data_name}", settings.data_name)
    with (
        tracking.explained(),
        cluster_of(tune, settings.device, command.say) as cluster,
    ):
        url = storage_url(command.storage, tracking.uri)
        if cluster:
            cluster.check_stores(tracking.uri, url)
        draws = range(settings.draw, settings.draw + tune.draws)
        source, _ = source_and_weights(settings)
        check_draws(source, settings, draws)
        storage = open_storage(url, tune.heartbeat)
        tell_beforehand(source, settings, command.say)
        _tell_what_is_not_inherited(command, plan)
        data, schedule = settings.data_name, settings.stage(1).schedule
        name = f"tune · {data} · {settings.backbone} · {schedule} · stage {tune.stage}"
        with tracking.run(name, {KIND: "tune"}, target=True) as log:
            log.params({**without_thresholds(plain_values(settings)), **tune.model_dump()})
            log.tags({"storage": without_password(url)})
            done = work(command, plan, tracking, storage, cluster)
            for one in done:
                stage = f"stage{one.number}"
                log.tags({f"study.{stage}": one.study.name, f"run.{stage}": one.run_id})
                if best := one.study.best:
                    log.metrics({f"{stage}/best_value": best.value or 0.0})
            sentences = [f"**{as_sentence(summary(one.study))}**" for one in done]
            log.tags({NOTE: "\n\n".join(sentences)})
            for one in done:
                if one.finished and one.study.failure:
                    raise StudyError(f"{one.study.failure}: {AFTER_FAILURES}")
    if len(done) == len(plan.spaces) and all(one.finished for one in done):
        settled = "use the tuned settings"
        if not any(one.settings for one in done):
            settled = "the defaults stay, tuned=true takes them, too"
        typed = command.request.typed.items()
        options = {key: value for key, value in typed if key not in TuneSettings.model_fields}
        command.say(f"{settled}: {tuned_command(tune.stage, options, command.storage)}")
    command.say(f"look at the studies: optuna-dashboard {for_optunas_commands(url)}")
    command.say(tracking.how_to_browse)
    return done


def _tell_what_is_not_inherited(command: Command, plan: TunePlan) -> None:
    if plan.tune.stage != "all":
        own = command.request.for_stage(int(plan.tune.stage))
        if note := own.note_on_earlier_stages(plan.settings):
            command.say(f"note: {note}")


def work(
    command: Command,
    plan: TunePlan,
    tracking: Tracking,
    storage: Storage,
    cluster: Cluster | None = None,
) -> list[Tuned]:
    """Work on each stage's study in turn, each from the best of the one before.

    `cluster`: where trials run; None: in this process.
    """
    tune, settings = plan.tune, plan.settings
    deadline = time.monotonic() + tune.timeout if tune.timeout else None
    sessions = {
        draw: Session.open(
            settings.model_copy(update={"draw": draw}), tracking, command.say, command.on_epoch
        )
        for draw in range(settings.draw, settings.draw + tune.draws)
    }
    first = next(iter(sessions.values()))
    for number, space in plan.spaces.items():
        augments = space.dimensions.get("augment")
        for augment in augments.values if isinstance(augments, Choices) else ():
            first.with_training(number, {"augment": augment})  # refused before a study is made
    done: list[Tuned] = []
    for number, space in plan.spaces.items():
        spec = Spec.of(sessions, number, space, tune.objective)
        with translated(storage.url):
            worker = Worker(
                spec=spec.as_known(storage),
                sessions=sessions,
                tracking=tracking,
                storage=storage,
                tune=tune,
                deadline=deadline,
                say=command.say,
                cluster=cluster,
            )
            one = worker.work()
        done.append(one)
        if one.study.best is None or not one.finished:
            break
        sessions = {d: s.with_training(number, one.settings) for d, s in sessions.items()}
        for session in sessions.values():
            session.tuned_by[number] = one.study.name
    return done
