"""Relative gradient norms are those of a plain loop; the model is left as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks.rank_blocks import BATCH, BlockRank, agreement, rank_blocks
from pipeline.data.image_set import ImageSet
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.settings.schedules import BLOCKS
from tests.families import small
from tests.helpers import (
    CLASSES,
    CPU,
    calibrate,
    calibrated_backbone,
    changed_names,
    copy_state,
    make_images,
)

pytestmark = pytest.mark.slow  # a benchmark's, not the pipeline's

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def plain_norms(backbone: Backbone, images: ImageSet) -> dict[str, tuple[float, float]]:
    """Gradient and weight norm of each block: one batch, one loss, one tensor after another."""
    twin = build_backbone(backbone.name, backbone.model(torch.zeros(1, 3, 32, 32)).shape[1], 32, 0)
    twin.model.load_state_dict(backbone.model.state_dict())
    twin.model.eval().requires_grad_(True)
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    pixels = (images.pixels.float() / 255 - shift) / scale  # (N, 3, S, S)
    chances = twin.model(pixels).softmax(1)
    rows = torch.arange(len(images))
    loss = -chances[rows, images.labels].log().mean()
    named = dict(twin.model.named_parameters())
    gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))

    def norm(tensors: list[Tensor]) -> float:
        return math.sqrt(sum(float((t.detach().double() ** 2).sum()) for t in tensors))

    found = {}
    for block in BLOCKS:
        names = [name for name in twin.tensor_names([block]) if name in named]
        found[block] = (norm([gradients[n] for n in names]), norm([named[n] for n in names]))
    return found


def rank(backbone: Backbone, images: ImageSet) -> list[BlockRank]:
    """The ranks; the model is left without gradients and bit for bit as it was."""
    before = copy_state(backbone)
    ranks = rank_blocks(backbone, images, CPU)
    assert changed_names(before, copy_state(backbone)) == set()
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())
    return ranks


def small_backbone(images: ImageSet) -> Backbone:
    backbone = small("regnet_y_400mf")
    calibrate(backbone, images)
    return backbone


def set_to_zero(backbone: Backbone, *blocks: str) -> None:
    with torch.no_grad():
        parameters = dict(backbone.model.named_parameters())
        for name in parameters.keys() & set(backbone.tensor_names(blocks)):
            parameters[name].zero_()


@pytest.mark.parametrize(("name", "count"), [("resnet18", 7), ("mobilenet_v3_small", BATCH + 31)])
def test_norms_are_those_of_a_plain_loop_over_all_images_at_once(name: str, count: int) -> None:
    images = make_images(count)
    backbone = calibrated_backbone(name, images)
    expected = plain_norms(backbone, images)
    ranks = rank(backbone, images)
    assert {found.block for found in ranks} == set(BLOCKS)
    for found in ranks:
        gradient, size = expected[found.block]
        assert found.gradient == pytest.approx(gradient, rel=1e-3)
        assert found.size == pytest.approx(size, rel=1e-4)
        assert found.relative == pytest.approx(gradient / size, rel=1e-3)
    assert len({found.gradient for found in ranks}) == len(BLOCKS)


def test_the_largest_comes_first() -> None:
    images = make_images(12)
    backbone = calibrated_backbone("mobilenet_v3_small", images)
    relative = [found.relative for found in rank(backbone, images)]
    assert relative == sorted(relative, reverse=True)
    with torch.no_grad():  # larger weights before a BatchNorm: nothing changes but ||g|| / ||w||
        backbone.model.get_parameter("features.0.0.weight").mul_(1e-3)
    assert rank(backbone, images)[0].block == "stem"


def test_without_weights_a_block_is_infinitely_far_and_ties_go_from_head_to_stem() -> None:
    images = make_images(12)
    backbone = small_backbone(images)
    set_to_zero(backbone, "stem", "block3", "block1")
    ranks = rank(backbone, images)
    assert [found.block for found in ranks[:3]] == ["block3", "block1", "stem"]
    assert [found.relative for found in ranks[:3]] == [math.inf] * 3
    assert all(math.isfinite(found.relative) for found in ranks[3:])


def test_blocks_that_no_gradient_reaches_tie_at_zero() -> None:
    images = make_images(12)
    backbone = small_backbone(images)
    set_to_zero(backbone, "head")
    ranks = rank(backbone, images)
    assert [found.block for found in ranks] == list(BLOCKS)
    assert ranks[0].gradient > 0
    assert [found.relative for found in ranks] == [math.inf, 0, 0, 0, 0, 0]


def test_what_training_left_behind_does_not_count() -> None:
    images = make_images(12)
    backbone = small_backbone(images)
    expected = rank(backbone, images)
    backbone.model.train().requires_grad_(True)
    for parameter in backbone.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert rank(backbone, images) == expected


def test_a_fault_leaves_no_gradients_behind() -> None:
    images = make_images(BATCH + 6)
    backbone = small_backbone(images)
    images.labels[-1] = CLASSES  # in the second batch: the first has left gradients
    with pytest.raises(IndexError, match="out of bounds"):
        rank(backbone, images)
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())


@pytest.mark.parametrize(
    ("relative", "gains", "tau"),
    [
        ([5, 4, 3, 2, 1], [0.5, 0.4, 0.3, 0.2, 0.1], 1),
        ([5, 4, 3, 2, 1], [-5, -4, -3, -2, -1], -1),
        ([5, 4, 3, 2, 1], [4, 5, 3, 2, 1], 0.8),  # 9 pairs agree, 1 does not: 8 / 10
        ([5, 4, 3, 2, 1], [1, 5, 4, 3, 2], 0.2),  # 6 and 4
        ([3, 2, 1], [2, 1, 1], 2 / math.sqrt(3 * 2)),  # a tie in the gains: 2 of 3 can be told
        ([2, 2, 1], [3, 1, 2], 0),
        ([math.inf, 2, 1], [3, 2, 1], 1),
    ],
)
def test_agreement_is_kendalls_tau(relative: list[float], gains: list[float], tau: float) -> None:
    blocks = BLOCKS[1:]
    norms = dict(zip(blocks, relative, strict=False)) | {"head": 100.0}  # not released alone
    pp = dict(reversed(list(zip(blocks, gains, strict=False))))
    assert agreement(norms, pp) == pytest.approx(tau)


def test_where_every_gain_is_the_same_nothing_agrees_or_disagrees() -> None:
    norms = dict(zip(BLOCKS, range(6), strict=True))
    assert math.isnan(agreement(norms, dict.fromkeys(BLOCKS[1:], 0.0)))
