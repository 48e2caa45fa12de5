"""The real chain, started the way users start it: `mlflow run`, servers, signals, full disks."""

from __future__ import annotations

import base64
import json
import os
import resource
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.conftest import write_image_folder
from tests.integration.conftest import QUICK, SMALLER, Run
from tests.postgres import free_port
from tests.served import tracking_server, wait_for

pytestmark = pytest.mark.slow
ENVIRONMENT_GIB = 16  # the standard build of torch with CUDA, and its packages on the way


def stored_runs(uri: str) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(uri)
    places = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(places, order_by=["attributes.start_time ASC"]))


def test_stage3_on_a_clean_clone_is_one_launched_run_and_its_parents(
    mlflow_run: Run, clone: Path
) -> None:
    done = mlflow_run("stage3", log_pictures="on")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Best results: Train Loss") == 3
    runs = stored_runs(f"sqlite:///{clone / 'mlflow.db'}")
    assert sorted(r.data.tags["stage"] for r in runs) == ["1", "2", "3"]
    assert {r.info.status for r in runs} == {"FINISHED"}
    launched = next(r for r in runs if r.data.tags["stage"] == "3")
    assert launched.info.run_id in done.stderr
    assert launched.data.tags["mlflow.project.entryPoint"] == "stage3"
    assert "-dirty" not in launched.data.tags["z.git_commit"]
    assert len(launched.data.tags["z.git_commit"]) == 40
    for run in runs:
        assert (Path(run.info.artifact_uri) / "figures/risks.png").is_file()

    again = mlflow_run("main")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("(reused)") == 3


def test_a_fault_fails_the_launched_run_with_one_line_and_the_reason(
    mlflow_run: Run, clone: Path
) -> None:
    done = mlflow_run("stage2", epohcs="3")
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: unknown setting epohcs (command line): did you mean epochs?"]
    assert mlflow_run("stage2", data="nowhere").returncode != 0
    runs = stored_runs(f"sqlite:///{clone / 'mlflow.db'}")
    assert [run.info.status for run in runs] == ["FAILED", "FAILED"]
    assert "data=nowhere: neither digits" in runs[1].data.tags["failure"]


