"""The smallest network of every family: the libraries' own classes, narrow and shallow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from pipeline.model.backbones import Backbone
from pipeline.model.cutting import cut
from pipeline.model.grouping import blocks_of
from tests.helpers import CLASSES

USUAL = ("stem", "block1", "block2", "block3", "block4", "head")


@contextmanager
def narrow_linears(width: int = 16) -> Iterator[None]:
    """Layers of 4096 become small: VGG and AlexNet have nearly all their weights there."""
    plain = nn.Linear

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return plain(*(width if n == 4096 else n for n in (inputs, outputs)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn, "Linear", linear)
        yield


def _vgg() -> nn.Module:
    with narrow_linears():
        layers = tv.vgg.make_layers([8, "M", 8, "M", 8, "M", 8, "M", 512, "M"])
        return tv.VGG(layers, CLASSES, init_weights=False)


def _alexnet() -> nn.Module:
    with narrow_linears():
        return tv.alexnet(num_classes=CLASSES)


def _resnext() -> nn.Module:
    bottleneck = tv.resnet.Bottleneck
    return tv.ResNet(bottleneck, [1, 1, 1, 1], CLASSES, groups=2, width_per_group=4)


def _efficientnet_v2() -> nn.Module:
    setting = [
        FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        FusedMBConvConfig(2, 3, 2, 8, 16, 1),
        MBConvConfig(2, 3, 2, 16, 16, 1),
        MBConvConfig(2, 3, 2, 16, 24, 1),
        MBConvConfig(2, 3, 1, 24, 24, 1),
        MBConvConfig(2, 3, 2, 24, 32, 1),
    ]
    return tv.EfficientNet(
        setting, dropout=0.2, stochastic_depth_prob=0.2, num_classes=CLASSES, last_channel=64
    )


def _convnext() -> nn.Module:
    widths = [8, 16, 24, 32]
    setting = [CNBlockConfig(i, o, 1) for i, o in zip(widths, [*widths[1:], None], strict=True)]
    return tv.ConvNeXt(setting, stochastic_depth_prob=0.1, num_classes=CLASSES)


def _swin(**kinds: Any) -> nn.Module:  # noqa: ANN401
    return tv.SwinTransformer([4, 4], 8, [1, 1, 2, 1], [1, 2, 2, 4], [2, 2], 2.0, **kinds)


def _vit() -> nn.Module:
    return tv.VisionTransformer(32, 8, 12, 2, 16, 32, dropout=0.1, num_classes=CLASSES)


def _regnet() -> nn.Module:
    params = tv.regnet.BlockParams(
        [1, 1, 1, 1], [8, 16, 24, 32], [8] * 4, [1.0] * 4, [2] * 4, 0.25
    )
    return tv.RegNet(params, CLASSES, stem_width=8)


def _maxvit() -> nn.Module:
    return tv.MaxVit((64, 64), 8, 2, [8, 16, 24, 32], [1, 1, 1, 1], 4, 0.2, num_classes=CLASSES)


Entry = tuple[int, Callable[[], nn.Module], tuple[str, ...]]
"""Pixels a side, what makes the network, its blocks or its segments."""


def _named(name: str) -> Callable[[], nn.Module]:
    return partial(tv.get_model, name, weights=None, num_classes=CLASSES)


OF_TORCHVISION: Mapping[str, Entry] = {
    "resnext50_32x4d": (32, _resnext, USUAL),
    "regnet_y_400mf": (32, _regnet, USUAL),
    "mobilenet_v3_small": (32, _named("mobilenet_v3_small"), USUAL),
    "efficientnet_v2_s": (32, _efficientnet_v2, USUAL),
    "vgg11": (32, _vgg, USUAL),
    "alexnet": (64, _alexnet, ("stem", "block1", "block2", "head")),
    "squeezenet1_1": (32, _named("squeezenet1_1"), ("stem", "block1", "block2", "block3", "head")),
    "convnext_tiny": (32, _convnext, USUAL),
    "swin_t": (32, partial(_swin, num_classes=CLASSES), USUAL),
    "swin_v2_t": (
        32,
        partial(
            _swin,
            num_classes=CLASSES,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        ),
        USUAL,
    ),
    "vit_b_16": (32, _vit, USUAL),
    "maxvit_t": (64, _maxvit, USUAL),
    "densenet121": (
        32,
        partial(tv.DenseNet, 8, (2, 2, 2, 2), 16, drop_rate=0.1, num_classes=CLASSES),
        USUAL,
    ),
    "shufflenet_v2_x0_5": (
        *(32, _named("shufflenet_v2_x0_5")),
        ("stem", "block1", "block2", "block3", "head"),
    ),
    "mnasnet0_5": (32, _named("mnasnet0_5"), USUAL),
    "googlenet": (
        32,
        partial(tv.GoogLeNet, CLASSES, aux_logits=False, transform_input=True, init_weights=False),
        ("stem", "block1", "block2", "block3", "head"),
    ),
    "inception_v3": (
        75,
        partial(
            tv.Inception3, CLASSES, aux_logits=False, transform_input=True, init_weights=False
        ),
        USUAL,
    ),
}
"""By a name of the family."""


def _timm(name: str, **arguments: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        timm = pytest.importorskip("timm", reason="timm is an extra")
        return timm.create_model(name, num_classes=CLASSES, **arguments)

    return make


_VIT = {"img_size": 32, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
OF_TIMM: Mapping[str, Entry] = {
    "timm:vit_tiny_patch16_224": (
        *(32, _timm("vit_tiny_patch16_224", **_VIT, proj_drop_rate=0.1, drop_path_rate=0.1)),
        USUAL,
    ),
    "timm:vit_small_patch14_dinov2": (32, _timm("vit_small_patch14_dinov2", **_VIT), USUAL),
    "timm:deit_tiny_distilled_patch16_224": (
        *(32, _timm("deit_tiny_distilled_patch16_224", **_VIT)),
        ("stem", "block1", "block2", "block3", "block4+head"),
    ),
    "timm:swin_tiny_patch4_window7_224": (
        32,
        _timm(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=2,
            embed_dim=8,
            depths=(1, 1, 2, 1),
            num_heads=(1, 2, 2, 4),
        ),
        USUAL,
    ),
    "timm:convnextv2_atto": (
        *(32, _timm("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))),
        USUAL,
    ),
    "timm:tf_efficientnetv2_b0": (
        *(32, _timm("tf_efficientnetv2_b0", channel_multiplier=0.25, depth_multiplier=0.5)),
        (*USUAL[:-1], "block5", "block6", "head"),
    ),
    "timm:mobilenetv4_conv_small": (
        *(32, _timm("mobilenetv4_conv_small_035")),
        (*USUAL[:-1], "block5", "head"),
    ),
    "timm:regnety_002": (32, _timm("regnety_002"), USUAL),
    "timm:densenet121": (
        32,
        _timm("densenet121", growth_rate=8, block_config=(2, 2, 2, 2)),
        USUAL,
    ),
    "timm:hrnet_w18_small": (32, _timm("hrnet_w18_small"), ("+".join(USUAL),)),
}
"""By a name of the family; two of them have blocks that share a segment."""
FAMILIES = {**OF_TORCHVISION, **OF_TIMM}


def backbone_of(name: str, model: nn.Module, size: int, blocks: str = "auto") -> Backbone:
    """A network, which may be narrower than the one of that name, as a backbone."""
    model.eval()
    grouped = blocks_of(model, name, blocks)
    found = cut(model, grouped.owners, grouped.order, torch.zeros(1, 3, size, size))
    return Backbone(
        name=name,
        identity="",
        model=model,
        order=grouped.order,
        owners=grouped.owners,
        segments=found.of(model),
        merged=found.merged,
    )


def small(name: str, image_size: int | None = None) -> Backbone:
    """The family's smallest network, its random weights drawn from one seed."""
    size, make, _ = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return backbone_of(name, make(), image_size or size)
