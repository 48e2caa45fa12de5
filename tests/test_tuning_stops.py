"""Studies that are cut short: by time, Ctrl-C, lost workers, faults; what is left, who goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import mlflow
import optuna
import pytest
from optuna.trial import TrialState

from pipeline.cluster.dispatcher import Cluster
from pipeline.entries.command_line.table import perform
from pipeline.errors import LineageError
from pipeline.runs.resuming.stopped import ENDING
from pipeline.runs.session import Session
from pipeline.settings.entry import TuneSettings
from pipeline.settings.search_space import tune_plan
from pipeline.system.disk.databases import exclusively
from pipeline.tracking import Tracking
from pipeline.tuning.mirror import LOST, reconcile, study_run
from pipeline.tuning.spec import Spec
from pipeline.tuning.storage.access import open_storage, storage_url
from pipeline.tuning.study import Study
from pipeline.tuning.trials.objective import OutOfTime, TrialSetup
from pipeline.tuning.trials.runner import TrialRunner
from pipeline.tuning.trials.tasks import Task, TrialWork, run_on
from pipeline.tuning.worker import Worker
from tests import forked
from tests.conftest import MOBILENET, TINY, Command, words_of
from tests.forked import Forked, wait_until
from tests.helpers import request_of
from tests.test_run_stage import artifact, runs
from tests.test_tuning import space_file, studies

LONG = {"stage1.epochs": "300"}
"""Some seconds: a trial that runs when a signal comes."""


@pytest.fixture
def options(store: Path, image_folder: Path) -> dict[str, str]:
    """What `tune` is told: stage 1, a small space, one trial."""
    own = {"data": str(image_folder), "cache_dir": str(store / "cache")}
    space = space_file(store, "lr: [3.0e-3, 1.0e-2]\n")
    return {**own, **TINY, "stage": "1", "n_trials": "1", "space": space}


def opened(options: dict[str, str]) -> tuple[Tracking, Session, Spec]:
    """What a worker on these options has before it begins."""
    plan = tune_plan(request_of("tune", options))
    tracking = Tracking.connect()
    session = Session.open(plan.settings, tracking, lambda _: None)
    [(number, space)] = plan.spaces.items()
    return tracking, session, Spec.of({0: session}, number, space, plan.tune.objective)


def begun(options: dict[str, str]) -> Study:
    """The study that `tune` works on, begun by another worker that beats every second."""
    tracking, session, spec = opened(options)
    url = storage_url("", tracking.uri)
    study = Study.join(open_storage(url, heartbeat_s=1), spec, seed=0)
    study_run(study, session, lambda _: None)
    return study


def ends(kind: str) -> list[str]:
    found = runs(kind)
    return list(found["status"]) if len(found) else []


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.trials]


def start_tune(options: dict[str, str], *, until: str = "stage") -> Forked:
    """`tune` in a process of its own, in the middle of a run of that kind."""
    process = forked.start(words_of("tune", options), Path(), Path("output.txt").absolute())
    wait_until(lambda: "RUNNING" in ends(until), process)
    return process


def test_a_command_without_time_begins_no_trial_and_the_next_one_goes_on(
    command: Command, options: dict[str, str], capfd: pytest.CaptureFixture[str], store: Path
) -> None:
    assert command("tune", **options, timeout="0.001") == 0
    assert "the command's timeout is over: the same command goes on" in capfd.readouterr().out
    assert ends("trial") == []
    assert ends("study") == ["KILLED"]
    assert runs("study")["tags.failure"][0] == "stopped before it had all its trials"
    assert command("tune", **options) == 0
    assert ends("study") == ["FINISHED"]
    assert "tags.failure" not in runs("study")
    assert states(studies(store)[0]) == ["COMPLETE"]


def test_a_trial_that_runs_out_of_time_is_queued_again(
    command: Command, options: dict[str, str], store: Path
) -> None:
    tracking, session, spec = opened(options)
    url = storage_url("", tracking.uri)
    storage = open_storage(url)
    said: list[str] = []
    for seconds in (1, 4, 16, 64):  # once the machine is fast enough to get as far as the lock
        deadline, held = time.monotonic() + seconds, threading.Event()

        def hold(deadline: float = deadline, held: threading.Event = held) -> None:
            with exclusively(url):
                held.set()
                while time.monotonic() <= deadline:
                    time.sleep(0.01)

        holder = threading.Thread(target=hold)
        one = TuneSettings(n_trials=1)

        def say(
            line: str, holder: threading.Thread = holder, held: threading.Event = held
        ) -> None:
            said.append(line)
            if "0 of 1 trials so far" in line:  # it is about to ask for one
                holder.start()
                held.wait()

        Worker(
            spec=spec,
            sessions={0: session},
            tracking=tracking,
            storage=storage,
            tune=one,
            deadline=deadline,
            say=say,
        ).work()
        holder.join()
        if ends("trial"):
            break
    [study] = studies(store)
    assert states(study) == ["FAIL", "WAITING"]
    assert study.trials[0].params == study.trials[1].params == {"lr": 3e-3}
    assert "reason" not in study.trials[0].user_attrs
    assert ends("trial") == ends("stage") == ends("study") == ["KILLED"]
    assert runs("trial")["tags.failure"][0] == "the command's timeout is over"
    client = mlflow.MlflowClient()
    assert len(client.get_metric_history(runs()["run_id"][0], "acc/val")) < 2
    assert "note: the command's timeout is over: the same command goes on" in " ".join(said)
    assert command("tune", **options) == 0
    [study] = studies(store)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["defaults"] == "inside the space"
    assert ends("trial") == ["KILLED", "FINISHED"]
    assert ends("stage") == ["FINISHED"]  # which goes on in the second trial
    assert ends("study") == ["FINISHED"]


@pytest.mark.slow
def test_ctrl_c_marks_every_run_killed_and_the_same_command_goes_on(
    command: Command, options: dict[str, str], store: Path
) -> None:
    process = start_tune({**options, **LONG})
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130, process.said()
    said = process.said()
    assert "stopped: what ran is marked KILLED" in said
    assert "Traceback" not in said
    for kind in ("tune", "study", "trial", "stage"):
        assert ends(kind) == ["KILLED"], kind
    for kind in ("tune", "trial", "stage"):
        assert runs(kind)["tags.failure"][0] == "stopped by Ctrl-C or a signal"
    [study] = studies(store)
    assert states(study) == ["FAIL", "WAITING"]
    assert command("tune", **{**options, **LONG}) == 0
    [study] = studies(store)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[0].params == study.trials[1].params
    assert ends("study") == ["FINISHED"]
    assert ends("trial") == ["KILLED", "FINISHED"]


@pytest.mark.slow
def test_the_trial_of_a_killed_worker_is_taken_over_and_its_runs_end(
    command: Command, options: dict[str, str], store: Path
) -> None:
    options |= {**LONG, "heartbeat": "1"}
    process = start_tune(options)
    wait_until(lambda: any(Path("cache", "unfinished").glob(f"*{ENDING}")), process)
    process.kill()
    assert ends("trial") == ends("stage") == ["RUNNING"]
    assert command("tune", **options) == 0
    [study] = studies(store)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[1].params == study.trials[0].params
    assert study.trials[1].user_attrs["defaults"] == "inside the space"
    assert ends("trial") == ["FAILED", "FINISHED"]
    assert ends("stage") == ["FINISHED"]  # the second trial goes on in it
    assert runs("trial")["tags.failure"][0] == LOST
    assert runs("tune")["tags.failure"][0] == "its process was killed"
    assert ends("tune") == ["FAILED", "FINISHED"]
    assert list(runs("trial")["tags.trial_state"]) == ["failed", "complete"]
    assert runs("study")["metrics.trials/failed"][0] == 0
    assert runs("study")["metrics.trials/interrupted"][0] == 1


def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_taken_over(
    command: Command, options: dict[str, str], store: Path
) -> None:
    study = begun(options)
    study.optuna.ask()
    assert states(study.optuna) == ["RUNNING"]
    assert command("tune", **options, heartbeat="1", timeout="90") == 0
    assert states(studies(store)[0]) == ["FAIL", "COMPLETE"]
    assert studies(store)[0].trials[1].params == {"lr": 3e-3}


def test_a_worker_that_is_alive_is_waited_for(
    command: Command, options: dict[str, str], store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = begun(options)
    trial, over = study.optuna.ask(), threading.Event()

    def beat() -> None:
        while not over.wait(0.5):
            study.storage.record_heartbeat(trial._trial_id)

    heart = threading.Thread(target=beat)
    heart.start()
    assert command("tune", **options, heartbeat="1", timeout="9") == 0
    assert states(study.optuna) == ["RUNNING"]
    assert ends("study") == ["RUNNING"]
    assert capfd.readouterr().out.count("waiting for trial 0 of another command") == 1
    over.set()
    heart.join()


def test_no_study_is_left_running_by_a_parent_that_cannot_be_trained(
    command: Command, options: dict[str, str]
) -> None:
    hopeless = {
        "backbone": MOBILENET,
        "schedule": "lp_ft",
        "stage1.lr": "100",
        "stage1.optimizer": "sgd",
    }
    hopeless |= {"stage1.weight_decay": "10", "stage1.batch_size": "2", "stage1.l2_sp": "100"}
    assert command("tune", **{**options, **hopeless, "stage": "2"}) == 2
    assert ends("stage") == ["FAILED"]
    assert ends("tune") == ["FAILED"]
    assert ends("study") == ["KILLED"]


def test_a_cache_that_cannot_be_written_is_a_note(
    command: Command, options: dict[str, str], store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = store / "cache"
    folder.mkdir(exist_ok=True)
    (folder / "prefix").touch()  # where a folder belongs
    only = {"stage": "2", "n_trials": "1", "cache_dir": str(folder)}
    assert command("tune", **{**options, **only}) == 0
    output = capfd.readouterr()
    assert f"cache in {folder}/prefix cannot be used (" in output.out
    assert "error: " not in output.err


def test_no_study_is_left_running_by_ctrl_c_while_its_parents_train(
    command: Command, options: dict[str, str], store: Path
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform("tune", {**options, "stage": "2"}, on_epoch=stop)
    for kind in ("stage", "tune", "study"):
        assert ends(kind) == ["KILLED"], kind
    assert command("tune", **{**options, "stage": "2"}) == 0
    assert ends("study") == ["FINISHED"]
    assert ends("stage") == ["FINISHED", "FINISHED"]  # the parent goes on


def test_a_trial_that_a_fault_outside_it_ends_is_queued_again(
    command: Command, options: dict[str, str], store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options |= {"stage": "2", "n_trials": "2"}
    parents: list[str] = []

    def damage(line: str) -> None:
        if line.startswith("trial 0:"):
            parents.extend(runs()["run_id"][:1])
            artifact(parents[0], "checkpoint/checkpoint.safetensors").write_bytes(b"")

    with pytest.raises(LineageError, match="is damaged"):
        perform("tune", options, say=damage)
    [study] = studies(store)
    assert states(study) == ["COMPLETE", "FAIL", "WAITING"]
    assert study.trials[2].params == study.trials[1].params
    assert ends("trial") == ["FINISHED", "FAILED"]
    assert ends("study") == ["KILLED"]
    assert command("tune", **options) == 0
    assert states(studies(store)[0]) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert ends("study") == ["FINISHED"]


COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
RECONCILED = [
    # the trial's state, value, reason; whose run; its status and state; what becomes of it, why
    ((COMPLETE, 0.5, None), "own", ("FINISHED", "complete"), "FINISHED", None),
    ((COMPLETE, 0.5, None), "own", ("RUNNING", None), "FINISHED", None),
    ((COMPLETE, 0.5, None), "other", ("RUNNING", None), "FAILED", LOST),
    ((COMPLETE, 0.5, None), "other", ("FINISHED", "complete"), "FINISHED", None),
    ((PRUNED, None, "pruned at"), "own", ("RUNNING", None), "KILLED", "pruned at"),
    ((PRUNED, None, "pruned at"), "own", ("KILLED", "pruned"), "KILLED", None),
    ((FAIL, None, "diverged"), "own", ("RUNNING", None), "FAILED", "diverged"),
    ((FAIL, None, "diverged"), "own", ("FAILED", "failed"), "FAILED", None),
    ((FAIL, None, None), "own", ("RUNNING", None), "FAILED", LOST),
    ((FAIL, None, None), "own", ("FINISHED", "complete"), "FAILED", LOST),
    ((FAIL, None, None), "own", ("KILLED", "pruned"), "FAILED", LOST),
    ((FAIL, None, None), "own", ("KILLED", None), "KILLED", None),  # Ctrl-C, or out of time
    ((TrialState.RUNNING, None, None), "own", ("RUNNING", None), "RUNNING", None),
    ((TrialState.RUNNING, None, None), "other", ("RUNNING", None), "RUNNING", None),  # a retry
]


def test_runs_are_given_the_end_that_their_trial_came_to(
    store: Path, options: dict[str, str]
) -> None:
    tracking, study = Tracking.connect(), begun(options)
    own = study.optuna.user_attrs["run_id"]
    made = []
    for (state, value, why), whose, (status, mark), _, _ in RECONCILED:
        number = len(study.optuna.trials)
        tags = {"kind": "trial", "study": study.name, "trial": str(number)}
        marks = {"trial_state": mark} if mark else {}
        run_id = tracking.start("trial", tags | marks, nested_under=own)
        inner = tracking.start("stage", {"kind": "stage"}, nested_under=run_id)
        if status != "RUNNING":
            tracking.writing(run_id).set_status(status)
            tracking.writing(inner).set_status(status)
        attrs = {"run_id": run_id if whose == "own" else "another's"}
        attrs |= {"reason": why} if why else {}
        trial = optuna.create_trial(state=state, value=value, user_attrs=attrs)
        study.optuna.add_trial(trial)
        made.append((run_id, inner))
    mended = sum(run[0] != wanted for _, _, run, wanted, _ in RECONCILED)
    assert reconcile(study, tracking, own) == mended
    names = {"FINISHED": "complete", "KILLED": "pruned", "FAILED": "failed"}
    for row, (run_id, inner) in zip(RECONCILED, made, strict=True):
        _, _, (status, mark), wanted, reason = row
        after = tracking.get(run_id)
        assert after.status == wanted, row
        assert after.tags.get("failure") == reason, row
        assert after.tags.get("trial_state") == (mark if wanted == status else names[wanted]), row
        ended = {"RUNNING"} if wanted == "RUNNING" else {"FAILED", "FINISHED", "KILLED"}
        assert tracking.get(inner).status in ended, row
    assert reconcile(study, tracking, own) == 0


RUINOUS = {"schedule": "full", "optimizer": "sgd", "lr": "100", "stage1.epochs": "4"}


@pytest.mark.slow
def test_a_study_in_which_every_trial_failed_is_a_fault_and_never_recommends_itself(
    command: Command, options: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    options["backbone"] = MOBILENET
    ruinous = {**options, **RUINOUS, "n_trials": "2"}
    ruinous["space"] = space_file(Path(), "weight_decay: [0.0, 1.0e-4]\n", "ruinous.yaml")
    for again, workers in enumerate(("1", "2")):
        assert command("tune", **ruinous, workers=workers) == 2
        output = capfd.readouterr()
        (line,) = [line for line in output.err.splitlines() if line.startswith("error: ")]
        assert "every trial of study stage1-full-" in line
        assert "failed (2 x stage 1: no epoch had a finite validation loss: lower " in line
        assert line.endswith("which makes another study, or give more n_trials")
        assert "use them" not in output.out
        assert "tuned=true" not in output.out
        assert ends("tune") == ["FAILED"] * (1 + again)
        assert ends("study") == ["FAILED"]
        assert ends("trial") == ["FAILED", "FAILED"]
    (study,) = runs("study").to_dict("records")
    assert "no epoch had a finite validation loss" in study["tags.failure"]
    assert "tuned=true" not in study["tags.mlflow.note.content"]
    assert "no epoch had" in runs("tune")["tags.failure"][0]
    assert command("stage1", tuned="on", backbone=MOBILENET, **RUINOUS) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: tuned=true: every trial of study stage1-full-")
    assert "failed (2 x stage 1: no epoch had a finite validation loss" in line
    assert "not finished" not in line


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED", "KILLED", "FAILED"])
def test_trials_of_another_storage_are_left_as_they_are(
    status: str, store: Path, options: dict[str, str]
) -> None:
    """Its study has the same name, its trials the same numbers: it is made of the same."""
    tracking, study = Tracking.connect(), begun(options)
    theirs = tracking.start("their study", {"kind": "study", "study": study.name})
    tags = {"kind": "trial", "study": study.name, "trial": "0"}
    run_id = tracking.start("their trial", tags, nested_under=theirs)
    inner = tracking.start("their stage", {"kind": "stage"}, nested_under=run_id)
    if status != "RUNNING":
        tracking.writing(run_id).set_status(status)
    study.optuna.add_trial(optuna.create_trial(state=FAIL, user_attrs={"run_id": "ours"}))
    before = [tracking.get(run) for run in (theirs, run_id, inner)]
    assert reconcile(study, tracking, study.optuna.user_attrs["run_id"]) == 0
    assert [tracking.get(run) for run in (theirs, run_id, inner)] == before


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_copied_storage_gets_a_study_run_of_its_own(
    kind: str, store: Path, options: dict[str, str]
) -> None:
    """As with a colleague's working folder: what goes on in the copy is not the colleague's."""
    _, session, spec = opened(options)
    urls = [f"{kind}:///{store}/{name}" for name in ("mine", "copy", "moved")]

    def run_of(url: str) -> str:
        study = Study.join(open_storage(url), spec, seed=0)
        return study_run(study, session, lambda _: None)

    mine = run_of(urls[0])
    assert run_of(urls[0]) == mine
    (store / "copy").write_bytes((store / "mine").read_bytes())
    (store / "mine").rename(store / "moved")
    copy = run_of(urls[1])
    assert copy != mine
    assert run_of(urls[1]) == copy
    assert run_of(urls[2]) == mine
    mlflow.MlflowClient().delete_tag(mine, "z.storage_place")  # as an earlier version made it
    assert run_of(urls[2]) == mine


def test_parents_heed_the_timeout_between_two_epochs(
    command: Command, options: dict[str, str], store: Path
) -> None:
    assert command("tune", **{**options, "stage": "2"}, timeout="0.001") == 0
    assert ends("stage") == []
    tracking, session, spec = opened({**options, "stage": "2", "stage1.epochs": "3"})
    storage = open_storage(storage_url("", tracking.uri))
    nested = ends("tune") and runs("tune")["run_id"][0]
    setup = TrialSetup(
        sessions={0: session}, tracking=tracking, run_id=nested, deadline=None, say=lambda _: None
    )
    runner = TrialRunner(cast("Study", SimpleNamespace(spec=spec, storage=storage)), setup)

    def later(*_: object) -> None:
        setup.deadline = 0.0

    session.on_epoch = later
    with pytest.raises(OutOfTime, match="timeout is over"):
        runner.train_parents(0)
    assert ends("stage") == ["KILLED"]
    session.on_epoch, setup.deadline = lambda *_: None, None
    runner.train_parents(0)
    assert "FINISHED" in ends("stage")


def test_a_task_is_waited_for_whose_trial_the_storage_has_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its end is logged and told after that: a task that is stopped then would lose both."""
    finished, left, told = [0], list[Task](), list[str]()

    class Dispatcher:
        has_room = True

        def submit(self, task: Task, _: str) -> None:
            left.append(task)

        def wait(self) -> list[tuple[Task, None]]:
            if not finished[0]:
                finished[0] = 1  # the trial's end is stored, and not yet told
                return []
            told.append("trial 0: 0.9")
            return [(left.pop(), None)]

    @contextmanager
    def dispatcher(*_: object) -> Iterator[Dispatcher]:
        yield Dispatcher()
        assert not left, "stopped"

    trials = iter([SimpleNamespace(number=0, _trial_id=1)])
    study = SimpleNamespace(
        storage=SimpleNamespace(url="sqlite:///optuna.db", heartbeat_interval=15),
        spec=SimpleNamespace(stage=SimpleNamespace(number=1), draws=(0,)),
        finished=lambda: finished[0],
        ask=lambda _: next(trials, None),
        interrupt=lambda trial: told.append(f"interrupted {trial.number}"),
    )
    tracking = SimpleNamespace(place={})
    setup = SimpleNamespace(tracking=tracking, deadline=None, say=told.append)
    monkeypatch.setattr(TrialWork, "of", lambda _: None)
    cluster = cast("Cluster", SimpleNamespace(dispatcher=dispatcher))
    runner = cast("TrialRunner", SimpleNamespace(study=study, setup=setup))
    run_on(cluster, runner, 1, lambda _: None)
    assert told == ["trial 0: 0.9"]


