"""Local processes that share a machine's cores and work on the same studies or decisions.

In: how many, and the command that was typed. Out: their lines on the terminal, as they come.
Each has `cores / workers` threads, never more: on two cores two training processes of two threads
each were five times slower than one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

from pipeline.errors import StudyError
from pipeline.runs.command import Command
from pipeline.settings.entry import STORAGE
from pipeline.system.interrupts import PARENT, at_once
from pipeline.system.provenance import PROJECT_DIR

GRACE_S = 60.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def threads_each(workers: int, cores: int) -> int:
    """Threads for each of so many workers: at least one."""
    return max(1, cores // workers)


def run_workers(
    count: int, entry_point: str, command: Command, experiment_id: str, run_id: str
) -> None:
    """Start so many of an entry point, for run `run_id`, and wait; lost workers are a note.

    Raises:
        StudyError: not one worker came to its end.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    threads = threads_each(count, cores)
    command.say(f"{count} workers with {threads} thread(s) each on {cores} cores")
    words = _words(entry_point, command, run_id)
    environment = _environment(command, experiment_id, threads)
    workers, readers = [], []
    for number in range(1, count + 1):
        worker = subprocess.Popen(
            words,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        reader = threading.Thread(target=_pass_on, args=(worker, number, command.say), daemon=True)
        reader.start()
        workers.append(worker)
        readers.append(reader)
    try:
        with at_once():
            codes = [worker.wait() for worker in workers]
    except KeyboardInterrupt:
        _stop(workers)
        raise
    finally:
        for reader in readers:
            reader.join(timeout=5)
    for number, code in enumerate(codes, start=1):
        if code:
            command.say(f"note: worker {number} ended with exit code {code}")
    if all(codes):
        raise StudyError(
            f"none of {count} workers came to its end (exit codes {', '.join(map(str, codes))}): "
            "see their lines above; the same command goes on where they stopped"
        )


def _words(entry_point: str, command: Command, run_id: str) -> list[str]:
    """The command line of each worker: what was typed, for one process and run `run_id`."""
    options = {**command.request.typed, "workers": "1", "joins": run_id}
    if command.tuned:
        options["tuned"] = "on"
    words = [sys.executable, "-m", "pipeline", entry_point]
    return words + [f"--{key}={value}" for key, value in options.items()]


def _environment(command: Command, experiment_id: str, threads: int) -> dict[str, str]:
    """The environment of each worker."""
    environment = {
        **os.environ,
        **dict.fromkeys(_THREADS, str(threads)),
        "MLFLOW_EXPERIMENT_ID": experiment_id,
        "PYTHONPATH": os.pathsep.join([str(PROJECT_DIR), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        PARENT: str(os.getpid()),
    }
    environment.pop("MLFLOW_RUN_ID", None)
    if command.storage:  # its password would stand in the list of processes
        environment[STORAGE] = command.storage
    return environment


def _pass_on(worker: subprocess.Popen[str], number: int, say: Callable[[str], None]) -> None:
    assert worker.stdout
    with worker.stdout as lines:
        for line in lines:
            say(f"worker {number}: {line.rstrip()}")


def _stop(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        try:
            worker.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            worker.kill()
