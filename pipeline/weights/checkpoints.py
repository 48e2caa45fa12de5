"""A stage's result on disk: the tensors that differ from the pretrained ones.

In: a backbone after a stage and the pretrained weights it began with. Out: one safetensors file
whose metadata names the weights and the whole model by digest, so that loading proves that the
assembled model is the one that was saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.errors import LineageError, first_line
from pipeline.model.backbones import Backbone
from pipeline.system.disk.digests import digest_file, digest_tensors
from pipeline.system.disk.files import write_atomically
from pipeline.system.text import first_of
from pipeline.weights.pretrained import Pretrained


class CheckpointInfo(BaseModel):
    """What a checkpoint is of. `model_digest`: SHA-256 of every tensor of the assembled model."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    backbone: str
    class_names: tuple[str, ...]
    weights: str
    weights_digest: str
    schedule: str
    stage: int
    model_digest: str


def save_checkpoint(
    path: Path,
    backbone: Backbone,
    pretrained: Pretrained,
    *,
    class_names: tuple[str, ...],
    schedule: str,
    stage: int,
) -> str:
    """Write the tensors that differ from the pretrained ones; returns the file's SHA-256.

    Raises:
        StorageError: the disk is full.
    """
    state = backbone.model.state_dict()
    changed = {
        name: tensor.contiguous()
        for name, tensor in state.items()
        if name not in pretrained.tensors or not _same_bytes(tensor, pretrained.tensors[name])
    }
    info = CheckpointInfo(
        backbone=backbone.name,
        class_names=class_names,
        weights=pretrained.name,
        weights_digest=pretrained.digest,
        schedule=schedule,
        stage=stage,
        model_digest=digest_tensors(state),
    )
    # one key only: safetensors writes several in random order, and equal models would differ
    metadata = {"checkpoint": json.dumps(info.model_dump())}
    write_atomically(path, save(changed, metadata))
    return digest_file(path)


def load_checkpoint(
    path: Path,
    sha256: str,
    backbone: Backbone,
    pretrained: Pretrained,
    class_names: tuple[str, ...],
) -> CheckpointInfo:
    """Put the checkpoint's model into `backbone`, which has the classes it was saved with.

    Returns what the checkpoint is of; the caller knows which stage it should be.

    Raises:
        LineageError: the file is damaged, or was saved over other weights, another backbone, or
            for other classes than `class_names`.
    """
    _check_file(path, sha256)
    try:
        with safe_open(path, framework="pt") as file:
            info = CheckpointInfo.model_validate_json(file.metadata()["checkpoint"])
            changed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as err:
        raise LineageError(
            f"{path.name} is not a checkpoint of this pipeline ({first_line(err)})"
        ) from None
    if info.backbone != backbone.name:
        raise LineageError(f"the checkpoint is of {info.backbone}, got backbone {backbone.name}")
    both = zip_longest(info.class_names, class_names, fillvalue="missing")
    for number, (there, here) in enumerate(both, start=1):
        if there != here:
            raise LineageError(
                f"the checkpoint has {len(info.class_names)} classes, the images "
                f"{len(class_names)}: class {number} is {there} there and {here} here"
            )
    if info.weights_digest != pretrained.digest:
        raise LineageError(
            f"the checkpoint was trained from weights {info.weights} "
            f"({info.weights_digest[:12]}…), weights {pretrained.name} are now "
            f"{pretrained.digest[:12]}…"
        )
    _check_shapes(changed, backbone)
    pretrained.apply(backbone)
    backbone.put(changed)
    if digest_tensors(backbone.model.state_dict()) != info.model_digest:
        raise LineageError(
            "the checkpoint and its weights do not add up to the model that was saved"
        )
    return info


def _check_file(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise LineageError(f"the checkpoint {path.name} is not a file")
    if digest_file(path) != sha256:
        raise LineageError(
            f"the checkpoint {path.name} is damaged: its SHA-256 is not {sha256[:12]}…"
        )


def _check_shapes(changed: Mapping[str, Tensor], backbone: Backbone) -> None:
    """Refuse tensors that a factory's network, or a library's of another version, has not."""
    own = backbone.model.state_dict()
    if misfits := [n for n, t in changed.items() if n not in own or own[n].shape != t.shape]:
        raise LineageError(
            f"the checkpoint does not fit {backbone.name} as the network is now: "
            f"{first_of(misfits, 4)} had another shape"
        )


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    first, second = (t.contiguous().view(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(first, second)
