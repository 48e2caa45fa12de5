"""SHA-256 of tensors, files and plain values: the names that content goes by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor


def digest_tensors(tensors: Mapping[str, Tensor], names: Iterable[str] | None = None) -> str:
    """SHA-256 over the names of tensors and their digests, in the order of the names."""
    return digest_values(digest_each(tensors, tensors if names is None else names))


def digest_each(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, str]:
    """Name -> SHA-256 of the tensor's type, shape and bytes."""
    return {name: _digest_tensor(tensors[name]) for name in names}


def _digest_tensor(tensor: Tensor) -> str:
    tensor = tensor.detach().cpu().contiguous()
    hasher = hashlib.sha256(f"{tensor.dtype}:{tuple(tensor.shape)}".encode())
    hasher.update(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return hasher.hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_bytes(content: bytes) -> str:
    """SHA-256 of what a file holds."""
    return hashlib.sha256(content).hexdigest()


def digest_values(values: object) -> str:
    """SHA-256 of a JSON-like value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
