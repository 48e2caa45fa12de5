"""A study in MLflow: one run for the study, kept in step with what Optuna's storage says.

Optuna's storage is the truth. A worker that is killed leaves runs behind that say RUNNING, or a
trial run that says FINISHED though its trial was given up: `reconcile` sets them right, from any
process. In: a `Study` and a tracking store. Out: MLflow runs that say the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from optuna.trial import FrozenTrial, TrialState

from pipeline.errors import LineageError
from pipeline.owners import KILLED_REASON
from pipeline.session import Session
from pipeline.settings import plain_values
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.store import NESTED_UNDER
from pipeline.tuning.study import Study
from pipeline.tuning.trial import INTERRUPTED, STATE
from pipeline.tuning.trials import REASON, RUN_ID

WAIT_FOR_CREATOR_S = 60.0
LOST = "its worker stopped answering; the trial was queued again"
_STATUS = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
    TrialState.RUNNING: "RUNNING",
    TrialState.WAITING: "RUNNING",
}


def study_run(
    study: Study,
    session: Session,
    storage_shown: str,
    say: Callable[[str], None],
    wait_s: float = WAIT_FOR_CREATOR_S,
) -> str:
    """The id of the study's MLflow run; the process that created the study starts it.

    Another process waits for it, and starts one itself if the creator seems to have died, or the
    run is not in this tracking store.
    """
    tracking = session.tracking
    end = time.monotonic() + (0.0 if study.created else wait_s)
    while True:
        run_id = study.optuna.user_attrs.get(RUN_ID)
        if run_id and _exists(tracking, run_id):
            return str(run_id)
        if run_id or time.monotonic() >= end:
            break
        time.sleep(0.5)
    number, settings = study.spec.stage.number, session.settings
    digest = study.name.rpartition("-")[2]
    name = f"study · stage {number} · {session.draw.source} · {settings.backbone} · {digest}"
    run_id = tracking.start(
        name,
        {
            "kind": "study",
            "study": study.name,
            "stage": str(number),
            "schedule": study.spec.stage.schedule,
            "objective": study.spec.objective,
            "draws": " ".join(map(str, study.spec.draws)),
            "storage": storage_shown,
            "space": study.spec.space.source,
        },
    )
    study.optuna.set_user_attr(RUN_ID, run_id)
    values = plain_values(settings, range(1, number + 1))
    tuned = {f"stage{number}.{key}" for key in study.spec.space.dimensions}
    tracking.add_params(run_id, {key: v for key, v in values.items() if key not in tuned})
    say(f"study {study.name}: run {run_id}")
    return run_id


def _exists(tracking: Tracking, run_id: str) -> bool:
    try:
        tracking.get(run_id)
    except LineageError:
        return False
    return True


def reconcile(study: Study, tracking: Tracking) -> int:
    """Give every trial run, and the stage runs in it, the end that its trial came to.

    Returns how many were set right. Runs of trials that are still running are left alone.
    """
    trials = {trial.number: trial for trial in study.optuna.get_trials(deepcopy=False)}
    mended = 0
    for run in tracking.find({"kind": "trial", "study": study.name}, status=None):
        trial = trials.get(int(run.tags["trial"]))
        if trial is None or not trial.state.is_finished():
            continue
        owns = trial.user_attrs.get(RUN_ID) == run.run_id
        wanted = _STATUS[trial.state] if owns else "FAILED"
        stopped = run.status == "KILLED" and run.tags.get(STATE, INTERRUPTED) == INTERRUPTED
        killed = run.status == "FAILED" and run.tags.get("failure") == KILLED_REASON
        if (run.status == wanted and not killed) or (wanted == "FAILED" and stopped):
            continue
        _end(tracking, run, wanted, _reason(trial))
        mended += 1
    return mended


def _end(tracking: Tracking, run: RunView, status: str, reason: str) -> None:
    for child in tracking.find({NESTED_UNDER: run.run_id}, status="RUNNING"):
        tracking.set_status(child.run_id, "FAILED", reason)
    tracking.set_status(run.run_id, status, "" if status == "FINISHED" else reason)
    state = {"FINISHED": "complete", "KILLED": "pruned"}.get(status, "failed")
    tracking.add_tags(run.run_id, {STATE: state})


def _reason(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get(REASON, LOST))
