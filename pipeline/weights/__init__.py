"""Pretrained weights: where they come from, what matched, and the digest they go by.

In: `imagenet` (torchvision's default weights, fetched on first use), `tiny_imagenet` (the starter
in this folder, ResNet-18 only), `none`, or a state dict file. Out: `Pretrained`. A classifier
layer of another size is left out; any other mismatch is an error that names the tensors.
"""

from __future__ import annotations

import pickle
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.backbones import Backbone
from pipeline.digests import digest_file, digest_tensors
from pipeline.errors import DownloadError, WeightsError, first_line
from pipeline.files import storage_faults

NAMES = ("imagenet", "tiny_imagenet", "none")
"""What `weights` may be beside a file."""
STARTER = Path(__file__).parent / "resnet18-tiny-imagenet-64px.safetensors"
STARTER_BACKBONE = "resnet18"
STARTER_SHA256 = "28c7281f45aaee0437d1b242cab83877735eb8924ffeadd8040beb853759cbc4"
DOWNLOAD_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Pretrained:
    """The tensors that a backbone starts from.

    Attributes:
        name: what `weights` said.
        digest: SHA-256 of `tensors`; "none" for random weights.
        tensors: float32 (counters int64), named as in torchvision's state dict.
        report: one line: how many tensors matched, which were left out.
    """

    name: str
    digest: str
    tensors: dict[str, Tensor]
    report: str

    def apply(self, backbone: Backbone) -> None:
        """Copy the tensors into the backbone; what they do not hold stays as it is."""
        backbone.model.load_state_dict(self.tensors, strict=False)


def load_pretrained(weights: str, backbone: Backbone) -> Pretrained:
    """The tensors of `weights` that fit `backbone`.

    Raises:
        WeightsError: no such file, a damaged one, or one made for another backbone.
        DownloadError: `imagenet` weights are not here and could not be fetched.
    """
    if weights == "none":
        return Pretrained("none", "none", {}, "weights none: every block starts at random")
    if weights == "imagenet":
        state = _read_state(_fetch_imagenet(backbone.name))
    elif weights == "tiny_imagenet":
        state = _read_starter(backbone.name)
    else:
        path = Path(weights).expanduser()
        if path.is_dir():
            raise WeightsError(
                f"weights={weights} is a folder: pass the .pth or .safetensors file in it"
            )
        if not path.is_file():
            raise WeightsError(
                f"weights={weights}: neither imagenet, tiny_imagenet, none nor a file "
                f"({path.absolute()} does not exist): pass one of these or a .pth/.safetensors "
                "file"
            )
        state = _read_state(path)
    return _match(weights, state, backbone)


def _match(weights: str, state: Mapping[str, Tensor], backbone: Backbone) -> Pretrained:
    expected = backbone.model.state_dict()
    head = backbone.head_layer()
    wrong, left_out = [], []
    tensors: dict[str, Tensor] = {}
    for name, target in expected.items():
        found = state.get(name)
        if found is not None and found.shape == target.shape:
            tensors[name] = found.to(target.dtype)
        elif name.startswith(f"{head}."):
            left_out.append(name)
        elif found is not None:
            wrong.append(f"{name} is {tuple(found.shape)}, not {tuple(target.shape)}")
        elif not name.endswith(
            "num_batches_tracked"
        ):  # absent from files older than PyTorch 0.4.1
            wrong.append(f"{name} is missing")
    unknown = sorted(set(state) - set(expected))
    wrong += [f"{name} is not part of {backbone.name}" for name in unknown]
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise WeightsError(
            f"weights={weights}: {', '.join(broken[:4])} hold values that are not finite numbers: "
            "use other weights"
        )
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise WeightsError(
            f"weights={weights} do not fit {backbone.name}: {'; '.join(wrong[:4])}{more}: pass "
            f"-P backbone= the model they were made for, or other weights"
        )
    if len(left_out) == 1:  # half a classifier layer is of no use
        tensors = {name: t for name, t in tensors.items() if not name.startswith(f"{head}.")}
        left_out = [name for name in expected if name.startswith(f"{head}.")]
    missing = f", left out {' and '.join(left_out)} (new classes)" if left_out else ""
    report = f"weights {weights}: {len(tensors)} of {len(expected)} tensors matched{missing}"
    return Pretrained(weights, digest_tensors(tensors), tensors, report)


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or .pth file, without wrappers such as `{"model": ...}`."""
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # noqa: BLE001 - what a damaged pickle raises is not bounded
        pickled = isinstance(err, pickle.UnpicklingError)
        reason = "pickled code, which is not run" if pickled else first_line(err)
        raise WeightsError(
            f"weights={path}: not a readable state dict ({reason}): save one with "
            "torch.save(model.state_dict(), path) or as .safetensors"
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(
            f"weights={path}: holds no state dict (name -> tensor): save model.state_dict()"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _read_starter(backbone: str) -> dict[str, Tensor]:
    if backbone != STARTER_BACKBONE:
        raise WeightsError(
            f"weights=tiny_imagenet are for {STARTER_BACKBONE}, got backbone {backbone}: pass "
            f"-P backbone={STARTER_BACKBONE}, or -P weights=imagenet or a file of your own"
        )
    if not STARTER.is_file() or digest_file(STARTER) != STARTER_SHA256:
        raise WeightsError(
            f"weights=tiny_imagenet: {STARTER} is damaged (its SHA-256 is not "
            f"{STARTER_SHA256[:12]}…): "
            "restore it from the repository"
        )
    return load_file(STARTER)


def _fetch_imagenet(backbone: str) -> Path:
    """Torchvision's default weights in torch's own download folder, their digest verified."""
    import torchvision

    entry: Any = torchvision.models.get_model_weights(backbone).DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / str(entry.url).rpartition("/")[2]
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    assert match, f"torchvision's file name holds no digest: {path.name}"
    if not path.is_file():
        with storage_faults("weights", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
        try:
            torch.hub.download_url_to_file(
                entry.url, str(path), hash_prefix=match[1], progress=False
            )
        except (OSError, RuntimeError, HTTPException) as err:
            raise DownloadError(
                f"cannot download the imagenet weights of {backbone} from {entry.url} "
                f"({first_line(err)}): put {path.name} into {path.parent}, or use -P "
                "preset=digits, which downloads nothing"
            ) from None
        finally:
            socket.setdefaulttimeout(timeout)
    if not digest_file(path).startswith(match[1]):
        raise WeightsError(
            f"weights=imagenet: {path} is damaged (its SHA-256 does not begin with {match[1]}): "
            "delete it to fetch it again"
        )
    return path
