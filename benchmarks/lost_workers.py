"""What a study loses when things are killed: workers, PostgreSQL, the tracking server.

    python benchmarks/lost_workers.py --data IMAGES --weights STARTER --out lost_workers.md

Two workers share a study in PostgreSQL and a tracking server whose store is on the same PostgreSQL
server. Ten times, at a random moment of a trial, its worker is killed and another started;
once PostgreSQL is stopped as in a power cut and started again; once the tracking server is. At the
end the study and its runs are counted anew. Out: a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import mlflow
import optuna
from optuna.trial import TrialState

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.system.processes import PROCESS  # noqa: E402
from pipeline.tuning.storage.trial_state import RETRIES  # noqa: E402
from tests.postgres import Postgres, find_binaries, free_port  # noqa: E402

HEARTBEAT_S = 1
LONGEST_WAIT_S = 4.0
"""A trial takes about this long: a kill comes anywhere in it, or just after it."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class Server:
    """An MLflow tracking server on loopback."""

    def __init__(self, store: str, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
        self.words += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
        self.words += ["--host", "127.0.0.1", "--port", str(self.port)]
        self.log = (folder / "server.log").open("w")
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(
            self.words, stdout=self.log, stderr=self.log, start_new_session=True
        )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=1).close()
            except OSError:
                time.sleep(0.3)
            else:
                return
        raise RuntimeError("the tracking server did not start")

    def kill(self) -> None:
        """SIGKILL, with the processes it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Study:
    """Two workers on one study, replaced when they are killed."""

    def __init__(self, words: list[str], environment: dict[str, str], folder: Path) -> None:
        self.words, self.environment, self.folder = words, environment, folder
        self.workers: list[subprocess.Popen[bytes]] = []
        self.count = 0

    def add_worker(self) -> None:
        """One more worker."""
        self.count += 1
        log = (self.folder / f"worker{self.count}.txt").open("w")
        self.workers.append(
            subprocess.Popen(
                self.words, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        )

    def kill_in_a_trial(self, tracking: str, rng: random.Random) -> None:
        """SIGKILL a worker at a random moment of a trial, and start another; not once all end."""
        while living := [worker for worker in self.workers if worker.poll() is None]:
            busy = running_trials(tracking)
            if victims := [worker for worker in living if worker.pid in busy]:
                time.sleep(rng.uniform(0, LONGEST_WAIT_S))
                victim = rng.choice(victims)
                victim.kill()
                victim.wait()
                self.add_worker()
                return
            time.sleep(0.2)

    def wait(self) -> list[int]:
        """Exit codes of the workers that were not killed."""
        return [code for worker in self.workers if (code := worker.wait()) != -signal.SIGKILL]


def running_trials(tracking: str) -> set[int]:
    """Processes with a trial's run that is RUNNING."""
    found = mlflow.MlflowClient(tracking).search_runs(
        ["0"], "tags.kind = 'trial' and attributes.status = 'RUNNING'"
    )
    return {int(run.data.tags[PROCESS]) for run in found}


