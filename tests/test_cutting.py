"""Networks are cut where one tensor crosses; the parts are the whole, in the modes of a stage."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pipeline.errors import SettingsError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.model.flops import training_operations
from pipeline.model.freezing import FrozenProof, set_trainable
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import Stage
from pipeline.training.device import compute_copy, run_segments
from tests.helpers import (
    CLASSES,
    CPU,
    changed_names,
    copy_state,
    live_features,
    make_images,
    slow_after,
    trainer_for,
)

SIZE = 32
CUT = {
    **dict.fromkeys(
        ["Net", "GroupNorms", "Vectors", "Dropouts", "FunctionalDropout", "OtherDropoutFunctions"],
        ("stem", "early", "late", "head"),
    ),
    **dict.fromkeys(
        ["InPlace", "InPlaceModules", "BareParameters", "Constants", "WeightsByHooks"],
        ("stem", "early", "late", "head"),
    ),
    **dict.fromkeys(
        ["ScaleBeforeItsBlock", "ScaleOfAnEarlierBlock", "CosineHead"],
        ("stem", "early", "late", "head"),
    ),
    "ScaleInTwoBlocks": ("stem", "early+late", "head"),
    "SharedDropouts": ("stem", "early+late", "head"),
    "Tuples": ("stem", "early+late", "head"),
    "SizesFromShapes": ("stem+early", "late", "head"),  # a batch's size crosses, too
    "SkipOverABorder": ("stem", "early+late", "head"),
    "ConstantInASharedSegment": ("stem", "early+late", "head"),
    "OutOfOrder": ("stem", "late+early", "head"),
    "CalledTwice": ("stem", "early+late", "head"),
    "BranchesOnValues": ("stem+early+late+head",),
}


QUICK = (
    *("Net", "SkipOverABorder", "OutOfOrder", "SharedDropouts", "CalledTwice"),
    *("WeightsByHooks", "ConstantInASharedSegment", "CosineHead", "ScaleBeforeItsBlock"),
    *("ScaleInTwoBlocks", "ScaleOfAnEarlierBlock"),
)
NAMES = slow_after(len(QUICK), [*QUICK, *(name for name in CUT if name not in QUICK)])


def built(name: str, seed: int = 0) -> Backbone:
    return build_backbone(f"tests.networks:{name}", CLASSES, SIZE, seed)


def some_images() -> Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_parts_compute_what_the_whole_computes_and_leave_their_inputs(name: str) -> None:
    backbone = built(name)
    assert tuple(segment.name for segment in backbone.segments) == CUT[name]
    x = some_images()
    direct = backbone.model(x.clone())
    for segment in backbone.segments:
        inputs, before = x, x.clone()
        x = segment.module(inputs)
        assert tuple(x.shape[1:]) == segment.shape
        assert torch.equal(inputs, before)
    assert torch.equal(x, direct)
    assert set(backbone.merged) == {b for s in backbone.segments for b in s.blocks[:-1]}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_moves_the_trainable_blocks_alone_wherever_the_cuts_are(name: str) -> None:
    images, trainable = make_images(6), ("head", "late")
    backbone = built(name)
    before = copy_state(backbone)
    proof = FrozenProof.take(backbone, 2, trainable)
    stage = Stage("mine", 2, trainable)
    features = live_features(backbone, stage, images)
    settings = TrainSettings(epochs=1, batch_size=6, augment="none", lr=0.01, warmup=0.0)
    trainer = trainer_for(backbone, stage, settings)
    proof.watch({"train": features.running, "suffix": trainer.segments})
    assert list(trainer.epochs(images, features, images, features))
    backbone.put(trainer.best)
    proof.check(backbone)
    moved = changed_names(before, copy_state(backbone))
    assert moved == set(backbone.tensor_names(trainable)) - {"factor"}  # a constant


@pytest.mark.parametrize("name", NAMES)
def test_what_the_frozen_part_makes_depends_on_no_tensor_above_it(name: str) -> None:
    """What is cached of a frozen prefix is found by the tensors of its blocks."""
    backbone, x = built(name), some_images()
    trainable = ("head", "late")
    prefix = backbone.frozen_segments(trainable)
    with torch.no_grad():
        before = backbone.run(x, 0, prefix)
        for tensor in copy_state(backbone).keys() - {*backbone.segment_tensors(prefix)}:
            if (own := backbone.model.state_dict()[tensor]).is_floating_point():
                own.add_(1.0)
        assert torch.equal(backbone.run(x, 0, prefix), before)


def random_parts(segments: tuple[object, ...]) -> list[nn.Module]:
    kinds = (nn.modules.dropout._DropoutNd, StochasticDepth)
    return [m for s in segments for m in s.module.modules() if isinstance(m, kinds)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "trainable", "on"),
    [
        ("Dropouts", ("head",), 0),
        ("Dropouts", ("head", "late"), 2),
        ("Dropouts", ("head", "late", "early"), 4),
        ("SharedDropouts", ("head",), 0),
        ("SharedDropouts", ("head", "late"), 2),  # of the segment early+late
        ("FunctionalDropout", ("head",), 1),  # what drops the classifier's inputs is its own
        ("FunctionalDropout", ("head", "late", "early"), 2),
        ("OtherDropoutFunctions", ("head",), 0),
        ("OtherDropoutFunctions", ("head", "late"), 1),
        ("OtherDropoutFunctions", ("head", "late", "early"), 2),
        ("DropoutInAnUntraceable", ("head",), 1),
        ("DropoutsInAnUntraceable", ("head",), 1),
        ("DropoutsInAnUntraceable", ("head", "late"), 3),
    ],
)
def test_dropout_and_stochastic_depth_are_off_in_frozen_blocks_and_on_in_trainable_ones(
    name: str, trainable: tuple[str, ...], on: int
) -> None:
    segments = compute_copy(built(name).segments, torch.float32, CPU)
    set_trainable(segments, trainable, "adapt")
    parts = random_parts(segments)
    there = {"DropoutInAnUntraceable": 1, "DropoutsInAnUntraceable": 5, "FunctionalDropout": 2}
    assert len(parts) == {**there, "OtherDropoutFunctions": 2}.get(name, 4)
    assert sum(part.training for part in parts) == on
    for segment in segments:  # nothing else makes a pass random
        for norm in segment.module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
    with torch.no_grad():
        first, again = (run_segments(segments, some_images(), torch.float32) for _ in range(2))
    assert torch.equal(first, again) == (on == 0)


def test_a_trainable_copy_leaves_the_modes_of_the_next_backbone_alone() -> None:
    """How a network is cut is kept for all networks of its name; its dropout must not be."""
    name = "mobilenet_v3_small"
    training_operations(name, CLASSES, SIZE, ("head",))
    backbone = build_backbone(name, CLASSES, SIZE, seed=0)
    set_trainable(backbone.segments, backbone.order, "adapt")
    for segment in build_backbone(name, CLASSES, SIZE, seed=0).segments:
        assert not any(module.training for module in segment.module.modules())


@torch.no_grad()
def test_buffers_are_read_when_the_network_runs() -> None:
    """Not when it is traced: other weights have other values."""
    backbone = built("Constants")
    before = backbone.run(some_images())
    backbone.model.get_buffer("factor").mul_(3.0)
    after = backbone.run(some_images())
    assert torch.equal(after, backbone.model(some_images()))
    assert not torch.equal(after, before)
    assert not [name for name in vars(backbone.model) if name.startswith("_tensor_constant")]


def test_a_graph_that_is_kept_serves_every_network_of_the_name() -> None:
    """Constants that tracing finds are of the graph, not of the network that was traced."""
    timm = pytest.importorskip("timm", reason="timm is an extra")
    arguments = {"embed_dim": 16, "depth": 4, "num_heads": 2, "patch_size": 8, "img_size": 32}
    from tests.families import backbone_of

    model = timm.create_model("vit_small_patch16_dinov3", num_classes=CLASSES, **arguments)
    backbone = backbone_of("timm:vit_small_patch16_dinov3", copy.deepcopy(model), SIZE)
    assert len(backbone.segments) == len(backbone.order)
    with torch.no_grad():
        assert torch.equal(backbone.run(some_images()), model.eval()(some_images()))
    assert set(vars(backbone.model)) == set(vars(model))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DrawsInEvaluation", "other logits the second time"),
        ("fails", r"raised an error with .*RuntimeError: no network of 3 classes\): mend"),
        ("ends_the_process", r"raised an error with .*SystemExit: 3\): mend"),
        ("HeadElsewhere", r"its head is late\.0.*, and none of them gives 3 .*, such as fc"),
        (
            "modules_called_blocks",
            r"no blocks \(its attribute `blocks` is a ModuleList\): give it",
        ),
        ("returns_none", "returned a NoneType, not a torch.nn.Module"),
        ("ten_classes", r"gives \(2, 10\) for two images, not \(2, 3\)"),
        ("two_outputs", "gives tuple for two images"),
        ("TiedWeights", r"early\.0\.weight and late\.0\.weight are one tensor.*: give each"),
        ("TiedByMemory", r"early\.0\.weight and late\.0\.weight are one tensor"),
        ("LayersTwice", r"late\.0\.weight and layers\.0\.0\.weight are one tensor"),
        ("fixed_size", "refuses images of 32 px .*image_size"),
        ("without_blocks", "declares no blocks: .* its modules are 0, 1, 2"),
    ],
)
def test_a_factorys_network_that_cannot_be_used_is_refused_in_one_line(
    name: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        built(name)
    assert "\n" not in str(caught.value)
