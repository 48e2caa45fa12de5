"""What runs say about themselves in MLflow, end to end: real training, real store, tiny sizes."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from pipeline.cli import main
from tests.conftest import Command, class_image
from tests.test_gate import REFERENCE
from tests.test_run_stage import artifact, runs

DOCS = Path(__file__).resolve().parent.parent / "docs"
POSITIVE = ("val_acc_gain", "val_loss_stable", "no_early_spike")
NEGATIVE = ("train_acc_saturates", "val_loss_rises", "unstable_across_runs")
ALL = {f"positive.{name}" for name in POSITIVE} | {f"negative.{name}" for name in NEGATIVE}
FOUR = {"stage1.epochs": "4"}
FIRST = {"positive.no_early_spike", "negative.train_acc_saturates", "negative.val_loss_rises"}


def signals_of(run: pd.Series) -> dict[str, str]:
    """Signal name -> state, from a run's tags."""
    prefix = "tags.signal."
    tags = {k.removeprefix(prefix): v for k, v in run.items() if str(k).startswith(prefix)}
    return {str(name): state for name, state in tags.items() if isinstance(state, str)}


def search(query: str) -> set[str]:
    import mlflow

    found = mlflow.search_runs(["0"], query)
    assert isinstance(found, pd.DataFrame)
    return set(found["run_id"]) if len(found) else set()


def test_every_stage_carries_its_signals_numbers_sentences_and_pictures(
    command: Command,
) -> None:
    import mlflow

    assert command("stage2") == 0
    first, second = (row for _, row in runs().iterrows())
    assert set(signals_of(first)) == FIRST
    assert set(signals_of(second)) == ALL
    assert set(signals_of(second).values()) <= {"true", "false", "unknown"}
    assert signals_of(second)["negative.unstable_across_runs"] == "unknown"
    for row, names in ((first, FIRST), (second, ALL)):
        note = row["tags.mlflow.note.content"]
        for name in names:
            assert f"`{name}` **{signals_of(row)[name]}**" in note
        for picture in ("risks", "signals"):
            assert artifact(row["run_id"], f"figures/{picture}.png").stat().st_size > 5000
    assert not artifact(first["run_id"], "figures/chain.png").exists()
    assert artifact(second["run_id"], "figures/chain.png").exists()

    evidence = json.loads(artifact(second["run_id"], "evidence.json").read_text())
    assert set(evidence["signals"]) == ALL
    assert evidence["inputs"]["parent_run_id"] == first["run_id"]
    assert evidence["thresholds"]["signal_saturation_acc"] == 0.99
    metrics = mlflow.get_run(second["run_id"]).data.metrics
    for signal in evidence["signals"].values():
        for key, value in signal["numbers"].items():
            assert metrics[f"signal/{key}"] == pytest.approx(value)


def test_the_gain_is_that_of_the_two_runs_on_the_same_images(
    command: Command,
) -> None:
    command("stage2")
    first, second = (row for _, row in runs().iterrows())
    difference = second["metrics.best/val_acc"] - first["metrics.best/val_acc"]
    assert second["metrics.signal/acc_gain"] == pytest.approx(difference, abs=1e-6)
    change = second["metrics.best/val_loss"] - first["metrics.best/val_loss"]
    assert second["metrics.signal/nll_change"] == pytest.approx(change, abs=1e-5)


def test_risks_are_logged_for_every_trainable_block_and_epoch(
    command: Command,
) -> None:
    import mlflow

    command("stage2", epochs="3")
    run_id = runs()["run_id"].iloc[-1]
    client = mlflow.MlflowClient()
    for kind in ("drift", "cka", "grad_norm", "grad_relative"):
        for block in ("head", "block4"):
            values = [m.value for m in client.get_metric_history(run_id, f"{kind}/{block}")]
            assert len(values) == 3
            assert all(value >= 0 for value in values)
        assert not client.get_metric_history(run_id, f"{kind}/block3")
    drift = [m.value for m in client.get_metric_history(run_id, "drift/block4")]
    assert 0 < drift[0] < drift[-1]
    metrics = client.get_run(run_id).data.metrics
    gap = metrics["train/acc"] - metrics["val/acc"]
    assert metrics["gap/acc"] == pytest.approx(gap)
    assert metrics["gap/loss"] == pytest.approx(metrics["val/loss"] - metrics["train/loss"])


def test_thresholds_change_the_reading_and_not_the_run(
    command: Command,
) -> None:
    command("stage1", **FOUR)
    command("stage1", signal_saturation_acc="0.01", reuse="off", **FOUR)
    first, second = (row for _, row in runs().iterrows())
    assert first["tags.lineage_key"] == second["tags.lineage_key"]
    assert first["tags.checkpoint_sha256"] == second["tags.checkpoint_sha256"]
    assert first["tags.signal.positive.no_early_spike"] == "true"
    assert second["tags.signal.positive.no_early_spike"] == "false"
    assert second["tags.signal.negative.train_acc_saturates"] == "true"


