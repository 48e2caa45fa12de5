"""One run of this project, or of a peer, in a process of its own; what it took and reached.

A stage's time is its training and validation, with the prefix where there is one; imports, reading
images and logging are not counted for any tool (`command_s` counts them all).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.open import open_source
from pipeline.data.sampling.draws import deal_rows

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"
Result = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What every tool is given: the same images, epochs and resolution."""

    data: str
    weights: str
    draw: int = 0
    size: int = 64
    epochs: int = 10
    train_per_class: int = 100
    val_per_class: int = 100
    backbone: str = "resnet18"
    rates: tuple[str, str, str] = ("3e-3", "3e-4", "1e-4")


@dataclass(frozen=True)
class Way:
    """How a peer computes."""

    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False

    @property
    def words(self) -> list[str]:
        """As options."""
        found = ["--precision", self.precision]
        found += ["--channels-last"] if self.channels_last else []
        return [*found, "--compile"] if self.compile else found


PLAIN_WAY = Way()


def machine() -> str:
    """The processor, its cores, its fast number formats, and the commit."""
    text = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    name = next(
        (row.split(":")[1].strip() for row in text.splitlines() if "Model name" in row), ""
    )
    flags = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in text]
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return f"{name}, {os.cpu_count()} cores, {flags[0] if flags else 'no AVX2'}, commit {commit}"


def timed(words: list[str], **where: Any) -> tuple[str, float, float]:  # noqa: ANN401 - Popen's
    """Output, wall seconds and peak resident GiB of a command."""
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.PIPE, **where)
        assert process.stderr
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            raise RuntimeError(f"{' '.join(words)} failed:\n{errors.decode()[-2000:]}")
        output.seek(0)
        return output.read(), seconds, usage.ru_maxrss / 2**20


def alone(words: list[str]) -> tuple[str, float, float]:
    """The same of a peer, which finds nothing that another has compiled."""
    with tempfile.TemporaryDirectory() as folder:
        return timed(words, env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder})


def probe(python: str, task: Task) -> tuple[Way, str]:
    """The fastest way to compute for so many epochs of stage 2, and all that were tried."""
    words = [python, str(PEERS / "plain_loop.py"), "--data", task.data, "--probe"]
    words += ["--weights", task.weights, "--backbone", task.backbone, "--size", str(task.size)]
    found = json.loads(alone(words)[0].splitlines()[-1])
    steps = task.epochs * -(-10 * task.train_per_class // 64)

    def seconds(row: dict[str, Any]) -> float:
        return float(row["begin_s"] + steps * row["step_s"])

    lines = []
    for row in sorted(found, key=seconds):
        way = Way(row["precision"], row["channels_last"], row["compile"])
        lines.append(
            f"{' '.join(way.words)}: {row['step_s']:.2f} s a step, {row['begin_s']:.0f} s to begin"
        )
    best = min(found, key=seconds)
    return Way(best["precision"], best["channels_last"], best["compile"]), "; ".join(lines)


def run_peer(
    name: str,
    python: str,
    task: Task,
    images: Path,
    *,
    way: Way = PLAIN_WAY,
    test: bool = False,
) -> Result:
    """One run of a peer; its own JSON line, with the time and memory of the whole command.

    The time is without that of scoring the held-out images, which our own command does not do.
    `cached` is the plain loop that computes stage 1's features once.
    """
    script = "plain" if name == "cached" else name
    words = [python, str(PEERS / f"{script}_loop.py"), "--data", task.data]
    words += ["--backbone", task.backbone, *way.words]
    words += ["--cache-head"] if name == "cached" else []
    words += ["--weights", task.weights, "--images", str(images), "--size", str(task.size)]
    words += ["--epochs", str(task.epochs), "--draw", str(task.draw)]
    words += ["--lr", ",".join(task.rates)]
    words += ["--test"] if test else []
    words += [] if name == "fastai" else ["--augment", "flip"]
    output, command_s, peak_gib = alone(words)
    result: Result = json.loads(output.splitlines()[-1])
    return {**result, "command_s": command_s - result["test_s"], "peak_gib": peak_gib}


def run_ours(task: Task, folder: Path, *, test: bool = False) -> Result:
    """One chain through the command line; the numbers are the runs' own metrics.

    Runs and cache are kept in `folder`: a second run there finds a full cache.
    """
    words = ["main", "--preset", "cifar10_small", "--data", task.data, "--draw", str(task.draw)]
    words += ["--backbone", task.backbone]
    words += [word for n, lr in enumerate(task.rates, 1) for word in (f"--stage{n}.lr", lr)]
    words += ["--weights", task.weights, "--image_size", str(task.size), "--reuse", "off"]
    words += ["--epochs", str(task.epochs), "--cache_dir", str(folder / "cache")]
    words += ["--train_per_class", str(task.train_per_class)]
    words += ["--val_per_class", str(task.val_per_class)]
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
    python = [sys.executable, "-m", "pipeline"]
    _, command_s, peak_gib = timed([*python, *words], cwd=folder, env=environment)

    import mlflow

    client = mlflow.MlflowClient(uri)
    order = ["attributes.start_time DESC"]
    runs = client.search_runs(
        [one.experiment_id for one in client.search_experiments()],
        "tags.kind = 'stage'",
        order_by=order,
        max_results=3,
    )[::-1]
    stages = []
    for run in runs:
        epochs = [
            sum(m.value for m in client.get_metric_history(run.info.run_id, f"time/{part}_s"))
            for part in ("train", "val")
        ]
        metrics = run.data.metrics
        stages.append(
            {
                "stage": int(run.data.tags["stage"]),
                "wall_s": metrics["time/prefix_s"] + sum(epochs),
                "prefix_s": metrics["time/prefix_s"],
                "val_acc": metrics["selected/val_acc"],
            }
        )
    test_acc = None
    if test:
        last = runs[-1].info.run_id
        words = [*python, "evaluate", "--run_id", last, "--cache_dir", str(folder / "cache")]
        timed(words, cwd=folder, env=environment)
        test_acc = client.get_run(last).data.metrics["test/acc"]
    return {
        "stages": stages,
        "total_wall_s": sum(stage["wall_s"] for stage in stages),
        "test_acc": test_acc,
        "command_s": command_s,
        "peak_gib": peak_gib,
    }


def deal_images(task: Task, folder: Path, *, test: bool = False) -> Path:
    """The rows of this project's draw, for the peers to read; with `test`, the held-out ones."""
    source = open_source(task.data, folder)
    train, val = deal_rows(source, task.train_per_class, task.val_per_class, 0, task.draw)
    held_out = len(source.test.labels) if test and source.test else 0
    path = folder / f"draw{task.draw}.npz"
    np.savez(path, train=train, val=val, test=np.arange(held_out))
    return path
