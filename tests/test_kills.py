"""SIGKILL in the middle of a stage, and the same command again: one run, the same bits."""

from __future__ import annotations

import os
import time
from pathlib import Path

import mlflow
import pytest

from pipeline.cli import main
from pipeline.system.disk.sealed import read_about
from pipeline.system.processes import KILLED_REASON, PROCESS
from pipeline.system.variables import KEEP_SHARE
from pipeline.tracking import RunView, Tracking, keys
from tests import forked
from tests.conftest import MOBILENET, tiny, words_of

EPOCHS = 16
pytestmark = pytest.mark.slow


def stages() -> list[RunView]:
    return Tracking.connect().find({keys.KIND: "stage"}, status=None)


def kill_after(epoch: int, words: list[str]) -> None:
    """SIGKILL a command once a state after that epoch, or a later one, is on the disk."""
    process = forked.start(words, Path(), Path(f"output-{epoch}.txt").absolute())
    folder = Path("cache", "unfinished")
    while process.returncode is None and not [
        path for path in folder.glob("*.state") if read_about(path)["done"][1] >= epoch
    ]:
        time.sleep(0.005)
    process.kill()
    assert process.returncode == -9, process.said()
    assert "error" not in process.said()


def test_a_stage_that_is_killed_twice_is_one_run_with_the_bits_of_an_undisturbed_one(
    store: Path,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(KEEP_SHARE, "1e9")
    options = tiny(
        image_folder,
        store,
        {"backbone": MOBILENET, "stage1.epochs": str(EPOCHS), "stage1.lr": "0.01"},
    )
    words = words_of("stage1", options)
    for epoch in (2, 7):
        kill_after(epoch, words)
        (run,) = stages()
        assert run.status == "RUNNING"
        assert run.tags[PROCESS] != str(os.getpid())
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f" of {EPOCHS}, from the state that a stopped command left" in out
    assert f"stage 1 epoch 7/{EPOCHS} " not in out
    assert f"stage 1 epoch {EPOCHS}/{EPOCHS} " in out
    (run,) = stages()
    assert (run.status, run.tags[PROCESS]) == ("FINISHED", str(os.getpid()))
    assert KILLED_REASON not in run.tags.values()
    assert not list(Path("cache", "unfinished").glob("*.state"))
    assert main([*words, "--reuse=off"]) == 0
    _, undisturbed = stages()
    assert undisturbed.tags[keys.CHECKPOINT_SHA256] == run.tags[keys.CHECKPOINT_SHA256]
    client = mlflow.MlflowClient()
    for name in (keys.VAL_LOSS, keys.TRAIN_LOSS, "risk/drift/head", "lr/head"):
        course, other = (
            [(point.step, point.value) for point in client.get_metric_history(one.run_id, name)]
            for one in (run, undisturbed)
        )
        assert course == other
        assert len(course) == EPOCHS
