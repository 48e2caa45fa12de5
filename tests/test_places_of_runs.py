"""Experiments named after the data, names of runs, and what to type next."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import mlflow
import pytest

from pipeline.data.base import Source
from pipeline.entries.command_line.table import ENTRY_POINTS, perform
from pipeline.runs.messages.next_step import next_command, options_of
from pipeline.runs.messages.words import outcome_sentence, run_name
from pipeline.settings.run import Settings
from pipeline.signals.readings import Signal
from pipeline.tracking import Tracking, keys
from pipeline.tracking.pages import how_to_open
from tests.conftest import SMALL_NET, Command, write_image_folder
from tests.helpers import load_settings, typed_in

WITH_TEST = cast("Source", SimpleNamespace(test="there"))
"""Data of which nothing else is asked."""


def next_of(settings: Settings, number: int) -> str:
    return next_command(settings, number, "abc", WITH_TEST)


def named(experiment: str) -> list[str]:
    found = mlflow.get_experiment_by_name(experiment)
    if found is None:
        return []
    runs = mlflow.search_runs([found.experiment_id], output_format="list")
    return [run.info.run_name for run in runs]


def test_an_experiment_is_named_after_the_data_and_runs_in_default_are_found(
    command: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage1") == 0  # in Default, as by earlier versions
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    capfd.readouterr()
    assert command("stage2") == 0
    assert "stage 1: found run" in capfd.readouterr().out
    (name,) = named("images")
    assert " · stage 2 · lr 0.0003 · images · " in name
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "Default")  # as under `mlflow run`
    assert command("main", schedule="three_stage", **{"stage3.epochs": "1"}) == 0
    assert capfd.readouterr().out.count("found run") == 2
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "apart")  # a place of its own
    assert command("stage1") == 0
    assert "found run" not in capfd.readouterr().out


@pytest.mark.parametrize("followed", [0, 1])
def test_a_run_that_is_followed_has_siblings_in_default_and_where_its_data_are(
    followed: int, store: Path
) -> None:
    tags = {keys.KIND: "stage", keys.RECIPE_KEY: "one", keys.DATA: "images"}
    places = "0", mlflow.create_experiment("images")
    client = mlflow.MlflowClient()
    apart = mlflow.create_experiment("apart")
    stored = {keys.stored_tag(key): value for key, value in tags.items()}
    runs = [client.create_run(place, tags=stored) for place in (*places, apart)]
    for one in runs:
        client.set_terminated(one.info.run_id)
    tracking = Tracking.connect()
    (run,) = (one for one in runs if one.info.experiment_id == places[followed])
    tracking.follow(tracking.get(run.info.run_id))
    found = tracking.find({keys.RECIPE_KEY: "one"})
    assert [one.experiment_id for one in found] == list(places)


def test_a_launched_run_has_a_name_before_anything_can_fail(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient()
    launched = client.create_run("0", run_name="unleashed-zebra-839").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    assert command("stage1", train_per_class="1000") == 2
    run = client.get_run(launched)
    assert run.info.run_name == "stage 1 · images"
    assert run.info.status == "FAILED"


def test_names_begin_with_what_differs_and_an_arm_is_called_what_it_is() -> None:
    plain = load_settings({"draw": "2", "data_seed": "3"})
    assert run_name(plain, 3) == (
        "stage 3 · lr 0.0003 · digits · resnet18 · draw 2 · data_seed 3 · seed 0"
    )
    assert run_name(plain, 3, acc=0.8241).startswith("82.4% · stage 3 · ")
    control = load_settings({"schedule": "stage2_continued"})
    last = len(control.stages)
    assert run_name(control, last, "pair 3", 0.81).startswith(
        "pair 3 · stage 2 continued · val 81.0% "
    )
    assert run_name(load_settings({"schedule": "two_stage"}), 2).startswith(
        "stage 2 of two_stage "
    )


@pytest.mark.parametrize(
    ("gain", "state", "words"),
    [
        (-0.013, "false", "1.3 points below stage 2 (s.e. 1.0): no gain so far; one run"),
        (0.018, "true", "1.8 points above stage 2 (s.e. 1.0): worth it so far; one run"),
        (0.004, "false", "0.4 points above stage 2 (s.e. 1.0): that may be chance; one run"),
        (0.0, "false", "as many as stage 2 (s.e. 1.0): no gain so far; one run"),
    ],
)
def test_a_stage_in_one_sentence(gain: float, state: str, words: str) -> None:
    name, numbers = "positive.val_acc_gain", {"acc_gain": gain, "acc_gain_se": 0.01}
    signal = Signal(name=name, state=state, sentence="", numbers=numbers)  # type: ignore[arg-type]
    sentence = outcome_sentence("stage 3", 0.831, 500, [signal], "stage 2")
    assert sentence == f"Stage 3: 83.1% of 500 validation images, {words} proves nothing"
    first = outcome_sentence("stage 1", 0.5, 1, [], "")
    assert first == "Stage 1: 50.0% of 1 validation image recognised"
    unequal = outcome_sentence("stage 1", 0.9, 10, [], "", balanced=0.5)
    assert unequal == "Stage 1: 90.0% of 10 validation images (balanced 50.0%) recognised"


def test_the_next_command_asks_about_the_same_settings(tmp_path: Path) -> None:
    typed = {"train_per_class": "20", "stage2.lr": "0.001", "epochs": "3", "draw": "1"}
    typed |= {"weight_decay": "0.02", "cache_dir": str(tmp_path / "my cache")}
    asked = load_settings(typed)
    name, options = typed_in(next_of(asked, 3))
    assert name == "decide"
    plan = ENTRY_POINTS[name].plan(ENTRY_POINTS[name].read(options))
    assert plan.treatment.settings == asked.model_copy(update={"draw": 0})
    assert next_of(asked, 2).endswith("-P parent_run_id=abc")


@pytest.mark.parametrize(
    ("typed", "schedules"),
    [
        ({"schedule": "two_stage", "stage1.lr": "1e-3"}, "two_stage,full"),
        ({"schedule": "head_only", "lr": "0.03"}, "head_only,full"),
        ({"schedule": "mine(all)", "lr": "0.03"}, "mine(all),three_stage"),
    ],
)
def test_a_proposed_comparison_has_other_arms_and_no_setting_of_one_stage(
    typed: dict[str, str], schedules: str
) -> None:
    asked = load_settings({"train_per_class": "20", **typed})
    name, options = typed_in(next_of(asked, len(asked.stages)))
    assert name == "compare"
    assert not [key for key in options if key.endswith("lr")]
    assert {("train_per_class", "20"), ("schedules", schedules)} <= set(options.items())
    assert ENTRY_POINTS["compare"].plan(ENTRY_POINTS["compare"].read(options))


def test_the_next_stage_asks_the_gate_as_was_typed() -> None:
    assert "-P enforce_gate=on" in next_of(load_settings({"enforce_gate": "on"}), 2)
    assert "reuse" not in next_of(load_settings({"reuse": "off"}), 2)


def test_the_next_stage_trains_as_was_typed_for_it() -> None:
    """A stage-1 run holds what it was trained by, and nothing of later stages."""
    typed = {"epochs": "3", "stage2.lr": "0.001", "stage3.norm": "keep"}
    asked = load_settings(typed)
    name, options = typed_in(next_of(asked, 1))
    assert name == "stage2"
    assert options == {
        "stage2.epochs": "3",
        "stage3.epochs": "3",
        "stage2.lr": "0.001",
        "stage3.norm": "keep",
        "parent_run_id": "abc",
        "schedule": "three_stage",
    }
    assert "stage" not in next_of(load_settings({}), 2).partition("stage3")[2]


def test_the_command_that_shows_a_run_can_be_typed() -> None:
    shown = how_to_open("sqlite:////home/ann/My Images/mlflow.db", "1", "abc").partition("\n")[0]
    words = shlex.split(shown.partition("see the run: ")[2])
    assert words == [
        *("mlflow", "ui"),
        "--backend-store-uri",
        "sqlite:////home/ann/My Images/mlflow.db",
    ]


def test_an_infinite_metric_comes_back_infinite(store: Path) -> None:
    """A database holds the largest number in its place."""
    tracking = Tracking.connect()
    run_id = tracking.start("a run", {})
    tracking.writing(run_id).metrics({"risk/drift/head": math.inf, "loss/val": 2.0}, step=1)
    assert tracking.history(run_id, "risk/drift/head") == [math.inf]
    metrics = tracking.get(run_id).metrics
    assert (metrics["risk/drift/head"], metrics["loss/val"]) == (math.inf, 2.0)


def test_what_the_stages_of_a_run_have_in_common_is_asked_of_later_stages_too() -> None:
    """A stage-2 run does not hold what was typed for stage 3."""
    of_stage_2 = load_settings({"stage1.epochs": "3", "stage2.epochs": "3", "stage2.lr": "0.001"})
    found = options_of(of_stage_2, known=2)
    assert found["epochs"] == 3
    assert found["stage2.lr"] == 0.001
    assert not {"stage1.epochs", "stage2.epochs"} & found.keys()


@pytest.mark.parametrize(
    ("former", "name"),
    [
        ("train/acc", "acc/train"),
        ("val/macro_f1", "more/val_macro_f1"),
        ("macro_f1/val", "more/val_macro_f1"),
        ("balanced_acc/val", "more/val_balanced_acc"),
        ("drift/head", "risk/drift/head"),
        ("lr/head", "lr/head"),
    ],
)
def test_a_metric_has_one_name_here_and_its_former_name_is_known(former: str, name: str) -> None:
    assert keys.current(former) == name == keys.current(name)
    assert former in (*keys.former(name), name)


def test_charts_of_accuracy_and_loss_come_first_and_together() -> None:
    """MLflow's pages sort groups, which end at the last slash, by name."""
    names = [*keys.EPOCH_METRICS, keys.TRAIN_S, f"{keys.RISKS}drift/head", "test/acc", "lr/head"]
    groups = sorted({name.rpartition("/")[0] for name in names})
    assert groups[:2] == ["acc", "loss"]
    assert {keys.flat(name) for name in keys.VAL.values()} == {f"val_{m}" for m in keys.VAL}


