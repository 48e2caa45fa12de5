"""Published weights of torchvision and timm: which there are, where they lie, fetched once.

In: a backbone and `imagenet` or `pretrained` (the library's default) or a member of torchvision's
weights enum, such as `IMAGENET1K_V1`. Out: torchvision's file in torch's own download folder, its
digest verified; of timm's networks, the tensors, for the size of image that is asked for. timm
keeps its files where the Hugging Face Hub's client does.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from pipeline.errors import DownloadError, WeightsError, first_line
from pipeline.model.networks import TIMM, recipe_of, timm_library
from pipeline.system.disk.digests import digest_file
from pipeline.system.disk.files import seen, storage_faults
from pipeline.system.network.downloads import FAULTS, SILENCE_S, downloading

DEFAULT, PRETRAINED = "imagenet", "pretrained"
_NAME = re.compile(r"(?:(\w+_Weights)\.)?(DEFAULT|IMAGENET\w+)", re.IGNORECASE)


def is_published_name(weights: str) -> bool:
    """Whether this is how torchvision names weights: `IMAGENET1K_V1`, `DEFAULT`, with its enum."""
    return weights in (DEFAULT, PRETRAINED) or _NAME.fullmatch(weights) is not None


def published(weights: str, backbone: str) -> tuple[str, Path]:
    """The address of the published file of that name, and where torch keeps the file.

    Raises:
        WeightsError: torchvision has no weights of that name; lists what there is.
    """
    member = member_of(weights, backbone)
    return member.url, _kept_at(member)


def member_of(weights: str, backbone: str) -> Any:  # noqa: ANN401 - torchvision has no types
    """The member of torchvision's enum of weights that the name stands for.

    Raises:
        WeightsError: torchvision has no weights of that name; lists what there is.
    """
    enum = _members(backbone)
    found = _NAME.fullmatch("DEFAULT" if weights in (DEFAULT, PRETRAINED) else weights)
    assert found, weights
    of, name = found[1] or enum.__name__, found[2].upper()
    if of.lower() != enum.__name__.lower() or name not in enum.__members__:
        raise WeightsError(
            f"weights={weights}: torchvision has no such weights of {backbone}: pass one of "
            f"{DEFAULT}, {', '.join(entry.name for entry in enum)}, or a .pth/.safetensors file"
        )
    return enum[name]


def fetch(weights: str, backbone: str, otherwise: str) -> Path:
    """The published file of that name, downloaded where it is not here yet.

    `otherwise`: what else could be passed, for the message where it cannot be fetched.

    Raises:
        DownloadError: it is not here and could not be fetched.
        WeightsError: torchvision has none of that name, or the file here is damaged.
    """
    url, path = published(weights, backbone)
    if not seen(path.is_file):
        with storage_faults("weights", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(url, path)
        except FAULTS as err:
            here = [e for e in reversed(_members(backbone)) if seen(_kept_at(e).is_file)]
            instead = "".join(
                f"{_kept_at(e).name} is there: use it with -P weights={e.name}, or " for e in here
            )
            raise DownloadError(
                f"cannot download the {weights} weights of {backbone} from {url} "
                f"({first_line(err)}): {instead}put {path.name} into {path.parent}, or pass "
                f"{otherwise}"
            ) from None
    _check_name(weights, path)
    return path


def _download(url: str, path: Path) -> None:
    """Fetch a file whose name ends in the beginning of its SHA-256; a damaged one is not kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with downloading():
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=_digest_in(path), progress=False
        )


def _digest_in(path: Path) -> str:
    """The beginning of a file's SHA-256 that its name ends in; empty where there is none."""
    found = re.search(r"-([0-9a-f]{8,})$", path.stem)
    return found[1] if found else ""


def _check_name(weights: str, path: Path) -> None:
    if not digest_file(path).startswith(digest := _digest_in(path)):
        raise WeightsError(
            f"weights={weights}: {path} is damaged (its SHA-256 does not begin with {digest}): "
            "delete it to fetch it again"
        )


