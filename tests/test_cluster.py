"""Tasks on Ray: a cluster of two nodes that are processes, GPUs that are numbers, real losses."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline.cluster.dispatcher import Cluster, cluster_of, cores_each
from pipeline.cluster.engine import connected
from pipeline.cluster.task import Around
from pipeline.cluster.task import perform as perform_task
from pipeline.entries.command_line.table import perform
from pipeline.errors import ClusterError, DataError, DivergedError
from pipeline.settings.cluster import ClusterSettings
from pipeline.system.interrupts import stopped_by_signals
from pipeline.system.processes import PROCESS
from pipeline.tracking.keys import stored_tag
from tests.conftest import NETS, Command, PointAt, inside, write_image_folder
from tests.postgres import Postgres
from tests.served import tracking_server
from tests.test_decide import SMALL, STAGE2, VERDICT_TAGS
from tests.work import Look, LostOnce, Waits, Writes

ROOT = Path(__file__).resolve().parents[1]
SECRET = "cl0ster-s3cret"


@pytest.mark.parametrize(
    ("nodes", "gpus", "workers", "cores"),
    [
        *(([{"CPU": 8.0}], 0.0, n, c) for n, c in [(1, 8), (2, 4), (3, 2), (8, 1), (9, 1)]),
        ([{"CPU": 64.0}, {"CPU": 2.0}], 0.0, 0, 2),
        ([{"CPU": 64.0}], 0.0, 0, 4),
        ([{"CPU": 16.0, "GPU": 8.0}, {"CPU": 1.0}], 1.0, 0, 2),
        ([{"CPU": 16.0, "GPU": 8.0}], 0.5, 0, 1),
        ([], 0.0, 0, 4),
    ],
)
def test_tasks_share_the_cores_of_a_node(
    nodes: list[dict[str, float]], gpus: float, workers: int, cores: int
) -> None:
    assert cores_each(nodes, gpus, workers) == cores


def test_one_of_several_gpus_by_its_number_is_refused_for_tasks_before_ray_starts() -> None:
    for where in ({"workers": "2"}, {"cluster": "127.0.0.1:1"}):
        refused = pytest.raises(ClusterError, match=r"device=cuda:1 .*-P device=cuda\b")
        with refused, cluster_of(ClusterSettings(**where), "cuda:1", print):
            pass
    with cluster_of(ClusterSettings(), "cuda:1", print) as none:  # no tasks
        assert none is None


def test_faults_come_back_from_a_task_as_they_were() -> None:
    fault = DivergedError("no number", "run7")
    fault.add_note("kept in a folder")
    back = pickle.loads(pickle.dumps(fault))
    assert (str(back), back.run_id, back.__notes__) == ("no number", "run7", fault.__notes__)


def test_a_later_task_of_a_process_is_stopped_between_two_batches_too(tmp_path: Path) -> None:
    around, work = (
        pickle.dumps(Around(folder=tmp_path, variables={})),
        pickle.dumps(Writes(tmp_path)),
    )
    with inside(tmp_path):
        perform_task(around, work, pickle.dumps(0))
        with pytest.raises(KeyboardInterrupt):
            perform_task(around, work, pickle.dumps(1))
    assert (tmp_path / "written").exists()


def test_a_machine_that_comes_later_does_not_record_in_a_file_of_its_own(tmp_path: Path) -> None:
    """A cluster that grows: at its begin, all its nodes were here."""
    lone: dict[str, Any] = {"folder": tmp_path, "variables": {}, "host_has": "sqlite:///mine.db"}
    work = pickle.dumps(Look(tmp_path, 1))
    with inside(tmp_path):
        there = perform_task(pickle.dumps(Around(host="first", **lone)), work, pickle.dumps(0))
        here = Around(host=socket.gethostname(), **lone)
        assert perform_task(pickle.dumps(here), work, pickle.dumps(1)).value
    assert isinstance(there.fault, ClusterError)
    assert f"({socket.gethostname()}), which do not see sqlite:///mine.db" in str(there.fault)
    assert not (tmp_path / "here0").exists()


def test_without_ray_one_line_says_what_to_install(
    command: Command, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for entry_point, words in {
        "decide": {"workers": "2"},
        "compare": {"cluster": "local"},
        "tune": {"cluster": "ray://127.0.0.1:10001"},
    }.items():
        assert command(entry_point, **words) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: cluster=")
        assert 'pip install "how-far-to-unfreeze[ray]"' in line
    assert mlflow.search_runs(["0"], output_format="list") == []


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_out_of_reach_is_one_line_at_once(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "grpc", sys)  # nothing is called before the port answers
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    address = f"{scheme}127.0.0.1:{port}"
    with (
        pytest.raises(ClusterError, match=f"^cluster={address} cannot be used .*ray start --head"),
        connected(address, 0),
    ):
        pass


Nodes = Any
"""Of `ray.cluster_utils`, which says nothing of its types."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster of one node with two cores, and two GPUs that do not exist."""
    from ray.cluster_utils import Cluster as Nodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(NETS)]))
        patch.setenv("RAY_TMPDIR", "/tmp")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        sizes: dict[str, Any] = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        cluster = Nodes(
            initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2, **sizes}
        )
        yield cluster
        cluster.shutdown()


