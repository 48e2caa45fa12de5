"""This project against its peers and its floor, and how its cost grows: one command, one table.

    python benchmarks/speed.py --data CIFAR_FOLDER --weights STARTER --peers-python PYTHON \
        --out speed.md
    python benchmarks/speed.py --data CIFAR_FOLDER --weights mobilenet_v2.pth \
        --backbone mobilenet_v2 --size 224 --epochs 3 --parts peers --peers-python PYTHON \
        --out speed.md

Every draw runs every tool once, in turn, so that a machine whose speed drifts does not favour one.
This project runs through its own command line with an empty cache ("cold") and again with a full
one ("warm"). Peers compute in the way that a probe finds to be the fastest here: float32 or
bfloat16, channels-last or not, compiled or not. Peers need packages of their own
(`peers/requirements.txt`): `--peers-python` is the interpreter that has them. `--parts` chooses
some of the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import optuna
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.floor import convolution_rate, floor_operations, loop_operations  # noqa: E402
from benchmarks.startup import startup  # noqa: E402
from benchmarks.tools import (  # noqa: E402
    Result,
    Task,
    deal_images,
    machine,
    probe,
    run_ours,
    run_peer,
    timed,
)
from pipeline.system.text import count_of  # noqa: E402
from pipeline.training.device import pick_precision  # noqa: E402

GROWTH_EPOCHS = 2
Rows = list[list[str]]


def markdown(header: list[str], rows: Rows) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def compare(task: Task, python: str, draws: list[int], tools: list[str], *, test: bool) -> str:
    """Wall time a stage, ratio to the plain loop, accuracy: medians and means over draws."""
    results: dict[str, list[Result]] = {}
    dtype = pick_precision("auto", torch.device("cpu"))
    rate, (way, tried) = convolution_rate(dtype), probe(python, task)
    say(f"ways of the plain loop: {tried}")
    for draw in draws:
        with tempfile.TemporaryDirectory() as name:
            folder, drawn = Path(name), replace(task, draw=draw)
            images = deal_images(drawn, folder, test=test)
            cold = run_ours(drawn, folder, test=test)
            results.setdefault("this project, empty cache", []).append(cold)
            say(f"draw {draw}, this project: {json.dumps(cold)}")
            for tool in tools:
                peer = run_peer(tool, python, drawn, images, way=way, test=test)
                results.setdefault(tool, []).append(peer)
                say(f"draw {draw}, {tool}: {json.dumps(peer)}")
            warm = run_ours(drawn, folder) | {"test_acc": cold["test_acc"]}
            results.setdefault("this project, full cache", []).append(warm)
        say(f"draw {draw}, this project again: {json.dumps(warm)}")
        rate = max(rate, convolution_rate(dtype))

    def seconds(tool: str, stage: int) -> float:
        return statistics.median(r["stages"][stage]["wall_s"] for r in results[tool])

    def total(tool: str) -> float:
        return statistics.median(r["total_wall_s"] for r in results[tool])

    reference = "plain" if "plain" in results else next(iter(results))
    rows = []
    for tool, runs in results.items():
        row = [tool]
        for stage in range(3):
            took = seconds(tool, stage)
            row.append(f"{took:.2g} s" if took < 1 else f"{took:.1f} s")
            row[-1] += f" ({seconds(reference, stage) / took:.1f}x)"
        row.append(f"{total(tool):.1f} s")
        row.append(f"{total(reference) / total(tool):.1f}x")
        command_s = {
            name: statistics.median(run["command_s"] for run in results[name])
            for name in (tool, reference)
        }
        row.append(f"{command_s[tool]:.0f} s ({command_s[reference] / command_s[tool]:.1f}x)")
        row += [
            f"{statistics.mean(r['stages'][i]['val_acc'] for r in runs):.1%}" for i in range(3)
        ]
        row.append(f"{statistics.mean(r['test_acc'] for r in runs):.1%}" if test else "")
        rows.append(row)
    least = floor_operations(task.backbone, task.size, task.epochs, 1000, 1000, 2)
    loop = loop_operations(task.backbone, task.size, task.epochs, 1000, 1000)
    floor_s = least / rate
    rows.append(["floor", "", "", "", f"{floor_s:.1f} s", "", "", "", "", "", ""])
    header = ["tool", "stage 1", "stage 2", "stage 3", "total", f"{reference} / it"]
    header += ["whole command", "val 1", "val 2", "val 3", "held-out"]
    about = (
        f"{machine()}. {task.backbone}, {count_of(len(draws), 'draw')}, {task.epochs} epochs a "
        f"stage, {task.size} px. Best convolution here: {rate / 1e9:.0f} GFLOP/s in "
        f"{str(dtype).removeprefix('torch.')}; a loop that keeps nothing needs {loop / least:.1f} "
        f"times the floor's operations. Peers: {' '.join(way.words)}; tried: {tried}."
    )
    return f"{about}\n\n{markdown(header, rows)}"


def growth_in_trials(task: Task, python: str, count: int = 50) -> str:
    """A study of stage 2, against as many plain loops with the epochs that its trials planned."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = run_peer("plain", python, task, deal_images(task, folder))
        words = [sys.executable, "-m", "pipeline", "tune", "--stage", "2"]
        words += ["--n_trials", str(count), "--preset", "cifar10_small", "--data", task.data]
        words += ["--weights", task.weights, "--cache_dir", str(folder / "cache")]
        uri, storage = (f"sqlite:///{folder / db}" for db in ("mlflow.db", "optuna.db"))
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
        started = datetime.now()  # as Optuna's, without a zone
        timed(words, cwd=folder, env=environment)
        study = optuna.load_study(study_name=None, storage=storage)
        trials = study.get_trials()
    stage_1, stage_2 = (plain["stages"][i]["wall_s"] for i in (0, 1))
    rows = []
    for number in (1, 10, count):
        first = trials[:number]
        ends = [trial.datetime_complete for trial in first if trial.datetime_complete]
        ours = (max(ends) - started).total_seconds()
        epochs = sum(trial.params["epochs"] for trial in first)
        theirs = stage_1 + epochs * stage_2 / task.epochs
        pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in first)
        rows.append([str(number), str(epochs), str(pruned), f"{ours:.0f} s", f"{theirs:.0f} s"])
        rows[-1].append(f"{theirs / ours:.1f}x")
    header = ["stage-2 trials", "epochs planned", "pruned", "`tune`, whole command", "plain loop"]
    note = (
        "The plain loop's figures are one measured stage 1, and a measured stage 2's seconds an "
        "epoch times the epochs that the study's trials planned: it has nothing to reuse and "
        "nothing to prune by. It only flips; strong augmentation costs the study ten views an "
        "image."
    )
    return f"{markdown([*header, 'ratio'], rows)}\n\n{note}"