def fetch_from_timm(weights: str, backbone: str, image_size: int) -> dict[str, Tensor]:
    """The published tensors of a network of timm, fetched where they are not here yet.

    Raises:
        DownloadError: they are not here and could not be fetched.
        WeightsError: timm publishes none for this name, or the file here is damaged.
    """
    timm = timm_library(backbone)
    name = backbone.removeprefix(TIMM)
    config = timm.models.get_pretrained_cfg(name)
    if weights not in (DEFAULT, PRETRAINED) or config is None or not config.has_weights:
        known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        there = f"timm has {', '.join(TIMM + n for n in known[:4])}" if known else "timm has none"
        raise WeightsError(
            f"weights={weights}: timm publishes no such weights of {name} ({there}): pass "
            f"-P weights={PRETRAINED} with a name that has some, none, or a .pth/.safetensors file"
        )
    arguments = recipe_of(backbone, config.num_classes, image_size).arguments
    kept = _kept_by_the_hub(config.hf_hub_id)
    _check_digest(weights, kept)
    try:
        if not config.hf_hub_id and _digest_in(file := _in_hub_folder(config.url)):
            kept = str(file)
            if not seen(file.is_file):
                _download(config.url, file)
            _check_name(weights, file)
        plain = {"file": kept, "custom_load": False}  # else timm reads it as arrays of NumPy
        overlay = {"pretrained_cfg_overlay": plain} if kept else {}
        with downloading():
            if config.hf_hub_id and not kept:
                _knock(config.hf_hub_id)
            model = timm.create_model(**{**arguments, "pretrained": True, **overlay})
    except WeightsError:
        raise
    except Exception as err:  # noqa: BLE001 - each way of fetching raises its own
        raise DownloadError(
            f"cannot fetch the {weights} weights of {backbone} from "
            f"{config.hf_hub_id or config.url} ({type(err).__name__}: {first_line(err)}): pass "
            f"-P weights=<a .pth or .safetensors file of {name}>"
        ) from None
    _check_digest(weights, _kept_by_the_hub(config.hf_hub_id))
    state: dict[str, Tensor] = model.state_dict()
    return state


def _check_digest(weights: str, kept: str | None) -> None:
    """Refuse a changed file of the Hub, whose client names a large file after its SHA-256."""
    path = Path(kept).resolve() if kept else Path()
    if re.fullmatch("[0-9a-f]{64}", path.name) and digest_file(path) != path.name:
        raise WeightsError(
            f"weights={weights}: {path} is damaged (its SHA-256 is not its name): delete it to "
            "fetch it again"
        )


def _kept_by_the_hub(repository: str | None) -> str | None:
    """The file of weights in the local cache of the Hugging Face Hub's client; None: not there."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("model.safetensors", "pytorch_model.bin") if repository else ():
        if isinstance(found := try_to_load_from_cache(str(repository), name), str):
            return found
    return None


def _knock(repository: str) -> None:
    """Raise OSError where the Hub does not answer or is ill; its own client tries for a minute."""
    from huggingface_hub.constants import ENDPOINT

    try:
        urlopen(Request(f"{ENDPOINT}/{repository}", method="HEAD"), timeout=SILENCE_S).close()
    except HTTPError as err:
        err.close()
        if err.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise


def kept_files() -> list[tuple[str, str]]:
    """Networks of torchvision whose published file torch keeps, each with the weights' name."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    members = ((name, member) for name in names for member in _members(name))
    return [(name, member.name) for name, member in members if seen(_kept_at(member).is_file)]


def timm_is_here(backbone: str) -> bool:
    """Whether the client of the Hugging Face Hub keeps the weights of a network of timm."""
    timm = timm_library(backbone)
    config = timm.models.get_pretrained_cfg(backbone.removeprefix(TIMM))
    return bool(config and config.hf_hub_id and _kept_by_the_hub(config.hf_hub_id))


def _members(backbone: str) -> Any:  # noqa: ANN401 - torchvision has no types
    import torchvision

    return torchvision.models.get_model_weights(backbone)


def _kept_at(member: Any) -> Path:  # noqa: ANN401
    return _in_hub_folder(member.url)


def _in_hub_folder(url: str) -> Path:
    """Where torch keeps the file of an address."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