@contextmanager
def at(nodes: Nodes, said: list[str], device: str = "cpu", **words: str) -> Iterator[Cluster]:
    settings = ClusterSettings(cluster=nodes.address, **words)
    with cluster_of(settings, device, said.append) as cluster:
        assert cluster
        yield cluster


@pytest.mark.slow
def test_tasks_have_their_own_gpus_threads_and_environment(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGPASSWORD", SECRET)
    monkeypatch.setenv("MLFLOW_RUN_ID", "of the command")
    with (
        at(nodes, said, "auto", num_gpus="1", num_cpus="1") as cluster,
        cluster.dispatcher(Look(tmp_path, 2), {"MLFLOW_EXPERIMENT_ID": "7"}) as dispatcher,
    ):
        seen = dict(dispatcher.run({f"look {n}": n for n in range(2)}))
    assert "2 tasks at once, 1 core and 1 GPU each" in said[0]
    assert {one.pop("CUDA_VISIBLE_DEVICES") for one in seen.values()} == {"0", "1"}
    own = {"OMP_NUM_THREADS": "1", "PGPASSWORD": SECRET, "MLFLOW_EXPERIMENT_ID": "7"}
    assert list(seen.values()) == [own | {"folder": str(tmp_path)}] * 2
    assert sorted(said[1:]) == ["item 0", "item 1"]
    logs = list(Path(nodes.head_node.get_logs_dir_path()).rglob("*"))
    assert logs
    assert not [log for log in logs if log.is_file() and SECRET.encode() in log.read_bytes()]


@pytest.mark.slow
def test_a_lost_task_is_run_again_and_told_a_fault_is_the_users(
    nodes: Nodes, tmp_path: Path
) -> None:
    said: list[str] = []
    with at(nodes, said) as cluster, cluster.dispatcher(LostOnce(tmp_path), {}) as dispatcher:
        assert dict(dispatcher.run({"pair 1": "one"})) == {"one": "one"}
        assert said[1:] == ["note: pair 1 was lost 1 time with its process, and was run again"]
        with pytest.raises(DataError, match="holds no images: name another"):
            list(dispatcher.run({"pair 2": "fault"}))
        with pytest.raises(DivergedError, match="no number") as caught:
            list(dispatcher.run({"pair 3": "diverged"}))
    assert caught.value.run_id == "run7"


@pytest.mark.slow
def test_ctrl_c_ends_tasks_between_two_steps(nodes: Nodes, tmp_path: Path) -> None:
    def began() -> bool:
        return (tmp_path / "began0").exists()

    def press() -> None:
        while not began():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with (
        at(nodes, []) as cluster,
        stopped_by_signals(signal.signal),
        pytest.raises(KeyboardInterrupt),
        cluster.dispatcher(Waits(tmp_path), {}) as dispatcher,
    ):
        next(dispatcher.run({"pair 1": 0}))
    presser.join()
    assert (tmp_path / "ended0").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="this system has no /proc")
