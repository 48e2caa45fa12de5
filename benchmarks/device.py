"""A chain, a study and a decision on a GPU, against a plain loop with AMP and `torch.compile`.

    python benchmarks/device.py --data CIFAR_FOLDER --out device.md
    python benchmarks/device.py --device cpu --brief --out brief.md

Ends with one line and exit code 2 where no accelerator is. `--brief` makes tiny images and runs
every part on them, to see that the parts work; its figures mean nothing. Draws run every tool
once, in turn. Two further parts ask what tests on a fake device cannot: `waits` has CUDA itself
count what a host waits for within an epoch, `repeat` trains a stage twice and compares the bits.
On a processor both run as well, where nothing is waited for.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import mlflow  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.one_stage import watched_epochs  # noqa: E402
from benchmarks.tools import PEERS, Result, Task, deal_images, timed  # noqa: E402
from pipeline.errors import PipelineError  # noqa: E402
from pipeline.system.provenance import git_commit, libraries  # noqa: E402
from pipeline.training.device import (  # noqa: E402
    compute_repeatably,
    pick_device,
    pick_precision,
)

STARTER = ROOT / "pipeline" / "weights" / "resnet18-tiny-imagenet-64px.safetensors"
RATES = ("3e-3", "3e-4", "3e-4")
"""Of the preset that the project's commands have here, for the plain loop."""
LOOPS = {"plain loop, AMP": False, "plain loop, AMP, torch.compile": True}


