"""Training on a device: nothing waits within a step, nothing is lost; on a fake device.

The code that runs here has never run on a real GPU where it was written.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.entries.command_line.table import ENTRY_POINTS
from pipeline.errors import OutOfMemoryError, SettingsError
from pipeline.model.backbones import Backbone
from pipeline.runs.scoring import predict
from pipeline.settings.run import MachineSettings, TrainSettings
from pipeline.settings.schedules import SCHEDULES, Stage
from pipeline.system.memory import PeakMemory
from pipeline.training.device import (
    compute_copy,
    compute_repeatably,
    emulation_note,
    pick_device,
    pick_precision,
)
from pipeline.training.norm.choice import choose_norm_stats
from pipeline.training.norm.stats import calibrate_norm_stats, statistics_of
from pipeline.training.out_of_memory import explained
from pipeline.training.prefix.cache import PrefixCache
from pipeline.training.stage0 import head_inputs
from pipeline.training.trainer import Trainer
from pipeline.training.trainer_state import State, go_on, put_state, state_of
from tests.fake_device import TO_DEVICE, FakeDevice, Move
from tests.helpers import CPU, calibrated_backbone, changed_names, make_images

NAME = "tests.networks:Dropouts"  # small: each operation costs a hundred times as much here
HEAD, MIDDLE = SCHEDULES["three_stage"].stages[:2]
MIDDLE = replace(MIDDLE, trainable=("head", "late"))
IMAGES, VAL = make_images(12), make_images(6, start=50)
BATCH, EPOCHS = 4, 2
STEPS = len(IMAGES) // BATCH
LITTLE = 1000
"""Bytes of free memory in which nothing can stay."""
NUMBERS = 64 * BATCH
"""Bytes: a batch's rows, flips, moves and colours."""


@cache
def small_backbone() -> Backbone:
    """What trainings begin from: none changes it."""
    return calibrated_backbone(NAME, IMAGES)


@dataclass(kw_only=True)
class Training:
    """One stage of a small network on a device."""

    device: str = "cuda"
    stage: Stage = MIDDLE
    dtype: torch.dtype = torch.float32
    augment: str = "light"
    folder: Path | None = None
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        place, backbone, views = torch.device(self.device), small_backbone(), 2
        prefix = backbone.frozen_segments(self.stage.trainable)
        ask, how = PrefixCache(self.folder, 10**9).features, {"dtype": self.dtype, "device": place}
        self.train = ask(backbone, prefix, IMAGES, augment=self.augment, views=views, **how)
        self.val = ask(backbone, prefix, VAL, augment="none", views=1, **how)
        self.trainer = Trainer(
            backbone=backbone,
            stage=self.stage,
            settings=TrainSettings(
                lr=1e-2,
                epochs=EPOCHS,
                batch_size=BATCH,
                optimizer=self.optimizer,
                augment=self.augment,
                clip_norm=1.0,
                l2_sp=0.01,
            ),
            seed=0,
            views=views,
            **how,
        )

    def epochs(self) -> Iterator[dict[str, float]]:
        return self.trainer.epochs(IMAGES, self.train, VAL, self.val)

    def moves(self, fake: FakeDevice) -> tuple[list[list[Move]], list[Move]]:
        """What moves in each step but the first of an epoch, and in the rest of the last epoch."""
        steps, ends = [], []
        for _ in self.epochs_marked(fake, ends):
            steps += [fake.moves[a:b] for a, b in pairwise(ends)]
            rest = fake.moves[ends[-1] :]
            ends.clear()
        return steps, rest

    def epochs_marked(self, fake: FakeDevice, ends: list[int]) -> Iterator[dict[str, float]]:
        self.trainer.on_step = lambda _: ends.append(len(fake.moves))
        return self.epochs()


