"""`clean` says what is occupied, removes what can be made again, and touches nothing else."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from filelock import FileLock

from pipeline.cli import main
from pipeline.system.disk.shelf import Shelf
from pipeline.system.processes import owner_mark
from pipeline.tracking import Tracking
from pipeline.tracking.disk import DELETED, FAILED, KEPT, TRIALS, size_of
from pipeline.tracking.keys import COMPLETED, IS_TRIAL, KIND, NESTED_UNDER, PARENT_RUN_ID, TEST
from pipeline.training.prefix.cache import clear


def clean(cache: Path, *words: str) -> int:
    return main(["clean", "--cache_dir", str(cache), *words])


def write_run(tracking: Tracking, tags: dict[str, str], status: str = "FINISHED") -> str:
    """A run with an artifact of 1,000 bytes, as a command leaves it."""
    run_id = tracking.start("a run", tags)
    log = tracking.writing(run_id)
    log.text("x" * 1000, "checkpoint/checkpoint.safetensors")
    if status != "RUNNING":
        log.set_status(status)
    return run_id


def trial_of(study: str, **tags: str) -> dict[str, str]:
    return {KIND: "stage", IS_TRIAL: "true", NESTED_UNDER: study, **tags}


def kinds(tracking: Tracking) -> dict[str, str]:
    return {run.run_id: run.what for run in tracking.on_disk()}


def test_runs_are_told_apart(store: Path) -> None:
    tracking = Tracking.connect()
    study = write_run(tracking, {KIND: "study"})
    decision = write_run(tracking, {KIND: "decision"})
    parent = write_run(tracking, trial_of(study))
    expected = {
        study: KEPT,
        decision: KEPT,
        parent: KEPT,  # a finished run continues from it
        write_run(tracking, trial_of(study, **{PARENT_RUN_ID: parent})): TRIALS,
        write_run(tracking, trial_of(study, **{COMPLETED: "true"})): KEPT,
        write_run(tracking, trial_of(decision)): KEPT,  # of a pair
        write_run(tracking, {KIND: "stage"}, "FAILED"): FAILED,
        write_run(tracking, {KIND: "chain"}, "KILLED"): FAILED,
        write_run(tracking, {KIND: "stage"}, "RUNNING"): KEPT,
        write_run(tracking, trial_of(study), "RUNNING"): KEPT,
    }
    of_main, pair = (write_run(tracking, trial_of(study)) for _ in range(2))
    chain = write_run(tracking, {KIND: "chain", "stage3_run_id": of_main})
    tracking.writing(pair).metrics({TEST["acc"]: 0.5})
    expected |= {of_main: KEPT, pair: KEPT, chain: KEPT}
    write_run(tracking, {"made_by": "another program"}, "FAILED")
    deleted = write_run(tracking, {KIND: "stage"})
    mlflow.MlflowClient().delete_run(deleted)
    assert kinds(tracking) == {**expected, deleted: DELETED}


def test_the_dry_run_touches_nothing_and_removal_only_what_was_asked_for(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracking = Tracking.connect()
    study = write_run(tracking, {KIND: "study"})
    trial = write_run(tracking, trial_of(study))
    failed = write_run(tracking, {KIND: "stage"}, "FAILED")
    before = size_of(store)
    assert clean(tmp_path / "cache") == 0
    out = capsys.readouterr().out
    assert "trials of studies (1)" in out
    assert "failed and stopped runs (1)" in out
    assert "runs without files are not counted" in out
    assert "nothing was removed" in out
    assert "mlflow experiments create -n NAME --artifact-location FOLDER" in out
    assert size_of(store) == before
    assert clean(tmp_path / "cache", "--remove", "trials") == 0
    assert kinds(tracking) == {study: KEPT, failed: FAILED}
    info = mlflow.get_run(trial).info
    assert info.lifecycle_stage == "deleted"
    assert not Path(info.artifact_uri).exists()
    assert clean(tmp_path / "cache", "-P", "remove=failed") == 0
    assert kinds(tracking) == {study: KEPT}
    assert "of 1 run marked as deleted" in capsys.readouterr().out


def test_a_registered_model_and_what_runs_again_stay(store: Path, tmp_path: Path) -> None:
    tracking = Tracking.connect()
    failed = write_run(tracking, {KIND: "stage"}, "FAILED")
    client = mlflow.MlflowClient()
    client.create_registered_model("kept")
    client.create_model_version("kept", mlflow.get_run(failed).info.artifact_uri, failed)
    assert clean(tmp_path / "cache", "--remove", "failed") == 0
    assert kinds(tracking) == {failed: KEPT}
    other = write_run(tracking, {KIND: "stage"}, "FAILED")
    (stored,) = [run for run in tracking.on_disk() if run.run_id == other]
    tracking.writing(other).set_status("RUNNING")  # between the list and the removal
    tracking.discard(stored)
    assert kinds(tracking)[other] == KEPT


def test_the_cache_is_emptied_except_what_is_being_used_or_written(tmp_path: Path) -> None:
    folder = tmp_path / "prefix"
    folder.mkdir()
    for key in ("free", "held"):
        for kind in (".bin", ".json", ".lock"):
            (folder / f"{key}{kind}").write_bytes(b"12345")
    part = folder / f"new.{owner_mark()}.tmp"
    part.write_bytes(b"123")
    with FileLock(folder / "held.lock"):
        assert clear(folder) == 5
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["held.bin", "held.json", "held.lock", part.name]
    )
    assert clear(folder) == 5
    assert [path.name for path in folder.iterdir()] == [part.name]
    assert clear(tmp_path / "nowhere") == 0


@pytest.mark.parametrize("words", ["all", "cache,runs"])
def test_what_cannot_be_removed_is_refused(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert clean(tmp_path / "cache", "--remove", words) == 2
    assert "must be words out of cache, trials, failed" in capsys.readouterr().err


def test_an_entry_that_a_process_uses_stays_until_it_is_used_no_more(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "prefix", 100)
    use = shelf.use(shelf.folder / "key.bin")
    (shelf.folder / "key.bin").write_bytes(b"12345")
    assert clear(shelf.folder) == 0
    use.end()
    assert clear(shelf.folder) == 5
