"""The life of a trial: who ends it, when it is run again, what is never pruned or lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import Trial, TrialState

from pipeline.errors import TrackingError
from pipeline.settings.schedules import SCHEDULES
from pipeline.settings.search_space import Range, SearchSpace
from pipeline.tracking.history import History
from pipeline.tracking.keys import VAL, VAL_ACC
from pipeline.tuning.spec import Spec, suggest
from pipeline.tuning.storage.access import open_storage, patiently
from pipeline.tuning.storage.trial_state import RETRIES, beating, outcome
from pipeline.tuning.study import SPACE, Study
from pipeline.tuning.trials.objective import Ending, Pruned, Reporter, TrialSetup
from pipeline.tuning.trials.runner import TrialRunner
from tests.postgres import Postgres

pytestmark = pytest.mark.slow  # every test has a storage of its own, in three kinds
LR = SearchSpace("", {"lr": Range(low=1e-4, high=1e-2, log=True)})
SPEC = Spec(
    name="a-study",
    stage=SCHEDULES["full"].stage(1),
    draws=(0, 1),
    objective="val_acc",
    space=LR,
    tuning_key="key",
    fixed={},
    defaults={"lr": 1e-3},
)
MANY = 100
DATABASES = count()


@pytest.fixture(scope="module")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Optuna's tables without a study: creating them takes a second, copying them does not."""
    path = tmp_path_factory.mktemp("optuna") / "empty.db"
    open_storage(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, empty_sqlite: Path) -> str:
    """An empty storage of every kind; PostgreSQL where it is installed."""
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        return postgres.url(f"trials{next(DATABASES)}")
    path = tmp_path / f"optuna.{request.param}"
    if request.param == "sqlite":
        shutil.copy(empty_sqlite, path)
    return f"{request.param}:///{path}"


@pytest.fixture
def study(url: str) -> Study:
    return Study.join(open_storage(url), SPEC, seed=0)


def asked(study: Study, wanted: int = MANY) -> Trial:
    trial = study.ask(wanted)
    assert trial
    return trial


def outcomes(study: Study) -> list[str]:
    return [outcome(trial) for trial in study.optuna.trials]


class Store:
    """A tracking store that takes everything, once it is no longer away."""

    away = 0

    def writing(self, _run_id: str) -> Store:
        return self

    def set_status(self, _status: str) -> None:
        if self.away:
            self.away -= 1
            raise TrackingError("the store cannot be written")

    def metrics(self, _values: dict[str, float], step: int = 0) -> None:
        pass


def runner(study: Study, said: list[str] | None = None) -> TrialRunner:
    say = (said if said is not None else []).append
    tracking: Any = Store()
    setup = TrialSetup(sessions={}, tracking=tracking, run_id="run", deadline=None, say=say)
    return TrialRunner(study, setup)


def run_one(study: Study, objective: Any, said: list[str] | None = None) -> None:  # noqa: ANN401
    runner(study, said).attempt(asked(study), objective)


