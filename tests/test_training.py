"""The epoch loop: rates, batches and scores by hand, and what training a stage may not do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from pipeline.data.image_set import ImageSet
from pipeline.data.images import USUAL
from pipeline.model.backbones import Backbone, batch_norms, build_backbone
from pipeline.runs.scoring import predict
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import SCHEDULES, Stage
from pipeline.stats.metrics import OBJECTIVES, score_logits
from pipeline.tracking.history import History
from pipeline.tracking.keys import RISKS, TRAIN_ACC, TRAIN_LOSS, VAL, VAL_ACC, VAL_LOSS
from pipeline.training.device import images_at_once
from pipeline.training.trainer import (
    Trainer,
    learning_rates,
    schedule_factor,
    split_batches,
)
from tests.families import FAMILIES, small
from tests.helpers import (
    CLASSES,
    CPU,
    calibrate,
    calibrated_backbone,
    changed_names,
    copy_state,
    live_features,
    make_images,
    slow_after,
    trainer_for,
)

HEAD, BLOCK4, FULL = (
    SCHEDULES["three_stage"].stage(1),
    SCHEDULES["three_stage"].stage(2),
    SCHEDULES["full"].stage(1),
)
SMALL = {"epochs": 2, "batch_size": 4, "augment": "none", "lr": 3e-4}
STILL = {"lr": 1e-30, "weight_decay": 0.0}  # a rate too small to move a float32 weight


@dataclass
class Run:
    """A finished training: every epoch, and the trainer that did it."""

    trainer: Trainer
    before: dict[str, Tensor]

    @property
    def history(self) -> History:
        return self.trainer.history

    @property
    def last(self) -> dict[str, Tensor]:
        return self.trainer.snapshot()

    def distance(self, block: str) -> float:
        """How far the block's weights went from where they started."""
        last, names = self.last, self.trainer.backbone.tensor_names([block])
        trained = {weight.name for weight in self.trainer.weights}
        squares = [(last[n] - self.before[n]).square().sum() for n in names if n in trained]
        return math.sqrt(sum(float(square) for square in squares))


def own_backbone() -> Backbone:
    backbone = small("regnet_y_400mf")
    calibrate(backbone, make_images(12))
    return backbone


small_backbone = cache(own_backbone)
"""What trainings begin from that change nothing of it themselves."""


def train(
    stage: Stage = HEAD,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    images: ImageSet | None = None,
    val: ImageSet | None = None,
    backbone: Backbone | None = None,
    **settings: Any,  # noqa: ANN401
) -> Run:
    """Train a small network on 12 images, validated on 6 others, for 2 epochs of 3 batches."""
    images = images or make_images(12)
    val = val or make_images(6, start=50)
    backbone = backbone or small_backbone()
    chosen = TrainSettings(**{**SMALL, **settings})
    before = copy_state(backbone)
    trainer = trainer_for(backbone, stage, chosen, seed=seed, dtype=dtype)
    train_features = live_features(backbone, stage, images, dtype)
    val_features = live_features(backbone, stage, val, dtype)
    assert list(trainer.epochs(images, train_features, val, val_features)) == trainer.history.rows
    # the backbone is never changed, whatever the settings
    assert changed_names(before, copy_state(backbone)) == set()
    assert not any(module.training for module in backbone.model.modules())
    assert all(p.grad is None and p.requires_grad for p in backbone.model.parameters())
    return Run(trainer, before)


# Rates


@pytest.mark.parametrize(
    ("schedule", "number", "lr_decay", "rates"),
    [
        ("three_stage", 1, 0.1, {"head": 0.01}),
        ("three_stage", 3, 0.5, {"head": 0.01, "block4": 0.005, "block3": 0.0025}),
        ("three_stage", 3, 2.0, {"head": 0.01, "block4": 0.02, "block3": 0.04}),
        (
            *("full", 1, 0.1),
            {"head": 1e-2, "block4": 1e-3, "block3": 1e-4}
            | {"block2": 1e-5, "block1": 1e-6, "stem": 1e-7},
        ),
    ],
)
def test_rates_fall_or_rise_with_depth(
    schedule: str, number: int, lr_decay: float, rates: dict[str, float]
) -> None:
    settings = TrainSettings(lr=0.01, lr_decay=lr_decay)
    trainable = SCHEDULES[schedule].stage(number).trainable
    assert learning_rates(settings, trainable, small_backbone()) == pytest.approx(rates)


