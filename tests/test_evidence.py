"""Signals and the gate in MLflow, end to end: real training, real store, tiny sizes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from pipeline.cli import main
from pipeline.runs.findings.predictions import TEST_PREDICTIONS
from pipeline.signals.evidence import epochs_of, has_pictures
from pipeline.tracking import RunView, Tracking
from tests.conftest import MOBILENET, Command, Work, class_image, inside
from tests.test_gate import REFERENCE
from tests.test_run_stage import artifact, runs

DOCS = Path(__file__).resolve().parent.parent / "docs"
FIRST = {"positive.no_early_spike", "negative.train_acc_saturates", "negative.val_loss_rises"}
UNSTABLE = "negative.unstable_across_runs"
ALL = FIRST | {"positive.val_acc_gain", "positive.val_loss_stable", UNSTABLE}


def signals_of(run: pd.Series) -> dict[str, str]:
    """Signal name -> state, from a run's tags."""
    prefix = "tags.signal."
    tags = {k.removeprefix(prefix): v for k, v in run.items() if str(k).startswith(prefix)}
    return {str(name): state for name, state in tags.items() if isinstance(state, str)}


def evidence_of(run_id: str) -> dict[str, Any]:
    return dict(json.loads(artifact(run_id, "evidence.json").read_text()))


def of_stage(number: int) -> pd.DataFrame:
    found = runs()
    return found[found["tags.stage"] == str(number)].reset_index(drop=True)


@pytest.fixture(scope="module")
def chain_once(shared_work: Work) -> Work:
    """Stages 1 and 2, then stage 1 twice more: of four epochs, and by another threshold."""
    shared_work.run("stage2", log_pictures="on", **{"stage2.epochs": "3"})
    for words in ({}, {"signal_saturation_acc": "0.01", "reuse": "off"}):
        shared_work.run("stage1", **{"stage1.epochs": "4"}, **words)
    return shared_work


@pytest.fixture
def chain(chain_once: Work) -> Iterator[list[pd.Series]]:
    with inside(chain_once.folder):
        yield [row for _, row in runs().iterrows()]


def test_every_stage_carries_its_signals_numbers_sentences_and_pictures(
    chain: list[pd.Series],
) -> None:
    first, second = chain[:2]
    for row, names in ((first, FIRST), (second, ALL)):
        assert names <= set(signals_of(row))
        assert set(signals_of(row).values()) <= {"true", "false", "unknown"}
        for name in signals_of(row):
            line = f"(`{name}` {signals_of(row)[name]})"
            assert line in row["tags.mlflow.note.content"]
        assert artifact(row["run_id"], "figures/risks.png").stat().st_size > 5000
    assert not set(signals_of(first)) & (ALL - FIRST)
    assert signals_of(second)[UNSTABLE] == "unknown"
    assert not artifact(first["run_id"], "figures/chain.png").exists()
    assert artifact(second["run_id"], "figures/chain.png").exists()

    evidence = evidence_of(second["run_id"])
    assert set(evidence["signals"]) == set(signals_of(second))
    assert evidence["inputs"]["parent_run_id"] == first["run_id"]
    assert evidence["thresholds"]["signal_saturation_acc"] == 0.99
    for signal in evidence["signals"].values():
        for key, value in signal["numbers"].items():
            assert second[f"metrics.signal/{key}"] == pytest.approx(value, rel=1e-5)


def test_the_gain_is_that_of_the_two_runs_on_the_same_images(chain: list[pd.Series]) -> None:
    first, second = chain[:2]
    for signal, metric in (("acc_gain", "selected/val_acc"), ("nll_change", "selected/val_loss")):
        difference = second[f"metrics.{metric}"] - first[f"metrics.{metric}"]
        assert second[f"metrics.signal/{signal}"] == pytest.approx(difference, abs=1e-5)


def test_risks_are_logged_for_every_trainable_block_and_epoch(chain: list[pd.Series]) -> None:
    client, run = mlflow.MlflowClient(), chain[1]
    for kind in ("drift", "cka", "grad_norm", "grad_relative"):
        for block in ("head", "block4"):
            history = client.get_metric_history(run["run_id"], f"risk/{kind}/{block}")
            values = [metric.value for metric in history]
            assert len(values) == 3
            assert all(value >= 0 for value in values)
            assert kind != "drift" or 0 < values[0] < values[-1]
        assert not client.get_metric_history(run["run_id"], f"risk/{kind}/block3")
    losses, accs = (
        [run[f"metrics.{name}/{part}"] for part in ("train", "val")] for name in ("loss", "acc")
    )
    assert run["metrics.risk/gap/acc"] == pytest.approx(accs[0] - accs[1], abs=1e-6)
    assert run["metrics.risk/gap/loss"] == pytest.approx(losses[1] - losses[0], abs=1e-5)


