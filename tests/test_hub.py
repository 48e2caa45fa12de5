"""timm's weights from a Hugging Face Hub: fetched, kept, read again; a fault is one line."""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.errors import DownloadError, WeightsError
from pipeline.weights.pretrained import read_weights
from tests import forked

timm = pytest.importorskip("timm", reason="timm is an extra")
constants = pytest.importorskip("huggingface_hub.constants")
file_download = import_module("huggingface_hub.file_download")

NAME = "test_resnet.r160_in1k"
READS_ARRAYS = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
"""timm has a reader of its own for the arrays of NumPy that this network was published in."""


class Hub(BaseHTTPRequestHandler):
    """What the Hub answers for one repository with `model.safetensors`, or with a fault."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, name: str, content: bytes, fault: str, seen: list[str]) -> None:  # noqa: ANN401
        self.name, self.content, self.fault, self.seen = name, content, fault, seen
        super().__init__(*args)

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        sent = self.content
        if self.fault == "flipped":
            sent = sent[:-1] + bytes([sent[-1] ^ 1])
        self.answer(sent[: len(sent) // 2] if self.fault == "cut" else sent)

    def answer(self, body: bytes) -> None:
        self.seen.append(f"{self.command} {self.path}")
        there = self.path == f"/timm/{self.name}/resolve/main/model.safetensors"
        if self.fault == "error":
            status, length = 500, 0
        elif self.path == f"/timm/{self.name}":
            status, length = 200, 0
        elif not there or self.fault == "absent":
            status, length = 404, 0
        else:
            status, length = 200, len(self.content)
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if length:
            self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0123456789abcdef" * 2 + "01234567")
        elif status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if length:
            self.wfile.write(body)
        self.close_connection = self.fault == "cut" and self.command == "GET"


def weights_of(name: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    state: dict[str, Tensor] = timm.create_model(name, pretrained=False).state_dict()
    return {key: tensor.contiguous() for key, tensor in state.items()}


@pytest.fixture
def hub(
    tmp_path: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Start a Hub that has a network's weights, ask no other; gives what the Hub is asked for."""

    def start(name: str, state: dict[str, Tensor], fault: str = "whole") -> list[str]:
        seen: list[str] = []
        handler = partial(Hub, name=name, content=save(state), fault=fault, seen=seen)
        address = serve(handler)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        impatient = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
        monkeypatch.setattr(file_download, "time", impatient)  # between its attempts
        return seen

    return start


@pytest.mark.parametrize("name", [NAME, READS_ARRAYS])
def test_weights_are_fetched_once(
    name: str, hub: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = weights_of(name)
    seen = hub(name, state)
    first = read_weights("pretrained", f"timm:{name}", 224).state
    assert f"GET /timm/{name}/resolve/main/model.safetensors" in seen
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # nobody answers there
    again = read_weights("pretrained", f"timm:{name}", 224).state
    assert first is not None
    assert again is not None
    assert first.keys() == again.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(first[key], tensor)
        assert torch.equal(again[key], tensor)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param("cut", r"\w+Error: .*", marks=pytest.mark.slow),
        ("error", "HTTPError: HTTP Error 500: Internal Server Error"),
        ("absent", r"\w+Error: 404 Client Error\."),
    ],
)
def test_weights_that_do_not_come_whole_are_one_line_and_leave_nothing(
    fault: str, reason: str, tmp_path: Path, hub: Callable[..., list[str]]
) -> None:
    seen = hub(NAME, weights_of(NAME), fault)
    message = (
        rf"cannot fetch .* timm:{NAME} from timm/{NAME} \({reason}\): pass -P weights=<a .pth"
    )
    with pytest.raises(DownloadError, match=message) as caught:
        read_weights("pretrained", f"timm:{NAME}", 64)
    assert "\n" not in str(caught.value)
    assert seen
    assert not list((tmp_path / "hub").rglob("*.safetensors"))


