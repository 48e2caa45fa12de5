"""A training that is stopped goes on to the same bits: from every border of two epochs."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import mlflow
import pytest
import torch

from pipeline.cli import main
from pipeline.errors import DivergedError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.refit import stages
from pipeline.runs.find_or_run import find_or_run
from pipeline.runs.resuming.stopped import OUTDATED_AFTER_S, clear, sweep
from pipeline.runs.resuming.unfinished import NOTHING
from pipeline.runs.session import Session
from pipeline.settings.run import TrainSettings
from pipeline.settings.schedules import SCHEDULES, Stage
from pipeline.stats.metrics import Row
from pipeline.system.disk.sealed import read_about, read_sealed, write_sealed
from pipeline.system.interrupts import begun, stopped_by_signals
from pipeline.system.processes import PROCESS, STARTED
from pipeline.system.variables import KEEP_SHARE, LEASE
from pipeline.tracking import RunLog, Tracking, keys
from pipeline.tracking.history import History, Summary
from pipeline.training.prefix.cache import PrefixCache
from pipeline.training.prefix.features import Features
from pipeline.training.trainer import Trainer
from pipeline.training.trainer_state import State, go_on, state_of
from tests.conftest import tiny
from tests.helpers import (
    CLASSES,
    CPU,
    calibrated_backbone,
    changed_names,
    load_settings,
    make_images,
    slow_after,
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
    slow_after(
        1,
        [
            ("adamw", torch.float32, MIDDLE, True, True),
            ("sgd", torch.float32, MIDDLE, False, True),
            ("adamw", torch.bfloat16, MIDDLE, False, False),
            ("sgd", torch.bfloat16, HEAD, True, True),
        ],
    ),
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


def test_a_state_of_an_earlier_version_has_no_momentum_of_what_had_no_gradient_yet() -> None:
    backbone = build_backbone("tests.networks:GradientsLater", CLASSES, 32, seed=0)
    stage = Stage("mine", 1, ("head", "late"))
    settings = TrainSettings(epochs=EPOCHS, batch_size=12, lr=0.01, optimizer="sgd")
    both = features(backbone, stage, settings, torch.float32, None)
    whole = course(trainer_for(backbone, stage, settings), both, validate=True)
    rest, state = trainer_for(backbone, stage, settings), read(whole.states[1])
    optimized = [master for group in rest.optimizer.param_groups for master in group["params"]]
    (later,) = (w.master for w in rest.weights if w.name == "late.1.scale")
    (number,) = (n for n, master in enumerate(optimized) if master is later)
    assert not state["optimizer"]["state"].pop(number)["momentum_buffer"].any()
    go_on(rest, state)
    assert len(course(rest, both, validate=True).rows) == EPOCHS


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


# Stages: real runs in a real store

Told = list[str]


class Stops:
    """Ends a stage in the middle of the epoch after a given one, as Ctrl-C or SIGTERM does."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.epochs: list[int] = []

    def __call__(self, _: Stage, history: History) -> None:
        self.epochs.append(len(history))
        if len(history) == self.after:
            signal.raise_signal(signal.SIGTERM)


def open_session(images: Path, told: Told, **options: str) -> Session:
    settings = load_settings(tiny(images, Path(), {"stage1.epochs": "4", **options}))
    # without pictures, which take longer than the training
    return replace(Session.open(settings, Tracking.connect(), told.append), is_trial=True)


def train(session: Session, stop: Stops) -> Summary | None:
    """Stage 1 of a session; None where it was stopped."""
    with stopped_by_signals(signal.signal):
        begun()
        try:
            return find_or_run(replace(session, on_epoch=stop), 1)
        except KeyboardInterrupt:
            return None


def states() -> list[Path]:
    return sorted(Path("cache", "unfinished").glob("*.state"))


