"""MLproject, python_env.yaml and pyproject.toml say the same as the code."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.entries.command_line.parser import build_parser
from pipeline.entries.command_line.table import ENTRY_POINTS
from pipeline.settings.entry import UNSET
from pipeline.settings.layers import Layer, preset_names, resolve
from pipeline.settings.run import RUN_KEYS, TRAIN_KEYS, plain_values
from tests.helpers import load_settings

ROOT = Path(__file__).resolve().parent.parent
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
PUBLIC_NAMES = """
preset config data train_per_class val_per_class data_seed draw seed backbone weights image_size
schedule parent_run_id epochs batch_size optimizer lr lr_decay weight_decay label_smoothing l2_sp
augment norm norm_stats precision device cache cache_dir cache_limit views
"""


def options_of(entry_point: str) -> set[str]:
    parser = build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    actions = commands.choices[entry_point]._actions
    return {name.removeprefix("--") for action in actions for name in action.option_strings}


def test_every_subcommand_is_an_entry_point() -> None:
    assert set(PROJECT["entry_points"]) == set(ENTRY_POINTS)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_declared_parameters_are_options_and_reach_the_command(name: str) -> None:
    entry_point = PROJECT["entry_points"][name]
    declared = set(entry_point.get("parameters", {}))
    command = entry_point["command"]
    assert declared <= options_of(name)
    assert declared == set(re.findall(r"--(\w+) \{\1\}", command))
    assert command.split()[:4] == ["python", "-m", "pipeline", name]


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_defaults_mean_not_given(name: str) -> None:
    for parameter in PROJECT["entry_points"][name].get("parameters", {}).values():
        assert parameter.get("default", "auto") in UNSET


def test_every_public_name_is_an_option_of_stage3() -> None:
    assert set(PUBLIC_NAMES.split()) <= options_of("stage3")
    assert set(RUN_KEYS) | set(TRAIN_KEYS) <= options_of("stage3")


def test_dependencies_stand_in_one_list() -> None:
    environment = yaml.safe_load((ROOT / "python_env.yaml").read_text(encoding="utf-8"))
    assert environment == {"dependencies": ["-r requirements.txt"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {
        "file": ["requirements.txt"]
    }


@pytest.mark.parametrize("preset", preset_names())
def test_presets_parse_and_round_trip(preset: str) -> None:
    settings = load_settings({"preset": preset})
    assert settings.preset == preset
    assert resolve([Layer(source="test", values=plain_values(settings))]) == settings
