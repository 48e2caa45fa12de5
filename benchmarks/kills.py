"""Commands that are killed again and again, against the same commands undisturbed.

    python benchmarks/kills.py --out kills.md
    python benchmarks/kills.py --only refit --kills 9

Each command is run once undisturbed. Then SIGKILL comes at every epoch's end and in the middle of
every epoch, each time in a chain of three kills whose later ones come soon after the command goes
on; the same command is run again until it ends. Every process is a fork of one that has imported
the libraries and nothing more, with a store and a cache that are empty before each chain. States
are written after every epoch, as small as these are. Out: a Markdown table of kills, chains
whose ends are bit-equal to the undisturbed run, and what is left in MLflow.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import mlflow  # noqa: E402
import numpy as np  # noqa: E402
import optuna  # noqa: E402, F401 - forks need not import it
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from pipeline.cli import main as command_line  # noqa: E402
from pipeline.runs.resuming.unfinished import Unfinished  # noqa: E402
from pipeline.system.variables import KEEP_SHARE  # noqa: E402
from pipeline.tracking import keys  # noqa: E402
from pipeline.tracking.keys import tags_as_named  # noqa: E402
from pipeline.training.trainer import Trainer  # noqa: E402

Moment = tuple[str, int]
"""`border` or `step`, and how many of these come before the kill."""
LONGEST_S = 900
CHAIN = 3
COMMON = {
    "backbone": "mobilenet_v3_small",
    "weights": "none",
    "image_size": "32",
    "train_per_class": "6",
    "val_per_class": "4",
    "epochs": "3",
    "batch_size": "8",
    "precision": "float32",
    "log_model": "off",
}
TARGET = {"norm_stats": "target"}
COMMANDS: dict[str, list[dict[str, str]]] = {
    "main, AdamW, cached": [{"": "main", **TARGET}],
    "main, SGD, not cached": [{"": "main", **TARGET, "optimizer": "sgd", "cache": "off"}],
    # one trial, on two draws: a further one has settings that depend on who asks for it
    "tune": [
        {"": "tune", **TARGET, "stage": "1", "n_trials": "1", "draws": "2", "heartbeat": "1"}
    ],
    "decide": [
        {"": "decide", **TARGET, "looks": "2", "test_per_class": "4", "refit": "off"},
    ],
    "pretrain": [{"": "pretrain", "out": "weights.safetensors", "val_per_class": "2"}],
    "refit": [{"": "stage2", **TARGET}, {"": "refit", "run_id": "LAST", "register_as": "off"}],
}
"""Commands by their names in the table; the last of each is killed, those before prepare it."""


def write_images(root: Path) -> None:
    """Three classes of noisy pictures whose colour tells the class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("apple", "berry", "cherry")):
        (root / name).mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(0, 120, (32, 32, 3))
            pixels[..., label] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number:02}.png")


def counting(moment: Moment | None, counts: Path) -> None:
    """Kill this process at a moment; else write how many of each there were when it ends."""
    passed = {"border": 0, "step": 0}

    def passing(kind: str) -> None:
        passed[kind] += 1
        if moment == (kind, passed[kind]):
            os.kill(os.getpid(), signal.SIGKILL)
        if moment is None:
            counts.write_text(json.dumps(passed))

    step, over = Trainer._step, Unfinished.epoch_over

    def counted_step(*given: Any) -> torch.Tensor:  # noqa: ANN401
        passing("step")
        return step(*given)

    def counted_over(*given: Any) -> None:  # noqa: ANN401
        over(*given)
        passing("border")

    Trainer._step = counted_step  # type: ignore[method-assign]
    Unfinished.epoch_over = counted_over  # type: ignore[method-assign]


