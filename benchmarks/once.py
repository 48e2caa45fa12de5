"""The same command eight times at once: how often each stage is trained, and what is left.

    python benchmarks/once.py --out once.md

On SQLite, PostgreSQL and an MLflow server: `stage1`; `main` of three stages; `main` whose first
trainer is killed (SIGKILL) once seven others wait for it. Small coloured images, 32 px, two
epochs. The last column holds the weights of every stage against those of one undisturbed command.
Out: a Markdown table. `--entry pretrain`, `tune` or `decide` runs that command instead.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import Run, ViewType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.system.processes import PROCESS  # noqa: E402
from pipeline.tracking.keys import CHECKPOINT_SHA256, stored_tag  # noqa: E402
from tests.conftest import TINY, words_of, write_image_folder  # noqa: E402
from tests.crowds import Crowd, crowd  # noqa: E402
from tests.postgres import Postgres, find_binaries  # noqa: E402
from tests.served import tracking_server  # noqa: E402

STORES = ("SQLite", "PostgreSQL", "server")
LIMIT_S = 1200.0
OWN = {
    "pretrain": {"out": "weights.safetensors"},
    "tune": {"stage": "1", "n_trials": "4"},
    "decide": {"looks": "2", "register_as": "off", "test_per_class": "4"},
}


@contextmanager
def store(kind: str, folder: Path) -> Iterator[str]:
    """An empty store with its tables; its address."""
    if kind == "server":
        with tracking_server(folder) as address:
            yield address
        return
    binaries = find_binaries() if kind == "PostgreSQL" else None
    postgres = Postgres(binaries) if binaries else None
    uri = postgres.url("mlflow") if postgres else f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.MlflowClient(uri).search_experiments()
    yield uri
    if postgres:
        postgres.remove()


def all_runs(uri: str) -> list[Run]:
    """Every run there is, deleted ones too."""
    client = mlflow.MlflowClient(uri)
    places = [one.experiment_id for one in client.search_experiments()]
    return list(client.search_runs(places, run_view_type=ViewType.ALL, max_results=5000))


def stage_runs(uri: str) -> list[Run]:
    """Stage runs that nobody has taken back."""
    runs = [run for run in all_runs(uri) if run.info.lifecycle_stage == "active"]
    return [run for run in runs if run.data.tags.get("kind") == "stage"]


def kill_the_trainer(many: Crowd, uri: str) -> int:
    """SIGKILL the command that all others wait for; returns its number."""
    count = len(many.pids)
    end = time.monotonic() + LIMIT_S
    while sum("another command trains" in many.out(n) for n in range(count)) < count - 1:
        assert time.monotonic() < end, "nobody waits"
        time.sleep(0.05)
    at_work = [run for run in stage_runs(uri) if run.info.status == "RUNNING"]
    killed = int(at_work[0].data.tags[stored_tag(PROCESS)])
    os.kill(killed, signal.SIGKILL)
    return many.pids.index(killed)


def weights(uri: str) -> dict[str, set[str]]:
    """Digests of the finished checkpoints, by stage."""
    found: dict[str, set[str]] = {}
    for run in stage_runs(uri):
        if run.info.status == "FINISHED":
            digest = run.data.tags[stored_tag(CHECKPOINT_SHA256)]
            found.setdefault(run.data.tags["stage"], set()).add(digest)
    return found


def words_for(entry: str, images: Path, folder: Path, epochs: int) -> list[str]:
    """The command; where one is to be killed its first stage takes a while."""
    options = {**TINY, "data": str(images), "cache_dir": str(folder / "cache")}
    first = {"stage1.epochs": str(epochs), "stage1.batch_size": "2" if epochs > 2 else "8"}
    if entry == "pretrain":
        options = {key: value for key, value in options.items() if not key.startswith("weights")}
        options = {k: v for k, v in options.items() if k not in ("norm_stats", "log_model")}
    return words_of(entry, {**options, **first, **OWN.get(entry, {})})


def experiment(kind: str, entry: str, count: int, *, kill: bool) -> list[str]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = write_image_folder(folder / "images", 24 if entry == "decide" else 12)
        with store(kind, folder) as uri:
            words = words_for(entry, images, folder, 60 if kill else 2)
            started = time.monotonic()
            with crowd(folder, count, words, {"MLFLOW_TRACKING_URI": uri}) as many:
                killed = kill_the_trainer(many, uri) if kill else None
                codes = many.wait(LIMIT_S)
                outputs = [many.out(number) for number in range(count)]
                errors = [many.err(number) for number in range(count)]
            wall_s = time.monotonic() - started
            living = [code for number, code in enumerate(codes) if number != killed]
            for number, code in enumerate(codes):
                if code and number != killed:
                    sys.stderr.write(f"{outputs[number][-500:]}\n{errors[number][-1500:]}\n")
            same = _as_undisturbed(folder, words, weights(uri))
            what = f"{entry}{', one killed' if kill else ''}"
            ends = [str(dict(Counter(living))), same, f"{wall_s:.0f} s"]
            return [kind, what, *_counts(uri, outputs), *ends]


def _as_undisturbed(folder: Path, words: Sequence[str], found: dict[str, set[str]]) -> str:
    """Whether one command alone, with a store and a cache of its own, gives these weights."""
    alone = folder / "alone"
    alone.mkdir()
    uri = f"sqlite:///{alone / 'mlflow.db'}"
    own = [str(alone / "cache") if word.endswith("/cache") else word for word in words]
    with crowd(alone, 1, own, {"MLFLOW_TRACKING_URI": uri}) as one:
        assert one.wait(LIMIT_S) == [0], one.err(0)
    return "equal" if weights(uri) == found else "DIFFERENT"


def _counts(uri: str, outputs: Sequence[str]) -> list[str]:
    runs, stages = all_runs(uri), stage_runs(uri)
    finished = Counter(run.data.tags["stage"] for run in stages if run.info.status == "FINISHED")
    waited = sum(bool(re.search("another command trains|waiting for run", o)) for o in outputs)
    return [
        ", ".join(f"{number}: {times}" for number, times in sorted(finished.items())),
        str(waited),
        str(sum(run.info.lifecycle_stage == "deleted" for run in runs)),
        str(sum(run.info.status == "FAILED" for run in stages)),
        str(sum(run.info.status == "RUNNING" for run in runs)),
    ]


def main() -> None:
    """Run the experiments, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--store", choices=STORES, action="append")
    parser.add_argument("--entry", action="append", help="stage1, main, killed, pretrain, ...")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1"})
    os.environ["MLFLOW_EXPERIMENT_NAME"] = "Default"
    head = "store command trainings,_by_stage waited taken_back FAILED RUNNING exit_codes weights"
    head += " wall"
    lines = [f"| {' | '.join(word.replace('_', ' ') for word in head.split())} |"]
    lines.append("|---" * len(head.split()) + "|")
    for kind in args.store or STORES:
        for entry in args.entry or ("stage1", "main", "killed"):
            kill = entry == "killed"
            row = experiment(kind, "main" if kill else entry, args.count, kill=kill)
            lines.append(f"| {' | '.join(row)} |")
            sys.stdout.write(f"{lines[-1]}\n")
            sys.stdout.flush()
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