def test_thresholds_change_the_reading_and_not_the_run(chain: list[pd.Series]) -> None:
    calm, saturated = chain[2:]
    for tag in ("z.lineage_key", "z.checkpoint_sha256"):
        assert calm[f"tags.{tag}"] == saturated[f"tags.{tag}"]
    assert signals_of(calm)["positive.no_early_spike"] == "true"
    assert signals_of(saturated)["positive.no_early_spike"] == "false"
    for query in (
        "tags.\"signal.negative.train_acc_saturates\" = 'true'",
        "metrics.`signal/saturation_share` <= 1",
    ):
        found = set(mlflow.search_runs(["0"], query)["run_id"])
        assert found & {calm["run_id"], saturated["run_id"]} == {saturated["run_id"]}


def test_siblings_are_brought_up_to_date_each_by_its_own_thresholds(command: Command) -> None:
    own = {"0": "1e-9", "1": "0.999", "2": "0.5"}
    run = partial(command, "stage2", backbone=MOBILENET)  # whose accuracies spread
    for seed in ("0", "1"):
        assert run(seed=seed, signal_spread_p=own[seed]) == 0
    assert run(seed="5", lr="0.5") == 0  # another recipe: no sibling
    assert list(of_stage(2)[f"tags.signal.{UNSTABLE}"]) == ["unknown"] * 3
    assert list(of_stage(2)["metrics.signal/siblings"]) == [2, 2, 1]
    client, (first, second) = mlflow.MlflowClient(), of_stage(2)["run_id"][:2]
    client.set_tag(first, "mlflow.note.content", "my own words")
    note = client.get_run(second).data.tags["mlflow.note.content"]
    client.set_tag(second, "mlflow.note.content", f"my own words\n{note}")

    assert run(seed="2", signal_spread_p=own["2"]) == 0
    stranger, family = of_stage(2).iloc[2], of_stage(2).drop(index=2)
    assert signals_of(stranger)[UNSTABLE] == "unknown"
    assert set(family["metrics.signal/siblings"]) == {3}
    [p] = set(family["metrics.signal/spread_p"])
    for _, row in family.iterrows():
        state = "true" if p < float(own[row["tags.seed"]]) else "false"
        assert signals_of(row)[UNSTABLE] == state
        note = row["tags.mlflow.note.content"]
        if row["run_id"] == first:
            assert note == "my own words"  # a person's
        else:
            assert "over 3 runs that differ only" in note
            assert f"(`{UNSTABLE}` {state})" in note
            assert note.startswith("my own words") == (row["run_id"] == second)
        evidence = evidence_of(row["run_id"])
        assert evidence["signals"][UNSTABLE]["state"] == state
        assert evidence["inputs"]["siblings"] == sorted(family["run_id"])
    assert set(family[f"tags.signal.{UNSTABLE}"]) == {"true", "false"}


def test_siblings_are_brought_up_to_date_once_a_command_and_only_where_they_change(
    command: Command,
) -> None:
    client = mlflow.MlflowClient()
    for seed in ("0", "1"):
        assert command("stage2", seed=seed) == 0
        last = of_stage(2)["run_id"].iloc[-1]
        counts = client.get_metric_history(last, "signal/siblings")
        assert [point.value for point in counts] == [int(seed) + 1]  # once, when it is known
    evidence = [artifact(run_id, "evidence.json") for run_id in of_stage(2)["run_id"]]
    written = [path.stat().st_mtime_ns for path in evidence]
    assert command("main", schedule="two_stage", seed="1", **{"stage2.epochs": "1"}) == 0
    assert command("stage2", seed="1", reuse="off") == 0  # instead of the sibling it repeats
    assert of_stage(2)["metrics.signal/siblings"].iloc[-1] == 2
    assert [path.stat().st_mtime_ns for path in evidence] == written
    assert command("stage2", seed="2") == 0
    changed = [path.stat().st_mtime_ns for path in evidence]
    assert changed[0] != written[0]
    assert changed[1] == written[1]
    readings = client.get_metric_history(of_stage(2)["run_id"].iloc[0], "signal/siblings")
    assert command("stage2", seed="2", reuse="off") == 0  # of three siblings, nothing new
    assert [path.stat().st_mtime_ns for path in evidence] == changed
    first = of_stage(2)["run_id"].iloc[0]
    assert client.get_metric_history(first, "signal/siblings") == readings


