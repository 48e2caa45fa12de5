"""What memory, disk and time a command takes with many images, and what each further image costs.

    python benchmarks/memory.py --images 1000 4000 --size 224 --commands main evaluate

For each number of images a folder of generated JPEGs of four classes is made in a temporary
folder, `main` (one epoch a stage) and then `evaluate` of its last stage run on it, each in a
process of its own with an empty cache, and everything is removed. Out: a Markdown table.

Two figures of memory: `anonymous` (RssAnon) is what the process alone holds and the system cannot
take back, so that a machine must have it: this is the bound. `resident` (VmHWM) counts the pages
of memory-mapped files, too, which the system drops whenever memory is short, and libraries. Disk
is the most that the cache's folder held. `--root` measures another checkout of the project.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("ash", "beech", "cedar", "elm")
EVERY_S = 0.05
DISK_EVERY = 20
"""The folder of the cache is added up at every so manieth look."""


@dataclass
class Peak:
    """The most that a process held, MiB, and what its cache took, MB."""

    anonymous: float = 0.0
    resident: float = 0.0
    disk: float = 0.0
    wall_s: float = 0.0


def make_images(folder: Path, count: int, size: int) -> int:
    """JPEGs as large as the network takes them; returns the bytes of all."""
    rng, written = np.random.default_rng(0), 0
    for number in range(count):
        label = number % len(CLASSES)
        coarse = rng.integers(0, 150, (12, 12, 3))
        coarse[..., label % 3] += 60 + 40 * (label == 3)
        picture = Image.fromarray(coarse.astype(np.uint8)).resize((size, size), 3)
        path = folder / CLASSES[label] / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
        written += path.stat().st_size
    return written


def status_of(process: int) -> dict[str, float]:
    """What the system says of a process's memory, MiB."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key: int(text.split()[0]) / 1024 for key, text in pairs if text.endswith("kB")}


def size_of(folder: Path) -> float:
    """Megabytes that a folder's files occupy."""
    blocks = 0
    for path in folder.rglob("*"):
        try:
            blocks += path.stat().st_blocks
        except FileNotFoundError:
            continue
    return blocks * 512 / 1e6


def measured(words: list[str], folder: Path, root: Path) -> tuple[Peak, str]:
    """Run a command in a process of its own; its peak, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(folder / "tmp")}
    environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    (folder / "tmp").mkdir(exist_ok=True)
    peak, started, looks = Peak(), time.monotonic(), 0
    with (folder / "out.txt").open("w+", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            now = status_of(process.pid)
            peak.anonymous = max(peak.anonymous, now.get("RssAnon", 0.0))
            peak.resident = max(peak.resident, now.get("VmHWM", 0.0))
            if looks % DISK_EVERY == 0:
                peak.disk = max(peak.disk, size_of(folder / "cache"))
            looks += 1
            time.sleep(EVERY_S)
        peak.wall_s = time.monotonic() - started
        out.seek(0)
        printed = out.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{printed}")
    return peak, printed


def main() -> None:
    """Measure, and print a row a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--backbone", default="mobilenet_v3_small")
    parser.add_argument("--commands", nargs="+", default=["main", "evaluate"])
    parser.add_argument("--settings", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--root", type=Path, default=ROOT)
    args = parser.parse_args()
    print("| images | command | anonymous, MiB | resident, MiB | disk, MB | wall, s | JPEG, MB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for count in args.images:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            encoded = make_images(folder / "images", count, args.size)
            own = [f"--{pair.split('=')[0]}={pair.split('=', 1)[1]}" for pair in args.settings]
            base = [f"--data={folder / 'images'}", f"--cache_dir={folder / 'cache'}"]
            whole = ["--weights=none", f"--backbone={args.backbone}", f"--image_size={args.size}"]
            whole += ["--epochs=1", "--log_model=off", "--preset=images"]
            run_id = ""
            for command in args.commands:
                words = [command, *base]
                words += [f"--run_id={run_id}"] if command == "evaluate" else [*whole, *own]
                peak, printed = measured(words, folder, args.root)
                if found := re.findall(r"stage \d+: run ([0-9a-f]{32})", printed):
                    run_id = found[-1]
                for line in printed.splitlines():
                    if line.startswith(("disk:", "note:")):
                        print(f"<!-- {command} of {count}: {line} -->")
                print(
                    f"| {count} | `{command}` | {peak.anonymous:.0f} | {peak.resident:.0f} | "
                    f"{peak.disk:.0f} | {peak.wall_s:.0f} | {encoded / 1e6:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