@pytest.mark.parametrize(
    ("steps", "warmup", "factors"),
    [
        (4, 0.0, [1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]),
        (6, 1 / 3, [1 / 3, 2 / 3, 1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]),
        (1, 0.0, [1.0]),
        (1, 0.9, [1.0]),  # too short to warm up
        (2, 0.5, [0.5, 1.0]),
    ],
)
def test_the_rate_ramps_up_and_then_follows_a_cosine(
    steps: int, warmup: float, factors: list[float]
) -> None:
    assert [schedule_factor(s, steps, warmup) for s in range(steps)] == pytest.approx(factors)


def test_a_result_tells_the_rate_of_its_last_step() -> None:
    run = train(BLOCK4, lr=0.01, lr_decay=0.5, warmup=0.0)
    rates = [0.01 * schedule_factor(last_step, 6, 0.0) for last_step in (2, 5)]
    assert run.history["lr/head"] == pytest.approx(rates, rel=1e-5)
    assert run.history["lr/block4"] == pytest.approx([rate / 2 for rate in rates], rel=1e-5)


# Batches


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [
        (12, 4, [4, 4, 4]),
        (10, 4, [4, 3, 3]),
        (9, 8, [5, 4]),
        (1, 8, [1]),
        (3, 2, [3]),
        (5, 2, [3, 2]),
        (4, 3, [2, 2]),
    ],
)
def test_batches_are_nearly_equal_and_none_is_of_one_image(
    images: int, batch_size: int, sizes: list[int]
) -> None:
    assert [len(rows) for rows in split_batches(np.arange(images), batch_size)] == sizes


@pytest.mark.parametrize("batch_size", [2, 3, 5, 64])
def test_batches_hold_every_image_once_in_order(batch_size: int) -> None:
    for count in range(2, 40):
        order = np.random.default_rng(count).permutation(count)
        batches = split_batches(order, batch_size)
        sizes = [len(rows) for rows in batches]
        assert np.array_equal(np.concatenate(batches), order)
        assert min(sizes) >= 2
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= max(batch_size, 3)


# An independent reference


BLOCK4_OF = {"regnet_y_400mf": "trunk_output.block4", "resnet18": "layer4"}


def plain_loop(
    backbone: Backbone, images: ImageSet, stage: Stage, optimizer: str, epochs: int, batch: int
) -> tuple[nn.Module, list[float]]:
    """The model trained as a whole, in float64, and each epoch's training loss.

    AdamW divides by a gradient's own size: in float32 rounding decides where one is near zero.
    """
    model: Any = (
        FAMILIES[backbone.name][1]()
        if backbone.name in FAMILIES
        else resnet18(num_classes=CLASSES)
    )
    model.load_state_dict(backbone.model.state_dict())
    model.double().eval()
    trained = {"head": model.fc, "block4": model.get_submodule(BLOCK4_OF[backbone.name])}
    groups: list[dict[str, Any]] = []
    for depth, block in enumerate(stage.trainable):
        for decayed in (True, False):
            members = [p for p in trained[block].parameters() if (p.ndim > 1) == decayed]
            peak = 1e-3 * 0.5**depth
            groups.append({"params": members, "weight_decay": 0.1 * decayed, "peak": peak})
    plain: torch.optim.Optimizer
    if optimizer == "adamw":
        plain = torch.optim.AdamW(groups, lr=1.0)
    else:
        plain = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
    rng, losses = np.random.default_rng([7, stage.number]), []
    batches = 12 // batch
    for epoch in range(epochs):
        total = 0.0
        for number, rows in enumerate(np.array_split(rng.permutation(12), batches)):
            done = (epoch * batches + number) / (epochs * batches)
            for group in plain.param_groups:
                group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * done))
            for block in stage.trainable:
                trained[block].train()
            index = torch.from_numpy(rows)
            logits = model(USUAL.normalise(images.pixels[index]).double())
            loss = F.cross_entropy(logits, images.labels[index], label_smoothing=0.1)
            plain.zero_grad()
            loss.backward()
            plain.step()
            total += F.cross_entropy(logits, images.labels[index], reduction="sum").item()
        losses.append(total / 12)

    return model, losses