def test_a_sibling_whose_files_may_not_be_written_is_left_and_said(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in a folder of another person's; here evidence cannot be written, even by root."""
    assert command("stage2", seed="0") == 0
    theirs = of_stage(2)["run_id"][0]
    report = artifact(theirs, "gate")
    report.touch()
    capfd.readouterr()
    assert command("stage2", seed="1") == 0
    assert main(["gate", "--run_id", theirs]) == 0
    output = capfd.readouterr().out
    (note,) = [line for line in output.splitlines() if "is not brought up to date" in line]
    assert note.startswith(f"note: run {theirs} (")
    assert "cannot write MLflow's files (store gate/report.md)" in note
    assert "Stage-2 Best results" in output


def test_a_run_whose_files_may_not_be_written_is_scored_reused_and_left(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in a folder of another person's: `evaluate` adds predictions, and `main` pictures."""
    chain = {"schedule": "head_only", "test_per_class": "2"}
    assert command("main", **chain) == 0
    (theirs,) = runs()["run_id"]
    artifact(theirs, "figures").touch()
    predictions = artifact(theirs, TEST_PREDICTIONS)
    (predictions / predictions.name).mkdir(parents=True)
    capfd.readouterr()
    assert main(["evaluate", "--run_id", theirs]) == 0
    assert command("main", log_pictures="on", **chain) == 0
    output = capfd.readouterr().out
    notes = [line for line in output.splitlines() if "is not brought up to date" in line]
    assert ["test_predictions" in note for note in notes] == [True, False]
    assert "figures" in notes[1]
    assert "has its pictures" not in output
    (run,) = runs().to_dict("records")
    assert 0 <= run["metrics.test/acc"] <= 1
    assert not has_pictures(Tracking.connect().get(theirs))


@pytest.mark.parametrize("is_cut", [False, True])
def test_lost_parent_predictions_leave_the_comparison_unknown(
    command: Command, is_cut: bool
) -> None:
    command("stage1")
    path = artifact(runs()["run_id"][0], "evaluation/val_predictions.csv")
    rows = path.read_text().splitlines(keepends=True)
    path.unlink()
    if is_cut:  # between two rows, by an upload that was interrupted
        path.write_text("".join(rows[:-2]))
    assert command("stage2") == 0
    assert signals_of(runs().iloc[-1])["positive.val_acc_gain"] == "unknown"


def test_a_parent_counts_the_epochs_that_it_had_whatever_was_typed_and_planned(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient()
    launched = client.create_run("0").info.run_id
    client.log_param(launched, "epochs", "5.0")  # as `mlflow run` does
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    still = {"stage1.lr": "1e-30", "stage1.norm": "keep", "stage1.patience": "1"}
    words = {"epochs": "5.0", "stage1.epochs": "7", **still}
    assert command("stage1", **words) == 0
    tracking = Tracking.connect()
    assert epochs_of(tracking, tracking.get(launched)) == 2
    assert command("stage2", **words, **{"stage2.epochs": "1"}) == 0
    assert "positive.val_acc_gain" in signals_of(of_stage(2).iloc[0])
    mlflow.MlflowClient().delete_run(launched)
    assert epochs_of(tracking, RunView.of(client.create_run("0"))) == 0


def test_a_run_that_diverges_half_way_ends_and_says_so(command: Command) -> None:
    words = {"optimizer": "sgd", "lr": "100", "warmup": "0.9", "epochs": "40", "lr_decay": "100"}
    assert command("stage2", log_pictures="on", **words) == 0
    run = runs().iloc[-1]
    assert (run["tags.diverged"], run["status"]) == ("true", "FINISHED")
    curves = evidence_of(run["run_id"])["inputs"]["curves"]
    both = curves["train_loss"], curves["val_loss"]  # which is lost first: the machine's rounding
    assert all(losses[0] is not None for losses in both)
    assert any(losses[-1] is None for losses in both)  # JSON knows no NaN
    assert len(both[0]) < 40
    signals = signals_of(run)
    assert signals["negative.val_loss_rises"] == "true"
    assert signals["positive.val_acc_gain"] == "false"
    assert signals["positive.no_early_spike"] == "unknown"
    assert "nan" not in run["tags.mlflow.note.content"].split("signal")[-1]
    assert artifact(run["run_id"], "figures/chain.png").stat().st_size > 5000


def test_a_run_made_to_memorise_is_found_by_its_signals(command: Command, tmp_path: Path) -> None:
    for number in range(36):  # colours that say nothing of the class
        folder = tmp_path / "noise" / ("apple", "berry", "cherry")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        class_image(number // 12, number).save(folder / f"{number}.png")
    words = {"data": str(tmp_path / "noise"), "epochs": "80", "lr": "0.003", "lr_decay": "1"}
    assert command("stage2", augment="none", **words) == 0
    run = runs().iloc[-1]
    signals = signals_of(run)
    assert signals["negative.train_acc_saturates"] == "true"
    assert signals["positive.no_early_spike"] == "false"
    assert signals["negative.val_loss_rises"] == "true"
    assert run["metrics.acc/train"] == 1.0


# --- the gate ------------------------------------------------------------------------------------


def test_the_gate_tags_every_sibling_and_reads_on_where_a_parent_was_deleted(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    for draw in ("0", "1", "2"):
        assert command("stage2", draw=draw, train_per_class="2", val_per_class="2") == 0
    capfd.readouterr()
    asked = ["gate", "--run_id", of_stage(2)["run_id"][0]]
    assert main(asked) == 0
    assert "# Stage 3 " in capfd.readouterr().out
    second = of_stage(2)
    [prior] = set(second["tags.gate.prior"])
    assert prior in ("promising", "confirmation_only", "not_yet")
    for name in ("optimization_stabilized", "consistent_gains", "headroom", "memorising"):
        assert second[f"tags.z.gate.{name}"].nunique() == 1
    [report] = {artifact(run_id, "gate/report.md").read_text() for run_id in second["run_id"]}
    for draw in ("0", "1", "2"):
        assert f"\n| {draw} | " in report
    gate = runs("gate")
    assert gate["tags.gate.prior"][0] == prior
    assert artifact(gate["run_id"][0], "gate/report.md").exists()

    parent = of_stage(1).iloc[1]
    mlflow.delete_run(parent["run_id"])
    assert main(asked) == 0
    assert f"| 1 | {parent['metrics.selected/val_acc']:.2%} |" in capfd.readouterr().out


def test_searches_in_the_documents_run(store: Path) -> None:
    text = (DOCS / "signals.md").read_text() + (DOCS / "mlflow.md").read_text()
    queries = [
        ast.literal_eval(found) for found in re.findall(r'filter_string=("(?:[^"\\]|\\.)*")', text)
    ]
    queries += re.findall(r"`(tags\.[^`]*'[^`]*)`", text)
    queries += re.findall(r"``(metrics\.`[^`]*`[^`]*)``", text)
    assert len(queries) > 6
    for query in queries:
        mlflow.search_runs(["0"], query)


def test_an_enforced_gate_stops_stage_3_and_says_why(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("stage3", enforce_gate="true") == 2
    error = capfd.readouterr().err
    assert error.startswith("error: stage 3 is not started: the gate says not_yet (")
    assert "enforce_gate=false" in error
    assert list(runs()["tags.stage"]) == ["1", "2"]
    assert runs()["tags.gate.prior"].iloc[1] == "not_yet"
    assert command("stage3") == 0


def test_the_gate_reads_the_reference_users_lines(
    tmp_path: Path, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_text(REFERENCE)
    assert main(["gate", "--lines", str(tmp_path / "lines.txt")]) == 0
    output = capfd.readouterr().out
    assert "# Stage 3 can at best confirm: stage 2 already memorises (confirmation_only)" in output
    assert "(`z.gate.memorising` true)" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "pass -P run_id="),
        (["--run_id", "0" * 32], "does not exist"),
        (["--run_id", "a first stage"], "stage 1 of three_stage"),
        (["--lines", "/nowhere/lines.txt"], "cannot be read"),
        (["--lines", __file__], "no line `Stage-1 Best results"),
        (["--gate_flat", "-1", "--lines", __file__], "gate_flat"),
        (["--gate_flatt", "1", "--lines", __file__], "did you mean gate_flat?"),
        (["--run_id", "1", "--lines", __file__], "gate takes run_id or lines, got both"),
    ],
)
def test_what_the_gate_cannot_read_is_one_line(
    words: list[str],
    message: str,
    chain: list[pd.Series],
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = [chain[0]["run_id"] if word == "a first stage" else word for word in words]
    assert main(["gate", *words]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert message in line