def growth_in(
    name: str, python: str, tasks: list[tuple[str, Task]], plain: Callable[[Task], bool]
) -> str:
    """Cost and memory of a chain of two epochs a stage, cold, against the plain loop's."""
    rows = []
    for label, task in tasks:
        with tempfile.TemporaryDirectory() as folder_name:
            folder = Path(folder_name)
            ours = run_ours(task, folder)
            row = [label, *(f"{stage['wall_s']:.1f} s" for stage in ours["stages"])]
            row += [f"{ours['total_wall_s']:.1f} s", f"{ours['peak_gib']:.1f} GiB"]
            if plain(task):
                peer = run_peer("plain", python, task, deal_images(task, folder))
                theirs, ratio = peer["total_wall_s"], peer["total_wall_s"] / ours["total_wall_s"]
                row += [f"{theirs:.1f} s", f"{peer['peak_gib']:.1f} GiB", f"{ratio:.1f}x"]
            else:
                row += ["", "", ""]
        rows.append(row)
        say(f"{name} {label}")
    header = [name, "stage 1", "stage 2", "stage 3", "total", "peak memory"]
    header += ["plain loop", "its memory", "ratio"]
    return markdown(header, rows)


def growth_in_images(task: Task, python: str) -> str:
    """1,000 to 39,000 training images, with 1,000 to validate; the plain loop up to 4,000."""
    short = replace(task, epochs=GROWTH_EPOCHS)
    tasks = [(f"{10 * n:,}", replace(short, train_per_class=n)) for n in (100, 400, 1600, 3900)]
    return growth_in("training images", python, tasks, lambda task: task.train_per_class <= 400)


def growth_in_resolution(task: Task, python: str) -> str:
    """32 to 224 px."""
    short = replace(task, epochs=GROWTH_EPOCHS)
    tasks = [(f"{size} px", replace(short, size=size)) for size in (32, 64, 128, 224)]
    return growth_in("resolution", python, tasks, lambda _: True)


def start_up(task: Task) -> str:
    """From the launch to the first step."""
    with tempfile.TemporaryDirectory() as name:
        found = startup(task, Path(name))
    rows = [
        ["`mlflow run` of a project that does nothing", f"{found['mlflow']:.1f} s"],
        ["`mlflow run . -e stage1`, to its first training step", f"{found['ours']:.1f} s"],
        ["beyond MLflow's own", f"{found['ours'] - found['mlflow']:.1f} s"],
        ["a process that only imports and opens the store", f"{found['imports']:.1f} s"],
    ]
    return markdown(["what", "median of 5"], rows)


def say(line: str) -> None:
    """Progress, on the error stream."""
    sys.stderr.write(f"{line}\n")


def main() -> None:
    """Measure the parts asked for and write them as they are done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder of CIFAR-10 parquet files")
    parser.add_argument("--weights", required=True, help=".safetensors or .pth of the backbone")
    parser.add_argument("--backbone", default="resnet18", choices=["resnet18", "mobilenet_v2"])
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--epochs", type=int, default=10, help="of each stage")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    words = "do not score the held-out images, which takes minutes at 224 px"
    parser.add_argument("--no-test", action="store_true", help=words)
    interpreter = "interpreter with peers/requirements.txt (default: this one)"
    parser.add_argument("--peers-python", default=sys.executable, help=interpreter)
    tools = ["plain", "cached", "fastai", "lightning"]
    parser.add_argument("--tools", nargs="+", default=tools, choices=tools, help="default all")
    names = ["peers", "trials", "images", "resolution", "startup"]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="default all")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    args = parser.parse_args()
    data, weights = (str(Path(name).resolve()) for name in (args.data, args.weights))
    task = Task(data, weights, size=args.size, epochs=args.epochs, backbone=args.backbone)
    python = args.peers_python
    parts: dict[str, tuple[str, Callable[[], str]]] = {
        "peers": (
            "Against its peers",
            lambda: compare(task, python, args.draws, args.tools, test=not args.no_test),
        ),
        "trials": ("Growth with trials", lambda: growth_in_trials(task, python)),
        "images": ("Growth with images", lambda: growth_in_images(task, python)),
        "resolution": ("Growth with resolution", lambda: growth_in_resolution(task, python)),
        "startup": ("Start-up", lambda: start_up(task)),
    }
    done = []
    for name in args.parts:
        title, measure = parts[name]
        done.append(f"## {title}\n\n{measure()}")
        args.out.write_text("\n\n".join(done) + "\n")
    sys.stdout.write(args.out.read_text())


if __name__ == "__main__":
    main()
