"""`norm_stats=auto`: the better statistics are taken, for a reason that people can check."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.image_set import ImageSet
from pipeline.data.open import open_source
from pipeline.errors import WeightsError
from pipeline.model.backbones import Backbone, batch_norms, build_backbone
from pipeline.system.disk.digests import digest_values
from pipeline.training.norm.choice import NormStatsChoice, choose_norm_stats, decide_by_hits
from pipeline.training.norm.stats import kept_at
from tests.conftest import SHARED
from tests.families import small
from tests.helpers import (
    CLASSES,
    CPU,
    calibrate,
    calibrated_backbone,
    changed_names,
    copy_state,
    edited_factory,
    load_pretrained,
    make_draw,
    make_images,
)

COUNT = 36


def choose(
    backbone: Backbone, images: ImageSet, cache_folder: Path | None = None
) -> NormStatsChoice:
    """The choice; the backbone stays as it is."""
    before = copy_state(backbone)
    choice = choose_norm_stats(backbone, images, torch.float32, CPU, cache_folder)
    assert changed_names(before, copy_state(backbone)) == set()
    assert not any(module.training for module in backbone.model.modules())
    return choice


def spoil_statistics(backbone: Backbone) -> None:
    """Statistics of a far domain: every channel saturates, all images look alike."""
    for norm in batch_norms([backbone.model]):
        assert norm.running_mean is not None
        norm.running_mean += 100.0


def small_backbone(images: ImageSet) -> Backbone:
    """Statistics that fit, in a network that is soon computed."""
    backbone = small("regnet_y_400mf")
    calibrate(backbone, images)
    return backbone


def hits(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize(
    ("source", "target", "value", "words"),
    [
        # lead 0.4, differences 1 1 0 0 0: s.e. sqrt(0.3 / 5) = 0.245
        (hits(0, 0, 1, 1, 1), hits(1, 1, 1, 1, 1), "target", "target leads by 40.0 pp, s.e. 24.5"),
        # lead 0.2, differences 1 0 0 0 0: s.e. sqrt(0.2 / 5) = 0.2: no more than noise
        (hits(0, 1, 1, 1, 1), hits(1, 1, 1, 1, 1), "source", "lead of 20.0 pp is within noise"),
        (hits(1, 1, 0, 0), hits(0, 0, 1, 1), "source", "both score alike"),
        (hits(1, 1, 1, 1), hits(1, 1, 1, 1), "source", "both score alike, s.e. 0.0"),
        (hits(1, 1, 1, 0), hits(0, 1, 1, 0), "source", "source leads by 25.0 pp"),
    ],
)
def test_target_has_to_lead_by_more_than_its_standard_error(
    source: np.ndarray, target: np.ndarray, value: str, words: str
) -> None:
    choice = decide_by_hits(source, target)
    assert choice.value == value
    assert words in choice.reason
    assert choice.scores["source_acc"] == source.mean()
    assert choice.scores["target_acc"] == target.mean()
    assert choice.scores["lead"] == pytest.approx(target.mean() - source.mean())


def test_statistics_that_fit_are_kept_and_wrong_ones_replaced() -> None:
    images = make_images(COUNT)
    fitting = calibrated_backbone("mobilenet_v3_small", images)
    assert choose(fitting, images).value == "source"
    spoil_statistics(fitting)
    choice = choose(fitting, images)
    assert choice.value == "target"
    assert choice.scores["target_acc"] > choice.scores["source_acc"] + 0.2
    assert "target leads by" in choice.line


def test_a_choice_does_not_depend_on_the_order_of_the_images() -> None:
    images = make_images(COUNT)
    order = np.random.default_rng(0).permutation(COUNT)
    rows = torch.from_numpy(order)
    mixed = ImageSet(
        pixels=images.pixels[rows], labels=images.labels[rows], digests=images.digests[order]
    )
    backbone = small_backbone(make_images(COUNT, start=50))
    assert choose(backbone, images).scores == pytest.approx(choose(backbone, mixed).scores)


def test_a_choice_is_kept_under_its_content_and_really_read(tmp_path: Path) -> None:
    images = make_images(COUNT)
    backbone = small_backbone(images)
    first = choose(backbone, images, tmp_path)
    (path,) = tmp_path.glob("*.choice.json")
    kept = path.read_text()
    path.write_text(kept.replace('"source"', '"target"'))
    assert choose(backbone, images, tmp_path).value == "target"  # read, not computed
    for damaged in ("{", '{"value": "both", "reason": "", "scores": {}}', "[]"):
        path.write_text(damaged)
        assert choose(backbone, images, tmp_path) == first
        assert path.read_text() == kept


@pytest.mark.parametrize(("network", "is_read"), [("Net", True), ("ConvolvedHead", False)])
def test_choices_of_earlier_versions_are_read_unless_they_saw_whole_maps(
    tmp_path: Path, network: str, *, is_read: bool
) -> None:
    images = make_images(COUNT)
    backbone = build_backbone(f"tests.networks:{network}", CLASSES, 32, seed=0)
    statistics = kept_at(tmp_path, backbone, images, torch.float32, CPU)
    digest = digest_values([statistics.stem, images.fingerprint(), [1, 5, 0, 1.0, 1.0]])
    kept = NormStatsChoice(value="target", reason="kept", scores={})
    (tmp_path / f"{digest}.choice.json").write_text(json.dumps(asdict(kept)))
    assert (choose(backbone, images, tmp_path) == kept) is is_read


def test_other_labels_images_or_weights_are_another_choice(tmp_path: Path) -> None:
    images = make_images(COUNT)
    relabelled = ImageSet(
        pixels=images.pixels, labels=images.labels.flip(0), digests=images.digests
    )
    first, second = (small_backbone(images) for _ in range(2))
    second.put({"stem.0.weight": 2 * second.model.get_parameter("stem.0.weight")})
    asked = [(first, images), (first, relabelled), (first, make_images(COUNT, start=7))]
    for number, (backbone, given) in enumerate([*asked, (second, images)], start=1):
        choose(backbone, given, tmp_path)
        assert len(list(tmp_path.glob("*.choice.json"))) == number


def test_an_edited_factory_is_chosen_for_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edit leaves every tensor as it is: an activation has none."""
    for number, kind in enumerate(("ReLU", "Hardswish"), start=1):
        backbone = edited_factory(tmp_path, f"stem[2] = nn.{kind}()", monkeypatch)
        choose(backbone, make_images(COUNT), tmp_path)
        assert len(list(tmp_path.glob("*.choice.json"))) == number


