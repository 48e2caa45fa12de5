"""Backbones cut into blocks compute what torchvision's models compute, under the same names."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torchvision
from torch import nn

from pipeline.model.backbones import FORWARD_ORDER, Backbone, batch_norms, build_backbone
from pipeline.settings.run import BackboneName
from pipeline.settings.schedules import BLOCKS

NAMES = get_args(BackboneName)
CLASSES = 5


@pytest.fixture(scope="module", params=NAMES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Each backbone once; tests only read it."""
    return build_backbone(request.param, CLASSES, seed=3)


def test_seven_backbones_are_offered() -> None:
    assert set(NAMES) == {
        *("resnet18", "resnet34", "resnet50", "mobilenet_v2"),
        *("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"),
    }


def test_tensor_names_of_the_blocks_partition_the_state_dict(backbone: Backbone) -> None:
    names = [name for block in BLOCKS for name in backbone.tensor_names([block])]
    assert sorted(names) == sorted(backbone.model.state_dict())
    assert backbone.tensor_names(BLOCKS) == list(backbone.model.state_dict())


@torch.no_grad()
def test_blocks_in_order_equal_torchvisions_forward_bit_for_bit(backbone: Backbone) -> None:
    twin = torchvision.models.get_model(backbone.name, weights=None, num_classes=CLASSES).eval()
    twin.load_state_dict(backbone.model.state_dict())
    assert list(backbone.model.state_dict()) == list(twin.state_dict())
    assert tuple(backbone.blocks) == FORWARD_ORDER == tuple(reversed(BLOCKS))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    logits = backbone.run(images, FORWARD_ORDER)
    assert logits.shape == (3, CLASSES)
    assert torch.equal(logits, twin(images))


@torch.no_grad()
def test_each_block_is_one_resolution_and_block4_ends_with_the_pooling(backbone: Backbone) -> None:
    """A 64 px image is halved five times; a block ends at the size that its last layer has."""
    is_resnet = backbone.name.startswith("resnet")
    x, sizes = torch.zeros(1, 3, 64, 64), {}
    layers = list(backbone.blocks["block4"])
    assert [type(layer) for layer in layers[-2:]] == [nn.AdaptiveAvgPool2d, nn.Flatten]
    blocks = {**backbone.blocks, "block4": nn.Sequential(*layers[:-2])}
    for name in FORWARD_ORDER[:-1]:
        for layer in blocks[name]:
            x = layer(x)
            sizes.setdefault(name, set()).add(x.shape[-1])
    if is_resnet:
        assert sizes == dict(zip(FORWARD_ORDER, ({32, 16}, {16}, {8}, {4}, {2}), strict=False))
    else:
        assert sizes == dict(zip(FORWARD_ORDER, ({32}, {16}, {8}, {4}, {2}), strict=False))
        final: Any = layers[-3]
        assert final is backbone.model.get_submodule("features")[-1]  # type: ignore[index]
        assert final[0].kernel_size == (1, 1)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnets_are_cut_at_their_layers(name: str) -> None:
    backbone = build_backbone(name, CLASSES, seed=0)
    cut = [{n.split(".")[0] for n in backbone.tensor_names([block])} for block in FORWARD_ORDER]
    assert cut == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}, {"fc"}]


def test_the_model_is_in_eval_mode(backbone: Backbone) -> None:
    assert not any(module.training for module in backbone.model.modules())


def test_the_head_layer_gives_one_logit_a_class(backbone: Backbone) -> None:
    layer = backbone.model.get_submodule(backbone.head_layer())
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == CLASSES
    assert f"{backbone.head_layer()}.weight" in backbone.tensor_names(["head"])


def test_batch_norms_are_those_of_the_blocks(backbone: Backbone) -> None:
    found = list(batch_norms(backbone.blocks.values()))
    everything = [m for m in backbone.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {id(norm) for norm in found} == {id(norm) for norm in everything}
    assert len(found) == len(everything)
    assert list(batch_norms([backbone.blocks["head"]])) == []


def test_the_seed_decides_the_initialisation() -> None:
    first, again, other = (build_backbone("mobilenet_v3_small", CLASSES, s) for s in (1, 1, 2))
    head = f"{first.head_layer()}.weight"
    assert torch.equal(first.model.state_dict()[head], again.model.state_dict()[head])
    assert not torch.equal(first.model.state_dict()[head], other.model.state_dict()[head])


def test_building_neither_reads_nor_moves_the_global_random_state() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = build_backbone("mobilenet_v3_small", CLASSES, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    second = build_backbone("mobilenet_v3_small", CLASSES, seed=1)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])