@pytest.mark.slow
def test_tasks_share_a_study_without_a_trial_too_many(
    options: dict[str, str], command: Command, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = space_file(store, "lr: {low: 1.0e-4, high: 0.1, log: true}\n", "wide.yaml")
    assert command("tune", **{**options, "n_trials": "4", "workers": "2", "space": space}) == 0
    output = capfd.readouterr().out
    assert "2 tasks at once" in output
    assert output.count("\ntrial ") == 4
    [study] = studies(store)
    assert states(study) == ["COMPLETE"] * 4
    assert study.trials[0].params == {"lr": 3e-3}
    assert len({trial.params["lr"] for trial in study.trials}) == 4
    assert ends("tune") == ends("study") == ["FINISHED"]
    assert ends("trial") == ["FINISHED"] * 4
    assert set(runs("trial")["tags.mlflow.parentRunId"]) == set(runs("study")["run_id"])


def test_images_that_no_trial_can_read_are_one_line(
    options: dict[str, str],
    command: Command,
    image_folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for path in (image_folder / "apple").iterdir():
        path.write_bytes(b"")
    assert command("tune", **options, workers="2") == 2
    output = capfd.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("error: ")
    assert "cannot read 8 of 24 images" in line
    assert ends("tune") == ["FAILED"]
