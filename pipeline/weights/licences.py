"""Under which licence pretrained weights are used, as far as their publisher says so."""

from __future__ import annotations

from pathlib import Path

from pipeline.model.factories import is_factory
from pipeline.model.networks import TIMM
from pipeline.weights.published import is_published_name, member_of

OF_IMAGENET = (
    "trained on images of ImageNet, whose terms allow research and education without commerce"
)


def licence_of(weights: str, backbone: str) -> str:
    """The licence of the weights, and of what they were trained on, in words."""
    if weights == "none":
        return "no pretrained weights"
    if weights == "tiny_imagenet":
        return f"that of this project (Apache-2.0); {OF_IMAGENET}"
    if not is_published_name(weights):
        return f"unknown: that of the file {Path(weights).name}"
    if is_factory(backbone):
        return f"unknown: that of {backbone}"
    if backbone.startswith(TIMM):
        import timm

        config = timm.models.get_pretrained_cfg(backbone.removeprefix(TIMM))
        stated = getattr(config, "license", None)
        return f"{stated}, as timm states" if stated else "unknown: timm states none"
    stated = member_of(weights, backbone).meta.get("license")
    return f"{stated or 'torchvision states none; its code is BSD-3-Clause'}; {OF_IMAGENET}"
