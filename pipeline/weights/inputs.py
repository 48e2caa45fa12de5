"""What a network's published weights were trained on: size, mean, deviation, interpolation, crop.

In: a network's name and `weights`. Out: an `InputConfig`, from torchvision's `transforms()` or
timm's `pretrained_cfg`. A file of weights is taken to be like the library's default weights. The
network of a factory may have an attribute `input_config`, a mapping with these keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.errors import SettingsError
from pipeline.model.often import OFTEN
from pipeline.system.disk.yaml_file import did_you_mean

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's images, values from 0 to 1."""
STARTER_SIZE = 64
"""Pixels a side of the images that the starter was trained on."""
Resampling = Literal["bilinear", "bicubic", "lanczos"]
_THREE = Field(min_length=3, max_length=3)


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What a network expects of an image.

    Attributes:
        size: pixels a side.
        mean: of each channel, values from 0 to 1.
        std: standard deviation of each channel.
        interpolation: how pictures are resized.
        crop: the share of the central square, a side, on which the weights were validated.
    """

    size: Annotated[int, Field(ge=32, le=1024)] = 224
    mean: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], _THREE] = MEAN
    std: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], _THREE] = STD
    interpolation: Resampling = "bilinear"
    crop: Annotated[float, Field(gt=0, le=1)] = 0.875


def input_config(backbone: str, weights: str) -> InputConfig:
    """The configuration that weights of this network come with.

    Raises:
        SettingsError: a factory's network declares another one than there can be.
    """
    if weights == "tiny_imagenet":
        return InputConfig(size=STARTER_SIZE)
    if backbone in OFTEN:  # torch need not be imported for them
        bicubic = backbone.startswith("efficientnet")
        return InputConfig(interpolation="bicubic" if bicubic else "bilinear")
    from pipeline.model.factories import is_factory
    from pipeline.model.networks import TIMM, build_network

    if backbone.startswith(TIMM):
        return _of_timm(backbone.removeprefix(TIMM))
    if is_factory(backbone):
        declared = getattr(build_network(backbone, 2, 224, seed=0), "input_config", {})
        return _checked(declared, f"backbone={backbone}: input_config")
    return _of_torchvision(backbone, weights)


def _checked(declared: object, where: str) -> InputConfig:
    known = tuple(InputConfig.__dataclass_fields__)
    if not isinstance(declared, Mapping):
        raise SettingsError(
            f"{where} must be a mapping of {', '.join(known)}, got {declared!r:.80}"
        )
    for key in declared:
        if key not in known:
            hint = did_you_mean(str(key), known) or f": there are {', '.join(known)}"
            raise SettingsError(f"{where} has no {key!r}{hint}")
    try:
        return TypeAdapter(InputConfig).validate_python(dict(declared))
    except ValidationError as err:
        fault = err.errors()[0]
        key = fault["loc"][0]
        raise SettingsError(
            f"{where}: {key}: {fault['msg']}, got {declared[key]!r:.80}: mend it in the network"
        ) from None


def _of_timm(name: str) -> InputConfig:
    import timm

    config = timm.models.get_pretrained_cfg(name)
    if config is None:
        return InputConfig()
    return InputConfig(
        size=config.input_size[-1],
        mean=config.mean,
        std=config.std,
        interpolation=_resampling(config.interpolation),
        crop=config.crop_pct,
    )


def _of_torchvision(name: str, weights: str) -> InputConfig:
    import torchvision

    members = torchvision.models.get_model_weights(name)
    chosen: Any = getattr(members, "DEFAULT", None)
    if weights.rpartition(".")[2].upper() in members.__members__:
        chosen = members[weights.rpartition(".")[2].upper()]
    if chosen is None:
        return InputConfig()
    made = chosen.transforms()
    return InputConfig(
        size=made.crop_size[0],
        mean=tuple(made.mean),
        std=tuple(made.std),
        interpolation=_resampling(made.interpolation.value),
        crop=made.crop_size[0] / made.resize_size[0],
    )


def _resampling(name: str) -> Resampling:
    usable: tuple[Resampling, ...] = get_args(Resampling)
    return next((each for each in usable if each == name), "bilinear")
