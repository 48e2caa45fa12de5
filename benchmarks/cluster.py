"""What a cluster loses when its nodes are killed, and how far it can grow.

    python benchmarks/cluster.py --out measured.json
    python benchmarks/cluster.py --simulate measured.json

The first command runs decide, compare and tune on a cluster of `--nodes` nodes that are processes
of this machine, with a tracking server and Optuna's storage on one PostgreSQL. At random moments
of a stage its node is killed with the process that trains, `--kills` times, and another node is
added. The same commands in one process say what should come out. On the way the units are
measured: processor time of a pair and of a trial, requests that one of them makes, and processor
time of the tracking server and of PostgreSQL for a request.

The second command simulates from these numbers, event by event, up to 1,000 workers that share one
store: each computes, asks the store, and waits where the store is busy. Not simulated: the
network, artifacts, images on a shared disk. Out: Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.queue_of_a_store import table  # noqa: E402
from pipeline.system.processes import PROCESS  # noqa: E402
from pipeline.tracking.keys import stored_tag  # noqa: E402
from tests.conftest import write_image_folder  # noqa: E402
from tests.postgres import Postgres, find_binaries  # noqa: E402
from tests.served import MlflowServer  # noqa: E402
from tests.test_decide import SMALL  # noqa: E402

IMAGES = 60
COMMON = {
    **SMALL,
    "device": "cpu",
    "log_model": "off",
}
DECIDE = {"question": "stage2", "register_as": "off", "refit": "off"}
COMMANDS: dict[str, dict[str, str]] = {
    "decide": {**DECIDE, "looks": "5"},
    "compare": {"schedules": "full,two_stage", "draws": "4"},
    "tune": {"stage": "1", "n_trials": "9"},
}
FEWER: dict[str, tuple[dict[str, str], int]] = {
    "decide": ({"looks": "2"}, 3),
    "compare": ({"draws": "2"}, 2),
    "tune": ({"n_trials": "4"}, 5),
}
"""The same commands with fewer units, and how many fewer: the difference is what units cost."""
STORE_BYTES = 80 * 2**20
TICK = os.sysconf("SC_CLK_TCK")


class Place:
    """Databases, a tracking server and a folder of a command's own."""

    def __init__(self, postgres: Postgres, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.postgres, self.name = postgres, name
        self.storage = postgres.url(f"optuna_{name}")
        self.server = MlflowServer(
            self.folder, "--backend-store-uri", postgres.url(f"mlflow_{name}")
        )
        self.images = folder / "images"
        pid_file = postgres.data / "postmaster.pid"
        self.postmaster = int(pid_file.read_text().splitlines()[0])

    def run(self, command: str, **options: str) -> dict[str, float]:
        """A command in a process of its own; what it and the store took."""
        before, own = self.spent(), resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.monotonic()
        words = {**COMMON, **COMMANDS[command], **options, "data": str(self.images)}
        words |= {"cache_dir": str(self.folder / "cache")}
        if command == "tune":
            words |= {"space": str(self.folder.parent / "space.yaml")}
            del words["lr"]  # which is tuned
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": self.server.address,
            "MLFLOW_EXPERIMENT_NAME": "Default",
            "OPTUNA_STORAGE": self.storage,
        }
        with (self.folder / f"{command}.txt").open("a") as output:
            subprocess.run(
                [sys.executable, "-m", "pipeline", command]
                + [f"--{key}={value}" for key, value in words.items()],
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=True,
            )
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        took = {key: value - before[key] for key, value in self.spent().items()}
        took["wall_s"] = time.monotonic() - started
        took["command_s"] = now.ru_utime + now.ru_stime - own.ru_utime - own.ru_stime
        return took

    def spent(self) -> dict[str, float]:
        """Requests so far, and processor time of the tracking server and of PostgreSQL."""
        log = (self.folder / "server.log").read_text(errors="replace")
        return {
            "requests": float(len(re.findall(r'"(?:GET|POST|PUT|PATCH|DELETE) /', log))),
            "transactions": self.transactions(),
            "server_s": cpu_s(lambda of: of[2] == self.server.process.pid),
            "postgres_s": cpu_s(lambda of: self.postmaster in of[:2]),
        }

    def transactions(self) -> float:
        """Transactions that PostgreSQL has committed in the databases of this place."""
        import psycopg

        question = "select sum(xact_commit) from pg_stat_database where datname = any(%s)"
        names = [f"mlflow_{self.name}", f"optuna_{self.name}"]
        with psycopg.connect(self.storage) as connection:
            found = connection.execute(question, (names,)).fetchone()
        assert found
        return float(found[0])

    def runs(self, kind: str) -> list[Any]:
        """The runs of a kind, oldest first."""
        import mlflow

        client = mlflow.MlflowClient(self.server.address)
        wanted = f"tags.kind = '{kind}'"
        return list(client.search_runs(["0"], wanted, max_results=5000))[::-1]