def test_names_of_the_selected_epoch_and_of_studies() -> None:
    assert keys.current("best/val_acc") == "selected/val_acc" == keys.at_best(keys.VAL_ACC)
    assert keys.current("best/value") == "best/value"  # of a study's best trial
    assert keys.current("test/acc") == "test/acc"


def for_people(tags: dict[str, str]) -> set[str]:
    return {key for key in tags if not key.startswith(("mlflow.", "z."))}


@pytest.mark.slow
@pytest.mark.usefixtures("without_onnx")
def test_fifteen_tags_at_most_are_for_people_and_no_parameter_was_not_given(
    store: Path, tmp_path: Path
) -> None:
    images = str(write_image_folder(tmp_path / "images", 20))
    few = {"data": images, "weights": "none", "image_size": "32", "views": "2", "epochs": "1"}
    few |= {"train_per_class": "2", "val_per_class": "2", "cache_dir": str(tmp_path / "cache")}
    few |= {"backbone": SMALL_NET, "log_model": "off", "log_pictures": "off"}
    few |= {"test_per_class": "4", "preset": "images"}
    perform("stage2", {**few, "log_model": "on", "log_pictures": "on"}, lambda _: None)
    few |= {"near_duplicates": "off"}
    stage2 = mlflow.search_runs(["0"], "tags.stage = '2'", output_format="list")[0]
    for name in ("gate", "evaluate"):
        perform(name, {"run_id": stage2.info.run_id}, lambda _: None)
    perform("main", few, lambda _: None)
    perform("start", {"data": images, "test_per_class": "4"}, lambda _: None)
    perform("tune", {**few, "stage": "2", "n_trials": "2", "draws": "2"}, lambda _: None)
    perform("decide", {**few, "looks": "2", "rope_pp": "40"}, lambda _: None)
    perform("decide", {**few, "looks": "2", "question": "stage2", "refit": "off"}, lambda _: None)
    perform("compare", {**few, "schedules": "three_stage,full", "draws": "2"}, lambda _: None)
    found = mlflow.search_runs(["0"], output_format="list")
    assert {run.data.tags["kind"] for run in found} == {
        *("stage", "gate", "evaluate", "chain", "start", "tune", "study", "trial"),
        *("decision", "comparison", "refit"),
    }
    for run in found:
        shown = for_people(run.data.tags)
        assert len(shown) <= 15, (run.info.run_name, sorted(shown))
        assert run.data.tags["mlflow.note.content"].startswith("**"), run.info.run_name
    data = mlflow.get_run(stage2.info.run_id).data
    assert {"stage", "schedule", "draw", "seed", "parent_run_id", "model_uri"} <= data.tags.keys()
    assert {"gate.prior", "signal.positive.val_acc_gain"} <= data.tags.keys()
    assert not {"", "auto"} & set(data.params.values())
    assert not [key for key in data.params if key.startswith(("gate_", "signal_"))]
    for value in data.metrics.values():
        assert value % 1 == 0 or value == float(f"{value:.6g}")