def test_local_tasks_end_with_the_command_that_is_killed_outright(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from pipeline.cluster.dispatcher import cluster_of\n"
        "from pipeline.settings.cluster import ClusterSettings\n"
        "from tests.work import Waits\n"
        "where = ClusterSettings(cluster='local', workers=1)\n"
        "work = Waits(Path(sys.argv[1]))\n"
        "with cluster_of(where, 'cpu', print) as cluster:\n"
        "    with cluster.dispatcher(work, {}) as dispatcher:\n"
        "        list(dispatcher.run({'pair 1': 0}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(NETS)])}
    command = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=environment)
    began, end = tmp_path / "began0", time.monotonic() + 180
    while not began.exists():
        assert command.poll() is None
        assert time.monotonic() < end, "the task has not begun"
        time.sleep(0.1)
    command.kill()
    command.wait()
    while Path(f"/proc/{began.read_text()}").exists():
        assert time.monotonic() < end, "the task goes on"
        time.sleep(0.1)


def kill_node_at_work(
    nodes: Nodes, node: Nodes, client: mlflow.MlflowClient, over: threading.Event
) -> None:
    """SIGKILL a node, and the process of it that trains a stage, as when a machine is lost."""
    raylet = node.all_processes["raylet"][0].process.pid
    wanted = "tags.kind = 'stage' and attributes.status = 'RUNNING'"
    while not over.wait(0.1):
        for run in client.search_runs(["0"], wanted):
            process = int(run.data.tags[stored_tag(PROCESS)])
            with suppress(OSError):  # it has ended meanwhile
                if f"PPid:\t{raylet}\n" in Path(f"/proc/{process}/status").read_text():
                    os.kill(process, signal.SIGKILL)
                    nodes.remove_node(node, allow_graceful=False)
                    return


def verdict(client: mlflow.MlflowClient) -> dict[str, str]:
    (decision,) = client.search_runs(["0"], "tags.kind = 'decision'")
    assert decision.info.status == "FINISHED"
    return {tag: decision.data.tags[tag] for tag in VERDICT_TAGS}


def test_a_node_killed_in_the_middle_costs_no_pair_and_changes_no_bit_of_the_verdict(
    nodes: Nodes, store: Path, postgres: Postgres, tmp_path: Path, point_at: PointAt
) -> None:
    """On one machine the loss is seen at once, elsewhere once the lost process's lease is over."""
    images = write_image_folder(tmp_path / "images", 28)
    words = {**SMALL, **STAGE2, "data": str(images), "cache_dir": str(tmp_path / "cache")}
    words |= {"refit": "off", "device": "cpu"}
    perform("decide", words, lambda _: None)
    expected = verdict(mlflow.MlflowClient())
    said: list[str] = []
    database = ("--backend-store-uri", postgres.url("cluster"))
    with tracking_server(store, *database) as address:
        point_at(address)
        client = mlflow.MlflowClient()
        second = nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        over = threading.Event()
        killer = threading.Thread(target=kill_node_at_work, args=(nodes, second, client, over))
        killer.start()
        try:
            perform("decide", {**words, "cluster": nodes.address}, said.append)
        finally:
            over.set()
            killer.join()
        stages = client.search_runs(["0"], "tags.kind = 'stage'")
        found = verdict(client)
    assert found == expected
    assert len([line for line in said if line.startswith("pair ")]) == 2
    assert [line for line in said if "was lost 1 time with its process, and was run again" in line]
    finished = [run for run in stages if run.info.status == "FINISHED"]
    assert set(Counter(run.data.tags["z.lineage_key"] for run in finished).values()) == {1}
    assert len(finished) == 6  # of two pairs: stage 1, stage 2, and stage 1 continued
    assert {run.info.status for run in stages} <= {"FINISHED", "FAILED"}
    owners = {run.data.tags[stored_tag(PROCESS)] for run in finished}
    assert str(os.getpid()) not in owners