CASES = {
    "resident": ({"folder": "cache"}, {}, NUMBERS),
    "sent by batch": ({"folder": "cache"}, {"free_bytes": LITTLE}, 10**6),
    "bfloat16": ({"folder": "cache", "dtype": torch.bfloat16}, {}, NUMBERS),
    "float16": ({"dtype": torch.float16, "optimizer": "sgd"}, {}, NUMBERS),
    "fresh": ({"augment": "strong+mixup", "device": "cuda:1"}, {}, NUMBERS),
    "fresh, sent by batch": ({}, {"free_bytes": LITTLE}, BATCH * 3 * 32**2 + NUMBERS),
    "drawn on the host": ({"augment": "randaugment+erasing"}, {}, 4 * BATCH * 3 * 32**2),
}


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_and_an_epoch_is_read_from_once(case: str, tmp_path: Path) -> None:
    how, there, most_bytes = CASES[case]
    if "folder" in how:
        how = {**how, "folder": tmp_path}
    with FakeDevice(**there) as fake:
        training = Training(**how)
        steps, rest = training.moves(fake)
    assert len(steps) == EPOCHS * (STEPS - 1)
    for moves in steps:
        assert {(move.kind, move.is_free) for move in moves} == {(TO_DEVICE, True)}, moves
        assert sum(move.size_bytes for move in moves) <= most_bytes
    read = Counter(move.line.split()[-1] for move in rest if move.kind != TO_DEVICE)
    read.pop("<dictcomp>", 0)  # the weights, where the epoch is the best so far
    assert read == {"_train_once": 1, "_validate": 1, "read": 1}
    assert all(move.is_free for move in rest if move.kind == TO_DEVICE), rest


@pytest.mark.parametrize(("dtype", "waits"), [(torch.float32, 0), (torch.float16, 1)])
def test_on_mps_a_step_waits_for_nothing_but_a_scaled_loss(dtype: torch.dtype, waits: int) -> None:
    """Optimizers that are not fused ask whether a gradient has overflowed."""
    with FakeDevice(kind="mps") as fake:
        steps, _ = Training(device="mps", dtype=dtype, augment="strong+mixup").moves(fake)
    for moves in steps:
        assert len([move for move in moves if move.kind != TO_DEVICE]) == waits
        assert sum(move.size_bytes for move in moves if move.kind == TO_DEVICE) <= NUMBERS


def test_what_fits_is_sent_once_and_what_does_not_with_each_batch(tmp_path: Path) -> None:
    sent = {}
    for name, free in (("fits", 1 << 30), ("does not", LITTLE)):
        with FakeDevice(free_bytes=free) as fake:
            training = Training(folder=tmp_path)
            assert training.train.running == ()
            fake.moves.clear()
            training.moves(fake)
        sent[name] = [move.size_bytes for move in fake.moves if "features.py" in move.line]
    whole, one = training.train.values.nbytes, training.train.values[0, 0].nbytes
    assert sent["fits"].count(whole) == 1
    assert max(sent["does not"]) <= len(VAL) * one
    assert sent["does not"].count(BATCH * one) == EPOCHS * STEPS


def test_memory_that_pytorch_keeps_for_what_comes_next_is_free(tmp_path: Path) -> None:
    with FakeDevice(free_bytes=LITTLE, reserved_bytes=1 << 30) as fake:
        training = Training(folder=tmp_path)
        fake.moves.clear()
        training.moves(fake)
    sent = [move.size_bytes for move in fake.moves if "features.py" in move.line]
    assert sent.count(training.train.values.nbytes) == 1


def test_passes_over_images_are_read_from_at_their_end() -> None:
    backbone, images = calibrated_backbone(NAME, IMAGES), IMAGES
    place, kept = torch.device("cuda"), len(statistics_of(backbone.model))
    with FakeDevice() as fake:
        read = {}
        for name, work in {
            "statistics": lambda: calibrate_norm_stats(backbone, images, torch.float32, place),
            "choice": lambda: choose_norm_stats(backbone, images, torch.float32, place),
            "scoring": lambda: predict(backbone, images, torch.float32, place),
            "stage 0": lambda: head_inputs(
                backbone, images, PrefixCache(None, 0), torch.float32, place
            ),
        }.items():
            fake.moves.clear()
            with patch("pipeline.runs.scoring.PIXELS_PER_BATCH", 4 * 32**2):
                work()
            read[name] = len([move for move in fake.moves if move.kind != TO_DEVICE])
            copies = [
                m for m in fake.moves if m.kind == TO_DEVICE and "compute_copy" not in m.line
            ]
            assert all(move.is_free for move in copies), copies
    assert read == {"statistics": 1 + kept, "choice": 2 + kept, "scoring": 1, "stage 0": 1}


