"""Stage 0: what frozen features are worth, chosen on training images alone, the same each time."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch

from pipeline.data.image_set import ImageSet
from pipeline.errors import SettingsError
from pipeline.model.backbones import build_backbone
from pipeline.runs.floor import Floor
from pipeline.runs.messages.words import summary_table
from pipeline.tracking.history import Summary
from pipeline.tracking.keys import EPOCH_METRICS
from pipeline.training.prefix.cache import PrefixCache
from pipeline.training.stage0 import KNN, LOGREG, STRENGTHS, fit_and_score, head_inputs
from tests.conftest import Command
from tests.helpers import CPU, calibrated_backbone, make_images
from tests.networks import WIDTH
from tests.test_run_stage import artifact, runs


def point_set(count: int, width: int, classes: int, seed: int) -> tuple[ImageSet, np.ndarray]:
    """Images with digests of their own, and features in clouds around the classes' centres."""
    labels = np.arange(count) % classes
    centres = np.random.default_rng(0).normal(size=(classes, width))
    rng = np.random.default_rng([1, seed])
    points = (centres[labels] + 3 * rng.normal(size=(count, width))).astype(np.float32)
    images = ImageSet(
        pixels=torch.zeros(count, 3, 1, 1, dtype=torch.uint8),
        labels=torch.from_numpy(labels),
        digests=rng.integers(0, 256, (count, 32), dtype=np.uint8),
    )
    return images, points


def test_1000_images_of_1280_features_are_told_apart() -> None:
    train, points = point_set(1000, 1280, 10, seed=0)
    other, unseen = point_set(500, 1280, 10, seed=1)
    found = fit_and_score(train, points, {"val": (unseen, other.labels.numpy())})
    assert found
    assert found.scores["val"][LOGREG] > 0.9
    assert found.scores["val"][KNN] > 0.5


def test_the_order_of_images_plays_no_part_and_unseen_labels_choose_nothing() -> None:
    train, points = point_set(120, 16, 3, seed=0)
    other, unseen = point_set(60, 16, 3, seed=1)
    labels = other.labels.numpy()
    turned = np.arange(len(train))[::-1].copy()
    again = replace(train, labels=train.labels[turned], digests=train.digests[turned])
    one = fit_and_score(train, points, {"val": (unseen, labels)})
    two = fit_and_score(again, points[turned], {"val": (unseen, labels)})
    three = fit_and_score(train, points, {"val": (unseen, (labels + 1) % 3)})
    assert one
    assert two
    assert three
    assert (one.chosen, one.scores) == (two.chosen, two.scores)
    assert one.chosen == three.chosen
    assert one.chosen[LOGREG] in STRENGTHS


def test_one_image_a_class_is_enough_and_features_that_are_no_numbers_are_left_out() -> None:
    train, points = point_set(3, 8, 3, seed=0)
    found = fit_and_score(train, points, {"val": (points, train.labels.numpy())})
    assert found
    assert found.chosen[KNN] == 1
    assert found.scores["val"][KNN] == 1
    assert found.balanced == found.scores
    points[0, 0] = np.nan
    assert fit_and_score(train, points, {}) is None


def in_digest_order(count: int, rare: list[int]) -> tuple[ImageSet, np.ndarray]:
    """Images of two classes in the order of their digests; those at `rare` are of class 1."""
    labels = np.zeros(count, dtype=np.int64)
    labels[rare] = 1
    rng = np.random.default_rng(0)
    points = (4 * labels[:, None] + rng.normal(size=(count, 4))).astype(np.float32)
    digests = np.zeros((count, 32), dtype=np.uint8)
    digests[:, :8] = np.arange(count, dtype=np.uint64)[:, None].view(np.uint8)
    images = ImageSet(
        pixels=torch.zeros(count, 3, 1, 1, dtype=torch.uint8),
        labels=torch.from_numpy(labels),
        digests=digests,
    )
    return images, points