def run(words: list[str], folder: Path, moment: Moment | None = None) -> int:
    """A command in a process of its own; its exit code, -9 where it was killed."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.chdir(folder)
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
            os.environ["TMPDIR"] = str(folder / "tmp")
            tempfile.tempdir = None
            mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
            log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            torch.set_num_threads(1)
            counting(moment, folder / "counts.json")
            code = command_line(words)
            sys.stdout.flush()
            os._exit(code)
        os._exit(99)
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise RuntimeError(f"{words} did not end in {LONGEST_S} s: see {folder / 'log.txt'}")


@dataclass(frozen=True)
class Runs:
    """What a store holds."""

    all: list[Any]

    @classmethod
    def of(cls, folder: Path) -> Runs:
        """Every run that is not deleted."""
        client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        places = [experiment.experiment_id for experiment in client.search_experiments()]
        return cls(client.search_runs(places, max_results=5000))

    def of_kind(self, kind: str) -> list[Any]:
        """Runs of a kind."""
        return [run for run in self.all if run.data.tags.get("kind") == kind]

    def finished(self, kind: str) -> list[Any]:
        """Of these, those that are finished."""
        return [run for run in self.of_kind(kind) if run.info.status == "FINISHED"]


def outcome(folder: Path) -> dict[str, Any]:
    """What a command came to, to the last bit: weights by content, curves, values."""
    runs = Runs.of(folder)
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    weights, curves = {}, {}
    for one in runs.finished("stage"):
        tags = tags_as_named(one.data.tags)
        key = tags[keys.LINEAGE_KEY]
        weights[key] = tags[keys.CHECKPOINT_SHA256]
        curves[key] = course(client, one)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    refits = [course(client, one) for one in runs.finished("refit")]
    for one in runs.finished("refit"):
        uri = tags_as_named(one.data.tags)[keys.MODEL_URI]
        path = next(Path(mlflow.artifacts.download_artifacts(uri)).rglob("model.safetensors"))
        weights["refit"] = hashlib.sha256(path.read_bytes()).hexdigest()
    values = sorted(one.data.metrics["value"] for one in runs.finished("trial"))
    pretrained = [
        tags_as_named(one.data.tags)[keys.WEIGHTS_SHA256] for one in runs.finished("pretrain")
    ]
    gains = [
        {k: v for k, v in one.data.metrics.items() if "gain" in k}
        for one in runs.finished("decision")
    ]
    return {
        "weights": weights,
        "curves": curves,
        "refits": refits,
        "values": values,
        "pretrained": pretrained,
        "gains": gains,
    }


def course(client: mlflow.MlflowClient, one: Any) -> dict[str, list[tuple[int, float]]]:  # noqa: ANN401
    """Every metric of a run by step, times and memory aside."""
    names = [n for n in one.data.metrics if not n.startswith(("time/", "memory/"))]
    histories = {name: client.get_metric_history(one.info.run_id, name) for name in names}
    return {n: sorted((p.step, p.value) for p in points) for n, points in histories.items()}


def prepare(name: str, folder: Path, images: Path) -> list[str]:
    """The commands before the one that is killed; returns the words of this one."""
    (folder / "tmp").mkdir(parents=True)
    *before, last = COMMANDS[name]
    for options in before:
        if code := run(words_of(options, folder, images), folder):
            raise RuntimeError(f"{options} ended with {code}: see {folder / 'log.txt'}")
    return words_of(last, folder, images)


def words_of(options: dict[str, str], folder: Path, images: Path) -> list[str]:
    """A command line."""
    common = {} if options[""] == "refit" else {**COMMON, "data": str(images)}
    given = {**common, "cache_dir": str(folder / "cache"), **options}
    name = given.pop("")
    if given.get("run_id") == "LAST":
        stages = Runs.of(folder).finished("stage")
        given["run_id"] = max(stages, key=lambda one: one.data.tags["stage"]).info.run_id
    return [name, *(f"--{key}={value}" for key, value in given.items())]


def chains(borders: int, steps: int, kills: int) -> list[list[Moment]]:
    """Three kills each: the first at a border or within an epoch, each of them once."""
    each = max(1, steps // borders)
    firsts: list[Moment] = []
    for epoch in range(borders):
        firsts += [("border", epoch + 1), ("step", epoch * each + each // 2 + 1)]
    later: list[Moment] = [("step", each // 2 + 1), ("border", 1)]
    found = [[first, *(later if n % 2 else later[::-1])] for n, first in enumerate(firsts)]
    return found[:: max(1, len(found) * CHAIN // kills)] if kills else found


@dataclass
class Row:
    """What chains of kills of one command came to."""

    kills: int = 0
    chains: int = 0
    equal: int = 0
    exits: int = 0
    twice: int = 0
    extra: int = 0
    running: int = 0
    states: int = 0
    went_on: int = 0


def experiment(
    name: str, images: Path, root: Path, kills: int, tell: Callable[[str], None]
) -> Row:
    """One command, undisturbed and then killed."""
    undisturbed = root / "undisturbed"
    words = prepare(name, undisturbed, images)
    if code := run(words, undisturbed):
        raise RuntimeError(f"{name} ended with {code}: see {undisturbed / 'log.txt'}")
    expected = outcome(undisturbed)
    counts = json.loads((undisturbed / "counts.json").read_text())
    row = Row()
    for number, moments in enumerate(chains(counts["border"], counts["step"], kills)):
        folder = root / f"chain{number}"
        words = prepare(name, folder, images)
        code = -signal.SIGKILL
        for moment in moments:
            code = run(words, folder, moment)
            if code != -signal.SIGKILL:
                break
            row.kills += 1
        if code == -signal.SIGKILL:
            code = run(words, folder)
        runs, got = Runs.of(folder), outcome(folder)
        stages = [tags_as_named(one.data.tags)[keys.LINEAGE_KEY] for one in runs.of_kind("stage")]
        row.chains += 1
        row.exits += code == 0
        row.equal += got == expected
        row.twice += len(stages) - len(set(stages))
        row.extra += len(runs.of_kind("refit")) - len(runs.finished("refit"))
        row.running += sum(one.info.status == "RUNNING" for one in runs.all)
        row.states += len(list((folder / "cache" / "unfinished").glob("*.state")))
        row.went_on += (folder / "log.txt").read_text().count("goes on after epoch")
        tell(f"{name}: {moments}: exit {code}, {'equal' if got == expected else 'NOT EQUAL'}")
        if got == expected and code == 0:
            shutil.rmtree(folder)
        else:
            differ = [key for key in expected if got[key] != expected[key]]
            tell(f"  kept {folder}: {', '.join(differ)} differ")
    return row


def main() -> None:
    """Run the experiments, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", help=f"words in the name of one of: {'; '.join(COMMANDS)}")
    parser.add_argument("--kills", type=int, default=0, help="of each command, about; 0: all")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ[KEEP_SHARE] = "1e9"
    rows = {}
    root = Path(tempfile.mkdtemp())
    write_images(root / "images")
    for name in COMMANDS:
        if args.only and args.only not in name:
            continue
        rows[name] = experiment(
            name,
            root / "images",
            root / name.replace(", ", "-"),
            args.kills,
            lambda line: print(line, file=sys.stderr, flush=True),
        )
    titles = ("kills", "chains", "bit-equal ends", "exit code 0", "went on in an epoch")
    titles += ("stages with a second run", "RUNNING left", "states left")
    lines = [f"| command | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for name, row in rows.items():
        cells = (row.kills, row.chains, row.equal, row.exits, row.went_on)
        cells += (row.twice + row.extra, row.running, row.states)
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