def cpu_s(wanted: Any) -> float:  # noqa: ANN401
    """Processor time of living processes, and of children that they have waited for."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        if wanted((int(path.parent.name), int(fields[1]), int(fields[2]), name)):
            total += sum(map(int, fields[11:15]))
    return total / TICK


class Nodes:
    """Nodes with a core each; one that trains is killed now and then, and replaced."""

    def __init__(self, count: int, place: Place, kills: int, seed: int) -> None:
        from ray.cluster_utils import Cluster

        self.size = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={**self.size, "num_cpus": 0, "include_dashboard": False},
        )
        self.nodes = [self.cluster.add_node(**self.size) for _ in range(count)]
        self.place, self.left, self.rng = place, kills, random.Random(seed)

    def kill_during(self, command: threading.Thread) -> None:
        """Kill and replace nodes while the command runs, and wait for its end."""
        while self.left and command.is_alive():
            time.sleep(self.rng.uniform(0.0, 2.0))
            busy = [r for r in self.place.runs("stage") if r.info.status == "RUNNING"]
            processes = [int(run.data.tags[stored_tag(PROCESS)]) for run in busy]
            at_work = [(n, p) for n in self.nodes for p in processes if is_child(p, n)]
            if at_work:
                node, process = self.rng.choice(at_work)
                time.sleep(self.rng.uniform(0.0, 1.0))
                self.cluster.remove_node(node, allow_graceful=False)
                if Path(f"/proc/{process}").exists():
                    os.kill(process, signal.SIGKILL)
                self.nodes.remove(node)
                self.nodes.append(self.cluster.add_node(**self.size))
                self.left -= 1

        command.join()
        self.cluster.shutdown()


def is_child(process: int, node: Any) -> bool:  # noqa: ANN401
    """Whether a process is one of a node's."""
    raylet = node.all_processes["raylet"][0].process.pid
    try:
        return f"PPid:\t{raylet}\n" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def recount(place: Place, alone: Place, command: str) -> dict[str, object]:
    """What the store says after a command on the cluster, beside the command in one process."""
    runs = place.runs("stage") + place.runs("trial")
    finished = [run for run in runs if run.info.status == "FINISHED"]
    keys = Counter(k for r in finished if (k := r.data.tags.get("z.lineage_key")))
    lost = [line for line in said(place, command) if "was lost" in line]
    row: dict[str, object] = {
        "units lost with their node, and run again": len(lost),
        "stage runs and trials finished": len(finished),
        "finished twice": sum(count - 1 for count in keys.values()),
        "left RUNNING": sum(run.info.status == "RUNNING" for run in runs),
    }
    if command == "tune":
        trials = [r for r in finished if r.data.tags["kind"] == "trial"]
        numbers = [run.data.tags.get("trial", run.data.tags.get("z.trial")) for run in trials]
        row["units wanted / found"] = f"{COMMANDS[command]['n_trials']} / {len(set(numbers))}"
        row["as in one process"] = "not comparable: trials learn from those before"
        return row
    kind = {"decide": "decision", "compare": "comparison"}[command]
    here, there = place.runs(kind)[-1], alone.runs(kind)[-1]
    wanted = Counter(r.data.tags["z.lineage_key"] for r in alone.runs("stage"))
    row["units wanted / found"] = f"{len(wanted)} / {len(keys)} stage runs"
    row["as in one process"] = results_of(here) == results_of(there) and set(wanted) == set(keys)
    return row


def results_of(run: Any) -> dict[str, object]:  # noqa: ANN401
    """What a report says, without times: metrics, and the verdict's tags."""
    tags = {k: v for k, v in run.data.tags.items() if "verdict" in k}
    times = re.compile("_s$|_s/|wall|memory|peak|mib|seconds|time", re.IGNORECASE)
    return {k: v for k, v in (run.data.metrics | tags).items() if not times.search(k)}


def said(place: Place, command: str) -> list[str]:
    """The lines of a command."""
    return (place.folder / f"{command}.txt").read_text().splitlines()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything; returns the numbers."""
    binaries = find_binaries()
    assert binaries, "PostgreSQL is not installed"
    postgres, found = Postgres(binaries), {"units": {}, "kills": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_image_folder(folder / "images", IMAGES)
        (folder / "space.yaml").write_text("lr: {low: 1.0e-4, high: 1.0e-2, log: true}\n")
        for command in args.commands.split(","):
            fewer, count = FEWER[command]
            places = [Place(postgres, folder, f"{command}_{n}") for n in ("few", "all", "nodes")]
            few, all_ = places[0].run(command, **fewer), places[1].run(command)
            places[0].server.kill()
            found["units"][command] = unit_of(few, all_, count)
            print(json.dumps({command: found["units"][command]}), flush=True)
            nodes = Nodes(args.nodes, places[2], args.kills, args.seed)
            options = {"cluster": nodes.cluster.address}
            run = threading.Thread(target=places[2].run, args=(command,), kwargs=options)
            run.start()
            nodes.kill_during(run)
            row: dict[str, object] = {"kills": args.kills - nodes.left}
            found["kills"][command] = row | recount(places[2], places[1], command)
            for place in places[1:]:
                place.server.kill()
            print(json.dumps({command: found["kills"][command]}), flush=True)
            if args.out:
                args.out.write_text(json.dumps(found, indent=1) + "\n")
    postgres.remove()
    return found


def unit_of(few: Mapping[str, float], all_: Mapping[str, float], count: int) -> dict[str, float]:
    """What one unit more costs."""
    one = {key: (all_[key] - few[key]) / count for key in all_}
    return {
        "unit_s": one["command_s"],
        "requests": one["requests"],
        "transactions": one["transactions"],
        "server_ms_a_request": 1000 * all_["server_s"] / all_["requests"],
        "postgres_ms_a_request": 1000 * all_["postgres_s"] / all_["requests"],
        "command_s": all_["command_s"],
    }


def main() -> None:
    """Measure, or simulate from what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--kills", type=int, default=2, help="for each command")
    parser.add_argument("--commands", default="decide,compare,tune")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--simulate", type=Path, help="numbers that --out has written")
    args = parser.parse_args()
    if args.simulate:
        print(table(json.loads(args.simulate.read_text())["units"], args.seed))
        return
    found = measure(args)
    rows = found["kills"]
    keys = list(next(iter(rows.values())))
    print(f"| | {' | '.join(rows)} |\n|---|{'---|' * len(rows)}")
    for key in keys:
        print(f"| {key} | {' | '.join(str(row[key]) for row in rows.values())} |")


if __name__ == "__main__":
    main()
