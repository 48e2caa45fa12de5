"""A finished study in Optuna and MLflow; what resumes it, what makes another; chains of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import optuna
import pandas as pd
import pytest
import yaml
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from pipeline.cli import main
from pipeline.settings.run import TRAIN_KEYS
from tests.conftest import TINY, Command, enter_store, words_of, write_image_folder
from tests.test_run_stage import artifact, runs

pytestmark = pytest.mark.usefixtures("mobilenet")

STATES = {
    TrialState.COMPLETE: ("FINISHED", "complete"),
    TrialState.PRUNED: ("KILLED", "pruned"),
    TrialState.FAIL: ("FAILED", "failed"),
}

ENDS = ["complete", "complete", "fail", "complete", "complete", "complete", "pruned", "pruned"]


def studies(folder: Path) -> list[optuna.Study]:
    """Those in the storage that `tune` chooses by itself, by name."""
    url = f"sqlite:///{folder}/optuna.db"
    names = sorted(optuna.get_all_study_names(url))
    return [optuna.load_study(study_name=name, storage=url) for name in names]


@dataclass(frozen=True)
class Finished:
    """Eight trials: defaults, a good one, one that diverges, three good, two hopeless ones."""

    study: optuna.Study
    client: mlflow.MlflowClient
    said: str

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.trials

    def runs(self, kind: str) -> list[Run]:
        order = ["attributes.start_time ASC"]
        return list(self.client.search_runs(["0"], f"tags.kind = '{kind}'", order_by=order))

    def run_of(self, trial: FrozenTrial) -> Run:
        return self.client.get_run(trial.user_attrs["run_id"])

    def stage_runs_in(self, run: Run) -> list[Run]:
        parents = [r.data.tags["mlflow.parentRunId"] for r in self.runs("stage")]
        return [
            r for r, p in zip(self.runs("stage"), parents, strict=True) if p == run.info.run_id
        ]


@pytest.fixture(scope="module")
def finished(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    base = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        folder = enter_store(base / "work", empty_database, patch)
        space = folder / "space.yaml"
        space.write_text("lr: [3.0e-4, 0.03, 1.0e-7, 100.0]\n")
        options = {"data": str(write_image_folder(base / "images")), "space": str(space), **TINY}
        options |= {"cache_dir": str(folder / "cache"), "schedule": "full", "optimizer": "sgd"}
        options |= {"stage": "1", "stage1.epochs": "4"}
        assert main(words_of("tune", {**options, "n_trials": "1"})) == 0
        for rate in (0.03, 100.0, 0.03, 0.03, 0.03, 1e-7, 1e-7):
            studies(folder)[0].enqueue_trial({"lr": rate})
        assert main(words_of("tune", {**options, "n_trials": "8"})) == 0
        client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
        yield Finished(studies(folder)[0], client, said.getvalue())


def test_a_study_ends_with_as_many_trials_as_were_asked_for(finished: Finished) -> None:
    states = [trial.state.name.lower() for trial in finished.trials]
    assert states == ENDS
    assert "1 of 8 trials so far" in finished.said
    best = f"best val_acc {finished.study.best_value:.4f}"
    assert f"8 trials (5 complete, 2 pruned, 1 failed): {best}" in finished.said
    for kind in ("tune", "study"):
        assert {run.info.status for run in finished.runs(kind)} == {"FINISHED"}
    first = finished.trials[0]  # the settings of an untuned run
    assert (first.params, first.user_attrs["defaults"]) == ({"lr": 3e-4}, "inside the space")
    [stage_run] = finished.stage_runs_in(finished.run_of(first))
    assert stage_run.data.params["lr"] == "0.0003"
    assert stage_run.data.tags["z.is_trial"] == "true"
    held = {path.name for path in Path(stage_run.info.artifact_uri).iterdir()}
    assert ("checkpoint" in held, "figures" in held) == (True, False)
    assert "model_uri" not in stage_run.data.tags


def test_trials_are_nested_in_the_study_and_stage_runs_in_trials(finished: Finished) -> None:
    [study_run] = finished.runs("study")
    trial_runs, stage_runs = finished.runs("trial"), finished.runs("stage")
    assert [run.data.tags["trial"] for run in trial_runs] == list("01234567")
    assert {r.data.tags["mlflow.parentRunId"] for r in trial_runs} == {study_run.info.run_id}
    assert "mlflow.parentRunId" not in study_run.data.tags
    # the good settings were trained once, three trials found that run again
    numbers = {run.info.run_id: run.data.tags["trial"] for run in trial_runs}
    assert [numbers[r.data.tags["mlflow.parentRunId"]] for r in stage_runs] == list("01267")
    assert len(finished.runs("tune")) == 2


def test_a_trials_run_has_its_settings_value_state_and_signals(finished: Finished) -> None:
    for trial in finished.trials:
        run = finished.run_of(trial)
        status = STATES[trial.state][0]
        assert run.info.status == status
        assert {inner.info.status for inner in finished.stage_runs_in(run)} <= {status}
        assert run.data.params == {"lr": str(trial.params["lr"])}
        assert run.data.tags["trial_state"] == STATES[trial.state][1]
        assert run.data.tags["study"] == finished.study.study_name
        if trial.state != TrialState.COMPLETE:
            assert "value" not in run.data.metrics
            continue
        stage_run = finished.client.get_run(run.data.tags["z.draw0_run_id"])
        assert stage_run.data.params["lr"] == run.data.params["lr"]
        assert trial.value == run.data.metrics["value"] == run.data.metrics["val_acc"]
        assert trial.value == stage_run.data.metrics["selected/val_acc"]
        assert run.data.metrics["val_loss"] == stage_run.data.metrics["selected/val_loss"]
        said = {k: v for k, v in stage_run.data.tags.items() if k.startswith("signal.")}
        assert len(said) >= 2
        assert said.items() <= run.data.tags.items()


def test_a_trial_reports_in_tenths_of_its_epochs_whether_trained_or_found(
    finished: Finished,
) -> None:
    trained, found = finished.trials[1], finished.trials[3]
    assert set(trained.intermediate_values) == set(found.intermediate_values) == set(range(1, 11))
    assert found.intermediate_values == trained.intermediate_values  # not its end at every step
    [stage_run] = finished.stage_runs_in(finished.run_of(trained))
    history = finished.client.get_metric_history(stage_run.info.run_id, "acc/val")
    values = [point.value for point in history]
    best = [max(values[:epoch]) for epoch in (1, 2, 3, 4)]
    assert best != values
    assert [trained.intermediate_values[step] for step in (2, 5, 7, 9)] == best


def test_a_pruned_trial_says_where_and_why(finished: Finished) -> None:
    trial = finished.trials[6]
    reason = "pruned at epoch 2 of 4 of draw 0: val_acc 0.0833 is in the worse half of the trials"
    assert trial.user_attrs["reason"] == reason
    assert finished.run_of(trial).data.tags["failure"] == reason
    [stage_run] = finished.stage_runs_in(finished.run_of(trial))
    history = finished.client.get_metric_history(stage_run.info.run_id, "acc/val")
    assert [point.step for point in history] == [1, 2]
    assert f"trial 6 {reason}" in finished.said


def test_a_trial_that_diverges_says_so_and_the_study_goes_on(finished: Finished) -> None:
    trial = finished.trials[2]
    reason = trial.user_attrs["reason"]
    assert "no epoch had a finite validation loss: lower stage1.lr (100.0)" in reason
    assert finished.run_of(trial).data.tags["failure"] == reason
    assert f"trial 2 failed: {reason}" in finished.said


def test_the_best_value_is_that_of_a_recount_in_mlflow(finished: Finished) -> None:
    [study_run] = finished.runs("study")
    values = {
        run.info.run_id: run.data.metrics["value"]
        for run in finished.runs("trial")
        if run.info.status == "FINISHED"
    }
    best_run_id = max(values, key=lambda run_id: values[run_id])  # the earliest of equals
    assert study_run.data.metrics["best/value"] == values[best_run_id] == finished.study.best_value
    assert study_run.data.metrics["best/trial"] == 1
    assert study_run.data.tags["z.best_trial_run_id"] == best_run_id
    # nothing says that the best is noise: it is the one that is taken
    assert study_run.data.metrics["chosen/trial"] == 1
    assert study_run.data.tags["z.chosen_trial_run_id"] == best_run_id
    assert study_run.data.tags["z.chosen.lr"] == "0.03"
    counts = {k: v for k, v in study_run.data.metrics.items() if k.startswith("trials/")}
    assert counts == {
        "trials/complete": 5,
        "trials/pruned": 2,
        "trials/failed": 1,
        "trials/running": 0,
        "trials/interrupted": 0,
        "trials/waiting": 0,
    }
    history = finished.client.get_metric_history
    complete = {t.number: t.value for t in finished.trials if t.state == TrialState.COMPLETE}
    assert {p.step: p.value for p in history(study_run.info.run_id, "trial/value")} == complete
    best = sorted(history(study_run.info.run_id, "best/value"), key=lambda point: point.step)
    assert [p.value for p in best] == sorted(p.value for p in best)
    tune_run = finished.runs("tune")[-1]
    assert tune_run.data.metrics["stage1/best_value"] == values[best_run_id]
    assert tune_run.data.tags["study.stage1"] == finished.study.study_name
    assert tune_run.data.tags["z.run.stage1"] == study_run.info.run_id


def test_the_study_run_holds_a_table_of_trials_pictures_and_how_to_go_on(
    finished: Finished,
) -> None:
    [study_run] = finished.runs("study")
    folder = Path(study_run.info.artifact_uri)
    table = pd.read_csv(folder / "trials.csv")
    assert list(table["trial"]) == list(range(8))
    assert list(table["state"]) == ENDS
    assert list(table["lr"]) == [trial.params["lr"] for trial in finished.trials]
    done = table["state"] == "complete"
    assert list(table["val_acc"][done]) == [finished.trials[n].value for n in table["trial"][done]]
    assert table["val_acc"][~done].isna().all()
    assert list(table["reason"].isna()) == list(done)
    assert list(table["run_id"]) == [t.user_attrs["run_id"] for t in finished.trials]
    pictures = {path.stem: path.stat().st_size for path in (folder / "figures").iterdir()}
    assert set(pictures) == {"history", "importances", "parallel_coordinate", "slice"}
    assert min(pictures.values()) > 5000
    values = yaml.safe_load((folder / "best.yaml").read_text())
    assert values["stage1.lr"] == 0.03
    assert set(values) == {f"stage1.{key}" for key in TRAIN_KEYS}
    note = study_run.data.tags["mlflow.note.content"]
    assert note.startswith("**Stage 1: ")
    assert f"Study `{finished.study.study_name}` of `full`; trials are judged by val_acc" in note
    assert "its mean over draw 0." in note
    assert "mlflow run . -e stage1 --env-manager local -P tuned=true" in note


TUNE = {"stage": "1", "stage1.epochs": "2", "n_trials": "1"}


def space_file(folder: Path, text: str, name: str = "space.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_from_outside_the_space_are_the_first_trial_all_the_same(
    command: Command, store: Path
) -> None:
    assert command("tune", **TUNE, space=space_file(store, "lr: [1.0e-7]\n")) == 0
    [first] = studies(store)[0].trials
    assert first.params == {}
    assert first.user_attrs["defaults"] == "outside the space"
    assert runs("trial")["params.lr"][0] == runs()["params.lr"][0] == "0.003"
    assert first.value == runs()["metrics.selected/val_acc"][0]
    [study_run] = runs("study")["run_id"]
    values = yaml.safe_load(artifact(study_run, "best.yaml").read_text())
    assert [values["stage1.lr"], values["stage1.epochs"]] == [0.003, 2]


def test_a_trial_on_two_draws_has_their_mean(command: Command, store: Path) -> None:
    few = {"train_per_class": "3", "val_per_class": "3", "draws": "2", "objective": "val_loss"}
    assert command("tune", **TUNE, **few, space=space_file(store, "lr: [3.0e-3]\n")) == 0
    [trial] = studies(store)[0].trials
    stages, run = runs(), runs("trial").iloc[0]
    assert list(stages["tags.draw"]) == ["0", "1"]
    assert [run["tags.z.draw0_run_id"], run["tags.z.draw1_run_id"]] == list(stages["run_id"])
    first, second = stages["metrics.selected/val_loss"]
    assert first != second
    assert [run["metrics.draw0/val_loss"], run["metrics.draw1/val_loss"]] == [first, second]
    assert trial.value == pytest.approx((first + second) / 2)
    assert run["metrics.value"] == pytest.approx(trial.value, rel=1e-5)  # kept to six digits
    assert run["metrics.val_acc"] == pytest.approx(stages["metrics.selected/val_acc"].mean())
    assert set(trial.intermediate_values) == set(range(1, 21))
    assert trial.intermediate_values[10] == first
    assert trial.intermediate_values[20] == trial.value
    signals = [key for key in stages if key.startswith("tags.signal.")]
    differ = [key for key in signals if stages[key].nunique(dropna=False) > 1]
    assert all(run[key] == "mixed" for key in differ)
    assert all(run[key] == stages[key][0] for key in signals if key not in differ)


def test_every_stage_is_tuned_from_the_best_of_the_one_before(
    command: Command, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = store / "spaces"
    folder.mkdir()
    space_file(folder, "lr: [1.0e-7]\n", "stage1.yaml")
    space_file(folder, "norm: [keep]\n", "stage2.yaml")
    options = {"schedule": "lp_ft", "objective": "val_loss", "n_trials": "2", "margin": "0"}
    assert command("tune", **options, space=str(folder), **{"stage1.epochs": "4"}) == 0
    first, second = studies(store)
    assert [first.direction.name, second.direction.name] == ["MINIMIZE", "MINIMIZE"]
    losses = [trial.value for trial in first.trials]
    assert losses[1] < losses[0]  # so the best of stage 1 is not its defaults
    assert list(runs("trial")["metrics.value"]) == [*losses, *(t.value for t in second.trials)]
    assert list(runs("trial")["metrics.value"]) == list(runs("trial")["metrics.val_loss"])
    stages = runs()
    assert list(stages["tags.stage"]) == ["1", "1", "2", "2"]
    assert list(stages["tags.parent_run_id"][2:]) == [stages["run_id"][1]] * 2
    study_run = runs("study").iloc[1]
    assert study_run["params.stage1.lr"] == "1e-07"
    assert study_run["params.stage2.lr"] == "0.0003"
    assert study_run["metrics.best/value"] == min(trial.value for trial in second.trials)
    said = capfd.readouterr().out
    assert f"best val_loss {losses[1]:.4f} (defaults {losses[0]:.4f}), trial 1: lr 1e-07" in said


def test_what_a_study_does_not_tune_is_a_parameter_of_its_run(
    command: Command, store: Path
) -> None:
    space = space_file(store, "lr: [3.0e-4, 1.0e-3]\n")
    assert command("tune", stage="2", n_trials="1", space=space, **{"stage1.lr": "0.01"}) == 0
    study_run = runs("study").iloc[0]
    assert study_run["params.stage1.lr"] == "0.01"
    assert study_run["params.stage2.epochs"] == "2"
    assert "params.stage2.lr" not in study_run.dropna()
    assert study_run["tags.storage"] == f"sqlite:///{store}/optuna.db"
    assert study_run["tags.space"] == space
    # the parent was trained for the study, and is nested in it
    assert list(runs()["tags.stage"]) == ["1", "2"]
    assert runs()["tags.mlflow.parentRunId"][0] == study_run["run_id"]