@pytest.mark.parametrize("fault", ["flipped", "whole"])
def test_a_file_of_the_hub_with_another_digest_is_damaged(
    fault: str, tmp_path: Path, hub: Callable[..., list[str]]
) -> None:
    state = weights_of(NAME)
    hub(NAME, state, fault)
    damaged = r"is damaged \(its SHA-256 is not its name\): delete it to fetch it again"
    if fault == "whole":
        read_weights("pretrained", f"timm:{NAME}", 64)
        [path] = (tmp_path / "hub").rglob("*.safetensors")
        path.write_bytes(path.read_bytes()[:-4] + bytes(4))
    for _ in range(2):  # when it comes, and where it is kept
        with pytest.raises(WeightsError, match=damaged) as caught:
            read_weights("pretrained", f"timm:{NAME}", 64)
    named = re.search(r"pretrained: (\S+) is damaged", str(caught.value))
    assert named is not None
    Path(named[1]).unlink()
    hub(NAME, state)
    found = read_weights("pretrained", f"timm:{NAME}", 64).state
    assert found is not None
    assert torch.equal(found["fc.weight"], state["fc.weight"])


class Page(SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each request."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def plain_address(
    tmp_path: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[bytes, bytes], None]:
    """Publish a network of timm at an address only: a file, named after the digest of another."""

    def publish(named_after: bytes, content: bytes) -> None:
        name = f"net-{hashlib.sha256(named_after).hexdigest()[:8]}.pth"
        (tmp_path / "page").mkdir(exist_ok=True)
        (tmp_path / "page" / name).write_bytes(content)
        address = serve(partial(Page, directory=str(tmp_path / "page")))
        config = replace(
            timm.models.get_pretrained_cfg(NAME), hf_hub_id=None, url=f"{address}/{name}"
        )
        registry = import_module("timm.models._registry")
        monkeypatch.setitem(registry._model_pretrained_cfgs, NAME, config)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    return publish


def test_weights_at_an_address_only_are_fetched_once_and_checked(
    tmp_path: Path, plain_address: Callable[[bytes, bytes], None]
) -> None:
    kept = io.BytesIO()
    torch.save(state := weights_of(NAME), kept)
    plain_address(kept.getvalue(), kept.getvalue())
    first = read_weights("pretrained", f"timm:{NAME}", 64).state
    for file in (tmp_path / "page").iterdir():
        file.unlink()
    again = read_weights("pretrained", f"timm:{NAME}", 64).state
    assert first is not None
    assert again is not None
    for key, tensor in state.items():
        assert torch.equal(first[key], tensor)
        assert torch.equal(again[key], tensor)
    [path] = (tmp_path / "torch").rglob("*.pth")
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))
    with pytest.raises(
        WeightsError, match=rf"{path.name} is damaged \(its SHA-256 does not begin"
    ):
        read_weights("pretrained", f"timm:{NAME}", 64)


def test_a_changed_file_at_an_address_is_one_line_and_is_not_kept(
    tmp_path: Path, plain_address: Callable[[bytes, bytes], None]
) -> None:
    plain_address(b"what it was", b"what it is")
    with pytest.raises(DownloadError, match=r"cannot fetch .* \(RuntimeError: invalid hash value"):
        read_weights("pretrained", f"timm:{NAME}", 64)
    assert not list((tmp_path / "torch").rglob("*.pth"))


@pytest.mark.slow
def test_a_command_fetches_from_the_hub_that_the_environment_names(
    tmp_path: Path, image_folder: Path, serve: Callable[..., str]
) -> None:
    seen: list[str] = []
    handler = partial(Hub, name=NAME, content=save(weights_of(NAME)), fault="whole", seen=seen)
    own = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    own |= {"HF_ENDPOINT": serve(handler), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'm.db'}"}
    words = (
        f"stage1 --backbone timm:{NAME} --weights pretrained --data {image_folder} --image_size 32"
    )
    words += f" --train_per_class 2 --val_per_class 2 --epochs 1 --cache_dir {tmp_path / 'cache'}"
    words += " --log_model off --log_pictures off"
    done = forked.run(words.split(), tmp_path, own)
    assert done.returncode == 0, done.stderr
    assert "tensors matched, left out fc.weight and fc.bias (new classes)" in done.stdout
    assert seen.count(f"GET /timm/{NAME}/resolve/main/model.safetensors") == 1