@pytest.mark.parametrize(
    "rare",
    [
        [*range(2000, 2008)],  # none among the images that k and C are chosen on
        [*range(5500, 5508)],  # none among the images that are fitted
        [17, *range(5500, 5507)],  # one among both
    ],
)
def test_a_rare_class_is_fitted_whole_wherever_its_digests_lie(rare: list[int]) -> None:
    train, points = in_digest_order(6000, rare)
    seen, labels = np.array([[0.0] * 4, [4.0] * 4], dtype=np.float32), np.array([0, 1])
    found = fit_and_score(train, points, {"val": (seen, labels)})
    assert found
    assert found.images == 5000
    assert found.balanced["val"] == {KNN: 1, LOGREG: 1}
    assert found.chosen[LOGREG] > STRENGTHS[0]  # eight images are cross-validated


def test_a_class_of_one_image_leaves_the_first_choice_and_ends_nothing() -> None:
    train, points = in_digest_order(6000, [5500])
    found = fit_and_score(train, points, {"val": (points[:5], np.zeros(5, dtype=np.int64))})
    assert found
    assert found.chosen == {KNN: 1, LOGREG: STRENGTHS[0]}
    assert found.scores["val"][LOGREG] == 1


def test_of_equal_classes_the_first_images_by_digest_are_fitted() -> None:
    train, points = point_set(6000, 8, 3, seed=0)
    first = np.argsort(train.keys)[:5000]
    alone = replace(train, labels=train.labels[first], digests=train.digests[first])
    other, unseen = point_set(300, 8, 3, seed=1)
    others = {"val": (unseen, other.labels.numpy())}
    one, two = fit_and_score(train, points, others), fit_and_score(alone, points[first], others)
    assert one
    assert two
    assert (one.chosen, one.scores) == (two.chosen, two.scores)


@pytest.mark.parametrize("classes", [200, 600])
def test_k_and_c_of_many_equal_classes_are_chosen_by_cross_validation(classes: int) -> None:
    """The first thousand images by digest hold some of so many classes once, or not at all."""
    train, points = point_set(7 * classes, 16, classes, seed=0)
    other, unseen = point_set(2 * classes, 16, classes, seed=1)
    found = fit_and_score(train, points, {"val": (unseen, other.labels.numpy())})
    assert found
    assert found.chosen[LOGREG] > STRENGTHS[0]


def test_classes_count_alike_in_balanced_accuracy_which_is_shown_where_it_differs() -> None:
    train, points = point_set(60, 8, 3, seed=0)
    unequal = np.concatenate([np.full(9, 0), [1]])
    seen = np.concatenate([points[:1].repeat(9, 0), points[:1]])  # of class 0, all of them
    found = fit_and_score(train, points, {"val": (seen, unequal)})
    assert found
    floor = Floor(chosen=found.chosen, val=found.scores["val"], balanced=found.balanced)
    assert (floor.val[LOGREG], floor.balanced["val"][LOGREG]) == (0.9, 0.5)
    assert "logistic regression (C " in floor.sentence
    assert floor.sentence.endswith("90.0% (balanced 50.0%) on validation images")
    assert floor.metrics[f"stage0/{LOGREG}_val_balanced_acc"] == 0.5
    assert floor.rows[1]["balanced"] == "50.00%"
    equal = Floor(chosen=found.chosen, val=found.scores["val"])
    assert "balanced" not in equal.sentence
    assert not any("balanced" in name for name in equal.metrics)


def test_features_are_what_enters_the_head_and_come_from_the_entry_of_stage_1(
    tmp_path: object,
) -> None:
    images = make_images(6)
    backbone = calibrated_backbone("resnet18", images)
    entered: list[torch.Tensor] = []
    backbone.model.fc.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with torch.no_grad():
        backbone.model(images.preparation.normalise(images.pixels))
    cache = PrefixCache(tmp_path, 10**9)  # type: ignore[arg-type]
    plain = head_inputs(backbone, images, cache, torch.float32, CPU)
    assert plain == pytest.approx(entered[0].numpy(), abs=3e-4)
    mirrored = head_inputs(backbone, images, cache, torch.float32, CPU, augment="light", views=10)
    assert mirrored == pytest.approx(plain, abs=3e-4)  # its first view is the image itself
    strong = head_inputs(backbone, images, cache, torch.float32, CPU, augment="strong", views=3)
    assert np.array_equal(strong, plain)


