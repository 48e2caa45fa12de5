"""This project against its peers: same images, epochs, batch size and resolution, interleaved.

    python benchmarks/speed.py --data CIFAR_FOLDER --weights STARTER --draws 0 1 2 --out speed.md

Each draw runs every tool once, in turn, so that a machine whose speed drifts does not favour one.
This project runs through its own command line with an empty cache ("cold") and again with a full
one ("warm"). A stage's time is its training and validation, with the prefix where there is one;
imports, reading images and logging are not counted for any tool ("whole command" counts them all).
Peers need packages of their own (`peers/requirements.txt`): `--peers-python` is the interpreter
that has them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / "peers"
sys.path.insert(0, str(ROOT))

Result = dict[str, Any]


def run_peer(name: str, python: str, args: argparse.Namespace, draw: int, images: Path) -> Result:
    """One run of a peer; its own JSON line, with the wall time of the whole command."""
    words = [python, str(PEERS / f"{name}_loop.py"), "--data", args.data]
    words += ["--weights", args.weights, "--images", str(images), "--size", str(args.size)]
    words += ["--epochs", str(args.epochs), "--draw", str(draw), "--lr", "3e-3,3e-4,3e-4"]
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return {**result, "command_s": time.perf_counter() - started}


def run_ours(args: argparse.Namespace, draw: int, folder: Path, test_acc: float | None) -> Result:
    """One chain through the command line; the numbers are the runs' own metrics.

    `test_acc`: of the same chain run before, which gave the same weights; None: evaluate it.
    """
    words = ["main", "--preset", "cifar10_small", "--data", args.data, "--draw", str(draw)]
    words += ["--image_size", str(args.size), "--epochs", str(args.epochs), "--reuse", "off"]
    words += ["--cache_dir", str(folder / "cache")]
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    python = [sys.executable, "-m", "pipeline"]
    subprocess.run([*python, *words], cwd=folder, env=environment, check=True, capture_output=True)
    command_s = time.perf_counter() - started

    import mlflow

    client = mlflow.MlflowClient(uri)
    order = ["attributes.start_time DESC"]
    runs = client.search_runs(["0"], "tags.kind = 'stage'", order_by=order, max_results=3)[::-1]
    stages = []
    for run in runs:
        epochs = [
            sum(m.value for m in client.get_metric_history(run.info.run_id, f"time/{part}_s"))
            for part in ("train", "val")
        ]
        metrics = run.data.metrics
        wall_s = metrics["time/prefix_s"] + sum(epochs)
        stages.append({"stage": int(run.data.tags["stage"]), "wall_s": wall_s})
        stages[-1] |= {"val_acc": metrics["best/val_acc"], "prefix_s": metrics["time/prefix_s"]}
    if test_acc is None:
        words = [*python, "evaluate", "--run_id", runs[-1].info.run_id]
        words += ["--cache_dir", str(folder / "cache")]
        subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True)
        test_acc = client.get_run(runs[-1].info.run_id).data.metrics["test/acc"]
    total = sum(stage["wall_s"] for stage in stages)
    return {
        "stages": stages,
        "total_wall_s": total,
        "test_acc": test_acc,
        "command_s": command_s,
    }


def deal_images(data: str, draw: int, folder: Path) -> Path:
    """The rows of this project's draw, for the peers to read."""
    from pipeline.data.draws import deal_rows
    from pipeline.data.sources import open_source

    source = open_source(data, folder)
    train, val = deal_rows(source, 100, 100, 0, draw)
    assert source.test is not None
    path = folder / f"draw{draw}.npz"
    np.savez(path, train=train, val=val, test=np.arange(len(source.test.labels)))
    return path


def convolution_rate() -> float:
    """Floating-point operations a second of the fastest bf16 convolution seen here."""
    import torch

    best = 0.0
    for channels, side in ((128, 16), (256, 8), (256, 16)):
        x = torch.randn(64, channels, side, side).bfloat16().to(memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3).bfloat16()
        for _ in range(12):
            started = time.perf_counter()
            y = torch.nn.functional.conv2d(x, w, padding=1)
            seconds = time.perf_counter() - started
            best = max(best, 2 * y.numel() * channels * 9 / seconds)
    return best


def floor_operations(size: int, epochs: int, train: int, val: int, views: int) -> float:
    """Operations of three stages: suffix forward and backward, validation, one prefix pass.

    Backward counts twice the forward, less the input gradient of the first trainable block.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline.backbones import FORWARD_ORDER, build_backbone
    from pipeline.stages import SCHEDULES

    backbone = build_backbone("resnet18", 10, 0)
    x = torch.zeros(1, 3, size, size)
    cost = {}
    for block in FORWARD_ORDER:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            x = backbone.run(x, [block])
        cost[block] = counter.get_total_flops()
    stages = SCHEDULES["three_stage"]
    total = (train * views + val) * sum(cost[b] for b in stages[0].prefix)
    for stage in stages:
        forward = sum(cost[block] for block in stage.suffix)
        total += epochs * (train * 3 + val) * forward
    return float(total)


def table(results: dict[str, list[Result]], floor_s: float) -> str:
    """Median times, ratios to the plain loop and mean accuracies, as Markdown."""

    def seconds(tool: str, stage: int) -> float:
        return statistics.median(r["stages"][stage]["wall_s"] for r in results[tool])

    def total(tool: str) -> float:
        return statistics.median(r["total_wall_s"] for r in results[tool])

    lines = [
        "| tool | stage 1 | stage 2 | stage 3 | total | plain / it | whole command | val | test |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for tool, rows in results.items():
        times = " | ".join(f"{seconds(tool, i):.1f} s" for i in range(3))
        ratio = f"{total('plain') / total(tool):.1f}x" if "plain" in results else ""
        command = statistics.median(r["command_s"] for r in rows)
        val = statistics.mean(r["stages"][2]["val_acc"] for r in rows)
        test = statistics.mean(r["test_acc"] for r in rows)
        lines.append(
            f"| {tool} | {times} | {total(tool):.1f} s | {ratio} | {command:.0f} s | {val:.1%} "
            f"| {test:.1%} |"
        )
    lines.append(f"| floor | | | | {floor_s:.1f} s | | | | |")
    return "\n".join(lines)


def main() -> None:
    """Run, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--tools", nargs="+", default=["ours", "plain", "fastai", "lightning"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.data, args.weights = str(Path(args.data).resolve()), str(Path(args.weights).resolve())
    results: dict[str, list[Result]] = {}
    rate = convolution_rate()
    floor_s = floor_operations(args.size, args.epochs, 1000, 1000, 2) / rate
    for draw in args.draws:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            images = deal_images(args.data, draw, folder)
            for tool in args.tools:
                if tool == "ours":
                    cold = run_ours(args, draw, folder, None)
                    results.setdefault("ours, cold", []).append(cold)
                    warm = run_ours(args, draw, folder, cold["test_acc"])
                    results.setdefault("ours, warm", []).append(warm)
                else:
                    peer = run_peer(tool, args.peers_python, args, draw, images)
                    results.setdefault(tool, []).append(peer)
                print(draw, tool, flush=True)
            args.out.with_suffix(".json").write_text(json.dumps(results, indent=1))
            text = table(results, floor_s)
            about = f"{len(results[next(iter(results))])} draws, {rate / 1e9:.0f} GFLOP/s (bf16)"
            args.out.write_text(f"{about}\n\n{text}\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