def test_searches_find_runs_by_their_signals(command: Command) -> None:
    command("stage1", **FOUR)
    command("stage1", signal_saturation_acc="0.01", reuse="off", **FOUR)
    calm, saturated = runs()["run_id"]
    query = "tags.\"signal.negative.train_acc_saturates\" = '{}'"
    assert search(query.format("true")) == {saturated}
    assert search(query.format("false")) == {calm}
    assert search("metrics.`signal/saturation_share` <= 1") == {saturated}


def test_the_third_sibling_brings_all_of_them_up_to_date(command: Command) -> None:
    name = "negative.unstable_across_runs"
    for seed in ("0", "1"):
        command("stage2", seed=seed)
    command("stage2", seed="5", lr="0.5")  # another recipe: no sibling
    second = runs().query("`tags.stage` == '2'")
    assert list(second[f"tags.signal.{name}"]) == ["unknown"] * 3
    assert list(second["metrics.signal/siblings"]) == [2, 2, 1]

    command("stage2", seed="2")
    second = runs().query("`tags.stage` == '2'")
    states = dict(zip(second["tags.seed"], second[f"tags.signal.{name}"], strict=True))
    assert states["5"] == "unknown"
    assert states["0"] == states["1"] == states["2"] != "unknown"
    family = second[second["tags.seed"] != "5"]
    assert family["metrics.signal/spread_p"].nunique() == 1
    assert set(family["metrics.signal/siblings"]) == {3}
    for _, run in family.iterrows():
        assert f"`{name}` **{states['0']}**: over 3 runs" in run["tags.mlflow.note.content"]
        evidence = json.loads(artifact(run["run_id"], "evidence.json").read_text())
        assert evidence["signals"][name]["state"] == states["0"]
        assert evidence["inputs"]["siblings"] == sorted(family["run_id"])


def test_a_sibling_is_read_by_its_own_thresholds(command: Command) -> None:
    """Whoever finishes last: an earlier version read all of them by the last one's."""
    own = {"0": "1e-9", "1": "0.999", "2": "0.5"}
    for seed, p in own.items():
        assert command("stage2", seed=seed, signal_spread_p=p) == 0
    second = runs().query("`tags.stage` == '2'")
    for _, run in second.iterrows():
        p = run["metrics.signal/spread_p"]
        state = "true" if p < float(own[run["tags.seed"]]) else "false"
        assert run["tags.signal.negative.unstable_across_runs"] == state
    assert set(second["tags.signal.negative.unstable_across_runs"]) == {"true", "false"}


