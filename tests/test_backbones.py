"""Backbones cut into blocks compute what torchvision's models compute, under the same names."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pipeline.model.backbones import FORWARD_ORDER, Backbone, batch_norms, build_backbone
from pipeline.settings.run import BackboneName
from pipeline.settings.schedules import BLOCKS

NAMES = get_args(BackboneName)
CLASSES = 5


@pytest.fixture(scope="module", params=NAMES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Each backbone once; tests only read it."""
    return build_backbone(request.param, CLASSES, seed=3)


def original(name: str) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
    return model.eval()


def test_seven_backbones_are_offered() -> None:
    assert set(NAMES) == {
        *("resnet18", "resnet34", "resnet50", "mobilenet_v2"),
        *("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"),
    }


def test_every_parameter_and_buffer_belongs_to_exactly_one_block(backbone: Backbone) -> None:
    owned = Counter(
        id(tensor)
        for block in backbone.blocks.values()
        for tensor in (*block.parameters(), *block.buffers())
    )
    everything = [*backbone.model.parameters(), *backbone.model.buffers()]
    assert owned == Counter(id(tensor) for tensor in everything)


def test_tensor_names_of_the_blocks_partition_the_state_dict(backbone: Backbone) -> None:
    names = [name for block in BLOCKS for name in backbone.tensor_names([block])]
    assert sorted(names) == sorted(backbone.model.state_dict())
    assert backbone.tensor_names(BLOCKS) == list(backbone.model.state_dict())


def test_blocks_are_the_same_six_in_forward_order(backbone: Backbone) -> None:
    assert tuple(backbone.blocks) == FORWARD_ORDER == tuple(reversed(BLOCKS))


@torch.no_grad()
def test_blocks_in_order_equal_torchvisions_forward_bit_for_bit(backbone: Backbone) -> None:
    twin = original(backbone.name)
    twin.load_state_dict(backbone.model.state_dict())
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    logits = backbone.run(images, FORWARD_ORDER)
    assert logits.shape == (3, CLASSES)
    assert torch.equal(logits, twin(images))


def test_state_dict_names_are_torchvisions(backbone: Backbone) -> None:
    assert list(backbone.model.state_dict()) == list(original(backbone.name).state_dict())


@torch.no_grad()
def test_each_block_is_one_resolution_and_block4_the_last(backbone: Backbone) -> None:
    """A 64 px image is halved five times; a block ends at the size that its last layer has."""
    sizes: dict[str, list[int]] = {}
    hooks = []
    for name, block in backbone.blocks.items():
        for layer in block:

            def note(_: nn.Module, __: Any, output: Tensor, name: str = name) -> None:  # noqa: ANN401
                if output.ndim == 4:
                    sizes.setdefault(name, []).append(output.shape[-1])

            hooks.append(layer.register_forward_hook(note))
    backbone.run(torch.zeros(1, 3, 64, 64), FORWARD_ORDER)
    for hook in hooks:
        hook.remove()

    assert sizes.pop("block4")[-1] == 1  # the pooling that ends it
    if backbone.name.startswith("resnet"):
        assert {block: seen[-1] for block, seen in sizes.items()} == {
            "stem": 16,
            "block1": 16,
            "block2": 8,
            "block3": 4,
        }
    else:
        assert {block: set(seen) for block, seen in sizes.items()} == {
            "stem": {32},
            "block1": {16},
            "block2": {8},
            "block3": {4},
        }


@torch.no_grad()
def test_block4_keeps_one_resolution_until_its_pooling(backbone: Backbone) -> None:
    layers = list(backbone.blocks["block4"])
    assert [type(layer) for layer in layers[-2:]] == [nn.AdaptiveAvgPool2d, nn.Flatten]
    x = backbone.run(torch.zeros(1, 3, 64, 64), FORWARD_ORDER[:4])
    assert x.shape[-1] == 4
    for layer in layers[:-2]:
        x = layer(x)
        assert x.shape[-2:] == (2, 2)


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0"]
)
def test_block4_holds_the_final_1x1_convolution(name: str) -> None:
    backbone = build_backbone(name, CLASSES, seed=0)
    final: Any = list(backbone.blocks["block4"])[-3]
    assert final is backbone.model.get_submodule("features")[-1]  # type: ignore[index]
    assert final[0].kernel_size == (1, 1)


@pytest.mark.parametrize(
    ("block", "modules"),
    [
        ("stem", ["conv1", "bn1"]),
        ("block1", ["layer1"]),
        ("block2", ["layer2"]),
        ("block3", ["layer3"]),
        ("block4", ["layer4"]),
        ("head", ["fc"]),
    ],
)
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnets_are_cut_at_their_layers(name: str, block: str, modules: list[str]) -> None:
    backbone = build_backbone(name, CLASSES, seed=0)
    assert {tensor.split(".")[0] for tensor in backbone.tensor_names([block])} == set(modules)


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
