"""The table of entry points: every row works, YAML files are read once, faults come first."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from pipeline.cli import main
from pipeline.entries.parser import build_parser
from pipeline.entries.table import ENTRY_POINTS
from pipeline.errors import SettingsError
from pipeline.settings.layers import preset_layer
from tests.conftest import TINY, enter_store, inside, words_of, write_image_folder

ROOT = Path(__file__).resolve().parent.parent
OPENED: list[Path] = []
"""YAML files that were opened, in order."""


def _note(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and str(args[0]).endswith(".yaml"):
        OPENED.append(Path(str(args[0])))


sys.addaudithook(_note)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Path]:
    """A store with images, a settings file, and the runs of a chain."""
    root = tmp_path_factory.mktemp("table")
    write_image_folder(root / "images", 24)
    own = {**TINY, "epochs": "1", "train_per_class": "2", "val_per_class": "2"}
    own |= {"data": str(root / "images"), "cache_dir": str(root / "cache")}
    own |= {"test_per_class": "8", "preset": "images"}
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in own.items()]
    (root / "mine.yaml").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        enter_store(root / "work", empty_database, patch)
    with inside(root / "work"):
        assert main(["stage2", "--config", str(root / "mine.yaml")]) == 0
        yield root


def stage_run(number: int) -> str:
    runs = mlflow.search_runs(["0"], f"tags.stage = '{number}'", output_format="list")
    return str(runs[-1].info.run_id)


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_reads_each_yaml_file_once(name: str, work: Path) -> None:
    """The whole command: settings are resolved from one reading, and handed on."""
    out = str(work / "w.safetensors")
    few: dict[str, dict[str, str]] = {
        "main": {"seed": "1"},
        "stage": {"number": "1", "seed": "2"},
        "stage3": {"parent_run_id": stage_run(2)},
        "tune": {"stage": "1", "n_trials": "1", "epochs": "1", "workers": "1"},
        "decide": {"looks": "2", "register_as": "off", "beside": "1"},
        "compare": {"draws": "2", "schedules": "full,two_stage"},
        "pretrain": {"out": out, "weights": "none", "norm_stats": "source"},
        "evaluate": {"run_id": stage_run(2)},
        "gate": {"run_id": stage_run(2)},
    }
    options = few.get(name, {})
    if "config" in ENTRY_POINTS[name].keys:
        options |= {"config": str(work / "mine.yaml")}
    if name == "pretrain":
        text = (work / "mine.yaml").read_text().replace('norm_stats: "target"\n', "")
        (work / "domain.yaml").write_text(text)
        options["config"] = str(work / "domain.yaml")
    if name == "decide":  # four draws, two of them for tuning
        options |= {"tune": "on", "n_trials": "1", "draws": "2"}
    OPENED.clear()
    preset_layer.cache_clear()
    assert main(words_of(name, options)) == 0
    read = Counter(p for p in OPENED if p.is_relative_to(ROOT) or p.parent == work)
    if "config" in options:
        assert read[Path(options["config"])] == 1
    assert set(read.values()) == {1}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_a_fault_in_any_entry_points_settings_comes_before_torch(name: str) -> None:
    words = words_of(name, {"cache_dir": "x", "rope": "1"})
    code = (
        "import json, sys\n"
        "from pipeline.cli import main\n"
        "codes = [main(words) for words in json.loads(sys.argv[1])]\n"
        "print(codes, [m for m in ('torch', 'mlflow', 'optuna', 'numpy') if m in sys.modules])\n"
    )
    wrong = {"gate": {"gate_flat": "-1"}, "evaluate": {"device": "abacus"}}
    faults = [words, words_of(name, wrong.get(name, {"epochs": "x"}))]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(faults)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[2, 2] []"
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_shows_every_option_that_a_person_types(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args([name, "--help"])
    shown = capsys.readouterr().out
    for key in ENTRY_POINTS[name].keys:
        assert (f"--{key} " in shown) is ("." not in key and key != "joins")


def test_a_stage_by_number_is_that_stage_and_needs_the_number() -> None:
    stage, stage2 = ENTRY_POINTS["stage"], ENTRY_POINTS["stage2"]
    options = {"lr": "0.1", "stage1.lr": "0.2"}
    assert (
        stage.plan(stage.read({**options, "number": "2"})).settings
        == stage2.plan(stage2.read(options)).settings
    )
    with pytest.raises(SettingsError, match="number is not given"):
        stage.plan(stage.read(options))
    with pytest.raises(SettingsError, match="three_stage has 3 stages, got stage 4"):
        stage.plan(stage.read({"number": "4"}))