def give_up(study: Study, trial: Trial) -> None:
    """What another process does that takes this one for lost."""
    study.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def test_ctrl_c_stops_the_worker_whatever_became_of_its_trial(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_it_is(_: Trial) -> None:
        pass

    def with_the_storage_away(_: Trial) -> None:
        def away(*_: object, **__: object) -> None:
            raise StorageInternalError("away")

        monkeypatch.setattr(study.storage, "set_trial_state_values", away)

    def given_up(trial: Trial) -> None:
        give_up(study, trial)

    meanwhiles: list[Callable[[Trial], None]] = [as_it_is, given_up, with_the_storage_away]
    for meanwhile in meanwhiles:

        def objective(trial: Trial, meanwhile: Callable[[Trial], None] = meanwhile) -> Ending:
            meanwhile(trial)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_one(study, objective)
    monkeypatch.undo()
    assert outcomes(study) == ["interrupted", "interrupted", "running"]


def test_a_result_that_comes_too_late_is_dropped_and_the_worker_goes_on(study: Study) -> None:
    said: list[str] = []

    def objective(trial: Trial) -> Ending:
        give_up(study, trial)
        return Ending(TrialState.COMPLETE, 0.9)

    run_one(study, objective, said)
    assert said == ["note: trial 0 was given up meanwhile: result dropped"]
    run_one(study, lambda _: Ending(TrialState.COMPLETE, 0.5))
    assert outcomes(study) == ["interrupted", "complete"]
    assert study.optuna.trials[1].user_attrs["defaults"] == "inside the space"
    assert study.best
    assert study.best.value == 0.5


def test_a_trial_that_loses_its_storage_is_run_again(study: Study) -> None:
    said: list[str] = []

    def objective(_: Trial) -> Ending:
        raise StorageInternalError("away")

    run_one(study, objective, said)
    assert said == ["note: a trial was lost (away): it will be run again"]
    assert outcomes(study) == ["interrupted", "waiting"]


def test_the_next_trial_waits_until_runs_can_be_written_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(patiently.__kwdefaults__, "every_s", 0.05)  # it is 2 s
    said: list[str] = []

    def objective(_: Trial) -> Ending:
        raise TrackingError("away")

    one = runner(study, said)
    vars(one.setup.tracking)["away"] = 1
    one.attempt(asked(study), objective)
    assert one.setup.tracking.away == 0  # type: ignore[attr-defined]
    assert said[1:] == ["note: waiting for the storage or MLflow (the store cannot be written)"]


def test_a_trial_that_is_lost_again_and_again_ends_the_command(study: Study) -> None:
    def objective(_: Trial) -> Ending:
        raise TrackingError("files cannot be stored")

    for _ in range(RETRIES):
        run_one(study, objective)
    with pytest.raises(TrackingError, match="cannot be stored"):
        run_one(study, objective)
    assert outcomes(study) == ["interrupted"] * (RETRIES + 1) + ["waiting"]


def test_a_fault_of_the_program_is_not_kept_quiet(study: Study) -> None:
    def objective(_: Trial) -> Ending:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_one(study, objective)
    assert outcomes(study) == ["interrupted", "waiting"]


def test_the_defaults_are_queued_however_often_they_are_interrupted(study: Study) -> None:
    for number in range(RETRIES + 4):
        trial = asked(study)
        assert "defaults" in trial.user_attrs, number
        assert study.interrupt(trial)


def test_another_trial_is_queued_a_few_times(study: Study) -> None:
    study.optuna.tell(asked(study), 0.5)
    first = asked(study)
    rate = suggest(first, LR)["lr"]
    study.interrupt(first)
    for _ in range(RETRIES):
        trial = asked(study)
        assert suggest(trial, LR)["lr"] == rate
        study.interrupt(trial)
    assert suggest(asked(study), LR)["lr"] != rate


def test_whoever_asks_next_queues_what_a_lost_process_left_behind(study: Study) -> None:
    give_up(study, asked(study))  # and is lost before it has queued it again
    assert outcomes(study) == ["interrupted"]
    assert "defaults" in asked(study).user_attrs
    assert outcomes(study) == ["interrupted", "running"]


def test_a_lost_trial_ends_though_nobody_wants_another(study: Study) -> None:
    asked(study)
    study.storage.grace_period, study.storage.heartbeat_interval = 1, 1
    end = time.monotonic() + 30
    while outcomes(study) == ["running"] and time.monotonic() < end:
        study.end_lost_trials()
        time.sleep(0.1)
    assert outcomes(study) == ["interrupted"]


def test_trials_of_other_commands_are_told_of_once_while_they_are_waited_for(study: Study) -> None:
    said: list[str] = []
    one = runner(study, said)
    one.tell_wait()
    assert said == []
    first = asked(study)
    one.tell_wait()
    one.tell_wait()
    asked(study)
    give_up(study, first)
    one.tell_wait()
    assert ["trial 0 of another command" in line for line in said] == [True, False]
    assert "trial 1 of another command" in said[1]
    assert all("for 60 s without a sign of life at most" in line for line in said)


def test_a_trial_that_came_to_nothing_by_itself_is_not_repeated(study: Study) -> None:
    trial = asked(study)
    trial.set_user_attr("reason", "pruned after draw 0")
    give_up(study, trial)  # before its worker, which is lost, could say so
    assert "defaults" not in asked(study).user_attrs
    assert outcomes(study) == ["failed", "running"]
    assert study.finished() == 1


def test_the_defaults_are_never_pruned(study: Study) -> None:
    first = asked(study)
    for _ in range(5):
        trial = asked(study)
        for step in range(1, 11):
            trial.report(0.9, step)
        study.optuna.tell(trial, 0.9)
    other = asked(study)
    with pytest.raises(Pruned):
        Reporter(trial=other, spec=SPEC, earlier=[], deadline=None).finish(0.1)
    Reporter(trial=first, spec=SPEC, earlier=[], deadline=None).finish(0.1)
    assert first.should_prune()  # if Optuna were asked


def test_a_trial_that_goes_on_reports_the_epochs_before_as_they_were(study: Study) -> None:
    """The best so far at each of them, although the history knows better by now."""
    accuracies = (0.3, 0.5, 0.4, 0.7)
    rows = [
        {VAL[name]: 1 - acc for name in ("loss", "ece")} | {VAL_ACC: acc} for acc in accuracies
    ]
    seen = []
    for first in (1, 3):
        trial = asked(study)
        reporter = Reporter(trial=trial, spec=SPEC, earlier=[], deadline=None)
        for epoch in range(first, 5):
            selected = 2 if epoch < 4 else 4
            best = selected if epoch > 1 else 1
            reporter(SPEC.stage, History(planned=4, rows=rows[:epoch], selected=best))
        seen.append(study.trials[trial.number].intermediate_values)
    assert seen[0] == seen[1]
    assert [seen[0][step] for step in (2, 5, 7, 9)] == [0.3, 0.5, 0.5, 0.7]


def test_no_trial_is_one_too_many(study: Study) -> None:
    trial = asked(study, wanted=1)
    assert study.ask(1) is None
    study.optuna.tell(trial, 0.5)
    assert study.ask(1) is None
    assert study.ask(2)


def test_a_beat_that_is_missed_is_not_the_last_one(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, beats = asked(study), []

    def record(trial_id: int) -> None:
        beats.append(trial_id)
        if len(beats) < 3:
            raise StorageInternalError("away")

    monkeypatch.setattr(study.storage, "record_heartbeat", record)
    monkeypatch.setattr(study.storage, "heartbeat_interval", 0.01)
    with beating(study.storage, lambda: [trial._trial_id]):
        end = time.monotonic() + 30
        while len(beats) < 5 and time.monotonic() < end:
            time.sleep(0.01)
    assert len(beats) >= 5
    assert set(beats) == {trial._trial_id}


def test_a_study_has_one_pace_whoever_joins(study: Study) -> None:
    impatient = open_storage(study.storage.url, heartbeat_s=1)
    assert impatient.grace_period == 4
    Study.join(impatient, SPEC, seed=0)
    assert impatient.heartbeat_interval == 15
    assert impatient.grace_period == 60


def test_looking_for_a_study_does_not_begin_it(url: str) -> None:
    storage = open_storage(url)
    assert Study.find(storage, SPEC) is None
    assert optuna.get_all_study_names(storage) == []
    joined = Study.join(storage, SPEC, seed=0)
    found = Study.find(storage, SPEC)
    assert found
    assert found.optuna.user_attrs == joined.optuna.user_attrs


@pytest.mark.parametrize("steps", range(8))
def test_a_study_that_was_left_half_made_is_completed_by_whoever_joins(
    url: str, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    storage = open_storage(url)
    written = SimpleNamespace(count=0)

    def until_killed(write: Any) -> Any:  # noqa: ANN401
        def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if written.count == steps:
                raise SystemExit
            written.count += 1
            return write(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        for name in ("create_new_study", "set_study_user_attr", "create_new_trial"):
            patch.setattr(storage, name, until_killed(getattr(storage, name)))
        with pytest.raises(SystemExit):
            Study.join(storage, SPEC, seed=0)
    joined = Study.join(storage, SPEC, seed=0)
    assert joined.created
    assert joined.optuna.user_attrs[SPACE] == LR.plain()
    assert [trial.user_attrs for trial in joined.optuna.trials] == [
        {"defaults": "inside the space"}
    ]
    assert not Study.join(storage, SPEC, seed=0).created