def test_a_training_comes_to_what_it_comes_to_on_a_processor(tmp_path: Path) -> None:
    here = Training(device="cpu", stage=HEAD, folder=tmp_path / "here")
    expected = list(here.epochs())
    with FakeDevice():
        there = Training(stage=HEAD, folder=tmp_path / "there")
        rows = list(there.epochs())
    names = [name for name in expected[0] if not name.startswith("time/")]
    for row, wanted in zip(rows, expected, strict=True):
        assert [row[n] for n in names] == pytest.approx([wanted[n] for n in names], rel=1e-3)
    assert {tensor.device for tensor in there.trainer.best.values()} == {CPU}
    assert there.trainer.best_logits.device == CPU


# Precision


@pytest.mark.parametrize(
    ("kind", "capability", "dtype"),
    [
        ("cuda", (9, 0), torch.bfloat16),
        ("cuda", (8, 0), torch.bfloat16),
        ("cuda", (7, 5), torch.float16),
        ("cuda", (6, 1), torch.float32),
        ("mps", (0, 0), torch.float32),
    ],
)
def test_auto_is_the_precision_that_a_device_is_fast_at(
    kind: str, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    with FakeDevice(kind=kind, capability=capability):
        assert pick_precision("auto", pick_device("auto")) == dtype
        assert pick_precision("float16", pick_device("auto")) == torch.float16


@pytest.mark.parametrize(
    ("kind", "capability", "emulated"),
    [
        ("cuda", (9, 0), set()),
        ("cuda", (7, 5), {"bfloat16"}),
        ("cuda", (6, 1), {"bfloat16", "float16"}),
        ("cuda", (6, 0), {"bfloat16"}),
        ("mps", (0, 0), set()),
    ],
)
def test_a_precision_that_a_device_emulates_is_noted(
    kind: str, capability: tuple[int, int], emulated: set[str]
) -> None:
    with FakeDevice(kind=kind, capability=capability):
        here = pick_device("auto")
        noted = {p for p in ("auto", "float32", "bfloat16", "float16") if emulation_note(p, here)}
        assert noted == emulated


@pytest.mark.parametrize(
    ("capabilities", "auto", "emulated"),
    [
        ({"architecture": "x86_64", "avx2": True}, "float32", {"bfloat16", "float16"}),
        ({"architecture": "x86_64", "avx512_bf16": True}, "bfloat16", {"float16"}),
        ({"architecture": "x86_64", "amx_bf16": True, "amx_fp16": True}, "bfloat16", set()),
        ({"architecture": "aarch64"}, "float32", set()),
    ],
)
def test_a_precision_that_a_processor_emulates_is_noted(
    capabilities: dict[str, object],
    auto: str,
    emulated: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    here = torch.device("cpu")
    assert str(pick_precision("auto", here)) == f"torch.{auto}"
    notes = {p: emulation_note(p, here) for p in ("auto", "float32", "bfloat16", "float16")}
    assert {p for p, note in notes.items() if note} == emulated
    assert all(f"={p} " in note and f"takes {auto}" in note for p, note in notes.items() if note)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_losses_and_logits_are_float32(dtype: torch.dtype) -> None:
    with FakeDevice():
        trainer = (training := Training(dtype=dtype)).trainer
        row = next(training.epochs())
        computed = {w.computed.dtype for w in trainer.weights if w.computed.ndim == 4}
        assert computed == {dtype}
        assert {w.master.dtype for w in trainer.weights} == {torch.float32}
        assert trainer.scaler.is_enabled() == (dtype == torch.float16)
    assert trainer.best_logits.dtype == torch.float32
    assert {t.dtype for t in trainer.best.values() if t.is_floating_point()} == {torch.float32}
    assert 0 < row["loss/train"] < 10


@pytest.fixture
def garbage() -> Iterator[None]:
    """Memory that nothing was written to holds no numbers."""
    enabled = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(enabled)


@pytest.mark.usefixtures("garbage")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_whose_gradients_overflow_is_left_out(optimizer: str) -> None:
    def train(scale: float, good: int) -> tuple[dict[str, Tensor], float]:
        training = Training(device="cpu", dtype=torch.float16, optimizer=optimizer)
        trainer = training.trainer
        put_state(trainer)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-30)
        while good:
            torch.manual_seed(good)  # dropout
            rows, before = np.arange(good, good + BATCH), trainer.scaler.get_scale()
            inputs = training.train.batch(rows, np.zeros_like(rows))
            trainer._step(inputs, IMAGES.labels[rows])
            good -= trainer.scaler.get_scale() == before
        return {w.name: w.value for w in trainer.weights}, trainer.scaler.get_scale()

    (never, scale), (overflowed, backed_off) = train(2.0**10, 3), train(2.0**100, 3)
    assert scale == backed_off == 2.0**10
    assert changed_names(never, overflowed) == set()
    assert changed_names(never, train(2.0**10, 2)[0]) == set(never)


@pytest.mark.parametrize(("dtype", "last"), [(torch.float32, False), (torch.bfloat16, True)])
def test_maps_are_channels_last_where_tensor_cores_multiply(
    dtype: torch.dtype, last: bool
) -> None:
    with FakeDevice():
        (segment, *_) = compute_copy(small_backbone().segments, dtype, torch.device("cuda"))
        weight = next(p for p in segment.module.parameters() if p.ndim == 4 and p.shape[1] > 1)
        assert weight.is_contiguous(memory_format=torch.channels_last) == last


# States


def kept(trainer: Trainer) -> bytes:
    """The state as torch.save writes one of a device."""
    buffer, tags = io.BytesIO(), torch.serialization.location_tag
    device = str(trainer.device)
    with patch("torch.serialization.location_tag", lambda s: device if tags(s) == "cpu" else ""):
        torch.save(state_of(trainer), buffer)
    return buffer.getvalue()


def read(content: bytes) -> State:
    state: State = torch.load(io.BytesIO(content), "cpu", weights_only=True)
    return state


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cuda:1", torch.float16), ("cuda", torch.float32), ("mps", torch.float32)],
)
def test_a_state_of_a_device_goes_on_there_to_the_same_bits(
    device: str, dtype: torch.dtype
) -> None:
    how = {"device": device, "dtype": dtype}
    kind = device.partition(":")[0]
    with FakeDevice(kind=kind):
        whole = Training(**how)
        if dtype == torch.float16:  # another scale than a fresh one
            whole.trainer.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**8)
        epochs = whole.epochs()
        next(epochs)
        content = kept(whole.trainer)
        list(epochs)
    with pytest.raises(RuntimeError, match=r"deserialize|not recognized"):
        torch.load(io.BytesIO(content), weights_only=True)
    state = read(content)  # on a machine without that device
    with FakeDevice(kind=kind) as fake:
        torch.rand(3, device=device)  # its generator is elsewhere by now
        rest = Training(**how)
        go_on(rest.trainer, state)
        list(rest.epochs())
        if dtype == torch.float16:
            assert rest.trainer.scaler.get_scale() == 2.0**8
        drawn = fake.generators[torch.device(device).index or 0].get_state()
    assert not torch.equal(drawn, state["random"]["device"])  # dropout has drawn from it since
    assert torch.equal(rest.trainer.best_logits, whole.trainer.best_logits)
    for name, tensor in whole.trainer.best.items():
        assert torch.equal(rest.trainer.best[name], tensor), name