@pytest.fixture
def environments(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A folder of the test's own for MLflow's environments and uv's cache, gone afterwards."""
    folder = tmp_path / "environments"
    free = shutil.disk_usage(tmp_path).free / 2**30
    if free < ENVIRONMENT_GIB:
        pytest.skip(f"an environment takes {ENVIRONMENT_GIB} GiB of disk, {free:.0f} are free")
    yield {
        "MLFLOW_ENV_ROOT": str(folder / "mlflow"),
        "UV_CACHE_DIR": str(folder / "uv"),
        "PIP_NO_CACHE_DIR": "1",  # what is downloaded is needed once
        "PIP_NO_COMPILE": "0",  # pip's way to say yes; bytecode of all of torch takes minutes
        "UV_SYSTEM_CERTS": "1",  # as pip does; a proxy's certificate is known to the system alone
    }
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("manager", ["virtualenv", "uv"])
def test_isolated_environments_work(
    mlflow_run: Run, environments: dict[str, str], manager: str
) -> None:
    tool = {"virtualenv": "pyenv", "uv": "uv"}[manager]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = mlflow_run("stage1", "--env-manager", manager, env=environments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Stage-1 Best results" in done.stdout


def test_a_tracking_server_works_the_same(mlflow_run: Run, clone: Path, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with tracking_server(tmp_path / "server") as server:
        there = {"env": {"MLFLOW_TRACKING_URI": server}, "quick": SMALLER}
        done = mlflow_run("stage2", **there)
        assert done.returncode == 0, done.stderr
        assert [r.info.status for r in stored_runs(server)] == ["FINISHED", "FINISHED"]
        assert not (clone / "mlflow.db").exists()
        again = mlflow_run("stage3", **there)
        assert "stage 2: found run" in again.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_marked_killed(
    clone: Path, environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    words = ["stage1", "--epochs", "9999"]
    output, complaints = tmp_path / "out.txt", tmp_path / "err.txt"
    command = forked.start(words, clone, output, environment, complaints=complaints)
    try:
        forked.wait_until(lambda: "epoch 3/" in command.said(), command)
        os.kill(command.pid, number)
        assert command.wait(60) == 130
    finally:
        command.kill()
    assert "Traceback" not in complaints.read_text()
    assert [r.info.status for r in stored_runs(f"sqlite:///{clone / 'mlflow.db'}")] == ["KILLED"]


def test_ctrl_c_under_mlflow_run_ends_the_launched_run_and_says_why(
    clone: Path, environment: dict[str, str]
) -> None:
    process = subprocess.Popen(
        [*("mlflow", "run", ".", "-e", "stage1", "--env-manager", "local"), "-P", "epochs=9999"],
        cwd=clone,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while "epoch 3/" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    said, _ = process.communicate(timeout=60)
    assert "stopped: what ran is marked KILLED, or FAILED by `mlflow run`; the same" in said
    (run,) = stored_runs(f"sqlite:///{clone / 'mlflow.db'}")
    assert run.info.status in ("KILLED", "FAILED")  # MLflow 3.17 replaces the one by the other
    assert run.data.tags["failure"] == "stopped by Ctrl-C or a signal"


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000_000, 8_000_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_full_disk_is_one_line_and_a_failed_run(
    clone: Path, environment: dict[str, str]
) -> None:
    words = ["main", "--cache", "off", *(w for k, v in QUICK.items() for w in (f"--{k}", v))]
    done = forked.run(words, clone, environment, limit_file_size)
    assert done.returncode == 2, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "free some space" in errors[0]
    assert "Traceback" not in done.stderr
    runs = stored_runs(f"sqlite:///{clone / 'mlflow.db'}")
    assert "RUNNING" not in {r.info.status for r in runs}


def test_the_logged_model_answers_with_class_names_and_probabilities(
    mlflow_run: Run, clone: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    images = write_image_folder(tmp_path / "images", 20)
    quick = {f"stage{n}.epochs": "4" for n in (1, 2, 3)}
    done = mlflow_run("stage2", data=str(images), weights="tiny_imagenet", lr="0.003", **quick)
    assert done.returncode == 0, done.stderr
    runs = stored_runs(f"sqlite:///{clone / 'mlflow.db'}")
    uri = next(r.data.tags["model_uri"] for r in runs if r.data.tags["stage"] == "2")
    environment = {**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{clone / 'mlflow.db'}"}

    content = (images / "berry" / "00.png").read_bytes()
    body = {
        "dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(content).decode()]]}
    }
    question = tmp_path / "question.json"
    question.write_text(json.dumps(body))
    words = ["mlflow", "models", "predict", "-m", uri, "-i", str(question), "-t", "json"]
    predicted = subprocess.run(
        [*words, "--env-manager", "local"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    row = json.loads(predicted.stdout.splitlines()[-1])["predictions"][0]
    assert set(row) == {"label", "apple", "berry", "cherry", "error"}
    assert row["label"] == "berry"
    assert sum(row[name] for name in ("apple", "berry", "cherry")) == pytest.approx(1)

    port = free_port()
    serve = ["mlflow", "models", "serve", "-m", uri, "--port", str(port), "--env-manager", "local"]
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            serve, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/ping", process)
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert answer["predictions"][0] == pytest.approx(row)


def test_tune_and_decide_are_one_launched_run_each(mlflow_run: Run, clone: Path) -> None:
    import optuna

    tuned = mlflow_run("tune", quick=SMALLER, stage="2", n_trials="2")
    assert tuned.returncode == 0, tuned.stderr
    storage = f"sqlite:///{clone / 'optuna.db'}"  # beside MLflow's database
    (name,) = optuna.get_all_study_names(storage)
    used = mlflow_run("stage2", quick=SMALLER, tuned="true")
    assert used.returncode == 0, used.stderr
    assert f"tuned by study {name}" in used.stdout
    asked = {"question": "stage2", "looks": "2", "refit": "draw", "register_as": "digits-test"}
    decided = mlflow_run("decide", quick=SMALLER, **asked)
    assert decided.returncode == 0, decided.stderr
    runs = stored_runs(f"sqlite:///{clone / 'mlflow.db'}")
    launched = {
        run.data.tags["kind"]: run for run in runs if "mlflow.project.entryPoint" in run.data.tags
    }
    assert set(launched) == {"tune", "stage", "decision"}
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    assert launched["stage"].data.tags["z.tuned_by"] == name
    assert launched["decision"].data.tags["verdict"]


def test_compare_and_pretrain_are_one_launched_run_each(
    mlflow_run: Run, clone: Path, tmp_path: Path
) -> None:
    compared = mlflow_run("compare", quick=SMALLER, schedules="head_only,two_stage", draws="2")
    assert compared.returncode == 0, compared.stderr
    uri = f"sqlite:///{clone / 'mlflow.db'}"
    out = tmp_path / "weights.safetensors"
    quick = {"data": "digits", "backbone": "mobilenet_v3_small", "image_size": "32", "epochs": "1"}
    quick |= {"train_per_class": "10", "val_per_class": "10"}
    pretrained = mlflow_run("pretrain", out=str(out), quick=quick)
    assert pretrained.returncode == 0, pretrained.stderr
    assert out.stat().st_size > 1_000_000
    launched = {
        run.data.tags["mlflow.project.entryPoint"]: run
        for run in stored_runs(uri)
        if "mlflow.project.entryPoint" in run.data.tags
    }
    assert set(launched) == {"compare", "pretrain"}
    assert {run.info.status for run in launched.values()} == {"FINISHED"}
    assert launched["compare"].info.run_id in compared.stderr
    assert {m for m in launched["compare"].data.metrics if m.startswith("difference_pp/")} == {
        f"difference_pp/mobilenet_v3_small/{name}" for name in ("head_only", "two_stage")
    }
