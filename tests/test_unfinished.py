"""A training that is stopped goes on to the same bits: from every border of two epochs."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from pipeline.errors import SettingsError
from pipeline.model.backbones import Backbone
from pipeline.runs.unfinished import SHARE, keep_share
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import SCHEDULES, Stage
from pipeline.stats.metrics import Row
from pipeline.system.sealed import read_about, read_sealed, write_sealed
from pipeline.training.features import Features
from pipeline.training.prefix_cache import PrefixCache
from pipeline.training.trainer import Trainer
from pipeline.training.trainer_state import State, go_on, state_of
from tests.helpers import (
    CLASSES,
    CPU,
    calibrated_backbone,
    changed_names,
    make_images,
    trainer_for,
)

NAME = "mobilenet_v3_small"  # has dropout before its head
HEAD, MIDDLE = SCHEDULES["three_stage"].stages[:2]
EPOCHS = 3
IMAGES, VAL = make_images(12), make_images(6, start=50)


@cache
def small_backbone() -> Backbone:
    """What trainings begin from: none changes it."""
    return calibrated_backbone(NAME, IMAGES)


# Trainers


@dataclass(frozen=True)
class Course:
    """What a training came to, and its states by the number of epochs that were over."""

    trainer: Trainer
    states: dict[int, bytes]

    @property
    def rows(self) -> list[Row]:
        return [
            {name: value for name, value in row.items() if not name.startswith("time/")}
            for row in self.trainer.history.rows
        ]


def features(
    backbone: Backbone,
    stage: Stage,
    settings: TrainSettings,
    dtype: torch.dtype,
    cache: Path | None,
) -> tuple[Features, Features]:
    prefix = backbone.frozen_segments(stage.trainable)
    ask = PrefixCache(cache, 10**9).features
    return (
        ask(backbone, prefix, IMAGES, augment=settings.augment, views=2, dtype=dtype, device=CPU),
        ask(backbone, prefix, VAL, augment="none", views=1, dtype=dtype, device=CPU),
    )


def kept(trainer: Trainer) -> bytes:
    buffer = io.BytesIO()
    torch.save(state_of(trainer), buffer)
    return buffer.getvalue()


def read(content: bytes) -> State:
    state: State = torch.load(io.BytesIO(content), weights_only=True)
    return state


def course(trainer: Trainer, both: tuple[Features, Features], *, validate: bool) -> Course:
    """Train what is left; a state is taken at every border."""
    train, val = both
    epochs = (
        trainer.epochs(IMAGES, train, VAL, val)
        if validate
        else trainer.without_validation(IMAGES, train, CLASSES)
    )
    states = {}
    for _ in epochs:
        states[trainer.done] = kept(trainer)
    return Course(trainer, states)


@pytest.mark.parametrize(
    ("optimizer", "dtype", "stage", "cached", "validate"),
    [
        ("adamw", torch.float32, MIDDLE, True, True),
        ("sgd", torch.float32, MIDDLE, False, True),
        ("adamw", torch.bfloat16, MIDDLE, False, False),
        ("sgd", torch.bfloat16, HEAD, True, True),
    ],
)
def test_a_training_goes_on_from_every_border_to_the_same_bits(
    optimizer: str,
    dtype: torch.dtype,
    stage: Stage,
    cached: bool,
    validate: bool,
    tmp_path: Path,
) -> None:
    backbone = small_backbone()
    settings = TrainSettings(
        epochs=EPOCHS,
        batch_size=4,
        optimizer=optimizer,
        lr=0.01,
        l2_sp=0.01,
        augment="light+mixup",
    )
    both = features(backbone, stage, settings, dtype, tmp_path if cached else None)

    def trainer() -> Trainer:
        return trainer_for(backbone, stage, settings, views=2, dtype=dtype)

    whole = course(trainer(), both, validate=validate)
    assert sorted(whole.states) == list(range(1, EPOCHS + 1))
    for epoch, content in whole.states.items():
        torch.manual_seed(epoch + 1000)  # another process has drawn other numbers
        rest = trainer()
        go_on(rest, read(content))
        went_on = course(rest, both, validate=validate)
        assert sorted(went_on.states) == list(range(epoch + 1, EPOCHS + 1))
        assert not changed_names(whole.trainer.best, went_on.trainer.best)
        assert not changed_names(whole.trainer.snapshot(), went_on.trainer.snapshot())
        assert went_on.trainer.losses == whole.trainer.losses
        assert went_on.rows == whole.rows
        assert went_on.trainer.history.selected == whole.trainer.history.selected
        assert torch.equal(went_on.trainer.best_logits, whole.trainer.best_logits)


def test_patience_and_an_earlier_best_epoch_survive() -> None:
    """Weights that stand still are best in their first epoch, and the stage ends early."""
    backbone = small_backbone()
    settings = TrainSettings(epochs=6, batch_size=12, lr=1e-30, patience=2, norm="keep")
    both = features(backbone, HEAD, settings, torch.float32, None)
    whole = course(trainer_for(backbone, HEAD, settings), both, validate=True)
    selected = whole.trainer.history.selected
    assert len(whole.states) == selected + 2
    for content in whole.states.values():
        rest = trainer_for(backbone, HEAD, settings)
        go_on(rest, read(content))
        went_on = course(rest, both, validate=True)
        assert went_on.rows == whole.rows
        assert not changed_names(whole.trainer.best, went_on.trainer.best)


# Files


def test_a_damaged_or_foreign_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "below" / "a.state"
    write_sealed(path, {"done": 3}, lambda file: file.write(b"content"))
    assert read_sealed(path) == ({"done": 3}, b"content")
    assert read_about(path) == {"done": 3}
    assert [p.name for p in path.parent.iterdir()] == ["a.state"]
    whole = path.read_bytes()
    for place in (12, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"SHA-256|begin"):
            read_sealed(path)
    for other in (b"", b"\n", b"[]\n", b"{}\n", whole[:-1], b"\xff" * 100):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"SHA-256|begin"):
            read_sealed(path)


@pytest.mark.parametrize("text", ["-1", "nan", "much"])
def test_a_share_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARE, text)
    with pytest.raises(SettingsError, match=SHARE):
        keep_share()
    monkeypatch.setenv(SHARE, "")
    assert keep_share() == 0.02
