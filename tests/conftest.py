"""Small real images and stores for every test; nothing of the pipeline is mocked."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import shutil
import sqlite3
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main
from tests.postgres import Postgres, find_binaries

gc.set_threshold(100_000, 50, 100)  # as pipeline/__main__.py: the imports stay for good

SHARED = Path(__file__).resolve().parents[2] / "shared"
NETS = Path(__file__).parent / "nets"
"""Where networks of the tests' own are found, here and in programs that tests start."""
sys.path.append(str(NETS))
os.environ["PYTHONPATH"] = os.pathsep.join(
    [*filter(None, [os.environ.get("PYTHONPATH")]), str(NETS)]
)
MOBILENET = "mobilenet_v3_small"
SMALL_NET, WIDE_NET = "small_net:build", "small_net:wide"
TINY = {
    "backbone": SMALL_NET,
    "weights": "none",
    "norm_stats": "target",  # random weights learn nothing under their own
    "image_size": "32",
    "train_per_class": "4",
    "val_per_class": "4",
    "epochs": "2",
    "stage1.epochs": "1",
    "stage1.batch_size": "8",
    "precision": "float32",
    "log_model": "off",
    "log_pictures": "off",  # half the time of a small stage
    "near_duplicates": "off",  # another third: all of these images are alike
}

Command = Callable[..., int]


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark whatever runs through a real store, or starts a database server; long files first.

    So the workers, each of which takes a file after the other, end at nearly the same time.
    """
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "empty_database" in fixtures:
            item.add_marker(pytest.mark.e2e)
        if "postgres" in fixtures or "postgresql" in item.name.rpartition("[")[2]:
            item.add_marker(pytest.mark.slow)
    yield
    seconds: Counter[Path] = Counter()
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        seconds[item.path] += 10 if "slow" in marks else 2 if "e2e" in marks else 0.1
    items.sort(key=lambda item: (-seconds[item.path], item.path))


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """A worker more than cores: tests wait for servers and programs a quarter of the time."""
    return (yield) + 1


def pytest_collection_finish() -> None:
    """Where tests run, which is not where they are dealt out: that process needs no torch."""
    import torch

    torch.set_num_threads(1)  # tiny tensors: on a busy machine more take six times as long
    gc.freeze()  # the imports stay for good: no collection looks at them again ...
    atexit.register(gc.unfreeze)  # ... but the last one


@pytest.fixture(scope="session")
def cifar_folder() -> Path:
    """Real CIFAR-10 images as parquet files, beside the project; skipped where they are absent."""
    folder = SHARED / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"real CIFAR-10 parquet files are not at {folder}")
    return folder


def class_image(label: int, number: int, size: int = 32) -> Image.Image:
    """A noisy picture whose class shows in its colour: a task that a tiny network can learn."""
    rng = np.random.default_rng([label, number])
    pixels = rng.integers(0, 120, (size, size, 3))
    pixels[..., label % 3] += 100
    return Image.fromarray(pixels.astype(np.uint8))


def write_image_folder(root: Path, count: int = 12, start: int = 0) -> Path:
    """Three classes of so many images each, one folder a class; another `start`: other images."""
    for label, name in enumerate(("apple", "berry", "cherry")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            class_image(label, start + number).save(root / name / f"{number:02}.png")
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images")


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Write images in Hugging Face's layout: `write_parquet(path, labels, class_names)`."""

    def write(
        path: Path,
        labels: list[int],
        class_names: list[str] | None = None,
        column: str = "img",
        start: int = 0,
    ) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        cells = []
        for number, label in enumerate(labels, start=start):
            buffer = io.BytesIO()
            class_image(label, number).save(buffer, "PNG")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({column: cells, "label": pa.array(labels, pa.int64())})
        if class_names is not None:
            features = {"label": {"names": class_names, "_type": "ClassLabel"}}
            info = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": info})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path

    return write


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables without a run: creating them takes a second, copying them does not."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    client = mlflow.MlflowClient(f"sqlite:///{path}")
    client.search_experiments()
    return path


def enter_store(folder: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MLflow store in a new folder, which becomes the working directory."""
    import mlflow

    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "Default")  # one place, whatever the data
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    return folder


@pytest.fixture
def store(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MLflow store and cache in a working directory of their own."""
    return enter_store(tmp_path / "work", empty_database, monkeypatch)


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra onnx is not installed: its file is half the time of a small refit."""
    monkeypatch.setitem(sys.modules, "onnxscript", None)


EARLIER = Path(__file__).parent / "data" / "finished_chain"


@pytest.fixture
def finished_chain(store: Path) -> Path:
    """The store with what an earlier version left there: `data/finished_chain/README.md`."""
    rows = (EARLIER / "mlflow.sql").read_text(encoding="utf-8").replace("{root}", str(store))
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        database.executescript(rows)
    for run in (EARLIER / "artifacts").iterdir():
        shutil.copytree(run, store / "mlruns" / "0" / run.name / "artifacts")
    return store


PointAt = Callable[[str], None]


@pytest.fixture
def point_at(monkeypatch: pytest.MonkeyPatch) -> PointAt:
    """Have MLflow record at an address, as MLFLOW_TRACKING_URI does for a process of its own."""
    import mlflow

    def at(uri: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)

    for name in ("USERNAME", "PASSWORD", "TOKEN", "INSECURE_TLS", "SERVER_CERT_PATH"):
        # what a command sets is gone when the test is over
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    return at


def words_of(entry_point: str, options: Mapping[str, str]) -> list[str]:
    """A command line."""
    return [entry_point, *(word for k, v in options.items() for word in (f"--{k}", v))]


def tiny(images: Path, folder: Path, options: Mapping[str, str]) -> dict[str, str]:
    """Options of a small run on these images, its cache in the folder."""
    return {"data": str(images), "cache_dir": str(folder / "cache"), **TINY, **options}


@pytest.fixture(scope="module")
def mobilenet() -> Iterator[None]:
    """The small runs of a module train a network of torchvision: tests rest on its accuracy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TINY, "backbone", MOBILENET)
        yield


@pytest.fixture
def command(store: Path, image_folder: Path) -> Command:
    """Run an entry point on the small image folder: `command("stage2", seed="1")`."""
    return lambda name, **options: main(words_of(name, tiny(image_folder, store, options)))


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In a folder that `enter_store` has made, with the MLflow store in it."""
    import mlflow

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "Default")
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        yield


@dataclass(frozen=True)
class Work:
    """A store and images that the tests of a module share."""

    folder: Path
    images: Path

    def run(self, entry_point: str, **options: str) -> str:
        """What a command prints that ends well."""
        output = io.StringIO()
        with inside(self.folder), contextlib.redirect_stdout(output):
            words = words_of(entry_point, tiny(self.images, self.folder, options))
            assert main(words) == 0
        return output.getvalue()


@pytest.fixture(scope="module")
def shared_work(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Work:
    """An empty store, and the small image folder."""
    root = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        enter_store(root / "work", empty_database, patch)
    return Work(root / "work", write_image_folder(root / "images"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; skipped where none is installed."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: no initdb and pg_ctl")
    server = Postgres(binaries)
    yield server
    server.remove()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Start a local server with this handler and give its address; with a context, over TLS."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(handler: Any, tls: ssl.SSLContext | None = None) -> str:  # noqa: ANN401
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        if tls:
            server.socket = tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        servers.append((server, thread))
        return f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's download folder, empty."""
    import torch

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"