# Devices


def test_a_device_goes_by_its_number_and_a_missing_one_is_refused() -> None:
    with FakeDevice():
        names = ("auto", "cuda", "cuda:1", "cpu")
        devices = [pick_device(name) for name in names]
        assert [*map(str, devices)] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
        for device in (devices[2], devices[0]):  # `auto` after a run on the second
            compute_repeatably(device)
            assert torch.cuda.current_device() == device.index
        for name in ("cuda:2", "mps"):
            with pytest.raises(SettingsError, match=rf"{name} is not .*auto \(cuda.*cuda:1"):
                pick_device(name)
    with FakeDevice(kind="mps"):
        assert [str(pick_device(name)) for name in ("auto", "mps")] == ["mps", "mps"]
    with pytest.raises(SettingsError, match=r"device=cuda:0 is not available here: .*\(cpu\)"):
        pick_device("cuda:0")
    assert MachineSettings(device="cuda:12").device == "cuda:12"


def test_a_peak_is_measured_on_a_device_that_nothing_has_run_on() -> None:
    with FakeDevice():
        assert PeakMemory(torch.device("cuda")).read_mib() == 0


# Memory


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_batch_that_does_not_fit_is_a_line_that_says_what_to_do(kind: str) -> None:
    with FakeDevice(kind=kind) as fake:
        training = Training(device=kind)
        fake.largest_bytes = 20_000
        wanted = r"memory of the device does not .*smaller -P batch_size"
        with pytest.raises(OutOfMemoryError, match=wanted), explained():
            next(training.epochs())