def test_the_statistics_found_on_the_way_are_those_of_target(tmp_path: Path) -> None:
    images = make_images(COUNT)
    chosen, plain = (build_backbone("mobilenet_v3_small", CLASSES, 32, seed=0) for _ in range(2))
    choose(chosen, images, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    written = path.stat().st_mtime_ns
    calibrate(chosen, images, tmp_path)  # reads them
    calibrate(plain, images)
    assert changed_names(copy_state(chosen), copy_state(plain)) == set()
    assert path.stat().st_mtime_ns == written


def test_a_cache_that_cannot_be_written_costs_the_cache_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    images = make_images(COUNT)
    backbone = small_backbone(images)
    assert choose(backbone, images, tmp_path / "file") == choose(backbone, images)


def test_a_class_needs_two_images_to_be_probed() -> None:
    backbone = build_backbone("mobilenet_v3_small", CLASSES, 32, seed=0)
    choice = choose(backbone, make_images(CLASSES))
    assert (choice.value, choice.scores) == ("source", {})
    assert "1 training image" in choice.line
    choice = choose(backbone, make_images(2 * CLASSES))
    assert set(choice.scores) == {"source_acc", "target_acc", "lead", "lead_se"}


def test_a_backbone_without_batch_norm_has_nothing_to_choose() -> None:
    backbone = build_backbone("tests.networks:GroupNorms", CLASSES, 32, seed=0)
    choice = choose(backbone, make_images(COUNT))
    assert (choice.value, choice.scores) == ("source", {})
    assert "GroupNorms has no BatchNorm" in choice.line


def test_features_that_are_no_numbers_lose_to_those_that_are() -> None:
    images = make_images(COUNT)
    backbone = calibrated_backbone("mobilenet_v3_small", images)
    norm = next(batch_norms([backbone.model]))
    assert norm.running_var is not None
    norm.running_var -= 1e6  # the root of a negative number, under source alone
    choice = choose(backbone, images)
    assert choice.value == "target"
    assert "source statistics are not finite" in choice.line


def test_weights_that_give_no_numbers_at_all_are_refused() -> None:
    backbone = build_backbone("mobilenet_v3_small", CLASSES, 32, seed=0)
    with torch.no_grad():
        next(m for m in backbone.model.modules() if isinstance(m, nn.Conv2d)).weight.fill_(3e38)
    with pytest.raises(WeightsError, match="not finite numbers"):
        choose(backbone, make_images(COUNT))


def weights_file(name: str) -> str:
    path = SHARED / "weights" / name
    if not path.is_file():
        pytest.skip(f"real weights are not at {path}")
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "weights", "size", "per_class", "expected"),
    [
        ("resnet18", "tiny_imagenet", 64, 100, "target"),
        ("mobilenet_v2", "mobilenet_v2-b0353104.pth", 64, 50, "source"),
        ("mobilenet_v2", "mobilenet_v2-b0353104.pth", 128, 50, "source"),
        ("mobilenet_v2", "mobilenet_v2-b0353104.pth", 224, 20, "source"),
        ("resnet18", "resnet18-imagenet-mlnet.safetensors", 224, 10, "source"),
    ],
)
def test_real_weights_get_the_statistics_that_were_measured_to_be_better(
    cifar_folder: Path, backbone: str, weights: str, size: int, per_class: int, expected: str
) -> None:
    """The rows of the measurement in docs/reference.md; fewer images where they are large."""
    draw = make_draw(
        open_source(str(cifar_folder), cifar_folder),
        train_per_class=per_class,
        val_per_class=1,
        data_seed=0,
        draw=0,
        image_size=size,
    )
    model = build_backbone(backbone, len(draw.class_names), size, seed=0)
    load_pretrained(weights if "." not in weights else weights_file(weights), model).apply(model)
    assert choose(model, draw.train).value == expected