@dataclass(kw_only=True)
class Bench:
    """What all parts share."""

    task: Task
    device: torch.device
    draws: int
    trials: int
    pairs: int
    workers: int
    compiler: str

    @property
    def options(self) -> dict[str, str]:
        """Settings of the project that are the plain loop's."""
        task = self.task
        return {
            "preset": "cifar10_small",
            "data": task.data,
            "weights": task.weights,
            "device": str(self.device),
            "image_size": str(task.size),
            "epochs": str(task.epochs),
            "train_per_class": str(task.train_per_class),
            "val_per_class": str(task.val_per_class),
        }

    def ours(self, entry_point: str, folder: Path, **more: str) -> tuple[str, float]:
        """What a command of the project prints, and its seconds; runs and cache in `folder`."""
        options = {**self.options, "cache_dir": str(folder / "cache"), **more}
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        where = {"MLFLOW_TRACKING_URI": uri_in(folder), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pipeline", entry_point, *words]
        output, seconds, _ = timed(command, cwd=folder, env={**os.environ, **where})
        return output, seconds

    def plain(self, draw: int, images: Path, *, compiled: bool = False) -> Result:
        """One run of the plain loop; its own JSON line, with the time of the whole command."""
        task = self.task
        words = [sys.executable, str(PEERS / "device_loop.py"), "--data", task.data]
        words += ["--weights", task.weights, "--images", str(images), "--size", str(task.size)]
        words += ["--epochs", str(task.epochs), "--draw", str(draw), "--lr", ",".join(task.rates)]
        words += ["--device", str(self.device), "--workers", str(self.workers)]
        words += ["--compile", self.compiler] if compiled else []
        output, seconds, _ = timed(words)
        result: Result = json.loads(output.splitlines()[-1])
        return {**result, "command_s": seconds}


def uri_in(folder: Path) -> str:
    """MLflow's database."""
    return f"sqlite:///{folder / 'mlflow.db'}"


def stages_in(folder: Path) -> list[Result]:
    """Seconds (prefix, training, validation) and accuracy of the last chain, by stage."""
    client = mlflow.MlflowClient(uri_in(folder))
    order = ["attributes.start_time DESC"]
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.kind = 'stage'", order_by=order, max_results=3)
    stages = []
    for run in reversed(runs):
        metrics, seconds = run.data.metrics, run.data.metrics["time/prefix_s"]
        for part in ("train", "val"):
            history = client.get_metric_history(run.info.run_id, f"time/{part}_s")
            seconds += sum(metric.value for metric in history)
        stages.append(
            {
                "wall_s": seconds,
                "val_acc": metrics["selected/val_acc"],
                "peak_mib": metrics.get("memory/peak_mib", float("nan")),
            }
        )
    return stages


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def chain(bench: Bench) -> str:
    """Three stages: with an empty cache, with a full one, and as plain loops; medians."""
    results: dict[str, list[Result]] = {}
    for draw in range(bench.draws):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            images = deal_images(replace(bench.task, draw=draw), folder)

            def ours(tool: str, folder: Path = folder, draw: int = draw) -> None:
                _, seconds = bench.ours("main", folder, draw=str(draw), reuse="off")
                result = {"stages": stages_in(folder), "command_s": seconds}
                results.setdefault(tool, []).append(result)

            ours("this project, empty cache")
            for tool, compiled in LOOPS.items():
                results.setdefault(tool, []).append(bench.plain(draw, images, compiled=compiled))
            ours("this project, full cache")
    rows = []
    for tool, runs in results.items():
        by_stage = [
            statistics.median(run["stages"][stage]["wall_s"] for run in runs) for stage in range(3)
        ]
        acc = statistics.mean(run["stages"][2]["val_acc"] for run in runs)
        peak = max(stage.get("peak_mib", float("nan")) for stage in runs[0]["stages"])
        command_s = statistics.median(run["command_s"] for run in runs)
        rows.append([tool, *(f"{s:.2f} s" for s in by_stage), f"{sum(by_stage):.2f} s"])
        rows[-1] += [f"{command_s:.1f} s", f"{acc:.1%}", f"{peak:.0f} MiB"]
    header = ["tool", "stage 1", "stage 2", "stage 3", "total", "whole command", "validation"]
    return markdown([*header, "peak memory"], rows)


def trials(bench: Bench) -> str:
    """A study of stage 2, against as many stages 2 of the plain loop."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = bench.plain(0, deal_images(bench.task, folder))
        _, seconds = bench.ours("tune", folder, stage="2", n_trials=str(bench.trials))
    one, two = (plain["stages"][i]["wall_s"] for i in (0, 1))
    theirs = one + bench.trials * two
    return (
        f"{bench.trials} trials: {seconds:.1f} s for the whole command; a plain loop's stage 1 "
        f"and {bench.trials} of its stages 2 of {bench.task.epochs} epochs: {theirs:.1f} s."
    )


def decision(bench: Bench) -> str:
    """Pairs of stage 3 and of stage 2 continued, against what plain loops would take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = bench.plain(0, deal_images(bench.task, folder))
        more = {"looks": str(bench.pairs), "refit": "off"}
        output, seconds = bench.ours("decide", folder, **more)
    took = [stage["wall_s"] for stage in plain["stages"]]
    theirs = bench.pairs * (sum(took) + took[1])
    verdict = re.search(r"\b(not_justified|justified|inconclusive)\b", output)
    return (
        f"{bench.pairs} pairs ({verdict.group() if verdict else 'no verdict'}): {seconds:.1f} s "
        f"for the whole command; plain loops, with stage 2 continued: {theirs:.1f} s."
    )


def waits(bench: Bench) -> str:
    """How often a host waits in all epochs of a stage but the first, by line."""
    with tempfile.TemporaryDirectory() as name:
        trainer, found = watched_epochs(bench.options, Path(name), counts_waits=True)
    lines = [f"- {count}x {line}" for line, count in found.most_common()]
    steps = trainer.settings.epochs - 1
    return "\n".join([f"{steps} epochs were watched, {len(lines)} lines warned.", *lines])


def repeat(bench: Bench) -> str:
    """Whether a stage comes to the same bits twice."""
    best = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as name:
            trainer, found = watched_epochs(bench.options, Path(name))
            best.append(trainer.best)
    same = [torch.equal(best[0][name], best[1][name]) for name in best[0]]
    told = "".join(f"\n- {line}" for line in found)
    return f"{sum(same)} of {len(same)} tensors have the same bits.{told}"


def write_images(folder: Path) -> Path:
    """Ten classes of tiny noise whose brightness tells the class, as CIFAR-10's files are."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        cells, labels = [], [label for label in range(10) for _ in range(count)]
        for label in labels:
            pixels = rng.integers(0, 80, (32, 32, 3)) + 15 * label
            Image.fromarray(pixels.astype(np.uint8)).save(buffer := io.BytesIO(), "PNG")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({"img": cells, "label": pa.array(labels, pa.int64())})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def where(device: torch.device) -> str:
    """The hardware, the libraries and the commit."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    precision = str(pick_precision("auto", device)).removeprefix("torch.")
    return f"{name}, {device}, {precision}; {libraries()}; commit {git_commit() or 'unknown'}"


def main() -> int:
    """Measure the parts asked for and write them as they are done."""
    parts: dict[str, Callable[[Bench], str]] = {
        part.__name__: part for part in (chain, trials, decision, waits, repeat)
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, mps, cpu (default: auto)")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10 parquet files")
    parser.add_argument("--weights", type=Path, default=STARTER, help="resnet18 .safetensors")
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default 64)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4, help="of the plain loop")
    parser.add_argument("--brief", action="store_true", help="every part on tiny images")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    args = parser.parse_args()
    try:
        device = pick_device(args.device)
    except PipelineError as err:
        sys.stderr.write(f"error: {err}\n")
        return 2
    if device.type == "cpu" and args.device != "cpu":
        sys.stderr.write("error: no accelerator is here: run this where CUDA or MPS is\n")
        return 2
    if not args.brief and not args.data:
        parser.error("--data is required without --brief")
    compute_repeatably(device)
    with tempfile.TemporaryDirectory() as name:
        images = write_images(Path(name)) if args.brief else args.data.resolve()
        if args.brief:
            args.size, args.epochs, args.draws, args.trials, args.pairs = 32, 2, 1, 2, 2
        task = Task(
            str(images),
            str(args.weights.resolve()),
            size=args.size,
            epochs=args.epochs,
            rates=RATES,
        )
        bench = Bench(
            task=replace(task, train_per_class=3, val_per_class=2) if args.brief else task,
            device=device,
            draws=args.draws,
            trials=args.trials,
            pairs=args.pairs,
            workers=0 if args.brief else args.workers,
            compiler="aot_eager" if args.brief else "inductor",  # no C++ to wait for
        )
        done = [f"{where(device)}."]
        for part in args.parts:
            started = time.perf_counter()
            done.append(f"## {part}\n\n{parts[part](bench)}")
            sys.stderr.write(f"{part}: {time.perf_counter() - started:.0f} s\n")
            args.out.write_text("\n\n".join(done) + "\n", encoding="utf-8")
    sys.stdout.write(args.out.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
