"""Where pairs, draws and trials run: how many tasks at once, on which cluster, with what each."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from pipeline.settings.fields import StrictModel, setting


def _is_address(text: str) -> str:
    if text not in ("", "local", "auto") and not re.fullmatch(r"(ray://)?\S+:[0-9]{1,5}", text):
        raise PydanticCustomError("cluster", "must be local, auto, ray://host:10001 or host:6379")
    return text


ClusterText = Annotated[
    str,
    BeforeValidator(lambda text: "" if text == "none" else text),
    AfterValidator(_is_address),
]
"""An address that Ray connects to, or `local`."""


def _is_a_share_or_whole(gpus: float) -> float:
    if gpus > 1 and not gpus.is_integer():
        raise PydanticCustomError("gpus", "must be a share of one GPU (0.5), or a whole number")
    return gpus


Gpus = Annotated[float, AfterValidator(_is_a_share_or_whole)]


class ClusterSettings(StrictModel):
    """Where the parts of a command run that do not depend on each other."""

    workers: int = setting(
        0,
        "tasks at once; 0: one, or with cluster as many as there is room for; several without "
        "cluster: cluster=local",
        ge=0,
        le=10_000,
    )
    cluster: ClusterText = setting(
        "",
        "where Ray runs pairs, draws and trials: local (this machine's cores and GPUs), "
        "ray://host:10001, host:6379 or auto (a cluster that runs); empty: in this process",
    )
    num_cpus: int = setting(
        0,
        "cores of a task; 0: this machine's cores divided by `workers`; on a cluster, or without "
        "`workers`, a share of a node's, at most 4",
        ge=0,
        le=1024,
    )
    num_gpus: Gpus = setting(
        0, "GPUs of a task, or a share of one; 0: one where there are any", ge=0, le=16
    )
