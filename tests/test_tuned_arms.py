"""Tuning an arm of a decision: what its chosen trial was worth, and where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest

from pipeline.cli import main
from pipeline.comparing.arms import Arm
from pipeline.errors import ClusterError, SettingsError, StudyError
from pipeline.runs.command import Command
from pipeline.settings.entry import TuneSettings
from pipeline.tracking import Tracking
from pipeline.tuning.tune_arm import tune_arm
from tests.conftest import MOBILENET, TINY, words_of
from tests.helpers import load_settings, request_of


@pytest.fixture
def options(store: Path, image_folder: Path) -> dict[str, str]:
    return {
        **TINY,
        "val_per_class": "2",
        "data": str(image_folder),
        "cache_dir": str(store / "cache"),
    }


def head(options: dict[str, str]) -> Arm:
    return Arm(
        name="head_only",
        settings=load_settings({**options, "schedule": "head_only"}),
        last=1,
    )


def test_a_tuned_arm_has_its_chosen_trials_validation_accuracy_over_the_draws(
    options: dict[str, str],
) -> None:
    words = {"n_trials": 2, "draws": 2, "objective": "val_macro_f1", "margin": 0}
    tune = TuneSettings.model_validate(words)
    command = Command(request=request_of("decide", options), say=lambda _: None)
    tuned = tune_arm(command, Tracking.connect(), tune, head(options), {1: set()})
    stages = mlflow.search_runs(["0"], "tags.kind = 'stage'", output_format="list")
    chosen = {
        run.data.tags["draw"]: run.data.metrics["selected/val_acc"]
        for run in stages
        if run.data.params["lr"] == str(tuned.arm.settings.training(1).lr)
    }
    assert len(chosen) == 2
    assert tuned.val["val_acc"] == pytest.approx(sum(chosen.values()) / 2)


def test_the_accuracy_is_unknown_where_the_trials_run_is_gone(options: dict[str, str]) -> None:
    tune = TuneSettings(n_trials=1)
    command, tracking = (
        Command(request=request_of("decide", options), say=lambda _: None),
        Tracking.connect(),
    )
    tune_arm(command, tracking, tune, head(options), {1: set()})
    (trial,) = mlflow.search_runs(["0"], "tags.kind = 'trial'", output_format="list")
    mlflow.delete_run(trial.info.run_id)
    assert tune_arm(command, tracking, tune, head(options), {1: set()}).val == {}


def test_a_study_without_a_completed_trial_is_one_line(options: dict[str, str]) -> None:
    options |= {
        "backbone": MOBILENET,
        "schedule": "full",
        "optimizer": "sgd",
        "lr": "100",
        "stage1.epochs": "4",
    }
    arm = Arm(name="full", settings=load_settings(options), last=1)
    command = Command(request=request_of("decide", options), say=lambda _: None)
    with pytest.raises(
        StudyError, match=r"^unfreezing everything at once, stage 1: every trial of study "
    ) as err:
        tune_arm(command, Tracking.connect(), TuneSettings(n_trials=1), arm, {1: set()})
    assert len(str(err.value).splitlines()) == 1


def test_a_space_with_patience_is_refused(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stage1.yaml").write_text("lr: [0.1, 0.2]\npatience: [0, 3]\n")
    monkeypatch.setattr("pipeline.settings.search_space.SPACES_DIR", tmp_path)
    command = Command(request=request_of("decide", options), say=lambda _: None)
    with pytest.raises(SettingsError, match=r"stage1\.yaml: patience .* take it out$"):
        tune_arm(command, Tracking.connect(), TuneSettings(), head(options), {1: set()})
    assert mlflow.search_runs(["0"], output_format="list") == []


def test_an_arm_that_ran_out_of_time_is_not_taken_for_tuned(options: dict[str, str]) -> None:
    tune = TuneSettings(n_trials=100_000, timeout=4)
    command = Command(request=request_of("decide", options), say=lambda _: None)
    with pytest.raises(StudyError, match=r"timeout=4 s was over before the studies had their tri"):
        tune_arm(command, Tracking.connect(), tune, head(options), {1: set()})


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ({"looks": "2"}, ["mlflow.db"]),
        ({"looks": "2", "tune": "on"}, ["mlflow.db", "optuna.db"]),
        ({"looks": "2", "tune": "on", "storage": "sqlite:///mine.db"}, ["mlflow.db", "mine.db"]),
    ],
)
def test_a_cluster_is_asked_whether_it_sees_the_storage_of_studies_too(
    words: dict[str, str],
    asked: list[str],
    options: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[str] = []

    class Elsewhere:
        def check_stores(self, *urls: str) -> None:
            seen.extend(urls)
            raise ClusterError("tasks would not see these")

    @contextmanager
    def cluster_of(*_: object) -> Iterator[Elsewhere]:
        yield Elsewhere()

    monkeypatch.setattr("pipeline.entries.pairs.setup.cluster_of", cluster_of)
    assert main(words_of("decide", {**options, **words})) == 2
    assert [Path(url).name for url in seen] == asked
    assert "error: tasks would not see these" in capsys.readouterr().err
