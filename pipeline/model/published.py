"""Torchvision's published weights: which there are, where they lie, fetched on first use.

In: a backbone and `imagenet` (torchvision's default) or a member of its weights enum, such as
`IMAGENET1K_V1`. Out: the file in torch's own download folder, its digest verified.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import DownloadError, WeightsError, first_line
from pipeline.system.digests import digest_file
from pipeline.system.files import storage_faults
from pipeline.system.interrupts import at_once

DEFAULT = "imagenet"
DOWNLOAD_TIMEOUT_S = 30.0
_NAME = re.compile(r"(?:(\w+_Weights)\.)?(DEFAULT|IMAGENET\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class Published:
    """One file of weights that torchvision publishes."""

    name: str
    url: str

    @property
    def file(self) -> str:
        """The file's name, which ends in its digest."""
        return self.url.rpartition("/")[2]

    @property
    def path(self) -> Path:
        """Where torch keeps it."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file


def is_published_name(weights: str) -> bool:
    """Whether this is how torchvision names weights: `IMAGENET1K_V1`, `DEFAULT`, with its enum."""
    return _NAME.fullmatch(weights) is not None


def published(weights: str, backbone: str) -> Published:
    """The published file of that name for that backbone.

    Raises:
        WeightsError: torchvision has none of that name; lists those that there are.
    """
    import torchvision

    enum: Any = torchvision.models.get_model_weights(backbone)
    if weights == DEFAULT:
        return _entry(enum.DEFAULT)
    found = _NAME.fullmatch(weights)
    assert found, weights
    of, name = found[1] or enum.__name__, found[2].upper()
    if of.lower() != enum.__name__.lower() or name not in enum.__members__:
        names = ", ".join(entry.name for entry in enum)
        raise WeightsError(
            f"weights={weights}: torchvision has no such weights of {backbone}: pass one of "
            f"{DEFAULT}, {names}, or a .pth/.safetensors file"
        )
    return _entry(enum[name])


def _entry(member: Any) -> Published:  # noqa: ANN401 - torchvision has no types
    return Published(member.name, str(member.url))


def fetch(weights: str, backbone: str, otherwise: str) -> Path:
    """The published file of that name, downloaded where it is not here yet.

    `otherwise`: what else could be passed, for the message where it cannot be fetched.

    Raises:
        DownloadError: it is not here and could not be fetched.
        WeightsError: torchvision has none of that name, or the file here is damaged.
    """
    wanted = published(weights, backbone)
    path = wanted.path
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    assert match, f"torchvision's file name holds no digest: {path.name}"
    if not path.is_file():
        with storage_faults("weights", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
        try:
            with at_once():
                torch.hub.download_url_to_file(
                    wanted.url, str(path), hash_prefix=match[1], progress=False
                )
        except (OSError, RuntimeError, HTTPException) as err:
            raise DownloadError(
                f"cannot download the {weights} weights of {backbone} from {wanted.url} "
                f"({first_line(err)}): {_instead(wanted, backbone)}put {path.name} into "
                f"{path.parent}, or pass {otherwise}"
            ) from None
        finally:
            socket.setdefaulttimeout(timeout)
    if not digest_file(path).startswith(match[1]):
        raise WeightsError(
            f"weights={weights}: {path} is damaged (its SHA-256 does not begin with {match[1]}): "
            "delete it to fetch it again"
        )
    return path


def _instead(wanted: Published, backbone: str) -> str:
    """Other weights of the same backbone that lie where torch keeps downloads."""
    import torchvision

    enum: Any = torchvision.models.get_model_weights(backbone)
    here = [e for e in map(_entry, enum) if e != wanted and e.path.is_file()]
    return "".join(
        f"{e.file} is there: use it with -P weights={e.name}, or " for e in reversed(here)
    )