def test_a_sibling_whose_files_may_not_be_written_is_left_and_said(
    command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in a folder of another person's; here pictures cannot be written, even by root."""
    assert command("stage2", seed="0") == 0
    theirs = runs().query("`tags.stage` == '2'")["run_id"].iloc[0]
    figures = artifact(theirs, "figures")
    shutil.rmtree(figures)
    figures.touch()
    capfd.readouterr()
    assert command("stage2", seed="1") == 0
    assert main(["gate", "--run_id", theirs]) == 0
    said = capfd.readouterr().out
    (note,) = [line for line in said.splitlines() if "is not brought up to date" in line]
    assert note.startswith(f"note: run {theirs} (stage2 · ")
    assert "cannot write MLflow's files (store figures/signals.png)" in note
    assert "Stage-2 Best results" in said


def test_a_repeated_run_is_no_sibling_of_itself(command: Command) -> None:
    for _ in range(3):
        command("stage2", reuse="off")
    second = runs().query("`tags.stage` == '2'")
    assert list(second["metrics.signal/siblings"]) == [1, 1, 1]


def test_lost_parent_predictions_leave_the_comparison_unknown(
    command: Command,
) -> None:
    command("stage1")
    parent = runs()["run_id"][0]
    artifact(parent, "evaluation/val_predictions.csv").unlink()
    assert command("stage2") == 0
    assert signals_of(runs().iloc[-1])["positive.val_acc_gain"] == "unknown"


# The gate


def test_the_gate_tags_every_sibling_and_writes_a_report(
    command: Command,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for draw in ("0", "1", "2"):
        command("stage2", draw=draw, train_per_class="2", val_per_class="2")
    second = runs().query("`tags.stage` == '2'")
    capfd.readouterr()
    assert main(["gate", "--run_id", second["run_id"].iloc[0]]) == 0
    said = capfd.readouterr().out
    assert "# Gate: " in said
    second = runs().query("`tags.stage` == '2'")
    priors = set(second["tags.gate.prior"])
    assert len(priors) == 1
    assert priors <= {"promising", "confirmation_only", "not_yet"}
    for name in ("optimization_stabilized", "consistent_gains", "headroom", "memorising"):
        assert second[f"tags.gate.{name}"].nunique() == 1
    reports = {artifact(run_id, "gate/report.md").read_text() for run_id in second["run_id"]}
    assert len(reports) == 1
    for draw in ("0", "1", "2"):
        assert f"\n| {draw} | " in next(iter(reports))
    gate = runs("gate")
    assert gate["tags.gate.prior"][0] in priors
    assert artifact(gate["run_id"][0], "gate/report.md").exists()


def test_the_gate_reads_on_where_a_siblings_parent_was_deleted(
    command: Command,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    for draw in ("0", "1"):
        assert command("stage2", draw=draw, train_per_class="3", val_per_class="3") == 0
    first = runs().query("`tags.stage` == '1' and `tags.draw` == '1'").iloc[0]
    mlflow.delete_run(first["run_id"])
    second = runs().query("`tags.stage` == '2' and `tags.draw` == '0'").iloc[0]
    assert main(["gate", "--run_id", second["run_id"]]) == 0
    said = capfd.readouterr().out
    assert f"| 1 | {first['metrics.best/val_acc']:.2%} |" in said


def test_searches_in_the_documents_run(store: Path) -> None:
    import mlflow

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
    command: Command,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert command("stage3", enforce_gate="true") == 2
    said = capfd.readouterr().err
    assert said.startswith("error: stage 3 is not started: the gate says not_yet (")
    assert "enforce_gate=false" in said
    assert list(runs()["tags.stage"]) == ["1", "2"]
    assert runs()["tags.gate.prior"].iloc[1] == "not_yet"
    assert command("stage3") == 0


def test_the_gate_reads_the_reference_users_lines(
    tmp_path: Path, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lines.txt"
    path.write_text(REFERENCE)
    assert main(["gate", "--lines", str(path)]) == 0
    said = capfd.readouterr().out
    assert "# Gate: confirmation_only" in said
    assert "`gate.memorising` **true**" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "gate needs -P run_id="),
        (["--run_id", "0" * 32], "does not exist"),
        (["--lines", "/nowhere/lines.txt"], "cannot be read"),
        (["--lines", __file__], "no line `Stage-1 Best results"),
        (["--gate_flat", "-1", "--lines", __file__], "gate_flat"),
        (["--gate_flatt", "1", "--lines", __file__], "did you mean gate_flat?"),
        (["--run_id", "1", "--lines", __file__], "gate takes run_id or lines, got both"),
    ],
)
def test_what_the_gate_cannot_read_is_one_line(
    words: list[str], message: str, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", *words]) == 2
    said = capfd.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


def test_the_gate_refuses_another_stage(
    command: Command,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command("stage1")
    assert main(["gate", "--run_id", runs()["run_id"][0]]) == 2
    assert "stage 1 of three_stage" in capfd.readouterr().err


def test_a_run_that_diverges_half_way_ends_and_says_so(command: Command) -> None:
    words = {"optimizer": "sgd", "lr": "100", "warmup": "0.9", "epochs": "40", "lr_decay": "100"}
    assert command("stage2", **words) == 0
    run = runs().iloc[-1]
    assert run["tags.diverged"] == "true"
    assert run["status"] == "FINISHED"
    evidence = json.loads(artifact(run["run_id"], "evidence.json").read_text())
    losses = evidence["inputs"]["curves"]["train_loss"]
    assert losses[0] is not None
    assert losses[-1] is None  # JSON knows no NaN
    assert len(losses) < 40
    signals = signals_of(run)
    assert signals["negative.val_loss_rises"] == "true"
    assert signals["positive.val_acc_gain"] == "false"
    assert signals["positive.no_early_spike"] == "unknown"
    assert "nan" not in run["tags.mlflow.note.content"].split("signal")[-1]
    assert artifact(run["run_id"], "figures/chain.png").stat().st_size > 5000


def test_a_run_made_to_memorise_is_found_by_its_signals(
    store: Path,
    tmp_path: Path,
    command: Command,
) -> None:
    import mlflow

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
    history = mlflow.MlflowClient().get_metric_history(run["run_id"], "train/acc")
    assert history[-1].value == 1.0


def test_siblings_are_brought_up_to_date_once_a_command_and_only_where_they_change(
    command: Command,
) -> None:
    for seed in ("0", "1"):
        assert command("stage2", seed=seed) == 0
    second = list(runs().query("`tags.stage` == '2'")["run_id"])
    evidence = [artifact(run_id, "evidence.json") for run_id in second]
    written = [path.stat().st_mtime_ns for path in evidence]
    assert command("main", schedule="two_stage", seed="1", **{"stage2.epochs": "1"}) == 0
    assert command("stage2", seed="1", reuse="off") == 0  # instead of the sibling it repeats
    assert [path.stat().st_mtime_ns for path in evidence] == written
    assert command("stage2", seed="2") == 0
    changed = [path.stat().st_mtime_ns for path in evidence]
    assert changed[0] != written[0]
    assert changed[1] == written[1]
