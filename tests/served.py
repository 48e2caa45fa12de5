"""What local servers serve in tests, and how: files, weights, what a tracking server says."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from socketserver import BaseRequestHandler
from typing import Any

import requests
import torch

from pipeline.model.backbones import build_backbone
from tests.postgres import free_port

IMAGENET_CLASSES = 1000


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder, without a word."""

    def log_message(self, *_: object) -> None:
        pass


class NotHttp(BaseRequestHandler):
    """Another protocol, or no answer: sends `reply` byte by byte, with a pause before each."""

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - the server's own
        reply: bytes = b"220 mail.example ready\r\n",
        pause_s: float = 0,
    ) -> None:
        self.reply, self.pause_s = reply, pause_s
        super().__init__(*args)

    def handle(self) -> None:
        self.request.recv(4096)
        with suppress(OSError):  # the caller has gone
            for byte in self.reply:
                time.sleep(self.pause_s)
                self.request.sendall(bytes([byte]))


def publish(backbone: str, folder: Path, seed: int = 2) -> Path:
    """Random weights for ImageNet's classes, in a file whose name ends in its digest."""
    path = folder / "w.pth"
    torch.save(build_backbone(backbone, IMAGENET_CLASSES, 32, seed).model.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(folder / f"{backbone}-{digest[:8]}.pth")


class Tracking(Quiet):
    """What an MLflow server answers, below `prefix`, when asked whether it is an MLflow server.

    `login`: the Authorization header that it wants; `status`, `body`: another answer.
    """

    protocol_version = "HTTP/1.1"

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - the server's own
        prefix: str = "",
        login: str = "",
        status: int = 200,
        body: str = '{"experiments": []}',
        seen: list[str] | None = None,
    ) -> None:
        self.prefix, self.login, self.status, self.body = prefix, login, status, body
        self.seen = [] if seen is None else seen
        super().__init__(*args)

    def do_GET(self) -> None:
        self.seen.append(self.path)
        status, body = self.status, self.body
        if self.login and self.headers.get("Authorization") != self.login:
            status, body = 401, "You are not authenticated."
        elif not self.path.startswith(f"{self.prefix}/api/2.0/mlflow/"):
            status, body = 404, "<html>Not Found</html>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())


class MlflowServer:
    """A real tracking server with a database and artifacts in a folder; stopped and started."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port)]
        self.command += ["--workers", "1", "--artifacts-destination", str(folder / "artifacts")]
        store = ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
        self.command += [
            *words,
            *([] if {"--artifacts-only", "--backend-store-uri"} & {*words} else store),
        ]
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
        self.environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(f"{self.address}/health", self.process)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and the processes that it has started."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it at once, as in a power cut."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()


@contextmanager
def tracking_server(folder: Path, *words: str) -> Iterator[str]:
    """The address of a tracking server that is gone afterwards."""
    server = MlflowServer(folder, *words)
    try:
        yield server.address
    finally:
        server.kill()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server that is starting answers."""
    end = time.monotonic() + 120
    with requests.Session() as session:
        session.trust_env = False
        while time.monotonic() < end:
            assert process.poll() is None, "the server ended"
            with suppress(requests.ConnectionError):
                if session.get(address, timeout=5).ok:
                    return
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


class Guard(Quiet):
    """A proxy before a tracking server at `target` that wants a login, as nginx would."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, target: str, login: str) -> None:  # noqa: ANN401
        self.target, self.login = target, login
        super().__init__(*args)

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != self.login:
            self.answer(401, {}, b"You are not authenticated.")
            return
        own = ("authorization", "host")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in own}
        with requests.Session() as session:
            session.trust_env = False
            url = f"{self.target}{self.path}"
            found = session.request(self.command, url, data=body, headers=headers, timeout=60)
        kind = found.headers.get("Content-Type", "application/octet-stream")
        self.answer(found.status_code, {"Content-Type": kind}, found.content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)


def basic(user: str, password: str) -> str:
    """The header that a login is sent in."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def certificate(folder: Path, name: str = "IP:127.0.0.1") -> Path:
    """A file with a certificate for that name, signed by its own key, and the key."""
    path = str(folder / "own.pem")
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=test"
    own = ["-addext", f"subjectAltName={name}", "-keyout", path, "-out", path]
    subprocess.run([*words.split(), *own], check=True, capture_output=True)
    return Path(path)
