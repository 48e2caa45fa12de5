"""What local servers serve in tests, and how: files, weights as torchvision publishes them."""

from __future__ import annotations

import hashlib
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from socketserver import BaseRequestHandler

import torch

from pipeline.backbones import build_backbone

IMAGENET_CLASSES = 1000


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder, without a word."""

    def log_message(self, *_: object) -> None:
        pass


class NotHttp(BaseRequestHandler):
    """Another protocol."""

    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(b"220 mail.example ready\r\n")


def publish(backbone: str, folder: Path, seed: int = 2) -> Path:
    """Random weights for ImageNet's classes, in a file whose name ends in its digest."""
    path = folder / "w.pth"
    torch.save(build_backbone(backbone, IMAGENET_CLASSES, seed).model.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(folder / f"{backbone}-{digest[:8]}.pth")
