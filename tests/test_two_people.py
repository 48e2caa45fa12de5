"""Two people, one tracking server: what one of them does changes nothing that the other recorded.

Alice and Bob have working folders, caches and studies of their own, the same images, and type
nearly the same. The server is a real one; both write to its default experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline.cli import main
from pipeline.system.processes import BEAT
from pipeline.tracking import Tracking
from pipeline.tracking.keys import stored_tag
from tests.comparisons import write_pool
from tests.conftest import MOBILENET, words_of
from tests.served import tracking_server
from tests.test_decide import SMALL

pytestmark = pytest.mark.slow

READING = "signal.negative.unstable_across_runs"
KEPT_UP_TO_DATE = {READING, "mlflow.note.content"}
"""Tags in which a run speaks of its siblings, whoever ran them."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tracking_server(tmp_path_factory.mktemp("server")) as address:
        yield address


@dataclass
class Person:
    """Somebody with a working folder, and what was said there last."""

    folder: Path
    data: Path
    patch: pytest.MonkeyPatch

    def types(self, entry_point: str, **options: str) -> int:
        self.patch.chdir(self.folder)
        own = {**SMALL, "data": str(self.data), "cache_dir": str(self.folder / "cache")}
        own |= {"log_model": "off"}
        return main(words_of(entry_point, {**own, **options}))

    def gate(self, run_id: str, **options: str) -> int:
        self.patch.chdir(self.folder)
        return main(words_of("gate", {"run_id": run_id, **options}))


@pytest.fixture
def people(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Person, Person]]:
    """Alice and Bob; what others have recorded is in the trash."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    mlflow.set_tracking_uri(server)
    data = write_pool(tmp_path / "images")
    found = []
    for name in ("alice", "bob"):
        (tmp_path / name).mkdir()
        found.append(Person(tmp_path / name, data, monkeypatch))
    for run_id in recorded():
        mlflow.delete_run(run_id)
    yield found[0], found[1]
    mlflow.set_tracking_uri("sqlite:///mlflow.db")


def recorded() -> dict[str, dict[str, Any]]:
    """All that the server holds of every run, by id, without the sign of life of its owner."""
    client = mlflow.MlflowClient()
    return {
        run.info.run_id: {
            "status": run.info.status,
            "ended": run.info.end_time,
            "tags": drop(run.data.tags, {stored_tag(BEAT)}),
            "params": dict(run.data.params),
            "metrics": dict(run.data.metrics),
            "files": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
        }
        for run in mlflow.search_runs(search_all_experiments=True, output_format="list")
    }


def check_unchanged(
    before: Mapping[str, Mapping[str, Any]], *, but: set[str] | None = None
) -> None:
    """Every run is as it was, `but` for these tags and the numbers of the reading of siblings."""
    now = recorded()
    for run_id, was in before.items():
        for part, values in was.items():
            if part == "tags" and but:
                assert drop(now[run_id][part], but) == drop(values, but)
            elif part == "metrics" and but:
                spread = {key for key in now[run_id][part] if key.startswith("signal/")}
                assert drop(now[run_id][part], spread) == drop(values, spread)
            else:
                assert now[run_id][part] == values


def drop(values: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def of_kind(kind: str) -> list[str]:
    return [run_id for run_id, run in recorded().items() if run["tags"].get("kind") == kind]


@pytest.fixture
def living() -> Iterator[Callable[[], None]]:
    """A run of a process that lives, and a check that nobody ended it."""
    tracking = Tracking.connect()
    with tracking.run("at work", {"kind": "chain"}, target=False) as log:
        yield lambda: check_running(log.run_id)


def check_running(run_id: str) -> None:
    run = mlflow.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert "failure" not in run.data.tags


def test_the_same_studies_in_two_storages(
    people: tuple[Person, Person], living: Callable[[], None]
) -> None:
    alice, bob = people
    options = {"stage": "1", "n_trials": "2"}
    assert alice.types("tune", **options) == 0
    before = recorded()
    assert bob.types("tune", **options) == 0
    check_unchanged(before)
    assert bob.types("tune", **{**options, "n_trials": "3"}) == 0
    check_unchanged(before)
    assert len(of_kind("study")) == 2
    assert (alice.folder / "optuna.db").exists()
    living()


def test_chains_and_gates_of_the_same_recipe(
    people: tuple[Person, Person], living: Callable[[], None]
) -> None:
    """Siblings count each other's runs; each is read by its own thresholds, not by the asker's."""
    alice, bob = people
    strict, lax = ({"backbone": MOBILENET, "signal_spread_p": p} for p in ("1e-9", "0.999"))
    for draw in ("0", "1"):
        assert alice.types("main", draw=draw, **strict) == 0
    second = [i for i, run in recorded().items() if run["tags"].get("stage") == "2"]
    assert alice.gate(second[0]) == 0
    alices = before = recorded()
    flat = "z.gate.optimization_stabilized"
    assert {before[run_id]["tags"][flat] for run_id in second} == {"false"}
    for draw in ("0", "2"):
        assert bob.types("main", draw=draw, **lax) == 0
    after = recorded()
    check_unchanged(before, but=KEPT_UP_TO_DATE)
    for run_id in second:
        assert before[run_id]["tags"][READING] == "unknown"
        assert after[run_id]["tags"][READING] == "false"
    (bobs,) = (
        run["tags"]
        for run_id, run in after.items()
        if run_id not in before and run["tags"].get("stage") == "2"
    )
    assert bobs[READING] == "true"
    before = recorded()
    assert bob.gate(second[0], gate_flat="1e9") == 0
    after = recorded()
    (gate,) = (run for i, run in after.items() if i not in before)
    assert gate["tags"][flat] == "true"
    assert {after[run_id]["tags"][flat] for run_id in second} == {"false"}
    readings = {key for key in gate["tags"] if key.startswith(("gate.", "z.gate."))}
    check_unchanged({i: before[i] for i in alices}, but=readings)
    living()


@pytest.mark.usefixtures("without_onnx")
def test_decisions_on_the_same_pairs(
    people: tuple[Person, Person], living: Callable[[], None]
) -> None:
    alice, bob = people
    asked = {"question": "stage2", "epochs": "1", "register_as": "off"}
    assert alice.types("decide", **asked, looks="2", rope_pp="0.5") == 0
    before = recorded()
    marked = {i for i, run in before.items() if "z.decision_run_id" in run["tags"]}
    assert len(marked) == 2
    assert bob.types("decide", **asked, looks="2", rope_pp="40") == 0
    check_unchanged(before)
    new = {i: run for i, run in recorded().items() if i not in before}
    assert [run["tags"]["kind"] for run in new.values()] == ["decision"]  # the rest was found
    assert bob.types("decide", **asked, looks="3", rope_pp="40") == 0
    check_unchanged(before, but=KEPT_UP_TO_DATE)
    of_bob = {i for i, run in recorded().items() if "z.decision_run_id" in run["tags"]} - marked
    assert len(of_bob) == 1  # the third pair is his
    living()


def test_comparisons_on_the_same_draws(
    people: tuple[Person, Person], living: Callable[[], None]
) -> None:
    alice, bob = people
    asked = {"schedules": "full,head_only", "epochs": "1"}
    assert alice.types("compare", **asked, draws="2") == 0
    before = recorded()
    assert bob.types("compare", **asked, draws="3", rope_pp="9") == 0
    check_unchanged(before)
    assert len(of_kind("comparison")) == 2
    living()
