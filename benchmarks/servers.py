"""What servers that go away cost: killed for a while or for good, while a command needs them.

    python benchmarks/servers.py --absences 10 120 --wait 600 --out servers.md

Three servers (MLflow's tracking server, a server of artifacts alone, PostgreSQL for Optuna) are
killed after a command's first epoch or trial, started again after each of these absences, and once
not before the command has ended: then the same command is run again. Out: a Markdown table, a row
a cell: exit codes, when the first line named the server, the longest silence, what is stored. A
cell holds where the command ends well, or with one line and exit code 2, everything is stored
once, and no minute was silent.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import mlflow
import optuna
from optuna.trial import TrialState

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.system.variables import SERVER_WAIT  # noqa: E402
from tests.conftest import TINY, write_image_folder  # noqa: E402
from tests.postgres import Postgres, find_binaries  # noqa: E402
from tests.served import MlflowServer  # noqa: E402

NOTICED_S, SILENT_S = 15.0, 60.0
TRIALS = 3
Line = tuple[float, str]


@dataclass(kw_only=True)
class Subject:
    """A server and the command that needs it.

    Attributes:
        trigger: words of the line after which the server is killed.
        named: how lines call the server.
        count: what is stored: how often what should be there once.
    """

    name: str
    words: list[str]
    environment: dict[str, str]
    trigger: str
    named: str
    stop: Callable[[], None]
    start: Callable[[], None]
    count: Callable[[], str]
    folder: Path


@dataclass
class Course:
    """A command's lines, in seconds from when the server was killed."""

    code: int
    lines: list[Line] = field(default_factory=list)

    def first(self, words: str) -> float:
        """When a line first held these words; infinity if none did."""
        return next((at for at, line in self.lines if words in line), float("inf"))

    def silence_s(self) -> float:
        """The longest time without a line."""
        times = [0.0, *(at for at, _ in self.lines if at >= 0)]
        return max(b - a for a, b in pairwise(times))


def run(subject: Subject, absence_s: float | None, wait_s: float, *, kill: bool) -> Course:
    """Run the command; `kill`: kill its server at the trigger, for so long (None: for good)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *subject.words],
        env={**subject.environment, **({} if absence_s else {SERVER_WAIT: str(wait_s)})},
        cwd=subject.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    began: float | None = None
    lines: list[Line] = []
    starts: list[threading.Timer] = []
    assert process.stdout
    for line in process.stdout:
        lines.append((time.monotonic(), line.rstrip()))
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}")
        if kill and began is None and subject.trigger in line:
            subject.stop()
            began = time.monotonic()
            if absence_s is not None:
                starts.append(threading.Timer(absence_s, subject.start))
                starts[0].start()
    for start in starts:
        start.join()
    code, zero = process.wait(), began or time.monotonic()
    return Course(code, [(at - zero, line) for at, line in lines])


def cell(subject: Subject, absence_s: float | None, wait_s: float) -> tuple[bool, list[str]]:
    """One absence; whether all was kept, and the row of the table."""
    course = run(subject, absence_s, wait_s, kill=True)
    codes, fine = [course.code], course.code == 0
    errors = [line for _, line in course.lines if line.startswith("error:")]
    if absence_s is None:
        fine = course.code == 2 and len(errors) == 1 and subject.named in errors[0]
        subject.start()
        codes.append(run(subject, None, wait_s, kill=False).code)
        fine = fine and codes[-1] == 0
    noticed, silence = course.first(f"note: {subject.named}"), course.silence_s()
    stored = subject.count()
    holds = fine and noticed <= NOTICED_S and silence < SILENT_S and stored.endswith("once")
    shown = [f"{at:.0f} s: {line}" for at, line in course.lines if subject.named in line]
    sys.stderr.write("\n".join([f"--- {subject.name}, {absence_s}", *shown, ""]))
    absence = "for good" if absence_s is None else f"{absence_s:g} s"
    row = [subject.name, absence, "yes" if holds else "NO", ", ".join(map(str, codes))]
    return holds, [*row, f"{noticed:.1f} s", f"{silence:.0f} s", f"{len(shown)}", stored]


def finished_once(client: mlflow.MlflowClient, name: str) -> str:
    """What an experiment holds: one finished stage run, each epoch's metrics once."""
    experiment = client.get_experiment_by_name(name)
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    done = [run for run in runs if run.info.status == "FINISHED"]
    epochs = [len(client.get_metric_history(run.info.run_id, "acc/val")) for run in done]
    models = client.search_logged_models([experiment.experiment_id])
    ready = sum(model.status == "READY" for model in models)
    other = sorted(run.info.status for run in runs if run.info.status != "FINISHED")
    told = f"{len(done)} run, {epochs} epochs, {ready} model, others {other}: "
    return told + ("once" if (len(done), epochs, ready) == (1, [2], 1) else "NOT once")


