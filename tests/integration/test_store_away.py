"""Commands whose tracking server goes away: they wait, lose nothing and store nothing twice.

A real tracking server stands behind a door, which does what servers do that go away.
"""

from __future__ import annotations

import io
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from pipeline.cli import main
from pipeline.system.variables import SERVER_WAIT
from pipeline.tracking import keys
from pipeline.tracking.connection import patience
from pipeline.tracking.connection.patience import RETRIES, TIMEOUT
from tests.conftest import PointAt, tiny, words_of, write_image_folder
from tests.served import Guard, tracking_server

pytestmark = pytest.mark.slow


class Door:
    """What happens to the requests that go through; `shut` until the clock says so."""

    def __init__(self) -> None:
        self.how, self.when, self.for_s = "", "", 0.0
        self.shut_until, self.seen = 0.0, Counter[str]()
        self.lock = threading.Lock()

    def shut(self, how: str, when: str, for_s: float) -> None:
        """From the first request on whose path holds `when`, for so long."""
        self.how, self.when, self.for_s = how, when, for_s

    def fate(self, method: str, path: str) -> str:
        """`pass`, or how the server is away from this request."""
        kind = f"{method} {re.sub('/(m-)?[0-9a-f]{32}.*|[?].*', '', path)}"
        with self.lock:
            self.seen[kind] += 1
            if self.how == "lose":  # every kind of answer once, but for the first question of all
                is_first = self.seen[kind] == 1 and not kind.endswith("experiments/search")
                return "lose" if is_first else "pass"
            if self.when and self.when in path:
                self.when, self.shut_until = "", time.monotonic() + self.for_s
            return self.how if time.monotonic() < self.shut_until else "pass"


class Doorway(Guard):
    """A proxy that lets requests through a door."""

    def __init__(self, *args: object, door: Door, target: str) -> None:
        self.door = door
        super().__init__(*args, target=target, login=None)  # type: ignore[arg-type]

    def pass_on(self) -> None:
        match self.door.fate(self.command, self.path):
            case "pass":
                super().pass_on()
            case "lose":
                self.wfile = io.BytesIO()  # type: ignore[assignment]
                super().pass_on()
                self.close_connection = True
            case "hang":
                time.sleep(max(0, self.door.shut_until - time.monotonic()))
                super().pass_on()
            case "503":
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.answer(503, {}, b"")
            case _:
                self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tracking_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def door(
    server: str,
    serve: Callable[..., str],
    point_at: PointAt,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Door:
    """The way to the server; runs are recorded in an experiment of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    for name in (TIMEOUT, RETRIES, SERVER_WAIT, "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    door = Door()
    point_at(serve(partial(Doorway, door=door, target=server)))
    return door


def train(images: Path, folder: Path, log_model: str = "off") -> int:
    """The exit code of stage 1."""
    options = {"stage1.epochs": "2", "log_model": log_model, "log_pictures": "on"}
    return main(words_of("stage1", tiny(images, folder, options)))


def only_finished(server: str, name: str) -> Run:
    """The one run that is FINISHED, with all its files and metrics, each once."""
    client = mlflow.MlflowClient(server)
    experiment = client.get_experiment_by_name(name)
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [run for run in runs if run.info.status == "FINISHED"]
    for metric, count in {"acc/val": 2, "loss/train": 2, "selected/val_acc": 1}.items():
        history = client.get_metric_history(run.info.run_id, metric)
        assert len({point.step for point in history}) == len(history) == count
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"checkpoint", "evaluation", "figures", "settings.json"} <= files
    return run


@pytest.mark.parametrize("how", ["drop", "503", "hang"])
def test_a_short_absence_costs_nothing_but_time(
    how: str,
    door: Door,
    server: str,
    images: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if how == "hang":
        monkeypatch.setenv(TIMEOUT, "1")
    door.shut(how, "runs/log-batch", 2)
    assert train(images, tmp_path) == 0
    err = capfd.readouterr().err
    assert "the tracking server at http://127.0.0.1" in err
    assert "is away" in err
    assert "is back" in err
    assert len(only_finished(server, request.node.name).data.params) > 5


def test_answers_that_are_lost_make_nothing_twice(
    door: Door,
    server: str,
    images: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.2)
    door.how = "lose"
    assert train(images, tmp_path, log_model="on") == 0
    run = only_finished(server, request.node.name)
    client = mlflow.MlflowClient(server)
    experiment = client.get_experiment_by_name(request.node.name)
    assert experiment
    assert len(client.search_runs([experiment.experiment_id])) == 1
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert model.status == "READY"
    assert model.model_uri == run.data.tags[keys.MODEL_URI]
    assert door.seen["POST /api/2.0/mlflow/runs/create"] == 1
    assert len(door.seen) > 10


def test_a_server_that_stays_away_ends_the_command_and_the_same_command_goes_on(
    door: Door,
    server: str,
    images: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(SERVER_WAIT, "1")
    door.shut("drop", "checkpoint.safetensors", 3600)
    assert train(images, tmp_path) == 2
    lines = capfd.readouterr().err.splitlines()
    (error,) = [line for line in lines if not line.startswith("note: ")]
    assert error.startswith("error: the tracking server at http://127.0.0.1")
    assert "has stayed away" in error
    assert "run the same command again" in error
    assert "trained is kept in" in error
    assert "unfinished" in error
    door.shut_until = 0
    assert train(images, tmp_path) == 0
    assert "goes on after epoch" in capfd.readouterr().out
    only_finished(server, request.node.name)