@pytest.mark.parametrize(
    ("name", "stage", "optimizer", "epochs", "batch_size"),
    slow_after(
        2,
        [
            ("regnet_y_400mf", BLOCK4, "adamw", 2, 4),
            ("regnet_y_400mf", HEAD, "sgd", 1, 12),
            ("resnet18", BLOCK4, "adamw", 2, 4),
            ("resnet18", BLOCK4, "sgd", 2, 4),
        ],
    ),
)
def test_training_equals_a_plain_torch_loop_over_the_whole_model(
    name: str, stage: Stage, optimizer: str, epochs: int, batch_size: int
) -> None:
    images = make_images(12)
    backbone = own_backbone() if name in FAMILIES else calibrated_backbone(name, images)
    model, losses = plain_loop(backbone, images, stage, optimizer, epochs, batch_size)
    run = train(
        stage,
        seed=7,
        images=images,
        backbone=backbone,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        lr=1e-3,
        lr_decay=0.5,
        warmup=0.0,
        weight_decay=0.1,
        label_smoothing=0.1,
    )
    wanted = {name: tensor.float() for name, tensor in model.state_dict().items()}
    for block in stage.trainable:
        for name in backbone.tensor_names([block]):
            if wanted[name].ndim:
                moved = (wanted[name] - run.before[name]).norm()
                assert (run.last[name] - wanted[name]).norm() < 0.1 * moved
    assert run.history[TRAIN_LOSS] == pytest.approx(losses, rel=2e-2)


def test_validation_scores_are_those_of_the_whole_model_in_eval_mode() -> None:
    val = make_images(6, start=50)
    backbone = own_backbone()
    run = train(FULL, backbone=backbone, val=val, lr=1e-3, epochs=1)
    backbone.model.load_state_dict(run.last)
    with torch.no_grad():
        logits = backbone.model.eval()(USUAL.normalise(val.pixels))
    validated = run.trainer.best_logits
    torch.testing.assert_close(validated, logits, rtol=1e-5, atol=1e-5)
    assert validated.dtype == torch.float32
    expected = score_logits(validated, val.labels)
    assert {name: run.history[key][-1] for name, key in VAL.items()} == expected


# Determinism


def test_the_same_seed_gives_the_same_bits() -> None:
    """Dropout and stochastic depth included, whatever the global random state was."""
    runs = []
    for global_seed in (1, 2):
        backbone = small("efficientnet_v2_s")
        torch.manual_seed(global_seed)
        runs.append(train(FULL, backbone=backbone, epochs=1, batch_size=6, augment="light"))
    assert changed_names(runs[0].last, runs[1].last) == set()
    assert torch.equal(runs[0].trainer.best_logits, runs[1].trainer.best_logits)


def test_another_seed_gives_another_training() -> None:
    first, second = train(seed=0), train(seed=1)
    assert changed_names(first.before, second.before) == set()
    assert changed_names(first.last, second.last) == {
        w.name for w in first.trainer.weights if w.block == "head"
    }


# Settings


@pytest.mark.parametrize(
    ("optimizer", "lr", "dtype"),
    [
        ("adamw", 0.01, torch.float32),
        ("adamw", 0.01, torch.bfloat16),
        ("sgd", 0.01, torch.float32),
    ],
)
def test_each_optimizer_learns_a_task_that_colour_decides(
    optimizer: str, lr: float, dtype: torch.dtype
) -> None:
    run = train(BLOCK4, optimizer=optimizer, dtype=dtype, epochs=12, lr=lr)
    assert run.history[TRAIN_LOSS][-1] < 0.5 * run.history[TRAIN_LOSS][0]
    assert run.history[TRAIN_ACC][-1] > 0.9