def recount(storage: str, tracking: str, wanted: int) -> dict[str, object]:
    """What the storage and MLflow say of the only study there is."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name = optuna.get_all_study_names(storage)[0]
    study = optuna.load_study(study_name=name, storage=storage)
    trials = study.get_trials()
    finished = [t for t in trials if t.state in FINISHED]
    lost = [t for t in trials if t.state == TrialState.FAIL and "reason" not in t.user_attrs]
    retried = {n for t in trials for n in t.system_attrs.get("retry_history", [])}
    client = mlflow.MlflowClient(tracking)
    runs = client.search_runs(["0"], f"tags.study = '{name}'", max_results=5000)
    stages = client.search_runs(["0"], "tags.kind = 'stage'", max_results=5000)
    values = [
        run.data.metrics["value"]
        for run in runs
        if run.data.tags["kind"] == "trial" and run.info.status == "FINISHED"
    ]
    complete = sum(t.state == TrialState.COMPLETE for t in trials)
    return {
        "trials wanted": wanted,
        "trials finished": len(finished),
        "trials of killed workers": len(lost),
        "of these run again": sum(t.number in retried for t in lost),
        f"of these given up after {RETRIES} retries": sum(
            len(t.system_attrs.get("retry_history", [])) >= RETRIES for t in lost
        ),
        "trials left running": sum(t.state == TrialState.RUNNING for t in trials),
        "runs left RUNNING": sum(r.info.status == "RUNNING" for r in [*runs, *stages]),
        "trial runs FINISHED / trials complete": f"{len(values)} / {complete}",
        "best value, study / recount": f"{study.best_value:.4f} / {max(values):.4f}",
    }


def experiment(
    name: str,
    args: argparse.Namespace,
    faults: Callable[[Study, Postgres, Server, random.Random], None],
) -> tuple[str, dict[str, object]]:
    """One study in fresh databases, with what `faults` does to it meanwhile."""
    binaries = find_binaries()
    assert binaries, "PostgreSQL is not installed"
    postgres = Postgres(binaries)
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        server = Server(postgres.url("mlflow"), folder)
        storage = postgres.url("optuna")
        words = [sys.executable, "-m", "pipeline", "tune", "--stage", "2", "--storage", storage]
        words += ["--n_trials", str(args.trials), "--heartbeat", str(HEARTBEAT_S)]
        words += ["--data", str(Path(args.data).resolve()), "--weights", args.weights]
        words += ["--preset", "cifar10_small", "--image_size", "32", "--train_per_class", "40"]
        words += ["--val_per_class", "40", "--cache_dir", str(folder / "cache")]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": server.url,
        }
        study = Study(words, environment, folder)
        started = time.monotonic()
        study.add_worker()
        study.add_worker()
        faults(study, postgres, server, random.Random(args.seed))
        codes = study.wait()
        row = {"wall": f"{time.monotonic() - started:.0f} s", "exit codes": sorted(set(codes))}
        row |= recount(storage, server.url, args.trials)
        for log in sorted(folder.glob("worker*.txt")):
            sys.stderr.write(f"--- {name}: {log.name}\n{log.read_text()[-1500:]}\n")
        server.kill()
    postgres.remove()
    return name, row


def kill_workers(study: Study, _: Postgres, server: Server, rng: random.Random) -> None:
    """Ten times a worker, at a random moment of a trial."""
    for _number in range(10):
        study.kill_in_a_trial(server.url, rng)


def cut_postgres(_: Study, postgres: Postgres, __: Server, rng: random.Random) -> None:
    """Stop PostgreSQL as in a power cut, start it again after eight seconds."""
    time.sleep(30 + rng.uniform(0, 5))
    postgres.stop()
    time.sleep(8)
    postgres.start()


def cut_server(_: Study, __: Postgres, server: Server, rng: random.Random) -> None:
    """Kill the tracking server, start it again after eight seconds."""
    time.sleep(30 + rng.uniform(0, 5))
    server.kill()
    time.sleep(8)
    server.start()


def main() -> None:
    """Run the experiments, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one of: workers, postgres, server")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.weights = str(Path(args.weights).resolve())
    wanted = {
        "workers": ("SIGKILL of a worker, 10 times", kill_workers),
        "postgres": ("PostgreSQL stopped and started", cut_postgres),
        "server": ("tracking server killed and started", cut_server),
    }
    chosen = [wanted[args.only]] if args.only else list(wanted.values())
    rows = dict(experiment(name, args, faults) for name, faults in chosen)
    keys = list(next(iter(rows.values())))
    lines = [f"| | {' | '.join(rows)} |", f"|---|{'---|' * len(rows)}"]
    lines += [f"| {key} | {' | '.join(str(row[key]) for row in rows.values())} |" for key in keys]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