def history_of(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric that is logged by epoch, times aside."""
    client = mlflow.MlflowClient()
    names = [n for n in client.get_run(run_id).data.metrics if not n.startswith(("time/", "mem"))]
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in names
    }


@pytest.fixture
def at_every_border(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(KEEP_SHARE, "1e9")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"cache": "off", "stage1.optimizer": "sgd"}, id="sgd, not cached"),
        pytest.param({"views": "2", "augment": "light"}, id="adamw, cached"),
    ],
)
def test_a_stage_that_is_stopped_again_and_again_is_one_run_with_the_same_bits(
    options: dict[str, str], store: Path, image_folder: Path, at_every_border: None
) -> None:
    told: Told = []
    epochs = []
    for after in (1, 3):
        stop = Stops(after)
        assert train(open_session(image_folder, told, **options), stop) is None
        epochs += stop.epochs
        assert len(states()) == 1
        (run,) = Tracking.connect().find({keys.KIND: "stage"}, status=None)
        assert run.status == "KILLED"
    stop = Stops(0)
    summary = train(open_session(image_folder, told, **options), stop)
    assert summary
    assert [*epochs, *stop.epochs] == [1, 2, 3, 4]
    assert sum("goes on after epoch" in line for line in told) == 2
    (run,) = Tracking.connect().find({keys.KIND: "stage"}, status=None)
    assert (run.run_id, run.status) == (summary.run_id, "FINISHED")
    assert keys.FAILURE not in run.tags
    assert states() == []
    whole = train(open_session(image_folder, told, reuse="off", **options), Stops(0))
    assert whole
    undisturbed = Tracking.connect().get(whole.run_id)
    assert undisturbed.run_id != run.run_id
    sha256 = keys.CHECKPOINT_SHA256
    assert undisturbed.tags[sha256] == run.tags[sha256]
    assert history_of(run.run_id) == history_of(whole.run_id)
    assert whole.metrics == summary.metrics


def test_a_state_that_is_of_no_use_is_passed_over_with_a_note(
    store: Path, image_folder: Path, at_every_border: None
) -> None:
    told: Told = []
    for damage in (
        lambda c: c[:-9] + b"x" * 9,
        lambda c: c.replace(b'"format": 1', b'"format": 0'),
    ):
        assert train(open_session(image_folder, told), Stops(2)) is None
        (path,) = states()
        path.write_bytes(damage(path.read_bytes()))
        told.clear()
        stop = Stops(1)
        assert train(open_session(image_folder, told), stop) is None
        assert stop.epochs == [1]
        assert sum("of no use" in line for line in told) == 1
        assert not any("goes on" in line for line in told)
        assert path not in states()
        for left in states():
            left.unlink()


def test_a_state_is_its_runs_as_long_as_the_owner_gives_signs(
    store: Path, image_folder: Path, at_every_border: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell from here whether the owner is gone: a lease without a sign does."""
    monkeypatch.setenv(LEASE, "2")
    told: Told = []
    assert train(open_session(image_folder, told), Stops(2)) is None
    (path,) = states()
    tracking = Tracking.connect()
    (run,) = tracking.find({keys.KIND: "stage"}, status=None)
    log = tracking.writing(run.run_id)
    log.tags({PROCESS: str(os.getppid()), STARTED: ""})
    log.set_status("RUNNING")
    assert clear(path.parent, tracking) == 0
    stop = Stops(0)
    assert train(open_session(image_folder, told), stop)
    assert any("waiting for it" in line for line in told)
    assert stop.epochs == [3, 4]
    assert [one.run_id for one in tracking.find({keys.KIND: "stage"})] == [run.run_id]


def test_states_in_a_folder_of_others_end_no_command(
    store: Path, image_folder: Path, at_every_border: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All may write into the folder, and remove what is their own."""
    assert train(open_session(image_folder, []), Stops(2)) is None
    (path,) = states()
    tracking, key = Tracking.connect(), path.name.partition(".")[0]
    for status in ("KILLED", "FINISHED"):
        other = tracking.start("other", {})
        tracking.writing(other).set_status(status)
        shutil.copy(path, path.with_name(f"{key}.{other}.state"))
    left = states()

    def of_others(name: str) -> None:
        own = getattr(Path, name)

        def refused(path: Path, *words: object, **options: object) -> object:
            if path in left:
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))
            return own(path, *words, **options)

        monkeypatch.setattr(Path, name, refused)

    of_others("unlink")
    of_others("replace")
    stop = Stops(0)
    assert train(open_session(image_folder, []), stop)
    assert stop.epochs == [3, 4]
    assert states() == left


def test_a_run_that_goes_on_has_no_tag_that_is_not_true_any_more(store: Path) -> None:
    tracking, tags = Tracking.connect(), {keys.KIND: "stage"}
    once = {keys.WITHOUT_PICTURES: "true", "tuned_by": "a study", "weights": "none"}
    log = stopped(tracking, {**tags, **once})
    again = {**tags, "tuned_by": "another", "weights": "imagenet"}
    with tracking.run("again", again, target=False, goes_on=log):
        pass
    now = tracking.get(log).tags
    assert not {keys.WITHOUT_PICTURES, keys.FAILURE} & now.keys()
    assert again.items() <= now.items()
    with tracking.run("again", tags, target=False, goes_on=log):
        pass
    assert "tuned_by" not in tracking.get(log).tags


def test_what_goes_on_counts_and_not_what_a_killed_attempt_has_logged(store: Path) -> None:
    tracking = Tracking.connect()
    log = stopped(tracking, {}, [1.0, 2.0, 3.0, 4.0, 5.0])
    for last in ([40.0, 50.0], [4.0, 50.0]):
        with tracking.run("again", {}, target=False, goes_on=log) as again:
            log_epochs(again, [1.0, 2.0, 3.0, *last])
        assert tracking.history(log, keys.VAL_ACC) == [1, 2, 3, *last]
        run = tracking.get(log)
        assert (run.metrics[keys.VAL_ACC], run.metrics[keys.PREFIX_S]) == (50, last[0])
    steps = [step for step, _ in history_of(log)[keys.VAL_ACC]]
    assert sorted(steps) == [1, 2, 3, 4, 4, 4, 5, 5]  # the same again is not logged


def stopped(tracking: Tracking, tags: dict[str, str], epochs: Sequence[float] = ()) -> str:
    """The id of a run that has logged these epochs and was stopped."""
    run = tracking.run("stopped", tags, target=False)
    with suppress(KeyboardInterrupt), run as log:
        log_epochs(log, epochs)
        raise KeyboardInterrupt
    return log.run_id


def log_epochs(log: RunLog, accuracies: Sequence[float]) -> None:
    for epoch, accuracy in enumerate(accuracies, start=1):
        log.metrics({keys.VAL_ACC: accuracy}, step=epoch)
        if epoch == 4:
            log.metrics({keys.PREFIX_S: accuracy})
    log.wait()


def test_clean_counts_states_and_removes_them(
    store: Path, image_folder: Path, at_every_border: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(open_session(image_folder, []), Stops(2)) is None
    (path,) = states()
    assert main(["clean", "--cache_dir", "cache"]) == 0
    assert states() == [path]
    assert "states of stopped trainings" in capsys.readouterr().out
    assert main(["clean", "--cache_dir", "cache", "--remove", "failed"]) == 0
    assert states() == []


def test_a_run_that_mlflow_has_started_takes_over(
    store: Path, image_folder: Path, at_every_border: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `mlflow run`: the new run is the one that is left, with every epoch."""
    told: Told = []
    assert train(open_session(image_folder, told), Stops(2)) is None
    (stopped,) = Tracking.connect().find({keys.KIND: "stage"}, status=None)
    client = mlflow.MlflowClient()
    launched = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    words = tiny(image_folder, store, {"stage1.epochs": "4"})
    assert main(["stage1", *(f"--{name}={value}" for name, value in words.items())]) == 0
    (run,) = Tracking.connect().find({keys.KIND: "stage"}, status=None)
    assert (run.run_id, run.status) == (launched, "FINISHED")
    assert [step for step, _ in history_of(launched)[keys.VAL_LOSS]] == [1, 2, 3, 4]
    assert client.get_run(stopped.run_id).info.lifecycle_stage == "deleted"
    assert states() == []


@pytest.mark.usefixtures("at_every_border", "without_onnx")
def test_a_refit_that_mlflow_has_started_anew_has_the_curves_of_its_finished_stages(
    store: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tiny(image_folder, store, {"epochs": "2", "test_per_class": "2"})
    assert main(["stage2", *(f"--{name}={value}" for name, value in words.items())]) == 0
    (stage2,) = Tracking.connect().find({keys.KIND: "stage", keys.STAGE: "2"})
    metrics = stages._metrics

    def stop(number: int, loss: float, acc: float) -> dict[str, float]:
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
        return metrics(number, loss, acc)

    refit = ["refit", f"--run_id={stage2.run_id}", f"--cache_dir={store / 'cache'}"]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "_metrics", stop)
        assert main(refit) == 130
    assert len(states()) == 1
    launched = mlflow.MlflowClient().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    assert main(refit) == 0
    curves = history_of(launched)
    assert [step for step, _ in curves["stage1/loss"]] == [1]
    assert [step for step, _ in curves["stage2/acc"]] == [1, 2]
    assert states() == []


def test_a_stage_that_diverges_leaves_nothing_to_go_on_with(
    store: Path, image_folder: Path, at_every_border: None
) -> None:
    hopeless = {"lr": "100", "weight_decay": "10", "optimizer": "sgd", "batch_size": "2"}
    options = {f"stage1.{name}": value for name, value in hopeless.items()}
    session = open_session(image_folder, [], schedule="full", norm="keep", **options)
    with pytest.raises(DivergedError, match="no epoch had a finite"):
        train(session, Stops(0))
    assert states() == []


def test_a_run_without_a_state_begins_anew_and_is_one_run(store: Path, image_folder: Path) -> None:
    """A short stage keeps none: what that costs would be worth more than what is lost."""
    told: Told = []
    assert train(open_session(image_folder, told), Stops(2)) is None
    (path,) = states()
    assert tuple(read_about(path)["done"]) == NOTHING
    (stopped,) = Tracking.connect().find({keys.KIND: "stage"}, status=None)
    stop = Stops(0)
    summary = train(open_session(image_folder, told), stop)
    assert summary
    assert stop.epochs == [1, 2, 3, 4]
    (run,) = Tracking.connect().find({keys.KIND: "stage"}, status=None)
    assert [run.run_id, summary.run_id] == [stopped.run_id] * 2
    assert (run.status, keys.FAILURE in run.tags) == ("FINISHED", False)
    assert [step for step, _ in history_of(run.run_id)[keys.VAL_LOSS]] == [1, 2, 3, 4]
    assert states() == []


def test_old_states_go(store: Path) -> None:
    folder = Path("cache", "unfinished")
    folder.mkdir(parents=True)
    fresh, old = folder / "a.b.state", folder / "c.d.state"
    for path in (fresh, old):
        path.touch()
    past = time.time() - OUTDATED_AFTER_S - 1
    os.utime(old, (past, past))
    sweep(folder)
    assert states() == [fresh]


def test_a_disk_that_fills_while_a_state_is_written_is_an_oserror(tmp_path: Path) -> None:
    """Torch hides in a RuntimeError that its file could not be written."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_sealed(tmp_path / "a.state", {}, partial(torch.save, torch.ones(100_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
