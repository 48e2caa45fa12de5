"""A study in MLflow: one run for the study, kept in step with what Optuna's storage says.

Optuna's storage is the truth about its own trials. A killed worker leaves runs that say RUNNING,
or a trial run that says FINISHED though its trial was given up: `reconcile` gives these runs their
trial's end, from any process. Other people who type the same command have a storage and a study
run of their own: nothing that is nested elsewhere is touched. In: a `Study` and a tracking store.
Out: MLflow runs that say the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from optuna.trial import TrialState

from pipeline.errors import LineageError
from pipeline.runs.session import Session
from pipeline.settings.run import plain_values
from pipeline.system.interrupts import check
from pipeline.system.network.addresses import file_of, without_password
from pipeline.system.processes import BEAT, KILLED_REASON, new_beat
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.keys import FAILURE, KIND, NESTED_UNDER, SCHEDULE, STAGE, STUDY, TRIAL
from pipeline.tuning.storage.trial_state import REASON, RUN_ID
from pipeline.tuning.study import Study
from pipeline.tuning.trials.objective import INTERRUPTED, STATE

WAIT_FOR_CREATOR_S = 60.0
PLACE = "storage_place"
"""Tag of a study's run: which file its storage is."""
LOST = "its worker stopped answering; the trial was queued again"
_ENDS = {
    TrialState.COMPLETE: ("FINISHED", "complete"),
    TrialState.PRUNED: ("KILLED", "pruned"),
    TrialState.FAIL: ("FAILED", "failed"),
}
"""The status of a trial's run, and its tag `trial_state`."""


def study_run(study: Study, session: Session, say: Callable[[str], None]) -> str:
    """The id of the study's MLflow run; the process that created the study starts it.

    Another process waits for the run, and starts one itself if the creator seems to have died, or
    the run is not in this tracking store, or belongs to the storage that this one is a copy of.
    """
    tracking, place = session.tracking, _place(study)
    end = time.monotonic() + (0.0 if study.created else WAIT_FOR_CREATOR_S)
    while True:
        run_id = study.optuna.user_attrs.get(RUN_ID)
        if run_id and _is_of(place, tracking, run_id):
            return str(run_id)
        if run_id or time.monotonic() >= end:
            break
        check()
        time.sleep(0.5)
    number, settings = study.spec.stage.number, session.settings
    digest = study.name.rpartition("-")[2]
    run_id = tracking.start(
        f"study · stage {number} · {session.draw.source} · {settings.backbone} · {digest}",
        {
            KIND: "study",
            STUDY: study.name,
            STAGE: str(number),
            SCHEDULE: study.spec.stage.schedule,
            "objective": study.spec.objective,
            "draws": " ".join(map(str, study.spec.draws)),
            "storage": without_password(study.storage.url),
            PLACE: place,
            "space": study.spec.space.source,
            BEAT: new_beat(),  # whoever works on the study renews the mark
        },
    )
    study.optuna.set_user_attr(RUN_ID, run_id)
    values = plain_values(settings, range(1, number + 1))
    tuned = {f"stage{number}.{key}" for key in study.spec.space.dimensions}
    tracking.writing(run_id).params({key: v for key, v in values.items() if key not in tuned})
    say(f"study {study.name}: run {run_id}")
    return run_id


def _place(study: Study) -> str:
    """The storage's file, by whatever path: a copy is another file. Empty for a server."""
    path = file_of(study.storage.url)
    return f"file {path.stat().st_ino}" if path else ""


def _is_of(place: str, tracking: Tracking, run_id: str) -> bool:
    """Whether there is such a run, made for this storage: earlier versions had no such tag."""
    try:
        return tracking.get(run_id).tags.get(PLACE, place) == place
    except LineageError:
        return False


def reconcile(study: Study, tracking: Tracking, run_id: str) -> int:
    """Give every trial run, and the stage runs in it, the end that its trial came to.

    Returns how many were changed. Runs of trials that still run are left alone, and so is all that
    is not nested in `run_id`, the study's own run.
    """
    trials = {trial.number: trial for trial in study.trials}
    mended = 0
    own = {KIND: "trial", STUDY: study.name, NESTED_UNDER: run_id}
    for run in tracking.find(own, status=None):
        trial = trials.get(run.number(TRIAL))
        if trial is None or not trial.state.is_finished():
            continue
        owns = trial.user_attrs.get(RUN_ID) == run.run_id
        if not owns and run.status != "RUNNING":
            continue
        status, state = _ENDS[trial.state if owns else TrialState.FAIL]
        stopped = run.status == "KILLED" and run.tags.get(STATE, INTERRUPTED) == INTERRUPTED
        killed = run.status == "FAILED" and run.tags.get(FAILURE) == KILLED_REASON
        if (run.status == status and not killed) or (status == "FAILED" and stopped):
            continue
        _end(tracking, run, status, str(trial.user_attrs.get(REASON, LOST)))
        tracking.writing(run.run_id).tags({STATE: state})
        mended += 1
    return mended


def _end(tracking: Tracking, run: RunView, status: str, reason: str) -> None:
    for child in tracking.find({NESTED_UNDER: run.run_id}, status="RUNNING"):
        tracking.writing(child.run_id).set_status("FAILED", reason)
    tracking.writing(run.run_id).set_status(status, "" if status == "FINISHED" else reason)
