"""What a network's published weights were trained on: size, mean, deviation, interpolation, crop.

In: a network's name and `weights`. Out: an `InputConfig`, from torchvision's `transforms()` or
timm's `pretrained_cfg`. A file of weights is taken to be like the library's default weights. The
network of a factory may have an attribute `input_config`, a mapping with these keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.model.often import OFTEN

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's images, values from 0 to 1."""
RESAMPLING = ("bilinear", "bicubic", "lanczos")


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What a network expects of an image.

    Attributes:
        size: pixels a side.
        mean: of each channel, values from 0 to 1.
        std: standard deviation of each channel.
        interpolation: of `RESAMPLING`.
        crop: the share of the central square, a side, on which the weights were validated.
    """

    size: int = 224
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    interpolation: str = "bilinear"
    crop: float = 0.875


def input_config(backbone: str, weights: str) -> InputConfig:
    """The configuration that weights of this network come with."""
    if backbone in OFTEN:  # torch need not be imported for them
        bicubic = backbone.startswith("efficientnet")
        return InputConfig(interpolation="bicubic" if bicubic else "bilinear")
    from pipeline.model.factories import is_factory
    from pipeline.model.networks import TIMM, build_network

    if backbone.startswith(TIMM):
        return _of_timm(backbone.removeprefix(TIMM))
    if is_factory(backbone):
        declared: Any = getattr(build_network(backbone, 2, 224, seed=0), "input_config", {})
        return InputConfig(**declared)
    return _of_torchvision(backbone, weights)


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


def _resampling(name: str) -> str:
    return name if name in RESAMPLING else "bilinear"