def test_of_very_many_images_the_first_by_digest_are_probed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(COUNT)
    backbone = small_backbone(images)
    every = choose(backbone, images, tmp_path)
    monkeypatch.setattr("pipeline.training.norm.choice.MOST", 12)
    few = choose(backbone, images, tmp_path)
    assert f"probe on {COUNT} training images" in every.reason
    assert "probe on 12 training images" in few.reason
    order = torch.from_numpy(np.argsort(images.keys)[::-1].copy())
    turned = ImageSet(
        pixels=images.pixels[order],
        labels=images.labels[order],
        digests=images.digests[order.numpy()],
    )
    assert choose(backbone, turned).scores["source_acc"] == few.scores["source_acc"]


def test_of_very_many_images_a_rare_class_is_probed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(COUNT)
    order = np.argsort(images.keys)
    monkeypatch.setattr("pipeline.training.norm.choice.MOST", 12)
    for rare in ([-2, -1], [10, -1]):  # of the class, none or one among the first
        labels = (torch.arange(COUNT) % 2).scatter(0, torch.from_numpy(order[rare].copy()), 2)
        choice = choose(small_backbone(images), replace(images, labels=labels))
        assert "probe on 12 training images" in choice.reason
    monkeypatch.setattr("pipeline.training.norm.choice.MOST", 5)
    choice = choose(small_backbone(images), replace(images, labels=labels))
    assert (choice.value, choice.scores) == ("source", {})
    assert "a probe sees 5 images, fewer than 2 of each class" in choice.line