@pytest.mark.parametrize(
    ("backbone", "positions"),
    [
        ("squeezenet1_1", (2, 3)),
        ("tests.networks:ConvolvedHead", (2, 3)),
        ("tests.networks:TokensIntoTheHead", (1,)),
        ("tests.networks:ChannelsLastIntoTheHead", (1, 2)),
        ("timm:regnetx_002", ()),  # it pools in its head, before the last layer
    ],
)
def test_of_maps_that_enter_the_head_the_means_are_kept(
    backbone: str, positions: tuple[int, ...]
) -> None:
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    images = make_images(3, size=64)
    built = build_backbone(backbone, 3, 64, seed=0)
    head = built.model.get_submodule(built.head_layer())
    maps: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, args: maps.append(args[0]))
    with torch.no_grad():
        built.model(images.preparation.normalise(images.pixels))
    found = head_inputs(built, images, PrefixCache(None, 0), torch.float32, CPU)
    wanted = maps[0].mean(positions) if positions else maps[0]
    assert found == pytest.approx(wanted.numpy(), abs=1e-4)


def test_a_head_that_is_no_module_is_named_where_nothing_tells_what_enters_it() -> None:
    images, cache = make_images(6), PrefixCache(None, 0)
    for name, refused in (("CosineHead", False), ("CosineHeadInAnUntraceable", True)):
        built = build_backbone(f"tests.networks:{name}", 3, 32, seed=0)
        fault = pytest.raises(SettingsError, match=r"head shares a segment with stem, early, late")
        with fault if refused else nullcontext():
            assert head_inputs(built, images, cache, torch.float32, CPU).shape == (6, WIDTH)


def test_main_shows_the_floor_and_stage_1_keeps_it(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("main") == 0
    out = capsys.readouterr().out
    assert "stage 0 (frozen features, nothing trained):" in out
    rows = [line for line in out.splitlines() if line.lstrip().startswith("0 ")]
    assert len(rows) == 2
    first = mlflow.get_run(runs().iloc[0]["run_id"])
    chain = mlflow.get_run(runs("chain").iloc[0]["run_id"])
    kept = {k: v for k, v in first.data.metrics.items() if k.startswith("stage0/")}
    assert set(kept) == {f"stage0/{n}_{w}" for n in (KNN, LOGREG) for w in ("val_acc", "chosen")}
    assert kept.items() <= chain.data.metrics.items()
    assert f"{kept['stage0/logreg_val_acc']:.2%}" in rows[1]
    assert "| 0 | logistic regression" in artifact(chain.info.run_id, "summary.md").read_text()


def test_a_floor_above_all_that_was_reached_on_test_images_is_told() -> None:
    floor = Floor(chosen={KNN: 1, LOGREG: 0.1}, val={}, test={KNN: 0.5, LOGREG: 0.8})
    floor = replace(floor, balanced={"test": {KNN: 0.6, LOGREG: 0.55}})
    line = floor.ahead_of({"one": 0.79, "other": 0.7}, "the test images", "train longer")
    assert line.startswith("! logistic regression (C 0.1) on the frozen features")
    assert "reaches 80.00% on the test images, one 79.00% and other 70.00%: train longer" in line
    assert floor.ahead_of({"one": 0.8, "other": 0.7}, "", "") == ""  # level with one
    assert replace(floor, test={}).ahead_of({"one": 0.1}, "", "") == ""
    by_class = floor.ahead_of({"one": 0.59}, "the test images", "", balanced=True)
    assert by_class.startswith("! nearest neighbour on the frozen features")
    assert "balanced 60.00%" in by_class
    assert floor.ahead_of({"one": 0.7}, "", "", balanced=True) == ""


def test_a_floor_above_training_is_told_and_one_below_is_not() -> None:
    floor = Floor(chosen={KNN: 1, LOGREG: 0.1}, val={KNN: 0.5, LOGREG: 0.8})
    assert "logistic regression (C 0.1)" in floor.remark(3, 0.7)
    assert "80.0% against 70.0%" in floor.remark(3, 0.7)
    assert floor.remark(3, 0.8) == ""
    assert "nearest neighbour 50.0%" in floor.sentence
    summary = Summary(
        number=1,
        trains=("head",),
        run_id="a",
        reused=False,
        epoch=1,
        metrics=dict.fromkeys(EPOCH_METRICS, 0.5),
        wall_s=1,
        trainable_parameters=1,
    )
    assert list(summary_table([summary], floor.rows)["stage"]) == ["0", "0", "1"]
