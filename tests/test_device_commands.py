"""Whole commands on a fake device: every line that reads from it is known, a fault is one line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.comparing.estimate import REPEATS
from tests.conftest import Command, words_of
from tests.fake_device import TO_DEVICE, FakeDevice, Move

NETWORK = {"backbone": "tests.networks:Dropouts", "stage2.batch_size": "4", "precision": "auto"}
NETWORK |= {"near_duplicates": "0.25"}
READS = {
    "_train_once": "an epoch's loss and hits",
    "_validate": "its logits",
    "read": "its risks",
    "<dictcomp>": "the weights of the best epoch so far",
    "_outputs": "what the prefix makes of a batch, once for all",
    "joined": "logits of a split, or features of one: for stage 0, for BatchNorm's statistics",
    "put": "new statistics",
    "_quickest": "what an image costs, told before a comparison",
    "_features": "outputs of frozen blocks, to measure stages with",
    "found": "features that near duplicates are looked for with",
    "_as_bytes": "averaged features, a batch at a time, on their way to the disk",
    "_digest_tensor": "frozen weights, for the proof that they have not moved",
}
"""Functions in which the host waits for a device, and for what."""
SENT_AT_ONCE = {"compute_copy", "__post_init__"}
"""Functions that send weights, or an image to time, before anything is trained."""


def function_of(move: Move) -> str:
    return move.line.split()[-1]


def counted(moves: list[Move], *, sent: bool) -> Counter[str]:
    return Counter(
        function_of(move)
        for move in moves
        if (move.kind == TO_DEVICE) == sent and not move.is_free
    )


def errors(capfd: pytest.CaptureFixture[str]) -> list[str]:
    output = capfd.readouterr()
    assert "Traceback" not in output.out + output.err
    return [line for line in output.err.splitlines() if line.startswith("error: ")]


def test_commands_wait_for_a_device_where_that_is_known_and_a_full_one_costs_a_stage(
    command: Command, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    def stages(status: str) -> list[mlflow.entities.Run]:
        found = f"tags.kind = 'stage' and attributes.status = '{status}'"
        return mlflow.search_runs(["0"], found, output_format="list", order_by=["start_time"])

    options = {"device": "cuda:1", "test_per_class": "2", **NETWORK}
    with FakeDevice() as fake:
        assert command("stage1", **options) == 0
        capfd.readouterr()
        fake.largest_bytes = 1000
        assert command("stage2", **options) == 2
        (line,) = errors(capfd)
        assert "the memory of the device does not suffice" in line
        assert "batch_size" in line
        assert [len(stages(status)) for status in ("FINISHED", "FAILED")] == [1, 1]
        fake.largest_bytes = 1 << 30
        assert command("stage2", **options) == 0
        first, last = stages("FINISHED")
        words = {"run_id": last.info.run_id, "device": "cuda:1"}
        assert main(words_of("evaluate", {**words, "cache_dir": str(store / "cache")})) == 0
    read, sent = counted(fake.moves, sent=False), counted(fake.moves, sent=True)
    assert set(read) <= set(READS), read
    assert set(sent) <= SENT_AT_ONCE, sent
    assert read["_train_once"] == 3  # one epoch, and two
    assert read["_validate"] == 3 + 2  # and once before each stage, for what the risks start from
    assert fake.current == 1  # where pinned memory belongs
    assert last.data.params["precision"] == "bfloat16"
    assert last.data.tags["parent_run_id"] == first.info.run_id
    assert "test/acc" in stages("FINISHED")[1].data.metrics


@pytest.mark.slow
def test_a_refit_and_a_comparison_wait_for_a_device_where_that_is_known(
    command: Command, store: Path
) -> None:
    import mlflow

    options = {"device": "cuda:1", "test_per_class": "2", "stage1.epochs": "1", **NETWORK}
    options |= {"stage2.epochs": "1"}
    options |= dict.fromkeys(("batch_size", "stage1.batch_size", "stage2.batch_size"), "12")
    with FakeDevice() as fake:
        assert command("stage1", **options) == 0
        (stage,) = mlflow.search_runs(["0"], "tags.kind = 'stage'", output_format="list")
        words = {"run_id": stage.info.run_id, "cache_dir": str(store / "cache")}
        assert main(words_of("refit", {**words, "device": "cuda:1"})) == 0
        assert command("compare", draws="2", schedules="head_only,two_stage", **options) == 0
    read, sent = counted(fake.moves, sent=False), counted(fake.moves, sent=True)
    assert set(read) <= set(READS), read
    assert set(sent) <= SENT_AT_ONCE, sent
    runs = mlflow.search_runs(["0"], "tags.kind = 'stage'", output_format="list")
    client = mlflow.MlflowClient()
    epochs = [client.get_metric_history(run.info.run_id, "acc/train") for run in runs]
    measured = 4 * (1 + REPEATS)  # stages of the two schedules and of the baseline
    assert read["_train_once"] == sum(map(len, epochs)) + 1 + measured  # one of the refit
