"""What a served model does with many pictures: rate and memory, beside a server written by hand.

    python benchmarks/serving.py --backbone resnet18 --size 224 --rounds 5 --out serving.md

A model is logged by `stage1` and served by `mlflow models serve`; the other server is
`peers/plain_server.py`. Rates are medians of rounds that take turns; memory is the server's peak,
read once it has answered. Out: a Markdown table.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import requests
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.postgres import free_port  # noqa: E402
from tests.served import wait_for  # noqa: E402

CLIENTS, ALLOWED_S = 16, 600


def picture(width: int, height: int, seed: int) -> str:
    """A PNG of noise over a gradient, as base64: as large as a photograph's."""
    rng = np.random.default_rng(seed)
    pixels = np.linspace(0, 200, width)[None, :, None] + rng.integers(0, 55, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def flat(megapixels: int) -> str:
    """A PNG of one colour: few bytes, many pixels."""
    file = io.BytesIO()
    Image.new("RGB", (megapixels * 250, 4000)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class Server:
    """A server with one worker process, on loopback."""

    def __init__(self, words: list[str], port: int, folder: Path) -> None:
        self.port, environment = port, {**os.environ, "PYTHONPATH": str(ROOT)}
        with (folder / f"{port}.log").open("wb") as log:
            self.process = subprocess.Popen(
                words, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(f"http://127.0.0.1:{port}/ping", self.process)

    def ask(self, rows: list[str]) -> int:
        """The status of the answer."""
        body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[r] for r in rows]}})
        headers = {"Content-Type": "application/json"}
        with requests.Session() as session:
            session.trust_env = False
            url = f"http://127.0.0.1:{self.port}/invocations"
            return session.post(url, body, headers=headers, timeout=ALLOWED_S).status_code

    @property
    def peak_gib(self) -> float:
        """The most memory that the worker has held."""
        group = self.process.pid
        peaks = [0]
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if os.getpgid(int(status.parent.name)) == group:
                    line = next(x for x in status.read_text().splitlines() if "VmHWM" in x)
                    peaks.append(int(line.split()[1]))
            except (OSError, StopIteration):  # it has just ended
                continue
        return max(peaks) / 2**20

    def stop(self) -> None:
        """End it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def rate(ask: Callable[[], list[int]], images: int) -> float:
    """Images a second; every answer must be good."""
    started = time.perf_counter()
    statuses = ask()
    assert set(statuses) == {200}, statuses
    return images / (time.perf_counter() - started)


def logged_model(folder: Path, backbone: str, size: int) -> str:
    """The folder of a model that stage 1 logged."""
    words = [sys.executable, "-m", "pipeline", "stage1", "--data", "digits", "--weights", "none"]
    words += ["--backbone", backbone, "--image_size", str(size), "--epochs", "1", "--views", "1"]
    words += ["--train_per_class", "2", "--val_per_class", "2", "--schedule", "head_only"]
    words += ["--cache_dir", str(folder / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    (model,) = folder.rglob("MLmodel")
    return str(model.parent)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    photos = [picture(asked.size, asked.size, seed) for seed in range(64)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = logged_model(folder, asked.backbone, asked.size)
        ports = free_port(), free_port()
        ours = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "-p"]
        ours += [str(ports[0]), "--env-manager", "local", "--timeout", str(ALLOWED_S)]
        plain = [sys.executable, str(ROOT / "benchmarks" / "peers" / "plain_server.py"), model]
        servers = [Server(ours, ports[0], folder)]
        try:
            servers.append(Server([*plain, str(ports[1])], ports[1], folder))
            lines = table(servers, photos, asked.rounds)
        finally:
            for server in servers:
                server.stop()
    text = "\n".join(lines)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


def table(servers: list[Server], photos: list[str], rounds: int) -> list[str]:
    """The rows of the table; `photos` are 64."""

    def one_by_one(server: Server) -> list[int]:
        return [server.ask([photo]) for photo in photos[:CLIENTS]]

    def together(server: Server) -> list[int]:
        return [server.ask(photos)]

    def clients(server: Server) -> list[int]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            return [*pool.map(lambda photo: server.ask([photo]), photos)]

    lines = ["| what | MLflow's server | by hand | ratio |", "|---|---|---|---|"]
    for what, ask, images in (
        ("images/s, one a request", one_by_one, CLIENTS),
        ("images/s, 64 a request", together, len(photos)),
        (f"images/s, {CLIENTS} clients at once, one a request", clients, len(photos)),
    ):
        for server in servers:
            ask(server)
        rates = [
            [rate(lambda s=server, a=ask: a(s), images) for server in servers]
            for _ in range(rounds)
        ]
        ours, other = (statistics.median(column) for column in zip(*rates, strict=True))
        ratio = statistics.median(first / second for first, second in rates)
        lines.append(f"| {what} | {ours:.1f} | {other:.1f} | {ratio:.2f} |")
    large, thousand = flat(49), [photos[n % len(photos)] for n in range(1000)]
    for what, ask in (
        ("peak GiB, after these", lambda _: [200]),
        ("peak GiB, after 1,000 images in a request", lambda s: [s.ask(thousand)]),
        (
            f"peak GiB, after {CLIENTS} images of 49 megapixels at once",
            lambda s: [*ThreadPoolExecutor(CLIENTS).map(s.ask, [[large]] * CLIENTS)],
        ),
    ):
        cells = []
        for server in servers:
            statuses = ask(server)
            cells.append(f"{server.peak_gib:.2f} ({', '.join(map(str, sorted(set(statuses))))})")
        lines.append(f"| {what} | {cells[0]} | {cells[1]} | |")
    return lines


if __name__ == "__main__":
    main()