def trials_once(url: str) -> str:
    """What a storage holds: so many complete trials, none running."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    name = optuna.get_all_study_names(url)[-1]
    states = [trial.state for trial in optuna.load_study(study_name=name, storage=url).trials]
    complete = states.count(TrialState.COMPLETE)
    running, lost = states.count(TrialState.RUNNING), states.count(TrialState.FAIL)
    told = f"{complete} trials complete, {lost} run again, {running} running: "
    return told + ("once" if complete == TRIALS and not running else "NOT once")


def subjects(folder: Path, number: int, servers: dict[str, MlflowServer]) -> dict[str, Subject]:
    """The commands of one row of absences, each with images, experiment and cache of its own."""
    tracking, proxied, artifacts = servers["tracking"], servers["beside"], servers["artifacts"]
    found = {}
    for name, store, server in (
        ("tracking server", tracking, tracking),
        ("artifact store", proxied, artifacts),
    ):
        experiment = f"{name} {number}"
        own = folder / experiment
        images = write_image_folder(own / "images")
        options = {**TINY, "data": str(images), "cache_dir": str(own / "cache")}
        options |= {"stage1.epochs": "2", "log_model": "on"}
        found[name] = Subject(
            name=name,
            words=["stage1", *(f"--{key}={value}" for key, value in options.items())],
            environment=environment(store.address, experiment),
            trigger="epoch 1/2",
            named=f"the {name} at {server.address}",
            stop=server.kill,
            start=server.start,
            count=lambda at=store.address, name=experiment: finished_once(  # type: ignore[misc]
                mlflow.MlflowClient(at), name
            ),
            folder=own,
        )
    return found


def environment(store: str, experiment: str) -> dict[str, str]:
    """Of a command that records there."""
    own = {"MLFLOW_TRACKING_URI": store, "MLFLOW_EXPERIMENT_NAME": experiment}
    own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1"}
    return {**os.environ, **own}


def study(folder: Path, number: int, postgres: Postgres) -> Subject:
    """A study in PostgreSQL, its runs in a file."""
    own = folder / f"storage {number}"
    images, url = write_image_folder(own / "images"), postgres.url(f"study{number}")
    options = {**TINY, "data": str(images), "cache_dir": str(own / "cache"), "stage": "1"}
    options |= {"n_trials": str(TRIALS), "space": str(own / "space.yaml")}
    (own / "space.yaml").write_text("lr: [3.0e-3, 1.0e-2]\n", encoding="utf-8")
    return Subject(
        name="PostgreSQL for `storage=`",
        words=["tune", *(f"--{key}={value}" for key, value in options.items())],
        environment=environment(f"sqlite:///{own / 'mlflow.db'}", "study")
        | {"OPTUNA_STORAGE": url},
        trigger="trial 0:",
        named=f"the storage at {url}",
        stop=postgres.stop,
        start=postgres.start,
        count=lambda: trials_once(url),
        folder=own,
    )


def main() -> None:
    """Run the cells, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--absences", type=float, nargs="*", default=[10.0, 120.0])
    parser.add_argument("--wait", type=float, default=600.0, help="where it is away for good")
    parser.add_argument("--only", help="beginning of a server's name")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["no_proxy"] = "127.0.0.1"
    binaries = find_binaries()
    assert binaries, "PostgreSQL is not installed"
    postgres, servers = Postgres(binaries), dict[str, MlflowServer]()
    rows, held = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            for kind in ("tracking", "artifacts", "beside"):
                (folder / kind).mkdir()
                words = ["--artifacts-only"] if kind == "artifacts" else []
                if kind == "beside":
                    place = servers["artifacts"].address.replace("http:", "mlflow-artifacts:")
                    words = ["--no-serve-artifacts", "--default-artifact-root", place]
                servers[kind] = MlflowServer(folder / kind, *words)
            for number, absence_s in enumerate([*args.absences, None]):
                found = subjects(folder, number, servers)
                found["PostgreSQL"] = study(folder, number, postgres)
                for one, subject in found.items():
                    if one.startswith(args.only or ""):
                        fine, row = cell(subject, absence_s, args.wait)
                        held, rows = held + fine, [*rows, row]
        finally:
            with suppress(subprocess.CalledProcessError):  # it is away
                postgres.stop()
            for server in servers.values():
                server.kill()
            shutil.rmtree(postgres.folder)
    heads = ["server", "away for", "holds", "exit codes", "first line after", "longest silence"]
    table = [[*heads, "lines about the server", "stored"], ["---"] * 8, *sorted(rows)]
    text = "".join(f"| {' | '.join(row)} |\n" for row in table)
    text += f"\n{held} of {len(rows)} hold; `{SERVER_WAIT}={args.wait:g}`\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
