"""Backbones cut into blocks compute what torchvision's models compute, under the same names."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from pipeline.model.backbones import (
    Backbone,
    batch_norms,
    block_order,
    build_backbone,
    is_depthwise,
)
from pipeline.model.networks import build_network
from pipeline.model.often import BLOCKS, DEPTHWISE, OFTEN
from tests.helpers import CLASSES, slow_after

QUICK = ("resnet18", "mobilenet_v3_small")


@pytest.fixture(
    scope="module",
    params=slow_after(len(QUICK), [*QUICK, *(name for name in OFTEN if name not in QUICK)]),
)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Each backbone once; tests only read it."""
    return build_backbone(request.param, CLASSES, 64, seed=3)


def test_what_is_known_without_torch_is_what_the_networks_have(backbone: Backbone) -> None:
    assert block_order(backbone.name, 64) == BLOCKS == tuple(reversed(backbone.order))
    assert [segment.blocks for segment in backbone.segments] == [(b,) for b in reversed(BLOCKS)]
    assert backbone.merged == {}
    assert is_depthwise(backbone.name, 64) == (backbone.name in DEPTHWISE)


def test_tensor_names_of_the_blocks_partition_the_state_dict(backbone: Backbone) -> None:
    names = [name for block in BLOCKS for name in backbone.tensor_names([block])]
    assert sorted(names) == sorted(backbone.model.state_dict())
    assert backbone.tensor_names(BLOCKS) == list(backbone.model.state_dict())


@torch.no_grad()
def test_blocks_in_order_equal_torchvisions_forward_bit_for_bit(backbone: Backbone) -> None:
    twin = torchvision.models.get_model(backbone.name, weights=None, num_classes=CLASSES).eval()
    twin.load_state_dict(backbone.model.state_dict())
    assert list(backbone.model.state_dict()) == list(twin.state_dict())
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    logits = backbone.run(images)
    assert logits.shape == (3, CLASSES)
    assert torch.equal(logits, twin(images))


def test_each_block_is_one_resolution_and_block4_ends_with_the_pooling(backbone: Backbone) -> None:
    """A 64 px image is halved five times, by ResNets twice in the stem."""
    *maps, (_width,), head = [segment.shape for segment in backbone.segments]
    assert head == (CLASSES,)
    sides = [shape[-1] for shape in maps]
    assert sides == ([16, 16, 8, 4] if backbone.name.startswith("resnet") else [32, 16, 8, 4])


@pytest.mark.parametrize("name", slow_after(1, ["resnet18", "resnet34", "resnet50"]))
def test_resnets_are_cut_at_their_layers(name: str) -> None:
    backbone = build_backbone(name, CLASSES, 64, seed=0)
    cut = [{n.split(".")[0] for n in backbone.tensor_names([block])} for block in backbone.order]
    assert cut == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}, {"fc"}]


@pytest.mark.parametrize(
    ("trainable", "prefix"),
    [
        (("head",), 5),
        (("head", "block4"), 4),
        (("block3", "head"), 3),  # a gap: block4 is frozen, not in the prefix
        (BLOCKS, 0),
    ],
)
def test_everything_below_the_deepest_trainable_block_is_prefix(
    trainable: tuple[str, ...], prefix: int, backbone: Backbone
) -> None:
    assert backbone.frozen_segments(trainable) == prefix


def test_the_model_is_in_eval_mode(backbone: Backbone) -> None:
    assert not any(module.training for module in backbone.model.modules())


def test_the_head_layer_gives_one_logit_a_class(backbone: Backbone) -> None:
    layer = backbone.model.get_submodule(backbone.head_layer())
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == CLASSES
    assert f"{backbone.head_layer()}.weight" in backbone.tensor_names(["head"])


def test_batch_norms_are_those_of_the_blocks(backbone: Backbone) -> None:
    found = list(batch_norms(segment.module for segment in backbone.segments))
    everything = [m for m in backbone.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {id(norm) for norm in found} == {id(norm) for norm in everything}
    assert len(found) == len(everything)
    assert list(batch_norms([backbone.segments[-1].module])) == []


def test_the_seed_decides_the_initialisation() -> None:
    first, again, other = (build_backbone("mobilenet_v3_small", CLASSES, 64, s) for s in (1, 1, 2))
    head = f"{first.head_layer()}.weight"
    assert torch.equal(first.model.state_dict()[head], again.model.state_dict()[head])
    assert not torch.equal(first.model.state_dict()[head], other.model.state_dict()[head])


def test_building_neither_reads_nor_moves_the_global_random_state() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = build_backbone("mobilenet_v3_small", CLASSES, 64, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    second = build_backbone("mobilenet_v3_small", CLASSES, 64, seed=1)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])


@pytest.mark.parametrize(
    ("name", "redrawn"),
    slow_after(2, [("efficientnet_b0", True), ("resnet18", False), ("swin_t", False)]),
)
def test_a_head_that_its_library_draws_too_large_is_drawn_by_torchs_own_rule(
    name: str, redrawn: bool
) -> None:
    backbone = build_backbone(name, CLASSES, 64, seed=3)
    assert backbone.head_redrawn is redrawn
    layer = backbone.model.get_submodule(backbone.head_layer())
    assert isinstance(layer, nn.Linear)
    assert layer.weight.abs().max() <= 4 / layer.in_features**0.5  # of swin_t: normal, cut far out
    other = build_backbone(name, CLASSES, 64, seed=4)
    assert not torch.equal(other.model.get_submodule(other.head_layer()).weight, layer.weight)
    library = build_network(name, CLASSES, 64, seed=3).get_submodule(backbone.head_layer())
    assert torch.equal(library.weight, layer.weight) is not redrawn
