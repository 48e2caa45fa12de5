"""Settings that have no effect beside the others are named in one line, and others are not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.entries.command_line.table import ENTRY_POINTS, settings_in
from tests.helpers import request_of

TASKS = {"num_cpus": "2", "num_gpus": "1"}
STUDY = {"n_trials": "7", "margin": "1", "objective": "val_loss", "storage": "sqlite:///x.db"}
BY_HAND = {"treatment": "three_stage", "control": "two_stage"}
IMAGES = {"preset": "images"}


def lines(name: str, options: dict[str, str], config: Path | None = None) -> list[str]:
    row, request = ENTRY_POINTS[name], request_of(name, options, config)
    plan = row.plan(request)
    return row.idle(getattr(plan, "request", request), settings_in(plan))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        *((name, TASKS, "num_cpus, num_gpus have no effect") for name in ("tune", "decide")),
        ("compare", {"num_cpus": "2", "workers": "1"}, "num_cpus has no effect .*workers=2"),
        ("tune", {"num_gpus": "1", "cluster": "local", "device": "cpu"}, "num_gpus .*device=cpu"),
        ("decide", STUDY, "storage, n_trials, objective, margin have no effect .*without tune=on"),
        ("decide", {"draws": "2"}, "draws has no effect .*without tune=on"),
        ("compare", {"tune_draws": "2"}, "tune_draws has no effect .*without tuned=on"),
        ("main", {"storage": "sqlite:///x.db"}, "storage has no effect .*without tuned=on"),
        ("decide", {"refit": "all", "register_as": "off"}, "refit has no .*register_as=off"),
        ("decide", {"question": "stage2", **BY_HAND}, "question has no .*treatment and control"),
        ("main", {"cache": "off", "cache_limit": "1GB"}, "cache_limit has no effect .*cache=off"),
        ("main", {"augment": "mixup", "views": "5"}, "views has no effect .*augment=none"),
        ("stage1", {"lr_decay": "0.5"}, "lr_decay has no .*head alone"),
        ("main", {"stage1.lr_decay": "2"}, r"stage1\.lr_decay has no effect .*head alone"),
        ("main", {"epochs": "5", "patience": "5"}, "patience has no effect .*no more epochs"),
        ("main", {"schedule": "two_stage", "enforce_gate": "on"}, "enforce_gate has no .*stage 3"),
    ],
)
def test_what_has_no_effect_is_named_in_one_line_that_says_why(
    name: str, options: dict[str, str], words: str
) -> None:
    (line,) = lines(name, options)
    assert re.match(f"note: {words}", line)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tune", {**TASKS, "workers": "2"}),
        ("decide", {**TASKS, "cluster": "auto"}),
        ("tune", {**STUDY, "draws": "2", "heartbeat": "5"}),
        ("decide", {**STUDY, "draws": "2", "tune": "on"}),
        ("compare", {**STUDY, "tune_draws": "2", "tuned": "on"}),
        ("compare", {"draws": "5"}),
        ("decide", {"refit": "off", "register_as": "off"}),
        ("main", {"storage": "sqlite:///x.db", "tuned": "on"}),
        ("decide", {"refit": "all", "register_as": "mine"}),
        ("main", {"cache_limit": "1GB"}),
        ("main", {**IMAGES, "data": "x", "views": "5"}),
        ("tune", {"views": "5"}),  # augment is in the space
        ("main", {"lr_decay": "0.5", "norm": "keep"}),
        ("stage2", {"lr_decay": "0.5", "stage2.norm": "keep", "patience": "2"}),
        ("main", {"enforce_gate": "on", "gate_flat": "0.1"}),
        ("stage1", {"gate_flat": "0.1", "enforce_gate": "on"}),  # as given to all stages
        ("stage2", {"parent_run_id": "a", "views": "5"}),  # the run hands its augment down
        ("pretrain", {"data": "x", "out": "w.safetensors", "views": "5"}),
        ("evaluate", {"run_id": "a", "cache_limit": "1GB"}),
    ],
)
def test_what_has_an_effect_is_not_named(name: str, options: dict[str, str]) -> None:
    assert lines(name, options) == []


def test_a_file_is_read_as_the_command_line_is_and_usual_values_are_no_fault(
    tmp_path: Path,
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("cache: off\ncache_limit: 20GB\nviews: 3\nenforce_gate: off\n")
    (line,) = lines("main", {"schedule": "two_stage"}, config)
    assert line.startswith("note: views has no effect")


def test_no_effect_of_networks_without_batch_norm() -> None:
    options = {"backbone": "vit_b_16", "norm": "keep", "norm_stats": "target", "weights": "none"}
    (line,) = lines("main", {**options, "image_size": "224"})
    assert line.startswith("note: norm, norm_stats have no effect")
