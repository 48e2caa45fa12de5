"""A database made by an earlier version opens, is found, is read, and is continued from."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from pipeline.cli import main
from pipeline.errors import LineageError
from pipeline.runs.session import Session
from pipeline.settings.search_space import Range, SearchSpace
from pipeline.signals.evidence import read_predictions
from pipeline.tracking import Tracking
from pipeline.tracking.history import Summary, chain_of, read_history
from pipeline.tracking.keys import CURVES, VAL_LOSS
from pipeline.tuning.spec import Spec
from tests.conftest import words_of
from tests.helpers import load_settings
from tests.test_run_stage import artifact, runs

FIRST = "951d48df239d4200bee35215ea3b2409"
SECOND = "9f77f32635cc42d5907ca72d2fd879f1"
THIRD = "923eb2707a6b49fdbe8e471bc7ee5d91"
MADE_WITH = {
    "image_size": "32",
    "train_per_class": "2",
    "val_per_class": "2",
    "views": "2",
    "norm_stats": "source",
    "norm": "keep",
    "lr_decay": "1e-30",
    "precision": "float32",
    "log_model": "off",
    "device": "cpu",
    "cache": "off",
    "seed": "1",
    "epochs": "4",
    "stage1.lr": "0.01",
    "stage2.lr": "0.003",
    "stage3.lr": "0.003",
}
"""The settings of `tests/data/finished_chain`."""


def of_kind(kind: str) -> pd.DataFrame:
    found = runs()
    return found[found["tags.kind"] == kind].reset_index(drop=True)


def test_finished_stages_are_found_by_content_and_none_is_trained_again(
    finished_chain: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words_of("main", MADE_WITH)) == 0
    assert len(of_kind("stage")) == 3
    out = capfd.readouterr().out
    for run_id in (FIRST, SECOND, THIRD):
        assert f"found run {run_id} with the same content" in out
    for run_id in (FIRST, SECOND, THIRD):  # what their version did not know is there now
        predictions = read_predictions(artifact(run_id, "evaluation/val_predictions.csv"))
        labels, predicted = predictions["label"], predictions["predicted"]
        metrics = Tracking.connect().get(run_id).metrics
        assert metrics["selected/val_macro_f1"] == pytest.approx(
            f1_score(labels, predicted, average="macro"), rel=1e-5
        )
        assert metrics["selected/val_balanced_acc"] == pytest.approx(
            balanced_accuracy_score(labels, predicted), rel=1e-5
        )
    row = "3 head + block4 + block3 10,498,570 4 35.00% 35.00% 2.1893"
    assert row in " ".join(out.split())


def test_stage_3_continues_from_an_earlier_stage_2(finished_chain: Path) -> None:
    options = {"parent_run_id": SECOND, "seed": "1", "stage3.epochs": "1", "log_model": "off"}
    assert main(words_of("stage3", options)) == 0
    new = of_kind("stage").iloc[-1]
    assert new["run_id"] not in (FIRST, SECOND, THIRD)
    assert new["status"] == "FINISHED"
    assert new["tags.parent_run_id"] == SECOND
    assert new["metrics.signal/parent_val_acc"] == 0.25
    assert new["tags.signal.positive.val_acc_gain"] in ("true", "false")  # its predictions read
    assert artifact(new["run_id"], "figures/chain.png").exists()


def test_the_history_and_the_summary_of_an_earlier_run_read_back(finished_chain: Path) -> None:
    tracking = Tracking.connect()
    run = tracking.get(SECOND)
    history = read_history(tracking, run)
    assert history
    assert (len(history), history.planned, history.selected) == (4, 4, 1)
    assert history[VAL_LOSS] == tracking.history(SECOND, VAL_LOSS)
    assert {
        "lr/head",
        "risk/drift/block4",
        "risk/grad_norm/head",
        "risk/gap/acc",
    } <= history.best.keys()
    summary = Summary.of(run)
    assert summary.metrics == {name: history.best[name] for name in CURVES}
    assert summary.best_line in run.tags["mlflow.note.content"]
    assert read_history(tracking, run, ["never_logged/val"]) is None


def test_a_chain_is_walked_to_its_first_stage_and_a_deleted_run_is_named(
    finished_chain: Path,
) -> None:
    tracking = Tracking.connect()
    (last,) = tracking.find({"kind": "stage", "stage": "2"})
    walked = [*chain_of(tracking, last)]
    assert [run.number("stage") for run in walked] == [2, 1]
    mlflow.delete_run(walked[-1].run_id)
    with pytest.raises(LineageError, match=walked[-1].run_id):
        list(chain_of(tracking, last))


def test_gate_and_evaluate_read_earlier_runs(
    finished_chain: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words_of("gate", {"run_id": SECOND})) == 0
    assert "| 0 | 20.00% | 25.00% | +5.00 | 20.00% | 3.2329 | 2.6624 |" in capfd.readouterr().out
    assert main(words_of("evaluate", {"run_id": THIRD, "device": "cpu"})) == 0
    assert "test accuracy 30.17%" in capfd.readouterr().out
    assert 0 < Tracking.connect().get(THIRD).metrics["test/macro_f1"] < 1


def test_keys_of_runs_and_names_of_studies_are_those_of_earlier_versions(
    finished_chain: Path,
) -> None:
    """What new settings leave at their defaults does not enter them."""
    session = Session.open(load_settings(MADE_WITH), Tracking.connect(), lambda _: None)
    for number, run_id in enumerate((FIRST, SECOND, THIRD), start=1):
        earlier = session.tracking.get(run_id).tags
        assert session.key(number) == earlier["lineage_key"]
        assert session.recipe(number) == earlier["recipe_key"]
        other = session.with_training(number, {"select": "val_loss"})
        assert other.key(number) != earlier["lineage_key"]
        assert other.recipe(number) != earlier["recipe_key"]
    kept = ("image_size", "train_per_class", "val_per_class", "views", "norm_stats", "precision")
    options = {key: MADE_WITH[key] for key in kept} | {"device": "cpu", "cache": "off"}
    session = Session.open(load_settings(options), session.tracking, lambda _: None)
    space = SearchSpace("a test", {"lr": Range(low=1e-4, high=1e-2, log=True)})
    names = [Spec.of({0: session}, 2, space, o).name for o in ("val_acc", "val_loss")]
    assert names == [
        "stage2-three_stage-resnet18-9b7238e6c890",
        "stage2-three_stage-resnet18-7b3edbd2a907",
    ]