@pytest.mark.parametrize("library", ["CUBLAS", "CUDNN"])
def test_a_library_without_memory_is_the_device_without_memory(library: str) -> None:
    with pytest.raises(OutOfMemoryError, match="memory of the device does"), explained():
        raise RuntimeError(f"{library} error: {library}_STATUS_ALLOC_FAILED when calling create")


def test_memory_of_the_machine_is_told_apart_and_other_faults_stay() -> None:
    for ask in (lambda: torch.empty(1 << 60), lambda: bytearray(1 << 60)):
        with pytest.raises(OutOfMemoryError, match=r"this machine does .*batch_size"), explained():
            ask()
    with pytest.raises(RuntimeError, match="shape"), explained():
        torch.empty(2, 3) @ torch.empty(2, 3)


@pytest.mark.parametrize(
    ("entry_point", "on_device", "on_host"),
    [
        (
            "stage1",
            "pass a smaller -P batch_size=<images> or -P image_size=<pixels>, or -P device=cpu; "
            "what is finished is kept",
            "pass a smaller -P batch_size=<images> or -P image_size=<pixels>, or fewer images; "
            "what is finished is kept",
        ),
        (
            "evaluate",
            "pass -P device=cpu, or end other programs that use it; what is finished is kept",
            "end other programs that use it; what is finished is kept",
        ),
        ("predict", "end other programs that use it", "end other programs that use it"),
    ],
)
def test_advice_on_memory_names_what_the_command_takes(
    entry_point: str, on_device: str, on_host: str
) -> None:
    for fault, advice in ((torch.OutOfMemoryError("full"), on_device), (MemoryError(), on_host)):
        wanted = rf"does not suffice \(.*\): {re.escape(advice)}$"
        with (
            pytest.raises(OutOfMemoryError, match=wanted),
            explained(ENTRY_POINTS[entry_point].offered),
        ):
            raise fault


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_advice_on_memory_is_taken_by_every_command_that_gives_it(entry_point: str) -> None:
    for fault in (torch.OutOfMemoryError("full"), MemoryError()):
        with (
            pytest.raises(OutOfMemoryError, match="does not suffice") as raised,
            explained(ENTRY_POINTS[entry_point].offered),
        ):
            raise fault
        named = set(re.findall(r"-P (\w+)=", str(raised.value)))
        assert named <= set(ENTRY_POINTS[entry_point].offered)