@pytest.mark.parametrize(
    ("optimizer", "dtype"), [("adamw", torch.bfloat16), ("sgd", torch.float32)]
)
def test_l2_sp_holds_the_block_but_not_the_new_head(optimizer: str, dtype: torch.dtype) -> None:
    settings = {"optimizer": optimizer, "dtype": dtype, "epochs": 4, "lr": 0.005}
    free = train(BLOCK4, weight_decay=0.0, **settings)
    held = train(BLOCK4, weight_decay=0.0, l2_sp=40.0, **settings)
    assert held.distance("block4") < 0.5 * free.distance("block4")
    assert held.distance("head") > 0.5 * free.distance("head")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_parameters_without_a_part_in_the_forward_pass_stay_as_they_are(
    optimizer: str, dtype: torch.dtype
) -> None:
    backbone = build_backbone("tests.networks:Idle", CLASSES, 32, seed=0)
    stage = Stage("mine", 1, ("head", "spare", "late"))
    settings = {"lr": 0.01, "l2_sp": 0.1, "weight_decay": 0.1, "clip_norm": 1.0}
    run = train(stage, backbone=backbone, optimizer=optimizer, dtype=dtype, **settings)
    moved = changed_names({name: run.before[name] for name in run.last}, run.last)
    assert moved == set(backbone.tensor_names(("head", "late"))) - {"late.idle"}
    for risk in ("drift", "grad_norm", "grad_relative"):
        assert run.history[f"{RISKS}{risk}/spare"] == [0.0, 0.0]
        assert all(run.history[f"{RISKS}{risk}/late"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_parameter_may_have_its_first_gradient_after_others(
    optimizer: str, dtype: torch.dtype
) -> None:
    backbone = build_backbone("tests.networks:GradientsLater", CLASSES, 32, seed=0)
    stage = Stage("mine", 1, ("head", "late"))
    settings = {"optimizer": optimizer, "dtype": dtype, "batch_size": 12, "lr": 0.01}
    first, later = (train(stage, backbone=backbone, epochs=n, **settings).last for n in (1, 2))
    name = "late.1.scale"
    assert torch.equal(first[name], backbone.model.state_dict()[name])
    assert not torch.equal(later[name], first[name])


def test_the_first_step_of_l2_sp_is_that_without_it() -> None:
    """There is no pull yet where the weights are still those that the stage started from."""
    settings = {"epochs": 1, "batch_size": 12, "optimizer": "sgd"}
    free, held = train(BLOCK4, **settings), train(BLOCK4, l2_sp=100.0, **settings)
    assert changed_names(free.last, held.last) == set()


def test_label_smoothing_trains_but_is_not_reported() -> None:
    sharp, smooth = train(**STILL), train(**STILL, label_smoothing=0.5)
    for name in (TRAIN_LOSS, TRAIN_ACC, *VAL.values()):
        assert sharp.history[name] == smooth.history[name]
    assert changed_names(train().last, train(label_smoothing=0.5).last)


def test_weight_decay_shrinks_weights_but_neither_biases_nor_norms() -> None:
    run = train(BLOCK4, epochs=1, batch_size=12, lr=0.01, weight_decay=10.0, norm="keep")
    free = train(BLOCK4, epochs=1, batch_size=12, lr=0.01, weight_decay=0.0, norm="keep")
    differ = changed_names(free.last, run.last)
    assert differ == {w.name for w in run.trainer.weights if w.master.ndim > 1}
    head = f"{run.trainer.backbone.head_layer()}.weight"
    torch.testing.assert_close(run.last[head], free.last[head] - 0.1 * run.before[head])


def test_weight_decay_leaves_alone_what_a_network_says_in_a_function_or_a_set() -> None:
    for named in ({"fc.weight"}, lambda: {"fc.weight"}):
        backbone = build_backbone("tests.networks:Net", CLASSES, 32, seed=0)
        backbone.model.no_weight_decay = named  # type: ignore[assignment]
        groups = trainer_for(backbone, HEAD, TrainSettings(**SMALL, weight_decay=0.1)).optimizer
        assert {group["weight_decay"] for group in groups.param_groups} == {0.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_clip_norm_bounds_the_step(dtype: torch.dtype) -> None:
    """SGD's first Nesterov step is 1 + momentum times the rate times the clipped gradient."""
    settings = {"epochs": 1, "batch_size": 12, "optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0}
    clipped = train(BLOCK4, dtype=dtype, clip_norm=1e-2, **settings)
    free = train(BLOCK4, dtype=dtype, **settings)

    def length(run: Run) -> float:
        return math.hypot(run.distance("head"), run.distance("block4"))

    assert length(clipped) == pytest.approx(1.9e-2, rel=1e-3)
    assert length(free) > 10 * length(clipped)


# Precision


def test_reduced_precision_keeps_float32_masters() -> None:
    run = train(BLOCK4, dtype=torch.bfloat16, optimizer="sgd", lr=1e-4, weight_decay=0.0, epochs=1)
    convolution = next(w.name for w in run.trainer.weights if w.master.ndim == 4)
    assert run.trainer.computed[convolution].dtype == torch.bfloat16
    assert {w.master.dtype for w in run.trainer.weights} == {torch.float32}
    assert {t.dtype for t in run.last.values()} == {torch.float32, torch.int64}
    moved = (run.last[convolution] - run.before[convolution]).abs()
    step = run.before[convolution].abs() * 2.0**-9  # half the distance to bfloat16's next value
    assert (run.last[convolution] != run.last[convolution].bfloat16()).double().mean() > 0.9
    assert (moved > 0).double().mean() > 0.9
    assert (moved < step).double().mean() > 0.5  # in bfloat16 alone these would have stood still
    for name, tensor in run.last.items():  # what computes is the snapshot, rounded
        computed = run.trainer.computed[name]
        assert torch.equal(computed, tensor.to(computed.dtype))
        assert computed.grad is None


def test_large_images_are_validated_in_smaller_pieces_to_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segments = own_backbone().segments
    assert [images_at_once(segments, side) for side in (32, 64, 224, 1024)] == [500, 500, 40, 1]
    assert images_at_once(segments[-1:], 1024) == 500
    whole = train(FULL)
    monkeypatch.setattr("pipeline.training.device.EVAL_PIXELS", 5 * 32 * 32)
    pieces = train(FULL)
    for one, other in zip(whole.history.rows, pieces.history.rows, strict=True):
        measured = {name: value for name, value in one.items() if not name.startswith("time/")}
        assert {name: other[name] for name in measured} == pytest.approx(measured, abs=1e-4)


# Which epoch is selected, and when training ends


@pytest.mark.parametrize("select", slow_after(2, OBJECTIVES))
def test_the_selected_epoch_is_best_by_any_metric_then_by_loss_then_comes_first(
    select: str,
) -> None:
    val, rows = make_images(12, start=50), [0, 3, 6, 9, 1, 4, 2]  # four, two and one of a class
    unequal = ImageSet(pixels=val.pixels[rows], labels=val.labels[rows], digests=val.digests[rows])
    run = train(FULL, val=unequal, epochs=8, batch_size=2, lr=0.02, select=select)
    objective = OBJECTIVES[select]
    values = run.history[VAL[objective.metric]]
    sign = 1 if objective.maximised else -1
    losses = [-loss for loss in run.history[VAL_LOSS]]
    ranks = list(zip((sign * value for value in values), losses, range(0, -8, -1), strict=True))
    assert run.history.selected == 1 + ranks.index(max(ranks))
    assert len(set(values)) > 1  # or the test would show nothing


def test_of_equal_accuracies_the_lower_loss_wins() -> None:
    """Never a hit: each epoch fits the right labels better and these wrong ones worse."""
    images = make_images(12)
    wrong = ImageSet(
        pixels=images.pixels, labels=(images.labels + 1) % CLASSES, digests=images.digests
    )
    falling = train(images=images, val=wrong, epochs=6, lr=0.05)
    accuracies, losses = falling.history[VAL_ACC], falling.history[VAL_LOSS]
    assert accuracies[-2:] == [0.0, 0.0]
    assert losses[-1] > losses[-2]
    best = max(zip(accuracies, (-loss for loss in losses), range(1, 7), strict=True))
    assert falling.history.selected == best[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_best_holds_the_weights_of_the_selected_epoch(dtype: torch.dtype) -> None:
    val = make_images(12, start=50)
    for lr in (0.02, 0.05, 0.1, 0.2):  # which epoch is the best one depends on the processor
        backbone = own_backbone()
        run = train(FULL, backbone=backbone, val=val, dtype=dtype, epochs=6, batch_size=2, lr=lr)
        if run.history.selected < 6:
            break
    assert run.history.selected < 6  # or best and last would be the same
    assert set(run.trainer.best) == set(run.before)
    backbone.model.load_state_dict(run.trainer.best)
    logits = predict(backbone, val, dtype, CPU)
    torch.testing.assert_close(logits, run.trainer.best_logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (3, 4), (0, 6), (10, 6)])
def test_training_ends_when_patience_does(patience: int, epochs: int) -> None:
    """Weights that stand still never get better than in their first epoch: the first is kept."""
    run = train(**STILL, epochs=6, patience=patience)
    assert (len(run.history), run.history.selected) == (epochs, 1)


def test_patience_counts_from_the_last_better_epoch() -> None:
    run = train(FULL, epochs=30, batch_size=2, lr=0.02, patience=3)
    assert run.history.selected > 1
    assert len(run.history) == run.history.selected + 3


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_divergence_is_told_and_ends_the_training(optimizer: str) -> None:
    settings = {"optimizer": optimizer, "epochs": 30, "batch_size": 2}
    run = train(FULL, lr=100, weight_decay=10, warmup=0.0, **settings)
    assert len(run.history) < 30
    assert run.history.diverged
    losses = run.history[TRAIN_LOSS], run.history[VAL_LOSS]
    assert not all(math.isfinite(each[-1]) for each in losses)
    assert all(math.isfinite(loss) for each in losses for loss in each[:-1])
    assert run.trainer.best  # an epoch is selected all the same


@pytest.mark.parametrize("lost", [TRAIN_LOSS, VAL_LOSS])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_either_loss_that_is_no_number_is_divergence(lost: str, value: float) -> None:
    history = History(planned=3)
    history.rows.append({TRAIN_LOSS: 1.0, VAL_LOSS: 2.0})
    assert not history.diverged
    history.rows.append({TRAIN_LOSS: 1.0, VAL_LOSS: 2.0, lost: value})
    assert history.diverged
    assert history.lost == ["training" if lost == TRAIN_LOSS else "validation"]


def test_an_epoch_without_numbers_is_not_selected_over_one_with_them() -> None:
    """Logits that are no numbers always name the first class: full marks where all are of it."""
    val = make_images(6, start=50)
    first_class = ImageSet(
        pixels=val.pixels, labels=torch.zeros_like(val.labels), digests=val.digests
    )
    run = train(HEAD, val=first_class, epochs=20, lr=10, weight_decay=10, warmup=0.0)
    finite = [row for row in run.history.rows if math.isfinite(row[VAL_LOSS])]
    assert max(row[VAL_ACC] for row in finite) < run.history[VAL_ACC][-1] == 1.0
    assert run.history.best in finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_constants_are_stored_as_they_are_and_not_as_they_compute(dtype: torch.dtype) -> None:
    backbone = build_backbone("tests.networks:Constants", CLASSES, 32, seed=0)
    backbone.model.state_dict()["factor"].fill_(1 / 3)  # in 16 bits it is another number
    before, stage = copy_state(backbone), Stage("mine", 1, ("head", "late", "early", "stem"))
    trainer = trainer_for(backbone, stage, TrainSettings(**SMALL), dtype=dtype)
    assert changed_names(trainer.snapshot(), before) == set()
    last = train(stage, backbone=backbone, dtype=dtype).last
    assert torch.equal(last["factor"], before["factor"])


@pytest.mark.parametrize("stage", [HEAD, BLOCK4, FULL], ids=["head", "block4", "full"])
def test_a_snapshot_is_every_trainable_tensor_and_a_copy(stage: Stage) -> None:
    run = train(stage, epochs=1)
    backbone, snapshot = run.trainer.backbone, run.last
    assert set(snapshot) == set(backbone.tensor_names(stage.trainable))
    for tensor in snapshot.values():
        tensor.zero_()
    assert changed_names(snapshot, run.last)


def test_blocks_run_in_training_mode_again_after_validation() -> None:
    segments = train(BLOCK4, epochs=1, norm="adapt").trainer.segments
    assert [segment.name for segment in segments] == ["block4", "head"]
    norms = list(batch_norms(segment.module for segment in segments))
    assert norms
    assert all(layer.training for layer in (segments[0].module, *norms))
